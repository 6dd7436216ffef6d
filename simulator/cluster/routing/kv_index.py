"""Which KV blocks workers hold: compressed trees over the names of blocks, for all workers at once.

A name stands for a block with all before it, so equal names at one place mean equal paths up to it. Sets of workers are bits of
an integer, so that a path is walked once for all of them, an edge a step.

Source: behaviour of `ConcurrentRadixTreeCompressed` and `BlockTracker` in Dynamo's `lib/kv-router` (read 2026-11), checked
against recordings of ai-dynamo-runtime 1.6.1.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class Node:
    """An edge of blocks: how many leading ones each worker holds, who holds all, and whether it ever had children."""

    __slots__ = ("children", "edge", "full", "held", "internal", "parent")

    def __init__(self, edge: list[int], parent: Node | None) -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.full = 0
        self.held: dict[int, int] = {}  # workers that hold a part
        self.internal = False

    def has(self, worker: int) -> int:
        """How many leading blocks a worker holds."""
        return len(self.edge) if self.full >> worker & 1 else self.held.get(worker, 0)

    def cover(self, worker: int, blocks: int) -> None:
        """A worker holds at least so many leading blocks."""
        if blocks >= len(self.edge):
            self.full |= 1 << worker
            self.held.pop(worker, None)
        elif self.has(worker) < blocks:
            self.held[worker] = blocks


class KvIndex:
    """What engines' events say: blocks stored after a parent, blocks removed.

    An edge is cut where paths part, grows while it is a leaf, and is never joined again. A removal takes the rest of its edge
    from the worker, but leaves it the edges behind: they are found again when what was removed is stored again.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._root = Node([], None)
        self._root.internal = True
        self._of: dict[int, Node] = {}

    def store(self, worker: int, parent: int | None, blocks: Series[int]) -> None:
        """A worker stores blocks that follow `parent`; dropped if it does not hold that."""
        node = self._root if parent is None else self._of.get(parent)
        if node is None:
            return
        if parent is not None:
            at = node.edge.index(parent) + 1
            if node.has(worker) < at:
                return
            rest = node.edge[at:]
            if rest and self._along(node, at, rest, worker, blocks):
                return
        start = 0
        while start < len(blocks):
            child = node.children.get(blocks[start])
            if child is None:
                new = list(blocks[start:])
                if not node.internal and node.has(worker) == len(node.edge):
                    self._extend(node, worker, new)
                else:
                    self._append(node, worker, new)
                return
            matched = _matching(child.edge, blocks, start)
            start += matched
            if matched < len(child.edge):
                if start < len(blocks):
                    self._cut(child, matched)
                    child.cover(worker, matched)
                    self._append(child, worker, list(blocks[start:]))
                else:
                    child.cover(worker, matched)
                return
            child.cover(worker, matched)
            node = child

    def _along(self, node: Node, at: int, rest: list[int], worker: int, blocks: Series[int]) -> bool:
        """Store blocks that follow one inside an edge: True if they go along it, else it is cut there."""
        shared = _matching(rest, blocks, 0)
        if shared == len(blocks):
            node.cover(worker, at + shared)
        elif shared == len(rest) and not node.internal:
            self._extend(node, worker, list(blocks[shared:]))
        else:
            self._cut(node, at)
            return False
        return True

    def _extend(self, leaf: Node, worker: int, blocks: list[int]) -> None:
        for other in _bits(leaf.full):
            leaf.held[other] = len(leaf.edge)
        leaf.full = 0
        leaf.edge += blocks
        leaf.cover(worker, len(leaf.edge))
        for block in blocks:
            self._of[block] = leaf

    def _append(self, parent: Node, worker: int, blocks: list[int]) -> None:
        child = parent.children[blocks[0]] = Node(blocks, parent)
        parent.internal = True
        child.full = 1 << worker
        for block in blocks:
            self._of[block] = child

    def _cut(self, node: Node, at: int) -> None:
        """Cut an edge: the node keeps the first `at` blocks, its only child the others."""
        tail = Node(node.edge[at:], node)
        tail.children, tail.internal = node.children, bool(node.children)
        for child in tail.children.values():
            child.parent = tail
        tail.full = node.full
        for worker, held in list(node.held.items()):
            if held >= at:
                del node.held[worker]
                node.full |= 1 << worker
                if held > at:
                    tail.held[worker] = held - at
        node.edge = node.edge[:at]
        node.children, node.internal = {tail.edge[0]: tail}, True
        for block in tail.edge:
            self._of[block] = tail

    def remove(self, worker: int, blocks: Series[int]) -> None:
        """A worker removes blocks."""
        for block in blocks:
            node = self._of.get(block)
            if node is None:
                continue
            at = node.edge.index(block)
            if at < node.has(worker):
                node.full &= ~(1 << worker)
                node.held.pop(worker, None)
                if at:
                    node.held[worker] = at
            if not node.full:
                node.children = {}

    def forget(self, worker: int) -> None:
        """A worker has lost all its blocks."""
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            node.full &= ~(1 << worker)
            node.held.pop(worker, None)

    def leading(self, blocks: Series[int]) -> IntArray:
        """How many leading blocks each worker holds."""
        found = np.zeros(self._workers, dtype=np.int64)
        node, start, active = self._root, 0, -1
        while start < len(blocks):
            child = node.children.get(blocks[start])
            if child is None:
                break
            matched = _matching(child.edge, blocks, start)
            for worker, held in child.held.items():
                if active >> worker & 1:
                    found[worker] = start + min(held, matched)
            left = active & ~child.full if active >= 0 else 0
            if left and start:
                for worker in _bits(left):
                    found[worker] = max(int(found[worker]), start)
            active = active & child.full if active >= 0 else child.full
            start += matched
            node = child
            if not active or matched < len(child.edge):
                break
        if active > 0:
            _put(found, active, start, self._workers)
        return found


