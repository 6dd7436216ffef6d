"""A decode server that reserves memory before prompts are computed, with LoRA adapters: so many may hold memory at once.

A request that would name one adapter too many beside those of rows that run, have just ended, or hold memory already is passed
over when memory is given away; those behind it are tried. Rows that have lost their memory come back untried: while there are
any, nobody else gets memory, so that what they name has had its place. It also tells how many rows a grammar constrains.

Source: `pop_preallocated` in `srt/disaggregation/decode.py` of SGLang 0.5.23 (lines 1433 to 1478), read and compared with no
recording.
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.radix import RadixPool
from engine_models.parts.adapters import AdapterLimits, AdapterSlots, NamingDecodes
from engine_models.parts.batch import AdapterUse, Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.reserved import ReservingDecodeScheduler, ReservingRules


class AdaptedReservingScheduler(ReservingDecodeScheduler):
    """`ReservingDecodeScheduler` with adapters."""

    def __init__(self, rules: ReservingRules, kv: RadixPool, *, limits: AdapterLimits, **others: Any) -> None:
        super().__init__(rules, kv, **others)
        self.slots = AdapterSlots(limits)
        self._named: set[int] | None = None  # by those that hold memory, as far as somebody asked in this loop

    def _new_decodes(self, windows: tuple[int, ...], *, masked: bool) -> DecodeSet:
        return NamingDecodes(self.kv.page_tokens, windows)

    def _reserve(self, now_s: float) -> list[Sequence]:
        self._named = None
        return super()._reserve(now_s)

    def _passes_over(self, seq: Sequence) -> bool:
        if self._named is None:
            held = (*self.running, *self._ended, *self.transfer, *self.waiting)
            self._named = {row.adapter for row in held}
        if not self.slots.fits(seq.adapter, self._named):
            return True
        self._named.add(seq.adapter)
        return False

    def _decode(self) -> Batch | None:
        batch = super()._decode()
        if batch is not None:
            self._use(batch)
        return batch

    def _use(self, batch: Batch) -> None:
        """Note which adapters a step reads; the device then holds them."""
        naming = [seq.adapter for seq in self.running if seq.adapter]
        if naming:
            named = set(naming)
            copied, read = self.slots.use(named)
            tokens = len(naming) * (batch.decode_tokens // batch.decode_rows)
            batch.adapters = AdapterUse(len(named), tokens, copied, read)

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """As of the base; the adapters are there."""
        self.slots.use({seq.adapter for seq in self.running})
        return super().take(steps)


__all__ = ["AdaptedReservingScheduler"]
