"""Memory first, then tokens, with LoRA adapters: the rules of `memory_then_tokens`, with a limit to the adapters that run at
once. It also tells how many rows a grammar constrains.

The first pass holds the adapters of rows that generate and those of the prompts that it lets in. A prompt whose adapter would be
one too many is passed over and those behind it are tried; one that the cache cannot hold ends the pass, as without adapters.
Where what fits the next step is let in, adapters are held in order of arrival, and a row whose adapter would be one too many is
treated like one whose blocks do not fit: the last that has begun is paused for it, or it ends the pass.

Source: TensorRT-LLM (`cpp/tensorrt_llm/batch_manager/{capacityScheduler,peftCacheManager}.cpp`, public copies, read 2026-11),
compared with no recording.
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.block_tree import BlockTree
from engine_models.parts.adapters import AdapterLimits, AdapterSlots, NamingDecodes
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import TwoPassBatch, TwoPassRules, TwoPassScheduler


class AdaptedTwoPassScheduler(TwoPassScheduler):
    """`TwoPassScheduler` with adapters and grammars."""

    def __init__(
        self,
        rules: TwoPassRules,
        kv: BlockTree,
        limits: AdapterLimits,
        **others: Any,
    ) -> None:
        super().__init__(rules, kv, **others)
        self.slots = AdapterSlots(limits)
        self._named: set[int] = set()  # by the rows that generate and the prompts let in so far

    def add(self, seq: Sequence) -> None:
        """As of the base; whoever arrives may name an adapter that is served."""
        super().add(seq)
        self._blocked = False

    def _new_decodes(self, windows: tuple[int, ...]) -> DecodeSet:
        return NamingDecodes(self.kv.block_tokens, windows)

    @property
    def _naming(self) -> NamingDecodes:
        assert isinstance(self.decodes, NamingDecodes)
        return self.decodes

    def _generating_names(self) -> set[int]:
        """Adapters of the generating rows, 0 among them where a row names none."""
        return self._naming.named()

    def _fit_with_answers(self, batch: TwoPassBatch) -> list[Sequence]:
        self._named = self._generating_names().union(seq.adapter for seq in self._ending)
        return super()._fit_with_answers(batch)

    def _fit_for_a_step(self, batch: TwoPassBatch) -> list[Sequence]:
        self._named = set()
        return super()._fit_for_a_step(batch)

    def _passes_over(self, seq: Sequence) -> bool:
        """As of the base."""
        if not self.slots.fits(seq.adapter, self._named):
            return True
        self._named.add(seq.adapter)
        return False

    def _decode(self, batch: TwoPassBatch, contexts: list[Sequence]) -> None:
        served = [(seq, self._contexts[seq].chunk) for seq in contexts]
        use = self._naming.use(served, self.slots)
        masked = self._naming.masked_rows + sum(seq.masked and self._last_chunk(seq) for seq in contexts)
        super()._decode(batch, contexts)
        batch.adapters, batch.masked_rows = use, masked

    def run(self) -> Run | None:
        """As of the base; an arrival may go before those who are passed over."""
        run = super().run()
        if run is not None:
            run.deaf = run.deaf and len(self.active) == self.max_active
        return run

    def _take(self, steps: int) -> tuple[TwoPassBatch, int, int]:
        self.slots.use(self._naming.adapters)
        return super()._take(steps)


__all__ = ["AdaptedTwoPassScheduler"]
