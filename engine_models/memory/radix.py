"""Radix tree over token contents, as SGLang keeps its prefix cache, with the pool of KV tokens around it.

A content is a tuple of runs (segment, offset, length): the tokens `offset .. offset+length` of a named segment. Equal
(segment, position) means equal token. A tree edge holds runs too, so a node costs the same whether it stands for ten
tokens or a million. Lengths are multiples of the page size.

Every node knows how many requests lock it; tokens of unlocked nodes can be evicted, leaf by leaf. A match that ends inside a
node splits it, hence looking something up changes the tree and, through the ticks, the order of eviction.

Source: behaviour of SGLang 0.5.23 (`mem_cache/unified_radix_cache.py`, `unified_cache/unified_tree_core.py`,
`evict_policy.py`), checked against recordings of it; see docs/engines/sglang.md.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence as Series
from itertools import count

from mypy_extensions import mypyc_attr

from engine_models.parts.kept import Kept, parents_first
from engine_models.parts.sequence import Sequence

Run = tuple[int, int, int]
Runs = tuple[Run, ...]

EVICTION_POLICIES = ("lru", "lfu", "fifo", "mru", "filo", "slru", "priority")
SLRU_PROTECTED_HITS = 2  # a node inserted this often belongs to the protected segment (SGLang 0.5.23)


class Content:
    """A token content as merged runs, with the position at which each run begins."""

    __slots__ = ("length", "runs", "starts")

    def __init__(self, runs: Runs) -> None:
        merged: list[Run] = []
        for segment, offset, length in runs:
            if length <= 0:
                continue
            if merged and merged[-1][0] == segment and merged[-1][1] + merged[-1][2] == offset:
                merged[-1] = (segment, merged[-1][1], merged[-1][2] + length)
            else:
                merged.append((segment, offset, length))
        self.runs: Runs = tuple(merged)
        self.starts: list[int] = []
        position = 0
        for run in merged:
            self.starts.append(position)
            position += run[2]
        self.length = position

    def slice(self, start: int, end: int) -> Runs:
        """Runs of the tokens `start .. end`."""
        out: list[Run] = []
        runs = self.runs
        i = bisect_right(self.starts, start) - 1
        while start < end:
            segment, offset, length = runs[i]
            inner = start - self.starts[i]
            left, taken = end - start, length - inner
            if taken > left:
                taken = left
            out.append((segment, offset + inner, taken))
            start += taken
            i += 1
        return tuple(out)

    def common(self, start: int, limit: int, key: Runs) -> int:
        """Number of tokens from `start` (at most up to `limit`) that equal the beginning of `key`."""
        runs, starts = self.runs, self.starts
        i = bisect_right(starts, start) - 1
        inner = start - starts[i]
        equal = 0
        room = limit - start
        for segment, offset, length in key:
            while length:
                if equal >= room:
                    return room
                mine, base, size = runs[i]
                if mine != segment or base + inner != offset:
                    return equal
                step = size - inner
                if step > length:
                    step = length
                equal += step
                offset += step
                length -= step
                inner += step
                if inner == size:
                    i += 1
                    inner = 0
                    if i == len(runs) and equal < room:
                        return equal
        return min(equal, room)


def paired(content: Content) -> Content:
    """The same by pairs of neighbouring tokens, one fewer than tokens: the pair of two runs' ends is a segment of its own."""
    pairs: list[Run] = []
    last: Run | None = None
    for segment, offset, length in content.runs:
        if last is not None:
            pairs.append((hash((last[0], last[1] + last[2] - 1, segment, offset)), 0, 1))
        pairs.append((segment, offset, length - 1))
        last = segment, offset, length
    return Content(tuple(pairs))


def content_of(seq: Sequence) -> Content:
    """Prompt and answer of a request: what others may share as its runs say, the rest a segment that nobody else has."""
    final, runs = seq.final_length, seq.runs
    covered = sum([run[2] for run in runs])
    shared = final if seq.output_shared else min(seq.shareable_tokens, covered)
    if covered > shared:
        runs = Content(runs).slice(0, shared)
    elif covered < shared:
        shared = covered
    if shared < final:
        runs = (*runs, (-1 - seq.index, shared, final - shared))
    return Content(runs)


