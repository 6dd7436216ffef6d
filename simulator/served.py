"""Pools side by side resolved: which of them serves which model, and prompts of which length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine_models.model.architecture import load_architecture
from hardware_profiles.errors import InputError, PlanError, nearest
from simulator.cluster.router import Routing
from simulator.pools import POOLS, blended_price, told, unique
from simulator.prepared import Prepared
from simulator.turns import devices_of
from simulator.workload.columns import RequestClass, Workload

if TYPE_CHECKING:
    from simulator.cluster.destinations import Destinations, Takes
    from simulator.config.schema import Scenario

CLASSES = "workload.classes"


def check_side_by_side(scenario: Scenario, pools: Sequence[Prepared]) -> None:
    """Refuse what is not modelled around several pools of role: mixed.

    Raises
    ------
    InputError : such a key is given, or a product's router stands before pools that it cannot tell apart.
    """
    deployment = scenario.deployment
    if deployment.transfer is not None and not any(pool.role == "encode" for pool in deployment.pools):
        raise InputError(
            "`deployment.transfer` with several pools of role: mixed: nothing goes between them",
            where="deployment.transfer",
            mend="remove it, or give the pools roles",
        )
    from simulator.cluster.destinations import Destinations

    groups = Destinations(takes_of(pools), ()).groups
    _check_routers(scenario, groups, [pool.routing for pool in pools])


def _check_routers(scenario: Scenario, groups: Sequence[Sequence[int]], routings: Sequence[Routing]) -> None:
    """Refuse a product's router before pools that it cannot tell apart."""
    from simulator.cluster.destinations import overlap

    router = scenario.deployment.router
    if isinstance(router, str):
        return
    if overlap(groups):
        raise InputError(
            f"a router of {router.system} before pools of which one takes requests that others take only in part is not "
            "modelled yet",
            where="deployment.router",
            mend="use an ideal rule, such as router: least_requests, or `prompt_tokens` that do not overlap",
        )
    for group in groups:
        first, *others = (routings[pool] for pool in group)
        if any(each.block_tokens != first.block_tokens for each in others):
            raise InputError(
                f"a router of {router.system} before servers with KV blocks of several sizes is not modelled yet",
                where="deployment.router",
                mend="give the pools the same block size, or use an ideal rule, such as router: least_requests",
            )
        tuned = first.flags.values if first.flags is not None else {}
        own = first.system.tuned_each if first.system is not None and first.reads_blocks else None
        for name, value in tuned.items():
            if name != own and any(each.flags is None or each.flags.values[name] != value for each in others):
                raise InputError(
                    f"a router of {router.system} with another `{name}` for each server, as it is tuned, is not modelled yet",
                    where="deployment.router",
                    mend=f"give one for all ({name}: {value}), or use an ideal rule, such as router: least_requests",
                )


def check_services(prepared: Prepared) -> None:
    """Refuse requests of which nobody says whether two pools serve them or one does.

    Raises
    ------
    InputError : they are for several services, and no router that chooses among these stands before them.
    """
    from simulator.cluster.destinations import Destinations

    services, scenario = prepared.services, prepared.scenario
    groups = Destinations(_taken(prepared), ()).groups
    routings = [each.routing for each in services]
    _check_routers(scenario, groups, routings)
    for group in groups:
        paired = [services[number] for number in group if services[number].paired]
        if not paired or len(group) == 1:
            continue
        names = ", ".join(f"'{each.pool.name}'" for number in group for each in services[number].pools)
        system = routings[group[0]].system
        if len(paired) > 1 or system is None or not system.decides:
            raise InputError(
                f"pools {names} are for the same requests, and nothing says which of these have their prompts computed apart",
                where=POOLS,
                mend="give the pools their `prompt_tokens` or models, or use router: {system: llm-d}, which chooses among "
                "prefill and decode servers and mixed ones",
            )
        if any(services[number].pools[0].plan.front.inflight is not None for number in group):
            raise InputError(
                f"a limit of queued requests beside a router of {_named(scenario)} is not modelled yet",
                where=POOLS,
                mend="remove it",
            )


def _named(scenario: Scenario) -> str:
    router = scenario.deployment.router
    return router if isinstance(router, str) else router.system


def _taken(prepared: Prepared) -> list[Takes]:
    """What each pool or service of several is given."""
    return takes_of([each.pools[0] for each in prepared.services] or prepared.pools)


def takes_of(pools: Sequence[Prepared]) -> list[Takes]:
    """What each pool is given; models are numbered in the order of the pools."""
    from simulator.cluster.destinations import Takes

    names = list(dict.fromkeys(pool.arch.name for pool in pools))
    found = []
    for each in pools:
        least, most = each.pool.prompt_tokens or (0, None)
        found.append(Takes(names.index(each.arch.name), least, most))
    return found


def destinations_of(prepared: Prepared, classes: Sequence[RequestClass]) -> Destinations:
    """Where requests of each class may go.

    Raises
    ------
    InputError : a class asks for a model that no pool serves.
    """
    from simulator.cluster.destinations import Destinations

    return Destinations(_taken(prepared), _asked(prepared, classes))


def _asked(prepared: Prepared, classes: Sequence[RequestClass]) -> list[int]:
    """The model that each class of a load asks for, by number in the order of the pools; InputError if no pool serves it."""
    places = {kind.name: kind.named_at for kind in classes if kind.named_at is not None}
    return models_of(prepared, [(kind.name, kind.model) for kind in classes], places)


