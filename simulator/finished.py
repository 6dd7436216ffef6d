"""What a finished run says: result.json and the manifest, of the figures that were counted."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from hardware_profiles.records import dataclass
from simulator.calibrated import used_ranges
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import ClusterResult
from simulator.cost import UnitPrice, Usage, run_cost
from simulator.limits import cuts, refusals
from simulator.pools import blended_price
from simulator.prepare import deployment_summary
from simulator.prepared import Prepared
from simulator.results.domain import device_sources, domain, kernel_sources
from simulator.results.figures import Figures
from simulator.results.fleet import fleet_figures, turns_figures
from simulator.results.intervals import add_intervals
from simulator.results.rates import BatchCut
from simulator.results.timeline import Window
from simulator.results.verdict import class_slo, slo_bounds, slo_dict, too_short, with_model_error
from simulator.served import unasked
from simulator.version import SCHEMA_VERSION, VERSION
from simulator.workload.columns import Workload

if TYPE_CHECKING:
    from simulator.cluster.elastic import Elastic
    from simulator.cluster.fleet import Toll
    from simulator.workload.spec import WorkloadSpec
    from simulator.workload.streaming import WorkloadStream

WAITED, RESERVED = 0.01, 0.8
"""Share of the time with a queue, and of the KV cache held, from which unlimited answers are said to hold the queue (assumed)."""
MOSTLY_WAITED = 0.5
"""Share of the time with a queue from which they are said to, however little of the cache is in use (assumed)."""


@dataclass(frozen=True)
class Finished:
    """A run that has ended. `reserves`: memory is set aside for whole answers. `started_s` is the time at which it began.

    Of a load that followed others `begin_s` is its begin, and `before` what had been lost until then.
    """

    prepared: Prepared
    workload: Workload | WorkloadStream
    raw: ClusterResult
    figures: Figures
    cluster: Cluster
    reserves: bool
    started_s: float
    before: Toll | None = None
    begin_s: float = 0.0

    @property
    def devices(self) -> float:
        """Devices in the measured window, on average."""
        return self.cluster.devices.mean(self.figures.window.start_s, self.figures.window.end_s)


def result_of(run: Finished) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return result.json, the manifest and the scenario's hash."""
    from simulator.config.load import scenario_hash

    prepared, figures, cluster = run.prepared, run.figures, run.cluster
    scenario, window = prepared.scenario, figures.window
    slo = slo_dict(scenario.slo)
    totals, server = _totals(run, slo), _server(run)
    of_images_s = sum(each.pop("busy_prefill_s") + each.pop("busy_decode_s") for each in figures.encoders)
    usage = Usage(
        run.devices,
        window.length_s,
        figures.window_input_tokens,
        figures.window_output_tokens,
        figures.window_completed,
        server.pop("busy_prefill_s") + of_images_s,
        server.pop("busy_decode_s"),
    )
    cost = run_cost(_price(prepared, cluster, window), usage)
    warnings = [*prepared.warnings, *run.workload.warnings, *_warnings(prepared, run.workload, run.raw, figures, slo)]
    if run.reserves:
        warnings += _held_queue(prepared, figures)
    warnings += _idle_pools(prepared, figures)
    if prepared.side_by_side and figures.pools:
        devices_by_pool = cluster.devices_of_pools(window.start_s, window.end_s) or [each.devices for each in prepared.pools]
        parts = zip(prepared.pools, figures.pools, devices_by_pool, strict=True)
        figures.pools = [_of_pool(each, load, window, there) for each, load, there in parts]
        server["energy_j"] = sum(pool["energy_j"] for pool in figures.pools)
    fleet = fleet_figures(cluster, window, run.before, run.begin_s)
    turns = turns_figures(cluster.changes, window, prepared)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "simulated",
        "name": scenario.name,
        "metrics": figures.stats,
        "totals": totals,
        "server": server,
        "slo": figures.verdict,
        "classes": figures.classes,
        **({"pools": figures.pools} if figures.pools else {}),
        **({"encoders": _of_encoders(prepared, figures)} if figures.encoders else {}),
        **({"first_requests": figures.first_requests} if figures.first_requests else {}),
        **({"fleet": fleet} if fleet else {}),
        **({"turns": turns} if turns else {}),
        "overload": asdict(figures.overload) if figures.overload is not None else None,
        "cost": cost,
        "deployment": deployment_summary(prepared),
        "warnings": warnings,
        "assumptions": list(prepared.assumptions),
        "extrapolation": {"inside_calibration": None, "axes": []},
    }
    _add_model_error(run, result)
    digest = scenario_hash(scenario, VERSION)
    result["run_id"] = f"{scenario.name}-{digest[:10]}"
    return result, _manifest(run, result, digest), digest


