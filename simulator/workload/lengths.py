"""Laws of lengths and times from a numpy generator.

Every sampler of lengths rounds to whole tokens (`to_tokens`), then clips to [max(1, min), max]. Clipping, not redrawing: a value
beyond a bound becomes the bound, as a server's limit does, so mass gathers there.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.workload.columns import FloatArray, IntArray

Z99 = 2.3263478740408408
"""99th percentile of the standard normal law."""


def lognormal_parameters(mean: float, p99: float) -> tuple[float, float]:
    """Return (mu, sigma) of the log-normal law with this mean and 99th percentile, exactly.

    From ``ln mean = mu + sigma^2 / 2`` and ``ln p99 = mu + z sigma`` follows
    ``sigma^2 / 2 - z sigma + ln(p99 / mean) = 0``; the smaller root is the law with the lighter tail, the one
    meant. No law exists beyond ``p99 / mean = exp(z^2 / 2) = 14.97``.

    Raises
    ------
    ValueError : if p99 is not between mean and 14.97 times the mean.

    >>> mu, sigma = lognormal_parameters(512, 4000)
    >>> round(math.exp(mu + sigma**2 / 2), 6), round(math.exp(mu + Z99 * sigma), 6)
    (512.0, 4000.0)
    """
    ratio = p99 / mean
    bound = math.exp(Z99**2 / 2)
    if ratio < 1:
        raise ValueError(f"p99 ({p99:g}) is below the mean ({mean:g}); give a p99 above the mean")
    if ratio > bound:
        raise ValueError(
            f"p99 ({p99:g}) is {ratio:.3g} times the mean ({mean:g}); a log-normal law reaches at most "
            f"{bound:.4g} times its mean there: raise the mean or use kind: empirical"
        )
    log_ratio = math.log(ratio)
    # Z - sqrt(Z^2 - 2 L) without cancellation.
    sigma = 2 * log_ratio / (Z99 + math.sqrt(max(Z99**2 - 2 * log_ratio, 0.0)))
    return math.log(mean) - sigma**2 / 2, sigma


def lognormal_p99(mean: float, width: float) -> float:
    """Return the 99th percentile of the log-normal law with this mean, whose logarithm has the standard deviation `width`.

    Raises
    ------
    ValueError : if `width` is not below 2.326, where the 99th percentile no longer tells the law.

    >>> round(lognormal_p99(512, lognormal_parameters(512, 4000)[1]), 6)
    4000.0
    """
    if not 0 <= width < Z99:
        raise ValueError(f"sigma ({width:g}) is not between 0 and {Z99:.3f}; use kind: empirical")
    return mean * math.exp(Z99 * width - width**2 / 2)


def constant(value: float, n: int) -> FloatArray:
    """n times `value`."""
    return np.full(n, float(value))


def uniform(rng: np.random.Generator, low: float, high: float, n: int) -> FloatArray:
    """Whole numbers from `low` to `high`, both included, equally likely."""
    return rng.integers(math.ceil(low), math.floor(high), n, endpoint=True).astype(np.float64)


def between(rng: np.random.Generator, low: float, high: float, n: int) -> FloatArray:
    """Numbers from `low` to `high`, equally likely."""
    return rng.uniform(low, high, n)


def exponential(rng: np.random.Generator, mean: float, n: int) -> FloatArray:
    """Exponential law."""
    return rng.exponential(mean, n)


def normal(rng: np.random.Generator, mean: float, std: float, n: int) -> FloatArray:
    """Normal law."""
    return rng.normal(mean, std, n)


def lognormal(rng: np.random.Generator, mean: float, p99: float, n: int) -> FloatArray:
    """Log-normal law with this mean and 99th percentile (`lognormal_parameters`)."""
    mu, sigma = lognormal_parameters(mean, p99)
    return np.exp(mu + sigma * rng.standard_normal(n))


def quantiles(rng: np.random.Generator, levels: FloatArray, values: FloatArray, n: int) -> FloatArray:
    """Inverse distribution function through (level, value), linear between them; equal values are atoms."""
    return np.interp(rng.random(n), levels, values)


def samples(rng: np.random.Generator, values: FloatArray, n: int) -> FloatArray:
    """Draws with replacement from measured values."""
    return values[rng.integers(0, len(values), n)]


def to_tokens(values: FloatArray, low: float | None, high: float | None) -> IntArray:
    """Round to whole tokens and clip to [max(1, low), high]."""
    tokens = np.maximum(np.rint(values), 1.0 if low is None else max(1.0, math.ceil(low)))
    if high is not None:
        tokens = np.minimum(tokens, math.floor(high))
    return tokens.astype(np.int64)
