"""Workloads of many requests, read or drawn a block at a time: the same requests as `build_workload` makes, to the last bit.

A workload can be streamed if its requests arrive by the clock and share nothing: no sessions, shared prefixes, classes, closed
loops or batches. Drawn ones are streamed under every arrival process; traces if they are CSV, JSON lines or Parquet files in
order of arrival. A trace is read twice: once to see that all this holds and where it ends, once to be run. Names of requests
are checked for repetition inside a part of the file only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from hardware_profiles.errors import InputError
from simulator.workload.build import arrival_process, resolve_trace, sample_lengths
from simulator.workload.columns import (
    NO_PREDECESSOR,
    FloatArray,
    IntArray,
    RequestClass,
    Workload,
    same_float,
    same_int,
)
from simulator.workload.rows import Rows
from simulator.workload.spec import Load, WorkloadSpec
from simulator.workload.streams import stream

BLOCK = 1 << 15
"""Requests of a block."""
ROWS_READ = 1 << 16
"""Records of a file that are read at once."""
MOST_STREAMED = 200_000_000
"""Drawn requests of one run (assumed: hours of work)."""
STREAMED_FORMATS = ("columns", "azure", "burstgpt", "servegen")

Columns = tuple[FloatArray, IntArray, IntArray, IntArray, tuple[str, ...] | None]
"""Arrivals [s], prompts, outputs and limits [tokens], names."""


@dataclass
class WorkloadStream:
    """A workload whose requests come in blocks of `BLOCK`, the last one shorter.

    `duration_s` is infinite where the number of requests ends the arrivals; `warnings` are complete once all blocks were taken.
    """

    make: Callable[[WorkloadStream], Iterator[Columns]]
    classes: tuple[RequestClass, ...]
    duration_s: float
    warmup_s: float
    drain_s: float
    source: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    outputs_cut: int = 0

    def blocks(self) -> Iterator[Workload]:
        """The requests, in order of arrival."""
        for columns in _reblocked(self.make(self), BLOCK):
            yield self._workload(columns)
        if self.outputs_cut:
            self.warnings.append(f"{self.outputs_cut} outputs are cut at max_output_tokens")

    def columns_of_none(self) -> Workload:
        """Return the workload without its requests."""
        nothing = np.zeros(0, np.int64)
        return self._workload((np.zeros(0), nothing, nothing, nothing, None))

    def _workload(self, columns: Columns) -> Workload:
        arrival, prompt, output, limit, names = columns
        n = len(arrival)
        return Workload(
            arrival,
            prompt,
            output,
            limit,
            same_int(NO_PREDECESSOR, n),
            same_float(0.0, n),
            same_float(0.0, n),
            same_int(-1, n),
            same_int(0, n),
            same_int(0, n),
            self.classes,
            None,
            names,
            self.duration_s,
            self.warmup_s,
            self.drain_s,
            self.source,
            tuple(self.warnings),
        )


def open_stream(spec: WorkloadSpec, *, seed: int, base_dir: Path, above: int) -> WorkloadStream | None:
    """Return the workload as a stream; None if it has at most about `above` requests, or cannot be streamed.

    Raises InputError as `build_workload`.
    """
    if spec.classes is not None or spec.sessions is not None or spec.shared_prefix is not None:
        return None
    if spec.trace is None:
        return _drawn(spec, seed, base_dir, above)
    path = resolve_trace(spec.trace, base_dir)
    counts = [c for c in (spec.limit, spec.requests) if c is not None]
    if path is None or spec.jitter_s or min(counts, default=above + 1) <= above:
        return None
    return _recorded(spec, path, min(counts, default=None), seed, base_dir, above)


def _reblocked(parts: Iterator[Columns], size: int) -> Iterator[Columns]:
    """The same rows in parts of `size`."""
    held: list[Columns] = []
    n = 0
    for part in parts:
        if not len(part[0]):
            continue
        held.append(part)
        n += len(part[0])
        while n >= size:
            joined = _joined(held)
            yield _sliced(joined, 0, size)
            held = [_sliced(joined, size, n)] if n > size else []
            n -= size
    if n:
        yield _joined(held)


def _joined(parts: list[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    arrays = [np.concatenate([part[i] for part in parts]) for i in range(4)]
    named = parts[0][4] is not None
    names = tuple(name for part in parts for name in part[4] or ()) if named else None
    return arrays[0], arrays[1], arrays[2], arrays[3], names


def _sliced(part: Columns, start: int, stop: int) -> Columns:
    arrival, prompt, output, limit, names = part
    some = slice(start, stop)
    return arrival[some], prompt[some], output[some], limit[some], None if names is None else names[some]


# Drawn --------------------------------------------------------------------------------------------


def _drawn(spec: WorkloadSpec, seed: int, base_dir: Path, above: int) -> WorkloadStream | None:
    loads = spec.arrivals
    assert loads is not None
    until_s = spec.duration if spec.duration is not None else math.inf
    process = arrival_process(spec, stream(seed, "arrivals"), 1.0)
    if process is None:
        return None
    rate = getattr(loads, "rate", None)
    if rate is None:  # onoff
        on_s, off_s = getattr(loads, "on_s", 1.0), getattr(loads, "off_s", 0.0)
        rate = (getattr(loads, "rate_on", 0.0) * on_s + getattr(loads, "rate_off", 0.0) * off_s) / (
            on_s + off_s
        )
    expected = min(rate * until_s, math.inf if spec.requests is None else spec.requests)
    if not above < expected <= MOST_STREAMED:
        return None

    def make(header: WorkloadStream) -> Iterator[Columns]:
        from simulator.workload import arrivals

        lengths = [
            (_sampler(spec.prompt_tokens, "prompt_tokens", seed, base_dir)),
            (_sampler(spec.output_tokens, "output_tokens", seed, base_dir)),
        ]
        limited = _limiter(spec, seed, base_dir)
        started = arrival_process(spec, stream(seed, "arrivals"), 1.0)
        assert started is not None
        for arrival in arrivals.parts(started, until_s, spec.requests):
            prompt, output = (draw(len(arrival)) for draw in lengths)
            yield _with_limit(header, arrival, prompt, output, limited(output), None)

    source = {"name": "synthetic", "kind": "synthetic"}
    kind = (RequestClass("default"),)
    return WorkloadStream(make, kind, until_s, spec.warmup, spec.drain_s, source)


def _sampler(spec: Any, name: str, seed: int, base_dir: Path) -> Callable[[int], IntArray]:
    rng = stream(seed, name)
    return lambda n: sample_lengths(spec, rng, n, base_dir, name)


def _limiter(load: Load, seed: int, base_dir: Path) -> Callable[[IntArray], IntArray | None]:
    """What gives the client's limits of requests with these outputs, None for no limit."""
    limit = load.max_output_tokens
    if limit is None:
        return lambda outputs: None
    if limit == "equal":
        return lambda outputs: outputs.copy()
    draw = _sampler(limit, "max_output_tokens", seed, base_dir)
    return lambda outputs: draw(len(outputs))


