"""The rows of a replica that only decode, kept as aggregates.

Every row in the set grows by one token a step, so a step changes one counter, not every row. A row joins with its
current length; `offset = length - steps` stays constant while it is in the set, and from it follow its length
(`offset + steps`), the step at which it ends (`final_length - offset`), and the steps at which it needs a new block
(`offset - 1 + steps` a multiple of the block size).
"""

from __future__ import annotations

import heapq

from engine_models.parts.sequence import Sequence


class DecodeSet:
    """Aggregate of the decoding rows: count, sum of lengths, block phases, ends."""

    __slots__ = ("_ends", "block_tokens", "count", "offset_sum", "phases", "steps", "top_order")

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.steps = 0
        self.count = 0
        self.offset_sum = 0
        self.phases = [0] * block_tokens
        self.top_order = -1  # highest admission number that ever joined
        self._ends: list[tuple[int, int, Sequence]] = []

    def join(self, seq: Sequence) -> None:
        """Add a row whose next step is a decode step."""
        offset = seq.length - self.steps
        seq.offset = offset
        seq.state = "decoding"
        self.count += 1
        self.offset_sum += offset
        self.phases[(offset - 1) % self.block_tokens] += 1
        heapq.heappush(self._ends, (seq.final_length - offset, seq.order, seq))
        if seq.order > self.top_order:
            self.top_order = seq.order

    def leave(self, seq: Sequence) -> None:
        """Remove a row and bring its own counts up to date."""
        offset = seq.offset
        self.count -= 1
        self.offset_sum -= offset
        self.phases[(offset - 1) % self.block_tokens] -= 1
        seq.length = offset + self.steps
        seq.computed = seq.length - 1
        seq.extra_blocks = -(-seq.computed // self.block_tokens) - len(seq.blocks)
        seq.state = "running"

    def length(self, seq: Sequence) -> int:
        """Tokens of a row in the set."""
        return seq.offset + self.steps

    def kv_tokens(self) -> int:
        """Sum over the rows of the tokens that the next step attends to, the new one included."""
        return self.offset_sum + self.count * self.steps

    def visit(self, seq: Sequence) -> int:
        """New blocks that one row takes with the next step."""
        return 1 if (seq.offset - 1 + self.steps) % self.block_tokens == 0 else 0

    def blocks_needed(self) -> int:
        """New blocks that the next step takes."""
        return self.phases[-self.steps % self.block_tokens]

    def blocks_needed_over(self, steps: int) -> int:
        """New blocks that the next `steps` steps take together."""
        cycles, rest = divmod(steps, self.block_tokens)
        total = cycles * self.count
        phases, size, now = self.phases, self.block_tokens, self.steps
        for i in range(rest):
            total += phases[-(now + i) % size]
        return total

    def held_over(self, steps: int, held: int) -> list[int]:
        """Blocks held after each of the next `steps` steps, `held` before them."""
        phases, size = self.phases, self.block_tokens
        out: list[int] = []
        at = -self.steps % size
        for _ in range(steps):
            held += phases[at]
            at = at - 1 if at else size - 1
            out.append(held)
        return out

    def steps_to_next_end(self) -> int:
        """Steps until some row emits its last token, that step included."""
        ends = self._ends
        while ends:
            at, _, seq = ends[0]
            if seq.state == "decoding" and seq.final_length - seq.offset == at:
                return at - self.steps
            heapq.heappop(ends)
        return 0

    def pop_ended(self) -> list[Sequence]:
        """Rows that emitted their last token with the step just counted; they stay in the set until `leave`."""
        ends = self._ends
        out: list[Sequence] = []
        steps = self.steps
        while ends and ends[0][0] <= steps:
            at, _, seq = heapq.heappop(ends)
            ended = seq.state == "decoding" and at == steps and seq.final_length - seq.offset == at
            if ended and not (out and out[-1] is seq):  # a row that left and came back can be there twice
                out.append(seq)
        return out
