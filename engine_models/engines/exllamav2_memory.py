"""What ExLlamaV2 serves, and the memory of a pool."""

from __future__ import annotations

from engine_models.cost.drafting import Speculation
from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest, line_if_any
from engine_models.memory.chained_pages import PAGE_TOKENS
from engine_models.model.activations import activation_bytes, runtime_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from engine_models.refusals import ELSEWHERE, no_expert_parallelism, only_on_nvidia
from hardware_profiles.errors import InfeasibleError, InputError

CACHE_TOKENS, CHUNK_TOKENS, ROW_TOKENS, MAX_SKIPS = 4096, 2048, 8, 4
RESERVED_BYTES = 96 << 20
"""Defaults (datasheet: `backends/exllamav2/model.py` of TabbyAPI, `generator/dynamic.py` of ExLlamaV2): tokens of the cache where
neither it nor the context is given, of a chunk, the tokens of a row for which a call has room (rows = chunk / `ROW_TOKENS`), how
often a request is passed over, and the memory that the loader leaves free."""

UNPAGED = ("t4", "v100", "rtx-20", "titan-rtx")
"""NVIDIA's cards before Ampere, which FlashAttention's paged kernels do not know (datasheet: README of ExLlamaV2,
`common/hardware.py` of TabbyAPI)."""


def rounded(tokens: int) -> int:
    """Whole pages."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


def is_packed(request: PoolRequest) -> bool:
    """Whether weights are packed."""
    return request.formats.kv_cache.bits_per_weight < 16


def refuse(request: PoolRequest) -> None:
    """Raise InputError for what it does not serve."""
    arch, formats = request.arch, request.formats
    only_on_nvidia(request, "ExLlamaV2 is simulated on NVIDIA GPUs")
    if formats.weights.name.startswith("exl3"):
        raise InputError(
            f"ExLlamaV2 does not load weights in {formats.weights.name}: EXL3 is ExLlamaV3's",
            where="deployment.weights",
            mend="use exl2_4.0 (2 to 8 bits)",
        )
    no_expert_parallelism(request, "ExLlamaV2 has no expert parallelism", mend="leave it out")
    if any(block.kind in ("mla", "linear") or block.sinks or block.indexer for block in arch.attention):
        raise InputError(
            f"ExLlamaV2 has no model like {arch.name} (latent, recurrent or sparse attention, or sinks)",
            where="model",
            mend=ELSEWHERE,
        )


def memory_of(
    request: PoolRequest, cache_tokens: int, chunk: int, page: int, drafts: Speculation | None = None
) -> MemoryBudget:
    """The cache is as large as asked for; what it leaves beside weights, a chunk and the reserve must not be negative.

    A drafter has a cache of as many tokens.
    """
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp)
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp)
    widened = 0
    if is_packed(request):  # the 16-bit keys and values of one layer
        widened = max(2 * 2 * max(1, block.kv_heads // tp) * block.head_dim for block in arch.attention)
    largest = activation_bytes(arch, chunk, ROW_TOKENS, tp)
    other = runtime_bytes(tp)
    reserve = RESERVED_BYTES
    if request.flags.get("autosplit_reserve"):
        reserve = int(request.flags["autosplit_reserve"][0]) << 20
    drafter = drafts.weight_bytes() if drafts is not None else 0
    per_token += drafts.kv_bytes_per_token() if drafts is not None else 0
    free = device - weights - drafter - largest - other - reserve
    kv = int(per_token * cache_tokens)
    left = free - kv - widened * cache_tokens
    if left < 0:
        fits = int(free / (per_token + widened)) // PAGE_TOKENS * PAGE_TOKENS
        mend = f"engine_args.cache_size {fits}" if fits > 0 else "a smaller engine_args.chunk_size"
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + "
            f"{(largest + other + reserve + drafter) / 1e9:.1f} GB besides + a cache of {cache_tokens:,} tokens, "
            f"{(kv + widened * cache_tokens) / 1e9:.1f} GB, of {device / 1e9:.1f} GB",
            where="deployment",
            mend=f"{mend}, cache_mode: Q4, fewer bits a weight (weights: exl2_3.0), or larger devices",
        )
    lines = (
        MemoryLine("weight", "weights", weights),
        *line_if_any("draft", "weights of the drafter", drafter),
        MemoryLine("activation", "activations of a chunk", largest),
        MemoryLine("other", "CUDA context, collectives, the reserve", other + reserve),
        MemoryLine("widened", "16-bit copy of one layer of the cache", widened * cache_tokens),
        MemoryLine("left", "left", left),
    )
    return MemoryBudget(device, device, lines, kv, per_token, int(per_token * page), cache_tokens // page)


__all__ = ["CACHE_TOKENS", "CHUNK_TOKENS", "MAX_SKIPS", "ROW_TOKENS", "UNPAGED", "is_packed", "memory_of", "refuse", "rounded"]
