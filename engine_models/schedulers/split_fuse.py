"""Split and fuse: every step serves all decodes that find memory, then fills up with prompts, the last one cut to what is left.

All requests stand in one *buffer*. Decodes go first, in the order of the buffer: one whose last block has room is served, one at
the edge of a block needs a free one and is passed over where there is none. Then prompts, in order, while a block, a row and
tokens are left; the first whose whole rest does not fit into the free blocks stops the choice, so a prompt is begun only where
it can be finished. What is cut off goes to the front of the buffer, whoever was served to its end. Nothing is set aside for
answers.

A request that ends keeps its blocks for one step more: its *flush* is queued when its end is known, chosen with the next step but
one, and seen by the choice after that. If nothing can be chosen, the last in the buffer that holds blocks loses them, goes to the
end, and computes its prompt and its answer so far again.

Source: behaviour of DeepSpeed-MII 0.3.3 (`mii/batching/ragged_batching.py`) over DeepSpeed 0.19.8 (`deepspeed/inference/v2`),
checked step by step against recordings; see docs/engines/deepspeed_mii.md.
"""

from __future__ import annotations

from collections import deque

from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class SplitFuseRules:
    """What such a scheduler may do. Names of knobs are those of DeepSpeed.

    Attributes
    ----------
    max_ragged_batch_size : tokens of a step.
    max_ragged_sequence_count : rows of a step.
    max_tracked_sequences : requests that hold blocks.
    max_length : an answer is cut when prompt and answer but its last token are so many. None: whoever sends the requests sees to
        it.
    """

    max_ragged_batch_size: int
    max_ragged_sequence_count: int
    max_tracked_sequences: int
    max_length: int | None = None


class SplitFuseBatch(Batch):
    """A scheduled step. Of a recorded one besides: blocks chosen for it and free after it, who was to be flushed with it, who was
    flushed since the step before, who is left in the buffer, and how many requests hold blocks (`tracked`)."""

    __slots__ = ("chosen_blocks", "flushed", "flushing", "free_after", "left", "tracked")

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.chosen_blocks = self.free_after = self.tracked = 0
        self.flushing: list[Sequence] = []
        self.flushed: list[Sequence] = []
        self.left: list[Sequence] = []


