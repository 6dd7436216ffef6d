"""Engine flags: names, types and defaults, read from keys or from a pasted launch command.

An engine is one `FlagTable`: the flags that the simulation reads, those that change nothing it predicts, and those that do change
something but are not modelled (they warn). The same table makes the parser and the reference page
(docs/reference/engine-flags.md). The tables stand beside their engines (`engine_models.engines`).
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine_models.model.formats import format_named
from hardware_profiles.errors import InputError, nearest


@dataclass(frozen=True)
class Flag:
    """One flag that the simulation reads.

    kind : "int", "float", "str", "bool", "json", "ints" (a list), or "count" (an integer that may carry the
        suffix k, m, g for powers of 1000 or K, M, G for powers of 1024).
    default : the engine's default, None where the engine decides it from the hardware or the model.
    low, high : smallest and largest value (of every item of a list), None for no bound.
    choices : the values of a "str", empty for any.
    special : texts and numbers accepted beside the kind and bounds.
    """

    kind: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    special: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Typed:
    """A pool's key that a flag states.

    read : the flag's value as that key's; None says nothing.
    beside : the same from the value, the other flags and the pool, where the value alone does not say it.
    """

    key: str
    read: Callable[[Any], Any] = lambda value: value
    beside: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], Any] | None = None


@dataclass(frozen=True)
class FlagTable:
    """The flags of one engine, names in snake_case.

    modelled : flags the simulation reads.
    harmless : flags that change nothing it predicts, with the number of values they take (-1: any number).
    unmodelled : flags that change something it does not predict, likewise.
    shorts : short spellings without the dash, such as ``tp``.
    aliases : other long names.
    typed : flag name -> the pool's key that it states.
    launched : finds the arguments among the words of a launch command, or returns None.
    launch_example : for the mend.
    launch_words : words by which a launch command is told as this engine's.
    environment : settings of the environment that a key or a flag states, with the words that say so.
    """

    engine: str
    modelled: dict[str, Flag]
    harmless: dict[str, int]
    unmodelled: dict[str, int]
    shorts: dict[str, str]
    aliases: dict[str, str]
    typed: dict[str, Typed]
    launched: Callable[[list[str]], list[str] | None]
    launch_example: str
    launch_words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


OwnWord = Callable[[str], str | None]


@dataclass(frozen=True)
class EngineFlags:
    """Flags as given: snake_case names and typed values, the model of a launch command, warnings in words."""

    values: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    warnings: list[str] = field(default_factory=list)


def parse_flags(table: FlagTable, args: Mapping[str, Any] | str, own_word: OwnWord = lambda name: None) -> EngineFlags:
    """Return the flags in `args`: a dict of flag names, or a pasted launch command.

    `own_word` gives the flag that says what another engine's flag says, for the mend of an unknown one. Raises InputError (its
    `where` the flag) for unknown flags, wrong values, and text that is no command.
    """
    if isinstance(args, str):
        return _Command(table, own_word).read(args) if args.strip() else EngineFlags()
    return _from_keys(table, args, own_word)


# Keys -----------------------------------------------------------------------------------------------------


def snake(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_")


def _from_keys(table: FlagTable, args: Mapping[str, Any], own_word: OwnWord) -> EngineFlags:
    found = EngineFlags()
    for key, value in args.items():
        name, negated = _resolve(table, snake(key), key, own_word)
        if name in found.values:
            raise InputError(f"flag `{name}` is given twice", where=key, mend="keep one of its spellings")
        if name not in table.modelled:
            _note(table, name, found)
            continue
        typed = _typed(table.modelled[name], key, value)
        if negated and not isinstance(typed, bool):
            raise InputError(f"`{key}` must be true or false", where=key, mend=f"write {key}: true")
        if typed is not None:
            found.values[name] = not typed if negated else typed
    model = found.values.pop("model", None)
    return EngineFlags(found.values, model, found.warnings)


def _resolve(table: FlagTable, name: str, shown: str, own_word: OwnWord) -> tuple[str, bool]:
    """Return the flag's own name and whether `name` is its ``no_`` form."""
    name = table.aliases.get(name, name)
    if name in table.modelled or name in table.harmless or name in table.unmodelled:
        return name, False
    if name.startswith("no_"):
        positive = table.aliases.get(name[3:], name[3:])
        flag = table.modelled.get(positive)
        if (
            (flag and flag.kind == "bool")
            or table.harmless.get(positive) == 0
            or table.unmodelled.get(positive) == 0
        ):
            return positive, True
    known = [*table.modelled, *table.harmless, *table.unmodelled]
    near = own_word(name) or nearest(name, known)
    dashed = shown.startswith("-")
    spelled = ("--" + near.replace("_", "-") if dashed else near) if near else None
    raise InputError(
        f"{table.engine} has no flag `{shown}`",
        where=shown,
        mend=f"did you mean `{spelled}`?" if spelled else "remove it, or check its spelling",
    )


