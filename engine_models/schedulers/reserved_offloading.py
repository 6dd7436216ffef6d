"""A decode server that reserves memory before prompts are computed, and writes its answers to a store that prefill servers read.

The prefill server writes the whole pages of a prompt; what follows is the decode server's, in whole pages counted from there.
Without the prompt's pages before them nobody finds them.

Here they are written when the row ends; there page by page while it decodes, by way of host memory, which is taken to have room.

Source: `srt/disaggregation/decode_kvcache_offload_manager.py` of SGLang 0.5.23, lines 163 to 247 and 378 to 398, read and
compared with no recording.
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.radix import RadixPool, content_of
from engine_models.memory.tiered_radix import FurtherTier
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import TierCount
from engine_models.schedulers.reserved import ReservingDecodeScheduler, ReservingRules
from engine_models.schedulers.store_behind import UsesStore


class OffloadingReservingScheduler(UsesStore, ReservingDecodeScheduler):
    """`ReservingDecodeScheduler` that writes to a store."""

    def __init__(self, rules: ReservingRules, kv: RadixPool, *, further: FurtherTier, **others: Any) -> None:
        super().__init__(rules, kv, **others)
        self._further = further

    @property
    def further(self) -> FurtherTier:
        """As of the base."""
        return self._further

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base."""
        for seq in batch.finishing:
            self._offload(seq, batch.t_end)
        return super().settle(batch)

    def _offload(self, seq: Sequence, now_s: float) -> None:
        """Write what a row has beyond the whole pages of its prompt."""
        page = self.kv.page_tokens
        first = seq.prompt_tokens - seq.prompt_tokens % page
        last = seq.length - 1 - (seq.length - 1 - first) % page
        if last > first:
            self._further.write_behind(content_of(seq), first, last, now_s)

    def tier_counts(self) -> list[TierCount]:
        """As of the base."""
        return [TierCount(self._further.kind, 0, 0.0, self._further.written_bytes)]


__all__ = ["OffloadingReservingScheduler"]
