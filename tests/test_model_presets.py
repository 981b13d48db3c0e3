"""Presets: what publishers print, and checkpoints added up tensor by tensor."""

import re

import pytest

from moesim.model import MODELS, active_parameters, parameters


def agrees(printed: str, count: float) -> bool:
    """Within one unit of the last printed digit (publishers round or cut); 3 % when that is a zero's."""
    digits, unit = re.fullmatch(r"([0-9.]+)([BT])", printed).groups()
    scale = {"B": 1e9, "T": 1e12}[unit]
    if "." in digits:
        return abs(count - float(digits) * scale) < 10.0 ** -len(digits.partition(".")[2]) * scale
    step = 10 ** (len(digits) - len(digits.rstrip("0"))) * scale
    return abs(count - float(digits) * scale) < max(1e9, min(step, 0.03 * float(digits) * scale))


@pytest.mark.parametrize("name", MODELS)
def test_a_preset_has_the_size_its_publisher_prints(name):
    model = MODELS[name]
    printed = model.published
    assert agrees(printed.total, parameters(model) + printed.outside_text)
    assert agrees(printed.active, active_parameters(model, embedding=printed.active_embedding))
    assert model.source.startswith("hf:")


def test_the_publishers_check_can_fail():
    assert agrees("46.7B", 46.70e9)
    assert not agrees("46.7B", 46.85e9)
    assert not agrees("230B", 222e9)
    assert not agrees("1T", 1.1e12)


# tensor by tensor: attention + feed-forward + norms per layer, then embedding, head and final norm
HAND_SUMS = {
    "mixtral-8x7b": 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096 + 24 * 4096 * 14336 + 2 * 4096)
    + 2 * 32000 * 4096
    + 4096,
    "mixtral-8x22b": 56 * (2 * 6144 * 6144 + 2 * 6144 * 1024 + 8 * 6144 + 24 * 6144 * 16384 + 2 * 6144)
    + 2 * 32000 * 6144
    + 6144,
    "deepseek-v3": 61
    * (7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168 + 1536 + 512 + 2 * 7168)
    + 3 * (3 * 7168 * 18432)
    + 58 * (257 * 3 * 7168 * 2048 + 256 * 7168 + 256)
    + 2 * 129280 * 7168
    + 7168,
    "qwen3-30b-a3b": 48 * (2 * 2048 * 4096 + 2 * 2048 * 512 + 2 * 128 + 128 * 2048 + 128 * 3 * 2048 * 768 + 2 * 2048)
    + 2 * 151936 * 2048
    + 2048,
    "gpt-oss-20b": 24
    * (
        (2880 * 4096 + 4096)
        + 2 * (2880 * 512 + 512)
        + (4096 * 2880 + 2880)
        + 64
        + (32 * 2880 + 32)
        + 32 * (2880 * 5760 + 5760 + 2880 * 2880 + 2880)
        + 2 * 2880
    )
    + 2 * 201088 * 2880
    + 2880,
    "llama-4-maverick": 48 * (2 * 5120 * 5120 + 2 * 5120 * 1024 + 2 * 5120)
    + 24 * (3 * 5120 * 16384)
    + 24 * (128 * 5120 + 129 * 3 * 5120 * 8192)
    + 2 * 202048 * 5120
    + 5120,
    "olmoe-1b-7b": 16 * (4 * 2048 * 2048 + 2 * 2048 + 64 * 2048 + 64 * 3 * 2048 * 1024 + 2 * 2048)
    + 2 * 50304 * 2048
    + 2048,
    "qwen1.5-moe-a2.7b": 24
    * (4 * 2048**2 + 3 * 2048 + 60 * 2048 + 60 * 3 * 2048 * 1408 + 3 * 2048 * 5632 + 2048 + 2 * 2048)
    + 2 * 151936 * 2048
    + 2048,
    "llama-3.1-8b": 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 2 * 128256 * 4096 + 4096,
}


@pytest.mark.parametrize("name", HAND_SUMS)
def test_parameters_equal_the_sum_of_the_checkpoints_tensors(name):
    assert parameters(MODELS[name]) == HAND_SUMS[name]


def test_known_totals_stay():
    assert parameters(MODELS["mixtral-8x7b"]) == 46_702_792_704
    assert parameters(MODELS["deepseek-v3"]) == 671_026_419_200
    assert parameters(MODELS["gpt-oss-120b"]) == 116_829_156_672
