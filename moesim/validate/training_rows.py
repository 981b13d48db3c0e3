"""A published training run in moesim's nouns.

The table states model, GPUs, precision, TP, PP, EP, CP, VP, batch and sequence; what it leaves open is chosen by
one rule for all rows, never by row:

    micro-batch   as given, else 1                  CP, VP        as given, else 1
    expert TP     as given; TP where the framework is named "TP+EP" (experts share it); else 1
    ZeRO          3 for FSDP rows, else 1           recompute     the first of none, selective, full that fits;
                                                                  else what needs least memory
    schedule      interleaved with virtual stages, DualPipe where the system is named after it, else 1F1B
    all-to-all    LIBRARIES: what the software of that time offers, the fastest of it; not overlapped
    routing       uniform popularity, drawn by chance; capacity factor 1 where the source drops tokens
    layers        those that divide over PP x VP are divided evenly (Megatron's default), others balanced (``stages``:
                  DeepSeek-V3's recipes in Megatron-Bridge have that layout)
    MTP           the model's modules where the row's FLOPs per token, given or TFLOP/s over tokens/s, exceed those of
                  the model alone by more than 2 %, or where it has neither; else none
    precision     BF16; FP8, FP8-CS -> fp8; FP8 blockwise, FP8 mixed -> fp8_block; FP8-MX, MXFP8 -> fp8 where the
                  tensor cores apply the scales (Blackwell: the data sheet's FP8 peak), else fp8_block

A row that names only a family of layouts is the best configuration of that family (``training_families``).
TFLOP/s become tokens/s by the source's FLOP count where the table gives it, else by moesim's.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from moesim.alltoall import ALGORITHMS
from moesim.cluster import Cluster
from moesim.errors import MoesimError
from moesim.memory import memory
from moesim.metrics import does_not_fit
from moesim.model import Model, training_flops, with_mtp
from moesim.strategy import RECOMPUTE, Strategy, load_strategy, why_not
from moesim.units import TFLOPS
from moesim.validate.figures import Row, SkipError, find_cluster, find_model, number, positive, whole
from moesim.workload import Workload, make_workload

DTYPES: Final = {
    "BF16": "bf16", "FP8": "fp8", "FP8-CS": "fp8", "FP8 blockwise": "fp8_block", "FP8 mixed": "fp8_block",
}  # fmt: skip
MICROSCALED: Final = ("FP8-MX", "MXFP8")
FAMILIES: Final = ("FSDP", "FSDP+EP", "TP+EP+DP", "MCore (TP+EP+PP+DP)", "MCore + MoE Parallel Folding")
LIBRARIES: Final = {  # all-to-alls of a system, by how its name begins
    "HAI-LLM": ("deepep",),  # DeepSeek-V3, arXiv:2412.19437 section 3.2.2
    "Megatron-Bridge": ("linear", "deepep", "hybrid_ep"),  # flex dispatcher of Megatron-Core 0.12 and later
    "Megatron-Core": ("linear", "deepep", "hybrid_ep"),  # arXiv:2603.07685
}
NO_SPEED: Final = "neither tokens/s nor TFLOP/s was reported"
OTHER_FLOPS: Final = 1.02  # sources that count more FLOPs than this times moesim's train something else beside


class Run(NamedTuple):
    """One published run. It took the fastest of ``strategies``, which differ in what the table does not say."""

    model: Model
    cluster: Cluster
    workload: Workload
    strategies: tuple[Strategy, ...]  # none: to be found in the family
    family: str  # "": none
    drops: bool
    tokens_per_s_per_gpu: float | None  # None: out of memory
    remarks: tuple[str, ...]

    @property
    def block(self) -> str:
        """Families of one block are alternatives for the same work."""
        w = self.workload
        return f"{self.model.name} {self.cluster.gpus} {self.cluster.gpu.name} {w.sequences} x {w.queries}"


class Judged(NamedTuple):
    """A row with its line and, where it can be predicted, its run."""

    row: Row
    line: dict[str, Any]
    run: Run | None


def read_run(row: Row) -> Run:
    """The run of a row; SkipError where the row leaves open what no rule decides."""
    if row.get("quality") not in (None, "table"):
        raise SkipError(f"quality of the figure: {row['quality']}")
    model = _trained(row, find_model(str(row["model"])))
    cluster = find_cluster(str(row["gpu"]), whole(row, "gpus"))
    dtype = precision(str(row["precision"]), cluster)
    family = str(row.get("framework")) if row.get("framework") in FAMILIES else ""
    stated = not family or all(row[name] is not None for name in ("tp", "pp", "ep"))
    choices = _choices(row) if stated else {}
    workload = make_workload("train", cluster.gpus, global_batch=whole(row, "gbs"), seq=whole(row, "seq"), dtype=dtype)
    speed, remarks = _speed(row, model, workload)
    run = Run(model, cluster, workload, (), family, "token drop" in str(row["token_handling"]), speed, remarks)
    if not stated:
        return run
    made = _strategies(row, run, choices)
    return run._replace(strategies=made)


def _trained(row: Row, model: Model) -> Model:
    """The model with or without its MTP modules, by the FLOPs that the source counts."""
    counted = _flops_per_token(row)
    if counted is None:
        return model
    alone = with_mtp(model, 0)
    sequence = whole(row, "seq")
    return model if counted > OTHER_FLOPS * training_flops(alone, sequence) / sequence else alone


def _flops_per_token(row: Row) -> float | None:
    """The source's count; None where it cannot be told."""
    if row.get("gflop_per_token") is not None:
        return positive(row, "gflop_per_token") * 1e9
    if row["tok_s_gpu"] is None or row["tflops_gpu"] is None:
        return None
    return positive(row, "tflops_gpu") * TFLOPS / positive(row, "tok_s_gpu")


