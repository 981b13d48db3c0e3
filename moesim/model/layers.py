"""What is computed: a transformer as a tuple of layers, each one attention and one feed-forward part.

    Model  =  embedding, layers, final norm, head
    Layer  =  Attention (gqa or mla; full, window or chunk) or Mamba  +  DenseFfn or Experts

A layer of a hybrid model may have one of the two parts alone.

Everything else (weights, FLOPs, bytes) is derived from these nouns in ``weights`` and ``work``.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from moesim.errors import MoesimError
from moesim.model.mixers import Attention, Mamba, positive

DTYPES: Final = ("bf16", "fp8", "fp8_block", "int4", "mxfp4")
MOST_MTP: Final = 7  # eight tokens ahead: the most that arXiv:2404.19737 tries (section 3.2)


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseFfn:
    """Feed-forward part that every token takes: gate, up, down; only up and down when not gated."""

    width: int
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        positive("dense feed-forward", width=self.width)


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
        positive("experts", experts=self.experts, top_k=self.top_k, width=self.width)
        positive("experts", groups=self.groups, top_groups=self.top_groups)
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
    mtp_layers: int = 0  # multi-token-prediction modules behind the main model: what training adds, serving leaves out
    dtype: str = "bf16"  # of the checkpoint's matrices; 16- and 32-bit floats all count as bf16
    expert_dtype: str = "bf16"  # of its routed experts
    source: str
    published: Published | None = None

    def __post_init__(self) -> None:
        positive(f"model {self.name!r}", hidden=self.hidden, vocab=self.vocab, layers=len(self.layers))
        if self.mtp_layers < 0:
            raise MoesimError(f"model {self.name!r} has mtp_layers {self.mtp_layers}: give 0 or more")
        if self.mtp_layers and self.layers[-1].blocks < 2:
            raise MoesimError(
                f"model {self.name!r} has mtp_layers {self.mtp_layers} after a layer of one block: give 0, moesim has "
                "MTP modules of attention and a feed-forward part only"
            )
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
        return hash((self.name, self.hidden, self.vocab, len(self.layers), self.mtp_layers))

    @property
    def moe(self) -> Experts | None:
        """The experts of the first MoE layer; None for a dense model."""
        return next((kind.layer.ffn for kind in self.layer_kinds() if isinstance(kind.layer.ffn, Experts)), None)

    @property
    def moe_layers(self) -> int:
        """How many layers have routed experts."""
        return sum(layer.is_moe for layer in self.layers)

    def layer(self, number: int) -> Layer:
        """A layer by its number; those behind the last are of its kind, in MTP modules."""
        return self.layers[min(number, len(self.layers) - 1)]

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Distinct layers with their counts, in order of first appearance."""
        return _layer_kinds(self)


@lru_cache(maxsize=64)
def with_mtp(model: Model, depths: int) -> Model:
    """The model with another number of multi-token-prediction modules."""
    if not 0 <= depths <= MOST_MTP:
        raise MoesimError(f"{depths} multi-token-prediction modules: give 0 to {MOST_MTP}")
    return model if depths == model.mtp_layers else replace(model, mtp_layers=depths)


@lru_cache(maxsize=256)
def _layer_kinds(model: Model) -> tuple[LayerKind, ...]:
    return tuple(LayerKind(layer, count) for layer, count in Counter(model.layers).items())
