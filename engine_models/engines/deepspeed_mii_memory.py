"""What DeepSpeed-MII serves, and the memory of a pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest
from engine_models.model.activations import activation_bytes, runtime_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from engine_models.model.blocks import Architecture
from engine_models.refusals import ELSEWHERE, no_expert_parallelism, only_16_bit_kv, only_on_nvidia
from hardware_profiles.errors import InfeasibleError, InputError

FAMILIES = ("falcon", "llama", "mistral", "mixtral", "opt", "phi", "phi3", "qwen", "qwen2", "qwen2_moe", "exaone4")
"""Values of `model_type` that it has an implementation of (datasheet: `deepspeed/inference/v2/engine_factory.py`, 0.19.8)."""

LOGIT_BYTES = 2
SMALL_HEAD_DIM, SMALL_HEAD_BLOCK, BLOCK = 64, 128, 64
"""Tokens of a KV block: 128 up to this width of a head, else 64 (datasheet: `get_kv_block_size` of 0.19.8). Heads of 160 have
blocks of 32 on some cards; no model of the families here has such."""


def refuse(request: PoolRequest) -> None:
    """Raise InputError for what it does not serve."""
    arch = request.arch
    only_on_nvidia(request, "DeepSpeed-MII runs on NVIDIA GPUs from Ampere on")
    if arch.model_type and arch.model_type not in FAMILIES:
        raise InputError(
            f"DeepSpeed-MII has no implementation of models of type {arch.model_type} such as {arch.name}",
            where="model",
            mend=f"it has {', '.join(FAMILIES)}; or {ELSEWHERE}",
        )
    no_expert_parallelism(request, "DeepSpeed-MII has no expert parallelism")
    only_16_bit_kv(request, "DeepSpeed-MII")


def attends_to_all(arch: Architecture) -> Architecture:
    """The model without its sliding windows, which the engine's kernels do not know (`dense_blocked_attention.py`)."""
    blocks = tuple(
        replace(block, kind="full", window_tokens=0) if block.kind == "sliding" else block for block in arch.attention
    )
    return replace(arch, attention=blocks)


def memory_of(request: PoolRequest, arch: Architecture, state: Mapping[str, Any], page: int) -> MemoryBudget:
    """KV blocks: what weights, context and buffers leave, less a reserve; or a fixed number (`ragged/kv_cache.py`, 0.19.8)."""
    tp, device, config = request.tensor_parallel, request.device_memory_bytes, state["memory_config"]
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1)
    logits = state["max_ragged_sequence_count"] * arch.vocab * LOGIT_BYTES * (3 if tp > 1 else 1)
    buffers = activation_bytes(arch, state["max_ragged_batch_size"], 0, tp) + logits
    other = runtime_bytes(tp)
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp)
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


__all__ = ["BLOCK", "SMALL_HEAD_BLOCK", "SMALL_HEAD_DIM", "attends_to_all", "memory_of", "refuse"]
