"""Per-rank time series, and averages over the measured window, from the logs of steps.

Every column is an integral over the steps: an amount is spent evenly over the time of a step, a state holds as long as it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.records import dataclass
from simulator.serving.log import Columns, StepLog

FloatArray = NDArray[np.float64]

MAX_ROWS = 10_000
FEW_ROWS = 64
"""Bins for which a rank has room at first (even, as all numbers of bins are)."""
MIN_BIN_S = 1.0
NO_KV = -1
"""Units of the KV cache of a server that has none."""


@dataclass(frozen=True)
class Window:
    """The measured window [s]: requests arriving in it are judged, its time counts for rates and cost."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Length in seconds."""
        return max(self.end_s - self.start_s, 0.0)

    @property
    def middle_s(self) -> float:
        """Where the second half begins."""
        return (self.start_s + self.end_s) / 2


class _Spread:
    """Steps in order of time, none beginning before the one before it has given way; what falls between edges of time."""

    def __init__(self, steps: Columns, edges_s: FloatArray) -> None:
        start, until = steps["start_s"], steps["until_s"]
        self.lived_s = until - start
        self._at = np.searchsorted(start, edges_s, side="right") - 1
        self._before = self._at < 0
        here = np.maximum(self._at, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            passed = (edges_s - start[here]) / self.lived_s[here]
        # a step of no length is over at once
        self._left = 1.0 - np.where(self.lived_s[here] > 0, np.minimum(passed, 1.0), 1.0)

    def sums(self, amount: NDArray[Any]) -> FloatArray:
        """Amounts, one a step, in each bin between the edges."""
        so_far = amount.cumsum(dtype=np.float64)[self._at] - amount[self._at] * self._left
        reached: NDArray[np.float64] = np.where(self._before, 0.0, so_far)
        return reached[1:] - reached[:-1]  # numpy's `diff` takes as long again


class Bins:
    """What a rank did in bins of time: one second each, joined in pairs whenever there would be more than `MAX_ROWS`."""

    NAMES = (
        "seconds",
        "steps",
        "running",
        "waiting",
        "kv_usage",
        "tokens",
        "prefill_tokens",
        "decode_tokens",
        "preemptions",
        "device",
    )

    def __init__(self, kv_total: int) -> None:
        self.width_s = MIN_BIN_S
        self._kv_total, self._has_kv = max(1, kv_total), kv_total != NO_KV
        self._sums: dict[str, FloatArray] = {}

    def widen(self, width_s: float) -> None:
        """Join bins in pairs until they are as wide."""
        while self.width_s < width_s:
            self.width_s *= 2
            widen(self._sums)

    def add(self, steps: Columns) -> None:
        """Take in steps, later than those before."""
        if not len(steps["start_s"]):
            return
        last_s = float(steps["until_s"].max())
        while last_s >= self.width_s * MAX_ROWS:
            self.widen(2 * self.width_s)
        width_s = self.width_s
        first, stop = int(float(steps["start_s"][0]) / width_s), int(last_s / width_s) + 1
        edges = np.arange(first, stop + 1, dtype=np.float64) * width_s
        spread = _Spread(steps, edges)
        lived_s, prefill, decode = spread.lived_s, steps["prefill_tokens"], steps["decode_tokens"]
        found = {
            "seconds": spread.sums(lived_s),
            "steps": spread.sums(steps["steps"]),
            "running": spread.sums(steps["running"] * lived_s),
            "waiting": spread.sums(steps["waiting"] * lived_s),
            "kv_usage": spread.sums(steps["kv_used"] / self._kv_total * lived_s) * self._has_kv,
            "tokens": spread.sums(prefill + decode),
            "prefill_tokens": spread.sums(prefill),
            "decode_tokens": spread.sums(decode),
            "device": spread.sums(steps["device_s"]),
        }
        for name, values in found.items():
            self._column(name, stop)[first:stop] += values
        some = np.flatnonzero(steps["preemptions"])
        at = (steps["start_s"][some] / width_s).astype(np.int64)
        np.add.at(self._column("preemptions", stop), at, steps["preemptions"][some])

    def _column(self, name: str, bins: int) -> FloatArray:
        """The sums of a column, at least so many of them: many ranks of a short run hold little."""
        sums = self._sums.get(name, np.zeros(0))
        if len(sums) < bins:
            rows = min(MAX_ROWS, max(FEW_ROWS, 2 * bins))
            sums = self._sums[name] = np.concatenate([sums, np.zeros(rows - len(sums))])
        return sums

    def columns(self, bins: int) -> dict[str, NDArray[Any]]:
        """Columns of the timeline over the first `bins` bins.

        `running`, `waiting` and `kv_usage` are averages over the time in which the rank worked, busy_fraction is the share of
        the bin in which its device computed, `batch_tokens` the mean of tokens a step.
        """
        found = {name: self._column(name, bins)[:bins] for name in self.NAMES}
        seconds = np.maximum(found["seconds"], 1e-12)
        rows = {name: found[name] / seconds for name in ("running", "waiting", "kv_usage")}
        rows["batch_tokens"] = found["tokens"] / np.maximum(found["steps"], 1e-12)
        rows = {name: np.where(found["seconds"] < 1e-9, 0.0, values) for name, values in rows.items()}
        return rows | {
            "prefill_tokens": found["prefill_tokens"],
            "decode_tokens": found["decode_tokens"],
            "preemptions": found["preemptions"].astype(np.int64),
            "busy_fraction": np.minimum(found["device"] / self.width_s, 1.0),
        }


def widen(bins: dict[str, FloatArray]) -> None:
    """Make all bins twice as wide, in place; there are as many as before, the second half of them empty."""
    for name, sums in bins.items():
        halved = sums[::2] + sums[1::2]
        bins[name] = np.concatenate([halved, np.zeros(len(sums) - len(halved))])


def table(ranks: list[Bins], end_of_run_s: float) -> dict[str, NDArray[Any]]:
    """Columns of `timeline.parquet`: one row a bin and rank, all bins of one width, at most `MAX_ROWS` a rank."""
    width_s = max(bins.width_s for bins in ranks)
    count = min(MAX_ROWS, max(1, int(np.ceil(max(end_of_run_s, MIN_BIN_S) / width_s))))
    columns: dict[str, list[NDArray[Any]]] = {}
    for number, bins in enumerate(ranks):
        bins.widen(width_s)
        rows = {"instance_id": np.full(count, number, dtype=np.int64), "t_s": np.arange(count) * width_s}
        for name, values in (rows | bins.columns(count)).items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def table_of(logs: Sequence[StepLog], capacities: Sequence[int], end_of_run_s: float) -> dict[str, NDArray[Any]]:
    """`table` of the ranks whose logs and KV units these are: of all records that the logs hold."""
    ranks = [Bins(capacity) for capacity in capacities]
    for bins, log in zip(ranks, logs, strict=True):
        bins.add(log.records())
    return table(ranks, end_of_run_s)


class WindowLoad:
    """Averages and peaks over a window of time, over ranks whose steps come in any number of parts."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._edges_s = np.array([window.start_s, max(window.end_s, window.start_s + 1e-9)])
        self._totals = dict.fromkeys(("running", "waiting", "kv", "busy", "prefill", "saturated"), 0.0)
        self._peaks = {"running": 0, "waiting": 0, "kv": 0.0}
        self._preemptions = 0

    def add(self, steps: Columns, kv_total: int) -> None:
        """Take in steps of a rank."""
        if not len(steps["start_s"]):
            return
        totals, peaks, window = self._totals, self._peaks, self._window
        total = max(1, kv_total)
        spread = _Spread(steps, self._edges_s)
        lived_s = spread.lived_s
        amounts: dict[str, Callable[[], NDArray[Any]]] = {  # made one after the other: each has a value a step
            "running": lambda: steps["running"] * lived_s,
            "waiting": lambda: steps["waiting"] * lived_s,
            "kv": lambda: steps["kv_used"] / total * lived_s,
            "busy": lambda: steps["device_s"],
            "prefill": lambda: steps["prefill_s"],
            "saturated": lambda: np.where(steps["waiting"] > 0, lived_s, 0.0),
        }
        for name, amount in amounts.items():
            totals[name] += float(spread.sums(amount())[0])
        inside = (steps["until_s"] >= window.start_s) & (steps["start_s"] <= window.end_s)
        if inside.any():
            peaks["running"] = max(peaks["running"], int(steps["running"][inside].max()))
            peaks["waiting"] = max(peaks["waiting"], int(steps["waiting"][inside].max()))
            peaks["kv"] = max(peaks["kv"], float(steps["kv_peak"][inside].max()) / total)
            self._preemptions += int(steps["preemptions"][inside].sum())

    def averages(self, length_s: float, count: float) -> dict[str, Any]:
        """Averages over `length_s` seconds of so many ranks, peaks, and device time by kind."""
        totals, peaks, length = self._totals, self._peaks, max(length_s, 1e-9)
        return {
            "kv_cache_usage_perc": totals["kv"] / length / count,
            "kv_cache_usage_perc_peak": peaks["kv"],
            "num_requests_running": totals["running"] / length / count,
            "num_requests_running_peak": peaks["running"],
            "num_requests_waiting": totals["waiting"] / length / count,
            "num_requests_waiting_peak": peaks["waiting"],
            "waiting_time_fraction": totals["saturated"] / length / count,
            "gpu_busy_fraction": min(totals["busy"] / length / count, 1.0),
            "num_preemptions": self._preemptions,
            "busy_prefill_s": totals["prefill"],
            "busy_decode_s": totals["busy"] - totals["prefill"],
        }
