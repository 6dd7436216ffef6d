"""Ranges of batches in which a request emits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine_models.parts.sequence import Sequence


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
