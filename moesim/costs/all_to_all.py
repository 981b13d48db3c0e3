"""``moesim cost all-to-all``: dispatch or combine of one layer, mean over draws of the routing, or expected."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from moesim.alltoall import ALGORITHMS, FUSED, REAL_ROWS, Traffic, all_to_all, busiest_bytes, slower, unsupported
from moesim.cluster import Cluster, Group
from moesim.cost import Cost
from moesim.costs.answer import Answer, mean
from moesim.costs.exchange_traffic import DRAWS, Exchange, Layer, exchange_traffic, stamp
from moesim.costs.hardware import (
    cluster_option,
    find_group,
    nodes_option,
    placed,
    ranks_option,
    ranks_per_node_option,
)
from moesim.costs.inputs import COUNT, SEED, TEXT, Kind, count, one_of, option, settle, stated
from moesim.errors import MoesimError
from moesim.placement import PLACEMENTS

# bytes of one value of a row; fp8_block: one fp32 scale for 128 values (DeepSeek-V3, arXiv:2412.19437, 3.3.2)
ROW_BYTES: Final = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0 + 4.0 / 128}
FEEL: Final = 1.001  # contention below it is none
CPU_WAITS: Final = {"deepep": "the CPU waits for the counts of each exchange: no CUDA graph, so not for decode"}


def _above_zero(value: Any) -> float:
    number = float(value)
    if not 0.0 < number <= 1000.0:
        raise ValueError(value)
    return number


FACTOR: Final = Kind("C", "a number above 0, at most 1,000", _above_zero)


@dataclass(frozen=True, kw_only=True, slots=True)
class AllToAll:
    """Every rank brings tokens, and owns equally many experts."""

    cluster: str = cluster_option()
    nodes: int | None = nodes_option()
    ranks: int | None = ranks_option()
    ranks_per_node: int | None = ranks_per_node_option()
    tokens_per_rank: int | None = option(count(10**9), "Tokens that each rank brings; or --tokens-global.", None)
    tokens_global: int | None = option(COUNT, "Tokens of all ranks together.", None)
    hidden: int = option(COUNT, "Hidden size: values of a row.")
    top_k: int = option(COUNT, "Experts that a token picks.")
    experts: int = option(count(1 << 20), "Experts of the layer, on all ranks together.")
    expert_groups: int = option(count(1024), "Groups of experts; a token picks from its best --top-groups only.", 1)
    top_groups: int | None = option(COUNT, "Groups that a token may use.  [default: all]", None)
    redundant_experts: int = option(count(1 << 20, least=0), "Further replicas of popular experts, as in EPLB.", 0)
    capacity_factor: float | None = option(
        FACTOR, "Slots of an expert over an even share of tokens: the rest is dropped, empty slots are sent as padding "
        "by algorithms that do.  [default: dropless]", None,
    )  # fmt: skip
    algorithm: str = option(one_of((*ALGORITHMS, "best")), "best takes the fastest and names it.", "best")
    routing: str = option(TEXT, "uniform, zipf:S, lognormal:SIGMA, a measured preset, or a FILE.", "uniform")
    dtype: str = option(one_of(ROW_BYTES), "Of a row: 2, 1 or 1.03125 bytes a value.", "bf16")
    direction: Literal["dispatch", "combine"] = option(
        one_of(("dispatch", "combine")), "To the experts, or back.", "dispatch"
    )
    placement: str = option(one_of(PLACEMENTS), "Which rank owns which expert.", "contiguous")
    seed: int = option(SEED, f"Of the routing, drawn {DRAWS} times.", 0)

    def __post_init__(self) -> None:
        settle(self)
        if (self.tokens_per_rank is None) == (self.tokens_global is None):
            raise MoesimError("give exactly one of tokens_per_rank and tokens_global")
        if self.top_k > self.experts:
            raise MoesimError(f"top_k {self.top_k} is above experts {self.experts}: give at most that many")
        _check_groups(self.experts, self.top_k, self.expert_groups, self.top_groups or self.expert_groups)


def _check_groups(experts: int, top_k: int, groups: int, top_groups: int) -> None:
    if experts % groups:
        raise MoesimError(f"experts {experts} do not divide into expert_groups {groups}: give a divisor of {experts}")
    if top_groups > groups:
        raise MoesimError(f"top_groups {top_groups} is above expert_groups {groups}: give at most that many")
    if top_k > experts // groups * top_groups:
        raise MoesimError(
            f"top_k {top_k} is above the {experts // groups * top_groups} experts of {top_groups} groups: "
            "give more top_groups"
        )


class Priced(NamedTuple):
    """An exchange and what each algorithm takes for it."""

    cluster: Cluster
    group: Group
    exchange: Exchange
    token_bytes: float
    costs: dict[str, Cost]
    cannot_run: dict[str, str]  # why
    chosen: str

    def traffic(self, name: str) -> Traffic:
        """What an algorithm sends."""
        return _sent(self.exchange, name, self.token_bytes)


def price_all_to_all(asked: AllToAll) -> Answer:
    """The exchange's seconds, by the algorithm asked for or the fastest."""
    found = priced(asked)
    chosen, traffic = found.chosen, found.traffic(found.chosen)
    more: dict[str, Any] = {"algorithm": chosen}
    if asked.algorithm == "best":
        found_s = {name: float(cost.seconds) for name, cost in found.costs.items()}
        more["compared"] = {name: each for name, each in found_s.items() if name not in FUSED}
        more["as_fast"] = _as_fast(found)
        more["fused"] = {name: each for name, each in found_s.items() if name in FUSED}
        more["cannot_run"] = found.cannot_run
    if chosen in CPU_WAITS:
        more["note"] = CPU_WAITS[chosen]
    loads = busiest_bytes(found.cluster, found.group, traffic, chosen, asked.direction)
    more["busiest"] = {kind: float(size.mean()) for kind, size in loads.items() if size.mean() >= 1}
    contention = float(slower(found.cluster, found.group, traffic, chosen, asked.direction).mean())
    if contention > FEEL:
        more["contention"] = contention
    more["traffic"] = "drawn" if found.exchange.drawn else "expected"
    if asked.capacity_factor is not None:
        more |= {"dropped_share": found.exchange.dropped_share, "padding_share": found.exchange.padding_share}
    tokens = _tokens_per_rank(asked, found.group.size)
    understood = {
        "tokens_per_rank": tokens, "tokens_global": tokens * found.group.size,
        "top_groups": asked.top_groups or asked.expert_groups, "draws": traffic.pairs.shape[0],
    }  # fmt: skip
    return Answer(found.costs[chosen], stated(asked) | placed(found.cluster, found.group) | understood, more)


