"""Are the results of this tree those of the commit in `base`, to the last bit?

    python tests/guard/compare.py                 all cases; exit code 1 if something moved that moved.toml does not declare
    python tests/guard/compare.py --all NAME...   some cases, with every key that moved
    python tests/guard/compare.py --base REV      against another commit

Both sides run on this machine, in this environment, at the same time. Compared are every key of result.json and manifest.json,
every column of the two tables, and when each step ended; what is new passes and is listed, what vanished is a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.guard.cases import CASES, Case, write_trace  # noqa: E402
from tests.guard.worktree import MissingCommitError, worktree  # noqa: E402

BASE = Path(__file__).with_name("base")
MOVED = Path(__file__).with_name("moved.toml")
CHANGELOG = ROOT / "CHANGELOG.md"
LEFT_OUT = ("manifest.run", "manifest.run.*")
"""Keys that differ between two runs of the same commit."""
VALUE_LEFT_OUT = ("result.run_id", "manifest.tool_version", "manifest.*sha256")
"""Keys that must be there, whatever they say: they follow from the version and the schema."""
WIDTH = 100
SHOWN = 12
"""Keys shown of a case without --all."""


@dataclass(frozen=True)
class Difference:
    """A key that moved or vanished, and how, in a few words."""

    scenario: str
    key: str
    how: str


@dataclass(frozen=True)
class Move:
    """A declared change: globs of case and key, and the line of the changelog that tells it."""

    scenario: str
    key: str
    reason: str

    def covers(self, found: Difference) -> bool:
        """Tell whether it declares a difference."""
        return fnmatchcase(found.scenario, self.scenario) and fnmatchcase(found.key, self.key)


@dataclass(frozen=True)
class Verdict:
    """Differences that are not declared, those that are, and declarations that no difference needs."""

    undeclared: list[Difference]
    declared: list[Difference]
    stale: list[Move]


# What a run wrote, by key -----------------------------------------------------------------------------------


def flat(value: Any, key: str) -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key; lists of mappings by number with their length, other lists whole.

    >>> flat({"a": {"b": 1}, "c": [{"d": 2}], "e": [3, 4]}, "r")
    {'r.a.b': 1, 'r.c.length': 1, 'r.c.0.d': 2, 'r.e': [3, 4]}
    """
    if isinstance(value, dict) and value:
        parts: Iterable[tuple[str, Any]] = value.items()
        leaves = {}
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = ((str(number), part) for number, part in enumerate(value))
        leaves = {f"{key}.length": len(value)}
    else:
        return {key: value}
    for name, part in parts:
        leaves |= flat(part, f"{key}.{name}")
    return leaves


