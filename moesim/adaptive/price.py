"""Seconds of one expert layer under a way, at every load: forward and backward, played.

    comm     | weights | D0 | D1 |    | C0 | C1 |          D dispatch, E experts, C combine, in chunks
    compute            |    | E0 | E1 |

Backward is the mirror: the weights again, gradients of the outputs out and of the inputs home, the weight gradients
in the gaps, and where weights were gathered their gradients are reduced back. With one chunk nothing overlaps.
A GPU sends its capacity c for each of the E experts, r times; it computes what arrives with 1 / r of the width:

    sent        r c E rows of ``hidden`` bf16 values, evenly to all W GPUs
    computed    r > 0: its own experts, r c E rows together     r = 0: all E experts, c rows each

Every price is moesim's own: ``alltoall``, ``collectives``, ``compute``; the gradients of the experts cost what was
calibrated, else a forward pass each.
"""

from functools import lru_cache
from math import ceil
from typing import Final, NamedTuple

import numpy as np

from moesim.adaptive.layer import MoeLayer, Way, gather_all, gather_group
from moesim.alltoall import Traffic, all_to_all, resized
from moesim.cluster import Cluster
from moesim.collectives import all_gather, reduce_scatter
from moesim.compute import expert_ffn, gradient
from moesim.cost import ESTIMATED, FloatArray
from moesim.errors import MoesimError
from moesim.memory import GRADIENT_BYTES, TRAINING_WEIGHT_BYTES
from moesim.network.pairs import Product
from moesim.player import play_batched
from moesim.profile import Profile
from moesim.program import Builder, Program
from moesim.step.blocks import BACKWARD_ERROR
from moesim.step.links import BF16_BYTES
from moesim.step.price import NOTHING, Price, price, scaled

MOST_ROWS: Final = 65_536  # of one expert in one call: the kernels' rate is flat before that; more is several calls


class LoadPrice(NamedTuple):
    """One way at every load."""

    way: Way
    seconds: FloatArray  # [load]
    parts: dict[str, Price]  # busy seconds of one forward pass by part, [load, 1] each and of one chunk
    error: float  # half-width of the 90 % band, relative


def capacities(layer: MoeLayer, factors: tuple[float, ...]) -> FloatArray:
    """[load] rows of one GPU for one expert: ceil(k f T / E), never more than T (Tutel, equation 1)."""
    if not factors or any(not 0 < factor < float("inf") for factor in factors):
        raise MoesimError(f"capacity factors {factors}: give numbers above 0, for example 1:8 or 1,1.25,2")
    fair = layer.experts.top_k * layer.tokens / layer.experts.experts
    return np.array([min(ceil(fair * factor * (1 - 1e-12)), layer.tokens) for factor in factors], dtype=float)


def load_prices(
    layer: MoeLayer, cluster: Cluster, profile: Profile, ways: list[Way], capacity: FloatArray
) -> list[LoadPrice]:
    """Every way at every capacity."""
    return [_priced(layer, cluster, profile, way, capacity) for way in ways]


def _priced(layer: MoeLayer, cluster: Cluster, profile: Profile, way: Way, capacity: FloatArray) -> LoadPrice:
    parts = {
        "weights": _weights(layer, cluster, way, gathers=True),
        "dispatch": _exchange(layer, cluster, way, capacity),
        "experts": _experts(layer, cluster, profile, way, capacity),
    }
    names = {"weights": parts["weights"], "send": parts["dispatch"], "experts": parts["experts"]}
    seconds = _play(_forward(way), names, len(capacity))
    if layer.trains:
        names["scatter"] = _weights(layer, cluster, way, gathers=False)
        for which in ("data", "weights"):
            names[f"{which} gradient"] = _gradient(profile, layer.dtype, parts["experts"], which)
        seconds = seconds + _play(_backward(way), names, len(capacity))
    busy = [float(one.seconds.mean()) for one in parts.values()]
    error = sum(b * one.error for b, one in zip(busy, parts.values(), strict=True)) / sum(busy)
    return LoadPrice(way, seconds, parts, max(error, BACKWARD_ERROR if layer.trains else 0.0))


