"""Tabulated functions: kernel times are taken once, when a deployment is set up; a step then costs a few look-ups."""

from __future__ import annotations

from bisect import bisect_right
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.float64, np.int64)
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def distinct(values: NDArray[Number]) -> NDArray[Number]:
    """Sorted values, each once: `np.unique`, which would import the masked arrays."""
    values = np.sort(values)
    first: NDArray[Number] = values[np.append(True, values[1:] != values[:-1])]
    return first


def log_grid(highest: int, per_octave: int) -> IntArray:
    """Integers from 1 to `highest`, about `per_octave` an octave."""
    count = max(2, int(np.log2(max(highest, 2)) * per_octave) + 1)
    return distinct(np.rint(np.geomspace(1, max(highest, 2), count)).astype(np.int64))


class PiecewiseLinear:
    """A tabulated function of one variable, linear between its nodes and beyond the last; scalar and array agree."""

    def __init__(self, nodes: FloatArray, values: FloatArray) -> None:
        slopes = np.diff(values) / np.diff(nodes)
        slopes = np.append(slopes, slopes[-1])
        self.nodes_array, self.values_array, self.slopes_array = nodes, values, slopes
        self.nodes: list[float] = nodes.tolist()
        self.values: list[float] = values.tolist()
        self.slopes: list[float] = slopes.tolist()

    def at(self, x: float) -> float:
        """Value at a scalar."""
        i = bisect_right(self.nodes, x) - 1
        if i < 0:
            i = 0
        return self.values[i] + self.slopes[i] * (x - self.nodes[i])

    def over(self, x: FloatArray) -> FloatArray:
        """Values at an array, by the same arithmetic as `at`."""
        i = np.searchsorted(self.nodes_array, x, side="right") - 1
        np.maximum(i, 0, out=i)
        return self.values_array[i] + self.slopes_array[i] * (x - self.nodes_array[i])


class Bilinear:
    """A tabulated function of two variables, bilinear between its nodes and beyond the last."""

    def __init__(self, x: IntArray, y: IntArray, values: FloatArray) -> None:
        self._x: list[int] = x.tolist()
        self._y: list[int] = y.tolist()
        self._grid: list[list[float]] = values.tolist()

    def at(self, x: int, y: int) -> float:
        """Value at a point."""
        grid, xs, ys = self._grid, self._x, self._y
        i = bisect_right(xs, x) - 1
        if i > len(xs) - 2:
            i = len(xs) - 2
        j = bisect_right(ys, y) - 1
        if j > len(ys) - 2:
            j = len(ys) - 2
        x_below, y_below = xs[i], ys[j]
        u = (x - x_below) / (xs[i + 1] - x_below)
        v = (y - y_below) / (ys[j + 1] - y_below)
        left, right = grid[i], grid[i + 1]
        low, high = left[j], left[j + 1]
        low += u * (right[j] - low)
        high += u * (right[j + 1] - high)
        return low + v * (high - low)
