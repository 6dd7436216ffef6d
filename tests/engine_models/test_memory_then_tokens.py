"""Memory first, then tokens: worked cases of the rules, conservation of blocks, exact runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.block_tree import Block, BlockTree
from engine_models.memory.radix import content_of
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import (
    CAPACITY_POLICIES,
    EQUAL_PROGRESS,
    FIRST_COME,
    STATIC,
    UTILIZATION,
    TwoPassBatch,
    TwoPassRules,
    TwoPassScheduler,
)
from hardware_profiles.errors import InfeasibleError
from simulator.serving.replica import Replica
from tests.effort import examples
from tests.engine_models.test_sglang import CLOCK
from tests.invariants.core_cases import SpannedClock

RULES = TwoPassRules(max_batch_size=8, max_num_tokens=64, max_seq_len=400, overlap=False)


def request(index: int, prompt: int, output: int, *, group: int | None = None, shared: int = 0, **more: Any) -> Sequence:
    """A request whose first `shared` tokens are those of its group."""
    runs = ((group, 0, shared), (1000 + index, 0, prompt - shared), (2000 + index, 0, output)) if group is not None else ()
    return Sequence(index, prompt, output, 0.0, runs=runs, shareable_tokens=prompt, output_shared=group is not None, **more)


def steps_of(
    rules: TwoPassRules, kv: BlockTree, requests: list[Sequence], later: dict[int, list[Sequence]] | None = None
) -> list[TwoPassBatch]:
    """Run to the end, the first requests at once, `later` ones before the step of a number; the batches, conserved."""
    scheduler = TwoPassScheduler(rules, kv, record_rows=True)
    coming = dict(later or {})
    for seq in requests:
        scheduler.add(seq)
    batches: list[TwoPassBatch] = []
    flight: list[TwoPassBatch] = []
    depth = 2 if rules.overlap else 1
    while scheduler.has_work() or coming:
        for seq in coming.pop(scheduler.next_number, []):
            scheduler.add(seq)
        batch = scheduler.schedule(0.0)
        conserved(scheduler)
        if batch is not None and batch.tokens:
            assert batch.tokens <= rules.max_num_tokens or len(batch.contexts) == 1
            assert len(scheduler.active) <= rules.max_batch_size
            flight.append(batch)
            batches.append(batch)
        elif batch is not None and batch.preempted:
            continue
        if flight and (batch is None or len(flight) == depth):
            scheduler.settle(flight.pop(0))
            conserved(scheduler)
    for batch in flight:
        scheduler.settle(batch)
    assert kv.free_blocks == kv.capacity_blocks
    return batches


def test_a_prompt_passed_over_whose_memory_began_prompts_behind_it_hold_stops_the_server() -> None:
    rules = replace(RULES, max_num_tokens=80, max_seq_len=896, context_chunking_policy=FIRST_COME)
    first, behind = request(0, 40, 1, group=7, shared=40), request(2, 94, 1)
    passed_over = request(1, 16, 1, group=7, shared=16, stop_known=False)  # its prefix is being computed; may take all blocks
    scheduler = TwoPassScheduler(rules, BlockTree(56, 16))
    replica = Replica([scheduler], SpannedClock(CLOCK), depth=1)
    for seq in (first, passed_over, behind):
        replica.ranks[0].submit(seq)
    with pytest.raises(InfeasibleError, match=r"(?s)request 1 may take 56 of 56 blocks.*limit the tokens of an answer"):
        replica.advance(float("inf"))
    assert [seq.state for seq in (first, passed_over, behind)] == ["finished", "waiting", "running"]


@pytest.mark.parametrize(("policy", "blocks"), [("GUARANTEED_NO_EVICT", 12), ("MAX_UTILIZATION", 5)])
def test_a_prompt_that_another_holds_whole_takes_a_block_that_nobody_counted(policy: str, blocks: int) -> None:
    """`getRemainingBlocksToCompletion`, `getNeededBlocksOneStep`: all blocks in use count as found, but the last token never is.

    Prompts of four blocks of 16, answers of four more. With a block more there is room for what is not counted.
    """
    rules = replace(RULES, capacity_scheduler_policy=policy, max_num_tokens=128)

    def twin(index: int) -> Sequence:
        return Sequence(
            index, 64, 64, 0.0, runs=((7, 0, 64), (2000 + index, 0, 64)), shareable_tokens=64, output_shared=True
        )

    with pytest.raises(InfeasibleError, match=r"(?s)let in as if it took none.*enable_block_reuse"):
        steps_of(rules, BlockTree(blocks, 16), [twin(0)], {1: [twin(1)]})
    batches = steps_of(rules, BlockTree(13, 16), [twin(0)], {1: [twin(1)]})
    assert [(seq.index, new, before) for seq, new, before in batches[1].rows or ()] == [(1, 1, 63), (0, 1, 64)]


def conserved(scheduler: TwoPassScheduler) -> None:
    """Every block is free or held, and a block that rows share is counted once."""
    kv, shared, own = scheduler.kv, {}, 0
    for seq in scheduler.active:
        size = kv.block_tokens
        if seq.state == "decoding":
            cached = scheduler.decodes.length(seq) - 1
            own += -(-cached // size) - len(seq.blocks)
        else:
            own += seq.extra_blocks
        for block in seq.blocks:
            own += block is None
            if block is not None:
                shared[block] = shared.get(block, 0) + 1
    assert all(block.refs == count for block, count in shared.items())
    assert kv.free_blocks == kv._fresh + sum(block.many for block in kv._line) >= 0
    assert kv.free_blocks + len(shared) + own == kv.capacity_blocks
    assert scheduler._owed >= 0
    below = [kv.root]
    for node in below:
        below.extend(node.children.values())
        assert all(child.parent is node for child in node.children.values())


def rows(batch: TwoPassBatch) -> list[tuple[int, int, int]]:
    assert batch.rows is not None
    return [(seq.index, tokens, before) for seq, tokens, before in batch.rows]


def test_the_answer_is_reserved_and_nobody_passes_the_one_that_does_not_fit() -> None:
    """10 blocks of 4: 2 + 2 and 2 + 2 are let in; 3 blocks do not fit beside them, and 1 block waits behind."""
    kv = BlockTree(10, 4, prefix_caching=False)
    first = steps_of(RULES, kv, [request(0, 8, 8), request(1, 8, 8), request(2, 8, 4), request(3, 2, 2)])[0]
    assert rows(first) == [(0, 8, 0), (1, 8, 0)]
    assert [seq.index for seq in first.waiting] == [2, 3]


def test_a_static_batch_lets_nobody_in_while_somebody_generates() -> None:
    rules = replace(RULES, capacity_scheduler_policy=STATIC)
    late = {1: [request(1, 4, 2)]}
    batches = steps_of(rules, BlockTree(10, 4, prefix_caching=False), [request(0, 4, 4)], late)
    assert [rows(batch) for batch in batches] == [
        [(0, 4, 0)],
        *([(0, 1, before)] for before in (4, 5, 6)),
        [(1, 4, 0)],
        [(1, 1, 4)],
    ]


def test_under_pressure_the_last_is_paused_and_comes_back_with_its_answer_as_prompt() -> None:
    """5 blocks of 4: both prompts take 2, the first row gets the fifth at its 9th token, the second is paused."""
    rules = replace(RULES, capacity_scheduler_policy=UTILIZATION)
    batches = steps_of(rules, BlockTree(5, 4, prefix_caching=False), [request(0, 8, 9), request(1, 8, 5)])
    assert rows(batches[0]) == [(0, 8, 0), (1, 8, 0)]
    assert (rows(batches[1]), [seq.index for seq in batches[1].preempted]) == ([(0, 1, 8)], [1])
    assert rows(batches[2]) == [(0, 1, 9)]  # 9 tokens of the other need 3 blocks, 2 are free
    back = next(batch for batch in batches[2:] if batch.contexts)
    assert rows(back) == [(1, 9, 0)]
    assert [seq.index for seq in back.running] == [1]
    assert sum(len(batch.contexts) for batch in batches) == 3


def test_a_token_in_flight_at_a_pause_comes_and_is_not_computed_twice() -> None:
    """As above with a step ahead: the second row's first token is in flight, its prompt comes back without it."""
    rules = replace(RULES, capacity_scheduler_policy=UTILIZATION, overlap=True)
    second = request(1, 8, 5)
    batches = steps_of(rules, BlockTree(5, 4, prefix_caching=False), [request(0, 8, 9), second])
    back = next(batch for batch in batches[1:] if batch.contexts)
    assert rows(back)[0] == (1, 8, 0)
    assert sum(last - first + 1 for first, last in second.ranges()) == 5
    assert second.length == second.final_length == 13


