"""Workloads of many requests, read or drawn a block at a time: the same requests as `build_workload` makes, to the last bit.

Drawn ones are streamed whatever they are made of; only a closed loop beside other classes is not, since its requests stand before
all others and stay until the end. Traces are streamed if their requests share nothing (no sessions, blocks or classes) and they
are CSV, JSON lines or Parquet files in order of arrival. A trace is read twice: once to see that all this holds and where it
ends, once to be run. Names of requests are checked for repetition inside a part of the file only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.workload.build import MOST_STREAMED, requests_of, resolve_trace, workload_of
from simulator.workload.clocks import Clock, clock_of, suspicions, widest_gap
from simulator.workload.columns import ANY_OF_CLASS, More, RequestClass, Workload
from simulator.workload.parts import Part, Requests, by_clock, client_limits, in_parts_of, join, limit_outputs
from simulator.workload.rows import Rows
from simulator.workload.spec import WorkloadSpec

BLOCK = 1 << 15
"""Requests of a block."""
ROWS_READ = 1 << 16
"""Records of a file that are read at once."""
STREAMED_FORMATS = ("columns", "azure", "burstgpt", "servegen")
TIMES = ("arrival_s", "timestamp")
"""Columns of their times, in any case."""


class WorkloadStream:
    """A workload whose requests come in blocks of `BLOCK`, the last one shorter; they can be taken once.

    `duration_s` is infinite where the number of requests ends the arrivals; `warnings` are complete once all blocks were taken.
    """

    def __init__(self, spec: WorkloadSpec, requests: Requests, duration_s: float) -> None:
        self._spec, self._requests = spec, requests
        self.duration_s, self.warmup_s, self.drain_s = duration_s, spec.warmup, spec.drain_s
        self.source, self.classes = requests.source, requests.classes
        self._closed = any(load.arrives("closed_loop") for load in spec.loads())
        self._waits = self._closed or any(load.sessions is not None for load in spec.loads())

    @property
    def expected_requests(self) -> float:
        """About how many requests there are."""
        return self._requests.expected_requests

    @property
    def shares(self) -> bool:
        """Whether prompts share what they begin with."""
        return any(load.sessions is not None or load.shared_prefix is not None for load in self._spec.loads())

    @property
    def at_once(self) -> bool:
        """Whether all requests arrive at time zero."""
        return all(load.arrives("batch") for load in self._spec.loads())

    @property
    def warnings(self) -> list[str]:
        """What a reader should know."""
        return self._requests.said()

    def blocks(self) -> Iterator[Workload]:
        """The requests, in order of arrival."""
        rows, by_time, newest = 0, True, -1
        for part in in_parts_of(self._requests.parts, BLOCK):
            rows += len(part)
            more = None
            if self._closed:
                opens = part.predecessor[np.isnan(part.arrival_s) & (part.turn == 0)]
                if len(opens):
                    by_time, newest = False, int(opens[-1])
                more = More(by_time, newest if newest == ANY_OF_CLASS else newest + 1)
            elif self._waits:
                more = More(True, rows - 1)
            yield workload_of(self._spec, part, self._requests, self.duration_s, more)

    def columns_of_none(self) -> Workload:
        """Return the workload without its requests."""
        return workload_of(self._spec, join([]), self._requests, self.duration_s)


def open_stream(spec: WorkloadSpec, *, seed: int, base_dir: Path, above: int) -> WorkloadStream | None:
    """Return the workload as a stream; None if it has at most about `above` requests, or cannot be streamed.

    Raises InputError as `build_workload`.
    """
    loads = spec.loads()
    if spec.classes is None and spec.trace is not None and spec.arrivals is None:
        path = resolve_trace(spec.trace, base_dir)
        counts = [c for c in (spec.limit, spec.requests) if c is not None]
        if (
            path is None
            or spec.sessions is not None
            or spec.jitter_s
            or min(counts, default=above + 1) <= above
        ):
            return None
        return _recorded(spec, path, min(counts, default=None), seed, base_dir, above)
    closed = any(load.arrives("closed_loop") for load in loads)
    if (closed and len(loads) > 1) or any(load.trace is not None and load.prompt_pool is None for load in loads):
        return None
    requests = requests_of(spec, seed=seed, base_dir=base_dir, streamed=True)
    if not above < requests.expected_requests <= MOST_STREAMED:
        return None
    return WorkloadStream(spec, requests, spec.duration if spec.duration is not None else math.inf)


# Recorded -----------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """What the first reading of a trace found."""

    format: str
    sha256: str
    metadata: dict[str, Any]
    clock: Clock
    last_s: float
    records: int
    kept: int
    drops: str
    warnings: tuple[str, ...]
    licence: str | None


def _recorded(
    spec: WorkloadSpec, path: Path, limit: int | None, seed: int, base_dir: Path, above: int
) -> WorkloadStream | None:
    if not path.is_file() or _records(path, above) <= above:
        return None
    scan = _scan(path, spec.trace_format)
    if scan is None or scan.kept <= above:
        return None
    from simulator.workload.formats import FORMATS
    from simulator.workload.traces import check, take

    scale = spec.rate_scale or 1.0
    end = scan.last_s
    if spec.window is not None:
        end = spec.window[1] - spec.window[0]

    def rows_of() -> Iterator[Rows]:
        taken = 0
        for table in tables(path):
            table.metadata.update(scan.metadata)
            raw = FORMATS[scan.format](table)
            if raw.keep is not None and not raw.keep.any():
                continue
            rows = check(table, raw, None, scan.clock)
            if spec.window is not None:
                begin, stop = spec.window
                rows = take(rows, np.flatnonzero((rows.arrival_s >= begin) & (rows.arrival_s < stop)))
                rows = replace(rows, arrival_s=rows.arrival_s - begin)
            rows = replace(rows, arrival_s=rows.arrival_s / scale)
            if spec.duration is not None:
                rows = take(rows, np.flatnonzero(rows.arrival_s <= spec.duration))
            if limit is not None and taken + len(rows) > limit:
                rows = take(rows, np.arange(limit - taken))
            taken += len(rows)
            yield rows
            if taken == limit:
                return

    source: dict[str, Any] = {
        "name": path.name,
        "kind": "trace",
        "format": scan.format,
        "sha256": scan.sha256,
        "jitter_s": 0.0,
    }
    if scan.licence or scan.metadata.get("licence"):
        source["licence"] = scan.licence or scan.metadata["licence"]
    if scan.metadata.get("source"):
        source["ref"] = scan.metadata["source"]
    source |= {"rate_scale": scale, "window": spec.window}
    warnings = list(scan.warnings)
    if scan.kept < scan.records:
        warnings.append(f"{scan.records - scan.kept} of {scan.records} rows dropped ({scan.drops})")
    ends = end / scale
    if spec.duration is not None and limit is None and ends < 0.99 * spec.duration:
        warnings.append(f"the trace ends at {ends:.6g} s, before the duration of {spec.duration:g} s")
    # a number of requests ends the arrivals when it is reached: known only then
    duration_s = spec.duration if spec.duration is not None else math.inf if limit is not None else ends
    if not any(len(rows) for rows in rows_of()):
        return None
    requests = Requests(
        (_part(rows) for rows in rows_of()), (RequestClass("default"),), scan.kept, ends, source, warnings
    )
    limit_outputs(requests, client_limits(spec.max_output_tokens, seed, base_dir))
    return WorkloadStream(spec, requests, duration_s)


def _part(rows: Rows) -> Part:
    return by_clock(
        rows.arrival_s, rows.prompt_tokens, rows.output_tokens, rows.max_output_tokens, rows.request_ids
    )


def _scan(path: Path, given: str | None) -> _Scan | None:
    """Read a trace once; None if it is not of the kind that can be streamed."""
    from simulator.workload.formats import FORMATS, sniff

    name = given or ""
    first = last = math.nan
    gap, after = 0.0, ""
    records = kept = 0
    metadata: dict[str, Any] = {}
    raw: Any = None
    for table in tables(path):
        if not records:
            name = given or sniff(table)
            metadata = dict(table.metadata)
            if name not in STREAMED_FORMATS:
                return None
            metadata |= _origin(table)
        table.metadata.update(metadata)
        raw = FORMATS[name](table)
        if raw.arrival_s is None or raw.blocks is not None or raw.jitter_s:
            return None
        if raw.class_names is not None or raw.models is not None:
            return None
        if raw.adapters is not None or raw.images is not None:
            return None
        if raw.session is not None and any(s not in (None, "", -1) and s == s for s in raw.session):
            return None
        keep = np.ones(len(raw.prompt), bool) if raw.keep is None else raw.keep
        times = raw.arrival_s[keep]
        records, kept = records + len(keep), kept + len(times)
        if not len(times):
            continue
        if np.isnan(times).any() or (times[1:] < times[:-1]).any() or times[0] < last:
            return None
        first = times[0] if math.isnan(first) else first
        widest, row = widest_gap(np.concatenate(([times[0] if math.isnan(last) else last], times)))
        if widest > gap:
            gap, after = widest, table.where(int(np.flatnonzero(keep)[row - 1]))
        last = float(times[-1])
    clock = clock_of(np.array([first, last])) if kept else None
    if clock is None:
        return None
    last_s = float(clock.seconds(np.array([last]))[0])
    said = (*raw.warnings, *clock.said(last_s), *suspicions(kept, last_s, gap / clock.scale, after))
    return _Scan(name, _sha256(path), metadata, clock, last_s, records, kept, raw.drops, said, raw.licence)


def _origin(table: Any) -> dict[str, Any]:
    """The first time of a table whose times are texts, from which those of its other parts are counted too."""
    from simulator.workload.formats import named
    from simulator.workload.tables import calendar_time

    values = next((table.columns[c] for c in (named(table, n) for n in TIMES) if c in table.columns), None)
    if not isinstance(values, list) or not values:
        return {}
    try:
        return {"origin": calendar_time(values[0])}
    except ValueError:
        return {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _records(path: Path, above: int) -> int:
    """About how many records a file holds; 0 for a kind that is not read in parts."""
    suffixes = [s.lower() for s in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = suffixes[-2 if zipped and len(suffixes) > 1 else -1] if suffixes else ""
    if kind == ".parquet" and not zipped:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError):
            return 0  # `read_table` says what is wrong
    if kind not in (".csv", ".jsonl", ".ndjson") or path.stat().st_size < above:
        return 0
    try:
        with _opened(path) as file:
            return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))
    except (OSError, EOFError):
        return 0


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def tables(path: Path) -> Iterator[Any]:
    """Parts of a trace file, each as `simulator.workload.tables.read_table` would read it by itself."""
    from simulator.workload.tables import csv_tables, json_line_tables, parquet_tables

    kind = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if kind == ".parquet":
        yield from parquet_tables(path, ROWS_READ)
        return
    read = csv_tables if kind == ".csv" else json_line_tables
    try:
        with _opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            yield from read(text, str(path), ROWS_READ)
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", where=str(path), mend="save it as UTF-8, or check what it is") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(
            f"is cut short or no gzip file ({error})", where=str(path), mend="copy or download it again"
        ) from None


__all__ = ["BLOCK", "WorkloadStream", "open_stream", "tables"]
