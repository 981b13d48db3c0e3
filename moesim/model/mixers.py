"""What lets the tokens of a sequence see each other: attention, or Mamba."""

from dataclasses import dataclass
from typing import Literal

from moesim.errors import MoesimError


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Attention of one layer. ``gqa`` covers MHA (kv_heads = heads) and MQA (kv_heads = 1).

    ``mla`` is DeepSeek's latent attention (arXiv:2405.04434 section 2.1): head_dim is the part without
    position plus ``rope_head_dim``, and a token leaves kv_lora_rank + rope_head_dim values behind.
    A query sees itself and what precedes it: all of it, the last ``window`` tokens, or its own ``chunk``.

    Mixture of attention heads (JetMoE, arXiv:2404.07413): every expert has queries and output of its own,
    keys and values are common to all, so the cache is that of ``kv_heads``; ``heads`` are those that a token uses.
    """

    kind: Literal["gqa", "mla"] = "gqa"
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys
    v_head_dim: int
    window: int | None = None
    chunk: int | None = None
    q_lora_rank: int | None = None  # mla: None when queries are projected in one step
    kv_lora_rank: int = 0  # mla
    rope_head_dim: int = 0  # mla
    qkv_bias: bool = False  # mla: on the down projections
    output_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"  # weights per head_dim, or per whole projection
    sinks: bool = False  # one learned logit per head (gpt-oss)
    experts: int = 1  # of heads / top_k query heads each, of which a token uses top_k
    top_k: int = 1

    def __post_init__(self) -> None:
        positive("attention", heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim)
        positive("attention", v_head_dim=self.v_head_dim, window=self.window, chunk=self.chunk)
        if self.heads % self.kv_heads:
            raise MoesimError(
                f"{self.heads} attention heads do not divide over {self.kv_heads} key-value heads: "
                "make heads a multiple of kv_heads"
            )
        positive("attention", experts=self.experts, top_k=self.top_k)
        if self.top_k > self.experts or self.heads % self.top_k or (self.experts > 1 and self.kind == "mla"):
            raise MoesimError(
                f"attention ({self.kind}) has {self.heads} heads, top_k {self.top_k} of {self.experts} experts: "
                "experts need gqa, and a top_k that divides heads and does not exceed them"
            )
        if self.window is not None and self.chunk is not None:
            raise MoesimError(f"attention has window {self.window} and chunk {self.chunk}: give one of them")
        if self.kind == "mla":
            positive("attention (mla)", kv_lora_rank=self.kv_lora_rank, rope_head_dim=self.rope_head_dim)
            positive("attention (mla)", q_lora_rank=self.q_lora_rank, nope_head_dim=self.nope_head_dim)

    @property
    def nope_head_dim(self) -> int:
        """Query and key values per head without position (all of them outside mla)."""
        return self.head_dim - self.rope_head_dim

    @property
    def cached_values(self) -> int:
        """Values one token leaves in the KV cache of this layer."""
        if self.kind == "mla":
            return self.kv_lora_rank + self.rope_head_dim
        return self.kv_heads * (self.head_dim + self.v_head_dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mamba:
    """Mamba-2 (arXiv:2405.21060): every head carries a state H [head_dim, state] from token to token.

    z, x, B, C, dt = W_in u;   x, B, C = silu(conv(x, B, C));   H = exp(A dt) H + dt x B^T;   y = C H + D x
    out = W_out (norm(y) silu(z)), the norm by group

    B and C are shared by the heads of a group. The recurrence is computed ``chunk`` tokens at a time.
    """

    heads: int
    head_dim: int
    state: int
    groups: int = 1
    conv: int = 4  # tokens that the convolution sees
    chunk: int = 128
    conv_bias: bool = True
    bias: bool = False  # on both projections

    def __post_init__(self) -> None:
        positive("mamba", heads=self.heads, head_dim=self.head_dim, state=self.state, groups=self.groups)
        positive("mamba", conv=self.conv, chunk=self.chunk)
        if self.heads % self.groups:
            raise MoesimError(
                f"{self.heads} mamba heads do not divide over {self.groups} groups: make heads a multiple of groups"
            )

    @property
    def inner(self) -> int:
        """Values of a token inside: x, z and y are this wide."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """What the convolution runs over: x, B and C."""
        return self.inner + 2 * self.groups * self.state

    @property
    def projected(self) -> int:
        """Outputs of the first matrix: z, the channels, and one step dt for each head."""
        return self.inner + self.channels + self.heads

    @property
    def carried(self) -> int:
        """Values that a sequence leaves behind, however long: the states, and the inputs that the convolution
        sees again."""
        return self.inner * self.state + (self.conv - 1) * self.channels


def positive(what: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise MoesimError(f"{what} has {name} {value}: give 1 or more")
