"""The first action that has work: prompts, with all decodes in the same step; else decodes alone.

Prompts are taken in order of arrival while they fit the chunk of a step beside one token of every running row, and while pages
and tokens of the cache suffice for them and for some tokens more of every row (a *watermark*). Ended sequences that are kept
for others give way first. The first prompt that does not fit stops the choice; if the chunk alone is too small, it is cut to
it. What is found in the cache is looked up only afterwards, so it makes prompts shorter but lets nobody in.

A step of decodes needs a free page for every row, whether they take one or not: kept sequences go, then the row that came last;
it goes to the front of the queue, and its answer becomes prompt. Where prompts are not fused with decodes (`chunked`), these
pause.

Source: behaviour of MLC-LLM 79d603f0 (2026-07: `cpp/serve/engine_actions/batch_prefill_base.cc`, `new_request_prefill.cc`,
`batch_decode.cc`, `action_commons.cc`), read and not recorded; see docs/engines/mlc_llm.md.
"""

from __future__ import annotations

from collections import deque

from engine_models.memory.forked_pages import ForkedPages
from engine_models.memory.radix import Content, content_of
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass

WATERMARK_TOKENS = 8
"""Tokens of every row for which there is room when a prompt is let in (datasheet: `HasPrefillSpace`, 79d603f0)."""


@dataclass(frozen=True)
class HybridRules:
    """What such a scheduler may do. Names of knobs are those of MLC-LLM.

    Attributes
    ----------
    max_num_sequence : rows that may run at once; `prefill_chunk_size` bounds them too.
    max_total_sequence_length : tokens in the cache, those shared by several counted for each, kept sequences' too.
    prefill_chunk_size : tokens of a step with prompts.
    hybrid : whether decodes share the steps of prompts.
    """

    max_num_sequence: int
    max_total_sequence_length: int
    prefill_chunk_size: int
    hybrid: bool = True

    @property
    def rows(self) -> int:
        """Rows that may run at once."""
        return min(self.max_num_sequence, self.prefill_chunk_size)


