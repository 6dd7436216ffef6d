"""Schedules of LMDeploy's PyTorch engine as the recorder writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine_models.declaration import Replay
from engine_models.memory.block_trie import TrieBlocks
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.alternating import AlternatingBatch, AlternatingRules, AlternatingScheduler

COLUMNS = (
    *(
        "mode",
        "do_prefill",
        "sched",
        "hits",
        "preempted",
        "reclaimed",
        "running",
        "waiting",
        "stopped",
        "decode_count",
    ),
    *("free_blocks", "finished"),
)
TRIE_COLUMNS = ("trie_evicted", "trie_blocks", "trie_evictable")


def replay(knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line."""
    window, caching = max(knobs["window_size"], 0), bool(knobs["enable_prefix_caching"])
    rules = AlternatingRules(
        max_batch_size=knobs["max_batch_size"],
        max_prefill_token_num=knobs["max_prefill_token_num"],
        prefill_interval=knobs["prefill_interval"],
        ttft_policy=knobs["ttft_policy"],
        ttft_short_turns=max(1, knobs["ttft_short_turns"]),
        ttft_aging_s=max(0.001, knobs["ttft_aging_sec"]),
        handle_pool=knobs["handle_pool"],
        max_session_len=knobs["max_session_len"],
    )
    blocks = knobs["num_gpu_blocks"] - knobs["num_reserved_gpu_blocks"]
    kv = TrieBlocks(blocks, knobs["block_size"], prefix_caching=caching and not window, window_tokens=window)
    columns = (*COLUMNS, *TRIE_COLUMNS) if caching else COLUMNS
    return Replay(AlternatingScheduler(rules, kv, record_rows=True), 2, columns, as_recorded)


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A settled step as the recordings write it."""
    assert isinstance(batch, AlternatingBatch)

    def names(seqs: Iterable[Sequence]) -> list[str]:
        return [ids[seq.index] for seq in seqs]

    return {
        "mode": batch.kind,
        "do_prefill": batch.first,
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows or ()],
        "hits": {ids[seq.index]: found for seq, found in batch.hits},
        "preempted": names(batch.preempted),
        "reclaimed": [[ids[seq.index], blocks] for seq, blocks in batch.back],
        "trie_evicted": batch.evicted,
        "running": names(batch.running),
        "waiting": names(batch.waiting),
        "stopped": names(batch.stopped),
        "decode_count": batch.decode_count,
        "free_blocks": batch.free_blocks,
        "trie_blocks": batch.trie_blocks,
        "trie_evictable": batch.trie_evictable,
        "finished": names(batch.finishing),
    }
