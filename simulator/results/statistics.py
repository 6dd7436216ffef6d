"""Statistics of a metric: exact, from all of its values, or sketched, where a run has more of them than memory holds.

Both take values as they come, in order of time. Sketched, counts, means and extremes are exact and percentiles come from a
histogram (`results.sketch`); sampling errors are from batches whose edges differ from the exact ones by some thousand values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.results.sketch import LogHistogram

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
PIECE = 4096
"""Values whose mean is kept for the sampling error of a sketch."""


def percentile_name(percent: float) -> str:
    """Return "p50", "p99", "p99_9"."""
    return "p" + f"{percent:g}".replace(".", "_")


PERCENTILE_NAMES = tuple(map(percentile_name, PERCENTILES))


def percentiles(values: FloatArray, percents: Sequence[float]) -> list[float]:
    """`np.percentile` of finite values, equal to the bit: quicker where they are few.

    >>> percentiles(np.array([4.0, 1.0, 2.0]), (50.0, 75.0))
    [2.0, 3.0]
    """
    last = len(values) - 1
    ranks = [last * (percent / 100) for percent in percents]
    near = sorted({place for rank in ranks for place in (int(rank), min(int(rank) + 1, last))})
    found = dict(zip(near, np.partition(values, near)[near].tolist(), strict=True))
    out = []
    for rank in ranks:
        below = int(rank)
        low, high, share = found[below], found[min(below + 1, last)], rank - below
        out.append(low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share))
    return out


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
        for part in parts(len(values)):
            bins[part] = (values[part] - low) * scale * (1 - 1e-9)
            counts += np.bincount(bins[part], weights=weights[part], minlength=BINS + 1)
        cumulated = np.cumsum(counts).astype(np.int64)
        holding = np.searchsorted(cumulated, ranks, side="right")
        chosen = np.zeros(BINS + 1, dtype=bool)
        chosen[holding] = True
        left_out = np.cumsum(np.where(chosen, 0.0, counts)).astype(np.int64)
        skipped = left_out[holding]
        keep = np.concatenate(
            [np.flatnonzero(chosen[bins[part]]) + part.start for part in parts(len(values))]
        )
        values, weights = values[keep], weights[keep]
    order = np.argsort(values, kind="stable")
    at = np.searchsorted(np.cumsum(weights[order]), np.asarray(ranks, dtype=np.int64) - skipped, side="right")
    return [float(v) for v in values[order[at]]]


def parts(n: int) -> list[slice]:
    """Stretches of `PART` of n values: temporaries of that size stay in the cache and take no memory."""
    return [slice(start, min(start + PART, n)) for start in range(0, n, PART)]


def batch_means_ci95(ordered_values: FloatArray) -> list[float] | None:
    """95 % confidence interval of the mean by 20 batch means of values in order of arrival; None below 40 values.

    Batch means (Law and Kelton, Simulation Modeling and Analysis, section 9.5) hold for correlated values as long as
    batches are longer than the correlation.
    """
    if len(ordered_values) < 2 * BATCHES:
        return None
    size, longer = divmod(len(ordered_values), BATCHES)
    edges = [size * at + min(at, longer) for at in range(BATCHES + 1)]
    means = np.array([np.add.reduce(ordered_values[a:b]) / (b - a) for a, b in pairwise(edges)])
    return around(float(ordered_values.mean()), means)


def weighted_batches(values: FloatArray, weights: IntArray) -> FloatArray | None:
    """Means of `BATCHES` stretches of about equal weight of values in order of time; None where they are too few."""
    total = int(weights.sum())
    if total < 2 * BATCHES or len(values) < 2 * BATCHES:
        return None
    weight, sums = np.zeros(BATCHES), np.zeros(BATCHES)
    passed = 0
    for part in parts(len(values)):
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
    """95 % confidence interval around a mean from the means of `BATCHES` batches; no time and no rate is negative."""
    half = T_975_19 * float(values.std(ddof=1)) / BATCHES**0.5
    return [max(0.0, value - half), value + half]


def statistics(values: FloatArray, unit: str, weights: IntArray | None = None) -> dict[str, Any]:
    """Summary of a metric: mean, std, min, percentiles, max, count; all null for no values."""
    out: dict[str, Any] = {"unit": unit, "mean": None, "std": None, "min": None}
    out.update(dict.fromkeys(PERCENTILE_NAMES))
    out.update({"max": None, "count": 0, "ci95": None, "interval": None})
    if weights is None:
        values = values[~np.isnan(values)]
        if not len(values):
            return out
        out["mean"], out["std"] = float(values.mean()), float(values.std())
        quantiles = percentiles(values, PERCENTILES)
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
    out.update(zip(PERCENTILE_NAMES, quantiles, strict=True))
    return out


def _percentile(values: FloatArray, weights: IntArray, percent: float) -> float:
    if not len(values):
        return float("nan")
    if (weights != 1).any():
        return weighted_quantiles(values, weights, (percent,))[0]
    if np.isfinite(values).all():
        return percentiles(values, (percent,))[0]
    return float(np.percentile(values, percent, method="higher"))


class Share(NamedTuple):
    """How many of all values lie beyond a bound, and the shares in `BATCHES` stretches of them, None where they are too few."""

    beyond: int
    total: int
    batches: FloatArray | None

    def open(self, allowed_fraction: float) -> bool:
        """Tell whether the true share may lie on the other side of `allowed_fraction` than this one does.

        The bound of the share is one-sided at 95 %: Wilson's score interval (JASA 22, 1927, p. 209) with as many independent
        values as the means of batches say there are, since late requests come in bursts:
        share (1 - share) / (variance of the mean), at most `total`. So a single lost request of a hundred says
        that the share is below 4.7 %, not that it may be 8 %. Below 40 values, or with none beyond, nothing is left open; that
        a run is too short for a percentile is a warning of its own.
        """
        if self.batches is None or not self.total or not 0 < self.beyond / self.total < 1:
            return False
        share = self.beyond / self.total
        variance = float(self.batches.var(ddof=1)) / BATCHES
        alone = share * (1 - share)
        independent = min(float(self.total), alone / variance) if variance > 0 else float(self.total)
        z2 = T_95_19**2 / independent
        middle, half = share + z2 / 2, (z2 * (alone + z2 / 4)) ** 0.5
        return bool(middle - half <= allowed_fraction * (1 + z2) <= middle + half)


class Statistic(ABC):
    """The values of a metric in order of time; those of requests without an answer are infinite, and in no summary."""

    @abstractmethod
    def __init__(self, bounds: Iterable[float] = ()) -> None:
        """`bounds` are those that `beyond` and `judged` will be asked about."""

    @abstractmethod
    def add(self, values: FloatArray, weights: IntArray | None = None) -> None:
        """Take in values without NaN, each `weights` times (then all are finite)."""

    @abstractmethod
    def lose(self, times: int) -> None:
        """Take in so many infinite values after all others."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Finite values, by weight."""

    @abstractmethod
    def summary(self, unit: str) -> dict[str, Any]:
        """Mean, std, min, percentiles, max, count and ci95; all null for no values."""

    @abstractmethod
    def beyond(self, bound: float) -> Share:
        """How many values lie beyond a bound."""

    @abstractmethod
    def judged(self, percent: float, bound: float) -> tuple[float, bool]:
        """A percentile, infinite values included, and whether it keeps a bound."""


