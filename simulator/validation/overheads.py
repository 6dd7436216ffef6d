"""Fit an engine's overheads to measured runs, and judge the fit by leaving whole groups out.

The unknowns are few and enter the step time almost linearly, so a Gauss-Newton iteration on the logarithms of the ratios
predicted / measured (mean time per output token and mean TTFT of whole runs, soft-l1 loss) converges in a few rounds; each round
simulates every run once per unknown. Leaving a group out re-solves the linearised problem around the full solution without its
rows.

What is fitted to which runs stands with each engine's published launches (`FITTINGS` of `simulator.validation.engines`).
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_models.cost.overheads import FOLDER, load_overheads, overheads_from, own_overheads
from engine_models.engines.known import engine_named
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.validation.engines import FITTINGS
from simulator.validation.evidence import engine_of, hardware_class
from simulator.validation.published import Fitting
from simulator.validation.runs import predict
from simulator.validation.spellings import Unplayable
from simulator.validation.suite import (
    Experiment,
    base_id,
    group_runs,
    plan_experiment,
    read_suite,
    workload_lengths,
)

TOLD_BY = {"start_s": "ttft_mean_ms"}
"""Unknown -> the metric that tells it, where it is one alone: its small effect on the other is left to the noise."""
SOFT = 0.05
"""Scale of the soft-l1 loss in log units: errors beyond about 5 % weigh less than quadratically. Kind: assumed."""


@dataclass
class Fit:
    """A solution: values by name, log errors per row of the problem, and the Jacobian around it."""

    engine: str
    values: dict[str, float]
    rows: list[tuple[dict[str, Any], str]]
    log_errors: NDArray[np.float64]
    jacobian: NDArray[np.float64]


Problem = list[tuple[Experiment, tuple[str, ...]]]
"""Experiments and the metrics of each that are fitted."""


def _experiments(directory: Path, name: str) -> Problem:
    engine, fitting = FITTINGS[name]
    rows = read_suite(directory)
    lengths = workload_lengths(rows)
    out: Problem = []
    seen: set[tuple[Any, ...]] = set()
    for group in group_runs(rows):
        whole = [r for r in group if r.get("stage_index", -1) == -1]
        if not whole or whole[0].get("saturated") or engine_of(whole[0]) != engine:
            continue
        try:
            experiment = plan_experiment((whole[0],), directory, lengths)
        except Unplayable:
            continue
        args = experiment.scenario["deployment"].get("engine_args") or {}
        if bool(args.get("enforce_eager", False)) != fitting.eager:
            continue
        targets = fitting.told(whole[0], args, hardware_class(whole[0]) == "measured")
        outcome = tuple(whole[0][t] for t in targets)
        if targets and outcome not in seen:  # a sample may hold a run twice
            seen.add(outcome)
            out.append((experiment, targets))
    return out


def _log_errors(experiment: Experiment, targets: tuple[str, ...], values: dict[str, float]) -> list[float]:
    row = experiment.rows[0]
    engine = engine_named(engine_of(row))
    own = load_overheads(engine.name, engine.overheads_from).provenance
    shipped = {name: float(entry["value"]) for name, entry in own.items()}
    if "start_s" in values and experiment.start_s:
        experiment = replace(experiment, start_s=values["start_s"])
    used = shipped | values
    predicted = predict(experiment, overheads_from(used, {}))[row["id"]]
    return [math.log(predicted[target][0] / row[target]) for target in targets]


def _evaluate(problem: Problem, points: list[dict[str, float]], workers: int) -> NDArray[np.float64]:
    """Log errors of every point, shape (points, rows of the problem)."""
    from joblib import Parallel, delayed

    jobs = [(e, targets, values) for values in points for e, targets in problem]
    found = Parallel(n_jobs=workers)(delayed(_log_errors)(*job) for job in jobs)
    return np.array([error for errors in found for error in errors], dtype=float).reshape(len(points), -1)


def _solve(
    errors: NDArray[np.float64], jacobian: NDArray[np.float64], start: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Minimise the soft-l1 loss of the linearised problem under values >= 0; returns the new values."""
    from scipy.optimize import least_squares

    solved = least_squares(
        lambda x: errors + jacobian @ (x - start / scale),
        np.maximum(start / scale, 1e-6),
        bounds=(0.0, np.inf),
        loss="soft_l1",
        f_scale=SOFT,
    )
    return np.asarray(solved.x * scale)


def _scale(engine: str) -> NDArray[np.float64]:
    return np.array([step for _, step, _ in FITTINGS[engine][1].unknowns.values()])


