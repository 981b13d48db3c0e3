"""The models that moesim knows by name: every field stated, one file per publisher, with its source.

Totals are the sums of the checkpoints' tensor shapes; ``published`` is what the publisher prints, and
whether its active figure counts the input embedding. ``hf:`` names a repository on huggingface.co: sizes
from its config.json, biases, norms and sinks from its tensors.
"""

from moesim.model.layers import Model
from moesim.model.presets.deepseek import deepseek, kimi
from moesim.model.presets.meta import llama3, llama4
from moesim.model.presets.mistral import mixtral
from moesim.model.presets.nvidia import nemotron
from moesim.model.presets.openai import gpt_oss
from moesim.model.presets.others import dbrx, jetmoe, minimax, olmoe, phi
from moesim.model.presets.qwen import qwen2_moe, qwen3

_PUBLISHERS = (
    *(mixtral, deepseek, kimi, qwen3, qwen2_moe, gpt_oss, llama4, llama3, olmoe, phi, dbrx, minimax, jetmoe, nemotron),
)
MODELS: dict[str, Model] = {model.name: model for publisher in _PUBLISHERS for model in publisher()}
