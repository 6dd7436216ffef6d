"""Plots of a sweep: cost against latency, the Pareto front drawn through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.planning.sweep import SweepPlan, SweepResult

COLOURS = {"met": "#1a7f37", "close": "#bf8700", "missed": "#cf222e", "": "#57606a"}
UNITS = {
    "usd_per_hour": "cost, $/hour",
    "usd_per_1m_total_tokens": "cost, $ per 1M tokens (input and output)",
    "devices": "devices",
}


def write_plots(plan: SweepPlan, result: SweepResult, folder: Path) -> Path | None:
    """Write ``cost-latency.png`` and return its path; None if no point has both a cost and a latency.

    Points are coloured by the SLO's verdict; the bound of the SLO, if the latency has one, is a dotted line.
    """
    from io import BytesIO

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter

    from simulator.io.rundir import write_file
    from simulator.planning.sweep import axis_column

    rows = [r for r in result.rows if r["status"] == "ok" and None not in (r[result.cost], r[result.latency])]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(8, 5), constrained_layout=True)
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
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    axes.set_xlabel(UNITS[result.cost])
    axes.set_ylabel(f"{metric.upper().replace('E2EL', 'E2E')} {percentile}, ms")
    varied = ", ".join(axis_column(path).rsplit(".", 1)[-1] for path in plan.paths)
    axes.set_title(f"{plan.name}; beside the points of the front: {varied}", fontsize=10)
    _name_front(axes, plan, rows, result)
    axes.legend(frameon=False)
    image = BytesIO()
    figure.savefig(image, format="png", dpi=120)
    plt.close(figure)
    path = folder / "cost-latency.png"
    write_file(path, image.getvalue())
    return path


def _name_front(axes: Any, plan: SweepPlan, rows: list[dict[str, Any]], result: SweepResult) -> None:
    from simulator.planning.sweep import axis_column

    columns = [axis_column(path) for path in plan.paths]

    def words(row: Mapping[str, Any]) -> str:
        return ", ".join(str(row[column]) for column in columns)

    for row in rows:
        if row["pareto"]:
            axes.annotate(
                words(row),
                (row[result.cost], row[result.latency]),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=7,
            )
