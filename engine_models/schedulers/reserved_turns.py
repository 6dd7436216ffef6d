"""A decode server of `reserved` over the stages of a pipeline: micro-batches of running rows take turns.

There are as many *lanes* as batches in flight, each with running rows of its own over one set of queues and one pool of memory.
In its turn a lane notes which requests could go on: rows that have lost their memory, requests whose handshake is over, prompts
that are here. All stages have to have seen them, so they go on one round later, just before the lane's next turn: rows have their
memory again, else, if none is left that waits for it, requests are given memory, and prompts that have arrived wait for a row.
Whoever waits for a row joins the lane whose turn is next, and lanes are not balanced. What is kept back for answers is counted of
the rows of the lane that has just had its turn, as is what they could give back.

Source: `event_loop_pp_disagg_decode` in `managers/scheduler_pp_mixin.py` of SGLang at 00ff98d3 and `_allocatable_tokens` in
`disaggregation/decode.py` (public copies, read 2026-11), compared with no recording. Requests are taken in in every turn.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from engine_models.memory.radix import RadixPool
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import INFINITY, Run, State
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.reserved import NO_LATER_S, ReservingDecodeScheduler, ReservingRules


class _Lane:
    """Running rows that take turns with others', and what the lane noted in its latest turn: when, and who could go on."""

    __slots__ = ("arrived", "decodes", "flies", "noted_s", "pauses", "retracted", "running")

    def __init__(self, decodes: DecodeSet) -> None:
        self.decodes = decodes
        self.running: dict[Sequence, None] = {}
        self.pauses: list[int] = []  # batches that are no decode steps of its rows
        self.flies = False  # its latest batch has no results yet
        self.noted_s = -INFINITY
        self.retracted: list[Sequence] = []
        self.arrived: list[Sequence] = []


class StagedReservingScheduler(ReservingDecodeScheduler):
    """`ReservingDecodeScheduler` with `lanes` micro-batches. Steps are formed one by one; others as of the base."""

    def __init__(
        self,
        rules: ReservingRules,
        kv: RadixPool,
        *,
        lanes: int,
        windows: tuple[int, ...] = (),
        masked: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(rules, kv, windows=windows, masked=masked, **others)
        self._lanes = [_Lane(self._new_decodes(windows, masked=masked)) for _ in range(lanes)]
        self._turn = 0
        self._flying: deque[_Lane] = deque()
        self._of_lane: dict[Sequence, _Lane] = {}  # of rows without memory: where they get it back
        self._rounds = 0  # turns that may still decide otherwise than the latest
        self._show(self._lanes[0])

    def _show(self, lane: _Lane) -> None:
        """Let the lane's rows be those that the base sees."""
        self._lane = lane
        self.decodes, self.running, self._pauses = lane.decodes, lane.running, lane.pauses

    def _changed(self) -> None:
        """Something may go on now: it is noted in one round, and goes on in the next."""
        self._rounds = 2 * len(self._lanes)

    # -- the outside ----------------------------------------------------------------------------------------

    def wake_s(self) -> float:
        """As of the base: at once where the next turns may decide otherwise."""
        return 0.0 if self._rounds or self._unreceived else super().wake_s()

    def add(self, seq: Sequence) -> None:
        """As of the base."""
        super().add(seq)
        self._changed()

    def arrived(self, seq: Sequence) -> None:
        """As of the base."""
        super().arrived(seq)
        self._changed()

    def has_work(self) -> bool:
        """As of the base."""
        return super().has_work() or any(lane.running for lane in self._lanes)

    def state(self) -> State:
        """As of the base."""
        _, waiting, used, total = super().state()
        return sum(len(lane.running) for lane in self._lanes), waiting, used, total

    def close(self) -> None:
        """As of the base, lane by lane."""
        for lane in self._lanes:
            self._show(lane)
            super().close()

    def cancel(self, seq: Sequence) -> bool:
        """As of the base."""
        self._changed()
        self._show(next((lane for lane in self._lanes if seq in lane.running), self._lane))
        self._of_lane.pop(seq, None)
        return super().cancel(seq)

    def turned(self, turns: int) -> None:
        """As of the base: every lane had its turn as often."""
        self._rounds = max(0, self._rounds - turns * len(self._lanes))

    # -- a turn ---------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        """Form the batch of the next lane that has rows, unless one before it waits for results."""
        self._now_s = now_s
        for _ in self._lanes:
            lane = self._lanes[self._turn]
            if lane.flies:
                return None
            self._turn = (self._turn + 1) % len(self._lanes)
            self._show(lane)
            batch = self._have_turn(lane, now_s)
            self._let_go_on(self._lanes[self._turn], now_s)
            if batch is not None:
                return batch
        return None

    def _have_turn(self, lane: _Lane, now_s: float) -> Batch | None:
        if self._unreceived:
            self.prealloc.update(dict.fromkeys(self._unreceived, now_s + self.rules.handshake_s))
            self._unreceived = []
        if any(lane.noted_s < ready_s <= now_s for ready_s in self.prealloc.values()):
            self._changed()
        self._rounds = max(0, self._rounds - 1)
        self._news = False
        lane.noted_s = now_s
        lane.retracted = [seq for seq in self.retracted if self._of_lane.setdefault(seq, lane) is lane]
        lane.arrived = [seq for seq, here in self.transfer.items() if here]
        places = self.rules.max_running_requests - len(self.running)
        joined, self.waiting = self.waiting[: max(0, places)], self.waiting[max(0, places) :]
        self._ended = []
        if joined:
            first = self.next_number
            self._join(joined, now_s)
            for other in self._lanes:
                if other is not lane and self.next_number > first:
                    other.pauses.append(first)
        batch = self._decode()
        lane.running = self.running
        if batch is None:
            return None
        if batch.preempted:
            self._changed()
        lane.flies = True
        self._flying.append(lane)
        for other in self._lanes:
            if other is not lane:
                other.pauses.append(batch.number)
        return batch

    def _let_go_on(self, lane: _Lane, now_s: float) -> None:
        """Let those go on that a lane noted a round ago, as far as there is memory; rows of the lane before it count."""
        mine, begun = [seq for seq in lane.retracted if seq in self.retracted], len(self.waiting)
        if mine:
            whole = self.retracted
            self.retracted = mine
            resumed = self._resume()
            self.retracted = [seq for seq in whole if seq not in resumed]
            for seq in resumed:
                del self._of_lane[seq]
            self.waiting += resumed
        admitted: list[Sequence] = []
        if not self.retracted and self.prealloc:
            late = {seq: ready_s for seq, ready_s in self.prealloc.items() if ready_s > lane.noted_s + NO_LATER_S}
            for seq in late:
                del self.prealloc[seq]
            admitted = self._reserve(now_s)
            self.prealloc.update(late)
        for seq in lane.arrived:
            if self.transfer.pop(seq, False):
                self.waiting.append(seq)
        lane.retracted, lane.arrived = [], []
        if admitted or len(self.waiting) > begun:
            self._changed()

    def _rows_left(self) -> int:
        return super()._rows_left() + len(self.running) - sum(len(lane.running) for lane in self._lanes)

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base, of the lane whose batch has been in flight longest; its turn is next."""
        lane = self._flying.popleft()
        lane.flies = False
        self._turn = self._lanes.index(lane)
        self._show(lane)
        if batch.finishing:
            self._changed()
        return super().settle(batch)

    def run(self) -> Run | None:
        """As of the base: no steps are proven."""
        return None


__all__ = ["StagedReservingScheduler"]
