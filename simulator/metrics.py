"""Latency, throughput, goodput and server metrics of a run, in the meanings of vLLM's benchmark.

    TTFT = first token visible - send        TPOT = (E2E - TTFT) / (output tokens - 1), undefined for one token
    E2E  = last token visible - send         ITL  = gaps between successive tokens, pooled over all requests

Latencies are of the requests that arrive in the measured window, throughput and utilisation of the window's time.
Token times are not stored: they are slices of the replicas' step ends, so the pooled gaps are an exact weighted
histogram (a gap of a step weighs as many rows as emitted in it and in the step before).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster import FINISHED, REJECTED, UNFINISHED, ClusterResult

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

PERCENTILES = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
BATCHES = 20
T_975_19 = 2.093
"""Student's t at 0.975 with 19 degrees of freedom (tables; e.g. NIST handbook 1.3.6.7.2)."""


@dataclass(frozen=True)
class Window:
    """The measured window [s]: requests arriving in it are judged, its time counts for rates and cost."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Length in seconds."""
        return max(self.end_s - self.start_s, 0.0)


def percentile_name(percent: float) -> str:
    """Return "p50", "p99", "p99_9"."""
    return "p" + f"{percent:g}".replace(".", "_")


def weighted_quantiles(values: FloatArray, weights: NDArray[np.int64], percents: tuple[float, ...]) -> list[float]:
    """Percentiles of `values` repeated `weights` times, linear between ranks as numpy's default.

    >>> weighted_quantiles(np.array([1.0, 2.0]), np.array([3, 1]), (50.0, 100.0))
    [1.0, 2.0]
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    cumulated = np.cumsum(weights[order])
    total = int(cumulated[-1])
    out = []
    for percent in percents:
        rank = percent / 100.0 * (total - 1)
        below = int(np.floor(rank))
        low = ordered[int(np.searchsorted(cumulated, below, side="right"))]
        high = ordered[int(np.searchsorted(cumulated, min(below + 1, total - 1), side="right"))]
        out.append(float(low + (high - low) * (rank - below)))
    return out


def batch_means_ci95(ordered_values: FloatArray) -> list[float] | None:
    """95 % confidence interval of the mean by 20 batch means of values in order of arrival; None below 40 values.

    Batch means (Law and Kelton, Simulation Modeling and Analysis, section 9.5) hold for correlated values as long as
    batches are longer than the correlation.
    """
    if len(ordered_values) < 2 * BATCHES:
        return None
    means = np.array([chunk.mean() for chunk in np.array_split(ordered_values, BATCHES)])
    return _around(float(ordered_values.mean()), means)


def weighted_batches(values: FloatArray, weights: NDArray[np.int64]) -> FloatArray | None:
    """Means of `BATCHES` stretches of about equal weight of values in order of time; None where they are too few."""
    before = np.cumsum(weights) - weights
    total = int(weights.sum())
    if total < 2 * BATCHES or len(values) < 2 * BATCHES:
        return None
    batch = np.minimum(before * BATCHES // total, BATCHES - 1)
    weight = np.bincount(batch, weights=weights, minlength=BATCHES)
    if not weight.all():
        return None
    return np.bincount(batch, weights=values * weights, minlength=BATCHES) / weight


def _around(centre: float, batches: FloatArray) -> list[float]:
    half = T_975_19 * float(batches.std(ddof=1)) / BATCHES**0.5
    return [centre - half, centre + half]


def _emissions(result: ClusterResult) -> tuple[FloatArray, FloatArray]:
    """Ends of all replicas' steps [s] and how many rows emitted a token in each."""
    spans: list[list[tuple[int, int]]] = [[] for _ in result.logs]
    for row, found in enumerate(result.emissions):
        if found:
            spans[result.replica[row]].extend((a, b) for a, b in found if b >= a)
    times, tokens = [np.zeros(0)], [np.zeros(0)]
    for log, mine in zip(result.logs, spans, strict=True):
        if not mine:
            continue
        ends = np.frombuffer(log.end_s, dtype=np.float64)
        both = np.array(mine, dtype=np.int64)
        change = np.bincount(both[:, 0], minlength=len(ends) + 1)
        change -= np.bincount(both[:, 1] + 1, minlength=len(ends) + 1)
        times.append(ends)
        tokens.append(np.cumsum(change)[:-1].astype(float))
    return np.concatenate(times), np.concatenate(tokens)


