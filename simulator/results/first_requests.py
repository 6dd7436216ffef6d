"""Latencies of the requests that come first to cold servers, apart from those of the others."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.results.latencies import Latencies
from simulator.results.statistics import BoolArray, FloatArray, Statistic

FIRST_REQUESTS = 100
"""Requests of a server that are taken as its first (assumed: in measured runs the last that waited was the 65th)."""
OF_FIRST = ("ttft_ms", "e2el_ms")


class FirstRequests:
    """Latencies of the first `many` requests, and of the others that arrived in the measured window."""

    def __init__(self, many: int, make: type[Statistic]) -> None:
        self._many = self._left = many
        self._first = {name: make(()) for name in OF_FIRST}
        self._others = {name: make(()) for name in OF_FIRST}

    def add(self, arrival_s: FloatArray, arrived: BoolArray, inside: BoolArray, lat: Latencies) -> None:
        """Take in a block of requests; blocks come in order of arrival."""
        first = np.zeros(len(arrived), dtype=bool)
        if self._left:
            came = np.flatnonzero(arrived)
            chosen = came[np.argsort(arrival_s[came], kind="stable")[: self._left]]
            first[chosen] = True
            self._left -= len(chosen)
        for mine, stats in ((first, self._first), (inside & ~first, self._others)):
            for name, stat in stats.items():
                values = getattr(lat, name)[mine]
                stat.add(values[~np.isnan(values)])

    def summary(self) -> dict[str, Any]:
        """How many they are at most, their latencies and those of the others [ms]."""
        found = ({name: stat.summary("ms") for name, stat in stats.items()} for stats in (self._first, self._others))
        first, others = found
        return {"requests": self._many - self._left, "metrics": first, "others": others}


__all__ = ["FIRST_REQUESTS", "FirstRequests"]
