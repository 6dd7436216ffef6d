"""Schedules of transformers' continuous batching as the recorder writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine_models.declaration import Replay
from engine_models.memory.sector_kv import LayerGroup, SectorKV, SectorPool
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.first_fit import FirstFitBatch, FirstFitRules, FirstFitScheduler

COLUMNS = (
    *(
        "sched",
        "hits",
        "preempted",
        "starved",
        "evicted_blocks",
        "fast_path",
        "block_new",
        "running",
        "waiting",
    ),
    *(
        "free_sectors",
        "free_blocks",
        "cached_blocks",
        "finished",
        "free_blocks_after_update",
        "cached_blocks_after_update",
    ),
)
HOST_COLUMNS = ("cpu_offloaded", "restored")


def replay(knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line."""
    groups = tuple(LayerGroup(each["blocks_per_sector"], each["window"]) for each in knobs["allocators"])
    windows = [group.window_tokens for group in groups]
    rules = FirstFitRules(
        max_batch_tokens=knobs["max_batch_tokens"],
        max_requests_per_batch=knobs["max_requests_per_batch"],
        max_tokens_read=knobs["max_tokens_read"],
        max_decode_fast_path_length=knobs["max_decode_fast_path_length"],
        safety_margin_share=knobs["safety_margin"],
        prefill_first=knobs["scheduler_type"] == "prefill_first",
        read_window_tokens=windows[0] if len(windows) == 1 else None,
    )
    kv = SectorKV(knobs["num_sectors"], knobs["page_size"], groups, sharing=knobs["prefix_sharing_active"])
    host = None
    if knobs["cpu_pool_sectors"]:
        host = SectorPool(knobs["cpu_pool_sectors"], kv.pool.sizes)
    scheduler = FirstFitScheduler(rules, kv, host, record_rows=True)
    columns = COLUMNS if host is None else (*COLUMNS, *HOST_COLUMNS)
    return Replay(scheduler, 2 if knobs["use_async_batching"] else 1, columns, _Recorded())


class _Recorded:
    """Steps as they are recorded. A batch that ran for nothing before a pause is taken in once the next has been chosen."""

    def __init__(self) -> None:
        self._late: dict[str, Any] | None = None

    def __call__(self, batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
        """The step of a settled batch."""
        assert isinstance(batch, FirstFitBatch)
        step = as_recorded(batch, ids)
        if self._late is not None:
            for name in ("free_blocks", "cached_blocks"):
                self._late[f"{name}_after_update"] = step[name]
        self._late = step if batch.idle and not batch.finishing else None
        return step


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A settled step as the recordings write it."""
    assert isinstance(batch, FirstFitBatch)

    def names(seqs: Iterable[Sequence]) -> list[str]:
        return [ids[seq.index] for seq in seqs]

    free_after, cached_after = batch.after
    return {
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows or ()],
        "hits": {ids[seq.index]: found for seq, found in batch.hits},
        "preempted": names(batch.preempted),
        "cpu_offloaded": names(batch.swapped),
        "restored": names(batch.swapped_in),
        "starved": names(batch.starved),
        "evicted_blocks": batch.dropped,
        "fast_path": batch.fast_path,
        "block_new": batch.stopped,
        "running": names(batch.active),
        "waiting": names(batch.waiting),
        "free_sectors": batch.free_sectors,
        "free_blocks": batch.free,
        "cached_blocks": batch.cached,
        "finished": names(batch.finishing),
        "free_blocks_after_update": free_after,
        "cached_blocks_after_update": cached_after,
    }
