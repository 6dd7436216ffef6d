"""JSON whose bytes depend on the values alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from json.encoder import encode_basestring as quoted
from typing import Any

import numpy as np

_WORDS = {None: "null", True: "true", False: "false"}


def json_text(data: Any) -> str:
    """Return `data` as indented JSON in the order given; NaN and infinities become null.

    Floats are written with the fewest digits that read back as the same number. numpy scalars and arrays
    become numbers and lists, paths and other objects raise TypeError.
    """
    text = _indented(plain(data), "\n") + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # names of files may hold bytes that are no text


def _indented(data: Any, line: str) -> str:
    """What `json` writes of plain `data` with an indent of 2, part by part in Python; a line begins with `line`."""
    if isinstance(data, str):
        return quoted(data)
    if isinstance(data, float):
        return repr(data)
    inner = line + "  "
    if isinstance(data, dict):
        entries = [f"{quoted(key)}: {_indented(value, inner)}" for key, value in data.items()]
        return f"{{{inner}{(',' + inner).join(entries)}{line}}}" if entries else "{}"
    if isinstance(data, list):
        entries = [_indented(value, inner) for value in data]
        return f"[{inner}{(',' + inner).join(entries)}{line}]" if entries else "[]"
    if data is None or isinstance(data, bool):
        return _WORDS[data]
    return int.__repr__(data)


def dense_json(data: Any) -> str:
    """Return plain `data` as JSON without spaces, for what only this tool reads."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n"


def plain(data: Any) -> Any:
    """Return `data` as dicts, lists, strings, numbers, booleans and None."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, np.ndarray | list | tuple):
        return [plain(value) for value in (data.tolist() if isinstance(data, np.ndarray) else data)]
    if isinstance(data, np.generic):
        data = data.item()
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else None
    if data is None or isinstance(data, str | bool | int):
        return data
    raise TypeError(f"a value of type {type(data).__name__} cannot be written as JSON")
