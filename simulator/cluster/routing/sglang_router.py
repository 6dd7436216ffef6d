"""The policies of SGLang's router (sglang-router 0.3.2, sgl-model-gateway), with its flags and defaults.

Sources: `sgl-model-gateway/src/policies/*.rs` and `core/{circuit_breaker,retry}.rs` (read 2026-11), `router_args.py` of the
wheel for flags and defaults (datasheet), and recordings of its decisions, which a replay compares.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence as Series
from random import Random

from simulator.cluster.routing.policy import (
    Arrival,
    AtRandom,
    InTurn,
    LoadPolicy,
    Policy,
    PowerOfTwo,
)
from simulator.cluster.routing.prefix_tree import Node, PrefixTree
from simulator.cluster.routing.sticky import Homes
from simulator.cluster.routing.system import BREAKERS, RETRIES, Flag, Flags, RouterSystem

POLICIES = ("random", "round_robin", "cache_aware", "power_of_two", "manual")
FLAGS = (
    Flag("policy", "cache_aware", POLICIES),
    Flag("prefill_policy", None, (*POLICIES, "bucket"), like=""),
    Flag("decode_policy", None, POLICIES, like=""),
    Flag("cache_threshold", 0.3, low=0.0, high=1.0),
    Flag("balance_abs_threshold", 64, low=0),
    Flag("balance_rel_threshold", 1.5, low=0.0),
    Flag("eviction_interval_secs", 60, low=0),
    Flag("max_tree_size", 2**26, low=0),
    Flag("max_idle_secs", 4 * 3600, low=0),
    Flag("assignment_mode", "random", ("random", "min_load", "min_group")),
    Flag("bucket_adjust_interval_secs", 5, low=1),
    *RETRIES,
    *BREAKERS,
)
UNMODELLED = {
    "pd_disaggregation": "servers with roles are `deployment.pools`",
    "max_concurrent_requests": "limits of a router are `deployment.admission`",
    "queue_size": "limits of a router are `deployment.admission`",
    "queue_timeout_secs": "limits of a router are `deployment.admission`",
    "rate_limit_tokens_per_second": "limits of a router are `deployment.admission`",
    "request_timeout_secs": "time-outs are `client.timeout_s`",
    "dp_aware": "ranks of a replica are chosen as the engine does",
}
POLL_S = 1.0
"""Time between two looks at the workers' `/get_load` [s] (measured: recordings of `power_of_two`)."""
FIRST_SPAN = 4096
"""Length [characters] over which the first worker's bucket is spread (datasheet: `l_max` of `Bucket::new`)."""
WHOLE_LENGTHS = 2**64 - 1
"""Largest length [characters] (datasheet: `usize::MAX`)."""


