"""Triton Inference Server: its dynamic batcher before a model that is the `generate` of transformers here.

The rule of the batcher is `engine_models.schedulers.dynamic_batcher`; what an instance computes is a group of
`engine_models.schedulers.static`, in memory and time as `engine_models.engines.generate` says. With the TensorRT-LLM backend
batches are formed by that engine's own executor, and a pool that asks for it is told so.

Behaviour and defaults of triton-inference-server/core at 73aad7c (2026-06, server 2.71). Nothing is recorded; timelines worked by
hand from its source are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine_models.cost.overheads import load_overheads
from engine_models.declaration import Engine, EnginePlan, FrontEnd, Mode, PoolRequest, Support
from engine_models.engines.generate import Groups, plan_groups
from engine_models.engines.triton_flags import BATCHING, FLAGS, GROUP, POLICY, group
from engine_models.parts.protocols import Scheduler
from engine_models.schedulers.dynamic_batcher import BatcherRules, DynamicBatcher, QueuePolicy
from engine_models.schedulers.worker_groups import WorkerGroups
from hardware_profiles.device import DeviceKind
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


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: the instances of one model on one device, and the groups that they compute.

    Raises InfeasibleError if the instances' models do not fit, InputError on what the engine or this model of it lacks.
    """
    flags = request.flags
    if flags.get("model_engine") == "trtllm":
        raise InputError(
            "behind Triton's TensorRT-LLM backend batches are formed by TensorRT-LLM's executor, not by Triton",
            where=f"{_WHERE}.model_engine",
            mend="write engine: trtllm, with its own flags",
        )
    rules, streams = rules_of(flags), bool(flags.get("decoupled", False))

    def scheduler(tokens: int, windows: tuple[int, ...]) -> Callable[[Mode], Scheduler]:
        return lambda mode: WorkerGroups(
            DynamicBatcher(rules),
            rules.instances,
            tokens,
            windows=windows,
            at_once=not streams,
            aggregate=mode == "jump",
        )

    rows, instances = rules.max_batch_size, rules.instances
    sizes = ", ".join(map(str, rules.preferred_batch_sizes))
    notes = (
        "Triton without dynamic_batching: each request is computed by itself"
        if flags.get("dynamic_batching") is None
        else f"Triton's dynamic batcher: at most {rows:,} requests, preferred {sizes}, the oldest waits for others at most "
        f"{1e3 * rules.max_queue_delay_s:g} ms while an instance is free",
        f"{instances} instance{'s' * (instances > 1)} a device; inputs of equal shapes (text), threads that take no time",
        "the model is generate of transformers: groups padded to the longest, computed until the last ends; above {tokens} "
        "tokens, padding included, a group fails for lack of memory",
        "tokens are seen as they come (decoupled)"
        if streams
        else "answers are seen when the whole batch has ended",
        *(
            [
                "the steps of several instances take turns on the device, each launches its own meanwhile (assumed)"
            ]
            if instances > 1
            else []
        ),
    )
    front = FrontEnd(load_overheads(ENGINE.name, ENGINE.overheads_from).front_end_s)
    groups = Groups(rows, instances, scheduler, "max_batch_size")
    return plan_groups(request, ENGINE.name, ENGINE.version(version_text), groups, front, notes)


_SOURCE = "triton-inference-server/core at 73aad7c (2026-06)"
_ANY: frozenset[DeviceKind] = frozenset({"gpu", "cpu"})

ENGINE = Engine(
    name="triton",
    title="Triton",
    rule=(
        "A batcher forms batches of whole requests for a model's instances: when a preferred number waits, the oldest "
        "has waited its delay, or none may join; queues may be full (503) and expire."
    ),
    versions={"2.71.0": {}},
    devices={"gpu": f"{_SOURCE}: KIND_GPU", "cpu": f"{_SOURCE}: KIND_CPU"},
    formats={
        name: Support(_ANY, f"{_SOURCE}: the Python backend's model, transformers 5.24.0: dtype")
        for name in ("bf16", "fp16", "fp32")
    },
    features={},
    flags=lambda: FLAGS,
    same_as={"rows": "max_batch_size", "context": "max_length"},
    kernels="vllm",
    overheads_from="transformers",
    plan=plan,
)
