"""A run that is told to stop when most of it is done: what is done is kept, marked as partial, and nothing else is left."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import simulator.run
from simulator.cli import interrupt
from simulator.cluster.cluster import Cluster
from simulator.io.rundir import read_run
from simulator.io.tables import read_columns


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_a_streamed_run_keeps_its_part(
    number: signal.Signals, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 50)
    monkeypatch.setattr(interrupt, "KEEP_AFTER_S", 0.0)
    real, ended = Cluster._finished, 0

    def finished(self: Cluster, seq: Any, now_s: float) -> None:
        nonlocal ended
        ended += 1
        if ended == 180:
            signal.raise_signal(number)
        real(self, seq, now_s)

    monkeypatch.setattr(Cluster, "_finished", finished)
    run = cli(
        "simulate",
        "small.yaml",
        "--set",
        "workload.arrivals={kind: poisson, rate: 10}",
        "--set",
        "workload.duration=20",
    )
    assert run.code == 130
    assert "PARTIAL" in run.out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-partial")
    part = read_run(folder)
    totals = part["result"]["totals"]
    assert part["partial"]
    assert totals["completed"] == 180
    reasons = read_columns(folder / "requests.parquet")["finish_reason"]
    assert (reasons == "stop").sum() + (reasons == "length").sum() == 180
    assert (reasons == "unfinished").sum() == totals["unfinished"]
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml", "runs"}
    assert {n: signal.getsignal(n) for n in before} == before


def test_terminated_soon_nothing_is_written(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 10)
    monkeypatch.setattr(
        Cluster, "_finished", lambda self, seq, now_s: signal.raise_signal(signal.SIGTERM)
    )
    run = cli("simulate", "small.yaml", "--set", "workload.duration=60")
    assert (run.code, run.err) == (130, "error: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]
