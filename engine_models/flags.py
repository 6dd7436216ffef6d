"""Engine flags: names, types and defaults, and what they say of a pool's keys.

An engine is one `FlagTable`: the flags that the simulation reads, those that change nothing it predicts, those that do change
something but are not modelled (they warn), and those that would make it wrong (they are refused). The same table makes the parser
(`engine_models.arguments`) and the reference page (docs/reference/engine-flags.md). The tables stand beside their engines
(`engine_models.engines`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from engine_models.launcher import Launcher
from engine_models.model.formats import format_named, quant_of
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Flag:
    """One flag that the simulation reads.

    kind : "int", "float", "str", "bool", "json", "pairs" (such an object, or name=number,...), "ints" and "texts" (lists), or
        "count" (an integer that may carry the suffix k, m, g for powers of 1000 or K, M, G for powers of 1024).
    default : the engine's default, None where the engine decides it from the hardware or the model.
    low, high : smallest and largest value (of every item of a list), None for no bound.
    choices : the values of a "str", empty for any.
    special : texts and numbers accepted beside the kind and bounds.
    bare : the value of a "str" that stands without one; "": it needs one.
    """

    kind: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    special: tuple[Any, ...] = ()
    bare: str = ""


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
class Unread:
    """A flag that the simulation does not read.

    kind : "switch", "pair" (a switch with a ``--no-`` form), "value", "list", or "optional" (a switch that may carry a value).
    changes : what it changes, in words; "" for nothing that is predicted.
    refused : whether the prediction would be wrong by more than its stated error with it, so that it is refused.
    neutral : values, in lower case, that leave all as it is; `NEUTRAL` always do.
    """

    kind: str
    changes: str = ""
    refused: bool = False
    neutral: tuple[str, ...] = ()

    def leaves_all(self, value: Any) -> bool:
        """Whether `value` changes nothing that is predicted."""
        return not self.changes or str(value).lower() in (self.neutral or NEUTRAL)


NEUTRAL = ("auto", "default", "none", "null", "false", "")
"""Values by which a flag leaves the choice to the engine, or a switch is off."""


@dataclass(frozen=True)
class Releases:
    """Which releases of an engine have which flags, as far as these were looked at.

    looked_at : the releases, the oldest first; of : flag -> the first and the last of these that has it.
    """

    looked_at: tuple[str, ...] = ()
    of: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def has(self, flag: str, release: str | None) -> bool:
        """Whether a release (None: the newest) has the flag; between two that were looked at, whether one of them has."""
        if flag not in self.of or not self.looked_at:
            return True
        first, last = (self.looked_at.index(end) for end in self.of[flag])
        if release is None:
            return last == len(self.looked_at) - 1
        numbers = [_numbers(seen) for seen in self.looked_at]
        here = _numbers(release)
        newest = max((i for i, seen in enumerate(numbers) if seen[: len(here)] <= here), default=0)
        exact = numbers[newest][: len(here)] == here
        return first <= newest + (not exact) and newest <= last


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", release.partition("rc")[0]))


@dataclass(frozen=True)
class Worker:
    """Another product's program that starts the engine: it takes the engine's flags, and some of its own.

    modelled, unread, shorts, aliases, elsewhere, unfolded : as a `FlagTable` has them.
    role : the pool's role that its own flags state, None where they say none. copies : the flag that says how many servers.
    parts : words of its command that are no model. said : a word on the whole command, "" for none.
    """

    modelled: Mapping[str, Flag] = field(default_factory=dict)
    unread: Mapping[str, Unread] = field(default_factory=dict)
    shorts: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    unfolded: tuple[str, ...] = ()
    role: Callable[[Mapping[str, Any]], str | None] = lambda flags: None
    copies: str = ""
    parts: tuple[str, ...] = ()
    said: Callable[[Sequence[str]], str] = lambda words: ""


@dataclass(frozen=True)
class FlagTable:
    """The flags of one engine, names in snake_case.

    modelled : flags the simulation reads; unread : flags it knows and does not read.
    launcher : how its servers are started.
    shorts : short spellings without the dash, such as ``tp``; aliases : other long names, also of a key of a flag that is a
        group (``group.key``). with_parts : shorts that mean another flag before a dot (``-O.mode=3``).
    elsewhere : flags of other servers that the same command starts, with the words that refuse them.
    typed : flag name -> the pool's key that it states; role : the pool's role that the flags state together, None for
        none, "either" for that of prefill or decode.
    environment : variable of the environment -> the flag that it sets.
    hints : settings of the environment that a key or a flag states, with the words that say so.
    prefixes : beginnings of its own variables of the environment; quiet : pattern of the settings of these that need no word.
    settings_file : the flag that names a file of flags, "" for none. unfolded : groups whose keys are flags themselves.
    of_first_node : flags that only the first of a server's nodes is given.
    folder, read_folder : the flag that names a folder of configurations, and what reads it as flags by name.
    abbreviated : whether its parser takes unique beginnings of long names.
    workers : pattern of a program of the launcher's `workers` -> what it takes besides; copies : as a `Worker` has it.
    converted : pattern of names of models in the engine's own form, which are not those of the originals; its group is their
        format, "" where they say none. stored_as : what formats that these names say are called here, if not so.
    """

    engine: str
    modelled: Mapping[str, Flag]
    launcher: Launcher
    unread: Mapping[str, Unread] = field(default_factory=dict)
    shorts: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    with_parts: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    typed: Mapping[str, Typed] = field(default_factory=dict)
    role: Callable[[Mapping[str, Any]], str | None] = lambda flags: None
    environment: Mapping[str, str] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    quiet: str = r"(?!)"
    settings_file: str = ""
    unfolded: tuple[str, ...] = ()
    of_first_node: tuple[str, ...] = ()
    folder: str = ""
    read_folder: Callable[[Path], dict[str, Any]] | None = None
    releases: Releases = field(default_factory=Releases)
    abbreviated: bool = True
    converted: str = r"(?!)()"
    stored_as: Mapping[str, str] = field(default_factory=dict)
    workers: Mapping[str, Worker] = field(default_factory=dict)
    copies: str = ""

    def started_by(self, program: str) -> FlagTable:
        """The flags that a worker's program takes; the table itself for "", the engine's own program."""
        worker = self.workers.get(program)
        if worker is None:
            return self
        own = self.role
        return replace(
            self,
            modelled={**self.modelled, **worker.modelled},
            unread={**self.unread, **worker.unread},
            shorts={**self.shorts, **worker.shorts},
            aliases={**self.aliases, **worker.aliases},
            elsewhere={**self.elsewhere, **worker.elsewhere},
            unfolded=(*self.unfolded, *worker.unfolded),
            role=lambda flags: worker.role(flags) or own(flags),
            copies=worker.copies,
        )

    def knows(self, name: str) -> bool:
        return name in self.modelled or name in self.unread or name.partition(".")[0] in self.modelled

    def parted(self, name: str) -> tuple[str, str]:
        """A flag that is a group and the key inside it that `name` means, "" for a flag by itself."""
        if name in self.modelled or name in self.unread:
            return name, ""
        name, _, key = name.partition(".")
        return name, key

    def kind(self, name: str) -> str:
        """How many values a flag takes, as `Unread.kind` says it."""
        if name in self.unread:
            return self.unread[name].kind
        if self.modelled[name].bare:
            return "optional"
        return {"bool": "pair", "ints": "list", "texts": "list"}.get(self.modelled[name].kind, "value")


@dataclass(frozen=True)
class EngineFlags:
    """Flags as given: snake_case names and typed values, the model of a launch command, the engine's version as an image or
    a requirement states it (`said` : in which words); notes and warnings in words; the copies that a manifest asks for.

    role : the pool's role that the flags state, as `FlagTable.role` has it. copies : least and most that an autoscaler may set.
    others : commands beside it that start nothing of the engine; strangers : those of them that are containers, by name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    version: str | None = None
    said: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    replicas: int | None = None
    role: str | None = None
    copies: tuple[int | None, int | None] | None = None
    others: tuple[tuple[str, ...], ...] = ()
    strangers: tuple[tuple[str, tuple[str, ...]], ...] = ()


