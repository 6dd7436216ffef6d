"""The engines that can be simulated, by name: those of this package, and plug-ins.

A plug-in is an entry point of the group `GROUP` whose name is the engine's and whose value is a module that ends with
``ENGINE = Engine(...)``, or that object. Plug-ins are looked for only when a name is none of `BUILT_IN`, or all engines are
listed. What a plug-in gives is checked where it is used, and refused in words that name the plug-in and what it broke.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

from engine_models.arguments import Arguments, parse_flags
from engine_models.declaration import FEATURES, Engine, EnginePlan, Lockstep, Mode, PoolRequest, Support
from engine_models.flags import EngineFlags, FlagTable, snake
from engine_models.launcher import CONTAINER_KEYS
from engine_models.model.formats import Format
from engine_models.parts.protocols import Scheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError, PlanError, nearest

BUILT_IN = {
    "vllm": "engine_models.engines.vllm",
    "sglang": "engine_models.engines.sglang",
    "tgi": "engine_models.engines.tgi",
    "trtllm": "engine_models.engines.trtllm",
    "lmdeploy": "engine_models.engines.lmdeploy",
    "transformers": "engine_models.engines.transformers",
    "litserve": "engine_models.engines.litserve",
    "triton": "engine_models.engines.triton",
    "deepspeed_mii": "engine_models.engines.deepspeed_mii",
    "deepspeed_inference": "engine_models.engines.deepspeed_inference",
    "inferflow": "engine_models.engines.inferflow",
    "mlc_llm": "engine_models.engines.mlc_llm",
    "mlx_lm": "engine_models.engines.mlx_lm",
    "openvino": "engine_models.engines.openvino",
    "llama_cpp": "engine_models.engines.llama_cpp",
    "ollama": "engine_models.engines.ollama",
    "openarc": "engine_models.engines.openarc",
    "exllamav2": "engine_models.engines.exllamav2",
}
"""Engine -> its module, imported when a pool asks for it. The first is the one that examples show."""

SPELLINGS: dict[str, str] = {
    "text_generation_inference": "tgi",
    "tensorrt_llm": "trtllm",
    "tensorrtllm": "trtllm",
    "trt_llm": "trtllm",
    "lmdeploy_pytorch": "lmdeploy",
    "lmdeploy_turbomind": "lmdeploy",
    "turbomind": "lmdeploy",
    "triton_trtllm": "triton",
    "transformers_cb": "transformers",
    "hf_transformers": "transformers",
    "mii": "deepspeed_mii",
    "mlc": "mlc_llm",
    "mlcllm": "mlc_llm",
    "fastgen": "deepspeed_mii",
    "deepspeed_fastgen": "deepspeed_mii",
    "mlx": "mlx_lm",
    "ovms": "openvino",
    "openvino_genai": "openvino",
    "openvino_model_server": "openvino",
    "llamacpp": "llama_cpp",
    "llama_server": "llama_cpp",
    "llama_cpp_server": "llama_cpp",
    "exllama": "exllamav2",
    "tabbyapi": "exllamav2",
}
"""Other spellings of these names, in lower case with underscores."""

IMPLIED: dict[str, dict[str, str]] = {
    "transformers_cb": {"mode": "continuous"},
    "lmdeploy_pytorch": {"backend": "pytorch"},
    "triton_trtllm": {"model_engine": "trtllm"},
}
"""Flags that a spelling says beside the engine, unless they are given."""

GROUP = "capacity_plan.engine_models"
EXAMPLE = next(iter(BUILT_IN))


def split(text: str) -> tuple[str, str | None]:
    """Split "vllm@0.15.1" into the engine's name, common spellings forgiven ("vLLM 0.15.1", "vllm==0.15.1"), and the version."""
    name, version = _parted(text)
    name = name.strip().lower()
    for known in (name, _key(name)):
        name = SPELLINGS.get(known, known if known in BUILT_IN else name)
    return name, version.strip() or None