def rates_ci95(result: ClusterResult, window: Window, good: BoolArray | None = None) -> dict[str, list[float] | None]:
    """95 % confidence intervals of the window's rates [1/s], by the means of 20 stretches of its time.

    Requests count when they end, input tokens at the first token, output tokens when they appear, good requests
    (`good`, rows of the workload) when they arrive; a null where the window has no length.
    """
    edges = np.linspace(window.start_s, window.end_s, BATCHES + 1)
    names = ("request_throughput", "input_throughput", "output_throughput", "total_token_throughput", "request_goodput")
    if window.length_s <= 0:
        return dict.fromkeys(names)
    width = window.length_s / BATCHES
    requests = np.histogram(result.end_s[~np.isnan(result.end_s)], edges)[0] / width
    first = result.first_token_s
    seen = ~np.isnan(first)
    inputs = np.histogram(first[seen], edges, weights=result.prompt_tokens[seen])[0] / width
    times, tokens = _emissions(result)
    outputs = np.histogram(times, edges, weights=tokens)[0] / width
    rates = dict(zip(names, (requests, inputs, outputs, inputs + outputs), strict=False))
    out: dict[str, list[float] | None] = {name: _around(float(r.mean()), r) for name, r in rates.items()}
    out["request_goodput"] = None
    if good is not None:
        rate = np.histogram(result.arrival_s[good], edges)[0] / width
        out["request_goodput"] = _around(float(rate.mean()), rate)
    return out


