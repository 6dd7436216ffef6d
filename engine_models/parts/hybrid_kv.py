"""Paged KV cache of models whose layers see different spans: full attention and sliding windows, one pool.

Layers are grouped by what they see. Every group has a block table of its own, all take blocks of equal bytes from one pool.
A block of a sliding-window group is freed once it lies before the window of every later token. A prefix is found only as
far as every group still has what it needs there: all blocks for full attention, the last window's for a sliding one.

Here every block is an object; the counting cache of `paged_kv` serves models with one full-attention group.

Sources: vLLM's KV coordinator and its managers (0.15 to 0.33, see docs/engines/vllm.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine_models.parts.paged_kv import Block, BlockPool, FreeRun
from engine_models.parts.sequence import Sequence

PLAIN = Block(-1)  # stands for any held block without a hash: such blocks have no identity that matters


@dataclass(slots=True)
class Table:
    """The blocks of one sequence in one group; None where a block left the window (or was never needed)."""

    blocks: list[Block | None] = field(default_factory=list)
    hashed: int = 0  # blocks already considered for the prefix index


@dataclass(slots=True)
class Hit:
    """A cached prefix: its length, and per group the blocks that hold it (None where the window skips)."""

    tokens: int
    blocks: list[list[Block | None]]


class HybridKV(BlockPool):
    """Blocks of one replica whose layers form several KV groups.

    Parameters
    ----------
    windows : one entry a group: None for full attention, else the window in tokens.
    most_in_flight_tokens : tokens that can be scheduled and not yet processed (batches in flight x token budget).
    max_model_len : context limit in tokens.
    capped_admission : the gate on the whole prompt counts, in a window group, at most the blocks that the window and the
        tokens in flight can hold (vLLM from 0.24).
    frees_processed : a window moves on when tokens have been processed (0.33), not when they are scheduled.
    sparse_windows : of a window group only the blocks needed to resume at the end of the prompt, or where a shared
        prefix was seen to end, can be found again (0.33, retention interval 0); else all.
    The others are the pool's.
    """

    itemised = True

    def __init__(
        self,
        capacity_blocks: int,
        block_tokens: int,
        windows: tuple[int | None, ...],
        *,
        prefix_caching: bool,
        unhashed_to_head: bool = True,
        most_in_flight_tokens: int,
        max_model_len: int,
        capped_admission: bool = True,
        frees_processed: bool = True,
        sparse_windows: bool = True,
    ) -> None:
        super().__init__(
            capacity_blocks, block_tokens, prefix_caching=prefix_caching, unhashed_to_head=unhashed_to_head
        )
        self.windows = windows
        self.frees_processed = frees_processed
        self.sparse_windows = sparse_windows
        self._caps: list[int | None] = [
            -(-min(window - 1 + most_in_flight_tokens, max_model_len) // block_tokens) + 1
            if window is not None and capped_admission
            else None
            for window in windows
        ]
        # groups that see the same span are looked up together, full attention first
        kinds = sorted(dict.fromkeys(windows), key=lambda window: window is not None)
        self._kinds = [(kind, [g for g, window in enumerate(windows) if window == kind]) for kind in kinds]

    def _tables(self, seq: Sequence) -> list[Table]:
        if seq.group_state is None:
            seq.group_state = [Table() for _ in self.windows]
        tables: list[Table] = seq.group_state
        return tables

    def _before_window(self, window: int | None, tokens: int) -> int:
        """Blocks that no token from position `tokens` on can see."""
        return 0 if window is None else max(0, tokens - window + 1) // self.block_tokens

    # -- admission ------------------------------------------------------------------------------------------

    def find(self, seq: Sequence) -> Hit:
        """Longest prefix that every group can resume from, at most all but the last known token.

        Each kind of group shortens the candidate until all agree. Where a sliding window stopped short of what another
        group has, the place is noted: the blocks needed to resume there will be kept.
        """
        if seq.keys is None:
            self.prepare(seq)
        limit = (seq.length - 1) // self.block_tokens
        found: list[list[Block | None]] = [[] for _ in self.windows]
        full_length: int | None = None
        longest, length = 0, limit
        simple = len(self._kinds) == 2 and self._kinds[0][0] is None
        while True:
            candidate = length
            for window, groups in self._kinds:
                if window is None and full_length is not None:
                    candidate = min(candidate, full_length)
                    continue
                candidate = self._cached_run(seq, window, groups, candidate, found)
                if window is None:
                    full_length = candidate
                longest = max(longest, candidate)
            if candidate >= length:
                break
            length = candidate
            if simple:
                break
        for window, groups in self._kinds:
            if window is None:
                for group in groups:
                    del found[group][length:]
        seq.junction_tokens = longest * self.block_tokens if longest > length else 0
        return Hit(length * self.block_tokens, found)

    def _cached_run(
        self,
        seq: Sequence,
        window: int | None,
        groups: list[int],
        limit: int,
        found: list[list[Block | None]],
    ) -> int:
        """Longest hit of one kind of group within `limit` blocks, its blocks put into `found`."""
        keys = seq.keys
        assert keys is not None
        limit = min(limit, len(keys)) if window is None else limit
        count = len(self.windows)

        def cached(position: int) -> list[Block] | None:
            if position >= len(keys):
                return None
            blocks = []
            for group in groups:
                entry = self._index.get(keys[position] * count + group)
                if entry is None:
                    return None
                blocks.append(entry[0] if isinstance(entry, list) else entry)
            return blocks

        if window is None:
            runs: list[list[Block | None]] = [[] for _ in groups]
            for position in range(limit):
                blocks = cached(position)
                if blocks is None:
                    break
                for run, block in zip(runs, blocks, strict=True):
                    run.append(block)
            for group, run in zip(groups, runs, strict=True):
                found[group] = run
            return len(runs[0])
        needed = -(-(window - 1) // self.block_tokens)
        runs = [[None] * limit for _ in groups]
        contiguous = 0
        end: int | None = None
        for position in range(limit - 1, -1, -1):  # from the right: the last window that is complete
            blocks = cached(position)
            if blocks is None:
                contiguous = 0
                continue
            for run, block in zip(runs, blocks, strict=True):
                run[position] = block
            contiguous += 1
            if contiguous >= needed:
                end = position + contiguous
                break
        if end is None:
            end = contiguous  # a run from the very start needs no complete window
        for group, run in zip(groups, runs, strict=True):
            found[group] = run[:end]
        return end

    def hit_tokens(self, found: Hit) -> int:
        """Tokens that the found blocks hold."""
        return found.tokens

    def admission_blocks(self, found: Hit, tokens: int, *, whole: bool) -> int:
        """Free blocks that a new request takes to hold `tokens` tokens, cached ones that nobody holds included.

        With `whole` it is the gate on the complete sequence: a window group needs no more than its window and what is in flight.
        """
        total = 0
        for window, cap, blocks in zip(self.windows, self._caps, found.blocks, strict=True):
            need = -(-tokens // self.block_tokens)
            if whole and cap is not None:
                need = min(need, cap)
            skipped = self._before_window(window, found.tokens)
            total += max(0, need - max(skipped, len(blocks)))
            total += sum(block is not None and block.holders == 0 for block in blocks[skipped:])
        return total

    def hold(self, seq: Sequence, found: Hit) -> None:
        """Take over cached blocks that `find` returned."""
        for window, table, blocks in zip(self.windows, self._tables(seq), found.blocks, strict=True):
            skipped = self._before_window(window, found.tokens)
            for block in blocks[skipped:]:
                if block is None:
                    continue
                if block.holders == 0:
                    del self._queue[block]
                    self.free_blocks -= 1
                block.holders += 1
            table.blocks = [*([None] * skipped), *blocks[skipped:]]
            table.hashed = len(table.blocks)

    # -- blocks ---------------------------------------------------------------------------------------------

    def held(self, seq: Sequence) -> int:
        """Number of blocks that the sequence holds, over all groups."""
        return sum(block is not None for table in self._tables(seq) for block in table.blocks)

    def missing(self, seq: Sequence, tokens: int) -> int:
        """Blocks that the sequence lacks to hold `tokens` tokens."""
        need = -(-tokens // self.block_tokens)
        return sum(max(0, need - len(table.blocks)) for table in self._tables(seq))

    def leave_window(self, seq: Sequence, scheduled: int, processed: int) -> None:
        """Free the blocks that no later token of the sequence can see."""
        tokens = processed if self.frees_processed else scheduled
        for window, table in zip(self.windows, self._tables(seq), strict=True):
            if window is None:
                continue
            blocks = table.blocks
            gone: list[Block] = []
            for position in range(min(self._before_window(window, tokens), len(blocks)) - 1, -1, -1):
                block = blocks[position]
                if block is None:
                    break
                gone.append(block)
                blocks[position] = None
            self._free(gone)

    def grow(self, seq: Sequence, tokens: int) -> None:
        """Allocate until every group's blocks hold `tokens` tokens."""
        need = -(-tokens // self.block_tokens)
        for table in self._tables(seq):
            more = need - len(table.blocks)
            if more > 0:
                self.take(more)
                table.blocks.extend([PLAIN] * more)

    def register(self, seq: Sequence, known_tokens: int) -> None:
        """Hash every block that is full of known tokens and still in its window's reach."""
        if not self.prefix_caching:
            return
        full = known_tokens // self.block_tokens
        count = len(self.windows)
        for group, (window, table) in enumerate(zip(self.windows, self._tables(seq), strict=True)):
            if table.hashed >= full:
                continue
            keys = self._keys(seq, full)
            wanted = self._resumable(seq, window)
            for position in range(table.hashed, full):
                if table.blocks[position] is None or (wanted is not None and position not in wanted):
                    continue
                block = Block(keys[position] * count + group)
                self._insert(block)
                table.blocks[position] = block
            table.hashed = full

    def _keys(self, seq: Sequence, blocks: int) -> list[int]:
        keys = seq.keys
        assert keys is not None
        if len(keys) < blocks:
            if seq.output_shared:
                keys = seq.keys = self.chain.keys(seq.runs, seq.final_length // self.block_tokens)
            while len(keys) < blocks:
                keys.append(self.chain.fresh())
        return keys

    def _resumable(self, seq: Sequence, window: int | None) -> set[int] | None:
        """Positions of a window group worth finding again; None for all."""
        if window is None or not self.sparse_windows:
            return None
        needed = -(-(window - 1) // self.block_tokens)
        wanted: set[int] = set()
        for boundary in (seq.prompt_tokens - 1, seq.junction_tokens):
            end = boundary // self.block_tokens
            wanted.update(range(max(0, end - needed), end))
        return wanted

    def name_output(self, seq: Sequence) -> None:
        """Outputs are named when their blocks are hashed."""

    def make_findable(self, seq: Sequence) -> None:
        """All hashed blocks are in the index already."""

    def release(self, seq: Sequence) -> None:
        """Free all blocks, group by group, the last of the sequence first."""
        for table in self._tables(seq):
            self._free([block for block in reversed(table.blocks) if block is not None])
        seq.group_state = None

    def _free(self, blocks: list[Block]) -> None:
        queue = self._queue
        for block in blocks:
            if block is PLAIN:
                self.free_blocks += 1
                if self.unhashed_to_head:
                    self._plain_head += 1
                else:
                    queue[FreeRun(1)] = None
                continue
            block.holders -= 1
            if block.holders == 0:
                queue[block] = None
                self.free_blocks += 1
