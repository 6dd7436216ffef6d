"""The radix tree in which some routers note which worker got which text.

One tree for all workers. A node is a stretch of text with the workers that were given it, when each was last, and the worker
whose text made it. Sizes in units of the text. A worker's oldest leaves go once its texts are longer than a limit.

Source: behaviour of `Tree` in sglang-router 0.3.2 (`sgl-model-gateway/src/policies/tree.rs`), whose one-in-eight update of the
time of a match is kept; checked against recordings of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Set
from itertools import count

from simulator.cluster.routing.policy import Run

SEEN_EVERY = 8
"""A match counts as a use once in so many ticks of the tree's clock."""


class Node:
    """A stretch of text: `runs` of `length` units, the tick of each owner's last use, and the maker, or who stands for it."""

    __slots__ = ("children", "length", "maker", "owners", "parent", "runs")

    def __init__(self, runs: tuple[Run, ...], parent: Node | None, maker: int) -> None:
        self.runs = runs
        self.length = sum(run[2] for run in runs)
        self.parent = parent
        self.maker = maker
        self.owners: dict[int, int] = {}
        self.children: dict[tuple[int, int], Node] = {}


class PrefixTree:
    """Texts by the workers that got them."""

    def __init__(self) -> None:
        self.root = Node((), None, -1)
        self.size: dict[int, int] = {}  # units a worker
        self._tick = 0

    def match(self, runs: tuple[Run, ...], among: Set[int] | None = None) -> tuple[int, Node]:
        """How much of a text is in the tree, and the deepest node touched, which may be matched in part.

        Of the texts that some workers got, where `among` names these.
        """
        matched, node, rest = 0, self.root, runs
        while rest:
            child = node.children.get((rest[0][0], rest[0][1]))
            if child is None or (among is not None and among.isdisjoint(child.owners)):
                break
            shared, rest = _common(rest, child.runs)
            matched += shared
            node = child
            if shared < child.length:
                break
        return matched, node

    def used(self, node: Node) -> None:
        """Note a match with a node, which counts for its maker."""
        if self._tick % SEEN_EVERY == 0 and node.maker in node.owners:
            node.owners[node.maker] = self._tick
        self._tick += 1

    def insert(self, runs: tuple[Run, ...], worker: int) -> None:
        """Note that a worker gets a text."""
        node, rest = self.root, runs
        node.owners.setdefault(worker, 0)
        self.size.setdefault(worker, 0)
        while rest:
            key = rest[0][0], rest[0][1]
            child = node.children.get(key)
            if child is None:
                leaf = node.children[key] = Node(rest, node, worker)
                leaf.owners[worker] = self._tick
                self._tick += 1
                self.size[worker] += leaf.length
                return
            shared, rest = _common(rest, child.runs)
            if shared < child.length:
                child = self._split(child, shared)
            if worker not in child.owners:
                child.owners[worker] = 0
                self.size[worker] += child.length
            node = child
        if node.parent is not None:
            node.owners[worker] = self._tick
        self._tick += 1

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two; return the upper part, which has its owners and maker too."""
        parent = node.parent
        assert parent is not None
        head, tail = _cut(node.runs, at)
        upper = Node(head, parent, node.maker)
        upper.owners = dict(node.owners)
        parent.children[head[0][0], head[0][1]] = upper
        upper.children[tail[0][0], tail[0][1]] = node
        node.runs, node.length, node.parent = tail, node.length - at, upper
        return upper

    def evict(self, limit: int) -> None:
        """Take the oldest leaves from every worker whose texts are longer than `limit`."""
        if all(size <= limit for size in self.size.values()):
            return
        order = count()
        heap = [
            (node.owners[worker], next(order), worker, node)
            for node in self._nodes()
            for worker in node.owners
            if self.size[worker] > limit and _is_leaf(node, worker)
        ]
        heapq.heapify(heap)
        while heap:
            _, _, worker, node = heapq.heappop(heap)
            if self.size[worker] <= limit:
                continue
            parent = self._disown(node, worker)
            if parent is not None and worker in parent.owners and _is_leaf(parent, worker):
                heapq.heappush(heap, (parent.owners[worker], next(order), worker, parent))

    def forget(self, worker: int) -> None:
        """Take a worker out of the tree."""
        for node in [node for node in self._nodes() if worker in node.owners]:
            self._disown(node, worker)
        self.size.pop(worker, None)

    def _disown(self, node: Node, worker: int) -> Node | None:
        """Take a worker off a node, which goes if nobody has it; return its parent."""
        del node.owners[worker]
        self.size[worker] -= node.length
        parent = node.parent
        if parent is not None and not node.owners and not node.children:
            del parent.children[node.runs[0][0], node.runs[0][1]]
        return parent

    def _nodes(self) -> Iterator[Node]:
        """All nodes but the root, children before their parents."""
        found, stack = [], list(self.root.children.values())
        while stack:
            found.append(node := stack.pop())
            stack.extend(node.children.values())
        return reversed(found)


def _is_leaf(node: Node, worker: int) -> bool:
    return node.parent is not None and not any(worker in child.owners for child in node.children.values())


def _common(text: tuple[Run, ...], other: tuple[Run, ...]) -> tuple[int, tuple[Run, ...]]:
    """How many units two texts have in common from their start, and what remains of the first."""
    at, shared = 0, 0
    mine = theirs = 0  # units of the current runs that are behind
    i = 0
    while at < len(text) and i < len(other):
        segment, offset, length = text[at]
        of, start, size = other[i]
        if segment != of or offset + mine != start + theirs:
            break
        step = min(length - mine, size - theirs)
        shared += step
        mine += step
        theirs += step
        if mine == length:
            at, mine = at + 1, 0
        if theirs == size:
            i, theirs = i + 1, 0
    rest = text[at:]
    if mine:
        segment, offset, length = rest[0]
        rest = ((segment, offset + mine, length - mine), *rest[1:])
    return shared, rest


def _cut(runs: tuple[Run, ...], at: int) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """The first `at` units of a text and the others, neither empty."""
    head: list[Run] = []
    for i, (segment, offset, length) in enumerate(runs):
        if at <= length:
            head.append((segment, offset, at))
            tail = ((segment, offset + at, length - at),) if at < length else ()
            return tuple(head), (*tail, *runs[i + 1 :])
        head.append((segment, offset, length))
        at -= length
    raise AssertionError("a cut beyond the end")
