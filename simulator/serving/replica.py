"""One replica: an executor that runs the batches of one rank or of several that step together, step by step or many at once.

The executor has a depth. A synchronous engine (depth 1) forms batch k+1 when batch k has ended; an async one (depth 2)
forms batch k+1 when batch k starts, knowing the results up to k-1; a pipeline keeps one batch per stage in flight. A batch's
duration comes from the step's cost, the host's share likewise; under async scheduling the host's work is hidden behind the
device's as long as it is shorter.

Several ranks (data-parallel attention over experts that all share) form their batches at the same moment, from one clock, and a
step lasts as long as its slowest rank. A rank without work is left out.

Proven runs of equal steps are executed as one event (`_jump`); the times are the same sums in the same order, so the result is
equal bit for bit to stepping.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Series
from typing import NamedTuple

import numpy as np

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import INFINITY, FloatArray, Scheduler, StepCost
from engine_models.parts.sequence import Sequence
from simulator.serving.rank import Rank

FEW_STEPS = 48
"""Up to so many steps plain numbers are quicker than arrays."""


class Step(NamedTuple):
    """A step in flight: the ranks that take part and the batch of each."""

    ranks: Series[Rank]
    batches: list[Batch]
    t_end: float

    def ends_a_request(self) -> bool:
        """Whether a request's last token may come with it."""
        return any(batch.finishing for batch in self.batches)


class Priced(NamedTuple):
    """Steps of a run with their ends and device times [s]: `ranks` take part, the first step starts at `first_s`.

    The host needs `host_s` a step. An arrival at a rank ends it unless the rank is deaf; it holds for steps formed before
    `until_s`.
    """

    ranks: Series[Rank]
    deaf: list[bool]
    until_s: float
    host_s: float
    first_s: float
    ends_s: list[float]
    device_s: list[float]


