"""Several models that take turns on the devices of one pool, resolved: a pool each, which share their replicas' devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hardware_profiles.errors import InputError
from simulator.prepared import Prepared
from simulator.tiers import rate_of

if TYPE_CHECKING:
    from simulator.cluster.servers import Share
    from simulator.config.features import Swap
    from simulator.config.schema import Pool, Scenario

GB = 1e9


def each_model(pool: Pool) -> list[Pool]:
    """A pool for each model of one; itself, where it names none."""
    if pool.models is None:
        return [pool]
    names = list(dict.fromkeys(pool.models))
    if len(names) < len(pool.models):
        raise InputError("a model is listed twice", where="deployment.models", mend="name each model once")
    short = [name.rstrip("/").rpartition("/")[2] for name in names]
    short = short if len(set(short)) == len(short) else names
    keys = {"models": None, "swap": None, "swap_s": None}
    return [
        pool.model_copy(update={**keys, "model": name, "name": f"{pool.name}/{said}"})
        for name, said in zip(names, short, strict=True)
    ]


def check_turns(scenario: Scenario, pool: Pool) -> None:
    """Refuse what is not modelled beside models that take turns.

    Raises
    ------
    InputError : such a key is given.
    """
    deployment = scenario.deployment
    refused = {
        "deployment.role": pool.role != "mixed",
        "deployment.prompt_tokens": pool.prompt_tokens is not None,
        "deployment.offload": pool.offload is not None,
        "deployment.kv_tiers": bool(pool.kv_tiers or deployment.kv_tiers),
        "deployment.warm_cache": pool.warm_cache is not None,
        "deployment.router": not isinstance(deployment.router, str),
        "deployment.admission": deployment.admission is not None,
    }
    for where in (where for where, given in refused.items() if given):
        raise InputError(
            f"`{where}` beside models that take turns is not modelled yet", where=where, mend=f"remove `{where}`"
        )


def with_turns(pool: Pool, each: Sequence[Prepared]) -> list[Prepared]:
    """The models of a pool with the times in which they make room for each other, and what is assumed.

    Raises
    ------
    InputError : two are one, or their servers cannot fall asleep.
    """
    from simulator.cluster.servers import Share
    from simulator.config.features import Swap

    if len({one.arch.name for one in each}) < len(each):
        raise InputError("two of the models are one", where="deployment.models", mend="name each model once")
    swap = pool.swap or Swap()
    if pool.swap_s is not None:
        said = f"pool '{pool.name}': a change of models takes {pool.swap_s:g} s (swap_s)"
        return [_turning(one, Share(pool.name, 0.0, pool.swap_s, swap.stay_s), [said]) for one in each]
    return [_predicted(pool, swap, one, sum(other.plan.memory.bytes_of("weight") for other in each)) for one in each]


def _predicted(pool: Pool, swap: Swap, one: Prepared, all_bytes: int) -> Prepared:
    from engine_models.cost.start_up import asleep
    from simulator.cluster.servers import Share

    by = swap.by or ("sleep_1" if one.plan.sleeps else "restart")
    weight_bytes, name = one.plan.memory.bytes_of("weight"), one.arch.name
    if by == "restart":
        found, notes = one.plan.start_up(swap.weights_from, compiled=swap.compile_cache)
        parts = ", ".join(f"{part.removesuffix('_s').replace('_', ' ')} {s:.3g}" for part, s in found.parts().items() if s)
        words = f"{name} starts anew in {found.server_s:.3g} s: {parts}; a server stops at once (assumed)"
        return _turning(one, Share(pool.name, 0.0, found.server_s, swap.stay_s), [words, *notes])
    if not one.plan.sleeps:
        raise InputError(
            f"servers of {one.plan.engine} as launched here cannot fall asleep",
            where="deployment.swap.by",
            mend="add the flag that lets them (such as enable_sleep_mode) to engine_args, use by: restart, or state `swap_s`",
        )
    link = rate_of(one.device.pcie_bytes_per_s_per_direction)
    if by == "sleep_1" and not link:
        raise InputError(
            f"the rate of a copy between {one.device.title} and its host is unknown",
            where="deployment.swap.by",
            mend="state the time of a change: swap_s",
        )
    out_s, in_s = asleep(int(by[-1]), weight_bytes, link, swap.weights_from)
    words = f"{name} falls asleep in {out_s:.2g} s and wakes up in {in_s:.2g} s (level {by[-1]}), its KV cache empty"
    held = one.devices_each * all_bytes / GB
    kept = [f"weights of a replica's models take {held:,.0f} GB of host memory"] if by == "sleep_1" else []
    return _turning(one, Share(pool.name, out_s, in_s, swap.stay_s), [words, *kept])


def _turning(one: Prepared, turns: Share, said: Sequence[str]) -> Prepared:
    shared = "models that take turns have KV caches as if each were alone on the devices (assumed: what sleeps holds nothing)"
    return replace(one, turns=turns, assumptions=(*one.assumptions, *said, shared))


def devices_of(pools: Sequence[Prepared]) -> int:
    """Devices of pools, those on which models take turns once."""
    counted: dict[str, int] = {each.turns.place if each.turns is not None else each.pool.name: each.devices for each in pools}
    return sum(counted.values())
