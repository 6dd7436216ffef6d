"""The memory of a pool of TGI, and what it takes: adapters, rules, tokens by flags and by what cache and warm-up hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.declaration import Limits, MemoryBudget, MemoryLine, PoolRequest, line_if_any
from engine_models.engines.tgi_launcher import Serving, Version
from engine_models.model.activations import activation_bytes, runtime_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from engine_models.schedulers.whole_lifetime import LifetimeRules
from hardware_profiles.errors import InfeasibleError, InputError

MAX_CONCURRENT_REQUESTS = 128
WAITING_TOKENS = 20
WIGGLE_ROOM = 0.90
"""Launcher and server defaults (datasheet: `launcher/src/main.rs`, `models/globals.py` at db931fcf, 2026-01)."""


def inflight_of(flags: Mapping[str, Any]) -> int:
    """Requests that are taken at once."""
    return int(flags.get("max_concurrent_requests", MAX_CONCURRENT_REQUESTS))


def limits_of(
    request: PoolRequest, version: Version, serving: Serving, memory: MemoryBudget, prefill: int
) -> Limits:
    """What a rank takes: a request's tokens by flags and by what the cache and the warm-up hold."""
    flags, page, capacity = request.flags, serving.block_tokens, memory.blocks * serving.block_tokens
    row_tokens = request.speculation.row_tokens if request.speculation is not None else 1
    total = int(flags.get("max_total_tokens") or version.max_total_tokens or 0)
    if not total:  # without chunks, what its warm-up held
        total = min(capacity, request.arch.max_context_tokens if serving.chunked_prefill else prefill)
    if total > capacity:
        raise InfeasibleError(
            f"the KV cache holds {capacity:,} tokens, one request of max_total_tokens {total:,} does not fit "
            f"({memory.kv_bytes / 1e9:.1f} GB left for the cache on each of {request.tensor_parallel} devices)",
            where="deployment",
            mend=f"set engine_args.max_total_tokens to at most {capacity}, or use more or larger devices",
        )
    longest = int(flags.get("max_input_tokens") or version.max_input_tokens or total - 1)
    if longest >= total:
        raise InputError(
            f"max_input_tokens {longest} is not below max_total_tokens {total}",
            where="deployment.engine_args.max_input_tokens",
            mend=f"give at most {total - 1}",
        )
    taken = longest if serving.chunked_prefill else min(longest, -(-prefill // page) * page)  # the queue keeps longer ones
    usable = memory.blocks - 1  # page 0 is the health check's
    inflight, most_rows = inflight_of(flags), flags.get("max_batch_size")
    rows = inflight if most_rows is None or serving.chunked_prefill else min(inflight, int(most_rows))
    return Limits(
        rows=rows,
        step_tokens=max(prefill + page, rows * row_tokens),
        context_tokens=total,
        kv_tokens=usable * page,
        kv_blocks=usable,
        block_tokens=page,
        prompt_tokens=taken,
        row_tokens=min(total, usable * page + 1 - (row_tokens - 1)),
        spare_tokens=row_tokens - 1,
        asked_tokens=version.reserved_answer_tokens,
        prompt_by="max_batch_prefill_tokens" if taken < longest else "max_input_tokens" if longest < total - 1 else "",
    )


def rules_of(
    flags: Mapping[str, Any], version: Version, serving: Serving, memory: MemoryBudget, prefill: int, row_tokens: int
) -> LifetimeRules:
    """The rules of a rank."""
    most_rows = flags.get("max_batch_size")
    return LifetimeRules(
        max_batch_prefill_tokens=prefill,
        max_batch_total_tokens=memory.blocks * serving.block_tokens,
        max_total_tokens=row_tokens,
        waiting_served_ratio=float(flags.get("waiting_served_ratio", version.waiting_served_ratio)),
        max_waiting_tokens=int(flags.get("max_waiting_tokens", WAITING_TOKENS)),
        max_batch_size=None if most_rows is None else int(most_rows),
        chunked_prefill=serving.chunked_prefill,
        reserved_answer_tokens=version.reserved_answer_tokens,
    )


def memory_of(request: PoolRequest, prefill_tokens: int, page: int, lora_bytes: int = 0) -> MemoryBudget:
    """KV bytes = what is free after the warm-up's prefill - the share of the device that is never used."""
    flags, arch = request.flags, request.arch
    tp, device = request.tensor_parallel, request.device_memory_bytes
    share = float(flags.get("cuda_memory_fraction", 1.0)) * float(flags.get("tgi_wiggle_room", WIGGLE_ROOM))
    usable = int(device * share)
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1, request.expert_parallel)
    activations = activation_bytes(arch, prefill_tokens, 1, tp)
    other = runtime_bytes(tp)
    draft_weights = request.speculation.weight_bytes() if request.speculation is not None else 0
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp)
    block = int(per_token * page)
    kv = usable - weights - draft_weights - lora_bytes - activations - other
    if kv < 2 * block:
        lack = weights + draft_weights + lora_bytes + activations + other + 2 * block - usable
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {(activations + other) / 1e9:.1f} GB "
            f"besides (a prefill of {prefill_tokens:,} tokens), of {usable / 1e9:.1f} GB usable ({share:.0%} of "
            f"{device / 1e9:.1f} GB); {lack / 1e9:.1f} GB too much on each of {tp} devices",
            where="deployment",
            mend=f"{request.more_memory}, or a smaller engine_args.max_batch_prefill_tokens",
        )
    return MemoryBudget(
        device_bytes=device,
        usable_bytes=usable,
        lines=(
            MemoryLine("weight", "weights", weights),
            *line_if_any("draft", "weights of the drafter", draft_weights),
            *line_if_any("lora", "LoRA adapters", lora_bytes),
            MemoryLine("activation", "activations (warm-up of the largest prefill)", activations),
            MemoryLine("other", "CUDA context, collectives", other),
        ),
        kv_bytes=kv,
        kv_bytes_per_token=per_token,
        block_bytes=block,
        blocks=kv // block,
    )


__all__ = ["inflight_of", "limits_of", "memory_of", "rules_of"]