def snake(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_")


def settings_with(key: str, setting: str, *switches: str) -> Typed:
    """A flag that states one `setting` of a pool's `key`, where the key or one of the flags `switches` asks for it."""

    def beside(value: Any, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, Any] | None:
        asked = pool.get(key) is not None or any(flags.get(switch) for switch in switches)
        return {setting: value} if asked and value is not None else None

    return Typed(key, beside=beside)


# Values ---------------------------------------------------------------------------------------------------

_OPEN = re.compile(r"\$\w+|\$[{(].*[})]|<[A-Za-z][^<>]*>|\{\{.*\}\}")
"""What stands for a value: a variable of the shell, a placeholder, a template."""
_COUNT = re.compile(r"([-+]?[0-9]+(?:\.[0-9]+)?)([kmgtKMGT]?)")
_POWER = {"k": 1, "m": 2, "g": 3, "t": 4}
_DESCRIBED = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "json": "a JSON object",
    "pairs": "a JSON object, or name=value with commas between",
    "ints": "a list of whole numbers",
    "texts": "a list of texts",
    "count": "a whole number (32768, 32k or 32K)",
}


def typed_value(flag: Flag, shown: str, value: Any) -> Any:
    """Return `value` (from YAML or from a command line) as the flag's type; None stays None."""
    if value is None or any(value == s and type(value) is type(s) for s in flag.special):
        return value
    if isinstance(value, str):
        specials = {str(s): s for s in flag.special}
        if value in specials:
            return specials[value]
        if flag.kind not in ("str", "texts") and (open_value := _OPEN.search(value)):
            name = re.fullmatch(r"\$\{?([A-Za-z_]\w*)\}?", open_value[0])
            raise InputError(
                f"`{shown}` is {value}: {open_value[0]} stands for a value that is not in the text",
                where=shown,
                mend="write its value instead" + (f", or set it before the command: {name[1]}=..." if name else ""),
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


def keys_of(
    given: Any, known: Mapping[str, Flag], whose: str, where: str, unread: Collection[str] = ()
) -> dict[str, Any]:
    """The keys of a flag that is a group of them, with their defaults; those that are `unread` change nothing.

    InputError for keys that there are not in `whose` configuration, and for values that cannot be.
    """
    found = {key: flag.default for key, flag in known.items()}
    if given is not None and not isinstance(given, Mapping):
        raise InputError("this is no group of keys", where=where, mend="write {key: value}")
    for key, value in (given or {}).items():
        if key in known:
            found[key] = typed_value(known[key], str(key), value)
        elif key not in unread:
            close = nearest(str(key), [*known, *unread])
            raise InputError(
                f"{whose} configuration has no key `{key}` here that is simulated",
                where=f"{where}.{key}",
                mend=f"did you mean `{close}`?" if close else "remove it, or check its spelling",
            )
    return found


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


def _pairs(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"\w+=[0-9]+(,\w+=[0-9]+)*", value):
        return {name: int(number) for name, _, number in (pair.partition("=") for pair in value.split(","))}
    return _json(value)


def _ints(value: Any) -> list[int] | None:
    if isinstance(value, str):
        value = value.strip("[]").replace(",", " ").split()
    if isinstance(value, int):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        return None
    numbers = [_int(v) for v in value]
    return None if any(n is None for n in numbers) else [n for n in numbers if n is not None]


def _texts(value: Any) -> list[str] | None:
    if isinstance(value, str):
        value = value.split()
    return [str(v) for v in value] if isinstance(value, list | tuple) and value else None


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
    "pairs": _pairs,
    "ints": _ints,
    "texts": _texts,
    "count": _count,
}


