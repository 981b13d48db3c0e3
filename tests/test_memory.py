"""Bytes per GPU, against sums by hand."""

from dataclasses import replace
from functools import lru_cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.memory import Memory, held_by_stage, memory
from moesim.metrics import does_not_fit
from moesim.model import MODELS, load_model, mtp_parameters, parameters, with_mtp
from moesim.planner.space import space
from moesim.routing import parse_routing
from moesim.schedule import SCHEDULES
from moesim.stages import split_of
from moesim.step.scenario import make_scenario
from moesim.strategy import RECOMPUTE, ZERO_STAGES, Strategy, load_strategy, why_not
from moesim.validate.figures import find_model
from moesim.workload import make_workload

MIXTRAL = load_model("mixtral-8x7b")
H100 = load_cluster("dgx-h100").gpu
TWO_NODES = load_cluster("dgx-h100", 2)

# Mixtral 8x7B: 32 layers, hidden 4096, 32 query and 8 key-value heads of 128, 8 experts of 14336, vocab 32000
ATTENTION = 2 * 4096 * 4096 + 2 * 4096 * 1024
ROUTER_AND_NORMS = 4096 * 8 + 2 * 4096
EXPERT = 3 * 4096 * 14336
ENDS = 2 * 32000 * 4096 + 4096  # embedding, head, last norm


def training(text, gpus=16):
    return memory(MIXTRAL, make_workload("train", gpus), load_strategy(text, gpus))


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "optimizer"),
    # divisors of (dense, expert) bytes: dense over 16 data-parallel ranks, experts over 2
    [
        (0, (1, 1), (1, 1), (1, 1)),
        (1, (1, 1), (1, 1), (16, 2)),
        (2, (1, 1), (16, 2), (16, 2)),
        (3, (16, 2), (16, 2), (16, 2)),
    ],
)
def test_mixtral_on_16_gpus_holds_what_a_hand_sum_says(zero, weights, gradients, optimizer):
    dense = 32 * (ATTENTION + ROUTER_AND_NORMS) + ENDS
    expert = 32 * EXPERT  # one of eight
    found = training(f"ep=8 zero={zero}")
    assert found.weights == pytest.approx(2 * (dense / weights[0] + expert / weights[1]))
    assert found.gradients == pytest.approx(4 * (dense / gradients[0] + expert / gradients[1]))
    assert found.optimizer == pytest.approx(12 * (dense / optimizer[0] + expert / optimizer[1]))


def test_tensor_parallelism_divides_matrices_but_not_router_and_norms():
    # tp 2: dense over dp 8; experts over ep 4 x etp 2 = all 8 parts, on 2 replicas
    dense = 32 * (ATTENTION / 2 + ROUTER_AND_NORMS) + (ENDS - 4096) / 2 + 4096
    expert = 32 * 8 * EXPERT / (4 * 2)
    found = training("tp=2 ep=4 etp=2 zero=1")
    assert found.weights == pytest.approx(2 * (dense + expert))
    assert found.optimizer == pytest.approx(12 * (dense / 8 + expert / 2))


def test_the_fullest_of_two_stages_is_counted():
    # the last stage has the head and the norm; the embedding of the first is as large, its pipeline fuller
    layers = 16 * (ATTENTION + ROUTER_AND_NORMS + EXPERT)
    assert training("pp=2 ep=8").weights == pytest.approx(2 * (layers + 32000 * 4096))


def test_zero_over_context_parallelism_divides_the_same():
    assert training("cp=2 ep=8 zero=3").optimizer == training("ep=8 zero=3").optimizer


def test_mixtral_serves_from_one_dgx_h100():
    for kind in ("prefill", "decode"):
        work = make_workload(kind, 8, batch=8)
        found = memory(MIXTRAL, work, load_strategy("ep=8", 8))
        assert does_not_fit(H100, found) is None, kind


def test_mixtral_does_not_serve_from_one_gpu():
    # 93 GB of weights in 80
    found = memory(MIXTRAL, make_workload("decode", 1, batch=1), Strategy())
    assert found.weights > 80e9
    assert does_not_fit(H100, found) == "does not fit in GPU memory"


@pytest.mark.parametrize("nodes", [1, 8])
def test_deepseek_v3_does_not_train_on_8_or_64_h100_whatever_the_strategy(nodes):
    # 671e9 parameters x 18 bytes = 12.1 TB; 64 GPUs hold 5.5
    cluster = load_cluster("dgx-h100", nodes)
    work = make_workload("train", cluster.gpus)
    scenario = make_scenario(load_model("deepseek-v3"), cluster, work, parse_routing("uniform"))
    found = space(scenario)
    assert found.frames == []
    assert found.infeasible["does not fit in GPU memory"] > 1000