def fit(directory: Path, engine: str, workers: int = 2, rounds: int = 3, progress: Callable[[str], None] | None = None) -> Fit:
    """Fit the engine's overheads to whole, unsaturated runs of the suite that tell them (`Fitting.told`)."""
    if engine not in FITTINGS:
        raise InputError(f"no overheads of '{engine}' are fitted", where="--engine", mend=f"one of {', '.join(FITTINGS)}")
    file, fitting = FITTINGS[engine]
    problem = _experiments(directory, engine)
    least = fitting.least_runs
    if len(problem) < least:
        raise InputError(
            f"only {len(problem)} runs of {engine} can be used, {least} are needed",
            where=str(directory),
            mend=f"whole runs that are not saturated, with {' and '.join(fitting.targets)}",
        )
    names, scale = list(fitting.unknowns), _scale(engine)
    shipped = own_overheads(file)
    values = np.array([float(shipped[name]["value"]) for name in names])
    rows = [(e.rows[0], target) for e, targets in problem for target in targets]
    tells = np.array([[TOLD_BY.get(name, target) == target for name in names] for _, target in rows])
    errors, jacobian = np.zeros(0), np.zeros((0, len(names)))
    for number in range(rounds):
        points = [dict(zip(names, values, strict=True))]
        for i in range(len(names)):
            moved = values.copy()
            moved[i] += scale[i]
            points.append(dict(zip(names, moved, strict=True)))
        found = _evaluate(problem, points, workers)
        errors, jacobian = found[0], np.where(tells, (found[1:] - found[0]).T, 0.0)
        new = _solve(errors, jacobian, values, scale)
        if progress:
            progress(f"round {number + 1}: " + ", ".join(f"{n} {v:.6g}" for n, v in zip(names, new, strict=True)))
        moved_by = np.abs(new - values) / scale
        errors = errors + jacobian @ ((new - values) / scale)
        values = new
        if float(moved_by.max()) < 0.02:
            break
    return Fit(engine, dict(zip(names, values.tolist(), strict=True)), rows, errors, jacobian)


def leave_out(fitted: Fit, group_of: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """Refit without each group in turn; the median absolute error [%] on it by target (NaN: not fitted), and the values found."""
    scale, fitting = _scale(fitted.engine), FITTINGS[fitted.engine][1]
    start = np.array(list(fitted.values.values()))
    groups = [group_of(row) for row, _ in fitted.rows]
    out = []
    for group in sorted(set(groups)):
        inside = np.array([g == group for g in groups])
        if inside.all():
            continue
        values = _solve(fitted.log_errors[~inside], fitted.jacobian[~inside], start, scale)
        held = fitted.log_errors[inside] + fitted.jacobian[inside] @ ((values - start) / scale)
        targets = np.array([t for _, t in fitted.rows])[inside]
        errors = {t: np.abs(np.expm1(held[targets == t])) * 100 for t in fitting.targets}
        out.append(
            {
                "group": group,
                "runs": max(len(found) for found in errors.values()),
                "values": dict(zip(fitting.unknowns, values.tolist(), strict=True)),
                **{t: float(np.median(found)) if len(found) else math.nan for t, found in errors.items()},
            }
        )
    return out


def write(fitted: Fit, engine: str, directory: Path) -> Path:
    """Write the fitted values as the engine's shipped overheads."""
    file, fitting = FITTINGS[engine]
    path = FOLDER / f"{file}.json"
    entries = {
        name: {
            "value": float(f"{value:.4g}"),
            "unit": fitting.unknowns[name][0],
            "kind": "fitted",
            "date": datetime.date.today().isoformat()[:7],
            "meaning": fitting.unknowns[name][2],
            "source": _source(fitted, fitting, name),
        }
        for name, value in fitted.values.items()
    }
    kept = {name: entry for name, entry in own_overheads(file).items() if name not in entries}
    path.write_text(json.dumps(entries | kept, indent=1) + "\n", encoding="utf-8")
    own_overheads.cache_clear()
    load_overheads.cache_clear()
    return path


def _source(fitted: Fit, fitting: Fitting, name: str) -> str:
    """Return which runs tell an unknown."""
    told = [row for row, target in fitted.rows if TOLD_BY.get(name, target) == target]
    what, where, suites = fitting.runs(name, told)
    models = sorted({str(row["model"]).rsplit("/", 1)[-1] for row in told})
    return f"{len({base_id(row) for row in told})} measured runs of {what} on {where} ({', '.join(models)}); {suites}"
