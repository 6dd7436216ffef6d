"""Transfers of KV blocks between replicas: flows that share the network interfaces at both of their ends.

Every device has one interface, which sends and receives at its rate at once. The ranks of a replica do the same at the same
time, so a replica counts as one interface that carries its busiest rank's part. Flows through an interface share it evenly, and
what one of them cannot use, for its other end is busier, the others get (max-min fairness: RDMA reads posted at once, as NIXL
posts them). A transfer is over a fixed latency after its last byte.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import field
from functools import partial

from engine_models.parts.protocols import INFINITY
from hardware_profiles.records import dataclass
from simulator.cluster.clock import RESULTS, Clock

Interface = Hashable
"""Name of one direction of a replica's interface."""
Way = tuple[str, str]
"""Pools that a transfer goes from and to."""


@dataclass(eq=False)
class Flow:
    """A transfer: its way, the interfaces it loads, each with its share at full speed, and seconds left at full speed."""

    way: Way
    loads: dict[Interface, float]
    left_s: float
    done: Callable[[float], None]
    latency_s: float
    speed_share: float = field(default=0.0)
    dropped: bool = False


class Network:
    """All transfers of a run, on its clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flows: dict[Flow, None] = {}
        self._now_s = 0.0  # up to which the flows have been moved
        self._event = 0  # number of the event that is awaited; others are out of date
        self._closed: set[Way] = set()

    def turn(self, way: Way, *, closed: bool) -> None:
        """A way is closed, and what goes there stands still; or it is open again."""
        self._move(self._clock.now_s)
        (self._closed.add if closed else self._closed.discard)(way)
        self._share()

    def send(
        self,
        at_s: float,
        ends: dict[Interface, tuple[float, float]],
        latency_s: float,
        done: Callable[[float], None],
        way: Way = ("", ""),
    ) -> Flow:
        """Begin a transfer at `at_s` (now): bytes and rate [byte/s] at each end; `done` is called with the time of its end."""
        alone_s = max(amount / rate for amount, rate in ends.values())
        if not alone_s and way not in self._closed:
            flow = Flow(way, {}, 0.0, done, latency_s)
            self._clock.at(at_s + latency_s, RESULTS, partial(self._done, flow, at_s + latency_s))
            return flow
        self._move(at_s)
        loads = {name: amount / rate / alone_s if alone_s else 1.0 for name, (amount, rate) in ends.items()}
        flow = Flow(way, loads, alone_s or TINY_S, done, latency_s)
        self._flows[flow] = None
        self._share()
        return flow

    def drop(self, flow: Flow) -> None:
        """A transfer does not end: one of its ends is gone."""
        flow.dropped = True
        if flow in self._flows:
            self._move(self._clock.now_s)
            del self._flows[flow]
            self._share()

    def _done(self, flow: Flow, now_s: float) -> None:
        if not flow.dropped:
            flow.done(now_s)

    def _move(self, to_s: float) -> None:
        """Let the flows go on at their speeds."""
        passed_s = to_s - self._now_s
        self._now_s = to_s
        for flow in self._flows:
            flow.left_s -= flow.speed_share * passed_s

    def _share(self) -> None:
        """Give every flow its speed anew, and await the first to end."""
        flows = self._flows
        if self._closed:
            flows = {flow: None for flow in flows if flow.way not in self._closed}
            for flow in self._flows.keys() - flows.keys():
                flow.speed_share = 0.0
        if flows:
            _fill(flows)
        self._event += 1
        number = self._event
        first = min(flows, key=lambda flow: flow.left_s / flow.speed_share, default=None)
        if first is not None:
            end_s = self._now_s + max(first.left_s, 0.0) / first.speed_share
            self._clock.at(end_s, RESULTS, partial(self._ended, number, first, end_s))

    def _ended(self, number: int, first: Flow, now_s: float) -> None:
        if number != self._event:
            return
        self._move(now_s)
        first.left_s = 0.0
        over = [flow for flow in self._flows if flow.left_s <= TINY_S and flow.way not in self._closed]
        for flow in over:
            del self._flows[flow]
        self._share()
        for flow in over:
            end_s = now_s + flow.latency_s
            self._clock.at(end_s, RESULTS, partial(self._done, flow, end_s))


TINY_S = 1e-15
"""Flows with less left at full speed have ended: what rounding leaves of those that end together."""


@dataclass(frozen=True)
class Side:
    """A replica, or a data-parallel rank of one, as an end of transfers.

    Its pool, the node of its first device, its tensor-parallel ranks, and the bytes on one of these of a token's KV, and of what
    a request has besides its tokens.
    """

    pool: str
    node: Hashable
    ranks: int
    token_bytes: float
    request_bytes: float = 0.0


@dataclass(frozen=True)
class Route:
    """What a transfer between two pools goes over: rates of an interface of either end [byte/s], and the latency [s].

    `token_s` is what the protocol adds to the latency for each token [s].
    """

    from_bytes_per_s: float
    to_bytes_per_s: float
    latency_s: float
    token_s: float = 0.0


class Paths:
    """The ways between replicas.

    Parameters
    ----------
    sides : of all replicas, by number.
    between, within : routes by (pool of the source, pool of the target), between nodes and inside of one.
    """

    def __init__(
        self, sides: list[Side], between: dict[tuple[str, str], Route], within: dict[tuple[str, str], Route]
    ) -> None:
        self._sides, self._between, self._within = sides, between, within

    def way(self, source: int, target: int) -> Way:
        """The pools of two replicas."""
        return self._sides[source].pool, self._sides[target].pool

    def of(
        self, source: int, target: int, tokens: int, *, last: bool = True
    ) -> tuple[dict[Interface, tuple[float, float]], float, int]:
        """Bytes and rate at both ends for the KV of so many tokens, the latency [s], and the bytes in all.

        With the `last` of a request's tokens goes what it has besides.

        Each rank of the target reads its part. Where ranks hold the same heads twice, or all hold a latent, a rank of the source
        sends at least what it holds once.
        """
        here, there = self._sides[source], self._sides[target]
        inside = here.node == there.node
        route = (self._within if inside else self._between)[here.pool, there.pool]
        each = tokens * there.token_bytes + last * there.request_bytes
        whole = each * there.ranks
        sent = max(whole / here.ranks, tokens * here.token_bytes + last * here.request_bytes)
        ends: dict[Interface, tuple[float, float]] = {
            (inside, "out", source): (sent, route.from_bytes_per_s),
            (inside, "in", target): (each, route.to_bytes_per_s),
        }
        return ends, route.latency_s + tokens * route.token_s, int(whole)


def _fill(flows: dict[Flow, None]) -> None:
    """Raise the speeds of all flows evenly, 1 at most, until an interface of each is full."""
    if len(flows) == 1:
        next(iter(flows)).speed_share = 1.0
        return
    growing = dict(flows)
    free: dict[Interface, float] = {}
    for flow in growing:
        flow.speed_share = 0.0
        free.update(dict.fromkeys(flow.loads, 1.0))
    while growing:
        weight: dict[Interface, float] = dict.fromkeys(free, 0.0)
        for flow in growing:
            for name, load in flow.loads.items():
                weight[name] += load
        step = min((free[name] / weight[name] for name in weight if weight[name] > 0), default=INFINITY)
        full = {name for name in weight if weight[name] > 0 and free[name] / weight[name] <= step * (1 + 1e-12)}
        for name in weight:
            free[name] -= step * weight[name]
        for flow in list(growing):
            flow.speed_share += step
            if any(name in full for name, load in flow.loads.items() if load > 0):
                del growing[flow]
