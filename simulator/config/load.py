"""From a scenario file, a shipped name or a dict to a checked `Scenario`, and back to plain data."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_models.engines.known import find, parse_engine_args
from engine_models.launcher import LONGEST_TEXT
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.files import read_text
from hardware_profiles.records import dataclass
from simulator.config.located import MAX_FILE_BYTES, Located, locate_data, mapping, read_yaml, sequence
from simulator.config.overrides import apply_override
from simulator.config.problems import explain, locate, raise_all

if TYPE_CHECKING:
    from simulator.config.schema import Scenario

_FILE_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".txt", ".gz", ".yaml", ".yml")


@dataclass(frozen=True)
class Written:
    """A scenario as it is written, with its overrides: what the points of a sweep have in common.

    folder, name : of the file, None where there is none. problems : those found while it was read.
    """

    root: Located
    folder: Path | None
    name: str | None
    problems: tuple[InputError, ...]


Source = str | PathLike[str] | Mapping[str, Any] | Written
"""A file, the name of a shipped scenario, YAML text (with a line break), a dict, or what `read_scenario` made of one."""


def read_scenario(source: Source, overrides: Sequence[str] = ()) -> Written:
    """Read a scenario, unchecked; `overrides` are ``path=value`` texts, applied in order (see `apply_override`)."""
    problems: list[InputError] = []
    if isinstance(source, Written):
        root, folder, name = source.root, source.folder, source.name
        problems += source.problems
    else:
        root, folder, name = _read(source, problems)
    if not isinstance(root.value, dict):
        raise InputError(
            "a scenario is a group of keys",
            where=root.where,
            mend="begin with model:, deployment: and workload:",
        )
    for override in overrides:
        root = apply_override(root, override, problems)
    return Written(root, folder, name, tuple(problems))


def load_scenario(source: Source, overrides: Sequence[str] = (), *, varied: Sequence[str] = ()) -> Scenario:
    """Return the checked scenario.

    Parameters
    ----------
    source, overrides : as in `read_scenario`.
    varied : as `overrides`, applied last: a point of a sweep, whose errors speak of ``--vary``.

    Paths of models, traces and lengths files are taken from the scenario's folder, then from the working
    directory, and become absolute. Raises InputError, with the file, line and mend of every problem found.
    """
    written = read_scenario(source, overrides)
    root, name, problems = written.root, written.name, list(written.problems)
    for override in varied:
        root = apply_override(root, override, problems, "--vary")
    if name and ("name" not in root.value or root.value["name"].value is None):
        root = mapping({"name": Located(name, root.where), **root.value}, root.where)
    return _checked(_with_paths(root, written.folder, problems), problems)


def place_of(path: str, source: str | PathLike[str], overrides: Sequence[str] = ()) -> str | None:
    """Return the file and line of a key of the scenario, by its path (``deployment.speculative.model``).

    Of a key that the scenario leaves to its default: of the nearest key above it. None if the path is none of a scenario's.
    """
    problems: list[InputError] = []
    root, _, _ = _read(source, problems)
    for override in overrides:
        root = apply_override(root, override, problems)
    found, node = locate(root, [int(part) if part.isdigit() else part for part in path.split(".")])
    return node.where if found and not problems else None


def _checked(root: Located, problems: list[InputError]) -> Scenario:
    from pydantic import ValidationError

    from simulator.config.flags_of import fill_from_flags, flag_problems
    from simulator.config.schema import Scenario

    try:
        scenario = Scenario.model_validate(root.plain())
    except ValidationError as error:
        raise_all([*problems, *explain(error, root, Scenario), *flag_problems(root)])
        raise
    if problems:
        raise_all([*problems, *flag_problems(root)])
    return fill_from_flags(scenario, root)


# Reading --------------------------------------------------------------------------------------------------


def _read(
    source: str | PathLike[str] | Mapping[str, Any], problems: list[InputError]
) -> tuple[Located, Path | None, str | None]:
    if isinstance(source, Mapping):
        return locate_data(source, "scenario", problems), None, None
    if isinstance(source, str) and "\n" in source:
        return read_yaml(source, "scenario", problems), None, None
    path = _file_of(source)
    return read_yaml(read_text(path, MAX_FILE_BYTES), _shown_path(source, path), problems), path.parent, path.stem


def shipped_scenarios() -> dict[str, Path]:
    """Return the scenarios that come with the package, by name."""
    import scenarios

    return {path.stem: path for folder in scenarios.__path__ for path in sorted(Path(folder).glob("*.yaml"))}


def _file_of(source: str | PathLike[str]) -> Path:
    path = Path(source)
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    shipped = shipped_scenarios()
    if exists and not (str(source) in shipped and path.is_dir()):
        return path
    if str(source) in shipped:
        return shipped[str(source)]
    near = nearest(str(source), list(shipped))
    beside = [f"{source}{ending}" for ending in (".yaml", ".yml") if not path.suffix and Path(f"{source}{ending}").is_file()]
    near = beside[0] if beside else near
    raise InputError(
        f"there is no scenario '{source}': no such file, and no shipped scenario of that name",
        where=str(source),
        mend=f"did you mean '{near}'?"
        if near
        else "check the path; `capacity-plan list scenarios` names the shipped",
    )


def _shown_path(source: str | PathLike[str], path: Path) -> str:
    return str(source) if path == Path(source) else path.name


# Paths inside a scenario ----------------------------------------------------------------------------------


def _with_paths(root: Located, folder: Path | None, problems: list[InputError]) -> Located:
    children = dict(root.value)
    if "model" in children:
        children["model"] = _with_file(children["model"], folder, problems, in_folder="config.json")
    if "workload" in children:
        children["workload"] = _with_load_files(children["workload"], folder, problems)
    if "deployment" in children:
        children["deployment"] = _with_pool_files(children["deployment"], folder, problems)
        children["deployment"] = _with_flag_files(children["deployment"], folder)
    return mapping(children, root.where)


def _with_pool_files(node: Located, folder: Path | None, problems: list[InputError]) -> Located:
    """Make models, devices, caches and calibrations that are files absolute; other names are catalogues' or mere labels."""
    if isinstance(node.value, list):
        return sequence([_with_pool_files(child, folder, problems) for child in node.value], node.where)
    if not isinstance(node.value, dict):
        return node
    children = dict(node.value)
    if "pools" in children:
        children["pools"] = _with_pool_files(children["pools"], folder, problems)
    if "model" in children:
        children["model"] = _with_file(children["model"], folder, problems, in_folder="config.json")
    for key in ("calibration", "warm_cache", "hardware"):
        if key in children:
            children[key] = _with_file(children[key], folder, problems)
    drafts = children.get("speculative")
    if drafts is not None and isinstance(drafts.value, dict) and "model" in drafts.value:
        named = _with_file(drafts.value["model"], folder, [], in_folder="config.json")
        children["speculative"] = mapping({**drafts.value, "model": named}, drafts.where)
    return mapping(children, node.where)


