"""Dynamo's planner.

Source: `dynamo/planner/{config,core}` of `ai-dynamo` 1.6.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Series
from typing import Literal

from hardware_profiles.records import dataclass
from simulator.cluster.scaling.scaler import Autoscaler, Counts, JointScaler, Reading, Seen

LOAD_S = 5.0
"""Time between two decisions by load [s] (datasheet: `load_adjustment_interval`)."""
MOST_AT_ONCE = 8
"""Replicas by which one decision may change a count (datasheet)."""
SENSITIVITY_SHARE = 0.8
"""Share of an SLA below which estimates have to be before a replica goes (datasheet)."""


@dataclass(frozen=True)
class Thresholds:
    """Loads of a worker above which replicas are added (`at_more`: from which on), and below which one is removed.

    With `idle_only` one is removed at no load alone.
    """

    more: float
    less: float
    at_more: bool = False
    idle_only: bool = False

    def wants_more(self, load: float) -> bool:
        """Whether a worker's load adds a replica."""
        return load >= self.more if self.at_more else load > self.more

    def wants_less(self, load: float) -> bool:
        """Whether a worker's load lets one go."""
        return load == 0.0 if self.idle_only else load < self.less


Side = Literal["prefill", "decode"]
SIDES: tuple[Side, Side] = ("prefill", "decode")
EASY: dict[tuple[str, Side], Thresholds] = {
    ("throughput", "prefill"): Thresholds(1.0, 0.1, at_more=True),
    ("throughput", "decode"): Thresholds(1.0, 0.6),
    ("latency", "prefill"): Thresholds(0.1, 0.0, at_more=True, idle_only=True),
    ("latency", "decode"): Thresholds(0.4, 0.1),
}
"""By optimization target and kind of worker (datasheet)."""


def by_thresholds(loads: Series[float], count: int, rules: Thresholds) -> int:
    """One replica more if any worker asks for it, one less if all agree and the busiest then would not ask for one back."""
    if any(rules.wants_more(load) for load in loads):
        return count + 1
    may = count > 1 and bool(loads) and all(rules.wants_less(load) for load in loads)
    return count - 1 if may and stays_below(loads, count, rules) else count


def stays_below(loads: Series[float], count: int, rules: Thresholds) -> bool:
    """Whether the busiest worker stays below the threshold when its load is spread over one worker less."""
    return not rules.wants_more(max(loads) * count / (count - 1))


def by_estimates(estimates_ms: Series[float], with_one_less_ms: Series[float], count: int, sla_ms: float) -> int:
    """One replica more if the latency that is estimated of every worker exceeds the SLA, one less if it then stays well below."""
    if all(each > sla_ms for each in estimates_ms):
        return count + 1
    less = count > 1 and all(each < sla_ms * SENSITIVITY_SHARE for each in with_one_less_ms)
    return count - 1 if less else count


def by_rate(requests_per_s: float, engine_requests_per_s: float) -> int:
    """Replicas that carry a rate."""
    return math.ceil(requests_per_s / engine_requests_per_s)


def near(wanted: int, current: int) -> int:
    """A count that is not too far from the present one."""
    return min(max(wanted, current - MOST_AT_ONCE), current + MOST_AT_ONCE)


def within_budget(wanted: int, each: int, least_gpus: int, most_gpus: int, min_endpoint: int) -> int:
    """Replicas of `each` GPUs within bounds of all GPUs (-1 for none); the lower bound gives way by the GPUs of one."""
    need = wanted * each
    if most_gpus >= 0 and need > most_gpus:
        fits = most_gpus // each
        return max(min_endpoint, fits) if fits >= min_endpoint else 0
    slack = each if most_gpus >= 0 else 0
    if least_gpus >= 0 and need < least_gpus - slack:
        return max(min_endpoint, math.ceil(least_gpus / each))
    return wanted


