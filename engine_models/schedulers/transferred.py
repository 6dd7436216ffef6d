"""Memory first, then tokens, in two servers: one computes prompts, the other is sent their memory and generates (TensorRT-LLM).

The context server runs requests of one output token; when a prompt is computed its row and place are given up, its blocks stay
until they are sent. The generation server gives a request its prompt's blocks when those and its whole answer fit, beside what
the running rows may still take; it then holds a place among the active requests while the blocks are read, beside the steps. When
they are there it joins the next step, as which begins the first token goes out: it came with the request. Nothing is computed
again, but for rows that are paused (`MAX_UTILIZATION`): the generation server computes these itself, prompt and answer so far,
and gives a request its place when its prompt's blocks fit.

*Generation first*, both servers get a request at once. At the context server it takes a place and waits for the other to have
given it memory; its blocks are sent as soon as they are computed.

Source: `docs/source/features/disagg-serving.md`, `_prepare_disagg_gen_transmission_complete` and `_handle_first_token_response`
of `_torch/pyexecutor/py_executor.py` and `prepare_context_requests` of `_torch/disaggregation/transceiver.py`, TensorRT-LLM 1.x
(public copies, read 2026-11). That a waiting request takes a place follows from its being fetched already; unmeasured.
"""

from __future__ import annotations

from typing import Any

from engine_models.parts.batch import Batch
from engine_models.parts.handover import Note, PullDecode, PullPrefill, ReservingDecode, SendingPrefill
from engine_models.parts.protocols import INFINITY, Run, State
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import ActiveRow, TwoPassBatch, TwoPassScheduler
from engine_models.schedulers.memory_then_tokens_drafted import DraftedTwoPassScheduler


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
        self._unblock()


