"""Derive the interval widths from the experiments of `validate runs`, and check them by leaving groups out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from simulator.intervals import LEVEL, Evidence, groups_of

MIN_EXPERIMENTS = 8
METRIC_OF = {"ttft": "ttft", "e2e": "e2e", "tpot": "tpot"}


def conformal_half_width(log_errors: Iterable[float], level: float = LEVEL) -> float | None:
    """Order statistic of rank ceil(level * (n + 1)) of the absolute log errors; None if n is too small for it.

    >>> conformal_half_width([0.01 * i for i in range(1, 20)])
    0.18
    """
    ordered = sorted(abs(e) for e in log_errors)
    rank = math.ceil(level * (len(ordered) + 1) - 1e-9)
    return ordered[rank - 1] if ordered and rank <= len(ordered) else None


def split_name(column: str) -> tuple[str, str] | None:
    """Return (metric, statistic) of a suite's column, such as ttft_p99_ms."""
    parts = column.removesuffix("_ms").split("_")
    if len(parts) == 2 and parts[0] in METRIC_OF:
        return METRIC_OF[parts[0]], parts[1]
    return None


def derive(
    experiments: list[dict[str, Any]],
    evidence_of: Callable[[str], Evidence | None],
    exclude: Callable[[str], bool] = lambda _: False,
) -> dict[str, dict[str, dict[str, float]]]:
    """Half-widths by evidence group (`simulator.intervals.Groups`).

    Parameters
    ----------
    experiments : the `experiments` of `validate runs`.
    evidence_of : what stands behind the prediction of an experiment, None to leave it out.
    exclude : ids to leave out, for cross-validation.
    """
    errors: dict[tuple[str, str], list[float]] = {}
    for e in experiments:
        named = split_name(e["metric"])
        evidence = None if exclude(e["id"]) else evidence_of(e["id"])
        if named is None or evidence is None:
            continue
        log_error = math.log(e["predicted"] / e["measured"])
        name = f"{named[0]}/{named[1]}"
        for group in groups_of(evidence):
            errors.setdefault((group, name), []).append(log_error)
    out: dict[str, dict[str, dict[str, float]]] = {}
    for (group, name), values in sorted(errors.items()):
        width = conformal_half_width(values)
        if width is not None and len(values) >= MIN_EXPERIMENTS:
            out.setdefault(group, {})[name] = {"log_half_width": round(width, 5), "n": len(values)}
    return out


def write_intervals(groups: dict[str, dict[str, dict[str, float]]], output: Path | None = None) -> Path:
    """Write the shipped table of half-widths."""
    path = output or Path(__file__).parents[1] / "intervals.json"
    content = {
        "groups": groups,
        "level": LEVEL,
        "kind": "fitted",
        "unit": "natural log of predicted / measured",
        "source": "errors of `capacity-plan validate runs` on whole, unsaturated, trusted runs; see docs/fidelity.md",
    }
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path
