"""What a run amounts to: the figures that result.json is made of, from every request and step of a run.

`exact_figures` counts runs whose requests are all in memory. Larger runs are counted as they go, by
`simulator.results.streamed_figures`, which fills the same record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine_models.lengths import Lengths
from simulator.cluster.outcome import (
    FINISHED,
    LOSSES,
    NOT_ARRIVED,
    REJECTED,
    STATUS_NAMES,
    UNFINISHED,
    ClusterResult,
    Reason,
)
from simulator.results import metrics
from simulator.results.timeline import server_averages
from simulator.workload.columns import RequestClass, Workload

if TYPE_CHECKING:
    from simulator.config.schema import Scenario
    from simulator.workload.spec import WorkloadSpec

LATENCIES = ("ttft_ms", "tpot_ms", "e2el_ms", "queue_ms", "prefill_ms", "decode_ms")


@dataclass
class Figures:
    """Counts, statistics and verdict of a run.

    `counts` are requests by how they ended, `reasons` those that arrived and have no answer, by why. `inside` are those that
    arrived in the measured window, `completed_inside` those of
    them that ended, `good_inside` those that kept the SLO (None without one); `window_completed` ended in the window, whenever
    they arrived, and `window_good` of those kept the SLO. Tokens are counted in the window as they become
    visible, and in `total_*` for finished requests of the whole run. `quantile_error` is the relative error that the
    percentiles may have, 0 where they are exact. `limits` are those of the requests of a streamed run, for their counts.
    """

    window: metrics.Window
    counts: dict[str, int]
    reasons: dict[str, int]
    inside: int
    completed_inside: int
    stats: dict[str, dict[str, Any]]
    server: dict[str, Any]
    first_arrival_s: float
    last_end_s: float
    total_input_tokens: int
    total_output_tokens: int
    window_input_tokens: int
    window_output_tokens: int
    window_completed: int
    good_inside: int | None
    max_concurrent: int
    preemptions: int
    overload: metrics.Overload | None
    verdict: dict[str, Any] | None
    rates_ci95: dict[str, list[float] | None]
    open_loop: bool
    used_up_at_s: float | None = None
    window_good: int | None = None
    classes: list[dict[str, Any]] = field(default_factory=list)
    quantile_error: float = 0.0
    limits: Lengths | None = None

    @property
    def offered(self) -> int:
        """Requests that arrived."""
        return sum(self.counts.values()) - self.counts["not_arrived"]


@dataclass(frozen=True)
class Measured:
    """Per-request columns of a run beside its `ClusterResult`: latencies, who arrived in the window, who kept the SLO."""

    latencies: metrics.Latencies
    inside: NDArray[np.bool_]
    good: NDArray[np.bool_] | None


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


def measured_window(
    requests: int,
    duration_s: float,
    warmup_s: float,
    end_of_run_s: float,
    stopped_at_s: float | None,
    spec: WorkloadSpec,
) -> metrics.Window:
    """Return [warmup, duration], or to the last completion where the number of requests ends the run."""
    end = duration_s
    by_count = spec.requests is not None and requests >= spec.requests
    has_duration = (spec.duration is not None or spec.trace is not None) and not by_count
    if not has_duration or not np.isfinite(end) or end <= warmup_s:
        end = end_of_run_s
    if stopped_at_s is not None:
        end = min(end, stopped_at_s)
    return metrics.Window(warmup_s, max(end, warmup_s))


def exact_figures(scenario: Scenario, workload: Workload, raw: ClusterResult) -> tuple[Figures, Measured]:
    """Count a run whose requests are all in memory."""
    window = measured_window(
        len(workload),
        workload.duration_s,
        workload.warmup_s,
        raw.end_of_run_s,
        raw.stopped_at_s,
        scenario.workload,
    )
    arrived = raw.status != NOT_ARRIVED
    inside = arrived & (raw.arrival_s >= window.start_s) & (raw.arrival_s <= window.end_s)
    lat = metrics.latencies(raw, scenario.client.overhead_ms / 1e3)
    finished = raw.status == FINISHED
    slo = slo_dict(scenario.slo)
    by_class = [class_slo(kind, slo) for kind in workload.classes] or [slo]
    judged_at_all = any(by_class)
    good = np.zeros(len(workload), dtype=bool)
    for number, bounds in enumerate(by_class):
        good |= metrics.good_requests(lat, bounds) & (workload.class_index == number)
    stats = {name: metrics.statistics(getattr(lat, name)[inside], "ms") for name in LATENCIES}
    can_judge = bool(slo) and raw.stopped_at_s is None and bool(inside.any())
    stats["itl_ms"], verdict = _of_gaps(raw, lat, inside, slo if can_judge else None)
    chosen = inside & (raw.status != REJECTED)
    for name, values in (
        ("input_tokens", raw.prompt_tokens),
        ("output_tokens", raw.output_tokens),
        ("cached_tokens", raw.cached_tokens),
    ):
        stats[name] = metrics.statistics(values[chosen].astype(float), "tokens")
    visible = (raw.end_s >= window.start_s) & (raw.end_s <= window.end_s)
    first = (raw.first_token_s >= window.start_s) & (raw.first_token_s <= window.end_s)
    known_arrivals = not np.isnan(workload.arrival_s).any()
    counts = {name: int((raw.status == code).sum()) for code, name in enumerate(STATUS_NAMES)}
    figures = Figures(
        window=window,
        counts=counts,
        reasons=named_losses(losses(raw)),
        inside=int(inside.sum()),
        completed_inside=int((inside & ~np.isnan(lat.e2el_ms)).sum()),
        stats=stats,
        server=server_averages(raw, window),
        first_arrival_s=float(np.nanmin(raw.arrival_s)) if arrived.any() else 0.0,
        last_end_s=float(np.nanmax(raw.end_s)) if finished.any() else 0.0,
        total_input_tokens=int(raw.prompt_tokens[finished].sum()),
        total_output_tokens=int(raw.output_tokens[finished].sum()),
        window_input_tokens=int(raw.prompt_tokens[first].sum()),
        window_output_tokens=metrics.tokens_emitted(raw, window),
        window_completed=int(visible.sum()),
        good_inside=int((good & inside).sum()) if judged_at_all else None,
        max_concurrent=_peak_concurrency(raw),
        preemptions=int(raw.preemptions.sum()),
        overload=metrics.overload(raw, window)
        or lost_backlog(counts, window, raw.end_of_run_s, raw.stopped_at_s),
        verdict=verdict,
        rates_ci95=metrics.rates_ci95(raw, window, good if judged_at_all else None),
        window_good=int((good & visible).sum()) if judged_at_all else None,
        open_loop=known_arrivals and bool(np.ptp(workload.arrival_s) > 0),
        used_up_at_s=raw.end_of_run_s if _used_up(scenario.workload, workload, raw) else None,
        classes=_classes(workload, raw, lat, inside, scenario),
    )
    return figures, Measured(lat, inside, good if judged_at_all else None)


def losses(raw: ClusterResult) -> NDArray[np.int64]:
    """Requests by the number of the reason of their end."""
    return np.bincount(raw.reason, minlength=len(Reason))


def named_losses(reasons: NDArray[np.int64]) -> dict[str, int]:
    """How many requests that arrived have no answer, by why; reasons without any are left out."""
    return {reason.name.lower(): int(reasons[reason]) for reason in LOSSES if reasons[reason]}


def _of_gaps(
    raw: ClusterResult, lat: metrics.Latencies, inside: NDArray[np.bool_], slo: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Statistics of the gaps between tokens, and the verdict, which may name them too; none without an SLO.

    The gaps are the largest part of a long run: they live only here, and are turned into milliseconds in place.
    """
    gaps = metrics.token_gaps(raw, inside & (raw.status == FINISHED))
    verdict = None if slo is None else metrics.verdict(lat, inside, gaps, slo)
    values, weights = gaps
    values *= 1e3
    return metrics.statistics(values, "ms", weights), verdict


