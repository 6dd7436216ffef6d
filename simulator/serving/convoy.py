"""Replicas that share something: a store of KV blocks, or a disk. None of them may act at a time that another has passed.

Whoever is advanced takes the others along: the one that may act on what is shared first goes on, up to when another may. What is
written to the store is then there for all that read later, and copies queue on a shared way in order of time.
"""

from __future__ import annotations

from heapq import heapify, heapreplace

import numpy as np

from engine_models.parts.protocols import INFINITY
from simulator.serving.replica import Replica, Step, ends_a_request
from simulator.serving.turning import TurningReplica

LOOKAHEAD = 3
"""Ends of steps from the last of a run back to one before which it is surely not over: it is formed up to two steps ahead."""


def writes_when_over(step: Step) -> bool:
    """Whether blocks may be written once a step is over: of requests that end, and of prompts (as SGLang's tree has it)."""
    return ends_a_request(step) or any(batch.prefill for batch in step[1])


class ConvoyReplica(Replica):
    """A replica among `members` that share something, itself among them."""

    members: list[ConvoyReplica]

    @property
    def may_lag(self) -> bool:
        """As of the base."""
        return False

    def alone(self, limit_s: float, *, stop_after_finish: bool) -> bool:
        """`advance` of this replica, whatever the others do."""
        return super().advance(limit_s, stop_after_finish=stop_after_finish)

    def acts_s(self) -> float:
        """A time before which nothing here touches what is shared, unless another request is submitted.

        Steps of a proven run do not; the decision after it falls into the last but one at the earliest.
        """
        due_s = self.next_event_s()
        if self._staged or self._wake_s() < INFINITY or any(map(writes_when_over, self._in_flight)):
            return due_s
        if self._priced is None:
            self._priced = self._price(INFINITY)
        if self._priced is None or len(self._priced[-1]) < LOOKAHEAD:
            return due_s
        return max(due_s, min(self._priced[-1][-LOOKAHEAD], self.next_arrival_s()))

    def _jump(self, limit_s: float) -> bool:
        """As of the base, which settles the step in flight before its end: not one whose end others see in what is shared."""
        return not any(map(writes_when_over, self._in_flight)) and super()._jump(limit_s)

    def advance(self, limit_s: float, *, stop_after_finish: bool = False, lags: bool = False) -> bool:
        """As of the base, of the others as far as they act before the limit; True as soon as a request of any has ended."""
        members = self.members
        due = [(member.acts_s(), number) for number, member in enumerate(members)]
        heapify(due)
        while due[0][0] < limit_s:
            first_s, number = due[0]
            second_s = min(due[1:3], default=(limit_s, 0))[0]
            until_s = min(limit_s, max(second_s, float(np.nextafter(first_s, INFINITY))))
            if members[number].alone(until_s, stop_after_finish=stop_after_finish):
                return True
            heapreplace(due, (members[number].acts_s(), number))
        return self.alone(limit_s, stop_after_finish=stop_after_finish)


class ConvoyTurningReplica(ConvoyReplica, TurningReplica):
    """One that shares requests with others too."""
