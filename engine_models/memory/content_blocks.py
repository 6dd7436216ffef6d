"""KV blocks that are named by all tokens up to their end, partial last ones too, in a pool of fixed size or one that grows.

A block enters the index when it is *taken*, before it is computed, under the name of what it will hold, and changes its name as
its row writes on. Who looks a prompt up finds whole blocks, and after them the shortest beginning of the next one that is there.
Blocks of rows that have ended keep their contents; they are overwritten only when no unused block is left, those first whose
latest finding or overwriting is longest ago, and those never found in the order in which they were made. Of two such blocks with
one name the older is forgotten.

Two rows may hold one partial block; who writes on as a decode takes a block of its own for it.

Source: behaviour of OpenVINO GenAI at da1db864d (2026-08: `continuous_batching/cache/block_manager.hpp`, `sequence_group.cpp`),
checked step by step against recordings; see docs/engines/openvino.md.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from itertools import count

from engine_models.memory.radix import Content, Runs

Name = int | tuple[int, Runs]
"""What a block holds, with all before it: a number for a whole block, the number of the block before and the rest for a part."""


class NamedBlock:
    """A block: its name, the rows that hold it, when it was last found or overwritten (a running number)."""

    __slots__ = ("name", "rows", "stamp")

    def __init__(self, stamp: int) -> None:
        self.name: Name = 0
        self.rows = 0
        self.stamp = stamp


class HeldContent:
    """What a row holds: `count` blocks, with prefix caching as `blocks`; `names` are those of its first whole blocks."""

    __slots__ = ("blocks", "content", "count", "names")

    def __init__(self, content: Content) -> None:
        self.content = content
        self.count = 0
        self.blocks: list[NamedBlock] = []
        self.names: list[int] = []


class ContentBlocks:
    """The KV blocks of one rank.

    Parameters
    ----------
    capacity_blocks : blocks, those at the start if the pool grows.
    block_tokens : tokens of a block.
    prefix_caching : whether blocks are named and found.
    most_blocks : up to how many the pool grows, None if it does not.
    """

    def __init__(
        self,
        capacity_blocks: int,
        block_tokens: int,
        *,
        prefix_caching: bool,
        most_blocks: int | None = None,
    ) -> None:
        self.block_tokens = block_tokens
        self.prefix_caching = prefix_caching
        self.most_blocks = most_blocks
        self.capacity_blocks = 0
        self.free_blocks = 0  # unused ones, and those that may be overwritten
        self._stamps = count()
        self._numbers = count(1)
        self._interned: dict[tuple[int, Runs], int] = {}
        self._unused: deque[NamedBlock] = deque()
        self._index: dict[Name, NamedBlock] = {}
        self._left: dict[Name, NamedBlock] = {}  # held by nobody
        self._oldest: list[tuple[int, NamedBlock]] = []  # of these, and of some that were
        self.grow(capacity_blocks)

    @property
    def used_blocks(self) -> int:
        """Blocks that rows hold."""
        return self.capacity_blocks - self.free_blocks

    def grow(self, blocks: int) -> None:
        """Make the pool larger."""
        self.capacity_blocks += blocks
        self.free_blocks += blocks
        if self.prefix_caching:
            self._unused.extend(NamedBlock(next(self._stamps)) for _ in range(blocks))

    # -- names ----------------------------------------------------------------------------------------------

    def _name(self, held: HeldContent, tokens: int) -> Name:
        """The name of the block that ends with a row's token number `tokens`."""
        size, names = self.block_tokens, held.names
        whole, rest = divmod(tokens, size)
        while len(names) < whole:
            at = len(names) * size
            own = names[-1] if names else 0, held.content.slice(at, at + size)
            if own[1][-1][0] < 0:  # nobody else has such tokens
                names.append(next(self._numbers))
            else:
                known = self._interned.get(own)
                if known is None:
                    known = self._interned[own] = next(self._numbers)
                names.append(known)
        before = names[whole - 1] if whole else 0
        return (before, held.content.slice(whole * size, tokens)) if rest else before

    def rename_last(self, held: HeldContent, tokens: int) -> None:
        """A row has written up to its token number `tokens` in its last block."""
        if self.prefix_caching:
            self._rename(held.blocks[-1], self._name(held, tokens))

    def _rename(self, block: NamedBlock, name: Name) -> None:
        self._index.pop(block.name, None)
        block.name = name
        self._index[name] = block

    # -- finding --------------------------------------------------------------------------------------------

    def find(self, held: HeldContent, prompt_tokens: int) -> int:
        """Let a new row hold the blocks that begin its prompt; return their tokens, one less if that is all of it."""
        found: list[Name] = []
        size, tokens = self.block_tokens, 0
        while tokens < prompt_tokens:
            end = min(tokens + size, prompt_tokens)
            name = self._name(held, end)
            if name in self._index or name in self._left:
                found.append(name)
                tokens = end
                continue
            for part in range(tokens + 1, end):
                name = self._name(held, part)
                if name in self._index or name in self._left:
                    found.append(name)
                    tokens = part
                    break
            break
        for name in found:
            block = self._left.pop(name, None)
            if block is None:
                block = self._index[name]
            else:
                self.free_blocks -= 1
            block.rows += 1
            block.stamp = next(self._stamps)
            held.blocks.append(block)
        held.count = len(held.blocks)
        return tokens - 1 if tokens == prompt_tokens else tokens

    # -- taking ---------------------------------------------------------------------------------------------

    def slots(self, held: HeldContent, tokens: int) -> int:
        """Tokens for which a row of so many has room, or could have."""
        return -tokens % self.block_tokens + self.free_blocks * self.block_tokens

    def is_shared(self, held: HeldContent) -> bool:
        """Whether a row's last block is another's too."""
        return self.prefix_caching and held.count > 0 and held.blocks[-1].rows > 1

    def needed(self, held: HeldContent, tokens: int) -> int:
        """Free blocks that there must be before a row writes up to its token number `tokens`."""
        lacking = -(-tokens // self.block_tokens) - held.count
        if lacking >= 0 and self.is_shared(held):
            rows = held.blocks[-1].rows
            return lacking * rows if lacking else rows - 1
        return max(0, lacking)

    def taken(self, held: HeldContent, tokens: int) -> int:
        """Blocks that `write_on` takes."""
        lacking = -(-tokens // self.block_tokens) - held.count
        return max(lacking, int(not lacking and self.is_shared(held)))

    def take(self, held: HeldContent, tokens: int, known_tokens: int) -> None:
        """Give a row the blocks that it lacks for `tokens` tokens, named by what is known of them; there must be as many."""
        size = self.block_tokens
        lacking = -(-tokens // size) - held.count
        if lacking <= 0:
            return
        if not self.prefix_caching:
            held.count += lacking
            self.free_blocks -= lacking
            return
        if held.count:
            name = self._name(held, held.count * size)
            if held.blocks[-1].name != name:
                self._rename(held.blocks[-1], name)
        for number in range(held.count + 1, held.count + lacking + 1):
            held.blocks.append(self._new(self._name(held, min(number * size, known_tokens))))
        held.count += lacking

    def write_on(self, held: HeldContent, tokens: int, known_tokens: int) -> None:
        """As `take`; where no block is lacking, the last one becomes the row's own and is renamed."""
        if not self.prefix_caching or -(-tokens // self.block_tokens) != held.count:
            self.take(held, tokens, known_tokens)
        elif self.is_shared(held):
            shared, held.blocks[-1] = held.blocks[-1], self._new(self._name(held, tokens))
            shared.rows -= 1
        else:
            self.rename_last(held, tokens)

    def _new(self, name: Name) -> NamedBlock:
        self.free_blocks -= 1
        if self._unused:
            block = self._unused.popleft()
        else:
            block = self._overwritten()
            self._index.pop(block.name, None)
        block.rows = 1
        block.name = name
        self._index[name] = block
        return block

    def _overwritten(self) -> NamedBlock:
        oldest, left = self._oldest, self._left
        while True:
            stamp, block = heapq.heappop(oldest)
            if stamp == block.stamp and left.get(block.name) is block:
                del left[block.name]
                block.stamp = next(self._stamps)
                return block

    # -- giving back ----------------------------------------------------------------------------------------

    def release(self, held: HeldContent) -> None:
        """Take all of a row's blocks back, the first first."""
        self._give_back(held, held.blocks)
        held.blocks = []
        held.count = 0

    def keep(self, held: HeldContent, tokens: int) -> None:
        """Take the blocks back that a row does not need for `tokens` tokens."""
        extra = held.count - -(-tokens // self.block_tokens)
        if extra > 0:
            self.drop(held, extra)

    def drop(self, held: HeldContent, blocks: int) -> None:
        """Take a row's last blocks back, the last first."""
        if self.prefix_caching:
            self._give_back(held, held.blocks[: -blocks - 1 : -1])
            del held.blocks[-blocks:]
        else:
            self.free_blocks += blocks
        held.count -= blocks

    def _give_back(self, held: HeldContent, blocks: Iterable[NamedBlock]) -> None:
        if not self.prefix_caching:
            self.free_blocks += held.count
            return
        left, index = self._left, self._index
        for block in blocks:
            block.rows -= 1
            if block.rows:
                continue
            self.free_blocks += 1
            same = left.get(block.name)
            if same is not None:
                self._unused.append(same)
                if index.get(block.name) is same:
                    index[block.name] = block
            left[block.name] = block
            heapq.heappush(self._oldest, (block.stamp, block))
