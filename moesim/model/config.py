"""A config.json as typed keys: each one read is ticked off, and what is left over must be harmless.

A left-over key that is off (null, false, 0, empty) or known to change no shape passes; one whose name
sounds structural is refused by name, so that an unknown architecture never passes for a known one.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

from moesim.errors import MoesimError

_REQUIRED: Final = object()

# Keys that change no shape: training, generation, positions, scaling, bookkeeping.
_HARMLESS: Final = re.compile(
    r"drop|_eps$|epsilon|token_id|token_index|aux|loss|jitter|noise|init|rope|rotary|yarn|temperature|beam|no_repeat|cache"
    r"|^output_|^return_|_multiplier$|_scale$|_beta$|scaling|mtp|implementation|^_|^clip_"
    r"|^(architectures|auto_map|model_type|transformers_version|name_or_path|pretraining_tp|top_k|ep_size"
    r"|max_position_embeddings|original_max_position_embeddings|max_sequence_length|max_window_layers|model_max_length"
    r"|scoring_func|norm_topk_prob|topk_method|moe_router_dtype|router_dtype|attn_logit_softcapping"
    r"|is_decoder|id2label|label2id|swiglu_limit|for_llm_compressor|bos_token|eos_token|norm_type)$"
)
_STRUCTURAL: Final = re.compile(
    r"layer|head|expert|moe|att|hidden|dim|rank|lora|size|width|conv|ssm|mamba|state|group|window|ffn|mlp|linear"
    r"|hash|latent|sparse|cross|coder|kernel|chunk|channel|router|gate|gating|topk|top_k|bias|tie|share|norm"
    r"|block|memory|depth|recurr|recurs|loop|index|local|global|hybrid|pattern|feed_forward|residual|parallel"
    r"|embd|embedding|vocab|compress|kv|altup|laurel|delta|retention|lightning|mixer|activation|engram"
)


class Config:
    """The keys of one model, with the file's name for messages."""

    def __init__(self, where: str, values: dict[str, Any]) -> None:
        self.where = where
        self.values = values
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def integer(self, *names: str, default: Any = _REQUIRED) -> Any:
        """A whole number under one of its names; where several are given they must agree."""
        found = {name: self._take(name, int) for name in names if self.has(name)}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{name} = {value}" for name, value in found.items())
            raise MoesimError(f"{self.where}: {said} disagree: keep the right one")
        if found:
            return next(iter(found.values()))
        return self._default(names, default)

    def flag(self, name: str, default: Any = _REQUIRED) -> Any:
        """True or false."""
        return self._take(name, bool) if self.has(name) else self._default((name,), default)

    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        """A string."""
        return self._take(name, str) if self.has(name) else self._default((name,), default)

    def list_of(self, name: str, kind: type, length: int | None = None) -> list[Any]:
        """A list of one type; empty when the key is absent; ``length`` must match otherwise."""
        if not self.has(name):
            return []
        values: list[Any] = self._take(name, list)
        if not all(_is(value, kind) for value in values):
            raise self.wrong(name, f"give a list of {kind.__name__}")
        if length is not None and values and len(values) != length:
            raise self.wrong(name, f"give one entry for each of the {length} layers, not {len(values)}")
        return values

    def mapping(self, name: str) -> dict[str, Any]:
        """A nested object; empty when absent."""
        return self._take(name, dict) if self.has(name) else {}

    def ignore(self, *names: str) -> None:
        """Tick off keys that mean nothing here."""
        self._read.update(names)

    def wrong(self, name: str, remedy: str) -> MoesimError:
        """The error for a value that cannot be used."""
        return MoesimError(f"{self.where}: key {name!r} is {_short(self.values.get(name))}: {remedy}")

    def refuse_unread(self) -> None:
        """Refuse the first key that nobody read, that is on, and that sounds structural."""
        for name, value in self.values.items():
            off = not value or name in self._read
            if not off and _STRUCTURAL.search(name) and not _HARMLESS.search(name):
                raise self.wrong(
                    name,
                    "moesim does not model what this key changes; delete it if it changes no shape, "
                    "or describe the layers in Python (moesim.model.Model)",
                )

    def _take(self, name: str, kind: type) -> Any:
        self._read.add(name)
        if not _is(self.values[name], kind):
            raise self.wrong(name, f"give {_KINDS[kind]}")
        return self.values[name]

    def _default(self, names: tuple[str, ...], default: Any) -> Any:
        if default is _REQUIRED:
            raise MoesimError(f"{self.where}: missing key {' or '.join(map(repr, names))}: add it")
        return default


def read_config(path: Path) -> Config:
    """The language model's keys of a config.json (or of the folder that holds it)."""
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise MoesimError(f"cannot read {file}: {error.strerror}; give a config.json or its folder") from None
    except (ValueError, RecursionError) as error:
        raise MoesimError(f"{file} is not valid JSON ({error}): download the config.json again") from None
    if not isinstance(values, dict):
        raise MoesimError(f"{file} holds a JSON {type(values).__name__}: give the model's config object")
    text = values.get("text_config")
    if text is None:
        return Config(str(file), values)
    if not isinstance(text, dict):
        raise MoesimError(f"{file}: key 'text_config' is {_short(text)}: give an object")
    outer = ("quantization_config", "torch_dtype", "dtype", "tie_word_embeddings")
    return Config(str(file), {key: values[key] for key in outer if key in values} | text)


_KINDS: Final = {
    int: "a whole number",
    bool: "true or false",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def _is(value: Any, kind: type) -> bool:
    """JSON's true is not a number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
