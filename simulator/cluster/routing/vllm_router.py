"""The policies of vLLM's router (vllm-router 0.1.17), with its flags and defaults.

Sources: `src/policies/*.rs` of vllm-project/router (read 2026-11), `router_args.py` of the wheel 0.1.17 for flags and defaults
(datasheet), and recordings of its decisions, which a replay compares. Its prefix tree is that of SGLang's router, over token ids.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import replace
from random import Random

from simulator.cluster.routing import sglang_router
from simulator.cluster.routing.hashing import FacebookRing, facebook_hash
from simulator.cluster.routing.policy import Arrival, AtRandom, InTurn, Policy, PowerOfTwo
from simulator.cluster.routing.prefix_tree import Node
from simulator.cluster.routing.sticky import Homes
from simulator.cluster.routing.system import BREAKERS, RETRIES, Flag, Flags, RouterSystem

POLICIES = ("random", "round_robin", "cache_aware", "power_of_two", "consistent_hash", "sticky_least_loaded")
ABOVE_ZERO = ("retry_max_retries", "retry_initial_backoff_ms", "cb_timeout_duration_secs")
"""Flags that may be zero in SGLang's router alone (measured, 2026-11-30: with lower values than these 0.1.17 does not start)."""
FLAGS = (
    Flag("policy", "cache_aware", POLICIES),
    Flag("prefill_policy", None, POLICIES, like=""),
    Flag("decode_policy", None, POLICIES, like=""),
    Flag("cache_threshold", 0.3, low=0.0, high=1.0),
    Flag("balance_abs_threshold", 64, low=0),
    Flag("balance_rel_threshold", 1.5, low=1.0),
    Flag("eviction_interval_secs", 120, low=1),
    Flag("max_tree_size", 2**25, low=1),
    *(replace(each, low=1) if each.name in ABOVE_ZERO else each for each in (*RETRIES, *BREAKERS)),
)
UNMODELLED = {
    "max_concurrent_requests": "limits of a router are `deployment.admission`",
    "queue_size": "limits of a router are `deployment.admission`",
    "queue_timeout_secs": "limits of a router are `deployment.admission`",
    "rate_limit_tokens_per_second": "limits of a router are `deployment.admission`",
    "request_timeout_secs": "time-outs are `client.timeout_s`",
    "intra_node_data_parallel_size": "ranks of a replica are chosen as the engine does",
    "enable_program_scheduling": "requests have no programs",
}
SESSION_IDLE_S, SESSION_SWEEP_S = 7200.0, 60.0
"""How long a session of `sticky_least_loaded` lives unused, and how often that is looked for [s] (datasheet)."""
TOKEN_DIGITS, KEY_HEAD = 8, 6
"""Characters as which the prefix tree keeps a token, its id in hexadecimal, and those before a text (measured, 2026-11-30: sizes
that a router with `--log-level debug` prints; the zeros that ids have in common are not taken off here)."""
VIRTUAL_NODES = 160
"""Places of a worker on the hash ring (datasheet: `VIRTUAL_NODES_PER_WORKER`)."""


class CacheAware(sglang_router.CacheAware):
    """As SGLang's, but over tokens, which its size counts as written; the least loaded of the deepest node's.

    Only what workers got that are up is looked at (measured, 2026-11-30: 0.1.17's decisions and the matches that it logs while
    workers fail; what the others got is kept).
    """

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw, flags)
        self._limit = max(self._limit - KEY_HEAD, 0) // TOKEN_DIGITS

    def found(self, arrival: Arrival) -> tuple[int, Node]:
        """As of the base."""
        return self.tree.match(arrival.runs, None if len(self.up) == self.workers else set(self.up))

    def of_node(self, maker: int, owners: dict[int, int]) -> Series[int]:
        """As of the base."""
        wanted = [worker for worker in owners if worker in self.up]
        least = min(self.loads.of[worker] for worker in wanted)
        return [worker for worker in wanted if self.loads.of[worker] == least]


