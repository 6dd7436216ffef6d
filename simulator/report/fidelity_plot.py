"""The figure of the fidelity page: predicted against measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simulator.report.drawing import png
from simulator.validation.report import SHOWN

DPI = 110


def write_plot(report: dict[str, Any], path: Path) -> None:
    """Predicted against measured, one panel a metric, logarithmic; the dashed lines are 10 % apart from equal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = [(m, label) for m, label in SHOWN if sum(e["metric"] == m for e in report["experiments"]) > 2][:6]
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3)
    for axes, (metric, label) in zip(panels.flat, chosen, strict=False):
        points = np.array([(e["measured"], e["predicted"]) for e in report["experiments"] if e["metric"] == metric])
        low, high = points.min() * 0.8, points.max() * 1.25
        axes.plot([low, high], [low, high], color="0.3", lw=1)
        for factor in (0.9, 1.1):
            axes.plot([low, high], [low * factor, high * factor], color="0.6", lw=0.8, ls="--")
        axes.scatter(points[:, 0], points[:, 1], s=9, alpha=0.6, color="tab:blue", lw=0)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="measured", ylabel="predicted")
        unit = "" if "tok/s" in label else " [ms]"
        axes.set_title(f"{label}{unit}, {len(points)} values", fontsize=10)
    for axes in list(panels.flat)[len(chosen) :]:
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure, DPI))
