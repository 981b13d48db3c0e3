"""Rows of each expert meet its weights, whatever the load, the tile and the way of loading."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import fp8, grouped_gemm, sort, tiles
from moesim.kernels.common import poisoned, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIFTY = settings(max_examples=50, deadline=None, derandomize=True)
LIMITS = {"bf16": 1e-2, "fp8_block": 3e-2}
WAYS = {"tma": (9, 0), "pointers": (8, 9)}


def poisoned_empty(*shape, dtype=None, device=None):
    """What torch.empty gives, full of NaN or -1: an element that is read before it is written is seen."""
    return poisoned(shape if isinstance(shape[0], int) else shape[0], dtype or torch.float32, device)


def operands(experts_TK, experts, block, rows_w, k, dtype, seed=0):
    """x and w of random values (and scales), and the order of rows; padding is zero, what lies beyond NaN."""
    generator = torch.Generator().manual_seed(seed)
    order = sort.sort_by_expert(experts_TK.to(DEVICE), experts, block)
    x = torch.randn(order.rows, k, generator=generator).to(DEVICE, torch.bfloat16)
    w = (torch.randn(experts, rows_w, k, generator=generator) / k**0.5).to(DEVICE, torch.bfloat16)
    x[order.source_R == experts_TK.numel()] = 0.0
    beyond = slice(int(order.offsets_E1[-1]), None)
    if dtype == "bf16":
        x[beyond] = float("nan")
        return (x, w, order), {}
    (x, x_scale), (w, w_scale) = fp8.quantise_fp8_rows_reference(x), fp8.quantise_fp8_blocks(w)
    x_scale[beyond] = float("nan")
    return (x, w, order), {"x_scale": x_scale, "w_scale": w_scale}


def error(call, options, way="tma", **more):
    """Relative error over the rows in use, padding included (its x is zero)."""
    with (
        mock.patch.object(tiles, "capability", return_value=WAYS[way]),
        mock.patch.object(torch, "empty", poisoned_empty),
    ):
        found = grouped_gemm.grouped_gemm(*call, **options, **more)
    more.pop("out_dtype", None)
    expected = grouped_gemm.grouped_gemm_reference(*call, **options, **more)
    used = int(call[2].offsets_E1[-1])
    return relative_error(found[:used], expected[:used])


@st.composite
def cases(draw, dtype):
    """Operands of any load (copies of other ranks among them), block, shape, activation and way of loading."""
    tokens, top_k, experts = draw(st.integers(1, 24)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    first, end = sorted([draw(st.integers(-1, experts)), draw(st.integers(-1, experts))])
    seed = draw(st.integers(0, 10**6))
    experts_TK = torch.randint(first, end + 1, (tokens, top_k), generator=torch.Generator().manual_seed(seed))
    activation = draw(st.sampled_from(["none", "swiglu", "relu", "gelu"]))
    n, k = draw(st.sampled_from([1, 40, 130])), draw(st.sampled_from([1, 31, 72, 128, 200]))
    rows_w = 2 * n if activation == "swiglu" else n
    call, options = operands(experts_TK, experts, draw(st.sampled_from(tiles.BLOCKS)), rows_w, k, dtype, seed)
    return call, options, activation, draw(st.sampled_from(sorted(WAYS)))


@FIFTY
@given(cases("bf16"))
def test_bf16_rows_meet_the_weights_of_their_expert(case):
    call, options, activation, way = case
    assert error(call, options, way, activation=activation) < LIMITS["bf16"]


@FIFTY
@given(cases("fp8_block"))
def test_fp8_rows_meet_the_weights_of_their_expert(case):
    call, options, activation, way = case
    assert error(call, options, way, activation=activation) < LIMITS["fp8_block"]


LOADS = {
    "one token": [[2]],
    "all tokens on one expert": [[1]] * 37,
    "empty experts between others": [[0], [3], [3], [0], [3]],
    "exactly one block": [[1]] * 16,
    "one more than a block": [[1]] * 17,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("load", LOADS)
def test_the_loads_that_go_wrong_first(load, dtype, way):
    call, options = operands(torch.tensor(LOADS[load]), 4, 16, 2 * 72, 136, dtype)
    assert error(call, options, way, activation="swiglu") < LIMITS[dtype]


@pytest.mark.parametrize("way", WAYS)
def test_tokens_of_other_ranks_only_leave_nothing_to_do(way):
    call, options = operands(torch.full((5, 2), -1), 3, 16, 40, 64, "bf16")
    assert error(call, options, way) == 0.0


def test_no_tokens_give_no_rows():
    call, options = operands(torch.zeros(0, 2, dtype=torch.int64), 3, 16, 40, 64, "bf16")
    assert grouped_gemm.grouped_gemm(*call, **options).shape == (0, 40)


@pytest.mark.parametrize("block", tiles.BLOCKS)
def test_row_weights_multiply_rows_and_float32_is_written_unrounded(block):
    call, options = operands(torch.arange(30).reshape(15, 2) % 3, 3, block, 40, 64, "bf16")
    weight_R = torch.rand(call[2].rows).to(DEVICE)
    assert error(call, options, row_weight_R=weight_R, out_dtype=torch.float32) < 1e-5


def test_operands_that_begin_anywhere_are_copied_to_where_the_accelerator_can_read():
    call, options = operands(torch.arange(8).reshape(4, 2) % 3, 3, 16, 40, 64, "bf16")
    x, w, order = call
    shifted = torch.zeros(w.numel() + 1, dtype=w.dtype, device=DEVICE)[1:].view(w.shape)
    shifted.copy_(w)
    assert shifted.data_ptr() % 16 != 0
    assert error((x, shifted, order), options) < LIMITS["bf16"]


REFUSED = {
    "activation 'tanh' is unknown": {"activation": "tanh"},
    "do not fit": {"k": 24},
    "sort for these w": {"experts": 5},
    "an even number of rows": {"activation": "swiglu", "rows_w": 41},
    "quantise both operands or none": {"x_scale": torch.ones(32, 1)},
    "both must be torch.bfloat16": {"dtype": torch.float16},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_kernel_would_misread_is_refused(message):
    change = REFUSED[message]
    (x, _, order), _ = operands(torch.tensor([[0], [1]]), 3, 16, 40, 32, "bf16")
    w = torch.zeros(change.get("experts", 3), change.get("rows_w", 40), change.get("k", 32), device=DEVICE)
    options = {name: change[name] for name in ("activation", "x_scale") if name in change}
    with pytest.raises(ValueError, match=message):
        grouped_gemm.grouped_gemm(x, w.to(change.get("dtype", torch.bfloat16)), order, **options)


def test_fp8_is_refused_where_scales_are_missing_or_the_gpu_has_none():
    (x, w, order), options = operands(torch.tensor([[0], [1]]), 3, 16, 40, 32, "fp8_block")
    with pytest.raises(ValueError, match="give one per 128 values"):
        grouped_gemm.grouped_gemm(x, w, order, **{**options, "w_scale": options["w_scale"][:2]})
    with (
        mock.patch.object(grouped_gemm, "capability", return_value=(8, 0)),
        pytest.raises(ValueError, match="no fp8: use bf16"),
    ):
        grouped_gemm.grouped_gemm(x, w, order, **options)


def test_the_cost_counts_touched_weights_once_and_no_padding():
    counts_E = torch.tensor([3, 0, 1])
    work = grouped_gemm.grouped_gemm_cost(counts_E, n=10, k=100)
    assert work.flops == 2 * 4 * 10 * 100
    assert work.bytes == 4 * (100 + 10) * 2 + 2 * 10 * 100 * 2
    assert grouped_gemm.grouped_gemm_cost(counts_E, 10, 100, "bf16", "swiglu").bytes == work.bytes - 4 * 5 * 2
    in_fp8 = grouped_gemm.grouped_gemm_cost(counts_E, 10, 200, "fp8_block")
    assert in_fp8.bytes == 4 * (200 + 2 * 4 + 10 * 2) + 2 * (10 * 200 + 2 * 4)


@pytest.mark.parametrize("dtype", ["bf16", "fp8_block", "int4", "ternary"])
def test_blocks_grow_with_the_load_from_16_to_128(dtype):
    blocks = [grouped_gemm.block_for(load, dtype) for load in (0.1, 1, 5, 20, 60, 100, 4096)]
    assert blocks == sorted(blocks)
    assert (blocks[0], blocks[-1]) == (16, 128)


def test_every_block_has_a_tile_on_every_gpu_and_others_are_refused():
    for way in WAYS.values():
        with mock.patch.object(tiles, "capability", return_value=way):
            found = {tiles.tile_for(dtype, block, torch.device(DEVICE)) for dtype in LIMITS for block in tiles.BLOCKS}
            assert all(tile.rows % 64 == 0 and tile.depth in (64, 128) for tile in found)
            with pytest.raises(ValueError, match="no tile for bf16 with blocks of 8 rows"):
                tiles.tile_for("bf16", 8, torch.device(DEVICE))


FULL = {"Mixtral 8x7B": (16384, 2, 8, 4096, 14336), "DeepSeek-V3": (64, 8, 256, 7168, 2048)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: full sizes need one")
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("model", FULL)
def test_full_sizes_are_right(model, dtype):
    tokens, top_k, experts, hidden, ffn = FULL[model]
    experts_TK = torch.rand(tokens, experts).topk(top_k, dim=1).indices
    block = grouped_gemm.block_for(tokens * top_k / experts, dtype)
    order = sort.sort_by_expert(experts_TK.to(DEVICE), experts, block)
    x = torch.randn(order.rows, hidden, dtype=torch.bfloat16, device=DEVICE)
    w = torch.empty(experts, 2 * ffn, hidden, dtype=torch.bfloat16, device=DEVICE).normal_(0, hidden**-0.5)
    options = {}
    if dtype == "fp8_block":
        (x, x_scale), (w, w_scale) = fp8.quantise_fp8_rows(x), fp8.quantise_fp8_blocks(w)
        options = {"x_scale": x_scale, "w_scale": w_scale}
    found = grouped_gemm.grouped_gemm(x, w, order, activation="swiglu", **options)
    for expert in {0, experts // 2, experts - 1}:
        rows = slice(int(order.offsets_E1[expert]), int(order.offsets_E1[expert] + order.counts_E[expert]))
        x_e, w_e = x[rows].double(), w[expert].double()
        if dtype == "fp8_block":
            x_e = fp8.dequantise_fp8_rows(x[rows], x_scale[rows])
            w_e = fp8.dequantise_fp8_blocks(w[expert][None], w_scale[expert][None])[0]
        gate, up = (x_e @ w_e.T).chunk(2, dim=1)
        expected = torch.nn.functional.silu(gate) * up
        assert relative_error(found[rows], expected) < LIMITS[dtype], (model, expert)
