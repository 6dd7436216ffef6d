"""OpenVINO GenAI, the library behind several servers: its memory, its limits, and what it runs on.

The scheduling rule is `engine_models.schedulers.one_list`, the cache `engine_models.memory.content_blocks`.

Behaviour and defaults of openvino.genai at da1db864 (`src/cpp/src/continuous_batching`) and of OpenVINO's plugins for CPUs and
GPUs (2026-08); scheduling checked step by step against recordings (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import HostOverhead, Terms
from engine_models.declaration import (
    Engine,
    EnginePlan,
    FrontEnd,
    Limits,
    Mode,
    PoolRequest,
    Support,
)
from engine_models.engines.openvino_memory import block_tokens_of, memory_of
from engine_models.memory.content_blocks import ContentBlocks
from engine_models.model.blocks import Architecture
from engine_models.refusals import no_layers
from engine_models.schedulers.one_list import OneListRules, OneListScheduler
from hardware_profiles.device import Device, DeviceKind, sockets
from hardware_profiles.errors import InputError

BATCHED_TOKENS = 256
"""Default of `max_num_batched_tokens` (datasheet: `scheduler_config.hpp` at da1db864, 2026-08)."""

ARM_CPUS = ("neoverse", "ampere")
"""Architectures of CPUs on which keys and values stay in 16 bit unless told otherwise (datasheet: `config.h`, CPU plugin)."""

SOURCE = "openvinotoolkit/openvino.genai at da1db864 (2026-08)"
KINDS: frozenset[DeviceKind] = frozenset({"cpu", "gpu", "apu"})
DEVICES: Mapping[DeviceKind, str] = {
    "cpu": f"{SOURCE}: x86-64 and ARM CPUs",
    "gpu": f"{SOURCE}: Intel GPUs; NPUs are not simulated",
    "apu": f"{SOURCE}: GPUs inside of Intel's processors",
}
FORMATS = {
    name: Support(KINDS, "compression of weights by NNCF, as optimum-intel offers it (2026-08)")
    for name in ("fp32", "bf16", "fp16", "nncf", "int8_wo", "int4", "awq", "gptq")
}
ONE_SOCKET = "of two sockets one server uses one, as the library binds its load: two replicas, each on one, serve twice as much"
"""What is said of machines of two (datasheet: model server's documentation of scaling on dual sockets, 2025)."""
KV_FORMATS = {"u8": "int8", "i8": "int8", "u4": "u4", "f16": "fp16", "bf16": "bf16", "f32": "fp32"}
"""Values of the property ``KV_CACHE_PRECISION``, and the format of the KV cache that they fix."""


def kv_format(device: Device, arch: Architecture) -> str:
    """Format of the KV cache unless told otherwise: 8 bits, but on ARM, whatever the model."""
    return "fp16" if device.architecture.startswith(ARM_CPUS) else "int8"


def library_plan(
    request: PoolRequest,
    engine: Engine,
    version_text: str | None,
    rules: OneListRules,
    settings: Mapping[str, Any],
    words: str,
) -> EnginePlan:
    """The plan of a pool with these rules. Of `settings`, `enable_prefix_caching`, `cache_size` and `num_kv_blocks` are read.

    Raises InfeasibleError if the weights or the cache asked for do not fit, InputError on what the library lacks.
    """
    _refuse(request, engine.title)
    arch, on_cpu, context = request.arch, request.device_kind == "cpu", request.arch.max_context_tokens
    budget = min(rules.max_num_batched_tokens, context)
    split, caching = rules.dynamic_split_fuse, bool(settings["enable_prefix_caching"])
    memory, fixed = memory_of(request, budget, settings)
    block_tokens = block_tokens_of(request)
    kv_tokens = memory.blocks * block_tokens
    rows = budget if split else min(rules.max_num_seqs, budget)
    rows = min(rows, rules.workers or rows)
    blocks, most_blocks = (memory.blocks, None) if fixed else (0, memory.blocks)
    windows = arch.windows_below(context)

    def scheduler(mode: Mode) -> OneListScheduler:
        kv = ContentBlocks(blocks, block_tokens, prefix_caching=caching, most_blocks=most_blocks)  # up to where it grows
        return OneListScheduler(rules, kv, aggregate=mode != "step", record_rows=mode == "record", windows=windows)

    overheads = load_overheads(engine.name, engine.overheads_from)
    host = overheads.host
    if on_cpu:  # an operation is a call
        terms = Terms(HostOverhead(host.step_s, host.row_s), graph_sizes=(), sampler="cores")
    else:
        terms = Terms(replace(host, prefill_graph_tokens=0, prefill_launch_s=0.0), graph_sizes=())
    return EnginePlan(
        engine=engine.name,
        version=engine.version(version_text),
        limits=Limits(
            rows=rows,
            step_tokens=budget,
            context_tokens=context,
            kv_tokens=kv_tokens,
            kv_blocks=memory.blocks,
            block_tokens=block_tokens,
            prompt_tokens=context - 1 if split else min(context - 1, budget),
            row_tokens=context,
            prompt_by="max_num_batched_tokens" if not split and budget < context - 1 else "",
            request_tokens=None if on_cpu and not fixed else max(context, kv_tokens),
        ),
        memory=memory,
        scheduler=scheduler,
        costs=StepCosts(arch, request.formats, terms, TableRange(budget, rows, context)),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, loop=overheads.loop),
        prefix_caching=caching,
        notes=(
            f"{words}; "
            + (
                f"a KV cache of {memory.blocks:,} blocks of {block_tokens} tokens; who lacks blocks takes the newest from the "
                "last request in the list, which computes them again"
                if fixed
                else "a KV cache that grows as it is needed, up to the memory there is, which takes no time here, though "
                "all of it is copied (not measured)"
            ),
            "cached prompts can be found" if caching else "no prefix cache",
            *([ONE_SOCKET] if sockets(request.device_name) == 2 else []),
            f"{engine.title}'s host and front end are priced as vLLM's (assumed, nobody measured them)",
        ),
        warnings=_warnings(engine.title, rules, context, kv_tokens, fixed=fixed),
        sources=overheads.provenance,
    )


