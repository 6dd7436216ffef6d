"""Pools of role: encode resolved: which pools read what they make of images, and the ways there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hardware_profiles.errors import InputError
from simulator.pools import POOLS, blended_price, nodes_of, route_of, setting_of, told, unique
from simulator.prepared import Prepared
from simulator.workload.streams import stream

if TYPE_CHECKING:
    from simulator.cluster.encoding import Encoders
    from simulator.config.schema import Deployment, Pool, Scenario

ROLE = "encode"
_NO_PART = ("speculative", "lora", "offload", "kv_tiers", "prompt_tokens", "models", "warm_cache", "autoscaler", "failures")
"""Keys of a pool that say nothing of one that only encodes, or that are not modelled for it."""


def encoded_elsewhere(deployment: Deployment, pool: Pool) -> bool:
    """Whether servers of other pools encode the images of a pool's prompts."""
    return pool.role != ROLE and any(each.role == ROLE and each.replicas for each in deployment.pools)


def check_encoders(deployment: Deployment) -> None:
    """Refuse pools that encode beside what is not modelled with them."""
    pools = [(number, pool) for number, pool in enumerate(deployment.pools) if pool.role == ROLE and pool.replicas]
    if not pools:
        _check_autoscaled(deployment)
        return
    for number, pool in pools:
        for key in (key for key in _NO_PART if getattr(pool, key) is not None):
            raise InputError(
                f"`{key}` of a pool that only encodes images is not modelled", where=f"{POOLS}.{number}.{key}", mend="remove it"
            )
    others = [pool for pool in deployment.pools if pool.role != ROLE]
    for key in ("autoscaler", "failures"):
        if getattr(deployment, key) is not None or any(getattr(pool, key) is not None for pool in others):
            raise InputError(
                f"`{key}` beside a pool that encodes images is not modelled yet",
                where=f"deployment.{key}",
                mend=f"remove it, or give the encode pools replicas: 0: then the others encode, and `{key}` may stand",
            )
    if not any(pool.replicas for pool in others):
        raise InputError(
            "the encode pools have replicas, and no pool that answers has any",
            where=POOLS,
            mend="give a pool of role: mixed, or of roles prefill and decode, replicas",
        )


def _check_autoscaled(deployment: Deployment) -> None:
    for number, pool in enumerate(deployment.pools):
        if pool.role == ROLE and pool.autoscaler is not None:
            raise InputError(
                "an autoscaler of a pool that only encodes images is not modelled yet",
                where=f"{POOLS}.{number}.autoscaler",
                mend="remove it, and give the pool the replicas that it needs",
            )


def with_encoders(scenario: Scenario, prepared: Prepared, encoders: Sequence[Prepared]) -> Prepared:
    """The deployment with the pools that encode for it; InputError for those that do not fit to it."""
    readers = _readers(prepared)
    if prepared.services or any(each.turns is not None for each in readers) or len({each.arch.name for each in readers}) > 1:
        raise InputError(
            "a pool that encodes images for several models, or for pools of which some share requests and others do not, is not "
            "modelled yet",
            where=POOLS,
            mend="use one model, and either role: mixed or prefill and decode pools beside the encode pool",
        )
    if scenario.client.timeout_s is not None and prepared.paths is not None:
        raise InputError(
            "clients that give up (client.timeout_s) before encode, prefill and decode pools are not modelled yet",
            where="client.timeout_s",
            mend="remove it, or give the encode pools replicas: 0",
        )
    numbers = {pool.name: number for number, pool in enumerate(scenario.deployment.pools)}
    for each in encoders:
        for reader in readers if any(each.plan.embeddings is not None for each in readers) else ():
            _check_pair(each, reader, numbers[each.pool.name])
    whole = (*encoders, *(prepared.pools or (prepared,)))
    return replace(
        prepared,
        devices=sum(each.devices for each in whole),
        price=blended_price([(each.price, each.devices) for each in whole]),
        warnings=unique((*prepared.warnings, *told(whole, lambda each: each.warnings if each in encoders else ()))),
        assumptions=unique((*prepared.assumptions, *told(whole, lambda each: each.assumptions if each in encoders else ()))),
        encoders=tuple(encoders),
    )


def _readers(prepared: Prepared) -> list[Prepared]:
    """The pools that read images, in the order in which their ranks are numbered; they stand before all others."""
    return [each for each in prepared.pools or (prepared,) if each.pool.role != "decode"]


def _check_pair(encoder: Prepared, reader: Prepared, number: int) -> None:
    """Refuse two pools of which the one cannot read what the other encodes."""
    here, there = encoder.plan.embeddings, reader.plan.embeddings
    assert here is not None
    differing: dict[str, tuple[Any, Any]] = {
        "model": (encoder.arch.name, reader.arch.name),
        "engine": (encoder.plan.engine, reader.plan.engine),
        "connector": (here.connector, there.connector if there is not None else None),
    }
    for what, (one, other) in differing.items():
        if one != other:
            names = f"pool '{reader.pool.name}' cannot read what pool '{encoder.pool.name}' makes of images"
            raise InputError(
                f"{names}: {what} {one} and {other}",
                where=f"{POOLS}.{number}",
                mend="give both the same",
            )


def encoder_servers(prepared: Prepared, servers: Sequence[Any]) -> Encoders | None:
    """The servers of a deployment that encode, `servers` those of each pool; None where there are none, or nothing is encoded."""
    from simulator.cluster.encoding import Encoders
    from simulator.cluster.transfer import Paths, Side

    if not prepared.encoders:
        return None
    readers = _readers(prepared)
    embeddings = prepared.encoders[0].plan.embeddings
    assert embeddings is not None
    paths = None
    if embeddings.sent:
        deployment, pools = prepared.scenario.deployment, [*prepared.encoders, *readers]
        nodes = nodes_of(deployment, pools)
        sides = [
            Side(
                each.pool.name,
                nodes[each.pool.name][number],
                1 if embeddings.once else each.devices_each // each.ranks,
                embeddings.token_bytes,
            )
            for each in pools
            for _ in range(each.ranks)
            for number in range(each.most)
        ]
        ways = [(source, target) for source in prepared.encoders for target in readers]
        between, within = (
            {
                (source.pool.name, target.pool.name): route_of(
                    setting_of(deployment, source.pool.name, target.pool.name),
                    source.device,
                    target.device,
                    share=1.0 if inside else embeddings.rate_share,
                    most_bytes_per_s=embeddings.most_bytes_per_s,
                    inside=inside,
                )
                for source, target in ways
            }
            for inside in (False, True)
        )
        paths = Paths(sides, between, within)
    return Encoders(
        servers,
        paths,
        sum(each.most * each.ranks for each in readers),
        sum(each.devices for each in prepared.encoders),
        int(stream(prepared.scenario.seed, "encoders").integers(2**63)) if embeddings.evenly else None,
    )