def _totals(run: Finished, slo: dict[str, Any]) -> dict[str, Any]:
    """Requests and tokens, their rates in the measured window, and the sampling error of these."""
    figures = run.figures
    window, counts = figures.window, figures.counts
    length, per_device = max(window.length_s, 1e-9), max(run.devices, 1e-9)
    input_tokens, output_tokens = figures.window_input_tokens, figures.window_output_tokens
    good, inside = figures.good_inside, figures.inside
    return {
        "duration_s": window.length_s,
        "vllm_duration_s": max(figures.last_end_s - figures.first_arrival_s, 0.0),
        "offered": figures.offered,
        "completed": counts["finished"],
        "failed": counts["failed"],
        "rejected": counts["rejected"],
        "unfinished": counts["unfinished"],
        "not_arrived": max(counts["not_arrived"], figures.never_sent),
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
        "slo": slo_bounds(slo),
        "tput_per_gpu": (input_tokens + output_tokens) / length / per_device,
        "output_tput_per_gpu": output_tokens / length / per_device,
        "max_concurrent_requests": figures.max_concurrent,
        "ci95": figures.rates_ci95,
    }


def _server(run: Finished) -> dict[str, Any]:
    """What the servers did: load, caches, energy, drafts."""
    prepared, raw, figures = run.prepared, run.raw, run.figures
    server = dict(figures.server)
    queried = raw.queried_tokens
    server["prefix_cache_hit_rate"] = raw.hit_tokens / queried if queried else 0.0
    busy = float(server["gpu_busy_fraction"])
    at_once = float(server["num_requests_running"]) / max(busy, 1e-9)
    alike = prepared.paths is None and len(prepared.pools) < 2  # pools of unlike devices are averaged nowhere
    own = run.devices - sum(each.devices for each in prepared.encoders)
    server["energy_j"] = own * figures.window.length_s * prepared.power_w(busy, at_once) if alike else None
    if any(each.plan.tiers for each in prepared.pools or (prepared,)):
        server["external_prefix_cache_hit_rate"] = raw.host_hit_tokens / queried if queried else 0.0
        server["kv_tiers"] = [
            {
                "kind": count.kind,
                "hit_rate": count.hit_tokens / queried if queried else 0.0,
                "read_bytes": round(count.read_bytes),
                "written_bytes": round(count.written_bytes),
            }
            for count in raw.tiers
        ]
    return server | _drafted(prepared, raw)


def _add_model_error(run: Finished, result: dict[str, Any]) -> None:
    """Put in the intervals, what they rest on, and what they mean for the verdicts."""
    prepared, figures = run.prepared, run.figures
    evidence, axes = domain(prepared, used_ranges(result))
    waits = not figures.open_loop and not _mostly_think(prepared.scenario.workload, result)
    evidence = replace(evidence, closed_loop=waits, batch=figures.at_once)
    result["assumptions"] += add_intervals(result, evidence)
    result["extrapolation"] = {"inside_calibration": not axes, "axes": axes}
    if figures.batch_cut is not None:
        result["batch_cut"] = asdict(figures.batch_cut)
    if figures.quantile_error:
        result["assumptions"].append(
            f"percentiles of this many requests are read from histograms: relative error up to {figures.quantile_error:.2%}"
        )
    rates, served = result["totals"]["interval"], result["totals"]["request_throughput"]
    more = rates["request_throughput"][1] / served if figures.overload is not None and served else 1.0
    if figures.verdict is not None:
        result["slo"] = with_model_error(figures.verdict, figures.stats, rates["goodput_fraction"], more)
    for kind in result["classes"]:
        if kind["slo"]:
            kind["slo"] = with_model_error(kind["slo"], kind["metrics"], None, more)


