"""Workers that collect in windows of their own: worked cases, exact runs, nobody lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.worker_groups import WorkerGroups
from engine_models.schedulers.worker_windows import Collectors, WindowRules
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int]
"""Arrival [s], prompt and output tokens."""


class Served:
    """What became of requests."""

    def __init__(
        self, rules: WindowRules, asked: list[Asked], *, at_once: bool = True, aggregate: bool = False
    ) -> None:
        self.ends: dict[int, float] = {}
        self.seqs = [Sequence(index, prompt, output, at) for index, (at, prompt, output) in enumerate(asked)]
        scheduler = WorkerGroups(
            Collectors(rules), rules.workers, 100_000, at_once=at_once, aggregate=aggregate
        )
        replica = Replica([scheduler], RecordedClock(CLOCK), on_finish=self._ended)
        for seq in self.seqs:
            replica.advance(seq.arrival_s)
            replica.ranks[0].submit(seq)
        replica.advance(INFINITY)
        scheduler.close()
        self.log = replica.ranks[0].log
        self.tokens = [[n for a, b in seq.ranges() for n in range(a, b + 1)] for seq in self.seqs]

    def _ended(self, seq: Sequence, now_s: float) -> None:
        self.ends[seq.index] = now_s


def test_a_window_begins_when_the_worker_is_free_and_not_with_a_request() -> None:
    """Windows of 50 ms follow each other from zero: who comes at 120 ms is taken at 150."""
    collectors = Collectors[str](WindowRules(1, 8, 0.05))
    collectors.add(0.12, "a")
    ((at_s, worker, requests, reason),) = collectors.until(1.0)
    assert (at_s, worker, requests, reason) == (pytest.approx(0.15), 0, ["a"], "window")
    collectors.free(0, 0.175)
    collectors.add(0.19, "b")
    assert collectors.wakes_s() == INFINITY
    assert not collectors.until(0.2)
    assert collectors.wakes_s() == pytest.approx(0.225)


def test_a_full_batch_does_not_wait_for_the_window() -> None:
    collectors = Collectors[int](WindowRules(1, 2, 0.05))
    for number in range(3):
        collectors.add(0.01 + 0.001 * number, number)
    ((at_s, _, requests, reason),) = collectors.until(1.0)
    assert (at_s, requests, reason) == (0.011, [0, 1], "full")
    assert [request for _, request in collectors.queue] == [2]


def test_two_open_windows_share_the_requests() -> None:
    """Two workers that poll by turns take one each, and both batches stay small."""
    collectors = Collectors[int](WindowRules(2, 8, 0.05))
    for number in range(4):
        collectors.add(0.0105 + 0.0021 * number, number)
    assert sorted(formed.requests for formed in collectors.until(1.0)) == [[0, 2], [1, 3]]


def test_at_one_time_who_polled_or_was_free_first_goes_first() -> None:
    """Two windows end at 50 ms; who polled first before that goes first. Free at one time, they collect in that order."""
    collectors = Collectors[str](WindowRules(2, 8, 0.05))
    for at_s, name in ((0.0007, "a"), (0.0098, "b"), (0.0109, "c")):
        collectors.add(at_s, name)
    assert [(formed.worker, formed.requests) for formed in collectors.until(1.0)] == [(1, ["b"]), (0, ["a", "c"])]
    collectors.free(1, 0.1)
    collectors.free(0, 0.1)
    collectors.add(0.1305, "d")
    assert [(formed.worker, formed.requests) for formed in collectors.until(1.0)] == [(1, ["d"])]


def test_a_poll_that_ends_when_a_request_comes_still_gets_it() -> None:
    """Polls of 1 ms since 3.6 and since 3.8 ms: who comes at 4.6 ms goes to the first, which has polled longer."""
    collectors = Collectors[str](WindowRules(2, 8, 0.05))
    for at_s, name in ((0.0036, "a"), (0.0038, "b"), (0.0046, "c")):
        collectors.add(at_s, name)
    assert sorted(formed.requests for formed in collectors.until(1.0)) == [["a", "c"], ["b"]]


def test_of_windows_that_end_together_the_first_is_whose_last_poll_began_first() -> None:
    """Three take five requests by turns: the third's is the oldest poll."""
    collectors = Collectors[int](WindowRules(3, 8, 0.05))
    for number in range(5):
        collectors.add(0.0, number)
    assert [formed.requests for formed in collectors.until(1.0)] == [[2], [0, 3], [1, 4]]


def test_age_is_looked_at_when_a_request_is_taken() -> None:
    """The worker is busy for 0.4 s: who came at 0.05 has then waited too long, who came at 0.2 has not."""
    collectors = Collectors[str](WindowRules(1, 1, 0.0, 0.3))
    collectors.add(0.0, "a")
    assert len(collectors.until(0.0)) == 1
    collectors.add(0.05, "b")
    collectors.add(0.2, "c")
    collectors.free(0, 0.4)
    ((_, _, requests, _),) = collectors.until(0.4)
    assert (requests, collectors.lost) == (["c"], [("b", "expired")])


def test_answers_of_a_batch_are_seen_together_unless_they_are_streamed() -> None:
    asked = [(0.0, 10, 3), (0.0, 10, 20)]
    rules = WindowRules(1, 2, 0.01)
    together, streamed = Served(rules, asked), Served(rules, asked, at_once=False)
    assert together.ends[0] == together.ends[1] == streamed.ends[1] > streamed.ends[0]
    assert [len(set(tokens)) for tokens in together.tokens] == [1, 1]
    assert [len(tokens) for tokens in together.tokens] == [3, 20]


def test_workers_take_turns_on_the_device() -> None:
    """Two requests of 50 tokens, each with a worker: their steps alternate, and both end when one worker would end the second."""
    asked = [(0.0, 10, 50), (0.001, 10, 50)]
    alone, both = (Served(WindowRules(workers, 1, 0.0), asked) for workers in (1, 2))
    assert both.ends[0] > 1.9 * alone.ends[0]
    assert both.ends[1] == pytest.approx(alone.ends[1], rel=0.02)


@given(
    st.builds(
        WindowRules,
        st.integers(1, 3),
        st.integers(1, 5),
        st.sampled_from([0.0, 0.02, 0.1]),
        st.sampled_from([0.2, 5.0, INFINITY]),
    ),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 150), st.integers(1, 120)), min_size=1, max_size=15),
    st.booleans(),
)
@settings(max_examples=examples(60))
def test_runs_equal_steps_and_nobody_is_lost(rules: WindowRules, asked: list[Asked], at_once: bool) -> None:
    asked.sort()
    jumped, stepped = (Served(rules, asked, at_once=at_once, aggregate=each) for each in (True, False))
    assert jumped.tokens == stepped.tokens
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in stepped.log.records().items():
        np.testing.assert_array_equal(jumped.log.records()[name], column, err_msg=name)
    for seq, tokens in zip(stepped.seqs, stepped.tokens, strict=True):
        assert seq.state in ("finished", "expired")
        assert len(tokens) == (seq.final_length - seq.prompt_tokens if seq.state == "finished" else 0)
