"""Text becomes SI numbers here, once; numbers become text for people here, at the end.

Inside moesim everything is seconds, bytes, bytes per second, FLOPs and FLOPs per second.
Decimal GB for links and memory speed, binary GiB for memory size, as vendors print them.
"""

import re
from typing import Final

from moesim.errors import MoesimError

US: Final = 1e-6
MS: Final = 1e-3
KB, MB, GB, TB = 1e3, 1e6, 1e9, 1e12
KIB, MIB, GIB, TIB = 2.0**10, 2.0**20, 2.0**30, 2.0**40
TFLOPS: Final = 1e12

_SECONDS = {"ns": 1e-9, "us": US, "µs": US, "ms": MS, "s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = {
    "B": 1.0, "KB": KB, "MB": MB, "GB": GB, "TB": TB, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB,
}  # fmt: skip
_BYTES_PER_S = {f"{unit}/s": factor for unit, factor in _BYTES.items()} | {
    "Gb/s": 1e9 / 8,
    "Tb/s": 1e12 / 8,
}
_FLOPS = {"GFLOP/s": 1e9, "TFLOP/s": 1e12, "PFLOP/s": 1e15}
_QUANTITY = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([^\s0-9.]\S*)\s*$")


def seconds(text: str) -> float:
    """``"25us"`` -> 2.5e-05. Raises MoesimError for an unknown unit."""
    return _quantity(text, _SECONDS, "a duration")


def size_bytes(text: str) -> float:
    """``"80GiB"`` -> bytes."""
    return _quantity(text, _BYTES, "a size")


def bytes_per_s(text: str) -> float:
    """``"450GB/s"`` or ``"400Gb/s"`` -> bytes per second."""
    return _quantity(text, _BYTES_PER_S, "a bandwidth")


def flops_per_s(text: str) -> float:
    """``"989TFLOP/s"`` -> FLOPs per second."""
    return _quantity(text, _FLOPS, "a compute rate")


def _quantity(text: str, units: dict[str, float], what: str) -> float:
    match = _QUANTITY.match(str(text))
    if match is None:
        raise MoesimError(f"{text!r} is not {what}: write a number and one of {', '.join(units)}")
    value, unit = match.groups()
    if unit not in units:
        raise MoesimError(f"{text!r} is not {what}: unit {unit!r} is not one of {', '.join(units)}")
    return float(value) * units[unit]


def show_seconds(value: float) -> str:
    """Seconds for people: ``1.23 ms``."""
    for unit, factor in (("s", 1.0), ("ms", MS), ("us", US)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}" if abs(value) < 1000 * factor else f"{value / factor:.0f} {unit}"
    return f"{value / 1e-9:.3g} ns" if value else "0 s"


def show_bytes(value: float) -> str:
    """Bytes for people, binary: ``12.3 GiB``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(value) >= _BYTES[unit]:
            return f"{value / _BYTES[unit]:.1f} {unit}"
    return f"{value:.0f} B"


def show_count(value: float) -> str:
    """Large counts for people: ``46.7B``."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.0f}"