class Exact(Statistic):
    """Keeps all values."""

    def __init__(self, bounds: Iterable[float] = ()) -> None:
        self._parts: list[tuple[FloatArray, IntArray | None]] = []
        self._lost = 0

    def add(self, values: FloatArray, weights: IntArray | None = None) -> None:
        """As said by `Statistic`."""
        if len(values):
            self._parts.append((values, weights))

    def lose(self, times: int) -> None:
        """As said by `Statistic`."""
        self._lost += times

    def _joined(self) -> tuple[FloatArray, IntArray | None]:
        if not self._parts:
            return np.zeros(0), None
        if len(self._parts) > 1:
            values = np.concatenate([values for values, _ in self._parts])
            weights = [weights for _, weights in self._parts if weights is not None]
            self._parts = [(values, np.concatenate(weights) if weights else None)]
        return self._parts[0]

    def _all(self) -> tuple[FloatArray, IntArray]:
        """Values and weights with those that are infinite."""
        values, weights = self._joined()
        if weights is None:
            weights = np.ones(len(values), dtype=np.int64)
        if not self._lost:
            return values, weights
        return np.append(values, np.inf), np.append(weights, self._lost).astype(np.int64)

    @property
    def count(self) -> int:
        """As said by `Statistic`."""
        values, weights = self._joined()
        return int(np.isfinite(values).sum() if weights is None else weights.sum(dtype=np.int64))

    def summary(self, unit: str) -> dict[str, Any]:
        """As said by `Statistic`."""
        values, weights = self._joined()
        return statistics(values[np.isfinite(values)] if weights is None else values, unit, weights)

    def beyond(self, bound: float) -> Share:
        """As said by `Statistic`."""
        values, weights = self._all()
        over = (values > bound).astype(float)
        return Share(int((over * weights).sum()), int(weights.sum()), weighted_batches(over, weights))

    def judged(self, percent: float, bound: float) -> tuple[float, bool]:
        """As said by `Statistic`."""
        found = _percentile(*self._all(), percent)
        return found, bool(found <= bound)


