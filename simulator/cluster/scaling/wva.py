"""llm-d's workload variant autoscaler, whose count an HPA follows one to one.

Source: `llm-d/llm-d-workload-variant-autoscaler` @ b08b1c7, `internal/saturation/`, and of 2026-02 `internal/engines/pipeline/`
(tokens over several variants); the queueing model, which judges each variant by itself:
`llm-d-incubation/workload-variant-autoscaler` @ 56a651b, `pkg/analyzer/{queueanalyzer,queuemodel}.go`, `pkg/core/allocation.go`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Series

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.records import dataclass
from simulator.cluster.scaling.hpa import Behaviour, by_average_value
from simulator.cluster.scaling.scaler import Autoscaler, Counts, JointScaler, Seen

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

RECONCILE_S = 15.0
"""Time between two decisions [s] (datasheet)."""


@dataclass(frozen=True)
class Saturation:
    """Flags of the analyser by the names of its config, in snake_case (datasheet)."""

    kv_cache_threshold: float = 0.80
    queue_length_threshold: float = 5.0
    kv_spare_trigger: float = 0.10
    queue_spare_trigger: float = 3.0


def by_saturation(replicas: Series[tuple[float, float]], rules: Saturation) -> int:
    """How many replicas more (1, 0, -1), by the KV usage and queue of each."""
    free = [
        (kv, queue) for kv, queue in replicas if kv < rules.kv_cache_threshold and queue < rules.queue_length_threshold
    ]
    n = len(free)
    spare_kv = sum(rules.kv_cache_threshold - kv for kv, _ in free) / n if n else 0.0
    spare_queue = sum(rules.queue_length_threshold - queue for _, queue in free) / n if n else 0.0
    if spare_kv < rules.kv_spare_trigger or spare_queue < rules.queue_spare_trigger:
        return 1
    if n < 2:
        return 0
    kv, queue = (sum(values) / n * n / (n - 1) for values in zip(*free, strict=True))
    left_kv, left_queue = rules.kv_cache_threshold - kv, rules.queue_length_threshold - queue
    return -1 if left_kv >= rules.kv_spare_trigger and left_queue >= rules.queue_spare_trigger else 0


UP_SHARE, DOWN_SHARE = 0.85, 0.70
"""Shares of the capacity that demand is to take at most and at least (datasheet)."""


def by_tokens(demand_tokens: float, supply_tokens: float, each_tokens: float, pending_tokens: float = 0.0) -> int:
    """How many replicas more: demand against the capacity of those that serve and of those that are pending."""
    required = demand_tokens / UP_SHARE - (supply_tokens + pending_tokens)
    if required > 0:
        return math.ceil(required / each_tokens)
    return -max(0, math.floor((supply_tokens - demand_tokens / DOWN_SHARE) / each_tokens))


@dataclass(frozen=True)
class ServiceLaw:
    """Times of a replica [ms]: a decode step of n rows takes ``alpha + beta n``, a prompt ``gamma + delta tokens n``."""

    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    delta_ms: float


QUEUE_PER_ROW = 10
"""Requests that may wait for each row of the batch (datasheet)."""
CLOSE = 1e-6
"""Relative width of the interval at which the search for a rate ends."""


@dataclass(frozen=True)
class QueueModel:
    """A single queue whose service rate depends on the number in service, `rows` at most."""

    law: ServiceLaw
    rows: int
    prompt_tokens: float
    output_tokens: float

    def _busy_ms(self, rows: IntArray) -> FloatArray:
        """Time that a request takes beside so many rows, itself among them."""
        law = self.law
        prefill_ms = law.gamma_ms + law.delta_ms * self.prompt_tokens * rows
        busy_ms: FloatArray = prefill_ms + (self.output_tokens - 1) * (law.alpha_ms + law.beta_ms * rows)
        return busy_ms

    def rate_per_ms(self, rows: int) -> float:
        """Requests that so many rows serve a millisecond."""
        return rows / float(self._busy_ms(np.array([rows]))[0])

    def latencies_ms(self, per_ms: float) -> tuple[float, float]:
        """Mean TTFT and ITL at a rate of arrivals [1/ms]."""
        n, law = self.rows, self.law
        held = np.arange(1 + n + QUEUE_PER_ROW * n)
        rows = np.minimum(held, n)
        rates = rows[1:] / self._busy_ms(rows[1:])
        ways = np.concatenate([[0.0], np.cumsum(np.log(per_ms / rates))])  # logarithms: products of thousands overflow
        shares = np.exp(ways - ways.max())
        shares /= shares.sum()
        served, inside = float((shares * rows).sum()), float((shares * held).sum())
        through = per_ms * (1.0 - float(shares[-1]))
        wait_ms, service_ms = (inside - served) / through, served / through
        steps = self.output_tokens - 1
        fixed, growing = law.gamma_ms + law.alpha_ms * steps, law.delta_ms * self.prompt_tokens + law.beta_ms * steps
        effective_rows = min(max((service_ms - fixed) / growing, 0.0), n)
        ttft_ms = wait_ms + law.gamma_ms + law.delta_ms * self.prompt_tokens * effective_rows
        return ttft_ms, law.alpha_ms + law.beta_ms * effective_rows

    def most_per_s(self, ttft_ms: float, itl_ms: float) -> float:
        """The highest rate at which both targets are met [1/s]."""
        low, high = 0.001 * self.rate_per_ms(1), 0.999 * self.rate_per_ms(self.rows)
        by_ttft = _search(low, high, lambda rate: self.latencies_ms(rate)[0] <= ttft_ms)
        by_itl = _search(low, high, lambda rate: self.latencies_ms(rate)[1] <= itl_ms)
        return min(by_ttft, by_itl) * 1e3


def _search(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """The highest rate that holds."""
    if holds(high):
        return high
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Targets:
    """What the queueing model is to keep: a law of service, rows of a replica, mean TTFT and ITL [ms]."""

    law: ServiceLaw
    rows: int
    ttft_ms: float
    itl_ms: float


RATE_S = 60.0
"""Time over which arrivals are averaged [s] (assumed: ``rate(...[1m])`` of the metrics)."""


class Wva(Autoscaler):
    """One variant, and the HPA that follows it.

    It goes by the queueing model where `targets` are given, by tokens in demand (`by_demand`), or by saturated replicas.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        rules: Saturation,
        *,
        by_demand: bool = False,
        targets: Targets | None = None,
        tolerance: float,
    ) -> None:
        self._behaviour, self._rules, self._by_demand, self._tolerance = behaviour, rules, by_demand, tolerance
        self._targets = targets
        self._arrivals: deque[int] = deque(maxlen=round(RATE_S / RECONCILE_S))
        self._capacity = TokenCapacity(rules)
        self._count = 0
        self.every_s = self.collect_s = RECONCILE_S

    def collected(self, seen: Seen) -> None:
        """As of the base."""
        if seen.at_s > 0.0:
            self._arrivals.append(seen.arrivals)

    def desired(self, seen: Seen, counts: Counts, now_s: float) -> int:
        """As of the base."""
        if not counts.wanted:
            return 0
        if counts.ready == counts.wanted == len(seen.readings):  # else the model is in transition
            if self._targets is not None:
                more = self._by_model(seen, self._targets) - counts.wanted
            else:
                more = self._by_tokens(seen) if self._by_demand else self._by_saturation(seen)
            self._count = max(1, counts.wanted + more)
        elif not self._count:
            self._count = counts.wanted
        proposal = by_average_value(float(self._count), 1.0, counts.wanted, self._tolerance)
        return self._behaviour.settle(proposal, counts.wanted, now_s)

    def _by_model(self, seen: Seen, targets: Targets) -> int:
        """Replicas that carry the rate of late; as many as there are until an answer has ended."""
        if not self._arrivals or not seen.output_tokens:
            return len(seen.readings)
        rate_per_s = sum(self._arrivals) / len(self._arrivals) / RECONCILE_S
        model = QueueModel(targets.law, targets.rows, seen.prompt_tokens, seen.output_tokens)
        return math.ceil(rate_per_s / model.most_per_s(targets.ttft_ms, targets.itl_ms))

    def _by_saturation(self, seen: Seen) -> int:
        return by_saturation([(reading.kv_share, float(reading.waiting)) for reading in seen.readings], self._rules)

    def _by_tokens(self, seen: Seen) -> int:
        each = self._capacity.of(seen)
        return by_tokens(demand_tokens(seen), each * len(seen.readings), each)


