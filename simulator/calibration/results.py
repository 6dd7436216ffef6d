"""`calibrate results`: measured result files and the scenario that was measured, to the scales that they identify."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hardware_profiles.calibration import RANGES, SEVERAL, Calibration
from hardware_profiles.errors import InputError, PlanError
from hardware_profiles.files import read_bytes, read_text, without_cut_line
from hardware_profiles.records import dataclass
from hardware_profiles.scaled_ops import Scales
from simulator.calibrated import measured_on
from simulator.calibration.agreement import check_bound, read_bound_s, token_bound_s
from simulator.calibration.deployment import Deployment
from simulator.calibration.fit import (
    FOLLOWED,
    FOLLOWED_ON_CPUS,
    LEAST_SPREAD,
    RATES,
    Fit,
    Known,
    Point,
    Row,
    carried,
    fit,
    pooled_width,
)
from simulator.calibration.served import Left, points_of_cases, points_of_results
from simulator.calibration.steps import (
    METRIC,
    Law,
    law_of_steps,
    median_error,
    points_of_law,
    points_of_steps,
)
from simulator.planning.measured_files import KINDS, UnknownResultError
from simulator.prepared import Prepared
from simulator.results.domain import domain
from simulator.results.intervals import half_width
from simulator.version import VERSION

LIKELY = 3.0
"""Most by which a deployment that is described may be slower or faster than its profile (assumed)."""
LAW_STEPS = 8
"""Steps from which a law of whole steps is thought of (assumed)."""
DOUBTED, WIDTHS = 1.4, (1, 2, 4, 8)
"""A scale from which other tensor parallelism is tried, and which (assumed)."""
ODD = 0.2
"""Median log error after the fit from which the scenario is doubted (assumed)."""
UNITS = 1000.0
"""Ratio of seconds and milliseconds, the two units of clients; UNITS_WITHIN is how near a ratio comes to it."""
UNITS_WITHIN = 4.0
QUANTILE = 1.645
"""Half-width of a 90 % interval over the standard deviation, of a normal distribution."""


@dataclass(frozen=True)
class Outcome:
    """A calibration, the fit of scales behind it (None: of whole steps), what was left out, and notes."""

    calibration: Calibration
    fit: Fit | None
    left: tuple[Left, ...]
    notes: tuple[str, ...]


def calibrate_results(
    paths: Sequence[Path], deployment: Deployment, progress: Callable[[str], None] | None = None, *, any_scale: bool = False
) -> Outcome:
    """Fit the scales of a deployment to result files.

    any_scale : take scales beyond `LIKELY` too, then as the measurements have them, however few.
    Raises InputError for files that cannot be read or are of something else, and where they tell no scale.
    """
    prepared = deployment.prepared
    points, left, notes = _points(paths, deployment)
    if not points:
        why = "; ".join(f"{one.label}: {one.reason}" for one in left)
        few = any("too few" in one.reason for one in left)
        raise InputError(
            f"too few points: none is left ({why})",
            where=", ".join(map(str, paths)),
            mend="measure more requests" if few else "give files with results that can be used",
        )
    _check_units(points)
    for point in points:
        _check_bounds(point, prepared)
    known = known_of(prepared)
    found = fit(points, known, progress, believed=True)
    if not found.groups:
        raise InputError(
            "these measurements tell nothing of step times: " + "; ".join(f"{k} {why}" for k, why in found.unidentified.items()),
            where="FILE",
            mend="give latencies (TTFT, TPOT) of a load that the server carries",
        )
    if not any_scale:
        _check_width(found, paths, deployment)
        _check_scales(found)
    if law_error := _law_error(paths, found, prepared):
        notes.append(f"a law of whole steps would be {law_error:.0%} off where left out, for this model alone: --whole-steps")
    rest = float(np.median([abs(row.after_error) for row in found.rows]))
    if all(abs(value) <= math.log(LIKELY) for value in found.log_scales.values()):
        found = fit(points, known)
    if rest > ODD:
        notes.append(
            f"the scales leave {math.expm1(rest):.0%} in the median: these measurements are not of one deployment, or not of this"
        )
    return Outcome(_calibration(found, paths, prepared), found, tuple(left), tuple(notes))


def calibrate_whole_steps(paths: Sequence[Path], deployment: Deployment) -> Outcome:
    """Fit a law of whole steps to files of llama-bench and llama-batched-bench, in place of scales.

    Raises InputError for files of other clients, of something else than the deployment, and for steps that tell no law.
    """
    prepared = deployment.prepared
    for path in paths:
        if not of_llama_bench(read_text(path)):
            raise InputError(
                "whole steps are timed by llama-bench and llama-batched-bench alone",
                where=str(path),
                mend="leave --whole-steps out, or measure a server by `capacity-plan calibrate endpoint`",
            )
    points, left, notes = _points(paths, deployment)
    _check_units(points)
    for point in points:
        _check_bounds(point, prepared)
    law = law_of_steps(paths, prepared)
    made = points_of_law(law, prepared)
    table = []
    for point, after, held in zip(made, law.errors, law.held_out, strict=True):
        (metric,) = point.measured
        before = point.predict(Scales())[metric] / point.measured[metric] - 1
        row = {"point": point.label, "metric": metric, "measured": point.measured[metric]}
        table.append({**row, "before_error": before, "after_error": after, "left_out_error": held})
    calibration = Calibration(
        scales={},
        log_std={},
        unidentified={"host": "makes up no part of what llama-bench times: it is the profile's"},
        interval=_law_widths(law, made),
        measured_on=measured_on(prepared),
        domain=_domain(made),
        points=len(made),
        held_out_error=median_error(law.held_out),
        table=tuple(table),
        provenance=_provenance(paths),
        steps={**law.fitted.as_dict(), "served": False},
    )
    return Outcome(calibration, None, tuple(left), tuple(notes))


def _law_widths(law: Law, points: Sequence[Point]) -> dict[str, float]:
    """Log half-widths of 90 %, prompts and steps that decode apart: by errors of steps left out, of others by the fit's."""
    out = {}
    for metric, of_prompts in (("ttft", True), ("tpot", False)):
        rows = zip(points, law.errors, law.held_out, strict=True)
        errors = [
            math.log1p(max(-0.99, after if held is None else held))
            for point, after, held in rows
            if ("prompt_tokens" in point.ranges) == of_prompts
        ]
        if errors:
            out[metric] = pooled_width(errors, LEAST_SPREAD["decode"])
    return out


