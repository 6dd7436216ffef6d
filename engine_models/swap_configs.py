"""Configurations of llama-swap, which starts the command of a model when a request asks for it.

Read are `models` with `cmd` and `env`, and `macros` around them and inside (`docs/configuration.md`, `config.example.yaml`,
read 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.launcher import LONGEST_TEXT
from hardware_profiles.errors import InputError

_MACRO = re.compile(r"\$\{([\w.-]+)\}")
_DEEPEST = 8  # macros inside macros; assumed, the product's own examples nest two
_COMMENT = re.compile(r"(?m)^[ \t]*#.*\n?")


def as_services(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document as one with a container a model; itself where it is no such configuration.

    >>> as_services({"macros": {"n": 2}, "models": {"m": {"cmd": "serve -c ${n}"}}})
    {'services': {'m': {'command': 'serve -c 2', 'environment': []}}}
    """
    models = document.get("models")
    if not isinstance(models, Mapping):
        return document
    started = {str(name): model for name, model in models.items() if isinstance(model, Mapping) and "cmd" in model}
    if not started:
        return document
    around = _macros(document)
    services = {name: _service(model, {**around, **_macros(model), "MODEL_ID": name}) for name, model in started.items()}
    return {"services": services}


def _service(model: Mapping[str, Any], macros: Mapping[str, str]) -> dict[str, Any]:
    command, environment = model["cmd"], model.get("env")
    words = _filled(command, macros) if isinstance(command, str) else command
    listed = environment if isinstance(environment, list) else []
    return {"command": words, "environment": [_filled(str(item), macros) for item in listed]}


def _macros(of: Mapping[str, Any]) -> dict[str, str]:
    found = of.get("macros")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, Mapping) else {}


def _filled(text: str, macros: Mapping[str, str]) -> str:
    """A text with its macros and without its comments, its lines joined as the product joins them."""
    for _ in range(_DEEPEST):
        longer = sum(len(macros.get(name, "")) for name in _MACRO.findall(text))
        if len(text) + longer > LONGEST_TEXT:
            raise InputError(
                f"the launch command is longer than {LONGEST_TEXT:,} characters with its macros", mend="write its flags out"
            )
        text = _MACRO.sub(lambda macro: macros.get(macro[1], macro[0]), text)
    return re.sub(r"\\?\n", " ", _COMMENT.sub("", text)).strip()
