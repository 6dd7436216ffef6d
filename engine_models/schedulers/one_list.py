"""One list in order of arrival: who is in it computes what budget and memory allow; the last one's newest blocks give way.

There is no queue and no admission: a request's place in the list is its priority. With *split-fuse* a step first serves all rows
whose prompt is computed, in order, each with one token, then prompts in order, each with as large a piece as the token budget and
the free blocks allow; so a prompt can begin with the few blocks that are left. Without it a step takes whole prompts alone, in
order, until one does not fit, and the other rows go on only if there is none. How many rows run is limited only without
split-fuse.

Only a row that decodes can take blocks from another: from the last in the list that holds any, as many as it needs, from the
end. That row computes the tokens it lost again, in one piece, and yields nothing meanwhile; it sits out the step in which it lost
them. Nobody takes from one before it in the list. If not a single token can be computed, all requests in the list are dropped.

The pool of blocks may grow: before a step with prompts to what all rows in the list are expected to need (twice the prompt, or
the client's limit if that is less), in a step by so many tokens as often as somebody lacks blocks.

Source: behaviour of OpenVINO GenAI at da1db864d (2026-08: `continuous_batching/scheduler.hpp`, `pipeline_impl.cpp`,
`sequence_group.hpp`), checked step by step against recordings; see docs/engines/openvino.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from operator import attrgetter

from engine_models.memory.content_blocks import ContentBlocks, HeldContent
from engine_models.memory.radix import content_of
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass

GROWTH_TOKENS = 256
"""Tokens by which a pool grows when a row lacks blocks (datasheet: `m_cache_growth_num_tokens` of OpenVINO GenAI, 2026-08)."""

EXPECTED_PROMPTS = 2
"""What a row is expected to need, in prompts (datasheet: `m_kv_blocks_initial_multiplier` there)."""


@dataclass(frozen=True)
class OneListRules:
    """What such a scheduler may do. Names of knobs are those of OpenVINO GenAI.

    Attributes
    ----------
    max_num_batched_tokens : token budget of a step.
    max_num_seqs : rows beyond which no whole prompt is taken; without effect with split-fuse.
    dynamic_split_fuse : whether prompts are cut and share steps with decoding rows.
    partial_preemption : whether a row may lose a part of its blocks, else all.
    workers : requests that are let into the list at once, None for all; others wait before it, in order of arrival.
    forgets_unanswered : whether who gives up before his first token is forgotten, or computed to the end all the same.
    """

    max_num_batched_tokens: int
    max_num_seqs: int = 256
    dynamic_split_fuse: bool = True
    partial_preemption: bool = True
    workers: int | None = None
    forgets_unanswered: bool = True


class _Row:
    """A request besides its counts: `seq.length` tokens are known, `seq.computed` computed; both are stale in the decode set."""

    __slots__ = ("due", "expected_blocks", "held", "joined", "new", "seq", "waits")

    def __init__(self, seq: Sequence, held: HeldContent, expected_blocks: int) -> None:
        self.seq = seq
        self.held = held
        self.expected_blocks = expected_blocks
        self.due = -1  # decode step for which it needs a block
        self.joined = 0  # decode steps before it joined
        self.waits = False  # sits out this step, after it lost blocks
        self.new = True  # in no step yet

    @property
    def decodes(self) -> bool:
        """Whether its prompt is computed, and a token after it known."""
        return self.seq.length > self.seq.prompt_tokens

    @property
    def rest(self) -> int:
        """Tokens that it can compute."""
        seq = self.seq
        return max(1, seq.length - seq.computed - (seq.length > seq.prompt_tokens))


_place = attrgetter("seq.order")


class OneListBatch(Batch):
    """A scheduled step. `only_prompts`: prompts were taken, and the rows that decode paused.

    `lost` are the tokens that rows lost, `free_after` the free blocks when the results are in. With the rows are noted those that
    hold blocks after the choice (`holding`) or none (`bare`), and the size of the pool.
    """

    __slots__ = ("bare", "capacity_blocks", "free_after", "holding", "lost", "only_prompts")

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.only_prompts = False
        self.lost: dict[Sequence, int] = {}
        self.holding: list[Sequence] = []
        self.bare: list[Sequence] = []
        self.capacity_blocks = self.free_after = 0


class OneListScheduler(Scheduler):
    """The list of requests of one rank, and the rule that forms the next step. Its executor is synchronous.

    Parameters
    ----------
    rules : the knobs.
    kv : the blocks.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names.
    """

    def __init__(
        self,
        rules: OneListRules,
        kv: ContentBlocks,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.kv = kv
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.decodes = DecodeSet(1, windows)
        self._outside: deque[Sequence] = deque()
        self._rows: dict[Sequence, _Row] = {}
        self._prompts: dict[Sequence, _Row] = {}
        self._decoding: dict[Sequence, _Row] = {}  # in the decode set
        self._behind: dict[Sequence, _Row] = {}  # decode, but lost tokens or sat out
        self._found: list[_Row] = []  # have come since the latest step, and hold what was found
        self._due: dict[int, list[_Row]] = {}  # decode step -> rows that need a block for it
        self._expected_blocks = 0
        self._unbegun = 0
        self._places = 0
        self._pauses: list[int] = []  # batches in which those that decode sat out
        self._shut = False  # no prompt can be taken until a row ends
        self._shape = Batch(-1)

    # -- the list -------------------------------------------------------------------------------------------

    @property
    def hears_in_step(self) -> bool:
        """As of the base."""
        return True

    def add(self, seq: Sequence) -> None:
        """Take in an arrived request, unless all workers are busy."""
        workers = self.rules.workers
        if self._outside or (workers is not None and len(self._rows) >= workers):
            self._outside.append(seq)
        else:
            self._let_in(seq)

    def _let_in(self, seq: Sequence) -> None:
        """Put a request at the end of the list; what is found of its prompt is held from now on."""
        kv, prompt = self.kv, seq.prompt_tokens
        limit = seq.limit_tokens or (seq.final_length - prompt if seq.stop_known else prompt)
        expected = min(EXPECTED_PROMPTS * prompt, prompt + limit)
        row = _Row(seq, HeldContent(content_of(seq)), -(-expected // kv.block_tokens))
        seq.order = self._places
        self._places += 1
        self._rows[seq] = self._prompts[seq] = row
        self._expected_blocks += row.expected_blocks
        self._unbegun += 1
        if kv.prefix_caching:
            self._find(row)
            self._shut = False

    def _find(self, row: _Row) -> None:
        kv, decodes, seq = self.kv, self.decodes, row.seq
        for other in self._decoding.values():
            if decodes.steps > other.joined:
                kv.rename_last(other.held, decodes.length(other.seq) - 1)
        seq.computed = seq.first_hit_tokens = kv.find(row.held, seq.prompt_tokens)
        self.queried_tokens += seq.prompt_tokens
        self.hit_tokens += seq.computed
        if not row.held.count:
            return
        self._found.append(row)
        for other in self._decoding.values():
            if kv.is_shared(other.held):  # needs one of its own
                self._note_due(other)

    def has_work(self) -> bool:
        """Whether any request is in the list."""
        return bool(self._rows)

    def state(self) -> State:
        """Requests that have begun and others, and blocks: those held, and as many as the pool has or may grow to."""
        kv = self.kv
        waiting = self._unbegun + len(self._outside)
        return len(self._rows) - self._unbegun, waiting, kv.used_blocks, kv.most_blocks or kv.capacity_blocks

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base."""
        if seq.state == "ending":
            return False
        row = self._rows.get(seq)
        answered = seq.emissions and seq.emissions[0] <= self.processed_number
        if not answered and not self.rules.forgets_unanswered:
            return False
        if row is None:
            self._outside.remove(seq)
            seq.state = "finished"
            return True
        if seq in self._decoding:
            self._leave_decodes(row, self.next_number - 1)
        self._forget(row)
        self._fill()
        seq.state = "finished"
        return True

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for seq in self._decoding:
            seq.emit_between(self.next_number - 1, self._pauses)

    def _forget(self, row: _Row) -> None:
        """Take a row out of the list, and its blocks back."""
        seq = row.seq
        del self._rows[seq]
        self._prompts.pop(seq, None)
        self._behind.pop(seq, None)
        if row in self._found:
            self._found.remove(row)
        self._unbegun -= row.new
        self._expected_blocks -= row.expected_blocks
        self._shut = False
        self.kv.release(row.held)

    def _fill(self) -> None:
        """Let those in who wait for a worker."""
        workers = self.rules.workers
        while self._outside and (workers is None or len(self._rows) < workers):
            self._let_in(self._outside.popleft())

    # -- the step -------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> OneListBatch | None:
        """Form the next step; None if there is nothing to run, a batch without tokens if all requests are dropped."""
        if not self._rows:
            return None
        kv, rules = self.kv, self.rules
        batch = OneListBatch(self.next_number)
        for row in self._found:
            seq = row.seq
            if seq.computed:
                batch.hits += ((seq, seq.computed),)
            kv.keep(row.held, seq.computed)
        self._found.clear()
        if kv.most_blocks is not None and (self._prompts or not kv.capacity_blocks):
            self._grow(self._expected_blocks - kv.capacity_blocks)
        if self.record_rows:
            batch.rows = []
        served: list[tuple[_Row, int]] = []
        if not rules.dynamic_split_fuse:
            self._take_whole_prompts(served)
            batch.only_prompts = bool(served)
        if not batch.only_prompts:
            tokens = self._serve_decodes(batch, served)
            if rules.dynamic_split_fuse and tokens < rules.max_num_batched_tokens:
                self._cut_prompts(served, tokens)
        if not served and not (self._decoding and not batch.only_prompts):
            return self._drop_all(batch)
        self._count(batch, served, now_s)
        self.next_number += 1
        return batch

    def _count(self, batch: OneListBatch, served: list[tuple[_Row, int]], now_s: float) -> None:
        """Enter in a batch the decode set, unless it pauses, and the rows served one by one."""
        decodes, number = self.decodes, batch.number
        if self.record_rows:
            self._record(batch, served)
        batch.spans = decodes.no_spans
        if batch.only_prompts:
            self._pauses.append(number)
        elif decodes.count:
            decodes.serve(batch)
            decodes.steps += 1
            for seq in decodes.pop_ended():
                if seq in self._decoding:
                    batch.finishing.append(seq)
        for row, tokens in served:
            seq = row.seq
            prior = seq.computed
            batch.serve(tokens, prior, decodes=tokens == 1 and prior >= seq.prompt_tokens)
            seq.computed = prior + tokens
            if row.new:
                row.new = False
                self._unbegun -= 1
                seq.first_scheduled_s = now_s
                seq.state = "running"
            if seq.computed == seq.length:
                self._yield(row, batch)
        for seq in batch.finishing:
            if seq in self._decoding:
                self._leave_decodes(self._rows[seq], number)
            seq.state = "ending"
        batch.order_finishing()
        batch.free_blocks = self.kv.free_blocks
        for seq in batch.preempted:
            self._rows[seq].waits = False

    def _yield(self, row: _Row, batch: OneListBatch) -> None:
        """A row that was served by itself yields a token, and ends or goes on in the decode set."""
        seq = row.seq
        seq.emit(batch.number, batch.number)
        seq.length += 1
        self._prompts.pop(seq, None)
        self._behind.pop(seq, None)
        if seq.length >= seq.final_length:
            batch.finishing.append(seq)
            return
        self.decodes.join(seq)
        row.joined = self.decodes.steps
        self._decoding[seq] = row
        self._note_due(row)

    def _record(self, batch: OneListBatch, served: list[tuple[_Row, int]]) -> None:
        assert batch.rows is not None
        decodes, by_itself = self.decodes, {row.seq: tokens for row, tokens in served}
        rows = [] if batch.only_prompts else [seq for seq in self._rows if seq not in self._prompts]
        for seq in (*rows, *(seq for seq in self._rows if batch.only_prompts or seq in self._prompts)):
            if seq in by_itself:
                batch.rows.append((seq, by_itself[seq], seq.computed))
            elif seq in self._decoding and not batch.only_prompts:
                batch.rows.append((seq, 1, decodes.length(seq) - 1))
        for seq, row in self._rows.items():
            (batch.holding if row.held.count else batch.bare).append(seq)
        batch.capacity_blocks = self.kv.capacity_blocks

    def _drop_all(self, batch: OneListBatch) -> OneListBatch:
        """No token can be computed: every request ends without an answer."""
        for row in list(self._rows.values()):
            self._forget(row)
            row.seq.state = "dropped"
            batch.finishing.append(row.seq)
        self._fill()
        return batch

    # -- decodes --------------------------------------------------------------------------------------------

    def _note_due(self, row: _Row) -> None:
        """Note the decode step for which a row needs a block, or with names the next one: others may know its last block."""
        kv, steps = self.kv, self.decodes.steps
        row.due = row.held.count * kv.block_tokens + 1 - row.seq.offset
        if row.due < steps or kv.prefix_caching:
            row.due = steps
        self._due.setdefault(row.due, []).append(row)

    def _due_now(self, step: int) -> list[_Row]:
        """Rows of the decode set that need a block for a decode step, in order."""
        due = [row for row in self._due.pop(step, ()) if row.due == step and row.seq in self._decoding]
        if len(due) > 1:
            due = sorted(dict.fromkeys(due), key=_place)
        return due

    def _leave_decodes(self, row: _Row, last: int) -> None:
        """A row leaves the decode set; its latest token came with batch `last`."""
        kv, decodes, seq = self.kv, self.decodes, row.seq
        named = kv.prefix_caching and decodes.steps > row.joined
        del self._decoding[seq]
        decodes.leave(seq)
        seq.emit_between(last, self._pauses)
        row.due = -1
        if named:
            kv.rename_last(row.held, seq.computed)

    def _serve_decodes(self, batch: OneListBatch, served: list[tuple[_Row, int]]) -> int:
        """Give the rows that decode their blocks; return their tokens. Those outside of the decode set are added to `served`."""
        decodes, kv = self.decodes, self.kv
        due = self._due_now(decodes.steps)
        if not self._behind and decodes.count <= self.rules.max_num_batched_tokens:
            needed = sum(kv.needed(row.held, decodes.length(row.seq)) for row in due)
            if needed <= kv.free_blocks:
                self._write_on(due)
                return decodes.count
        return self._serve_one_by_one(batch, served)

    def _write_on(self, due: Iterable[_Row]) -> None:
        """Give rows of the decode set the blocks for their next token."""
        decodes, kv = self.decodes, self.kv
        for row in due:
            length = decodes.length(row.seq)
            kv.write_on(row.held, length, length)
            self._note_due_next(row)

    def _note_due_next(self, row: _Row) -> None:
        row.due = row.held.count * self.kv.block_tokens + 1 - row.seq.offset
        self._due.setdefault(row.due, []).append(row)

    def _serve_one_by_one(self, batch: OneListBatch, served: list[tuple[_Row, int]]) -> int:
        budget, decodes, kv, used = self.rules.max_num_batched_tokens, self.decodes, self.kv, 0
        for row in [row for row in self._rows.values() if row.decodes]:
            seq = row.seq
            inside = seq in self._decoding
            if row.waits:
                continue
            prior, rest = (decodes.length(seq) - 1, 1) if inside else (seq.computed, row.rest)
            tokens = min(budget - used, rest)
            if tokens <= 0 or not self._make_room(row, prior + tokens, batch):
                if inside:
                    self._fall_behind(row)
                continue
            used += tokens
            if not inside:
                kv.write_on(row.held, prior + tokens, seq.length)
                served.append((row, tokens))
            elif row.due <= decodes.steps or kv.needed(row.held, prior + tokens):
                kv.write_on(row.held, prior + tokens, prior + tokens)
                self._note_due_next(row)
        return used

    def _fall_behind(self, row: _Row) -> None:
        self._leave_decodes(row, self.next_number - 1)
        row.seq.state = "running"
        self._behind[row.seq] = row

    def _make_room(self, row: _Row, tokens: int, batch: OneListBatch) -> bool:
        """Whether there are blocks for a row's tokens, after others behind it have lost theirs."""
        kv = self.kv
        while (needed := kv.needed(row.held, tokens)) > kv.free_blocks and self._grow_once():
            pass
        while needed > kv.free_blocks:
            victim = next((r for r in reversed(self._rows.values()) if r.seq.computed), None)
            if (
                victim is None
                or victim.seq.order <= row.seq.order
                or not self._preempt(victim, needed, batch)
            ):
                break
            needed = kv.needed(row.held, tokens)
        return kv.needed(row.held, tokens) <= kv.free_blocks

    def _preempt(self, victim: _Row, needed: int, batch: OneListBatch) -> bool:
        """Take a row's last blocks, or all; whether blocks have become free."""
        kv, seq, rules = self.kv, victim.seq, self.rules
        free = kv.free_blocks
        if seq in self._decoding:
            self._fall_behind(victim)
        computed, size = seq.computed, kv.block_tokens
        if not rules.partial_preemption or victim.held.count <= needed:
            lost = computed
        else:
            lost = min(computed, (computed % size or size) + (needed - 1) * size)
            kv.drop(victim.held, needed)
            if not rules.dynamic_split_fuse and computed - lost < seq.prompt_tokens:
                lost = computed
        if lost == computed:
            kv.release(victim.held)
        seq.computed = computed - lost
        seq.preemptions += 1
        victim.waits = True
        self._shut = False
        if seq not in batch.lost:
            batch.preempted += (seq,)
        batch.lost[seq] = batch.lost.get(seq, 0) + lost
        return kv.free_blocks > free

    def _grow(self, blocks: int) -> bool:
        kv = self.kv
        if kv.most_blocks is not None:
            blocks = min(blocks, kv.most_blocks - kv.capacity_blocks)
        if kv.most_blocks is None or blocks <= 0:
            return False
        kv.grow(blocks)
        return True

    def _grow_once(self) -> bool:
        return self._grow(-(-GROWTH_TOKENS // self.kv.block_tokens))

    # -- prompts --------------------------------------------------------------------------------------------

    def _cut_prompts(self, served: list[tuple[_Row, int]], used: int) -> None:
        """Pieces of prompts, in order, beside `used` tokens of rows that decode."""
        budget, kv = self.rules.max_num_batched_tokens, self.kv
        for seq, row in self._prompts.items():
            if row.waits:
                continue
            if row.new and not kv.free_blocks and kv.most_blocks is None and not kv.prefix_caching:
                break  # nor have those behind it
            wanted = min(budget - used, row.rest)
            while (slots := kv.slots(row.held, seq.computed)) < wanted and self._grow_once():
                pass
            tokens = min(wanted, slots)
            if tokens > 0:
                kv.take(row.held, seq.computed + tokens, seq.length)
                served.append((row, tokens))
                used += tokens
                if used == budget:
                    break

    def _take_whole_prompts(self, served: list[tuple[_Row, int]]) -> None:
        """Whole prompts, in order, until one does not fit; rows that lost everything are such, where nobody loses a part."""
        rules, kv, used = self.rules, self.kv, 0
        running = len(self._decoding) + len(self._behind)
        rows: Iterable[_Row] = self._prompts.values()
        if self._shut:
            return
        if not rules.partial_preemption and self._behind:
            again = [row for row in self._behind.values() if not row.seq.computed]
            rows = sorted([*rows, *again], key=_place)
        self._shut = bool(self._prompts)
        for row in rows:
            seq = row.seq
            tokens, end = row.rest, row.seq.computed + row.rest
            if running >= rules.max_num_seqs or rules.max_num_batched_tokens - used < tokens:
                break
            taken = kv.taken(row.held, end)
            while taken > kv.free_blocks and self._grow_once():
                pass
            if taken > kv.free_blocks:
                break
            kv.write_on(row.held, end, seq.length)
            served.append((row, tokens))
            self._shut = False
            used += tokens
            running += 1

    # -- results --------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a step; rows that end give their blocks back in order."""
        assert isinstance(batch, OneListBatch)
        self.processed_number = batch.number
        for seq in batch.finishing:
            self._forget(self._rows[seq])
            seq.state = "finished"
        self._fill()
        batch.free_after = self.kv.free_blocks
        return batch.finishing

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps in which all rows decode, nobody else can come in, and memory suffices."""
        decodes, kv, budget = self.decodes, self.kv, self.rules.max_num_batched_tokens
        if not self.aggregate or not decodes.count or self._behind or self._found:
            return None
        if decodes.count > budget:
            return None
        shut = self._shut if not self.rules.dynamic_split_fuse else decodes.count == budget
        if self._prompts and not shut:
            return None
        steps, free, first = decodes.steps_alike(), kv.free_blocks, decodes.steps
        if any(kv.is_shared(row.held) for row in self._due.get(first, ())):
            return None
        if decodes.count * (steps // kv.block_tokens + 1) > free:
            steps = min(steps, kv.block_tokens)  # in which a row needs one block
            for step in range(first, first + steps):
                free -= len(self._due.get(step, ()))
                if free < 0:
                    steps = step - first
                    break
        if steps < 2:
            return None
        decodes.serve(self._shape)
        full = self.rules.workers is not None and len(self._rows) >= self.rules.workers
        deaf = full or (bool(self._prompts) and not kv.prefix_caching and kv.most_blocks is None)
        return Run(steps, self._shape, deaf=deaf)

    def take(self, steps: int) -> tuple[OneListBatch, int, int]:
        """Choose `steps` decode steps at once."""
        decodes, kv, held = self.decodes, self.kv, 0
        for _ in range(steps):
            if decodes.steps in self._due:
                self._write_on(self._due_now(decodes.steps))
            held += kv.used_blocks
            decodes.steps += 1
        self.next_number += steps
        self.processed_number = self.next_number - 2
        batch = OneListBatch(self.next_number - 1)
        batch.tokens = batch.decode_rows = batch.decode_tokens = decodes.count
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        for seq in decodes.pop_ended():
            if seq in self._decoding:
                self._leave_decodes(self._rows[seq], batch.number)
                seq.state = "ending"
                batch.finishing.append(seq)
        batch.order_finishing()
        return batch, held, kv.used_blocks


__all__ = ["EXPECTED_PROMPTS", "GROWTH_TOKENS", "OneListBatch", "OneListRules", "OneListScheduler"]
