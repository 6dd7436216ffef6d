"""Prompts and decodes in turns, with drafts: the rules of `alternating`, where a step verifies the drafts of every row.

A step of prompts yields a token a row, and its first drafts; a step of decodes as many tokens as it accepts, and one more. With
k drafts a decode needs blocks for 2 k + 1 tokens beyond those that it is known to have, its drafts among them; it takes them as
many times further ahead as a step may yield tokens. The step in flight may have yielded any number: what it did is known one
step later. A row that has ended in it is verified once more for nothing; of a preempted row what is in flight is lost.

The block before the last of a prompt is computed again where the trie has it: the drafter needs hidden states beside keys.

Rows are counted one by one. Source: behaviour of LMDeploy 0.18 (`lmdeploy/pytorch/strategies/ar_spec/engine.py`, `sequence.py`,
`engine/inputs_maker.py`, `paging/scheduler.py`, `messages.py` at 1263d5cd), read and compared with no recording.
"""

from __future__ import annotations

from itertools import chain

from engine_models.memory.block_trie import TrieBlocks
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.alternating import AlternatingRules, AlternatingScheduler, Row
from engine_models.schedulers.memory_then_tokens_drafted import VerifiedRows


class RowsInFlight(VerifiedRows):
    """Rows that verify drafts; their blocks are held elsewhere."""

    __slots__ = ()

    def serve(self, batch: Batch) -> None:
        """As of the base; memory is there."""
        batch.spans = self.no_spans
        for seq in self.rows:
            self.verify(seq, batch)

    def leave(self, seq: Sequence) -> None:
        """As of the base."""
        super().leave(seq)
        del self.gains[seq]

    def pop_ended(self) -> list[Sequence]:
        """Rows that got their last token with the step just formed."""
        return [seq for seq in self.rows if seq.length >= seq.final_length and self.gains[seq][-1][1]]


class DraftedAlternatingScheduler(AlternatingScheduler):
    """`AlternatingScheduler` with `drafts` a row and step."""

    def __init__(self, rules: AlternatingRules, kv: TrieBlocks, *, drafts: int, windows: tuple[int, ...] = ()) -> None:
        super().__init__(rules, kv, aggregate=False, windows=windows)
        self.decodes = self._verified = RowsInFlight(kv.block_tokens, 1 + drafts, windows)
        self._drafts = drafts
        self.ahead_tokens = rules.prefill_interval * (1 + drafts)
        self.recomputed_tokens = kv.block_tokens

    def _join(self, row: Row) -> None:
        """As of the base; its blocks are looked at before every step."""
        seq = row.seq
        row.place = seq.order = self._places
        self._places += 1
        seq.length = row.tokens + 1
        self._verified.join(seq)
        self._decoding[row] = None

    def _hold_memory(self, now_s: float) -> None:
        """As of the base."""
        size = self.kv.block_tokens
        for row in reversed(list(self._decoding)):
            known, born = self._known(row)
            drafts = self._drafts if born else 0
            row.tokens = known
            if known + drafts + 2 * self._drafts + 1 <= row.held.count * size:
                continue
            row.computed = known - 1 if born else row.computed
            wanted = known + drafts + self.ahead_tokens
            if self._reclaim(row, wanted, now_s, chain(self._stopped, self._waiting)):
                self._take(row, wanted, known, now_s)
            else:
                self._preempt(row)

    def _known(self, row: Row) -> tuple[int, bool]:
        """Tokens that a decode is known to have, and whether the first of its answer is among them."""
        unknown = sum(gain for number, gain in self._verified.gains[row.seq] if number > self.processed_number)
        born = row.born <= self.processed_number
        return row.seq.length - unknown - (not born), born

    def _drop_token(self, row: Row) -> None:
        """As of the base: all that is in flight."""
        seq, flying = row.seq, self._flying()
        row.seq.length, born = self._known(row)
        gains = self._verified.gains[seq]
        gains[:] = [each for each in gains if each[0] <= self.processed_number]
        if flying is not None and seq in flying.finishing:
            flying.finishing.remove(seq)
        if born:
            self._note_answer(row, self.processed_number)

    def _note_answer(self, row: Row, last: int) -> None:
        """As of the base."""
        self.note_verified(row.seq, self._verified.gains[row.seq], self._drafts)
        self._verified.gains[row.seq] = []


__all__ = ["DraftedAlternatingScheduler", "RowsInFlight"]
