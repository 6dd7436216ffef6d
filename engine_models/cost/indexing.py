"""Indexers of sparse attention: every query is compared with the small keys of all earlier entries, and the best are attended to.

    decode:  t = SCORE_S + rows * ROW_S + keys read / (SCORE_SHARE * B)
    chunk:   t = SCORE_S + tokens * TOKEN_S + 2 * pairs * heads * width / (SCORE_EFFICIENCY * fp8 rate)

and the tokens of a chunk attend to latents in the absorbed form, with heads padded to `PADDED_HEADS`:

    attention of a chunk:  t = 4 * attended * max(heads, PADDED_HEADS) * width / (efficiency * bf16 rate)

Projections of the indexer are linear layers of their own. So it is where nobody timed such layers; measured ones
(:func:`measured_layer`) take what their table leaves beside the projections.

Kind: fitted, 2026-11, source: kernel tables of aisimulate 0.13.0
(`sparse_attention`, GLM-5.2 by vLLM on H100, H200, B200, B300, GB200, GB300): whole layers with an indexer less the same without.
Fits of single devices miss 16 % of what is so attributed (decode) and 7 to 13 % (chunks); one efficiency for all of them more
(0.15 to 0.30 were found). Other models: assumed alike.
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray
from engine_models.cost.terms import Shard
from engine_models.model.blocks import AttentionBlock, Indexer
from hardware_profiles.ops import Ops, SparseLayer

SCORE_S = 35e-6
"""Quantising the queries, scores, choice [s]: 43 us less the two projections."""
ROW_S = 0.06e-6
TOKEN_S = 0.042e-6
"""Choice of the best for a decoding row, for a token of a prompt [s]."""
SCORE_SHARE = 1.2
"""Share of the memory's rate at which keys are read; above 1, since the tables' keys stay in the cache in part."""
SCORE_EFFICIENCY = 0.2
PADDED_HEADS = 64
CHUNK_EFFICIENCY, CHUNK_EFFICIENCY_FP4 = 0.6, 0.35
"""Share of the bf16 rate that sparse attention of chunks reaches on Hopper, and on devices with FP4 (Blackwell)."""


LATENT_MODELS = {128: "DeepSeek-V3.2", 256: "GLM-5"}
"""Width of a value head -> model whose layers were timed, of latent attention with an indexer."""
PLAIN_MODEL = "MiniMax-M3"
"""The same of plain attention with an indexer."""
COMPRESSED = {4: "csa", 128: "hca"}
COMPRESSED_MODELS = {4096: "DeepSeek-V4-Flash", 7168: "DeepSeek-V4-Pro"}
"""Tokens of a compressed entry -> mechanism; hidden width -> model."""
BESIDE_ATTENTION = "hyper_connections"
"""A product of such a layer that its table leaves out."""


def measured_layer(shard: Shard, block: AttentionBlock) -> SparseLayer | None:
    """A layer as kernel tables know it as a whole, None of those that were not timed."""
    if not block.sparse or block.window_tokens or shard.terms.query_tokens > 1:
        return None
    tensor, indexer, linears = shard.parallel.tensor, block.indexer, block.linears
    if block.entry_tokens > 1:
        model, mechanism = COMPRESSED_MODELS.get(shard.arch.hidden), COMPRESSED.get(block.entry_tokens)
        window = window_of(shard, block)
        linears = (*linears, *(window.linears if window else ()))
    elif block.kind == "mla":
        model = LATENT_MODELS.get(block.v_head_dim)
        mechanism = "dsa" if indexer is not None and indexer.bytes_per_entry else "dsa_reused"
    else:
        model, mechanism = PLAIN_MODEL, "msa"
    if not model or not mechanism:
        return None
    products = tuple(linear.shape(tensor) for linear in linears if linear.name != BESIDE_ATTENTION)
    formats = (shard.weights_format("attention"), shard.formats.kv_cache.name)
    return SparseLayer(f"{mechanism}-{model}", *formats, max(1, block.heads // tensor), products)


def least_attended(shard: Shard, block: AttentionBlock) -> int:
    """Entries that a query of latent attention is computed with at least, whether there are so many before it or not."""
    whole = shard.terms.fills_selection and block.kind == "mla" and block.entry_tokens == 1
    return block.indexer.topk_tokens if whole and block.indexer is not None else 0


def measured_chunk_s(
    shard: Shard, block: AttentionBlock, layer: SparseLayer, new_tokens: FloatArray, prior_tokens: FloatArray
) -> FloatArray | None:
    """Seconds of a measured layer for a chunk of `new_tokens` with `prior_tokens` cached."""
    ops, least = shard.ops, least_attended(shard, block)
    if not least or block.indexer is None:
        return ops.sparse_context_s(layer, new_tokens, prior_tokens)
    filled = np.maximum(prior_tokens, least)
    whole_s = ops.sparse_context_s(layer, new_tokens, filled)
    if whole_s is None or not block.indexer.bytes_per_entry:
        return whole_s
    pairs = (new_tokens * (past + new_tokens / 2) for past in (filled, prior_tokens))
    scored_s, there_s = (chunk_s(ops, block.indexer, new_tokens, each) for each in pairs)
    return whole_s - (scored_s - there_s)


def window_of(shard: Shard, block: AttentionBlock) -> AttentionBlock | None:
    """The mixer over the window that stands beside the one over compressed entries in a layer; None of other layers."""
    if block.entry_tokens == 1:
        return None
    return next((b for b in shard.stage.attention if b.kind == block.kind and b.window_tokens), None)


def beside_window_s(whole_s: FloatArray, window_s: FloatArray) -> FloatArray:
    """What a measured layer takes beside its window, which is priced apart; a tenth of it at least (assumed)."""
    return np.maximum(whole_s - window_s, 0.1 * whole_s)


def decode_s(ops: Ops, indexer: Indexer, rows: FloatArray, context: FloatArray) -> FloatArray:
    """Seconds of one layer for `rows` decoding rows that have `context` earlier entries each."""
    keys = rows * context * indexer.bytes_per_entry
    total_s: FloatArray = SCORE_S + rows * ROW_S + keys / (SCORE_SHARE * ops.peaks.hbm_bytes_per_s)
    return total_s


def chunk_s(ops: Ops, indexer: Indexer, new_tokens: FloatArray, compared_tokens: FloatArray) -> FloatArray:
    """Seconds of one layer for a chunk of `new_tokens`, whose queries meet `compared_tokens` earlier entries altogether."""
    flops = 2.0 * compared_tokens * indexer.heads * indexer.head_dim
    total_s: FloatArray = SCORE_S + new_tokens * TOKEN_S + flops / (SCORE_EFFICIENCY * ops.peaks.rate("fp8"))
    return total_s


def latent_chunk_s(ops: Ops, heads: int, width: int, attended_tokens: FloatArray) -> FloatArray:
    """Seconds of one layer whose queries attend to `attended_tokens` latents of `width` values altogether."""
    share = CHUNK_EFFICIENCY_FP4 if "fp4" in ops.peaks.flops_per_s else CHUNK_EFFICIENCY
    total_s: FloatArray = 4.0 * attended_tokens * max(heads, PADDED_HEADS) * width / (share * ops.peaks.rate("bfloat16"))
    return total_s
