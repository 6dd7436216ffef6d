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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import FINISHED, ClusterResult
from simulator.effort import effort_of, effort_of_all, machine_bytes
from simulator.encoders import encoder_servers
from simulator.finished import Finished, elastic_of, result_of
from simulator.io.tables import Coded, Column, TableWriter
from simulator.limits import all_refused
from simulator.pools import check_longest, machines
from simulator.prepare import prepare
from simulator.prepared import Elasticity, Prepared
from simulator.results.figures import Collector
from simulator.results.first_requests import FIRST_REQUESTS
from simulator.results.latencies import token_gaps
from simulator.routed import admission_of, client_of
from simulator.served import check_asked, destinations_of, routings_of
from simulator.tiers import joins_store
from simulator.workload.columns import Workload
from simulator.workload.streams import stream

if TYPE_CHECKING:
    from engine_models.parts.kept import Kept
    from simulator.cluster.servers import Servers
    from simulator.config.schema import Scenario
    from simulator.serving.log import StepLog
    from simulator.workload.naming import SegmentNumbers
    from simulator.workload.streaming import WorkloadStream

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
    make_timeline: Callable[[], dict[str, NDArray[Any]]] = field(repr=False)
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

    @cached_property
    def timeline(self) -> dict[str, NDArray[Any]]:
        """Columns of the timeline, made when they are first asked for."""
        return self.make_timeline()

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
    warm: Sequence[Kept] = (),
) -> RunResult:
    """Simulate a prepared scenario and assemble its result.

    `should_stop` is asked after every request that ends; once it says True the run ends there, and the result (of the
    simulated time reached, without a verdict) says so in its warnings and in `raw.stopped_at_s`. `scratch` is the folder
    in which a streamed run keeps its request table until the run directory is written; the system's by default. `say` is told
    beforehand what the run will take, if that is much. With `save_cache` the result holds what the prefix caches are left with.
    Each prefix cache begins with the `warm` pieces, as many as it holds.
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
    if warm:
        for rank in cluster.ranks:
            rank.scheduler.warm(warm)
        cluster.warmed()
    held = isinstance(source, Workload)
    folder = None if held else Scratch(scratch)
    try:
        with _table(folder) as (table, write):
            collector = _collector(prepared, source, cluster, write)
            cluster.stream(collector)
        reserves = any(rank.scheduler.reserves_answers for rank in cluster.ranks)
        raw = collector.held or cluster.totals()
        elastic = elastic_of(prepared, cluster)
        figures = collector.figures(
            raw.end_of_run_s, raw.stopped_at_s, cluster.duration_s, elastic.ranks_in if elastic is not None else None
        )
        if figures.offered and figures.offered == figures.refused:
            raise all_refused(figures.offered, figures.lengths, prepared.limits)
        result, manifest, digest = result_of(Finished(prepared, source, raw, figures, cluster, reserves, started))
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
        encoders=_encoder_logs(prepared, cluster),
        firsts=prepared.cold_servers * FIRST_REQUESTS,
    )


def _encoder_logs(prepared: Prepared, cluster: Cluster) -> list[tuple[str, StepLog]]:
    """Pool and log of each server that only encodes."""
    if cluster.encoders is None:
        return []
    names = [each.pool.name for each in prepared.encoders for _ in range(each.most)]
    return [(name, rank.log) for name, rank in zip(names, cluster.encoders.ranks, strict=True)]


REPORTED = (
    "metrics", "totals", "server", "slo", "classes", "encoders", "fleet", "turns", "overload", "batch_cut", "cost", "warnings",
)  # fmt: skip
"""What the result says of each stage."""


LONGEST_DRAIN_S = 86_400.0
"""How long a stage waits for its last answer where servers may never come back, if `workload.drain_s` is not longer (assumed)."""


def _run_stages(
    prepared: Prepared,
    *,
    aggregate: bool,
    should_stop: Callable[[], bool] | None,
    say: Callable[[str], None] | None,
    save_cache: bool,
) -> RunResult:
    """Simulate loads that follow each other on one cluster, each counted by itself, and those measured together."""
    from simulator.cluster.outcome import Rows, rows_in_a_row
    from simulator.cluster.outcome import in_a_row as results_in_a_row
    from simulator.workload.naming import SegmentNumbers
    from simulator.workload.stages import begun, build_stages, in_a_row

    started = time.perf_counter()
    scenario, plan = prepared.scenario, prepared.plan
    numbers = SegmentNumbers()
    disturbed = prepared.elastic is not None or bool(prepared.disturbances)
    limit = {"lasting_s": LONGEST_DRAIN_S} if disturbed else {}
    stages = build_stages(scenario.workload, numbers, seed=scenario.seed, base_dir=prepared.base_dir, **limit)
    effort = effort_of_all(stage.workload for stage in stages)
    effort.refuse(machine_bytes())
    if say is not None and (words := effort.said()) is not None:
        say(words)
    loads: list[tuple[str, Workload]] = []
    raws: list[ClusterResult] = []
    rows_of: list[Rows] = []
    reports: list[dict[str, Any]] = []
    warnings = list(prepared.warnings)
    rows = sessions = refused = 0
    at_s, warmup_s = 0.0, math.inf
    cluster: Cluster | None = None
    reserves = False
    for stage in stages:
        check_longest(prepared, stage.workload)
        warnings += [f"{stage.name}: {text}" for text in check_asked(prepared, stage.workload)]
        load = begun(stage.workload, at_s, rows, sessions)
        own = replace(prepared, scenario=scenario.model_copy(update={"workload": stage.spec}), warnings=())
        if cluster is None:
            cluster = _cluster(own, load, aggregate=aggregate, should_stop=should_stop)
            reserves = any(rank.scheduler.reserves_answers for rank in cluster.ranks)
            prepared = _warmed(prepared, cluster, numbers)
        else:
            several = own.side_by_side or own.services  # pools or services that take different requests
            cluster.follow(load, at_s, destinations_of(own, load.classes) if several else None)
        before, elastic = cluster.totals(), elastic_of(own, cluster)
        toll = elastic.toll.so_far() if elastic is not None else None
        collector = _collector(own, load, cluster, lambda columns: None, at_s)
        cluster.stream(collector, followed=stage is not stages[-1])
        assert collector.held is not None
        assert collector.held_rows is not None
        rows_of.append(collector.held_rows)
        raw = collector.held.since(before)
        ranks_in = elastic.ranks_in if elastic is not None else None
        figures = collector.figures(raw.end_of_run_s, raw.stopped_at_s, cluster.duration_s, ranks_in)
        found, _, _ = result_of(Finished(own, load, raw, figures, cluster, reserves, started, toll, at_s))
        said = {name: found[name] for name in REPORTED if name in found}
        end_s = max(raw.end_of_run_s, at_s)
        reports.append({"name": stage.name, "measured": stage.measured, "start_s": at_s, "end_s": end_s, **said})
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
        if stage is not stages[-1] and figures.counts["unfinished"]:
            warnings.append(
                f"{stage.name}: the stages after it did not begin: {figures.counts['unfinished']:,} of its requests had no answer"
                f" {load.drain_s:,.0f} s after the last was sent"
            )
            break
        ended_s = max(float(np.nanmax(column, initial=at_s)) for column in (raw.end_s, raw.arrival_s))
        ended_s = max(ended_s, cluster.turned_away_s)
        at_s = max(ended_s, load.duration_s) if stage.spec.duration is not None else ended_s
        at_s = float(np.nextafter(at_s, math.inf))  # an end is in one window only
    assert cluster is not None
    if refused == rows:
        raise all_refused(rows, figures.lengths, prepared.limits)
    if not math.isfinite(warmup_s):  # interrupted before
        warmup_s, unmeasured = loads[-1][1].warmup_s, before
    whole, table = in_a_row(loads, warmup_s), dict[str, Column]()
    collector = _collector(prepared, whole, cluster, table.update)
    collector.account(results_in_a_row(raws).since(unmeasured), rows_in_a_row(whole, plan.limits, rows_of))
    collector.retire(math.inf)
    raw = collector.held or cluster.totals()
    elastic = elastic_of(prepared, cluster)
    ranks_in = elastic.ranks_in if elastic is not None else None
    figures = collector.figures(raw.end_of_run_s, raw.stopped_at_s, cluster.duration_s, ranks_in)
    result, manifest, digest = result_of(Finished(prepared, whole, raw, figures, cluster, reserves, started))
    result |= {"stages": reports, "warnings": warnings}
    result["overload"] = next((each["overload"] for each in reports if each["overload"] is not None), None)
    counts = [len(load) for _, load in loads]
    table["stage"] = Coded(np.repeat(np.arange(len(loads), dtype=np.int16), counts), tuple(name for name, _ in loads))
    timeline = collector.timeline(raw.end_of_run_s, elastic.ranks_ever if elastic is not None else None)
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
    encoders = encoder_servers(prepared, [_servers(each, joins=False) for each in prepared.encoders])
    if prepared.services:
        return _fleet(prepared, source, aggregate=aggregate, should_stop=should_stop)
    if prepared.paths is not None:
        from simulator.cluster.handover import HandoverCluster, ReservingCluster

        elastic = prepared.elastic
        stages: dict[str, list[Servers]] = {"prefill": [], "decode": []}
        for each in prepared.pools:
            stages[each.pool.role].append(_servers(each, joins=joins_store(prepared.pools)))
        assert plan.handover is not None
        kind: Callable[..., Cluster] = ReservingCluster if plan.handover.reserves else HandoverCluster
        if routing.system is not None and routing.computes:
            from simulator.cluster.deciding import DecidingCluster, KeepingCluster

            kind = DecidingCluster if routing.system.decides else KeepingCluster
        if elastic is not None:
            from simulator.cluster.elastic_handover import ElasticPull, ElasticReserving

            kind = ElasticReserving if plan.handover.reserves else ElasticPull
            if routing.system is not None and routing.computes:
                from simulator.cluster.elastic_deciding import ElasticDeciding, ElasticKeeping

                kind = ElasticDeciding if routing.system.decides else ElasticKeeping
            kind = partial(kind, **_changes(elastic))
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
            **({"encoders": encoders} if encoders is not None else {}),
        )
    if prepared.side_by_side:
        from simulator.cluster.mixed import MixedCluster

        destinations = destinations_of(prepared, source.classes)
        side_by_side: Callable[..., Cluster] = MixedCluster
        if any(each.turns is not None for each in prepared.pools):
            from simulator.cluster.turns import TurnsCluster

            side_by_side = TurnsCluster
            if prepared.elastic is not None:
                from simulator.cluster.elastic_turns import ElasticTurns

                side_by_side = partial(ElasticTurns, **_changes(prepared.elastic))
            shares = [pool.turns for pool in prepared.pools]
            side_by_side = partial(side_by_side, shares=shares, each=[pool.devices_each for pool in prepared.pools])
        elif prepared.elastic is not None:
            from simulator.cluster.elastic_mixed import ElasticMixed

            side_by_side = partial(ElasticMixed, **_changes(prepared.elastic))
        return side_by_side(
            source,
            [_servers(each, joins=joins_store(prepared.pools)) for each in prepared.pools],
            destinations,
            routings_of(destinations, prepared.pools),
            before_s=[each.plan.front.before_s + half_rtt_s + routing.hop_s for each in prepared.pools],
            after_s=half_rtt_s,
            admission=admission_of(scenario.deployment.admission),
            client=client_of(scenario.client),
            devices=prepared.devices,
            aggregate=aggregate,
            should_stop=should_stop,
            **({"encoders": encoders} if encoders is not None else {}),
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
        meant_for=prepared.pool.context_length_range,
        **({"encoders": encoders} if encoders is not None else {}),
    )


def _fleet(
    prepared: Prepared, source: Workload | WorkloadStream, *, aggregate: bool, should_stop: Callable[[], bool] | None
) -> Cluster:
    """The cluster of pools of which some pass requests on."""
    from simulator.cluster.services import DecidingFleet, Fleet, KeepingFleet, ReservingFleet, Stages

    scenario, services, half_rtt_s = prepared.scenario, prepared.services, prepared.scenario.client.network_rtt_ms / 2e3
    by_role: dict[str, list[Servers]] = {"prefill": [], "decode": [], "mixed": []}
    for each in prepared.pools:
        by_role[each.pool.role].append(_servers(each, joins=joins_store(prepared.pools)))
    service_of = {each.pool.name: number for number, service in enumerate(services) for each in service.pools}
    owners = [service_of[each.pool.name] for each in prepared.pools]
    stages = Stages(by_role["prefill"], by_role["decode"], by_role["mixed"], owners)
    destinations = destinations_of(prepared, source.classes)
    routings = [services[group[0]].routing for group in destinations.groups]
    fronts = [
        each.pools[0].plan.front.unqueued() if each.paired else each.pools[0].plan.front for each in services
    ]
    system, handover = prepared.routing.system, prepared.plan.handover
    assert handover is not None
    assert prepared.paths is not None
    kind: Callable[..., Cluster] = ReservingFleet if handover.reserves else Fleet
    if system is not None and prepared.routing.computes:
        kind = DecidingFleet if system.decides else KeepingFleet
    if prepared.elastic is not None:
        from simulator.cluster.elastic_services import ElasticPullFleet, ElasticReservingFleet

        kind = ElasticReservingFleet if handover.reserves else ElasticPullFleet
        if system is not None and prepared.routing.computes:
            from simulator.cluster.elastic_deciding import ElasticDecidingFleet, ElasticKeepingFleet

            kind = ElasticDecidingFleet if system.decides else ElasticKeepingFleet
        kind = partial(kind, **_changes(prepared.elastic))
    return kind(
        source,
        stages,
        prepared.paths,
        [each.limits for each in services],
        destinations,
        routings,
        disturbances=prepared.disturbances,
        admission=admission_of(scenario.deployment.admission),
        client=client_of(scenario.client),
        before_s=[front.before_s + half_rtt_s + prepared.routing.hop_s for front in fronts],
        after_s=half_rtt_s,
        devices=prepared.devices,
        aggregate=aggregate,
        should_stop=should_stop,
    )


def _servers(prepared: Prepared, *, joins: bool) -> Servers:
    """The replicas of a pool; whether its store, if it has one, is that of others too."""
    from simulator.cluster.servers import Servers

    plan = prepared.plan
    acceptance = _acceptance(plan, prepared.scenario.seed)
    return Servers(
        plan,
        prepared.times(),
        prepared.most,
        acceptance,
        machines(prepared),
        joins and "shared" in plan.tiers,
        prepared.pool.context_length_range,
    )


def _changes(elastic: Elasticity) -> dict[str, Any]:
    """What makes a cluster of one whose replicas come and go."""
    scalers = elastic.scalers() if elastic.scalers is not None else []
    return {"pools": elastic.pools, "faults": elastic.faults, "scalers": scalers, "holds": elastic.holds}


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


__all__ = ["STREAM_ABOVE", "RunResult", "run_prepared", "simulate"]
