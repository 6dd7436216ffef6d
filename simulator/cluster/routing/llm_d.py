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
    context-length     by the range of lengths that a label of the worker names, d tokens wide: with a prompt inside, h tokens
                       below its end, 0.3 + 0.7 (0.7 / (1 + d / 10,000) + 0.3 h / d); with one x tokens outside
                       0.3 / (1 + x / 1,000); without a label 0.5
    precise-prefix     share of the prompt's blocks, from the first on, that the worker's engine has said it holds

Filters come before: `context-length-aware` with `enable_filtering` leaves out workers whose range does not hold the prompt (429
where none is left), `prefix-cache-affinity-filter` all but those with `affinity_threshold` of the text or more, if there are any
and but for one request in 1 / `exploration_probability`, `utilization-detector` those with `queue_depth_threshold` waiting
requests or `kv_cache_util_threshold` of the cache used, or (1 + `headroom`) times as much, unless all are.

Before prefill and decode servers the decode server is chosen first, by the same scorers, then a decider says whether the prompt
is computed elsewhere: `always-disagg-pd-decider`, or `prefix-based-pd-decider` if the prompt has at least `non_cached_tokens` and
so many are in no block that the decode server was sent before (0, the default: never).

w, r, u and adapters are those of the last scrape; prefixes, tokens and n change with each decision. So requests that come within
one scrape go where the same numbers send them, unless the picker's own counts tell them apart.

Sources: `llm-d/llm-d-inference-scheduler` @ 520af478, `pkg/epp/framework/plugins`, `pkg/epp/scheduling/scheduler_profile.go` and
`pkg/epp/config/loader/defaults.go` (read, not run; 2026-05). Without predicted latencies the TTFT gate of the affinity filter
compares equal numbers, and never opens.
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
from simulator.cluster.routing.kv_index import KvIndex
from simulator.cluster.routing.policy import Arrival, LoadPolicy
from simulator.cluster.routing.system import Flag, Flags, RouterSystem, Value

FloatArray = NDArray[np.float64]

CHARACTERS = 4
"""Characters that the picker takes for a token (datasheet: `averageCharactersPerToken`)."""
ANSWER_SHARE = 1.5
"""Tokens of an answer that it expects for each of the prompt (datasheet)."""
LONGEST_USED = 1024
"""Workers of which it knows when they were last given a text that nobody had (datasheet: `lruSize`)."""


OUTSIDE, WIDTH_SHARE = 0.3, 0.7
"""Most that a range gives a prompt outside of it, and the part of its value inside that goes by its width (datasheet)."""
WIDE_TOKENS, FAR_TOKENS, UNLABELLED = 10_000.0, 1_000.0, 0.5
"""Width and distance that halve these values, and the value of a worker without a range (datasheet)."""
AFFINITY, UTILIZATION, RANGES = "prefix-cache-affinity-filter", "utilization-detector", "context-length-aware"
PRECISE = "precise-prefix-cache-scorer"

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


