"""First come, first served, with memory for a request's whole life at admission: nobody is ever preempted.

Every step is a call of one of two kinds. A *prefill* call takes new requests from the head of the queue, a *decode* call goes on
with those that run. With chunked prefill both are one forward pass over all rows, prompts in pieces beside decoding rows, and the
token budget decides who comes in. Without it new prompts are computed alone while the running rows pause, and then everybody
decodes together; so as not to pause too often, new requests wait until they are a given share of the running ones, or until
enough steps have passed since the last admission. After a prefill call the next call admits nobody.

The head of the queue blocks all others. A request may be admitted for a part of its answer only: it then gives back its
memory after that part, and queues again, at the end, with what it has generated as a part of its prompt. Where the original would
wait for ever for such a prompt because it exceeds the budget of a prefill, it is computed alone.

Source: behaviour of Text Generation Inference 3.3 (`backends/v3/src/backend.rs`, `queue.rs`, and
`server/text_generation_server/models/flash_causal_lm.py` for the lengths of chunks), checked step by step against recordings;
see docs/engines/tgi.md.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np
from mypy_extensions import mypyc_attr

from engine_models.memory.lifetime_pages import LifetimePages
from engine_models.memory.radix import Content, content_of
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence


@dataclass(frozen=True)
class LifetimeRules:
    """What such a scheduler may do. Names of knobs are those of Text Generation Inference.

    Attributes
    ----------
    max_batch_prefill_tokens : prompt tokens of a step; with chunked prefill decoding rows count one each.
    max_batch_total_tokens : tokens of pages that running rows may hold, those found by several counted for each.
    max_total_tokens : prompt and answer of a request.
    waiting_served_ratio : waiting requests that pause the running ones, as a share of these.
    max_waiting_tokens : steps since the last admission after which any number does.
    max_batch_size : rows that may run at once, None for no limit. With chunked prefill it holds for a first batch only.
    chunked_prefill : whether prompts are cut and share steps with decoding rows.
    reserved_answer_tokens : most answer tokens for which memory is reserved at once, None for all.
    """

    max_batch_prefill_tokens: int
    max_batch_total_tokens: int
    max_total_tokens: int
    waiting_served_ratio: float = 0.3
    max_waiting_tokens: int = 20
    max_batch_size: int | None = None
    chunked_prefill: bool = True
    reserved_answer_tokens: int | None = None


class LifetimeBatch(Batch):
    """A scheduled step. `admits`: it is a prefill call, of the requests in `new`.

    `waiting` and `used_blocks` (pages held by the rows of the call) are noted with the rows only. `renewed` are the rows whose
    reserved part of the answer ends with the step, not their answer.
    """

    __slots__ = ("admits", "new", "renewed", "used_blocks", "waiting")

    def __init__(self, number: int, *, admits: bool = False) -> None:
        super().__init__(number)
        self.admits = admits
        self.new: list[Sequence] = []
        self.renewed: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.used_blocks = 0


class _Row:
    """What the scheduler knows of a request besides its counts."""

    __slots__ = ("chunk", "content", "dropped", "limit", "prompt_tokens", "reserved_length")

    def __init__(self, content: Content, prompt_tokens: int, limit: int) -> None:
        self.content = content
        self.prompt_tokens = prompt_tokens  # with what it had generated when it last queued
        self.limit = limit  # answer tokens that the client asked for
        self.reserved_length = 0
        self.chunk = 0  # prompt tokens that the next step computes
        self.dropped = False  # its client went while a step was in flight


@mypyc_attr(allow_interpreted_subclasses=True)
class WholeLifetimeScheduler(Scheduler):
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
        rules: LifetimeRules,
        kv: LifetimePages,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.kv = kv
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.running: dict[Sequence, None] = {}  # in order of admission
        self.decodes = DecodeSet(1, windows)  # rows whose prompt is computed; their memory does not grow
        self._rows: dict[Sequence, _Row] = {}
        self._prefilling: dict[Sequence, _Row] = {}
        self._waiting: deque[Sequence] = deque()
        self._paused: set[Sequence] = set()  # rows that sit out the batch in flight
        self._returning: list[Sequence] = []  # queue again behind those that arrived meanwhile
        self._part_ends: list[tuple[int, int, Sequence]] = []  # step of the decode set, order, row
        self._held_tokens = 0
        self.spare_tokens = 0  # that a row's last step may hold beyond its answer
        self._orders = 0
        self._steps_since_admission = 0
        self._decode_next = False
        # what the last attempt at admission proved for as long as no row ends
        self._nobody_fits = False  # whoever arrives
        self._too_few_wait = False  # unless somebody arrives, or enough steps pass
        self._shape = Batch(-1)

    # -- queues ---------------------------------------------------------------------------------------------

    @property
    def reserves_answers(self) -> bool:
        """As of the base."""
        return True

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        prompt, rules = seq.prompt_tokens, self.rules
        # a client that sets no limit leaves the context as the limit
        room = (seq.final_length if seq.stop_known else rules.max_total_tokens) - prompt
        limit = seq.limit_tokens or room
        self._rows[seq] = _Row(content_of(seq), prompt, max(limit, 1))
        seq.state = "waiting"
        self._waiting.append(seq)
        self._too_few_wait = False

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running or self._waiting or self._returning)

    def state(self) -> State:
        """Requests, and pages."""
        kv, waiting = self.kv, len(self._waiting) + len(self._returning)
        return len(self.running), waiting, kv.used_blocks, kv.capacity_blocks

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base.

        That a client has gone is noticed with a token for it: a prompt in pieces is computed to its end, a paused row once more.
        Source: `filter_send_generations` of `backends/v3/src/backend.rs`.
        """
        if seq.state == "ending" or seq in self._prefilling or seq in self._paused:
            self._rows[seq].dropped = True
            return False
        row = self._rows.pop(seq)
        if seq in self.running:
            del self.running[seq]
            self._leave_decodes(seq, self.next_number - 1)
            self._give_back(seq, row)
            self._decode_next = self._decode_next and bool(self.running)
        elif seq in self._returning:
            self._returning.remove(seq)
        else:
            self._waiting.remove(seq)
        self._nobody_fits = self._too_few_wait = False
        seq.state = "finished"
        return True

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for seq in self.running:
            if seq.state == "decoding":
                self._leave_decodes(seq, self.next_number - 1)

    # -- admission ------------------------------------------------------------------------------------------

    def _admit(self) -> list[tuple[Sequence, int, int]]:
        """Take requests from the head of the queue: (request, tokens found, prompt tokens to compute now)."""
        rules, kv, rows = self.rules, self.kv, len(self.running)
        self._nobody_fits = self._too_few_wait = False
        least, most = 0, rules.max_batch_size
        budget = rules.max_batch_prefill_tokens
        if rows:
            if rules.chunked_prefill:
                budget -= self.decodes.count + sum(row.chunk for row in self._prefilling.values())
                most = None
            else:
                if self._steps_since_admission < rules.max_waiting_tokens:
                    least = int(np.float32(rows) * np.float32(rules.waiting_served_ratio))
                most = None if most is None else max(most - rows, 0)
            if budget <= 0 or self._held_tokens >= rules.max_batch_total_tokens or most == 0:
                self._nobody_fits = not self._prefilling  # whose ends leave more of the budget
                return []
        if len(self._waiting) < least:
            self._too_few_wait = True
            return []
        budget = -(-budget // kv.block_tokens) * kv.block_tokens
        taken: list[tuple[Sequence, int, int]] = []
        used = 0
        changed = False
        while self._waiting and len(taken) != most:
            seq = self._waiting[0]
            row = self._rows[seq]
            prompt = row.prompt_tokens
            found = kv.take(seq, row.content, prompt, prompt + self._reserved(row) - 1 + self.spare_tokens)
            alone = not rows and not taken
            if found is None:
                if alone and kv.forget():
                    continue  # the original would wait for ever for a prompt that it has only partly found
                break
            if found == prompt:
                found -= 1  # one token has to be computed for there to be an output
            rest = prompt - found
            if used + rest > budget and not (alone and prompt > seq.prompt_tokens):
                if rules.chunked_prefill and used < budget:
                    taken.append((self._waiting.popleft(), found, budget - used))
                else:
                    kv.give_back(seq, row.content)
                    changed = kv.prefix_caching
                break
            used += rest
            taken.append((self._waiting.popleft(), found, rest))
        if len(taken) < least:
            for seq, _, _ in reversed(taken):
                kv.give_back(seq, self._rows[seq].content)
                self._waiting.appendleft(seq)
                changed = kv.prefix_caching
            self._too_few_wait = bool(taken) and not changed
            self._nobody_fits = not taken and not changed
            return []
        self._nobody_fits = not taken and not changed
        return taken

    def _reserved(self, row: _Row) -> int:
        """Answer tokens for which memory is taken."""
        rules = self.rules
        most = rules.max_total_tokens - row.prompt_tokens
        if rules.reserved_answer_tokens is not None:
            most = min(most, rules.reserved_answer_tokens)
        return max(1, min(row.limit, most))

    def _start(self, batch: LifetimeBatch, seq: Sequence, found: int, chunk: int, now_s: float) -> None:
        row = self._rows[seq]
        row.chunk = chunk
        row.reserved_length = row.prompt_tokens + self._reserved(row)
        seq.order = self._orders
        self._orders += 1
        seq.state = "running"
        seq.computed = found
        if seq.first_scheduled_s < 0:
            seq.first_scheduled_s = now_s
            seq.first_hit_tokens = found
            self.queried_tokens += row.prompt_tokens
            self.hit_tokens += found
        if found:
            batch.hits += ((seq, found),)
        batch.new.append(seq)
        self.running[seq] = None
        self._prefilling[seq] = row
        self._held_tokens += self.kv.tokens_of(seq)

    # -- the step -------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> LifetimeBatch | None:
        """Form the next step; None if there is nothing to run."""
        if self._returning:
            self._waiting.extend(self._returning)
            self._returning = []
        ran = bool(self.running)
        taken = self._admit() if self._waiting and not self._decode_next else []
        if not taken and not ran:
            return None
        batch = LifetimeBatch(self.next_number, admits=bool(taken))
        for seq, found, chunk in taken:
            self._start(batch, seq, found, chunk, now_s)
        pauses = bool(taken) and ran and not self.rules.chunked_prefill
        self._steps_since_admission = 1 if taken else self._steps_since_admission + 1
        self._decode_next = bool(taken) and ran
        if self.record_rows:
            self._record(batch, pauses)
        if pauses:
            self._pause(batch.number)
        elif self.decodes.count:
            self.decodes.serve(batch)
            self.decodes.steps += 1
            self._end_decodes(batch)
            self._paused.clear()
        self._compute_prompts(batch)
        self.next_number += 1
        return batch

    def _record(self, batch: LifetimeBatch, pauses: bool) -> None:
        batch.rows = []
        for seq in batch.new if pauses else self.running:
            row = self._prefilling.get(seq)
            if row is not None:
                batch.rows.append((seq, row.chunk, seq.computed))
            else:
                batch.rows.append((seq, 1, self.decodes.length(seq) - 1))
        batch.waiting = list(self._waiting)
        batch.used_blocks = self.kv.distinct_blocks(seq for seq, _, _ in batch.rows)

    def _pause(self, number: int) -> None:
        """Let the decoding rows sit out a batch."""
        for seq in self.running:
            if seq.state == "decoding":
                self._paused.add(seq)
                seq.end_emissions(number - 1)
                seq.emit(number + 1, number)

    def _compute_prompts(self, batch: LifetimeBatch) -> None:
        """Compute the chunks of this step, and set those of the next."""
        if not self._prefilling:
            return
        number = batch.number
        for seq, row in list(self._prefilling.items()):
            batch.serve(row.chunk, seq.computed, decodes=False)
            seq.computed += row.chunk
            if seq.computed < row.prompt_tokens:
                continue
            del self._prefilling[seq]
            seq.emit(number, number)
            seq.length += 1
            if seq.length >= seq.final_length or row.dropped:
                seq.state = "ending"
                batch.finishing.append(seq)
            elif seq.length >= row.reserved_length:
                seq.state = "ending"
                batch.renewed.append(seq)
            else:
                seq.emit(number + 1, number)
                self.decodes.join(seq)
                if row.reserved_length < seq.final_length:
                    heapq.heappush(self._part_ends, (row.reserved_length - seq.offset, seq.order, seq))
        batch.order_finishing()
        budget = self.rules.max_batch_prefill_tokens - (len(self.running) - 1)
        for seq in reversed(self._prefilling):
            row = self._prefilling[seq]
            row.chunk = max(min(row.prompt_tokens - seq.computed, budget), 1)
            budget -= row.chunk

    def _end_decodes(self, batch: LifetimeBatch) -> None:
        """Rows whose answer, or whose reserved part of it, ends with this step leave the decode set."""
        decodes, parts = self.decodes, self._part_ends
        for seq in decodes.pop_ended():
            if seq.state != "decoding":
                continue  # a row that left and came back stands there twice
            self._leave_decodes(seq, batch.number)
            seq.state = "ending"
            batch.finishing.append(seq)
        for seq in self._paused:
            if seq.state == "decoding" and self._rows[seq].dropped:
                self._leave_decodes(seq, batch.number)
                seq.state = "ending"
                batch.finishing.append(seq)
        while parts and parts[0][0] <= decodes.steps:
            _, order, seq = heapq.heappop(parts)
            if seq.state == "decoding" and seq.order == order:
                self._leave_decodes(seq, batch.number)
                seq.state = "ending"
                batch.renewed.append(seq)
        batch.order_finishing()

    def _leave_decodes(self, seq: Sequence, last: int) -> None:
        self.decodes.leave(seq)
        seq.end_emissions(last)

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch: ended rows give back their memory in the order of rows; some queue again."""
        self.processed_number = batch.number
        assert isinstance(batch, LifetimeBatch)
        if not batch.finishing and not batch.renewed:
            return batch.finishing
        for seq in sorted(batch.finishing + batch.renewed, key=lambda seq: seq.order) if batch.renewed else batch.finishing:
            del self.running[seq]
            self._give_back(seq, self._rows[seq])
            seq.state = "finished"
        if batch.renewed:
            batch.finishing += [seq for seq in batch.renewed if self._rows[seq].dropped]
        for seq in batch.finishing:
            del self._rows[seq]
        for seq in batch.renewed:
            if seq not in self._rows:
                continue
            self._rows[seq].prompt_tokens = seq.length
            seq.computed = 0
            seq.state = "waiting"
            self._returning.append(seq)
        self._nobody_fits = self._too_few_wait = False
        if not self.running:
            self._decode_next = False
        return batch.finishing

    def _give_back(self, seq: Sequence, row: _Row) -> None:
        self._held_tokens -= self.kv.tokens_of(seq)
        self.kv.give_back(seq, row.content)

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps in which all rows decode and nobody is admitted."""
        decodes = self.decodes
        if not self.aggregate or self._prefilling or self._returning or not decodes.count:
            return None
        if len(self.running) > decodes.count or any(self._rows[seq].dropped for seq in self._paused if seq in self._rows):
            return None  # rows of a step in flight that will queue again, or that end with the next
        waiting = bool(self._waiting)
        if waiting and not self._nobody_fits and not self._too_few_wait:
            return None
        steps = decodes.steps_alike()
        parts = self._part_ends
        while parts and (parts[0][2].state != "decoding" or parts[0][2].order != parts[0][1]):
            heapq.heappop(parts)
        if parts:
            steps = min(steps, parts[0][0] - decodes.steps)
        if waiting and self._too_few_wait:
            steps = min(steps, self.rules.max_waiting_tokens - self._steps_since_admission)
        if steps < 2:
            return None
        decodes.serve(self._shape)
        return Run(steps, self._shape, deaf=waiting and self._nobody_fits)

    def take(self, steps: int) -> tuple[LifetimeBatch, int, int]:
        """Schedule `steps` decode steps at once."""
        decodes = self.decodes
        self.next_number += steps
        self._steps_since_admission += steps
        self._decode_next = False
        batch = LifetimeBatch(self.next_number - 1)
        self.processed_number = batch.number - 1
        decodes.steps += steps
        batch.tokens = batch.decode_rows = batch.decode_tokens = decodes.count
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        self._end_decodes(batch)
        self._paused.clear()
        used = self.kv.used_blocks
        return batch, used * steps, used
