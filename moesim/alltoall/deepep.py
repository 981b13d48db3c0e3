"""DeepEP: a token goes once to each node that has one of its experts, on its own rail, and by NVLink from there.

    seconds = start + joined(SM load, NVLink load / B_v, NIC load / B_n),    joined(x) = (sum of x^8)^(1/8)

Near-equal loads wait for one another: joined is up to 9 % above the largest of two. T tokens a rank of b bytes, s SMs:

    normal        start    a + a_n between nodes + b (first chunk + pipe T / (T + 512)): the pipe fills with chunks
                  SM load  copies of the busiest rank, its own among them, x (copy time + b / SM bandwidth) / s
    low latency   start    a + experts x e + between nodes (a_n + f (N-1)/N): every expert's tokens are counted
                  SM load  (T x token time + T k b / SM bandwidth) / s; one message for each token and expert;
                           of k those count that a capacity keeps
                  s        one SM for ceil(experts / SMs) experts: eight experts keep eight SMs busy

The loads of links are reach's (normal: a token crosses once) and the network's (low latency: once for each expert).
Constants: libraries, from the table of the kernel's release. No link moves more than its data sheet says. The CPU waits
for the counts of an exchange by ``normal``, which no CUDA graph can hold (DeepEP README): too slow for decode there.
"""

from typing import Final, NamedTuple

import numpy as np

from moesim.alltoall.libraries import LIBRARIES, Kernel, band, find, judged
from moesim.alltoall.ports import link_copies
from moesim.alltoall.reach import distinct_copies, reached_parts
from moesim.alltoall.traffic import Traffic, remembered
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import BASIS, ESTIMATED, Cost, FloatArray, cost
from moesim.errors import MoesimError

SHARPNESS: Final = 8.0  # of the joined maximum
PIPE_TOKENS: Final = 512.0  # half of the pipe is full


class Work(NamedTuple):
    """One exchange as its kernel sees it; arrays of one shape ``[...]``."""

    tokens: FloatArray  # of a rank
    token_bytes: FloatArray
    handled: FloatArray  # copies that the SMs of the busiest rank touch
    nodes: FloatArray
    experts: FloatArray
    sms: FloatArray  # that move them
    up_s: FloatArray  # busiest NVLink port, at what NCCL gets out of it
    nic_s: FloatArray  # busiest NIC, or leaf's way up


