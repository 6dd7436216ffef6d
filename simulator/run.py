"""From a scenario to a result: resolve, simulate, judge, price.

    prepare(scenario)   resolves every name to facts and refuses what cannot be (no simulation)
    simulate(scenario)  runs it and returns the result, the request table, the timeline and the manifest
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine_models import sglang, vllm
from engine_models.architecture import check_parallelism, load_architecture
from engine_models.blocks import Architecture
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.flags import EngineFlags, parse_engine_args
from engine_models.formats import format_named
from engine_models.step_time import Formats, StepTimeModel
from hardware_profiles.device import Device, load_device
from hardware_profiles.errors import InfeasibleError, InputError, nearest
from hardware_profiles.kernel_model import DevicePeaks, KernelModel, canonical_format, load_kernel_model
from simulator import metrics
from simulator.cluster import (
    FINISHED,
    NOT_ARRIVED,
    REJECTED,
    STATUS_NAMES,
    UNFINISHED,
    Cluster,
    ClusterResult,
)
from simulator.cost import UnitPrice, Usage, run_cost
from simulator.intervals import Evidence, add_intervals
from simulator.timeline import server_averages, timeline
from simulator.version import SCHEMA_VERSION, VERSION
from simulator.workload.columns import RequestClass, Workload

if TYPE_CHECKING:
    from simulator.config.schema import Pool, Scenario
    from simulator.workload.spec import WorkloadSpec




ENGINES: dict[str, Callable[[PoolRequest, str | None], EnginePlan]] = {"vllm": vllm.plan, "sglang": sglang.plan}
"""Engines that can be simulated: name -> function from a pool's request and a version to its plan."""

FRAMEWORK_KERNELS = {"vllm": "vllm", "sglang": "sglang"}

ENGINE_DEVICES: dict[str, tuple[str, ...]] = {
    "vllm": ("gpu", "apu", "asic", "cpu"),
    "sglang": ("gpu", "apu"),
}
"""Kinds of device for which an engine has a backend; Apple's GPUs are served by other engines."""


@dataclass(frozen=True)
class Prepared:
    """A scenario resolved to facts: what would be simulated."""

    scenario: Scenario
    base_dir: Path
    arch: Architecture
    device: Device
    formats: Formats
    plan: EnginePlan
    kernels: KernelModel
    replicas: int
    devices: int
    price: UnitPrice | None
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]

    def times(self) -> StepTimeModel:
        """Step-time model of one replica."""
        pool = self.scenario.deployment.pools[0]
        rules = self.plan.rules
        return StepTimeModel(
            self.arch,
            self.kernels,
            self.formats,
            self.plan.host,
            tensor_parallel=pool.tensor_parallel,
            pipeline_parallel=pool.pipeline_parallel,
            expert_parallel=expert_ranks(pool),
            graph_sizes=self.plan.graph_sizes,
            max_step_tokens=rules.max_num_batched_tokens,
            max_rows=rules.max_num_seqs,
            max_context_tokens=rules.max_model_len,
            truncated_sampling=self.plan.truncated_sampling,
        )


@dataclass
class RunResult:
    """Everything a run yields: `result` is result.json, the others the tables and the manifest."""

    result: dict[str, Any]
    requests: dict[str, NDArray[Any] | list[Any]]
    timeline: dict[str, NDArray[Any]]
    manifest: dict[str, Any]
    name: str
    digest: str
    raw: ClusterResult
    workload: Workload
    gaps: tuple[NDArray[np.float64], NDArray[np.int64]] = field(repr=False, default=(np.zeros(0), np.zeros(0, np.int64)))

    def requests_frame(self) -> Any:
        """Per-request table as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.requests)

    def timeline_frame(self) -> Any:
        """Timeline as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.timeline)


def expert_ranks(pool: Pool) -> int:
    """Number of ranks that share the experts."""
    if isinstance(pool.expert_parallel, bool):
        return pool.tensor_parallel * pool.data_parallel if pool.expert_parallel else 1
    return pool.expert_parallel