def models_of(
    prepared: Prepared, classes: Sequence[tuple[str, str | None]], places: Mapping[str, str] | None = None
) -> list[int]:
    """The model that each class (its name, the model that it names) asks for, by number in the order of the pools.

    places : where the records of a trace name it, by class.

    Raises
    ------
    InputError : no pool serves it.
    """
    pools = [each.pools[0] for each in prepared.services] or prepared.pools or (prepared,)
    names = list(dict.fromkeys(each.arch.name for each in pools))
    spelled = {each.arch.name.casefold(): each.arch.name for each in pools}
    for each in pools:
        written = each.pool.model or prepared.scenario.model
        if isinstance(written, str):
            spelled.setdefault(written.casefold(), each.arch.name)
    usual = next((each.arch.name for each in pools if each.pool.model is None), None)
    found = []
    for kind, asked in classes:
        if asked is None and usual is not None:
            found.append(names.index(usual))
            continue
        model = asked if asked is not None else prepared.scenario.model
        name = spelled.get(model.casefold()) if isinstance(model, str) else None
        name = name or _catalogue_name(model, prepared.base_dir)
        if name not in names:
            raise _unserved(kind, asked, prepared, names, (places or {}).get(kind))
        found.append(names.index(name))
    return found


def _catalogue_name(model: object, base: Path) -> str | None:
    """The name of a model by another spelling, None if there is no such model."""
    try:
        return load_architecture(model, base).name if isinstance(model, str | dict) else None
    except PlanError:
        return None


def _unserved(kind: str, asked: str | None, prepared: Prepared, names: Sequence[str], place: str | None) -> InputError:
    listed = ", ".join(names)
    if asked is None:
        what = "requests ask for" if kind == "default" else f"class '{kind}' names no model, which means"
        return InputError(
            f"{what} {prepared.scenario.model}, the scenario's model, and no pool serves it (they serve {listed})",
            where=CLASSES,
            mend=f"give each class its `model`, one of {listed}, or a pool this model",
        )
    close = nearest(asked, list(names))
    who = f"class '{kind}' asks" if place is None else "the trace asks"
    return InputError(
        f"{who} for the model {asked}, and no pool serves it (they serve {listed})",
        where=place or CLASSES,
        mend=f"did you mean {close}?" if close else f"name one of {listed}, or add a pool with model: {asked}",
    )


def check_asked(prepared: Prepared, workload: Workload) -> list[str]:
    """Warnings on prompts of a length that no pool takes.

    Raises
    ------
    InputError : no pool takes any request, or a class asks for a model that none serves.
    """
    if not prepared.side_by_side and not prepared.services:
        _asked(prepared, workload.classes)
        return []
    from simulator.cluster.destinations import NOWHERE

    nowhere = destinations_of(prepared, workload.classes).of(workload) == NOWHERE
    if not nowhere.any():
        return []
    lengths = workload.prompt_tokens[nowhere]
    span = f"{lengths.min():,} to {lengths.max():,} tokens"
    if nowhere.all():
        raise InputError(
            f"no pool takes any of the requests: their prompts have {span}",
            where=f"{POOLS}.0.prompt_tokens",
            mend="widen the pools' `prompt_tokens`",
        )
    return [f"{len(lengths):,} of {len(nowhere):,} requests refused: no pool takes prompts of {span} (their `prompt_tokens`)"]


def unasked(prepared: Prepared, refused: int) -> list[str]:
    """What to do about requests that were refused for their length, if a router may send one to a server that takes less.

    No router that is modelled looks at the lengths that a server takes (`simulator/cluster/routing`, a product's source in each
    module); a server answers 400, which clients do not send again.
    """
    from simulator.cluster.destinations import Destinations

    if not refused or not (prepared.side_by_side or prepared.services):
        return []
    taken = [(limits.context_tokens, limits.prompt_tokens, limits.held_tokens) for limits in prepared.limits]
    if all(len({taken[number] for number in group}) == 1 for group in Destinations(_taken(prepared), ()).groups):
        return []
    return [
        "servers for the same requests take other lengths, and routers do not look: a server that is sent too long a one refuses "
        "it (400); `prompt_tokens: [low, high]` in a pool keeps it away"
    ]


def side_by_side(scenario: Scenario, pools: Sequence[Prepared]) -> Prepared:
    """Several pools of role: mixed as one deployment; what is of one pool is that of the first."""
    check_side_by_side(scenario, pools)
    first = pools[0]
    said = [] if len({each.arch.name for each in pools}) < 2 else [
        f"requests that name no model ask for {scenario.model} (model)"
    ]
    found = replace(
        first,
        replicas=sum(each.replicas for each in pools),
        devices=devices_of(pools),
        price=blended_price([(each.price, each.devices) for each in pools]),
        turns=None,
        warnings=tuple(told(pools, lambda each: each.warnings)),
        assumptions=unique((*told(pools, lambda each: each.assumptions), *said)),
        pools=tuple(pools),
    )
    classes = scenario.workload.classes or ()
    models_of(found, [(kind.name, kind.model) for kind in classes])
    return found


def routings_of(destinations: Destinations, pools: Sequence[Prepared]) -> list[Routing]:
    """How the requests of each group of pools are routed."""
    return [pools[group[0]].routing for group in destinations.groups]
