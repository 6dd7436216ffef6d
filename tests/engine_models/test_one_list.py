"""One list in order of arrival: exact runs, conservation of blocks, the rule's worked cases."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.content_blocks import ContentBlocks
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.one_list import OneListBatch, OneListRules, OneListScheduler
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Runs = tuple[tuple[int, int, int], ...]
Asked = tuple[float, int, int, Runs]
"""Arrival [s], prompt and output tokens, and what of the prompt others may share."""


class Served(Fed[OneListScheduler, OneListBatch]):
    """What became of requests: ends [s], the numbers of the batches that gave tokens, and the batches."""

    def __init__(
        self,
        rules: dict[str, Any],
        pool: dict[str, Any],
        asked: list[Asked],
        *,
        aggregate: bool = False,
        record: bool = False,
    ) -> None:
        self.kv = ContentBlocks(block_tokens=16, **{"prefix_caching": False, **pool})
        scheduler = OneListScheduler(OneListRules(**rules), self.kv, aggregate=aggregate, record_rows=record)
        self.states: dict[int, str] = {}
        seqs = [
            Sequence(index, prompt, output, at, runs=runs, shareable_tokens=sum(run[2] for run in runs))
            for index, (at, prompt, output, runs) in enumerate(asked)
        ]
        super().__init__(scheduler, seqs, RecordedClock(CLOCK), OneListBatch)

    def ended(self, seq: Sequence, now_s: float) -> None:
        super().ended(seq, now_s)
        self.states[seq.index] = seq.state

    def settled(self, batch: OneListBatch) -> None:
        scheduler, kv = self.scheduler, self.kv
        assert 0 <= kv.free_blocks <= kv.capacity_blocks
        assert batch.tokens <= scheduler.rules.max_num_batched_tokens
        rows = scheduler._rows.values()
        for row in scheduler._decoding.values():
            assert row.held.count == -(-(scheduler.decodes.length(row.seq) - 1) // 16)
        if kv.prefix_caching:
            distinct = {block for row in rows for block in row.held.blocks}
            assert kv.used_blocks == len(distinct)
            assert all(block.rows == sum(block in row.held.blocks for row in rows) for block in distinct)
            assert len(kv._unused) + len(kv._left) == kv.free_blocks
        else:
            assert kv.used_blocks == sum(row.held.count for row in rows)


@st.composite
def loads(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], list[Asked]]:
    """Small pools under pressure, with prompts that begin alike."""
    split = draw(st.booleans())
    rules = {
        "dynamic_split_fuse": split,
        "max_num_batched_tokens": draw(st.sampled_from([3, 40, 300])) if split else 300,
        "max_num_seqs": draw(st.sampled_from([2, 5, 256])),
        "partial_preemption": draw(st.booleans()) if not split else True,
        "workers": draw(st.sampled_from([None, None, 1, 6])),
    }
    grows = draw(st.booleans())
    blocks = draw(st.sampled_from([25, 40, 90, 1000]))
    pool = {
        "capacity_blocks": 0 if grows else blocks,
        "most_blocks": blocks if grows else None,
        "prefix_caching": draw(st.booleans()),
    }
    number, gap_s = draw(st.integers(1, 25)), draw(st.sampled_from([0.0, 0.02, 0.2]))
    asked: list[Asked] = []
    for i in range(number):
        prompt, group = draw(st.integers(1, 250)), draw(st.integers(0, 2))
        shared = min(prompt, draw(st.sampled_from([0, 20, 48, 130])))
        asked.append((i * gap_s, prompt, draw(st.integers(1, 140)), ((group, 0, shared),) if shared else ()))
    return rules, pool, asked


@settings(max_examples=examples(80), derandomize=True)
@given(loads())
def test_runs_equal_steps_and_blocks_are_conserved(
    load: tuple[dict[str, Any], dict[str, Any], list[Asked]],
) -> None:
    jumped, stepped = (Served(*load, aggregate=aggregate) for aggregate in (True, False))
    assert jumped.tokens == stepped.tokens
    assert jumped.ends == stepped.ends
    assert jumped.states == stepped.states
    for state, tokens, (_, _, output, _) in zip(
        (jumped.states[i] for i in range(len(load[2]))), jumped.tokens, load[2], strict=True
    ):
        assert len(tokens) == output if state == "finished" else state == "dropped"
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in jumped.log.records().items():
        assert column.tolist() == stepped.log.records()[name].tolist(), name
    assert jumped.scheduler.state()[:3] == (0, 0, 0)
    assert [seq.preemptions for seq in jumped.seqs] == [seq.preemptions for seq in stepped.seqs]
    assert [seq.first_hit_tokens for seq in jumped.seqs] == [seq.first_hit_tokens for seq in stepped.seqs]


def plain(*asked: tuple[float, int, int]) -> list[Asked]:
    return [(*one, ()) for one in asked]


def test_a_prompt_begins_with_the_blocks_that_are_left() -> None:
    """Of ten blocks the first holds eight: two are free, and the second computes 32 of its 100 tokens beside it."""
    rules = {"max_num_batched_tokens": 256}
    found = Served(rules, {"capacity_blocks": 10}, plain((0.0, 120, 2), (0.001, 100, 1)), record=True)
    assert found.rows() == [[(0, 120, 0)], [(0, 1, 120), (1, 32, 0)], [(1, 68, 32)]]


def test_the_last_in_the_list_loses_its_newest_blocks_and_computes_them_again() -> None:
    """Eight blocks, three for each prompt, two for the first tokens: then the first takes two of the second's, one by one."""
    found = Served(
        {"max_num_batched_tokens": 256},
        {"capacity_blocks": 8},
        plain((0.0, 48, 18), (0.0, 48, 18)),
        record=True,
    )
    lost = [{seq.index: tokens for seq, tokens in batch.lost.items()} for batch in found.batches]
    assert lost[17] == {1: 16}
    assert found.rows()[17:20] == [[(0, 1, 64)], [(1, 16, 48)], [(1, 1, 64)]]
    assert [seq.preemptions for seq in found.seqs] == [0, 1]
    assert (
        17 not in found.tokens[1]
    )  # it sits out the step, and yields nothing while it computes the lost ones
    assert 18 not in found.tokens[1]
    assert 19 in found.tokens[1]


