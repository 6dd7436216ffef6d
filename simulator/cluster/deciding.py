"""Prefill and decode replicas, the second of which compute those prompts themselves that their router does not send elsewhere."""

from __future__ import annotations

from collections.abc import Sequence as Series
from typing import Any

from engine_models.parts.handover import PullDecode
from engine_models.parts.sequence import Sequence
from simulator.cluster.handover import HandoverCluster
from simulator.cluster.outcome import REJECTED, Rows
from simulator.cluster.policy_router import PolicyRouter
from simulator.cluster.router import Router
from simulator.cluster.routing.llm_d import Scored


class ComputingCluster(HandoverCluster):
    """Decode replicas compute some prompts. Parameters as of the base."""

    def _compute(self, block: Rows, answer: Sequence, number: int) -> None:
        """A decode replica gets a request whose prompt it computes, or one that passes nothing on gets it."""
        now_s, row, handed = self._clock.now_s, answer.index - block.first, block.handed
        assert handed is not None
        self._advance(number, now_s)
        reader = self.ranks[number].scheduler
        if isinstance(reader, PullDecode):
            reader.compute(answer)
        block.replica[row] = handed.source[row] = number
        self._submit(number, answer)
        self._note(number)


class KeepingCluster(ComputingCluster):
    """The router of the second stage first says who computes a prompt and answers; else both stages choose in turn.

    Parameters as of the base. Limits of the router hold at both stages for who comes, not for who goes on to the second.
    """

    _limits_at = (True, True)

    def _send(self, block: Rows, seq: Sequence) -> None:
        row = seq.index - block.first
        (answer,) = self._answers(block, row)
        answer.arrival_s = seq.arrival_s
        number = self._keeper(self._clock.now_s, answer, int(block.workload.session_id[row]))
        if number is None:
            self._live[seq.index] = seq
            super()._send(block, seq)
        else:
            self._compute(block, answer, number)

    def _keeper(self, now_s: float, answer: Sequence, session: int) -> int | None:
        """The number of the rank that computes a prompt and answers it, None if two share it."""
        number = self._second.keeps(now_s, answer, session)
        return None if number is None else self._accepting(self._chosen(1, number), answer)


class DecidingCluster(ComputingCluster):
    """A request's decode replica is chosen first; the router then says whether another computes the prompt.

    Parameters as of the base. Limits of the router hold at the replica that is chosen first, from then to the answer's end.
    """

    _limits_at = (False, True)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._targets: dict[int, int] = {}  # by request whose prompt is computed elsewhere: who is to answer it
        for decider in self._deciders():
            decider.decides = True

    def _deciders(self) -> Series[Scored]:
        """Those that say whether another replica computes a prompt."""
        return [decider_of(self._second)]

    def _decider(self, seq: Sequence) -> Scored:
        """The one that says it of a request."""
        return decider_of(self._second)

    def _send(self, block: Rows, seq: Sequence) -> None:
        now_s, row = self._clock.now_s, seq.index - block.first
        (answer,) = self._answers(block, row)
        session = int(block.workload.session_id[row])
        number = super()._second_number(now_s, answer, session)
        apart = self._decider(seq).apart and self._router.has_room(now_s, seq)
        if apart and self._passes(number):
            self._live[seq.index], self._targets[seq.index] = seq, number
            super()._send(block, seq)
            return
        answer.arrival_s = seq.arrival_s
        if (reason := self._suits(block, answer, self._replica_of[number])) is not None:
            block.replica[row] = number  # which has said so
            self._second.ended(answer, now_s)
            self._turn_away(block, answer, REJECTED, reason)
            return
        if apart:  # the server named for it is not asked, and counts as busy all the same
            self._router.choose(now_s, answer, session)
        self._compute(block, answer, number)

    def _passes(self, number: int) -> bool:
        """Whether a rank has prompts computed elsewhere: others have nobody beside them who would ask for that."""
        return isinstance(self.ranks[number].scheduler, PullDecode)

    def _second_number(self, now_s: float, seq: Sequence, session: int) -> int:
        return self._accepting(self._targets.pop(seq.index), seq)


def decider_of(router: Router) -> Scored:
    """The policy of a router that decides."""
    assert isinstance(router, PolicyRouter)
    assert isinstance(router.policy, Scored)
    return router.policy


__all__ = ["DecidingCluster", "KeepingCluster", "decider_of"]