def _with_flag_files(node: Located, folder: Path | None) -> Located:
    """Write files of flags that launch commands name (``--config FILE``, ``--a-b-options FILE``) into them, where they exist."""
    if isinstance(node.value, list):
        return sequence([_with_flag_files(child, folder) for child in node.value], node.where)
    if not isinstance(node.value, dict):
        return node
    children = {key: _with_flag_files(child, folder) if key == "pools" else child for key, child in node.value.items()}
    args = children.get("engine_args")
    if args is not None and isinstance(args.value, str):
        text = args.value
        for name in dict.fromkeys(found[2] for found in _FLAG_FILE.finditer(text)):
            content = _flag_file(name, folder)
            if content is not None and f"<<'{_END_OF_FILE}'" not in text:
                text = f"cat > {shlex.quote(name)} <<'{_END_OF_FILE}'\n{content}\n{_END_OF_FILE}\n{text}"
        children["engine_args"] = Located(text, args.where)
    if args is not None and "engine" in children:
        children["engine_args"] = _with_folder(children["engine_args"], str(children["engine"].value), folder)
    return mapping(children, node.where)


def _with_folder(args: Located, engine: str, folder: Path | None) -> Located:
    """Flags beside those that a folder of configurations says which they name, where it exists."""
    named = find(engine)
    table = named.flags() if named is not None else None
    if table is None or table.read_folder is None:
        return args
    given: dict[str, Any] = dict(args.value) if isinstance(args.value, dict) else {}
    text = given[table.folder].plain() if table.folder in given else None
    if isinstance(args.value, str):
        found = re.search(rf"--{table.folder.replace('_', '-')}[=\s]+(['\"]?)([^\s'\"]+)\1", args.value)
        text = found[2] if found else None
    places = [base / str(text) for base in (folder, Path.cwd()) if text and base is not None]
    path = next((place for place in places if place.is_dir()), None)
    if path is None:
        return args
    try:
        read = locate_data(table.read_folder(path), args.where, []).value
        if isinstance(args.value, str):
            given = locate_data(parse_engine_args(engine, args.value).values, args.where, []).value
    except InputError as error:
        raise InputError(error.message, where=f"{args.where}, {error.where}", mend=error.mend) from None
    return mapping({name: value for name, value in {**read, **given}.items() if name != table.folder}, args.where)


_FLAG_FILE = re.compile(r"--(?:[\w-]+[-_])?(?:config|options|engine[-_]args)[=\s]+(['\"]?)([^\s'\"]+)\1")
_END_OF_FILE = "END_OF_FLAGS"


