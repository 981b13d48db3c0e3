"""What is computed: a transformer as a tuple of layers, each one attention and one feed-forward part.

    Model  =  embedding, layers, final norm, head
    Layer  =  Attention (gqa or mla; full, window or chunk) or Mamba  +  DenseFfn or Experts

A layer of a hybrid model may have one of the two parts alone.

Everything else (weights, FLOPs, bytes) is derived from these nouns in ``weights`` and ``work``.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from moesim.errors import MoesimError

DTYPES: Final = ("bf16", "fp8", "fp8_block", "int4", "mxfp4")


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
        _positive("attention", heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim)
        _positive("attention", v_head_dim=self.v_head_dim, window=self.window, chunk=self.chunk)
        if self.heads % self.kv_heads:
            raise MoesimError(
                f"{self.heads} attention heads do not divide over {self.kv_heads} key-value heads: "
                "make heads a multiple of kv_heads"
            )
        _positive("attention", experts=self.experts, top_k=self.top_k)
        if self.top_k > self.experts or self.heads % self.top_k or (self.experts > 1 and self.kind == "mla"):
            raise MoesimError(
                f"attention ({self.kind}) has {self.heads} heads, top_k {self.top_k} of {self.experts} experts: "
                "experts need gqa, and a top_k that divides heads and does not exceed them"
            )
        if self.window is not None and self.chunk is not None:
            raise MoesimError(f"attention has window {self.window} and chunk {self.chunk}: give one of them")
        if self.kind == "mla":
            _positive("attention (mla)", kv_lora_rank=self.kv_lora_rank, rope_head_dim=self.rope_head_dim)
            _positive("attention (mla)", q_lora_rank=self.q_lora_rank, nope_head_dim=self.nope_head_dim)

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
        _positive("mamba", heads=self.heads, head_dim=self.head_dim, state=self.state, groups=self.groups)
        _positive("mamba", conv=self.conv, chunk=self.chunk)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseFfn:
    """Feed-forward part that every token takes: gate, up, down; only up and down when not gated."""

    width: int
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        _positive("dense feed-forward", width=self.width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """Routed experts, ``top_k`` of them per token, and shared experts that every token takes."""

    experts: int
    top_k: int
    width: int  # of one expert
    gated: bool = True
    bias: bool = False  # on the expert's matrices (gpt-oss)
    output_bias: bool = False  # one on the sum of a token's experts (JetMoE)
    shared_width: int = 0  # of all shared experts together
    shared_gate: bool = False  # a learned scalar on the shared output (Qwen1.5/2-MoE)
    router_bias: bool = False  # on the router's matrix (gpt-oss)
    score_correction: bool = False  # e_score_correction_bias, one value per expert (DeepSeek-V3)
    groups: int = 1  # group-limited routing: a token chooses inside its best top_groups
    top_groups: int = 1
    travels_at: int = 0  # width of a token on its way: descended before, ascended after (BigMac); 0: the model's

    def __post_init__(self) -> None:
        _positive("experts", experts=self.experts, top_k=self.top_k, width=self.width)
        _positive("experts", groups=self.groups, top_groups=self.top_groups)
        if self.shared_width < 0 or self.travels_at < 0:
            raise MoesimError(
                f"experts have shared_width {self.shared_width}, travels_at {self.travels_at}: give 0 or more"
            )
        if self.experts % self.groups or self.top_groups > self.groups:
            raise MoesimError(
                f"{self.experts} experts in {self.groups} groups of which {self.top_groups} are chosen: "
                "groups must divide experts and top_groups must not exceed groups"
            )
        if self.top_k > self.top_groups * self.experts // self.groups:
            raise MoesimError(
                f"top_k {self.top_k} exceeds the {self.top_groups * self.experts // self.groups} experts "
                "a token may choose from: lower top_k"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer: attention or Mamba, and a feed-forward part, each with a norm before and a sum after it."""

    attention: Attention | None = None
    mamba: Mamba | None = None
    ffn: DenseFfn | Experts | None = None

    def __post_init__(self) -> None:
        if self.attention and self.mamba:
            raise MoesimError("a layer has both attention and mamba: make two layers of it")
        if not (self.attention or self.mamba or self.ffn):
            raise MoesimError("a layer is empty: give it attention, mamba or ffn")

    def __hash__(self) -> int:
        """Shallow, as Model's is; layers of one model differ in what is hashed here."""
        a, m, f = self.attention, self.mamba, self.ffn
        return hash((a and (a.heads, a.window, a.chunk), m and m.heads, f and f.width))

    @property
    def mixer(self) -> Literal["attention", "mamba", "norm"]:
        """What tokens meet before the feed-forward part: "norm" where there is nothing else."""
        return "attention" if self.attention else "mamba" if self.mamba else "norm"

    @property
    def blocks(self) -> int:
        """Parts that have a norm and a sum: one or two."""
        return (self.mixer != "norm") + (self.ffn is not None)

    @property
    def latent(self) -> bool:
        """Whether queries, keys and values are projected up from latent vectors."""
        return self.attention is not None and self.attention.kind == "mla"

    @property
    def is_moe(self) -> bool:
        return isinstance(self.ffn, Experts)


