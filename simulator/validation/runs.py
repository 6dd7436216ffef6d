"""Replay measured experiments and compare: error per metric, and whether the stated interval held."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine_models.cost.overheads import Overheads
from hardware_profiles.errors import PlanError
from simulator.cluster.outcome import ClusterResult
from simulator.prepared import Prepared
from simulator.results.intervals import Evidence, center, half_width, interval, rate_width, share_of_queue
from simulator.results.latencies import Latencies, latencies
from simulator.results.statistics import statistics
from simulator.validation.contradictions import sift
from simulator.validation.evidence import kinds, source_of
from simulator.validation.launches import launch_of
from simulator.validation.one_factor import one_factors
from simulator.validation.spellings import Unplayable
from simulator.validation.suite import (
    METRICS,
    Experiment,
    base_id,
    group_runs,
    plan_experiment,
    read_suite,
    workload_lengths,
)

if TYPE_CHECKING:
    from simulator.run import RunResult

UNREADABLE = (KeyError, ValueError, TypeError, IndexError, AttributeError, ArithmeticError, OSError)
"""What the values of a damaged row or file may raise: the row is left out with the reason, the others are judged."""


class Prediction(NamedTuple):
    """A predicted value, its 90 % interval, the shares of queueing and of TTFT in it, and what it rests on."""

    value: float
    interval: list[float] | None
    queue_share: float
    ttft_share: float
    rests_on: dict[str, Any]


def predict(experiment: Experiment, overheads: Overheads | None = None) -> dict[str, dict[str, Prediction]]:
    """Simulate one experiment; predicted metrics by row id. `overheads` replaces the engine's own."""
    from simulator.calibrated import used_ranges
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare
    from simulator.results.domain import domain
    from simulator.run import run_prepared

    scenario = load_scenario(experiment.scenario)
    prepared = _as_launched(prepare(scenario), experiment, overheads)
    run = run_prepared(prepared, workload=experiment.workload)
    raw = run.raw
    lat = latencies(raw)
    if experiment.start_s:
        late_ms = np.where(experiment.workload.predecessor == -1, experiment.start_s * 1e3, 0.0)
        lat = replace(lat, ttft_ms=lat.ttft_ms + late_ms, e2el_ms=lat.e2el_ms + late_ms)
    evidence, _ = domain(prepared, used_ranges(run.result))
    evidence = replace(
        evidence,
        closed_loop=bool(np.isnan(experiment.workload.arrival_s).any()),
        launch_known=launch_of(experiment.rows[0]).confidence != "none",
        source=source_of(experiment.rows[0]),
    )
    out: dict[str, dict[str, Prediction]] = {}
    for row in experiment.rows:
        stage = int(row.get("stage_index", -1))
        whole = stage < 0 or bool((experiment.stage_of < 0).all())  # a file of its own holds one stage
        mask = np.ones(len(raw.status), dtype=bool) if whole else experiment.stage_of == stage
        mask &= experiment.judged
        if not mask.any():
            continue
        out[row["id"]] = predictions(run, lat, evidence, mask)
    return out


def predictions(run: RunResult, lat: Latencies, evidence: Evidence, mask: NDArray[np.bool_]) -> dict[str, Prediction]:
    """The metrics of a suite over some requests of a run, with their intervals."""
    raw = run.raw
    values = row_metrics(raw, lat, mask)
    queue = lat.queue_ms[mask]
    queue = queue[~np.isnan(queue)]
    arrived, ended = raw.arrival_s[mask], raw.end_s[mask]
    span = float(np.nanmax(ended) - np.nanmin(arrived)) if (~np.isnan(ended) & ~np.isnan(arrived)).any() else 0.0
    rate = rate_width(evidence, values.get("e2e_mean_ms", 0.0) / 1e3, span, run.result["overload"] is not None)
    rests_on = asdict(evidence)
    return {name: Prediction(value, *_interval(name, values, queue, rate, evidence), rests_on) for name, value in values.items()}