def test_deepseek_v3_trains_on_256_h100():
    model, work = load_model("deepseek-v3"), make_workload("train", 256)
    found = memory(model, work, load_strategy("pp=8 ep=32 recompute=full", 256))
    assert does_not_fit(H100, found) is None


def test_of_llama3_8x70b_on_256_h100_fits_what_ran_and_not_what_was_out_of_memory():
    # arXiv:2504.14960 table 1, 256 sequences of 4096
    model, work = find_model("Llama3-8x70B"), make_workload("train", 256, global_batch=256, seq=4096)

    def fits(text):
        strategy = load_strategy(f"{text} recompute=full", 256)
        return does_not_fit(H100, memory(model, work, strategy)) is None

    assert fits("tp=8 ep=8 etp=8 pp=2")  # TP+EP+PP+DP
    assert fits("ep=8 zero=3")  # FSDP+EP
    assert not fits("tp=8 ep=8 etp=8")  # TP+EP+DP
    assert not fits("zero=3")  # FSDP


def test_zero_2_holds_two_layers_of_sharded_gradients_whole():
    layer = ATTENTION + ROUTER_AND_NORMS + EXPERT
    zero = [training(f"ep=8 zero={stage}").buffers for stage in (1, 2, 3)]
    assert zero[1] - zero[0] == 2 * 4 * layer
    assert zero[2] - zero[1] == 2 * 2 * layer  # and weights
    # on one replica of the experts nothing of theirs is sharded
    alone = [training(f"ep=8 etp=2 tp=2 zero={stage}").buffers for stage in (1, 2)]
    assert alone[1] - alone[0] == 2 * 4 * (ATTENTION / 2 + ROUTER_AND_NORMS)


def decode(model, text, gpus, **sizes):
    return memory(load_model(model), make_workload("decode", gpus, **sizes), load_strategy(text, gpus))


def test_grouped_queries_cache_keys_and_values_of_every_kv_head():
    # Mixtral: 32 layers x 2 x 8 heads x 128 x 2 bytes = 128 KiB a token; 2 sequences of 1000 tokens a GPU
    assert decode("mixtral-8x7b", "ep=8", 8, batch=2, isl=999).kv_cache == 2 * 1000 * 131_072
    # tp 8 divides the heads, and one group of 8 GPUs holds 16 sequences
    assert decode("mixtral-8x7b", "tp=8 ep=8", 8, batch=2, isl=999).kv_cache == 2 * 1000 * 131_072


def test_kv_heads_are_repeated_when_there_are_fewer_than_ranks():
    # 16 ranks, 8 kv heads: each head twice
    once = decode("mixtral-8x7b", "tp=8 ep=8", 8, global_batch=16, isl=999).kv_cache
    assert decode("mixtral-8x7b", "tp=16 ep=8 etp=2", 16, global_batch=16, isl=999).kv_cache == once


def test_latent_attention_caches_512_and_64_values_on_every_tensor_rank():
    # DeepSeek-V2-Lite: 27 layers x 576 values x 2 bytes
    alone = decode("deepseek-v2-lite", "ep=8", 8, batch=1, isl=999).kv_cache
    assert alone == 1000 * 27 * 576 * 2
    assert decode("deepseek-v2-lite", "tp=8 ep=8", 8, batch=1, isl=999).kv_cache == 8 * alone


def test_a_window_bounds_the_cache():
    # gpt-oss-20b: 12 of 24 layers see 128 tokens; 2 x 8 heads x 64 x 2 bytes a token and layer
    assert decode("gpt-oss-20b", "ep=8", 8, batch=1, isl=999).kv_cache == 12 * (1000 + 128) * 2048


def test_block_scaled_fp8_halves_the_matrices_and_not_the_ends():
    bf16 = decode("mixtral-8x7b", "ep=8", 8, batch=1).weights
    fp8 = decode("mixtral-8x7b", "ep=8", 8, batch=1, dtype="fp8").weights
    assert bf16 - fp8 == pytest.approx(32 * (ATTENTION + ROUTER_AND_NORMS + EXPERT) + 4096)


def test_the_total_is_the_sum():
    assert Memory(1.0, 2.0, 3.0, 4.0, 5.0, 6.0).total == 21.0
    assert training("ep=8").buffers == 1.06e9 + 688e6 + 688e6 + 544e6  # communicators of dp, ep and expert dp


