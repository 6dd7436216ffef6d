"""Fixed groups: up to so many waiting requests are padded to the longest and computed until the last of them ends.

Every row costs what the longest prompt does, rows that have ended still cost, who arrives meanwhile waits for the whole group.
A group is what waits when the device is free; when else one begins is for subclasses to say (`_begins`). Memory is taken as rows
grow: where it does not suffice, all rows that still run fail.

Source: `generate` of transformers 5.24 (`generation/utils.py`); see docs/engines/transformers.md.
"""

from __future__ import annotations

from collections import deque

from engine_models.parts.batch import Batch, Span
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence


class StaticScheduler(Scheduler):
    """One group at a time.

    Parameters
    ----------
    rows : most requests of a group.
    kv_tokens : tokens that memory holds.
    windows : of the model's layers, whose spans a step names.
    aggregate : whether runs of equal steps are proven.
    """

    def __init__(
        self, rows: int, kv_tokens: int, *, windows: tuple[int, ...] = (), aggregate: bool = True
    ) -> None:
        self.rows = rows
        self.kv_tokens = kv_tokens
        self.windows = windows
        self.aggregate = aggregate
        self.waiting: deque[Sequence] = deque()
        self.group: list[Sequence] = []
        self.live: list[Sequence] = []
        self.steps = self.longest = 0  # answer tokens of the group so far; tokens of its longest prompt

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        self.waiting.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.waiting or self.live)

    def schedule(self, now_s: float) -> Batch | None:
        """Compute the group's next tokens, or begin the next group; None while none begins."""
        if self.live:
            return self._emit(self._shape(self.next_number), 1) if self._room() > 0 else self._fail()
        group = self._begins(now_s)
        if not group:
            return None
        self.group, self.live, self.steps = group, list(group), 0
        self.longest = max(seq.prompt_tokens for seq in group)
        return self._prefill(now_s) if self._room() > 0 else self._fail()

    def _room(self) -> int:
        """Tokens that each row of the group may still grow by."""
        return self.kv_tokens // len(self.group) - self.longest - self.steps

    def _fail(self) -> Batch:
        """Give up all that still runs: the device has no memory for the group's next tokens."""
        batch = Batch(self.next_number)
        batch.finishing, self.live = self.live, []
        for seq in batch.finishing:
            seq.state = "dropped"
        return batch

    def _begins(self, now_s: float) -> list[Sequence]:
        """Take out the requests of the next group, empty while none begins."""
        return [self.waiting.popleft() for _ in range(min(self.rows, len(self.waiting)))]

    def _prefill(self, now_s: float) -> Batch:
        group = self.group
        batch = Batch(self.next_number)
        batch.spans = tuple([Span(window, 0, 0) for window in self.windows])
        batch.prefill = [(self.longest, 0)] * len(group)
        batch.tokens = sum(seq.prompt_tokens for seq in group)
        batch.padded_tokens = self.longest * len(group)
        batch.gathers = True
        for seq in group:
            seq.first_scheduled_s = now_s
            seq.state = "running"
        return self._emit(batch, 1)

    def _shape(self, number: int) -> Batch:
        """The next step as a batch: all rows of the group are computed, tokens are of those that have not ended."""
        rows, attended = len(self.group), self.longest + self.steps
        batch = Batch(number, rows, len(self.live), rows * attended, tokens=len(self.live))
        batch.padded_tokens = rows
        batch.gathers = True
        batch.spans = tuple([Span(w, rows * min(attended, w), rows * (attended < w)) for w in self.windows])
        return batch

    def _emit(self, batch: Batch, steps: int) -> Batch:
        first, self.next_number = self.next_number, self.next_number + steps
        self.steps += 1
        for seq in self.live:
            seq.emit(first, batch.number)
        batch.finishing = [seq for seq in self.live if seq.prompt_tokens + self.steps >= seq.final_length]
        return batch

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a step; return the requests that ended with it."""
        self.processed_number = batch.number
        for seq in batch.finishing:
            seq.state = "finished"
        self.live = [seq for seq in self.live if seq.state != "finished"]
        return batch.finishing

    def state(self) -> State:
        """Requests, and tokens."""
        used = len(self.group) * (self.longest + self.steps) if self.live else 0
        return len(self.live), len(self.waiting), used, self.kv_tokens

    def close(self) -> None:
        """Nothing is open: tokens are noted as they come."""

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps up to the next end, whoever arrives."""
        if not self.aggregate or not self.live:
            return None
        steps = min(min(seq.final_length - seq.prompt_tokens for seq in self.live) - self.steps, self._room())
        for window in self.windows:
            if self.longest + self.steps < window:
                steps = min(steps, window - self.longest - self.steps)
        return Run(steps, self._shape(self.next_number), deaf=True) if steps > 1 else None

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Compute so many tokens of every row."""
        self.processed_number = self.next_number + steps - 2
        rows, first = len(self.group), self.longest + self.steps + 1
        self.steps += steps - 1
        batch = self._emit(self._shape(self.next_number + steps - 1), steps)
        used = self.state()[2]
        return batch, rows * (first * steps + steps * (steps - 1) // 2), used


__all__ = ["StaticScheduler"]
