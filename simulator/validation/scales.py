"""Fit of the scales of errors (`simulator.results.scales`), and the quantile that holds nine of ten clusters left out.

The size of an error is exponential about the scale of its setting (a Laplace law of signed errors), the logarithm of the scale a
sum of effects of levels, each normal about zero with a spread that is given (`SPREAD`): a level with few measurements stays near
the mixture. Measurements of a cluster are alike (`ALIKE`), so n of them count as n / (1 + (n - 1) ALIKE) do (Kish's effective
size, Survey Sampling, 1965). The width is a multiple of the scale: the least that holds nine of ten of the weights when each
cluster is judged by a fit without it (split conformal prediction by groups).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.results.scales import FACTORS, Scale
from simulator.workload.columns import FloatArray

SPREAD = {"load": 0.7, "engine": 0.2, "device": 0.25, "model": 0.35, "setting": 0.35, "statistic": 0.4}
"""Standard deviation of a level's effect on the log scale. Kind: assumed, 2026-11, by analyses of variance of log |error| over
1,000 values of TPOT and TTFT: shares of 0.0 to 0.03 (engine), 0.01 to 0.06 (device), 0.11 to 0.13 (model) and 0.17 to 0.24
(setting) of a variance of 1.5; loads are of other kinds of measurement, and differ by more."""
ALIKE = 0.15
"""Correlation of log |error| in a cluster. Kind: fitted, 2026-11: 0.14 to 0.16 of TPOT, 0.16 to 0.22 of TTFT."""
LEAST_ERROR = 0.005
"""Log errors below this count as this (assumed)."""
ROUNDS, CLOSE = 40, 1e-6


@dataclass(frozen=True)
class Sized:
    """The size of one log error, the cluster it belongs to, and the levels of its factors in the order of `FACTORS`."""

    cluster: tuple[str, ...]
    levels: tuple[str, ...]
    log_error: float


Cells = dict[tuple[str, ...], tuple[float, float]]
"""Sum of weights, and of weights times sizes, by levels: all that a fit reads."""


def cells_of(values: Sequence[Sized], weights: Sequence[float]) -> Cells:
    """Values of the same levels together."""
    out: Cells = {}
    for value, weight in zip(values, weights, strict=True):
        total, sizes = out.get(value.levels, (0.0, 0.0))
        out[value.levels] = total + weight, sizes + weight * max(value.log_error, LEAST_ERROR)
    return out


def weights_of(values: Sequence[Sized]) -> list[float]:
    """What each value counts, as one of a cluster whose members are alike."""
    sizes = Counter(value.cluster for value in values)
    return [1 / (1 + (sizes[value.cluster] - 1) * ALIKE) for value in values]


def fit_scale(cells: Cells, start: Scale | None = None) -> Scale:
    """The scale by levels, for width the mean size of errors.

    What a level adds is the mode of its effect and half the variance about it, 1 / (weights + 1 / spread^2) with the other
    effects known: so the mean of a scale that is log-normal. Newton's steps on a convex function. start : where to begin.
    """
    names = sorted({(factor, level) for levels in cells for factor, level in zip(FACTORS, levels, strict=True)})
    place = {name: number + 1 for number, name in enumerate(names)}
    design = np.zeros((len(cells), len(names) + 1))
    design[:, 0] = 1.0
    for row, levels in enumerate(cells):
        for factor, level in zip(FACTORS, levels, strict=True):
            design[row, place[factor, level]] = 1.0
    total, sizes = (np.array(column) for column in zip(*cells.values(), strict=True))
    prior = np.array([CLOSE, *(SPREAD[factor] ** -2 for factor, _ in names)])
    found = np.zeros(len(names) + 1)
    found[0] = math.log(sizes.sum() / total.sum()) if start is None else start.log_base_width
    if start is not None:
        found[1:] = [start.added(*name) for name in names]
    for _ in range(ROUNDS):
        over = sizes * np.exp(-design @ found)
        step = np.linalg.solve((design.T * over) @ design + np.diag(prior), design.T @ (over - total) - prior * found)
        found = found + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < CLOSE:
            break
    variance = 1 / (design.T @ total + prior)
    factors: dict[str, dict[str, float]] = {factor: {} for factor in FACTORS}
    for (factor, level), number in place.items():
        factors[factor][level] = float(found[number] + variance[number] / 2)
    return Scale(float(found[0]), factors, {factor: width**2 / 2 for factor, width in SPREAD.items()})


def derive_scale(values: Sequence[Sized], level: float) -> Scale:
    """The scale whose half-widths hold the share `level` of values when the cluster of each is left out."""
    weights = weights_of(values)
    whole = fit_scale(cells_of(values, weights))
    ratios = np.ones(len(values))
    for cluster in {value.cluster for value in values}:
        kept = [number for number, value in enumerate(values) if value.cluster != cluster]
        if not kept:
            continue
        without = fit_scale(cells_of([values[i] for i in kept], [weights[i] for i in kept]), whole)
        for number, value in enumerate(values):
            if value.cluster == cluster:
                ratios[number] = value.log_error / without.half_width(dict(zip(FACTORS, value.levels, strict=True)))
    sources = len({value.cluster[0] for value in values})
    base = whole.log_base_width + math.log(max(weighted_quantile(ratios, np.array(weights), level), LEAST_ERROR))
    return Scale(base, whole.factors, whole.unseen, len(values), sources)


def weighted_quantile(values: FloatArray, weights: FloatArray, level: float) -> float:
    """The least of the values that holds the share `level` of the weights.

    >>> weighted_quantile(np.array([3.0, 1.0, 2.0]), np.array([1.0, 8.0, 1.0]), 0.9)
    2.0
    """
    order = np.argsort(values, kind="stable")
    inside = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(inside, level * inside[-1] - 1e-9)])
