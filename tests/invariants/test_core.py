"""What must hold in every run of the core: scheduler, cache, replica, cluster."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.cost.event_loop import EventLoop
from engine_models.declaration import FrontEnd
from engine_models.memory.hybrid_kv import HybridKV
from engine_models.memory.paged_kv import Block, PagedKV
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.protocols import Run
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.drafted import DraftedScheduler
from engine_models.schedulers.staged import StagedScheduler
from engine_models.schedulers.windowed import WindowedScheduler
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import FINISHED, REJECTED, ClusterResult, Rows
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.invariants.core_cases import (
    CLOCK,
    LOOP,
    Case,
    cases,
    plain_workload,
    plan,
    plan_of,
    run,
    state_cases,
    windowed_cases,
    workload_of,
)

ROOT = Path(__file__).resolve().parents[2]


def digest(result: ClusterResult) -> str:
    """Everything that a run reports of its requests and of the steps of its ranks, bit for bit."""
    parts = [
        result.status,
        result.arrival_s,
        result.first_scheduled_s,
        result.first_token_s,
        result.end_s,
        result.cached_tokens,
        result.preemptions,
        result.replica,
    ]
    parts += [column for log in result.logs for _, column in sorted(log.records().items())]
    parts += [np.frombuffer(times) for log in result.logs for times in (log.end_s, log.sent_s)]
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


def emitted(result: ClusterResult) -> list[list[tuple[int, int]]]:
    """Log and step of every token, by request."""
    return [
        [(log, n) for log, first, last in result.emissions.of(row) for n in range(first, last + 1)]
        for row in range(len(result.emissions))
    ]


def jumped_equals_stepped(case: Case) -> None:
    jumped, stepped = run(case), run(case, aggregate=False)
    assert digest(jumped) == digest(stepped)
    assert emitted(jumped) == emitted(stepped)
    assert jumped.hit_tokens == stepped.hit_tokens


@settings(max_examples=examples(120), derandomize=True)
@given(cases())
def test_jumping_equals_stepping_bit_for_bit(case: Case) -> None:
    jumped_equals_stepped(case)


@settings(max_examples=examples(100), derandomize=True)
@given(windowed_cases())
def test_sliding_windows_jumped_equal_stepping_bit_for_bit(case: Case) -> None:
    jumped_equals_stepped(case)


@settings(max_examples=examples(100), derandomize=True)
@given(state_cases())
def test_states_jumped_equal_stepping_bit_for_bit(case: Case) -> None:
    jumped_equals_stepped(case)


@settings(max_examples=examples(60), derandomize=True)
@given(state_cases(feeds=("open",)))
def test_blocks_of_states_are_conserved_and_pieces_of_prompts_end_where_states_are_kept(case: Case) -> None:
    engine, workload = plan_of(case), workload_of(case)
    cluster = Cluster(workload, engine, RecordedClock(CLOCK))
    scheduler = engine.scheduler("step")
    kv, whole = scheduler.kv, scheduler.rules.max_num_batched_tokens >= 16
    assert isinstance(kv, HybridKV)
    most = (3 if case.caching else 1) * (len(kv.windows) - kv.first_state)

    def check(batch: Batch) -> None:
        for seq in scheduler.running:
            states = [block for table in kv._tables(seq)[kv.first_state :] for block in table.blocks if block is not None]
            assert len(states) <= most
            threshold = scheduler.rules.long_prefill_token_threshold
            if case.caching and whole and not threshold and 0 < seq.computed < min(seq.prompt_tokens, seq.length):
                assert seq.computed % 16 == 0

    replica = Replica([scheduler], RecordedClock(CLOCK), depth=case.depth, on_batch=check)
    rows = Rows(workload, engine.limits)
    for seq in cluster._sequences(rows, rows.accepted):
        replica.ranks[0].submit(seq)
    replica.advance(1e9)
    assert not replica.busy()
    assert kv.free_blocks == kv.capacity_blocks


@st.composite
def drafted_rules(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """Knobs of speculative decoding, and by how many tokens the context exceeds the longest request."""
    drafts = draw(st.integers(1, 5))
    switches = (
        "pads_lone_token",
        "first_admission_lookahead",
        "wasted_row_after_limit",
        "preempted_tokens_return",
        "drops_block",
    )
    return {
        "speculative_tokens": drafts,
        "lookahead_tokens": draw(st.sampled_from([0, drafts])),
        **{name: draw(st.booleans()) for name in switches},
    }, draw(st.sampled_from([1, 4, 4096]))


@settings(max_examples=examples(150), derandomize=True)
@given(cases(), drafted_rules(), st.floats(0, 1))
def test_drafts_jumped_equal_stepping_bit_for_bit(
    case: Case, drafted: tuple[dict[str, Any], int], acceptance: float
) -> None:
    rules, spare_tokens = drafted
    workload = workload_of(case)
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    rules["max_model_len"] = min(longest + spare_tokens, 4096)
    case = replace(case, knobs=(*case.knobs, *rules.items()), blocks=max(case.blocks, 60))
    assert isinstance(plan_of(case).scheduler("jump"), DraftedScheduler)
    assert not isinstance(plan_of(case).scheduler("step"), DraftedScheduler)
    streams = AcceptanceStreams(tuple(acceptance**i for i in range(1, rules["speculative_tokens"] + 1)), key=case.seed)
    jumped, stepped = (run(case, acceptance=streams.of, aggregate=a) for a in (True, False))
    assert digest(jumped) == digest(stepped)
    for row in range(case.requests):
        assert jumped.emissions.of(row) == stepped.emissions.of(row)
    assert jumped.hit_tokens == stepped.hit_tokens
    assert jumped.verifications == stepped.verifications
    assert jumped.verified_drafts == stepped.verified_drafts
    assert jumped.accepted_drafts == stepped.accepted_drafts


@settings(max_examples=examples(100), derandomize=True)
@given(cases(), st.integers(2, 4))
def test_pipelines_jumped_equal_stepping_bit_for_bit(case: Case, stages: int) -> None:
    engine = plan(case.blocks, stages, caching=case.caching, pipelined=True, **dict(case.knobs))
    engine = replace(engine, executor=replace(engine.executor, stages=stages))
    jumped, stepped = (
        Cluster(workload_of(case), engine, RecordedClock(CLOCK), replicas=case.replicas, aggregate=a).run()
        for a in (True, False)
    )
    assert digest(jumped) == digest(stepped)
    assert emitted(jumped) == emitted(stepped)
    assert jumped.hit_tokens == stepped.hit_tokens


@settings(max_examples=examples(80), derandomize=True)
@given(cases())
def test_requests_are_conserved_and_nothing_precedes_its_cause(case: Case) -> None:
    workload = workload_of(case)
    result = run(case)
    fits = (workload.prompt_tokens + result.output_tokens) <= case.blocks * 16 + 1
    assert np.array_equal(result.status == FINISHED, fits)
    assert np.array_equal(result.status == REJECTED, ~fits)
    done = result.status == FINISHED
    assert np.all(result.engine_arrival_s[done] >= result.arrival_s[done])
    assert np.all(result.first_scheduled_s[done] >= result.engine_arrival_s[done])
    assert np.all(result.first_token_s[done] > result.first_scheduled_s[done])
    assert np.all(result.end_s[done] >= result.first_token_s[done])
    assert np.all(result.cached_tokens[done] < workload.prompt_tokens[done])
    tokens = emitted(result)
    for row in np.flatnonzero(done):
        batches = [step for _, step in tokens[row]]
        assert len(batches) == result.output_tokens[row]
        assert batches == sorted(set(batches))
        assert result.end_s[row] == result.logs[result.replica[row]].sent_s[batches[-1]]
        before = workload.predecessor[row]
        if before >= 0:
            assert result.arrival_s[row] >= result.end_s[before] + workload.gap_s[row]
    for log in result.logs:
        ends = np.frombuffer(log.end_s, dtype=np.float64)
        sent = np.frombuffer(log.sent_s, dtype=np.float64)
        assert np.all(np.diff(ends) > 0)
        assert np.all(np.diff(sent) > 0)
        assert np.all(sent > ends)
        assert np.all(np.diff(log.column("start_s")) >= 0)
        assert log.column("steps").sum() == len(ends)


@settings(max_examples=examples(80), derandomize=True)
@given(cases(feeds=("open",)))
def test_blocks_are_conserved_and_steps_keep_to_their_budget(case: Case) -> None:
    engine, workload = plan_of(case), workload_of(case)
    cluster = Cluster(workload, engine, RecordedClock(CLOCK))
    scheduler = engine.scheduler("jump")
    kv, rules = scheduler.kv, scheduler.rules
    assert isinstance(kv, PagedKV)
    ends: list[float] = []

    def check(batch: Batch) -> None:
        shared, private = set(), 0
        for seq in scheduler.running:
            extra = seq.extra_blocks
            if seq.state == "decoding":
                computed = seq.offset + scheduler.decodes.steps - 1
                extra = -(-computed // kv.block_tokens) - len(seq.blocks)
            assert extra >= 0
            private += extra
            shared |= set(seq.blocks)
        assert all(block.holders > 0 for block in shared)
        assert private + len(shared) + kv.free_blocks == kv.capacity_blocks
        assert 0 < batch.tokens <= rules.max_num_batched_tokens
        assert batch.tokens == batch.decode_tokens + sum(new for new, _ in batch.prefill)
        assert batch.decode_rows + len(batch.prefill) <= rules.max_num_seqs
        assert len(scheduler.running) <= rules.max_num_seqs
        assert batch.t_sched <= batch.t_start < batch.t_end
        ends.append(batch.t_end)

    replica = Replica([scheduler], RecordedClock(CLOCK), depth=case.depth, on_batch=check)
    rows = Rows(workload, engine.limits)
    for seq in cluster._sequences(rows, rows.accepted):
        replica.ranks[0].submit(seq)
    replica.advance(1e9)
    assert not replica.busy()
    assert replica.ranks[0].in_service == 0
    assert kv.free_blocks == kv.capacity_blocks
    assert ends == sorted(ends)


@settings(max_examples=examples(80), derandomize=True)
@given(windowed_cases(feeds=("open",)))
def test_blocks_of_several_groups_are_conserved(case: Case) -> None:
    """Nobody shares a block here: after every batch the rows hold what their windows reach, all else is free and queued."""
    case = replace(case, shared=False)
    engine = plan_of(case)
    cluster = Cluster(workload_of(case), engine, RecordedClock(CLOCK))
    scheduler = engine.scheduler("jump")
    kv = scheduler.kv
    assert isinstance(kv, HybridKV)
    assert isinstance(scheduler, WindowedScheduler)
    lag = int(case.depth == 2 and kv.frees_processed)

    def check(batch: Batch) -> None:
        held = 0
        for seq in scheduler.running:
            if seq.state == "decoding":
                scheduled = seq.offset + scheduler.decodes.steps - 1
                for window in kv.windows:
                    # the last step moved the window to the token before, or with a batch in flight to the one before that
                    gone = max(0, scheduled - 1 - lag - window + 1) // 16 if window is not None else 0
                    held += -(-scheduled // 16) - gone
            else:
                held += kv.held(seq)
        queued = sum(1 if isinstance(entry, Block) else entry.blocks for entry in kv._queue)
        assert kv._plain_head + queued == kv.free_blocks
        assert held + kv.free_blocks == kv.capacity_blocks

    replica = Replica([scheduler], RecordedClock(CLOCK), depth=case.depth, on_batch=check)
    rows = Rows(workload_of(case), engine.limits)
    for seq in cluster._sequences(rows, rows.accepted):
        replica.ranks[0].submit(seq)
    replica.advance(1e9)
    assert not replica.busy()
    assert kv.free_blocks == kv.capacity_blocks


@settings(max_examples=examples(80), derandomize=True)
@given(cases(feeds=("open",)), st.sampled_from([0.0, 1e-4, 1e-2]), st.sampled_from([LOOP, None]))
def test_replicas_run_together_as_apart(case: Case, tokenise_token_s: float, loop: EventLoop | None) -> None:
    """Round robin does not look at the replicas: one clock for all gives what each by itself gives.

    A front end with a limit, however high, is asked at every arrival, so that nothing is dealt beforehand.
    """
    plan = replace(plan_of(case), front=FrontEnd(tokenise_token_s=tokenise_token_s, loop=loop))
    limited = replace(plan, front=replace(plan.front, inflight=10**9))
    apart, together = (
        Cluster(workload_of(case), of, RecordedClock(CLOCK), replicas=case.replicas).run()
        for of in (plan, limited)
    )
    assert digest(together) == digest(apart)


@settings(max_examples=examples(30), derandomize=True)
@given(cases(feeds=("open",)))
def test_littles_law_from_empty_to_empty(case: Case) -> None:
    """The integral of the number in the system equals the sum of the times in it (counted by its events)."""
    result = run(case)
    done = result.status == FINISHED
    if not done.any():
        return
    times = np.concatenate([result.arrival_s[done], result.end_s[done]])
    steps = np.concatenate([np.ones(done.sum()), -np.ones(done.sum())])
    order = np.lexsort((-steps, times))
    number = np.cumsum(steps[order])
    assert number.min() >= 0
    assert number[-1] == 0
    area = float((number[:-1] * np.diff(times[order])).sum())
    assert area == pytest.approx(float((result.end_s - result.arrival_s)[done].sum()), rel=1e-9)
    # and the replicas' own count of running rows never exceeds what is in the system
    for number_, log in enumerate(result.logs):
        mine = done & (result.replica == number_)
        held = log.column("running") + log.column("waiting")
        assert held.max(initial=0) <= mine.sum()


SERVICE_S = {"a": 0.01, "b": 0.0, "c": 0.0, "d": 0.0}  # a step takes 10 ms whatever it holds


def waiting_times(output: np.ndarray, load: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One row at a time: service is 10 ms an output token. Returns waits and services [s]."""
    service = 0.01 * output
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(service.mean() / load, len(output)))
    workload = plain_workload(arrival, np.full(len(output), 8), output)
    result = Cluster(workload, plan(1000, max_num_seqs=1), RecordedClock(SERVICE_S)).run()
    assert np.all(result.status == FINISHED)
    np.testing.assert_allclose(result.end_s - result.first_scheduled_s, service, rtol=1e-9)
    return result.first_scheduled_s - result.engine_arrival_s, service


