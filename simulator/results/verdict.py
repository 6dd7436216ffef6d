"""The SLO: which bounds it sets, which requests are good, and whether a run keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simulator.results.latencies import Latencies
from simulator.results.statistics import BoolArray, Share, Statistic
from simulator.workload.columns import RequestClass

BEYOND = 10
"""Values beyond a percentile with which it is known well enough (assumed)."""
MOST_PERCENT = 99.0
"""Above it an attainment asks for no more requests (assumed: no run shows that all are good)."""


def slo_dict(slo: Any) -> dict[str, Any]:
    """Return the bounds of an SLO model as {metric: {percentile: ms}}, with `attainment` if given."""
    if slo is None:
        return {}
    out: dict[str, Any] = dict(slo.bounds_ms())
    if slo.attainment is not None:
        out["attainment"] = slo.attainment
    return out


def class_slo(kind: RequestClass, shared: dict[str, Any]) -> dict[str, Any]:
    """The SLO of a class: its own, else the scenario's."""
    slo: dict[str, Any] = dict(kind.slo) if kind.slo else dict(shared)
    if kind.attainment is not None:
        slo["attainment"] = kind.attainment
    return slo


def percent_of(name: str) -> float:
    """The percentile that a key names.

    >>> percent_of("p99_9")
    99.9
    """
    return float(name[1:].replace("_", "."))


def slo_bounds(slo: dict[str, Any]) -> dict[str, float]:
    """Bound of each latency that a single request must keep: the value of the highest percentile named."""
    bounds: dict[str, float] = {}
    for metric, named in slo.items():
        if metric == "attainment" or not named:
            continue
        highest = max(named, key=percent_of)
        bounds[metric] = float(named[highest])
    return bounds


def good_requests(lat: Latencies, slo: dict[str, Any]) -> BoolArray:
    """Requests that keep the bounds of TTFT, TPOT and E2E; TPOT of one-token outputs counts as kept."""
    good = ~np.isnan(lat.e2el_ms)
    for metric, bound in slo_bounds(slo).items():
        if metric == "itl_ms":
            continue
        values = getattr(lat, metric)
        if metric == "tpot_ms":
            values = np.where(np.isnan(values), 0.0, values)
        with np.errstate(invalid="ignore"):
            good &= values <= bound
    return good


def verdict(stats: Mapping[str, Statistic], late: Share, slo: dict[str, Any]) -> dict[str, Any]:
    """Judge the SLO: every named percentile of `stats`, lost requests counted as infinite, and the attainment.

    `late` are the requests that are not good. A check is `close` if the sampling error of the
    run leaves open on which side of its bound the percentile lies, or if it holds and the run is too short for it (`needed`); the
    verdict is close if checks that are close could turn it. `with_model_error` adds the error of the model. Without any request
    nothing holds, and `requests` is 0. A latency that no request has (TPOT of single tokens) is kept, and close.
    """
    checks: list[dict[str, Any]] = []
    for metric, name, bound in named_bounds(slo):
        percent = percent_of(name)
        actual, holds = stats[metric].judged(percent, bound)
        beyond = stats[metric].beyond(bound)
        holds = holds or (not beyond.total and late.total > 0)
        thin = min(beyond.total, late.total) < needed(percent)
        checks.append(
            {
                "metric": metric,
                "percentile": name,
                "bound_ms": bound,
                "actual_ms": actual if np.isfinite(actual) else None,
                "holds": holds,
                "close": (holds and thin) or beyond.open(1 - percent / 100),
            }
        )
    attainment = (late.total - late.beyond) / late.total if late.total else None
    wanted = slo.get("attainment")
    kept = wanted is None or (attainment is not None and attainment >= wanted)
    near = wanted is not None and (
        (kept and late.total < needed(min(100 * wanted, MOST_PERCENT))) or late.open(1 - wanted)
    )
    return {
        "holds": kept and all(check["holds"] for check in checks) and late.total > 0,
        "close": _may_turn(checks, kept, near) or not late.total,
        "requests": late.total,
        "checks": checks,
        "attainment": attainment,
        "attainment_wanted": wanted,
        "attainment_close": near,
    }


def needed(percent: float) -> int:
    """Requests of which `BEYOND` lie beyond a percentile: fewer are too short a run for it.

    >>> needed(99), needed(90), needed(50)
    (1000, 100, 20)
    """
    return int(np.ceil(round(BEYOND / (1 - percent / 100), 6)))


def too_short(slo: dict[str, Any], requests: int) -> list[str]:
    """What of an SLO a run of so few requests is too short for, in words."""
    named = sorted({name for _, name, _ in named_bounds(slo)})
    wants = [(name, needed(percent_of(name))) for name in named]
    if slo.get("attainment") is not None:
        percent = 100 * slo["attainment"]
        wants.append((f"an attainment of {percent:g} %", needed(min(percent, MOST_PERCENT))))
    return [
        f"too short a run for {name}: {requests} requests in the window, {least} are needed for ten beyond it"
        for name, least in wants
        if requests < least
    ]


def named_bounds(slo: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Metric, percentile and bound [ms] of every check of an SLO."""
    return [
        (metric, name, float(bound))
        for metric, named in slo.items()
        if metric != "attainment" and named
        for name, bound in named.items()
    ]


def with_model_error(
    judged: dict[str, Any],
    stats: Mapping[str, Mapping[str, Any]],
    attainment_interval: Sequence[float] | None = None,
    served_factor: float = 1.0,
) -> dict[str, Any]:
    """Return a verdict in which also the checks are close whose bound lies inside the interval of the model's error.

    `stats` are the metrics of the run, each with `interval`: {percentile: [low, high or null]} in ms, or null;
    `attainment_interval` is that of the share of good requests. Intervals are those of requests served: a percentile that lies
    among those lost is open only if as many may be served, which are `served_factor` times those that are.
    """
    answered = stats.get("e2el_ms", {}).get("count", judged["requests"])
    served_share = min(1.0, served_factor * answered / judged["requests"]) if judged["requests"] else 1.0
    checks = []
    for check in judged["checks"]:
        named = (stats[check["metric"]].get("interval") or {}).get(check["percentile"])
        inside = (
            named is not None
            and named[0] <= check["bound_ms"]
            and (named[1] is None or check["bound_ms"] <= named[1])
            and (check["actual_ms"] is not None or served_share >= percent_of(check["percentile"]) / 100)
        )
        checks.append({**check, "close": check["close"] or inside})
    wanted, attainment = judged["attainment_wanted"], judged["attainment"]
    kept = wanted is None or (attainment is not None and attainment >= wanted)
    near = judged["attainment_close"]
    if wanted is not None and attainment_interval is not None:
        near = near or attainment_interval[0] < wanted <= attainment_interval[1]
    return {
        **judged,
        "checks": checks,
        "close": _may_turn(checks, kept, near) or not judged["requests"],
        "attainment_close": near,
    }


def _may_turn(checks: list[dict[str, Any]], attained: bool, attainment_near: bool) -> bool:
    """Whether parts of a verdict that are close could turn it: any of a met one, all that fail of a missed one."""
    parts = [(check["holds"], check["close"]) for check in checks] + [(attained, attainment_near)]
    failing = [near for holds, near in parts if not holds]
    return all(failing) if failing else any(near for _, near in parts)
