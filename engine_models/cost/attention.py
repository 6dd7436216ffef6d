"""Attention of a step, tabulated: of decode rows by their number and the tokens they attend to, of prompt chunks one by one.

Decode rows are taken together, by the sum of their KV tokens: rows of unequal length cost about their mean. Layers of a sliding
window read no more than the window of a row, so they are priced by what the rows attend to there (`Span`), the sum of
min(KV, window), which the mean length does not tell:

    t = t_w(rows, mean KV, at least the window) * s(rows, span / rows) / s(rows, window)

t_w and s are one table of the window's kernel over equal rows, beyond the window and up to it. If all rows are beyond it the
second factor is 1, if none is the product is s itself.

Layers that choose what they attend to read so many entries at most, and pay for the choice
(:mod:`engine_models.cost.indexing`); compressed layers have one entry for several tokens. Recurrent layers move their
state, whatever the context (:mod:`engine_models.cost.recurrence`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from engine_models.cost import context_parallel, flash_attention2, indexing, recurrence, small_tiles, widening
from engine_models.cost.tables import Bilinear, FloatArray, IntArray, PiecewiseLinear, distinct, log_grid
from engine_models.cost.terms import Shard
from engine_models.model.blocks import AttentionBlock, Linear
from engine_models.parts.batch import Batch, Span
from hardware_profiles.kernel_physics import MLA_KV_RANK, MLA_NOPE, MLA_ROPE, MLA_V
from hardware_profiles.ops import Ops


class RowTables:
    """Seconds of layers over a grid of rows and mean contexts; a table by number of rows is cut from it when first needed."""

    def __init__(self, rows: IntArray, contexts: FloatArray, values: FloatArray) -> None:
        self._rows, self._contexts, self._values = rows, contexts, values
        self.cut: dict[int, PiecewiseLinear] = {}

    def of(self, rows: int) -> PiecewiseLinear:
        """Seconds of `rows` rows as a function of the total of their tokens."""
        table = self.cut.get(rows)
        if table is None:
            table = PiecewiseLinear(self._contexts * rows, np.maximum.accumulate(self._of(rows)))
            self.cut[rows] = table
        return table

    def _of(self, rows: int) -> FloatArray:
        nodes, grid = self._rows, self._values
        i = min(int(np.searchsorted(nodes, rows, side="right")) - 1, len(nodes) - 2)
        share = (rows - nodes[i]) / (nodes[i + 1] - nodes[i])
        of_rows_s: FloatArray = grid[i] + share * (grid[i + 1] - grid[i])
        return of_rows_s


class WindowTables(RowTables):
    """The same of layers of one window, whose length is one of the contexts; see the head of the module."""

    def __init__(self, window_tokens: int, rows: IntArray, contexts: FloatArray, values: FloatArray) -> None:
        super().__init__(rows, contexts, values)
        self.window_tokens = window_tokens
        self._place = int(np.searchsorted(contexts, window_tokens))
        self._parts: dict[int, tuple[PiecewiseLinear, PiecewiseLinear, float]] = {}

    def _tables(self, rows: int) -> tuple[PiecewiseLinear, PiecewiseLinear, float]:
        """Beyond the window by KV tokens, up to it by tokens of the span, and the time at it."""
        found = self._parts.get(rows)
        if found is None:
            nodes, values, at = self._contexts * rows, self._of(rows), self._place
            rising = np.maximum.accumulate(values[: at + 1])
            upto = PiecewiseLinear(nodes[: at + 1], rising)
            found = (PiecewiseLinear(nodes[at:], values[at:]), upto, float(rising[at]))
            self._parts[rows] = found
        return found

    def at(self, rows: int, kv_tokens: int, span_tokens: int) -> float:
        """Seconds of `rows` rows of `kv_tokens` tokens together that attend to `span_tokens` of them."""
        beyond, upto, whole_s = self._tables(rows)
        whole = rows * self.window_tokens
        return beyond.at(float(max(kv_tokens, whole))) * (upto.at(float(min(span_tokens, whole))) / whole_s)

    def over(self, rows: int, kv_tokens: IntArray, span_tokens: IntArray) -> FloatArray:
        """`at` for several steps, by the same arithmetic."""
        beyond, upto, whole_s = self._tables(rows)
        whole = rows * self.window_tokens
        share = upto.over(np.minimum(span_tokens, whole).astype(np.float64)) / whole_s
        return beyond.over(np.maximum(kv_tokens, whole).astype(np.float64)) * share


class DecodeAttention:
    """Attention of the decode rows of a step, all layers of a shard.

    Rows beside a prompt have tables of their own where they share a kernel with it. `windows` is empty where
    no layer has a window that a context can outgrow.
    """

    def __init__(self, shard: Shard, max_rows: int, max_context_tokens: int) -> None:
        rows = log_grid(max_rows, 3)
        contexts = distinct(np.concatenate([[16.0, 64.0], log_grid(max_context_tokens, 2)[8:]])).astype(float)
        blocks = shard.stage.attention
        windows = sorted({b.window_tokens for b in blocks if 1 < b.window_tokens < contexts[-1]})
        mixed = shard.terms.fixed_grid_attention or any(b.mechanism in shard.terms.chunked_decodes for b in blocks)

        def grids(window: int, context_tokens: FloatArray) -> tuple[FloatArray, FloatArray]:
            mine = [b for b in blocks if (b.window_tokens if b.window_tokens in windows else 0) == window]
            batch, context = np.meshgrid(rows.astype(np.float64), context_tokens, indexing="ij")
            alone, together = np.zeros(batch.shape), np.zeros(batch.shape)
            for block in mine:
                own, beside = _layer_s(shard, block, batch, context)
                alone += block.layers * own
                together += block.layers * beside
            return alone, together if mixed else alone

        alone, together = grids(0, contexts)
        self._full = RowTables(rows, contexts, alone)
        self._full_mixed = RowTables(rows, contexts, together) if mixed else self._full
        self.windows: list[WindowTables] = []
        self._windows_mixed: list[WindowTables] = []
        for window in windows:
            nodes = distinct(np.append(contexts, [1.0, float(window)]))
            alone, together = grids(window, nodes)
            self.windows.append(WindowTables(window, rows, nodes, alone))
            self._windows_mixed.append(
                WindowTables(window, rows, nodes, together) if mixed else self.windows[-1]
            )

    def full(self, rows: int) -> PiecewiseLinear:
        """Seconds of the layers without a window, for `rows` rows alone, by the total of their KV tokens."""
        return self._full.cut.get(rows) or self._full.of(rows)

    def batch_s(self, batch: Batch) -> float:
        """Seconds of the decode rows of a batch, of which there is one at least."""
        rows = batch.decode_rows
        kv_tokens = batch.decode_kv_tokens
        if batch.pool_cells:
            kv_tokens = rows * batch.pool_cells
        full = self._full_mixed if batch.prefill else self._full
        table = full.cut.get(rows) or full.of(rows)
        seconds = table.at(kv_tokens)
        if self.windows:
            for tables in self._windows_mixed if batch.prefill else self.windows:
                seconds += tables.at(rows, kv_tokens, _span(batch, tables.window_tokens, kv_tokens).tokens)
        return seconds

    def over(self, shape: Batch, steps: int) -> FloatArray:
        """Seconds of the rows of `steps` steps of a run that begins with `shape`, in an array."""
        rows = shape.decode_rows
        if shape.kv_by_step is not None:
            kv_tokens = shape.kv_by_step[:steps]
            seconds = self._full.of(rows).over(kv_tokens.astype(np.float64))
            for tables in self.windows:
                seconds = seconds + tables.over(rows, kv_tokens, kv_tokens)
            return seconds
        first = rows * shape.pool_cells if shape.pool_cells else shape.decode_kv_tokens
        number = np.arange(steps)
        kv_tokens = first + shape.grows * number
        seconds = self._full.of(rows).over(kv_tokens.astype(np.float64))
        for tables in self.windows:
            span = _span(shape, tables.window_tokens, first)
            seconds = seconds + tables.over(rows, kv_tokens, span.tokens + span.grows * number)
        return seconds

    def few(self, shape: Batch, steps: int) -> Iterator[float]:
        """`over` as plain numbers, equal to the last bit."""
        if shape.kv_by_step is not None:
            yield from self.over(shape, steps).tolist()
            return
        rows, grows = shape.decode_rows, shape.grows
        kv_tokens = rows * shape.pool_cells if shape.pool_cells else shape.decode_kv_tokens
        spans = [_span(shape, tables.window_tokens, kv_tokens) for tables in self.windows]
        full = self._full.of(rows)
        for i in range(steps):
            seconds = full.at(float(kv_tokens))
            for tables, span in zip(self.windows, spans, strict=True):
                seconds += tables.at(rows, kv_tokens, span.tokens + span.grows * i)
            yield seconds
            kv_tokens += grows


def _span(shape: Batch, window_tokens: int, kv_tokens: int) -> Span:
    """What the decode rows attend to in a window; of rows of equal length, where their scheduler does not say."""
    for span in shape.spans:
        if span.window_tokens == window_tokens:
            return span
    return Span(window_tokens, kv_tokens, shape.grows)


def _layer_s(
    shard: Shard, block: AttentionBlock, batch: FloatArray, context: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Seconds of one layer for equal rows: alone, and beside a prompt."""
    ops, terms, tensor = shard.ops, shard.terms, shard.parallel.tensor
    if block.kind == "linear":
        alone = terms.query_tokens * recurrence.decode_s(ops, block, tensor, batch)
        if block.mechanism in terms.chunked_decodes and terms.query_tokens == 1:
            return alone, recurrence.beside_prompt_s(ops, block, tensor, batch)
        return alone, alone
    kv_fmt = shard.formats.kv_cache.name
    if (sharing := shard.parallel.context) > 1:
        whole = replace(shard, parallel=replace(shard.parallel, context=1))
        gathered = replace(block, heads=block.heads * sharing)
        alone, together = _layer_s(whole, gathered, batch, np.maximum(context / sharing, 1.0))
        exchange_s = context_parallel.exchange_s(shard, block, terms.query_tokens * batch)
        return alone + exchange_s, together + exchange_s
    heads = max(1, block.heads // tensor)
    queries = heads * terms.query_tokens
    layer = indexing.measured_layer(shard, block)
    attended = np.maximum(context, indexing.least_attended(shard, block))
    measured = ops.sparse_decode_s(layer, batch, attended) if layer is not None else None
    if measured is not None:
        if window := indexing.window_of(shard, block):
            measured = indexing.beside_window_s(measured, _layer_s(shard, window, batch, context)[0])
        return measured, measured
    chosen_s, context = _chosen(ops, block, batch, context)
    if block.kind == "mla":
        context = np.minimum(context, block.window_tokens) if block.window_tokens else context
        alone = chosen_s + ops.mla_decode_s("bf16", kv_fmt, queries, batch, context)
        return alone, alone
    kv_heads = max(1, block.kv_heads // tensor)
    kv_fmt = widening.WIDE_FORMAT if terms.widens_kv else kv_fmt
    alone = ops.decode_attention_s(
        kv_fmt, queries, kv_heads, block.head_dim, block.window_tokens, batch, context
    )
    if terms.ungrouped_bytes_per_s and heads > kv_heads:
        attended = np.minimum(context, block.window_tokens) if block.window_tokens else context
        passed = batch * attended * (2.0 * heads * block.head_dim * shard.formats.kv_cache.bits_per_weight / 8.0)
        alone = np.maximum(alone, passed / terms.ungrouped_bytes_per_s)
    if terms.widens_kv:
        alone = alone + widening.pass_s(ops, block, shard.formats.kv_cache, tensor, batch * context)
    alone = alone + chosen_s if block.indexer is not None else alone
    if not terms.fixed_grid_attention or block.sinks:  # FlashAttention 2 knows no sinks
        return alone, alone
    shape = (heads, kv_heads, block.head_dim, block.window_tokens)
    alone, together = flash_attention2.decode_s(ops, kv_fmt, *shape, batch, context, alone)
    # rows of several queries are unpacked whether a prompt is there or not
    return (together if terms.query_tokens > 1 else alone), together


def _chosen(
    ops: Ops, block: AttentionBlock, batch: FloatArray, context: FloatArray
) -> tuple[FloatArray | float, FloatArray]:
    """Seconds of choosing what equal rows attend to, and how much that is."""
    if block.entry_tokens > 1:
        context = np.maximum(1.0, context / block.entry_tokens)
    if block.indexer is None:
        return 0.0, context
    chosen_s = indexing.decode_s(ops, block.indexer, batch, context) if block.indexer.bytes_per_entry else 0.0
    return chosen_s, np.minimum(context, block.indexer.topk_tokens)


def _sparse_chunk_s(
    ops: Ops, block: AttentionBlock, kv_fmt: str, tensor: int, new: FloatArray, before: FloatArray
) -> FloatArray:
    """Seconds of one layer whose tokens attend to a part of the context, for one chunk: choice and attention."""
    heads, entry = max(1, block.heads // tensor), block.entry_tokens
    mean = np.maximum(1.0, (before + new / 2) / entry)
    chosen_s: FloatArray | float = 0.0
    attended = np.minimum(mean, block.window_tokens) if block.window_tokens else mean
    if block.indexer is not None:
        if block.indexer.bytes_per_entry:
            chosen_s = indexing.chunk_s(ops, block.indexer, new, new * mean)
        attended = np.minimum(attended, block.indexer.topk_tokens)
    if block.kind == "mla":
        width = sum(width.on(tensor) for width in block.cache)
        return chosen_s + indexing.latent_chunk_s(ops, heads, width, new * attended)
    shape = (heads, max(1, block.kv_heads // tensor), block.head_dim, 0)
    return chosen_s + ops.prefill_attention_s("bf16", kv_fmt, *shape, new, before) * (attended / mean)


def _latent_expansion(block: AttentionBlock) -> Linear | None:
    """What makes keys and values of latents; None where queries attend to these as they are (DeepSeek-V4)."""
    return next((linear for linear in block.linears if linear.name == "mla_kv_b"), None)


def _expansion_s(shard: Shard, block: AttentionBlock, new: FloatArray, before: FloatArray) -> FloatArray:
    """Seconds of one layer to expand the latents cached `before` a chunk of `new` tokens, to which it attends in expanded form.

    They are gathered, projected to keys and values, the keys joined with their rotary part, and what is attended to there is
    merged with the chunk's own part (vLLM `mla/common.py`, SGLang `forward_mha`, TensorRT-LLM `attention.py`; bytes by
    construction). Each chunk does it anew.
    """
    ops, tensor = shard.ops, shard.parallel.tensor
    heads = max(1, block.heads // tensor)
    linear = _latent_expansion(block)
    assert linear is not None
    n, k = linear.shape(tensor)
    gathered = (shard.formats.kv_cache.bits_per_weight / 8 + 2.0) * sum(width.on(tensor) for width in block.cache) * before
    merged = np.where(before > 0, 6.0 * heads * block.v_head_dim * new, 0.0)
    passes_s = sum(ops.elementwise_s(size) for size in (gathered, 4.0 * heads * block.head_dim * before, merged))
    expanded_s: FloatArray = ops.gemm_s(shard.weights_format("attention"), before, n, k) + passes_s
    return expanded_s


def _dense_prompt_s(shard: Shard, block: AttentionBlock, kv_fmt: str, new: FloatArray, before: FloatArray) -> FloatArray:
    """Seconds of one layer of sparse latent attention for a chunk that attends to all that is there, in the expanded form."""
    heads = max(1, block.heads // shard.parallel.tensor)
    wider = (block.head_dim + block.v_head_dim) / (MLA_NOPE + MLA_ROPE + MLA_V)
    dense_s: FloatArray = wider * shard.ops.mla_prefill_s("bf16", kv_fmt, heads, new, before)
    return dense_s + _expansion_s(shard, block, new, before)


ABSORBED_WORK = (2 * MLA_KV_RANK + MLA_ROPE) / (MLA_NOPE + MLA_ROPE + MLA_V)
"""Work of a prompt's latent attention in the absorbed form, in that of the expanded one: 3.4 (by arithmetic of DeepSeek-V3's
widths; of its bytes too, with what the absorbed products write and read between). SGLang's tables on H100 and H200, which timed
this form, take 3.2 times as long as TensorRT-LLM's of the other."""


class PrefillAttention:
    """Attention of prompt chunks, all layers of a shard; `floor_s` is what the smallest chunk takes."""

    def __init__(self, shard: Shard, max_step_tokens: int, max_context_tokens: int) -> None:
        self._shard = shard
        self._chunk = log_grid(max_step_tokens, 4)
        self._prior = distinct(np.concatenate([[0], log_grid(max_context_tokens, 3)[12:]]))
        expanded = self._values(absorbed=False)
        self.floor_s = float(expanded[0, 0])
        self._table = Bilinear(self._chunk, self._prior, expanded)
        terms = shard.terms
        self._below, self._captured = terms.absorbs_below, terms.host.prefill_graph_tokens if terms.absorbs_captured else 0
        absorbs = self._below or self._captured
        self._absorbed = Bilinear(self._chunk, self._prior, self._values(absorbed=True)) if absorbs else self._table

    def _values(self, *, absorbed: bool) -> FloatArray:
        """Seconds by new tokens and those before."""
        shard = self._shard
        new, before = np.meshgrid(self._chunk, self._prior, indexing="ij")
        total = np.zeros(new.shape)
        ops, tensor, kv_fmt = shard.ops, shard.parallel.tensor, shard.formats.kv_cache.name
        copies = shard.terms.widens_kv or shard.terms.flattens_kv
        kv_fmt = widening.WIDE_FORMAT if copies else kv_fmt
        for block in shard.stage.attention:
            if block.kind == "linear":
                total += block.layers * recurrence.chunk_s(ops, block, tensor, new)
                continue
            layer = indexing.measured_layer(shard, block)
            measured = indexing.measured_chunk_s(shard, block, layer, new, before) if layer is not None else None
            if measured is not None:
                dense = shard.terms.dense_prompts and not absorbed
                if dense and block.indexer is not None and _latent_expansion(block) is not None:
                    measured = np.where(
                        new + before <= block.indexer.topk_tokens,
                        np.minimum(measured, _dense_prompt_s(shard, block, kv_fmt, new, before)),
                        measured,
                    )
                if window := indexing.window_of(shard, block):
                    window_s = _sparse_chunk_s(ops, window, kv_fmt, tensor, new, before)
                    measured = indexing.beside_window_s(measured, window_s)
                total += block.layers * measured
                continue
            if block.sparse or (block.kind == "mla" and block.window_tokens):
                total += block.layers * _sparse_chunk_s(ops, block, kv_fmt, tensor, new, before)
                continue
            heads = max(1, block.heads // tensor)
            if block.kind == "mla":
                latent_s = ops.mla_prefill_s("bf16", kv_fmt, heads, new, before)
                if absorbed:
                    latent_s = latent_s + (ABSORBED_WORK - 1.0) * (latent_s - latent_s[0, 0])
                elif shard.terms.expands_latents:
                    latent_s = latent_s + _expansion_s(shard, block, new, before)
                if shard.parallel.context > 1:
                    latent_s = latent_s + context_parallel.chunk_s(shard, block, new, before)
                total += block.layers * latent_s
                continue
            kv_heads = max(1, block.kv_heads // tensor)
            shape = (heads, kv_heads, block.head_dim, block.window_tokens)
            if copies:
                total += block.layers * widening.pass_s(ops, block, shard.formats.kv_cache, tensor, new + before)
            layer_s = ops.prefill_attention_s("bf16", kv_fmt, *shape, new, before)
            if shard.parallel.context > 1:
                layer_s = layer_s + context_parallel.chunk_s(shard, block, new, before)
            if block.sinks and shard.terms.fixed_grid_attention:  # FlashAttention 2 knows no sinks
                layer_s = np.maximum(layer_s, small_tiles.prompt_s(ops, heads, block.head_dim, block.window_tokens, new, before))
            total += block.layers * layer_s
        for axis in (0, 1):  # a longer chunk is never quicker, nor one after more tokens: kernels can be given either
            total = np.flip(np.minimum.accumulate(np.flip(total, axis), axis=axis), axis)
        return total

    def _absorbs(self, batch: Batch) -> bool:
        """Whether the chunks of a batch are computed in the absorbed form, see `Terms`."""
        if self._captured and batch.tokens <= self._captured:
            return True
        return self._below > 0 and 0 < sum([prior for _, prior in batch.prefill]) < self._below

    def batch_s(self, batch: Batch) -> float:
        """Seconds of all chunks of a batch; its decode rows have paid for the smallest."""
        seconds, floor = 0.0, self.floor_s
        table = self._absorbed if self._absorbs(batch) else self._table
        cells = batch.pool_cells
        for new, prior in batch.prefill:
            if cells > new + prior:
                prior = cells - new
            seconds += table.at(new, prior) - floor
        return seconds if batch.decode_rows else seconds + floor


__all__ = ["DecodeAttention", "PrefillAttention"]
