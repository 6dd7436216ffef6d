"""A decode server that reserves memory before prompts are computed, with drafts: each step verifies the drafts of every row.

A row holds memory ahead of its tokens, as beside SGLang's own prompts (`prefill_first_drafted`). Its first token comes with its
prompt, and what its drafter needs of the prompt too; the first step verifies drafts already. A row that loses its memory keeps
what it has in host memory, but for what it held ahead.

Rows are counted one by one, as there are few (48 unless the flags say otherwise).

Source: `srt/disaggregation/decode.py` and `srt/speculative` of SGLang 0.5.23, compared loop by loop with drawn recordings of its
decode servers.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine_models.memory.radix import RadixPool
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.reserved import ReservingDecodeScheduler, ReservingRules


class DraftedReservingScheduler(ReservingDecodeScheduler):
    """`ReservingDecodeScheduler` with drafts.

    Parameters
    ----------
    row_tokens : tokens of a row that a step verifies, that before the drafts included.
    step_slots : KV slots that a step may write for a row.
    """

    def __init__(
        self,
        rules: ReservingRules,
        kv: RadixPool,
        *,
        row_tokens: int,
        step_slots: int,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        super().__init__(rules, kv, aggregate=False, record_rows=record_rows, windows=windows)
        self._row_tokens, self._ahead = row_tokens, 2 * step_slots
        self._memory: dict[Sequence, int] = {}
        self._verified: list[tuple[Sequence, int]] = []  # by the batch in flight, and what it yields

    def _join_rows(self, seq: Sequence) -> None:
        seq.state = "decoding"
        self._memory[seq] = self.kv.paged(seq.length - 1)

    def _running_tokens(self) -> int:
        return sum(seq.length for seq in self.running if seq.state == "decoding")

    def _held_tokens(self, seq: Sequence) -> int:
        return self._memory.pop(seq)

    def _row_length(self, seq: Sequence) -> int:
        return seq.length

    def _wanted(self, seq: Sequence) -> int:
        return max(self._memory[seq], self.kv.paged(seq.length - 1 + self._ahead))

    def _needed_tokens(self, rows: Iterable[Sequence]) -> int:
        return sum(self._wanted(seq) - self._memory[seq] for seq in rows)

    def _leave(self, seq: Sequence, last: int) -> None:
        seq.state = "running"

    def _decode(self) -> Batch | None:
        """Verify the drafts of every row, after those have lost their memory for which there is no room."""
        kv, tokens = self.kv, self._row_tokens
        if not self.running:
            return None
        batch = Batch(self.next_number)
        batch.spans = self.decodes.no_spans
        if kv.free_tokens < self._needed_tokens(self.running):
            self._retract(batch)
        batch.rows = [] if self._record_rows else None
        self._verified = []
        for seq in self.running:
            wanted = self._wanted(seq)
            kv.free_tokens -= wanted - self._memory[seq]
            self._memory[seq] = wanted
            batch.serve(tokens, seq.length - 1, decodes=True)
            batch.masked_rows += tokens * seq.masked
            if batch.rows is not None:
                batch.rows.append((seq, tokens, seq.length - 1))
            gain = min(1 if seq.acceptance is None else 1 + seq.acceptance(seq.verifications), seq.final_length - seq.length)
            seq.verifications += 1
            seq.length += gain
            self._verified.append((seq, gain))
            if seq.length >= seq.final_length:
                seq.state = "running"
                batch.finishing.append(seq)
        self.next_number += 1
        return batch

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base; rows get what their verification yields."""
        self._note(batch.number)
        return super().settle(batch)

    def _note(self, number: int) -> None:
        for seq, gain in self._verified:
            if seq.state != "finished":  # else its client has gone
                self.verifications += 1
                self.verified_drafts += self._row_tokens - 1
                self.accepted_drafts += gain - 1
                seq.emissions += [number, number] * gain
        self._verified = []

    def close(self) -> None:
        """Note what the batch in flight has given its rows."""
        self._note(self.next_number - 1)

    def run(self) -> Run | None:
        """As of the base: none."""
        return None


__all__ = ["DraftedReservingScheduler"]
