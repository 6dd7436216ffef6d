"""The command line in this process."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.cli import main


def typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `capacity-plan`."""
    monkeypatch.setattr("sys.argv", ["capacity-plan", *words])
    try:
        main()
        code: Any = 0
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return int(code), out, err
