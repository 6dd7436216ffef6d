from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.errors import InputError
from simulator.cli.sweep import short_names
from simulator.planning.axes import count_of, parse_axes, parse_axis, point_at, text_of, value_of


def steps(spec: str) -> list[str]:
    return [":".join(step) for step in parse_axis(spec).steps]


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("a=1,2,4", ["1", "2", "4"]),
        ("a=1:8", list("12345678")),
        ("a=1:64:x2", ["1", "2", "4", "8", "16", "32", "64"]),
        ("a=1:10:4", ["1", "5", "9"]),
        ("a=0.5:2:0.5", ["0.5", "1", "1.5", "2"]),
        ("a=1:3,8", ["1", "2", "3", "8"]),
        (
            "a=bf16,'x, y',[1, 2],{kind: poisson, rate: 3}",
            ["bf16", "'x, y'", "[1, 2]", "{kind: poisson, rate: 3}"],
        ),
        ("a=12:30x", ["12:30x"]),
        ("a=it's,1", ["it's", "1"]),
        ("a,b=1:8,2:4", ["1:8", "2:4"]),
        ("a,b='x:y':2", ["'x:y':2"]),
    ],
)
def test_what_an_axis_says(spec: str, values: list[str]) -> None:
    assert steps(spec) == values


@pytest.mark.parametrize("text", ["{system: dynamo, policy: kv}", "[1, 2]", "null", "true", "0.5", "round_robin"])
def test_a_value_is_shown_as_it_is_typed(text: str) -> None:
    assert text_of(value_of(text)) == text


def test_linked_fields_make_pairs_and_axes_make_a_grid() -> None:
    axes = parse_axes(["a,b=1:8,2:4", "c=x,y"])
    assert [point_at(axes, index).values() for index in range(count_of(axes))] == [
        {"a": 1, "b": 8, "c": "x"},
        {"a": 1, "b": 8, "c": "y"},
        {"a": 2, "b": 4, "c": "x"},
        {"a": 2, "b": 4, "c": "y"},
    ]


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        (["a="], "empty"),
        (["a"], "not of the form"),
        (["=1"], "not of the form"),
        (["a..b=1"], "not of the form"),
        (["a=1,,2"], "missing between the commas"),
        (["a=1,2,"], "missing between the commas"),
        (["a=8:1"], "is empty"),
        (["a=0:8:x2"], "is empty"),
        (["a=1:8:x1"], "never ends"),
        (["a=1:8:0"], "never ends"),
        (["a=1:1e9"], "holds"),
        (["a=1:10000", "b=1:1000"], "span"),
        (["a,b=1,2"], "linked fields"),
        (["a,b=1:2:3"], "linked fields"),
        (["a=[1,2"], "not closed"),
        (["a=1,2,1"], "stands twice"),
        (["a=1", "a=2"], "two axes"),
        (["a,a=1:2"], "two axes"),
        (["deployment.replicas=1,2", "deployment.pools.0.replicas=3"], "two axes"),
        (["a=1", "a.b=2"], "part of"),
    ],
)
def test_bad_axes_are_refused_in_words(specs: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_axes(specs)
    assert words in caught.value.message
    assert caught.value.mend


@given(st.integers(1, 50), st.integers(0, 200), st.integers(1, 9))
def test_a_range_holds_what_python_s_range_holds(first: int, length: int, step: int) -> None:
    last = first + length
    assert steps(f"a={first}:{last}:{step}") == [str(v) for v in range(first, last + 1, step)]


@given(st.integers(1, 20), st.integers(0, 12), st.integers(2, 5))
def test_a_range_by_factors_ends_at_its_end(first: int, powers: int, factor: int) -> None:
    last = first * factor**powers
    if last > 10**9:
        return
    values = [int(v) for v in steps(f"a={first}:{last}:x{factor}")]
    assert values == [first * factor**i for i in range(powers + 1)]
    assert math.isclose(values[-1], last)


@pytest.mark.parametrize(
    ("paths", "titles"),
    [
        (("deployment.replicas", "workload.arrivals.rate"), ["replicas", "rate"]),
        (("deployment.pools.0.replicas", "deployment.pools.1.replicas"), ["pools.0.replicas", "pools.1.replicas"]),
        (("workload.prompt_tokens.mean", "workload.output_tokens.mean"), ["prompt_tokens.mean", "output_tokens.mean"]),
        (("deployment.replicas", "deployment.pools.0.replicas"), ["deployment.replicas", "pools.0.replicas"]),
    ],
)
def test_titles_are_as_short_as_is_clear(paths: tuple[str, ...], titles: list[str]) -> None:
    assert list(short_names(paths).values()) == titles
