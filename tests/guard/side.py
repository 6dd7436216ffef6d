"""Run the guard's cases with the simulator of one tree, and write what came out.

    python -P side.py TREE CASES.json BASE_DIR OUT

Runs as a process of its own, one for each side of the comparison, and knows no more of the tree than what stands here: where a
refactoring moves one of these, its new place joins the list.
"""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

STREAM_ABOVE = (("simulator.run", "STREAM_ABOVE"),)
"""Where the number of requests stands above which a run is streamed: module and attribute."""
STREAM_BLOCK = (
    ("simulator.workload.streaming", "BLOCK"),
    ("simulator.streamed", "StreamedCluster.__init__.block"),
)
"""Where the number of requests of a block stands; `__init__.block` is the default of a keyword of that name."""


def place(places: tuple[tuple[str, str], ...], value: int) -> list[tuple[Any, str, Any]]:
    """Set `value` wherever one of the places exists and return what stood there; LookupError if none exists."""
    found = []
    for module, path in places:
        try:
            owner: Any = import_module(module)
            *outer, name = path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            if getattr(owner, "__kwdefaults__", None):
                defaults = owner.__kwdefaults__
                found.append((defaults, name, defaults[name]))
                defaults[name] = value
            else:
                found.append((owner, name, getattr(owner, name)))
                setattr(owner, name, value)
        except (ImportError, AttributeError, KeyError):
            continue
    if not found:
        raise LookupError(
            f"none of {', '.join('.'.join(p) for p in places)} exists: name its new place in {__file__}"
        )
    return found


def put_back(found: list[tuple[Any, str, Any]]) -> None:
    """Undo `place`."""
    for owner, name, value in found:
        if isinstance(owner, dict):
            owner[name] = value
        else:
            setattr(owner, name, value)


def simulate_case(scenario: dict[str, Any], base_dir: Path, stream_above: int | None) -> Any:
    """Return the RunResult of a case, whose files lie in `base_dir`."""
    from simulator.run import simulate

    if stream_above is None:
        with chdir(base_dir):
            return simulate(scenario)
    changed = [*place(STREAM_ABOVE, stream_above), *place(STREAM_BLOCK, stream_above // 4)]
    try:
        with chdir(base_dir):
            run = simulate(scenario)
    finally:
        put_back(changed)
    if not isinstance(run.requests, Path):
        raise RuntimeError("the run was not streamed")
    return run


def step_ends(run: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return how many steps each replica made, and when each of them ended [s] (of a streamed run the count alone)."""
    steps: dict[str, np.ndarray[Any, Any]] = {}
    for number, log in enumerate(run.raw.logs):
        ends_s = np.array(log.end_s, np.float64)
        retired = int(getattr(log, "retired_steps", 0))
        steps[f"count.{number}"] = np.array([len(ends_s) + retired])
        if not isinstance(run.requests, Path):
            steps[f"end_s.{number}"] = ends_s
    if not steps:
        raise LookupError(f"a run has no logs: name their new place in {__file__}")
    return steps


def write(run: Any, folder: Path) -> None:
    """Write the run directory, and the ends of steps as steps.npz beside its files."""
    from simulator.io.rundir import write_run

    steps = step_ends(run)
    write_run(folder, result=run.result, manifest=run.manifest, requests=run.requests, timeline=run.timeline)
    np.savez(folder / "steps.npz", **steps)


def main() -> int:
    """Run every case of a list; a case that fails leaves its error in error.txt, and the others run."""
    tree, cases, base_dir, out = (Path(argument).resolve() for argument in sys.argv[1:5])
    sys.path.insert(0, str(tree))
    for package in ("simulator", "engine_models", "hardware_profiles", "scenarios"):
        origin = Path(str(import_module(package).__file__)).resolve()
        assert origin.is_relative_to(tree), f"{package} comes from {origin}, not from {tree}"
    for name, case in json.loads(cases.read_text()).items():
        folder = out / name
        try:
            write(simulate_case({"name": name, **case["scenario"]}, base_dir, case["stream_above"]), folder)
        except Exception:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc())
    return 0


if __name__ == "__main__":
    sys.exit(main())
