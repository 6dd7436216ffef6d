"""Plots: three PNGs a run, the same bytes every time, whatever the run looks like."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.report import plots
from simulator.report.plots import MAX_POINTS, _coarse, write_plots
from simulator.run import simulate

from .conftest import SCENARIO

NAMES = ["latency.png", "load.png", "throughput.png"]
CLASSES = [
    {"name": name, "slo": {"ttft_ms": {"p99": 300}, "e2el_ms": {"p50": 900}, "itl_ms": {"p90": 20}},
     "arrivals": {"kind": "poisson", "rate": 2},
     "prompt_tokens": {"kind": "constant", "value": 300}, "output_tokens": {"kind": "constant", "value": value}}
    for name, value in (("short", 1), ("long", 60))
]  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bounds and many replicas": {
        "deployment": {**SCENARIO["deployment"], "replicas": 6},
        "slo": {"ttft_ms": {"p50": 50, "p99": 500}, "tpot_ms": {"p99": 30}, "itl_ms": {"p99": 30}},
    },
    "classes, one without TPOT": {"workload": {"classes": CLASSES, "duration": 10, "warmup": 2}},
    "nothing completed": {"workload": {**SCENARIO["workload"], "requests": 1, "drain_s": 0}},
}


def test_a_fleet_that_changes_has_an_image_of_its_own(tmp_path: Path) -> None:
    failures = {"events": [{"at_s": 2, "replica": 1, "kind": "gpu", "for_s": 1}], "start_up": 1}
    run = simulate({**SCENARIO, "deployment": {**SCENARIO["deployment"], "replicas": 2, "failures": failures}})
    assert [path.name for path in write_plots(run, tmp_path)] == [*NAMES, "fleet.png"]


@pytest.mark.parametrize("case", CHANGES)
def test_three_images_of_any_run(case: str, tmp_path: Path) -> None:
    scenario = {**SCENARIO, **CHANGES[case]}
    if case == "nothing completed":
        scenario["workload"] = {**scenario["workload"]}
        scenario["workload"].pop("duration")
    run = simulate(scenario)
    paths = write_plots(run, tmp_path / "a")
    assert [path.name for path in paths] == NAMES
    for path in paths:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width in (1320, 1760)
        assert height > 400
        assert b"Software" not in data
        assert b"tIME" not in data
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == NAMES


def test_gaps_between_tokens_are_drawn_where_an_slo_names_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plots, "png", lambda figure, dpi: drawn.setdefault(figure.axes[-1].get_xlabel(), figure) and b"")
    run = simulate({**SCENARIO, "slo": {"itl_ms": {"p50": 30}}})
    write_plots(run, tmp_path)
    gaps = next(figure for label, figure in drawn.items() if "ITL" in label).axes[-1]
    x, share = gaps.lines[-2].get_data()  # the last line is the bound's
    assert np.interp(run.result["metrics"]["itl_ms"]["p50"], x, share) == pytest.approx(50, abs=2)
    assert share[-1] == pytest.approx(100)


def test_the_same_bytes_again_whatever_the_reader_prefers(tmp_path: Path) -> None:
    import matplotlib

    run = simulate(SCENARIO)
    first = [path.read_bytes() for path in write_plots(run, tmp_path / "a")]
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "axes.facecolor": "yellow"}):
        again = [path.read_bytes() for path in write_plots(run, tmp_path / "b")]
    assert first == again


@pytest.mark.parametrize("bins", [1, 240, 241, 305, 480, 1000])
def test_points_of_a_curve_stand_for_as_many_bins_each(bins: int) -> None:
    sizes = [len(group) for group in _coarse(np.arange(float(bins)))]
    assert sum(sizes) == bins
    assert len(sizes) <= MAX_POINTS
    assert len({*sizes[:-1]}) <= 1
    assert sizes[-1] <= sizes[0]