def test_chunks_first_come_and_in_equal_progress() -> None:
    def first(policy: str) -> list[tuple[int, int, int]]:
        rules = replace(RULES, max_num_tokens=30, context_chunking_policy=policy)
        return rows(steps_of(rules, BlockTree(60, 4), [request(0, 40, 2), request(1, 10, 2), request(2, 40, 2)])[0])

    assert first(FIRST_COME) == [(0, 28, 0)]  # 30 are cut to whole blocks, and the 2 left are less than one
    assert first(EQUAL_PROGRESS) == [(0, 12, 0), (2, 8, 0), (1, 10, 0)]  # two rounds of a block, then 4 and 2 and no more


def test_a_prompt_waits_for_the_one_that_computes_its_next_block() -> None:
    twins = [request(i, 20, 2, group=7, shared=16) for i in range(3)]
    batches = steps_of(RULES, BlockTree(60, 8), twins)
    assert (rows(batches[0]), [seq.index for seq in batches[0].skipped]) == ([(0, 20, 0)], [1, 2])
    assert rows(batches[1]) == [(1, 4, 16), (2, 4, 16), (0, 1, 20)]


def test_a_part_of_a_block_is_copied_where_others_need_it_and_taken_over_where_not() -> None:
    """Twelve tokens are known in a block and a half of 8: the next prompt finds the half too, if parts are found at all."""

    def found(**cache: bool) -> tuple[int, int]:
        kv = BlockTree(12, 8, **cache)
        scheduler = TwoPassScheduler(RULES, kv)
        old = request(0, 12, 1, group=3, shared=12)
        scheduler.add(old)
        scheduler.settle(scheduler.schedule(0.0) or TwoPassBatch(-1))
        seq = request(1, 20, 2, group=3, shared=12)
        return kv.take(seq, content_of(seq), 20), len(kv.root.children)

    assert found() == (12, 1)
    assert found(partial=False) == (8, 1)
    assert found(prefix_caching=False) == (0, 0)
    kv = BlockTree(12, 8)
    user, other = request(0, 24, 1, group=3, shared=24), request(1, 14, 1, group=3, shared=12)
    kv.take(user, content_of(user), 24)
    kv.store(user, content_of(user), 24)
    copied = BlockTree(12, 8, copies=False)
    assert kv.take(other, content_of(other), 14) == 12  # of the second block 4 tokens, copied: somebody holds it
    assert kv.free_blocks == 12 - 3 - 1
    user, other = request(0, 24, 1, group=3, shared=24), request(1, 14, 1, group=3, shared=12)
    copied.take(user, content_of(user), 24)
    copied.store(user, content_of(user), 24)
    assert copied.take(other, content_of(other), 14) == 8


