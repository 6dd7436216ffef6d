"""Groups padded to the longest and computed until the last ends: their steps, runs, and what fails for lack of memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.static import StaticScheduler
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int]
"""Arrival [s], prompt and output tokens."""


class Served:
    """What became of requests, and the batches."""

    def __init__(
        self,
        rows: int,
        tokens: int,
        asked: list[Asked],
        *,
        windows: tuple[int, ...] = (),
        aggregate: bool = False,
    ):
        self.batches: list[Batch] = []
        self.ends: dict[int, float] = {}
        self.seqs = [Sequence(index, prompt, output, at) for index, (at, prompt, output) in enumerate(asked)]
        scheduler = StaticScheduler(rows, tokens, windows=windows, aggregate=aggregate)
        replica = Replica(
            [scheduler], RecordedClock(CLOCK), on_finish=self._ended, on_batch=self.batches.append
        )
        for seq in self.seqs:
            replica.advance(seq.arrival_s)
            replica.ranks[0].submit(seq)
        replica.advance(float("inf"))
        scheduler.close()
        self.log = replica.ranks[0].log
        self.tokens = [[n for a, b in seq.ranges() for n in range(a, b + 1)] for seq in self.seqs]

    def _ended(self, seq: Sequence, now_s: float) -> None:
        self.ends[seq.index] = now_s


def test_a_group_costs_as_its_longest_until_its_last_ends() -> None:
    """Prompts of 10 and 50 tokens are computed as 2 x 50; when the first has ended, its row still is."""
    served = Served(8, 10_000, [(0.0, 10, 2), (0.0, 50, 5)])
    first, *rest = served.batches
    assert (first.tokens, first.padded_tokens, first.prefill) == (60, 100, [(50, 0), (50, 0)])
    assert [(batch.decode_tokens, batch.padded_tokens, batch.decode_kv_tokens) for batch in rest] == [
        (2, 2, 2 * 51),
        (1, 2, 2 * 52),
        (1, 2, 2 * 53),
        (1, 2, 2 * 54),
    ]
    assert [len(tokens) for tokens in served.tokens] == [2, 5]
    assert served.ends[0] < served.ends[1]


def test_a_group_hears_no_arrival() -> None:
    """A request that arrives during the first step waits for the end of the group, though there are rows left."""
    served = Served(8, 10_000, [(0.0, 50, 40), (0.001, 5, 1)])
    assert served.seqs[1].first_scheduled_s == served.ends[0]


def test_groups_are_no_larger_than_asked_for() -> None:
    served = Served(2, 10_000, [(0.0, 10, 3)] * 5)
    assert [len(batch.prefill) for batch in served.batches if batch.prefill] == [2, 2, 1]


def test_a_group_that_outgrows_the_memory_fails_as_a_whole() -> None:
    """Two rows of 100 tokens: 30 + 20 tokens fill them; who had ended before keeps the answer, the next group is served."""
    served = Served(3, 150, [(0.0, 30, 5), (0.0, 20, 60), (0.0, 10, 60), (0.01, 10, 3)])
    assert [seq.state for seq in served.seqs] == ["finished", "dropped", "dropped", "finished"]
    assert [len(tokens) for tokens in served.tokens] == [5, 20, 20, 3]
    assert served.seqs[3].first_scheduled_s == served.ends[1]


@given(
    st.integers(1, 5),
    st.sampled_from([300, 700, 100_000]),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 150), st.integers(1, 120)), min_size=1, max_size=15),
    st.sampled_from([(), (40,), (20, 60)]),
)
@settings(max_examples=examples(60))
def test_runs_equal_steps(rows: int, tokens: int, asked: list[Asked], windows: tuple[int, ...]) -> None:
    asked.sort()
    jumped, stepped = (Served(rows, tokens, asked, windows=windows, aggregate=each) for each in (True, False))
    assert jumped.tokens == stepped.tokens
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in stepped.log.records().items():
        np.testing.assert_array_equal(jumped.log.records()[name], column, err_msg=name)
