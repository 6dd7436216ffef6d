"""Which scales a set of measurements identifies, and what they are.

A measurement is a time (or the inverse of a rate) that the simulator predicts for given scales. Its *sensitivity* to a scale is
d log(time) / d log(scale), taken by simulating with the scale moved. Scales that the data cannot tell apart are moved together,
those that they hardly feel stay 1: of all ways to do so the one with the most groups is taken of whose every group the data know
more than was known before, and of these the one that moves the fewest scales. The rest is least squares of log errors
(Gauss-Newton), and leaving each measurement out in turn, linearised about the solution.

Before any measurement the logarithm of a scale is 0 with the deviation `prior`: the profile's own error. Measurements of one
machine deviate by `spread` from any scales: by length, batch and model. Several that agree are followed by all of their error:
what they say beyond `prior` widens it to that, since the profile is then of something else. A single one cannot tell the
machine's error from its own. Of the profile's variance T^2 the part f is then the machine's and 1 - f the measurement's
(`Followed`), so that f of the error is followed where the time is all of one scale, and never more than `MOST_FOLLOWED` T: what
lies further off is more often an odd measurement than an odd machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration import MOST, SCALES
from hardware_profiles.records import dataclass
from hardware_profiles.scaled_ops import Scales

Floats = NDArray[np.float64]
Group = tuple[str, ...]
"""Scales that move together."""

LEAST_PRIOR = 0.3
"""Deviation of a scale's logarithm before several measurements, at least (assumed): a server's versions and settings differ from
those that a profile was made of."""
SPREAD_SHARE = 0.5
"""`spread` of several measurements as a part of the profile's own error (fitted, 2026-11: of 0 to 1 the part at which single
anchors of 14 chips left the smallest errors)."""
LEAST_SPREAD = {"prompt": 0.07, "decode": 0.05, "host": 0.07}
"""Its least, by scale (assumed: TTFT also holds what stands before the scheduler, and few requests have it)."""
LEAST_ERROR = 0.2
"""The profile's own error T for a single measurement, at least (assumed as `LEAST_PRIOR`; it decides nothing but the most that is
followed)."""
MOST_FOLLOWED = 2.0
"""Most of a scale's logarithm that one measurement moves, over T (fitted, 2026-11: `benchmarks/anchored.py`, pairs of published
rows of one machine and model; of errors above 2.5 T other rows show three tenths, below 85 and 50 to 60 %)."""
SPREAD_POINTS = 6
"""As many left-out measurements `spread` weighs when that of a user's own is found (assumed)."""
UNFELT = 0.25
"""A scale that makes up a smaller part of a measurement may stay 1 (assumed)."""
ALONE = 1.5
"""Rows at once up to which a measurement is of a single stream (assumed)."""
LEADING = 0.45
"""A scale that makes up a smaller part of a single measurement of one request at a time stays 1, where another makes up more
(fitted, 2026-11: of 0.25 to 0.55, the part at which single anchors leave the smallest errors in rows of the same metric and of
others)."""
DEAF = 0.2
"""A measurement whose time hardly follows any scale tells nothing (assumed): a throughput that the arrivals fix."""
HOST_ERROR = 0.4
"""Deviation of the logarithm of host times (assumed: hosts' cores differ by a factor of 1.5 either way)."""
WIDEST = math.log(MOST)
"""Most of a scale's logarithm."""
STEP, ROUNDS, FAR, SETTLED = 0.1, 8, 0.2, 0.003
"""Move of a logarithm to take a sensitivity, most rounds, a move after which sensitivities are taken again, one that ends all."""
RATES = ("prefill_tok_s", "decode_tok_s", "output_tok_s", "total_tok_s")
"""Metrics that are the inverse of a time."""


@dataclass(frozen=True)
class Point:
    """A measurement of one load.

    measured : value by metric, as `predict` names them. noise : relative standard error of a value, by metric.
    predict : values for given scales. ranges : what of the calibrated domain it covers, and the mean prompt.
    model : by which it was measured, "" for the deployment's own.
    """

    label: str
    measured: Mapping[str, float]
    predict: Callable[[Scales], Mapping[str, float]]
    noise: Mapping[str, float]
    ranges: Mapping[str, float]
    model: str = ""

    @property
    def together(self) -> bool:
        """Whether several requests were served at once."""
        return self.ranges.get("rows", 1.0) > ALONE


