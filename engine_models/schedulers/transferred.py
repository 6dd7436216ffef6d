"""Memory first, then tokens, in two servers: one computes prompts, the other is sent their memory and generates (TensorRT-LLM).

The context server runs requests of one output token; when a prompt is computed its row and place are given up, its blocks stay
until they are sent. The generation server gives a request its prompt's blocks when those and its whole answer fit, beside what
the running rows may still take; it then holds a place among the active requests while the blocks are read, beside the steps. When
they are there it joins the next step. No chunk of a prompt is computed there.

Source: `docs/source/features/disagg-serving.md` and `py_executor.py` of TensorRT-LLM 1.x (public copies, read 2026-11). There the
first token comes with the request; here the first step makes it, so that it is seen one step of generation late.
"""

from __future__ import annotations

from typing import Any

from engine_models.parts.handover import Note, PullDecode, PullPrefill
from engine_models.parts.protocols import INFINITY, Run, State
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import ActiveRow, TwoPassBatch, TwoPassScheduler


class ContextServer(TwoPassScheduler, PullPrefill):
    """Blocks of computed prompts stay until `release`. Parameters as of the base."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: dict[Sequence, ActiveRow] = {}

    def turns(self) -> float:
        """As of the base."""
        return INFINITY if self.held else 0.0

    def _give_back(self, seq: Sequence, row: ActiveRow) -> None:
        self.held[seq] = row

    def release(self, seq: Sequence) -> None:
        """As of the base."""
        self.kv.release(seq, self.held.pop(seq).content, seq.length - 1)
        self._blocked = False


class GenerationServer(TwoPassScheduler, PullDecode):
    """Prompts are read, answers computed. Parameters as of the base."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notes: list[Note] = []
        self._reading: set[Sequence] = set()
        self._arrived: list[Sequence] = []
        self._now_s = 0.0

    def turns(self) -> float:
        """As of the base."""
        return INFINITY if self._reading else 0.0

    def idle(self) -> bool:
        """As of the base."""
        return not (self._queue or self._contexts)

    def arrived(self, seq: Sequence) -> None:
        """As of the base."""
        self._arrived.append(seq)

    def state(self) -> State:
        """As of the base; who is read waits."""
        running, waiting, held, there = super().state()
        return running - len(self._reading), waiting + len(self._reading), held, there

    def _fit_with_answers(self, batch: TwoPassBatch) -> list[Sequence]:
        """Let those that fit be read; nothing of them is computed."""
        for seq in super()._fit_with_answers(batch):
            row = self._contexts.pop(seq)
            self.kv.take(seq, row.content, seq.prompt_tokens - 1)  # the last token's place is the first step's
            row.held = True
            self._owed += row.total - len(seq.blocks) - seq.extra_blocks
            seq.state = "loading"
            self._reading.add(seq)
            self.notes.append(Note(seq, self._now_s, seq.prompt_tokens))
        return []

    def schedule(self, now_s: float) -> TwoPassBatch | None:
        """As of the base, with those whose prompts have come."""
        self._now_s = now_s
        for seq in self._arrived:
            self._reading.remove(seq)
            if seq.first_scheduled_s < 0:
                seq.first_scheduled_s = now_s
            seq.emit(self.next_number, self.next_number - 1)
            self.active[seq].since = self.next_number
            seq.length = seq.prompt_tokens
            self.decodes.join(seq)
        self._arrived = []
        return super().schedule(now_s)

    def run(self) -> Run | None:
        """As of the base, unless somebody joins."""
        return None if self._arrived else super().run()


__all__ = ["ContextServer", "GenerationServer"]
