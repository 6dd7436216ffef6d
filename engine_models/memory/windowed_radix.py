"""A radix tree whose layers with windows have a pool of their own: a node keeps its tokens there, or has given them up.

All layers but those with windows keep every token of a node; the windows' part of it may go before the rest does, and a prefix is
found only as far as the windows' tokens before its end are there. They go by an order of their own: the least recently used node
first, where a look-up or an entry counts as use only of what a window sees from its end. A node whose window part goes stays in
the tree, unless it is an unlocked leaf, which goes as a whole. A request holds all nodes of its prefix, and the window parts only
of the last ones, which its window sees. Whoever computes tokens again that a node has given up hands it its own.

Source: behaviour of SGLang 0.5.23 (`mem_cache/unified_radix_cache.py`, `unified_cache/components/swa.py`, `unified_tree_core.py`
there), compared step by step with drawn recordings of its scheduler; see docs/engines/sglang.md.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from itertools import count

from engine_models.memory.radix import Content, Node, RadixPool, RadixTree, split_runs
from engine_models.parts.kept import Kept, parents_first


class WindowNode(Node):
    """A node with its window part: whether it is there (`live`), who holds it, and its place in the order of use.

    `stamp` names holds whose first node this is.
    """

    __slots__ = ("live", "newer", "older", "stamp", "window_lock")

    def __init__(
        self, key: tuple[tuple[int, int, int], ...], length: int, first: object, parent: Node | None, tick: float, serial: int
    ) -> None:
        super().__init__(key, length, first, parent, tick, serial)
        self.live = False
        self.window_lock = self.stamp = 0
        self.newer: WindowNode = self
        self.older: WindowNode = self


class WindowedTree(RadixTree):
    """The tree over both pools; it counts the free tokens of the windows' pool, the pool around it those of the other.

    Parameters
    ----------
    window_tokens : tokens of the windows' pool.
    span_tokens : tokens before its end that a request must find there.
    Others as of the base.
    """

    def __init__(self, page_tokens: int, eviction_policy: str, window_tokens: int, span_tokens: int) -> None:
        super().__init__(page_tokens, eviction_policy)
        self.span_tokens = span_tokens
        self.window_free = window_tokens
        self.window_evictable = 0
        self.reached = 0  # tokens that the last look-up found in the tree, with or without their windows
        root = WindowNode((), 0, None, None, 0.0, 0)
        root.lock = 1
        self.root = root
        self._line = WindowNode((), 0, None, None, 0.0, -1)  # between the newest and the oldest
        self._stamps = count(1)

    # -- the order of use -------------------------------------------------------------------------------------

    @staticmethod
    def _put_behind(node: WindowNode, newer: WindowNode) -> None:
        """Give a node the place right behind another."""
        older = newer.older
        node.newer, node.older = newer, older
        newer.older = older.newer = node

    @staticmethod
    def _take_out(node: WindowNode) -> None:
        node.newer.older, node.older.newer = node.older, node.newer
        node.newer = node.older = node

    def _use(self, node: Node) -> None:
        """Make the window parts that the end of a node sees the newest, the last of them first."""
        place, seen = self._line, 0
        step: Node | None = node
        while step is not None and step.parent is not None and seen < self.span_tokens + self.page_tokens:
            assert isinstance(step, WindowNode)
            if step.live:
                self._take_out(step)
                self._put_behind(step, place)
                place = step
            seen += step.length
            step = step.parent

    def _revive(self, node: WindowNode) -> None:
        """Take in the window part of a node."""
        node.live = True
        self._put_behind(node, self._line)
        if not node.window_lock:
            self.window_evictable += node.length

    def _drop(self, node: WindowNode) -> None:
        """Free the window part of a node that nobody holds."""
        node.live = False
        self._take_out(node)
        self.window_evictable -= node.length
        self.window_free += node.length

    # -- finding and entering ---------------------------------------------------------------------------------

    def match(self, content: Content, limit: int) -> tuple[int, Node]:
        """As of the base, but no further than to the last node whose window is there; `reached` says how far without that."""
        page = self.page_tokens
        limit -= limit % page
        self.reached = 0
        node = found = self.root
        if limit <= 0:
            return 0, node
        position = length = 0
        seen, span = self.span_tokens, self.span_tokens  # from the beginning on everything is seen
        while position < limit:
            child = node.children.get(self._first(content, position))
            if child is None:
                break
            equal = content.common(position, limit, child.key)
            equal -= equal % page
            position += equal
            partly = equal < child.length
            node = self._split(child, equal) if partly else child
            assert isinstance(node, WindowNode)
            if node.live:
                seen += node.length
                if seen >= span:
                    found, length = node, position
            else:
                seen = 0
            if partly:
                break
        self.reached = position
        self._use(found)
        tick = self._next_tick()
        step: Node | None = found
        while step is not None:
            step.tick = tick
            tick -= 1e-5
            step = step.parent
        return length, found

    def enter(
        self, content: Content, limit: int, *, counted: int, priority: int, protected: int, slid: int
    ) -> tuple[int, Node]:
        """Enter the first `limit` tokens of a row, whose window part before `slid` is gone; as `insert` of the base.

        What the row computed twice, beyond the first `protected` tokens, goes to nodes that lack it, and is free elsewhere.
        """
        page = self.page_tokens
        node = self.root
        node.tick = self._next_tick()
        position = 0
        while position < limit:
            child = node.children.get(self._first(content, position))
            if child is None:
                break
            child.tick = self._next_tick()
            equal = content.common(position, limit, child.key)
            equal -= equal % page
            if equal < child.length:
                child = self._split(child, equal)
            if priority > child.priority:
                child.priority = priority
            end = position + equal
            if end > protected:
                assert isinstance(child, WindowNode)
                if child.live:
                    self.window_free += max(0, end - max(position, protected, slid))
                elif end > max(position, slid):
                    if slid > position:
                        self._split(child, slid - position)
                    self._revive(child)
            position = end
            self._enter(content, position, child, position > counted)
            node = child
        known = position
        if position < limit:
            key = content.slice(position, limit)
            first = self._first_of(key)
            leaf = WindowNode(key, limit - position, first, node, self._next_tick(), next(self._serials))
            leaf.priority = priority
            node.children[first] = leaf
            self.evictable_tokens += leaf.length
            self._fill(leaf, position, slid)
            self._enter(content, limit, leaf, position + leaf.length > counted)
            self._offer(leaf)
            node = leaf
        if node is not self.root:
            self._use(node)
        return known, node

    def _fill(self, leaf: WindowNode, position: int, slid: int) -> None:
        """Give a new leaf, which begins at a position, the window part that is left; what its end sees is a node of its own."""
        end = position + leaf.length
        if slid >= end:
            return
        if slid > position:
            self._split(leaf, slid - position)
        page = self.page_tokens
        last = -(-self.span_tokens // page) * page
        if leaf.length > last:
            before = self._split(leaf, leaf.length - last)
            assert isinstance(before, WindowNode)
            self._revive(before)
        self._revive(leaf)

    def _split(self, child: Node, tokens: int) -> Node:
        parent = child.parent
        assert parent is not None
        assert isinstance(child, WindowNode)
        head, tail = split_runs(child.key, tokens)
        upper = WindowNode(head, tokens, child.first, parent, self._next_tick(), next(self._serials))
        upper.created = child.created
        upper.hits = child.hits
        upper.priority = child.priority
        upper.lock = child.lock
        upper.window_lock = child.window_lock
        upper.stamp, child.stamp = child.stamp, 0
        if child.live:
            upper.live = True
            self._put_behind(upper, child)
        child.key = tail
        child.length -= tokens
        child.first = self._first_of(tail)
        child.parent = upper
        upper.children[child.first] = child
        parent.children[upper.first] = upper
        child.tick = self._next_tick()
        return upper

    def warm(self, pieces: Series[Kept]) -> int:
        """As of the base; the window parts come with it, as far as there is room for them (assumed)."""
        made: dict[int, WindowNode] = {}
        for number in parents_first(pieces):
            piece = pieces[number]
            parent = made.get(piece.parent, self.root)
            first = self._first_of(piece.runs)
            used = float(number - len(pieces))
            node = made[number] = WindowNode(piece.runs, piece.tokens, first, parent, used, next(self._serials))
            node.hits = piece.hits
            parent.children[first] = node
            self.evictable_tokens += node.length
        for number in sorted(made):
            self._revive(made[number])
            self.window_free -= made[number].length
        for node in made.values():
            if not node.children:
                self._offer(node)
        return sum(piece.tokens for piece in pieces)

    # -- holds --------------------------------------------------------------------------------------------------

    def lock(self, node: Node) -> int:
        """As of the base, and the window parts that the end of the node sees; the stamp of the first of these, 0 at the root."""
        super().lock(node)
        held = 0
        step: Node | None = node
        while step is not None and step.parent is not None and held < self.span_tokens:
            assert isinstance(step, WindowNode)
            if step.live and not step.window_lock:
                self.window_evictable -= step.length
            step.window_lock += 1
            held += step.length
            if held >= self.span_tokens:
                if not step.stamp:
                    step.stamp = next(self._stamps)
                return step.stamp
            step = step.parent
        return 0

    def unlock(self, node: Node, receipt: int = 0) -> None:
        """As of the base."""
        step: Node | None = node
        while step is not None and step.parent is not None:
            assert isinstance(step, WindowNode)
            step.window_lock -= 1
            if step.live and not step.window_lock:
                self.window_evictable += step.length
            if receipt and step.stamp == receipt:
                break
            step = step.parent
        super().unlock(node)

    # -- eviction -----------------------------------------------------------------------------------------------

    def _remove(self, node: Node) -> None:
        assert isinstance(node, WindowNode)
        if node.live:
            self._drop(node)
        super()._remove(node)

    def evict_windows(self, tokens: int) -> int:
        """Free window parts, the oldest first, until so many tokens are free there; the tokens of the whole leaves that went."""
        node, freed = self._line.newer, 0
        while self.window_free < tokens and node is not self._line:
            newer = node.newer
            if not node.window_lock:
                if node.lock or node.children:
                    self._drop(node)
                else:
                    freed += node.length
                    self._remove(node)
                    node.queued = None  # its places in the order of whole leaves are none any more
            node = newer
        return freed


class WindowedPool(RadixPool):
    """Both pools of a replica; `window_tokens` and `span_tokens` as of `WindowedTree`, others as of the base."""

    def __init__(
        self,
        capacity_tokens: int,
        page_tokens: int,
        window_tokens: int,
        span_tokens: int,
        *,
        prefix_caching: bool = True,
        eviction_policy: str = "lru",
    ) -> None:
        super().__init__(capacity_tokens, page_tokens, prefix_caching=prefix_caching, eviction_policy=eviction_policy)
        self.window_capacity = window_tokens // page_tokens * page_tokens
        self.windows = WindowedTree(page_tokens, eviction_policy, self.window_capacity, span_tokens)
        self.tree = self.windows
        self.span_tokens = span_tokens

    @property
    def window_left(self) -> int:
        """Tokens of the windows' pool that are free or could be."""
        return self.windows.window_free + self.windows.window_evictable

    def warm(self, pieces: Series[Kept]) -> None:
        """As of the base."""
        super().warm(pieces)
        self.free_tokens += self.windows.evict_windows(0)

    def take(self, tokens: int) -> None:
        """As of the base, of both pools."""
        self.free_tokens -= tokens
        self.windows.window_free -= tokens

    def make_room(self, tokens: int) -> bool:
        """Evict until `tokens` are free in both pools, whole leaves first; whether they are."""
        if self.free_tokens < tokens:
            self.free_tokens += self.tree.evict(tokens - self.free_tokens)
        if self.windows.window_free < tokens:
            self.free_tokens += self.windows.evict_windows(tokens)
        return self.free_tokens >= tokens and self.windows.window_free >= tokens
