"""``moesim cost gemm``."""

from dataclasses import dataclass

from moesim.compute import DTYPES, gemm
from moesim.costs.answer import Answer, mean
from moesim.costs.hardware import find_gpu, gpu_option
from moesim.costs.inputs import COUNT, one_of, option, settle, stated
from moesim.profile import load_profile


@dataclass(frozen=True, kw_only=True, slots=True)
class Gemm:
    """[m, k] x [k, n]."""

    gpu: str = gpu_option()
    m: int = option(COUNT, "Rows of the input: tokens.")
    n: int = option(COUNT, "Columns of the weights: outputs.")
    k: int = option(COUNT, "Rows of the weights: inputs.")
    dtype: str = option(one_of(DTYPES), "Of the operands.", "bf16")

    def __post_init__(self) -> None:
        settle(self)


def price_gemm(asked: Gemm) -> Answer:
    """The GEMM's seconds."""
    gpu = find_gpu(asked.gpu)
    cost = gemm(load_profile(gpu), asked.m, asked.n, asked.k, asked.dtype)
    return Answer(mean(cost), stated(asked) | {"gpu": gpu.name}, {})
