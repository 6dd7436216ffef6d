"""llm-d's endpoint picker (v0.8, that of the Gateway API inference extension too): weighted scorers, then a picker.

A worker's score is the sum of weight times value over the scorers, each value between 0 and 1. Of w requests that wait at it, r
that run, a share u of its KV cache, and n requests that the picker itself has in flight there:

    queue, running     (max - w) / (max - min) over the workers, 1 where all are equal
    kv-utilization     1 - u
    load-aware         0.5 (1 - min(w, threshold) / threshold)
    active-request     1 up to `idle_threshold`, else (max - n) / max of `max_busy_score`
    token-load         1 - min(tokens in flight, limit) / limit, answers taken as one and a half prompts
    prefix-cache       share of the blocks of the text that the worker was sent before
    no-hit-lru         spreads texts that nobody has over the workers that were used longest ago
    session-affinity   1 for the worker that served the session last
    lora-affinity      1 where requests of the adapter run, 0.8 where a place is free, 0.6 where some wait, else 0

Before prefill and decode servers the decode server is chosen first, by the same scorers, then a decider says whether the prompt
is computed elsewhere: `always-disagg-pd-decider`, or `prefix-based-pd-decider` if the prompt has at least `non_cached_tokens` and
so many are in no block that the decode server was sent before (0, the default: never).

w, r, u and adapters are those of the last scrape; prefixes, tokens and n change with each decision. So requests that come within
one scrape go where the same numbers send them, unless the picker's own counts tell them apart.

Sources: `llm-d/llm-d-inference-scheduler` @ 520af478, `pkg/epp/framework/plugins` and `pkg/epp/config/loader/defaults.go` (read,
not run; 2026-05).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Series
from itertools import count
from random import Random

import numpy as np
from numpy.typing import NDArray

from engine_models.parts.block_names import ChainKeys
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.records import dataclass
from simulator.cluster.routing.policy import Arrival, LoadPolicy
from simulator.cluster.routing.system import Flag, Flags, RouterSystem, Value

FloatArray = NDArray[np.float64]

CHARACTERS = 4
"""Characters that the picker takes for a token (datasheet: `averageCharactersPerToken`)."""
ANSWER_SHARE = 1.5
"""Tokens of an answer that it expects for each of the prompt (datasheet)."""
LONGEST_USED = 1024
"""Workers of which it knows when they were last given a text that nobody had (datasheet: `lruSize`)."""


PREFIX_BASED, ALWAYS = "prefix-based-pd-decider", "always-disagg-pd-decider"


@dataclass(frozen=True)
class Weights(Flag):
    """A flag that maps plugins to weights; its value is a tuple of pairs, so that it can be compared."""

    def checked(self, value: object, where: str) -> Value:
        """As of the base."""
        if isinstance(value, tuple):
            value = dict(value)
        if not isinstance(value, Mapping) or not value:
            raise InputError(f"{where} is {value!r}, not plugins with weights", where=where, mend="such as {queue-scorer: 2}")
        for name, weight in value.items():
            if name in REFUSED:
                raise InputError(f"`{name}` is not modelled: {REFUSED[name]}", where=where, mend=f"remove `{name}`")
            if name not in SCORERS:
                close = nearest(str(name), list(SCORERS))
                raise InputError(
                    f"no scorer `{name}`" + (f"; did you mean `{close}`?" if close else ""),
                    where=where,
                    mend=f"one of {', '.join(SCORERS)}",
                )
            right = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not right or not 0 <= weight < float("inf"):
                raise InputError(f"the weight of {name} is {weight!r}", where=where, mend="give a number of at least 0")
        return tuple((str(name), float(weight)) for name, weight in value.items())


FLAGS = (
    Flag("picker", "max-score-picker", ("max-score-picker", "weighted-random-picker", "random-picker")),
    Weights("scorers", (("queue-scorer", 2.0), ("kv-cache-utilization-scorer", 2.0), ("prefix-cache-scorer", 3.0))),
    Flag("refresh_metrics_interval_ms", 50.0, low=1.0),
    Flag("auto_tune", True),
    Flag("block_size_tokens", 16, low=1),
    Flag("lru_capacity_per_server", 31_250, low=1),
    Flag("max_prefix_blocks_to_match", 256, low=1),
    Flag("threshold", 128, low=1),
    Flag("idle_threshold", 0, low=0),
    Flag("max_busy_score", 1.0, low=0.0, high=1.0),
    Flag("token_load_limit", 4_194_304, low=1),
    Flag("decider", PREFIX_BASED, (PREFIX_BASED, ALWAYS)),
    Flag("non_cached_tokens", 0, low=0),
)
UNMODELLED = {
    "filters": "endpoints are left out by predicted latencies, which are not simulated",
    "flow_control": "its queue is not simulated; a queue at the router is `deployment.admission`",
    "saturation_detector": "its queue is not simulated; a queue at the router is `deployment.admission`",
}
REFUSED = {
    "precise-prefix-cache-scorer": "it follows the engines' events, as system: dynamo does here",
    "latency-scorer": "it needs predicted latencies",
    "context-length-aware": "workers have no labels of lengths; pools have `prompt_tokens`",
}


class TextIndex:
    """Which worker was sent which blocks of text, each as many as it may know, used longest ago forgotten first.

    capacities : blocks of each worker.
    """

    def __init__(self, workers: int, block_units: int, blocks: int, most_blocks: int) -> None:
        self._size, self._most = block_units, most_blocks
        self.capacities: Series[int] = [blocks] * workers
        self._chain = ChainKeys(block_units)
        self._ends: dict[tuple[object, ...], int] = {}  # last blocks that are not full, by all before and the rest
        self._alone = count(-1, -1)  # names of blocks that no other text has
        self._of: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(workers)]
        self._with: dict[int, set[int]] = {}

    def blocks(self, arrival: Arrival) -> list[int]:
        """Names of the blocks of a text; a text shorter than one has none, the last counts though it is not full."""
        size = self._size
        if arrival.length < size:
            return []
        wanted = min(-(-arrival.length // size), self._most)
        shared = [run for run in arrival.runs if run[0] >= 0]
        units = sum(length for _, _, length in shared)
        names = self._chain.keys(tuple(shared), min(units // size, wanted))
        if units == arrival.length and units % size and len(names) == wanted - 1:
            end = (names[-1], _tail(shared, units % size))
            names.append(self._ends.setdefault(end, next(self._alone)))
        names += [next(self._alone) for _ in range(wanted - len(names))]
        return names

    def matched(self, names: Series[int]) -> list[int]:
        """How many of these blocks each worker has, up to the first that none has."""
        found = [0] * len(self._of)
        for name in names:
            workers = self._with.get(name)
            if not workers:
                break
            for worker in workers:
                found[worker] += 1
        return found

    def insert(self, names: Series[int], worker: int) -> None:
        """A worker is sent a text."""
        mine, capacity = self._of[worker], self.capacities[worker]
        for name in names:
            if name in mine:
                mine.move_to_end(name)
                continue
            mine[name] = None
            self._with.setdefault(name, set()).add(worker)
            if len(mine) > capacity:
                self._drop(mine.popitem(last=False)[0], worker)

    def _drop(self, name: int, worker: int) -> None:
        workers = self._with[name]
        workers.discard(worker)
        if not workers:
            del self._with[name]

    def forget(self, worker: int) -> None:
        """A worker begins anew."""
        for name in self._of[worker]:
            self._drop(name, worker)
        self._of[worker].clear()


def _tail(runs: Series[tuple[int, int, int]], units: int) -> tuple[tuple[int, int, int], ...]:
    """The last units of a text."""
    found: list[tuple[int, int, int]] = []
    for segment, offset, length in reversed(runs):
        taken = min(units, length)
        found.append((segment, offset + length - taken, taken))
        units -= taken
        if not units:
            break
    return tuple(found)


class Scored(LoadPolicy):
    """The scorers above over the workers that are up, and a picker."""

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw)
        self.reads_key = True
        self.weights = dict(flags.weights("scorers"))
        self._picker = flags.word("picker")
        self.polls_s = flags.number("refresh_metrics_interval_ms") / 1e3 if SCRAPED & self.weights.keys() else 0.0
        self.reads_adapters = "lora-affinity-scorer" in self.weights
        self.reads_text = not {"prefix-cache-scorer", "no-hit-lru-scorer"}.isdisjoint(self.weights)
        self._threshold, self._token_limit = flags.number("threshold"), flags.number("token_load_limit")
        self._idle, self._busy_score = flags.number("idle_threshold"), flags.number("max_busy_score")
        block = int(flags.number("block_size_tokens")) * CHARACTERS
        capacity, most = int(flags.number("lru_capacity_per_server")), int(flags.number("max_prefix_blocks_to_match"))
        self.index = TextIndex(workers, block, capacity, most)
        self.decides = self.apart = False  # whether it says, and whether the prompt chosen for last is computed elsewhere
        self._always, self._least_tokens = flags.word("decider") == ALWAYS, flags.number("non_cached_tokens")
        self._block_tokens = block // CHARACTERS
        self.waiting, self.running, self.used = (np.zeros(workers) for _ in range(3))
        self._adapters: tuple[Series[set[int]], Series[set[int]]] = ([set()] * workers, [set()] * workers)
        self._places = 0
        self._tokens = np.zeros(workers)
        self._last: dict[str, int] = {}  # worker of each session
        self._cold: OrderedDict[int, None] = OrderedDict()  # workers, the one given a text that nobody had longest ago first
        self._names: tuple[int, list[int]] = (-1, [])

    def saw(self, waiting: Series[int], running: Series[int], used: Series[float]) -> None:
        """As of the base."""
        self.waiting, self.running, self.used = (np.array(each, float) for each in (waiting, running, used))

    def told_blocks(self, blocks: Series[int]) -> None:
        """As of the base."""
        self.index.capacities = blocks

    def saw_adapters(self, running: Series[set[int]], waiting: Series[set[int]], places: int) -> None:
        """As of the base."""
        self._adapters, self._places = (running, waiting), places

    def _blocks(self, arrival: Arrival) -> list[int]:
        if self._names[0] != arrival.index:
            self._names = arrival.index, self.index.blocks(arrival)
        return self._names[1]

    def matched(self, arrival: Arrival) -> FloatArray:
        """Share of the text that each worker that is up was sent before."""
        names = self._blocks(arrival)
        found = np.array(self.index.matched(names), float)[self.up]
        return found / len(names) if names else found

    def scores(self, arrival: Arrival) -> FloatArray:
        """The score of each worker that is up."""
        total = np.zeros(len(self.up))
        for name, weight in self.weights.items():
            total += weight * np.clip(SCORERS[name](self, arrival), 0.0, 1.0)
        return total

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        if self._picker == "random-picker":
            return self.up
        scores = self.scores(arrival)
        least = scores.max() if self._picker == "max-score-picker" else np.nextafter(0.0, 1.0)
        found = [worker for worker, score in zip(self.up, scores.tolist(), strict=True) if score >= least]
        return found or self.up

    def choose(self, arrival: Arrival, now_s: float) -> int:
        """As of the base; by weights where the picker does so."""
        if self._picker != "weighted-random-picker":
            worker = super().choose(arrival, now_s)
        else:
            scores = self.scores(arrival)
            worker = self.draw.choices(self.up, scores.tolist())[0] if scores.sum() else self.draw.choice(self.up)
        if self.decides:
            self.apart = self._always or self.lacks(arrival, worker)
        return worker

    def lacks(self, arrival: Arrival, worker: int) -> bool:
        """Whether so much of a text is new to a worker that another should compute it."""
        tokens = arrival.length // CHARACTERS
        known = self.index.matched(self._blocks(arrival))[worker] * self._block_tokens if self.reads_text else 0
        return 0 < self._least_tokens <= min(tokens, tokens - known)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        if self.reads_text:
            names = self._blocks(arrival)
            if not any(self.index.matched(names[:1])):
                self._cold[worker] = None
                self._cold.move_to_end(worker)
                if len(self._cold) > LONGEST_USED:
                    self._cold.popitem(last=False)
            self.index.insert(names, worker)
        if arrival.key is not None:
            self._last[arrival.key] = worker
        super().sent(arrival, worker, now_s)

    def loaded(self, arrival: Arrival, worker: int) -> None:
        """As of the base."""
        self._tokens[worker] += _tokens(arrival)
        super().loaded(arrival, worker)

    def ended(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        self._tokens[worker] -= _tokens(arrival)
        super().ended(arrival, worker, now_s)

    def forget(self, worker: int) -> None:
        """As of the base."""
        self.index.forget(worker)

    # -- scorers --------------------------------------------------------------------------------------------

    def queue(self, arrival: Arrival) -> FloatArray:
        """Few requests that wait, between the most and the least."""
        return _between(self.waiting[self.up])

    def running_requests(self, arrival: Arrival) -> FloatArray:
        """Few requests that run, likewise."""
        return _between(self.running[self.up])

    def kv_utilization(self, arrival: Arrival) -> FloatArray:
        """An empty KV cache."""
        free_share: FloatArray = 1.0 - self.used[self.up]
        return free_share

    def load_aware(self, arrival: Arrival) -> FloatArray:
        """Few requests that wait, by a threshold."""
        share: FloatArray = 0.5 * (1.0 - np.minimum(self.waiting[self.up], self._threshold) / self._threshold)
        return share

    def active_requests(self, arrival: Arrival) -> FloatArray:
        """Few requests in flight."""
        flying = np.array(self.loads.of, float)[self.up]
        most = max(flying.max(), 1.0)
        return np.where(flying <= self._idle, 1.0, (most - flying) / most * self._busy_score)

    def token_load(self, arrival: Arrival) -> FloatArray:
        """Few tokens in flight."""
        share: FloatArray = 1.0 - np.minimum(self._tokens[self.up], self._token_limit) / self._token_limit
        return share

    def no_hit_lru(self, arrival: Arrival) -> FloatArray:
        """For a text that nobody has: workers that were not used so, in order, then those used longest ago."""
        if self.matched(arrival).any():
            return np.full(len(self.up), 0.5)
        order = [worker for worker in self.up if worker not in self._cold] + [w for w in self._cold if w in self.up]
        place = {worker: rank for rank, worker in enumerate(order)}
        last = max(len(self.up) - 1, 1)
        return np.array([max(1.0 - place[worker] / last, 0.0) for worker in self.up])

    def session_affinity(self, arrival: Arrival) -> FloatArray:
        """The worker that served the session."""
        last = self._last.get(arrival.key) if arrival.key is not None else None
        return np.array([float(worker == last) for worker in self.up])


    def lora_affinity(self, arrival: Arrival) -> FloatArray:
        """The adapter is there, or may come."""
        found = []
        for worker in self.up:
            running, waiting = (each[worker] for each in self._adapters)
            room = len(running) + len(waiting) < self._places
            found.append(1.0 if arrival.adapter in running else 0.8 if room else 0.6 if arrival.adapter in waiting else 0.0)
        return np.array(found)


def _tokens(arrival: Arrival) -> float:
    return arrival.length / CHARACTERS * (1.0 + ANSWER_SHARE)


def _between(values: FloatArray) -> FloatArray:
    """1 for the least, 0 for the most; 1 for all where they are equal."""
    apart = values.max() - values.min()
    return (values.max() - values) / apart if apart else np.ones_like(values)


SCORERS: Mapping[str, Callable[[Scored, Arrival], FloatArray]] = {
    "queue-scorer": Scored.queue,
    "running-requests-size-scorer": Scored.running_requests,
    "kv-cache-utilization-scorer": Scored.kv_utilization,
    "prefix-cache-scorer": Scored.matched,
    "load-aware-scorer": Scored.load_aware,
    "active-request-scorer": Scored.active_requests,
    "token-load-scorer": Scored.token_load,
    "no-hit-lru-scorer": Scored.no_hit_lru,
    "session-affinity-scorer": Scored.session_affinity,
    "lora-affinity-scorer": Scored.lora_affinity,
}
"""Scorers by their names as plugins."""
SCRAPED = frozenset(
    {"queue-scorer", "running-requests-size-scorer", "kv-cache-utilization-scorer", "load-aware-scorer", "lora-affinity-scorer"}
)
"""Those that go by the servers' metrics."""


def policy(flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Scored:
    """The policy of servers that have no role."""
    return Scored(workers, draw, flags)


def paired(name: str, flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Scored:
    """The policy of the servers of a role."""
    return Scored(workers, draw, flags)


SYSTEM = RouterSystem(
    version="0.8.0",
    flags=FLAGS,
    policy=policy,
    paired=paired,
    policy_flag="picker",
    holds_prefill=False,
    decides=True,
    key_headers=("x-session-token",),
    tuned={
        "block_size_tokens": lambda limits: limits.block_tokens,
        "lru_capacity_per_server": lambda limits: limits.kv_blocks,
    },
    tuned_by="auto_tune",
    tuned_each="lru_capacity_per_server",
    unmodelled=UNMODELLED,
)