def test_the_longest_free_block_goes_first_and_takes_what_stands_below_it_out_of_the_tree() -> None:
    kv = BlockTree(4, 4)
    old = request(0, 12, 1, group=3, shared=12)
    kv.take(old, content_of(old), 12)
    kv.release(old, content_of(old), 12)
    assert kv.find(content_of(old), 12)[:2] == (3, 0)
    new = request(1, 8, 1)
    kv.take(new, content_of(new), 8)  # the fresh block, then the deepest of the three
    assert kv.find(content_of(old), 12)[:2] == (2, 0)
    root = next(iter(kv.root.children.values()))
    kv._leave_tree(root)
    assert kv.find(content_of(old), 12)[0] == 0
    assert all(isinstance(block, Block) and block.parent is None for block in kv._line)


def test_prompts_wait_for_more_beside_running_rows() -> None:
    rules = replace(RULES, batch_wait_timeout_iters=3, batch_wait_max_tokens_ratio=0.5)
    batches = steps_of(rules, BlockTree(60, 4), [request(0, 10, 9)], {1: [request(1, 10, 2)]})
    assert [len(batch.contexts) for batch in batches[:6]] == [1, 0, 0, 0, 1, 0]
    batches = steps_of(rules, BlockTree(60, 4), [request(0, 10, 9)], {1: [request(1, 40, 2)]})
    assert [len(batch.contexts) for batch in batches[:3]] == [1, 1, 0]


