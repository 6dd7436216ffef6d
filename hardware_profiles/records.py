"""`dataclass` as in the standard library, but a class is finished when it is first used, not when it is defined.

What `dataclasses` writes and compiles for a class takes a third of a millisecond, and a run defines more than a hundred classes,
of which a quarter is never used. Here a class is finished when its first object is made or unpickled, or when somebody asks for
its fields, and nothing is compiled to make, compare, hash and print objects. Then it is a dataclass like any other. What cannot
wait (classes that order or hash by flag, have slots, methods of these names or a base that restores its objects itself) is left
to `dataclasses`. Type checkers see `dataclasses.dataclass` itself, which compiled modules and classes with slots use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from reprlib import recursive_repr
from threading import RLock
from typing import TYPE_CHECKING, Any, Generic

_PUT_OFF = ("__init__", "__setstate__", "__dataclass_fields__")
_OWN = (*_PUT_OFF[:2], "__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__", "__slots__")
"""Attributes of a class with which it is not put off."""
_CAN_WAIT = ("frozen", "eq", "kw_only")
_FINISHED = ("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__doc__")
_unfinished: dict[type, tuple[dict[str, bool], dict[str, Any]]] = {}
"""Classes that nobody used yet, with the options of each and the fields that say more than a default."""
_finishing = RLock()


def _put_off(cls: type | None = None, /, **options: bool) -> Any:
    """Decorate `cls`, with options of `dataclasses.dataclass`."""
    if cls is None:
        return lambda cls: _put_off(cls, **options)
    own = vars(cls)
    at_once = any(name in own for name in _OWN) or any(name not in _CAN_WAIT for name in options)
    if at_once or not own.get("__annotations__") or Generic in cls.__bases__ or _restored(cls):
        return dataclasses.dataclass(**options)(cls)

    def first(self: Any, *args: Any, **kwargs: Any) -> None:
        _finish(cls)
        cls.__init__(self, *args, **kwargs)  # type: ignore[misc]

    def unpickled(self: Any, state: dict[str, Any]) -> None:
        _finish(cls)
        vars(self).update(state)

    told = {name: value for name, value in own.items() if value.__class__ is dataclasses.Field}
    for name, value in told.items():
        _set_default(cls, name, value)
    for name, stand_in in zip(_PUT_OFF, (first, unpickled, _Fields()), strict=True):
        setattr(cls, name, stand_in)
    _unfinished[cls] = options, told
    return cls


def _restored(cls: type) -> bool:
    """Whether a base says how its objects are restored, which a stand-in would hide."""
    return any("__setstate__" in vars(base) and base not in _unfinished for base in cls.__mro__[1:])


def _set_default(cls: type, name: str, told: Any) -> None:
    """Leave the default of a field in its place, as `dataclasses` does."""
    if told.default is dataclasses.MISSING:
        delattr(cls, name)
    else:
        setattr(cls, name, told.default)


class _Fields:
    """Stands for the fields of a class until somebody asks for them."""

    def __get__(self, instance: object, owner: type) -> Any:
        for cls in owner.__mro__:
            _finish(cls)
        return owner.__dataclass_fields__  # type: ignore[attr-defined]


def _finish(cls: type) -> None:
    """Make a dataclass of `cls`, if it is none yet.

    It is made of a twin, so that other threads find stand-ins, which wait here, until all is there: `__init__` comes last.
    """
    with _finishing:
        if cls not in _unfinished:
            return
        options, told = _unfinished[cls]
        own = vars(cls)
        for base in cls.__mro__[1:]:
            _finish(base)
        names = ("__module__", "__qualname__", "__doc__", "__post_init__", "__annotations__", *own["__annotations__"])
        body = {name: own[name] for name in names if name in own} | told
        frozen, below = options.get("frozen", False), _below_frozen(cls)  # only what must be is frozen: that is compiled
        nothing = {"init": False, "eq": False, "repr": False, "frozen": below and frozen}
        made: Any = dataclasses.dataclass(**{**options, **nothing})(type(cls)(cls.__name__, cls.__bases__, body))
        fields = dataclasses.fields(made)
        for name in _FINISHED:
            setattr(cls, name, vars(made)[name])
        params: Any = cls.__dataclass_params__  # type: ignore[attr-defined]
        params.init = params.repr = True
        params.eq, params.frozen = options.get("eq", True), frozen
        if frozen:
            _freeze(cls, frozenset(each.name for each in fields))
        cls.__repr__ = _printed(tuple(each.name for each in fields if each.repr))  # type: ignore[method-assign,assignment]
        if options.get("eq", True):
            cls.__eq__ = _equal(_values(tuple(each.name for each in fields if each.compare)))  # type: ignore[method-assign,assignment]
            hashed = tuple(each.name for each in fields if (each.compare if each.hash is None else each.hash))
            cls.__hash__ = _hashed(_values(hashed)) if frozen else None  # type: ignore[method-assign,assignment]
        cls.__init__ = _made(cls.__qualname__, fields, object.__setattr__ if frozen else setattr)  # type: ignore[misc]
        del cls.__setstate__  # type: ignore[attr-defined]
        del _unfinished[cls]


def _below_frozen(cls: type) -> bool:
    """Whether a base is frozen: `dataclasses` lets all above and below be so, or none."""
    told = [vars(base).get("__dataclass_params__") for base in cls.__mro__[1:]]
    return any(params.frozen for params in told if params is not None)


def _made(of: str, fields: tuple[dataclasses.Field[Any], ...], put: Callable[[Any, str, Any], None]) -> Callable[..., None]:
    """What makes an object of the class `of` of its fields, as `dataclasses` would write it."""
    in_turn = tuple(each.name for each in fields if not each.kw_only)
    told = tuple((each.name, each.default, each.default_factory) for each in fields)
    missing = dataclasses.MISSING

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        if len(args) > len(in_turn):
            raise TypeError(f"{of}.__init__() takes {len(in_turn)} positional arguments but {len(args)} were given")
        values = dict(zip(in_turn, args, strict=False))
        if given:
            if not given.keys().isdisjoint(values):
                raise TypeError(f"{of}.__init__() got several values for {sorted(given.keys() & values)}")
            values.update(given)
        left = len(values)
        for name, default, factory in told:
            if name in values:
                put(self, name, values[name])
                left -= 1
            elif default is not missing:
                put(self, name, default)
            elif factory is not missing:
                put(self, name, factory())
            else:
                raise TypeError(f"{of}.__init__() lacks {name!r}")
        if left:
            unknown = sorted(values.keys() - {name for name, _, _ in told})
            raise TypeError(f"{of}.__init__() got an unexpected keyword argument {unknown[0]!r}")
        after = getattr(self, "__post_init__", None)
        if after is not None:
            after()

    return __init__


def _values(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What returns the attributes of these names."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda one: tuple(getattr(one, name) for name in names)


def _freeze(cls: Any, names: frozenset[str]) -> None:
    """Objects of a frozen class refuse that something is set or deleted; those of a class below it may have more."""

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    cls.__setattr__, cls.__delattr__ = __setattr__, __delattr__


def _hashed(values: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], int]:
    return lambda self: hash(values(self))


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
