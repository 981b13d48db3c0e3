"""Prices of what only the first and the last part of a model do: embedding, head, the inputs of MTP modules."""

from functools import lru_cache

from moesim.model import Projection
from moesim.step.gemms import PASSES, accumulated, elementwise, gemms
from moesim.step.price import Price, both
from moesim.step.scenario import Scenario
from moesim.step.sharing import over_tp, tokens_per_tp_group


@lru_cache(maxsize=4096)
def head(scenario: Scenario, tp: int, cp: int, micro_batch: int, backward: bool) -> Price:
    """Output GEMM and softmax: every position in training, one per sequence in serving.

    In training, sequence-parallel tokens are gathered before it; backward their gradients leave, and the
    second gather is hidden behind the data gradients (arXiv:2205.05198 section 4.2.2).
    """
    work, model = scenario.workload, scenario.model
    positions = tokens_per_tp_group(scenario, micro_batch, cp) if work.trains else float(micro_batch)
    matrix = Projection("head", "dense", model.hidden, model.vocab, "out")
    found = elementwise(scenario, positions, 4.0 * model.vocab / tp)
    for each in PASSES[backward]:
        found = both(gemms(scenario, [matrix], positions, tp, each, dtype="bf16"), found)
    if work.trains and tp > 1:
        found = both(found, over_tp(scenario, tp, positions, leave=backward))
    return found._replace(family="head")


@lru_cache(maxsize=4096)
def mtp_joint(scenario: Scenario, tp: int, cp: int, micro_batch: int, backward: bool) -> Price:
    """How an MTP module makes the input of its layer (DeepSeek-V3, arXiv:2412.19437 equation 21): the norms of hidden
    states and embedding, side by side, times [2 hidden, hidden]. Tensor parallelism splits the outputs, which are
    gathered, from gathered inputs, as in Megatron-Core."""
    tokens, hidden = tokens_per_tp_group(scenario, micro_batch, cp), scenario.model.hidden
    matrix = Projection("joint", "dense", 2 * hidden, hidden, "out")
    found = elementwise(scenario, tokens / tp, 8.0 * hidden * (1 + backward))
    for each in PASSES[backward]:
        found = both(gemms(scenario, [matrix], tokens, tp, each), found)
    if tp > 1:
        ways = over_tp(scenario, tp, 2.0 * tokens, leave=backward), over_tp(scenario, tp, tokens, leave=False)
        found = both(found, both(*ways))
    return found._replace(family="head")


@lru_cache(maxsize=4096)
def embedding(scenario: Scenario, tp: int, cp: int, micro_batch: int, backward: bool) -> Price:
    """Look-up in training: each tensor-parallel rank has a part of the vocabulary, and the sums leave as slices of
    the sequence; their gradients come together again (arXiv:2205.05198). A micro-batch's gradient is one of the whole
    table in bf16, written and read, before it is added (torch's embedding_dense_backward)."""
    tokens, hidden = tokens_per_tp_group(scenario, micro_batch, cp), scenario.model.hidden
    found = elementwise(scenario, tokens, 2.0 * hidden)
    if backward:
        table = scenario.model.vocab * hidden / tp
        found = both(found, both(elementwise(scenario, table, 3.0), accumulated(scenario, table)))
    if tp > 1:
        found = both(found, over_tp(scenario, tp, tokens, leave=not backward))
    return found._replace(family="head")
