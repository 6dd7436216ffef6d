"""Measured servers that differ from the predicted ones by one factor at every load."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class OneFactor:
    """Values of a metric that one source measured of one model and server, all as far from the prediction whatever the load.

    factor : predicted over measured, the median; low, high : the least and the largest. ids : of the cases.
    """

    source: str
    engine: str
    gpu: str
    family: str
    metric: str
    factor: float
    low: float
    high: float
    ids: tuple[str, ...]


LEAST_LOADS, LEAST_SPAN, LEAST_LOG_FACTOR, MOST_SPREAD = 5, 4.0, 0.1, 0.5
"""Values, times between the least and the largest measured, and log factor from which one is told; how far a value may be from
it, as a share of its logarithm (assumed)."""
BY_LOAD = (
    "tpot_mean_ms",
    *("output_tok_s", "total_tok_s"),  # of reports
    *("itl_mean_ms", "output_throughput_tok_s", "total_throughput_tok_s"),  # of suites
)
"""Metrics that a server slower by a factor shows at every load; times to the first token hold queues."""


def one_factors(entries: Iterable[Mapping[str, Any]]) -> list[OneFactor]:
    """Sources that differ by one factor at every load: another host, clock, power limit or release, or a part of every step.

    Such a server is not the one that was described, or the model lacks something that every step has; its values are no evidence
    of the spread of others.
    """
    groups: dict[tuple[str, str, str, str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry["abs_pct_error"] is not None and entry["metric"] in BY_LOAD and entry["predicted"] > 0.0:
            group = entry["group"]
            name = (group["source"], group["engine"], group["gpu"], group["family"], entry["metric"])
            groups.setdefault(name, []).append(entry)
    out = []
    for name, found in sorted(groups.items()):
        ratios = np.array([entry["predicted"] / entry["reported"] for entry in found])
        measured = [entry["reported"] for entry in found]
        logs = np.log(ratios)
        middle = float(np.median(logs))
        even = bool(np.abs(logs - middle).max() < MOST_SPREAD * abs(middle))
        if len(found) >= LEAST_LOADS and max(measured) >= LEAST_SPAN * min(measured) and abs(middle) > LEAST_LOG_FACTOR and even:
            ids = tuple(str(entry["id"]) for entry in found)
            out.append(OneFactor(*name, math.exp(middle), float(ratios.min()), float(ratios.max()), ids))
    return out


def without(entries: Iterable[Mapping[str, Any]], found: Mapping[str, Any]) -> float | None:
    """Median absolute error [%] of a metric without a server that differs (`OneFactor` as a mapping); None if nothing is left."""
    ids = set(found["ids"])
    rest = [e["abs_pct_error"] for e in entries if e["metric"] == found["metric"] and e["id"] not in ids]
    known = [error for error in rest if error is not None]
    return float(np.median(known)) if known else None
