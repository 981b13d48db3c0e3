"""Triton kernels of an MoE layer on one GPU, each file in the order reference -> kernel -> launcher -> cost.

    common        Work (FLOPs, bytes), the error measure, what the interpreter needs
    router        top-k of softmax or sigmoid scores; group-limited (DeepSeek); grouped (MoGE)
    sort          copies of tokens sorted by expert, each expert padded to whole blocks
    permute       tokens sorted by expert with padded block offsets, and the weighted combine back
    grouped_gemm  one GEMM over ragged expert loads: bf16, fp8 with block scales
    low_bit       the same with int4 or ternary weights, decoded on the way
    expert_ffn    an expert layer out of them: permute, gate and up with SwiGLU, down, combine
    backward      data and weight gradients of the grouped GEMM and of the layer
    baselines     what the literature compares with: capacity-padded FFN, dense one-hot dispatch and combine

Everything runs on NVIDIA GPUs, and on a CPU under Triton's interpreter (``TRITON_INTERPRET=1``).
Names carry their axes: T tokens, K choices a token, E experts, H hidden, F width of an expert, R padded rows.
"""
