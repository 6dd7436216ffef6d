"""One pass over all who could run: each is served if budget and memory allow; others are passed over, later ones may still fit.

Decodes come first, then prompts that are being computed, then those who wait (or prompts first, by another order). A prompt is
cut only by the token budget, and takes blocks only for the tokens of this step. Below a margin of free memory cached blocks are
dropped, and if that is not enough nobody is admitted while others run.

A running row that finds no block is *starved*. When somebody starved, all cached blocks are dropped; while that does not let all
starved rows in, the last of them gives its blocks back and waits again, to compute everything anew, or with its memory copied to
the host. Nobody new is admitted then until a row ends.

Steps in which every row decodes one token within a length limit go another, quicker way (`fast_path`). Others read the cache
through an index of fixed size: a row that does not fit what is left of it is passed over.

With one batch ahead a row whose last token is in flight is computed once more for nothing, and the token in flight of a row that
loses its memory is lost.

Source: behaviour of transformers 5.24 (`generation/continuous_batching`: `scheduler.py`, `offloading_manager.py`,
`continuous_api.py`), checked step by step against recordings; see docs/engines/transformers.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain, zip_longest
from operator import attrgetter

from engine_models.memory.sector_kv import HeldSectorBlocks, SectorKV, SectorPool
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import INFINITY, Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass

IDLE_WAIT_S = 0.1
"""How long the loop waits when work is there and none can be chosen (datasheet: `_generation_loop_body` of transformers 5.24)."""


@dataclass(frozen=True)
class FirstFitRules:
    """What such a scheduler may do. Names of knobs are those of transformers.

    Attributes
    ----------
    max_batch_tokens : token budget of a step.
    max_requests_per_batch : rows of a step.
    max_tokens_read : cached tokens that a step off the fast path reads.
    max_decode_fast_path_length : cached tokens up to which a row may take the fast path, 0 where there is none.
    safety_margin_share : free share of the memory below which nobody is admitted beside others.
    prefill_first : prompts that are being computed go before decodes.
    read_window_tokens : cached tokens of a row that count as read at most, None for all.
    pads_to_powers, pads_to_tokens : tokens to which steps on the fast path (powers of two up to this) and off it (multiples) are
        padded, 0 where they are not.
    """

    max_batch_tokens: int
    max_requests_per_batch: int
    max_tokens_read: int
    max_decode_fast_path_length: int
    safety_margin_share: float
    prefill_first: bool = False
    read_window_tokens: int | None = None
    pads_to_powers: int = 0
    pads_to_tokens: int = 0


class _Row:
    """A request inside: of `known` tokens `position` have keys and values (of a row in the decode set both are stale).

    `initial` are the tokens to compute before it decodes, `place` is its turn among the active rows.
    """

    __slots__ = ("due", "held", "initial", "known", "on_host", "place", "position", "seq", "since", "state")

    def __init__(self, seq: Sequence, held: HeldSectorBlocks, initial: int) -> None:
        self.seq = seq
        self.held = held
        self.initial = self.known = initial
        self.position = 0
        self.state = "waiting"  # waiting, prefilling, decoding, gone
        self.place = -1
        self.since = -1  # first batch in the decode set, -1 outside
        self.due = -1  # step of the decode set before which it needs a block
        self.on_host: list[list[int]] | None = None

    @property
    def rest(self) -> int:
        """Tokens to be computed next."""
        return max(self.initial - self.position, 1)


class FirstFitBatch(Batch):
    """A scheduled step. `singles` are rows outside the decode set: the blocks each completes, whether it yields a token.

    `completing` are rows of the decode set that complete a block. The other fields are those of a recorded step.
    """

    __slots__ = (
        "active", "after", "cached", "completing", "dropped", "fast_path", "free", "free_sectors", "idle", "singles",
        "starved", "stopped", "swapped", "swapped_in", "waiting",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.singles: list[tuple[_Row, int, bool]] = []
        self.completing: list[_Row] = []
        self.fast_path = self.stopped = self.idle = False
        self.active: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.starved: list[Sequence] = []
        self.swapped: list[Sequence] = []
        self.swapped_in: list[Sequence] = []
        self.dropped = self.free_sectors = self.cached = 0
        self.free: list[int] = []
        self.after: tuple[list[int], int] = ([], 0)

    def changes_others(self) -> bool:
        """Whether its results may end a request, or let rows share a block."""
        rows = chain(self.completing, (row for row, complete, _ in self.singles if complete))
        return bool(self.finishing) or any(row.held.registered < len(row.held.keys) for row in rows)


_place = attrgetter("place")


class FirstFitScheduler(Scheduler):
    """Waiting and running requests of one rank, and the pass that forms the next step.

    Parameters
    ----------
    rules : the knobs.
    kv : the blocks.
    host : blocks of host memory, None for none.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names.
    """

    def __init__(
        self,
        rules: FirstFitRules,
        kv: SectorKV,
        host: SectorPool | None = None,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.kv = kv
        self.host = host
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.decodes = DecodeSet(1, windows)
        self._rows: dict[Sequence, _Row] = {}
        self._waiting: dict[_Row, None] = {}
        self._active: dict[_Row, None] = {}
        self._prefilling: dict[
            _Row, None
        ] = {}  # active rows whose prompt is being computed, in order of activation
        self._apart: dict[_Row, None] = {}  # decoding rows that are not in the decode set
        self._due: dict[int, list[_Row]] = {}  # decode step -> rows that need a block for it
        self._longest: list[tuple[int, int, _Row]] = []
        self._starved: list[tuple[_Row, int]] = []
        self._stopped = False  # nobody new until a row ends
        self._last: FirstFitBatch | None = None
        self._before: FirstFitBatch | None = None  # the one before it
        self._places = 0
        self._asleep_until_s = 0.0
        self._now_s = 0.0
        self._shape = Batch(-1)
        self._notes = FirstFitBatch(-1)  # what was done since the latest batch

    # -- queues ---------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        row = self._rows[seq] = _Row(seq, self.kv.hold_nothing(seq), seq.prompt_tokens)
        self._waiting[row] = None

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._rows)

    def wake_s(self) -> float:
        """When the loop has waited enough."""
        return self._asleep_until_s if self._asleep_until_s else INFINITY

    def state(self) -> State:
        """Requests, and sectors."""
        return len(self._active), len(self._waiting), self.kv.used_sectors, self.kv.pool.sectors

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; tokens in flight count as got."""
        for batch in (self._before, self._last):
            if batch is not None and batch.number > self.processed_number and seq in batch.finishing:
                return False
        row = self._rows.pop(seq)
        if row.since >= 0:
            self._leave_set(row)
        self._deactivate(row, cache=True)
        self._waiting.pop(row, None)
        if row.on_host is not None:
            self._from_host(row)
        row.state, seq.state = "gone", "finished"
        return True

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for row in self._active:
            if row.since >= 0:
                self._note_tokens(row, self.next_number - 1)

    # -- the decode set -------------------------------------------------------------------------------------

    def _flying(self) -> bool:
        """Whether the latest batch's results are not known yet."""
        return self.next_number - 1 > self.processed_number

    def _join_set(self) -> None:
        """Rows that decode go on together."""
        for row in self._apart:
            seq = row.seq
            seq.length = row.position + 1
            self.decodes.join(seq)
            row.since = self.next_number
            size = self.kv.block_tokens
            self._note_due(row, self.decodes.steps - row.position % -size)
            if self.rules.max_decode_fast_path_length:
                heapq.heappush(self._longest, (-seq.offset, row.place, row))
        if len(self._longest) > 2 * self.decodes.count + 64:
            self._longest = [
                entry for entry in self._longest if entry[2].since >= 0 and entry[2].seq.offset == -entry[0]
            ]
            heapq.heapify(self._longest)
        self._apart.clear()

    def _note_due(self, row: _Row, step: int) -> None:
        row.due = step
        self._due.setdefault(step, []).append(row)

    def _due_rows(self, step: int) -> list[_Row]:
        """Rows of the decode set that begin a block with a step, by turn."""
        rows = dict.fromkeys(self._due.get(step, ()))  # who left and came back can be there twice
        return sorted((row for row in rows if row.due == step and row.since >= 0), key=_place)

    def _leave_set(self, row: _Row) -> None:
        """Bring a row's own counts up to date, and note the tokens it has got; one in flight is noted when it is known."""
        seq = row.seq
        self.decodes.leave(seq)
        row.position = seq.length - 1
        last = self.next_number - 1
        if row.since <= last:
            row.known = seq.length
            if self._flying():
                assert self._last is not None
                self._last.singles.append((row, 0, True))
                row.known -= 1
                last -= 1
        self._note_tokens(row, last)
        row.since = -1

    def _note_tokens(self, row: _Row, last: int) -> None:
        if row.since <= last:
            row.seq.emit(row.since, last)

    def _all_short(self) -> bool:
        """Whether all rows of the decode set may take the fast path with the next step."""
        most, longest = self.rules.max_decode_fast_path_length, self._longest
        while longest:
            offset, _, row = longest[0]
            if row.since >= 0 and row.seq.offset == -offset:
                return self.decodes.length(row.seq) - 1 < most
            heapq.heappop(longest)
        return most > 0

    # -- the choice -----------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> FirstFitBatch | None:
        """Choose the next step; None if there is nothing to run."""
        self._now_s = now_s
        self._asleep_until_s = 0.0
        if not self._rows:
            return None
        self._join_set()
        while True:
            batch, failed = self._pass(now_s)
            if batch is not None or not failed:
                break
            if not self._relieve():
                raise RuntimeError("no request fits, and none can give memory back")
        if batch is None:
            self._asleep_until_s = now_s + IDLE_WAIT_S
            return None
        if self._starved:
            self._relieve()
        self._conclude(batch)
        return batch

    def _conclude(self, batch: FirstFitBatch) -> None:
        notes, self._notes = self._notes, FirstFitBatch(-1)
        for row, _, _ in batch.singles:
            if row.on_host is not None:
                batch.swapped_in.append(row.seq)
                self._from_host(row)
        batch.hits, batch.preempted = notes.hits, notes.preempted
        batch.swapped, batch.dropped = notes.swapped, notes.dropped
        kv = self.kv
        batch.free_blocks = kv.pool.free_blocks(0)
        if self.record_rows:
            batch.active = [row.seq for row in self._active]
            batch.waiting = [row.seq for row in self._waiting]
            batch.starved = [row.seq for row, _ in self._starved]
            batch.stopped = self._stopped
            batch.free_sectors, batch.cached = len(kv.pool.free_sectors), len(kv.cached)
            batch.free = [kv.pool.free_blocks(group) for group in range(len(kv.groups))]
        batch.padded_tokens = self._padded(batch.tokens, fast=batch.fast_path)
        batch.gathers = not batch.fast_path and (
            batch.decode_rows > 0 or any(prior for _, prior in batch.prefill)
        )
        self._before, self._last = self._last, batch
        self.next_number += 1

    def _padded(self, tokens: int, *, fast: bool) -> int:
        rules = self.rules
        if fast:
            return min(1 << (tokens - 1).bit_length(), rules.pads_to_powers) if rules.pads_to_powers else 0
        step = rules.pads_to_tokens
        return min(-(-tokens // step) * step, max(rules.max_batch_tokens, tokens)) if step else 0

    def _in_margin(self) -> bool:
        """Whether enough memory is free, after cached blocks have been dropped if it is not."""
        kv, margin = self.kv, self.rules.safety_margin_share
        kv.pool.gather()
        if kv.free_share() >= margin:
            return True
        dropped = kv.drop_cached()
        if not dropped:
            return False
        self._notes.dropped += dropped
        kv.pool.gather()
        return kv.free_share() >= margin

    def _pass(self, now_s: float) -> tuple[FirstFitBatch | None, bool]:
        """Form a step of who fits; None if nobody does, and whether somebody found no block."""
        rules, kv = self.rules, self.kv
        self._starved = []
        failed = False
        batch = FirstFitBatch(self.next_number)
        batch.spans = self.decodes.no_spans
        if self.record_rows:
            batch.rows = []
        token_budget, rows_left = rules.max_batch_tokens, rules.max_requests_per_batch
        read_budget, fast = rules.max_tokens_read, rules.max_decode_fast_path_length > 0
        in_margin = self._in_margin()
        prompts_lead = rules.prefill_first and bool(self._prefilling)
        stays = self.decodes.count  # rows of the set that are served
        whole = not prompts_lead and stays > 0 and self._serve_set(batch)
        if whole:
            token_budget -= stays
            rows_left -= stays
            read_budget -= self._read_exactly()
            fast = fast and self._all_short()
        taken: list[_Row] = []
        done = whole and (token_budget == 0 or rows_left <= 0 or (read_budget <= 0 and not fast))
        for row in () if done else self._candidates(with_decodes=not whole):
            decodes = row.state == "decoding"
            if not in_margin and not decodes and (taken or whole):
                break
            if row.state == "waiting" and row.on_host is None:
                self._look_up(row)
            position = row.position if row.since < 0 else self.decodes.length(row.seq) - 1
            need = 1 if row.since >= 0 else row.rest
            tokens = min(need, token_budget)
            eligible = tokens == 1 and position < rules.max_decode_fast_path_length
            reads = position if rules.read_window_tokens is None else min(position, rules.read_window_tokens)
            if not (fast and eligible) and read_budget < reads:
                continue
            if not kv.take(row.held, position + tokens):
                failed = True
                if row in self._active:
                    self._starved.append((row, tokens))
                continue
            taken.append(row)
            fast = fast and eligible
            token_budget -= tokens
            read_budget -= reads
            rows_left -= 1
            if row.since < 0:
                self._serve(batch, row, tokens, need, now_s)
            elif batch.rows is not None:
                batch.rows.append((row.seq, 1, position))
            if token_budget == 0 or rows_left <= 0 or (read_budget <= 0 and not fast):
                break
        if stays and not whole:
            self._drop_unserved(taken)
        if not taken and not whole:
            return None, failed
        if self.decodes.count:
            ended = self._step_set(batch)
            batch.finishing = ended + batch.finishing
            if not whole:
                turn = {row.seq: number for number, row in enumerate(taken)}
                batch.finishing.sort(key=turn.__getitem__)
        batch.fast_path = fast
        return batch, failed

    def _candidates(self, *, with_decodes: bool) -> Iterator[_Row]:
        """Who could run, in turn."""
        prefilling = list(self._prefilling)
        if self.rules.prefill_first:
            yield from prefilling
        if with_decodes:
            yield from [row for row in self._active if row.state == "decoding" and row not in prefilling]
        if not self.rules.prefill_first:
            yield from prefilling
        if not self._stopped:
            yield from self._in_turn()

    def _in_turn(self) -> list[_Row]:
        """Those who wait, one whose memory is on the host and one who has none by turns."""
        if self.host is None:
            return list(self._waiting)
        waiting = list(self._waiting)
        swapped = [row for row in waiting if row.on_host is not None]
        if not swapped:
            return waiting
        fresh = [row for row in waiting if row.on_host is None]
        return [row for pair in zip_longest(swapped, fresh) for row in pair if row is not None]

    def _serve_set(self, batch: FirstFitBatch) -> bool:
        """Serve the whole decode set, if no row of it can be passed over; False if one might be."""
        decodes, rules, kv = self.decodes, self.rules, self.kv
        count = decodes.count
        if self._apart or count > rules.max_batch_tokens or count > rules.max_requests_per_batch:
            return False
        if self._read_of_set() >= rules.max_tokens_read and not self._all_short():
            return False
        due = self._due_rows(decodes.steps)
        if due:
            needs = [kv.missing(row.held, decodes.length(row.seq)) for row in due]
            if kv.storable(needs) < len(needs):
                return False
            for row in due:
                kv.take(row.held, decodes.length(row.seq))
        if batch.rows is not None:
            batch.rows += [
                (row.seq, 1, decodes.length(row.seq) - 1) for row in self._active if row.since >= 0
            ]
        return True

    def _read_of_set(self) -> int:
        """Cached tokens that the decode set reads with its next step, or more."""
        decodes, window = self.decodes, self.rules.read_window_tokens
        return decodes.kv_tokens() - decodes.count if window is None else window * decodes.count

    def _read_exactly(self) -> int:
        """Cached tokens that the decode set reads with its next step."""
        window = self.rules.read_window_tokens
        if window is None:
            return self._read_of_set()
        return sum(min(self.decodes.length(row.seq) - 1, window) for row in self._active if row.since >= 0)

    def _drop_unserved(self, taken: list[_Row]) -> None:
        """Rows of the decode set that were passed over go apart."""
        served = set(taken)
        for row in [row for row in self._active if row.since >= 0 and row not in served]:
            self._leave_set(row)
            self._apart[row] = None

    def _step_set(self, batch: FirstFitBatch) -> list[Sequence]:
        """Enter the decode set, whose rows all have their blocks, in a batch; return who gets the last token by it."""
        decodes = self.decodes
        aside = Batch(-1)
        decodes.serve(aside)
        batch.tokens += aside.tokens
        batch.decode_rows += aside.decode_rows
        batch.decode_tokens += aside.decode_tokens
        batch.decode_kv_tokens += aside.decode_kv_tokens
        if aside.spans:
            batch.spans = tuple(
                [
                    a._replace(tokens=a.tokens + b.tokens, grows=a.grows + b.grows)
                    for a, b in zip(aside.spans, batch.spans, strict=True)
                ]
            )
        due = self._due_rows(decodes.steps)
        self._due.pop(decodes.steps, None)
        for row in due:
            self._note_due(row, decodes.steps + self.kv.block_tokens)
        decodes.steps += 1
        if self.kv.sharing:
            batch.completing = self._due_rows(decodes.steps)
        ended = decodes.pop_ended()
        ended.sort(key=lambda seq: seq.order)
        return ended

    def _look_up(self, row: _Row) -> None:
        """Let a waiting request take over the blocks that are known of its tokens; then it is active."""
        found = self.kv.find(row.held, row.initial)
        if found:
            row.position = found
            row.state = "prefilling"
            self._activate(row)
            self._prefilling[row] = None
            self._notes.hits += ((row.seq, found),)

    def _activate(self, row: _Row) -> None:
        self._waiting.pop(row, None)
        self._active[row] = None
        row.place = row.seq.order = self._places
        self._places += 1

    def _serve(self, batch: FirstFitBatch, row: _Row, tokens: int, need: int, now_s: float) -> None:
        """Enter a row outside the decode set in a batch."""
        seq, position, size = row.seq, row.position, self.kv.block_tokens
        if row.state == "waiting":
            self._activate(row)
        if seq.first_scheduled_s < 0:
            seq.first_scheduled_s = now_s
            seq.first_hit_tokens = position
            self.hit_tokens += position
            self.queried_tokens += row.initial
        batch.serve(tokens, position, decodes=tokens == 1 and position >= seq.prompt_tokens)
        if batch.rows is not None:
            batch.rows.append((seq, tokens, position))
        complete = 0
        if self.kv.sharing:
            complete = (position % size + tokens) // size
            if row.on_host is not None:
                complete += position // size
        yields = tokens == need
        batch.singles.append((row, complete, yields))
        row.position += tokens
        if not yields:
            row.state = "prefilling"
            self._prefilling[row] = None
            return
        self._prefilling.pop(row, None)
        row.state = "decoding"
        self._apart[row] = None
        if row.position + 1 == seq.final_length:  # beyond it the last token is in flight
            batch.finishing.append(seq)

    # -- memory ---------------------------------------------------------------------------------------------

    def _relieve(self) -> bool:
        """Drop what is cached, then take memory from starved rows, the last first; False if nothing was freed."""
        kv, starved = self.kv, self._starved
        dropped = kv.drop_cached()
        self._notes.dropped += dropped
        if not starved:
            return dropped > 0
        needs = [kv.missing(row.held, row.position + tokens) for row, tokens in starved]
        left = len(self._active)
        victims: list[_Row] = []
        while starved and left > 1:
            if kv.storable(needs) == len(starved):
                break
            row, _ = starved.pop()
            needs.pop()
            left -= 1
            victims.append(row)
            counts = [len(table) for table in row.held.tables]
            kv.release(row.held, cache=False)
            row.on_host = self._host_blocks(counts)
        for row in reversed(victims):
            self._set_back(row)
        if victims:
            self._stopped = True
        return bool(dropped or victims)

    def _host_blocks(self, counts: list[int]) -> list[list[int]] | None:
        """Blocks of host memory for so many blocks by group; None if they are not free."""
        host = self.host
        if host is None or not any(counts):
            return None
        if host.sectors_for(counts) > len(host.free_sectors):
            host.gather()
            if host.sectors_for(counts) > len(host.free_sectors):
                return None
        return [host.take(group, count) for group, count in enumerate(counts)]

    def _from_host(self, row: _Row) -> None:
        assert self.host is not None
        assert row.on_host is not None
        for group, blocks in enumerate(row.on_host):
            self.host.give_back(group, blocks)
        row.on_host = None

    def _set_back(self, row: _Row) -> None:
        """A starved row waits again; its token in flight is lost."""
        seq = row.seq
        self._deactivate(row, cache=False)
        seq.preemptions += 1
        if self._last is not None and self._flying() and seq in self._last.finishing:
            self._last.finishing.remove(seq)
        if row.on_host is not None:
            if row.state == "decoding":
                row.position = row.known - 1
                row.initial = row.known
            row.state = "waiting"
            self._waiting[row] = None
            self._notes.swapped.append(seq)
            return
        row.state = "gone"
        again = self._rows[seq] = _Row(seq, row.held, row.known)
        self._waiting[again] = None
        self._notes.preempted += (seq,)

    def _deactivate(self, row: _Row, *, cache: bool) -> None:
        self.kv.release(row.held, cache=cache)
        for rows in (self._active, self._prefilling, self._apart):
            rows.pop(row, None)

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps in which all rows decode, nobody is admitted, memory suffices and no cached block is dropped."""
        decodes, kv, rules = self.decodes, self.kv, self.rules
        if (
            not self.aggregate
            or self._prefilling
            or (self._last is not None and self._flying() and self._last.changes_others())
        ):
            return None
        self._join_set()
        count, low = decodes.count, kv.free_share() < rules.safety_margin_share
        if (
            not count
            or count > min(rules.max_requests_per_batch, rules.max_batch_tokens)
            or (low and kv.cached)
        ):
            return None
        deaf = self._stopped or low or count == min(rules.max_requests_per_batch, rules.max_batch_tokens)
        if self._waiting and not deaf:
            return None
        steps, fast = decodes.steps_alike(), self._all_short()
        if fast:
            steps = min(steps, rules.max_decode_fast_path_length + self._longest[0][0] - decodes.steps + 1)
        elif rules.read_window_tokens is None:
            steps = min(steps, 1 + (rules.max_tokens_read - 1 - self._read_of_set()) // count)
        elif self._read_of_set() >= rules.max_tokens_read:
            return None
        steps = self._steps_within(steps)
        if steps < 2:
            return None
        shape = self._shape
        decodes.serve(shape)
        shape.padded_tokens = self._padded(count, fast=fast)
        shape.gathers = not fast
        return Run(steps, shape, deaf=deaf)

    def _steps_within(self, steps: int) -> int:
        """Of the next steps those for which blocks are free, that drop nothing, and complete no block that others may know."""
        kv, first, pool = self.kv, self.decodes.steps, self.kv.pool
        coming = [(step, self._due_rows(step)) for step in self._due if first <= step <= first + steps]
        heapq.heapify(coming)
        taken = [0] * len(kv.groups)
        while coming and coming[0][0] <= first + steps:
            step, rows = heapq.heappop(coming)
            if not rows:
                continue
            if step > first and any(row.held.registered < len(row.held.keys) for row in rows):
                return step - 1 - first
            for row in rows:
                tokens = row.seq.offset + step
                for group, layers in enumerate(kv.groups):
                    taken[group] += kv.blocks_for(layers, tokens) - kv.blocks_for(layers, tokens - 1)
            if step < first + steps and pool.sectors_for(taken) > len(pool.free_sectors):
                return step - first
            if kv.cached and kv.free_share(taken) < self.rules.safety_margin_share:
                return min(steps, step + 1 - first)
            heapq.heappush(coming, (step + kv.block_tokens, rows))
        return steps

    def take(self, steps: int) -> tuple[FirstFitBatch, int, int]:
        """Choose `steps` decode steps at once."""
        decodes, kv = self.decodes, self.kv
        if self._last is not None and self._flying():
            self.settle(self._last)
        kv.pool.gather()
        first, held, used = decodes.steps, 0, kv.used_sectors
        at, end = first, first + steps
        coming = [step for step in self._due if step < end]
        heapq.heapify(coming)
        while coming and coming[0] < end:
            step = heapq.heappop(coming)
            rows = self._due_rows(step)
            self._due.pop(step, None)
            for row in rows:
                if kv.sharing and step > first:
                    kv.register(row.held, 1)
                kv.take(row.held, row.seq.offset + step)
                if step + kv.block_tokens not in self._due:
                    heapq.heappush(coming, step + kv.block_tokens)
                self._note_due(row, step + kv.block_tokens)
            held += used * (step - at)
            used, at = kv.used_sectors, step
        held += used * (end - at)
        self.next_number += steps
        self.processed_number = self.next_number - 2
        decodes.steps = end
        batch = FirstFitBatch(self.next_number - 1)
        batch.tokens = batch.decode_rows = batch.decode_tokens = decodes.count
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        if kv.sharing:
            batch.completing = self._due_rows(end)
        batch.finishing = decodes.pop_ended()
        batch.order_finishing()
        self._before, self._last = self._last, batch
        return batch, held, used

    # -- results --------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a step; return the requests that ended with it."""
        assert isinstance(batch, FirstFitBatch)
        number = self.processed_number = batch.number
        ending = set(batch.finishing)
        for row, complete, yields in batch.singles:
            if row.state not in ("prefilling", "decoding"):
                continue
            if yields:
                row.seq.emit(number, number)
                row.known += 1
            elif row.state != "prefilling":
                continue  # the next chunk, the last, is in flight: complete blocks are noted with it
            if row.seq not in ending and complete:
                self.kv.register(row.held, complete)
        for row in batch.completing:
            if row.state == "decoding" and row.seq not in ending:
                self.kv.register(row.held, 1)
        for seq in batch.finishing:
            row = self._rows.pop(seq)
            if row.since >= 0:
                self._end_in_set(row, number)
            self._deactivate(row, cache=True)
            row.state, seq.state = "gone", "finished"
        if ending:
            self._stopped = False
        if self.record_rows:
            kv = self.kv
            batch.idle = not self._rows
            batch.after = ([kv.pool.free_blocks(group) for group in range(len(kv.groups))], len(kv.cached))
        return batch.finishing

    def _end_in_set(self, row: _Row, number: int) -> None:
        self.decodes.leave(row.seq)
        self._note_tokens(row, number)
        row.since = -1


__all__ = ["FirstFitBatch", "FirstFitRules", "FirstFitScheduler"]
