"""The command line, through ``main([...])``: help, options, one good call of each command, refusals."""

import json
from pathlib import Path

import click
import pytest

from moesim.cli import COMMANDS, main
from moesim.cli import moesim as group
from moesim.cli.cost_command import OPERATIONS
from moesim.profile import shipped_folder

SCENARIO = (
    "MODEL --average-load --batch --cluster --dtype --global-batch --gpu-hour-price --isl --json --mtp --nodes --osl "
    "--routing --seed --seq --workload"
)
FLAGS = {  # names are frozen once released; a new one is a decision
    "plan": f"{SCENARIO} --objective --out --top",
    "simulate": f"{SCENARIO} --batched --out --plot --strategy --trace",
    "goodput": f"{SCENARIO} --checkpoint-interval --gpu-mtbf --jitter --restart --slow-nodes --slowness --strategy "
    "--write-bandwidth",
    "tiers": f"{SCENARIO} --cached --cpu-bandwidth --cpu-memory --hit-rate --slots --ssd --ssd-bandwidth --strategy",
    "policy": "MODEL --all-to-all --capacity-factors --cluster --dtype --forward --json --nodes --out --tokens-per-gpu",
    "list": "WHAT --json",
    "validate": "--check --data --group --json --out --rows",
    "cost expert-ffn": "--dtype --experts --ep --ffn --from --gpu --hidden --json --kernel --load --no-gate --out "
    "--seed --tokens-global --tokens-per-expert --tokens-per-rank --top-k --tp",
    "cost gemm": "--dtype --from --gpu --json --k --m --n --out",
    "cost attention": "--batch --context --dtype --from --gpu --head-dim --heads --json --kind --kv-dtype --kv-heads "
    "--latent-dim --out --phase --queries --v-head-dim --window",
    "cost all-to-all": "--algorithm --capacity-factor --cluster --direction --dtype --expert-groups --experts --from "
    "--hidden --json --nodes --out --placement --plot --ranks --ranks-per-node --redundant-experts --routing --seed "
    "--tokens-global --tokens-per-rank --top-groups --top-k",
    "cost all-reduce": "--bytes --cluster --from --json --nodes --out --ranks --ranks-per-node",
    "cost all-gather": "--bytes --cluster --from --json --nodes --out --ranks --ranks-per-node",
    "cost reduce-scatter": "--bytes --cluster --from --json --nodes --out --ranks --ranks-per-node",
    "cost send": "--bytes --cluster --from --json --out --same-node",
}
SMALL = "olmoe-1b-7b --cluster dgx-h200 --workload decode --batch 8"
TRAIN = "olmoe-1b-7b --cluster dgx-h200 --global-batch 64 --seq 1024"


def call(text, *more):
    return main([*text.split(), *(str(one) for one in more)])


def answer(capsys, text, *more, code=0):
    """The one JSON document of a call, and nothing beside it."""
    assert call(text, *more, "--json") == code
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err == ""
    return json.loads(out)


def find(name):
    command = group
    for part in name.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), part)
    return command


# --- help and options -------------------------------------------------------------------------------------------


def test_the_commands_are_frozen():
    assert list(COMMANDS) == ["plan", "simulate", "goodput", "tiers", "policy", "cost", "list", "validate", "calibrate"]
    assert {f"cost {name}" for name in OPERATIONS} == {name for name in FLAGS if name.startswith("cost ")}
    assert group.list_commands(click.Context(group)) == list(COMMANDS)


@pytest.mark.parametrize("name", FLAGS)
def test_the_options_are_frozen(name):
    params = [p for p in find(name).params if not isinstance(p, click.Option) or p.name != "help"]
    found = {p.name.upper() if isinstance(p, click.Argument) else max(p.opts, key=len) for p in params}
    assert found == set(FLAGS[name].split())


@pytest.mark.parametrize("name", ["", *COMMANDS, *FLAGS])
def test_help_names_every_option_and_says_what_it_is_for(name, capsys):
    assert call(f"{name} --help") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"Usage: moesim {name}".rstrip())
    for flag in FLAGS.get(name, "").split():
        assert flag in out
    command = find(name)
    assert all(p.help for p in command.params if isinstance(p, click.Option))


def test_the_version_is_printed(capsys):
    import moesim

    assert call("--version") == 0
    assert capsys.readouterr().out == f"moesim, version {moesim.__version__}\n"


