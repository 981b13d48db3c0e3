"""Reading a model: a preset's name, or a Hugging Face config.json or its folder."""

from moesim.errors import choice
from moesim.model.layers import Model
from moesim.model.presets import MODELS


def load_model(name_or_path: str) -> Model:
    """The preset of that name, or the model that a config.json describes."""
    if name_or_path in MODELS:
        return MODELS[name_or_path]
    raise choice("model", name_or_path, list(MODELS))
