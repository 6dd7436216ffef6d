"""Prefill before decode where layers with windows have a pool of their own: the rules of `prefill_first`, with two pools.

A request is let in if both pools have room: of the windows' it is charged with what its window does not see of a step's tokens,
and with a window, or its tokens and its answer where these are fewer. What never fits is cut; what does not fit now waits, and a
prefill is tried before every step, full or not. What a row's window has left behind is freed when its prompt is entered, and
while it decodes once `SLIDE_TOKENS` have gathered. The tree finds a prefix as far as its windows' tokens are there; where it has
more without them, the next request that computes them enters just these first, so that the one after it finds them.

Source: SGLang 0.5.23 (`mem_cache/prefill_budget.py`, `common.py` and `allocator/swa.py` there, `managers/schedule_batch.py`),
compared step by step with drawn recordings of its scheduler.
"""

from __future__ import annotations

import heapq
from typing import Any

from engine_models.memory.windowed_radix import WindowedPool
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import (
    CLIP_NEW_TOKENS,
    Adder,
    PrefillFirstBatch,
    PrefillFirstRules,
    PrefillFirstScheduler,
)

SLIDE_TOKENS = 128
"""Tokens behind a decoding row's window that gather before they are freed (datasheet: `SGLANG_SWA_EVICTION_INTERVAL`, 0.5.23)."""


