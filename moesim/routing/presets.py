"""The named routings, what people type after --routing, and the popularity each one means.

uniform | zipf:1.2 | lognormal:0.5 | a measured preset | FILE | FILE#NAME
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import numpy as np

from moesim.cost import FloatArray
from moesim.errors import MoesimError, choice
from moesim.routing.files import read_load


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Routing:
    """How popular the experts of each layer are."""

    kind: str  # "uniform", "zipf", "lognormal", "histogram" or "trace"
    parameter: float = 0.0  # exponent of zipf, sigma of lognormal
    load: FloatArray | None = None  # measured: [layer, expert], rows sum to 1
    name: str = ""
    source: str
    about: str = ""

    @property
    def label(self) -> str:
        """What to type to get it again: ``lognormal:1``."""
        return self.name or (self.kind if self.kind == "uniform" else f"{self.kind}:{self.parameter:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A histogram that ships with moesim."""

    file: str
    about: str
    source: str


_FINGERPRINTS: Final = "AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting @72b368f, Apache-2.0"

MEASURED: Final = {
    "gpt-oss-20b-mmlu": Measured(
        file="gpt_oss_20b_mmlu.csv",
        about="gpt-oss-20b reasoning on MMLU (test), 24 layers x 32 experts, 3,169,270 tokens",
        source=_FINGERPRINTS,
    ),
    "gpt-oss-20b-polyglot": Measured(
        file="gpt_oss_20b_polyglot.csv",
        about="gpt-oss-20b reasoning on Polyglot-or-Not facts, 24 layers x 32 experts, 94,447 tokens",
        source=_FINGERPRINTS,
    ),
}

ROUTINGS: Final[dict[str, tuple[str, str]]] = {
    "uniform": ("every expert gets the same share", "assumption"),
    "zipf:S": (
        "the r-th most popular expert gets a share of 1/r^S, other experts in every layer",
        "assumption",
    ),
    "lognormal:SIGMA": ("shares exp(SIGMA z), z standard normal, independent in every layer", "assumption"),
    **{name: (measured.about, measured.source) for name, measured in MEASURED.items()},
    "FILE": ("your histogram (.csv, .json, .npy, .npz) or trace (.npz, .npy); FILE#NAME picks a part", "you"),
}
"""What ``--routing`` takes: (what it is, source)."""

_LARGEST: Final = 10.0


def parse_routing(text: str) -> Routing:
    """``uniform``, ``zipf:1.2``, ``lognormal:0.5``, a measured preset, or a path to one's own file."""
    kind, _, parameter = text.partition(":")
    if text == "uniform":
        return Routing(kind="uniform", source="assumption: every expert equally popular")
    if kind in ("zipf", "lognormal"):
        return Routing(kind=kind, parameter=_parameter(kind, parameter), source="assumption: synthetic popularity")
    if text in MEASURED:
        return _preset(text)
    path = Path(text.partition("#")[0])
    if _is_file(path):
        load, is_trace = read_load(path, text.partition("#")[2])
        return Routing(kind="trace" if is_trace else "histogram", load=load, name=text, source=f"measured: {path.name}")
    if path.suffix or path.parent != Path():
        raise MoesimError(f"no routing file {str(path)!r}: give the path of a .csv, .json, .npy or .npz file")
    raise choice("routing", text, ["uniform", "zipf:1.2", "lognormal:0.5", *MEASURED, "a path to a file"])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _parameter(kind: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= _LARGEST:
        raise MoesimError(f"{kind} needs a number from 0 to {_LARGEST:g}, not {text!r}: write {kind}:1")
    return value


@cache
def _preset(name: str) -> Routing:
    measured = MEASURED[name]
    with as_file(files("moesim.routing") / "data" / measured.file) as path:
        load, _ = read_load(path, "")
    return Routing(kind="histogram", load=load, name=name, source=measured.source, about=measured.about)


def popularity(routing: Routing, layers: int, experts: int, rng: np.random.Generator) -> FloatArray:
    """Share of the token copies that each expert gets: [layer, expert], rows sum to 1.

    Synthetic routings draw every layer anew. Measured layers are used in order and start again when the
    model has more; a trace may leave the last experts unused, a histogram must have the model's number.
    """
    if layers < 1 or experts < 1:
        raise MoesimError(f"no routing for {layers} layers of {experts} experts: both must be at least 1")
    shape = (layers, experts)
    if routing.load is not None:
        return _measured(routing.label, routing.kind, routing.load, shape)
    if routing.kind == "zipf":
        ranked = np.arange(1.0, experts + 1.0) ** -routing.parameter
        weight = rng.permuted(np.broadcast_to(ranked, shape), axis=-1)
    elif routing.kind == "lognormal":
        weight = np.exp(routing.parameter * rng.standard_normal(shape))
    else:
        weight = np.ones(shape)
    return np.asarray(weight / weight.sum(axis=-1, keepdims=True))


def _measured(label: str, kind: str, load: FloatArray, shape: tuple[int, int]) -> FloatArray:
    layers, experts = shape
    seen = load.shape[-1]
    if seen > experts or (kind == "histogram" and seen != experts):
        raise MoesimError(
            f"routing {label} has {seen} experts a layer and the model {experts}: "
            "measure this model, or choose uniform, zipf:S or lognormal:SIGMA"
        )
    padded = np.pad(load, ((0, 0), (0, experts - seen)))
    return np.asarray(padded[np.arange(layers) % len(load)])
