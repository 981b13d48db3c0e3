"""Processes that speak to each other through torch.distributed: two on a CPU (gloo), one per GPU (nccl).

    parent  --(task, arguments)-->  every process  --answer of each-->  parent

They are fresh interpreters (no fork of a process with threads, no second run of the user's script), meet through a
file, and end when the parent does: their pipe closes.
"""

import os
import subprocess
import sys
import tempfile
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from moesim.calibrate.bench import SkipError
from moesim.calibrate.machine import process_cores

_START_S: Final = 120.0
_ANSWER_S: Final = 300.0


class Workers:
    """``ranks`` processes that run tasks together."""

    def __init__(self, ranks: int, backend: str) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="moesim-")
        meet = Path(self.home.name, "meet").as_uri()
        self.pipes: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(ranks):
            ours, theirs = Pipe()
            code = f"from {__name__} import serve; serve({theirs.fileno()}, {rank}, {ranks}, {backend!r}, {meet!r})"
            self.processes.append(
                subprocess.Popen([sys.executable, "-c", code], env=_environment(), pass_fds=[theirs.fileno()])
            )
            theirs.close()
            self.pipes.append(ours)
        try:
            self._answers(_START_S)
        except SkipError:
            self.close()
            raise

    def run(self, task: str, **arguments: Any) -> list[Any]:
        """The answer of every rank of ``module:function``, called as ``function(rank, ranks, **arguments)``."""
        for pipe in self.pipes:
            pipe.send((task, arguments))
        return self._answers(_ANSWER_S)

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.home.cleanup()

    def _answers(self, timeout_s: float) -> list[Any]:
        found = []
        for pipe in self.pipes:
            try:
                if not pipe.poll(timeout_s):
                    raise SkipError(f"a process did not answer in {timeout_s:.0f} s")
                error, answer = pipe.recv()
            except (EOFError, OSError):
                raise SkipError("a process ended; its memory or its network may not suffice") from None
            if error:
                raise SkipError(error)
            found.append(answer)
        return found


def _environment() -> dict[str, str]:
    """This process's, with the moesim that runs here before any other."""
    here = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, known] if known else [here])}


def serve(handle: int, rank: int, ranks: int, backend: str, meet: str) -> None:
    """Life of one process: join the group, then run what comes through the pipe until it closes."""
    import torch
    import torch.distributed as dist

    pipe = Connection(handle)
    if backend == "gloo":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        torch.set_num_threads(process_cores())
    else:
        torch.cuda.set_device(rank)
    try:
        dist.init_process_group(backend, init_method=meet, rank=rank, world_size=ranks)
    except Exception as error:
        pipe.send((f"{backend}: {error}", None))
        return
    pipe.send(("", None))
    while True:
        try:
            task, arguments = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            break
        pipe.send(_answer(task, rank, ranks, arguments))
    dist.destroy_process_group()


def _answer(task: str, rank: int, ranks: int, arguments: dict[str, Any]) -> tuple[str, Any]:
    module, _, function = task.partition(":")
    try:
        return "", getattr(import_module(module), function)(rank, ranks, **arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}", None
