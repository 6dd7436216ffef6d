"""Memory first, then tokens, behind a server that gathers requests before it hands them over, and may show answers at their end.

The server hands requests over when a preferred number of them waits, or the one that waits longest has waited so long; then all
who wait go at once. Of those whom the scheduler has not let in at most so many may stand in its queue: who comes to a full one is
turned away. Where answers do not stream, all tokens of a request are seen when it ends.

Source: Triton's dynamic batcher in front of its TensorRT-LLM backend, which takes whatever it is given at once
(tensorrtllm_backend, `docs/model_config.md`: `max_queue_delay_microseconds`, `max_queue_size`, `decoupled_mode`; core at 73aad7c,
2026-06: `dynamic_batch_scheduler.cc`); read and not recorded.
"""

from __future__ import annotations

from collections import deque

from engine_models.memory.block_tree import BlockTree
from engine_models.parts.protocols import INFINITY, Run, State
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import TwoPassBatch, TwoPassRules, TwoPassScheduler
from engine_models.schedulers.memory_then_tokens_drafted import DraftedTwoPassScheduler
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Gathering:
    """How requests are handed over.

    delay_s : the longest that one waits for others, preferred : the number that goes at once. queue : most that may wait for a
    place, 0 for no limit. streams : whether tokens are seen as they come.
    """

    delay_s: float = 0.0
    preferred: int = 1
    queue: int = 0
    streams: bool = True


class HandedTwoPassScheduler(TwoPassScheduler):
    """The scheduler behind such a server, which hands requests over by `gathering`."""

    def __init__(
        self,
        rules: TwoPassRules,
        kv: BlockTree,
        gathering: Gathering,
        *,
        aggregate: bool = True,
        windows: tuple[int, ...] = (),
    ) -> None:
        super().__init__(rules, kv, aggregate=aggregate, windows=windows)
        self.gathering = gathering
        self.gathered: deque[Sequence] = deque()

    def add(self, seq: Sequence) -> None:
        """As of the base: it waits for others first."""
        if not self.gathering.delay_s:
            super().add(seq)
            return
        seq.state = "waiting"
        self.gathered.append(seq)

    @property
    def cancels(self) -> bool:
        """As of the base: not yet through the server in front."""
        return False

    def has_work(self) -> bool:
        """As of the base."""
        return bool(self.gathered) or super().has_work()

    def state(self) -> State:
        """As of the base."""
        running, waiting, held, there = super().state()
        return running, waiting + len(self.gathered), held, there

    def sheds(self, now_s: float, coming: int) -> bool:
        """As of the base."""
        most = self.gathering.queue
        return bool(most) and len(self._queue) + len(self.gathered) + coming >= most

    def wake_s(self) -> float:
        """When those that wait are handed over."""
        rule, waiting = self.gathering, self.gathered
        if not waiting:
            return INFINITY
        late_s = waiting[0].arrival_s + rule.delay_s
        return min(late_s, waiting[rule.preferred - 1].arrival_s) if len(waiting) >= rule.preferred else late_s

    def schedule(self, now_s: float) -> TwoPassBatch | None:
        """As of the base, after what is due has been handed over."""
        while (due_s := self.wake_s()) <= now_s:
            count = 0
            while self.gathered and self.gathered[0].arrival_s <= due_s and count < self.gathering.preferred:
                super().add(self.gathered.popleft())
                count += 1
        return super().schedule(now_s)

    def run(self) -> Run | None:
        """As of the base, until others are handed over."""
        run = super().run()
        if run is not None and self.gathered:
            run.until_s = min(run.until_s, self.wake_s())
        return run

    def _end(self, seq: Sequence) -> None:
        super()._end(seq)
        if not self.gathering.streams and seq.emissions:
            seq.emissions = seq.emissions[-1:] * 2 * seq.emitted_tokens()


class DraftedHandedTwoPassScheduler(HandedTwoPassScheduler, DraftedTwoPassScheduler):
    """The same with drafts."""

    def __init__(
        self, rules: TwoPassRules, kv: BlockTree, gathering: Gathering, *, row_tokens: int, windows: tuple[int, ...] = ()
    ) -> None:
        DraftedTwoPassScheduler.__init__(self, rules, kv, row_tokens=row_tokens, windows=windows)
        self.gathering = gathering
        self.gathered = deque()


__all__ = ["DraftedHandedTwoPassScheduler", "Gathering", "HandedTwoPassScheduler"]
