"""Which exchanges of keys and values are tried where a layout has context parallelism, and which one is faster."""

from dataclasses import replace
from functools import lru_cache

from moesim.model import Layer
from moesim.step.layers import batched
from moesim.step.passes import Key, backward_pass, forward_pass, pair_pass, pass_key
from moesim.step.scenario import Scenario
from moesim.strategy import CP_EXCHANGES, Strategy


def exchanges(layout: Strategy) -> tuple[str, ...]:
    """All that there are, or where nothing is exchanged the layout's own."""
    return CP_EXCHANGES if layout.cp > 1 else (layout.cp_exchange,)


def fastest_exchange(scenario: Scenario, sized: Strategy) -> str | None:
    """The exchange that takes least through every kind of layer and pass, with nothing else overlapped, or None."""
    names = exchanges(sized)
    if len(names) == 1:
        return names[0]
    keys = [pass_key(scenario, replace(sized, cp_exchange=name)) for name in names]
    pairs = (False, True) if scenario.workload.trains else (False,)
    found = {
        _fastest(scenario, kind.layer, in_pair, *keys) for kind in scenario.model.layer_kinds() for in_pair in pairs
    }
    return names[found.pop()] if len(found) == 1 else None


@lru_cache(maxsize=4096)
def _fastest(scenario: Scenario, layer: Layer, in_pair: bool, *keys: Key) -> int:
    """The number of the key whose passes through a layer, averaged over its draws, are shortest."""
    seconds = []
    for key in keys:
        passes = [pair_pass(scenario, layer, key, "none") if in_pair else forward_pass(scenario, layer, key)]
        if scenario.workload.trains and not in_pair:
            passes.append(backward_pass(scenario, layer, key, "none"))
        seconds.append(sum(float(batched(one).mean()) for one in passes))
    return seconds.index(min(seconds))
