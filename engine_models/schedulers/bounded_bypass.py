"""Pages for prompt and longest answer at admission; who does not fit is passed over, but only so often.

Before every iteration the queue is gone through in order. A request starts if a row and all pages that it may ever need are
free, those of its prompt that running rows hold apart. If not, later ones are tried; each that starts counts as a skip for all
that were passed over before it, and nobody starts past one that has `max_skips`. Running rows keep their pages to the end:
nobody is preempted.

An iteration is a chain of calls: one for every row with prompt left, a chunk of it alone, in order of admission, then one for
all rows whose prompt is done, which computes the last token of a new one's prompt. So every prompt in work makes the rows that
generate wait for a chunk. Pages that others have completed meanwhile are not computed again, and a page is copied as far as
another has its beginning (`engine_models.memory.chained_pages`).

Source: behaviour of ExLlamaV2 0.3.2 (`exllamav2/generator/dynamic.py`: `iterate`, `iterate_start_jobs`, `prefill`), checked step
by step against recordings; see docs/engines/exllamav2.md.
"""

from __future__ import annotations

from collections import deque

from engine_models.memory.chained_pages import PAGE_TOKENS, ChainedPages, Name, Page
from engine_models.memory.radix import Content, content_of
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class BypassRules:
    """What such a scheduler may do. Names of knobs are those of ExLlamaV2.

    Attributes
    ----------
    max_batch_size : rows that may run at once.
    max_chunk_size : prompt tokens of a call, a multiple of a page.
    max_seq_len : prompt and answer of a request that asks for no limit.
    max_skips : how often a request may be passed over.
    paged : whether there are pages. Without them the cache is one sequence: one request at a time, which finds the beginning
        that it shares with the one before.
    """

    max_batch_size: int
    max_chunk_size: int
    max_seq_len: int
    max_skips: int = 4
    paged: bool = True


class BypassBatch(Batch):
    """One call. `closes` the iteration: then tokens are handed out. With it is noted what the iteration did: who `started`, what
    was found (`hits`), the new counts of those passed over (`skips`), the pages then free, and how many of its rows are `chunks`.
    """

    __slots__ = ("chunks", "closes", "skips", "started")

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.closes = False
        self.chunks = 0
        self.started: list[Sequence] = []
        self.skips: dict[Sequence, int] = {}


class BypassJob:
    """A request: the names of its prompt's full pages, the pages it needs besides, and those it has; `kv` tokens are computed."""

    __slots__ = ("content", "dropped", "first", "found", "kv", "more", "names", "pages", "seq", "skips")

    def __init__(self, seq: Sequence, content: Content, names: list[Name], more: int) -> None:
        self.seq = seq
        self.content = content
        self.names = names
        self.more = more
        self.pages: list[Page] = []
        self.kv = 0
        self.found = 0  # tokens found in this iteration
        self.skips = 0
        self.first = 0  # the first call that gave it a token
        self.dropped = False  # its client went in the midst of an iteration


