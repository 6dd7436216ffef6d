"""The memory of OpenVINO GenAI: a KV cache of 16, 8 or 4 bits with its scales, of a fixed size or as large as it grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest
from engine_models.model.activations import CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from hardware_profiles.errors import InfeasibleError

ROWS = 256
CPU_BLOCK_TOKENS, GPU_BLOCK_TOKENS = 32, 16
"""Default of `max_num_seqs`, and tokens of a block (datasheet: `scheduler_config.hpp`, `kv_cache_manager.hpp` at da1db864,
2026-08)."""
CPU_SCALE_BYTES = 8
GPU_KEY_SCALE_BYTES, GPU_VALUE_SCALE_BYTES = 4, 4
"""Scale and zero point of keys and values in 8 and 4 bits: two fp32 a head and token on CPUs; two fp16 a channel and block of
keys, a head and token of values on GPUs (datasheet: `transformation_pipeline.cpp`, CPU plugin; `paged_attention`, GPU plugin,
2025)."""

GPU_USED_SHARE = 1.1
"""What counts as used of a GPU's memory, over what is (datasheet: `get_available_gpu_memory` in `utils.cpp` at da1db864)."""
HOST_BYTES = 4 << 30
"""Memory of the operating system and the server's process on a CPU machine [bytes] (assumed)."""
LARGEST_STEP_TOKENS = 4096
"""Tokens of a step for which memory is kept, where a larger one is allowed: it is taken when a long prompt comes (assumed)."""
GIB = 1 << 30


def block_tokens_of(request: PoolRequest) -> int:
    """Tokens of a block of the KV cache."""
    return CPU_BLOCK_TOKENS if request.device_kind == "cpu" else GPU_BLOCK_TOKENS


def _kv_bytes_per_token(request: PoolRequest) -> float:
    """Bytes of keys and values of a token, with their scales."""
    arch, kv = request.arch, request.formats.kv_cache
    plain = float(kv_bytes_per_token(arch, kv))
    if kv.name not in ("int8", "u4"):
        return plain
    blocks = [block for block in arch.attention if block.cache]
    heads = sum(block.layers * block.kv_heads for block in blocks)
    if request.device_kind == "cpu":
        return plain + 2 * CPU_SCALE_BYTES * heads
    channels = sum(block.layers * block.kv_heads * block.head_dim for block in blocks)
    return plain + channels * GPU_KEY_SCALE_BYTES / GPU_BLOCK_TOKENS + heads * GPU_VALUE_SCALE_BYTES


def memory_of(request: PoolRequest, step_tokens: int, settings: Mapping[str, Any]) -> tuple[MemoryBudget, bool]:
    """What the weights, the largest step and the rest leave for keys and values, and whether the cache has a fixed size.

    `num_kv_blocks` goes before `cache_size`, which is in GiB; without both the cache may grow to all that is left.
    """
    arch, device, on_cpu = request.arch, request.device_memory_bytes, request.device_kind == "cpu"
    weights = weight_bytes_per_rank(arch, request.formats.weights)
    tokens = min(step_tokens, LARGEST_STEP_TOKENS)
    step = activation_bytes(arch, tokens, min(tokens, ROWS), 1)
    other = int(
        HOST_BYTES if on_cpu else CONTEXT_BYTES + (GPU_USED_SHARE - 1) * (weights + step + CONTEXT_BYTES)
    )
    block = int(_kv_bytes_per_token(request) * block_tokens_of(request))
    kv = device - weights - step - other
    if kv < block:
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB + {(step + other) / 1e9:.1f} GB besides, of "
            f"{device / 1e9:.1f} GB",
            where="deployment",
            mend="a smaller number format (int8, int4), or a larger device",
        )
    lines = [
        MemoryLine("weight", "weights", weights),
        MemoryLine("activation", "the largest step (of at most 4,096 tokens)", step),
        MemoryLine(
            "other", "operating system and process" if on_cpu else "context and what counts as used", other
        ),
    ]
    asked = int(settings.get("num_kv_blocks") or int(settings.get("cache_size") or 0) * GIB // block)
    if asked * block > kv:
        raise InfeasibleError(
            f"the KV cache asked for, {asked * block / GIB:.1f} GiB, is larger than the {kv / GIB:.1f} GiB left for it",
            where="deployment.engine_args",
            mend="ask for less (cache_size, num_kv_blocks), or for nothing: the cache then grows as it is needed",
        )
    if asked:
        lines.append(MemoryLine("left", "left beside a cache of fixed size", kv - asked * block))
        kv = asked * block
    return MemoryBudget(
        device, device, tuple(lines), kv, block / block_tokens_of(request), block, kv // block
    ), asked > 0


__all__ = ["ROWS", "block_tokens_of", "memory_of"]