TRAINING = make_workload("train", 16)
DEGREES = (1, 2, 4, 8, 16)


@lru_cache
def layouts(name):
    """Layouts of 16 GPUs that can train the model."""
    model = load_model(name)
    every = [
        Strategy(dp=16 // (tp * cp * pp), tp=tp, cp=cp, pp=pp, ep=ep, etp=etp)
        for tp, cp, pp, ep, etp in product(DEGREES, repeat=5)
        if tp * cp * pp <= 16
    ]
    return [one for one in every if why_not(model, TWO_NODES, TRAINING, one) is None]


@st.composite
def trained(draw):
    """A model and a strategy for it."""
    name = draw(st.sampled_from(sorted(MODELS)))
    return load_model(name), replace(
        draw(st.sampled_from(layouts(name))),
        micro_batch=draw(st.sampled_from([1, 2, 4])),
        zero=draw(st.sampled_from(ZERO_STAGES)),
        recompute=draw(st.sampled_from((*RECOMPUTE, "norms+moe"))),
        schedule=draw(st.sampled_from(sorted({*SCHEDULES} - {"interleaved", "dualpipe"}))),
    )


DEEPSEEK = load_model("deepseek-v3")
MODULE = mtp_parameters(DEEPSEEK)  # a layer, 2 x 7168 x 7168, three norms
EMBEDDING = 129280 * 7168


def held(model, text, split):
    """Parameters of each stage, nothing divided."""
    one = load_strategy(text, 16)
    dense, expert = held_by_stage(model, 1, 1, 1, one.pp, split, one.schedule)
    return (dense + expert).tolist()


def test_the_last_stage_holds_the_mtp_module_and_a_copy_of_the_embedding():
    with_, without = (held(with_mtp(DEEPSEEK, n), "pp=2", (32, 29 + n)) for n in (1, 0))
    assert with_[0] == without[0]
    assert with_[1] - without[1] == MODULE + EMBEDDING
    assert held(DEEPSEEK, "", (62,))[0] == parameters(DEEPSEEK) + MODULE  # one stage has the embedding anyway


def test_both_ends_of_dualpipe_share_the_embedding_where_they_are():
    # stage 0 and stage 1 hold both parts: embedding, head and module once each
    assert held(DEEPSEEK, "pp=2 schedule=dualpipe", (32, 30)) == [parameters(DEEPSEEK) + MODULE] * 2


def test_an_mtp_module_keeps_its_layer_its_input_and_the_logits_of_its_pass_through_the_head():
    work = make_workload("train", 1, global_batch=1, seq=4096)
    with_, without = (memory(with_mtp(DEEPSEEK, n), work, load_strategy("recompute=full", 1)) for n in (1, 0))
    # the layer's input and 4 x hidden of 2 bytes; logits of 2 + 4 bytes
    assert with_.activations - without.activations == 4096 * (2 * (7168 + 4 * 7168) + 6 * 129280)
    assert with_.gradients - without.gradients == 4 * MODULE


def test_an_mtp_module_is_not_served():
    work = make_workload("decode", 16)
    assert memory(DEEPSEEK, work, load_strategy("ep=16", 16)) == memory(
        with_mtp(DEEPSEEK, 0), work, load_strategy("ep=16", 16)
    )


@given(trained())
def test_all_gpus_together_hold_the_whole_model(case):
    model, strategy = case
    split = split_of(model, TRAINING, strategy)
    held = held_by_stage(model, strategy.tp, strategy.ep, strategy.etp, strategy.pp, split)
    # of each stage, one rank of every tensor and every expert shard
    whole = (held.dense * strategy.tp + held.expert * strategy.ep * strategy.etp).sum()
    assert whole >= (parameters(model) + mtp_parameters(model)) * (1 - 1e-12)
    sharded = (held.dense * strategy.stage_gpus / (strategy.dp * strategy.cp)).sum()
    assert sharded <= (held.dense * strategy.tp).sum() * (1 + 1e-12)


@given(trained(), st.floats(1.0, 4.0))
def test_recompute_schedule_and_zero_save_what_they_promise(case, skew):
    model, strategy = case

    def total(**changes):
        return memory(model, TRAINING, replace(strategy, **changes), skew).total

    assert total(recompute="selective") <= total(recompute="none")
    assert total(schedule="1f1b") <= total(schedule="gpipe")
    assert total(zero=1) <= total(zero=0)
    if strategy.pp == 1:  # with few layers, two that wait to be reduced are most of them
        assert total(zero=2) <= total(zero=1)
    assert total(recompute="full") <= total(recompute="selective")
