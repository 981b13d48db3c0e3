"""What a layer keeps, what it computes again, and what gradients of weights wait with: against sums by hand."""

from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.errors import MoesimError
from moesim.memory import memory
from moesim.model import MODELS, load_model, with_mtp
from moesim.program import LayerShape, backward_layer, forward_layer
from moesim.recompute import PARTS, Keeping, alive_values, canonical, kept_values, owed_values
from moesim.routing import parse_routing
from moesim.step.layers import batched
from moesim.step.passes import backward_pass, pass_key
from moesim.step.scenario import make_scenario
from moesim.strategy import Strategy, load_strategy
from moesim.workload import make_workload

MIXTRAL = load_model("mixtral-8x7b")  # hidden 4096, 32 and 8 heads of 128, two of 8 experts of 14336
V3 = load_model("deepseek-v3")


def kept(recompute, model=MIXTRAL, dtype="bf16", etp=1):
    return kept_values(model, model.layers[-1], Keeping(etp, recompute, 1.0, dtype))


def test_equal_sets_of_parts_are_equal_strategies():
    assert Strategy(recompute="moe+norms+moe") == Strategy(recompute="norms+moe")
    assert canonical("activations+norms+mla_up") == canonical("selective+norms") == "selective"
    assert canonical("moe+selective") == "norms+mla_up+activations+moe"


@pytest.mark.parametrize("text", ["norm", "full+norms", "none+norms", "norms+", ""])
def test_an_unknown_part_is_refused_with_a_list_of_the_parts(text):
    with pytest.raises(MoesimError, match=r"unknown strategy recompute .*: choose from .*norms, core, mla_up"):
        canonical(text)


def test_a_mixtral_layer_keeps_what_a_hand_sum_says():
    attention = 2 * 4096 + 4096 + 2 * 8 * 128 + 4096 + 2 * 32  # input, norm, q, k, v, output, softmax sums
    feed_forward = 2 * 4096 + 2 * (2 * 4096 + 3 * 14336)  # input, norm; of two copies input, output and the inside
    assert kept("none") == attention + feed_forward
    assert kept("full") == 4096


@pytest.mark.parametrize(
    ("part", "dropped"),
    [
        ("norms", 2 * 4096),
        ("core", 2 * 32),
        ("mla_up", 0),  # grouped queries have no latent vectors
        ("activations", 2 * (4096 + 14336)),  # and the experts' outputs
        ("mlp", 0),  # every layer has experts
        ("shared_experts", 0),
        ("moe", 2 * (2 * 4096 + 3 * 14336)),
        ("moe+activations", 2 * (2 * 4096 + 3 * 14336)),
    ],
)
def test_a_part_drops_what_its_line_of_the_table_says(part, dropped):
    assert kept("none") - kept(part) == dropped


def test_deepseek_v3_keeps_150_kilobytes_a_token_and_layer_of_its_own_recipe():
    # arXiv:2412.19437 section 3.3.3; bytes: two inputs and the softmax sums whole, latents in fp8, output in E5M6,
    # eight copies and the shared expert in fp8: expert input 7168, gate and up 4096
    expected = 2 * 2 * 7168 + 4 * 128 + (1536 + 576) + 1.5 * 128 * 128 + 8 * (7168 + 4096) + 4096
    assert 2 * kept("selective", V3, "fp8_block") == expected == pytest.approx(150e3, rel=0.01)


def test_gradients_of_weights_wait_with_inputs_and_outputs_of_their_gemms():
    # norm, q, k, v | core's output, its projection's | norm, and of two copies input, gate, up, activation, output
    expected = (4096 + 4096 + 2048) + (4096 + 4096) + 4096 + 2 * (4096 + 3 * 14336 + 4096)
    bf16, fp8 = (owed_values(MIXTRAL, MIXTRAL.layers[0], Keeping(1, "full", 1.0, dtype)) for dtype in ("bf16", "fp8"))
    assert bf16 == 2 * fp8 == expected


def test_deepseek_v3_on_2048_h800_fits():
    work = make_workload("train", 2048, global_batch=15360, seq=4096, dtype="fp8_block")
    found = memory(with_mtp(V3, 0), work, load_strategy("pp=16 ep=64 schedule=dualpipe recompute=selective", 2048))
    # 17 micro-batches of 4 layers, and one layer's backward pass
    keeping = Keeping(1, "selective", 1.0, "fp8_block")
    per_token = 17 * 4 * kept_values(V3, V3.layers[-1], keeping) + alive_values(V3, V3.layers[-1], keeping)
    assert found.activations == 4096 * 2 * per_token
    assert found.total < 0.94 * load_cluster("dgx-h100").gpu.memory_bytes


def test_experts_computed_again_communicate_again():
    shape = LayerShape(moe=True, tp=True, ep=True, shared=True, latent=True)
    again = [op.key for op in backward_layer(shape, recompute="mla_up+moe")]
    feed_forward = [op.key for op in forward_layer(shape)][3:]
    assert again[: 2 + len(feed_forward)] == ["latent gather", "recompute", *feed_forward]
    assert again[2 + len(feed_forward) :] == [op.key for op in backward_layer(shape, recompute="none")]


sets = st.frozensets(st.sampled_from(PARTS))


def text_of(chosen):
    return canonical("+".join(chosen)) if chosen else "none"


@given(st.sampled_from(sorted(MODELS)), sets, sets, st.sampled_from(["bf16", "fp8", "fp8_block"]), st.integers(1, 4))
def test_dropping_more_never_keeps_more_and_full_keeps_least(name, some, more, dtype, etp):
    model = load_model(name)
    for kind in model.layer_kinds():
        few, many, least = (
            kept_values(model, kind.layer, Keeping(etp, text, 1.5, dtype))
            for text in (text_of(some), text_of(some | more), "full")
        )
        assert few >= many >= least


@given(sets, sets, st.sampled_from(["tp=2 ep=4", "ep=8"]), st.sampled_from(["none", "chunked"]))
def test_dropping_more_never_costs_less_time(some, more, layout, overlap):
    given_, key, layers = setting(f"{layout} overlap={overlap}")
    for layer in layers:
        few, many, most = (
            batched(backward_pass(given_, layer, key, text)) for text in (text_of(some), text_of(some | more), "full")
        )
        assert (few <= many * (1 + 1e-9)).all()
        assert (many >= batched(backward_pass(given_, layer, key, "none"))).all()
        assert (most >= many).all()


@lru_cache
def setting(text):
    """DeepSeek-V2-Lite on one node: latent attention, a dense layer, experts with shared ones."""
    cluster = load_cluster("dgx-h100", 1)
    model = load_model("deepseek-v2-lite")
    given_ = make_scenario(model, cluster, make_workload("train", 8), parse_routing("uniform"), seed=0)
    return given_, pass_key(given_, load_strategy(text, 8)), [kind.layer for kind in model.layer_kinds()]
