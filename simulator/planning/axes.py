"""The axes of a sweep: what ``--vary`` says, and the points that follow.

    deployment.replicas=1,2,4            a list; each value is YAML, so quoted text, [lists] and {maps} may stand in it
    deployment.replicas=1:8              a range of numbers, both ends included; 0.5:2:0.25 names the step
    deployment.replicas=1:64:x2          a range by factors: 1, 2, 4, ... 64
    a,b=1:8,2:4                          linked fields: the pairs (1, 8) and (2, 4), not their product

Commas divide the values and, between linked fields, colons divide a value's parts; inside quotes, brackets and braces
both are plain text. A single field's value with a colon that is no range of numbers is taken as it stands.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    from simulator.config.located import Located

MAX_POINTS = 5_000_000
"""Most points of a sweep; assumed, a guard against slips of the keyboard."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(?::(x?)({_NUMBER}))?")
_OPEN, _CLOSE = "[{", "]}"


@dataclass(frozen=True)
class Axis:
    """One axis: the dotted `paths` that change together, and for each step the YAML text of each path's value."""

    paths: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Point:
    """One combination of the axes' values: YAML text by path, in the order of the axes."""

    index: int
    texts: tuple[tuple[str, str], ...]

    def overrides(self) -> list[str]:
        """The point as ``path=value`` texts, for `load_scenario`."""
        return [f"{path}={text}" for path, text in self.texts]

    def values(self) -> dict[str, Any]:
        """The values by path, as YAML reads them."""
        return {path: value_of(text) for path, text in self.texts}

    def label(self) -> str:
        """The point in words: ``deployment.replicas=4, workload.rate_scale=2``."""
        return ", ".join(self.overrides()) or "the scenario itself"


def value_of(text: str) -> Any:
    """Return what a value's text means; text that is no YAML stays text (the scenario's check will judge it)."""
    try:
        return _read(text).plain()
    except InputError:
        return text


