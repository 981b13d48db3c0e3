"""Reading a model: a preset's name, or a Hugging Face config.json or its folder.

    keys  -->  Attention per layer  +  DenseFfn or Experts per layer  -->  Model      (Nemotron-H: ``hybrid``)

Sizes come from the usual keys, whatever the family. What a checkpoint holds but its config does not say
(biases, norms on queries and keys, sinks) stands in ``families``; one not listed there reads like Llama,
and its ``source`` says so.
"""

import dataclasses
from pathlib import Path
from typing import Any, Final, Literal

from moesim.errors import MoesimError, choice
from moesim.model.config import Config, read_config
from moesim.model.families import FAMILIES, Family
from moesim.model.hybrid import hybrid_layers
from moesim.model.layers import DenseFfn, Experts, Layer, Model
from moesim.model.mixers import Attention
from moesim.model.presets import MODELS
from moesim.model.sharing import shared_layers

_EXPERT_KEYS: Final = (  # of no consequence where no layer has experts
    *("moe_intermediate_size", "num_experts_per_tok", "experts_per_token", "n_group", "topk_group"),
    *("n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size"),
    "moe_shared_expert_intermediate_size",
)


def load_model(name_or_path: str) -> Model:
    """The preset of that name, or the model that a config.json (or its folder) describes."""
    if name_or_path in MODELS:
        return MODELS[name_or_path]
    path = Path(name_or_path)
    if path.exists() or path.suffix == ".json" or "/" in name_or_path:
        return model_from_config(read_config(path), _name(path))
    raise choice("model", name_or_path, list(MODELS))


def model_from_config(config: Config, name: str) -> Model:
    """Every layer from the config's keys; refuses what is left over and looks structural."""
    model_type = config.text("model_type")
    family = FAMILIES.get(model_type, Family())
    known = model_type in FAMILIES
    config.ignore(*family.unused)
    for key in ("hidden_act", "activation_function"):
        if config.text(key, "silu") not in ("silu", "swish", "swiglu"):
            raise config.wrong(key, "moesim reads gated feed-forward parts with silu")
    if not config.flag("glu", True):
        raise config.wrong("glu", "moesim reads gated feed-forward parts with silu")
    dtype, expert_dtype = _dtypes(config)
    layers = _layers(config, family)
    times, groups = shared_layers(config, len(layers))
    tied = config.flag("tie_word_embeddings", *((family.tied,) if known else ()))
    model = Model(
        name=name,
        hidden=config.integer("hidden_size"),
        vocab=config.integer("vocab_size"),
        layers=tuple(layer for layer in layers for _ in range(times)),
        weight_groups=groups,
        tied_embeddings=config.flag("share_embedding", False) or tied,
        norm_bias=family.norm_bias,
        head_bias=config.flag("lm_head_bias", False),
        mtp_layers=config.integer("num_nextn_predict_layers", default=0),
        dtype=dtype,
        expert_dtype=expert_dtype,
        source=config.where if known else f"{config.where} (model_type {model_type!r} read like llama)",
    )
    config.refuse_unread()
    return model


def _name(path: Path) -> str:
    """The folder for a plain config.json, else the file without its ending."""
    if path.is_dir() or path.name == "config.json":
        return (path if path.is_dir() else path.parent).resolve().name
    return path.stem.removesuffix("_config")


def _layers(config: Config, family: Family) -> tuple[Layer, ...]:
    if family.hybrid:
        count = config.integer("n_routed_experts", default=0)
        config.ignore(*(() if count else _EXPERT_KEYS))
        return hybrid_layers(config, _gqa(config, family), _experts(config, family, count, None) if count else None)
    attentions = _attentions(config, family)
    feed_forwards = _feed_forwards(config, family, len(attentions))
    return tuple(Layer(attention=a, ffn=f) for a, f in zip(attentions, feed_forwards, strict=True))


def _attentions(config: Config, family: Family) -> list[Attention]:
    """One per layer: a common shape, with the window or chunk of each."""
    layers = config.integer("num_hidden_layers", "num_layers")
    if layers < 1:
        raise config.wrong("num_hidden_layers", "give 1 or more")
    shape = (_mla if config.has("kv_lora_rank") else _gqa)(config, family)
    variants = {
        "full_attention": shape,
        "sliding_attention": dataclasses.replace(shape, window=_window(config)),
        "chunked_attention": dataclasses.replace(shape, chunk=config.integer("attention_chunk_size", default=None)),
    }
    kinds = _attention_kinds(config, layers, variants)
    return [variants[kind] for kind in kinds]