def _law_error(paths: Sequence[Path], found: Fit, prepared: Prepared) -> float | None:
    """What a law of whole steps is off by where left out, if it is less than half of what scales are; None without such files."""
    errors = [row.held_out_error for row in found.rows]
    own = median_error(errors)
    if own is None or len(found.rows) < LAW_STEPS or any(row.metric != METRIC for row in found.rows):
        return None
    try:
        law = median_error(law_of_steps(paths, prepared).held_out)
    except InputError:
        return None
    return law if law is not None and law < own / 2 else None


def _points(paths: Sequence[Path], deployment: Deployment) -> tuple[list[Point], list[Left], list[str]]:
    """The points of all files, what is left out, and notes."""
    points: list[Point] = []
    left: list[Left] = []
    notes: list[str] = []
    for path in paths:
        text = read_text(path)
        if without_cut_line(text) != text:
            left.append(Left(path.name, "its last line is cut short; what stands before it is taken"))
        if of_llama_bench(text):
            points += points_of_steps(path, deployment)
            continue
        if of_cases(text):
            points += points_of_cases(path, deployment)
            continue
        try:
            some, without, said = points_of_results(path, deployment)
        except UnknownResultError as error:
            error.mend = f"give a result file of {', '.join(KINDS)}, llama-bench or llama-batched-bench"
            raise
        points, left, notes = [*points, *some], [*left, *without], [*notes, *said]
    return points, left, notes


def known_of(prepared: Prepared) -> Known:
    """What is known of a deployment before: the error of a step that its intervals state."""
    evidence, _ = domain(prepared)
    followed = FOLLOWED_ON_CPUS if prepared.device.kind == "cpu" else FOLLOWED
    return Known.of_error(half_width(evidence, "tpot", "mean")[0] / QUANTILE, followed)


def of_llama_bench(text: str) -> bool:
    """Whether a text holds rows of llama-bench or llama-batched-bench."""
    head = text.lstrip()[:20_000]
    if head.startswith(("[", "{")):
        return any(all(f'"{name}"' in head for name in names) for names in (("n_gen", "avg_ns"), ("t_pp", "t_tg")))
    if "INSERT INTO llama_bench" in head:
        return True
    lines = head.splitlines()
    return any((line.startswith("|") and "t/s" in line) or {"n_gen", "avg_ns"} <= set(line.split(",")) for line in lines)


def of_cases(text: str) -> bool:
    """Whether a text is a list of cases, as `validate reports` takes it."""
    first = text.lstrip()[:100_000].partition("\n")[0]
    return first.startswith("{") and all(f'"{name}"' in first for name in ("id", "scenario", "reported"))


# -- whether the numbers can be ---------------------------------------------------------------------------


def _check_units(points: Sequence[Point]) -> None:
    """Raise InputError for a time that is a thousand times what is predicted, or a thousandth, and for one still further off."""
    for point in points:
        predicted = point.predict(Scales())
        for metric, value in point.measured.items():
            ratio = value / predicted[metric]
            if not 1 / (UNITS * UNITS_WITHIN) < ratio < UNITS * UNITS_WITHIN:
                raise InputError(
                    f"{metric} is {value:.4g}, and {predicted[metric]:.4g} is predicted: it is no time of this deployment",
                    where=point.label,
                    mend="check the file, or describe the measured deployment in the scenario",
                )
            for times, words in ((UNITS, "more"), (1 / UNITS, "less")):
                if 1 / UNITS_WITHIN < ratio / times < UNITS_WITHIN:
                    raise InputError(
                        f"{metric} is {value:.4g}, about a thousand times {words} than predicted ({predicted[metric]:.4g}): "
                        "units are mixed",
                        where=point.label,
                        mend="give latencies in the unit of the client's format; TTFT of an overloaded server tells nothing",
                    )


