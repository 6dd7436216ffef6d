"""Arrival processes: times in seconds from a numpy generator.

A process is an endless iterator over stretches: the sorted arrival times of a stretch, and the time up to which the
process is then known. `until` collects the first times up to `until_s` or `limit` requests, whichever comes first. A
longer horizon only appends: the times already drawn stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from simulator.workload.columns import FloatArray, IntArray

_CHUNK = 4096
"""Gaps drawn at a time (any value gives the same times; this one keeps the arrays in cache)."""
_MOST_AT_ONCE = 1e6
"""Arrivals of a period that are drawn together."""


Stretches = Iterator[tuple[FloatArray, float]]


def poisson(rng: np.random.Generator, rate: float, until_s: float, limit: int | None = None) -> FloatArray:
    """Times of `poisson_process`."""
    return until(poisson_process(rng, rate), until_s, limit)


def poisson_process(rng: np.random.Generator, rate: float) -> Stretches:
    """Poisson process of `rate` [1/s]: exponential gaps, first arrival after one gap."""
    return _renewal(lambda n: rng.exponential(1.0 / rate, n))


def gamma(
    rng: np.random.Generator, rate: float, cv: float, until_s: float, limit: int | None = None
) -> FloatArray:
    """Times of `gamma_process`."""
    return until(gamma_process(rng, rate, cv), until_s, limit)


def gamma_process(rng: np.random.Generator, rate: float, cv: float) -> Stretches:
    """Renewal process with gamma gaps of mean 1/rate and coefficient of variation `cv` (shape 1/cv^2).

    ``cv = 1`` is Poisson; vLLM's benchmark calls the shape `burstiness`.
    """
    shape = 1.0 / cv**2
    return _renewal(lambda n: rng.gamma(shape, 1.0 / (rate * shape), n))


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


def constant_process(rate: float) -> Stretches:
    """Arrivals at 0, 1/rate, 2/rate, ..."""
    first = 0
    while True:
        times = np.arange(first, first + _CHUNK) / rate
        yield times, float(times[-1])
        first += _CHUNK


def onoff(
    rng: np.random.Generator,
    rate_on: float,
    rate_off: float,
    on_s: float,
    off_s: float,
    until_s: float,
    limit: int | None = None,
) -> FloatArray:
    """Times of `onoff_process`."""
    return until(onoff_process(rng, rate_on, rate_off, on_s, off_s), until_s, limit)


def onoff_process(
    rng: np.random.Generator, rate_on: float, rate_off: float, on_s: float, off_s: float
) -> Stretches:
    """Markov-modulated Poisson process of two states.

    Periods are exponential with means `on_s` and `off_s`; inside them arrivals are Poisson of `rate_on` or
    `rate_off`. The state at time 0 is drawn from the stationary law, so that the mean rate is
    ``(rate_on on_s + rate_off off_s) / (on_s + off_s)`` from the start.
    """
    state_on = bool(rng.random() < on_s / (on_s + off_s))
    time = 0.0
    while True:
        length = rng.exponential(on_s if state_on else off_s)
        rate = rate_on if state_on else rate_off
        pieces = max(1, math.ceil(rate * length / _MOST_AT_ONCE))
        for _ in range(pieces):
            piece = length / pieces
            times = time + np.sort(rng.random(rng.poisson(rate * piece))) * piece
            time += piece
            yield times, time
        state_on = not state_on


def diurnal(
    rng: np.random.Generator,
    rate: float,
    peak_to_mean: float,
    period_s: float,
    until_s: float,
    limit: int | None = None,
) -> FloatArray:
    """Times of `diurnal_process`."""
    return until(diurnal_process(rng, rate, peak_to_mean, period_s), until_s, limit)


def diurnal_process(rng: np.random.Generator, rate: float, peak_to_mean: float, period_s: float) -> Stretches:
    """Poisson process whose rate is ``rate (1 - a cos(2 pi t / period_s))``, ``a = peak_to_mean - 1 <= 1``.

    Time 0 is the trough, half a period the peak; the mean over whole periods is `rate`. Drawn by thinning a
    Poisson process of the peak rate (Lewis and Shedler, 1979).
    """
    amplitude = peak_to_mean - 1.0
    time = 0.0
    while True:
        draws = rng.random((_CHUNK, 2))
        candidates = time + np.cumsum(-np.log1p(-draws[:, 0]) / (rate * peak_to_mean))
        density = (1.0 - amplitude * np.cos(2.0 * math.pi * candidates / period_s)) / peak_to_mean
        time = float(candidates[-1])
        yield candidates[draws[:, 1] < density], time


def fill_bins(rng: np.random.Generator, counts: IntArray, bin_s: float, until_s: float) -> FloatArray:
    """Place `counts[i]` arrivals uniformly in bin i; return all times below `until_s`, sorted."""
    bins = np.repeat(np.arange(len(counts)), counts)
    times = np.sort((bins + rng.random(len(bins))) * bin_s)
    return times[times < until_s]


def parts(process: Stretches, until_s: float, limit: int | None) -> Iterator[FloatArray]:
    """Times of a process below `until_s`, at most `limit`, a stretch at a time."""
    left = math.inf if limit is None else limit
    known_s = 0.0
    while known_s < until_s and left > 0:
        times, known_s = next(process)
        times = times[: int(np.searchsorted(times, until_s, side="left"))]
        if len(times) > left:
            times = times[: int(left)]
        left -= len(times)
        yield times


def until(process: Stretches, until_s: float, limit: int | None) -> FloatArray:
    """All times of `parts`."""
    found = list(parts(process, until_s, limit))
    return np.concatenate(found) if found else np.empty(0)


def _renewal(gaps: Callable[[int], FloatArray]) -> Stretches:
    time = 0.0
    while True:
        # The clock is the first term of the sum, so that the chunk length leaves no trace in the times.
        times = np.cumsum(np.concatenate(([time], gaps(_CHUNK))))[1:]
        time = float(times[-1])
        yield times, time
