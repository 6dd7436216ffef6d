"""Workers that take from one queue, each in a window of its own, and compute what they took to the end.

A worker begins to collect when it is free, not when a request arrives: after its last batch, or after a window in which nobody
came. It goes when it has as many as it may take, or at the end of the window; without a window it takes what is there, as soon as
anything is. How long a request has waited is looked at when it is taken, and never again: one that is too old is sent away.

Of several workers that collect, the next request goes to the one that has polled the queue longest; a poll lasts `POLL_S`, and
one that ends when a request comes still gets it. Of windows that end at one time the one goes first whose last poll began first.

Source: behaviour of LitServe 0.2.19 (`loops/base.py`, `loops/simple_loops.py`, `loops/streaming_loops.py`), checked batch by
batch against recordings; see docs/engines/litserve.md.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

from engine_models.parts.protocols import INFINITY
from engine_models.schedulers.worker_groups import Formed, GroupFormer
from hardware_profiles.records import dataclass

POLL_S, LONE_POLL_S = 0.001, 1.0
"""Longest wait for the queue within a window, and of a worker that takes one request at a time (datasheet: `collate_requests`,
`SingleLoop` of LitServe 0.2.19)."""

SUMMED_WINDOWS = 1_000
"""Empty windows whose ends are summed poll by poll, as the worker's clock does (assumed: some hundredths of a second of work)."""

T = TypeVar("T")


@dataclass(frozen=True)
class WindowRules:
    """How workers collect. Names of knobs are those of LitServe.

    Attributes
    ----------
    workers : how many take from the queue.
    max_batch_size : most requests that a worker takes.
    batch_timeout_s : length of a window [s]; 0 for none.
    timeout_s : time in the queue after which a request is sent away when it is taken [s].
    """

    workers: int
    max_batch_size: int
    batch_timeout_s: float
    timeout_s: float = INFINITY


class _Collecting(Generic[T]):
    """A worker that collects: in which window, since when it polls, and what it has taken.

    `closes_s` is when it sees that a window is over in which it has taken somebody, `last_s` when the poll before begins.
    """

    __slots__ = ("closes_s", "end_s", "entered_s", "last_s", "number", "polled_s", "since", "taken")

    def __init__(self, number: int, since: int, now_s: float, window_s: float) -> None:
        self.number = number
        self.since = since  # its turn among those that poll since the same time
        self.taken: list[T] = []
        self.closes_s = self.last_s = INFINITY
        self.enter(now_s, window_s)

    def enter(self, now_s: float, window_s: float) -> None:
        """Begin a window."""
        self.entered_s = self.polled_s = now_s
        self.end_s = now_s + window_s if window_s else INFINITY

    def take(self, request: T | None, now_s: float, poll_s: float) -> None:
        """Take a request (None: one that is too old), and poll again."""
        self.polled_s = now_s
        if request is not None:
            self.taken.append(request)
        if self.taken and self.end_s < INFINITY:
            while now_s < self.end_s:
                self.last_s = now_s
                now_s += min(self.end_s - now_s, poll_s)
            self.closes_s = now_s


