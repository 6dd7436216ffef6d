"""Replicas that share something: a store of KV blocks, or a disk. None of them may act at a time that another has passed.

Whoever is advanced takes the others along: the one whose next event comes first goes on, up to the next event of another. What is
written to the store is then there for all that read later, and copies queue on a shared way in order of time.
"""

from __future__ import annotations

import numpy as np

from engine_models.parts.protocols import INFINITY
from simulator.serving.replica import Replica


class ConvoyReplica(Replica):
    """A replica among `members` that share something, itself among them."""

    members: list[ConvoyReplica]

    def alone(self, limit_s: float, *, stop_after_finish: bool) -> bool:
        """`advance` of this replica, whatever the others do."""
        return super().advance(limit_s, stop_after_finish=stop_after_finish)

    def advance(self, limit_s: float, *, stop_after_finish: bool = False) -> bool:
        """As of the base, of all members; True as soon as a request of any has ended."""
        members = self.members
        while True:
            first_s, second_s, leader = INFINITY, INFINITY, self
            for member in members:
                due_s = member.next_event_s()
                if due_s < first_s:
                    first_s, second_s, leader = due_s, first_s, member
                elif due_s < second_s:
                    second_s = due_s
            if first_s >= limit_s:
                break
            until_s = min(limit_s, max(second_s, float(np.nextafter(first_s, INFINITY))))
            if leader.alone(until_s, stop_after_finish=stop_after_finish):
                return True
        # results that are there at the limit itself
        return any(member.alone(limit_s, stop_after_finish=stop_after_finish) for member in members)
