"""Schedules of OpenVINO GenAI's continuous batching as the recorder writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine_models.declaration import Replay
from engine_models.memory.content_blocks import ContentBlocks
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.one_list import OneListBatch, OneListRules, OneListScheduler

COLUMNS = (
    *(
        "sched",
        "is_prompt",
        "hits",
        "preempted",
        "running",
        "waiting",
        "free_blocks",
        "cache_usage",
        "finished",
    ),
    "free_blocks_after",
)
UNBOUNDED = 1 << 40
"""Blocks that no recording reaches: the recorder gave a growing cache all the memory that it asked for."""


def replay(knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line."""
    rules = OneListRules(
        max_num_batched_tokens=knobs["max_num_batched_tokens"],
        max_num_seqs=knobs["max_num_seqs"],
        dynamic_split_fuse=knobs["dynamic_split_fuse"],
        partial_preemption=knobs["partial_preemption"],
    )
    blocks = knobs["num_kv_blocks"]
    kv = ContentBlocks(
        blocks,
        knobs["block_size"],
        prefix_caching=knobs["enable_prefix_caching"],
        most_blocks=None if blocks else UNBOUNDED,
    )
    columns = COLUMNS if blocks else (*COLUMNS, "total_blocks")
    return Replay(OneListScheduler(rules, kv, record_rows=True), 1, columns, as_recorded)


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A settled step as the recordings write it."""
    assert isinstance(batch, OneListBatch)

    def names(seqs: list[Sequence]) -> list[str]:
        return [ids[seq.index] for seq in seqs]

    total = batch.capacity_blocks
    usage = np.float32(total - batch.free_blocks) / np.float32(total) * np.float32(100)
    return {
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows or ()],
        "is_prompt": batch.only_prompts,
        "hits": {ids[seq.index]: found for seq, found in batch.hits},
        "preempted": [
            [ids[seq.index], lost] for seq, lost in sorted(batch.lost.items(), key=lambda item: item[0].order)
        ],
        "running": names(batch.holding),
        "waiting": names(batch.bare),
        "free_blocks": batch.free_blocks,
        "cache_usage": round(float(usage), 4),
        "total_blocks": total,
        "finished": names(batch.finishing),
        "free_blocks_after": batch.free_after,
    }
