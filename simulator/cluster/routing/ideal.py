"""Ideal rules on exact state, which belong to no product."""

from __future__ import annotations

from collections.abc import Sequence as Series
from random import Random

from simulator.cluster.routing.policy import (
    Arrival,
    AtRandom,
    InTurn,
    LeastRequests,
    LoadPolicy,
    Loads,
    Policy,
)


class LeastTokens(Policy):
    """The worker with the fewest tokens of prompts in flight, the first among equals."""

    def __init__(self, workers: int, draw: Random) -> None:
        super().__init__(workers, draw)
        self.hears_ends = True
        self._loads = Loads(workers)

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        return (self._loads.first(),)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        self.loaded(arrival, worker)

    def loaded(self, arrival: Arrival, worker: int) -> None:
        """As of the base."""
        self._loads.add(worker, arrival.length)

    def ended(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        self._loads.add(worker, -arrival.length)

    def set_up(self, workers: Series[int]) -> None:
        """As of the base."""
        super().set_up(workers)
        self._loads.count(self.up)


class Session(LoadPolicy):
    """A session stays with the worker that served it first, chosen as the one with the fewest requests in flight.

    Requests without a session go where the fewest are in flight; so does a session whose worker is out.
    """

    def __init__(self, workers: int, draw: Random) -> None:
        super().__init__(workers, draw)
        self.reads_key = True
        self._home: dict[str, int] = {}

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        home = self._home.get(arrival.key) if arrival.key is not None else None
        return (home,) if home is not None and home in self.up else (self.loads.first(),)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        super().sent(arrival, worker, now_s)
        if arrival.key is not None:
            self._home[arrival.key] = worker


RULES: dict[str, type[Policy]] = {
    "round_robin": InTurn,
    "random": AtRandom,
    "least_requests": LeastRequests,
    "least_tokens": LeastTokens,
    "session": Session,
}
"""Ideal rules by the word that names them in a scenario."""
