"""What a layer keeps for its backward pass, and what it drops and computes again.

    part            drops                                        computes again             Megatron-Core
    norms           outputs of the two norms                     the norms                  layernorm
    core            the softmax's sums of the attention core     the core                   core_attn
    mla_up          what mla projects up from its latents        the up-projections         mla_up_proj
    activations     activations; with them experts' outputs      the activations            moe_act
    mlp             what a dense feed-forward part keeps         that part                  mlp
    shared_experts  what the shared experts keep                 the shared experts         shared_experts
    moe             what the experts keep, shared ones too       router, dispatch, experts, moe
                                                                 combine, shared experts

Any set of parts, joined by "+"; "selective" is norms+mla_up+activations, "full" keeps the layer's input alone
and computes the whole layer again. Experts' outputs are not needed where the router's weights are applied before
the last matrix, as Megatron-Core does with moe_act. The core never keeps its scores (flash attention): its part
gains two values a head. Blocks computed again (mlp, shared_experts, moe) communicate again.

Values per token of one layer, 2 bytes each (arXiv:2205.05198 section 4.1):

    attention     input, norm, mla's latents, queries, keys, values, output of the core, sums of the softmax; of its
                  experts as below
    mamba         input, norm, what is projected, outputs of scan and gated norm; convolution and states are computed
                  again by its kernels (mamba_ssm, ops/triton/ssd_combined.py)
    feed-forward  input, norm, gate, up, activation; per routed copy also its expert input and output, which each
                  of the etp ranks holds for all of them

In fp8, what only the GEMM of a weight's gradient reads again is kept as that reads it, in one byte: norms, latents,
activation, expert input, and a second copy of the core's output (Transformer Engine keeps the quantized input of
each matrix). fp8_block is DeepSeek-V3's recipe (arXiv:2412.19437 section 3.3.3): one copy of the core's output, in
12 bits (E5M6), because the core reads it too; where activations are computed again, gate and up in fp8.
"""

from functools import lru_cache
from typing import Final, NamedTuple

from moesim.compute import KEPT_MASKS
from moesim.errors import MoesimError
from moesim.model import Attention, Experts, Layer, Mamba, Model, row_width

PARTS: Final = ("norms", "core", "mla_up", "activations", "mlp", "shared_experts", "moe")
SELECTIVE: Final = frozenset({"norms", "mla_up", "activations"})
INSIDE: Final = frozenset({"norms", "core", "mla_up", "activations"})  # one op before the backward pass
# Of the 2 bytes of a value: the input of a matrix, the core's output with its copies, gate and up without activation.
INPUT: Final = {"fp8": 0.5, "fp8_block": 0.5}
CORE_OUTPUT: Final = {"fp8": 1.5, "fp8_block": 0.75}
CORE_INPUT: Final = {"fp8": 0.5, "fp8_block": 0.75}  # the core's output as its projection reads it
BEFORE_ACTIVATION: Final = {"fp8_block": 0.5}
SOFTMAX_SUMS: Final = 2.0  # values per head: one fp32 number


class Keeping(NamedTuple):
    """What decides how much of a layer is kept for its backward pass."""

    etp: int
    recompute: str
    imbalance: float
    dtype: str  # of the matrices
    masked: float = 0.0  # tokens whose slots a token's row of a dense einsum's masks has; 0: no masks


def canonical(text: str) -> str:
    """The one way to write a choice: parts in the order of ``PARTS``, each once; "selective" where these are it."""
    if text in ("none", "selective", "full"):
        return text
    chosen: set[str] = set()
    for name in text.split("+"):
        if name != "selective" and name not in PARTS:
            known = "none, selective, full, or parts joined by + of " + ", ".join(PARTS)
            raise MoesimError(f"unknown strategy recompute {text!r}: choose from {known}")
        chosen |= SELECTIVE if name == "selective" else {name}
    return "selective" if chosen == SELECTIVE else "+".join(part for part in PARTS if part in chosen)


@lru_cache(maxsize=1024)
def parts(recompute: str) -> frozenset[str]:
    """The parts of a canonical choice. Full recompute has none: its layers are computed again as a whole."""
    if recompute in ("none", "full"):
        return frozenset()
    return SELECTIVE if recompute == "selective" else frozenset(recompute.split("+"))


@lru_cache(maxsize=8192)
def kept_values(model: Model, layer: Layer, keeping: Keeping) -> float:
    """Values per token that one layer keeps for its backward pass."""
    if keeping.recompute == "full":
        return float(model.hidden)
    inputs = float(layer.blocks * model.hidden)
    norms = inputs * INPUT.get(keeping.dtype, 1.0) * ("norms" not in parts(keeping.recompute))
    mixer = _attention(layer.attention, model.hidden, keeping) if layer.attention else 0.0
    mixer += _mamba(layer.mamba, keeping) if layer.mamba else 0.0
    return inputs + norms + mixer + _feed_forward(model, layer, keeping)


def _mamba(m: Mamba, keeping: Keeping) -> float:
    """Between the norm and the sum with the block's input."""
    return m.projected + m.inner * (1.0 + INPUT.get(keeping.dtype, 1.0))


