"""Latency, throughput, goodput and server metrics of a run, in the meanings of vLLM's benchmark.

    TTFT = first token visible - send        TPOT = (E2E - TTFT) / (output tokens - 1), undefined for one token
    E2E  = last token visible - send         ITL  = gaps between successive tokens, pooled over all requests

Latencies are of the requests that arrive in the measured window, throughput and utilisation of the window's time.
Token times are not stored: they are slices of the replicas' step ends, so the pooled gaps are an exact weighted
histogram (a gap of a step weighs as many rows as emitted in it and in the step before).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.outcome import FINISHED, REJECTED, UNFINISHED, ClusterResult
from simulator.serving.emissions import Ranges

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.signedinteger[Any]]

PERCENTILES = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
FEW_VALUES = 1 << 17
"""Up to so many values sorting is quick."""
BINS = (1 << 16) - 1
PART = 1 << 17
BATCHES = 20
T_975_19 = 2.093
"""Student's t at 0.975 with 19 degrees of freedom (tables; e.g. NIST handbook 1.3.6.7.2)."""
T_95_19 = 1.729
"""The same at 0.95, for bounds on one side."""


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


def percentile_name(percent: float) -> str:
    """Return "p50", "p99", "p99_9"."""
    return "p" + f"{percent:g}".replace(".", "_")


def weighted_quantiles(values: FloatArray, weights: IntArray, percents: tuple[float, ...]) -> list[float]:
    """Percentiles of `values` repeated `weights` times, linear between ranks as numpy's default.

    >>> weighted_quantiles(np.array([1.0, 2.0]), np.array([3, 1]), (50.0, 100.0))
    [1.0, 2.0]
    """
    total = int(weights.sum())
    ranks = [percent / 100.0 * (total - 1) for percent in percents]
    wanted = sorted({min(int(np.floor(rank)) + more, total - 1) for rank in ranks for more in (0, 1)})
    found = dict(zip(wanted, _of_rank(values, weights, wanted), strict=True))
    out = []
    for rank in ranks:
        below = int(np.floor(rank))
        low, high = found[below], found[min(below + 1, total - 1)]
        share = rank - below
        out.append(float(low if share == 0 else low + (high - low) * share if np.isfinite(high) else high))
    return out


def _of_rank(values: FloatArray, weights: IntArray, ranks: list[int]) -> list[float]:
    """Values at rising `ranks` (from 0) of `values` repeated `weights` times.

    Many values are first counted in bins of equal width, and only the bins that hold a rank are sorted.
    """
    skipped = np.zeros(len(ranks), dtype=np.int64)
    if (
        len(values) > FEW_VALUES
        and np.isfinite(low := values.min())
        and np.isfinite(high := values.max())
        and high > low
    ):
        scale = BINS / (high - low)
        bins = np.empty(len(values), dtype=np.uint16)
        counts = np.zeros(BINS + 1)
        for part in _parts(len(values)):
            bins[part] = (values[part] - low) * scale * (1 - 1e-9)
            counts += np.bincount(bins[part], weights=weights[part], minlength=BINS + 1)
        cumulated = np.cumsum(counts).astype(np.int64)
        holding = np.searchsorted(cumulated, ranks, side="right")
        chosen = np.zeros(BINS + 1, dtype=bool)
        chosen[holding] = True
        left_out = np.cumsum(np.where(chosen, 0.0, counts)).astype(np.int64)
        skipped = left_out[holding]
        keep = np.concatenate(
            [np.flatnonzero(chosen[bins[part]]) + part.start for part in _parts(len(values))]
        )
        values, weights = values[keep], weights[keep]
    order = np.argsort(values, kind="stable")
    at = np.searchsorted(np.cumsum(weights[order]), np.asarray(ranks, dtype=np.int64) - skipped, side="right")
    return [float(v) for v in values[order[at]]]


STRETCHES = 8 * BATCHES
"""Stretches of time in which the gaps of several replicas are joined (assumed: finer than the batches of `weighted_batches`)."""


def _parts(n: int) -> list[slice]:
    """Stretches of `PART` of n values: temporaries of that size stay in the cache and take no memory."""
    return [slice(start, min(start + PART, n)) for start in range(0, n, PART)]


