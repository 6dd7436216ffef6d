"""What must hold of data-parallel ranks that step together: the core's invariants, and those of the barrier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.declaration import EnginePlan, FrontEnd
from engine_models.engines.sglang_ranks import Rank
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import FloatArray
from engine_models.schedulers.prefill_first import PrefillFirstRules
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import FINISHED, REJECTED, ClusterResult
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.invariants.core_cases import (
    CLOCK,
    Case,
    cases,
    plain_workload,
    plan,
    plan_around,
    plan_of,
    workload_of,
)
from tests.invariants.test_core import digest, emitted


class GroupClock(RecordedClock):
    """The slowest rank's own time, and a share that grows with the tokens of all ranks."""

    SHARED_S = 3e-5

    def __init__(self, ranks: int) -> None:
        super().__init__(CLOCK)
        self.ranks = ranks
        self.most_batches = 0

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        self.most_batches = max(self.most_batches, len(batches))
        own, prefills = super().step_s(batches)
        return own + self.SHARED_S * sum(batch.tokens for batch in batches), prefills

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        return super().run_s(shapes, steps) + self.SHARED_S * sum(shape.tokens for shape in shapes)


def sglang_plan(case: Case) -> EnginePlan:
    """SGLang's scheduler under the pressure of a case."""
    rows, chunk = dict(case.knobs)["max_num_seqs"], dict(case.knobs)["max_num_batched_tokens"]
    rules = PrefillFirstRules(
        max_running_requests=rows, max_model_len=4096, chunked_prefill_size=chunk, in_flight=case.depth
    )
    rank = Rank(rules, case.blocks * 16, 1, case.caching)
    return in_turn(plan_around(rank.scheduler, rows, chunk, rank.kv_tokens, case.depth, case.caching))


def in_turn(plan: EnginePlan) -> EnginePlan:
    """The plan with requests dealt to the ranks in turn."""
    return replace(plan, executor=replace(plan.executor, rank_router="round_robin"))


def run_group(case: Case, ranks: int, engine: EnginePlan | None = None, **options: Any) -> ClusterResult:
    """Run a case on groups of ranks to its end."""
    return Cluster(
        workload_of(case),
        engine or plan_of(case),
        GroupClock(ranks),
        replicas=case.replicas,
        ranks=ranks,
        **options,
    ).run()


@settings(max_examples=examples(120), derandomize=True)
@given(cases(), st.sampled_from([2, 3, 8]), st.sampled_from(["round_robin", "least_requests"]))
def test_jumping_equals_stepping_bit_for_bit(case: Case, ranks: int, router: str) -> None:
    jumped = run_group(case, ranks, router=router)
    stepped = run_group(case, ranks, router=router, aggregate=False)
    assert digest(jumped) == digest(stepped)
    assert emitted(jumped) == emitted(stepped)
    assert jumped.hit_tokens == stepped.hit_tokens


@settings(max_examples=examples(60), derandomize=True)
@given(cases(feeds=("open", "closed")), st.sampled_from([2, 4]))
def test_jumping_equals_stepping_under_prefill_first(case: Case, ranks: int) -> None:
    case = replace(case, priorities=False, shared=False)
    jumped, stepped = (run_group(case, ranks, sglang_plan(case), aggregate=a) for a in (True, False))
    assert digest(jumped) == digest(stepped)
    assert (jumped.status[~np.isin(jumped.status, (REJECTED,))] == FINISHED).all()


@settings(max_examples=examples(80), derandomize=True)
@given(cases(), st.sampled_from([2, 5]))
def test_requests_are_conserved_and_nothing_precedes_its_cause(case: Case, ranks: int) -> None:
    workload = workload_of(case)
    cluster = Cluster(workload, plan_of(case), GroupClock(ranks), replicas=case.replicas, ranks=ranks)
    result = cluster.run()
    for rank in cluster.ranks:
        assert not rank.busy()
        assert rank.in_service == 0
        assert rank.scheduler.kv.free_blocks == rank.scheduler.kv.capacity_blocks
    fits = (workload.prompt_tokens + result.output_tokens) <= case.blocks * 16 + 1
    assert np.array_equal(result.status == FINISHED, fits)
    assert np.array_equal(result.status == REJECTED, ~fits)
    done = result.status == FINISHED
    assert len(result.logs) == case.replicas * ranks
    assert np.all((result.replica[done] >= 0) & (result.replica[done] < len(result.logs)))
    assert np.all(result.first_scheduled_s[done] >= result.engine_arrival_s[done])
    assert np.all(result.first_token_s[done] > result.first_scheduled_s[done])
    assert np.all(result.end_s[done] >= result.first_token_s[done])
    tokens = emitted(result)
    for row in np.flatnonzero(done):
        batches = [step for _, step in tokens[row]]
        assert len(batches) == result.output_tokens[row]
        assert result.end_s[row] == result.logs[result.replica[row]].sent_s[batches[-1]]
    for log in result.logs:
        ends = np.frombuffer(log.end_s, dtype=np.float64)
        assert np.all(np.diff(ends) > 0)
        assert log.column("steps").sum() == len(ends)