def _parted(text: str) -> tuple[str, str]:
    """What stands before and after the mark of a version; the latter is empty where there is none.

    A number that follows a name is a version of engines of this package alone: a plug-in's name may end with one.
    """
    name, *version = re.split(r"@|==|:", text, maxsplit=1)
    if not version:
        before, *version = re.split(r"[ -]v?(?=\d)", text, maxsplit=1)
        known = _underscored(before)
        if known not in BUILT_IN and known not in SPELLINGS:
            return text, ""
        name = before
    return name, "".join(version)


def _key(text: str) -> str:
    """The name in `text` in lower case with underscores."""
    return _underscored(_parted(text)[0])


def _underscored(name: str) -> str:
    return re.sub(r"[-. ]", "_", name.strip().lower())


def names() -> list[str]:
    """All engines: those of this package, then plug-ins."""
    return [*BUILT_IN, *sorted(_plug_ins())]


def find(text: str) -> Engine | None:
    """The engine that `text` names, with or without a version; None if there is none. InputError for a plug-in that is broken."""
    name, _ = split(text)
    if name in BUILT_IN:
        module: Any = import_module(BUILT_IN[name])
        engine: Engine = module.ENGINE
        return engine
    point = _plug_ins().get(name)
    return _plugged(point) if point is not None else None


def engine_named(text: str, *, where: str | None = None) -> Engine:
    """The engine that `text` names; InputError naming the nearest if there is none."""
    found = find(text)
    if found is None:
        name, known = split(text)[0], names()
        close = nearest(name, known)
        raise InputError(
            f"engine '{name}' is not modelled" + (f"; did you mean '{close}'?" if close else ""),
            where=where,
            mend=f"one of: {', '.join(sorted(known))} (`capacity-plan list engines`)",
        )
    return found


def plan(engine: Engine, request: PoolRequest, version: str | None) -> EnginePlan:
    """Resolve a pool; of a plug-in, what it breaks is refused in words."""
    if engine.name in BUILT_IN:
        return engine.plan(request, version)
    try:
        found = engine.plan(request, version)
    except PlanError:
        raise
    except Exception as error:
        raise _broken(engine.name, f"its plan() failed: {_said(error)}") from error
    if not isinstance(found, EnginePlan):
        raise _broken(engine.name, f"its plan() returns a value {_kind(found)}, no EnginePlan")
    _scheduler(engine.name, found, "jump")
    return replace(found, scheduler=lambda mode: _scheduler(engine.name, found, mode))


def with_feature(feature: str) -> list[Engine]:
    """The engines of this package that have a feature."""
    return [engine for engine in map(engine_named, BUILT_IN) if feature in engine.features]


def on_kind(kind: DeviceKind) -> list[Engine]:
    """The engines of this package that run on a kind of device."""
    return [engine for engine in map(engine_named, BUILT_IN) if kind in engine.devices]


def loading(weights: Format, kind: DeviceKind) -> list[str]:
    """Names of the engines of this package that load weights in a format on a kind of device."""
    found = {e.name: e.formats.get(weights.name) or e.formats.get(weights.family) for e in on_kind(kind)}
    return [name for name, support in found.items() if support is not None and kind in support.kinds]


# Flags ----------------------------------------------------------------------------------------------------


OTHERS = {
    r"dynamo\.\w+|dynamo-run": "Dynamo",
    r"aphrodite": "Aphrodite",
    r"exllamav3": "ExLlamaV3",
}
"""Words of launch commands of engines that are not simulated, and these engines."""