def _manifest(run: Finished, result: dict[str, Any], digest: str) -> dict[str, Any]:
    """What reproduces the run, and the sources of every number."""
    from simulator.config.load import resolved

    prepared = run.prepared
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "tool": "capacity-plan",
        "tool_version": VERSION,
        "scenario": resolved(prepared.scenario),
        "scenario_sha256": digest,
        "seed": prepared.scenario.seed,
        "hardware_profile": {"id": prepared.device.name, "sources": device_sources(prepared.device)},
        "kernel_model": kernel_sources(prepared.kernels),
        "engine_model": {
            "id": prepared.plan.engine,
            "version": prepared.plan.version,
            "overheads": prepared.plan.sources,
        },
        "workload": dict(run.workload.source),
        "assumptions": list(result["assumptions"]),
        "run": {"wall_s": time.perf_counter() - run.started_s},
    }
    others = _other_pools(prepared)
    if others:
        manifest["other_pools"] = others
    if run.raw.stopped_at_s is not None:
        manifest["partial"] = True
    return manifest


def _other_pools(prepared: Prepared) -> list[dict[str, Any]]:
    """The sources of further pools whose devices or engines are others than the first one's, each kind once."""
    seen = {(prepared.device.name, prepared.plan.engine)}
    found = []
    for each in (*prepared.pools, *prepared.encoders):
        kind = (each.device.name, each.plan.engine)
        if kind not in seen:
            seen.add(kind)
            found.append(
                {
                    "pool": each.pool.name,
                    "hardware_profile": {"id": each.device.name, "sources": device_sources(each.device)},
                    "kernel_model": kernel_sources(each.kernels),
                    "engine_model": {"id": each.plan.engine, "version": each.plan.version, "overheads": each.plan.sources},
                }
            )
    return found


def _mostly_think(spec: WorkloadSpec, result: dict[str, Any]) -> bool:
    """Whether clients of closed loops think for longer than they wait, by Little's law: then requests come as in an open loop.

    Runs with the evidence of closed loops are of clients without think time, which keep a server full.
    """
    users = spec.users()
    if not users:
        return False
    served_per_s, answer_s = result["totals"]["request_throughput"], (result["metrics"]["e2el_ms"]["mean"] or 0.0) / 1e3
    return bool(served_per_s * answer_s < users / 2)


def elastic_of(prepared: Prepared, cluster: Cluster) -> Elastic | None:
    """The cluster as one whose replicas come and go, if they do."""
    if prepared.elastic is None:
        return None
    from simulator.cluster.elastic import Elastic

    assert isinstance(cluster, Elastic)
    return cluster


def _price(prepared: Prepared, cluster: Cluster, window: Window) -> UnitPrice | None:
    """The price of a device-hour; of pools whose replicas come and go, by the devices that each had on average."""
    elastic = elastic_of(prepared, cluster)
    if elastic is None or len(prepared.pools) < 2:
        return prepared.price
    devices = (history.mean(window.start_s, window.end_s) for history in elastic.fleet.devices)
    return blended_price([(each.price, count) for each, count in zip(prepared.pools, devices, strict=True)])


