"""Published figures of training papers that follow from shapes alone: no rate, no fit, no profile.

moesim's own functions wherever it can express the model. It cannot: SwinV2's windows over two dimensions (Tutel's
tables 11 and 12: the dense rest is taken as published, the experts are computed), and BigMac's projections around the
exchange (a shape of its own: counted by hand beside the fine-grained model).
"""

import numpy as np
import pytest

from moesim.alltoall import Traffic, sent_and_received
from moesim.model import (
    Attention,
    Experts,
    Layer,
    Model,
    active_matrix_weights,
    attention_flops,
    expert_parameters,
    expert_projections,
    parameters,
    training_flops,
)
from moesim.network.pairs import Product
from moesim.routing import dispatch
from moesim.units import GIB

# --- Tutel (arXiv:2206.03382) -----------------------------------------------------------------------------------


def swin_experts(c, experts=32, top_k=1):
    """A MoE block of SwinV2 with ``c`` channels: experts of two biased matrices [c, 4c] and [4c, c]."""
    attention = Attention(heads=1, kv_heads=1, head_dim=c, v_head_dim=c)
    ffn = Experts(experts=experts, top_k=top_k, width=4 * c, gated=False, bias=True)
    layer = Layer(attention=attention, ffn=ffn)
    return Model(name=f"swin-{c}", hidden=c, vocab=1, layers=(layer,), source="arXiv:2206.03382"), layer


TABLE_11 = {  # million parameters by experts; 1 is the dense model
    "S": (384, {1: 65.8, 8: 173.3, 16: 296.1, 32: 541.8, 64: 1033.0, 128: 2016.0}),
    "B": (512, {1: 109.3, 8: 300.3, 16: 518.7, 32: 955.3}),
}


@pytest.mark.parametrize(("size", "experts"), [(size, e) for size, (_, rows) in TABLE_11.items() for e in rows])
def test_each_further_expert_adds_its_two_matrices_in_ten_blocks(size, experts):
    c, published = TABLE_11[size]
    added = 9 * expert_parameters(*swin_experts(c)) + expert_parameters(*swin_experts(2 * c))
    found = published[1] + (experts - 1) * added / 1e6
    digits = 0 if published[experts] > 1000 else 1
    # the dense size is itself rounded to 0.1
    assert found == pytest.approx(published[experts], abs=0.5 * 10.0**-digits + 0.05)


TABLE_12 = {
    (1, 1.25): 12.54, (1, 1.0): 11.78, (1, 0.625): 10.65, (1, 0.5): 10.27, (2, 1.25): 16.31, (2, 1.0): 14.80,
    (2, 0.625): 12.54, (2, 0.5): 11.78,
}  # fmt: skip


@pytest.mark.parametrize(("top_k", "factor"), TABLE_12)
def test_capacity_sets_the_multiply_adds_of_swinv2_moe_b(top_k, factor):
    # 192 x 192 pixels: 12 x 12 tokens in the nine blocks with 512 channels, 6 x 6 in the one with 1,024
    def expert_macs(c, tokens):
        model, layer = swin_experts(c, top_k=top_k)
        each = sum(p.inputs * p.outputs for p in expert_projections(model, layer))
        return each * tokens * top_k * factor

    rest = 8.76e9  # everything else, from the published table
    assert (rest + 9 * expert_macs(512, 144) + expert_macs(1024, 36)) / 1e9 == pytest.approx(
        TABLE_12[top_k, factor], abs=0.011
    )


@pytest.mark.parametrize(
    ("whole_ms", "exchange_ms", "speedup"), [(560.9, 189.1, 1.51), (698.9, 323.8, 1.86), (866.4, 491.3, 1.76)]
)
def test_perfect_overlap_hides_the_shorter_of_the_exchange_and_the_rest(whole_ms, exchange_ms, speedup):
    # table 2; at 256 GPUs the printed computing time is 1.3 % more than what the exchange leaves
    saved = min(exchange_ms, whole_ms - exchange_ms) / whole_ms
    assert round(1.0 / (1.0 - saved), 2) == speedup


def test_dispatch_keeps_k_f_t_over_e_rows_for_every_expert():
    tokens = np.full((1, 4, 8), 128)  # 512 tokens a rank, top 2, 8 experts
    assert dispatch(tokens, 2, 1.0).capacity == 128
    assert dispatch(tokens, 2, 1.25).capacity == 160


# --- FlashMoE (arXiv:2506.04667) --------------------------------------------------------------------------------


def test_eight_gpus_of_8k_tokens_in_3_7_ms_are_17_7_million_tokens_a_second():
    assert round(8 * 8192 / 3.7e-3 / 1e6, 1) == 17.7


