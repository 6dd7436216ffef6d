"""Memory first, then tokens: two passes over the active requests form each step, prompts and answers share it.

Requests are let into the *active list*, up to its length, in order of arrival; there they also wait for memory. A first pass says
which active requests the KV cache can hold, by one of three policies. `GUARANTEED_NO_EVICT` lets in who fits with its whole
answer beside what the running rows may still need, `STATIC_BATCH` does so only when nobody generates, `MAX_UTILIZATION` asks
for the next step alone, and when that does not fit pauses the last row that has begun: its memory goes, its answer so far becomes
prompt, it keeps its place. A second pass fills the step up to the token budget, prompts whole or in chunks. A request whose next
unknown block another one is about to compute is passed over until then.

With one step ahead (overlap) a row whose last token is in flight is not scheduled again, but still counts as running.

Source: behaviour of TensorRT-LLM's PyTorch backend of 2026 (`tensorrt_llm/_torch/pyexecutor/scheduler/scheduler.py` at 002f3cc3,
`py_executor.py`), checked step by step against recordings; see docs/engines/trtllm.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Series
from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from engine_models.memory.block_tree import Block, BlockTree
from engine_models.memory.radix import Content, Runs, content_of
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.kept import Kept
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence

GUARANTEED, UTILIZATION, STATIC = "GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"
CAPACITY_POLICIES = (GUARANTEED, UTILIZATION, STATIC)
FIRST_COME, EQUAL_PROGRESS = "FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"
CHUNKING_POLICIES = (FIRST_COME, EQUAL_PROGRESS)


@dataclass(frozen=True)
class TwoPassRules:
    """What such a scheduler may do. Names of knobs are TensorRT-LLM's.

    Attributes
    ----------
    max_batch_size : active requests.
    max_num_tokens : tokens of a step.
    max_seq_len : prompt and answer of a request.
    capacity_scheduler_policy : one of `CAPACITY_POLICIES`.
    context_chunking_policy : one of `CHUNKING_POLICIES`, None: prompts are computed whole.
    batch_wait_timeout_iters, batch_wait_max_tokens_ratio : prompts wait so many steps beside running rows, or until the step has
        such a share of its token budget (0, 0: they do not wait).
    overlap : whether a step is formed before the results of the last are known.
    """

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    capacity_scheduler_policy: str = GUARANTEED
    context_chunking_policy: str | None = None
    batch_wait_timeout_iters: int = 0
    batch_wait_max_tokens_ratio: float = 0.0
    overlap: bool = True


class TwoPassBatch(Batch):
    """A scheduled step. `contexts` are the rows whose prompt it computes, their pauses so far, and whether it is then done.

    `skipped`, `running`, `waiting` and `queued` are noted with the rows only.
    """

    __slots__ = ("contexts", "free_after", "queued", "running", "skipped", "waiting")

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.contexts: list[tuple[Sequence, int, bool]] = []
        self.skipped: list[Sequence] = []
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.queued: list[Sequence] = []
        self.free_after = 0


class ActiveRow:
    """What the scheduler knows of an active request besides its counts.

    prompt, answer : tokens of its prompt, which grows when it is paused, and those that it may still generate after it.
    total : blocks of both. held : whether it has blocks. chunk : tokens of its prompt in the step being formed.
    known : prompt tokens that it may find, as the first pass estimates. last : the latest batch in which it yields a token, up to
    date outside of the decode set, which it joined for the batches from `since` on.
    late : tokens that were in flight at a pause and came after it (one, with drafts some): so much its cache lags behind its
    answer.
    """

    __slots__ = ("answer", "chunk", "content", "held", "known", "last", "late", "prompt", "since", "total")

    def __init__(self, content: Content, prompt: int, answer: int) -> None:
        self.content = content
        self.prompt = prompt
        self.answer = answer
        self.total = self.chunk = self.known = self.late = 0
        self.last = self.since = -1
        self.held = False


def _computed(chunk: int, known: int, remaining: int) -> int:
    """Tokens that a chunk of a prompt computes if `known` are found: what is found moves a chunk, and shortens only the last."""
    if known <= 0 or known + chunk < remaining:
        return chunk
    return max(0, remaining - known)


@mypyc_attr(allow_interpreted_subclasses=True)
class TwoPassScheduler(Scheduler):
    """Waiting and active requests of one rank, and the two passes that form its next step.

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
        rules: TwoPassRules,
        kv: BlockTree,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.kv = kv
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.active: dict[Sequence, ActiveRow] = {}  # in order of arrival
        self.max_active = rules.max_batch_size
        self.decodes = self._new_decodes(windows)  # rows that generate, but for those whose last token is in flight
        self._queue: deque[Sequence] = deque()
        self._contexts: dict[Sequence, ActiveRow] = {}  # active rows without a whole prompt
        self._begun: dict[Sequence, ActiveRow] = {}  # those of them with a part of it
        self._ending: set[Sequence] = set()  # their last token is in flight
        self._wasting: set[Sequence] = set()  # the same, unknown to the engine: they still decode
        self._owed = 0  # blocks that rows which generate may still take
        self._orders = 0
        self._waited = 0  # steps that prompts have waited
        self._last_decode = -1  # latest batch that served the decode set
        self._latest = TwoPassBatch(-1)  # latest batch that computes prompts
        self._blocked = False  # nobody comes in before a row ends, whoever arrives
        self._shape = Batch(-1)
        self.holds_prompts = False  # none is computed in the next step
        self.spare_tokens = 0  # that a row's last step may hold beyond its answer

    def _new_decodes(self, windows: tuple[int, ...]) -> DecodeSet:
        """Build an empty set of generating rows."""
        return DecodeSet(self.kv.block_tokens, windows)

    # -- the outside ----------------------------------------------------------------------------------------

    @property
    def reserves_answers(self) -> bool:
        """As of the base; only what is computed counts as used."""
        return self.rules.capacity_scheduler_policy != UTILIZATION

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        seq.state = "waiting"
        self._queue.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.active or self._queue)

    def stuck(self) -> str | None:
        """As of the base: a prompt that was passed over comes again before one that has begun, and waits for its memory."""
        first = next((seq for seq in self._contexts if seq not in self._begun), None)
        if first is None or not self._begun:
            return None
        return (
            f"the engine would stop here for good: request {first.index} may take {self._contexts[first].total} of "
            f"{self.kv.capacity_blocks} blocks of the KV cache until its answer ends, {self.kv.free_blocks} are free, and the "
            "others belong to prompts that began while it waited for a prefix, and go on after it"
        )

    def state(self) -> State:
        """Requests, and blocks; cached blocks that nobody holds are free."""
        kv, waiting = self.kv, len(self._contexts) - len(self._begun)
        return (
            len(self.active) - waiting,
            waiting + len(self._queue),
            kv.capacity_blocks - kv.free_blocks,
            kv.capacity_blocks,
        )

    def cached(self) -> list[Kept] | None:
        """As of the base."""
        return self.kv.kept() if self.kv.prefix_caching else None

    def warm(self, pieces: Series[Kept]) -> None:
        """As of the base."""
        self.kv.warm(pieces)

    def prompts_fit(self) -> bool:
        """Whether a prompt would be computed in the next step, by memory and rows."""
        self._activate()
        if self.decodes.count >= self.rules.max_batch_size:
            return False
        return bool(self._fit_with_answers(TwoPassBatch(-1))) if self._contexts else False

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for seq in list(self.active):
            if seq.state == "decoding":
                self._leave_decodes(seq)

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base: what has been computed can be found by others still."""
        row = self.active.get(seq)
        if row is None:
            self._queue.remove(seq)
        elif seq in self._ending or seq in self._wasting:
            return False
        else:
            decodes = seq.state == "decoding"
            self._sync(seq)
            self._contexts.pop(seq, None)
            if row.held:
                if self._begun.pop(seq, None) is None:
                    self._owed -= row.total - len(seq.blocks) - seq.extra_blocks
                self.kv.release(seq, row.content, seq.length - 1 if decodes else 0)
            del self.active[seq]
        seq.state = "finished"
        self._blocked = False
        return True

    def _unblock(self) -> None:
        """Let prompts be tried again."""
        self._blocked = False

    def _activate(self) -> None:
        queue, rules = self._queue, self.rules
        while queue and len(self.active) < self.max_active:
            seq = queue.popleft()
            prompt = seq.prompt_tokens
            room = (seq.final_length if seq.stop_known else rules.max_seq_len) - prompt
            answer = max(min(seq.limit_tokens or room, rules.max_seq_len - prompt), seq.final_length - prompt)
            row = ActiveRow(content_of(seq), prompt, answer)
            row.total = -(-(prompt + answer + self.spare_tokens) // self.kv.block_tokens)
            seq.order = self._orders
            self._orders += 1
            self.active[seq] = self._contexts[seq] = row

    # -- memory: the first pass -----------------------------------------------------------------------------

    def _look_up(self, row: ActiveRow) -> tuple[int, int, Runs | None]:
        return self.kv.find(row.content, row.prompt + row.late)

    def _contributed(self) -> set[Runs]:
        """The next unknown blocks of prompts that are partly computed."""
        found = (self._look_up(row)[2] for row in self._begun.values())
        return {content for content in found if content is not None}

    def _fit_with_answers(self, batch: TwoPassBatch) -> list[Sequence]:
        """Prompts that fit with their whole answer beside what those that generate may still take."""
        rules, kv, size = self.rules, self.kv, self.kv.block_tokens
        generating = len(self.active) - len(self._contexts)
        static = rules.capacity_scheduler_policy == STATIC
        if static and generating:
            return []
        free = kv.free_blocks - self._owed
        coming = set() if static else self._contributed()
        fitting: list[Sequence] = []
        for seq, row in self._contexts.items():
            if row.held:
                need, row.known = row.total - len(seq.blocks) - seq.extra_blocks, 0
            else:
                found, used, missing = self._look_up(row)
                if missing is not None and not static:
                    if missing in coming:
                        batch.skipped.append(seq)
                        continue
                    coming.add(missing)
                whole = row.prompt // size
                need, row.known = row.total - min(used, whole), min(found, whole) * size
            if need > free:
                break
            if self._passes_over(seq):
                continue
            free -= need
            fitting.append(seq)
        return fitting

    def _passes_over(self, seq: Sequence) -> bool:
        """Whether a prompt that fits with its answer is left out, and those behind it are tried; or, where what fits a step is
        let in, whether a row is treated as if its blocks did not fit.
        """
        return False

    def _fit_for_a_step(self, batch: TwoPassBatch) -> list[Sequence]:
        """Rows that fit for the next step, in order; who has begun and stands last is paused for those before it."""
        kv, decodes = self.kv, self.decodes
        coming = self._contributed()
        rows = self._considered()
        free, taken = kv.free_blocks, 0
        refs: dict[Block, int] = {}
        fitting: list[Sequence] = []
        at, end = 0, len(rows)
        while at < end:
            seq = rows[at]
            row = self.active[seq]
            row.known = need = 0
            if row.held:
                if seq not in self._begun:
                    need = decodes.visit(seq) if seq.state == "decoding" else int(seq.computed % kv.block_tokens == 0)
            else:
                _, used, missing = self._look_up(row)
                if missing is not None:
                    if missing in coming:
                        batch.skipped.append(seq)
                        at += 1
                        continue
                    coming.add(missing)
                shared = min(used, row.prompt // kv.block_tokens)
                need, row.known = -(-row.prompt // kv.block_tokens) - shared, shared * kv.block_tokens
            if taken + need <= free and not self._passes_over(seq):
                taken += need
                fitting.append(seq)
                at += 1
                continue
            victim = next((i for i in range(end - 1, at - 1, -1) if self.active[rows[i]].held), None)
            if victim is None:
                break
            end = victim
            self._sync(rows[end])
            free += kv.freed_by(rows[end], refs)
            batch.preempted += (rows[end],)
        return fitting

    def _let_in(self) -> None:
        """Those who are paused have given up their memory: who fits without being computed may have it."""

    def _considered(self) -> list[Sequence]:
        """Active rows that the first pass looks at, in order."""
        return list(self.active)

    def _sync(self, seq: Sequence) -> None:
        """Bring the counts of a row up to date; it leaves the decode set."""
        if seq.state == "decoding":
            self._leave_decodes(seq)

    # -- tokens: the second pass ----------------------------------------------------------------------------

    def _fill(self, fitting: Iterable[Sequence]) -> tuple[list[Sequence], list[Sequence] | None]:
        """From rows in order, the prompts and the generating rows that the token budget admits; None for all that generate.

        The generating rows come first unless they are among `fitting`.
        """
        rules, decodes = self.rules, self.decodes
        policy, budget = rules.context_chunking_policy, rules.max_num_tokens
        served: list[Sequence] | None = None
        contexts: list[Sequence] = []
        tokens = chunked = count = 0
        fits = True
        if rules.capacity_scheduler_policy != UTILIZATION:
            count = decodes.count
            tokens = count * decodes.row_tokens
            if tokens > budget:
                rows = (seq for seq in self.active if seq.state == "decoding")
                return [], [seq for seq, _ in zip(rows, range(budget // decodes.row_tokens), strict=False)]
            if count >= rules.max_batch_size:
                return [], None
        else:
            served = []
        for seq in fitting:
            row = self._contexts.get(seq)
            if row is None:
                if seq.state != "decoding":
                    continue
                if tokens + decodes.row_tokens > budget:
                    break
                tokens += decodes.row_tokens
                assert served is not None
                served.append(seq)
            else:
                rest = row.prompt - seq.computed
                row.chunk = rest
                if policy is None:
                    need = rest if row.held else max(1, _computed(row.prompt + row.late, row.known, rest))
                    if tokens + need > budget and (tokens or row.prompt == seq.prompt_tokens):
                        break
                    tokens += need
                else:
                    need = _computed(rest, row.known, rest)
                    if need > budget:
                        need, fits = budget, False
                    chunked += need
                contexts.append(seq)
            count += 1
            if count >= rules.max_batch_size:
                break
        if policy is not None and (not fits or chunked > budget - tokens):
            self._cut(contexts, budget - tokens)
            contexts = [seq for seq in contexts if self._contexts[seq].chunk]
            contexts.sort(key=self._last_chunk)
        return contexts, served

    def _last_chunk(self, seq: Sequence) -> bool:
        row = self._contexts[seq]
        return seq.computed + row.chunk >= row.prompt

    def _cut(self, contexts: list[Sequence], budget: int) -> None:
        """Set the chunks of prompts that do not fit the budget together."""
        unit, most = self.kv.block_tokens, self.rules.max_num_tokens
        rows = [(self._contexts[seq], self._contexts[seq].prompt - seq.computed) for seq in contexts]
        if self.rules.context_chunking_policy == FIRST_COME:
            for row, rest in rows:
                known = min(row.known, rest)
                chunk = rest
                if budget < _computed(rest, known, rest):
                    chunk = budget
                if _computed(chunk, known, rest) > most:
                    chunk = min(most, rest)
                row.chunk = chunk if chunk >= rest else chunk // unit * unit
                budget -= _computed(row.chunk, known, rest)
            return
        for row, _ in rows:
            row.chunk = 0
        grew, used = True, 0
        while grew and used < budget:
            grew = False
            for row, rest in rows:
                known = min(row.known, rest)
                larger = min(row.chunk + unit, rest)
                more = _computed(larger, known, rest) - _computed(row.chunk, known, rest)
                if used + more > budget or larger > most:
                    continue
                used += more
                grew = grew or larger > row.chunk
                row.chunk = larger

    def _waits(self, contexts: list[Sequence], generating: int) -> bool:
        """Whether prompts had better wait for more of them while rows generate."""
        rules = self.rules
        if not (contexts and generating) or not (
            rules.batch_wait_timeout_iters or rules.batch_wait_max_tokens_ratio
        ):
            return False
        tokens = generating
        for seq in contexts:
            row = self._contexts[seq]
            tokens += max(1, _computed(row.chunk, row.known, row.prompt - seq.computed))
        if (
            self._waited >= rules.batch_wait_timeout_iters
            or tokens >= rules.batch_wait_max_tokens_ratio * rules.max_num_tokens
        ):
            self._waited = 0
            return False
        self._waited += 1
        return True

    # -- the step -------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> TwoPassBatch | None:
        """Form the next step; None if there is nothing to run."""
        self._activate()
        batch = TwoPassBatch(self.next_number)
        decodes, rules = self.decodes, self.rules
        fitting: list[Sequence] = []
        if rules.capacity_scheduler_policy != UTILIZATION:
            fitting = self._fit_with_answers(batch)
            contexts, served = self._fill(fitting)
        elif self._contexts or self._ending or decodes.blocks_needed() > self.kv.free_blocks:
            fitting = self._fit_for_a_step(batch)
            contexts, served = self._fill(fitting)
        else:
            crowded = decodes.count * decodes.row_tokens > rules.max_num_tokens
            contexts, served = self._fill(self.active) if crowded else ([], None)
        waits = self._waits(contexts, decodes.count if served is None else len(served))
        if self.holds_prompts and contexts:
            contexts, waits = [], True
        if waits:
            contexts = []
        self._blocked = not (
            contexts or waits or self._begun or batch.preempted
        )  # who is paused is not tried in the same step
        if (
            self._blocked and rules.capacity_scheduler_policy == UTILIZATION
        ):  # what fits counts even if it is not computed
            self._blocked = not any(seq in self._contexts for seq in fitting)
        for seq in batch.preempted:
            self._pause(seq)
        self._let_in()
        resting = self._rest(served) if served is not None and len(served) < decodes.count else []
        if not contexts and not decodes.count:
            return batch if batch.preempted else None
        self._start_all(batch, [seq for seq in contexts if not self._contexts[seq].held], now_s)
        contexts.sort(key=self._last_chunk)  # of some all was found that a chunk left
        contexts = sorted(self._trimmed(contexts, decodes.count * decodes.row_tokens), key=self._last_chunk)
        self._decode(batch, contexts)
        self._compute_prompts(batch, contexts)
        for seq in resting:
            self._join_decodes(seq)
        batch.order_finishing()
        self.next_number += 1
        if self.record_rows:
            self._record(batch)
        return batch

    def _rest(self, served: list[Sequence]) -> list[Sequence]:
        """Take the generating rows that are not served out of the decode set for a step; return those that go on after it."""
        kept = set(served)
        out: list[Sequence] = []
        for seq in [seq for seq in self.active if seq.state == "decoding" and seq not in kept]:
            wasted = seq in self._wasting
            self._leave_decodes(seq)
            if wasted:
                seq.state = "ending"
                self._ending.add(seq)
            else:
                out.append(seq)
        return out

    def _start_all(self, batch: TwoPassBatch, starting: list[Sequence], now_s: float) -> None:
        """Give the prompts that begin with this step their memory, in order."""
        for seq in starting:
            self._start(batch, seq, now_s)

    def _start(self, batch: TwoPassBatch, seq: Sequence, now_s: float) -> None:
        row, kv = self._contexts[seq], self.kv
        found = kv.take(seq, row.content, row.prompt)
        row.held = True
        seq.state = "running"
        seq.computed = found
        if found:
            batch.hits += ((seq, found),)
            if found + row.chunk < row.prompt:
                row.chunk = (found + row.chunk) // kv.block_tokens * kv.block_tokens - found
            else:
                row.chunk = row.prompt - found
        if seq.first_scheduled_s < 0:
            seq.first_scheduled_s = now_s
            seq.first_hit_tokens = found
            self.queried_tokens += row.prompt
            self.hit_tokens += found
        self._begun[seq] = row

    def _trimmed(self, contexts: list[Sequence], used: int) -> list[Sequence]:
        """Cut prompts that found less than expected to the budget: the last first, to the end of a block, at least to the next.

        Source: `fit_token_budget` of `resource_manager.py`. Without chunks the engine fails all requests of such a step; here who
        does not fit is computed later.
        """
        rules, size = self.rules, self.kv.block_tokens
        if rules.context_chunking_policy is None:
            kept = []
            for seq in contexts:
                row = self._contexts[seq]
                if not used or used + row.chunk <= rules.max_num_tokens:  # alone it is computed whatever its length
                    used += row.chunk
                    kept.append(seq)
            return kept
        over = used + sum(self._contexts[seq].chunk for seq in contexts) - rules.max_num_tokens
        for seq in reversed(contexts):
            if over <= 0:
                break
            row, at = self._contexts[seq], seq.computed
            end = max((at + row.chunk - over) // size, at // size + 1) * size
            if end - at < row.chunk:
                over -= row.chunk - (end - at)
                row.chunk = end - at
        return contexts

    def _decode(self, batch: TwoPassBatch, contexts: list[Sequence]) -> None:
        """One token for every row of the decode set."""
        decodes = self.decodes
        if self.record_rows:
            batch.rows = [(seq, self._contexts[seq].chunk, seq.computed) for seq in contexts]
            batch.rows.extend(
                (seq, 1, decodes.length(seq) - 1) for seq in self.active if seq.state == "decoding"
            )
        if not decodes.count:
            batch.spans = decodes.no_spans
            return
        need = decodes.blocks_needed()
        self.kv.draw(need)
        self._owed -= need
        decodes.serve(batch)
        decodes.steps += 1
        self._last_decode = batch.number
        self._end_decodes(batch)

    def _end_decodes(self, batch: TwoPassBatch) -> None:
        for seq in self.decodes.pop_ended():
            if seq.state != "decoding" or seq in self._wasting:
                continue
            batch.finishing.append(seq)
            row = self.active[seq]
            row.last = batch.number
            if self.rules.overlap and not self._certain(seq, row):
                self._wasting.add(seq)
                continue
            self._leave_decodes(seq)
            seq.state = "ending"
            self._ending.add(seq)

    def _certain(self, seq: Sequence, row: ActiveRow) -> bool:
        """Whether the engine knows beforehand that a row ends with its last token: it has all it may generate."""
        return seq.stop_known or seq.final_length + row.late >= row.prompt + row.answer

    def _compute_prompts(self, batch: TwoPassBatch, contexts: list[Sequence]) -> None:
        """Compute the chunks of this step; whose prompt is done has its first token, and goes on with the next step."""
        number = batch.number
        for seq in contexts:
            row = self._contexts[seq]
            batch.serve(row.chunk, seq.computed, decodes=False)
            seq.computed += row.chunk
            done = seq.computed >= row.prompt
            batch.contexts.append((seq, seq.preemptions, done))
            if not done:
                continue
            del self._contexts[seq], self._begun[seq]
            self._owed += row.total - len(seq.blocks) - seq.extra_blocks
            seq.emit(number, number)
            row.last = number
            seq.length = row.prompt + row.late + 1
            if seq.length >= seq.final_length:
                seq.state = "ending"
                batch.finishing.append(seq)
                self._ending.add(seq)
            else:
                self._join_decodes(seq)
        if contexts:
            self._latest = batch

    def _join_decodes(self, seq: Sequence) -> None:
        row = self.active[seq]
        seq.emit(self.next_number + 1, self.next_number)
        row.since = self.next_number + 1
        seq.length -= row.late
        seq.final_length -= row.late
        self.decodes.join(seq)

    def _leave_decodes(self, seq: Sequence) -> None:
        """Take a row out of the decode set; `computed` are then the tokens in its cache, and `length` all of it."""
        row = self.active[seq]
        wasted = seq in self._wasting
        if not wasted and self._last_decode >= row.since:
            row.last = self._last_decode
        self.decodes.leave(seq)
        seq.length += row.late
        seq.final_length += row.late
        if wasted:
            seq.length = seq.final_length
            self._wasting.remove(seq)
        self._end_emissions(seq, row.last)

    def _end_emissions(self, seq: Sequence, last: int) -> None:
        """Name the batches up to `last` in which a row got its tokens since it joined the decode set."""
        seq.end_emissions(last)

    def _pause(self, seq: Sequence) -> None:
        """Take the memory of a row: its answer so far becomes prompt. A token in flight still comes."""
        row = self.active[seq]
        late = self._late(seq, row)
        known = seq.length - late
        if seq not in self._begun:
            self._owed -= row.total - len(seq.blocks) - seq.extra_blocks
        self.kv.release(seq, row.content, known - 1)
        row.held = False
        self._begun.pop(seq, None)
        seq.preemptions += 1
        if seq.length >= seq.final_length:  # its last token is in flight: it ends with that
            seq.state = "ending"
            self._ending.add(seq)
            return
        row.answer -= known - row.prompt
        row.prompt, row.late = known, late
        row.total = -(-(row.prompt + row.answer + self.spare_tokens) // self.kv.block_tokens)
        seq.computed = 0
        seq.state = "preempted"
        if seq not in self._contexts:
            self._contexts[seq] = row

    def _late(self, seq: Sequence, row: ActiveRow) -> int:
        """Tokens of a row that are in flight."""
        return int(row.last > self.processed_number and seq.length > row.prompt)

    def _record(self, batch: TwoPassBatch) -> None:
        batch.free_blocks = self.kv.free_blocks
        for seq, row in self.active.items():
            (batch.running if row.held else batch.waiting).append(seq)
        batch.queued = list(self._queue)

    # -- results --------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch: ended rows give back their blocks in order of arrival, then prompts can be found."""
        self.processed_number = batch.number
        assert isinstance(batch, TwoPassBatch)
        for seq in batch.finishing:
            self._end(seq)
            seq.state = "finished"
        for seq, pauses, done in batch.contexts:
            row = self.active.get(seq)
            if row is not None and row.held and seq.preemptions == pauses:
                computed = seq.computed if seq in self._contexts else row.prompt  # with what is in flight
                self.kv.store(seq, row.content, min(computed, row.prompt + row.late + done - 1))
                self._blocked = False
        if self.record_rows:
            batch.free_after = self.kv.free_blocks
        return batch.finishing

    def _end(self, seq: Sequence) -> None:
        """Take a row out of the active list, and its memory."""
        row = self.active[seq]
        if seq.state == "decoding":
            self._leave_decodes(seq)
        self._ending.discard(seq)
        self._contexts.pop(seq, None)
        if row.held:
            if self._begun.pop(seq, None) is None:
                self._owed -= row.total - len(seq.blocks) - seq.extra_blocks
            self._give_back(seq, row)
        del self.active[seq]
        self._blocked = False

    def _give_back(self, seq: Sequence, row: ActiveRow) -> None:
        """A row's blocks are free."""
        self.kv.release(seq, row.content, seq.length - 1)

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps in which all that runs decodes, and nobody comes in."""
        decodes = self.decodes
        if not self.aggregate or not decodes.count or self._ending or self._wasting or self._begun:
            return None
        full = len(self.active) == self.max_active
        shut = self._blocked and (bool(self._contexts) or full)
        if (self._contexts or (self._queue and not full)) and not shut:
            return None
        if self._contexts and self._latest.number > self.processed_number:
            return None
        if decodes.count > self.rules.max_num_tokens:
            return None
        steps = decodes.steps_within(decodes.steps_alike(), self.kv.alike_blocks())
        if steps < 2:
            return None
        decodes.serve(self._shape)
        return Run(steps, self._shape, deaf=shut or full)

    def take(self, steps: int) -> tuple[TwoPassBatch, int, int]:
        """Schedule `steps` decode steps at once; prompts in flight are settled when the first is formed."""
        if self._latest.number <= self.processed_number:
            return self._take(steps)
        batch, held, most = self._take(1)
        self.settle(self._latest)
        if steps == 1:
            return batch, held, most
        batch, more, later = self._take(steps - 1)
        return batch, held + more, max(most, later)

    def _take(self, steps: int) -> tuple[TwoPassBatch, int, int]:
        decodes, kv = self.decodes, self.kv
        before = kv.capacity_blocks - kv.free_blocks
        need, summed = decodes.taken_over(steps)
        kv.draw(need)
        self._owed -= need
        decodes.steps += steps
        self.next_number += steps
        batch = TwoPassBatch(self.next_number - 1)
        self.processed_number = batch.number - 1
        self._last_decode = batch.number
        batch.tokens = batch.decode_rows = batch.decode_tokens = decodes.count
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        self._end_decodes(batch)
        return batch, before * steps + summed, before + need
