"""Two hundred of the fuzz's cases, the same every time; `tests/fuzz/fuzz.py` runs ten thousand."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import fuzz
from tests.fuzz.inputs import Case, case

CHECK = Case(0, ["check", "s.yaml"], {"s.yaml": b"name: x\n"})


@pytest.mark.parametrize("numbers", [range(20), pytest.param(range(20, 200), marks=pytest.mark.slow)])
def test_inputs_gone_wrong_are_refused_or_run(numbers: range, tmp_path: Path) -> None:
    fuzz.warm_up()
    wrong = [f"case {outcome.case.number}: {outcome.wrong}" for outcome in fuzz.many(numbers, tmp_path)]
    assert not wrong, "\n".join(wrong)


def test_cases_are_the_same_every_time() -> None:
    assert [case(n) for n in range(50)] == [case(n) for n in range(50)]


def _raises(*_: object) -> None:
    raise KeyError("boom")


def _warns(*_: object) -> None:
    warnings.warn("boom", RuntimeWarning, stacklevel=1)


def _writes_half(*_: object) -> None:
    Path("out.csv").write_text("x")
    raise SystemExit(2)


def _overwrites(*_: object) -> None:
    Path("s.yaml").write_text("x")


def _fills_memory(*_: object) -> None:
    bytearray(fuzz.MEMORY_BYTES * 2)


FAULTS: dict[str, tuple[Callable[..., None], str]] = {
    "raises": (_raises, "internal error"),
    "warns": (_warns, "a warning of Python"),
    "leaves a file": (_writes_half, "mend"),
    "changes its input": (_overwrites, "an input was changed"),
    "fills memory": (_fills_memory, "out of memory"),
    "shows a control character": (lambda *_: os.write(2, b"\x1b[31m") and None, "a raw control character"),
    "ends with another code": (lambda *_: sys.exit(7), "exit code 7"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fuzz_sees_what_it_looks_for(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import simulator.cli.check

    does, words = FAULTS[fault]
    assert fuzz.run(CHECK, tmp_path).wrong == ""
    monkeypatch.setattr(simulator.cli.check, "check_command", does)
    assert words in fuzz.run(CHECK, tmp_path).wrong


def test_the_fuzz_ends_what_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import simulator.cli.check

    def forever(*_: object) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "CPU_S", 1)
    monkeypatch.setattr(simulator.cli.check, "check_command", forever)
    assert "killed" in fuzz.run(CHECK, tmp_path).wrong
