"""Numbers as the terminal shows them."""

from __future__ import annotations

import pytest

from simulator.cli.catalogues import show_command
from simulator.report.numbers import count, quantity, short


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0"), (1234.5, "1,234"), (12.34, "12.3"), (0.0215, "0.0215"), (0.001234, "0.00123"),
     (4.5e-4, "0.00045"), (2.3e-5, "2.3e-05")],
)  # fmt: skip
def test_no_number_is_shown_as_nothing(value: float | None, shown: str) -> None:
    assert short(value) == shown


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (85_017_493_504, "byte", "85.02 GB"),
        (3.35e12, "byte/s", "3.35 TB/s"),
        (9.894e14, "FLOP/s", "989.4 TFLOP/s"),
        (132, "multiprocessor", "132 multiprocessor"),
        (2.297e-5, "s", "22.97 us"),
        (0.00117, "s", "1.17 ms"),
        (31.7188, "cycle", "31.72 cycle"),
        (250.0, "s", "250 s"),
        (0.0, "s", "0 s"),
        (-0.5, "s", "-500 ms"),
    ],
)
def test_constants_have_the_digits_that_mean_something(value: float, unit: str, shown: str) -> None:
    assert quantity(value, unit) == shown


def test_large_counts_are_shown_in_billions() -> None:
    assert [count(n) for n in (70_553_706_496, 125_239_296, 671_026_419_200, 999, 1.04e12)] == [
        "70.55 B", "125.2 M", "671.0 B", "999", "1.040 T",
    ]  # fmt: skip


def test_overheads_of_microseconds_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_command("engine", "vllm", False)
    told = capsys.readouterr().out
    assert "22.97 us" in told
    assert "0.0000" not in told
