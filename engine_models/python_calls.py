"""Launches that are calls in a program: ``LLM(model=..., tensor_parallel_size=2)`` in text that is Python."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Collection, Mapping
from typing import Any

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

_MEND = "paste one call with its values written out, or write the flags as keys: engine_args: {flag_name: value}"

_GROUP = re.compile(r"dict|(?:\w+\.)*[A-Z]\w*")
"""Calls that make a group of settings: classes."""


@dataclass(frozen=True)
class Call:
    """The flags of the one call that starts an engine, by keyword. `named` : whether the program says which package it is of."""

    keys: Mapping[str, Any]
    named: bool


Groups = Mapping[str, Mapping[str, Any]]
"""Classes of settings by name, and what naming one says beside its keys."""


def read_call(text: str, functions: tuple[str, ...], groups: Groups | None = None, first: Collection[str] = ()) -> Call | None:
    """The one call of `functions` in text that is Python, its first argument the model; None if there is none.

    functions : by their full names (``package.Class``). The program's imports say what its own names mean; a name that it does
        not import is taken for the function of that name, and so is one of a module that it does not import. A group of
        settings (``Config(key=value)``) is read as a mapping, with what `groups` say of its class.
    first : keywords that count where they stand in the call which makes the first argument.

    InputError where several calls start servers, or the call's arguments are no plain values.

    >>> read_call("from vllm import LLM\\nLLM('org/m', seed=1)", ("vllm.LLM",))
    Call(keys={'model': 'org/m', 'seed': 1}, named=True)
    """
    if not any(name.rpartition(".")[2] in text for name in functions):
        return None
    try:
        nodes = list(ast.walk(ast.parse(textwrap.dedent(text))))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    meant, known = _imports(nodes), constants(nodes)
    calls: list[tuple[ast.Call, bool]] = []
    for node in nodes:
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            head, dot, rest = name.partition(".")
            full = meant.get(head, head) + dot + rest
            last = {function.rpartition(".")[2] for function in functions}
            short = full.rpartition(".")[2] if full.count(".") <= 1 else full
            if full in functions or (short in last and head not in meant):
                calls.append((node, full in functions))
    if not calls:
        return None
    if len(calls) > 1:
        raise InputError(f"the text starts {len(calls)} servers", mend=_MEND)
    call, named = calls[0]
    return Call(_Values(known, groups or {}, first).keywords(call), named)


def _imports(nodes: list[ast.AST]) -> dict[str, str]:
    """What the program's imported names are in full."""
    meant: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for item in node.names:
                meant[item.asname or item.name.partition(".")[0]] = item.name if item.asname else item.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            meant |= {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
    return meant


def constants(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """Names that the program sets once, and to what."""
    found: dict[str, ast.expr] = {}
    twice: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            (twice.add(name) if name in found else found.setdefault(name, node.value))
    return {name: value for name, value in found.items() if name not in twice}


class _Values:
    """Reads the arguments of a call. known : names that the program sets once, and to what; first : as `read_call` has it."""

    def __init__(self, known: Mapping[str, ast.expr], groups: Groups, first: Collection[str] = ()) -> None:
        self.known = known
        self.groups = groups
        self.first = first

    def keywords(self, call: ast.Call) -> dict[str, Any]:
        named = [("model" if at == 0 else None, value) for at, value in enumerate(call.args)]
        keys: dict[str, Any] = {}
        for name, value in [*named, *((word.arg, word.value) for word in call.keywords)]:
            value = self.known.get(value.id, value) if isinstance(value, ast.Name) else value
            if name == "model" and not isinstance(value, ast.Constant | ast.Starred):
                made = value.keywords if isinstance(value, ast.Call) else []  # else a name from elsewhere
                keys |= {word.arg: self.value(word.value) for word in made if word.arg is not None and word.arg in self.first}
                continue
            if name is None and isinstance(value, ast.Dict | ast.Call):
                unpacked = self.value(value)
                if isinstance(unpacked, dict):
                    keys |= unpacked
                    continue
            if name is None:
                raise _open(value)
            keys[name] = self.value(value)
        return keys

    def value(self, value: ast.expr) -> Any:
        """A value that is written out; of an enumeration's or a module's member (``torch.float16``) its name."""
        if isinstance(value, ast.Name) and value.id in self.known:
            inner = {name: of for name, of in self.known.items() if name != value.id}
            return _Values(inner, self.groups).value(self.known[value.id])
        if isinstance(value, ast.Attribute):
            return value.attr
        if isinstance(value, ast.Call) and self.is_group(value):
            said = self.groups.get(ast.unparse(value.func).rpartition(".")[2], {})
            return {**said, **{str(word.arg): self.value(word.value) for word in value.keywords}}
        try:
            return ast.literal_eval(value)
        except ValueError:
            raise _open(value) from None

    def is_group(self, call: ast.Call) -> bool:
        return _GROUP.fullmatch(ast.unparse(call.func)) is not None and not call.args and None not in _words(call)


def _words(call: ast.Call) -> list[str | None]:
    return [word.arg for word in call.keywords]


def _open(value: ast.expr) -> InputError:
    return InputError(f"`{ast.unparse(value)}` in the call is no flag with a value", mend=_MEND)