class BypassScheduler(Scheduler):
    """Waiting and running requests of one server, and the rule that forms the next call. Its executor is synchronous.

    Parameters
    ----------
    rules : the knobs.
    kv : the pages.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names.
    """

    def __init__(
        self,
        rules: BypassRules,
        kv: ChainedPages,
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
        self._pending: dict[Sequence, BypassJob] = {}
        self._active: dict[Sequence, BypassJob] = {}
        self._prefilling: dict[Sequence, BypassJob] = {}
        self._calls: deque[BypassBatch] = deque()  # of this iteration, not yet launched
        self._in_iteration = False
        self._nobody_fits = False  # of those who wait, until pages are freed or named
        self._completes: dict[
            int, list[BypassJob]
        ] = {}  # step of the decode set after which rows have filled a page
        self._pauses: list[int] = []  # calls that hand out nothing to rows
        self._orders = 0
        self._last: tuple[Content, int] | None = (
            None  # what is in a cache without pages, and how many tokens of it
        )
        self._shape = Batch(-1)

    # -- queues ---------------------------------------------------------------------------------------------

    @property
    def reserves_answers(self) -> bool:
        """As of the base."""
        return True

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        prompt, content = seq.prompt_tokens, content_of(seq)
        room = (seq.final_length if seq.stop_known else self.rules.max_seq_len) - prompt
        longest = prompt + max(seq.limit_tokens or room, 1)
        whole = (prompt - 1) // PAGE_TOKENS if self.rules.paged else 0
        more = -(-longest // PAGE_TOKENS) - whole if self.rules.paged else 1
        self._pending[seq] = BypassJob(seq, content, self.kv.names(content, whole), more)
        seq.state = "waiting"
        self._nobody_fits = False

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._active or self._pending)

    def state(self) -> State:
        """Requests, and pages."""
        return len(self._active), len(self._pending), self.kv.used_blocks, self.kv.capacity_blocks

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; in the midst of an iteration the request goes when it ends."""
        job = self._active.get(seq)
        if job is None:
            del self._pending[seq]
        elif self._in_iteration:
            job.dropped = True
            return False
        else:
            self._forget(job)
        seq.state = "finished"
        return True

    def _forget(self, job: BypassJob) -> None:
        """Let a running request go between iterations."""
        seq = job.seq
        if seq.state == "decoding":
            self._note_tokens(job)
            self._leave(job)
        self._prefilling.pop(seq, None)
        self._release(job)

    def _leave(self, job: BypassJob) -> None:
        self._write_tail(job)
        self.decodes.leave(job.seq)

    def _release(self, job: BypassJob) -> None:
        if not self.rules.paged:
            self._last = job.content, job.seq.computed
        self.kv.release(job.pages)
        del self._active[job.seq]
        self._nobody_fits = False

    def close(self) -> None:
        """Note the tokens of requests that still run."""
        for job in self._active.values():
            if job.first:
                self._note_tokens(job)

    def _note_tokens(self, job: BypassJob) -> None:
        """Note the tokens that a row has got with the calls so far."""
        job.seq.emissions += (job.first, job.first - 1)
        job.seq.emit_between(self.next_number - 1, self._pauses)
        if job.seq.emissions[0] > job.seq.emissions[1]:
            del job.seq.emissions[:2]

    # -- the iteration --------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> BypassBatch | None:
        """Form the next call; None if there is nothing to run."""
        while not self._calls:
            if not self.has_work():
                return None
            self._plan_iteration(now_s)
        self.next_number += 1
        return self._calls.popleft()

    def _plan_iteration(self, now_s: float) -> None:
        """Form the calls of the next iteration."""
        calls = self._calls
        started, skips = self._start(now_s) if self._pending and not self._nobody_fits else ([], {})
        free = self.kv.free_blocks
        rows: list[tuple[Sequence, int, int]] = []
        found = [job for job in self._prefilling.values() if job.found]
        if self._prefilling:
            for seq in self._active:
                if seq.state == "decoding":
                    self._write_tail(self._active[seq])
            for job in list(self._prefilling.values()):
                chunk = self._chunk(job)
                if chunk is not None:
                    batch = self._call()
                    batch.serve(*chunk, decodes=False)
                    rows.append((job.seq, *chunk))
                if job.found and job not in found:
                    found.append(job)
                if job.kv == job.seq.prompt_tokens - 1:
                    del self._prefilling[job.seq]
                    self._join(job)
        chunks = len(rows)
        ended: list[Sequence] = []
        if self.decodes.count:
            if self.record_rows:
                length = self.decodes.length
                rows += [(seq, 1, length(seq) - 1) for seq in self._active if seq.state == "decoding"]
            ended = self._generate(self._call())
        if not calls:
            return
        last = calls[-1]
        last.closes, last.chunks, last.finishing = True, chunks, ended
        last.started, last.skips, last.free_blocks = started, skips, free
        for job in found:
            last.hits += ((job.seq, job.found),)
            self._count_found(job)
        if self.record_rows:
            last.rows = rows
        self._pauses += [call.number for call in calls if call is not last or not last.decode_rows]
        self._in_iteration = len(calls) > 1 or bool(ended)

    def _call(self) -> BypassBatch:
        batch = BypassBatch(self.next_number + len(self._calls))
        batch.spans = self.decodes.no_spans
        self._calls.append(batch)
        return batch

    def _count_found(self, job: BypassJob) -> None:
        job.seq.first_hit_tokens += job.found
        self.hit_tokens += job.found
        job.found = 0

    def _start(self, now_s: float) -> tuple[list[Sequence], dict[Sequence, int]]:
        """Start who fits, in order; return them, and the new counts of those passed over."""
        rules, kv = self.rules, self.kv
        started: list[Sequence] = []
        skips: dict[Sequence, int] = {}
        passed: list[BypassJob] = []
        self._nobody_fits = True
        if not kv.free_blocks or len(self._active) >= rules.max_batch_size:
            return started, skips
        for seq, job in list(self._pending.items()):
            if len(self._active) >= rules.max_batch_size or kv.missing(job.names) + job.more > kv.free_blocks:
                passed.append(job)
                continue
            if any(other.skips >= rules.max_skips for other in passed):
                break
            for other in passed:
                other.skips += 1
                skips[other.seq] = other.skips
            del self._pending[seq]
            self._active[seq] = self._prefilling[seq] = job
            job.pages = kv.take(job.names, job.more)
            for page in job.pages:
                if page.filled < PAGE_TOKENS:
                    break
                job.kv += PAGE_TOKENS
            job.found = job.kv
            seq.order = self._orders
            self._orders += 1
            seq.state, seq.computed, seq.first_scheduled_s = "running", job.kv, now_s
            self.queried_tokens += seq.prompt_tokens
            started.append(seq)
            self._nobody_fits = False
        return started, skips

    def _chunk(self, job: BypassJob) -> tuple[int, int] | None:
        """The next chunk of a prompt: its tokens and those before it; None if all of it is found."""
        if not self.rules.paged:
            return self._chunk_of_sequence(job)
        kv, pages, content = self.kv, job.pages, job.content
        begin = job.kv
        end = (begin + self.rules.max_chunk_size) // PAGE_TOKENS * PAGE_TOKENS
        end = min(end, job.seq.prompt_tokens - 1)
        last = -(-end // PAGE_TOKENS)
        for number in range(begin // PAGE_TOKENS, last):  # completed by others meanwhile
            if pages[number].filled < PAGE_TOKENS:
                break
            begin = job.kv = (number + 1) * PAGE_TOKENS
            job.found += PAGE_TOKENS
            pages[number].old = None
        first = begin // PAGE_TOKENS
        end = next((n * PAGE_TOKENS for n in range(first, last) if pages[n].filled == PAGE_TOKENS), end)
        if end <= begin:
            return None
        if begin == first * PAGE_TOKENS:
            copied = kv.match(pages, first, content, end)
            if copied > 1:
                kv.follow(pages, first)
                kv.write(pages, first, content, copied)
                begin += copied
                job.kv += copied
                job.found += copied
        if end == begin:
            return None
        job.kv = job.seq.computed = end
        for number in range(first, min(end // PAGE_TOKENS + 1, len(pages))):
            kv.write(pages, number, content, min(max(end - number * PAGE_TOKENS, 0), PAGE_TOKENS))
            kv.follow(pages, number)
        return end - begin, begin

    def _chunk_of_sequence(self, job: BypassJob) -> tuple[int, int] | None:
        """The same in a cache without pages."""
        rest = job.seq.prompt_tokens - 1
        if not job.kv and self._last is not None:
            last, tokens = self._last
            job.kv = job.found = (
                job.content.common(0, min(tokens, rest), last.slice(0, tokens)) if tokens else 0
            )
        begin, end = job.kv, min(job.kv + self.rules.max_chunk_size, rest)
        job.kv = job.seq.computed = end
        return (end - begin, begin) if end > begin else None

    def _join(self, job: BypassJob) -> None:
        """A row whose prompt is computed short of its last token generates from now on."""
        job.first = self.next_number + len(self._calls)
        self.decodes.join(job.seq)
        self._note_page(job)

    def _note_page(self, job: BypassJob) -> None:
        """Note the step after which a row has filled its page."""
        if not self.rules.paged:
            return
        tokens = self.decodes.length(job.seq) - 1
        due = self.decodes.steps + PAGE_TOKENS - tokens % PAGE_TOKENS
        self._completes.setdefault(due, []).append(job)

    def _write_tail(self, job: BypassJob) -> None:
        """Let the page that a row generates into hold what it has computed of it."""
        tokens = self.decodes.length(job.seq) - 1
        if self.rules.paged and tokens % PAGE_TOKENS:
            self.kv.write(job.pages, tokens // PAGE_TOKENS, job.content, tokens % PAGE_TOKENS)

    def _generate(self, batch: BypassBatch) -> list[Sequence]:
        """All rows whose prompt is done get a token; return those for which it is the last."""
        decodes = self.decodes
        decodes.serve(batch)
        decodes.steps += 1
        self._complete_pages()
        ended = decodes.pop_ended()
        for seq in ended:
            self._leave(self._active[seq])
            seq.state = "ending"
        ended.sort(key=lambda seq: seq.order)
        return ended

    def _complete_pages(self) -> None:
        """Name the pages that rows have filled with the step just counted."""
        due = self._completes.pop(self.decodes.steps, None)
        if due is None:
            return
        for job in sorted(due, key=lambda job: job.seq.order):
            seq = job.seq
            if seq.state != "decoding":
                continue
            number = (self.decodes.length(seq) - 1) // PAGE_TOKENS - 1
            self.kv.complete(job.pages, number, job.content)
            self._note_page(job)
            self._nobody_fits = False

    # -- results --------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a call; at the end of an iteration return the requests that ended with it."""
        self.processed_number = batch.number
        assert isinstance(batch, BypassBatch)
        if not batch.closes:
            return []
        self._in_iteration = False
        for seq in batch.finishing:
            job = self._active[seq]
            self._note_tokens(job)
            self._release(job)
            seq.state = "finished"
        gone = [job for job in self._active.values() if job.dropped]
        for job in gone:
            self._forget(job)
            job.seq.state = "finished"
        return batch.finishing + [job.seq for job in gone] if gone else batch.finishing

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Iterations in which all rows generate and nobody starts."""
        decodes = self.decodes
        if not self.aggregate or self._in_iteration or self._calls or self._prefilling or not decodes.count:
            return None
        if self._pending and not self._nobody_fits:
            return None
        steps = decodes.steps_alike()
        deaf = not self.kv.free_blocks or len(self._active) >= self.rules.max_batch_size
        if self._pending or deaf:
            steps = min(steps, min(self._completes, default=decodes.steps + steps) - decodes.steps)
        if steps < 2:
            return None
        decodes.serve(self._shape)
        return Run(steps, self._shape, deaf=deaf)

    def take(self, steps: int) -> tuple[BypassBatch, int, int]:
        """Form `steps` iterations of one call at once."""
        decodes, kv = self.decodes, self.kv
        self.next_number += steps
        batch = BypassBatch(self.next_number - 1)
        batch.closes = True
        self.processed_number = batch.number - 1
        held = most = 0
        for _ in range(steps - 1):
            decodes.steps += 1
            self._complete_pages()
            held += kv.used_blocks
            most = max(most, kv.used_blocks)
        batch.finishing = self._generate(batch)
        self._in_iteration = bool(batch.finishing)
        return batch, held + kv.used_blocks, max(most, kv.used_blocks)