# -- resolving ----------------------------------------------------------------------------------------------


def engine_of(pool: Pool) -> tuple[str, str | None]:
    """Split "vllm@0.15.1" into its name and version; InputError for an engine that is not modelled."""
    name, _, version = pool.engine.partition("@")
    name = name.strip().lower()
    if name not in ENGINES:
        close = nearest(name, list(ENGINES))
        raise InputError(
            f"engine '{name}' is not modelled" + (f"; did you mean '{close}'?" if close else ""),
            where="deployment.engine",
            mend=f"one of: {', '.join(sorted(ENGINES))} (`capacity-plan list engines`)",
        )
    return name, version or None


def resolve_formats(pool: Pool, arch: Architecture, device: Device, flags: EngineFlags) -> tuple[Formats, list[str]]:
    """Number formats of weights, activations and KV cache, checked against the device; and notes on them."""
    notes: list[str] = []
    dtype = arch.dtype
    chosen = pool.weights or flags.values.get("quantization") or arch.quantization or dtype
    weights = format_named(str(chosen), where="deployment.weights")
    native = set(device.formats)
    act_name = pool.activations or ("bf16" if weights.weight_only else weights.compute)
    if weights.compute not in native and weights.compute not in ("bf16", "fp16"):
        if pool.activations and format_named(pool.activations).compute == weights.compute:
            raise InputError(
                f"{device.title} has no {weights.compute} arithmetic; activations: {pool.activations} cannot run",
                where="deployment.activations",
                mend=f"leave activations out (weights in {weights.name} then run weight-only), or use hardware with "
                f"{weights.compute}",
            )
        act_name = "bf16"
        notes.append(f"{device.title} has no {weights.compute} arithmetic: {weights.name} weights run weight-only")
    activations = format_named(act_name, where="deployment.activations")
    if activations.compute not in native and activations.compute not in ("bf16", "fp16", "fp32"):
        raise InputError(
            f"{device.title} has no {activations.compute} arithmetic; activations: {activations.name} cannot run",
            where="deployment.activations",
            mend=f"one of {', '.join(sorted(native))}",
        )
    kv_name = pool.kv_cache or flags.values.get("kv_cache_dtype") or "auto"
    kv = format_named(dtype if str(kv_name) == "auto" else str(kv_name), where="deployment.kv_cache")
    if not kv.kv_cache:
        raise InputError(
            f"no engine keeps its KV cache in {kv.name}",
            where="deployment.kv_cache",
            mend="use bf16, fp16, fp8 or int8",
        )
    return Formats(weights, activations, kv), notes