def _gqa(config: Config, family: Family) -> Attention:
    experts, top_k = _chosen(config) if family.attention_experts else (1, 1)
    kv_heads = config.integer("num_key_value_heads", default=None)
    heads = top_k * kv_heads if family.attention_experts and kv_heads else config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", "kv_channels", default=None)
    if head_dim is None:
        hidden = config.integer("hidden_size")
        if heads < 1 or hidden % heads:
            raise config.wrong("num_attention_heads", f"add head_dim, or divide hidden_size {hidden} evenly")
        head_dim = hidden // heads
    bias = config.flag("attention_bias", False)
    return Attention(
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        v_head_dim=config.integer("v_head_dim", default=head_dim),
        qkv_bias=_said(family.qkv_bias, config.flag("qkv_bias", bias)),
        output_bias=_said(family.output_bias, config.flag("bias", True) if family.attention_experts else bias),
        qk_norm=_qk_norm(config, family),
        sinks=family.sinks,
        experts=experts,
        top_k=top_k,
    )


def _chosen(config: Config) -> tuple[int, int]:
    """How many experts there are, and how many of them a token uses."""
    count = config.integer("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", default=0)
    return count, config.integer("num_experts_per_tok", "experts_per_token", "moe_top_k") if count else 1


def _mla(config: Config, family: Family) -> Attention:
    config.ignore("head_dim", "qk_head_dim", "num_key_value_heads")
    heads, rope = config.integer("num_attention_heads"), config.integer("qk_rope_head_dim")
    bias = config.flag("attention_bias", False)
    return Attention(
        kind="mla",
        heads=heads,
        kv_heads=heads,
        head_dim=config.integer("qk_nope_head_dim") + rope,
        v_head_dim=config.integer("v_head_dim"),
        q_lora_rank=config.integer("q_lora_rank", default=None),
        kv_lora_rank=config.integer("kv_lora_rank"),
        rope_head_dim=rope,
        qkv_bias=bias,
        output_bias=bias,
    )


def _said(family: bool | None, config: bool) -> bool:
    return config if family is None else family


def _qk_norm(config: Config, family: Family) -> Literal["none", "head", "full"]:
    """Norms on queries and keys: what the family always has, else what use_qk_norm and its type say."""
    used = config.flag("use_qk_norm", False)
    kind = config.text("qk_norm_type", "per_head")
    if family.qk_norm is not None:
        return family.qk_norm
    if kind not in ("per_head", "per_layer"):
        raise config.wrong("qk_norm_type", "moesim knows per_head and per_layer")
    if not used:
        return "none"
    return "full" if kind == "per_layer" else "head"


def _window(config: Config) -> int | None:
    """The sliding window; None where it is off or reaches over the longest context."""
    window: int | None = config.integer("sliding_window", default=None)
    if not config.flag("use_sliding_window", True) or window is None:
        return None
    longest = config.integer("max_position_embeddings", default=None)
    return None if longest is not None and window >= longest else window


def _attention_kinds(config: Config, layers: int, variants: dict[str, Attention]) -> list[str]:
    """What each layer sees, from whichever key says it."""
    types = config.list_of("layer_types", str, layers)
    positioned = config.list_of("no_rope_layers", int, layers)
    every = config.integer("no_rope_layer_interval", default=4)
    if every < 1:
        raise config.wrong("no_rope_layer_interval", "give 1 or more")
    old = config.list_of("attn_type_list", int, layers)
    if any(kind != 1 for kind in old):
        raise config.wrong("attn_type_list", "0 is linear attention, which moesim does not model yet")
    if types:
        return _checked(config, types)
    if variants["chunked_attention"].chunk is not None:
        positioned = positioned or [(i + 1) % every for i in range(layers)]
        return ["chunked_attention" if rope else "full_attention" for rope in positioned]
    if variants["sliding_attention"].window is None:
        return ["full_attention"] * layers
    full = config.integer("max_window_layers", default=0) if config.has("use_sliding_window") else 0
    return ["full_attention" if i < full else "sliding_attention" for i in range(layers)]


