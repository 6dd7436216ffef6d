"""Continuous batching with drafts, the decoding rows kept as an aggregate.

The rules are those of `continuous`; what differs is that a decoding row grows by one token and as many drafts as are accepted.
How many a verification accepts is drawn from a counter (`engine_models.parts.acceptance`), so all lengths of a row are known when
it joins: the aggregate sums, by batch, the rows, the tokens that they attend to, and the blocks that they take.

A row joins when an output of it has been settled, and its step in flight with it; where a batch is in flight, already when its
prompt ends, which yields one token for certain. It leaves, its step in flight coming back, when it is preempted, not served, or
so near the end of the context that its drafts are clipped. What it was given is noted when it leaves.

With a batch in flight the length after it is not known: a row is scheduled as if all its drafts were accepted.
"""

from __future__ import annotations

import heapq
from itertools import accumulate, count

import numpy as np
from numpy.typing import NDArray

from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.acceptance import AcceptanceStream
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.parts.spans import NEVER
from engine_models.schedulers.continuous import ContinuousScheduler

IntArray = NDArray[np.int64]

ROWS, KV_TOKENS, BLOCKS = range(3)


class Track:
    """What is to come of one row in the aggregate.

    Before batch `start` it has `length` tokens; `gains` sums what the verifications from that one on yield. Batches `first` to
    `last` are formed with it in the aggregate, to the sums of which it adds `parts`. Batch `end` yields its last token. `held`
    are its blocks before batch `first` and after each.
    """

    __slots__ = ("end", "first", "gains", "held", "last", "length", "parts", "seq", "start")

    def __init__(self, seq: Sequence, start: int, length: int, gains: IntArray) -> None:
        self.seq = seq
        self.start = start
        self.length = length
        self.gains = gains
        self.end = start + len(gains) - 1
        self.first = self.last = -1
        self.parts = self.held = gains

    @property
    def ends(self) -> bool:
        """Whether the row ends in the aggregate."""
        return self.end <= self.last


class DraftedDecodes(DecodeSet):
    """Aggregate of the decoding rows with drafts; its steps are the batches by their number."""

    __slots__ = ("_base", "_events", "_serial", "_sums", "_until", "next_number", "tracks")

    def __init__(self, block_tokens: int, row_tokens: int) -> None:
        super().__init__(block_tokens)
        self.row_tokens = row_tokens
        self.tracks: dict[Sequence, Track] = {}
        self.next_number = 0
        self._base = 0
        self._until = 0  # no batch from this one on serves a row
        self._sums = np.zeros((3, 256), dtype=np.int64)
        self._events: list[tuple[int, int, Track]] = []  # after which batch a row ends or must leave
        self._serial = count()

    def enter(self, track: Track) -> None:
        """Add a row."""
        first, last = track.first, track.last
        if last + 1 - self._base > self._sums.shape[1]:
            left = self._sums[:, first - self._base : max(self._until - self._base, 0)]
            self._base = first
            self._sums = np.zeros((3, 2 * max(left.shape[1], last + 1 - first) + 256), dtype=np.int64)
            self._sums[:, : left.shape[1]] = left
        self._sums[:, first - self._base : last + 1 - self._base] += track.parts
        if last >= self._until:
            self._until = last + 1
        self.tracks[track.seq] = track
        if track.seq.order > self.top_order:
            self.top_order = track.seq.order
        heapq.heappush(self._events, (track.end if track.ends else last, next(self._serial), track))

    def exit(self, seq: Sequence) -> Track:
        """Remove a row."""
        track = self.tracks.pop(seq)
        if self.next_number <= track.last:
            first = max(self.next_number, track.first)
            self._sums[:, first - self._base : track.last + 1 - self._base] -= track.parts[:, first - track.first :]
        return track

    # -- the next batches -----------------------------------------------------------------------------------

    def over(self, what: int, steps: int) -> IntArray:
        """Rows, KV tokens or new blocks of the next `steps` batches, all of which serve rows."""
        at = self.next_number - self._base
        return self._sums[what, at : at + steps]

    def of_next(self) -> list[int]:
        """Rows, KV tokens and new blocks of the next batch."""
        if self.next_number >= self._until:
            return [0, 0, 0]
        found: list[int] = self._sums[:, self.next_number - self._base].tolist()
        return found

    def serves_alike(self, steps: int) -> bool:
        """Whether the batch after the next `steps` serves as many rows as the next: the same ones, as none joins."""
        at = self.next_number - self._base
        after = at + steps
        return after < self._sums.shape[1] and bool(self._sums[ROWS, after] == self._sums[ROWS, at])

    def length(self, seq: Sequence) -> int:
        """Tokens of a row that its next step attends to, drafts included."""
        track = self.tracks[seq]
        return int(track.parts[KV_TOKENS, self.next_number - track.first])

    def visit(self, seq: Sequence) -> int:
        """New blocks that one row takes with the next step."""
        track = self.tracks[seq]
        return int(track.parts[BLOCKS, self.next_number - track.first])

    def steps_to_next_event(self) -> int:
        """Batches until a row ends or must leave, that batch included."""
        events = self._events
        while events and self.tracks.get(events[0][2].seq) is not events[0][2]:
            heapq.heappop(events)
        return events[0][0] + 1 - self.next_number if events else 0

    def due(self, number: int) -> list[Track]:
        """Rows that end with batch `number` or must leave after it."""
        events, out = self._events, []
        while events and events[0][0] <= number:
            track = heapq.heappop(events)[2]
            if self.tracks.get(track.seq) is track:
                out.append(track)
        return out


