"""A fixed number of slots whose caches outlive their requests; batches computed in sub-batches; a pool of cells that may run out.

A request takes an idle slot: the one whose cache begins it most, if that is enough of it, else the one idle longest, empty ones
first. If there is none it is deferred; each slot that becomes free brings one deferred request to the *front* of the queue. What
the cache and the prompt have in common is not computed again. A cache that would be lost for the most part is first saved in host
memory, from where a better one may be taken; idle slots are saved there too, and emptied if all share one pool.

An iteration computes one token of every generating slot, then prompts, slot by slot by index, until `n_batch` tokens: a long
prompt in front leaves nothing to those behind. The device computes it in sub-batches of `n_ubatch` tokens one after the other,
each of which reads the weights. Where each slot has cells of its own (*split*), a sub-batch takes the same number of tokens of
slots that follow each other by index; where all share one pool, the batch is cut in order. Attention reads the cells up to the
last in use, padded: of the pool, or of the longest slot in the sub-batch. All tokens of an iteration leave at its end.

A pool without room for a batch empties an idle slot and tries again, then halves the batch; when a single token finds no room,
all requests that run fail. A slot whose context is full ends its request, or, with context shift, drops a part of its cache and
goes on.

Source: behaviour of llama.cpp's server at 0c1e57098 (`tools/server/server-context.cpp`, `server-queue.cpp`,
`src/llama-batch.cpp`, `src/llama-kv-cache.cpp`), checked step by step against recordings of build 11669; see
docs/engines/llama_cpp.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal, NamedTuple

from engine_models.memory.radix import Content, content_of
from engine_models.memory.whole_prompts import WholePrompts, alike
from engine_models.parts.batch import Batch, PartedBatch
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass

PAD_CELLS = 256
"""Attention reads so many cells more or less at once (datasheet: `get_n_kv` of `src/llama-kv-cache.cpp`), where it is fused."""
LOSES_MOST = 0.5
"""A slot that would keep less than this share of its cache has it saved first (datasheet: `get_available_slot`)."""
SHIFT_ROOM = 4
"""Cells of a full slot that a shift may always free (datasheet: `update_slots`)."""

Why = Literal["limit", "context_full", "error", "gone"]


@dataclass(frozen=True)
class SlotRules:
    """What such a scheduler may do. Names of knobs are those of llama.cpp's server.

    Attributes
    ----------
    n_parallel : slots.
    slot_tokens : context of a slot.
    pool_cells : cells that all slots share; 0 where each has its own.
    n_batch : tokens of an iteration, unless more slots generate; no more than the whole context.
    n_ubatch : tokens of a sub-batch.
    cont_batching : whether prompts are computed beside slots that generate.
    slot_prompt_similarity : least share of a prompt that has to be in a slot for that slot to be preferred; 0: none is.
    cache_prompt : whether a request starts from what its slot holds.
    cache_reuse : shortest run of tokens that is moved to where the prompt has it, 0: none is.
    rolls_back : whether a cache can be cut anywhere; else (sliding windows, states) it goes on whole or is computed again.
    cache_idle_slots : whether idle slots are saved in host memory at each launch.
    context_shift : whether a full slot drops tokens and goes on.
    n_keep : tokens that a shift keeps in front, -1 for the prompt.
    pad_cells : cells in steps of which attention reads.
    """

    n_parallel: int
    slot_tokens: int
    pool_cells: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    cont_batching: bool = True
    slot_prompt_similarity: float = 0.1
    cache_prompt: bool = True
    cache_reuse: int = 0
    rolls_back: bool = True
    cache_idle_slots: bool = True
    context_shift: bool = False
    n_keep: int = 0
    pad_cells: int = PAD_CELLS


class Wish(NamedTuple):
    """What a request may say beside its prompt: its slot, if it uses a cache, how many answers, what a shift keeps and drops."""

    slot: int | None = None
    cache_prompt: bool | None = None
    answers: int = 1
    n_keep: int | None = None
    n_discard: int = 0


class SlotRow:
    """A request, or one answer of several to it (`answer` above 0)."""

    __slots__ = (
        "answer",
        "brought_by",
        "content",
        "ended",
        "got",
        "phase",
        "prompt",
        "seq",
        "shifted",
        "siblings",
        "tokens",
        "torn",
        "wish",
    )

    def __init__(self, seq: Sequence, content: Content, wish: Wish, answer: int = 0) -> None:
        self.seq = seq
        self.content = content
        self.wish = wish
        self.answer = answer
        self.prompt = seq.prompt_tokens
        self.tokens = seq.final_length - seq.prompt_tokens  # of the answer
        self.got = 0
        self.phase: Literal["started", "prompt", "waits", "generates"] = "started"
        self.siblings: list[Slot] = []
        self.ended: Why | None = None
        self.shifted = False
        self.torn = False  # it has got a prompt that was not computed to its end
        self.brought_by: Slot | None = None  # the slot whose release brought it to the front of the queue


class Slot:
    """A slot: the first `tokens` of `content` are its cache, `cells` of them in memory (the others in the batch being formed)."""

    __slots__ = ("cells", "content", "index", "row", "tokens", "used")

    def __init__(self, index: int) -> None:
        self.index = index
        self.row: SlotRow | None = None
        self.content = Content(())
        self.tokens = self.cells = 0
        self.used = -1  # when it was last released, as a count

    def clear(self) -> None:
        self.tokens = self.cells = 0


class Entry(NamedTuple):
    """Tokens of a slot in a batch: `tokens` after `first` others; whether it generates, whether its last one yields a token."""

    slot: Slot
    row: SlotRow
    tokens: int
    first: int
    decodes: bool
    yields: bool


class Task(NamedTuple):
    """What became of a request taken from the queue: its slot (None: deferred), how that was chosen, what host memory did."""

    row: SlotRow
    slot: int | None
    by: str | None
    events: list[tuple[str | int | float, ...]]


class Call(NamedTuple):
    """One call to compute `tokens` tokens of a batch from `at` on; where it found no room, what was done.

    parts : of each sub-batch slot, tokens, first position and whether the last yields a token.
    """

    n_batch: int
    at: int
    tokens: int
    parts: list[list[tuple[int, int, int, int]]]
    ok: bool
    next_n_batch: int | None = None
    emptied: int | None = None


class Start(NamedTuple):
    """A prompt that begins: tokens found in the cache (None: it is too long), and runs moved there (tokens, from, to)."""

    slot: int
    row: SlotRow
    found: int | None
    moved: list[tuple[int, int, int]]


class End(NamedTuple):
    """A request that ends in a slot, the tokens in the cache there, and whether the cache goes too."""

    slot: Slot
    row: SlotRow
    why: Why
    left: int
    clears: bool


class SlotBatch(PartedBatch):
    """An iteration. What follows `ends` is noted of recorded ones only."""

    __slots__ = ("calls", "emitted", "ends", "entries", "popped", "shifts", "starts", "tasks")

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.ends: list[End] = []
        self.tasks: list[Task] = []
        self.starts: list[Start] = []
        self.shifts: list[tuple[int, SlotRow, int, int]] = []
        self.entries: list[Entry] = []
        self.calls: list[Call] = []
        self.emitted: list[SlotRow] = []
        self.popped: list[SlotRow] = []


def padded(cells: int, pad_cells: int = PAD_CELLS) -> int:
    """Cells that attention reads where the last in use is number `cells`."""
    return -(-max(cells, 1) // pad_cells) * pad_cells


class SlotScheduler(Scheduler):
    """Slots of one server and the rule that fills them.

    Parameters
    ----------
    rules : the knobs.
    prompts : cached prompts in host memory, None without.
    wishes : what requests say beside their prompts, by index.
    aggregate : whether runs of equal iterations are proven.
    record_rows : note what happened in each iteration.
    """

    def __init__(
        self,
        rules: SlotRules,
        prompts: WholePrompts | None = None,
        *,
        wishes: Mapping[int, Wish] | None = None,
        aggregate: bool = True,
        record_rows: bool = False,
    ) -> None:
        self.rules = rules
        self.prompts = prompts
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.slots = [Slot(index) for index in range(rules.n_parallel)]
        self._wishes = wishes or {}
        self._wish = Wish()
        self._queue: deque[SlotRow] = deque()
        self._deferred: deque[SlotRow] = deque()
        self._rows: dict[Sequence, SlotRow] = {}
        self._busy = 0
        self._releases = 0
        self._cells = 0  # of all slots
        self._owed = 0  # slots that became free when nobody was deferred
        self._formed_s = 0.0  # when the latest iteration was formed
        self._flying: SlotBatch | None = None
        self._copied = 0  # tokens whose states were copied to or from host memory since the last iteration
        self._tasks: list[Task] = []
        self._popped: list[SlotRow] = []
        self._now_s = 0.0
        self._shape = PartedBatch(-1)

    # -- queues ---------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request.

        One that arrived while a run was taken would have been deferred, and stand in front now if a slot became free at its end.
        """
        seq.state = "waiting"
        row = self._rows[seq] = SlotRow(seq, content_of(seq), self._wishes.get(seq.index, self._wish))
        if self._owed and seq.arrival_s <= self._formed_s:
            self._owed -= 1
            self._queue.appendleft(row)
        else:
            self._queue.append(row)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._rows)

    def state(self) -> State:
        """Requests, and cells: those of slots in use."""
        rules = self.rules
        total = rules.pool_cells or rules.n_parallel * rules.slot_tokens
        return self._busy, len(self._queue) + len(self._deferred), self._held(), total

    def _held(self) -> int:
        return sum(slot.cells for slot in self.slots if slot.row is not None)

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; the slot keeps its cache. Tokens in flight count as got, as those of other schedulers.

        A server releases slots between two iterations, when whoever has left meanwhile is no longer deferred: one that a slot
        has brought and that leaves before the next iteration makes room for the next.
        """
        row = self._rows[seq]
        if self._flying is not None and seq in self._flying.finishing:
            return False
        slots = [slot for slot in self.slots if slot.row is not None and slot.row.seq is seq]
        if not slots:
            (self._queue if row in self._queue else self._deferred).remove(row)
            if row.brought_by is not None:
                self._bring(row.brought_by)
        self._note_tokens(row)
        row.ended = "gone"
        for slot in slots:
            self._release(slot)
        del self._rows[seq]
        seq.state = "finished"
        return True

    def close(self) -> None:
        """Let the ranges of rows that still generate end with the latest iteration."""
        for row in self._rows.values():
            self._note_tokens(row)

    # -- slots ----------------------------------------------------------------------------------------------

    def _take_tasks(self) -> None:
        while self._queue:
            self._take(self._queue.popleft())

    def _take(self, row: SlotRow) -> None:
        """Give a request a slot, or defer it."""
        events: list[tuple[str | int | float, ...]] = []
        slot, by = self._chosen(row, events)
        if slot is not None and row.wish.answers > 1:
            row.siblings = self._oldest(row.wish.answers - 1, slot)
            if len(row.siblings) < row.wish.answers - 1:
                slot = None
        if self.record_rows:
            self._tasks.append(Task(row, slot.index if slot else None, by, events))
        row.brought_by = None
        if slot is None:
            self._deferred.append(row)
            return
        for number, other in enumerate(row.siblings, 1):
            child = other.row = SlotRow(row.seq, row.content, row.wish, number)
            child.phase = "waits"
            if self.prompts is not None and other.tokens and self._save(self.prompts, other, events):
                self._trim(self.prompts, events)
        slot.row = row
        self._busy += 1 + len(row.siblings)
        if self.prompts is not None and self.rules.cache_idle_slots:
            self._save_idle(self.prompts, events)

    def _chosen(
        self, row: SlotRow, events: list[tuple[str | int | float, ...]]
    ) -> tuple[Slot | None, str | None]:
        """The slot of a request, if it is free, and how it was chosen; its cache is changed for a better one of host memory."""
        pinned = row.wish.slot
        if pinned is not None:
            slot = self.slots[pinned]
            if slot.row is not None:
                return None, None
            least = self.rules.slot_prompt_similarity
            if self.prompts is not None and slot.tokens and least:
                same = alike(slot.content, slot.tokens, row.content, row.prompt)
                if same / row.prompt <= least or same / slot.tokens < LOSES_MOST:
                    self._exchange(self.prompts, slot, row, events)
            return slot, "id_slot"
        idle = [slot for slot in self.slots if slot.row is None]
        if not idle:
            return None, None
        best, shared = None, 0
        least = self.rules.slot_prompt_similarity
        if least:
            for slot in idle:
                same = alike(slot.content, slot.tokens, row.content, row.prompt)
                if same > shared and same / row.prompt > least:
                    best, shared = slot, same
        if best is not None and shared / best.tokens >= LOSES_MOST:
            return best, "lcp"
        by = "lcp" if best is not None else "lru"
        slot = best or self._oldest(1, None)[0]
        if self.prompts is not None:
            self._exchange(self.prompts, slot, row, events)
        return slot, by

    def _oldest(self, count: int, but: Slot | None) -> list[Slot]:
        """Idle slots, empty ones first, then those released first."""
        idle = [slot for slot in self.slots if slot.row is None and slot is not but]
        return sorted(idle, key=lambda slot: (slot.tokens > 0, slot.used))[:count]

    def _exchange(
        self, prompts: WholePrompts, slot: Slot, row: SlotRow, events: list[tuple[str | int | float, ...]]
    ) -> None:
        """Save the cache of a slot, and put a better one for a prompt in its place if host memory has it."""
        if slot.tokens:
            self._save(prompts, slot, events)
        same = alike(slot.content, slot.tokens, row.content, row.prompt)
        keep = same / slot.tokens if slot.tokens else -1.0
        room = self.rules.pool_cells - self._cells + slot.cells if self.rules.pool_cells else self.rules.slot_tokens
        found = prompts.take(row.content, row.prompt, keep, same / row.prompt, room)
        if found is not None and found.content.length > room:  # it stays there, and the slot is empty
            events.append(("better", round(found.kept_share, 3), round(found.prompt_share, 3)))
            events.append(("clear", slot.index, slot.tokens))
            self._cells -= slot.cells
            slot.clear()
        elif found is not None:
            self._cells += found.content.length - slot.cells
            slot.content, slot.tokens = found.content, found.content.length
            slot.cells = slot.tokens
            self._copied += slot.tokens
            self.host_hit_tokens += round(found.prompt_share * row.prompt)
            events.append(("better", round(found.kept_share, 3), round(found.prompt_share, 3)))
        self._trim(prompts, events)

    def _save(self, prompts: WholePrompts, slot: Slot, events: list[tuple[str | int | float, ...]]) -> bool:
        saved = prompts.save(Content(slot.content.slice(0, slot.tokens)))
        events.append(("save", slot.tokens))
        events.extend(("obsolete", tokens) for tokens in saved.obsolete)
        if saved.already or saved.too_big:
            events.append(("already",) if saved.already else ("toobig",))
            return False
        events.extend([("evict",)] * saved.evicted)
        self._copied += slot.tokens
        return True

    @staticmethod
    def _trim(prompts: WholePrompts, events: list[tuple[str | int | float, ...]]) -> None:
        events.extend([("evict",)] * prompts.trim())
        events.append(("state", len(prompts)))

    def _save_idle(self, prompts: WholePrompts, events: list[tuple[str | int | float, ...]]) -> None:
        for slot in self.slots:
            if slot.row is not None:
                continue
            events.append(("idle_slot", slot.index))
            if slot.tokens and self._save(prompts, slot, events):
                self._trim(prompts, events)
            if self.rules.pool_cells:
                events.append(("clear", slot.index, slot.tokens))
                self._cells -= slot.cells
                slot.clear()

    def _release(self, slot: Slot) -> None:
        """A slot is free: it brings a deferred request to the front, one that wants this slot before others."""
        slot.row = None
        self._busy -= 1
        slot.used = self._releases
        self._releases += 1
        self._bring(slot)

    def _bring(self, slot: Slot) -> None:
        """Bring the request that a free slot lets in to the front of the queue."""
        waiting = self._deferred
        if not waiting:
            self._owed += 1
            return
        row = next((row for row in waiting if row.wish.slot == slot.index), waiting[0])
        waiting.remove(row)
        row.brought_by = slot
        self._queue.appendleft(row)
        if self.record_rows:
            self._popped.append(row)

    # -- an iteration ---------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> SlotBatch | None:
        """Form the next iteration; None if nothing is there to compute."""
        self._now_s = self._formed_s = now_s
        self._take_tasks()
        self._owed = 0
        while self._busy:
            batch = SlotBatch(self.next_number)
            if self.rules.context_shift:
                self._shift(batch)
            entries = self._fill(batch)
            if entries or (self.record_rows and batch.ends):
                break
            self._end(batch)  # requests that fail, nothing else
            self._take_tasks()
        else:
            return None
        batch.copied_tokens, self._copied = self._copied, 0
        for entry in entries:
            batch.serve(entry.tokens, entry.first, decodes=entry.decodes)
        self._compute(batch, entries)
        batch.finishing = [end.row.seq for end in batch.ends if not end.row.answer]
        if self.record_rows:
            batch.tokens = batch.tokens or 1  # an iteration in which requests fail and nothing is computed is one too
            batch.entries = entries
            batch.tasks, self._tasks = self._tasks, []
        self._flying = batch
        self.next_number += 1
        return batch

    def _shift(self, batch: SlotBatch) -> None:
        """Full slots drop tokens after those that they keep; one of several answers fails."""
        context = self.rules.slot_tokens
        for slot in self.slots:
            row = slot.row
            if row is None or row.phase != "generates" or slot.tokens + 1 < context:
                continue
            if row.wish.answers > 1:  # they share their beginning
                row.ended = "error"
                batch.ends.append(End(slot, row, "error", slot.tokens, clears=row.answer > 0))
                continue
            keep = self.rules.n_keep if row.wish.n_keep is None else row.wish.n_keep
            keep = min(context - SHIFT_ROOM, row.prompt if keep < 0 else keep)
            left = slot.tokens - keep
            dropped = max(0, min(row.wish.n_discard or left // 2, left - 1))
            content = slot.content
            slot.content = Content((*content.slice(0, keep), *content.slice(keep + dropped, content.length)))
            slot.tokens -= dropped
            slot.cells -= dropped
            self._cells -= dropped
            row.shifted = True
            batch.shifts.append((slot.index, row, keep, dropped))

    def _fill(self, batch: SlotBatch) -> list[Entry]:
        """Tokens of an iteration, slot by slot."""
        entries: list[Entry] = []
        for slot in self.slots:
            row = slot.row
            if row is not None and row.phase == "generates" and not row.ended:
                tokens = self._row_tokens(row)
                entries.append(Entry(slot, row, tokens, slot.tokens, True, True))
                slot.tokens += tokens
        if entries and not self.rules.cont_batching:
            return entries
        left = self.rules.n_batch - sum([entry.tokens for entry in entries])
        for slot in self.slots:
            row = slot.row
            if left <= 0:
                break
            if row is None or row.phase not in ("started", "prompt"):
                continue
            if row.phase == "started" and not self._start(slot, row, batch):
                continue
            tokens = min(left, row.prompt - slot.tokens)
            entries.append(Entry(slot, row, tokens, slot.tokens, False, slot.tokens + tokens == row.prompt))
            slot.tokens += tokens
            left -= tokens
        return entries

    def _row_tokens(self, row: SlotRow) -> int:
        """Tokens of a generating row in the iteration being formed."""
        return 1

    def _start(self, slot: Slot, row: SlotRow, batch: SlotBatch) -> bool:
        """Begin a prompt after what its slot holds of it; False if it is too long."""
        rules, seq = self.rules, row.seq
        if row.prompt >= rules.slot_tokens:
            batch.starts.append(Start(slot.index, row, None, []))
            batch.ends.append(End(slot, row, "error", slot.tokens, clears=False))
            row.ended = "error"
            return False
        found = 0
        moved: list[tuple[int, int, int]] = []
        if rules.cache_prompt if row.wish.cache_prompt is None else row.wish.cache_prompt:
            found = alike(slot.content, slot.tokens, row.content, row.prompt)
            if found < slot.tokens and not rules.rolls_back:
                found = 0
            if rules.cache_reuse:
                found, moved = self._reuse(slot, row, found)
            if found == row.prompt:
                found = found - 1 if rules.rolls_back else 0
        self._cells += found - slot.cells
        slot.content, slot.tokens, slot.cells = row.content, found, found
        row.phase = "prompt"
        seq.state = "running"
        seq.first_scheduled_s = self._now_s
        seq.first_hit_tokens = found
        self.queried_tokens += row.prompt
        self.hit_tokens += found
        if self.record_rows:
            batch.starts.append(Start(slot.index, row, found, moved))
        return True

    def _reuse(self, slot: Slot, row: SlotRow, found: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Move runs of the cache to where the prompt has them, as far as they follow each other there."""
        moved: list[tuple[int, int, int]] = []
        at = found
        while at < slot.tokens and found < row.prompt:
            rest = Content(row.content.slice(found, row.prompt))
            segment, offset, _ = rest.runs[0]
            at = _place(slot.content, at, segment, offset)
            if at >= slot.tokens:
                break
            same = slot.content.common(at, slot.tokens, rest.runs)
            if same < self.rules.cache_reuse:
                at += 1
                continue
            moved.append((same, at, found))
            at += same
            found += same
        return found, moved

    def _compute(self, batch: SlotBatch, entries: list[Entry]) -> None:
        """Compute a batch in one call, or in several where the pool has no room; those that end are noted."""
        rules = self.rules
        total, at, n_batch = batch.tokens, 0, rules.n_batch
        while at < total:
            count = min(n_batch, total - at)
            view = entries if count == total else _cut(entries, at, at + count)
            emptied = following = None
            if self._wishes and any(entry.row.torn for entry in view):  # its places do not follow each other
                if self.record_rows:
                    batch.calls.append(Call(n_batch, at, count, [], True, None, None))
                self._fail(batch)
                return
            ok = not rules.pool_cells or self._cells + count <= rules.pool_cells
            parts = self._parts(view) if ok or self.record_rows else []
            if not ok:
                emptied = self._empty_idle(batch)
                if emptied is not None:
                    following = n_batch
                elif n_batch > 1:
                    following = n_batch // 2
            if self.record_rows:
                shown = [[(e.slot.index, e.tokens, e.first, int(e.yields)) for e in part] for part in parts]
                batch.calls.append(Call(n_batch, at, count, shown, ok, following, emptied))
            if ok:
                self._price(batch, parts)
                if self._cuts_drafts(at + count):
                    self._fail(batch)
                    return
                if self._wishes:
                    self._empty_further()
                self._yield(batch, view)
                at += count
                n_batch = rules.n_batch
            elif following is None:
                self._fail(batch)
                return
            else:
                n_batch = following

    def _cuts_drafts(self, computed: int) -> bool:
        """Whether drafts of the batch are left after so many tokens of it, which ends all that runs."""
        return False

    def _parts(self, view: list[Entry]) -> list[list[Entry]]:
        """The sub-batches of a call."""
        most = self.rules.n_ubatch
        if self.rules.pool_cells:
            total = sum(entry.tokens for entry in view)
            return [_cut(view, at, at + most) for at in range(0, total, most)]
        parts: list[list[Entry]] = []
        left = view
        while left:
            chosen: list[Entry] = []
            for entry in left:
                if not chosen or entry.slot.index == chosen[-1].slot.index + 1:
                    chosen.append(entry)
                    if len(chosen) > most:  # one more than fit, as `llama_batch_allocr::split_equal` counts them
                        break
            tokens = min(max(1, most // len(chosen)), min(entry.tokens for entry in chosen))
            parts.append([_first(entry, tokens) for entry in chosen])
            taken = {entry.slot.index for entry in chosen}
            left = [
                _after(entry, tokens) if entry.slot.index in taken else entry
                for entry in left
                if entry.slot.index not in taken or entry.tokens > tokens
            ]
        return parts

    def _price(self, batch: SlotBatch, parts: list[list[Entry]]) -> None:
        """Enter the sub-batches of a call that found room, as they are priced."""
        for entries in parts:
            part = Batch(batch.number)
            longest = 0
            for entry in entries:
                part.serve(entry.tokens, entry.first, decodes=entry.decodes)
                entry.slot.cells += entry.tokens
                longest = max(longest, entry.slot.cells)
            self._cells += part.tokens
            part.pool_cells = padded(self._cells if self.rules.pool_cells else longest, self.rules.pad_cells)
            batch.parts.append(part)

    def _yield(self, batch: SlotBatch, view: list[Entry]) -> None:
        """Rows whose last token was computed get one, by slot; some end."""
        rows = [(entry.slot, entry.row) for entry in view if entry.yields]
        for entry in view:
            if entry.yields and entry.row.phase == "prompt":
                entry.row.phase = "generates"
                for child in entry.row.siblings:
                    self._copy(entry.slot, child)
                    assert child.row is not None
                    rows.append((child, child.row))
        rows.sort(key=lambda pair: pair[0].index)
        for slot, row in rows:
            self._give(slot, row, batch)
            if self.record_rows:
                batch.emitted.append(row)
            full = not self.rules.context_shift and slot.tokens + 1 >= self.rules.slot_tokens
            if row.got == row.tokens or full:
                row.ended = "context_full" if full else "limit"
                batch.ends.append(End(slot, row, row.ended, slot.tokens, clears=row.answer > 0))

    def _give(self, slot: Slot, row: SlotRow, batch: SlotBatch) -> None:
        """Note what a row gets of an iteration: one token."""
        row.got += 1
        if row.got == 1 and not row.answer:
            row.seq.emit(batch.number, batch.number - 1)

    def _note_tokens(self, row: SlotRow) -> None:
        """Let the range of a row's tokens, one an iteration, end with the latest."""
        if row.got:
            row.seq.end_emissions(row.seq.emissions[-2] + row.got - 1)

    def _copy(self, slot: Slot, child: Slot) -> None:
        """An answer begins with the computed prompt of another."""
        cells = 0 if self.rules.pool_cells else slot.cells  # a pool's cells may belong to several
        self._cells += cells - child.cells
        child.content, child.tokens, child.cells = slot.content, slot.tokens, cells
        if child.row is not None:
            child.row.phase = "generates"

    def _empty_further(self) -> None:
        """Slots of further answers get their prompt with the first call of the batch in which it ends, though others follow."""
        for slot in self.slots:
            row = slot.row
            if row is not None and row.phase == "prompt" and slot.tokens == row.prompt:
                for child in row.siblings:
                    self._cells -= child.cells
                    child.tokens, child.cells = slot.tokens, 0
                    if child.row is not None and slot.cells < slot.tokens:
                        child.row.torn = True

    def _empty_idle(self, batch: SlotBatch) -> int | None:
        """Empty the first slot that is not in use and has a cache; None if there is none."""
        for slot in self.slots:
            if slot.tokens and (slot.row is None or slot.row.ended):
                self._cells -= slot.cells
                slot.clear()
                return slot.index
        return None

    def _fail(self, batch: SlotBatch) -> None:
        """All that runs ends without its answer, and its cache goes."""
        for slot in self.slots:
            row = slot.row
            if row is None or row.ended:
                continue
            row.ended = "error"
            batch.ends.append(End(slot, row, "error", slot.tokens, clears=True))

    # -- results --------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of an iteration; return the requests that ended with it."""
        assert isinstance(batch, SlotBatch)
        self.processed_number = batch.number
        self._formed_s = max(self._formed_s, batch.t_sched)
        self._flying = None
        self._end(batch)
        return batch.finishing

    def _end(self, batch: SlotBatch) -> None:
        """Free the slots of those that ended."""
        for slot, row, why, _, clears in batch.ends:
            if clears:
                self._cells -= slot.cells
                slot.clear()
            if not row.answer:
                seq = row.seq
                self._note_tokens(row)
                seq.state = "dropped" if why == "error" else "finished"
                del self._rows[seq]
            self._release(slot)
            for child in row.siblings:  # whose prompt will not come
                if child.row is not None and child.row.phase == "waits" and not child.row.ended:
                    self._cells -= child.cells
                    child.clear()
                    self._release(child)
        if self.record_rows:
            batch.popped, self._popped = self._popped, []

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Iterations in which all slots in use generate, nobody ends or shifts, and attention reads as many cells."""
        rules = self.rules
        if not self.aggregate or self._queue or not self._busy or self._copied or self._busy > rules.n_ubatch:
            return None
        groups: list[list[Slot]] = []
        steps = rules.slot_tokens
        for slot in self.slots:
            row = slot.row
            if row is None:
                continue
            if row.phase != "generates":
                return None
            steps = min(steps, row.tokens - row.got, rules.slot_tokens - 1 - slot.tokens)
            if groups and (rules.pool_cells or groups[-1][-1].index == slot.index - 1):
                groups[-1].append(slot)
            else:
                groups.append([slot])
        if steps < 2:
            return None
        shape = self._shape
        parts = []
        for group in groups:
            rows = len(group)
            longest = max(slot.cells for slot in group)
            if rules.pool_cells:
                cells = padded(self._cells + rows, self.rules.pad_cells)
                steps = min(steps, (min(cells, rules.pool_cells) - self._cells) // rows)
            else:
                cells = padded(longest + 1, self.rules.pad_cells)
                steps = min(steps, cells - longest)
            part = Batch(-1, rows, rows, sum(slot.cells for slot in group) + rows, tokens=rows)
            part.pool_cells = cells
            parts.append(part)
        if steps < 2:
            return None
        shape.parts = parts
        shape.decode_rows = shape.decode_tokens = shape.tokens = self._busy
        shape.decode_kv_tokens = sum(part.decode_kv_tokens for part in parts)
        return Run(steps, shape, deaf=self._busy == rules.n_parallel)

    def take(self, steps: int) -> tuple[SlotBatch, int, int]:
        """Compute `steps` iterations at once."""
        held, rows = self._held(), self._busy
        self.next_number += steps
        self.processed_number = self.next_number - 2
        batch = SlotBatch(self.next_number - 1)
        context = self.rules.slot_tokens
        for slot in self.slots:
            row = slot.row
            if row is None:
                continue
            slot.tokens += steps
            slot.cells += steps
            row.got += steps
            batch.decode_kv_tokens += slot.cells
            full = not self.rules.context_shift and slot.tokens + 1 >= context
            if row.got == row.tokens or full:
                row.ended = "context_full" if full else "limit"
                batch.ends.append(End(slot, row, row.ended, slot.tokens, clears=row.answer > 0))
        self._cells += steps * rows
        batch.tokens = batch.decode_rows = batch.decode_tokens = rows
        batch.finishing = [end.row.seq for end in batch.ends if not end.row.answer]
        self._flying = batch
        return batch, held * steps + rows * (steps * (steps + 1) // 2), held + rows * steps


def _first(entry: Entry, tokens: int) -> Entry:
    """The first tokens of an entry."""
    return entry if tokens == entry.tokens else entry._replace(tokens=tokens, yields=False)


def _after(entry: Entry, tokens: int) -> Entry:
    """An entry without its first tokens."""
    return entry._replace(tokens=entry.tokens - tokens, first=entry.first + tokens)


def _cut(entries: list[Entry], start: int, end: int) -> list[Entry]:
    """The tokens from `start` to `end` of a batch."""
    out: list[Entry] = []
    at = 0
    for entry in entries:
        low, high = max(start - at, 0), min(end - at, entry.tokens)
        if low < high:
            out.append(_first(_after(entry, low), high - low))
        at += entry.tokens
    return out


def _place(content: Content, start: int, segment: int, offset: int) -> int:
    """Where a token stands in a content from `start` on; its length if nowhere."""
    for (of, first, length), begins in zip(content.runs, content.starts, strict=True):
        place = begins + offset - first
        if of == segment and first <= offset < first + length and place >= start:
            return place
    return content.length
