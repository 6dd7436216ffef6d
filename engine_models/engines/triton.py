"""Triton Inference Server: its dynamic batcher before the `generate` of transformers, or its TensorRT-LLM backend.

The rule of the batcher is `engine_models.schedulers.dynamic_batcher`; what an instance computes is a group of
`engine_models.schedulers.static`, in memory and time as `engine_models.engines.generate` says. With the TensorRT-LLM backend
batches are formed by that engine's own executor: `triton_executor` beside. Models before and after the one that computes are
`triton_ensemble` there.

Behaviour and defaults of triton-inference-server/core at 73aad7c (2026-06, server 2.71). Nothing is recorded; timelines worked by
hand from its source are tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine_models.declaration import Engine, EnginePlan, Mode, PoolRequest, Support
from engine_models.engines import triton_executor
from engine_models.engines.generate import Groups, plan_groups
from engine_models.engines.triton_batcher import rules_of
from engine_models.engines.triton_drafts import drafts
from engine_models.engines.triton_ensemble import front_of
from engine_models.engines.triton_flags import EXECUTOR, FLAGS
from engine_models.engines.triton_repository import read_repository
from engine_models.parts.protocols import Scheduler
from engine_models.schedulers.dynamic_batcher import DynamicBatcher
from engine_models.schedulers.worker_groups import WorkerGroups
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError

_WHERE = "deployment.engine_args"


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: the instances of one model on one device, and the groups that they compute.

    Raises InfeasibleError if the instances' models do not fit, InputError on what the engine or this model of it lacks.
    """
    flags = request.flags
    if flags.get("model_engine") == "trtllm":
        return triton_executor.plan(request, ENGINE.name, ENGINE.version(version_text))
    _refuse(request)
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
    front, around = front_of(flags, None, streams=streams)
    groups = Groups(rows, instances, scheduler, "max_batch_size")
    return plan_groups(request, ENGINE.name, ENGINE.version(version_text), groups, front, (*notes, *around))


def _refuse(request: PoolRequest) -> None:
    """InputError for what the TensorRT-LLM backend alone has."""
    theirs = sorted(name for name in EXECUTOR if name in request.flags)
    if theirs:
        raise InputError(
            f"`{theirs[0]}` is a key of Triton's TensorRT-LLM backend, and the model here is generate of transformers",
            where=f"{_WHERE}.{theirs[0]}",
            mend="write model_engine: trtllm beside it, or remove it",
        )
    if request.formats.weights.name not in PLAIN or request.formats.kv_cache.name not in PLAIN:
        raise InputError(
            f"generate of transformers behind Triton with weights in {request.formats.weights.name} and a KV cache in "
            f"{request.formats.kv_cache.name} is not simulated",
            where="deployment.weights",
            mend=f"use one of {', '.join(PLAIN)}, or engine_args: {{model_engine: trtllm}}",
        )
    if request.speculation is not None:
        raise InputError(
            "drafts of transformers behind Triton are not simulated",
            where="deployment.speculative",
            mend="remove it, or write engine_args: {model_engine: trtllm} for Medusa, EAGLE or lookahead",
        )


_FLAGS = replace(FLAGS, folder="model_repository", read_folder=read_repository)
PLAIN = ("bf16", "fp16", "fp32")
_SOURCE = "triton-inference-server/core at 73aad7c (2026-06)"
_BACKEND = "triton-inference-server/tensorrtllm_backend (1.0): docs/model_config.md"
_ANY: frozenset[DeviceKind] = frozenset({"gpu", "cpu"})
_GPU: frozenset[DeviceKind] = frozenset({"gpu"})

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
        **{name: Support(_GPU, f"{_BACKEND}: engines of TensorRT-LLM") for name in triton_executor.WEIGHTS},
        **{name: Support(_ANY, f"{_SOURCE}: the Python backend's model, transformers 5.24.0: dtype") for name in PLAIN},
    },
    kv_formats=("fp8", "int8"),
    features={"speculative": Support(_GPU, f"{_BACKEND}: decoding_mode of medusa, eagle, lookahead")},
    drafts=drafts,
    flags=lambda: _FLAGS,
    same_as={"rows": "max_batch_size", "context": "max_length"},
    kernels="vllm",
    overheads_from="transformers",
    plan=plan,
)
