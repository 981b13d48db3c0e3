"""What a person sees: lines and a bar on stderr, one JSON document on stdout."""

import json
import sys
import time
from typing import Any, Final

_LINE_EVERY_S: Final = 10.0
_BAR_EVERY_S: Final = 0.2
_WIDTH: Final = 30


def say(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def answer(document: dict[str, Any]) -> None:
    """The JSON document on stdout."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


class Bar:
    """Points done of all, and the time left: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, done: int, total: int) -> None:
        self.first, self.done, self.total = done, done, total
        self.started = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def step(self, what: str) -> None:
        """One point more."""
        self.done += 1
        now = time.monotonic()
        if now - self.shown < (_BAR_EVERY_S if self.terminal else _LINE_EVERY_S):
            return
        self.shown = now
        left_s = (now - self.started) / (self.done - self.first) * (self.total - self.done)
        text = f"{self.done:,} of {self.total:,} points, {clock(left_s)} left, {what}"
        if self.terminal:
            filled = _WIDTH * self.done // self.total
            sys.stderr.write(f"\r\x1b[K[{'#' * filled}{'.' * (_WIDTH - filled)}] {text}"[:160])
            sys.stderr.flush()
        else:
            say(text)

    def close(self) -> None:
        """Leave the bar's line."""
        if self.terminal and self.done > self.first:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def clock(seconds: float) -> str:
    """``4:05``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
