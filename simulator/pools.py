"""Pools that share requests: which may stand together, and the ways between their replicas."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan, Limits
from engine_models.engines.known import engine_named
from engine_models.lengths import judged
from hardware_profiles.device import Device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.cost import UnitPrice
from simulator.prepared import Prepared
from simulator.workload.columns import Workload

if TYPE_CHECKING:
    from simulator.cluster.transfer import Paths, Route, Way
    from simulator.config.features import Transfer
    from simulator.config.schema import Deployment

POOLS = "deployment.pools"
STYLES = ("context_first", "generation_first")


def check_roles(deployment: Deployment) -> None:
    """Refuse pools that cannot serve together; those without replicas, and without an autoscaler of their own, are not there."""
    pools = [pool for pool in deployment.pools if pool.replicas or pool.autoscaler is not None]
    if len(deployment.pools) == 1 and (deployment.autoscaler or deployment.pools[0].autoscaler) is not None:
        return
    roles = {pool.role for pool in pools}
    if not pools:
        raise InputError(
            "no pool has a replica", where=f"{POOLS}.0.replicas", mend="give at least one pool replicas above 0"
        )
    for role, other in (("prefill", "decode"), ("decode", "prefill")):
        if role in roles and other not in roles:
            raise InputError(
                f"the {role} pools have replicas and no {other} pool has any",
                where=POOLS,
                mend=f"give a pool of role: {other} replicas, or use role: mixed",
            )


def check_pair(prefill: Prepared, decode: Prepared) -> None:
    """Refuse two pools that cannot exchange KV blocks."""
    names = f"pools '{prefill.pool.name}' and '{decode.pool.name}' cannot exchange KV blocks"
    one, two = prefill.plan, decode.plan
    assert one.handover is not None
    assert two.handover is not None
    differing = {
        "engine": (one.engine, two.engine),
        "connector": (one.handover.connector, two.handover.connector),
        "KV format": (prefill.formats.kv_cache.name, decode.formats.kv_cache.name),
        "schedule_style": (STYLES[one.handover.reserves], STYLES[two.handover.reserves]),
        "tokens of a block": (one.handover.unit_tokens, two.handover.unit_tokens),
        **{what: (one.handover.agreed.get(what), value) for what, value in two.handover.agreed.items()},
    }
    for what, (here, there) in differing.items():
        if here != there:
            raise InputError(f"{names}: {what} {here} and {there}", where=POOLS, mend="give both the same")
    if two.front.inflight is not None:
        raise InputError(
            "a limit of queued requests at a decode pool is not modelled yet",
            where=POOLS,
            mend=f"give it to pool '{prefill.pool.name}' instead",
        )
    here, there = prefill.pool.tensor_parallel, decode.pool.tensor_parallel
    if max(here, there) % min(here, there):
        raise InputError(
            f"{names}: tensor parallelism {here} and {there}, of which none divides the other",
            where=POOLS,
            mend="let one be a multiple of the other",
        )


def joint_limits(prefill: Sequence[Limits], decode: Sequence[Limits], *, whole: bool) -> Limits:
    """What the servers of both stages take: a prompt has to fit in any of the first, and with its answer in any of the second.

    `whole`: the first know of the answer, and hold it against their context.
    """
    least = min(decode, key=lambda limits: limits.held_tokens)
    return replace(
        least,
        context_tokens=min(limits.context_tokens for limits in (*(prefill if whole else ()), *decode)),
        prompt_tokens=min(
            *(limits.prompt_tokens for limits in (*prefill, *decode)),
            *(min(limits.held_tokens, limits.context_tokens) - 1 for limits in prefill),
        ),
        row_tokens=min(limits.row_tokens for limits in decode),
    )


def check_longest(prepared: Prepared, workload: Workload) -> None:
    """Refuse a workload whose longest request the decode pools cannot hold."""
    if prepared.paths is None or prepared.services:  # which of several services takes a request, the run decides
        return
    limits = prepared.plan.limits
    found = judged(workload.prompt_tokens, workload.output_tokens, workload.max_output_tokens, limits)
    if not found.never_fits.any():
        return
    longest = int(workload.prompt_tokens[found.never_fits].max())
    pool = min((each for each in prepared.pools if each.pool.role == "decode"), key=lambda each: each.plan.limits.held_tokens)
    number = [each.name for each in prepared.scenario.deployment.pools].index(pool.pool.name)
    held, flag = pool.plan.limits.held_tokens, engine_named(pool.pool.engine).same_as["context"]
    raise InfeasibleError(
        f"decode pool '{pool.pool.name}' holds {held:,} tokens a replica: a request with a prompt of {longest:,} tokens and its "
        "answer do not fit",
        where=f"{POOLS}.{number}",
        mend=f"give the decode pool more or larger devices, or limit the context by {flag}",
    )


def paths_of(deployment: Deployment, pools: Sequence[Prepared]) -> Paths:
    """The ways between the replicas of pools, prefill before decode, in that order."""
    names = {pool.name for pool in deployment.pools}
    for named in (name for each in _listed(deployment) for name in (each.from_, each.to) if name is not None):
        if named not in names:
            raise InputError(
                f"there is no pool '{named}'", where="deployment.transfer", mend=f"one of {', '.join(sorted(names))}"
            )
    from simulator.cluster.transfer import Paths, Side

    nodes = nodes_of(deployment, pools)
    sides = [
        Side(each.pool.name, nodes[each.pool.name][number], each.devices_each // each.ranks, *_bytes_of(each.plan))
        for each in pools
        if each.pool.role != "mixed"
        for _ in range(each.ranks)
        for number in range(each.most)
    ]
    between, within, by_name = {}, {}, {each.pool.name: each for each in pools}
    for pair in ways_of(pools):
        source, target = (by_name[name] for name in pair)
        check_pair(source, target)
        given = setting_of(deployment, *pair)
        between[pair] = _route(given, source, target, inside=False)
        within[pair] = _route(given, source, target, inside=True)
    _check_ways(deployment, {each.pool.name for each in pools}, between)
    return Paths(sides, between, within)


def _check_ways(deployment: Deployment, running: set[str], ways: Collection[tuple[str, str]]) -> None:
    """Refuse what is said of a way that no request takes; of pools that do not run anything may be said."""
    for each in _listed(deployment):
        named = {each.from_, each.to} - {None}
        if named <= running and not any(each.from_ in (None, start) and each.to in (None, end) for start, end in ways):
            raise InputError(
                f"no request passes {'from' if each.from_ else 'to'} {' to '.join(repr(n) for n in (each.from_, each.to) if n)}",
                where="deployment.transfer",
                mend="name a prefill pool under `from`, and under `to` a decode pool of the same model and prompt_tokens",
            )


def ways_of(pools: Iterable[Prepared]) -> list[Way]:
    """The names of each two pools of which the one passes requests on to the other."""
    pools = list(pools)
    return [
        (source.pool.name, target.pool.name)
        for source in pools
        for target in pools
        if (source.pool.role, target.pool.role) == ("prefill", "decode") and _served_alike(source, target)
    ]


def _served_alike(one: Prepared, other: Prepared) -> bool:
    """Whether two pools serve the same requests."""
    return one.arch.name == other.arch.name and one.pool.prompt_tokens == other.pool.prompt_tokens


def _bytes_of(plan: EnginePlan) -> tuple[float, float]:
    """Bytes on a rank of what a transfer counts as a token, and of what a request has besides."""
    assert plan.handover is not None
    own = plan.handover.token_bytes
    return plan.memory.kv_bytes_per_token if own is None else own, plan.handover.request_bytes


def nodes_of(deployment: Deployment, pools: Sequence[Prepared]) -> dict[str, list[tuple[str, int]]]:
    """The node of each replica by pool: replicas fill nodes in order, each pool its own unless it is colocated with another."""
    by_name = {each.pool.name: each for each in pools}
    known = {pool.name for pool in deployment.pools}
    filled: dict[str, int] = {}
    out: dict[str, list[tuple[str, int]]] = {}
    for each in sorted(pools, key=lambda each: each.pool.colocate is not None):
        host = each.pool.colocate or each.pool.name
        if host not in known or (host in by_name and host != each.pool.name and by_name[host].pool.colocate):
            raise InputError(
                f"colocate: {host} names no pool with nodes of its own",
                where=POOLS,
                mend=f"one of {', '.join(sorted(known - {each.pool.name}))}",
            )
        per_node = each.pool.gpus_per_node or int(each.device.node_size.value)
        size, first = each.devices_each, filled.get(host, 0)
        out[each.pool.name] = [(host, (first + number * size) // per_node) for number in range(each.most)]
        filled[host] = first + each.most * size
    return out


def machines(prepared: Prepared) -> NDArray[np.int64]:
    """The machine of each replica of one pool: replicas fill nodes in order."""
    per_node = prepared.pool.gpus_per_node or int(prepared.device.node_size.value)
    return np.arange(prepared.most) * prepared.devices_each // per_node


def handover_of(deployment: Deployment, pool: str) -> tuple[str | None, str | None]:
    """Connector and schedule style that are asked for at a pool, None where none is."""
    encode = _names(deployment, "encode")
    asked = [each for each in _listed(deployment) if pool in (each.from_, each.to) or each.from_ is each.to is None]
    asked = [each for each in asked if each.from_ not in encode]
    connectors, styles = (each.connector for each in asked), (each.schedule_style for each in asked)
    return next((name for name in connectors if name), None), next((name for name in styles if name), None)


def encoder_connector_of(deployment: Deployment, pool: str) -> str | None:
    """The connector for encoded images that is asked for at a pool that encodes or reads, None where none is."""
    encode, paired = _names(deployment, "encode"), bool(_names(deployment, "prefill"))
    for each in _listed(deployment):
        named = each.from_ in encode and (pool == each.from_ or each.to in (None, pool))
        if each.connector and (named or (each.from_ is each.to is None and not paired)):
            return each.connector
    return None


def _names(deployment: Deployment, role: str) -> set[str]:
    return {pool.name for pool in deployment.pools if pool.role == role}


def _listed(deployment: Deployment) -> tuple[Transfer, ...]:
    given = deployment.transfer
    return given if isinstance(given, tuple) else () if given is None else (given,)


def setting_of(deployment: Deployment, source: str, target: str) -> Transfer | None:
    """What is said of the way between two pools: the first entry that names them, or leaves an end open."""
    return next(
        (each for each in _listed(deployment) if each.from_ in (None, source) and each.to in (None, target)),
        None,
    )


def _route(given: Transfer | None, source: Prepared, target: Prepared, *, inside: bool) -> Route:
    handover = target.plan.handover
    assert handover is not None  # `check_pair` has seen it
    share, token_s = 1.0 if inside else handover.rate_share, handover.unit_s / handover.unit_tokens
    return route_of(given, source.device, target.device, share=share, own_s=(handover.latency_s, token_s), inside=inside)


def route_of(
    given: Transfer | None,
    source: Device,
    target: Device,
    *,
    share: float,
    own_s: tuple[float, float] = (0.0, 0.0),
    most_bytes_per_s: float | None = None,
    inside: bool,
) -> Route:
    """What a transfer goes over, as is said or as the devices' profiles have it.

    `share` of a link's rate is reached, `most_bytes_per_s` at most; `own_s` are the protocol's latency, and what it adds for each
    token [s]. A rate that is said holds all that.
    """
    from simulator.cluster.transfer import Route

    stated, latency_s = (given.bytes_per_s, given.latency_s) if given is not None else (None, 0.0)
    if stated is not None:
        return Route(stated, stated, latency_s)
    link = given.link if given is not None else None
    rates = [_link_bytes_per_s(link, each, inside=inside) * share for each in (source, target)]
    if most_bytes_per_s is not None:
        rates = [min(rate, most_bytes_per_s) for rate in rates]
    return Route(rates[0], rates[1], latency_s + own_s[0], own_s[1])


def _link_bytes_per_s(link: str | None, device: Device, *, inside: bool) -> float:
    """Rate of one of a device's interfaces, by the profile; InputError where it has none."""
    link = link or ("nvlink" if inside and device.link is not None else "inter_node")
    quantity = {
        "inter_node": device.inter_node_bytes_per_s_per_direction,
        "nvlink": device.link.bytes_per_s_per_direction if device.link is not None else None,
        "pcie": device.pcie_bytes_per_s_per_direction,
    }[link]
    if quantity is None:
        raise InputError(
            f"the profile of {device.title} has no rate of the link {link}",
            where="deployment.transfer",
            mend="give it: transfer: {bytes_per_s: 25.0e+9}",
        )
    return quantity.value