class HybridPrefillScheduler(Scheduler):
    """Waiting and running requests of one rank, and the rule that forms the next step. Its executor is synchronous.

    Parameters
    ----------
    rules : the knobs.
    kv : the pages.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names.
    """

    def __init__(
        self,
        rules: HybridRules,
        kv: ForkedPages,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.kv = kv
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.decodes = DecodeSet(kv.block_tokens, windows)
        self.running: dict[Sequence, None] = {}  # as they came in, those with a part of their prompt too
        self._waiting: deque[Sequence] = deque()  # those too, at the front
        self._begun: dict[Sequence, None] = {}  # running without a whole prompt
        self._prompt: dict[Sequence, int] = {}  # tokens to compute before a request decodes
        self._content: dict[Sequence, Content] = {}
        self._orders = 0
        self.row_pages = 1  # that are free for a row before it decodes
        self.next_tokens = 1  # of a decoding row, of those that a step with prompts may have
        self._shut = False  # nobody comes in before a row ends, whoever arrives
        self._shape = Batch(-1)

    # -- the outside ----------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        self._prompt[seq] = seq.prompt_tokens
        self._content[seq] = content_of(seq)
        self._waiting.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._prompt)

    def state(self) -> State:
        """Requests, and pages; those of kept sequences alone count as free."""
        kv, running = self.kv, len(self.running)
        return running, len(self._prompt) - running, kv.used_blocks, kv.capacity_blocks

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for seq in self.running:
            if seq.state == "decoding":
                self._leave_decodes(seq, self.next_number - 1)

    # -- admission ------------------------------------------------------------------------------------------

    def _cached_tokens(self) -> int:
        """Tokens in the cache, of every sequence by itself."""
        decodes = self.decodes
        return (
            decodes.kv_tokens() - decodes.count + sum(seq.computed for seq in self._begun) + self.kv.recycled_tokens
        )

    def _slack(self, rows: int, pages: int, tokens: int) -> tuple[int, int]:
        """Pages and tokens that are left when so many rows run of which so much is computed next; negative where they lack."""
        return (
            self.kv.free_blocks - pages - rows,
            self.rules.max_total_sequence_length - self._cached_tokens() - tokens - WATERMARK_TOKENS * rows,
        )

    def _room(self, rows: int, pages: int, tokens: int) -> bool:
        return min(self._slack(rows, pages, tokens)) >= 0

    def _may(self, rows: int, pages: int, tokens: int) -> bool:
        rules = self.rules
        return rows <= rules.rows and tokens <= rules.prefill_chunk_size and self._room(rows, pages, tokens)

    def _choose(self) -> list[tuple[Sequence, int]]:
        """Prompts of the next step, and how many tokens of each; the last may be cut."""
        kv, rows, chunk = self.kv, self.decodes.count, self.rules.prefill_chunk_size
        if rows > kv.free_blocks:
            return []
        tokens, pages = rows * self.next_tokens, rows
        chosen: list[tuple[Sequence, int]] = []
        for seq in self._waiting:
            rest = self._prompt[seq] - seq.computed
            need = -(-rest // kv.block_tokens)
            while not self._room(rows, pages + need, tokens + rest) and kv.free_oldest():
                pass
            if not self._may(rows + 1, pages + need, tokens + rest):
                room = chunk - tokens
                if 0 < room < rest and self._may(rows + 1, pages - (-room // kv.block_tokens), chunk):
                    chosen.append((seq, room))
                break
            chosen.append((seq, rest))
            rows, pages, tokens = rows + 1, pages + need, tokens + rest
        return chosen

    # -- the step -------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        """Form the next step; None if there is nothing to run."""
        batch = Batch(self.next_number)
        chosen = self._choose()
        # the original counts a row less where it asks whether kept sequences have to go, and might wait for ever
        while not chosen and self._waiting and not self.decodes.count and self.kv.free_oldest():
            chosen = self._choose()
        self._shut = not chosen and bool(self._waiting) and not self._begun
        if not chosen:
            if not self.running:
                return None
            self._make_room(batch)
            if not self.decodes.count:
                if not batch.preempted:  # parts of prompts hold the pages of each other, where the original stops
                    self._preempt(batch, next(seq for seq in reversed(self._begun) if seq is not self._waiting[0]))
                return batch
        chunks = [(seq, self._start(batch, seq, tokens, now_s)) for seq, tokens in chosen]
        if self.record_rows:
            batch.rows = [(seq, tokens, seq.computed) for seq, tokens in chunks]
        number, decodes = batch.number, self.decodes
        if not decodes.count:
            batch.spans = decodes.no_spans
        elif self.rules.hybrid or not chunks:
            self._decode(batch)
        else:
            self._pause(number)
        ended = batch.finishing
        batch.finishing = []
        self._compute(batch, chunks)
        batch.finishing += ended
        self.next_number += 1
        return batch

    def _pause(self, number: int) -> None:
        """The decodes get nothing from a step."""
        for seq in self.running:
            if seq.state == "decoding":
                seq.end_emissions(number - 1)
                seq.emit(number + 1, number)

    def _make_room(self, batch: Batch) -> None:
        """Free pages until every row can decode: of kept sequences, then of the rows that came last."""
        kv, decodes = self.kv, self.decodes
        while decodes.count * self.row_pages > kv.free_blocks:
            self._shut = False
            if kv.free_oldest():
                continue
            self._preempt(batch, next(reversed(self.running)))

    def _preempt(self, batch: Batch, seq: Sequence) -> None:
        del self.running[seq]
        if seq.state == "decoding":
            self._leave_decodes(seq, batch.number - 1)
            self._prompt[seq] = seq.length
            self._waiting.appendleft(seq)
        else:
            del self._begun[seq]
        self.kv.remove(seq, seq.computed)
        seq.computed = 0
        seq.state = "waiting"
        seq.preemptions += 1
        batch.preempted += (seq,)

    def _cached(self, seq: Sequence) -> int:
        return self.decodes.length(seq) - 1 if seq.state == "decoding" else seq.computed

    def _start(self, batch: Batch, seq: Sequence, tokens: int, now_s: float) -> int:
        """Let a prompt in, if it is not; return the tokens of it that are computed now."""
        if seq in self.running:
            return tokens
        prompt = self._prompt[seq]
        found = self.kv.enter(seq, self._content[seq], prompt - 1, self._cached)
        seq.computed = found
        seq.state = "running"
        seq.order = self._orders
        self._orders += 1
        self.running[seq] = None
        self._begun[seq] = None
        if found:
            batch.hits += ((seq, found),)
        if seq.first_scheduled_s < 0:
            seq.first_scheduled_s = now_s
            seq.first_hit_tokens = found
            self.queried_tokens += prompt
            self.hit_tokens += found
        return min(tokens, prompt - found)

    def _decode(self, batch: Batch) -> None:
        decodes = self.decodes
        if self.record_rows:
            rows = [(seq, 1, decodes.length(seq) - 1) for seq in self.running if seq.state == "decoding"]
            batch.rows = [*(batch.rows or ()), *rows]
        self.kv.free_blocks -= decodes.blocks_needed()
        decodes.serve(batch)
        decodes.steps += 1
        self._end_decodes(batch)

    def _end_decodes(self, batch: Batch) -> None:
        for seq in self.decodes.pop_ended():
            self._leave_decodes(seq, batch.number)
            batch.finishing.append(seq)
        batch.order_finishing()

    def _compute(self, batch: Batch, chunks: list[tuple[Sequence, int]]) -> None:
        """Compute parts of prompts; whose prompt is done has its next token, and decodes from the next step on."""
        number = batch.number
        for seq, tokens in chunks:
            batch.serve(tokens, seq.computed, decodes=False)
            self.kv.grow(seq, tokens)
            seq.computed += tokens
            if seq.computed < self._prompt[seq]:
                continue
            self._waiting.popleft()
            del self._begun[seq]
            seq.emit(number, number)
            seq.length += 1
            if seq.length >= seq.final_length:
                batch.finishing.append(seq)
            else:
                seq.emit(number + 1, number)
                self.decodes.join(seq)

    def _leave_decodes(self, seq: Sequence, last: int) -> None:
        self.decodes.leave(seq)
        seq.end_emissions(last)

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch: ended sequences are kept for others."""
        self.processed_number = batch.number
        for seq in batch.finishing:
            del self.running[seq], self._prompt[seq], self._content[seq]
            self.kv.recycle(seq, seq.length - 1)
            seq.state = "finished"
            self._shut = False
        return batch.finishing

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps in which all that runs decodes, nobody comes in, and no page is short."""
        decodes, kv = self.decodes, self.kv
        rows = decodes.count
        if not self.aggregate or not rows or self._begun or len(self.running) > rows:
            return None
        steps, pages = decodes.steps_alike(), kv.free_blocks - rows
        if self._waiting:
            if not self._shut:
                return None
            if kv.recycled:  # as long as the first who waits does not ask for their pages
                rest = self._prompt[self._waiting[0]]
                free, tokens = self._slack(rows, rows - (-rest // kv.block_tokens), rows + rest)
                steps, pages = min(steps, tokens // rows + 1), min(pages, free)
        steps = decodes.steps_within(steps, pages)
        if steps < 2:
            return None
        decodes.serve(self._shape)
        return Run(steps, self._shape, deaf=bool(self._waiting))

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Schedule `steps` decode steps at once."""
        decodes, kv = self.decodes, self.kv
        before = kv.used_blocks
        need, summed = decodes.taken_over(steps)
        kv.free_blocks -= need
        self.next_number += steps
        batch = Batch(self.next_number - 1)
        self.processed_number = batch.number - 1
        decodes.serve(batch)
        decodes.steps += steps
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        self._end_decodes(batch)
        return batch, before * steps + summed, before + need
