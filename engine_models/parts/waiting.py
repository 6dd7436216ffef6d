"""Requests that wait for admission, first come first served or by priority."""

from __future__ import annotations

import heapq
from collections import deque

from engine_models.parts.sequence import Sequence


class WaitingQueue:
    """The waiting requests of one scheduler.

    First come, first served: a preempted request returns to the front. By priority: the smallest
    (priority, arrival, index) is first, and a preempted request is simply put back.
    """

    __slots__ = ("_fcfs", "_heap", "by_priority")

    def __init__(self, *, by_priority: bool) -> None:
        self.by_priority = by_priority
        self._fcfs: deque[Sequence] = deque()
        self._heap: list[tuple[int, float, int, Sequence]] = []

    def __len__(self) -> int:
        return len(self._heap) if self.by_priority else len(self._fcfs)

    def in_order(self) -> list[Sequence]:
        """The requests in the order in which they will be tried."""
        return [entry[3] for entry in sorted(self._heap)] if self.by_priority else list(self._fcfs)

    def append(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        if self.by_priority:
            heapq.heappush(self._heap, (seq.priority, seq.arrival_s, seq.index, seq))
        else:
            self._fcfs.append(seq)

    def put_back(self, seq: Sequence) -> None:
        """Return a request that was tried or preempted."""
        if self.by_priority:
            heapq.heappush(self._heap, (seq.priority, seq.arrival_s, seq.index, seq))
        else:
            self._fcfs.appendleft(seq)

    def head(self) -> Sequence:
        """The request to try next."""
        return self._heap[0][3] if self.by_priority else self._fcfs[0]

    def pop(self) -> Sequence:
        """Take the head out."""
        return heapq.heappop(self._heap)[3] if self.by_priority else self._fcfs.popleft()

    def remove(self, seq: Sequence) -> None:
        """Take out a request wherever it stands."""
        if self.by_priority:
            self._heap = [entry for entry in self._heap if entry[3] is not seq]
            heapq.heapify(self._heap)
        else:
            self._fcfs.remove(seq)