def _warnings(
    title: str, rules: OneListRules, context: int, kv_tokens: int, *, fixed: bool
) -> tuple[str, ...]:
    found = []
    if fixed and kv_tokens < context:
        found.append(
            f"a request of more than {kv_tokens:,} tokens cannot be held: when nothing can go on, {title} drops all requests"
        )
    if not rules.dynamic_split_fuse and rules.max_num_batched_tokens < context - 1:
        found.append(
            f"prompts above max_num_batched_tokens {rules.max_num_batched_tokens:,} count as refused here; without "
            "split-fuse the server itself ends at the first"
        )
    return tuple(found)


def _refuse(request: PoolRequest, title: str) -> None:
    """Refuse what the library, or this model of it, lacks."""
    if request.device_kind != "cpu" and request.device_vendor != "intel":
        raise InputError(
            f"{title} runs on CPUs and Intel GPUs, not on {request.device_name}",
            where="deployment.hardware",
            mend="use an Intel GPU or a CPU, or another engine (`capacity-plan list engines`)",
        )
    if request.device_kind != "cpu" and request.formats.kv_cache.name == "u4":
        raise InputError(
            f"{title}'s keys and values in 4 bits are simulated on CPUs, not on GPUs",
            where="deployment.kv_cache",
            mend="use int8 or fp16",
        )
    for key in ("tensor_parallel", "expert_parallel"):
        if getattr(request, key) > 1:
            raise InputError(
                f"{title} over several devices is not simulated",
                where=f"deployment.{key}",
                mend="use one device (both sockets of a machine are one), and replicas",
            )
    caches = f"{title}'s caches of latents, states and sparse attention, which {request.arch.name} needs"
    no_layers(request, ("mla", "linear", "sparse"), f"{caches}, are not simulated")


def check_device(request: PoolRequest, flag: str) -> None:
    """Refuse a device named by a flag that is not the pool's."""
    named, here = str(request.flags.get(flag) or "").upper(), request.device_kind.upper()
    if named and not named.startswith((here, "AUTO")):
        raise InputError(
            f"{flag} {named} is not the hardware of the pool, {request.device_name}",
            where=f"deployment.engine_args.{flag}",
            mend=f"write {here}, or leave it out; NPU and HETERO (one request at a time, several devices) are not simulated",
        )
