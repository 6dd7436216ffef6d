"""Which batches gave each request its tokens: inclusive ranges of batch numbers, kept flat.

A request of an undisturbed run emits in one range; one that was preempted, or paused by others' prefills, in several. Ranges are
appended when a request ends, so that its own objects can go; two flat columns and a start a row hold a million requests in a few
tens of megabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Spans = list[list[int]]


class Emissions(Sequence[Spans | None]):
    """Ranges of n requests: `emissions[row]` is a list of `[first, last]` batch numbers, None where nothing was noted.

    A range with `last < first` is empty.
    """

    def __init__(self, n: int) -> None:
        self._start = np.full(n, -1, dtype=np.int64)
        self._count = np.zeros(n, dtype=np.int32)
        self._first = array("q")
        self._last = array("q")

    @classmethod
    def of(cls, spans: Iterable[Spans | None]) -> Emissions:
        """Return the same ranges, kept flat."""
        rows = list(spans)
        emissions = cls(len(rows))
        for row, found in enumerate(rows):
            if found:
                emissions.note(row, found)
        return emissions

    def note(self, row: int, spans: Spans) -> None:
        """Note the ranges of a request, once."""
        self._start[row] = len(self._first)
        self._count[row] = len(spans)
        for first, last in spans:
            self._first.append(first)
            self._last.append(last)

    def __len__(self) -> int:
        return len(self._start)

    @overload
    def __getitem__(self, row: int) -> Spans | None: ...
    @overload
    def __getitem__(self, row: slice) -> list[Spans | None]: ...
    def __getitem__(self, row: int | slice) -> Spans | list[Spans | None] | None:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        start, count = int(self._start[row]), int(self._count[row])
        if start < 0:
            return None
        return [[self._first[i], self._last[i]] for i in range(start, start + count)]

    def first_batch(self) -> IntArray:
        """Batch of each request's first range, -1 where it has none."""
        out = np.full(len(self), -1, dtype=np.int64)
        some = self._count > 0
        if some.any():
            out[some] = np.frombuffer(self._first, dtype=np.int64)[self._start[some]]
        return out

    def ranges(self, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """First batch, last batch and request of every range that is not empty, of `rows` in that order."""
        rows = rows[self._count[rows] > 0]
        if not len(rows):
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing
        counts = self._count[rows]
        at, owner = self._start[rows], rows
        if (counts > 1).any():
            skipped = np.cumsum(counts, dtype=np.int64) - counts
            at = np.repeat(at - skipped, counts) + np.arange(int(counts.sum()))
            owner = np.repeat(rows, counts)
        first = np.frombuffer(self._first, dtype=np.int64)[at]
        last = np.frombuffer(self._last, dtype=np.int64)[at]
        full = last >= first
        return (first, last, owner) if full.all() else (first[full], last[full], owner[full])
