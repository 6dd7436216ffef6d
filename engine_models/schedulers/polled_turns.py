"""Turns of up to three calls: all decodes, then the last tokens of prompts, then a piece of every other prompt.

A thread does everything. It looks at its queue only when a budget of time is used up, takes all who wait there at once, and then
goes through turns until the budget is used up again, or nothing is left. With nothing left it waits for the next arrival.

A turn: every row decodes; if as many rows are left as may run, it ends. Else so many of those taken in join the prompts in work
as there are places. Prompts of which only the last token is left compute it, and are rows from the next turn on. Of every other
prompt the next piece is computed, up to `prefill_step_size` tokens and not beyond the end of a segment, all padded to the
longest. There is no budget of tokens, and no test of memory.

What a call computes is handed out in the next turn: a token comes at the end of the turn after the call that made it, and a row
is computed once more, for nothing, in the turn that hands out its last token. The thread waits for all calls of a turn, but
where a turn was the last token of prompts alone: then it goes on, or looks at its queue, while that is computed.

Where requests are served alone, the thread takes one, serves it to its end, and takes the next.

Prompts are kept as whole copies at the end of each of their segments, answers with their prompts when they end
(`engine_models.memory.prompt_copies`). A request looks for one when it is taken in, and for a copy holds the memory of the whole.

Source: behaviour of MLX LM 0.32 (`mlx_lm/server.py`: `ResponseGenerator._generate`; `mlx_lm/generate.py`: `BatchGenerator`),
checked step by step against recordings; see docs/engines/mlx_lm.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Literal

from engine_models.memory.padded_rows import PaddedRows
from engine_models.memory.prompt_copies import Kind, PromptCopies
from engine_models.memory.radix import Content, content_of
from engine_models.parts.batch import Batch, Span
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import INFINITY, Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.errors import InfeasibleError
from hardware_profiles.records import dataclass

Mode = Literal["decode", "first_token", "prompt"]


def no_system(seq: Sequence) -> int:
    """Of a request that is one segment, whose copies count as answers."""
    return -1


def shared_head(seq: Sequence) -> int:
    """Tokens of a chat's system prompt: what it shares with others before text of its own begins (0: none)."""
    head = seq.runs[0][2] if seq.runs else 0
    return head if head < seq.prompt_tokens else 0


@dataclass(frozen=True)
class TurnRules:
    """What such a scheduler may do. Names of knobs are those of MLX LM.

    Attributes
    ----------
    decode_concurrency, prompt_concurrency : rows that run, and prompts in work; the larger bounds the rows.
    prefill_step_size : tokens of a prompt in a call.
    prompt_cache_tokens : tokens that rows, prompts and copies may hold together before copies go, None for no limit.
    time_budget_s : time between two looks at the queue [s].
    held_tokens : tokens that memory holds, rows, prompts and copies together; None: whoever sends the requests sees to it.
    padded : whether a call reads and computes its padding (a recording's clock does not count it).
    system_tokens : of a request, the tokens of its system prompt; -1 where it is no chat.
    alone : requests are served one after the other; their prompts are stored with their answers only, when these end.
    """

    decode_concurrency: int = 32
    prompt_concurrency: int = 8
    prefill_step_size: int = 2048
    prompt_cache_tokens: int | None = None
    time_budget_s: float = 0.5
    held_tokens: int | None = None
    padded: bool = True
    system_tokens: Callable[[Sequence], int] = shared_head
    alone: bool = False

    @property
    def rows(self) -> int:
        """With so many rows no prompt is taken on."""
        return max(self.decode_concurrency, self.prompt_concurrency)


