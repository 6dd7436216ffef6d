"""Requests that arrive because others end: the next turn of a session, the next of a closed loop."""

from __future__ import annotations

from collections import deque

import numpy as np

from simulator.cluster.outcome import Rows
from simulator.workload.columns import NO_PREDECESSOR


class Releases:
    """Requests without a time of arrival, by what they wait for."""

    def __init__(self) -> None:
        self._followers: dict[int, list[tuple[Rows, int]]] = {}
        self._pools: dict[int, deque[tuple[Rows, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._followers) or bool(self._pools)

    def take(self, block: Rows) -> None:
        """Take in the requests of a block that wait for others; predecessors are rows of the same block."""
        w = block.workload
        for row in np.flatnonzero(~block.known).tolist():
            before = int(w.predecessor[row])
            if before > NO_PREDECESSOR:
                self._followers.setdefault(block.first + before, []).append((block, row))
            else:
                self._pools.setdefault(int(w.class_index[row]), deque()).append((block, row))

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
        block.left -= 1
        for of, follower in self._followers.pop(block.first + row, []):
            self._give_up(of, follower)
