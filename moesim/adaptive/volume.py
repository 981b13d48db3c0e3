"""What a way to run an expert layer sends, per GPU: Table 4 of Tutel (arXiv:2206.03382).

    r = 0          P                         data parallel: the weights of all experts are gathered     DP
    r < W / E      C r + P / (E r)           tokens repeated r times, weights gathered in the rest      EP+DP+MP
    r >= W / E     C max(1, W / E)           every GPU keeps its part of an expert                      EP+MP

    C  what a GPU dispatches to all experts    P  all experts' parameters    E  experts    W  GPUs

Both in the same unit, bytes for example. ``way`` at r = 0 is DP, at r = 1 EP+DP, at r = W / E EP+MP; the other three
rows of the table (MP, EP, DP+MP) are never better than these.
"""


def way(r: int, sent: float, parameters: float, experts: int, gpus: int) -> float:
    """What the way with repetition ``r`` sends."""
    if r == 0:
        return data_parallel(parameters)
    if r * experts >= gpus:
        return expert_model_parallel(sent, experts, gpus)
    return sent * r + parameters / (experts * r)


def data_parallel(parameters: float) -> float:
    """DP: every GPU gathers every expert."""
    return parameters


def expert_data_parallel(sent: float, parameters: float, experts: int) -> float:
    """EP+DP: tokens go to one copy of their expert, which gathers its weights from the other copies."""
    return sent + parameters / experts


def expert_model_parallel(sent: float, experts: int, gpus: int) -> float:
    """EP+MP: tokens go to all parts of their expert; no weight moves."""
    return sent * max(1.0, gpus / experts)
