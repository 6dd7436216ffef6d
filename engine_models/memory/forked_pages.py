"""KV pages of sequences that may share their first pages, and of sequences that have ended and wait to be taken up again.

A sequence that ends is *recycled*: it keeps its pages until there are too many such sequences or somebody needs the pages; the
one recycled first goes first, whole. A new sequence looks for the longest beginning that any other has in the cache, running ones
too. If a recycled one is hardly longer than that, it is taken over and rolled back to it; else the new one is *forked*: it shares
the whole pages, and copies the tokens of a page that it shares in part.

Source: behaviour of MLC-LLM 79d603f0 (`cpp/serve/prefix_cache.cc`) and of the KV cache of TVM (`paged_kv_cache.cc`); which of
several sequences with the same beginning is forked is assumed (the one that came first): it changes no count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from engine_models.memory.radix import Content
from engine_models.parts.sequence import Sequence

REUSED_SHARE = 0.9
"""A recycled sequence is taken over if more than this share of it is wanted (datasheet: `InsertSequence`, 79d603f0)."""


class _Shared:
    """Pages that several sequences begin with, behind those of `parent`; `holders` are sequences and further such parts."""

    __slots__ = ("holders", "pages", "parent")

    def __init__(self, pages: int, parent: _Shared | None) -> None:
        self.pages = pages
        self.parent = parent
        self.holders = 2


class _Held:
    """A sequence in the cache: behind `base_pages` shared ones its own. `tokens` are those in the cache, stale while it
    decodes."""

    __slots__ = ("base", "base_pages", "content", "seq", "tokens")

    def __init__(self, seq: Sequence, content: Content) -> None:
        self.seq = seq
        self.content = content
        self.base: _Shared | None = None
        self.base_pages = 0
        self.tokens = 0


class ForkedPages:
    """The KV pages of one rank.

    Parameters
    ----------
    capacity_blocks : usable pages.
    block_tokens : tokens a page.
    prefix_caching : whether beginnings are looked for, and ended sequences recycled.
    recycling : sequences that may be recycled at once, None for no limit.
    """

    def __init__(self, capacity_blocks: int, block_tokens: int, *, prefix_caching: bool, recycling: int | None) -> None:
        self.capacity_blocks = self.free_blocks = capacity_blocks
        self.block_tokens = block_tokens
        self.prefix_caching = prefix_caching
        self.recycling = recycling
        self.recycled: OrderedDict[Sequence, _Held] = OrderedDict()
        self.recycled_tokens = 0
        self._kept_pages = 0  # recycled sequences' own
        self._held: dict[Sequence, _Held] = {}
        self._by_first: dict[tuple[int, int], dict[_Held, None]] = {}  # sequences by their first token

    @property
    def used_blocks(self) -> int:
        """Pages that are neither free nor a recycled sequence's own."""
        return self.capacity_blocks - self.free_blocks - self._kept_pages

    def _own_pages(self, held: _Held) -> int:
        return self._pages(held.tokens) - held.base_pages

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def pages_for(self, before: int, tokens: int) -> int:
        """Pages that a sequence of `before` tokens takes for `tokens` more."""
        return self._pages(before + tokens) - self._pages(before)

    # -- entering -------------------------------------------------------------------------------------------

    def enter(self, seq: Sequence, content: Content, limit: int, cached: Callable[[Sequence], int]) -> int:
        """Take in a sequence; return how many of its first `limit` tokens are found. `cached` tells the tokens of one that
        runs."""
        held = _Held(seq, content)
        found = 0
        if self.prefix_caching:
            found, alike = self._match(content, limit, cached)
            if alike:
                held = self._taken_over(seq, content, found, alike) or self._forked(held, found, alike[0])
            segment, offset, _ = content.runs[0]
            self._by_first.setdefault((segment, offset), {})[held] = None
        self._held[seq] = held
        held.tokens = found
        return found

    def _match(self, content: Content, limit: int, cached: Callable[[Sequence], int]) -> tuple[int, list[_Held]]:
        """The longest beginning in the cache, and who has it."""
        segment, offset, _ = content.runs[0]
        found, alike = 0, []
        for held in self._by_first.get((segment, offset), ()):
            there = held.tokens if held.seq in self.recycled else cached(held.seq)
            equal = content.common(0, min(limit, there), held.content.runs) if there else 0
            if equal > found:
                found, alike = equal, [held]
            elif equal and equal == found:
                alike.append(held)
        return found, alike

    def _taken_over(self, seq: Sequence, content: Content, found: int, alike: list[_Held]) -> _Held | None:
        """The shortest recycled sequence of these under a new name, if few of its tokens are lost."""
        recycled = [held for held in alike if held.seq in self.recycled]
        held = min(recycled, key=lambda held: held.tokens, default=None)
        if held is None or found <= held.tokens * REUSED_SHARE:
            return None
        del self.recycled[held.seq]
        self._leave_recycled(held)
        self.free_blocks += self._own_pages(held)
        if found < held.base_pages * self.block_tokens:  # it ends inside of what it shares
            base = held.base
            self._share(held, held, found)
            self._let_go(base)
        held.seq, held.content, held.tokens = seq, content, found
        self.free_blocks -= self._own_pages(held)
        return held

    def _forked(self, held: _Held, found: int, parent: _Held) -> _Held:
        self._share(held, parent, found)
        held.tokens = found
        self.free_blocks -= self._own_pages(held)
        return held

    def _share(self, child: _Held, parent: _Held, tokens: int) -> None:
        """Let `child` begin with the whole pages of the first `tokens` tokens of `parent`."""
        wanted, top, node = tokens // self.block_tokens, parent.base_pages, parent.base
        if wanted > top:
            if parent.seq in self.recycled:
                self._kept_pages -= wanted - top
            node = parent.base = _Shared(wanted - top, node)
            parent.base_pages = wanted
        else:
            while node is not None and top - node.pages >= wanted:
                top -= node.pages
                node = node.parent
            if node is not None and wanted < top:  # in the middle of a part: it becomes two
                head = _Shared(wanted - (top - node.pages), node.parent)
                node.pages -= head.pages
                node.parent = head
                node = head
            elif node is not None:
                node.holders += 1
        child.base, child.base_pages = node, wanted

    def _let_go(self, node: _Shared | None) -> None:
        """One holder less of shared pages; those that nobody holds are free."""
        while node is not None and node.holders == 1:
            self.free_blocks += node.pages
            node = node.parent
        if node is not None:
            node.holders -= 1

    # -- growing and leaving --------------------------------------------------------------------------------

    def grow(self, seq: Sequence, tokens: int) -> None:
        """Compute `tokens` more tokens of a sequence that does not decode."""
        held = self._held[seq]
        self.free_blocks -= self.pages_for(held.tokens, tokens)
        held.tokens += tokens

    def remove(self, seq: Sequence, tokens: int) -> None:
        """Free the pages of a sequence of `tokens` tokens."""
        held = self._held.pop(seq)
        held.tokens = tokens
        self._free(held)

    def recycle(self, seq: Sequence, tokens: int) -> None:
        """Keep an ended sequence for others, or free its pages where none are kept."""
        if not self.prefix_caching or self.recycling == 0:
            self.remove(seq, tokens)
            return
        if len(self.recycled) == self.recycling:
            self.free_oldest()
        held = self.recycled[seq] = self._held.pop(seq)
        held.tokens = tokens
        self.recycled_tokens += tokens
        self._kept_pages += self._own_pages(held)

    def free_oldest(self) -> bool:
        """Free the sequence recycled first; False if there is none."""
        if not self.recycled:
            return False
        _, held = self.recycled.popitem(last=False)
        self._leave_recycled(held)
        self._free(held)
        return True

    def _leave_recycled(self, held: _Held) -> None:
        self.recycled_tokens -= held.tokens
        self._kept_pages -= self._own_pages(held)
        self._forget(held)

    def _free(self, held: _Held) -> None:
        self.free_blocks += self._own_pages(held)
        self._let_go(held.base)
        self._forget(held)

    def _forget(self, held: _Held) -> None:
        """Let it no longer be found."""
        segment, offset, _ = held.content.runs[0]
        alike = self._by_first.get((segment, offset))
        if alike is not None:
            alike.pop(held, None)
            if not alike:
                del self._by_first[(segment, offset)]

    def shared_pages(self) -> int:
        """Pages that sequences share, each once."""
        nodes: set[_Shared] = set()
        for held in (*self._held.values(), *self.recycled.values()):
            node = held.base
            while node is not None:
                nodes.add(node)
                node = node.parent
        return sum(node.pages for node in nodes)

    def own_pages(self, cached: Callable[[Sequence], int]) -> int:
        """Pages of one sequence each."""
        running = sum(self._pages(cached(seq)) - held.base_pages for seq, held in self._held.items())
        return running + sum(self._own_pages(held) for held in self.recycled.values())
