"""Fit an engine's overheads to measured runs, and judge the fit by leaving whole groups out.

The unknowns are few and enter the step time almost linearly, so a Gauss-Newton iteration on the logarithms of the ratios
predicted / measured (mean time per output token and mean TTFT of whole runs, soft-l1 loss) converges in a few rounds; each round
simulates every run once per unknown. Leaving a group out re-solves the linearised problem around the full solution without its
rows.

vLLM: runs of open load on H100, both metrics; what a launch costs, by the time per output token of runs without CUDA graphs
(`vllm-eager`). SGLang: time per output token of runs without overlap, where the host's time shows, and TTFT of warmed-up closed
loops, of which those in fp8 on B200 are left out (their prefill kernels are too quick by more than the unknown is).
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_models.cost.overheads import FOLDER, load_overheads, overheads_from, own_overheads
from hardware_profiles.errors import InputError
from simulator.validation.evidence import engine_of, hardware_class
from simulator.validation.launches import compiles_while_measured, start_s
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

Unknowns = dict[str, tuple[str, float, str]]
"""Name of an unknown -> unit, step of the finite difference, meaning."""

FITTED: dict[str, Unknowns] = {
    "vllm": {
        "front_end_s": ("s", 0.004, "client, HTTP, detokeniser, hand-over to the engine: added to TTFT and E2E"),
        "sort_cycles_per_logit": ("cycle", 8.0, "truncated sampling by sorting: cycles of one multiprocessor a logit"),
        "reduce_wait_s": (
            "s",
            1e-6,
            "wait for the slowest rank at an all-reduce, beyond its time in a benchmark of aligned ranks",
        ),
    },
    "vllm-eager": {
        "launch_s": ("s", 2e-6, "host time to launch one operation outside CUDA graphs (enforce_eager)"),
        "expert_launches": (
            "launch",
            2.0,
            "launches that the experts of a layer cost the host outside CUDA graphs, counted in plain operations",
        ),
    },
    "sglang": {
        "serial_step_s": (
            "s",
            0.001,
            "host time of a step where it does not overlap with the device: batch, inputs, launch, read-back, results",
        ),
        "row_s": ("s", 1e-5, "host time of a step per row: results, streaming, next batch; hidden under overlap"),
        "start_s": (
            "s",
            0.5,
            "what the first request of each user waits longer when a closed loop starts; replays of InferenceX only, "
            "in no simulation",
        ),
    },
}
"""The unknowns of an engine, or of its runs without CUDA graphs (`-eager`)."""

TARGETS: dict[str, tuple[str, ...]] = {
    "vllm": ("itl_mean_corrected_ms", "ttft_mean_ms"),
    "vllm-eager": ("tpot_mean_ms",),
    "sglang": ("tpot_mean_ms", "ttft_mean_ms"),
}
"""Metrics of an engine's runs: time per output token, time to first token."""
LEAST_RUNS = {"vllm-eager": 2}
"""Runs that a fit needs, where not five."""
TOLD_BY = {"serial_step_s": "tpot_mean_ms", "row_s": "tpot_mean_ms", "start_s": "ttft_mean_ms"}
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


def _file_of(engine: str) -> str:
    """Name of the overheads in which the unknowns of a fit stand."""
    return engine.partition("-")[0]


def targets_of(row: dict[str, Any], engine: str, overlaps: bool = True) -> tuple[str, ...]:
    """Metrics of a row to which the unknowns of its engine are fitted; `overlaps`: its host works while the device does."""
    token, first = TARGETS[engine][0], TARGETS[engine][-1]
    if engine == "vllm-eager":
        return (token,) if token in row else ()
    if engine != "sglang":
        known = hardware_class(row) == "measured" and token in row and first in row
        return (token, first) if known else ()
    if not overlaps:
        return (token,) if token in row else ()
    off = row.get("precision") == "fp8" and str(row["hardware"]).lower().startswith("b200")
    return (first,) if first in row and start_s(row) and not off and not compiles_while_measured(row) else ()


def _experiments(directory: Path, engine: str) -> Problem:
    rows = read_suite(directory)
    lengths = workload_lengths(rows)
    out: Problem = []
    seen: set[tuple[Any, ...]] = set()
    for group in group_runs(rows):
        whole = [r for r in group if r.get("stage_index", -1) == -1]
        if not whole or whole[0].get("saturated") or engine_of(whole[0]) != _file_of(engine):
            continue
        try:
            experiment = plan_experiment((whole[0],), directory, lengths)
        except Unplayable:
            continue
        args = experiment.scenario["deployment"]["engine_args"]
        overlaps = not args.get("disable_overlap_schedule", False)
        if bool(args.get("enforce_eager", False)) != engine.endswith("-eager"):
            continue
        targets = targets_of(whole[0], engine, overlaps)
        outcome = tuple(whole[0][t] for t in targets)
        if targets and outcome not in seen:  # a sample may hold a run twice
            seen.add(outcome)
            out.append((experiment, targets))
    return out


