"""The comparer of the guard: what is red, what passes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.io.rundir import write_run
from tests.guard import compare
from tests.guard.compare import Move, compared, declared_moves, differences, flat, report
from tests.guard.worktree import MissingCommitError, commit_of, worktree

RESULT = {
    "metrics": {"ttft_ms": {"p99": 12.5}},
    "warnings": ["short"],
    "checks": [{"holds": True}],
    "run_id": "a-1",
}
MANIFEST = {"tool_version": "0.1.0", "scenario_sha256": "ab", "seed": 7, "run": {"wall_s": 1.0}}
REQUESTS = {
    "arrival_s": np.array([0.0, 0.1, np.nan]),
    "turn": np.array([0, 1, 2]),
    "finish_reason": ["stop", "length", None],
}


def side(folder: Path, *, ends_s: Any = (0.1, 0.2), **changes: Any) -> Path:
    """Write a case's folder, some of its files changed."""
    parts = {
        "result": RESULT,
        "manifest": MANIFEST,
        "requests": REQUESTS,
        "timeline": {"t_s": np.array([0.5])},
        **changes,
    }
    write_run(folder, **parts)
    np.savez(folder / "steps.npz", **{"end_s.0": np.array(ends_s), "count.0": np.array([len(ends_s)])})
    return folder


def outcome(tmp_path: Path, moves: list[Move], **changes: Any) -> bool:
    """The verdict on a run whose files are changed as said."""
    before, after = side(tmp_path / "base" / "case"), side(tmp_path / "here" / "case", **changes)
    return report({"case": compared(before, after)}, moves)


def test_the_same_is_equal_whatever_differs_between_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = {**MANIFEST, "run": {"wall_s": 2.0}, "scenario_sha256": "cd", "tool_version": "0.2.0"}
    assert outcome(tmp_path, [], manifest=manifest, result={**RESULT, "run_id": "a-2"})
    assert "equal: case\nequal to the bit" in capsys.readouterr().out


