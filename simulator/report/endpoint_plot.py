"""The figure of `validate endpoint`: how measured and simulated latencies are distributed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.report.drawing import bare, png

FloatArray = NDArray[np.float64]
LABELS = {
    "ttft_ms": "time to first token, TTFT [ms]",
    "tpot_ms": "time per output token, TPOT [ms]",
    "itl_ms": "gap between tokens, ITL [ms]",
    "e2el_ms": "end-to-end latency, E2E [ms]",
}
DPI = 110


def endpoint_png(measured: Mapping[str, FloatArray], simulated: Mapping[str, tuple[FloatArray, Any]], title: str) -> bytes:
    """Shares of requests (of gaps, for ITL) up to each latency, a panel a metric, measured and simulated. The image's bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    for axes, (metric, label) in zip(panels.flat, LABELS.items(), strict=True):
        values, weights = simulated[metric]
        for data, weight, name, colour in (
            (measured[metric], None, "measured", "#0969da"),
            (values, weights, "simulated", "#bc4c00"),
        ):
            if len(data):
                order = np.argsort(data)
                share = np.cumsum(np.ones(len(data)) if weight is None else np.asarray(weight, float)[order])
                axes.step(data[order], 100 * share / share[-1], where="post", label=name, color=colour)
        if min((float(data.min()) for data in (measured[metric], values) if len(data)), default=0.0) > 0:
            axes.set_xscale("log")
        bare(axes)
        axes.set(xlabel=label, ylabel="gaps [%]" if metric == "itl_ms" else "requests [%]", ylim=(0, 101))
    panels.flat[0].legend(frameon=False)
    figure.suptitle(f"{title[:100]}: a live server and its simulation", fontsize=11)
    return png(figure, DPI)
