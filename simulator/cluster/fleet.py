"""Which replicas of pools are there over time, and with them their devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

from engine_models.cost.start_up import StartUp
from hardware_profiles.records import dataclass
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


@dataclass(frozen=True)
class Members:
    """The replicas of a pool that come and go: those that serve from time zero on, and how many there may be at once.

    devices : of each. start : what a new one takes to start, back_s : a lost one's server, once its devices are back [s]. One
    that is sent away has `grace_s` to end what it has.
    """

    name: str
    replicas: int
    most: int
    devices: int
    start: StartUp
    back_s: float = 0.0
    grace_s: float = 0.0


class Fleet:
    """The replicas of pools by number, one pool after the other."""

    def __init__(self, pools: Sequence[Members]) -> None:
        self.pools = pools
        self.pool_of = [number for number, pool in enumerate(pools) for _ in range(pool.most)]
        firsts = [0, *accumulate(pool.most for pool in pools)]
        self.members = [range(first, end) for first, end in pairwise(firsts)]
        self.states = [State.UP if n < pool.replicas else State.ABSENT for pool in pools for n in range(pool.most)]
        self.since_s = [0.0] * len(self.states)
        self.life = [0] * len(self.states)
        """Changes of state: what was planned for an earlier one is void."""
        self.ever = max((n + 1 for n, state in enumerate(self.states) if state == State.UP), default=0)
        """Replicas that were ever there; of one pool their numbers are the lowest."""
        self.levels = [[self._level(pool, 0.0)] for pool in range(len(pools))]
        """Of each pool."""
        self.devices = [DeviceHistory(levels[0].devices) for levels in self.levels]

    def _level(self, pool: int, at_s: float) -> Level:
        states = [self.states[n] for n in self.members[pool]]
        count = states.count
        coming = count(State.ORDERED) + count(State.STARTING) + count(State.AWAY)
        devices = sum(state in WITH_DEVICES for state in states) * self.pools[pool].devices
        return Level(at_s, count(State.UP), count(State.DRAINING), coming, devices)

    def turn(self, replica: int, state: State, now_s: float) -> int:
        """Let a replica change its state; return the number of this life."""
        self.states[replica] = state
        self.since_s[replica] = now_s
        self.life[replica] += 1
        self.ever = max(self.ever, replica + 1)
        pool = self.pool_of[replica]
        level, levels = self._level(pool, now_s), self.levels[pool]
        if levels[-1].at_s == now_s:
            levels.pop()
        levels.append(level)
        self.devices[pool].change(now_s, level.devices)
        return self.life[replica]

    def of(self, *states: State, pool: int | None = None) -> list[int]:
        """The replicas in these states, of all pools or one."""
        numbers = range(len(self.states)) if pool is None else self.members[pool]
        return [number for number in numbers if self.states[number] in states]

    def wanted(self, pool: int) -> int:
        """Replicas of a pool that are asked for, whether they serve already or not."""
        return len(self.of(*WANTED, pool=pool))

    def to_add(self, pool: int, count: int) -> list[int]:
        """The numbers that new replicas of a pool get: the lowest that are free."""
        return self.of(State.ABSENT, pool=pool)[:count]

    def to_remove(self, pool: int, count: int) -> list[int]:
        """Replicas of a pool to remove: first those that do not serve yet, then the latest to serve.

        So a ReplicaSet of Kubernetes ranks its pods (from memory, unconfirmed; ages are compared exactly here, there by powers of
        two).
        """
        coming = self.of(State.AWAY, State.ORDERED, State.STARTING, pool=pool)
        up = self.of(State.UP, pool=pool)
        ranked = [sorted(some, key=lambda n: (-self.since_s[n], -n)) for some in (coming, up)]
        return [*ranked[0], *ranked[1]][:count]


@dataclass
class Toll:
    """What became of the fleet, and what was lost with replicas.

    `faults` are the losses and drains, by kind, `added` and `removed` the replicas that an autoscaler asked for and sent away.
    `lost` are tries of requests that were under way when their replica went, `again` those of them that a client sends again,
    `lost_tokens` the tokens of their prompts and answers that had been computed.
    """

    fleet: Fleet
    faults: dict[str, int] = field(default_factory=dict)
    added: int = 0
    removed: int = 0
    lost: int = 0
    again: int = 0
    lost_tokens: int = 0

    def so_far(self) -> Toll:
        """What has been counted until now, which later counts leave as it is."""
        return replace(self, faults=dict(self.faults))

    def since(self, before: Toll) -> Toll:
        """What was counted after `before`."""
        faults = {kind: count - before.faults.get(kind, 0) for kind, count in self.faults.items()}
        return Toll(
            self.fleet,
            {kind: count for kind, count in faults.items() if count},
            self.added - before.added,
            self.removed - before.removed,
            self.lost - before.lost,
            self.again - before.again,
            self.lost_tokens - before.lost_tokens,
        )