@dataclass(frozen=True)
class Row:
    """A metric of a point, before and after: log errors of the time, predicted over measured.

    held_out : the error when its point is left out of the fit; None where the others do not tell.
    """

    point: Point
    metric: str
    before_error: float
    after_error: float
    held_out_error: float | None
    sensitivity: tuple[float, ...]

    @property
    def of_prompts(self) -> bool:
        """Whether the time is more of prompts than of the rest."""
        prompt = self.sensitivity[SCALES.index("prompt")]
        return prompt > max(other for name, other in zip(SCALES, self.sensitivity, strict=True) if name != "prompt")


@dataclass(frozen=True)
class Followed:
    """How far one measurement is followed.

    by_scale : part of the profile's variance that is the machine's and not the measurement's own. batch_share : the same of
    `decode` where it was measured by several rows at once, whose kernels are others.
    elsewhere_share : part of a scale's logarithm that another model on the machine shares.
    """

    by_scale: Mapping[str, float]
    batch_share: float
    elsewhere_share: float


FOLLOWED = Followed({"prompt": 0.6, "decode": 0.9, "host": 0.5}, 0.85, 0.3)
FOLLOWED_ON_CPUS = Followed({"prompt": 0.9, "decode": 0.9, "host": 0.5}, 0.6, 1.0)
"""Fitted, 2026-11, to pairs of published rows of one machine, every machine alike: the part of a row's error that another
row shows. Decoding of the same model 80 to 95 % (62 machines), prompts 50 to 75 % (52), full servers 60 to 100 (9); of
another model 0 to 50 %, in the middle a third of that. CPUs left out of their law (6): one stream and prompts 80 to 100 %,
batches 25 to 60 (5), of another model as of the same: threads, sockets and memory are the machine's. Hosts: assumed."""


@dataclass(frozen=True)
class Known:
    """What is known before any measurement, by scale: deviations of its logarithm, and of a measurement's from any scales.

    error, followed : the profile's own error T, and how far one measurement is followed. scatter : `spread` of the machine's rows
    as intervals have it, without a least T. alone : scales that one measurement tells.
    """

    prior: Mapping[str, float]
    spread: Mapping[str, float]
    error: Mapping[str, float]
    followed: Followed
    scatter: Mapping[str, float]
    alone: frozenset[str] = frozenset()

    @classmethod
    def of_error(cls, step_error: float, followed: Followed = FOLLOWED) -> Known:
        """By the profile's own error: the deviation of the logarithm of a step's time."""
        errors = {"prompt": step_error, "decode": step_error, "host": HOST_ERROR}
        spread = {name: max(SPREAD_SHARE * error, LEAST_SPREAD[name]) for name, error in errors.items()}
        prior = {name: max(error, LEAST_PRIOR) for name, error in errors.items()}
        return cls(prior, spread, errors, followed, scatter=spread)

    def of_points(self, points: Sequence[Point], jacobian: Floats) -> Known:
        """As it is for rows of sensitivities, one of each point: with the scales that one point alone tells; (rows, scales)."""
        parts = _parts(jacobian)
        tell = {
            name: {id(point): point for point, part in zip(points, parts[:, at], strict=True) if part >= UNFELT}
            for at, name in enumerate(SCALES)
        }
        alone = {name for name, of_it in tell.items() if len(of_it) <= 1}
        batches = any(point.together for point in tell["decode"].values())
        share = {**self.followed.by_scale, **({"decode": self.followed.batch_share} if batches else {})}
        own = {name: max(error, LEAST_ERROR) for name, error in self.error.items()}
        return replace(
            self,
            prior={n: math.sqrt(share[n]) * own[n] if n in alone else p for n, p in self.prior.items()},
            spread={n: math.sqrt(1.0 - share[n]) * own[n] if n in alone else s for n, s in self.spread.items()},
            scatter={
                n: max(math.sqrt(1.0 - share[n]) * self.error[n], LEAST_SPREAD[n]) if n in alone else s
                for n, s in self.spread.items()
            },
            alone=frozenset(alone),
        )

    def bound(self, groups: tuple[Group, ...]) -> Floats:
        """Most of each group's logarithm."""
        return np.array([
            max(MOST_FOLLOWED * max(self.error[name], LEAST_ERROR) if name in self.alone else WIDEST for name in group)
            for group in groups
        ])  # fmt: skip

    def sigma(self, jacobian: Floats, noise: Floats) -> Floats:
        """Deviation of each row, the more where it amplifies a step, or by what it feels where it alone tells; (rows,)."""
        parts = _parts(jacobian)
        spread = parts @ np.array([self.spread[name] for name in SCALES])
        several = np.array([part >= UNFELT for part in parts]) & np.array([name not in self.alone for name in SCALES])
        felt = np.maximum(jacobian.sum(axis=1), np.where(several.any(axis=1), 1.0, DEAF))
        return np.asarray(np.hypot(noise, spread * felt), dtype=np.float64)

    def weight(self, groups: tuple[Group, ...], x: Floats) -> Floats:
        """Inverse deviation of each group's logarithm, widened to where several points have it at `x` so far."""
        prior = [np.mean([self.prior[name] for name in group]) for group in groups]
        widened = [0.0 if set(group) <= self.alone else 1.0 for group in groups]
        return np.asarray(1.0 / np.maximum(prior, widened * np.abs(_of_groups(groups, x))), dtype=np.float64)