class LiveNode:
    """An edge of blocks in flight: how many requests of each worker have all of it, and what its blocks count for."""

    __slots__ = ("children", "count", "edge", "full", "parent", "weight")

    def __init__(self, edge: list[int], parent: LiveNode | None) -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[int, LiveNode] = {}
        self.full = 0
        self.count: dict[int, int] = {}
        self.weight: dict[int, float] = {}


class LiveBlocks:
    """Blocks of requests in flight: those that several requests of a worker have count once, with the weight of a block.

    An edge ends where a path in flight ends or parts from another.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._root = LiveNode([], None)
        self.total = np.zeros(workers)
        """Weighted blocks of each worker."""

    def enter(self, worker: int, blocks: Series[int]) -> LiveNode:
        """Note a request's path; return what `leave` and `weigh` want."""
        node, start = self._root, 0
        while start < len(blocks):
            child = node.children.get(blocks[start])
            if child is None:
                child = node.children[blocks[start]] = LiveNode(list(blocks[start:]), node)
            matched = _matching(child.edge, blocks, start)
            if matched < len(child.edge):
                child = self._cut(child, matched)
            held = child.count.get(worker, 0)
            child.count[worker] = held + 1
            if not held:
                child.full |= 1 << worker
                self.total[worker] += len(child.edge)
            start += matched
            node = child
        return node

    def _cut(self, node: LiveNode, at: int) -> LiveNode:
        """Cut an edge; return the new node with its first `at` blocks."""
        parent = node.parent
        assert parent is not None
        head = parent.children[node.edge[0]] = LiveNode(node.edge[:at], parent)
        head.count, head.weight, head.full = dict(node.count), dict(node.weight), node.full
        node.edge, node.parent = node.edge[at:], head
        head.children[node.edge[0]] = node
        return head

    def leave(self, worker: int, tail: LiveNode) -> None:
        """Take a request's path out."""
        node = tail
        while node.parent is not None:
            parent = node.parent
            held = node.count[worker] - 1
            if held:
                node.count[worker] = held
            else:
                del node.count[worker]
                node.full &= ~(1 << worker)
                self.total[worker] -= len(node.edge) * node.weight.pop(worker, 1.0)
                if not node.count:
                    del parent.children[node.edge[0]]
            node = parent

    def weigh(self, worker: int, tail: LiveNode, weight: float) -> None:
        """Let the last blocks of a path that no other request of the worker has count for `weight` each."""
        node = tail
        while node.parent is not None and node.count[worker] == 1:
            self.total[worker] += len(node.edge) * (weight - node.weight.get(worker, 1.0))
            node.weight[worker] = weight
            node = node.parent

    def leading(self, blocks: Series[int]) -> IntArray:
        """How many leading blocks of a path each worker has in flight."""
        found = np.zeros(self._workers, dtype=np.int64)
        node, start, active = self._root, 0, -1
        while start < len(blocks):
            child = node.children.get(blocks[start])
            if child is None:
                break
            matched = _matching(child.edge, blocks, start)
            left = active & ~child.full if active >= 0 else 0
            if left:
                _put(found, left, start, self._workers)
            active = active & child.full if active >= 0 else child.full
            start += matched
            node = child
            if not active or matched < len(child.edge):
                break
        if active > 0:
            _put(found, active, start, self._workers)
        return found


def _matching(edge: list[int], blocks: Series[int], start: int) -> int:
    """How many blocks of an edge are those of a path from `start` on: equal at one place is equal up to it."""
    most = min(len(edge), len(blocks) - start)
    if not most or edge[most - 1] == blocks[start + most - 1]:
        return most
    low = 0
    while low + 1 < most:  # equal up to `low`, unequal at `most`
        middle = (low + most) // 2
        if edge[middle - 1] == blocks[start + middle - 1]:
            low = middle
        else:
            most = middle
    return low


def _bits(mask: int) -> list[int]:
    """Numbers of the bits that are set."""
    out = []
    while mask:
        low = mask & -mask
        out.append(low.bit_length() - 1)
        mask ^= low
    return out


def _put(found: IntArray, mask: int, value: int, workers: int) -> None:
    """Set `found` to a value for the workers of a mask."""
    found[_members(mask, workers)] = value


@lru_cache(maxsize=4096)
def _members(mask: int, workers: int) -> NDArray[np.bool_]:
    """Whether each worker is in a mask."""
    raw = np.frombuffer(mask.to_bytes(-(-workers // 8), "little"), dtype=np.uint8)
    return np.unpackbits(raw, count=workers, bitorder="little").astype(bool)
