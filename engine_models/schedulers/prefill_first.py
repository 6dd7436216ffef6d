"""Prefill before decode, over a radix-tree cache: the scheduler of SGLang.

A step is either a prefill of waiting requests (EXTEND), or one decode step of all running rows (DECODE), or, if allowed, both at
once (MIXED). Whenever a prefill can be formed, decoding waits. Admission weighs what the running rows may still
generate, scaled by a *new-token ratio* that falls with every decode step and is raised when memory ran out and rows
had to be retracted.

All running rows decode together, so they are kept as one aggregate (`DecodeSet`) and a step costs what changed. Under
overlap scheduling a batch is formed when its predecessor starts: the tokens of the batch in flight are not known yet.

Source: behaviour of SGLang 0.5.23 (`managers/scheduler.py`, `schedule_policy.py`, `schedule_batch.py`), checked step by
step against recordings of it; see docs/engines/sglang.md.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Series
from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from engine_models.memory.radix import Content, Node, RadixPool, RadixTree
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.kept import Kept
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence

CACHE_AWARE = ("lpm", "dfs-weight", "hrrn", "shortest-prefill-first")
POLICIES = ("fcfs", "lof", "random", "routing-key", *CACHE_AWARE)

# SGLang 0.5.23 constants: `schedule_policy.py`, `environ.py`
CLIP_NEW_TOKENS = 4096  # SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION: most future tokens a request is charged with
RETRACT_STEPS = 20  # SGLANG_RETRACT_DECODE_STEPS: decode steps for which a retraction makes room
INIT_RATIO = 0.7  # SGLANG_INIT_NEW_TOKEN_RATIO, times schedule_conservativeness
MIN_RATIO_FACTOR = 0.14  # SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR
DECAY_STEPS = 600  # SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS
IN_BATCH_CHECK_TOKENS = 32  # IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD
IN_BATCH_DEFER_TOKENS = 32  # IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD
REFRESH_PASSES = 32  # every so many passes a queue ordered without regard to the cache is looked up nevertheless
LONG_QUEUE = 128  # above it lpm and hrrn fall back to fcfs
IGNORE_EOS_RESERVE_TOKENS = 1


@dataclass(frozen=True)
class PrefillFirstRules:
    """What a prefill-first scheduler may do. Names of knobs are SGLang's.

    Attributes
    ----------
    max_running_requests : rows that may run at once.
    max_model_len : context limit in tokens.
    max_prefill_tokens : prompt tokens of one prefill batch (a first request may exceed it when prompts are not chunked).
    chunked_prefill_size : tokens of one prefill batch beyond which a prompt is cut; None: prompts are not cut.
    in_flight : batches scheduled ahead (1 synchronous, 2 overlap).
    schedule_policy : order of the waiting queue, one of `POLICIES`.
    schedule_conservativeness : scales the initial new-token ratio.
    mixed_chunk : decode rows join prefill batches.
    ignore_eos : requests run to their limit and say so.
    priority_scheduling : order by priority; `low_priority_values_first`: smaller is more urgent.
    preemption : with priorities, running rows give way; `preemption_threshold`: by how much priorities must differ.
    prefill_max_requests : most requests of one prefill batch.
    receive_interval : arrivals are taken in once in so many decode steps, and after any other step.
    """

    max_running_requests: int
    max_model_len: int
    max_prefill_tokens: int = 16384
    chunked_prefill_size: int | None = 8192
    in_flight: int = 1
    schedule_policy: str = "fcfs"
    schedule_conservativeness: float = 1.0
    mixed_chunk: bool = False
    ignore_eos: bool = False
    priority_scheduling: bool = False
    low_priority_values_first: bool = False
    preemption: bool = False
    preemption_threshold: int = 10
    prefill_max_requests: int | None = None
    receive_interval: int = 1


class PrefillFirstBatch(Batch):
    """A scheduled step. `mode` is EXTEND, DECODE or MIXED; token counts as the pool has them after forming it.

    `extends` lists the prefill rows: (row, tokens computed after it, whether that completes the prompt, generation of the row).
    `preempted` are all rows that lost their memory; `retracted` those of them that did so for want of it.
    """

    __slots__ = (
        "aborted",
        "batch_is_full",
        "chunked",
        "evictable_tokens",
        "extends",
        "free_tokens",
        "mode",
        "new_token_ratio",
        "retracted",
    )

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.mode = "DECODE"
        self.extends: list[tuple[Sequence, int, bool, int]] = []
        self.retracted: tuple[Sequence, ...] = ()
        self.aborted: tuple[Sequence, ...] = ()
        self.chunked: Sequence | None = None
        self.batch_is_full = False
        self.new_token_ratio = 0.0
        self.free_tokens = self.evictable_tokens = 0


class _Row:
    """What the scheduler knows of a request besides its counts."""

    __slots__ = (
        "branch",
        "content",
        "due",
        "entered",
        "fill",
        "last",
        "matched",
        "max_new",
        "node",
        "pieces",
        "prefilled",
        "protected",
        "queued",
        "receipt",
        "slid",
        "stashed",
    )

    def __init__(self, content: Content, max_new: int, root: Node) -> None:
        self.content = content
        self.max_new = max_new  # the most tokens it may generate, as its sampling parameters say
        self.node = root  # locked while the request holds memory
        self.receipt = 0  # of that lock
        self.protected = 0  # tokens at its beginning that the tree owns
        self.entered = 0  # tokens that it has entered into the tree itself
        self.last = -1  # batch of its last token outside the decode set (its prefill, or its end)
        self.fill = 0  # length at its last trial
        self.matched = 0  # prefix found at its last lookup
        self.queued = 0  # place of its latest arrival in the queue
        self.prefilled = 0  # prompt tokens prefilled by the replica before it was queued
        # with a pool of windows: tokens whose window part it has freed, how far the tree has it without windows (0: no further),
        # tokens computed at its last entry, pieces computed, and the decode step before which it next looks for what to free
        self.slid = self.branch = self.stashed = self.pieces = self.due = 0


@mypyc_attr(allow_interpreted_subclasses=True)
class PrefillFirstScheduler(Scheduler):
    """Waiting and running requests of one replica and the rule that forms the next batch.

    Parameters
    ----------
    rules : the knobs.
    kv : the pool and its radix tree.
    aggregate : allow many decode steps to be scheduled as one (`run`, `take`).
    record_rows : keep the ordered rows of every batch (`Batch.rows`).
    windows : of the model's layers, whose spans a batch names.
    """

    # the interpreter reads attributes slowly of an object that has more than 30 without slots
    __slots__ = (
        "_aborted",
        "_arrivals",
        "_decoding",
        "_ending",
        "_kept_running",
        "_last_decode",
        "_last_decoded",
        "_last_extend",
        "_last_prefilled",
        "_latest_extend",
        "_left",
        "_merging",
        "_orders",
        "_overlap",
        "_passes",
        "_pauses",
        "_policy",
        "_prefilled_tokens",
        "_random",
        "_retries",
        "_run",
        "_running_prefilled",
        "_sign",
        "_since_receipt",
        "_takes_vain",
        "_unreceived",
        "_unsorted",
        "_waiting",
        "_wasting",
        "aggregate",
        "batch_is_full",
        "chunked",
        "decay",
        "decodes",
        "initial_ratio",
        "kv",
        "least_ratio",
        "ratio",
        "record_rows",
        "rules",
        "running",
    )

    def __init__(
        self,
        rules: PrefillFirstRules,
        kv: RadixPool,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.kv = kv
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.running: dict[Sequence, None] = {}  # every row that holds memory
        self.decodes = self._new_decodes(windows)
        self.next_number = 0
        self.processed_number = -1
        self._run = Run(0, Batch(-1))
        self.batch_is_full = False
        self.chunked: Sequence | None = None
        self.initial_ratio = min(INIT_RATIO * rules.schedule_conservativeness, 1.0)
        self.least_ratio = min(self.initial_ratio * MIN_RATIO_FACTOR, 1.0)
        self.decay = (self.initial_ratio - self.least_ratio) / DECAY_STEPS
        self.ratio = self.initial_ratio
        policy = rules.schedule_policy
        self._policy = "fcfs" if policy in CACHE_AWARE and not kv.prefix_caching else policy
        self._overlap = rules.in_flight > 1
        self._sign = 1 if rules.low_priority_values_first else -1
        self._decoding: dict[Sequence, None] = {}  # the running batch, in order
        self._merging: list[Sequence] = []  # rows of the last prefill batch, not yet in the running batch
        self._last_extend = False
        self._latest: Batch = Batch(-1)
        self._latest_extend = PrefillFirstBatch(-1)
        self._formed_nothing = -1  # batch behind which none could be formed
        self._ending: list[Sequence] = []  # in the running batch, last token in flight
        own = self.__class__ is PrefillFirstScheduler and rules.receive_interval <= 1
        self._takes_vain = own and self._overlap and not windows
        self._wasting: list[Sequence] = []  # ended, but scheduled once more as the end was not certain
        self._aborted: list[Sequence] = []
        self._last_decode = -1
        self._orders = 0
        self._arrivals = 0
        self._prefilled_tokens = 0  # as the engine counts them for hrrn, see `schedule`
        self._last_prefilled = 0  # of the last prefill batch
        self._running_prefilled = 0  # of the prefill batch that became the running batch
        self._kept_running = False  # whether rows ran beside the last prefill batch when it was formed
        self._waiting: list[Sequence] = []
        self._unsorted = False
        self._passes = 0
        self._retries = False  # a prefill is tried before every step
        self._pauses: list[int] = []  # batches in which the running rows did not decode
        self._random = random.Random(0)
        self._unreceived: list[Sequence] = []  # arrived, not yet taken in
        self._since_receipt = 0  # decode steps since the last look at the arrivals
        self._last_decoded = False  # the last step decoded and nothing else
        self._left: set[Sequence] = set()  # their clients have gone, and they are served once more

    def _new_decodes(self, windows: tuple[int, ...]) -> DecodeSet:
        """Build an empty set of decoding rows."""
        return DecodeSet(self.kv.page_tokens, windows)

    # -- queues ---------------------------------------------------------------------------------------------

    @property
    def waiting_count(self) -> int:
        """Requests that wait for admission, retracted ones included."""
        return len(self._waiting) + len(self._unreceived)

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request, or keep it until the scheduler next looks for arrivals."""
        seq.state = "waiting"
        if self.rules.receive_interval > 1:
            self._unreceived.append(seq)
        else:
            self._receive(seq)

    def _receive(self, seq: Sequence) -> None:
        prompt, final = seq.prompt_tokens, seq.final_length
        # a client that sets no limit leaves the context as the limit
        limit = final - prompt if seq.stop_known else self.rules.max_model_len - prompt - 1
        if seq.limit_tokens:
            limit = min(limit, seq.limit_tokens)
        room = self.kv.capacity_tokens - self.kv.paged(prompt) - self.kv.page_tokens - 1
        limit = max(0, min(limit, room))
        seq.final_length = min(final, prompt + max(1, limit))
        seq.group_state = _Row(self.kv.content(seq), limit, self.kv.tree.root)
        self._enqueue(seq)

    def _look_for_arrivals(self) -> None:
        """Take in what has arrived, unless fewer decode steps than the interval have passed since the last time.

        A prefill counts for any number of decode steps, and a scheduler with nothing to run looks all the time.
        """
        if self._last_decoded and self.running:
            self._since_receipt += 1
            if self._since_receipt < self.rules.receive_interval:
                return
        self._since_receipt = 0
        arrived, self._unreceived = self._unreceived, []
        for seq in arrived:
            self._receive(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running) or bool(self._waiting) or bool(self._unreceived)

    def state(self) -> State:
        """Requests, and pages; what the tree keeps without a holder counts as free."""
        total = self.kv.capacity_blocks
        return len(self.running), self.waiting_count, total - self.kv.free_blocks, total

    def cached(self) -> list[Kept] | None:
        """As of the base."""
        return self.kv.tree.kept() if self.kv.prefix_caching else None

    def warm(self, pieces: Series[Kept]) -> None:
        """As of the base."""
        self.kv.warm(pieces)

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base: a row that runs is served once more, as after an end that is seen a step late; then its memory is free.

        A prompt that is computed in pieces is dropped with its latest piece (`process_pending_chunked_abort`).
        """
        if seq is self.chunked:
            self._take_memory(seq, 0)
            self.chunked, seq.state = None, "finished"
            return True
        if seq not in self.running:
            if seq in self._aborted:
                return False
            (self._unreceived if seq in self._unreceived else self._waiting).remove(seq)
            seq.state = "finished"
            return True
        decoding, latest = seq.state == "decoding", self.next_number - 1
        ends = seq.state == "ending" or seq in self._wasting
        served = seq.group_state.last if ends else self._last_served(seq)
        # still when the scheduler hears of it, which it does when it forms a batch
        in_flight = self._overlap and self.processed_number < latest == served and latest != self._formed_nothing
        if ends:
            if in_flight:
                self._left.add(seq)
            return in_flight
        if decoding:
            self._leave_decodes(seq, latest)
        if in_flight:
            self._end_in_flight(seq, latest)
        elif seq.final_length > seq.length + 1:  # else its next token is the last in any case
            seq.final_length, seq.stop_known = seq.length + 1, False
        if decoding:
            self._join_decodes(seq)
        self._left.add(seq)
        return True

    def _last_served(self, seq: Sequence) -> int:
        """The latest batch that a row is in."""
        last: int = seq.group_state.last
        return max(self._last_decode, last) if seq.state == "decoding" else last

    def _end_in_flight(self, seq: Sequence, number: int) -> None:
        """Let a row end with the latest batch, which is under way; the next serves it in vain."""
        seq.final_length, seq.group_state.last = seq.length, number
        self._wasting.append(seq)
        ending = {*self._latest.finishing, seq}
        rows = [row for row in (*self._merging, *self._decoding) if row in ending]
        self._latest.finishing = rows + [row for row in self._latest.finishing if row not in rows]

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for seq in list(self.running):
            if seq.state == "decoding":
                self._leave_decodes(seq, self.next_number - 1)

    # -- the step -------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> PrefillFirstBatch | None:
        """Form the next batch; None if there is nothing to run."""
        if self.rules.receive_interval > 1:
            self._look_for_arrivals()
        batch = PrefillFirstBatch(self.next_number)
        if self.record_rows:
            batch.rows = []
        if self.chunked is not None and self._last_extend:
            self._checkpoint(self.chunked, self.chunked.computed)
        self._merge()
        if not self._form_prefill(batch, now_s) and not self._form_decode(batch):
            if self.processed_number == self.next_number - 1 and not self._waiting and self._idles():
                self.ratio = self.initial_ratio
            self._last_decoded = False
            self._formed_nothing = self.next_number - 1
            self._say_aborted(batch)
            return batch if batch.preempted or batch.aborted else None
        batch.tokens = batch.decode_tokens + sum([new for new, _ in batch.prefill])
        if batch.mode != "DECODE":
            self._last_prefilled = batch.tokens
            self._kept_running = bool(self._decoding)
            self._latest_extend = batch
        # the running batch keeps the token count of the prefill it began as, and counts it again with every step
        self._prefilled_tokens += self._running_prefilled if batch.mode == "DECODE" else batch.tokens
        batch.chunked = self.chunked
        batch.batch_is_full = self.batch_is_full
        batch.new_token_ratio = self.ratio
        batch.free_tokens = self.kv.free_tokens
        batch.evictable_tokens = self.kv.tree.evictable_tokens
        self._say_aborted(batch)
        self._last_decoded = batch.mode == "DECODE"
        self._latest = batch
        if not batch.decode_rows:
            self._pauses.append(batch.number)
        self.next_number += 1
        return batch

    def _say_aborted(self, batch: PrefillFirstBatch) -> None:
        if self._aborted:
            batch.aborted, self._aborted = tuple(self._aborted), []
            batch.finishing.extend(batch.aborted)

    def _idles(self) -> bool:
        """Whether nothing runs once nothing could be formed and all results are known."""
        return True

    def _merge(self) -> None:
        """Let the rows of the last prefill batch join the end of the running batch."""
        if not self._last_extend:
            return
        self._last_extend = False
        if self._merging and not self._decoding:
            self.batch_is_full = False
            if not self._kept_running:  # else it joins a batch whose rows have all ended, which are taken out afterwards
                self._running_prefilled = self._last_prefilled
        for seq in self._merging:
            self._decoding[seq] = None
            if seq.state == "running":
                self._join_decodes(seq)
        self._merging = []

    def _join_decodes(self, seq: Sequence) -> None:
        """Let a row decode from the next step on."""
        self.decodes.join(seq)

    # -- admission ------------------------------------------------------------------------------------------

    def _free_slots(self) -> int:
        return self.rules.max_running_requests - len(self._decoding)

    def _outputs(self, seq: Sequence) -> int:
        """Generated tokens that the scheduler has seen."""
        row: _Row = seq.group_state
        if seq.state == "decoding":
            outputs = self.decodes.length(seq) - seq.prompt_tokens
            latest = max(row.last, self._last_decode)
        else:
            outputs = seq.length - seq.prompt_tokens
            latest = row.last
        return outputs - 1 if latest > self.processed_number else outputs

    def _future(self, seq: Sequence) -> float:
        """Tokens that a running row is expected to need."""
        row: _Row = seq.group_state
        ratio = 1.0 if self.rules.ignore_eos else self.ratio
        return min(row.max_new - self._outputs(seq), CLIP_NEW_TOKENS) * ratio

    def _reserved(self) -> float:
        """Sum of `_future` over the running batch, in its order."""
        ratio = 1.0 if self.rules.ignore_eos else self.ratio
        processed, steps = self.processed_number, self.decodes.steps
        ahead = self._last_decode > processed
        terms: list[float] = []
        most = CLIP_NEW_TOKENS * ratio
        for seq in self._decoding:
            row: _Row = seq.group_state
            left = row.max_new + seq.prompt_tokens
            if seq.state == "decoding":
                left -= seq.offset + steps
                if ahead or row.last > processed:
                    left += 1
            else:
                left -= seq.length
                if row.last > processed:
                    left += 1
            terms.append(left * ratio if left < CLIP_NEW_TOKENS else most)
        return sum(terms)

    def _form_prefill(self, batch: PrefillFirstBatch, now_s: float) -> bool:
        rules = self.rules
        if rules.preemption or self._retries or not self._decoding:
            self.batch_is_full = False
        if self.chunked is None and (self.batch_is_full or not self._waiting):
            return False
        if self.chunked is None and not rules.preemption and self._free_slots() <= 0:
            self.batch_is_full = True
            return False
        self._order_waiting()
        adder = self._new_adder()
        if self.chunked is not None:
            adder.continue_chunk(self.chunked)
        taken = passed = 0
        for seq in self._waiting:
            if adder.verdict() == "other":
                break
            if self._passes_over(seq, adder.admitted):
                passed += 1
                continue
            if len(adder.admitted) >= self._free_slots():
                self.batch_is_full = True
            if self.batch_is_full and not (rules.preemption and adder.preempt_for(seq, batch)):
                break
            adder.look_up(seq)
            verdict = adder.add(seq)
            if adder.admitted and adder.admitted[-1][0] is seq:
                taken += 1
            if verdict != "continue":
                if verdict == "no_token":
                    self.batch_is_full = bool(adder.admitted) or bool(self._decoding)
                break
        if passed:
            admitted = {seq for seq, _, _, _ in adder.admitted}
            self._waiting = [seq for seq in self._waiting if seq not in admitted]
        elif taken:
            del self._waiting[:taken]
        for seq in batch.preempted:
            self._enqueue(seq)
        if not adder.admitted:
            return False
        if adder.new_chunked is not None:
            self.chunked = adder.new_chunked
        elif adder.chunk_finished:
            self.chunked = None
        self._launch_prefill(batch, adder.admitted, now_s)
        return True

    def _new_adder(self) -> Adder:
        """The budgets of the next prefill."""
        return Adder(self)

    def _away_tokens(self, seq: Sequence, row: _Row, node: Node) -> int:
        """Tokens that are found beyond the device, after the node of a request."""
        return 0

    def _bring(self, seq: Sequence, row: _Row, node: Node) -> tuple[int, Node]:
        """Load what lies beyond the device after the locked node of a request; its tokens, and the last node, locked instead."""
        return 0, node

    def _passes_over(self, seq: Sequence, admitted: list[tuple[Sequence, int, int, bool]]) -> bool:
        """Whether a waiting request is left where it is and those behind it are tried."""
        return False

    def _launch_prefill(
        self, batch: PrefillFirstBatch, admitted: list[tuple[Sequence, int, int, bool]], now_s: float
    ) -> None:
        """Allocate the new tokens of the admitted rows, and let decode rows join if the rules mix."""
        rules, kv, number = self.rules, self.kv, batch.number
        page = kv.page_tokens
        new_tokens = sum([end - start for _, start, end, _ in admitted])
        kv.make_room(new_tokens + (len(admitted) * page if page > 1 else 0))
        batch.mode = "EXTEND"
        mixed = rules.mixed_chunk and bool(self._decoding)
        if mixed:
            self._drop_ending()
        finishing: list[Sequence] = []
        for seq, start, end, fresh in admitted:
            row: _Row = seq.group_state
            kv.take(kv.paged(end) - kv.paged(start))
            batch.prefill.append((end - start, start))
            if batch.rows is not None:
                batch.rows.append((seq, end - start, start))
            if fresh:
                if start:
                    batch.hits += ((seq, start),)
                if seq.first_scheduled_s < 0:
                    seq.first_scheduled_s = now_s
                    seq.first_hit_tokens = start
                    self.queried_tokens += seq.length
                    self.hit_tokens += start
                seq.order = self._orders
                self._orders += 1
                seq.state = "running"
                self.running[seq] = None
            seq.computed = end
            complete = end == seq.length
            batch.extends.append((seq, end, complete, seq.preemptions))
            if not complete:
                continue
            seq.length += 1
            row.last = number
            seq.emit(number, number)
            if seq.length >= seq.final_length and (seq.stop_known or not self._overlap):
                seq.state = "ending"
                finishing.append(seq)
                self._ending.append(seq)
            elif seq.length >= seq.final_length:
                finishing.append(seq)
                self._wasting.append(seq)
            self._merging.append(seq)
        if kv.free_tokens < 0:
            raise RuntimeError("out of KV memory for a prefill that was admitted")
        self._last_extend = True
        if mixed and self._decoding and kv.make_room(self._tokens_needed()):
            batch.mode = "MIXED"
            self._decode_all(batch)
            finishing.extend(batch.finishing)
            ended = set(finishing)
            self._merging += sorted(self._decoding, key=lambda s: s in ended and s.state == "ending")
            self._decoding = {}
        batch.finishing = finishing

    def _order_waiting(self) -> None:
        rules, policy, waiting = self.rules, self._policy, self._waiting
        if policy in ("lpm", "hrrn") and len(waiting) > LONG_QUEUE:
            self._refresh_waiting()
            return
        if policy in CACHE_AWARE:
            deferred = self._match_waiting()
            if policy == "lpm":
                waiting.sort(key=lambda s: float("inf") if s in deferred else -s.group_state.matched)
            elif policy == "dfs-weight":
                self._waiting = self._depth_first()
            elif policy == "hrrn":
                waiting.sort(key=lambda s: self._response_rank(s, s in deferred))
            else:
                waiting.sort(
                    key=lambda s: (
                        s in deferred,
                        max(1, s.length - s.group_state.matched),
                        s.group_state.queued,
                    )
                )
        elif policy == "random":
            self._random.shuffle(waiting)
        elif self._unsorted:
            self._unsorted = False
            sign = self._sign
            if policy == "lof" and rules.priority_scheduling:
                waiting.sort(key=lambda s: (s.priority * sign, -s.group_state.max_new))
            elif policy == "lof":
                waiting.sort(key=lambda s: -s.group_state.max_new)
            elif policy == "fcfs" and rules.priority_scheduling:
                waiting.sort(key=lambda s: (s.priority * sign, s.group_state.queued))
        if policy not in CACHE_AWARE:
            self._refresh_waiting()

    def _refresh_waiting(self) -> None:
        """Now and then make what a queue ordered without regard to the cache will find the last to be evicted."""
        kv = self.kv
        if not self._waiting or not kv.prefix_caching or kv.tree.policy != "lru":
            return
        if self._passes % REFRESH_PASSES == 0:
            for seq in reversed(self._waiting[:LONG_QUEUE]):  # the front of the queue becomes the newest
                kv.tree.match(seq.group_state.content, kv.keys(seq.length))
        self._passes += 1

    def _look_up(self, seq: Sequence) -> int:
        row: _Row = seq.group_state
        found, row.node = self.kv.tree.match(row.content, self.kv.keys(seq.length))
        row.matched = min(found, seq.length - 1)
        return found

    def _match_waiting(self) -> set[Sequence]:
        """Look up every waiting request; returns those that had better wait for an earlier one with the same beginning."""
        among = RadixTree()
        deferred: set[Sequence] = set()
        for seq in self._waiting:
            row: _Row = seq.group_state
            found = self._look_up(seq)
            if found <= IN_BATCH_CHECK_TOKENS:
                keys = self.kv.keys(seq.length)
                shared, _ = among.match(row.content, keys)
                if shared + seq.length - keys >= IN_BATCH_DEFER_TOKENS:  # the queue's own tree is by tokens
                    deferred.add(seq)
                else:
                    among.insert(row.content, keys)
        return deferred

    def _response_rank(self, seq: Sequence, deferred: bool) -> tuple[float, int]:
        row: _Row = seq.group_state
        if deferred:
            return float("inf"), seq.index
        uncached = seq.prompt_tokens - row.matched
        if uncached <= 0:
            return float("-inf"), seq.index
        return -max(0, self._prefilled_tokens - row.prefilled) / uncached, seq.index

    def _depth_first(self) -> list[Sequence]:
        """Waiting requests by a walk of the tree, heavier subtrees first, a node's own requests after its subtrees."""
        at: dict[Node, list[Sequence]] = {}
        for seq in self._waiting:
            at.setdefault(seq.group_state.node, []).append(seq)
        root = self.kv.tree.root
        order = [root]
        for node in order:
            order.extend(node.children.values())
        weight = {node: len(at.get(node, ())) for node in order}
        for node in reversed(order):
            if node.parent is not None:
                weight[node.parent] += weight[node]
        out: list[Sequence] = []
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                out.extend(at.get(node, ()))
                continue
            stack.append((node, True))
            below = sorted((c for c in node.children.values() if weight[c]), key=lambda c: -weight[c])
            stack.extend((child, False) for child in reversed(below))
        return out

    # -- decoding -------------------------------------------------------------------------------------------

    def _drop_ending(self) -> None:
        """Take rows whose last token is in flight out of the running batch."""
        if self._ending:
            for seq in self._ending:
                if seq in self._decoding:
                    del self._decoding[seq]
                    self.batch_is_full = False
            self._ending = []

    def _form_decode(self, batch: PrefillFirstBatch) -> bool:
        if not self._decoding:
            return False
        rows = len(self._decoding)
        self._drop_ending()
        if not self._decoding:
            self.batch_is_full = False
            return False
        if not self.kv.make_room(self._tokens_needed()):
            if len(self._decoding) < rows:
                return False  # the rows whose last token is in flight will free memory at its end
            self._retract(batch)
            if not self._decoding:
                return False
        else:
            self._decay(1)
        self._decode_all(batch)
        return True

    def _tokens_needed(self) -> int:
        """Tokens, in whole pages, that the next step of the running batch takes."""
        return self.decodes.blocks_needed() * self.kv.page_tokens

    def _decode_all(self, batch: PrefillFirstBatch) -> None:
        """One token for every row of the running batch."""
        decodes, kv = self.decodes, self.kv
        kv.make_room(decodes.count * kv.page_tokens)  # the allocator makes room for a new page a row
        kv.take(decodes.blocks_needed() * kv.page_tokens)
        batch.decode_rows = batch.decode_tokens = decodes.count
        batch.decode_kv_tokens = decodes.kv_tokens()
        batch.spans = decodes.spans()
        if batch.rows is not None:
            batch.rows.extend((seq, 1, decodes.length(seq) - 1) for seq in self._decoding)
        decodes.steps += 1
        self._last_decode = batch.number
        self._end_decodes(batch)

    def _end_decodes(self, batch: Batch) -> None:
        ended = self.decodes.pop_ended()
        if not ended:
            return
        if len(ended) > 1:
            mine = set(ended)
            ended = [seq for seq in self._decoding if seq in mine]
        for seq in ended:
            seq.group_state.last = batch.number
            if self._overlap and not seq.stop_known:
                self._wasting.append(seq)
            else:
                self._leave_decodes(seq, batch.number)
                seq.state = "ending"
                self._ending.append(seq)
            batch.finishing.append(seq)

    def _retract(self, batch: PrefillFirstBatch) -> None:
        """Take the memory of running rows until a decode step fits: fewest generated tokens first, then longest prompts."""
        kv = self.kv
        before = len(self._decoding)
        rows = sorted(self._decoding, key=lambda s: (self._outputs(s), -s.prompt_tokens), reverse=True)
        first = True
        while first or not kv.make_room(self._tokens_needed()):
            if len(rows) == 1:
                break
            first = False
            victim = rows.pop()
            del self._decoding[victim]
            self._take_memory(victim, len(rows))
            batch.retracted += (victim,)
        if len(rows) <= 1 and not kv.make_room(self._tokens_needed()):
            last = rows.pop()
            del self._decoding[last]
            self._take_memory(last, 0)
            last.final_length = last.length
            last.state = "finished"
            self._aborted.append(last)
        self._decoding = dict.fromkeys(rows)
        outputs = sum(self._outputs(seq) for seq in rows)
        limits = sum(seq.group_state.max_new for seq in rows)
        self.ratio = min(1.0, (outputs + RETRACT_STEPS * len(rows)) / (limits + 1))
        for seq in batch.retracted:
            batch.preempted += (seq,)
            self._enqueue(seq)
        if len(rows) < before:
            self.batch_is_full = False

    def _take_memory(self, seq: Sequence, remaining: int) -> None:
        """Free what the row holds beyond the tree's part, and make room for the rows that remain.

        A token in flight is lost.
        """
        row: _Row = seq.group_state
        outputs = self._outputs(seq)
        if seq.state == "decoding":
            self._leave_decodes(seq, self.next_number - 1)
        lost = seq.length - seq.prompt_tokens - outputs
        self._give_back(seq)
        if lost:
            seq.length -= lost
            if seq not in self._left:
                seq.end_emissions(seq.emissions[-1] - lost)
        for ended in (self._wasting, self._ending):
            if seq in ended:
                ended.remove(seq)
        row.node = self.kv.tree.root
        row.protected = row.matched = row.entered = 0
        row.last = -1
        seq.computed = 0
        del self.running[seq]
        self.kv.make_room(remaining * RETRACT_STEPS)
        seq.state = "preempted"
        seq.preemptions += 1

    def _give_back(self, seq: Sequence) -> None:
        """Free what a row holds beyond the tree's part, and its hold on that."""
        row: _Row = seq.group_state
        self.kv.free_tokens += self._held_tokens(seq) - row.protected
        self.kv.tree.unlock(row.node, row.receipt)

    def _enqueue(self, seq: Sequence) -> None:
        """Put a request that has arrived, or lost its memory, at the end of the queue."""
        row: _Row = seq.group_state
        row.queued = self._arrivals
        row.prefilled = self._prefilled_tokens
        self._arrivals += 1
        self._waiting.append(seq)
        self._unsorted = True

    # -- memory ---------------------------------------------------------------------------------------------

    def _held_tokens(self, seq: Sequence) -> int:
        """Tokens of the pages that a row outside of the decode set holds."""
        return self.kv.paged(seq.computed)

    def _checkpoint(self, seq: Sequence, computed: int) -> None:
        """Enter the computed prompt into the tree and hold it there."""
        kv = self.kv
        if not kv.prefix_caching:
            return
        row: _Row = seq.group_state
        length = kv.keys(computed) // kv.page_tokens * kv.page_tokens
        known, node = self._enter(seq, length)
        if known > row.protected:
            kv.free_tokens += known - row.protected  # computed twice: the tree keeps its copy
        kv.tree.unlock(row.node, row.receipt)
        row.receipt = kv.tree.lock(node)
        row.node = node
        row.protected = length

    def _enter(self, seq: Sequence, length: int) -> tuple[int, Node]:
        """Enter the first `length` tokens into the tree; returns how many it had already, and the last node.

        What was entered is parted at the end of the prompt, so that the output can be evicted before it.
        """
        tree = self.kv.tree
        row: _Row = seq.group_state
        known, node = tree.insert(row.content, length, counted=row.entered, priority=seq.priority)
        row.entered = max(row.entered, length)
        prompt = self.kv.keys(seq.prompt_tokens) // self.kv.page_tokens * self.kv.page_tokens
        if 0 < prompt < length:
            tree.insert(row.content, prompt, counted=prompt, priority=seq.priority + 1)
        return known, node

    def _kept_tokens(self, seq: Sequence) -> int:
        """Tokens of an ended row that the tree may keep: a step in vain has computed the last one too."""
        return min(seq.computed, seq.final_length)

    def _release(self, seq: Sequence) -> None:
        """Hand the tokens of an ended row over to the tree."""
        kv = self.kv
        row: _Row = seq.group_state
        held = self._held_tokens(seq)
        if not kv.prefix_caching:
            kv.free_tokens += held
        else:
            length = kv.keys(self._kept_tokens(seq)) // kv.page_tokens * kv.page_tokens
            known, _ = self._enter(seq, length)
            kv.free_tokens += max(known, row.protected) - row.protected + held - length
            kv.tree.unlock(row.node, row.receipt)
        row.node = kv.tree.root
        row.protected = row.entered = 0

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch: prompts enter the tree, ended rows leave, in batch order."""
        self.processed_number = batch.number
        extends = batch.extends if isinstance(batch, PrefillFirstBatch) else ()
        if not extends and not batch.finishing:
            return batch.finishing
        finishing: frozenset[Sequence] = frozenset()
        if batch.finishing:
            batch.finishing = [seq for seq in batch.finishing if seq.state != "preempted"]  # whose last token is lost
            finishing = frozenset(batch.finishing)
        for seq, computed, complete, generation in extends:
            if complete and seq.preemptions == generation:
                if seq in finishing:
                    self._finish(seq)
                else:
                    self._checkpoint(seq, computed)
        if finishing:
            for seq in batch.finishing:
                if seq.state != "finished":
                    self._finish(seq)
            self.batch_is_full = False
            self._ending = [seq for seq in self._ending if seq.state != "finished"]
            self._merging = [seq for seq in self._merging if seq.state != "finished"]
        if self._left and not self._left.isdisjoint(batch.finishing):
            left, self._left = self._left, self._left.difference(batch.finishing)
            batch.finishing = [seq for seq in batch.finishing if seq not in left]
        return batch.finishing

    def _finish(self, seq: Sequence) -> None:
        if seq.state == "decoding":  # scheduled once more in vain
            self._leave_decodes(seq, seq.group_state.last)
        if self._wasting and seq in self._wasting:
            self._wasting.remove(seq)
        self._release(seq)
        self.running.pop(seq, None)
        self._decoding.pop(seq, None)
        seq.state = "finished"

    # -- emitted tokens -------------------------------------------------------------------------------------

    def _leave_decodes(self, seq: Sequence, last: int) -> None:
        """Take a row out of the decode set and note the batches up to `last` in which it emitted."""
        self.decodes.leave(seq)
        if seq not in self._left:
            seq.emit_between(last, self._pauses)

    # -- jumping --------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps that decode exactly the rows of the decode set; deaf where no prefill is tried until a row leaves."""
        steps, decodes, run, kv = self._proven_steps(), self.decodes, self._run, self.kv
        # hrrn notes of an arrival how much had been prefilled by then
        if not steps:
            return None
        run.deaf = self._closed() and self._policy != "hrrn"
        run.vain = (
            self._takes_vain
            and not run.deaf
            and decodes.ends_with(steps)
            and decodes.count * (steps + 1 + kv.page_tokens) <= kv.free_tokens + kv.tree.evictable_tokens
        )
        if steps + run.vain < 2:
            return None
        decodes.serve(run.shape)
        run.steps = steps
        return run

    def _closed(self) -> bool:
        """Whether no prefill is tried until a row leaves."""
        return self.batch_is_full and not self.rules.preemption

    def _proven_steps(self) -> int:
        if not self.aggregate or self.chunked is not None:
            return 0
        self._merge()  # as the next step does first
        decodes = self.decodes
        if (
            not decodes.count
            or self._ending
            or self._wasting
            or self._aborted
            or (self._waiting and not self._closed())
        ):
            return 0
        steps = decodes.steps_alike()
        if self._unreceived:
            steps = min(steps, self._steps_to_receipt())
        kv = self.kv
        return decodes.steps_within(steps, (kv.free_tokens + kv.tree.evictable_tokens) // kv.page_tokens)

    def _steps_to_receipt(self) -> int:
        """Decode steps that are formed before the arrivals are looked at."""
        if not self._last_decoded:
            return 0
        return self.rules.receive_interval - 1 - self._since_receipt

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Schedule `steps` decode steps at once; a prefill in flight is settled when the first is formed."""
        in_flight = self._latest_extend.number > self.processed_number
        if in_flight and steps > 1:
            held, most = self._take_steps(1)
            self.settle(self._latest_extend)
            more, later = self._take_steps(steps - 1)
            return self._decoded(), held + more, max(most, later)
        taken = self._take(steps)
        if in_flight:
            self.settle(self._latest_extend)
        return taken

    def take_vain(self, after: Batch) -> tuple[Batch, int] | None:
        """As of the base: none where the end of a row was certain."""
        if len(self._wasting) < len(after.finishing):
            return None
        processed = self.processed_number
        batch, held, _ = self._take(1)
        self.processed_number = processed
        return batch, held

    def _take(self, steps: int) -> tuple[Batch, int, int]:
        held, most = self._take_steps(steps)
        return self._decoded(), held, most

    def _take_steps(self, steps: int) -> tuple[int, int]:
        """Let `steps` decode steps take their memory; the sum over them of the pages then held, and the most of them."""
        decodes, kv = self.decodes, self.kv
        page = kv.page_tokens
        held = kv.capacity_blocks - kv.free_blocks
        need, summed = decodes.taken_over(steps)
        before_last = need - decodes.phases[(decodes.steps + steps - 1) % decodes.block_tokens]
        room = (before_last + decodes.count) * page
        kv.make_room(room)  # as the last step would
        kv.take(need * page)
        if self.ratio != self.least_ratio:
            self._decay(steps)
        decodes.steps += steps
        self._prefilled_tokens += steps * self._running_prefilled
        if self.rules.receive_interval > 1:
            counted = self._since_receipt + steps if self._last_decoded else steps - 1
            self._since_receipt = counted % self.rules.receive_interval
            self._last_decoded = True
        self.next_number += steps
        self.processed_number = self.next_number - 2
        return held * steps + summed, held + need

    def _decay(self, steps: int) -> None:
        """Let the new-token ratio fall by so many decode steps."""
        ratio, decay, least = self.ratio, self.decay, self.least_ratio
        for _ in range(steps):
            ratio -= decay
            if ratio <= least:
                ratio = least
                break
        self.ratio = ratio

    def _decoded(self) -> Batch:
        """The latest of the decode steps whose memory was taken, as a batch."""
        decodes = self.decodes
        batch = self._latest = Batch(self.next_number - 1)
        self._last_decode = batch.number
        batch.decode_rows = batch.tokens = batch.decode_tokens = decodes.count
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        self._end_decodes(batch)
        return batch


@mypyc_attr(allow_interpreted_subclasses=True)
class Adder:
    """The budgets of one prefill batch and the requests admitted to it: (row, from token, to token, newly admitted)."""

    def __init__(self, scheduler: PrefillFirstScheduler) -> None:
        rules = scheduler.rules
        self.scheduler = scheduler
        self.kv = scheduler.kv
        mixed = len(scheduler._decoding) if rules.mixed_chunk else 0
        self.total_offset: float = mixed + scheduler._reserved()
        self.current_offset = mixed
        self.input_left = rules.max_prefill_tokens - mixed
        self.chunk_left = None if rules.chunked_prefill_size is None else rules.chunked_prefill_size - mixed
        self.admitted: list[tuple[Sequence, int, int, bool]] = []
        self.new_chunked: Sequence | None = None
        self.chunk_finished = False
        self._states: list[tuple[int, int]] | None = None

    def _available(self) -> int:
        return self.kv.free_tokens + self.kv.tree.evictable_tokens

    @property
    def total_left(self) -> float:
        """Tokens left when every reservation is honoured."""
        return self._available() - self.total_offset

    @property
    def current_left(self) -> int:
        """Tokens left for prompts."""
        return self._available() - self.current_offset

    def _charge(self, tokens: int, future: int) -> None:
        paged = self.kv.paged(tokens)
        now = paged + self.kv.page_tokens
        self.total_offset += now + future
        self.current_offset += now
        self.input_left -= paged
        if self.chunk_left is not None:
            self.chunk_left -= paged

    def verdict(self) -> str:
        """Whether another request may be tried: "continue", "other" (the batch's token budgets are used up), or "no_token"."""
        available = self._available()
        if available - self.total_offset <= 0 or available - self.current_offset <= 0:
            return "no_token"
        exhausted = self.input_left <= 0 or (self.chunk_left is not None and self.chunk_left <= 0)
        return "other" if exhausted else "continue"

    def continue_chunk(self, seq: Sequence) -> None:
        """Go on with the prompt that is partly computed."""
        most = self._chunk_room()
        rest = seq.length - seq.computed
        if self.scheduler._policy == "shortest-prefill-first":
            most = min(most, self._left_for(rest))
        tokens = min(rest, most, self._available() // self.kv.page_tokens * self.kv.page_tokens)
        if tokens <= 0:
            return
        finished = tokens == rest
        future = min(seq.group_state.max_new, CLIP_NEW_TOKENS) if finished else 0
        self.admitted.append((seq, seq.computed, seq.computed + tokens, False))
        self.chunk_finished = finished
        self._charge(tokens, future)

    def _chunk_room(self) -> int:
        """Tokens for which there is room of a prompt that is partly computed."""
        assert self.chunk_left is not None
        most = min(self.chunk_left, int(self.total_left))
        return most if most > 0 else self.chunk_left

    def _left_for(self, rest: int) -> int:
        """Tokens of the batch left for a prompt of which `rest` remain, after the shorter ones that wait."""
        page, budget = self.kv.page_tokens, self.chunk_left
        assert budget is not None
        kept = 0
        for seq in self.scheduler._waiting if budget >= 2 * page else ():
            work = max(1, seq.length - seq.group_state.matched)
            charge = self.kv.paged(work)
            if work >= rest or kept + charge > budget - page:
                break
            kept += charge
        return (budget - kept) // page * page if kept else budget

    def look_up(self, seq: Sequence) -> None:
        """Find what the tree has of a waiting request."""
        row: _Row = seq.group_state
        if self.kv.prefix_caching:
            row.matched, row.node = self.kv.tree.match(row.content, self.kv.keys(seq.length - 1))
        row.fill = seq.length

    def add(self, seq: Sequence) -> str:
        """Try one waiting request; returns "continue", "other" or "no_token"."""
        rules, kv = self.scheduler.rules, self.kv
        row: _Row = seq.group_state
        prefix, node = row.matched, row.node
        if rules.prefill_max_requests is not None and len(self.admitted) >= rules.prefill_max_requests:
            return "other"
        if rules.ignore_eos and not kv.prefix_caching:
            return self._add_to_limit(seq)
        outputs = seq.length - seq.prompt_tokens
        need = seq.length - prefix + min(max(row.max_new - outputs, 0), CLIP_NEW_TOKENS) + kv.page_tokens
        receipt = kv.tree.lock(node)
        away = self.scheduler._away_tokens(seq, row, node)
        while True:
            chosen = self._choose(seq, prefix + away, need)
            if isinstance(chosen, str):
                kv.tree.unlock(node, receipt)
                return chosen
            if not away:
                break
            loaded, node = self.scheduler._bring(seq, row, node)
            prefix += loaded
            if loaded:
                break
            away = 0  # and all of it is computed again
        extend, whole = chosen
        future = min(row.max_new, CLIP_NEW_TOKENS) if whole else 0
        if not whole:
            self.new_chunked = seq
        row.node, row.receipt = node, receipt  # stays locked
        row.protected = prefix
        self.admitted.append((seq, prefix, prefix + extend, True))
        self._charge(extend, future)
        return self.verdict()

    def _choose(self, seq: Sequence, prefix: int, need: int) -> tuple[int, bool] | str:
        """How many tokens to compute of a request of which `prefix` are there, and whether that is all; or why none."""
        if need >= self.total_left:
            return "no_token"
        return self._cut(seq, prefix, self.chunk_left)

    def _cut(self, seq: Sequence, prefix: int, most: int | None) -> tuple[int, bool] | str:
        """As `_choose`, of at most `most` tokens, where there is room for the request."""
        extend = seq.length - prefix
        paged = self.kv.paged(extend)
        if self.chunk_left is None and self.admitted and paged >= self.input_left:
            return "other"
        if most is None or paged <= most:
            return extend, True
        if self.scheduler.chunked is not None and not self.chunk_finished:
            return "other"  # one prompt at a time is computed in pieces
        page = self.kv.page_tokens
        extend = (prefix + most // page * page) // page * page - prefix
        return (extend, False) if extend > 0 else "other"

    def _add_to_limit(self, seq: Sequence) -> str:
        """Admission without a tree of a request that surely runs to its limit: look ahead to every end of a row."""
        kv = self.kv
        row: _Row = seq.group_state
        extend = seq.length
        paged = kv.paged(extend) + kv.page_tokens
        if paged > min(self.current_left, self.total_left):
            return "no_token"
        state = self._state(seq)
        if self._states is None:
            rows = [seq, *self.scheduler._decoding, *(s for s, _, _, _ in self.admitted)]
            states = [self._state(s) for s in rows]
            self._states = sorted((s for s in states if s[0] > 0), key=lambda s: s[0])
        elif state[0] > 0:
            at = 0
            for at in range(len(self._states)):  # before the last at the latest, as the engine does
                if state[0] <= self._states[at][0]:
                    break
            self._states.insert(at, state)
        left = self.current_left - paged
        freed = 0
        for i, (to_come, occupied) in enumerate(self._states):
            rows_left = len(self._states) - i
            if left + freed - to_come * rows_left <= IGNORE_EOS_RESERVE_TOKENS * rows_left:
                return "no_token"
            freed += occupied
        future = min(row.max_new, CLIP_NEW_TOKENS)
        if self.chunk_left is not None and extend > self.chunk_left:
            extend = self.chunk_left
            future = 0
            self.new_chunked = seq
        row.protected = 0
        self.admitted.append((seq, 0, extend, True))
        self._charge(extend, future)
        return self.verdict()

    def _state(self, seq: Sequence) -> tuple[int, int]:
        """Tokens that a row may still generate, and those that it holds."""
        row: _Row = seq.group_state
        outputs = self.scheduler._outputs(seq)
        return row.max_new - outputs, seq.prompt_tokens + outputs

    def preempt_for(self, seq: Sequence, batch: PrefillFirstBatch) -> bool:
        """Take the memory of less urgent running rows if that makes room for `seq`; whether it did."""
        scheduler = self.scheduler
        row: _Row = seq.group_state
        sign = scheduler._sign
        candidates = sorted(
            (
                s
                for s in scheduler._decoding
                if s.state != "ending" or s.group_state.last > scheduler.processed_number
            ),  # an end in flight is not known yet
            key=lambda s: (s.priority * -sign, -s.group_state.queued),
        )
        # lengths as the last trial left them: 0 for a request that was never tried
        need = row.fill - row.matched + min(row.max_new, CLIP_NEW_TOKENS) - self.total_left
        victims: list[Sequence] = []
        for candidate in candidates:
            if (seq.priority - candidate.priority) * -sign <= scheduler.rules.preemption_threshold:
                break
            victims.append(candidate)
            need -= scheduler._future(candidate)
            if need <= 0:
                break
        if not victims or need > 0:
            return False
        chosen = set(victims)
        left = len(scheduler._decoding)
        for running in list(scheduler._decoding):
            if running in chosen:
                self.total_offset -= scheduler._future(running)
                left -= 1
                del scheduler._decoding[running]
                scheduler._take_memory(running, left)
        batch.preempted += tuple(victims)
        return True