@dataclass(frozen=True)
class Fit:
    """A solution: log scales and their standard errors by name, the groups that moved together, and why others did not."""

    known: Known
    log_scales: Mapping[str, float]
    log_std: Mapping[str, float]
    groups: tuple[Group, ...]
    unidentified: Mapping[str, str]
    rows: tuple[Row, ...]
    deaf: tuple[Row, ...]

    def scales(self) -> Scales:
        """As factors."""
        return Scales(*(math.exp(self.log_scales.get(name, 0.0)) for name in SCALES))

    def half_widths(self) -> dict[str, float]:
        """Log half-widths of 90 % intervals of TTFT and TPOT, of those that the data tell, by measurements left out.

        Of a single measurement it is that of two such deviations, its own and that of what is predicted.
        """
        out = {}
        for metric, of_prompts in (("ttft", True), ("tpot", False)):
            rows = [row for row in self.rows if row.of_prompts == of_prompts]
            if not rows:
                continue
            held = [row.held_out_error / _amplified(row.sensitivity) for row in rows if row.held_out_error is not None]
            scale = "prompt" if of_prompts else "decode"
            width = pooled_width(held, self.known.scatter[scale])
            out[metric] = width * (1.0 if held else math.sqrt(2.0))
        return out


def pooled_width(held: Sequence[float], known_error: float) -> float:
    """Log half-width of 90 %: errors h_i of n measurements left out, and the known s for k more (`SPREAD_POINTS`).

    (sum h_i^2 + k s^2) / (n + k) is their variance; the width is the t quantile of n + k times its root.
    """
    from scipy.special import stdtrit

    weight = len(held) + SPREAD_POINTS
    own = math.sqrt((sum(h * h for h in held) + SPREAD_POINTS * known_error**2) / weight)
    return float(stdtrit(weight, 0.95)) * own


