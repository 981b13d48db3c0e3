from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from moesim.errors import MoesimError
from moesim.plots import (
    COLOURS,
    accuracy,
    accuracy_panels,
    breakdown,
    candidates,
    figure,
    layer_timeline,
    roofline,
    save,
    save_table,
    timeline,
)
from moesim.plots.style import readable_on
from moesim.plots.timeline import FAMILIES, STEP_COLOURS
from moesim.program import LayerShape, Passes, backward_layer, forward_layer, pipeline
from moesim.timeline import Span, to_frame

GIB = 2**30


def texts(ax):
    legend = ax.get_legend()
    inside = [t.get_text() for t in legend.get_texts()] if legend else []
    return [t.get_text() for t in ax.texts] + inside


def drawn(ax, tmp_path):
    """Draw for real: a warning or a label that matplotlib cannot draw fails here."""
    save(ax.figure, tmp_path / "plot.png")
    return ax


def pipeline_spans(stages, micro_batches):
    spans = []
    for stage, j in product(range(stages), range(micro_batches)):
        spans.append(Span(stage, "stage", "forward", j, stage + j, stage + j + 0.9, micro_batch=j))
    spans.append(Span(0, "send", "send", 0, 0.9, 1.0, micro_batch=0))
    spans.append(Span(0, "dp", "reduce last", 0, 5.0, 6.0))
    spans.append(Span(0, "stage", "optimizer", 0, 6.0, 7.0))
    spans.append(Span(0, "compute", "attention", 0, 0.0, 0.5, micro_batch=0, layer=0))
    return spans


LAYER = [
    Span(0, "compute", "attention", 0, 0.0, 4e-3),
    Span(1, "compute", "attention", 0, 0.0, 4e-3),
    Span(0, "comm", "dispatch", 0, 4e-3, 5e-3),
    Span(0, "comm", "dispatch", 1, 5e-3, 6e-3),
    Span(0, "compute", "experts", 0, 5e-3, 9e-3),
    Span(1, "compute", "experts", 0, 5e-3, 7e-3),
]


def strategies(count, state="played"):
    speed = np.linspace(100, 200, count)
    return pd.DataFrame(
        {
            "memory_bytes_per_gpu": np.linspace(20, 60, count) * GIB,
            "tokens_per_s_per_gpu": speed,
            "state": state,
            "low": speed * 0.9,
            "high": speed * 1.1,
            "label": [f"ep={n}" for n in range(count)],
        }
    )


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 1), (4, 3), (8, 64)])
def test_a_timeline_has_one_row_per_stage_and_seconds_below(tmp_path, stages, micro_batches):
    _, ax = figure(rows=stages)
    assert timeline(to_frame(pipeline_spans(stages, micro_batches)), ax) is ax
    assert ax.get_xlabel() == "time (s)"
    assert ax.get_ylabel() == "pipeline stage"
    assert len(ax.get_yticks()) == stages
    assert {"forward", "transfer between stages", "optimizer"} <= set(texts(drawn(ax, tmp_path)))
    assert "backward" not in texts(ax)


def test_passes_are_numbered_only_where_the_numbers_fit():
    _, few = figure()
    timeline(to_frame(pipeline_spans(2, 3)), few)
    _, many = figure()
    timeline(to_frame(pipeline_spans(2, 300)), many)
    assert [t for t in texts(few) if t.isdigit()] == ["0", "1", "2"] * 2
    assert not [t for t in texts(many) if t.isdigit()]


def test_the_middle_of_a_long_step_is_left_out_and_the_ticks_tell_the_true_time(tmp_path):
    spans = [Span(0, "stage", "forward", j, j, j + 0.9, micro_batch=j) for j in range(1000)]
    _, ax = figure(rows=1)
    timeline(to_frame(spans), drawn(ax, tmp_path))
    # 1000 passes of 1 s: 200 are drawn, 100 s at either end and a gap of 12 s between them
    assert ax.get_xlim() == pytest.approx((0, 211.8), abs=0.2)
    assert "800 s\nleft out" in texts(ax)
    ticks = dict(zip([t.get_text() for t in ax.get_xticklabels()], ax.get_xticks(), strict=True))
    assert ticks["75"] == 75
    assert ticks["975"] == pytest.approx(187, abs=0.2)
    assert sum(len(c.get_paths()) for c in ax.collections) == pytest.approx(200, abs=2)


