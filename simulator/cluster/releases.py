"""Requests that arrive because others end: the next turn of a session, the next of a closed loop."""

from __future__ import annotations

from collections import deque

import numpy as np

from simulator.cluster.outcome import Rows
from simulator.workload.columns import ANY_OF_CLASS, NO_PREDECESSOR, More


class Releases:
    """Requests without a time of arrival, by what they wait for.

    Of a streamed workload those in the blocks taken in so far; `more` says what comes after them.
    """

    def __init__(self) -> None:
        self._followers: dict[int, list[tuple[Rows, int]]] = {}
        self._pools: dict[int, deque[tuple[Rows, int]]] = {}
        self.more: More | None = None

    def __bool__(self) -> bool:
        return bool(self._followers) or bool(self._pools) or self.more is not None

    def take(self, block: Rows) -> None:
        """Take in the requests of a block that wait for others."""
        w = block.workload
        self.more = w.more
        for row in np.flatnonzero(~block.known).tolist():
            before = int(w.predecessor[row])
            if before > NO_PREDECESSOR:
                self._followers.setdefault(before, []).append((block, row))
            else:
                self._pools.setdefault(int(w.class_index[row]), deque()).append((block, row))

    def lack(self, block: Rows, row: int) -> bool:
        """Whether a request that is not taken in yet may wait for this one."""
        if self.more is None:
            return False
        if self.more.waits_from == ANY_OF_CLASS:
            return not self._pools.get(int(block.workload.class_index[row]))
        return block.first + row >= self.more.waits_from

    def ended(self, block: Rows, row: int, end_s: float, now_s: float) -> list[tuple[float, Rows, int]]:
        """Requests released by the end of another, and when each arrives [s]: not before `now_s`, not after the duration."""
        released = self._followers.pop(block.first + row, [])
        pool = self._pools.get(int(block.workload.class_index[row]))
        if pool:
            released = [*released, pool.popleft()]
        out = []
        for of, follower in released:
            w = of.workload
            when = max(end_s + float(w.gap_s[follower]), float(w.not_before_s[follower]), now_s)
            if when <= w.duration_s:
                out.append((when, of, follower))
            else:
                self._give_up(of, follower)
        return out

    def _give_up(self, block: Rows, row: int) -> None:
        """Note that a request, and those that wait for it, will never arrive."""
        given_up = [(block, row)]
        while given_up:
            of, follower = given_up.pop()
            of.left -= 1
            given_up += self._followers.pop(of.first + follower, [])