FIG_11 = {  # ms on 2, 4 and 8 GPUs, and the published efficiency in percent
    "FlashMoE": ((3.3, 3.4, 3.7), (100, 97, 90)),
    "FasterMoE": ((10.3, 12.6, 21.3), (100, 82, 48)),
    "Megatron-CUTLASS": ((4.2, 16.6, 18.9), (100, 26, 22)),
    "Megatron-TE": ((4.4, 9.0, 18.9), (100, 49, 24)),
}


@pytest.mark.parametrize("system", FIG_11)
def test_overlap_efficiency_is_the_time_of_two_gpus_over_that_of_n(system):
    times_ms, published = FIG_11[system]
    for time_ms, percent in zip(times_ms, published, strict=True):
        widest = (times_ms[0] + 0.05) / (time_ms - 0.05) - times_ms[0] / time_ms  # both labels are rounded to 0.1
        assert 100 * times_ms[0] / time_ms == pytest.approx(percent, abs=100 * widest + 0.5)


@pytest.mark.parametrize(("tokens", "megabytes"), [(4096, 58.7), (8192, 117.4), (16384, 234.9)])
def test_a_gpu_of_eight_sends_seven_eighths_of_its_fp32_copies(tokens, megabytes):
    sent, received = sent_and_received(uniform(ranks=8, tokens=tokens, top_k=2, token_bytes=2048 * 4.0))
    assert sent[0] / 1e6 == pytest.approx(megabytes, abs=0.05)
    assert sent == pytest.approx(received)


def uniform(*, ranks, tokens, top_k, token_bytes):
    """Tokens of every rank spread evenly over all ranks."""
    pairs = Product(sent=np.full(ranks, float(tokens * top_k)), share=np.full(ranks, 1.0 / ranks))
    return Traffic(pairs=pairs, tokens=float(tokens), token_bytes=token_bytes, top_k=top_k)


# --- BigMac (arXiv:2502.16927), table 4 -------------------------------------------------------------------------

HIDDEN, LAYERS, VOCAB, EXPERTS, TOP_K, R, SEQUENCE, SEQUENCES, EP = 2048, 24, 50257, 64, 8, 0.25, 2048, 256, 32
TOKENS = SEQUENCE * SEQUENCES  # 0.5M


@pytest.fixture(scope="module")
def fine_grained():
    """Table 4's model: GPT3-XL with experts of a quarter of the hidden size, biased attention and norms, tied head."""
    attention = Attention(
        heads=16, kv_heads=16, head_dim=128, v_head_dim=128, qkv_bias=True, output_bias=True
    )  # fmt: skip
    ffn = Experts(experts=EXPERTS, top_k=TOP_K, width=int(R * HIDDEN), gated=False)
    return Model(
        name="bigmac-fine-grained", hidden=HIDDEN, vocab=VOCAB, norm_bias=True, tied_embeddings=True,
        layers=(Layer(attention=attention, ffn=ffn),) * LAYERS, source="arXiv:2502.16927",
    )  # fmt: skip


def test_bigmac_has_two_more_projections_a_layer(fine_grained):
    found = parameters(fine_grained)
    assert round(found / 1e9, 2) == 3.73
    assert round((found + 2 * R * HIDDEN**2 * LAYERS) / 1e9, 2) == 3.78


def test_bigmac_computes_4_5_per_cent_more(fine_grained):
    # the paper counts every pair of a sequence, moesim the causal half of them; the paper counts no router
    layer = fine_grained.layers[0]
    missing = 2.0 * SEQUENCE * HIDDEN * 2.0 * SEQUENCE - attention_flops(layer.attention, SEQUENCE, 0)
    router = 2.0 * SEQUENCE * HIDDEN * EXPERTS
    found = SEQUENCES * (training_flops(fine_grained, SEQUENCE) + 3 * LAYERS * (missing - router))
    more = 3 * 2.0 * TOKENS * LAYERS * 2 * R * HIDDEN**2
    assert found / 1e12 == pytest.approx(3490.67, rel=1e-4)
    assert (found + more) / 1e12 == pytest.approx(3649.00, rel=1e-4)
    assert active_matrix_weights(fine_grained, layer) == HIDDEN**2 * (4 + 2 * R * TOP_K) + HIDDEN * EXPERTS


@pytest.mark.parametrize(("width", "gib"), [(1.0, 1488), (R, 372)])
def test_bigmac_exchanges_a_quarter_of_the_bytes(width, gib):
    # dispatch and combine, forward and backward, in all layers; bf16
    traffic = uniform(ranks=EP, tokens=TOKENS // EP, top_k=TOP_K, token_bytes=width * HIDDEN * 2.0)
    sent, _ = sent_and_received(traffic)
    assert 4 * LAYERS * sent.sum() / GIB == gib
