"""The oldest first, prompts and decodes in one step; blocks for all that is known of a row, and the youngest's tail gives way.

Requests are let in by arrival while rows are left; that order is their priority for good. A step walks all who are in, from the
oldest: a row that decodes takes a token, another as much of what it lacks as the *forward* budget leaves. What is cut off ends
with a whole block; if not one is left, the row sits out and the next is tried. The first for whom no token of the budget is left
ends the walk, and so does the first whose whole length does not fit into what is left of the *context* budget; decodes that go on
take nothing of that.

Whoever is served holds blocks for all its known tokens, of a prompt in pieces too. If blocks lack, those that nobody holds go
first, then those of younger rows: of the youngest its last, then the block before, and so on to its first, then those of the
next. If all of that is not enough, nothing is taken and the walk ends, as it must at a row that has lost blocks in this step. Who
is not served *swaps out*: it keeps what blocks it has, and goes on from there as soon as the walk serves it again. If nobody can
be served and nothing is in flight, the oldest fails for want of memory.

With prefix caching whole blocks are shared, as soon as the step that computes them is formed. A row that would compute what
another computes in the same step sits that step out. Of those that nobody holds the one used longest ago goes first, of one row
the last.

The executor is one step ahead: the host forms a step when the one before it starts, so a row whose end is in flight is computed
once more for nothing. Its blocks can be taken when its end is known, its place when that step is over.

Source: behaviour of LMDeploy's TurboMind at 1263d5cd (2026-08: `src/turbomind/engine/scheduler.cc`, `engine.cc`, `request.h`,
`block.cc`, `models/llama/context_token_resource.h`), read and not recorded; see docs/engines/lmdeploy.md.
"""

from __future__ import annotations

from collections import Counter, deque
from operator import attrgetter

from engine_models.memory.block_trie import BlockNode, HeldBlocks, TrieBlocks
from engine_models.memory.radix import content_of
from engine_models.parts.adapters import MaskedDecodes
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class OldestFirstRules:
    """What such a scheduler may do. Names of knobs are those of TurboMind.

    Attributes
    ----------
    max_batch_size : requests that are in at once.
    max_forward_token_num : tokens of a step.
    max_context_token_num : known tokens of the rows of a step that do more than go on decoding.
    """

    max_batch_size: int
    max_forward_token_num: int
    max_context_token_num: int


class _Row:
    """A request inside besides its counts: what it holds, whether the latest step served it, whether its end is in flight."""

    __slots__ = ("active", "content", "ended", "held", "seq")

    def __init__(self, seq: Sequence) -> None:
        self.seq = seq
        self.content = content_of(seq)
        self.held = HeldBlocks()
        self.active = False
        self.ended = False


_order = attrgetter("seq.order")
Served = list[tuple[_Row, int, int]]
"""Rows outside of the decode set that a step serves: new tokens, and those before."""


