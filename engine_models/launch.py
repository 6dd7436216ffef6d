"""Where a launch command stands: in shell text, in a list of words, in a container of a compose file or a Kubernetes manifest.

What an engine's servers are started by is data (`Launcher`); how the arguments are read then is `engine_models.arguments`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

import yaml

from engine_models import scheduled
from engine_models.kserve import with_runtimes
from engine_models.launcher import CONTAINER_KEYS, LONGEST_TEXT, Launcher
from engine_models.python_calls import read_call
from engine_models.python_commands import read_commands
from engine_models.shell import Script, assignment, read_script
from engine_models.swap_configs import as_services
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

_DEEPEST = 64  # nesting of data; assumed, manifests need fewer than 20 levels
_DEEPEST_MERGE = 4  # mappings merged into mappings (`<<`), one into the other

_Loader: Any = type(
    "_Loader",
    (getattr(yaml, "CSafeLoader", yaml.SafeLoader),),
    {"flatten_mapping": lambda self, node: None, "__doc__": "Leaves `<<` as a key: merging it here could fill the memory."},
)
_Loader.add_constructor("tag:yaml.org,2002:merge", lambda loader, node: "<<")
_READS_AS_YAML = re.compile(r"\s*(#[^\n]*\n\s*)*(---\s|- |\{\s*\"|\[(?![\w:-]+\]\s*\n)|[A-Za-z][\w./-]*:(\s|$))")
_ENGINES_OF_CONTAINERS = ("docker", "podman", "nerdctl", "apptainer", "singularity")
_VALUES_BEFORE_IMAGE = re.compile(
    r"-[vewuphl]|--(volume|env|name|mount|workdir|env-file|hostname|user|label|network|publish|gpus|device|entrypoint|add-host|"
    r"ulimit|shm-size|runtime|ipc|restart|cap-add|security-opt|group-add)"
)
_ANY_IMAGE = re.compile(r"\$\w+|\$\{\w+\}|<[^<>]*>|[A-Za-z0-9][\w.-]*(?:[/:][\w.@-]+)+")
_RUN_IMAGES = {"kubectl": "", "oc": "", "vastai": "", "gcloud": ","}
"""Tools that run an image (``--image``), and what stands between the arguments in ``--args``, "" where they are the rest."""
_SHELLS = ("bash", "sh", "zsh", "sleep", "tail")
_HELP = ("--help", "-h", "--version")
_TEMPLATE_LINE = re.compile(r"(?m)^[ \t]*\{\{.*\}\}[ \t]*$")
_TEMPLATE = re.compile(r"\{\{.*?\}\}")
_ELSEWHERE_SET = (
    re.compile(r"(?m)^Environment=(?P<q>['\"]?)(?P<n>[A-Z]\w*)=(?P<v>[^'\"\n]*)(?P=q)[ \t]*$"),  # a unit of systemd
    re.compile(r"(?m)^[ \t]*\$env:(?P<n>\w+)[ \t]*=[ \t]*(?P<q>['\"]?)(?P<v>[^'\"\n]*?)(?P=q)[ \t]*$"),  # PowerShell
    re.compile(r"(?m)^[ \t]*(?:launchctl setenv|setx)[ \t]+(?P<n>\w+)[ \t]+(?P<q>['\"]?)(?P<v>[^'\"\n]*?)(?P=q)[ \t]*$"),
)
"""Settings of the environment as other programs than a shell write them."""
_COPIES = (("minReplicas", "maxReplicas"), ("minReplicaCount", "maxReplicaCount"), ("min_replicas", "max_replicas"))
"""Least and most copies, as Kubernetes and KServe, KEDA, and Ray name them."""
_OF_NOTEBOOKS = re.compile(r"(?m)^[ \t]*(?:%%(?:bash|sh|script)\b[^\n]*\n|!(?=[A-Za-z./]))")
"""What a cell of a notebook has before commands of a shell."""
_RANGE = re.compile(r"(\d{1,6})\.\.(\d{1,6})")
_TYPESET = str.maketrans("“”‘’", "\"\"''")
_REQUIRED = re.compile(r"[\"']([\w./\[\],-]+(?:==|:)v?[0-9][\w.+-]*)[\"']")
"""Packages and images of one version, as texts of a program."""
_FROM = re.compile(r"(?m)^FROM[ \t]+(?:--\S+[ \t]+)*(\S+)")
_UNIT = re.compile(r"(?m)^(Image|Exec)=(.*(?:\\\n.*)*)$")
"""Image and command of a container that systemd starts (Podman's quadlets)."""
_DOCKERFILE = re.compile(r"(?m)^(ENTRYPOINT|CMD)[ \t]+(\[[^\]]*\])")
_SPEAK_OF_COMMANDS = (
    *("pkill", "pgrep", "killall", "grep", "echo", "ps", "which", "man", "alias", "printf"),
    *("cmake", "make", "cp", "mv", "ln", "ls", "chmod", "rm", "tar", "find", "test", "for"),
)
_REFERENCE = re.compile(r"\$\((\w+)\)|\$?\$\{(\w+)(?::?-([^{}]*))?\}")
_TAG_VERSION = re.compile(r"v?([0-9]+\.[0-9]+(?:\.[0-9]+)?(?:\.post[0-9]+)?)(?:rc[0-9]+)?(?=$|[-_+])")


Bounds = tuple[int | None, int | None]
"""Least and most copies, None for one that is not said."""


@dataclass(frozen=True)
class Launch:
    """One server that is started: its arguments, its environment, and the files written beside it.

    worker : pattern of the other product's program that starts it, "" for the engine's own.
    names : of the container and of what stands around it (a compose service, a manifest's object).
    version, said, tag : as `Found` has them, where its own image says so. replicas : copies that its manifest asks for;
    copies : least and most that this says an autoscaler may set.
    """

    arguments: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    worker: str = ""
    names: tuple[str, ...] = ()
    version: str | None = None
    said: str = ""
    tag: str | None = None
    replicas: int | None = None
    copies: Bounds | None = None


@dataclass
class Found:
    """What a text starts. `named` : whether it names the engine, or holds flags alone.

    version : as an image's tag or a requirement states it; said : the words that do. `tag` : a tag that names no release.
    others : commands that start nothing of this engine, with settings of their environment before them.
    strangers : containers that start nothing of it, by name, with their commands.
    keys : flags as a group of keys (a config file), where the text is that; called : where they are those of a call.
    model : that a client of the server names.
    copies : bounds that autoscalers by themselves keep, by the name of what they scale.
    """

    launches: list[Launch] = field(default_factory=list)
    named: bool = False
    version: str | None = None
    said: str = ""
    tag: str | None = None
    others: list[list[str]] = field(default_factory=list)
    strangers: list[tuple[str, list[str]]] = field(default_factory=list)
    keys: Mapping[str, Any] | None = None
    called: bool = False
    model: str | None = None
    copies: list[tuple[str | None, Bounds]] = field(default_factory=list)

    def bounds(self, launch: Launch) -> Bounds | None:
        """Least and most copies of a server that an autoscaler may set; None where none stands in the text."""
        of_it = (bounds for target, bounds in self.copies if target is None or target in launch.names)
        return launch.copies or next(of_it, None)


def find_launches(source: str | Sequence[Any] | Mapping[str, Any], launcher: Launcher) -> Found:
    """Return the servers of an engine that `source` starts.

    It is shell text, YAML text, a list of words, or a mapping: a container (`image`, `command`, `args`, `entrypoint`,
    `environment` or `env`) or anything with containers inside.
    """
    search = _Search(launcher)
    if isinstance(source, str):
        if len(source) > LONGEST_TEXT:
            raise InputError(
                f"the launch command is longer than {LONGEST_TEXT:,} characters",
                mend="paste the part that starts the server alone",
            )
        text = _OF_NOTEBOOKS.sub("", _unfenced(source).translate(_TYPESET))
        for pattern in _ELSEWHERE_SET:
            text = pattern.sub(lambda found: f"export {found['n']}={shlex.quote(found['v'])}", text)
        search.text(text)
    else:
        search.data(source, alone=True)
    found = search.found
    if found.model is not None and not found.launches:  # a client alone: of a server with its defaults
        found.launches.append(Launch([]))
        found.named = True
    return found


def _unfenced(text: str) -> str:
    """Text without the marks of code that Markdown puts around it."""
    lines = text.strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("```") and lines[-1].strip() == "```":
        return "\n".join(lines[1:-1])
    bare = text.strip()
    return bare[1:-1] if bare.startswith("`") and bare.endswith("`") and bare.count("`") == 2 else text


def _documents(text: str) -> list[Any]:
    """YAML documents; of a template the text without its fillings."""
    if "{{" in text:
        text = _TEMPLATE.sub("<template>", _TEMPLATE_LINE.sub("", text))
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, RecursionError, ValueError):
        raise InputError(
            "the launch command begins like YAML, but is none", mend="check its indentation, or paste the command alone"
        ) from None