class ConsistentHash(Policy):
    """The session of a request on a hash ring of the names of those that are up; without a session, its text."""

    def __init__(self, workers: int, draw: Random, names: Series[str] | None = None) -> None:
        super().__init__(workers, draw)
        self.reads_key = self.reads_text = True
        self._names = names
        self._seen: dict[str, list[tuple[frozenset[int], int]]] = {}  # where no names are known: who had a key among whom
        self.set_up(self.up)

    def set_up(self, workers: Series[int]) -> None:
        """As of the base."""
        super().set_up(workers)
        self._ring = FacebookRing([self._names[worker] for worker in self.up], VIRTUAL_NODES) if self._names else None

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base; where no names are known, any that no earlier choice for the key speaks against."""
        key = _hash_key(arrival)
        if self._ring is not None:
            return (self.up[self._ring.worker(key)],)
        up = set(self.up)
        seen = self._seen.get(key, ())
        homes = [home for among, home in seen if home in up and among >= up]
        passed = {worker for among, home in seen if home in up for worker in among & up - {home}}
        return homes[:1] or [worker for worker in self.up if worker not in passed]

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        if self._ring is None:
            self._seen.setdefault(_hash_key(arrival), []).append((frozenset(self.up), worker))


def _hash_key(arrival: Arrival) -> str:
    if arrival.key is None:
        return f"request_hash:{arrival.runs}"
    return f"header:{arrival.header or 'x-session-id'}:{arrival.key}"


class StickyLeastLoaded(Policy):
    """A session stays with its worker; a new one goes where the fewest live, ties by a hash of session and worker."""

    def __init__(self, workers: int, draw: Random, names: Series[str] | None = None) -> None:
        super().__init__(workers, draw)
        self.reads_key = True
        self._names = names
        self._live = [0] * workers
        self._homes = Homes(SESSION_IDLE_S, SESSION_SWEEP_S)

    def tick(self, now_s: float) -> None:
        """As of the base."""
        for (worker,) in self._homes.sweep(now_s):
            self._live[worker] -= 1

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        if arrival.key is not None:
            homes = self._homes.get(arrival.key)
            if homes and homes[0] in self.up:
                return homes
        least = min(self._live[worker] for worker in self.up)
        tied = [worker for worker in self.up if self._live[worker] == least]
        names = self._names
        if names is None or len(tied) == 1:
            return tied
        key = arrival.key or f"request:{arrival.index}"
        return (max(tied, key=lambda worker: facebook_hash(f"{key}:{names[worker]}")),)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        if arrival.key is None:
            return
        for home in self._homes.get(arrival.key):
            self._live[home] -= 1
        self._live[worker] += 1
        self._homes.put(arrival.key, (worker,), now_s)


def policy(flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Policy:
    """The policy of servers that have no role."""
    return _named(flags.word("policy"), flags, workers, draw, names)


def paired(name: str, flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Policy:
    """The policy `name` of the servers of a role, of which only `cache_aware` counts requests in flight."""
    made = _named(name, flags, workers, draw, names)
    if isinstance(made, PowerOfTwo):
        made.counts = False
    return made


def _named(name: str, flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Policy:
    if name == "cache_aware":
        return CacheAware(workers, draw, flags)
    if name == "consistent_hash":
        return ConsistentHash(workers, draw, names)
    if name == "sticky_least_loaded":
        return StickyLeastLoaded(workers, draw, names)
    if name == "power_of_two":
        return PowerOfTwo(workers, draw)
    return InTurn(workers, draw) if name == "round_robin" else AtRandom(workers, draw)


SYSTEM = RouterSystem(
    version="0.1.17",
    flags=FLAGS,
    policy=policy,
    paired=paired,
    key_headers=(
        "x-session-id",
        "x-user-id",
        "x-tenant-id",
        "x-correlation-id",
        "x-request-id",
        "x-trace-id",
    ),
    holds_prefill=False,
    reads_characters=False,
    unmodelled=UNMODELLED,
    breaks=True,
)
