"""Why a request has no answer is told in every table: rejected by a full server, too long, left over, or never come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.cli.compare import text
from simulator.cli.summary import load_lines
from simulator.cluster.outcome import LOSSES, Reason
from simulator.config.load import load_scenario
from simulator.io.rundir import write_run
from simulator.io.tables import read_columns
from simulator.planning.compare import compare, read_columns_of
from simulator.planning.points import outcome_columns
from simulator.prepare import prepare
from simulator.report.words import REASONS, reasons_of
from simulator.run import RunResult, run_prepared
from simulator.workload import streaming

CROWDED: dict[str, Any] = {
    "name": "crowded",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": {"max_model_len": 1024}},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 20},
        "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 2000},
        "output_tokens": {"kind": "constant", "value": 150},
        "max_output_tokens": {"kind": "uniform", "low": 150, "high": 700},
        "duration": 12,
        "drain_s": 0.2,
    },
}


def run(rows: int | None, stop_after: int | None = None, on_full: str = "429") -> RunResult:
    """Run the crowded scenario on a server that takes so many requests at once."""
    prepared = prepare(load_scenario(CROWDED))
    front = replace(prepared.plan.front, inflight=rows, on_full=on_full)
    ended = 0

    def stop() -> bool:
        nonlocal ended
        ended += 1
        return ended == stop_after

    return run_prepared(replace(prepared, plan=replace(prepared.plan, front=front)), should_stop=stop)


def columns_of(run: RunResult) -> dict[str, np.ndarray[Any, Any]]:
    """The request table as arrays."""
    if isinstance(run.requests, Path):
        return read_columns(run.requests)
    return {name: np.asarray(column) for name, column in run.requests.items()}


def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to set."""


def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stream blocks of 50 requests."""
    monkeypatch.setattr("simulator.run.STREAM_ABOVE", 50)
    monkeypatch.setattr(streaming, "BLOCK", 50)


@pytest.mark.parametrize("way", [in_memory, streamed])
def test_each_loss_has_its_reason(
    way: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    for rows, on_full, stop_after in ((6, "429", None), (6, "503", None), (None, "429", 60)):
        found = run(rows, stop_after, on_full)
        totals, columns = found.result["totals"], columns_of(found)
        assert totals["offered"] == sum(totals[n] for n in ("completed", "rejected", "failed", "unfinished"))
        assert sum(totals["reasons"].values()) == totals["offered"] - totals["completed"]
        for name, count in totals["reasons"].items():
            assert (columns["reason"] == name).sum() == count, name
        for status, name in (
            ("finished", "completed"),
            ("rejected", "rejected"),
            ("unfinished", "unfinished"),
        ):
            assert (columns["status"] == status).sum() == totals[name], name
        absent = columns["reason"] == "not_arrived"
        assert absent.sum() == totals["not_arrived"]
        assert all(status is None for status in columns["status"][absent])
        assert set(columns["attempts"]) == {1}
        assert set(columns["pool"]) == {"pool0"}
        wanted = {f"shed_{on_full}"} if rows else set()
        wanted |= {"prompt_too_long", "limit_too_long", "interrupted" if stop_after else "drain_ended"}
        assert set(totals["reasons"]) == wanted
        if rows:  # what a full server turns away is load beyond its capacity
            assert found.result["overload"]["shed"] == totals["reasons"][f"shed_{on_full}"]
            assert any("turned away by a full server" in text for text in found.result["warnings"])


def test_every_reason_of_a_loss_has_words_under_its_status() -> None:
    named = [name for words in REASONS.values() for name in words]
    assert sorted(named) == sorted(reason.name.lower() for reason in LOSSES)
    assert {Reason.STOP, Reason.LENGTH, Reason.NOT_ARRIVED}.isdisjoint(LOSSES)


def test_reasons_reach_summary_comparison_and_sweep(tmp_path: Path) -> None:
    full, free = run(6), run(None)
    totals, reasons = full.result["totals"], full.result["totals"]["reasons"]
    lines = load_lines(totals, full.manifest)
    shed, long = reasons["shed_429"], reasons["limit_too_long"]
    assert shed > long > 0
    assert f"{totals['rejected']} rejected: {shed} shed (429), {long} limit too long" in "\n".join(lines)
    assert max(map(len, lines)) <= 100
    assert len(lines[-1]) <= 80
    assert len(load_lines({**totals, "rejected": 0}, full.manifest)) == 1
    for number, one in enumerate((full, free)):
        write_run(
            tmp_path / str(number),
            result=one.result,
            manifest=one.manifest,
            requests=one.requests,
            timeline=one.timeline,
        )
    table = compare([column for n in "01" for column in read_columns_of(tmp_path / n)])
    rows = {row: [c.values[row] for c in table.columns] for row in table.rows if row.startswith("reasons.")}
    assert rows["reasons.shed_429"] == [shed, 0]
    assert "reasons.node_lost" not in rows
    assert any(line.split()[:3] == ["-", "shed", "(429)"] for line in text(table).splitlines())
    assert f"{shed} shed_429" in outcome_columns(full.result)["lost"]
    assert reasons_of(totals, "unfinished") == "drain ended"