class OldestFirstScheduler(Scheduler):
    """Waiting and running requests of one rank, and the rule that forms the next step.

    Parameters
    ----------
    rules : the knobs.
    kv : the blocks.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names. masked : whether steps name the rows that a grammar constrains.
    """

    def __init__(
        self,
        rules: OldestFirstRules,
        kv: TrieBlocks,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
        masked: bool = False,
    ) -> None:
        self.rules = rules
        self.kv = kv
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.decodes: DecodeSet = MaskedDecodes(kv.block_tokens, windows) if masked else DecodeSet(kv.block_tokens, windows)
        self._outside: deque[Sequence] = deque()
        self._rows: dict[Sequence, _Row] = {}  # in order
        self._others: dict[Sequence, _Row] = {}  # of these, those outside of the decode set, in order
        self._ending = 0  # rows whose end is in flight
        self._leaving = 0  # rows that have ended and keep their place until the next results
        self._orders = 0
        self._shut = False  # the first of the others finds no memory before a row ends
        self._shape = Batch(-1)

    # -- the outside ----------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        self._outside.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._rows or self._outside)

    def state(self) -> State:
        """Requests, and blocks."""
        kv = self.kv
        waiting = sum(not row.active for row in self._others.values())
        return len(self._rows) - waiting, waiting + len(self._outside), kv.used_blocks, kv.capacity_blocks

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for row in self._rows.values():
            if row.seq.state == "decoding" and not row.ended:
                row.seq.end_emissions(self.next_number - 1)

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; tokens in flight count as got, as those of other schedulers."""
        row = self._rows.get(seq)
        if row is None:
            self._outside.remove(seq)
        elif row.ended:
            return False
        else:
            self._forget(row)
            self._leaving += 1
        seq.state = "finished"
        return True

    @property
    def _flying(self) -> bool:
        """Whether the results of a batch are not known yet."""
        return self.processed_number < self.next_number - 1

    def _full(self) -> bool:
        return len(self._rows) + self._leaving >= self.rules.max_batch_size

    def _let_in(self) -> None:
        if not self._flying:
            self._leaving = 0
        while self._outside and not self._full():
            seq = self._outside.popleft()
            seq.order = self._orders
            self._orders += 1
            self._rows[seq] = self._others[seq] = _Row(seq)

    # -- memory ---------------------------------------------------------------------------------------------

    def _stamp(self, row: _Row) -> int:
        """When a row's blocks were last used: of one step, those of the oldest row are the latest."""
        return (self.next_number << 20) - row.seq.order % (1 << 20)  # exact as a float

    def _leave_decodes(self, row: _Row) -> None:
        """Take a row out of the decode set, with the blocks that it took there."""
        seq, kv = row.seq, self.kv
        self.decodes.leave(seq)
        if not row.ended:
            seq.end_emissions(self.next_number - 1)
        kv.free_blocks += kv.missing(row.held, seq.computed, 0)
        kv.take(row.held, seq.computed, 0, self._stamp(row))

    def _forget(self, row: _Row) -> None:
        """Free a row's blocks; those that can be found stay."""
        if row.seq.state == "decoding":
            self._leave_decodes(row)
        self._others.pop(row.seq, None)
        del self._rows[row.seq]
        self.kv.release(row.held, self._stamp(row))
        self._shut = False

    def _within_reach(self, younger: list[_Row]) -> int:
        """Blocks that are free, or that nobody else than `younger` rows holds."""
        kv, nodes = self.kv, Counter[BlockNode]()
        own = 0
        for row in younger:
            own += row.held.own
            if row.seq.state == "decoding":
                own += kv.missing(row.held, self.decodes.length(row.seq) - 1, 0)
            nodes.update(row.held.path)
        held = sum(node.rows == rows for node, rows in nodes.items())
        return kv.free_blocks + kv.evictable_blocks + own + held

    def _have(self, need: int, rows: list[_Row], at: int) -> bool:
        """Free `need` blocks, of the rows from `at` on, the last first, if it must be; False, with nothing done, if it cannot."""
        kv = self.kv
        if kv.free_blocks >= need:
            return True
        if kv.free_blocks + kv.evictable_blocks < need and self._within_reach(rows[at:]) < need:
            return False
        kv.evict(need - kv.free_blocks)
        for row in reversed(rows):
            if kv.free_blocks >= need:
                break
            if row.seq.state == "decoding":
                self._swap_out(row)
            while row.held.count and kv.free_blocks < need:
                kv.drop_last(row.held, self._stamp(row))
                kv.evict(need - kv.free_blocks)
        return True

    # -- the choice -----------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        """Form the next step; None if nobody can be served now, a batch without tokens if the oldest fails."""
        self._let_in()
        self._shut = False
        decodes, kv, budget = self.decodes, self.kv, self.rules.max_forward_token_num
        batch = Batch(self.next_number)
        batch.free_blocks = kv.free_blocks
        others, need = list(self._others.values()), decodes.blocks_needed()
        before = [row for row in others if row.active]
        apart = not others or decodes.top_order < others[0].seq.order
        if decodes.count <= budget and apart and need <= kv.free_blocks + kv.evictable_blocks:
            kv.evict(need - kv.free_blocks)
            kv.free_blocks -= need
            served = self._walk(others, budget - decodes.count)
        else:
            rows = list(self._rows.values())
            before = [row for row in rows if row.active]
            served = self._walk(rows, budget)
            self._others = {row.seq: row for row in sorted(self._others.values(), key=_order)}
        batch.preempted = tuple([row.seq for row in before if not row.active and row.seq in self._others])
        for seq in batch.preempted:
            seq.preemptions += 1
        self._serve(batch, served, now_s)
        if batch.tokens:
            self.next_number += 1
            return batch
        if self._flying or not self._rows:
            return None
        oldest = next(iter(self._rows.values()))
        self._forget(oldest)
        oldest.seq.state = "dropped"
        batch.finishing = [oldest.seq]
        return batch

    def _swap_out(self, row: _Row) -> None:
        """A row leaves the decode set, and is not served with this step."""
        self._leave_decodes(row)
        self._others[row.seq] = row
        row.active = False

    def _walk(self, rows: list[_Row], budget: int) -> Served:
        """Choose who is served of `rows`, from the oldest, and give them their blocks; the others swap out."""
        kv, decodes, size = self.kv, self.decodes, self.kv.block_tokens
        context, last_known = self.rules.max_context_token_num, kv.newest
        served: Served = []
        out: list[_Row] = []
        stopped = len(rows)
        for at, row in enumerate(rows):
            seq = row.seq
            decoding = seq.state == "decoding"
            shared = not decoding and not row.active and self._resume(row)
            length = decodes.length(seq) if decoding else seq.length
            computed = length - 1 if decoding else seq.computed
            rest = length - computed
            held_against = length if rest > 1 or not row.active else 0
            tokens = min(rest, budget)
            if tokens <= 0 or held_against > context:
                stopped = at
                break
            if tokens < rest:
                tokens = (computed + tokens) // size * size - computed
            if tokens <= 0 or (shared and row.held.path[-1].serial > last_known):
                out.append(row)
                continue
            need = decodes.visit(seq) if decoding else kv.missing(row.held, length, 0)
            if not self._have(need, rows, at + 1):
                stopped = at
                self._shut = not row.active and row is next(iter(self._others.values()), None)
                break
            budget -= tokens
            context -= held_against
            row.active = True
            if decoding:
                kv.free_blocks -= need
                continue
            kv.take(row.held, length, 0, self._stamp(row))
            kv.enter(row.held, row.content, min(computed + tokens, seq.prompt_tokens))
            served.append((row, tokens, computed))
        for row in (*out, *rows[stopped:]):
            if row.seq.state == "decoding":
                self._swap_out(row)
            row.active = False
        return served

    def _resume(self, row: _Row) -> bool:
        """Where a row that was not served goes on: after the blocks that it has, or finds. Return whether it found some."""
        seq, held, kv = row.seq, row.held, self.kv
        found = 0
        if kv.prefix_caching and not held.own:
            found = kv.find(held, row.content, seq.prompt_tokens + 1, self._stamp(row))
        computed = min(seq.computed, held.count * kv.block_tokens)
        seq.computed = min(max(computed, len(held.path) * kv.block_tokens), seq.length - 1)
        return found > 0

    # -- the step -------------------------------------------------------------------------------------------

    def _serve(self, batch: Batch, served: Served, now_s: float) -> None:
        """Enter the decodes, then who else is served; whose tokens are then all computed decodes from the next step on."""
        decodes, number = self.decodes, batch.number
        if self.record_rows:
            batch.rows = [
                (seq, 1, decodes.length(seq) - 1) for seq in self._rows if seq.state == "decoding"
            ]
        batch.spans = decodes.no_spans
        if decodes.count:
            decodes.serve(batch)
            decodes.steps += 1
            self._note_ends(batch)
        for row, tokens, computed in served:
            seq = row.seq
            batch.serve(tokens, computed, decodes=False)
            if batch.rows is not None:
                batch.rows.append((seq, tokens, computed))
            if seq.first_scheduled_s < 0:
                seq.first_scheduled_s = now_s
                seq.first_hit_tokens = computed
                self.queried_tokens += seq.prompt_tokens
                self.hit_tokens += computed
                if computed:
                    batch.hits += ((seq, computed),)
            seq.computed += tokens
            if seq.computed < seq.length:
                continue
            batch.masked_rows += seq.masked
            seq.emit(number, number)
            seq.length += 1
            if seq.length >= seq.final_length:
                self._end(row, batch)
            else:
                seq.emit(number + 1, number)
            del self._others[seq]
            decodes.join(seq)
        batch.order_finishing()

    def _note_ends(self, batch: Batch) -> None:
        for seq in self.decodes.pop_ended():
            seq.end_emissions(batch.number)
            self._end(self._rows[seq], batch)

    def _end(self, row: _Row, batch: Batch) -> None:
        row.ended = True
        self._ending += 1
        batch.finishing.append(row.seq)

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch; rows that end give their blocks back, and their place with the next results."""
        self.processed_number = batch.number
        self._ending -= len(batch.finishing)
        self._leaving = len(batch.finishing) if self._flying else 0
        for seq in reversed(batch.finishing):
            row = self._rows[seq]
            if seq.state == "decoding":
                self._leave_decodes(row)
            self.kv.enter(row.held, row.content, min(seq.final_length - 1, row.held.count * self.kv.block_tokens))
            self._forget(row)
            seq.length = seq.final_length
            seq.state = "finished"
        return batch.finishing

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps in which all that are served decode, and nobody else can be."""
        decodes, kv, others = self.decodes, self.kv, self._others
        if not self.aggregate or not decodes.count or decodes.count > self.rules.max_forward_token_num:
            return None
        if self._ending or self._leaving or (others and not self._shut) or (self._outside and not self._full()):
            return None
        steps = decodes.steps_within(decodes.steps_alike(), kv.free_blocks + kv.evictable_blocks)
        if steps < 2:
            return None
        decodes.serve(self._shape)
        return Run(steps, self._shape, deaf=bool(others) or self._full())

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Schedule `steps` decode steps at once."""
        decodes, kv, before = self.decodes, self.kv, self.kv.used_blocks
        need, summed = decodes.taken_over(steps)
        kv.evict(need - kv.free_blocks)
        kv.free_blocks -= need
        self.next_number += steps
        batch = Batch(self.next_number - 1)
        self.processed_number = batch.number - 1
        decodes.serve(batch)
        decodes.steps += steps
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        self._note_ends(batch)
        batch.order_finishing()
        return batch, before * steps + summed, before + need
