"""One replica: an executor that runs a scheduler's batches on a device, step by step or many steps at once.

The executor has a depth. A synchronous engine (depth 1) forms batch k+1 when batch k has ended; an async one (depth 2)
forms batch k+1 when batch k starts, knowing the results up to k-1; a pipeline keeps one batch per stage in flight. A batch's
duration comes from a step-time model, the host's share from the same model; under async scheduling the host's work is
hidden behind the device's as long as it is shorter.

Runs of pure decode steps are executed as one event (`_jump`); the times are the same sums in the same order, so the
result is equal bit for bit to stepping (`aggregate=False` on the scheduler forces stepping).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import Batch, ContinuousScheduler

FloatArray = NDArray[np.float64]
INFINITY = float("inf")
FEW_STEPS = 48
"""Up to so many steps plain numbers are quicker than arrays."""


class StepTimes(Protocol):
    """What a replica asks of a step-time model. All times in seconds."""

    def batch_s(self, batch: Batch) -> tuple[float, float]:
        """Device time of a batch, and the part of it that is attributed to its prefill rows."""
        ...

    def decode_run_s(self, rows: int, kv_tokens: int, steps: int) -> FloatArray:
        """Device times of `steps` pure decode steps; the first attends to `kv_tokens`, each next to `rows` more."""
        ...

    def decode_few_s(self, rows: int, kv_tokens: int, steps: int) -> list[float]:
        """`decode_run_s` as plain numbers, equal to the last bit."""
        ...

    def host_s(self, rows: int, prefill_tokens: int) -> float:
        """Host time to form, launch and read back a batch."""
        ...


class StepLog:
    """What a replica did: one end time per step, and one record per event (a step or a run of equal steps)."""

    def __init__(self) -> None:
        self.end_s = array("d")
        self.event_s = array("d")  # start of the event
        self.event_steps = array("i")
        self.event_device_s = array("d")
        self.event_prefill_s = array("d")
        self.event_running = array("i")
        self.event_waiting = array("i")
        self.event_used_blocks = array("i")
        self.event_prefill_tokens = array("i")
        self.event_decode_tokens = array("i")
        self.event_preemptions = array("i")
        self.retired_steps = 0

    def retire(self, events: int, steps: int) -> None:
        """Drop the first events, and with them so many steps; the number of a step minus `retired_steps` is its place."""
        for name, column in vars(self).items():
            if name.startswith("event_"):
                del column[:events]
        del self.end_s[:steps]
        self.retired_steps += steps

    def add(
        self,
        start_s: float,
        steps: int,
        device_s: float,
        prefill_s: float,
        running: int,
        waiting: int,
        used_blocks: int,
        prefill_tokens: int,
        decode_tokens: int,
        preemptions: int,
    ) -> None:
        """Append one event."""
        self.event_s.append(start_s)
        self.event_steps.append(steps)
        self.event_device_s.append(device_s)
        self.event_prefill_s.append(prefill_s)
        self.event_running.append(running)
        self.event_waiting.append(waiting)
        self.event_used_blocks.append(used_blocks)
        self.event_prefill_tokens.append(prefill_tokens)
        self.event_decode_tokens.append(decode_tokens)
        self.event_preemptions.append(preemptions)


class Replica:
    """An executor over one scheduler.

    Parameters
    ----------
    scheduler : forms the batches.
    times : the step-time model.
    depth : batches in flight (1 synchronous, 2 async scheduling, stages of a pipeline).
    stages : pipeline stages; `times` then gives the time of one stage.
    tokenise_token_s : front-end time [s] for each token of a prompt. Prompts are tokenised one after the other, in order of
        arrival; the scheduler sees a request when its prompt is done.
    on_finish : called with each ended request and the time in seconds.
    on_batch : called with each processed batch (for comparison with recorded schedules).
    """

    def __init__(
        self,
        scheduler: ContinuousScheduler,
        times: StepTimes,
        *,
        depth: int = 1,
        stages: int = 1,
        tokenise_token_s: float = 0.0,
        on_finish: Callable[[Sequence, float], None] | None = None,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.times = times
        self.depth = depth
        self.log = StepLog()
        self.in_service = 0  # submitted and not finished: what a router counts
        self.clock_s = 0.0
        self._inbox: deque[Sequence] = deque()
        self._source: Iterator[list[Sequence]] = iter(())
        self._in_flight: deque[Batch] = deque()
        self._may_schedule = True
        self._stage_free_s = [0.0] * stages
        self._step_guess_s = 1e-3  # only decides how many steps a jump prices at once
        self._tokenise_token_s = tokenise_token_s
        self._tokenised_s = 0.0  # when the front end has done the last prompt
        self._on_finish = on_finish
        self._on_batch = on_batch
        self._sync = depth == 1
        self._asleep_until_s = 0.0  # nothing can be scheduled before, unless a request arrives

    # -- the outside ----------------------------------------------------------------------------------------

    def submit(self, seq: Sequence) -> None:
        """Hand over a request that reaches the front end at `seq.arrival_s` (not before the replica's clock)."""
        self._tokenise(seq)
        self._inbox.append(seq)
        self.in_service += 1

    def feed(self, source: Iterator[list[Sequence]]) -> None:
        """Hand over all requests beforehand, in order of arrival, in chunks that are asked for when the last is used up."""
        self._source = source
        self._refill()

    def _refill(self) -> None:
        """Keep the inbox filled as long as there is anything to come: others look at its head."""
        chunk = next(self._source, None)
        if chunk:
            for seq in chunk:
                self._tokenise(seq)
            self._inbox.extend(chunk)
            self.in_service += len(chunk)

    def _tokenise(self, seq: Sequence) -> None:
        """Move the arrival of a request to the time at which its prompt is tokenised."""
        begin_s = seq.arrival_s if seq.arrival_s > self._tokenised_s else self._tokenised_s
        seq.arrival_s = self._tokenised_s = begin_s + self._tokenise_token_s * seq.prompt_tokens

    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._inbox or self._in_flight) or self.scheduler.has_work()

    def next_event_s(self) -> float:
        """A time before which nothing that another part could see will happen here."""
        if self._in_flight and not self._may_schedule:
            return self._in_flight[0].t_end
        if self.scheduler.has_work() or self._in_flight:
            if self._in_flight or self._asleep_until_s <= self.clock_s:
                return self.clock_s
            due_s = min(self._asleep_until_s, self._inbox[0].arrival_s) if self._inbox else self._asleep_until_s
            return max(due_s, self.clock_s)
        return max(self._inbox[0].arrival_s, self.clock_s) if self._inbox else INFINITY

    def quiet_until_s(self) -> float:
        """A time before which no request ends here unless another is submitted; not before `next_event_s`.

        In pure decode it is the end of the last step that the scheduler's horizon proves, without the host's share.
        """
        scheduler, flight = self.scheduler, self._in_flight
        if self._inbox or self._loaded_s() < INFINITY or any(batch.finishing for batch in flight):
            return self.next_event_s()
        steps = scheduler.horizon()
        if steps < 2:
            return self.next_event_s()
        rows, kv_tokens = scheduler.decodes.count, scheduler.decodes.kv_tokens()
        if steps <= FEW_STEPS:
            device_s = sum(self.times.decode_few_s(rows, kv_tokens, steps))
        else:
            device_s = float(self.times.decode_run_s(rows, kv_tokens, steps).sum())
        start_s = max(flight[-1].t_end, self.clock_s) if flight else self.clock_s
        return start_s + device_s * (1 - 1e-9)  # less what sums in another order may differ by

    def _loaded_s(self) -> float:
        """When the next load of KV from the host ends, infinity if none is under way."""
        if getattr(self.scheduler, "host", None) is None:
            return INFINITY
        return self.scheduler.sleeps_until_s() or INFINITY

    def receive(self, now_s: float) -> None:
        """Hand the requests that have arrived to the scheduler."""
        inbox = self._inbox
        while inbox and inbox[0].arrival_s <= now_s:
            self.scheduler.add(inbox.popleft())
            if not inbox:
                self._refill()

    def advance(self, limit_s: float, *, stop_after_finish: bool = False) -> bool:
        """Process every result up to `limit_s` (inclusive) and every scheduling decision before it.

        With `stop_after_finish` return True as soon as a request has ended; False once the limit is reached.
        """
        scheduler = self.scheduler
        inbox = self._inbox
        flight = self._in_flight
        while True:
            if not self._may_schedule:
                batch = flight[0]
                if batch.t_end > limit_s:
                    return False
                flight.popleft()
                if batch.t_end > self.clock_s:
                    self.clock_s = batch.t_end
                self._process(batch)
                self._may_schedule = True
                if stop_after_finish and batch.finishing:
                    return True
                continue
            now = self.clock_s
            if now >= limit_s:
                return False
            if inbox and inbox[0].arrival_s <= now:
                self.receive(now)
            steps = scheduler.horizon()
            if steps > 1 and len(flight) == self.depth - 1 and not (flight and flight[0].finishing):
                bound = limit_s
                if inbox and inbox[0].arrival_s < bound and not scheduler.ignores_arrivals():
                    bound = inbox[0].arrival_s
                if self._jump(steps, bound):
                    continue
            self._asleep_until_s = 0.0
            formed = scheduler.schedule(now)
            if formed is None or not formed.tokens:
                if flight:
                    self._may_schedule = False
                elif formed is not None:
                    continue  # only preemptions: try again with the blocks they freed
                elif inbox or scheduler.has_work():
                    self._asleep_until_s = wakes_s = self._loaded_s()
                    due_s = min(inbox[0].arrival_s, wakes_s) if inbox else wakes_s
                    if due_s == INFINITY:
                        raise RuntimeError("scheduler holds work that it can never run")
                    if due_s >= limit_s:
                        return False
                    self.clock_s = due_s
                else:
                    return False
                continue
            self._launch(formed)
            if len(flight) >= self.depth:
                self._may_schedule = False

    # -- steps ----------------------------------------------------------------------------------------------

    def _launch(self, batch: Batch) -> None:
        now = self.clock_s
        device_s, prefill_s = self.times.batch_s(batch)
        host_s = self.times.host_s(batch.decode_rows + len(batch.prefill), batch.tokens - batch.decode_tokens)
        batch.t_sched = now
        if self._sync:
            batch.t_end = now + (host_s + device_s)
            batch.t_start = batch.t_end - device_s if host_s else now
        else:
            ready = now + host_s
            free = self._stage_free_s
            start = ready if ready > free[0] else free[0]
            batch.t_start = start
            end = start + device_s
            free[0] = end
            for stage in range(1, len(free)):
                begin = end if end > free[stage] else free[stage]
                end = begin + device_s
                free[stage] = end
            batch.t_end = end
            self.clock_s = ready
        self._in_flight.append(batch)
        self.note(batch, device_s, prefill_s)

    def note(self, batch: Batch, device_s: float, prefill_s: float) -> None:
        """Log one step."""
        log, scheduler = self.log, self.scheduler
        log.end_s.append(batch.t_end)
        log.add(
            batch.t_start,
            1,
            device_s,
            prefill_s,
            len(scheduler.running),
            scheduler.waiting_count,
            scheduler.kv.capacity_blocks - scheduler.kv.free_blocks,
            batch.tokens - batch.decode_tokens,
            batch.decode_tokens,
            len(batch.preempted),
        )

    def _process(self, batch: Batch) -> None:
        finished = self.scheduler.process(batch)
        if finished:
            self.in_service -= len(finished)
            if self._on_finish is not None:
                for seq in finished:
                    self._on_finish(seq, batch.t_end)
        if self._on_batch is not None:
            self._on_batch(batch)

    def _jump(self, steps: int, bound_s: float) -> bool:
        """Run up to `steps` pure decode steps, each scheduled before `bound_s`; False if that is fewer than two."""
        scheduler, times = self.scheduler, self.times
        decodes = scheduler.decodes
        rows = decodes.count
        now = self.clock_s
        first = self._in_flight[0].t_end if self._in_flight else now
        if first >= bound_s:
            return False
        # do not price steps that an arrival will cut: a shorter jump is as exact
        if bound_s - first < self._step_guess_s * steps:
            steps = min(steps, int((bound_s - first) / self._step_guess_s) + 3)
        host_s = times.host_s(rows, 0)
        if steps <= FEW_STEPS:
            device_few_s = times.decode_few_s(rows, decodes.kv_tokens(), steps)
            found = few_ends(self._sync, device_few_s, first, now, host_s, bound_s)
        else:
            device_many_s = times.decode_run_s(rows, decodes.kv_tokens(), steps)
            found = many_ends(self._sync, device_many_s, first, now, host_s, bound_s)
        if found is None:
            return False
        ends, device_s = found
        self._step_guess_s = device_s / len(ends)
        batch = self.decode_until(ends, first, device_s)
        if self._sync:
            batch.t_sched = ends[-2]
            self._in_flight.append(batch)
            self._may_schedule = False
        else:
            ahead = self._in_flight.popleft()
            if self._on_batch is not None:
                self._on_batch(ahead)
            scheduler.processed_number = batch.number - 1
            batch.t_sched = ends[-3] if len(ends) > 2 else first
            self.clock_s = ends[-2]
            self._stage_free_s[0] = ends[-1]
            self._in_flight.append(batch)
        return True

    def decode_until(self, ends_s: list[float], first_s: float, device_s: float) -> Batch:
        """Run as many pure decode steps as there are end times, and log them; returns the last of them."""
        scheduler, steps = self.scheduler, len(ends_s)
        rows = scheduler.decodes.count
        used = scheduler.kv.capacity_blocks - scheduler.kv.free_blocks
        batch = scheduler.jump(steps)
        batch.t_end, batch.t_start = ends_s[-1], ends_s[-2]
        log = self.log
        log.end_s.extend(ends_s)
        log.add(
            first_s,
            steps,
            device_s,
            0.0,
            len(scheduler.running),
            scheduler.waiting_count,
            (used + scheduler.kv.capacity_blocks - scheduler.kv.free_blocks) // 2,
            0,
            rows * steps,
            0,
        )
        return batch


