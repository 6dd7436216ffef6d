"""Failures of a scenario resolved: what happens to which replica, and how long a new one takes to start."""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from engine_models.cost.start_up import StartUp
from engine_models.declaration import Handover
from engine_models.parts.protocols import INFINITY
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.cluster.faults import HOUR_S, Disturbance, Event, Fault, Faults, Process
from simulator.cluster.fleet import Members
from simulator.cluster.scaling.scaler import Alone, Scaling
from simulator.pools import POOLS, nodes_of, unique, ways_of
from simulator.prepared import Elasticity, Prepared
from simulator.scaled import Scalings, bounds, joint, maker, scalings_of, words
from simulator.workload.streams import stream

if TYPE_CHECKING:
    from numpy.random import Generator

    from simulator.config import features
    from simulator.config.schema import Scenario

FAILURES = "deployment.failures"


def with_elasticity(prepared: Prepared) -> Prepared:
    """A pool with what its failures and its autoscaler do to it; as it was, without any.

    Raises
    ------
    InputError : they name a pool or a replica that is not there, bounds that cannot be, or what one pool has not.
    """
    pool, around = prepared.pool, prepared.scenario.deployment
    _check_once(prepared)
    failures, scaling = pool.failures or around.failures, pool.autoscaler or around.autoscaler
    if failures is None and scaling is None:
        return prepared
    members, notes = _members(prepared, scaling, failures)
    elastic = Elasticity((members,))
    if scaling is not None:
        made = maker(prepared, scaling, bounds(prepared, scaling))
        elastic = replace(elastic, scalers=lambda: [Scaling((0,), Alone(made()))], holds=bounds(prepared, scaling)[0] == 0)
        notes += words(scaling, made())
    if failures is not None:
        faults = _faults(prepared, failures, members, scaled=scaling is not None)
        elastic = replace(elastic, faults=faults)
        notes += _words([Stated(failures, FAILURES, (0,))])
    return replace(prepared, elastic=elastic, assumptions=(*prepared.assumptions, *notes))


def _members(
    prepared: Prepared, scaling: features.Scaler | None, failures: features.Failures | None
) -> tuple[Members, list[str]]:
    """The replicas of a pool that come and go, and what is assumed of their start."""
    given = scaling.start_up if scaling is not None else failures.start_up if failures is not None else None
    start, notes = start_of(prepared, given)
    stated = failures.start_up if failures is not None else None
    back = start if stated is None else start_of(prepared, stated)[0]
    most = prepared.replicas if scaling is None else bounds(prepared, scaling)[1]
    grace_s = scaling.grace_s if scaling is not None else 0.0
    return Members(prepared.pool.name, prepared.replicas, most, prepared.devices_each, start, back.server_s, grace_s), notes


def _check_once(prepared: Prepared) -> None:
    """Refuse what stands in a pool and around the pools."""
    for key in ("failures", "autoscaler"):
        if getattr(prepared.pool, key) is not None and getattr(prepared.scenario.deployment, key) is not None:
            raise InputError(
                f"pool '{prepared.pool.name}' has `{key}` of its own beside that of the deployment",
                where=f"deployment.{key}",
                mend="keep one of the two",
            )


def start_of(prepared: Prepared, given: float | features.StartUp | None) -> tuple[StartUp, list[str]]:
    """How long a new server takes to start, by parts, and what is assumed."""
    if isinstance(given, int | float):
        return StartUp(0.0, 0.0, float(given), 0.0, 0.0, 0.0), []
    place = given.weights_from if given is not None else "disk"
    found, notes = prepared.plan.start_up(place, compiled=given is not None and given.compile_cache)
    if given is not None:
        stated = {key: getattr(given, key) for key in found.parts() if getattr(given, key) is not None}
        found = replace(found, **stated)
    said = ", ".join(f"{name.removesuffix('_s').replace('_', ' ')} {s:.3g}" for name, s in found.parts().items())
    return found, [f"a new server takes {found.provisioning_s + found.server_s:.3g} s to start: {said} (start_up)", *notes]


def _words(stated: Series[Stated]) -> list[str]:
    late_s = stated[0].failures.detected_after_s
    when = "at once" if not late_s else f"at once, of a lost node after {late_s:g} s"
    out = [f"clients and the router hear of a lost server {when}; a client may send its request again (client.retries)"]
    if any(
        each.failures.reclaims_per_hour is not None or any(event.kind == "reclaim" for event in each.failures.events)
        for each in stated
    ):
        out.append("a server that is to be taken back gets no new requests from the notice on, and is billed until it goes")
    return out


