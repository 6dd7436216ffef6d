"""Replicas behind a router, fed by a workload: one loop for every run.

Requests come in blocks, in order of arrival: one block holds a workload in memory, many a streamed one. If no request waits for
another and the router does not look at the replicas, a block is dealt to the ranks beforehand and the replicas run by themselves.
Otherwise arrivals are walked in order, between the events of one clock: releases, and the results that they depend on. A block is
taken in when those before it have arrived, or when one of its requests may have to. Blocks whose requests have all ended leave
from the front, in order, to be counted.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Series
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan, Executor, FrontEnd, Mode
from engine_models.parts.protocols import INFINITY, StepCost
from engine_models.parts.sequence import Sequence
from simulator.cluster.clock import ARRIVALS, DECISIONS, RESULTS, Clock
from simulator.cluster.content import SharedContents, for_adapter, image_places, is_structured
from simulator.cluster.devices import DeviceHistory
from simulator.cluster.joins import Joins
from simulator.cluster.outcome import (
    FAILED,
    REJECTED,
    SHED,
    UNFINISHED,
    ClusterResult,
    Encodings,
    Reason,
    Rows,
    last_step_s,
    leave,
    outcome,
    reached_s,
)
from simulator.cluster.releases import Releases
from simulator.cluster.router import InTurn, Router, Routing
from simulator.cluster.routers import router_of
from simulator.serving.replica import Replica
from simulator.workload.columns import Workload, no_requests

if TYPE_CHECKING:
    from simulator.cluster.admission import Admission, ClientRules, Door
    from simulator.cluster.destinations import Destinations
    from simulator.cluster.encoding import Encoders, EncodeStage
    from simulator.cluster.fleet import Toll
    from simulator.cluster.servers import Change

IntArray = NDArray[np.int64]

Kind = TypeVar("Kind", bound=Replica)

LOST = {
    "dropped": (FAILED, Reason.OUT_OF_MEMORY),
    "expired": (FAILED, Reason.TIMED_OUT),
    "shed": (REJECTED, Reason.SHED_503),
}
"""States in which a scheduler gives requests up, what they count as, and why."""

CHUNK = 1024
"""Requests that are made at once when their arrivals are known beforehand."""
SLICES = 64
"""Stretches of simulated time in which independent replicas take turns where a run may be stopped: then all are equally far."""


YOUNG_OBJECTS = 500_000
"""New objects after which the garbage of a run is looked for in them; hardly ever is there any. Python's own 700 cost a twentieth
of a run's time, 50,000 a sixth of one with chats over 16 replicas."""


