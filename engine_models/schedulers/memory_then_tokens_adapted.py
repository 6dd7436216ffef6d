"""Memory first, then tokens, with LoRA adapters: the rules of `memory_then_tokens`, with a limit to the adapters that run at
once. It also tells how many rows a grammar constrains.

The first pass holds the adapters of rows that generate and those of the prompts that it lets in. A prompt whose adapter would be
one too many is passed over and those behind it are tried; one that the cache cannot hold ends the pass, as without adapters.

Source: TensorRT-LLM (`cpp/tensorrt_llm/batch_manager/{capacityScheduler,peftCacheManager}.cpp`, public copies, read 2026-11),
compared with no recording.
"""

from __future__ import annotations

from engine_models.memory.block_tree import BlockTree
from engine_models.parts.adapters import AdaptedDecodes, AdapterLimits, AdapterSlots
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import TwoPassBatch, TwoPassRules, TwoPassScheduler


class AdaptedTwoPassScheduler(TwoPassScheduler):
    """`TwoPassScheduler` with adapters, under a policy that reserves whole answers."""

    def __init__(
        self,
        rules: TwoPassRules,
        kv: BlockTree,
        limits: AdapterLimits,
        *,
        aggregate: bool = True,
        windows: tuple[int, ...] = (),
    ) -> None:
        super().__init__(rules, kv, aggregate=aggregate, windows=windows)
        self.decodes = self._adapted = AdaptedDecodes(kv.block_tokens, windows)
        self.slots = AdapterSlots(limits)
        self._named: set[int] = set()  # by the rows that generate and the prompts let in so far

    def add(self, seq: Sequence) -> None:
        """As of the base; whoever arrives may name an adapter that is served."""
        super().add(seq)
        self._blocked = False

    def _fit_with_answers(self, batch: TwoPassBatch) -> list[Sequence]:
        self._named = self._adapted.named().union(seq.adapter for seq in self._ending)
        return super()._fit_with_answers(batch)

    def _passes_over(self, seq: Sequence) -> bool:
        """As of the base."""
        if not self.slots.fits(seq.adapter, self._named):
            return True
        self._named.add(seq.adapter)
        return False

    def _decode(self, batch: TwoPassBatch, contexts: list[Sequence]) -> None:
        served = [(seq, self._contexts[seq].chunk) for seq in contexts]
        batch.adapters = self._adapted.use(served, self.slots)
        ends = sum(seq.masked and self._last_chunk(seq) for seq in contexts)
        batch.masked_rows = self._adapted.masked_rows + ends
        super()._decode(batch, contexts)

    def run(self) -> Run | None:
        """As of the base; an arrival may go before those who are passed over."""
        run = super().run()
        if run is not None:
            run.shape.adapters, run.shape.masked_rows = self._adapted.use(), self._adapted.masked_rows
            run.deaf = len(self.active) == self.rules.max_batch_size
        return run

    def take(self, steps: int) -> tuple[TwoPassBatch, int, int]:
        """As of the base."""
        self.slots.use(self._adapted.adapters)
        return super().take(steps)


__all__ = ["AdaptedTwoPassScheduler"]
