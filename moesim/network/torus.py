"""A torus: what its links carry when bytes go dimension after dimension, each along the shorter way round.

    load of a link of dimension k = what passes there on its ring: sources and destinations that agree with the ring's
    place in the other dimensions (destination's before k, source's after it)

Half goes either way where both are equally short. With equal traffic of S bytes a rank the busiest dimension has
d places and every link of it carries S d / 8 per direction (d even), so the time grows with the longest side.
"""

from typing import cast

import numpy as np

from moesim.cluster import Cluster, Group
from moesim.cost import FloatArray
from moesim.network.pairs import Dense, Pairs, Product, grouped


def torus_loads(cluster: Cluster, group: Group, pairs: Pairs) -> dict[str, FloatArray]:
    """``[..., link]``: dimension, direction (up, down) and place, row-major."""
    sides = cluster.fabric.torus
    place = np.arange(group.size) // (cluster.gpus_per_node // cluster.fabric.places)
    ring = _dense_ring if isinstance(pairs, Dense) else _product_ring
    parts = _by_place(pairs, place, cluster.fabric.places)
    links = [ring(parts, sides, k).reshape(*pairs.shape, -1) for k in range(len(sides))]
    return {"torus": np.concatenate(links, axis=-1)}


def _by_place(pairs: Pairs, place: np.ndarray, places: int) -> tuple[FloatArray, ...]:
    """``[..., src, dst]`` of places, or what each sends and the share that it gets."""
    if isinstance(pairs, Dense):
        return (_padded(_padded(grouped(grouped(pairs.copies, place, -1), place, -2), places, -1), places, -2),)
    product = cast(Product, pairs)
    return tuple(_padded(grouped(each, place, -1), places, -1) for each in (product.sent, product.share))


def _padded(values: FloatArray, places: int, axis: int) -> FloatArray:
    """Zeros for the places that the group leaves empty."""
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, places - values.shape[axis])
    return np.pad(values, widths)


def _dense_ring(parts: tuple[FloatArray, ...], sides: tuple[int, ...], k: int) -> FloatArray:
    """``[..., direction, place]`` of dimension k."""
    square = parts[0]
    batch, n = square.shape[:-2], len(sides)
    whole = square.reshape(*batch, *sides, *sides)
    first, b = len(batch), _letters(n)
    turned = tuple(range(first, first + k)) + tuple(range(first + n + k + 1, first + 2 * n))
    passing = whole.sum(axis=turned)  # [..., src k and later, dst before and k]
    later, before = b[k + 1 :], b[:k].upper()
    found = np.einsum(f"...x{later}{before}y,xylz->...z{before}l{later}", passing, _ways(sides[k]))
    return np.asarray(found).reshape(*batch, 2, -1)


def _product_ring(parts: tuple[FloatArray, ...], sides: tuple[int, ...], k: int) -> FloatArray:
    sent, share = (each.reshape(*each.shape[:-1], *sides) for each in parts)
    n, b = len(sides), _letters(len(sides))
    first = sent.ndim - n
    leaving = sent.sum(axis=tuple(range(first, first + k)))  # [..., src k and later]
    arriving = share.sum(axis=tuple(range(share.ndim - n + k + 1, share.ndim)))  # [..., dst before and k]
    later, before = b[k + 1 :], b[:k].upper()
    formula = f"...x{later},...{before}y,xylz->...z{before}l{later}"
    found = np.einsum(formula, leaving, arriving, _ways(sides[k]), optimize=True)
    return np.asarray(found).reshape(*found.shape[:first], 2, -1)


def _letters(count: int) -> str:
    return "abcdefgh"[:count]


def _ways(side: int) -> FloatArray:
    """``[from, to, link, direction]`` share of the bytes over the link behind each place, upwards or downwards."""
    found = np.zeros((side, side, side, 2))
    for source in range(side):
        for far in range(1, side):
            target, up, down = (source + far) % side, far, side - far
            half = 0.5 if up == down else 1.0
            if up <= down:
                found[source, target, (source + np.arange(up)) % side, 0] = half
            if down <= up:
                found[source, target, (source - np.arange(down)) % side, 1] = half
    return found
