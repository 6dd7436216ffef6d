"""A generation server of `transferred` over the stages of a pipeline: its rows stand in slots that take turns.

A request whose prompt has been read joins the slot whose turn is next, unless that has as many rows as a micro-batch may have or
is in flight; then it waits for the next turn. Its first token goes out when it joins.

Source: `_executor_loop_pp` in `py_executor.py` of TensorRT-LLM (public copies, read 2026-11), which lets requests be read in
every turn and serves those that have come with whoever is not in flight; compared with no recording.
"""

from __future__ import annotations

from engine_models.parts.handover import ReservingDecode
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import TwoPassBatch
from engine_models.schedulers.memory_then_tokens_staged import StagedTwoPassScheduler
from engine_models.schedulers.transferred import GenerationServer


class StagedGenerationServer(GenerationServer, StagedTwoPassScheduler):
    """`GenerationServer` over stages. Parameters as of the bases."""

    def schedule(self, now_s: float) -> TwoPassBatch | None:
        """As of the bases."""
        begun = len(self.notes)
        batch = super().schedule(now_s)
        if len(self.notes) > begun:
            self._unblock()
        return batch

    def _join_arrived(self, now_s: float) -> None:
        slot = self._slots[self._turn]
        room = self.rules.max_batch_size - slot.rows.count
        if slot.flies or room <= 0:
            return
        self._turn_to(slot)
        waiting = self._arrived[room:]
        del self._arrived[room:]
        super()._join_arrived(now_s)
        self._arrived += waiting

    def _join_next(self, seq: Sequence) -> None:
        self._join_decodes(seq)


class StagedReservingGenerationServer(StagedGenerationServer, ReservingDecode):
    """The same where memory is given to a request before its prompt is computed."""


__all__ = ["StagedGenerationServer", "StagedReservingGenerationServer"]