def _note(table: FlagTable, name: str, found: EngineFlags) -> None:
    if name in table.unmodelled:
        found.warnings.append(f"{table.engine} flag `{name}` is not modelled and was ignored")


# Values ---------------------------------------------------------------------------------------------------

_COUNT = re.compile(r"([-+]?[0-9]+(?:\.[0-9]+)?)([kmgtKMGT]?)")
_POWER = {"k": 1, "m": 2, "g": 3, "t": 4}
_DESCRIBED = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "json": "a JSON object",
    "ints": "a list of whole numbers",
    "count": "a whole number (32768, 32k or 32K)",
}


def _typed(flag: Flag, shown: str, value: Any) -> Any:
    """Return `value` (from YAML or from a command line) as the flag's type; None stays None."""
    if value is None or any(value == s and type(value) is type(s) for s in flag.special):
        return value
    if isinstance(value, str):
        specials = {str(s): s for s in flag.special}
        if value in specials:
            return specials[value]
        if "$" in value and flag.kind != "str":
            raise InputError(
                f"`{shown}` is {value}, a variable of the shell", where=shown, mend="write its value instead"
            )
    read = _READERS[flag.kind](value)
    if read is None:
        raise InputError(
            f"`{shown}` must be {_DESCRIBED[flag.kind]}, not {value!r}", where=shown, mend="check the value"
        )
    if flag.choices and read not in flag.choices:
        near = nearest(read, list(flag.choices))
        hint = f"did you mean '{near}'? " if near else ""
        raise InputError(
            f"`{shown}` cannot be '{read}'", where=shown, mend=f"{hint}choices: {', '.join(flag.choices)}"
        )
    for number in read if isinstance(read, list) else [read]:
        if not isinstance(number, int | float) or isinstance(number, bool):
            continue
        low = flag.low is not None and number < flag.low
        if low or (flag.high is not None and number > flag.high):
            bound = f"at least {flag.low:g}" if low else f"at most {flag.high:g}"
            raise InputError(
                f"`{shown}` is {number:g}; it must be {bound}", where=shown, mend=f"give {bound}"
            )
    return read


