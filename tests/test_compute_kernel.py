"""A calibrated GPU: its own kernels by name, its gradients, its memory-bound kernels."""

import json
import shutil

import numpy as np
import pytest

from moesim.cluster import GPUS
from moesim.compute import gradient, kernel, memory_bound
from moesim.cost import ESTIMATED, MEASURED
from moesim.errors import MoesimError
from moesim.profile import load_profile, shipped_folder

H200 = GPUS["H200"]
COLUMNS = "op,kernel,dtype,model,load,tokens,hidden,ffn,experts,top_k,flops,bytes,time_us"
TOKENS = (64, 256, 1024, 4096, 16384, 65536)


def law_us(op, flops, size):
    """Two microseconds, and 90 % of the data sheet's speeds; gradients of the weights take 1.5 times as long."""
    roofline = max(flops / H200.flops["bf16"], size / H200.memory_bytes_per_s) / 0.9
    return 2.0 + (1.5 if op == "wgrad" else 1.0) * roofline * 1e6


def rows():
    for model, hidden, ffn in (("small", 1024, 512), ("middle", 2048, 1408), ("large", 4096, 2048)):
        for tokens in TOKENS:
            shape = f"{tokens},{hidden},{ffn},8,2"
            gemm = 2.0 * tokens * 2 * hidden * ffn
            weights = 2.0 * 8 * hidden * ffn
            work = {
                "permute": (0.0, 6.0 * tokens * hidden), "unpermute": (0.0, 6.0 * tokens * hidden),
                "gate_up": (2 * gemm, 2 * weights), "down": (gemm, weights),
                "dgrad": (3 * gemm, 3 * weights), "wgrad": (3 * gemm, 3 * weights),
            }  # fmt: skip
            for op, (flops, size) in work.items():
                yield f"{op},moesim_triton,bf16,{model},balanced,{shape},{flops},{size},{law_us(op, flops, size)}"


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    home = tmp_path_factory.mktemp("profiles") / "h200"
    shutil.copytree(shipped_folder() / "h200", home)
    meta = json.loads((home / "meta.json").read_text())
    meta["tables"]["kernels"] = {"basis": "measured", "source": "a law that the tests know"}
    (home / "meta.json").write_text(json.dumps(meta))
    (home / "kernels.csv").write_text("\n".join([COLUMNS, *rows()]) + "\n")
    return load_profile(H200, home.parent)


@pytest.mark.parametrize("size", [1e6, 3e7, 1.2e9])
def test_a_kernel_between_measured_sizes_costs_what_the_law_says(profile, size):
    cost = kernel(profile, "permute", "bf16", 0.0, size)
    assert float(cost.seconds) * 1e6 == pytest.approx(law_us("permute", 0.0, size), rel=0.05)
    assert cost.low <= cost.seconds <= cost.high
    assert cost.basis is MEASURED


def test_a_kernel_that_was_not_measured_is_refused_with_those_that_were(profile):
    with pytest.raises(MoesimError, match="permute bf16"):
        kernel(profile, "permutation", "bf16", 0.0, 1e6)
    with pytest.raises(MoesimError, match="far outside"):
        kernel(profile, "permute", "bf16", 0.0, 1e15)
    with pytest.raises(MoesimError, match="run moesim calibrate there"):
        kernel(load_profile(H200, shipped_folder()), "permute", "bf16", 0.0, 1e6)


def test_the_gradient_of_the_weights_is_slower_by_what_was_measured(profile):
    data, weights = (gradient(profile, which, "bf16") for which in ("data", "weights"))
    assert data.slower == pytest.approx(1.0, abs=0.05)
    assert weights.slower == pytest.approx(1.5, abs=0.05)
    assert weights.measured.basis is MEASURED
    assert gradient(profile, "data", "fp8_block") is None
    assert gradient(load_profile(H200, shipped_folder()), "data", "bf16") is None


def test_bytes_cost_what_the_permutations_measured_and_else_the_data_sheet(profile):
    size = np.array([0.0, 1e6, 1e9])
    own, stated = memory_bound(profile, size), memory_bound(load_profile(H200, shipped_folder()), size)
    assert own.seconds[1:] * 1e6 == pytest.approx([law_us("", 0.0, 1e6), law_us("", 0.0, 1e9)], rel=0.1)
    assert own.seconds[0] == 0.0
    assert (own.basis, stated.basis) == (MEASURED, ESTIMATED)
    assert float(own.high[2] / own.seconds[2]) < float(stated.high[2] / stated.seconds[2])
