"""Every kernel compiles without a GPU: tensor cores in use, shared memory fits, nothing spills.

A process without the interpreter runs the launchers on small operands; what stands in for the launch compiles, for
Hopper and for Ampere, exactly what a GPU of that kind would compile, tile by tile, and describes it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import triton.backends.nvidia as triton_nvidia

ROOT = Path(__file__).resolve().parents[2]
SHARED_BYTES = {90: 227 * 1024, 80: 163 * 1024}
INSTRUCTIONS = ("wgmma.mma_async", "mma.sync", "cp.async.bulk.tensor", "cp.async.cg")
GEMMS = ("_grouped_gemm_kernel", "_low_bit_kernel", "_dgrad_kernel", "_wgrad_kernel")
OTHERS = (  # what else calibration and validation launch
    "_permute_kernel", "_unpermute_kernel", "_router_kernel", "_sort_chunk_kernel", "_rank_kernel", "_scan_kernel",
    "_place_kernel", "_slot_kernel", "_matvec_kernel", "_copy_rounds",
)  # fmt: skip
SPILLED_BYTES = {"gelu": 256, "_low_bit_kernel": 64}  # at most: erf after the loop over K; Ampere's 128 rows


def launches(hopper: bool) -> None:
    """One launch of each variant that the launchers start on such a GPU."""
    import torch

    from moesim.calibrate import interference, static_fp8
    from moesim.kernels import backward, baselines, expert_ffn, grouped_gemm, low_bit, matvec, permute, router, sort

    experts_TK, weights_TK = torch.zeros(32, 2, dtype=torch.int64), torch.zeros(32, 2)
    router.router(torch.zeros(32, 64), 4)
    router.grouped_router(torch.zeros(32, 64), 4, 2)
    x_TH = torch.zeros(32, 256, dtype=torch.bfloat16)
    for dtype in ("bf16", "fp8_block") if hopper else ("bf16",):
        experts = expert_ffn.make_experts(2, 256, 256, dtype, device="cpu")
        for load in (8, 20, 60, 1000):  # one for each block
            expert_ffn.expert_ffn(x_TH, experts, experts_TK, weights_TK, load=load)
    for block in (16, 128):
        order = sort.sort_by_expert(experts_TK, 2, block)
        x_RH = permute.permute(x_TH, order)
        w = torch.zeros(2, 256, 256, dtype=torch.bfloat16)
        for activation in ("relu", "gelu"):
            grouped_gemm.grouped_gemm(x_RH, w, order, activation=activation, row_weight_R=torch.zeros(order.rows))
        for weights in (low_bit.quantise_int4(w), low_bit.quantise_ternary(w)):
            low_bit.grouped_gemm_low_bit(x_RH, weights, order, activation="swiglu")
        backward.grouped_dgrad(x_RH, w, order)
    backward.grouped_wgrad(x_RH, x_RH, order)
    for count in (2, 256):  # several chunks, bins of one and of two chunks
        sort.sort_by_expert(torch.zeros(300, 2, dtype=torch.int32), count, 16)
    baselines.capacity_slots(experts_TK, 2, 16)
    for weights in (low_bit.quantise_int4(w), low_bit.quantise_ternary(w)):
        matvec.matvec_low_bit(x_TH, weights, experts_TK.flatten().int(), activation="swiglu")
    interference.hold_sms(torch.zeros(2**14), torch.zeros(2**14), programs=16, rounds=1)
    if hopper:
        static_fp8.quantise_static(x_TH, torch.ones(()))


def compile_all(capability: int) -> list[dict]:
    """A description of each thing that ``launches`` would run."""
    from unittest import mock

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    from moesim.kernels import tiles

    target = GPUTarget("cuda", capability, 32)
    backend, found = make_backend(target), {}

    def run(self, *args, grid, warmup, **options):
        binder = create_function_from_signature(self.signature, self.params, backend)
        bound, specialization, rest = binder(*args, **options)
        options, signature, constants, attributes = self._pack_args(backend, options, bound, specialization, rest)
        key = repr((self.__name__, signature, constants, attributes, options.num_warps, options.num_stages))
        if key not in found:
            source = ASTSource(self, signature, constants, attributes)
            found[key] = _described(self, bound, triton.compile(source, target=target, options=options.__dict__))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(tiles, "capability", return_value=divmod(capability, 10)),
    ):
        launches(hopper=capability >= 90)
    return list(found.values())


def _described(function, bound, compiled) -> dict:
    """Name, tile, bytes of shared memory and local memory (spills), registers, instructions."""
    tool = Path(triton_nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        command = [tool, "--dump-resource-usage", binary.name]
        used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}
    ptx = compiled.asm["ptx"]
    return {
        "name": function.__name__,
        "tile": {name: value for name, value in bound.items() if name.isupper() and isinstance(value, int | str)},
        "shared_bytes": compiled.metadata.shared,
        "registers": figures["REG"],
        "spilled_bytes": figures["STACK"] + figures["LOCAL"],
        "threads": 32 * compiled.metadata.num_warps,
        "instructions": [one for one in INSTRUCTIONS if one in ptx],
    }


@pytest.fixture(scope="module", params=sorted(SHARED_BYTES))
def compiled(request, tmp_path_factory):
    """What a process without the interpreter compiles for that capability."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, __file__, str(request.param)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return request.param, json.loads(done.stdout)


def test_every_kernel_compiles_fits_and_keeps_its_registers(compiled):
    capability, found = compiled
    assert {one["name"] for one in found} >= {*GEMMS, *OTHERS, *(["_to_fp8"] if capability == 90 else [])}
    for one in found:
        assert one["shared_bytes"] <= SHARED_BYTES[capability], one
        assert one["registers"] * one["threads"] <= 65536, one
        allowed = max(SPILLED_BYTES.get(key, 0) for key in (one["name"], one["tile"].get("ACTIVATION")))
        assert one["spilled_bytes"] <= allowed, one


def test_gemms_use_tensor_cores_and_load_without_registers(compiled):
    capability, found = compiled
    for one in (one for one in found if one["name"] == "_grouped_gemm_kernel"):
        large = one["tile"]["BLOCK_M"] >= 64  # a warp group multiplies 64 rows
        assert ("wgmma.mma_async" if capability == 90 and large else "mma.sync") in one["instructions"], one
        assert ("cp.async.bulk.tensor" if capability == 90 else "cp.async.cg") in one["instructions"], one


def test_all_tiles_of_the_launcher_are_compiled(compiled):
    capability, found = compiled
    tiles = [one["tile"] for one in found if one["name"] == "_grouped_gemm_kernel"]
    dtypes = 2 if capability == 90 else 1
    for activation in ("swiglu", "none"):
        blocks = sorted(tile["BLOCK_M"] for tile in tiles if tile["ACTIVATION"] == activation)
        assert blocks == sorted([16, 32, 64, 128] * dtypes)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(compile_all(int(sys.argv[1]))))
