"""KV blocks that rows take ahead of their tokens, with or without a trie of whole blocks that rows share.

A block enters the trie when it is *taken*, before it is computed: rows of one batch share it. A row's block whose path is there
already is given back for the one that is. The trie holds every block that ever entered until it is evicted: leaves that no row
holds, those first whose last use is oldest in whole seconds, then those made first; a parent may follow its last child.

With a sliding window over all layers a row drops the blocks behind the window when it next takes some.

Source: behaviour of LMDeploy 0.18 (`lmdeploy/pytorch/paging/block_manager`, `block_trie`), checked step by step against
recordings; see docs/engines/lmdeploy.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from engine_models.memory.radix import Content, Runs


class BlockNode:
    """A block of the trie: its tokens below those of its parent, the rows that hold it, its last use in whole seconds."""

    __slots__ = ("children", "key", "parent", "rows", "serial", "used_s")

    def __init__(self, key: Runs, parent: BlockNode | None, used_s: int, serial: int) -> None:
        self.key = key
        self.parent = parent
        self.children: dict[Runs, BlockNode] = {}
        self.rows = 1
        self.used_s = used_s
        self.serial = serial


class HeldBlocks:
    """What a row holds: its path in the trie, then blocks of its own (when each was taken, in whole seconds).

    `dropped` counts the blocks that fell behind the window.
    """

    __slots__ = ("dropped", "own", "own_s", "path")

    def __init__(self) -> None:
        self.path: list[BlockNode] = []
        self.own = 0
        self.own_s: list[int] = []
        self.dropped = 0

    @property
    def count(self) -> int:
        """Blocks held."""
        return len(self.path) + self.own


class TrieBlocks:
    """The KV blocks of one rank.

    Parameters
    ----------
    capacity_blocks : usable blocks.
    block_tokens : tokens of a block.
    prefix_caching : whether whole blocks are shared.
    window_tokens : window of all layers, 0 for none; then nothing is shared.
    """

    def __init__(
        self, capacity_blocks: int, block_tokens: int, *, prefix_caching: bool, window_tokens: int = 0
    ) -> None:
        self.capacity_blocks = capacity_blocks
        self.block_tokens = block_tokens
        self.prefix_caching = prefix_caching
        self.window_tokens = window_tokens
        self.free_blocks = capacity_blocks
        self.trie_blocks = 0
        self.evictable_blocks = 0  # of the trie, held by no row
        self._root = BlockNode((), None, 0, 0)
        self._leaves: set[BlockNode] = set()
        self._serials = 0

    @property
    def used_blocks(self) -> int:
        """Blocks that neither are free nor could be."""
        return self.capacity_blocks - self.free_blocks - self.evictable_blocks

    def missing(self, held: HeldBlocks, tokens: int, computed: int) -> int:
        """Blocks that a row lacks for `tokens` tokens, of which `computed` are computed."""
        lacking = -(-tokens // self.block_tokens) - held.count
        if computed > self.window_tokens:
            lacking -= held.dropped
        return max(0, lacking)

    def take(self, held: HeldBlocks, tokens: int, computed: int, now_s: float) -> None:
        """Give a row the blocks that it lacks for `tokens` tokens; there must be as many. Those behind the window go."""
        lacking = self.missing(held, tokens, computed)
        if self.window_tokens and computed > self.window_tokens:
            size = self.block_tokens
            within = (computed - 1) // size - (computed - self.window_tokens) // size + 1
            behind = max(0, held.count - within)
            held.dropped += behind
            held.own -= behind
            self.free_blocks += behind
        held.own += lacking
        self.free_blocks -= lacking
        if self.prefix_caching:
            held.own_s += [int(now_s)] * lacking

    def find(self, held: HeldBlocks, content: Content, tokens: int, now_s: float) -> int:
        """Let a row hold the blocks of the trie that continue its path, short of its last token; return their number."""
        node = held.path[-1] if held.path else self._root
        size, before = self.block_tokens, len(held.path)
        while (len(held.path) + 1) * size < tokens:
            child = node.children.get(self._key(content, len(held.path)))
            if child is None:
                break
            self._hold(child)
            child.used_s = int(now_s)
            held.path.append(child)
            node = child
        return len(held.path) - before

    def enter(self, held: HeldBlocks, content: Content, tokens: int) -> None:
        """Enter a row's whole blocks of its first `tokens` tokens in the trie."""
        path, blocks = held.path, tokens // self.block_tokens
        entered = blocks - len(path)
        if not self.prefix_caching or entered <= 0:
            return
        node = path[-1] if path else self._root
        for taken_s in held.own_s[:entered]:
            key = self._key(content, len(path))
            child = node.children.get(key)
            if child is None:
                self._serials += 1
                child = node.children[key] = BlockNode(key, node, taken_s, self._serials)
                self._leaves.discard(node)
                self._leaves.add(child)
                self.trie_blocks += 1
            else:
                self._hold(child)
                self.free_blocks += 1
            path.append(child)
            node = child
        held.own -= entered
        del held.own_s[:entered]

    def release(self, held: HeldBlocks, now_s: float) -> None:
        """Take a row's blocks back; those in the trie stay there."""
        for node in held.path:
            node.rows -= 1
            node.used_s = int(now_s)
            self.evictable_blocks += node.rows == 0
        self.free_blocks += held.own
        held.path.clear()
        held.own_s.clear()
        held.own = held.dropped = 0

    def drop_last(self, held: HeldBlocks, now_s: float) -> None:
        """Take a row's last block back; in the trie it stays until it is evicted."""
        if held.own:
            held.own -= 1
            del held.own_s[held.own :]
            self.free_blocks += 1
            return
        node = held.path.pop()
        node.rows -= 1
        node.used_s = int(now_s)
        self.evictable_blocks += node.rows == 0

    @property
    def newest(self) -> int:
        """Serial number of the block that entered the trie last."""
        return self._serials

    def evict(self, blocks: int) -> int:
        """Free up to `blocks` blocks of the trie that no row holds; return how many."""
        if not self.evictable_blocks or blocks <= 0:
            return 0
        heap = [(leaf.used_s, leaf.serial, leaf) for leaf in self._leaves if not leaf.rows]
        heapq.heapify(heap)
        freed = 0
        while heap and freed < blocks:
            _, _, leaf = heapq.heappop(heap)
            parent = leaf.parent
            assert parent is not None
            del parent.children[leaf.key]
            self._leaves.discard(leaf)
            freed += 1
            if parent.parent is not None and not parent.children:
                self._leaves.add(parent)
                if not parent.rows:
                    heapq.heappush(heap, (parent.used_s, parent.serial, parent))
        self.free_blocks += freed
        self.trie_blocks -= freed
        self.evictable_blocks -= freed
        return freed

    def nodes(self) -> Iterable[BlockNode]:
        """All blocks of the trie."""
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    def _hold(self, node: BlockNode) -> None:
        self.evictable_blocks -= node.rows == 0
        node.rows += 1

    def _key(self, content: Content, block: int) -> Runs:
        size = self.block_tokens
        return content.slice(block * size, (block + 1) * size)
