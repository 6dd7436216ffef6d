"""Per-replica time series, and averages over the measured window, from the replicas' event logs."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.outcome import ClusterResult
from simulator.results.metrics import Window
from simulator.serving.replica import StepLog

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MAX_ROWS = 10_000
MIN_BIN_S = 1.0
PART = 1 << 16
"""Events whose running total is computed at once: temporaries of that size stay in the cache."""


def _column(values: array[Any]) -> NDArray[Any]:
    return np.frombuffer(values, dtype=values.typecode)


def events(log: StepLog, count: int | None = None) -> dict[str, NDArray[Any]]:
    """The records of a log as columns, with the time until which each holds; the first `count` of them, all if None."""
    steps, ends = _column(log.event_steps), _column(log.end_s)
    start, end = _column(log.event_s), ends[np.cumsum(steps) - 1]
    if len(start) > 1:
        # batches of a pipeline overlap: a state lasts until the next one is noted
        end = np.minimum(end, np.append(np.maximum(start[1:], start[:-1]), end[-1]))
    columns = {
        "start": start,
        "end": end,
        "steps": steps,
        "device": _column(log.event_device_s),
        "prefill": _column(log.event_prefill_s),
        "running": _column(log.event_running),
        "waiting": _column(log.event_waiting),
        "used": _column(log.event_used_blocks),
        "prefill_tokens": _column(log.event_prefill_tokens),
        "decode_tokens": _column(log.event_decode_tokens),
        "preemptions": _column(log.event_preemptions),
    }
    return columns if count is None else {name: values[:count] for name, values in columns.items()}


class _Spread:
    """Amounts spent evenly over stretches [start, end) of time, summed per bin; exact by differences of the running total.

    The stretches are put in order once for all amounts, and the running total is kept only where an edge needs it.
    """

    def __init__(self, start: FloatArray, end: FloatArray, edges: FloatArray) -> None:
        self._order = None if (start[1:] >= start[:-1]).all() else np.argsort(start, kind="stable")
        s, e = (start, end) if self._order is None else (start[self._order], end[self._order])
        self._start, self._end = s, np.maximum(e, s + 1e-12)
        self._edges = edges
        self._of, self._ends = self._by_time()
        last = 2 * len(s) - 1
        # points up to an edge: starts that are no later, and ends likewise
        ends = self._end if (self._end[1:] >= self._end[:-1]).all() else np.sort(self._end)
        below = np.searchsorted(s, edges, side="right") + np.searchsorted(ends, edges, side="right") - 1
        self._needed = np.unique(np.clip(np.concatenate([below, below + 1, [0, last]]), 0, last))

    def _by_time(self) -> tuple[NDArray[np.int32], BoolArray]:
        """Starts and ends in order of time, starts first among equals: of which stretch each is, and whether its end."""
        s, e = self._start, self._end
        n = len(s)
        ends = np.zeros(2 * n, dtype=np.bool_)
        of = np.empty(2 * n, dtype=np.int32)
        if (e[1:] >= e[:-1]).all():  # one after the other, as a device works
            for first in range(0, n, PART):
                number = np.arange(first, min(first + PART, n))
                of[number + np.searchsorted(e, s[number], side="left")] = number
                place = number + np.searchsorted(s, e[number], side="right")
                of[place] = number
                ends[place] = True
        else:
            of[:] = np.argsort(np.concatenate([s, e]), kind="stable")
            np.greater_equal(of, n, out=ends)
            of[ends] -= n
        return of, ends

    def _points(self, start: int, stop: int) -> FloatArray:
        of = self._of[start:stop]
        return np.where(self._ends[start:stop], self._end[of], self._start[of])

    def sums(self, amount: NDArray[Any]) -> FloatArray:
        """Amount in each bin between the edges."""
        rate: FloatArray = (amount if self._order is None else amount[self._order]) / (
            self._end - self._start
        )
        needed = self._needed
        area, points = np.zeros(len(needed)), np.zeros(len(needed))
        level = total = 0.0
        last = 2 * len(rate) - 1
        points[0] = self._points(0, 1)[0]
        for start in range(0, last, PART):
            stop = min(start + PART, last)
            times = self._points(start, stop + 1)
            levels = rate[self._of[start:stop]]
            np.negative(levels, out=levels, where=self._ends[start:stop])
            levels[0] += level
            np.cumsum(levels, out=levels)
            level = float(levels[-1])
            levels *= np.diff(times)
            levels[0] += total
            np.cumsum(levels, out=levels)  # area at the points start + 1 to stop
            total = float(levels[-1])
            here = slice(*np.searchsorted(needed, [start + 1, stop + 1]))
            area[here] = levels[needed[here] - (start + 1)]
            points[here] = times[needed[here] - start]
        return np.diff(np.interp(self._edges, points, area))


def timeline(result: ClusterResult) -> dict[str, NDArray[Any]]:
    """Columns of `timeline.parquet`: one row a bin and replica, at most 10,000 a replica.

    `running`, `waiting` and `kv_usage` are averages over the time in which the replica worked, busy_fraction is the share of
    the bin in which its device computed, `batch_tokens` the mean of tokens a step.
    """
    span = max(result.end_of_run_s, MIN_BIN_S)
    bins = min(MAX_ROWS, max(1, int(np.ceil(span / MIN_BIN_S))))
    edges = np.linspace(0.0, span, bins + 1)
    width = span / bins
    columns: dict[str, list[NDArray[Any]]] = {}
    for number, log in enumerate(result.logs):
        e = events(log)
        rows: dict[str, NDArray[Any]] = {
            "instance_id": np.full(bins, number, dtype=np.int64),
            "t_s": edges[:-1],
        }
        capacity = max(1, result.capacity_blocks[number])
        rows |= averages(amounts(e, edges, capacity) if len(e["start"]) else None, bins, width)
        for name, values in rows.items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


Amounts = dict[str, NDArray[Any]]


def amounts(e: Mapping[str, NDArray[Any]], edges_s: FloatArray, capacity_blocks: int) -> Amounts:
    """What the records `e` add up to in each bin between the edges: seconds, steps, tokens, and states times seconds."""
    bins = len(edges_s) - 1
    lived = e["end"] - e["start"]
    spread = _Spread(e["start"], e["end"], edges_s)
    at = np.clip(np.searchsorted(edges_s, e["start"], side="right") - 1, 0, bins - 1)
    return {
        "seconds": spread.sums(lived),
        "steps": spread.sums(e["steps"].astype(float)),
        "running": spread.sums(e["running"] * lived),
        "waiting": spread.sums(e["waiting"] * lived),
        "kv_usage": spread.sums(e["used"] / capacity_blocks * lived),
        "tokens": spread.sums(e["prefill_tokens"] + e["decode_tokens"]),
        "prefill_tokens": spread.sums(e["prefill_tokens"]),
        "decode_tokens": spread.sums(e["decode_tokens"]),
        "preemptions": np.bincount(at, weights=e["preemptions"], minlength=bins),
        "device": spread.sums(e["device"]),
    }


def averages(found: Amounts | None, bins: int, width_s: float) -> dict[str, NDArray[Any]]:
    """Columns of the timeline from `amounts` in `bins` bins; None where the replica did nothing."""
    if found is None:
        names = (
            "running",
            "waiting",
            "kv_usage",
            "batch_tokens",
            "prefill_tokens",
            "decode_tokens",
            "busy_fraction",
        )
        return {**{name: np.zeros(bins) for name in names}, "preemptions": np.zeros(bins, dtype=np.int64)}
    seconds = np.maximum(found["seconds"], 1e-12)
    rows = {name: found[name] / seconds for name in ("running", "waiting", "kv_usage")}
    rows["batch_tokens"] = found["tokens"] / np.maximum(found["steps"], 1e-12)
    rows = {name: np.where(found["seconds"] < 1e-9, 0.0, values) for name, values in rows.items()}
    rows["prefill_tokens"] = found["prefill_tokens"]
    rows["decode_tokens"] = found["decode_tokens"]
    rows["preemptions"] = found["preemptions"].astype(np.int64)
    rows["busy_fraction"] = np.minimum(found["device"] / width_s, 1.0)
    return rows


def widen(bins: dict[str, NDArray[Any]]) -> None:
    """Make all bins twice as wide, in place; there are as many as before, the second half of them empty."""
    for name, sums in bins.items():
        halved = sums[::2] + sums[1::2]
        bins[name] = np.concatenate([halved, np.zeros(len(sums) - len(halved))])


class WindowLoad:
    """Averages and peaks over a window of time, over replicas whose records come in any number of parts."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._edges = np.array([window.start_s, max(window.end_s, window.start_s + 1e-9)])
        self._totals = dict.fromkeys(("running", "waiting", "kv", "busy", "prefill", "saturated"), 0.0)
        self._peaks = {"running": 0, "waiting": 0, "kv": 0.0}
        self._preemptions = 0

    def add(self, e: Mapping[str, NDArray[Any]], capacity_blocks: int) -> None:
        """Take in records of a replica."""
        if not len(e["start"]):
            return
        totals, peaks, window = self._totals, self._peaks, self._window
        capacity = max(1, capacity_blocks)
        lived = e["end"] - e["start"]
        spread = _Spread(e["start"], e["end"], self._edges)
        for name, values in (
            ("running", e["running"]),
            ("waiting", e["waiting"]),
            ("kv", e["used"] / capacity),
        ):
            totals[name] += float(spread.sums(values * lived)[0])
        totals["busy"] += float(spread.sums(e["device"])[0])
        totals["prefill"] += float(spread.sums(e["prefill"])[0])
        totals["saturated"] += float(spread.sums(np.where(e["waiting"] > 0, lived, 0.0))[0])
        inside = (e["end"] >= window.start_s) & (e["start"] <= window.end_s)
        if inside.any():
            peaks["running"] = max(peaks["running"], int(e["running"][inside].max()))
            peaks["waiting"] = max(peaks["waiting"], int(e["waiting"][inside].max()))
            peaks["kv"] = max(peaks["kv"], float(e["used"][inside].max()) / capacity)
            self._preemptions += int(e["preemptions"][inside].sum())

    def averages(self, length_s: float, replicas: int) -> dict[str, Any]:
        """Averages over `length_s` seconds of `replicas`, peaks, and device time by kind."""
        totals, peaks, length = self._totals, self._peaks, max(length_s, 1e-9)
        return {
            "kv_cache_usage_perc": totals["kv"] / length / replicas,
            "kv_cache_usage_perc_peak": peaks["kv"],
            "num_requests_running": totals["running"] / length / replicas,
            "num_requests_running_peak": peaks["running"],
            "num_requests_waiting": totals["waiting"] / length / replicas,
            "num_requests_waiting_peak": peaks["waiting"],
            "waiting_time_fraction": totals["saturated"] / length / replicas,
            "gpu_busy_fraction": min(totals["busy"] / length / replicas, 1.0),
            "num_preemptions": self._preemptions,
            "busy_prefill_s": totals["prefill"],
            "busy_decode_s": totals["busy"] - totals["prefill"],
        }


def server_averages(result: ClusterResult, window: Window) -> dict[str, Any]:
    """Averages and peaks over the window, over all replicas: KV use, rows, queue, busy share, device time by kind."""
    load = WindowLoad(window)
    for number, log in enumerate(result.logs):
        load.add(events(log), result.capacity_blocks[number])
    return load.averages(window.length_s, len(result.logs))
