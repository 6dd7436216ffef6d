"""Images of several requests are encoded together: as many requests as wait when the batch before has ended, up to a number.

Nothing else is looked at: neither the number of their images nor their size, and there is one batch at a time.

Source: SGLang 0.5.23's `disaggregation/encoder/runtime.py` (`EncoderScheduler._collect_batch`, `_dispatch_group`), read 2026-12,
compared with no recording.
"""

from __future__ import annotations

from collections import deque

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import Scheduler, State
from engine_models.parts.sequence import Sequence


class ImageBatches(Scheduler):
    """Requests that hold nothing but images, encoded `most` at a time, in order of arrival."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def add(self, seq: Sequence) -> None:
        """As of the base."""
        self._waiting.append(seq)

    def has_work(self) -> bool:
        """As of the base."""
        return bool(self._waiting or self._running)

    def schedule(self, now_s: float) -> Batch | None:
        """As of the base."""
        if self._running or not self._waiting:
            return None
        batch = Batch(self.next_number)
        self.next_number += 1
        mine = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        for seq in mine:
            seq.first_scheduled_s, seq.state = now_s, "running"
            seq.emit(batch.number, batch.number)
            batch.serve(seq.prompt_tokens, 0, decodes=False)
        batch.encodes = tuple([end - first for seq in mine for first, end in seq.images])
        batch.finishing = self._running = mine
        return batch

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base."""
        self.processed_number = batch.number
        ended, self._running = self._running, []
        for seq in ended:
            seq.state = "finished"
        return ended

    def state(self) -> State:
        """As of the base; there is no KV cache."""
        return len(self._running), len(self._waiting), 0, 0

    def close(self) -> None:
        """As of the base."""


__all__ = ["ImageBatches"]
