"""What every routing policy promises, and the counts that several share.

A policy knows its workers by number, in the order in which its router lists them, and keeps state of its own: it is told what it
would see (a request sent, an end, a worker out or back) and nothing else. `allowed` says whom the rule permits, `choose` draws
as the rule draws, `sent` takes in what was done, whoever decided it: a replay of a recording and a simulation run the same code.
"""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import Sequence as Series
from dataclasses import dataclass
from random import Random

from mypy_extensions import mypyc_attr

Run = tuple[int, int, int]

STALE = 16
"""Entries a worker may have in a heap before those out of date are thrown away."""


@dataclass(slots=True)
class Arrival:
    """A request as a router reads it.

    `runs` are the contents of the whole prompt, (segment, offset, length), `length` units in all: characters or tokens. `blocks`
    are the names of its leading full KV blocks that others may have too, `private_blocks` how many full ones follow. `key` names
    a session or user, as the header `header` says (the router's first, if empty), `jump_s` is how much earlier than others it is
    to be served, `priority` what goes before all else, `adapter` the LoRA adapter, 0 for none.
    """

    index: int
    length: int
    runs: tuple[Run, ...] = ()
    key: str | None = None
    header: str = ""
    blocks: Series[int] = ()
    private_blocks: int = 0
    jump_s: float = 0.0
    priority: int = 0
    adapter: int = 0


