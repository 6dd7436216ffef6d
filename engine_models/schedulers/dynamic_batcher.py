"""A batcher thread: it puts requests together until a preferred number waits, the oldest has waited enough, or none may join.

The thread looks at the queue whenever a request may change something, an instance takes a batch or has computed one, or its own
time has come. It walks the queue, sends away who has waited beyond the queue's time-out (or puts him behind all others), and

- takes the largest preferred number that it comes by, if the oldest of those it walked over has not waited the whole delay;
- takes all that it walked over if no more may join, the delay is over, or there is none;
- else sleeps until the delay or the next time-out is over.

A batch that no instance has taken yet still grows, unless it is *saturated*: full, of the largest preferred number, or, without a
delay, of a preferred one. Where no request can expire or be refused, batches are formed ahead, twice as many as instances; else
only for an instance that waits. When an instance takes a batch, later ones whose requests have waited the whole delay join it.

Here threads take no time, and an instance takes a batch before the batcher looks again.

Source: Triton's core at 73aad7c (2026-06): `dynamic_batch_scheduler.cc`, `scheduler_utils.cc`, `instance_queue.cc`,
`rate_limiter.cc`. Nothing is recorded; timelines worked by hand from these lines are tested.
"""

from __future__ import annotations

from collections import deque
from dataclasses import field
from typing import Generic, Literal, TypeVar

from engine_models.parts.protocols import INFINITY
from engine_models.schedulers.worker_groups import Formed, GroupFormer
from hardware_profiles.records import dataclass

LOOK_S, LEAST_WAIT_S = 0.5, 1e-6
"""How often a batcher looks that nobody wakes, or that waits for an instance, and its shortest wait (datasheet:
`default_wait_microseconds` and the last lines of `GetDynamicBatch`)."""

T = TypeVar("T")


@dataclass(frozen=True)
class QueuePolicy:
    """Of one priority: most requests that wait (0: any number), time-out [s] (0: none), and what becomes of those beyond it."""

    max_queue_size: int = 0
    timeout_s: float = 0.0
    action: Literal["REJECT", "DELAY"] = "REJECT"


@dataclass(frozen=True)
class BatcherRules:
    """What a batcher may do. Names are those of Triton's model configuration.

    Attributes
    ----------
    instances : copies of the model.
    max_batch_size : most requests of a batch.
    preferred_batch_sizes : in rising order, one at least.
    max_queue_delay_s : how long the oldest waits for others [s].
    policies : of each priority, the first goes first.
    default_priority : of requests that state none, counted from 1.
    prefetches : whether batches are formed ahead.
    """

    instances: int
    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...]
    max_queue_delay_s: float = 0.0
    policies: tuple[QueuePolicy, ...] = (QueuePolicy(),)
    default_priority: int = 1

    @property
    def prefetches(self) -> bool:
        """As said above: one priority, and a policy that sends nobody away."""
        return self.policies == (QueuePolicy(),)


@dataclass
class _Waiting(Generic[T]):
    """A request in the queue: since when, until when it may be taken."""

    arrival_s: float
    request: T
    deadline_s: float


@dataclass
class _Level(Generic[T]):
    """The queue of one priority: who waits, and behind them who has waited too long."""

    policy: QueuePolicy
    queue: deque[_Waiting[T]] = field(default_factory=deque)
    delayed: deque[_Waiting[T]] = field(default_factory=deque)

    @property
    def size(self) -> int:
        """Requests that wait."""
        return len(self.queue) + len(self.delayed)


@dataclass
class _Payload(Generic[T]):
    """A batch: its requests, the oldest first, and whether instances may take it."""

    requests: list[_Waiting[T]] = field(default_factory=list)
    queued: bool = False