class SplitFuseScheduler(Scheduler):
    """The buffer of one rank, its blocks, and the rule that forms the next step. Its executor is synchronous.

    Parameters
    ----------
    rules : the knobs.
    blocks, block_tokens : of the KV cache.
    aggregate : whether runs of equal steps are proven.
    record_rows : note the ordered rows of every step.
    windows : of the model's layers, whose spans a step names.
    """

    def __init__(
        self,
        rules: SplitFuseRules,
        blocks: int,
        block_tokens: int,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
    ) -> None:
        self.rules = rules
        self.capacity_blocks = self.free_blocks = blocks
        self.block_tokens = block_tokens
        self.aggregate = aggregate and not record_rows
        self.record_rows = record_rows
        self.decodes = DecodeSet(block_tokens, windows)
        self._decoding: dict[Sequence, None] = {}  # the rows of the decode set, the end of the buffer
        self._buffer: deque[Sequence] = deque()  # the rest of it: prompts, and decodes that were passed over
        self._prompt: dict[Sequence, int] = {}  # tokens to compute before a request decodes
        self._passed = 0  # decodes in the buffer
        self._holding = 0  # requests with blocks
        self._ended: list[Sequence] = []  # known since the latest step
        self._flushes: list[Sequence] = []  # chosen with the next step
        self._shut = False  # nobody comes in before blocks are freed, whoever arrives
        self._orders = 0
        self._flushed: list[Sequence] = []  # since the latest step, with those that were reset
        self._reset: list[Sequence] = []
        self._shape = Batch(-1)

    # -- the outside ----------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Enqueue an arrived request."""
        most = self.rules.max_length
        if most is not None:
            seq.final_length = min(seq.final_length, max(most, seq.prompt_tokens) + 1)
        seq.state = "waiting"
        self._prompt[seq] = seq.prompt_tokens
        self._buffer.append(seq)

    def has_work(self) -> bool:
        """Whether anything waits or runs, or is to be flushed."""
        return bool(self._prompt or self._ended or self._flushes)

    def state(self) -> State:
        """Requests, and blocks."""
        running = self._holding - len(self._ended) - len(self._flushes)
        return running, len(self._prompt) - running, self.capacity_blocks - self.free_blocks, self.capacity_blocks

    def close(self) -> None:
        """Let the ranges of rows that still decode end with the latest batch."""
        for seq in self._decoding:
            self._leave_decodes(seq, self.next_number - 1)

    # -- blocks ---------------------------------------------------------------------------------------------

    def _held(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _flush(self, seq: Sequence) -> None:
        """Free the blocks of a request outside of the decode set."""
        self.free_blocks += self._held(seq.computed)
        self._holding -= 1
        self._shut = False
        self._flushed.append(seq)

    def _reset_last(self) -> bool:
        """Let the last in the buffer that holds blocks begin again at its end; False if there is none."""
        seq = next((seq for seq in reversed(self._buffer) if seq.computed), None)
        if seq is None:
            return False
        self._flush(seq)
        self._buffer.remove(seq)
        self._buffer.append(seq)
        self._passed -= seq.state == "running"
        seq.state = "waiting"
        seq.computed = 0
        seq.preemptions += 1
        self._prompt[seq] = seq.length
        self._reset.append(seq)
        return True

    # -- the choice -----------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> SplitFuseBatch | None:
        """Form the next step; None if there is nothing to run."""
        batch = SplitFuseBatch(self.next_number)
        while True:
            batch.free_blocks = free = self.free_blocks
            batch.flushing = flushing = self._flushes
            chosen = self._choose_decodes()
            chunks = self._choose_prompts(free - chosen, len(flushing))
            self._flushes, self._ended = self._ended, []
            for seq in flushing:
                self._flush(seq)
            if self._decoding or chunks:
                break
            if not (flushing or (self._buffer and self._reset_last()) or self._flushes):
                return None
        self._decode(batch, chosen)
        self._compute(batch, chunks, now_s)
        self.next_number += 1
        batch.preempted, self._reset = tuple(self._reset), []
        if self.record_rows:
            batch.flushed, batch.left = self._flushed, list(self._buffer)
            batch.chosen_blocks, batch.free_after = free - self.free_blocks, self.free_blocks
            batch.chosen_blocks += sum(self._held(seq.computed) for seq in flushing)
            batch.tracked = self._holding
        self._flushed = []
        return batch

    def _choose_decodes(self) -> int:
        """Let the decode set be the decodes of the next step; return the blocks that they need."""
        rules, decodes, free = self.rules, self.decodes, self.free_blocks
        most = min(rules.max_ragged_sequence_count, rules.max_ragged_batch_size)
        need = decodes.blocks_needed()
        if not self._passed and decodes.count <= most and need <= free:
            return need
        self._shut = False
        waiting = [seq for seq in self._buffer if seq.state == "running"]
        served: dict[Sequence, None] = {}
        chosen = 0
        for tried, seq in enumerate([*waiting, *self._decoding]):
            cached = decodes.length(seq) - 1 if seq.state == "decoding" else seq.computed
            at_edge = cached % self.block_tokens == 0
            if tried < most and (not at_edge or chosen < free):
                chosen += at_edge
                served[seq] = None
        for seq in self._decoding:
            if seq not in served:
                self._leave_decodes(seq, self.next_number - 1)
                self._buffer.append(seq)
        back = [seq for seq in waiting if seq in served]
        if back:
            self._buffer = deque([seq for seq in self._buffer if seq not in served])
            for seq in back:
                self._join_decodes(seq, self.next_number)
        self._decoding = served
        for seq in served:
            seq.order = self._orders
            self._orders += 1
        self._passed = sum(seq.state == "running" for seq in self._buffer)
        return chosen

    def _choose_prompts(self, free: int, flushing: int) -> list[tuple[Sequence, int, bool]]:
        """Take prompts out of the buffer: (request, tokens to compute, whether that is its rest), the latter but for the last.

        New ones come in while less than `max_tracked_sequences` hold blocks before the step, whoever else is chosen with them
        (`InferenceEngineV2.query`), and the step flushes `flushing` before it runs. Where the engine would then stop, since its
        table is full (`DSStateManager._create_sequence`), they wait.
        """
        rules, buffer = self.rules, self._buffer
        if self._shut or len(buffer) == self._passed:
            return []
        rows = rules.max_ragged_sequence_count - self.decodes.count
        tokens = rules.max_ragged_batch_size - self.decodes.count
        slots = rules.max_tracked_sequences - self._holding
        slots += flushing if slots else 0
        chunks: list[tuple[Sequence, int, bool]] = []
        kept: list[Sequence] = []
        while buffer and self.free_blocks > 0 and rows > 0 and tokens > 0:
            seq = buffer.popleft()
            if seq.state != "waiting":
                kept.append(seq)
                continue
            rest = self._prompt[seq] - seq.computed
            have = self._held(seq.computed)
            if self._held(seq.computed + rest) - have > free or not (seq.computed or slots):
                kept.append(seq)
                if rest == 1:
                    continue
                break
            new = min(rest, tokens)
            slots -= not seq.computed
            free -= self._held(seq.computed + new) - have
            rows -= 1
            tokens -= new
            chunks.append((seq, new, new == rest))
        buffer.extendleft(reversed(kept))
        self._shut = not chunks
        return chunks

    # -- the step -------------------------------------------------------------------------------------------

    def _decode(self, batch: SplitFuseBatch, need: int) -> None:
        decodes = self.decodes
        if self.record_rows:
            batch.rows = [(seq, 1, decodes.length(seq) - 1) for seq in self._decoding]
        self.free_blocks -= need
        if not decodes.count:
            batch.spans = decodes.no_spans
            return
        decodes.serve(batch)
        decodes.steps += 1
        self._end_decodes(batch)

    def _end_decodes(self, batch: SplitFuseBatch) -> None:
        for seq in self.decodes.pop_ended():
            del self._decoding[seq]
            self._leave_decodes(seq, batch.number)
            batch.finishing.append(seq)
        batch.order_finishing()

    def _compute(self, batch: SplitFuseBatch, chunks: list[tuple[Sequence, int, bool]], now_s: float) -> None:
        """Compute parts of prompts; whose prompt is done has its next token, and decodes from the next step on."""
        number = batch.number
        for seq, new, whole in chunks:
            if batch.rows is not None:
                batch.rows.append((seq, new, seq.computed))
            batch.serve(new, seq.computed, decodes=False)
            if not seq.computed:
                self._holding += 1
            if seq.first_scheduled_s < 0:
                seq.first_scheduled_s = now_s
                self.queried_tokens += seq.prompt_tokens
            self.free_blocks -= self._held(seq.computed + new) - self._held(seq.computed)
            seq.computed += new
            if not whole:
                self._buffer.appendleft(seq)
                continue
            seq.emit(number, number)
            seq.length += 1
            seq.order = self._orders
            self._orders += 1
            if seq.length >= seq.final_length:
                batch.finishing.append(seq)
            else:
                self._join_decodes(seq, number + 1)
                self._decoding[seq] = None

    def _join_decodes(self, seq: Sequence, first: int) -> None:
        seq.emit(first, first - 1)
        self.decodes.join(seq)

    def _leave_decodes(self, seq: Sequence, last: int) -> None:
        self.decodes.leave(seq)
        seq.end_emissions(last)

    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch; the blocks of ended requests stay taken until they are flushed."""
        self.processed_number = batch.number
        for seq in batch.finishing:
            seq.state = "finished"
            del self._prompt[seq]
            self._shut = False
        self._ended.extend(batch.finishing)
        return batch.finishing

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps in which all that runs decodes, and nobody comes in."""
        decodes, rules = self.decodes, self.rules
        if not self.aggregate or self._passed or self._flushes or self._ended or not decodes.count:
            return None
        if self._buffer and not self._shut:
            return None
        if decodes.count > min(rules.max_ragged_sequence_count, rules.max_ragged_batch_size):
            return None
        steps = decodes.steps_within(decodes.steps_alike(), self.free_blocks)
        if steps < 2:
            return None
        decodes.serve(self._shape)
        return Run(steps, self._shape, deaf=bool(self._buffer))

    def take(self, steps: int) -> tuple[SplitFuseBatch, int, int]:
        """Schedule `steps` decode steps at once."""
        decodes, before = self.decodes, self.capacity_blocks - self.free_blocks
        need, summed = decodes.taken_over(steps)
        self.free_blocks -= need
        self.next_number += steps
        batch = SplitFuseBatch(self.next_number - 1)
        self.processed_number = batch.number - 1
        decodes.serve(batch)
        decodes.steps += steps
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        self._end_decodes(batch)
        return batch, before * steps + summed, before + need
