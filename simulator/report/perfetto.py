"""A run as a trace that https://ui.perfetto.dev shows: replicas, their queues and memory, requests, transfers.

The format is Chrome's trace events, JSON in gzip, times in microseconds. A replica is a process: its steps as slices (a run of
equal steps is one slice), running and waiting requests and the share of KV memory in use as counters, and the requests that it
served as tracks of their stages. Transfers between prefill and decode servers are a process of their own.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cluster.outcome import STATUS_NAMES, ClusterResult
from simulator.io.rundir import write_file

if TYPE_CHECKING:
    from simulator.run import RunResult

Event = dict[str, Any]
TRACE = "trace.json.gz"
MAX_REQUESTS = 20_000
"""Requests shown, the first that arrived; assumed: what a browser draws without pause."""
MAX_RECORDS = 200_000
"""Slices shown of all replicas together, the first in time; assumed as above."""
STEPS, REQUESTS = 1, 2
"""Threads of a process."""


def trace(raw: ClusterResult, names: Sequence[str], pools: Sequence[str]) -> tuple[bytes, str]:
    """The trace of a run in memory, and what it leaves out, in words ("" for nothing).

    names : of the requests by row. pools : of the ranks by number.
    """
    left_out: list[str] = []
    events = [*_replicas(raw, pools, left_out), *_requests(raw, names, left_out)]
    text = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
    body = f'{{"displayTimeUnit":"ms","traceEvents":[\n{text}\n]}}\n'
    return gzip.compress(body.encode(), 6, mtime=0), "; ".join(left_out)


def write_trace(run: RunResult, directory: Path, *, say: Callable[[str], None]) -> Path:
    """Write the trace of a run in memory into its directory; what it leaves out is said."""
    n = len(run.workload)
    names = run.workload.request_ids or [f"r{row}" for row in range(n)]
    data, left_out = trace(run.raw, names, run.pools)
    if left_out:
        say(f"{TRACE} leaves out {left_out}")
    path = directory / TRACE
    write_file(path, data)
    return path


def _us(time_s: float) -> float:
    return round(float(time_s) * 1e6, 3)


def _named(pid: int, name: str, tid: int | None = None) -> Event:
    where = {} if tid is None else {"tid": tid}
    kind = "process_name" if tid is None else "thread_name"
    return {"ph": "M", "name": kind, "pid": pid, **where, "args": {"name": name}}


def _replicas(raw: ClusterResult, pools: Sequence[str], left_out: list[str]) -> Iterator[Event]:
    """Slices and counters of each rank."""
    logs = [log.records() for log in raw.logs]
    total = sum(len(records["start_s"]) for records in logs)
    until_s = np.inf
    if total > MAX_RECORDS:
        until_s = float(np.sort(np.concatenate([records["start_s"] for records in logs]))[MAX_RECORDS])
        left_out.append(f"steps after {until_s:.0f} s")
    several = len(set(pools)) > 1
    for rank, records in enumerate(logs):
        pid = rank + 1
        yield _named(pid, f"replica {rank}" + (f" ({pools[rank]})" if several else ""))
        yield _named(pid, "steps", STEPS)
        capacity = max(1, raw.capacity_blocks[rank])
        columns = ("start_s", "end_s", "steps", "running", "waiting", "prefill_tokens", "decode_tokens", "preemptions", "kv_used")
        for start, end, steps, running, waiting, prefill, decode, preempted, kv in zip(
            *(records[name].tolist() for name in columns), strict=True
        ):
            if start >= until_s:
                break
            what = " + ".join([*(["prefill"] if prefill else []), *(["decode"] if decode else [])]) or "idle step"
            yield {
                "ph": "X",
                "name": what if steps == 1 else f"{what} x {steps}",
                "pid": pid,
                "tid": STEPS,
                "ts": _us(start),
                "dur": _us(end - start),
                "args": {
                    "steps": steps,
                    "requests": running,
                    "prompt tokens": prefill,
                    "decoded tokens": decode,
                    "preemptions": preempted,
                },
            }
            used = {"used": round(100 * kv / capacity, 2)}
            for name, values in (("requests", {"running": running, "waiting": waiting}), ("KV memory, %", used)):
                yield {"ph": "C", "name": name, "pid": pid, "ts": _us(start), "args": values}


def _requests(raw: ClusterResult, names: Sequence[str], left_out: list[str]) -> Iterator[Event]:
    """Stages of each request on the track of the replica that served it last, and transfers."""
    order = np.argsort(raw.arrival_s, kind="stable")
    order = order[~np.isnan(raw.arrival_s[order])]
    if len(order) > MAX_REQUESTS:
        left_out.append(f"requests after the first {MAX_REQUESTS:,}")
        order = order[:MAX_REQUESTS]
    handed, transfers = raw.handed, len(raw.logs) + 1
    if handed is not None:
        yield _named(transfers, "KV transfers")
    for row in order.tolist():
        pid = int(raw.replica[row]) + 1 if raw.replica[row] >= 0 else 0
        end = float(raw.end_s[row])
        points = [("queue", raw.arrival_s[row]), *_encoding(raw, row), ("prefill", raw.first_scheduled_s[row])]
        if handed is not None and not np.isnan(handed.transfer_start_s[row]):
            points += [("hand-over", handed.prefill_end_s[row]), ("decode queue", handed.transfer_end_s[row])]
            points += [("decode", handed.first_scheduled_s[row])]
            start, stop = handed.transfer_start_s[row], handed.transfer_end_s[row]
            about = {"bytes": float(handed.transfer_bytes[row])}
            if not np.isnan(stop):
                yield from _span(transfers, names[row], names[row], start, stop, about)
        else:
            points.append(("decode", raw.first_token_s[row]))
        points = [(stage, float(at)) for stage, at in points if not np.isnan(at)]
        if np.isnan(end):
            end = max(at for _, at in points)
        told: Event = {
            "prompt tokens": int(raw.prompt_tokens[row]),
            "cached tokens": int(raw.cached_tokens[row]),
            "output tokens": int(raw.output_tokens[row]),
            "status": STATUS_NAMES[int(raw.status[row])],
        }
        yield from _span(pid, names[row], names[row], points[0][1], end, told)
        for (stage, start), (_, stop) in zip(points, [*points[1:], ("", end)], strict=True):
            if stop > start:
                yield from _span(pid, names[row], stage, start, stop, {})


def _encoding(raw: ClusterResult, row: int) -> list[tuple[str, float]]:
    """Stages of a request whose images other servers encode, and when each begins [s]."""
    found = raw.encoded
    if found is None or np.isnan(found.sent_s[row]):
        return []
    columns = {"encode queue": found.sent_s, "encode": found.scheduled_s, "embeddings": found.encoded_s, "queue": found.arrived_s}
    return [(stage, float(column[row])) for stage, column in columns.items()]


def _span(pid: int, key: str, name: str, start_s: float, end_s: float, about: Event) -> Iterator[Event]:
    same = {"cat": "request", "id": key, "pid": pid, "tid": REQUESTS, "name": name}
    yield {"ph": "b", **same, "ts": _us(start_s), "args": about}
    yield {"ph": "e", **same, "ts": _us(end_s)}
