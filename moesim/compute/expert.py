"""Seconds of an expert layer from the tokens of each local expert.

    tokens[..., local expert] -> active experts, work of the others, largest load -> seconds, band, bound

``expert_parts`` has the closed form and the fitted family, ``expert_curve`` its table for one shape.
"""

from typing import Final

import numpy as np

from moesim.compute.common import Source, banded, check_dtype, limit, outside, peak_flops
from moesim.compute.expert_curve import Curve, build_curve
from moesim.compute.expert_parts import Shape, choose_source, fitted, tau_s, tokens_reach
from moesim.cost import Cost, FloatArray
from moesim.errors import MoesimError
from moesim.profile import Profile

COVERS: Final = ("permute", "gate_up", "activation", "down", "unpermute")  # what the seconds include


def expert_ffn(
    profile: Profile, tokens: FloatArray, hidden: int, ffn: int, dtype: str, *,
    top_k: int, gated: bool = True, kernel: str | None = None,
) -> Cost:  # fmt: skip
    """Seconds of one rank's fused expert layer: all of COVERS, no communication.

    ``tokens[..., local expert]`` may be expectations (fractions); ``ffn`` is the width on this rank. A rank
    without tokens costs nothing. ``top_k`` bounds what a rank can be asked: it must be at least 1.
    """
    check_dtype(dtype)
    load = np.asarray(tokens, dtype=np.float64)
    if load.ndim == 0 or load.shape[-1] == 0:
        raise MoesimError("expert_ffn tokens: give one number per local expert")
    if not (load >= 0.0).all():
        raise MoesimError("expert_ffn tokens: a load is negative or not a number; give tokens per local expert")
    if top_k < 1 or hidden < 1 or ffn < 1:
        raise MoesimError(f"expert_ffn top_k={top_k} hidden={hidden} ffn={ffn}: give at least 1 of each")
    shape = Shape(hidden=hidden, ffn=ffn, gated=gated, dtype=dtype, local=load.shape[-1])
    source, curve = _curve(profile, shape, kernel)
    most = load.max(axis=-1)
    problem = outside(
        "expert_ffn tokens of one expert",
        most,
        0.0,
        tokens_reach(source),
        f"{source.measured.gpu.name} {source.kernel}",
    )
    if problem is not None:
        raise problem
    copies = load.sum(axis=-1)
    active = np.minimum(load, 1.0).sum(axis=-1)
    extra_s = tau_s(profile.gpu, shape, load).sum(axis=-1) - active * curve.first_s
    largest_s = tau_s(profile.gpu, shape, np.maximum(most, 1.0)) - curve.first_s
    seconds, half_width = curve.at(active, np.maximum(extra_s - largest_s, 0.0), most)
    compute_s = copies * (shape.flops_per_token / peak_flops(profile.gpu, dtype))
    memory_s = active * (shape.weight_bytes / profile.gpu.memory_bytes_per_s)
    seconds = np.where(copies > 0.0, seconds, 0.0)
    return banded(seconds, half_width, np.maximum(compute_s, memory_s), limit(compute_s, memory_s, seconds), source)


def _curve(profile: Profile, shape: Shape, kernel: str | None) -> tuple[Source, Curve]:
    key = ("expert_curve", shape, kernel)
    if key not in profile.memo:
        source = choose_source(profile, shape.dtype, kernel, shape.hidden, shape.ffn)
        profile.memo[key] = source, build_curve(profile.gpu, shape, fitted(profile, source))
    found: tuple[Source, Curve] = profile.memo[key]
    return found
