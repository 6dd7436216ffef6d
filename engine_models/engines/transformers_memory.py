"""Device memory of transformers' continuous batching: sectors from what the weights and the largest step's tensors leave.

It follows `PagedAttentionMemoryHandler` of 5.24.0 (`continuous_batching/cache.py`).
"""

from __future__ import annotations

from math import ceil, lcm

from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest
from engine_models.engines.generate import weights_of
from engine_models.memory.sector_kv import LayerGroup
from engine_models.model.activations import CONTEXT_BYTES
from engine_models.model.architecture import kv_groups
from hardware_profiles.errors import InfeasibleError

MEMORY_SHARE, SHARED_MEMORY_SHARE = 0.9, 0.6
TRASH_SECTORS = 2
INDEX_BYTES = 4
"""Shares of the free memory, the smaller where it is the host's, and sizes (datasheet: `initialization.py`, `cache.py` of
5.24.0)."""


def group_bytes(request: PoolRequest) -> dict[int | None, int]:
    """Bytes of a token by what layers see: window, None for all."""
    found: dict[int | None, int] = {}
    for group in kv_groups(request.arch, request.formats.kv_cache, request.tensor_parallel):
        window = group.window_tokens or None
        found[window] = found.get(window, 0) + group.bytes_per_token_per_rank
    return found


def groups_of(request: PoolRequest) -> tuple[LayerGroup, ...]:
    """Groups of layers by what they see: a sector is the smallest size that the blocks of all divide."""
    sizes = group_bytes(request)
    whole = lcm(*sizes.values())
    return tuple(LayerGroup(whole // size, window) for window, size in sizes.items())


def longest_request(sectors: int, page: int, groups: tuple[LayerGroup, ...], context: int) -> int:
    """Longest request that the cache holds alone, context at most."""

    def fits(tokens: int) -> bool:
        blocks = [-(-min(tokens, group.window_tokens or tokens) // page) for group in groups]
        return (
            sum(-(-n // group.blocks_per_sector) for n, group in zip(blocks, groups, strict=True)) <= sectors
        )

    low, high = 0, context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    if low < 2:
        raise InfeasibleError(
            f"the KV cache holds {sectors} sectors, no request fits",
            where="deployment",
            mend="a larger num_blocks, or more memory",
        )
    return low


def memory_of(
    request: PoolRequest,
    groups: tuple[LayerGroup, ...],
    *,
    tokens: int,
    rows: int,
    flash: bool,
    ahead: bool,
    blocks: int,
    page: int,
) -> tuple[MemoryBudget, int]:
    """A share of what the weights leave, less the tensors of the largest step; what each sector costs beside its own bytes."""
    arch, flags, tp = request.arch, request.flags, request.tensor_parallel
    weights, device = weights_of(request), request.device_memory_bytes
    share = flags.get("max_memory_percent")
    share = float(share) if share else MEMORY_SHARE if request.device_kind in ("gpu", "apu") else SHARED_MEMORY_SHARE
    heads, value = arch.attention[0], 2
    kv_heads, queries = max(1, heads.kv_heads // tp), max(1, heads.heads // tp)
    at_peak = 2 * kv_heads if flash else 2 * queries + kv_heads
    pairs, kinds = 2 if ahead else 1, len(groups)
    sizes = group_bytes(request)
    whole, sector_bytes = sum(sizes.values()), lcm(*sizes.values()) * page
    readable = max(group.blocks_per_sector for group in groups) * page
    batch_token = value * (arch.hidden + (queries + 2 * kv_heads + at_peak) * heads.head_dim)
    batch_token += pairs * (8 * INDEX_BYTES + kinds * (blocks * INDEX_BYTES + 16))
    step = tokens * batch_token + rows * (arch.hidden * value + 4 * arch.vocab)
    beside = readable * (at_peak * heads.head_dim * value + pairs * kinds * 8)
    masks = 0 if flash else 2 if any(group.window_tokens for group in groups) else 1
    mask_token = pairs * masks * value * tokens
    usable = int((device - weights - int(CONTEXT_BYTES)) * share)
    asked = flags.get("num_blocks")
    if asked is not None:
        sectors = max(1, ceil(int(asked) * page * whole / sector_bytes))
    else:
        left = usable - step - TRASH_SECTORS * sector_bytes
        sectors = left // (sector_bytes + beside)
        sectors -= ceil(
            mask_token * (sectors * readable + tokens) / (sector_bytes + beside + mask_token * readable)
        )
    spent = (
        step + sectors * beside + mask_token * (sectors * readable + tokens) + TRASH_SECTORS * sector_bytes
    )
    kv = sectors * sector_bytes
    if sectors < 1 or spent + kv > usable:
        raise InfeasibleError(
            f"{arch.name} does not fit: beside {weights / 1e9:.1f} GB of weights the tensors of steps of {tokens:,} tokens need "
            f"{spent / 1e9:.1f} GB, of {usable / 1e9:.1f} GB that may be used",
            where="deployment",
            mend=f"{request.more_memory}, or a smaller engine_args.max_batch_tokens",
        )
    lines = (
        MemoryLine("weight", "weights", weights),
        MemoryLine("other", "device context", int(CONTEXT_BYTES)),
        MemoryLine("activation", "tensors of the largest step", spent),
        MemoryLine("left", "left free", device - weights - int(CONTEXT_BYTES) - spent - kv),
    )
    return MemoryBudget(device, device, lines, kv, whole, sector_bytes, sectors), sectors
