"""The command line in this process: `cli(...)` runs it in an empty folder and returns what a user would see."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

SCENARIO: dict[str, Any] = {
    "name": "small",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 4},
        "prompt_tokens": {"kind": "lognormal", "mean": 300, "p99": 2000},
        "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 200},
        "duration": 20,
    },
}


@dataclass(frozen=True)
class Outcome:
    """Exit code and what stood on stdout and stderr."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """stdout as one JSON value."""
        return json.loads(self.out)

    def refused(self, code: int, *words: str) -> None:
        """Check an error: exit code, one line for the cause and one for the mend, nothing else, all `words` in it."""
        assert self.code == code, (self.code, self.out, self.err)
        cause, mend = self.err.splitlines()
        assert cause.startswith("error: ")
        assert mend.startswith("  mend: ")
        for word in words:
            assert word in self.err, self.err
        if self.out:
            error = self.json()["error"]
            assert list(error) == ["message", "where", "mend"]
            assert cause == "error: " + (f"{error['where']}: " if error["where"] else "") + error["message"]
            assert mend == f"  mend: {error['mend']}"


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `capacity-plan ARGUMENTS` with the working directory in `tmp_path`, which holds small.yaml."""
    from simulator.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAPACITY_PLAN_TRACEBACK", raising=False)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SCENARIO, sort_keys=False))

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["capacity-plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capsys.readouterr()
        return Outcome(int(leaving.value.code or 0), out, err)

    return run


def files_below(folder: Path) -> set[str]:
    """Paths of all files and folders below `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
