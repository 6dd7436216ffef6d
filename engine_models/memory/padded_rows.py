"""Keys and values of a batch as one rectangle: all rows as long as the longest, with room ahead.

The rectangle grows by whole steps of `GROWTH_TOKENS`; where it is full at a length that is no multiple of them, the room begins
there. Rows that leave take the padding with them that only they needed.

Source: behaviour of MLX LM 0.32 (`mlx_lm/models/cache.py`: `BatchKVCache`); the limits in recordings of `--prompt-cache-bytes`
show it.
"""

from __future__ import annotations

GROWTH_TOKENS = 256


class PaddedRows:
    """A rectangle: its rows, the tokens of the longest, and the tokens for which each has room."""

    __slots__ = ("longest", "room", "rows")

    def __init__(self, rows: int = 0, longest: int = 0) -> None:
        self.rows, self.longest, self.room = rows, longest, longest

    @property
    def held(self) -> int:
        """Tokens of the whole rectangle."""
        return self.rows * self.room

    def grow(self, tokens: int) -> None:
        """Let every row have so many tokens more."""
        if self.longest + tokens > self.room:
            begin = self.longest if self.longest % GROWTH_TOKENS else self.room
            self.room = begin + -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS
        self.longest += tokens

    def held_over(self, steps: int) -> int:
        """Grow by a token a step; return the sum over the steps of the tokens held with each."""
        total = 0
        while steps:
            if self.longest == self.room:
                self.grow(1)
                total += self.held
                steps -= 1
                continue
            alike = min(steps, self.room - self.longest)
            self.longest += alike
            total += alike * self.held
            steps -= alike
        return total

    def join(self, other: PaddedRows) -> None:
        """Take over the rows of another."""
        self.rows += other.rows
        self.longest = max(self.longest, other.longest)
        self.room = max(self.room, other.room)

    def keep(self, rows: int, longest: int) -> None:
        """Keep so many rows, of which the longest has so many tokens."""
        self.rows = rows
        self.room = max(0, self.room - self.longest + longest) if rows else 0
        self.longest = longest if rows else 0

    def part(self, rows: int, longest: int) -> PaddedRows:
        """A copy that keeps so many rows."""
        found = PaddedRows(self.rows, self.longest)
        found.room = self.room
        found.keep(rows, longest)
        return found
