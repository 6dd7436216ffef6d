"""Pools side by side whose replicas come and go."""

from __future__ import annotations

from collections.abc import Iterable

from engine_models.declaration import EnginePlan, Executor
from engine_models.parts.protocols import Scheduler
from engine_models.parts.sequence import Sequence
from simulator.cluster.elastic import ElasticCluster
from simulator.cluster.mixed import MixedCluster
from simulator.cluster.router import Router, Routing


class ElasticMixed(ElasticCluster, MixedCluster):
    """Parameters as of the bases."""

    def _routed(self, rule: str | Routing, executor: Executor) -> Router:
        return MixedCluster._routed(self, rule, executor)

    def _changing(self) -> bool:
        return True

    def _fresh(self, replica: int) -> Scheduler:
        pool = self._pool_of[replica]
        return self._joins_of[pool].scheduler(replica - self.fleet.members[pool][0])

    def _plan_of(self, replica: int) -> EnginePlan:
        return self._pools[self._pool_of[replica]].plan

    def _first_pool(self, seq: Sequence) -> int:
        return self._destinations.groups[self._group(seq)][0]

    def _held(self, pool: int) -> int:
        if self._door is None:
            return 0
        groups: Iterable[tuple[int, ...]] = self._destinations.groups
        return self._door.waiting({number for number, group in enumerate(groups) if pool in group})

    def devices_of_pools(self, start_s: float, end_s: float) -> list[float] | None:
        """As of the base."""
        return [history.mean(start_s, end_s) for history in self.fleet.devices]


__all__ = ["ElasticMixed"]
