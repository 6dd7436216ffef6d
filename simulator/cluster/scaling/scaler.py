"""What an autoscaler sees and what it promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Series
from typing import NamedTuple

from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Reading:
    """Metrics of a replica: requests that run and that wait, the share of its KV cache that is held, the tokens of all of it.

    `queued_tokens` are those of the prompts that wait.
    """

    running: int
    waiting: int
    kv_share: float
    kv_tokens: int
    queued_tokens: int = 0


@dataclass(frozen=True)
class Seen:
    """Metrics as they were last collected, at `at_s`: of the replicas that served then, and of the router.

    held : requests that wait at the router for a replica.
    concurrency : requests in flight, the router's included, averaged over the time since they were collected before.
    arrivals, new_prompt_tokens : requests that came in that time, and their tokens. ends, new_output_tokens : those that have
        ended with their answer, and its tokens.
    prompt_tokens, output_tokens : their means so far, the latter over requests that have ended.
    """

    at_s: float
    readings: tuple[Reading, ...]
    held: int = 0
    concurrency: float = 0.0
    arrivals: int = 0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    new_prompt_tokens: int = 0
    ends: int = 0
    new_output_tokens: int = 0


class Counts(NamedTuple):
    """Replicas that are asked for, and of those the ones that serve; known at once, unlike metrics."""

    wanted: int
    ready: int


class Autoscaler(ABC):
    """Decides how many replicas there are to be.

    every_s : time between two decisions [s]. collect_s : time between two collections of metrics [s].
    """

    every_s: float
    collect_s: float
    reads_queued_tokens = False
    """Whether the prompts that wait matter."""

    def collected(self, seen: Seen) -> None:  # noqa: B027
        """Take in metrics that were just collected; one that reads the latest alone need not."""

    @abstractmethod
    def desired(self, seen: Seen, counts: Counts, now_s: float) -> int:
        """How many replicas are to be asked for from now on, by metrics that are up to `collect_s` old."""


class JointScaler(ABC):
    """Decides about several pools at once, by what is seen of each; else as an `Autoscaler`."""

    every_s: float
    collect_s: float
    reads_queued_tokens = False

    def collected(self, seen: Series[Seen]) -> None:  # noqa: B027
        """Take in metrics of every pool that were just collected."""

    @abstractmethod
    def desired(self, seen: Series[Seen], counts: Series[Counts], now_s: float) -> Series[int]:
        """How many replicas of every pool are to be asked for from now on."""


class Alone(JointScaler):
    """An autoscaler of one pool."""

    def __init__(self, scaler: Autoscaler) -> None:
        self._scaler = scaler
        self.every_s, self.collect_s = scaler.every_s, scaler.collect_s
        self.reads_queued_tokens = scaler.reads_queued_tokens

    def collected(self, seen: Series[Seen]) -> None:
        """As of the base."""
        self._scaler.collected(seen[0])

    def desired(self, seen: Series[Seen], counts: Series[Counts], now_s: float) -> Series[int]:
        """As of the base."""
        return (self._scaler.desired(seen[0], counts[0], now_s),)


@dataclass(frozen=True, eq=False)
class Scaling:
    """Who decides about which pools, by their numbers."""

    pools: tuple[int, ...]
    scaler: JointScaler


METRICS: dict[str, Callable[[Reading], float]] = {
    "num_requests_waiting": lambda reading: float(reading.waiting),
    "num_requests_running": lambda reading: float(reading.running),
    "kv_cache_usage_perc": lambda reading: reading.kv_share,
    "requests_in_flight": lambda reading: float(reading.running + reading.waiting),
}
"""Metrics of a replica, by the names that vLLM gives them; the last is their sum, as an EPP counts it."""
AT_ROUTER = ("num_requests_waiting", "requests_in_flight")
"""Metrics in whose total requests count that wait at the router."""


def of_replicas(metric: str, seen: Seen) -> list[float]:
    """A metric of each replica."""
    return [METRICS[metric](reading) for reading in seen.readings]


def total(metric: str, seen: Seen) -> float:
    """A metric over all replicas and the router."""
    return sum(of_replicas(metric, seen)) + (seen.held if metric in AT_ROUTER else 0)
