"""Triton kernels of an MoE layer on one GPU, each file in the order reference -> kernel -> launcher -> cost.

    common           Work (FLOPs, bytes), the error measure, what the interpreter needs
    router           top-k of softmax or sigmoid scores; group-limited (DeepSeek); grouped (MoGE)
    router_backward  from the gradient of its weights to the logits
    sort             copies of tokens sorted by expert, each expert padded to whole blocks
    permute          tokens in that order, and the weighted combine back; their gradients
    fp8              tokens and weights in fp8 with block scales
    tiles            the tile of each load
    grouped_gemm     one GEMM over ragged expert loads: bf16, fp8 with block scales; SwiGLU, ReLU, GELU
    low_bit          the same with int4 or ternary weights, decoded on the way
    matvec           QMoE's case: every token reads its expert's low-bit weights again
    expert_ffn       an expert layer out of them: sort, permute, gate and up, down, combine
    backward         data and weight gradients of the grouped GEMM
    expert_backward  those of the layer, and a torch.autograd.Function
    baselines        what the literature compares with: capacity-padded FFN, dense one-hot dispatch and combine

Everything runs on NVIDIA GPUs, and on a CPU under Triton's interpreter (``TRITON_INTERPRET=1``).
Names carry their axes: T tokens, K choices a token, E experts, H hidden, F width of an expert, R padded rows.
"""
