"""What is computed.

mixers    Attention, Mamba
layers    DenseFfn, Experts, Layer, Model
weights   projections and parameter counts
sharing   groups of layers that store their weights once
splits    how far layers divide over GPUs
pairs     dense and MoE layers that take turns
work      attended pairs, FLOPs, cached bytes
presets   MODELS
hf        load_model: a preset, or a Hugging Face config.json; hybrid: those of Nemotron-H
"""

from moesim.model.hf import load_model
from moesim.model.layers import DenseFfn, Experts, Layer, LayerKind, Model, Published, with_mtp
from moesim.model.mixers import Attention, Mamba
from moesim.model.pairs import dense_before, in_pairs
from moesim.model.presets import MODELS
from moesim.model.sharing import groups_among, repeats
from moesim.model.splits import indivisible
from moesim.model.weights import (
    LayerParameters,
    Projection,
    active_layer_parameters,
    active_parameters,
    attention_projections,
    embedding_parameters,
    expert_parameters,
    expert_projections,
    head_parameters,
    layer_parameters,
    mtp_joints,
    mtp_parameters,
    parameters,
    projections,
    row_width,
    shared_parameters,
)
from moesim.model.work import (
    TRAINING_PASSES,
    ScanFlops,
    active_matrix_weights,
    attended,
    attention_flops,
    cache_bytes,
    flops_per_token,
    forward_flops,
    kv_bytes,
    kv_bytes_per_token,
    kv_values,
    layer_flops,
    mtp_flops,
    scan_flops,
    stored_tokens,
    training_flops,
)

__all__ = [
    "MODELS",
    "TRAINING_PASSES",
    "Attention",
    "DenseFfn",
    "Experts",
    "Layer",
    "LayerKind",
    "LayerParameters",
    "Mamba",
    "Model",
    "Projection",
    "Published",
    "ScanFlops",
    "active_layer_parameters",
    "active_matrix_weights",
    "active_parameters",
    "attended",
    "attention_flops",
    "attention_projections",
    "cache_bytes",
    "dense_before",
    "embedding_parameters",
    "expert_parameters",
    "expert_projections",
    "flops_per_token",
    "forward_flops",
    "groups_among",
    "head_parameters",
    "in_pairs",
    "indivisible",
    "kv_bytes",
    "kv_bytes_per_token",
    "kv_values",
    "layer_flops",
    "layer_parameters",
    "load_model",
    "mtp_flops",
    "mtp_joints",
    "mtp_parameters",
    "parameters",
    "projections",
    "repeats",
    "row_width",
    "scan_flops",
    "shared_parameters",
    "stored_tokens",
    "training_flops",
    "with_mtp",
]
