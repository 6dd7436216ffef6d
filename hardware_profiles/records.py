"""`dataclass` as in the standard library, but a class is finished when it is first used, not when it is defined.

What `dataclasses` writes and compiles for a class takes a third of a millisecond, and a run defines more than a hundred classes,
of which a quarter is never used. Here a class is finished when its first object is made or unpickled, or when somebody asks for
its fields, and nothing is compiled to compare, hash and print objects. Then it is a dataclass like any other. Type checkers see
`dataclasses.dataclass` itself, which compiled modules and classes with slots use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from reprlib import recursive_repr
from threading import RLock
from typing import TYPE_CHECKING, Any

_PUT_OFF = ("__init__", "__setstate__", "__dataclass_fields__")
_SHARED = ("__eq__", "__hash__", "__repr__")
_unfinished: dict[type, dict[str, bool]] = {}
"""Classes that nobody used yet, with the options of each."""
_finishing = RLock()


def _put_off(cls: type | None = None, /, **options: bool) -> Any:
    """Decorate `cls`, with options of `dataclasses.dataclass`."""
    if cls is None:
        return lambda cls: _put_off(cls, **options)
    if any(name in vars(cls) for name in (*_PUT_OFF, *_SHARED)):
        return dataclasses.dataclass(**options)(cls)

    def first(self: Any, *args: Any, **kwargs: Any) -> None:
        _finish(cls)
        cls.__init__(self, *args, **kwargs)  # type: ignore[misc]

    def unpickled(self: Any, state: dict[str, Any]) -> None:
        _finish(cls)
        vars(self).update(state)

    for name, stand_in in zip(_PUT_OFF, (first, unpickled, _Fields()), strict=True):
        setattr(cls, name, stand_in)
    _unfinished[cls] = options
    return cls


class _Fields:
    """Stands for the fields of a class until somebody asks for them."""

    def __get__(self, instance: object, owner: type) -> Any:
        for cls in owner.__mro__:
            _finish(cls)
        return owner.__dataclass_fields__  # type: ignore[attr-defined]


def _finish(cls: type) -> None:
    """Make a dataclass of `cls`, if it is none yet."""
    with _finishing:
        options = _unfinished.pop(cls, None)
        if options is None:
            return
        for name in _PUT_OFF:
            delattr(cls, name)
        made: Any = dataclasses.dataclass(**{**options, "eq": False, "repr": False})(cls)
        fields = dataclasses.fields(made)
        made.__repr__ = _printed(tuple(each.name for each in fields if each.repr))
        if options.get("eq", True):
            values = _values(tuple(each.name for each in fields if each.compare))
            made.__eq__ = _equal(values)
            made.__hash__ = (lambda self: hash(values(self))) if options.get("frozen") else None


def _values(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What returns the attributes of these names."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda one: tuple(getattr(one, name) for name in names)


def _equal(values: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any, Any], bool]:
    def __eq__(self: Any, other: Any) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _printed(names: tuple[str, ...]) -> Callable[[Any], str]:
    @recursive_repr("...")
    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    dataclass = _put_off