def _faults(prepared: Prepared, failures: features.Failures, members: Members, *, scaled: bool) -> Faults:
    """What goes wrong; where an autoscaler is, lost devices come back like new ones where nothing else is said."""
    if failures.replaced_after_s is None and scaled:
        failures = failures.model_copy(update={"replaced_after_s": members.start.provisioning_s})
    each, most = members.devices, members.most
    per_node = prepared.pool.gpus_per_node or int(prepared.device.node_size.value)
    nodes = tuple(number * each // per_node for number in range(most))
    events = tuple(
        _event(prepared, failures, event, number, most) for number, event in enumerate(failures.events)
    )
    processes = tuple(_processes(failures, range(most), nodes, [each] * most, stream(prepared.scenario.seed, "failures")))
    return Faults(events, processes, nodes, failures.detected_after_s)


def _event(prepared: Prepared, failures: features.Failures, event: features.FailureEvent, number: int, most: int) -> Event:
    where = f"{FAILURES}.events.{number}"
    load = _load_of(prepared.scenario, event, where)
    if event.kind == "link":
        raise _no_link(where)
    if event.pool not in (None, prepared.pool.name):
        raise InputError(f"there is no pool '{event.pool}'", where=f"{where}.pool", mend=f"use '{prepared.pool.name}'")
    if event.replica is not None and event.replica >= most:
        raise InputError(
            f"there is no replica {event.replica}: they are numbered from 0 to {most - 1}",
            where=f"{where}.replica",
            mend="name one of them",
        )
    away_s = event.for_s if event.for_s is not None else failures.replaced_after_s
    if event.kind == "slow":
        assert event.factor is not None
        slow = Fault("slow", event.replica, factor=event.factor)
        return Event(event.at_s, slow if event.for_s is None else replace(slow, slow_s=event.for_s), load)
    notice_s = event.notice_s if event.notice_s is not None else failures.notice_s
    fault = Fault(event.kind, event.replica, event.kind in ("node", "reclaim"), away_s, notice_s=notice_s)
    return Event(event.at_s, fault, load)


def _processes(
    failures: features.Failures, replicas: Series[int], nodes: Series[int], each: Series[int], seeds: Generator
) -> list[Process]:
    """A process for each unit of these replicas that may fail, and one for each that may be taken back.

    `nodes` and `each` are the nodes and the devices of all replicas.
    """
    if failures.of is None:
        return []
    whole = failures.of == "node"
    units = [nodes.index(node) for node in dict.fromkeys(nodes[n] for n in replicas)] if whole else list(replicas)
    back_s = failures.replaced_after_s
    fail_s = failures.repair_s if failures.repair_s is not None else back_s
    out = []
    for unit in units:
        times = each[unit] if failures.of == "device" else 1
        drawn = seeds.integers(2**63, size=2).tolist()
        if failures.mtbf_h is not None:
            kind = Fault("node" if whole else "gpu", unit, whole, fail_s)
            out.append(Process(kind, times / (failures.mtbf_h * HOUR_S), drawn[0]))
        if failures.reclaims_per_hour is not None:
            notice = Fault("reclaim", unit, whole, back_s, notice_s=failures.notice_s)
            out.append(Process(notice, times * failures.reclaims_per_hour / HOUR_S, drawn[1]))
    return out


def with_roles(scenario: Scenario, pools: Series[Prepared]) -> tuple[list[Prepared], Elasticity | None, list[str]]:
    """Prefill, decode and other pools (in this order) whose replicas come and go, each with its own part; what is assumed.

    Raises
    ------
    InputError : their engine's rules for it are not modelled, or a pool or a replica is not there.
    """
    around, client = scenario.deployment, scenario.client
    stated = stated_of(scenario, pools)
    handovers = [each.plan.handover for each in pools if each.plan.handover is not None]
    events = [event for each in stated for event in each.failures.events]
    strikes = any(each.failures.of is not None for each in stated) or any(each.kind not in ("link", "slow") for each in events)
    stalls = any(each.kind == "link" for each in events) and any(each.gives_up_s < INFINITY for each in handovers)
    scaling = scalings_of(around, pools)
    waits = around.admission, client.timeout_s, client.retries
    if not (strikes or stalls or scaling or any(given is not None for given in waits)):
        return list(pools), None, []
    computes = next((each.routing for each in pools if each.routing.computes), None)
    mute = next(((each, each.plan.handover) for each in pools if each.plan.handover and not each.plan.handover.drops), None)
    if mute is not None:
        raise InputError(
            f"what {mute[0].plan.engine} does in prefill and decode pools over {mute[1].connector} about requests that a "
            "server or a client drops is not modelled yet",
            where="deployment",
            mend="remove failures, autoscaler, admission, client.timeout_s and client.retries, or use a pool of role: mixed",
        )
    found, elastic, said = _changing(pools, scaling, stated, strikes=strikes)
    if strikes:
        elastic = replace(elastic, faults=_faults_of(scenario, stated, found, back_s=_back_s(elastic)))
        said += [*_words(stated), *_left_behind(handovers[0])]
        if computes is not None and computes.system is not None:
            said.append(
                "a prompt whose prefill server is lost before it is computed is computed by its decode server"
                if computes.system.decides
                else "where no prefill server is left, decode servers compute prompts"
            )
    return found, elastic, said


def with_pools(prepared: Prepared) -> Prepared:
    """Pools side by side with what failures and autoscalers do to them; as they were, without any.

    Raises
    ------
    InputError : they name a pool or a replica that is not there, bounds that cannot be, or autoscalers stand beside turns.
    """
    scenario, pools = prepared.scenario, prepared.pools
    stated, scaling = stated_of(scenario, pools), scalings_of(scenario.deployment, pools)
    if not stated and not scaling:
        return prepared
    turning = any(each.turns is not None for each in pools)
    if turning and scaling:
        raise InputError(
            "autoscalers beside models that take turns are not modelled: none is known that counts what waits for a model",
            where="deployment.autoscaler",
            mend="leave it out, or give each model a pool of its own",
        )
    found, elastic, said = _changing(pools, scaling, stated, strikes=bool(stated))
    if stated:
        faults = _of_places if turning else partial(_faults_of, back_s=_back_s(elastic), slows=True)
        elastic = replace(elastic, faults=faults(scenario, stated, found))
        said += _words(stated)
        if turning:
            said.append(
                "with a server all is lost that waits there for another model, too; back again, it has the model that was there "
                "last (assumed)"
            )
    return replace(prepared, pools=tuple(found), elastic=elastic, assumptions=unique((*prepared.assumptions, *said)))


@dataclass(frozen=True)
class Stated:
    """Failures around the pools or in one of them, where they stand, and the numbers of the pools that they strike."""

    failures: features.Failures
    where: str
    pools: tuple[int, ...]


def stated_of(scenario: Scenario, pools: Series[Prepared]) -> list[Stated]:
    """The failures of several pools.

    Raises
    ------
    InputError : a pool has some beside those around the pools, or two notice losses differently.
    """
    around = scenario.deployment
    places = {pool.name: f"{POOLS}.{number}.failures" for number, pool in enumerate(around.pools)}
    own = [
        Stated(each.pool.failures, places.get(each.turns.place if each.turns else each.pool.name, FAILURES), (number,))
        for number, each in enumerate(pools)
        if each.pool.failures is not None
    ]
    if around.failures is None:
        for one in own[1:]:
            if one.failures.detected_after_s != own[0].failures.detected_after_s:
                raise InputError(
                    "`detected_after_s` of two pools differ, behind routers that find out alike",
                    where=f"{one.where}.detected_after_s",
                    mend="give both the same",
                )
        return own
    if own:
        raise InputError(
            f"pool '{pools[own[0].pools[0]].pool.name}' has `failures` of its own beside that of the deployment",
            where=FAILURES,
            mend="keep one of the two",
        )
    return [Stated(around.failures, FAILURES, tuple(range(len(pools))))]


def _changing(
    pools: Series[Prepared], scaling: Scalings, stated: Series[Stated], *, strikes: bool
) -> tuple[list[Prepared], Elasticity, list[str]]:
    """Pools, each with its own part of what comes and goes; their autoscalers; what is assumed."""
    said: list[str] = []
    found, members = [], []
    by_pool = {number: given for given, numbers in scaling for number in numbers}
    failures_of = {number: each.failures for each in stated for number in each.pools}
    for number, pool in enumerate(pools):
        given = by_pool.get(number)
        mine, notes = _members(pool, given, failures_of.get(number))
        members.append(mine)
        found.append(replace(pool, elastic=Elasticity((mine,))))
        if given is not None or (strikes and number in failures_of):
            said += [f"pool '{pool.pool.name}': {note}" for note in notes[:1]]
    scalers, holds, notes = joint(scaling, pools)
    return found, Elasticity(tuple(members), scalers=scalers, holds=holds), [*said, *notes]


def _back_s(elastic: Elasticity) -> float | None:
    """Time until lost devices are back where nothing else is said: an autoscaler has others provisioned, else they stay away."""
    return max(each.start.provisioning_s for each in elastic.pools) if elastic.scalers is not None else None


def _left_behind(handover: Handover) -> list[str]:
    """What is assumed of what a lost server leaves behind at its peers."""
    if handover.lease_s is not None:
        own_s, renewed_s = handover.lease_s
        if handover.reserves:
            return [
                f"a computed prompt that no reader asked for, or whose reader is lost, is held for {own_s:g} s from its end; "
                "what a decode server had reserved for a prompt that is lost is free when the router hears of it (assumed)"
            ]
        until = f", and {renewed_s:g} s from the loss" if renewed_s else ""
        return [
            f"a computed prompt whose reader is lost is held for {own_s:g} s from its end{until}; one that is lost fails its "
            "request when it is read"
        ]
    beats, heard = handover.beats_s, "when the router hears of it"
    if beats is not None:
        heard += f" or after {beats[1]} signs of life, one each {beats[0]:g} s, that did not come"
    return [f"a decode server keeps what it has reserved for prompts of a lost server, and a request fails, {heard}"]


def _faults_of(
    scenario: Scenario, stated: Series[Stated], pools: Series[Prepared], *, back_s: float | None, slows: bool = False
) -> Faults:
    """What goes wrong with the replicas of several pools, numbered one after the other; slow ones among it if `slows`.

    Lost devices are back after `back_s` where nothing else is said.
    """
    names = [each.pool.name for each in pools]
    firsts = [0, *accumulate(each.most for each in pools)]
    nodes = nodes_of(scenario.deployment, pools)
    listed = [node for name in names for node in nodes[name]]
    numbers = {node: n for n, node in enumerate(dict.fromkeys(listed))}
    each = [pool.devices_each for pool in pools for _ in range(pool.most)]
    of_replica = tuple(numbers[node] for node in listed)
    seeds = stream(scenario.seed, "failures")
    events, processes = [], []
    for one in stated:
        failures = one.failures
        if failures.replaced_after_s is None:
            failures = failures.model_copy(update={"replaced_after_s": back_s})
        mine = [names[number] for number in one.pools]
        for number, event in enumerate(failures.events):
            where = f"{one.where}.events.{number}"
            if slows and event.kind == "link":
                raise _no_link(where)
            if event.kind == "link" or (event.kind == "slow" and not slows):
                continue
            away_s = event.for_s if event.for_s is not None else failures.replaced_after_s
            notice_s = event.notice_s if event.notice_s is not None else failures.notice_s
            fault = Fault(event.kind, None, event.kind in ("node", "reclaim"), away_s, notice_s=notice_s)
            if event.kind == "slow":
                assert event.factor is not None
                fault = Fault("slow", None, slow_s=INFINITY if event.for_s is None else event.for_s, factor=event.factor)
            if event.pool is not None or event.replica is not None or len(mine) < len(names):
                at = names.index(_named(event, mine, where))
                _check_replica(event, pools[at], where)
                replica = None if event.replica is None else firsts[at] + event.replica
                fault = replace(fault, replica=replica, among=range(firsts[at], firsts[at + 1]))
            events.append(Event(event.at_s, fault, _load_of(scenario, event, where)))
        struck = [replica for number in one.pools for replica in range(firsts[number], firsts[number + 1])]
        processes += _processes(failures, struck, of_replica, each, seeds)
    return Faults(tuple(events), tuple(processes), of_replica, stated[0].failures.detected_after_s)


def _of_places(scenario: Scenario, stated: Series[Stated], pools: Series[Prepared]) -> Faults:
    """What goes wrong with replicas of which several take turns in a place: the first stands for all of them."""
    firsts = [0, *accumulate(each.most for each in pools)]
    kept: list[Prepared] = []
    place_of: list[int] = []  # of each pool
    for pool in pools:
        name = pool.pool.name if pool.turns is None else pool.turns.place
        if name not in [each.pool.name for each in kept]:
            kept.append(replace(pool, pool=pool.pool.model_copy(update={"name": name})))
        place_of.append([each.pool.name for each in kept].index(name))
    own = [replace(each, pools=tuple(dict.fromkeys(place_of[number] for number in each.pools))) for each in stated]
    merged = list({each.where: each for each in own}.values())
    found = _faults_of(scenario, merged, kept, back_s=None, slows=True)
    starts = [firsts[place_of.index(number)] for number in range(len(kept))]
    replicas = [start + n for start, each in zip(starts, kept, strict=True) for n in range(each.most)]

    def moved(fault: Fault) -> Fault:
        replica = None if fault.replica is None else replicas[fault.replica]
        among = fault.among or range(len(replicas))
        return replace(fault, replica=replica, among=range(replicas[among.start], replicas[among.stop - 1] + 1))

    nodes = [-1 - n for n in range(firsts[-1])]  # what stands for nothing is on no node
    for number, node in zip(replicas, found.nodes, strict=True):
        nodes[number] = node
    events = tuple(event._replace(fault=moved(event.fault)) for event in found.events)
    processes = tuple(replace(each, fault=moved(each.fault)) for each in found.processes)
    return Faults(events, processes, tuple(nodes), found.noticed_s)


def _no_link(where: str) -> InputError:
    return InputError(
        "kind: link needs prefill and decode pools, which KV blocks go between",
        where=f"{where}.kind",
        mend="name the replica's `node` or `gpu`",
    )


def _named(event: features.FailureEvent, names: Series[str], where: str) -> str:
    """The pool that an event names, or the only one."""
    if event.pool in names:
        return str(event.pool)
    if event.pool is None and len(names) == 1:
        return names[0]
    raise InputError(
        f"which pool's replica is meant by kind: {event.kind}?" if event.pool is None else f"there is no pool '{event.pool}'",
        where=f"{where}.pool",
        mend=f"give `pool`, one of {', '.join(names)}",
    )


def _check_replica(event: features.FailureEvent, pool: Prepared, where: str) -> None:
    if event.replica is not None and event.replica >= pool.most:
        raise InputError(
            f"there is no replica {event.replica} in pool '{pool.pool.name}'",
            where=f"{where}.replica",
            mend=f"name one from 0 to {pool.most - 1}",
        )


def disturbances_of(scenario: Scenario, pools: Series[Prepared]) -> tuple[tuple[Disturbance, ...], list[str]]:
    """What disturbs pools of which some pass requests on (in the order of their replicas), and what is assumed.

    Raises
    ------
    InputError : a fault that is not modelled there, a pool or a replica that is not there, or no way between two pools.
    """
    found = tuple(
        _disturbance(scenario, event, f"{each.where}.events.{number}", [pools[n].pool.name for n in each.pools], pools)
        for each in stated_of(scenario, pools)
        for number, event in enumerate(each.failures.events)
        if event.kind in ("link", "slow")
    )
    if not found:
        return (), []
    handover = pools[0].plan.handover
    assert handover is not None
    patience = "their connector does not give up (assumed)"
    if handover.gives_up_s < INFINITY:
        patience = f"one that takes more than {handover.gives_up_s:g} s fails with its request"
    stalls = any(fault.ways for fault in found)
    return found, [f"transfers over a link that is down stand still until it is back: {patience}"] if stalls else []


def _load_of(scenario: Scenario, event: features.FailureEvent, where: str) -> int:
    """The number of the load from whose begin an event counts."""
    if event.stage is None:
        return 0
    names = [stage.name for stage in scenario.workload.stages or ()]
    if event.stage in names:
        return names.index(event.stage)
    raise InputError(
        f"there is no stage '{event.stage}'" if names else "`stage` belongs to a load of workload.stages",
        where=f"{where}.stage",
        mend=f"one of {', '.join(names)}" if names else "remove it: `at_s` counts from the begin of the run",
    )


def _disturbance(
    scenario: Scenario, event: features.FailureEvent, where: str, struck: Series[str], pools: Series[Prepared]
) -> Disturbance:
    load = _load_of(scenario, event, where)
    names = [each.pool.name for each in pools]
    for key, name in (("pool", event.pool), ("from", event.from_), ("to", event.to)):
        if name is not None and name not in names:
            raise InputError(f"there is no pool '{name}'", where=f"{where}.{key}", mend=f"one of {', '.join(names)}")
    for_s = INFINITY if event.for_s is None else event.for_s
    if event.kind == "link":
        ways = tuple(
            (here, there) for here, there in ways_of(pools) if event.from_ in (None, here) and event.to in (None, there)
        )
        if not ways:
            raise InputError(
                f"nothing goes from pool '{event.from_}' to pool '{event.to}'",
                where=where,
                mend="name a prefill and a decode pool",
            )
        return Disturbance(event.at_s, for_s, ways, load=load)
    assert event.replica is not None
    assert event.factor is not None
    at = names.index(_named(event, struck, where))
    _check_replica(event, pools[at], where)
    first = sum(each.most for each in pools[:at])
    return Disturbance(event.at_s, for_s, replica=first + event.replica, factor=event.factor, load=load)
