"""Reads an engine's flags: from keys, or from the arguments of a launch command as the engine's own parser would."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

from engine_models.flags import EngineFlags, FlagTable, Worker, snake, typed_value
from engine_models.launcher import CALL, CONTAINER_KEYS
from hardware_profiles.errors import InputError, nearest

if TYPE_CHECKING:
    from engine_models.launch import Found, Launch

Arguments = Mapping[str, Any] | Sequence[Any] | str
OwnWord = Callable[[str], str | None]

_NUMBER = re.compile(r"-[0-9.]+")
_FILE = re.compile(r"\S+\.(?:ya?ml|sh|bash|json|txt|service|Dockerfile)|\S*Dockerfile\S*")
_ELLIPSES = re.compile(r"\.{3}|…|\[.*\]|\\|\$[@*]|\$\{@.*\}")
_CALLED = (
    "a call is read as a server's flags: a program that computes by itself has no front end, whose time for requests and rows "
    "is counted here"
)
_PLACES = ("services", "spec", "template", "containers", "initContainers", "extraPodSpec", "mainContainer")
"""Keys around containers that name none."""
_MANIFEST_KEYS = (*CONTAINER_KEYS, "services", "containers", "spec", "commands", "run")


def parse_flags(
    table: FlagTable,
    args: Arguments,
    release: str | None = None,
    own_word: OwnWord = lambda name: None,
    server: str | None = None,
) -> EngineFlags:
    """Return the flags in `args`: a dict of flag names, a launch command as text or as a list of words, or a container.

    `release` is the engine's version where it is known otherwise. `own_word` gives the flag that says what another engine's flag
    says, for the mend of an unknown one. `server` chooses among several servers the one that a compose service, a manifest or a
    container of this name starts. Raises InputError (its `where` the flag) for unknown and ambiguous flags, wrong values,
    flags that would make the prediction wrong, text that starts no server of the engine, and several different servers.
    """
    if isinstance(args, Mapping):
        args = table.launcher.written(args)
    if isinstance(args, Mapping) and not any(key in _MANIFEST_KEYS for key in args):
        return _Reader(table, release, own_word).keys(args)
    if not args or (isinstance(args, str) and not args.strip()):
        return EngineFlags()
    from engine_models.launch import find_launches

    found = find_launches(args, table.launcher)
    if found.keys is not None:
        program = CALL if found.called else ""
        read = _Reader(table, found.version or release, own_word, program).keys(found.keys)
        return replace(read, notes=[*read.notes, _CALLED]) if found.called else read
    if not found.launches:
        if isinstance(args, str) and _FILE.fullmatch(args.strip()):
            raise InputError(f"{args.strip()} names a file, which is not read", mend="paste what it holds as the text")
        raise InputError(
            f"this is no launch command of {table.engine}",
            where=found.others[0][0] if found.others else None,
            mend=f"paste the whole command (`{table.launcher.example}`), or only its flags",
        )
    named = [launch for launch in found.launches if server is not None and server in launch.names]
    launches = named or found.launches
    return _one(
        table,
        found,
        launches,
        [
            _Reader(table, launch.version or found.version or release, own_word, launch.worker).command(launch)
            for launch in launches
        ],
        chosen=bool(named),
    )


def _one(
    table: FlagTable, found: Found, launches: list[Launch], servers: list[EngineFlags], *, chosen: bool
) -> EngineFlags:
    """The one server that is started, by one command or by the same on several nodes, or `chosen` among others."""
    first, *others = servers
    for other in others:  # a further node of the first one's server
        for flag in table.of_first_node:
            here, there = flag in first.values, flag in other.values
            if here != there:
                (other if here else first).values[flag] = (first if here else other).values[flag]
    roles = {server.role for server in servers if server.role is not None}
    said = [(server.values, server.model, server.warnings, server.role) for server in servers]
    unlike = any(each != said[0] for each in said)
    if unlike or (len(servers) > 1 and roles == {"either"}):
        names = list(dict.fromkeys(name for name in map(_own_name, launches, repeat(launches)) if name is not None))
        by_name = f"name each pool after its own ({', '.join(names)}), with the whole text in each, or " if len(names) > 1 else ""
        if roles:
            sides = ", ".join(sorted(roles - {"either"})) or "they exchange KV blocks"
            raise InputError(
                f"the text starts {len(servers)} servers that share the work ({sides})",
                mend=f"{by_name}write two pools, role: prefill and role: decode, each with its own command as engine_args",
            )
        raise InputError(
            f"the text starts {len(servers)} servers whose flags differ",
            mend=f"{by_name}keep the command of one; several servers are several pools",
        )
    notes, launch = list(first.notes), launches[0]
    if len(servers) > 1:
        notes.append(f"{len(servers)} launch commands with the same flags are read as nodes of one server; copies are `replicas`")
    version, words = (launch.version, launch.said) if launch.version is not None else (found.version, found.said)
    if launch.tag is not None and version is None:
        notes.append(f"image tag `{launch.tag}` names no release: read as the newest unless `engine` names one")
    replicas, copies = first.replicas if launch.replicas is None else launch.replicas, found.bounds(launch)
    if replicas is None and copies is not None and copies[0] is not None:
        replicas = max(1, copies[0])  # of a server that is stopped while nobody asks, the one that comes
    return replace(
        first,
        model=first.model or found.model,
        version=version,
        said=words,
        notes=notes,
        replicas=replicas,
        copies=copies,
        others=tuple(map(tuple, found.others)),
        strangers=() if chosen else tuple((name, tuple(words)) for name, words in found.strangers),
    )


def _own_name(launch: Launch, all_of: list[Launch]) -> str | None:
    """The first name of a server that not all of them have."""
    shared = set.intersection(*({*other.names} for other in all_of))
    return next((name for name in launch.names if name not in shared and name not in _PLACES), None)


class _Reader:
    """Reads the flags of one server; the last of repeated ones wins."""

    def __init__(self, table: FlagTable, release: str | None, own_word: OwnWord, program: str = "") -> None:
        self.own = table
        self.table = table.started_by(program)
        self.worker = table.workers.get(program, Worker())
        self.release = release
        self.own_word = own_word
        self.found = EngineFlags()
        self.model: str | None = None
        self.unread: dict[str, list[str]] = {}  # what flags change -> these flags
        self.of_file: set[str] = set()  # flags that a settings file gives, and the command may give again
        self.missing: list[str] = []  # flags that the release does not have

    # Keys ---------------------------------------------------------------------------------------------------

    def keys(self, args: Mapping[str, Any]) -> EngineFlags:
        """Flags by name."""
        for key, value in self.unfolded(args).items():
            name, negated = self.resolve(snake(str(key)), str(key), abbreviated=False)
            if name in self.found.values:
                raise InputError(f"flag `{name}` is given twice", where=key, mend="keep one of its spellings")
            self.key(name, key, value, negated=negated)
        return self.ended()

    def unfolded(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """The flags of groups that are no more than that stand with the others."""
        groups = [args[name] for name in self.table.unfolded if isinstance(args.get(name), Mapping)]
        rest = {key: value for key, value in args.items() if not (key in self.table.unfolded and isinstance(value, Mapping))}
        return {key: value for group in groups for key, value in group.items()} | rest

    def key(self, name: str, shown: str, value: Any, *, negated: bool = False) -> None:
        name, inside = self.table.parted(name)
        if inside:
            self.store_inside(name, inside, shown, value if isinstance(value, str) else json.dumps(value))
            return
        if name not in self.table.modelled:
            self.note(name, shown, not value if negated else value)
            return
        flag = self.table.modelled[name]
        typed = typed_value(flag, shown, "none" if value is None and "none" in flag.special else value)
        if negated and not isinstance(typed, bool):
            raise InputError(f"`{shown}` must be true or false", where=shown, mend=f"write {shown}: true")
        if typed is not None:
            self.found.values[name] = not typed if negated else typed

    def ended(self) -> EngineFlags:
        """What was read, with the words on what was not."""
        engine, warnings = self.table.engine, self.found.warnings
        for changes, flags in self.unread.items():
            words = ", ".join(f"`{flag}`" for flag in flags)
            one = len(flags) == 1
            subject = f"{engine} flag {words} is" if one else f"{engine} flags {words} are"
            warnings.append(f"{subject} not modelled; in the engine {'it changes' if one else 'they change'} {changes}")
        if self.missing:
            words = ", ".join(f"`{flag}`" for flag in self.missing)
            warnings.append(f"{engine} {self.release} has no flag {words}; read as other releases have it")
        model = self.found.values.pop("model", None) or self.model
        role, copies = self.table.role(self.found.values), self.found.values.get(self.table.copies)
        values = {name: value for name, value in self.found.values.items() if name in self.own.modelled}
        return EngineFlags(values, model, notes=self.found.notes, warnings=warnings, role=role, replicas=copies)

    # Names --------------------------------------------------------------------------------------------------

    def resolve(self, name: str, shown: str, *, abbreviated: bool) -> tuple[str, bool]:
        """The flag's own name and whether `name` is its ``no_`` form."""
        found = self.exact(name)
        if found is None and abbreviated and self.table.abbreviated and name:
            found = self.abbreviation(name, shown)
        if found is None and name in self.table.elsewhere:
            raise InputError(
                f"`{shown}` of {self.table.engine} is {self.table.elsewhere[name]}",
                where=shown,
                mend="paste the command of a server of text",
            )
        if found is None:
            near = self.own_word(name) or nearest(name, [*self.table.modelled, *self.table.unread, *self.table.aliases])
            spelled = _dashed(near) if near and shown.startswith("-") else near
            if name in self.table.shorts:
                spelled = f"-{name}" if shown.startswith("-") else self.table.shorts[name]
            raise InputError(
                f"{self.table.engine} has no flag `{shown}`",
                where=shown,
                mend=f"did you mean `{spelled}`?" if spelled else "remove it, or check its spelling",
            )
        if self.release is not None and not self.table.releases.has(found[0], self.release):
            self.missing.append(found[0])
        return found

    def exact(self, name: str) -> tuple[str, bool] | None:
        for word, negated in ((name, False), (name.removeprefix("no_"), True)):
            own = self.table.aliases.get(word, word)
            if self.table.knows(own) and (not negated or (word != name and self.table.kind(own) == "pair")):
                return own, negated
        return None

    def abbreviation(self, name: str, shown: str) -> tuple[str, bool] | None:
        """The one flag that begins with `name`; of several, the one that the release has."""
        table = self.table
        spelled = [*table.modelled, *table.unread, *table.aliases]
        spelled += [f"no_{word}" for word in spelled if table.kind(table.aliases.get(word, word)) == "pair"]
        meant: dict[tuple[str, bool], str] = {}
        for word in spelled:
            exact = self.exact(word) if word.startswith(name) else None
            if exact is not None:
                meant.setdefault(exact, word)
        here = {flag: word for flag, word in meant.items() if table.releases.has(flag[0], self.release)}
        meant = here or meant
        if len(meant) > 1:
            words = sorted(_dashed(word) for word in meant.values())
            raise InputError(
                f"`{shown}` is the beginning of {len(words)} flags of {table.engine}",
                where=shown,
                mend=f"write one of {', '.join(words[:8])}{', ...' if len(words) > 8 else ''}",
            )
        for flag, word in meant.items():
            self.found.notes.append(f"flag `{shown}` is read as `{_dashed(word)}`, the only one that begins so")
            return flag
        return None

    # Commands -----------------------------------------------------------------------------------------------

    def command(self, launch: Launch) -> EngineFlags:
        """The arguments of a launch command, with what its environment says."""
        words = self.with_file(launch)
        self.arguments([word for word in words if word not in self.worker.parts])
        self.environment(launch.environment)
        said = self.worker.said([launch.worker, *words])
        if said:
            self.found.notes.append(said)
        return self.ended()

    def with_file(self, launch: Launch) -> list[str]:
        """The arguments, those of a file of flags first where the text writes that file."""
        words = list(launch.arguments)
        for i, word in enumerate(words):
            flag, equals, after = word.partition("=")
            asked = flag.startswith("--") and self.table.aliases.get(snake(flag), snake(flag)) == self.table.settings_file
            name = after if equals else next(iter(words[i + 1 : i + 2]), "")
            text = launch.files.get(name, launch.files.get(name.rpartition("/")[2])) if asked else None
            if text is not None:
                from engine_models.launch import flags_of_file

                for key, value in self.unfolded(flags_of_file(text, name)).items():
                    own, negated = self.resolve(snake(str(key)), str(key), abbreviated=False)
                    self.key(own, str(key), value, negated=negated)
                    self.of_file.add(own)
                return words[:i] + words[i + (1 if equals else 2) :]
        return words

    def environment(self, variables: Mapping[str, str]) -> None:
        """Flags that the environment sets, where the command does not; a word on the engine's other variables."""
        table, unread = self.table, []
        for variable, value in variables.items():
            flag = table.environment.get(variable)
            if flag is not None and flag not in self.found.values and "$" not in value and value:
                is_switch = flag in table.modelled and table.modelled[flag].kind == "bool"
                self.key(flag, variable, {"1": "true", "0": "false"}.get(value, value) if is_switch else value)
            elif flag is None and variable.startswith(table.prefixes) and not re.search(table.quiet, f"{variable}={value}"):
                unread.append(variable)
        for variable in [v for v in unread if f"{v}={variables[v]}" in table.hints]:
            unread.remove(variable)
            hint = table.hints[f"{variable}={variables[variable]}"]
            self.found.warnings.append(f"environment variable {variable} is not read; {hint}")
        if unread:
            words = f"variable {unread[0]} is" if len(unread) == 1 else f"variables {', '.join(unread)} are"
            self.found.warnings.append(f"environment {words} not modelled; in the engine such may change the speed of kernels")

    def arguments(self, words: list[str]) -> None:
        at = 0
        while at < len(words):
            word = re.sub(r"^-?[–—]{1,2}(?=\w)", "--", words[at])
            at += 1
            if not word.startswith("-") or word in ("-", "--"):
                self.positional(word)
                continue
            shown, equals, value = word.partition("=")
            name, inline = self.flag_name(shown, value if equals else None)
            name, inside = self.table.parted(name)
            name, negated = self.resolve(name, shown, abbreviated=shown.startswith("--"))
            name, key = self.table.parted(name)
            inside = key or inside
            kind = self.table.kind(name)
            if kind in ("pair", "switch"):
                if inline is None and not negated and at < len(words) and words[at].lower() in ("true", "false"):
                    inline, at = words[at], at + 1
                self.switch(name, shown, inline or "true", negated=negated)
                continue
            values = [inline] if inline is not None else []
            most = {"value": 1, "optional": 1}.get(kind, len(words))
            while at < len(words) and len(values) < most and not _is_flag(words[at]):
                values.append(words[at])
                at += 1
            if not values and kind != "optional" and not (kind == "list" and name in self.table.unread):
                raise InputError(f"`{shown}` lacks its value", where=shown, mend=f"write {shown} VALUE")
            self.valued(name, inside, shown, values)

    def switch(self, name: str, shown: str, value: str, *, negated: bool) -> None:
        flag = self.table.modelled.get(name)
        if flag is not None:
            read = typed_value(flag, shown, value)
            self.store(name, shown, (not read) if negated else read)
        else:
            self.note(name, shown, (value.lower() == "false") == negated)

    def valued(self, name: str, inside: str, shown: str, values: list[str]) -> None:
        flag = self.table.modelled.get(name)
        if flag is not None and not values:
            values = [flag.bare]
        if flag is not None and name in self.table.unfolded:
            for key, value in typed_value(flag, shown, values[0]).items():
                own, negated = self.resolve(snake(key), key, abbreviated=False)
                before = self.found.values.get(own)
                merged = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
                self.key(own, key, merged, negated=negated)
        elif flag is None:
            self.note(name, shown, f"{inside} " * bool(inside) + " ".join(values) if values else "true")
        elif inside:
            self.store_inside(name, inside, shown, values[0])
        else:
            self.store(name, shown, typed_value(flag, shown, " ".join(values) if flag.kind in ("ints", "texts") else values[0]))

    def flag_name(self, shown: str, inline: str | None) -> tuple[str, str | None]:
        if shown.startswith("--"):
            before, dot, inside = shown[2:].partition(".")
            return before.replace("-", "_") + dot + inside, inline
        short, dot, inside = shown[1:].partition(".")
        if dot and short in self.table.with_parts:
            return self.table.with_parts[short] + dot + inside, inline
        if short in self.table.shorts:
            return self.table.shorts[short] + dot + inside, inline
        glued = re.fullmatch(r"([A-Za-z])([0-9].*)", short)  # -O3
        if glued and glued[1] in self.table.shorts:
            return self.table.shorts[glued[1]], glued[2]
        return short.replace("-", "_") + dot + inside, inline

    def positional(self, word: str) -> None:
        hidden = self.model is not None and re.fullmatch(r"\$\w+|\$\{.*\}|\$\(.*\)|<[^<>]*>|\{\{.*\}\}", word)
        if hidden or _ELLIPSES.fullmatch(word):
            self.found.warnings.append(f"`{word}` in the launch command stands for flags that cannot be seen")
        elif word not in ("", "-", "--") and self.model is not None:
            raise InputError(
                f"'{word}' stands beside the model '{self.model}'",
                where=word,
                mend="check the flag before it: it takes no value, or its value is split by a space",
            )
        elif word not in ("", "-", "--"):
            self.model = word

    def store(self, name: str, shown: str, value: Any) -> None:
        if name not in self.of_file and self.found.values.get(name, value) != value:
            self.found.warnings.append(
                f"`{shown}` is given twice; the last value, {value}, counts as in the engine"
            )
        self.found.values[name] = value

    def store_inside(self, name: str, inside: str, shown: str, text: str) -> None:
        """``--speculative-config.num_speculative_tokens 3``: one key of a JSON flag."""
        if self.table.modelled[name].kind not in ("json", "pairs"):
            raise InputError(f"`{shown}` has no parts", where=shown, mend=f"write {_dashed(name)} VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        place = self.found.values.setdefault(name, {})
        *outer, last = inside.split(".")
        for key in outer:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise InputError(f"`{shown}`: {key} is no group", where=shown, mend="give the flag as one JSON object")
        place[last.removesuffix("+")] = value.split(",") if last.endswith("+") and isinstance(value, str) else value

    # Flags that are not read --------------------------------------------------------------------------------

    def note(self, name: str, shown: str, value: Any) -> None:
        """Keep or refuse a flag that the simulation does not read, by what it changes."""
        unread = self.table.unread[name]
        if unread.leaves_all(value):
            return
        if name == self.table.settings_file:
            raise InputError(
                f"`{shown}` {value}: the flags in that file cannot be seen",
                where=shown,
                mend="put it beside the scenario, paste its keys as engine_args, or write it in the text (cat > FILE <<EOF)",
            )
        if unread.refused:
            given = f" {value}" if str(value) not in ("True", "true") else ""
            instead = f"write {unread.neutral[0]}, or remove it" if unread.neutral else "remove it"
            raise InputError(
                f"{self.table.engine} flag `{shown}`{given} is not modelled yet: it changes {unread.changes} by more than the "
                "stated error of a prediction",
                where=shown,
                mend=instead,
            )
        flags = self.unread.setdefault(unread.changes, [])
        if name not in flags:
            flags.append(name)


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_flag(word: str) -> bool:
    return word.startswith(("-", "–", "—")) and len(word) > 1 and not _NUMBER.fullmatch(word)
