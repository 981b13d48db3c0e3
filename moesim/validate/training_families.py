"""The best configuration of a family of layouts: for rows that name a family and no degrees.

    FSDP         ZeRO 3 over all GPUs                      FSDP+EP  the same, experts spread over ep
    TP+EP+DP     tp and ep, no pipeline                    MCore    tp, ep inside dp, pp; experts share tp
    Folding      experts' degrees apart from attention's (arXiv:2504.14960 section 3)

The planner's search restricted to the family's layouts: every layout with the least recompute that fits, the
family's ZeRO stage, and NCCL's all-to-all without overlap, as Megatron-Core had when these families were
compared. What no row of a table gives follows the rule of all rows: one sequence a micro-batch. (The FSDP+EP rows
bear it out: 231-252 TFLOP/s whether a GPU has one sequence a step or eight.) All candidates are bounded
(``planner.screen``); those near the lowest bound are list-scheduled, and the fastest is the answer. Megatron
pipelines divide the layers evenly.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from moesim.errors import MoesimError
from moesim.planner.screen import bounds, list_schedule, screen
from moesim.planner.space import Options, Variant, layouts
from moesim.step.passes import backward_pass, forward_pass, pass_key
from moesim.step.scenario import Scenario
from moesim.strategy import RECOMPUTE, Strategy, why_not
from moesim.validate.training_rows import Run, evenly, fits_in_memory, least_recompute

PLAIN: Final = Variant("linear", 1, "none", "contiguous")
WITHIN: Final = 1.3  # of the lowest bound
MOST: Final = 32  # candidates that are list-scheduled


class Family(NamedTuple):
    """Which layouts belong, and the ZeRO stage of all of them."""

    holds: Callable[[Strategy], bool]
    zero: int


def _fsdp(one: Strategy) -> bool:
    return one.tp == one.cp == one.pp == one.etp == 1


MEMBERS: Final = {
    "FSDP": Family(lambda one: _fsdp(one) and one.ep == 1, 3),
    "FSDP+EP": Family(lambda one: _fsdp(one) and one.ep > 1, 3),
    "TP+EP+DP": Family(lambda one: one.cp == one.pp == 1 < min(one.tp, one.ep) and one.etp == one.tp, 1),
    "MCore (TP+EP+PP+DP)": Family(lambda one: one.cp == 1 and one.etp == one.tp and one.ep <= one.dp, 1),
    "MCore + MoE Parallel Folding": Family(lambda one: one.cp == 1, 1),
}


def best_of_family(scenario: Scenario, run: Run) -> Strategy | None:
    """The fastest member that fits in memory; None where no member does."""
    frames = list(_frames(scenario, run))
    if not frames:
        return None
    found = screen(scenario, frames, [Options((PLAIN,), 0)] * len(frames))
    bound_s = bounds(found)
    order = np.argsort(bound_s, kind="stable")
    near = int((bound_s <= WITHIN * bound_s[order[0]]).sum())
    promising = order[: min(near, MOST)]
    return found.strategy(int(promising[np.argmin(list_schedule(found, promising))]))


def _frames(scenario: Scenario, run: Run) -> Iterator[Strategy]:
    """Members that can run."""
    family, dropping = MEMBERS[run.family], 1.0 if run.drops else None
    for layout in layouts(scenario):
        layers = evenly(run.model, layout.pp)
        if not family.holds(layout) or layers is None:
            continue
        sized = replace(layout, zero=family.zero, capacity_factor=dropping, layers=layers)
        if why_not(run.model, run.cluster, run.workload, sized) is not None:
            continue
        best = least_recompute(run, [replace(sized, recompute=what) for what in RECOMPUTE])
        if fits_in_memory(run, best) and _priced(scenario, best):
            yield best


def _priced(scenario: Scenario, one: Strategy) -> bool:
    """Whether the profile reaches its kernels."""
    key = pass_key(scenario, one)
    try:
        for kind in scenario.model.layer_kinds():
            forward_pass(scenario, kind.layer, key)
            backward_pass(scenario, kind.layer, key, one.recompute)
    except MoesimError:
        return False
    return True
