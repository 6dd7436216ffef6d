"""The routing logic of vLLM's production stack (`src/vllm_router` at a6c01db, 2026-08-05), with its flags and defaults.

Sources: `routers/routing_logic.py`, `prefix/hashtrie.py`, `stats/request_stats.py`, `parsers/parser.py` there (datasheet),
uhashring 2.3, and recordings of its decisions, which a replay compares.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Series
from random import Random

from simulator.cluster.routing.hashing import Md5Ring
from simulator.cluster.routing.policy import Arrival, Policy, Run
from simulator.cluster.routing.system import Flag, Flags, RouterSystem

CHUNK = 128
"""Characters of a chunk of the prefix trie (datasheet: `HashTrie.chunk_size`)."""
FLAGS = (
    Flag("routing_logic", "roundrobin", ("roundrobin", "session", "prefixaware")),
    Flag("session_key", None, like="x-user-id"),
    Flag("prefix_min_match_length", 0, low=0),
    Flag("request_stats_window", 60, low=1),
)


class Rates:
    """Requests of late at each worker, as the router's monitor counts them; a worker that never had one has no rate."""

    def __init__(self, workers: int, window_s: float) -> None:
        self._window_s = window_s
        self._sent: list[deque[float]] = [deque() for _ in range(workers)]
        self._known = [False] * workers

    def sent(self, worker: int, now_s: float) -> None:
        """Note a request."""
        self._sent[worker].append(now_s)
        self._known[worker] = True

    def lowest(self, workers: Series[int], now_s: float) -> Series[int]:
        """Of these the first that never had a request, else the first of those with the fewest in the window."""
        best, fewest = workers[0], float("inf")
        for worker in workers:
            sent = self._sent[worker]
            while sent and sent[0] < now_s - self._window_s:
                sent.popleft()
            if not self._known[worker]:
                return (worker,)
            if len(sent) < fewest:
                best, fewest = worker, len(sent)
        return (best,)


class RoundRobin(Policy):
    """In turn by their names, with a counter of its own for every set of workers that were up."""

    def __init__(self, workers: int, draw: Random, names: Series[str] | None) -> None:
        super().__init__(workers, draw)
        self._names = names
        self._next: dict[tuple[int, ...], int] = {}
        self._set = self._in_turn()

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        return (self._set[self._next.get(self._set, 0) % len(self._set)],)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        self._next[self._set] = self._next.get(self._set, 0) + 1

    def set_up(self, workers: Series[int]) -> None:
        """As of the base."""
        super().set_up(workers)
        self._set = self._in_turn()

    def _in_turn(self) -> tuple[int, ...]:
        """Those that are up, as texts are ordered; by number where nobody has named them."""
        names = self._names
        return tuple(self.up if names is None else sorted(self.up, key=names.__getitem__))


class Rated(Policy):
    """A policy that falls back on the worker with the fewest requests of late."""

    def __init__(self, workers: int, draw: Random, window_s: float) -> None:
        super().__init__(workers, draw)
        self.rates = Rates(workers, window_s)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        self.rates.sent(worker, now_s)


class Session(Rated):
    """The session of a request on a hash ring of the workers' names; without one, the lowest rate."""

    def __init__(self, workers: int, draw: Random, window_s: float, names: Series[str]) -> None:
        super().__init__(workers, draw, window_s)
        self.reads_key = True
        self._names = names
        self._ring = Md5Ring(names)

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        if arrival.key is None:
            return self.rates.lowest(self.up, now_s)
        return (self.up[self._ring.worker(arrival.key)],)

    def set_up(self, workers: Series[int]) -> None:
        """As of the base: the ring holds those that are up."""
        super().set_up(workers)
        self._ring = Md5Ring([self._names[worker] for worker in self.up])


class TrieNode:
    """A chunk of text: what follows, and the workers that were given it."""

    __slots__ = ("children", "workers")

    def __init__(self) -> None:
        self.children: dict[tuple[Run, ...], TrieNode] = {}
        self.workers: set[int] = set()


class PrefixAware(Rated):
    """Any worker on the longest path of the trie that workers which are up were given; nothing is ever taken from the trie.

    Every chunk counts whole, the last of a text too. Shorter matches than `prefix_min_match_length` go by the lowest rate.
    """

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw, flags.number("request_stats_window"))
        self.reads_text = True
        self._shortest = flags.number("prefix_min_match_length")
        self._root = TrieNode()
        self._up = frozenset(self.up)

    def match(self, arrival: Arrival) -> tuple[int, Series[int]]:
        """Characters that match, and the workers that were given them."""
        node, matched, workers = self._root, 0, self._up
        for chunk in chunks(arrival.runs, CHUNK):
            child = node.children.get(chunk)
            both = workers & child.workers if child is not None else frozenset()
            if child is None or not both:
                break
            node, workers = child, both
            matched += CHUNK
        return matched, sorted(workers)

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        matched, workers = self.match(arrival)
        return self.rates.lowest(self.up, now_s) if matched < self._shortest else workers

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        super().sent(arrival, worker, now_s)
        node = self._root
        for chunk in chunks(arrival.runs, CHUNK):
            child = node.children.get(chunk)
            if child is None:
                child = node.children[chunk] = TrieNode()
            child.workers.add(worker)
            node = child

    def set_up(self, workers: Series[int]) -> None:
        """As of the base."""
        super().set_up(workers)
        self._up = frozenset(self.up)


def chunks(runs: tuple[Run, ...], size: int) -> list[tuple[Run, ...]]:
    """A text in chunks of `size` units, the last of them shorter."""
    out: list[tuple[Run, ...]] = []
    part: list[Run] = []
    room = size
    for segment, offset, length in runs:
        at = 0
        while at < length:
            step = min(room, length - at)
            part.append((segment, offset + at, step))
            at += step
            room -= step
            if not room:
                out.append(tuple(part))
                part, room = [], size
    return [*out, tuple(part)] if part else out


def policy(flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Policy:
    """The policy of servers that have no role."""
    logic = flags.word("routing_logic")
    if logic == "prefixaware":
        return PrefixAware(workers, draw, flags)
    if logic == "session":
        return Session(
            workers, draw, flags.number("request_stats_window"), names or [str(i) for i in range(workers)]
        )
    return RoundRobin(workers, draw, names)


SYSTEM = RouterSystem(
    version="a6c01db", flags=FLAGS, policy=policy, policy_flag="routing_logic", key_headers=("x-user-id",)
)
