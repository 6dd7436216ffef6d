"""A replica whose loop turns while it waits for a peer: what a peer does is noticed on the grid of its empty turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_models.parts.handover import Peer, ReservingDecode
from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from simulator.serving.replica import Replica, ends_a_request

SUMMED_TURNS = 1_000_000
"""Turns whose ends are summed one by one, as the engine's clock does; of a longer wait the first ones are multiplied (assumed:
a tenth of a second of work, and rounding that nothing sees)."""


class TurningReplica(Replica):
    """A replica of one rank whose scheduler shares requests with another's (`engine_models.parts.handover`).

    `on_turn` is called with the end of every turn in which nothing is computed [s] (for comparison with recorded schedules).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        scheduler = self.ranks[0].scheduler
        if isinstance(scheduler, ReservingDecode):
            scheduler.at_once = self._at_once

    def _at_once(self, now_s: float, tokens: int, ended: list[Sequence]) -> None:
        """Log a batch of no length, and note who ended with it."""
        rank = self.ranks[0]
        running, waiting, held, _ = rank.scheduler.state()
        rank.log.run(now_s, [now_s], 0.0, running, waiting, held, held, tokens)
        if ended:
            self._end(rank, ended, now_s)

    on_turn: Callable[[float], None] | None = None

    def hear(self) -> None:
        """Take in that a peer has changed something in the scheduler."""
        self._priced = None
        self._asleep_until_s = 0.0

    def decides_s(self) -> float:
        """A time before which nobody is admitted and no request ends here unless something comes from outside."""
        if self._wake_s() == INFINITY and not any(map(ends_a_request, self._in_flight)):
            visible_s = self.visible_s()
            if self._priced is not None:
                return visible_s
        return self.next_event_s()

    def _sleep(self, limit_s: float) -> bool:
        scheduler = self.ranks[0].scheduler
        assert isinstance(scheduler, Peer)
        if not scheduler.turns():
            return super()._sleep(limit_s)
        self._asleep_until_s = self._wake_s()
        until_s = min(self._next_arrival_s(), self._asleep_until_s, limit_s)
        now_s, turn_s, on_turn, turns = self.clock_s, scheduler.turn_s, self.on_turn, 0
        if until_s == INFINITY:
            return False
        if on_turn is None and (whole := int((until_s - now_s) / turn_s)) > SUMMED_TURNS:
            turns = whole - SUMMED_TURNS
            now_s += turns * turn_s
        while True:
            now_s += turn_s
            turns += 1
            if on_turn is not None:
                on_turn(now_s)
            if now_s >= until_s:
                break
        self.clock_s = now_s
        scheduler.turned(turns - 1)
        return True
