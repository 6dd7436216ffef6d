"""Derive the interval widths from the experiments of `validate runs`, and check them by leaving groups out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from simulator.results.intervals import LEVEL, QUEUE_ELASTICITY, Evidence
from simulator.validation.evidence import Kind

MIN_EXPERIMENTS = 10
"""Fewer have no order statistic of rank ceil(0.9 (n + 1)), or barely."""
MIN_MODELS = 3
"""A group whose experiments are of fewer models says little of another model: all engines together stand in."""
METRIC_OF = {"ttft": "ttft", "e2e": "e2e", "tpot": "tpot"}
RATES = ("request_throughput_rps", "output_throughput_tok_s")


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
    experiments: Iterable[Mapping[str, Any]],
    known: Mapping[str, Kind],
    exclude: Callable[[str], bool] = lambda _: False,
) -> dict[str, dict[str, dict[str, float]]]:
    """Half-widths by group of evidence (`simulator.results.intervals.Groups`).

    Experiments with one and the same outcome are one experiment that a suite holds more than once, and count once. Of TTFT and
    E2E under open load the part that queueing explains (`simulator.results.intervals.queue_widening`) is taken off first.

    Parameters
    ----------
    experiments : the `experiments` of `validate runs`.
    known : what stands behind each by id; others are left out.
    exclude : ids to leave out, for cross-validation.
    """
    errors: dict[tuple[str, str, str], dict[tuple[Any, ...], tuple[float, float, str]]] = {}
    for e in experiments:
        named = ("throughput", "mean") if e["metric"] in RATES else split_name(e["metric"])
        kind = None if exclude(e["id"]) else known.get(e["id"])
        if named is None or kind is None:
            continue
        error = abs(math.log(e["predicted"] / e["measured"]))
        share = 0.0 if kind.evidence.closed_loop else float(e.get("queue_share") or 0.0)
        outcome = (kind.evidence.engine, kind.hardware, kind.workload, e["measured"])
        for group in _groups_of(kind.evidence):
            errors.setdefault((group, *named), {})[outcome] = (error, share, kind.model)
    out: dict[str, dict[str, dict[str, float]]] = {}
    for (group, metric, statistic), by_outcome in sorted(
        errors.items(), key=lambda item: _step_first(*item[0])
    ):
        values = list(by_outcome.values())
        step = out.get(group, {}).get("tpot/mean", {}).get("log_half_width", 0.0)
        explained = QUEUE_ELASTICITY * step if metric in ("ttft", "e2e") else 0.0
        width = conformal_half_width(
            math.sqrt(max(0.0, e**2 - (explained * share) ** 2)) for e, share, _ in values
        )
        models = len({model for *_, model in values})
        if width is not None and len(values) >= MIN_EXPERIMENTS and models >= MIN_MODELS:
            entry = {"log_half_width": round(width, 5), "experiments": len(values), "models": models}
            out.setdefault(group, {})[f"{metric}/{statistic}"] = entry
    return out


def _groups_of(evidence: Evidence) -> list[str]:
    """The groups to which a measured run counts: its own, and of a closed loop that of all engines."""
    return [evidence.group(), *(["any/kernels/closed loop"] if evidence.closed_loop else [])]


def _step_first(group: str, metric: str, statistic: str) -> tuple[Any, ...]:
    return group, (metric, statistic) != ("tpot", "mean"), metric, statistic


def write_intervals(groups: dict[str, dict[str, dict[str, float]]], output: Path | None = None) -> Path:
    """Write the shipped table of half-widths."""
    path = output or Path(__file__).parents[1] / "results" / "intervals.json"
    content = {
        "groups": groups,
        "level": LEVEL,
        "kind": "fitted",
        "date": date.today().isoformat(),
        "unit": "natural log of predicted / measured",
        "source": "errors of `capacity-plan validate runs` on whole, unsaturated, trusted runs; see docs/fidelity.md",
    }
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path
