"""A prefill server of `reserved` over a tree in several tiers (`prefill_first_tiered`).

Of a prompt's known tokens those that the device holds are sent before the first piece is computed; those that are loaded back
from the host come layer by layer beside that step, and go with its piece.

A store behind the host is read ahead for a request from the loop on that takes it in, while it waits for its reservation.

Source: `maybe_send_cached_prefix_chunk` in `disaggregation/prefill.py` of SGLang (all matched tokens but `host_hit_length`) and
`_add_request_to_queue` in `managers/scheduler.py` (`_prefetch_kvcache` before the bootstrap queue; public copies of both, read
2026-11), compared with no recording.
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.radix import content_of
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch
from engine_models.schedulers.prefill_first_tiered import TieredPrefillFirstScheduler
from engine_models.schedulers.reserved import SendingPrefillScheduler


class TieredSendingPrefillScheduler(SendingPrefillScheduler, TieredPrefillFirstScheduler):
    """`SendingPrefillScheduler` over device and host. Parameters as of the bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._brought: dict[Sequence, int] = {}  # by request of the latest prefill: tokens that the host gave
        self._new: list[Sequence] = []  # come since the latest loop

    def add(self, seq: Sequence) -> None:
        """As of the base."""
        super().add(seq)
        self._new.append(seq)

    def schedule(self, now_s: float) -> PrefillFirstBatch | None:
        """As of the base."""
        self._now_s = self.kv.tree.now_s = now_s
        new, self._new = self._new, []
        for seq in new:
            self._read_ahead(seq, content_of(seq), now_s)
        return super().schedule(now_s)

    def _look_ahead(self, seq: Sequence) -> None:
        """As of the base: what a store has of it is being read since it came."""

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; what a store has read for it so far is not kept (assumed)."""
        if seq in self._new:
            self._new.remove(seq)
        self._reading.pop(seq, None)
        return super().cancel(seq)

    def _launch_prefill(
        self, batch: PrefillFirstBatch, admitted: list[tuple[Sequence, int, int, bool]], now_s: float
    ) -> None:
        self._brought = {seq: sum(tokens for tokens, _ in parts) for seq, parts in self._loaded.items()}
        super()._launch_prefill(batch, admitted, now_s)

    def _early_tokens(self, seq: Sequence, known: int) -> int:
        return known - self._brought.get(seq, 0)


__all__ = ["TieredSendingPrefillScheduler"]
