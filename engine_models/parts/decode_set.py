"""The rows of a replica that only decode, kept as aggregates.

Every row in the set grows by one token a step, so a step changes one counter, not every row. A row joins with its
current length; `offset = length - steps` stays constant while it is in the set, and from it follow its length
(`offset + steps`), the step at which it ends (`final_length - offset`), and the steps at which it needs a new block
(`offset - 1 + steps` a multiple of the block size).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Series
from itertools import accumulate

from mypy_extensions import mypyc_attr

from engine_models.parts.batch import Batch, Span
from engine_models.parts.sequence import Sequence
from engine_models.parts.spans import NEVER, WindowSum


@mypyc_attr(allow_interpreted_subclasses=True)
class DecodeSet:
    """Aggregate of the decoding rows: count, sum of lengths, block phases, ends, and what they attend to in windows.

    `windows` are those of the model's layers that a row can outgrow; `no_spans` is what no rows attend to there.
    """

    __slots__ = (
        *("_ends", "block_tokens", "count", "next_end", "no_spans", "offset_sum", "phases", "row_tokens", "steps", "top_order"),
        "windows",
    )

    def __init__(self, block_tokens: int, windows: tuple[int, ...] = ()) -> None:
        self.block_tokens = block_tokens
        self.row_tokens = 1  # of a row in a step
        self.windows = [WindowSum(window) for window in windows]
        self.no_spans = tuple(Span(window, 0, 0) for window in windows)
        self.steps = 0
        self.count = 0
        self.offset_sum = 0
        self.phases = [0] * block_tokens  # rows that need a block when so many steps, modulo a block's tokens, are counted
        self.top_order = -1  # highest admission number that ever joined
        self._ends: list[tuple[int, int, Sequence]] = []
        self.next_end = NEVER  # no row ends before so many steps are counted

    def join(self, seq: Sequence) -> None:
        """Add a row whose next step is a decode step."""
        offset = seq.length - self.steps
        seq.offset = offset
        seq.state = "decoding"
        self.count += 1
        self.offset_sum += offset
        self.phases[(1 - offset) % self.block_tokens] += 1
        end = seq.final_length - offset
        heapq.heappush(self._ends, (end, seq.order, seq))
        if end < self.next_end:
            self.next_end = end
        for window in self.windows:
            window.join(offset, self.steps)
        if seq.order > self.top_order:
            self.top_order = seq.order

    def leave(self, seq: Sequence) -> None:
        """Remove a row and bring its own counts up to date."""
        offset = seq.offset
        self.count -= 1
        self.offset_sum -= offset
        self.phases[(1 - offset) % self.block_tokens] -= 1
        for window in self.windows:
            window.leave(offset)
        seq.length = offset + self.steps
        seq.computed = seq.length - 1
        seq.extra_blocks = -(-seq.computed // self.block_tokens) - len(seq.blocks)
        seq.state = "running"

    def length(self, seq: Sequence) -> int:
        """Tokens of a row in the set that its next step attends to, the new one included."""
        return seq.offset + self.steps

    def kv_tokens(self) -> int:
        """Sum over the rows of the tokens that the next step attends to, the new one included."""
        return self.offset_sum + self.count * self.steps

    def serve(self, batch: Batch) -> None:
        """Enter the next step of all rows in a batch that serves no other yet."""
        batch.decode_rows = batch.decode_tokens = batch.tokens = self.count
        batch.decode_kv_tokens = self.offset_sum + self.count * self.steps
        if self.windows:
            batch.spans = self.spans()

    def spans(self) -> tuple[Span, ...]:
        """What all rows attend to in windows with the next step."""
        return tuple([window.span(self.count, self.steps) for window in self.windows])

    def steps_alike(self) -> int:
        """Next steps that serve the same rows, of which each attends to as much more than the one before."""
        steps = self.steps_to_next_end()
        for window in self.windows:
            steps = min(steps, window.steps_alike(self.steps))
        return steps

    def visit(self, seq: Sequence) -> int:
        """New blocks that one row takes with the next step."""
        return 1 if (seq.offset - 1 + self.steps) % self.block_tokens == 0 else 0

    def blocks_needed(self) -> int:
        """New blocks that the next step takes."""
        return self.phases[self.steps % self.block_tokens]

    def taken_over(self, steps: int) -> tuple[int, int]:
        """Blocks that the next `steps` steps take, and the sum over these steps of what was taken up to each."""
        if self.block_tokens == 1:
            return self.count * steps, self.count * steps * (steps + 1) // 2
        size, phases = self.block_tokens, self.phases
        at = self.steps % size
        to = at + steps
        if to <= size:
            so_far = list(accumulate(phases[at:to]))
            return so_far[-1], sum(so_far)
        if steps <= size:
            so_far = list(accumulate(phases[at:] + phases[: to - size]))
            return so_far[-1], sum(so_far)
        so_far = list(accumulate(phases[at:] + phases[:at]))  # a row takes one block in so many steps
        turns, left = divmod(steps, size)
        before = turns * self.count
        summed = turns * sum(so_far) + size * self.count * (turns * (turns - 1) // 2)
        return before + (so_far[left - 1] if left else 0), summed + left * before + sum(so_far[:left])

    def taken_by_step(self, steps: int) -> list[int]:
        """Blocks that each of the next `steps` steps takes, shape (steps,)."""
        size, phases = self.block_tokens, self.phases
        at = self.steps % size
        to = at + steps
        return phases[at:to] if to <= size else (phases * -(-to // size))[at:to]

    def steps_within(self, steps: int, blocks: int) -> int:
        """Of the next `steps` steps, as many as certainly need no more than `blocks` new blocks together."""
        if self.count * (steps // self.block_tokens + 1) > blocks:
            while steps > 0 and self.blocks_needed_over(steps) > blocks:
                steps = min(steps - 1, steps // 2 + 8)
        return steps

    def blocks_needed_over(self, steps: int) -> int:
        """New blocks that the next `steps` steps take together."""
        return self.taken_over(steps)[0]

    def steps_to_next_end(self) -> int:
        """Steps until some row emits its last token, that step included."""
        ends = self._ends
        while ends:
            at, _, seq = ends[0]
            if seq.state == "decoding" and seq.final_length - seq.offset == at:
                return at - self.steps
            heapq.heappop(ends)
        return 0

    def ends_with(self, steps: int) -> bool:
        """Whether the next end, which `steps_to_next_end` has just found, comes with so many steps."""
        ends = self._ends
        return bool(ends) and ends[0][0] - self.steps == steps

    def pop_ended(self) -> list[Sequence]:
        """Rows that emitted their last token with the step just counted; they stay in the set until `leave`."""
        ends, steps = self._ends, self.steps
        if not ends or ends[0][0] > steps:
            return []
        out: list[Sequence] = []
        while ends and ends[0][0] <= steps:
            at, _, seq = heapq.heappop(ends)
            if seq.state == "decoding" and at == steps and seq.final_length - seq.offset == at:
                out.append(seq)
        self.next_end = ends[0][0] if ends else NEVER
        return list(dict.fromkeys(out)) if len(out) > 1 else out  # who left and came back can be there twice


def steps_in_turn(sets: Series[DecodeSet], steps: int, blocks: int) -> int:
    """Of the next steps, which serve the sets in turn, as many as certainly need no more than so many new blocks together."""
    turns = len(sets)
    if sum([rows.count for rows in sets]) * (steps // turns // sets[0].block_tokens + 2) > blocks:
        while steps > 0 and _blocks_in_turn(sets, steps) > blocks:
            steps = min(steps - 1, steps // 2 + 8)
    return steps


def _blocks_in_turn(sets: Series[DecodeSet], steps: int) -> int:
    turns = len(sets)
    return sum([rows.blocks_needed_over(-(-(steps - at) // turns)) for at, rows in enumerate(sets) if steps > at])