class Batches:
    """Sums of successive values, from which the means of `BATCHES` stretches of about equal weight are made."""

    def __init__(self) -> None:
        self._sums: list[float] = []
        self._weights: list[float] = []
        self._values = 0

    def add(self, values: FloatArray, weights: IntArray | None = None) -> None:
        """Append values, each `weights` times."""
        if not len(values):
            return
        at = np.arange(0, len(values), PIECE)
        counted = np.ones(len(values)) if weights is None else weights.astype(float)
        self._sums += np.add.reduceat(values * counted, at).tolist()
        self._weights += np.add.reduceat(counted, at).tolist()
        self._values += len(values)

    def means(self) -> FloatArray | None:
        """Means of the stretches; None where there are too few values."""
        weights, sums = np.array(self._weights), np.array(self._sums)
        if self._values < 2 * BATCHES or len(weights) < 2 * BATCHES:
            return None
        before = np.cumsum(weights) - weights
        batch = np.minimum(before * BATCHES // weights.sum(), BATCHES - 1).astype(np.int64)
        weight = np.bincount(batch, weights=weights, minlength=BATCHES)
        found = np.bincount(batch, weights=sums, minlength=BATCHES).astype(np.float64)
        return found / weight if weight.all() else None


class Sketched(Statistic):
    """Keeps a histogram, moments, batches, and for each bound how many values lie beyond it."""

    def __init__(self, bounds: Iterable[float] = ()) -> None:
        self._histogram = LogHistogram()
        self._batches = Batches()
        self._beyond = {bound: (0, Batches()) for bound in bounds}
        self._mean = self._square = 0.0
        self._lost = 0

    def add(self, values: FloatArray, weights: IntArray | None = None) -> None:
        """As said by `Statistic`."""
        for bound, (count, batches) in self._beyond.items():
            over = values > bound
            more = int(over.sum() if weights is None else weights[over].sum(dtype=np.int64))
            batches.add(over.astype(float), weights)
            self._beyond[bound] = count + more, batches
        if weights is None and not (finite := np.isfinite(values)).all():
            self._lost += int(len(values) - finite.sum())
            values = values[finite]
        if not len(values):
            return
        before = self._histogram.count
        self._histogram.add(values, weights)
        self._batches.add(values, weights)
        n = self._histogram.count - before
        mean = float(np.average(values, weights=weights))
        square = float(np.average((values - mean) ** 2, weights=weights)) * n
        # Chan, Golub and LeVeque, The American Statistician 37 (1983)
        total, apart = before + n, mean - self._mean
        self._square += square + apart * apart * before * n / total
        self._mean += apart * n / total

    def lose(self, times: int) -> None:
        """As said by `Statistic`."""
        self._lost += times
        self._beyond = {bound: (count + times, batches) for bound, (count, batches) in self._beyond.items()}

    @property
    def count(self) -> int:
        """As said by `Statistic`."""
        return self._histogram.count

    def summary(self, unit: str) -> dict[str, Any]:
        """As said by `Statistic`."""
        out, count = statistics(np.zeros(0), unit), self.count
        if not count:
            return out
        out["mean"], out["std"] = self._mean, float(np.sqrt(self._square / count))
        out["min"], out["max"], out["count"] = self._histogram.least, self._histogram.greatest, count
        out.update(
            zip(map(percentile_name, PERCENTILES), self._histogram.quantiles(PERCENTILES), strict=True)
        )
        means = self._batches.means()
        out["ci95"] = None if means is None else around(self._mean, means)
        return out

    def beyond(self, bound: float) -> Share:
        """As said by `Statistic`."""
        count, batches = self._beyond[bound]
        return Share(count, self.count + self._lost, batches.means())

    def judged(self, percent: float, bound: float) -> tuple[float, bool]:
        """As said by `Statistic`; whether the bound is kept is exact, and the percentile is made to agree."""
        count, total = self._beyond[bound][0], self.count + self._lost
        holds = total > 0 and total - count > int(np.ceil(percent / 100 * (total - 1)))
        found = self._histogram.quantiles((percent,), self._lost)[0]
        return min(found, bound) if holds else max(found, float(np.nextafter(bound, np.inf))), holds
