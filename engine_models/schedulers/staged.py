"""Continuous batching over the stages of a pipeline, the decoding rows of each batch in flight kept as an aggregate.

The rules are those of `continuous`. A row is in one batch at a time, so the rows of a batch stay together: when its results are
known they are served again, with whoever is admitted then. Each such group is a *lane*. Where budget or blocks run short the rows
are served one by one, as the base does, and return to lanes after.
"""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler


class Lane(DecodeSet):
    """Decoding rows that are served together, and the numbers of the batches that served them."""

    __slots__ = ("numbers",)

    def __init__(self, block_tokens: int, windows: tuple[int, ...] = ()) -> None:
        super().__init__(block_tokens, windows)
        self.numbers: list[int] = []

    def emit(self, seq: Sequence, joined: int) -> None:
        """Note that a row got a token with each batch since there were `joined` of them."""
        spans = seq.emissions
        latest = spans[-1][1] if spans else -1
        for number in self.numbers[joined:]:  # as `Sequence.emit` of each
            if number == latest + 1:
                spans[-1][1] = number
            else:
                spans.append([number, number])
            latest = number


@mypyc_attr(allow_interpreted_subclasses=True)
class StagedScheduler(ContinuousScheduler):
    """The scheduler of `continuous` for a pipeline over a cache of one group, without drafts or a host tier."""

    def __init__(self, rules: ContinuousRules, kv: PagedKV) -> None:
        super().__init__(rules, kv)
        self.aggregate = True
        self._lanes: dict[int, Lane] = {}  # by the number of the latest batch, in order
        self._lane_of: dict[Sequence, tuple[Lane, int]] = {}  # and how many batches it had served when the row joined
        self._one_by_one = False
        self._shapes: list[Batch] = [self._run.shape]

    def schedule(self, now_s: float) -> Batch | None:
        """As of the base."""
        lane = self.decodes = self._ready_lane()
        batch = super().schedule(now_s)
        if self._one_by_one:
            self._one_by_one = False
            self._regroup()
        elif lane.count:
            self._lanes[lane.numbers[-1] if lane.numbers else self.next_number - 1] = lane
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
        self._lane_of[seq] = lane, len(lane.numbers)

    def _leave_decodes(self, seq: Sequence, last: int | None) -> None:
        lane, joined = self._lane_of.pop(seq)
        lane.leave(seq)
        lane.emit(seq, joined)

    def _commit_decodes(self, batch: Batch) -> list[Sequence]:
        if batch.decode_rows:
            lane = self.decodes
            assert isinstance(lane, Lane)
            lane.numbers.append(batch.number)
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
            ready = lane.numbers[-1] if len(lane.numbers) > joined else seq.ready_batch
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
        rules = self.rules
        if self.partial or not self._lanes or (self.waiting_count and not self._stuck()):
            return None
        lanes = list(self._lanes.items())
        known = [number <= self.processed_number for number, _ in lanes]
        turns = len(lanes)
        if not known[0] or any(known[1:]) or any(
            not lane.count or lane.count > rules.max_num_batched_tokens for _, lane in lanes
        ):
            return None
        steps = min(turns * (lane.steps_to_next_end() - 1) + at + 1 for at, (_, lane) in enumerate(lanes))
        free = self.kv.free_blocks
        while steps > 0 and self._blocks_over(steps) > free:
            steps = min(steps - 1, steps // 2 + 8)
        if steps < 2:
            return None
        while len(self._shapes) < turns:
            self._shapes.append(Batch(-1))
        for shape, (_, lane) in zip(self._shapes, lanes, strict=False):
            shape.decode_rows = shape.decode_tokens = shape.tokens = lane.count
            shape.decode_kv_tokens = lane.kv_tokens()
        run = self._run
        run.steps, run.turns, run.deaf = steps, tuple(self._shapes[1:turns]), self.blocked and not self._by_priority
        return run

    def _stuck(self) -> bool:
        """Whether the head of the queue is stuck whichever lane is served: not for want of budget."""
        return self.blocked and self.rules.chunked_prefill and self.rules.reserve_full_prompt

    def _blocks_over(self, steps: int) -> int:
        """Blocks that the next steps take, the lanes in turn."""
        turns = len(self._lanes)
        return sum(
            lane.blocks_needed_over(-(-(steps - at) // turns))
            for at, lane in enumerate(self._lanes.values())
            if steps > at
        )

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Schedule a step of the lane whose results are known."""
        assert steps == 1
        number, lane = next(iter(self._lanes.items()))
        del self._lanes[number]
        self.decodes = lane
        need = lane.blocks_needed()
        if need:
            self.kv.take(need)
        batch = Batch(self.next_number, lane.count, lane.count, lane.kv_tokens(), tokens=lane.count)
        self._lanes[batch.number] = lane
        lane.steps += 1
        lane.numbers.append(batch.number)
        self.next_number += 1
        self._end_decodes(batch)
        batch.order_finishing()
        held = self.kv.capacity_blocks - self.kv.free_blocks
        return batch, held, held


__all__ = ["StagedScheduler"]