class LayerKind(NamedTuple):
    """A distinct layer and how often the model has it."""

    layer: Layer
    times: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The publisher's own figures as printed (rounded or cut off), and what they count."""

    total: str  # "46.7B"
    active: str
    active_embedding: bool  # whether the active figure counts the input embedding
    outside_text: int = 0  # parameters that the total counts outside the text model (vision)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A decoder-only transformer (the text part of a multimodal one)."""

    name: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    tied_embeddings: bool = False
    norm_bias: bool = False
    head_bias: bool = False
    weight_groups: tuple[int, ...] = ()  # of each layer: those of one group share weights (``sharing``); (): none do
    mtp_layers: int = 0  # multi-token-prediction modules beside the main model
    dtype: str = "bf16"  # of the checkpoint's matrices; 16- and 32-bit floats all count as bf16
    expert_dtype: str = "bf16"  # of its routed experts
    source: str
    published: Published | None = None

    def __post_init__(self) -> None:
        _positive(f"model {self.name!r}", hidden=self.hidden, vocab=self.vocab, layers=len(self.layers))
        if self.mtp_layers < 0:
            raise MoesimError(f"model {self.name!r} has mtp_layers {self.mtp_layers}: give 0 or more")
        if self.weight_groups and len(self.weight_groups) != len(self.layers):
            raise MoesimError(
                f"model {self.name!r} has {len(self.weight_groups)} weight_groups for {len(self.layers)} layers: "
                "give one for each layer, or none"
            )
        if len(set(zip(self.weight_groups, self.layers, strict=False))) > len(set(self.weight_groups)):
            raise MoesimError(f"model {self.name!r} shares weights between unlike layers: give those a group each")
        for dtype in (self.dtype, self.expert_dtype):
            if dtype not in DTYPES:
                raise MoesimError(f"model {self.name!r} has dtype {dtype!r}: choose from {', '.join(DTYPES)}")

    def __hash__(self) -> int:
        """Shallow, because caches look models up thousands of times; equality still compares all fields."""
        return hash((self.name, self.hidden, self.vocab, len(self.layers)))

    @property
    def moe(self) -> Experts | None:
        """The experts of the first MoE layer; None for a dense model."""
        return next((kind.layer.ffn for kind in self.layer_kinds() if isinstance(kind.layer.ffn, Experts)), None)

    @property
    def moe_layers(self) -> int:
        """How many layers have routed experts."""
        return sum(layer.is_moe for layer in self.layers)

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Distinct layers with their counts, in order of first appearance."""
        return _layer_kinds(self)


@lru_cache(maxsize=256)
def _layer_kinds(model: Model) -> tuple[LayerKind, ...]:
    return tuple(LayerKind(layer, count) for layer, count in Counter(model.layers).items())


def _positive(what: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise MoesimError(f"{what} has {name} {value}: give 1 or more")