def flags_of_file(text: str, name: str) -> Mapping[str, Any]:
    """The flags of a settings file by name; InputError if it is no group of keys."""
    try:
        documents = _documents(text)
    except InputError:
        raise InputError(
            f"{name} is no YAML: a value in it may stand for what only the shell knows", where=name, mend="write its values out"
        ) from None
    if len(documents) != 1 or not isinstance(documents[0], Mapping):
        raise InputError(f"{name} is no group of flags", where=name, mend="write `flag-name: value` in each line")
    found: Mapping[str, Any] = documents[0]
    return found


class _Search:
    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.programs = [(re.compile(rf"(?:\S*[/=]|\.)?(?:{program})"), "") for program in launcher.programs]
        self.programs += [(re.compile(program), program) for program in launcher.workers]
        self.clients = [re.compile(client) for client in launcher.clients]
        self.image = re.compile(rf"(?:\S+/)?(?:{launcher.image})(?::[\w.-]+)?(?:@sha256:\w+)?", re.IGNORECASE)
        started = (*launcher.programs, *launcher.workers)
        self.anywhere = re.compile("|".join(f"(?:{program.replace(' ', chr(92) + 's+')})" for program in started))
        self.found = Found()
        self.mounted: dict[str, str] = {}
        self.seen: set[int] = set()
        self.depth = 0

    # Data ---------------------------------------------------------------------------------------------------

    def text(self, text: str) -> None:
        """A call in Python, YAML, or shell text; what that writes into files is looked at where it starts nothing itself."""
        call = read_call(text, self.launcher.calls, self.launcher.groups, self.launcher.first)
        if call is not None:
            document = self.launcher.written(call.keys)
            if document is not call.keys:
                self.containers(document)
            else:
                self.found.keys, self.found.named = self.launcher.called(call.keys), call.named
                self.found.called = not self.launcher.first
            return
        if self.program_text(text):
            return
        if _READS_AS_YAML.match(text):
            documents = with_runtimes(_documents(text))
            self.mounted |= _mounted(documents)
            for document in documents:
                self.data(document, alone=len(documents) == 1)
            return
        if "[Container]" in text and (unit := dict(_UNIT.findall(text))):
            exports = "\n".join(line for line in text.splitlines() if line.startswith("export "))
            command = unit.get("Exec", "").replace("\\\n", " ")
            self.container({"image": unit.get("Image"), "command": command, "environment": _singles(read_script(exports))})
            return
        text, words = self.dockerfile(text)
        script = read_script(text, {name: [value] for name, value in scheduled.of_script(text).items()})
        self.script(script)
        if words:
            image = _FROM.findall(text)[-1:]
            self.command(["docker", "run", *image, *words] if image else words, _singles(script), script.files)
        if not self.found.launches:
            for body in script.files.values():
                self.text(body)

    def program_text(self, text: str) -> bool:
        """Whether the text is a program that starts servers by commands, which are read."""
        for command in read_commands(text):
            before = len(self.found.launches)
            if self.program(command.words)[0] is None and self.image_at(command.words) is None:
                self.inside(command.words, {})
            else:
                self.command(command.words, {}, {})
            unsaid = command.unsaid or next((f"what `{word[3:]}` is" for word in command.words if word.startswith("--*")), "")
            if unsaid and len(self.found.launches) > before:
                raise InputError(
                    f"further words of the program's command depend on {unsaid}, which the text does not say",
                    mend="paste the command that it makes",
                )
        if self.found.launches:
            self.versions(_REQUIRED.findall(text), 0)
        return bool(self.found.launches)

    def dockerfile(self, text: str) -> tuple[str, list[str]]:
        """The text without the lists of ENTRYPOINT and CMD, and their words."""
        lists: dict[str, list[str]] = {}
        for found in _DOCKERFILE.finditer(text):
            try:
                lists[found[1]] = [str(word) for word in json.loads(found[2].replace("\\\n", "\n"))]
            except ValueError:
                return text, []
        return (_DOCKERFILE.sub("", text) if lists else text), [*lists.get("ENTRYPOINT", []), *lists.get("CMD", [])]

    def data(self, data: Any, *, alone: bool) -> None:
        """A document: a list of words, containers or scripts anywhere inside, or (`alone`) flags by name."""
        if isinstance(data, str):
            self.text(data)
            return
        if isinstance(data, list | tuple) and all(not isinstance(item, dict | list) for item in data):
            self.command(_listed(data, {}), {}, {})
            return
        elif isinstance(data, Mapping):
            data = self.launcher.written(as_services(data))
        if isinstance(data, Mapping | list | tuple) and not self.containers(data):
            self.seen.clear()
            self.scripts(data, {})
            if isinstance(data, Mapping) and (copies := scheduled.copies_of(data)) is not None:
                self.found.launches[:] = [replace(launch, replicas=copies) for launch in self.found.launches]
            if alone and not self.found.launches and isinstance(data, Mapping) and not {"kind", "apiVersion"} & {*data}:
                self.found.keys = data

    def scripts(self, data: Any, environment: Mapping[str, str], depth: int = 0) -> None:
        """Commands in the texts inside `data`, with the environment that stands beside them."""
        if isinstance(data, str):
            self.inside([data], environment)
            if not self.anywhere.search(data):  # what is installed, or the image, beside the command
                words = [word.strip("\"'").removeprefix("docker:") for word in data.split()]
                self.versions(words, len(self.found.launches))
        if not isinstance(data, Mapping | list | tuple) or id(data) in self.seen or depth > _DEEPEST:
            return
        self.seen.add(id(data))
        if isinstance(data, Mapping):
            environment = {**environment, **scheduled.of_document(data)}
            for key in ("env", "envs", "environment"):
                environment = {**environment, **dict(_environment(data.get(key)))}
        for child in data.values() if isinstance(data, Mapping) else data:
            self.scripts(child, environment, depth + 1)

    def containers(
        self,
        data: Any,
        depth: int = 0,
        replicas: Any = None,
        names: tuple[str, ...] = (),
        bounds: tuple[str | None, Bounds] | None = None,
    ) -> bool:
        """Read every container inside `data`, of which something around asks for `replicas`; whether there is any.

        names : of what stands around it; bounds : what that says of an autoscaler, with the name of what it scales.
        """
        if id(data) in self.seen or depth > _DEEPEST:
            return False
        self.seen.add(id(data))
        data = _merged(data) if isinstance(data, Mapping) else data
        if isinstance(data, Mapping):
            if isinstance(data.get("image"), Mapping) and {"command", "args"} & {*data}:
                data = {**data, "image": _named(data["image"])}
            bounds = _copies(data) or bounds
            around = data.get("metadata")
            names += tuple(name for of in (around, data) if isinstance(of, Mapping) and isinstance(name := of.get("name"), str))
        if isinstance(data, Mapping) and {*CONTAINER_KEYS} & {*data} and not isinstance(data.get("image"), dict):
            before, commands = len(self.found.launches), len(self.found.others)
            self.container(data)
            deploy = data.get("deploy")
            around = deploy.get("replicas") if isinstance(deploy, Mapping) else None
            own = data.get("scale", data.get("replicas", data.get("replicaCount", around)))
            copies = replicas if own is None else own
            whole = copies if isinstance(copies, int) and not isinstance(copies, bool) else None
            self.found.launches[before:] = [
                replace(launch, names=names, replicas=whole, copies=bounds and bounds[1])
                for launch in self.found.launches[before:]
            ]
            self.found.strangers += [(names[-1] if names else "", words) for words in self.found.others[commands:]]
            return True
        if isinstance(data, Mapping):  # those named x-... are templates of a compose file
            replicas = data.get("replicas", replicas)
            found = [
                self.containers(child, depth + 1, replicas, (*names, str(key)), bounds)
                for key, child in data.items()
                if not str(key).startswith("x-")
            ]
            if bounds is not None and not any(found) and _copies(data):
                self.found.copies.append(bounds)
            return any(found)
        children: Sequence[Any] = data if isinstance(data, list | tuple) else ()
        found = [self.containers(child, depth + 1, replicas, names, bounds) for child in children]
        return any(found)

    def container(self, data: Mapping[str, Any]) -> None:
        environment = dict(_environment(data.get("environment"))) | dict(_environment(data.get("env")))
        words: list[str] = []
        for key in ("entrypoint", "command", "args"):
            words += _words(data.get(key), environment)
        image = data.get("image")
        image_word = [image] if isinstance(image, str) else []
        before = len(self.found.launches)
        if not words:  # a task with commands of its own
            self.scripts({key: child for key, child in data.items() if key != "image"}, environment)
        if len(self.found.launches) > before:
            self.versions(image_word, before)
        else:
            set_here = [f"{name}={value}" for name, value in environment.items()]
            self.command(["docker", "run", *image_word, *words] if image_word else words, environment, {}, set_here)

    # Commands -----------------------------------------------------------------------------------------------

    def script(self, script: Script) -> None:
        environment = {name: values[0] for name, values in script.variables.items() if len(values) == 1}
        for words in script.commands:
            self.command(words, environment, script.files)

    def command(
        self, words: list[str], environment: Mapping[str, str], files: Mapping[str, str], set_here: Sequence[str] = ()
    ) -> None:
        """One command: note the server it starts, and the version that it speaks of. `set_here` : its environment as words."""
        if not words:
            return
        words = _as_container(words)
        before = len(self.found.launches)
        at, worker = self.program(words)
        image = self.image_at(words)
        given = {**environment, **dict(_assigned(words[: at if at is not None else image]))}
        if at is not None and (words[0] in _SPEAK_OF_COMMANDS or {*words[at:]} & {*_HELP}):
            pass
        elif at is not None:
            self.launch(words[at:], given, files, named=True, worker=worker)
            if worker:  # which may start a router besides
                self.found.others.append([*set_here, *words])
        elif (client := self.client(words)) is not None:
            self.found.model = self.found.model or client
        elif image is not None:
            self.contained(words, image, given, files)
        elif words[0] == "serve" or (words[0].startswith("-") and not self.found.others):
            self.launch(words[words[0] == "serve" :], environment, files, named=False)
        elif words[0] not in _SPEAK_OF_COMMANDS:
            self.inside(words, given)
        if len(self.found.launches) == before and words[0] not in ("cat", "tee"):
            self.found.others.append([*set_here, *words])
        self.versions(words, before)

    def launch(
        self, arguments: list[str], environment: Mapping[str, str], files: Mapping[str, str], *, named: bool, worker: str = ""
    ) -> None:
        self.found.launches.append(Launch(arguments, environment, {**self.mounted, **files}, worker))
        self.found.named |= named

    def program(self, words: list[str]) -> tuple[int | None, str]:
        """Where the arguments begin, behind the engine's program; the pattern of another product's, "" for its own."""
        for i in range(len(words)):
            for end in range(min(i + 3, len(words)), i, -1):
                for pattern, worker in self.programs:
                    if pattern.fullmatch(" ".join(words[i:end])):
                        return end, worker
        return None, ""

    def client(self, words: list[str]) -> str | None:
        """The model that a client of the engine's server names, as in ``ollama run MODEL``."""
        for i in range(len(words)):
            if any(client.fullmatch(" ".join(words[i : i + 2])) for client in self.clients):
                return next((word for word in words[i + 2 :] if not word.startswith("-")), None)
        return None

    def image_at(self, words: list[str]) -> int | None:
        """Where the engine's image stands in a ``docker run``."""
        if not self.launcher.image or not {*_ENGINES_OF_CONTAINERS} & {w.rpartition("/")[2] for w in words} or "run" not in words:
            return None
        places = range(words.index("run") + 1, len(words))
        free = [i for i in places if not _VALUES_BEFORE_IMAGE.fullmatch(words[i - 1])]
        own = [i for i in free if self.image.fullmatch(words[i])]
        tagged = (i for i in own if re.search("[/:]", words[i]))
        return next(tagged, next((i for i in free if i in own or _ANY_IMAGE.fullmatch(words[i])), None))

    def contained(self, words: list[str], image: int, environment: Mapping[str, str], files: Mapping[str, str]) -> None:
        """What follows the image of a container, behind the entry point that is asked for."""
        entry = [words[i + 1] for i, word in enumerate(words[:image]) if word == "--entrypoint"]
        entry += [word.partition("=")[2] for word in words[:image] if word.startswith("--entrypoint=")]
        rest = [*entry, *words[image + 1 :]]
        at, worker = self.program(rest)
        if at is not None:
            self.launch(rest[at:], environment, files, named=True, worker=worker)
            return
        before = len(self.found.launches)
        self.inside(rest, environment)
        if len(self.found.launches) > before or (rest and rest[0].rpartition("/")[2] in _SHELLS):
            return
        own = self.image.fullmatch(words[image]) is not None
        if not entry and not {*rest} & {*_HELP} and ((own and self.launcher.enters) or (rest and rest[0].startswith("-"))):
            self.launch(rest[rest[:1] == ["serve"] :], environment, files, named=own)

    def inside(self, words: list[str], environment: Mapping[str, str]) -> None:
        """Commands in a word of their own: ``bash -c "..."``."""
        for word in words:
            if self.depth < _DEEPEST and re.search(r"\s", word) and self.anywhere.search(word):
                try:
                    script = read_script(word, {name: [value] for name, value in environment.items()})
                except InputError:
                    continue
                self.depth += 1
                for inner in script.commands:
                    self.command(inner, {**environment, **_singles(script)}, script.files)
                self.depth -= 1

    # Versions -----------------------------------------------------------------------------------------------

    def versions(self, words: list[str], before: int) -> None:
        """Note the version that an image's tag or a requirement states, of the servers from `before` on, else of the text."""
        found, published = self.found, re.compile(rf"(?:\S+/)?(?:{self.launcher.published})(?::([\w.-]+))?(?:@sha256:\w+)?")
        required = re.compile(rf"{re.escape(self.launcher.package)}(?:\[[\w,.-]*\])?==v?([0-9][\w.]*)(?:\+\S*)?")
        launching = len(found.launches) > before
        for word in words:
            image = published.fullmatch(word) if self.launcher.published else None
            tag = _TAG_VERSION.match(image[1] or "") if image else None
            pinned = required.fullmatch(word) if self.launcher.package else None
            version = tag[1] if tag else pinned[1] if pinned else None
            said = f"image {word}" if tag else word
            if version is None and image:
                stated = [replace(launch, tag=image[1] or "latest") for launch in found.launches[before:]]
            elif version is not None:
                stated = [replace(launch, version=version, said=said) for launch in found.launches[before:]]
                if not launching and found.version is None:
                    found.version, found.said = version, said
            else:
                continue
            found.launches[before:] = stated