def test_prompts_take_nothing_from_others_and_bypass_those_who_wait() -> None:
    found = Served(
        {"max_num_batched_tokens": 64},
        {"capacity_blocks": 6},
        plain((0.0, 90, 4), (0.0, 90, 2), (0.0, 10, 1)),
        record=True,
    )
    assert found.rows()[:2] == [[(0, 64, 0)], [(0, 26, 64)]]
    assert not any(batch.preempted for batch in found.batches)


def test_when_no_token_can_be_computed_all_requests_are_dropped() -> None:
    """A prompt of 400 tokens in a pool of 160: when it holds all of it, it goes, and who waits behind it."""
    asked = plain((0.0, 400, 5), (0.01, 20, 5), (9.0, 20, 5))
    found = Served({"max_num_batched_tokens": 256}, {"capacity_blocks": 10}, asked, record=True)
    assert [found.states[i] for i in range(3)] == ["dropped", "dropped", "finished"]
    assert found.ends[0] == found.ends[1] < 0.1
    assert found.tokens[0] == found.tokens[1] == []


def test_without_split_fuse_whole_prompts_go_alone_and_a_cut_prompt_loses_everything() -> None:
    rules = {"max_num_batched_tokens": 300, "dynamic_split_fuse": False}
    found = Served(rules, {"capacity_blocks": 9}, plain((0.0, 48, 20), (0.001, 80, 4)), record=True)
    assert found.rows()[:3] == [[(0, 48, 0)], [(1, 80, 0)], [(0, 1, 48)]]
    assert [batch.only_prompts for batch in found.batches[:3]] == [True, True, False]
    assert found.batches[2].lost == {}
    assert found.batches[2].bare == []


def test_who_lost_everything_comes_back_with_the_prompts_where_nobody_loses_a_part() -> None:
    """48 and 80 tokens in nine blocks: the first takes the second's at its 65th. When it has ended, the second computes 80
    again, alone or as a row that decodes, and yields nothing with them."""
    for partial in (False, True):
        rules = {"max_num_batched_tokens": 300, "dynamic_split_fuse": False, "partial_preemption": partial}
        found = Served(rules, {"capacity_blocks": 9}, plain((0.0, 48, 20), (0.001, 80, 4)), record=True)
        assert [seq.preemptions for seq in found.seqs] == [0, 1]
        (again,) = [batch for batch in found.batches[2:] if batch.rows == [(found.seqs[1], 80, 0)]]
        assert again.only_prompts is not partial
        assert again.number not in found.tokens[1]


def test_rows_are_limited_by_number_only_without_split_fuse() -> None:
    asked = plain(*((0.0, 10, 6) for _ in range(5)))
    for split, most in ((True, 5), (False, 2)):
        rules = {"max_num_batched_tokens": 300, "max_num_seqs": 2, "dynamic_split_fuse": split}
        found = Served(rules, {"capacity_blocks": 100}, asked, record=True)
        assert max(len(rows) for rows in found.rows()) == most