@mypyc_attr(allow_interpreted_subclasses=True)
class Policy:
    """Chooses among the workers that are up.

    Parameters
    ----------
    workers : how many.
    draw : source of random choices.

    What a rule wants to know it says when it is made, by the attributes that are false here.
    """

    def __init__(self, workers: int, draw: Random) -> None:
        self.workers = workers
        self.draw = draw
        self.up: list[int] = list(range(workers))
        self.reads_text = False
        """Whether the contents of prompts matter."""
        self.reads_key = False
        """Whether the session of a request matters."""
        self.hears_ends = False
        """Whether ends of requests matter."""
        self.hears_first_tokens = False
        """Whether first tokens matter."""
        self.polls_s = 0.0
        """Time between two looks at what the servers say of themselves, 0 for none."""
        self.reads_adapters = False
        """Whether they say which adapters they serve."""
        self.block_tokens = 0
        """Tokens of a KV block, where their names matter."""
        self.follows_events = False
        """Whether it hears which blocks engines store and remove."""
        self.filters_by_events = True
        """Whether its filters, if it has any that read blocks, read those that it hears of."""
        self.reads_ranges = False
        """Whether it matters for which lengths of prompts servers are meant."""
        self.filters = False
        """Whether it may leave out every worker, whatever they do."""

    def tick(self, now_s: float) -> None:
        """Do what is due by the clock; called before each decision."""

    @abstractmethod
    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """Every worker that the rule may give the request at `now_s`; nothing is decided by asking."""

    def choose(self, arrival: Arrival, now_s: float) -> int:
        """The worker that gets the request, drawn as the rule draws: evenly, unless a rule says otherwise."""
        allowed = self.allowed(arrival, now_s)
        return allowed[0] if len(allowed) == 1 else allowed[self.draw.randrange(len(allowed))]

    def keeps(self, arrival: Arrival, now_s: float) -> int | None:
        """The decode worker that is to compute a prompt too and is sent it next; None where another computes it."""
        return None

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """Take in that a request goes to a worker."""

    def loaded(self, arrival: Arrival, worker: int) -> None:
        """Take in that a worker has a request, whoever sent it: what `sent` does to loads."""

    def first_token(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """Take in that the first token of a request has come back."""

    def ended(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """Take in that a request has ended at a worker, however it did."""

    def forget(self, worker: int) -> None:
        """Take in that a worker begins anew: nothing is left of what it kept."""

    def saw(self, waiting: Series[int], running: Series[int], used: Series[float]) -> None:
        """Take in what all workers say of themselves: requests that wait and run, and the share of the KV cache that is used."""

    def saw_adapters(self, running: Series[set[int]], waiting: Series[set[int]], places: int) -> None:
        """Take in whose requests run and wait at each worker, by adapter; each has so many places for them."""

    def told_ranges(self, ranges: Series[tuple[int, int] | None]) -> None:
        """Take in for which lengths of prompts each worker is meant [tokens], None for any; before the first request."""

    def stored(self, worker: int, parent: int | None, blocks: Series[int]) -> None:
        """Hear that a worker has stored blocks after `parent`."""

    def removed(self, worker: int, block: int) -> None:
        """Hear that a worker has removed a block."""

    def takes(self, arrival: Arrival, worker: int) -> bool:
        """Whether a worker may ever get a request, where the policy filters."""
        return True

    def told_blocks(self, blocks: Series[int]) -> None:
        """Take in how many KV blocks each worker has, before the first request."""

    def set_up(self, workers: Series[int]) -> None:
        """From now on only these workers may be chosen."""
        self.up = sorted(workers)


class Loads:
    """A load of each worker, with the least and the most over those that count; a change costs the logarithm of their number."""

    def __init__(self, workers: int) -> None:
        self.of = [0] * workers
        self._counted = [True] * workers
        self._low = [(0, worker) for worker in range(workers)]
        self._high: list[tuple[int, int]] | None = None  # until somebody asks

    def add(self, worker: int, by: int) -> None:
        """Change a worker's load."""
        load = self.of[worker] = self.of[worker] + by
        if not self._counted[worker]:
            return
        heapq.heappush(self._low, (load, worker))
        if self._high is not None:
            heapq.heappush(self._high, (-load, worker))
        if len(self._low) + len(self._high or ()) > STALE * len(self.of):
            self._build()

    def _build(self) -> None:
        counted = [i for i, counts in enumerate(self._counted) if counts]
        self._low = [(self.of[i], i) for i in counted]
        heapq.heapify(self._low)
        if self._high is not None:
            self._high = [(-self.of[i], i) for i in counted]
            heapq.heapify(self._high)

    def count(self, workers: Series[int]) -> None:
        """From now on only these workers count."""
        self._counted = [False] * len(self.of)
        for worker in workers:
            self._counted[worker] = True
        self._build()

    def first(self) -> int:
        """The first of the least loaded workers."""
        low = self._low
        while self.of[low[0][1]] != low[0][0]:
            heapq.heappop(low)
        return low[0][1]

    def least(self) -> int:
        """The smallest load."""
        return self.of[self.first()]

    def most(self) -> int:
        """The largest load."""
        if self._high is None:
            self._high = []
            self._build()
        high = self._high
        while self.of[high[0][1]] != -high[0][0]:
            heapq.heappop(high)
        return -high[0][0]


@mypyc_attr(allow_interpreted_subclasses=True)
class LoadPolicy(Policy):
    """A policy that counts its requests in flight.

    `counts` says whether its router does so at all: some keep the count for certain policies only, and then see zeros.
    """

    def __init__(self, workers: int, draw: Random) -> None:
        super().__init__(workers, draw)
        self.hears_ends = self.counts = True
        self.loads = Loads(workers)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        self.loaded(arrival, worker)

    def loaded(self, arrival: Arrival, worker: int) -> None:
        """As of the base."""
        if self.counts:
            self.loads.add(worker, 1)

    def ended(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        if self.counts:
            self.loads.add(worker, -1)

    def set_up(self, workers: Series[int]) -> None:
        """As of the base."""
        super().set_up(workers)
        self.loads.count(self.up)


@mypyc_attr(allow_interpreted_subclasses=True)
class InTurn(Policy):
    """Every worker that is up in turn, by a counter that goes on as they come and go."""

    def __init__(self, workers: int, draw: Random) -> None:
        super().__init__(workers, draw)
        self.chosen = 0

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        return (self.up[self.chosen % len(self.up)],)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        self.chosen += 1


class AtRandom(Policy):
    """Any worker that is up, each as likely."""

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        return self.up


class LeastRequests(LoadPolicy):
    """The worker with the fewest requests in flight, the first among equals."""

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        return (self.loads.first(),)


@mypyc_attr(allow_interpreted_subclasses=True)
class PowerOfTwo(LoadPolicy):
    """Of two different workers at random the one with the smaller load, the first drawn among equals."""

    def load(self, worker: int) -> float:
        """What is compared."""
        return self.loads.of[worker]

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base: all but the one that is more loaded than every other."""
        if len(self.up) < 2:
            return self.up
        loads = [self.load(worker) for worker in self.up]
        most = max(loads)
        if loads.count(most) > 1:
            return self.up
        return [worker for worker, load in zip(self.up, loads, strict=True) if load < most]

    def choose(self, arrival: Arrival, now_s: float) -> int:
        """As of the base."""
        n = len(self.up)
        if n < 2:
            return self.up[0]
        at = self.draw.randrange(n)
        other = (at + 1 + self.draw.randrange(n - 1)) % n
        first, second = self.up[at], self.up[other]
        return first if self.load(first) <= self.load(second) else second