def _int(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[-+]?[0-9]{1,18}", value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _str(value: Any) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value}"
    return value if isinstance(value, str) else None


def _bool(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _json(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _ints(value: Any) -> list[int] | None:
    if isinstance(value, str):
        value = value.strip("[]").replace(",", " ").split()
    if isinstance(value, int):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        return None
    numbers = [_int(v) for v in value]
    return None if any(n is None for n in numbers) else [n for n in numbers if n is not None]


def _count(value: Any) -> int | None:
    if not isinstance(value, str):
        return _int(value)
    found = _COUNT.fullmatch(value)
    if found is None or len(value) > 18:
        return None
    digits, suffix = found[1], found[2]
    base = 1000 if suffix.islower() else 1024
    if "." in digits and base == 1024:
        return None  # vLLM takes decimals with the decimal suffixes only
    power = int(base ** _POWER[suffix.lower()]) if suffix else 1
    return round(float(digits) * power) if "." in digits else int(digits) * power


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "str": _str,
    "bool": _bool,
    "json": _json,
    "ints": _ints,
    "count": _count,
}


# Commands -------------------------------------------------------------------------------------------------

_REDIRECTION = re.compile(r"\s[0-9]?>>?\s*(&[0-9]|[^\s&|;]+)")
_ENDS_COMMAND = re.compile(r"[;&|]+")
_NUMBER = re.compile(r"-[0-9.]+")


class _Command:
    """Reads a launch command as the engine's own parser would; the last of repeated flags wins."""

    def __init__(self, table: FlagTable, own_word: OwnWord) -> None:
        self.table = table
        self.own_word = own_word
        self.found = EngineFlags()
        self.model: str | None = None

    def read(self, text: str) -> EngineFlags:
        before: list[str] = []
        for words in _commands(text):
            arguments = self.table.launched(words)
            if arguments is not None:
                before += words[: len(words) - len(arguments)]
                break
            before += words
        else:
            raise InputError(
                f"this is no launch command of {self.table.engine}",
                where=before[0] if before else None,
                mend=f"paste the whole command (`{self.table.launch_example}`), or only its flags",
            )
        for word in before:
            named = re.match(rf"({self.table.engine.upper()}_[A-Z0-9_]+)=", word)
            if named:
                instead = self.table.environment.get(word, "")
                self.found.warnings.append(
                    f"environment variable {named[1]} is not modelled and was ignored{instead}"
                )
        self.arguments(arguments)
        model = self.found.values.pop("model", None) or self.model
        return EngineFlags(self.found.values, model, self.found.warnings)

    def arguments(self, words: list[str]) -> None:
        at = 0
        while at < len(words):
            word = words[at]
            at += 1
            if not word.startswith("-") or word == "-":
                self.positional(word)
                continue
            shown, equals, inline = word.partition("=")
            name, inline_value = self.flag_name(shown, inline if equals else None)
            name, _, inside = name.partition(".")
            name, negated = _resolve(self.table, name, shown, self.own_word)
            flag = self.table.modelled.get(name)
            if flag is not None and flag.kind == "bool":
                value: Any = "true"
                if inline_value is not None:
                    value = inline_value
                elif not negated and at < len(words) and words[at].lower() in ("true", "false"):
                    value = words[at]
                    at += 1
                read = _typed(flag, shown, value)
                self.store(name, shown, (not read) if negated else read)
                continue
            count = 1 if flag is not None else self.arity(name)
            many = count == -1 or (flag is not None and flag.kind == "ints")
            values = [inline_value] if inline_value is not None else []
            while at < len(words) and (many or len(values) < count) and not _is_flag(words[at]):
                values.append(words[at])
                at += 1
            if len(values) < count or (flag is not None and not values):
                raise InputError(f"`{shown}` lacks its value", where=shown, mend=f"write {shown} VALUE")
            if flag is None:
                _note(self.table, name, self.found)
            elif inside:
                self.store_inside(name, inside, shown, values[0])
            else:
                self.store(
                    name, shown, _typed(flag, shown, " ".join(values) if flag.kind == "ints" else values[0])
                )

    def flag_name(self, shown: str, inline: str | None) -> tuple[str, str | None]:
        if shown.startswith("--"):
            return shown[2:].replace("-", "_"), inline
        short, dot, inside = shown[1:].partition(".")
        if short in self.table.shorts:
            return self.table.shorts[short] + dot + inside, inline
        glued = re.fullmatch(r"([A-Za-z])([0-9].*)", short)  # -O3
        if glued and glued[1] in self.table.shorts:
            return self.table.shorts[glued[1]], glued[2]
        return short.replace("-", "_"), inline

    def arity(self, name: str) -> int:
        return self.table.harmless.get(name, self.table.unmodelled.get(name, 0))

    def positional(self, word: str) -> None:
        if self.model is not None:
            raise InputError(
                f"'{word}' stands beside the model '{self.model}'",
                where=word,
                mend="check the flag before it: it takes no value, or its value is split by a space",
            )
        self.model = word

    def store(self, name: str, shown: str, value: Any) -> None:
        if name in self.found.values and self.found.values[name] != value:
            self.found.warnings.append(
                f"`{shown}` is given twice; the last value, {value}, counts as in the engine"
            )
        self.found.values[name] = value

    def store_inside(self, name: str, inside: str, shown: str, text: str) -> None:
        """``--speculative-config.num_speculative_tokens 3``: one key of a JSON flag."""
        if self.table.modelled[name].kind != "json":
            raise InputError(
                f"`{shown}` has no parts", where=shown, mend=f"write --{name.replace('_', '-')} VALUE"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        place = self.found.values.setdefault(name, {})
        *outer, last = inside.split(".")
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word)


def _commands(text: str) -> list[list[str]]:
    """Split shell text into commands of words: continuations joined, comments and redirections dropped."""
    text = re.sub(r"(?m)^\s*#.*$|\s#\s.*$", "", text)
    joined = re.sub(r"\\[ \t]*\r?\n", " ", text.strip()).removesuffix("\\")
    joined = re.sub(r"(?m)^\s*[$>]\s+", "", joined)  # a prompt copied with the command
    lexer = shlex.shlex(_REDIRECTION.sub(" ", joined), posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        raise InputError("a quote in the launch command is not closed", mend="close the quote") from None
    commands: list[list[str]] = [[]]
    for word in words:
        if _ENDS_COMMAND.fullmatch(word):
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def by_arity(*groups: tuple[str, int]) -> dict[str, int]:
    """Return name -> number of values (-1: any number) from lists of names in one text each."""
    return {name: arity for names, arity in groups for name in names.split()}


# Typed keys -----------------------------------------------------------------------------------------------


def reconcile(
    table: FlagTable,
    pool: Mapping[str, Any],
    flags: EngineFlags,
    *,
    given: Collection[str],
    model: str | dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the pool's typed keys that `flags` fill in, as a dict of the keys that change.

    Parameters
    ----------
    pool : the pool's keys and values, defaults included.
    given : the keys that the scenario states; a flag may not contradict those, and fills the others.
    model : the scenario's model, which a launch command may not contradict.

    Raises InputError naming the flag and the key when the two differ.
    """
    updates: dict[str, Any] = {}
    for flag, value in flags.values.items():
        if flag not in table.typed:
            continue
        typed = table.typed[flag]
        key = typed.key
        wanted = typed.beside(value, flags.values, pool) if typed.beside else typed.read(value)
        if wanted is None:
            continue
        present = updates.get(key, pool[key])
        if key in ("speculative", "offload"):
            updates[key] = _merged(flag, key, present, wanted)
            continue
        if (key in given or key in updates) and not _same(key, present, wanted):
            of_all = typed.beside is not None and wanted != value
            said = f"{_word(value)} over all ranks, {_word(wanted)} in each" if of_all else _word(value)
            raise InputError(
                f"flag `{flag}` ({said}) contradicts the pool's key `{key}` ({_word(present)})",
                where=flag,
                mend=f"remove one of the two, or write {key}: {_word(wanted)}",
            )
        if key not in given:
            updates[key] = wanted
    _check_dtype(pool, flags, given)
    _check_model(flags, model)
    return {key: value for key, value in updates.items() if pool[key] != value}


def _merged(
    flag: str, key: str, present: Mapping[str, Any] | None, wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a pool's key and of a flag together: what one leaves out the other may say."""
    merged = {name: value for name, value in (present or {}).items() if value is not None}
    for name, value in wanted.items():
        if name in merged and merged[name] != value and tuple_of(merged[name]) != tuple_of(value):
            raise InputError(
                f"flag `{flag}` ({name}: {_word(value)}) contradicts the pool's key `{key}` "
                f"({name}: {_word(merged[name])})",
                where=flag,
                mend="remove one of the two",
            )
        merged.setdefault(name, value)
    return merged


def tuple_of(value: Any) -> Any:
    """A list as a tuple, anything else as it is: YAML reads lists, the schema keeps tuples."""
    return tuple(value) if isinstance(value, list) else value


def _same(key: str, present: Any, wanted: Any) -> bool:
    if key in ("weights", "kv_cache") and isinstance(present, str):
        try:
            return format_named(present).name == format_named(wanted).name or present.startswith(f"{wanted}_")
        except InputError:
            return True  # not a format of this page; the catalogue will say so
    if key == "expert_parallel":
        return bool(present) == bool(wanted)
    return bool(present == wanted)


def _check_dtype(pool: Mapping[str, Any], flags: EngineFlags, given: Collection[str]) -> None:
    """``--dtype`` fixes the 16-bit arithmetic; it says nothing about quantized weights or activations."""
    dtype = flags.values.get("dtype", "auto")
    if dtype == "auto":
        return
    wide = ("bf16", "fp16", "fp32")
    wanted = format_named(dtype, where="dtype").name
    for key in ("weights", "activations"):
        present = pool.get(key)
        if key in given and present in wide and present != wanted:
            raise InputError(
                f"flag `dtype` ({dtype}) contradicts the pool's key `{key}` ({present})",
                where="dtype",
                mend=f"remove one of the two, or write {key}: {wanted}",
            )


def _check_model(flags: EngineFlags, model: str | dict[str, Any] | None) -> None:
    if (
        flags.model is None
        or not isinstance(model, str)
        or "$" in flags.model
        or "/" in (flags.model[0], model[0])
    ):
        return  # a folder's name says nothing about the model in it
    if _base(flags.model) != _base(model):
        raise InputError(
            f"the launch command serves '{flags.model}', the scenario's key `model` is '{model}'",
            where="model",
            mend=f"write model: {flags.model}, or paste the command of {model}",
        )


def _base(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