def normal(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Each token crosses a link once."""
    kernel, own = find(*LIBRARIES["deepep"], direction, cluster)
    return priced(cluster, group, traffic, kernel, own)


def priced(cluster: Cluster, group: Group, traffic: Traffic, kernel: Kernel, own: bool, busy_sms: int = 0) -> Cost:
    """Cost by one line of the table, on ``busy_sms`` SMs or as many as the line says."""
    work, copies = WORK[kernel.mechanism](cluster, group, traffic, busy_sms or kernel.sms)
    start_s, parts_s = START[kernel.mechanism](kernel, work), moving(kernel, work)
    bound_s = _peak_s(cluster, copies, traffic.token_bytes)
    moving_s = np.maximum(joined(parts_s), bound_s)
    slowest = max(parts_s, key=lambda name: float(np.mean(parts_s[name])))
    known = own and judged(kernel, cluster, group, traffic.tokens)
    return cost(
        start_s + moving_s,
        band(kernel, known),
        bound_s,
        _link(cluster, slowest, copies) if np.mean(moving_s) > np.mean(start_s) else "launch",
        BASIS[kernel.basis] if known else ESTIMATED,
        f"{kernel.library} {kernel.release} {kernel.mechanism} {kernel.direction}, model with constants of "
        f"{kernel.gpus[0]}: {kernel.source}; {cluster.scale_up.source}",
    )  # fmt: skip


def seconds(kernel: Kernel, work: Work) -> FloatArray:
    """The whole equation."""
    return START[kernel.mechanism](kernel, work) + joined(moving(kernel, work))


def moving(kernel: Kernel, work: Work) -> dict[str, FloatArray]:
    """Seconds that SMs, NVLink and NIC each need."""
    sm_bytes_per_s = np.where(work.nodes > 1, kernel.across_sm_bytes_per_s, kernel.sm_bytes_per_s)
    copies_s = work.handled * (kernel.copy_s + work.token_bytes / sm_bytes_per_s)
    return {
        "sms": (work.tokens * kernel.token_s + copies_s) / work.sms,
        "up": work.up_s / kernel.up_share,
        "nic": work.nic_s / kernel.nic_share,
    }


def joined(parts_s: dict[str, FloatArray]) -> FloatArray:
    """A maximum without a corner."""
    parts = np.stack(np.broadcast_arrays(*parts_s.values()))
    most = np.maximum(parts.max(axis=0), 1e-300)
    return np.asarray(most * ((parts / most) ** SHARPNESS).sum(axis=0) ** (1.0 / SHARPNESS))


def normal_start(kernel: Kernel, work: Work) -> FloatArray:
    """Launch, first chunk and pipe."""
    far = work.nodes > 1
    pipe_s = np.where(far, kernel.across_pipe_s, kernel.pipe_s) * work.tokens / (work.tokens + PIPE_TOKENS)
    return np.asarray(kernel.start_s + far * kernel.across_s + work.token_bytes * (kernel.first_s + pipe_s))


def low_latency_start(kernel: Kernel, work: Work) -> FloatArray:
    """Launch, a flag for each expert, the way to other nodes."""
    across_s = (work.nodes > 1) * kernel.across_s + kernel.far_s * (work.nodes - 1) / work.nodes
    return np.asarray(kernel.start_s + kernel.expert_s * work.experts + across_s)


START: Final = {"normal": normal_start, "by_node": normal_start, "low_latency": low_latency_start}


def normal_work(cluster: Cluster, group: Group, traffic: Traffic, busy_sms: int) -> tuple[Work, dict[str, FloatArray]]:
    """Copies that links carry, and that SMs touch."""
    _check(traffic)
    copies = remembered(traffic, ("deepep", cluster, group), lambda: distinct_copies(cluster, group, traffic))
    handled = remembered(traffic, ("handled", group.size), lambda: handled_copies(traffic, group.size))
    return _work(cluster, group, traffic, copies, handled, float(busy_sms)), copies


def by_node_work(cluster: Cluster, group: Group, traffic: Traffic, busy_sms: int) -> tuple[Work, dict[str, FloatArray]]:
    """The same route; SMs touch a copy once for each node (hybrid_ep)."""
    found, copies = normal_work(cluster, group, traffic, busy_sms)
    handled = remembered(traffic, ("handled", group.nodes), lambda: handled_copies(traffic, group.nodes))
    return found._replace(handled=handled / traffic.chunks), copies


def low_latency_work(
    cluster: Cluster, group: Group, traffic: Traffic, busy_sms: int
) -> tuple[Work, dict[str, FloatArray]]:
    """Copies that links carry; SMs share the experts out, each at least one."""
    experts = _check(traffic)
    copies, slower = link_copies(cluster, group, traffic, "direct")
    blocks = np.ceil(experts / np.ceil(experts / cluster.gpu.sms))
    sent = np.asarray(traffic.tokens * traffic.top_k)
    if traffic.kept is not None and traffic.share is not None:
        sent = sent * (traffic.share * traffic.kept).sum(axis=-1)
    found = _work(cluster, group, traffic, copies, sent, blocks)
    return found._replace(up_s=found.up_s * slower, nic_s=found.nic_s * slower), copies


WORK: Final = {"normal": normal_work, "by_node": by_node_work, "low_latency": low_latency_work}


def handled_copies(traffic: Traffic, parts: int) -> FloatArray:
    """``[...]`` copies that the busiest of ``parts`` sends or receives, those to itself among them."""
    by_part = reached_parts(traffic, parts) * traffic.tokens
    return np.asarray(np.maximum(by_part.sum(axis=-1), parts * by_part.max(axis=-1)))


def _check(traffic: Traffic) -> int:
    """How many experts there are."""
    if traffic.share is None:
        raise MoesimError("deepep: the traffic does not say how popular its experts are: give share[..., expert]")
    return int(traffic.share.shape[-1])


def _work(
    cluster: Cluster, group: Group, traffic: Traffic, copies: dict[str, FloatArray], handled: FloatArray, busy: float
) -> Work:
    """A part of every row stands for as large a part of the rows: ``chunks`` of whole rows, one after another."""
    out_s = 0.0 if group.nodes == 1 else _far_copies(copies) / nic(cluster).bandwidth_bytes_per_s
    return Work(
        tokens=np.asarray(traffic.tokens / traffic.chunks),
        token_bytes=np.asarray(traffic.token_bytes * traffic.chunks),
        handled=handled / traffic.chunks,
        nodes=np.asarray(float(group.nodes)),
        experts=np.asarray(float(_check(traffic))),
        sms=np.asarray(busy),
        up_s=copies["up"] * traffic.token_bytes / cluster.scale_up.bandwidth_bytes_per_s,
        nic_s=np.asarray(out_s * traffic.token_bytes),
    )


def _far_copies(copies: dict[str, FloatArray]) -> FloatArray:
    return np.maximum(copies["nic"], copies.get("uplink", 0.0))


def _peak_s(cluster: Cluster, copies: dict[str, FloatArray], token_bytes: FloatArray | float) -> FloatArray:
    up_s = copies["up"] * token_bytes / cluster.scale_up.peak_bytes_per_s
    if "nic" not in copies:
        return up_s
    return np.maximum(up_s, _far_copies(copies) * token_bytes / nic(cluster).peak_bytes_per_s)


def _link(cluster: Cluster, slowest: str, copies: dict[str, FloatArray]) -> str:
    """What a part of the work is called."""
    climbs = slowest == "nic" and np.mean(copies.get("uplink", 0.0)) > np.mean(copies["nic"])
    return "uplink" if climbs else {"up": cluster.scale_up.kind, "sms": "compute"}.get(slowest, slowest)
