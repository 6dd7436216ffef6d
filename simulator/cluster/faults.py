"""What goes wrong with replicas, and when: listed events, and processes at given rates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Literal, NamedTuple

from engine_models.parts.protocols import INFINITY
from hardware_profiles.records import dataclass
from simulator.cluster.clock import ARRIVALS, Clock

Kind = Literal["node", "gpu", "slow", "reclaim", "drain"]
"""A node is lost, or a device and with it its replica; a replica's devices slow down; a node is taken back after a notice; a
replica is restarted on purpose once it has ended what it has."""
HOUR_S = 3600.0


@dataclass(frozen=True)
class Fault:
    """Something that happens to a replica, or to all on its node.

    replica : its number; None (of a `drain`) for all, or those `among` all, one after the other. whole_node : with it, all on its
        node.
    away_s : time until its devices are back, None if they never are.
    slow_s, factor : how long steps take so many times as long.
    notice_s : between the notice and the loss of a reclaim; the most that a drain may take.
    """

    kind: Kind
    replica: int | None
    whole_node: bool = False
    away_s: float | None = None
    slow_s: float = INFINITY
    factor: float = 1.0
    notice_s: float = 0.0
    among: range | None = None


class Event(NamedTuple):
    """A fault that comes `at_s` after a load has begun, by its number; the first one begins at time zero."""

    at_s: float
    fault: Fault
    load: int = 0


@dataclass(frozen=True)
class Process:
    """A fault that comes again and again, `rate_per_s` times on average, at exponential intervals drawn from `seed`."""

    fault: Fault
    rate_per_s: float
    seed: int


@dataclass(frozen=True)
class Disturbance:
    """What slows down prefill and decode pools for a time: ways between pools that are closed, or a replica by a factor.

    It begins `at_s` after the load of this number has begun.
    """

    at_s: float
    for_s: float = INFINITY
    ways: tuple[tuple[str, str], ...] = ()
    replica: int | None = None
    factor: float = 1.0
    load: int = 0


@dataclass(frozen=True)
class Faults:
    """Events and processes, and the node of each replica.

    A lost node says nothing: router and clients find out after `noticed_s`, and until then send it requests.
    """

    events: tuple[Event, ...]
    processes: tuple[Process, ...]
    nodes: tuple[int, ...]
    noticed_s: float = 0.0

    def struck(self, fault: Fault) -> list[int]:
        """The replicas that a fault strikes."""
        if fault.replica is None:
            return list(fault.among or range(len(self.nodes)))
        if not fault.whole_node:
            return [fault.replica]
        return [number for number, node in enumerate(self.nodes) if node == self.nodes[fault.replica]]

    def begin_load(self, number: int, at_s: float, clock: Clock, strike: Callable[[Fault], None]) -> None:
        """Put into the calendar what is to go wrong in a load that begins `at_s`, or after it."""
        for event in self.events:
            if event.load == number:
                clock.at(at_s + event.at_s, ARRIVALS, partial(strike, event.fault))

    def begin(self, clock: Clock, strike: Callable[[Fault], None], over: Callable[[float], bool]) -> None:
        """Put into the calendar what goes wrong at random until it is `over`; `strike` is told each fault."""

        def recur(process: Process, draw: Random) -> None:
            if not over(clock.now_s):
                strike(process.fault)
                wait(process, draw)

        def wait(process: Process, draw: Random) -> None:
            clock.at(clock.now_s + draw.expovariate(process.rate_per_s), ARRIVALS, partial(recur, process, draw))

        for process in self.processes:
            wait(process, Random(process.seed))
