"""The experiment on a real server: what it lacks is named, and the clock that goes by what a server computes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.scripts import loaded

pytest.importorskip("aiohttp", reason="the extra [endpoint] is not installed")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "real" / "experiment.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks are not in this copy")


@pytest.fixture(scope="module")
def experiment() -> Any:
    return loaded(SCRIPT, "real_experiment")


@pytest.mark.parametrize(("engine", "words"), [("llama_cpp", "apt install llama.cpp"), ("vllm", "pip install vllm")])
def test_an_absent_server_is_named_with_what_brings_it(
    experiment: Any, engine: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["experiment.py", engine, "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        experiment.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a clock of Linux")
def test_a_clock_goes_by_what_the_server_computes_while_requests_are_under_way(experiment: Any) -> None:
    clock = experiment.ComputingClock(os.getpid())
    clock.under_way(1)
    began_s = clock()
    time.sleep(0.03)
    assert clock() - began_s < 0.02  # nobody computed
    clock.under_way(-1)
    began_s = clock()
    time.sleep(0.03)
    assert clock() - began_s >= 0.03