def few_ends(
    sync: bool, device_s: list[float], first_s: float, now_s: float, host_s: float, bound_s: float
) -> tuple[list[float], float] | None:
    """End times of the steps that are scheduled before the bound, and their device time; None if fewer than two.

    A synchronous step is scheduled when the one before it ends; with one batch ahead, when the one before it starts.
    The same sums in the same order as `many_ends`.
    """
    ends: list[float] = []
    t = first_s
    if sync:
        for device in device_s:
            if t >= bound_s:
                break
            t = t + (device + host_s)
            ends.append(t)
    else:
        if now_s + host_s > first_s or host_s > min(device_s):
            return None
        scheduled = now_s
        for device in device_s:
            if scheduled >= bound_s:
                break
            scheduled = t
            t = t + device
            ends.append(t)
    return (ends, sum(device_s[: len(ends)])) if len(ends) >= 2 else None


def many_ends(
    sync: bool, device_s: FloatArray, first_s: float, now_s: float, host_s: float, bound_s: float
) -> tuple[list[float], float] | None:
    """`few_ends` by arrays."""
    steps = len(device_s)
    ends = np.empty(steps + 1)
    ends[0] = first_s
    if sync:
        np.add(device_s, host_s, out=ends[1:])
    elif now_s + host_s <= first_s and host_s <= float(device_s.min()):
        ends[1:] = device_s
    else:
        return None
    np.cumsum(ends, out=ends)
    scheduled = int(np.searchsorted(ends[:steps], bound_s, side="left"))
    if not sync:
        scheduled = min(steps, scheduled + 1)
    if scheduled < 2:
        return None
    return ends[1 : scheduled + 1].tolist(), float(device_s[:scheduled].sum())