def _flag_file(name: str, folder: Path | None) -> str | None:
    """The text of a file of flags, from the scenario's folder or the working directory; None if there is none to read."""
    for base in (folder, Path.cwd()):
        try:
            path = base / name if base is not None else None
            if path is not None and path.is_file() and path.stat().st_size <= LONGEST_TEXT:
                return path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
    return None


def _with_load_files(node: Located, folder: Path | None, problems: list[InputError]) -> Located:
    if isinstance(node.value, list):
        return sequence([_with_load_files(child, folder, problems) for child in node.value], node.where)
    if not isinstance(node.value, dict):
        return node
    children = {
        key: _with_file(child, folder, problems)
        if key in ("trace", "file")
        else _with_load_files(child, folder, problems)
        for key, child in node.value.items()
    }
    return mapping(children, node.where)


def _with_file(
    node: Located, folder: Path | None, problems: list[InputError], in_folder: str | None = None
) -> Located:
    """Make `node` absolute if it names a file; a name that is none of a file stays, for the catalogues."""
    text = node.value
    if not isinstance(text, str) or not text or "\0" in text:
        return node
    tried = [base / text for base in (folder, Path.cwd()) if base is not None]
    for path in tried:
        for candidate in (path, path / in_folder) if in_folder else (path,):
            try:
                found = candidate.is_file() or (not in_folder and "/" in text and candidate.is_dir())
            except OSError:
                found = False
            if found:
                return Located(str(candidate.resolve()), node.where)
    if text.lower().endswith(_FILE_SUFFIXES) or Path(text).is_absolute():
        places = " or ".join(dict.fromkeys(str(path.parent) for path in tried))
        problems.append(
            InputError(
                f"there is no file '{text}'", where=node.where, mend=f"check the path; looked in {places}"
            )
        )
    return node


# Back to data ---------------------------------------------------------------------------------------------


def resolved(scenario: Scenario) -> dict[str, Any]:
    """Return the scenario with every default, ready for JSON; `load_scenario` of it is the same scenario."""
    return scenario.model_dump(mode="json", by_alias=True)


def scenario_hash(scenario: Scenario, version: str) -> str:
    """Return the SHA-256 (hex) of the resolved scenario and the tool's `version`; ten digits name a run.

    Files that the scenario names enter by their content, not by their path: the same scenario in another
    folder keeps its hash, and a changed trace changes it.
    """
    data = _hashable(resolved(scenario))
    text = json.dumps(
        {"scenario": data, "version": version}, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _hashable(data: dict[str, Any]) -> dict[str, Any]:
    def named(model: Any) -> Any:
        return _content(model) if isinstance(model, str) else model

    around = data["deployment"]
    kept = _hashable_failures({key: value for key, value in around.items() if key not in LATER or value not in (None, False)})
    pools = [_hashable_pool({**pool, "model": named(pool["model"])}) for pool in around["pools"]]
    return {
        **data,
        "model": named(data["model"]),
        "deployment": {**kept, "pools": pools},
        "workload": _hashable_load(data["workload"]),
    }


LATER = (
    *("calibration", "warm_cache", "model", "models", "swap", "swap_s", "prompt_tokens", "commitment", "usd_per_gpu_hour"),
    *("kv_tiers", "power_limit_w", "peer_access", "context_length_range", "cold_start"),
)
"""Keys of a deployment and its pools that leave the hash as it was where they are not given."""


def _hashable_pool(pool: dict[str, Any]) -> dict[str, Any]:
    """The pool with the files that it names by content."""
    kept = _hashable_failures({key: value for key, value in pool.items() if key not in LATER or value is not None})
    return {**kept, **{key: _content(kept[key]) for key in ("calibration", "warm_cache", "hardware") if key in kept}}


def _hashable_failures(holder: dict[str, Any]) -> dict[str, Any]:
    """What has failures, whose events leave the hash as it was where they name no stage."""
    failures = holder.get("failures")
    if failures is None:
        return holder
    events = [{key: value for key, value in event.items() if key != "stage" or value is not None} for event in failures["events"]]
    return {**holder, "failures": {**failures, "events": events}}


def _hashable_load(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _content(child)
            if key in ("trace", "file") and isinstance(child, str)
            else _hashable_load(child)
            for key, child in value.items()
            if key != "model" or child is not None  # of a class
        }
    if isinstance(value, list):
        return [_hashable_load(child) for child in value]
    return value


def _content(name: str) -> str:
    if not Path(name).is_absolute():
        return name
    path = Path(name)
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest() if path.is_dir() else opened.read())
    return f"sha256:{digest.hexdigest()}"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a scenario, for editors."""
    from simulator.config.schema import Scenario
    from simulator.later import WholeSchema

    schema = Scenario.model_json_schema(schema_generator=WholeSchema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