class WindowedPrefillFirstScheduler(PrefillFirstScheduler):
    """`PrefillFirstScheduler` over two pools."""

    def __init__(self, rules: PrefillFirstRules, kv: WindowedPool, **others: Any) -> None:
        super().__init__(rules, kv, **others)
        self.pools = kv
        self._retries = True
        self._slides: list[tuple[int, int, Sequence]] = []  # decode steps before which a row may free something

    def _new_adder(self) -> Adder:
        return WindowedAdder(self)

    def _closed(self) -> bool:
        return self._free_slots() <= 0 and self.chunked is None and not self.rules.preemption

    # -- windows ------------------------------------------------------------------------------------------------

    def _slide(self, seq: Sequence, before: int, interval: int = 1) -> None:
        """Free what the window of a row has left behind before a position, if at least `interval` tokens."""
        row, kv = seq.group_state, self.pools
        span, page = kv.span_tokens, kv.page_tokens
        if before - span < row.slid + interval:
            return
        kept = kv.paged(max(span, page)) if kv.prefix_caching else span
        row.slid = max(row.slid, row.protected)
        slid = max(row.slid, before - kept) // page * page
        if slid > row.slid:
            kv.windows.window_free += slid - row.slid
            row.slid = slid

    def _slide_decoding(self) -> None:
        """Free what decoding rows have left behind."""
        slides, steps = self._slides, self.decodes.steps
        later: list[tuple[int, int, Sequence]] = []
        while slides and slides[0][0] <= steps:
            at, order, seq = heapq.heappop(slides)
            if seq.state != "decoding" or seq.group_state.due != at:
                continue
            seen = seq.prompt_tokens + self._outputs(seq)
            self._slide(seq, seen - 1, SLIDE_TOKENS)
            later.append((self._due(seq), order, seq))
        for entry in later:
            heapq.heappush(slides, entry)

    def _due(self, seq: Sequence) -> int:
        """The decode step before which a row may have left enough behind, the next one at the earliest."""
        row = seq.group_state
        row.due = max(self.decodes.steps + 1, row.slid + SLIDE_TOKENS + self.pools.span_tokens + 1 - seq.offset)
        due: int = row.due
        return due

    def _join_decodes(self, seq: Sequence) -> None:
        super()._join_decodes(seq)
        heapq.heappush(self._slides, (self._due(seq), seq.order, seq))

    # -- memory -------------------------------------------------------------------------------------------------

    def _launch_prefill(
        self, batch: PrefillFirstBatch, admitted: list[tuple[Sequence, int, int, bool]], now_s: float
    ) -> None:
        kv = self.pools
        for seq, start, _, fresh in admitted:
            row = seq.group_state
            if fresh:
                row.pieces = 0
            if not kv.prefix_caching:
                chunk = self.rules.chunked_prefill_size or 0
                if not self._overlap:
                    self._slide(seq, start)
                elif row.pieces >= 2:
                    self._slide(seq, start - chunk)
            row.pieces += 1
        super()._launch_prefill(batch, admitted, now_s)

    def _decode_all(self, batch: PrefillFirstBatch) -> None:
        self._slide_decoding()
        super()._decode_all(batch)

    def _give_back(self, seq: Sequence) -> None:
        row = seq.group_state
        self.pools.windows.window_free += max(0, self._held_tokens(seq) - max(row.slid, row.protected))
        super()._give_back(seq)
        row.slid = row.branch = row.stashed = 0

    def _checkpoint(self, seq: Sequence, computed: int) -> None:
        row = seq.group_state
        if not self.kv.prefix_caching or row.stashed >= computed:
            return
        row.stashed = computed
        self._store(seq, computed, ended=False)

    def _store(self, seq: Sequence, computed: int, *, ended: bool) -> None:
        """Enter what a row has computed, or up to where the tree lacks windows alone, and hold it there."""
        row, kv = seq.group_state, self.pools
        branch = row.branch if row.protected < row.branch <= computed else 0
        tokens = branch or computed
        length = tokens // kv.page_tokens * kv.page_tokens
        if not ended:
            self._slide(seq, tokens - 1)
        known, node = kv.windows.enter(
            row.content, length, counted=row.entered, priority=seq.priority, protected=row.protected, slid=row.slid
        )
        row.entered = max(row.entered, length)
        kv.free_tokens += max(known, row.protected) - row.protected
        kv.tree.unlock(row.node, row.receipt)
        row.receipt = kv.tree.lock(node)
        row.node = node
        row.protected = length
        if branch:
            row.branch = 0
            if not ended:
                self._slide(seq, computed - 1)

    def _release(self, seq: Sequence) -> None:
        row, kv = seq.group_state, self.pools
        if kv.prefix_caching:
            self._store(seq, self._kept_tokens(seq), ended=True)
        held = self._held_tokens(seq)
        kv.free_tokens += held - row.protected
        kv.windows.window_free += max(0, held - max(row.slid, row.protected))
        kv.tree.unlock(row.node, row.receipt)
        row.node = kv.tree.root
        row.protected = row.entered = row.slid = row.branch = row.stashed = 0


    # -- jumping ------------------------------------------------------------------------------------------------

    def _proven_steps(self) -> int:
        steps, kv = super()._proven_steps(), self.pools
        return self.decodes.steps_within(steps, kv.window_left // kv.page_tokens)

    def _take_steps(self, steps: int) -> tuple[int, int]:
        """As of the base, one by one where rows may free something or both pools are short."""
        kv, decodes, page = self.pools, self.decodes, self.kv.page_tokens
        held = most = 0
        while steps:
            quiet = self._slides[0][0] - decodes.steps if self._slides else steps
            alike = min(steps, quiet)
            if alike > 1:
                room = (decodes.taken_over(alike)[0] + decodes.count) * page
                if kv.free_tokens < room and kv.windows.window_free < room:
                    alike = 1
            if alike <= 1:
                alike = 1
                kv.make_room(self._tokens_needed())
                self._slide_decoding()
            summed, latest = super()._take_steps(alike)
            self._last_decode = self.next_number - 1
            held, most, steps = held + summed, max(most, latest), steps - alike
            if steps and not self._overlap:
                self.processed_number = self._last_decode
        return held, most

    def stuck(self) -> str | None:
        """As of the base: a request that the windows' pool never has room for is tried for ever."""
        first = self.chunked or next(iter(self._waiting), None)
        if first is None or self._decoding:
            return None
        return (
            f"the engine would stop here for good: request {first.index} of {first.prompt_tokens} prompt tokens asks more of the "
            f"pool of {self.pools.window_capacity} tokens that layers with windows have than can become free"
        )


class WindowedAdder(Adder):
    """`Adder` that looks at both pools."""

    def __init__(self, scheduler: WindowedPrefillFirstScheduler) -> None:
        super().__init__(scheduler)
        self.pools = scheduler.pools
        self.window_offset = 0

    def _window_left(self) -> int:
        return self.pools.window_left - self.window_offset

    def _window_need(self, extend: int, future: int) -> int:
        """Tokens of the windows' pool that a request may take which computes `extend` tokens and may answer `future`."""
        span = self.pools.span_tokens
        step = extend if self.chunk_left is None else min(extend, self.chunk_left)
        page: int = self.pools.page_tokens
        return max(step - span, 0) + min(extend + future, span) + page

    def _answers(self, seq: Sequence) -> int:
        row = seq.group_state
        outputs = seq.length - seq.prompt_tokens
        answers: int = min(max(row.max_new - outputs, 0), CLIP_NEW_TOKENS)
        return answers

    def verdict(self) -> str:
        """As of the base."""
        return "no_token" if self._window_left() <= 0 else super().verdict()

    def look_up(self, seq: Sequence) -> None:
        """As of the base."""
        super().look_up(seq)
        row = seq.group_state
        reached = self.pools.windows.reached
        row.branch = reached if reached > row.matched else 0

    def _chunk_room(self) -> int:
        assert self.chunk_left is not None
        return min(self.chunk_left, int(self.total_left), self._window_left() - self.pools.page_tokens)

    def _choose(self, seq: Sequence, prefix: int, need: int) -> tuple[int, bool] | str:
        if need >= self.total_left:
            return "no_token"
        most, page, answers = self.chunk_left, self.pools.page_tokens, self._answers(seq)
        window_need = self._window_need(self.pools.paged(seq.length - prefix), answers)
        if window_need >= self._window_left():
            # only what never fits is cut to what does
            room = self._window_left() - self._window_need(0, answers)
            if most is None or window_need < self.pools.window_capacity or room < page:
                return "no_token"
            most = min(most, room // page * page)
        return self._cut(seq, prefix, most)

    def _add_to_limit(self, seq: Sequence) -> str:
        """Without a tree, of a request that surely runs to its limit: nothing is looked ahead to."""
        kv, row = self.kv, seq.group_state
        extend, future = seq.length, min(row.max_new, CLIP_NEW_TOKENS)
        if kv.paged(extend) + kv.page_tokens > min(self.current_left, self.total_left):
            return "no_token"
        if self._window_need(extend, self._answers(seq)) > self._window_left():
            return "no_token"
        if self.chunk_left is not None and extend > self.chunk_left:
            extend, future = self.chunk_left, 0
            self.new_chunked = seq
        row.protected = 0
        self.admitted.append((seq, 0, extend, True))
        self._charge(extend, future)
        return self.verdict()

    def _charge(self, tokens: int, future: int) -> None:
        self.window_offset += self._window_need(self.pools.paged(tokens), future)
        super()._charge(tokens, future)


__all__ = ["WindowedPrefillFirstScheduler"]
