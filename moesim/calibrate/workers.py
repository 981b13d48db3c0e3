"""Processes that speak to each other through torch.distributed: two on a CPU (gloo), one per GPU (nccl).

    parent  --(task, arguments)-->  every process  --answer of each-->  parent

They are fresh interpreters (no fork of a process with threads, no second run of the user's script) and meet through
a file. Ctrl-C is the parent's affair: they belong to another session and ignore it. When the parent ends, however
it does, the standard input of each ends too: a thread sees that, removes what is left and ends the process.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from moesim.calibrate.bench import SkipError
from moesim.calibrate.machine import process_cores

_START_S: Final = 120.0
_ANSWER_S: Final = 300.0
_END_S: Final = 5.0
_CODE: Final = """import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from moesim.calibrate.workers import serve
serve({handle}, {rank}, {ranks}, {backend!r}, {home!r})
"""


class Workers:
    """``ranks`` processes that run tasks together."""

    def __init__(self, ranks: int, backend: str) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="moesim-")
        self.pipes: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(ranks):
                self._start(rank, ranks, backend)
            self._answers(_START_S)
        except BaseException:
            self.close(wait_s=0.0)
            raise

    def _start(self, rank: int, ranks: int, backend: str) -> None:
        ours, theirs = Pipe()
        self.pipes.append(ours)
        with theirs:
            handle = theirs.fileno()
            code = _CODE.format(handle=handle, rank=rank, ranks=ranks, backend=backend, home=self.home.name)
            command = [sys.executable, "-c", code]
            self.processes.append(
                subprocess.Popen(
                    command, env=_environment(), pass_fds=[handle], stdin=subprocess.PIPE, start_new_session=True
                )
            )

    def run(self, task: str, **arguments: Any) -> list[Any]:
        """The answer of every rank of ``module:function``, called as ``function(rank, ranks, **arguments)``."""
        for pipe in self.pipes:
            pipe.send((task, arguments))
        return self._answers(_ANSWER_S)

    def close(self, wait_s: float = _END_S) -> None:
        """End the processes: those that have not ended after ``wait_s`` are killed."""
        for pipe in self.pipes:
            pipe.close()
        deadline_s = time.monotonic() + wait_s
        try:
            for process in self.processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(deadline_s - time.monotonic(), 0.0))
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
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


def serve(handle: int, rank: int, ranks: int, backend: str, home: str) -> None:
    """Life of one process: join the group, then run what comes through the pipe until it closes."""
    threading.Thread(target=_outlive_nobody, args=(home,), daemon=True).start()
    with suppress(EOFError, OSError):  # the parent hears no more
        _serve(Connection(handle), rank, ranks, backend, Path(home, "meet").as_uri())


def _outlive_nobody(home: str) -> None:
    """Wait for the end of the standard input, which is the parent's, and end this process."""
    while os.read(0, 1):
        pass
    shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


def _serve(pipe: Connection, rank: int, ranks: int, backend: str, meet: str) -> None:
    import torch
    import torch.distributed as dist

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
    with suppress(EOFError):
        while True:
            task, arguments = pipe.recv()
            pipe.send(_answer(task, rank, ranks, arguments))
    dist.destroy_process_group()


def _answer(task: str, rank: int, ranks: int, arguments: dict[str, Any]) -> tuple[str, Any]:
    module, _, function = task.partition(":")
    try:
        return "", getattr(import_module(module), function)(rank, ranks, **arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}", None
