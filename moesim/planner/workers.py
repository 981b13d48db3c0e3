"""Use the machine's cores: the same function over several shards, one process for each.

Workers are forked, so that they start with everything this process has read and fitted; a shard always
goes to the same worker, which keeps what it priced. Where forking is not to be had, this process does all.
The answer does not depend on the number of workers.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_all_start_methods, get_context
from typing import Any, Final, Protocol, TypeVar

from moesim.step.scenario import Scenario

MOST_WORKERS: Final = 8

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Spread(Protocol):
    """``spread(function, items)`` is ``[function(scenario, item) for item in items]``."""

    def __call__(self, function: Callable[[Scenario, Item], Answer], items: Sequence[Item]) -> list[Answer]: ...


_given: list[Scenario] = []  # a forked worker finds its scenario here


def available() -> int:
    """Workers that help: the cores this process may use; 1 where forking is not safe."""
    if "fork" not in get_all_start_methods() or threading.active_count() > 1:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)


@contextmanager
def workers(scenario: Scenario, count: int) -> Iterator[Spread]:
    """``count`` processes that know the scenario; item number i goes to worker i modulo ``count``."""
    if count == 1:
        yield lambda function, items: [function(scenario, item) for item in items]
        return
    _given[:] = [scenario]
    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking beside BLAS threads, which are idle
            pools = [stack.enter_context(ProcessPoolExecutor(1, get_context("fork"))) for _ in range(count)]
            for future in [pool.submit(os.getpid) for pool in pools]:
                future.result()

        def spread(function: Callable[[Scenario, Any], Any], items: Sequence[Any]) -> list[Any]:
            futures = [pools[i % count].submit(_call, function, item) for i, item in enumerate(items)]
            return [future.result() for future in futures]

        yield spread


def _call(function: Callable[[Scenario, Any], Any], item: Any) -> Any:
    return function(_given[0], item)