def _with_limit(
    header: WorkloadStream,
    arrival: FloatArray,
    prompt: IntArray,
    output: IntArray,
    limit: IntArray | None,
    names: tuple[str, ...] | None,
) -> Columns:
    if limit is None:
        return arrival, prompt, output, same_int(0, len(arrival)), names
    over = (limit > 0) & (output > limit)
    header.outputs_cut += int(over.sum())
    return arrival, prompt, np.where(over, limit, output), limit, names


# Recorded -----------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """What the first reading of a trace found."""

    format: str
    sha256: str
    metadata: dict[str, Any]
    first_s: float
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
    from simulator.workload.traces import EPOCH_S, FORMATS, _check, take

    scale = spec.rate_scale or 1.0
    relative = scan.format == "azure"
    shift = scan.first_s if relative or scan.first_s > EPOCH_S else 0.0
    end = scan.last_s - shift
    if spec.window is not None:
        end = spec.window[1] - spec.window[0]

    def rows_of() -> Iterator[Rows]:
        taken = 0
        for table in tables(path):
            table.metadata.update(scan.metadata)
            raw = FORMATS[scan.format](table)
            if raw.keep is not None and not raw.keep.any():
                continue
            rows = _check(table, raw, None, scan.first_s)
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

    def make(header: WorkloadStream) -> Iterator[Columns]:
        limited = _limiter(spec, seed, base_dir)
        for rows in rows_of():
            limits = limited(rows.output_tokens)
            if limits is None:
                limits = rows.max_output_tokens
            yield _with_limit(
                header, rows.arrival_s, rows.prompt_tokens, rows.output_tokens, limits, rows.request_ids
            )

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
    if shift and not relative:
        warnings.append("the times count from 1970; they were shifted to start at zero")
    ends = end / scale
    if spec.duration is not None and limit is None and ends < 0.99 * spec.duration:
        warnings.append(f"the trace ends at {ends:.6g} s, before the duration of {spec.duration:g} s")
    # a number of requests ends the arrivals when it is reached: known only then
    duration_s = spec.duration if spec.duration is not None else math.inf if limit is not None else ends
    header = WorkloadStream(
        make, (RequestClass("default"),), duration_s, spec.warmup, spec.drain_s, source, warnings
    )
    return header if next(rows_of_some(rows_of()), None) is not None else None


def rows_of_some(parts: Iterator[Rows]) -> Iterator[Rows]:
    """Parts that hold a record."""
    return (rows for rows in parts if len(rows))


def _scan(path: Path, given: str | None) -> _Scan | None:
    """Read a trace once; None if it is not of the kind that can be streamed."""
    from simulator.workload.traces import FORMATS, sniff

    name = given or ""
    first = last = math.nan
    records = kept = 0
    metadata: dict[str, Any] = {}
    raw: Any = None
    for table in tables(path):
        if not records:
            name = given or sniff(table)
            metadata = dict(table.metadata)
            if name not in STREAMED_FORMATS:
                return None
            if name == "azure":
                metadata |= _origin(table)
        table.metadata.update(metadata)
        raw = FORMATS[name](table)
        if raw.arrival_s is None or raw.blocks is not None or raw.class_names is not None or raw.jitter_s:
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
        first, last = (times[0] if math.isnan(first) else first), float(times[-1])
    if not kept:
        return None
    drops, licence = raw.drops, raw.licence
    return _Scan(
        name, _sha256(path), metadata, float(first), last, records, kept, drops, raw.warnings, licence
    )


def _origin(table: Any) -> dict[str, Any]:
    """The first time of a table whose times are texts, from which those of its other parts are counted too."""
    from simulator.workload.traces import _named, _zoneless

    values = table.columns.get(_named(table, "TIMESTAMP"))
    if values is None or isinstance(values, np.ndarray) or not len(values):
        return {}
    try:
        return {"origin": np.datetime64(_zoneless(values[0]), "ns")}
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
        raise InputError("is a binary file, not text", where=str(path), mend="check what it is") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(
            f"is cut short or no gzip file ({error})", where=str(path), mend="copy or download it again"
        ) from None


__all__ = ["BLOCK", "WorkloadStream", "open_stream", "tables"]
