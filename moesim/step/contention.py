"""Compute and communication that run at the same time slow each other down.

    compute, arithmetic-bound   x S / (S - s)     s of S SMs hold communication kernels
    compute, memory-bound       x MEMORY          the copies share the memory's bandwidth
    communication               x MOVING

s, and where it comes from: ``sms_held``. The first two come from the profile's ``interference`` table where this
GPU was calibrated, else from DeepSeek's published training trace (H800, EP64, 20 SMs; *estimated*).

A pass is played once without contention. In its T seconds compute is busy for W seconds and communication
for M, so for at least O = W + M - T seconds both are (no more than W or M). What overlaps is slower:

    compute ops x (1 + O/W (slower - 1))      communication ops x (1 + O/M (slower - 1))

and the pass is played again. Nothing overlaps in a serial pass: it stays as it was. Where two micro-batches
keep both streams busy throughout, compute kernels are launched on S - s SMs whether something overlaps or not
(all GEMM grids of DeepSeek's trace are 112; SGLang's two-batch overlap sets DeepGEMM's SMs): O/W is 1 for them.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from moesim.alltoall.libraries import sms
from moesim.cluster import Cluster
from moesim.cost import FloatArray
from moesim.player import play_batched
from moesim.profile import Profile
from moesim.program import RANK_STREAMS, Program
from moesim.step.scenario import Scenario


class Slower(NamedTuple):
    """Factors of what overlaps; 1 where nothing is lost."""

    arithmetic: float = 1.0
    memory: float = 1.0
    moving: float = 1.0
    always: float = 0.0  # least share of compute that has fewer SMs: 1 where its kernels are launched on S - s of them


NONE: Final = Slower()
# The same kernels with and without a copy beside them in DeepSeek's trace: transpose 83 -> 94 us, elementwise
# 73 -> 87, top-k 68 -> 78, copy 92 -> 106, rotary 109 -> 126, cast 40 -> 46: 1.13 to 1.19, median 1.15.
MEMORY: Final = 1.15
# Dispatch 3.32, 3.58, 4.15, 4.60 ms and combine 6.00, 6.07, 6.54, 6.55 ms in that trace, over 2.4 and 4.7 ms alone
# (46 and 45 GB/s of that release of DeepEP): 1.28 to 1.92, median 1.39. Part of it is waiting for late peers.
MOVING: Final = 1.39
# SMs that hold communication kernels: those of a library's own line (``alltoall.libraries``: DeepEP's normal
# kernels 20, as in the grids of DeepSeek's trace), none in low latency while bytes move (DeepEP README), of NCCL 16 of
# its 16 to 24 channels on Hopper, and one SM that directs the others in a kernel of tiles (``experts.in_tiles``).
LIBRARIES: Final = ("deepep", "hybrid_ep")
NO_SMS: Final = ("deepep_ll", "tiles")
NCCL_SMS: Final = 16
MEMORY_BOUND: Final = ("norm", "route", "merge", "recompute")  # first words of ops that read more than they compute


@lru_cache(maxsize=1024)
def slower(scenario: Scenario, algorithm: str, throughout: bool = False) -> Slower:
    """The factors beside the all-to-all of a pass, or NCCL's collectives where there is none; ``throughout``: of
    two micro-batches that overlap all the time."""
    found = beside(scenario.cluster, scenario.profile, algorithm)
    if scenario.workload.kind == "decode":  # a few tokens an expert: matrices too are read, not multiplied
        found = found._replace(arithmetic=found.memory)
    return found._replace(always=float(throughout and algorithm in LIBRARIES))


def beside(cluster: Cluster, profile: Profile, algorithm: str) -> Slower:
    """The factors of large matrices, of copies and of an all-to-all beside one another."""
    held, all_sms = sms_held(cluster, algorithm), cluster.gpu.sms
    arithmetic, memory = measured(profile, held) or (all_sms / (all_sms - held), MEMORY)
    return Slower(arithmetic, memory, MOVING)


def sms_held(cluster: Cluster, algorithm: str) -> int:
    """SMs that the kernels of an all-to-all hold; of NCCL's collectives where there is none."""
    if algorithm in NO_SMS:
        return 0
    return min(sms(algorithm, cluster) if algorithm in LIBRARIES else NCCL_SMS, cluster.gpu.sms // 2)


def measured(profile: Profile, held: int) -> tuple[float, float] | None:
    """Factors of a large GEMM and of a copy beside ``held`` SMs, between the measured numbers of them."""
    tables = profile.tables["interference"]
    if not tables:
        return None
    found = []
    for kernel in ("gemm_large", "memory"):
        rows = tables[0].table.select(kernel=kernel)
        if not rows.rows:
            return None
        order = np.argsort(rows.numbers["sms_held"])
        factors = rows.numbers["beside_us"] / rows.numbers["alone_us"]
        found.append(max(1.0, float(np.interp(held, rows.numbers["sms_held"][order], factors[order]))))
    return found[0], found[1]


def contended(
    program: Program, durations: Mapping[str, FloatArray], factors: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """``durations[..., rank]`` of ops that slow each other down; ``factors`` are the fields of ``Slower`` [...].

    The slowest rank decides what overlaps: the other ranks wait for it.
    """
    slowest = {key: durations[key].max(axis=-1, keepdims=True) for key in program.keys}
    end = play_batched(program, slowest)[..., None]
    work = {True: np.zeros(1), False: np.zeros(1)}
    for op in program:
        computes = op.stream in RANK_STREAMS
        work[computes] = work[computes] + slowest[op.key]
    both = np.clip(work[True] + work[False] - end, 0.0, np.minimum(work[True], work[False]))
    share = {computes: both / np.where(busy > 0, busy, 1.0) for computes, busy in work.items()}
    of_kind = {"moving": share[False], "memory": share[True], "arithmetic": np.maximum(share[True], factors["always"])}
    kinds = {op.key: _kind(op.key, op.stream) for op in program}
    return {key: durations[key] * (1.0 + of_kind[kind] * (factors[kind] - 1.0)) for key, kind in kinds.items()}


def _kind(key: str, stream: str) -> str:
    if stream not in RANK_STREAMS:
        return "moving"
    return "memory" if key.split()[0] in MEMORY_BOUND else "arithmetic"
