"""How Triton's configuration of a model lets batches form: its instances, `dynamic_batching` and queue policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.engines.triton_flags import BATCHING, GROUP, POLICY, group
from engine_models.schedulers.dynamic_batcher import BatcherRules, QueuePolicy
from engine_models.schedulers.memory_then_tokens_handed import Gathering
from hardware_profiles.errors import InputError

_WHERE = "deployment.engine_args"


def rules_of(flags: Mapping[str, Any]) -> BatcherRules:
    """How batches are formed; InputError for what Triton would not load."""
    instances = int(group(flags.get("instance_group"), GROUP, f"{_WHERE}.instance_group")["count"])
    rows, where = int(flags.get("max_batch_size", 0)), f"{_WHERE}.dynamic_batching"
    if flags.get("dynamic_batching") is None:
        return BatcherRules(instances, 1, (1,))
    batching = group(flags["dynamic_batching"], BATCHING, where)
    preferred = tuple(sorted(set(batching["preferred_batch_size"] or [max(1, rows)])))
    if preferred[-1] > max(1, rows):
        raise InputError(
            f"preferred_batch_size {preferred[-1]} is more than max_batch_size {rows}, which Triton refuses",
            where=f"{where}.preferred_batch_size",
            mend=f"give at most {rows}, or raise max_batch_size",
        )
    levels, default = int(batching["priority_levels"]), int(batching["default_priority_level"])
    if levels and not 1 <= default <= levels:
        raise InputError(
            f"default_priority_level {default} is none of the {levels} priority_levels",
            where=f"{where}.default_priority_level",
            mend=f"give 1 to {levels}",
        )
    common = batching["default_queue_policy"]
    own = {str(level): policy for level, policy in (batching["priority_queue_policy"] or {}).items()}
    policies = [_policy(own.get(str(level), common), where) for level in range(1, levels + 1)]
    return BatcherRules(
        instances,
        max(1, rows),
        preferred,
        1e-6 * int(batching["max_queue_delay_microseconds"]),
        tuple(policies) or (_policy(common, where),),
        default or 1,
    )


def _policy(given: Any, where: str) -> QueuePolicy:
    keys = group(given, POLICY, f"{where}.default_queue_policy")
    timeout_s = 1e-6 * int(keys["default_timeout_microseconds"])
    return QueuePolicy(int(keys["max_queue_size"]), timeout_s, keys["timeout_action"])


def gathering_of(flags: Mapping[str, Any], streams: bool) -> Gathering:
    """How Triton hands requests over: by keys of `dynamic_batching`, or the same by the template's names."""
    batching = group(flags.get("dynamic_batching"), BATCHING, f"{_WHERE}.dynamic_batching")
    policy = group(batching["default_queue_policy"], POLICY, f"{_WHERE}.dynamic_batching.default_queue_policy")
    if batching["priority_levels"] or policy["default_timeout_microseconds"]:
        raise InputError(
            "priorities and time-outs of Triton's queue before the TensorRT-LLM backend are not simulated: the backend takes "
            "whatever comes at once",
            where=f"{_WHERE}.dynamic_batching",
            mend="leave them out; a router's `admission` has a time-out",
        )
    delay_us = flags.get("max_queue_delay_microseconds", batching["max_queue_delay_microseconds"])
    preferred = batching["preferred_batch_size"] or [max(1, int(flags.get("max_batch_size", 0)))]
    queue = flags.get("max_queue_size", policy["max_queue_size"])
    return Gathering(1e-6 * int(delay_us), max(preferred), int(queue), streams)


__all__ = ["gathering_of", "rules_of"]
