"""Per-replica time series, and averages over the measured window, from the replicas' event logs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster import ClusterResult
from simulator.metrics import Window
from simulator.serving.replica import StepLog

FloatArray = NDArray[np.float64]

MAX_ROWS = 10_000
MIN_BIN_S = 1.0


def _events(log: StepLog) -> dict[str, Any]:
    start = np.frombuffer(log.event_s, dtype=np.float64)
    steps = np.frombuffer(log.event_steps, dtype=np.int64)
    ends = np.frombuffer(log.end_s, dtype=np.float64)
    last = np.cumsum(steps) - 1
    return {
        "start": start,
        "end": ends[last] if len(last) else np.zeros(0),
        "device": np.frombuffer(log.event_device_s, dtype=np.float64),
        "prefill": np.frombuffer(log.event_prefill_s, dtype=np.float64),
        "running": np.frombuffer(log.event_running, dtype=np.int64),
        "waiting": np.frombuffer(log.event_waiting, dtype=np.int64),
        "used": np.frombuffer(log.event_used_blocks, dtype=np.int64),
        "prefill_tokens": np.frombuffer(log.event_prefill_tokens, dtype=np.int64),
        "decode_tokens": np.frombuffer(log.event_decode_tokens, dtype=np.int64),
        "preemptions": np.frombuffer(log.event_preemptions, dtype=np.int64),
    }


def _spread(start: FloatArray, end: FloatArray, amount: FloatArray, edges: FloatArray) -> FloatArray:
    """Amounts spent evenly over [start, end), summed per bin of `edges`; exact by differences of the running total."""
    order = np.argsort(start, kind="stable")
    s, e, a = start[order], np.maximum(end[order], start[order] + 1e-12), amount[order]
    rate = a / (e - s)
    points = np.concatenate([s, e])
    change = np.concatenate([rate, -rate])
    by_time = np.argsort(points, kind="stable")
    points, level = points[by_time], np.cumsum(change[by_time])
    area = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(points))])
    return np.diff(np.interp(edges, points, area))


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
        e = _events(log)
        rows: dict[str, NDArray[Any]] = {
            "instance_id": np.full(bins, number, dtype=np.int64),
            "t_s": edges[:-1],
        }
        if len(e["start"]):
            lived = e["end"] - e["start"]
            seconds = _spread(e["start"], e["end"], lived, edges)
            safe = np.maximum(seconds, 1e-12)
            steps = np.maximum(_spread(e["start"], e["end"], np.diff(np.concatenate([[0], np.cumsum(log.event_steps)])).astype(float), edges), 1e-12)
            for name, values in (("running", e["running"]), ("waiting", e["waiting"])):
                rows[name] = _spread(e["start"], e["end"], values * lived, edges) / safe
            capacity = max(1, result.capacity_blocks[number])
            rows["kv_usage"] = _spread(e["start"], e["end"], e["used"] / capacity * lived, edges) / safe
            tokens = (e["prefill_tokens"] + e["decode_tokens"]).astype(float)
            rows["batch_tokens"] = _spread(e["start"], e["end"], tokens, edges) / steps
            rows["prefill_tokens"] = _spread(e["start"], e["end"], e["prefill_tokens"].astype(float), edges)
            rows["decode_tokens"] = _spread(e["start"], e["end"], e["decode_tokens"].astype(float), edges)
            at = np.clip(np.searchsorted(edges, e["start"], side="right") - 1, 0, bins - 1)
            rows["preemptions"] = np.bincount(at, weights=e["preemptions"], minlength=bins).astype(np.int64)
            rows["busy_fraction"] = np.minimum(_spread(e["start"], e["end"], e["device"], edges) / width, 1.0)
            idle = seconds < 1e-9
            for name in ("running", "waiting", "kv_usage", "batch_tokens"):
                rows[name] = np.where(idle, 0.0, rows[name])
        else:
            for name in ("running", "waiting", "kv_usage", "batch_tokens", "prefill_tokens", "decode_tokens", "busy_fraction"):
                rows[name] = np.zeros(bins)
            rows["preemptions"] = np.zeros(bins, dtype=np.int64)
        for name, values in rows.items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def server_averages(result: ClusterResult, window: Window) -> dict[str, Any]:
    """Averages and peaks over the window, over all replicas: KV use, rows, queue, busy share, device time by kind."""
    edges = np.array([window.start_s, max(window.end_s, window.start_s + 1e-9)])
    length = max(window.length_s, 1e-9)
    replicas = len(result.logs)
    totals = dict.fromkeys(("running", "waiting", "kv", "busy", "prefill"), 0.0)
    peaks = {"running": 0, "waiting": 0, "kv": 0.0}
    preemptions = 0
    saturated = 0.0
    for number, log in enumerate(result.logs):
        e = _events(log)
        if not len(e["start"]):
            continue
        capacity = max(1, result.capacity_blocks[number])
        lived = e["end"] - e["start"]
        for name, values in (("running", e["running"]), ("waiting", e["waiting"]), ("kv", e["used"] / capacity)):
            totals[name] += float(_spread(e["start"], e["end"], values * lived, edges)[0])
        totals["busy"] += float(_spread(e["start"], e["end"], e["device"], edges)[0])
        totals["prefill"] += float(_spread(e["start"], e["end"], e["prefill"], edges)[0])
        saturated += float(_spread(e["start"], e["end"], np.where(e["waiting"] > 0, lived, 0.0), edges)[0])
        inside = (e["end"] >= window.start_s) & (e["start"] <= window.end_s)
        if inside.any():
            peaks["running"] = max(peaks["running"], int(e["running"][inside].max()))
            peaks["waiting"] = max(peaks["waiting"], int(e["waiting"][inside].max()))
            peaks["kv"] = max(peaks["kv"], float(e["used"][inside].max()) / capacity)
            preemptions += int(e["preemptions"][inside].sum())
    return {
        "kv_cache_usage_perc": totals["kv"] / length / replicas,
        "kv_cache_usage_perc_peak": peaks["kv"],
        "num_requests_running": totals["running"] / length / replicas,
        "num_requests_running_peak": peaks["running"],
        "num_requests_waiting": totals["waiting"] / length / replicas,
        "num_requests_waiting_peak": peaks["waiting"],
        "waiting_time_fraction": saturated / length / replicas,
        "gpu_busy_fraction": min(totals["busy"] / length / replicas, 1.0),
        "num_preemptions": preemptions,
        "busy_prefill_s": totals["prefill"],
        "busy_decode_s": totals["busy"] - totals["prefill"],
    }
