"""`dataclass` that finishes a class when it is first used: what it makes behaves as a class of the standard library does."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hardware_profiles import records


def classes(decorate: Any) -> SimpleNamespace:
    """The same classes, made by one decorator or the other."""

    @decorate(frozen=True)
    class Point:
        x: float
        y: float = 2.0

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError("below zero")

    @decorate(frozen=True)
    class Named(Point):
        name: str = "here"
        said: tuple[str, ...] = field(default=(), compare=False)
        hidden: int = field(default=0, repr=False)

    @decorate
    class Heap:
        items: list[int] = field(default_factory=list)

    @decorate(frozen=True, kw_only=True)
    class Single:
        value: int

    @decorate(frozen=True, eq=False)
    class Alone:
        value: int

    @decorate(frozen=True)
    class OwnText:
        value: int

        def __repr__(self) -> str:
            return "own"

    class Below(Named):
        def twice(self) -> float:
            return 2 * self.x

    return SimpleNamespace(
        Point=Point, Named=Named, Heap=Heap, Single=Single, Alone=Alone, OwnText=OwnText, Below=Below
    )


BEHAVIOUR: dict[str, Callable[[SimpleNamespace], Any]] = {
    "text": lambda c: repr([c.Point(1), c.Named(1, 3, "a", ("b",), 4), c.Heap([1]), c.Single(value=1), c.OwnText(1), c.Below(1)]),
    "equal": lambda c: [c.Point(1) == c.Point(1.0, 2), c.Point(1) == c.Point(2), c.Point(1) == 1, c.Alone(1) == c.Alone(1)],
    "equal by one field": lambda c: [c.Single(value=1) == c.Single(value=1), c.Single(value=1) == c.Single(value=2)],
    "equal but for fields": lambda c: [c.Named(1, said=("a",)) == c.Named(1), c.Named(1, hidden=1) == c.Named(1)],
    "of one class": lambda c: [c.Below(1) == c.Below(1), c.Below(1) == c.Named(1), c.Point(1) == c.Named(1)],
    "hash": lambda c: [hash(c.Point(1)), hash(c.Named(1, said=("a",))), hash(c.Single(value=3)), len({c.Alone(1), c.Alone(1)})],
    "own lists": lambda c: [c.Heap().items is c.Heap().items, c.Heap() == c.Heap()],
    "replaced": lambda c: repr(replace(c.Named(1), name="there")),
    "fields": lambda c: [[each.name for each in fields(c.Named)], [each.name for each in fields(c.Below)]],
    "told": lambda c: [is_dataclass(c.Heap), is_dataclass(c.Below), is_dataclass(int)],
    "values": lambda c: [dataclasses.asdict(c.Named(1)), dataclasses.astuple(c.Below(1))],
    "matched": lambda c: c.Named.__match_args__ if c.Named(1) else None,
    "inherited first": lambda c: [c.Below(1).twice(), c.Named(3).y, c.Point(4).x],
}


@pytest.mark.parametrize("what", BEHAVIOUR)
def test_a_class_behaves_as_one_of_the_standard_library(what: str) -> None:
    look = BEHAVIOUR[what]
    assert look(classes(records.dataclass)) == look(classes(dataclass))


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda c: setattr(c.Point(1), "x", 2), FrozenInstanceError),
        (lambda c: setattr(c.Below(1), "x", 2), FrozenInstanceError),
        (lambda c: delattr(c.Named(1), "x"), FrozenInstanceError),
        (lambda c: c.Point(), TypeError),
        (lambda c: c.Single(1), TypeError),
        (lambda c: c.Point(-1), ValueError),
        (lambda c: hash(c.Heap()), TypeError),
    ],
)
@pytest.mark.parametrize("decorate", [records.dataclass, dataclass])
def test_a_class_refuses_the_same(
    decorate: Any, act: Callable[[SimpleNamespace], Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        act(classes(decorate))


def test_a_class_is_finished_when_it_is_first_used() -> None:
    made = classes(records.dataclass)
    assert "__match_args__" not in vars(made.Point)
    made.Named(1)
    assert "__match_args__" in vars(made.Point)
    assert "__match_args__" not in vars(made.Heap)


@records.dataclass(frozen=True)
class Sent:
    """Goes to another process."""

    value: int


def test_an_object_is_whole_in_a_process_that_made_none(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(pickle.dumps([Sent(1), Sent(1)]))
    code = f"""
import pickle, sys
from pathlib import Path
sys.path += [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
one, other = pickle.loads(Path({str(sent)!r}).read_bytes())
assert one == other and hash(one) == hash(other) and repr(one) == "Sent(value=1)"
try:
    one.value = 2
except AttributeError:
    raise SystemExit(0)
raise SystemExit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_may_use_a_class_first_at_once() -> None:
    for _ in range(50):
        made, found = classes(records.dataclass), []
        gate = threading.Barrier(4)

        def use(
            made: SimpleNamespace = made, found: list[Any] = found, gate: threading.Barrier = gate
        ) -> None:
            gate.wait()
            found.append(made.Named(1))

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [made.Named(1)] * 4
