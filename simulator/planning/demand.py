"""Demand over the week, and the replicas that carry it.

A profile file gives relative demand by hour, and by weekday where days differ:

    hours: [0.3, 0.2, ... 24 numbers]          YAML
    weekdays: {sat: 0.6, sun: 0.5}             days not named count 1

or CSV with the columns ``hour, demand`` (24 rows) or ``weekday, hour, demand`` (168 rows, any order).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError, nearest
from hardware_profiles.files import read_text
from hardware_profiles.records import dataclass

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
HOURS_PER_WEEK = 168
LEAST, MOST = 1e-12, 1e12
"""Bounds of relative demand (assumed)."""


@dataclass(frozen=True)
class Profile:
    """Relative demand of the 168 hours of a week from Monday 0 h on, its mean 1."""

    name: str
    hourly: tuple[float, ...]

    @property
    def peak(self) -> float:
        """The busiest hour over the mean one."""
        return max(self.hourly)


def read_profile(path: Path) -> Profile:
    """Read a profile from YAML or CSV; InputError names what is wrong."""
    text = read_text(path)
    hourly = _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_yaml(text, path)
    if any(not (v == 0 or LEAST <= v <= MOST) for v in hourly) or not any(hourly):
        raise InputError(
            f"demand must be zero or numbers from {LEAST:g} to {MOST:g}, not all zero",
            where=str(path),
            mend="correct the values",
        )
    mean = sum(hourly) / len(hourly)
    return Profile(path.stem, tuple(v / mean for v in hourly))


def _number(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{value!r} is not a number", where=where, mend="give relative demand") from None


def _day(name: Any, where: str) -> int:
    day = str(name).strip().lower()[:3]
    if day not in DAYS:
        near = nearest(str(name), list(DAYS))
        raise InputError(
            f"'{name}' is no weekday",
            where=where,
            mend=f"did you mean '{near}'?" if near else f"use {', '.join(DAYS)}",
        )
    return DAYS.index(day)


def _from_yaml(text: str, path: Path) -> list[float]:
    from simulator.config.located import read_yaml

    problems: list[InputError] = []
    data = read_yaml(text, str(path), problems).plain()
    if problems:
        raise problems[0]
    hours = data.get("hours") if isinstance(data, Mapping) else None
    if not isinstance(hours, Sequence) or isinstance(hours, str) or len(hours) != 24:
        raise InputError(
            "a demand profile needs `hours:`, a list of 24 numbers",
            where=str(path),
            mend="write hours: [n0, n1, ... n23], and weekdays: {sat: 0.6} where days differ",
        )
    unknown = [key for key in data if key not in ("hours", "weekdays")]
    if unknown:
        raise InputError(
            f"unknown key `{unknown[0]}`", where=str(path), mend="the keys are hours and weekdays"
        )
    days = [1.0] * 7
    weekdays = data.get("weekdays") or {}
    if not isinstance(weekdays, Mapping):
        raise InputError(
            "`weekdays` is a group of days", where=str(path), mend="write weekdays: {sat: 0.6, sun: 0.5}"
        )
    for name, value in weekdays.items():
        days[_day(name, str(path))] = _number(value, str(path))
    daily = [_number(value, str(path)) for value in hours]
    return [day * hour for day in days for hour in daily]


def _from_csv(text: str, path: Path) -> list[float]:
    rows = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
    names = set(rows[0]) if rows else set()
    if not {"hour", "demand"} <= names:
        raise InputError(
            "a demand profile needs the columns hour and demand (and weekday, if days differ)",
            where=str(path),
            mend="begin the file with: hour,demand",
        )
    found: dict[tuple[int, int], float] = {}
    for line, row in enumerate(rows, start=2):
        where = f"{path}:{line}"
        hour = _number(row["hour"], where)
        if hour not in range(24):
            raise InputError(f"{row['hour']} is no hour", where=where, mend="hours run from 0 to 23")
        days = [_day(row["weekday"], where)] if "weekday" in names else list(range(7))
        for day in days:
            if (day, int(hour)) in found:
                raise InputError(f"hour {hour:g} stands twice", where=where, mend="keep one of the two")
            found[day, int(hour)] = _number(row["demand"], where)
    missing = HOURS_PER_WEEK - len(found)
    if missing:
        raise InputError(f"{missing} hours of the week are missing", where=str(path), mend="give every hour")
    return [found[day, hour] for day in range(7) for hour in range(24)]


def replicas_for(rate_per_s: float, headroom: float, replica_per_s: float) -> int:
    """Replicas that carry `rate_per_s` with `headroom`, at least one: ceil(rate * (1 + headroom) / replica's rate)."""
    return max(1, math.ceil(rate_per_s * (1 + headroom) / replica_per_s - 1e-9))
