"""What all figures share: bare axes, numbers in plain notation, ticks whose labels do not touch, bytes that repeat."""

from __future__ import annotations

import math
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from typing import Any

SHADE = "#eaeef2"
MANTISSAS = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
"""Ticks of a decade, from many to few."""
LETTER = 0.65
"""Width of a digit over the size of its font, generously (measured on DejaVu Sans: 0.64)."""


def number(value: float, _position: int | None = None) -> str:
    """A tick's label."""
    return f"{value:,.10g}"


def bare(axes: Any) -> None:
    """Axes with a light grid, without a box, with plain numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=SHADE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(number)
    axes.yaxis.set_major_formatter(number)


def png(figure: Any, dpi: int) -> bytes:
    """The figure as an image without date and software, the ticks of its logarithmic axes chosen by the room there is."""
    figure.set_dpi(dpi)
    scaled = [axes for axes in figure.axes if axes.axison and "log" in (axes.get_xscale(), axes.get_yscale())]
    if scaled:
        figure.draw_without_rendering()
    for axes in scaled:
        set_log_ticks(axes)
    image = BytesIO()
    figure.savefig(image, format="png", dpi=dpi, metadata={"Software": None})
    return image.getvalue()


def set_log_ticks(axes: Any) -> None:
    """Label as many of 1, 2, 5 times a power of ten as stand clear of one another."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    box = axes.get_window_extent()
    for axis, pixels, (low, high), across in (
        (axes.xaxis, box.width, axes.get_xlim(), True),
        (axes.yaxis, box.height, axes.get_ylim(), False),
    ):
        if axis.get_scale() != "log":
            continue
        size = axis.get_ticklabels()[0].get_fontsize() * axes.figure.dpi / 72 if axis.get_ticklabels() else 14.0
        axis.set_major_locator(FixedLocator(log_ticks(low, high, pixels / size, across)))
        axis.set_major_formatter(number)
        axis.set_minor_formatter(NullFormatter())


def log_ticks(low: float, high: float, length_ratio: float, across: bool) -> list[float]:
    """Ticks from `low` to `high` on an axis `length_ratio` times as long as the font is high, whose labels stand side by side
    (`across`) or above one another.
    """
    scale = length_ratio / math.log10(high / low)
    best: list[float] = []
    for ticks in _candidates(low, high):
        sizes = [LETTER * len(number(value)) if across else 1.0 for value in ticks]
        pairs = pairwise(zip(ticks, sizes, strict=True))
        if all(scale * math.log10(b / a) > (of_a + of_b) / 2 + 0.7 for (a, of_a), (b, of_b) in pairs):
            if len(ticks) > 1:
                return ticks
            best = best or ticks
    return best


def _candidates(low: float, high: float) -> Iterator[list[float]]:
    """Choices of ticks, from many to few; of a range without two of them, steps of equal width first."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if sum(low <= m * 10.0**e <= high for e in decades for m in MANTISSAS[0]) < 2:
        step = 10.0 ** math.floor(math.log10(high - low))
        for width in (step / 2, step, 2 * step, 5 * step):
            yield [n * width for n in range(math.ceil(low / width), math.floor(high / width) + 1)]
    for mantissas in MANTISSAS:
        yield [m * 10.0**e for e in decades for m in mantissas if low <= m * 10.0**e <= high]
    for stride in range(2, len(decades) + 1):
        yield [10.0**e for e in decades if e % stride == 0 and low <= 10.0**e <= high]
