"""What the states of training need of each memory: equation 1 of SE-MoE (arXiv:2205.10034).

    GPU   16 D + 4 a S / L     dense weights, gradients and Adam states; of the experts one layer, as it is used
    CPU   16 a S               the experts that are used now
    SSD   12 S                 master weights and moments of all experts

    D, S  dense and expert parameters    L  layers with experts    a  share of the experts' parameters that is active

Bytes over the whole cluster: 2 + 2 + 4 + 4 + 4 a parameter (16-bit weight and gradient, three fp32 states).
"""

from typing import Final, NamedTuple

from moesim.cluster import Tiers
from moesim.errors import MoesimError
from moesim.metrics import FULL
from moesim.model import Model, layer_parameters, mtp_parameters, parameters

STATE_BYTES: Final = 16.0
PASS_BYTES: Final = 4.0  # 16-bit weight and gradient
MASTER_BYTES: Final = 12.0  # fp32 weight and Adam's moments


class Needed(NamedTuple):
    """Bytes over all GPUs of the cluster."""

    gpu: float
    cpu: float
    ssd: float


def split_parameters(model: Model) -> tuple[int, int]:
    """Dense and expert parameters, those of MTP modules among them."""
    if model.weight_groups:
        raise MoesimError(f"model {model.name!r} shares weights across layers: moesim tiers prices those apart only")
    sparse = sum(count * layer_parameters(model, layer).experts for layer, count in model.layer_kinds())
    sparse += model.mtp_layers * layer_parameters(model, model.layers[-1]).experts
    return parameters(model) + mtp_parameters(model) - sparse, sparse


def needed(dense: float, sparse: float, moe_layers: int, active: float) -> Needed:
    """Equation 1."""
    if not 0 <= active <= 1:
        raise MoesimError(f"active share of the experts {active}: give 0 to 1")
    return Needed(
        gpu=STATE_BYTES * dense + PASS_BYTES * active * sparse / max(1, moe_layers),
        cpu=STATE_BYTES * active * sparse,
        ssd=MASTER_BYTES * sparse,
    )


def available(gpu_bytes: float, tiers: Tiers, gpus: int) -> Needed:
    """What the cluster has, in the same order; the GPU's allocator needs its share."""
    ssd = tiers.ssd.capacity_bytes if tiers.ssd else 0.0
    return Needed(gpu=FULL * gpu_bytes * gpus, cpu=tiers.cpu.capacity_bytes * gpus, ssd=ssd * gpus)


def why_not(wanted: Needed, there: Needed) -> str | None:
    """The first tier that is too small, or None."""
    for name, want, have in zip(("GPU memory", "CPU memory", "SSD"), wanted, there, strict=True):
        if want > have:
            return f"{name}: {want / 1e9:,.0f} GB needed, {have / 1e9:,.0f} GB there"
    return None