def batch_means_interval(waits: np.ndarray, groups: int = 40) -> tuple[float, float]:
    """Mean and half width of its 99.9 % interval from batch means (t with 39 degrees of freedom: 3.56)."""
    means = waits[: len(waits) // groups * groups].reshape(groups, -1).mean(axis=1)
    return float(means.mean()), 3.56 * float(means.std(ddof=1)) / groups**0.5


@pytest.mark.parametrize("load", [pytest.param(0.4, marks=pytest.mark.slow), 0.7])
@pytest.mark.parametrize("law", ["constant", *(pytest.param(law, marks=pytest.mark.slow) for law in ("geometric", "two sizes"))])
def test_one_row_is_an_m_g_1_queue(law: str, load: float) -> None:
    """Pollaczek-Khinchine: mean wait = rate * E[S^2] / (2 (1 - load)); constant is M/D/1, geometric near M/M/1."""
    count = 40_000
    rng = np.random.default_rng(7)
    if law == "constant":
        output, second = np.full(count, 10), 0.1**2
    elif law == "geometric":
        output, second = rng.geometric(1 / 10, count), 0.01**2 * (2 - 0.1) / 0.1**2
    else:
        output, second = rng.choice([2, 30], count, p=[0.75, 0.25]), 0.01**2 * (0.75 * 4 + 0.25 * 900)
    waits, service = waiting_times(output, load, seed=11)
    rate = load / service.mean()
    expected = rate * second / (2 * (1 - load))
    mean, half = batch_means_interval(waits)
    assert abs(mean - expected) < half
    assert half < 0.25 * expected


def test_more_kv_never_completes_less_in_a_closed_loop() -> None:
    """Step time independent of the batch, no prefix caching: by any time, more blocks have completed as many or more."""
    rng = np.random.default_rng(3)
    n = 300
    arrival = np.full(n, np.nan)
    arrival[:24] = 0.0
    workload = plain_workload(np.zeros(n), rng.integers(20, 200, n), rng.integers(5, 80, n))
    predecessor = np.full(n, -1)
    predecessor[24:] = -2
    closed = {"arrival_s": arrival, "predecessor": predecessor, "duration_s": 1e6}
    object.__setattr__(workload, "arrival_s", closed["arrival_s"])
    object.__setattr__(workload, "predecessor", closed["predecessor"])
    object.__setattr__(workload, "duration_s", closed["duration_s"])
    makespans = []
    for blocks in (40, 60, 90, 140, 300, 2000):
        result = Cluster(workload, plan(blocks), RecordedClock(SERVICE_S)).run()
        assert np.all(result.status == FINISHED)
        makespans.append(float(result.end_s.max()))
    assert makespans == sorted(makespans, reverse=True)
    assert makespans[0] > 2 * makespans[-1]


PROGRAM = """
from tests.invariants.core_cases import Case, run
from tests.invariants.test_core import digest
knobs = dict(max_num_batched_tokens=100, max_num_seqs=16, policy="{policy}", chunked_prefill=True,
             long_prefill_token_threshold=0, watermark=0.0, reserve_full_prompt=False)
for feed in ("open", "sessions", "closed"):
    print(digest(run(Case(5, 60, 40.0, feed, True, True, 2, 2, 60, True, True, tuple(sorted(knobs.items()))))))
"""


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_same_seed_same_bytes_in_another_process(policy: str) -> None:
    outputs = []
    for hash_seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(policy=policy)],
            env=environment, cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0].split())) == 3


