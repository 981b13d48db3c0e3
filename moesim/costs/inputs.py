"""What people type becomes a checked noun: one frozen dataclass for each operation.

    hidden: int = option(COUNT, "Hidden size.")

A field is at once the option ``--hidden``, the column ``hidden`` and the keyword ``hidden``. It takes text
or a value, and refuses what does not fit by name, value and what to give.
"""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, field, fields
from typing import Any, Final, NamedTuple, TypeVar

from moesim.errors import MoesimError, choice
from moesim.units import size_bytes

Noun = TypeVar("Noun")

MOST: Final = 10**12
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")


class Kind(NamedTuple):
    """What fits an option."""

    metavar: str
    wanted: str  # "a whole number of at least 1"
    take: Callable[[Any], Any]  # text or value -> value; ValueError or TypeError when it does not fit
    known: tuple[str, ...] = ()


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def take(value: Any) -> int:
        number = float(value)
        if not (least <= number <= most and number == int(number)):
            raise ValueError(value)
        return int(number)

    return take


def count(most: int, least: int = 1) -> Kind:
    """A whole number from ``least`` to ``most``."""
    return Kind("N", f"a whole number from {least} to {most:,}", _whole(least, most))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(value)
    return value.strip()


def _yes_or_no(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _YES + _NO:
        raise ValueError(value)
    return text in _YES


def _bytes(value: Any) -> float:
    try:
        number = float(value)
    except ValueError:
        try:
            number = size_bytes(str(value))
        except MoesimError:
            raise ValueError(value) from None
    if not 0.0 < number <= 1e18:
        raise ValueError(value)
    return number


def _loads(value: Any) -> tuple[float, ...]:
    parts = value.replace(";", ",").split(",") if isinstance(value, str) else list(value)
    numbers = tuple(float(part) for part in parts)
    if not numbers or not all(0.0 <= number <= MOST for number in numbers):
        raise ValueError(value)
    return numbers


COUNT: Final = Kind("N", "a whole number of at least 1", _whole(1, MOST))
SEED: Final = Kind("N", "a whole number of at least 0", _whole(0, MOST))
TEXT: Final = Kind("NAME", "a name", _text)
FLAG: Final = Kind("", "true or false", _yes_or_no)
SIZE: Final = Kind("SIZE", "bytes above zero: a number, or one with a unit as in 64MiB or 1.5GB", _bytes)
LOADS: Final = Kind("N,N,…", "tokens of each local expert, at least 0: 120,3,0 (in a table 120;3;0)", _loads)


def one_of(known: Iterable[str]) -> Kind:
    """One of these names."""
    names = tuple(known)
    return Kind("|".join(names), f"one of {', '.join(names)}", _text, names)


def option(kind: Kind, about: str, default: Any = MISSING, *, off: str = "") -> Any:
    """A field of an operation's inputs, required without a default; ``off`` names a flag's opposite."""
    return field(default=default, metadata={"kind": kind, "about": about, "off": off})


def settle(noun: Any) -> None:
    """Read and check every field of a noun that is being made; None stays where it is the default."""
    for each in fields(noun):
        value = getattr(noun, each.name)
        if value is not None or each.default is not None:
            object.__setattr__(noun, each.name, taken(each, value))


def taken(each: "Field[Any]", value: Any) -> Any:
    """The value of one field, from text or from a value."""
    kind: Kind = each.metadata["kind"]
    try:
        result = kind.take(value)
    except (TypeError, ValueError, OverflowError):
        raise MoesimError(f"{each.name} {value!r}: give {kind.wanted}") from None
    if kind.known and result not in kind.known:
        raise choice(each.name, result, kind.known)
    return result


def make(inputs: type[Noun], given: dict[str, Any]) -> Noun:
    """The noun from what was given; refuses what is missing by name."""
    missing = [name for name in required(inputs) if name not in given]
    if missing:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise MoesimError(f"{', '.join(missing)} not given: add {flags}, or a column of a --from table")
    return inputs(**given)


def options(inputs: type[Any]) -> "tuple[Field[Any], ...]":
    """The fields in the order of the help."""
    return fields(inputs)


def required(inputs: type[Any]) -> list[str]:
    """Names of the fields without a default."""
    return [each.name for each in options(inputs) if each.default is MISSING]


def stated(noun: Any) -> dict[str, Any]:
    """The fields that have a value, lists as lists."""
    found = {each.name: getattr(noun, each.name) for each in fields(noun)}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in found.items() if value is not None
    }