def _checked(config: Config, types: list[str]) -> list[str]:
    """``layer_types`` as given, if each is known and the size it needs is there."""
    needs = {
        "full_attention": "num_hidden_layers",
        "sliding_attention": "sliding_window",
        "chunked_attention": "attention_chunk_size",
    }
    for kind in dict.fromkeys(types):
        if kind not in needs:
            raise MoesimError(f"{config.where}: key 'layer_types' has {kind!r}: moesim models {', '.join(needs)}")
        if not config.has(needs[kind]):
            raise MoesimError(f"{config.where}: missing key {needs[kind]!r}: layer_types has {kind!r}, so add it")
    return types


def _feed_forwards(config: Config, family: Family, layers: int) -> list[DenseFfn | Experts]:
    """One per layer: experts on the MoE layers, dense elsewhere."""
    width = config.integer("intermediate_size", "ffn_hidden_size", default=None)
    dense_width = config.integer("intermediate_size_mlp", default=width)
    bias = config.flag("mlp_bias", False)
    count = _chosen(config)[0]
    sparse = [moe and count > 0 for moe in _moe_layers(config, layers)]
    dense = experts = None
    if not all(sparse):
        if dense_width is None:
            raise MoesimError(f"{config.where}: missing key 'intermediate_size': add it")
        dense = DenseFfn(width=dense_width, bias=bias)
    if not any(sparse):
        config.ignore(*_EXPERT_KEYS)
    else:
        experts = _experts(config, family, count, width)
    return [part for moe in sparse if (part := experts if moe else dense) is not None]


def _experts(config: Config, family: Family, count: int, width: int | None) -> Experts:
    expert_width = config.integer("moe_intermediate_size", default=width)
    if expert_width is None:
        raise MoesimError(f"{config.where}: missing key 'moe_intermediate_size': add it")
    shared_width = config.integer(
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        "moe_shared_expert_intermediate_size",
        default=config.integer("n_shared_experts", "num_shared_experts", default=0) * expert_width,
    )
    if config.has("intermediate_size_mlp"):  # Llama 4: one shared expert beside the routed ones
        shared_width = expert_width
    routing_bias = config.flag("use_routing_bias", False)
    corrected = routing_bias or config.values.get("topk_method") == "noaux_tc"
    return Experts(
        experts=count,
        top_k=_chosen(config)[1],
        width=expert_width,
        bias=family.expert_bias,
        output_bias=family.attention_experts and config.flag("bias", True),
        shared_width=shared_width,
        shared_gate=family.shared_gate and shared_width > 0,
        router_bias=family.expert_bias,
        score_correction=_said(family.score_correction, corrected),
        groups=config.integer("n_group", default=1),
        top_groups=config.integer("topk_group", default=1),
    )


def _moe_layers(config: Config, layers: int) -> list[bool]:
    """Which layers have experts: all, but for what these keys say."""
    first = config.integer("first_k_dense_replace", default=0)
    step = config.integer("decoder_sparse_step", "interleave_moe_layer_step", default=1)
    dense = set(config.list_of("mlp_only_layers", int))
    listed = config.list_of("moe_layers", int)
    frequency = config.values.get("moe_layer_freq")
    if isinstance(frequency, list):
        return [bool(flag) for flag in config.list_of("moe_layer_freq", int, layers)]
    every = config.integer("moe_layer_freq", default=1)
    if step < 1 or every < 1:
        raise MoesimError(f"{config.where}: MoE layers come every {min(step, every)} layers: give 1 or more")
    if listed:
        return [i in listed for i in range(layers)]
    return [i >= first and i % every == 0 and (i + 1) % step == 0 and i not in dense for i in range(layers)]


def _dtypes(config: Config) -> tuple[str, str]:
    """What the checkpoint stores its matrices and its experts in; 16- and 32-bit floats count as bf16."""
    for key in ("torch_dtype", "dtype"):
        if config.text(key, "bfloat16") not in ("bfloat16", "float16", "float32", "auto"):
            raise config.wrong(key, "moesim knows bfloat16, float16 and float32")
    quantised: dict[str, Any] = config.mapping("quantization_config")
    if not quantised:
        return "bf16", "bf16"
    method = quantised.get("quant_method")
    if method == "mxfp4":
        return "bf16", "mxfp4"
    if method == "fp8":
        dtype = "fp8_block" if quantised.get("weight_block_size") else "fp8"
        return dtype, dtype
    if method in ("gptq", "awq") and quantised.get("bits") == 4:
        return "int4", "int4"
    raise config.wrong("quantization_config", "moesim reads fp8, mxfp4, and gptq or awq with 4 bits")