def prepare(scenario: Scenario, base_dir: Path | None = None) -> Prepared:
    """Resolve a scenario to facts and refuse what cannot be served; nothing is simulated.

    Raises InputError on names and combinations that cannot be, InfeasibleError if the model does not fit.
    """
    base = base_dir or Path.cwd()
    deployment = scenario.deployment
    if len(deployment.pools) > 1:
        raise InputError(
            "several pools are not modelled yet",
            where="deployment.pools",
            mend="simulate each pool as a scenario of its own",
        )
    pool = deployment.pools[0]
    engine, version = engine_of(pool)
    arch = load_architecture(scenario.model, base)
    device = load_device(pool.hardware)
    if device.kind not in ENGINE_DEVICES[engine]:
        raise InputError(
            f"{engine} does not run on {device.title}",
            where="deployment.hardware",
            mend=f"give {engine} a device of another kind ({', '.join(ENGINE_DEVICES[engine])}; "
            "`capacity-plan list hardware`)",
        )
    flags = parse_engine_args(engine, pool.engine_args)
    warnings = list(flags.warnings)
    experts = expert_ranks(pool)
    check_parallelism(
        arch,
        pool.tensor_parallel,
        pool.pipeline_parallel,
        experts,
        data_parallel=pool.data_parallel,
        where="deployment.tensor_parallel",
    )
    if pool.data_parallel > 1 and any(block.kind == "moe" for block in arch.mlp):
        raise InputError(
            "data-parallel attention over shared experts is not modelled yet",
            where="deployment.data_parallel",
            mend="use replicas for independent copies, or tensor_parallel within one",
        )
    formats, notes = resolve_formats(pool, arch, device, flags)
    request = PoolRequest(
        arch=arch,
        formats=formats,
        device_name=device.name,
        device_memory_bytes=int(device.memory_bytes.value),
        tensor_parallel=pool.tensor_parallel,
        pipeline_parallel=pool.pipeline_parallel,
        data_parallel=pool.data_parallel,
        expert_parallel=experts,
        flags=flags.values,
    )
    plan = ENGINES[engine](request, version)
    kernels = load_kernel_model(device.kernel_profile or device.name, FRAMEWORK_KERNELS[engine], peaks_of(device))
    replicas = pool.replicas * pool.data_parallel
    devices = replicas * pool.tensor_parallel * pool.pipeline_parallel
    assumptions = [*notes, *plan.notes]
    per_node = int(device.node_size.value)
    if pool.tensor_parallel > per_node:
        warnings.append(
            f"tensor parallelism {pool.tensor_parallel} spans nodes of {per_node} devices: "
            "collectives are priced as inside one node"
        )
    return Prepared(
        scenario=scenario,
        base_dir=base,
        arch=arch,
        device=device,
        formats=formats,
        plan=plan,
        kernels=kernels,
        replicas=replicas,
        devices=devices,
        price=unit_price(scenario, device),
        warnings=(*warnings, *plan.warnings, *_unused_costs(scenario)),
        assumptions=tuple(assumptions),
    )


def lost_backlog(raw: ClusterResult, window: metrics.Window) -> metrics.Overload | None:
    """Overload of loads that arrive early, such as a batch: more than one in twenty unfinished after the drain."""
    unfinished = int((raw.status == UNFINISHED).sum())
    offered = int((raw.status != NOT_ARRIVED).sum())
    if raw.stopped_at_s is not None or unfinished <= 0.05 * offered:
        return None
    ended = raw.end_s[~np.isnan(raw.end_s)]
    span = max(raw.end_of_run_s - window.start_s, 1e-9)
    return metrics.Overload(offered / max(window.length_s, 1e-9), len(ended) / span, unfinished)


def _unused_costs(scenario: Scenario) -> list[str]:
    """Cost settings that a run does not price: owned hardware is the business of `capacity-plan cost`."""
    owned = ("purchase_usd_per_gpu", "amortisation_years", "power_usd_per_kwh", "pue")
    given = [name for name in owned if getattr(scenario.cost, name) is not None]
    return [f"cost.{', cost.'.join(given)}: used by `capacity-plan cost` only, not in this figure"] if given else []


def peaks_of(device: Device) -> DevicePeaks:
    """Datasheet rates of a device, for the physics of kernels that nobody measured on it."""
    names = {"bf16": "bfloat16", "fp8": "fp8", "int8": "int8", "fp4": "fp4", "fp16": "fp16"}
    rates = {names[k]: q.value for k, q in device.peak_flops_per_s.items() if k in names}
    rates.setdefault("bfloat16", rates.get("fp16", 0.0))
    return DevicePeaks(
        flops_per_s=rates,
        hbm_bytes_per_s=device.memory_bandwidth_bytes_per_s.value,
        l2_bytes=device.l2_bytes.value if device.l2_bytes else 0.0,
        link_bytes_per_s=device.link.bytes_per_s_per_direction.value if device.link else 64e9,
    )