def _of_pool(pool: Prepared, load: dict[str, Any], window: Window, devices: float) -> dict[str, Any]:
    """What one of several pools served, at which rate and cost, on so many devices on average."""
    length_s = max(window.length_s, 1e-9)
    busy_s = load.pop("busy_prefill_s"), load.pop("busy_decode_s")
    completed, inputs, outputs = (load[f"window_{what}"] for what in ("completed", "input_tokens", "output_tokens"))
    usage = Usage(devices, window.length_s, inputs, outputs, completed, *busy_s)
    busy = min(float(load["gpu_busy_fraction"]) * pool.devices / max(devices, 1e-9), 1.0)
    at_once = float(load["num_requests_running"]) / max(busy, 1e-9)
    return {
        **load,
        "energy_j": devices * window.length_s * pool.power_w(busy, at_once),
        "model": pool.arch.name,
        "hardware": pool.device.name,
        "devices": devices,
        "request_throughput": completed / length_s,
        "output_throughput": outputs / length_s,
        "cost": run_cost(pool.price, usage),
    }


def _of_encoders(prepared: Prepared, figures: Figures) -> list[dict[str, Any]]:
    """What each pool did that only encodes, on its devices."""
    found, length_s = [], figures.window.length_s
    for pool, load in zip(prepared.encoders, figures.encoders, strict=True):
        busy = float(load["gpu_busy_fraction"])
        power_w = pool.power_w(busy, float(load["num_requests_running"]) / max(busy, 1e-9))
        own = {"hardware": pool.device.name, "devices": pool.devices, "energy_j": pool.devices * length_s * power_w}
        found.append({**load, "image_tokens_per_s": load["image_tokens"] / max(length_s, 1e-9), **own})
    return found


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


_STAGES = {"encode": "encode_queue_ms", "prefill": "queue_ms", "transfer": "transfer_ms", "decode": "decode_queue_ms"}
"""Stages of a request that passes from pool to pool, and the wait for each."""


def _longest_wait(prepared: Prepared, figures: Figures) -> str:
    """For which stage requests wait longest, where they pass from pool to pool; "" elsewhere."""
    if prepared.paths is None and not prepared.encoders:
        return ""
    waits = {stage: figures.stats.get(key, {}).get("mean") or 0.0 for stage, key in _STAGES.items()}
    stage = max(waits, key=lambda each: waits[each])
    if prepared.paths is None and (stage != "encode" or waits[stage] < (figures.stats["e2el_ms"]["mean"] or 0.0) / 4):
        return ""
    if waits[stage] < (figures.stats["e2el_ms"]["mean"] or 0.0) / 4:  # they are served, more slowly than they come
        stage = "decode"
    if stage == "transfer":
        return "; most of the wait is for the transfer between the pools"
    whole = (*prepared.encoders, *prepared.pools)
    names = " and ".join(f"'{each.pool.name}'" for each in whole if each.pool.role == stage)
    return f"; most of the wait is for {stage} pool {names}"