class Replica:
    """An executor over the schedulers of one or several ranks.

    Parameters
    ----------
    schedulers : one a rank.
    cost : seconds of a step of all ranks; of one stage where there are several.
    depth : steps in flight (1 synchronous, 2 async scheduling, stages of a pipeline).
    stages : pipeline stages.
    tokenise_token_s : see `Rank`.
    on_finish : called with each ended request and the time in seconds.
    on_batch : called with each settled batch (for comparison with recorded schedules).
    """

    def __init__(
        self,
        schedulers: Series[Scheduler],
        cost: StepCost,
        *,
        depth: int = 1,
        stages: int = 1,
        tokenise_token_s: float = 0.0,
        on_finish: Callable[[Sequence, float], None] | None = None,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self.ranks = [Rank(scheduler, tokenise_token_s) for scheduler in schedulers]
        self.cost = cost
        self.depth = depth
        self.clock_s = 0.0
        self._in_flight: deque[Step] = deque()
        self._may_schedule = True
        self._stage_free_s = [0.0] * stages
        self._step_guess_s = 1e-3  # only decides how many steps a jump prices at once
        self._priced: Priced | None = None  # still true, beyond the clock
        self._on_finish = on_finish
        self._on_batch = on_batch
        self._sync = depth == 1
        self._asleep_until_s = 0.0  # nothing can be scheduled before, unless a request arrives

    # -- the outside ----------------------------------------------------------------------------------------

    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._in_flight) or any(rank.busy() for rank in self.ranks)

    def _next_arrival_s(self) -> float:
        return min(rank.next_arrival_s() for rank in self.ranks)

    def _has_work(self) -> bool:
        return any(rank.scheduler.has_work() for rank in self.ranks)

    def _wake_s(self) -> float:
        return min(rank.scheduler.wake_s() for rank in self.ranks)

    def next_event_s(self) -> float:
        """A time before which nothing that another part could see will happen here."""
        if self._in_flight and not self._may_schedule:
            return self._in_flight[0].t_end
        if self._in_flight or (self._has_work() and self._asleep_until_s <= self.clock_s):
            return self.clock_s
        due_s = self._next_arrival_s()
        if self._has_work() and self._asleep_until_s < due_s:
            due_s = self._asleep_until_s
        return due_s if due_s > self.clock_s else self.clock_s

    def visible_s(self) -> float:
        """A time before which no request ends here unless another is submitted; not before `next_event_s`.

        In a proven run it is the end of its last step.
        """
        flight = self._in_flight
        if self._wake_s() < INFINITY or len(self._stage_free_s) > 1 or len(flight) > self.depth:
            return self.next_event_s()
        for step in flight:
            if step.ends_a_request():
                return self.next_event_s()
        if self._priced is None:
            self._priced = self._price(INFINITY)
        if self._priced is None:
            return self.next_event_s()
        return max(min(self._priced.ends_s[-1], self._next_arrival_s()), self.next_event_s())

    def advance(self, limit_s: float, *, stop_after_finish: bool = False) -> bool:
        """Process every result up to `limit_s` (inclusive) and every scheduling decision before it.

        With `stop_after_finish` return True as soon as a request has ended; False once the limit is reached.
        """
        ranks, flight = self.ranks, self._in_flight
        only = ranks[0] if len(ranks) == 1 else None
        while True:
            if not self._may_schedule:
                step = flight[0]
                if step.t_end > limit_s:
                    return False
                flight.popleft()
                if step.t_end > self.clock_s:
                    self.clock_s = step.t_end
                ended = self._settle(step)
                self._may_schedule = True
                if ended:
                    self._priced = None
                    if stop_after_finish:
                        return True
                continue
            now = self.clock_s
            if now >= limit_s:
                return False
            for rank in ranks:
                inbox = rank.inbox
                if inbox and inbox[0].arrival_s <= now:
                    rank.receive(now)
                    self._priced = None
            if len(flight) == self.depth - 1 and self._jump(limit_s):
                continue
            self._asleep_until_s = 0.0
            self._priced = None
            formed = only.scheduler.schedule(now) if only is not None else None
            if formed is not None and formed.tokens:
                self._launch(ranks, [formed])
                if len(flight) >= self.depth:
                    self._may_schedule = False
                continue
            again = formed is not None  # only preemptions: try again with the blocks they freed
            if only is None:
                taking, batches, again = self._form(now)
                if taking:
                    self._launch(taking, batches)
                    if len(flight) >= self.depth:
                        self._may_schedule = False
                    continue
            if flight:
                self._may_schedule = False
            elif not again and not self._sleep(limit_s):
                return False

    def _form(self, now_s: float) -> tuple[list[Rank], list[Batch], bool]:
        """Let every rank that has work form its batch; return those that compute, the batches, whether any only preempted."""
        taking: list[Rank] = []
        batches: list[Batch] = []
        again = False
        for rank in self.ranks:
            formed = rank.scheduler.schedule(now_s) if rank.scheduler.has_work() else None
            if formed is not None and formed.tokens:
                taking.append(rank)
                batches.append(formed)
            elif formed is not None:
                again = True
        return taking, batches, again

    def _sleep(self, limit_s: float) -> bool:
        """Let the clock go to the next arrival or wake-up; False if there is none before the limit."""
        due_s = self._next_arrival_s()
        if self._has_work():
            self._asleep_until_s = wake_s = self._wake_s()
            due_s = min(due_s, wake_s)
            if due_s == INFINITY:
                raise RuntimeError("a scheduler holds work that it can never run")
        if due_s >= limit_s:
            return False
        self.clock_s = due_s
        return True

    # -- steps ----------------------------------------------------------------------------------------------

    def _launch(self, ranks: Series[Rank], batches: list[Batch]) -> None:
        now, cost = self.clock_s, self.cost
        device_s, prefills_s = cost.step_s(batches)
        host_s = cost.host_s(batches[0])
        for batch in batches[1:]:
            host_s = max(host_s, cost.host_s(batch))
        if self._sync:
            begin = now
            end = now + (host_s + device_s)
            start = end - device_s if host_s else now
        else:
            ready = now + host_s
            free = self._stage_free_s
            begin = start = ready if ready > free[0] else free[0]
            end = start + device_s
            free[0] = end
            for stage in range(1, len(free)):
                entry = end if end > free[stage] else free[stage]
                end = entry + device_s
                free[stage] = end
            self.clock_s = ready
        for rank, batch, prefill_s in zip(ranks, batches, prefills_s, strict=True):
            batch.t_sched, batch.t_start, batch.t_end = now, start, end
            rank.log.step(
                begin,
                end,
                device_s,
                prefill_s,
                rank.scheduler.state(),
                batch.tokens - batch.decode_tokens,
                batch.decode_tokens,
                len(batch.preempted),
            )
        self._in_flight.append(Step(ranks, batches, end))

    def _settle(self, step: Step) -> bool:
        """Take in the results of a step; return whether a request may have ended."""
        ended = False
        for rank, batch in zip(step.ranks, step.batches, strict=True):
            finished = rank.scheduler.settle(batch)
            if finished:
                ended = True
                rank.in_service -= len(finished)
                if self._on_finish is not None:
                    for seq in finished:
                        self._on_finish(seq, batch.t_end)
            if self._on_batch is not None:
                self._on_batch(batch)
        return ended

    # -- runs -----------------------------------------------------------------------------------------------

    def _price(self, limit_s: float) -> Priced | None:
        """Prove a run and price its steps, not many more than are scheduled before the limit; None if it is shorter than two."""
        flight = self._in_flight
        ranks: Series[Rank] = self.ranks
        if len(ranks) > 1:
            ranks = [rank for rank in ranks if rank.scheduler.has_work()]
            if not ranks or (flight and flight[-1].ranks != ranks):
                return None
        deaf: list[bool] = []
        shapes: list[Batch] = []
        steps, until_s = 1 << 60, INFINITY
        for rank in ranks:
            run = rank.scheduler.run()
            if run is None:
                return None
            deaf.append(run.deaf)
            shapes.append(run.shape)
            steps = min(steps, run.steps)
            until_s = min(until_s, run.until_s)
        first = flight[-1].t_end if flight else self.clock_s
        bound_s = self._bound_s(ranks, deaf, min(until_s, limit_s))
        # do not price steps that will be cut: a shorter jump is as exact
        if bound_s - first < self._step_guess_s * steps:
            if bound_s <= first:
                return None
            steps = min(steps, int((bound_s - first) / self._step_guess_s) + 3)
        cost = self.cost
        host_s = max([cost.host_s(shape) for shape in shapes])
        added_s = host_s if self._sync else 0.0
        if steps <= FEW_STEPS:
            device_s = cost.few_s(shapes, steps)
            ends = few_ends(device_s, first, added_s)
        else:
            times = cost.run_s(shapes, steps)
            device_s = times.tolist()
            ends = many_ends(times, first, added_s)
        if not self._sync and host_s > min(device_s):
            return None  # the device would wait for the host
        self._step_guess_s = (ends[-1] - first) / steps
        return Priced(ranks, deaf, until_s, host_s, first, ends, device_s)

    def _bound_s(self, ranks: Series[Rank], deaf: list[bool], limit_s: float) -> float:
        """Before when steps of a run must be formed: the limit, or the first arrival that may change it."""
        for rank in self.ranks:
            arrives = rank.inbox and rank.inbox[0].arrival_s < limit_s
            if arrives and not (rank in ranks and deaf[ranks.index(rank)]):
                limit_s = rank.inbox[0].arrival_s
        return limit_s

    def _jump(self, limit_s: float) -> bool:
        """Take the steps of a run that are scheduled before the limit; False if those are fewer than two."""
        flight, now = self._in_flight, self.clock_s
        if flight and flight[0].ends_a_request():
            return False
        first = flight[0].t_end if flight else now
        if first >= limit_s:
            return False
        priced = self._priced
        if priced is None or priced.first_s != first:
            self._priced = priced = self._price(limit_s)
            if priced is None:
                return False
        ranks, ends = priced.ranks, priced.ends_s
        bound_s = self._bound_s(ranks, priced.deaf, min(limit_s, priced.until_s))
        if first >= bound_s:
            return False
        # a synchronous step is scheduled when the one before it ends; with one batch ahead, when the one before it starts
        if self._sync:
            n = 1 + bisect_left(ends, bound_s, 0, len(ends) - 1)
        elif now + priced.host_s > first:
            return False
        else:
            n = 2 + bisect_left(ends, bound_s, 0, max(len(ends) - 2, 0))
        if n < 2 or len(ends) < 2:
            return False
        device_s = priced.device_s
        if n < len(ends):
            self._priced = Priced(*priced[:4], ends[n - 1], ends[n:], device_s[n:])
            ends, device_s = ends[:n], device_s[:n]
        else:
            self._priced = None
        if not self._sync:
            self._settle(flight.popleft())
        batches: list[Batch] = []
        for rank, deaf in zip(ranks, priced.deaf, strict=True):
            batch, held = rank.scheduler.take(n)
            batch.t_end, batch.t_start = ends[-1], ends[-2]
            batch.t_sched = ends[-2] if self._sync else ends[-3] if n > 2 else first
            self._log(rank, batch.decode_tokens, now, first, ends, device_s, held, deaf)
            batches.append(batch)
        if self._sync:
            self._may_schedule = False
        else:
            self.clock_s = ends[-2]
            self._stage_free_s[0] = ends[-1]
        flight.append(Step(ranks, batches, ends[-1]))
        return True

    def _log(
        self,
        rank: Rank,
        tokens: int,
        now_s: float,
        first_s: float,
        ends_s: list[float],
        device_s: list[float],
        kv_used: list[int],
        deaf: bool,
    ) -> None:
        """Log the steps of a run; what arrives while it is deaf waits from the next step that is formed."""
        state = rank.scheduler.state()
        waiting, at = state.waiting, 0
        if deaf and rank.inbox:
            formed_s = [first_s, *ends_s[:-1]] if self._sync else [now_s, first_s, *ends_s[:-2]]
            for arrival_s in rank.arrivals_until(formed_s[-1]):
                to = bisect_left(formed_s, arrival_s)
                if to > at:
                    begin_s = ends_s[at - 1] if at else first_s
                    rank.log.run(
                        begin_s, ends_s[at:to], device_s[at:to], kv_used[at:to], state.running, waiting, tokens
                    )
                    at = to
                waiting += 1
        if at:
            first_s, ends_s, device_s, kv_used = ends_s[at - 1], ends_s[at:], device_s[at:], kv_used[at:]
        rank.log.run(first_s, ends_s, device_s, kv_used, state.running, waiting, tokens)


def few_ends(device_s: list[float], first_s: float, host_s: float) -> list[float]:
    """End times of steps one after the other, the first starting at `first_s`; the same sums as `many_ends`."""
    ends: list[float] = []
    t = first_s
    for device in device_s:
        t = t + (device + host_s)
        ends.append(t)
    return ends


def many_ends(device_s: FloatArray, first_s: float, host_s: float) -> list[float]:
    """`few_ends` by arrays."""
    ends = np.empty(len(device_s) + 1)
    ends[0] = first_s
    np.add(device_s, host_s, out=ends[1:])
    np.cumsum(ends, out=ends)
    out: list[float] = ends[1:].tolist()
    return out