def fit(
    points: Sequence[Point], known: Known, progress: Callable[[str], None] | None = None, *, believed: bool = False
) -> Fit:
    """Fit the scales that the points identify. Those of no row that tells anything leave all as it is.

    believed : follow one measurement as several that agree.
    """
    x = np.zeros(len(SCALES))
    groups: tuple[Group, ...] = ()
    first: Floats | None = None
    keys = [(point, metric) for point in points for metric in point.measured]
    noise = np.array([point.noise.get(metric, 0.0) for point, metric in keys])
    far, here = True, known
    for number in range(ROUNDS):
        errors = _errors(points, x)
        if far:
            jacobian = np.array([_errors(points, x + STEP * unit) - errors for unit in np.eye(len(SCALES))]).T / STEP
        first = errors if first is None else first
        told = jacobian.sum(axis=1) >= DEAF
        sigma = known.sigma(jacobian, noise)
        if far and len(finer := best_groups(jacobian[told], sigma[told], known)) > len(groups):
            groups = finer if believed or len(points) > 1 or points[0].together else _leading(finer, jacobian[told])
        if not groups:
            break
        if not believed:
            here = known.of_points([point for (point, _), one in zip(keys, told.tolist(), strict=True) if one], jacobian[told])
        sigma, basis, bound = here.sigma(jacobian, noise), _basis(groups), here.bound(groups)
        move = _solve(jacobian[told] @ basis, errors[told], sigma[told], here.weight(groups, x), _of_groups(groups, x))
        move = np.clip(_of_groups(groups, x) + move, -bound, bound) - _of_groups(groups, x)
        x = x + basis @ move
        errors = errors + jacobian @ (basis @ move)
        if progress:
            progress(f"round {number + 1}: " + ", ".join(f"{n} {math.exp(v):.3g}" for n, v in zip(SCALES, x, strict=True)))
        if float(np.abs(move).max()) < SETTLED:
            break
        far = bool(np.abs(move).max() > FAR)
    assert first is not None
    held = _left_out(points, keys, jacobian, errors, sigma, told, groups, here, x)
    rows = [
        Row(point, metric, float(first[i]), float(errors[i]), held[i], tuple(jacobian[i].tolist()))
        for i, (point, metric) in enumerate(keys)
    ]
    std = _posterior_std(jacobian[told] @ _basis(groups), sigma[told], here.weight(groups, x)) if groups else np.zeros(0)
    by_group = {name: float(std[at]) for at, group in enumerate(groups) for name in group}
    told_rows = tuple(row for row, told_one in zip(rows, told.tolist(), strict=True) if told_one)
    return Fit(
        here,
        {name: float(x[SCALES.index(name)]) for name in by_group},
        by_group,
        groups,
        {name: _why(name, told_rows) for name in SCALES if name not in by_group},
        told_rows,
        tuple(row for row, told_one in zip(rows, told.tolist(), strict=True) if not told_one),
    )


def best_groups(jacobian: Floats, sigma: Floats, known: Known) -> tuple[Group, ...]:
    """The scales to move, see the head of the module; none where the rows tell none."""
    if not len(jacobian):
        return ()
    parts = _parts(jacobian)

    def told(groups: tuple[Group, ...]) -> bool:
        kept = {SCALES.index(name) for group in groups for name in group}
        if any(parts[:, at].max() >= UNFELT for at in range(len(SCALES)) if at not in kept):
            return False
        covariance = _covariance(jacobian @ _basis(groups), sigma)
        return bool(np.all(np.sqrt(np.diag(covariance)) * known.weight(groups, np.zeros(len(SCALES))) <= 1.0))

    found = [groups for groups in _groupings() if told(groups)]
    return min(found, key=lambda groups: (-len(groups), sum(map(len, groups))), default=())


def _leading(groups: tuple[Group, ...], jacobian: Floats) -> tuple[Group, ...]:
    """The groups, each with the scales that lead a row; its largest where none does."""
    most = dict(zip(SCALES, _parts(jacobian).max(axis=0).tolist(), strict=True))
    return tuple(
        tuple(name for name in group if most[name] >= min(LEADING, max(most[other] for other in group))) for group in groups
    )


def _groupings() -> Iterator[tuple[Group, ...]]:
    """All ways to move some scales in groups."""
    for size in range(1, len(SCALES) + 1):
        for chosen in combinations(SCALES, size):
            yield from _partitions(chosen)


def _partitions(names: tuple[str, ...]) -> Iterator[tuple[Group, ...]]:
    if not names:
        yield ()
        return
    first, rest = names[0], names[1:]
    for size in range(len(rest) + 1):
        for others in combinations(rest, size):
            left = tuple(name for name in rest if name not in others)
            for parts in _partitions(left):
                yield ((first, *others), *parts)