def test_rows_beyond_the_token_budget_sit_out_a_step() -> None:
    rules = replace(RULES, max_num_tokens=4, max_batch_size=8)
    batches = steps_of(rules, BlockTree(60, 4), [request(i, 1, 6) for i in range(6)])
    assert max(batch.tokens for batch in batches) == 4
    assert sum(batch.decode_rows for batch in batches) == 6 * 5


CASE = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(CAPACITY_POLICIES),
        "chunking": st.sampled_from([None, FIRST_COME, EQUAL_PROGRESS]),
        "overlap": st.booleans(),
        "blocks": st.integers(14, 40),
        "rows": st.integers(1, 8),
        "reuse": st.booleans(),
        "partial": st.booleans(),
        "copies": st.booleans(),
        "known": st.booleans(),
        "requests": st.lists(
            st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 20), st.integers(0, 30)),
            min_size=1,
            max_size=12,
        ),
    }
)


@settings(max_examples=examples(150))
@given(CASE)
def test_blocks_are_conserved_and_all_answers_end(case: dict[str, Any]) -> None:
    rules = replace(
        RULES,
        max_batch_size=case["rows"],
        capacity_scheduler_policy=case["policy"],
        context_chunking_policy=case["chunking"],
        overlap=case["overlap"],
        max_seq_len=54,
    )
    kv = BlockTree(
        case["blocks"], 4, prefix_caching=case["reuse"], partial=case["partial"], copies=case["copies"]
    )
    known = case["known"]
    made = [
        (
            at,
            request(  # a prompt of whole blocks that others hold all of may stop the engine: see the test of it
                index,
                prompt,
                output,
                group=group,
                shared=min(shared, prompt - (prompt % 4 == 0)),
                stop_known=known,
                limit_tokens=0 if known else 13,
            ),
        )
        for index, (prompt, output, group, shared, at) in enumerate(case["requests"])
    ]
    later: dict[int, list[Sequence]] = {}
    for at, seq in made:
        later.setdefault(min(at, 0 if case["policy"] == STATIC else at), []).append(seq)
    batches = steps_of(rules, kv, later.pop(0, []) or [request(99, 4, 30)], {}) if not later else _with_later(rules, kv, later)
    assert batches
    for _, seq in made:
        assert seq.state == "finished"
        assert sum(last - first + 1 for first, last in seq.ranges()) == seq.final_length - seq.prompt_tokens


def _with_later(rules: TwoPassRules, kv: BlockTree, later: dict[int, list[Sequence]]) -> list[TwoPassBatch]:
    """A long request keeps the steps going until the last has come."""
    first = later.pop(0, [])
    return steps_of(replace(rules, max_batch_size=rules.max_batch_size + 1), kv, [request(99, 4, 34), *first], later)
