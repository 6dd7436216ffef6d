"""YAML with positions: every value remembers the file and line it was read from.

Values follow YAML 1.2's core schema, so that ``1e3`` is a number and ``on`` is a word. The reader walks the
parser's events with its own stack and counts what aliases expand to, so that neither deep nesting nor an
"alias bomb" can exhaust the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import yaml

from hardware_profiles.errors import InputError

MAX_FILE_BYTES = 5_000_000
"""Longest scenario file [bytes]; assumed, far above any scenario written by hand."""
MAX_NODES = 100_000
"""Most values in a scenario with its aliases expanded; assumed, as above."""
MAX_DEPTH = 64
"""Deepest nesting; assumed, the schema needs fewer than ten levels."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_BASED = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((sign + inf for sign in ("", "+") for inf in (".inf", ".Inf", ".INF")), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_LONGEST_NUMBER = 64  # characters; longer digits stay text, which no numeric key accepts
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Located:
    """One value and its place.

    Parameters
    ----------
    value : a scalar, ``dict[str, Located]`` or ``list[Located]``.
    where : the place for a person, such as ``scenario.yaml:14`` or ``--set deployment.replicas``. An entry of
        a mapping stands where its key stands.
    size : number of values inside, itself included, aliases expanded.
    """

    value: Any
    where: str
    size: int = 1

    def plain(self) -> Any:
        """Return the value without positions."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def mapping(children: dict[str, Located], where: str) -> Located:
    """Return a mapping node of `children`."""
    return Located(children, where, 1 + sum(child.size for child in children.values()))


def sequence(children: list[Located], where: str) -> Located:
    """Return a sequence node of `children`."""
    return Located(children, where, 1 + sum(child.size for child in children))


def read_yaml(text: str, name: str, problems: list[InputError]) -> Located:
    """Parse one YAML document, `name` being the file's name in messages.

    Duplicate keys and numbers that are not finite are appended to `problems`, the reading goes on; syntax
    errors and documents beyond the limits raise InputError.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of a command line that are no text
        line = text.count("\n", 0, error.start) + 1
        raise InputError(
            "it holds bytes that are not UTF-8", where=f"{name}:{line}", mend="write the value as UTF-8"
        ) from None
    loader = _LOADER(text)
    try:
        return _Reader(loader, name, problems).document()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, name) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise InputError(
            f"character {error.character!r} is not allowed in YAML",
            where=f"{name}:{line}",
            mend="save the file as plain UTF-8 text",
        ) from None
    finally:
        loader.dispose()


def locate_data(data: Any, name: str, problems: list[InputError], _path: tuple[str, ...] = ()) -> Located:
    """Return plain Python `data` (dicts, sequences, scalars, numpy scalars, paths) as a tree of places.

    The place of a value is `name` and its dotted path. Raises InputError for anything else.
    """
    where = f"{name}: {'.'.join(_path)}" if _path else name
    if len(_path) > MAX_DEPTH:
        raise InputError(f"nested deeper than {MAX_DEPTH} levels", where=where, mend="flatten the data")
    if isinstance(data, Mapping):
        return mapping(
            {str(k): locate_data(v, name, problems, (*_path, str(k))) for k, v in data.items()}, where
        )
    if isinstance(data, PathLike):
        return Located(str(data), where)
    if data is None or isinstance(data, str | bool | int | float):
        if isinstance(data, float):
            data = _checked_number(float(data), where, problems)
        return Located(data, where)
    if isinstance(data, Sequence) and not isinstance(data, bytes | bytearray):
        return sequence([locate_data(v, name, problems, (*_path, str(i))) for i, v in enumerate(data)], where)
    if hasattr(data, "item") and getattr(data, "ndim", 0) == 0:
        return locate_data(data.item(), name, problems, _path)
    raise InputError(
        f"a value of type {type(data).__name__} cannot stand in a scenario",
        where=where,
        mend="use numbers, text, true or false, lists and dicts",
    )


def _checked_number(number: float, where: str, problems: list[InputError]) -> float:
    if not math.isfinite(number):
        word = "NaN" if math.isnan(number) else "infinity"
        problems.append(
            InputError(
                f"{word} is not a number a scenario can use", where=where, mend="write a finite number"
            )
        )
    return number


