"""Memory first, then tokens, over the stages of a pipeline: micro-batches in slots that take turns.

There are as many slots as stages. A turn forms the batch of its slot by the two passes of `memory_then_tokens`, over one active
list (as many times longer) and one cache; the second pass leaves out who is in flight: rows whose next token is computed in
another slot. So the rows of a slot stay together, at most `max_batch_size` of them, and a prompt's first token makes it a row of
the slot that computed its end. Then the loop waits for the results of the next slot, if it has a batch in flight. Earlier pieces
of a prompt leave it free to be continued in the next slot (`pieces_follow`), or it waits for each.

No row is computed once too often: who is in flight is not scheduled, so its last token is known before its slot's next turn.

Source: `tensorrt_llm/_torch/pyexecutor/py_executor.py` (`_executor_loop_pp`, `_add_inflight_ids`) and `_util.py` of 2025-08 and
2026-11 (public copies; `pieces_follow` is the newer).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from mypy_extensions import mypyc_attr

from engine_models.memory.block_tree import BlockTree
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import steps_in_turn
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import TwoPassBatch, TwoPassRules, TwoPassScheduler
from engine_models.schedulers.staged import Lane, Place


class Slot:
    """A micro-batch: its generating rows, whether it is in flight, and whether nobody can join it before a row ends."""

    __slots__ = ("blocked", "flies", "rows", "shape")

    def __init__(self, rows: Lane) -> None:
        self.rows = rows
        self.flies = self.blocked = False
        self.shape = Batch(-1)


@mypyc_attr(allow_interpreted_subclasses=True)
class StagedTwoPassScheduler(TwoPassScheduler):
    """The scheduler of `memory_then_tokens` for a pipeline; every policy but the one that pauses rows."""

    def __init__(
        self,
        rules: TwoPassRules,
        kv: BlockTree,
        *,
        stages: int,
        pieces_follow: bool,
        windows: tuple[int, ...] = (),
        **others: Any,
    ) -> None:
        super().__init__(rules, kv, windows=windows, **others)
        self.max_active = stages * rules.max_batch_size
        self._slots = [Slot(self._new_decodes(windows)) for _ in range(stages)]
        self._slot = self._slots[0]
        self._turn = 0
        self._flying: deque[Slot] = deque()
        self._pieces_follow = pieces_follow
        self._pieces: set[Sequence] = set()  # prompts that wait for a piece in flight
        self._slot_of: dict[Sequence, tuple[Lane, Place]] = {}  # and how far it had been served when the row joined
        self._run = Run(0, Batch(-1))

    def _new_decodes(self, windows: tuple[int, ...]) -> Lane:
        return Lane(self.kv.block_tokens, windows)

    def _unblock(self) -> None:
        super()._unblock()
        for slot in self._slots:
            slot.blocked = False

    def _turn_to(self, slot: Slot) -> None:
        self._slot = slot
        self.decodes = slot.rows

    def _launch_turn(self) -> None:
        """Note that the slot whose turn it is has sent off a batch."""
        self._slot.flies = True
        self._flying.append(self._slot)

    # -- the step -------------------------------------------------------------------------------------------

    def cancel(self, seq: Sequence) -> bool:
        """As of the base, at once: who leaves while its slot is in flight has its memory back."""
        forgotten = super().cancel(seq)
        self._unblock()
        return forgotten

    def schedule(self, now_s: float) -> TwoPassBatch | None:
        """Form the batch of the next slot that has something to run, unless one before it waits for results."""
        for _ in self._slots:
            slot = self._slots[self._turn]
            if slot.flies:
                return None
            self._turn = (self._turn + 1) % len(self._slots)
            self._turn_to(slot)
            batch = super().schedule(now_s)
            slot.blocked = self._blocked
            if batch is not None:
                self._launch_turn()
                return batch
        return None

    def _fill(self, fitting: Iterable[Sequence]) -> tuple[list[Sequence], list[Sequence] | None]:
        return super()._fill([seq for seq in fitting if seq not in self._pieces] if self._pieces else fitting)

    def _compute_prompts(self, batch: TwoPassBatch, contexts: list[Sequence]) -> None:
        super()._compute_prompts(batch, contexts)
        if not self._pieces_follow:
            self._pieces.update(seq for seq, _, done in batch.contexts if not done)

    def _join_decodes(self, seq: Sequence) -> None:
        rows = self._slot.rows
        rows.join(seq)
        self._slot_of[seq] = rows, rows.place()

    def _leave_decodes(self, seq: Sequence) -> None:
        rows, joined = self._slot_of.pop(seq)
        rows.leave(seq)
        rows.emit(seq, joined)

    def _end_decodes(self, batch: TwoPassBatch) -> None:
        self._slot.rows.served(range(batch.number, batch.number + 1))
        super()._end_decodes(batch)

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base, of the slot whose batch has been in flight longest; its turn is next, empty slots have had theirs."""
        slot = self._flying.popleft()
        slot.flies = False
        self._turn = self._slots.index(slot)
        self._turn_to(slot)
        if self._pieces:
            assert isinstance(batch, TwoPassBatch)
            self._pieces.difference_update([seq for seq, _, _ in batch.contexts])
        self._blocked = True
        finished = super().settle(batch)
        if not self._blocked:
            self._unblock()
        return finished

    # -- jumping --------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps that serve the slots in turn, each of which generates; deaf while nobody can join any."""
        if not self.aggregate or self._ending or self._begun:
            return None
        full = len(self.active) == self.max_active
        blocked = all(slot.blocked for slot in self._slots)
        shut = blocked and (bool(self._contexts) or full)
        if (self._contexts or (self._queue and not full)) and not shut:
            return None
        if self._contexts and self._latest.number > self.processed_number:
            return None
        at = self._turn
        slots = [slot for slot in (*self._slots[at:], *self._slots[:at]) if slot.rows.count]
        if not slots or slots[0].flies or not all(slot.flies for slot in slots[1:]):
            return None
        steps = min(len(slots) * (slot.rows.steps_alike() - 1) + place + 1 for place, slot in enumerate(slots))
        steps = steps_in_turn([slot.rows for slot in slots], steps, self.kv.alike_blocks())
        if steps < 2:
            return None
        for slot in slots:
            slot.rows.serve(slot.shape)
        run = self._run
        run.steps, run.shape, run.turns = steps, slots[0].shape, tuple([slot.shape for slot in slots[1:]])
        run.deaf = shut or (full and blocked)
        return run

    def take(self, steps: int) -> tuple[TwoPassBatch, int, int]:
        """Schedule a step of the slot whose turn it is."""
        assert steps == 1
        while not self._slots[self._turn].rows.count:
            self._turn = (self._turn + 1) % len(self._slots)
        self._turn_to(self._slots[self._turn])
        self._turn = (self._turn + 1) % len(self._slots)
        processed = self.processed_number
        batch, held, most = self._take(1)
        self.processed_number = processed
        self._launch_turn()
        return batch, held, most


__all__ = ["StagedTwoPassScheduler"]
