"""Continuous batching over a cache of several KV groups, the decoding rows kept as an aggregate.

The rules are those of `continuous`; what differs is what a decode step does to the blocks. Every `block_tokens` steps a row takes
one block in every group, and every `block_tokens` steps its window in a sliding group leaves one block behind. Both come
at steps known from the row's length, so the decoding rows are listed by the phase of these steps, and a step visits only
the rows that have something to do: about one in `block_tokens`.

Which cached block is evicted depends on the order in which rows take and free, so within a step the rows act in the order in
which they are served. Where only blocks without a hash are exchanged the most that the step lacks at any moment and what it takes
in the end say all.

A row joins the aggregate once it is *steady*: the tokens of its last batches were one each, so its windows move by one
token a step. Until then it is served by itself.
"""

from __future__ import annotations

import heapq

from engine_models.memory.hybrid_kv import HASHED, PLAIN, Held, Hit, HybridKV
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.sequence import Sequence
from engine_models.parts.spans import NEVER
from engine_models.schedulers.continuous import ContinuousScheduler


class Turn:
    """What one row does at a phase: take `takes` blocks, free `plain` without a hash and one in each group of `named`."""

    __slots__ = ("named", "plain", "seq", "takes")

    def __init__(self, seq: Sequence) -> None:
        self.seq = seq
        self.takes = 0
        self.plain = 0
        self.named: list[tuple[int, list[int]]] = []  # windows and their groups


class Phase:
    """The rows that act at the steps of one phase, by order of admission, and what they do together.

    `peak` is the most blocks that they lack at any moment when only blocks without a hash come back, `net` what they
    take in the end, `takes` what they take in all, `named` how many blocks are freed one by one.
    """

    __slots__ = ("_sorted", "named", "net", "peak", "takes", "turns")

    def __init__(self) -> None:
        self.turns: dict[int, Turn] = {}
        self._sorted: list[Turn] | None = []
        self.peak = self.net = self.takes = self.named = 0

    def at(self, seq: Sequence) -> Turn:
        """Return the turn of a row, made if it has none."""
        self._sorted = None
        turn = self.turns.get(seq.order)
        if turn is None:
            turn = self.turns[seq.order] = Turn(seq)
        return turn

    def drop(self, seq: Sequence) -> None:
        """Forget a row."""
        if self.turns.pop(seq.order, None) is not None:
            self._sorted = None

    def sorted(self) -> list[Turn]:
        """Turns in the order of admission; brings the sums up to date."""
        turns = self._sorted
        if turns is None:
            turns = self._sorted = [turn for _, turn in sorted(self.turns.items())]
            peak = net = takes = named = 0
            for turn in turns:
                takes += turn.takes
                net += turn.takes - turn.plain
                for _, groups in turn.named:
                    named += len(groups)
                if net > peak:
                    peak = net
            self.peak, self.net, self.takes, self.named = peak, net, takes, named
        return turns


