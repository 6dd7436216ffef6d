"""Two kinds of replicas that share every request: some compute its prompt, others its answer; a network lies between.

It is the cluster's loop with a second stage. A replica is advanced to the moments of one clock at which something may happen that
another part hears of: a prompt's end, a request's way to the second stage, the begin of a transfer and its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from engine_models.declaration import EnginePlan, Executor, Limits, Mode
from engine_models.parts.handover import Note, PullDecode, PullPrefill, ReservingDecode, SendingPrefill
from engine_models.parts.protocols import INFINITY, Scheduler, StepCost
from engine_models.parts.sequence import Sequence as Request
from hardware_profiles.records import dataclass
from simulator.cluster.admission import Admission, ClientRules
from simulator.cluster.clock import ARRIVALS, DECISIONS, RESULTS
from simulator.cluster.cluster import Cluster, IntArray, Source
from simulator.cluster.destinations import Destinations
from simulator.cluster.devices import DeviceHistory
from simulator.cluster.faults import Disturbance
from simulator.cluster.joins import Joins, Keepers
from simulator.cluster.outcome import Handovers, Rows
from simulator.cluster.router import Router, Routing
from simulator.cluster.routers import router_of
from simulator.cluster.servers import Servers
from simulator.cluster.transfer import Flow, Network, Paths, Way
from simulator.serving.convoy import ConvoyTurningReplica
from simulator.serving.replica import Replica
from simulator.serving.turning import TurningReplica

if TYPE_CHECKING:
    from simulator.cluster.encoding import Encoders


class HandoverCluster(Cluster):
    """Prefill and decode replicas, numbered in this order, the ranks of each pool as if it were alone.

    Parameters
    ----------
    source : the requests.
    prefill, decode : the pools of either stage.
    paths : the ways between replicas.
    limits : what both stages take.
    disturbances : ways that are closed and replicas that are slow, for a time.
    router : rule by which a replica is chosen in each stage.
    hop_s : time between a prompt's end and the request's arrival at the second stage, its front end's not included.
    Others as of the base; `devices` are those of all replicas.
    """

    changing = False
    """Whether replicas come and go."""
    _limits_at = (True, False)
    """Whether limits of the router hold at the servers of each stage."""

    def __init__(
        self,
        source: Source,
        prefill: Sequence[Servers],
        decode: Sequence[Servers],
        paths: Paths,
        limits: Limits,
        *,
        disturbances: Sequence[Disturbance] = (),
        router: str | Routing = "round_robin",
        admission: Admission | None = None,
        client: ClientRules | None = None,
        before_s: float = 0.0,
        after_s: float = 0.0,
        hop_s: float = 0.0,
        devices: int = 1,
        aggregate: bool = True,
        should_stop: Callable[[], bool] | None = None,
        encoders: Encoders | None = None,
    ) -> None:
        self._pair(prefill, decode, paths, disturbances, hop_s)
        plan = replace(
            decode[0].plan,
            limits=limits,
            front=prefill[0].plan.front.unqueued(),
            prefix_caching=any(s.plan.prefix_caching for s in (*prefill, *decode)),
        )
        super().__init__(
            source,
            plan,
            decode[0].cost,
            router=router,
            admission=admission,
            client=client,
            before_s=before_s,
            after_s=after_s,
            devices=devices,
            aggregate=aggregate,
            should_stop=should_stop,
            encoders=encoders,
        )
        self.devices = DeviceHistory(devices)
        self._open()

    def _open(self) -> None:
        """What begins once the base has."""
        self._linked = True
        self._network = Network(self._clock)

    def _pair(
        self,
        prefill: Sequence[Servers],
        decode: Sequence[Servers],
        paths: Paths,
        disturbances: Sequence[Disturbance],
        hop_s: float,
    ) -> None:
        """Note the pools of both stages and what lies between them."""
        self._stages = (prefill, decode)
        self._store: Keepers = {}  # who keeps the store that several pools share
        self._paths, self._disturbances = paths, disturbances
        self._first = sum(servers.replicas for servers in prefill)  # the first decode replica
        handover = decode[0].plan.handover
        assert handover is not None
        self._unit = handover.unit_tokens
        self._hop_s = hop_s + handover.hop_s + decode[0].plan.front.unqueued().before_s
        self._sources: dict[int, tuple[int, Request]] = {}  # by request: who holds its prompt
        self._reads: dict[int, Flow] = {}  # by request: how it is read

    def _made(self, plan: EnginePlan, cost: StepCost, replicas: int, ranks: int, mode: Mode) -> list[Replica]:
        self._turning: list[TurningReplica] = []
        self._makers: list[Callable[[], Scheduler]] = []  # by replica: what makes it a fresh scheduler
        self._together: list[list[int]] = []  # by replica: those that are advanced with it, itself among them
        around_store: list[int] = []
        for stage, on_finish in zip(self._stages, (self._prefilled, self._finished), strict=True):
            for servers in stage:
                joins = Joins(servers.plan, mode, servers.replicas, servers.nodes, self._store if servers.joins_store else None)
                executor, front = servers.plan.executor, servers.plan.front.unqueued()
                convoy = around_store if servers.joins_store else list[int]()
                for number in range(servers.replicas):
                    together = convoy if joins.shares else list[int]()
                    together.append(len(self._turning))
                    maker = partial(joins.scheduler, number)
                    made = (ConvoyTurningReplica if joins.shares else TurningReplica)(
                        [maker() for _ in range(executor.ranks)],
                        servers.cost,
                        depth=executor.depth,
                        stages=executor.stages,
                        front=front,
                        on_finish=on_finish,
                    )
                    made.meant_for = servers.meant_for
                    self._turning.append(made)
                    self._makers.append(maker)
                    self._together.append(together)
        for replica, together in zip(self._turning, self._together, strict=True):
            if isinstance(replica, ConvoyTurningReplica):
                beside = [self._turning[at] for at in together]
                replica.members = [each for each in beside if isinstance(each, ConvoyTurningReplica)]
        return list(self._turning)

    def _all(self) -> list[Servers]:
        """The pools, in the order in which their replicas are numbered."""
        return [servers for stage in self._stages for servers in stage]

    def _places(self, ranks: int) -> list[tuple[int, int]]:
        places, first = [], 0
        for servers in self._all():
            places += [(first + n, rank) for rank in range(servers.plan.executor.ranks) for n in range(servers.replicas)]
            first += servers.replicas
        self._number_of = {place: number for number, place in enumerate(places)}
        self._servers = [servers for servers in self._all() for _ in range(servers.replicas)]
        self._accepted = [self._servers[replica].acceptance for replica, _ in places]
        return places

    def _routed(self, rule: str | Routing, executor: Executor) -> Router:
        first = second = rule
        if isinstance(rule, Routing):
            first, second = replace(rule, role="prefill"), replace(rule, role="decode", seed=lambda: rule.seed() + 1)
        system = rule.system if isinstance(rule, Routing) else None
        self._holds_prefill = system is not None and system.holds_prefill
        executors = [[servers.plan.executor for servers in stage for _ in range(servers.replicas)] for stage in self._stages]
        limits = [self._admission if held else None for held in self._limits_at]
        self._second = router_of(self.replicas[self._first :], second, executors[1], limits[1], changing=self.changing)
        router = router_of(self.replicas[: self._first], first, executors[0], limits[0], changing=self.changing)
        router.reads_text = router.reads_text or self._second.reads_text
        return router

    def follow(self, source: Source, at_s: float, destinations: Destinations | None = None) -> None:
        """As of the base."""
        super().follow(source, at_s, destinations)
        self._linked = True

    def _next(self) -> Rows | None:
        rows = super()._next()
        if rows is not None:
            rows.handed = Handovers(len(rows.workload))
        return rows

    def _begin_load(self, number: int, at_s: float) -> None:
        super()._begin_load(number, at_s)
        for fault in self._disturbances:
            if fault.load != number:
                continue
            begin_s = at_s + fault.at_s
            self._clock.at(begin_s, ARRIVALS, partial(self._disturb, fault, begins=True))
            if fault.for_s < INFINITY:
                self._clock.at(begin_s + fault.for_s, ARRIVALS, partial(self._disturb, fault, begins=False))

    def _idle(self) -> bool:
        return super()._idle() and not self._sources

    def _outlasts(self) -> bool:
        return bool(self._disturbances)

    def _disturb(self, fault: Disturbance, *, begins: bool) -> None:
        """A fault begins or is over."""
        for way in fault.ways:
            self._network.turn(way, closed=begins)
        if fault.replica is not None:
            number = self._number_of[fault.replica, 0]
            self._advance(number, self._clock.now_s)
            self.replicas[fault.replica].slow(fault.factor if begins else 1.0)
            self._wake_s[fault.replica] = INFINITY
            self._hear(number)

    # -- the way of a request -------------------------------------------------------------------------------

    def _sequences(self, block: Rows, rows: IntArray) -> list[Request]:
        """As of the base, for the first stage: requests of one token, which is dropped."""
        made = super()._sequences(block, rows)
        for seq in made:
            prompt_alone(seq)
        return made

    def _chosen(self, stage: int, choice: int) -> int:
        """The number of the rank that the router of a stage has chosen."""
        first, many = (self._first, len(self.replicas) - self._first) if stage else (0, self._first)
        return self._number_of[first + choice % many, choice // many]

    def _choose(self, now_s: float, seq: Request, session: int) -> int:
        return self._chosen(0, self._router.choose(now_s, seq, session))

    def _prefilled(self, seq: Request, now_s: float) -> None:
        """A prompt is computed: the request goes on to the second stage."""
        block = self._of(seq.index)
        row, handed = seq.index - block.first, block.handed
        assert handed is not None
        self._router.ended(seq, now_s)
        block.keep(seq)
        handed.prefill_end_s[row] = now_s
        handed.source[row] = number = int(block.replica[row])
        del self._live[seq.index]
        self._sources[seq.index] = number, seq
        self._clock.at(now_s + self._hop_s, ARRIVALS, partial(self._take_over, block, seq))

    def _take_over(self, block: Rows, prompt: Request) -> None:
        """A request whose prompt is computed reaches the second stage now: its router chooses."""
        now_s, handed, row = self._clock.now_s, block.handed, prompt.index - block.first
        assert handed is not None
        (seq,) = self._answers(block, row)
        seq.arrival_s = now_s
        number = self._second_number(now_s, seq, int(block.workload.session_id[row]))
        self._advance(number, now_s)
        block.replica[row] = number
        self._submit(number, seq)
        handed.arrival_s[row] = seq.arrival_s
        self._note(number)

    def _answers(self, block: Rows, row: int) -> list[Request]:
        """The request of a row as the second stage sees it, which lives from now on."""
        return super()._sequences(block, np.array([row]))

    def _second_number(self, now_s: float, seq: Request, session: int) -> int:
        """The number of the rank that is to answer a request."""
        return self._accepting(self._chosen(1, self._second.choose(now_s, seq, session)), seq)

    def _accepting(self, number: int, seq: Request) -> int:
        """A rank that answers a request, which accepts drafts there as its pool says."""
        accepted = self._accepted[number]
        seq.acceptance = accepted(seq.index) if accepted is not None else None
        return number

    def _finished(self, seq: Request, now_s: float) -> None:
        self._second.ended(seq, now_s)
        super()._finished(seq, now_s)

    def _begin(self, number: int, note: Note) -> None:
        """A decode replica begins to read."""
        seq, now_s = note.seq, max(note.at_s, self._clock.now_s)
        block, (source, _) = self._of(seq.index), self._sources[seq.index]
        row, handed, unit = seq.index - block.first, block.handed, self._unit
        assert handed is not None
        ends, latency_s, size = self._paths.of(source, number, -(-note.tokens // unit) * unit)
        handed.transfer_start_s[row], handed.transfer_bytes[row] = now_s, size
        way, done = self._way(source, number), partial(self._arrived, number, seq)
        self._reads[seq.index] = self._network.send(now_s, ends, latency_s, done, way)

    def _way(self, source: int, target: int) -> Way:
        """The pools of a transfer, where one of their links may be down."""
        return self._paths.way(source, target) if self._disturbances else ("", "")

    def _arrived(self, number: int, seq: Request, now_s: float) -> None:
        """A read has ended: the reader may go on, the other side may free."""
        block, (source, held) = self._of(seq.index), self._sources.pop(seq.index)
        del self._reads[seq.index]
        assert block.handed is not None
        block.handed.transfer_end_s[seq.index - block.first] = now_s
        for side in (number, source):
            self._advance(side, now_s)
        reader, holder = self.ranks[number].scheduler, self.ranks[source].scheduler
        assert isinstance(reader, PullDecode)
        assert isinstance(holder, PullPrefill)
        reader.arrived(seq)
        holder.release(held)
        for side in (number, source):
            self._hear(side)

    def _hear(self, number: int) -> None:
        """Let a replica take in what a peer has done to a rank's scheduler."""
        self._turning[self._replica_of[number]].hear()
        self._note(number)

    # -- waking ---------------------------------------------------------------------------------------------

    def _next_s(self) -> float:
        return min(super()._next_s(), self._second.looks_s())

    def _look(self, now_s: float) -> None:
        super()._look(now_s)
        self._second.look(now_s)

    def _advance(self, number: int, to_s: float) -> None:
        """Advance the replica of a rank."""
        self._run_to(self._replica_of[number], to_s)

    def _run_to(self, at: int, to_s: float) -> None:
        """Advance a replica, and those that share something with it; carry on what they say to their peers."""
        self._look(to_s)
        self._turning[at].advance(to_s)
        for number in self._together[at]:
            for place, peer in enumerate(self._turning[number].peers):
                if peer.notes:
                    notes, peer.notes = peer.notes, []
                    for note in notes:
                        self._begin(self._number_of[number, place], note)

    def _watch(self, number: int) -> None:
        """Wake up when something may happen in a replica that others hear of."""
        replica = self._turning[number]
        if self._releases or self._door or self._followed or self._awaited(number):
            due_s = replica.decides_s()
        else:
            due_s = replica.speaks_s(of_ends=number < self._first)
        due_s = max(due_s, self._clock.now_s)
        if due_s < INFINITY and due_s <= self._end_s and self._wake_s[number] > due_s:
            self._wake_s[number] = due_s
            self._clock.at(due_s, RESULTS, partial(self._wake, number, due_s))

    def _wake(self, number: int, due_s: float) -> None:
        if self._wake_s[number] != due_s:
            return  # it was woken before, and said when next
        self._wake_s[number] = INFINITY
        if due_s > self._end_s:  # the last request was sent meanwhile
            return
        if due_s < self._end_s and self._next_s() > due_s and not self._heard:
            self._decide(number, due_s)  # nobody else acts before the decision
            return
        self._run_to(number, due_s)
        if due_s < self._end_s:
            self._clock.at(due_s, DECISIONS, partial(self._decide, number, due_s))

    @property
    def _heard(self) -> bool:
        """Whether a result may let a request come at the same instant."""
        return bool(self._releases) or self._door is not None

    def _decide(self, number: int, due_s: float) -> None:
        self._run_to(number, float(np.nextafter(due_s, INFINITY)))
        self._changed(number)

    def _note(self, number: int) -> None:
        """The replica of a rank has changed."""
        self._changed(self._replica_of[number])

    def _changed(self, at: int) -> None:
        """Tell the router of a replica that it has changed, and see when it next may."""
        router, of = (self._router, at) if at < self._first else (self._second, at - self._first)
        router.note(of)
        self._watch(at)


