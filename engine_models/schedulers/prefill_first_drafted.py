"""Prefill before decode with drafts: the rules of `prefill_first`, where a decode step verifies the drafts of every row.

A row holds memory ahead of its tokens: before each step, up to twice what a step may write beyond the tokens that the scheduler
knows of. Under overlap scheduling it does not know what the step in flight yields, but at least a token a row: a row that
thereby reaches its limit is left out, one that may have ended is verified once more in vain.

Rows are counted one by one, as there are few (48 unless the flags say otherwise).

What is found of a prompt is a token shorter where the tree's keys are pairs of tokens (`RadixPool.pairs`).

Source: SGLang 0.5.23, whose drafts of all kinds are scheduled so (`speculative/eagle_utils.py`, `mem_cache/allocation_sizing.py`,
`managers/schedule_batch.py`, `managers/scheduler.py`), compared step by step with recordings of its scheduler
(`benchmarks/record_sglang_drafts.py`).
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.radix import RadixPool
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch, PrefillFirstRules, PrefillFirstScheduler

Verified = tuple[Sequence, int, int, int]
"""A verified row, the tokens that this yields, those accepted beyond its last, and how often it had lost its memory by then."""


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
        self._held: dict[Sequence, int] = {}  # tokens that rows have places for, in whole pages once they have decoded
        self._beyond: dict[Sequence, int] = {}  # tokens accepted beyond a row's last, as far as scheduled
        self._past: dict[Sequence, int] = {}  # those of the step that ended a row
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
        return self.kv.paged(self._held.get(seq) or seq.computed)

    def _wanted_tokens(self, seq: Sequence) -> int:
        return max(self._held[seq], self.kv.paged(self._known_kv_tokens(seq) + self._reserve))

    def _tokens_needed(self) -> int:
        """As of the base."""
        return sum(self._wanted_tokens(seq) - self.kv.paged(self._held[seq]) for seq in self._decoding)

    # -- decoding -------------------------------------------------------------------------------------------

    def _join_decodes(self, seq: Sequence) -> None:
        """As of the base."""
        self._held[seq] = seq.computed

    def _last_served(self, seq: Sequence) -> int:
        """As of the base."""
        for number, verified in reversed(self._in_flight):
            if any(row is seq for row, *_ in verified):
                return number
        return super()._last_served(seq)

    def _end_in_flight(self, seq: Sequence, number: int) -> None:
        """As of the base; what the batch yields is counted by `_unknown`."""
        last = seq.group_state.last
        super()._end_in_flight(seq, number)
        seq.group_state.last = last

    def _drop_ending(self) -> None:
        """Take rows whose last token is certainly in flight out of the running batch."""
        super()._drop_ending()
        for seq in [seq for seq in self._decoding if seq in self._unknown]:
            if self._outputs(seq) + 1 >= seq.group_state.max_new:
                del self._decoding[seq]
                self.batch_is_full = False

    def _decode_all(self, batch: PrefillFirstBatch) -> None:
        """Verify the drafts of every row of the running batch."""
        kv, tokens = self.kv, self._row_tokens
        verified: list[Verified] = []
        batch.spans = self.decodes.no_spans
        asked = sum(self._wanted_tokens(seq) - self._held[seq] for seq in self._decoding)
        if asked and kv.page_tokens > 1:
            kv.make_room(asked + len(self._decoding) * kv.page_tokens)  # the allocator makes room for a new page a row
        for seq in self._decoding:
            wanted = self._wanted_tokens(seq)
            kv.free_tokens -= wanted - kv.paged(self._held[seq])
            self._held[seq] = wanted
            prior = seq.length - 1 + self._beyond.get(seq, 0)
            batch.serve(tokens, prior, decodes=True)
            if batch.rows is not None:
                batch.rows.append((seq, tokens, prior))
            gain = 1 if seq.acceptance is None else 1 + seq.acceptance(seq.verifications)
            past = max(0, gain - (seq.final_length - seq.length))  # all of them where it has ended in flight
            if past:
                self._beyond[seq] = self._beyond.get(seq, 0) + past
                gain -= past
            seq.verifications += 1
            seq.length += gain
            seq.computed = seq.length - 1
            if self._overlap:
                self._unknown[seq] = self._unknown.get(seq, 0) + gain
            verified.append((seq, gain, past, seq.preemptions))
        self._in_flight.append((batch.number, verified))

    def _take_memory(self, seq: Sequence, remaining: int) -> None:
        """As of the base; what is in flight comes to nothing."""
        seq.length -= self._unknown.pop(seq, 0)
        super()._take_memory(seq, remaining)
        self._held.pop(seq, None)
        self._beyond.pop(seq, None)

    # -- results --------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base; rows get what their verification yields."""
        if self._in_flight and self._in_flight[0][0] == batch.number:
            ended = []
            for seq, gain, past, preemptions in self._in_flight.pop(0)[1]:
                if seq.state == "finished" or seq.preemptions != preemptions:
                    continue
                self._note(seq, gain, batch.number)
                if seq.length - self._unknown.get(seq, 0) >= seq.final_length:
                    self._past[seq] = past
                    ended.append(seq)
            batch.finishing = [seq for seq in batch.finishing if seq not in self._past] + ended
        return super().settle(batch)

    def _note(self, seq: Sequence, gain: int, number: int) -> None:
        """Note that a batch has given a row `gain` tokens."""
        self.note_verified(seq, [(number, gain)], self._row_tokens - 1)
        unknown = self._unknown.pop(seq, 0) - gain
        if unknown > 0:
            self._unknown[seq] = unknown

    def _kept_tokens(self, seq: Sequence) -> int:
        """As of the base: the last if a draft behind it was accepted; all that were accepted if the client has left."""
        most = seq.group_state.content.length + self.kv.pairs if seq in self._left else seq.final_length
        return min(seq.computed + self._past.get(seq, 0), most)

    def _finish(self, seq: Sequence) -> None:
        """As of the base."""
        super()._finish(seq)
        for notes in (self._held, self._unknown, self._beyond, self._past):
            notes.pop(seq, None)

    def close(self) -> None:
        """Note what the batches in flight have given their rows."""
        for number, verified in self._in_flight:
            for seq, gain, _, preemptions in verified:
                if seq.state != "finished" and seq.preemptions == preemptions and gain:
                    self._note(seq, gain, number)


__all__ = ["DraftedPrefillFirstScheduler"]
