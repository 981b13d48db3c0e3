"""What happened, as flat records: metrics, plots and traces all read the same spans."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class Span(NamedTuple):
    """One op of one rank class (in a layer) or of one pipeline stage (in a step)."""

    rank: int  # rank class, or pipeline stage
    stream: str  # "compute", "comm", "dp", "send", …
    what: str  # "dispatch", "experts", "forward", …
    chunk: int  # chunk of the all-to-all, or micro-batch
    start_s: float
    end_s: float


def to_frame(spans: Iterable[Span]) -> "pd.DataFrame":
    """One row per span, columns as in ``Span``."""
    import pandas as pd

    return pd.DataFrame(spans, columns=list(Span._fields))


def chrome_trace(
    spans: Iterable[Span], rank_word: str, metadata: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The Trace Event Format that Perfetto and chrome://tracing open: one process per rank, one thread per stream."""
    kept = [span for span in spans if span.end_s > span.start_s]
    streams = {name: tid for tid, name in enumerate(dict.fromkeys(span.stream for span in kept))}
    events: list[dict[str, Any]] = []
    for rank in sorted({span.rank for span in kept}):
        events.append(_name("process_name", rank, 0, f"{rank_word} {rank}"))
        events += [_name("thread_name", rank, tid, stream) for stream, tid in streams.items()]
    events += [
        {
            "ph": "X",
            "name": span.what,
            "cat": span.stream,
            "pid": span.rank,
            "tid": streams[span.stream],
            "ts": span.start_s * 1e6,
            "dur": (span.end_s - span.start_s) * 1e6,
            "args": {"chunk": span.chunk},
        }
        for span in kept
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(metadata or {})}


def _name(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def write_json(path: Path, document: Any) -> None:
    """Write beside, then rename: a killed process leaves the old file or none."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document))
    partial.replace(path)
