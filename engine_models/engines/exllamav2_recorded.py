"""Schedules of ExLlamaV2's dynamic generator as the recorder writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.declaration import Replay
from engine_models.memory.chained_pages import PAGE_TOKENS, ChainedPages
from engine_models.parts.batch import Batch
from engine_models.schedulers.bounded_bypass import BypassBatch, BypassRules, BypassScheduler

COLUMNS = ("sched", "n_prefill", "started", "hits", "skips", "free_pages", "finished")


def replay(knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line."""
    rules = BypassRules(
        max_batch_size=knobs["max_batch_size"],
        max_chunk_size=knobs["max_chunk_size"],
        max_seq_len=knobs["max_seq_len"],
        max_skips=knobs["max_skips"],
    )
    pages = ChainedPages(knobs["cache_tokens"] // PAGE_TOKENS)
    return Replay(BypassScheduler(rules, pages, record_rows=True), 1, COLUMNS, as_recorded)


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any] | None:
    """A settled iteration as the recordings write it; None of a call in its midst."""
    assert isinstance(batch, BypassBatch)
    if not batch.closes:
        return None
    return {
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows or ()],
        "n_prefill": batch.chunks,
        "started": [ids[seq.index] for seq in batch.started],
        "hits": {ids[seq.index]: found for seq, found in batch.hits},
        "skips": {ids[seq.index]: count for seq, count in batch.skips.items()},
        "free_pages": batch.free_blocks,
        "finished": [ids[seq.index] for seq in batch.finishing],
    }
