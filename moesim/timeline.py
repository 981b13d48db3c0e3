"""What happened, as flat records: metrics, plots and traces all read the same spans."""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moesim.errors import MoesimError

if TYPE_CHECKING:
    import pandas as pd

# Threads of a process from top to bottom, by stream: the pipeline first, then what is inside its passes.
LANES: Final = {
    "stage": "passes",
    "send": "send activations",
    "back": "send gradients",
    "layer": "layers",
    "compute": "compute",
    "comm": "communication",
    "dp": "weights and gradients (dp)",
    "host": "launches by the CPU",
}


class Span(NamedTuple):
    """One op of one rank class (in a layer) or of one pipeline stage (in a step)."""

    rank: int  # rank class in a layer played alone; pipeline stage in a step
    stream: str  # "compute", "comm", "dp", "send", …
    what: str  # "dispatch", "experts", "forward", …
    chunk: int  # chunk of the all-to-all, micro-batch of a pass, number of a layer
    start_s: float
    end_s: float
    micro_batch: int = -1  # -1: of none in particular
    layer: int = -1  # -1: of none in particular
    rank_class: int = 0  # in a step: which ranks of the stage, slowest first
    turn: int = 0  # decode: which token of the sequences
    part: int = -1  # of a pass: the part of the model; -1: of none in particular
    back: int = -1  # of a pair: the micro-batch that goes backward
    back_part: int = -1  # of a pair: the part that it goes through


def to_frame(spans: Iterable[Span]) -> "pd.DataFrame":
    """One row per span, columns as in ``Span``."""
    import pandas as pd

    return pd.DataFrame(list(spans), columns=list(Span._fields))


def chrome_trace(spans: Iterable[Span], rank_word: str, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The Trace Event Format that Perfetto and chrome://tracing open: one process per rank and rank class,
    one thread per stream. Times are microseconds, rounded to the nanosecond at both ends, so that spans
    which touch still touch."""
    kept = sorted((span for span in spans if span.end_s > span.start_s), key=lambda s: (s.start_s, -s.end_s))
    processes = {who: pid for pid, who in enumerate(sorted({(s.rank_class, s.rank) for s in kept}))}
    streams = [*LANES, *dict.fromkeys(span.stream for span in kept if span.stream not in LANES)]
    threads = {stream: tid for tid, stream in enumerate(streams)}
    numbered = {span.what for span in kept if span.chunk}
    events = _names(kept, rank_word, processes, threads)
    events += [_event(s, processes[s.rank_class, s.rank], threads[s.stream], s.what in numbered) for s in kept]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(metadata or {})}


def _names(
    kept: list[Span], rank_word: str, processes: Mapping[tuple[int, int], int], threads: Mapping[str, int]
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    used = {(processes[span.rank_class, span.rank], span.stream) for span in kept}
    for (rank_class, rank), pid in processes.items():
        which = f", rank class {rank_class} (slowest first)" if rank_class else ""
        events.append(_metadata("process_name", pid, 0, name=f"{rank_word} {rank}{which}"))
        events.append(_metadata("process_sort_index", pid, 0, sort_index=pid))
        for stream, tid in threads.items():
            if (pid, stream) in used:
                events.append(_metadata("thread_name", pid, tid, name=LANES.get(stream, stream)))
                events.append(_metadata("thread_sort_index", pid, tid, sort_index=tid))
    return events


def _metadata(what: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _event(span: Span, pid: int, tid: int, numbered: bool) -> dict[str, Any]:
    start_ns, end_ns = round(span.start_s * 1e9), round(span.end_s * 1e9)
    about = {"micro_batch": span.micro_batch, "layer": span.layer, "turn": span.turn or -1}
    return {
        "ph": "X",
        "name": f"{span.what} {span.chunk}" if numbered else span.what,
        "cat": span.stream,
        "pid": pid,
        "tid": tid,
        "ts": start_ns / 1e3,
        "dur": (end_ns - start_ns) / 1e3,
        "args": {"chunk": span.chunk} | {name: number for name, number in about.items() if number >= 0},
    }


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, whole or not at all."""
    write_whole(path, lambda partial: partial.write_text(json.dumps(document, separators=(",", ":"))))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside, then rename: a killed process leaves the old file or none.

    Raises MoesimError when the place cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise MoesimError(f"cannot write {path}: {error.strerror or error}; give a folder you may write") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
