"""What the errors of training runs are to be held against, and what memory says.

repeats of one configuration   an older run predicted by the newest: no predictor can do better
one rate per GPU and precision the median TFLOP/s of the other models' runs on that GPU: no model at all
... on the headline rows       the same prediction for the judged rows of profiled GPUs only
memory                         a configuration that ran fits; a published out-of-memory run does not
"""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Final

from moesim.validate.figures import REPEATS_DIFFER, Row, gpu_name, line, number
from moesim.validate.summary import VERDICT
from moesim.validate.training_rows import DTYPES, MICROSCALED, Judged, case

FLOOR: Final = "repeats of one configuration (floor)"
BASELINE: Final = "one rate per GPU and precision (baseline)"
ON_HEADLINE: Final = "one rate, on the headline rows (baseline)"
RAN: Final = "memory: what ran fits"
REFUSED: Final = "memory: out of memory is refused"
FORMATS: Final = DTYPES | dict.fromkeys(MICROSCALED, "microscaled fp8")


def beside(
    everything: Sequence[Judged], configurations: Sequence[tuple[Sequence[Judged], bool]]
) -> Iterator[dict[str, Any]]:
    """The lines of this module; ``configurations`` are the repeats of each, and whether it fits in memory."""
    for members, fits in configurations:
        yield _verdict(members[0], fits)
        yield from _repeats([one for one in members if one.run and one.run.tokens_per_s_per_gpu])
    bridge = [one for one in everything if one.row.get("container")]
    for one, rate, others in _rates(bridge):
        yield _beside(one, BASELINE, rate, others)
    for one, rate, others in _rates([one for one in everything if one.row["tp"] is not None]):
        if one.line["headline"] and not one.line["skipped"]:
            yield _beside(one, ON_HEADLINE, rate, others)


def _verdict(one: Judged, fits: bool) -> dict[str, Any]:
    ran = one.line["skipped"] != "the run was out of memory"
    made = line(str(one.row["gpu"]), case(one.row), one.row, VERDICT)
    verdict = 1.0 if fits else 0.0
    return made | {
        "group": RAN if ran else REFUSED, "headline": False, "measured": 1.0 if ran else 0.0,
        "predicted": verdict, "low": verdict, "high": verdict,
    }  # fmt: skip


def _repeats(members: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    """The older of the runs that are counted, each predicted by the newest."""
    measured = [float(one.line["measured"]) for one in members]
    if len(members) < 2 or max(measured) / min(measured) > REPEATS_DIFFER:
        return
    newest = next(i for i, one in enumerate(members) if not one.line["skipped"])
    for place, one in enumerate(members):
        if place != newest:
            yield _beside(one, FLOOR, measured[place], measured[newest])


def _beside(one: Judged, group: str, measured: float, predicted: float) -> dict[str, Any]:
    unit = "tokens/s/GPU" if group == FLOOR else "TFLOP/s/GPU"
    made = line(str(one.row["gpu"]), case(one.row), one.row, unit)
    return made | {
        "group": group, "headline": False, "measured": measured,
        "predicted": predicted, "low": predicted, "high": predicted,
    }  # fmt: skip


def _rates(among: Sequence[Judged]) -> Iterator[tuple[Judged, float, float]]:
    """Rows with their TFLOP/s and the median of the other models' on the same GPU and precision."""
    known = [(one, *_kind(one.row), number(one.row, "tflops_gpu")) for one in among if _has_rate(one.row)]
    for one, kind, model, rate in known:
        others = [found for _, its, name, found in known if its == kind and name != model]
        if others:
            yield one, rate, median(others)


def _has_rate(row: Row) -> bool:
    return row["tflops_gpu"] is not None and row.get("quality") in (None, "table")


def _kind(row: Row) -> tuple[tuple[str, str], str]:
    """GPU and precision, and the model's name without remarks."""
    number_format = str(row["precision"])
    kind = gpu_name(str(row["gpu"])), FORMATS.get(number_format, number_format)
    return kind, str(row["model"]).partition(" (")[0]