class DraftedScheduler(ContinuousScheduler):
    """The scheduler of `continuous` with drafts, over a cache of one group.

    It forms the same batches as `ContinuousScheduler` does row by row.
    """

    def __init__(self, rules: ContinuousRules, kv: PagedKV) -> None:
        super().__init__(rules, kv)
        self.aggregate = True
        self._row_tokens = 1 + rules.speculative_tokens
        self._rows = DraftedDecodes(kv.block_tokens, self._row_tokens)
        self.decodes = self._rows
        self._latest = Batch(-1)
        self._next = [0, 0, 0]
        self._alone: list[tuple[Sequence, int, int]] = []  # rows outside the aggregate: tokens and slots in this step
        self._leaving: list[Track] = []  # before the next batch

    @staticmethod
    def serves(rules: ContinuousRules) -> bool:
        """Whether rows verify drafts, all of which a step may hold."""
        cap = rules.long_prefill_token_threshold or NEVER
        return 0 < rules.speculative_tokens < cap and not rules.pipelined

    def _in_flight(self) -> Batch | None:
        """The batch whose results are not known."""
        return self._latest if self._latest.number > self.processed_number else None

    def cancel(self, seq: Sequence) -> bool:
        """As of the base."""
        if seq in self._rows.tracks:
            start = self._rows.tracks[seq].start
            self.processed_number -= self._early
            unknown = start - 1 > self.processed_number  # the token that its prompt yields is under way
            self._leave_decodes(seq, None)
            self.processed_number += self._early
            if seq.in_flight_tokens:
                self.kv.register(seq, seq.length - seq.pending - unknown)
        return super().cancel(seq)

    # -- joining and leaving --------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base; rows whose output has come join the aggregate."""
        self.processed_number = batch.number
        for seq in batch.finishing:
            if seq in self._rows.tracks:
                self._leave_decodes(seq, None)
        finished = super().settle(batch)
        if batch.itemised:
            self._join_settled(batch)
        return finished

    def _join_settled(self, batch: Batch) -> None:
        flight, first = self._in_flight(), self.next_number
        waits = {entry[0]: entry for entry in flight.itemised} if flight is not None else {}
        absorbed: set[Sequence] = set()
        for seq, _, drafts, preemptions in batch.itemised:
            if drafts < 0 or seq.state != "running" or seq.preemptions != preemptions:
                continue
            entry = waits.get(seq)
            if entry is None or flight is None:
                self._join(seq, first, first)
            elif entry[1] == self._row_tokens and entry[2] == self._row_tokens - 1 and self._join(seq, flight.number, first):
                absorbed.add(seq)
                seq.length -= seq.pending
                seq.pending = seq.in_flight_tokens = 0
        if absorbed and flight is not None:
            flight.itemised = tuple([entry for entry in flight.itemised if entry[0] not in absorbed])

    def _commit_itemised(self, batch: Batch, served: list[tuple[Sequence, int]]) -> None:
        """As of the base; with a batch in flight rows whose prompt ends join now: it yields one token for certain."""
        super()._commit_itemised(batch, served)
        if self._async:
            for seq, _, drafts, _ in batch.itemised:
                if drafts == 0 and seq.pending == 1 and seq.state == "running":
                    self._join(seq, batch.number + 1, batch.number + 1)

    def _join(self, seq: Sequence, start: int, first: int) -> bool:
        """Let a row join, its verifications from batch `start` on to come and batch `first` the next; False if it cannot."""
        track = self._track(seq, start, first)
        if track is None:
            return False
        seq.state = "decoding"
        del self.partial[seq]
        self._rows.enter(track)
        return True

    def _track(self, seq: Sequence, start: int, first: int) -> Track | None:
        """Foresee a row from batch `start` on; None if it cannot be foreseen or has less than two steps to come."""
        rules, kv = self.rules, self.kv
        stream = seq.acceptance
        if not isinstance(stream, AcceptanceStream) or (kv.prefix_caching and len(seq.blocks) < len(seq.keys or ())):
            return None
        length = seq.length if start == first else seq.length - seq.pending
        if length >= seq.final_length:
            return None
        track = Track(seq, start, length, stream.gains(seq.verifications, seq.final_length - length))
        gains, ahead = track.gains, self._async
        n = len(gains) + ahead
        parts = np.empty((3, n), dtype=np.int64)  # by batch from `start` on
        attended = parts[KV_TOKENS]  # with all drafts
        attended[0] = known = length + rules.speculative_tokens
        if ahead:  # the length after the batch before is not known yet, only that before it
            attended[1] = known = known + self._row_tokens
            before_end = length + (int(gains[-2]) if n > 2 else 0)
            if seq.stop_known and not rules.wasted_row_after_limit and before_end + 1 >= seq.final_length:
                n -= 1
        np.add(gains[:-1], known, out=attended[1 + ahead :])
        skipped, most = first - start, rules.max_model_len - 1
        if attended[n - 1] > most:  # the context clips the drafts
            n = skipped + min(int(attended[skipped:n].searchsorted(most, side="right")), track.end - first)
        if n < skipped + 2:
            return None
        track.first, track.last = first, start + n - 1
        track.parts = parts = parts[:, skipped:n]
        held = len(seq.blocks) + seq.extra_blocks
        track.held = blocks = np.empty(n - skipped + 1, dtype=np.int64)
        blocks[0], after = held, blocks[1:]
        slots, most, spare = parts[KV_TOKENS], rules.max_model_len, kv.block_tokens - 1
        np.add(slots, rules.lookahead_tokens + spare, out=after)
        if after[-1] > most + spare:
            np.minimum(after, most + spare, out=after)
        np.floor_divide(after, kv.block_tokens, out=after)
        if after[0] < held:
            np.maximum(blocks, held, out=blocks)
        parts[ROWS] = 1
        np.subtract(after, blocks[:-1], out=parts[BLOCKS])
        return track

    def _leave_decodes(self, seq: Sequence, last: int | None) -> None:
        """Bring a row's own counts up to date; its step in flight goes back to the batch, unless that is in vain."""
        rows, kv = self._rows, self.kv
        track = rows.exit(seq)
        settled = self.processed_number + 1 - track.start
        ended = self.processed_number >= track.end
        gains, row_tokens = track.gains, self._row_tokens
        length = track.length
        if settled > 0:
            self._note(track, gains[:settled])
            length += int(gains[:settled][-1])
        seq.state = "running"
        self.partial[seq] = None
        if rows.next_number == track.start:  # as it came
            return
        seq.length, seq.computed = length, length - 1
        seq.extra_blocks += int(track.held[min(rows.next_number - track.first, len(track.held) - 1)] - track.held[0])
        kv.register(seq, min(length, seq.final_length) - 1)
        flight = self._in_flight()
        if flight is not None and not ended and track.start <= flight.number <= track.last:
            if self._async:
                seq.length += row_tokens
                seq.pending = row_tokens
            seq.computed += row_tokens
            seq.in_flight_tokens = row_tokens
            entries = (*flight.itemised, (seq, row_tokens, row_tokens - 1, seq.preemptions))
            flight.itemised = tuple(sorted(entries, key=lambda entry: entry[0].order))
            if seq in flight.finishing:
                flight.finishing.remove(seq)

    def _note(self, track: Track, gains: IntArray) -> None:
        """Note the verifications of a row that have been settled and the tokens that they gave it."""
        seq, drafts = track.seq, self._row_tokens - 1
        verified, gained = len(gains), int(gains[-1])
        seq.verifications += verified
        self.verifications += verified
        self.verified_drafts += verified * drafts
        self.accepted_drafts += gained - verified
        steps, before, totals = seq.emissions, 0, gains.tolist()
        totals[-1] = min(totals[-1], seq.final_length - track.length)  # those before leave something to the last
        for number, total in enumerate(totals, track.start):
            if total != before + 1:
                steps += (number,) * (2 * (total - before))
            elif steps and steps[-1] == number - 1:
                steps[-1] = number
            else:
                steps += (number, number)
            before = total

    def _set_aside(self, seq: Sequence, last: int) -> None:
        """A decoding row that was not served stays outside."""

    def close(self) -> None:
        """Note what the rows in the aggregate have been given."""
        for seq in list(self._rows.tracks):
            self._leave_decodes(seq, None)

    def _preempt(self, seq: Sequence, batch: Batch, fresh_blocks: int | None) -> None:
        if seq in self._rows.tracks:
            self._leave_decodes(seq, None)
            if fresh_blocks is not None:
                seq.extra_blocks += fresh_blocks
                self.kv.register(seq, seq.length - seq.pending)
        super()._preempt(seq, batch, fresh_blocks)

    # -- the step -------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        """As of the base."""
        self._rows.next_number = self.next_number
        batch = super().schedule(now_s)
        self._rows.next_number = self.next_number
        if batch is not None and batch.tokens:
            self._latest = batch
        return batch

    def _fits_together(self, budget: int, cap: int) -> bool:
        rows, kv, rules = self._rows, self.kv, self.rules
        for track in self._leaving:
            if rows.tracks.get(track.seq) is track:
                self._leave_decodes(track.seq, None)
        self._leaving.clear()
        self._next = served, _, need = rows.of_next()
        budget -= served * self._row_tokens
        if budget < 0:
            return False
        self._alone = []
        for seq in sorted(self.partial, key=lambda s: s.order):
            if seq.ready_batch > self.processed_number or self._surely_ends(seq):
                continue
            want = self._want(seq, NEVER, cap)
            if want > budget:
                if served and seq.order < rows.top_order:
                    return False
                want = budget
            if want <= 0:
                continue
            budget -= want
            slots = min(seq.computed + want + rules.lookahead_tokens, rules.max_model_len)
            need += kv.missing(seq, slots)
            self._alone.append((seq, want, slots))
        return need <= kv.free_blocks

    def _serve_together(self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int) -> int:
        kv = self.kv
        rows, kv_tokens, blocks = self._next
        if rows:
            kv.take(blocks)
            batch.decode_rows, batch.decode_kv_tokens = rows, kv_tokens
            budget -= rows * self._row_tokens
        for seq, want, slots in self._alone:
            kv.grow(seq, slots)
            kv.register(seq, min(seq.computed + want, self._known(seq)))
            served.append((seq, want))
            budget -= want
        return budget

    def _end_decodes(self, batch: Batch) -> None:
        for track in self._rows.due(batch.number):
            if track.ends:
                batch.finishing.append(track.seq)
                if track.last == track.end:
                    track.seq.state = "ending"
            else:
                self._leaving.append(track)

    # -- jumping --------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps that serve exactly the rows of the aggregate; see the base."""
        rows = self._rows
        rows.next_number = self.next_number
        steps, run, shape = self._proven_steps(), self._run, self._run.shape
        run.vain = (
            self._async
            and not self._queue
            and steps == rows.steps_to_next_event() > 0
            and self._next[ROWS] * self._most_blocks(steps + 2) <= self.kv.free_blocks
            and rows.serves_alike(steps)
        )
        if steps + run.vain < 2:
            return None
        shape.decode_rows, shape.decode_kv_tokens, _ = self._next
        shape.decode_tokens = shape.tokens = shape.decode_rows * self._row_tokens
        shape.kv_by_step = rows.over(KV_TOKENS, steps + run.vain)
        run.steps, run.deaf = steps, self.blocked and not self._by_priority
        return run

    def _proven_steps(self) -> int:
        rows, flight = self._rows, self._in_flight()
        self._next = rows.of_next()
        served = self._next[ROWS]
        if (
            self.partial
            or self._leaving
            or (self.waiting_count and not self.blocked)
            or (flight is not None and (flight.finishing or self._unforeseen(flight)))
            or not 0 < served * self._row_tokens <= self.rules.max_num_batched_tokens
        ):
            return 0
        steps, free = rows.steps_to_next_event(), self.kv.free_blocks
        if served * self._most_blocks(steps + 1) > free:
            steps = int(rows.over(BLOCKS, steps).cumsum().searchsorted(free, side="right"))
        return steps

    def _most_blocks(self, steps: int) -> int:
        """Blocks that a row may take with so many steps."""
        return (steps * self._row_tokens + self.rules.lookahead_tokens) // self.kv.block_tokens + 2

    def _unforeseen(self, batch: Batch) -> bool:
        """Whether the results of a batch concern rows outside the aggregate."""
        return any(entry[0] not in self._rows.tracks for entry in batch.itemised)

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Schedule `steps` decode steps at once."""
        rows, flight = self._rows, self._in_flight()
        if flight is not None and flight.itemised:
            self._settle_itemised(flight)
        batch = Batch(self.next_number + steps - 1)
        batch.decode_rows = self._next[ROWS]
        batch.decode_tokens = batch.tokens = batch.decode_rows * self._row_tokens
        batch.decode_kv_tokens = int(rows.over(KV_TOKENS, steps)[-1])
        held, most = self._take_blocks(steps)
        self.next_number = rows.next_number = batch.number + 1
        self.processed_number = batch.number - 1
        self._early = int(self._async)
        self._end_decodes(batch)
        batch.order_finishing()
        self._latest = batch
        return batch, held, most

    def take_vain(self, after: Batch) -> tuple[Batch, int] | None:
        """As of the base."""
        rows, kv = self._rows, self.kv
        batch = Batch(self.next_number)
        batch.decode_rows, batch.decode_kv_tokens, blocks = rows.of_next()
        if blocks:
            kv.take(blocks)
        self._early = 0
        self._commit_decodes(batch)
        batch.order_finishing()
        self.next_number = rows.next_number = batch.number + 1
        self._latest = batch
        return batch, kv.capacity_blocks - kv.free_blocks

    def _take_blocks(self, steps: int) -> tuple[int, int]:
        kv = self.kv
        held = kv.capacity_blocks - kv.free_blocks
        so_far = list(accumulate(self._rows.over(BLOCKS, steps).tolist()))
        need = so_far[-1]
        if need:
            kv.take(need)
        return held * steps + sum(so_far), held + need


__all__ = ["DraftedDecodes", "DraftedScheduler", "Track"]