class WaitingContextServer(ContextServer, SendingPrefill):
    """Prompts are computed once memory is reserved for them, and sent whole. Parameters as of the base."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notes: list[Note] = []
        self._reserved: set[Sequence] = set()
        self._unready: dict[Sequence, ActiveRow] = {}

    def turns(self) -> float:
        """As of the base."""
        return INFINITY if self.held or self._unready else 0.0

    def state(self) -> State:
        """As of the base; who waits for the other server's memory waits."""
        running, waiting, held, there = super().state()
        return running - len(self._unready), waiting + len(self._unready), held, there

    def _considered(self) -> list[Sequence]:
        return [seq for seq in self.active if seq not in self._unready]

    def cancel(self, seq: Sequence) -> bool:
        """As of the base."""
        self._reserved.discard(seq)
        self._unready.pop(seq, None)
        return super().cancel(seq)

    def reserved(self, seq: Sequence) -> None:
        """As of the base."""
        self._unblock()
        row = self._unready.pop(seq, None)
        if row is None:
            self._reserved.add(seq)
            return
        self._contexts[seq] = row
        self._contexts = dict(sorted(self._contexts.items(), key=lambda entry: entry[0].order))

    def _activate(self) -> None:
        before = len(self.active)
        super()._activate()
        for seq in list(self.active)[before:]:
            if seq in self._reserved:
                self._reserved.remove(seq)
            else:
                self._unready[seq] = self._contexts.pop(seq)

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base; what is computed is sent."""
        ended = super().settle(batch)
        self.notes += [Note(seq, batch.t_end, seq.prompt_tokens) for seq in ended]
        return ended

    def sent(self, seq: Sequence) -> None:
        """As of the base."""
        self.release(seq)


class GenerationServer(TwoPassScheduler, PullDecode):
    """Prompts are read, answers computed. Parameters as of the base."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notes: list[Note] = []
        self._reading: set[Sequence] = set()
        self._arrived: list[Sequence] = []
        self._new: dict[Sequence, None] = {}  # fit in the step that is formed, and are read from then on
        self._pauses: list[int] = []  # batches of first tokens alone
        self._now_s = 0.0

    def turns(self) -> float:
        """As of the base."""
        return INFINITY if self._reading else 0.0

    def speaks_s(self, begin_s: float, *, expects: bool) -> float:
        """As of the base: memory is given to one that waits."""
        return begin_s if self._queue or self._contexts or expects else INFINITY

    def arrived(self, seq: Sequence) -> None:
        """As of the base."""
        self._arrived.append(seq)

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; what is read of it is not kept."""
        self._reading.discard(seq)
        if seq in self._arrived:
            self._arrived.remove(seq)
        return super().cancel(seq)

    def state(self) -> State:
        """As of the base; who is read waits."""
        running, waiting, held, there = super().state()
        return running - len(self._reading), waiting + len(self._reading), held, there

    def _fit_with_answers(self, batch: TwoPassBatch) -> list[Sequence]:
        """Let those that fit be read; nothing of them is computed."""
        for seq in super()._fit_with_answers(batch):
            self._read(seq)
        return []

    def _fit_for_a_step(self, batch: TwoPassBatch) -> list[Sequence]:
        """Let new requests that fit be read; those that were paused are computed here."""
        fitting = super()._fit_for_a_step(batch)
        self._new = {seq: None for seq in fitting if seq in self._contexts and not seq.preemptions}
        return [seq for seq in fitting if seq not in self._new] if self._new else fitting

    def _let_in(self) -> None:
        for seq in self._new:
            self._read(seq)
        self._new = {}

    def _considered(self) -> list[Sequence]:
        return [seq for seq in self.active if seq not in self._reading]

    def _read(self, seq: Sequence) -> None:
        row = self._contexts.pop(seq)
        self.kv.take(seq, row.content, seq.prompt_tokens)
        row.held = True
        self._owed += row.total - len(seq.blocks) - seq.extra_blocks
        seq.state = "loading"
        self._reading.add(seq)
        self.notes.append(Note(seq, self._now_s, seq.prompt_tokens))

    def schedule(self, now_s: float) -> TwoPassBatch | None:
        """As of the base, with those whose prompts have come."""
        self._now_s = now_s
        if self._arrived:
            self._join_arrived(now_s)
        begun = len(self.notes)
        batch = super().schedule(now_s)
        if len(self.notes) > begun:
            self._blocked = False  # others may have been passed over for the prefix of one that was let in
        return batch

    def _join_arrived(self, now_s: float) -> None:
        """First tokens, which came with their requests, go out, as a batch of no length."""
        number, joined, self._arrived = self.next_number, self._arrived, []
        self._pauses.append(number)
        self.next_number += 1
        ended: list[Sequence] = []
        for seq in joined:
            row = self.active[seq]
            self._reading.remove(seq)
            seq.first_scheduled_s = now_s
            seq.emit(number, number)
            row.last = number
            seq.length = seq.prompt_tokens + 1
            if seq.length >= seq.final_length:
                self._end(seq)
                seq.state = "finished"
                ended.append(seq)
            else:
                self._join_next(seq)
        if self.at_once is not None:
            self.at_once(now_s, len(joined), ended)

    def _join_next(self, seq: Sequence) -> None:
        """Let a row generate from the next batch on."""
        self.active[seq].since = self.next_number
        seq.emit(self.next_number, self.next_number - 1)
        self.decodes.join(seq)

    def _end_emissions(self, seq: Sequence, last: int) -> None:
        seq.emit_between(last, self._pauses)

    def run(self) -> Run | None:
        """As of the base, unless somebody joins."""
        return None if self._arrived else super().run()


class ReservingGenerationServer(GenerationServer, ReservingDecode):
    """The same where memory is given to a request before its prompt is computed."""


class DraftedGenerationServer(GenerationServer, DraftedTwoPassScheduler):
    """The same with drafts."""

    def _join_next(self, seq: Sequence) -> None:
        self.active[seq].since = self.next_number
        self.decodes.join(seq)


class DraftedReservingGenerationServer(DraftedGenerationServer, ReservingDecode):
    """The same with drafts, where memory is given to a request before its prompt is computed."""


__all__ = [
    "ContextServer",
    "DraftedGenerationServer",
    "DraftedReservingGenerationServer",
    "GenerationServer",
    "ReservingGenerationServer",
    "WaitingContextServer",
]
