"""Attention to caches whose tokens lie on several tensor ranks in turn, a part of every sequence on each.

Ranks that would hold the same keys and values hold a part each instead (decode context parallelism). The heads of the ranks that
share a sequence are gathered, each attends with all of them to its part, and what they find is weighted by its log-sum-exp,
summed, and scattered back to the ranks of the heads. A chunk of a prompt gathers the latents cached before it; keys and values of
full attention stay where they are, and its queries are gathered as those of decoding rows (vLLM 0.33.0: `mla_attention.py`,
`_forward_with_dcp` of `flash_attn.py`, `v1/attention/ops/dcp.py`; bytes by construction).

Compared with one pair of runs, to which nothing is fitted: see docs/engines/vllm.md.
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray
from engine_models.cost.terms import Shard
from engine_models.model.blocks import AttentionBlock
from hardware_profiles.kernel_physics import MLA_KV_RANK, MLA_ROPE

VALUE_BYTES, LSE_BYTES = 2.0, 4.0
"""Of queries and what is attended to, and of the sum's logarithm of a head. kind: datasheet."""


def exchange_s(shard: Shard, block: AttentionBlock, tokens: FloatArray) -> FloatArray:
    """Seconds of one layer to gather the queries of `tokens` tokens and to sum what the ranks found [s]."""
    ops, ranks = shard.ops, shard.parallel.context
    heads = max(1, block.heads // shard.parallel.tensor) * ranks * tokens
    latent = block.kind == "mla"
    asked = MLA_KV_RANK + MLA_ROPE if latent else block.head_dim
    found = MLA_KV_RANK if latent else block.v_head_dim
    summed = VALUE_BYTES * found * heads
    gathers_s = ops.all_gather_s(ranks, VALUE_BYTES * asked * heads) + ops.all_gather_s(ranks, LSE_BYTES * ranks * heads)
    waits_s = 3.0 * shard.terms.host.reduce_wait_s
    total_s: FloatArray = gathers_s + ops.elementwise_s(2.0 * summed) + ops.reduce_scatter_s(ranks, summed) + waits_s
    return total_s


def chunk_s(shard: Shard, block: AttentionBlock, new_tokens: FloatArray, prior_tokens: FloatArray) -> FloatArray:
    """Seconds of one layer that a chunk of new tokens behind cached ones takes besides [s]."""
    if block.kind != "mla":
        return exchange_s(shard, block, new_tokens)
    ops, tensor = shard.ops, shard.parallel.tensor
    latents = shard.formats.kv_cache.bits_per_weight / 8 * sum(width.on(tensor) for width in block.cache) * prior_tokens
    gathered_s = ops.all_gather_s(shard.parallel.context, latents) + ops.elementwise_s(2.0 * latents)
    return np.where(prior_tokens > 0, gathered_s + shard.terms.host.reduce_wait_s, 0.0)


__all__ = ["LSE_BYTES", "VALUE_BYTES", "chunk_s", "exchange_s"]
