"""The radix tree against a plain dictionary of prefixes, and what locks, splits and eviction do to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.radix import Content, RadixPool, RadixTree
from tests.effort import examples

RUNS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=4
).map(tuple)


def tokens(runs: Any) -> list[tuple[int, int]]:
    return [(segment, offset + k) for segment, offset, length in runs for k in range(length)]


def shared(a: list[Any], b: list[Any]) -> int:
    equal = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        equal += 1
    return equal


@given(st.lists(RUNS, min_size=1, max_size=12), RUNS, st.sampled_from([1, 2, 4]))
@settings(max_examples=examples(200))
def test_match_finds_the_longest_inserted_prefix(inserted: list[Any], wanted: Any, page: int) -> None:
    tree = RadixTree(page)
    known: list[list[tuple[int, int]]] = []
    for runs in inserted:
        content = Content(runs)
        length = content.length // page * page
        names = tokens(runs)[:length]
        before = max((shared(names, other) // page * page for other in known), default=0)
        found, _ = tree.insert(content, length)
        assert found == before
        known.append(names)
    names = tokens(wanted)
    best = max(shared(names, other) // page * page for other in known)
    content = Content(wanted)
    assert tree.match(content, content.length)[0] == min(best, content.length // page * page)
    distinct = {tuple(names[: k + page]) for names in known for k in range(0, len(names), page)}
    assert tree.evictable_tokens == len(distinct) * page
    assert sum(node.length for node in tree.nodes()) == tree.evictable_tokens


@given(st.lists(RUNS, min_size=1, max_size=10), st.integers(0, 200))
@settings(max_examples=examples(100))
def test_eviction_frees_what_it_says_and_spares_what_is_locked(inserted: list[Any], wanted: int) -> None:
    tree = RadixTree()
    contents = [Content(runs) for runs in inserted]
    for content in contents:
        tree.insert(content, content.length)
    _, node = tree.match(contents[0], contents[0].length)
    tree.lock(node)
    assert sum(held.length for held in tree.nodes() if held.lock) == contents[0].length
    before = tree.evictable_tokens
    freed = tree.evict(wanted)
    assert freed >= min(wanted, before)
    assert tree.evictable_tokens == before - freed
    assert tree.match(contents[0], contents[0].length)[0] == contents[0].length
    tree.unlock(node)
    assert not any(held.lock for held in tree.nodes())
    tree.evict(1 << 30)
    assert tree.nodes() == []


def test_least_recently_used_leaf_goes_first_and_parents_follow() -> None:
    tree = RadixTree()
    first, second = Content(((1, 0, 10), (2, 0, 5))), Content(((1, 0, 10), (3, 0, 7)))
    tree.insert(first, 15)
    tree.insert(second, 17)
    tree.match(first, 15)
    assert tree.evict(1) == 7  # the tail of the second
    assert tree.match(second, 17)[0] == 10
    assert tree.evict(6) == 15  # the tail of the first, then what both had
    assert tree.nodes() == []


@pytest.mark.parametrize(
    ("policy", "kept"), [("lru", 1), ("mru", 2), ("fifo", 2), ("filo", 1), ("lfu", 1), ("slru", 1)]
)
def test_eviction_policies(policy: str, kept: int) -> None:
    """Entry 1 is older and used again; entry 2 is newer and was never used."""
    tree = RadixTree(1, policy)
    contents = {1: Content(((1, 0, 4),)), 2: Content(((2, 0, 4),))}
    tree.insert(contents[1], 4)
    tree.insert(contents[2], 4)
    tree.insert(contents[1], 4)
    assert tree.evict(4) == 4
    assert [k for k, content in contents.items() if tree.match(content, 4)[0]] == [kept]


def test_a_million_tokens_are_one_node() -> None:
    tree = RadixTree()
    tree.insert(Content(((1, 0, 1_000_000),)), 1_000_000)
    assert len(tree.nodes()) == 1
    assert tree.match(Content(((1, 0, 999_999), (2, 0, 1))), 1_000_000)[0] == 999_999
    assert len(tree.nodes()) == 2


def test_pool_counts_whole_pages() -> None:
    pool = RadixPool(103, 16)
    assert pool.capacity_tokens == 96
    assert pool.paged(17) == 32
    assert pool.free_blocks == 6