def unit_price(scenario: Scenario, device: Device) -> UnitPrice | None:
    """Price of a device-hour: the scenario's own, else the price list's default; None if none is known."""
    cost = scenario.cost
    commitment = "spot" if cost.spot else (cost.commitment or "on_demand")
    if cost.usd_per_gpu_hour is not None:
        return UnitPrice(
            cost.usd_per_gpu_hour, cost.provider or "scenario", cost.region or "", commitment, "the scenario", "", "assumed"
        )
    from hardware_profiles.prices import default_price, prices_for

    if cost.region is None:
        price = default_price(device.name, commitment, cost.provider)
    else:
        offers = prices_for(device.name, commitment=commitment, provider=cost.provider)
        known = sorted({offer.region for offer in offers if offer.region})
        offers = [offer for offer in offers if offer.region == cost.region]
        if not offers:
            raise InputError(
                f"no {commitment} price of {device.name} in region '{cost.region}'",
                where="cost.region",
                mend=f"known regions: {', '.join(known) or 'none'}; or give cost.usd_per_gpu_hour",
            )
        price = min(offers, key=lambda offer: offer.usd_per_gpu_hour.value)
    if price is None:
        return None
    q = price.usd_per_gpu_hour
    return UnitPrice(q.value, price.provider, price.region or "", price.commitment, q.source, q.date, q.kind)


# -- simulating ---------------------------------------------------------------------------------------------


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
) -> RunResult:
    """Simulate a prepared scenario and assemble its result.

    `should_stop` is asked after every request that ends; once it says True the run ends there, and the result (of the
    simulated time reached, without a verdict) says so in its warnings and in `raw.stopped_at_s`.
    """
    from simulator.workload.build import build_workload

    started = time.perf_counter()
    scenario, plan = prepared.scenario, prepared.plan
    if workload is None:
        workload = build_workload(scenario.workload, seed=scenario.seed, base_dir=prepared.base_dir)
    half_rtt_s = scenario.client.network_rtt_ms / 2e3
    cluster = Cluster(
        workload,
        plan,
        prepared.times(),
        replicas=prepared.replicas,
        router=scenario.deployment.router,
        before_s=plan.front_end_s + half_rtt_s,
        after_s=half_rtt_s,
        stages=scenario.deployment.pools[0].pipeline_parallel,
        aggregate=aggregate,
        should_stop=should_stop,
    )
    raw = cluster.run()
    if len(workload) and (raw.status == REJECTED).sum() == (raw.status != NOT_ARRIVED).sum():
        raise InputError(
            f"all {len(workload)} requests are refused: every prompt is longer than the context of "
            f"{plan.rules.max_model_len} tokens or than the KV cache",
            where="workload.prompt_tokens",
            mend="shorten the prompts, raise max_model_len, or use a model with a longer context",
        )
    return _assemble(prepared, workload, raw, started)


def measured_window(workload: Workload, raw: ClusterResult, spec: WorkloadSpec) -> metrics.Window:
    """Return [warmup, duration], or to the last completion where the number of requests ends the run."""
    end = workload.duration_s
    by_count = spec.requests is not None and len(workload) >= spec.requests
    has_duration = (spec.duration is not None or spec.trace is not None) and not by_count
    if not has_duration or not np.isfinite(end) or end <= workload.warmup_s:
        end = raw.end_of_run_s
    if raw.stopped_at_s is not None:
        end = min(end, raw.stopped_at_s)
    return metrics.Window(workload.warmup_s, max(end, workload.warmup_s))


