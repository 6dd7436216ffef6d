"""Prefill before decode with drafts and LoRA adapters, or grammars: the rules of both. Drafts name no adapter, their
verification does.

Source: `arg_groups/lora_hook.py` of SGLang 0.5.23 (n-gram drafts, EAGLE and EAGLE-3 beside adapters), compared with no recording.
"""

from __future__ import annotations

from engine_models.parts.batch import AdapterUse
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first_adapted import AdaptedPrefillFirstScheduler
from engine_models.schedulers.prefill_first_drafted import DraftedPrefillFirstScheduler


class DraftedAdaptedPrefillFirstScheduler(AdaptedPrefillFirstScheduler, DraftedPrefillFirstScheduler):
    """`PrefillFirstScheduler` with both. Parameters as of the bases; prompts and verifications are in no step together."""

    def _running_names(self) -> set[int]:
        return {seq.adapter for seq in self._decoding}

    def _rows_use(self, chunks: list[tuple[Sequence, int]]) -> AdapterUse | None:
        named = [seq.adapter for seq in self._decoding if seq.adapter]
        if not named:
            return None
        copied, read = self.slots.use(named)
        return AdapterUse(len(set(named)), len(named) * self._row_tokens, copied, read)

    def _rows_masked(self) -> int:
        return self._row_tokens * sum(seq.masked for seq in self._decoding)


__all__ = ["DraftedAdaptedPrefillFirstScheduler"]
