"""Continuous batching with LoRA adapters: the rules of `continuous`, with a limit to the adapters that a step may name. It
also tells how many rows a grammar constrains.

A waiting request whose adapter would be one too many is passed over until another's rows have ended; those behind it may go
first. Who is passed over keeps the order of the queue. Beside drafts and over a pipeline rows are served one by one, as in the
base.

Source: vLLM (`v1/core/sched/scheduler.py`, `lora/worker_manager.py`), where the limit is over the adapters of all rows that run;
before 0.33 (assumed: public copies to 0.2x) of those that the step serves.
"""

from __future__ import annotations

from engine_models.memory.hybrid_kv import HybridKV
from engine_models.memory.kv_tiers import KvTiers
from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.adapters import AdaptedDecodes, AdapterLimits, AdapterSlots
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler


class AdaptedScheduler(ContinuousScheduler):
    """`ContinuousScheduler` with adapters; over a cache of several groups step by step."""

    def __init__(
        self,
        rules: ContinuousRules,
        kv: PagedKV | HybridKV,
        limits: AdapterLimits,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        tiers: KvTiers | None = None,
        windows: tuple[int, ...] = (),
    ) -> None:
        super().__init__(rules, kv, aggregate=aggregate, record_rows=record_rows, tiers=tiers, windows=windows)
        self.decodes = self._adapted = AdaptedDecodes(kv.block_tokens, windows)
        self.slots = AdapterSlots(limits)

        self._named: set[int] = set()  # by the rows of the step that is formed

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return self.tiers is None and not self.rules.pipelined

    def add(self, seq: Sequence) -> None:
        """As of the base; whoever arrives may name an adapter that is served."""
        super().add(seq)
        self.blocked = False

    def _admit(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int, now_s: float
    ) -> bool:
        if self.rules.adapters_of_all_running:
            self._named = {seq.adapter for seq in self.running}
        else:
            self._named = self._adapted.named().union(seq.adapter for seq, _ in served)
        return super()._admit(batch, served, budget, cap, now_s)

    def _passes_over(self, seq: Sequence, served: list[tuple[Sequence, int]]) -> bool:
        """As of the base."""
        return not self.slots.fits(seq.adapter, self._named)

    def _start(
        self, batch: Batch, served: list[tuple[Sequence, int]], seq: Sequence, want: int, now_s: float, hit: int, loaded: int
    ) -> None:
        self._named.add(seq.adapter)
        super()._start(batch, served, seq, want, now_s, hit, loaded)

    def _commit(self, batch: Batch, served: list[tuple[Sequence, int]]) -> None:
        batch.adapters = self._adapted.use(served, self.slots)
        batch.masked_rows = self._adapted.masked_rows + sum(
            seq.computed + tokens - seq.length + 1  # drafts, and the token after them
            for seq, tokens in served
            if seq.masked and seq.computed + tokens >= seq.length
        )
        super()._commit(batch, served)

    def run(self) -> Run | None:
        """As of the base; an arrival may go before those who are passed over."""
        run = super().run()
        if run is not None:
            run.shape.adapters, run.shape.masked_rows = self._adapted.use(), self._adapted.masked_rows
            run.deaf = False
        return run

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """As of the base."""
        self.slots.use(self._adapted.adapters)
        return super().take(steps)


__all__ = ["AdaptedScheduler"]