@contextmanager
def rare_collections(young_objects: int = YOUNG_OBJECTS) -> Iterator[None]:
    """Look for cyclic garbage rarely, after so many new objects: a run makes millions of objects, few of them in cycles."""
    first = not gc.isenabled()  # of a command, and mostly the only one: what start-up has made stays, and what the run makes
    if first:
        gc.freeze()
        gc.enable()
    before = gc.get_threshold()
    gc.set_threshold(young_objects, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if first:
            gc.freeze()


class Stopped(Exception):
    """Raised at the end of a request when `should_stop` says so; every part is then between two steps."""


class Source(Protocol):
    """Where requests come from: blocks of columns in order of arrival, all but the last of one size."""

    @property
    def duration_s(self) -> float:
        """End of arrivals [s], infinite where their number ends them."""
        ...

    @property
    def drain_s(self) -> float:
        """Longest time to drain [s]."""
        ...

    def blocks(self) -> Iterable[Workload]:
        """The requests."""
        ...


class Sink(Protocol):
    """Where blocks go once their requests have ended."""

    def account(self, block: ClusterResult, rows: Rows) -> None:
        """Count a block; blocks come in order."""
        ...

    def retire(self, before_s: float) -> None:
        """No block that is still to come has a request before this time."""
        ...


class _Feed(Iterator[list[Sequence]]):
    """Requests for one rank in small lots, made when they are asked for; empty for now is not the end."""

    def __init__(self) -> None:
        self.lots: deque[Callable[[], list[Sequence]]] = deque()

    def __next__(self) -> list[Sequence]:
        if not self.lots:
            raise StopIteration
        return self.lots.popleft()()


@mypyc_attr(allow_interpreted_subclasses=True)
class Cluster:
    """A pool of equal replicas behind a router.

    Parameters
    ----------
    source : the requests.
    plan : the engine, resolved.
    cost : seconds of a step of a replica.
    replicas : how many.
    ranks : data-parallel ranks of a replica that step together over shared experts. The ranks of all replicas are numbered one by
        one: number n is rank n // (count of replicas) of replica n % (count of replicas).
    router : an ideal rule by its word, or how a product routes.
    admission : limits of the router, if it has any. client : when a client tries again, if it does.
    before_s, after_s : time between the client's send and the engine, and between the end of a step and the client.
    devices : of one replica.
    aggregate : False forces plain stepping, the reference.
    should_stop : asked after every request that ends; True ends the run there.
    acceptance : with speculative decoding, how many drafts each request accepts, by the row of the workload.
    nodes : the machine in which each replica stands; None for one each.
    meant_for : lengths of prompts that a label of the replicas names [tokens], if it does.
    encoders : servers that encode the images of its requests, if there are some.
    """

    toll: Toll | None = None
    """What became of replicas that come and go; None where none does."""
    changes: Series[Change] = ()
    """Models that made room for others on the same devices."""

    def __init__(
        self,
        source: Source,
        plan: EnginePlan,
        cost: StepCost,
        *,
        replicas: int = 1,
        ranks: int = 1,
        router: str | Routing = "round_robin",
        admission: Admission | None = None,
        client: ClientRules | None = None,
        before_s: float = 0.0,
        after_s: float = 0.0,
        devices: int = 1,
        aggregate: bool = True,
        should_stop: Callable[[], bool] | None = None,
        acceptance: Callable[[int], Callable[[int], int]] | None = None,
        nodes: IntArray | None = None,
        meant_for: tuple[int, int] | None = None,
        encoders: Encoders | None = None,
    ) -> None:
        self._source = source
        self._plan = plan
        self._before_s, self._after_s = before_s, after_s
        self._should_stop, self._acceptance = should_stop, acceptance
        self._admission = admission
        self._nodes = nodes
        self._meant_for = meant_for
        self.replicas = self._made(plan, cost, replicas, ranks, "jump" if aggregate else "step")
        places = self._places(ranks)
        self.ranks = [self.replicas[replica].ranks[rank] for replica, rank in places]
        self._replica_of = [replica for replica, _ in places]
        self._fronts = self._front_ends()
        self._router = self._routed(router, plan.executor)
        self._limited = any(front.inflight is not None or front.asks for front in self._fronts)
        self._door = self._made_door(admission) if admission is not None else None
        self._client, self._draw = client, Random(self._router.seed)
        self._timeout_s = client.timeout_s if client is not None else None
        self._token_s = INFINITY  # when the rate of the router lets the next request in, if somebody waits for it
        self.devices = DeviceHistory(replicas * devices + (encoders.devices if encoders is not None else 0))
        self._feeds = [_Feed() for _ in self.ranks]
        self._clock = Clock()
        self.encoders: EncodeStage | None = None
        if encoders is not None:
            self._encode_by(encoders, aggregate=aggregate)
        self._wake_s = [INFINITY] * len(self.replicas)
        self._releases = Releases()
        self._next_reach_s = INFINITY  # of the arrivals that are walked
        self._coming: Iterator[Workload] = iter(())
        self._blocks: deque[Rows] = deque()
        self._unserved: deque[Rows] = deque()  # of these: with arrivals that are known and to be walked
        self._block_rows = self._rows = 0
        self._linked = False  # whether requests wait for others
        self._shared: dict[int, SharedContents] = {}
        self._live: dict[int, Sequence] = {}
        self._limit_s = self._last_sent_s = self._last_step_s = 0.0
        self.any_unfinished = False
        self.duration_s = 0.0
        self.stopped_at_s: float | None = None
        self.turned_away_s = 0.0
        """When the client of the last request that got no answer heard of it."""
        self._loads = 0  # that have begun
        self._due = 0  # arrivals in the calendar of requests that waited for others
        self._followed = False  # whether what the calendar holds beside its requests is for another load after this one

    def _encode_by(self, encoders: Encoders, *, aggregate: bool) -> None:
        """Have the images of requests encoded by servers of their own."""
        from simulator.cluster.encoding import EncodeStage

        self.encoders = EncodeStage(encoders, self._clock, aggregate=aggregate)

    def _made(self, plan: EnginePlan, cost: StepCost, replicas: int, ranks: int, mode: Mode) -> list[Replica]:
        self._joins = Joins(plan, mode, replicas, self._nodes)
        return self._joined(self._joins, plan, cost, replicas, ranks, self._meant_for)

    def _joined(
        self,
        joins: Joins,
        plan: EnginePlan,
        cost: StepCost,
        replicas: int,
        ranks: int,
        meant_for: tuple[int, int] | None,
    ) -> list[Replica]:
        """The replicas of a pool."""
        if not joins.shares:
            made = self._like(Replica, joins, plan, cost, replicas, ranks)
        else:
            from simulator.serving.convoy import ConvoyReplica

            convoy = self._like(ConvoyReplica, joins, plan, cost, replicas, ranks)
            for member in convoy:
                member.members = convoy
            made = list(convoy)
        for replica in made:
            replica.meant_for = meant_for
        return made

    def _like(
        self, kind: type[Kind], joins: Joins, plan: EnginePlan, cost: StepCost, replicas: int, ranks: int
    ) -> list[Kind]:
        return [
            kind(
                [joins.scheduler(number) for _ in range(ranks)],
                cost,
                depth=plan.executor.depth,
                stages=plan.executor.stages,
                launches_ahead=plan.executor.launches_ahead,
                front=plan.front,
                gate=plan.executor.gate(),
                on_finish=self._finished,
            )
            for number in range(replicas)
        ]

    def _places(self, ranks: int) -> list[tuple[int, int]]:
        """Replica and rank of each number."""
        return [(replica, rank) for rank in range(ranks) for replica in range(len(self.replicas))]

    def _front_ends(self) -> list[FrontEnd]:
        """The front end of each replica."""
        return [self._plan.front] * len(self.replicas)

    def _made_door(self, rules: Admission) -> Door:
        """The queue before the router."""
        from simulator.cluster.admission import Door

        return Door(rules, self._router.has_room)

    def _routed(self, rule: str | Routing, executor: Executor) -> Router:
        return router_of(self.replicas, rule, executor, self._admission)

    # -- running --------------------------------------------------------------------------------------------

    def run(self) -> ClusterResult:
        """Run a workload of one block to the end of the drain, or until `should_stop` says so; every request is accounted for."""
        with rare_collections():
            self._run(None)
        return self._outcome(self._blocks[0])

    def stream(self, sink: Sink, *, followed: bool = False) -> None:
        """Run a workload of any number of blocks, which go to the sink as they end; `followed` by another (`follow`)."""
        self._followed = followed and self._outlasts()
        with rare_collections():
            self._run(sink)
        while self._blocks:
            self._hand_over(sink)
        while self.stopped_at_s is None and (rows := self._next()) is not None:  # of those that never arrive
            sink.account(self._outcome(rows), rows)
        sink.retire(INFINITY)

    def warmed(self) -> None:
        """The caches of replicas were filled before the first request."""
        self._router.warmed()

    def follow(self, source: Source, at_s: float, destinations: Destinations | None = None) -> None:
        """Take another load, which begins at `at_s`; every request of the one before has ended.

        `destinations` : where its classes may go, where there are several pools.
        """
        self._source = source
        self._unserved.clear()
        self._blocks.clear()
        self._shared.clear()
        self._releases = Releases()
        self._linked = False
        self._block_rows = 0
        self._limit_s = self._last_sent_s = at_s
        self._next_reach_s = INFINITY
        self._wake_s = [INFINITY] * len(self.replicas)
        self._begin_load(self._loads, at_s)
        self._loads += 1

    def devices_of_pools(self, start_s: float, end_s: float) -> list[float] | None:
        """Devices that each pool had in a stretch of time, on average; None where they are always the same."""
        return None

    def totals(self) -> ClusterResult:
        """Totals of the replicas, without requests."""
        return self._outcome(Rows(no_requests(), self._plan.limits))

    def _begin_load(self, number: int, at_s: float) -> None:
        """A load begins, the first one at time zero: note what comes to pass then or later, whatever the requests are."""

    def _idle(self) -> bool:
        """Whether no request is under way or known to come, as far as that has been heard."""
        return self._next_reach_s == INFINITY and not self._live and not self._due

    def _outlasts(self) -> bool:
        """Whether the calendar holds more than what comes of the requests."""
        return False

    def _load_over(self) -> bool:
        """Whether what the calendar holds next is left to the load that follows: all requests have ended, and have been heard."""
        return self._clock.next_event_s() >= self.duration_s and self._idle()

    def _run(self, sink: Sink | None) -> None:
        if not self._loads:
            self._loads = 1
            self._begin_load(0, 0.0)
        self._coming = iter(self._source.blocks())
        source, releases, last_s, served = self._source, self._releases, 0.0, False
        try:
            while self._unserved or ((releases.more is None or releases.more.by_clock) and self._load()):
                if not self._unserved:
                    continue
                rows = self._unserved.popleft()
                if sink is not None and served:  # a run of one block is counted when it is over
                    self._settle(sink, last_s)
                served = True
                last_s = float(np.max(rows.arrival_s[rows.known], initial=last_s))
                self.duration_s = source.duration_s if np.isfinite(source.duration_s) else last_s
                self._last_sent_s = max(self._last_sent_s, last_s)
                self._serve(rows, last_s + self._before_s)
            self._next_reach_s = INFINITY
            loaded = self._rows
            while self._clock.next_event_s() <= self._end_s and not (self._followed and self._load_over()) and self._clock.step():
                if sink is not None and self._rows > loaded:
                    loaded = self._rows
                    self._settle(sink, INFINITY)
            end_s = self._end_s
            self._limit_s = end_s if end_s < INFINITY else self._last_sent_s + source.drain_s
            for replica in self.replicas:  # all as far as the last arrival took the first, however short the drain
                replica.end(max(self._limit_s, self._last_sent_s + self._before_s))
            if self.encoders is not None:
                self.encoders.end(self._limit_s)
        except Stopped:
            self.stopped_at_s = self._limit_s = reached_s(self.replicas, max(self._limit_s, self._clock.now_s))
            for rows in self._blocks:
                for row in rows.cut(self._limit_s).tolist():
                    self._live.pop(rows.first + row, None)
        for replica in self.replicas:
            replica.settle_ahead()
        for seq in leave(self.ranks, self._live.values(), self._limit_s):
            self._keep(seq)
        self._last_step_s = last_step_s(self.ranks)
        self.any_unfinished |= any((rows.status == UNFINISHED).any() for rows in self._blocks)

    @property
    def _end_s(self) -> float:
        """End of the drain [s], after the duration or the last request that is sent; infinite as long as that is to come."""
        source = self._source
        if source.duration_s < INFINITY:
            return source.duration_s + source.drain_s
        return self._last_sent_s + source.drain_s if self._releases.all_sent else INFINITY

    def _next(self) -> Rows | None:
        """The next block, if there is one."""
        workload = next(self._coming, None)
        if workload is None:
            return None
        rows = self._judged(workload)
        rows.encoded = Encodings(len(workload)) if self.encoders is not None else None
        self._rows += len(workload)
        return rows

    def _judged(self, workload: Workload) -> Rows:
        """A block with what the engine makes of its lengths."""
        return Rows(workload, self._plan.limits, self._rows)

    def _load(self) -> bool:
        """Take in the next block; False if there is none."""
        rows = self._next()
        if rows is None:
            self._releases.more = None
            return False
        workload = rows.workload
        self._block_rows = self._block_rows or max(1, len(workload))
        self._blocks.append(rows)
        if rows.known.any() or not rows.first:
            self._unserved.append(rows)
        self._releases.take(rows)
        self._linked = self._linked or bool(self._releases)
        if (self._plan.prefix_caching or self._router.reads_text) and workload.content is not None:
            self._shared[rows.first] = SharedContents(
                workload.content, workload.prompt_tokens, rows.lengths.output_tokens
            )
        return True

    def _serve(self, rows: Rows, until_s: float) -> None:
        """Let the requests of a block arrive, up to `until_s`, when the last with a known arrival reaches the engine."""
        router = self._router
        apart = self._limited or self._timeout_s is not None or self._linked or self.encoders is not None
        if isinstance(router, InTurn) and not apart:
            some = SLICES if self._should_stop is not None and len(self.replicas) > 1 else 1
            slices = np.linspace(self._limit_s, until_s, 1 + some)
            self._limit_s = until_s
            for feed, rank, mine in zip(
                self._feeds, self.ranks, rows.deal(len(self.ranks), router.chosen), strict=True
            ):
                feed.lots.extend(
                    partial(self._sequences, rows, mine[at : at + CHUNK]) for at in range(0, len(mine), CHUNK)
                )
                rank.feed(feed)
            router.chosen += len(rows.accepted)
            for limit_s in slices[1:].tolist():
                for replica in self.replicas:
                    replica.advance(limit_s)
            return
        self._limit_s = until_s
        if self._linked:
            for number in range(len(self.replicas)):
                self._watch(number)
            for row in np.flatnonzero(rows.refused & rows.known).tolist():
                arrival_s = float(rows.arrival_s[row])
                self._due += 1
                self._clock.at(arrival_s, ARRIVALS, partial(self._refuse, rows, row, arrival_s))
        clock = self._clock
        mine = rows.accepted[rows.known[rows.accepted]]
        for at in range(0, len(mine), CHUNK):
            for seq in self._sequences(rows, mine[at : at + CHUNK]):
                self._next_reach_s = reach_s = seq.arrival_s
                clock.run_before(reach_s, ARRIVALS)
                clock.now_s = reach_s
                self._reach(rows, seq)

    # -- requests -------------------------------------------------------------------------------------------

    def _sequences(self, block: Rows, rows: IntArray) -> list[Sequence]:
        """Make requests of a block that have arrived, as the engine sees them, and note that they live.

        They are made a chunk at a time, so that those of hours to come take no memory.
        """
        w, lengths, first = block.workload, block.lengths, block.first
        shared, acceptance = self._shared.get(first), self._acceptance
        priority = [kind.priority for kind in w.classes] or [0]
        structured = [kind.structured_share for kind in w.classes] or [0.0]
        columns = (
            rows,
            w.prompt_tokens[rows],
            lengths.output_tokens[rows],
            block.arrival_s[rows] + self._before_s,
            w.class_index[rows],
            lengths.stop_known[rows],
            w.max_output_tokens[rows],
        )
        adapters: list[int] = [0] * len(rows) if w.adapter is None else w.adapter[rows].tolist()
        images: list[list[int]] | None = None if w.images is None else w.images[rows].tolist()
        made: list[Sequence] = []
        for row, prompt, output, engine_s, kind, known, limit, adapter in zip(
            *(column.tolist() for column in columns), adapters, strict=True
        ):
            index = first + row
            seq = self._live[index] = Sequence(
                index, prompt, output, engine_s, priority=priority[kind], stop_known=known, limit_tokens=limit
            )
            if images is not None:
                count, of_images = images[len(made)]
                seq.images = image_places(prompt, count, of_images)
            made.append(seq)
            if shared is not None:
                seq.runs, seq.shareable_tokens, seq.output_shared = shared.of(row)
            if adapter:
                seq.adapter, seq.runs = adapter, for_adapter(seq.runs, adapter)
            if acceptance is not None:
                seq.acceptance = acceptance(index)
            if structured[kind]:
                seq.masked = is_structured(index, structured[kind])
        return made

    def _reach(self, block: Rows, seq: Sequence) -> None:
        """A request reaches the router now, which lets it in, lets it wait or sends it away."""
        door, now_s = self._door, self._clock.now_s
        if self._timeout_s is not None:
            attempt = int(block.attempts[seq.index - block.first])
            self._clock.at(now_s + self._timeout_s, ARRIVALS, partial(self._give_up, block, seq, attempt))
        if self._router.filters and self._router.turns_away(seq):
            self._turn_away(block, seq, REJECTED, Reason.SHED_429)
            return
        answer = "in" if door is None else door.ask(now_s, seq)
        if answer == "in":
            self._send(block, seq)
        elif answer != "wait":
            self._turn_away(block, seq, REJECTED, Reason(answer))
        elif door is not None:
            door.push(block, seq)
            if door.rules.queue_timeout_s is not None:
                self._clock.at(now_s + door.rules.queue_timeout_s, ARRIVALS, partial(self._expire, block, seq))
            for number in range(len(self.replicas)) if len(door) == 1 else ():
                self._watch(number)
            self._await_rate()

    def _send(self, block: Rows, seq: Sequence) -> None:
        """A request reaches the engine now: the router chooses, and the replica takes it or sheds it."""
        now_s, row = self._clock.now_s, seq.index - block.first
        if not self._router.has_room(now_s, seq):  # no replica that the router would try
            self._turn_away(block, seq, REJECTED, Reason.SHED_503)
            return
        number = self._choose(now_s, seq, int(block.workload.session_id[row]))
        at = self._replica_of[number]
        replica, front = self.replicas[at], self._fronts[at]
        known = self._router.keeps_up and not front.asks
        if not known:
            replica.advance(now_s)
        full = front.inflight is not None and replica.in_service >= front.inflight
        if full or (front.asks and self._sheds(number, now_s)):
            again_s = self._router.refused(seq, now_s)
            if again_s is None:
                self._turn_away(block, seq, REJECTED, SHED[front.on_full])
            else:
                self._clock.at(again_s, ARRIVALS, partial(self._again, self._send, block, seq))
            return
        if (reason := self._suits(block, seq, at)) is not None:
            block.replica[row] = number  # which has said so
            self._router.ended(seq, now_s)
            self._turn_away(block, seq, REJECTED, reason)
            return
        block.replica[row] = number
        self._submit(number, seq)
        if known:
            self._router.took(at)
        else:
            self._tell(at)
        self._watch(at)

    def _choose(self, now_s: float, seq: Sequence, session: int) -> int:
        """The number of the rank that gets a request."""
        return self._router.choose(now_s, seq, session)

    def _suits(self, block: Rows, seq: Sequence, replica: int) -> Reason | None:
        """Make a request one of a replica's; why that replica refuses it, None if it does not."""
        return None

    def _submit(self, number: int, seq: Sequence) -> None:
        """A replica takes a request, at once or when its images are encoded elsewhere."""
        stage = self.encoders
        if stage is None or not seq.images or not stage.serves(number):
            self.ranks[number].submit(seq)
            return
        block = self._of(seq.index)
        assert block.encoded is not None
        stage.take(seq, number, block.encoded, seq.index - block.first, partial(self._images_here, number, seq))

    def _images_here(self, number: int, seq: Sequence, now_s: float) -> None:
        """All that others have made of a request's images is where it is read."""
        self._run_to(self._replica_of[number], now_s)
        seq.arrival_s = now_s
        self.ranks[number].submit(seq)
        self._note(number)

    def _note(self, number: int) -> None:
        """The replica of a rank has changed."""
        self._tell(self._replica_of[number])
        self._watch(self._replica_of[number])

    def _tell(self, replica: int) -> None:
        """Tell the router that sees a replica that it has changed."""
        self._router.note(replica)

    def _run_to(self, replica: int, to_s: float) -> None:
        """Advance a replica."""
        self._look(to_s)
        self.replicas[replica].advance(to_s)

    def _look(self, now_s: float) -> None:
        """Let the router read what replicas say of themselves, if it is time, before any is advanced."""
        self._router.look(now_s)

    def _keep(self, seq: Sequence) -> None:
        """Note what a request that ends without its answer knows."""
        self._of(seq.index).keep(seq)

    def _sheds(self, number: int, now_s: float) -> bool:
        """Whether the scheduler of a rank turns away who comes now."""
        rank = self.ranks[number]
        return rank.scheduler.sheds(now_s, rank.expected)

    def _again(self, how: Callable[[Rows, Sequence], None], block: Rows, seq: Sequence) -> None:
        """A request that was sent away comes again, unless the run is over."""
        now_s = self._clock.now_s
        if self._live.get(seq.index) is seq and now_s <= self._end_s:
            seq.arrival_s = now_s
            how(block, seq)

    def _turn_away(self, block: Rows, seq: Sequence, status: int, reason: Reason, *, begun: bool = False) -> None:
        """A request gets no answer, though a replica had it (`begun`): its client tries again later, or it ends so."""
        row, client = seq.index - block.first, self._client
        end_s = self._clock.now_s + self._after_s
        backoff = client.backoff if client is not None and reason in client.on else None
        if backoff is not None and block.attempts[row] < backoff.attempts:
            again_s = end_s + backoff.delay_s(int(block.attempts[row]), self._draw) + self._before_s
            block.attempts[row] += 1
            if begun:
                block.replica[row] = -1
                (seq,) = self._sequences(block, np.array([row]))
            self._clock.at(again_s, ARRIVALS, partial(self._again, self._reach, block, seq))
            return
        if begun:
            self._keep(seq)
        del self._live[seq.index]
        block.end(row, status, reason)
        self.turned_away_s = max(self.turned_away_s, end_s)
        self._release(block, row, end_s)

    def _give_up(self, block: Rows, seq: Sequence, attempt: int) -> None:
        """The client of a request waits no longer, if it waits still: wherever the request is, it is forgotten."""
        now_s, row = self._clock.now_s, seq.index - block.first
        if self._live.get(seq.index) is not seq or block.attempts[row] != attempt or now_s > self._end_s:
            return
        number = int(block.replica[row])
        if number < 0:  # it waits before the router, or to be sent again
            if self._door is not None:
                self._door.leave(seq)
            self._turn_away(block, seq, FAILED, Reason.TIMED_OUT)
            return
        at = self._replica_of[number]
        replica = self.replicas[at]
        self._look(now_s)
        replica.advance(now_s)
        if self._live.get(seq.index) is not seq:  # it has just ended
            return
        if self.encoders is None or not self.encoders.forget(seq):
            replica.cancel(self.ranks[number], seq, now_s)
        self._router.ended(seq, now_s)
        self._turn_away(block, seq, FAILED, Reason.TIMED_OUT, begun=True)
        self._tell(at)
        self._watch(at)
        self._room_made(now_s)

    def _expire(self, block: Rows, seq: Sequence) -> None:
        """A request has waited too long, if it waits still."""
        if self._door is not None and self._door.leave(seq):
            self._turn_away(block, seq, FAILED, Reason.TIMED_OUT)

    def _room_made(self, now_s: float) -> None:
        """A replica has one request less: those that wait may come in."""
        if self._door:
            self._clock.at(max(now_s, self._clock.now_s), ARRIVALS, self._let_in)

    def _let_in(self) -> None:
        """Send on those that wait before the router, as far as there is room."""
        door, now_s = self._door, self._clock.now_s
        while door is not None and now_s <= self._end_s and (entry := door.next(now_s)) is not None:
            block, seq = entry
            seq.arrival_s = now_s
            self._send(block, seq)
        self._await_rate()

    def _await_rate(self) -> None:
        """Look again when the rate lets the next in, where somebody waits for that."""
        door, now_s = self._door, self._clock.now_s
        if door is None or not len(door):
            return
        due_s = door.next_s(now_s)
        if due_s > now_s and not now_s < self._token_s <= due_s:
            self._token_s = due_s
            self._clock.at(due_s, ARRIVALS, self._let_in)

    def _released(self, block: Rows, row: int, now_s: float) -> None:
        """A request that waited for another arrives."""
        self._releases.arrived()
        self._last_sent_s = max(self._last_sent_s, now_s)
        while self._releases.spent and self._load():
            pass
        if not block.arrive(row, now_s):
            self._release(block, row, now_s)
            return
        (seq,) = self._sequences(block, np.array([row]))
        if self._before_s:
            self._clock.at(seq.arrival_s, ARRIVALS, partial(self._reach, block, seq))
        else:
            self._reach(block, seq)

    def _finished(self, seq: Sequence, now_s: float) -> None:
        if self._timeout_s is not None and self._live.get(seq.index) is not seq:
            return  # its client has gone while the last token was computed
        block = self._of(seq.index)
        row, end_s = seq.index - block.first, now_s + self._after_s
        if seq.state in LOST:
            block.keep(seq)
            block.end(row, *LOST[seq.state])
            self.turned_away_s = max(self.turned_away_s, end_s)
        else:
            if self._linked:  # others wait for it; else it is read from the log when the block is counted
                end_s = self.ranks[block.replica[row]].sent_s(now_s) + self._after_s
            block.finish(seq, end_s)
        del self._live[seq.index]
        self._router.ended(seq, now_s)
        if self._door:
            self._room_made(now_s)
        if self._linked:
            self._release(block, row, end_s)
        if self._should_stop is not None and self._should_stop():
            raise Stopped

    def _release(self, block: Rows, row: int, end_s: float) -> None:
        """Let the requests that waited for this one arrive."""
        clock, releases = self._clock, self._releases
        while releases.lack(block, row) and self._load():
            pass
        if not releases:
            return
        for when_s, of, follower in releases.ended(block, row, end_s, clock.now_s):
            self._due += 1
            clock.at(when_s, ARRIVALS, partial(self._follow_up, of, follower, when_s))
        ready_s = releases.ready_s(block, row, end_s, clock.now_s)
        if ready_s is not None:
            kind = int(block.workload.class_index[row])
            self._due += 1
            clock.at(ready_s, ARRIVALS, partial(self._send_next, kind, ready_s))

    def _refuse(self, block: Rows, row: int, now_s: float) -> None:
        """A request arrives that the engine refuses: others may have waited for it."""
        self._due -= 1
        self._release(block, row, now_s)

    def _follow_up(self, block: Rows, row: int, now_s: float) -> None:
        """A request that waited for one that has ended arrives."""
        self._due -= 1
        self._released(block, row, now_s)

    def _send_next(self, kind: int, now_s: float) -> None:
        """A client of the closed loop of a class sends its next request, if there is one left."""
        self._due -= 1
        while self._releases.lack_of(kind) and self._load():
            pass
        found = self._releases.next_of(kind)
        if found is not None:
            self._released(*found, now_s)

    # -- waking ---------------------------------------------------------------------------------------------

    def _watch(self, number: int) -> None:
        """Wake up when a request may end in a replica, as long as something depends on results."""
        if not self._releases and not self._door and not self._followed and not self._awaited(number):
            return
        clock, replica = self._clock, self.replicas[number]
        due_s = max(replica.visible_s(), clock.now_s)
        if due_s == INFINITY or due_s > self._end_s or self._wake_s[number] <= due_s:
            return
        self._wake_s[number] = due_s

        def results() -> None:
            if self._wake_s[number] == due_s:
                self._wake_s[number] = INFINITY
            if due_s > self._end_s:  # the last request was sent meanwhile
                return
            self._look(due_s)
            replica.advance(due_s)
            self._tell(number)
            if due_s < self._end_s:
                clock.at(due_s, DECISIONS, decisions)

        def decisions() -> None:
            # decide and run on until some other part may interfere; an ended request may release another
            at_least_s = float(np.nextafter(due_s, INFINITY))
            while replica.advance(min(max(self._next_s(), at_least_s), self._end_s), stop_after_finish=True):
                pass
            self._tell(number)
            self._watch(number)

        clock.at(due_s, RESULTS, results)

    def _awaited(self, number: int) -> bool:
        """Whether the end of what a replica has changes more than its requests."""
        return False

    def _next_s(self) -> float:
        """When something next happens outside of the replicas."""
        return min(self._clock.next_event_s(), self._next_reach_s, self._router.looks_s())

    # -- ending ---------------------------------------------------------------------------------------------

    def _of(self, index: int) -> Rows:
        return self._blocks[(index - self._blocks[0].first) // self._block_rows]

    def _settle(self, sink: Sink, next_s: float) -> None:
        """Hand over the blocks in front whose requests have all ended; none that arrives by the clock does before `next_s`."""
        settled = False
        for replica in self.replicas if self._blocks and not self._blocks[0].left else ():
            for rank in replica.ranks:
                rank.send(min(replica.clock_s, rank.reached_s))  # a clock may be ahead of what is known
        while self._blocks and not self._blocks[0].left:
            self._hand_over(sink)
            settled = True
        if settled:
            before_s = min(next_s, self._clock.now_s) if self._linked else next_s
            for rows in self._blocks:
                before_s = float(np.fmin.reduce(rows.arrival_s, initial=before_s))
            sink.retire(before_s)

    def _hand_over(self, sink: Sink) -> None:
        block = self._blocks.popleft()
        self._shared.pop(block.first, None)
        sink.account(self._outcome(block), block)

    def end_of_run_s(self) -> float:
        """When the last step ended, or the drain if requests are left."""
        drained_s = self._limit_s if self.stopped_at_s is None and self.any_unfinished else 0.0
        return max(drained_s, self._last_step_s)

    def _outcome(self, rows: Rows) -> ClusterResult:
        return outcome(rows, self.ranks, self._after_s, self.end_of_run_s(), self.stopped_at_s)
