"""How vLLM groups the caches of DeepSeek-V4, of which its start-up line is told.

Beside the compressed entries of all layers, which are one group, a request has blocks of each layer's window, and of the tokens
that are being compressed; they all draw from one pool of blocks, each as large as the largest group's. While a step is computed
the windows and the unfinished entries hold its tokens too, so that a long request takes nearly twice the blocks of its entries
(datasheet: `models/deepseek_v4/attention.py`, `compressor.py`, `sparse_swa.py`, `kv_cache_planning.py` of 0.33.0; 0.25.0 on eight
B200 tells 20.43 and, by eight ranks, 19.61 requests of 1,048,576 tokens, 2 % fewer than this does with the memory predicted;
vllm-project/vllm#51454).
"""

from __future__ import annotations

from engine_models.engines.vllm_grouping import Grouping
from engine_models.model.blocks import Architecture, AttentionBlock
from engine_models.model.formats import Format

ENTRY_TOKENS, WINDOW_TOKENS = 256, 64
"""Tokens of a block of entries, and of a window."""
UNFINISHED_TOKENS = {4: 4, 128: 8}
"""Tokens of an entry -> tokens of a block of those that are being compressed into it."""
ALIGNED_BYTES, ALIGNED_WIDE_BYTES = 576, 512
"""What the pages of a layer are rounded up to in FP8, and in 16 bits."""


def compressed_grouping(arch: Architecture, kv_format: Format) -> Grouping:
    """The groups of a model with compressed entries on every rank."""
    narrow = kv_format.bits_per_weight == 8
    aligned = ALIGNED_BYTES if narrow else ALIGNED_WIDE_BYTES

    def page(tokens: int, token_bytes: float) -> int:
        return -(-int(tokens * token_bytes) // aligned) * aligned

    def entry_bytes(block: AttentionBlock) -> float:
        return block.head_dim * kv_format.bits_per_weight / 8 + (block.wide_bytes if narrow else 0)

    windows = [block for block in arch.attention if block.window_tokens]
    entries = [block for block in arch.attention if block.entry_tokens > 1]
    whole, kinds = 0, []
    for block in entries:
        held, ahead = ENTRY_TOKENS // block.entry_tokens, UNFINISHED_TOKENS[block.entry_tokens]
        overlap = 2 if block.indexer else 1
        pages, unfinished = page(held, entry_bytes(block)), page(ahead, 8 * overlap * block.head_dim)
        if block.indexer:
            pages += page(held, block.indexer.bytes_per_entry)
            unfinished += page(ahead, 8 * overlap * block.indexer.head_dim)
        whole += block.layers * pages
        kinds.append((overlap * block.entry_tokens, block.layers, ahead, block.layers * unfinished))
    layers = sum(block.layers for block in windows)
    together = _layers_together([layers, *(of for _, of, *_ in kinds)], max(of for _, of, *_ in kinds))
    number = -(-layers // together)
    largest = max(whole, *(size for *_, size in kinds), -(-layers // number) * page(WINDOW_TOKENS, entry_bytes(windows[0])))
    return Grouping(
        (
            (None, 1, ENTRY_TOKENS),
            (windows[0].window_tokens, number, WINDOW_TOKENS),
            *((window, 1, tokens) for window, _, tokens, _ in kinds),
        ),
        largest,
    )


def _layers_together(counts: list[int], least: int) -> int:
    """Layers of a group, so many that those of all groups rounded up are the fewest; of equals the most."""
    return min(range(least, max(counts) + 1), key=lambda size: (sum(-count % size for count in counts), -size))


__all__ = ["compressed_grouping"]
