"""Prefill-first scheduling over the stages of a pipeline, as SGLang's `event_loop_pp` does it: micro-batches take turns.

There are as many *lanes* as batches in flight, each with a running batch of its own over one queue, one tree and one pool of
memory. A turn forms a batch of its lane (a prefill, else a decode step), unless the lane has nothing to run; then the loop waits
for the batch that the next lane has in flight, if it has one. So who arrives joins whichever lane is next, lanes are not
balanced, and the pieces of one long prompt go through the pipeline one behind the other, in lanes one after the other.

Source: `managers/scheduler_pp_mixin.py`, `managers/scheduler.py` of SGLang 0.5.23.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from mypy_extensions import mypyc_attr

from engine_models.memory.radix import RadixPool
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet, steps_in_turn
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch, PrefillFirstRules, PrefillFirstScheduler


class _Lane:
    """What the scheduler keeps of a micro-batch while others have their turn (see `PrefillFirstScheduler`)."""

    __slots__ = (
        *("batch_is_full", "decoding", "decodes", "ending", "flies", "last_decode", "last_extend", "last_prefilled", "merging"),
        *("kept_running", "pauses", "running_prefilled", "shape"),
    )

    def __init__(self, decodes: DecodeSet) -> None:
        self.decodes = decodes
        self.decoding: dict[Sequence, None] = {}
        self.merging: list[Sequence] = []
        self.ending: list[Sequence] = []
        self.batch_is_full = self.last_extend = False
        self.last_decode = -1
        self.last_prefilled = self.running_prefilled = 0
        self.kept_running = False
        self.pauses: list[int] = []  # batches that are not decode steps of this lane
        self.flies = False  # its latest batch has no results yet
        self.shape = Batch(-1)


@mypyc_attr(allow_interpreted_subclasses=True)
class StagedPrefillFirstScheduler(PrefillFirstScheduler):
    """The scheduler of `prefill_first` without overlap, for `lanes` micro-batches of at most `lane_rows` rows each."""

    __slots__ = ("_flying", "_lane", "_lane_rows", "_lanes", "_turn")

    def __init__(
        self,
        rules: PrefillFirstRules,
        kv: RadixPool,
        *,
        lanes: int,
        lane_rows: int,
        windows: tuple[int, ...] = (),
        **others: Any,
    ) -> None:
        super().__init__(rules, kv, windows=windows, **others)
        self._lanes = [_Lane(self._new_decodes(windows)) for _ in range(lanes)]
        self._lane_rows = lane_rows
        self._turn = 0
        self._flying: deque[_Lane] = deque()  # lanes whose batches are in flight, in order
        self._lane = self._lanes[0]
        self._show(self._lane)

    def _turn_to(self, lane: _Lane) -> None:
        """Let the lane's rows be those that the base sees."""
        if lane is not self._lane:
            self._hide(self._lane)
            self._lane = lane
            self._show(lane)

    def _hide(self, lane: _Lane) -> None:
        lane.decoding, lane.merging, lane.ending = self._decoding, self._merging, self._ending
        lane.batch_is_full, lane.last_extend, lane.last_decode = self.batch_is_full, self._last_extend, self._last_decode
        lane.last_prefilled, lane.running_prefilled = self._last_prefilled, self._running_prefilled
        lane.kept_running = self._kept_running

    def _show(self, lane: _Lane) -> None:
        self.decodes, self._pauses = lane.decodes, lane.pauses
        self._decoding, self._merging, self._ending = lane.decoding, lane.merging, lane.ending
        self.batch_is_full, self._last_extend, self._last_decode = lane.batch_is_full, lane.last_extend, lane.last_decode
        self._last_prefilled, self._running_prefilled = lane.last_prefilled, lane.running_prefilled
        self._kept_running = lane.kept_running

    def _launch_turn(self, number: int) -> None:
        """Note that the lane whose turn it is has sent off a batch."""
        self._lane.flies = True
        self._flying.append(self._lane)
        for lane in self._lanes:
            if lane is not self._lane:
                lane.pauses.append(number)

    # -- the step -------------------------------------------------------------------------------------------

    @property
    def cancels(self) -> bool:
        """As of the base: not while rows wait for the stages of a pipeline."""
        return False

    def _idles(self) -> bool:
        return not self.running

    def _free_slots(self) -> int:
        held = len(self.running) - (self.chunked is not None)
        return min(self._lane_rows - len(self._decoding), self.rules.max_running_requests - held)

    def schedule(self, now_s: float) -> PrefillFirstBatch | None:
        """Form the batch of the next lane that has something to run, unless one before it waits for results."""
        for _ in self._lanes:
            lane = self._lanes[self._turn]
            if lane.flies:
                return None
            self._turn = (self._turn + 1) % len(self._lanes)
            self._turn_to(lane)
            if self.chunked is not None and not self._last_extend:  # its latest piece went with another lane
                self._checkpoint(self.chunked, self.chunked.computed)
            batch = super().schedule(now_s)
            if self._aborted and not (batch is not None and batch.tokens):
                batch = self._drop(batch)
            if batch is None:
                continue
            if batch.tokens:
                self._launch_turn(batch.number)
            return batch
        return None

    def _drop(self, batch: PrefillFirstBatch | None) -> PrefillFirstBatch:
        """The last row of a lane for which there is no memory is given up at once, though other lanes would free some."""
        found = PrefillFirstBatch(self.next_number) if batch is None else batch
        found.finishing, self._aborted = self._aborted, []
        for seq in found.finishing:
            seq.state = "dropped"
        return found

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base, of the lane whose batch has been in flight longest; its turn is next, empty lanes have had theirs."""
        lane = self._flying.popleft()
        lane.flies = False
        self._turn = self._lanes.index(lane)
        self._turn_to(lane)
        return super().settle(batch)

    def close(self) -> None:
        """As of the base, lane by lane."""
        for lane in self._lanes:
            self._turn_to(lane)
            for seq in [row for row in self._decoding if row.state == "decoding"]:
                self._leave_decodes(seq, self.next_number - 1)

    # -- jumping --------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps that serve the lanes in turn, each of which decodes; deaf while all are full."""
        if not self.aggregate or self.chunked is not None or self._aborted or self.rules.receive_interval > 1:
            return None
        at, lanes = self._turn, []
        for lane in (*self._lanes[at:], *self._lanes[:at]):
            self._turn_to(lane)
            if not lane.flies:
                self._merge()  # as its turn does first
            if self._last_extend or self._ending:
                return None
            if self._decoding:
                lanes.append(lane)
        self._hide(self._lane)
        full = len(lanes) == len(self._lanes) and all(lane.batch_is_full for lane in lanes) and not self.rules.preemption
        if not lanes or lanes[0].flies or not all(lane.flies for lane in lanes[1:]) or (self._waiting and not full):
            return None
        turns = len(lanes)
        steps = min(turns * (lane.decodes.steps_alike() - 1) + place + 1 for place, lane in enumerate(lanes))
        free = (self.kv.free_tokens + self.kv.tree.evictable_tokens) // self.kv.page_tokens
        steps = steps_in_turn([lane.decodes for lane in lanes], steps, free)
        if steps < 2:
            return None
        for lane in lanes:
            lane.decodes.serve(lane.shape)
        run = self._run
        run.steps, run.shape, run.turns = steps, lanes[0].shape, tuple([lane.shape for lane in lanes[1:]])
        run.deaf = full and self._policy != "hrrn"
        return run

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Schedule a step of the lane whose turn it is."""
        assert steps == 1
        while not self._lanes[self._turn].decodes.count:
            self._turn = (self._turn + 1) % len(self._lanes)
        self._turn_to(self._lanes[self._turn])
        self._turn = (self._turn + 1) % len(self._lanes)
        processed = self.processed_number
        batch, held, most = self._take(1)
        self.processed_number = processed
        self._launch_turn(batch.number)
        return batch, held, most


__all__ = ["StagedPrefillFirstScheduler"]
