"""A narrow KV cache that is widened to 16 bits before attention reads it, in a pass of its own over all tokens of a row.

The pass reads a row's keys and values in their format and writes them in 16 bits, which attention then reads; what is new is
narrowed in the same way. So such a cache saves memory and costs time. Some engines make the same pass for prompts alone, whatever
the format, so as to have the blocks of a row in one piece.
"""

from __future__ import annotations

from engine_models.cost.tables import FloatArray
from engine_models.model.blocks import AttentionBlock
from engine_models.model.formats import Format
from hardware_profiles.ops import Ops

WIDE_FORMAT = "bf16"


def pass_s(ops: Ops, block: AttentionBlock, kv: Format, tensor: int, tokens: FloatArray) -> FloatArray:
    """Seconds of the pass over `tokens` tokens of one layer."""
    values = 2 * max(1, block.kv_heads // tensor) * block.head_dim
    whole_s: FloatArray = ops.elementwise_s(tokens * values * (kv.bits_per_weight / 8 + 2))
    return whole_s


__all__ = ["WIDE_FORMAT", "pass_s"]
