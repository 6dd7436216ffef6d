"""From a scenario to a result: resolve, simulate, judge, price.

    prepare(scenario)   resolves every name to facts and refuses what cannot be (no simulation)
    simulate(scenario)  runs it and returns the result, the request table, the timeline and the manifest

There is one way: a cluster serves the requests, in one block or in many, and a collector (`simulator.results.figures`) counts
them. A run of up to `STREAM_ABOVE` requests is held in memory and counted exactly; of a larger one requests are written to the
table and dropped as they end.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan
from hardware_profiles.errors import InputError
from simulator.calibrated import used_ranges
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import FINISHED, ClusterResult
from simulator.cost import UnitPrice, Usage, run_cost
from simulator.effort import effort_of, effort_of_all, machine_bytes
from simulator.io.tables import Coded, Column, TableWriter
from simulator.limits import all_refused, cuts, refusals
from simulator.pools import blended_price, check_longest, machines
from simulator.prepare import deployment_summary, prepare
from simulator.prepared import Elasticity, Prepared
from simulator.results.domain import device_sources, domain, kernel_sources
from simulator.results.figures import Collector, Figures
from simulator.results.fleet import fleet_figures, turns_figures
from simulator.results.intervals import add_intervals
from simulator.results.latencies import token_gaps
from simulator.results.rates import BatchCut
from simulator.results.timeline import Window
from simulator.results.verdict import class_slo, slo_bounds, slo_dict, too_short, with_model_error
from simulator.routed import admission_of, client_of
from simulator.served import check_asked, destinations_of, routings_of
from simulator.tiers import joins_store
from simulator.version import SCHEMA_VERSION, VERSION
from simulator.workload.columns import Workload
from simulator.workload.streams import stream

if TYPE_CHECKING:
    from simulator.cluster.elastic import Elastic
    from simulator.config.schema import Scenario
    from simulator.workload.naming import SegmentNumbers
    from simulator.workload.spec import WorkloadSpec
    from simulator.workload.streaming import WorkloadStream

WAITED, RESERVED = 0.01, 0.8
"""Share of the time with a queue, and of the KV cache held, from which unlimited answers are said to hold the queue (assumed)."""
MOSTLY_WAITED = 0.5
"""Share of the time with a queue from which they are said to, however little of the cache is in use (assumed)."""
STREAM_ABOVE = 500_000
"""Requests above which a run is streamed, if its workload can be (`simulator.workload.streaming`)."""


class Scratch:
    """A folder for what is written while a run goes; it is removed with this object, or before."""

    def __init__(self, parent: Path | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=".capacity-plan.", dir=parent))
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        self._remove()


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
    pools: tuple[str, ...] = ()
    """Names of the ranks' pools, by number."""
    scratch: Scratch | None = field(repr=False, default=None)
    cache: dict[str, Any] | None = field(repr=False, default=None)
    """What the prefix caches hold at the end, where that was asked for."""

    @property
    def gaps(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Gaps between tokens [s] of the finished requests in the window, and how often each occurs."""
        start_s, raw = self.workload.warmup_s, self.raw
        inside = (raw.arrival_s >= start_s) & (raw.arrival_s <= start_s + self.result["totals"]["duration_s"])
        return token_gaps(raw, inside & (raw.status == FINISHED))

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
    say: Callable[[str], None] | None = None,
    save_cache: bool = False,
) -> RunResult:
    """Simulate a prepared scenario and assemble its result.

    `should_stop` is asked after every request that ends; once it says True the run ends there, and the result (of the
    simulated time reached, without a verdict) says so in its warnings and in `raw.stopped_at_s`. `scratch` is the folder
    in which a streamed run keeps its request table until the run directory is written; the system's by default. `say` is told
    beforehand what the run will take, if that is much. With `save_cache` the result holds what the prefix caches are left with.
    """
    if workload is None and prepared.scenario.workload.stages is not None:
        return _run_stages(prepared, aggregate=aggregate, should_stop=should_stop, say=say, save_cache=save_cache)
    started = time.perf_counter()
    scenario = prepared.scenario
    numbers = _numbers(prepared, save_cache)
    source = workload if workload is not None else _requests(prepared, numbers)
    effort = effort_of(source)
    effort.refuse(machine_bytes())
    if say is not None and (words := effort.said()) is not None:
        say(words)
    lost = []
    if isinstance(source, Workload):
        check_longest(prepared, source)
        lost = check_asked(prepared, source)
    cluster = _cluster(prepared, source, aggregate=aggregate, should_stop=should_stop)
    if numbers is not None:
        prepared = _warmed(prepared, cluster, numbers)
    held = isinstance(source, Workload)
    folder = None if held else Scratch(scratch)
    try:
        with _table(folder) as (table, write):
            collector = _collector(prepared, source, cluster, write)
            cluster.stream(collector)
        reserves = any(rank.scheduler.reserves_answers for rank in cluster.ranks)
        raw = collector.held or cluster.totals()
        elastic = _elastic(prepared, cluster)
        figures = collector.figures(
            raw.end_of_run_s, raw.stopped_at_s, cluster.duration_s, elastic.ranks_in if elastic is not None else None
        )
        if figures.offered and figures.offered == figures.refused:
            raise all_refused(figures.offered, figures.lengths, prepared.limits)
        result, manifest, digest = _assemble(prepared, source, raw, figures, cluster, reserves, started)
        result["warnings"] += lost
    except BaseException:
        if folder is not None:
            folder.close()
        raise
    return RunResult(
        result,
        table,
        collector.timeline(raw.end_of_run_s, elastic.ranks_ever if elastic is not None else None),
        manifest,
        scenario.name,
        digest,
        raw,
        source if isinstance(source, Workload) else source.columns_of_none(),
        tuple(_pool_names(prepared)),
        folder,
        _saved(prepared, cluster, numbers) if save_cache else None,
    )


def _numbers(prepared: Prepared, save_cache: bool) -> SegmentNumbers | None:
    """Numbers of contents, where caches outlive a run."""
    if not save_cache and not any(each.pool.warm_cache for each in prepared.pools or (prepared,)):
        return None
    from simulator.workload.naming import SegmentNumbers

    return SegmentNumbers()


def _warmed(prepared: Prepared, cluster: Cluster, numbers: SegmentNumbers) -> Prepared:
    """Fill the caches of a cluster as its pools ask; the words about it are among the assumptions."""
    from simulator.caches import warm

    said = warm(prepared, cluster.ranks, numbers)
    cluster.warmed()
    return replace(prepared, assumptions=(*prepared.assumptions, *said))


def _saved(prepared: Prepared, cluster: Cluster, numbers: SegmentNumbers | None) -> dict[str, Any]:
    from simulator.caches import saved

    assert numbers is not None
    return saved(prepared, cluster.ranks, numbers)


def _collector(
    prepared: Prepared,
    source: Workload | WorkloadStream,
    cluster: Cluster,
    write: Callable[[Mapping[str, Column]], None],
    begin_s: float = 0.0,
) -> Collector:
    """What counts a load of a cluster."""
    return Collector(
        prepared.scenario,
        source.classes,
        source.warmup_s,
        source.duration_s,
        [rank.log for rank in cluster.ranks],
        [rank.scheduler.state()[-1] for rank in cluster.ranks],
        write,
        exact=isinstance(source, Workload),
        pools=_pool_names(prepared),
        hands_over=prepared.paths is not None,
        begin_s=begin_s,
        apart=prepared.side_by_side,
    )


REPORTED = ("metrics", "totals", "server", "slo", "classes", "overload", "batch_cut", "cost", "warnings")
"""What the result says of each stage."""


def _run_stages(
    prepared: Prepared,
    *,
    aggregate: bool,
    should_stop: Callable[[], bool] | None,
    say: Callable[[str], None] | None,
    save_cache: bool,
) -> RunResult:
    """Simulate loads that follow each other on one cluster, each counted by itself, and those measured together."""
    from simulator.cluster.outcome import Rows
    from simulator.cluster.outcome import in_a_row as results_in_a_row
    from simulator.pools import check_stages
    from simulator.workload.naming import SegmentNumbers
    from simulator.workload.stages import begun, build_stages, in_a_row

    started = time.perf_counter()
    scenario, plan = prepared.scenario, prepared.plan
    check_stages(prepared)
    numbers = SegmentNumbers()
    stages = build_stages(scenario.workload, numbers, seed=scenario.seed, base_dir=prepared.base_dir)
    effort = effort_of_all(stage.workload for stage in stages)
    effort.refuse(machine_bytes())
    if say is not None and (words := effort.said()) is not None:
        say(words)
    loads: list[tuple[str, Workload]] = []
    raws: list[ClusterResult] = []
    reports: list[dict[str, Any]] = []
    warnings = list(prepared.warnings)
    rows = sessions = refused = 0
    at_s, warmup_s = 0.0, math.inf
    cluster: Cluster | None = None
    reserves = False
    for stage in stages:
        check_longest(prepared, stage.workload)
        check_asked(prepared, stage.workload)
        load = begun(stage.workload, at_s, rows, sessions)
        own = replace(prepared, scenario=scenario.model_copy(update={"workload": stage.spec}), warnings=())
        if cluster is None:
            cluster = _cluster(own, load, aggregate=aggregate, should_stop=should_stop)
            reserves = any(rank.scheduler.reserves_answers for rank in cluster.ranks)
            prepared = _warmed(prepared, cluster, numbers)
        else:
            cluster.follow(load, at_s)
        before = cluster.totals()
        collector = _collector(own, load, cluster, lambda columns: None, at_s)
        cluster.stream(collector)
        assert collector.held is not None
        raw = collector.held.since(before)
        figures = collector.figures(raw.end_of_run_s, raw.stopped_at_s, cluster.duration_s)
        found, _, _ = _assemble(own, load, raw, figures, cluster, reserves, started)
        said = {name: found[name] for name in REPORTED if name in found}
        reports.append({"name": stage.name, "measured": stage.measured, "start_s": at_s, "end_s": raw.end_of_run_s, **said})
        warnings += [f"{stage.name}: {text}" for text in found["warnings"]]
        if stage.measured and not math.isfinite(warmup_s):
            warmup_s, unmeasured = load.warmup_s, before
        loads.append((stage.name, load))
        raws.append(collector.held)
        rows += len(load)
        sessions = max(sessions, int(load.session_id.max(initial=-1)) + 1)
        refused += figures.refused
        if raw.stopped_at_s is not None:
            break
        ended_s = max(float(np.nanmax(raw.end_s, initial=at_s)), float(np.nanmax(raw.arrival_s, initial=at_s)))
        at_s = max(ended_s, load.duration_s) if stage.spec.duration is not None else ended_s
        at_s = float(np.nextafter(at_s, math.inf))  # an end is in one window only
    assert cluster is not None
    if refused == rows:
        raise all_refused(rows, figures.lengths, (plan.limits,))
    if not math.isfinite(warmup_s):  # interrupted before
        warmup_s, unmeasured = loads[-1][1].warmup_s, before
    whole, table = in_a_row(loads, warmup_s), dict[str, Column]()
    collector = _collector(prepared, whole, cluster, table.update)
    collector.account(results_in_a_row(raws).since(unmeasured), Rows(whole, plan.limits))
    collector.retire(math.inf)
    raw = collector.held or cluster.totals()
    figures = collector.figures(raw.end_of_run_s, raw.stopped_at_s, cluster.duration_s)
    result, manifest, digest = _assemble(prepared, whole, raw, figures, cluster, reserves, started)
    result |= {"stages": reports, "warnings": warnings}
    result["overload"] = next((each["overload"] for each in reports if each["overload"] is not None), None)
    counts = [len(load) for _, load in loads]
    table["stage"] = Coded(np.repeat(np.arange(len(loads), dtype=np.int16), counts), tuple(name for name, _ in loads))
    timeline = collector.timeline(raw.end_of_run_s, None)
    pools = tuple(_pool_names(prepared))
    cache = _saved(prepared, cluster, numbers) if save_cache else None
    return RunResult(result, table, timeline, manifest, scenario.name, digest, raw, whole, pools, cache=cache)


def _requests(prepared: Prepared, numbers: SegmentNumbers | None) -> Workload | WorkloadStream:
    """The scenario's requests, as a stream if they are many and can be streamed; held, and by `numbers`, if there are some."""
    from simulator.workload.build import build_workload
    from simulator.workload.streaming import open_stream

    spec, seed, base_dir = prepared.scenario.workload, prepared.scenario.seed, prepared.base_dir
    if numbers is not None:
        named = build_workload(spec, seed=seed, base_dir=base_dir, named=True)
        return named if named.content is None else replace(named, content=numbers.renumber(named.content))
    streamed = open_stream(spec, seed=seed, base_dir=base_dir, above=STREAM_ABOVE)
    return streamed or build_workload(spec, seed=seed, base_dir=base_dir)


@contextmanager
def _table(folder: Scratch | None) -> Iterator[tuple[dict[str, Column] | Path, Callable[[Mapping[str, Column]], None]]]:
    """Where the request table stands, columns or a file in a folder, and what takes it, a block at a time."""
    if folder is None:
        columns: dict[str, Column] = {}
        yield columns, columns.update
        return
    path = folder.path / "requests.parquet"
    with TableWriter(path) as writer:
        yield path, writer.write


def _elastic(prepared: Prepared, cluster: Cluster) -> Elastic | None:
    """The cluster as one whose replicas come and go, if they do."""
    if prepared.elastic is None:
        return None
    from simulator.cluster.elastic import Elastic

    assert isinstance(cluster, Elastic)
    return cluster


def _cluster(
    prepared: Prepared, source: Workload | WorkloadStream, *, aggregate: bool, should_stop: Callable[[], bool] | None
) -> Cluster:
    """The cluster of a deployment."""
    scenario, plan = prepared.scenario, prepared.plan
    named = isinstance(source, Workload) and source.adapter is not None and bool(source.adapter.any())
    if named and any(each.plan.costs.adapters is None for each in prepared.pools or (prepared,)):
        raise InputError(
            "requests of the trace name adapters (its column `adapter`), and a pool serves none",
            where="deployment.lora",
            mend="say what it serves, such as lora: {max_loras: 4, rank: 16}, or take the column out",
        )
    half_rtt_s, routing = scenario.client.network_rtt_ms / 2e3, prepared.routing
    if prepared.paths is not None:
        from simulator.cluster.handover import HandoverCluster, ReservingCluster
        from simulator.cluster.servers import Servers

        elastic = prepared.elastic
        stages: dict[str, list[Servers]] = {"prefill": [], "decode": []}
        for each in prepared.pools:
            servers = Servers(each.plan, each.times(), each.most, _acceptance(each.plan, scenario.seed))
            stages[each.pool.role].append(servers)
        assert plan.handover is not None
        kind: Callable[..., Cluster] = ReservingCluster if plan.handover.reserves else HandoverCluster
        if elastic is not None:
            from simulator.cluster.elastic_handover import ElasticPull, ElasticReserving

            kind = partial(ElasticReserving if plan.handover.reserves else ElasticPull, **_changes(elastic))
        return kind(
            source,
            stages["prefill"],
            stages["decode"],
            prepared.paths,
            plan.limits,
            disturbances=prepared.disturbances,
            router=routing,
            admission=admission_of(scenario.deployment.admission),
            client=client_of(scenario.client),
            before_s=prepared.pools[0].plan.front.unqueued().before_s + half_rtt_s + routing.hop_s,
            after_s=half_rtt_s,
            devices=prepared.devices,
            aggregate=aggregate,
            should_stop=should_stop,
        )
    if prepared.side_by_side:
        from simulator.cluster.mixed import MixedCluster
        from simulator.cluster.servers import Servers

        destinations = destinations_of(prepared, source.classes)
        side_by_side: Callable[..., Cluster] = MixedCluster
        if any(each.turns is not None for each in prepared.pools):
            from simulator.cluster.turns import TurnsCluster

            shares = [pool.turns for pool in prepared.pools]
            side_by_side = partial(TurnsCluster, shares=shares, each=[pool.devices_each for pool in prepared.pools])
        elif prepared.elastic is not None:
            from simulator.cluster.elastic_mixed import ElasticMixed

            side_by_side = partial(ElasticMixed, **_changes(prepared.elastic))
        return side_by_side(
            source,
            [
                Servers(
                    each.plan,
                    each.times(),
                    each.most,
                    _acceptance(each.plan, scenario.seed),
                    machines(each),
                    joins_store(prepared.pools),
                )
                for each in prepared.pools
            ],
            destinations,
            routings_of(destinations, prepared.pools),
            before_s=[each.plan.front.before_s + half_rtt_s + routing.hop_s for each in prepared.pools],
            after_s=half_rtt_s,
            admission=admission_of(scenario.deployment.admission),
            client=client_of(scenario.client),
            devices=prepared.devices,
            aggregate=aggregate,
            should_stop=should_stop,
        )
    elastic = prepared.elastic
    made: Callable[..., Cluster] = Cluster
    if elastic is not None:
        from simulator.cluster.elastic import ElasticCluster

        made = partial(ElasticCluster, **_changes(elastic))
    return made(
        source,
        plan,
        prepared.times(),
        replicas=prepared.most,
        ranks=prepared.ranks,
        router=routing,
        admission=admission_of(scenario.deployment.admission),
        client=client_of(scenario.client),
        before_s=plan.front.before_s + half_rtt_s + routing.hop_s,
        after_s=half_rtt_s,
        devices=prepared.devices_each,
        aggregate=aggregate,
        should_stop=should_stop,
        acceptance=_acceptance(plan, scenario.seed),
        nodes=machines(prepared),
    )


def _changes(elastic: Elasticity) -> dict[str, Any]:
    """What makes a cluster of one whose replicas come and go."""
    scalers = elastic.scalers() if elastic.scalers is not None else []
    return {"pools": elastic.pools, "faults": elastic.faults, "scalers": scalers, "holds": elastic.holds}


def _mostly_think(spec: WorkloadSpec, result: dict[str, Any]) -> bool:
    """Whether clients of closed loops think for longer than they wait, by Little's law: then requests come as in an open loop.

    Runs with the evidence of closed loops are of clients without think time, which keep a server full.
    """
    users = spec.users()
    if not users:
        return False
    served_per_s, answer_s = result["totals"]["request_throughput"], (result["metrics"]["e2el_ms"]["mean"] or 0.0) / 1e3
    return bool(served_per_s * answer_s < users / 2)


def _pool_names(prepared: Prepared) -> list[str]:
    """The pool of each rank."""
    pools = prepared.pools or (prepared,)
    return [each.pool.name for each in pools for _ in range(each.most * each.ranks)]


def _acceptance(plan: EnginePlan, seed: int) -> Callable[[int], Callable[[int], int]] | None:
    """Random streams of accepted drafts, one a request, from the scenario's seed."""
    if plan.speculation is None:
        return None
    from engine_models.parts.acceptance import AcceptanceStreams

    return AcceptanceStreams(plan.speculation.rates, int(stream(seed, "acceptance").integers(2**63))).of


def _assemble(
    prepared: Prepared,
    workload: Workload | WorkloadStream,
    raw: ClusterResult,
    figures: Figures,
    cluster: Cluster,
    reserves: bool,
    started: float,
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return result.json, the manifest and the scenario's hash."""
    scenario = prepared.scenario
    window, counts, server = figures.window, figures.counts, dict(figures.server)
    slo = slo_dict(scenario.slo)
    length = max(window.length_s, 1e-9)
    devices = cluster.devices.mean(window.start_s, window.end_s)
    per_device = max(devices, 1e-9)
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
    }
    server["prefix_cache_hit_rate"] = raw.hit_tokens / raw.queried_tokens if raw.queried_tokens else 0.0
    busy = float(server["gpu_busy_fraction"])
    at_once = float(server["num_requests_running"]) / max(busy, 1e-9)
    alike = prepared.paths is None and len(prepared.pools) < 2  # pools of unlike devices are averaged nowhere
    server["energy_j"] = devices * window.length_s * prepared.power_w(busy, at_once) if alike else None
    if prepared.plan.tiers:
        rate = raw.host_hit_tokens / raw.queried_tokens if raw.queried_tokens else 0.0
        server["external_prefix_cache_hit_rate"] = rate
        server["kv_tiers"] = [
            {
                "kind": count.kind,
                "hit_rate": count.hit_tokens / raw.queried_tokens if raw.queried_tokens else 0.0,
                "read_bytes": round(count.read_bytes),
                "written_bytes": round(count.written_bytes),
            }
            for count in raw.tiers
        ]
    server |= _drafted(prepared, raw)
    usage = Usage(
        devices,
        window.length_s,
        input_tokens,
        output_tokens,
        figures.window_completed,
        server.pop("busy_prefill_s"),
        server.pop("busy_decode_s"),
    )
    cost = run_cost(_price(prepared, cluster, window), usage)
    warnings = [*prepared.warnings, *workload.warnings, *_warnings(prepared, workload, raw, figures, slo)]
    if reserves:
        warnings += _held_queue(prepared, figures)
    totals["ci95"] = figures.rates_ci95
    if prepared.side_by_side and figures.pools:
        devices_by_pool = cluster.devices_of_pools(window.start_s, window.end_s) or [each.devices for each in prepared.pools]
        parts = zip(prepared.pools, figures.pools, devices_by_pool, strict=True)
        figures.pools = [_of_pool(each, load, window, there) for each, load, there in parts]
        server["energy_j"] = sum(pool["energy_j"] for pool in figures.pools)
    fleet, turns = fleet_figures(cluster, window), turns_figures(cluster.changes, window, prepared)
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
        **({"fleet": fleet} if fleet else {}),
        **({"turns": turns} if turns else {}),
        "overload": asdict(figures.overload) if figures.overload is not None else None,
        "cost": cost,
        "deployment": deployment_summary(prepared),
        "warnings": warnings,
        "assumptions": list(prepared.assumptions),
        "extrapolation": {"inside_calibration": None, "axes": []},
    }
    evidence, axes = domain(prepared, used_ranges(result))
    waits = not figures.open_loop and not _mostly_think(scenario.workload, result)
    evidence = replace(evidence, closed_loop=waits, batch=figures.at_once)
    result["assumptions"] += add_intervals(result, evidence)
    result["extrapolation"] = {"inside_calibration": not axes, "axes": axes}
    if figures.batch_cut is not None:
        result["batch_cut"] = asdict(figures.batch_cut)
    if figures.quantile_error:
        result["assumptions"].append(
            f"percentiles of this many requests are read from histograms: relative error up to {figures.quantile_error:.2%}"
        )
    if figures.verdict is not None:
        attained = totals["interval"]["goodput_fraction"]
        result["slo"] = with_model_error(figures.verdict, figures.stats, attained)
    for kind in result["classes"]:
        if kind["slo"]:
            kind["slo"] = with_model_error(kind["slo"], kind["metrics"])
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


def _price(prepared: Prepared, cluster: Cluster, window: Window) -> UnitPrice | None:
    """The price of a device-hour; of pools whose replicas come and go, by the devices that each had on average."""
    elastic = _elastic(prepared, cluster)
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
    if over is not None and over.shed:
        out.append(
            f"overload: {over.offered_per_s:.2f} requests/s offered, {over.sustainable_per_s:.2f}/s served; the others, "
            f"{over.shed:,} of {figures.offered:,}, were turned away by a full server"
        )
    elif over is not None:
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
    out += [*refusals(figures.lengths, prepared.limits), *cuts(figures.lengths, prepared.limits)]
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


__all__ = ["STREAM_ABOVE", "RunResult", "run_prepared", "simulate"]
