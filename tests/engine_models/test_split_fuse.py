"""Split and fuse: exact runs, conservation of blocks, the rule's worked cases."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.split_fuse import SplitFuseBatch, SplitFuseRules, SplitFuseScheduler
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed, apart

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int]
"""Arrival [s], prompt and output tokens."""
WIDE = {"max_ragged_batch_size": 768, "max_ragged_sequence_count": 512, "max_tracked_sequences": 2048}


class Served(Fed[SplitFuseScheduler, SplitFuseBatch]):
    """What became of requests: ends [s], the numbers of the batches that gave tokens, and the batches."""

    def __init__(
        self, rules: dict[str, int], blocks: int, asked: list[Asked], *, aggregate: bool = False, record: bool = False
    ) -> None:
        scheduler = SplitFuseScheduler(SplitFuseRules(**rules), blocks, 16, aggregate=aggregate, record_rows=record)
        super().__init__(scheduler, apart(asked), RecordedClock(CLOCK), SplitFuseBatch)

    def settled(self, batch: SplitFuseBatch) -> None:
        scheduler = self.scheduler
        outside = [*scheduler._buffer, *scheduler._ended, *scheduler._flushes]
        held = sum(scheduler._held(seq.computed) for seq in outside)
        held += sum(scheduler._held(scheduler.decodes.length(seq) - 1) for seq in scheduler._decoding)
        assert scheduler.free_blocks + held == scheduler.capacity_blocks
        assert scheduler.free_blocks >= 0
        assert batch.tokens <= scheduler.rules.max_ragged_batch_size
        assert batch.decode_rows + len(batch.prefill) <= scheduler.rules.max_ragged_sequence_count
        assert scheduler._holding <= scheduler.rules.max_tracked_sequences


@st.composite
def loads(draw: st.DrawFn) -> tuple[dict[str, int], int, list[Asked]]:
    """Small pools under pressure."""
    rows = draw(st.sampled_from([2, 6, 40]))
    rules = {
        "max_ragged_batch_size": draw(st.sampled_from([rows, 64, 300])),
        "max_ragged_sequence_count": rows,
        "max_tracked_sequences": draw(st.sampled_from([rows, rows + 3, 1000])),
    }
    rules["max_ragged_batch_size"] = max(rules["max_ragged_batch_size"], rows)
    number, gap_s = draw(st.integers(1, 25)), draw(st.sampled_from([0.0, 0.02, 0.2]))
    asked = [(i * gap_s, draw(st.integers(1, 250)), draw(st.integers(1, 150))) for i in range(number)]
    return rules, draw(st.sampled_from([25, 40, 90, 1000])), asked


@settings(max_examples=examples(60), derandomize=True)
@given(loads())
def test_runs_equal_steps_and_blocks_are_conserved(load: tuple[dict[str, int], int, list[Asked]]) -> None:
    jumped, stepped = (Served(*load, aggregate=aggregate) for aggregate in (True, False))
    assert jumped.tokens == stepped.tokens
    assert [len(tokens) for tokens in jumped.tokens] == [output for _, _, output in load[2]]
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in jumped.log.records().items():
        assert column.tolist() == stepped.log.records()[name].tolist(), name
    assert jumped.scheduler.state()[:3] == (0, 0, 0)
    assert [seq.preemptions for seq in jumped.seqs] == [seq.preemptions for seq in stepped.seqs]


def test_a_prompt_is_cut_to_what_decodes_leave_and_goes_on_first() -> None:
    rules = {**WIDE, "max_ragged_batch_size": 100, "max_ragged_sequence_count": 100}
    found = Served(rules, 100, [(0.0, 30, 5), (0.001, 250, 2), (0.002, 20, 2)], record=True)
    assert found.rows()[:5] == [
        [(0, 30, 0)],
        [(0, 1, 30), (1, 99, 0)],
        [(0, 1, 31), (1, 99, 99)],
        [(0, 1, 32), (1, 52, 198), (2, 20, 0)],
        [(0, 1, 33), (1, 1, 250), (2, 1, 20)],
    ]


def test_a_prompt_waits_until_all_its_blocks_are_free_and_nobody_overtakes_it() -> None:
    """Of ten blocks the first holds three: the eight for 128 tokens are free only when it has been flushed."""
    found = Served(WIDE, 10, [(0.0, 40, 3), (0.001, 128, 1), (0.002, 16, 1)], record=True)
    assert found.rows() == [[(0, 40, 0)], [(0, 1, 40)], [(0, 1, 41)], [(1, 128, 0), (2, 16, 0)]]
    assert found.batches[3].flushed == [found.seqs[0]]


def test_a_prompt_is_not_begun_where_its_rest_would_not_fit() -> None:
    """The first 64 of 128 tokens would fit into the seven free blocks, all of it needs eight."""
    rules = {**WIDE, "max_ragged_batch_size": 64, "max_ragged_sequence_count": 64}
    found = Served(rules, 10, [(0.0, 40, 3), (0.001, 128, 1)], record=True)
    assert found.rows() == [[(0, 40, 0)], [(0, 1, 40)], [(0, 1, 41)], [(1, 64, 0)], [(1, 64, 64)]]


def test_blocks_of_an_ended_request_are_seen_free_two_steps_later() -> None:
    """While another decodes: ended in step 0, its flush goes with step 2, and step 3 is the first to use its blocks."""
    found = Served(WIDE, 6, [(0.0, 48, 1), (0.0, 17, 9), (0.001, 40, 1)], record=True)
    assert [[index for index, _, _ in rows] for rows in found.rows()[:4]] == [[0, 1], [1], [1], [1, 2]]
    assert [batch.free_blocks for batch in found.batches[:4]] == [6, 1, 1, 4]


def test_decodes_at_the_edge_of_a_block_are_passed_over_and_others_go_on() -> None:
    """Two blocks each, none left: the one whose block is full stands still, the other goes on until its own is."""
    found = Served(WIDE, 4, [(0.0, 32, 4), (0.0, 30, 4)], record=True)
    assert found.rows()[:3] == [[(0, 32, 0), (1, 30, 0)], [(1, 1, 30)], [(1, 1, 31)]]
    assert [seq.preemptions for seq in found.seqs] == [0, 1]


def test_a_row_that_left_and_came_back_ends_once() -> None:
    """Two end with one step; the first was passed over meanwhile, which let it be noted twice, before and after the other."""
    decodes, rows = DecodeSet(16), [Sequence(index, 5, 4, 0.0) for index in range(2)]
    for order, seq in enumerate([*rows, rows[0]]):
        if order == 2:
            decodes.leave(seq)
        seq.order = order
        decodes.join(seq)
    decodes.steps += decodes.steps_to_next_end()
    assert decodes.pop_ended() == rows


def test_when_nothing_can_run_the_last_with_blocks_begins_again_with_its_answer_as_prompt() -> None:
    found = Served(WIDE, 4, [(0.0, 32, 4), (0.0, 32, 4), (0.0, 32, 1)], record=True)
    assert found.rows() == [
        [(0, 32, 0), (1, 32, 0)],
        [(0, 1, 32)],
        [(0, 1, 33)],
        [(0, 1, 34)],
        [(2, 32, 0)],
        [(1, 33, 0)],
        [(1, 1, 33)],
        [(1, 1, 34)],
    ]
    assert list(found.batches[1].preempted) == found.batches[1].flushed == [found.seqs[1]]


def test_the_number_of_requests_that_hold_blocks_is_bounded() -> None:
    rules = {**WIDE, "max_ragged_sequence_count": 2, "max_tracked_sequences": 2}
    found = Served(rules, 100, [(0.0, 20, 2), (0.0, 20, 6), (0.0, 20, 1)], record=True)
    assert [[index for index, _, _ in rows] for rows in found.rows()] == [[0, 1], [0, 1], [1], [1], [1, 2], [1]]


def test_prompts_chosen_together_take_the_places_that_their_step_frees() -> None:
    """With three of four places taken two come in, since the first's is given back before the step runs."""
    rules = {**WIDE, "max_ragged_sequence_count": 2, "max_tracked_sequences": 4}
    asked = [(0.0, 16, 1), (0.0, 20, 2), (0.0, 24, 1), (0.0, 28, 1), (0.0, 32, 1)]
    found = Served(rules, 100, asked, record=True)
    assert found.rows() == [[(0, 16, 0), (1, 20, 0)], [(1, 1, 20), (2, 24, 0)], [(3, 28, 0), (4, 32, 0)]]
    assert [batch.tracked for batch in found.batches] == [2, 3, 4]


def test_arrivals_do_not_end_a_run_while_the_first_who_waits_finds_no_room() -> None:
    scheduler = SplitFuseScheduler(SplitFuseRules(**WIDE), 10, 16)
    seqs: list[Any] = [Sequence(0, 40, 30, 0.0), Sequence(1, 150, 2, 0.0)]
    for seq in seqs:
        scheduler.add(seq)
    for _ in range(2):
        batch = scheduler.schedule(0.0)
        assert batch is not None
        scheduler.settle(batch)
    run = scheduler.run()
    assert run is not None
    assert run.deaf