def statistics(values: FloatArray, unit: str, weights: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Summary of a metric: mean, std, min, percentiles, max, count; all null for no values."""
    names = [percentile_name(p) for p in PERCENTILES]
    out: dict[str, Any] = {"unit": unit, "mean": None, "std": None, "min": None}
    out.update(dict.fromkeys(names))
    out.update({"max": None, "count": 0, "ci95": None, "interval": None})
    if weights is None:
        values = values[~np.isnan(values)]
        if not len(values):
            return out
        out["mean"], out["std"] = float(values.mean()), float(values.std())
        quantiles = [float(q) for q in np.percentile(values, PERCENTILES)]
        out["count"] = len(values)
        out["ci95"] = batch_means_ci95(values)
    else:
        keep = weights > 0
        values, weights = values[keep], weights[keep]
        count = int(weights.sum())
        if not count:
            return out
        mean = float((values * weights).sum() / count)
        out["mean"] = mean
        out["std"] = float(np.sqrt(max(0.0, ((values - mean) ** 2 * weights).sum() / count)))
        quantiles = weighted_quantiles(values, weights, PERCENTILES)
        out["count"] = count
        batches = weighted_batches(values, weights)
        out["ci95"] = None if batches is None else _around(mean, batches)
    out["min"], out["max"] = float(values.min()), float(values.max())
    out.update(zip(names, quantiles, strict=True))
    return out


def token_gaps(result: ClusterResult, rows: BoolArray) -> tuple[FloatArray, NDArray[np.int64]]:
    """Gaps between successive tokens of the chosen requests [s], and how often each occurs."""
    gaps: list[FloatArray] = []
    weights: list[NDArray[np.int64]] = []
    chosen = np.flatnonzero(rows)
    replicas = result.replica[chosen]
    for number, log in enumerate(result.logs):
        ends = np.frombuffer(log.end_s, dtype=np.float64)
        mine = chosen[replicas == number]
        if not len(mine) or len(ends) < 2:
            continue
        first: list[int] = []
        last: list[int] = []
        single: list[float] = []
        for row in mine.tolist():
            spans = result.emissions[row]
            if not spans:
                continue
            before = -1
            for a, b in spans:
                if b < a:
                    continue
                if before >= 0:
                    single.append(float(ends[a] - ends[before]))
                first.append(a)
                last.append(b)
                before = b
        change = np.zeros(len(ends) + 1, dtype=np.int64)
        np.add.at(change, np.array(first, dtype=np.int64) + 1, 1)
        np.add.at(change, np.array(last, dtype=np.int64) + 1, -1)
        weight = np.cumsum(change)[1 : len(ends)]
        gaps.append(np.diff(ends))
        weights.append(weight)
        if single:
            gaps.append(np.array(single))
            weights.append(np.ones(len(single), dtype=np.int64))
    if not gaps:
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    return np.concatenate(gaps), np.concatenate(weights)


def tokens_emitted(result: ClusterResult, window: Window) -> int:
    """Output tokens that became visible inside the window, of all requests."""
    total = 0
    owner = result.replica
    per_replica: list[list[int]] = [[] for _ in result.logs]
    for row, spans in enumerate(result.emissions):
        if spans:
            per_replica[owner[row]].extend(x for span in spans for x in span)
    for number, log in enumerate(result.logs):
        ends = np.frombuffer(log.end_s, dtype=np.float64)
        if not len(ends) or not per_replica[number]:
            continue
        spans_array = np.array(per_replica[number], dtype=np.int64).reshape(-1, 2)
        low = int(np.searchsorted(ends, window.start_s, side="left"))
        high = int(np.searchsorted(ends, window.end_s, side="right")) - 1
        a = np.maximum(spans_array[:, 0], low)
        b = np.minimum(spans_array[:, 1], high)
        total += int(np.maximum(b - a + 1, 0).sum())
    return total


@dataclass(frozen=True)
class Latencies:
    """Per-request latencies [ms] (NaN where undefined), over all rows of the workload."""

    ttft_ms: FloatArray
    tpot_ms: FloatArray
    e2el_ms: FloatArray
    queue_ms: FloatArray
    prefill_ms: FloatArray
    decode_ms: FloatArray


def latencies(result: ClusterResult, extra_s: float = 0.0) -> Latencies:
    """Latencies of every request; `extra_s` is what the measuring client adds to TTFT and E2E."""
    finished = result.status == FINISHED
    ttft = (result.first_token_s - result.arrival_s + extra_s) * 1e3
    e2el = np.where(finished, (result.end_s - result.arrival_s + extra_s) * 1e3, np.nan)
    ttft = np.where(finished, ttft, np.nan)
    several = finished & (result.output_tokens > 1)
    tpot = np.full(len(ttft), np.nan)
    tpot[several] = (e2el - ttft)[several] / (result.output_tokens[several] - 1)
    queue = np.where(finished, (result.first_scheduled_s - result.engine_arrival_s) * 1e3, np.nan)
    prefill = np.where(finished, (result.first_token_s - result.first_scheduled_s) * 1e3, np.nan)
    return Latencies(ttft, tpot, e2el, queue, prefill, e2el - ttft)


def slo_bounds(slo: dict[str, Any]) -> dict[str, float]:
    """Bound of each latency that a single request must keep: the value of the highest percentile named."""
    bounds: dict[str, float] = {}
    for metric, named in slo.items():
        if metric == "attainment" or not named:
            continue
        highest = max(named, key=lambda name: float(name[1:].replace("_", ".")))
        bounds[metric] = float(named[highest])
    return bounds


def good_requests(lat: Latencies, slo: dict[str, Any]) -> BoolArray:
    """Requests that keep the bounds of TTFT, TPOT and E2E; TPOT of one-token outputs counts as kept."""
    good = ~np.isnan(lat.e2el_ms)
    for metric, bound in slo_bounds(slo).items():
        if metric == "itl_ms":
            continue
        values = getattr(lat, metric)
        if metric == "tpot_ms":
            values = np.where(np.isnan(values), 0.0, values)
        with np.errstate(invalid="ignore"):
            good &= values <= bound
    return good


def _open_verdict(beyond: FloatArray, weights: NDArray[np.int64], allowed: float) -> bool:
    """Tell whether sampling error leaves open if more than the share `allowed` of all values lies beyond a bound.

    `beyond` is 0 or 1 a value, in order of time. The interval of 95 % of the share is by batch means, on a logarithmic scale
    since late requests come in bursts and shares are small: share * exp(+-t * standard error / share). Below 40 values, or
    with none beyond, nothing is left open; that a run is too short for a percentile is a warning of its own.
    """
    batches = weighted_batches(beyond, weights)
    share = float((beyond * weights).sum() / weights.sum())
    if batches is None or not 0 < share < 1:
        return False
    factor = np.exp(T_975_19 * float(batches.std(ddof=1)) / BATCHES**0.5 / share)
    return bool(share / factor <= allowed <= share * factor)


def verdict(
    lat: Latencies,
    rows: BoolArray,
    gaps: tuple[FloatArray, NDArray[np.int64]],
    slo: dict[str, Any],
) -> dict[str, Any]:
    """Judge the SLO over `rows`: every named percentile, lost requests counted as infinite, and the attainment.

    A check is `close` if the sampling error of the run leaves open on which side of its bound the percentile lies; the
    verdict is close if checks that are close could turn it. `with_model_error` adds the error of the model.
    """
    checks: list[dict[str, Any]] = []
    for metric, named in slo.items():
        if metric == "attainment" or not named:
            continue
        values, weights = _judged_values(lat, rows, gaps, metric)
        for name, bound in named.items():
            percent = float(name[1:].replace("_", "."))
            actual = _percentile(values, weights, percent)
            near = bool(len(values)) and _open_verdict((values > bound).astype(float), weights, 1 - percent / 100)
            checks.append(
                {
                    "metric": metric,
                    "percentile": name,
                    "bound_ms": float(bound),
                    "actual_ms": actual if np.isfinite(actual) else None,
                    "holds": bool(actual <= bound),
                    "close": near,
                }
            )
    good = good_requests(lat, slo)[rows]
    attainment = float(good.mean()) if len(good) else None
    wanted = slo.get("attainment")
    kept, near = True, False
    if wanted is not None:
        kept = attainment is not None and attainment >= wanted
        near = bool(len(good)) and _open_verdict((~good).astype(float), np.ones(len(good), np.int64), 1 - wanted)
    return {
        "holds": kept and all(check["holds"] for check in checks),
        "close": _may_turn(checks, kept, near),
        "checks": checks,
        "attainment": attainment,
        "attainment_wanted": wanted,
        "attainment_close": near,
    }


def with_model_error(judged: dict[str, Any], stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a verdict in which also the checks are close whose bound lies inside the interval of the model's error.

    `stats` are the metrics of the run, each with `interval`: {percentile: [low, high or null]} in ms, or null.
    """
    checks = []
    for check in judged["checks"]:
        named = (stats[check["metric"]].get("interval") or {}).get(check["percentile"])
        inside = named is not None and named[0] <= check["bound_ms"] and (named[1] is None or check["bound_ms"] <= named[1])
        checks.append({**check, "close": check["close"] or inside})
    wanted, attainment = judged["attainment_wanted"], judged["attainment"]
    kept = wanted is None or (attainment is not None and attainment >= wanted)
    return {**judged, "checks": checks, "close": _may_turn(checks, kept, judged["attainment_close"])}


def _may_turn(checks: list[dict[str, Any]], attained: bool, attainment_near: bool) -> bool:
    """Whether parts of a verdict that are close could turn it: any of a met one, all that fail of a missed one."""
    parts = [(check["holds"], check["close"]) for check in checks] + [(attained, attainment_near)]
    failing = [near for holds, near in parts if not holds]
    return all(failing) if failing else any(near for _, near in parts)


def _judged_values(
    lat: Latencies, rows: BoolArray, gaps: tuple[FloatArray, NDArray[np.int64]], metric: str
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Values of a metric [ms] and their weights, lost requests infinite; one-token outputs have no TPOT."""
    if metric == "itl_ms":
        keep = gaps[1] > 0
        return gaps[0][keep] * 1e3, gaps[1][keep]
    values = getattr(lat, metric)[rows]
    if metric == "tpot_ms":
        values = values[np.isnan(lat.e2el_ms[rows]) | ~np.isnan(values)]
    values = np.where(np.isnan(values), np.inf, values)
    return values, np.ones(len(values), dtype=np.int64)


def _percentile(values: FloatArray, weights: NDArray[np.int64], percent: float) -> float:
    if not len(values):
        return float("nan")
    if (weights != 1).any():
        return weighted_quantiles(values, weights, (percent,))[0]
    if np.isfinite(values).all():
        return float(np.percentile(values, percent))
    return float(np.percentile(values, percent, method="higher"))


@dataclass(frozen=True)
class Overload:
    """Offered load beyond capacity, and an estimate of what the deployment sustains."""

    offered_per_s: float
    sustainable_per_s: float
    backlog: int


def overload(result: ClusterResult, window: Window) -> Overload | None:
    """Tell whether the backlog grew through the second half of the window.

    Criterion: over the second half fewer than 95 % as many requests ended as arrived, more than 20 more were in the system at
    its end than in its middle, and requests waited. The sustainable rate is the completion rate of that half.
    """
    middle = (window.start_s + window.end_s) / 2
    span = window.end_s - middle
    if span <= 0:
        return None
    offered = result.status != REJECTED
    arrived = int(((result.arrival_s >= middle) & (result.arrival_s <= window.end_s) & offered).sum())
    ended = int(((result.end_s >= middle) & (result.end_s <= window.end_s)).sum())
    unfinished = int((result.status == UNFINISHED).sum())
    backlog = int(((result.arrival_s <= window.end_s) & offered).sum() - (result.end_s <= window.end_s).sum())
    if arrived and ended < 0.95 * arrived and arrived - ended > 20 and (backlog > 20 or unfinished):
        return Overload(arrived / span, ended / span, backlog)
    return None