class TurnBatch(Batch):
    """One call. `closes` the turn: then tokens are handed out and copies stored.

    Noted with the rows: who was `taken` in, what was `stored` (kind, tokens) and what went (`dropped`: why, tokens) since the
    call before, the byte limits of the store in tokens (`limits`), its `copies`, and with the last call of a turn who is where
    after it.
    """

    __slots__ = (
        "closes",
        "copies",
        "dropped",
        "limits",
        "mode",
        "prompting",
        "running",
        "stored",
        "taken",
        "waiting",
    )

    def __init__(self, number: int, mode: Mode) -> None:
        super().__init__(number)
        self.mode: Mode = mode
        self.closes = False
        self.taken: list[Sequence] = []
        self.stored: list[tuple[Kind, int]] = []
        self.dropped: list[tuple[str, int]] = []
        self.limits: list[int] = []
        self.copies = 0
        self.running: list[Sequence] = []
        self.prompting: list[Sequence] = []
        self.waiting: list[Sequence] = []


class TurnRow:
    """A request taken in: its segments not yet computed, and their kinds; `first` is the first call that may hand out a token."""

    __slots__ = ("computed", "content", "copied", "dropped", "first", "kinds", "segments", "seq")

    def __init__(self, seq: Sequence) -> None:
        self.seq = seq
        self.content: Content = content_of(seq)
        self.computed = 0
        self.copied = 0  # tokens of the copy that it waits with
        self.segments: list[int] = []
        self.kinds: list[Kind] = []
        self.first = 0
        self.dropped = False  # its client went in the midst of a turn

    def cut(self, found: int, system_tokens: int) -> None:
        """Set what is left of the segments behind `found` tokens; the last token is a segment of its own."""
        prompt = self.seq.prompt_tokens
        if system_tokens < 0:
            whole: list[tuple[int, Kind]] = [(prompt, "assistant")]
        elif system_tokens:
            whole = [(system_tokens, "system"), (prompt - system_tokens, "user")]
        else:
            whole = [(prompt, "user")]
        self.computed, skipped = found, found
        for tokens, kind in whole:
            if skipped < tokens:
                self.segments.append(tokens - skipped)
                self.kinds.append(kind)
            skipped = max(0, skipped - tokens)
        if self.segments[-1] != 1:
            self.segments[-1] -= 1
            self.segments.append(1)


