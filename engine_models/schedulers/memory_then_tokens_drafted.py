"""Memory first, then tokens, with drafts: the rules of `memory_then_tokens`, where a step verifies the drafts of every row.

A generating row takes as many tokens of the step's budget as it verifies, and its whole answer is reserved with a step's drafts
beyond it. Blocks of rejected drafts stay with their row. With one step ahead a row that may have ended in the step in flight
is verified once more in vain, unless a single token was left. Under `MAX_UTILIZATION` a row asks for the blocks of the tokens
that its next step verifies, and all that the step in flight yields to a row that is paused comes after that (inferred from the
one token that comes without drafts).

Rows are counted one by one.

Source: TensorRT-LLM's documentation of speculative decoding and the rules of the base, 2026-11; compared with no recording.
"""

from __future__ import annotations

from engine_models.memory.block_tree import BlockTree
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import (
    ActiveRow,
    TwoPassBatch,
    TwoPassRules,
    TwoPassScheduler,
)


class VerifiedRows(DecodeSet):
    """Rows that verify drafts in every step; their lengths are as after the steps so far, known to the engine or not."""

    __slots__ = ("gains", "rows")

    def __init__(self, block_tokens: int, row_tokens: int, windows: tuple[int, ...] = ()) -> None:
        super().__init__(block_tokens, windows)
        self.row_tokens = row_tokens
        self.rows: dict[Sequence, None] = {}
        self.gains: dict[Sequence, list[tuple[int, int]]] = {}  # batch and tokens of each verification since the row joined

    def join(self, seq: Sequence) -> None:
        """Add a row."""
        seq.state = "decoding"
        self.count += 1
        self.rows[seq] = None
        self.gains[seq] = []

    def leave(self, seq: Sequence) -> None:
        """Remove a row."""
        self.count -= 1
        del self.rows[seq]
        seq.computed = seq.length - 1
        seq.state = "running"

    def length(self, seq: Sequence) -> int:
        """As of the base: the last of them that is verified."""
        return seq.length - 1 + self.row_tokens

    def _needed(self, seq: Sequence) -> int:
        return max(0, -(-self.length(seq) // self.block_tokens) - len(seq.blocks) - seq.extra_blocks)

    def visit(self, seq: Sequence) -> int:
        """As of the base."""
        return self._needed(seq)

    def blocks_needed(self) -> int:
        """As of the base."""
        return sum(map(self._needed, self.rows))

    def serve(self, batch: Batch) -> None:
        """Enter the next step of all rows in a batch, with the blocks that they take and what they get."""
        batch.spans = self.no_spans
        for seq in self.rows:
            seq.extra_blocks += self._needed(seq)
            self.verify(seq, batch)

    def verify(self, seq: Sequence, batch: Batch) -> None:
        """Enter the next step of one row, and note what it gets."""
        batch.serve(self.row_tokens, seq.length - 1, decodes=True)
        batch.masked_rows += self.row_tokens * seq.masked
        gain = 1 if seq.acceptance is None else 1 + seq.acceptance(seq.verifications)
        gain = min(gain, self.row_tokens, seq.final_length - seq.length)  # none where it has ended in flight
        seq.verifications += 1
        seq.length += gain
        self.gains[seq].append((batch.number, gain))

    def pop_ended(self) -> list[Sequence]:
        """As of the base."""
        return [seq for seq in self.rows if seq.length >= seq.final_length]


class DraftedTwoPassScheduler(TwoPassScheduler):
    """`TwoPassScheduler` with drafts; `row_tokens` of a row are verified in a step."""

    def __init__(self, rules: TwoPassRules, kv: BlockTree, *, row_tokens: int, windows: tuple[int, ...] = ()) -> None:
        super().__init__(rules, kv, aggregate=False, windows=windows)
        self.decodes = self._verified = VerifiedRows(kv.block_tokens, row_tokens, windows)
        self.spare_tokens = row_tokens - 1
        self._coming: dict[Sequence, int] = {}  # tokens that the step in flight yields to rows that verify no more

    def _compute_prompts(self, batch: TwoPassBatch, contexts: list[Sequence]) -> None:
        super()._compute_prompts(batch, contexts)
        batch.masked_rows += sum(seq.masked for seq, _, done in batch.contexts if done)

    def _join_decodes(self, seq: Sequence) -> None:
        row = self.active[seq]
        row.since = self.next_number + 1
        seq.length -= row.late
        seq.final_length -= row.late
        self.decodes.join(seq)

    def _leave_decodes(self, seq: Sequence) -> None:
        row, gains = self.active[seq], self._verified.gains.pop(seq)
        self._wasting.discard(seq)
        self.decodes.leave(seq)
        seq.length += row.late
        seq.final_length += row.late
        self._coming[seq] = sum(gain for number, gain in gains if number > self.processed_number)
        self.note_verified(seq, gains, self.decodes.row_tokens - 1)

    def _late(self, seq: Sequence, row: ActiveRow) -> int:
        return self._coming.pop(seq, 0) + super()._late(seq, row)

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base."""
        self._coming.clear()
        return super().settle(batch)

    def _certain(self, seq: Sequence, row: ActiveRow) -> bool:
        """Whether it is known beforehand that a row ends: a token was left before its last verification."""
        return super()._certain(seq, row) and self._verified.gains[seq][-1][1] == 1


__all__ = ["DraftedTwoPassScheduler", "VerifiedRows"]
