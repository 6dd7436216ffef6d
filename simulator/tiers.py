"""Places for KV blocks beyond the devices, resolved: sizes, rates and the replicas that share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import inf
from typing import TYPE_CHECKING

from engine_models.parts.tiers import NVME_BYTES_PER_S, KvTier, TierKind
from hardware_profiles.device import Device
from hardware_profiles.errors import InputError
from hardware_profiles.quantity import Quantity

if TYPE_CHECKING:
    from simulator.config.features import KvTier as Asked
    from simulator.config.schema import Deployment, Pool
    from simulator.prepared import Prepared

GIB = 1 << 30
ORDER: tuple[TierKind, ...] = ("host", "nvme", "shared")
"""Tiers, the nearest first."""


def tiers_of(deployment: Deployment, pool: Pool, device: Device) -> tuple[KvTier, ...]:
    """The tiers of a pool, the nearest first, without those of no bytes; InputError where they cannot stand so."""
    asked = [*(pool.kv_tiers or ()), *(deployment.kv_tiers or ())]
    if pool.offload is not None:
        if asked:
            raise InputError(
                "`offload` is short for one tier of kv_tiers, and both are given",
                where="deployment.offload",
                mend="put it among kv_tiers: {kind: host, bytes: ...}",
            )
        rate = pool.offload.bytes_per_s or rate_of(device.pcie_bytes_per_s_per_direction)
        if not rate:
            raise _unknown(device, "deployment.offload.bytes_per_s", "offload: {kv_offloading_size: 64, bytes_per_s: 25.0e+9}")
        return (KvTier("host", int(pool.offload.kv_offloading_size * GIB), rate),)
    kinds = [tier.kind for tier in asked]
    if kinds != [kind for kind in ORDER if kind in kinds]:
        raise InputError(
            f"kv_tiers are {', '.join(kinds)}: they stand from the nearest to the farthest, each kind once",
            where="deployment.kv_tiers",
            mend=f"bring them into the order {', '.join(ORDER)}",
        )
    for tier in deployment.kv_tiers or ():
        if tier.kind != "shared":
            raise InputError(
                f"a tier of kind: {tier.kind} is a replica's own and stands in its pool, not around the pools",
                where="deployment.kv_tiers",
                mend="move it into the pool",
            )
    return tuple(_resolved(tier, device) for tier in asked if tier.bytes)


def joins_store(pools: Sequence[Prepared]) -> bool:
    """Whether the pools share one store."""
    return any(tier.bytes for tier in pools[0].scenario.deployment.kv_tiers or ())


def with_store(pools: Sequence[Prepared]) -> list[Prepared]:
    """The pools around one store, with what is said of those whose blocks stand apart in it.

    Raises
    ------
    InputError : pools that can neither read each other's blocks nor tell them from their own.
    """
    users = [each for each in pools if each.plan.store is not None]
    if not joins_store(pools):
        return list(pools)
    said: dict[str, str] = {}
    for first, each in combinations(users, 2):
        differing, apart = _differing(first, each)
        what, here, there = next(iter(differing), ("", "", ""))
        if differing and not apart:
            raise InputError(
                f"pools '{first.pool.name}' and '{each.pool.name}' cannot share a store of KV blocks: {what} {here} and {there}",
                where="deployment.kv_tiers",
                mend="give both the same, or each pool a store of its own (kv_tiers in the pool)",
            )
        scheduler, other = each.plan.scheduler("step"), first.plan.scheduler("step")
        try:
            if apart:
                scheduler.beside(other)
            else:
                scheduler.join(other, "shared")
        except NotImplementedError:
            raise InputError(
                f"servers of {each.plan.engine} as deployed here share no store",
                where="deployment.kv_tiers",
                mend="give each pool tiers of its own",
            ) from None
        if apart:
            said[each.pool.name] = (
                f"pools '{first.pool.name}' and '{each.pool.name}' share the room and the rate of the store, and no block in it: "
                f"{what} {here} and {there}, which names of blocks there tell"
            )
    return [
        replace(each, assumptions=(*each.assumptions, said[each.pool.name])) if each.pool.name in said else each for each in pools
    ]


def _differing(first: Prepared, each: Prepared) -> tuple[list[tuple[str, object, object]], bool]:
    """In what the blocks of two pools differ, and whether their names tell it."""
    if first.plan.engine != each.plan.engine:
        return [("engine", first.plan.engine, each.plan.engine)], False
    mine, theirs = first.plan.store, each.plan.store
    assert mine is not None
    assert theirs is not None
    return mine.differing(theirs), mine.apart(theirs)


def empty_tiers(deployment: Deployment, pool: Pool) -> list[str]:
    """What is said of tiers of no bytes."""
    asked = [*(pool.kv_tiers or ()), *(deployment.kv_tiers or ())]
    return [f"a tier of kind: {tier.kind} of 0 bytes is none: no KV block is kept there" for tier in asked if not tier.bytes]


def _resolved(tier: Asked, device: Device) -> KvTier:
    rate = tier.bytes_per_s
    if rate is None and tier.kind == "host":
        rate = rate_of(device.pcie_bytes_per_s_per_direction)
    elif rate is None and tier.kind == "nvme":
        rate = NVME_BYTES_PER_S
    elif rate is None:  # the network of the replicas alone
        rate = inf if rate_of(device.inter_node_bytes_per_s_per_direction) else 0.0
    if not rate:
        example = f"kv_tiers: [{{kind: {tier.kind}, bytes: 1.0e+11, bytes_per_s: 25.0e+9}}]"
        raise _unknown(device, "deployment.kv_tiers", example)
    return KvTier(tier.kind, tier.bytes, rate, tier.latency_s, tier.write, tier.connector)


def rate_of(quantity: Quantity | None) -> float:
    """A rate of a device's profile [byte/s], 0 where it is not known."""
    return quantity.value if quantity is not None else 0.0


def _unknown(device: Device, where: str, example: str) -> InputError:
    return InputError(
        f"the rate of a copy between {device.title} and that place is unknown",
        where=where,
        mend=f"give it, such as {example}",
    )