def _log_errors(experiment: Experiment, targets: tuple[str, ...], values: dict[str, float]) -> list[float]:
    row = experiment.rows[0]
    shipped = {name: float(entry["value"]) for name, entry in load_overheads(engine_of(row)).provenance.items()}
    if "start_s" in values and experiment.start_s:
        experiment = replace(experiment, start_s=values["start_s"])
    used = shipped | values
    if experiment.scenario["deployment"]["engine_args"].get("disable_overlap_schedule"):
        used["step_s"] = used["serial_step_s"]
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
    return np.array([spec[1] for spec in FITTED[engine].values()])


def fit(directory: Path, engine: str, workers: int = 2, rounds: int = 3, progress: Callable[[str], None] | None = None) -> Fit:
    """Fit the engine's overheads to whole, unsaturated runs of the suite that tell them (`targets_of`)."""
    if engine not in FITTED:
        raise InputError(f"no overheads of '{engine}' are fitted", where="--engine", mend=f"one of {', '.join(FITTED)}")
    problem = _experiments(directory, engine)
    least = LEAST_RUNS.get(engine, 5)
    if len(problem) < least:
        raise InputError(
            f"only {len(problem)} runs of {engine} can be used, {least} are needed",
            where=str(directory),
            mend=f"whole runs that are not saturated, with {' and '.join(TARGETS[engine])}",
        )
    names, scale = list(FITTED[engine]), _scale(engine)
    shipped = own_overheads(_file_of(engine))
    values = np.array([float(shipped[name]["value"]) for name in names])
    rows = [(e.rows[0], target) for e, targets in problem for target in targets]
    tells = np.array([[TOLD_BY.get(name, target) == target for name in names] for _, target in rows])
    errors, jacobian = np.zeros(0), np.zeros((0, len(names)))
    for number in range(rounds):
        points = [dict(zip(names, values, strict=True))]
        for i, name in enumerate(names):
            moved = values.copy()
            moved[i] += FITTED[engine][name][1]
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
    scale = _scale(fitted.engine)
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
        errors = {t: np.abs(np.expm1(held[targets == t])) * 100 for t in TARGETS[fitted.engine]}
        out.append(
            {
                "group": group,
                "runs": max(len(found) for found in errors.values()),
                "values": dict(zip(FITTED[fitted.engine], values.tolist(), strict=True)),
                **{t: float(np.median(found)) if len(found) else math.nan for t, found in errors.items()},
            }
        )
    return out


def write(fitted: Fit, engine: str, directory: Path) -> Path:
    """Write the fitted values as the engine's shipped overheads."""
    path = FOLDER / f"{_file_of(engine)}.json"
    entries = {
        name: {
            "value": float(f"{value:.4g}"),
            "unit": FITTED[engine][name][0],
            "kind": "fitted",
            "date": datetime.date.today().isoformat()[:7],
            "meaning": FITTED[engine][name][2],
            "source": _source(fitted, engine, name),
        }
        for name, value in fitted.values.items()
    }
    kept = {name: entry for name, entry in own_overheads(_file_of(engine)).items() if name not in entries}
    path.write_text(json.dumps(entries | kept, indent=1) + "\n", encoding="utf-8")
    own_overheads.cache_clear()
    load_overheads.cache_clear()
    return path


def _source(fitted: Fit, engine: str, name: str) -> str:
    """Return which runs tell an unknown."""
    if engine == "vllm":
        where, suites, told = "H100", "inference-sim, training and sim-to-real suites", fitted.rows
    elif engine == "vllm-eager":
        engine, where, told = "vllm 0.13 with --enforce-eager", "H100", fitted.rows
        suites = "LLMServingSim 2.0 artifact, figure 8, TPOT; a vLLM of 2023, eager too, has that of 30 us (splitwise-sim)"
    else:
        target = TARGETS[engine][name == "start_s"]
        told = [(row, t) for row, t in fitted.rows if t == target]
        where = " and ".join(sorted({str(row["hardware"]).split("-")[0] for row, _ in told}))
        by_nvidia = "NVIDIA's own, through Dynamo, scheduling taken for synchronous"
        suites = f"silicon sample of aiconfigurator: {'InferenceX' if name == 'start_s' else by_nvidia}"
    models = sorted({str(row["model"]).rsplit("/", 1)[-1] for row, _ in told})
    return f"{len({base_id(r) for r, _ in told})} measured runs of {engine} on {where} ({', '.join(models)}); {suites}"
