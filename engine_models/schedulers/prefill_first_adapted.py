"""Prefill before decode with LoRA adapters: the rules of `prefill_first`, with a limit to the adapters that run at once. It also
tells how many rows a grammar constrains.

A waiting request whose adapter would be one too many is passed over, those behind it are tried. Requests that name none take a
place too.

Source: SGLang 0.5.23 (`managers/scheduler.py`, `lora/lora_manager.py`, `lora/mem_pool.py`), compared with no recording.
"""

from __future__ import annotations

from engine_models.memory.radix import RadixPool
from engine_models.parts.adapters import AdaptedDecodes, AdapterLimits, AdapterSlots
from engine_models.parts.batch import AdapterUse, Batch
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch, PrefillFirstRules, PrefillFirstScheduler


class AdaptedPrefillFirstScheduler(PrefillFirstScheduler):
    """`PrefillFirstScheduler` with adapters."""

    def __init__(
        self,
        rules: PrefillFirstRules,
        kv: RadixPool,
        limits: AdapterLimits,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        super().__init__(rules, kv, aggregate=aggregate, record_rows=record_rows, windows=windows)
        self.decodes = self._adapted = AdaptedDecodes(kv.page_tokens, windows)
        self.slots = AdapterSlots(limits)
        self._named: set[int] = set()  # by the rows that run and those admitted so far
        self._admitted = 0

    def _form_prefill(self, batch: PrefillFirstBatch, now_s: float) -> bool:
        self._named, self._admitted = {row.adapter for row in self._decoding}, 0
        return super()._form_prefill(batch, now_s)

    def _passes_over(self, seq: Sequence, admitted: list[tuple[Sequence, int, int, bool]]) -> bool:
        """As of the base."""
        if len(admitted) > self._admitted:
            self._named.update(row.adapter for row, _, _, _ in admitted[self._admitted :])
            self._admitted = len(admitted)
        return not self.slots.fits(seq.adapter, self._named)

    def schedule(self, now_s: float) -> PrefillFirstBatch | None:
        """As of the base."""
        batch = super().schedule(now_s)
        if batch is not None and batch.mode == "EXTEND" and batch.tokens:
            chunks = self._chunks(batch)
            named = {seq.adapter for seq, _ in chunks} - {0}
            # what the running rows name stays on the device beside what the prompts name
            copied, read = self.slots.use(named | set(self._adapted.adapters))
            if named:
                batch.adapters = AdapterUse(len(named), sum(new for seq, new in chunks if seq.adapter), copied, read)
        if batch is not None:
            batch.masked_rows += sum(seq.masked for seq, _, complete, _ in batch.extends if complete)
        return batch

    def _chunks(self, batch: PrefillFirstBatch) -> list[tuple[Sequence, int]]:
        return [(seq, new) for (seq, *_), (new, _) in zip(batch.extends, batch.prefill, strict=True)]

    def _decode_all(self, batch: PrefillFirstBatch) -> None:
        batch.adapters = self._adapted.use(self._chunks(batch), self.slots)
        batch.masked_rows = self._adapted.masked_rows
        super()._decode_all(batch)

    def run(self) -> Run | None:
        """As of the base."""
        run = super().run()
        if run is not None:
            run.shape.adapters, run.shape.masked_rows = self._adapted.use(), self._adapted.masked_rows
        return run

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """As of the base."""
        self.slots.use(self._adapted.adapters)
        return super().take(steps)


__all__ = ["AdaptedPrefillFirstScheduler"]
