"""Whom the router lets in, who waits before it, and when a client tries again."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container
from itertools import count
from random import Random
from typing import Literal

from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass
from simulator.cluster.outcome import SHED, Reason, Rows


@dataclass(frozen=True)
class Admission:
    """Limits of the router.

    max_inflight : requests in flight at each replica; where none has room, a new one is answered `on_full` or waits.
    max_queue : requests that wait at most; one more is answered 429.
    rate_per_s, burst : requests a second that are let in, and how many at once after a pause.
    queue_timeout_s : a request that has waited so long is answered with an error.
    """

    max_inflight: int | None = None
    max_queue: int | None = None
    on_full: Literal["429", "503", "wait"] = "429"
    rate_per_s: float | None = None
    burst: int = 1
    queue_timeout_s: float | None = None


@dataclass(frozen=True)
class Backoff:
    """Tries of one request, and the time before each but the first: ``first_s factor^k``, at most `most_s`.

    `jitter_share` is the share of that time by which it may be longer or shorter.
    """

    attempts: int
    first_s: float
    factor: float
    jitter_share: float = 0.0
    most_s: float = INFINITY

    def delay_s(self, failed: int, draw: Random) -> float:
        """Time before the next try after `failed` ones."""
        delay_s = min(self.first_s * self.factor ** (failed - 1), self.most_s)
        return delay_s * (1.0 + self.jitter_share * draw.uniform(-1.0, 1.0)) if self.jitter_share else delay_s


@dataclass(frozen=True)
class ClientRules:
    """How long a client waits for an answer, for ever if None, and for which reasons and when it tries again, if it does."""

    backoff: Backoff | None = None
    on: frozenset[Reason] = frozenset()
    timeout_s: float | None = None


Entry = tuple[Rows, Sequence]


class Door:
    """The queue before a router, by priority and then in order of arrival; requests for other replicas pass those that wait.

    Parameters
    ----------
    rules : its limits.
    room : whether some replica has room for a request at a time.
    group_of : by which replicas a request may be served.
    """

    def __init__(
        self, rules: Admission, room: Callable[[float, Sequence], bool], group_of: Callable[[Sequence], int] = lambda seq: 0
    ) -> None:
        self.rules = rules
        self._room, self._group_of = room, group_of
        self._waiting: dict[int, Entry] = {}
        # of each group: priority, order, request; those that left stay until they come up
        self._heaps: dict[int, list[tuple[int, int, int]]] = {}
        self._order = count()
        self._tokens = float(rules.burst)
        self._counted_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self, groups: Container[int]) -> int:
        """Requests of some groups that wait."""
        return sum(self._group_of(seq) in groups for _, seq in self._waiting.values())

    def ask(self, now_s: float, seq: Sequence) -> Reason | Literal["in", "wait"]:
        """Whether a request that comes now is let in, has to wait, or why it is sent away."""
        rules = self.rules
        if not self._first(self._group_of(seq)) and self.next_s(now_s) <= now_s and self._room(now_s, seq):
            self._spend()
            return "in"
        if rules.on_full != "wait":
            return SHED[rules.on_full]
        full = rules.max_queue is not None and len(self._waiting) >= rules.max_queue
        return Reason.SHED_429 if full else "wait"

    def push(self, block: Rows, seq: Sequence) -> None:
        """Let a request wait."""
        self._waiting[seq.index] = block, seq
        heap = self._heaps.setdefault(self._group_of(seq), [])
        heapq.heappush(heap, (seq.priority, next(self._order), seq.index))

    def _first(self, group: int) -> list[tuple[int, int, int]]:
        """The heap of a group, on top of which somebody waits if it is not empty."""
        heap = self._heaps.get(group, [])
        while heap and heap[0][2] not in self._waiting:
            heapq.heappop(heap)
        return heap

    def next(self, now_s: float) -> Entry | None:
        """Let in the first that waits and may come in now, if there is one."""
        if not self._waiting or self.next_s(now_s) > now_s:
            return None
        for heap in sorted(heap for heap in map(self._first, self._heaps) if heap):
            if self._room(now_s, self._waiting[heap[0][2]][1]):
                self._spend()
                return self._waiting.pop(heapq.heappop(heap)[2])
        return None

    def leave(self, seq: Sequence) -> bool:
        """A request waits no longer; False if it does not wait."""
        return self._waiting.pop(seq.index, None) is not None

    def next_s(self, now_s: float) -> float:
        """When the rate lets the next request in."""
        rate = self.rules.rate_per_s
        if rate is None:
            return now_s
        self._tokens = min(self._tokens + (now_s - self._counted_s) * rate, float(self.rules.burst))
        self._counted_s = now_s
        return now_s if self._tokens >= 1.0 - ROUNDING else now_s + (1.0 - self._tokens) / rate

    def _spend(self) -> None:
        if self.rules.rate_per_s is not None:
            self._tokens -= 1.0


ROUNDING = 1e-9
"""Part of a token of the rate that may be missing: it comes in sums of floating-point numbers."""
