"""One run at a time in one folder: a lock that the operating system drops when its process ends, however it ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moesim.errors import MoesimError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it; MoesimError where another run does, or where nothing can be written."""
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise MoesimError(f"--out {folder}: {error.strerror}; choose a folder that can be written") from None
    try:
        if not _held(handle, path):
            process = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise MoesimError(
                f"{folder}: another calibration (process {process}) writes there: wait for it, or give another --name"
            )
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(handle)


def _held(handle: int, path: Path) -> bool:
    """Take the lock; False where another process has it, or has just deleted it."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
