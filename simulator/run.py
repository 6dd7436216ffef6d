"""From a scenario to a result: resolve, simulate, judge, price.

    prepare(scenario)   resolves every name to facts and refuses what cannot be (no simulation)
    simulate(scenario)  runs it and returns the result, the request table, the timeline and the manifest

A run of up to `STREAM_ABOVE` requests is held in memory and counted exactly; a larger one is streamed
(`simulator.streamed`): its requests are written to the table as they end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine_models.cost.drafting import AcceptanceStreams
from engine_models.declaration import EnginePlan
from engine_models.lengths import judged
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import FINISHED, NOT_ARRIVED, REJECTED, ClusterResult
from simulator.cost import Usage, run_cost
from simulator.io.tables import Column
from simulator.limits import all_refused, cuts, refusals
from simulator.prepare import Prepared, deployment_summary, prepare
from simulator.results import metrics
from simulator.results.domain import device_sources, domain, kernel_sources
from simulator.results.figures import Figures, Measured, exact_figures, slo_dict
from simulator.results.intervals import add_intervals
from simulator.results.request_table import request_table
from simulator.results.timeline import timeline
from simulator.version import SCHEMA_VERSION, VERSION
from simulator.workload.columns import Workload
from simulator.workload.streams import stream

if TYPE_CHECKING:
    from simulator.config.schema import Scenario
    from simulator.streamed import Scratch
    from simulator.workload.streaming import WorkloadStream

STREAM_ABOVE = 500_000
"""Requests above which a run is streamed, if its workload can be (`simulator.workload.streaming`)."""


@dataclass
class RunResult:
    """Everything a run yields: `result` is result.json, the others the tables and the manifest.

    `requests` are the columns of the request table or, of a streamed run, the file that holds it. `raw` and `workload` hold the
    requests of a run in memory; of a streamed run they hold its totals alone, and `scratch` the folder of its table, which goes
    with this object.
    """

    result: dict[str, Any]
    requests: Mapping[str, Column] | Path
    timeline: dict[str, NDArray[Any]]
    manifest: dict[str, Any]
    name: str
    digest: str
    raw: ClusterResult
    workload: Workload
    measured: Measured | None = field(repr=False, default=None)
    scratch: Scratch | None = field(repr=False, default=None)

    @property
    def gaps(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Gaps between tokens [s] of the finished requests in the window, and how often each occurs."""
        if self.measured is None:
            return np.zeros(0), np.zeros(0, np.int64)
        values, weights = metrics.token_gaps(self.raw, self.measured.inside & (self.raw.status == FINISHED))
        return values, weights

    def requests_frame(self) -> Any:
        """Per-request table as a pandas frame."""
        import pandas as pd

        return (
            pd.read_parquet(self.requests)
            if isinstance(self.requests, Path)
            else pd.DataFrame(dict(self.requests))
        )

    def timeline_frame(self) -> Any:
        """Timeline as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.timeline)


def simulate(
    scenario: Scenario | str | Path | dict[str, Any],
    *,
    base_dir: Path | None = None,
    seed: int | None = None,
    aggregate: bool = True,
    workload: Workload | None = None,
) -> RunResult:
    """Run a scenario.

    Parameters
    ----------
    scenario : a loaded scenario, a path to one, or its fields.
    base_dir : folder to which relative paths in the scenario refer (that of its file, by default).
    seed : replaces the scenario's seed.
    aggregate : False steps plainly, the reference; the result is the same.
    workload : replaces the scenario's workload by given requests.
    """
    from simulator.config.load import load_scenario
    from simulator.config.schema import Scenario as ScenarioModel

    if not isinstance(scenario, ScenarioModel):
        if base_dir is None and isinstance(scenario, str | Path) and Path(scenario).exists():
            base_dir = Path(scenario).resolve().parent
        scenario = load_scenario(scenario)
    if seed is not None:
        scenario = scenario.model_copy(update={"seed": seed})
    prepared = prepare(scenario, base_dir)
    return run_prepared(prepared, aggregate=aggregate, workload=workload)


def run_prepared(
    prepared: Prepared,
    *,
    aggregate: bool = True,
    workload: Workload | None = None,
    should_stop: Callable[[], bool] | None = None,
    scratch: Path | None = None,
) -> RunResult:
    """Simulate a prepared scenario and assemble its result.

    `should_stop` is asked after every request that ends; once it says True the run ends there, and the result (of the
    simulated time reached, without a verdict) says so in its warnings and in `raw.stopped_at_s`. `scratch` is the folder
    in which a streamed run keeps its request table until the run directory is written; the system's by default.
    """
    from simulator.workload.build import build_workload

    started = time.perf_counter()
    scenario, plan = prepared.scenario, prepared.plan
    if workload is None:
        from simulator.workload.streaming import open_stream

        streamed = open_stream(
            scenario.workload, seed=scenario.seed, base_dir=prepared.base_dir, above=STREAM_ABOVE
        )
        if streamed is not None:
            return _run_streamed(prepared, streamed, started, aggregate, should_stop, scratch)
        workload = build_workload(scenario.workload, seed=scenario.seed, base_dir=prepared.base_dir)
    cluster = Cluster(
        workload,
        plan,
        prepared.times(),
        aggregate=aggregate,
        should_stop=should_stop,
        acceptance=_acceptance(plan, scenario.seed),
        **_shape(prepared),
    )
    raw = cluster.run()
    if len(workload) and (raw.status == REJECTED).sum() == (raw.status != NOT_ARRIVED).sum():
        raise all_refused(len(workload), plan.limits, workload)
    figures, measured = exact_figures(scenario, workload, raw)
    result, manifest, digest = _assemble(prepared, workload, raw, figures, started)
    pool = scenario.deployment.pools[0].name
    requests = request_table(workload, raw, measured.latencies, measured.good, pool=pool)
    return RunResult(
        result, requests, timeline(raw), manifest, scenario.name, digest, raw, workload, measured
    )


def _run_streamed(
    prepared: Prepared,
    workload: WorkloadStream,
    started: float,
    aggregate: bool,
    should_stop: Callable[[], bool] | None,
    scratch: Path | None,
) -> RunResult:
    from simulator.streamed import run_streamed

    scenario, plan = prepared.scenario, prepared.plan
    run = run_streamed(
        scenario,
        workload,
        plan,
        prepared.times(),
        aggregate=aggregate,
        should_stop=should_stop,
        acceptance=_acceptance(plan, scenario.seed),
        scratch=scratch,
        **_shape(prepared),
    )
    if run.figures.offered and run.figures.counts["rejected"] == run.figures.offered:
        run.scratch.close()
        raise all_refused(run.figures.offered, plan.limits)
    result, manifest, digest = _assemble(prepared, workload, run.raw, run.figures, started)
    rows = workload.columns_of_none()
    return RunResult(
        result, run.table, run.timeline, manifest, scenario.name, digest, run.raw, rows, None, run.scratch
    )


def _shape(prepared: Prepared) -> dict[str, Any]:
    """What a cluster needs to know of the deployment and the client beside the engine."""
    half_rtt_s = prepared.scenario.client.network_rtt_ms / 2e3
    return {
        "replicas": prepared.replicas,
        "ranks": prepared.ranks,
        "router": prepared.scenario.deployment.router,
        "before_s": prepared.plan.front.before_s + half_rtt_s,
        "after_s": half_rtt_s,
        "stages": prepared.scenario.deployment.pools[0].pipeline_parallel,
    }


def _acceptance(plan: EnginePlan, seed: int) -> Callable[[int], Callable[[int], int]] | None:
    """Random streams of accepted drafts, one a request, from the scenario's seed."""
    if plan.speculation is None:
        return None
    return AcceptanceStreams(plan.speculation.rates, int(stream(seed, "acceptance").integers(2**63))).of


