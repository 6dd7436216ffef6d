"""A soft budget of tokens: exact runs, timelines worked by hand from the source."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.parts.sequence import Sequence
from engine_models.schedulers.soft_budget import SoftBudgetRules, SoftBudgetScheduler
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Served

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int]
"""Arrival [s], prompt and output tokens."""


def served(rows: int, asked: list[Asked], *, aggregate: bool = False, record: bool = False) -> Served:
    """What becomes of requests within a budget of 256 tokens."""
    scheduler = SoftBudgetScheduler(SoftBudgetRules(rows, 256), aggregate=aggregate, record_rows=record)
    return Served(scheduler, asked, RecordedClock(CLOCK))


loads = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.3]), st.integers(1, 400), st.integers(1, 90)), min_size=1, max_size=25)


@settings(max_examples=examples(40), derandomize=True)
@given(st.sampled_from([1, 3, 6, 16]), loads)
def test_runs_equal_steps(rows: int, load: list[tuple[float, int, int]]) -> None:
    at_s, asked = 0.0, []
    for gap_s, prompt, output in load:
        at_s += gap_s
        asked.append((at_s, prompt, output))
    jumped, stepped = (served(rows, asked, aggregate=aggregate) for aggregate in (True, False))
    assert jumped.tokens == stepped.tokens
    assert [len(tokens) for tokens in jumped.tokens] == [output for _, _, output in asked]
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in jumped.log.records().items():
        assert column.tolist() == stepped.log.records()[name].tolist(), name
    assert jumped.scheduler.state() == (0, 0, 0, rows)


def test_a_timeline_of_the_budget() -> None:
    """query_state_table.cc:50-103: in order of arrival, the limit of 256 is looked at behind each: 100 + 100 + 100 go, the
    fourth waits."""
    found = served(6, [(0.0, 100, 2)] * 4, record=True)
    assert found.rows() == [
        [(0, 100, 0), (1, 100, 0), (2, 100, 0)],
        [(0, 1, 100), (1, 1, 100), (2, 1, 100), (3, 100, 0)],
        [(3, 1, 100)],
    ]


def test_a_timeline_of_a_long_prompt() -> None:
    """The same lines: 900 tokens are taken whole, since they are counted behind; who came before decodes beside, who came after
    waits."""
    found = served(6, [(0.0, 20, 3), (0.001, 900, 2), (0.002, 30, 2)], record=True)
    assert found.rows() == [
        [(0, 20, 0)],
        [(0, 1, 20), (1, 900, 0)],
        [(0, 1, 21), (1, 1, 900), (2, 30, 0)],
        [(2, 1, 30)],
    ]


def test_a_timeline_of_caches() -> None:
    """inference_worker.cc:131-152: as many caches as queries; here a third waits for one (for a thread of the HTTP server)."""
    found = served(2, [(0.0, 10, 2), (0.0, 10, 4), (0.0, 10, 1)], record=True)
    assert [[index for index, _, _ in rows] for rows in found.rows()] == [[0, 1], [0, 1], [1, 2], [1]]


def test_a_request_can_be_dropped() -> None:
    scheduler = SoftBudgetScheduler(SoftBudgetRules(2, 256))
    seqs = [Sequence(index, 300, 5, 0.0) for index in range(3)]
    for seq in seqs:
        scheduler.add(seq)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.settle(batch)
    assert all(scheduler.cancel(seq) for seq in seqs)
    assert not scheduler.has_work()
    assert scheduler.state() == (0, 0, 0, 2)
