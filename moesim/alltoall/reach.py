"""How many of a rank's tokens reach each rank, or each node: a token is sent there once, however many experts it has.

k experts are drawn one after another without putting back, expert e with popularity p_e, q_d the sum of a group's:

    P(group d is reached) = 1 - prod_i (1 - q_d / (1 - M_i)),    i = 0 .. k-1
    M_0 = 0,  M_i+1 = M_i + sum_e p_e pi_e,i,  pi_e,i = p_e live_e / (1 - M_i),  live_e falls by pi_e,i

Exact for equal popularities, where it is D [1 - C(E - E/D, k) / C(E, k)] over all D groups; within 0.007 of a
group for log-normal popularities up to sigma 1.5 and 128 experts. The Poisson form 1 - exp(-k q) is up to 22 % low.

Group-limited routing (DeepSeek: best T of G groups of experts) and a capacity that drops copies reach fewer. With n of
the E experts of the T chosen groups in part d, and a share z of the part's copies dropped, equal popularities give

    P'(part d is reached) = 1 - mean over n of  sum_j  C(n, j) C(E - n, k - j) / C(E, k)  z^j

and P' / P at equal popularities scales every P. Groups count as chosen by chance, and dropping as blind to a token's
other experts. DeepSeek-V3's gate takes the groups with the best two experts: 3.96 nodes instead of 3.63 at T = 4 of
G = 8 on 8 nodes, 3.12 instead of 2.93 on 4 (simulated, scores alike).
"""

from collections import Counter
from functools import lru_cache
from math import comb, gcd

import numpy as np

from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.cost import FloatArray
from moesim.network import Product, inside_loads, longest, waits


def distinct_copies(cluster: Cluster, group: Group, traffic: Traffic) -> dict[str, FloatArray]:
    """Copies on the busiest link by kind, when a token goes once to each node and from its rail to each rank there.

    T tokens a rank, r_n and r_d the shares of them that reach node n and rank d, N nodes of G ranks:

        NIC      out  T sum of r_n over the other nodes        in   T (N - 1) r_n
        NVLink   out  T N sum of r_d over the node's others    in   T N (G - 1) r_d
    """
    by_rank = reached_parts(traffic, group.size) * (traffic.tokens * group.nodes)
    square = by_rank.reshape(*by_rank.shape[:-1], group.nodes, group.per_node)
    out = (square.sum(axis=-1, keepdims=True) - square).reshape(by_rank.shape)
    found = longest(cluster, group, inside_loads(cluster, group, out, (group.per_node - 1) * by_rank))
    if group.nodes == 1:
        return found
    by_node = reached_parts(traffic, group.nodes)
    nodes = by_node.sum(axis=-1, keepdims=True)
    along = Product(sent=np.broadcast_to(traffic.tokens * nodes, by_node.shape), share=by_node / nodes)
    rails = waits(cluster, Group(size=group.nodes, per_node=1), along, "direct")
    return found | {kind: each for kind, each in rails.items() if kind != "up"}


def reached_parts(traffic: Traffic, parts: int) -> FloatArray:
    """``[..., part]`` share of a rank's tokens that go there, by popularity, groups and capacity."""
    assert traffic.share is not None
    found = reached(traffic.share, parts, traffic.top_k)
    if traffic.kept is None and traffic.groups[0] == traffic.groups[1]:
        return found
    experts = traffic.share.shape[-1]
    free = hits(experts, parts, traffic.top_k, 1, 1)
    limited = hits(experts, parts, traffic.top_k, *traffic.groups)
    spared = (limited * _dropped(traffic, parts)[..., None] ** np.arange(traffic.top_k + 1)).sum(axis=-1)
    return np.asarray(np.minimum(found * (1.0 - spared) / (1.0 - free[:, 0]), 1.0))


def _dropped(traffic: Traffic, parts: int) -> FloatArray:
    """``[..., part]`` share of the copies for its experts that nobody sends."""
    if traffic.kept is None:
        return np.zeros(parts)
    assert traffic.share is not None
    share, taken = (
        each.reshape(*each.shape[:-1], parts, -1).sum(axis=-1) for each in (traffic.share, traffic.share * traffic.kept)
    )
    return np.asarray(np.clip(1.0 - taken / np.maximum(share, 1e-300), 0.0, 1.0))


def reached(share: FloatArray, parts: int, top_k: int) -> FloatArray:
    """``share[..., expert]`` (sums to one, experts in the order of their ranks) -> probability ``[..., part]``."""
    groups = share.reshape(*share.shape[:-1], parts, -1).sum(axis=-1)
    live, gone = np.ones_like(share), np.zeros(share.shape[:-1])
    missed = np.ones_like(groups)
    for _ in range(top_k):
        rest = np.maximum(1.0 - gone, 1e-12)[..., None]
        missed = missed * np.maximum(1.0 - groups / rest, 0.0)
        taken = share * live / rest
        live = np.maximum(live - taken, 0.0)
        gone = gone + (share * taken).sum(axis=-1)
    return np.asarray(1.0 - missed)


@lru_cache(maxsize=256)
def hits(experts: int, parts: int, top_k: int, groups: int, top_groups: int) -> FloatArray:
    """``[part, j]`` chance that j of a token's experts are there; equal popularities, groups one after another."""
    period = parts // gcd(parts, groups)  # then borders of parts and of groups meet again
    of_part, of_group = experts // parts, experts // groups
    rows = []
    for part in range(period):
        first, last = part * of_part, (part + 1) * of_part  # its experts
        met = range(first // of_group, -(-last // of_group))
        here = tuple(min(last, (each + 1) * of_group) - max(first, each * of_group) for each in met)
        rows.append(_hits_of(here, of_group * top_groups, top_k, groups, top_groups))
    return np.tile(np.array(rows), (parts // period, 1))


@lru_cache(maxsize=1024)
def _hits_of(here: tuple[int, ...], chosen: int, top_k: int, groups: int, top_groups: int) -> tuple[float, ...]:
    """``[j]`` for a part with ``here`` experts of each group that it meets; ``chosen`` experts are open to a token."""
    ways = Counter({(0, 0): 1})  # of (chosen groups met, their experts here)
    for count in here:
        ways += Counter({(met + 1, n + count): number for (met, n), number in ways.items() if met < top_groups})
    odds: Counter[int] = Counter()
    for (met, n), number in ways.items():
        odds[n] += number * comb(groups - len(here), top_groups - met)
    sets = comb(groups, top_groups) * comb(chosen, top_k)
    return tuple(
        sum(number * comb(n, j) * comb(chosen - n, top_k - j) for n, number in odds.items()) / sets
        for j in range(top_k + 1)
    )
