"""Fit an engine's overheads to measured runs, and judge the fit by leaving whole groups out.

The unknowns are few and enter the step time almost linearly, so a Gauss-Newton iteration on the logarithms of the ratios
predicted / measured (mean ITL and mean TTFT of whole runs, soft-l1 loss) converges in a few rounds; each round simulates
every run once per unknown. Leaving a group out re-solves the linearised problem around the full solution without its rows.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_models.overheads import FOLDER, load_overheads, overheads_from
from hardware_profiles.errors import InputError
from simulator.validation.evidence import engine_of, hardware_class
from simulator.validation.runs import predict
from simulator.validation.suite import (
    Experiment,
    Unplayable,
    base_id,
    group_runs,
    plan_experiment,
    read_suite,
    workload_lengths,
)

FITTED = {
    "front_end_s": ("s", 0.004, "client, HTTP, detokeniser, hand-over to the engine: added to TTFT and E2E"),
    "sort_step_s": ("s", 0.0002, "truncated (top-p, top-k) sampling: chain of uncaptured kernels, a step"),
    "sort_bytes_per_logit": ("byte", 100.0, "truncated sampling: memory traffic of the sort a logit"),
}
"""The unknowns: unit, step of the finite difference, meaning."""

TARGETS = ("itl_mean_corrected_ms", "ttft_mean_ms")
SOFT = 0.05
"""Scale of the soft-l1 loss in log units: errors beyond about 5 % weigh less than quadratically. Kind: assumed."""


@dataclass
class Fit:
    """A solution: values by name, log errors per row of the problem, and the Jacobian around it."""

    values: dict[str, float]
    rows: list[tuple[dict[str, Any], str]]
    log_errors: NDArray[np.float64]
    jacobian: NDArray[np.float64]


def _experiments(directory: Path, engine: str) -> list[Experiment]:
    rows = read_suite(directory)
    lengths = workload_lengths(rows)
    out = []
    for group in group_runs(rows):
        whole = [r for r in group if r.get("stage_index", -1) == -1]
        if not whole or whole[0].get("saturated") or engine_of(whole[0]) != engine:
            continue
        if hardware_class(whole[0]) != "measured" or not all(t in whole[0] for t in TARGETS):
            continue
        try:
            out.append(plan_experiment((whole[0],), directory, lengths))
        except Unplayable:
            continue
    return out


def _log_errors(experiment: Experiment, values: dict[str, float]) -> list[float]:
    row = experiment.rows[0]
    shipped = {name: float(entry["value"]) for name, entry in load_overheads(engine_of(row)).provenance.items()}
    predicted = predict(experiment, overheads_from(shipped | values, {}))[row["id"]]
    return [math.log(predicted[target][0] / row[target]) for target in TARGETS]


def _evaluate(experiments: list[Experiment], points: list[dict[str, float]], workers: int) -> NDArray[np.float64]:
    """Log errors of every point, shape (points, 2 * experiments)."""
    from joblib import Parallel, delayed

    jobs = [(e, values) for values in points for e in experiments]
    found = Parallel(n_jobs=workers)(delayed(_log_errors)(e, values) for e, values in jobs)
    return np.array(found, dtype=float).reshape(len(points), -1)


def _solve(errors: NDArray[np.float64], jacobian: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimise the soft-l1 loss of the linearised problem under values >= 0; returns the new values."""
    from scipy.optimize import least_squares

    scale = np.array([spec[1] for spec in FITTED.values()])
    solved = least_squares(
        lambda x: errors + jacobian @ (x - start / scale),
        np.maximum(start / scale, 1e-6),
        bounds=(0.0, np.inf),
        loss="soft_l1",
        f_scale=SOFT,
    )
    return np.asarray(solved.x * scale)


def fit(directory: Path, engine: str, workers: int = 2, rounds: int = 3, progress: Callable[[str], None] | None = None) -> Fit:
    """Fit the engine's overheads to the suite's whole, unsaturated runs on hardware with end-to-end measurements."""
    experiments = _experiments(directory, engine)
    if len(experiments) < 5:
        raise InputError(
            f"only {len(experiments)} runs of {engine} can be used, five are needed",
            where=str(directory),
            mend="whole runs that are not saturated, with mean TTFT and mean ITL",
        )
    names = list(FITTED)
    shipped = load_overheads(engine).provenance
    values = np.array([float(shipped[name]["value"]) for name in names])
    errors, jacobian = np.zeros(0), np.zeros((0, len(names)))
    for number in range(rounds):
        points = [dict(zip(names, values, strict=True))]
        for i, name in enumerate(names):
            moved = values.copy()
            moved[i] += FITTED[name][1]
            points.append(dict(zip(names, moved, strict=True)))
        found = _evaluate(experiments, points, workers)
        errors, jacobian = found[0], (found[1:] - found[0]).T
        new = _solve(errors, jacobian, values)
        if progress:
            progress(f"round {number + 1}: " + ", ".join(f"{n} {v:.6g}" for n, v in zip(names, new, strict=True)))
        moved_by = np.abs(new - values) / np.array([spec[1] for spec in FITTED.values()])
        errors = errors + jacobian @ ((new - values) / np.array([spec[1] for spec in FITTED.values()]))
        values = new
        if float(moved_by.max()) < 0.02:
            break
    rows = [(e.rows[0], target) for e in experiments for target in TARGETS]
    return Fit(dict(zip(names, values.tolist(), strict=True)), rows, errors, jacobian)


def leave_out(fitted: Fit, group_of: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """Refit without each group in turn; the median absolute error [%] on it by target, and the values found."""
    scale = np.array([spec[1] for spec in FITTED.values()])
    start = np.array(list(fitted.values.values()))
    groups = [group_of(row) for row, _ in fitted.rows]
    out = []
    for group in sorted(set(groups)):
        inside = np.array([g == group for g in groups])
        values = _solve(fitted.log_errors[~inside], fitted.jacobian[~inside], start)
        held = fitted.log_errors[inside] + fitted.jacobian[inside] @ ((values - start) / scale)
        targets = np.array([t for _, t in fitted.rows])[inside]
        out.append(
            {
                "group": group,
                "runs": int((targets == TARGETS[0]).sum()),
                "values": dict(zip(FITTED, values.tolist(), strict=True)),
                **{t: float(np.median(np.abs(np.expm1(held[targets == t]))) * 100) for t in TARGETS},
            }
        )
    return out


def write(fitted: Fit, engine: str, directory: Path) -> Path:
    """Write the fitted values as the engine's shipped overheads."""
    models = sorted({str(row["model"]).rsplit("/", 1)[-1] for row, _ in fitted.rows})
    path = FOLDER / f"{engine}.json"
    entries = {
        name: {
            "value": float(f"{value:.4g}"),
            "unit": FITTED[name][0],
            "kind": "fitted",
            "date": datetime.date.today().isoformat()[:7],
            "meaning": FITTED[name][2],
            "source": f"{len({base_id(r) for r, _ in fitted.rows})} measured runs of {engine} on H100 ({', '.join(models)}); "
            "inference-sim, training and sim-to-real suites",
        }
        for name, value in fitted.values.items()
    }
    kept = {name: entry for name, entry in load_overheads(engine).provenance.items() if name not in entries}
    path.write_text(json.dumps(entries | kept, indent=1) + "\n", encoding="utf-8")
    return path
