"""A radix tree whose nodes may be in host memory too, or there alone, and a store behind it.

A node is *backed* once its tokens are copied to the host, which happens by the write policy: after its first hit or entry
(`through`), its second (`selective`), or when the device gives it up (`back`). Evicting a backed node takes its tokens off the
device and leaves it in the tree, *away*; whoever finds it may load it back. What lies below an away node is away too. The host
evicts away leaves in the order of the device's policy. A copy of what the device still has stays; under `back` these go first,
those that are in both places the longest before others, but none that the device would give up next while there is another, and
none that is being loaded. A store behind the host gets what is backed, and gives it back page by page before a request is
admitted.

Source: SGLang 0.5.23 (`mem_cache/unified_radix_cache.py`, `unified_cache/unified_tree_core.py`), compared step by step with
recordings of its scheduler (`benchmarks/record_sglang_hicache.py`); the store by public copies of 2025 (`managers/
cache_controller.py`, read 2026-11). A copy to the host is taken to be there at once: it takes less than a step (assumed).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Series
from itertools import count
from math import inf

from engine_models.memory.radix import Content, Node, RadixPool, RadixTree
from engine_models.parts.kept import Kept
from engine_models.parts.tiers import Link, TierCount, TierKind, WritePolicy, through

LEAST_LOAD_TOKENS = 10
"""Tokens below which nothing is loaded back (datasheet: `load_back_threshold`, as above)."""


class StoreRoom:
    """Bytes that stores share, and the clock by which all of them tell what was used last."""

    def __init__(self, capacity_bytes: float) -> None:
        self.capacity_bytes = capacity_bytes
        self.clock = 0.0
        self.stores: list[TokenStore] = []

    def evict(self) -> None:
        """Remove what is too much, leaf by leaf of whichever store has the one that goes first."""
        stores = self.stores
        while sum(store.tree.evictable_tokens * store.token_bytes for store in stores) > self.capacity_bytes:
            min(stores, key=lambda store: store.tree.first_used()).tree.evict(1)


class StoreTree(RadixTree):
    """A tree by the clock of a room."""

    def __init__(self, page_tokens: int, room: StoreRoom) -> None:
        super().__init__(page_tokens)
        self.room = room

    def _next_tick(self) -> float:
        self.room.clock += 1.0
        return self.room.clock

    def first_used(self) -> float:
        """When the leaf was used that goes first; infinite without any."""
        node = self._take_first()
        if node is None:
            return inf
        self._offer(node)
        return node.tick


class TokenStore:
    """Token contents that replicas share, or a disk of one: least recently used leaves go first.

    `token_bytes` are those of a token; in one that moves `beside` another they decide what it takes of their common room.
    """

    def __init__(self, capacity_tokens: int, page_tokens: int, token_bytes: float = 1.0) -> None:
        self.token_bytes = token_bytes
        self._page_tokens = page_tokens
        self._move(StoreRoom(capacity_tokens * token_bytes))
        self._coming: list[tuple[float, int, Content, int]] = []  # written, and to be found from a time on
        self._order = count()

    def _move(self, room: StoreRoom) -> None:
        self.room = room
        self.tree = StoreTree(self._page_tokens, room)
        room.stores.append(self)

    def beside(self, other: TokenStore) -> None:
        """Share the room of another store, and nothing that is in it. Before: this one is empty."""
        self._move(other.room)

    def put(self, content: Content, tokens: int, ready_s: float) -> None:
        """Take in the first `tokens` tokens of a content, found from `ready_s` on."""
        heapq.heappush(self._coming, (ready_s, next(self._order), content, tokens))

    def find(self, content: Content, tokens: int, now_s: float) -> int:
        """How many of the first `tokens` tokens are there."""
        while self._coming and self._coming[0][0] <= now_s:
            _, _, written, length = heapq.heappop(self._coming)
            self.tree.insert(written, length)
            self.room.evict()
        return self.tree.match(content, tokens)[0]


class FurtherTier:
    """A store as one replica uses it: the ways to it and from it, and what it counts.

    `end_bytes` are those of what only the end of a prefix has: states of recurrent layers, what windows see.
    """

    def __init__(
        self,
        kind: TierKind,
        store: TokenStore,
        token_bytes: float,
        reads: Series[Link],
        writes: Series[Link],
        end_bytes: float = 0.0,
    ) -> None:
        self.kind = kind
        self.store = store
        self.token_bytes, self.end_bytes = token_bytes, end_bytes
        self.reads, self.writes = list(reads), list(writes)
        self.hit_tokens = 0
        self.read_bytes = self.written_bytes = 0.0

    def write(self, content: Content, tokens: int, now_s: float) -> None:
        """Copy what the store lacks of the first `tokens` tokens."""
        lacking = tokens - self.store.find(content, tokens, now_s)
        if lacking > 0:
            size = lacking * self.token_bytes + self.end_bytes
            self.written_bytes += size
            self.store.put(content, tokens, through(self.writes, size, now_s))

    def write_behind(self, content: Content, first: int, tokens: int, now_s: float) -> None:
        """Copy the tokens of a content from `first` to `tokens`, found where those before them are."""
        if self.store.find(content, tokens, now_s) >= first:
            self.write(content, tokens, now_s)
            return
        size = (tokens - first) * self.token_bytes + self.end_bytes
        self.written_bytes += size
        through(self.writes, size, now_s)

    def read(self, tokens: int, now_s: float) -> float:
        """Begin to read so many tokens; when they are there [s]."""
        size = tokens * self.token_bytes + self.end_bytes
        self.read_bytes += size
        return through(self.reads, size, now_s)

    def join(self, other: FurtherTier) -> None:
        """Use the store of another replica and its rate; of a disk the rate alone."""
        if self.kind == "shared":
            self.store = other.store
            self.reads[0], self.writes[-1] = other.reads[0], other.writes[-1]
        else:
            self.reads, self.writes = other.reads, other.writes

    def beside(self, other: FurtherTier) -> None:
        """Use the room and the rate of another's store, and nothing that is in it."""
        self.store.beside(other.store)
        self.reads[0], self.writes[-1] = other.reads[0], other.writes[-1]


