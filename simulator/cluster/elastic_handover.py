"""Prefill and decode replicas that come and go.

What a lost replica had is gone: requests that it computed, waited or answered fail, and their clients may send them again, from
the prompt on. What it leaves behind at its peers depends on how requests are shared.

*Prompts are read* (`ElasticPull`). Where a prefill replica held computed prompts, their readers find nothing: a read under way
ends with the replica, one that is yet to begin fails when it does. Where a decode replica had asked for prompts, their holders
keep the memory until the lease is over, which nobody renews any more.

*Memory is reserved first* (`ElasticReserving`). A decode replica keeps what it has reserved until it hears that the other is
lost, from the router or by signs of life that do not come. A prefill replica computes the prompts that it has begun, and frees
them when they cannot be sent, or when their lease is over if there is one and no reader had asked for them, or is lost;
prompts that wait for a reservation are taken out when the router hears of the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from engine_models.declaration import EnginePlan, Handover
from engine_models.parts.handover import Note, PullPrefill, SendingPrefill
from engine_models.parts.protocols import INFINITY, Scheduler
from engine_models.parts.sequence import Sequence as Request
from simulator.cluster.admission import Admission, Door
from simulator.cluster.clock import RESULTS
from simulator.cluster.elastic import Elastic, computed_tokens
from simulator.cluster.handover import HandoverCluster, Pair, ReservingCluster
from simulator.cluster.outcome import FAILED, REJECTED, UNFINISHED, Reason, Rows
from simulator.cluster.router import Router
from simulator.cluster.transfer import Flow


class ElasticHandover(Elastic, HandoverCluster):
    """What both ways to share requests have in common; parameters as of the bases."""

    changing = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unwanted: dict[Request, int] = {}  # prompts that are computed for nobody, and by which rank
        super().__init__(*args, **kwargs)
        handover = self._stages[1][0].plan.handover
        assert handover is not None
        self._handover: Handover = handover

    @property
    def _heard(self) -> bool:
        return True

    def _router_of(self, replica: int) -> tuple[Router, int]:
        return (self._router, replica) if replica < self._first else (self._second, replica - self._first)

    def _fresh(self, replica: int) -> Scheduler:
        return self._makers[replica]()

    def _plan_of(self, replica: int) -> EnginePlan:
        return self._servers[replica].plan

    def _number(self, seq: Request) -> int:
        block = self._of(seq.index)
        return int(block.replica[seq.index - block.first])

    def _holds_nothing(self, replica: int) -> bool:
        held = any(self._replica_of[number] == replica for number in self._holders())
        return not held and super()._holds_nothing(replica)

    def _peers(self, pool: int) -> Iterable[int]:
        prefill = len(self._stages[0])
        return range(prefill) if pool < prefill else range(prefill, len(self._flows))

    def _enter_second(self, seq: Request) -> None:
        """A request counts among those of the second stage, of its first pool until another is chosen."""
        self._flows[len(self._stages[0])].enter(seq, self._clock.now_s)

    def _holders(self) -> Iterator[int]:
        """Ranks that hold a computed prompt for another server."""
        raise NotImplementedError

    def _prefilled(self, seq: Request, now_s: float) -> None:
        number = self._unwanted.pop(seq, None)
        if number is None:
            for pool in self._peers(0):
                self._flows[pool].leave(seq, now_s)
            super()._prefilled(seq, now_s)
            self._room_made(now_s)
        else:
            self._free(number, seq)
        self._may_leave(now_s)

    def _free(self, number: int, prompt: Request) -> None:
        """A computed prompt goes to nobody: its memory is free."""
        holder = self.ranks[number].scheduler
        if isinstance(holder, SendingPrefill):
            holder.sent(prompt)
        else:
            assert isinstance(holder, PullPrefill)
            holder.release(prompt)

    def _expire_lease(self, source: int, holder: Scheduler, held: Request) -> None:
        if self.ranks[source].scheduler is holder:  # else it has lost its memory since
            self._advance(source, self._clock.now_s)
            self._free(source, held)
            self._hear(source)

    def _load_over(self) -> bool:
        return super()._load_over() and not self._unwanted

    def _cancel(self, number: int, seq: Request) -> None:
        """A replica forgets a request; a prompt that it computes nevertheless goes to nobody."""
        at, now_s = self._replica_of[number], self._clock.now_s
        self._advance(number, now_s)
        if not self.replicas[at].cancel(self.ranks[number], seq, now_s) and at < self._first:
            self._unwanted[seq] = number
        self._hear(number)

    def _throw_out(self, replica: int) -> None:
        super()._throw_out(replica)
        for seq in [seq for seq, number in self._unwanted.items() if self._replica_of[number] == replica]:
            del self._unwanted[seq]

    def _turn_away(self, block: Rows, seq: Request, status: int, reason: Reason, *, begun: bool = False) -> None:
        super()._turn_away(block, seq, status, reason, begun=begun)
        if seq.index in self._live:  # it comes again, from the prompt on
            assert block.handed is not None
            block.handed.forget(seq.index - block.first)

    def _fail(self, seq: Request, reason: Reason) -> None:
        """A request of which no replica has anything any more fails."""
        block, now_s = self._of(seq.index), self._clock.now_s
        for router in (self._router, self._second):
            router.ended(seq, now_s)
        self._turn_away(block, seq, FAILED, reason, begun=True)
        self._room_made(now_s)
        self._may_leave(now_s)

    def _give_up(self, block: Rows, seq: Request, attempt: int) -> None:
        now_s, row = self._clock.now_s, seq.index - block.first
        number = int(block.replica[row])

        def waits() -> bool:
            return bool(block.status[row] == UNFINISHED) and int(block.attempts[row]) == attempt and now_s <= self._end_s

        if not waits():
            return
        if number < 0:
            super()._give_up(block, seq, attempt)
            return
        self._advance(number, now_s)
        if waits():
            live = self._take_back(block, row)
            for waiting in self._silent.values():
                waiting[:] = [other for other in waiting if other.index != live.index]
            self._fail(live, Reason.TIMED_OUT)

    def _take_back(self, block: Rows, row: int) -> Request:
        """Every replica forgets a request; return it as what it now is."""
        raise NotImplementedError


class ElasticPull(ElasticHandover):
    """Prefill replicas hold computed prompts until decode replicas have read them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._between: dict[int, Request] = {}  # by request that has not reached the second stage: its computed prompt

    def _holders(self) -> Iterator[int]:
        return (number for number, _ in self._sources.values())

    # -- the way of a request -------------------------------------------------------------------------------

    def _prefilled(self, seq: Request, now_s: float) -> None:
        if seq not in self._unwanted:
            self._between[seq.index] = seq
        super()._prefilled(seq, now_s)

    def _take_over(self, block: Rows, prompt: Request) -> None:
        if self._between.get(prompt.index) is not prompt:
            return  # its client has gone
        del self._between[prompt.index]
        if self._goes_to_second(prompt):
            self._enter_second(prompt)
            super()._take_over(block, prompt)
            return
        (seq,) = self._answers(block, prompt.index - block.first)
        self._abandon(seq.index)
        self._turn_away(block, seq, REJECTED, Reason.SHED_503, begun=True)

    def _goes_to_second(self, prompt: Request) -> bool:
        """Whether somebody answers a request whose prompt is computed."""
        return self._second.has_room(self._clock.now_s, prompt)

    def _submit(self, number: int, seq: Request) -> None:
        if self._replica_of[number] in self._silent:
            self._abandon(seq.index)
        super()._submit(number, seq)

    def _begin(self, number: int, note: Note) -> None:
        now_s, seq = max(note.at_s, self._clock.now_s), note.seq
        if seq.index not in self._sources:
            self._clock.at(now_s, RESULTS, partial(self._unread, seq))
            return
        super()._begin(number, note)
        if self._handover.gives_up_s < INFINITY:
            flow, late_s = self._reads[seq.index], now_s + self._handover.gives_up_s
            self._clock.at(late_s, RESULTS, partial(self._overdue, seq, flow))

    def _overdue(self, seq: Request, flow: Flow) -> None:
        """A read has not ended in time."""
        if self._reads.get(seq.index) is flow:
            self._abandon(seq.index)
            self._cancel(self._number(seq), seq)
            self._fail(seq, Reason.KV_LOAD_FAILED)

    def _arrived(self, number: int, seq: Request, now_s: float) -> None:
        super()._arrived(number, seq, now_s)
        self._may_leave(now_s)

    def _take_back(self, block: Rows, row: int) -> Request:
        index, number = block.first + row, int(block.replica[row])
        live = self._live.get(index)
        if live is None:  # it is on its way to the second stage
            del self._between[index]
            (live,) = self._answers(block, row)
        elif self._replica_of[number] not in self._silent:
            self._cancel(number, live)
        if self._handover.tells and index in self._sources:
            flow = self._reads.pop(index, None)
            if flow is not None:
                self._network.drop(flow)
            source, held = self._sources.pop(index)
            self._advance(source, self._clock.now_s)
            self._free(source, held)
            self._hear(source)
        else:
            self._abandon(index)
        return live

    # -- going ----------------------------------------------------------------------------------------------

    def _lose_request(self, seq: Request, number: int) -> None:
        self._abandon(seq.index)
        super()._lose_request(seq, number)

    def _throw_out(self, replica: int) -> None:
        super()._throw_out(replica)
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
        block, lease_s = self._of(index), self._handover.lease_s
        assert block.handed is not None
        assert lease_s is not None
        row, (own_s, renewed_s) = index - block.first, lease_s
        at_s = float(block.handed.prefill_end_s[row]) + own_s
        if not np.isnan(block.handed.arrival_s[row]):  # there was a reader
            at_s = max(at_s, self._clock.now_s + renewed_s)
        holder = self.ranks[source].scheduler
        self._clock.at(max(at_s, self._clock.now_s), RESULTS, partial(self._expire_lease, source, holder, held))

    def _unread(self, seq: Request) -> None:
        """A decode replica finds that it cannot read a prompt: the request fails."""
        if self._live.get(seq.index) is not seq or self._replica_of[self._number(seq)] in self._silent:
            return
        self._cancel(self._number(seq), seq)
        self.toll.lost += 1
        self._drop(seq, self._replica_of[self._number(seq)])


