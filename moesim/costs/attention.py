"""``moesim cost attention``."""

from dataclasses import dataclass
from typing import Literal

from moesim.compute import DTYPES, AttentionShape, attention
from moesim.costs.answer import Answer, mean
from moesim.costs.hardware import find_gpu, gpu_option
from moesim.costs.inputs import COUNT, one_of, option, settle, stated
from moesim.errors import MoesimError
from moesim.profile import load_profile


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCall:
    """The attention core of one layer; heads are those on this GPU."""

    gpu: str = gpu_option()
    kind: Literal["gqa", "mla"] = option(one_of(("gqa", "mla")), "gqa (also mha and mqa) or mla.", "gqa")
    phase: Literal["prefill", "decode"] = option(one_of(("prefill", "decode")), "prefill or decode.")
    heads: int = option(COUNT, "Query heads on this GPU.")
    kv_heads: int | None = option(COUNT, "Key and value heads on this GPU.  [default: gqa as --heads, mla 1]", None)
    head_dim: int = option(COUNT, "Dimensions of a query and a key; mla: without + with rotation (128 + 64).")
    v_head_dim: int | None = option(COUNT, "Dimensions of a value.  [default: gqa as --head-dim; mla: required]", None)
    latent_dim: int | None = option(COUNT, "mla only: cached values of a token (512 + 64).  [mla: required]", None)
    batch: int = option(COUNT, "Sequences.", 1)
    queries: int | None = option(COUNT, "New tokens of a sequence.  [default: prefill as --context, decode 1]", None)
    context: int = option(COUNT, "Tokens that a sequence attends to, the new ones among them.")
    window: int | None = option(COUNT, "Tokens that a query sees at most.  [default: all before it]", None)
    dtype: str = option(one_of(DTYPES), "Of queries and arithmetic.", "bf16")
    kv_dtype: str = option(one_of(DTYPES), "Of the cached keys and values.", "bf16")

    def __post_init__(self) -> None:
        settle(self)
        mla = self.kind == "mla"
        if mla and (self.v_head_dim is None or self.latent_dim is None):
            raise MoesimError("mla needs v_head_dim and latent_dim: give --v-head-dim and --latent-dim")
        if not mla and self.latent_dim is not None:
            raise MoesimError(f"latent_dim {self.latent_dim} means nothing to gqa: leave it out, or give mla")
        if mla and self.v_head_dim is not None and self.v_head_dim > self.head_dim:
            raise MoesimError(f"v_head_dim {self.v_head_dim} is above head_dim {self.head_dim}: exchange them")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise MoesimError(f"heads {self.heads} do not divide by kv_heads {self.kv_heads}: give a divisor")
        if self.queries is not None and self.queries > self.context:
            raise MoesimError(
                f"queries {self.queries} is above context {self.context}: context counts the new tokens too"
            )


def price_attention(asked: AttentionCall) -> Answer:
    """The attention core's seconds."""
    gpu = find_gpu(asked.gpu)
    mla = asked.kind == "mla"
    shape = AttentionShape(
        kind=asked.kind, phase=asked.phase, heads=asked.heads,
        kv_heads=asked.kv_heads or (1 if mla else asked.heads),
        head_dim=asked.head_dim, v_head_dim=asked.v_head_dim or asked.head_dim,
        latent_dim=asked.latent_dim or 0,
        batch=float(asked.batch), context=float(asked.context), window=asked.window,
        queries=float(asked.queries or (asked.context if asked.phase == "prefill" else 1)),
    )  # fmt: skip
    cost = attention(load_profile(gpu), shape, asked.dtype, asked.kv_dtype)
    understood = {
        "gpu": gpu.name, "kv_heads": shape.kv_heads, "v_head_dim": shape.v_head_dim,
        "queries": round(float(shape.queries)),
    }  # fmt: skip
    return Answer(mean(cost), stated(asked) | understood, {})
