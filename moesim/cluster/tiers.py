"""Tier, Tiers: CPU memory and SSD as one GPU sees them."""

from dataclasses import dataclass

from moesim.errors import MoesimError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """One GPU's share of a memory beside its own."""

    capacity_bytes: float
    bytes_per_s: float  # towards the GPU (CPU memory), or into CPU memory (SSD)
    start_s: float  # of one transfer
    source: str

    def __post_init__(self) -> None:
        for what in ("capacity_bytes", "bytes_per_s"):
            if not 0 < getattr(self, what) < float("inf"):
                raise MoesimError(f"memory tier {what} {getattr(self, what)}: give a number above 0")
        if not 0 <= self.start_s < 1:
            raise MoesimError(f"memory tier start_s {self.start_s}: give 0 to 1 s, for example 10us")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiers:
    """What stands behind GPU memory."""

    cpu: Tier
    ssd: Tier | None = None
