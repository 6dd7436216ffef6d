"""Parts of what a collector counts, of a result whose requests and steps are in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from simulator.cluster.outcome import ClusterResult
from simulator.results.figures import Judged
from simulator.results.latencies import Covered, Latencies
from simulator.results.rates import ExactTimes, Rates
from simulator.results.statistics import Exact
from simulator.results.timeline import Window, WindowLoad


def verdict(
    lat: Latencies,
    slo: dict[str, Any],
    rows: np.ndarray[Any, Any] | None = None,
    gaps: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None,
) -> dict[str, Any]:
    """The verdict over some requests, all by default, and gaps [s] with their weights."""
    judged = Judged(slo, (), Exact, [])
    judged.add(lat, np.ones(len(lat.ttft_ms), bool) if rows is None else rows)
    if gaps is not None:
        judged.stats["itl_ms"].add(gaps[0] * 1e3, gaps[1])
    found = judged.verdict()
    assert found is not None
    return found


def rates(raw: ClusterResult, window: Window, good: np.ndarray[Any, Any] | None = None) -> Rates:
    """When requests came and ended, and tokens appeared in a window."""
    found = Rates(partial(ExactTimes, window))
    found.add(raw, good)
    spans = raw.emissions.ranges(np.arange(len(raw.status)))
    for number, log in enumerate(raw.logs):
        first, last = spans.of_log(number)
        covered = Covered()
        covered.add(first, last + 1, len(log.end_s))
        found.tokens.add(np.array(log.end_s), covered.take(len(log.end_s)))
    return found


def server_averages(raw: ClusterResult, window: Window) -> dict[str, Any]:
    """Averages and peaks over a window, of all ranks."""
    load = WindowLoad(window)
    for log, kv_total in zip(raw.logs, raw.capacity_blocks, strict=True):
        load.add(log.records(), kv_total)
    return load.averages(window.length_s, len(raw.logs))
