"""Which replicas of a pool are there over time, and with them its devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from simulator.cluster.devices import DeviceHistory


class State(IntEnum):
    """Where a replica stands.

    ABSENT: there is none. AWAY: its devices are gone, and come back. ORDERED: its devices are on their way. STARTING: they are
    there, the server is not. UP: it serves. DRAINING: it ends what it has and gets nothing new.
    """

    ABSENT = 0
    AWAY = 1
    ORDERED = 2
    STARTING = 3
    UP = 4
    DRAINING = 5


WANTED = frozenset((State.AWAY, State.ORDERED, State.STARTING, State.UP))
"""States of replicas that count as asked for."""
WITH_DEVICES = frozenset((State.STARTING, State.UP, State.DRAINING))
"""States in which devices are there, and billed."""


class Level(NamedTuple):
    """Replicas from a time on [s]: those that serve, that drain, that are started or awaited; and all devices."""

    at_s: float
    up: int
    draining: int
    coming: int
    devices: int


@dataclass
class Toll:
    """What became of the fleet: changes, and what was lost with replicas.

    `faults` are the losses and drains, by kind, `added` and `removed` the replicas that an autoscaler asked for and sent away.
    `lost` are tries of requests that were under way when their replica went, `again` those of them that a client sends again,
    `lost_tokens` the tokens of their prompts and answers that had been computed.
    """

    levels: list[Level]
    faults: dict[str, int] = field(default_factory=dict)
    added: int = 0
    removed: int = 0
    lost: int = 0
    again: int = 0
    lost_tokens: int = 0


class Fleet:
    """The replicas of a pool by number, of which there are never more than `most`; the first `replicas` serve from time zero on.

    `each` are the devices of each.
    """

    def __init__(self, replicas: int, most: int, each: Sequence[int]) -> None:
        self.each = each
        self.states = [State.UP] * replicas + [State.ABSENT] * (most - replicas)
        self.since_s = [0.0] * most
        self.life = [0] * most
        """Changes of state: what was planned for an earlier one is void."""
        self.ever = replicas
        """Replicas that were ever there; their numbers are the lowest."""
        self.devices = DeviceHistory(sum(each[:replicas]))
        self.levels = [self._level(0.0)]

    def _level(self, at_s: float) -> Level:
        count = self.states.count
        coming = count(State.ORDERED) + count(State.STARTING) + count(State.AWAY)
        devices = sum(each for state, each in zip(self.states, self.each, strict=True) if state in WITH_DEVICES)
        return Level(at_s, count(State.UP), count(State.DRAINING), coming, devices)

    def turn(self, replica: int, state: State, now_s: float) -> int:
        """Let a replica change its state; return the number of this life."""
        self.states[replica] = state
        self.since_s[replica] = now_s
        self.life[replica] += 1
        self.ever = max(self.ever, replica + 1)
        level = self._level(now_s)
        if self.levels[-1].at_s == now_s:
            self.levels.pop()
        self.levels.append(level)
        self.devices.change(now_s, level.devices)
        return self.life[replica]

    def of(self, *states: State) -> list[int]:
        """The replicas in these states."""
        return [number for number, state in enumerate(self.states) if state in states]

    @property
    def wanted(self) -> int:
        """Replicas that are asked for, whether they serve already or not."""
        return sum(state in WANTED for state in self.states)

    def to_add(self, count: int) -> list[int]:
        """The numbers that new replicas get: the lowest that are free."""
        return self.of(State.ABSENT)[:count]

    def to_remove(self, count: int) -> list[int]:
        """Replicas to remove: first those that do not serve yet, then the latest to serve.

        So a ReplicaSet of Kubernetes ranks its pods (from memory, unconfirmed; ages are compared exactly here, there by powers of
        two).
        """
        coming = self.of(State.AWAY, State.ORDERED, State.STARTING)
        up = self.of(State.UP)
        ranked = [sorted(some, key=lambda n: (-self.since_s[n], -n)) for some in (coming, up)]
        return [*ranked[0], *ranked[1]][:count]
