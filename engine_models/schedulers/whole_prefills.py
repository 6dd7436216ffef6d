"""Whole prompts first, decodes only where no prompt can be begun: the default scheduler of vLLM's V0 engine.

A step is a prefill of waiting requests, in order of arrival, each with its whole prompt, while their tokens fit the budget, their
blocks leave a margin free, and rows are left: the running rows pause. If nobody can be taken, all running rows decode, in order.
A row is served while any block is free, whether it needs one or not; if none is, the last row that was not served yet gives its
blocks back and goes to the front of the queue, to compute its prompt and its answer so far as one prompt again. The executor is
synchronous.

Source: behaviour of vLLM 0.6.3 (`vllm/core/scheduler.py`: `_schedule_default`, `_schedule_prefills`, `_schedule_running`;
`core/block_manager_v2.py`), read and not recorded; see docs/engines/vllm.md.
"""

from __future__ import annotations

from collections import deque

from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class WholePrefillRules:
    """What such a scheduler may do. Names of knobs are those of vLLM.

    Attributes
    ----------
    max_num_batched_tokens : tokens of the prompts of a step.
    max_num_seqs : rows that may run at once.
    watermark : share of the blocks that a prompt leaves free when it is begun.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    watermark: float = 0.01


class WholePrefillScheduler(Scheduler):
    """Waiting and running requests of one rank, their blocks, and the rule that forms the next step.

    Parameters
    ----------
    rules : the knobs.
    blocks, block_tokens : of the KV cache.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names.
    """

    def __init__(
        self,
        rules: WholePrefillRules,
        blocks: int,
        block_tokens: int,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.capacity_blocks = self.free_blocks = blocks
        self.margin_blocks = int(rules.watermark * blocks)
        self.block_tokens = block_tokens
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.decodes = DecodeSet(block_tokens, windows)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}  # in order of admission, but for rows whose last token is in flight
        self._pauses: list[int] = []  # batches of prompts
        self._orders = 0
        self._ending = 0  # rows whose last token is in flight
        self._shape = Batch(-1)

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        self._waiting.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits, runs or ends."""
        return bool(self._running or self._waiting or self._ending)

    def state(self) -> State:
        """Requests, and blocks."""
        held = self.capacity_blocks - self.free_blocks
        return len(self._running) + self._ending, len(self._waiting), held, self.capacity_blocks

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for seq in list(self._running):
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
            self.free_blocks += self._held(seq.computed)
        else:
            self._waiting.remove(seq)
        seq.state = "finished"
        return True

    def _held(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    # -- the choice -----------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        """Form the next step; None if there is nothing to run."""
        batch = Batch(self.next_number)
        if self.record_rows:
            batch.rows = []
        batch.spans = self.decodes.no_spans
        batch.free_blocks = self.free_blocks
        while self._fits(batch.tokens):
            self._compute(batch, self._waiting.popleft(), now_s)
        if batch.tokens:
            self._pauses.append(batch.number)
        else:
            self._decode(batch)
        if batch.tokens:
            self.next_number += 1
        return batch if batch.tokens or batch.preempted else None

    def _fits(self, tokens: int) -> bool:
        """Whether the first who waits can be begun beside `tokens` tokens of prompts."""
        rules = self.rules
        if not self._waiting or len(self._running) + self._ending >= rules.max_num_seqs:
            return False
        length = self._waiting[0].length
        return (
            tokens + length <= rules.max_num_batched_tokens and self.free_blocks - self._held(length) >= self.margin_blocks
        )

    def _compute(self, batch: Batch, seq: Sequence, now_s: float) -> None:
        """Compute all that a request has as one prompt, which yields a token."""
        number, known = batch.number, seq.length
        if batch.rows is not None:
            batch.rows.append((seq, known, 0))
        batch.serve(known, 0, decodes=False)
        if seq.first_scheduled_s < 0:
            seq.first_scheduled_s = now_s
            self.queried_tokens += seq.prompt_tokens
        self.free_blocks -= self._held(known)
        seq.order = self._orders
        self._orders += 1
        seq.computed = known
        seq.length += 1
        seq.emit(number, number)
        if seq.length >= seq.final_length:
            self._end(batch, seq)
        else:
            self.decodes.join(seq)
            self._running[seq] = None

    def _end(self, batch: Batch, seq: Sequence) -> None:
        seq.state = "ending"
        self._ending += 1
        batch.finishing.append(seq)

    # -- decodes --------------------------------------------------------------------------------------------

    def _decode(self, batch: Batch) -> None:
        """Serve all rows that find a free block, the last of them giving way where none is."""
        decodes = self.decodes
        need = decodes.blocks_needed()
        if need >= self.free_blocks:
            need = self._make_room(batch)
        if not decodes.count:
            return
        if batch.rows is not None:
            batch.rows.extend((seq, 1, decodes.length(seq) - 1) for seq in self._running)
        self.free_blocks -= need
        decodes.serve(batch)
        decodes.steps += 1
        self._end_decodes(batch)

    def _make_room(self, batch: Batch) -> int:
        """Let rows give way, from the last, until each that stays finds a free block at its turn; the blocks that these take."""
        taken = 0
        left = deque(self._running)
        while left:
            seq = left.popleft()
            while self.free_blocks - taken < 1:
                victim = left.pop() if left else seq
                self._preempt(batch, victim)
                if victim is seq:
                    break
            else:
                taken += self.decodes.visit(seq)
        return taken

    def _preempt(self, batch: Batch, seq: Sequence) -> None:
        self._leave_decodes(seq, self.next_number - 1)
        self.free_blocks += self._held(seq.computed)
        seq.state = "waiting"
        seq.computed = 0
        seq.preemptions += 1
        batch.preempted += (seq,)
        self._waiting.appendleft(seq)

    def _end_decodes(self, batch: Batch) -> None:
        for seq in self.decodes.pop_ended():
            self._leave_decodes(seq, batch.number)
            self._end(batch, seq)
        batch.order_finishing()

    def _leave_decodes(self, seq: Sequence, last: int) -> None:
        del self._running[seq]
        self.decodes.leave(seq)
        seq.emit_between(last, self._pauses)

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch."""
        self.processed_number = batch.number
        for seq in batch.finishing:
            seq.state = "finished"
            self.free_blocks += self._held(seq.computed)
        self._ending -= len(batch.finishing)
        return batch.finishing

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps in which all who run decode, nobody gives way, and the first who waits finds no room."""
        decodes = self.decodes
        if not self.aggregate or not decodes.count or self._ending or self._fits(0):
            return None
        steps = decodes.steps_within(decodes.steps_alike(), self.free_blocks - 1)
        if steps < 2:
            return None
        decodes.serve(self._shape)
        return Run(steps, self._shape, deaf=bool(self._waiting))

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Schedule `steps` decode steps at once."""
        decodes, before = self.decodes, self.capacity_blocks - self.free_blocks
        need, summed = decodes.taken_over(steps)
        self.free_blocks -= need
        self.next_number += steps
        batch = Batch(self.next_number - 1)
        self.processed_number = batch.number - 1
        decodes.serve(batch)
        decodes.steps += steps
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        self._end_decodes(batch)
        return batch, before * steps + summed, before + need


__all__ = ["WholePrefillRules", "WholePrefillScheduler"]
