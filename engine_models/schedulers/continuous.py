"""Continuous batching under one token budget, prefill and decode fused: the scheduler of vLLM V1.

Each step first serves the running rows in the order of their admission, then admits waiting requests, as long as
budget, rows and KV blocks last. There are no prefill or decode phases: a row asks for the tokens that exist and are
not computed yet, and gets what the budget leaves.

The running rows are served in one of two ways that give the same schedule. When budget and blocks suffice for all of
them the order is immaterial and the decoding rows are served as one aggregate (`_serve_together`); otherwise
row by row, with preemption (`_serve_row_by_row`). `aggregate=False` forces the second way: it is the
reference that the first is tested against.

Rows with drafts to verify, and rows whose cache has several groups, are *itemised*: not part of this aggregate, settled one by
one when their batch is settled (`_settle_itemised`). `drafted` and `windowed` have aggregates for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Series
from typing import Any

from mypy_extensions import mypyc_attr

from engine_models.memory.hybrid_kv import HybridKV
from engine_models.memory.kv_tiers import KvTiers
from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.block_names import BlockEvents, ChainKeys
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.kept import Kept
from engine_models.parts.protocols import INFINITY, Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import TierCount, TierKind
from engine_models.parts.waiting import ByPriority, FirstCome


@mypyc_attr(allow_interpreted_subclasses=True)
class ContinuousScheduler(Scheduler):
    """Waiting and running requests of one replica and the rule that forms the next batch.

    Parameters
    ----------
    rules : the knobs and switches.
    kv : the block allocator.
    aggregate : serve decoding rows as one where that is exact.
    record_rows : keep the ordered rows of every batch (`Batch.rows`), for comparison with recorded schedules.
    tiers : KV blocks in host memory and beyond, searched where the device's cache ends.
    windows : of the model's layers, whose spans a batch names.
    """

    # the interpreter reads attributes slowly of an object that has more than 30 without slots
    __slots__ = (
        "_abandoned",
        "_async",
        "_by_priority",
        "_early",
        "_fences",
        "_flying",
        "_late",
        "_loading",
        "_loads",
        "_orders",
        "_prompts",
        "_queue",
        "_run",
        "_settled_s",
        "_stored",
        "_takes_vain",
        "_vain",
        "_wasting",
        "_watermark_blocks",
        "aggregate",
        "blocked",
        "decodes",
        "itemised",
        "kv",
        "partial",
        "record_rows",
        "rules",
        "running",
        "tiers",
    )

    def __init__(
        self,
        rules: ContinuousRules,
        kv: PagedKV | HybridKV,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        tiers: KvTiers | None = None,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.tiers = tiers
        self._loads = tiers is not None and not tiers.in_step  # whether what a request lacks may come from elsewhere
        self._abandoned: set[Sequence] = set()  # of those that load: their clients have gone
        self._prompts: set[Sequence] = set()  # itemised rows whose first tokens since their admission are yet to be computed
        self._loading: dict[Sequence, int] = {}  # hold their blocks, wait for their content; tokens then found
        self.kv = kv
        self.itemised = kv.itemised or rules.speculative_tokens > 0
        self.aggregate = aggregate and not record_rows and not rules.pipelined and not self.itemised
        self.record_rows = record_rows
        self.running: dict[Sequence, None] = {}
        self.partial: dict[Sequence, None] = {}  # running, not in the decode set, still owed tokens
        self.decodes = DecodeSet(kv.block_tokens, windows)
        self.next_number = 0
        self.processed_number = -1
        self._run = Run(0, Batch(-1))
        self.blocked = False
        self._orders = 0
        self._watermark_blocks = int(rules.watermark * (kv.capacity_blocks + 1))
        self._by_priority = rules.policy == "priority"
        self._queue = ByPriority() if self._by_priority else FirstCome()
        self._async = rules.in_flight > 1 and not rules.pipelined
        self._wasting: list[Sequence] = []
        self._fences = self._async and tiers is not None and rules.fences_loads
        self._takes_vain = self.__class__ is ContinuousScheduler and self._async and tiers is None and not windows
        self._vain: list[Sequence] = []  # rows that the batch formed last serves in vain
        self._late: list[tuple[int, Sequence]] = []  # have ended, and are freed when so many batches are settled
        self._pieces: dict[Sequence, int] = {}  # rows of a pipeline whose prompts go on, and their latest batch
        self._flying: set[Sequence] = set()  # rows of the batch formed last, but for those that only decode
        self._stored = -1  # latest batch whose blocks the tiers have
        self._settled_s = 0.0
        self._early = 0  # batches whose results a run has taken in before their end

    # -- queues ---------------------------------------------------------------------------------------------

    @property
    def waiting_count(self) -> int:
        """Requests that wait for admission, preempted ones and those that load from a tier included."""
        return len(self._queue) + len(self._loading)

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        if self._by_priority or not self._queue:
            self.blocked = False
        self._queue.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running) or bool(self._queue) or bool(self._loading)

    def wake_s(self) -> float:
        """When the next load from a tier ends."""
        loaded_s = min((seq.loaded_s for seq in self._loading), default=INFINITY) if self._loading else INFINITY
        return loaded_s if self.tiers is None else min(loaded_s, self.tiers.wake_s())

    def state(self) -> State:
        """Requests, and blocks."""
        kv, waiting = self.kv, len(self._queue)
        if self._loading:
            waiting += len(self._loading) - len(self._abandoned)
        total = kv.capacity_blocks
        return len(self.running), waiting, total - kv.free_blocks, total

    @property
    def cancels(self) -> bool:
        """As of the base: this rule itself."""
        return self.__class__ is ContinuousScheduler

    def cancel(self, seq: Sequence) -> bool:
        """As of the base: full blocks can be found by others still; blocks that are loaded are free when that is over."""
        self.blocked = False
        if self.tiers is not None:
            self.tiers.left(seq)
        if seq in self._loading:
            self._abandoned.add(seq)
            seq.state = "finished"
            return True
        if seq in self._wasting:
            self._wasting.remove(seq)
            self._leave_decodes(seq, None)
            seq.state = "ending"
        if seq in self.running:
            fenced = self._fenced(seq)
            known = self._before_preemption(seq, None)
            if not self.itemised:
                first, last = seq.emissions[-2:] or (0, -1)
                if last == self.next_number - 1 and last - max(first - 1, self.processed_number - self._early) == 1:
                    known = seq.computed  # the batch formed last serves it, with a token that was known
                self.kv.register(seq, known)
            if seq.output_shared:
                self.kv.make_findable(seq)
            if fenced:
                self._late.append((self.next_number - 1, seq))
            else:
                self.kv.release(seq)
            del self.running[seq]
        else:
            self._queue.remove(seq)
        seq.state = "finished"
        return True

    def report_blocks(self, chain: ChainKeys) -> BlockEvents | None:
        """As of the base: where one kind of blocks serves all layers."""
        return self.kv.report(chain) if self.kv.__class__ is PagedKV and self.kv.prefix_caching else None

    def tier_counts(self) -> list[TierCount]:
        """As of the base."""
        return [] if self.tiers is None else self.tiers.counts()

    def join(self, other: Scheduler, kind: TierKind) -> None:
        """As of the base; blocks are then named alike in both."""
        assert isinstance(other, ContinuousScheduler)
        assert self.tiers is not None
        assert other.tiers is not None
        self.tiers.join(other.tiers, kind)
        if kind == "shared":
            self.kv.chain = other.kv.chain

    def beside(self, other: Scheduler) -> None:
        """As of the base."""
        assert isinstance(other, ContinuousScheduler)
        assert self.tiers is not None
        assert other.tiers is not None
        self.tiers.beside(other.tiers)

    def cached(self) -> list[Kept] | None:
        """As of the base: where one kind of blocks serves all layers."""
        return self.kv.kept() if isinstance(self.kv, PagedKV) and self.kv.prefix_caching else None

    def warm(self, pieces: Series[Kept]) -> None:
        """As of the base."""
        assert isinstance(self.kv, PagedKV)
        self.kv.warm(pieces)

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for seq in list(self.running):
            if seq.state == "decoding":
                self._leave_decodes(seq, self.next_number - 1)

    # -- the step -------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        """Form the next batch; None if there is nothing to run."""
        rules = self.rules
        self._early = 0
        batch = Batch(self.next_number)
        batch.spans = self.decodes.no_spans
        if self.record_rows:
            batch.rows = []
        if self.tiers is not None:
            batch.t_sched = now_s
            self.tiers.arrived(now_s)
            idle = self.next_number - 1 == self.processed_number and now_s > self._settled_s
            self._stored = self.processed_number + idle
        if rules.aligned_tokens:
            self.kv.begin_step()
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
        if not batch.preempted and (self._queue or self._loading):
            admitted = len(served)
            reason = self._admit(batch, served, budget, cap, now_s)
            self.blocked = pure and reason and len(served) == admitted
            if not admitted and served and self.decodes.count and not batch.decode_rows:
                self._let_wait()
        if not served and not batch.decode_rows:
            if batch.preempted:
                self.blocked = False
            if self.tiers is not None:
                self.tiers.end_step(batch.number - 1, now_s)
                waits = self._stored == self.processed_number == self.next_number - 1 and self.tiers.pending(self._stored)
                if waits and self._queue and not batch.preempted:
                    self._settled_s = -INFINITY  # the loop turns without a step
                    return self.schedule(now_s)
            return batch if batch.preempted else None
        self._commit(batch, served)
        if self._fences:
            self._flying = {seq for seq, _ in served}
        if self.tiers is not None:
            self._store(batch, served, now_s)
        batch.free_blocks = self.kv.free_blocks
        self.next_number += 1
        return batch

    def _want(self, seq: Sequence, budget: int, cap: int) -> int:
        want = seq.length + seq.drafts - seq.computed
        if 0 < cap < want:
            want = cap
        want = min(want, budget, self.rules.max_model_len - 1 - seq.computed)
        return self._aligned(seq, seq.computed, want) if self.rules.aligned_tokens else want

    def _aligned(self, seq: Sequence, begin: int, tokens: int) -> int:
        """Tokens of a row that a step serves from `begin` on, of at most so many, where states of recurrent layers are kept."""
        rules, size = self.rules, self.rules.aligned_tokens
        last = max(seq.prompt_tokens, seq.length - 1)
        if begin >= last:
            return tokens
        end = begin + tokens
        if end < last:
            whole, most = end // size * size, rules.max_num_batched_tokens
            if rules.long_prefill_token_threshold:
                most = min(most, rules.long_prefill_token_threshold)
            if whole > begin or size <= most:
                end = whole
        stops = [(begin // size + 1) * size] if begin % size else []
        if not (rules.checkpoints and end >= last and not begin % size and self.kv.last_place(last) >= begin + size):
            stops.append(self.kv.last_place(seq.length))
        if begin < seq.junction_tokens < end:
            stops.append(begin + (seq.junction_tokens - begin) // size * size)
        return max(0, min([stop for stop in stops if begin < stop < end], default=end) - begin)

    def _fits_together(self, budget: int, cap: int) -> bool:
        """Whether all running rows can be served without preemption and without regard to order."""
        decodes, kv = self.decodes, self.kv
        budget -= decodes.count
        if budget < 0:
            return False
        need = decodes.blocks_needed()
        if not self.partial:
            return need <= kv.free_blocks
        clipped = False
        for seq in self.partial:
            want = self._want(seq, 1 << 60, cap)
            if want > budget:
                clipped = True
                want = self._want(seq, budget, cap) if budget > 0 else 0
            budget -= want
            need += kv.missing(seq, seq.computed + want)
        if clipped and decodes.count and next(iter(self.partial)).order < decodes.top_order:
            return False
        return need <= kv.free_blocks

    def _serve_together(self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int) -> int:
        decodes, kv = self.decodes, self.kv
        if decodes.count:
            need = decodes.blocks_needed()
            if need:
                kv.take(need)
            decodes.serve(batch)
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
            if seq.state == "ending" or seq.ready_batch > self.processed_number or self._surely_ends(seq):
                position += 1
                continue
            decoding = seq.state == "decoding"
            if decoding and budget < decodes.row_tokens:
                self._leave_decodes(seq, self.next_number - 1)
                decoding = False
            want = decodes.row_tokens if decoding else self._want(seq, budget, cap)
            if want <= 0:
                position += 1
                continue
            if decoding:
                need = decodes.visit(seq)
            else:
                slots = min(seq.computed + want + rules.lookahead_tokens, rules.max_model_len)
                kv.leave_window(seq, seq.computed, seq.computed - seq.in_flight_tokens)
                need = kv.missing(seq, slots)
            fits = True
            while need > kv.free_blocks:
                if self._by_priority:
                    victim = max(order, key=lambda s: (s.priority, s.arrival_s))
                else:
                    victim = order[-1]
                if self._fenced(victim):
                    fits = False
                    break
                if victim in taken:
                    tokens, blocks = taken[victim]
                    if rules.preempted_tokens_return:
                        budget += tokens
                        del taken[victim]
                        position -= 1
                    self._preempt(victim, batch, blocks)
                else:
                    if rules.self_preemption_continues and order.index(victim) < position:  # one that was passed over
                        position -= 1
                    self._preempt(victim, batch, None)
                order.remove(victim)
                if victim is seq:
                    fits = False
                    break
            if not fits:
                if self._by_priority and rules.self_preemption_continues and seq.state == "preempted":
                    continue
                break
            taken[seq] = (want, need)
            if decoding:
                kv.take(need)
            else:
                kv.grow(seq, slots)
                kv.register(seq, min(seq.computed + want, self._known(seq)))
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
                if batch.spans:
                    batch.attend(decodes.length(seq))
                if batch.rows is not None:
                    batch.rows.append((seq, 1, decodes.length(seq) - 1))
            else:
                served.append((seq, tokens))
                if batch.rows is not None:
                    batch.rows.append((seq, tokens, seq.computed))
        if batch.decode_rows:
            decodes.steps += 1
        for seq in idle:  # a step of preemptions alone takes no number
            self._set_aside(seq, self.next_number if taken else last)
        return budget

    def _let_wait(self) -> None:
        """The next batch serves none of the decoding rows, as the first has no block and nobody may give it one, but others."""
        for seq in [seq for seq in self.running if seq.state == "decoding"]:
            self._leave_decodes(seq, self.next_number - 1)
            self._set_aside(seq, self.next_number)

    def _fenced(self, seq: Sequence) -> bool:
        """Whether a step in flight may still write the row's blocks: it keeps them then, as a load could overtake that."""
        if not self._fences or self.next_number - 1 == self.processed_number:
            return False
        if seq.state == "decoding":
            return seq.emissions[-2] < self.next_number
        return seq.state == "ending" or seq in self._flying

    def _known(self, seq: Sequence) -> int:
        """Tokens of a row outside the set whose value is known."""
        return seq.length - seq.pending

    def _set_aside(self, seq: Sequence, last: int) -> None:
        """A decoding row that was not served up to batch `last` returns to the set."""
        self._join_decodes(seq, last)

    def _preempt(self, seq: Sequence, batch: Batch, fresh_blocks: int | None) -> None:
        """Take the row's blocks, `fresh_blocks` of this very step among them; it starts over from the waiting queue."""
        kv = self.kv
        known = self._before_preemption(seq, fresh_blocks)
        if not self.itemised:
            kv.register(seq, known)
        if self.tiers is not None:
            self.tiers.paused(seq, known, self.next_number, batch.t_sched)
        kv.make_findable(seq)
        if self.tiers is not None:
            self.tiers.name(seq)
        kv.release(seq)
        seq.computed = 0
        seq.length -= seq.pending
        seq.pending = seq.drafts = 0
        seq.state = "preempted"
        seq.preemptions += 1
        del self.running[seq]
        self._queue.put_back(seq)
        batch.preempted += (seq,)

    def _before_preemption(self, seq: Sequence, fresh_blocks: int | None) -> int:
        """Take a row out of where it is served; return its tokens that can be found again, those whose value is known.

        An output in flight is not, unless the row was already served in this step, which looked one token further.
        """
        if seq.state == "decoding":
            self._leave_decodes(seq, self.next_number - 1)
            seq.extra_blocks += fresh_blocks or 0
            if self._async and not self._fences:
                seq.ready_batch = self.next_number - 1
            in_flight = seq.emissions[-1] > self.processed_number
            return seq.computed - 1 if in_flight and fresh_blocks is None else seq.computed
        if seq.state == "ending":
            seq.ready_batch = self.next_number - 1
            return seq.computed - 1 if self._async else seq.computed
        self.partial.pop(seq, None)
        self._prompts.discard(seq)
        seq.ready_batch = self._pieces.pop(seq, seq.ready_batch)
        return min(seq.computed, self._known(seq))

    def _admit(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int, now_s: float
    ) -> bool:
        """Admit from the waiting queue; return whether the head is blocked for want of rows or blocks."""
        rules, kv = self.rules, self.kv
        drafts, longest = rules.speculative_tokens, rules.max_model_len
        served_before = bool(served or batch.decode_rows)
        # a request that lacks one token brings drafts too, unless a prompt is being computed in this step
        pads = drafts > 0 and rules.pads_lone_token and all(seq.drafts for seq, _ in served)
        lookahead = rules.lookahead_tokens if rules.first_admission_lookahead else 0
        aside: list[Sequence] = []
        passed = 0  # of these, those that nobody but a row's end lets in
        blocked = False
        if self._loading:
            budget = self._admit_loaded(batch, served, budget, cap, now_s)
        while self._queue and budget > 0:
            if len(self.running) >= rules.max_num_seqs:
                blocked = len(aside) == passed
                break
            seq = self._queue.head()
            if seq.ready_batch > self.processed_number or seq.in_flight_tokens:
                aside.append(self._queue.take())
                continue
            if self._passes_over(seq, served):
                aside.append(self._queue.take())
                passed += 1
                continue
            found: Any = kv.find(seq)  # opaque here: only the cache that found it looks inside
            hit = kv.hit_tokens(found) if found else 0
            loaded = 0
            if self._loads:
                began = self._begin_load(seq, found, hit, now_s)
                if began == "full":
                    blocked = len(aside) == passed
                    break
                if began:
                    if began == "later":
                        aside.append(self._queue.take())
                    continue
            if self.tiers is not None and self.tiers.in_step:
                loaded = (self.tiers.find(seq, hit // kv.block_tokens, self._stored, now_s) or 0) * kv.block_tokens
                loaded = min(loaded, seq.length - 1 - hit)  # the last token is computed again, for its output
                hit += loaded
            want = seq.length - hit
            if want == 1 and pads and (served_before or hit) and hit + 2 + drafts <= rules.max_model_len:
                want += drafts
                if want > budget:
                    blocked = len(aside) == passed
                    break
            if 0 < cap < want:
                want = cap
            if not rules.chunked_prefill and want > budget:
                if rules.unfit_prompt_is_skipped:
                    aside.append(self._queue.take())
                    continue
                blocked = len(aside) == passed
                break
            if want > budget:
                want = budget
            if rules.aligned_tokens:
                want = self._aligned(seq, hit, want)
                if not want:
                    break
            if seq.images:
                want = self._readable(seq, hit, want)
                if want <= 0:
                    if not rules.unreadable_is_skipped:
                        break
                    aside.append(self._queue.take())
                    continue
            free = kv.free_blocks - (self._watermark_blocks if self.running else 0)
            if rules.reserve_full_prompt:
                whole = seq.length if seq.length < longest else longest
                if kv.admission_blocks(found, whole, whole=True) > free:
                    blocked = len(aside) == passed
                    break
            slots = hit + want + lookahead
            if slots > longest:
                slots = longest
            if kv.admission_blocks(found, slots, whole=False) > free:
                blocked = len(aside) == passed
                break
            self._queue.take()
            if hit > loaded:
                kv.hold(seq, found)
            if loaded and self.tiers is not None:
                held = (hit - loaded) // kv.block_tokens
                blocks = -(-loaded // kv.block_tokens)
                batch.stall_s += self.tiers.load(seq, held, blocks, self._stored, now_s)
            seq.computed = hit
            kv.grow(seq, slots)
            known = hit + want
            kv.register(seq, known if known < seq.length else seq.length)
            self._start(batch, served, seq, want, now_s, hit, loaded)
            budget -= want
        if passed and not self._queue:
            blocked = len(aside) == passed
        for seq in reversed(aside):
            self._queue.put_back(seq)
        return blocked and self.wake_s() == INFINITY

    def _readable(self, seq: Sequence, computed: int, want: int) -> int:
        """Of the next `want` tokens of a prompt with images, those that the step may compute."""
        return want

    def _passes_over(self, seq: Sequence, served: list[tuple[Sequence, int]]) -> bool:
        """Whether those behind a waiting request may go before it, until a row ends."""
        return False

    def _start(
        self, batch: Batch, served: list[tuple[Sequence, int]], seq: Sequence, want: int, now_s: float, hit: int, loaded: int
    ) -> None:
        """Enter an admitted request among the running, `hit` of its tokens found, `loaded` of these in a tier."""
        seq.order = self._orders
        self._orders += 1
        seq.state = "running"
        self.running[seq] = None
        self.partial[seq] = None
        if seq.first_scheduled_s < 0:
            seq.first_scheduled_s = now_s
            seq.first_hit_tokens = hit
            self.queried_tokens += seq.length
            self.hit_tokens += hit - loaded
            self.host_hit_tokens += loaded
        if self._loads and self.itemised and hit + want < seq.length:
            self._prompts.add(seq)
        if hit:
            batch.hits += ((seq, hit),)
        if batch.rows is not None:
            batch.rows.append((seq, want, seq.computed))
        served.append((seq, want))

    # -- tiers ----------------------------------------------------------------------------------------------

    def _store(self, batch: Batch, served: list[tuple[Sequence, int]], now_s: float) -> None:
        """Store the prompts of a batch's rows, as far as they are computed with it."""
        tiers = self.tiers
        assert tiers is not None
        rows = [seq for seq, _ in served]
        if tiers.owed:
            rows = sorted({*rows, *(seq for seq in tiers.owed if seq.state == "decoding")}, key=lambda seq: seq.order)
        for seq in rows:
            known = seq.prompt_tokens if seq.state == "decoding" else min(seq.computed, seq.prompt_tokens)
            batch.stall_s += tiers.store(seq, known, batch.number, now_s)
        tiers.end_step(batch.number, now_s)

    def _begin_load(self, seq: Sequence, found: Any, hit: int, now_s: float) -> str:
        """Let the queue's head load what the tiers hold behind its device hit: it takes its blocks and leaves the queue.

        "" if they hold nothing, "full" if the blocks of the whole prompt are not free, or those that it loads beside what
        begun prompts still need, "later" if the blocks are on their way, or another request is loading the same ones.
        """
        kv, tiers = self.kv, self.tiers
        assert tiers is not None
        held = hit // kv.block_tokens
        more = tiers.find(seq, held, self._stored, now_s)
        if more is None:
            return "later"
        if not more:
            return ""
        free = kv.free_blocks - (self._watermark_blocks if self.running else 0)
        tokens = hit + more * kv.block_tokens
        # of windows only what a token behind what is loaded sees takes a block
        coming = tokens - kv.replayed_tokens if isinstance(kv, HybridKV) else 0
        whole = self.rules.reserve_full_prompt
        if whole and kv.admission_blocks(found, seq.length, whole=True, computed_tokens=coming) > free:
            return "full"
        if kv.admission_blocks(found, tokens, whole=False, computed_tokens=coming) + self._owed(self._loading) > free:
            return "full"
        self._queue.take()
        if isinstance(kv, HybridKV):
            kv.hold(seq, found, coming)
        elif hit:
            kv.hold(seq, found)
        kv.grow(seq, tokens)
        seq.computed = hit
        seq.state = "loading"
        tiers.load(seq, held, more, self._stored, now_s)
        self._loading[seq] = tokens
        return "loading"

    def _owed(self, loading: Iterable[Sequence]) -> int:
        """Blocks that a load must leave free: what begun prompts and these loads still need; with drafts, a step of its own."""
        rules, kv, longest = self.rules, self.kv, self.rules.max_model_len
        step = rules.speculative_tokens and 1 + rules.speculative_tokens + rules.lookahead_tokens
        begun = (seq for seq in self.partial if not self.itemised or seq in self._prompts)
        owed = sum(kv.missing_whole(seq, min(seq.length, longest) + step) for seq in (*loading, *begun))
        return owed + (kv.blocks_of(step) if step else 0)

    def _admit_loaded(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int, now_s: float
    ) -> int:
        """Admit requests whose load has ended, before all others; return what is left of the budget."""
        rules, kv = self.rules, self.kv
        for seq in [s for s in self._abandoned if s.loaded_s <= now_s]:
            self._end_load(seq, self._loading.pop(seq))
            self._abandoned.remove(seq)
            kv.release(seq)
        there = [s for s in self._loading if s.loaded_s <= now_s]
        if self._by_priority:  # those that hold blocks have a queue of the same kind
            there.sort(key=lambda s: (s.priority, s.arrival_s, s.index))
        for seq in there:
            if budget <= 0 or len(self.running) >= rules.max_num_seqs:
                break
            if self._passes_over(seq, served):
                continue
            tokens = self._loading[seq]
            found = min(tokens, seq.length - 1)  # the last token is computed again, for its output
            want = min(seq.length - found, budget)
            if 0 < cap < want:
                want = cap
            if not rules.chunked_prefill and seq.length - found > budget:
                return 0
            if seq.images:
                want = self._readable(seq, found, want)
                if want <= 0:
                    if not rules.unreadable_is_skipped:
                        return 0
                    continue
            free = kv.free_blocks - (self._watermark_blocks if self.running else 0)
            slots = min(found + want + rules.lookahead_tokens, rules.max_model_len)
            whole = kv.missing_whole(seq, min(seq.length, rules.max_model_len)) if rules.reserve_full_prompt else 0
            if max(kv.missing(seq, slots), whole) > free:
                return 0  # nobody goes before it
            del self._loading[seq]
            self._end_load(seq, tokens)
            local, seq.computed = seq.computed, found
            kv.grow(seq, slots)
            kv.register(seq, max(tokens, min(found + want, seq.length)))
            self._start(batch, served, seq, want, now_s, found, found - local)
            budget -= want
        return budget

    def _end_load(self, seq: Sequence, tokens: int) -> None:
        """Note that a request whose `tokens` tokens are there now leaves those that load."""
        assert self.tiers is not None
        self.tiers.end_load(seq, tokens)

    def _commit(self, batch: Batch, served: list[tuple[Sequence, int]]) -> None:
        """Count the scheduled tokens, note who emits and who ends."""
        number = batch.number
        self._commit_decodes(batch)
        if self.itemised:
            self._commit_itemised(batch, served)
            served = []
        for seq, tokens in served:
            batch.serve(tokens, seq.computed, decodes=tokens == 1 and seq.computed >= seq.prompt_tokens)
            seq.computed += tokens
            if seq.computed < seq.length:
                if self.rules.pipelined:
                    self._pieces[seq] = number
                continue
            # the row has caught up: it emits a token
            seq.emit(number, number)
            seq.length += 1
            if self.rules.pipelined:
                self._pieces.pop(seq, None)
                self._await_result(seq, batch)
                continue
            del self.partial[seq]
            if seq.length < seq.final_length:
                self.decodes.join(seq)  # the range of this token goes on
            else:
                batch.finishing.append(seq)
                if self._async and (not seq.stop_known or self.rules.wasted_row_after_limit):
                    self.decodes.join(seq)
                    self._wasting.append(seq)
                else:
                    seq.state = "ending"
        if batch.finishing:
            batch.order_finishing()

    def _await_result(self, seq: Sequence, batch: Batch) -> None:
        """A row of a pipeline that emits with a batch is served again when the result is known."""
        seq.ready_batch = batch.number
        if seq.length >= seq.final_length:
            seq.state = "ending"
            del self.partial[seq]
            batch.finishing.append(seq)

    def _commit_decodes(self, batch: Batch) -> list[Sequence]:
        """Begin to commit a batch with the rows that only decode; return those whose step is in vain, as they have ended."""
        batch.tokens = batch.decode_tokens = batch.decode_rows * self.decodes.row_tokens
        wasted, self._wasting = self._wasting, []
        self._vain = wasted
        for seq in wasted:
            if seq.state == "decoding":
                self._leave_decodes(seq, None)
                seq.state = "ending"
        if batch.decode_rows:
            self._end_decodes(batch)
        return wasted

    def _surely_ends(self, seq: Sequence) -> bool:
        """Whether the outputs in flight certainly end the row, so that another step would be in vain."""
        return (
            seq.pending > 0
            and seq.stop_known
            and not self.rules.wasted_row_after_limit
            and seq.length - seq.pending + 1 >= seq.final_length
        )

    def _commit_itemised(self, batch: Batch, served: list[tuple[Sequence, int]]) -> None:
        """Count the tokens of itemised rows; what they emit and whether they end shows only once settled."""
        entries = []
        for seq, tokens in served:
            prior = seq.computed
            seq.computed += tokens
            seq.in_flight_tokens += tokens
            drafts = seq.computed - seq.length
            batch.serve(tokens, prior, decodes=tokens - max(drafts, 0) == 1 and prior >= seq.prompt_tokens)
            entries.append((seq, tokens, drafts, seq.preemptions))
            if drafts >= 0:
                self._prompts.discard(seq)
            seq.drafts = 0
            if drafts >= 0 and self._async:
                seq.length += 1 + drafts
                seq.pending += 1 + drafts
                seq.drafts = self.rules.speculative_tokens
        batch.itemised = tuple(entries)

    def _settle_itemised(self, batch: Batch) -> None:
        """Give the itemised rows of a processed batch their outputs; drafts that were rejected roll back."""
        rules = self.rules
        for seq, tokens, drafts, preemptions in batch.itemised:
            seq.in_flight_tokens -= tokens
            if drafts < 0 or seq.state == "finished":
                continue
            accepted = 0
            if drafts and seq.acceptance is not None:
                accepted = min(seq.acceptance(seq.verifications), drafts)
                seq.verifications += 1
                self.verifications += 1
                self.verified_drafts += drafts
                self.accepted_drafts += accepted
            rejected = drafts - accepted
            emitted = 1 + accepted
            preempted = preemptions != seq.preemptions  # since then: the tokens count, their blocks are gone
            if preempted:
                seq.length += emitted
            elif self._async:
                seq.pending -= 1 + drafts
                seq.length -= rejected
                seq.computed -= rejected
            else:
                seq.length += emitted
                seq.computed -= rejected
                seq.drafts = rules.speculative_tokens
            surplus = max(0, seq.length - seq.pending - seq.final_length)
            emitted -= surplus
            seq.emit_at_once(batch.number, emitted)
            if seq.length - seq.pending >= seq.final_length:
                batch.finishing.append(seq)
            if not preempted and (self._async or rules.speculative_tokens):
                self.kv.register(seq, seq.computed - seq.in_flight_tokens - surplus)
        batch.order_finishing()

    def _join_decodes(self, seq: Sequence, after: int) -> None:
        seq.emit(after + 1, after)
        self.decodes.join(seq)

    def _leave_decodes(self, seq: Sequence, last: int | None) -> None:
        self.decodes.leave(seq)
        if last is not None:
            seq.end_emissions(last)

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch: ended requests leave and free their blocks, in batch order."""
        self.processed_number = batch.number
        if self.tiers is not None:
            self._settled_s = batch.t_end
        kv = self.kv
        while self._late and self._late[0][0] <= batch.number:
            late = self._late.pop(0)[1]
            kv.put_off(late)
            self._free(late)
            self.blocked = False
        if batch.itemised:
            self._settle_itemised(batch)
        if not batch.finishing:
            return batch.finishing
        ended: list[Sequence] = []
        for seq in batch.finishing:
            if seq.state == "finished":  # its client has left
                continue
            ended.append(seq)
            if seq.state == "preempted":
                self._queue.remove(seq)
            else:
                if seq.state == "decoding":  # a wasted row still counted in the aggregate
                    self._leave_decodes(seq, None)
                del self.running[seq]
                self.partial.pop(seq, None)
                if seq.output_shared and kv.prefix_caching:
                    kv.name_output(seq)
                kv.register(seq, seq.final_length - 1)
                if self.tiers is not None:
                    self.tiers.ended(seq, seq.final_length - 1, batch.number, batch.t_end)
                if self._fences and (seq in self._vain or seq.in_flight_tokens):
                    self._late.append((self.next_number - 1, seq))
                else:
                    self._free(seq)
            seq.state = "finished"
        if ended:
            self.blocked = False
        batch.finishing = ended
        return ended

    def _free(self, seq: Sequence) -> None:
        """Free the memory of an ended request."""
        self.kv.release(seq)

    # -- jumping --------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps that serve exactly the rows of the decode set; deaf while the head of the queue is stuck."""
        steps, decodes, run = self._proven_steps(), self.decodes, self._run
        if not steps:
            return None
        run.vain = (
            self._takes_vain
            and not self._queue
            and decodes.ends_with(steps)
            and decodes.count * ((steps + 1) // decodes.block_tokens + 1) <= self.kv.free_blocks
        )
        if steps + run.vain < 2:
            return None
        decodes.serve(run.shape)
        run.steps, run.deaf = steps, self.blocked and not self._by_priority
        return run

    def _proven_steps(self) -> int:
        """Number of next steps that serve exactly the rows of the decode set, the last of which may yield final tokens."""
        decodes = self.decodes
        if (
            not self.aggregate
            or not decodes.count
            or self.partial
            or self._wasting
            or self._late
            or self._abandoned
            or (self.tiers is not None and (self.tiers.unsettled or (self.tiers.rises and self._queue)))
            or (not self.blocked and (self._queue or ((self._loading or self.tiers is not None) and self.wake_s() < INFINITY)))
            or decodes.count > self.rules.max_num_batched_tokens
        ):
            return 0
        return decodes.steps_within(decodes.steps_alike(), self.kv.free_blocks)

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Schedule `steps` decode steps at once."""
        held, most = self._take_blocks(steps)
        decodes = self.decodes
        self.next_number += steps
        number, rows = self.next_number - 1, decodes.count
        batch = Batch(number, rows, rows, decodes.offset_sum + rows * (decodes.steps - 1), None, rows)
        self.processed_number = number - 1
        self._early = 1 if self._async else 0
        if decodes.steps >= decodes.next_end:
            self._end_decodes(batch)
            batch.order_finishing()
        return batch, held, most

    def take_vain(self, after: Batch) -> tuple[Batch, int] | None:
        """As of the base: none where the end of a row was certain."""
        if len(self._wasting) < len(after.finishing):
            return None
        decodes, kv = self.decodes, self.kv
        batch = Batch(self.next_number)
        decodes.serve(batch)
        blocks = decodes.blocks_needed()
        if blocks:
            kv.take(blocks)
        decodes.steps += 1
        self._early = 0
        self._commit_decodes(batch)
        if batch.finishing:
            batch.order_finishing()
        self.next_number += 1
        return batch, kv.capacity_blocks - kv.free_blocks

    def _take_blocks(self, steps: int) -> tuple[int, int]:
        """Take the blocks of `steps` steps of the decode set; return the sum of blocks held over the steps, and the most."""
        decodes, kv = self.decodes, self.kv
        held = kv.capacity_blocks - kv.free_blocks
        need, summed = decodes.taken_over(steps)
        if need:
            kv.take(need)
        decodes.steps += steps
        return held * steps + summed, held + need

    def _end_decodes(self, batch: Batch) -> None:
        """Rows of the decode set whose last token this batch yields stop being scheduled.

        Under async scheduling an end that is not certain beforehand costs one more row, scheduled in vain.
        """
        decodes = self.decodes
        if decodes.steps < decodes.next_end:
            return
        for seq in decodes.pop_ended():
            if self._async and (not seq.stop_known or self.rules.wasted_row_after_limit):
                seq.emissions[-1] = batch.number
                self._wasting.append(seq)
            else:
                self._leave_decodes(seq, batch.number)
                seq.state = "ending"
            batch.finishing.append(seq)


__all__ = ["ContinuousScheduler"]
