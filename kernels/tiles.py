"""Which tile a grouped GEMM uses: rows of x by rows of w by values of K, warps, stages, one program a tile or a loop.

load (tokens per expert)  --block_for-->  block, the padding of sort_by_expert  --tile_for-->  Tile
"""

from functools import lru_cache
from typing import Final, NamedTuple

import torch

BLOCKS: Final = (16, 32, 64, 128)


class Tile(NamedTuple):
    """One tile: ``rows`` of w (gate and up together), ``depth`` values of K; ``loops``: a program an SM, over tiles."""

    rows: int
    depth: int
    warps: int
    stages: int
    loops: bool


# Estimated from the roofline, PTX and ptxas; not yet tuned on a GPU (studies/kernel_speed.py --tune does).
# Hopper, 227 KiB of shared memory an SM. 16 and 32: bound by the weights' bytes, several programs an SM;
# 64 and 128: one program an SM runs on, so that its epilogue hides the first loads of the next tile.
HOPPER: Final = {
    ("bf16", 16): Tile(64, 128, 4, 4, False),
    ("bf16", 32): Tile(128, 64, 4, 4, False),
    ("bf16", 64): Tile(256, 64, 8, 4, True),
    ("bf16", 128): Tile(256, 64, 8, 4, True),
    ("fp8_block", 16): Tile(64, 128, 4, 4, False),
    ("fp8_block", 32): Tile(128, 128, 4, 4, False),
    ("fp8_block", 64): Tile(128, 128, 4, 4, False),
    ("fp8_block", 128): Tile(128, 128, 8, 4, True),
}
# Everything else loads by pointers and fits into 99 KiB of shared memory (L40S).
OTHERS: Final = {
    ("bf16", 16): Tile(64, 128, 4, 4, False),
    ("bf16", 32): Tile(128, 64, 4, 3, False),
    ("bf16", 64): Tile(128, 64, 4, 3, False),
    ("bf16", 128): Tile(128, 64, 8, 3, False),
    ("fp8_block", 16): Tile(64, 128, 4, 4, False),
    ("fp8_block", 32): Tile(128, 128, 4, 3, False),
    ("fp8_block", 64): Tile(128, 128, 8, 3, False),
    ("fp8_block", 128): Tile(128, 128, 8, 3, False),
}


# The largest mean load for which blocks of 16, 32 and 64 rows are taken; likewise estimated.
LIMITS: Final = {"bf16": (12.0, 24.0, 80.0), "fp8_block": (12.0, 24.0, 80.0)}


def block_for(tokens_per_expert: float, dtype: str) -> int:
    """Rows to pad each expert to (BLOCK_M) for that mean load; the caller gives it to ``sort_by_expert``.

    Padding costs nothing while the weights' bytes bound the time, so the steps lie near the full block;
    from about 100 tokens an expert on the arithmetic does, and the largest tile is the fastest.
    """
    limits = LIMITS.get(dtype, LIMITS["bf16"])
    return next((block for block, limit in zip(BLOCKS, limits, strict=False) if tokens_per_expert <= limit), BLOCKS[-1])


def tile_for(dtype: str, block: int, device: torch.device) -> Tile:
    """The tile of a GEMM of that dtype ("bf16", "fp8_block") with that padding."""
    table = HOPPER if has_tma(device) else OTHERS
    if (dtype, block) not in table:
        raise ValueError(f"no tile for {dtype} with blocks of {block} rows: sort with a block of {BLOCKS}")
    return table[dtype, block]


def has_tma(device: torch.device) -> bool:
    """Whether tiles are loaded by the tensor memory accelerator: Hopper, data-centre Blackwell, the interpreter."""
    return capability(device)[0] in (9, 10)


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    """The device's compute capability; a CPU (the interpreter) counts as Hopper."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """How many SMs the device has; a CPU (the interpreter) counts as 4."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
