"""Which steps gave each request its tokens: inclusive ranges of step numbers of a log, kept flat.

A request of an undisturbed run emits in one range; one that was preempted, or paused by others' prefills, in several, and one
that moved from one replica to another in the logs of both. Ranges are appended when a request leaves a rank, so that its own
objects can go; three flat columns and a start a row hold a million requests in a few tens of megabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

FEW_RANGES = 8
"""Fewer ranges are appended one by one."""


class Ranges(NamedTuple):
    """Ranges that are not empty, request by request in order of time: log, first and last step, and the request's row."""

    log: NDArray[np.int32]
    first: IntArray
    last: IntArray
    owner: IntArray

    def of_log(self, number: int) -> tuple[IntArray, IntArray]:
        """First and last steps of the ranges in one log."""
        if not len(self.log):
            return self.first, self.last
        mine = self.log == number
        return (self.first, self.last) if mine.all() else (self.first[mine], self.last[mine])


class Emissions:
    """Ranges of n requests."""

    def __init__(self, n: int) -> None:
        self._start = array("q", (-1,)) * n  # arrays: one number is read and set quicker than numpy's
        self._count = array("i", (0,)) * n
        self._log = array("i")
        self._first = array("q")
        self._last = array("q")

    def note(self, row: int, spans: list[list[int]], log: int) -> None:
        """Append ranges `[first, last]` of a request in a log, later than those it has; empty ones have `last < first`."""
        start, count = self._start[row], self._count[row]
        at = len(self._first)
        if count and start + count != at:  # others came between: bring those it has to the end
            for column in (self._log, self._first, self._last):
                column.extend(column[start : start + count])
        elif count:
            at = start
        self._start[row] = at
        self._count[row] = count + len(spans)
        if len(spans) < FEW_RANGES:
            for first, last in spans:
                self._log.append(log)
                self._first.append(first)
                self._last.append(last)
            return
        self._log.extend(array("i", (log,)) * len(spans))
        self._first.fromlist([span[0] for span in spans])  # quicker than to unpack them
        self._last.fromlist([span[1] for span in spans])

    @classmethod
    def joined(cls, parts: Sequence[Emissions]) -> Emissions:
        """Those of requests one part after the other."""
        whole = cls(0)
        for part in parts:
            at = len(whole._first)
            whole._start.extend(array("q", (start + at for start in part._start)))
            for column in ("_count", "_log", "_first", "_last"):
                getattr(whole, column).extend(getattr(part, column))
        return whole

    def __len__(self) -> int:
        return len(self._start)

    def of(self, row: int) -> list[tuple[int, int, int]]:
        """Ranges of a request: log, first and last step."""
        start = self._start[row]
        return [(self._log[i], self._first[i], self._last[i]) for i in range(start, start + self._count[row])]

    def firsts(self) -> tuple[NDArray[np.int32], IntArray]:
        """Log and step of each request's first token, -1 where it has none."""
        return self._ends(self._first, last=False)

    def lasts(self) -> tuple[NDArray[np.int32], IntArray]:
        """Log and step of each request's last token, -1 where it has none."""
        return self._ends(self._last, last=True)

    def _ends(self, steps: array[int], *, last: bool) -> tuple[NDArray[np.int32], IntArray]:
        log = np.full(len(self), -1, dtype=np.int32)
        step = np.full(len(self), -1, dtype=np.int64)
        counts = np.frombuffer(self._count, dtype=np.int32)
        some = counts > 0
        if some.any():
            at = np.frombuffer(self._start, dtype=np.int64)[some] + (counts[some] - 1 if last else 0)
            log[some] = np.frombuffer(self._log, dtype=np.int32)[at]
            step[some] = np.frombuffer(steps, dtype=np.int64)[at]
        return log, step

    def ranges(self, rows: IntArray) -> Ranges:
        """Ranges of `rows`, in that order."""
        counted = np.frombuffer(self._count, dtype=np.int32)
        rows = rows[counted[rows] > 0]
        if not len(rows):
            nothing = np.zeros(0, dtype=np.int64)
            return Ranges(np.zeros(0, dtype=np.int32), nothing, nothing, nothing)
        counts = counted[rows]
        at, owner = np.frombuffer(self._start, dtype=np.int64)[rows], rows
        if (counts > 1).any():
            skipped = np.cumsum(counts, dtype=np.int64) - counts
            at = np.repeat(at - skipped, counts) + np.arange(int(counts.sum()))
            owner = np.repeat(rows, counts)
        log = np.frombuffer(self._log, dtype=np.int32)[at]
        first = np.frombuffer(self._first, dtype=np.int64)[at]
        last = np.frombuffer(self._last, dtype=np.int64)[at]
        full = last >= first
        if full.all():
            return Ranges(log, first, last, owner)
        return Ranges(log[full], first[full], last[full], owner[full])
