"""Strategies as people write them: ``"dp=8 ep=8"``, a YAML or JSON file, a mapping."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from moesim.errors import MoesimError, choice
from moesim.strategy.nouns import FIELDS, Strategy
from moesim.workload import Workload

ALIASES: Final = {"vp": "virtual"}  # other names of the same choice


def load_strategy(source: str | Mapping[str, Any], gpus: int, workload: Workload | None = None) -> Strategy:
    """Read ``"dp=8 ep=8 …"``, the path of a YAML or JSON file, or a mapping. ``dp`` may be left out: what the other
    degrees leave; so may ``micro_batch``: in serving all sequences of a rank, divided over its pipeline stages.

    Raises MoesimError naming an unknown key, a value of the wrong type, or an impossible value.
    """
    values = dict(source) if isinstance(source, Mapping) else _read(source)
    given: dict[str, Any] = {}
    for alias, value in values.items():
        name = ALIASES.get(alias, alias)
        if name in given:
            raise MoesimError(f"strategy gives {name} twice, once as {alias}: keep one of them")
        given[name] = _convert(name, value)
    if given.get("virtual", 1) > 1:
        given.setdefault("schedule", "interleaved")
    if "dp" not in given:
        others = given.get("tp", 1) * given.get("pp", 1) * given.get("cp", 1)
        if others < 1 or gpus % others:
            raise MoesimError(f"strategy has tp x pp x cp = {others}, which does not divide {gpus} GPUs")
        given["dp"] = gpus // others
    if given.get("chunks", 1) > 1 and "overlap" not in given:
        given["overlap"] = "chunked"
    if workload is not None and not workload.trains and "micro_batch" not in given:
        given["micro_batch"] = max(1, workload.sequences // max(1, given["dp"] * given.get("pp", 1)))
    return Strategy(**given)


def _read(text: str) -> dict[str, Any]:
    path = Path(text)
    if path.suffix in (".yaml", ".yml", ".json"):
        return _read_file(path)
    if text.lstrip().startswith("{"):
        return _parse_yaml(text, "the strategy")
    values: dict[str, Any] = {}
    for part in text.split():
        name, separator, value = part.partition("=")
        if not separator or not value:
            raise MoesimError(f"strategy part {part!r} is not key=value: write for example 'tp=2 ep=8'")
        if name in values:
            raise MoesimError(f"strategy gives {name} twice: keep one of them")
        values[name] = value
    return values


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise MoesimError(f"cannot read the strategy file {path}: {error}") from None
    return _parse_yaml(text, str(path))


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MoesimError(f"{where} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        held = "nothing" if values is None else f"a {type(values).__name__}"
        raise MoesimError(f"{where} holds {held}: write key: value pairs such as 'ep: 8'")
    ranked = values.get("configurations")
    if ranked == []:
        raise MoesimError(f"{where} is a plan without an answer: choose a strategy of your own, such as 'ep: 8'")
    if isinstance(ranked, list) and ranked and isinstance(ranked[0], dict):  # a whole plan: its first answer
        values = ranked[0]
    inner = values.get("strategy", values)
    return dict(inner) if isinstance(inner, dict) else values


def _convert(name: str, value: Any) -> Any:
    if name not in FIELDS:
        raise choice("strategy key", str(name), list(FIELDS))
    if name == "capacity_factor":
        return _number(name, value, float)
    if name == "layers":
        return _layers(value)
    return str(value) if isinstance(FIELDS[name].default, str) else _number(name, value, int)


def _layers(value: Any) -> tuple[int, ...] | None:
    """``"4,4,1"`` or a list of numbers."""
    if value in (None, "none"):
        return None
    each = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    return tuple(int(_number("layers", one, int) or 0) for one in each)


def _number(name: str, value: Any, kind: type[int] | type[float]) -> int | float | None:
    if name == "capacity_factor" and value in (None, "none"):
        return None
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float) and value != int(value)):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        word = "a whole number" if kind is int else "a number"
        raise MoesimError(f"strategy has {name}={value!r}: give {word}") from None


def show(strategy: Strategy) -> str:
    """``"dp=2 tp=1 …"``: every field, in the order ``load_strategy`` accepts."""
    values = strategy.to_dict() | {"layers": ",".join(map(str, strategy.layers)) if strategy.layers else None}
    return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)
