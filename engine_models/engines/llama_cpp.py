"""llama.cpp's server: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.slots`, cached prompts in host memory are `engine_models.memory.whole_prompts`;
what its flags make of a pool is `engine_models.engines.llama_server`.

Behaviour and defaults of llama.cpp at 0c1e57098 (2026: `tools/server`, `common/arg.cpp`, `src/llama-context.cpp`,
`src/llama-kv-cache.cpp`); scheduling checked step by step against recordings of build 11669 (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.arguments import parse_flags
from engine_models.cost.overheads import load_overheads
from engine_models.declaration import Engine, EnginePlan, FrontEnd, PoolRequest, Replay, Support
from engine_models.engines.llama_cpp_flags import FLAGS
from engine_models.engines.llama_cpp_recorded import replay as replay_recorded
from engine_models.engines.llama_cpp_recorded import transcribe
from engine_models.engines.llama_server import backend_of, cuts_anywhere, llama_server
from engine_models.engines.llama_server_drafts import draft_settings
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one server: slots, context, memory, overheads.

    Raises InfeasibleError if weights and the least context do not fit, InputError on what this model of it lacks.
    """
    version = ENGINE.version(version_text)
    server = llama_server(_with_defaults(request, version))
    kernels = ENGINE.switches(version).get("kernels", "")
    asked, by_default = str(request.flags.get("flash_attn")).lower(), kernels == "llama_cpp_2025"
    off = asked in ("off", "0", "false") or (by_default and asked not in _ON)
    modelled = kernels == "llama_cpp_2024" or (by_default and (request.device_kind, request.device_vendor) == ("apu", "amd"))
    kernels += "_fused" * (by_default and asked in _ON)
    if backend := backend_of(request):
        kernels = f"{kernels or ENGINE.kernels}_{backend}"
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)

    return EnginePlan(
        engine=ENGINE.name,
        version=version,
        kernels=kernels,
        limits=server.limits(),
        memory=server.memory,
        scheduler=server.scheduler,
        costs=server.costs(overheads, kernels or ENGINE.kernels),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=server.rules.cache_prompt,
        notes=(*server.notes(), *((_UNFUSED,) if off and not modelled else ())),
        sources=overheads.provenance,
    )


_ON = ("on", "1", "true")
_UNFUSED = "attention is priced as fused; without --flash-attn long contexts are slower, by what was not measured on this device"


def _with_defaults(request: PoolRequest, version: str) -> PoolRequest:
    """The pool with the defaults of an older version, whose slots are parts of one pool."""
    if request.speculation is not None and version != ENGINE.newest:
        raise InputError(
            f"llama.cpp {version} verified the drafts of each slot in a call of its own, which is not simulated",
            where="deployment.speculative",
            mend="leave the version out, or remove speculative",
        )
    older = {flag: value for flag, value in ENGINE.switches(version).items() if flag != "kernels"}
    if not older or "context_shift" in request.flags or not cuts_anywhere(request):
        older.pop("context_shift", None)
    if str(request.flags.get("flash_attn")).lower() in _ON:
        older.pop("pad_cells", None)
    flags = {**older, **request.flags}
    if older and flags["kv_unified"] and flags.get("ctx_size"):
        flags["kv_unified_per_slot"] = int(flags["ctx_size"]) // max(int(flags["parallel"]), 1)
    return replace(request, flags=flags)


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from its version and the knobs of its `config` line."""
    ENGINE.version(version_text.partition(" ")[0])
    return replay_recorded(knobs, parse_flags(FLAGS, list(knobs["args"])).values)


_SOURCE = "ggml-org/llama.cpp at 0c1e57098 (2026)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu", "apple", "cpu", "apu"})

ENGINE = Engine(
    name="llama_cpp",
    title="llama.cpp",
    rule=(
        "A fixed number of slots whose caches outlive their requests: one token of each generating slot, then prompts "
        "slot by slot, in sub-batches; a pool without room halves the batch and at last fails all that run."
    ),
    versions={
        "0.7.0": {},
        "0.0.5800": {
            "kernels": "llama_cpp_2025",
            "parallel": 1,
            "kv_unified": True,
            "context_shift": True,
            "cache_ram": 0,
            "pad_cells": 32,  # attention not fused (`llama_kv_cache::get_padding`)
        },
        "0.0.2800": {"kernels": "llama_cpp_2024"},
    },
    oldest="0.0.2400",
    devices={
        "gpu": f"{_SOURCE}: ggml backends CUDA, HIP, Vulkan, SYCL",
        "apple": f"{_SOURCE}: ggml backend Metal",
        "cpu": f"{_SOURCE}: ggml backend CPU",
        "apu": f"{_SOURCE}: ggml backends Vulkan and HIP",
    },
    formats={
        name: Support(_KINDS, f"{_SOURCE}: ggml/src/ggml-common.h, tools/quantize")
        for name in ("gguf", "bf16", "fp16", "fp32", "mxfp4")
    },
    files={"mxfp4": "mxfp4_moe"},  # ggml-org's gpt-oss: 11.27 and 59.02 GiB, what is no expert in Q8_0 (llama-bench, 2026)
    kv_formats=(),
    features={
        "speculative": Support(_KINDS, f"{_SOURCE}: common/speculative.cpp, tools/server/server-context.cpp"),
        "pipeline_parallel": Support(frozenset({"gpu", "apu"}), f"{_SOURCE}: --split-mode layer, the default"),
    },
    flags=lambda: FLAGS,
    same_as={"rows": "parallel", "context": "ctx_size", "step_tokens": "batch_size"},
    drafts=draft_settings,
    kernels="llama_cpp",
    plan=plan,
    replay=replay,
    transcribe=transcribe,
)
