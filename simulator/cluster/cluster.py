"""Replicas behind a router, fed by a workload.

Two ways to run give the same result. If no request waits for another and the router does not look at the replicas, every
replica gets its requests beforehand and runs by itself (`_run_apart`). Otherwise arrivals, releases and the results they depend
on are events on one clock (`_run_together`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan
from engine_models.parts.sequence import Sequence
from simulator.cluster.clock import ARRIVALS, DECISIONS, RESULTS, Clock
from simulator.cluster.outcome import (
    REJECTED,
    UNFINISHED,
    ClusterResult,
    Rows,
    last_step_s,
    leave,
    outcome,
    reached_s,
)
from simulator.cluster.router import LeastRequests, RankRouter
from simulator.serving.replica import INFINITY, Replica, StepTimes
from simulator.serving.step_group import GroupTimes, StepGroup
from simulator.workload.columns import Workload

IntArray = NDArray[np.int64]

CHUNK = 1024
"""Requests that are made at once when their arrivals are known beforehand."""
SLICES = 64
"""Stretches of simulated time in which independent replicas take turns, so that a stopped run has all of them equally far."""


class Stopped(Exception):
    """Raised at the end of a request when `should_stop` says so; every part is then between two steps."""


class Cluster:
    """A pool of equal replicas behind a router.

    Parameters
    ----------
    workload : the requests.
    plan : the engine, resolved.
    times : the step-time model of a replica, of a group of ranks where `ranks` is above 1.
    replicas : how many.
    ranks : data-parallel ranks of a replica that step together over shared experts. The ranks of all replicas then stand in
        `replicas` one by one: number n is rank n // (count of replicas) of replica n % (count of replicas).
    router : "round_robin" or "least_requests" (fewest submitted and unfinished, the first among equals).
    before_s, after_s : time between the client's send and the engine, and between the end of a step and the client.
    aggregate : False forces plain stepping, the reference.
    should_stop : asked after every request that ends; True ends the run there.
    acceptance : with speculative decoding, how many drafts each request accepts, by the row of the workload.
    """

    def __init__(
        self,
        workload: Workload,
        plan: EnginePlan,
        times: StepTimes | GroupTimes,
        *,
        replicas: int = 1,
        ranks: int = 1,
        router: str = "round_robin",
        before_s: float = 0.0,
        after_s: float = 0.0,
        stages: int = 1,
        aggregate: bool = True,
        should_stop: Callable[[], bool] | None = None,
        acceptance: Callable[[int], Callable[[int], int]] | None = None,
    ) -> None:
        self._acceptance = acceptance
        self._should_stop = should_stop
        self._stopped_at_s: float | None = None
        self.workload = workload
        self.plan = plan
        self.router = router
        self.before_s = before_s
        self.after_s = after_s
        self._ranks = ranks
        self.replicas = pool(plan, times, replicas, ranks, stages, aggregate, self._finished)
        self.rows = Rows(workload, plan)
        self._priority = [c.priority for c in workload.classes] or [0]
        self._live: dict[int, Sequence] = {}
        self._contents()
        self._turn = 0
        self._limit_s = self._end_of_arrivals() + workload.drain_s
        self._clock: Clock | None = None
        self._router: LeastRequests | RankRouter | None = None

    # -- requests -------------------------------------------------------------------------------------------

    def _contents(self) -> None:
        """Prepare the shared contents: only segments that more than one request names can ever be found."""
        content = self.workload.content
        self._shared: list[tuple[tuple[tuple[int, int, int], ...], int, bool]] | None = None
        if content is None or not self.plan.prefix_caching:
            return
        n = len(self.workload)
        owners = np.repeat(np.arange(n), np.diff(content.start))
        top = int(max(content.segment.max(initial=-1), content.output_segment.max(initial=-1))) + 1
        pairs = np.unique(content.segment.astype(np.int64) * n + owners)
        users = np.bincount(pairs // n, minlength=top)
        start, segment = content.start.tolist(), content.segment.tolist()
        offset, length = content.offset.tolist(), content.length.tolist()
        out_segment, out_offset = content.output_segment.tolist(), content.output_offset.tolist()
        popular: list[bool] = (users > 1).tolist()
        prompt, asked = self.workload.prompt_tokens.tolist(), self.rows.limits.output_tokens.tolist()
        self._shared = []
        for i in range(n):
            first, last = start[i], start[i + 1]
            output = out_segment[i]
            returns = output >= 0 and users[output] > (1 if output in segment[first:last] else 0)
            if not returns:
                while last > first and not popular[segment[last - 1]]:
                    last -= 1
            runs: list[tuple[int, int, int]] = []
            tokens = 0
            for r in range(first, last):
                tokens += length[r]
                _append_run(runs, (segment[r], offset[r], length[r]))
            covered = tokens == prompt[i]
            if returns and covered:
                _append_run(runs, (output, out_offset[i], asked[i]))
            self._shared.append((tuple(runs), tokens, bool(returns and covered)))

    def _sequence(
        self, row: int, prompt: int, output: int, engine_s: float, kind: int, known: bool
    ) -> Sequence:
        """Make the request of a row as the engine sees it, and note that it lives."""
        runs, shareable, output_shared = self._shared[row] if self._shared is not None else ((), 0, False)
        seq = self._live[row] = Sequence(
            row,
            prompt,
            output,
            engine_s,
            priority=self._priority[kind],
            stop_known=known,
            runs=runs,
            shareable_tokens=shareable,
            output_shared=output_shared,
            acceptance=self._acceptance(row) if self._acceptance is not None else None,
        )
        return seq

    def _chunks(self, rows: IntArray) -> Iterator[list[Sequence]]:
        """Requests of `rows`, made a chunk at a time so that those of hours to come take no memory."""
        w, found = self.workload, self.rows.limits
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            columns = (
                chunk,
                w.prompt_tokens[chunk],
                found.output_tokens[chunk],
                self.rows.arrival_s[chunk] + self.before_s,
                w.class_index[chunk],
                found.stop_known[chunk],
            )
            yield list(map(self._sequence, *(column.tolist() for column in columns)))

    def _end_of_arrivals(self) -> float:
        known = self.workload.arrival_s[~np.isnan(self.workload.arrival_s)]
        last = float(known.max()) if len(known) else 0.0
        duration = self.workload.duration_s
        return duration if np.isfinite(duration) else max(last, 0.0)

    # -- running --------------------------------------------------------------------------------------------

    def run(self) -> ClusterResult:
        """Run to the end of the drain; every request is accounted for."""
        released = bool(np.isnan(self.workload.arrival_s).any())
        try:
            self._router = router_of(self.replicas, self._ranks, self.router, self.plan)
            if released:
                self._run_together()
            elif self._router is not None:
                self._run_in_turn()
            else:
                self._run_apart()
        except Stopped:
            self._stopped_at_s = reached_s(self.replicas, self._limit_s)
            self.rows.cut(self._stopped_at_s, self._live)
        return self._result()

    def _arrive(self, row: int, now_s: float) -> Sequence | None:
        """Register an arrival; None if the engine refuses it."""
        rows, w = self.rows, self.workload
        rows.arrival_s[row] = now_s
        if rows.refused[row]:
            rows.status[row] = REJECTED
            return None
        rows.status[row] = UNFINISHED
        return self._sequence(
            row,
            int(w.prompt_tokens[row]),
            int(rows.limits.output_tokens[row]),
            now_s + self.before_s,
            int(w.class_index[row]),
            bool(rows.limits.stop_known[row]),
        )

    def _run_apart(self) -> None:
        self.rows.all_arrive()
        for replica, rows in zip(self.replicas, self.rows.deal(len(self.replicas)), strict=True):
            replica.feed(self._chunks(rows))
        slices = np.linspace(0.0, self._end_of_arrivals(), SLICES).tolist() if len(self.replicas) > 1 else []
        for limit_s in [*slices, self._limit_s]:
            for replica in self.replicas:
                replica.advance(limit_s)

    def _run_in_turn(self) -> None:
        """Route requests whose arrivals are known one after the other; nothing else happens between replicas."""
        assert self._router is not None
        for row, when in enumerate(self.workload.arrival_s.tolist()):
            seq = self._arrive(row, when)
            if seq is not None:
                self.rows.replica[row] = route(self._router, self.replicas, seq)
        for replica in self.replicas:
            replica.advance(self._limit_s)

    def _run_together(self) -> None:
        w = self.workload
        clock = self._clock = Clock()
        self._followers: dict[int, list[int]] = {}
        self._pool: dict[int, list[int]] = {}
        open_rows: list[int] = []
        predecessor, kinds = w.predecessor.tolist(), w.class_index.tolist()
        closed = np.isnan(w.arrival_s).tolist()
        for row in range(len(w)):
            if not closed[row]:
                open_rows.append(row)
            elif predecessor[row] >= 0:
                self._followers.setdefault(predecessor[row], []).append(row)
            else:
                self._pool.setdefault(kinds[row], []).append(row)
        for rows in self._pool.values():
            rows.reverse()
        self._wake: list[float] = [INFINITY] * len(self.replicas)
        arrivals = iter(open_rows)

        def next_arrival() -> None:
            row = next(arrivals, None)
            if row is None:
                return
            when = float(w.arrival_s[row])

            def arrive() -> None:
                next_arrival()
                self._submit(row, when)

            clock.at(when, ARRIVALS, arrive)

        next_arrival()
        clock.run()
        for replica in self.replicas:
            replica.advance(self._limit_s)

    def _submit(self, row: int, now_s: float) -> None:
        clock = self._clock
        assert clock is not None
        seq = self._arrive(row, now_s)
        if seq is None:
            self._release_next(row, now_s)
            return
        engine_s = seq.arrival_s

        def reach_engine() -> None:
            number = self._choose(clock.now_s)
            self.rows.replica[row] = number
            replica = self.replicas[number]
            replica.advance(clock.now_s)
            replica.submit(seq)
            self._noted(number)
            self._watch(number)

        if self.before_s:
            clock.at(engine_s, ARRIVALS, reach_engine)
        else:
            reach_engine()

    def _choose(self, now_s: float) -> int:
        if self._router is not None:
            return self._router.choose(now_s)
        self._turn += 1
        return (self._turn - 1) % len(self.replicas)

    def _noted(self, number: int) -> None:
        """Tell the router that a replica was submitted to or advanced."""
        if self._router is not None:
            self._router.note(number)

    def _watch(self, number: int) -> None:
        """Wake up when the replica's next result or decision is due, as long as requests depend on results."""
        if not (self._followers or self._pool):
            return
        clock = self._clock
        assert clock is not None
        number %= len(self.replicas) // self._ranks  # one rank wakes for its group
        due = max(self.replicas[number].next_event_s(), clock.now_s)
        if due > self._limit_s or self._wake[number] <= due:
            return
        self._wake[number] = due

        def results() -> None:
            if self._wake[number] == due:
                self._wake[number] = INFINITY
            self.replicas[number].advance(due)
            self._noted(number)
            clock.at(due, DECISIONS, decisions)

        def decisions() -> None:
            # decide and run on until some other part may interfere; an ended request may release another
            replica = self.replicas[number]
            at_least = float(np.nextafter(due, INFINITY))
            while replica.advance(
                min(max(clock.next_event_s(), at_least), self._limit_s), stop_after_finish=True
            ):
                pass
            self._noted(number)
            self._watch(number)

        clock.at(due, RESULTS, results)

    def _finished(self, seq: Sequence, now_s: float) -> None:
        row = seq.index
        end_s = now_s + self.after_s
        self.rows.finish(seq, end_s)
        del self._live[row]
        if self._clock is not None:
            self._release_next(row, end_s)
        if self._should_stop is not None and self._should_stop():
            raise Stopped

    def _release_next(self, row: int, end_s: float) -> None:
        """Let the requests that waited for this one arrive."""
        clock, w = self._clock, self.workload
        assert clock is not None
        waiting = self._followers.pop(row, [])
        pool = self._pool.get(int(w.class_index[row]))
        if pool:
            waiting = [*waiting, pool.pop()]
        for follower in waiting:
            when = max(end_s + float(w.gap_s[follower]), float(w.not_before_s[follower]), clock.now_s)
            if when > w.duration_s:
                continue
            clock.at(when, ARRIVALS, partial(self._submit, follower, when))

    def _result(self) -> ClusterResult:
        stopped_at_s = self._stopped_at_s
        until_s = self._limit_s if stopped_at_s is None else stopped_at_s
        for seq in leave(self.replicas, self._live.values(), until_s):
            self.rows.keep(seq)
        drained = stopped_at_s is None and (self.rows.status == UNFINISHED).any()
        end_s = max(self._limit_s if drained else 0.0, last_step_s(self.replicas))
        return outcome(self.rows, self.replicas, self.after_s, end_s, stopped_at_s)


