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
from itertools import accumulate, chain, cycle

import numpy as np
from mypy_extensions import mypyc_attr

from engine_models.declaration import FrontEnd
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import INFINITY, FloatArray, Gate, Scheduler, StepCost
from engine_models.parts.sequence import Sequence
from hardware_profiles.errors import InfeasibleError
from simulator.serving.rank import NO_FRONT_END, Rank

FEW_STEPS = 96
"""Up to so many steps plain numbers are quicker than arrays."""


Step = tuple[Series[Rank], list[Batch], float]
"""A step in flight: the ranks that take part, the batch of each, and its end [s]."""


def ends_a_request(step: Step) -> bool:
    """Whether a request's last token may come with it."""
    for batch in step[1]:  # noqa: SIM110  quicker than `any` where there is one
        if batch.finishing:
            return True
    return False


Priced = tuple[Series[Rank], Series[bool], float, float, float, bool, list[float]]
"""Steps of a run: ranks that take part, which of them arrivals do not disturb, before when the proof lets steps be formed, the
host's time of a step, the start of the first, whether the last comes after the proven ones (`Run.vain`), the ends of all [s]."""


class Slowed(StepCost):
    """Steps that take longer on the device: a straggler."""

    def __init__(self, cost: StepCost, factor: float) -> None:
        self._cost, self._factor = cost, factor

    def step_s(self, batches: Series[Batch]) -> tuple[float, list[float]]:
        """As of the base."""
        device_s, prefills_s = self._cost.step_s(batches)
        self.launch_s, self.launch_wait_s = self._cost.launch_s, self._cost.launch_wait_s * self._factor
        self.first_s, self.last_s = self._cost.first_s * self._factor, self._cost.last_s * self._factor
        return device_s * self._factor, [each * self._factor for each in prefills_s]

    def run_s(self, shapes: Series[Batch], steps: int) -> FloatArray:
        """As of the base."""
        device_s: FloatArray = self._cost.run_s(shapes, steps) * self._factor
        return device_s

    def few_s(self, shapes: Series[Batch], steps: int) -> list[float]:
        """As of the base."""
        return [each * self._factor for each in self._cost.few_s(shapes, steps)]

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return self._cost.host_s(batch)


