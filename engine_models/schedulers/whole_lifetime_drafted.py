"""Admission for a whole lifetime, with drafts: the rules of `whole_lifetime`, where a step verifies the drafts of every row.

Prompts are not cut: new ones are computed alone while the others pause. A row reserves the drafts of a step beyond its answer.
A step yields as many tokens as are accepted and one more, up to the end of the answer or of the part of it for which memory is
held.

Rows are counted one by one. Source: behaviour of Text Generation Inference 3.3 with `speculate` (`backends/v3/src/queue.rs`,
`server/text_generation_server/models/flash_causal_lm.py` at db931fcf), read and compared with no recording.
"""

from __future__ import annotations

from engine_models.memory.lifetime_pages import LifetimePages
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens_drafted import VerifiedRows
from engine_models.schedulers.whole_lifetime import LifetimeBatch, LifetimeRules, WholeLifetimeScheduler


class VerifiedParts(VerifiedRows):
    """Rows that verify drafts up to where their memory ends, `ends`."""

    def __init__(self, row_tokens: int, windows: tuple[int, ...] = ()) -> None:
        super().__init__(1, row_tokens, windows)
        self.ends: dict[Sequence, int] = {}

    def serve(self, batch: Batch) -> None:
        """As of the base; memory is there."""
        batch.spans = self.no_spans
        for seq in self.rows:
            batch.serve(self.row_tokens, seq.length - 1, decodes=True)
            gain = 1 if seq.acceptance is None else 1 + seq.acceptance(seq.verifications)
            gain = min(gain, self.ends[seq] - seq.length)
            seq.verifications += 1
            seq.length += gain
            self.gains[seq].append((batch.number, gain))


class DraftedLifetimeScheduler(WholeLifetimeScheduler):
    """`WholeLifetimeScheduler` with drafts; `row_tokens` of a row are verified in a step."""

    def __init__(
        self, rules: LifetimeRules, kv: LifetimePages, *, row_tokens: int, windows: tuple[int, ...] = ()
    ) -> None:
        super().__init__(rules, kv, aggregate=False, windows=windows)
        self.decodes = self._verified = VerifiedParts(row_tokens, windows)
        self.spare_tokens = row_tokens - 1

    def _compute_prompts(self, batch: LifetimeBatch) -> None:
        for seq, row in self._prefilling.items():
            self._verified.ends[seq] = min(row.reserved_length, seq.final_length)
        super()._compute_prompts(batch)
        self._part_ends.clear()  # a part ends when it is as long

    def _pause(self, number: int) -> None:
        """As of the base: what a row has got is noted when it leaves."""

    def _end_decodes(self, batch: LifetimeBatch) -> None:
        for seq in [seq for seq in self._verified.rows if seq.length >= self._verified.ends[seq]]:
            self._leave_decodes(seq, batch.number)
            seq.state = "ending"
            (batch.finishing if seq.length >= seq.final_length else batch.renewed).append(seq)
        batch.order_finishing()

    def _leave_decodes(self, seq: Sequence, last: int) -> None:
        gains = self._verified.gains.pop(seq)
        del self._verified.ends[seq]
        self.decodes.leave(seq)
        self.note_verified(seq, gains, self.decodes.row_tokens - 1)


__all__ = ["DraftedLifetimeScheduler", "VerifiedParts"]
