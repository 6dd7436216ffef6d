"""A replica whose loop turns while it waits for a peer: what a peer does is noticed on the grid of its empty turns.

The loops of several ranks that share experts turn together.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Series
from functools import partial
from typing import Any

import numpy as np

from engine_models.parts.batch import Batch
from engine_models.parts.handover import Peer
from engine_models.parts.protocols import INFINITY, Scheduler
from engine_models.parts.sequence import Sequence
from simulator.serving.rank import Rank
from simulator.serving.replica import Replica, ends_a_request

SUMMED_TURNS = 1_000_000
"""Turns whose ends are summed one by one, as the engine's clock does; of a longer wait the first ones are multiplied (assumed:
a hundredth of a second of work, and rounding that nothing sees)."""
FEW_TURNS = 40
"""Up to so many turns plain sums are quicker than arrays."""


class TurningReplica(Replica):
    """A replica whose schedulers share requests with another's (`engine_models.parts.handover`).

    `on_turn` is called with the end of every turn in which nothing is computed [s] (for comparison with recorded schedules).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listen()

    def renew(self, schedulers: Series[Scheduler], now_s: float) -> None:
        """As of the base."""
        super().renew(schedulers, now_s)
        self._listen()

    def _listen(self) -> None:
        self.peers: list[Peer] = []  # the schedulers
        for rank in self.ranks:
            if isinstance(rank.scheduler, Peer):
                rank.scheduler.at_once = partial(self._at_once, rank)
                self.peers.append(rank.scheduler)

    def _at_once(self, rank: Rank, now_s: float, tokens: int, ended: list[Sequence]) -> None:
        """Log a batch of no length, and note who ended with it."""
        running, waiting, held, _ = rank.scheduler.state()
        rank.log.run(now_s, [now_s], 0.0, running, waiting, held, held, tokens)
        rank.emits(1, tokens, 0)
        if ended:
            self._end(rank, ended, now_s)

    on_turn: Callable[[float], None] | None = None
    _lost = False  # the turn that begins has taken a row's memory, and serves nobody

    @property
    def may_lag(self) -> bool:
        """As of the base."""
        return False

    def hear(self) -> None:
        """Take in that a peer has changed something in the scheduler."""
        self._priced = None
        self._asleep_until_s = 0.0

    def end(self, limit_s: float) -> None:
        """As of the base, but its loop does not turn on when it has nobody: another load may begin before the limit."""
        while self.advance(min(limit_s, self._rests_s()), stop_after_finish=True):
            pass

    def _rests_s(self) -> float:
        """A turn after the last step under way, which frees the memory of what was sent; INFINITY where it has requests."""
        if any(rank.in_service for rank in self.ranks):
            return INFINITY
        return max([self.clock_s, *(end_s for _, _, end_s in self._in_flight)]) + self.peers[0].turn_s

    def speaks_s(self, *, of_ends: bool) -> float:
        """A time before which nothing happens here that a peer hears of unless something comes from outside.

        That is a decision that says something to one and, `of_ends`, an end of a request.
        """
        begin_s, says_s, flight = self.next_event_s(), INFINITY, self._in_flight
        if of_ends and not flight:
            return begin_s
        for peer, rank in zip(self.peers, self.ranks, strict=True):
            says_s = min(says_s, peer.speaks_s(begin_s, expects=rank.expected > 0))
        if of_ends:
            return min(says_s, flight[0][2])
        return says_s if says_s > begin_s else self.decides_s()

    def decides_s(self) -> float:
        """A time before which nobody is admitted and no request ends here unless something comes from outside."""
        if not any(map(ends_a_request, self._in_flight)):
            if self._priced is None and not self._staged:
                self._priced = self._price(INFINITY)
            if self._priced is not None:
                quiet_s = min(self._priced[-1][-1], self.next_arrival_s(), self._wake_s())
                return max(quiet_s, self.next_event_s())
        return self.next_event_s()

    def _form(self, now_s: float) -> tuple[Series[Rank], list[Batch], bool]:
        """As of the base, but every rank goes through its queues, whether it has work or not."""
        taking: list[Rank] = []
        batches: list[Batch] = []
        again = self._lost = False
        for rank in self.ranks:
            formed = rank.scheduler.schedule(now_s)
            if formed is not None and formed.tokens:
                taking.append(rank)
                batches.append(formed)
            elif formed is not None:
                again |= self._goes_on(formed)
                self._end(rank, formed.finishing, now_s)
        return taking, batches, again

    def _goes_on(self, nothing: Batch) -> bool:
        """As of the base; a loop that has only preempted is an empty turn, where the loop turns: the next may serve somebody."""
        self._lost = self._lost or bool(nothing.preempted)
        return not (nothing.preempted and any(peer.turns() for peer in self.peers))

    def _rests(self) -> bool:
        turns = max(peer.turns() for peer in self.peers)
        if self.on_turn is not None or 0 < turns < INFINITY:
            return False
        if turns:
            for peer in self.peers:
                peer.turned(1)
        return True

    def _sleep(self, limit_s: float) -> bool:
        peers = self.peers
        scheduler = peers[0]
        most_turns = max(peer.turns() for peer in peers)
        if not most_turns:
            return super()._sleep(limit_s)
        self._asleep_until_s = self._wake_s()
        until_s = min(self.next_arrival_s(), self._asleep_until_s, limit_s)
        now_s, turn_s, on_turn, turns = self.clock_s, scheduler.turn_s, self.on_turn, 0
        if self._lost:
            most_turns, self._lost = 1, False
        if most_turns < INFINITY:
            until_s = min(until_s, self.clock_s + most_turns * scheduler.turn_s)
        if until_s == INFINITY:
            return False
        if on_turn is None and (whole := int((until_s - now_s) / turn_s)) > SUMMED_TURNS:
            turns = whole - SUMMED_TURNS
            now_s += turns * turn_s
        if on_turn is None and (until_s - now_s) / turn_s > FEW_TURNS:
            ends_s = np.full(int((until_s - now_s) / turn_s) + 3, turn_s)
            ends_s[0] = now_s
            np.add.accumulate(ends_s, out=ends_s)  # the sums of the loop below, in its order
            passed = int(np.searchsorted(ends_s, until_s)) - 1
            now_s, turns = float(ends_s[passed]), turns + passed
        while True:
            now_s += turn_s
            turns += 1
            if on_turn is not None:
                on_turn(now_s)
            if now_s >= until_s:
                break
        self.clock_s = now_s
        for peer in peers:
            peer.turned(turns - 1)
        return True