def written(folder: Path) -> dict[str, Any]:
    """Return everything that a run wrote, by key: values of the JSON files and columns of tables."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = {}
    for name in ("result", "manifest"):
        found |= flat(json.loads((folder / f"{name}.json").read_text()), name)
    for name in ("requests", "timeline"):
        table = pq.read_table(folder / f"{name}.parquet")
        found |= {f"{name}.{column}": table.column(column).to_numpy() for column in table.column_names}
    with np.load(folder / "steps.npz") as steps:
        found |= {f"steps.{name}": steps[name] for name in steps.files}
    return {key: value for key, value in found.items() if not _any(key, LEFT_OUT)}


def _any(key: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, glob) for glob in globs)


# Comparison -------------------------------------------------------------------------------------------------


def differences(
    scenario: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[list[Difference], list[str]]:
    """Return what moved or vanished between two runs of a case, and the keys that are new."""
    moved = []
    for key, old in before.items():
        if key not in after:
            moved.append(Difference(scenario, key, "vanished"))
        elif not _any(key, VALUE_LEFT_OUT):
            how = _how_moved(old, after[key])
            if how:
                moved.append(Difference(scenario, key, how))
    return moved, [key for key in after if key not in before]


def _how_moved(old: Any, new: Any) -> str:
    """Say how a value or column moved; empty if it is the same to the bit."""
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return _column_moved(old, new)
    if isinstance(old, list) and isinstance(new, list):
        if len(old) == len(new) and all(_is_number(v) for v in [*old, *new]):
            return next((told for pair in zip(old, new, strict=True) if (told := _how_moved(*pair))), "")
        lost, came = [v for v in old if v not in new], [v for v in new if v not in old]
        if lost or came:
            return "; ".join(
                [*(f"lost {_text(v)}" for v in lost[:2]), *(f"came {_text(v)}" for v in came[:2])]
            )
        return "" if _text(old) == _text(new) else "another order"
    if json.dumps(old) == json.dumps(new):
        return ""
    return f"{_text(old)} -> {_text(new)}{_by(old, new)}"


def _column_moved(old: np.ndarray[Any, Any], new: np.ndarray[Any, Any]) -> str:
    if old.dtype != new.dtype:
        return f"{old.dtype} -> {new.dtype}"
    if len(old) != len(new):
        return f"{len(old)} -> {len(new)} rows"
    if old.dtype.kind == "O":
        differ = np.array([a != b for a, b in zip(old.tolist(), new.tolist(), strict=True)], bool)
    else:
        bits = f"V{old.dtype.itemsize}"
        differ = np.ascontiguousarray(old).view(bits) != np.ascontiguousarray(new).view(bits)
    if not differ.any():
        return ""
    row = int(np.flatnonzero(differ)[0])
    told = f"{int(differ.sum())} of {len(old)} rows, row {row}: {_text(old[row])} -> {_text(new[row])}"
    if old.dtype.kind == "f":
        with np.errstate(all="ignore"):
            by = np.abs(new - old) / np.abs(old)
        if np.isfinite(by).any():
            told += f", at most {np.nanmax(by[np.isfinite(by)]):.1e}"
    return told


def _by(old: Any, new: Any) -> str:
    return f" ({new / old - 1:+.1e})" if _is_number(old) and _is_number(new) and old else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    text = json.dumps(value.item() if isinstance(value, np.generic) else value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def judged(found: list[Difference], moves: list[Move]) -> Verdict:
    """Sort differences into declared and not, and find the declarations that no difference needs."""
    sorted_out: dict[bool, list[Difference]] = {True: [], False: []}
    for difference in found:
        sorted_out[any(move.covers(difference) for move in moves)].append(difference)
    stale = [move for move in moves if not any(move.covers(d) for d in found)]
    return Verdict(sorted_out[False], sorted_out[True], stale)


def declared_moves(path: Path = MOVED, changelog: Path = CHANGELOG) -> list[Move]:
    """Read the declarations; ValueError if one is incomplete or its reason is no line of the changelog."""
    lines = {line.strip().removeprefix("- ") for line in changelog.read_text().splitlines()} - {""}
    moves = []
    for entry in tomllib.loads(path.read_text()).get("moved", []):
        if sorted(entry) != ["key", "reason", "scenario"]:
            raise ValueError(
                f"{path.name}: an entry has scenario, key and reason, this one {', '.join(entry)}"
            )
        if entry["reason"].strip() not in lines:
            raise ValueError(f"{path.name}: {changelog.name} has no line: {entry['reason']}")
        moves.append(Move(**entry))
    return moves


# The two sides ----------------------------------------------------------------------------------------------


def started(tree: Path, cases: Path, base_dir: Path, out: Path) -> subprocess.Popen[str]:
    """Start the cases with the packages of `tree`, whatever else is installed."""
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    side = Path(__file__).with_name("side.py")
    command = [sys.executable, "-P", str(side), str(tree), str(cases), str(base_dir), str(out)]
    return subprocess.Popen(command, env=environment, cwd=base_dir, stderr=subprocess.PIPE, text=True)


def run_sides(trees: Mapping[str, Path], cases: Mapping[str, Case], place: Path) -> dict[str, Path]:
    """Run the cases with each tree, at the same time; RuntimeError if a side does not come to its end."""
    base_dir = place / "scenarios"
    base_dir.mkdir()
    write_trace(base_dir)
    listed = place / "cases.json"
    listed.write_text(json.dumps({name: asdict(case) for name, case in cases.items()}))
    outs = {side: place / side for side in trees}
    children = {side: started(tree, listed, base_dir, outs[side]) for side, tree in trees.items()}
    errors = {side: child.communicate()[1] for side, child in children.items()}
    for side, child in children.items():
        if child.returncode:
            raise RuntimeError(f"the {side} side failed:\n{errors[side]}")
    return outs


def compared(before: Path, after: Path) -> tuple[list[Difference], list[str], list[str]]:
    """Compare a case's two folders; returns differences, new keys, and the errors of a side that could not run it."""
    errors = [
        f"{folder.parent.name}: {line}"
        for folder in (before, after)
        if (folder / "error.txt").exists()
        for line in (folder / "error.txt").read_text().strip().splitlines()[-3:]
    ]
    if errors:
        return [], [], errors
    return *differences(before.name, written(before), written(after)), errors


