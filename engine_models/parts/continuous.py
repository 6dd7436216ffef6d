"""Continuous batching under one token budget, prefill and decode fused: the scheduler of vLLM V1.

Each step first serves the running rows in the order of their admission, then admits waiting requests, as long as
budget, rows and KV blocks last. There are no prefill or decode phases: a row asks for the tokens that exist and are
not computed yet, and gets what the budget leaves.

The running rows are served in one of two ways that give the same schedule. When budget and blocks suffice for all of
them the order is immaterial and the decoding rows are served as one aggregate (`_serve_together`); otherwise
row by row, with preemption (`_serve_row_by_row`). `aggregate=False` forces the second way: it is the
reference that the first is tested against.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.paged_kv import Block, PagedKV
from engine_models.parts.sequence import Sequence


@dataclass(frozen=True)
class ContinuousRules:
    """What a continuous-batching scheduler may do. Names of knobs are vLLM's; switches name a behaviour.

    Attributes
    ----------
    max_num_batched_tokens : token budget of a step.
    max_num_seqs : rows that may run at once.
    max_model_len : context limit in tokens.
    in_flight : batches scheduled ahead (1 synchronous, 2 async scheduling, pipeline stages).
    policy : "fcfs" or "priority".
    chunked_prefill : whether a prompt may be computed in several steps.
    long_prefill_token_threshold : most tokens of one request in a step, 0 for no cap.
    lone_request_ignores_threshold : the cap does not bind when only one request is there (0.33).
    reserve_full_prompt : admission needs blocks for the whole known sequence (from 0.19).
    watermark : fraction of blocks kept free at admission while something runs (from 0.24).
    self_preemption_continues : under priority a row that preempts itself does not stop the loop (0.33).
    preempted_tokens_return : the budget gets back the tokens of a victim already scheduled (from 0.14).
    unfit_prompt_is_skipped : without chunking, a prompt over the budget lets the next one try (0.11).
    wasted_row_after_limit : async mode schedules one row more even where the end is certain (0.11).
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    in_flight: int = 1
    policy: str = "fcfs"
    chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    lone_request_ignores_threshold: bool = True
    reserve_full_prompt: bool = True
    watermark: float = 0.0
    self_preemption_continues: bool = True
    preempted_tokens_return: bool = True
    unfit_prompt_is_skipped: bool = False
    wasted_row_after_limit: bool = False
    pipelined: bool = False


