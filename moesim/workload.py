"""What arrives: one training step, one prefill batch or one decode batch.

    train    ``sequences`` of ``queries`` tokens, forward and backward, then one optimizer step
    prefill  ``sequences`` prompts of ``queries`` tokens, nothing cached
    decode   ``sequences`` of one new token each, ``past`` tokens already cached

Defaults: train 2,048 sequences of 4,096 tokens; prefill 4,096 tokens per GPU; decode 128 sequences per
GPU at 4,096 tokens of context.
"""

from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from moesim.errors import MoesimError, choice

Kind = Literal["train", "prefill", "decode"]
WORKLOADS: Final = get_args(Kind)
DTYPES: Final = ("bf16", "fp8", "fp8_block", "int4", "ternary")
TRAIN_DTYPES: Final = ("bf16", "fp8", "fp8_block")

# Balanced by the auxiliary loss in training. In serving sigma 0.5 gives max/mean 1.46 over 32 ranks of 8
# experts; DeepSeek-R1 was measured at 1.50-1.54 there (NVIDIA TensorRT-LLM, examples/wide_ep, EPLB README).
DEFAULT_ROUTING: Final = {"train": "uniform", "prefill": "lognormal:0.5", "decode": "lognormal:0.5"}

TRAIN_SEQUENCES: Final = 2048
SEQUENCE_TOKENS: Final = 4096
PREFILL_TOKENS_PER_GPU: Final = 4096
DECODE_SEQUENCES_PER_GPU: Final = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The work of one step over the whole cluster."""

    kind: Kind
    sequences: int  # over the whole cluster
    queries: int  # new tokens per sequence
    past: int  # tokens per sequence already in the KV cache
    dtype: str  # of the matrix multiplications

    def __post_init__(self) -> None:
        if self.kind not in WORKLOADS:
            raise choice("workload", self.kind, WORKLOADS)
        allowed = TRAIN_DTYPES if self.kind == "train" else DTYPES
        if self.dtype not in allowed:
            raise choice(f"dtype for {self.kind}", self.dtype, allowed)
        for name, value, least in (
            ("sequences", self.sequences, 1),
            ("tokens per sequence", self.queries, 1),
            ("cached tokens", self.past, 0),
        ):
            if value < least:
                raise MoesimError(f"workload has {value} {name}: give at least {least}")

    @property
    def tokens(self) -> int:
        """New tokens of one step over the whole cluster."""
        return self.sequences * self.queries

    @property
    def trains(self) -> bool:
        return self.kind == "train"


def make_workload(
    kind: str,
    gpus: int,
    *,
    global_batch: int | None = None,
    seq: int | None = None,
    batch: float | None = None,
    isl: int | None = None,
    osl: int | None = None,
    dtype: str = "bf16",
) -> Workload:
    """Fill in the defaults of ``kind`` for a cluster of ``gpus``.

    ``batch`` is sequences per GPU and excludes ``global_batch``; ``seq`` belongs to training, ``isl`` and
    ``osl`` to prefill and decode. A decode batch is played half-way through its ``osl`` output tokens.
    """
    if kind not in WORKLOADS:
        raise choice("workload", kind, WORKLOADS)
    _refuse_foreign_options(kind, {"seq": seq, "isl": isl, "osl": osl})
    if batch is not None and global_batch is not None:
        raise MoesimError("both --batch and --global-batch are given: keep one of them")
    prompt = seq or isl or SEQUENCE_TOKENS
    sequences = global_batch if global_batch is not None else _sequences(kind, gpus, batch, prompt)
    decodes = kind == "decode"
    return Workload(
        kind=cast(Kind, kind),
        sequences=sequences,
        queries=1 if decodes else prompt,
        past=prompt + (osl or 0) // 2 if decodes else 0,
        dtype=dtype,
    )


def _sequences(kind: str, gpus: int, batch: float | None, prompt: int) -> int:
    if batch is not None:
        if not 0 < batch < float("inf"):
            raise MoesimError(f"--batch is {batch}: give a positive number of sequences per GPU")
        return max(1, round(batch * gpus))
    if kind == "train":
        return TRAIN_SEQUENCES
    if kind == "prefill":
        return max(1, gpus * PREFILL_TOKENS_PER_GPU // prompt)
    return gpus * DECODE_SEQUENCES_PER_GPU


def _refuse_foreign_options(kind: str, given: dict[str, int | None]) -> None:
    foreign = {"train": ("isl", "osl"), "prefill": ("seq", "osl"), "decode": ("seq",)}[kind]
    for name in foreign:
        if given[name] is not None:
            raise MoesimError(f"--{name} {given[name]} does not apply to a {kind} workload: leave it out")
    for name, value in given.items():
        if value is not None and value < (0 if name == "osl" else 1):
            raise MoesimError(f"--{name} is {value}: give a positive number of tokens")