# Report -----------------------------------------------------------------------------------------------------


def main() -> int:
    """Compare, report, and return 1 if something moved that is not declared."""
    parser = argparse.ArgumentParser(description="Are results those of the base commit, to the last bit?")
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; every one by default")
    recorded = BASE.read_text().strip()
    parser.add_argument(
        "--base", default=recorded, help="commit to compare with; what is declared holds for the recorded one"
    )
    parser.add_argument("--all", action="store_true", help="show every key that moved")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in CASES]
    if unknown:
        parser.error(f"no case named {', '.join(unknown)}; there are {', '.join(CASES)}")
    chosen = {
        name: case
        for name, case in CASES.items()
        if case.at_base and (not arguments.names or name in arguments.names)
    }
    try:
        moves = declared_moves() if arguments.base == recorded else []
        with worktree(arguments.base) as tree, tempfile.TemporaryDirectory() as place:
            outs = run_sides({"base": tree, "here": ROOT}, chosen, Path(place))
            found = {name: compared(outs["base"] / name, outs["here"] / name) for name in chosen}
    except (MissingCommitError, RuntimeError, ValueError) as error:
        print(f"red: {error}")
        return 1
    print(f"{len(chosen)} cases against {arguments.base[:12]}")
    return 0 if report(found, moves, everything=arguments.all, some=bool(arguments.names)) else 1


def report(
    found: Mapping[str, tuple[list[Difference], list[str], list[str]]],
    moves: list[Move],
    *,
    everything: bool = False,
    some: bool = False,
) -> bool:
    """Print what was found and return whether all is well; of some cases alone, unused declarations are no error."""
    verdict = judged([d for moved, _, _ in found.values() for d in moved], moves)
    undeclared = set(verdict.undeclared)
    failed = [name for name, (_, _, errors) in found.items() if errors]
    equal = [name for name, (moved, _, errors) in found.items() if not moved and not errors]
    if equal:
        print(textwrap.fill(f"equal: {', '.join(equal)}", WIDTH, subsequent_indent="  "))
    new: dict[str, list[str]] = {}
    for name, (moved, came, errors) in found.items():
        mine = [d for d in moved if d in undeclared]
        if name not in equal:
            print(
                f"{name}: "
                + ("failed" if errors else f"{len(moved)} keys moved, {len(mine)} of them not declared")
            )
        for line in errors:
            _print(f"    {line}")
        shown = moved if everything else mine
        for d in shown if everything else shown[:SHOWN]:
            _print(f"    {d.key}: {d.how}")
        if not everything and len(shown) > SHOWN:
            print(f"    ... and {len(shown) - SHOWN} more (--all)")
        for key in came:
            new.setdefault(key, []).append(name)
    for key, names in new.items():
        _print(f"new: {key} ({len(names)} of {len(found)} cases)")
    stale = [] if some else verdict.stale
    for move in stale:
        _print(f"stale in {MOVED.name}: nothing moved for {move.scenario} {move.key}")
    if verdict.declared:
        print(f"{len(verdict.declared)} declared differences")
    well = not (undeclared or stale or failed)
    if well:
        print("equal, but for what is declared" if verdict.declared else "equal to the bit")
    else:
        print(
            f"red: {len(undeclared)} undeclared differences, {len(stale)} stale entries, {len(failed)} failed cases"
        )
    return well


def _print(line: str) -> None:
    print(line if len(line) <= WIDTH else line[: WIDTH - 3] + "...")


if __name__ == "__main__":
    sys.exit(main())
