"""How the servers of a suite's rows were launched and what the clients did: `launches.parquet` beside the rows.

Facts that were read from public scripts of the day of each run, joined by `id`; what a row itself states goes before them. A
suite without the file, and a row without a launch, is replayed by its columns alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

FILE = "launches.parquet"
KNOWN = ("exact", "near", "family")
"""Confidences of a launch that is public; "none": it is not."""


@dataclass(frozen=True)
class Launch:
    """One row's launch.

    confidence : "exact" (the script of that day and its configuration), "near" (of another day or build), "family" (of the
        sister device), "none" (no launch is public), "" (the suite says nothing of it).
    model : the checkpoint that was served.  image : the container image or build, which tells the version.
    tensor_ranks : 0 where the script says nothing.
    flags : by the engine's own names, nested.  environment : variables of the server.
    client : what the load generator did.
    unfit : why the row is not the run that its label says; "" if it is.
    layout : of prefill and decode servers, with the recipe that states their flags.
    """

    confidence: str = ""
    model: str = ""
    image: str = ""
    tensor_ranks: int = 0
    flags: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict)
    unfit: str = ""
    layout: Mapping[str, Any] = field(default_factory=dict)


UNKNOWN = Launch()


def launch_of(row: Mapping[str, Any]) -> Launch:
    """The launch of a row, as `read_launches` found it."""
    found = row.get("launch")
    return found if isinstance(found, Launch) else UNKNOWN


def read_launches(directory: Path) -> dict[str, Launch]:
    """Launches by id; none without the file. InputError if it cannot be read."""
    path = directory / FILE
    if not path.is_file():
        return {}
    import pyarrow.parquet as pq

    try:
        return {str(entry["id"]): _read(entry) for entry in pq.read_table(path).to_pylist()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a readable table of launches: {type(error).__name__}: {error}"[:200], where=str(path), mend="write it again"
        ) from None


def _read(entry: Mapping[str, Any]) -> Launch:
    texts = {name: str(entry.get(name) or "") for name in ("confidence", "image", "speculative", "mislabelled_reason", "note")}
    return Launch(
        confidence=texts["confidence"],
        model=str(entry.get("model_served") or ""),
        image=texts["image"],
        tensor_ranks=int(entry.get("tp") or 0),
        flags=nested(json.loads(entry.get("engine_flags") or "{}")),
        environment=json.loads(entry.get("environment") or "{}"),
        client=json.loads(entry.get("client") or "{}"),
        unfit=_unfit(
            texts["speculative"], texts["mislabelled_reason"] if entry.get("mislabelled") else "", texts["note"]
        ),
        layout=json.loads(entry.get("layout") or "{}"),
    )


def _unfit(speculative: str, mislabelled: str, note: str) -> str:
    if mislabelled:
        return f"mislabelled: {mislabelled}"
    if "outside the search space" in note:
        return "more users than the benchmark of that day sent: what limited them is not public"
    if speculative == "unknown":
        return "with or without multi-token prediction: nothing tells which"
    return "multi-token prediction without a stated acceptance" if speculative not in ("", "none") else ""


def nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags with dotted names as the nested settings that they write.

    >>> nested({"a.b.c": 1, "a.d": 2, "e": 3})
    {'a': {'b': {'c': 1}, 'd': 2}, 'e': 3}
    """
    out: dict[str, Any] = {}
    for name, value in flags.items():
        *path, last = name.split(".")
        at = out
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return out


def measured_on(row: Mapping[str, Any]) -> str:
    """Day on which a row was measured, by its column or by its source path (`measured=2026-04-22`); "" if neither states it."""
    stated = re.search(r"\d{4}-\d{2}-\d{2}", str(row.get("measured_on") or ""))
    found = stated or re.search(r"(?<=measured=)\d{4}-\d{2}-\d{2}", str(row.get("source_path", "")))
    return found.group() if found else ""
