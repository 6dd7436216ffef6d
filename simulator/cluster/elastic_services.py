"""Prefill and decode pools beside others in one cluster, whose servers come and go.

A request that two servers share fares as in pools of roles alone (`elastic_handover.py`), any other as in pools side by side.
"""

from __future__ import annotations

from engine_models.parts.protocols import Scheduler
from engine_models.parts.sequence import Sequence
from simulator.cluster.admission import Admission, Door
from simulator.cluster.cluster import Cluster
from simulator.cluster.elastic import Elastic
from simulator.cluster.elastic_handover import ElasticHandover, ElasticPull, ElasticReserving
from simulator.cluster.mixed import GroupRouter
from simulator.cluster.outcome import Rows
from simulator.cluster.router import Router
from simulator.cluster.services import Fleet, ReservingFleet


class ElasticFleet(ElasticHandover, Fleet):
    """What both ways to share requests have in common; parameters as of the bases."""

    def _router_of(self, replica: int) -> tuple[Router, int]:
        return self._seen_in[replica], replica

    def _fresh(self, replica: int) -> Scheduler:
        if replica < self._whole:
            return super()._fresh(replica)
        pool = self.fleet.pool_of[replica]
        joins = self._joins_of[pool - len(self.fleet.pools)]
        return joins.scheduler(replica - self.fleet.members[pool][0])

    def _first_pool(self, seq: Sequence) -> int:
        return self._pool_in(self._router, self._group(seq))

    def _enter_second(self, seq: Sequence) -> None:
        pool = self._pool_in(self._second, self._second_group[self._group(seq)])
        self._flows[pool].enter(seq, self._clock.now_s)

    def _pool_in(self, router: Router, group: int) -> int:
        """The first pool of a group in the stage of a router."""
        assert isinstance(router, GroupRouter)
        return self.fleet.pool_of[router.members(group)[0]]

    def _held(self, pool: int) -> int:
        if self._door is None:
            return 0
        service = self._pool_of[self.fleet.members[pool][0]]
        return self._door.waiting({n for n, group in enumerate(self._destinations.groups) if service in group})

    def _send(self, block: Rows, seq: Sequence) -> None:
        if self._goes_on(seq):
            super()._send(block, seq)
        else:
            Cluster._send(self, block, seq)

    def _submit(self, number: int, seq: Sequence) -> None:
        if self._goes_on(seq):
            super()._submit(number, seq)
        else:
            Elastic._submit(self, number, seq)


class ElasticPullFleet(ElasticFleet, ElasticPull):
    """Prefill replicas hold computed prompts until decode replicas have read them."""


class ElasticReservingFleet(ElasticFleet, ElasticReserving, ReservingFleet):
    """Decode replicas reserve memory for prompts that prefill replicas then compute and send."""

    def _made_door(self, rules: Admission) -> Door:
        return Door(rules, self._has_room, self._group)

    def _has_room(self, now_s: float, seq: Sequence) -> bool:
        return super()._has_room(now_s, seq) if self._goes_on(seq) else self._router.has_room(now_s, seq)


__all__ = ["ElasticPullFleet", "ElasticReservingFleet"]