def _assemble(prepared: Prepared, workload: Workload, raw: ClusterResult, started: float) -> RunResult:
    scenario = prepared.scenario
    spec = scenario.workload
    window = measured_window(workload, raw, spec)
    offered = (raw.status != NOT_ARRIVED)
    inside = offered & (raw.arrival_s >= window.start_s) & (raw.arrival_s <= window.end_s)
    lat = metrics.latencies(raw, scenario.client.overhead_ms / 1e3)
    finished = raw.status == FINISHED
    gaps = metrics.token_gaps(raw, inside & finished)
    server = server_averages(raw, window)
    slo = slo_dict(scenario.slo)
    by_class = [class_slo(kind, slo) for kind in workload.classes] or [slo]
    good = np.zeros(len(workload), dtype=bool)
    for number, bounds in enumerate(by_class):
        good |= metrics.good_requests(lat, bounds) & (workload.class_index == number)
    judged_at_all = any(by_class)
    stats = {
        name: metrics.statistics(getattr(lat, name)[inside], "ms")
        for name in ("ttft_ms", "tpot_ms", "e2el_ms", "queue_ms", "prefill_ms", "decode_ms")
    }
    stats["itl_ms"] = metrics.statistics(gaps[0] * 1e3, "ms", gaps[1])
    chosen = inside & (raw.status != REJECTED)
    for name, values in (
        ("input_tokens", raw.prompt_tokens),
        ("output_tokens", raw.output_tokens),
        ("cached_tokens", raw.cached_tokens),
    ):
        stats[name] = metrics.statistics(values[chosen].astype(float), "tokens")
    length = max(window.length_s, 1e-9)
    visible = (raw.end_s >= window.start_s) & (raw.end_s <= window.end_s)
    first = (raw.first_token_s >= window.start_s) & (raw.first_token_s <= window.end_s)
    input_tokens = int(raw.prompt_tokens[first].sum())
    output_tokens = metrics.tokens_emitted(raw, window)
    completed = int(visible.sum())
    last_end = float(np.nanmax(raw.end_s)) if finished.any() else 0.0
    first_arrival = float(np.nanmin(raw.arrival_s)) if offered.any() else 0.0
    counts = {name: int((raw.status == code).sum()) for code, name in enumerate(STATUS_NAMES)}
    totals: dict[str, Any] = {
        "duration_s": window.length_s,
        "vllm_duration_s": max(last_end - first_arrival, 0.0),
        "offered": int(offered.sum()),
        "completed": counts["finished"],
        "failed": 0,
        "rejected": counts["rejected"],
        "unfinished": counts["unfinished"],
        "not_arrived": counts["not_arrived"],
        "total_input_tokens": int(raw.prompt_tokens[finished].sum()),
        "total_output_tokens": int(raw.output_tokens[finished].sum()),
        "window_input_tokens": input_tokens,
        "window_output_tokens": output_tokens,
        "window_completed": completed,
        "request_throughput": completed / length,
        "input_throughput": input_tokens / length,
        "output_throughput": output_tokens / length,
        "total_token_throughput": (input_tokens + output_tokens) / length,
        "request_goodput": float((good & inside).sum()) / length if judged_at_all else None,
        "goodput_fraction": float(good[inside].mean()) if judged_at_all and inside.any() else None,
        "slo": metrics.slo_bounds(slo),
        "tput_per_gpu": (input_tokens + output_tokens) / length / prepared.devices,
        "output_tput_per_gpu": output_tokens / length / prepared.devices,
        "max_concurrent_requests": _peak_concurrency(raw),
    }
    server["prefix_cache_hit_rate"] = raw.hit_tokens / raw.queried_tokens if raw.queried_tokens else 0.0
    server["energy_j"] = None
    usage = Usage(
        prepared.devices,
        window.length_s,
        input_tokens,
        output_tokens,
        completed,
        server.pop("busy_prefill_s"),
        server.pop("busy_decode_s"),
    )
    cost = run_cost(prepared.price, usage)
    warnings = [*prepared.warnings, *workload.warnings]
    over = metrics.overload(raw, window) or lost_backlog(raw, window)
    warnings += _warnings(prepared, workload, raw, window, over, slo, lat, inside)
    can_judge = bool(slo) and raw.stopped_at_s is None and bool(inside.any())
    judged = metrics.verdict(lat, inside, gaps, slo) if can_judge else None
    totals["ci95"] = metrics.rates_ci95(raw, window, good & inside if judged_at_all else None)
    classes = _classes(workload, raw, lat, inside, scenario)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "simulated",
        "name": scenario.name,
        "metrics": stats,
        "totals": totals,
        "server": server,
        "slo": judged,
        "classes": classes,
        "overload": asdict(over) if over is not None else None,
        "cost": cost,
        "deployment": deployment_summary(prepared),
        "warnings": warnings,
        "assumptions": list(prepared.assumptions),
        "extrapolation": {"inside_calibration": None, "axes": []},
    }
    evidence, axes = domain(prepared)
    known_arrivals = not np.isnan(workload.arrival_s).any()
    result["assumptions"] += add_intervals(
        result, evidence, open_loop=known_arrivals and bool(np.ptp(workload.arrival_s) > 0)
    )
    result["extrapolation"] = {"inside_calibration": not axes, "axes": axes}
    if judged is not None:
        result["slo"] = metrics.with_model_error(judged, stats)
    requests = request_table(workload, raw, lat, good if judged_at_all else None)
    from simulator.config.load import resolved, scenario_hash

    digest = scenario_hash(scenario, VERSION)
    manifest = {
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
            "overheads": prepared.plan.overhead_sources,
        },
        "workload": dict(workload.source),
        "assumptions": list(prepared.assumptions),
        "run": {"wall_s": time.perf_counter() - started},
    }
    result["run_id"] = f"{scenario.name}-{digest[:10]}"
    return RunResult(
        result, requests, timeline(raw), manifest, scenario.name, digest, raw, workload, gaps
    )