def pool(
    plan: EnginePlan,
    times: StepTimes | GroupTimes,
    count: int,
    ranks: int,
    stages: int,
    aggregate: bool,
    on_finish: Callable[[Sequence, float], None],
) -> list[Replica]:
    """Return `count` equal replicas; of replicas of several `ranks` the ranks, the first of all, the second of all..."""
    if ranks > 1:
        groups = [
            StepGroup(
                [plan.scheduler("jump" if aggregate else "step") for _ in range(ranks)],
                cast("GroupTimes", times),
                depth=plan.executor.depth,
                tokenise_token_s=plan.front.tokenise_token_s,
                on_finish=on_finish,
            )
            for _ in range(count)
        ]
        return [group.ranks[rank] for rank in range(ranks) for group in groups]
    return [
        Replica(
            plan.scheduler("jump" if aggregate else "step"),
            cast("StepTimes", times),
            depth=plan.executor.depth,
            stages=stages,
            tokenise_token_s=plan.front.tokenise_token_s,
            on_finish=on_finish,
        )
        for _ in range(count)
    ]


def router_of(
    replicas: list[Replica], ranks: int, router: str, plan: EnginePlan
) -> LeastRequests | RankRouter | None:
    """The router that looks at the replicas or at their ranks; None where requests are dealt in turn."""
    count = len(replicas) // ranks
    by_requests = count > 1 and router != "round_robin"
    by_load = ranks > 1 and plan.executor.rank_router == "least_loaded"
    if ranks > 1 and (by_requests or by_load):
        return RankRouter(replicas, count, by_requests=by_requests, by_load=by_load)
    return LeastRequests(replicas) if by_requests else None


def route(router: LeastRequests | RankRouter, replicas: list[Replica], seq: Sequence) -> int:
    """Submit a request that reaches the engine now to the replica that the router chooses; return its number."""
    number = router.choose(seq.arrival_s)
    replica = replicas[number]
    replica.advance(seq.arrival_s)
    replica.submit(seq)
    router.note(number)
    return number


def _append_run(runs: list[tuple[int, int, int]], run: tuple[int, int, int]) -> None:
    """Append a run, merged with the last if it continues it: equal contents have equal runs."""
    if runs:
        segment, offset, length = runs[-1]
        if segment == run[0] and offset + length == run[1]:
            runs[-1] = (segment, offset, length + run[2])
            return
    runs.append(run)
