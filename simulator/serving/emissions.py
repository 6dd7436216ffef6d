"""Which steps gave each request its tokens: inclusive ranges of step numbers of a log, kept flat.

A request of an undisturbed run emits in one range; one that was preempted, or paused by others' prefills, in several, and one
that moved from one replica to another in the logs of both. Ranges are appended when a request leaves a rank, so that its own
objects can go; three flat columns and a start a row hold a million requests in a few tens of megabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from struct import pack
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
MANY = 64
"""Numbers from so many on are packed at once: quicker than one by one."""


def logs_of(named: NDArray[np.int32]) -> list[int]:
    """The logs that are named, in order, each once; -1 names none."""
    found: list[int] = np.flatnonzero(np.bincount(named + 1)[1:]).tolist()
    return found


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

    def logs(self) -> list[int]:
        """The logs that they are in."""
        return logs_of(self.log)


class Emissions:
    """Ranges of n requests."""

    def __init__(self, n: int) -> None:
        self._start = array("q", (-1,)) * n  # arrays: one number is read and set quicker than numpy's
        self._count = array("i", (0,)) * n
        self._log = array("i")
        self._steps = array("q")  # first and last in turn

    def note(self, row: int, steps: list[int], log: int) -> None:
        """Append ranges of a request in a log, later than those it has: first and last step in turn; empty ones end before."""
        start, count, more = self._start[row], self._count[row], len(steps) // 2
        at = len(self._log)
        if count and start + count != at:  # others came between: bring those it has to the end
            self._log.extend(self._log[start : start + count])
            self._steps.extend(self._steps[2 * start : 2 * (start + count)])
        elif count:
            at = start
        self._start[row] = at
        self._count[row] = count + more
        if more == 1:
            self._log.append(log)
        else:
            self._log.extend(array("i", (log,)) * more)
        if len(steps) > MANY:
            self._steps.frombytes(pack(f"{len(steps)}q", *steps))
        else:
            self._steps.fromlist(steps)

    @classmethod
    def joined(cls, parts: Sequence[Emissions]) -> Emissions:
        """Those of requests one part after the other."""
        whole = cls(0)
        for part in parts:
            at = len(whole._log)
            whole._start.extend(array("q", (start + at for start in part._start)))
            for column in ("_count", "_log", "_steps"):
                getattr(whole, column).extend(getattr(part, column))
        return whole

    def __len__(self) -> int:
        return len(self._start)

    def of(self, row: int) -> list[tuple[int, int, int]]:
        """Ranges of a request: log, first and last step."""
        start, stop = self._start[row], self._start[row] + self._count[row]
        steps = self._steps[2 * start : 2 * stop]
        return list(zip(self._log[start:stop], steps[::2], steps[1::2], strict=True))

    def firsts(self) -> tuple[NDArray[np.int32], IntArray]:
        """Log and step of each request's first token, -1 where it has none."""
        return self._ends(last=False)

    def lasts(self) -> tuple[NDArray[np.int32], IntArray]:
        """Log and step of each request's last token, -1 where it has none."""
        return self._ends(last=True)

    def _ends(self, *, last: bool) -> tuple[NDArray[np.int32], IntArray]:
        log = np.full(len(self), -1, dtype=np.int32)
        step = np.full(len(self), -1, dtype=np.int64)
        counts = np.frombuffer(self._count, dtype=np.int32)
        some = counts > 0
        if some.any():
            at = np.frombuffer(self._start, dtype=np.int64)[some] + (counts[some] - 1 if last else 0)
            log[some] = np.frombuffer(self._log, dtype=np.int32)[at]
            step[some] = np.frombuffer(self._steps, dtype=np.int64)[2 * at + last]
        return log, step

    def in_parts(self, rows: IntArray, most: int) -> Iterator[Ranges]:
        """`ranges` of `rows` in turn, about `most` at once: what is made on the way takes little memory."""
        up_to = np.cumsum(np.frombuffer(self._count, dtype=np.int32)[rows], dtype=np.int64)
        total = int(up_to[-1]) if len(up_to) else 0
        edges = [0, *np.searchsorted(up_to, np.arange(most, total, most)).tolist(), len(rows)]
        for start, stop in pairwise(edges):
            if start < stop:
                yield self.ranges(rows[start:stop])

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
        log = np.frombuffer(self._log, dtype=np.int32).take(at)
        first, last = np.frombuffer(self._steps, dtype=np.int64).reshape(-1, 2).take(at, axis=0).T
        full = last >= first
        if full.all():
            return Ranges(log, first, last, owner)
        return Ranges(log[full], first[full], last[full], owner[full])