def _assemble(
    prepared: Prepared,
    workload: Workload | WorkloadStream,
    raw: ClusterResult,
    figures: Figures,
    started: float,
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return result.json, the manifest and the scenario's hash."""
    scenario = prepared.scenario
    window, counts, server = figures.window, figures.counts, dict(figures.server)
    slo = slo_dict(scenario.slo)
    length = max(window.length_s, 1e-9)
    input_tokens, output_tokens = figures.window_input_tokens, figures.window_output_tokens
    good, inside = figures.good_inside, figures.inside
    totals: dict[str, Any] = {
        "duration_s": window.length_s,
        "vllm_duration_s": max(figures.last_end_s - figures.first_arrival_s, 0.0),
        "offered": figures.offered,
        "completed": counts["finished"],
        "failed": counts["failed"],
        "rejected": counts["rejected"],
        "unfinished": counts["unfinished"],
        "not_arrived": counts["not_arrived"],
        "reasons": figures.reasons,
        "total_input_tokens": figures.total_input_tokens,
        "total_output_tokens": figures.total_output_tokens,
        "window_input_tokens": input_tokens,
        "window_output_tokens": output_tokens,
        "window_completed": figures.window_completed,
        "request_throughput": figures.window_completed / length,
        "input_throughput": input_tokens / length,
        "output_throughput": output_tokens / length,
        "total_token_throughput": (input_tokens + output_tokens) / length,
        "request_goodput": None if figures.window_good is None else figures.window_good / length,
        "goodput_fraction": good / inside if good is not None and inside else None,
        "slo": metrics.slo_bounds(slo),
        "tput_per_gpu": (input_tokens + output_tokens) / length / prepared.devices,
        "output_tput_per_gpu": output_tokens / length / prepared.devices,
        "max_concurrent_requests": figures.max_concurrent,
    }
    server["prefix_cache_hit_rate"] = raw.hit_tokens / raw.queried_tokens if raw.queried_tokens else 0.0
    server["energy_j"] = None
    if prepared.plan.memory.host_blocks:
        rate = raw.host_hit_tokens / raw.queried_tokens if raw.queried_tokens else 0.0
        server["external_prefix_cache_hit_rate"] = rate
    server |= _drafted(prepared, raw)
    usage = Usage(
        prepared.devices,
        window.length_s,
        input_tokens,
        output_tokens,
        figures.window_completed,
        server.pop("busy_prefill_s"),
        server.pop("busy_decode_s"),
    )
    cost = run_cost(prepared.price, usage)
    warnings = [*prepared.warnings, *workload.warnings, *_warnings(prepared, workload, raw, figures, slo)]
    totals["ci95"] = figures.rates_ci95
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "simulated",
        "name": scenario.name,
        "metrics": figures.stats,
        "totals": totals,
        "server": server,
        "slo": figures.verdict,
        "classes": figures.classes,
        "overload": asdict(figures.overload) if figures.overload is not None else None,
        "cost": cost,
        "deployment": deployment_summary(prepared),
        "warnings": warnings,
        "assumptions": list(prepared.assumptions),
        "extrapolation": {"inside_calibration": None, "axes": []},
    }
    evidence, axes = domain(prepared)
    result["assumptions"] += add_intervals(result, evidence, open_loop=figures.open_loop)
    result["extrapolation"] = {"inside_calibration": not axes, "axes": axes}
    if figures.quantile_error:
        result["assumptions"].append(
            f"percentiles of this many requests are read from histograms: relative error up to {figures.quantile_error:.2%}"
        )
    if figures.verdict is not None:
        attained = totals["interval"]["goodput_fraction"]
        result["slo"] = metrics.with_model_error(figures.verdict, figures.stats, attained)
    for kind in result["classes"]:
        if kind["slo"]:
            kind["slo"] = metrics.with_model_error(kind["slo"], kind["metrics"])
    from simulator.config.load import resolved, scenario_hash

    digest = scenario_hash(scenario, VERSION)
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "tool": "capacity-plan",
        "tool_version": VERSION,
        "scenario": resolved(scenario),
        "scenario_sha256": digest,
        "seed": scenario.seed,
        "hardware_profile": {"id": prepared.device.name, "sources": device_sources(prepared.device)},
        "kernel_model": kernel_sources(prepared.kernels),
        "engine_model": {
            "id": prepared.plan.engine,
            "version": prepared.plan.version,
            "overheads": prepared.plan.sources,
        },
        "workload": dict(workload.source),
        "assumptions": list(result["assumptions"]),
        "run": {"wall_s": time.perf_counter() - started},
    }
    if raw.stopped_at_s is not None:
        manifest["partial"] = True
    result["run_id"] = f"{scenario.name}-{digest[:10]}"
    return result, manifest, digest


