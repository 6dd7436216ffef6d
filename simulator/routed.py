"""A scenario's router resolved: which product's policy with which flags, and what is assumed of it."""

from __future__ import annotations

import difflib
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from engine_models.declaration import EnginePlan
from engine_models.parts.block_names import ChainKeys
from hardware_profiles.errors import InputError
from simulator.cluster.outcome import Reason
from simulator.cluster.router import Routing
from simulator.workload.streams import stream

if TYPE_CHECKING:
    from simulator.cluster.admission import Admission, ClientRules
    from simulator.cluster.routing.policy import Policy
    from simulator.cluster.routing.system import Flags, RouterSystem
    from simulator.config import features, schema
    from simulator.config.features import Router

WHERE = "deployment.router"
CONDITIONAL = "conditional_disagg_"
"""What flags of decode servers that compute prompts begin with; ``enabled`` turns them on."""
REPLAYED_ONLY = ("router_queue_threshold", "router_track_output_blocks")
"""Flags that the replay of recordings knows and a run does not."""


def routing_of(
    router: str | Router, plan: EnginePlan, seed: int, *, role: str = "mixed", roles: bool = False, labelled: bool = False
) -> tuple[Routing, list[str]]:
    """How requests are routed, and what is assumed.

    `role` : of the pool. `roles` : whether some pools compute prompts or answers alone. `labelled` : whether some name the
    lengths for which they are meant.

    Raises
    ------
    InputError : a product, flag or policy that is not there or not modelled, or that this engine cannot serve.
    """
    drawn = partial(_drawn, seed)
    if isinstance(router, str):
        return Routing(router, seed=drawn), [UNREAD] if labelled else []
    from simulator.cluster.routing.sglang_router import PolledPowerOfTwo

    system = _system(router.system)
    given = dict(router.model_extra or {})
    written = {}
    if router.policy is not None:
        given[system.policy_flag] = router.policy
        written[system.policy_flag] = "policy"
    block = plan.limits.block_tokens
    tunes = not system.tuned_by or given.get(system.tuned_by, True) is True
    reads_blocks = tunes and system.tuned_each != "" and system.tuned_each not in given
    if tunes:
        for name, limit in system.tuned.items():
            given.setdefault(name, limit(plan.limits))
    flags = system.read(given, WHERE, written)
    _check_read(system, flags)
    for flag in (flag for flag in REPLAYED_ONLY if flags.values.get(flag)):
        raise InputError(
            f"`{flag}` is replayed from recordings, not simulated yet",
            where=f"{WHERE}.{flag}",
            mend=f"remove `{flag}`; a queue at the router is `deployment.admission`",
        )
    for flag in ("prefill_policy", "decode_policy", "decider", "non_cached_tokens", "conditional_disagg_enabled"):
        if not roles and given.get(flag):
            raise InputError(f"`{flag}` without pools of roles", where=f"{WHERE}.{flag}", mend=f"remove `{flag}`")
    policy = system.roles.get(role, system.policy)(flags, 1, Random(0), [""])
    if policy.reads_ranges and not labelled:
        raise InputError(
            "no pool has a `context_length_range`, by which `context-length-aware` goes",
            where=f"{WHERE}.scorers",
            mend="give pools one, such as context_length_range: [0, 8192]",
        )
    if policy.filters and roles:
        raise InputError(
            "that servers are left out by the lengths of prompts is not modelled yet before prefill and decode pools",
            where=f"{WHERE}.enable_filtering",
            mend="let `context-length-aware` be a scorer alone, or give the pools `prompt_tokens`",
        )
    if policy.follows_events and system.decides and (roles or not policy.filters_by_events):
        raise InputError(
            f"what {router.system}'s precise index of blocks means "
            + ("for its decider" if roles else "for its filters")
            + " is not modelled yet (they see it with `speculativeIndexing` alone)",
            where=f"{WHERE}.{'scorers' if roles else 'filters'}",
            mend=system.events_off[1],
        )
    notes = [] if policy.reads_ranges or not labelled else [UNREAD]
    if roles and system.decides:
        notes.append(f"{router.system}: {_deciding(flags)}")
    elif roles and system.keeps is not None and system.keeps(flags):
        notes.append(f"{router.system}: decode servers compute prompts of which they hold enough (conditional disaggregation)")
    switch = f"{CONDITIONAL}enabled"
    idle = sorted(name for name in given if name.startswith(CONDITIONAL) and name != switch)
    if idle and not given.get(switch):
        notes.append(f"{router.system}: {', '.join(idle)} without `{switch}` has no effect")
    asked = router.version
    if asked is not None and asked.lstrip("v") != system.version:
        notes.append(
            f"{router.system} {asked} is simulated by the rules of {system.version}, the version that is modelled"
        )
    if policy.reads_text and system.reads_characters:
        notes.append(f"{router.system} sees texts of {router.bytes_per_token} bytes a token (bytes_per_token, 4 is assumed)")
    if isinstance(policy, PolledPowerOfTwo):
        notes.append(f"{router.system} polls the tokens of each replica every {policy.polls_tokens_s:g} s")
    if policy.polls_s:
        notes.append(f"{router.system} reads the servers' metrics every {policy.polls_s * 1e3:g} ms")
    if policy.follows_events:
        _check_events(policy, plan, block, system)
        notes.append(
            f"{router.system} hears what an engine's cache keeps with first tokens and ends of its requests, "
            f"{router.kv_event_delay_s:g} s later (kv_event_delay_s, assumed by default)"
        )
    routing = Routing(
        system=system,
        flags=flags,
        unit=router.bytes_per_token if system.reads_characters else 1,
        seed=drawn,
        news_s=router.kv_event_delay_s,
        block_tokens=block,
        hop_s=router.hop_s,
        adapter_places=plan.costs.adapters.limits.on_device if plan.costs.adapters is not None else 0,
        reads_blocks=reads_blocks,
    )
    return routing, notes


