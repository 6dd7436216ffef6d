"""How recordings count time: from any start, in seconds, or since 1970 in seconds, ms, us or ns."""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import distinct
from hardware_profiles.records import dataclass
from simulator.workload.columns import FloatArray

ERA_S = (1e9, 4.2e9)
"""Seconds since 1970 of 2001 and 2103: stamps between them, in any unit, are calendar times (assumed)."""
UNITS = {1.0: "seconds", 1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds"}
"""Stamps a second, of calendar times."""
MOST_SPAN_S = 1e12
"""Longest recording [s], 31,700 years: there a clock of 64 bits still tells 0.1 ms from the next (assumed bound)."""
LONG_SPAN_S = 1e6
FEW_REQUESTS = 100_000
"""A trace of fewer requests over more seconds (11.6 days) is suspected of other units (assumed)."""
WILD_GAP_S = 86400.0
WILD_GAP_SHARE = 0.9
"""One gap of more than a day that is most of the recording is suspected to be a wild stamp (assumed)."""


@dataclass(frozen=True)
class Clock:
    """The stamp of the first request, and stamps a second."""

    first_stamp: float
    scale: float

    def seconds(self, stamps: FloatArray) -> FloatArray:
        """Seconds since the first request."""
        return (stamps - self.first_stamp) / self.scale

    def said(self, span_s: float) -> list[str]:
        """What a reader should know of a recording over `span_s`."""
        if _units(np.array([self.first_stamp]))[0]:
            unit = "" if self.scale == 1 else f" in {UNITS[self.scale]}"
            return [f"the times count from 1970{unit}; they were shifted to start at zero"]
        if abs(self.first_stamp) > max(span_s, 60.0):
            return [f"the first request stands at {self.first_stamp:,.6g} s; time starts there"]
        return []


def clock_of(stamps: FloatArray) -> Clock | None:
    """The clock of finite stamps; None if they are calendar times of several units."""
    units = distinct(_units(stamps))
    if not units[0]:
        return Clock(float(stamps.min()), 1.0)
    return Clock(float(stamps.min()), float(units[0])) if len(units) == 1 else None


def unified(stamps: FloatArray) -> FloatArray:
    """Calendar times of several units in seconds."""
    return stamps / np.maximum(_units(stamps), 1.0)


def widest_gap(arrival_s: FloatArray) -> tuple[float, int]:
    """The longest time without an arrival [s] in sorted arrivals, and the request after it; 0 of less than two."""
    gaps = np.diff(arrival_s)
    return (float(gaps.max()), int(gaps.argmax()) + 1) if len(gaps) else (0.0, 0)


def suspicions(requests: int, span_s: float, gap_s: float, where: str) -> list[str]:
    """What looks wrong in the times of so many requests over `span_s`, none arriving for `gap_s` before the one at `where`."""
    if requests > 2 and gap_s > max(WILD_GAP_S, WILD_GAP_SHARE * span_s):
        return [f"{where}: no request arrives for {gap_s:.3g} s ({gap_s / 86400:.3g} days) before this one: a wild time?"]
    if span_s > LONG_SPAN_S and requests < FEW_REQUESTS:
        return [
            f"{requests} requests over {span_s:.3g} s ({span_s / 86400:.3g} days): "
            "are the times in milliseconds? rate_scale: 1000 would correct it"
        ]
    return []


def _units(stamps: FloatArray) -> FloatArray:
    """Stamps a second of each calendar time, 0 for what is none."""
    units = np.zeros(len(stamps))
    for unit in UNITS:
        units[(stamps >= ERA_S[0] * unit) & (stamps < ERA_S[1] * unit)] = unit
    return units