def test_decode_marks_where_each_token_is_done():
    spans = [Span(0, "stage", "forward", 0, n, n + 1, micro_batch=0, turn=n) for n in range(3)]
    _, ax = figure()
    timeline(to_frame(spans), ax)
    assert [line.get_xdata()[0] for line in ax.lines] == [1.0, 2.0, 3.0]
    assert sum("of every sequence done" in t for t in texts(ax)) == 3


def test_a_layer_timeline_has_a_row_per_rank_class_and_one_for_what_they_share(tmp_path):
    _, ax = figure()
    assert layer_timeline(to_frame(LAYER), ax) is ax
    rows = [t.get_text() for t in ax.get_yticklabels()]
    assert rows == ["compute, rank class 0 (slowest)", "compute, rank class 1", "communication"]
    assert ax.get_xlabel() == "time (ms)"
    assert {"dispatch 0", "dispatch 1", "experts", "all-to-all"} <= set(texts(drawn(ax, tmp_path)))


def test_an_op_too_short_for_its_name_shows_its_initial_and_the_legend_says_what_it_is():
    spans = [Span(0, "comm", "dispatch", 0, 0.0, 0.04), Span(0, "compute", "experts", 0, 0.04, 1.0)]
    _, ax = figure()
    layer_timeline(to_frame(spans), ax)
    assert "D" in texts(ax)
    assert "D = dispatch" in texts(ax)


def test_every_op_of_every_program_has_a_colour():
    flags = ("tp", "cp", "ep", "etp", "shared", "replicated", "gathers_weights", "reduces_gradients")
    for moe, on in product((True, False), (True, False)):
        shape = LayerShape(moe=moe, chunks=2, overlap="chunked", **dict.fromkeys(flags, on))
        programs = [forward_layer(shape)]
        programs += [backward_layer(shape, recompute=r) for r in ("none", "selective", "full")]
        assert {FAMILIES[op.name.split()[0]] for program in programs for op in program} <= set(COLOURS)
    step = pipeline(Passes(stages=2, micro_batches=2, reduces=True))
    assert {op.name.split()[0] for op in step} <= set(STEP_COLOURS)


def test_candidates_name_the_fastest_played_one_and_count_every_kind(tmp_path):
    frame = pd.concat([strategies(500, "bound"), strategies(20, "batched"), strategies(3)])
    _, ax = figure(8)
    assert candidates(frame, ax, memory_limit_bytes=50 * GIB) is ax
    assert ax.get_xlabel() == "memory per GPU (GiB)"
    assert ax.get_ylabel() == "tokens/s per GPU"
    words = texts(drawn(ax, tmp_path))
    assert "ep=2" in words
    assert "limit 50 GiB " in words
    assert "bound only (cannot be faster): 500" in words
    assert "played (lines: 90 % bands of those ranked): 3" in words
    assert ax.get_ylim()[1] > 220  # the band of the fastest


def test_candidates_mark_the_winner_they_are_told():
    _, ax = figure()
    candidates(strategies(3), ax, winner="ep=1")
    assert "ep=1" in texts(ax)


def test_a_long_tail_beyond_the_memory_limit_is_counted_instead_of_drawn():
    frame = strategies(10)
    frame.loc[9, "memory_bytes_per_gpu"] = 5000 * GIB
    _, ax = figure()
    candidates(frame, ax, memory_limit_bytes=64 * GIB)
    assert ax.get_xlim()[1] < 110
    assert "1 need more →" in texts(ax)


def test_breakdown_names_what_fits_and_puts_the_rest_above(tmp_path):
    frame = pd.DataFrame(
        [
            {"label": "ep=8", "attention": 6.0, "all-to-all": 3.9, "gate": 0.1},
            {"label": "ep=4", "attention": 5.0, "all-to-all": 1.0, "bubble": 1.0},
        ]
    )
    _, ax = figure(rows=2)
    assert breakdown(frame, ax) is ax
    assert ax.get_xlabel() == "time of a step (s)"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ep=8", "ep=4"]
    words = texts(drawn(ax, tmp_path))
    assert {"attention\n6", "all-to-all\n3.9", " 10 s", " 7 s", "gate", "bubble"} <= set(words)
    assert "attention" not in words


