"""What decoding rows attend to in layers of one sliding window, as exact sums.

A row of n tokens attends to min(n, window) of them. It grows by a token a step until it reaches the window, at a step that is
known when it joins: so the rows below the window are counted by that step, and a sum tells what they attend to together.
"""

from __future__ import annotations

import heapq

from engine_models.parts.batch import Span

NEVER = 1 << 60
"""More steps or tokens than any run has."""


class WindowSum:
    """The rows of a decode set in layers of one window; `offset` and `steps` as in `DecodeSet`."""

    __slots__ = ("_at", "_below", "_next", "_offsets", "window_tokens")

    def __init__(self, window_tokens: int) -> None:
        self.window_tokens = window_tokens
        self._below = 0  # rows that do not fill the window, and the sum of their offsets
        self._offsets = 0
        self._at: dict[int, int] = {}  # how many of them fill it, by the step before which they do
        self._next: list[int] = []

    def join(self, offset: int, steps: int) -> None:
        """Count a row that joins after `steps` steps."""
        at = self.window_tokens - offset
        if at <= steps:
            return
        self._below += 1
        self._offsets += offset
        if at in self._at:
            self._at[at] += 1
        else:
            self._at[at] = 1
            heapq.heappush(self._next, at)

    def leave(self, offset: int) -> None:
        """Forget a row."""
        at = self.window_tokens - offset
        if self._at.get(at):
            self._at[at] -= 1
            self._below -= 1
            self._offsets -= offset

    def _reach(self, steps: int) -> None:
        """Take out the rows that fill the window after `steps` steps."""
        due = self._next
        while due and (due[0] <= steps or not self._at[due[0]]):
            at = heapq.heappop(due)
            rows = self._at.pop(at)
            self._below -= rows
            self._offsets -= rows * (self.window_tokens - at)

    def span(self, rows: int, steps: int) -> Span:
        """What all `rows` rows attend to with the next step."""
        self._reach(steps)
        below = self._below
        return Span(
            self.window_tokens, self._offsets + below * steps + (rows - below) * self.window_tokens, below
        )

    def steps_alike(self, steps: int) -> int:
        """Next steps from one to the next of which the same rows grow."""
        self._reach(steps)
        return self._next[0] - steps + 1 if self._next else NEVER


__all__ = ["NEVER", "WindowSum"]
