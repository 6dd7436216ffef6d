"""Several pools in one cluster, each with its engine, devices and model: requests go to those that are for them.

Requests for which the same pools are candidates share a router, which chooses among all replicas of these. A pool that is in
several such groups is seen by the routers of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from engine_models.declaration import EnginePlan, Executor, FrontEnd, Mode
from engine_models.lengths import Lengths, by_row, judged
from engine_models.parts.protocols import StepCost
from engine_models.parts.sequence import Sequence as Request
from simulator.cluster.admission import Admission, ClientRules, Door
from simulator.cluster.clock import ARRIVALS
from simulator.cluster.cluster import Cluster, Sink, Source
from simulator.cluster.content import for_adapter
from simulator.cluster.destinations import NOWHERE, Destinations, overlap
from simulator.cluster.devices import DeviceHistory
from simulator.cluster.joins import Joins, Keepers
from simulator.cluster.outcome import Reason, Rows
from simulator.cluster.router import Router, Routing
from simulator.cluster.routers import router_of
from simulator.cluster.servers import Servers
from simulator.serving.convoy import ConvoyReplica
from simulator.serving.replica import Replica
from simulator.workload.columns import IntArray, Workload

if TYPE_CHECKING:
    from simulator.cluster.encoding import Encoders


class MixedCluster(Cluster):
    """Pools side by side, their replicas numbered one pool after the other, and the ranks of each as if it were alone.

    Parameters
    ----------
    source : the requests.
    pools : the servers; before_s : time from the client's send to the engine, by pool.
    destinations : which requests may go where.
    routers : how the requests of each group of pools are routed.
    Others as of the base; `devices` are those of all replicas.
    """

    def __init__(
        self,
        source: Source,
        pools: Sequence[Servers],
        destinations: Destinations,
        routers: Sequence[Routing],
        *,
        before_s: Sequence[float],
        after_s: float = 0.0,
        admission: Admission | None = None,
        client: ClientRules | None = None,
        devices: int = 1,
        aggregate: bool = True,
        should_stop: Callable[[], bool] | None = None,
        encoders: Encoders | None = None,
    ) -> None:
        self._pools = pools
        self._gather(destinations, routers, before_s)
        self._limits_of = [pool.plan.limits for pool in pools]
        self._drafts_of = [pool.acceptance for pool in pools]
        self._pool_of = [number for number, pool in enumerate(pools) for _ in range(pool.replicas)]
        caching = any(pool.plan.prefix_caching for pool in pools)
        super().__init__(
            source,
            replace(pools[0].plan, prefix_caching=caching),
            pools[0].cost,
            admission=admission,
            client=client,
            before_s=min(before_s),
            after_s=after_s,
            aggregate=aggregate,
            should_stop=should_stop,
            encoders=encoders,
        )
        self.devices = DeviceHistory(devices)

    def _gather(self, destinations: Destinations, routers: Sequence[Routing], before_s: Sequence[float]) -> None:
        """Note who may get which requests."""
        self._destinations, self._routings = destinations, routers
        self._store: Keepers = {}  # who keeps the store that several pools share
        groups = destinations.groups
        self._own_before_s = before_s
        self._group_before_s = [min(before_s)] * len(groups)  # from the send to the router's choice
        if not overlap(groups):
            self._group_before_s = [min(before_s[pool] for pool in group) for group in groups]
        self._joins_of: list[Joins] = []
        self._group_of: dict[int, IntArray] = {}  # by the first request of a block: the group of each
        self._lengths_of: dict[int, list[Lengths]] = {}  # ... what the engine of each pool makes of it

    def follow(self, source: Source, at_s: float, destinations: Destinations | None = None) -> None:
        """As of the base."""
        super().follow(source, at_s, destinations)
        assert destinations is not None
        self._destinations = destinations
        self._group_of.clear()
        self._lengths_of.clear()

    def _made(self, plan: EnginePlan, cost: StepCost, replicas: int, ranks: int, mode: Mode) -> list[Replica]:
        made: list[Replica] = []
        convoy: list[ConvoyReplica] = []
        for pool in self._pools:
            joins = Joins(pool.plan, mode, pool.replicas, pool.nodes, self._store if pool.joins_store else None)
            self._joins_of.append(joins)
            mine = self._joined(joins, pool.plan, pool.cost, pool.replicas, pool.plan.executor.ranks, pool.meant_for)
            if pool.joins_store:
                convoy += [replica for replica in mine if isinstance(replica, ConvoyReplica)]
            made += mine
        for replica in convoy:
            replica.members = convoy
        return made

    def _places(self, ranks: int) -> list[tuple[int, int]]:
        places, first = [], 0
        for pool in self._pools:
            places += [(first + n, rank) for rank in range(pool.plan.executor.ranks) for n in range(pool.replicas)]
            first += pool.replicas
        return places

    def _front_ends(self) -> list[FrontEnd]:
        return [pool.plan.front for pool in self._pools for _ in range(pool.replicas)]

    def _routed(self, rule: str | Routing, executor: Executor) -> Router:
        groups = self._destinations.groups
        shared = overlap(groups)
        replicas = [[n for n, pool in enumerate(self._pool_of) if pool in group] for group in groups]
        routers = [
            router_of(
                [self.replicas[n] for n in members],
                routing,
                [self._pools[self._pool_of[n]].plan.executor for n in members],
                self._admission,
                changing=shared or self._changing(),
            )
            for members, routing in zip(replicas, self._routings, strict=True)
        ]
        places = {place: number for number, place in enumerate(self._places(1))}
        return GroupRouter(routers, replicas, places, self._group)

    def _made_door(self, rules: Admission) -> Door:
        return Door(rules, self._router.has_room, self._group)

    def _changing(self) -> bool:
        """Whether a replica may be out of the routers' choice for a while."""
        return False

    def _group(self, seq: Request) -> int:
        """The group of pools that a request may go to."""
        first = self._of(seq.index).first
        return int(self._group_of[first][seq.index - first])

    def _judged(self, workload: Workload) -> Rows:
        first, groups = self._rows, self._destinations.of(workload)
        self._group_of[first] = groups
        columns = workload.prompt_tokens, workload.output_tokens, workload.max_output_tokens
        found = self._lengths_of[first] = [judged(*columns, limits) for limits in self._limits_of]
        shown = np.zeros(len(workload), np.int64)  # of the pool that takes it, as far as is known
        for number, group in enumerate(self._destinations.groups):
            rows = np.flatnonzero(groups == number)
            refused = np.stack([found[pool].refused[rows] for pool in group])
            shown[rows] = np.array(group)[np.argmin(refused, axis=0)]
        lengths, nowhere = by_row(found, shown), groups == NOWHERE
        for column in lengths.columns()[2:]:
            column[nowhere] = False
        return Rows(workload, self._plan.limits, first, lengths=lengths, nowhere=nowhere)

    def _hand_over(self, sink: Sink) -> None:
        first = self._blocks[0].first
        super()._hand_over(sink)
        del self._group_of[first], self._lengths_of[first]

    def _suits(self, block: Rows, seq: Request, replica: int) -> Reason | None:
        """As of the base: how long its answer may be is its server's business, and its way through that one's front end."""
        row, pool = seq.index - block.first, self._pool_of[replica]
        changed = block.lengths.follow(self._lengths_of[block.first][pool], row)
        found = block.lengths
        if found.too_long[row]:
            return Reason.PROMPT_TOO_LONG
        if found.asked_too_much[row]:
            return Reason.LIMIT_TOO_LONG
        if found.never_fits[row]:
            return Reason.EXCEEDS_KV_CACHE
        if changed:
            seq.final_length = seq.prompt_tokens + int(found.output_tokens[row])
            seq.stop_known = bool(found.stop_known[row])
            if (shared := self._shared.get(block.first)) is not None:
                runs, seq.shareable_tokens, seq.output_shared = shared.of(row)
                seq.runs = for_adapter(runs, seq.adapter) if seq.adapter else runs
        acceptance = self._drafts_of[pool]
        seq.acceptance = acceptance(seq.index) if acceptance is not None else None
        self._delay(block, seq, self._group_before_s[self._group(seq)], self._own_before_s[pool])
        return None

    def _reach(self, block: Rows, seq: Request) -> None:
        """As of the base, once the request is where its group's router chooses: behind the front end that all its pools have."""
        due_s = self._group_before_s[self._group(seq)]
        if due_s == self._before_s:
            super()._reach(block, seq)
            return
        self._delay(block, seq, self._before_s, due_s)
        self._clock.at(seq.arrival_s, ARRIVALS, partial(super()._reach, block, seq))

    @staticmethod
    def _delay(block: Rows, seq: Request, before_s: float, later_s: float) -> None:
        """Move a request from `before_s` to `later_s` after its send, or by as much where it was sent on later."""
        if later_s > before_s:
            sent_s = float(block.arrival_s[seq.index - block.first])
            at_once = seq.arrival_s == sent_s + before_s
            seq.arrival_s = sent_s + later_s if at_once else seq.arrival_s + (later_s - before_s)


