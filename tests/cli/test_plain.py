"""Command lines that are read without Typer mean what they mean to Typer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulator.cli import plain, simulate
from tests.terminal import typed

PLAIN = [
    ["simulate", "x.yaml"],
    ["simulate", "x.yaml", "--output", "out"],
    ["simulate", "--output", "~/out", "x.yaml"],
    ["simulate", "x.yaml", "--set", "seed=2", "--set", "deployment.replicas=4", "--json"],
    ["simulate", "--json", "--set", "seed=2", "a file.yaml", "--output", "a", "--output", "b"],
]
OTHERS = [
    ["simulate"],
    ["simulate", "--help"],
    ["simulate", "x.yaml", "y.yaml"],
    ["simulate", "x.yaml", "--seed", "3"],
    ["simulate", "x.yaml", "--plots"],
    ["simulate", "x.yaml", "--output"],
    ["simulate", "x.yaml", "--output", "--json"],
    ["simulate", "x.yaml", "--output=out"],
    ["simulate", "x.yaml", "--set", ""],
    ["simulate", "--", "x.yaml"],
    ["simulate", ""],
    ["check", "x.yaml"],
    ["--version"],
    [],
]


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]) -> list[Any]:
    """What the command is called with."""
    calls: list[Any] = []

    def told(scenario: str, overrides: Any, output: Path = Path("runs"), **more: Any) -> None:
        calls.append((scenario, list(overrides), output, {name: value for name, value in more.items() if value}))

    monkeypatch.setattr(simulate, "simulate_command", told)
    code, _, err = typed(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    return calls


@pytest.mark.parametrize("words", PLAIN)
def test_it_is_called_as_typer_calls_it(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain.simulated(words) is not None
    own = called(monkeypatch, capsys, words)
    monkeypatch.setattr(plain, "simulated", lambda words: None)
    assert own == called(monkeypatch, capsys, words)
    assert len(own) == 1


@pytest.mark.parametrize("words", OTHERS)
def test_all_else_is_left_to_typer(words: list[str]) -> None:
    assert plain.simulated(words) is None


def test_typer_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.argv[1:] = ['simulate', 'nowhere.yaml']\n"
        "from simulator.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "assert 'typer' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nowhere.yaml" in done.stderr
