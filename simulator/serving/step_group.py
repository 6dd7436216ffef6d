"""Ranks that step together: data-parallel attention over experts that all ranks share.

Every rank has its own scheduler, KV cache and requests, as a replica has. But each layer of experts waits for the tokens of all
ranks, so a step of the group lasts as long as its slowest rank: a rank that prefills delays the decoding rows of the others, and
a rank without work runs along on a dummy token. All ranks form their batches at the same moment, from one clock.

To the cluster, the tables and the timeline a rank is a replica (`Rank`); only its `advance` moves the whole group. Runs of pure
decode steps of all ranks are one event, as in `simulator.serving.replica`, with the same times as stepping to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import Batch, ContinuousScheduler
from simulator.serving.replica import FEW_STEPS, INFINITY, FloatArray, Replica, few_ends, many_ends

Load = tuple[int, int]
"""Decoding rows of one rank and the KV tokens that they attend to."""


class GroupTimes(Protocol):
    """What a group asks of a step-time model. All times in seconds; ranks without work are left out of the lists."""

    def group_s(self, batches: list[Batch]) -> tuple[float, list[float]]:
        """Device time of a step of the group, and the part of it attributed to each rank's prefill rows."""
        ...

    def group_decode_run_s(self, loads: list[Load], steps: int) -> FloatArray:
        """Device times of `steps` pure decode steps; every rank attends to its rows more from step to step."""
        ...

    def host_s(self, rows: int, prefill_tokens: int) -> float:
        """Host time of one rank to form, launch and read back a batch."""
        ...


@dataclass(slots=True)
class _Step:
    """A step in flight: the ranks that take part and the batch of each."""

    ranks: list[Rank]
    batches: list[Batch]
    t_end: float

    def ends_a_request(self) -> bool:
        """Whether a request's last token may come with it."""
        return any(batch.finishing for batch in self.batches)


class Rank(Replica):
    """One data-parallel rank, seen from outside as a replica; whoever advances it advances its group."""

    def __init__(self, scheduler: ContinuousScheduler, group: StepGroup, **options: Any) -> None:
        super().__init__(scheduler, group.idle_times, depth=group.depth, **options)
        self.group = group

    def busy(self) -> bool:
        """Whether anything is left to do on this rank."""
        return bool(self._inbox) or self.scheduler.has_work()

    def next_event_s(self) -> float:
        """A time before which nothing that another part could see will happen in the group."""
        return self.group.next_event_s()

    def quiet_until_s(self) -> float:
        """As `next_event_s`."""
        return self.group.next_event_s()

    def advance(self, limit_s: float, *, stop_after_finish: bool = False) -> bool:
        """Advance the group, see `StepGroup.advance`."""
        return self.group.advance(limit_s, stop_after_finish=stop_after_finish)

    def next_arrival_s(self) -> float:
        """When the next known request reaches the scheduler."""
        return self._inbox[0].arrival_s if self._inbox else INFINITY

    def may_change_s(self) -> float:
        """When an arrival may change the next steps of this rank."""
        if not self._inbox or self.scheduler.ignores_arrivals():
            return INFINITY
        return self._inbox[0].arrival_s

    def process(self, batch: Batch) -> None:
        """Take in the results of a batch."""
        self._process(batch)


