"""The simulation clock: SimPy's event queue behind three verbs.

Events are ordered by (time, priority, sequence). They carry what is asynchronous between parts (releases, results that another
part waits for); arrivals that are known beforehand are walked in order, and what happens inside a replica is not an event each.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

RESULTS, ARRIVALS, DECISIONS = 0, 1, 2
"""Order of events at one instant: results become visible, requests arrive, then schedulers decide."""


class Clock:
    """A calendar of callbacks on a SimPy environment."""

    def __init__(self) -> None:
        self._env: Any = None  # made with the first event: many runs have none
        self._event: Any = None
        self.now_s = 0.0

    def at(self, time_s: float, priority: int, callback: Callable[[], None]) -> None:
        """Call `callback` at `time_s` (not before now); among equal times the lower priority number first."""
        if self._env is None:
            import simpy

            self._env, self._event = simpy.Environment(), simpy.Event
        env = self._env
        event: Any = self._event(env)
        event._ok, event._value = True, None

        def run(_: Any) -> None:
            self.now_s = time_s
            callback()

        event.callbacks.append(run)
        # Environment.schedule takes a delay, and now + (time - now) can miss the time by one bit
        queue: list[Any] = env._queue
        heapq.heappush(queue, (time_s, priority, next(env._eid), event))

    def next_event_s(self) -> float:
        """Time of the next event, infinity if there is none."""
        return float(self._env.peek()) if self._env is not None else float("inf")

    def run_before(self, time_s: float, priority: int) -> None:
        """Process the events that come before one of this priority at `time_s`; new ones too."""
        env = self._env
        if env is None:
            return
        queue = env._queue
        while queue and (queue[0][0], queue[0][1]) < (time_s, priority):
            env.step()

    def step(self) -> bool:
        """Process the next event; False if there is none."""
        if self._env is None or not self._env._queue:
            return False
        self._env.step()
        return True