def _attention(a: Attention, hidden: int, keeping: Keeping) -> float:
    """Between the norm and the sum with the block's input."""
    gone, share = parts(keeping.recompute), INPUT.get(keeping.dtype, 1.0)
    kept = a.top_k * (a.experts > 1) * (share + ("activations" not in gone)) * hidden
    kept += CORE_OUTPUT.get(keeping.dtype, 1.0) * a.heads * a.v_head_dim
    kept += SOFTMAX_SUMS * a.heads * ("core" not in gone)
    heads = float(a.heads * a.head_dim + a.kv_heads * (a.head_dim + a.v_head_dim))
    if a.kind != "mla":
        return kept + heads
    direct = 0 if a.q_lora_rank else a.heads * a.head_dim  # queries that come from no latent vector
    return kept + share * ((a.q_lora_rank or 0) + a.cached_values) + (direct if "mla_up" in gone else heads)


def _feed_forward(model: Model, layer: Layer, keeping: Keeping) -> float:
    """Between the norm and the sum with the block's input."""
    ffn, gone, share = layer.ffn, parts(keeping.recompute), INPUT.get(keeping.dtype, 1.0)
    activations = "activations" not in gone
    if ffn is None:
        return 0.0
    if not isinstance(ffn, Experts):
        return ffn.width * (1 + ffn.gated + share * activations) * ("mlp" not in gone)
    if "moe" in gone:
        return 0.0
    before = 1.0 if activations else BEFORE_ACTIVATION.get(keeping.dtype, 1.0)
    inner = (1 + ffn.gated) * before + share * activations  # per value of the width
    row = keeping.etp * row_width(model, layer)
    copy = row * (share + activations) + ffn.width * inner + KEPT_MASKS * keeping.masked
    shared = ffn.shared_width * inner * ("shared_experts" not in gone)
    return shared + ffn.top_k * copy * keeping.imbalance


@lru_cache(maxsize=8192)
def owed_values(model: Model, layer: Layer, keeping: Keeping) -> float:
    """Values per token that wait for the gradients of weights alone: what those GEMMs read, which is the input of
    each matrix (computed again or not) and the gradient of its output, in the format in which they read it."""
    share, ffn = INPUT.get(keeping.dtype, 1.0), _owed_feed_forward(model, layer, keeping)
    mixer = _owed_attention(layer.attention, model.hidden, keeping) if layer.attention else 0.0
    if layer.mamba:  # input of the second matrix, gradients of the outputs of both
        mixer = share * (layer.mamba.inner + layer.mamba.projected + model.hidden)
    return share * layer.blocks * model.hidden + mixer + share * ffn


def _owed_attention(a: Attention, hidden: int, keeping: Keeping) -> float:
    """Of them, attention's without its norm."""
    share = INPUT.get(keeping.dtype, 1.0)
    core = CORE_INPUT.get(keeping.dtype, 1.0) * a.heads * a.v_head_dim
    heads = float(a.heads * a.head_dim)
    if a.kind == "mla":  # latents are outputs of one matrix and inputs of the next
        heads += 2 * ((a.q_lora_rank or 0) + a.cached_values) + a.heads * (a.nope_head_dim + a.v_head_dim)
    else:
        heads += a.kv_heads * (a.head_dim + a.v_head_dim)
    return core + share * (heads + hidden)  # the gradient of the output projection


def _owed_feed_forward(model: Model, layer: Layer, keeping: Keeping) -> float:
    """Of them, the feed-forward part's without its norm, in values as wide as an input."""
    ffn = layer.ffn
    if ffn is None:
        return 0.0
    if not isinstance(ffn, Experts):
        return float(ffn.width * (2 + ffn.gated) + model.hidden)
    copy = 2 * keeping.etp * row_width(model, layer) + ffn.width * (2 + ffn.gated)
    shared = ffn.shared_width * (2 + ffn.gated) + model.hidden * (ffn.shared_width > 0)
    return shared + ffn.top_k * copy * keeping.imbalance


@lru_cache(maxsize=8192)
def alive_values(model: Model, layer: Layer, keeping: Keeping) -> float:
    """Values per token beside what was kept while the layer's backward pass runs: all that was dropped of it, and
    the gradients of its widest step, which are what leaves and what enters a matrix, and of the residual stream."""
    a, m, ffn = layer.attention, layer.mamba, layer.ffn
    dropped = kept_values(model, layer, keeping._replace(recompute="none")) - kept_values(model, layer, keeping)
    steps = [0.0]
    if a:
        steps.append(float(model.hidden + a.heads * a.head_dim + a.kv_heads * (a.head_dim + a.v_head_dim)))
    if m:  # the convolution again and its gradient; states of the chunks and their gradients, in fp32
        steps.append(2.0 * m.channels + 4.0 * m.inner * m.state / m.chunk)
    if isinstance(ffn, Experts):
        row = keeping.etp * row_width(model, layer)
        steps.append(ffn.top_k * keeping.imbalance * (row + ffn.width * (1 + ffn.gated)))
    elif ffn:
        steps.append(float(model.hidden + ffn.width * (1 + ffn.gated)))
    return dropped + model.hidden + max(steps)
