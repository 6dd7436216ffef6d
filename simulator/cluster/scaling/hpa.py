"""Kubernetes' Horizontal Pod Autoscaler.

Source: `pkg/controller/podautoscaler/{horizontal,replica_calculator}.go` and `pkg/apis/autoscaling/v2/defaults.go` of Kubernetes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Series
from typing import Literal

from hardware_profiles.records import dataclass
from simulator.cluster.scaling.scaler import Autoscaler, Counts, Seen, of_replicas, total

SYNC_S = 15.0
"""Time between two decisions [s] (datasheet: `--horizontal-pod-autoscaler-sync-period`)."""
TOLERANCE = 0.1
"""How far from 1 a ratio has to be (datasheet: `--horizontal-pod-autoscaler-tolerance`)."""


@dataclass(frozen=True)
class Policy:
    """Most pods, or percent of them, by which a count may change in a period."""

    kind: Literal["pods", "percent"]
    value: int
    period_s: float


@dataclass(frozen=True)
class Direction:
    """How fast a count may rise or fall: the window of recommendations that are looked at, and policies, one of which holds."""

    window_s: float
    policies: tuple[Policy, ...]
    select: Literal["max", "min", "disabled"] = "max"


UP = Direction(0.0, (Policy("pods", 4, 15.0), Policy("percent", 100, 15.0)))
DOWN = Direction(300.0, (Policy("percent", 100, 15.0),))
"""Defaults of `behavior` (datasheet: `defaults.go`)."""


def by_pods(values: Series[float], target: float, current: int, *, missing: int, unready: int, tolerance: float) -> int:
    """Replicas by the mean of a metric over pods: `values` of those that are ready, `missing` without a sample, `unready`."""
    if not values:
        return current
    ratio = math.fsum(values) / len(values) / target
    rises = ratio > 1.0
    with_unready = rises and unready > 0
    if not with_unready and not missing:
        return current if abs(1.0 - ratio) <= tolerance else math.ceil(ratio * len(values))
    counted = len(values) + missing + (unready if with_unready else 0)
    again = (math.fsum(values) + (0.0 if rises else missing * target)) / counted / target
    if abs(1.0 - again) <= tolerance or (again > 1.0) != rises:
        return current
    found = math.ceil(again * counted)
    return current if (found < current) == rises and found != current else found


def by_average_value(whole: float, target: float, current: int, tolerance: float) -> int:
    """Replicas by the total of a metric, of which each is to have `target`."""
    return current if abs(1.0 - whole / (target * current)) <= tolerance else math.ceil(whole / target)


class Behaviour:
    """What becomes of recommendations: windows, then policies, then bounds.

    Parameters
    ----------
    least, most : bounds of the count.
    up, down : see `Direction`.
    """

    def __init__(self, least: int, most: int, up: Direction = UP, down: Direction = DOWN) -> None:
        self._least, self._most, self._up, self._down = least, most, up, down
        self._said: list[tuple[float, int]] = []
        self._changed: list[tuple[float, int]] = []
        self._period_s = max((policy.period_s for policy in (*up.policies, *down.policies)), default=0.0)

    def settle(self, proposal: int, current: int, now_s: float) -> int:
        """The count from now on."""
        if not self._said:
            self._said.append((now_s, current))
        kept_s = now_s - max(self._up.window_s, self._down.window_s)
        self._said = [entry for entry in self._said if entry[0] > kept_s]
        low = min((n for at_s, n in self._said if at_s > now_s - self._up.window_s), default=proposal)
        high = max((n for at_s, n in self._said if at_s > now_s - self._down.window_s), default=proposal)
        self._said.append((now_s, proposal))
        wanted = min(max(current, min(low, proposal)), max(high, proposal))
        if wanted > current:
            wanted = min(wanted, max(self._limit(self._up, current, now_s, rises=True), current), self._most)
        elif wanted < current:
            wanted = max(wanted, min(self._limit(self._down, current, now_s, rises=False), current), self._least)
        wanted = min(max(wanted, self._least), self._most)
        if wanted != current:
            self._changed = [entry for entry in self._changed if entry[0] > now_s - self._period_s]
            self._changed.append((now_s, wanted - current))
        return wanted

    def _limit(self, way: Direction, current: int, now_s: float, *, rises: bool) -> int:
        """How far a count may go now."""
        if way.select == "disabled":
            return current
        sign, found = (1 if rises else -1), []
        for policy in way.policies:
            moved = sum(by for at_s, by in self._changed if at_s > now_s - policy.period_s and (by > 0) == rises)
            begin = current - moved
            if policy.kind == "pods":
                found.append(begin + sign * policy.value)
            else:
                part = begin * (1 + sign * policy.value / 100)
                found.append(math.ceil(part) if rises else int(part))
        return (max if rises == (way.select == "max") else min)(found)


class Hpa(Autoscaler):
    """One metric, per pod (`pods`) or in all (`external`, of type AverageValue)."""

    def __init__(
        self,
        metric: str,
        target: float,
        behaviour: Behaviour,
        *,
        per_pod: bool = True,
        tolerance: float = TOLERANCE,
        sync_s: float = SYNC_S,
        collect_s: float = 15.0,
    ) -> None:
        self._metric, self._target, self._behaviour = metric, target, behaviour
        self._per_pod, self._tolerance = per_pod, tolerance
        self.every_s, self.collect_s = sync_s, collect_s

    def desired(self, seen: Seen, counts: Counts, now_s: float) -> int:
        """As of the base; without a replica it is disabled."""
        if not counts.wanted:
            return 0
        if self._per_pod:
            values = of_replicas(self._metric, seen)[: counts.ready]
            proposal = by_pods(
                values,
                self._target,
                counts.wanted,
                missing=counts.ready - len(values),
                unready=counts.wanted - counts.ready,
                tolerance=self._tolerance,
            )
        else:
            proposal = by_average_value(total(self._metric, seen), self._target, counts.wanted, self._tolerance)
        return self._behaviour.settle(proposal, counts.wanted, now_s)
