"""Workers of one device that compute groups of requests to the end, each its own; how groups are formed is another part's.

Each worker has a copy of the model. On one device their steps take turns, but each launches its own while others compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.static import Group

T = TypeVar("T")


class Formed(NamedTuple, Generic[T]):
    """What a worker computes next, when it begins with it, and why nobody else is waited for."""

    at_s: float
    worker: int
    requests: list[T]
    reason: str


class GroupFormer(ABC, Generic[T]):
    """The queue before some workers, and who of it goes to which together.

    `lost` are the requests that get no answer, each with the state that says why ("expired", "shed"), until somebody takes them
    out.
    """

    def __init__(self) -> None:
        self.lost: list[tuple[T, str]] = []

    @abstractmethod
    def add(self, arrival_s: float, request: T, priority: int = 0) -> None:
        """A request arrives, not before any other."""

    @abstractmethod
    def free(self, worker: int, now_s: float) -> None:
        """A worker has computed its group."""

    @abstractmethod
    def until(self, now_s: float) -> list[Formed[T]]:
        """Let the clock go to `now_s`; return what is formed by then, in order of time."""

    @abstractmethod
    def wakes_s(self) -> float:
        """When, without an arrival, something happens next."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Requests that no worker computes yet."""

    @property
    @abstractmethod
    def hears(self) -> bool:
        """Whether an arrival may matter before a worker is free."""

    @property
    @abstractmethod
    def unheard(self) -> bool:
        """Whether somebody has arrived since the clock went on."""


class WorkerGroups(Scheduler):
    """Workers of one device that compute groups, their steps by turns.

    Parameters
    ----------
    former : forms the groups.
    workers : how many there are.
    kv_tokens : tokens that each worker's memory holds.
    windows : of the model's layers, whose spans a step names.
    at_once : whether the answers of a group are seen when all have ended.
    aggregate : whether runs of equal steps are proven.
    """

    def __init__(
        self,
        former: GroupFormer[Sequence],
        workers: int,
        kv_tokens: int,
        *,
        windows: tuple[int, ...] = (),
        at_once: bool = True,
        aggregate: bool = True,
    ) -> None:
        self.former = former
        self.workers = workers
        self.kv_tokens = kv_tokens
        self.windows = windows
        self.at_once = at_once
        self.aggregate = aggregate
        self.running: dict[int, Group] = {}  # by worker, who has waited longest for the device first
        self._stepping = -1  # worker of the latest step

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        self.former.add(seq.arrival_s, seq, seq.priority)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running or self.former.waiting or self.former.lost)

    def wake_s(self) -> float:
        """When the next group may be formed."""
        return self.former.wakes_s()

    def schedule(self, now_s: float) -> Batch | None:
        """The next step of the worker whose turn it is; None while all wait."""
        former, number = self.former, self.next_number
        for formed in former.until(now_s):
            row_tokens = self.kv_tokens // len(formed.requests)
            self.running[formed.worker] = Group(
                formed.requests, row_tokens, self.windows, at_once=self.at_once
            )
        if former.lost:
            batch, lost = Batch(number), former.lost
            former.lost = []
            for seq, state in lost:
                seq.state = state
                batch.finishing.append(seq)
            return batch
        if not self.running:
            return None
        worker, group = next(iter(self.running.items()))
        del self.running[worker]
        if group.room <= 0:
            former.free(worker, now_s)
            return group.drop(number)
        self.running[worker] = group
        self._stepping = worker
        self.next_number += 1
        batch = group.shape(number) if group.steps else group.prefill(number, now_s)
        batch.launchers = len(self.running)
        return group.emit(batch, number)

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a step; return the requests that ended with it."""
        self.processed_number = batch.number
        group = self.running[self._stepping]
        group.settle(batch)
        if not group.live:
            del self.running[self._stepping]
            self.former.free(self._stepping, batch.t_end)
        return batch.finishing

    def state(self) -> State:
        """Requests, and tokens of all workers."""
        groups = self.running.values()
        used = sum(group.used_tokens for group in groups)
        running = sum(len(group.live) for group in groups)
        return running, self.former.waiting, used, self.kv_tokens * self.workers

    def close(self) -> None:
        """Nothing is open: tokens are noted as they come."""

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps of the only group that runs, up to its next end or what the others wake for."""
        former = self.former
        heard = former.hears
        if not self.aggregate or len(self.running) != 1 or former.lost or (heard and former.unheard):
            return None
        ((worker, group),) = self.running.items()
        if not group.steps:
            return None
        steps = group.alike()
        if steps < 2:
            return None
        self._stepping = worker
        return Run(steps, group.shape(self.next_number), former.wakes_s(), deaf=not heard)

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Compute so many tokens of every row."""
        ((_, group),) = self.running.items()
        first, self.next_number = self.next_number, self.next_number + steps
        self.processed_number = self.next_number - 2
        return group.take(first, steps)


__all__ = ["Formed", "GroupFormer", "WorkerGroups"]