def pair_within_budget(
    wanted: tuple[int, int], each: tuple[int, int], least_gpus: int, most_gpus: int, min_endpoint: int
) -> tuple[int, int]:
    """The same of prefill and decode replicas, which share the bounds: both are scaled alike, decode gets what remains."""
    (prefill, decode), (prefill_gpus, decode_gpus) = wanted, each
    need = prefill * prefill_gpus + decode * decode_gpus
    if most_gpus >= 0 and need > most_gpus:
        if min_endpoint * (prefill_gpus + decode_gpus) > most_gpus:
            return 0, 0
        room = (most_gpus - min_endpoint * decode_gpus) // prefill_gpus
        prefill = min(max(int(prefill * most_gpus / need), min_endpoint), room)
        return prefill, (most_gpus - prefill * prefill_gpus) // decode_gpus
    if least_gpus >= 0 and need < least_gpus:
        prefill = max(int(prefill * least_gpus / need), min_endpoint)
        return prefill, max(math.ceil((least_gpus - prefill * prefill_gpus) / decode_gpus), min_endpoint)
    return wanted


def load_of(reading: Reading, role: str, context_tokens: int) -> float:
    """How loaded a worker of a role is, as the thresholds count it."""
    if role == "prefill":
        return reading.queued_tokens / context_tokens
    return reading.kv_share + reading.queued_tokens / reading.kv_tokens


class Planner(Autoscaler):
    """Scaling by load, with static thresholds, of one pool.

    target : "throughput" or "latency". role : of the pool; one whose workers compute prompts and answers (mixed) is judged as a
    decode worker whose queued prompts count too. context_tokens : that a request may have. each : GPUs of a replica. least_gpus,
    most_gpus : bounds of all, -1 for none.
    """

    reads_queued_tokens = True

    def __init__(
        self,
        target: str,
        role: str,
        context_tokens: int,
        each: int,
        *,
        least_gpus: int,
        most_gpus: int,
        min_endpoint: int,
        every_s: float = LOAD_S,
    ) -> None:
        self._role, self._context_tokens = role, context_tokens
        self._rules = EASY[target, "prefill" if role == "prefill" else "decode"]
        self._each, self._bounds, self._least = each, (least_gpus, most_gpus), min_endpoint
        self.every_s = self.collect_s = every_s

    def desired(self, seen: Seen, counts: Counts, now_s: float) -> int:
        """As of the base; nothing is decided while replicas come or go."""
        count = counts.wanted
        if counts.ready == count == len(seen.readings):
            loads = [load_of(reading, self._role, self._context_tokens) for reading in seen.readings]
            count = max(near(by_thresholds(loads, count, self._rules), count), self._least)
        return within_budget(count, self._each, *self._bounds, self._least)


@dataclass(frozen=True)
class Bounds:
    """What holds the counts of a prefill and a decode pool.

    each : GPUs of a replica. least_gpus, most_gpus : bounds of all, -1 for none. min_endpoint : fewest replicas of either.
    between : fewest and most replicas of each besides, which the planner does not know.
    """

    each: tuple[int, int]
    least_gpus: int
    most_gpus: int
    min_endpoint: int
    between: Series[tuple[int, int]]

    def apply(self, now: Series[int], wanted: Series[int]) -> Series[int]:
        """Counts that are not too far from the present ones, within the budget and the bounds."""
        prefill, decode = (max(near(new, old), self.min_endpoint) for new, old in zip(wanted, now, strict=True))
        found = pair_within_budget((prefill, decode), self.each, self.least_gpus, self.most_gpus, self.min_endpoint)
        return [min(max(count, least), most) for count, (least, most) in zip(found, self.between, strict=True)]


class PairPlanner(JointScaler):
    """Scaling by load of a prefill and a decode pool, which share a budget; parameters as of `Planner`."""

    reads_queued_tokens = True

    def __init__(self, target: str, context_tokens: int, bounds: Bounds, *, every_s: float = LOAD_S) -> None:
        self._target, self._context_tokens, self._bounds = target, context_tokens, bounds
        self.every_s = self.collect_s = every_s

    def desired(self, seen: Series[Seen], counts: Series[Counts], now_s: float) -> Series[int]:
        """As of the base; nothing is decided while replicas of either pool come or go."""
        now = [count.wanted for count in counts]
        if any(not count.ready == count.wanted == len(each.readings) for count, each in zip(counts, seen, strict=True)):
            return now
        found = [self._by_load(side, each, count) for side, each, count in zip(SIDES, seen, now, strict=True)]
        return self._bounds.apply(now, found)

    def _by_load(self, side: Side, seen: Seen, count: int) -> int:
        loads = [load_of(reading, side, self._context_tokens) for reading in seen.readings]
        return by_thresholds(loads, count, EASY[self._target, side])