def slo_dict(slo: Any) -> dict[str, Any]:
    """Return the bounds of an SLO model as {metric: {percentile: ms}}, with `attainment` if given."""
    if slo is None:
        return {}
    out: dict[str, Any] = dict(slo.bounds_ms())
    if slo.attainment is not None:
        out["attainment"] = slo.attainment
    return out


def class_slo(kind: RequestClass, shared: dict[str, Any]) -> dict[str, Any]:
    """The SLO of a class: its own, else the scenario's."""
    slo: dict[str, Any] = dict(kind.slo) if kind.slo else dict(shared)
    if kind.attainment is not None:
        slo["attainment"] = kind.attainment
    return slo


def _classes(
    workload: Workload,
    raw: ClusterResult,
    lat: metrics.Latencies,
    inside: NDArray[np.bool_],
    scenario: Scenario,
) -> list[dict[str, Any]]:
    """Judge each request class apart, by its own SLO or the scenario's."""
    if scenario.workload.classes is None and len(workload.classes) < 2:
        return []
    shared = slo_dict(scenario.slo)
    out = []
    for number, kind in enumerate(workload.classes):
        rows = inside & (workload.class_index == number)
        slo = class_slo(kind, shared)
        gaps = metrics.token_gaps(raw, rows & (raw.status == FINISHED))
        out.append(
            {
                "name": kind.name,
                "priority": kind.priority,
                "requests": int(rows.sum()),
                "metrics": {
                    name: metrics.statistics(getattr(lat, name)[rows], "ms")
                    for name in ("ttft_ms", "tpot_ms", "e2el_ms", "queue_ms")
                }
                | {"itl_ms": metrics.statistics(gaps[0] * 1e3, "ms", gaps[1])},
                "slo": metrics.verdict(lat, rows, gaps, slo) if slo else None,
                "goodput_fraction": float(metrics.good_requests(lat, slo)[rows].mean()) if slo and rows.any() else None,
            }
        )
    return out


def _peak_concurrency(raw: ClusterResult) -> int:
    """Most requests in the system at once."""
    began = raw.arrival_s[~np.isnan(raw.engine_arrival_s)]
    ended = raw.end_s[~np.isnan(raw.end_s)]
    times = np.concatenate([ended, began])
    change = np.concatenate([np.full(len(ended), -1), np.ones(len(began), dtype=np.int64)])
    order = np.lexsort((change, times))
    return int(np.cumsum(change[order]).max(initial=0))


