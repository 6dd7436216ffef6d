"""OpenArc: one request at a time for each model, through OpenVINO GenAI's pipeline for a single user.

The library is `engine_models.engines.openvino_genai`. What is OpenArc's own: the queue before it
(`src/server/worker_registry.py`), which takes everybody and forgets nobody, and what it makes of a `scheduler_config`
(`src/engine/ov_genai/utils.py`).

Behaviour and defaults of SearchSavior/OpenArc at 92e6e1d (2.0.4, 2026-08), and of its pipeline, whose settings are
`get_latency_oriented_scheduler_config` in `utils.cpp` of openvino.genai at da1db864. Nothing is recorded; timelines worked by
hand are tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.declaration import Engine, EnginePlan, PoolRequest
from engine_models.engines.openarc_flags import FLAGS, SCHEDULER_FLAGS
from engine_models.engines.openvino_genai import (
    BATCHED_TOKENS,
    DEVICES,
    FORMATS,
    KV_FORMATS,
    check_device,
    kv_format,
    library_plan,
)
from engine_models.schedulers.one_list import OneListRules
from hardware_profiles.errors import InputError

UNLIMITED_TOKENS = (1 << 31) - 1
"""Token budget of a step of the pipeline for a single user (datasheet: `get_latency_oriented_scheduler_config`, 2026-08)."""


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: a worker that takes one request after the other.

    Raises InfeasibleError if the weights or the cache asked for do not fit, InputError on what the engine or this model of it
    lacks.
    """
    check_device(request, "device")
    _check_runtime(request.flags.get("runtime_config") or {})
    settings = scheduler_settings(request.flags)
    rules = OneListRules(
        max_num_batched_tokens=int(settings["max_num_batched_tokens"]),
        workers=1,
        forgets_unanswered=False,
    )
    tokens = rules.max_num_batched_tokens
    step = "whole prompts in one step" if tokens == UNLIMITED_TOKENS else f"{tokens:,} tokens a step"
    words = (
        "OpenArc: one request after the other, by arrival; who gives up before his first token is computed all the same; "
        f"{step}"
    )
    return library_plan(request, ENGINE, version_text, rules, settings, words)


def scheduler_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The library's settings: those for a single user, or, if anything is set, its defaults but for what is set and true.

    Values that are false are passed over as if they were not there, so that split-fuse cannot be switched off.

    >>> scheduler_settings({})["enable_prefix_caching"], scheduler_settings({"cache_size": 6})["enable_prefix_caching"]
    (True, False)
    """
    given = dict(flags.get("scheduler_config") or {})
    unknown = set(given) - set(SCHEDULER_FLAGS)
    if unknown:
        raise InputError(
            f"scheduler_config has `{min(unknown)}`, which is not simulated",
            where="deployment.engine_args.scheduler_config",
            mend=f"of {', '.join(SCHEDULER_FLAGS)}",
        )
    given |= {name: flags[name] for name in SCHEDULER_FLAGS if name in flags}
    if not given:
        return {"max_num_batched_tokens": UNLIMITED_TOKENS, "enable_prefix_caching": True}
    defaults = {"max_num_batched_tokens": BATCHED_TOKENS, "enable_prefix_caching": False}
    return defaults | {name: value for name, value in given.items() if value}


def _check_runtime(config: Mapping[str, Any]) -> None:
    """Refuse what of OpenVINO's properties would make the prediction wrong."""
    where = "deployment.engine_args.runtime_config"
    other = set(config) - {
        "ATTENTION_BACKEND",
        "KV_CACHE_PRECISION",
        "PERFORMANCE_HINT",
        "LOG_LEVEL",
        "CACHE_DIR",
    }
    if other:
        raise InputError(
            f"runtime_config has `{min(other)}`, which is not simulated", where=where, mend="leave it out"
        )
    if str(config.get("ATTENTION_BACKEND", "PA")).upper() != "PA":
        raise InputError(
            "OpenArc without paged attention (ATTENTION_BACKEND) is not simulated",
            where=where,
            mend="leave it out",
        )
    precision = config.get("KV_CACHE_PRECISION")
    if precision is not None and str(precision).lower() not in KV_FORMATS:
        raise InputError(
            f"KV_CACHE_PRECISION {precision} is not simulated",
            where=where,
            mend=f"one of {', '.join(KV_FORMATS)}",
        )


ENGINE = Engine(
    name="openarc",
    title="OpenArc",
    rule="One request at a time for each model, in order of arrival, through OpenVINO GenAI's pipeline for a single user.",
    versions={"2.0.4": {}},
    devices=DEVICES,
    formats=FORMATS,
    kv_formats=("int8",),
    features={},
    flags=lambda: FLAGS,
    same_as={"rows": "max_num_seqs", "step_tokens": "max_num_batched_tokens"},
    kernels="openvino",
    overheads_from="vllm",
    kv_format=kv_format,
    plan=plan,
)