NEXT = float(np.nextafter(0.1, 1))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {"result": {**RESULT, "metrics": {"ttft_ms": {"p99": float(np.nextafter(12.5, 13))}}}},
            "result.metrics.ttft_ms.p99",
        ),
        ({"result": {**RESULT, "metrics": {}}}, "result.metrics.ttft_ms.p99"),
        ({"result": {**RESULT, "warnings": ["short", "late"]}}, "result.warnings"),
        ({"result": {**RESULT, "checks": []}}, "result.checks.0.holds"),
        ({"result": {**RESULT, "checks": [{"holds": True}, {"holds": True}]}}, "result.checks.length"),
        ({"manifest": {**MANIFEST, "seed": 7.0}}, "manifest.seed"),
        (
            {"manifest": {k: v for k, v in MANIFEST.items() if k != "scenario_sha256"}},
            "manifest.scenario_sha256",
        ),
        ({"requests": {**REQUESTS, "arrival_s": np.array([0.0, NEXT, np.nan])}}, "requests.arrival_s"),
        ({"requests": {**REQUESTS, "arrival_s": np.array([-0.0, 0.1, np.nan])}}, "requests.arrival_s"),
        ({"requests": {**REQUESTS, "arrival_s": np.array([0.0, 0.1, 0.2])}}, "requests.arrival_s"),
        ({"requests": {**REQUESTS, "finish_reason": ["stop", "length", "stop"]}}, "requests.finish_reason"),
        ({"requests": {k: v for k, v in REQUESTS.items() if k != "turn"}}, "requests.turn"),
        ({"timeline": {"t_s": np.array([0.5, 1.5])}}, "timeline.t_s"),
        ({"ends_s": (NEXT, 0.2)}, "steps.end_s.0"),
    ],
)
def test_what_moved_or_vanished_is_red_unless_it_is_declared(
    changes: dict[str, Any], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not outcome(tmp_path / "1", [], **changes)
    assert key in capsys.readouterr().out
    assert outcome(tmp_path / "2", [Move("ca*", f"{'.'.join(key.split('.')[:2])}*", "why")], **changes)
    assert "equal, but for what is declared" in capsys.readouterr().out
    assert not outcome(tmp_path / "3", [Move("other", key, "why")], **changes)


def test_a_new_key_passes_and_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = {"result": {**RESULT, "reasons": {"shed": 0}}, "requests": {**REQUESTS, "status": ["a", "b", "c"]}}
    assert outcome(tmp_path, [], **new)
    told = capsys.readouterr().out
    assert "new: result.reasons.shed (1 of 1 cases)" in told
    assert "new: requests.status" in told


def test_a_declaration_that_nothing_needs_is_red(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not outcome(tmp_path, [Move("*", "timeline.*", "why")])
    assert "stale" in capsys.readouterr().out


def test_a_case_that_fails_is_red_on_either_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = side(tmp_path / "base" / "case")
    failed = tmp_path / "here" / "case"
    failed.mkdir(parents=True)
    (failed / "error.txt").write_text("Traceback\nValueError: no such thing\n")
    for pair in ((whole, failed), (failed, whole)):
        assert not report({"case": compared(*pair)}, [Move("*", "*", "why")])
        assert "here: ValueError: no such thing" in capsys.readouterr().out


def test_how_far_a_column_moved_is_told() -> None:
    (moved,), new = differences(
        "case", {"t": np.array([1.0, 2.0, 4.0])}, {"t": np.array([1.0, 2.5, 4.0]), "u": 1}
    )
    assert moved.how == "1 of 3 rows, row 1: 2.0 -> 2.5, at most 2.5e-01"
    assert new == ["u"]


def test_leaves_have_dotted_keys() -> None:
    assert flat({"a": {}, "b": [], "c": [{"d": 1}, 2]}, "r") == {
        "r.a": {},
        "r.b": [],
        "r.c.length": 2,
        "r.c.0.d": 1,
        "r.c.1": 2,
    }


ENTRY = '[[moved]]\nscenario = "*"\nkey = "timeline.*"\nreason = "Bins of one second."\n'


@pytest.mark.parametrize(
    ("entry", "log", "complaint"),
    [
        (ENTRY, "- Bins of one second.\n", None),
        (ENTRY, "- Bins of one second. And more.\n", "has no line"),
        (ENTRY.replace("Bins of one second.", ""), "- x\n\n", "has no line"),
        (ENTRY.replace("key", "kea"), "- Bins of one second.\n", "has scenario, key and reason"),
    ],
)
def test_the_reason_is_a_line_of_the_changelog(
    entry: str, log: str, complaint: str | None, tmp_path: Path
) -> None:
    moved, changelog = tmp_path / "moved.toml", tmp_path / "CHANGELOG.md"
    moved.write_text(entry)
    changelog.write_text(log)
    if complaint is None:
        assert declared_moves(moved, changelog) == [Move("*", "timeline.*", "Bins of one second.")]
    else:
        with pytest.raises(ValueError, match=complaint):
            declared_moves(moved, changelog)


def test_declarations_of_this_tree_can_be_read() -> None:
    declared_moves()


# Commits ----------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of two commits."""
    root = tmp_path / "clone"
    root.mkdir()
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "init", "-q"], check=True)
    for text in ("one", "two"):
        (root / "file").write_text(text)
        subprocess.run([*git, "add", "file"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", text], check=True)
    return root


def test_a_worktree_has_the_other_commit_and_is_gone_afterwards(clone: Path) -> None:
    with worktree("HEAD~1", clone) as tree:
        assert (tree / "file").read_text() == "one"
    assert not tree.exists()

    def fail() -> None:
        with worktree("HEAD~1", clone):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    listed = subprocess.run(
        ["git", "-C", str(clone), "worktree", "list"], capture_output=True, text=True
    ).stdout
    assert len(listed.splitlines()) == 1


def test_a_missing_commit_is_red_and_says_how_to_get_it(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MissingCommitError, match="git fetch origin 1234"):
        commit_of("1234" * 10, clone)
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{clone}", str(shallow)], check=True)
    with pytest.raises(MissingCommitError, match="--unshallow"):
        commit_of(commit_of("HEAD~1", clone), shallow)
    monkeypatch.setattr("sys.argv", ["compare.py", "--base", "1234" * 10])
    assert compare.main() == 1
    assert capsys.readouterr().out.startswith("red: commit 1234")


def test_packages_come_from_the_tree_or_the_side_fails(tmp_path: Path) -> None:
    """A tree without the packages, so that an installed one would be taken."""
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps({}))
    child = compare.started(tmp_path, cases, tmp_path, tmp_path / "out")
    told = child.communicate()[1]
    assert child.returncode
    assert "not from" in told or "No module named" in told