class DynamicBatcher(GroupFormer[T]):
    """The queues, the batches that wait for an instance, and the thread between them."""

    def __init__(self, rules: BatcherRules) -> None:
        super().__init__()
        self.rules = rules
        self._preferred = frozenset(rules.preferred_batch_sizes)
        self._largest = rules.preferred_batch_sizes[-1]
        self._coming: deque[tuple[float, int, T]] = deque()
        self._freed: deque[tuple[float, int]] = deque()
        self._levels = [_Level[T](policy) for policy in rules.policies]
        self._idle = deque(range(rules.instances))
        self._payloads: deque[_Payload[T]] = deque()
        self._current: _Payload[T] | None = None  # that grows
        self._saturated = False
        self._enough = 0  # requests for which the sleeping thread is woken
        self._wakes_s = INFINITY
        self._rests_since_s = 0.0  # the thread finds nobody in the queue
        self._formed: list[Formed[T]] = []

    # -- the outside ----------------------------------------------------------------------------------------

    def add(self, arrival_s: float, request: T, priority: int = 0) -> None:
        """As of the base."""
        self._coming.append((arrival_s, priority, request))

    def free(self, worker: int, now_s: float) -> None:
        """As of the base."""
        self._freed.append((now_s, worker))

    @property
    def waiting(self) -> int:
        """As of the base."""
        inside = sum(len(payload.requests) for payload in self._payloads)
        return len(self._coming) + inside + self._queued

    @property
    def hears(self) -> bool:
        """As of the base: whether an instance waits, or requests may be sent away."""
        return bool(self._idle or self._freed) or not self.rules.prefetches

    @property
    def unheard(self) -> bool:
        """As of the base."""
        return bool(self._coming or self._freed)

    def wakes_s(self) -> float:
        """As of the base."""
        return self._wakes_s

    def until(self, now_s: float) -> list[Formed[T]]:
        """As of the base."""
        coming, freed = self._coming, self._freed
        while True:
            arrival_s = coming[0][0] if coming else INFINITY
            free_s = freed[0][0] if freed else INFINITY
            at_s = min(arrival_s, free_s, self._wakes_s)
            if at_s > now_s or at_s == INFINITY:
                break
            if free_s == at_s:
                self._idle.append(freed.popleft()[1])
                self._hand_out(at_s)
                self._look(at_s)
            elif self._wakes_s == at_s:
                self._look(at_s)
            else:
                self._arrive(*coming.popleft())
        formed, self._formed = self._formed, []
        return formed

    # -- the thread -----------------------------------------------------------------------------------------

    @property
    def _queued(self) -> int:
        return sum(level.size for level in self._levels)

    def _arrive(self, now_s: float, priority: int, request: T) -> None:
        rules = self.rules
        number = min(priority, len(self._levels)) if priority > 0 else rules.default_priority
        level = self._levels[number - 1]
        policy = level.policy
        if policy.max_queue_size and level.size >= policy.max_queue_size:
            self.lost.append((request, "shed"))
            return
        deadline_s = now_s + policy.timeout_s if policy.timeout_s else INFINITY
        level.queue.append(_Waiting(now_s, request, deadline_s))
        if self._has_slot() and (self._saturated or self._current is None or self._queued >= self._enough):
            self._look(now_s)
        elif self._rests_since_s < INFINITY:
            looks = int((now_s - self._rests_since_s) / LOOK_S) + 1
            self._wakes_s = min(self._wakes_s, self._rests_since_s + looks * LOOK_S)

    def _has_slot(self) -> bool:
        """Whether a batch may be formed: ahead, or for an instance that waits."""
        if self.rules.prefetches:
            return len(self._payloads) < 2 * self.rules.instances
        return len(self._idle) > len(self._payloads)

    def _look(self, now_s: float) -> None:
        """Form batches until the thread has to wait for something."""
        while True:
            self._wakes_s = self._rests_since_s = INFINITY
            if self._saturated or self._current is None:
                self._current, self._saturated, self._enough = _Payload[T](), False, 0
            if not self._queued:
                self._rests_since_s = now_s
                return
            if not self._has_slot():
                self._wait_for_slot(now_s)
                return
            payload = self._current
            taken, until_s = self._choose(now_s)
            if until_s > now_s:
                self._wakes_s = until_s
                return
            payload.requests += taken
            if payload.requests and not payload.queued:
                payload.queued = True
                self._payloads.append(payload)
            self._hand_out(now_s)

    def _wait_for_slot(self, now_s: float) -> None:
        if self.rules.prefetches:
            return
        for level in self._levels:
            if level.policy.action == "REJECT":
                self.lost += [(each.request, "expired") for each in level.queue if each.deadline_s < now_s]
                level.queue = deque(each for each in level.queue if each.deadline_s >= now_s)
        if any(level.policy.timeout_s for level in self._levels):
            self._wakes_s = now_s + LOOK_S

    def _hand_out(self, now_s: float) -> None:
        """Let instances that wait take the batches that wait."""
        rules, payloads = self.rules, self._payloads
        while self._idle and payloads:
            payload = payloads.popleft()
            while (
                payloads
                and rules.max_queue_delay_s > 0.0
                and now_s - payloads[0].requests[0].arrival_s > rules.max_queue_delay_s
                and len(payload.requests) + len(payloads[0].requests) <= rules.max_batch_size
            ):
                joined = payloads.popleft()
                payload.requests += joined.requests
                if joined is self._current:
                    self._current = None
            if payload is self._current:
                self._current = None
            requests = [each.request for each in payload.requests]
            reason = "full" if len(requests) == rules.max_batch_size else "batch"
            self._formed.append(Formed(now_s, self._idle.popleft(), requests, reason))

    def _choose(self, now_s: float) -> tuple[list[_Waiting[T]], float]:
        """Who of the queue joins the current batch, taken out of it; or until when to wait [s]."""
        rules = self.rules
        assert self._current is not None
        inside = len(self._current.requests)
        walked: list[tuple[_Level[T], _Waiting[T]]] = []
        best, full = 0, False
        for level in self._levels:
            while not full:
                entry = self._next(level, sum(of is level for of, _ in walked), now_s)
                if entry is None:
                    break
                if inside + len(walked):
                    beyond = inside + len(walked) + 1
                    if beyond > self._largest and not best:
                        best, self._saturated = len(walked), True
                    if beyond > rules.max_batch_size:
                        full = True
                        break
                walked.append((level, entry))
                if inside + len(walked) in self._preferred:
                    best = len(walked)
        if not walked:
            self._saturated = self._saturated or full
            return [], 0.0
        delay_s = rules.max_queue_delay_s
        oldest_s = min(entry.arrival_s for _, entry in walked)
        over = delay_s > 0.0 and now_s >= oldest_s + delay_s
        if best and not over:
            self._saturated = self._saturated or not delay_s
            return self._out(walked[:best]), 0.0
        if full or inside + len(walked) >= self._largest:
            self._saturated = True
            return self._out(walked), 0.0
        if over or not delay_s:
            return self._out(walked), 0.0
        more = [size for size in rules.preferred_batch_sizes if size > inside + len(walked)]
        self._enough = (more or rules.preferred_batch_sizes)[0] - inside
        if not self._saturated and inside and inside not in self._preferred:
            return self._out(walked), 0.0
        closest_s = min(entry.deadline_s for _, entry in walked)
        until_s = min(oldest_s + delay_s, closest_s)
        return [], max(until_s, now_s + LEAST_WAIT_S)

    def _next(self, level: _Level[T], at: int, now_s: float) -> _Waiting[T] | None:
        """The request at a place of a level, after those have gone that have waited too long."""
        queue = level.queue
        while at < len(queue) and queue[at].deadline_s < now_s:
            entry = queue[at]
            del queue[at]
            if level.policy.action == "DELAY":
                level.delayed.append(_Waiting(entry.arrival_s, entry.request, INFINITY))
            else:
                self.lost.append((entry.request, "expired"))
        if at < len(queue):
            return queue[at]
        at -= len(queue)
        return level.delayed[at] if at < len(level.delayed) else None

    def _out(self, walked: list[tuple[_Level[T], _Waiting[T]]]) -> list[_Waiting[T]]:
        """Take requests out of the queue."""
        for level, _ in walked:
            (level.queue or level.delayed).popleft()
        return [entry for _, entry in walked]


__all__ = ["BatcherRules", "DynamicBatcher", "QueuePolicy"]