def parse_engine_args(engine: str, args: Arguments, server: str | None = None) -> EngineFlags:
    """Return the flags in `args`: a dict of flag names, a launch command as text or as a list of words, or a container.

    `engine` may carry a version (``vllm@0.15.1``). `server` chooses among the servers of a text by name, as `parse_flags` does.
    For an engine that is not known a dict passes unread. Raises InputError (its `where` the flag) for unknown flags, wrong
    values, and text that is no command of the engine.

    >>> parse_engine_args("vllm", "vllm serve org/m -tp 4 --max-model-len=32k").values
    {'tensor_parallel_size': 4, 'max_model_len': 32000}
    """
    found = find(engine)
    if found is not None:
        started = _started(found, args)
        if started is not None and started != found.name:
            raise InputError(
                f"this is a launch command of {started}, not of {found.name}",
                mend=f"write engine: {started}" if started in BUILT_IN else f"{started} is not simulated; {_offer()}",
            )
        if started is None and not isinstance(args, Mapping):
            _refuse_client(found.name, args if isinstance(args, str) else " ".join(map(str, args)))
        flags = parse_flags(found.flags(), args, split(engine)[1], lambda name: _own_word(found, name), server)
        told = [
            f"the text also starts a server of {other}" + f" ({name})" * bool(name) + ": it belongs into a pool of its own"
            for name, words in flags.strangers
            if (other := launched_by(words)) not in (None, found.name)
        ]
        return replace(
            flags, values={**IMPLIED.get(_key(engine), {}), **flags.values}, warnings=[*flags.warnings, *told]
        )
    if isinstance(args, Mapping):
        return EngineFlags({snake(key): value for key, value in args.items()})
    if args and not (isinstance(args, str) and not args.strip()):
        engine_named(engine)
    return EngineFlags()


def _refuse_client(engine: str, text: str) -> None:
    """InputError for the command of a client alone, with what it sends."""
    from engine_models.engines.bench_loads import client_of

    client = client_of(text)
    if client is not None:
        program, load = client
        raise InputError(
            f"this is no launch command of {engine}: `{program}` sends requests to a server",
            where=program,
            mend=f"write what it sends as the scenario's workload{f': {load}' if load else ''}, and here the server's command",
        )


def _offer() -> str:
    return f"`engine` is one of {', '.join(BUILT_IN)}"


def _started(engine: Engine, args: Arguments) -> str | None:
    """The engine whose server a command starts: `engine` itself if it starts one of its servers, another of this package, or one
    that is not simulated; None for flags alone, or where none is known."""
    if isinstance(args, Mapping) and not any(key in args for key in CONTAINER_KEYS):
        return None
    from engine_models.launch import find_launches

    if find_launches(args, engine.flags().launcher).named:
        return engine.name
    own = launched_by(args)
    if own is not None:
        return own
    words = args if isinstance(args, str) else " ".join(map(str, args.values() if isinstance(args, Mapping) else args))
    searched = ((re.search(rf"(?<![\w-])(?:{pattern})(?![\w-])", words), title) for pattern, title in OTHERS.items())
    places = [(found.start(), title) for found, title in searched if found is not None]
    return min(places)[1] if places and not words.lstrip().startswith("-") else None


def flag_defaults(engine: str) -> dict[str, Any]:
    """Every modelled flag of `engine` with its default (None: decided by hardware or model); none for an unknown engine."""
    found = find(engine)
    return {name: flag.default for name, flag in found.flags().modelled.items()} if found else {}


def launched_by(args: Arguments) -> str | None:
    """The engine of this package whose server a launch command starts, the first of several; None if it starts none."""
    from engine_models.launch import find_launches

    for name in BUILT_IN:
        try:
            found = find_launches(args, engine_named(name).flags().launcher)
        except InputError:
            continue
        if found.named:
            return name
    return None


def _own_word(engine: Engine, name: str) -> str | None:
    """The flag of `engine` that says what `name` says to another engine of this package, if there is one."""
    for other in map(engine_named, BUILT_IN):
        word = next((word for word, flag in other.same_as.items() if flag == name), None)
        if word is not None and word in engine.same_as:
            return engine.same_as[word]
    return None


# Plug-ins -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


