"""Ranks folded into load classes, so that the flows of 100,000 ranks are some hundred class flows.

    links of a family       by the time that their load takes: the busiest and the next alone, the others in four bins
                            of equal width
    source class            the classes of the links that a rank's bytes leave through
    destination class       the same of the links that they arrive through
    class link              the sum of its links        class flow   all pairs of a source and a destination class

The sizes of class flows come from ``Pairs.between`` alone: copies of pairs are never written out. Exact where every
link of a class carries the same flows, as equal traffic does; else the busiest links stay exact and the others are
averaged. Links equal to the busiest, or to the next, go with it, and no bin is narrower than the noise of a draw. On
trees of 64 and 256 ranks the mean error is 0.7 %, 1.9 % at worst of 50 cases, steps included; six bins would give 0.5
and 1.3 % for twice the flows. It grows with the ranks, on the late side: at 1,024 ranks 1.6 and 2.0 % in a tree of 2:1,
3.0 and 4.5 % at 4:1 (studies/network_speed).

Folded are the flows for which two kinds of link can both be the slow one: NICs and the ways up from leaf switches,
PCIe and the host's memory. All others wait for one kind of link only.
"""

from typing import Final, NamedTuple

import numpy as np

from moesim.cluster import Cluster, Group
from moesim.cost import FloatArray
from moesim.network.links import KIND, Route, bytes_per_s, families, forwards, loads
from moesim.network.maxmin import Flows, padded
from moesim.network.pairs import IntArray, Pairs, Product
from moesim.network.ways import owned

ALONE: Final = 2
BINS: Final = 4
EQUAL: Final = 1e-3  # loads that differ by less of the busier one
NARROWEST: Final = 0.01  # bin, of the busiest load
_FEWEST: Final = 1e-9  # copies of a class flow below this are rounding


class Part(NamedTuple):
    """Pairs that cross the same families."""

    leaves: tuple[str, ...]  # through these families of the source
    arrives: tuple[str, ...]  # and these of the destination
    apart: tuple[str, ...]  # families: pairs whose links differ in each
    less: tuple[str, ...] = ()  # and not the pairs whose links differ in each of these


def class_flows(cluster: Cluster, group: Group, pairs: Pairs, route: Route = "forwarded") -> Flows:
    """Class flows of one traffic (no batch), in copies: bytes with one byte for each."""
    own = owned(cluster, group) | {"rank": np.arange(group.size)}
    load, worth = loads(cluster, group, pairs, route), families(cluster, group)
    parts = _parts(cluster, group, route)
    names = dict.fromkeys(name for part in parts for name in (*part.leaves, *part.arrives))
    first: dict[str, int] = {}
    label: dict[str, IntArray] = {}
    capacity: list[FloatArray] = []
    for name in names:
        classes = classed(load[name] / worth[name])
        first[name], label[name] = sum(map(len, capacity)), classes[own[name]]
        whole = np.asarray(np.bincount(classes, worth[name]), dtype=np.float64)
        capacity.append(whole * bytes_per_s(cluster, KIND[name])[0])
    found = [_part_flows(part, pairs, own, first, label) for part in parts]
    hops = max(path.shape[1] for path, _, _ in found)
    path = np.concatenate([padded(path, hops) for path, _, _ in found])
    copies, number = (np.concatenate([each[column] for each in found]) for column in (1, 2))
    return Flows(path=path, size_bytes=copies / number, copies=number, capacity_bytes_per_s=np.concatenate(capacity))


def classed(wait: FloatArray) -> IntArray:
    """``[link]`` its class, counted from 0."""
    found, wait = np.full(len(wait), -1), np.maximum(wait, 0.0)  # differences of shares may round below zero
    for number in range(ALONE):
        busiest = np.max(wait, where=found < 0, initial=0.0)
        found[(found < 0) & (wait >= busiest * (1.0 - EQUAL))] = number
    rest = np.flatnonzero(found < 0)
    if len(rest):
        top, low = float(wait[rest].max()), float(wait[rest].min())
        width = max((top - low) / BINS, NARROWEST * float(wait.max()))
        bins = np.minimum((top - wait[rest]) / width, BINS - 1).astype(int)
        found[rest] = ALONE + np.unique(bins, return_inverse=True)[1]
    return found


def _parts(cluster: Cluster, group: Group, route: Route) -> list[Part]:
    found: list[Part] = []
    if cluster.fabric.inside == "host":
        found.append(Part(("up_out", "host"), ("host", "up_in"), ("rank",), ("host",)))
    if group.nodes > 1 and not forwards(cluster, route):
        climbs = ("leaf_up",) if cluster.fabric.between == "tree" else ("host", "leaf_up")
        found.append(Part(("nic_out", "leaf_up"), ("leaf_down", "nic_in"), climbs))
        found.append(Part(("nic_out",), ("nic_in",), ("host",), climbs))
    return found


def _part_flows(
    part: Part, pairs: Pairs, own: dict[str, IntArray], first: dict[str, int], label: dict[str, IntArray]
) -> tuple[IntArray, FloatArray, FloatArray]:
    """``path[flow, hop]``, copies in all and number of pairs of each class flow."""
    src, out = _joined([first[name] + label[name] for name in part.leaves])
    dst, into = _joined([first[name] + label[name] for name in part.arrives])
    ones = Product(sent=np.ones(len(src)), share=np.ones(len(src)))
    copies, number = (_between(part, each, own, src, dst) for each in (pairs, ones))
    source, target = np.nonzero((copies > _FEWEST * copies.max()) & (number > 0.5))
    path = np.concatenate([out[source], into[target]], axis=1)
    return path, copies[source, target], number[source, target]


def _between(part: Part, pairs: Pairs, own: dict[str, IntArray], src: IntArray, dst: IntArray) -> FloatArray:
    found = pairs.between(src, dst, tuple(own[name] for name in part.apart))
    if part.less:
        found = found - pairs.between(src, dst, tuple(own[name] for name in part.less))
    return np.asarray(np.maximum(found, 0.0))


def _joined(columns: list[IntArray]) -> tuple[IntArray, IntArray]:
    """``[rank]`` its class from its links' classes together, and ``[class, hop]`` those links."""
    key = np.zeros(len(columns[0]), dtype=int)
    for column in columns:
        key = key * (int(column.max()) + 1) + column
    _, member, label = np.unique(key, return_index=True, return_inverse=True)
    return label.reshape(-1), np.stack([column[member] for column in columns], axis=1)
