"""A stage before the language model: servers that encode images, and the ways from there to those that read them.

A request's server is chosen first. Its images are dealt to the encode servers, those of one server together; when all are encoded
they go over the network to the request's server, which sees the request when the last is there. Requests without images
skip all that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from heapq import heapreplace
from itertools import accumulate, pairwise
from random import Random

import numpy as np

from engine_models.declaration import FrontEnd
from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence as Request
from hardware_profiles.records import dataclass
from simulator.cluster.clock import ARRIVALS, DECISIONS, RESULTS, Clock
from simulator.cluster.outcome import Encodings
from simulator.cluster.servers import Servers
from simulator.cluster.transfer import Network, Paths
from simulator.serving.rank import Rank
from simulator.serving.replica import Replica


@dataclass(frozen=True)
class Encoders:
    """The pools that encode, and how their images go on.

    paths : over the network, from replicas that encode (they stand first) to ranks that read; None: readers read files.
    readers : the ranks that read are the first so many of the cluster's.  devices : of all pools.
    spread_seed : draws the order in which the images of a request are spread evenly; None: each goes to the next server in turn.
    """

    pools: Sequence[Servers]
    paths: Paths | None
    readers: int
    devices: int
    spread_seed: int | None = None


@dataclass(eq=False)
class _Job:
    """A request whose images are encoded: its server, what it does when all is there, what is missing, whether it is `gone`."""

    seq: Request
    reader: int
    ready: Callable[[float], None]
    notes: Encodings
    row: int
    parts: list[tuple[int, int]] = field(default_factory=list)  # server and tokens
    left: int = 0
    gone: bool = False


class EncodeStage:
    """The encode servers of a cluster, on its clock."""

    def __init__(self, encoders: Encoders, clock: Clock, *, aggregate: bool) -> None:
        self._encoders, self._clock = encoders, clock
        self._network = Network(clock)
        self.replicas: list[Replica] = []
        self._fronts: list[FrontEnd] = []
        self._free_s: list[list[float]] = []  # when each thread of a server's front end has done what it has, in order
        for servers in encoders.pools:
            front, executor = servers.plan.front.unqueued(), servers.plan.executor
            for _ in range(servers.replicas):
                made = Replica(
                    [servers.plan.scheduler("jump" if aggregate else "step")],
                    servers.cost,
                    depth=executor.depth,
                    on_finish=self._encoded,
                )
                self.replicas.append(made)
                self._fronts.append(front)
                self._free_s.append([0.0] * front.image_threads)
        self._wake_s = [INFINITY] * len(self.replicas)
        self._turn = self._made = 0
        self._draw = Random(encoders.spread_seed) if encoders.spread_seed is not None else None
        self._jobs: dict[Request, _Job] = {}  # by what a server has of a request
        self._asked: dict[Request, _Job] = {}

    @property
    def ranks(self) -> list[Rank]:
        """The one rank of each server."""
        return [replica.ranks[0] for replica in self.replicas]

    def serves(self, reader: int) -> bool:
        """Whether a rank of the cluster reads what is encoded here."""
        return reader < self._encoders.readers

    def take(self, seq: Request, reader: int, notes: Encodings, row: int, ready: Callable[[float], None]) -> None:
        """A request goes to the rank `reader`: encode its images; `ready` is called with the time when all is there."""
        now_s, servers = self._clock.now_s, len(self.replicas)
        job = self._asked[seq] = _Job(seq, reader, ready, notes, row)
        notes.begin(row, now_s)
        mine: dict[int, list[int]] = {}
        for at, (first, end) in zip(self._dealt(len(seq.images), servers), seq.images, strict=True):
            mine.setdefault(at, []).append(end - first)
        job.left = len(mine)
        for at, tokens in mine.items():
            ready_s = self._prepared_s(at, sum(tokens), now_s)
            part = Request(self._made, sum(tokens), 1, ready_s, priority=seq.priority, limit_tokens=1)
            part.images = tuple(pairwise(accumulate(tokens, initial=0)))
            self._made += 1
            self._jobs[part] = job
            job.parts.append((at, sum(tokens)))
            self._clock.at(ready_s, ARRIVALS, partial(self._submit, at, part))

    def _prepared_s(self, at: int, tokens: int, now_s: float) -> float:
        """When a server's front end has scaled and cut images of so many tokens: by the thread that is free first."""
        front, free_s = self._fronts[at], self._free_s[at]
        arrival_s = now_s + front.before_s
        begin_s = arrival_s if arrival_s > free_s[0] else free_s[0]
        own_s = front.tokenise_token_s * tokens + front.tokenise_request_s
        own_s += front.image_token_s * tokens
        heapreplace(free_s, begin_s + own_s)
        return begin_s + own_s

    def _submit(self, at: int, part: Request) -> None:
        """Images are ready to be encoded."""
        self.replicas[at].advance(self._clock.now_s)
        self.replicas[at].ranks[0].submit(part)
        self._watch(at)

    def forget(self, seq: Request) -> bool:
        """Nobody waits for a request any more: False if it is not here. Its images are encoded all the same."""
        job = self._asked.pop(seq, None)
        if job is None:
            return False
        job.gone = True
        return True

    def _dealt(self, images: int, servers: int) -> list[int]:
        """The server of each image of a request."""
        if self._draw is None:
            self._turn += images
            return [number % servers for number in range(self._turn - images, self._turn)]
        order = list(range(servers))
        self._draw.shuffle(order)
        more = set(order[: images % servers])
        return [at for at in range(servers) for _ in range(images // servers + (at in more))]

    def _encoded(self, part: Request, now_s: float) -> None:
        """A server has encoded its part of a request's images."""
        job = self._jobs.pop(part)
        job.left -= 1
        if job.left or job.gone:
            return
        job.notes.scheduled_s[job.row] = part.first_scheduled_s
        job.notes.encoded_s[job.row] = now_s
        self._clock.at(max(now_s, self._clock.now_s), ARRIVALS, partial(self._pass_on, job))

    def _pass_on(self, job: _Job) -> None:
        """All images of a request are encoded: they go to its server."""
        now_s, paths = self._clock.now_s, self._encoders.paths
        if job.gone:
            return
        job.notes.bytes[job.row] = 0.0
        if paths is None:
            self._arrived(job, now_s)
            return
        job.left = len(job.parts)
        for at, tokens in job.parts:
            ends, latency_s, size = paths.of(at, len(self.replicas) + job.reader, tokens)
            job.notes.bytes[job.row] += size
            self._network.send(now_s, ends, latency_s, partial(self._one_arrived, job))

    def _one_arrived(self, job: _Job, now_s: float) -> None:
        job.left -= 1
        if not job.left and not job.gone:
            self._arrived(job, now_s)

    def _arrived(self, job: _Job, now_s: float) -> None:
        del self._asked[job.seq]
        job.notes.arrived_s[job.row] = now_s
        job.ready(now_s)

    def _watch(self, at: int) -> None:
        """Wake up when a part of a request may have been encoded by a server."""
        due_s = max(self.replicas[at].visible_s(), self._clock.now_s)
        if due_s == INFINITY or self._wake_s[at] <= due_s:
            return
        self._wake_s[at] = due_s
        self._clock.at(due_s, RESULTS, partial(self._results, at, due_s))

    def _results(self, at: int, due_s: float) -> None:
        if self._wake_s[at] != due_s:
            return  # it was woken before, and said when next
        self._wake_s[at] = INFINITY
        self.replicas[at].advance(due_s)
        self._clock.at(due_s, DECISIONS, partial(self._decisions, at, due_s))

    def _decisions(self, at: int, due_s: float) -> None:
        self.replicas[at].advance(float(np.nextafter(due_s, INFINITY)))
        self._watch(at)

    def end(self, limit_s: float) -> None:
        """The run is over at `limit_s`."""
        for replica in self.replicas:
            replica.end(limit_s)
            replica.settle_ahead()
            replica.ranks[0].close()


__all__ = ["EncodeStage", "Encoders"]
