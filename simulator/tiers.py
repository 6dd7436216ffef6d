"""Places for KV blocks beyond the devices, resolved: sizes, rates and the replicas that share them."""

from __future__ import annotations

from collections.abc import Sequence
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


def check_store(pools: Sequence[Prepared]) -> None:
    """Refuse one store for pools that cannot read each other's blocks."""
    users = [each for each in pools if "shared" in each.plan.tiers]
    if not joins_store(pools) or not users:
        return
    first, *others = users
    for each in others:
        differing = {
            "model": (first.arch.name, each.arch.name),
            "engine": (first.plan.engine, each.plan.engine),
            "KV format": (first.formats.kv_cache.name, each.formats.kv_cache.name),
            "tensor parallelism": (first.pool.tensor_parallel, each.pool.tensor_parallel),
            "pipeline parallelism": (first.pool.pipeline_parallel, each.pool.pipeline_parallel),
            "tokens of a block": (first.plan.limits.block_tokens, each.plan.limits.block_tokens),
        }
        for what, (here, there) in differing.items():
            if here != there:
                raise InputError(
                    f"pools '{first.pool.name}' and '{each.pool.name}' cannot share a store of KV blocks: {what} {here} "
                    f"and {there}",
                    where="deployment.kv_tiers",
                    mend="give both the same, or each pool a store of its own (kv_tiers in the pool)",
                )
        try:
            each.plan.scheduler("step").join(first.plan.scheduler("step"), "shared")
        except NotImplementedError:
            raise InputError(
                f"servers of {each.plan.engine} as deployed here share no store",
                where="deployment.kv_tiers",
                mend="give each pool tiers of its own",
            ) from None


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