def test_a_pool_grows_to_twice_the_prompts_and_then_by_256_tokens() -> None:
    """40 tokens: 80 are expected, five blocks; the sixth is lacking, and 16 more come."""
    found = Served(
        {"max_num_batched_tokens": 256},
        {"capacity_blocks": 0, "most_blocks": 1000},
        plain((0.0, 40, 90)),
        record=True,
    )
    sizes = [batch.capacity_blocks for batch in found.batches]
    assert (sizes[0], sizes[40], sizes[41], sizes[-1]) == (5, 5, 21, 21)
    assert not any(batch.preempted for batch in found.batches)


def test_who_arrives_in_a_step_finds_what_that_step_has_taken_and_a_part_of_a_block() -> None:
    """The second prompt continues the first, 40 tokens: it arrives while these are computed, and is charged none of them."""
    first: Asked = (0.0, 40, 3, ((7, 0, 40),))
    second: Asked = (0.001, 60, 2, ((7, 0, 40),))
    found = Served(
        {"max_num_batched_tokens": 256},
        {"capacity_blocks": 50, "prefix_caching": True},
        [first, second],
        record=True,
    )
    assert found.rows()[1] == [(0, 1, 40), (1, 20, 40)]
    assert [(seq.index, tokens) for seq, tokens in found.batches[1].hits] == [(1, 40)]


def test_a_prompt_found_whole_computes_its_last_token_and_takes_a_block_of_its_own_for_the_shared_one() -> (
    None
):
    same: list[Asked] = [(at, 40, 3, ((7, 0, 40),)) for at in (0.0, 0.001)]
    found = Served(
        {"max_num_batched_tokens": 256}, {"capacity_blocks": 50, "prefix_caching": True}, same, record=True
    )
    assert found.rows()[1] == [(0, 1, 40), (1, 1, 39)]
    assert [batch.free_blocks for batch in found.batches[:2]] == [47, 46]


def test_a_name_that_a_row_gives_up_may_be_anothers_later() -> None:
    """Two equal prompts; the second comes before the first is computed, and its turn when that has gone on and given up the name
    of its last block. The second's has it then; a third takes that block, and a fourth, in the same step, finds it with him."""
    text = ((7, 0, 40),)
    asked: list[Asked] = [
        (0.0, 10, 7, ()),
        (0.02, 40, 90, text),
        (0.02, 40, 1, text),
        (0.6, 40, 1, text),
        (0.6005, 40, 1, text),
    ]
    rules = {"max_num_batched_tokens": 300, "max_num_seqs": 2, "dynamic_split_fuse": False}
    found = Served(rules, {"capacity_blocks": 50, "prefix_caching": True}, asked)
    assert [seq.first_hit_tokens for seq in found.seqs] == [0, 0, 0, 39, 39]


def test_who_shares_a_block_goes_on_in_it_when_the_other_loses_it() -> None:
    """Three blocks for a prompt of 40 tokens, found whole by a second request: the first needs one of its own for the last. The
    second loses its share of that, 7 computed tokens; no block is free then, but none is needed."""
    text = ((7, 0, 40),)
    asked: list[Asked] = [(0.0, 40, 9, text), (0.001, 40, 9, text)]
    found = Served(
        {"max_num_batched_tokens": 256}, {"capacity_blocks": 3, "prefix_caching": True}, asked, record=True
    )
    assert found.rows()[1] == [(0, 1, 40)]
    assert list(found.batches[1].lost.values()) == [7]


def test_as_many_requests_are_inside_as_there_are_workers() -> None:
    asked = plain(*((0.0, 10, 4) for _ in range(5)))
    found = Served(
        {"max_num_batched_tokens": 300, "workers": 2}, {"capacity_blocks": 100}, asked, record=True
    )
    assert max(len(rows) for rows in found.rows()) == 2
    assert [found.tokens[i][0] for i in range(5)] == [0, 0, 4, 4, 8]


def test_arrivals_do_not_end_a_run_while_all_workers_are_busy() -> None:
    kv = ContentBlocks(100, 16, prefix_caching=True)
    scheduler = OneListScheduler(OneListRules(256, workers=1), kv)
    for index in range(2):
        scheduler.add(Sequence(index, 40, 30, 0.0))
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.settle(batch)
    run = scheduler.run()
    assert run is not None
    assert run.deaf
