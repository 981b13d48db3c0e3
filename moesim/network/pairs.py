"""Copies from every rank to every other, and the sums of them that links carry.

    Dense     copies[..., src, dst]: drawn routing, up to a few thousand ranks
    Product   copies(i, j) = sent_i x share_j: what a popularity gives, never written out, for 100,000 ranks

Ranks stand node by node: rank = node x per_node + local. The diagonal stays on its rank and crosses nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.cost import FloatArray
from moesim.errors import MoesimError

IntArray = NDArray[np.integer]


class Sums(NamedTuple):
    """Copies by rank, ``[..., rank]``; a rail joins the ranks of all nodes with the same local number."""

    near_out: FloatArray  # sent to the other ranks of the node
    near_in: FloatArray  # received from them
    far_out: FloatArray  # sent to other nodes
    far_in: FloatArray  # received from other nodes
    to_rail: FloatArray  # what leaves the rank's node for the ranks of its rail, whoever sends it
    own_rail: FloatArray  # what the rank itself sends along its rail


class Pairs(Protocol):
    """What the network asks of a traffic matrix."""

    @property
    def ranks(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the batch."""
        ...

    def turned(self) -> "Pairs":
        """The way home: source and destination exchanged."""
        ...

    def totals(self) -> tuple[FloatArray, FloatArray]:
        """``[..., rank]`` sent to and received from all others."""
        ...

    def buffers(self) -> FloatArray:
        """``[..., rank]`` all that a rank sends, what stays on it among it."""
        ...

    def sums(self, per_node: int) -> Sums:
        """What ports and NICs carry."""
        ...

    def climbing(self, per_node: int, leaf: IntArray) -> tuple[FloatArray, FloatArray]:
        """``[..., leaf]`` leaves and enters the ranks below each leaf, from and to other nodes; ``leaf[rank]``."""
        ...

    def to_rails(self, per_node: int) -> "Pairs":
        """``[..., node]`` traffics of a node's ranks: rank (n, g) gives (n, l) all that it sends to rail l."""
        ...

    def along_rails(self, per_node: int) -> "Pairs":
        """``[..., rail]`` traffics of nodes: (n, l) sends (m, l) all that node n has for it."""
        ...

    def between(self, src: IntArray, dst: IntArray, apart: tuple[IntArray, ...]) -> FloatArray:
        """``[source class, destination class]`` sent between them, of one traffic (no batch), by ranks whose
        labels differ in every array of ``apart``."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Dense:
    """``copies[..., src, dst]``."""

    copies: FloatArray

    def __post_init__(self) -> None:
        shape = self.copies.shape
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise MoesimError(f"copies of shape {shape}: give [..., src rank, dst rank]")

    @property
    def ranks(self) -> int:
        return int(self.copies.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.copies.shape[:-2]

    def turned(self) -> "Dense":
        return Dense(copies=np.swapaxes(self.copies, -1, -2))

    def totals(self) -> tuple[FloatArray, FloatArray]:
        stays = np.diagonal(self.copies, axis1=-2, axis2=-1)
        return self.copies.sum(axis=-1) - stays, self.copies.sum(axis=-2) - stays

    def buffers(self) -> FloatArray:
        return np.asarray(self.copies.sum(axis=-1))

    def sums(self, per_node: int) -> Sums:
        square = _by_node(self.copies, per_node)  # [..., src node, src local, dst node, dst local]
        node, local = np.arange(square.shape[-2]), np.arange(per_node)
        inside = np.moveaxis(square[..., node, :, node, :], 0, -3)  # [..., node, src local, dst local]
        stays = np.diagonal(inside, axis1=-2, axis2=-1)
        along = np.moveaxis(square[..., :, local, :, local], 0, -1)  # [..., src node, dst node, local]
        shape = self.copies.shape[:-1]
        near_out, near_in = inside.sum(axis=-1), inside.sum(axis=-2)
        return Sums(
            near_out=(near_out - stays).reshape(shape),
            near_in=(near_in - stays).reshape(shape),
            far_out=self.copies.sum(axis=-1) - near_out.reshape(shape),
            far_in=self.copies.sum(axis=-2) - near_in.reshape(shape),
            to_rail=(square.sum(axis=(-3, -2)) - near_in).reshape(shape),
            own_rail=(along.sum(axis=-2) - stays).reshape(shape),
        )

    def climbing(self, per_node: int, leaf: IntArray) -> tuple[FloatArray, FloatArray]:
        square = grouped(grouped(self.copies, leaf, -1), leaf, -2)  # [..., src leaf, dst leaf]
        if not _nested(leaf, per_node):  # rails: what stays on its node does not climb
            inside = _by_node(self.copies, per_node)
            node = np.arange(inside.shape[-2])
            near = inside[..., node, :, node, :].sum(axis=0)  # [..., src local, dst local]
            square = square - grouped(grouped(near, leaf[:per_node], -1), leaf[:per_node], -2)
        stays = np.diagonal(square, axis1=-2, axis2=-1)
        return square.sum(axis=-1) - stays, square.sum(axis=-2) - stays

    def to_rails(self, per_node: int) -> "Dense":
        return Dense(copies=_by_node(self.copies, per_node).sum(axis=-2))

    def along_rails(self, per_node: int) -> "Dense":
        return Dense(copies=np.moveaxis(_by_node(self.copies, per_node).sum(axis=-3), -1, -3))

    def between(self, src: IntArray, dst: IntArray, apart: tuple[IntArray, ...]) -> FloatArray:
        whole = grouped(grouped(self.copies, dst, -1), src, -2)
        return _apart(whole, apart, lambda label: self._alike(src, dst, label))

    def _alike(self, src: IntArray, dst: IntArray, label: IntArray) -> FloatArray:
        """Between ranks with the same label."""
        found = np.zeros((int(src.max()) + 1, int(dst.max()) + 1))
        order = np.argsort(label, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
            np.add.at(found, (src[members, None], dst[members]), self.copies[members[:, None], members])
        return found


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Product:
    """``sent[..., rank]`` copies of a source, of which ``share[..., rank]`` (they sum to one) go to a destination."""

    sent: FloatArray
    share: FloatArray

    @property
    def ranks(self) -> int:
        return int(self.share.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(self.sent.shape, self.share.shape)[:-1]

    def turned(self) -> "Product":
        total = self.sent.sum(axis=-1, keepdims=True)
        return Product(sent=total * self.share, share=self.sent / np.maximum(total, 1e-300))

    def totals(self) -> tuple[FloatArray, FloatArray]:
        total = self.sent.sum(axis=-1, keepdims=True)
        return self.sent * (1.0 - self.share), self.share * (total - self.sent)

    def buffers(self) -> FloatArray:
        return self.sent

    def sums(self, per_node: int) -> Sums:
        sent_here, share_here = _of_node(self.sent, per_node), _of_node(self.share, per_node)
        total = self.sent.sum(axis=-1, keepdims=True)
        elsewhere = _of_rail(self.share, per_node) - self.share  # share of the rail's other ranks
        return Sums(
            near_out=self.sent * (share_here - self.share),
            near_in=self.share * (sent_here - self.sent),
            far_out=self.sent * (1.0 - share_here),
            far_in=self.share * (total - sent_here),
            to_rail=sent_here * elsewhere,
            own_rail=self.sent * elsewhere,
        )

    def climbing(self, per_node: int, leaf: IntArray) -> tuple[FloatArray, FloatArray]:
        sent, share = grouped(self.sent, leaf, -1), grouped(self.share, leaf, -1)
        total = sent.sum(axis=-1, keepdims=True)
        out, into = sent * (1.0 - share), share * (total - sent)
        if _nested(leaf, per_node):
            return out, into
        here = [np.reshape(each, (*each.shape[:-1], -1, per_node)) for each in (self.sent, self.share)]
        near_sent, near_share = (grouped(each, leaf[:per_node], -1) for each in here)  # [..., node, leaf]
        others = near_share.sum(axis=-1, keepdims=True) - near_share
        other_senders = near_sent.sum(axis=-1, keepdims=True) - near_sent
        return out - (near_sent * others).sum(axis=-2), into - (near_share * other_senders).sum(axis=-2)

    def to_rails(self, per_node: int) -> "Product":
        share = self.share.reshape(*self.share.shape[:-1], -1, per_node).sum(axis=-2, keepdims=True)
        return Product(sent=self.sent.reshape(*self.sent.shape[:-1], -1, per_node), share=share)

    def along_rails(self, per_node: int) -> "Product":
        share = np.swapaxes(self.share.reshape(*self.share.shape[:-1], -1, per_node), -1, -2)  # [..., rail, node]
        whole = share.sum(axis=-1, keepdims=True)
        sent = self.sent.reshape(*self.sent.shape[:-1], -1, per_node).sum(axis=-1)[..., None, :]
        return Product(sent=sent * whole, share=share / np.maximum(whole, 1e-300))

    def between(self, src: IntArray, dst: IntArray, apart: tuple[IntArray, ...]) -> FloatArray:
        whole = grouped(self.sent, src, -1)[:, None] * grouped(self.share, dst, -1)
        return _apart(whole, apart, lambda label: self._alike(src, dst, label))

    def _alike(self, src: IntArray, dst: IntArray, label: IntArray) -> FloatArray:
        """Between ranks with the same label."""
        labels = int(label.max()) + 1
        sent = _table(label, src, self.sent, labels)
        return np.asarray(sent.T @ _table(label, dst, self.share, labels))


def _apart(whole: FloatArray, apart: tuple[IntArray, ...], alike: Callable[[IntArray], FloatArray]) -> FloatArray:
    """By inclusion and exclusion over the labels that must differ: all, less equal in one, plus equal in both."""
    found = whole
    for label in apart:
        found = found - alike(label)
    if len(apart) == 2:
        one, other = apart
        found = found + alike(np.unique(one * (int(other.max()) + 1) + other, return_inverse=True)[1])
    return np.maximum(found, 0.0)


def _by_node(copies: FloatArray, per_node: int) -> FloatArray:
    """``[..., src, dst]`` -> ``[..., src node, src local, dst node, dst local]``."""
    nodes = copies.shape[-1] // per_node
    return copies.reshape(*copies.shape[:-2], nodes, per_node, nodes, per_node)


def _of_node(values: FloatArray, per_node: int) -> FloatArray:
    """``[..., rank]`` the sum over the rank's node."""
    square = values.reshape(*values.shape[:-1], -1, per_node)
    return np.broadcast_to(square.sum(axis=-1, keepdims=True), square.shape).reshape(values.shape)