class _Reader:
    def __init__(self, loader: Any, name: str, problems: list[InputError]) -> None:
        self.loader = loader
        self.name = name
        self.problems = problems
        self.anchors: dict[str, Located | None] = {}
        self.read = 0

    def document(self) -> Located:
        self.loader.get_event()  # start of the stream
        if self.loader.check_event(yaml.StreamEndEvent):
            raise InputError(
                "the file is empty", where=self.name, mend="write a scenario: model, deployment, workload"
            )
        self.loader.get_event()  # start of the document
        root = self.node(0)
        self.loader.get_event()  # its end
        if not self.loader.check_event(yaml.StreamEndEvent):
            event = self.loader.get_event()
            raise InputError(
                "a second document begins here",
                where=self.place(event),
                mend="keep one scenario a file, without '---'",
            )
        return root

    def place(self, event: Any) -> str:
        return f"{self.name}:{event.start_mark.line + 1}"

    def node(self, depth: int, where: str | None = None) -> Located:
        event = self.loader.get_event()
        here = where or self.place(event)
        if depth > MAX_DEPTH:
            raise InputError(
                f"nested deeper than {MAX_DEPTH} levels", where=self.place(event), mend="flatten the scenario"
            )
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, here)
        if event.anchor is not None:
            self.anchors[event.anchor] = None  # not yet complete: an alias to it from inside is a loop
        if isinstance(event, yaml.ScalarEvent):
            found = Located(self.scalar(event), here)
        elif isinstance(event, yaml.MappingStartEvent):
            self.plain_tag(event, "map")
            found = self.mapping(here, depth)
        else:
            self.plain_tag(event, "seq")
            children = []
            while not self.loader.check_event(yaml.SequenceEndEvent):
                children.append(self.node(depth + 1))
            self.loader.get_event()
            found = sequence(children, here)
        self.check_size(found, event)
        if event.anchor is not None:
            self.anchors[event.anchor] = found
        return found

    def alias(self, event: Any, where: str) -> Located:
        if event.anchor not in self.anchors:
            raise InputError(
                f"alias *{event.anchor} names no anchor",
                where=self.place(event),
                mend=f"define &{event.anchor} above, or put the text in quotes",
            )
        target = self.anchors[event.anchor]
        if target is None:
            raise InputError(
                f"alias *{event.anchor} contains itself", where=self.place(event), mend="write the value out"
            )
        found = Located(target.value, where, target.size)
        self.check_size(found, event)
        return found

    def check_size(self, node: Located, event: Any) -> None:
        self.read += 1
        if node.size > MAX_NODES or self.read > MAX_NODES:
            raise InputError(
                f"the document holds more than {MAX_NODES} values once its aliases are expanded",
                where=self.place(event),
                mend="remove the nested aliases, or move long lists into a trace or a lengths file",
            )

    def mapping(self, where: str, depth: int) -> Located:
        children: dict[str, Located] = {}
        lines: dict[str, int] = {}
        merged: list[Located] = []
        while not self.loader.check_event(yaml.MappingEndEvent):
            event = self.loader.get_event()
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                raise InputError("a key must be a word", where=self.place(event), mend="write `name: value`")
            key = event.value
            child = self.node(depth + 1, self.place(event))
            if key == "<<" and event.implicit[0]:
                merged += child.value if isinstance(child.value, list) else [child]
            elif key in children:
                self.problems.append(
                    InputError(
                        f"key `{key}` stands twice, in lines {lines[key]} and {line}",
                        where=self.place(event),
                        mend="keep one of the two",
                    )
                )
            else:
                children[key] = child
                lines[key] = line
        self.loader.get_event()
        for base in merged:
            if not isinstance(base.value, dict):
                raise InputError(
                    "`<<` merges mappings only", where=base.where, mend="name an anchor of a mapping"
                )
            for key, child in base.value.items():
                children.setdefault(key, child)
        return mapping(children, where)

    def plain_tag(self, event: Any, kind: str) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            raise InputError(
                f"tag {event.tag.replace(_TAG, '!!')} is not understood",
                where=self.place(event),
                mend="remove the tag",
            )

    def scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.tag not in (None, "!"):
            kind = event.tag.removeprefix(_TAG)
            if kind not in ("str", "int", "float", "bool", "null"):
                self.plain_tag(event, "str")
            if kind == "str":
                return text
            value = float(text) if kind == "float" and _FLOAT.fullmatch(text) else scalar(text)
        elif event.implicit[0]:
            value = scalar(text)
        else:
            return text
        if isinstance(value, float):
            _checked_number(value, self.place(event), self.problems)
        return value


def scalar(text: str) -> Any:
    """Return what the plain scalar `text` means in YAML 1.2's core schema (``_`` between digits allowed).

    >>> scalar("1e3"), scalar("yes"), scalar("0x10"), scalar("1_000"), scalar("12ms")
    (1000.0, 'yes', 16, 1000, '12ms')
    """
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER or text[0] not in "+-.0123456789":
        return text
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return text


def _syntax_error(error: yaml.MarkedYAMLError, text: str, name: str) -> InputError:
    mark: Any = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.split("\n")
    here = lines[line - 1] if line <= len(lines) else ""
    context: Any = error.context_mark or mark
    started = context.line + 1 if context else 1
    at_end = not any(rest.strip() for rest in lines[line:]) and (not here.strip() or line > len(lines))
    problem = error.problem or "not valid YAML"
    if "\t" in here[: len(here) - len(here.lstrip())]:
        words, mend = "a tab stands in the indentation", "indent with spaces"
    elif "duplicate anchor" in problem:
        words, mend = problem, "give each anchor its own name"
    elif error.context and ("flow" in error.context or "quoted" in error.context):
        what = "quoted text" if "quoted" in error.context else "bracket"
        end = "the file ends" if at_end or "end of stream" in problem else "something else follows"
        # After a bracket without an entry the parser names the place of the missing entry, not of the bracket.
        opened = "" if error.context.endswith("flow node") else f" opened in line {started}"
        words, mend = f"{end} before the {what}{opened} is closed", f"close the {what}"
    elif "mapping values" in problem or "':'" in problem:
        words = f"line {line} does not fit: {problem}"
        mend = "check the indentation of this line and the one above; put text with a colon in quotes"
    elif at_end:
        words, mend = f"the file ends in the middle of a value ({problem})", "complete the file"
    else:
        words, mend = f"not valid YAML: {problem}", "check the indentation, the quotes and the brackets"
    return InputError(words, where=f"{name}:{line}", mend=mend)
