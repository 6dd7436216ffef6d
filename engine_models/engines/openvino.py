"""OpenVINO GenAI's continuous batching behind OpenVINO Model Server: what it is in terms of the shared parts.

The scheduling rule is `engine_models.schedulers.one_list`, the cache `engine_models.memory.content_blocks`.

Behaviour and defaults of openvino.genai at da1db864 (`src/cpp/src/continuous_batching`), of model_server at 7e4df0c7 and of
OpenVINO's plugins for CPUs and GPUs (2026-08); scheduling checked step by step against recordings (`capacity-plan validate
schedules`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    MemoryBudget,
    MemoryLine,
    Mode,
    PoolRequest,
    Replay,
    Support,
)
from engine_models.engines.openvino_flags import FLAGS
from engine_models.engines.openvino_recorded import replay as replay_recorded
from engine_models.memory.content_blocks import ContentBlocks
from engine_models.model.activations import CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_groups, weight_bytes_per_rank
from engine_models.model.blocks import Architecture
from engine_models.schedulers.one_list import OneListRules, OneListScheduler
from hardware_profiles.device import Device, DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError

BATCHED_TOKENS = 256
ROWS = 256
CPU_BLOCK_TOKENS, GPU_BLOCK_TOKENS = 32, 16
"""Defaults and block sizes (datasheet: `scheduler_config.hpp`, `kv_cache_manager.hpp` at da1db864, 2026-08)."""

CPU_SCALE_BYTES = 8
GPU_KEY_SCALE_BYTES, GPU_VALUE_SCALE_BYTES = 4, 4
"""Scale and zero point of 8-bit keys and values: two fp32 a head and token on CPUs; two fp16 a channel and block of keys, a head
and token of values on GPUs (datasheet: `transformation_pipeline.cpp`, CPU plugin; `paged_attention`, GPU plugin, 2025)."""

GPU_USED_SHARE = 1.1
"""What counts as used of a GPU's memory, over what is (datasheet: `get_available_gpu_memory` in `utils.cpp` at da1db864)."""
HOST_BYTES = 4 << 30
"""Memory of the operating system and the server's process on a CPU machine [bytes] (assumed)."""
GIB = 1 << 30

ARM_CPUS = ("neoverse", "ampere")
"""Architectures of CPUs on which keys and values stay in 16 bit unless told otherwise (datasheet: `config.h`, CPU plugin)."""
INTEL_GPUS = ("arc-", "max-", "flex-")


@dataclass(frozen=True)
class Rank:
    """Rules and blocks of one rank: what a fresh scheduler is built from. `most_blocks`: up to where a growing pool grows."""

    rules: OneListRules
    blocks: int
    most_blocks: int | None
    block_tokens: int
    prefix_caching: bool
    windows: tuple[int, ...]

    def scheduler(self, mode: Mode) -> OneListScheduler:
        """Build a scheduler with its blocks."""
        kv = ContentBlocks(
            self.blocks,
            self.block_tokens,
            prefix_caching=self.prefix_caching,
            most_blocks=self.most_blocks,
        )
        return OneListScheduler(
            self.rules, kv, aggregate=mode != "step", record_rows=mode == "record", windows=self.windows
        )