def _warnings(
    prepared: Prepared,
    workload: Workload | WorkloadStream,
    raw: ClusterResult,
    figures: Figures,
    slo: dict[str, Any],
) -> list[str]:
    out = []
    over, window = figures.overload, figures.window
    if over is not None and over.shed:
        out.append(
            f"overload: {over.offered_per_s:.2f} requests/s offered, {over.sustainable_per_s:.2f}/s served; the others, "
            f"{over.shed:,} of {figures.offered:,}, were turned away by a full server"
        )
    elif over is not None:
        out.append(
            f"overload: {over.offered_per_s:.2f} requests/s offered, about {over.sustainable_per_s:.2f}/s sustained "
            f"(estimate: completion rate of the window's second half); {over.backlog} requests behind at its end"
            + _longest_wait(prepared, figures)
        )
    if not figures.inside:
        out.append(
            f"no request arrives in the measured window of {window.start_s:g} to {window.end_s:g} s: "
            "lower workload.warmup or give more requests"
        )
    unfinished = figures.counts["unfinished"]
    out += refusals(figures.lengths, prepared.limits)
    out += [*unasked(prepared, figures.refused), *cuts(figures.lengths, prepared.limits)]
    if raw.stopped_at_s is not None:
        out.append(
            f"interrupted after {raw.stopped_at_s:,.0f} s of simulated time: figures of that time, no verdict"
        )
    elif figures.batch_cut is not None:
        out.append(_cut_words(figures.batch_cut, figures.counts, raw.end_of_run_s, workload.drain_s))
    elif unfinished:
        late = f"unfinished after {workload.drain_s:g} s of drain (workload.drain_s); they count as infinitely late"
        out.append(f"{_count(unfinished, 'request')} {late}")
    if figures.never_sent:
        spec = prepared.scenario.workload
        why = (
            f"the duration of {spec.duration:g} s ended first (workload.duration)"
            if spec.duration is not None
            else "the load holds no more"
        )
        out.append(f"{figures.never_sent:,} of {spec.requests:,} requests were never sent: {why}")
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
    if not figures.classes:
        return out + (too_short(slo, figures.inside) if figures.inside else [])
    for kind, judged in zip(workload.classes, figures.classes, strict=True):
        short = too_short(class_slo(kind, slo), judged["requests"])
        if short and not judged["requests"]:
            short = ["no request arrives in the measured window"]
        out += [f"{kind.name}: {text}" for text in short]
    return out


def _held_queue(prepared: Prepared, figures: Figures) -> list[str]:
    """A warning where memory reserved for answers that no client has limited keeps requests waiting."""
    server, held = figures.server, figures.unlimited
    waited, used = server["waiting_time_fraction"], server["kv_cache_usage_perc_peak"]
    most = server["num_requests_running_peak"]
    set_aside = waited >= MOSTLY_WAITED and most < prepared.plan.limits.rows  # by engines that count what is computed alone
    if not held or waited < WAITED or (used < RESERVED and not set_aside):
        return []
    engine = prepared.plan.engine
    return [
        f"{_count(held, 'request')} without workload.max_output_tokens: {engine} reserves memory for the longest answer that the "
        f"context leaves to each. So at most {most:,.0f} ran at once on a replica, with up to {used:.0%} of the KV cache taken, "
        f"and requests waited {waited:.0%} of the time; give the limit that clients send"
    ]


def _idle_pools(prepared: Prepared, figures: Figures) -> list[str]:
    """A warning for each of several pools that computed nothing while requests came, though its devices are paid for."""
    if not figures.inside:
        return []
    of_answers = zip(prepared.pools, figures.pools, strict=True) if figures.pools else ()
    return [
        f"pool '{load['name']}' computed nothing in the measured window, though the cost counts its "
        + _count(pool.devices, "device")
        for pool, load in (*of_answers, *zip(prepared.encoders, figures.encoders, strict=True))
        if pool.devices and not load["gpu_busy_fraction"]
    ]


def _cut_words(cut: BatchCut, counts: Mapping[str, int], end_of_run_s: float, drain_s: float) -> str:
    """How far a batch got by the end of its drain, and when it would end."""
    offered = sum(counts.values()) - counts["rejected"]
    words = (
        f"the batch was cut after {end_of_run_s:,.0f} s, with {counts['finished']:,} of {offered:,} requests done "
        f"({cut.prompt_share:.0%} of the prompt tokens, {cut.output_share:.0%} of the output tokens)"
    )
    if cut.ends_s is None:
        return f"{words}: raise workload.drain_s ({drain_s:g})"
    when = f"{cut.ends_s / 3600:,.2g} h" if cut.ends_s >= 7200 else f"{cut.ends_s / 60:,.0f} min"
    when = f"not before {when}: no answer has begun" if cut.least else f"after about {when}"
    enough = math.ceil(float(f"{1.5 * cut.ends_s:.2g}"))
    estimate = f"it would end {when} (estimate: the rest at the speed so far)"
    return f"{words}; {estimate}: set workload.drain_s to {enough} or more, not {drain_s:g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
