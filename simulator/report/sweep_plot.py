"""Plots of a sweep: cost against latency, the Pareto front drawn through."""

from __future__ import annotations

import textwrap
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.report.drawing import bare, png

if TYPE_CHECKING:
    from simulator.planning.sweep import SweepPlan, SweepResult

DPI = 120
DOT = 6
"""Half a mark's width with the room around it [pixels]."""
SIDES = ((5, 5), (-5, 5), (5, -5), (-5, -5))
"""Where the words of a point stand beside it [points], the preferred first."""
COLOURS = {"met": "#1a7f37", "close": "#bf8700", "missed": "#cf222e", "not judged": "#8250df", "": "#57606a"}
UNITS = {
    "usd_per_hour": "cost, $/hour",
    "usd_per_1m_total_tokens": "cost, $ per 1M tokens (input and output)",
    "devices": "devices",
}


def write_plots(plan: SweepPlan, result: SweepResult, folder: Path) -> Path | None:
    """Write ``cost-latency.png`` and return its path; None if no point has both a cost and a latency.

    Points are coloured by the SLO's verdict; the bound of the SLO, if the latency has one, is a dotted line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from simulator.io.rundir import write_file
    from simulator.planning.points import axis_column

    rows = [r for r in result.rows if r["status"] == "ok" and None not in (r[result.cost], r[result.latency])]
    if not rows:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bare(axes)
    for verdict, colour in COLOURS.items():
        chosen = [r for r in rows if r["slo"] == verdict]
        if chosen:
            label = f"SLO {verdict}" if verdict else "no SLO"
            axes.scatter(
                [r[result.cost] for r in chosen],
                [r[result.latency] for r in chosen],
                color=colour,
                label=label,
            )
    front = sorted((r[result.cost], r[result.latency]) for r in rows if r["pareto"])
    if front:
        axes.step(*zip(*front, strict=True), where="post", color="#57606a", linewidth=1, label="Pareto front")
    metric, percentile = result.latency.rsplit("_ms_", 1)
    bound = plan.slo().get(f"{metric}_ms", {}).get(percentile)
    if bound is not None:
        axes.axhline(bound, color="#cf222e", linestyle=":", linewidth=1, label=f"bound {bound:g} ms")
    axes.set_yscale("log")
    axes.set_xlabel(UNITS[result.cost])
    axes.set_ylabel(f"{metric.upper().replace('E2EL', 'E2E')} {percentile}, ms")
    varied = ", ".join(axis_column(path).rsplit(".", 1)[-1] for path in plan.paths)
    title = f"{plan.name}; beside the points of the front: {varied}"
    figure.suptitle(textwrap.fill(title, 100, break_on_hyphens=False), fontsize=10)
    axes.margins(0.06, 0.12)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, borderaxespad=0.1)
    _name_front(figure, axes, plan, rows, result, bound)
    path = folder / "cost-latency.png"
    write_file(path, png(figure, DPI))
    return path


def _name_front(
    figure: Any, axes: Any, plan: SweepPlan, rows: list[dict[str, Any]], result: SweepResult, bound: float | None
) -> None:
    """Name the points of the front, each on the first side where its words stay in the frame, clear of all that is drawn.

    Points without such a side are not named: the table has them.
    """
    from simulator.planning.axes import text_of
    from simulator.planning.points import axis_column

    columns = [axis_column(path) for path in plan.paths]
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    front = sorted((r for r in rows if r["pareto"]), key=lambda r: r[result.cost])
    taken = _steps(axes.transData.transform([(r[result.cost], r[result.latency]) for r in front]).tolist()) if front else []
    taken += _dots(axes.transData.transform([(r[result.cost], r[result.latency]) for r in rows]).tolist())
    if bound is not None:
        height = axes.transData.transform((0, bound))[1]
        taken += _steps([(frame.x0, height), (frame.x1, height)])
    for row in front:
        for dx, dy in SIDES:
            words = axes.annotate(
                ", ".join(text_of(row[column]) for column in columns),
                (row[result.cost], row[result.latency]),
                textcoords="offset points",
                xytext=(dx, dy),
                ha="left" if dx > 0 else "right",
                va="bottom" if dy > 0 else "top",
                fontsize=7,
            )
            box = words.get_window_extent()
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            words.remove()


def _dots(points: list[tuple[float, float]]) -> list[Any]:
    """Boxes [pixels] of the marks at these points."""
    from matplotlib.transforms import Bbox

    return [Bbox.from_extents(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in points]


def _steps(points: list[tuple[float, float]]) -> list[Any]:
    """Boxes [pixels] of the lines that join these points, first across, then down."""
    from matplotlib.transforms import Bbox

    boxes = []
    for (x0, y0), (x1, y1) in pairwise(points):
        boxes += [Bbox.from_extents(x0, y0 - 1, x1, y0 + 1), Bbox.from_extents(x1 - 1, y1, x1 + 1, y0)]
    return boxes