class ElasticReserving(ElasticHandover, ReservingCluster):
    """Decode replicas reserve memory for prompts that prefill replicas then compute and send."""

    def _holders(self) -> Iterator[int]:
        return (pair.source for pair in self._pairs.values() if pair.source not in pair.gone)

    def _made_door(self, rules: Admission) -> Door:
        return Door(rules, self._has_room)

    def _has_room(self, now_s: float, seq: Request) -> bool:
        return self._router.has_room(now_s, seq) and self._second.has_room(now_s, seq)

    # -- the way of a request -------------------------------------------------------------------------------

    def _send(self, block: Rows, seq: Request) -> None:
        if not self._has_room(self._clock.now_s, seq):
            self._turn_away(block, seq, REJECTED, Reason.SHED_503)
            return
        self._enter_second(seq)
        super()._send(block, seq)

    def _submit(self, number: int, seq: Request) -> None:
        replica, pair = self._replica_of[number], self._pairs[seq.index]
        if replica not in self._silent:
            super()._submit(number, seq)
            return
        pair.gone.add(number)
        if len(pair.gone) == 1:
            super()._submit(number, seq)

    def _begin(self, number: int, note: Note) -> None:
        pair = self._pairs.get(note.seq.index)
        if pair is None or note.seq not in (pair.prompt, pair.answer) or pair.gone:
            return  # it goes to nobody
        super()._begin(number, note)
        if number == pair.target and self._handover.gives_up_s < INFINITY:
            late_s = max(note.at_s, self._clock.now_s) + self._handover.gives_up_s
            self._clock.at(late_s, RESULTS, partial(self._overdue, pair))

    def _reserved(self, pair: Pair) -> None:
        if self._pairs.get(pair.prompt.index) is pair and not pair.gone:
            super()._reserved(pair)

    def _overdue(self, pair: Pair) -> None:
        """A prompt has not come in time."""
        if self._pairs.get(pair.prompt.index) is pair and not pair.gone:
            self._part(pair)
            self._fail(pair.answer, Reason.KV_LOAD_FAILED)

    def _prefilled(self, seq: Request, now_s: float) -> None:
        super()._prefilled(seq, now_s)
        pair = self._pairs.get(seq.index)
        if pair is not None and pair.prompt is seq and pair.target in pair.gone:
            pair.gone.add(pair.source)
            self._leave_prompt(pair)

    def _piece_arrived(self, pair: Pair, now_s: float) -> None:
        super()._piece_arrived(pair, now_s)
        self._may_leave(now_s)

    def _take_back(self, block: Rows, row: int) -> Request:
        live = self._live[block.first + row]
        pair = self._pairs.get(live.index)
        if pair is not None:
            self._part(pair)
        elif self._replica_of[self._number(live)] not in self._silent:
            self._cancel(self._number(live), live)
        return live

    def _part(self, pair: Pair) -> None:
        """Neither server has a request any longer."""
        for number in (pair.source, pair.target):
            if number not in pair.gone:
                self._advance(number, self._clock.now_s)
        del self._pairs[pair.prompt.index]
        for flow in pair.flows:
            self._network.drop(flow)
        if pair.target not in pair.gone:
            self._cancel(pair.target, pair.answer)
        if pair.source not in pair.gone:
            if self._computed(pair):
                self._leave_prompt(pair)
            else:
                self._cancel(pair.source, pair.prompt)

    def _leave_prompt(self, pair: Pair) -> None:
        """A computed prompt goes to nobody: its memory is free, or is when a lease is over that nobody ends."""
        lease_s, source, holder = self._handover.lease_s, pair.source, self.ranks[pair.source].scheduler
        if lease_s is None or (pair.wanted_tokens and pair.target not in pair.gone):
            self._free(source, pair.prompt)
            self._hear(source)
            return
        block = self._of(pair.prompt.index)
        assert block.handed is not None
        at_s = float(block.handed.prefill_end_s[pair.prompt.index - block.first]) + lease_s[0]
        expire = partial(self._expire_lease, source, holder, pair.prompt)
        self._clock.at(max(at_s, self._clock.now_s), RESULTS, expire)

    def _computed(self, pair: Pair) -> bool:
        block = self._of(pair.prompt.index)
        assert block.handed is not None
        return block.handed.moved(pair.prompt.index - block.first)

    # -- going ----------------------------------------------------------------------------------------------

    def _requests(self) -> Iterator[tuple[Request, int]]:
        for pair in self._pairs.values():
            if pair.source not in pair.gone and not self._computed(pair):
                yield pair.prompt, pair.source
        yield from super()._requests()

    def _throw_out(self, replica: int) -> None:
        for pair in list(self._pairs.values()):
            for number, side in ((pair.source, pair.prompt), (pair.target, pair.answer)):
                if self._replica_of[number] == replica and number not in pair.gone:
                    self._break(pair, number, side)
        super()._throw_out(replica)

    def _lose_request(self, seq: Request, number: int) -> None:
        if seq.index not in self._pairs:  # else it is told by its pair
            super()._lose_request(seq, number)

    def _break(self, pair: Pair, number: int, side: Request) -> None:
        """A request loses one of its servers before its prompt has gone from one to the other."""
        toll, first = self.toll, not pair.gone
        pair.gone.add(number)
        for flow in pair.flows:
            self._network.drop(flow)
        if number == pair.target and pair.source not in pair.gone and self._computed(pair):
            pair.gone.add(pair.source)  # it cannot be sent
            self._leave_prompt(pair)
        if not first:
            return  # its loss is known, or will be
        toll.lost += 1
        toll.lost_tokens += computed_tokens(pair.prompt)
        replica = self._replica_of[number]
        waiting = self._silent.get(replica)
        if waiting is None:
            self._drop(side, replica)
            return
        waiting.append(side)
        beats = self._handover.beats_s
        if number == pair.source and beats is not None:
            every_s, many = beats
            missed_s = (self._clock.now_s // every_s + many) * every_s
            self._clock.at(missed_s, RESULTS, partial(self._miss, pair, replica, waiting))

    def _miss(self, pair: Pair, replica: int, waiting: list[Request]) -> None:
        """A decode replica has not heard of a prefill replica for so long that it takes it for lost."""
        if self._pairs.get(pair.prompt.index) is pair and pair.prompt in waiting:
            waiting.remove(pair.prompt)
            self._drop(pair.prompt, replica)

    def _drop(self, seq: Request, replica: int) -> None:
        pair = self._pairs.get(seq.index)
        if pair is not None:
            if seq not in (pair.prompt, pair.answer):
                return
            self._part(pair)
            seq = pair.answer
        elif self._live.get(seq.index) is not seq:
            return
        for router in (self._router, self._second):
            if router is not self._router_of(replica)[0]:
                router.ended(seq, self._clock.now_s)
        super()._drop(seq, replica)


__all__ = ["ElasticPull", "ElasticReserving"]