def _as_fast(found: Priced) -> list[str]:
    """The others that the chosen one's own uncertainty does not tell from it."""
    high = float(found.costs[found.chosen].high)
    others = (name for name in found.costs if name != found.chosen and name not in FUSED)
    return [name for name in others if float(found.costs[name].seconds) <= high]


def priced(asked: AllToAll) -> Priced:
    """Every algorithm asked for on the traffic of the layer; the fastest that a layer made of kernels can use."""
    cluster, group = find_group(asked)
    layer = Layer(
        routing=asked.routing, stamp=stamp(asked.routing), placement=asked.placement, seed=asked.seed,
        experts=asked.experts, redundant=asked.redundant_experts,
        groups=(asked.expert_groups, asked.top_groups or asked.expert_groups), top_k=asked.top_k,
        capacity_factor=asked.capacity_factor, ranks=group.size, tokens=_tokens_per_rank(asked, group.size),
    )  # fmt: skip
    exchange, token_bytes = exchange_traffic(layer), asked.hidden * ROW_BYTES[asked.dtype]

    def price(name: str) -> Cost:
        return mean(all_to_all(cluster, group, _sent(exchange, name, token_bytes), name, asked.direction))

    if asked.algorithm != "best":
        return Priced(
            cluster, group, exchange, token_bytes, {asked.algorithm: price(asked.algorithm)}, {}, asked.algorithm
        )
    costs, cannot_run = _each(cluster, group, price)
    usable = [name for name in costs if name not in FUSED]
    if not usable:
        raise MoesimError(f"no all-to-all runs on {cluster.name}: {'; '.join(dict.fromkeys(cannot_run.values()))}")
    chosen = min(usable, key=lambda name: float(costs[name].seconds))
    return Priced(cluster, group, exchange, token_bytes, costs, cannot_run, chosen)


def _each(cluster: Cluster, group: Group, price: Callable[[str], Cost]) -> tuple[dict[str, Cost], dict[str, str]]:
    """What every algorithm costs, or why it cannot run."""
    costs, cannot_run = {}, {}
    for name in ALGORITHMS:
        why = unsupported(cluster, group, name)
        try:
            if why is None:
                costs[name] = price(name)
        except MoesimError as error:  # a mesh or a graph without drawn pairs
            why = str(error)
        if why is not None:
            cannot_run[name] = why
    return costs, cannot_run


def _sent(exchange: Exchange, name: str, token_bytes: float) -> Traffic:
    return replace(exchange.real if name in REAL_ROWS else exchange.padded, token_bytes=token_bytes)


def _tokens_per_rank(asked: AllToAll, ranks: int) -> int:
    if asked.tokens_per_rank is not None:
        return asked.tokens_per_rank
    assert asked.tokens_global is not None
    if asked.tokens_global % ranks:
        raise MoesimError(
            f"tokens_global {asked.tokens_global} does not divide over {ranks} ranks: give a multiple of it"
        )
    return asked.tokens_global // ranks
