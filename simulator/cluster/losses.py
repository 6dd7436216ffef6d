"""Prefill and decode replicas that are lost and come back.

What a lost replica had is gone: requests that it computed, waited or answered fail, and their clients may send them again, from
the prompt on. Where a prefill replica held computed prompts, their readers find nothing: a read under way ends with the replica,
one that is yet to begin fails when it does. Where a decode replica had asked for prompts, their holders keep the memory until the
lease is over, which nobody renews any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from engine_models.declaration import Mode
from engine_models.parts.handover import Note, PullPrefill
from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence as Request
from simulator.cluster.clock import ARRIVALS, RESULTS
from simulator.cluster.elastic import computed_tokens, cut, shift_steps
from simulator.cluster.faults import Fault, Faults
from simulator.cluster.fleet import Fleet, State, Toll
from simulator.cluster.handover import HandoverCluster
from simulator.cluster.outcome import FAILED, REJECTED, Reason, Rows


class LossyCluster(HandoverCluster):
    """Prefill and decode replicas, some of which are lost for a time.

    Parameters
    ----------
    losses : what goes wrong, the replicas of all pools numbered one after the other. starts_s : what a server of each takes to
        start once its devices are back. each : devices of each. Others as of the base.
    """

    changing = True

    def __init__(self, *args: Any, losses: Faults, starts_s: Sequence[float], each: Sequence[int], **kwargs: Any) -> None:
        self._mode: Mode = "jump" if kwargs.get("aggregate", True) else "step"
        super().__init__(*args, **kwargs)
        handover = self._stages[1][0].plan.handover
        assert handover is not None
        assert handover.lease_s is not None
        self._lease_s = handover.lease_s
        self._losses, self._starts_s = losses, starts_s
        self.fleet = Fleet(len(self.replicas), len(self.replicas), each)
        self.devices = self.fleet.devices
        self.toll: Toll = Toll(self.fleet.levels)
        self._silent: dict[int, list[Request]] = {}  # by replica that is lost, and nobody knows: the requests it was sent
        self._shifted: set[Request] = set()
        self._pools = [servers for stage in self._stages for servers in stage for _ in range(servers.replicas)]
        self._serving()

    def _run(self, sink: Any) -> None:
        self._losses.begin(self._clock, self._end_s, self._strike, self._over)
        super()._run(sink)

    def _over(self, now_s: float) -> bool:
        """Whether nothing that is to come matters: all requests have ended, and the time that is measured is over."""
        idle = self._next_reach_s == INFINITY and not self._live and not self._sources and not self._releases
        return now_s > self._end_s or (idle and now_s >= min(self._source.duration_s, self._end_s))

    # -- going ----------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        """A fault comes to pass."""
        now_s, states = self._clock.now_s, self.fleet.states
        struck = [replica for replica in self._losses.struck(fault) if states[replica] in (State.UP, State.DRAINING)]
        if not struck or now_s > self._end_s:
            return
        self.toll.faults[fault.kind] = self.toll.faults.get(fault.kind, 0) + 1
        for replica in struck:
            if fault.kind != "reclaim":
                self._lose(replica, fault.away_s, self._losses.noticed_s if fault.kind == "node" else 0.0)
            elif states[replica] == State.UP:
                life = self.fleet.turn(replica, State.DRAINING, now_s)
                self._serving()
                self._clock.at(now_s + fault.notice_s, ARRIVALS, partial(self._expel, replica, life, fault.away_s))

    def _expel(self, replica: int, life: int, away_s: float | None) -> None:
        if self.fleet.life[replica] == life:
            self._lose(replica, away_s, 0.0)

    def _serving(self) -> None:
        """Let the routers know who serves, as far as that is known."""
        known = sorted({*self.fleet.of(State.UP), *self._silent})
        self._router.serving([replica for replica in known if replica < self._first])
        self._second.serving([replica - self._first for replica in known if replica >= self._first])

    def _lose(self, replica: int, away_s: float | None, silent_s: float) -> None:
        """A replica goes with all that it has, noticed `silent_s` later; its devices are back after `away_s`, if ever."""
        now_s, server = self._clock.now_s, self.replicas[replica]
        self._notice(replica)
        if silent_s and self.fleet.states[replica] == State.UP:
            waiting = self._silent[replica] = []
            self._clock.at(now_s + silent_s, ARRIVALS, partial(self._notice, replica, waiting))
        life = self.fleet.turn(replica, State.ABSENT if away_s is None else State.AWAY, now_s)
        self._serving()
        self._run_to(replica, now_s)
        self._throw_out(replica)
        server.renew([self._pools[replica].plan.scheduler(self._mode) for _ in server.ranks], now_s)
        router, at = (self._router, replica) if replica < self._first else (self._second, replica - self._first)
        router.renewed(at)
        self._wake_s[replica] = INFINITY
        if away_s is not None:
            self._clock.at(now_s + away_s, ARRIVALS, partial(self._return, replica, life))

    def _throw_out(self, replica: int) -> None:
        """Everything that a replica has is lost."""
        toll, waiting = self.toll, self._silent.get(replica)
        for rank in self.replicas[replica].ranks:
            rank.scheduler.close()
        for seq in list(self._live.values()):
            number = self._number(seq)
            if number < 0 or self._replica_of[number] != replica:
                continue
            cut(seq.emissions, self.ranks[number], self._clock.now_s)
            toll.lost += 1
            toll.lost_tokens += computed_tokens(seq)
            shift_steps(seq, self.ranks[number])
            self._shifted.add(seq)
            self._abandon(seq.index)
            if waiting is None:
                self._drop(seq)
            else:
                waiting.append(seq)
        for index, (source, _) in list(self._sources.items()):
            if self._replica_of[source] == replica:
                del self._sources[index]
                flow = self._reads.pop(index, None)
                if flow is not None:
                    self._network.drop(flow)
                    self._unread(self._live[index])

    def _abandon(self, index: int) -> None:
        """Nobody will read a request's prompt: its memory is free when the lease ends."""
        flow = self._reads.pop(index, None)
        if flow is not None:
            self._network.drop(flow)
        if index not in self._sources:
            return
        source, held = self._sources.pop(index)
        handed = self._of(index).handed
        assert handed is not None
        own_s, renewed_s = self._lease_s
        finished_s = float(handed.prefill_end_s[index - self._of(index).first])
        at_s = max(finished_s + own_s, self._clock.now_s + renewed_s)
        holder = self.ranks[source].scheduler
        assert isinstance(holder, PullPrefill)
        self._clock.at(at_s, RESULTS, partial(self._expire_lease, source, holder, held))

    def _expire_lease(self, source: int, holder: PullPrefill, held: Request) -> None:
        if self.ranks[source].scheduler is holder:  # else it has lost its memory since
            self._advance(source, self._clock.now_s)
            holder.release(held)
            self._hear(source)

    def _unread(self, seq: Request) -> None:
        """A decode replica finds that it cannot read a prompt: the request fails."""
        number = self._number(seq)
        replica = self._replica_of[number]
        if self._live.get(seq.index) is not seq or replica in self._silent:
            return
        self._advance(number, self._clock.now_s)
        self.replicas[replica].cancel(self.ranks[number], seq, self._clock.now_s)
        self.toll.lost += 1
        self._drop(seq)
        self._hear(number)

    def _number(self, seq: Request) -> int:
        block = self._of(seq.index)
        return int(block.replica[seq.index - block.first])

    def _notice(self, replica: int, waiting: list[Request] | None = None) -> None:
        """Routers and clients find out that a replica is lost, if they do not know; `waiting` names the loss."""
        found = self._silent.get(replica)
        if found is None or (waiting is not None and found is not waiting):
            return
        del self._silent[replica]
        self._serving()
        for seq in found:
            self._drop(seq)

    def _drop(self, seq: Request) -> None:
        """The client of a request that was lost hears of it."""
        block, number = self._of(seq.index), self._number(seq)
        row = seq.index - block.first
        router = self._router if self._replica_of[number] < self._first else self._second
        router.lost(seq, self._clock.now_s)
        tries = int(block.attempts[row])
        self._turn_away(block, seq, FAILED, Reason.NODE_LOST, begun=True)
        self.toll.again += int(block.attempts[row]) - tries

    def _turn_away(self, block: Rows, seq: Request, status: int, reason: Reason, *, begun: bool = False) -> None:
        super()._turn_away(block, seq, status, reason, begun=begun)
        if seq.index in self._live:  # it comes again, from the prompt on
            assert block.handed is not None
            block.handed.forget(seq.index - block.first)

    # -- the way of a request -------------------------------------------------------------------------------

    def _submit(self, number: int, seq: Request) -> None:
        waiting = self._silent.get(self._replica_of[number])
        if waiting is None:
            super()._submit(number, seq)
        else:
            self.toll.lost += 1
            self._abandon(seq.index)
            waiting.append(seq)

    def _take_over(self, block: Rows, row: int) -> None:
        if self._second.has_room(self._clock.now_s):
            super()._take_over(block, row)
            return
        (seq,) = super(HandoverCluster, self)._sequences(block, self._row(row))
        self._abandon(seq.index)
        self._turn_away(block, seq, REJECTED, Reason.SHED_503, begun=True)

    def _begin(self, number: int, note: Note) -> None:
        if note.seq.index in self._sources:
            super()._begin(number, note)
        else:
            self._clock.at(max(note.at_s, self._clock.now_s), RESULTS, partial(self._unread, note.seq))

    def _prefilled(self, seq: Request, now_s: float) -> None:
        self._shift(seq)
        super()._prefilled(seq, now_s)

    def _finished(self, seq: Request, now_s: float) -> None:
        self._shift(seq)
        super()._finished(seq, now_s)

    def _keep(self, seq: Request) -> None:
        self._shift(seq)
        super()._keep(seq)

    def _shift(self, seq: Request) -> None:
        """Let the steps of a request be counted from the first of the log, not of the replica's life, if they are not."""
        if seq in self._shifted:
            self._shifted.remove(seq)
        elif (number := self._number(seq)) >= 0:
            shift_steps(seq, self.ranks[number])

    # -- coming ---------------------------------------------------------------------------------------------

    def _return(self, replica: int, life: int) -> None:
        """A replica's devices are back: its server starts."""
        if self.fleet.life[replica] == life:
            now_s = self._clock.now_s
            life = self.fleet.turn(replica, State.STARTING, now_s)
            self._clock.at(now_s + self._starts_s[replica], ARRIVALS, partial(self._come, replica, life))

    def _come(self, replica: int, life: int) -> None:
        """A replica serves from now on."""
        if self.fleet.life[replica] == life:
            now_s = self._clock.now_s
            self._notice(replica)
            self.replicas[replica].start(now_s)
            self.fleet.turn(replica, State.UP, now_s)
            self._serving()


__all__ = ["LossyCluster"]
