"""Prefill and decode replicas, the second of which compute those prompts themselves that their router does not send elsewhere."""

from __future__ import annotations

from typing import Any

from engine_models.parts.handover import PullDecode
from engine_models.parts.sequence import Sequence
from simulator.cluster.handover import HandoverCluster
from simulator.cluster.outcome import Rows
from simulator.cluster.policy_router import PolicyRouter
from simulator.cluster.routing.llm_d import Scored


class DecidingCluster(HandoverCluster):
    """A request's decode replica is chosen first; the router then says whether another computes the prompt.

    Parameters as of the base.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._targets: dict[int, int] = {}  # by request whose prompt is computed elsewhere: who is to answer it
        router = self._second
        assert isinstance(router, PolicyRouter)
        assert isinstance(router.policy, Scored)
        self._decider = router.policy
        self._decider.decides = True

    def _send(self, block: Rows, seq: Sequence) -> None:
        now_s, row, handed = self._clock.now_s, seq.index - block.first, block.handed
        assert handed is not None
        (answer,) = self._answers(block, row)
        number = super()._second_number(now_s, answer, int(block.workload.session_id[row]))
        if self._decider.apart:
            self._live[seq.index], self._targets[seq.index] = seq, number
            super()._send(block, seq)
            return
        answer.arrival_s = seq.arrival_s
        self._advance(number, now_s)
        reader = self.ranks[number].scheduler
        assert isinstance(reader, PullDecode)
        reader.compute(answer)
        block.replica[row] = handed.source[row] = number
        self._submit(number, answer)
        self._note(number)

    def _second_number(self, now_s: float, seq: Sequence, session: int) -> int:
        return self._accepting(self._targets.pop(seq.index), seq)


__all__ = ["DecidingCluster"]