class Collectors(GroupFormer[T]):
    """The queue and the workers that collect from it."""

    def __init__(self, rules: WindowRules) -> None:
        super().__init__()
        self.rules = rules
        self.queue: deque[tuple[float, T]] = deque()
        self.taken = 0  # by those that collect
        self._collecting: list[_Collecting[T]] = []
        # alone a worker need not be followed poll by poll
        poll_s = POLL_S if rules.batch_timeout_s else LONE_POLL_S if rules.max_batch_size == 1 else 0.0
        self._poll_s = poll_s if rules.workers > 1 else rules.batch_timeout_s
        for number in range(rules.workers):
            self._collecting.append(_Collecting(number, number, 0.0, rules.batch_timeout_s))
        self._turns = rules.workers

    def add(self, arrival_s: float, request: T, priority: int = 0) -> None:
        """As of the base; all are equal."""
        self.queue.append((arrival_s, request))

    def free(self, worker: int, now_s: float) -> None:
        """A worker has computed its batch and begins to collect."""
        self._collecting.append(_Collecting(worker, self._turn(), now_s, self.rules.batch_timeout_s))

    def _turn(self) -> int:
        self._turns += 1
        return self._turns

    @property
    def waiting(self) -> int:
        """As of the base."""
        return len(self.queue) + self.taken

    @property
    def hears(self) -> bool:
        """As of the base: whether somebody collects."""
        return bool(self._collecting)

    @property
    def unheard(self) -> bool:
        """As of the base."""
        return bool(self.queue)

    def wakes_s(self) -> float:
        """When the first window with a request in it ends."""
        return min((each.closes_s for each in self._collecting), default=INFINITY)

    def until(self, now_s: float) -> list[Formed[T]]:
        """Let the clock go to `now_s`; return what is formed by then, in order of time."""
        formed: list[Formed[T]] = []
        while True:
            at_s, worker = self._next_taker()
            ends_s = self.wakes_s()
            if min(at_s, ends_s) > now_s or (worker is None and ends_s == INFINITY):
                return formed
            if worker is not None and at_s <= ends_s:
                formed += self._take(worker, at_s)
            else:
                ended = min(self._collecting, key=lambda each: (each.closes_s, each.last_s, each.since))
                formed.append(self._form(ended, ends_s, "window"))

    def _next_taker(self) -> tuple[float, _Collecting[T] | None]:
        """When the first in the queue is taken, and by whom."""
        if not self.queue or not self._collecting:
            return INFINITY, None
        arrival_s = self.queue[0][0]
        self._pass_time(arrival_s)
        there = [each for each in self._collecting if each.entered_s <= arrival_s]
        if there:
            return arrival_s, min(there, key=lambda each: (each.polled_s, each.since))
        first = min(self._collecting, key=lambda each: (each.entered_s, each.since))
        return first.entered_s, first

    def _pass_time(self, now_s: float) -> None:
        """Let the empty windows and the polls of those that collect pass, in order of time, then of the polls before."""
        window_s, poll_s = self.rules.batch_timeout_s, self._poll_s
        if not poll_s:
            return
        polling: list[tuple[float, float, int, _Collecting[T]]] = []  # by the next poll, then the one before
        for worker in self._collecting:
            skipped = (
                int((now_s - worker.entered_s) / window_s) - SUMMED_WINDOWS
                if window_s and not worker.taken
                else 0
            )
            if skipped > 0:
                worker.enter(worker.entered_s + skipped * window_s, window_s)
            self._poll(worker, polling)
        while polling and polling[0][0] < now_s:
            worker = polling[0][3]
            worker.polled_s, worker.since = polling[0][0], self._turn()
            heapq.heappop(polling)
            self._poll(worker, polling)

    def _poll(self, worker: _Collecting[T], polling: list[tuple[float, float, int, _Collecting[T]]]) -> None:
        """Note when a worker polls next; one whose window is over without anybody begins another."""
        if worker.polled_s >= worker.end_s:
            if worker.taken:
                return
            worker.enter(worker.polled_s, self.rules.batch_timeout_s)
        until_s = worker.polled_s + min(worker.end_s - worker.polled_s, self._poll_s)
        heapq.heappush(polling, (until_s, worker.polled_s, worker.since, worker))

    def _take(self, worker: _Collecting[T], now_s: float) -> list[Formed[T]]:
        """Let a worker take the first in the queue; without a window, all that it may."""
        rules, queue = self.rules, self.queue
        worker.since = self._turn()
        while True:
            arrival_s, request = queue.popleft()
            if now_s - arrival_s > rules.timeout_s:
                self.lost.append((request, "expired"))
                worker.take(None, now_s, self._poll_s)
            else:
                worker.take(request, now_s, self._poll_s)
                self.taken += 1
            if len(worker.taken) == rules.max_batch_size:
                return [self._form(worker, now_s, "full")]
            if rules.batch_timeout_s:
                return []
            if not queue or queue[0][0] > now_s:
                return [self._form(worker, now_s, "queue empty")] if worker.taken else []

    def _form(self, worker: _Collecting[T], now_s: float, reason: str) -> Formed[T]:
        self._collecting.remove(worker)
        self.taken -= len(worker.taken)
        return Formed(now_s, worker.number, worker.taken, reason)


__all__ = ["Collectors", "WindowRules"]
