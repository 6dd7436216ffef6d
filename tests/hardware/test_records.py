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
from typing import Any, Generic, TypeVar

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

    @decorate(frozen=True, slots=True)
    class Slim:
        value: int

    @decorate(order=True)
    class Ranked:
        value: int

    @decorate(unsafe_hash=True)
    class Counted:
        value: int

    @decorate(repr=False)
    class Silent:
        value: int

    @decorate(frozen=True)
    class Apart:
        value: int
        seen: int = field(default=0, compare=False, hash=True)
        left: int = field(default=0, hash=False)

    T = TypeVar("T")

    @decorate(frozen=True)
    class Boxed(Generic[T]):
        value: int

    return SimpleNamespace(
        Point=Point, Named=Named, Heap=Heap, Single=Single, Alone=Alone, OwnText=OwnText, Below=Below, Slim=Slim,
        Ranked=Ranked, Counted=Counted, Silent=Silent, Apart=Apart, Boxed=Boxed,
    )


def set_on(one: Any, name: str, value: Any) -> Any:
    """The object, with an attribute more."""
    setattr(one, name, value)
    return one


BEHAVIOUR: dict[str, Callable[[SimpleNamespace], Any]] = {
    "made": lambda c: [list(vars(c.Named(hidden=1, x=2)).items()), vars(c.Single(value=1)), vars(c.Below(1, name="a"))],
    "text": lambda c: repr([c.Point(1), c.Named(1, 3, "a", ("b",), 4), c.Heap([1]), c.Single(value=1), c.OwnText(1), c.Below(1)]),
    "equal": lambda c: [c.Point(1) == c.Point(1.0, 2), c.Point(1) == c.Point(2), c.Point(1) == 1, c.Alone(1) == c.Alone(1)],
    "equal by one field": lambda c: [c.Single(value=1) == c.Single(value=1), c.Single(value=1) == c.Single(value=2)],
    "equal but for fields": lambda c: [c.Named(1, said=("a",)) == c.Named(1), c.Named(1, hidden=1) == c.Named(1)],
    "of one class": lambda c: [c.Below(1) == c.Below(1), c.Below(1) == c.Named(1), c.Point(1) == c.Named(1)],
    "hash": lambda c: [hash(c.Point(1)), hash(c.Named(1, said=("a",))), hash(c.Single(value=3)), len({c.Alone(1), c.Alone(1)})],
    "own lists": lambda c: [c.Heap().items is c.Heap().items, c.Heap() == c.Heap()],
    "replaced": lambda c: repr(replace(c.Named(1), name="there")),
    "fields": lambda c: [[each.name for each in fields(c.Named)], [each.name for each in fields(c.Below)]],
    "options": lambda c: [repr(one.__dataclass_params__) for one in (c.Point, c.Named, c.Heap, c.Alone) if fields(one)],
    "told": lambda c: [is_dataclass(c.Heap), is_dataclass(c.Below), is_dataclass(int)],
    "values": lambda c: [dataclasses.asdict(c.Named(1)), dataclasses.astuple(c.Below(1))],
    "matched": lambda c: c.Named.__match_args__ if c.Named(1) else None,
    "slots": lambda c: [repr(c.Slim(1)), c.Slim(1) == c.Slim(1), hash(c.Slim(1)), hasattr(c.Slim(1), "__dict__")],
    "ordered": lambda c: [c.Ranked(1) < c.Ranked(2), c.Ranked(2) <= c.Ranked(1)],
    "hashed by flag": lambda c: hash(c.Counted(1)),
    "text of its own accord": lambda c: "value" in repr(c.Silent(1)),
    "hashed by field": lambda c: [hash(c.Apart(1, 2, 3)), c.Apart(1, 2) == c.Apart(1, 3), c.Apart(1, 2) == c.Apart(1, 2, 1)],
    "of any type": lambda c: repr(c.Boxed(1)),
    "values of a class": lambda c: [c.Point.y, c.Named.said, c.Named.hidden, hasattr(c.Heap, "items"), hasattr(c.Point, "x")],
    "more than its fields": lambda c: vars(set_on(c.Below(1), "extra", 2))["extra"],
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
        (lambda c: setattr(c.Point(1), "other", 2), FrozenInstanceError),
        (lambda c: delattr(c.Below(1), "other"), AttributeError),
        (lambda c: c.Point(), TypeError),
        (lambda c: c.Single(1), TypeError),
        (lambda c: c.Single(), TypeError),
        (lambda c: c.Point(1, 2, 3), TypeError),
        (lambda c: c.Point(1, x=2), TypeError),
        (lambda c: c.Named(1, size=2), TypeError),
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


@records.dataclass(frozen=True)
class Empty:
    """Has nothing to say."""


class Restored:
    """Says itself how its objects are sent and restored."""

    def __getstate__(self) -> tuple[int]:
        return (vars(self)["value"],)

    def __setstate__(self, state: tuple[int]) -> None:
        vars(self)["value"] = state[0]


@records.dataclass
class Kept(Restored):
    """Is restored as the class above it says."""

    value: int


def test_an_object_is_whole_in_a_process_that_made_none(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(pickle.dumps([Sent(1), Sent(1), Empty(), Empty(), Kept(2), Kept(2)]))
    code = f"""
import pickle, sys
from pathlib import Path
sys.path += [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
one, other, *more = pickle.loads(Path({str(sent)!r}).read_bytes())
assert more[0] == more[1] and more[2] == more[3] and more[2].value == 2
assert one == other and hash(one) == hash(other) and repr(one) == "Sent(value=1)"
try:
    one.value = 2
except AttributeError:
    raise SystemExit(0)
raise SystemExit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_may_use_classes_first_at_once() -> None:
    def alike(number: int) -> Any:
        body = {"__module__": __name__, "__qualname__": f"C{number}", "__annotations__": {f"f{i}": "int" for i in range(8)}}
        return records.dataclass(frozen=True)(type(f"C{number}", (), body))

    made, gate, wrong = [alike(number) for number in range(300)], threading.Barrier(4), list[Exception]()

    def use() -> None:
        gate.wait()
        for kind in made:
            try:
                one, other = kind(*range(8)), kind(*range(8))
                assert one == other
                assert hash(one) == hash(other)
                assert len(fields(kind)) == 8
            except Exception as error:
                wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong, wrong[0]