# --- one good call of each command ------------------------------------------------------------------------------


def test_plan_prints_a_ranking_and_its_reasons(capsys):
    assert call(f"plan {SMALL} --top 2") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "olmoe-1b-7b on 1 x dgx-h200 (8 H200), decode: 64 sequences x 1 tokens after 4,096, bf16" in out
    for words in ("Run: dp=", "What bounds it: ", "The runner-up (", "Searched ", "Limit: "):
        assert words in out


def test_plan_out_leaves_report_tables_and_pictures_whole(tmp_path, capsys):
    out = tmp_path / "a" / "b"
    document = answer(capsys, f"plan {TRAIN} --nodes 2 --out", out)
    left = {path.name for path in out.iterdir()}
    drawn = ("breakdown", "candidates", "layer", "timeline")
    tables = {f"{name}.csv" for name in (*drawn, "configurations")}
    assert left == {"report.md", "plan.json", *tables, *(f"{name}.png" for name in drawn)}
    assert json.loads((out / "plan.json").read_text()) == document
    assert (out / "report.md").read_text().startswith("# olmoe-1b-7b on 2 x dgx-h200 (16 H200), train: 64 sequences")
    for path in out.glob("*.png"):
        assert path.read_bytes()[:4] == b"\x89PNG", path
    for path in out.glob("*.csv"):
        assert len(path.read_text().splitlines()) > 1, path
    ranked = (out / "configurations.csv").read_text().splitlines()
    assert len(ranked) == 1 + len(document["configurations"])


def test_simulate_prints_where_the_time_goes(capsys):
    assert call(f"simulate {SMALL} --strategy", "ep=8") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("where the time goes", "expert GEMMs", "dp=8 tp=1 ep=8", "TPOT "):
        assert words in out


def test_simulate_json_names_the_inputs_and_the_answer(capsys):
    document = answer(capsys, f"simulate {SMALL} --strategy", "ep=8")
    assert list(document) == [
        "model", "mtp", "cluster", "workload", "routing", "seed", "strategy", "layers_per_part",
        "metrics", "interval", "basis",
        "bound_s", "breakdown_s", "memory_bytes", "dropped_share", "padding_share", "infeasible", "limits",
    ]  # fmt: skip
    assert document["metrics"]["tpot_s"] >= document["bound_s"] > 0
    assert sum(document["breakdown_s"].values()) == pytest.approx(document["metrics"]["tpot_s"])


def test_the_batched_list_schedule_agrees_with_simpy(capsys):
    played = answer(capsys, f"simulate {TRAIN} --strategy", "pp=2 ep=4 chunks=2")
    listed = answer(capsys, f"simulate {TRAIN} --batched --strategy", "pp=2 ep=4 chunks=2")
    assert listed["metrics"]["step_time_s"] == pytest.approx(played["metrics"]["step_time_s"], rel=1e-9)


def test_a_strategy_too_large_for_the_memory_is_played_and_exits_1(capsys):
    document = answer(capsys, "simulate deepseek-v3 -c dgx-h100 --global-batch 8 --strategy", "ep=8", code=1)
    assert document["infeasible"] == "does not fit in GPU memory"


@pytest.mark.parametrize("form", ["the plan's file", "an object in a file", "an object as text", "yaml", "key=value"])
def test_a_plans_strategy_is_accepted_unchanged(form, tmp_path, capsys):
    best = answer(capsys, f"plan {SMALL} --top 1")["configurations"][0]
    text = json.dumps(best["strategy"])
    (tmp_path / "best.json").write_text(json.dumps(best))
    (tmp_path / "object.json").write_text(text)
    (tmp_path / "mine.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in best["strategy"].items()))
    given = {
        "the plan's file": tmp_path / "best.json",
        "an object in a file": tmp_path / "object.json",
        "an object as text": text,
        "yaml": tmp_path / "mine.yaml",
        "key=value": " ".join(f"{k}={v}" for k, v in best["strategy"].items() if v is not None),
    }[form]
    document = answer(capsys, f"simulate {SMALL} --strategy", given)
    assert document["strategy"] == best["strategy"]
    assert document["metrics"]["tpot_s"] == pytest.approx(best["metrics"]["tpot_s"], rel=1e-9)


def test_the_trace_opens_in_perfetto_and_the_plot_has_its_table(tmp_path, capsys):
    trace, plot = tmp_path / "t.json", tmp_path / "p.png"
    document = answer(capsys, f"simulate {TRAIN} --trace {trace} --plot {plot} --strategy", "pp=2 ep=4")
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["ph"] for event in events} <= {"X", "M", "s", "f", "C"}
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event.keys() >= {"name", "ts", "dur", "pid", "tid"} and event["dur"] >= 0 for event in spans)
    named = {event["pid"] for event in events if event["name"] == "process_name"}
    assert {event["pid"] for event in spans} <= named
    end_s = max(event["ts"] + event["dur"] for event in spans) / 1e6
    assert end_s == pytest.approx(document["metrics"]["step_time_s"], rel=1e-6)
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert plot.with_suffix(".csv").read_text().count("\n") > 1