def kv_format(device: Device) -> str:
    """Format of the KV cache unless told otherwise: 8 bits, but on ARM."""
    return "fp16" if device.architecture.startswith(ARM_CPUS) else "int8"


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: memory left by the weights, a pool of blocks that grows or is of fixed size, limits.

    Raises InfeasibleError if the weights or the cache asked for do not fit, InputError on what the engine or this model of it
    lacks.
    """
    refuse(request)
    arch, flags = request.arch, request.flags
    on_cpu = request.device_kind == "cpu"
    budget, rows = (
        int(flags.get("max_num_batched_tokens", BATCHED_TOKENS)),
        int(flags.get("max_num_seqs", ROWS)),
    )
    memory = memory_of(request, budget)
    asked = _asked_blocks(flags, memory)
    if asked > memory.blocks:
        raise InfeasibleError(
            f"the KV cache asked for, {asked * memory.block_bytes / GIB:.1f} GiB, is larger than the "
            f"{memory.kv_bytes / GIB:.1f} GiB left for it",
            where="deployment.engine_args.cache_size",
            mend="ask for less, or leave it out: the cache then grows as it is needed",
        )
    if asked:
        kv_bytes = asked * memory.block_bytes
        left = MemoryLine("left", "left beside a cache of fixed size", memory.kv_bytes - kv_bytes)
        memory = replace(memory, lines=(*memory.lines, left), kv_bytes=kv_bytes, blocks=asked)
    split = bool(flags.get("dynamic_split_fuse", True))
    if not split and rows > budget:
        raise InputError(
            f"max_num_seqs {rows} is more than max_num_batched_tokens {budget}, which OpenVINO refuses without split-fuse",
            where="deployment.engine_args.max_num_seqs",
            mend=f"set max_num_batched_tokens to the context ({arch.max_context_tokens:,}), or max_num_seqs to at most {budget}",
        )
    workers = flags.get("rest_workers") or (request.device_cores if on_cpu else None)
    rules = OneListRules(
        max_num_batched_tokens=budget,
        max_num_seqs=rows,
        dynamic_split_fuse=split,
        partial_preemption=on_cpu or split,
        workers=None if workers is None else max(2, int(workers)),
    )
    caching = bool(flags.get("enable_prefix_caching", True))
    return resolved(
        request,
        ENGINE,
        version_text,
        rules,
        memory,
        caching=caching,
        fixed=asked > 0,
        words=_words(rules, asked),
    )


def resolved(
    request: PoolRequest,
    engine: Engine,
    version_text: str | None,
    rules: OneListRules,
    memory: MemoryBudget,
    *,
    caching: bool,
    fixed: bool,
    words: tuple[str, ...],
) -> EnginePlan:
    """The plan of a pool with these rules. `fixed`: the pool of blocks has its size from the beginning."""
    arch, on_cpu, context = request.arch, request.device_kind == "cpu", request.arch.max_context_tokens
    block_tokens = CPU_BLOCK_TOKENS if on_cpu else GPU_BLOCK_TOKENS
    budget = min(rules.max_num_batched_tokens, context)
    rows = budget if rules.dynamic_split_fuse else min(rules.max_num_seqs, budget)
    if rules.workers is not None:
        rows = min(rows, rules.workers)
    windows = arch.windows_below(context)
    rank = Rank(
        rules, memory.blocks if fixed else 0, None if fixed else memory.blocks, block_tokens, caching, windows
    )
    overheads = load_overheads(engine.name, engine.overheads_from)
    host = overheads.host
    if on_cpu:  # an operation is a call
        terms = Terms(HostOverhead(host.step_s, host.row_s), graph_sizes=(), sampler="cores")
    else:
        terms = Terms(replace(host, prefill_graph_tokens=0, prefill_launch_s=0.0), graph_sizes=())
    kv_tokens = memory.blocks * block_tokens
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
            prompt_tokens=context - 1 if rules.dynamic_split_fuse else min(context - 1, budget),
            row_tokens=context,
            request_tokens=None if on_cpu and not fixed else max(context, kv_tokens),
        ),
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(arch, request.formats, terms, TableRange(budget, rows, context)),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=caching,
        notes=(
            *words,
            "cached prompts can be found" if caching else "no prefix cache",
            f"{engine.title}'s kernels are priced by {'the datasheet' if on_cpu else 'their next of kin or the datasheet'}, "
            "its host and front end as vLLM's (assumed, nobody measured them)",
        ),
        warnings=_warnings(rules, context, kv_tokens, fixed=fixed),
        sources=overheads.provenance,
    )


def _asked_blocks(flags: Mapping[str, Any], memory: MemoryBudget) -> int:
    """Blocks of a cache of fixed size, 0 if it grows; `num_kv_blocks` goes before `cache_size`, which is in GiB."""
    return int(flags.get("num_kv_blocks") or int(flags.get("cache_size") or 0) * GIB // memory.block_bytes)


def _words(rules: OneListRules, asked: int) -> tuple[str, ...]:
    cut = (
        "prompts in pieces beside the rows that decode"
        if rules.dynamic_split_fuse
        else "whole prompts before the others go on"
    )
    inside = f"; above {rules.workers:,} requests others wait for a REST worker" if rules.workers else ""
    pool = (
        f"a KV cache of {asked:,} blocks"
        if asked
        else "a KV cache that grows as it is needed, up to the memory there is"
    )
    return (
        f"OpenVINO GenAI: {rules.max_num_batched_tokens:,} tokens a step, {cut}; {pool}{inside}",
        "growing the cache takes no time here, though all of it is copied (not measured)" if not asked else
        "who lacks KV blocks takes the newest from the last request in the list, which computes them again",
    )  # fmt: skip


def _warnings(rules: OneListRules, context: int, kv_tokens: int, *, fixed: bool) -> tuple[str, ...]:
    found = []
    if fixed and kv_tokens < context:
        found.append(
            f"a request of more than {kv_tokens:,} tokens cannot be held: when nothing can go on, OpenVINO drops all requests"
        )
    if not rules.dynamic_split_fuse and rules.max_num_batched_tokens < context - 1:
        found.append(
            f"prompts above max_num_batched_tokens {rules.max_num_batched_tokens:,} count as refused here; without "
            "split-fuse the server itself ends at the first"
        )
    return tuple(found)


def refuse(request: PoolRequest) -> None:
    """Refuse what OpenVINO, or this model of it, lacks."""
    arch, target = request.arch, str(request.flags.get("target_device") or "").upper()
    if request.device_kind == "gpu" and not request.device_name.startswith(INTEL_GPUS):
        raise InputError(
            f"OpenVINO runs on CPUs and Intel GPUs, not on {request.device_name}",
            where="deployment.hardware",
            mend="use an Intel GPU or a CPU, or another engine (`capacity-plan list engines`)",
        )
    meant = {"CPU": ("CPU",), "GPU": ("GPU",)}["CPU" if request.device_kind == "cpu" else "GPU"]
    if target and not target.startswith((*meant, "AUTO")):
        raise InputError(
            f"target_device {target} is not the hardware of the pool, {request.device_name}",
            where="deployment.engine_args.target_device",
            mend=f"write {meant[0]}, or leave it out; NPU and HETERO (one request at a time, several devices) are not "
            "simulated",
        )
    if request.tensor_parallel > 1 or request.expert_parallel > 1:
        raise InputError(
            "OpenVINO over several devices is not simulated",
            where="deployment.tensor_parallel"
            if request.tensor_parallel > 1
            else "deployment.expert_parallel",
            mend="use one device (both sockets of a machine are one), and replicas",
        )
    if any(
        block.kind not in ("full", "sliding") or block.indexer or block.entry_tokens > 1
        for block in arch.attention
    ):
        raise InputError(
            f"OpenVINO's caches of latents, states and sparse attention, which {arch.name} needs, are not simulated",
            where="model",
            mend="use another engine (`capacity-plan list engines`)",
        )


def kv_bytes_per_token(arch: Architecture, request: PoolRequest) -> float:
    """Bytes of keys and values of a token, with the scales of 8-bit ones."""
    plain = float(sum(group.bytes_per_token_per_rank for group in kv_groups(arch, request.formats.kv_cache)))
    if request.formats.kv_cache.name != "int8":
        return plain
    heads = sum(block.layers * block.kv_heads for block in arch.attention if block.cache)
    if request.device_kind == "cpu":
        return plain + 2 * CPU_SCALE_BYTES * heads
    keys = sum(
        block.layers * block.kv_heads * block.head_dim * GPU_KEY_SCALE_BYTES / GPU_BLOCK_TOKENS
        for block in arch.attention
        if block.cache
    )
    return plain + keys + GPU_VALUE_SCALE_BYTES * heads


def memory_of(request: PoolRequest, step_tokens: int) -> MemoryBudget:
    """What the weights, the largest step and the rest leave for keys and values."""
    arch, device, on_cpu = request.arch, request.device_memory_bytes, request.device_kind == "cpu"
    tokens = min(step_tokens, arch.max_context_tokens)
    weights = weight_bytes_per_rank(arch, request.formats.weights)
    step = activation_bytes(arch, tokens, min(tokens, ROWS), 1)
    other = int(
        HOST_BYTES if on_cpu else CONTEXT_BYTES + (GPU_USED_SHARE - 1) * (weights + step + CONTEXT_BYTES)
    )
    block_tokens = CPU_BLOCK_TOKENS if on_cpu else GPU_BLOCK_TOKENS
    block = int(kv_bytes_per_token(arch, request) * block_tokens)
    left = device - weights - step - other
    if left < block:
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB + {(step + other) / 1e9:.1f} GB besides, of "
            f"{device / 1e9:.1f} GB",
            where="deployment",
            mend="a smaller number format (int8, int4), or a larger device",
        )
    lines = (
        MemoryLine("weight", "weights", weights),
        MemoryLine("activation", "the largest step", step),
        MemoryLine(
            "other", "operating system and process" if on_cpu else "context and what counts as used", other
        ),
    )
    return MemoryBudget(device, device, lines, left, block / block_tokens, block, left // block)


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from its version and the knobs of its `config` line."""
    said = re.search(r"20\d\d\.\d+(\.\d+)*", version_text)
    ENGINE.version(said[0] if said else version_text)
    return replay_recorded(knobs)


SOURCE = "openvinotoolkit/openvino.genai at da1db864 (2026-08)"
KINDS: frozenset[DeviceKind] = frozenset({"cpu", "gpu"})
DEVICES: Mapping[DeviceKind, str] = {
    "cpu": f"{SOURCE}: x86-64 and ARM CPUs",
    "gpu": f"{SOURCE}: Intel GPUs; NPUs are not simulated",
}
FORMATS = {
    name: Support(
        KINDS, "compression of weights by NNCF, as optimum-intel and model_server offer it (2026-08)"
    )
    for name in ("fp32", "bf16", "fp16", "int8_wo", "int4", "awq", "gptq")
}

ENGINE = Engine(
    name="openvino",
    title="OpenVINO",
    versions={"2026.4.0": {}},
    oldest="2026.3.0",
    devices=DEVICES,
    formats=FORMATS,
    features={},
    flags=lambda: FLAGS,
    same_as={"rows": "max_num_seqs", "step_tokens": "max_num_batched_tokens"},
    kernels="vllm",
    overheads_from="vllm",
    kv_format=kv_format,
    plan=plan,
    replay=replay,
)
