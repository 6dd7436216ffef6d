from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.workload.columns import Content, join_contents, take_content
from simulator.workload.content import content_of_blocks, content_of_sessions
from simulator.workload.describe import cached_tokens

BLOCK = 8


def common_prefix(content: Content, a: int, b: int) -> int:
    """Tokens that two prompts' runs share from the start, token by token."""

    def tokens(i: int) -> list[tuple[int, int]]:
        rows = range(int(content.start[i]), int(content.start[i + 1]))
        return [
            (int(content.segment[r]), int(content.offset[r]) + k)
            for r in rows
            for k in range(content.length[r])
        ]

    count = 0
    for x, y in zip(tokens(a), tokens(b), strict=False):
        if x != y:
            break
        count += 1
    return count


# Few block names, so that prompts share prefixes, and names that follow different blocks.
PROMPTS = st.lists(
    st.tuples(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 2 * BLOCK)), min_size=1, max_size=12
)


def blocks_of(prompts: list[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start = np.concatenate(([0], np.cumsum([len(ids) for ids, _ in prompts])))
    flat = np.asarray([x for ids, _ in prompts for x in ids], np.int64)
    tokens = np.asarray([max(1, len(ids) * BLOCK - BLOCK + 1 + extra) for ids, extra in prompts], np.int64)
    return start, flat, tokens


@given(PROMPTS)
def test_runs_share_what_the_blocks_share(prompts: list[tuple[list[int], int]]) -> None:
    start, flat, tokens = blocks_of(prompts)
    content = content_of_blocks(start, flat, BLOCK, tokens)
    for a, (ids_a, _) in enumerate(prompts):
        for b, (ids_b, _) in enumerate(prompts):
            if a == b:
                continue
            same = 0
            for x, y in zip(ids_a, ids_b, strict=False):
                if x != y:
                    break
                same += 1
            expected = min(same * BLOCK, int(tokens[a]), int(tokens[b]))
            assert common_prefix(content, a, b) == expected


@given(PROMPTS)
def test_endless_cache_serves_the_longest_earlier_prefix(prompts: list[tuple[list[int], int]]) -> None:
    start, flat, tokens = blocks_of(prompts)
    content = content_of_blocks(start, flat, BLOCK, tokens)
    served = cached_tokens(content, tokens, np.ones(len(tokens), np.int64))
    for i in range(len(tokens)):
        # Prompts that end inside a block leave its rest unknown; the best single earlier prompt is a bound
        # from below, and equality holds when every prompt is whole blocks.
        best = max((common_prefix(content, i, j) for j in range(i)), default=0)
        assert served[i] >= best
        if all(t % BLOCK == 0 for t in tokens[: i + 1].tolist()):
            assert served[i] == best


def test_a_conversation_is_one_run() -> None:
    ids = [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    start = np.cumsum([0, *map(len, ids)])
    tokens = np.asarray([3, 5, 6]) * BLOCK
    content = content_of_blocks(start, np.concatenate(ids), BLOCK, tokens)
    assert content.length.tolist() == [24, 40, 40]
    assert content.segment.tolist() == [0, 0, 0]
    assert content.start.tolist() == [0, 1, 2, 3]


def test_sessions_that_lose_history() -> None:
    session, turn = np.zeros(4, np.int64), np.arange(4)
    prompts, outputs = np.asarray([10, 20, 22, 15]), np.asarray([5, 5, 5, 5])
    content, broken = content_of_sessions(session, turn, prompts, outputs)
    assert broken == 2
    assert common_prefix(content, 0, 1) == 10
    assert common_prefix(content, 1, 2) == 20  # 22 < 20 + 5: the output is not in it
    assert common_prefix(content, 2, 3) == 0  # 15 < 22: cut
    hits = cached_tokens(content, prompts, outputs)
    assert hits.tolist() == [0, 15, 20, 0]


def test_take_and_join() -> None:
    session, turn = np.asarray([0, 0, 1]), np.asarray([0, 1, 0])
    content, _ = content_of_sessions(session, turn, np.asarray([4, 9, 6]), np.asarray([2, 2, 2]))
    swapped = take_content(content, np.asarray([2, 0, 1]))
    assert swapped.length.tolist() == [6, 4, 9]
    joined = join_contents([content.renumbered(2, 0), None, content.renumbered(2, 1)], [3, 2, 3])
    assert joined is not None
    assert joined.start.tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 6]
    assert joined.segment.tolist() == [0, 0, 2, 1, 1, 3]
    assert joined.output_segment.tolist() == [0, 0, 2, -1, -1, 1, 1, 3]
    assert join_contents([None, None], [1, 2]) is None
