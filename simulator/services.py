"""Prefill and decode pools beside others, resolved: who serves which requests together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hardware_profiles.errors import InputError
from simulator.pools import POOLS, blended_price, joint_limits, paths_of, told, unique
from simulator.prepared import Prepared, Service
from simulator.routed import check_paired
from simulator.tiers import with_store

if TYPE_CHECKING:
    from simulator.config.schema import Scenario

STAGES = ("prefill", "decode", "mixed")
"""Roles in the order in which replicas are numbered."""


def stands_alone(pools: Sequence[Prepared]) -> bool:
    """Whether all pools are the prefill and decode pools of one model that take prompts of any length."""
    return len({each.arch.name for each in pools}) == 1 and all(
        each.pool.role != "mixed" and each.pool.prompt_tokens is None for each in pools
    )


def services_of(pools: Sequence[Prepared]) -> list[Service]:
    """The services of pools, in the order of the first pool of each.

    Raises
    ------
    InputError : a prefill or decode pool has no partner.
    """
    together: dict[object, list[Prepared]] = {}
    for number, each in enumerate(pools):
        own = number if each.pool.role == "mixed" else (each.arch.name, each.pool.prompt_tokens)
        together.setdefault(own, []).append(each)
    found = []
    for group in together.values():
        if group[0].pool.role == "mixed":
            found.append(Service(tuple(group), group[0].plan.limits))
            continue
        sides = [[each for each in group if each.pool.role == role] for role in STAGES[:2]]
        for side, other, role in zip(sides, sides[::-1], STAGES[1::-1], strict=True):
            if not other:
                raise _without_partner(side[0], role)
        handover = group[0].plan.handover
        limits = joint_limits(
            *([each.plan.limits for each in side] for side in sides), whole=handover is not None and handover.whole_requests
        )
        found.append(Service((*sides[0], *sides[1]), limits))
    return found


def _without_partner(pool: Prepared, role: str) -> InputError:
    taken = pool.pool.prompt_tokens
    what = f"prompts of {taken[0]} to {taken[1]} tokens" if taken is not None else "prompts of any length"
    return InputError(
        f"{pool.pool.role} pool '{pool.pool.name}' serves {pool.arch.name} and {what}, and no {role} pool serves the same",
        where=POOLS,
        mend=f"give a pool of role: {role} the same model and prompt_tokens",
    )


def fleet_of(scenario: Scenario, pools: Sequence[Prepared]) -> Prepared:
    """Pools of which some pass requests on, and others, as one deployment; what is of one pool is that of a decode pool.

    Raises
    ------
    InputError : pools that cannot stand together, or something around them that is not modelled there.
    """
    from simulator.elastic import disturbances_of, with_roles

    pools = sorted(pools, key=lambda each: STAGES.index(each.pool.role))
    services_of(pools)  # who has no partner is told before all else
    _check_around(scenario)
    pools, elastic, changing = with_roles(scenario, with_store(pools))
    disturbances, said = disturbances_of(scenario, pools)
    services = services_of(pools)
    for each in services:
        handover = each.pools[0].plan.handover
        if each.paired and handover is not None:
            check_paired(each.routing, at_once=handover.reserves, computes=handover.computes)
    _check_alike([each for each in services if each.paired], drops=elastic is not None)
    base = next(each for each in services if each.paired)
    answers = base.pools[-1]
    return replace(
        answers,
        plan=replace(answers.plan, limits=base.limits),
        replicas=sum(each.replicas for each in pools),
        devices=sum(each.devices for each in pools),
        price=blended_price([(each.price, each.devices) for each in pools]),
        warnings=tuple(told(pools, lambda each: each.warnings)),
        assumptions=unique((*told(pools, lambda each: each.assumptions), *said, *changing)),
        pools=tuple(pools),
        paths=paths_of(scenario.deployment, pools),
        services=tuple(services),
        disturbances=disturbances,
        elastic=elastic,
    )


def _check_around(scenario: Scenario) -> None:
    """Refuse what is not modelled around pools of which some pass requests on and others do not."""
    around = scenario.deployment
    given = {}
    for number, pool in enumerate(around.pools):
        if pool.replicas or pool.autoscaler is not None:
            given[f"{POOLS}.{number}.models"] = pool.models is not None
    for where, asked in given.items():
        if asked:
            raise InputError(
                f"`{where}` around prefill and decode pools beside others is not modelled yet",
                where=where,
                mend=f"remove `{where}`, or simulate each model's pools as a scenario of their own",
            )


def _check_alike(services: Sequence[Service], *, drops: bool) -> None:
    """Refuse services whose servers pass requests on in different ways, or with `drops` give them up in different ways."""
    first, *others = services
    named = HANDED if drops else HANDED[:-1]
    for each in others:
        for what, here, there in zip(named, _handing(first), _handing(each), strict=False):
            if here != there:
                raise InputError(
                    f"prefill and decode pools whose hand-over differs ({what}: {here} of {first.pools[0].arch.name}, {there} of "
                    f"{each.pools[0].arch.name}) are not modelled in one cluster yet",
                    where=POOLS,
                    mend="give both the same engine and connector, or simulate each as a scenario of its own",
                )


HANDED = (
    "engine",
    "who is asked first",
    "tokens of a block",
    "seconds between the servers",
    "lease, signs of life and patience in seconds",
)


def _handing(service: Service) -> tuple[object, ...]:
    """How the servers of a service pass requests on, and how they give them up."""
    plan = service.pools[-1].plan
    handover = plan.handover
    assert handover is not None
    hop_s = handover.hop_s + plan.front.unqueued().before_s
    dropping = (handover.lease_s, handover.beats_s, handover.gives_up_s, handover.tells)
    return plan.engine, "both" if handover.reserves else "the prefill server", handover.unit_tokens, hop_s, dropping
