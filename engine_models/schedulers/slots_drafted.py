"""A fixed number of slots, with drafts: the rules of `slots`, where an iteration verifies the drafts of every generating slot.

Before its batch is formed a second model drafts for all generating slots together, in passes of one token a slot: the token that
was sampled last, then what it has just proposed. The batch then has that token and the drafts of each slot, and prompts behind
them as before; the drafter computes the whole batch once more after the model, its own cache having been cut back, and a slot
yields the drafts that were accepted and a token of the model's own. What was rejected leaves the cache at once.

A slot drafts no more than its context and the client's limit leave room for, nothing where that is less than `n_min`, and the
iteration in which its prompt ends yields one token. Drafts are verified in one call: where a pool without room has its batch
halved and a call holds a part of them, all that runs fails.

Rows are counted one by one. Tokens that are accepted behind the end of an answer are not kept, and a slot whose context is full
yields all that was accepted (the server: the first of it).

Source: llama.cpp at 0c1e57098 (2026: `tools/server/server-context.cpp` lines 452, 2940 to 3073, 3725, 3773 and 3878,
`common/speculative.cpp` lines 245 to 445 and 1565 to 1730), read and compared with no recording.
"""

from __future__ import annotations

from engine_models.memory.whole_prompts import WholePrompts
from engine_models.parts.batch import Batch
from engine_models.schedulers.slots import Entry, Slot, SlotBatch, SlotRow, SlotRules, SlotScheduler, padded
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class DraftRules:
    """How slots draft.

    n_max : drafts of a slot and iteration.
    n_min : fewer are dropped.
    passes_whole : whether all `n_max` passes are made where fewer drafts are kept.
    """

    n_max: int
    n_min: int = 0
    passes_whole: bool = False


class DraftedSlotScheduler(SlotScheduler):
    """`SlotScheduler` with drafts."""

    def __init__(
        self,
        rules: SlotRules,
        prompts: WholePrompts | None = None,
        *,
        drafts: DraftRules,
        aggregate: bool = False,
        record_rows: bool = False,
    ) -> None:
        if aggregate:
            raise ValueError("rows with drafts are counted one by one")
        super().__init__(rules, prompts, aggregate=False, record_rows=record_rows)
        self._drafts = drafts
        self._drafted: dict[SlotRow, int] = {}  # of the iteration being formed
        self._drafts_end = 0  # tokens of it up to the last draft

    def _fill(self, batch: SlotBatch) -> list[Entry]:
        """As of the base, after the drafter's passes."""
        self._drafted = {}
        drafting = [
            (slot, most)
            for slot in self.slots
            if slot.row is not None and slot.row.phase == "generates" and not slot.row.ended
            and (most := self._room(slot, slot.row)) > 0
        ]
        n_max = self._drafts.n_max
        for number in range(n_max if drafting else 0):
            made = [slot for slot, most in drafting if number < most or self._drafts.passes_whole]
            if made:
                batch.passes.append(self._pass_of(batch, made, number))
        for slot, most in drafting:
            drafts = min(most, n_max)
            if slot.row is not None and drafts >= self._drafts.n_min:
                self._drafted[slot.row] = drafts
        entries = super()._fill(batch)
        self._drafts_end = at = 0
        for entry in entries:
            at += entry.tokens
            if entry.row in self._drafted:
                self._drafts_end = at
        return entries

    def _room(self, slot: Slot, row: SlotRow) -> int:
        """Drafts that the context and the client's limit leave room for."""
        most = self.rules.slot_tokens - slot.tokens - 2
        left = row.seq.limit_tokens - row.got
        return min(most, left - 1) if left > 0 else most

    def _pass_of(self, batch: SlotBatch, slots: list[Slot], number: int) -> list[Batch]:
        """One pass of the drafter, a token of each slot after `number` others, as the sub-batches in which it is computed."""
        view = [Entry(slot, slot.row, 1, slot.tokens + number, True, False) for slot in slots if slot.row is not None]
        parts = []
        for entries in self._parts(view):
            part = Batch(batch.number)
            longest = 0
            for entry in entries:
                part.serve(1, entry.first, decodes=True)
                longest = max(longest, entry.slot.cells + number + 1)
            cells = self._cells + (number + 1) * len(view) if self.rules.pool_cells else longest
            part.pool_cells = padded(cells)
            parts.append(part)
        return parts

    def _row_tokens(self, row: SlotRow) -> int:
        return 1 + self._drafted.get(row, 0)

    def _cuts_drafts(self, computed: int) -> bool:
        return computed < self._drafts_end

    def _give(self, slot: Slot, row: SlotRow, batch: SlotBatch) -> None:
        seq, drafts, gain = row.seq, self._drafted.get(row, 0), 1
        if drafts:
            accepted = 0 if seq.acceptance is None else seq.acceptance(seq.verifications)
            gain = min(1 + accepted, 1 + drafts, row.tokens - row.got)
            seq.verifications += 1
            self.verifications += 1
            self.verified_drafts += drafts
            self.accepted_drafts += gain - 1
            rejected = 1 + drafts - gain
            slot.tokens -= rejected
            slot.cells -= rejected
            self._cells -= rejected
            batch.tokens_beyond += gain - 1
        row.got += gain
        seq.emit_at_once(batch.number, gain)

    def _note_tokens(self, row: SlotRow) -> None:
        """As of the base: they were noted as they came."""


__all__ = ["DraftRules", "DraftedSlotScheduler"]
