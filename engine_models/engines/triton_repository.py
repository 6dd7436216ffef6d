"""A model repository of Triton as flags: the `config.pbtxt` of its models, and the `config.json` of a built engine.

A configuration is a message of `model_config.proto` in protobuf's text format. What its template left open (``${...}``) is as if
it were not there in a parameter, as the TensorRT-LLM backend takes it, and an error elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_models.engines.triton_flags import BLS, BUILD, ENSEMBLE
from hardware_profiles.errors import InputError

Message = dict[str, list[Any]]
"""Fields of a message, each with its values in order; a value is a text or a message."""

_TOKEN = re.compile(r"""\s+|\#[^\n]*|(\$\{[^}]*\}|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[{}\[\]<>:,;]|[^\s{}\[\]<>:,;"'#]+)""")
_CLOSE = {"{": "}", "<": ">"}
_TEMPLATE = "${"


def parse(text: str, where: str) -> Message:
    """Read a message; InputError if it is none.

    >>> parse('name: "m" max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4, 8 ] }', "m")["dynamic_batching"]
    [{'preferred_batch_size': ['4', '8']}]
    """
    tokens = [found[1] for found in _TOKEN.finditer(text) if found[1]]
    tokens.reverse()

    def value() -> Any:
        token = tokens.pop()
        if token in _CLOSE:
            return fields(_CLOSE[token])
        return token[1:-1] if token[0] in "\"'" else token

    def fields(end: str) -> Message:
        found: Message = {}
        while tokens and tokens[-1] != end:
            name = tokens.pop()
            if name in ",;":
                continue
            if tokens[-1] == ":":
                tokens.pop()
            if tokens[-1] != "[":
                found.setdefault(name, []).append(value())
                continue
            tokens.pop()
            while tokens[-1] != "]":
                if tokens[-1] == ",":
                    tokens.pop()
                else:
                    found.setdefault(name, []).append(value())
            tokens.pop()
        if end:
            tokens.pop()
        return found

    try:
        return fields("")
    except (IndexError, RecursionError):
        raise InputError("this is no configuration of a model", where=where, mend="check its braces and brackets") from None


def read_repository(folder: Path) -> dict[str, Any]:
    """The flags that the models of a repository say together; InputError where it is none, or what computes is not simulated."""
    try:
        return _read(folder)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OSError) as error:
        raise InputError(
            f"a configuration there has no sense: {type(error).__name__} {error}",
            where=str(folder),
            mend="check the config.pbtxt of its models against Triton's model_config.proto",
        ) from None


def _read(folder: Path) -> dict[str, Any]:
    models: dict[str, Message] = {}
    for path in sorted(folder.glob("*/config.pbtxt")):
        config = parse(path.read_text(encoding="utf-8", errors="replace"), str(path))
        models[_text(config, "name", path) or path.parent.name] = config
    if not models:
        raise InputError("it holds no */config.pbtxt", where=str(folder), mend="name the folder with the folders of models")
    for name in (name for name, config in models.items() if config.get("backend") == ["vllm"]):
        raise InputError(f"{name} runs vLLM", where=str(folder), mend="write engine: vllm, with the flags of its model.json")
    executor = next((name for name, config in models.items() if _is_executor(config)), None)
    if executor is None:
        return _plain(models, folder)
    config, given = models[executor], _parameters(models[executor])
    found: dict[str, Any] = {"model_engine": "trtllm", **_batching(config, folder), **given}
    called = next((name for name in models if _is_ensemble(models[name])), BLS if BLS in models else executor)
    found["called"] = ENSEMBLE if called not in (BLS, executor) else called if called == BLS else "tensorrt_llm"
    for name, flag in (
        ("preprocessing", "preprocessing_instance_count"),
        ("postprocessing", "postprocessing_instance_count"),
        (BLS, "bls_instance_count"),
    ):
        if name in models:
            found[flag] = _instances(models[name], folder)["count"]
    built = Path(str(given.get("gpt_model_path") or given.get("engine_dir") or "")) / "config.json"
    if given and built.is_file():
        found["build_config"] = _built(built)
    return found