class GroupRouter(Router):
    """A router a group of pools.

    Parameters
    ----------
    routers : of the groups.
    replicas : the replicas of each group.
    numbers : the number of each replica's rank.
    group_of : the group of a request.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        replicas: Sequence[Sequence[int]],
        numbers: dict[tuple[int, int], int],
        group_of: Callable[[Request], int],
    ) -> None:
        self.routers, self._replicas, self._numbers, self._group_of = routers, replicas, numbers, group_of
        self.seed = routers[0].seed
        self.reads_text = any(router.reads_text for router in routers)
        self.filters = any(router.filters for router in routers)
        self._seen_by: list[list[tuple[int, int]]] = [[] for _ in range(1 + max(max(members, default=0) for members in replicas))]
        for group, members in enumerate(replicas):
            for local, replica in enumerate(members):
                self._seen_by[replica].append((group, local))

    def choose(self, now_s: float, seq: Request, session: int) -> int:
        """As of the base."""
        group = self._group_of(seq)
        replica, rank = self._place(group, self.routers[group].choose(now_s, seq, session))
        for other, local in self._seen_by[replica]:
            if other != group:
                self.routers[other].shared(seq, session, local, now_s)
        return self._numbers[replica, rank]

    def keeps(self, now_s: float, seq: Request, session: int) -> int | None:
        """As of the base."""
        group = self._group_of(seq)
        chosen = self.routers[group].keeps(now_s, seq, session)
        return None if chosen is None else self._numbers[self._place(group, chosen)]

    def _place(self, group: int, chosen: int) -> tuple[int, int]:
        """Replica and rank that a group's router has chosen."""
        members = self._replicas[group]
        return members[chosen % len(members)], chosen // len(members)

    def members(self, group: int) -> Sequence[int]:
        """The replicas of a group."""
        return self._replicas[group]

    def only(self, group: int, replicas: Sequence[int]) -> None:
        """From now on only these replicas of a group may be chosen for it."""
        members = self._replicas[group]
        self.routers[group].serving([members.index(replica) for replica in replicas])

    def looks_s(self) -> float:
        """As of the base."""
        return min(router.looks_s() for router in self.routers)

    def look(self, now_s: float) -> None:
        """As of the base."""
        for router in self.routers:
            router.look(now_s)

    def note(self, replica: int) -> None:
        """As of the base."""
        for group, local in self._seen_by[replica]:
            self.routers[group].note(local)

    def ended(self, seq: Request, now_s: float) -> None:
        """As of the base."""
        for router in self.routers:
            router.ended(seq, now_s)

    def lost(self, seq: Request, now_s: float) -> None:
        """As of the base."""
        for router in self.routers:
            router.lost(seq, now_s)

    def serving(self, replicas: Sequence[int]) -> None:
        """As of the base."""
        there = set(replicas)
        for router, members in zip(self.routers, self._replicas, strict=True):
            router.serving([local for local, replica in enumerate(members) if replica in there])

    def renewed(self, replica: int) -> None:
        """As of the base."""
        for group, local in self._seen_by[replica]:
            self.routers[group].renewed(local)

    def refused(self, seq: Request, now_s: float) -> float | None:
        """As of the base."""
        again_s = self.routers[self._group_of(seq)].refused(seq, now_s)
        self.ended(seq, now_s)  # the others
        return again_s

    def turns_away(self, seq: Request) -> bool:
        """As of the base."""
        return self.routers[self._group_of(seq)].turns_away(seq)

    def serves(self, seq: Request) -> bool:
        """As of the base."""
        return self.routers[self._group_of(seq)].serves(seq)

    def has_room(self, now_s: float, seq: Request | None = None) -> bool:
        """As of the base; where no request is named, of the only group."""
        group = 0 if seq is None else self._group_of(seq)
        return self.routers[group].has_room(now_s, seq)