FULL_KEPT = 10
"""Loads at which a queue was seen that are remembered (datasheet)."""


class TokenCapacity:
    """Tokens that a replica of a variant carries: a share of its KV cache, or what it had of late when requests queued."""

    def __init__(self, rules: Saturation) -> None:
        self._rules = rules
        self._seen_full: list[float] = []
        self._latest = 0.0

    def of(self, seen: Seen) -> float:
        """That of the replicas that are seen now; what it was, where there are none."""
        rules, found = self._rules, seen.readings
        if not found:
            return self._latest
        full = [r.kv_share * r.kv_tokens for r in found if r.waiting >= rules.queue_length_threshold]
        self._seen_full = [*self._seen_full, *full][-FULL_KEPT:]
        self._latest = found[0].kv_tokens * rules.kv_cache_threshold
        if self._seen_full:
            self._latest = min(self._latest, sum(self._seen_full) / len(self._seen_full))
        return self._latest


def demand_tokens(seen: Seen) -> float:
    """Tokens in the caches of a variant's replicas, and of the prompts that wait there."""
    used = sum(reading.kv_share * reading.kv_tokens for reading in seen.readings)
    return used + sum(reading.waiting for reading in seen.readings) * seen.prompt_tokens


def shared_out(
    counts: Series[int], each_tokens: Series[float], costs: Series[float], names: Series[str], wanted_tokens: float
) -> list[int]:
    """Replicas of every variant for a demand in tokens [`pipeline/cost_aware_optimizer.go`, 2026-02].

    More are of the variant that costs least for its capacity; fewer of the dearest first, as far as the spare capacity reaches.
    The cheapest keeps one where no other has any. Names break ties.
    """
    found = list(counts)
    supply = sum(count * each for count, each in zip(counts, each_tokens, strict=True))
    required, spare = wanted_tokens / UP_SHARE - supply, supply - wanted_tokens / DOWN_SHARE
    able = [n for n, each in enumerate(each_tokens) if each > 0]
    if required > 0 and able:
        best = min(able, key=lambda n: (costs[n] / each_tokens[n], names[n]))
        found[best] += math.ceil(required / each_tokens[best])
        return found
    cheapest = min(range(len(costs)), key=lambda n: (costs[n], names[n]))
    for n in sorted(able, key=lambda n: (-costs[n], names[n])):
        alone = n == cheapest and not any(count for other, count in enumerate(found) if other != n)
        gone = max(0, min(math.floor(spare / each_tokens[n]), found[n] - alone))
        found[n] -= gone
        spare -= gone * each_tokens[n]
    return found