# Number formats -------------------------------------------------------------------------------------------


def number_format(flag: str, value: str, formats: Mapping[str, str | None]) -> str | None:
    """The project's name of the number format that a flag's value fixes, None for the checkpoint's own; InputError for others."""
    if value in formats:
        return formats[value]
    try:
        return format_named(value).name
    except InputError as error:
        raise InputError(
            f"`{flag}` {value}: this number format is not modelled",
            where=flag,
            mend=f"remove the flag, or state the nearest format by its key in the pool; {error.mend}",
        ) from None


def float32_weights(dtype: str) -> str | None:
    """The weights' format that ``--dtype`` fixes: of 32 bits; of the formats of 16 bits it only chooses between equal sizes."""
    return "fp32" if dtype in ("float", "float32") else None


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
        if key in ("speculative", "offload", "lora"):
            updates[key] = _merged(flag, key, present, wanted)
            continue
        if (key in given or key in updates) and not _same(key, present, wanted):
            of_all = isinstance(wanted, int) and wanted != value
            said = f"{_word(value)} over all ranks, {_word(wanted)} in each" if of_all else _word(value)
            raise InputError(
                f"flag `{flag}` ({said}) contradicts the pool's key `{key}` ({_word(present)})",
                where=flag,
                mend=f"remove one of the two, or write {key}: {_word(wanted)}",
            )
        if key not in given:
            updates[key] = wanted
    _check_dtype(pool, flags, given)
    stored = re.fullmatch(table.converted, _base(flags.model or ""))
    if stored is None:
        _check_model(flags, model)
    elif stored[1] and "weights" not in given:
        updates["weights"] = table.stored_as.get(stored[1], stored[1])
    packed = quant_of(flags.model) if flags.model is not None and flags.model.lower().endswith(".gguf") else None
    if packed is not None and "weights" not in given:
        updates["weights"] = packed
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
        or _OPEN.search(flags.model)
        or {flags.model[0], model[0]} & {*"/~."}
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
