"""The laws of lengths and think times that a scenario names, as samplers; the same draws however many are taken at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.files import read_text
from simulator.workload import lengths
from simulator.workload.columns import FloatArray, IntArray
from simulator.workload.synthetic import (
    ConstantLength,
    EmpiricalLength,
    ExponentialTime,
    Length,
    LognormalLength,
    NormalLength,
    ThinkTime,
    UniformLength,
    UniformTime,
    quantile_points,
)

Draw = Callable[[int], FloatArray]
LAW_DRAWS = 1 << 14
"""Draws that stand for a law where its residual is wanted (assumed)."""


def sampler(spec: Length, rng: np.random.Generator, base_dir: Path, name: str) -> Callable[[int], IntArray]:
    """Return what draws the next n lengths [tokens] of the distribution `spec`; `name` is the field, and a file's column."""
    if isinstance(spec, UniformLength):
        draw: Draw = partial(lengths.uniform, rng, spec.low, spec.high)
    else:
        draw = _draws(spec, rng, base_dir, name, least=1.0)
    return lambda n: lengths.to_tokens(draw(n), spec.min, spec.max)


def time_sampler(spec: ThinkTime, rng: np.random.Generator, base_dir: Path) -> Draw:
    """Return what draws the next n think times [s] of the law `spec`."""
    if isinstance(spec, ExponentialTime):
        draw: Draw = partial(lengths.exponential, rng, spec.mean)
    elif isinstance(spec, UniformTime):
        draw = partial(lengths.between, rng, spec.low, spec.high)
    else:
        draw = _draws(spec, rng, base_dir, "think_time_s", least=0.0)
    return lambda n: np.clip(draw(n), spec.min or 0.0, spec.max)


def _draws(
    spec: ConstantLength | NormalLength | LognormalLength | EmpiricalLength,
    rng: np.random.Generator,
    base_dir: Path,
    name: str,
    least: float,
) -> Draw:
    """What lengths and times have in common; `least` is the smallest value that a file may hold."""
    if isinstance(spec, ConstantLength):
        return partial(lengths.constant, spec.value)
    if isinstance(spec, NormalLength):
        return partial(lengths.normal, rng, spec.mean, spec.std)
    if isinstance(spec, LognormalLength):
        return partial(lengths.lognormal, rng, spec.mean, spec.p99)
    if spec.quantiles is None:
        return partial(lengths.samples, rng, _measured(spec, base_dir, name, least))
    points = np.asarray(quantile_points(spec.quantiles))
    return partial(lengths.quantiles, rng, points[:, 0], points[:, 1])


def _measured(spec: EmpiricalLength, base_dir: Path, name: str, least: float) -> FloatArray:
    path = base_dir / str(spec.file)
    if path.suffix.lower() in (".csv", ".jsonl", ".ndjson", ".json", ".parquet", ".gz"):
        from simulator.workload.tables import read_table

        table = read_table(path)
        values = table.number(name)
    else:
        lines = read_text(path).split()
        try:
            values = np.asarray([float(x) for x in lines])
        except ValueError as error:
            raise InputError(
                f"holds a line that is no number ({error})", where=str(path), mend="one number a line"
            ) from None
    if not len(values) or not np.isfinite(values).all() or (values < least).any():
        raise InputError(
            f"the values must be numbers of at least {least:g}, and there must be some",
            where=str(path),
            mend="correct the file",
        )
    return values


def residuals(spec: ThinkTime, rng: np.random.Generator, base_dir: Path, n: int) -> FloatArray:
    """Return what is left of n think times that began long ago [s]: when clients at work for long send first.

    The time that is met in progress has the law's density times its length, and a uniform share of it is left (the
    inspection paradox; Feller II, XI.4). So clients arrive at the same mean rate from time zero on: constant times are
    spread evenly over one of them, and what is left of an exponential time has the law itself.
    """
    if isinstance(spec, ExponentialTime) and spec.min is None and spec.max is None:
        return rng.exponential(spec.mean, n)
    times = time_sampler(spec, rng, base_dir)(LAW_DRAWS)
    met = np.cumsum(times)
    which, share = rng.random((n, 2)).T
    if not met[-1]:
        return np.zeros(n)
    left_s: FloatArray = times[np.minimum(np.searchsorted(met, which * met[-1], side="right"), LAW_DRAWS - 1)] * share
    return left_s
