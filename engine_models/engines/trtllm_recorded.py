"""Recorded steps of TensorRT-LLM's schedulers, run again, and written as the recording writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine_models.declaration import Replay
from engine_models.engines.trtllm_ranks import Rank
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import TwoPassBatch, TwoPassRules


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line; recordings name a branch, not a release."""
    rules = TwoPassRules(
        max_batch_size=knobs["max_batch_size"],
        max_num_tokens=knobs["max_num_tokens"],
        max_seq_len=knobs["max_seq_len"],
        capacity_scheduler_policy=knobs["capacity_scheduler_policy"],
        context_chunking_policy=knobs["context_chunking_policy"] if knobs["enable_chunked_prefill"] else None,
        batch_wait_timeout_iters=knobs["batch_wait_timeout_iters"],
        batch_wait_max_tokens_ratio=knobs["batch_wait_max_tokens_ratio"],
        overlap=knobs["overlap"],
    )
    rank = Rank(
        rules,
        knobs["num_blocks"],
        knobs["tokens_per_block"],
        knobs["enable_block_reuse"],
        knobs["enable_partial_reuse"],
        knobs["copy_on_partial_reuse"],
    )
    columns = (
        "sched",
        "n_ctx",
        "hits",
        "paused",
        "skipped",
        "running",
        "waiting",
        "queued",
        "free_blocks",
        "finished",
    )
    return Replay(
        rank.scheduler("record"), 2 if rules.overlap else 1, (*columns, "free_blocks_after"), as_recorded
    )


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A settled step as the recordings write it."""
    assert isinstance(batch, TwoPassBatch)
    assert batch.rows is not None

    def names(seqs: Iterable[Sequence]) -> list[str]:
        return [ids[seq.index] for seq in seqs]

    return {
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows],
        "n_ctx": len(batch.contexts),
        "hits": {ids[seq.index]: found for seq, found in batch.hits},
        "paused": names(batch.preempted),
        "skipped": names(batch.skipped),
        "running": names(batch.running),
        "waiting": names(batch.waiting),
        "queued": names(batch.queued),
        "free_blocks": batch.free_blocks,
        "finished": names(batch.finishing),
        "free_blocks_after": batch.free_after,
    }
