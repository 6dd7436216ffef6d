"""Derive the interval widths from the experiments of `validate runs`, and check them by leaving groups out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from hardware_profiles.records import dataclass
from simulator.results.intervals import LEVEL, QUEUE_ELASTICITY, Evidence, Widths
from simulator.results.scales import FACTORS, Scale
from simulator.validation.evidence import Kind
from simulator.validation.scales import COMPARED_ENGINE, Sized, derive_scale

MIN_EXPERIMENTS = 10
"""Fewer have no order statistic of rank ceil(0.9 (n + 1)), or barely."""
MIN_MODELS = 3
"""A group whose experiments are of fewer models says little of another model."""
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


def named_of(column: str) -> tuple[str, str] | None:
    """The same, with throughput among the metrics."""
    return ("throughput", "mean") if column in RATES else split_name(column)


Cluster = tuple[str, str, str]
"""Source, model and device: measurements that err together."""


@dataclass(frozen=True)
class Value:
    """One measured value beside its prediction, the log error signed; `outcome` tells one that a suite holds twice."""

    cluster: Cluster
    evidence: Evidence
    metric: str
    statistic: str
    log_error: float
    queue_share: float
    outcome: tuple[Any, ...]


def values_of(
    experiments: Iterable[Mapping[str, Any]], known: Mapping[str, Kind], exclude: Callable[[str], bool] = lambda _: False
) -> list[Value]:
    """What counts of the `experiments` of `validate runs`: those that are known and not excluded, on measured kernels."""
    out = []
    for e in experiments:
        named = named_of(e["metric"])
        kind = None if exclude(e["id"]) else known.get(e["id"])
        if named is None or kind is None:
            continue
        evidence = behind(e, kind)
        if evidence.kernel_error:
            continue
        share = 0.0 if evidence.closed_loop else float(e.get("queue_share") or 0.0)
        outcome = (evidence.engine, kind.hardware, kind.workload, e["measured"])
        error = math.log(e["predicted"] / e["measured"])
        out.append(Value((kind.source, kind.model, kind.hardware), evidence, *named, error, share, outcome))
    return out


def behind(experiment: Mapping[str, Any], kind: Kind) -> Evidence:
    """What a prediction rested on."""
    rests_on = experiment.get("rests_on")
    return Evidence(**rests_on) if rests_on else kind.evidence


def seen(values: Iterable[Value]) -> set[str]:
    """Settings of which a closed loop was measured; runs whose launch is not known tell nothing."""
    return {v.evidence.setting for v in values if v.evidence.closed_loop and v.evidence.launch_known}


def derive(
    experiments: Iterable[Mapping[str, Any]],
    known: Mapping[str, Kind],
    exclude: Callable[[str], bool] = lambda _: False,
) -> Widths:
    """Half-widths by what they rest on.

    Experiments with one and the same outcome are one experiment that a suite holds more than once, and count once. Of TTFT and
    E2E under open load the part that queueing explains (`simulator.results.intervals.queue_widening`) is taken off first.

    Parameters
    ----------
    experiments : the `experiments` of `validate runs`.
    known : what stands behind each by id; others are left out.
    exclude : ids to leave out, for cross-validation.
    """
    once: dict[tuple[str, str, tuple[Any, ...]], Value] = {}
    for value in values_of(experiments, known, exclude):
        once[value.metric, value.statistic, value.outcome] = value
    values = list(once.values())
    return Widths(_open(values), _waiting(values))


def _open(values: Iterable[Value]) -> dict[str, dict[str, dict[str, float]]]:
    """Widths under open load, by group."""
    grouped: dict[tuple[str, str, str], list[Value]] = {}
    for value in values:
        if not value.evidence.closed_loop:
            grouped.setdefault((value.evidence.group(), value.metric, value.statistic), []).append(value)
    out: dict[str, dict[str, dict[str, float]]] = {}
    for (group, metric, statistic), found in sorted(grouped.items(), key=lambda item: _step_first(*item[0])):
        step = out.get(group, {}).get("tpot/mean", {}).get("log_half_width", 0.0)
        explained = QUEUE_ELASTICITY * step if metric in ("ttft", "e2e") else 0.0
        errors = [math.sqrt(max(0.0, v.log_error**2 - (explained * v.queue_share) ** 2)) for v in found]
        models, sources = ({v.cluster[place] for v in found} for place in (1, 0))
        width = conformal_half_width(errors)
        if len(found) >= MIN_EXPERIMENTS and len(models) >= MIN_MODELS and width is not None:
            entry = {"log_half_width": round(width, 5), "experiments": len(found), "models": len(models), "sources": len(sources)}
            out.setdefault(group, {})[f"{metric}/{statistic}"] = entry
    return out


def _waiting(values: Iterable[Value]) -> dict[str, Scale]:
    """Scales where clients wait, by metric."""
    sized: dict[str, list[Sized]] = {}
    for v in values:
        if v.evidence.closed_loop and v.statistic in ("mean", "p50"):
            levels = v.evidence.levels()
            cluster = (*v.cluster, v.evidence.engine, v.evidence.load())
            sized.setdefault(v.metric, []).append(Sized(cluster, tuple(levels[f] for f in FACTORS), v.log_error))
    known = {metric: found for metric, found in sorted(sized.items()) if metric != "e2e" and len(found) >= MIN_EXPERIMENTS}
    scales = {metric: derive_scale(found, LEVEL) for metric, found in known.items()}
    compared = {engine for scale in scales.values() for engine in scale.factors["engine"]}
    return {metric: _with_engines(scale, compared) for metric, scale in scales.items()}


def _with_engines(scale: Scale, compared: Iterable[str]) -> Scale:
    """The scale with the engines whose runs other metrics were `compared` with: none of them is another engine."""
    engines = dict.fromkeys(compared, COMPARED_ENGINE) | dict(scale.factors["engine"])
    return replace(scale, factors={**scale.factors, "engine": engines})


def _step_first(group: str, metric: str, statistic: str) -> tuple[Any, ...]:
    return group, (metric, statistic) != ("tpot", "mean"), metric, statistic


def write_intervals(
    widths: Widths, settings: Iterable[str], output: Path | None = None
) -> Path:
    """Write the shipped table of half-widths, and the settings of which closed loops were measured."""
    path = output or Path(__file__).parents[1] / "results" / "intervals.json"
    content = {
        "groups": widths.groups,
        "scales": {metric: scale.as_dict() for metric, scale in widths.scales.items()},
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
