"""Replicas that come and go: faults, drains, and what an autoscaler asks for.

It is the cluster's loop over a fleet. A replica that goes takes along what it has: its requests are lost, and their clients may
send them again; what it had computed, and the contents of its cache, are gone. The router hears of all this at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Series
from functools import partial
from typing import Any

from engine_models.declaration import EnginePlan, Executor, Mode
from engine_models.parts.protocols import INFINITY, Scheduler
from engine_models.parts.sequence import Sequence
from simulator.cluster.admission import Admission
from simulator.cluster.clock import ARRIVALS, DECISIONS, RESULTS
from simulator.cluster.cluster import Cluster
from simulator.cluster.devices import Summed
from simulator.cluster.faults import Fault, Faults
from simulator.cluster.fleet import Fleet, Members, State, Toll
from simulator.cluster.outcome import FAILED, Reason, Rows
from simulator.cluster.router import Router, Routing
from simulator.cluster.routers import router_of
from simulator.cluster.scaling.flow import Flow
from simulator.cluster.scaling.scaler import Counts, Reading, Scaling, Seen
from simulator.serving.rank import Rank


class Elastic(Cluster):
    """A cluster whose replicas come and go; a base for those that say where its requests are.

    Parameters
    ----------
    pools : the replicas, one pool after the other.
    faults : what goes wrong, if anything.
    scalers : who decides how many there are to be, if anybody.
    holds : whether requests wait at the router while no replica serves, rather than be answered 503.
    Others as of the base; the count of its replicas is the most that there may be.
    """

    def __init__(
        self,
        *args: Any,
        pools: Series[Members],
        faults: Faults | None = None,
        scalers: Series[Scaling] = (),
        holds: bool = False,
        **kwargs: Any,
    ) -> None:
        self._mode: Mode = "jump" if kwargs.get("aggregate", True) else "step"
        super().__init__(*args, **kwargs)
        self.fleet = Fleet(pools)
        self.devices = Summed(self.fleet.devices)
        self.toll: Toll = Toll(self.fleet)
        self._faults, self._scalers = faults, scalers
        self._seen = {scaling: [Seen(0.0, ())] * len(scaling.pools) for scaling in scalers}
        self._flows = [Flow() for _ in pools]
        self._silent: dict[int, list[Sequence]] = {}  # by replica that is lost, and nobody knows: the requests it was sent
        self._shifted: set[Sequence] = set()  # whose steps are counted from the first of the log already
        self._then: dict[int, Callable[[], None]] = {}  # by replica: what waits for it to serve again
        self._away_s: dict[int, float | None] = {}  # of those that drain: how long their devices are away afterwards
        if holds or self._admission is not None:
            self._door = self._made_door(self._admission or Admission(on_full="wait"))
        self._serving()

    # -- what a kind of cluster says ------------------------------------------------------------------------

    @abstractmethod
    def _router_of(self, replica: int) -> tuple[Router, int]:
        """The router that sends to a replica, and the replica's number there."""

    @abstractmethod
    def _fresh(self, replica: int) -> Scheduler:
        """A scheduler for a replica that begins anew."""

    @abstractmethod
    def _plan_of(self, replica: int) -> EnginePlan:
        """The engine of a replica."""

    def _first_pool(self, seq: Sequence) -> int:
        """The pool among whose requests one counts that comes now."""
        return 0

    def _held(self, pool: int) -> int:
        """Requests that wait at the router and may go to a pool."""
        return len(self._door) if self._door is not None else 0

    def _beside(self, replica: int) -> Series[int]:
        """Replicas that come and go as one, this first, on the same devices."""
        return (replica,)

    def _requests(self) -> Iterator[tuple[Sequence, int]]:
        """Requests as their servers know them, and the number of the rank that has each."""
        for seq in self._live.values():
            block = self._of(seq.index)
            number = int(block.replica[seq.index - block.first])
            if number >= 0:
                yield seq, number

    def _holds_nothing(self, replica: int) -> bool:
        """Whether a replica may go without a loss."""
        return not self.replicas[replica].in_service

    def _upset(self, replica: int) -> None:
        """What was foreseen of a replica's steps holds no longer."""
        router, number = self._router_of(replica)
        router.note(number)
        self._wake_s[replica] = INFINITY
        self._watch(replica)

    # -- the run --------------------------------------------------------------------------------------------

    def _begin_load(self, number: int, at_s: float) -> None:
        super()._begin_load(number, at_s)
        if self._faults is not None:
            self._faults.begin_load(number, at_s, self._clock, self._strike)
        if number:
            return
        if self._faults is not None:
            self._faults.begin(self._clock, self._strike, self._over)
        for scaling in self._scalers:
            self._every(scaling.scaler.collect_s, RESULTS, partial(self._collect, scaling))
            self._every(scaling.scaler.every_s, DECISIONS, partial(self._decide_on, scaling))

    def _outlasts(self) -> bool:
        return True

    @property
    def ranks_ever(self) -> int:
        """Ranks that were ever there, whose numbers are the lowest; all, where replicas have several or pools are several."""
        alone = len(self.ranks) == len(self.replicas) and len(self.fleet.pools) == 1
        return self.fleet.ever if alone else len(self.ranks)

    def ranks_in(self, start_s: float, end_s: float, pool: str | None = None) -> float:
        """Ranks that were there in a stretch of time, on average; of all pools or one."""
        fleet, found = self.fleet, 0.0
        for number, members in enumerate(fleet.pools):
            if pool in (None, members.name) and members.most:
                each = len(self.replicas[fleet.members[number][0]].ranks)
                found += fleet.devices[number].mean(start_s, end_s) / members.devices * each
        return max(found, 1e-9)

    def _over(self, now_s: float) -> bool:
        """Whether nothing that is to come matters: all requests have ended, and the time that is measured is over."""
        if now_s > self._end_s:
            return True
        if now_s < self.duration_s or self._next_reach_s < INFINITY:
            return False
        for first in self.fleet.of(State.UP, State.DRAINING) if self._live else ():  # those that end unheard
            for replica in self._beside(first):
                self._run_to(replica, now_s)
        return self._idle()

    # -- faults ---------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        """A fault comes to pass."""
        now_s = self._clock.now_s
        assert self._faults is not None
        struck = [n for n in self._faults.struck(fault) if self.fleet.states[n] != State.ABSENT]
        if not struck or now_s > self._end_s:
            return
        self.toll.faults[fault.kind] = self.toll.faults.get(fault.kind, 0) + 1
        if fault.kind == "drain":
            self._roll(fault, struck)
            return
        for replica in struck:
            if fault.kind == "slow":
                self._slow(replica, fault)
            elif fault.kind != "reclaim":
                leaving = self._away_s.get(replica, 0.0) is None  # it was not to come back anyway
                silent_s = self._faults.noticed_s if fault.kind == "node" else 0.0
                self._lose(replica, None if leaving else fault.away_s, silent_s)
            elif self.fleet.states[replica] == State.UP:
                self._drain(replica, now_s + fault.notice_s, fault.away_s, leaves_empty=False)
            else:
                life = self.fleet.life[replica]
                self._clock.at(now_s + fault.notice_s, ARRIVALS, partial(self._expel, replica, life, fault.away_s))

    def _slow(self, replica: int, fault: Fault) -> None:
        now_s = self._clock.now_s
        if self.fleet.states[replica] in (State.UP, State.DRAINING):
            self._run_at(replica, fault.factor)
            if fault.slow_s < INFINITY:
                self._clock.at(now_s + fault.slow_s, ARRIVALS, partial(self._recover, replica, self.fleet.life[replica]))

    def _recover(self, replica: int, life: int) -> None:
        if self.fleet.life[replica] == life:
            self._run_at(replica, 1.0)

    def _run_at(self, replica: int, factor: float) -> None:
        """From now on steps take so many times as long."""
        for each in self._beside(replica):
            self._run_to(each, self._clock.now_s)
            self.replicas[each].slow(factor)
            self._upset(each)

    def _roll(self, fault: Fault, replicas: list[int]) -> None:
        """Restart replicas one after the other."""
        now_s = self._clock.now_s
        while replicas and self.fleet.states[replicas[0]] != State.UP:
            replicas = replicas[1:]
        if not replicas or now_s > self._end_s:
            return
        first, *others = replicas
        self._then[first] = partial(self._roll, fault, others)
        self._drain(first, now_s + fault.notice_s, fault.away_s or 0.0)

    # -- scaling --------------------------------------------------------------------------------------------

    def _every(self, period_s: float, priority: int, action: Callable[[], None], times: int = 0) -> None:
        """Do something at time zero and every `period_s`, as long as the run goes on."""

        def act() -> None:
            if not self._over(self._clock.now_s):
                action()
                self._every(period_s, priority, action, times + 1)

        self._clock.at(times * period_s, priority, act)

    def _collect(self, scaling: Scaling) -> None:
        """Metrics are collected."""
        now_s, scaler = self._clock.now_s, scaling.scaler
        queued = self._queued_tokens() if scaler.reads_queued_tokens else {}
        seen = self._seen[scaling] = [
            self._flows[pool].seen(
                now_s,
                tuple(self._reading(n, queued.get(n, 0)) for n in self.fleet.of(State.UP, pool=pool)),
                self._held(pool),
            )
            for pool in scaling.pools
        ]
        scaler.collected(seen)

    def _reading(self, replica: int, queued_tokens: int) -> Reading:
        self._run_to(replica, self._clock.now_s)
        states = self.replicas[replica].states()
        running, waiting, used, whole = (sum(column) for column in zip(*states, strict=True))
        tokens = self._plan_of(replica).limits.kv_tokens * len(states)
        return Reading(running, waiting, used / max(whole, 1), tokens, queued_tokens)

    def _queued_tokens(self) -> dict[int, int]:
        """Tokens of the prompts that wait, by replica."""
        found: dict[int, int] = {}
        for seq, number in self._requests():
            if seq.first_scheduled_s < 0:
                replica = self._replica_of[number]
                found[replica] = found.get(replica, 0) + seq.prompt_tokens
        return found

    def _decide_on(self, scaling: Scaling) -> None:
        """The autoscaler decides."""
        fleet, now_s = self.fleet, self._clock.now_s
        counts = [Counts(fleet.wanted(pool), len(fleet.of(State.UP, pool=pool))) for pool in scaling.pools]
        wanted = scaling.scaler.desired(self._seen[scaling], counts, now_s)
        for pool, (before, _), count in zip(scaling.pools, counts, wanted, strict=True):
            for replica in fleet.to_add(pool, max(count - before, 0)):
                self.toll.added += 1
                self._order(replica)
            for replica in fleet.to_remove(pool, max(before - count, 0)):
                self.toll.removed += 1
                if fleet.states[replica] == State.UP:
                    self._drain(replica, now_s + self._members(replica).grace_s, None)
                else:
                    fleet.turn(replica, State.ABSENT, now_s)

    def _members(self, replica: int) -> Members:
        return self.fleet.pools[self.fleet.pool_of[replica]]

    def _order(self, replica: int) -> None:
        """Ask for a new replica."""
        now_s, start = self._clock.now_s, self._members(replica).start
        if not start.provisioning_s:
            self._start(replica, start.server_s)
            return
        life = self.fleet.turn(replica, State.ORDERED, now_s)
        self._clock.at(now_s + start.provisioning_s, ARRIVALS, partial(self._provisioned, replica, life))

    def _provisioned(self, replica: int, life: int) -> None:
        if self.fleet.life[replica] == life:
            self._start(replica, self._members(replica).start.server_s)

    def _reach(self, block: Rows, seq: Sequence) -> None:
        self._flows[self._first_pool(seq)].enter(seq, self._clock.now_s)
        super()._reach(block, seq)

    def _turn_away(self, block: Rows, seq: Sequence, status: int, reason: Reason, *, begun: bool = False) -> None:
        for flow in self._flows:
            flow.leave(seq, self._clock.now_s)
        super()._turn_away(block, seq, status, reason, begun=begun)

    # -- going ----------------------------------------------------------------------------------------------

    def _serving(self) -> None:
        """Let the routers know who serves, as far as that is known."""
        known: dict[Router, list[int]] = {}
        for replica in range(len(self.replicas)):
            router, number = self._router_of(replica)
            serving = known.setdefault(router, [])
            if self._is_sent_to(replica):
                serving.append(number)
        for router, serving in known.items():
            router.serving(serving)

    def _is_sent_to(self, replica: int) -> bool:
        """Whether a replica gets requests: it serves, or nobody knows that it is lost."""
        return self.fleet.states[replica] == State.UP or replica in self._silent

    def _drain(self, replica: int, until_s: float, away_s: float | None, *, leaves_empty: bool = True) -> None:
        """Give a replica nothing new; it goes at `until_s` at the latest, with `leaves_empty` when it has nothing left."""
        life = self.fleet.turn(replica, State.DRAINING, self._clock.now_s)
        self._serving()
        self._clock.at(until_s, ARRIVALS, partial(self._expel, replica, life, away_s))
        if leaves_empty:
            self._away_s[replica] = away_s
            for each in self._beside(replica):
                self._wake_s[each] = INFINITY
                self._run_to(each, self._clock.now_s)
                self._watch(each)
            self._leave_if_empty(replica)

    def _awaited(self, number: int) -> bool:
        return number in self._away_s

    def _finished(self, seq: Sequence, now_s: float) -> None:
        if self._live.get(seq.index) is seq:
            block = self._of(seq.index)
            number = int(block.replica[seq.index - block.first])
            self._shift(seq, number)
            flow = self._flows[self.fleet.pool_of[self._replica_of[number]]]
            flow.leave(seq, now_s)
            flow.ended(seq)
            super()._finished(seq, now_s)
        self._may_leave(now_s)

    def _may_leave(self, now_s: float) -> None:
        """Some replica has less than before."""
        for replica in self._away_s:
            self._clock.at(max(now_s, self._clock.now_s), DECISIONS, partial(self._leave_if_empty, replica))

    def _leave_if_empty(self, replica: int) -> None:
        if replica in self._away_s and self._holds_nothing(replica):
            self._lose(replica, self._away_s[replica])

    def _expel(self, replica: int, life: int, away_s: float | None) -> None:
        """A replica has to go now, if it has not gone before."""
        if self.fleet.life[replica] == life:
            self._lose(replica, away_s)

    def _lose(self, replica: int, away_s: float | None, silent_s: float = 0.0) -> None:
        """A replica goes with all that it has, noticed `silent_s` later; its devices are back after `away_s`, if ever."""
        now_s, fleet = self._clock.now_s, self.fleet
        if fleet.states[replica] == State.ABSENT:
            return
        self._away_s.pop(replica, None)
        self._notice(replica)
        if silent_s and fleet.states[replica] == State.UP:
            waiting: list[Sequence] = []
            self._silent.update(dict.fromkeys(self._beside(replica), waiting))
            self._clock.at(now_s + silent_s, ARRIVALS, partial(self._notice, replica, waiting))
        life = fleet.turn(replica, State.ABSENT if away_s is None else State.AWAY, now_s)
        self._serving()
        for each in self._beside(replica):
            self._empty(each, now_s)
        if away_s is not None:
            self._clock.at(now_s + away_s, ARRIVALS, partial(self._return, replica, life))

    def _empty(self, replica: int, now_s: float) -> None:
        """All that a replica has is lost, and it would begin anew."""
        server = self.replicas[replica]
        self._run_to(replica, now_s)
        server.settle_ahead()
        for rank in server.ranks:
            rank.scheduler.close()
        self._throw_out(replica)
        server.renew([self._fresh(replica) for _ in server.ranks], now_s)
        router, number = self._router_of(replica)
        router.renewed(number)
        self._wake_s[replica] = INFINITY

    def _notice(self, replica: int, waiting: list[Sequence] | None = None) -> None:
        """Router and clients find out that a replica is lost, if they do not know; `waiting` names the loss."""
        found = self._silent.get(replica)
        if found is None or (waiting is not None and found is not waiting):
            return
        for each in self._beside(replica):
            del self._silent[each]
        self._serving()
        for seq in found:
            self._drop(seq, replica)

    def _drop(self, seq: Sequence, replica: int) -> None:
        """The client of a request that was lost hears of it."""
        block, now_s = self._of(seq.index), self._clock.now_s
        row = seq.index - block.first
        self._router_of(replica)[0].lost(seq, now_s)
        tries = int(block.attempts[row])
        self._turn_away(block, seq, FAILED, Reason.NODE_LOST, begun=True)
        self.toll.again += int(block.attempts[row]) - tries

    def _peers(self, pool: int) -> Iterable[int]:
        """The pools of which a request goes to one, where that is among them."""
        return range(len(self._flows))

    def _submit(self, number: int, seq: Sequence) -> None:
        pool, now_s = self.fleet.pool_of[self._replica_of[number]], self._clock.now_s
        for other in self._peers(pool):
            if other != pool and self._flows[other].moved(seq, now_s):
                self._flows[pool].enter(seq, now_s)
        waiting = self._silent.get(self._replica_of[number])
        if waiting is None:
            super()._submit(number, seq)
        else:
            self.toll.lost += 1
            waiting.append(seq)

    def _throw_out(self, replica: int) -> None:
        """Everything that a replica has is lost: in the order of the requests, whenever their objects were made."""
        here = [(seq, number) for seq, number in self._requests() if self._replica_of[number] == replica]
        for seq, number in sorted(here, key=lambda each: each[0].index):
            self._lose_request(seq, number)

    def _lose_request(self, seq: Sequence, number: int) -> None:
        """A request goes with its replica."""
        toll, replica = self.toll, self._replica_of[number]
        waiting = self._silent.get(replica)
        self.ranks[number].drop_unended(seq, self._clock.now_s)
        toll.lost += 1
        toll.lost_tokens += computed_tokens(seq)
        if waiting is None:
            self._drop(seq, replica)
        else:
            self._shift(seq, number)
            self._shifted.add(seq)
            waiting.append(seq)

    def _keep(self, seq: Sequence) -> None:
        block = self._of(seq.index)
        if seq not in self._shifted:
            self._shift(seq, int(block.replica[seq.index - block.first]))
        super()._keep(seq)

    def _shift(self, seq: Sequence, number: int) -> None:
        shift_steps(seq, self.ranks[number])

    # -- coming ---------------------------------------------------------------------------------------------

    def _return(self, replica: int, life: int) -> None:
        """A replica's devices are back."""
        if self.fleet.life[replica] == life:
            self._start(replica, self._members(replica).back_s)

    def _start(self, replica: int, start_s: float) -> None:
        """Start a server on devices that are there."""
        now_s = self._clock.now_s
        life = self.fleet.turn(replica, State.STARTING, now_s)
        self._clock.at(now_s + start_s, ARRIVALS, partial(self._come, replica, life))

    def _come(self, replica: int, life: int) -> None:
        """A replica serves from now on."""
        if self.fleet.life[replica] != life:
            return
        now_s = self._clock.now_s
        self._notice(replica)
        self.replicas[replica].start(now_s)
        self.fleet.turn(replica, State.UP, now_s)
        self._serving()
        self._room_made(now_s)
        then = self._then.pop(replica, None)
        if then is not None:
            then()


