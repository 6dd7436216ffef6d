"""KV blocks in a tree of their contents, where even a part of a block can be found, and one line of free blocks.

A block may stand in the tree below the block of the tokens before it; its key are its own tokens. Whoever is let in takes along
the tree all whole blocks that it finds, for itself and others, and then at most one whose beginning it shares: that one is
copied if somebody uses it or blocks stand below it, else taken over. The last token of a prompt is never found. Blocks that
nobody holds stand in one line, the longest free first, and stay in the tree until they are taken; with a block all that stands
below it leaves the tree. A row gives back its blocks the deepest first.

What is held beyond the tree has no identity: rows count it.

Source: behaviour of TensorRT-LLM of 2026 (`cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp`, `evictionPolicy.cpp` at
05a91919; that only computed tokens are stored after a chunk, of a slightly newer state), checked against recordings; see
docs/engines/trtllm.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Series

from engine_models.memory.radix import Content, Runs
from engine_models.parts.kept import Kept, parents_first
from engine_models.parts.sequence import Sequence
from hardware_profiles.errors import InfeasibleError


class Block:
    """A block with an identity: in the tree, in the line of free blocks, or both. `refs` are the rows that hold it.

    In the line one that was never in the tree may stand for `many`, one behind the other; nothing ever stands below it.
    `away` : not on the device (`engine_models.memory.hosted_tree`).
    """

    __slots__ = ("away", "children", "key", "many", "parent", "refs", "starts")

    def __init__(self, refs: int = 0, many: int = 1) -> None:
        self.key: Runs = ()
        self.parent: Block | None = None
        self.children: dict[Runs, Block] = {}
        self.starts: dict[tuple[int, int], dict[Block, None]] = {}  # children by their first token, in order of entry
        self.refs = refs
        self.many = many
        self.away = False


def first_of(line: OrderedDict[Block, None], blocks: int) -> list[Block]:
    """Take so many blocks from the front of a line, of one that stands for more as many as are asked for."""
    taken: list[Block] = []
    while blocks:
        block, _ = line.popitem(last=False)
        if block.many > blocks:
            block.many -= blocks
            line[block] = None
            line.move_to_end(block, last=False)
            block = Block(0, blocks)
        taken.append(block)
        blocks -= block.many
    return taken


class BlockTree:
    """The KV blocks of one rank.

    Parameters
    ----------
    capacity_blocks : usable blocks.
    block_tokens : tokens a block.
    prefix_caching : whether computed blocks can be found again.
    partial : whether a part of a block can be found.
    copies : whether one of which others need the rest can (it is copied).
    returns : whether rows may come back to what they have computed; else what nobody but one can find is kept out of the tree,
        but for the first such block, since others look whether anything stands below what they share.
    """

    def __init__(
        self,
        capacity_blocks: int,
        block_tokens: int,
        *,
        prefix_caching: bool = True,
        partial: bool = True,
        copies: bool = True,
        returns: bool = True,
    ) -> None:
        self.capacity_blocks = capacity_blocks
        self.block_tokens = block_tokens
        self.prefix_caching = prefix_caching
        self.partial = partial
        self.copies = copies
        self.returns = returns
        self.free_blocks = capacity_blocks  # those in the tree that nobody holds among them
        self.root = Block(1)
        self._fresh = capacity_blocks  # free ones without content, which stand before all others
        self._line: OrderedDict[Block, None] = OrderedDict()

    # -- what outlives it -----------------------------------------------------------------------------------

    def kept(self) -> list[Kept]:
        """Free blocks that can be found, the longest free first; of those that nobody finds how much room they take."""
        line = [block for block in self._line for _ in range(block.many)]
        at: dict[Block, int] = {block: number for number, block in enumerate(line) if self._found(block)}
        return [
            Kept(-1 if block.parent is None else at.get(block.parent, -1), block.key)
            if block in at
            else Kept(-1, ((-1, 0, self.block_tokens),))
            for block in line
        ]

    def _found(self, block: Block) -> bool:
        """Whether a block stands in the tree, its parents free and on the device as it is."""
        at: Block | None = block
        while at is not None and at is not self.root:
            if at.refs or at.away or at.parent is None or at.parent.children.get(at.key) is not at:
                return False
            at = at.parent
        return True

    def warm(self, pieces: Series[Kept]) -> None:
        """Hold what another cache has kept, as much of the latest free as fits. Before: the cache is empty."""
        first = max(0, len(pieces) - self.capacity_blocks)
        made: dict[int, Block] = {}
        for number in parents_first(pieces):
            piece = pieces[number]
            if number >= first and (piece.parent < 0 or piece.parent in made):
                made[number] = Block()
                self._enter(made[number], made.get(piece.parent, self.root), piece.runs)
        for number in sorted(made):
            self._line[made[number]] = None
        self._fresh -= len(made)

    # -- looking up -----------------------------------------------------------------------------------------

    def find(self, content: Content, tokens: int) -> tuple[int, int, Runs | None]:
        """Of the whole blocks of the first `tokens` tokens: how many are found, and how many of these are in use.

        The third value is the content up to the end of the first that is not found, None if all are.
        """
        size, node = self.block_tokens, self.root
        found = used = 0
        if not self.prefix_caching:
            return 0, 0, None
        for end in range(size, tokens + 1, size):
            child = node.children.get(content.slice(end - size, end))
            if child is None:
                return found, used, content.slice(0, end)
            found += 1
            used += child.refs > 0
            node = child
        return found, used, None

    def _best_part(self, node: Block, content: Content, start: int, limit: int) -> tuple[int, Block | None]:
        """The child that shares the longest beginning from token `start`, the first entered of several, and how many tokens."""
        most, best = 0, None
        first = content.slice(start, start + 1)[0]
        for child in node.starts.get((first[0], first[1]), ()):
            if self.copies or not (child.refs or child.children):
                equal = content.common(start, limit, child.key)
                if equal > most:
                    most, best = equal, child
        return most, best

    # -- taking ---------------------------------------------------------------------------------------------

    def take(self, seq: Sequence, content: Content, tokens: int) -> int:
        """Take the blocks of `tokens` tokens for a row that holds none; return the tokens found.

        Before: as many blocks are free as it takes.
        """
        size = self.block_tokens
        blocks = -(-tokens // size)
        if not self.prefix_caching:
            self.draw(blocks)
            seq.blocks, seq.extra_blocks = [], blocks
            return 0
        node, found, limit = self.root, 0, tokens - 1
        held: list[Block | None] = []
        while found < limit:
            end = min(found + size, limit)
            child = node.children.get(content.slice(found, end))
            if child is not None and end - found == size:
                self._hold(child)
                held.append(child)
                node, found = child, end
                continue
            equal = end - found
            if child is None and self.partial:
                equal, child = self._best_part(node, content, found, end)
            if child is not None:
                found += equal
                if not (child.refs or child.children):
                    self._leave_tree(child)
                    self._hold(child)
                    child.refs = 0
                    held.append(None)
            break
        self.draw(blocks - len(held))
        held.extend([None] * (blocks - len(held)))
        seq.blocks, seq.extra_blocks = held, 0
        return found

    def alike_blocks(self) -> int:
        """Blocks that can be drawn by steps that differ in nothing else."""
        return self.free_blocks

    def draw(self, blocks: int) -> None:
        """Take free blocks for rows that count them, the longest free first; what they held cannot be found any more.

        Raises InfeasibleError where so many are not free, as the engine stops: a prompt of whole blocks that are all in use
        is let in as if it took none, and takes one.
        """
        if blocks > self.free_blocks:
            raise InfeasibleError(
                "the engine would stop here (`Can't allocate new blocks`): a prompt all held by others was let in as if it took "
                f"none, but its last token is computed anew; all {self.capacity_blocks} blocks of the KV cache are in use",
                mend="give the KV cache more memory, or set kv_cache_config.enable_block_reuse: false",
            )
        self.free_blocks -= blocks
        fresh = min(blocks, self._fresh)
        self._fresh -= fresh
        if blocks > fresh:
            for block in first_of(self._line, blocks - fresh):
                self._give_up(block)

    def _give_up(self, block: Block) -> None:
        """Let go what a block holds that the device takes from its line for another use."""
        self._leave_tree(block)

    def _hold(self, block: Block) -> None:
        if not block.refs:
            del self._line[block]
            self.free_blocks -= 1
        block.refs += 1

    # -- the tree -------------------------------------------------------------------------------------------

    def _enter(self, block: Block, parent: Block, key: Runs) -> None:
        if block.parent is not None:
            self._part(block)
        block.key, block.parent = key, parent
        if key not in parent.children:
            parent.children[key] = block
            parent.starts.setdefault(key[0][:2], {})[block] = None

    def _part(self, block: Block) -> None:
        """Take a block, with what stands below it, from below its parent."""
        parent = block.parent
        assert parent is not None
        other = parent.children.pop(block.key, None)
        if other is not None:
            same_start = parent.starts[block.key[0][:2]]
            del same_start[other]
            if not same_start:
                del parent.starts[block.key[0][:2]]
        block.parent = None

    def _leave_tree(self, block: Block) -> None:
        """Take a block out of the tree, and one by one all that stand below it."""
        if block.parent is not None:
            self._part(block)
        if not block.children:
            return
        below = [block]
        for node in below:
            below.extend(node.children.values())
            node.children.clear()
            node.starts.clear()
        for node in below:
            node.parent = None

    def store(self, seq: Sequence, content: Content, tokens: int, *, partial: bool = False) -> None:
        """Let the blocks of the first `tokens` tokens of a row be found; with `partial` the last may be filled in part."""
        if not self.prefix_caching:
            return
        size, held = self.block_tokens, seq.blocks
        node, matches = self.root, True
        blocks = -(-tokens // size) if partial else tokens // size
        if not self.returns and content.runs[-1][0] == -1 - seq.index:  # see `content_of`
            shared = content.starts[-1]
            blocks = min(blocks, -(-shared // size) + 1 if shared else 0)
        for number in range(min(blocks, len(held))):
            key = content.slice(number * size, min((number + 1) * size, tokens))
            child = node.children.get(key) if matches else None
            if child is not None:
                node = child
                continue
            matches = False
            block = held[number]
            if block is None:
                block = held[number] = Block(1)
            self._enter(block, node, key)
            node = block

    def release(self, seq: Sequence, content: Content, tokens: int) -> None:
        """Take all blocks of a row back; what it knows of its first `tokens` tokens can be found."""
        if not self.prefix_caching:
            self.free_blocks += seq.extra_blocks
            self._fresh += seq.extra_blocks
        else:
            held: list[Block | None] = seq.blocks
            held.extend([None] * seq.extra_blocks)
            self.store(seq, content, tokens, partial=True)
            unknown = 0
            for block in reversed(held):
                if block is None:
                    unknown += 1
                    continue
                if unknown:
                    unknown = self._line_up(unknown)
                block.refs -= 1
                if not block.refs:
                    self._line[block] = None
                    self.free_blocks += 1
            if unknown:
                self._line_up(unknown)
        seq.blocks, seq.extra_blocks = [], 0

    def _line_up(self, blocks: int) -> int:
        """Put free blocks without content behind the line; return that none are left."""
        self._line[Block(0, blocks)] = None
        self.free_blocks += blocks
        return 0

    def freed_by(self, seq: Sequence, refs: dict[Block, int]) -> int:
        """Blocks that would be free if a row gave back its own; `refs` counts who still holds those given back so before."""
        freed = seq.extra_blocks
        for block in seq.blocks:
            if block is None:
                freed += 1
                continue
            refs[block] = refs.get(block, block.refs) - 1
            freed += not refs[block]
        return freed
