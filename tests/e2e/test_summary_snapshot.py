"""The terminal summary, sign by sign, from a stored result, so that the numbers of the models do not move it.

CAPACITY_PLAN_GOLDEN=1 writes the golden text anew; look at the difference before it is committed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from simulator.cli.summary import summary

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["one-class", "classes"])
def test_summary(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = json.loads((GOLDEN / f"{name}.json").read_text())
    text = summary(run["result"], run["manifest"], "runs/example-0123456789") + "\n"
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("CAPACITY_PLAN_GOLDEN") == "1":
        golden.write_text(text)
    assert text == golden.read_text()
    assert max(map(len, text.splitlines())) <= 80
