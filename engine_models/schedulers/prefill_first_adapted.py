"""Prefill before decode with LoRA adapters: the rules of `prefill_first`, with a limit to the adapters that run at once. It also
tells how many rows a grammar constrains.

A waiting request whose adapter would be one too many is passed over, those behind it are tried. Requests that name none take a
place too. Over a pipeline the limit is that of the micro-batch whose turn it is, and all share the places on the device.

Source: SGLang 0.5.23 (`managers/scheduler.py`, `lora/lora_manager.py`, `lora/mem_pool.py`), compared step by step with drawn
recordings of its scheduler.
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.radix import RadixPool
from engine_models.parts.adapters import AdapterLimits, AdapterSlots, NamingDecodes
from engine_models.parts.batch import AdapterUse
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch, PrefillFirstRules, PrefillFirstScheduler


class AdaptedPrefillFirstScheduler(PrefillFirstScheduler):
    """`PrefillFirstScheduler` with adapters."""

    def __init__(
        self,
        rules: PrefillFirstRules,
        kv: RadixPool,
        limits: AdapterLimits,
        **others: Any,
    ) -> None:
        super().__init__(rules, kv, **others)
        self.slots = AdapterSlots(limits)
        self._named: set[int] = set()  # by the rows that run and those admitted so far
        self._admitted = 0

    def _new_decodes(self, windows: tuple[int, ...]) -> DecodeSet:
        return NamingDecodes(self.kv.page_tokens, windows)

    def _rows_use(self, chunks: list[tuple[Sequence, int]]) -> AdapterUse | None:
        """What a step of all running rows and these prompts does with adapters, which the device then holds."""
        assert isinstance(self.decodes, NamingDecodes)
        return self.decodes.use(chunks, self.slots)

    def _running_names(self) -> set[int]:
        """Adapters of the running rows, 0 among them where a row names none."""
        assert isinstance(self.decodes, NamingDecodes)
        return self.decodes.named()

    def _rows_masked(self) -> int:
        """Tokens of a step of all running rows that a grammar constrains."""
        assert isinstance(self.decodes, NamingDecodes)
        return self.decodes.masked_rows

    def _form_prefill(self, batch: PrefillFirstBatch, now_s: float) -> bool:
        self._named, self._admitted = {row.adapter for row in self._decoding}, 0
        return super()._form_prefill(batch, now_s)

    def _passes_over(self, seq: Sequence, admitted: list[tuple[Sequence, int, int, bool]]) -> bool:
        """As of the base."""
        if len(admitted) > self._admitted:
            self._named.update(row.adapter for row, _, _, _ in admitted[self._admitted :])
            self._admitted = len(admitted)
        return not self.slots.fits(seq.adapter, self._named) or super()._passes_over(seq, admitted)

    def schedule(self, now_s: float) -> PrefillFirstBatch | None:
        """As of the base."""
        batch = super().schedule(now_s)
        if batch is not None and batch.mode == "EXTEND" and batch.tokens:
            chunks = self._chunks(batch)
            named = {seq.adapter for seq, _ in chunks} - {0}
            # what the running rows name stays on the device beside what the prompts name
            copied, read = self.slots.use(named | self._running_names())
            if named:
                batch.adapters = AdapterUse(len(named), sum(new for seq, new in chunks if seq.adapter), copied, read)
        if batch is not None:
            batch.masked_rows += sum(seq.masked for seq, _, complete, _ in batch.extends if complete)
        return batch

    def _chunks(self, batch: PrefillFirstBatch) -> list[tuple[Sequence, int]]:
        return [(seq, new) for (seq, *_), (new, _) in zip(batch.extends, batch.prefill, strict=True)]

    def _decode_all(self, batch: PrefillFirstBatch) -> None:
        batch.adapters = self._rows_use(self._chunks(batch))
        batch.masked_rows = self._rows_masked()
        super()._decode_all(batch)

    def _take_steps(self, steps: int) -> tuple[int, int]:
        self._rows_use([])
        return super()._take_steps(steps)


__all__ = ["AdaptedPrefillFirstScheduler"]