def _drawn(seed: int) -> int:
    return int(stream(seed, "router").integers(2**63))


def check_computed_once(routing: Routing, *, images: bool) -> None:
    """Refuse a router that lets decode servers compute prompts, where these hold images."""
    if images and routing.computes:
        raise InputError(
            "decode servers that compute prompts with images are not modelled yet",
            where=WHERE,
            mend="use a router that leaves all prompts to the prefill pools, such as router: least_requests",
        )


def check_paired(routing: Routing, *, at_once: bool, computes: bool) -> None:
    """Refuse a product that does not send requests to two pools as their servers expect: `at_once` to both, or in turn.

    `computes` : whether decode servers compute prompts too.

    Raises
    ------
    InputError : it does not, or has no pools of roles.
    """
    system = routing.system
    if system is None or (system.pairs(at_once=at_once) and (computes or not routing.computes)):
        return
    if system.pairs(at_once=at_once) and not system.decides:
        raise InputError(
            "that decode servers of this engine compute prompts, as `conditional_disagg_enabled` asks, is not modelled yet",
            where=f"{WHERE}.conditional_disagg_enabled",
            mend="remove `conditional_disagg_enabled`, or use an engine whose decode servers do (docs/how-to/disaggregate.md)",
        )
    from simulator.cluster.routing.systems import MODULES

    systems = {name: _system(name) for name in MODULES}
    able = [name for name, each in systems.items() if each.pairs(at_once=at_once) and (computes or not each.decides)]
    raise InputError(
        "this router before prefill and decode pools of these servers is not modelled yet",
        where=WHERE,
        mend="use an ideal rule, such as router: least_requests, or one that sends a request "
        f"{'to both servers at once' if at_once else 'on when the prompt is computed'} ({', '.join(able)})",
    )


def _deciding(flags: Flags) -> str:
    """Which prompts are computed by prefill servers."""
    if flags.word("decider").startswith("always"):
        return "prefill servers compute every prompt"
    least = int(flags.number("non_cached_tokens"))
    if not least:
        return "prefill servers compute no prompt (non_cached_tokens: 0, the default)"
    return f"prefill servers compute prompts of which the decode server lacks {least} tokens or more, as the router believes"


def _system(name: str) -> RouterSystem:
    from simulator.cluster.routing.systems import MODULES, system_named

    system = system_named(name)
    if system is not None:
        return system
    near = difflib.get_close_matches(name, list(MODULES), 1)
    raise InputError(
        f"no router is called {name!r}{f'; did you mean `{near[0]}`?' if near else ''}",
        where=f"{WHERE}.system",
        mend=f"one of {', '.join(MODULES)}",
    )


def _check_read(system: RouterSystem, flags: Flags) -> None:
    """Refuse a flag of a plugin that is not there."""
    named = {name for value in flags.values.values() if isinstance(value, tuple) for name, _ in value}
    for flag in system.flags:
        plugin = system.read_by.get(flag.name)
        if plugin is not None and plugin not in named and flags.values[flag.name] != flag.default:
            raise InputError(
                f"`{flag.name}` is a parameter of `{plugin}`, which neither scorers nor filters name",
                where=f"{WHERE}.{flag.name}",
                mend=f"name `{plugin}` there, or remove `{flag.name}`",
            )


def _check_events(policy: Policy, plan: EnginePlan, block: int, system: RouterSystem) -> None:
    """Refuse to follow the events of a cache that does not tell, or tells of other blocks."""
    if plan.executor.ranks > 1 or plan.scheduler("step").report_blocks(ChainKeys(block)) is None:
        raise InputError(
            f"what the KV cache of {plan.engine} keeps here is not told to a router yet",
            where=f"{WHERE}.{system.events_off[0]}",
            mend=system.events_off[1],
        )
    if policy.block_tokens != block:
        raise InputError(
            f"the engine's blocks have {block} tokens, the router's {policy.block_tokens}",
            where=f"{WHERE}.{system.blocks_by}",
            mend=f"leave it out, or set {block}",
        )


UNREAD = "`context_length_range` has no effect: only llm-d's `context-length-aware` reads it"

ANSWERS = {"429": Reason.SHED_429, "503": Reason.SHED_503, "timeout": Reason.TIMED_OUT, "node_lost": Reason.NODE_LOST}
"""What a client may be told, by its name in `client.retries.on`."""


def admission_of(given: features.Admission | None) -> Admission | None:
    """The limits of the router, None without any."""
    if given is None:
        return None
    from simulator.cluster.admission import Admission

    return Admission(**given.model_dump())


def client_of(given: schema.Client) -> ClientRules | None:
    """How long a client waits and when it tries again, None if it does neither."""
    retries = given.retries
    if retries is None and given.timeout_s is None:
        return None
    from simulator.cluster.admission import Backoff, ClientRules

    if retries is None:
        return ClientRules(timeout_s=given.timeout_s)
    backoff = Backoff(retries.attempts, retries.backoff_s, retries.factor, retries.jitter)
    return ClientRules(backoff, frozenset(ANSWERS[name] for name in retries.on), given.timeout_s)


def check_timeout(given: schema.Client, plan: EnginePlan) -> None:
    """Refuse a time-out before an engine that cannot drop a request.

    Raises
    ------
    InputError : it cannot.
    """
    if given.timeout_s is not None and not plan.scheduler("step").cancels:
        raise InputError(
            f"{plan.engine} as deployed here cannot drop a request yet",
            where="client.timeout_s",
            mend="remove `client.timeout_s`",
        )