class StepGroup:
    """An executor over the schedulers of several ranks, with one clock.

    Parameters
    ----------
    schedulers : one a rank.
    times : the step-time model of the group.
    depth : steps in flight (1 synchronous, 2 async scheduling).
    tokenise_token_s, on_finish : as of a `Replica`.
    """

    def __init__(
        self,
        schedulers: list[ContinuousScheduler],
        times: GroupTimes,
        *,
        depth: int = 1,
        tokenise_token_s: float = 0.0,
        on_finish: Callable[[Sequence, float], None] | None = None,
    ) -> None:
        self.times = times
        self.idle_times: Any = times  # a rank prices nothing by itself
        self.depth = depth
        self.clock_s = 0.0
        self._sync = depth == 1
        self._in_flight: deque[_Step] = deque()
        self._may_schedule = True
        self._device_free_s = 0.0
        self._step_guess_s = 1e-3  # only decides how many steps a jump prices at once
        self.ranks = [
            Rank(scheduler, self, tokenise_token_s=tokenise_token_s, on_finish=on_finish)
            for scheduler in schedulers
        ]

    def next_event_s(self) -> float:
        """A time before which nothing that another part could see will happen here."""
        if self._in_flight and not self._may_schedule:
            return self._in_flight[0].t_end
        if self._in_flight or any(rank.scheduler.has_work() for rank in self.ranks):
            return self.clock_s
        return max(self._next_arrival_s(), self.clock_s)

    def _next_arrival_s(self) -> float:
        return min(rank.next_arrival_s() for rank in self.ranks)

    def _reach(self, now_s: float) -> None:
        self.clock_s = now_s
        for rank in self.ranks:
            rank.clock_s = now_s

    def advance(self, limit_s: float, *, stop_after_finish: bool = False) -> bool:
        """Process every result up to `limit_s` (inclusive) and every scheduling decision before it.

        With `stop_after_finish` return True as soon as a request of any rank has ended; False once the limit is reached.
        """
        flight, ranks = self._in_flight, self.ranks
        while True:
            if not self._may_schedule:
                step = flight[0]
                if step.t_end > limit_s:
                    return False
                flight.popleft()
                if step.t_end > self.clock_s:
                    self._reach(step.t_end)
                for rank, batch in zip(step.ranks, step.batches, strict=True):
                    rank.process(batch)
                self._may_schedule = True
                if stop_after_finish and step.ends_a_request():
                    return True
                continue
            now = self.clock_s
            if now >= limit_s:
                return False
            for rank in ranks:
                rank.receive(now)
            if self._jump(limit_s):
                continue
            taking: list[Rank] = []
            batches: list[Batch] = []
            preempted = False
            for rank in ranks:
                formed = rank.scheduler.schedule(now) if rank.scheduler.has_work() else None
                if formed is not None and formed.tokens:
                    taking.append(rank)
                    batches.append(formed)
                elif formed is not None:
                    preempted = True  # it may run with the blocks they freed
            if taking:
                self._launch(taking, batches)
                if len(flight) >= self.depth:
                    self._may_schedule = False
            elif flight:
                self._may_schedule = False
            elif not preempted:
                due_s = self._next_arrival_s()
                if due_s == INFINITY and any(rank.scheduler.has_work() for rank in ranks):
                    raise RuntimeError("a scheduler holds work that it can never run")
                if due_s >= limit_s:
                    return False
                self._reach(due_s)

    def _launch(self, taking: list[Rank], batches: list[Batch]) -> None:
        now, times = self.clock_s, self.times
        device_s, prefills_s = times.group_s(batches)
        host_s = max(
            times.host_s(b.decode_rows + len(b.prefill), b.tokens - b.decode_tokens) for b in batches
        )
        if self._sync:
            end = now + (host_s + device_s)
            start = end - device_s if host_s else now
        else:
            ready = now + host_s
            start = ready if ready > self._device_free_s else self._device_free_s
            end = self._device_free_s = start + device_s
            self._reach(ready)
        for rank, batch, prefill_s in zip(taking, batches, prefills_s, strict=True):
            batch.t_sched, batch.t_start, batch.t_end = now, start, end
            rank.note(batch, device_s, prefill_s)
        self._in_flight.append(_Step(taking, batches, end))

    def _jump(self, limit_s: float) -> bool:
        """Run pure decode steps of all ranks that work, each scheduled before `limit_s`; False if fewer than two are sure."""
        flight = self._in_flight
        if len(flight) != self.depth - 1:
            return False
        active = [rank for rank in self.ranks if rank.scheduler.has_work()]
        if not active or (flight and (flight[0].ranks != active or flight[0].ends_a_request())):
            return False
        steps = min(rank.scheduler.horizon() for rank in active)
        if steps < 2:
            return False
        now = self.clock_s
        bound_s = min(limit_s, min(rank.may_change_s() for rank in self.ranks))
        first = flight[0].t_end if flight else now
        if first >= bound_s:
            return False
        # do not price steps that an arrival will cut: a shorter jump is as exact
        if bound_s - first < self._step_guess_s * steps:
            steps = min(steps, int((bound_s - first) / self._step_guess_s) + 3)
        loads = [(rank.scheduler.decodes.count, rank.scheduler.decodes.kv_tokens()) for rank in active]
        host_s = max(self.times.host_s(rows, 0) for rows, _ in loads)
        device_s = self.times.group_decode_run_s(loads, steps)
        if steps <= FEW_STEPS:
            found = few_ends(self._sync, device_s.tolist(), first, now, host_s, bound_s)
        else:
            found = many_ends(self._sync, device_s, first, now, host_s, bound_s)
        if found is None:
            return False
        ends, total_s = found
        self._step_guess_s = total_s / len(ends)
        step = _Step(active, [rank.decode_until(ends, first, total_s) for rank in active], ends[-1])
        if self._sync:
            for batch in step.batches:
                batch.t_sched = ends[-2]
            self._may_schedule = False
        else:
            flight.popleft()
            for rank, batch in zip(active, step.batches, strict=True):
                rank.scheduler.processed_number = batch.number - 1
                batch.t_sched = ends[-3] if len(ends) > 2 else first
            self._reach(ends[-2])
            self._device_free_s = ends[-1]
        flight.append(step)
        return True
