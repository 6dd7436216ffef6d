"""The continuous-batching rule: small cases worked by hand, and its two ways of serving rows against each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.declaration import FrontEnd
from engine_models.memory.hybrid_kv import HybridKV
from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler
from engine_models.schedulers.staged import StagedScheduler
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import sharing, token_steps
from tests.invariants.core_cases import CLOCK, Case, cases, plan_of, workload_of

Rows = list[list[tuple[int, int, int]]]


def scheduler_of(blocks: int = 1000, *, caching: bool = False, **knobs: Any) -> ContinuousScheduler:
    defaults: dict[str, Any] = {"max_num_batched_tokens": 100, "max_num_seqs": 8, "max_model_len": 1000}
    rules = ContinuousRules(**{**defaults, **knobs})
    return ContinuousScheduler(rules, PagedKV(blocks, 16, prefix_caching=caching), record_rows=True)


def steps_of(scheduler: ContinuousScheduler, seqs: list[Sequence]) -> list[Batch]:
    """All at once at time 0, to the end."""
    out: list[Batch] = []
    replica = Replica([scheduler], RecordedClock(CLOCK), depth=scheduler.rules.in_flight, on_batch=out.append)
    for seq in seqs:
        replica.ranks[0].submit(seq)
    replica.advance(1e9)
    assert not replica.busy()
    assert scheduler.kv.free_blocks == scheduler.kv.capacity_blocks
    return out


def rows_of(batches: list[Batch]) -> Rows:
    return [[(s.index, n, before) for s, n, before in b.rows or []] for b in batches]


def test_a_prompt_takes_what_the_decodes_leave() -> None:
    """Budget 100: the first prompt (40) and 60 of the second, then a decode and the other 90 of it."""
    rows = rows_of(steps_of(scheduler_of(), [Sequence(0, 40, 3, 0.0), Sequence(1, 150, 2, 0.0)]))
    assert rows == [[(0, 40, 0), (1, 60, 0)], [(0, 1, 40), (1, 90, 60)], [(0, 1, 41), (1, 1, 150)]]


def test_a_row_of_a_pipeline_that_loses_its_memory_waits_for_the_piece_of_its_prompt_under_way() -> None:
    scheduler = scheduler_of(10, in_flight=4, pipelined=True, reserve_full_prompt=False, max_num_batched_tokens=64)
    scheduler.add(Sequence(0, 64, 9, 0.0))
    batches: list[Batch] = []

    def formed() -> list[tuple[int, int, int]]:
        batch = scheduler.schedule(0.0)
        assert batch is not None
        batches.append(batch)
        return [(s.index, n, before) for s, n, before in batch.rows or []]

    assert formed() == [(0, 64, 0)]
    scheduler.settle(batches[0])
    scheduler.add(Sequence(1, 128, 9, 0.0))
    assert formed() == [(0, 1, 64), (1, 63, 0)]  # nine of ten blocks are taken
    assert formed() == []  # the rest of the prompt needs four more: its row gives up what it has
    scheduler.add(Sequence(2, 16, 9, 0.0))
    assert formed() == [(2, 16, 0)]  # goes before it, as the piece is under way
    scheduler.settle(batches[1])
    assert formed() == [(0, 1, 65), (1, 63, 0)]


def test_without_chunking_a_prompt_waits_for_the_whole_budget() -> None:
    scheduler = scheduler_of(chunked_prefill=False)
    rows = rows_of(
        steps_of(scheduler, [Sequence(0, 40, 2, 0.0), Sequence(1, 99, 1, 0.0), Sequence(2, 5, 1, 0.0)])
    )
    assert rows == [[(0, 40, 0)], [(0, 1, 40), (1, 99, 0)], [(2, 5, 0)]]


def test_the_last_row_is_preempted_first_and_starts_over() -> None:
    """Four blocks of 16; two rows of 31 tokens fill them; the first one's growth takes the second one's blocks."""
    batches = steps_of(
        scheduler_of(4, reserve_full_prompt=False), [Sequence(0, 31, 4, 0.0), Sequence(1, 31, 4, 0.0)]
    )
    assert rows_of(batches)[:4] == [
        [(0, 31, 0), (1, 31, 0)],
        [(0, 1, 31), (1, 1, 31)],
        [(0, 1, 32)],
        [(0, 1, 33)],
    ]
    assert [s.index for s in batches[2].preempted] == [1]
    assert rows_of(batches)[4][0] == (1, 33, 0)  # prompt and both outputs are computed again


def test_drafts_cost_tokens_and_rejections_roll_back() -> None:
    """Three drafts; 3, 0, then 3 accepted of which two are needed: 1 + 4 + 1 + 2 tokens in four steps."""
    seq = Sequence(0, 20, 8, 0.0, acceptance=lambda n: (3, 0, 3)[n % 3])
    batches = steps_of(scheduler_of(speculative_tokens=3), [seq])
    assert rows_of(batches) == [[(0, 20, 0)], [(0, 4, 20)], [(0, 4, 24)], [(0, 4, 25)]]
    emitted = [batch for first, last in seq.ranges() for batch in range(first, last + 1)]
    assert emitted == [0, 1, 1, 1, 1, 2, 3, 3]


def test_asynchronous_drafts_are_scheduled_before_the_verdict() -> None:
    """The next row counts all drafts as accepted; what was rejected comes off once the verdict is in."""
    seq = Sequence(0, 20, 6, 0.0, acceptance=lambda n: 0)
    rows = rows_of(steps_of(scheduler_of(speculative_tokens=2, in_flight=2), [seq]))
    # positions: 20; then 23 if both are accepted, of which two roll back (21), and so on
    assert rows[:5] == [[(0, 20, 0)], [(0, 3, 20)], [(0, 3, 23)], [(0, 3, 24)], [(0, 3, 25)]]
    assert len(rows) == 6


def test_lookahead_slots_are_reserved_beyond_the_rows_tokens() -> None:
    """20 prompt tokens and 13 slots take a third block at admission, and do not where versions reserve none there."""
    for at_admission, blocks in ((True, 3), (False, 2)):
        scheduler = scheduler_of(
            speculative_tokens=13, lookahead_tokens=13, first_admission_lookahead=at_admission
        )
        scheduler.add(Sequence(0, 20, 6, 0.0))
        batch = scheduler.schedule(0.0)
        assert batch is not None
        assert 1000 - batch.free_blocks == blocks


@pytest.mark.parametrize(("pads", "tokens"), [(True, 4), (False, 1)])
def test_a_request_that_lacks_one_token_is_padded_to_a_full_row(pads: bool, tokens: int) -> None:
    """The second request finds 32 of its 33 tokens cached."""
    scheduler = scheduler_of(caching=True, speculative_tokens=3, pads_lone_token=pads)
    first = Sequence(0, 33, 2, 0.0, runs=((0, 0, 33),), shareable_tokens=33)
    second = Sequence(1, 33, 2, 5.0, runs=((0, 0, 33),), shareable_tokens=33)
    rows = rows_of(steps_of(scheduler, [first, second]))
    assert next(row for step in rows for row in step if row[0] == 1) == (1, tokens, 32)


def results(case: Case, kv: PagedKV | HybridKV, *, drafts: int = 0, **options: Any) -> tuple[Any, ...]:
    """End and emission times of every request of a case on one replica."""
    rules = plan_of(case).scheduler("jump").rules
    if drafts:
        rules = replace(rules, speculative_tokens=drafts)
    scheduler = ContinuousScheduler(rules, kv, **options)
    ends: dict[int, float] = {}
    replica = Replica(
        [scheduler],
        RecordedClock(CLOCK),
        depth=case.depth,
        on_finish=lambda seq, now_s: ends.__setitem__(seq.index, now_s),
    )
    w = workload_of(case)
    content = w.content
    assert content is not None
    requests = []
    for i in range(len(w)):
        if w.prompt_tokens[i] + w.output_tokens[i] > case.blocks * 16 // 2:
            continue
        span = range(content.start[i], content.start[i + 1])
        runs = tuple((int(content.segment[r]), int(content.offset[r]), int(content.length[r])) for r in span)
        priority = w.classes[w.class_index[i]].priority
        prompt, output, arrival = int(w.prompt_tokens[i]), int(w.output_tokens[i]), float(w.arrival_s[i])
        seq = Sequence(i, prompt, output, arrival, priority=priority, runs=runs, shareable_tokens=prompt)
        replica.ranks[0].submit(seq)
        requests.append(seq)
    replica.advance(1e9)
    assert not replica.busy()
    assert kv.free_blocks == kv.capacity_blocks
    preemptions = [seq.preemptions for seq in requests]
    return ends, replica.ranks[0].log.end_s.tobytes(), preemptions, scheduler.hit_tokens


@settings(max_examples=examples(60), derandomize=True)
@given(cases(feeds=("open",)))
def test_rows_one_by_one_as_the_aggregate(case: Case) -> None:
    """A cache with one full-attention group, served row by row and settled one by one, changes nothing."""
    counting = PagedKV(case.blocks, 16, prefix_caching=case.caching)
    itemised = HybridKV(
        case.blocks,
        16,
        (None,),
        prefix_caching=case.caching,
        most_in_flight_tokens=4096,
        max_model_len=4096,
    )
    assert results(case, counting) == results(case, itemised)


@settings(max_examples=examples(30), derandomize=True)
@given(cases(feeds=("open",)), st.integers(1, 5))
def test_drafts_that_are_never_accepted_yield_all_tokens(case: Case, drafts: int) -> None:
    kv = PagedKV(case.blocks, 16, prefix_caching=case.caching)
    plain = PagedKV(case.blocks, 16, prefix_caching=case.caching)
    ends = results(case, kv, drafts=drafts)[0]
    assert ends.keys() == results(case, plain)[0].keys()


def test_a_row_that_left_the_aggregate_and_came_back_ends_once() -> None:
    """Row 1 is preempted while row 0 decodes its last token, and is back where it would have ended anyway."""
    scheduler = scheduler_of(4, reserve_full_prompt=False)
    requests = [Sequence(0, 31, 3, 0.0), Sequence(1, 31, 4, 0.0)]
    batches = steps_of(scheduler, requests)
    assert [seq.preemptions for seq in requests] == [0, 1]
    assert [seq.index for batch in batches for seq in batch.finishing] == [0, 1]
    assert len(batches) == 5


def test_a_replica_has_no_next_event_in_its_past() -> None:
    """A request that reached the engine while a batch ran is due when the batch has ended, not before."""
    replica = Replica([scheduler_of(in_flight=2)], RecordedClock(CLOCK), depth=2)
    replica.ranks[0].submit(Sequence(0, 50, 1, 0.0))
    replica.advance(0.001)
    replica.ranks[0].submit(Sequence(1, 50, 1, 0.002))
    replica.advance(1.0, stop_after_finish=True)
    assert replica.clock_s > 0.002
    assert replica.next_event_s() == replica.clock_s


def test_prompts_are_tokenised_one_after_the_other() -> None:
    """At 10 ms a token: 50 tokens from 0 s, 20 that wait for them, and 10 that find the front end free."""
    seqs = [Sequence(0, 50, 1, 0.0), Sequence(1, 20, 1, 0.1), Sequence(2, 10, 1, 2.0)]
    replica = Replica([scheduler_of()], RecordedClock(CLOCK), front=FrontEnd(tokenise_token_s=0.01))
    for seq in seqs:
        replica.ranks[0].submit(seq)
    assert [seq.arrival_s for seq in seqs] == pytest.approx([0.5, 0.7, 2.1])
    replica.advance(10.0)
    assert [seq.first_scheduled_s for seq in seqs] == pytest.approx([0.5, 0.7, 2.1])


def test_a_step_of_preemptions_alone_costs_nobody_a_token() -> None:
    """Under priority a row may preempt itself at the head of the list: nothing runs then, and the step takes no number."""
    from simulator.run import simulate

    args = {"max_model_len": 2000, "num_gpu_blocks_override": 150, "max_num_seqs": 16, "scheduling_policy": "priority"}
    result = simulate(
        {
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "deployment": {"engine": "vllm@0.11.0", "hardware": "h100-sxm-80gb", "engine_args": args},
            "workload": {
                "arrivals": {"kind": "batch"},
                "shared_prefix": {"groups": 4, "tokens": 100},
                "prompt_tokens": {"kind": "uniform", "low": 1, "high": 500},
                "output_tokens": {"kind": "uniform", "low": 1, "high": 200},
                "requests": 60,
            },
            "seed": 54,
        }
    )
    assert result.raw.preemptions.sum() > 0
    spans = [result.raw.emissions.of(row) for row in range(len(result.raw.status))]
    assert [sum(last - first + 1 for _, first, last in of) for of in spans] == result.raw.output_tokens.tolist()


LEAVING = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 11)), max_size=8)
ASKED = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=12)


@settings(max_examples=examples(80), deadline=None)
@given(ASKED, LEAVING, st.integers(2, 4), st.integers(14, 60), st.booleans())
def test_those_who_leave_a_pipeline_leave_no_block_behind(
    asked: list[tuple[int, int, int]], leaving: list[tuple[int, int]], stages: int, blocks: int, caching: bool
) -> None:
    """Requests are forgotten before a step, in whatever state; lanes and rows served one by one give the others the same."""
    rules = ContinuousRules(64, 6, 200, in_flight=stages, pipelined=True)
    found = []
    for kind in (StagedScheduler, ContinuousScheduler):
        scheduler = kind(rules, PagedKV(blocks, 16, prefix_caching=caching))
        seqs = sharing([(0.0, prompt, answer, group) for prompt, answer, group in asked], 40)
        for seq in seqs:
            scheduler.add(seq)
        flight: list[Batch] = []
        gone, turn = set(), 0
        while scheduler.has_work():
            for at, index in leaving:
                if at == turn and index < len(seqs) and seqs[index].state != "finished":
                    assert scheduler.cancel(seqs[index])
                    gone.add(index)
            batch = scheduler.schedule(0.0)
            if batch is not None and batch.tokens:
                flight.append(batch)
            if flight and (batch is None or len(flight) == stages):
                scheduler.settle(flight.pop(0))
            turn += 1
        for batch in flight:
            scheduler.settle(batch)
        assert scheduler.kv.free_blocks == scheduler.kv.capacity_blocks
        scheduler.close()
        tokens = token_steps(seqs)
        assert all(i in gone or len(tokens[i]) == answer for i, (_, answer, _) in enumerate(asked))
        found.append([steps for i, steps in enumerate(tokens) if i not in gone])
    assert found[0] == found[1]
