"""What a fresh scheduler of TGI is built from, and recorded steps of the real router, run again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.declaration import Mode, Replay
from engine_models.memory.lifetime_pages import LifetimePages
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.whole_lifetime import LifetimeBatch, LifetimeRules, WholeLifetimeScheduler
from engine_models.schedulers.whole_lifetime_adapted import AdaptedLifetimeScheduler
from engine_models.schedulers.whole_lifetime_drafted import DraftedLifetimeScheduler
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Rank:
    """Rules and pages of one rank: what a fresh scheduler is built from. `blocks` are the usable ones."""

    rules: LifetimeRules
    blocks: int
    block_tokens: int
    prefix_caching: bool
    window_tokens: int | None = None
    windows: tuple[int, ...] = ()  # of the model's layers
    adapters: bool = False
    row_tokens: int = 1  # that a step verifies, with drafts

    def scheduler(self, mode: Mode) -> WholeLifetimeScheduler:
        """Build a scheduler with its pages."""
        kv = LifetimePages(
            self.blocks,
            self.block_tokens,
            prefix_caching=self.prefix_caching,
            window_tokens=self.window_tokens,
        )
        if self.row_tokens > 1:
            return DraftedLifetimeScheduler(self.rules, kv, row_tokens=self.row_tokens, windows=self.windows)
        if self.adapters:
            return AdaptedLifetimeScheduler(self.rules, kv, aggregate=mode != "step", windows=self.windows)
        return WholeLifetimeScheduler(
            self.rules, kv, aggregate=mode != "step", record_rows=mode == "record", windows=self.windows
        )


def replay_of(knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line."""
    if knobs.get("requires_padding"):
        raise InputError("models that TGI pads are not modelled", mend="use a model with flash attention")
    page, tokens = knobs["block_size"], knobs["max_batch_total_tokens"]
    rules = LifetimeRules(
        max_batch_prefill_tokens=knobs["max_batch_prefill_tokens"],
        max_batch_total_tokens=tokens,
        max_total_tokens=1 << 40,  # requests are not validated
        waiting_served_ratio=knobs["waiting_served_ratio"],
        max_waiting_tokens=knobs["max_waiting_tokens"],
        max_batch_size=knobs.get("max_batch_size"),
        chunked_prefill=knobs["support_chunking"],
    )
    rank = Rank(rules, tokens // page - 1, page, knobs["use_prefix_caching"], knobs.get("window_size"))
    return Replay(
        rank.scheduler("record"),
        1,
        ("call", "mode", "sched", "new", "hits", "waiting", "blocks_in_use", "finished"),
        as_recorded,
    )


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A settled step as the recordings write it."""
    assert isinstance(batch, LifetimeBatch)
    assert batch.rows is not None

    def names(seqs: list[Sequence]) -> list[str]:
        return [ids[seq.index] for seq in seqs]

    return {
        "call": "prefill" if batch.admits else "decode",
        "mode": ("MIXED" if batch.decode_rows else "PREFILL") if batch.prefill else "DECODE",
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows],
        "new": names(batch.new),
        "hits": {ids[seq.index]: found for seq, found in batch.hits},
        "waiting": names(batch.waiting),
        "blocks_in_use": batch.used_blocks,
        "finished": names(batch.finishing),
    }


__all__ = ["Rank", "replay_of"]