def _warnings(
    prepared: Prepared,
    workload: Workload,
    raw: ClusterResult,
    window: metrics.Window,
    over: metrics.Overload | None,
    slo: dict[str, Any],
    lat: metrics.Latencies,
    inside: NDArray[np.bool_],
) -> list[str]:
    out = []
    if over is not None:
        out.append(
            f"overload: {over.offered_per_s:.2f} requests/s offered, about {over.sustainable_per_s:.2f}/s sustained "
            f"(estimate: completion rate of the window's second half); {over.backlog} requests behind at its end"
        )
    if not inside.any():
        out.append(
            f"no request arrives in the measured window of {window.start_s:g} to {window.end_s:g} s: "
            "lower workload.warmup or give more requests"
        )
    rejected = int((raw.status == REJECTED).sum())
    if rejected:
        out.append(
            f"{_count(rejected, 'request')} refused: prompt longer than the context of "
            f"{prepared.plan.rules.max_model_len} tokens or than the KV cache"
        )
    unfinished = int((raw.status == UNFINISHED).sum())
    if raw.stopped_at_s is not None:
        out.append(f"interrupted after {raw.stopped_at_s:,.0f} s of simulated time: figures of that time, no verdict")
    elif unfinished:
        late = f"unfinished after {workload.drain_s:g} s of drain; they count as infinitely late"
        out.append(f"{_count(unfinished, 'request')} {late}")
    if raw.preemptions.sum():
        out.append(
            f"{_count(int(raw.preemptions.sum()), 'preemption')} in the whole run: the KV cache ran short and requests were "
            "computed again"
        )
    if _used_up(prepared, workload, raw):
        out.append(
            f"the closed loop had used up its {len(workload):,} prepared requests at {raw.end_of_run_s:,.0f} s of "
            f"{workload.duration_s:,.0f} s: rates are too low; shorten the duration"
        )
    named = {name for bounds in slo.values() if isinstance(bounds, dict) for name in bounds}
    count = int((inside & ~np.isnan(lat.e2el_ms)).sum())
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


def _used_up(prepared: Prepared, workload: Workload, raw: ClusterResult) -> bool:
    """Tell whether a closed loop ran out of the requests prepared for it before its duration was over."""
    pooled = np.isnan(workload.arrival_s) & (workload.predecessor < 0)
    if not pooled.any() or prepared.scenario.workload.requests is not None or raw.stopped_at_s is not None:
        return False
    spent = not (raw.status[pooled] == NOT_ARRIVED).any()
    return spent and raw.end_of_run_s < workload.duration_s


def deployment_summary(prepared: Prepared) -> dict[str, Any]:
    """What was deployed, for reports: devices, parallelism, formats, memory."""
    pool = prepared.scenario.deployment.pools[0]
    memory = prepared.plan.memory
    return {
        "model": prepared.arch.name,
        "engine": prepared.plan.engine,
        "engine_version": prepared.plan.version,
        "hardware": prepared.device.name,
        "replicas": prepared.replicas,
        "tensor_parallel": pool.tensor_parallel,
        "pipeline_parallel": pool.pipeline_parallel,
        "devices": prepared.devices,
        "weights": prepared.formats.weights.name,
        "activations": prepared.formats.activations.name,
        "kv_cache": prepared.formats.kv_cache.name,
        "kv_blocks": prepared.plan.capacity_blocks,
        "kv_block_tokens": prepared.plan.block_tokens,
        "kv_tokens": prepared.plan.tokens_held(),
        "weight_bytes_per_device": memory.weight_bytes,
        "kv_bytes_per_device": memory.kv_bytes,
        "max_num_batched_tokens": prepared.plan.rules.max_num_batched_tokens,
        "max_num_seqs": prepared.plan.rules.max_num_seqs,
        "max_model_len": prepared.plan.rules.max_model_len,
    }


MEASURED = {("vllm", "h100-sxm-80gb")}
"""Engine and device with end-to-end measurements behind them (docs/fidelity.md)."""


MEASURED_TENSOR_PARALLEL = (1, 2, 4)


