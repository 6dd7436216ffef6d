"""Fit of the scales of errors (`simulator.results.scales`), and the quantiles that hold nine of ten values left out.

The size of an error is exponential about the scale of its setting (a Laplace law of signed errors), the logarithm of the scale a
sum of effects, each normal about zero with a spread that is given (`SPREAD`): a level with few measurements stays near the
mixture. Measurements of a cluster share an effect of their own and those of a source another (random effects; Gelman and Hill,
Data Analysis Using Regression and Multilevel Models, 2007, part 2), so a thousand rows of one publisher are not taken for a
thousand witnesses.

The width is a multiple of the scale, found by leaving out (split conformal prediction by groups; Dunn, Wasserman and Ramdas,
Distribution-free prediction sets for two-layer hierarchical models, 2022). For a further source: each source is judged by a fit
without it, about the median of all, and counts once. For a source that is known: each of its clusters is judged by a fit without
it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from hardware_profiles.records import dataclass
from simulator.results.scales import FACTORS, Scale
from simulator.workload.columns import FloatArray

SPREAD = {
    "source": 0.2, "load": 0.5, "engine": 0.1, "device": 0.15, "model": 0.25, "setting": 0.3, "ranks": 0.3, "cluster": 0.3,
}  # fmt: skip
"""Standard deviation of a level's effect on the log scale. Kind: fitted, 2026-11, by the marginal likelihood (Laplace's
approximation) of 1,191 values of TPOT, 1,183 of TTFT and 122 of throughput, one set for all: source 0.25, 0.03, 0.24; load 0.9,
0.3, 0.0; engine 0.0, 0.0, 0.1; device 0.1, 0.0, 0.3; model 0.2, 0.2, 0.4; setting 0.3, 0.4, 0.0; ranks 0.4, 0.15, 0.0; cluster
0.3, 0.4, 0.0."""
OTHER_ENGINE = 0.4
"""What an engine that no run was compared with, of whatever metric, adds to the log width: those behind `SPREAD` were mended on
such runs. Kind: fitted, 2026-11, to NVIDIA's tables of TensorRT-LLM: of 237 throughputs and 122 TTFT of its Triton backend 71 and
78 % are inside without it, 89 and 90 with it."""
COMPARED_ENGINE = SPREAD["engine"] ** 2 / 2
"""The same in a metric of which an engine has no value while it has some of another: the mean of a log-normal scale. Of 178
throughputs of TensorRT-LLM's own server (131 of NVIDIA's tables, 47 of MLPerf), none of which stands behind the scale, 94 % are
inside, with `OTHER_ENGINE` 97 by intervals 1.5 times as wide."""
ALIKE = 0.15
"""Correlation of log |error| in a cluster. Kind: fitted, 2026-11: 0.14 to 0.16 of TPOT, 0.16 to 0.22 of TTFT."""
LEAST_ERROR = 0.005
"""Log errors below this count as this (assumed)."""
ROUNDS, CLOSE = 40, 1e-6


@dataclass(frozen=True)
class Sized:
    """One log error, predicted over measured; the cluster it belongs to, its source first; the levels of its factors in the order
    of `FACTORS`. A level "" of the source says that the source is not told apart from another."""

    cluster: tuple[str, ...]
    levels: tuple[str, ...]
    log_error: float

    @property
    def effects(self) -> tuple[str, ...]:
        """Source, other levels, cluster: what its scale is a sum over, in the order of `SPREAD`."""
        return self.cluster[0], *self.levels[1:], "/".join(self.cluster)


Cells = dict[tuple[str, ...], tuple[float, float]]
"""Number of values and sum of their sizes, by effects: all that a fit reads."""


def cells_of(values: Sequence[Sized]) -> Cells:
    """Values of the same effects together."""
    out: Cells = {}
    for value in values:
        total, sizes = out.get(value.effects, (0.0, 0.0))
        out[value.effects] = total + 1, sizes + max(abs(value.log_error), LEAST_ERROR)
    return out


def by_cluster(values: Sequence[Sized]) -> FloatArray:
    """Weights where members of a cluster are alike: n count as n / (1 + (n - 1) ALIKE) do (Kish, Survey Sampling, 1965)."""
    sizes = Counter(value.cluster for value in values)
    return np.array([1 / (1 + (sizes[value.cluster] - 1) * ALIKE) for value in values])


def by_source(values: Sequence[Sized]) -> FloatArray:
    """Weights where each source counts once."""
    sizes = Counter(value.cluster[0] for value in values)
    return np.array([1 / sizes[value.cluster[0]] for value in values])


def fit_scale(cells: Cells, start: Scale | None = None) -> Scale:
    """The scale by levels, for width the mean size of errors: the mode of all effects, by Newton's steps on a convex function.

    What is not measured adds half the variance of its effect: the mean of a scale that is log-normal. Effects of clusters are
    estimated and kept as a factor of that name. start : where to begin.
    """
    names = sorted({name for effects in cells for name in zip(SPREAD, effects, strict=True)})
    place = {name: number + 1 for number, name in enumerate(names)}
    design = np.zeros((len(cells), len(names) + 1))
    design[:, 0] = 1.0
    for row, effects in enumerate(cells):
        for name in zip(SPREAD, effects, strict=True):
            design[row, place[name]] = 1.0
    total, sizes = (np.array(column) for column in zip(*cells.values(), strict=True))
    prior = np.array([CLOSE, *(SPREAD[factor] ** -2 for factor, _ in names)])
    found = np.zeros(len(names) + 1)
    found[0] = math.log(sizes.sum() / total.sum()) if start is None else start.log_base_width
    if start is not None:
        found[1:] = [start.factors[factor].get(level, 0.0) for factor, level in names]
    for _ in range(ROUNDS):
        over = sizes * np.exp(-design @ found)
        step = np.linalg.solve((design.T * over) @ design + np.diag(prior), design.T @ (over - total) - prior * found)
        found = found + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < CLOSE:
            break
    factors: dict[str, dict[str, float]] = {factor: {} for factor in SPREAD}
    for (factor, level), number in place.items():
        factors[factor][level] = float(found[number])
    unseen = {factor: SPREAD[factor] ** 2 / 2 for factor in FACTORS if factor != "source"}
    return Scale(float(found[0]), factors, {**unseen, "engine": OTHER_ENGINE})


def derive_scale(values: Sequence[Sized], level: float) -> Scale:
    """The scale whose half-widths hold the share `level` of values of a further source, and of further clusters of a source that
    is told (those of its values whose level says so)."""
    whole = fit_scale(cells_of(values))
    signed = np.array([value.log_error for value in values])
    once = by_source(values)
    center = -weighted_quantile(signed, once, 0.5)
    further = _left_out(values, whole, lambda value: (value.cluster[0],), center, told=False)
    multiple = _multiple(further, once, level)
    told = _left_out(values, whole, lambda value: value.cluster, 0.0, told=True)
    judged = ~np.isnan(told)
    known = _multiple(told[judged], by_cluster(values)[judged], level) if judged.any() else multiple
    sources = {value.cluster[0]: whole.factors["source"][value.cluster[0]] for value in values if value.levels[0]}
    factors = {factor: whole.factors[factor] for factor in FACTORS} | {"source": sources}
    unseen = {**whole.unseen, "source": max(0.0, math.log(multiple / known))}
    count = len({value.cluster[0] for value in values})
    return Scale(whole.log_base_width + math.log(known), factors, unseen, center, len(values), count)


def _left_out(
    values: Sequence[Sized], whole: Scale, group: Callable[[Sized], tuple[str, ...]], center: float, told: bool
) -> FloatArray:
    """Each value's size about the center over the scale of its setting without its group; nan where nothing tells it.

    told : whether the source is told: then only where it has other groups; else its effect is left out.
    """
    members: dict[tuple[str, ...], list[int]] = {}
    for number, value in enumerate(values):
        if value.levels[0] or not told:
            members.setdefault(group(value), []).append(number)
    groups = Counter(key[0] for key in members)
    out = np.full(len(values), np.nan)
    for key, numbers in members.items():
        if told and groups[key[0]] == 1:
            continue
        left = set(numbers)
        kept = [value for number, value in enumerate(values) if number not in left]
        without = fit_scale(cells_of(kept), whole) if kept else whole
        for number in numbers:
            source, levels = key[0] if told else "", values[number].levels[1:]
            scale = without.half_width(dict(zip(FACTORS, (source, *levels), strict=True)))
            out[number] = abs(values[number].log_error + center) / scale
    return out


def _multiple(ratios: FloatArray, weights: FloatArray, level: float) -> float:
    """The multiple of the scale that holds the share `level` of further values: of n values the order statistic of rank
    level * (n + 1), n the effective number of the weights (Kish)."""
    number = float(weights.sum() ** 2 / (weights**2).sum())
    return max(weighted_quantile(ratios, weights, min(1.0, level * (1 + 1 / number))), LEAST_ERROR)


def weighted_quantile(values: FloatArray, weights: FloatArray, level: float) -> float:
    """The least of the values that holds the share `level` of the weights.

    >>> weighted_quantile(np.array([3.0, 1.0, 2.0]), np.array([1.0, 8.0, 1.0]), 0.9)
    2.0
    """
    order = np.argsort(values, kind="stable")
    inside = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(inside, level * inside[-1] - 1e-9)])
