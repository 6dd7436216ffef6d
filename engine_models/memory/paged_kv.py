"""Paged KV cache with a hash-chain prefix index, as vLLM keeps it, by counts where counts suffice.

The allocator owns `capacity_blocks` blocks of `block_tokens` tokens. A block is *hashed* once every token in it is
known; a hashed block can be found by a later request whose first tokens are the same. Free blocks form one
queue: blocks are taken from its head, and a hashed block that is taken leaves the prefix index at that moment.

What makes this cheap is that most blocks have no identity that matters. A request's prompt is split into the
leading part that other requests may share (known from the workload's content) and the private rest. Shared blocks are
objects with a key; private blocks are counts, and once free they are one entry of the queue however many they are.
A private request that is preempted may later find its own blocks again: it is given keys at that moment.

Sources: the behaviour is that of vLLM's block pool and KV manager (0.11 to 0.33, see docs/engines/vllm.md).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Series

from engine_models.parts.block_names import BlockEvents, ChainKeys
from engine_models.parts.kept import Kept, line_runs, lines, parents_first
from engine_models.parts.sequence import Sequence


class Block:
    """A hashed block: its chain key and how many requests hold it."""

    __slots__ = ("holders", "key")

    def __init__(self, key: int) -> None:
        self.key = key
        self.holders = 1


class FreeRun:
    """Several free blocks with one place in the queue: private hashed ones, or unhashed ones."""

    __slots__ = ("blocks",)

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks


class BlockPool:
    """The blocks of one replica: the queue of free ones and the index of those that can be found.

    Parameters
    ----------
    capacity_blocks : usable blocks (vLLM: `num_gpu_blocks` - 1, the null block is never used).
    block_tokens : tokens a block.
    prefix_caching : whether hashed blocks can be found again.
    unhashed_to_head : where freed blocks without a hash go: the head of the free queue (vLLM from 0.24), where
        they are reused first, or its tail.
    drops_block : whether the last block found is computed again, as what a drafter keeps of it depends on the token behind.
    """

    def __init__(
        self,
        capacity_blocks: int,
        block_tokens: int,
        *,
        prefix_caching: bool,
        unhashed_to_head: bool = True,
        drops_block: bool = False,
    ) -> None:
        self.capacity_blocks = capacity_blocks
        self.block_tokens = block_tokens
        self.prefix_caching = prefix_caching
        self.unhashed_to_head = unhashed_to_head
        self.drops_block = drops_block
        self.free_blocks = capacity_blocks
        self.chain = ChainKeys(block_tokens)
        self._plain_head = capacity_blocks  # free, unhashed, at the head of the queue
        self._queue: OrderedDict[Block | FreeRun, None] = OrderedDict()
        self._begun = FreeRun(0)  # the run at the head of the queue, if some of it was taken before
        self._index: dict[int, Block | list[Block]] = {}
        self.events: BlockEvents | None = None  # noted where somebody wants to hear of them

    def prepare(self, seq: Sequence) -> None:
        """Name the blocks of the sequence's shareable content; called once, before its first lookup."""
        blocks = seq.shareable_tokens // self.block_tokens if self.prefix_caching else 0
        seq.keys = self.chain.keys(seq.runs, blocks) if blocks else []

    def last_place(self, tokens: int) -> int:
        """The last position from which a prompt of `tokens` tokens is resumed that comes once more."""
        size = self.block_tokens
        return max(0, tokens // size * size - size) if self.drops_block else (tokens - 1) // size * size

    def _insert(self, block: Block) -> None:
        entry = self._index.get(block.key)
        if entry is None:
            self._index[block.key] = block
        elif isinstance(entry, list):
            entry.append(block)
        else:
            self._index[block.key] = [entry, block]

    def _forget(self, block: Block) -> None:
        entry = self._index[block.key]
        if entry is block:
            del self._index[block.key]
            if self.events is not None:
                self.events.append((block.key, ()))
        else:
            assert isinstance(entry, list)
            entry.remove(block)
            if len(entry) == 1:
                self._index[block.key] = entry[0]

    def take(self, blocks: int) -> None:
        """Take `blocks` from the head of the free queue; cached ones among them are evicted."""
        self.free_blocks -= blocks
        if blocks <= self._plain_head:
            self._plain_head -= blocks
            return
        blocks -= self._plain_head
        self._plain_head = 0
        begun = self._begun
        if blocks < begun.blocks:
            begun.blocks -= blocks
            return
        queue = self._queue
        while blocks:
            entry = next(iter(queue))
            if entry.__class__ is Block:
                self._forget(entry)
                blocks -= 1
            elif entry.blocks > blocks:  # type: ignore[union-attr]
                entry.blocks -= blocks  # type: ignore[union-attr]
                self._begun = entry  # type: ignore[assignment]
                return
            else:
                blocks -= entry.blocks  # type: ignore[union-attr]
                entry.blocks = 0  # type: ignore[union-attr]
            del queue[entry]


class PagedKV(BlockPool):
    """Blocks of one replica, all layers sharing one block id (a single KV group); parameters as of the pool."""

    itemised = False

    def report(self, chain: ChainKeys) -> BlockEvents:
        """From now on name blocks by `chain` and note those that enter and leave the index in the list returned."""
        self.chain = chain
        self.events = []
        return self.events

    def _entered(self, keys: list[int], first: int, end: int) -> None:
        """Note that blocks `first` ... `end` - 1 of a sequence have entered the index."""
        if self.events is not None and end > first:
            self.events.append((keys[first - 1] if first else None, keys[first:end]))

    # -- what outlives it -----------------------------------------------------------------------------------

    def kept(self) -> list[Kept]:
        """What can be found, the least recently used first, a block a piece; blocks of which nobody knows the name in one."""
        known = self.chain.contents()
        held = [block for entry in self._index.values() for block in (entry if isinstance(entry, list) else (entry,))]
        order = [*self._queue, *(block for block in held if block not in self._queue)]
        at: dict[int, int] = {}
        for key in sorted(block.key for block in held):  # a block's key is above that of the one before it
            if key in known and (known[key][0] == 0 or known[key][0] in at):
                at[key] = -1
        found: list[Kept] = []
        for number, entry in enumerate(order):
            if isinstance(entry, Block) and at.get(entry.key, 0) < 0:
                at[entry.key] = number
                found.append(Kept(known[entry.key][0], known[entry.key][1]))
            else:
                blocks = 1 if isinstance(entry, Block) else entry.blocks
                found.append(Kept(0, ((-1, 0, blocks * self.block_tokens),)))
        return [piece._replace(parent=at.get(piece.parent, -1)) for piece in found]

    def warm(self, pieces: Series[Kept]) -> None:
        """Hold what another cache has kept, as much of the latest used as fits. Before: the cache is empty."""
        size = self.block_tokens
        keys: dict[int, int] = {}
        for line in lines(pieces):
            keys.update(zip(line, self.chain.keys(line_runs(pieces, line), len(line)), strict=False))
        blocks = [piece.tokens // size for piece in pieces]
        over = sum(blocks) - self.capacity_blocks
        first = 0
        while over > 0:
            over -= blocks[first]
            first += 1
        for number in range(first, len(pieces)):
            entry = Block(keys[number]) if blocks[number] == 1 else FreeRun(blocks[number])
            if isinstance(entry, Block):
                entry.holders = 0
                self._insert(entry)
            self._queue[entry] = None
            self._plain_head -= blocks[number]
        for number in parents_first(pieces) if self.events is not None else ():
            if number >= first and blocks[number] == 1 and self.events is not None:
                self.events.append((keys.get(pieces[number].parent), [keys[number]]))

    # -- admission ------------------------------------------------------------------------------------------

    def find(self, seq: Sequence) -> list[Block]:
        """Longest run of cached blocks from the start, at most all but the last known token.

        Cached blocks are returned, not yet held.
        """
        keys = seq.keys
        if keys is None:
            self.prepare(seq)
            keys = seq.keys
        assert keys is not None
        limit = (seq.length - 1) // self.block_tokens
        found: list[Block] = []
        get = self._index.get
        for key in keys[:limit]:
            entry = get(key)
            if entry is None:
                break
            found.append(entry if entry.__class__ is Block else entry[0])  # type: ignore[index]
        if self.drops_block and found:
            found.pop()
        return found

    def hit_tokens(self, found: list[Block]) -> int:
        """Tokens that the found blocks hold."""
        return len(found) * self.block_tokens

    def admission_blocks(self, found: list[Block], tokens: int, *, whole: bool, computed_tokens: int = 0) -> int:
        """Free blocks that a new request takes to hold `tokens` tokens, cached ones that nobody holds included."""
        blocks = -(-tokens // self.block_tokens)
        for block in found:
            if block.holders:
                blocks -= 1
        return blocks

    def begin_step(self) -> None:
        """Nothing: what a step computes can be read by the rows behind it."""

    # -- blocks ---------------------------------------------------------------------------------------------

    def held(self, seq: Sequence) -> int:
        """Number of blocks that the sequence holds."""
        return len(seq.blocks) + seq.extra_blocks

    def missing(self, seq: Sequence, tokens: int) -> int:
        """Blocks that the sequence lacks to hold `tokens` tokens."""
        return max(0, -(-tokens // self.block_tokens) - len(seq.blocks) - seq.extra_blocks)

    def blocks_of(self, tokens: int) -> int:
        """Blocks that `tokens` tokens take, if none stands in one already."""
        return -(-tokens // self.block_tokens)

    def put_off(self, seq: Sequence) -> None:
        """Nothing: one group is freed from its end, late or not."""

    def missing_whole(self, seq: Sequence, tokens: int) -> int:
        """`missing`, as every token stays visible."""
        return self.missing(seq, tokens)

    def leave_window(self, seq: Sequence, scheduled: int, processed: int) -> None:
        """Every token stays visible: nothing to free before the end."""

    def hold(self, seq: Sequence, found: list[Block], computed_tokens: int = 0) -> None:
        """Take over cached blocks that `find` returned."""
        queue = self._queue
        for block in found:
            if block.holders == 0:
                del queue[block]
                self.free_blocks -= 1
            block.holders += 1
        seq.blocks = found
        seq.hashed_blocks = len(found)

    def grow(self, seq: Sequence, tokens: int) -> None:
        """Allocate until the sequence's blocks hold `tokens` tokens."""
        more = -(-tokens // self.block_tokens) - len(seq.blocks) - seq.extra_blocks
        if more > 0:
            self.take(more)
            seq.extra_blocks += more

    def register(self, seq: Sequence, known_tokens: int) -> None:
        """Hash every block that is full of known tokens; those that others may share enter the prefix index."""
        if not self.prefix_caching:
            return
        full = known_tokens // self.block_tokens
        keys = seq.keys
        assert keys is not None
        if not keys:
            if full > seq.hashed_blocks:
                seq.hashed_blocks = full
            return
        have = len(seq.blocks)
        if full <= seq.hashed_blocks and have >= min(full, len(keys)):
            return
        if have < len(keys) and have < full:
            self._entered(keys, have, min(full, len(keys)))
            for key in keys[have : min(full, len(keys))]:
                block = Block(key)
                self._insert(block)
                seq.blocks.append(block)
                seq.extra_blocks -= 1
        seq.hashed_blocks = max(full, seq.hashed_blocks)

    def name_output(self, seq: Sequence) -> None:
        """Name the blocks of the whole sequence, output included, so that later turns can find them."""
        seq.keys = self.chain.keys(seq.runs, (seq.final_length - 1) // self.block_tokens)

    def make_findable(self, seq: Sequence) -> None:
        """Enter all hashed blocks into the index: the sequence may come back and look itself up."""
        if not self.prefix_caching:
            return
        keys = seq.keys
        assert keys is not None
        if seq.output_shared and len(keys) < seq.hashed_blocks:
            keys = seq.keys = self.chain.keys(seq.runs, seq.hashed_blocks)
        while len(keys) < seq.hashed_blocks:
            keys.append(self.chain.fresh())
        self._entered(keys, len(seq.blocks), seq.hashed_blocks)
        for key in keys[len(seq.blocks) : seq.hashed_blocks]:
            block = Block(key)
            self._insert(block)
            seq.blocks.append(block)
            seq.extra_blocks -= 1

    def release(self, seq: Sequence) -> None:
        """Free all blocks, the last of the sequence first."""
        queue = self._queue
        hashed = seq.hashed_blocks if self.prefix_caching else 0
        keyed: list[Block] = seq.blocks
        private = hashed - len(keyed) if hashed > len(keyed) else 0
        plain = seq.extra_blocks - private
        self.free_blocks += seq.extra_blocks
        if plain:
            if self.unhashed_to_head:
                self._plain_head += plain
            else:
                queue[FreeRun(plain)] = None
        if private:
            queue[FreeRun(private)] = None
        for block in reversed(keyed):
            block.holders -= 1
            if block.holders == 0:
                queue[block] = None
                self.free_blocks += 1
        seq.blocks = []
        seq.extra_blocks = 0
        seq.hashed_blocks = 0
