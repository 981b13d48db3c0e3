"""``moesim cost expert-ffn``: from the tokens of each local expert, or expected on the most loaded rank."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.compute import DTYPES, expert_ffn
from moesim.cost import FloatArray
from moesim.costs.answer import Answer, mean
from moesim.costs.hardware import find_gpu, gpu_option
from moesim.costs.inputs import COUNT, FLAG, LOADS, SEED, TEXT, count, one_of, option, settle, stated
from moesim.costs.loads import DRAWS, heaviest_rank
from moesim.errors import MoesimError
from moesim.profile import load_profile

MOST_EXPERTS = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertFfn:
    """The expert layer of one rank."""

    gpu: str = gpu_option()
    hidden: int = option(COUNT, "Hidden size.")
    ffn: int = option(COUNT, "Width of one expert, the whole of it; --tp divides it.")
    dtype: str = option(one_of(DTYPES), "Of the weights.", "bf16")
    kernel: str | None = option(TEXT, "Kernel family of the profile.  [default: the profile's]", None)
    no_gate: bool = option(FLAG, "Two matrices an expert (plain FFN) instead of three (SwiGLU).", False)
    tokens_per_expert: tuple[float, ...] | None = option(LOADS, "Tokens of each expert of the rank.", None)
    tokens_global: int | None = option(COUNT, "Or tokens of all expert-parallel ranks together.", None)
    tokens_per_rank: int | None = option(COUNT, "Or tokens that each expert-parallel rank brings.", None)
    experts: int | None = option(count(MOST_EXPERTS), "Experts of the layer, on all ranks together.", None)
    top_k: int | None = option(COUNT, "Experts that a token picks.  [with --tokens-per-expert: 1]", None)
    ep: int | None = option(COUNT, "Ranks that share the experts, equally many each.  [default: 1]", None)
    tp: int = option(COUNT, "GPUs that share the width of every expert.", 1)
    load: str | None = option(
        TEXT, "balanced, uniform, zipf:S, lognormal:SIGMA or power-law:A; the answer is the expectation "
        f"for the most loaded rank ({DRAWS} draws).  [default: balanced]", None,
    )  # fmt: skip
    seed: int = option(SEED, "Of the draws.", 0)

    def __post_init__(self) -> None:
        settle(self)
        if self.ffn % self.tp:
            raise MoesimError(f"ffn {self.ffn} does not divide over tp {self.tp}: choose a divisor")
        ways = ("tokens_per_expert", "tokens_global", "tokens_per_rank")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) != 1:
            raise MoesimError(f"{' and '.join(given) or 'no tokens'} given: give exactly one of {', '.join(ways)}")
        if self.tokens_per_expert is not None:
            self._check_no_group()
        else:
            self._check_group(self.experts, self.top_k, self.ep or 1)

    def _check_no_group(self) -> None:
        for name in ("experts", "ep", "load"):
            if getattr(self, name) is not None:
                raise MoesimError(
                    f"{name} {getattr(self, name)!r} means nothing beside tokens_per_expert, which "
                    "already states one rank's load: leave it out, or give tokens_global"
                )

    def _check_group(self, experts: int | None, top_k: int | None, ep: int) -> None:
        if experts is None or top_k is None:
            missing = "experts" if experts is None else "top_k"
            raise MoesimError(f"{missing} not given: tokens of a whole group need --experts and --top-k")
        if top_k > experts:
            raise MoesimError(f"top_k {top_k} is above experts {experts}: give at most that many")
        if experts % ep:
            raise MoesimError(f"experts {experts} do not divide over ep {ep}: choose a divisor")


def price_expert_ffn(asked: ExpertFfn) -> Answer:
    """The expert layer's seconds on the most loaded rank."""
    gpu = find_gpu(asked.gpu)
    tokens, understood = _tokens(asked)
    cost = expert_ffn(
        load_profile(gpu), tokens, asked.hidden, asked.ffn // asked.tp, asked.dtype,
        top_k=asked.top_k or 1, gated=not asked.no_gate, kernel=asked.kernel,
    )  # fmt: skip
    copies = float(tokens.sum(axis=-1).mean())
    rank: dict[str, Any] = {"token_copies": copies, "active_experts": float((tokens > 0).sum(axis=-1).mean())}
    if asked.tokens_per_expert is None:
        fair = understood["tokens_global"] * (asked.top_k or 1) / understood["ep"]
        rank["over_mean"] = copies / fair
    draws = len(tokens)
    return Answer(
        mean(cost, f"mean of {draws} drawn loads" if draws > 1 else ""),
        stated(asked) | {"gpu": gpu.name} | understood,
        {"rank": rank},
    )


def _tokens(asked: ExpertFfn) -> tuple[FloatArray, dict[str, Any]]:
    """tokens[draw, local expert], and what was understood of them."""
    if asked.tokens_per_expert is not None:
        return np.array([asked.tokens_per_expert]), {"top_k": asked.top_k or 1}
    ep, load = asked.ep or 1, asked.load or "balanced"
    together = asked.tokens_global or (asked.tokens_per_rank or 0) * ep
    assert asked.experts is not None
    assert asked.top_k is not None
    tokens = heaviest_rank(load, together, (asked.experts, asked.top_k, ep), asked.seed)
    return tokens, {"tokens_global": together, "ep": ep, "load": load, "draws": len(tokens)}