def _of_rail(values: FloatArray, per_node: int) -> FloatArray:
    """``[..., rank]`` the sum over the ranks of all nodes with the same local number."""
    square = values.reshape(*values.shape[:-1], -1, per_node)
    return np.broadcast_to(square.sum(axis=-2, keepdims=True), square.shape).reshape(values.shape)


def _nested(leaf: IntArray, per_node: int) -> bool:
    """Whether all ranks of a node are below one leaf."""
    square = leaf.reshape(-1, per_node)
    return bool(np.all(square == square[:, :1]))


def grouped(values: FloatArray, label: IntArray, axis: int) -> FloatArray:
    """Sums over the entries of ``axis`` with equal labels, which count from 0."""
    if np.all(label[1:] >= label[:-1]):  # blocks, one after another
        starts = np.searchsorted(label, np.arange(int(label[-1]) + 1))
        return np.asarray(np.add.reduceat(values, starts, axis=axis))
    member = np.asarray(label[:, None] == np.arange(int(label.max()) + 1), dtype=np.float64)
    return np.asarray(np.moveaxis(np.moveaxis(values, axis, -1) @ member, -1, axis))


def _table(rows: IntArray, columns: IntArray, values: FloatArray, count: int) -> FloatArray:
    """``[row label, column label]`` sums."""
    width = int(columns.max()) + 1
    return np.asarray(np.bincount(rows * width + columns, values, count * width).reshape(count, width), np.float64)
