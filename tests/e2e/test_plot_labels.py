"""Words in plots neither touch one another nor leave the frame, and percentiles are the summary's."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.planning.sweep import plan_sweep, run_sweep
from simulator.report import fidelity_plot, plots, sweep_plot
from simulator.report.drawing import LETTER, log_ticks, number, png
from simulator.report.numbers import short
from simulator.run import simulate
from simulator.validation.report import SHOWN
from tests.effort import examples

from .conftest import SCENARIO


def words_of(figure: Any) -> list[tuple[str, Any]]:
    """Every text that was drawn, with its box [pixels]."""
    from matplotlib.text import Text

    unseen = set()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (tick.label1.get_visible() and low <= tick.get_loc() <= high and axes.axison):
                    unseen.add(tick.label1)
                unseen.add(tick.label2)
            unseen.add(axis.offsetText)
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in unseen]
    return [(t.get_text(), t.get_window_extent()) for t in found]


def misplaced(figure: Any) -> list[str]:
    """Words that leave the figure, and pairs that overlap."""
    words, frame = words_of(figure), figure.bbox
    wrong = [w for w, b in words if b.x0 < -1 or b.y0 < -1 or b.x1 > frame.x1 + 1 or b.y1 > frame.y1 + 1]
    for (a, of_a), (b, of_b) in itertools.combinations(words, 2):
        if of_a.x0 < of_b.x1 and of_b.x0 < of_a.x1 and of_a.y0 < of_b.y1 and of_b.y0 < of_a.y1:
            wrong.append(f"{a!r} over {b!r}")
    return wrong


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures as they were written."""
    figures: list[Any] = []

    def keep(figure: Any, dpi: int) -> bytes:
        figures.append(figure)
        return png(figure, dpi)

    for module in (plots, sweep_plot, fidelity_plot):
        monkeypatch.setattr(module, "png", keep)
    return figures


SLO = {"ttft_ms": {"p50": 80, "p99": 30_000}, "tpot_ms": {"p99": 30}, "e2el_ms": {"p90": 900}}
LENGTHS = {
    "prompt_tokens": {"kind": "lognormal", "mean": 800, "p99": 9000},
    "output_tokens": {"kind": "lognormal", "mean": 60, "p99": 600},
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bounds": {"slo": SLO},
    "classes": {
        "name": "a-name-that-is-long-enough-to-fold-the-title-of-the-figure-for-certain",
        "workload": {
            "duration": 20,
            "classes": [
                {**LENGTHS, "name": f"a class whose name is long {i}", "slo": SLO, "arrivals": {"kind": "poisson", "rate": 2}}
                for i in range(5)
            ],
        },
    },
    "overload": {"slo": SLO, "workload": {**LENGTHS, "arrivals": {"kind": "poisson", "rate": 60}, "duration": 20, "drain_s": 1}},
}


QUICK = ("classes",)


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "overload"])
def test_labels_of_a_run_stand_clear(case: str, tmp_path: Path, drawn: list[Any]) -> None:
    run = simulate({**SCENARIO, **CASES[case]})
    plots.write_plots(run, tmp_path)
    assert [misplaced(figure) for figure in drawn] == [[], [], []]


def test_stages_are_named_where_their_names_have_room(tmp_path: Path, drawn: list[Any]) -> None:
    def stage(seconds: float, **keys: Any) -> dict[str, Any]:
        return {**LENGTHS, "arrivals": {"kind": "poisson", "rate": 2}, "duration": seconds, **keys}

    stages = [stage(30, name="a quiet hour"), stage(1, name="a peak"), stage(1, name="another"), stage(30, name="the evening")]
    run = simulate({**SCENARIO, "workload": {"stages": stages}})
    plots.write_plots(run, tmp_path)
    assert [misplaced(figure) for figure in drawn] == [[], [], []]
    named = [[text for text, _ in words_of(figure)] for figure in drawn[1:]]
    assert all({"a quiet hour", "the evening"} <= {*each} and "a peak" not in each for each in named)
    lines = [line.get_xdata()[0] for line in drawn[1].axes[2].lines if line.get_linestyle() == ":"]
    assert lines == [each["start_s"] for each in run.result["stages"]]


def test_an_empty_window_is_none_in_which_requests_were_lost(tmp_path: Path, drawn: list[Any]) -> None:
    load = {**SCENARIO["workload"], "requests": 3, "duration": 200, "warmup": 100}
    plots.write_plots(simulate({**SCENARIO, "workload": load}), tmp_path)
    words = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert words == ["(none in the window)"]


