"""Which experts the CPU keeps: algorithm 2 of SE-MoE (arXiv:2205.10034), least frequently used with decay.

    step    every expert with tokens is asked for; one that is there is a hit
    miss    read from SSD. A free slot takes it; else it may replace the entry with the least count, if that count is
            at least the threshold (its states are written back to SSD first); else it passes through
    decay   every so many steps all counts are multiplied by beta: what was hot long ago goes

Every expert has a counter, in the cache or not. As published a miss always replaces; then experts that are all asked
for in every step push each other out before they are asked for again, and nothing hits. ``hotter`` lets a miss in only
when it was asked for more often than what it replaces.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from moesim.errors import MoesimError, choice


def _always(new: float, least: float) -> bool:
    return True


def _hotter(new: float, least: float) -> bool:
    return new > least


ADMISSIONS: Final[dict[str, Callable[[float, float], bool]]] = {"always": _always, "hotter": _hotter}


class CacheRun(NamedTuple):
    """What happened."""

    hits: int
    misses: int
    writebacks: int
    there: tuple[int, ...]  # in the cache at the end, oldest first

    @property
    def hit_rate(self) -> float:
        """Hits over requests; 1 where nothing was asked for."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRule:
    """How the cache chooses what stays; as published, without threshold and decay."""

    admission: str = "always"
    threshold: float = 0.0
    beta: float = 1.0
    period: int = 1  # steps between decays

    def __post_init__(self) -> None:
        if self.admission not in ADMISSIONS:
            raise choice("cache admission", self.admission, list(ADMISSIONS))
        if self.threshold < 0 or not 0 < self.beta <= 1 or self.period < 1:
            raise MoesimError(
                f"cache rule with threshold {self.threshold}, beta {self.beta}, period {self.period}: give a threshold "
                "of at least 0, beta above 0 and at most 1, a period of at least 1"
            )


PUBLISHED: Final = CacheRule()


def keep(
    steps: Iterable[Iterable[int]], slots: int, rule: CacheRule = PUBLISHED, *, start: Iterable[int] = ()
) -> CacheRun:
    """Play the cache: ``steps`` holds the experts asked for in each step, by number; ``slots`` of them fit, and the
    first ones of ``start`` are there at the beginning."""
    if slots < 0:
        raise MoesimError(f"a cache of {slots} slots: give at least 0")
    counts: dict[int, float] = {}
    there: dict[int, None] = dict.fromkeys(list(start)[:slots])  # in the order they came
    hits = misses = writebacks = 0
    for number, asked in enumerate(steps, 1):
        for expert in asked:
            counts[expert] = counts.get(expert, 0.0) + 1.0
            if expert in there:
                hits += 1
                continue
            misses += 1
            if len(there) < slots:
                there[expert] = None
                continue
            least = min(there, key=lambda one: counts.get(one, 0.0), default=None)  # the oldest of equals
            if least is not None and _replaces(rule, counts[expert], counts.get(least, 0.0)):
                del there[least]
                there[expert] = None
                writebacks += 1
        if number % rule.period == 0 and rule.beta < 1:
            counts = {expert: count * rule.beta for expert, count in counts.items()}
    return CacheRun(hits, misses, writebacks, tuple(there))


def _replaces(rule: CacheRule, new: float, least: float) -> bool:
    return least >= rule.threshold and ADMISSIONS[rule.admission](new, least)