class TieredTree(RadixTree):
    """The tree over device and host.

    Parameters
    ----------
    host_tokens : tokens that the host holds.
    write : when a node is backed.
    further : a store behind the host, or None.
    Others as of the base.
    """

    def __init__(
        self,
        page_tokens: int,
        eviction_policy: str,
        *,
        host_tokens: int,
        write: WritePolicy = "through",
        further: FurtherTier | None = None,
    ) -> None:
        super().__init__(page_tokens, eviction_policy)
        self.host_tokens, self.host_used = host_tokens, 0
        self.further = further
        self.now_s = 0.0  # of what is written
        self.written_tokens = 0
        self._back = write == "back"
        self._hits = 2 if write == "selective" else 1
        self._away_leaves: list[tuple[object, int, Node]] = []
        self._duplicates: dict[Node, None] = {}  # in both places, or were; the oldest first
        self._loads: list[Node] = []  # last nodes of loads that go on
        self._restored_tokens = 0  # of the latest insertion

    @property
    def keeps_loaded(self) -> bool:
        """Whether what a load brings cannot leave the host until it has ended."""
        return self._back

    # -- matching and inserting -----------------------------------------------------------------------------

    def match(self, content: Content, limit: int) -> tuple[int, Node]:
        """As of the base, of what the device holds."""
        position, node = super().match(content, limit)
        while node.away and node.parent is not None:
            position -= node.length
            node = node.parent
        return position, node

    def below(self, content: Content, limit: int, node: Node, position: int) -> list[Node]:
        """The away nodes that go on after `position` tokens at a node of the device, after a `match` of as much."""
        found: list[Node] = []
        while position < limit:
            child = node.children.get(self._first(content, position))
            if child is None or not child.away or content.common(position, limit, child.key) < child.length:
                break
            found.append(child)
            position += child.length
            node = child
        return found

    def insert(self, content: Content, limit: int, *, counted: int = 0, priority: int = 0) -> tuple[int, Node]:
        """As of the base; away nodes on the way are on the device again, with the tokens that the request has computed."""
        self._restored_tokens = 0
        known, node = super().insert(content, limit, counted=counted, priority=priority)
        if known < limit and node.parent is not None:  # a new leaf
            node.parent.resident += 1
        return known - self._restored_tokens, node

    def _enter(self, content: Content, position: int, node: Node, counts: bool) -> None:
        """As of the base."""
        if node.away:
            self._come(node)
            self._duplicates.setdefault(node)
            self._restored_tokens += node.length
        if counts:
            self._meet(content, position, node)

    def _meet(self, content: Content, position: int, node: Node) -> None:
        """A request enters a node, which ends after `position` tokens of its content: it is copied if that is often enough."""
        if self._back:
            return
        node.hits += 1
        if node.backed or node.hits < self._hits:
            return
        line = [node]
        while line[-1].parent not in (None, self.root) and not line[-1].parent.backed:
            line.append(line[-1].parent)
        position -= sum(each.length for each in line)
        for each in reversed(line):
            position += each.length
            if not self._write(each):
                return
            if self.further is not None:
                self.further.write(content, position, self.now_s)

    def load(self, nodes: Series[Node]) -> None:
        """Away nodes are on the device again; where `keeps_loaded` says so, their load goes on until `loads_ended`."""
        if self.keeps_loaded:
            self._loads.append(nodes[-1])
        for node in nodes:
            self._come(node)

    def _come(self, node: Node) -> None:
        node.away = False
        self.evictable_tokens += node.length
        if node.parent is not None:
            node.parent.resident += 1
        if not node.resident:
            self._offer(node)

    def _split(self, child: Node, tokens: int) -> Node:
        upper = super()._split(child, tokens)
        upper.away, upper.backed, upper.origin = child.away, child.backed, child.origin
        upper.resident = 0 if child.away else 1
        upper.host_lock = child.host_lock
        if upper.backed and not upper.away and not upper.host_lock:
            self._duplicates.setdefault(upper)
        return upper

    # -- writing --------------------------------------------------------------------------------------------

    def _write(self, node: Node) -> bool:
        """Copy a node to the host, if there is room; whether it was."""
        if self.host_used + node.length > self.host_tokens:
            self._evict_host(self.host_used + node.length - self.host_tokens)
        if self.host_used + node.length > self.host_tokens:
            return False
        node.backed = True
        self.host_used += node.length
        self.written_tokens += node.length
        return True

    def add_away(self, content: Content, position: int, tokens: int, kind: TierKind) -> None:
        """Take tokens `position` ... `tokens` of a content into the host, where the tree has those before them."""
        found, node = RadixTree.match(self, content, tokens)
        lacking = tokens - found
        if lacking <= 0 or found < position:
            return
        self._evict_host(self.host_used + lacking - self.host_tokens)
        if self.host_used + lacking > self.host_tokens:
            return
        key = content.slice(found, tokens)
        leaf = Node(key, lacking, self._first_of(key), node, self._next_tick(), next(self._serials))
        leaf.away = leaf.backed = True
        leaf.origin = kind
        node.children[leaf.first] = leaf
        self.host_used += lacking
        self._offer_away(leaf)

    # -- eviction -------------------------------------------------------------------------------------------

    def unlock(self, node: Node, receipt: int = 0) -> None:
        """As of the base; a node of which all that is below is away goes like a leaf."""
        step: Node | None = node
        while step is not None and step.parent is not None:
            step.lock -= 1
            if step.lock == 0:
                self.evictable_tokens += step.length
                if not step.resident:
                    self._offer(step)
            step = step.parent

    def _take_first(self) -> Node | None:
        heap = self._heap
        while heap:
            rank, _, node = heapq.heappop(heap)
            if node.queued != rank:
                continue
            node.queued = None
            if node.lock or node.resident or node.away or node.parent is None:
                continue
            if self._rank(node) == rank:
                return node
            self._offer(node)
        return None

    def evict(self, tokens: int) -> int:
        """Take leaves of the device off it, whole nodes, until `tokens` are freed or none is left; return the tokens freed."""
        freed = 0
        while freed < tokens:
            node = self._take_first()
            if node is None:
                break
            parent = node.parent
            assert parent is not None
            freed += node.length
            self.evictable_tokens -= node.length
            written = self._back and not node.backed and self._write(node)
            if written:
                self._duplicates.setdefault(node)
            if node.backed:
                node.away = True
                if not node.children:
                    self._offer_away(node)
            else:
                self._drop(node)
            parent.resident -= 1
            if not parent.resident and not parent.lock and parent.parent is not None:
                self._offer(parent)
        return freed

    def _drop(self, node: Node) -> None:
        """Take a node out of the tree, with all that is below it, which is away."""
        assert node.parent is not None
        del node.parent.children[node.first]
        stack = [node]
        while stack:
            each = stack.pop()
            stack.extend(each.children.values())
            if each.backed:
                self.host_used -= each.length
            each.parent = None
            each.backed = each.away = False

    def _offer_away(self, node: Node) -> None:
        heapq.heappush(self._away_leaves, (self._rank(node), node.serial, node))

    def _evict_host(self, tokens: int) -> None:
        """Free tokens of the host: leaves that are away, in the order of the device's; `back`: first copies of what it has."""
        if self._back and tokens > 0:
            tokens -= self._drop_duplicates(tokens)
        heap = self._away_leaves
        while tokens > 0 and heap:
            rank, _, node = heapq.heappop(heap)
            parent = node.parent
            if parent is None or not node.away or node.children or node.host_lock:
                continue
            if self._rank(node) != rank:
                self._offer_away(node)
                continue
            tokens -= node.length
            self._drop(node)
            if parent.away and not parent.children:
                self._offer_away(parent)

    def _drop_duplicates(self, tokens: int) -> int:
        """Free tokens of the host whose nodes the device has, the oldest pairs first, those that it would give up next last."""
        freed, over = 0, []
        for spared in (True, False):
            for node in self._duplicates:
                if freed >= tokens:
                    break
                if node.away or not node.backed:
                    over.append(node)
                elif not (node.host_lock or (spared and not (node.lock or node.resident))):
                    node.backed = False
                    self.host_used -= node.length
                    freed += node.length
                    over.append(node)
        for node in over:
            self._duplicates.pop(node, None)
        return freed

    def loads_ended(self) -> None:
        """The loads that were begun have ended: what they brought is in both places."""
        for anchor in self._loads:
            step = anchor
            while step.parent is not None:
                if step.host_lock:
                    step.host_lock = 0
                    self._duplicates.setdefault(step)
                step = step.parent
        self._loads = []

    # -- what outlives it -----------------------------------------------------------------------------------

    def kept(self) -> list[Kept]:
        """As of the base, of what the device holds."""
        nodes = sorted((node for node in self.nodes() if not node.away), key=lambda node: node.tick)
        at: dict[Node | None, int] = {node: number for number, node in enumerate(nodes)}
        return [Kept(at.get(node.parent, -1), node.key, node.hits) for node in nodes]

    def warm(self, pieces: Series[Kept]) -> int:
        """As of the base."""
        tokens = super().warm(pieces)
        for node in self.nodes():
            if node.parent is not None:
                node.parent.resident += 1
        return tokens


