"""Slots behind a manager that loads a model when it is asked for and drops it when it has been idle for a while.

Requests that find the model loaded take a permit, of which there are as many as slots, or wait for one in order of arrival;
whoever gets one goes to the end of the server's queue. The first request that does not find it has it loaded, and those that come
meanwhile are pending: above `max_queue` of them others are turned away. A model without requests is dropped after `keep_alive_s`,
and with it all caches of its server.

A prompt that its slot cannot hold is cut where the context shifts: so many tokens in front stay, and of the rest the last ones,
so that half of what is not kept is free.

Source: behaviour of Ollama 0.33 (`server/sched.go`: `getRunner`, `processPending`, `processCompleted`; `llm/llama_server.go`:
`completionPromptForRequest`, `contextShiftPromptLimit`, the semaphore `sem`); nothing of it was recorded, see
docs/engines/ollama.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from engine_models.memory.radix import Content
from engine_models.memory.whole_prompts import WholePrompts
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import INFINITY, Run, State
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.slots import SlotBatch, SlotRules, SlotScheduler
from engine_models.schedulers.slots_drafted import DraftedSlotScheduler
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class KeptModel:
    """What the manager does: requests pending beside the one that loads, times to load and to keep an idle model [s]."""

    max_queue: int
    load_s: float
    keep_alive_s: float


class KeptModelScheduler(SlotScheduler):
    """The slots of one model, loaded at time zero, behind its manager; `fresh_prompts` makes an empty cache in host memory."""

    def __init__(
        self,
        rules: SlotRules,
        kept: KeptModel,
        fresh_prompts: Callable[[], WholePrompts | None],
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(rules, fresh_prompts(), aggregate=aggregate, record_rows=record_rows, **others)
        self.kept = kept
        self.loads = 0
        self._fresh_prompts = fresh_prompts
        self._outside: deque[Sequence] = deque()
        self._inside = 0
        self._idle_s = 0.0  # since when no request has had the model
        self._ready_s = 0.0  # when it is loaded

    def add(self, seq: Sequence) -> None:
        """Take in a request; it loads the model if that is gone."""
        if not self._outside and not self._inside and self._gone(seq.arrival_s):
            self.loads += 1
            self._ready_s = seq.arrival_s + self.kept.load_s
            self._drop_caches()
        seq.state = "waiting"
        self._outside.append(seq)

    def _gone(self, now_s: float) -> bool:
        return now_s >= self._idle_s + self.kept.keep_alive_s

    def sheds(self, now_s: float, coming: int) -> bool:
        """As of the base: where the model is being loaded, and as many as may are pending beside the one that loads it."""
        loading = now_s < self._ready_s or (not self._outside and not self._inside and self._gone(now_s))
        return loading and len(self._outside) + coming > self.kept.max_queue

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._outside) or super().has_work()

    def wake_s(self) -> float:
        """When the model is loaded, if somebody waits for that."""
        return self._ready_s if self._outside and not self._inside else INFINITY

    def state(self) -> State:
        """As of the slots, with those outside."""
        running, waiting, held, total = super().state()
        return running, waiting + len(self._outside), held, total

    def cancel(self, seq: Sequence) -> bool:
        """As of the slots; whoever leaves gives back its permit."""
        if seq in self._outside:
            self._outside.remove(seq)
            seq.state = "finished"
            return True
        left = super().cancel(seq)
        self._inside -= left
        if not self._inside and not self._outside:
            self._idle_s = self._flying.t_end if self._flying is not None else self._formed_s
        return left

    def _drop_caches(self) -> None:
        self.prompts = self._fresh_prompts()
        for slot in self.slots:
            self._cells -= slot.cells
            slot.clear()

    def schedule(self, now_s: float) -> SlotBatch | None:
        """Let in who gets a permit, and form the next iteration."""
        if now_s < self._ready_s:
            return None
        self._owed = 0  # nobody is deferred here
        while self._outside and self._inside < self.rules.n_parallel:
            self._inside += 1
            seq = self._outside.popleft()
            super().add(seq)
            self._fit(seq)
        return super().schedule(now_s)

    def _fit(self, seq: Sequence) -> None:
        """Cut a prompt that is as long as its slot, or longer."""
        row, context = self._rows[seq], self.rules.slot_tokens
        if row.prompt < context or not self.rules.context_shift:
            return
        keep = min(self.rules.n_keep, context - 1)
        limit = context - max((context - keep) // 2, 1)
        content, dropped = row.content, row.prompt - limit
        row.content = Content((*content.slice(0, keep), *content.slice(keep + dropped, content.length)))
        row.prompt = limit

    def run(self) -> Run | None:
        """As of the slots; not where somebody can be let in."""
        if self._outside and self._inside < self.rules.n_parallel:
            return None
        return super().run()

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the slots; permits come back, and from the last on the model is idle."""
        ended = super().settle(batch)
        self._inside -= len(ended)
        if ended and not self._inside and not self._outside:
            self._idle_s = batch.t_end
        return ended


class DraftedKeptModelScheduler(KeptModelScheduler, DraftedSlotScheduler):
    """`KeptModelScheduler` whose slots draft. Parameters as of the bases."""


__all__ = ["DraftedKeptModelScheduler", "KeptModel", "KeptModelScheduler"]
