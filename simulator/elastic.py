"""Failures of a scenario resolved: what happens to which replica, and how long a new one takes to start."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Series
from dataclasses import replace
from typing import TYPE_CHECKING

from engine_models.cost.start_up import StartUp, predicted
from engine_models.parts.protocols import INFINITY
from hardware_profiles.errors import InputError
from simulator.cluster.faults import HOUR_S, Disturbance, Fault, Faults, Process
from simulator.prepared import Elasticity, Losses, Prepared
from simulator.scaled import scaled
from simulator.workload.streams import stream

if TYPE_CHECKING:
    from numpy.random import Generator

    from simulator.config import schema
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
    given = scaling.start_up if scaling is not None else failures.start_up if failures is not None else None
    start, notes = start_of(prepared, given)
    elastic = Elasticity(most=prepared.replicas, start=start)
    if scaling is not None:
        elastic, said = scaled(prepared, scaling, elastic)
        notes += said
    if failures is not None:
        back = start if failures.start_up is None else start_of(prepared, failures.start_up)[0]
        ready_s = start.provisioning_s if scaling is not None else None
        elastic = replace(elastic, faults=_faults(prepared, failures, back, elastic.most, ready_s))
        notes += _words(failures)
    return replace(prepared, elastic=elastic, assumptions=(*prepared.assumptions, *notes))


def _check_once(prepared: Prepared) -> None:
    """Refuse what stands in a pool and around the pools."""
    for key in ("failures", "autoscaler"):
        if getattr(prepared.pool, key) is not None and getattr(prepared.scenario.deployment, key) is not None:
            raise InputError(
                f"pool '{prepared.pool.name}' has `{key}` of its own beside that of the deployment",
                where=f"deployment.{key}",
                mend="keep one of the two",
            )


def start_of(prepared: Prepared, given: float | schema.StartUp | None) -> tuple[StartUp, list[str]]:
    """How long a new server takes to start, by parts, and what is assumed."""
    if isinstance(given, int | float):
        return StartUp(0.0, 0.0, float(given), 0.0, 0.0, 0.0), []
    plan = prepared.plan
    found, notes = predicted(
        plan.engine,
        plan.memory.bytes_of("weight"),
        place=given.weights_from if given is not None else "disk",
        compiled=given is not None and given.compile_cache,
        captures=plan.captures,
        compiles=plan.compiles,
        compiles_products=plan.compiles_products,
    )
    if given is not None:
        stated = {key: getattr(given, key) for key in found.parts() if getattr(given, key) is not None}
        found = replace(found, **stated)
    said = ", ".join(f"{name.removesuffix('_s').replace('_', ' ')} {s:.3g}" for name, s in found.parts().items())
    return found, [f"a new server takes {found.provisioning_s + found.server_s:.3g} s to start: {said} (start_up)", *notes]


def _words(failures: schema.Failures) -> list[str]:
    when = "at once" if not failures.detected_after_s else f"at once, of a lost node after {failures.detected_after_s:g} s"
    out = [f"clients and the router hear of a lost server {when}; a client may send its request again (client.retries)"]
    if failures.reclaims_per_hour is not None or any(event.kind == "reclaim" for event in failures.events):
        out.append("a server that is to be taken back gets no new requests from the notice on, and is billed until it goes")
    return out


def _faults(
    prepared: Prepared, failures: schema.Failures, start: StartUp, most: int, ready_s: float | None
) -> Faults:
    """What goes wrong; lost devices come back after `ready_s` where nothing else is said, None for never."""
    if failures.replaced_after_s is None and ready_s is not None:
        failures = failures.model_copy(update={"replaced_after_s": ready_s})
    each = prepared.devices_each
    per_node = prepared.pool.gpus_per_node or int(prepared.device.node_size.value)
    nodes = tuple(number * each // per_node for number in range(most))
    events = tuple(
        (event.at_s, _event(prepared, failures, event, number, most)) for number, event in enumerate(failures.events)
    )
    processes = tuple(_processes(failures, nodes, [each] * most, stream(prepared.scenario.seed, "failures")))
    return Faults(events, processes, nodes, start.server_s, failures.detected_after_s)


def _event(prepared: Prepared, failures: schema.Failures, event: schema.FailureEvent, number: int, most: int) -> Fault:
    where = f"{FAILURES}.events.{number}"
    if event.kind == "link":
        raise InputError(
            "kind: link needs prefill and decode pools, which KV blocks go between",
            where=f"{where}.kind",
            mend="name the replica's `node` or `gpu`",
        )
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
        return slow if event.for_s is None else replace(slow, slow_s=event.for_s)
    notice_s = event.notice_s if event.notice_s is not None else failures.notice_s
    return Fault(event.kind, event.replica, event.kind in ("node", "reclaim"), away_s, notice_s=notice_s)


def _processes(
    failures: schema.Failures, nodes: Series[int], each: Series[int], seeds: Generator
) -> list[Process]:
    """A process for each unit that may fail, and one for each that may be taken back; `each` are the devices of each replica."""
    if failures.of is None:
        return []
    whole = failures.of == "node"
    units = [nodes.index(node) for node in dict.fromkeys(nodes)] if whole else list(range(len(nodes)))
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


def losses_of(scenario: Scenario, pools: Series[Prepared], nodes: Series[Hashable]) -> tuple[Losses | None, list[str]]:
    """Which replicas of prefill and decode pools (in this order, each with its node) are lost, and what is assumed.

    Raises
    ------
    InputError : their engine's rules for it are not modelled, or a pool or a replica is not there.
    """
    failures = scenario.deployment.failures
    if failures is None:
        return None, []
    names = [each.pool.name for each in pools]
    listed = [(n, event) for n, event in enumerate(failures.events) if event.kind not in ("link", "slow")]
    if not listed and failures.of is None:
        return None, []
    handover = pools[0].plan.handover
    drained = any(event.kind == "drain" for _, event in listed)
    if handover is None or handover.lease_s is None or drained:
        what = "kind: drain" if drained else f"lost servers of {pools[0].plan.engine}"
        raise InputError(
            f"{what} in prefill and decode pools: not modelled yet",
            where=FAILURES,
            mend="give events of kind: link or slow, or use a pool of role: mixed",
        )
    first = {name: sum(each.replicas for each in pools[:at]) for at, name in enumerate(names)}
    events = []
    for number, event in listed:
        where = f"{FAILURES}.events.{number}"
        pool = pools[names.index(_named(event, names, where))]
        _check_replica(event, pool, where)
        assert event.replica is not None
        away_s = event.for_s if event.for_s is not None else failures.replaced_after_s
        notice_s = event.notice_s if event.notice_s is not None else failures.notice_s
        replica = first[pool.pool.name] + event.replica
        assert event.kind != "link"
        whole = event.kind in ("node", "reclaim")
        events.append((event.at_s, Fault(event.kind, replica, whole, away_s, notice_s=notice_s)))
    each = tuple(pool.devices_each for pool in pools for _ in range(pool.replicas))
    numbers = {node: n for n, node in enumerate(dict.fromkeys(nodes))}
    of_replica = tuple(numbers[node] for node in nodes)
    processes = _processes(failures, of_replica, each, stream(scenario.seed, "failures"))
    starts, said = [], list[str]()
    for pool in pools:
        start, notes = start_of(pool, failures.start_up)
        starts += [start.server_s] * pool.replicas
        said += [f"pool '{pool.pool.name}': {note}" for note in notes[:1]]
    faults = Faults(tuple(events), tuple(processes), of_replica, 0.0, failures.detected_after_s)
    own_s, renewed_s = handover.lease_s
    said.append(
        f"a computed prompt whose reader is lost is held for {own_s:g} s from its end, and {renewed_s:g} s from the loss; one "
        "that is lost fails its request when it is read"
    )
    return Losses(faults, tuple(starts), each), [*_words(failures), *said]


def _named(event: schema.FailureEvent, names: Series[str], where: str) -> str:
    """The pool that an event names."""
    if event.pool in names:
        return str(event.pool)
    raise InputError(
        f"which pool's replica is meant by kind: {event.kind}?" if event.pool is None else f"there is no pool '{event.pool}'",
        where=f"{where}.pool",
        mend=f"give `pool`, one of {', '.join(names)}",
    )


def _check_replica(event: schema.FailureEvent, pool: Prepared, where: str) -> None:
    if event.replica is not None and event.replica >= pool.replicas:
        raise InputError(
            f"there is no replica {event.replica} in pool '{pool.pool.name}'",
            where=f"{where}.replica",
            mend=f"name one from 0 to {pool.replicas - 1}",
        )


def disturbances_of(scenario: Scenario, pools: Series[Prepared]) -> tuple[tuple[Disturbance, ...], list[str]]:
    """What disturbs prefill and decode pools (in the order of their replicas), and what is assumed.

    Raises
    ------
    InputError : a fault that is not modelled there, a pool or a replica that is not there, or no way between two pools.
    """
    failures = scenario.deployment.failures
    if failures is None:
        return (), []
    found = tuple(
        _disturbance(event, number, pools) for number, event in enumerate(failures.events) if event.kind in ("link", "slow")
    )
    stalls = any(fault.ways for fault in found)
    words = "transfers over a link that is down stand still until it is back: their connector does not give up (assumed)"
    return found, [words] if stalls else []


def _disturbance(event: schema.FailureEvent, number: int, pools: Series[Prepared]) -> Disturbance:
    where, names = f"{FAILURES}.events.{number}", [each.pool.name for each in pools]
    for key, name in (("pool", event.pool), ("from", event.from_), ("to", event.to)):
        if name is not None and name not in names:
            raise InputError(f"there is no pool '{name}'", where=f"{where}.{key}", mend=f"one of {', '.join(names)}")
    for_s = INFINITY if event.for_s is None else event.for_s
    if event.kind == "link":
        ends = {role: [each.pool.name for each in pools if each.pool.role == role] for role in ("prefill", "decode")}
        ways = tuple(
            (here, there)
            for here in ends["prefill"]
            for there in ends["decode"]
            if event.from_ in (None, here) and event.to in (None, there)
        )
        if not ways:
            raise InputError(
                f"nothing goes from pool '{event.from_}' to pool '{event.to}'",
                where=where,
                mend="name a prefill and a decode pool",
            )
        return Disturbance(event.at_s, for_s, ways)
    assert event.replica is not None
    assert event.factor is not None
    at = names.index(_named(event, names, where))
    _check_replica(event, pools[at], where)
    first = sum(each.replicas for each in pools[:at])
    return Disturbance(event.at_s, for_s, replica=first + event.replica, factor=event.factor)