@dataclass(slots=True)
class Batch:
    """One scheduled step (or, after a jump, the last of several equal ones).

    `decode_kv_tokens` sums, over the decode rows, the tokens attended to; `prefill` lists (new, prior) tokens.
    `finishing` are the rows whose last token this batch yields, in batch order.
    """

    number: int
    decode_rows: int = 0
    decode_tokens: int = 0
    decode_kv_tokens: int = 0
    prefill: list[tuple[int, int]] = field(default_factory=list)
    finishing: list[Sequence] = field(default_factory=list)
    rows: list[tuple[Sequence, int, int]] | None = None
    hits: list[tuple[Sequence, int]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    tokens: int = 0
    free_blocks: int = 0
    t_sched: float = 0.0
    t_start: float = 0.0
    t_end: float = 0.0


class ContinuousScheduler:
    """Waiting and running requests of one replica and the rule that forms the next batch.

    Parameters
    ----------
    rules : the knobs and switches.
    kv : the block allocator.
    aggregate : serve decoding rows as one where that is exact.
    record_rows : keep the ordered rows of every batch (`Batch.rows`), for comparison with recorded schedules.
    """

    def __init__(
        self, rules: ContinuousRules, kv: PagedKV, *, aggregate: bool = True, record_rows: bool = False
    ) -> None:
        self.rules = rules
        self.kv = kv
        self.aggregate = aggregate and not record_rows and not rules.pipelined
        self.record_rows = record_rows
        self.running: dict[Sequence, None] = {}
        self.partial: dict[Sequence, None] = {}  # running, not in the decode set, still owed tokens
        self.decodes = DecodeSet(kv.block_tokens)
        self.next_number = 0
        self.processed_number = -1
        self.preemptions = 0
        self.hit_tokens = 0
        self.queried_tokens = 0
        self.blocked = False
        self._orders = 0
        self._watermark_blocks = int(rules.watermark * (kv.capacity_blocks + 1))
        self._fcfs: deque[Sequence] = deque()
        self._heap: list[tuple[int, float, int, Sequence]] = []
        self._by_priority = rules.policy == "priority"
        self._async = rules.in_flight > 1 and not rules.pipelined
        self._wasting: list[Sequence] = []
        self._batch_hits: list[tuple[Sequence, int]] = []

    # -- queues ---------------------------------------------------------------------------------------------

    @property
    def waiting_count(self) -> int:
        """Requests that wait for admission, preempted ones included."""
        return len(self._heap) if self._by_priority else len(self._fcfs)

    def waiting(self) -> list[Sequence]:
        """Waiting requests in the order in which they will be tried."""
        return [entry[3] for entry in sorted(self._heap)] if self._by_priority else list(self._fcfs)

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        if self._by_priority:
            heapq.heappush(self._heap, (seq.priority, seq.arrival_s, seq.index, seq))
            self.blocked = False
        else:
            if not self._fcfs:
                self.blocked = False
            self._fcfs.append(seq)

    def _requeue(self, seq: Sequence) -> None:
        if self._by_priority:
            heapq.heappush(self._heap, (seq.priority, seq.arrival_s, seq.index, seq))
        else:
            self._fcfs.appendleft(seq)

    def _head(self) -> Sequence:
        return self._heap[0][3] if self._by_priority else self._fcfs[0]

    def _pop_head(self) -> Sequence:
        return heapq.heappop(self._heap)[3] if self._by_priority else self._fcfs.popleft()

    def _withdraw(self, seq: Sequence) -> None:
        if self._by_priority:
            self._heap = [entry for entry in self._heap if entry[3] is not seq]
            heapq.heapify(self._heap)
        else:
            self._fcfs.remove(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running) or self.waiting_count > 0

    # -- the step -------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        """Form the next batch; None if there is nothing to run."""
        rules = self.rules
        batch = Batch(self.next_number)
        if self.record_rows:
            batch.rows = []
        budget = rules.max_num_batched_tokens
        cap = rules.long_prefill_token_threshold
        if cap and rules.lone_request_ignores_threshold and len(self.running) + self.waiting_count <= 1:
            cap = 0
        served: list[tuple[Sequence, int]] = []  # partial rows and the tokens they get
        pure = not self.partial
        if self.aggregate and self._fits_together(budget, cap):
            budget = self._serve_together(batch, served, budget, cap)
        else:
            budget = self._serve_row_by_row(batch, served, budget, cap)
            pure = False
        self.blocked = False
        if not batch.preempted and self.waiting_count:
            admitted = len(served)
            reason = self._admit(batch, served, budget, cap, now_s)
            self.blocked = pure and reason and len(served) == admitted
        if not served and not batch.decode_rows:
            if batch.preempted:
                self.blocked = False
            return batch if batch.preempted else None
        self._commit(batch, served)
        batch.free_blocks = self.kv.free_blocks
        self.next_number += 1
        return batch

    def _want(self, seq: Sequence, budget: int, cap: int) -> int:
        want = seq.length - seq.computed
        if 0 < cap < want:
            want = cap
        return min(want, budget, self.rules.max_model_len - 1 - seq.computed)

    def _fits_together(self, budget: int, cap: int) -> bool:
        """Whether all running rows can be served without preemption and without regard to order."""
        decodes, kv = self.decodes, self.kv
        budget -= decodes.count
        if budget < 0:
            return False
        need = decodes.blocks_needed()
        clipped = False
        for seq in self.partial:
            want = self._want(seq, 1 << 60, cap)
            if want > budget:
                clipped = True
                want = budget
            budget -= want
            need += max(0, -(-(seq.computed + want) // kv.block_tokens) - kv.held(seq))
        if clipped and decodes.count and next(iter(self.partial)).order < decodes.top_order:
            return False
        return need <= kv.free_blocks

    def _serve_together(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int
    ) -> int:
        decodes, kv = self.decodes, self.kv
        if decodes.count:
            need = decodes.blocks_needed()
            if need:
                kv.take(need)
            batch.decode_rows = decodes.count
            batch.decode_kv_tokens = decodes.kv_tokens()
            budget -= decodes.count
            decodes.steps += 1
        for seq in self.partial:
            if budget <= 0:
                break
            want = self._want(seq, budget, cap)
            if want <= 0:
                continue
            kv.grow(seq, seq.computed + want)
            kv.register(seq, min(seq.computed + want, seq.length))
            served.append((seq, want))
            budget -= want
        return budget

    def _serve_row_by_row(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int
    ) -> int:
        rules, kv, decodes = self.rules, self.kv, self.decodes
        order = list(self.running)
        taken: dict[Sequence, tuple[int, int]] = {}  # row -> (tokens, blocks) this step
        position = 0
        while position < len(order) and budget > 0:
            seq = order[position]
            if seq.state == "ending" or seq.ready_batch > self.processed_number:
                position += 1
                continue
            decoding = seq.state == "decoding"
            want = 1 if decoding else self._want(seq, budget, cap)
            if want <= 0:
                position += 1
                continue
            if decoding:
                need = 1 if (seq.offset - 1 + decodes.steps) % kv.block_tokens == 0 else 0
            else:
                need = max(0, -(-(seq.computed + want) // kv.block_tokens) - kv.held(seq))
            fits = True
            while need > kv.free_blocks:
                if self._by_priority:
                    victim = max(order, key=lambda s: (s.priority, s.arrival_s))
                else:
                    victim = order[-1]
                if victim in taken:
                    tokens, blocks = taken[victim]
                    if rules.preempted_tokens_return:
                        budget += tokens
                        del taken[victim]
                        position -= 1
                    self._preempt(victim, batch, blocks)
                else:
                    self._preempt(victim, batch, 0)
                order.remove(victim)
                if victim is seq:
                    fits = False
                    break
            if not fits:
                if self._by_priority and rules.self_preemption_continues:
                    continue
                break
            kv.take(need)
            taken[seq] = (want, need)
            if not decoding:
                seq.extra_blocks += need
                kv.register(seq, min(seq.computed + want, seq.length))
            budget -= want
            position += 1
        # what was served, in order; decoding rows that were not served leave the aggregate for this step
        idle: list[Sequence] = []
        for seq in self.running:
            if seq.state == "decoding" and seq not in taken:
                idle.append(seq)
        last = self.next_number - 1
        for seq in idle:
            self._leave_decodes(seq, last)
        for seq, (tokens, _) in taken.items():
            if seq.state == "decoding":
                batch.decode_rows += 1
                batch.decode_kv_tokens += decodes.length(seq)
                if batch.rows is not None:
                    batch.rows.append((seq, 1, decodes.length(seq) - 1))
            else:
                served.append((seq, tokens))
                if batch.rows is not None:
                    batch.rows.append((seq, tokens, seq.computed))
        if batch.decode_rows:
            decodes.steps += 1
        for seq in idle:
            self._join_decodes(seq, self.next_number)
        return budget

    def _preempt(self, seq: Sequence, batch: Batch, fresh_blocks: int) -> None:
        """Take the row's blocks; it starts over from the front of the waiting queue."""
        kv = self.kv
        if seq.state == "decoding":
            self._leave_decodes(seq, self.next_number - 1)
            seq.extra_blocks += fresh_blocks
            known = seq.computed - 1 if self._async else seq.computed
            if self._async:
                seq.ready_batch = self.next_number - 1
        elif seq.state == "ending":
            known = seq.computed - 1 if self._async else seq.computed
            seq.ready_batch = self.next_number - 1
        else:
            known = min(seq.computed, seq.length)
            self.partial.pop(seq, None)
        kv.register(seq, known)
        kv.make_findable(seq)
        kv.release(seq)
        seq.computed = 0
        seq.state = "preempted"
        seq.preemptions += 1
        self.preemptions += 1
        del self.running[seq]
        self._requeue(seq)
        batch.preempted.append(seq)

    def _admit(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int, now_s: float
    ) -> bool:
        """Admit from the waiting queue; return whether the head is blocked for want of rows or blocks."""
        rules, kv = self.rules, self.kv
        size = kv.block_tokens
        aside: list[Sequence] = []
        blocked = False
        while self.waiting_count and budget > 0:
            if len(self.running) >= rules.max_num_seqs:
                blocked = not aside
                break
            seq = self._head()
            if seq.ready_batch > self.processed_number:
                aside.append(self._pop_head())
                continue
            found = kv.find(seq) if kv.prefix_caching else []
            hit = len(found)
            want = seq.length - hit * size
            if 0 < cap < want:
                want = cap
            if not rules.chunked_prefill and want > budget:
                if rules.unfit_prompt_is_skipped:
                    aside.append(self._pop_head())
                    continue
                blocked = not aside
                break
            want = min(want, budget)
            unheld = sum(block.holders == 0 for block in found)
            reserve = unheld - hit + (self._watermark_blocks if self.running else 0)
            if rules.reserve_full_prompt:
                whole = -(-min(seq.length, rules.max_model_len) // size)
                if whole + reserve > kv.free_blocks:
                    blocked = not aside
                    break
            if -(-(hit * size + want) // size) + reserve > kv.free_blocks:
                blocked = not aside
                break
            self._pop_head()
            if hit:
                kv.hold(seq, found)
            kv.grow(seq, hit * size + want)
            seq.computed = hit * size
            kv.register(seq, min(seq.computed + want, seq.length))
            seq.order = self._orders
            self._orders += 1
            seq.state = "running"
            self.running[seq] = None
            self.partial[seq] = None
            if seq.first_scheduled_s < 0:
                seq.first_scheduled_s = now_s
                seq.first_hit_tokens = hit * size
                self.queried_tokens += seq.length
                self.hit_tokens += hit * size
            if hit:
                batch.hits.append((seq, hit * size))
            if batch.rows is not None:
                batch.rows.append((seq, want, seq.computed))
            served.append((seq, want))
            budget -= want
        for seq in reversed(aside):
            self._requeue(seq)
        return blocked

    def _commit(self, batch: Batch, served: list[tuple[Sequence, int]]) -> None:
        """Count the scheduled tokens, note who emits and who ends."""
        number = batch.number
        batch.tokens = batch.decode_tokens = batch.decode_rows
        wasted, self._wasting = self._wasting, []
        for seq in wasted:
            if seq.state == "decoding":
                self._leave_decodes(seq, None)
                seq.state = "ending"
        if batch.decode_rows:
            self._end_decodes(batch)
        for seq, tokens in served:
            batch.tokens += tokens
            prior = seq.computed
            seq.computed += tokens
            if tokens == 1 and prior >= seq.prompt_tokens:
                batch.decode_rows += 1
                batch.decode_tokens += 1
                batch.decode_kv_tokens += prior + 1
            else:
                batch.prefill.append((tokens, prior))
            if seq.computed < seq.length:
                continue
            # the row has caught up: it emits a token
            if seq.emissions and seq.emissions[-1][1] == number - 1:
                seq.emissions[-1][1] = number
            else:
                seq.emissions.append([number, number])
            seq.length += 1
            if self.rules.pipelined:
                seq.ready_batch = number
                if seq.length >= seq.final_length:
                    seq.state = "ending"
                    del self.partial[seq]
                    batch.finishing.append(seq)
                continue
            del self.partial[seq]
            if seq.length < seq.final_length:
                self._join_decodes(seq, number)
            else:
                batch.finishing.append(seq)
                if self._async and (not seq.stop_known or self.rules.wasted_row_after_limit):
                    self._join_decodes(seq, number)
                    self._wasting.append(seq)
                else:
                    seq.state = "ending"
        if len(batch.finishing) > 1:
            batch.finishing.sort(key=lambda s: s.order)

    def _join_decodes(self, seq: Sequence, after: int) -> None:
        if not (seq.emissions and seq.emissions[-1][1] == after):
            seq.emissions.append([after + 1, after])
        self.decodes.join(seq)

    def _leave_decodes(self, seq: Sequence, last: int | None) -> None:
        self.decodes.leave(seq)
        if last is not None:
            span = seq.emissions[-1]
            span[1] = last
            if span[0] > span[1]:
                seq.emissions.pop()

    def process(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch: ended requests leave and free their blocks, in batch order."""
        self.processed_number = batch.number
        kv = self.kv
        for seq in batch.finishing:
            if seq.state == "preempted":
                self._withdraw(seq)
            else:
                if seq.state == "decoding":  # a wasted row still counted in the aggregate
                    self._leave_decodes(seq, None)
                del self.running[seq]
                if seq.output_shared and kv.prefix_caching:
                    kv.name_output(seq)
                kv.register(seq, seq.final_length - 1)
                kv.release(seq)
            seq.state = "finished"
        if batch.finishing:
            self.blocked = False
        return batch.finishing

    def ignores_arrivals(self) -> bool:
        """Whether a newly arrived request could not change the next steps: the queue's head is stuck before it."""
        return self.blocked and not self._by_priority

    # -- jumping --------------------------------------------------------------------------------------------

    def horizon(self) -> int:
        """Proven number of next steps that serve exactly the rows of the decode set and nothing else.

        The last of them may yield final tokens. 0 if the next step must be formed by `schedule`.
        """
        decodes = self.decodes
        if (
            not self.aggregate
            or not decodes.count
            or self.partial
            or self._wasting
            or (self.waiting_count and not self.blocked)
            or decodes.count > self.rules.max_num_batched_tokens
        ):
            return 0
        steps = decodes.steps_to_next_end()
        free = self.kv.free_blocks
        if decodes.count * (steps // decodes.block_tokens + 1) > free:
            while steps > 0 and decodes.blocks_needed_over(steps) > free:
                steps = min(steps - 1, steps // 2 + 8)
        return steps

    def jump(self, steps: int) -> Batch:
        """Schedule `steps` pure decode steps at once; returns the last of them."""
        decodes = self.decodes
        need = decodes.blocks_needed_over(steps)
        if need:
            self.kv.take(need)
        decodes.steps += steps
        self.next_number += steps
        batch = Batch(self.next_number - 1)
        batch.decode_rows = decodes.count
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        batch.tokens = batch.decode_tokens = decodes.count
        self._end_decodes(batch)
        if len(batch.finishing) > 1:
            batch.finishing.sort(key=lambda s: s.order)
        return batch

    def _end_decodes(self, batch: Batch) -> None:
        """Rows of the decode set whose last token this batch yields stop being scheduled.

        Under async scheduling an end that is not certain beforehand costs one more row, scheduled in vain.
        """
        for seq in self.decodes.pop_ended():
            if self._async and (not seq.stop_known or self.rules.wasted_row_after_limit):
                seq.emissions[-1][1] = batch.number
                self._wasting.append(seq)
            else:
                self._leave_decodes(seq, batch.number)
                seq.state = "ending"
            batch.finishing.append(seq)


def used_fraction(kv: PagedKV) -> float:
    """Share of the blocks that are held."""
    return 1.0 - kv.free_blocks / kv.capacity_blocks


__all__ = ["Batch", "Block", "ContinuousRules", "ContinuousScheduler", "used_fraction"]