def test_a_refused_request_is_counted_as_rejected() -> None:
    workload = plain_workload(np.array([0.0, 0.1]), np.array([700, 50]), np.array([5, 5]))
    result = Cluster(workload, plan(40), RecordedClock(CLOCK)).run()
    assert result.status.tolist() == [REJECTED, FINISHED]


def test_a_run_over_stages_ends_with_its_proof() -> None:
    """Steps formed after the time up to which a run is proven are formed one by one, with the same ends."""
    until_s, taken = 0.2, set[int]()

    class Doubtful(StagedScheduler):
        def run(self) -> Run | None:
            found = super().run()
            if found is not None:
                found.until_s = until_s
            return found

        def take_turns(self, steps: int, flying: deque[Batch]) -> list[int]:
            taken.update(range(self.next_number, self.next_number + steps))
            return super().take_turns(steps, flying)

    rules = ContinuousRules(8192, 64, 4096, in_flight=2, pipelined=True)
    ends = []
    for kind in (Doubtful, StagedScheduler):
        batches: list[Batch] = []
        scheduler = kind(rules, PagedKV(1000, 16, prefix_caching=False))
        replica = Replica([scheduler], RecordedClock(CLOCK), depth=2, stages=2, on_batch=batches.append)
        for index in range(4):
            replica.ranks[0].submit(Sequence(index, 50, 60, 0.003 * index))
        replica.advance(1e9)
        ends.append(replica.ranks[0].log.end_s)
        if kind is Doubtful:
            late = {batch.number: batch.t_sched for batch in batches if batch.t_sched >= until_s}
            assert [*late] == [*range(max(taken) + 1, batches[-1].number + 1)]  # every one after those of the run
            assert min(late.values()) < until_s + 0.0122 < sorted(late.values())[1]  # from the first after that time on
    assert ends[0] == ends[1]
