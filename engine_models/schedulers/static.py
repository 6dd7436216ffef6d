"""Fixed groups: up to so many waiting requests are padded to the longest and computed until the last of them ends.

Every row costs what the longest prompt does, rows that have ended still cost, who arrives meanwhile waits for the whole group.
A group is what waits when the device is free. Memory is taken as rows grow: where it does not suffice, all rows that still run
are dropped.

Source: `generate` of transformers 5.24 (`generation/utils.py`); see docs/engines/transformers.md.
"""

from __future__ import annotations

from collections import deque

from engine_models.parts.batch import Batch, Span
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence


class Group:
    """Requests that are computed together to the end of the last: `live` are those that have not ended.

    Parameters
    ----------
    seqs : the requests, one at least.
    row_tokens : tokens that memory holds of each.
    windows : of the model's layers, whose spans a step names.
    at_once : whether all answers are seen when the last has ended.
    """

    def __init__(
        self, seqs: list[Sequence], row_tokens: int, windows: tuple[int, ...] = (), *, at_once: bool = False
    ) -> None:
        self.seqs = seqs
        self.live = list(seqs)
        self.windows = windows
        self.at_once = at_once
        self.steps = 0  # answer tokens so far
        self.longest = max(seq.prompt_tokens for seq in seqs)
        self._row_tokens = row_tokens

    @property
    def room(self) -> int:
        """Tokens that each row may still grow by."""
        return self._row_tokens - self.longest - self.steps

    @property
    def used_tokens(self) -> int:
        """Tokens held, padding included."""
        return len(self.seqs) * (self.longest + self.steps) if self.live else 0

    def prefill(self, number: int, now_s: float) -> Batch:
        """The first step: all prompts, each padded to the longest."""
        batch, seqs = Batch(number), self.seqs
        batch.spans = tuple([Span(window, 0, 0) for window in self.windows])
        batch.prefill = [(self.longest, 0)] * len(seqs)
        batch.tokens = sum(seq.prompt_tokens for seq in seqs)
        batch.padded_tokens = self.longest * len(seqs)
        batch.gathers = True
        for seq in seqs:
            seq.first_scheduled_s = now_s
            seq.state = "running"
        return batch

    def shape(self, number: int) -> Batch:
        """The next step: all rows are computed, tokens are of those that have not ended."""
        rows, attended = len(self.seqs), self.longest + self.steps
        batch = Batch(number, rows, len(self.live), rows * attended, tokens=len(self.live))
        batch.padded_tokens = rows
        batch.gathers = True
        batch.spans = tuple([Span(w, rows * min(attended, w), rows * (attended < w)) for w in self.windows])
        return batch

    def emit(self, batch: Batch, first: int) -> Batch:
        """Note that every batch from `first` to this one yields a token of each row that lives."""
        self.steps += batch.number - first + 1
        ended = [seq for seq in self.live if seq.prompt_tokens + self.steps >= seq.final_length]
        if not self.at_once:
            for seq in self.live:
                seq.emit(first, batch.number)
            batch.finishing = ended
        elif self.rest == 0:
            for seq in self.seqs:
                seq.emissions += [batch.number, batch.number] * (seq.final_length - seq.prompt_tokens)
            batch.finishing = self.seqs
        return batch

    @property
    def rest(self) -> int:
        """Steps until the last ends."""
        return max(seq.final_length - seq.prompt_tokens for seq in self.live) - self.steps

    def settle(self, batch: Batch) -> None:
        """Forget those that have ended with a step."""
        for seq in batch.finishing:
            seq.state = "finished"
        self.live = [seq for seq in self.live if seq.state != "finished"]

    def alike(self) -> int:
        """Next steps that serve the same rows, of which each attends to as much more than the one before."""
        steps = self.room
        if not self.at_once:
            steps = min(steps, min(seq.final_length - seq.prompt_tokens for seq in self.live) - self.steps)
        steps = min(steps, self.rest)
        for window in self.windows:
            if self.longest + self.steps < window:
                steps = min(steps, window - self.longest - self.steps)
        return steps

    def take(self, number: int, steps: int) -> tuple[Batch, int, int]:
        """As of a scheduler, from batch `number` on."""
        first = self.used_tokens + len(self.seqs)
        self.steps += steps - 1
        batch = self.shape(number + steps - 1)
        self.steps -= steps - 1
        held = first * steps + len(self.seqs) * (steps * (steps - 1) // 2)
        self.emit(batch, number)
        return batch, held, first + len(self.seqs) * (steps - 1)

    def drop(self, number: int) -> Batch:
        """Give up all that still runs: the device has no memory for the next tokens."""
        batch = Batch(number)
        batch.finishing, self.live = self.live, []
        for seq in batch.finishing:
            seq.state = "dropped"
        return batch


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
        self.group: Group | None = None

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        self.waiting.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.waiting or self.group)

    def schedule(self, now_s: float) -> Batch | None:
        """Compute the group's next tokens, or begin the next group."""
        group, number = self.group, self.next_number
        if group is None:
            if not self.waiting:
                return None
            seqs = [self.waiting.popleft() for _ in range(min(self.rows, len(self.waiting)))]
            group = self.group = Group(seqs, self._row_tokens(len(seqs)), self.windows)
        if group.room <= 0:
            self.group = None
            return group.drop(number)
        self.next_number += 1
        return group.emit(group.shape(number) if group.steps else group.prefill(number, now_s), number)

    def _row_tokens(self, rows: int) -> int:
        """Tokens that memory holds of each row of a group."""
        return self.kv_tokens // rows

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a step; return the requests that ended with it."""
        self.processed_number = batch.number
        if self.group is not None:
            self.group.settle(batch)
            if not self.group.live:
                self.group = None
        return batch.finishing

    def state(self) -> State:
        """Requests, and tokens."""
        group = self.group
        running, used = (len(group.live), group.used_tokens) if group is not None else (0, 0)
        return running, len(self.waiting), used, self.kv_tokens

    def close(self) -> None:
        """Nothing is open: tokens are noted as they come."""

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps up to the next end, whoever arrives."""
        group = self.group
        if not self.aggregate or group is None or not group.steps:
            return None
        steps = group.alike()
        return Run(steps, group.shape(self.next_number), deaf=True) if steps > 1 else None

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Compute so many tokens of every row."""
        assert self.group is not None
        first, self.next_number = self.next_number, self.next_number + steps
        self.processed_number = self.next_number - 2
        return self.group.take(first, steps)


__all__ = ["Group", "StaticScheduler"]