def _as_launched(prepared: Prepared, experiment: Experiment, overheads: Overheads | None) -> Prepared:
    """A deployment with what is published of its launch, in each of its pools."""
    plan = prepared.plan
    if overheads is not None:
        own = plan.costs.terms.host  # what follows from flags stays
        host = replace(
            overheads.host,
            prefill_launch_s=overheads.host.prefill_launch_s if own.prefill_launch_s else 0.0,
            prefill_graph_tokens=own.prefill_graph_tokens,
        )
        front = replace(plan.front, before_s=overheads.front_end_s, tokenise_token_s=overheads.tokenise_token_s)
        plan = replace(plan, costs=plan.costs.with_terms(host=host), front=front)
    plan = replace(
        plan, costs=plan.costs.with_terms(**experiment.costs), front=replace(plan.front, **experiment.front)
    )
    if experiment.host_cores is not None:
        ranks = max(1, prepared.devices // prepared.replicas)
        own = plan.costs.terms.host
        shared = replace(own, launch_s=own.launch_s * max(1.0, ranks / experiment.host_cores))
        plan = replace(plan, costs=plan.costs.with_terms(host=shared))
    if experiment.fresh and plan.first_use is not None:
        plan = replace(plan, costs=replace(plan.costs, first_use=plan.first_use))
    if experiment.in_process:
        plan = replace(plan, front=replace(plan.front, before_s=0.0, tokenise_token_s=0.0, loop=None))
    pools = tuple(_as_launched(pool, experiment, overheads) for pool in prepared.pools)
    return replace(prepared, plan=plan, pools=pools)


def _interval(
    column: str, values: dict[str, float], queue_ms: NDArray[np.float64], rate_log_width: float, evidence: Evidence
) -> tuple[list[float] | None, float, float]:
    """The interval of a column, and the shares of queueing and of TTFT in it."""
    from simulator.validation.intervals import split_name

    value = values[column]
    if column.endswith(("_rps", "_tok_s")):
        return interval(value, rate_log_width, center(evidence, "throughput")), 0.0, 0.0
    named = ("tpot", "mean") if column.startswith("itl_mean") else split_name(column)
    if named is None:
        return None, 0.0, 0.0
    waiting = first = 0.0
    if named[0] in ("ttft", "e2e") and len(queue_ms):
        wait = float(queue_ms.mean()) if named[1] == "mean" else float(np.percentile(queue_ms, float(named[1][1:])))
        waiting = share_of_queue(wait, values.get("tpot_p50_ms", 0.0), value)
        first = min(1.0, values[f"ttft_{named[1]}_ms"] / value) if value > 0 else 0.0
    width, _ = half_width(evidence, *named, waiting, first)
    return interval(value, width, center(evidence, named[0], first)), waiting, first


def row_metrics(raw: ClusterResult, lat: Latencies, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Predicted values of the suite's metric columns over some requests."""
    out: dict[str, float] = {}
    for name, values in (("ttft", lat.ttft_ms), ("e2e", lat.e2el_ms), ("tpot", lat.tpot_ms)):
        found = statistics(values[mask], "ms")
        if found["count"]:
            out |= {f"{name}_{key}_ms": found[key] for key in ("mean", "p50", "p90", "p95", "p99")}
    tokens = raw.output_tokens[mask].astype(float)
    if "e2e_mean_ms" in out and tokens.mean() > 1:
        out["itl_mean_corrected_ms"] = (out["e2e_mean_ms"] - out["ttft_mean_ms"]) / (float(tokens.mean()) - 1)
        out["itl_mean_ms"] = out["itl_mean_corrected_ms"]
    done = mask & ~np.isnan(raw.end_s)
    if done.any():
        span = float(raw.end_s[done].max() - np.nanmin(raw.arrival_s[mask]))
        if span > 0:
            out["request_throughput_rps"] = float(done.sum()) / span
            out["output_throughput_tok_s"] = float(raw.output_tokens[done].sum()) / span
            out["total_throughput_tok_s"] = float((raw.output_tokens[done] + raw.prompt_tokens[done]).sum()) / span
    return out


def validate_runs(
    directory: Path, only: tuple[str, ...] = (), workers: int = 1, progress: Any = None
) -> dict[str, Any]:
    """Replay every run of a suite that can be replayed.

    Returns the JSON form of `validate runs`: `experiments` (id, metric, measured, predicted, abs_pct_error, interval, covered,
    queue_share, ttft_share), `skipped` (id, reason), `medians` by metric over whole runs that were not saturated, `one_factor`.
    """
    rows, unfit = sift(read_suite(directory))
    lengths = workload_lengths(rows)
    skipped = [entry for entry in unfit if not only or any(word in entry["id"] for word in only)]
    planned: list[Experiment] = []
    for group in group_runs(rows):
        if only and not any(word in row["id"] for word in only for row in group):
            continue
        try:
            planned.append(plan_experiment(group, directory, lengths))
        except Unplayable as reason:
            skipped.extend({"id": row["id"], "reason": str(reason)} for row in group)
        except UNREADABLE as error:
            words = f"row cannot be read: {type(error).__name__}: {error}"[:200]
            skipped.extend({"id": row["id"], "reason": words} for row in group)
    outcomes = _predict_all(planned, workers, progress)
    experiments: list[dict[str, Any]] = []
    for experiment, outcome in zip(planned, outcomes, strict=True):
        if isinstance(outcome, str):
            skipped.extend({"id": row["id"], "reason": outcome} for row in experiment.rows)
            continue
        for row in experiment.rows:
            predicted = outcome.get(row["id"])
            if predicted is None:
                skipped.append({"id": row["id"], "reason": "no request of this stage"})
                continue
            experiments.extend(_compare(row, predicted))
    hosts = [asdict(found) for found in one_factors(_told(experiments, rows))]
    return {"experiments": experiments, "skipped": skipped, "medians": medians(experiments, rows), "one_factor": hosts}


def _told(experiments: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The errors of whole, trusted runs, as `one_factors` reads them."""
    known = kinds(rows)
    out = []
    for entry in experiments:
        if (kind := known.get(entry["id"])) is not None:
            group = {"source": kind.source, "engine": kind.evidence.engine, "gpu": kind.hardware, "family": kind.model}
            out.append({**entry, "reported": entry["measured"], "group": group})
    return out


def _attempt(experiment: Experiment) -> dict[str, dict[str, Prediction]] | str:
    try:
        return predict(experiment)
    except PlanError as error:
        return error.message
    except (RuntimeError, NotImplementedError) as error:
        return f"not modelled: {error}"
    except UNREADABLE as error:
        return f"internal error: {type(error).__name__}: {error}"[:200]


def _predict_all(planned: list[Experiment], workers: int, progress: Any) -> list[dict[str, dict[str, Prediction]] | str]:
    if workers <= 1 or len(planned) < 4:
        out = []
        for number, experiment in enumerate(planned):
            if progress:
                progress(f"{number + 1}/{len(planned)} {base_id(experiment.rows[0])}")
            out.append(_attempt(experiment))
        return out
    from joblib import Parallel, delayed

    return list(Parallel(n_jobs=workers)(delayed(_attempt)(experiment) for experiment in planned))


def _compare(row: dict[str, Any], predicted: dict[str, Prediction]) -> list[dict[str, Any]]:
    out = []
    for metric in METRICS:
        measured = row.get(metric)
        if not isinstance(measured, int | float) or measured <= 0 or metric not in predicted:
            continue
        found = predicted[metric]
        out.append(
            {
                "id": row["id"],
                "metric": metric,
                "measured": float(measured),
                "predicted": found.value,
                "abs_pct_error": abs(found.value / measured - 1) * 100,
                "interval": found.interval,
                "covered": found.interval[0] <= measured <= found.interval[1] if found.interval else None,
                "queue_share": found.queue_share,
                "ttft_share": found.ttft_share,
                "rests_on": found.rests_on,
            }
        )
    return out


def medians(experiments: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median absolute error by metric over whole runs that were not saturated."""
    whole = {row["id"] for row in rows if row.get("stage_index", -1) == -1 and not row.get("saturated")}
    by_metric: dict[str, list[float]] = {}
    for e in experiments:
        if e["id"] in whole:
            by_metric.setdefault(e["metric"], []).append(e["abs_pct_error"])
    return {metric: float(np.median(errors)) for metric, errors in by_metric.items()}