def blended_price(prices: Sequence[tuple[UnitPrice | None, float]]) -> UnitPrice | None:
    """The price of a device-hour over pools of so many devices each: their mean; None if one is unknown."""
    known = [(price, devices) for price, devices in prices if price is not None]
    if len(known) < len(prices):
        return None
    if all(price == known[0][0] for price, _ in known):
        return known[0][0]
    total = sum(devices for _, devices in known)
    weights = [devices if total else 1.0 for _, devices in known]  # none is there yet: all alike
    usd = sum(price.usd_per_gpu_hour * weight for (price, _), weight in zip(known, weights, strict=True)) / sum(weights)

    def joined(texts: Iterable[str]) -> str:
        return ", ".join(unique(texts))

    rows = [price for price, _ in known]
    return UnitPrice(
        usd,
        f"mean over pools of {joined(row.provider for row in rows)}",
        joined(row.region for row in rows),
        rows[0].commitment,
        joined(row.source for row in rows),
        min(row.date for row in rows),
        joined(row.kind for row in rows),
    )


def unique(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts without repetitions, in order."""
    return tuple(dict.fromkeys(texts))


def told(pools: Sequence[Prepared], of: Callable[[Prepared], Iterable[str]]) -> list[str]:
    """What is said of pools, in their order: what holds for all as it stands, other things with the names of those they mean."""
    named: dict[str, list[str]] = {}
    for pool in pools:
        for text in unique(of(pool)):
            named.setdefault(text, []).append(f"'{pool.pool.name}'")
    return [
        text if len(names) == len(pools) else f"pool{'s' if len(names) > 1 else ''} {', '.join(names)}: {text}"
        for text, names in named.items()
    ]
