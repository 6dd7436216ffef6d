"""Circuit breakers: a worker that fails in a row is left out for a while, then tried again.

Source: `CircuitBreaker` of sglang-router 0.3.2 (`core/circuit_breaker.rs`), which vllm-router shares.
"""

from __future__ import annotations

from hardware_profiles.records import dataclass

CLOSED, OPEN, HALF_OPEN = range(3)


@dataclass(frozen=True)
class BreakerRules:
    """Failures in a row that open a breaker, successes that close it again, and seconds until it is half open."""

    failures: int
    successes: int
    out_s: float


class Breakers:
    """A breaker a worker."""

    def __init__(self, workers: int, rules: BreakerRules) -> None:
        self._rules = rules
        self._state = [CLOSED] * workers
        self._failed = [0] * workers
        self._passed = [0] * workers
        self._since_s = [0.0] * workers
        self._out: set[int] = set()

    def note(self, worker: int, now_s: float, *, success: bool) -> bool:
        """Take in how a request went; return whether the workers that are up have changed."""
        state = self._state[worker]
        if success:
            self._failed[worker] = 0
            self._passed[worker] += 1
            if state == HALF_OPEN and self._passed[worker] >= self._rules.successes:
                self._turn(worker, CLOSED, now_s)
            return False
        self._passed[worker] = 0
        self._failed[worker] += 1
        if state == HALF_OPEN or (state == CLOSED and self._failed[worker] >= self._rules.failures):
            self._turn(worker, OPEN, now_s)
            self._out.add(worker)
            return True
        return False

    def _turn(self, worker: int, state: int, now_s: float) -> None:
        self._state[worker] = state
        self._since_s[worker] = now_s
        self._passed[worker] = 0
        if state != OPEN:
            self._failed[worker] = 0

    def back(self, now_s: float) -> bool:
        """Half open the breakers whose time is over; return whether there were any."""
        due = [w for w in self._out if now_s - self._since_s[w] >= self._rules.out_s]
        for worker in due:
            self._turn(worker, HALF_OPEN, now_s)
            self._out.discard(worker)
        return bool(due)

    def up(self) -> list[int]:
        """The workers that may be chosen."""
        return [worker for worker in range(len(self._state)) if worker not in self._out]
