"""Derive the interval widths from the experiments of `validate runs`, and check them by leaving groups out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from simulator.results.intervals import LEVEL, QUEUE_ELASTICITY, Evidence
from simulator.validation.evidence import Kind

MIN_EXPERIMENTS = 10
"""Fewer have no order statistic of rank ceil(0.9 (n + 1)), or barely."""
MIN_MODELS = 3
"""A group whose experiments are of fewer models says little of another model: all engines together stand in."""
MIN_SOURCES = 5
"""A group of closed loops of fewer sources likewise."""
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


Cluster = tuple[str, str, str]
"""Source, model and device: measurements that err together."""


@dataclass(frozen=True)
class Value:
    """One measured value beside its prediction; `outcome` tells one that a suite holds twice."""

    cluster: Cluster
    evidence: Evidence
    setting: str
    metric: str
    statistic: str
    log_error: float
    queue_share: float
    outcome: tuple[Any, ...]


FULL_SOURCE = 5
"""Values of a source that weighs in full; one of fewer weighs by their number (assumed)."""


def clustered_half_width(errors: Mapping[Cluster, list[float]], level: float = LEVEL) -> float:
    """The width that the share `level` of the sources stays below, each by the width that holds the same share of its own values.

    In a source its clusters weigh the same, and all sources do (`FULL_SOURCE`). So it is a new source, with a host and models of
    its own, most of whose values are inside in the stated share of cases, not one more run of the largest; a value far off counts
    as one of its source. Nothing is added for the small number of sources.
    """
    sources: dict[str, list[list[float]]] = {}
    for (source, _, _), found in errors.items():
        sources.setdefault(source, []).append(found)
    return _weighted(
        (
            (
                _weighted(((abs(e), 1 / len(found)) for found in clusters for e in found), level),
                float(min(FULL_SOURCE, sum(map(len, clusters)))),
            )
            for clusters in sources.values()
        ),
        level,
    )


def _weighted(values: Iterable[tuple[float, float]], level: float) -> float:
    """The least of the values that holds the share `level` of the weights."""
    ordered = sorted(values)
    wanted, inside = level * sum(weight for _, weight in ordered), 0.0
    for value, weight in ordered:
        inside += weight
        if inside >= wanted - 1e-9:
            return value
    return ordered[-1][0]


def values_of(
    experiments: Iterable[Mapping[str, Any]], known: Mapping[str, Kind], exclude: Callable[[str], bool] = lambda _: False
) -> list[Value]:
    """What counts of the `experiments` of `validate runs`: those that are known and not excluded, on measured kernels."""
    out = []
    for e in experiments:
        named = ("throughput", "mean") if e["metric"] in RATES else split_name(e["metric"])
        kind = None if exclude(e["id"]) else known.get(e["id"])
        if named is None or kind is None:
            continue
        evidence, setting = behind(e, kind)
        if evidence.kernel_error:
            continue
        share = 0.0 if evidence.closed_loop else float(e.get("queue_share") or 0.0)
        outcome = (evidence.engine, kind.hardware, kind.workload, e["measured"])
        error = abs(math.log(e["predicted"] / e["measured"]))
        out.append(Value((kind.source, kind.model, kind.hardware), evidence, setting, *named, error, share, outcome))
    return out


def behind(experiment: Mapping[str, Any], kind: Kind) -> tuple[Evidence, str]:
    """What a prediction rested on, and its setting."""
    rests_on = dict(experiment.get("rests_on") or {})
    setting = str(rests_on.pop("setting", kind.setting))
    return (Evidence(**rests_on) if rests_on else kind.evidence), setting


def seen(values: Iterable[Value]) -> set[str]:
    """Settings of which a closed loop was measured; runs whose launch is not known tell nothing."""
    return {v.setting for v in values if v.evidence.closed_loop and v.evidence.launch_known}


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
    grouped: dict[tuple[str, str, str], dict[tuple[Any, ...], Value]] = {}
    for value in values_of(experiments, known, exclude):
        for group in value.evidence.groups()[:2]:
            grouped.setdefault((group, value.metric, value.statistic), {})[value.outcome] = value
    out: dict[str, dict[str, dict[str, float]]] = {}
    for (group, metric, statistic), by_outcome in sorted(grouped.items(), key=lambda item: _step_first(*item[0])):
        values = list(by_outcome.values())
        step = out.get(group, {}).get("tpot/mean", {}).get("log_half_width", 0.0)
        explained = QUEUE_ELASTICITY * step if metric in ("ttft", "e2e") else 0.0
        clusters: dict[Cluster, list[float]] = {}
        for v in values:
            left = math.sqrt(max(0.0, v.log_error**2 - (explained * v.queue_share) ** 2))
            clusters.setdefault(v.cluster, []).append(left)
        models = len({model for _, model, _ in clusters})
        few = models < MIN_MODELS and not group.endswith("/disaggregated")  # of which only two models were measured
        if len(values) < MIN_EXPERIMENTS or few:
            continue
        together = conformal_half_width(e for errors in clusters.values() for e in errors)
        sources = len({source for source, _, _ in clusters})
        if not group.endswith("open loop") and sources < MIN_SOURCES and not group.startswith("any/"):
            continue
        width = together if group.endswith("open loop") else clustered_half_width(clusters)
        if width is not None:
            entry = {"log_half_width": round(width, 5), "experiments": len(values), "models": models, "sources": sources}
            out.setdefault(group, {})[f"{metric}/{statistic}"] = entry
    return out


def _step_first(group: str, metric: str, statistic: str) -> tuple[Any, ...]:
    return group, (metric, statistic) != ("tpot", "mean"), metric, statistic


def write_intervals(
    groups: dict[str, dict[str, dict[str, float]]], settings: Iterable[str], output: Path | None = None
) -> Path:
    """Write the shipped table of half-widths, and the settings of which closed loops were measured."""
    path = output or Path(__file__).parents[1] / "results" / "intervals.json"
    content = {
        "groups": groups,
        "seen": sorted(settings),
        "level": LEVEL,
        "kind": "fitted",
        "date": date.today().isoformat(),
        "unit": "natural log of predicted / measured",
        "source": "errors of `capacity-plan validate runs` on whole, unsaturated, trusted runs and of `validate reports`; see "
        "docs/fidelity.md",
    }
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path
