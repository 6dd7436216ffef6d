"""What decode rows attend to in windows: exact sums beside the sum over the rows."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.parts.batch import Batch, Span
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.sequence import Sequence
from tests.effort import examples

WINDOWS = (5, 40, 128)


def row(order: int, tokens: int, output_tokens: int) -> Sequence:
    seq = Sequence(order, tokens, output_tokens, 0.0)
    seq.order = order
    return seq


def spans_of(lengths: list[int]) -> tuple[Span, ...]:
    """Row by row."""
    return tuple(Span(w, sum(min(n, w) for n in lengths), sum(n < w for n in lengths)) for w in WINDOWS)


@settings(max_examples=examples(150), derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("join"), st.integers(1, 200)),
            st.tuples(st.just("leave"), st.integers(0, 20)),
            st.tuples(st.just("step"), st.integers(1, 60)),
        ),
        max_size=40,
    )
)
def test_sums_are_those_over_the_rows(events: list[tuple[str, int]]) -> None:
    """Rows join, leave, return and grow; asked for or not, the sums are right, and alike steps are so."""
    decodes = DecodeSet(16, WINDOWS)
    rows: list[Sequence] = []
    left: list[Sequence] = []
    for number, (what, value) in enumerate(events):
        if what == "join":
            seq = left.pop() if left and value % 3 == 0 else row(number, value, 100_000)
            decodes.join(seq)
            rows.append(seq)
        elif what == "leave" and rows:
            seq = rows.pop(value % len(rows))
            decodes.leave(seq)
            left.append(seq)
        elif what == "step":
            if value % 2:
                lengths = [decodes.length(seq) for seq in rows]
                assert decodes.spans() == spans_of(lengths)
                for step in range(min(decodes.steps_alike(), 200)):
                    grown = spans_of([n + step for n in lengths])
                    assert [(s.tokens + s.grows * step) for s in decodes.spans()] == [s.tokens for s in grown]
            decodes.steps += value
    assert decodes.spans() == spans_of([decodes.length(seq) for seq in rows])


def test_rows_served_one_by_one_add_up_to_the_same() -> None:
    decodes, alone = DecodeSet(16, WINDOWS), Batch(0)
    alone.spans = decodes.no_spans
    for number, length in enumerate((3, 5, 6, 39, 127, 128, 500)):
        decodes.join(row(number, length, 100))
        alone.serve(1, length - 1, decodes=True)
    together = Batch(0)
    decodes.serve(together)
    assert together.spans == alone.spans
    assert (together.decode_rows, together.decode_kv_tokens) == (alone.decode_rows, alone.decode_kv_tokens)
    assert together.tokens == together.decode_tokens == alone.tokens
    alone.serve(7, 0, decodes=False)
    assert together.spans == alone.spans


def test_a_set_without_windows_names_none() -> None:
    decodes, batch = DecodeSet(16), Batch(0)
    decodes.join(row(0, 10, 5))
    decodes.serve(batch)
    assert batch.spans == decodes.no_spans == ()
    assert decodes.steps_alike() == decodes.steps_to_next_end() == 5


@settings(max_examples=examples(150), derandomize=True)
@given(
    st.lists(st.integers(1, 100), max_size=9), st.sampled_from((1, 2, 16)), st.integers(0, 40), st.integers(1, 200)
)
def test_blocks_over_many_steps_are_those_of_each(lengths: list[int], size: int, before: int, steps: int) -> None:
    decodes = DecodeSet(size)
    decodes.steps = before
    for number, length in enumerate(lengths):
        decodes.join(row(number, length, 500))
    so_far = list(accumulate(decodes.taken_by_step(steps)))
    assert decodes.taken_over(steps) == (so_far[-1], sum(so_far))