def evenly(model: Model, parts: int) -> tuple[int, ...] | None:
    """The layers of each part where they divide, those of MTP modules with the last."""
    each, rest = divmod(len(model.layers), parts)
    return None if rest else (*[each] * (parts - 1), each + model.mtp_layers)


def precision(name: str, cluster: Cluster) -> str:
    """moesim's dtype of a published number format."""
    if name in MICROSCALED:
        return "fp8" if cluster.gpu.architecture == "blackwell" else "fp8_block"
    if name not in DTYPES:
        raise SkipError(f"moesim has no precision {name}")
    return DTYPES[name]


def _choices(row: Row) -> dict[str, Any]:
    """What the row states about its strategy."""
    tp, pp, ep = (whole(row, name) for name in ("tp", "pp", "ep"))
    shares_tp = "TP+EP" in str(row.get("framework"))
    drops = "token drop" in str(row["token_handling"])
    return {
        "tp": tp, "pp": pp, "ep": ep, "cp": whole(row, "cp", 1), "micro_batch": whole(row, "mbs", 1),
        "etp": whole(row, "etp", tp if shares_tp else 1), "zero": 3 if number(row, "fsdp", 0) else 1,
        **({"capacity_factor": 1.0} if drops else {}), **_schedule(row, pp),
    }  # fmt: skip


def _schedule(row: Row, pp: int) -> dict[str, Any]:
    virtual = whole(row, "vp", 1)
    if "DualPipe" in str(row.get("framework")):
        return {"schedule": "dualpipe"}
    if virtual > 1 and pp > 1:
        return {"schedule": "interleaved", "virtual": virtual}
    return {}


def _libraries(row: Row, run: Run, ep: int) -> tuple[str, ...]:
    """All-to-alls that the run may have used; with dropped tokens Megatron's plain one."""
    system = "Megatron-Bridge" if row.get("container") else str(row.get("framework"))
    known = next((names for start, names in LIBRARIES.items() if system.startswith(start)), ("linear",))
    offered = [name for name in known if name in ALGORITHMS]
    return tuple(offered) if ep > 1 and not run.drops else ("linear",)


def _strategies(row: Row, run: Run, choices: dict[str, Any]) -> tuple[Strategy, ...]:
    """One strategy for each all-to-all that can run, with the least recompute that fits in memory."""
    made, reasons = [], []
    for name in _libraries(row, run, choices["ep"]):
        try:
            one = choices | {"all_to_all": name, "layers": evenly(run.model, choices["pp"] * choices.get("virtual", 1))}
            kept = [load_strategy(one | {"recompute": r}, run.cluster.gpus) for r in RECOMPUTE]
        except MoesimError as error:
            raise SkipError(str(error)) from None
        reason = why_not(run.model, run.cluster, run.workload, kept[0])
        if reason is None:
            made.append(least_recompute(run, kept))
        else:
            reasons.append(reason)
    if not made:
        raise SkipError(f"moesim cannot express it: {reasons[0]}")
    return tuple(made)


def least_recompute(run: Run, kept: Sequence[Strategy]) -> Strategy:
    """The first that fits in memory; where none does, the one that needs least of it."""
    least = min(kept, key=lambda one: memory(run.model, run.workload, one).total)
    return next((one for one in kept if fits_in_memory(run, one)), least)


def fits_in_memory(run: Run, strategy: Strategy) -> bool:
    """Whether the average rank of a strategy fits."""
    return does_not_fit(run.cluster.gpu, memory(run.model, run.workload, strategy)) is None


def _speed(row: Row, model: Model, workload: Workload) -> tuple[float | None, tuple[str, ...]]:
    """Measured tokens/s per GPU; None for a run that was out of memory."""
    ours = training_flops(model, workload.queries) / workload.queries
    given = _flops_per_token(row)
    counted = ours if given is None else given
    more = counted > OTHER_FLOPS * ours
    remarks = (f"{counted / 1e9:.0f} GFLOP/token counted, {ours / 1e9:.0f} predicted",) if more else ()
    if row["tok_s_gpu"] is not None:
        return positive(row, "tok_s_gpu"), remarks
    if row["tflops_gpu"] is None:
        if row.get("mfu_pct") == "OOM":
            return None, ()
        raise SkipError(NO_SPEED)
    by_ours = () if given is not None else (f"tokens/s by moesim's {ours / 1e9:.0f} GFLOP/token",)
    return positive(row, "tflops_gpu") * TFLOPS / counted, (*remarks, *by_ours)


def case(row: Row) -> str:
    """A row in one line."""
    shape = " ".join(
        f"{name.upper()}{number(row, name):.0f}"
        for name in ("tp", "cp", "pp", "vp", "ep", "etp", "mbs", "gbs", "seq")
        if row.get(name) is not None
    )
    gpus = "?" if row["gpus"] is None else f"{whole(row, 'gpus')}"
    where = row.get("container") or row.get("framework") or ""
    return f"{row['model']}, {gpus} x {row['gpu']}, {row['precision']}, {shape}, {where}".rstrip(", ")