def _mounted(documents: list[Any]) -> dict[str, str]:
    """Files that ConfigMaps hold, by the names that they have wherever they are mounted; of several of a name none."""
    held: dict[str, set[str]] = {}
    for document in documents:
        data = document.get("data") if isinstance(document, Mapping) and document.get("kind") == "ConfigMap" else None
        for name, body in data.items() if isinstance(data, Mapping) else ():
            if isinstance(body, str):
                held.setdefault(str(name), set()).add(body)
    return {name: next(iter(bodies)) for name, bodies in held.items() if len(bodies) == 1}


def _copies(data: Mapping[str, Any]) -> tuple[str | None, Bounds] | None:
    """Between which bounds an autoscaler may set the copies, and of what; None where the mapping says nothing of it."""
    target = data.get("scaleTargetRef")
    name = target.get("name") if isinstance(target, Mapping) else None
    for names in _COPIES if data.get("enabled") is not False else ():
        low, high = (end if type(end) is int else None for end in map(data.get, names))
        if low is not None or high is not None:
            return name, (low, high)
    if found := _RANGE.fullmatch(str(data.get("replicas"))):  # of dstack
        return name, (int(found[1]), int(found[2]))
    return None


def _merged(data: Mapping[Any, Any], depth: int = 0) -> Mapping[Any, Any]:
    """A mapping with those that it merges (``<<: *common``)."""
    bases = data.get("<<")
    merged: dict[Any, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if isinstance(base, Mapping) and depth < _DEEPEST_MERGE:
            merged = {**_merged(base, depth + 1), **merged}
    return {**merged, **{key: value for key, value in data.items() if key != "<<"}}


def _as_container(words: list[str]) -> list[str]:
    """What a tool of a cluster or a cloud runs as an image, as a ``docker run``; other commands as they are."""
    tool = words[0].rpartition("/")[2]
    images = [word.partition("=")[2] for word in words if word.startswith("--image=")]
    images += [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--image"]
    if tool not in _RUN_IMAGES or not images:
        return words
    rest: list[str] = []
    for i, word in enumerate(words):
        if word == "--" or (word == "--args" and not _RUN_IMAGES[tool]):
            return ["docker", "run", images[0], *words[i + 1 :]]
        if _RUN_IMAGES[tool] and (word.startswith("--args=") or word == "--args"):
            rest = (word.partition("=")[2] or " ".join(words[i + 1 : i + 2])).split(_RUN_IMAGES[tool])
    return ["docker", "run", images[0], *rest]


def _named(image: Any) -> Any:
    """An image whose registry, repository and tag are keys, as charts have them, as one word."""
    if not isinstance(image, Mapping) or not isinstance(image.get("repository"), str):
        return image
    registry, tag = image.get("registry"), image.get("tag")
    return "/".join(filter(None, (registry, image["repository"]))) + (f":{tag}" if tag else "")


def _singles(script: Script) -> dict[str, str]:
    return {name: values[0] for name, values in script.variables.items() if len(values) == 1}


def _assigned(words: list[str]) -> Iterator[tuple[str, str]]:
    """Settings of the environment before a command, or of a container (``-e NAME=VALUE``)."""
    for word in words:
        pair = assignment(word.removeprefix("--env="))
        if pair is not None:
            yield pair


def _environment(data: Any) -> Iterator[tuple[str, str]]:
    """The environment of a container: a mapping, ``NAME=VALUE`` texts, or ``{name, value}`` pairs."""
    if isinstance(data, Mapping):
        yield from ((str(name), _text(value)) for name, value in data.items())
    for item in data if isinstance(data, list | tuple) else ():
        if isinstance(item, Mapping) and "name" in item and isinstance(item.get("value"), str | int | float):
            yield str(item["name"]), _text(item["value"])
        elif isinstance(item, str) and (pair := assignment(item)):
            yield pair


def _words(data: Any, environment: Mapping[str, str]) -> list[str]:
    """A command of a container as words: shell text, or a list of words."""
    if isinstance(data, str):
        commands = read_script(data, {name: [value] for name, value in environment.items()}).commands
        return commands[0] if len(commands) == 1 else ["sh", "-c", data] if commands else []
    return _listed(data, environment) if isinstance(data, list | tuple) else []


def _listed(items: Sequence[Any], environment: Mapping[str, str]) -> list[str]:
    """Words of a list; a flag and its value in one item are told apart."""
    words: list[str] = []
    for item in items:
        text = _REFERENCE.sub(lambda m: environment.get(m[1] or m[2], m[0] if m[3] is None else m[3]), _text(item))
        flag = re.match(r"--?[\w.-]+\s", text)
        words += [word for command in read_script(text).commands for word in command] if flag else [text]
    return words


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
