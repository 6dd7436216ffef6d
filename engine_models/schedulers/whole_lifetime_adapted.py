"""Admission for a whole lifetime with LoRA adapters: the rules of `whole_lifetime`, all adapters on the device from the start.

Whoever is admitted may name any of them: no request waits for an adapter, and none is copied. It also tells how many rows a
grammar constrains.

Source: TGI's documentation of LoRA adapters (`docs/source/conceptual/lora.md`, 2026-01), compared with no recording.
"""

from __future__ import annotations

from engine_models.memory.lifetime_pages import LifetimePages
from engine_models.parts.adapters import AdaptedDecodes
from engine_models.parts.batch import AdapterUse
from engine_models.parts.protocols import Run
from engine_models.schedulers.whole_lifetime import LifetimeBatch, LifetimeRules, WholeLifetimeScheduler


class AdaptedLifetimeScheduler(WholeLifetimeScheduler):
    """`WholeLifetimeScheduler` whose batches say which adapters they read."""

    def __init__(self, rules: LifetimeRules, kv: LifetimePages, *, aggregate: bool = True, windows: tuple[int, ...] = ()) -> None:
        super().__init__(rules, kv, aggregate=aggregate, windows=windows)
        self.decodes = self._adapted = AdaptedDecodes(1, windows)
        self._read: set[int] = set()  # by the decoding rows of the step that is formed
        self._tokens = self._masked = 0

    def schedule(self, now_s: float) -> LifetimeBatch | None:
        """As of the base."""
        self._read, self._tokens, self._masked = set(), 0, 0
        return super().schedule(now_s)

    def _end_decodes(self, batch: LifetimeBatch) -> None:
        self._read = set(self._adapted.adapters)
        self._tokens = self._adapted.count - self._adapted.rows_of_model
        self._masked = self._adapted.masked_rows
        super()._end_decodes(batch)

    def _compute_prompts(self, batch: LifetimeBatch) -> None:
        for seq, row in self._prefilling.items():
            if seq.adapter:
                self._read.add(seq.adapter)
                self._tokens += row.chunk
            self._masked += seq.masked and seq.computed + row.chunk >= row.prompt_tokens
        batch.masked_rows = self._masked
        if self._read:
            batch.adapters = AdapterUse(len(self._read), self._tokens)
        super()._compute_prompts(batch)

    def run(self) -> Run | None:
        """As of the base."""
        run = super().run()
        if run is not None:
            run.shape.adapters, run.shape.masked_rows = self._adapted.use(), self._adapted.masked_rows
        return run


__all__ = ["AdaptedLifetimeScheduler"]