def lost_backlog(
    counts: dict[str, int], window: metrics.Window, end_of_run_s: float, stopped_at_s: float | None
) -> metrics.Overload | None:
    """Overload of loads that arrive early, such as a batch: more than one in twenty unfinished after the drain."""
    unfinished, offered = counts["unfinished"], sum(counts.values()) - counts["not_arrived"]
    if stopped_at_s is not None or unfinished <= 0.05 * offered:
        return None
    span = max(end_of_run_s - window.start_s, 1e-9)
    return metrics.Overload(offered / max(window.length_s, 1e-9), counts["finished"] / span, unfinished)


def _classes(
    workload: Workload,
    raw: ClusterResult,
    lat: metrics.Latencies,
    inside: NDArray[np.bool_],
    scenario: Scenario,
) -> list[dict[str, Any]]:
    """Judge each request class apart, by its own SLO or the scenario's."""
    if scenario.workload.classes is None and len(workload.classes) < 2:
        return []
    shared = slo_dict(scenario.slo)
    out = []
    for number, kind in enumerate(workload.classes):
        rows = inside & (workload.class_index == number)
        slo = class_slo(kind, shared)
        gaps = metrics.token_gaps(raw, rows & (raw.status == FINISHED))
        out.append(
            {
                "name": kind.name,
                "priority": kind.priority,
                "requests": int(rows.sum()),
                "metrics": {
                    name: metrics.statistics(getattr(lat, name)[rows], "ms")
                    for name in ("ttft_ms", "tpot_ms", "e2el_ms", "queue_ms")
                }
                | {"itl_ms": metrics.statistics(gaps[0] * 1e3, "ms", gaps[1])},
                "slo": metrics.verdict(lat, rows, gaps, slo) if slo else None,
                "goodput_fraction": float(metrics.good_requests(lat, slo)[rows].mean())
                if slo and rows.any()
                else None,
            }
        )
    return out


def _peak_concurrency(raw: ClusterResult) -> int:
    """Most requests in the system at once."""
    began = raw.arrival_s[(raw.status == FINISHED) | (raw.status == UNFINISHED)]
    return peak_of(began, raw.end_s[raw.status == FINISHED])[0]


def peak_of(began: NDArray[np.float64], ended: NDArray[np.float64], before: int = 0) -> tuple[int, int]:
    """Most at once, and how many are left, of `before` and those that begin and end at these times; ends count first."""
    times = np.concatenate([ended, began])
    change = np.concatenate([np.full(len(ended), -1, np.int8), np.ones(len(began), np.int8)])
    order = np.lexsort((change, times))
    level = np.cumsum(change[order], dtype=np.int64)
    return before + int(level.max(initial=0)), before + len(began) - len(ended)


def _used_up(spec: WorkloadSpec, workload: Workload, raw: ClusterResult) -> bool:
    """Tell whether a closed loop ran out of the requests prepared for it before its duration was over."""
    pooled = np.isnan(workload.arrival_s) & (workload.predecessor < 0)
    if not pooled.any() or spec.requests is not None or raw.stopped_at_s is not None:
        return False
    spent = not (raw.status[pooled] == NOT_ARRIVED).any()
    return spent and raw.end_of_run_s < workload.duration_s