class PolledTurnsScheduler(Scheduler):
    """Waiting and running requests of one server, and the rule that forms the next call. Its executor is synchronous.

    Parameters
    ----------
    rules : the knobs.
    copies : the stored prompts.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names.
    """

    def __init__(
        self,
        rules: TurnRules,
        copies: PromptCopies,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.copies = copies
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        # a row's length counts the tokens handed out: one less than the next call attends to
        self.decodes = DecodeSet(1)
        self.windows = windows
        self._queue: deque[Sequence] = deque()
        self._rows: dict[Sequence, TurnRow] = {}  # all who were taken in
        self._waiting: deque[TurnRow] = deque()
        self._prompting: list[TurnRow] = []
        self._running: dict[Sequence, None] = {}
        self._prompt_kv = PaddedRows()
        self._kv = PaddedRows()
        self._calls: deque[TurnBatch] = deque()  # of this turn, not yet launched
        self._ends: list[tuple[TurnRow, Kind]] = []  # segments that this turn ends
        self._in_turn = False
        self._thread_s: float | None = None  # where the thread is not at the end of the last call
        self._round_s = -math.inf  # when it began to go through turns
        self._pauses: list[int] = []  # calls that hand out nothing
        self._orders = 0
        self._shape = Batch(-1)
        self._taken: list[Sequence] = []
        self._hits: list[tuple[Sequence, int]] = []
        self._stored: list[tuple[Kind, int]] = []
        self._dropped: list[tuple[str, int]] = []
        self._limits: list[int] = []

    # -- queues ---------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        self._queue.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._rows or self._queue)

    def state(self) -> State:
        """Requests, and tokens of memory."""
        waiting = len(self._queue) + len(self._waiting)
        held = self._active_tokens() + self.copies.tokens
        return len(self._rows) - len(self._waiting), waiting, held, self.rules.held_tokens or 0

    def _active_tokens(self) -> int:
        """Tokens that rows, prompts in work and copies of those who wait hold."""
        return self._kv.held + self._prompt_kv.held + sum(row.copied for row in self._waiting)

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; in the midst of a turn the request goes when it ends."""
        row = self._rows.get(seq)
        if row is None:
            self._queue.remove(seq)
        elif self._in_turn:
            row.dropped = True
            return False
        else:
            self._forget(row)
        seq.state = "finished"
        return True

    def _forget(self, row: TurnRow) -> None:
        """Let a request go between turns."""
        seq = row.seq
        del self._rows[seq]
        if seq in self._running:
            self._note_tokens(row)
            self.decodes.leave(seq)
            del self._running[seq]
            self._kv.keep(len(self._running), self._longest())
        elif row in self._waiting:
            self._waiting.remove(row)
        else:
            self._prompting.remove(row)
            self._prompt_kv.keep(
                len(self._prompting), max((row.computed for row in self._prompting), default=0)
            )

    def close(self) -> None:
        """Note the tokens of rows that still decode."""
        for row in self._rows.values():
            if row.first:
                self._note_tokens(row)

    def _note_tokens(self, row: TurnRow) -> None:
        """Note the tokens that a row has got with the calls so far."""
        seq = row.seq
        seq.emissions += (row.first, row.first - 1)
        seq.emit_between(self.next_number - 1, self._pauses)
        if seq.emissions[0] > seq.emissions[1]:
            del seq.emissions[:2]

    def _longest(self) -> int:
        """Tokens of the longest row."""
        return max((seq.offset for seq in self._running), default=0) + self.decodes.steps

    # -- the thread -----------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> TurnBatch | None:
        """Form the next call; None if there is nothing to run."""
        if not self._in_turn:
            thread_s = now_s if self._thread_s is None else self._thread_s
            self._thread_s = None
            if not self._rows or (
                thread_s - self._round_s > self.rules.time_budget_s and not self.rules.alone
            ):
                self._poll(thread_s)
                self._round_s = thread_s
            if not self._rows:
                return None
            self._plan_turn(thread_s)
        batch = self._calls.popleft()
        self.next_number += 1
        batch.taken, self._taken = self._taken, []
        batch.hits, self._hits = tuple(self._hits), []
        batch.stored, self._stored = self._stored, []
        batch.dropped, self._dropped = self._dropped, []
        batch.limits, self._limits = self._limits, []
        batch.copies = len(self.copies)
        return batch

    def _poll(self, now_s: float) -> None:
        """Take in all who have arrived."""
        rules, copies, queue = self.rules, self.copies, self._queue
        while queue and queue[0].arrival_s <= now_s:
            seq = queue.popleft()
            row = self._rows[seq] = TurnRow(seq)
            found, row.copied = copies.find(row.content, seq.prompt_tokens)
            row.cut(found, -1 if rules.alone else rules.system_tokens(seq))
            if rules.alone:
                row.kinds.clear()
            self._waiting.append(row)
            seq.state, seq.computed = "running", found
            seq.first_scheduled_s, seq.first_hit_tokens = now_s, found
            self.queried_tokens += seq.prompt_tokens
            self.hit_tokens += found
            self._taken.append(seq)
            if found:
                self._hits.append((seq, found))
            if rules.prompt_cache_tokens is not None:
                limit = rules.prompt_cache_tokens - self._active_tokens()
                self._limits.append(limit)
                self._dropped += copies.trim(limit)
            if rules.alone:
                break

    def _plan_turn(self, thread_s: float) -> None:
        """Form the calls of the next turn."""
        ended = self._decode(self._call("decode")) if self._running else []
        lasts: list[TurnRow] = []
        if len(self._running) < self.rules.rows:
            self._take_on()
            lasts = [row for row in self._prompting if row.segments == [1]]
            if lasts:
                self._compute_last(lasts)
            if self._prompting:
                self._compute_pieces()
        calls = self._calls
        last = calls[-1]
        last.closes = True
        last.finishing = ended
        self._in_turn = len(calls) > 1 or bool(
            ended or self._ends
        )  # else nothing is left to be done when it ends
        self._pauses += [call.number for call in calls if call is not last]
        for row in lasts:
            row.first = last.number + 1
        if last.mode == "first_token" and len(calls) == 1:
            self._thread_s = thread_s
        if self.record_rows:
            last.running = list(self._running)
            last.prompting = [row.seq for row in self._prompting]
            last.waiting = [row.seq for row in self._waiting]
        self._check_memory(last)

    def _call(self, mode: Mode) -> TurnBatch:
        batch = TurnBatch(self.next_number + len(self._calls), mode)
        batch.spans = tuple([Span(window, 0, 0) for window in self.windows])
        if self.record_rows:
            batch.rows = []
        self._calls.append(batch)
        return batch

    def _decode(self, batch: TurnBatch) -> list[Sequence]:
        """All rows decode; those whose last token is handed out leave."""
        decodes, kv = self.decodes, self._kv
        if batch.rows is not None:
            batch.rows = [(seq, 1, decodes.length(seq)) for seq in self._running]
        self._serve(batch)
        decodes.steps += 1
        kv.grow(1)
        ended = decodes.pop_ended()
        for seq in ended:
            decodes.leave(seq)
            seq.state = "ending"
            del self._running[seq]
        if ended:
            ended.sort(key=lambda seq: seq.order)
            kv.keep(len(self._running), self._longest())
        return ended

    def _serve(self, batch: Batch) -> None:
        """Enter the next step of all rows in a batch."""
        decodes, rows, longest = self.decodes, self.decodes.count, self._kv.longest + 1
        decodes.serve(batch)
        if self.rules.padded:
            batch.decode_kv_tokens = rows * longest
            batch.spans = tuple([Span(w, rows * min(longest, w), rows * (longest < w)) for w in self.windows])
        else:
            batch.decode_kv_tokens += rows

    def _take_on(self) -> None:
        """Let those who wait join the prompts in work."""
        rules = self.rules
        places = min(
            rules.prompt_concurrency - len(self._prompting),
            rules.rows - len(self._running),
            len(self._waiting),
        )
        if places <= 0:
            return
        joining = [self._waiting.popleft() for _ in range(places)]
        self._prompt_kv.join(PaddedRows(places, max(row.computed for row in joining)))
        self._prompting += joining

    def _compute_last(self, rows: list[TurnRow]) -> None:
        """Compute the last tokens of prompts; they are rows from now on."""
        batch, kv, left = (
            self._call("first_token"),
            self._prompt_kv,
            [row for row in self._prompting if row.segments != [1]],
        )
        joining = kv.part(len(rows), max(row.computed for row in rows))
        self._compute(batch, [(row, 1) for row in rows], joining.longest)
        joining.grow(1)
        self._kv.join(joining)
        kv.keep(len(left), max((row.computed for row in left), default=0))
        self._prompting = left
        for row in rows:
            seq = row.seq
            seq.order = self._orders
            self._orders += 1
            self._running[seq] = None
            self.decodes.join(seq)

    def _compute_pieces(self) -> None:
        """Compute the next piece of all prompts in work."""
        pieces: list[tuple[TurnRow, int]] = []
        for row in self._prompting:
            tokens = min(row.segments[0], self.rules.prefill_step_size)
            row.segments[0] -= tokens
            if not row.segments[0]:
                del row.segments[0]
                if row.kinds:
                    self._ends.append((row, row.kinds.pop(0)))
            pieces.append((row, tokens))
        self._compute(self._call("prompt"), pieces, self._prompt_kv.longest)
        self._prompt_kv.grow(max(tokens for _, tokens in pieces))

    def _compute(self, batch: TurnBatch, pieces: list[tuple[TurnRow, int]], prior: int) -> None:
        """Enter tokens of prompts in a batch, whose rectangle holds `prior` tokens a row so far."""
        for row, tokens in pieces:
            batch.serve(tokens, row.computed, decodes=False)
            if batch.rows is not None:
                batch.rows.append((row.seq, tokens, row.computed))
            row.computed += tokens
            row.seq.computed = row.computed
        if self.rules.padded:
            longest = max(tokens for _, tokens in pieces)
            batch.prefill = [(longest, prior)] * len(pieces)
            batch.padded_tokens = longest * len(pieces)

    def _check_memory(self, batch: TurnBatch) -> None:
        most, held = self.rules.held_tokens, self._active_tokens() + self.copies.tokens
        if most is not None and held > most:
            raise InfeasibleError(
                f"the server runs out of memory: {len(self._running):,} rows of {self._kv.room:,} tokens, "
                f"{len(self._prompting):,} prompts of {self._prompt_kv.room:,} and {len(self.copies):,} stored prompts of "
                f"{self.copies.tokens:,} together are {held:,} tokens of KV cache, memory holds {most:,}",
                where="deployment",
                mend="fewer rows (decode_concurrency), fewer stored prompts (prompt_cache_size, prompt_cache_bytes), a device "
                "with more memory, or less load",
            )

    # -- results --------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a call; at the end of a turn return the requests that ended with it."""
        self.processed_number = batch.number
        assert isinstance(batch, TurnBatch)
        if not batch.closes:
            return []
        self._in_turn = False
        for row, kind in self._ends:
            self._store(kind, row.content, row.computed)
        self._ends.clear()
        for seq in batch.finishing:
            row = self._rows.pop(seq)
            self._note_tokens(row)
            seq.state = "finished"
            self._store("assistant", row.content, seq.final_length)
        gone = [row for row in self._rows.values() if row.dropped]
        for row in gone:
            self._forget(row)
            row.seq.state = "finished"
        return batch.finishing + [row.seq for row in gone] if gone else batch.finishing

    def _store(self, kind: Kind, content: Content, tokens: int) -> None:
        self._stored.append((kind, tokens))
        self._dropped += self.copies.store(kind, content, tokens)

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Turns in which rows decode and nothing else: until the thread looks at its queue, or a row ends."""
        decodes, rules = self.decodes, self.rules
        if not self.aggregate or self._in_turn or self._thread_s is not None or not decodes.count:
            return None
        prompts = bool(self._waiting or self._prompting)
        if prompts and len(self._running) < rules.rows:
            return None
        steps = decodes.steps_to_next_end()
        if prompts:
            steps -= 1  # the turn in which a row ends takes prompts on
        longest = self._kv.longest + 1
        steps = min(steps, *[window - longest + 1 for window in self.windows if longest < window], steps)
        if steps < 2 or not self._fits(steps):
            return None
        self._serve(self._shape)
        return Run(steps, self._shape, self._polls_s(), deaf=True)

    def _fits(self, steps: int) -> bool:
        """Whether memory certainly holds the rows for so many steps."""
        most, kv = self.rules.held_tokens, self._kv
        return most is None or self._active_tokens() + self.copies.tokens + kv.rows * (steps + 256) <= most

    def _polls_s(self) -> float:
        """The first time at which the budget is used up."""
        if self.rules.alone:
            return INFINITY
        budget_s, due_s = self.rules.time_budget_s, self._round_s + self.rules.time_budget_s
        while due_s - self._round_s > budget_s:
            due_s = math.nextafter(due_s, 0.0)
        while due_s - self._round_s <= budget_s:
            due_s = math.nextafter(due_s, math.inf)
        return due_s

    def take(self, steps: int) -> tuple[TurnBatch, int, int]:
        """Form `steps` turns of one decode call at once."""
        kv, before = self._kv, steps - 1
        self.next_number += steps
        batch = TurnBatch(self.next_number - 1, "decode")
        batch.closes = True
        self.processed_number = batch.number - 1
        other = self._active_tokens() - kv.held + self.copies.tokens
        self.decodes.steps += before
        held = kv.held_over(before)
        most = kv.held
        batch.finishing = self._decode(batch)
        self._in_turn = bool(batch.finishing)
        return batch, held + kv.held + steps * other, max(most, kv.held) + other
