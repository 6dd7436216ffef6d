"""Prefill and decode pools beside others in one cluster: services, each of which answers the requests of its own.

A service is a pool that computes prompts and answers, or the prefill and decode pools of one model and one range of prompts.
Replicas are numbered stage by stage: those that compute prompts, those that answer, those that do both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from engine_models.declaration import EnginePlan, Executor, FrontEnd, Limits, Mode
from engine_models.parts.protocols import StepCost
from engine_models.parts.sequence import Sequence as Request
from hardware_profiles.records import dataclass
from simulator.cluster.admission import Admission, ClientRules
from simulator.cluster.cluster import Cluster, IntArray, Source
from simulator.cluster.deciding import DecidingCluster, KeepingCluster, decider_of
from simulator.cluster.destinations import Destinations
from simulator.cluster.devices import DeviceHistory
from simulator.cluster.faults import Disturbance
from simulator.cluster.handover import HandoverCluster, ReservingCluster, prompt_alone
from simulator.cluster.mixed import GroupRouter, MixedCluster
from simulator.cluster.outcome import Reason, Rows
from simulator.cluster.router import Router, Routing
from simulator.cluster.routers import router_of
from simulator.cluster.routing.llm_d import Scored
from simulator.cluster.servers import Servers
from simulator.cluster.transfer import Paths
from simulator.serving.convoy import ConvoyReplica
from simulator.serving.replica import Replica


@dataclass(frozen=True)
class Stages:
    """Pools by what their replicas do, in the order in which these are numbered, and the service of each pool in that order."""

    prefill: Sequence[Servers]
    decode: Sequence[Servers]
    both: Sequence[Servers]
    services: Sequence[int]


class Fleet(HandoverCluster, MixedCluster):
    """Services side by side, at least one of which has prefill and decode replicas.

    Parameters
    ----------
    source : the requests.
    stages : the pools.
    paths : the ways between replicas of the first two stages.
    limits, before_s : of each service, what it takes, and the time from the client's send to its front end's choice.
    destinations : which requests may go to which services.
    routings : how the requests of each group of services are routed.
    Others as of the bases; `devices` are those of all replicas. Limits of the router and clients that give up are for the
    subclasses whose replicas come and go.
    """

    def __init__(
        self,
        source: Source,
        stages: Stages,
        paths: Paths,
        limits: Sequence[Limits],
        destinations: Destinations,
        routings: Sequence[Routing],
        *,
        before_s: Sequence[float],
        disturbances: Sequence[Disturbance] = (),
        admission: Admission | None = None,
        client: ClientRules | None = None,
        after_s: float = 0.0,
        devices: int = 1,
        aggregate: bool = True,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._pools = stages.both
        pools = [*stages.prefill, *stages.decode, *stages.both]
        self._pair(stages.prefill, stages.decode, paths, disturbances, 0.0)
        self._gather(destinations, routings, before_s)
        self._limits_of = list(limits)
        self._pool_of = [service for service, pool in zip(stages.services, pools, strict=True) for _ in range(pool.replicas)]
        self._whole = sum(pool.replicas for pool in (*stages.prefill, *stages.decode))  # the first that does both
        alone = {service: pool for service, pool in zip(stages.services, pools, strict=True) if pool in stages.both}
        self._drafts_of = [alone[n].acceptance if n in alone else None for n in range(len(limits))]
        self._paired = [any(service not in alone for service in group) for group in destinations.groups]
        Cluster.__init__(
            self,
            source,
            replace(stages.decode[0].plan, limits=limits[0], prefix_caching=any(pool.plan.prefix_caching for pool in pools)),
            stages.decode[0].cost,
            admission=admission,
            client=client,
            before_s=min(before_s),
            after_s=after_s,
            aggregate=aggregate,
            should_stop=should_stop,
        )
        self._open()
        self.devices = DeviceHistory(devices)

    def _made(self, plan: EnginePlan, cost: StepCost, replicas: int, ranks: int, mode: Mode) -> list[Replica]:
        pairs = HandoverCluster._made(self, plan, cost, replicas, ranks, mode)
        made = [*pairs, *MixedCluster._made(self, plan, cost, replicas, ranks, mode)]
        joins = [pool.joins_store for pool in self._all() for _ in range(pool.replicas)]
        around_store = [
            each for each, shares in zip(made, joins, strict=True) if shares and isinstance(each, ConvoyReplica)
        ]
        for each in around_store:
            each.members = around_store
        return made

    def _all(self) -> list[Servers]:
        return [*super()._all(), *self._pools]

    def _front_ends(self) -> list[FrontEnd]:
        return [
            pool.plan.front if at >= self._whole else pool.plan.front.unqueued() for at, pool in enumerate(self._servers)
        ]

    def _routed(self, rule: str | Routing, executor: Executor) -> Router:
        system = self._routings[0].system
        self._holds_prefill = system is not None and system.holds_prefill
        first: list[tuple[list[int], Routing]] = []
        second: list[tuple[list[int], Routing]] = []
        self._second_group: dict[int, int] = {}
        for group, (services, paired, routing) in enumerate(
            zip(self._destinations.groups, self._paired, self._routings, strict=True)
        ):
            mine = [at for at, service in enumerate(self._pool_of) if service in services]
            prompts = [at for at in mine if at < self._first]
            answers = [at for at in mine if at >= self._first]
            if not paired:
                first.append((answers, routing))
                continue
            first.append((prompts, replace(routing, role="prefill")))
            self._second_group[group] = len(second)
            second.append((answers, replace(routing, role="decode", seed=_next_of(routing.seed))))
        prompts_limit, answers_limit = (self._admission if held else None for held in self._limits_at)
        self._second = self._stage(second, lambda seq: self._second_group[self._group(seq)], [answers_limit] * len(second))
        limits = [prompts_limit if paired else self._admission for paired in self._paired]
        router = self._stage(first, self._group, limits)
        router.reads_text = router.reads_text or self._second.reads_text
        self._seen_in: list[Router] = [router] * len(self.replicas)
        for at in chain.from_iterable(members for members, _ in second):
            self._seen_in[at] = self._second
        return router

    def _stage(
        self,
        groups: Sequence[tuple[list[int], Routing]],
        group_of: Callable[[Request], int],
        limits: Sequence[Admission | None],
    ) -> GroupRouter:
        """The routers of a stage, each with its limits."""
        executors = [servers.plan.executor for servers in self._servers]
        routers = [
            router_of(
                [self.replicas[at] for at in members],
                routing,
                [executors[at] for at in members],
                limit,
                changing=self.changing,
            )
            for (members, routing), limit in zip(groups, limits, strict=True)
        ]
        return GroupRouter(routers, [members for members, _ in groups], self._number_of, group_of)

    def _chosen(self, stage: int, choice: int) -> int:
        return choice

    # -- the way of a request -------------------------------------------------------------------------------

    def _goes_on(self, seq: Request) -> bool:
        """Whether a request is one of a service with two stages."""
        return self._paired[self._group(seq)]

    def _sequences(self, block: Rows, rows: IntArray) -> list[Request]:
        made = Cluster._sequences(self, block, rows)
        for seq in made:
            if self._goes_on(seq):
                prompt_alone(seq)
        return made

    def _send(self, block: Rows, seq: Request) -> None:
        if self._goes_on(seq):
            super()._send(block, seq)
        else:
            Cluster._send(self, block, seq)

    def _suits(self, block: Rows, seq: Request, replica: int) -> Reason | None:
        reason = super()._suits(block, seq, replica)
        if replica < self._first:
            prompt_alone(seq)
        return reason

    def _submit(self, number: int, seq: Request) -> None:
        if self._replica_of[number] >= self._whole:
            block = self._of(seq.index)
            assert block.handed is not None
            block.handed.source[seq.index - block.first] = number
        super()._submit(number, seq)

    # -- waking ---------------------------------------------------------------------------------------------

    def _run_to(self, at: int, to_s: float) -> None:
        if at < self._whole:
            super()._run_to(at, to_s)
        else:
            Cluster._run_to(self, at, to_s)

    def _watch(self, number: int) -> None:
        if number < self._whole:
            super()._watch(number)
        else:
            Cluster._watch(self, number)

    def _hear(self, number: int) -> None:
        if self._replica_of[number] < self._whole:
            super()._hear(number)
        else:
            self._note(number)

    def _tell(self, replica: int) -> None:
        self._seen_in[replica].note(replica)

    def _changed(self, at: int) -> None:
        self._tell(at)
        self._watch(at)


class ReservingFleet(Fleet, ReservingCluster):
    """As the base; decode replicas reserve memory for prompts before these are computed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pairs = {}
        super().__init__(*args, **kwargs)


class DecidingFleet(Fleet, DecidingCluster):
    """As the base; the router says whose prompts are computed apart, and chooses among all replicas that can answer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._targets = {}
        super().__init__(*args, **kwargs)
        for decider in self._deciders():
            decider.decides = True

    def _deciders(self) -> Sequence[Scored]:
        assert isinstance(self._second, GroupRouter)
        return [decider_of(router) for router in self._second.routers]

    def _decider(self, seq: Request) -> Scored:
        return self._deciders()[self._second_group[self._group(seq)]]


class KeepingFleet(Fleet, KeepingCluster):
    """As the base; the routers of second stages first say who computes a prompt and answers."""


def _next_of(seed: Callable[[], int]) -> Callable[[], int]:
    return lambda: seed() + 1


__all__ = ["DecidingFleet", "Fleet", "KeepingFleet", "ReservingFleet", "Stages"]
