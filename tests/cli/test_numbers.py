"""Numbers as the terminal shows them."""

from __future__ import annotations

import pytest

from simulator.cli.catalogues import show_command
from simulator.cli.summary import short


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0"), (1234.5, "1,234"), (12.34, "12.3"), (0.0215, "0.0215"), (4.5e-4, "0.00045"), (2.3e-5, "2.3e-05")],
)
def test_no_number_is_shown_as_nothing(value: float | None, shown: str) -> None:
    assert short(value) == shown


def test_overheads_of_microseconds_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_command("engine", "vllm", False)
    told = capsys.readouterr().out
    assert "2.3e-05" in told
    assert "0.0000" not in told