class CacheAware(LoadPolicy):
    """The worker that made the deepest node of the tree which the text touches, if enough of it matches and loads are even.

    Loads are uneven if the most loaded worker has more than `balance_abs_threshold` requests more and `balance_rel_threshold`
    times as many as the least loaded, which is then chosen; so it is if no more than `cache_threshold` of the text matches.
    """

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw)
        self.reads_text = True
        self._threshold = flags.number("cache_threshold")
        self._most_apart = flags.number("balance_abs_threshold")
        self._most_times = flags.number("balance_rel_threshold")
        self._evict_every_s = flags.number("eviction_interval_secs")
        self._limit = int(flags.number("max_tree_size"))
        self._evicted_s = 0.0
        self.tree = PrefixTree()

    def uneven(self) -> bool:
        """Whether the loads are too far apart to look at the text."""
        least, most = self.loads.least(), self.loads.most()
        return most - least > self._most_apart and most > least * self._most_times

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        if not self.uneven():
            matched, node = self.found(arrival)
            if self.fits(matched, arrival.length):
                wanted = self.of_node(node.maker, node.owners)
                return [worker for worker in wanted if worker in self.up] or self.up[:1]
        return (self.loads.first(),)

    def found(self, arrival: Arrival) -> tuple[int, Node]:
        """How much of a text matches, and the deepest node that it touches."""
        return self.tree.match(arrival.runs)

    def fits(self, matched: int, length: int) -> bool:
        """Whether so many units that match of a text are enough."""
        return bool(length) and matched / length > self._threshold

    def of_node(self, maker: int, owners: dict[int, int]) -> Series[int]:
        """Which of a node's owners: its maker while it is one, else any."""
        return [maker] if maker in owners else list(owners)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base: what a worker that is not up had is forgotten if a text asks for it, and that text is not noted."""
        gone: int | None = None
        if not self.uneven():
            matched, node = self.found(arrival)
            if self.fits(matched, arrival.length):
                wanted = self.of_node(node.maker, node.owners)
                gone = None if any(owner in self.up for owner in wanted) else wanted[0]
                if node.maker not in node.owners:
                    node.maker = worker if gone is None else gone
            self.tree.used(node)
        if gone is None:
            self.tree.insert(arrival.runs, worker)
        else:
            self.tree.forget(gone)
        super().sent(arrival, worker, now_s)

    def forget(self, worker: int) -> None:
        """As of the base."""
        self.tree.forget(worker)

    def tick(self, now_s: float) -> None:
        """As of the base: cut the tree to its size."""
        every_s = self._evict_every_s
        if every_s and now_s - self._evicted_s >= every_s:
            self._evicted_s = now_s - (now_s - self._evicted_s) % every_s
            self.tree.evict(self._limit)


class LostTree(CacheAware):
    """`cache_aware` of servers with a role: it finds no tree for a model with a name, and is random while loads are even."""

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw, flags)
        self.reads_text = False

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        return (self.loads.first(),) if self.uneven() else self.up

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        LoadPolicy.sent(self, arrival, worker, now_s)


class PolledPowerOfTwo(PowerOfTwo):
    """Power of two over tokens as polled, where both workers have been; otherwise over requests in flight.

    A server that is not one of a pair of roles is not counted in flight here (`counts`), so it then is a draw.
    """

    polls_tokens_s = POLL_S

    def __init__(self, workers: int, draw: Random) -> None:
        super().__init__(workers, draw)
        self.counts = False
        self.polled: Series[float | None] = [None] * workers

    def _comparable(self) -> bool:
        return all(self.polled[worker] is not None for worker in self.up)

    def load(self, worker: int) -> float:
        """As of the base."""
        tokens = self.polled[worker]
        return tokens if tokens is not None and self._comparable() else self.loads.of[worker]

    def choose(self, arrival: Arrival, now_s: float) -> int:
        """As of the base, comparing tokens if the two drawn have been polled."""
        n = len(self.up)
        if n < 2:
            return self.up[0]
        at = self.draw.randrange(n)
        first, second = self.up[at], self.up[(at + 1 + self.draw.randrange(n - 1)) % n]
        mine, other = self.polled[first], self.polled[second]
        if mine is None or other is None:
            mine, other = self.loads.of[first], self.loads.of[second]
        return first if mine <= other else second


class Manual(LoadPolicy):
    """A key stays with its worker, and has a second one for when that is out. A new key is assigned by `assignment_mode`."""

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw)
        self.reads_key = True
        self._mode = flags.word("assignment_mode")
        self._homes = Homes(flags.number("max_idle_secs"), flags.number("eviction_interval_secs"))
        self._live: list[Counter[str]] = [Counter() for _ in range(workers)]  # keys in flight

    def tick(self, now_s: float) -> None:
        """As of the base: forget keys that were not used for long."""
        for _ in self._homes.sweep(now_s):
            pass

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        if arrival.key is None:
            return self.up
        home = next((worker for worker in self._homes.get(arrival.key) if worker in self.up), None)
        if home is not None:
            return (home,)
        if self._mode == "random":
            return self.up
        grouped = self._mode == "min_group"
        loads = [len(self._live[worker]) if grouped else self.loads.of[worker] for worker in self.up]
        least = min(loads)
        return [worker for worker, load in zip(self.up, loads, strict=True) if load == least]

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        super().sent(arrival, worker, now_s)
        if arrival.key is not None:
            homes = self._homes.get(arrival.key)
            self._homes.put(arrival.key, homes if worker in homes else (*homes, worker)[-2:], now_s)
            self._live[worker][arrival.key] += 1

    def ended(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        super().ended(arrival, worker, now_s)
        if arrival.key is not None:
            live = self._live[worker]
            live[arrival.key] -= 1
            if not live[arrival.key]:
                del live[arrival.key]


class Bucket(Policy):
    """Workers by the length of a text, unless the characters that they were given of late are uneven.

    Workers join one by one, and the bounds are set anew for each of them after the span of lengths was made endless by the first:
    nearly every text falls to the first. Bounds are moved every `bucket_adjust_interval_secs` if the load has changed twofold.
    """

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw)
        self.reads_text = True
        self._most_apart = flags.number("balance_abs_threshold")
        self._most_times = flags.number("balance_rel_threshold")
        self._period_s = flags.number("bucket_adjust_interval_secs")
        span = FIRST_SPAN if workers == 1 else WHOLE_LENGTHS
        gap = span // workers
        self._upper = [gap * (i + 1) - 1 for i in range(workers - 1)] + [WHOLE_LENGTHS]
        self._given = [0] * workers
        self._recent: deque[tuple[float, int, int]] = deque()
        self._share = 0
        self._adjusted_s = 0.0

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        given = self._given
        least, most = min(given), max(given)
        if most - least > self._most_apart and most > least * self._most_times:
            return [worker for worker, units in enumerate(given) if units == least]
        return (next(i for i, upper in enumerate(self._upper) if arrival.length <= upper),)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        self._given[worker] += arrival.length
        recent = self._recent
        while recent and now_s - recent[0][0] > self._period_s:
            _, units, of = recent.popleft()
            self._given[of] = max(self._given[of] - units, 0)
        recent.append((now_s, arrival.length, worker))

    def tick(self, now_s: float) -> None:
        """As of the base: move the bounds."""
        if now_s - self._adjusted_s >= self._period_s:
            self._adjusted_s = now_s
            self._adjust()

    def _adjust(self) -> None:
        """Set the bounds so that each bucket had the same load of late."""
        lengths = sorted(units for _, units, _ in self._recent)
        share, before = sum(lengths) // self.workers, self._share
        if not lengths or (before and share <= 2 * before and before <= 2 * share):
            return
        self._share = share
        upper, low, at = [], 0, 0
        for _ in range(self.workers - 1):
            filled, bound = 0, low + share
            while at < len(lengths):
                filled += lengths[at]
                at += 1
                if filled >= share:
                    bound = lengths[at - 1] if lengths[at - 1] > low else low + share
                    break
            upper.append(bound)
            low = bound + 1
        self._upper = [*upper, WHOLE_LENGTHS]


def policy(flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Policy:
    """The policy of servers that have no role."""
    return _named(flags.word("policy"), flags, workers, draw)


def paired(name: str, flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Policy:
    """The policy `name` of the servers of a role, where every request in flight is counted."""
    if name == "bucket":
        return Bucket(workers, draw, flags)
    if name == "cache_aware":
        return LostTree(workers, draw, flags)
    made = _named(name, flags, workers, draw)
    if isinstance(made, PolledPowerOfTwo):
        made.counts = True
    return made


def _named(name: str, flags: Flags, workers: int, draw: Random) -> Policy:
    if name == "cache_aware":
        return CacheAware(workers, draw, flags)
    if name == "manual":
        return Manual(workers, draw, flags)
    if name == "power_of_two":
        return PolledPowerOfTwo(workers, draw)
    return InTurn(workers, draw) if name == "round_robin" else AtRandom(workers, draw)


SYSTEM = RouterSystem(
    version="0.3.2",
    flags=FLAGS,
    policy=policy,
    paired=paired,
    key_headers=("x-smg-routing-key",),
    breaks=True,
    unmodelled=UNMODELLED,
)