class TieredPool(RadixPool):
    """The KV tokens of a replica, and those in host memory.

    Parameters
    ----------
    tree : over both. link : from host memory to a rank, token_bytes : of a token on it, end_bytes : of what only the end of a
    prefix has, which comes with every load.
    Others as of the base.
    """

    tree: TieredTree

    def __init__(
        self,
        capacity_tokens: int,
        page_tokens: int,
        tree: TieredTree,
        link: Link,
        token_bytes: float,
        end_bytes: float = 0.0,
        *,
        pairs: bool = False,
    ) -> None:
        super().__init__(capacity_tokens, page_tokens, pairs=pairs)
        self.tree = tree
        self._link, self._token_bytes, self._end_bytes = link, token_bytes, end_bytes
        self.hit_tokens = self.read_tokens = self.loads = 0

    def load(self, nodes: Series[Node]) -> bool:
        """Load away nodes back, each below the one before, the first below a node that is locked; whether there was room."""
        tokens = sum(node.length for node in nodes)
        for node in nodes:
            node.host_lock += 1
        there = self.make_room(tokens)
        if not there or not self.tree.keeps_loaded:
            for node in nodes:
                node.host_lock -= 1
        if not there:
            return False
        self.free_tokens -= tokens
        self.read_tokens += tokens
        self.loads += 1
        self.tree.load(nodes)
        return True

    def copy_s(self, tokens: int, loads: int) -> float:
        """Time of a copy to the device of so many tokens, in so many loads [s]."""
        return (tokens * self._token_bytes + loads * self._end_bytes) / self._link.bytes_per_s

    def counts(self, ranks: int) -> list[TierCount]:
        """What became of each tier."""
        tree, size = self.tree, self._token_bytes * ranks
        further = tree.further
        read_bytes = self.read_tokens * size + self.loads * self._end_bytes * ranks
        host = TierCount("host", self.hit_tokens, read_bytes, tree.written_tokens * size)
        if further is None:
            return [host]
        return [host, TierCount(further.kind, further.hit_tokens, further.read_bytes, further.written_bytes)]