class Variants(JointScaler):
    """Several variants of one model, by saturation of their replicas together, or by tokens (`by_demand`); an HPA follows each.

    It knows no roles: by saturation a replica more is one of the cheapest variant, whether that computes prompts or answers, one
    less one of the dearest that has two (`CalculateSaturationTargets` in `internal/saturation/analyzer.go`; names break ties).

    names, costs : of the variants.
    """

    def __init__(
        self,
        names: Series[str],
        costs: Series[float],
        behaviours: Series[Behaviour],
        rules: Saturation,
        *,
        tolerance: float,
        by_demand: bool = False,
    ) -> None:
        self._names, self._costs = names, costs
        self._capacities = [TokenCapacity(rules) for _ in names] if by_demand else []
        self._ranked = sorted(range(len(names)), key=lambda n: (costs[n], names[n]))
        self._behaviours, self._rules, self._tolerance = behaviours, rules, tolerance
        self._counts: list[int] = []
        self.every_s = self.collect_s = RECONCILE_S

    def desired(self, seen: Series[Seen], counts: Series[Counts], now_s: float) -> Series[int]:
        """As of the base."""
        now = [count.wanted for count in counts]
        if all(count.ready == count.wanted == len(each.readings) for count, each in zip(counts, seen, strict=True)):
            self._counts = self._by_tokens(seen, now) if self._capacities else self._by_saturation(seen, now)
        return [
            behaviour.settle(by_average_value(float(count), 1.0, current, self._tolerance), current, now_s)
            for behaviour, count, current in zip(self._behaviours, self._counts or now, now, strict=True)
        ]

    def _by_saturation(self, seen: Series[Seen], now: Series[int]) -> list[int]:
        found = [(reading.kv_share, float(reading.waiting)) for each in seen for reading in each.readings]
        more, counts = by_saturation(found, self._rules), list(now)
        ranked = self._ranked if more > 0 else [n for n in reversed(self._ranked) if now[n] > 1]
        if more and ranked:
            counts[ranked[0]] += more
        return counts

    def _by_tokens(self, seen: Series[Seen], now: Series[int]) -> list[int]:
        each_tokens = [capacity.of(each) for capacity, each in zip(self._capacities, seen, strict=True)]
        return shared_out(now, each_tokens, self._costs, self._names, sum(map(demand_tokens, seen)))
