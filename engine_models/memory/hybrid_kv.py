"""Paged KV cache of models whose layers see different spans: full attention and sliding windows, one pool.

Layers are grouped by what they see. Every group has a block table of its own, all take blocks of equal bytes from one pool.
A block of a sliding-window group is freed once it lies before the window of every later token. A prefix is found only as
far as every group still has what it needs there: all blocks for full attention, the last window's for a sliding one.

A block is an object only where its content may be looked up: where others may share it, where a window left it behind
(its own request may come back for it after a preemption). The other blocks of a sequence are place holders in its tables. The
counting cache of `paged_kv` serves models with one full-attention group.

Sources: vLLM's KV coordinator and its managers (0.15 to 0.33, see docs/engines/vllm.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

from engine_models.memory.paged_kv import Block, BlockPool, FreeRun
from engine_models.parts.sequence import Sequence

PLAIN = Block(-1)  # stands for any held block without a hash: such blocks have no identity that matters
LEFT = -3  # key of a private hashed block that left its window: nobody looks it up
STATE_WINDOW = 2
"""Window of the groups that hold states of recurrent layers, in the last places: a state that is whole is that behind a block,
and goes when a later block has a token."""
HASHED = Block(
    -2
)  # stands for a held block with a hash that only its own sequence could find, once it is preempted


@dataclass(slots=True)
class Table:
    """The blocks of one sequence in one group; None where a block left the window (or was never needed)."""

    blocks: list[Block | None] = field(default_factory=list)
    hashed: int = 0  # blocks already considered for the prefix index
    gone: int = 0  # blocks that left the window, or were never needed
    spare: int = 0  # blocks beside, for the states behind drafts


@dataclass(slots=True)
class Held:
    """What one sequence holds: a table a group, and what the scheduler last gave it.

    `served_tokens` are those of batch `served_number`; they are in flight until that batch has been processed.
    `left` lists the private hashed blocks that left a window, with group and position: they get a key if the sequence is
    preempted. `last_named` holds, per group, the last position whose block may have a hash, `phases` where the decode set
    lists the row.
    """

    tables: list[Table]
    served_number: int = -1
    served_tokens: int = 0
    left: list[tuple[Block, int, int]] = field(default_factory=list)
    last_named: list[int] = field(default_factory=list)
    phases: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Hit:
    """A cached prefix: its length, and per group the blocks that hold it (None where the window skips)."""

    tokens: int
    blocks: list[list[Block | None]]
    prompt_end: int = 0  # of the tokens that are computed as a prompt


def prompt_end(seq: Sequence) -> int:
    """Tokens of a row that are computed as a prompt: those of its own, or all that it had when it lost its memory."""
    return max(seq.prompt_tokens, seq.length - 1)


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
    states : how many of the groups, the last ones, hold states (`STATE_WINDOW`): of the blocks that a step fills the last one
        alone is taken; without prefix caching a request has one block in each for its life.
    drafts, lookahead_tokens : a request has so many more blocks in each of these groups, one for the state behind each draft;
        slots that a drafter needs beyond a row's tokens are of the other groups.
    checkpoints : the step that ends a prompt leaves the state behind its last whole block too, in a block of its own.
    replayed_tokens : tokens at a prompt's end that are computed again where all of it comes from elsewhere.
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
        drops_block: bool = False,
        most_in_flight_tokens: int,
        max_model_len: int,
        capped_admission: bool = True,
        frees_processed: bool = True,
        sparse_windows: bool = True,
        states: int = 0,
        checkpoints: bool = False,
        drafts: int = 0,
        lookahead_tokens: int = 0,
        replayed_tokens: int = 0,
    ) -> None:
        super().__init__(
            capacity_blocks,
            block_tokens,
            prefix_caching=prefix_caching,
            unhashed_to_head=unhashed_to_head,
            drops_block=drops_block,
        )
        self.windows = windows
        self.replayed_tokens = replayed_tokens
        self.frees_processed = frees_processed
        self.sparse_windows = sparse_windows
        self.first_state = len(windows) - states
        self.checkpoints = checkpoints
        self.drafts, self.lookahead_tokens = drafts, lookahead_tokens
        self.growing = windows if prefix_caching else windows[: self.first_state]  # of groups that take blocks as a row decodes
        self._fresh: set[int] = set()  # names of states that enter the index with this step: they can be read from the next on
        self._caps: list[int | None] = [
            -(-min(window - 1 + most_in_flight_tokens, max_model_len) // block_tokens) + 1
            if window is not None and capped_admission and group < self.first_state
            else None
            for group, window in enumerate(windows)
        ]
        # groups that see the same span are looked up together, full attention first
        kinds = sorted(dict.fromkeys(windows), key=lambda window: window is not None)
        self._kinds = [(kind, [g for g, window in enumerate(windows) if window == kind]) for kind in kinds]

    def _tables(self, seq: Sequence) -> list[Table]:
        if seq.group_state is None:
            seq.group_state = Held([Table() for _ in self.windows])
        tables: list[Table] = seq.group_state.tables
        return tables

    def before_window(self, window: int | None, tokens: int) -> int:
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
                whole = window is None
                if whole and full_length is not None:
                    candidate = min(candidate, full_length)
                    continue
                if whole and self.drops_block:  # one more is looked for, and given up again
                    candidate = min(candidate + 1, seq.length // self.block_tokens)
                    candidate = max(0, self._cached_run(seq, window, groups, candidate, found) - 1)
                else:
                    candidate = self._cached_run(seq, window, groups, candidate, found)
                if whole:
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
        return Hit(length * self.block_tokens, found, prompt_end(seq))

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

        get = self._index.get

        def cached(position: int) -> list[Block] | None:
            if position >= len(keys):
                return None
            blocks = []
            name = keys[position] * count
            for group in groups:
                entry = get(name + group)
                if entry is None:
                    return None
                blocks.append(entry if entry.__class__ is Block else entry[0])  # type: ignore[index]
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

    def admission_blocks(self, found: Hit, tokens: int, *, whole: bool, computed_tokens: int = 0) -> int:
        """Free blocks that a new request takes to hold `tokens` tokens, cached ones that nobody holds included.

        With `whole` it is the gate on the complete sequence: a window group needs no more than its window and what is in flight.
        Beyond those found, as many as `computed_tokens` come from elsewhere: what no later token sees of them takes no block.
        """
        total = 0
        computed = max(found.tokens, computed_tokens)
        for group, (window, cap, blocks) in enumerate(zip(self.windows, self._caps, found.blocks, strict=True)):
            need = -(-tokens // self.block_tokens)
            if whole and cap is not None:
                need = min(need, cap)
            skipped = self.before_window(window, computed)
            if group < self.first_state:
                total += max(0, need - max(skipped, len(blocks)))
            else:
                end = tokens if whole else max(tokens - self.lookahead_tokens, computed + 1)
                more = -(-end // self.block_tokens) - len(blocks)
                states = self._states_of(computed, end, found.prompt_end)
                total += (max(0, min(more, states)) if self.prefix_caching else 1) + self.drafts
                if self.is_fresh(found):
                    return self.capacity_blocks + 1  # more than there are: it waits
            total += sum(block is not None and block.holders == 0 for block in blocks[skipped:])
        return total

    def begin_step(self) -> None:
        """A step begins: states that entered the index before it can be read."""
        self._fresh.clear()

    def is_fresh(self, found: Hit) -> bool:
        """Whether what was found ends with a state that the step being formed computes."""
        last = found.blocks[-1][-1] if found.blocks[-1] else None
        return last is not None and last.key in self._fresh

    def hold(self, seq: Sequence, found: Hit, computed_tokens: int = 0) -> None:
        """Take over cached blocks that `find` returned, as far as tokens behind `computed_tokens` see them."""
        computed = max(found.tokens, computed_tokens)
        for window, table, blocks in zip(self.windows, self._tables(seq), found.blocks, strict=True):
            skipped = self.before_window(window, computed)
            for block in blocks[skipped:]:
                if block is None:
                    continue
                if block.holders == 0:
                    del self._queue[block]
                    self.free_blocks -= 1
                block.holders += 1
            table.blocks = [*([None] * skipped), *blocks[skipped:]]
            table.hashed = len(table.blocks)
            table.gone = min(skipped, len(table.blocks))

    # -- blocks ---------------------------------------------------------------------------------------------

    def held(self, seq: Sequence) -> int:
        """Number of blocks that the sequence holds, over all groups."""
        tables = self._tables(seq)
        return sum(block is not None for table in tables for block in table.blocks) + sum(table.spare for table in tables)

    def missing(self, seq: Sequence, tokens: int) -> int:
        """Blocks that the sequence lacks to hold `tokens` tokens."""
        need = -(-tokens // self.block_tokens)
        tables, first = self._tables(seq), self.first_state
        missing = sum(max(0, need - len(table.blocks)) for table in tables[:first])
        if first == len(tables):
            return missing
        need, states = self._states_needed(seq, tokens)
        return missing + sum(self._lacking(table, need, states) for table in tables[first:])

    def _states_needed(self, seq: Sequence, tokens: int) -> tuple[int, int]:
        """Entries of a table of states for so many slots of a row, and how many of the new ones hold a state."""
        end = max(tokens - self.lookahead_tokens, seq.computed + 1)
        return -(-end // self.block_tokens), self._states_of(seq.computed, end, prompt_end(seq))

    def _states_of(self, begin: int, end: int, prompt: int) -> int:
        """States that a step keeps which serves a row's tokens from `begin` to `end`; it has a prompt of so many tokens."""
        size = self.block_tokens
        checkpoint = self.checkpoints and end >= prompt and begin % size == 0 and self.last_place(end) >= begin + size
        return 1 + checkpoint

    def _lacking(self, table: Table, need: int, states: int) -> int:
        """Blocks of states that a row takes whose table is to have `need` entries."""
        more = need - len(table.blocks)
        return (max(0, min(more, states)) if self.prefix_caching else not table.blocks) + self.drafts - table.spare

    def blocks_of(self, tokens: int) -> int:
        """Blocks that `tokens` tokens take in all groups, if none stands in one already."""
        return self.first_state * -(-tokens // self.block_tokens) + (len(self.windows) - self.first_state) * (1 + self.drafts)

    def missing_whole(self, seq: Sequence, tokens: int) -> int:
        """Blocks that a sequence lacks to hold `tokens` tokens, in window groups as `admission_blocks` counts the whole."""
        need, total = -(-tokens // self.block_tokens), 0
        tables, first = self._tables(seq), self.first_state
        for cap, table in zip(self._caps[:first], tables[:first], strict=True):
            total += max(0, (need if cap is None or need < cap else cap) - len(table.blocks))
        need, states = self._states_needed(seq, tokens)
        return total + sum(self._lacking(table, need, states) for table in tables[first:])

    def leave_window(self, seq: Sequence, scheduled: int, processed: int) -> None:
        """Free the blocks that no later token of the sequence can see."""
        tokens = processed if self.frees_processed else scheduled
        for group, (window, table) in enumerate(zip(self.growing, self._tables(seq), strict=False)):
            if window is None:
                continue
            blocks = table.blocks
            before = min(self.before_window(window, tokens), len(blocks))
            for position in range(before - 1, table.gone - 1, -1):
                self._leave(seq.group_state, group, position, blocks[position])
            if before > table.gone:
                blocks[table.gone : before] = [None] * (before - table.gone)
                table.gone = before

    def _leave(self, held: Held, group: int, position: int, block: Block | None) -> None:
        if block is HASHED:
            left = Block(LEFT)
            left.holders = 0
            self._queue[left] = None
            self.free_blocks += 1
            held.left.append((left, group, position))
        elif block is PLAIN:
            self.free_plain(1)
        elif block is not None:
            block.holders -= 1
            if block.holders == 0:
                self._queue[block] = None
                self.free_blocks += 1

    def leave_behind(self, seq: Sequence, groups: list[int], position: int) -> None:
        """Free a block that a row of the aggregate leaves behind in these groups; `catch_up` brings the tables up to date."""
        held: Held = seq.group_state
        hashes = self.prefix_caching and not self.sparse_windows
        for group in groups:
            blocks = held.tables[group].blocks
            block = blocks[position] if position < len(blocks) else PLAIN
            if hashes and block is PLAIN:  # filled by decode steps
                block = HASHED
                if seq.output_shared:
                    block = Block(self._keys(seq, position + 1)[position] * len(self.windows) + group)
                    self._insert(block)
            self._leave(held, group, position, block)

    def free_plain(self, blocks: int) -> None:
        """Free blocks without a hash."""
        self.free_blocks += blocks
        if self.unhashed_to_head:
            self._plain_head += blocks
        else:
            self._queue[FreeRun(blocks)] = None

    def exchange(self, peak: int, net: int) -> None:
        """Take and free blocks without a hash at the queue's head, in an order that needs `peak` at most, `net` in the end."""
        plain = self._plain_head
        evicted = peak - plain
        if evicted > 0:
            free = self.free_blocks
            self._plain_head = 0
            self.take(evicted)
            self.free_blocks = free
            plain = peak
        self._plain_head = plain - net
        self.free_blocks -= net

    def catch_up(self, seq: Sequence, tokens: int, gone_tokens: int) -> None:
        """Bring the tables of a row that leaves the aggregate up to date.

        Its blocks hold `tokens` tokens, and the last window that moved was that before position `gone_tokens`.
        """
        need = -(-tokens // self.block_tokens)
        for window, table in zip(self.growing, self._tables(seq), strict=False):
            blocks = table.blocks
            if need > len(blocks):
                blocks.extend([PLAIN] * (need - len(blocks)))
            before = min(self.before_window(window, gone_tokens), len(blocks))
            if before > table.gone:
                blocks[table.gone : before] = [None] * (before - table.gone)
                table.gone = before

    def grow(self, seq: Sequence, tokens: int) -> None:
        """Allocate until every group's blocks hold `tokens` tokens."""
        need = -(-tokens // self.block_tokens)
        for group, table in enumerate(self._tables(seq)):
            more = need - len(table.blocks)
            if group < self.first_state and more > 0:
                self.take(more)
                table.blocks.extend([PLAIN] * more)
            elif more > 0:
                entries, states = self._states_needed(seq, tokens)
                lacking = self._lacking(table, entries, states)
                self.take(lacking)
                states = lacking - self.drafts + table.spare
                table.spare = self.drafts
                have = len(table.blocks)
                table.blocks.extend([None] * (entries - have - states) if self.prefix_caching else [])
                table.blocks.extend([PLAIN] * states)
                if states > 1 and self.drops_block:  # the state to resume from stands a block further before
                    place = self.last_place(max(tokens - self.lookahead_tokens, seq.computed + 1)) // self.block_tokens - 1
                    table.blocks[-2], table.blocks[place] = table.blocks[place], table.blocks[-2]

    def register(self, seq: Sequence, known_tokens: int) -> None:
        """Hash every block that is full of known tokens and still in its window's reach."""
        if not self.prefix_caching:
            return
        full = known_tokens // self.block_tokens
        for group, (window, table) in enumerate(zip(self.windows, self._tables(seq), strict=True)):
            if table.hashed >= full:
                continue
            first = max(table.hashed, table.gone)
            if window is None or not self.sparse_windows:
                self._hash(seq, group, table, first, full)
            else:
                for start, end in self._resumable(seq, window):
                    self._hash(seq, group, table, max(first, start), min(full, end))
            table.hashed = full

    def _hash(self, seq: Sequence, group: int, table: Table, first: int, end: int) -> None:
        """Hash the blocks at positions `first` to `end` - 1; those that others may share enter the prefix index."""
        if first >= end:
            return
        keys = self._keys(seq, end if seq.output_shared else 0)
        blocks, count = table.blocks, len(self.windows)
        for position in range(first, min(end, len(keys))):
            if blocks[position] is None:  # a state that no step ended with
                continue
            block = Block(keys[position] * count + group)
            self._insert(block)
            blocks[position] = block
            if group >= self.first_state:
                self._fresh.add(block.key)
        private = max(first, len(keys))
        if private < end:
            blocks[private:end] = [None if block is None else HASHED for block in blocks[private:end]]

    def _keys(self, seq: Sequence, blocks: int) -> list[int]:
        keys = seq.keys
        assert keys is not None
        if len(keys) < blocks:
            if seq.output_shared:
                keys = seq.keys = self.chain.keys(seq.runs, seq.final_length // self.block_tokens)
            while len(keys) < blocks:
                keys.append(self.chain.fresh())
        return keys

    def _resumable(self, seq: Sequence, window: int) -> list[tuple[int, int]]:
        """Positions of a sparse window group that are worth finding again: disjoint ranges in ascending order."""
        needed, size, prompt = -(-(window - 1) // self.block_tokens), self.block_tokens, seq.prompt_tokens
        junction = seq.junction_tokens // size
        if self.drops_block:
            places = {(prompt - 1) // size - 1, prompt // size - 1, junction}
        else:
            places = {(prompt - 1) // size, junction}
        ranges, before = [], 0
        for place in sorted(places):
            if place > 0:
                ranges.append((max(before, place - needed), place))
                before = place
        return ranges

    def name_output(self, seq: Sequence) -> None:
        """Outputs are named when their blocks are hashed."""

    def make_findable(self, seq: Sequence) -> None:
        """Put the private hashed blocks into the index: a preempted sequence may find them again."""
        if not self.prefix_caching:
            return
        count = len(self.windows)
        for block, group, position in seq.group_state.left:
            if block in self._queue:
                block.key = self._keys(seq, position + 1)[position] * count + group
                self._insert(block)
        for group, table in enumerate(self._tables(seq)):
            blocks = table.blocks
            keys = self._keys(seq, table.hashed)
            for position in range(table.gone, min(table.hashed, len(blocks))):
                if blocks[position] is HASHED:
                    named = blocks[position] = Block(keys[position] * count + group)
                    self._insert(named)

    def put_off(self, seq: Sequence) -> None:
        """Let `release` free the last group first: the engine frees what had to wait as one list, from its end."""
        self._tables(seq).reverse()

    def release(self, seq: Sequence) -> None:
        """Free all blocks, group by group, the last of the sequence first."""
        for table in self._tables(seq):
            gone = table.gone
            if table.spare:
                self.free_plain(table.spare)
            self._free(table.blocks[: gone - 1 if gone else None : -1])
        seq.group_state = None

    def _forget(self, block: Block) -> None:
        if block.key != LEFT:
            super()._forget(block)

    def _free(self, blocks: Iterable[Block | None]) -> None:
        """Free held blocks, in this order."""
        queue = self._queue
        for block, same in groupby(blocks):
            if block is PLAIN:
                self.free_plain(sum(1 for _ in same))
                continue
            if block is HASHED:
                many = sum(1 for _ in same)
                self.free_blocks += many
                queue[FreeRun(many)] = None
                continue
            if block is None:
                continue
            block.holders -= 1
            if block.holders == 0:
                queue[block] = None
                self.free_blocks += 1