def _check_bounds(point: Point, prepared: Prepared) -> None:
    """Raise InputError for a time that the device's datasheet forbids: weights read from memory, a prompt's arithmetic."""
    if prepared.plan.speculation is not None:
        return
    tokens = point.ranges.get("prompt_tokens", 0.0)
    read_s, compute_s = read_bound_s(prepared), token_bound_s(prepared)
    bounds = {"tpot_mean_ms": read_s, "itl_mean_ms": read_s}
    bounds["ttft_mean_ms"] = compute_s * point.ranges.get("mean_prompt_tokens", 0.0)
    if METRIC in point.measured:
        bounds[METRIC] = max(read_s, compute_s * (tokens or point.ranges.get("rows", 1.0)))
    for metric, bound_s in bounds.items():
        value = point.measured.get(metric)
        if value is not None:
            check_bound(metric, value, 1e3 * bound_s, prepared, point.label)


def _check_width(found: Fit, paths: Sequence[Path], deployment: Deployment) -> None:
    """Raise InputError where the profile at another tensor parallelism is by far nearer to what was measured."""
    if max(map(abs, found.log_scales.values())) < math.log(DOUBTED):
        return
    here, own = float(np.median([abs(row.before_error) for row in found.rows])), deployment.prepared.pool.tensor_parallel
    for ranks in (ranks for ranks in WIDTHS if ranks != own):
        try:
            points, _, _ = _points(paths, deployment.at_width(ranks))
        except PlanError:
            continue
        errors = [math.log(point.predict(Scales())[m] / value) for point in points for m, value in point.measured.items()]
        off = float(np.median(np.abs(errors))) if errors else math.inf
        if off < here / 3:
            raise InputError(
                f"the profile is {math.expm1(here):.0%} off at tensor parallelism {own}, as the scenario has it, and "
                f"{math.expm1(off):.0%} at {ranks}: the scenario does not describe the server",
                where="--scenario",
                mend=f"set deployment.tensor_parallel: {ranks}, or take it as it is with --any-scale",
            )


def _check_scales(found: Fit) -> None:
    """Raise InputError for scales that a deployment as described cannot have."""
    for name, value in found.log_scales.items():
        if abs(value) > math.log(LIKELY):
            words = f"{math.exp(value):.3g} times" if value > 0 else f"{math.exp(value):.2g} of"
            raise InputError(
                f"what was measured took {words} the profile's time ({name}): the scenario does not describe the server",
                where="--scenario",
                mend="check model, formats, hardware, tensor_parallel and replicas; or take it as it is with --any-scale",
            )


# -- the file ---------------------------------------------------------------------------------------------


def _calibration(found: Fit, paths: Sequence[Path], prepared: Prepared) -> Calibration:
    """The fit as a file."""
    points = list({id(row.point): row.point for row in found.rows}.values())
    held = [abs(math.expm1(row.held_out_error)) for row in found.rows if row.held_out_error is not None]
    models = sorted({point.model or prepared.arch.name for point in points})
    return Calibration(
        scales={name: math.exp(value) for name, value in found.log_scales.items()},
        log_std=dict(found.log_std),
        unidentified=dict(found.unidentified),
        interval=found.half_widths(),
        measured_on={**measured_on(prepared), "model": SEVERAL.join(models)},
        domain=_domain(points),
        points=len(points),
        held_out_error=float(np.median(held)) if held else None,
        table=tuple(as_dict(row) for row in found.rows),
        provenance=_provenance(paths),
        elsewhere_share=carried(len(models), found.known.followed),
    )


def _provenance(paths: Sequence[Path]) -> dict[str, object]:
    """Tool, date, and the files by their hashes."""
    return {
        "tool": f"capacity-plan {VERSION}",
        "date": datetime.date.today().isoformat(),
        "files": [{"name": path.name, "sha256": hashlib.sha256(read_bytes(path)).hexdigest()} for path in paths],
    }


def _domain(points: Sequence[Point]) -> dict[str, tuple[float, float]]:
    """Least and most of what was measured."""
    values = {name: [point.ranges[name] for point in points if name in point.ranges] for name in RANGES}
    return {name: (min(some), max(some)) for name, some in values.items() if some}


def as_dict(row: Row) -> Mapping[str, object]:
    """A row of the table: errors of the metric itself, predicted over measured less one."""
    sign = -1.0 if row.metric in RATES else 1.0
    held = None if row.held_out_error is None else math.expm1(sign * row.held_out_error)
    return {
        "point": row.point.label,
        "metric": row.metric,
        "measured": row.point.measured[row.metric],
        "before_error": math.expm1(sign * row.before_error),
        "after_error": math.expm1(sign * row.after_error),
        "left_out_error": held,
    }


__all__ = ["Outcome", "as_dict", "calibrate_results", "calibrate_whole_steps", "known_of"]