@dataclass(frozen=True)
class Plugins(Flag):
    """A flag that lists plugins; its value is a tuple of pairs of their names and 1."""

    def checked(self, value: object, where: str) -> Value:
        """As of the base."""
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{where} is {value!r}, not a list of plugins", where=where, mend=f"such as [{AFFINITY}]")
        for name in names:
            if name in FILTERS:
                continue
            if name in REFUSED:
                raise InputError(f"`{name}` is not modelled: {REFUSED[name]}", where=where, mend=f"remove `{name}`")
            raise InputError(f"no filter `{name}`", where=where, mend=f"one of {', '.join(FILTERS)}")
        return tuple((str(name), 1.0) for name in names)


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
    Plugins("filters", ()),
    Flag("enable_filtering", False),
    Flag("affinity_threshold", 0.8, low=0.0, high=1.0),
    Flag("exploration_probability", 0.01, low=0.0, high=1.0),
    Flag("queue_depth_threshold", 5, low=1),
    Flag("kv_cache_util_threshold", 0.8, low=1e-9, high=1.0),
    Flag("headroom", 0.0, low=0.0),
    Flag("decider", PREFIX_BASED, (PREFIX_BASED, ALWAYS)),
    Flag("non_cached_tokens", 0, low=0),
)
UNMODELLED = {
    "flow_control": "its queue is not simulated; a queue at the router is `deployment.admission`",
    "saturation_detector": "its queue is not simulated; a queue at the router is `deployment.admission`",
}
READ_BY = {
    "threshold": "load-aware-scorer",
    "idle_threshold": "active-request-scorer",
    "max_busy_score": "active-request-scorer",
    "token_load_limit": "token-load-scorer",
    "enable_filtering": RANGES,
    "affinity_threshold": AFFINITY,
    "exploration_probability": AFFINITY,
    "queue_depth_threshold": UTILIZATION,
    "kv_cache_util_threshold": UTILIZATION,
    "headroom": UTILIZATION,
}
"""The plugin whose parameter a flag is."""
REFUSED = {
    "latency-scorer": "it needs predicted latencies",
    "slo-headroom-tier-filter": "it needs predicted latencies",
    "concurrency-detector": "limits of requests in flight are `deployment.admission`",
    "decode-filter": "pools say their `role`",
    "prefill-filter": "pools say their `role`",
    "encode-filter": "pools say their `role`",
    "by-label": "servers have no labels but their pool's `role`, `prompt_tokens` and `context_length_range`",
    "label-selector-filter": "servers have no labels but their pool's `role`, `prompt_tokens` and `context_length_range`",
}
FILTERS = (AFFINITY, UTILIZATION, RANGES)
"""Filters by their names as plugins; that by ranges is `enable_filtering` of the scorer too."""


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
        filters = {name for name, _ in flags.weights("filters")}
        scraped = UTILIZATION in filters or bool(SCRAPED & self.weights.keys())
        self.polls_s = flags.number("refresh_metrics_interval_ms") / 1e3 if scraped else 0.0
        self.filters = RANGES in filters or (flags.on("enable_filtering") and RANGES in self.weights)
        self.reads_ranges = self.filters or RANGES in self.weights
        self._sticks, self._spares = AFFINITY in filters, UTILIZATION in filters
        self._sticky_share, self._explores = flags.number("affinity_threshold"), flags.number("exploration_probability")
        room = 1.0 + flags.number("headroom")
        self._most_waiting, self._most_used = (
            flags.number(name) * room for name in ("queue_depth_threshold", "kv_cache_util_threshold")
        )
        self._ranges: Series[tuple[int, int] | None] = [None] * workers
        self._among: Series[int] = self.up  # those that the filters leave
        self.reads_adapters = "lora-affinity-scorer" in self.weights
        self.follows_events = PRECISE in self.weights
        self.filters_by_events = not self._sticks
        approximate = not self.follows_events and (self._sticks or "no-hit-lru-scorer" in self.weights)
        self.reads_text = approximate or "prefix-cache-scorer" in self.weights
        self._threshold, self._token_limit = flags.number("threshold"), flags.number("token_load_limit")
        self._idle, self._busy_score = flags.number("idle_threshold"), flags.number("max_busy_score")
        block = int(flags.number("block_size_tokens")) * CHARACTERS
        capacity, most = int(flags.number("lru_capacity_per_server")), int(flags.number("max_prefix_blocks_to_match"))
        self.index = TextIndex(workers, block, capacity, most)
        self.held = KvIndex(workers) if self.follows_events else None
        if self.follows_events:
            self.block_tokens, self.hears_first_tokens = block // CHARACTERS, True
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

    def set_up(self, workers: Series[int]) -> None:
        """As of the base."""
        super().set_up(workers)
        self._among = self.up

    def told_ranges(self, ranges: Series[tuple[int, int] | None]) -> None:
        """As of the base."""
        self._ranges = ranges

    def stored(self, worker: int, parent: int | None, blocks: Series[int]) -> None:
        """As of the base."""
        assert self.held is not None
        self.held.store(worker, parent, blocks)

    def removed(self, worker: int, block: int) -> None:
        """As of the base."""
        assert self.held is not None
        self.held.remove(worker, (block,))

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
        """Share of the text that each worker was sent before."""
        names = self._blocks(arrival)
        found = np.array(self.index.matched(names), float)[self._among]
        return found / len(names) if names else found

    def precise(self, arrival: Arrival) -> FloatArray:
        """Share of the prompt's full blocks that the engine of each worker has said it holds, from the first on."""
        assert self.held is not None
        found = self.held.leading(arrival.blocks)[self._among].astype(float)
        share: FloatArray = found / max(len(arrival.blocks) + arrival.private_blocks, 1)
        return share

    def known(self, arrival: Arrival) -> FloatArray:
        """Share of a prompt that each worker has, by the index that there is."""
        return self.precise(arrival) if self.held is not None else self.matched(arrival)

    def takes(self, arrival: Arrival, worker: int) -> bool:
        """As of the base: by the range that its label names."""
        span = self._ranges[worker]
        return span is None or span[0] <= arrival.length // CHARACTERS <= span[1]

    def filtered(self, arrival: Arrival, *, explores: bool = False) -> Series[int]:
        """The workers that are up and that the filters leave; `explores`: that by affinity passes all."""
        found: Series[int] = self.up
        if self.filters:
            found = [worker for worker in found if self.takes(arrival, worker)] or found
        if self._sticks and len(found) > 1 and self._sticky_share > 0 and not explores:
            self._among = found
            shares = self.known(arrival).tolist()
            found = [worker for worker, share in zip(found, shares, strict=True) if share >= self._sticky_share] or found
        if self._spares:
            waiting, used = self.waiting, self.used
            spare = [w for w in found if waiting[w] < self._most_waiting and used[w] < self._most_used]
            found = spare or found
        return found

    def scores(self, arrival: Arrival) -> FloatArray:
        """The score of each worker that the filters have left."""
        total = np.zeros(len(self._among))
        for name, weight in self.weights.items():
            total += weight * np.clip(SCORERS[name](self, arrival), 0.0, 1.0)
        return total

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base."""
        self._among = self.filtered(arrival)
        return self._picked(arrival)

    def _picked(self, arrival: Arrival) -> Series[int]:
        """Whom the picker may choose of those that the filters have left."""
        if self._picker == "random-picker":
            return self._among
        scores = self.scores(arrival)
        least = scores.max() if self._picker == "max-score-picker" else np.nextafter(0.0, 1.0)
        found = [worker for worker, score in zip(self._among, scores.tolist(), strict=True) if score >= least]
        return found or self._among

    def choose(self, arrival: Arrival, now_s: float) -> int:
        """As of the base; by weights where the picker does so."""
        self._among = self.filtered(arrival, explores=self._sticks and self.draw.random() < self._explores)
        if self._picker != "weighted-random-picker":
            allowed = self._picked(arrival)
            worker = allowed[0] if len(allowed) == 1 else allowed[self.draw.randrange(len(allowed))]
        else:
            scores = self.scores(arrival)
            worker = self.draw.choices(self._among, scores.tolist())[0] if scores.sum() else self.draw.choice(self._among)
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
            if self.held is None and not any(self.index.matched(names[:1])):
                self._used_cold(worker)
            self.index.insert(names, worker)
        if self.held is not None and not self.held.leading(arrival.blocks).any():
            self._used_cold(worker)
        if arrival.key is not None:
            self._last[arrival.key] = worker
        super().sent(arrival, worker, now_s)

    def _used_cold(self, worker: int) -> None:
        """A worker gets a text that nobody had."""
        self._cold[worker] = None
        self._cold.move_to_end(worker)
        if len(self._cold) > LONGEST_USED:
            self._cold.popitem(last=False)

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
        if self.held is not None:
            self.held.forget(worker)

    # -- scorers --------------------------------------------------------------------------------------------

    def queue(self, arrival: Arrival) -> FloatArray:
        """Few requests that wait, between the most and the least."""
        return _between(self.waiting[self._among])

    def running_requests(self, arrival: Arrival) -> FloatArray:
        """Few requests that run, likewise."""
        return _between(self.running[self._among])

    def kv_utilization(self, arrival: Arrival) -> FloatArray:
        """An empty KV cache."""
        free_share: FloatArray = 1.0 - self.used[self._among]
        return free_share

    def load_aware(self, arrival: Arrival) -> FloatArray:
        """Few requests that wait, by a threshold."""
        share: FloatArray = 0.5 * (1.0 - np.minimum(self.waiting[self._among], self._threshold) / self._threshold)
        return share

    def active_requests(self, arrival: Arrival) -> FloatArray:
        """Few requests in flight."""
        flying = np.array(self.loads.of, float)[self._among]
        most = max(flying.max(), 1.0)
        return np.where(flying <= self._idle, 1.0, (most - flying) / most * self._busy_score)

    def token_load(self, arrival: Arrival) -> FloatArray:
        """Few tokens in flight."""
        share: FloatArray = 1.0 - np.minimum(self._tokens[self._among], self._token_limit) / self._token_limit
        return share

    def no_hit_lru(self, arrival: Arrival) -> FloatArray:
        """For a text that nobody has: workers that were not used so, in order, then those used longest ago."""
        among = self._among
        if self.known(arrival).any():
            return np.full(len(among), 0.5)
        order = [worker for worker in among if worker not in self._cold] + [w for w in self._cold if w in among]
        place = {worker: rank for rank, worker in enumerate(order)}
        last = max(len(among) - 1, 1)
        return np.array([max(1.0 - place[worker] / last, 0.0) for worker in among])

    def session_affinity(self, arrival: Arrival) -> FloatArray:
        """The worker that served the session."""
        last = self._last.get(arrival.key) if arrival.key is not None else None
        return np.array([float(worker == last) for worker in self._among])

    def context_length(self, arrival: Arrival) -> FloatArray:
        """A narrow range that holds the prompt, with room above it."""
        return np.array([_in_range(arrival.length // CHARACTERS, self._ranges[worker]) for worker in self._among])

    def lora_affinity(self, arrival: Arrival) -> FloatArray:
        """The adapter is there, or may come."""
        found = []
        for worker in self._among:
            running, waiting = (each[worker] for each in self._adapters)
            room = len(running) + len(waiting) < self._places
            found.append(1.0 if arrival.adapter in running else 0.8 if room else 0.6 if arrival.adapter in waiting else 0.0)
        return np.array(found)


def _tokens(arrival: Arrival) -> float:
    return arrival.length / CHARACTERS * (1.0 + ANSWER_SHARE)


def _in_range(tokens: int, span: tuple[int, int] | None) -> float:
    """How well a range of lengths suits a prompt."""
    if span is None:
        return UNLABELLED
    low, high = span
    if not low <= tokens <= high:
        return OUTSIDE / (1.0 + max(low - tokens, tokens - high) / FAR_TOKENS)
    if low == high:
        return 1.0
    width = high - low
    value = WIDTH_SHARE / (1.0 + width / WIDE_TOKENS) + (1.0 - WIDTH_SHARE) * (high - tokens) / width
    return OUTSIDE + value * (1.0 - OUTSIDE)


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
    RANGES: Scored.context_length,
    PRECISE: Scored.precise,
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
    blocks_by="block_size_tokens",
    events_off=("scorers", "use prefix-cache-scorer, which goes by the texts that it has sent"),
    unmodelled=UNMODELLED,
    read_by=READ_BY,
)
