"""Hugging Face transformers: what it is in terms of the shared parts, its defaults, memory and flags.

Two engines under one name. `mode: static`, the default, is `generate` in fixed groups (`engine_models.schedulers.static`), one
request at a time as `transformers serve` calls it; `mode: continuous` (`--continuous-batching`) is its continuous batching
(`transformers_continuous` beside).

Behaviour and defaults of 5.24.0 (2026-11: `generation/`, `cli/serve.py`, `cli/serving/`); continuous batching checked step by
step against recordings of it (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.declaration import Engine, EnginePlan, FrontEnd, PoolRequest, Support, checked
from engine_models.engines.generate import Groups, check_model, overheads, plan_groups
from engine_models.engines.transformers_continuous import continuous_plan
from engine_models.engines.transformers_flags import CONTINUOUS_ONLY, FLAGS, STATIC_ONLY
from engine_models.engines.transformers_recorded import replay as replay_recorded
from engine_models.refusals import without_effect
from engine_models.schedulers.static import StaticScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool in either mode.

    Raises InfeasibleError if the model does not fit, InputError on what the engine or this model of it lacks.
    """
    _refuse(request)
    flags = request.flags
    continuous = flags.get("mode", "static") == "continuous" or bool(flags.get("continuous_batching"))
    found = (continuous_plan if continuous else _static_plan)(request, ENGINE.name, ENGINE.version(version_text))
    of_other, here = (STATIC_ONLY, "continuous batching") if continuous else (CONTINUOUS_ONLY, "generate")
    reader = "generate" if continuous else "continuous batching (`continuous_batching`)"
    return replace(found, warnings=(*found.warnings, *without_effect(flags, of_other, reader, here)))


def _refuse(request: PoolRequest) -> None:
    if request.flags.get("mode") == "static" and request.flags.get("continuous_batching"):
        raise InputError(
            "`mode: static` contradicts `continuous_batching`",
            where="deployment.engine_args.mode",
            mend="remove one of the two",
        )
    check_model(request)


def _static_plan(request: PoolRequest, engine: str, version: str) -> EnginePlan:
    rows, found = int(request.flags.get("batch_size", 1)), overheads()
    groups = Groups(
        rows,
        1,
        lambda tokens, windows: (
            lambda mode: StaticScheduler(rows, tokens, windows=windows, aggregate=mode == "jump")
        ),
        "batch_size",
    )
    said = (
        f"generate in groups of up to {rows:,} waiting requests, padded to the longest, computed until the last ends; the cache "
        "is written anew in every step; above {tokens} tokens, padding included, a group fails for lack of memory",
        "the front end is vLLM's (assumed)",
    )
    front = FrontEnd(found.front_end_s, found.tokenise_token_s, loop=found.loop)
    return plan_groups(request, engine, version, groups, front, said)


_SOURCE = "transformers 5.24.0 (2026-11)"
_ANY: frozenset[DeviceKind] = frozenset({"gpu", "apu", "cpu", "apple"})
_GPU: frozenset[DeviceKind] = frozenset({"gpu", "apu"})

ENGINE: Engine = Engine(
    name="transformers",
    title="transformers",
    rule=(
        "generate computes groups padded to the longest until their last ends; continuous batching passes over all "
        "who could run, decodes first, and serves each whom budget and memory allow, so that later ones may overtake."
    ),
    versions={"5.24.0": {}},
    oldest="5.23.0",
    devices={
        "gpu": f"{_SOURCE}: CUDA, ROCm and XPU; FlashAttention, which the fast path needs, on NVIDIA GPUs unless it is asked for",
        "apu": f"{_SOURCE}: CUDA, ROCm and XPU, by their names there; FlashAttention where it is asked for",
        "cpu": f"{_SOURCE}: any that PyTorch runs on",
        "apple": f"{_SOURCE}: MPS",
    },
    formats={
        **{name: Support(_ANY, f"{_SOURCE}: dtype") for name in ("bf16", "fp16", "fp32")},
        **{
            name: Support(_GPU, f"{_SOURCE}: quantizers/")
            for name in ("fp8", "fp8_block", "int8", "int4", "nf4", "awq", "gptq")
        },
    },
    kv_formats=(),
    features={},
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_requests_per_batch",
        "context": "max_length",
        "step_tokens": "max_batch_tokens",
        "memory_share": "max_memory_percent",
    },
    kernels="vllm",
    overheads_from="vllm",
    plan=plan,
    replay=checked(lambda version: ENGINE.version(version), replay_recorded),
)