def _parts(jacobian: Floats) -> Floats:
    """What part of each row follows each scale."""
    return np.asarray(np.abs(jacobian) / np.maximum(np.abs(jacobian).sum(axis=1), 1e-12)[:, None], dtype=np.float64)


def _basis(groups: tuple[Group, ...]) -> Floats:
    """Scales by groups: 1 where a scale is in the group."""
    return np.array([[float(name in group) for group in groups] for name in SCALES])


def _of_groups(groups: tuple[Group, ...], x: Floats) -> Floats:
    return np.array([x[SCALES.index(group[0])] for group in groups])


def _covariance(jacobian: Floats, sigma: Floats) -> Floats:
    """Of the least-squares solution; infinite where it is not determined."""
    weighted = jacobian / sigma[:, None]
    product = weighted.T @ weighted
    if np.linalg.matrix_rank(product, tol=1e-6 * float(np.trace(product))) < len(product):
        return np.full_like(product, np.inf)
    return np.asarray(np.linalg.inv(product), dtype=np.float64)


def _solve(jacobian: Floats, errors: Floats, sigma: Floats, weight: Floats, so_far: Floats) -> Floats:
    """The move of the groups' logarithms from `so_far`, whose prior is 0 with the inverse deviation `weight`."""
    rows = np.concatenate([jacobian / sigma[:, None], np.diag(weight)])
    wanted = np.concatenate([-errors / sigma, -so_far * weight])
    return np.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0], dtype=np.float64)


def _posterior_std(jacobian: Floats, sigma: Floats, weight: Floats) -> Floats:
    weighted = jacobian / sigma[:, None]
    return np.asarray(np.sqrt(np.diag(np.linalg.inv(weighted.T @ weighted + np.diag(weight**2)))), dtype=np.float64)


def _left_out(
    points: Sequence[Point], keys: list[tuple[Point, str]], jacobian: Floats, errors: Floats, sigma: Floats,
    told: NDArray[np.bool_], groups: tuple[Group, ...], known: Known, x: Floats,
) -> list[float | None]:  # fmt: skip
    """The error of each row when its point is not in the fit."""
    out: list[float | None] = [None] * len(keys)
    if not groups:
        return out
    reduced, weight, so_far = jacobian @ _basis(groups), known.weight(groups, x), _of_groups(groups, x)
    for point in points:
        inside = np.array([key[0] is point for key in keys])
        rest = told & ~inside
        if not rest.any() or not np.all(np.sqrt(np.diag(_covariance(reduced[rest], sigma[rest]))) * weight <= 1.0):
            continue
        move = _solve(reduced[rest], errors[rest], sigma[rest], weight, so_far)
        for at in np.flatnonzero(inside):
            out[at] = float(errors[at] + reduced[at] @ move)
    return out


def _errors(points: Sequence[Point], x: Floats) -> Floats:
    """Log errors of all rows, as times."""
    scales = Scales(*np.exp(x).tolist())
    out = []
    for point in points:
        predicted = point.predict(scales)
        for metric, value in point.measured.items():
            error = math.log(predicted[metric] / value)
            out.append(-error if metric in RATES else error)
    return np.array(out)


def _amplified(sensitivity: Sequence[float] | Floats) -> float:
    """How much more than a step's a time moves: more than once where it is a queue's."""
    return max(1.0, float(np.sum(sensitivity)))


def _why(name: str, rows: Sequence[Row]) -> str:
    """Why a scale stays 1."""
    at = SCALES.index(name)
    most = max((abs(row.sensitivity[at]) for row in rows), default=0.0)
    if most < UNFELT:
        return f"makes up at most {most:.0%} of any time measured"
    return "cannot be told from the others by these data"


def carried(models: int, followed: Followed) -> float:
    """Part of the logarithms that holds for a model that is not among so many measured (Spearman-Brown, of their mean)."""
    return models * followed.elsewhere_share / (1.0 + (models - 1) * followed.elsewhere_share)


__all__ = [
    "FOLLOWED", "FOLLOWED_ON_CPUS", "Fit", "Followed", "Known", "Point", "Row", "best_groups", "carried", "fit", "pooled_width",
]  # fmt: skip