def _play(program: Program, prices: dict[str, Price], loads: int) -> FloatArray:
    found = play_batched(program, {key: prices[key].seconds for key in program.keys})
    return np.array(np.broadcast_to(found, loads))


@lru_cache(maxsize=64)
def _forward(way: Way) -> Program:
    build = Builder(serial=way.chunks == 1)
    ready = build.add("weights", "comm")
    arrived = [build.add("dispatch", "comm", chunk=j, key="send") for j in range(way.chunks)]
    done = [build.add("experts", "compute", ready, arrived[j], chunk=j) for j in range(way.chunks)]
    for j in range(way.chunks):
        build.add("combine", "comm", done[j], chunk=j, key="send")
    return build.program()


@lru_cache(maxsize=64)
def _backward(way: Way) -> Program:
    build = Builder(serial=way.chunks == 1)
    ready = build.add("weights", "comm")
    arrived = [build.add("combine grad", "comm", chunk=j, key="send") for j in range(way.chunks)]
    done = [build.add("data gradient", "compute", ready, arrived[j], chunk=j) for j in range(way.chunks)]
    for j in range(way.chunks):
        build.add("dispatch grad", "comm", done[j], chunk=j, key="send")
    last = [build.add("weights gradient", "compute", done[j], chunk=j) for j in range(way.chunks)]
    build.add("scatter", "comm", *last)
    return build.program()


def _gradient(profile: Profile, dtype: str, forward: Price, which: str) -> Price:
    found = gradient(profile, which, dtype)
    if found is None:
        return scaled(forward, 1.0, basis=ESTIMATED, error=BACKWARD_ERROR)
    return scaled(forward, found.slower, basis=found.measured.basis, error=found.error)


def _weights(layer: MoeLayer, cluster: Cluster, way: Way, *, gathers: bool) -> Price:
    """Gathering weights, or scattering the sum of their gradients, in the group that shares them."""
    group = gather_group(layer, cluster, way.r)
    if group.size == 1:
        return NOTHING
    parameters = layer.expert_parameters * (layer.experts.experts if way.r == 0 else 1.0 / way.r)
    if gathers:
        return price("weights", all_gather(cluster, group, parameters * TRAINING_WEIGHT_BYTES))
    return price("weights", reduce_scatter(cluster, group, parameters * GRADIENT_BYTES))


def _exchange(layer: MoeLayer, cluster: Cluster, way: Way, capacity: FloatArray) -> Price:
    """One chunk of dispatch; combine and the gradients' exchanges are as long."""
    if way.r == 0 or cluster.gpus == 1:
        return NOTHING
    experts, gpus = layer.experts.experts, cluster.gpus
    sent = np.broadcast_to(way.r * experts * capacity[:, None], (len(capacity), gpus))
    traffic = Traffic(
        pairs=Product(sent=sent, share=np.full(gpus, 1.0 / gpus)),
        tokens=float(layer.tokens),
        token_bytes=1.0,
        top_k=layer.experts.top_k,
    )
    sized = resized(traffic, layer.hidden * BF16_BYTES / way.chunks)
    return price("all-to-all", all_to_all(cluster, gather_all(cluster), sized, way.all_to_all))


def _experts(layer: MoeLayer, cluster: Cluster, profile: Profile, way: Way, capacity: FloatArray) -> Price:
    """One chunk of a GPU's experts, in calls of at most ``MOST_ROWS`` rows for each expert."""
    experts = layer.experts
    local = experts.experts if way.r == 0 else max(1, experts.experts // cluster.gpus)
    rows = max(1, way.r) * capacity * experts.experts / local / way.chunks
    calls = np.ceil(rows / MOST_ROWS)
    load = np.broadcast_to((rows / np.maximum(calls, 1.0))[:, None], (len(rows), local))
    seconds = expert_ffn(
        profile, load, layer.hidden, experts.width // max(1, way.r), layer.dtype,
        top_k=experts.top_k, gated=experts.gated,
    )  # fmt: skip
    return scaled(price("experts", seconds), calls[:, None])
