"""How many of a rank's tokens reach each rank, or each node: a token is sent there once, however many experts it has.

k experts are drawn one after another without putting back, expert e with popularity p_e, q_d the sum of a group's:

    P(group d is reached) = 1 - prod_i (1 - q_d / (1 - M_i)),    i = 0 .. k-1
    M_0 = 0,  M_i+1 = M_i + sum_e p_e pi_e,i,  pi_e,i = p_e live_e / (1 - M_i),  live_e falls by pi_e,i

Exact for equal popularities, where it is D [1 - C(E - E/D, k) / C(E, k)] over all D groups; within 0.007 of a
group for log-normal popularities up to sigma 1.5 and 128 experts. The Poisson form 1 - exp(-k q) is up to 22 % low.

Group-limited routing (DeepSeek: best 4 of 8 groups of experts) reaches fewer: the equal-popularity ratio of
drawing from the chosen groups' experts alone, over drawing from all, scales every P.
"""

from math import comb

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
    by_rank = _reached_parts(traffic, group.size) * (traffic.tokens * group.nodes)
    square = by_rank.reshape(*by_rank.shape[:-1], group.nodes, group.per_node)
    out = (square.sum(axis=-1, keepdims=True) - square).reshape(by_rank.shape)
    found = longest(cluster, group, inside_loads(cluster, group, out, (group.per_node - 1) * by_rank))
    if group.nodes == 1:
        return found
    by_node = _reached_parts(traffic, group.nodes)
    nodes = by_node.sum(axis=-1, keepdims=True)
    along = Product(sent=np.broadcast_to(traffic.tokens * nodes, by_node.shape), share=by_node / nodes)
    rails = waits(cluster, Group(size=group.nodes, per_node=1), along, "direct")
    return found | {kind: each for kind, each in rails.items() if kind != "up"}


def _reached_parts(traffic: Traffic, parts: int) -> FloatArray:
    assert traffic.share is not None
    limit = limited(traffic.share.shape[-1], parts, traffic.top_k, *traffic.groups)
    return reached(traffic.share, parts, traffic.top_k) * limit


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


def limited(experts: int, parts: int, top_k: int, groups: int, top_groups: int) -> float:
    """How many parts group-limited routing reaches over an unlimited one; 1 where a part holds several groups."""
    if top_groups == groups or parts < groups:
        return 1.0
    open_parts, open_experts = parts * top_groups / groups, experts * top_groups // groups
    return (
        open_parts * _reach(open_experts, experts // parts, top_k) / (parts * _reach(experts, experts // parts, top_k))
    )


def _reach(experts: int, of_part: int, top_k: int) -> float:
    return 1.0 - comb(experts - of_part, top_k) / comb(experts, top_k)