@lru_cache(maxsize=32)
def _plugged(point: EntryPoint) -> Engine:
    """The declaration of a plug-in; InputError naming what it broke."""
    name = point.name
    try:
        loaded = point.load()
    except Exception as error:
        raise _broken(name, f"{point.value} cannot be loaded: {_said(error)}") from error
    if not isinstance(loaded, Engine):
        if not hasattr(loaded, "ENGINE"):
            raise _broken(name, f"{point.value} has no ENGINE")
        loaded = loaded.ENGINE
    if not isinstance(loaded, Engine):
        raise _broken(name, f"its ENGINE is {_kind(loaded)}, no engine_models.declaration.Engine")
    problem = _problem(loaded, name)
    if problem is not None:
        raise _broken(name, problem)
    return loaded


def _problem(engine: Engine, name: str) -> str | None:
    """The first field of a declaration that is not what it has to be, in words; None if all are."""
    kinds = set(get_args(DeviceKind))
    texts = {"name": engine.name, "title": engine.title, "kernels": engine.kernels, "oldest": engine.oldest, "rule": engine.rule}
    supports = {"formats": engine.formats, "features": engine.features}
    mappings = {"versions": engine.versions, "devices": engine.devices, "same_as": engine.same_as, **supports}
    for field, text in texts.items():
        if not isinstance(text, str):
            return f"its `{field}` is {_kind(text)}, no text"
    if engine.name != name:
        return f"it declares the engine '{engine.name}' under the entry point '{name}'"
    for field, mapping in mappings.items():
        if not isinstance(mapping, Mapping):
            return f"its `{field}` is {_kind(mapping)}, no mapping"
    for field, function in {"flags": engine.flags, "plan": engine.plan}.items():
        if not callable(function):
            return f"its `{field}` is {_kind(function)}, which cannot be called"
    if not engine.versions:
        return "its `versions` are empty"
    for version, changes in engine.versions.items():
        if not isinstance(changes, Mapping):
            return f"its version {version} is {_kind(changes)}, no mapping of switches"
        engine.parts(version)
    if not engine.devices or set(engine.devices) - kinds:
        return f"its `devices` are {', '.join(map(str, engine.devices)) or 'empty'}, not of {', '.join(sorted(kinds))}"
    for field, offered in supports.items():
        for key, support in offered.items():
            if not isinstance(support, Support):
                return f"`{key}` of its `{field}` is {_kind(support)}, no Support"
    if set(engine.features) - set(FEATURES):
        return f"its `features` name {', '.join(sorted(set(engine.features) - set(FEATURES)))}, which is none"
    if engine.lockstep is not None and not isinstance(engine.lockstep, Lockstep):
        return f"its `lockstep` is {_kind(engine.lockstep)}, no Lockstep"
    if engine.overheads_from is not None and engine.overheads_from not in BUILT_IN:
        return f"its `overheads_from` is {engine.overheads_from!r}, none of {', '.join(BUILT_IN)}"
    try:
        table = engine.flags()
    except Exception as error:
        return f"its flags() failed: {_said(error)}"
    return None if isinstance(table, FlagTable) else f"its flags() returns {_kind(table)}, no FlagTable"


def _scheduler(name: str, found: EnginePlan, mode: Mode) -> Scheduler:
    """A scheduler of a plug-in's plan, checked."""
    try:
        built = found.scheduler(mode)
    except Exception as error:
        raise _broken(name, f"its scheduler cannot be built: {_said(error)}") from error
    if not isinstance(built, Scheduler):
        raise _broken(name, f"its scheduler is {_kind(built)}, no engine_models.parts.protocols.Scheduler")
    missing = [word for word in dir(type(built)) if getattr(getattr(type(built), word), "__isabstractmethod__", False)]
    if missing:
        raise _broken(name, f"its scheduler cannot be built: it has no {', '.join(missing)}")
    return built


def _broken(name: str, what: str) -> InputError:
    return InputError(
        f"engine plug-in '{name}': {what}",
        where="deployment.engine",
        mend=f"mend or uninstall the package that offers the entry point '{name}' of {GROUP}",
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"
