"""``moesim cost all-to-all``: dispatch or combine of one layer, mean over seeded draws of the routing."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from moesim.alltoall import ALGORITHMS, Traffic, all_to_all, copies_by_rank, unsupported
from moesim.cluster import Cluster, Group
from moesim.cost import Cost
from moesim.costs.answer import Answer, mean
from moesim.costs.hardware import (
    cluster_option,
    find_group,
    nodes_option,
    placed,
    ranks_option,
    ranks_per_node_option,
)
from moesim.costs.inputs import COUNT, SEED, TEXT, count, one_of, option, settle, stated
from moesim.errors import MoesimError
from moesim.network import Dense
from moesim.placement import PLACEMENTS
from moesim.routing import draw_tokens, parse_routing, popularity

DRAWS: Final = 8
LARGE_DRAWS: Final = 2  # where one draw holds more than LARGE counts
LARGE: Final = 1 << 20
MOST_COUNTS: Final = 1 << 24  # ranks x experts of one draw: 4,096 x 4,096
# bytes of one value of a row; fp8_block: one fp32 scale for 128 values (DeepSeek-V3, arXiv:2412.19437, 3.3.2)
ROW_BYTES: Final = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0 + 4.0 / 128}


@dataclass(frozen=True, kw_only=True, slots=True)
class AllToAll:
    """Every rank brings tokens, and owns equally many experts."""

    cluster: str = cluster_option()
    nodes: int | None = nodes_option()
    ranks: int | None = ranks_option()
    ranks_per_node: int | None = ranks_per_node_option()
    tokens_per_rank: int | None = option(COUNT, "Tokens that each rank brings; or --tokens-global.", None)
    tokens_global: int | None = option(COUNT, "Tokens of all ranks together.", None)
    hidden: int = option(COUNT, "Hidden size: values of a row.")
    top_k: int = option(COUNT, "Experts that a token picks.")
    experts: int = option(count(16_384), "Experts of the layer, on all ranks together.")
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


def price_all_to_all(asked: AllToAll) -> Answer:
    """The exchange's seconds, by the algorithm asked for or the fastest."""
    cluster, group = find_group(asked)
    tokens = _tokens_per_rank(asked, group.size)
    draw = _Draw(
        asked.routing, _stamp(asked.routing), asked.placement, asked.seed,
        asked.experts, asked.top_k, group.size, tokens,
    )  # fmt: skip
    drawn = _traffic(draw)
    traffic = [replace(each, token_bytes=asked.hidden * ROW_BYTES[asked.dtype]) for each in drawn]
    names = [asked.algorithm] if asked.algorithm != "best" else _possible(cluster, group)
    priced = {name: _mean(cluster, group, traffic, name, asked.direction) for name in names}
    chosen = min(priced, key=lambda name: float(priced[name].seconds))
    more: dict[str, Any] = {"algorithm": chosen}
    if asked.algorithm == "best":
        more["compared"] = {name: float(cost.seconds) for name, cost in priced.items()}
    understood = {"tokens_per_rank": tokens, "tokens_global": tokens * group.size, "draws": len(traffic)}
    return Answer(priced[chosen], stated(asked) | placed(cluster, group) | understood, more)


def _tokens_per_rank(asked: AllToAll, ranks: int) -> int:
    if asked.tokens_per_rank is not None:
        return asked.tokens_per_rank
    assert asked.tokens_global is not None
    if asked.tokens_global % ranks:
        raise MoesimError(
            f"tokens_global {asked.tokens_global} does not divide over {ranks} ranks: give a multiple of it"
        )
    return asked.tokens_global // ranks


def _possible(cluster: Cluster, group: Group) -> list[str]:
    """Algorithms that can run on this group; linear always can."""
    return [name for name in ALGORITHMS if unsupported(cluster, group, name) is None]


def _mean(
    cluster: Cluster, group: Group, traffic: tuple[Traffic, ...] | list[Traffic], name: str,
    direction: Literal["dispatch", "combine"],
) -> Cost:  # fmt: skip
    costs = [all_to_all(cluster, group, each, name, direction) for each in traffic]
    return mean(
        replace(
            costs[0],
            seconds=np.stack([cost.seconds for cost in costs]),
            low=np.stack([cost.low for cost in costs]),
            high=np.stack([cost.high for cost in costs]),
            bound_s=np.stack([cost.bound_s for cost in costs]),
        )
    )


class _Draw(NamedTuple):
    """What decides the copies: equal for every size of row, algorithm and direction."""

    routing: str
    stamp: tuple[int, int] | None  # of the routing's file
    placement: str
    seed: int
    experts: int
    top_k: int
    ranks: int
    tokens: int  # of a rank


@lru_cache(maxsize=2)
def _traffic(draw: _Draw) -> tuple[Traffic, ...]:
    """One traffic of one-byte rows for each draw; a draw is a layer of its own."""
    experts, ranks = draw.experts, draw.ranks
    counts = ranks * experts
    if counts > MOST_COUNTS:
        raise MoesimError(f"{ranks} ranks x {experts} experts: give at most {MOST_COUNTS:,} of the product")
    draws = DRAWS if counts <= LARGE else LARGE_DRAWS
    rng = np.random.default_rng(draw.seed)
    routing = parse_routing(draw.routing)
    layers = draws if routing.load is None else max(draws, len(routing.load))
    shares = popularity(routing, layers, experts, rng)[np.linspace(0, layers - 1, draws).astype(int)]
    owner = PLACEMENTS[draw.placement](shares, ranks)  # [draw, expert]
    found = []
    for share, owned in zip(shares, owner, strict=True):
        tokens = draw_tokens(share[None], draw.top_k, draw.tokens, ranks, rng)[0]  # [source, expert]
        rows = tokens.sum(axis=0)[np.argsort(owned, kind="stable")]
        found.append(
            Traffic(
                pairs=Dense(copies=copies_by_rank(tokens, owned, ranks)), tokens=draw.tokens, token_bytes=1.0,
                share=rows / rows.sum(), top_k=draw.top_k,
            )
        )  # fmt: skip
    return tuple(found)


def _stamp(routing: str) -> tuple[int, int] | None:
    """When a routing's file was written: a new one is read anew."""
    try:
        found = Path(routing.partition("#")[0]).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size
