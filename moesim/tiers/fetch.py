"""Seconds of transfers between memories, and of a layer that overlaps them, in closed form.

    transfer    launches x start + bytes / bandwidth                       fused: one launch, the same bytes
    fetch       transfer over PCIe + (1 - hit) x transfer from SSD         a miss is read first, then copied
    layer       K >= 2 slots: max(layer, fetch, gather)                    K = 1: layer + max(fetch, gather)
    knee        the hit rate at which fetch = layer
    early       layer + max(0, fetch - window): experts fetched on demand, known a window before they are needed

``gather`` is the all-gather of the next layer's dense shards over NVLink: another link, at the same time. Source:
SE-MoE (arXiv:2205.10034), section 3.1; the laws follow from two buffers, and ``ring`` plays them. Early: ScMoE
(arXiv:2404.05019), whose gate reads the layer before, so that a migration hides behind the dense part between.
"""

from moesim.cluster import Tier, Tiers
from moesim.errors import MoesimError


def transfer_s(size_bytes: float, tier: Tier, launches: float = 1.0) -> float:
    """Seconds of ``size_bytes`` in so many transfers."""
    return launches * tier.start_s + size_bytes / tier.bytes_per_s if size_bytes > 0 else 0.0


def fetch_s(size_bytes: float, hit: float, tiers: Tiers, launches: float = 1.0) -> float:
    """Seconds from where the bytes are to the GPU; ``hit`` of them are in CPU memory, the others on SSD."""
    if not 0 <= hit <= 1:
        raise MoesimError(f"hit rate {hit}: give 0 to 1")
    if hit < 1 and tiers.ssd is None:
        raise MoesimError(f"hit rate {hit} without an SSD: what is not in CPU memory must be somewhere; give 1")
    copied = transfer_s(size_bytes, tiers.cpu, launches)
    if hit == 1 or tiers.ssd is None:
        return copied
    return copied + transfer_s((1.0 - hit) * size_bytes, tiers.ssd, (1.0 - hit) * launches)


def steady_s(layer_s: float, fetch_s: float, gather_s: float, slots: int) -> float:
    """Seconds of a layer among equal ones."""
    if slots < 1:
        raise MoesimError(f"{slots} layer slots on the GPU: give at least 1")
    if slots == 1:
        return layer_s + max(fetch_s, gather_s)
    return max(layer_s, fetch_s, gather_s)


def early_s(layer_s: float, fetch_s: float, window_s: float) -> float:
    """Seconds of a layer whose chosen experts are fetched when the gate has spoken, ``window_s`` before they compute;
    0 where the gate stands in front of its experts: the fetch blocks."""
    return layer_s + max(0.0, fetch_s - window_s)


def knee(size_bytes: float, layer_s: float, tiers: Tiers, launches: float = 1.0) -> float | None:
    """The least hit rate at which a layer hides its fetch; None where it does not even from CPU memory."""
    room_s = layer_s - transfer_s(size_bytes, tiers.cpu, launches)
    if room_s < 0:
        return None
    if tiers.ssd is None:
        return 1.0
    return max(0.0, 1.0 - room_s / transfer_s(size_bytes, tiers.ssd, launches)) if size_bytes > 0 else 0.0
