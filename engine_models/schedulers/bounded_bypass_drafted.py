"""Pages for a whole lifetime and bounded passing over, with drafts: the rules of `bounded_bypass`, rows verifying drafts.

The last call of an iteration drafts for all rows whose prompt is done, a token of each row a pass and one pass more for the keys
and values of the last draft, then verifies the drafts of all rows at once. Each gets what was accepted and a token of the model's
own; what was rejected is taken off its pages. Prompts are computed by both models, chunk by chunk.

Rows are counted one by one. Source: behaviour of ExLlamaV2 0.3.2 (`exllamav2/generator/dynamic.py` lines 987 to 991, 1061 to
1135, 1252 to 1283 and 2456), read and compared with no recording.
"""

from __future__ import annotations

from engine_models.memory.chained_pages import PAGE_TOKENS, ChainedPages
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.bounded_bypass import BypassBatch, BypassJob, BypassRules, BypassScheduler
from engine_models.schedulers.hybrid_prefill_drafted import VerifiedAtOnce


class DraftedBypassScheduler(BypassScheduler):
    """`BypassScheduler` with `drafts` a row and iteration."""

    def __init__(
        self,
        rules: BypassRules,
        kv: ChainedPages,
        *,
        drafts: int,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        super().__init__(rules, kv, aggregate=False, record_rows=record_rows, windows=windows)
        self.decodes = self._verified = VerifiedAtOnce(1, 1 + drafts, windows)
        self._drafts = drafts

    def _generate(self, batch: BypassBatch) -> list[Sequence]:
        """As of the base; rows get as many tokens as they may."""
        verified = self._verified
        before = {seq: seq.length - 1 for seq in verified.rows}
        verified.serve(batch)
        verified.steps += 1
        for seq, tokens in sorted(before.items(), key=lambda item: item[0].order):
            gain = seq.length - 1 - tokens
            seq.emit_at_once(batch.number, gain)
            self.verifications += 1
            self.verified_drafts += self._drafts
            self.accepted_drafts += gain - 1
            if self.rules.paged:
                self._complete(self._active[seq], tokens, seq.length - 1)
        ended = verified.pop_ended()
        for seq in ended:
            self._leave(self._active[seq])
            seq.state = "ending"
        ended.sort(key=lambda seq: seq.order)
        return ended

    def _complete(self, job: BypassJob, before: int, tokens: int) -> None:
        """Name the pages that a row has filled."""
        for number in range(before // PAGE_TOKENS, tokens // PAGE_TOKENS):
            self.kv.complete(job.pages, number, job.content)
            self._nobody_fits = False

    def _leave(self, job: BypassJob) -> None:
        super()._leave(job)
        del self._verified.gains[job.seq]

    def _note_page(self, job: BypassJob) -> None:
        """As of the base: pages are looked at after every iteration."""

    def _note_tokens(self, job: BypassJob) -> None:
        """As of the base: they were noted as they came."""


__all__ = ["DraftedBypassScheduler"]