def split_runs(runs: Runs, tokens: int) -> tuple[Runs, Runs]:
    """The first `tokens` tokens, and the rest."""
    head: list[Run] = []
    for i, (segment, offset, length) in enumerate(runs):
        if tokens >= length:
            head.append((segment, offset, length))
            tokens -= length
            if not tokens:
                return tuple(head), runs[i + 1 :]
        else:
            if tokens:
                head.append((segment, offset, tokens))
            return tuple(head), ((segment, offset + tokens, length - tokens), *runs[i + 1 :])
    return tuple(head), ()


@mypyc_attr(allow_interpreted_subclasses=True)
class Node:
    """A run of tokens below its parent."""

    __slots__ = (
        "away",
        "backed",
        "children",
        "created",
        "first",
        "hits",
        "host_lock",
        "key",
        "length",
        "lock",
        "origin",
        "parent",
        "priority",
        "queued",
        "resident",
        "serial",
        "tick",
    )

    def __init__(
        self, key: Runs, length: int, first: object, parent: Node | None, tick: float, serial: int
    ) -> None:
        self.key = key
        self.length = length
        self.first = first
        self.parent = parent
        self.children: dict[object, Node] = {}
        self.lock = 0
        self.tick = tick
        self.created = tick
        self.hits = 0
        self.priority = 0
        self.serial = serial
        self.queued: object = None  # the rank under which it stands in the eviction heap
        # of a tree over several tiers: whether it is off the device, in the host (and who needs it there), where it was brought
        # from, and how many children are on the device
        self.away = self.backed = False
        self.origin = "host"
        self.host_lock = self.resident = 0


