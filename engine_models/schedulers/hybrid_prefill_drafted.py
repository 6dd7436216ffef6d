"""The first action that has work, with drafts: the rules of `hybrid_prefill`, where a step of decodes drafts and verifies.

Prompts are computed in steps of their own, by the model and by the drafter, and the decodes pause. A row counts for as many
rows as it verifies tokens, so that with k drafts only a part 1 / (k + 1) of `max_num_sequence` runs. A step of decodes needs
free pages for the drafts of every row, whether they take them or not; what is rejected is given back at once.

Where the number of drafts goes by the rows, all of them may run: fewer drafts are made the more rows there are, and none where
they would be more tokens than `max_num_sequence`.

Rows are counted one by one. Source: behaviour of MLC-LLM 79d603f0 (2026-07: `cpp/serve/engine_actions/batch_draft.cc`,
`batch_verify.cc`, `eagle_batch_verify.cc`, `batch_prefill_base.cc`, `cpp/serve/engine.cc`), read and not recorded.
"""

from __future__ import annotations

from engine_models.memory.forked_pages import ForkedPages
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.hybrid_prefill import HybridPrefillScheduler, HybridRules
from engine_models.schedulers.memory_then_tokens_drafted import VerifiedRows


class VerifiedAtOnce(VerifiedRows):
    """Rows that verify drafts, whose results are known before the next step; what they hold is counted elsewhere."""

    __slots__ = ()

    def length(self, seq: Sequence) -> int:
        """Tokens of a row, the last of which is not in the cache."""
        return seq.length

    def kv_tokens(self) -> int:
        """Sum over the rows of their tokens."""
        return sum(seq.length for seq in self.rows)

    def serve(self, batch: Batch) -> None:
        """As of the base."""
        batch.spans = self.no_spans
        for seq in self.rows:
            self.verify(seq, batch)


class DraftedHybridScheduler(HybridPrefillScheduler):
    """`HybridPrefillScheduler` with `drafts` a row and step.

    Parameters
    ----------
    next_tokens : of a decoding row, that count among those of a step with prompts (0 where the drafter has proposed already).
    lengths : numbers of rows below which so many drafts are made, where the number goes by the rows; then `drafts` is the most.
    """

    def __init__(
        self,
        rules: HybridRules,
        kv: ForkedPages,
        *,
        drafts: int,
        next_tokens: int,
        lengths: tuple[tuple[int, int], ...] = (),
        windows: tuple[int, ...] = (),
    ) -> None:
        super().__init__(rules, kv, aggregate=False, windows=windows)
        self.decodes = self._verified = VerifiedAtOnce(kv.block_tokens, 1 + drafts, windows)
        self.row_pages = -(-drafts // kv.block_tokens)
        self.next_tokens = next_tokens
        self._lengths = lengths

    def _pause(self, number: int) -> None:
        """As of the base: what a row has got is noted when it leaves."""

    def _decode(self, batch: Batch) -> None:
        rows = list(self._verified.rows)
        before = [seq.length - 1 for seq in rows]
        if self._lengths:
            self._verified.row_tokens = 1 + drafts_for(len(rows), self._lengths, self.rules.max_num_sequence)
        self._verified.serve(batch)
        drafts = self._verified.row_tokens - 1
        for seq, tokens in zip(rows, before, strict=True):
            gain = seq.length - 1 - tokens
            self.kv.free_blocks -= self.kv.pages_for(tokens, gain)
            self.accepted_drafts += gain - 1
        if drafts:
            self.verifications += len(rows)
            self.verified_drafts += len(rows) * drafts
        self._end_decodes(batch)

    def _leave_decodes(self, seq: Sequence, last: int) -> None:
        gains = self._verified.gains.pop(seq)
        self._verified.leave(seq)
        for number, gain in gains:
            seq.emit_at_once(number, gain)


def drafts_for(rows: int, lengths: tuple[tuple[int, int], ...], most_tokens: int) -> int:
    """Drafts of each of so many rows: those of the first number that there are fewer than, none where all tokens would be more
    than `most_tokens`.

    >>> drafts_for(9, ((10, 4), (20, 3)), 128), drafts_for(10, ((10, 4), (20, 3)), 128), drafts_for(10, ((10, 4), (20, 3)), 39)
    (4, 3, 0)
    """
    drafts = next((number for below, number in lengths if rows < below), 0)
    return drafts if rows * (drafts + 1) <= most_tokens else 0


__all__ = ["DraftedHybridScheduler", "VerifiedAtOnce", "drafts_for"]