@mypyc_attr(allow_interpreted_subclasses=True)
class Replica:
    """An executor over the schedulers of one or several ranks.

    Parameters
    ----------
    schedulers : one a rank.
    cost : seconds of a step of all ranks; of one stage where there are several.
    depth : steps in flight (1 synchronous, 2 async scheduling, stages of a pipeline).
    stages : pipeline stages.
    launches_ahead : see `Executor`.
    front : see `Rank`.
    gate : what the ranks agree on before they form a step.
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
        launches_ahead: bool = False,
        front: FrontEnd = NO_FRONT_END,
        gate: Gate | None = None,
        on_finish: Callable[[Sequence, float], None] | None = None,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self.ranks = [Rank(scheduler, front) for scheduler in schedulers]
        self._only = self.ranks[0] if len(self.ranks) == 1 else None
        self.cost = self._own_cost = cost.of_server()
        self._alone = cost.taken_alone
        self.depth = depth
        self.clock_s = 0.0
        self._in_flight: deque[Step] = deque()
        self._may_schedule = True
        self._stage_free_s = [0.0] * stages
        self._step_guess_s = 1e-3  # only decides how many steps a jump prices at once
        self._priced: Priced | None = None  # still true, beyond the clock
        self._bound_s = INFINITY  # before when steps of the run priced last had to be formed
        self._lags_to_s = -INFINITY  # what `follow` has found, while it advances
        self._on_finish = on_finish
        self._on_batch = on_batch
        self._sync = depth == 1
        self._staged = stages > 1
        for rank in self.ranks:
            rank.log.staged = self._staged
        self._asleep_until_s = 0.0  # nothing can be scheduled before, unless a request arrives
        self._gate = gate
        self._launched_s = 0.0  # when the host has launched the steps so far
        self._launches_ahead = launches_ahead
        self._hears_in_step = any(scheduler.hears_in_step for scheduler in schedulers)
        self._posts = any(scheduler.posts for scheduler in schedulers)
        self.meant_for: tuple[int, int] | None = None
        """Lengths of prompts that a label of this server names [tokens], both bounds included."""

    # -- the outside ----------------------------------------------------------------------------------------

    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._in_flight) or any(rank.busy() for rank in self.ranks)

    @property
    def may_lag(self) -> bool:
        """Whether nobody outside looks at more than its ends of requests, unless it is advanced for that."""
        return True

    @property
    def in_service(self) -> int:
        """Requests submitted and not finished."""
        return sum(rank.in_service for rank in self.ranks)

    def next_arrival_s(self) -> float:
        """A time before which none of those that were submitted and are still on their way reaches a scheduler."""
        only = self._only
        return only.next_arrival_s() if only is not None else min(rank.next_arrival_s() for rank in self.ranks)

    def _has_work(self) -> bool:
        only = self._only
        return only.scheduler.has_work() if only is not None else any(rank.scheduler.has_work() for rank in self.ranks)

    def _wake_s(self) -> float:
        only = self._only
        return only.scheduler.wake_s() if only is not None else min(rank.scheduler.wake_s() for rank in self.ranks)

    def states(self) -> list[tuple[int, int, int, int]]:
        """`state` of each rank's scheduler at the time up to which the replica was advanced.

        Who came while a run heard nobody waits too: as many as had come when its last step was formed.
        """
        formed_s = self._formed_s()
        found = []
        for rank in self.ranks:
            running, waiting, used, whole = rank.scheduler.state()
            found.append((running, waiting + sum(1 for _ in rank.arrivals_until(formed_s)), used, whole))
        return found

    def _formed_s(self) -> float:
        """When the last step under way was formed: who had come by then has been heard, also in a run that hears nobody."""
        return max([batch.t_sched for _, batches, _ in self._in_flight for batch in batches], default=-INFINITY)

    def next_event_s(self) -> float:
        """A time before which nothing that another part could see will happen here."""
        if self._in_flight and not self._may_schedule:
            return self._in_flight[0][2]
        if self._in_flight or (self._has_work() and self._asleep_until_s <= self.clock_s):
            return self.clock_s
        due_s = self.next_arrival_s()
        if self._has_work() and self._asleep_until_s < due_s:
            due_s = self._asleep_until_s
        return due_s if due_s > self.clock_s else self.clock_s

    def settles_s(self) -> float:
        """A time before which no step's results are seen here; not before `next_event_s`: a host that is busy sees them later."""
        due_s = self.next_event_s()
        return max(self._in_flight[0][2], due_s) if self._in_flight else due_s

    def visible_s(self) -> float:
        """A time before which no request ends here unless another is submitted; not before `next_event_s`.

        In a proven run it is the end of its last step.
        """
        quiet_s = self._quiet_s()
        if quiet_s == -INFINITY:
            return self.settles_s()
        event_s = self.next_event_s()
        return quiet_s if quiet_s > event_s else event_s

    def _quiet_s(self) -> float:
        """When a proven run is over or the step ends in which the next request comes; -INFINITY where none is proven now."""
        for step in self._in_flight:
            if ends_a_request(step):
                return -INFINITY
        priced = self._priced
        if priced is None:
            priced = self._priced = self._price(INFINITY) if not self._staged else None
            if priced is None:
                return -INFINITY
        if self._wake_s() < INFINITY:
            return -INFINITY
        over_s, heard_s = priced[6][-2 if priced[5] else -1], self.heard_s()
        return over_s if over_s < heard_s else heard_s

    def heard_s(self) -> float:
        """A time before which none of those on their way is let in: in a proven run, the end of the step in which it comes."""
        next_s, priced = self.next_arrival_s(), self._priced
        if priced is None or next_s >= priced[2]:  # no longer proven
            return next_s
        ends = priced[6]
        at = bisect_left(ends, next_s)
        return ends[at] if at < len(ends) else next_s

    def follow(self, limit_s: float) -> float:
        """Advance as far as requests may end up to a time: a run that is not over by then is left whole. Return `visible_s`."""
        self._lags_to_s = -INFINITY
        self.advance(limit_s, lags=True)
        return self._lags_to_s if self._lags_to_s > limit_s else self.visible_s()

    def advance(self, limit_s: float, *, stop_after_finish: bool = False, lags: bool = False) -> bool:
        """Process every result up to `limit_s` (inclusive) and every scheduling decision before it.

        With `stop_after_finish` return True as soon as a request has ended; False once the limit is reached. A replica that
        `lags` leaves for later what cannot end a request up to the limit: a run is then taken whole.
        """
        ranks, flight, only, ahead = self.ranks, self._in_flight, self._only, self.depth - 1
        for rank in ranks:
            rank.reach(limit_s)
        while True:
            if not self._may_schedule:
                taking, batches, end_s = flight[0]
                if end_s > limit_s:
                    return False
                if self._hears_in_step:
                    self._receive(end_s)
                flight.popleft()
                if end_s > self.clock_s:
                    self.clock_s = end_s
                ended = False
                self._may_schedule = True
                number = 0
                for batch in batches:
                    finished = taking[number].scheduler.settle(batch)
                    if self._on_batch is not None:
                        self._on_batch(batch)
                    if finished:
                        ended, self._priced = True, None
                        self._end(taking[number], finished, end_s)
                    number += 1  # noqa: SIM113  quicker than to enumerate one
                if ended and stop_after_finish:
                    return True
                continue
            now = self.clock_s
            if now >= limit_s:
                return False
            heard = False  # who has just come is let in, or found to wait, by a step of its own: no run can be proven
            for rank in ranks:
                inbox = rank.inbox
                if inbox and inbox[0].arrival_s <= now:
                    rank.receive(now)
                    heard = True
            if heard:
                self._priced = None
            elif self._staged:
                if only is not None and self._jump_staged(only, limit_s):
                    continue
            elif len(flight) == ahead:
                if lags:
                    quiet_s = self._quiet_s()
                    if quiet_s > limit_s:
                        self._lags_to_s = quiet_s
                        return False
                if self._jump(limit_s):
                    continue
            if self._asleep_until_s > now and not heard and not flight and self._rests():  # it knows until when
                if self._sleep(limit_s):
                    continue
                return False
            self._asleep_until_s = 0.0
            self._priced = None
            if only is None:
                taking, batches, again = self._form(now)
            else:
                formed = only.scheduler.schedule(now)
                taking, batches, again = ranks, [], False
                if formed is not None and formed.tokens:
                    batches = [formed]
                elif formed is not None:
                    again = self._goes_on(formed)
                    if formed.finishing:  # dropped
                        self._end(only, formed.finishing, now)
                        if stop_after_finish:
                            return True
            if batches:
                self._launch(taking, batches)
                if len(flight) > ahead:
                    self._may_schedule = False
            elif flight:
                self._may_schedule = False
            elif not again and not self._sleep(limit_s):  # after preemptions alone: again, with the blocks they freed
                return False

    def end(self, limit_s: float) -> None:
        """Advance to the end of a load."""
        self.advance(limit_s)

    def _receive(self, now_s: float) -> None:
        """Hand the requests that have arrived to the schedulers."""
        for rank in self.ranks:
            if rank.next_arrival_s() <= now_s:
                rank.receive(now_s)
                self._priced = None

    def _form(self, now_s: float) -> tuple[Series[Rank], list[Batch], bool]:
        """Let every rank that has work form its batch; return those that compute, the batches, whether any only preempted."""
        taking: list[Rank] = []
        batches: list[Batch] = []
        again = False
        if self._gate is not None:
            self._gate.agree([rank.scheduler for rank in self.ranks])
        for rank in self.ranks:
            formed = rank.scheduler.schedule(now_s) if rank.scheduler.has_work() else None
            if formed is not None and formed.tokens:
                taking.append(rank)
                batches.append(formed)
            elif formed is not None:
                again |= self._goes_on(formed)
                self._end(rank, formed.finishing, now_s)
        return taking, batches, again

    def _goes_on(self, nothing: Batch) -> bool:
        """Whether the loop decides again at once after a batch in which nothing is computed."""
        return True

    def _rests(self) -> bool:
        """Whether the loop, which has nothing to do now and has heard nothing, need not decide until it is to wake up."""
        return True

    def _sleep(self, limit_s: float) -> bool:
        """Let the clock go to the next arrival or wake-up; False if there is none before the limit."""
        due_s = self.next_arrival_s()
        if self._has_work():
            self._asleep_until_s = wake_s = self._wake_s()
            due_s = min(due_s, wake_s)
            if due_s == INFINITY:
                stuck = next(filter(None, (rank.scheduler.stuck() for rank in self.ranks)), None)
                if stuck is None:
                    raise RuntimeError("a scheduler holds work that it can never run")
                raise InfeasibleError(stuck, mend="limit the tokens of an answer, or give the KV cache more memory")
        if due_s >= limit_s:
            return False
        self.clock_s = due_s
        return True

    def cancel(self, rank: Rank, seq: Sequence, now_s: float) -> bool:
        """Forget a request that has not ended, at the time up to which the replica was advanced; False if it ends by itself.

        What steps under way would yield of it counts for nobody.
        """
        self._priced = None
        self._asleep_until_s = 0.0
        if seq.arrival_s <= (formed_s := self._formed_s()):
            rank.receive(formed_s)
        if rank.forget(seq):
            return True
        forgotten = rank.scheduler.cancel(seq)
        if forgotten:
            rank.in_service -= 1
            rank.drop_unended(seq, now_s)
        return forgotten

    def renew(self, schedulers: Series[Scheduler], now_s: float) -> None:
        """Forget everything at the time up to which the replica was advanced; go on, empty, with fresh schedulers.

        A step under way stays in the log. `start` says from when the replica serves again.
        """
        for rank, scheduler in zip(self.ranks, schedulers, strict=True):
            rank.renew(scheduler, now_s)
        self._in_flight.clear()
        self._may_schedule = True
        self._priced = None
        self.cost = self._own_cost = self._own_cost.of_server()
        self._alone = self.cost.taken_alone

    def settle_ahead(self) -> None:
        """Take in the results of all steps under way but the last, as a run does that is taken at once; who ends is not told.

        So a replica that is lost has counted the same, however it was advanced.
        """
        flight = self._in_flight
        while len(flight) > 1:
            ranks, batches, _ = flight.popleft()
            for rank, batch in zip(ranks, batches, strict=True):
                rank.scheduler.settle(batch)

    def start(self, now_s: float) -> None:
        """Serve from now on, or from the end of the step that was under way."""
        ends_s = (rank.log.end_s[-1] for rank in self.ranks if rank.log.end_s)
        self.clock_s = max((now_s, *ends_s))
        self._asleep_until_s = 0.0
        self._stage_free_s = [self.clock_s] * len(self._stage_free_s)

    def slow(self, factor: float) -> None:
        """From the next step on the device takes `factor` times as long."""
        self.cost = self._own_cost if factor == 1.0 else Slowed(self._own_cost, factor)
        self._priced = None

    # -- steps ----------------------------------------------------------------------------------------------

    def _launch(self, ranks: Series[Rank], batches: list[Batch]) -> None:
        now, cost = self.clock_s, self.cost
        device_s, prefills_s = cost.step_s(batches)
        if self._alone:
            self._alone -= 1
        if len(batches) == 1:
            batch = batches[0]
            device_s = (device_s if device_s > batch.streams_s else batch.streams_s) + batch.stall_s
            host_s = cost.host_s(batch)
        else:
            device_s = max(device_s, max([batch.streams_s for batch in batches]))
            device_s += max([batch.stall_s for batch in batches])  # each rank has a way of its own
            host_s = self._host_s(batches)
        waits_s = cost.launch_wait_s
        if self._posts and self._sync:
            host_s += max([batch.posts_s for batch in batches])
        if self._sync:
            begin, idle_s = now, host_s
            end = now + (host_s + device_s)
            start = end - device_s if host_s else now
        else:
            self.clock_s = now + host_s
            if self._launches_ahead and cost.launch_s:
                device_s, waits_s = self._queued(device_s, waits_s)
            if self._posts:
                device_s = self._posted(batches, device_s)
            if self._staged:
                begin, end = self._through_stages(self.clock_s, device_s, cost.first_s, cost.last_s)
                idle_s = end - begin - device_s
            else:
                free_s = self._stage_free_s
                begin, idle_s = self.clock_s if self.clock_s > free_s[0] else free_s[0], 0.0
                end = free_s[0] = begin + device_s
            start = begin
            if self._launched_s > self.clock_s:  # the host forms the next step when it has launched this one
                self.clock_s = self._launched_s
        for number, batch in enumerate(batches):
            batch.t_sched, batch.t_start, batch.t_end = now, start, end
            rank = ranks[number]
            running, waiting, held, _ = rank.scheduler.state()
            prefilled = batch.tokens - batch.decode_tokens
            rank.log.run(
                begin,
                [end],
                idle_s,
                running,
                waiting,
                held,
                held,
                batch.decode_tokens,
                prefills_s[number],
                prefilled,
                len(batch.preempted),
                waits_s if prefilled else 0.0,
            )
            if rank.loop is not None:
                rank.loop.waiting.append((1, batch.decode_rows, len(batch.prefill)))
        self._in_flight.append((ranks, batches, end))

    def _queued(self, device_s: float, waits_s: float) -> tuple[float, float]:
        """Device time of a step whose launches begin while the step before it runs, and how long the device waits for them.

        The host launches one step after the other, this one when it is formed, and sees the results of the step before when that
        is done; until then it forms no other.
        """
        now_s, free_s = self.clock_s, self._stage_free_s[0]
        self._launched_s = now_s + self.cost.launch_s
        if self._in_flight and self._in_flight[-1][2] < self._launched_s:
            for rank in self._in_flight[-1][0]:
                if rank.loop is not None:
                    rank.loop.sees_late(self._launched_s)
        own_s = device_s - waits_s
        behind_s = self._launched_s - (now_s if now_s > free_s else free_s)
        return (behind_s, behind_s - own_s) if behind_s > own_s else (own_s, 0.0)

    def _posted(self, batches: list[Batch], device_s: float) -> float:
        """Device time of a step that the host launches once it has posted what came before; the device waits for it."""
        now_s, free_s = self.clock_s, self._stage_free_s[0]
        launched_s = now_s + max([batch.posts_s for batch in batches]) + self.cost.launch_s
        for batch in batches:
            batch.launched_s = launched_s
        return max(device_s, launched_s - (now_s if now_s > free_s else free_s))

    def _end(self, rank: Rank, finished: list[Sequence], now_s: float) -> None:
        """Note requests that have ended."""
        rank.in_service -= len(finished)
        if self._on_finish is not None:
            for seq in finished:
                self._on_finish(seq, now_s)

    # -- runs -----------------------------------------------------------------------------------------------

    def _price(self, limit_s: float, *, lone: bool = False) -> Priced | None:
        """Prove a run and price its steps, not many more than are scheduled before the limit; None if it is shorter than two.

        Where somebody comes during the step in flight only one can be formed before, which is priced if a `lone` one is of use.
        """
        if self._alone:
            return None
        flight, only = self._in_flight, self._only
        ranks: Series[Rank] = self.ranks
        deaf: Series[bool]
        shapes: Series[Batch]
        vain = False
        if only is not None:
            run = only.scheduler.run()
            if run is None:
                return None
            steps, until_s, deaf, shapes = run.steps + run.vain, run.until_s, (run.deaf,), (run.shape,)
            vain = run.vain
        else:
            ranks = [rank for rank in ranks if rank.scheduler.has_work()]
            if not ranks or (flight and flight[-1][0] != ranks):
                return None
            runs = [rank.scheduler.run() for rank in ranks]
            proven = [run for run in runs if run is not None]
            if len(proven) < len(runs):
                return None
            steps, until_s = min(run.steps for run in proven), min(run.until_s for run in proven)
            deaf, shapes = [run.deaf for run in proven], [run.shape for run in proven]
        first = flight[-1][2] if flight else self.clock_s
        bound_s = until_s if until_s < limit_s else limit_s
        if only is None:
            bound_s = self._bound(ranks, deaf, bound_s)
        elif only.inbox and not deaf[0]:
            next_s = only.inbox[0].arrival_s
            if next_s < bound_s:
                bound_s = next_s
        self._bound_s = bound_s
        # do not price steps that will be cut: a shorter jump is as exact
        if bound_s <= first:
            if not lone:
                return None
            steps, vain = 1, False
        elif bound_s - first < self._step_guess_s * steps:
            some = int((bound_s - first) / self._step_guess_s) + 3
            if some < steps:
                steps, vain = some, False
        cost, sync = self.cost, self._sync
        host_s = cost.host_s(shapes[0]) if only is not None else self._host_s(shapes)
        if steps <= FEW_STEPS:
            device_s = cost.few_s(shapes, steps)
            if not sync and host_s > min(device_s):
                return None  # the device would wait for the host
            ends = few_ends(device_s, first, host_s if sync else 0.0)
        else:
            times_s = cost.run_s(shapes, steps)
            if not sync and host_s > float(times_s.min()):
                return None
            ends = many_ends(times_s, first, host_s if sync else 0.0)
        self._step_guess_s = (ends[-1] - first) / steps
        return ranks, deaf, until_s, host_s, first, vain, ends

    def _host_s(self, batches: Series[Batch]) -> float:
        """The host's time of a step: ranks work side by side."""
        return max(map(self.cost.host_s, batches))

    def _bound(self, ranks: Series[Rank], deaf: Series[bool], limit_s: float) -> float:
        """Before when steps of a run must be formed: the limit, or the first arrival that may change it."""
        for rank in self.ranks:
            inbox = rank.inbox
            if inbox and inbox[0].arrival_s < limit_s and not (rank in ranks and deaf[ranks.index(rank)]):
                limit_s = inbox[0].arrival_s
        return limit_s

    def _jump(self, limit_s: float) -> bool:
        """Take the steps of a run that are formed before the limit; False if none is proven, or the host is late."""
        flight, now, sync = self._in_flight, self.clock_s, self._sync
        first = now
        if flight:
            ahead = flight[0]
            for batch in ahead[1]:  # as `ends_a_request`, without its call
                if batch.finishing:
                    return False
            first = ahead[2]
        priced = self._priced
        if priced is None or priced[4] != first:
            priced = self._price(limit_s if first < limit_s else INFINITY, lone=now < first)  # what is left is kept
            if priced is None:
                return False
            ranks, deaf, until_s, host_s, _, vain, ends = priced
            bound_s = self._bound_s if self._bound_s < limit_s else limit_s
        else:
            ranks, deaf, until_s, host_s, _, vain, ends = priced
            bound_s = self._bound(ranks, deaf, until_s if until_s < limit_s else limit_s)
        if now >= bound_s:
            return False
        # a synchronous step is scheduled when the one before it ends; with one batch ahead, when the one before it starts
        n = steps = len(ends)
        if sync:
            n = 1 + bisect_left(ends, bound_s, 0, steps - 1)
        elif now + host_s > first:
            return False
        elif first >= bound_s:
            n = 1
        elif steps > 1:
            n = 2 + bisect_left(ends, bound_s, 0, steps - 2)
        self._priced = None
        if n < steps:
            if bound_s == limit_s and n + vain < steps:  # nothing but the limit cuts it
                self._priced = ranks, deaf, until_s, host_s, ends[n - 1], vain, ends[n:]
            ends, vain = ends[:n], False
        if not sync:
            flight.popleft()
            if self._on_batch is not None:
                for batch in ahead[1]:
                    self._on_batch(batch)
        batches: list[Batch] = []
        idle_s = host_s if sync else 0.0
        after: Batch | None = None  # the step in vain
        number = 0
        for rank in ranks:
            if deaf[number] and rank.inbox:
                batch = self._take_deaf(rank, first, ends, idle_s)
            else:
                scheduler = rank.scheduler
                batch, kv_steps, kv_peak = scheduler.take(n - vain)
                if vain:
                    found = scheduler.take_vain(batch)
                    if found is None:
                        del ends[-1]
                        n -= 1
                    else:
                        after, held = found
                        kv_steps += held
                        if held > kv_peak:
                            kv_peak = held
                running, waiting, _, _ = scheduler.state()
                rank.log.run(first, ends, idle_s, running, waiting, kv_steps, kv_peak, batch.decode_tokens)
                if rank.loop is not None:
                    rank.loop.waiting.append((n, batch.decode_rows, 0))
            batches.append(batch)
            number += 1  # noqa: SIM113
        end_s, start_s = ends[-1], ends[-2] if n > 1 else first
        formed_s = ends[-3] if n > 2 else first if n > 1 else now  # when the step before the one before it ends
        if sync:
            formed_s = start_s
            self._may_schedule = False
        elif after is None:
            self.clock_s = start_s
            self._stage_free_s[0] = end_s
        else:
            after.t_sched, after.t_start, after.t_end = formed_s, start_s, end_s
            self.clock_s = formed_s + host_s
            self._stage_free_s[0] = end_s
            self._may_schedule = False
            formed_s, start_s, end_s = ends[-4] if n > 3 else first if n > 2 else now, formed_s, start_s
        for batch in batches:
            batch.t_sched, batch.t_start, batch.t_end = formed_s, start_s, end_s
        flight.append((ranks, batches, end_s))
        if after is not None:
            flight.append((ranks, [after], after.t_end))
        return True

    def _jump_staged(self, rank: Rank, limit_s: float) -> bool:
        """Take the steps of a run over the stages of a pipeline, whose batches take turns; False if none is proven.

        A step is formed when the batch in flight longest is settled, of the rows of that batch. Their times are found one after
        the other, then the scheduler takes them all, in parts only where somebody arrives.
        """
        scheduler, flight, cost = rank.scheduler, self._in_flight, self.cost
        for step in flight:
            if ends_a_request(step):
                return False
        run = None if self._alone else scheduler.run()
        if run is None or len(flight) != len(run.turns):
            return False
        until_s = run.until_s
        if self.clock_s >= until_s:
            return False
        shapes = (run.shape, *run.turns)
        turns, deaf, steps = len(shapes), run.deaf, run.steps
        next_s, bound_s = rank.next_arrival_s(), until_s if until_s < limit_s else limit_s
        began_s = now = self.clock_s
        left_s = (bound_s if deaf or bound_s < next_s else next_s) - now
        if left_s < self._step_guess_s * steps:
            steps = max(1, min(steps, int(left_s / self._step_guess_s) + 3))
        each = -(-steps // turns)
        of_shapes_s = [
            cost.few_s((shape,), each) if each <= FEW_STEPS else cost.run_s((shape,), each).tolist()
            for shape in shapes
        ]
        device_s = list(chain.from_iterable(zip(*of_shapes_s, strict=True)))
        host_s = [cost.host_s(shape) for shape in shapes]
        tokens = [shape.decode_tokens for shape in shapes]
        running, waiting, _, _ = scheduler.state()
        flying = deque([batches[0] for _, batches, _ in flight])
        due_s = [end_s for _, _, end_s in flight]  # of those in flight, and of all that join them
        formed_s: list[float] = []
        starts_s: list[float] = []
        idle_s: list[float] = []
        free_s = self._stage_free_s
        first_free_s, last_free_s, between = free_s[0], free_s[-1], tuple(range(1, len(free_s) - 1))
        stop_s = next_s if next_s < bound_s and not deaf else bound_s
        halt_s = stop_s if stop_s < next_s else next_s
        joins = turns < self.depth  # who arrives is let in beside the batches in flight
        taken = 0
        hears = settles = False  # whether something else comes first now, and whether that is after another batch has ended
        del device_s[steps:]
        for settled_s, device, host in zip(chain((now,), due_s), device_s, cycle(host_s)):  # `due_s` grows as it is read
            begin_s = settled_s if settled_s > now else now
            if begin_s >= halt_s:
                if settled_s > limit_s:
                    break
                done, now = len(starts_s), begin_s
                if now >= stop_s:
                    hears, settles = True, done > 0
                    break
                kv_used = self._take_turns(rank, done - taken, flying, formed_s, starts_s, due_s, settles=done > 0)
                rank.receive(now)
                self._log_turns(rank, taken, starts_s, due_s, idle_s, running, waiting, kv_used, tokens)
                _, waiting, _, _ = scheduler.state()
                next_s, taken = rank.next_arrival_s(), done
                halt_s = stop_s if stop_s < next_s else next_s
            formed_s.append(begin_s)
            now = begin_s + host
            start = now if now > first_free_s else first_free_s
            end = first_free_s = start + device
            if between:
                for stage in between:
                    end = free_s[stage] = (end if end > free_s[stage] else free_s[stage]) + device
            end = last_free_s = (end if end > last_free_s else last_free_s) + device
            starts_s.append(start)
            due_s.append(end)
            idle_s.append(end - start - device)
            if joins and next_s <= now:
                hears = True
                break
        done = len(starts_s)
        if not done:
            return False
        free_s[0], free_s[-1] = first_free_s, last_free_s
        kv_used = self._take_turns(rank, done - taken, flying, formed_s, starts_s, due_s, settles=settles)
        self._log_turns(rank, taken, starts_s, due_s, idle_s, running, waiting, kv_used, tokens)
        flight.clear()
        for batch, end in zip(flying, due_s[len(due_s) - len(flying) :], strict=True):
            flight.append((self.ranks, [batch], end))
        self.clock_s = now
        self._may_schedule = hears or len(flight) < self.depth
        self._step_guess_s = max((now - began_s) / done, 1e-6)
        return True

    def _take_turns(
        self,
        rank: Rank,
        steps: int,
        flying: deque[Batch],
        formed_s: list[float],
        starts_s: list[float],
        ends_s: list[float],
        *,
        settles: bool,
    ) -> list[int]:
        """Take the latest `steps` steps, then settle the batch in flight longest or not; return the KV units held in each."""
        before = list(flying)
        kv_used = rank.scheduler.take_turns(steps, flying) if steps else []
        for back in range(1, min(steps, len(flying)) + 1):
            batch = flying[-back]
            batch.t_sched, batch.t_start, batch.t_end = formed_s[-back], starts_s[-back], ends_s[-back]
        settled = before[: len(before) + steps - len(flying)]
        if settles:
            settled.append(flying.popleft())
            rank.scheduler.settle(settled[-1])
        if self._on_batch is not None:
            for batch in settled:
                self._on_batch(batch)
        return kv_used

    def _through_stages(self, ready_s: float, device_s: float, first_s: float, last_s: float) -> tuple[float, float]:
        """Send a batch through the stages; return when it starts and when it has passed the last.

        Each takes `device_s`, all but the first and the last so much less as these alone do (`first_s`, `last_s`).
        """
        free, last = self._stage_free_s, len(self._stage_free_s) - 1
        end = start = ready_s if ready_s > free[0] else free[0]
        for stage, free_s in enumerate(free):
            entry = end if end > free_s else free_s
            own_s = device_s if stage == last else device_s - last_s
            end = free[stage] = entry + (own_s - first_s if stage and first_s else own_s)
        return start, end

    def _log_turns(
        self,
        rank: Rank,
        first: int,
        starts_s: list[float],
        ends_s: list[float],
        idle_s: list[float],
        running: int,
        waiting: int,
        kv_used: list[int],
        tokens: list[int],
    ) -> None:
        """Log the latest steps, from number `first` on, whose memory is `kv_used`; there may be older ones in `ends_s`."""
        if not kv_used:
            return
        n, turns = len(kv_used), len(tokens)
        decoded = (tokens * (n // turns + 2))[first % turns :][:n]
        rank.log.turns(starts_s[first:], ends_s[len(ends_s) - n :], idle_s[first:], running, waiting, kv_used, decoded)
        if rank.loop is not None:
            each = [(1, rows, 0) for rows in tokens]
            rank.loop.waiting.extend((each * (n // turns + 2))[first % turns :][:n])

    def _take_deaf(self, rank: Rank, first_s: float, ends_s: list[float], idle_s: float) -> Batch:
        """Take the steps of a run that hears no arrival in parts: what arrives waits from the next step that is formed."""
        scheduler, log = rank.scheduler, rank.log
        running, waiting, _, _ = scheduler.state()
        starts_s = [first_s, *ends_s[:-1]]
        formed_s = starts_s if self._sync else [self.clock_s, *starts_s[:-1]]
        at = 0
        for arrival_s in rank.arrivals_until(formed_s[-1]):
            to = bisect_left(formed_s, arrival_s)
            if to > at:
                batch, kv_steps, kv_peak = scheduler.take(to - at)
                log.run(
                    starts_s[at], ends_s[at:to], idle_s, running, waiting, kv_steps, kv_peak, batch.decode_tokens
                )
                rank.emits(to - at, batch.decode_rows, 0)
                at = to
            waiting += 1
        batch, kv_steps, kv_peak = scheduler.take(len(ends_s) - at)
        log.run(starts_s[at], ends_s[at:], idle_s, running, waiting, kv_steps, kv_peak, batch.decode_tokens)
        rank.emits(len(ends_s) - at, batch.decode_rows, 0)
        return batch


def few_ends(device_s: list[float], first_s: float, host_s: float) -> list[float]:
    """End times of steps one after the other, the first starting at `first_s`; the same sums as `many_ends`."""
    times_s = [device + host_s for device in device_s] if host_s else device_s
    times_s[0] += first_s  # quicker than to name it the initial one
    return list(accumulate(times_s))


def many_ends(device_s: FloatArray, first_s: float, host_s: float) -> list[float]:
    """`few_ends` by arrays."""
    ends = np.empty(len(device_s) + 1)
    ends[0] = first_s
    np.add(device_s, host_s, out=ends[1:])
    np.cumsum(ends, out=ends)
    out: list[float] = ends[1:].tolist()
    return out
