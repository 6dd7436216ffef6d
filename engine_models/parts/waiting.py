"""Requests that wait for admission, first come first served or by priority."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from engine_models.parts.sequence import Sequence


class FirstCome(deque[Sequence]):
    """First come, first served: a preempted request returns to the front."""

    __slots__ = ()

    def put_back(self, seq: Sequence) -> None:
        """Return a request that was tried or preempted."""
        self.appendleft(seq)

    def head(self) -> Sequence:
        """The request to try next."""
        return self[0]

    def take(self) -> Sequence:
        """Take the head out."""
        return self.popleft()


class ByPriority:
    """The smallest (priority, arrival, index) first; a preempted request is simply put back."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Sequence]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[3] for entry in sorted(self._heap))

    def append(self, seq: Sequence) -> None:
        """Enqueue a request."""
        heapq.heappush(self._heap, (seq.priority, seq.arrival_s, seq.index, seq))

    put_back = append

    def head(self) -> Sequence:
        """As of `FirstCome`."""
        return self._heap[0][3]

    def take(self) -> Sequence:
        """As of `FirstCome`."""
        return heapq.heappop(self._heap)[3]

    def remove(self, seq: Sequence) -> None:
        """Take out a request wherever it stands."""
        self._heap = [entry for entry in self._heap if entry[3] is not seq]
        heapq.heapify(self._heap)
