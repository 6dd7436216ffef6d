"""Which rank gets a request.

Requests for a router that does not look at the replicas are dealt beforehand. The scan for the fewest requests in service is done
by two heaps: one by the time before which nothing about a replica changes that counts here, so that only replicas that may have
changed are advanced, and one by (requests in service, number), whose stale entries are dropped when they come up. A choice costs
the logarithm of the number of replicas for every replica that changed.

Ranks are numbered so that rank r of replica n of N is number r N + n.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod

from engine_models.declaration import Executor
from simulator.serving.rank import Rank
from simulator.serving.replica import Replica

STALE = 16
"""Entries of both heaps a replica may have before those out of date are thrown away."""


class Router(ABC):
    """Chooses for each request, in order of the times at which they reach the engine."""

    @abstractmethod
    def choose(self, now_s: float) -> int:
        """Return the number of the rank that gets a request which reaches the engine at `now_s`."""

    def note(self, number: int) -> None:  # noqa: B027
        """Take in that a rank was submitted to, or its replica advanced; one that looks for itself need not."""


class InTurn(Router):
    """Every rank in turn."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self.chosen = 0

    def choose(self, now_s: float) -> int:
        """As of the base."""
        self.chosen += 1
        return (self.chosen - 1) % self._ranks


class LeastRequests(Router):
    """The replica with the fewest requests submitted and unfinished, the first among equals; a rank each."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._replicas = replicas
        self._ranks = [replica.ranks[0] for replica in replicas]
        self._version = [0] * len(replicas)
        self._changes: list[tuple[float, int, int]] = []
        self._fewest: list[tuple[int, int]] = []
        for number in range(len(replicas)):
            self.note(number)

    def note(self, number: int) -> None:
        """As of the base."""
        version = self._version[number] = self._version[number] + 1
        heapq.heappush(self._changes, (self._replicas[number].visible_s(), number, version))
        heapq.heappush(self._fewest, (self._ranks[number].in_service, number))
        if len(self._changes) + len(self._fewest) > STALE * len(self._replicas):
            self._changes = [entry for entry in self._changes if entry[2] == self._version[entry[1]]]
            self._fewest = [(rank.in_service, i) for i, rank in enumerate(self._ranks)]
            heapq.heapify(self._changes)
            heapq.heapify(self._fewest)

    def choose(self, now_s: float) -> int:
        """As of the base."""
        changed = []
        while self._changes and self._changes[0][0] <= now_s:
            _, number, version = heapq.heappop(self._changes)
            if version == self._version[number]:
                self._replicas[number].advance(now_s)
                changed.append(number)
        for number in changed:
            self.note(number)
        fewest = self._fewest
        while fewest[0][0] != self._ranks[fewest[0][1]].in_service:
            heapq.heappop(fewest)
        return fewest[0][1]


WAITING_WEIGHT = 4
"""A waiting request counts as much as so many running ones where vLLM balances its data-parallel ranks (datasheet:
`DPLBAsyncMPClient.get_core_engine_for_request`, vLLM 0.10 to 0.33)."""
COUNTS_S = 0.1
"""Time between two publications of the ranks' counts to vLLM's front end (datasheet: `min_stats_update_interval_ms` of its
coordinator)."""


class RankRouter(Router):
    """First a replica, then one of its data-parallel ranks.

    A replica is taken in turn, or the one with the fewest submitted and unfinished requests (`by_requests`). A rank is taken in
    turn (SGLang) or by load (`by_load`, vLLM): least ``4 waiting + running``, the first among equals, from counts that are up to
    100 ms old and to which the front end adds what it has sent since.
    """

    def __init__(self, replicas: list[Replica], *, by_requests: bool, by_load: bool) -> None:
        self._replicas = replicas
        self._by_requests, self._by_load = by_requests, by_load
        self._turn = 0
        self._turns = [0] * len(replicas)
        self._scores: list[list[int]] = [[] for _ in replicas]
        self._counted_s = [-COUNTS_S] * len(replicas)

    def choose(self, now_s: float) -> int:
        """As of the base."""
        number = self._replica(now_s)
        replica = self._replicas[number]
        if self._by_load:
            if now_s - self._counted_s[number] >= COUNTS_S:
                replica.advance(now_s)
                self._scores[number] = [_score(rank) for rank in replica.ranks]
                self._counted_s[number] = now_s
            scores = self._scores[number]
            rank = scores.index(min(scores))
            scores[rank] += WAITING_WEIGHT
        else:
            rank = self._turns[number] % len(replica.ranks)
            self._turns[number] += 1
        return rank * len(self._replicas) + number

    def _replica(self, now_s: float) -> int:
        replicas = self._replicas
        if not self._by_requests:
            self._turn += 1
            return (self._turn - 1) % len(replicas)
        for replica in replicas:
            replica.advance(now_s)
        loads = [sum(rank.in_service for rank in replica.ranks) for replica in replicas]
        return loads.index(min(loads))


def _score(rank: Rank) -> int:
    running = rank.scheduler.state()[0]
    return WAITING_WEIGHT * (rank.in_service - running) + running


def router_of(replicas: list[Replica], rule: str, executor: Executor) -> Router:
    """The router of a rule, "round_robin" or "least_requests"; ranks of a replica are chosen as the engine does."""
    ranks = len(replicas[0].ranks)
    by_requests = len(replicas) > 1 and rule == "least_requests"
    by_load = ranks > 1 and executor.rank_router == "least_loaded"
    if ranks > 1 and (by_requests or by_load):
        return RankRouter(replicas, by_requests=by_requests, by_load=by_load)
    return LeastRequests(replicas) if by_requests else InTurn(ranks * len(replicas))
