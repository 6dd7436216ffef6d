"""How the blocks of a pool stand in a store that pools may share: what they are of, and what of that their names tell."""

from __future__ import annotations

from collections.abc import Iterable

from engine_models.declaration import PoolRequest
from engine_models.parts.tiers import StoreNames

MODEL, FORMAT, TENSOR, STAGES, RANKS, BLOCK, UNIT = (
    "model",
    "KV format",
    "tensor parallelism",
    "pipeline parallelism",
    "ranks",
    "tokens of a block",
    "tokens of a unit",
)
"""Words for what blocks are of; `RANKS` are those of tensor and pipeline parallelism together."""


def store_names(request: PoolRequest, block_tokens: int, unit_tokens: int, told: Iterable[str]) -> StoreNames:
    """Of a pool with blocks of `block_tokens` that keeps `unit_tokens` tokens as one, under names that tell the words `told`."""
    tensor, stages = request.tensor_parallel, request.pipeline_parallel
    of = {MODEL: request.arch.name, FORMAT: request.formats.kv_cache.name, TENSOR: tensor, STAGES: stages}
    sizes = {RANKS: tensor * stages, BLOCK: block_tokens, UNIT: unit_tokens}
    return StoreNames((*of.items(), *sizes.items()), frozenset(told))


__all__ = ["BLOCK", "FORMAT", "MODEL", "RANKS", "STAGES", "TENSOR", "UNIT", "store_names"]
