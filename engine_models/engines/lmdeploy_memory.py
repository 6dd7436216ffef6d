"""What LMDeploy's two engines leave for keys and values: a share of what is free, counted by each in its own way."""

from __future__ import annotations

from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest, line_if_any
from engine_models.model.activations import runtime_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from hardware_profiles.errors import InfeasibleError

CACHE_SHARE, PREFILL_TOKENS, BLOCK_TOKENS = 0.8, 8192, 64
LEAST_BLOCKS, FEW_BLOCKS = 16, 2
LOGIT_BYTES = 2
"""Defaults and sizes (datasheet: `utils.py`, `messages.py`, `engine/executor/base.py` at 1263d5cd, 2026-08). The budget of a
prefill of the PyTorch engine is halved until `LEAST_BLOCKS` are left; with `FEW_BLOCKS` it does not start."""
LARGE_HEAD_DIM, LARGE_HEAD_BLOCK_TOKENS = 512, 32
"""From this key width on blocks are smaller, but with FlashMLA, which Hopper has (datasheet: `_adjust_block_size` there)."""
FLASH_MLA_CARDS = ("h100", "h200", "h20", "h800", "gh200")
KV_BITS, SCALE_BYTES = {"int8": 8, "int4": 4}, 4
"""Bits of a value of quantized keys and values; scale and zero point of a vector of them, 16 bits each (datasheet:
`docs/en/quantization/kv_quant.md`, `kernels/attention/block.h`)."""


def _bytes_before(request: PoolRequest) -> tuple[int, int]:
    """Bytes of the weights on a device, and of its context and collectives."""
    tp = request.tensor_parallel
    weights = weight_bytes_per_rank(request.arch, request.formats.weights, tp, 1, request.expert_parallel)
    return weights, runtime_bytes(tp)


def pytorch_memory(request: PoolRequest, rows: int, lora_bytes: int) -> tuple[MemoryBudget, int, int]:
    """KV bytes = a share of what weights, adapters, context and the largest step's logits leave; a prefill's budget; a block."""
    flags, arch = request.flags, request.arch
    tp, device = request.tensor_parallel, request.device_memory_bytes
    share = float(flags.get("cache_max_entry_count", CACHE_SHARE))
    page = int(flags.get("cache_block_seq_len", BLOCK_TOKENS))
    heads = arch.attention[0]
    if (heads.kind == "mla" or heads.head_dim >= LARGE_HEAD_DIM) and not (
        heads.kind == "mla" and request.device_name.startswith(FLASH_MLA_CARDS)
    ):
        page = min(page, LARGE_HEAD_BLOCK_TOKENS)
    weights, other = _bytes_before(request)
    drafter = request.speculation.weight_bytes() if request.speculation is not None else 0
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp)
    if request.speculation is not None:
        per_token += request.speculation.kv_bytes_per_token()
    block, free = int(per_token * page), device - weights - drafter - lora_bytes - other
    prefill = int(flags.get("max_prefill_token_num", PREFILL_TOKENS))
    while True:
        logits = (prefill + 2 * rows) * arch.vocab * LOGIT_BYTES
        kv = int((free - logits) * share)
        if kv // block <= FEW_BLOCKS:
            lack = int((FEW_BLOCKS + 1) * block / share) - (free - logits)
            raise InfeasibleError(
                f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + "
                f"{(drafter + lora_bytes + other + logits) / 1e9:.1f} GB besides (logits of {prefill:,} prompt tokens among "
                f"them), of {device / 1e9:.1f} GB; {lack / 1e9:.1f} GB too much on each of {tp} devices",
                where="deployment",
                mend=f"{request.more_memory}, or a smaller engine_args.max_prefill_token_num",
            )
        if kv // block >= LEAST_BLOCKS or prefill == 1:
            break
        prefill //= 2
    lines = (
        MemoryLine("weight", "weights", weights),
        *line_if_any("draft", "weights of the drafter", drafter),
        *line_if_any("lora", "LoRA adapters", lora_bytes),
        MemoryLine("other", "CUDA context, collectives", other),
        MemoryLine("activation", "logits of the largest step", logits),
        MemoryLine("left", "left for activations and CUDA graphs", free - logits - kv),
    )
    return MemoryBudget(device, device, lines, kv, per_token, block, kv // block), prefill, page


def turbomind_memory(request: PoolRequest, page: int) -> MemoryBudget:
    """KV bytes = a share of what weights and context leave, before buffers are allocated; these come out of the rest."""
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    share = float(request.flags.get("cache_max_entry_count", CACHE_SHARE))
    weights, other = _bytes_before(request)
    kv = request.formats.kv_cache
    per_token_bytes: float = kv_bytes_per_token(arch, kv, tp)
    if kv.name in KV_BITS:
        vector = arch.attention[0].head_dim / 8
        per_token_bytes *= (vector * KV_BITS[kv.name] + SCALE_BYTES) / (vector * kv.bits_per_weight)
    free, block = device - weights - other, int(per_token_bytes * page)
    kv_bytes = max(0, int(free * share))
    if kv_bytes < block:
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {other / 1e9:.1f} GB besides, of "
            f"{device / 1e9:.1f} GB, leave no room for a KV cache on each of {tp} devices",
            where="deployment",
            mend=request.more_memory,
        )
    lines = (
        MemoryLine("weight", "weights", weights),
        MemoryLine("other", "CUDA context, collectives", other),
        MemoryLine("left", "left for buffers and activations", free - kv_bytes),
    )
    return MemoryBudget(device, device, lines, kv_bytes, per_token_bytes, block, kv_bytes // block)


__all__ = ["BLOCK_TOKENS", "KV_BITS", "PREFILL_TOKENS", "pytorch_memory", "turbomind_memory"]
