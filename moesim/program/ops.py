"""Op, Program, Builder: work on streams, in an order that respects what waits for what."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

RANK_STREAMS: Final = frozenset({"compute"})
FREE_STREAMS: Final = frozenset({"dp", "host"})  # run beside the others even where nothing else overlaps


class Op(NamedTuple):
    """One piece of work on one stream."""

    name: str  # what it is: "dispatch", "experts", "forward", …
    stream: str
    waits: tuple[int, ...]  # indices of the earlier ops whose results it needs
    across: tuple[int, ...]  # those of them on other streams; on its own stream the order suffices
    chunk: int  # chunk of the all-to-all, or micro-batch
    key: str  # where its duration is found; the name, unless durations differ among ops of one name


@dataclass(frozen=True, eq=False, slots=True)
class Program:
    """Ops in an order that respects what waits for what, and the same ops by stream."""

    ops: tuple[Op, ...]
    streams: dict[str, tuple[tuple[int, Op], ...]]  # (index, op) in the order the stream plays them
    awaited: frozenset[int]  # indices of ops that another stream waits for
    keys: tuple[str, ...]  # of the durations it needs

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def __len__(self) -> int:
        return len(self.ops)

    def __getitem__(self, index: int) -> Op:
        return self.ops[index]


class Builder:
    """Collects ops; ``add`` returns the index that later ops wait for."""

    def __init__(self, *, serial: bool = False) -> None:
        self.ops: list[Op] = []
        self.serial = serial  # every op waits for the one before it: compute and communication do not overlap
        self.last: int | None = None  # of that chain

    def add(self, name: str, stream: str, *waits: int, chunk: int = 0, key: str = "", beside: bool = False) -> int:
        """``beside``: not part of a serial chain, it waits only for ``waits`` and for its stream."""
        index = len(self.ops)
        if self.serial and not beside and stream not in FREE_STREAMS:
            waits = waits if self.last is None or self.last in waits else (*waits, self.last)
            self.last = index
        across = tuple(i for i in waits if self.ops[i].stream != stream)
        self.ops.append(Op(name, stream, waits, across, chunk, key or name))
        return index

    def program(self) -> Program:
        streams: dict[str, list[tuple[int, Op]]] = {}
        for index, op in enumerate(self.ops):
            streams.setdefault(op.stream, []).append((index, op))
        return Program(
            ops=tuple(self.ops),
            streams={name: tuple(ops) for name, ops in streams.items()},
            awaited=frozenset(index for op in self.ops for index in op.across),
            keys=tuple(dict.fromkeys(op.key for op in self.ops)),
        )
