"""Which of torch's attention kernels a row of attention.csv is measured with: no GPU is needed."""

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from moesim.calibrate import attention
from moesim.calibrate.attention import fastest
from moesim.calibrate.bench import Bench, SkipError
from moesim.calibrate.timing import Timing

FLASH, CUDNN, EFFICIENT = (*attention._FAST, *attention._ELSE)


class ByBackend:
    """Times by the kernel that was asked for last; ``lost`` after an error of a timing."""

    events_used, lost = 0, False

    def __init__(self, monkeypatch, seconds, results=()):
        self.asked, self.seconds, self.results = [], seconds, dict(results)
        monkeypatch.setattr(attention, "_with", self.run)

    def run(self, backend, call):
        self.asked.append(backend)
        if backend not in self.seconds:
            raise RuntimeError(f"No available kernel: {backend.name}")
        return self.results.get(backend, torch.ones(1))

    def __call__(self, calls, graph=True):
        for call in calls:
            call()
        return Timing(self.seconds[self.asked[-1]], 0.0, 10)


def measured(timer):
    bench = Bench(device="cuda", l2_bytes=1.0, timer=timer, seed=0, free_bytes=lambda: 1e9)
    return fastest(bench, [lambda: None]).time_s


@pytest.mark.parametrize(("flash_s", "cudnn_s", "least_s"), [(2.0, 1.0, 1.0), (1.0, 2.0, 1.0)])
def test_the_faster_kernel_counts_and_the_third_is_not_asked(monkeypatch, flash_s, cudnn_s, least_s):
    timer = ByBackend(monkeypatch, {FLASH: flash_s, CUDNN: cudnn_s, EFFICIENT: 0.1})
    assert measured(timer) == least_s
    assert EFFICIENT not in timer.asked


def test_where_neither_runs_the_third_does(monkeypatch):
    assert measured(ByBackend(monkeypatch, {EFFICIENT: 3.0})) == 3.0


def test_where_none_runs_the_error_says_so(monkeypatch):
    with pytest.raises(RuntimeError, match="EFFICIENT"):
        measured(ByBackend(monkeypatch, {}))


def test_a_kernel_that_writes_nan_does_not_count(monkeypatch):
    nan = {FLASH: torch.full((1,), torch.nan)}
    assert measured(ByBackend(monkeypatch, {FLASH: 1.0, CUDNN: 2.0}, nan)) == 2.0
    with pytest.raises(SkipError, match="NaN"):
        measured(ByBackend(monkeypatch, {EFFICIENT: 1.0}, {EFFICIENT: nan[FLASH]}))


def test_a_process_that_can_time_nothing_any_more_tries_no_other_kernel(monkeypatch):
    timer = ByBackend(monkeypatch, {CUDNN: 1.0})
    timer.lost = True
    with pytest.raises(RuntimeError, match="FLASH"):
        measured(timer)


def test_torch_is_told_which_kernel_and_refuses_what_it_does_not_have_here():
    q, k, v = (torch.ones(1, 2, 4, 8) for _ in range(3))
    found = attention._with(SDPBackend.MATH, lambda: scaled_dot_product_attention(q, k, v))
    assert torch.allclose(found, torch.ones(1, 2, 4, 8))
    with pytest.raises(RuntimeError, match="backend"):
        attention._with(EFFICIENT, lambda: scaled_dot_product_attention(q, k, v))
