"""Several tasks trained as one model, each on its own GPUs: a step waits for the slowest task (SE-MoE, section 3.3).

    step = fixed + per_sample x max over tasks of  batch / GPUs

A heavy task gets more GPUs, light ones keep one. ``fixed`` is what a step takes whatever the batch (synchronisation,
optimizer); two measured steps give both numbers. Without it, balance would look better than it is: the published
case (512, 256, 128 and 128 samples on 4 or 8 GPUs, arXiv:2205.10034) gains 18.2 % a GPU, not 100 %.
"""

from collections.abc import Sequence
from typing import NamedTuple

from moesim.errors import MoesimError


class StepModel(NamedTuple):
    """Seconds of a step from the samples of the busiest GPU."""

    fixed_s: float
    per_sample_s: float

    def step_s(self, batches: Sequence[int], gpus: Sequence[int]) -> float:
        """Seconds of a step; task i has ``batches[i]`` samples on ``gpus[i]`` GPUs."""
        return self.fixed_s + self.per_sample_s * busiest(batches, gpus)

    def samples_per_s_per_gpu(self, batches: Sequence[int], gpus: Sequence[int]) -> float:
        """Throughput of a GPU, idle ones counted."""
        return sum(batches) / self.step_s(batches, gpus) / sum(gpus)


def busiest(batches: Sequence[int], gpus: Sequence[int]) -> float:
    """Samples of the GPU that has most."""
    if len(batches) != len(gpus) or not batches or min(gpus) < 1 or min(batches) < 0:
        raise MoesimError(f"tasks of {list(batches)} samples on {list(gpus)} GPUs: give at least one GPU for each task")
    return max(batch / count for batch, count in zip(batches, gpus, strict=True))


def fit(first: tuple[float, float], second: tuple[float, float]) -> StepModel:
    """The model through two measured steps, each (samples of the busiest GPU, seconds)."""
    if first[0] == second[0]:
        raise MoesimError(f"two steps with {first[0]} samples on the busiest GPU: measure with different batches")
    per_sample_s = (first[1] - second[1]) / (first[0] - second[0])
    return StepModel(first[1] - per_sample_s * first[0], per_sample_s)


def share_gpus(batches: Sequence[int], gpus: int) -> list[int]:
    """GPUs of each task: one each, then every further one to the task whose GPUs have most samples. No other
    sharing has a less busy busiest GPU."""
    if gpus < len(batches):
        raise MoesimError(f"{len(batches)} tasks on {gpus} GPUs: give at least one GPU for each task")
    given = [1] * len(batches)
    for _ in range(gpus - len(batches)):
        heaviest = max(range(len(batches)), key=lambda task: batches[task] / given[task])
        given[heaviest] += 1
    return given
