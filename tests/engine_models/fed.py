"""Requests fed to one replica, for the tests of schedulers."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Series
from typing import Generic, TypeVar

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import Scheduler, StepCost
from engine_models.parts.sequence import Sequence
from simulator.serving.replica import Replica

S = TypeVar("S", bound=Scheduler)
B = TypeVar("B", bound=Batch)


def sharing(asked: Iterable[tuple[float, int, int, int]], shared_tokens: int, *, limit_tokens: int = 0) -> list[Sequence]:
    """Requests by arrival [s], prompt, answer, and the group whose text begins their prompts (0: none)."""
    return [
        Sequence(
            index,
            prompt,
            output,
            at,
            limit_tokens=limit_tokens,
            runs=((group, 0, min(shared_tokens, prompt)),) if group else (),
            shareable_tokens=min(shared_tokens, prompt) if group else 0,
        )
        for index, (at, prompt, output, group) in enumerate(asked)
    ]


def feed(
    replica: Replica, seqs: Series[Sequence], pace_s: float, submit: Callable[[Sequence, float], None] | None = None
) -> None:
    """Hand each request over when it arrives (or let `submit` do it) and advance the replica until all have ended.

    It is advanced by `pace_s` beyond its next event at most, so that runs of equal steps are cut here and there.
    """
    due = [(seq.arrival_s, seq.index) for seq in seqs]
    heapq.heapify(due)
    while due or replica.busy():
        event_s = replica.next_event_s()
        if due and due[0][0] <= event_s:
            at_s, index = heapq.heappop(due)
            replica.advance(at_s)
            if submit is None:
                replica.ranks[0].submit(seqs[index])
            else:
                submit(seqs[index], at_s)
        else:
            replica.advance(min(event_s + pace_s, due[0][0] if due else float("inf")), stop_after_finish=True)


class Fed(Generic[S, B]):
    """What became of requests under a scheduler: `ends` [s] by index, `tokens` the numbers of the batches that gave tokens,
    `batches` (each of the type `kind`) and the `log`."""

    def __init__(
        self, scheduler: S, seqs: list[Sequence], clock: StepCost, kind: type[B], *, pace_s: float = 0.5, depth: int = 1
    ) -> None:
        self.scheduler, self.seqs, self._kind = scheduler, seqs, kind
        self.batches: list[B] = []
        self.ends: dict[int, float] = {}
        replica = Replica([scheduler], clock, depth=depth, on_finish=self.ended, on_batch=self._settled)
        feed(replica, seqs, pace_s)
        scheduler.close()
        self.tokens = token_steps(seqs)
        self.log = replica.ranks[0].log

    def ended(self, seq: Sequence, now_s: float) -> None:
        """Note the end of a request."""
        self.ends[seq.index] = now_s

    def _settled(self, batch: Batch) -> None:
        assert isinstance(batch, self._kind)
        self.batches.append(batch)
        self.settled(batch)

    def settled(self, batch: B) -> None:
        """Check what holds after every batch."""

    def rows(self) -> list[list[tuple[int, int, int]]]:
        """Of each step, the rows by index: new tokens and those before."""
        return [[(seq.index, new, before) for seq, new, before in batch.rows or ()] for batch in self.batches]


class Served(Fed[Scheduler, Batch]):
    """What became of requests that share nothing, given as (arrival [s], prompt tokens, output tokens)."""

    def __init__(self, scheduler: Scheduler, asked: Iterable[tuple[float, int, int]], clock: StepCost) -> None:
        super().__init__(scheduler, apart(asked), clock, Batch)


def apart(asked: Iterable[tuple[float, int, int]]) -> list[Sequence]:
    """Requests that share nothing, by arrival [s], prompt and answer."""
    return [Sequence(index, prompt, output, at) for index, (at, prompt, output) in enumerate(asked)]


def token_steps(seqs: Iterable[Sequence]) -> list[list[int]]:
    """Numbers of the batches that gave each request its tokens."""
    return [[n for first, last in seq.ranges() for n in range(first, last + 1)] for seq in seqs]