@settings(max_examples=examples(60), derandomize=True)
@given(cases(feeds=("open",)), st.sampled_from([2, 4]))
def test_ranks_of_a_group_share_every_step(case: Case, ranks: int) -> None:
    """No two steps of ranks of a group overlap other than by being the same one."""
    result = run_group(case, ranks)
    for number in range(case.replicas):
        ends = [set(result.logs[rank * case.replicas + number].end_s) for rank in range(ranks)]
        every = sorted(set().union(*ends))
        assert all(later - earlier >= CLOCK["a"] * 0.999 for earlier, later in pairwise(every))


@settings(max_examples=examples(40), derandomize=True)
@given(cases(), st.sampled_from([2, 3]))
def test_the_same_run_twice_is_the_same(case: Case, ranks: int) -> None:
    assert digest(run_group(case, ranks)) == digest(run_group(case, ranks))


def _lone(prompt: list[int], output: list[int], arrival: list[float]) -> Any:
    return plain_workload(np.array(arrival), np.array(prompt), np.array(output))


def test_a_prefill_on_one_rank_delays_the_others() -> None:
    """Rank 0 decodes; the prompt that rank 1 gets meanwhile stretches the gap between two of its tokens by its own time."""
    engine = replace(in_turn(plan(2000)), front=FrontEnd())
    short = _lone([16], [50], [0.0])
    both = _lone([16, 4000], [50, 1], [0.0, 0.1])
    alone, disturbed = (Cluster(w, engine, GroupClock(2), ranks=2).run() for w in (short, both))
    assert disturbed.replica.tolist() == [0, 1]
    gaps = np.diff(np.frombuffer(disturbed.logs[0].end_s, dtype=np.float64))
    prefill_s = CLOCK["a"] + CLOCK["b"] * 4000 + CLOCK["d"] * 4000 + GroupClock.SHARED_S * 4001
    assert gaps.max() == pytest.approx(prefill_s, rel=1e-9)
    quiet = np.diff(np.frombuffer(alone.logs[0].end_s, dtype=np.float64)).max()
    assert disturbed.end_s[0] - alone.end_s[0] == pytest.approx(prefill_s - quiet, rel=0.01)


def test_equal_ranks_step_as_one_rank_whose_tokens_are_all_of_theirs() -> None:
    engine = replace(in_turn(plan(2000)), front=FrontEnd())
    ranks = 4
    one = Cluster(_lone([100], [30], [0.0]), engine, GroupClock(1), ranks=2).run()
    all_of = Cluster(
        _lone([100] * ranks, [30] * ranks, [0.0] * ranks), engine, GroupClock(ranks), ranks=ranks
    ).run()
    assert len(set(all_of.end_s.tolist())) == 1
    tokens = 100 + 29
    assert all_of.end_s[0] - one.end_s[0] == pytest.approx(GroupClock.SHARED_S * tokens * (ranks - 1))


def test_an_idle_rank_waits_for_nobody_and_costs_no_record() -> None:
    engine = in_turn(plan(2000))
    clock = GroupClock(8)
    result = Cluster(_lone([64, 64], [5, 5], [0.0, 0.0]), engine, clock, ranks=8).run()
    assert clock.most_batches == 2
    assert [len(log.end_s) for log in result.logs] == [5, 5, 0, 0, 0, 0, 0, 0]


def test_requests_are_dealt_to_ranks_in_turn_over_all_replicas() -> None:
    engine = in_turn(plan(2000))
    w = _lone([16] * 8, [3] * 8, [0.01 * i for i in range(8)])
    result = Cluster(w, engine, GroupClock(2), replicas=2, ranks=2).run()
    # replica n % 2, rank n // 2: replica 0 rank 0, replica 1 rank 0, replica 0 rank 1, replica 1 rank 1, again
    assert result.replica.tolist() == [0, 1, 2, 3] * 2


def test_a_rank_is_chosen_by_waiting_and_running_of_old_counts() -> None:
    """A burst spreads by what the front end has sent; counts of the ranks come at most every 100 ms."""
    engine = plan(2000)
    burst = Cluster(_lone([16] * 6, [400] * 6, [0.0] * 6), engine, GroupClock(3), ranks=3).run()
    assert burst.replica.tolist() == [0, 1, 2, 0, 1, 2]
    # rank 0's request ends long before the third arrives: within 100 ms of the counts it is not known yet
    w = _lone([16, 16, 16, 16], [1, 400, 400, 400], [0.0, 0.0, 0.05, 0.2])
    late = Cluster(w, engine, GroupClock(2), ranks=2).run()
    assert late.replica.tolist() == [0, 1, 0, 0]  # counted at 0.2 s: one running each, the first among equals


def test_a_busy_replica_is_passed_over_by_requests() -> None:
    engine = in_turn(plan(2000))
    w = _lone([16] * 3, [400, 1, 400], [0.0, 0.0, 1.0])
    result = Cluster(w, engine, GroupClock(2), replicas=2, ranks=2, router="least_requests").run()
    assert result.replica.tolist() == [0, 1, 3]  # the third goes to replica 1, whose turn is rank 1
