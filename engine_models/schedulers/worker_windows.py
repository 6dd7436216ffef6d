"""Workers that take from one queue, each in a window of its own, and compute what they took to the end.

A worker begins to collect when it is free, not when a request arrives: after its last batch, or after a window in which nobody
came. It goes when it has as many as it may take, or at the end of the window; without a window it takes what is there, as soon as
anything is. How long a request has waited is looked at when it is taken, and never again: one that is too old is sent away.

Of several workers that collect, the next request goes to the one that has polled the queue longest; a poll lasts `POLL_S`.

Each worker has a copy of the model. On one device their steps take turns, but each launches its own while others compute.

Source: behaviour of LitServe 0.2.19 (`loops/base.py`, `loops/simple_loops.py`, `loops/streaming_loops.py`), checked batch by
batch against recordings; see docs/engines/litserve.md.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import INFINITY, Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.static import Group

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


class Formed(NamedTuple, Generic[T]):
    """What a worker has taken, when it begins with it, and why it waits no longer: "full", "window" or "queue empty"."""

    at_s: float
    worker: int
    requests: list[T]
    reason: str


class _Collecting(Generic[T]):
    """A worker that collects: in which window, since when it polls, and what it has taken.

    `closes_s` is when it sees that a window is over in which it has taken somebody.
    """

    __slots__ = ("closes_s", "end_s", "entered_s", "number", "polled_s", "rank", "taken")

    def __init__(self, number: int, rank: int, now_s: float, window_s: float) -> None:
        self.number = number
        self.rank = rank  # among those that poll since the same time
        self.taken: list[T] = []
        self.closes_s = INFINITY
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
                now_s += min(self.end_s - now_s, poll_s)
            self.closes_s = now_s


class Collectors(Generic[T]):
    """The queue and the workers that collect from it; those that compute are known to who calls.

    `expired` are the requests sent away, until somebody takes them out.
    """

    def __init__(self, rules: WindowRules) -> None:
        self.rules = rules
        self.queue: deque[tuple[float, T]] = deque()
        self.expired: list[T] = []
        self.taken = 0  # by those that collect
        self._collecting: list[_Collecting[T]] = []
        # alone a worker need not be followed poll by poll
        poll_s = POLL_S if rules.batch_timeout_s else LONE_POLL_S if rules.max_batch_size == 1 else 0.0
        self._poll_s = poll_s if rules.workers > 1 else rules.batch_timeout_s
        for number in range(rules.workers):
            self._collecting.append(_Collecting(number, number, 0.0, rules.batch_timeout_s))
        self._ranks = 0

    def add(self, arrival_s: float, request: T) -> None:
        """A request arrives, not before any other."""
        self.queue.append((arrival_s, request))

    def free(self, worker: int, now_s: float) -> None:
        """A worker has computed its batch and begins to collect."""
        self._ranks -= 1
        self._collecting.append(_Collecting(worker, self._ranks, now_s, self.rules.batch_timeout_s))

    @property
    def any_collects(self) -> bool:
        """Whether a worker would hear of an arrival."""
        return bool(self._collecting)

    def ends_s(self) -> float:
        """When the first window with a request in it ends."""
        return min((each.closes_s for each in self._collecting), default=INFINITY)

    def until(self, now_s: float) -> list[Formed[T]]:
        """Let the clock go to `now_s`; return what is formed by then, in order of time."""
        formed: list[Formed[T]] = []
        while True:
            at_s, worker = self._next_taker()
            ends_s = self.ends_s()
            if min(at_s, ends_s) > now_s or (worker is None and ends_s == INFINITY):
                return formed
            if worker is not None and at_s <= ends_s:
                formed += self._take(worker, at_s)
            else:
                ended = next(each for each in self._collecting if each.closes_s == ends_s)
                formed.append(self._form(ended, ends_s, "window"))

    def _next_taker(self) -> tuple[float, _Collecting[T] | None]:
        """When the first in the queue is taken, and by whom."""
        if not self.queue or not self._collecting:
            return INFINITY, None
        arrival_s = self.queue[0][0]
        for each in self._collecting:
            self._pass_time(each, arrival_s)
        there = [each for each in self._collecting if each.entered_s <= arrival_s]
        if there:
            return arrival_s, min(there, key=lambda each: (each.polled_s, each.rank))
        first = min(self._collecting, key=lambda each: (each.entered_s, each.rank))
        return first.entered_s, first

    def _pass_time(self, worker: _Collecting[T], now_s: float) -> None:
        """Let the empty windows and the polls of a worker pass."""
        window_s, poll_s = self.rules.batch_timeout_s, self._poll_s
        if not poll_s:
            return
        skipped = (
            int((now_s - worker.entered_s) / window_s) - SUMMED_WINDOWS
            if window_s and not worker.taken
            else 0
        )
        if skipped > 0:
            worker.enter(worker.entered_s + skipped * window_s, window_s)
        while True:
            if worker.polled_s >= worker.end_s:
                if worker.taken:
                    return
                worker.enter(worker.polled_s, window_s)
            until_s = worker.polled_s + min(worker.end_s - worker.polled_s, poll_s)
            if until_s > now_s:
                return
            worker.polled_s = until_s

    def _take(self, worker: _Collecting[T], now_s: float) -> list[Formed[T]]:
        """Let a worker take the first in the queue; without a window, all that it may."""
        rules, queue = self.rules, self.queue
        while True:
            arrival_s, request = queue.popleft()
            if now_s - arrival_s > rules.timeout_s:
                self.expired.append(request)
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


class WorkerWindows(Scheduler):
    """Workers of one device that compute groups, their steps by turns.

    Parameters
    ----------
    rules : how they collect.
    kv_tokens : tokens that each worker's memory holds.
    windows : of the model's layers, whose spans a step names.
    at_once : whether the answers of a group are seen when all have ended.
    aggregate : whether runs of equal steps are proven.
    """

    def __init__(
        self,
        rules: WindowRules,
        kv_tokens: int,
        *,
        windows: tuple[int, ...] = (),
        at_once: bool = True,
        aggregate: bool = True,
    ) -> None:
        self.rules = rules
        self.kv_tokens = kv_tokens
        self.windows = windows
        self.at_once = at_once
        self.aggregate = aggregate
        self.collectors = Collectors[Sequence](rules)
        self.running: dict[int, Group] = {}  # by worker, who has waited longest for the device first
        self._stepping = -1  # worker of the latest step
        self._shape = Batch(-1)

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        self.collectors.add(seq.arrival_s, seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        collectors = self.collectors
        return bool(collectors.queue or collectors.taken or self.running)

    def wake_s(self) -> float:
        """When the next window ends in which there is a request."""
        return self.collectors.ends_s()

    def schedule(self, now_s: float) -> Batch | None:
        """The next step of the worker whose turn it is; None while all collect."""
        self._collect(now_s)
        number = self.next_number
        if self.collectors.expired:
            batch = Batch(number)
            batch.finishing, self.collectors.expired = self.collectors.expired, []
            for seq in batch.finishing:
                seq.state = "expired"
            return batch
        if not self.running:
            return None
        worker, group = next(iter(self.running.items()))
        del self.running[worker]
        if group.room <= 0:
            self.collectors.free(worker, now_s)
            return group.drop(number)
        self.running[worker] = group
        self._stepping = worker
        self.next_number += 1
        batch = group.shape(number) if group.steps else group.prefill(number, now_s)
        batch.launchers = len(self.running)
        return group.emit(batch, number)

    def _collect(self, now_s: float) -> None:
        for formed in self.collectors.until(now_s):
            group = Group(
                formed.requests, self.kv_tokens // len(formed.requests), self.windows, at_once=self.at_once
            )
            self.running[formed.worker] = group

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a step; return the requests that ended with it."""
        self.processed_number = batch.number
        group = self.running[self._stepping]
        group.settle(batch)
        if not group.live:
            del self.running[self._stepping]
            self.collectors.free(self._stepping, batch.t_end)
        return batch.finishing

    def state(self) -> State:
        """Requests, and tokens of all workers."""
        collectors, groups = self.collectors, self.running.values()
        waiting = len(collectors.queue) + collectors.taken
        used = sum(group.used_tokens for group in groups)
        return sum(len(group.live) for group in groups), waiting, used, self.kv_tokens * self.rules.workers

    def close(self) -> None:
        """Nothing is open: tokens are noted as they come."""

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps of the only group that runs, up to its next end or the end of another worker's window."""
        collectors = self.collectors
        heard = collectors.any_collects
        if not self.aggregate or len(self.running) != 1 or collectors.expired or (heard and collectors.queue):
            return None
        ((worker, group),) = self.running.items()
        if not group.steps:
            return None
        steps = group.alike()
        if steps < 2:
            return None
        self._stepping = worker
        return Run(steps, group.shape(self.next_number), collectors.ends_s(), deaf=not heard)

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Compute so many tokens of every row."""
        ((_, group),) = self.running.items()
        first, self.next_number = self.next_number, self.next_number + steps
        self.processed_number = self.next_number - 2
        return group.take(first, steps)


__all__ = ["Collectors", "Formed", "WindowRules", "WorkerWindows"]