@mypyc_attr(allow_interpreted_subclasses=True)
class ContentTree:
    """Nodes over token contents: finding children, locks, and the order in which unlocked leaves go. Sizes in tokens.

    Parameters
    ----------
    page_tokens : lengths of nodes are multiples of it.
    """

    def __init__(self, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self.evictable_tokens = 0
        self.root = Node((), 0, None, None, 0.0, 0)
        self.root.lock = 1
        self._heap: list[tuple[object, int, Node]] = []

    # -- content --------------------------------------------------------------------------------------------

    def _first(self, content: Content, position: int) -> object:
        page = self.page_tokens
        if page == 1:
            i = bisect_right(content.starts, position) - 1
            segment, offset, _ = content.runs[i]
            return segment, offset + position - content.starts[i]
        return content.slice(position, position + page)

    def _first_of(self, key: Runs) -> object:
        if self.page_tokens == 1:
            return key[0][0], key[0][1]
        return split_runs(key, self.page_tokens)[0]

    # -- locks ----------------------------------------------------------------------------------------------

    def lock(self, node: Node) -> int:
        """Protect the node and its ancestors from eviction; what `unlock` needs to know of it."""
        step: Node | None = node
        while step is not None and step.parent is not None:
            if step.lock == 0:
                self.evictable_tokens -= step.length
            step.lock += 1
            step = step.parent
        return 0

    def unlock(self, node: Node, receipt: int = 0) -> None:
        """Undo the `lock` of the node that gave this receipt."""
        step: Node | None = node
        while step is not None and step.parent is not None:
            step.lock -= 1
            if step.lock == 0:
                self.evictable_tokens += step.length
                if not step.children:
                    self._offer(step)
            step = step.parent

    # -- eviction -------------------------------------------------------------------------------------------

    def _rank(self, node: Node) -> object:
        """Place in the order of eviction: least recently used first."""
        return node.tick

    def _offer(self, node: Node) -> None:
        """Put an unlocked leaf into the heap. Entries that have become wrong are dropped or put right when they come up."""
        rank = self._rank(node)
        if node.queued != rank:
            node.queued = rank
            heapq.heappush(self._heap, (rank, node.serial, node))

    def _take_first(self) -> Node | None:
        """Take the unlocked leaf that goes first out of the order; it stays in the tree."""
        heap = self._heap
        while heap:
            rank, _, node = heapq.heappop(heap)
            if node.queued != rank:
                continue  # another entry stands for it
            node.queued = None
            if node.lock or node.children or node.parent is None:
                continue  # offered again when it is an unlocked leaf once more
            if self._rank(node) == rank:
                return node
            self._offer(node)
        return None

    def _remove(self, node: Node) -> None:
        """Remove an unlocked leaf; its parent may become one."""
        parent = node.parent
        assert parent is not None
        del parent.children[node.first]
        node.parent = None
        self.evictable_tokens -= node.length
        if not parent.children and not parent.lock:
            self._offer(parent)

    def leaves(self) -> list[Node]:
        """Unlocked leaves."""
        out: list[Node] = []
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node.children:
                stack.extend(node.children.values())
            elif not node.lock:
                out.append(node)
        return out

    def nodes(self) -> list[Node]:
        """All nodes below the root."""
        out: list[Node] = []
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            out.append(node)
            stack.extend(node.children.values())
        return out


@mypyc_attr(allow_interpreted_subclasses=True)
class RadixTree(ContentTree):
    """The tree of SGLang: a look-up that ends inside a node splits it, and whole leaves are evicted.

    Parameters
    ----------
    page_tokens : lengths of nodes are multiples of it.
    eviction_policy : which unlocked leaf goes first: one of `EVICTION_POLICIES`.
    """

    def __init__(self, page_tokens: int = 1, eviction_policy: str = "lru") -> None:
        super().__init__(page_tokens)
        self.policy = eviction_policy
        self._time = 0.0  # the latest tick
        self._serials = count(1)

    # -- matching and inserting -----------------------------------------------------------------------------

    def _next_tick(self) -> float:
        self._time += 1.0
        return self._time

    def match(self, content: Content, limit: int) -> tuple[int, Node]:
        """Longest cached beginning of the first `limit` tokens, in whole pages; returns its length and its last node.

        The path is stamped with a new tick, deepest node newest. Ending inside a node splits it.
        """
        page = self.page_tokens
        limit -= limit % page
        node = self.root
        if limit <= 0:
            return 0, node
        position = 0
        while position < limit:
            child = node.children.get(self._first(content, position))
            if child is None:
                break
            equal = content.common(position, limit, child.key)
            equal -= equal % page
            position += equal
            if equal < child.length:
                node = self._split(child, equal)
                break
            node = child
        tick = self._next_tick()
        step: Node | None = node
        while step is not None:
            step.tick = tick
            tick -= 1e-5
            step = step.parent
        return position, node

    def insert(
        self, content: Content, limit: int, *, counted: int = 0, priority: int = 0
    ) -> tuple[int, Node]:
        """Enter the first `limit` tokens (a multiple of the page); returns how many were there already, and the last node.

        Nodes that end within the first `counted` tokens do not count it as a hit: the same request entered them before.
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
            position += equal
            self._enter(content, position, child, position > counted)
            node = child
        if position < limit:
            key = content.slice(position, limit)
            first = self._first_of(key)
            leaf = Node(key, limit - position, first, node, self._next_tick(), next(self._serials))
            leaf.priority = priority
            node.children[first] = leaf
            self.evictable_tokens += leaf.length
            self._enter(content, limit, leaf, True)
            self._offer(leaf)
            return position, leaf
        return position, node

    def _enter(self, content: Content, position: int, node: Node, counts: bool) -> None:
        """A request enters a node, which ends after `position` tokens of its content; `counts`: as a hit."""
        if counts:
            node.hits += 1

    def _split(self, child: Node, tokens: int) -> Node:
        parent = child.parent
        assert parent is not None
        head, tail = split_runs(child.key, tokens)
        upper = Node(head, tokens, child.first, parent, self._next_tick(), next(self._serials))
        upper.created = child.created
        upper.hits = child.hits
        upper.priority = child.priority
        upper.lock = child.lock
        child.key = tail
        child.length -= tokens
        child.first = self._first_of(tail)
        child.parent = upper
        upper.children[child.first] = child
        parent.children[upper.first] = upper  # in the place of the child: the order of children matters
        child.tick = self._next_tick()
        return upper

    # -- what outlives it -----------------------------------------------------------------------------------

    def kept(self) -> list[Kept]:
        """All nodes, the least recently used first."""
        nodes = sorted(self.nodes(), key=lambda node: node.tick)
        at: dict[Node | None, int] = {node: number for number, node in enumerate(nodes)}
        return [Kept(at.get(node.parent, -1), node.key, node.hits) for node in nodes]

    def warm(self, pieces: Series[Kept]) -> int:
        """Hold what another tree has kept; return its tokens. Before: the tree is empty."""
        made: dict[int, Node] = {}
        for number in parents_first(pieces):
            piece = pieces[number]
            parent = made.get(piece.parent, self.root)
            first = self._first_of(piece.runs)
            used = float(number - len(pieces))  # before all that is to come
            node = made[number] = Node(piece.runs, piece.tokens, first, parent, used, next(self._serials))
            node.hits = piece.hits
            parent.children[first] = node
            self.evictable_tokens += node.length
        for node in made.values():
            if not node.children:
                self._offer(node)
        return sum(piece.tokens for piece in pieces)

    # -- eviction -------------------------------------------------------------------------------------------

    def _rank(self, node: Node) -> object:
        policy = self.policy
        if policy == "lru":
            return node.tick
        if policy == "lfu":
            return node.hits, node.tick
        if policy == "fifo":
            return node.created
        if policy == "mru":
            return -node.tick
        if policy == "filo":
            return -node.created
        if policy == "slru":
            return int(node.hits >= SLRU_PROTECTED_HITS), node.tick
        return node.priority, node.tick

    def evict(self, tokens: int) -> int:
        """Remove unlocked leaves, whole nodes, until `tokens` are freed or none is left; returns the tokens freed."""
        freed = 0
        if self.policy == "mru":  # ranks fall as nodes are used, so stale entries would hide them
            self._heap = []
            for leaf in self.leaves():
                leaf.queued = None
                self._offer(leaf)
        while freed < tokens:
            node = self._take_first()
            if node is None:
                break
            freed += node.length
            self._remove(node)
        return freed


@mypyc_attr(allow_interpreted_subclasses=True)
class RadixPool:
    """The KV tokens of a replica: free ones, and those that the tree holds; the rest belongs to requests alone.

    `capacity_blocks` and `free_blocks` count pages for reporting; there a page that could be evicted counts as free.

    pairs : whether tokens are known by pairs of neighbours; n tokens then have `keys(n)`, one fewer.
    """

    def __init__(
        self,
        capacity_tokens: int,
        page_tokens: int = 1,
        *,
        prefix_caching: bool = True,
        eviction_policy: str = "lru",
        pairs: bool = False,
    ) -> None:
        self.page_tokens = page_tokens
        self.pairs = pairs
        self.capacity_tokens = capacity_tokens - capacity_tokens % page_tokens
        self.prefix_caching = prefix_caching
        self.free_tokens = self.capacity_tokens
        self.tree = RadixTree(page_tokens, eviction_policy)
        self.capacity_blocks = self.capacity_tokens // page_tokens

    @property
    def free_blocks(self) -> int:
        """Pages that are free or could be."""
        return (self.free_tokens + self.tree.evictable_tokens) // self.page_tokens

    def warm(self, pieces: Series[Kept]) -> None:
        """Hold what another pool has kept, as much as fits by the rule of eviction. Before: the pool is empty."""
        self.free_tokens -= self.tree.warm(pieces)
        if self.free_tokens < 0:
            self.free_tokens += self.tree.evict(-self.free_tokens)

    def content(self, seq: Sequence) -> Content:
        """The keys of a request's tokens."""
        content = content_of(seq)
        return paired(content) if self.pairs else content

    def keys(self, tokens: int) -> int:
        """How many keys the first `tokens` tokens of a request have."""
        return max(0, tokens - 1) if self.pairs else tokens

    def paged(self, tokens: int) -> int:
        """`tokens` rounded up to whole pages."""
        return -(-tokens // self.page_tokens) * self.page_tokens

    def take(self, tokens: int) -> None:
        """Take so many tokens, a multiple of the page, which are free."""
        self.free_tokens -= tokens

    def make_room(self, tokens: int) -> bool:
        """Evict until `tokens` are free; whether they are."""
        if self.free_tokens < tokens:
            self.free_tokens += self.tree.evict(tokens - self.free_tokens)
        return self.free_tokens >= tokens
