"""Which replica gets a request: the one with the fewest submitted and unfinished, found without asking all of them.

Two heaps stand for the scan over replicas: one by the time before which nothing about a replica changes that counts here, so
that only replicas that may have changed are advanced, and one by (requests in service, number), whose stale entries are dropped
when they come up. A choice costs the logarithm of the number of replicas for every replica that changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from simulator.serving.replica import Replica

FAR_SIGHTED = 16
"""From so many replicas on a replica is left alone until a request can end there, instead of until its next step ends: the
requests are the same, the timeline's records are longer."""


STALE = 16
"""Entries of both heaps a replica may have before those out of date are thrown away."""


class LeastRequests:
    """A router over replicas that others submit to and advance; `note` tells it when they did."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._replicas = replicas
        far = len(replicas) >= FAR_SIGHTED
        self._due_s: list[Callable[[], float]] = [
            r.quiet_until_s if far else r.next_event_s for r in replicas
        ]
        self._version = [0] * len(replicas)
        self._changes: list[tuple[float, int, int]] = []
        self._fewest: list[tuple[int, int]] = []
        for number in range(len(replicas)):
            self.note(number)

    def note(self, number: int) -> None:
        """Take in that a replica was submitted to or advanced."""
        version = self._version[number] = self._version[number] + 1
        heapq.heappush(self._changes, (self._due_s[number](), number, version))
        heapq.heappush(self._fewest, (self._replicas[number].in_service, number))
        if len(self._changes) + len(self._fewest) > STALE * len(self._replicas):
            self._changes = [entry for entry in self._changes if entry[2] == self._version[entry[1]]]
            self._fewest = [(replica.in_service, i) for i, replica in enumerate(self._replicas)]
            heapq.heapify(self._changes)
            heapq.heapify(self._fewest)

    def choose(self, now_s: float) -> int:
        """Return the replica with the fewest requests at `now_s`, the first among equals."""
        replicas, changed = self._replicas, []
        while self._changes and self._changes[0][0] <= now_s:
            _, number, version = heapq.heappop(self._changes)
            if version == self._version[number]:
                replicas[number].advance(now_s)
                changed.append(number)
        for number in changed:
            self.note(number)
        fewest = self._fewest
        while fewest[0][0] != replicas[fewest[0][1]].in_service:
            heapq.heappop(fewest)
        return fewest[0][1]


WAITING_WEIGHT = 4
"""A waiting request counts as much as so many running ones where vLLM balances its data-parallel ranks (datasheet:
`DPLBAsyncMPClient.get_core_engine_for_request`, vLLM 0.10 to 0.33)."""
COUNTS_S = 0.1
"""Time between two publications of the ranks' counts to vLLM's front end (datasheet: `min_stats_update_interval_ms` of its
coordinator)."""


class RankRouter:
    """A router to the data-parallel ranks of one or more replicas: first a replica, then a rank of it.

    A replica is taken in turn, or the one with the fewest submitted and unfinished requests (`by_requests`). A rank is taken in
    turn (SGLang) or by load (`by_load`, vLLM): least ``4 waiting + running``, the first among equals, from counts that are up to
    100 ms old and to which the front end adds what it has sent since.
    """

    def __init__(self, ranks: list[Replica], replicas: int, *, by_requests: bool, by_load: bool) -> None:
        self._groups = [ranks[number::replicas] for number in range(replicas)]
        self._by_requests, self._by_load = by_requests, by_load
        self._turn = 0
        self._turns = [0] * replicas
        self._scores: list[list[int]] = [[] for _ in range(replicas)]
        self._counted_s = [-COUNTS_S] * replicas

    def note(self, number: int) -> None:
        """Nothing: the router looks for itself."""

    def choose(self, now_s: float) -> int:
        """Return the number of the rank that gets a request which reaches the engine at `now_s`."""
        number = self._replica(now_s)
        group = self._groups[number]
        if self._by_load:
            if now_s - self._counted_s[number] >= COUNTS_S:
                group[0].advance(now_s)
                self._scores[number] = [_score(rank) for rank in group]
                self._counted_s[number] = now_s
            scores = self._scores[number]
            rank = scores.index(min(scores))
            scores[rank] += WAITING_WEIGHT
        else:
            rank = self._turns[number] % len(group)
            self._turns[number] += 1
        return rank * len(self._groups) + number

    def _replica(self, now_s: float) -> int:
        groups = self._groups
        if not self._by_requests:
            self._turn += 1
            return (self._turn - 1) % len(groups)
        for group in groups:
            group[0].advance(now_s)
        loads = [sum(rank.in_service for rank in group) for group in groups]
        return loads.index(min(loads))


def _score(rank: Replica) -> int:
    running = len(rank.scheduler.running)
    return WAITING_WEIGHT * (rank.in_service - running) + running
