"""OpenVINO GenAI's continuous batching behind OpenVINO Model Server: what the server adds to the library, and its defaults.

The library is `engine_models.engines.openvino_genai`.

Behaviour and defaults of model_server at 7e4df0c7 (2026-08: `src/llm`, `src/config.cpp`, `src/drogon_http_server.cpp`).
"""

from __future__ import annotations

import re
from dataclasses import replace

from engine_models.declaration import Engine, EnginePlan, PoolRequest, checked
from engine_models.engines.openvino_flags import FLAGS
from engine_models.engines.openvino_genai import (
    BATCHED_TOKENS,
    DEVICES,
    FORMATS,
    check_device,
    kv_format,
    library_plan,
)
from engine_models.engines.openvino_memory import ROWS
from engine_models.engines.openvino_recorded import replay as replay_recorded
from engine_models.refusals import without_effect
from engine_models.schedulers.one_list import OneListRules
from hardware_profiles.errors import InputError


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: so many REST workers as a machine has cores, and the library behind them.

    Raises InfeasibleError if the weights or the cache asked for do not fit, InputError on what the engine or this model of it
    lacks.
    """
    check_device(request, "target_device")
    flags, on_cpu = request.flags, request.device_kind == "cpu"
    budget, rows = (
        int(flags.get("max_num_batched_tokens", BATCHED_TOKENS)),
        int(flags.get("max_num_seqs", ROWS)),
    )
    split = bool(flags.get("dynamic_split_fuse", True))
    if not split and rows > budget:
        raise InputError(
            f"max_num_seqs {rows} is more than max_num_batched_tokens {budget}, which OpenVINO refuses without split-fuse",
            where="deployment.engine_args.max_num_seqs",
            mend=f"set max_num_batched_tokens to the context ({request.arch.max_context_tokens:,}), or max_num_seqs to at most "
            f"{budget}",
        )
    workers = int(flags.get("rest_workers") or request.device_cores)
    rules = OneListRules(
        max_num_batched_tokens=budget,
        max_num_seqs=rows,
        dynamic_split_fuse=split,
        partial_preemption=on_cpu or split,
        workers=max(2, workers) if workers else None,
    )
    cut = (
        "prompts in pieces beside the rows that decode" if split else "whole prompts before the others go on"
    )
    inside = (
        f"above {rules.workers:,} requests others wait for a REST worker"
        if workers
        else "any number of requests at once"
    )
    words = f"OpenVINO: {budget:,} tokens a step, {cut}; {inside}"
    settings = {"enable_prefix_caching": True, **flags}
    found = library_plan(request, ENGINE, version_text, rules, settings, words)
    idle = without_effect(flags, ("max_num_seqs",) if split else (), "schedules of whole prompts", "split-fuse")
    return replace(found, warnings=(*found.warnings, *idle))


def recorded_version(text: str) -> str:
    """The declared version that stands for what a recording says of its own."""
    said = re.search(r"20\d\d\.\d+(\.\d+)*", text)
    return ENGINE.version(said[0] if said else text)


ENGINE = Engine(
    name="openvino",
    title="OpenVINO",
    rule=(
        "One list in order of arrival: who is in it computes what budget and memory allow, answers before prompts; a "
        "decode without a block takes the newest blocks of the last in the list."
    ),
    versions={"2026.4.0": {}},
    oldest="2026.3.0",
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
    replay=checked(recorded_version, replay_recorded),
)
