"""Knative's Pod Autoscaler (KPA), which KServe's serverless mode uses.

Source: `knative/serving` @ 98e5ef90, `pkg/autoscaler/scaling/autoscaler.go`, `config/core/configmaps/autoscaler.yaml`.
"""

from __future__ import annotations

import math
from collections import deque

from engine_models.parts.protocols import INFINITY
from hardware_profiles.records import dataclass
from simulator.cluster.scaling.scaler import Autoscaler, Counts, Seen

TICK_S = 2.0
"""Time between two decisions [s] (datasheet: `tickInterval`)."""
BUCKET_S = 1.0
"""Time over which a pod reports its concurrency [s] (datasheet: the queue proxy's reporting period)."""


@dataclass(frozen=True)
class KnativeRules:
    """Flags by their own names, shares instead of percents; defaults of the config map."""

    target: float
    stable_window_s: float = 60.0
    panic_window_share: float = 0.1
    panic_threshold_ratio: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    scale_down_delay_s: float = 0.0
    scale_to_zero_grace_period_s: float = 30.0
    activation_scale: int = 1
    min_scale: int = 0
    max_scale: int = 0


class Decider:
    """The count of pods that two averages of a metric ask for."""

    def __init__(self, rules: KnativeRules) -> None:
        self._rules = rules
        self._panic_s: float | None = None
        self._most = 0

    @property
    def panics(self) -> bool:
        """Whether it is in panic: the count does not fall."""
        return self._panic_s is not None

    def pods(self, ready: int, stable: float, panic: float, now_s: float) -> int:
        """Pods by the averages over the stable and the panic window."""
        rules, ready = self._rules, max(1, ready)
        low, high = math.floor(ready / rules.max_scale_down_rate), math.ceil(ready * rules.max_scale_up_rate)
        by_stable, by_panic = math.ceil(stable / rules.target), math.ceil(panic / rules.target)
        wanted, in_panic = (min(max(count, low), high) for count in (by_stable, by_panic))
        if rules.activation_scale > 1 and by_stable > 0:
            wanted = max(wanted, rules.activation_scale)
        if by_panic / ready >= rules.panic_threshold_ratio:
            self._panic_s = now_s
        elif self._panic_s is not None and now_s - self._panic_s > rules.stable_window_s:
            self._panic_s, self._most = None, 0
        if self._panic_s is not None:
            self._most = wanted = max(wanted, in_panic, self._most)
        return wanted


class Knative(Autoscaler):
    """A revision's autoscaler; `by_rate` counts requests a second, else it counts those in flight."""

    def __init__(self, rules: KnativeRules, *, by_rate: bool = False) -> None:
        self._rules, self._by_rate = rules, by_rate
        self._decider = Decider(rules)
        self._buckets: deque[float] = deque(maxlen=max(1, round(rules.stable_window_s / BUCKET_S)))
        self._said: deque[tuple[float, int]] = deque()
        self._none_since_s = INFINITY
        self.every_s, self.collect_s = TICK_S, BUCKET_S

    def collected(self, seen: Seen) -> None:
        """As of the base."""
        if seen.at_s > 0.0:
            self._buckets.append(seen.arrivals / BUCKET_S if self._by_rate else seen.concurrency)

    def _average(self, share: float) -> float:
        """Average over the latest part of the stable window, or what there is of it."""
        count = max(1, round(share * self._rules.stable_window_s / BUCKET_S))
        latest = list(self._buckets)[-count:]
        return math.fsum(latest) / len(latest) if latest else 0.0

    def desired(self, seen: Seen, counts: Counts, now_s: float) -> int:
        """As of the base."""
        rules = self._rules
        if not self._buckets:
            return counts.wanted
        wanted = self._decider.pods(counts.ready, self._average(1.0), self._average(rules.panic_window_share), now_s)
        self._said.append((now_s, wanted))
        while self._said[0][0] < now_s - rules.scale_down_delay_s:
            self._said.popleft()
        if not self._decider.panics:
            wanted = max(count for _, count in self._said)
        wanted = max(wanted, rules.min_scale)
        if rules.max_scale:
            wanted = min(wanted, rules.max_scale)
        if wanted or not counts.wanted:
            self._none_since_s = INFINITY
            return wanted
        self._none_since_s = min(self._none_since_s, now_s)  # the activator is put into the path first
        return 0 if now_s - self._none_since_s >= rules.scale_to_zero_grace_period_s else counts.wanted
