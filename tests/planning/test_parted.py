"""A sweep in parts says what the same sweep in one table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hardware_profiles.errors import InputError
from simulator.cli import sweep
from simulator.cli.sweep import text
from simulator.planning import parted, store
from simulator.planning.parted import plan_parts, run_parts
from simulator.planning.sweep import SweepResult, plan_sweep, run_sweep

SCENARIO = {
    "name": "small",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 8},
        "prompt_tokens": {"kind": "constant", "value": 300},
        "output_tokens": {"kind": "constant", "value": 3},
        "duration": 2,
    },
    "slo": {"ttft_ms": {"p90": 500}},
    "cost": {"usd_per_gpu_hour": 3.0},
}
VARY = ["deployment.replicas=0,1,2", "workload.arrivals.rate=4,8"]  # none replicas are wrong


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parted, "PART", 4)


def in_parts(folder: Path, vary: list[str] = VARY, *, resume: bool = False) -> SweepResult:
    return run_parts(plan_parts(SCENARIO, vary), folder, workers=1, resume=resume)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / store.POINTS).iterdir()) for row in store.read_part(path) or []]


def test_parts_hold_the_rows_of_the_table_and_the_same_stands_out(tmp_path: Path) -> None:
    whole = run_sweep(plan_sweep(SCENARIO, VARY), tmp_path / "whole", workers=1)
    found = in_parts(tmp_path / "parts")
    assert rows(tmp_path / "parts") == [{k: v for k, v in row.items() if k not in ("pareto", "run")} for row in whole.rows]
    assert found.close is not None
    assert whole.close is not None
    assert (found.close["point"], found.cheapest) == (whole.close["point"], whole.cheapest)
    assert [row["point"] for row in found.rows if row["pareto"]] == [row["point"] for row in whole.rows if row["pareto"]]
    assert found.statuses == {"ok": 4, "invalid": 2}
    told = text(plan_parts(SCENARIO, VARY), found)
    assert "what stands out of 6 points" in told
    assert "2 of 6 points have no result" in told


def test_parts_that_are_there_are_taken_and_damaged_ones_computed_again(tmp_path: Path) -> None:
    first = in_parts(tmp_path)
    table = (tmp_path / store.CSV).read_text()
    kept, damaged = sorted((tmp_path / store.POINTS).iterdir())
    before, written = damaged.read_bytes(), kept.stat().st_mtime_ns
    damaged.write_bytes(before[:-9])
    again = in_parts(tmp_path, resume=True)
    assert again.notes == ("1 of 2 parts were there already",)
    assert (damaged.read_bytes(), kept.stat().st_mtime_ns) == (before, written)
    assert again.rows == first.rows
    assert text(plan_parts(SCENARIO, VARY), again) == text(plan_parts(SCENARIO, VARY), first)
    assert (tmp_path / store.CSV).read_text() == table
    with pytest.raises(InputError, match="another sweep"):
        in_parts(tmp_path, ["deployment.replicas=1:3", VARY[1]], resume=True)


def test_points_that_differ_in_what_was_varied_alone_are_shown_once_in_a_long_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vary = ["deployment.engine_args.max_num_batched_tokens=4096,4097,4098", "workload.arrivals.rate=4,8"]
    plan = plan_sweep(SCENARIO, vary)
    found = run_sweep(plan, tmp_path, workers=1)
    assert "left out" not in text(plan, found)
    monkeypatch.setattr(sweep, "MAX_SHOWN", 5)
    told = text(plan, found)
    assert "left out: 4 points" in told
    assert "more in sweep.csv" not in told


@pytest.mark.parametrize("together", [2, 3])
def test_what_stands_out_of_parts_that_were_joined_is_that_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    vary = ["deployment.replicas=0,1,2,3", "workload.arrivals.rate=4,8,40"]
    apart = in_parts(tmp_path / "apart", vary)
    monkeypatch.setattr(parted, "TOGETHER", together)
    held, join = [], parted._joined
    monkeypatch.setattr(parted, "_joined", lambda *given: held.append(join(*given)) or held[-1])
    joined = in_parts(tmp_path / "joined", vary)
    assert (joined.rows, joined.statuses, joined.close, joined.cheapest) == (
        apart.rows,
        apart.statuses,
        apart.close,
        apart.cheapest,
    )
    assert held
    assert all(len(each) < together for each in held)


def test_a_grid_of_wrong_values_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="replicas"):
        in_parts(tmp_path / "none", ["deployment.replicas=-1,-2"])
    assert not (tmp_path / "none").exists()
