"""Triton's batcher: timelines worked by hand from the lines of its source (core at 73aad7c), exact runs, nobody lost.

Lines are those of `src/dynamic_batch_scheduler.cc` unless another file is named.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.dynamic_batcher import BatcherRules, DynamicBatcher, QueuePolicy
from engine_models.schedulers.worker_groups import WorkerGroups
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int]
"""Arrival [s], prompt and output tokens."""


def batches(
    rules: BatcherRules, arrivals_s: list[float], length_s: float = 0.1, until_s: float = 10.0
) -> tuple[list[tuple[float, list[int]]], dict[int, str]]:
    """When instances take which requests, where a batch takes `length_s`; and who gets no answer."""
    batcher = DynamicBatcher[int](rules)
    for number, arrival_s in enumerate(arrivals_s):
        batcher.add(arrival_s, number)
    taken: list[tuple[float, list[int]]] = []
    ends: list[tuple[float, int]] = []
    now_s = 0.0
    while now_s <= until_s:
        for formed in batcher.until(now_s):
            taken.append((round(formed.at_s, 6), formed.requests))
            ends.append((formed.at_s + length_s, formed.worker))
        ends.sort()
        while ends and ends[0][0] <= now_s + 0.001:
            end_s, worker = ends.pop(0)
            batcher.free(worker, end_s)
        now_s += 0.001
    return taken, dict(batcher.lost)


def test_without_a_delay_a_batch_is_what_came_while_the_instance_was_busy() -> None:
    """619-620: all that is pending goes. r0 finds the instance idle; r1 is a batch that waits for it and grows by r2 and r3 (517,
    576) until it is taken at 100 ms; r4 has another."""
    found, _ = batches(BatcherRules(1, 8, (8,)), [0.0, 0.01, 0.02, 0.03, 0.15])
    assert found == [(0.0, [0]), (0.1, [1, 2, 3]), (0.2, [4])]


def test_batches_are_formed_ahead_for_twice_the_instances() -> None:
    """613-616: eight saturate a batch; rate_limiter.cc 228: two may wait for one instance, the rest stays in the queue."""
    found, _ = batches(BatcherRules(1, 8, (8,)), [0.0] + [0.01 + 0.001 * i for i in range(20)])
    assert [len(requests) for _, requests in found] == [1, 8, 8, 4]
    assert [at_s for at_s, _ in found] == [0.0, 0.1, 0.2, 0.3]


def test_a_preferred_number_goes_at_once_and_fewer_wait_for_the_delay() -> None:
    """Preferred 4, 100 ms. 579-580, 596-602: with r3 four are there and go at 30 ms. r4 and r5 wait (647) until r4 has waited
    100 ms (591, 619), at 135; the instance, free at 130, takes them then. r6 alone goes at 300."""
    rules = BatcherRules(1, 8, (4,), 0.1)
    found, _ = batches(rules, [0.0, 0.01, 0.02, 0.03, 0.035, 0.04, 0.2])
    assert found == [(0.03, [0, 1, 2, 3]), (0.135, [4, 5]), (0.3, [6])]


def test_a_batch_that_nobody_takes_grows_and_takes_older_ones_along() -> None:
    """Preferred 2, 50 ms, the instance is busy for a second. r2 and r3 are a batch at 20 ms. r4 wakes nobody (280); with r5 there
    are two, of which one may still join: 4 are more than all preferred sizes (541-545, 596-602). r5 is a batch of its own at 90,
    and, as it has waited 50 ms, joins the other when the instance takes that (instance_queue.cc 84). r6 comes too late."""
    found, _ = batches(
        BatcherRules(1, 8, (2,), 0.05), [0.0, 0.001, 0.01, 0.02, 0.03, 0.04, 0.99], length_s=1.0
    )
    assert found[:2] == [(0.001, [0, 1]), (1.001, [2, 3, 4, 5])]
    assert found[2][1] == [6]


def test_who_waits_too_long_or_finds_the_queue_full_gets_no_answer() -> None:
    """Two may wait, 50 ms each, so nothing is formed ahead (scheduler_utils.cc 364). r3 finds two (175: 503). When the
    instance is free, at 100 ms, r1 and r2 have waited longer than 50 ms (239): rejected. r4 goes at once."""
    policy = QueuePolicy(2, 0.05)
    found, lost = batches(BatcherRules(1, 8, (8,), 0.0, (policy,)), [0.0, 0.01, 0.02, 0.03, 0.105])
    assert found == [(0.0, [0]), (0.105, [4])]
    assert lost == {1: "expired", 2: "expired", 3: "shed"}


def test_who_waits_too_long_goes_behind_all_others_if_so_told() -> None:
    """DELAY (scheduler_utils.cc 241): r1 waits beyond 50 ms, r2 does not, and a batch of one takes r2 first."""
    policy = QueuePolicy(0, 0.05, "DELAY")
    found, lost = batches(BatcherRules(1, 1, (1,), 0.0, (policy,)), [0.0, 0.01, 0.09])
    assert ([requests for _, requests in found], lost) == ([[0], [2], [1]], {})


def test_the_first_priority_goes_first() -> None:
    batcher = DynamicBatcher[str](BatcherRules(1, 1, (1,), 0.0, (QueuePolicy(), QueuePolicy()), 2))
    assert not batcher.rules.prefetches
    batcher.add(0.0, "first")
    batcher.add(0.01, "low", 2)
    batcher.add(0.02, "high", 1)
    assert [formed.requests for formed in batcher.until(0.05)] == [["first"]]
    batcher.free(0, 0.1)
    assert [formed.requests for formed in batcher.until(0.1)] == [["high"]]


class Served:
    """What became of requests before a model."""

    def __init__(self, rules: BatcherRules, asked: list[Asked], *, at_once: bool, aggregate: bool) -> None:
        self.ends: dict[int, float] = {}
        self.seqs = [
            Sequence(index, prompt, output, at, priority=index % 3)
            for index, (at, prompt, output) in enumerate(asked)
        ]
        former = DynamicBatcher[Sequence](rules)
        scheduler = WorkerGroups(former, rules.instances, 100_000, at_once=at_once, aggregate=aggregate)
        replica = Replica([scheduler], RecordedClock(CLOCK), on_finish=self._ended)
        for seq in self.seqs:
            replica.advance(seq.arrival_s)
            replica.ranks[0].submit(seq)
        replica.advance(INFINITY)
        assert not replica.busy()
        scheduler.close()
        self.log = replica.ranks[0].log
        self.tokens = [[n for a, b in seq.ranges() for n in range(a, b + 1)] for seq in self.seqs]

    def _ended(self, seq: Sequence, now_s: float) -> None:
        self.ends[seq.index] = now_s


@st.composite
def loads(draw: st.DrawFn) -> tuple[BatcherRules, list[Asked]]:
    """Small batchers with and without delays, preferred sizes, priorities and policies."""
    rows = draw(st.integers(1, 6))
    preferred = draw(st.lists(st.integers(1, rows), min_size=1, max_size=3, unique=True))
    policy = st.builds(
        QueuePolicy,
        st.sampled_from([0, 0, 3]),
        st.sampled_from([0.0, 0.0, 0.3]),
        st.sampled_from(["REJECT", "DELAY"]),
    )
    policies = tuple(draw(st.lists(policy, min_size=1, max_size=2)))
    if draw(st.booleans()):
        policies = (QueuePolicy(),)
    rules = BatcherRules(
        draw(st.integers(1, 3)),
        rows,
        tuple(sorted(preferred)),
        draw(st.sampled_from([0.0, 0.05, 0.4])),
        policies,
        len(policies),
    )
    asked = draw(
        st.lists(
            st.tuples(st.floats(0, 3), st.integers(1, 150), st.integers(1, 120)), min_size=1, max_size=15
        )
    )
    return rules, sorted(asked)


@given(loads(), st.booleans())
@settings(max_examples=examples(60))
def test_runs_equal_steps_and_nobody_is_lost(load: tuple[BatcherRules, list[Asked]], at_once: bool) -> None:
    rules, asked = load
    jumped, stepped = (Served(rules, asked, at_once=at_once, aggregate=each) for each in (True, False))
    assert jumped.tokens == stepped.tokens
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in stepped.log.records().items():
        np.testing.assert_array_equal(jumped.log.records()[name], column, err_msg=name)
    rejects = any(policy.max_queue_size or policy.timeout_s for policy in rules.policies)
    for seq, tokens in zip(stepped.seqs, stepped.tokens, strict=True):
        assert seq.state == "finished" or (rejects and seq.state in ("expired", "shed"))
        assert len(tokens) == (seq.final_length - seq.prompt_tokens if seq.state == "finished" else 0)


@pytest.mark.slow
@given(loads(), st.booleans())
@settings(max_examples=examples(1500))
def test_runs_equal_steps_in_many_batchers(load: tuple[BatcherRules, list[Asked]], at_once: bool) -> None:
    rules, asked = load
    jumped, stepped = (Served(rules, asked, at_once=at_once, aggregate=each) for each in (True, False))
    assert (jumped.tokens, jumped.ends) == (stepped.tokens, stepped.ends)