def test_percentiles_of_a_plot_are_the_summarys(tmp_path: Path, drawn: list[Any]) -> None:
    run = simulate({**SCENARIO, **CASES["overload"]})
    plots.write_plots(run, tmp_path)
    for axes, metric in zip(drawn[0].axes, ("ttft_ms", "tpot_ms", "e2el_ms"), strict=True):
        stats = run.result["metrics"][metric]
        (label,) = (text.get_text() for text in axes.get_legend().get_texts())
        assert label.startswith(", ".join(f"{p} {short(stats[p])}" for p in ("p50", "p90", "p99")))
    assert "lost" in label
    assert [misplaced(figure) for figure in drawn] == [[], [], []]


def test_labels_of_a_sweep_stand_clear(tmp_path: Path, drawn: list[Any]) -> None:
    scenario = {**SCENARIO, "slo": {"ttft_ms": {"p99": 60}}}
    plan = plan_sweep(scenario, ["deployment.replicas=1:3", "deployment.hardware=h100-sxm-80gb,a100-sxm-80gb"])
    result = run_sweep(plan, tmp_path / "s", workers=1)
    sweep_plot.write_plots(plan, result, tmp_path)
    assert misplaced(drawn[0]) == []
    named = {text for text, _ in words_of(drawn[0])}
    assert any(text.endswith("h100-sxm-80gb") for text in named)


def test_names_of_points_stand_clear_of_other_points_and_of_the_bound(tmp_path: Path, drawn: list[Any]) -> None:
    def row(usd: float, ttft_ms: float, pareto: bool) -> dict[str, Any]:
        judged = {"status": "ok", "slo": "met", "pareto": pareto, "deployment.hardware": "a-device-of-long-name"}
        return {**judged, "usd_per_hour": usd, "ttft_ms_p99": ttft_ms}

    rows = [row(1.0, 100.0, True), row(1.15, 104.0, False), row(2.0, 50.0, True), row(2.0, 60.0, False), row(4.0, 40.0, True)]
    plan = SimpleNamespace(name="s", paths=["deployment.hardware"], slo=lambda: {"ttft_ms": {"p99": 54}})
    result: Any = SimpleNamespace(rows=rows, cost="usd_per_hour", latency="ttft_ms_p99")
    sweep_plot.write_plots(plan, result, tmp_path)  # type: ignore[arg-type]
    (axes,) = drawn[0].axes
    marks = axes.transData.transform([(each["usd_per_hour"], each["ttft_ms_p99"]) for each in rows])
    height = axes.transData.transform((0, 54))[1]
    boxes = [box for text, box in words_of(drawn[0]) if text == "a-device-of-long-name"]
    assert boxes
    for box in boxes:
        assert not any(box.x0 - 3 < x < box.x1 + 3 and box.y0 - 3 < y < box.y1 + 3 for x, y in marks)
        assert not box.y0 < height < box.y1


@pytest.mark.parametrize("spread", [0.01, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.3, 1.0, 4.0))])
def test_labels_of_the_fidelity_figure_stand_clear(spread: float, tmp_path: Path, drawn: list[Any]) -> None:
    rng = np.random.default_rng(1)
    experiments = [
        {"metric": metric, "measured": float(m), "predicted": float(m * rng.lognormal(0, 0.05))}
        for i, (metric, _) in enumerate(SHOWN)
        for m in 10.0 ** (i - 1) * rng.lognormal(1, spread, 30)
    ]
    fidelity_plot.write_plot({"experiments": experiments}, tmp_path / "f.png")
    assert misplaced(drawn[0]) == []


@settings(max_examples=examples(300))
@given(st.floats(-6, 9), st.floats(0.02, 9), st.floats(12, 60), st.booleans())
def test_ticks_of_a_logarithmic_axis_stand_clear(start: float, decades: float, room: float, across: bool) -> None:
    low, high = 10.0**start, 10.0 ** (start + decades)
    ticks = log_ticks(low, high, room, across)
    assert all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(ticks)
    scale = room / math.log10(high / low)
    for a, b in itertools.pairwise(ticks):
        size = LETTER * (len(number(a)) + len(number(b))) / 2 if across else 1.0
        assert scale * math.log10(b / a) > size
    if room > 25 and decades > 0.1:
        assert ticks, "an axis without a number says nothing"
