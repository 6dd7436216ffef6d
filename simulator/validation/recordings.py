"""Files of recorded schedules and decisions: what is in one, and how many steps it holds.

A recording is a JSON-lines file, one object with a `type` a line: a `config` line names the engine, `request` lines what it was
given, and further lines what it did. What counts as a step depends on the kind: a scheduler's `step`, an `iter` of a server that
was read iteration by iteration, a router's `req` and `dequeued`. A line `stopped` ends what was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

STEP_LINES = frozenset({"step", "iter", "req", "dequeued"})
WALL_CLOCK_PREFIX = "wall_"
WALL_CLOCK = "recorded under a wall clock: its means can be compared, its steps cannot"


@dataclass(frozen=True)
class Recording:
    """One file: the engine it was recorded from, its `config` line, its `request` lines, its steps, and all lines in order."""

    name: str
    engine: str
    config: dict[str, Any]
    requests: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    wall_clock: bool = False


def read(path: Path) -> Recording:
    """Read one recording.

    Raises
    ------
    InputError : the file cannot be read, is no recording, or lacks its config line.
    """
    config: dict[str, Any] = {}
    requests: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    all_lines: list[dict[str, Any]] = []
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                entry = json.loads(line)
                kind = entry["type"]
                if kind == "config":
                    config = entry
                    continue
                all_lines.append(entry)
                if kind == "request":
                    requests.append(entry)
                elif kind in STEP_LINES:
                    steps.append(entry)
                elif kind == "stopped":
                    break
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}",
            where=str(path),
            mend="check the file and its rights",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"not a recorded schedule: {error}",
            where=f"{path}:{number}",
            mend="each line must be a JSON object with a `type`: config, request, step, result or summary",
        ) from None
    if not config:
        raise InputError("no config line", where=str(path), mend="start the file with a `type: config` line")
    name, engine = str(config.get("scenario", path.stem)), str(config.get("engine"))
    wall_clock = name.startswith(WALL_CLOCK_PREFIX) or path.stem.startswith(WALL_CLOCK_PREFIX)
    return Recording(name, engine, config, requests, [] if wall_clock else steps, all_lines, wall_clock)


def unreplayed(name: str, engine: str, steps: int, reason: str) -> dict[str, Any]:
    """The entry of a recording that is not replayed: none of its steps is equal."""
    return {
        "name": name,
        "engine": engine,
        "steps": steps,
        "equal": 0,
        "first_difference": {"step": 0, "reason": reason},
    }


def without_model(recording: Recording, modelled: Iterable[str]) -> dict[str, Any] | None:
    """The entry of a recording whose kind has no model, None if its engine is among the modelled ones."""
    if recording.wall_clock:
        return unreplayed(recording.name, recording.engine, 0, WALL_CLOCK)
    if recording.engine in modelled:
        return None
    return unreplayed(
        recording.name,
        recording.engine,
        len(recording.steps),
        f"no model of engine '{recording.engine}' replays recordings yet",
    )
