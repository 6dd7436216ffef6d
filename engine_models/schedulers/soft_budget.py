"""Rows in order of arrival with all that they have to compute, until a soft budget of tokens is reached.

Every step walks the rows that are in, in order of arrival: of one whose prompt is new it takes the whole prompt, of others one
token. The walk ends behind the row with which it reaches the budget: a long prompt is taken whole, and those behind it wait a
step. Each row has a cache of its own for a whole context, set aside when the engine starts: whoever finds a free one is in,
memory decides nothing.

Source: behaviour of Inferflow 14ff95e (2024-03: `src/transformer/query_state_table.cc`, `inference_engine.cc`), read and not
recorded; see docs/engines/inferflow.md.
"""

from __future__ import annotations

from collections import deque

from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class SoftBudgetRules:
    """What such a scheduler may do.

    Attributes
    ----------
    rows : rows with a cache.
    step_tokens : a step in which so many tokens are reached takes no further row.
    """

    rows: int
    step_tokens: int


class SoftBudgetScheduler(Scheduler):
    """Waiting and running requests of one rank, and the rule that forms the next step. Its executor is synchronous.

    Parameters
    ----------
    rules : the knobs.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names.
    """

    def __init__(
        self,
        rules: SoftBudgetRules,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.decodes = DecodeSet(1, windows)
        self._waiting: deque[Sequence] = deque()  # outside
        self._new: deque[Sequence] = deque()  # inside, their prompt to be computed
        self._inside: dict[Sequence, None] = {}  # in order of arrival
        self._orders = 0
        self._shape = Batch(-1)

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        self._waiting.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._inside or self._waiting)

    def state(self) -> State:
        """Requests, and caches."""
        inside = len(self._inside)
        return inside, len(self._waiting), inside, self.rules.rows

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for seq in self._inside:
            if seq.state == "decoding":
                self._leave_decodes(seq, self.next_number - 1)

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base."""
        if seq.state == "ending":
            return False
        if seq.state == "decoding":
            self._leave_decodes(seq, self.next_number - 1)
        if seq in self._inside:
            del self._inside[seq]
        if seq in self._new:
            self._new.remove(seq)
        if seq in self._waiting:
            self._waiting.remove(seq)
        seq.state = "finished"
        return True

    def schedule(self, now_s: float) -> Batch | None:
        """Form the next step; None if there is nothing to run."""
        while self._waiting and len(self._inside) < self.rules.rows:
            seq = self._waiting.popleft()
            seq.order = self._orders
            self._orders += 1
            self._inside[seq] = None
            self._new.append(seq)
        if not self._inside:
            return None
        batch, decodes = Batch(self.next_number), self.decodes
        if self.record_rows:
            batch.rows = [(seq, 1, decodes.length(seq) - 1) for seq in self._inside if seq.state == "decoding"]
        batch.spans = decodes.no_spans
        if decodes.count:  # they came before all whose prompt is new, and are fewer than the budget
            decodes.serve(batch)
            decodes.steps += 1
            self._end_decodes(batch)
        while self._new and batch.tokens < self.rules.step_tokens:
            self._compute(batch, self._new.popleft(), now_s)
        self.next_number += 1
        return batch

    def _compute(self, batch: Batch, seq: Sequence, now_s: float) -> None:
        number = batch.number
        if batch.rows is not None:
            batch.rows.append((seq, seq.prompt_tokens, 0))
        batch.serve(seq.prompt_tokens, 0, decodes=False)
        seq.first_scheduled_s = now_s
        self.queried_tokens += seq.prompt_tokens
        seq.emit(number, number)
        seq.length += 1
        if seq.length >= seq.final_length:
            seq.state = "ending"
            batch.finishing.append(seq)
        else:
            seq.emit(number + 1, number)
            self.decodes.join(seq)

    def _end_decodes(self, batch: Batch) -> None:
        for seq in self.decodes.pop_ended():
            if seq.state == "decoding":
                self._leave_decodes(seq, batch.number)
                seq.state = "ending"
                batch.finishing.append(seq)
        batch.order_finishing()

    def _leave_decodes(self, seq: Sequence, last: int) -> None:
        self.decodes.leave(seq)
        seq.end_emissions(last)

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch."""
        self.processed_number = batch.number
        for seq in batch.finishing:
            del self._inside[seq]
            seq.state = "finished"
        return batch.finishing

    def run(self) -> Run | None:
        """Steps in which all who are in decode, and nobody comes in."""
        decodes, full = self.decodes, len(self._inside) == self.rules.rows
        if not self.aggregate or not decodes.count or decodes.count < len(self._inside) or (self._waiting and not full):
            return None
        steps = decodes.steps_alike()
        if steps < 2:
            return None
        decodes.serve(self._shape)
        return Run(steps, self._shape, deaf=full)

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Schedule `steps` decode steps at once."""
        decodes, inside = self.decodes, len(self._inside)
        self.next_number += steps
        batch = Batch(self.next_number - 1)
        self.processed_number = batch.number - 1
        decodes.serve(batch)
        decodes.steps += steps
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        self._end_decodes(batch)
        return batch, inside * steps, inside
