"""Models that take turns on devices which may be lost, be slow or be taken out of service.

The servers of a place come and go as one, named by the first of them. With a place all is lost that it serves and all that waits
there for another model: the proxy that holds these runs beside the servers (llama-swap; assumed of others). When its devices are
back, the model that was there last is started on them (assumed), and gets nothing before it serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine_models.parts.sequence import Sequence as Request
from simulator.cluster.elastic import Elastic
from simulator.cluster.elastic_mixed import ElasticMixed
from simulator.cluster.fleet import WITH_DEVICES, Members, State
from simulator.cluster.outcome import Rows
from simulator.cluster.router import Router, Routing
from simulator.cluster.servers import Share
from simulator.cluster.turns import TurnsCluster


class ElasticTurns(ElasticMixed, TurnsCluster):
    """Parameters as of the bases; of pools that share places the first has all replicas and devices in `fleet`."""

    def __init__(self, *args: Any, pools: Sequence[Members], shares: Sequence[Share | None], **kwargs: Any) -> None:
        self._names = [members.name for members in pools]
        seen: set[str] = set()
        counted = []
        for members, share in zip(pools, shares, strict=True):
            if share is None:
                counted.append(members)
            elif share.place in seen:
                counted.append(replace(members, replicas=0, devices=0))
            else:
                counted.append(replace(members, name=share.place))
                seen.add(share.place)
        super().__init__(*args, pools=counted, shares=shares, **kwargs)

    def _routed(self, rule: str | Routing, executor: Any) -> Router:
        return TurnsCluster._routed(self, rule, executor)

    def devices_of_pools(self, start_s: float, end_s: float) -> list[float] | None:
        """As of the base."""
        return TurnsCluster.devices_of_pools(self, start_s, end_s)

    def ranks_in(self, start_s: float, end_s: float, pool: str | None = None) -> float:
        """As of the base; a rank that sleeps is there too."""
        fleet, found = self.fleet, 0.0
        for number, members in enumerate(fleet.pools):
            if pool in (None, self._names[number]) and members.most:
                first = fleet.members[number][0]
                counted = fleet.pool_of[self._beside(first)[0]]
                there = fleet.devices[counted].mean(start_s, end_s) / fleet.pools[counted].devices
                found += there * len(self.replicas[first].ranks)
        return max(found, 1e-9)

    def _beside(self, replica: int) -> Sequence[int]:
        stand = self._stands[replica]
        return (replica,) if stand is None else stand.members

    def _is_sent_to(self, replica: int) -> bool:
        return Elastic._is_sent_to(self, self._beside(replica)[0])

    def _holds_nothing(self, replica: int) -> bool:
        stand = self._stands[replica]
        return not (stand is not None and stand.waiting) and not any(self.replicas[n].in_service for n in self._beside(replica))

    def _awaited(self, number: int) -> bool:
        return self._beside(number)[0] in self._away_s or TurnsCluster._awaited(self, number)

    def _settle_steps(self, seq: Request, number: int) -> None:
        """The bases have done so."""

    def _give_up(self, block: Rows, seq: Request, attempt: int) -> None:
        super()._give_up(block, seq, attempt)
        self._may_leave(self._clock.now_s)

    def _lose(self, replica: int, away_s: float | None, silent_s: float = 0.0) -> None:
        stand = self._stands[replica]
        if stand is not None and self.fleet.states[replica] != State.ABSENT:
            if self.fleet.states[replica] in WITH_DEVICES:
                self._hold(stand.here, -1)
            stand.life += 1
            stand.ready = False
        super()._lose(replica, away_s, silent_s)

    def _lose_request(self, seq: Request, number: int) -> None:
        stand = self._stands[self._replica_of[number]]
        if stand is not None:
            for held in [each for each in stand.waiting if each[2] is seq]:
                stand.waiting.remove(held)
        super()._lose_request(seq, number)

    def _return(self, replica: int, life: int) -> None:
        stand = self._stands[replica]
        if stand is None:
            super()._return(replica, life)
        elif self.fleet.life[replica] == life:
            self._hold(stand.here, 1)
            self._start(replica, self._members(stand.here).back_s)

    def _come(self, replica: int, life: int) -> None:
        current = self.fleet.life[replica] == life
        super()._come(replica, life)
        stand = self._stands[replica]
        if current and stand is not None:
            self._open_up(stand, stand.life)


__all__ = ["ElasticTurns"]