class ElasticCluster(Elastic):
    """A pool of equal replicas that come and go."""

    def _routed(self, rule: str | Routing, executor: Executor) -> Router:
        return router_of(self.replicas, rule, executor, self._admission, changing=True)

    def _router_of(self, replica: int) -> tuple[Router, int]:
        return self._router, replica

    def _fresh(self, replica: int) -> Scheduler:
        return self._joins.scheduler(replica)

    def _plan_of(self, replica: int) -> EnginePlan:
        return self._plan

    def _give_up(self, block: Rows, seq: Sequence, attempt: int) -> None:
        number = int(block.replica[seq.index - block.first])
        waiting = self._silent.get(self._replica_of[number]) if number >= 0 else None
        here = waiting is not None and seq in waiting and block.attempts[seq.index - block.first] == attempt
        if waiting is None or not here or self._clock.now_s > self._end_s:
            super()._give_up(block, seq, attempt)
            return
        waiting.remove(seq)
        self._router.lost(seq, self._clock.now_s)
        self._turn_away(block, seq, FAILED, Reason.TIMED_OUT, begun=True)


def shift_steps(seq: Sequence, rank: Rank) -> None:
    """Let the steps of a request be counted from the first of the log, not of the replica's life."""
    first = rank.first_step
    if first:
        seq.emissions = [number + first for number in seq.emissions]


def computed_tokens(seq: Sequence) -> int:
    """Tokens of the prompt, once it is computed, and of the answer that a request has got."""
    got = seq.emitted_tokens()
    return seq.prompt_tokens + got if got else 0


__all__ = ["Elastic", "ElasticCluster", "computed_tokens", "shift_steps"]
