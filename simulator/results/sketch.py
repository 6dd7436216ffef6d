"""Percentiles of more values than memory holds: a histogram with bins of equal ratio.

Values are counted in bins [g^i, g^(i+1)) with g = (1 + a) / (1 - a), and a bin stands for 2 g^i g / (1 + g), which differs from
every value in it by at most the share a (Masson, Rim and Lee, DDSketch, PVLDB 12, 2019). Least and greatest value are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RELATIVE_ERROR = 0.001
"""Greatest relative error of a percentile."""
SMALLEST, LARGEST = 1e-6, 1e12
"""Values below the first count as zero, values beyond the second as the second; in milliseconds a nanosecond and 30 years."""

_RATIO = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_RATIO = float(np.log(_RATIO))
_FIRST = int(np.floor(np.log(SMALLEST) / _LOG_RATIO))
_BINS = int(np.ceil(np.log(LARGEST) / _LOG_RATIO)) - _FIRST + 1


class LogHistogram:
    """Counts of values that are not negative."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS + 1, dtype=np.int64)  # the first of zeros
        self.count = 0
        self.least = np.inf
        self.greatest = -np.inf

    def add(self, values: FloatArray, weights: NDArray[np.signedinteger] | None = None) -> None:
        """Count finite `values`, each `weights` times (at least once)."""
        if not len(values):
            return
        with np.errstate(divide="ignore"):
            bins = np.floor(np.log(values) / _LOG_RATIO) - (_FIRST - 1)
        bins = np.where(values < SMALLEST, 0, np.clip(bins, 1, _BINS)).astype(np.int64)
        counted = np.bincount(bins, weights=weights, minlength=_BINS + 1)
        self._counts += counted.astype(np.int64)
        self.count += int(len(values) if weights is None else weights.sum(dtype=np.int64))
        self.least = min(self.least, float(values.min()))
        self.greatest = max(self.greatest, float(values.max()))

    def quantiles(self, percents: tuple[float, ...], infinite: int = 0) -> list[float]:
        """Percentiles, linear between ranks, of the values and `infinite` more that are infinite; NaN of none."""
        total = self.count + infinite
        if not total:
            return [float("nan")] * len(percents)
        cumulated = np.cumsum(self._counts)
        out = []
        for percent in percents:
            rank = percent / 100.0 * (total - 1)
            below = int(np.floor(rank))
            low, high = (self._of_rank(min(r, total - 1), cumulated) for r in (below, below + 1))
            share = rank - below
            out.append(low if share == 0 else low + (high - low) * share if np.isfinite(high) else high)
        return out

    def _of_rank(self, rank: int, cumulated: NDArray[np.int64]) -> float:
        if rank >= self.count:
            return float("inf")
        if rank in (0, self.count - 1):
            return max(self.least, 0.0) if rank == 0 else self.greatest
        number = int(np.searchsorted(cumulated, rank, side="right"))
        if number == 0:
            return max(self.least, 0.0)
        value = float(np.exp((number + _FIRST - 1) * _LOG_RATIO)) * 2 * _RATIO / (1 + _RATIO)
        return min(max(value, self.least), self.greatest)
