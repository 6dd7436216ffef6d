"""Rows of a measured suite that cannot be true: no id, an id with two measurements, values that exclude each other.

Such a row is left out of the comparison and named with the reason; the others are judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

Row = dict[str, Any]

LATENCIES = ("ttft", "tpot", "itl", "e2e")
PERCENTILES = ("p50", "p90", "p95", "p99")
RATES = ("request_throughput_rps", "output_throughput_tok_s", "total_throughput_tok_s")
COUNTS = (
    "num_requests",
    "concurrency",
    "prompt_tokens_mean",
    "output_tokens_mean",
    "request_rate_rps",
    "duration_s",
)
IDENTITY = ("engine", "model", "hardware")
SLACK = 1.005
"""Values this close are equal: suites round to a few digits (assumed)."""


def sift(rows: list[Row]) -> tuple[list[Row], list[dict[str, str]]]:
    """Return the rows that can be judged, in order, and id and reason of the others."""
    kept: list[Row] = []
    skipped: list[dict[str, str]] = []
    by_id: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        name = str(row.get("id", "")).strip()
        if name:
            by_id.setdefault(name, []).append({**row, "id": name})
        else:
            skipped.append({"id": f"row {number + 1}", "reason": "the row has no id"})
    for name, same in by_id.items():
        first = same[0]
        differing = sorted(
            {key for row in same[1:] for key in {*first, *row} if row.get(key) != first.get(key)}
        )
        if differing:
            reason = f"{len(same)} rows of this id contradict each other in {', '.join(differing[:5])}"
            skipped.extend({"id": name, "reason": reason} for _ in same)
            continue
        skipped.extend({"id": name, "reason": "the row stands twice; counted once"} for _ in same[1:])
        found = fault(first)
        if found:
            skipped.append({"id": name, "reason": found})
        else:
            kept.append(first)
    return kept, skipped


def fault(row: Row) -> str | None:
    """Return why a row cannot be true, or None."""
    for name in IDENTITY:
        if not str(row.get(name, "")).strip():
            return f"the row names no {name}"
    return next(_faults(row), None)


def _faults(row: Row) -> Iterator[str]:
    metrics = [f"{name}_{stat}_ms" for name in LATENCIES for stat in ("mean", *PERCENTILES)]
    numbers: dict[str, float] = {}
    for name in (*metrics, "itl_mean_corrected_ms", *RATES, *COUNTS):
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{name} is {str(value)[:30]!r}, not a number"
        elif not math.isfinite(value):
            yield f"{name} is not finite"
        elif value < 0:
            yield f"{name} is {value:g}: negative"
        else:
            numbers[name] = float(value)
    for name in LATENCIES:
        known = [(p, numbers[f"{name}_{p}_ms"]) for p in PERCENTILES if f"{name}_{p}_ms" in numbers]
        for (low, below), (high, above) in pairwise(known):
            if below > above * SLACK:
                yield f"{name}_{low}_ms {below:g} is above {name}_{high}_ms {above:g}"
    for stat in ("mean", *PERCENTILES):
        first, whole = numbers.get(f"ttft_{stat}_ms"), numbers.get(f"e2e_{stat}_ms")
        if first is not None and whole is not None and whole * SLACK < first:
            yield f"e2e_{stat}_ms {whole:g} is below ttft_{stat}_ms {first:g}"