def _drafted(prepared: Prepared, raw: ClusterResult) -> dict[str, Any]:
    """What came of the drafts, by vLLM's metric names (`vllm:spec_decode_*`); empty without speculative decoding."""
    if prepared.plan.speculation is None:
        return {}
    rounds = raw.verifications
    return {
        "spec_decode_num_drafts": rounds,
        "spec_decode_num_draft_tokens": raw.verified_drafts,
        "spec_decode_num_accepted_tokens": raw.accepted_drafts,
        "spec_decode_mean_acceptance_length": 1 + raw.accepted_drafts / rounds if rounds else None,
    }


def _warnings(
    prepared: Prepared,
    workload: Workload | WorkloadStream,
    raw: ClusterResult,
    figures: Figures,
    slo: dict[str, Any],
) -> list[str]:
    out = []
    over, window = figures.overload, figures.window
    if over is not None:
        out.append(
            f"overload: {over.offered_per_s:.2f} requests/s offered, about {over.sustainable_per_s:.2f}/s sustained "
            f"(estimate: completion rate of the window's second half); {over.backlog} requests behind at its end"
        )
    if not figures.inside:
        out.append(
            f"no request arrives in the measured window of {window.start_s:g} to {window.end_s:g} s: "
            "lower workload.warmup or give more requests"
        )
    unfinished = figures.counts["unfinished"]
    if isinstance(workload, Workload):
        found = judged(
            workload.prompt_tokens, workload.output_tokens, workload.max_output_tokens, prepared.plan.limits
        )
        arrived = raw.status != NOT_ARRIVED
        out += [*refusals(found, arrived, prepared.plan.limits), *cuts(found, arrived, prepared.plan.limits)]
    elif figures.limits is not None:
        every = np.ones(1, bool)
        out += [*refusals(figures.limits, every, prepared.plan.limits), *cuts(figures.limits, every, prepared.plan.limits)]
    if raw.stopped_at_s is not None:
        out.append(
            f"interrupted after {raw.stopped_at_s:,.0f} s of simulated time: figures of that time, no verdict"
        )
    elif unfinished:
        late = f"unfinished after {workload.drain_s:g} s of drain; they count as infinitely late"
        out.append(f"{_count(unfinished, 'request')} {late}")
    if figures.preemptions:
        out.append(
            f"{_count(figures.preemptions, 'preemption')} in the whole run: the KV cache ran short and requests were "
            "computed again"
        )
    if figures.used_up_at_s is not None:
        out.append(
            f"the closed loop had used up its {sum(figures.counts.values()):,} prepared requests at "
            f"{figures.used_up_at_s:,.0f} s of {workload.duration_s:,.0f} s: rates are too low; shorten the duration"
        )
    named = {name for bounds in slo.values() if isinstance(bounds, dict) for name in bounds}
    count = figures.completed_inside
    for name in sorted(named):
        percent = float(name[1:].replace("_", "."))
        needed = int(np.ceil(10 / (1 - percent / 100)))
        if count < needed:
            out.append(
                f"too short a run for {name}: {count} requests in the window, {needed} are needed for ten beyond it"
            )
    return out


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


__all__ = ["STREAM_ABOVE", "RunResult", "run_prepared", "simulate"]
