"""`validate`: what was recorded or measured, beside what the simulator says."""

from __future__ import annotations

import json
from pathlib import Path

from hardware_profiles.errors import InputError
from simulator.cli.summary import table, wrapped


def _files(directory: Path, pattern: str) -> list[Path]:
    if not directory.is_dir():
        raise InputError("no such directory", where=str(directory), mend="name a directory that holds the recordings")
    found = sorted(directory.rglob(pattern))
    if not found:
        raise InputError(f"no {pattern} files in it", where=str(directory), mend="name the directory that holds them")
    return found


def schedules_command(directory: Path, as_json: bool) -> None:
    """Replay every recording below `directory`."""
    from simulator.validation.schedules import replay

    scenarios = [replay(path) for path in _files(directory, "*.jsonl")]
    total, equal = sum(s["steps"] for s in scenarios), sum(s["equal"] for s in scenarios)
    if as_json:
        print(json.dumps({"scenarios": scenarios, "steps": total, "equal": equal}))
        return
    rows = [
        [s["name"], s["engine"], f"{s['steps']:,}", f"{s['equal']:,}", "all equal" if s["equal"] == s["steps"] else "DIFFERS"]
        for s in scenarios
    ]
    print("\n".join(table(["recording", "engine", "steps", "equal", ""], rows, indent="")))
    print(f"\n{equal:,} of {total:,} steps equal")
    for s in scenarios:
        if s["first_difference"]:
            print(wrapped(f"{s['name']}: first difference {s['first_difference']}"[:400], "  "))


def kernels_command(directory: Path, as_json: bool) -> None:
    """Predict every kernel table in `directory`."""
    from hardware_profiles.kernel_validate import validate_kernels

    _files(directory, "*.parquet")
    report = validate_kernels(directory)
    if as_json:
        print(json.dumps(report))
        return
    rows = [
        [g["op"], g["gpu"], g["framework"], g["dtype"], f"{g['rows']:,}", f"{g['mape']:.1f} %"] for g in report["groups"]
    ]
    print("\n".join(table(["operation", "device", "framework", "format", "rows", "MAPE"], rows, indent="")))
    for g in report["skipped"]:
        print(wrapped(f"skipped {g['rows']:,} rows of {g['op']} {g['gpu']} {g['framework']} {g['dtype']}: {g['reason']}", "  "))