class WindowedDecodes(DecodeSet):
    """Aggregate of the decoding rows over several KV groups.

    `lag` is how many tokens behind the scheduled ones a window moves (1 where it waits for a batch in flight).
    """

    __slots__ = ("_phases", "_turning", "acted", "kv", "lag")

    def __init__(self, kv: HybridKV, lag: int, windows: tuple[int, ...] = ()) -> None:
        super().__init__(kv.block_tokens, windows)
        self.kv = kv
        self.lag = lag
        self._phases = [Phase() for _ in range(kv.block_tokens)]
        self._turning: list[tuple[int, int, Sequence]] = []
        self.acted: set[Sequence] = set()  # rows whose turn in the step that is being formed has come

    # -- rows -----------------------------------------------------------------------------------------------

    def join(self, seq: Sequence) -> None:
        """Add a row whose windows move by one token a step from now on."""
        super().join(seq)
        kv, held = self.kv, seq.group_state
        held.last_named = []
        for window, table in zip(kv.growing, held.tables, strict=False):
            last = -1
            if window is not None and kv.prefix_caching:
                if not kv.sparse_windows:
                    last = NEVER
                else:
                    blocks = table.blocks
                    last = len(blocks) - 1
                    while last >= table.gone and blocks[last] is PLAIN:
                        last -= 1
                    if last < table.gone:
                        last = -1
            held.last_named.append(last)
        self._enrol(seq)

    def _enrol(self, seq: Sequence) -> None:
        """List the row under the phases of its steps, until the step at which a window begins to move or to free otherwise."""
        size, now, offset = self.block_tokens, self.steps, seq.offset
        kv, held, phases = self.kv, seq.group_state, self._phases
        for number in held.phases:
            phases[number].drop(seq)
        grows = (1 - offset) % size
        phases[grows].at(seq).takes = len(kv.growing)
        listed = {grows}
        change = NEVER
        for group, window in enumerate(kv.growing):
            if window is None:
                continue
            # before step s the window of `window` tokens ends at position offset + s - 1 - lag
            start = window + self.lag - offset
            first = start + size  # the step at which block 0 leaves
            if now < first:
                change = min(change, first)
                continue
            number = start % size
            turn = phases[number].at(seq)
            listed.add(number)
            plain_from = start + size * (held.last_named[group] + 2)
            # blocks that all go to the tail keep the order of the rows
            if now < plain_from or (kv.prefix_caching and not kv.unhashed_to_head):
                if turn.named and turn.named[-1][0] == window:
                    turn.named[-1][1].append(group)
                else:
                    turn.named.append((window, [group]))
                if now < plain_from < NEVER:
                    change = min(change, plain_from)
            else:
                turn.plain += 1
        held.phases = listed
        if change < NEVER:
            heapq.heappush(self._turning, (change, seq.order, seq))

    def turn(self) -> int:
        """List anew the rows that change now; return the steps until the next does."""
        turning, now = self._turning, self.steps
        while turning:
            at, _, seq = turning[0]
            if at > now:
                return at - now
            heapq.heappop(turning)
            if seq.state == "decoding":
                self._enrol(seq)
        return NEVER

    def leave(self, seq: Sequence, *, grown: bool = False) -> None:
        """Remove a row and bring its tables up to date; `grown` if it took its blocks for the step being formed."""
        offset, held = seq.offset, seq.group_state
        self.count -= 1
        self.offset_sum -= offset
        self.phases[(1 - offset) % self.block_tokens] -= 1
        for window in self.windows:
            window.leave(offset)
        for number in held.phases:
            self._phases[number].drop(seq)
        seq.length = offset + self.steps
        seq.computed = seq.length - 1
        seq.state = "running"
        last_step = self.steps if seq in self.acted else self.steps - 1
        self.kv.catch_up(seq, seq.computed + grown, offset + last_step - 1 - self.lag)

    # -- steps ----------------------------------------------------------------------------------------------

    def now(self) -> Phase:
        """What happens to the blocks at the next step."""
        phase = self._phases[self.steps % self.block_tokens]
        phase.sorted()
        return phase

    def fits(self, phase: Phase, free: int) -> bool:
        """Whether `free` blocks certainly suffice for a step of this phase, whatever its blocks freed one by one."""
        return (phase.peak if self.kv.unhashed_to_head else phase.takes) <= free

    def free_turn(self, turn: Turn) -> None:
        """Free what the windows of one row leave behind at the next step."""
        kv, seq = self.kv, turn.seq
        if turn.plain:
            kv.free_plain(turn.plain)
        for window, groups in turn.named:
            position = (seq.offset + self.steps - self.lag - window) // self.block_tokens - 1
            kv.leave_behind(seq, groups, position)

    def visit(self, seq: Sequence) -> int:
        """Free what one row leaves behind at the next step; return the blocks that it then takes."""
        turn = self._phases[self.steps % self.block_tokens].turns.get(seq.order)
        if turn is None:
            return 0
        self.acted.add(seq)
        self.free_turn(turn)
        return turn.takes

    def advance(self) -> None:
        """Take and free the blocks of one step that serves exactly the rows of the set."""
        kv = self.kv
        phase = self._phases[self.steps % self.block_tokens]
        turns = phase.sorted()
        if not phase.named and kv.unhashed_to_head:
            kv.exchange(phase.peak, phase.net)
        elif not phase.named:
            kv.take(phase.takes)
            if phase.takes > phase.net:
                kv.free_plain(phase.takes - phase.net)
        else:
            for turn in turns:
                self.free_turn(turn)
                if turn.takes:
                    kv.take(turn.takes)
        self.steps += 1

    def certain_steps(self, steps: int, most_free: int | None, *, keep_shared: bool) -> int:
        """Of the next `steps` steps, those that certainly find their blocks and leave at most `most_free` free.

        With `keep_shared` the count ends before a block that others may share leaves a window.
        """
        kv, size = self.kv, self.block_tokens
        free = least = kv.free_blocks
        if (
            most_free is None
            and not keep_shared
            and self.count * len(kv.growing) * (steps // size + 1) <= free
        ):
            return steps
        for i in range(steps):
            number = (self.steps + i) % size
            phase = self._phases[number]
            turns = phase.sorted()
            if not self.fits(phase, least):
                return i
            least -= phase.net
            free += phase.named - phase.net
            if most_free is not None and free > most_free:
                return i
            if keep_shared and phase.named and self._frees_shared(turns, self.steps + i):
                return i
        return steps

    def _frees_shared(self, turns: list[Turn], step: int) -> bool:
        for turn in turns:
            seq = turn.seq
            for window, groups in turn.named:
                position = (seq.offset + step - self.lag - window) // self.block_tokens - 1
                for group in groups:
                    blocks = seq.group_state.tables[group].blocks
                    if (
                        position < len(blocks)
                        and blocks[position] is not PLAIN
                        and blocks[position] is not HASHED
                    ):
                        return True
        return False


class WindowedScheduler(ContinuousScheduler):
    """The scheduler of `continuous` over a cache of several groups, one token a row and step.

    It forms the same batches as `ContinuousScheduler` does row by row.
    """

    def __init__(self, rules: ContinuousRules, kv: HybridKV, windows: tuple[int, ...] = ()) -> None:
        super().__init__(rules, kv, windows=windows)
        self.itemised = False
        self.aggregate = True
        self._lag = 1 if self._async and kv.frees_processed else 0
        self._hybrid = kv
        self._rows = WindowedDecodes(kv, self._lag, windows)
        self.decodes = self._rows
        self._alone: list[tuple[Sequence, int]] = []  # rows outside the set and the tokens that they get in this step
        self._stuck_at: int | None = (
            None  # free blocks that the head of the queue needs, None if it lacks something else
        )
        self._stuck_keeps_hit = False  # its cached prefix is held by others
        self._stuck = False

    @staticmethod
    def serves(rules: ContinuousRules) -> bool:
        """Whether these rules never serve a decoding row more than its one token."""
        return not (rules.speculative_tokens or rules.lookahead_tokens or rules.pipelined)

    # -- what is in flight ----------------------------------------------------------------------------------

    def _in_flight_tokens(self, seq: Sequence) -> int:
        held: Held = seq.group_state
        return held.served_tokens if held.served_number > self.processed_number else 0

    def _known(self, seq: Sequence) -> int:
        """Tokens of a row outside the set whose value is known."""
        emissions = seq.emissions
        return seq.length - 1 if emissions and emissions[-1] > self.processed_number else seq.length

    # -- the step -------------------------------------------------------------------------------------------

    def _fits_together(self, budget: int, cap: int) -> bool:
        decodes, kv = self._rows, self._hybrid
        decodes.acted.clear()
        decodes.turn()
        budget -= decodes.count
        if budget < 0:
            return False
        phase = decodes.now()
        alone = self._alone = []
        if not self.partial:
            return decodes.fits(phase, kv.free_blocks)
        clipped = False
        need = phase.takes
        for seq in sorted(self.partial, key=lambda s: s.order):
            want = self._want(seq, NEVER, cap)
            if want > budget:
                clipped = True
                want = self._want(seq, budget, cap) if budget > 0 else 0
            if want > 0:
                alone.append((seq, want))
                budget -= want
                need += kv.missing(seq, seq.computed + want)
        if clipped and decodes.count and min(seq.order for seq in self.partial) < decodes.top_order:
            return False
        return need <= kv.free_blocks

    def _serve_together(self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int) -> int:
        decodes, kv = self._rows, self._hybrid
        budget -= decodes.count
        if decodes.count:
            decodes.serve(batch)
        alone = self._alone
        if not alone:
            if decodes.count:
                decodes.advance()
            return budget
        turns = decodes.now().sorted()
        i = 0
        for seq, want in alone:
            while i < len(turns) and turns[i].seq.order < seq.order:
                decodes.free_turn(turns[i])
                kv.take(turns[i].takes)
                i += 1
            kv.leave_window(seq, seq.computed, seq.computed - self._in_flight_tokens(seq))
            kv.grow(seq, seq.computed + want)
            kv.register(seq, min(seq.computed + want, self._known(seq)))
            served.append((seq, want))
            budget -= want
        for turn in turns[i:]:
            decodes.free_turn(turn)
            kv.take(turn.takes)
        if decodes.count:
            decodes.steps += 1
        return budget

    def _serve_row_by_row(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int
    ) -> int:
        for seq in self.partial:
            seq.in_flight_tokens = self._in_flight_tokens(seq)
        budget = super()._serve_row_by_row(batch, served, budget, cap)
        self._rows.acted.clear()
        return budget

    def _set_aside(self, seq: Sequence, last: int) -> None:
        """A decoding row that was not served is not steady any more."""
        held: Held = seq.group_state
        held.served_number, held.served_tokens = self.next_number - 1, 1
        self.partial[seq] = None

    def _before_preemption(self, seq: Sequence, fresh_blocks: int | None) -> int:
        if seq.state == "ending":
            return super()._before_preemption(seq, fresh_blocks)
        if seq.state == "decoding":
            served = fresh_blocks is not None
            self._rows.leave(seq, grown=served)
            seq.end_emissions(self.next_number - 1)
            if self._async:
                seq.ready_batch = self.next_number - 1
            return seq.computed - self._async + served
        self.partial.pop(seq, None)
        seq.in_flight_tokens = 0
        return min(seq.computed - self._in_flight_tokens(seq), self._known(seq))

    def _commit(self, batch: Batch, served: list[tuple[Sequence, int]]) -> None:
        number = batch.number
        wasted = self._commit_decodes(batch)
        for seq, tokens in served:
            batch.serve(tokens, seq.computed, decodes=tokens == 1 and seq.computed >= seq.prompt_tokens)
            seq.computed += tokens
            if seq.state == "preempted":  # served and preempted in one step: its tokens come to nothing
                seq.ready_batch = number
                continue
            held: Held = seq.group_state
            steady = tokens == 1 and (not self._lag or self._in_flight_tokens(seq) == 1)
            held.served_number, held.served_tokens = number, tokens
            seq.in_flight_tokens = 0
            if seq.computed < seq.length or seq.length >= seq.final_length:
                continue
            seq.emit(number, number)
            seq.length += 1
            if seq.length >= seq.final_length:
                batch.finishing.append(seq)
                if self._async and (not seq.stop_known or self.rules.wasted_row_after_limit):
                    self._wasting.append(seq)
                else:
                    del self.partial[seq]
                    seq.state = "ending"
            elif steady:
                del self.partial[seq]
                self._join_decodes(seq, number)
        for seq in wasted:
            if seq.state == "running":
                self.partial.pop(seq, None)
                seq.state = "ending"
        batch.order_finishing()

    # -- the head of the queue ------------------------------------------------------------------------------

    def _admit(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int, now_s: float
    ) -> bool:
        before = len(served)
        blocked = super()._admit(batch, served, budget, cap, now_s)
        if blocked and len(served) == before:
            self._note_stuck(budget, cap)
        return blocked

    def _note_stuck(self, budget: int, cap: int) -> None:
        """Note how many free blocks would let the head in, and what could change that number while rows only decode."""
        rules, kv = self.rules, self._hybrid
        self._stuck, self._stuck_at, self._stuck_keeps_hit = True, None, False
        if len(self.running) >= rules.max_num_seqs:
            return
        seq = self._queue.head()
        found: Hit = kv.find(seq)
        hit = found.tokens
        if hit:
            if kv.is_fresh(found):
                self._stuck = False  # it can be read from the next step on
                return
            self._stuck_keeps_hit = True
            for window, blocks in zip(kv.windows, found.blocks, strict=True):
                skipped = kv.before_window(window, hit)
                if any(block is not None and block.holders == 0 for block in blocks[skipped:]):
                    self._stuck = False  # a block of its prefix may be evicted
                    return
        want = seq.length - hit
        if 0 < cap < want:
            want = cap
        if not rules.chunked_prefill and want > budget:
            return
        need = kv.admission_blocks(found, min(hit + min(want, budget), rules.max_model_len), whole=False)
        if rules.reserve_full_prompt:
            need = max(need, kv.admission_blocks(found, min(seq.length, rules.max_model_len), whole=True))
        self._stuck_at = need + (self._watermark_blocks if self.running else 0)

    # -- jumping --------------------------------------------------------------------------------------------

    def _proven_steps(self) -> int:
        decodes = self._rows
        waits = self.waiting_count > 0
        if (
            not decodes.count
            or self.partial
            or self._wasting
            or (waits and not (self.blocked and self._stuck))
            or decodes.count > self.rules.max_num_batched_tokens
        ):
            return 0
        decodes.acted.clear()
        steps = min(decodes.turn(), decodes.steps_alike())
        most_free = self._stuck_at - 1 if waits and self._stuck_at is not None else None
        return decodes.certain_steps(steps, most_free, keep_shared=waits and self._stuck_keeps_hit)

    def _take_blocks(self, steps: int) -> tuple[int, int]:
        decodes, kv = self._rows, self._hybrid
        total = most = 0
        for _ in range(steps):
            decodes.advance()
            held = kv.capacity_blocks - kv.free_blocks
            total += held
            if held > most:
                most = held
        return total, most


__all__ = ["WindowedDecodes", "WindowedScheduler"]