def prompt_alone(seq: Request) -> None:
    """Make of a request what the first stage sees: one token is wanted, which is dropped."""
    seq.final_length = seq.prompt_tokens + 1
    seq.stop_known, seq.limit_tokens, seq.output_shared = True, 1, False


@dataclass
class Pair:
    """A request at both servers: the numbers of these, how it looks there, tokens wanted and sent, pieces under way, and how all
    went.

    Of the prompt the second server has the first `known_tokens`; the pieces so far are of the first `passed_tokens`. `gone` are
    the servers that have it no longer.
    """

    source: int
    prompt: Request
    target: int
    answer: Request
    wanted_tokens: int = 0
    known_tokens: int = 0
    passed_tokens: int = 0
    sent_tokens: int = 0
    pieces: int = 0
    flows: list[Flow] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)


class ReservingCluster(HandoverCluster):
    """Prefill and decode replicas that get a request at once, the second of which reserves memory before the first begins."""

    _pairs: dict[int, Pair]
    _limits_at = (True, True)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pairs = {}
        super().__init__(*args, **kwargs)

    def _send(self, block: Rows, seq: Request) -> None:
        """As of the base: both routers choose, both replicas take it."""
        now_s, row = self._clock.now_s, seq.index - block.first
        handed, session = block.handed, int(block.workload.session_id[row])
        assert handed is not None
        (answer,) = self._answers(block, row)
        answer.arrival_s = seq.arrival_s
        source = self._chosen(0, self._router.choose(now_s, seq, session))
        target = self._second_number(now_s, answer, session)
        self._pairs[seq.index] = Pair(source, seq, target, answer)
        block.replica[row], handed.source[row] = target, source
        for number, side in ((source, seq), (target, answer)):
            self._advance(number, now_s)
            self._submit(number, side)
            self._note(number)

    def _prefilled(self, seq: Request, now_s: float) -> None:
        """A prompt is computed; its last piece is on its way."""
        block = self._of(seq.index)
        assert block.handed is not None
        if not self._holds_prefill:  # else it ends for the router with the answer
            self._router.ended(seq, now_s)
        block.keep(seq)
        block.handed.prefill_end_s[seq.index - block.first] = now_s

    def _begin(self, number: int, note: Note) -> None:
        """Memory is reserved for a request, or a piece of its prompt is sent."""
        pair, now_s = self._pairs[note.seq.index], max(note.at_s, self._clock.now_s)
        if number == pair.target:
            pair.wanted_tokens, pair.known_tokens = note.tokens, note.known
            self._clock.at(now_s, RESULTS, partial(self._reserved, pair))
        elif now_s > self._clock.now_s:  # its host posts others before
            self._clock.at(now_s, RESULTS, partial(self._piece, pair, note))
        else:
            self._piece(pair, note)

    def _piece(self, pair: Pair, note: Note) -> None:
        """A piece of a prompt is sent, unless its request has been forgotten."""
        now_s, index = self._clock.now_s, note.seq.index
        if self._pairs.get(index) is not pair:
            return
        known, before = pair.known_tokens, pair.passed_tokens
        pair.passed_tokens += note.tokens
        new = max(pair.passed_tokens - max(before, known), 0)
        tokens = min(new, pair.wanted_tokens - pair.sent_tokens)  # the target may have the prompt's begin
        if not tokens and (pair.wanted_tokens or pair.passed_tokens < known):
            return  # what says that all is computed goes in any case
        block = self._of(index)
        row, handed = index - block.first, block.handed
        assert handed is not None
        last = pair.sent_tokens + tokens >= pair.wanted_tokens
        ends, latency_s, size = self._paths.of(pair.source, pair.target, tokens, last=last)
        if not pair.sent_tokens:  # until then it waits with the prefill server, not with this one
            handed.arrival_s[row] = handed.transfer_start_s[row] = now_s
            handed.transfer_bytes[row] = 0.0
        handed.transfer_bytes[row] += size
        pair.sent_tokens += tokens
        way = self._way(pair.source, pair.target)
        pair.pieces += 1
        pair.flows.append(self._network.send(now_s, ends, latency_s, partial(self._piece_arrived, pair), way))

    def _reserved(self, pair: Pair) -> None:
        scheduler = self.ranks[pair.source].scheduler
        assert isinstance(scheduler, SendingPrefill)
        self._advance(pair.source, self._clock.now_s)
        scheduler.reserved(pair.prompt)
        self._advance(pair.source, self._clock.now_s)  # it may send at once
        self._hear(pair.source)

    def _piece_arrived(self, pair: Pair, now_s: float) -> None:
        pair.pieces -= 1
        if pair.pieces or pair.sent_tokens < pair.wanted_tokens:
            return
        index = pair.prompt.index
        block = self._of(index)
        assert block.handed is not None
        block.handed.transfer_end_s[index - block.first] = now_s
        del self._pairs[index]
        for side in (pair.source, pair.target):
            self._advance(side, now_s)
        sender, reader = self.ranks[pair.source].scheduler, self.ranks[pair.target].scheduler
        assert isinstance(sender, SendingPrefill)
        assert isinstance(reader, ReservingDecode)
        sender.sent(pair.prompt)
        reader.arrived(pair.answer)
        for side in (pair.source, pair.target):
            self._hear(side)