def _plain(models: Mapping[str, Message], folder: Path) -> dict[str, Any]:
    """Flags of the one model that computes, and of those before and after it in an ensemble."""
    ensemble = next((config for config in models.values() if _is_ensemble(config)), None)
    steps = [name for name, config in models.items() if not _is_ensemble(config)]
    if ensemble is not None:
        steps = [str(step["model_name"][0]) for part in ensemble["ensemble_scheduling"] for step in part["step"]]
    computing = [name for name in steps if name in models and _instances(models[name], folder)["kind"] != "KIND_CPU"]
    if len(computing) != 1:
        raise InputError(
            f"which of the models {', '.join(steps)} computes answers is not clear: {len(computing)} of them run on GPUs",
            where=str(folder),
            mend="give the others instance_group [{ kind: KIND_CPU }]",
        )
    config, at = models[computing[0]], steps.index(computing[0])
    found = {**_batching(config, folder), "instance_group": _instances(config, folder)}
    found |= {name: True for name in ("sequence_batching", "response_cache") if name in config}
    for name, flag in (*((n, "preprocessing") for n in steps[:at]), *((n, "postprocessing") for n in steps[at + 1 :])):
        count = _instances(models[name], folder)["count"] if name in models else 1
        found[f"{flag}_instance_count"] = min(count, found.get(f"{flag}_instance_count", count))
    return found


def _is_executor(config: Message) -> bool:
    return config.get("backend") == ["tensorrtllm"] or bool({"gpt_model_path", "engine_dir"} & set(_raw_parameters(config)))


def _is_ensemble(config: Message) -> bool:
    return config.get("platform") == ["ensemble"] or "ensemble_scheduling" in config


def _text(config: Message, name: str, where: Path, default: str = "") -> str:
    """A field of one value; InputError for what the template left open."""
    found = str(config.get(name, [default])[-1])
    if _TEMPLATE in found:
        raise InputError(f"`{name}` is {found}: the template is not filled", where=str(where), mend="run fill_template.py")
    return found


def _batching(config: Message, folder: Path) -> dict[str, Any]:
    """How requests of a model are put together, and whether it answers by parts."""
    found: dict[str, Any] = {"max_batch_size": int(_text(config, "max_batch_size", folder, "0"))}
    for policy in config.get("model_transaction_policy", []):
        found["decoupled"] = _text(policy, "decoupled", folder).lower() == "true"
    for batching in config.get("dynamic_batching", []):
        found["dynamic_batching"] = _group(batching, folder)
    return found


def _group(message: Message, folder: Path) -> dict[str, Any]:
    """A message as a group of keys: lists where they are lists, maps by their keys."""
    found: dict[str, Any] = {}
    for name, values in message.items():
        if name == "preferred_batch_size":
            found[name] = [int(_text({name: [value]}, name, folder)) for value in values]
        elif name == "priority_queue_policy":
            found[name] = {_text(entry, "key", folder): _group(entry["value"][0], folder) for entry in values}
        else:
            found[name] = _group(values[-1], folder) if isinstance(values[-1], dict) else _text(message, name, folder)
    return found


def _instances(config: Message, folder: Path) -> dict[str, Any]:
    """The first group of instances of a model."""
    first: Message = next(iter(config.get("instance_group", [])), {})
    return {"count": int(_text(first, "count", folder, "1")), "kind": _text(first, "kind", folder, "KIND_AUTO")}


def _raw_parameters(config: Message) -> dict[str, str]:
    return {entry["key"][0]: str(entry["value"][0].get("string_value", [""])[0]) for entry in config.get("parameters", [])}


def _parameters(config: Message) -> dict[str, str]:
    """Parameters that are given."""
    return {name: text for name, text in _raw_parameters(config).items() if text and _TEMPLATE not in text}


def _built(path: Path) -> dict[str, Any]:
    """What a built engine's own configuration says of its limits, and of the version that built it."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    config = whole.get("build_config", {})
    config = {**config, **config.get("plugin_config", {}), "version": whole.get("version")}
    return {name: config[name] for name in BUILD if config.get(name) is not None}


__all__ = ["parse", "read_repository"]
