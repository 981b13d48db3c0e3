"""The expert layers that are measured: the models that people run, and how they are spread over ranks."""

from typing import Final, NamedTuple


class Shape(NamedTuple):
    """The experts of one MoE layer."""

    model: str
    hidden: int
    ffn: int
    experts: int
    top_k: int


# Sizes: config.json of the models' checkpoints (mistralai, deepseek-ai, Qwen, openai, meta-llama, allenai).
MODELS: Final = {
    shape.model: shape
    for shape in (
        Shape("mixtral-8x7b", 4096, 14336, 8, 2),
        Shape("deepseek-v3", 7168, 2048, 256, 8),
        Shape("deepseek-v2-lite", 2048, 1408, 64, 6),
        Shape("qwen3-30b-a3b", 2048, 768, 128, 8),
        Shape("qwen3-235b-a22b", 4096, 1536, 128, 8),
        Shape("gpt-oss-20b", 2880, 2880, 32, 4),
        Shape("gpt-oss-120b", 2880, 2880, 128, 4),
        Shape("llama-4-scout", 5120, 8192, 16, 1),
        Shape("olmoe-1b-7b", 2048, 1024, 64, 8),
        Shape("pangu-pro-moe", 5120, 1344, 64, 8),
    )
}
# (model, expert-parallel ranks, tensor-parallel ranks); the first three are what --quick measures
PLACEMENTS: Final = (
    ("mixtral-8x7b", 1, 1),
    ("deepseek-v3", 32, 1),
    ("olmoe-1b-7b", 1, 1),
    ("qwen3-30b-a3b", 1, 1),
    ("deepseek-v3", 8, 1),
    ("deepseek-v2-lite", 1, 1),
    ("gpt-oss-20b", 1, 1),
    ("qwen3-235b-a22b", 8, 1),
    ("mixtral-8x7b", 1, 4),
    ("gpt-oss-120b", 4, 1),
    ("llama-4-scout", 1, 1),
    ("qwen3-235b-a22b", 1, 1),
    ("mixtral-8x7b", 4, 1),
    ("gpt-oss-120b", 1, 1),
    ("qwen3-30b-a3b", 4, 1),
    ("deepseek-v3", 1, 1),
)
# On a CPU: one layer must take milliseconds. In reach of OLMoE and of everything twice as wide.
CPU_SHAPES: Final = (
    Shape("cpu-512x256", 512, 256, 16, 4),
    Shape("cpu-1024x512", 1024, 512, 8, 2),
    Shape("cpu-512x1024", 512, 1024, 8, 2),
    Shape("cpu-256x512", 256, 512, 32, 4),
    Shape("cpu-1024x1024", 1024, 1024, 16, 4),
    Shape("cpu-2048x512", 2048, 512, 8, 2),
)
# Of the live layers: no shape that is calibrated.
LIVE_GPU: Final = (Shape("live-3072x1536", 3072, 1536, 64, 6), Shape("live-5120x3072", 5120, 3072, 16, 2))
LIVE_CPU: Final = (Shape("live-768x384", 768, 384, 16, 4), Shape("live-640x768", 640, 768, 8, 2))
