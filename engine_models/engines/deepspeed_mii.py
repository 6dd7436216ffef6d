"""DeepSpeed-MII over DeepSpeed-FastGen: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.split_fuse`, which counts the blocks itself: nothing is found again.

Behaviour and defaults of MII 0.3.3 (8abdd98, 2025-06) over DeepSpeed 0.19.8 (`deepspeed/inference/v2`); scheduling checked step
by step against recordings (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
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
from engine_models.engines.deepspeed_mii_flags import FLAGS, manager
from engine_models.engines.deepspeed_mii_recorded import replay as replay_recorded
from engine_models.model.activations import COLLECTIVE_BYTES, CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_groups, weight_bytes_per_rank
from engine_models.model.blocks import Architecture
from engine_models.schedulers.split_fuse import SplitFuseRules, SplitFuseScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError

FAMILIES = ("falcon", "llama", "mistral", "mixtral", "opt", "phi", "phi3", "qwen", "qwen2", "qwen2_moe", "exaone4")
"""Values of `model_type` that it has an implementation of (datasheet: `deepspeed/inference/v2/engine_factory.py`, 0.19.8)."""


LOGIT_BYTES = 2
SMALL_HEAD_DIM, SMALL_HEAD_BLOCK, BLOCK = 64, 128, 64
"""Tokens of a KV block: 128 up to this width of a head, else 64 (datasheet: `get_kv_block_size` of 0.19.8). Heads of 160 have
blocks of 32 on some cards; no model of the families here has such."""


@dataclass(frozen=True)
class Rank:
    """Rules and blocks of one rank: what a fresh scheduler is built from."""

    rules: SplitFuseRules
    blocks: int
    block_tokens: int

    def scheduler(self, mode: Mode) -> SplitFuseScheduler:
        """Build a scheduler with its blocks."""
        return SplitFuseScheduler(
            self.rules, self.blocks, self.block_tokens, aggregate=mode != "step", record_rows=mode == "record"
        )


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: memory that weights and buffers leave, less a reserve, limits, overheads.

    Raises InfeasibleError if the weights do not fit, InputError on what the engine lacks.
    """
    flags = request.flags
    _refuse(request)
    arch = _attends_to_all(request.arch)
    state = manager(flags)
    tokens, rows = state["max_ragged_batch_size"], state["max_ragged_sequence_count"]
    page = SMALL_HEAD_BLOCK if arch.attention[0].head_dim <= SMALL_HEAD_DIM else BLOCK
    memory = _memory(request, arch, state, page)
    # the last token of an answer is in no cache
    longest = min(int(flags.get("max_length") or arch.max_context_tokens), arch.max_context_tokens)
    held = min(longest, memory.blocks * page)
    rank = Rank(SplitFuseRules(tokens, rows, state["max_tracked_sequences"]), memory.blocks, page)
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=rows,
            step_tokens=tokens,
            context_tokens=longest + 1,
            kv_tokens=memory.blocks * page,
            kv_blocks=memory.blocks,
            block_tokens=page,
            prompt_tokens=min(longest - 1, held),
            row_tokens=held + 1,
            asked_tokens=1,  # an answer is cut, not refused
        ),
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(replace(overheads.host, prefill_graph_tokens=0), graph_sizes=()),
            TableRange(tokens, rows, longest + 1),
            Parallelism(request.tensor_parallel),
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, loop=overheads.loop),
        notes=(
            f"DeepSpeed-MII: {memory.blocks:,} blocks of {page} tokens, no prefix cache; a step has up to {rows:,} rows and "
            f"{tokens:,} tokens, decodes first, prompts cut to what is left (SplitFuse)",
            "the kernels, launches and the front end are priced as vLLM's (assumed), the host's time of a step is fitted to one "
            "measured rate; a step begins when the one before it is read, and every operation is launched by the host: it has no "
            "CUDA graphs",
        ),
        sources=overheads.provenance,
    )


