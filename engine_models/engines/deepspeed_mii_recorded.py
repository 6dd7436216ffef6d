"""Schedules of DeepSpeed-MII as the recorder writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine_models.declaration import Replay
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.split_fuse import SplitFuseBatch, SplitFuseRules, SplitFuseScheduler

COLUMNS = (
    *("sched", "hits", "free_blocks", "scheduled_blocks", "flushing", "flushed", "preempted", "waiting"),
    *("free_blocks_after", "tracked", "prefill_tokens", "decode_seqs", "finished"),
)


def replay(knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line."""
    rules = SplitFuseRules(
        max_ragged_batch_size=knobs["max_ragged_batch_size"],
        max_ragged_sequence_count=knobs["max_ragged_sequence_count"],
        max_tracked_sequences=knobs["max_tracked_sequences"],
        max_length=knobs["max_length"],
    )
    scheduler = SplitFuseScheduler(rules, knobs["num_kv_blocks"], knobs["kv_block_size"], record_rows=True)
    return Replay(scheduler, 1, COLUMNS, as_recorded)


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A settled step as the recordings write it."""
    assert isinstance(batch, SplitFuseBatch)

    def names(seqs: Iterable[Sequence]) -> list[str]:
        return [ids[seq.index] for seq in seqs]

    return {
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows or ()],
        "hits": {},
        "free_blocks": batch.free_blocks,
        "scheduled_blocks": batch.chosen_blocks,
        "flushing": names(batch.flushing),
        "flushed": names(batch.flushed),
        "preempted": names(batch.preempted),
        "waiting": names(batch.left),
        "free_blocks_after": batch.free_after,
        "tracked": batch.tracked,
        "prefill_tokens": batch.tokens - batch.decode_tokens,
        "decode_seqs": batch.decode_rows,
        "finished": names(batch.finishing),
    }
