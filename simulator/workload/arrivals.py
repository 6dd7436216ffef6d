"""Arrival processes: times in seconds from a numpy generator.

Each function returns the first times of its process, sorted, up to `until_s` or `limit` requests, whichever
comes first. A longer horizon only appends: the times already drawn stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from simulator.workload.columns import FloatArray, IntArray

_CHUNK = 4096
"""Gaps drawn at a time (any value gives the same times; this one keeps the arrays in cache)."""


def poisson(rng: np.random.Generator, rate: float, until_s: float, limit: int | None = None) -> FloatArray:
    """Poisson process of `rate` [1/s]: exponential gaps, first arrival after one gap."""
    return _renewal(lambda n: rng.exponential(1.0 / rate, n), until_s, limit)


def gamma(
    rng: np.random.Generator, rate: float, cv: float, until_s: float, limit: int | None = None
) -> FloatArray:
    """Renewal process with gamma gaps of mean 1/rate and coefficient of variation `cv` (shape 1/cv^2).

    ``cv = 1`` is Poisson; vLLM's benchmark calls the shape `burstiness`.
    """
    shape = 1.0 / cv**2
    return _renewal(lambda n: rng.gamma(shape, 1.0 / (rate * shape), n), until_s, limit)


def constant(rate: float, until_s: float, limit: int | None = None) -> FloatArray:
    """Arrivals at 0, 1/rate, 2/rate, ... below `until_s`."""
    n = limit
    if math.isfinite(until_s):
        fit = math.ceil(until_s * rate)
        n = fit if n is None else min(n, fit)
    if n is None:
        raise ValueError("constant arrivals need an end: a time or a number of requests")
    times = np.arange(n) / rate
    return times[times < until_s]


def onoff(
    rng: np.random.Generator,
    rate_on: float,
    rate_off: float,
    on_s: float,
    off_s: float,
    until_s: float,
    limit: int | None = None,
) -> FloatArray:
    """Markov-modulated Poisson process of two states.

    Periods are exponential with means `on_s` and `off_s`; inside them arrivals are Poisson of `rate_on` or
    `rate_off`. The state at time 0 is drawn from the stationary law, so that the mean rate is
    ``(rate_on on_s + rate_off off_s) / (on_s + off_s)`` from the start.
    """
    state_on = bool(rng.random() < on_s / (on_s + off_s))
    parts: list[FloatArray] = []
    time, count = 0.0, 0
    while time < until_s and (limit is None or count < limit):
        length = rng.exponential(on_s if state_on else off_s)
        rate = rate_on if state_on else rate_off
        times = time + np.sort(rng.random(rng.poisson(rate * length))) * length
        parts.append(times)
        count += len(times)
        time += length
        state_on = not state_on
    return _cut(np.concatenate(parts) if parts else np.empty(0), until_s, limit)


def diurnal(
    rng: np.random.Generator,
    rate: float,
    peak_to_mean: float,
    period_s: float,
    until_s: float,
    limit: int | None = None,
) -> FloatArray:
    """Poisson process whose rate is ``rate (1 - a cos(2 pi t / period_s))``, ``a = peak_to_mean - 1 <= 1``.

    Time 0 is the trough, half a period the peak; the mean over whole periods is `rate`. Drawn by thinning a
    Poisson process of the peak rate (Lewis and Shedler, 1979).
    """
    amplitude = peak_to_mean - 1.0
    kept: list[FloatArray] = []
    time, count = 0.0, 0
    while time < until_s and (limit is None or count < limit):
        draws = rng.random((_CHUNK, 2))
        candidates = time + np.cumsum(-np.log1p(-draws[:, 0]) / (rate * peak_to_mean))
        density = (1.0 - amplitude * np.cos(2.0 * math.pi * candidates / period_s)) / peak_to_mean
        times = candidates[draws[:, 1] < density]
        kept.append(times)
        count += len(times)
        time = float(candidates[-1])
    return _cut(np.concatenate(kept) if kept else np.empty(0), until_s, limit)


def fill_bins(rng: np.random.Generator, counts: IntArray, bin_s: float, until_s: float) -> FloatArray:
    """Place `counts[i]` arrivals uniformly in bin i; return all times below `until_s`, sorted."""
    bins = np.repeat(np.arange(len(counts)), counts)
    times = np.sort((bins + rng.random(len(bins))) * bin_s)
    return times[times < until_s]


def _renewal(gaps: Callable[[int], FloatArray], until_s: float, limit: int | None) -> FloatArray:
    parts: list[FloatArray] = []
    time, count = 0.0, 0
    while time < until_s and (limit is None or count < limit):
        # The clock is the first term of the sum, so that the chunk length leaves no trace in the times.
        times = np.cumsum(np.concatenate(([time], gaps(_CHUNK))))[1:]
        parts.append(times)
        count += _CHUNK
        time = float(times[-1])
    return _cut(np.concatenate(parts) if parts else np.empty(0), until_s, limit)


def _cut(times: FloatArray, until_s: float, limit: int | None) -> FloatArray:
    return times[: int(np.searchsorted(times, until_s, side="left"))][:limit]
