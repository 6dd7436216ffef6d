"""Continuous batching over the stages of a pipeline, the decoding rows of each batch in flight kept as an aggregate.

The rules are those of `continuous`. A row is in one batch at a time, so the rows of a batch stay together: when its results are
known they are served again, with whoever is admitted then. Each such group is a *lane*. Where budget or blocks run short the rows
are served one by one, as the base does, and return to lanes after.
"""

from __future__ import annotations

from collections import deque
from itertools import accumulate

from mypy_extensions import mypyc_attr

from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.decode_set import DecodeSet, steps_in_turn
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler

Place = tuple[int, int]
"""How far a lane has been served: entries of its ranges, and the number of the latest batch."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Lane(DecodeSet):
    """Decoding rows that are served together, and the batches that served them: ranges of numbers as in `Sequence.emissions`."""

    __slots__ = ("ranges",)

    def __init__(self, block_tokens: int, windows: tuple[int, ...] = ()) -> None:
        super().__init__(block_tokens, windows)
        self.ranges: list[int] = []

    def place(self) -> Place:
        """How far it has been served."""
        ranges = self.ranges
        return len(ranges), ranges[-1] if ranges else -1

    def served(self, batches: range) -> None:
        """Take in the numbers of the next batches that serve the rows, later than all before."""
        ranges, numbers = self.ranges, list(batches)
        follows = bool(ranges) and ranges[-1] + 1 == numbers[0]
        if batches.step == 1 or len(numbers) == 1:
            if follows:
                ranges[-1] = numbers[-1]
            else:
                ranges += (numbers[0], numbers[-1])
            return
        pairs = numbers * 2
        pairs[::2] = pairs[1::2] = numbers
        if follows:
            ranges[-1] = numbers[0]
            del pairs[:2]
        ranges += pairs

    def emit(self, seq: Sequence, joined: Place) -> None:
        """Note that a row got a token with each batch since it joined."""
        ranges, (at, latest) = self.ranges, joined
        if at and ranges[at - 1] > latest:  # the range that was the last has gone on
            seq.emit(latest + 1, ranges[at - 1])
        if len(ranges) > at:
            seq.emit(ranges[at], ranges[at + 1])
            seq.emissions += ranges[at + 2 :]


@mypyc_attr(allow_interpreted_subclasses=True)
class StagedScheduler(ContinuousScheduler):
    """The scheduler of `continuous` for a pipeline over a cache of one group, without drafts or a host tier."""

    def __init__(self, rules: ContinuousRules, kv: PagedKV) -> None:
        super().__init__(rules, kv)
        self.aggregate = True
        self._lanes: dict[int, Lane] = {}  # by the number of the latest batch, in order
        self._lane_of: dict[Sequence, tuple[Lane, Place]] = {}  # and how far it had been served when the row joined
        self._one_by_one = False
        self._shapes: list[Batch] = [self._run.shape]

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def _before_preemption(self, seq: Sequence, fresh_blocks: int | None) -> int:
        """As of the base; whatever is in flight, a row was served with tokens that were known."""
        if seq.state != "decoding":
            return super()._before_preemption(seq, fresh_blocks)
        self._leave_decodes(seq, None)
        return seq.computed

    def schedule(self, now_s: float) -> Batch | None:
        """As of the base."""
        lane = self.decodes = self._ready_lane()
        batch = super().schedule(now_s)
        if self._one_by_one:
            self._one_by_one = False
            self._regroup()
        elif lane.count:
            self._lanes[lane.ranges[-1] if lane.ranges else self.next_number - 1] = lane
        return batch

    def _ready_lane(self) -> Lane:
        """Take out the lane whose results are known; several become one."""
        found: Lane | None = None
        for number in [number for number in self._lanes if number <= self.processed_number]:
            lane = self._lanes.pop(number)
            if not lane.count:
                continue
            if found is None:
                found = lane
                continue
            for seq in [row for row, (of, _) in self._lane_of.items() if of is lane]:
                self._leave_decodes(seq, number)
                self.decodes = found
                self._join_decodes(seq, number)
        return found if found is not None else Lane(self.kv.block_tokens)

    def _join_decodes(self, seq: Sequence, after: int) -> None:
        lane = self.decodes
        assert isinstance(lane, Lane)
        lane.join(seq)
        self._lane_of[seq] = lane, lane.place()

    def _leave_decodes(self, seq: Sequence, last: int | None) -> None:
        lane, joined = self._lane_of.pop(seq)
        lane.leave(seq)
        lane.emit(seq, joined)

    def _commit_decodes(self, batch: Batch) -> list[Sequence]:
        if batch.decode_rows:
            lane = self.decodes
            assert isinstance(lane, Lane)
            lane.served(range(batch.number, batch.number + 1))
        return super()._commit_decodes(batch)

    def _await_result(self, seq: Sequence, batch: Batch) -> None:
        super()._await_result(seq, batch)
        if seq.state != "ending" and not self._one_by_one:
            del self.partial[seq]
            self._join_decodes(seq, batch.number)

    # -- one by one -----------------------------------------------------------------------------------------

    def _serve_row_by_row(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int
    ) -> int:
        self._one_by_one = True
        for seq, (lane, joined) in list(self._lane_of.items()):
            ready = lane.ranges[-1] if lane.place() != joined else seq.ready_batch
            self._leave_decodes(seq, None)
            seq.ready_batch = ready
            self.partial[seq] = None
        self._lanes.clear()
        return super()._serve_row_by_row(batch, served, budget, cap)

    def _regroup(self) -> None:
        """Let the rows that only decode return to lanes, by the batch that they were in last."""
        lanes: dict[int, Lane] = {}
        for seq in [s for s in self.partial if s.computed == s.length - 1 and s.computed >= s.prompt_tokens]:
            number = seq.ready_batch
            self.decodes = lanes.setdefault(number, Lane(self.kv.block_tokens))
            del self.partial[seq]
            self._join_decodes(seq, number)
        self._lanes = {number: lanes[number] for number in sorted(lanes)}

    # -- jumping --------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps that serve the lanes in turn, the first of which must be the one whose results are known."""
        if self.partial or not self._lanes or (self.waiting_count and not self._stuck()):
            return None
        turns, most, processed = len(self._lanes), self.rules.max_num_batched_tokens, self.processed_number
        steps = 1 << 60
        for at, (number, lane) in enumerate(self._lanes.items()):
            if (number > processed) != (at > 0) or not 0 < lane.count <= most:
                return None
            last = turns * (lane.steps_to_next_end() - 1) + at + 1
            if last < steps:
                steps = last
        steps += turns - 1  # the others have their turn before the first end is known
        steps = steps_in_turn(list(self._lanes.values()), steps, self.kv.free_blocks)
        if steps < 2:
            return None
        while len(self._shapes) < turns:
            self._shapes.append(Batch(-1))
        for shape, lane in zip(self._shapes, self._lanes.values(), strict=False):
            shape.decode_rows = shape.decode_tokens = shape.tokens = lane.count
            shape.decode_kv_tokens = lane.kv_tokens()
        run = self._run
        run.steps, run.turns, run.deaf = steps, tuple(self._shapes[1:turns]), self.blocked and not self._by_priority
        return run

    def _stuck(self) -> bool:
        """Whether the head of the queue is stuck whichever lane is served: not for want of budget."""
        return self.blocked and self.rules.chunked_prefill and self.rules.reserve_full_prompt

    def take_turns(self, steps: int, flying: deque[Batch]) -> list[int]:
        """As of the base, all at once."""
        kv, first, lanes = self.kv, self.next_number, list(self._lanes.items())
        turns, after = len(lanes), first + steps
        blocks = [0] * steps
        for at, (number, lane) in enumerate(lanes[:steps]):
            served = range(first + at, after, turns)
            blocks[at::turns] = lane.taken_by_step(len(served))
            del self._lanes[number]
            lane.steps += len(served)
            lane.served(served)
        held = list(accumulate(blocks, initial=kv.capacity_blocks - kv.free_blocks))
        if held[-1] > held[0]:
            kv.take(held[-1] - held[0])
        for number in range(max(first, after - turns), after):
            lane = self.decodes = self._lanes[number] = lanes[(number - first) % turns][1]
            rows = lane.count
            batch = Batch(number, rows, rows, lane.kv_tokens() - rows, None, rows)
            flying.append(batch)
            if lane.steps >= lane.next_end:
                self._end_decodes(batch)
                batch.order_finishing()
        while len(flying) > turns:
            flying.popleft()
        self.processed_number = flying[0].number - 1
        self.next_number = after
        return held[1:]


__all__ = ["StagedScheduler"]
