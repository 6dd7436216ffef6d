"""Prefill and decode replicas that come and go, the second of which compute those prompts that are not sent elsewhere.

*The decode server is chosen first* (`ElasticDeciding`). A sidecar beside it asks the prefill server. If that one is lost before
the prompt is computed, its decode server computes the prompt; if nobody computes prompts elsewhere, so does the one that is
chosen. If the decode server is lost, so is the request, wherever its prompt is (llm-d-inference-scheduler @ 520af478,
`pkg/sidecar/proxy/connector_nixlv2.go`, `runNIXLProtocolV2`; `proxy_helpers.go`, `shouldFallbackToDecode`: all answers but 4xx;
read, not run, 2026-05). A server that is lost unheard gives no answer until its loss is noticed (inference).

*Both are chosen in turn* (`ElasticKeeping`). Where no server computes prompts for others, those that answer do (Dynamo 1.6.1,
`lib/llm/src/kv_router/prefill_router`: no prefill worker is registered). A prompt that is lost while it is computed fails
(inference).
"""

from __future__ import annotations

from engine_models.parts.sequence import Sequence
from simulator.cluster.admission import Admission, Door
from simulator.cluster.deciding import ComputingCluster, DecidingCluster, KeepingCluster
from simulator.cluster.elastic_handover import ElasticPull
from simulator.cluster.elastic_services import ElasticFleet
from simulator.cluster.outcome import REJECTED, Reason, Rows
from simulator.cluster.services import DecidingFleet, KeepingFleet


class ElasticComputing(ElasticPull, ComputingCluster):
    """What both ways have in common; parameters as of the bases."""

    def _made_door(self, rules: Admission) -> Door:
        return Door(rules, self._lets_in)

    def _lets_in(self, now_s: float, seq: Sequence) -> bool:
        """Whether there is room for a request that comes now."""
        return self._second.has_room(now_s, seq)

    def _send(self, block: Rows, seq: Sequence) -> None:
        if self._lets_in(self._clock.now_s, seq):
            super()._send(block, seq)
        else:
            self._turn_away(block, seq, REJECTED, Reason.SHED_503)

    def _compute(self, block: Rows, answer: Sequence, number: int) -> None:
        for pool in self._peers(0):
            self._flows[pool].moved(answer, self._clock.now_s)
        self._enter_second(answer)
        super()._compute(block, answer, number)


class ElasticDeciding(ElasticComputing, DecidingCluster):
    """The decode server of a request is chosen first."""

    def _passes(self, number: int) -> bool:
        return super()._passes(number) and self._replica_of[number] not in self._silent

    def _goes_to_second(self, prompt: Sequence) -> bool:
        return True  # it was chosen before

    def _holds_nothing(self, replica: int) -> bool:
        expects = any(self._replica_of[number] == replica for number in self._targets.values())
        return not expects and super()._holds_nothing(replica)

    def _take_back(self, block: Rows, row: int) -> Sequence:
        self._targets.pop(block.first + row, None)
        return super()._take_back(block, row)

    def _drop(self, seq: Sequence, replica: int) -> None:
        """As of the base; a prompt whose prefill server is lost is computed by the decode server that was chosen for it."""
        number = self._targets.pop(seq.index, None) if self._live.get(seq.index) is seq else None
        if number is None:
            super()._drop(seq, replica)
            return
        block, now_s = self._of(seq.index), self._clock.now_s
        self._router_of(replica)[0].lost(seq, now_s)
        (answer,) = self._answers(block, seq.index - block.first)
        answer.arrival_s = now_s
        self._compute(block, answer, self._accepting(number, answer))

    def _notice(self, replica: int, waiting: list[Sequence] | None = None) -> None:
        silent = replica in self._silent
        super()._notice(replica, waiting)
        if silent and replica not in self._silent:
            self._forsake(replica)

    def _throw_out(self, replica: int) -> None:
        super()._throw_out(replica)
        if replica not in self._silent:
            self._forsake(replica)

    def _forsake(self, replica: int) -> None:
        """Requests are lost whose prompts are computed for a replica that is."""
        now_s = self._clock.now_s
        for index in [index for index, number in self._targets.items() if self._replica_of[number] == replica]:
            block = self._of(index)
            live = self._take_back(block, index - block.first)
            for waiting in self._silent.values():
                waiting[:] = [other for other in waiting if other.index != index]
            for router in (self._router, self._second):
                router.ended(live, now_s)
            self.toll.lost += 1
            super()._drop(live, replica)


class ElasticKeeping(ElasticComputing, KeepingCluster):
    """The router of the second stage first says who computes a prompt and answers."""

    def _lets_in(self, now_s: float, seq: Sequence) -> bool:
        prompts = self._router
        return super()._lets_in(now_s, seq) and (prompts.has_room(now_s, seq) or not prompts.serves(seq))

    def _goes_to_second(self, prompt: Sequence) -> bool:
        return self._second.serves(prompt)

    def _keeper(self, now_s: float, answer: Sequence, session: int) -> int | None:
        if self._router.has_room(now_s, answer):
            return super()._keeper(now_s, answer, session)
        return self._second_number(now_s, answer, session)


class ElasticComputingFleet(ElasticFleet, ElasticComputing):
    """As of the bases, beside other services."""

    def _made_door(self, rules: Admission) -> Door:
        return Door(rules, self._has_room, self._group)

    def _has_room(self, now_s: float, seq: Sequence) -> bool:
        return self._lets_in(now_s, seq) if self._goes_on(seq) else self._router.has_room(now_s, seq)


class ElasticDecidingFleet(ElasticComputingFleet, ElasticDeciding, DecidingFleet):
    """The decode server of a request is chosen first."""


class ElasticKeepingFleet(ElasticComputingFleet, ElasticKeeping, KeepingFleet):
    """The routers of second stages first say who computes a prompt and answers."""


__all__ = ["ElasticDeciding", "ElasticDecidingFleet", "ElasticKeeping", "ElasticKeepingFleet"]