def test_a_folder_for_one_configuration_holds_its_result_and_pictures(tmp_path, capsys):
    document = answer(capsys, f"simulate {TRAIN} --out {tmp_path} --strategy", "pp=2 ep=4")
    assert json.loads((tmp_path / "result.json").read_text()) == document
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"breakdown", "timeline", "layer"} == {path.stem for path in tmp_path.glob("*.csv")}


@pytest.mark.parametrize("what", ["models", "clusters", "profiles", "routing", "all-to-all", "schedules"])
def test_list_says_what_is_there(what, capsys):
    rows = answer(capsys, f"list {what}")
    assert len(rows) >= 2
    assert len({tuple(row) for row in rows}) == 1
    if what not in ("all-to-all", "schedules"):
        assert all(row["source"] for row in rows)
    assert call(f"list {what}") == 0
    assert str(rows[0].get("name", rows[0].get("gpu"))) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "promised"),
    [
        (
            "models",
            "mixtral-8x7b mixtral-8x22b deepseek-v2-lite deepseek-v3 qwen3-30b-a3b qwen3-235b-a22b gpt-oss-20b "
            "gpt-oss-120b llama-4-scout llama-4-maverick kimi-k2 olmoe-1b-7b llama-3.1-8b",
        ),
        (
            "clusters",
            "dgx-a100 dgx-h100 dgx-h200 hgx-h800 hgx-b200 gb200-nvl72 hgx-b300 gb300-nvl72 pcie-l40s pcie-a30",
        ),
    ],
)
def test_the_promised_presets_are_listed(what, promised, capsys):
    assert set(promised.split()) <= {row["name"] for row in answer(capsys, f"list {what}")}


def test_validate_judges_a_group_and_a_missed_goal_fails_only_with_check(capsys):
    document = answer(capsys, "validate --group training")
    groups = document["groups"]
    keys = {"part", "group", "n", "skipped", "median", "mean", "p90", "tau"}
    assert all(keys <= set(one) for one in groups)
    assert {one["part"] for one in groups} == {"training"}
    missed = any(one["missed"] for one in groups)
    assert call("validate --group training --check") == int(missed)
    assert "training: all" in capsys.readouterr().out
    assert call("validate --group training --rows") == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("part,group,case,measured,predicted")