def _refuse(request: PoolRequest) -> None:
    arch = request.arch
    if request.device_vendor != "nvidia":
        raise InputError(
            f"DeepSpeed-MII runs on NVIDIA GPUs from Ampere on, not on {request.device_name}",
            where="deployment.hardware",
            mend="use an NVIDIA GPU, or another engine (`capacity-plan list engines`)",
        )
    if arch.model_type and arch.model_type not in FAMILIES:
        raise InputError(
            f"DeepSpeed-MII has no implementation of models of type {arch.model_type} such as {arch.name}",
            where="model",
            mend=f"it has {', '.join(FAMILIES)}; or use another engine (`capacity-plan list engines`)",
        )
    if request.expert_parallel > 1:
        raise InputError(
            "DeepSpeed-MII has no expert parallelism",
            where="deployment.expert_parallel",
            mend="leave it out, or use another engine (`capacity-plan list engines`)",
        )
    if request.formats.kv_cache.bits_per_weight != 16:
        raise InputError(
            f"DeepSpeed-MII keeps the KV cache in 16 bits, not in {request.formats.kv_cache.name}",
            where="deployment.kv_cache",
            mend="leave it out, or use another engine (`capacity-plan list engines`)",
        )


def _attends_to_all(arch: Architecture) -> Architecture:
    """The model without its sliding windows, which the engine's kernels do not know (`dense_blocked_attention.py`)."""
    blocks = tuple(
        replace(block, kind="full", window_tokens=0) if block.kind == "sliding" else block for block in arch.attention
    )
    return replace(arch, attention=blocks)


def _memory(request: PoolRequest, arch: Architecture, state: Mapping[str, Any], page: int) -> MemoryBudget:
    """KV blocks: what weights, context and buffers leave, less a reserve; or a fixed number (`ragged/kv_cache.py`, 0.19.8)."""
    tp, device, config = request.tensor_parallel, request.device_memory_bytes, state["memory_config"]
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1)
    logits = state["max_ragged_sequence_count"] * arch.vocab * LOGIT_BYTES * (3 if tp > 1 else 1)
    buffers = activation_bytes(arch, state["max_ragged_batch_size"], 0, tp) + logits
    other = int(CONTEXT_BYTES + (COLLECTIVE_BYTES if tp > 1 else 0))
    per_token = sum(group.bytes_per_token_per_rank for group in kv_groups(arch, request.formats.kv_cache, tp, 1))
    block, free = int(per_token * page), device - weights - buffers - other
    fixed = config["mode"] == "allocate"
    if fixed:
        blocks = int(config["size"])
        reserve, lack = free - blocks * block, blocks * block - free
    else:
        reserve = int(config["size"])
        blocks = max(free - reserve, 0) // block
        lack = block - (free - reserve)
    if lack > 0:
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {(other + buffers) / 1e9:.1f} GB besides + "
            + (f"{blocks:,} KV blocks" if fixed else f"{reserve / 1e9:.1f} GB in reserve")
            + f", of {device / 1e9:.1f} GB; {lack / 1e9:.1f} GB too much on each of {tp} devices",
            where="deployment",
            mend=request.more_memory,
        )
    lines = (
        MemoryLine("weight", "weights", weights),
        MemoryLine("activation", "buffers of the largest step", buffers),
        MemoryLine("other", "CUDA context, collectives", other),
        MemoryLine("reserve", "left free" if fixed else "in reserve (memory_config)", reserve),
    )
    return MemoryBudget(device, device, lines, free - reserve, per_token, block, blocks)


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line; recordings name two packages, not one version."""
    return replay_recorded(knobs)


_SOURCE = "deepspeedai/DeepSpeed-MII 0.3.3 (2025-06), README"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu"})

ENGINE = Engine(
    name="deepspeed_mii",
    title="DeepSpeed-MII",
    rule=(
        "Split and fuse: every step serves all decodes that find memory, then fills up with prompts, the last one cut "
        "to what is left; if nothing can be chosen, the last in the buffer loses its blocks."
    ),
    versions={"0.3.3": {}},
    oldest="0.2.0",
    devices={"gpu": f"{_SOURCE}: NVIDIA GPUs of compute capability 8.0 and above"},
    formats={name: Support(_KINDS, f"{_SOURCE}; deepspeed/inference/v2 0.19.8") for name in ("bf16", "fp16")},
    kv_formats=(),
    features={},
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_ragged_sequence_count",
        "context": "max_length",
        "step_tokens": "max_ragged_batch_size",
        "tensor_ranks": "tensor_parallel",
    },
    kernels="vllm",
    overheads_from="vllm",
    plan=plan,
    replay=replay,
)
