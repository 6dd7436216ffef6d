"""Models that take turns on the same devices: one of a place's servers is there, the others sleep or are stopped.

A request for a model that is not there waits, and those after it do too, whatever they ask for: in order of arrival, as a proxy
that swaps models holds them by one lock (llama-swap `proxy/processgroup.go`, whose `Stop` waits for requests in flight; read
2026-11). Once the model that is there has nothing left it leaves, and the one that is asked for first comes, with an empty cache.

Of several places a request goes to one that has its model, or will when those that wait there have been served; if none does, to
the one with the fewest requests, of those to the one that changed longest ago (assumed).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from engine_models.declaration import EnginePlan, Executor, Mode
from engine_models.parts.protocols import INFINITY, StepCost
from engine_models.parts.sequence import Sequence as Request
from simulator.cluster.clock import ARRIVALS, DECISIONS
from simulator.cluster.devices import DeviceHistory
from simulator.cluster.elastic import shift_steps
from simulator.cluster.mixed import GroupRouter, MixedCluster
from simulator.cluster.outcome import FAILED, Reason, Rows
from simulator.cluster.router import Router, Routing
from simulator.cluster.servers import Change, Share
from simulator.serving.replica import Replica


class Place:
    """Devices of one replica. `here` is the replica that is there, or is coming; `waiting` are requests with their ranks."""

    def __init__(self, members: Sequence[int], here: int) -> None:
        self.members = members
        self.here = here
        self.life = 0  # how often all that was on the devices has been lost
        self.since_s = 0.0
        self.ready = True
        self.waiting: deque[tuple[int, int, Request]] = deque()  # replica, number of the rank, request

    @property
    def last(self) -> int:
        """The replica that is there when all who wait have been let in."""
        return self.waiting[-1][0] if self.waiting else self.here


class TurnsCluster(MixedCluster):
    """Pools side by side, some of which share their devices.

    Parameters
    ----------
    shares : of each pool, None for devices of its own; `each` are the devices of one of its replicas.
    Others as of the base.
    """

    def __init__(self, *args: Any, shares: Sequence[Share | None], each: Sequence[int], **kwargs: Any) -> None:
        self._shares, self._each = shares, each
        self._modes: Mode = "jump"
        self._stands: list[Place | None] = []
        super().__init__(*args, **kwargs)
        self.changes: list[Change] = []
        there = [0] * len(self._pools)
        for replica, stand in enumerate(self._stands):
            if stand is None or stand.here == replica:
                there[self._pool_of[replica]] += each[self._pool_of[replica]]
        self._there = there
        self.held = [DeviceHistory(count) for count in there]
        """Devices of each pool over time."""

    def _places_of(self) -> list[Place | None]:
        """The place of each replica, None where it has devices of its own."""
        found: list[Place | None] = [None] * len(self._pool_of)
        first = 0
        by_name: dict[str, list[range]] = {}
        for pool, share in zip(self._pools, self._shares, strict=True):
            if share is not None:
                by_name.setdefault(share.place, []).append(range(first, first + pool.replicas))
            first += pool.replicas
        for models in by_name.values():
            for number, members in enumerate(zip(*models, strict=True)):
                shared = Place(members, members[number % len(members)])
                for replica in members:
                    found[replica] = shared
        return found

    def devices_of_pools(self, start_s: float, end_s: float) -> list[float] | None:
        """As of the base."""
        return [held.mean(start_s, end_s) for held in self.held]

    def _made(self, plan: EnginePlan, cost: StepCost, replicas: int, ranks: int, mode: Mode) -> list[Replica]:
        self._modes = mode
        self._stands = self._places_of()
        return super()._made(plan, cost, replicas, ranks, mode)

    def _routed(self, rule: str | Routing, executor: Executor) -> Router:
        self._groups = super()._routed(rule, executor)
        return self._groups

    def _changing(self) -> bool:
        return True

    def _choose(self, now_s: float, seq: Request, session: int) -> int:
        assert isinstance(self._groups, GroupRouter)
        group = self._group(seq)
        members = self._groups.members(group)
        stands = [(replica, self._stands[replica]) for replica in members if self._is_sent_to(replica)]
        holders = [replica for replica, stand in stands if stand is None or stand.last == replica]
        if not holders:
            loads = [
                (len(stand.waiting) + self.replicas[stand.here].in_service, stand.since_s, replica)
                for replica, stand in stands
                if stand is not None
            ]
            holders = [min(loads)[-1]]
        self._groups.only(group, holders)
        return super()._choose(now_s, seq, session)

    def _is_sent_to(self, replica: int) -> bool:
        """Whether a replica gets requests."""
        return True

    def _submit(self, number: int, seq: Request) -> None:
        replica = self._replica_of[number]
        stand = self._stands[replica]
        if stand is None or self._open(stand, replica):
            super()._submit(number, seq)
            return
        stand.waiting.append((replica, number, seq))
        self._wake_s[stand.here] = INFINITY
        self._turn(stand)
        self._watch(stand.here)

    def _open(self, stand: Place, replica: int) -> bool:
        """Whether a request for a replica need not wait."""
        if not stand.ready or stand.here != replica:
            return False
        share = self._shares[self._pool_of[replica]]
        assert share is not None
        return not stand.waiting or (
            self._clock.now_s < stand.since_s + share.stay_s and self.replicas[replica].in_service > 0
        )

    def _awaited(self, number: int) -> bool:
        stand = self._stands[number]
        return stand is not None and stand.here == number and bool(stand.waiting)

    def _finished(self, seq: Request, now_s: float) -> None:
        number = int(self._of(seq.index).replica[seq.index - self._of(seq.index).first])
        self._settle_steps(seq, number)
        super()._finished(seq, now_s)
        stand = self._stands[self._replica_of[number]]
        if stand is not None and stand.waiting:
            self._clock.at(max(now_s, self._clock.now_s), DECISIONS, partial(self._turn, stand))

    def _give_up(self, block: Rows, seq: Request, attempt: int) -> None:
        """As of the base; one that waits for its model leaves the queue, which may then go on."""
        row, now_s = seq.index - block.first, self._clock.now_s
        number = int(block.replica[row])
        stand = self._stands[self._replica_of[number]] if number >= 0 else None
        held = next((each for each in stand.waiting if each[2] is seq), None) if stand is not None else None
        if stand is None or held is None or block.attempts[row] != attempt or now_s > self._end_s:
            super()._give_up(block, seq, attempt)
        else:
            stand.waiting.remove(held)
            self._router.ended(seq, now_s)
            self._turn_away(block, seq, FAILED, Reason.TIMED_OUT, begun=True)
        if stand is not None and stand.waiting:
            self._turn(stand)

    def _keep(self, seq: Request) -> None:
        block = self._of(seq.index)
        number = int(block.replica[seq.index - block.first])
        if number >= 0:
            self._settle_steps(seq, number)
        super()._keep(seq)

    def _settle_steps(self, seq: Request, number: int) -> None:
        """A request that ends counts its steps from the first of the log."""
        shift_steps(seq, self.ranks[number])

    def _turn(self, stand: Place) -> None:
        """Let those in who wait first for the model that is there; bring another if it has nothing left."""
        now_s = self._clock.now_s
        if not stand.ready or now_s > self._end_s:
            return
        while stand.waiting and stand.waiting[0][0] == stand.here:
            replica, number, seq = stand.waiting.popleft()
            seq.arrival_s = max(seq.arrival_s, now_s)
            super()._submit(number, seq)
            self._router.note(replica)
        server = self.replicas[stand.here]
        if stand.waiting and not server.in_service:
            self._change(stand, stand.waiting[0][0])
        elif not stand.waiting:
            self._watch(stand.here)

    def _change(self, stand: Place, after: int) -> None:
        """The model that is there leaves, another comes."""
        now_s, before = self._clock.now_s, stand.here
        leaves, comes = (self._shares[self._pool_of[replica]] for replica in (before, after))
        assert leaves is not None
        assert comes is not None
        server = self.replicas[before]
        server.advance(now_s)
        gone_s = max([now_s, *(rank.log.end_s[-1] for rank in server.ranks if rank.log.end_s)])  # a step may be under way
        for rank in server.ranks:
            rank.scheduler.close()
        plan, cost = self._pools[self._pool_of[before]].plan, server.cost
        server.renew([plan.scheduler(self._modes) for _ in server.ranks], now_s)
        server.cost = cost  # a slow device stays slow
        self._wake_s[before] = INFINITY
        there_s = gone_s + leaves.out_s + comes.in_s
        self.changes.append(Change(now_s, there_s, self._pool_of[before], self._pool_of[after]))
        self._hold(before, -1)
        self._hold(after, 1)
        stand.here, stand.ready, stand.since_s = after, False, now_s
        self._clock.at(there_s, ARRIVALS, partial(self._open_up, stand, stand.life))

    def _hold(self, replica: int, sign: int) -> None:
        """The devices of a replica are now its pool's, or no longer."""
        pool = self._pool_of[replica]
        self._there[pool] += sign * self._each[pool]
        self.held[pool].change(self._clock.now_s, self._there[pool])

    def _open_up(self, stand: Place, life: int) -> None:
        """The model that was brought serves from now on, unless it has been lost on its way."""
        if stand.life != life:
            return
        stand.ready, stand.since_s = True, self._clock.now_s
        self.replicas[stand.here].start(stand.since_s)
        self._turn(stand)
        self._watch(stand.here)


__all__ = ["TurnsCluster"]
