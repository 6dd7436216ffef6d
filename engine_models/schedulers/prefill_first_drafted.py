"""Prefill before decode with drafts: the rules of `prefill_first`, where a decode step verifies the drafts of every row.

A row holds memory ahead of its tokens: before each step, up to twice what a step may write beyond the tokens that the scheduler
knows of. Under overlap scheduling it does not know what the step in flight yields, but at least a token a row: a row that
thereby reaches its limit is left out, one that may have ended is verified once more in vain.

Rows are counted one by one, as there are few (48 unless the flags say otherwise).

Source: SGLang 0.5.23, whose drafts of all kinds are scheduled so (`speculative/eagle_utils.py`, `mem_cache/allocation_sizing.py`,
`managers/schedule_batch.py`, `managers/scheduler.py`), compared with no recording. That a found prefix ends a token earlier, as
drafters' keys are pairs of tokens, is left out.
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.radix import RadixPool
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch, PrefillFirstRules, PrefillFirstScheduler

Verified = tuple[Sequence, int, int]
"""A row that a batch verifies, the tokens that this yields, and how often it had lost its memory by then."""


class DraftedPrefillFirstScheduler(PrefillFirstScheduler):
    """`PrefillFirstScheduler` with drafts.

    Parameters
    ----------
    row_tokens : tokens of a row that a step verifies, that before the drafts included.
    step_slots : KV slots that a step may write for a row.
    """

    def __init__(
        self,
        rules: PrefillFirstRules,
        kv: RadixPool,
        *,
        row_tokens: int,
        step_slots: int,
        **others: Any,
    ) -> None:
        super().__init__(rules, kv, **{**others, "aggregate": False})
        self._row_tokens = row_tokens
        self._reserve = 2 * step_slots
        self._held: dict[Sequence, int] = {}  # tokens of the pages of rows that decode
        self._unknown: dict[Sequence, int] = {}  # tokens that steps in flight yield, of rows with any
        self._in_flight: list[tuple[int, list[Verified]]] = []  # what was verified, by batch

    # -- what the scheduler knows ---------------------------------------------------------------------------

    def _outputs(self, seq: Sequence) -> int:
        """As of the base."""
        outputs = seq.length - seq.prompt_tokens - self._unknown.get(seq, 0)
        return outputs - 1 if seq.group_state.last > self.processed_number else outputs

    def _reserved(self) -> float:
        """As of the base."""
        return sum(self._future(seq) for seq in self._decoding)

    def _known_kv_tokens(self, seq: Sequence) -> int:
        """Tokens with keys and values of a row, as far as their number is known."""
        return seq.length - 1 - self._unknown.get(seq, 0)

    def _held_tokens(self, seq: Sequence) -> int:
        """As of the base."""
        return self._held.get(seq) or self.kv.paged(seq.computed)

    def _wanted_tokens(self, seq: Sequence) -> int:
        return max(self._held[seq], self.kv.paged(self._known_kv_tokens(seq) + self._reserve))

    def _tokens_needed(self) -> int:
        """As of the base."""
        return sum(self._wanted_tokens(seq) - self._held[seq] for seq in self._decoding)

    # -- decoding -------------------------------------------------------------------------------------------

    def _join_decodes(self, seq: Sequence) -> None:
        """As of the base."""
        self._held[seq] = self.kv.paged(seq.computed)

    def _drop_ending(self) -> None:
        """Take rows whose last token is certainly in flight out of the running batch."""
        super()._drop_ending()
        for seq in [seq for seq in self._decoding if seq in self._unknown and seq.stop_known]:
            if self._outputs(seq) + 1 >= seq.final_length - seq.prompt_tokens:
                del self._decoding[seq]
                self.batch_is_full = False

    def _decode_all(self, batch: PrefillFirstBatch) -> None:
        """Verify the drafts of every row of the running batch."""
        kv, tokens = self.kv, self._row_tokens
        verified: list[Verified] = []
        batch.spans = self.decodes.no_spans
        for seq in self._decoding:
            wanted = self._wanted_tokens(seq)
            kv.free_tokens -= wanted - self._held[seq]
            self._held[seq] = wanted
            prior = seq.length - 1
            batch.serve(tokens, prior, decodes=True)
            if batch.rows is not None:
                batch.rows.append((seq, tokens, prior))
            gain = 1 if seq.acceptance is None else 1 + seq.acceptance(seq.verifications)
            gain = min(gain, seq.final_length - seq.length)  # none where it has ended in flight
            seq.verifications += 1
            seq.length += gain
            seq.computed = seq.length - 1
            if self._overlap:
                self._unknown[seq] = self._unknown.get(seq, 0) + gain
            verified.append((seq, gain, seq.preemptions))
        self._in_flight.append((batch.number, verified))

    def _take_memory(self, seq: Sequence, remaining: int) -> None:
        """As of the base; what is in flight comes to nothing."""
        seq.length -= self._unknown.pop(seq, 0)
        super()._take_memory(seq, remaining)
        self._held.pop(seq, None)

    # -- results --------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base; rows get what their verification yields."""
        if self._in_flight and self._in_flight[0][0] == batch.number:
            for seq, gain, preemptions in self._in_flight.pop(0)[1]:
                if seq.state == "finished" or seq.preemptions != preemptions:
                    continue
                self._note(seq, gain, batch.number)
                if seq.length - self._unknown.get(seq, 0) >= seq.final_length:
                    batch.finishing.append(seq)
        return super().settle(batch)

    def _note(self, seq: Sequence, gain: int, number: int) -> None:
        """Note that a batch has given a row `gain` tokens."""
        self.note_verified(seq, [(number, gain)], self._row_tokens - 1)
        unknown = self._unknown.pop(seq, 0) - gain
        if unknown > 0:
            self._unknown[seq] = unknown

    def _kept_tokens(self, seq: Sequence) -> int:
        """As of the base, but for the last one (assumed)."""
        return min(seq.computed, seq.final_length - 1)

    def _finish(self, seq: Sequence) -> None:
        """As of the base."""
        super()._finish(seq)
        self._held.pop(seq, None)
        self._unknown.pop(seq, None)

    def close(self) -> None:
        """Note what the batches in flight have given their rows."""
        for number, verified in self._in_flight:
            for seq, gain, preemptions in verified:
                if seq.state != "finished" and seq.preemptions == preemptions and gain:
                    self._note(seq, gain, number)


__all__ = ["DraftedPrefillFirstScheduler"]