def text_of(value: Any) -> str:
    """What one would type for a value, on one line: ``true``, ``{system: dynamo}``; the reverse of `value_of`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        from yaml import safe_dump

        return str(safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)).strip()
    return str(value)


@lru_cache(maxsize=1024)
def _read(text: str) -> Located:
    from simulator.config.located import read_yaml

    return read_yaml(text, "--vary", [])


def parse_axes(specs: Sequence[str]) -> tuple[Axis, ...]:
    """Return the axes of the ``--vary`` texts; InputError for an empty axis, or for one field named by two."""
    axes = tuple(parse_axis(spec) for spec in specs)
    _apart([(path, f"--vary {spec}") for spec, axis in zip(specs, axes, strict=True) for path in axis.paths])
    if count_of(axes) > MAX_POINTS:
        raise InputError(
            f"the axes span {count_of(axes):,} points, more than {MAX_POINTS:,}",
            where="--vary",
            mend="shorten the axes, or link fields that belong together: --vary a,b=1:8,2:4",
        )
    return axes


def count_of(axes: Sequence[Axis]) -> int:
    """Points of the grid; one without axes."""
    return math.prod(len(axis.steps) for axis in axes)


def point_at(axes: Sequence[Axis], index: int) -> Point:
    """One point of the grid, the last axis changing fastest."""
    places, left = [], index
    for axis in reversed(axes):
        left, place = divmod(left, len(axis.steps))
        places.append(place)
    pairs = [
        pair
        for axis, place in zip(axes, reversed(places), strict=True)
        for pair in zip(axis.paths, axis.steps[place], strict=True)
    ]
    return Point(index, tuple(pairs))


def parse_axis(spec: str) -> Axis:
    """Return the axis of one ``--vary`` text."""
    left, equals, right = spec.partition("=")
    paths = tuple(path.strip() for path in left.split(","))
    where = f"--vary {left.strip()}"
    if not equals or not all(path and all(path.split(".")) for path in paths):
        raise InputError(
            f"'{spec}' is not of the form path=value,value,...",
            where="--vary",
            mend="write, for example, --vary deployment.replicas=1,2,4 or --vary deployment.replicas=1:8",
        )
    if not right.strip():
        raise InputError(
            "the axis is empty", where=where, mend=f"give it values: --vary {left.strip()}=1,2,4"
        )
    items = _split(right, ",", where)
    if not all(items):
        raise InputError(
            f"a value is missing between the commas of '{right}'",
            where=where,
            mend="remove the extra comma; write null for a field left out, '' for empty text",
        )
    if len(paths) == 1:
        steps: tuple[tuple[str, ...], ...] = tuple((text,) for item in items for text in _range(item, where))
    else:
        steps = tuple(_parts(item, paths, where) for item in items)
    if len(set(steps)) < len(steps):
        twice, _ = Counter(steps).most_common(1)[0]
        raise InputError(f"the value {':'.join(twice)} stands twice", where=where, mend="keep one of the two")
    return Axis(paths, steps)


def _one_name(path: str) -> str:
    """One name a field: an only pool's fields are also the deployment's."""
    return re.sub(r"^deployment\.pools\.0\.(?=.)", "deployment.", path)


def _apart(named: list[tuple[str, str]]) -> None:
    named = [(_one_name(path), where) for path, where in named]
    for i, (path, where) in enumerate(named):
        for other, other_where in named[:i]:
            if path == other:
                raise InputError(
                    f"`{path}` is named by two axes: {other_where} and {where}",
                    where="--vary",
                    mend="join their values in one axis",
                )
            if path.startswith(f"{other}.") or other.startswith(f"{path}."):
                outer, inner = sorted((path, other), key=len)
                raise InputError(
                    f"`{inner}` is part of `{outer}`, and both are axes",
                    where="--vary",
                    mend="vary one of the two, or link them in one axis",
                )


def _split(text: str, divider: str, where: str) -> list[str]:
    """Divide `text` at each `divider` outside quotes, brackets and braces."""
    parts, start, depth, quote = [], 0, 0, ""
    for i, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and (depth or not text[start:i].strip()):
            quote = sign
        elif sign in _OPEN:
            depth += 1
        elif sign in _CLOSE:
            depth -= 1
        elif sign == divider and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    if quote or depth:
        what = "quote" if quote else "bracket"
        raise InputError(f"a {what} in '{text}' is not closed", where=where, mend=f"close the {what}")
    return [*parts, text[start:].strip()]


def _parts(item: str, paths: tuple[str, ...], where: str) -> tuple[str, ...]:
    parts = tuple(_split(item, ":", where))
    if len(parts) != len(paths) or not all(parts):
        example = ":".join(str(i + 1) for i in range(len(paths)))
        raise InputError(
            f"'{item}' gives {len(parts)} values for {len(paths)} linked fields",
            where=where,
            mend=f"write {len(paths)} values joined by colons, as {example}; quote a value that holds a colon",
        )
    return parts


def _range(item: str, where: str) -> list[str]:
    """Values of one item: those of a range of numbers, else the item itself."""
    found = _RANGE.fullmatch(item.replace(" ", ""))
    if found is None:
        return [item]
    first, last, factor, by = found.groups()
    low, high = float(first), float(last)
    step = float(by) if by is not None else 1.0
    if high < low or (factor and low <= 0):
        raise InputError(
            f"the range {item} is empty",
            where=where,
            mend=f"write {last}:{first}" if high < low else "begin a range by factors above zero",
        )
    if step <= (1.0 if factor else 0.0):
        raise InputError(
            f"the range {item} never ends", where=where, mend="use a factor above 1, or a step above 0"
        )
    length = math.log(high / low) / math.log(step) if factor else (high - low) / step
    count = math.floor(length + 1e-9) + 1
    if count > MAX_POINTS:
        raise InputError(f"the range {item} holds {count:,} values", where=where, mend="use a larger step")
    whole = all(re.fullmatch(r"[-+]?\d+", text) for text in (first, last, by or "1"))
    values = [low * step**i if factor else low + step * i for i in range(count)]
    return [str(round(v)) if whole else f"{v:.12g}" for v in values]