def batch_means_ci95(ordered_values: FloatArray) -> list[float] | None:
    """95 % confidence interval of the mean by 20 batch means of values in order of arrival; None below 40 values.

    Batch means (Law and Kelton, Simulation Modeling and Analysis, section 9.5) hold for correlated values as long as
    batches are longer than the correlation.
    """
    if len(ordered_values) < 2 * BATCHES:
        return None
    means = np.array([chunk.mean() for chunk in np.array_split(ordered_values, BATCHES)])
    return around(float(ordered_values.mean()), means)


def weighted_batches(values: FloatArray, weights: IntArray) -> FloatArray | None:
    """Means of `BATCHES` stretches of about equal weight of values in order of time; None where they are too few."""
    total = int(weights.sum())
    if total < 2 * BATCHES or len(values) < 2 * BATCHES:
        return None
    weight, sums = np.zeros(BATCHES), np.zeros(BATCHES)
    passed = 0
    for part in _parts(len(values)):
        w = weights[part]
        before = passed + np.cumsum(w) - w
        passed += int(w.sum())
        batch = np.minimum(before * BATCHES // total, BATCHES - 1)
        weight += np.bincount(batch, weights=w, minlength=BATCHES)
        np.add.at(sums, batch, values[part] * w)  # one after the other, as if in one piece
    return sums / weight if weight.all() else None


def _total(terms: Callable[[slice], FloatArray], start: int, stop: int) -> float:
    """Sum of terms that are computed a stretch at a time, halved as numpy's own pairwise sum halves them: equal to its sum."""
    n = stop - start
    if n <= PART:
        return float(terms(slice(start, stop)).sum())
    half = n // 2 - n // 2 % 8
    return _total(terms, start, start + half) + _total(terms, start + half, stop)


def around(value: float, values: FloatArray) -> list[float]:
    """95 % confidence interval around a mean from the means of `BATCHES` batches."""
    half = T_975_19 * float(values.std(ddof=1)) / BATCHES**0.5
    return [value - half, value + half]


def _emitted(result: ClusterResult, edges: FloatArray) -> IntArray:
    """Tokens of all requests that appeared in each bin of `edges`, the last bin closed."""
    spans = result.emissions.ranges(np.arange(len(result.status)))
    out = np.zeros(len(edges) - 1, dtype=np.int64)
    for number, log in enumerate(result.logs):
        first, last = spans.of_log(number)
        if not len(first):
            continue
        ends = np.frombuffer(log.end_s, dtype=np.float64)
        tokens = _covering(first, last + 1, len(ends))
        at = np.searchsorted(ends, edges, side="left").tolist()
        at[-1] = int(np.searchsorted(ends, edges[-1], side="right"))
        out += [int(tokens[a:b].sum()) for a, b in pairwise(at)]
    return out


def _covering(start: IntArray, stop: IntArray, n: int) -> IntArray:
    """How many of the ranges [start, stop) cover each of n places."""
    change = np.zeros(n + 1, dtype=np.int32)
    np.add.at(change, start, 1)
    np.subtract.at(change, stop, 1)
    np.cumsum(change, out=change)
    return change[:-1]


def rates_ci95(
    result: ClusterResult, window: Window, good: BoolArray | None = None
) -> dict[str, list[float] | None]:
    """95 % confidence intervals of the window's rates [1/s], by the means of 20 stretches of its time.

    Requests count when they end, input tokens at the first token, output tokens when they appear; good requests
    (`good`, rows of the workload) when they end, as all requests do; a null where the window has no length.
    """
    edges = np.linspace(window.start_s, window.end_s, BATCHES + 1)
    names = (
        "request_throughput",
        "input_throughput",
        "output_throughput",
        "total_token_throughput",
        "request_goodput",
    )
    if window.length_s <= 0:
        return dict.fromkeys(names)
    width = window.length_s / BATCHES
    requests = np.histogram(result.end_s[~np.isnan(result.end_s)], edges)[0] / width
    first = result.first_token_s
    seen = ~np.isnan(first)
    inputs = np.histogram(first[seen], edges, weights=result.prompt_tokens[seen])[0] / width
    outputs = _emitted(result, edges) / width
    rates = dict(zip(names, (requests, inputs, outputs, inputs + outputs), strict=False))
    out: dict[str, list[float] | None] = {name: around(float(r.mean()), r) for name, r in rates.items()}
    out["request_goodput"] = None
    if good is not None:
        rate = np.histogram(result.end_s[good], edges)[0] / width
        out["request_goodput"] = around(float(rate.mean()), rate)
    return out


def statistics(values: FloatArray, unit: str, weights: IntArray | None = None) -> dict[str, Any]:
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
        if not weights.all():
            keep = weights > 0
            values, weights = values[keep], weights[keep]
        count = int(weights.sum())
        if not count:
            return out
        n = len(values)
        mean = _total(lambda part: values[part] * weights[part], 0, n) / count
        out["mean"] = mean
        square = _total(lambda part: (values[part] - mean) ** 2 * weights[part], 0, n)
        out["std"] = float(np.sqrt(max(0.0, square / count)))
        quantiles = weighted_quantiles(values, weights, PERCENTILES)
        out["count"] = count
        batches = weighted_batches(values, weights)
        out["ci95"] = None if batches is None else around(mean, batches)
    out["min"], out["max"] = float(values.min()), float(values.max())
    out.update(zip(names, quantiles, strict=True))
    return out


def token_gaps(result: ClusterResult, rows: BoolArray) -> tuple[FloatArray, IntArray]:
    """Gaps between successive tokens of the chosen requests [s], and how often each occurs (at least once).

    They come in order of time to within a small part (`STRETCHES`) of the run, those of all replicas together.
    """
    gaps: list[FloatArray] = []
    weights: list[IntArray] = []
    stops: list[IntArray] = []  # of each array, the places of the edges of the stretches
    clocks = [np.frombuffer(log.end_s, dtype=np.float64) for log in result.logs]
    began = min((float(c[0]) for c in clocks if len(c)), default=0.0)
    ended = max((float(c[-1]) for c in clocks if len(c)), default=0.0)
    edges = np.linspace(began, ended, STRETCHES + 1)[1:-1]
    spans = result.emissions.ranges(np.flatnonzero(rows))
    for number, ends in enumerate(clocks):
        first, last = spans.of_log(number)
        if not len(first) or len(ends) < 2:
            continue
        # tokens in [first, last] have gaps that end with the steps first + 1 to last, number `first` to `last - 1` here
        weight = _covering(first, last, len(ends) - 1)
        found = np.empty(int(np.count_nonzero(weight)))
        filled = 0
        for part in _parts(len(weight)):
            some = weight[part] > 0
            here = (ends[part.start + 1 : part.stop + 1] - ends[part])[some]
            found[filled : filled + len(here)] = here
            filled += len(here)
        gaps.append(found)
        small = np.int16 if weight.max(initial=0) <= np.iinfo(np.int16).max else np.int32
        weights.append(weight[weight > 0].astype(small))
        places = [0, *np.searchsorted(ends[1:], edges).tolist(), len(weight)]
        stops.append(np.cumsum([0, *(int(np.count_nonzero(weight[a:b])) for a, b in pairwise(places))]))
        del weight
        pauses, resumed = pauses_s(spans, clocks, number)
        if len(pauses):
            gaps.append(pauses)
            weights.append(np.ones(len(pauses), dtype=np.int32))
            stops.append(np.array([0, *np.searchsorted(resumed, edges).tolist(), len(pauses)]))
    if not gaps:
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    if len(gaps) == 1:
        return gaps[0], weights[0]
    return _by_stretch(gaps, stops), _by_stretch(weights, stops)


def pauses_s(spans: Ranges, clocks: list[FloatArray], number: int) -> tuple[FloatArray, FloatArray]:
    """Gaps before the first tokens in a log after a pause, or after another log, and when those came [s], in order of time.

    Tokens of one step, as drafts yield them, are one chunk to the client. `clocks` are the ends of the steps of every log.
    """
    moved = spans.log[1:] != spans.log[:-1]
    later = (spans.first[1:] > spans.last[:-1]) | moved
    again = np.flatnonzero((spans.owner[1:] == spans.owner[:-1]) & later & (spans.log[1:] == number))
    again = again[np.argsort(spans.first[again + 1], kind="stable")]
    resumed = clocks[number][spans.first[again + 1]]
    left = clocks[number][np.where(moved[again], 0, spans.last[again])]
    for i in np.flatnonzero(moved[again]).tolist():
        left[i] = clocks[int(spans.log[again[i]])][spans.last[again[i]]]
    return resumed - left, resumed


def _by_stretch(arrays: Sequence[NDArray[Any]], stops: Sequence[IntArray]) -> NDArray[Any]:
    """Join arrays stretch by stretch: the first stretch of all, then the second; `stops` are the edges' places in each."""
    pieces = zip(
        *([array[a:b] for a, b in pairwise(at.tolist())] for array, at in zip(arrays, stops, strict=True)),
        strict=True,
    )
    return np.concatenate([piece for stretch in pieces for piece in stretch])


def tokens_emitted(result: ClusterResult, window: Window) -> int:
    """Output tokens that became visible inside the window, of all requests."""
    total = 0
    spans = result.emissions.ranges(np.arange(len(result.status)))
    for number, log in enumerate(result.logs):
        ends = np.frombuffer(log.end_s, dtype=np.float64)
        first, last = spans.of_log(number)
        if not len(ends) or not len(first):
            continue
        low = int(np.searchsorted(ends, window.start_s, side="left"))
        high = int(np.searchsorted(ends, window.end_s, side="right")) - 1
        total += int(np.maximum(np.minimum(last, high) - np.maximum(first, low) + 1, 0).sum())
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


def _open_verdict(beyond: FloatArray, weights: IntArray, allowed: float) -> bool:
    """Tell whether sampling error leaves open if more than the share `allowed` of all values lies beyond a bound.

    `beyond` is 0 or 1 a value, in order of time; see `open_share`. Below 40 values, or with none beyond, nothing is left open;
    that a run is too short for a percentile is a warning of its own.
    """
    return open_share(
        weighted_batches(beyond, weights), int((beyond * weights).sum()), int(weights.sum()), allowed
    )


def open_share(batches: FloatArray | None, beyond: int, total: int, allowed_fraction: float) -> bool:
    """Tell whether the true share may lie on the other side of `allowed_fraction` than `beyond` of `total` does.

    The bound of the share is one-sided at 95 %: Wilson's score interval (JASA 22, 1927, p. 209) with as many independent
    values as the means of batches (None: too few) say there are, since late requests come in bursts:
    share (1 - share) / (variance of the mean), at most `total`. So a single lost request of a hundred says
    that the share is below 4.7 %, not that it may be 8 %.
    """
    if batches is None or not total or not 0 < beyond / total < 1:
        return False
    share = beyond / total
    variance = float(batches.var(ddof=1)) / BATCHES
    alone = share * (1 - share)
    independent = min(float(total), alone / variance) if variance > 0 else float(total)
    z2 = T_95_19**2 / independent
    middle, half = share + z2 / 2, (z2 * (alone + z2 / 4)) ** 0.5
    return bool(middle - half <= allowed_fraction * (1 + z2) <= middle + half)


def verdict(
    lat: Latencies,
    rows: BoolArray,
    gaps: tuple[FloatArray, IntArray],
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
            near = bool(len(values)) and _open_verdict(
                (values > bound).astype(float), weights, 1 - percent / 100
            )
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
        near = bool(len(good)) and _open_verdict(
            (~good).astype(float), np.ones(len(good), np.int64), 1 - wanted
        )
    return judgement(checks, attainment, wanted, kept, near)


def judgement(
    checks: list[dict[str, Any]],
    attainment: float | None,
    wanted_fraction: float | None,
    kept: bool,
    near: bool,
) -> dict[str, Any]:
    """Put checks and attainment together: `kept` and `near` say whether the attainment holds, and whether it is close."""
    return {
        "holds": kept and all(check["holds"] for check in checks),
        "close": _may_turn(checks, kept, near),
        "checks": checks,
        "attainment": attainment,
        "attainment_wanted": wanted_fraction,
        "attainment_close": near,
    }


def with_model_error(
    judged: dict[str, Any],
    stats: Mapping[str, Mapping[str, Any]],
    attainment_interval: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return a verdict in which also the checks are close whose bound lies inside the interval of the model's error.

    `stats` are the metrics of the run, each with `interval`: {percentile: [low, high or null]} in ms, or null;
    `attainment_interval` is that of the share of good requests.
    """
    checks = []
    for check in judged["checks"]:
        named = (stats[check["metric"]].get("interval") or {}).get(check["percentile"])
        inside = (
            named is not None
            and named[0] <= check["bound_ms"]
            and (named[1] is None or check["bound_ms"] <= named[1])
        )
        checks.append({**check, "close": check["close"] or inside})
    wanted, attainment = judged["attainment_wanted"], judged["attainment"]
    kept = wanted is None or (attainment is not None and attainment >= wanted)
    near = judged["attainment_close"]
    if wanted is not None and attainment_interval is not None:
        near = near or attainment_interval[0] < wanted <= attainment_interval[1]
    return {
        **judged,
        "checks": checks,
        "close": _may_turn(checks, kept, near),
        "attainment_close": near,
    }


def _may_turn(checks: list[dict[str, Any]], attained: bool, attainment_near: bool) -> bool:
    """Whether parts of a verdict that are close could turn it: any of a met one, all that fail of a missed one."""
    parts = [(check["holds"], check["close"]) for check in checks] + [(attained, attainment_near)]
    failing = [near for holds, near in parts if not holds]
    return all(failing) if failing else any(near for _, near in parts)


def _judged_values(
    lat: Latencies, rows: BoolArray, gaps: tuple[FloatArray, IntArray], metric: str
) -> tuple[FloatArray, IntArray]:
    """Values of a metric [ms] and their weights, lost requests infinite; one-token outputs have no TPOT."""
    lost = int((rows & np.isnan(lat.e2el_ms)).sum())
    if metric == "itl_ms":
        if not lost:
            return gaps[0] * 1e3, gaps[1]
        # a lost request counts as many infinite gaps as the others have on average
        each = max(1, round(int(gaps[1].sum()) / max(1, int(rows.sum()) - lost)))
        return np.append(gaps[0] * 1e3, np.inf), np.append(gaps[1], lost * each).astype(np.int64)
    values = getattr(lat, metric)[rows]
    if metric == "tpot_ms":
        values = values[np.isnan(lat.e2el_ms[rows]) | ~np.isnan(values)]
    values = np.where(np.isnan(values), np.inf, values)
    return values, np.ones(len(values), dtype=np.int64)


def _percentile(values: FloatArray, weights: IntArray, percent: float) -> float:
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
    """Tell whether the backlog grew through the second half of the window, as `growing_backlog` judges it."""
    middle, end = window.middle_s, window.end_s
    offered = result.status != REJECTED
    arrived = int(((result.arrival_s >= middle) & (result.arrival_s <= end) & offered).sum())
    ended = int(((result.end_s >= middle) & (result.end_s <= end)).sum())
    backlog = int(((result.arrival_s <= end) & offered).sum() - (result.end_s <= end).sum())
    return growing_backlog(window, arrived, ended, backlog, int((result.status == UNFINISHED).sum()))


def growing_backlog(
    window: Window, arrived_requests: float, ended_requests: float, backlog: int, unfinished: int
) -> Overload | None:
    """Overload by the requests that arrived and ended in the second half of the window, and what is left of all at its end.

    Criterion: over the second half fewer than 95 % as many requests ended as arrived, more than 20 more were in the system at
    its end than in its middle, and requests waited. The sustainable rate is the completion rate of that half.
    """
    arrived, ended, span = arrived_requests, ended_requests, window.end_s - window.middle_s
    if span > 0 and ended < 0.95 * arrived and arrived - ended > 20 and (backlog > 20 or unfinished):
        return Overload(arrived / span, ended / span, backlog)
    return None
