"""What is chosen.

nouns    Strategy and its choices; groups of ranks; why_not
text     load_strategy, show: as people write it
"""

from moesim.strategy.nouns import (
    CHOICES,
    CHUNKED,
    CP_EXCHANGES,
    FIELDS,
    OVERLAPS,
    RECOMPUTE,
    ZERO_STAGES,
    Strategy,
    groups,
    spaced,
    why_not,
)
from moesim.strategy.text import load_strategy, show

__all__ = [
    "CHOICES",
    "CHUNKED",
    "CP_EXCHANGES",
    "FIELDS",
    "OVERLAPS",
    "RECOMPUTE",
    "ZERO_STAGES",
    "Strategy",
    "groups",
    "load_strategy",
    "show",
    "spaced",
    "why_not",
]
