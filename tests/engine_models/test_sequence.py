"""Ranges of batches in which a request emits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine_models.parts.sequence import Sequence
from engine_models.schedulers.staged import Lane


@given(
    st.integers(0, 6), st.integers(-3, 25), st.lists(st.integers(0, 25), unique=True).map(sorted), st.booleans()
)
def test_ranges_between_pauses_are_those_of_single_batches(
    joined: int, last: int, pauses: list[int], begun: bool
) -> None:
    """One call notes each batch after the latest range up to the last but for the pauses, as `emit` one by one does."""
    at_once, one_by_one = Sequence(0, 10, 40, 0.0), Sequence(0, 10, 40, 0.0)
    for seq in (at_once, one_by_one):
        seq.emit(joined, joined if begun else joined - 1)
    at_once.emit_between(last, pauses)
    for number in range(joined + begun, last + 1):
        if number not in pauses:
            one_by_one.emit(number, number)
    assert at_once.emissions == one_by_one.emissions
    assert at_once.emitted_tokens() == sum(end - begin + 1 for begin, end in at_once.ranges())


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(1, 3)), max_size=8),
    st.integers(0, 8),
    st.integers(0, 3),
)
def test_a_row_of_a_lane_emits_with_each_batch_since_it_joined(
    runs: list[tuple[int, int, int]], joins_before: int, gap: int
) -> None:
    """Runs of batches: how many go by before, how many there are, and the turns of other lanes between."""
    lane, in_lane, one_by_one = Lane(16), Sequence(0, 10, 40, 0.0), Sequence(0, 10, 40, 0.0)
    place, since, number = None, list[int](), 0
    for at, (before, count, turns) in enumerate(runs):
        if at == joins_before:
            place = lane.place()
            number += gap
            if number:  # what it had before it joined
                in_lane.emit(number - 1, number - 1)
                one_by_one.emit(number - 1, number - 1)
        batches = range(number + before, number + before + count * turns, turns)
        lane.served(batches)
        number = batches[-1] + 1
        if place is not None:
            since += batches
    lane.emit(in_lane, place if place is not None else lane.place())
    for each in since:
        one_by_one.emit(each, each)
    assert in_lane.emissions == one_by_one.emissions
