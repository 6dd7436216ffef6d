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
        self._lacks: dict[int, int] = {}  # by request that waits for several others: those that have not ended yet
        self._given_up: set[int] = set()  # of these
        self._pools: dict[int, deque[tuple[Rows, int]]] = {}
        self._to_come = 0
        self.more: More | None = None

    def __bool__(self) -> bool:
        return bool(self._followers) or bool(self._pools) or self.more is not None

    @property
    def all_sent(self) -> bool:
        """Whether no request is to come any more that waits for another."""
        return not self._to_come and self.more is None

    @property
    def spent(self) -> bool:
        """Whether all are sent that are known, and others may come that are not yet."""
        return not self._to_come and self.more is not None and not self.more.by_clock

    def take(self, block: Rows) -> None:
        """Take in the requests of a block that wait for others."""
        w = block.workload
        self.more = w.more
        waiting = np.flatnonzero(~block.known).tolist()
        self._to_come += len(waiting)
        for row in waiting:
            before = int(w.predecessor[row])
            if before > NO_PREDECESSOR:
                self._followers.setdefault(before, []).append((block, row))
            else:
                self._pools.setdefault(int(w.class_index[row]), deque()).append((block, row))
        for before, after in w.edges.tolist() if w.edges is not None else ():
            self._followers.setdefault(before, []).append((block, after - block.first))
            self._lacks[after] = self._lacks.get(after, 1) + 1

    def lack(self, block: Rows, row: int) -> bool:
        """Whether a request that is not taken in yet may follow this one."""
        return self.more is not None and 0 <= self.more.waits_from <= block.first + row

    def ended(self, block: Rows, row: int, end_s: float, now_s: float) -> list[tuple[float, Rows, int]]:
        """Requests that follow one that has ended, and when each arrives [s]: not before `now_s`, not after the duration."""
        out = []
        for of, follower in self._followers.pop(block.first + row, []):
            number, w = of.first + follower, of.workload
            if number in self._given_up:
                continue
            if number in self._lacks:
                self._lacks[number] -= 1
                if self._lacks[number]:
                    continue
                del self._lacks[number]
            when = max(end_s + float(w.gap_s[follower]), float(w.not_before_s[follower]), now_s)
            if when <= w.duration_s:
                out.append((when, of, follower))
            else:
                self._give_up(of, follower)
        return out

    def ready_s(self, block: Rows, row: int, end_s: float, now_s: float) -> float | None:
        """When the client of an ended request of a closed loop is ready for its next [s]; None outside of one, or too late."""
        w = block.workload
        streamed = self.more is not None and self.more.waits_from == ANY_OF_CLASS
        if not streamed and int(w.class_index[row]) not in self._pools:
            return None
        think_s = 0.0 if w.think_s is None else float(w.think_s[row])
        when = max(end_s + think_s, now_s)
        return when if when <= w.duration_s else None

    def lack_of(self, kind: int) -> bool:
        """Whether the next request of the closed loop of a class may not have been taken in yet."""
        return self.more is not None and not self._pools.get(kind)

    def next_of(self, kind: int) -> tuple[Rows, int] | None:
        """The next request of the closed loop of a class, None if all were sent."""
        pool = self._pools.get(kind)
        return pool.popleft() if pool else None

    def arrived(self) -> None:
        """Note that one of the requests that waited has arrived."""
        self._to_come -= 1

    def _give_up(self, block: Rows, row: int) -> None:
        """Note that a request, and those that wait for it, will never arrive."""
        given_up = [(block, row)]
        while given_up:
            of, follower = given_up.pop()
            if of.first + follower in self._given_up:
                continue
            if self._lacks.pop(of.first + follower, None) is not None:
                self._given_up.add(of.first + follower)
            of.left -= 1
            self._to_come -= 1
            given_up += self._followers.pop(of.first + follower, [])
