"""The oldest first, prompts and decodes in one step: exact runs, and timelines worked by hand from TurboMind's source."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.block_trie import TrieBlocks
from engine_models.parts.batch import Batch
from engine_models.schedulers.oldest_first import OldestFirstRules, OldestFirstScheduler
from simulator.validation.schedules import RecordedClock
from tests.engine_models.fed import Fed, sharing

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int, int]
"""Arrival [s], prompt and output tokens, and the group whose first 64 tokens it shares (0: none)."""


class Served(Fed[OldestFirstScheduler, Batch]):
    """What became of requests under so many rows, tokens and context tokens a step, and blocks of 16 tokens."""

    def __init__(
        self,
        knobs: tuple[int, int, int, int],
        asked: list[Asked],
        *,
        depth: int = 2,
        caching: bool = False,
        aggregate: bool = False,
        record: bool = True,
    ) -> None:
        kv = TrieBlocks(knobs[3], 16, prefix_caching=caching)
        scheduler = OldestFirstScheduler(OldestFirstRules(*knobs[:3]), kv, aggregate=aggregate, record_rows=record)
        super().__init__(scheduler, sharing(asked, 64), RecordedClock(CLOCK), Batch, depth=depth)


loads = st.lists(
    st.tuples(st.sampled_from([0.0, 0.01, 0.3]), st.integers(1, 200), st.integers(1, 90), st.integers(0, 2)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=5, derandomize=True)
@given(
    st.tuples(
        st.sampled_from([2, 5, 16]),
        st.sampled_from([30, 120, 900]),
        st.sampled_from([300, 4000]),
        st.sampled_from([20, 45, 400]),
    ),
    st.sampled_from([1, 2]),
    st.booleans(),
    loads,
)
def test_runs_equal_steps(
    knobs: tuple[int, int, int, int], depth: int, caching: bool, load: list[tuple[float, int, int, int]]
) -> None:
    at_s, asked = 0.0, []
    for gap_s, prompt, output, group in load:
        at_s += gap_s
        asked.append((at_s, prompt, output, group))
    jumped, stepped = (
        Served(knobs, asked, depth=depth, caching=caching, aggregate=aggregate, record=False)
        for aggregate in (True, False)
    )
    assert jumped.tokens == stepped.tokens
    assert [len(tokens) for tokens in jumped.tokens] == [output for _, _, output, _ in asked]
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in jumped.log.records().items():
        assert column.tolist() == stepped.log.records()[name].tolist(), name
    assert jumped.scheduler.state() == stepped.scheduler.state() == (0, 0, 0, knobs[3])


# Lines are those of TurboMind at 1263d5cd: scheduler.cc, engine.cc, block.cc, context_token_resource.h under `src/turbomind`.


def test_a_timeline_of_prompts_beside_decodes() -> None:
    """engine.cc:463: one budget for all. The next step is formed when one starts (engine.cc:835), so a prompt that comes in
    step 0 is in step 2, and who ends in step 3 is computed once more in step 4."""
    found = Served((8, 100, 4000, 100), [(0.0, 40, 4, 0), (0.001, 50, 2, 0)])
    assert found.rows() == [
        [(0, 40, 0)],
        [(0, 1, 40)],
        [(0, 1, 41), (1, 50, 0)],
        [(0, 1, 42), (1, 1, 50)],
        [(0, 1, 43), (1, 1, 51)],
    ]
    assert found.tokens == [[0, 1, 2, 3], [2, 3]]


def test_a_timeline_of_pieces() -> None:
    """scheduler.cc:1012: a piece ends with a block, so 96 of 100 tokens; the four left are no block of the next prompt, which
    sits out (1147). Blocks for the whole prompt are taken with its first piece (648)."""
    found = Served((8, 100, 4000, 12), [(0.0, 150, 3, 0), (0.0, 30, 2, 0)])
    assert found.rows()[:3] == [[(0, 96, 0)], [(0, 54, 96), (1, 30, 0)], [(0, 1, 150), (1, 1, 30)]]
    beside = [(0.0, 150, 3, 0), (0.0, 8, 2, 0)]
    assert Served((8, 120, 4000, 10), beside).rows()[:2] == [[(0, 112, 0)], [(0, 38, 112)]]
    assert Served((8, 120, 4000, 11), beside).rows()[0] == [(0, 112, 0), (1, 8, 0)]


def test_a_timeline_of_the_context_budget() -> None:
    """context_token_resource.h:19: two prompts of 150 tokens use up 300 of context; decodes take none of it (47)."""
    found = Served((8, 900, 300, 100), [(0.0, 150, 2, 0), (0.0, 150, 2, 0), (0.0, 20, 2, 0)])
    assert found.rows()[:2] == [[(0, 150, 0), (1, 150, 0)], [(0, 1, 150), (1, 1, 150), (2, 20, 0)]]


def test_a_timeline_of_swapping_out() -> None:
    """scheduler.cc:1084, block.cc:61: blocks are stamped from the youngest row to the oldest, of each from its last to its first,
    and the oldest stamp goes first (1172). Row 0 takes the last block of row 2 alone; row 1 goes on, row 2 stops (1130) and goes
    on from the two blocks that it kept, when those of row 0 can be taken: after the step in which it ended and one more. The two
    decodes take nothing of a context of 105."""
    found = Served((8, 900, 105, 10), [(0.0, 63, 5, 0), (0.0, 40, 7, 0), (0.0, 40, 2, 0)])
    assert found.rows() == [
        [(0, 63, 0), (1, 40, 0)],
        [(0, 1, 63), (1, 1, 40), (2, 40, 0)],
        *([(0, 1, 64 + step), (1, 1, 41 + step)] for step in range(4)),
        [(1, 1, 45), (2, 9, 32)],
        [(1, 1, 46), (2, 1, 41)],
    ]
    assert [seq.preemptions for seq in found.seqs] == [0, 0, 1]


def test_a_timeline_of_nobody_younger() -> None:
    """scheduler.cc:1186, engine.cc:575: a row that finds nothing ends the walk; alone in 64 tokens, it fails when its last step
    is over, and who waited behind it is served."""
    found = Served((8, 900, 4000, 4), [(0.0, 60, 9, 0), (0.0, 20, 2, 0)])
    assert found.rows() == [
        [(0, 60, 0)],
        *([(0, 1, 60 + step)] for step in range(4)),
        [(1, 20, 0)],
        [(1, 1, 20)],
        [(1, 1, 21)],
    ]
    assert [seq.state for seq in found.seqs] == ["dropped", "finished"]


def test_a_timeline_of_places() -> None:
    """engine.cc:338: who has ended keeps its place until the step that computes it for nothing is over (794)."""
    asked = [(0.0, 20, 1, 0), (0.0, 20, 9, 0), (0.0, 20, 1, 0)]
    ahead, at_once = (Served((2, 900, 4000, 100), asked, depth=depth) for depth in (2, 1))
    assert ahead.rows()[:4] == [
        [(0, 20, 0), (1, 20, 0)],
        [(0, 1, 20), (1, 1, 20)],
        [(1, 1, 21)],
        [(1, 1, 22), (2, 20, 0)],
    ]
    assert at_once.rows()[:2] == [[(0, 20, 0), (1, 20, 0)], [(1, 1, 20), (2, 20, 0)]]


def test_a_timeline_of_whole_blocks_found() -> None:
    """scheduler.cc:1158: who would compute the 64 shared tokens in the same step sits it out, and finds them in the next. A
    prompt that is found whole computes its last token (525)."""
    found = Served((8, 900, 4000, 100), [(0.0, 80, 2, 1), (0.0, 100, 2, 1), (0.5, 64, 1, 1)], caching=True)
    assert found.rows() == [
        [(0, 80, 0)],
        [(0, 1, 80), (1, 36, 64)],
        [(0, 1, 81), (1, 1, 100)],
        [(1, 1, 101)],
        [(2, 1, 63)],
        [(2, 1, 64)],
    ]
    apart = Served((8, 900, 4000, 100), [(0.0, 80, 2, 1), (0.0, 100, 2, 1)])
    assert apart.rows()[0] == [(0, 80, 0), (1, 100, 0)]


def test_blocks_used_longest_ago_go_first() -> None:
    """block.cc:61, scheduler.cc:1172: of two prompts that ended together the younger's last block goes, when a third one takes
    a block more than are free."""
    asked = [(0.0, 64, 1, 1), (0.0, 64, 1, 2), (0.5, 64, 1, 0), (1.0, 64, 1, 1), (1.5, 64, 1, 2)]
    found = Served((8, 900, 4000, 12), asked, caching=True)
    assert [rows for rows in found.rows() if rows[-1][1] > 1 or rows[-1][0] > 2] == [
        [(0, 64, 0), (1, 64, 0)],
        [(2, 64, 0)],
        [(3, 1, 63)],
        [(3, 1, 64)],
        [(4, 16, 48)],
        [(4, 1, 64)],
    ]