@pytest.mark.parametrize(
    ("plot", "empty"),
    [
        (timeline, to_frame([])),
        (layer_timeline, to_frame([])),
        (candidates, strategies(0)),
        (breakdown, pd.DataFrame({"label": []})),
    ],
)
def test_an_empty_frame_gives_labelled_axes_that_say_so(tmp_path, plot, empty):
    _, ax = figure()
    assert plot(empty, ax) is ax
    assert any(t.startswith("no ") for t in texts(drawn(ax, tmp_path)))
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_a_figure_is_saved_whole_with_its_table_beside_it(tmp_path):
    drawing, ax = figure(4, 2)
    frame = strategies(3)
    candidates(frame, ax)
    save(drawing, tmp_path / "a.png")
    assert save_table(frame, tmp_path / "a.png") == tmp_path / "a.csv"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.png"]
    assert imread(tmp_path / "a.png").shape[:2] == (300, 600)  # 150 dots per inch
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv"), frame)


def test_svg_and_pdf_are_written_and_another_ending_is_refused(tmp_path):
    drawing, _ = figure(2, 2)
    save(drawing, tmp_path / "a.svg")
    save(drawing, tmp_path / "a.pdf")
    with pytest.raises(MoesimError, match=r"\.png, \.svg, \.pdf"):
        save(drawing, tmp_path / "a.docx")
    with pytest.raises(MoesimError, match="cannot write"):
        save(drawing, tmp_path / "nowhere" / "a.png")


# Linear RGB as it is and as people without M or L cones see it: Machado, Oliveira, Fernandes 2009, table 1.
EYES = {
    "all cones": np.eye(3),
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, eye):
    """CIELAB of an sRGB colour."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x = XYZ @ np.clip(np.asarray(eye) @ linear, 0, 1) / (XYZ @ np.ones(3))
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
def test_no_two_families_look_alike_to_any_eye(eye):
    seen = {family: lab(colour, EYES[eye]) for family, colour in COLOURS.items()}
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 12, (one, other)  # 2.3 can just be told apart


def test_labels_are_dark_on_light_and_light_on_dark():
    assert readable_on("#000000") == "white"
    assert readable_on("#F0E442") == "black"


def test_plots_leave_no_figure_open_in_pyplot():
    from matplotlib import pyplot

    _, ax = figure()
    breakdown(pd.DataFrame([{"label": "ep=8", "attention": 1.0}]), ax)
    assert pyplot.get_fignums() == []


JUDGED = pd.DataFrame(
    {
        "group": ["gemm H200 bf16"] * 3 + ["expert-ffn H200 a_kernel_with_a_long_name fp8_block"],
        "measured": [10.0, 100.0, 1000.0, 50.0],
        "predicted": [11.0, 100.0, 500.0, 60.0],
        "low": [9.0, 90.0, 450.0, 40.0],
        "high": [12.0, 110.0, 550.0, 70.0],
        "unit": ["us"] * 4,
    }
)


def test_a_figure_outside_its_band_is_hollow(tmp_path):
    _, ax = figure()
    drawn(accuracy(JUDGED, ax), tmp_path)
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert [line.get_xdata().tolist() for line in hollow] == [[1000.0]]
    assert ax.get_xlim() == ax.get_ylim()


def test_each_group_has_a_panel_with_its_median_error(tmp_path):
    panels = accuracy_panels(JUDGED)
    save(panels, tmp_path / "p.png")
    titles = [ax.get_title() for ax in panels.axes]
    assert [title.splitlines()[-1] for title in titles] == [
        "3 figures, median error 10.0%", "1 figure, median error 20.0%",
    ]  # fmt: skip


def test_groups_beyond_the_last_panel_are_counted():
    many = pd.concat([JUDGED.assign(group=f"group {i}") for i in range(18)])
    panels = accuracy_panels(many)
    assert len(panels.axes) == 16
    assert "not drawn, fewest figures: 2 groups" in panels.get_suptitle()


def test_a_kernel_at_the_peak_touches_the_roof(tmp_path):
    frame = pd.DataFrame({"series": ["gemm"], "flops": [1e12], "bytes": [1e9], "seconds": [1e-3]})
    _, ax = figure()
    drawn(roofline(frame, ax, flops_per_s={"bf16": 1e15, "fp8": 2e15, "int8": 2e15}, bytes_per_s=4e12), tmp_path)
    point, *roofs = ax.lines
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((1000.0, 1000.0))
    assert sorted(float(roof.get_ydata()[-1]) for roof in roofs) == pytest.approx([1000.0, 2000.0, 2000.0])
    assert {"bf16 1,000 TFLOP/s", "fp8/int8 2,000 TFLOP/s", "4 TB/s"} <= set(texts(ax))


def test_nothing_judged_says_so():
    empty = accuracy_panels(JUDGED.iloc[:0])
    assert "no judged figures to show" in [t.get_text() for ax in empty.axes for t in ax.texts]
