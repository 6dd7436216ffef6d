"""Caches of compressed entries under TensorRT-LLM (DeepSeek-V4): what grows with a request, and what each request has whole.

Entries of several tokens grow with it. Of windows, and of the tokens that are being compressed (one entry's, two where entries
overlap: their keys and scores, in float32), it has whole blocks, which are counted for all requests that may be active. Source:
`attention_backend/sparse/deepseek_v4/cache_manager.py` (`_estimate_swa_cache_size`, `_estimate_non_sliding_attn_size_per_token`;
pull request 14698 of 2026-05), read 2026-11. Keys and scores of overlapping entries are two heads wide, as in the model's
reference code and vLLM's `compressor.py` (inferred to be the same here).
"""

from __future__ import annotations

from engine_models.declaration import PoolRequest
from engine_models.model.architecture import stages
from engine_models.model.blocks import Architecture, AttentionBlock
from hardware_profiles.errors import InputError

BLOCKS = (128, 256)
"""Tokens of a block that its manager takes, the default first (datasheet: as above)."""
OVERLAPPING = 4
"""Tokens of an entry that overlaps the one before (datasheet: `is_overlap_compressor` there)."""
UNFINISHED_BYTES = 4
"""Of a key's or score's value that is not compressed yet: float32 (datasheet: as above)."""
NOTE = (
    "compressed entries (rules read, not recorded): windows and what is being compressed have whole blocks for each of "
    "max_batch_size requests; a prefix is taken to be found whole; no run was measured"
)


def block_of(asked: int | None) -> int:
    """Tokens of a block; InputError for those that its manager does not take."""
    if asked is None:
        return BLOCKS[0]
    if asked not in BLOCKS:
        raise InputError(
            f"TensorRT-LLM keeps compressed entries in blocks of {' or '.join(map(str, BLOCKS))} tokens, not of {asked}",
            where="deployment.engine_args.kv_cache_config.tokens_per_block",
            mend="leave it out, or give one of these",
        )
    return asked


def _entry_bytes(request: PoolRequest, block: AttentionBlock) -> float:
    return block.head_dim * request.formats.kv_cache.bits_per_weight / 8


def token_bytes(request: PoolRequest) -> int:
    """Bytes of a token's share in the entries of all layers of a stage, on every rank."""

    def of_stage(stage: Architecture) -> int:
        found = 0
        for block in stage.attention:
            if block.entry_tokens > 1:
                indexed = block.indexer.bytes_per_entry if block.indexer else 0
                found += block.layers * int((_entry_bytes(request, block) + indexed) // block.entry_tokens)
        return found

    return max(map(of_stage, stages(request.arch, request.pipeline_parallel)))


def request_bytes(request: PoolRequest, block_tokens: int) -> int:
    """Bytes that a request has whole on a rank: windows, and what is being compressed."""

    def whole(tokens: int) -> int:
        return -(-tokens // block_tokens) * block_tokens

    def of_stage(stage: Architecture) -> int:
        found = 0.0
        for block in stage.attention:
            if block.window_tokens:
                found += block.layers * whole(block.window_tokens) * _entry_bytes(request, block)
            elif block.entry_tokens > 1:
                heads = 2 if block.entry_tokens == OVERLAPPING else 1
                width = heads * (block.head_dim + (block.indexer.head_dim if block.indexer else 0))
                found += block.layers * whole(heads * block.entry_tokens) * 2 * width * UNFINISHED_BYTES
        return int(found)

    return max(map(of_stage, stages(request.arch, request.pipeline_parallel)))


__all__ = ["NOTE", "block_of", "request_bytes", "token_bytes"]
