"""The usual form of `simulate`, read without Typer, whose import takes a thirtieth of a short run.

Whatever else a command line holds is Typer's: options with values of other types than text, help, and mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def simulated(words: Sequence[str]) -> dict[str, Any] | None:
    """Arguments of `simulate_command` that ``simulate SCENARIO [--set PATH=VALUE]... [--output DIR] [--json]`` states.

    None for any other command line.
    """
    if words[:1] != ["simulate"]:
        return None
    scenarios: list[str] = []
    overrides: list[str] = []
    options: dict[str, Any] = {}
    rest = iter(words[1:])
    for word in rest:
        if word == "--json":
            options["as_json"] = True
        elif word in ("--set", "--output"):
            value = next(rest, "")
            if not value or value.startswith("-"):
                return None
            if word == "--set":
                overrides.append(value)
            else:
                options["output"] = Path(value)
        elif not word or word.startswith("-"):
            return None
        else:
            scenarios.append(word)
    return {"scenario": scenarios[0], "overrides": overrides, **options} if len(scenarios) == 1 else None