def domain(prepared: Prepared) -> tuple[Evidence, list[str]]:
    """What evidence stands behind a prediction, and the axes along which it leaves the calibrated domain."""
    plan, device, kernels = prepared.plan, prepared.device, prepared.kernels
    axes: list[str] = []
    groups = kernels.held_out_error
    if (plan.engine, device.name) in MEASURED:
        hardware = "measured"
    elif groups:
        hardware = "kernels"
        axes.append(f"hardware: no end-to-end run of {plan.engine} on {device.name} was measured, only its kernels")
    else:
        hardware = "physics"
        axes.append(f"hardware: no kernel of {device.name} was measured; datasheet rates and assumed efficiencies")
    weights = prepared.formats.weights
    moe = any(block.kind == "moe" for block in prepared.arch.mlp)
    model = "dense" if weights.bits_per_weight >= 16 else "quantized"
    if moe:
        model = "moe_expert_parallel" if expert_ranks(prepared.scenario.deployment.pools[0]) > 1 else "moe"
    if groups and weights.bits_per_weight < 16:
        known = {key.split("/")[1] for key in groups if key.startswith("moe/" if moe else "gemm/")}
        if canonical_format(weights.name) not in known:
            axes.append(f"weights: no {'expert' if moe else 'matrix'} kernels in {weights.name} were measured on {device.name}")
    if any(block.kind == "linear" for block in prepared.arch.attention):
        axes.append("attention: linear-attention layers are priced by their projections only")
    pool = prepared.scenario.deployment.pools[0]
    if hardware == "measured" and pool.tensor_parallel not in MEASURED_TENSOR_PARALLEL:
        axes.append(f"parallelism: runs at tensor parallelism 1, 2 and 4 were measured, not {pool.tensor_parallel}")
    if pool.tensor_parallel > int(device.node_size.value):
        axes.append("parallelism: collectives across nodes are priced as inside one")
    if prepared.scenario.deployment.pools[0].pipeline_parallel > 1:
        axes.append("parallelism: no pipeline-parallel run was measured")
    return Evidence(hardware, model), axes


def device_sources(device: Device) -> list[dict[str, Any]]:
    """Provenance of every number of the device."""
    from hardware_profiles.device import provenance

    return provenance(device)


def kernel_sources(kernels: KernelModel) -> dict[str, Any]:
    """Provenance of the kernel model."""
    return {
        "device": kernels.device,
        "framework": kernels.framework,
        "provenance": kernels.provenance,
        "held_out_error": dict(kernels.held_out_error),
    }


def request_table(
    workload: Workload, raw: ClusterResult, lat: metrics.Latencies, good: NDArray[np.bool_] | None
) -> dict[str, NDArray[Any] | list[Any]]:
    """Columns of `requests.parquet`, one row a request."""
    n = len(workload)
    capped = np.minimum(workload.output_tokens, raw.output_tokens) < workload.output_tokens
    limited = (workload.max_output_tokens > 0) & (raw.output_tokens >= workload.max_output_tokens)
    reasons = ("stop", "length", "unfinished", "rejected", "not_arrived")
    code = (limited | capped).astype(np.int8)
    for number, status in enumerate((UNFINISHED, REJECTED, NOT_ARRIVED), start=2):
        code[raw.status == status] = number
    names = list(workload.request_ids) if workload.request_ids is not None else [f"r{i}" for i in range(n)]
    columns: dict[str, NDArray[Any] | list[Any]] = {
        "request_id": names,
        "session_id": workload.session_id,
        "turn": workload.turn,
        "arrival_s": raw.arrival_s,
        "queue_start_s": raw.engine_arrival_s,
        "first_scheduled_s": raw.first_scheduled_s,
        "first_token_s": raw.first_token_s,
        "end_s": raw.end_s,
        "prompt_tokens": workload.prompt_tokens,
        "cached_tokens": raw.cached_tokens,
        "output_tokens": np.where(raw.status == FINISHED, raw.output_tokens, 0),
        "ttft_ms": lat.ttft_ms,
        "tpot_ms": lat.tpot_ms,
        "e2el_ms": lat.e2el_ms,
        "queue_ms": lat.queue_ms,
        "preemptions": raw.preemptions,
        "instance_id": raw.replica,
        "prefill_instance_id": raw.replica,
        "finish_reason": [reasons[i] for i in code.tolist()],
        "slo_ok": good if good is not None else [None] * n,
    }
    if workload.classes:
        columns["class"] = [workload.classes[i].name for i in workload.class_index.tolist()]
    return columns


__all__ = ["InfeasibleError", "Prepared", "RunResult", "prepare", "run_prepared", "simulate"]
