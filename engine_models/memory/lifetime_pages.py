"""KV pages that a request takes at admission for its whole life, with or without a trie of cached prompts.

A request gets pages for its prompt and all it may generate at once, or none; it never takes more while it runs. With the trie its
first tokens may be found in pages that earlier requests left there. When a request goes, only whole pages of its *prompt* enter
the trie, whether they were computed or not; all others are free.

The trie differs from `RadixTree` in its rules: a look-up does not split a node, all nodes of a look-up get the same tick, a leaf
may lose its tail alone, and among leaves of one tick the order is that of their places in a slot map whose freed places are taken
again, the last freed first.

Source: behaviour of Text Generation Inference 3.3 (`backends/v3/src/block_allocator.rs`, `radix.rs`), checked against the code
itself and against recordings of it; see docs/engines/tgi.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine_models.memory.radix import Content, ContentTree, Node, split_runs
from engine_models.parts.sequence import Sequence


class PromptTrie(ContentTree):
    """Cached prompts as a trie over their tokens."""

    def __init__(self, page_tokens: int) -> None:
        super().__init__(page_tokens)
        self._time = 0.0
        self._free_places: list[int] = []
        self._places = 0

    def find(self, content: Content, limit: int) -> tuple[int, Node]:
        """Longest cached beginning of the first `limit` tokens, in whole pages: its length, and the node in which it ends."""
        self._time += 1
        page, node, position = self.page_tokens, self.root, 0
        while limit - position >= page:
            child = node.children.get(self._first(content, position))
            if child is None:
                break
            child.tick = self._time
            node = child
            equal = content.common(position, limit, child.key)
            position += equal - equal % page
            if equal < child.length:
                break
        return position, node

    def insert(self, content: Content, limit: int) -> int:
        """Enter the first `limit` tokens (a multiple of the page); return how many were there already."""
        self._time += 1
        page, node, position = self.page_tokens, self.root, 0
        while position < limit:
            child = node.children.get(self._first(content, position))
            if child is None:
                leaf = self._add(node, content.slice(position, limit), limit - position)
                self.evictable_tokens += leaf.length
                self._offer(leaf)
                break
            child.tick = self._time
            equal = content.common(position, limit, child.key)
            equal -= equal % page
            position += equal
            node = child if equal == child.length or position == limit else self._split(child, equal)
        return position

    def evict(self, tokens: int) -> int:
        """Free `tokens` (a multiple of the page) of unlocked leaves, the last one's tail only; return how many could be freed."""
        freed = 0
        while freed < tokens:
            node = self._take_first()
            if node is None:
                break
            more = min(tokens - freed, node.length)
            freed += more
            if more == node.length:
                self._free_places.append(node.serial)
                self._remove(node)
            else:
                node.length -= more
                node.key, _ = split_runs(node.key, node.length)
                self.evictable_tokens -= more
                self._offer(node)
        return freed

    def _add(self, parent: Node, key: tuple[tuple[int, int, int], ...], length: int) -> Node:
        if self._free_places:
            place = self._free_places.pop()
        else:
            self._places += 1
            place = self._places
        node = Node(key, length, self._first_of(key), parent, self._time, place)
        parent.children[node.first] = node
        return node

    def _split(self, child: Node, tokens: int) -> Node:
        """Put a new node over a child for its first `tokens` tokens; whoever holds the child still does."""
        assert child.parent is not None
        head, child.key = split_runs(child.key, tokens)
        upper = self._add(child.parent, head, tokens)
        upper.lock = child.lock
        child.length -= tokens
        child.first = self._first_of(child.key)
        child.parent = upper
        upper.children[child.first] = child
        return upper


class _Held:
    """What a request holds: pages of its own, and `found` tokens in the trie up to `node`."""

    __slots__ = ("found", "node", "pages", "prompt_tokens")

    def __init__(self, pages: int, found: int, node: Node | None, prompt_tokens: int) -> None:
        self.pages = pages
        self.found = found
        self.node = node
        self.prompt_tokens = prompt_tokens


class LifetimePages:
    """The KV pages of one rank.

    Parameters
    ----------
    capacity_blocks : usable pages.
    block_tokens : tokens a page.
    prefix_caching : whether prompts that are done can be found again.
    window_tokens : tokens after which pages are used again, None for no window; the trie knows no window.
    """

    def __init__(
        self,
        capacity_blocks: int,
        block_tokens: int,
        *,
        prefix_caching: bool,
        window_tokens: int | None = None,
    ) -> None:
        self.capacity_blocks = capacity_blocks
        self.block_tokens = block_tokens
        self.prefix_caching = prefix_caching
        self.window_tokens = window_tokens
        self.free_blocks = capacity_blocks
        self.trie = PromptTrie(block_tokens)
        self._held: dict[Sequence, _Held] = {}

    @property
    def used_blocks(self) -> int:
        """Pages that neither are free nor could be."""
        return self.capacity_blocks - self.free_blocks - self.trie.evictable_tokens // self.block_tokens

    def take(self, seq: Sequence, content: Content, prompt_tokens: int, tokens: int) -> int | None:
        """Take pages for `tokens` tokens; return the prompt tokens found, or None if too few pages are free.

        Cached prompts that nobody uses give way, even if that does not suffice.
        """
        size = self.block_tokens
        if not self.prefix_caching:
            if self.window_tokens is not None:
                tokens = min(tokens, self.window_tokens)
            pages = -(-tokens // size)
            if pages > self.free_blocks:
                return None
            self.free_blocks -= pages
            self._held[seq] = _Held(pages, 0, None, prompt_tokens)
            return 0
        trie = self.trie
        found, node = trie.find(content, prompt_tokens)
        trie.lock(node)
        pages = -(-(tokens - found) // size)
        if pages > self.free_blocks:
            self.free_blocks += trie.evict((pages - self.free_blocks) * size) // size
            if pages > self.free_blocks:
                trie.unlock(node)
                return None
        self.free_blocks -= pages
        self._held[seq] = _Held(pages, found, node, prompt_tokens)
        return found

    def give_back(self, seq: Sequence, content: Content) -> None:
        """Take a request's pages back; with the trie its prompt stays findable."""
        held = self._held.pop(seq)
        self.free_blocks += held.pages
        if held.node is None:
            return
        self.trie.unlock(held.node)
        whole = held.prompt_tokens - held.prompt_tokens % self.block_tokens
        if whole and held.prompt_tokens > held.found:
            known = self.trie.insert(content, whole)
            self.free_blocks -= (whole - known) // self.block_tokens

    def forget(self) -> bool:
        """Free all cached prompts that nobody uses; whether there were any."""
        freed = self.trie.evict(self.trie.evictable_tokens)
        self.free_blocks += freed // self.block_tokens
        return freed > 0

    def tokens_of(self, seq: Sequence) -> int:
        """Tokens that the pages of a request hold, found ones included."""
        held = self._held[seq]
        return held.pages * self.block_tokens + held.found

    def distinct_blocks(self, seqs: Iterable[Sequence]) -> int:
        """Pages that these requests hold, those found by several counted once."""
        pages = 0
        found: dict[Node, int] = {}
        for seq in seqs:
            held = self._held[seq]
            pages += held.pages
            path: list[Node] = []
            step = held.node
            while step is not None and step.parent is not None:
                path.append(step)
                step = step.parent
            begin = 0
            for node in reversed(path):
                covered = min(max(held.found - begin, 0), node.length)
                found[node] = max(found.get(node, 0), covered)
                begin += node.length
        return pages + sum(found.values()) // self.block_tokens