ONE_OF_EACH = {
    "gemm": "--gpu H200 --m 4096 --n 4096 --k 4096",
    "expert-ffn": "--gpu H200 --hidden 4096 --ffn 14336 --tokens-per-rank 1024 --experts 8 --top-k 2 --ep 8",
    "attention": "--gpu H200 --phase prefill --heads 32 --kv-heads 8 --head-dim 128 --context 4096",
    "all-to-all": "--cluster dgx-h200 --nodes 2 --tokens-per-rank 1024 --hidden 4096 --top-k 2 --experts 16",
    "all-reduce": "--cluster dgx-h100 --bytes 64MiB",
    "all-gather": "--cluster dgx-h100 --bytes 64MiB",
    "reduce-scatter": "--cluster dgx-h100 --bytes 64MiB",
    "send": "--cluster dgx-h100 --bytes 64MiB",
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_cost_prices_every_operation(operation, capsys):
    one = answer(capsys, f"cost {operation} {ONE_OF_EACH[operation]}")
    assert set(one) >= {"seconds", "low", "high", "basis", "bound_s", "limited_by", "source"}
    assert 0 < one["bound_s"] <= one["seconds"]
    assert 0 < one["low"] < one["seconds"] < one["high"]
    assert list(one["basis"]) == ["measured", "published", "estimated"]
    assert sum(one["basis"].values()) == pytest.approx(1.0)
    assert one["source"]
    assert call(f"cost {operation} {ONE_OF_EACH[operation]}") == 0
    assert capsys.readouterr().out.startswith(f"{operation}: ")


def test_cost_prices_a_table(tmp_path, capsys):
    table, out = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("m,n,k\n128,4096,4096\n4096,4096,4096\n")
    small, large = answer(capsys, "cost gemm --gpu H200 --from", table)
    assert small["seconds"] < large["seconds"]
    assert call("cost gemm --gpu H200 --from", table, "--out", out) == 0
    assert len(out.read_text().splitlines()) == 3


# --- refusals ---------------------------------------------------------------------------------------------------

CLUSTER = """name: mine
source: mine
gpu: H200
nodes: 2
gpus_per_node: 8
scale_up: {kind: nvlink, latency: 8us, bandwidth: 320GBps, peak: 450GB/s, source: "mine"}
scale_out: {kind: nic, latency: 20us, bandwidth: 48GB/s, peak: 50GB/s, source: "mine"}
nics_per_node: 8
"""
PLAN = "plan olmoe-1b-7b -c dgx-h200"
PLAY = "simulate olmoe-1b-7b -c dgx-h200"
REFUSED = {
    "unknown model": ("plan mixtrl-8x7b -c dgx-h200", "unknown model 'mixtrl-8x7b': did you mean mixtral-8x7b"),
    "truncated config": ("plan config.json -c dgx-h200", "config.json is not valid JSON"),
    "absent config": ("plan nowhere/config.json -c dgx-h200", "cannot read nowhere/config.json"),
    "unknown cluster": ("plan olmoe-1b-7b -c dgx-h201", "unknown cluster 'dgx-h201': did you mean dgx-h200"),
    "bad unit": ("plan olmoe-1b-7b -c bad.yaml", "bad.yaml: scale_up.bandwidth: '320GBps' is not a bandwidth"),
    "no nodes": (f"{PLAN} --nodes 0", "nodes 0: give a whole number of at least 1"),
    "nodes in words": (f"{PLAN} --nodes two", "'two' is not a valid integer"),
    "unknown workload": (f"{PLAN} -w trian", "unknown workload 'trian': did you mean train"),
    "unknown dtype": (f"{PLAN} --dtype fp7", "unknown dtype for train 'fp7'"),
    "serving dtype in training": (f"{PLAN} --dtype int4", "unknown dtype for train 'int4'"),
    "unknown routing": (f"{PLAN} --routing zip", "unknown routing 'zip'"),
    "routing out of range": (f"{PLAN} --routing zipf:99", "not '99'"),
    "absent routing file": (f"{PLAN} --routing mine.csv", "no routing file 'mine.csv'"),
    "unknown objective": (f"{PLAN} --objective speed", "unknown objective 'speed'"),
    "cost without price": (f"{PLAN} --objective cost", "give --gpu-hour-price"),
    "negative price": (f"{PLAN} --gpu-hour-price -1", "gpu_hour_price -1.0"),
    "negative seed": (f"{PLAN} --seed -1", "--seed is -1"),
    "top 0": (f"{PLAN} --top 0", "--top is 0"),
    "two batches": (f"{PLAN} --batch 2 --global-batch 3", "both --batch and --global-batch"),
    "empty batch": (f"{PLAN} --global-batch 0", "0 sequences"),
    "batch without end": (f"{PLAN} --batch inf", "--batch is inf"),
    "prompt in training": (f"{PLAN} --isl 5", "--isl 5 does not apply to a train workload"),
    "unknown option": (f"{PLAN} --frob", "No such option '--frob'. (see: moesim plan --help)"),
    "no model": ("plan -c dgx-h200", "Missing argument 'MODEL'"),
    "no cluster": ("plan olmoe-1b-7b", "Missing option '--cluster'"),
    "no strategy": (PLAY, "Missing option '--strategy'"),
    "impossible degrees": (f"{PLAY} -s tp=3", "tp x pp x cp = 3, which does not divide 8 GPUs"),
    "impossible experts": (f"{PLAY} -s ep=7", "this strategy cannot run: ep x etp does not divide"),
    "not key=value": (f"{PLAY} -s ep", "'ep' is not key=value"),
    "unknown key": (f"{PLAY} -s epp=8", "unknown strategy key 'epp': did you mean pp or ep"),
    "unknown choice": (f"{PLAY} -s all_to_all=4dh", "unknown strategy all_to_all '4dh'"),
    "unknown picture": (f"{PLAY} -s ep=8 --plot picture.foo", "picture.foo: end its name in .png or .svg or .pdf"),
    "no folder for the trace": (f"{PLAY} -s ep=8 --trace nowhere/t.json", "there is no folder nowhere; make it first"),
    "out is a file": (f"{PLAN} --out config.json", "--out config.json is a file: name a folder"),
    "unknown list": ("list modles", "unknown list 'modles': did you mean models"),
    "unknown group": ("validate --group foo", "unknown group 'foo'"),
    "empty folder": ("validate --data .", "point --data at a folder of measured tables"),
    "unknown operation": ("cost gem", "No such command 'gem'"),
    "both ways": ("cost send --cluster dgx-h100 --bytes 1MiB --across --same-node", "its opposite"),
    "inputs not given": ("cost gemm --gpu H200", "m, n, k not given"),
    "unknown command": ("frobnicate", "No such command 'frobnicate'"),
    "no command": ("", "Missing command. (see: moesim --help)"),
    "no operation": ("cost", "Missing command. (see: moesim cost --help)"),
}


def assert_refused(capsys, text, message, *more):
    assert call(text, *more) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("moesim: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_input_is_one_line_and_exit_code_2(what, tmp_path, monkeypatch, capsys):
    text, message = REFUSED[what]
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text('{"model_type": "mixtral", "hidden_size": 4096,')
    Path("bad.yaml").write_text(CLUSTER)
    assert_refused(capsys, text, message)
    assert sorted(path.name for path in Path().iterdir()) == ["bad.yaml", "config.json"]


def test_the_cluster_file_with_its_unit_mended_is_taken(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(CLUSTER.replace("GBps", "GB/s"))
    document = answer(capsys, f"plan olmoe-1b-7b -c {path} -w decode --batch 8 --top 1")
    assert document["cluster"] == {"name": "mine", "gpu": "H200", "nodes": 2, "gpus": 16}


def test_a_profile_without_one_of_its_columns_is_refused(tmp_path, monkeypatch, capsys):
    for source in shipped_folder().glob("h200/*"):
        copy = tmp_path / "h200" / source.name
        copy.parent.mkdir(exist_ok=True)
        text = source.read_text()
        copy.write_text(text.replace("hidden,", "", 1) if source.name == "expert_ffn.csv" else text)
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))
    assert_refused(capsys, PLAN, "expert_ffn.csv has no column 'hidden'")


@pytest.mark.parametrize("more", ["--objective speed", "--top 0", "--seed -1", "--objective cost"])
def test_a_refused_plan_leaves_no_folder(more, tmp_path, capsys):
    out = tmp_path / "out"
    assert_refused(capsys, f"{PLAN} {more} --json --out {out}", "")
    assert not out.exists()


def test_a_refused_strategy_leaves_no_trace(tmp_path, capsys):
    assert_refused(capsys, f"{PLAY} -s ep=7 --trace {tmp_path}/t.json --plot {tmp_path}/p.png", "cannot run")
    assert list(tmp_path.iterdir()) == []


def test_a_table_with_a_wrong_row_is_not_half_priced(tmp_path, capsys):
    table, out = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("m,n,k\n128,4096,4096\n-1,4096,4096\n")
    assert_refused(capsys, f"cost gemm --gpu H200 --from {table} --out {out}", "-1")
    assert not out.exists()


def test_nothing_feasible_is_told_on_stdout_with_exit_code_1(tmp_path, capsys):
    out = tmp_path / "out"
    assert call("plan deepseek-v3 -c dgx-h100 --out", out) == 1
    shown, err = capsys.readouterr()
    assert err == ""
    assert "Nothing is feasible:" in shown
    assert "strategies: does not fit in GPU memory" in shown
    assert {path.name for path in out.iterdir()} == {"report.md", "plan.json"}
