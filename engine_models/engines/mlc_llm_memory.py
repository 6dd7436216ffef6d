"""What MLC-LLM serves, and the memory of a pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.declaration import MemoryLine, PoolRequest, line_if_any
from engine_models.model.activations import activation_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from engine_models.model.blocks import Architecture
from engine_models.refusals import no_expert_parallelism, no_layers, only_16_bit_kv
from hardware_profiles.errors import InfeasibleError

LOCAL_ROWS, LOCAL_TOKENS, METAL_TOKENS, CHUNK = 4, 8192, 32_768, 8192
"""Rows and tokens of the mode `local`, tokens of the cache under Metal, tokens of a step with prompts as models are compiled
(datasheet: `EstimateMemoryUsageOnMode` in `cpp/serve/config.cc`, `model/llama/llama_model.py`, 79d603f0)."""


def refuse(request: PoolRequest) -> None:
    """Raise InputError for what it does not serve."""
    unlike = f"models with recurrent layers or with latent or sparse attention such as {request.arch.name}"
    no_layers(request, ("mla", "linear", "sparse"), f"{unlike} are not simulated for MLC-LLM")
    no_expert_parallelism(request, "MLC-LLM has no expert parallelism")
    only_16_bit_kv(request, "MLC-LLM")


def workspace_bytes(arch: Architecture, tensor_parallel: int, rows: int, chunk: int) -> int:
    """Workspaces of attention, model and logits of one model on one rank."""
    heads = arch.attention[0]
    queries, kv_heads = -(-heads.heads // tensor_parallel), -(-heads.kv_heads // tensor_parallel)
    hidden = heads.head_dim * queries
    attention = (rows + 1) * 88 + chunk * (queries + 1) * 8 + chunk * heads.head_dim * (queries + kv_heads) * 4 + 48 * 2**20
    model = chunk * 4 + rows * 4 + (chunk * 2 + rows) * hidden * 2
    return attention + model + int(rows * 20 + rows * arch.vocab * 16.125)


def memory_of(
    request: PoolRequest, flags: Mapping[str, Any], rows: int, chunk: int
) -> tuple[tuple[MemoryLine, ...], float, int]:
    """Uses before the KV cache, bytes of a token in it, and the most tokens it may hold, as `EstimateMemoryUsageOnMode`
    counts; a drafter is a model of its own."""
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    drafts = request.speculation
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1)
    drafter = drafts.weight_bytes() if drafts is not None else 0
    workspaces = workspace_bytes(arch, tp, rows, chunk)
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp) + 1.25
    if drafts is not None and drafts.draft is not None:
        workspaces += workspace_bytes(drafts.draft, drafts.tensor_parallel, rows, chunk)
        per_token += drafts.kv_bytes_per_token() + 1.25
    lines = (
        MemoryLine("weight", "weights", weights),
        *line_if_any("draft", "weights of the drafter", drafter),
        MemoryLine("activation", "buffers of compiled functions (2 x the largest)", 2 * activation_bytes(arch, chunk, 0, tp)),
        MemoryLine("other", "workspaces of attention, model and logits", workspaces),
    )
    usable, spent = int(device * float(flags["gpu_memory_utilization"])), sum(line.bytes for line in lines)
    most = int((usable - spent) / per_token)
    if most <= 0:
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {(spent - weights) / 1e9:.1f} GB of buffers, "
            f"of {usable / 1e9:.1f} GB; {(spent - usable) / 1e9:.1f} GB too much on each of {tp} devices",
            where="deployment",
            mend=f"{request.more_memory}, or a larger engine_args.gpu_memory_utilization",
        )
    return lines, per_token, min(most, METAL_TOKENS) if request.device_kind == "apple" else most


__all__ = ["CHUNK", "LOCAL_ROWS", "LOCAL_TOKENS", "memory_of", "refuse", "workspace_bytes"]
