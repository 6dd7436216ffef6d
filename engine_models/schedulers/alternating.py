"""Prompts and decodes in turns, never in one forward pass; memory a few tokens ahead, and preemption of the row that lacks it.

Before every step a rule says whether prompts go first: if decodes have gone first often enough while somebody waited, if many
prompt tokens wait, or if fewer than half of the rows run. A *prefill* step takes waiting requests by arrival while their tokens
fit the budget and their blocks are free, and the running rows pause; if nobody can be taken, everybody decodes. Memory is taken
`prefill_interval` tokens ahead, at admission and whenever a decode needs a block.

A prompt above the budget comes alone and in chunks. After a chunk the running rows decode; before the next one a number of
*short* turns, which take prompts that fit the budget, the shortest first, go ahead of it. Among long prompts the fewest chunks go
first, less one for so many seconds waited (or the first come, by another policy).

A decode for which no block is free goes back to the queue *with* its blocks. They, and those of requests that have ended in
this very instant, are taken back when somebody else needs them; who lost them computes everything again.

The executor is one step ahead: a step is chosen when the one before it starts, so a row whose end came to light meanwhile is
computed once more for nothing, and a token in flight of a preempted row is lost. If nothing can be chosen, the loop sleeps.

In front stands a pool of handles: so many requests are let in at once, the others wait outside in order of arrival, and
their age counts from when they come in.

Source: behaviour of LMDeploy 0.18 (`lmdeploy/pytorch/engine/inputs_maker.py`, `engine_loop.py`, `paging/scheduler.py`), checked
step by step against recordings; see docs/engines/lmdeploy.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Literal

from mypy_extensions import mypyc_attr

from engine_models.memory.block_trie import HeldBlocks, TrieBlocks
from engine_models.memory.radix import Content, content_of
from engine_models.parts.adapters import MaskedDecodes, NamingDecodes, used_by
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import INFINITY, Run, Scheduler, State
from engine_models.parts.sequence import Sequence

Kind = Literal["prefill", "long_context_chunk", "last_long_context_chunk", "decode"]

IDLE_SLEEP_S = 0.1
"""How long the loop sleeps when work is there and none can be chosen (datasheet: `main_loop` of LMDeploy, 2026-08)."""


@dataclass(frozen=True)
class AlternatingRules:
    """What such a scheduler may do. Names of knobs are those of LMDeploy.

    Attributes
    ----------
    max_batch_size : rows that may run at once.
    max_prefill_token_num : prompt tokens of a step, and of a chunk.
    prefill_interval : decodes that may go first while somebody waits; tokens for which memory is taken ahead.
    ttft_policy : "size" or "fifo", the order of long prompts.
    ttft_short_turns : short turns before a chunk.
    ttft_aging_s : seconds waited that count as a chunk less [s].
    handle_pool : requests let in at once.
    max_session_len : longest prompt and answer; an answer is cut there. None: whoever sends the requests sees to it.
    """

    max_batch_size: int
    max_prefill_token_num: int
    prefill_interval: int = 16
    ttft_policy: str = "size"
    ttft_short_turns: int = 3
    ttft_aging_s: float = 2.0
    handle_pool: int = 1 << 30
    max_session_len: int | None = None


class Row:
    """A request inside: `tokens` are known, `computed` of them have keys and values (of a decoding row both are stale)."""

    __slots__ = ("arrived_s", "born", "computed", "content", "due", "held", "place", "seq", "state", "tokens")

    def __init__(self, seq: Sequence, content: Content, arrived_s: float) -> None:
        self.seq = seq
        self.content = content
        self.arrived_s = arrived_s  # when it came in
        self.tokens = seq.prompt_tokens
        self.computed = 0
        self.held = HeldBlocks()
        self.state = "waiting"  # waiting, running, stopped
        self.born = -1  # the prefill that made it a decode
        self.place = -1  # among the decodes
        self.due = -1  # decode step for which it needs a block

    @property
    def rest(self) -> int:
        """Tokens to be computed before it decodes."""
        return self.tokens - self.computed


_arrival = attrgetter("arrived_s")


def _size(row: Row) -> tuple[int, float]:
    return row.rest, row.arrived_s


class AlternatingBatch(Batch):
    """A scheduled step. `admitted` are the rows that a prefill makes decodes, or the row of a chunk.

    Of a recorded step besides: whether prompts went `first`, what was taken `back` (row, blocks), blocks `evicted` from
    the trie, the queues after the choice, and the counters.
    """

    __slots__ = (
        "admitted", "back", "decode_count", "evicted", "first", "kind", "running", "stopped",
        "trie_blocks", "trie_evictable", "waiting",
    )  # fmt: skip

    def __init__(self, number: int, kind: Kind) -> None:
        super().__init__(number)
        self.kind: Kind = kind
        self.admitted: list[Row] = []
        self.first = False
        self.back: list[tuple[Sequence, int]] = []
        self.evicted = self.decode_count = self.trie_blocks = self.trie_evictable = 0
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.stopped: list[Sequence] = []


@mypyc_attr(allow_interpreted_subclasses=True)
class AlternatingScheduler(Scheduler):
    """Waiting and running requests of one rank, and the rule that forms the next step, one ahead.

    Parameters
    ----------
    rules : the knobs.
    kv : the blocks.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names. masked : whether steps name the rows that a grammar constrains.
    adapted : whether they name the LoRA adapters that they read, all of which are on the device: nobody waits for one.
    """

    def __init__(
        self,
        rules: AlternatingRules,
        kv: TrieBlocks,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
        masked: bool = False,
        adapted: bool = False,
    ) -> None:
        self.rules = rules
        self.kv = kv
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self._adapted = adapted
        decodes = NamingDecodes if adapted else MaskedDecodes if masked else DecodeSet
        self.decodes: DecodeSet = decodes(1, windows)
        self._outside: deque[Sequence] = deque()
        self._rows: dict[Sequence, Row] = {}
        self._waiting: dict[Row, None] = {}
        self._running: dict[Row, None] = {}
        self._stopped: dict[Row, None] = {}
        self._decoding: dict[Row, None] = {}  # of the decode set, in order; those gone leave when it is used next
        self._gone: list[Row] = []
        self._due: dict[int, list[Row]] = {}  # decode step -> rows that need a block for it
        self.recomputed_tokens = 0  # at the end of a prompt, whatever is found
        self.ahead_tokens = rules.prefill_interval  # for which memory is taken beyond what a row has
        self._ahead_blocks = -(-rules.prefill_interval // kv.block_tokens)
        self._last: AlternatingBatch | None = None  # the latest batch
        self._before: AlternatingBatch | None = None  # the one before it
        self._begun = True  # whether it has started, so that its rows count as decodes
        self._chunked: Row | None = None
        self._decode_count = 0
        self._short_turns = 0
        self._pauses: list[int] = []  # batches in which the decodes sat out
        self._places = 0
        self._now_s = self._asleep_until_s = 0.0
        self._blocked = False  # the first who waits finds no memory until a row ends
        # what was done since the latest batch, in choices without one too
        self._preempted: list[Sequence] = []
        self._back: list[tuple[Sequence, int]] = []
        self._evicted = 0
        self._shape = Batch(-1)

    # -- queues ---------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        if self._outside or len(self._rows) >= self.rules.handle_pool:
            self._outside.append(seq)
        else:
            self._let_in(seq, seq.arrival_s)

    def _let_in(self, seq: Sequence, now_s: float) -> None:
        most = self.rules.max_session_len
        if most is not None:
            seq.final_length = min(seq.final_length, max(most, seq.prompt_tokens + 1))
        row = self._rows[seq] = Row(seq, content_of(seq), now_s)
        self._waiting[row] = None
        self._blocked = False

    def has_work(self) -> bool:
        """Whether anything waits or runs, or is to be cleared away."""
        return bool(self._rows or self._outside)

    def wake_s(self) -> float:
        """When the loop has slept enough."""
        return self._asleep_until_s if self._asleep_until_s else INFINITY

    def state(self) -> State:
        """Requests, and blocks."""
        kv = self.kv
        return len(self._running), len(self._waiting) + len(self._outside), kv.used_blocks, kv.capacity_blocks

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; tokens in flight count as got, as those of other schedulers."""
        if any(batch is not None and seq in batch.finishing for batch in (self._before, self._last)):
            return False
        row = self._rows.pop(seq, None)
        if row is None:
            self._outside.remove(seq)
        else:
            if row in self._decoding and row.state == "running":
                self._note_tokens(row)
                self._gone.append(row)
            if row is self._chunked:
                self._chunked = None
            self._waiting.pop(row, None)
            self._running.pop(row, None)
            row.state = "stopped"
            self._blocked = False
            self._free(row, self._now_s)
        seq.state = "finished"
        return True

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        self._begin()
        for row in self._decoding:
            if row.state == "running":
                self._note_tokens(row)

    def _note_tokens(self, row: Row) -> None:
        """Note the tokens of a decode in all batches so far."""
        if row.born > self.processed_number:
            row.seq.emit(row.born, row.born)
        self._note_answer(row, self.next_number - 1)

    def _note_answer(self, row: Row, last: int) -> None:
        """Note the tokens of a decode in all batches since it joined, up to one."""
        row.seq.emit_between(last, self._pauses)

    # -- memory ---------------------------------------------------------------------------------------------

    def _free(self, row: Row, now_s: float) -> None:
        self.kv.release(row.held, now_s)
        row.computed = 0

    def _reclaim(self, row: Row, tokens: int, now_s: float, holders: Iterable[Row]) -> bool:
        """Whether the blocks for `tokens` tokens of a row are free, after those of `holders`, one by one, and of the trie."""
        kv = self.kv
        need = kv.missing(row.held, tokens, row.computed)
        if kv.free_blocks >= need:
            return True
        for holder in holders:
            if not holder.held.count:
                continue
            self._back.append((holder.seq, holder.held.count))
            self._free(holder, now_s)
            self._blocked = False
            if kv.free_blocks < need:
                self._evicted += kv.evict(need - kv.free_blocks)
            if kv.free_blocks >= need:
                return True
        self._evicted += kv.evict(need - kv.free_blocks)
        return kv.free_blocks >= need

    def _take(self, row: Row, tokens: int, known: int, now_s: float) -> None:
        """Give a row blocks for `tokens` tokens, and let the trie know those of the `known` ones."""
        self.kv.take(row.held, tokens, row.computed, now_s)
        self.kv.enter(row.held, row.content, known)

    # -- the choice -----------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> AlternatingBatch | None:
        """Choose the next step; None if there is nothing to run."""
        self._now_s = now_s
        if self._flying() is not None:
            self._begin()
            batch = self._choose(now_s)
            self._end_sessions(now_s)
            return batch
        self._begin()
        if now_s < self._asleep_until_s:
            return None
        self._asleep_until_s = 0.0
        if not self._waiting and self._chunked is None:
            self._end_sessions(now_s)
            if not self._waiting:
                return None
        batch = self._choose(now_s)
        self._end_sessions(now_s)
        if batch is None:
            self._asleep_until_s = now_s + IDLE_SLEEP_S
        return batch

    def _flying(self) -> AlternatingBatch | None:
        """The batch whose results are not known yet."""
        last = self._last
        return last if last is not None and last.number > self.processed_number else None

    def _begin(self) -> None:
        """The latest batch starts: its rows go on as decodes, or their chunk counts as computed."""
        last = self._last
        if self._begun or last is None:
            return
        self._begun = True
        if last.kind == "decode":
            return
        if last.kind == "long_context_chunk":
            row = last.admitted[0]
            if row is self._chunked:
                row.computed += self.rules.max_prefill_token_num
            return
        for row in last.admitted:
            if row.state == "running":
                self._join(row)

    def _end_sessions(self, now_s: float) -> None:
        """Those that have ended leave, and others may come in."""
        for row in self._stopped:
            self._free(row, now_s)
            del self._rows[row.seq]
        self._stopped.clear()
        while self._outside and len(self._rows) < self.rules.handle_pool:
            self._let_in(self._outside.popleft(), now_s)

    def _prompts_first(self) -> bool:
        last_chunk = self._last_chunk_is_due()
        if not self._waiting and not last_chunk:
            self._decode_count = 0
            return False
        if last_chunk or self._turns_over():
            return True
        self._decode_count += 1
        return False

    def _turns_over(self) -> bool:
        """Whether those who wait go first."""
        rules = self.rules
        if self._decode_count >= rules.prefill_interval or 2 * len(self._running) < rules.max_batch_size:
            return True
        waiting = 0
        for row in self._waiting:
            waiting += row.rest
            if waiting >= rules.max_prefill_token_num:
                return True
        return False

    def _is_long(self, row: Row) -> bool:
        return row.rest > self.rules.max_prefill_token_num

    def _last_chunk_is_due(self) -> bool:
        return self._chunked is not None and not self._is_long(self._chunked)

    def _long_is_due(self) -> bool:
        """Whether enough short turns have gone ahead of the next chunk."""
        return self._short_turns >= self.rules.ttft_short_turns

    def _choose(self, now_s: float) -> AlternatingBatch | None:
        first = self._prompts_first()
        batch: AlternatingBatch | None = None
        last, chunked = self._last, self._chunked
        deferred = tried_long = tried_short = stuck = False
        self._blocked = False
        if chunked is not None:
            if not self._is_long(chunked):
                deferred = bool(self._decoding) and not first
            else:
                deferred = last is not None and last.kind == "long_context_chunk"
            if not deferred:
                if self._is_long(chunked) and self._waiting and not self._long_is_due():
                    tried_short = True
                    batch = self._short_turn(now_s)
                if batch is None:
                    tried_long = True
                    batch = self._chunk(chunked, now_s)
                    stuck = batch is None
        elif first:
            long_waits = any(map(self._is_long, self._waiting))
            if long_waits and not self._long_is_due():
                tried_short = True
                batch = self._short_turn(now_s)
            if batch is None:
                tried_long = long_waits
                batch = self._prefill(now_s, longs=True, long_turn=long_waits)
        if batch is None and tried_long and not stuck and not tried_short and self._waiting:
            tried_short = True
            batch = self._short_turn(now_s)
        if batch is None and self._decoding:
            batch = self._decode(now_s)
        if batch is None and deferred and chunked is not None:
            if not self._long_is_due() and self._waiting:
                batch = self._short_turn(now_s)
            if batch is None:
                batch = self._chunk(chunked, now_s)
        if batch is None:
            return None
        if batch.kind != "decode":
            self._decode_count = 0
            self._pauses.append(batch.number)
        batch.first = first
        batch.free_blocks = self.kv.free_blocks
        batch.preempted, self._preempted = tuple(self._preempted), []
        if self.record_rows:
            self._record(batch)
        self._back = []
        self._evicted = 0
        self._before, self._last, self._begun = self._last, batch, False
        self.next_number += 1
        return batch

    def _record(self, batch: AlternatingBatch) -> None:
        batch.back, batch.evicted, batch.decode_count = self._back, self._evicted, self._decode_count
        batch.trie_blocks, batch.trie_evictable = self.kv.trie_blocks, self.kv.evictable_blocks
        batch.running = [row.seq for row in self._running]
        batch.waiting = [row.seq for row in self._waiting]
        batch.stopped = [row.seq for row in self._stopped]

    # -- prompts --------------------------------------------------------------------------------------------

    def _short_turn(self, now_s: float) -> AlternatingBatch | None:
        batch = self._prefill(now_s, longs=False, long_turn=False)
        self._short_turns += batch is not None
        return batch

    def _in_turn(self, now_s: float, *, longs: bool, long_turn: bool) -> list[Row]:
        """Those who wait, in the order in which they are tried."""
        waiting = sorted(self._waiting, key=_arrival)
        if longs and not long_turn:
            return waiting
        short = sorted((row for row in waiting if not self._is_long(row)), key=_size)
        long = [row for row in waiting if self._is_long(row)]
        if not long_turn:
            return short + long
        if self.rules.ttft_policy == "size":
            long.sort(key=lambda row: self._rank(row, now_s))
        return long[:1] + short + long[1:]

    def _rank(self, row: Row, now_s: float) -> tuple[int, int, float]:
        chunks = -(-row.rest // self.rules.max_prefill_token_num)
        credit = int(max(0.0, now_s - row.arrived_s) // self.rules.ttft_aging_s)
        return chunks - credit, chunks, row.arrived_s

    def _prefill(self, now_s: float, *, longs: bool, long_turn: bool) -> AlternatingBatch | None:
        """Admit who waits, and form a step of them; None if nobody can be admitted."""
        most = self.rules.max_batch_size - len(self._running)
        if most <= 0 or not self._waiting:
            return None
        order = self._in_turn(now_s, longs=longs, long_turn=long_turn)
        skipped: list[Row] = []
        taken: list[tuple[Row, int]] = []
        used = at = 0
        while at < len(order) and len(taken) < most:
            row = order[at]
            at += 1
            found = self._admit(row, now_s, used, bool(taken), longs, skipped, order, at)
            if found == _SKIP:
                skipped.append(row)
                continue
            if found == _STOP:
                break
            taken.append((row, found))
            used += min(row.rest, self.rules.max_prefill_token_num)
            del self._waiting[row]
            self._running[row] = None
            row.state = "running"
            if self._is_long(row):
                break
        if not taken:
            kv = self.kv
            plain = longs and not long_turn and not kv.prefix_caching and not kv.window_tokens
            self._blocked = plain
            return None
        row = taken[0][0]
        if len(taken) == 1 and self._is_long(row):
            self._chunked, self._short_turns = row, 0
            batch = self._serve("long_context_chunk", [row], self.rules.max_prefill_token_num)
        else:
            batch = self._serve("prefill", [row for row, _ in taken])
        for row, found in taken:
            seq, size = row.seq, self.kv.block_tokens
            if found:
                batch.hits += ((seq, found * size),)
            if seq.first_scheduled_s < 0:
                seq.first_scheduled_s = now_s
                seq.first_hit_tokens = found * size
                self.queried_tokens += row.tokens
                self.hit_tokens += found * size
        return batch

    def _serve(self, kind: Kind, rows: list[Row], most: int | None = None) -> AlternatingBatch:
        """A step that computes what rows lack, `most` tokens of each."""
        batch = AlternatingBatch(self.next_number, kind)
        batch.admitted = rows
        batch.spans = self.decodes.no_spans
        if self.record_rows:
            batch.rows = []
        for row in rows:
            tokens = row.rest if most is None else most
            batch.serve(tokens, row.computed, decodes=False)
            if batch.rows is not None:
                batch.rows.append((row.seq, tokens, row.computed))
            if kind != "long_context_chunk":
                row.born = batch.number
                batch.masked_rows += row.seq.masked
                if row.tokens + 1 >= row.seq.final_length:
                    batch.finishing.append(row.seq)
        if self._adapted:
            batch.adapters = used_by((row.seq, row.rest if most is None else most) for row in rows)
        if kind != "long_context_chunk":
            self._drop_gone()
        return batch

    def _admit(
        self,
        row: Row,
        now_s: float,
        used: int,
        others: bool,
        longs: bool,
        skipped: list[Row],
        order: list[Row],
        at: int,
    ) -> int:
        """Give a request its blocks; return how many it found, or why it is not admitted."""
        kv, limit = self.kv, self.rules.max_prefill_token_num
        caching = kv.prefix_caching
        over = _STOP if longs else _SKIP
        found = -1  # not looked for
        refusal = _STOP
        if self._is_long(row) and not longs:
            if not caching:
                return _SKIP
            found, refusal = self._find(row, now_s), _SKIP
            if self._is_long(row):
                return self._undo(row, now_s, _SKIP)
        if others and used + min(row.rest, limit) > limit:
            if found >= 0 or not caching:
                return self._undo(row, now_s, over) if caching else over
            found, refusal = self._find(row, now_s), over
            if used + min(row.rest, limit) > limit:
                return self._undo(row, now_s, over)
        if caching and found < 0:
            found = self._find(row, now_s)
        if self._is_long(row):
            tokens = known = row.computed + limit
        else:
            tokens, known = row.tokens + self.ahead_tokens, row.tokens
        # the queue is walked only if blocks lack
        if kv.free_blocks < kv.missing(row.held, tokens, row.computed):
            holders = chain(reversed(self._stopped), reversed(order[at:]), reversed(skipped))
            if not self._reclaim(row, tokens, now_s, holders):
                return self._undo(row, now_s, refusal) if caching else _STOP
        self._take(row, tokens, known, now_s)
        return max(found, 0)

    def _find(self, row: Row, now_s: float) -> int:
        found = self.kv.find(row.held, row.content, row.tokens - self.recomputed_tokens, now_s)
        if found:
            row.computed = len(row.held.path) * self.kv.block_tokens
        return found

    def _undo(self, row: Row, now_s: float, refusal: int) -> int:
        """Forget what a request found, and what it still held."""
        self._free(row, now_s)
        return refusal

    def _chunk(self, row: Row, now_s: float) -> AlternatingBatch | None:
        """The next chunk of a long prompt; None if its blocks cannot be had."""
        limit = self.rules.max_prefill_token_num
        if self._is_long(row):
            tokens = known = row.computed + limit
        else:
            tokens, known = row.tokens + self.ahead_tokens, row.tokens
        if not self._reclaim(row, tokens, now_s, chain(self._stopped, self._waiting)):
            return None
        self._take(row, tokens, known, now_s)
        self._short_turns = 0
        if self._is_long(row):
            return self._serve("long_context_chunk", [row], limit)
        self._chunked = None
        return self._serve("last_long_context_chunk", [row])

    # -- decodes --------------------------------------------------------------------------------------------

    def _join(self, row: Row) -> None:
        """A row whose prompt the batch that starts computes goes on as a decode."""
        seq, decodes = row.seq, self.decodes
        row.place = seq.order = self._places
        self._places += 1
        seq.length = row.tokens + 1
        decodes.join(seq)
        self._decoding[row] = None
        self._note_due(row)

    def _note_due(self, row: Row) -> None:
        """Note the decode step for which a row needs a block, if its token before it is then in flight."""
        held = row.held
        row.due = (held.count + held.dropped) * self.kv.block_tokens + 1 - row.seq.offset
        self._due.setdefault(row.due, []).append(row)

    def _drop_gone(self) -> None:
        """Rows that have ended or were preempted leave the decode set."""
        for row in self._gone:
            if row in self._decoding:
                del self._decoding[row]
                state = row.seq.state
                self.decodes.leave(row.seq)
                row.seq.state = "finished" if state == "finished" else "waiting"
        self._gone.clear()

    def _in_flight(self, row: Row) -> bool:
        """Whether the batch in flight yields a token of a decoding row."""
        flying = self._flying()
        return flying is not None and (flying.kind == "decode" or row.born == flying.number)

    def _needy(self) -> list[Row]:
        """Rows that need a block for the next decode, the last first."""
        step, flying = self.decodes.steps, self._flying()
        rows = [
            row for row in dict.fromkeys(self._due.pop(step, ())) if row.due == step and row in self._decoding
        ]
        if (
            flying is None or flying.kind != "decode"
        ):  # of some rows the token before is known, and they look one further
            later = self._due.pop(step + 1, None)
            for row in later or ():
                if row.due == step + 1 and row in self._decoding:
                    if self._in_flight(row):
                        self._due.setdefault(step + 1, []).append(row)
                    else:
                        rows.append(row)
        rows.sort(key=lambda row: -row.place)
        return rows

    def _decode(self, now_s: float) -> AlternatingBatch | None:
        """A step of all decodes that find memory; None if none does."""
        self._drop_gone()
        decodes = self.decodes
        self._hold_memory(now_s)
        self._drop_gone()
        if not decodes.count:
            return None
        batch = AlternatingBatch(self.next_number, "decode")
        if self.record_rows:
            batch.rows = [(row.seq, 1, decodes.length(row.seq) - 1) for row in self._decoding]
        decodes.serve(batch)
        decodes.steps += 1
        batch.finishing = decodes.pop_ended()
        batch.order_finishing()
        return batch

    def _hold_memory(self, now_s: float) -> None:
        """Give the decodes the blocks that they need for the next step; who finds none is preempted."""
        decodes, ahead = self.decodes, self.ahead_tokens
        for row in self._needy():
            row.tokens = decodes.length(row.seq) - self._in_flight(row)
            row.computed = row.tokens - 1 if row.born != self._flying_number() else row.computed
            if self._reclaim(row, row.tokens + ahead, now_s, chain(self._stopped, self._waiting)):
                self._take(row, row.tokens + ahead, row.tokens, now_s)
                self._note_due(row)
            else:
                self._preempt(row)

    def _flying_number(self) -> int:
        flying = self._flying()
        return -2 if flying is None else flying.number

    def _preempt(self, row: Row) -> None:
        """Send a decode back to the queue with its blocks; its token in flight is lost."""
        self._drop_token(row)
        del self._running[row]
        self._waiting[row] = None
        row.state = "waiting"
        self._blocked = False  # its blocks can be taken
        self._gone.append(row)
        row.seq.preemptions += 1
        self._preempted.append(row.seq)

    def _drop_token(self, row: Row) -> None:
        """Note the tokens that a decode has got; one in flight is lost."""
        seq, flying, last = row.seq, self._flying(), self.next_number - 1
        if flying is not None and self._in_flight(row):
            last -= 1
            if seq in flying.finishing:
                flying.finishing.remove(seq)
            if row.born == flying.number:
                return
        seq.emit_between(last, self._pauses)

    # -- results --------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a step; return the requests that ended with it."""
        assert isinstance(batch, AlternatingBatch)
        if batch is self._last:
            self._begin()
        self.processed_number = number = batch.number
        if batch.kind != "long_context_chunk":
            for row in batch.admitted:
                if row.born == number and row.state == "running":
                    row.seq.emit(number, number)
        for seq in batch.finishing:
            row = self._rows[seq]
            if batch.kind == "decode":
                self._note_answer(row, number)
            row.state = "stopped"
            seq.state = "finished"
            del self._running[row]
            self._stopped[row] = None
            self._gone.append(row)
            self._blocked = False
        return batch.finishing

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps in which all rows decode, nobody is admitted and memory suffices."""
        flying, decodes, kv = self._flying(), self.decodes, self.kv
        if not self.aggregate or flying is None or flying.kind != "decode" or flying.finishing:
            return None
        if self._chunked is not None or self._stopped or self._gone or not decodes.count:
            return None
        steps = min(decodes.steps_alike(), self._ahead_blocks * kv.block_tokens)
        if self._waiting and not self._blocked and len(self._running) < self.rules.max_batch_size:
            if self._turns_over():
                return None
            steps = min(steps, self.rules.prefill_interval - self._decode_count)
        free, first = kv.free_blocks, decodes.steps
        alone = kv.prefix_caching or kv.window_tokens > 0  # steps that take blocks are formed one by one
        for step in range(first, first + steps) if steps > 1 else ():
            due = self._due.get(step)
            if due is not None:
                free -= self._ahead_blocks * len(due)
                if alone or free < 0:
                    steps = step - first
                    break
        if steps < 2:
            return None
        decodes.serve(self._shape)
        return Run(steps, self._shape, deaf=len(self._rows) >= self.rules.handle_pool)

    def take(self, steps: int) -> tuple[AlternatingBatch, int, int]:
        """Choose `steps` decode steps at once."""
        decodes, kv, ahead = self.decodes, self.kv, self.rules.prefill_interval
        if not self._waiting:
            self._decode_count = 0
        elif not self._turns_over():
            self._decode_count = min(self._decode_count + steps, ahead)
        held = 0
        for step in range(decodes.steps, decodes.steps + steps):
            for row in self._due.pop(step, ()):
                if row.due == step and row in self._decoding:
                    row.tokens = row.seq.offset + step - 1
                    row.computed = row.tokens - 1
                    kv.take(row.held, row.tokens + ahead, row.computed, self._now_s)
                    self._note_due(row)
            held += kv.used_blocks
        self.next_number += steps
        self.processed_number = self.next_number - 2
        batch = AlternatingBatch(self.next_number - 1, "decode")
        decodes.steps += steps
        batch.tokens = batch.decode_rows = batch.decode_tokens = decodes.count
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        batch.finishing = decodes.pop_ended()
        batch.order_finishing()
        self._before, self._last, self._begun = None, batch, True
        return batch, held, kv.used_blocks


_SKIP, _STOP = -2, -3
"""Why a request is not admitted: the next one is tried, or none."""
