"""Text and JSON of files that somebody else wrote."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError

MOST_BYTES = 2_000_000_000
"""Longest file read at once [bytes] where nothing else is said; assumed, above detailed results of a million requests."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return what a regular file holds.

    Raises InputError for a folder, a device or pipe, which may never end, and for what is not there, not readable or too long.
    """
    where = str(path)
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise InputError("this is a folder, not a file", where=where, mend="name the file in it")
        if not stat.S_ISREG(found.st_mode):
            raise InputError("this is no regular file", where=where, mend="copy what it holds into a file, and name that")
        data = b"" if found.st_size > most_bytes else path.read_bytes()
    except (OSError, ValueError) as error:  # a zero byte in the name is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read the file: {reason}", where=where, mend="check the path and its rights") from None
    if found.st_size > most_bytes:
        raise InputError(f"the file is longer than {most_bytes / 1e6:g} MB", where=where, mend="check that it is the right file")
    return data


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return the UTF-8 text of a file, without a byte-order mark; InputError as `read_bytes`, and for what is no such text."""
    data = read_bytes(path, most_bytes)
    if (at := data.find(b"\0")) >= 0:
        raise InputError(
            "this is a binary file (or UTF-16), not a text in UTF-8",
            where=f"{path}:{data.count(bytes([10]), 0, at) + 1}",
            mend="save it as UTF-8 text",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"byte 0x{data[error.start]:02x} is not UTF-8",
            where=f"{path}:{data.count(bytes([10]), 0, error.start) + 1}",
            mend="save it as UTF-8 text",
        ) from None


def parse_json(text: str) -> Any:
    """Return the value in `text`.

    Halves of surrogate pairs, which no text file can hold, become question marks. Raises json.JSONDecodeError, also for what
    Python's reader gives up on: endless nesting, numbers of thousands of digits.
    """
    try:
        found = json.loads(text)
        return _whole_characters(found) if _SURROGATE.search(text) else found
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", text, 0) from None
    except ValueError:
        raise json.JSONDecodeError("it holds a number of thousands of digits", text, 0) from None


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_whole_characters(child) for child in value]
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(child) for key, child in value.items()}
    return value


def without_cut_line(text: str) -> str:
    """JSON lines without a last one that is cut short, as an interrupted client leaves it; any other text as it is."""
    lines = text.rstrip().splitlines()
    if len(lines) < 2 or not all(line.startswith("{") for line in (lines[0], lines[-1])) or not lines[0].endswith("}"):
        return text
    try:
        json.loads(lines[-1])
    except ValueError:
        return "\n".join(lines[:-1])
    return text
