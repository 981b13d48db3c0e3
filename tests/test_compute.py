"""GEMM, attention, memory-bound kernels and loads: numbers by hand, bounds, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import GPUS
from moesim.compute import (
    AttentionShape,
    attended_pairs,
    attention,
    balanced_load,
    gemm,
    memory_bound,
    power_law_load,
    power_law_loads,
)
from moesim.cost import ESTIMATED, PUBLISHED
from moesim.errors import MoesimError
from moesim.profile import load_profile

H200 = load_profile(GPUS["H200"])
DTYPES = st.sampled_from(["bf16", "fp8", "fp8_block", "int4", "ternary"])


def decode(**changed: object) -> AttentionShape:
    stated: dict[str, object] = {
        "kind": "gqa", "phase": "decode", "heads": 32, "kv_heads": 8, "head_dim": 128, "v_head_dim": 128,
        "batch": 64.0, "queries": 1.0, "context": 4096.0,
    }  # fmt: skip
    return AttentionShape(**(stated | changed))


def mla(phase: str, queries: float) -> AttentionShape:
    return decode(
        kind="mla",
        phase=phase,
        heads=128,
        kv_heads=1,
        head_dim=192,
        v_head_dim=128,
        latent_dim=576,
        queries=queries,
    )


def test_a_large_gemm_takes_two_flops_per_multiply_add_at_the_peak_at_least() -> None:
    cost = gemm(H200, 8192.0, 8192.0, 8192.0, "bf16")
    assert cost.bound_s == pytest.approx(2 * 8192**3 / 989e12)
    assert cost.limited_by == "compute"
    assert 1.0 < cost.seconds / cost.bound_s < 1.6
    assert cost.basis == PUBLISHED


def test_a_gemm_of_one_row_reads_its_weights() -> None:
    cost = gemm(H200, 1.0, 16384.0, 16384.0, "bf16")
    assert cost.bound_s == pytest.approx(16384 * 16384 * 2 / 4.8e12, rel=0.001)
    assert cost.limited_by == "memory"


def test_a_tiny_gemm_is_bound_by_its_launch() -> None:
    assert gemm(H200, 1.0, 128.0, 1024.0, "bf16").limited_by == "launch"


@pytest.mark.parametrize("gpu", ["H200", "H100", "A100"])
def test_gemm_points_of_the_table_come_back_within_ten_per_cent(gpu: str) -> None:
    profile = load_profile(GPUS[gpu])
    rows = profile.tables["gemm"][0].table.select(dtype="bf16")
    cost = gemm(profile, rows.numbers["m"], rows.numbers["n"], rows.numbers["k"], "bf16")
    error = np.abs(cost.seconds / rows.time_s - 1.0)
    assert np.quantile(error, 0.9) < 0.10
    assert np.mean((cost.low <= rows.time_s) & (rows.time_s <= cost.high)) > 0.85


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1, 2**18),
    st.floats(1, 2**18),
    st.floats(16, 2**17),
    DTYPES,
    st.sampled_from(["H200", "A30", "B200"]),
)
def test_a_gemm_is_never_below_its_bound_and_inside_its_band(
    m: float, n: float, k: float, dtype: str, gpu: str
) -> None:
    cost = gemm(load_profile(GPUS[gpu]), m, n, k, dtype)
    assert cost.bound_s <= cost.low <= cost.seconds <= cost.high


def test_a_gemm_beyond_every_table_is_refused() -> None:
    with pytest.raises(MoesimError, match="gemm k 5e\\+06 is far outside what was measured"):
        gemm(H200, 1.0, 1024.0, 5e6, "bf16")
    with pytest.raises(MoesimError, match="unknown dtype"):
        gemm(H200, 1.0, 1024.0, 1024.0, "fp7")


def test_a_gpu_without_a_table_is_estimated_with_a_wider_band() -> None:
    own, carried = (gemm(load_profile(GPUS[gpu]), 4096.0, 4096.0, 4096.0, "bf16") for gpu in ("H100", "H800"))
    assert carried.seconds == pytest.approx(own.seconds)  # the same chip
    assert carried.basis == ESTIMATED
    assert carried.high > own.high


def test_int4_reads_a_quarter_and_is_estimated() -> None:
    wide, narrow = (gemm(H200, 1.0, 16384.0, 16384.0, dtype) for dtype in ("bf16", "int4"))
    assert narrow.bound_s / wide.bound_s == pytest.approx(0.53125 / 2, rel=0.01)
    assert narrow.basis == ESTIMATED


@pytest.mark.parametrize(
    ("queries", "context", "masks", "pairs"),
    [
        (4.0, 4.0, {}, 10.0),  # 1 + 2 + 3 + 4
        (1.0, 100.0, {}, 100.0),
        (2.0, 10.0, {}, 19.0),  # 9 + 10
        (4.0, 4.0, {"window": 2}, 7.0),  # 1 + 2 + 2 + 2
        (1.0, 100.0, {"window": 16}, 16.0),
        (5.0, 5.0, {"chunk": 2}, 7.0),  # 1 + 2, 1 + 2, 1
        (1.0, 5.0, {"chunk": 2}, 1.0),
    ],
)
def test_attended_pairs_count_the_mask(queries: float, context: float, masks: dict[str, int], pairs: float) -> None:
    assert attended_pairs(decode(queries=queries, context=context, **masks)) == pairs


def test_decode_reads_the_cache() -> None:
    cost = attention(H200, decode(), "bf16", "bf16")
    keys_and_values = 64 * 4096 * 8 * 256 * 2
    assert cost.bound_s == pytest.approx(keys_and_values / 4.8e12, rel=0.01)
    assert cost.limited_by == "memory"


def test_mla_decodes_in_the_latent_and_prefills_expanded() -> None:
    latent = attention(H200, mla("decode", 1.0), "bf16", "bf16")
    pairs, peak = 64 * 4096, 989e12
    assert latent.bound_s == pytest.approx(2 * pairs * 128 * (576 + 512) / peak, rel=0.01)
    expanded = attention(H200, mla("prefill", 4096.0), "bf16", "bf16")
    assert expanded.bound_s == pytest.approx(2 * 64 * 4096 * 4097 / 2 * 128 * 320 / peak, rel=0.01)


def test_mla_on_h100_is_carried_over_from_h200() -> None:
    cost = attention(load_profile(GPUS["H100"]), mla("decode", 1.0), "bf16", "bf16")
    assert cost.basis == ESTIMATED
    assert "H200 attention" in cost.source


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 512), st.floats(1, 8192), st.floats(0, 1e5), st.sampled_from(["gqa", "mla"]))
def test_attention_is_never_below_its_bound(batch: float, queries: float, past: float, kind: str) -> None:
    base = decode() if kind == "gqa" else mla("decode", 1.0)
    shape = AttentionShape(
        kind=base.kind, phase="prefill" if queries > 1 else "decode", heads=16, kv_heads=base.kv_heads,
        head_dim=base.head_dim, v_head_dim=base.v_head_dim, latent_dim=base.latent_dim,
        batch=batch, queries=queries, context=queries + past,
    )  # fmt: skip
    cost = attention(H200, shape, "bf16", "fp8")
    assert cost.bound_s <= cost.low <= cost.seconds <= cost.high


def test_attention_refuses_what_cannot_be() -> None:
    with pytest.raises(MoesimError, match="context counts the new tokens"):
        decode(queries=8.0, context=4.0)
    with pytest.raises(MoesimError, match="latent_dim 0"):
        decode(kind="mla")
    with pytest.raises(MoesimError, match="attention context 1e\\+07 is far outside"):
        attention(H200, decode(context=1e7), "bf16", "bf16")


def test_memory_bound_moves_bytes_at_four_fifths_of_the_data_sheet() -> None:
    cost = memory_bound(H200, np.array([0.0, 4.8e9]))
    assert cost.seconds == pytest.approx([0.0, 1e-3 / 0.8 + 3e-6])
    assert cost.bound_s == pytest.approx([0.0, 1e-3])
    assert cost.basis == ESTIMATED


def test_a_balanced_load_is_even_and_few_tokens_leave_experts_idle() -> None:
    assert balanced_load(64, 8, 2, 4).tolist() == [16.0, 16.0]
    assert balanced_load(1, 8, 2, 1).tolist() == [1.0, 1.0] + [0.0] * 6
    assert balanced_load(1, 256, 8, 64).tolist() == [1.0, 0.0, 0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3000),
    st.sampled_from([(8, 2, 1), (128, 8, 8), (256, 8, 32)]),
    st.floats(0.3, 2.0),
    st.integers(0, 99),
)
def test_a_power_law_load_is_the_heaviest_rank_and_no_expert_sees_a_token_twice(
    tokens: int, shape: tuple[int, int, int], exponent: float, seed: int
) -> None:
    experts, top_k, ep = shape
    load = power_law_loads(tokens, shape, exponent, 5, np.random.default_rng(seed))
    assert load.shape == (5, experts // ep)
    assert (load >= 0.0).all()
    assert load.max() <= tokens
    if tokens > 1:
        assert (load.sum(axis=1) >= 0.99 * tokens * top_k / ep).all()


def test_a_power_law_draw_repeats_with_its_seed() -> None:
    draws = [power_law_load(512, 64, 4, 8, 1.2, np.random.default_rng(7)) for _ in range(2)]
    assert draws[0].tolist() == draws[1].tolist()


def test_a_power_law_refuses_experts_that_do_not_divide() -> None:
    with pytest.raises(MoesimError, match="10 experts do not divide over ep=4"):
        power_law_load(512, 10, 4, 4, 1.2, np.random.default_rng(0))
    with pytest.raises(MoesimError, match="exponent above zero"):
        power_law_load(512, 8, 4, 4, -1.0, np.random.default_rng(0))
