"""Fitting overheads: the solver finds what made the data, and a fit writes what it fits and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine_models.cost.overheads import FRONT_END, LOOP, NAMES, own_overheads
from hardware_profiles.errors import InputError
from simulator.validation import overheads
from simulator.validation.engines import FITTINGS


@pytest.mark.parametrize("engine", ["vllm", "vllm-eager"])
def test_the_fit_finds_the_values_behind_the_runs(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up runs whose metrics are sums of the unknowns by known weights."""
    fitting = FITTINGS[engine][1]
    unknowns = fitting.unknowns
    truth = {name: 3.0 * spec[1] for name, spec in unknowns.items()}

    def metric(j: int, values: dict[str, float]) -> float:
        return 10.0 + sum(
            (1 + (3 * i + 5 * j) % 7) * values[n] / unknowns[n][1] for i, n in enumerate(unknowns)
        )

    def log_errors(experiment: Any, targets: tuple[str, ...], values: dict[str, float]) -> list[float]:
        j = experiment.rows[0]["number"]
        return [math.log(metric(j, values) / metric(j, truth)) for _ in targets]

    made = [
        (SimpleNamespace(rows=({"id": f"run-{j}/all", "model": f"m{j % 3}", "number": j},)), fitting.targets)
        for j in range(6)
    ]
    monkeypatch.setattr(overheads, "_experiments", lambda *_: made)
    monkeypatch.setattr(overheads, "_log_errors", log_errors)
    fitted = overheads.fit(Path("."), engine, workers=1, rounds=12)
    assert fitted.values == pytest.approx(truth, rel=0.02)
    groups = overheads.leave_out(fitted, lambda row: str(row["model"]))
    assert [g["group"] for g in groups] == ["m0", "m1", "m2"]
    assert all(g[t] < 1.0 for g in groups for t in fitting.targets)


def test_too_few_runs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overheads, "_experiments", lambda *_: [])
    with pytest.raises(InputError, match="2 are needed"):
        overheads.fit(Path("."), "vllm-eager")


def test_a_fit_of_launches_replaces_those_values_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [({"id": "a/all", "model": "m", "source": "s"}, "tpot_mean_ms")]
    fitted = overheads.Fit(
        "vllm-eager", {"launch_s": 1e-5, "expert_launches": 11.0}, rows, np.zeros(1), np.zeros((1, 2))
    )
    shipped = dict(own_overheads("vllm"))
    monkeypatch.setattr(overheads, "FOLDER", tmp_path)
    path = overheads.write(fitted, "vllm-eager", tmp_path)
    assert path.name == "vllm.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["launch_s"]["value"] == 1e-5
    assert written["launch_s"]["kind"] == "fitted"
    assert "enforce-eager" in written["launch_s"]["source"]
    others = set(shipped) - set(FITTINGS["vllm-eager"][1].unknowns)
    assert {n: written[n] for n in others} == {n: shipped[n] for n in others}


def test_what_is_fitted_is_shipped_and_read() -> None:
    shipped = own_overheads("vllm")
    for engine in ("vllm", "vllm-eager"):
        for name, (unit, _, _) in FITTINGS[engine][1].unknowns.items():
            assert shipped[name]["unit"] == unit
            assert name in NAMES or name in FRONT_END
    assert set(shipped) <= {*NAMES, *FRONT_END, *LOOP}
