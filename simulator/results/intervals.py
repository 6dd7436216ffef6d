"""How wrong a prediction may be: 90 % intervals of the model's own error.

The widths come from measured runs (`capacity-plan calibrate intervals`): each experiment gives one ratio of predicted to
measured. Under open load ratios are grouped by how much evidence stands behind a prediction of their kind, and the half-width of
a group is the order statistic that a new member of it stays below nine times in ten (split conformal prediction: rank
ceil(0.9 (n + 1)) of the absolute log ratios; Vovk et al., Algorithmic Learning in a Random World, 2005, chapter 2). Where clients
wait, load, engine, device and kind of model make it wider or narrower (`simulator.results.scales`).

What was never measured is put together from what was, in quadrature: the error of runs, that of kernels, and that of borrowed or
assumed kernels, which is said to be assumed. Every predicted figure so has a stated error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import field, replace
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from typing import Any

from hardware_profiles.records import dataclass
from simulator.results.scales import Scale
from simulator.results.verdict import percent_of

LEVEL = 0.9

ASSUMED_HALF_WIDTH = {"e2e": 0.30, "tpot": 0.30, "ttft": 0.50, "throughput": 0.04}
"""Log half-widths without any measured run. Kind: assumed; pure physics errs by 15 to 35 % on kernels. Throughput: of a load
that is carried, where only the edges of the window are in doubt."""

QUEUE_ELASTICITY = 5.0
"""By how much more, in relative terms, a queueing time moves than the step time that causes it, where arrivals do not wait for
answers. Kind: assumed: 1 / (1 - load) at a load of 0.8 (M/G/1). In a closed loop a queue is as long as the clients are many."""

INTERVAL_OF_MEAN_ERROR = 1.645 / math.sqrt(2 / math.pi)
"""Half-width of a 90 % interval over the mean absolute error, 2.06: both of a normal distribution. Kind: assumed."""

RUN_OF_KERNELS = 1.0
"""What a run adds to its 90 % half-width over the mean error of its kernels where that is known: kernels of several kinds err in
both directions, so that a run errs less than each. Kind: fitted, 2026-12, to runs on A100 and B200 by the kernels of another
generation (30 % off): of 44 and 162 TPOT 90 and 98 % are inside, TTFT 97 and 98, of 44 and 31 throughputs 90 and 100, each source
once; by 2.06 98 to 100 in intervals 1.4 times as wide. Tried on others, see docs/background/accuracy.md."""

STATISTICS = ("mean", "p50", "p75", "p90", "p95", "p99", "p99_9")
STANDS_FOR = {"p50": "mean", "p75": "mean", "p95": "p99", "p99_9": "p99"}
"""Statistics with too few measurements of their own err as these do."""

METRIC_OF = {
    "ttft_ms": "ttft", "tpot_ms": "tpot", "itl_ms": "tpot", "e2el_ms": "e2e", "queue_ms": "ttft",
    "prefill_ms": "ttft", "decode_ms": "tpot",
}  # fmt: skip
QUEUED = ("ttft_ms", "queue_ms", "e2el_ms")
"""Metrics of a result that contain waiting."""


PART_OF = {"queue_ms": "ttft_ms", "prefill_ms": "ttft_ms", "decode_ms": "e2el_ms"}
"""Metrics that are part of another one, request by request."""


@dataclass(frozen=True)
class Evidence:
    """What a prediction rests on.

    engine : name of the engine, such as "vllm".
    hardware : "measured" (runs of this engine on this device under open load), "kernels" (only kernel timings), "borrowed"
        (kernels of another device), or "physics" (datasheet rates).
    closed_loop : whether clients wait for an answer before they send again, or all send at once (`batch`).
    kernel_error : mean relative error of kernel times that were not measured; 0 where they were.
    error_assumed : whether that error was never measured on any device of this make.
    setting : what was run (`Setting.key`), "" if unknown.
    launch_known : whether it is known how the server was launched; of a scenario it always is.
    split : whether prefill and decode are on servers of their own, which err otherwise than one that does both.
    by_law : whether lengths are drawn by a law of two numbers, such as a mean and a 99th percentile: of the real lengths, whose
        short and long answers decide what requests of a batch share, no more is known.
    ranks_apart : whether each data-parallel rank has requests of its own and all step together.
    source : who measured what a replay is of; "" of everybody else's servers.
    fitted : log half-widths by metric of a user's calibration, of those metrics that it tells; `fitted_by` is its name.
    without_fit : what `fitted` is without the calibration, where the run leaves what that measured: no interval is narrower than
        by it. None inside.
    """

    engine: str
    hardware: str
    closed_loop: bool = False
    kernel_error: float = 0.0
    error_assumed: bool = False
    setting: str = ""
    batch: bool = False
    launch_known: bool = True
    split: bool = False
    by_law: bool = False
    ranks_apart: bool = False
    source: str = ""
    fitted: tuple[tuple[str, float], ...] = ()
    fitted_by: str = ""
    without_fit: tuple[tuple[str, float], ...] | None = None

    def load(self) -> str:
        """Kind of a load under which clients wait."""
        if self.split:
            return "disaggregated"
        if not self.launch_known:
            return "launch unknown"
        return ("batch" if self.batch else "closed loop") + (", lengths by a law" if self.by_law and self.closed_loop else "")

    def kernel_width(self) -> float:
        """Log half-width that kernels which were not measured add to a run, in quadrature."""
        return math.log1p((INTERVAL_OF_MEAN_ERROR if self.error_assumed else RUN_OF_KERNELS) * self.kernel_error)

    def group(self) -> str:
        """Name of the group of measured runs."""
        if self.closed_loop:
            return f"{self.engine}/{self.load()}"
        return f"{self.engine}/{'measured' if self.hardware == 'measured' and not self.split else 'kernels'}/open loop"

    def levels(self) -> dict[str, str]:
        """Levels of the factors of a scale (`simulator.results.scales.FACTORS`)."""
        setting = Setting.read(self.setting)
        return {
            "source": self.source,
            "load": self.load(),
            "engine": self.engine,
            "device": setting.device,
            "model": f"{setting.model}, {setting.weights}",
            "setting": self.setting,
            "ranks": "data-parallel attention" if self.ranks_apart else "one batch a step",
        }


@dataclass(frozen=True)
class Setting:
    """What a prediction shares with measured runs, or does not: engine, device, kind of model, width of the weights."""

    engine: str
    device: str
    model: str
    weights: str

    def key(self) -> str:
        """The setting as one text."""
        return "/".join((self.engine, self.device, self.model, self.weights))

    @classmethod
    def read(cls, key: str) -> Setting:
        """From its text; of an unknown one all is ""."""
        engine, _, rest = key.partition("/")
        return cls(engine, *rest.rsplit("/", 2)) if rest else cls(engine, "", "", "")


Groups = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Half-widths: {"engine/hardware/load": {"metric/statistic": {"log_half_width", "experiments", "models"}}}."""


@dataclass(frozen=True)
class Widths:
    """All widths of measured runs: `groups` under open load, `scales` by metric where clients wait."""

    groups: Groups = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)


@lru_cache(maxsize=1)
def shipped() -> Widths:
    """The widths that are shipped."""
    stored = table()
    return Widths(stored["groups"], {metric: Scale.read(scale) for metric, scale in stored["scales"].items()})


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """The shipped file: {"groups": `Groups`, "scales": {metric: `Scale.as_dict`}, ...}."""
    text = resources.files("simulator.results").joinpath("intervals.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _own(groups: Groups, group: str, metric: str, statistic: str) -> float | None:
    """Width of a statistic by its own measurements, else by those of the statistic that stands for it."""
    entries = groups.get(group, {})
    for name in (statistic, STANDS_FOR.get(statistic)):
        if (entry := entries.get(f"{metric}/{name}")) is not None:
            return float(entry["log_half_width"])
    return None


def _beyond(wide: float, narrow: float) -> float:
    """What must be added to `narrow` in quadrature to make `wide`."""
    return math.sqrt(max(0.0, wide**2 - narrow**2))


def _within(groups: Groups, group: str, metric: str, statistic: str) -> float | None:
    """Width of a group, of a tail that was not measured as `_tail`."""
    if (width := _own(groups, group, metric, statistic)) is not None:
        return width
    mean = _own(groups, group, metric, "mean")
    return None if mean is None else _tail(groups, mean, metric, statistic)


def _tail(groups: Groups, mean: float, metric: str, statistic: str) -> float:
    """Width of a tail that was not measured: wider than the mean by as much as in the runs where both were."""
    for other in (name for name in groups if "/measured/" in name):
        tail, usual = _own(groups, other, metric, statistic), _own(groups, other, metric, "mean")
        if tail is not None and usual is not None:
            return math.hypot(mean, _beyond(tail, usual))
    return mean


def waiting_width(widths: Widths, evidence: Evidence, metric: str, statistic: str) -> float | None:
    """Log half-width where clients wait. E2E errs as TPOT does, of which it is made.

    Under open load, where intervals lie about the prediction, their middle here (`center`) counts as width.
    """
    scale = widths.scales.get("tpot" if metric == "e2e" else metric)
    if scale is None:
        return None
    levels = evidence.levels()
    aside = 0.0 if evidence.closed_loop else abs(scale.center(levels))
    return _tail(widths.groups, scale.half_width(levels) + aside, metric, statistic)


def center(evidence: Evidence, metric: str, ttft_share: float = 0.0, widths: Widths | None = None) -> float:
    """Logarithm of the middle of an interval over the predicted value: where clients wait, servers of further sources are slower
    than predicted in the median (`Scale.log_ratio`); elsewhere 0."""
    if metric == "e2e":
        rest = center(evidence, "tpot", widths=widths)
        return ttft_share * center(evidence, "ttft", widths=widths) + (1 - ttft_share) * rest
    scale = (widths or shipped()).scales.get(metric)
    if scale is None or evidence.fitted or not evidence.closed_loop:
        return 0.0
    return scale.center(evidence.levels())


def run_width(widths: Widths, evidence: Evidence, metric: str, statistic: str) -> float | None:
    """Log half-width by measured runs, as if every kernel of the device had been measured; None without such runs.

    A server under open load on hardware that is known by its kernels: the width of such a server on measured hardware, and in
    quadrature what hardware known by its kernels adds to TPOT. Without that, where clients wait.
    """
    if evidence.closed_loop:
        return waiting_width(widths, evidence, metric, statistic)
    if (width := _within(widths.groups, evidence.group(), metric, statistic)) is not None:
        return width
    measured = f"{evidence.engine}/measured/open loop"
    served = _within(widths.groups, measured, metric, statistic)
    usual = _within(widths.groups, measured, "tpot", "mean")
    kernels = waiting_width(widths, evidence, "tpot", "mean")
    if served is not None and usual is not None and kernels is not None:
        return math.hypot(served, _beyond(kernels, usual))
    return waiting_width(widths, evidence, metric, statistic)


@lru_cache(maxsize=256)
def _shipped_width(evidence: Evidence, metric: str, statistic: str) -> float | None:
    """`run_width` by the shipped widths."""
    return run_width(shipped(), evidence, metric, statistic)


def half_width(
    evidence: Evidence,
    metric: str,
    statistic: str,
    queue_share: float = 0.0,
    ttft_share: float = 0.0,
    widths: Widths | None = None,
) -> tuple[float, str]:
    """Log half-width of a statistic of "ttft", "tpot" or "e2e", and its kind ("fitted" to measured runs, or "assumed").

    queue_share : part of the value that is waiting beyond one step; see `QUEUE_ELASTICITY`.
    ttft_share : part of an E2E that is TTFT; where clients wait, E2E errs as its parts do, all in one direction.
    widths : of measured runs, by default the shipped ones.
    """
    own = dict(evidence.fitted)
    if metric == "e2e" and (evidence.closed_loop or own):
        first, kind = half_width(evidence, "ttft", statistic, widths=widths)
        rest, _ = half_width(evidence, "tpot", statistic, widths=widths)
        width = ttft_share * first + (1 - ttft_share) * rest
    elif metric in own:
        width, kind = own[metric], "fitted"
        if evidence.without_fit is not None:
            plain = replace(evidence, fitted=evidence.without_fit, without_fit=None)
            width = max(width, half_width(plain, metric, statistic, widths=widths)[0])
    else:
        asked = (evidence, metric, statistic)
        run = _shipped_width(*asked) if widths is None else run_width(widths, *asked)
        width = math.hypot(ASSUMED_HALF_WIDTH[metric] if run is None else run, evidence.kernel_width())
        kind = "assumed" if run is None or evidence.kernel_error else "fitted"
    if metric != "tpot" and not evidence.closed_loop and queue_share > 0:
        step, _ = half_width(evidence, "tpot", "mean", widths=widths)
        width = queue_widening(width, queue_share, step)
    return width, kind


def queue_widening(log_half_width: float, queue_share: float, step_width: float) -> float:
    """Width of a TTFT or E2E of which a share is waiting beyond one step: queues move more than the steps behind them."""
    return math.hypot(log_half_width, QUEUE_ELASTICITY * step_width * queue_share)


def share_of_queue(queue_ms: float, step_ms: float, value_ms: float) -> float:
    """Part of a latency that is waiting beyond one step.

    >>> share_of_queue(60.0, 10.0, 100.0)
    0.5
    """
    return min(1.0, max(0.0, queue_ms - step_ms) / value_ms) if value_ms > 0 else 0.0


def interval(value: float | None, log_half_width: float, log_ratio: float = 0.0) -> list[float] | None:
    """Return [value * e^(c - w), value * e^(c + w)]."""
    if value is None or not math.isfinite(value):
        return None
    return [value * math.exp(log_ratio - log_half_width), value * math.exp(log_ratio + log_half_width)]


def rate_width(
    evidence: Evidence, e2e_s: float, window_s: float, overloaded: bool, widths: Widths | None = None
) -> float:
    """Log half-width of throughput.

    Where clients wait or the deployment cannot keep up, it errs as the step time does. Elsewhere the arrivals fix it: what is
    left is how clients count (the width of measured throughput under open load), and in quadrature the requests under way at the
    end of the window, which may fall on either side: the width of E2E times E2E over the window.
    """
    known = widths or shipped()
    if evidence.closed_loop or overloaded:
        own = waiting_width(known, evidence, "throughput", "mean")
        if own is None or evidence.fitted or not evidence.closed_loop:
            return half_width(evidence, "tpot", "mean", widths=known)[0]
        return math.hypot(own, evidence.kernel_width())
    counted = (
        _own(known.groups, name, "throughput", "mean") for name in known.groups if name.endswith("/measured/open loop")
    )
    client = max((width for width in counted if width is not None), default=ASSUMED_HALF_WIDTH["throughput"])
    under_way = min(1.0, e2e_s / window_s) if window_s > 0 else 0.0
    return math.hypot(client, half_width(evidence, "e2e", "mean", widths=known)[0] * under_way)


def add_intervals(result: dict[str, Any], evidence: Evidence) -> list[str]:
    """Write `interval` into every predicted metric of a result and of its classes; return what they rest on, and assume.

    TTFT and E2E are widened by the share of queueing in them: near saturation a small error of the step time is a large error
    of the queue. An overloaded run's TTFT has no upper bound (null), since it grows with the length of the run.
    """
    overloaded = any(text.startswith("overload") for text in result["warnings"])
    for metrics in (result["metrics"], *(kind["metrics"] for kind in result.get("classes") or [])):
        for name, metric in METRIC_OF.items():
            if metrics.get(name, {}).get("count"):
                found = _intervals(metrics, name, metric, evidence, overloaded)
                whole = metrics.get(PART_OF.get(name, ""), {}).get("interval")
                metrics[name]["interval"] = coherent(found, whole)
    totals, cost, e2e = result["totals"], result["cost"], result["metrics"]["e2el_ms"]
    width = rate_width(evidence, (e2e["mean"] or 0.0) / 1e3, totals["duration_s"], overloaded)
    step, kind = half_width(evidence, "tpot", "mean")
    rates = ("request_throughput", "output_throughput", "total_token_throughput")
    whole = ("usd_per_1m_total_tokens", "usd_per_1m_output_only", "usd_per_request")
    split = ("usd_per_1m_input_tokens", "usd_per_1m_output_tokens")
    middle = center(evidence, "throughput")
    totals["interval"] = {name: interval(totals[name], width, middle) for name in rates} | _goodput(result, width, middle)
    cost["interval"] = {name: interval(cost[name], width, -middle) for name in whole}
    cost["interval"] |= {name: interval(cost[name], math.hypot(width, step), -middle) for name in split}
    if kind == "fitted":
        return [words] if (words := why(evidence, step)) else []
    if not evidence.kernel_error:
        return ["error intervals are assumed: no measured run stands behind this engine"]
    source = {"borrowed": "borrowed kernels", "physics": "kernels priced by the datasheet"}.get(
        evidence.hardware, "kernels in a format that was not measured"
    )
    return [
        f"error intervals assume that {source} err by {evidence.kernel_error:.0%} on average; "
        "the rest of their width is from measured runs on other hardware"
    ]


def why(evidence: Evidence, step_width: float) -> str:
    """Why an interval is as wide as it is, `step_width` that of TPOT; "" where runs of the very kind stand behind it."""
    if evidence.fitted:
        told = " and ".join(metric.upper() for metric, _ in evidence.fitted)
        least = "" if evidence.without_fit is None else ", and no narrower than without it"
        factor = f"a factor of {math.exp(step_width):.2f} for TPOT"
        return f"error intervals of {told} are those of {evidence.fitted_by}{least} ({factor})"
    if evidence.hardware == "measured" and not evidence.closed_loop and not evidence.split:
        return ""
    scale = shipped().scales["tpot"]
    reasons = scale.reasons(evidence.levels())
    middle = math.exp(center(evidence, "tpot"))
    about = f", about {middle:.2f} times the value, as in the median source" if abs(middle - 1) >= 0.005 else ""
    said = f"error intervals (a factor of {math.exp(step_width):.2f} for TPOT{about}) hold nine of ten values of "
    said += f"{scale.sources} sources"
    return f"{said}; {'; '.join(reasons)}" if reasons else said


def _intervals(
    metrics: Mapping[str, Any], name: str, metric: str, evidence: Evidence, overloaded: bool
) -> dict[str, list[Any] | None]:
    """The interval of each statistic of one metric [ms]."""
    stats, step_ms = metrics[name], metrics["itl_ms"]["p50"] or 0.0
    out: dict[str, list[Any] | None] = {}
    for statistic in STATISTICS:
        value = stats[statistic]
        waiting = first = 0.0
        if name in QUEUED and value:
            waiting = share_of_queue(metrics["queue_ms"][statistic] or 0.0, step_ms, value)
            first = min(1.0, (metrics["ttft_ms"][statistic] or 0.0) / value)
        width, _ = half_width(evidence, metric, statistic, waiting, first)
        bounds: list[Any] | None = interval(value, width, center(evidence, metric, first))
        if overloaded and bounds is not None and name in QUEUED:
            bounds = [bounds[0], None]
        out[statistic] = bounds
    return out


def coherent(
    bounds: dict[str, list[Any] | None], whole: Mapping[str, list[Any] | None] | None = None
) -> dict[str, list[Any] | None]:
    """Intervals that no other one contradicts: a percentile is not below a lower one, nor a part above the whole.

    Each bound is an assertion of its own; where two of them imply a third, the tighter one holds. An upper bound of None is no
    bound. whole : the intervals of the metric that this one is part of.
    """
    out = dict(bounds)
    for statistic, pair in out.items():
        above = (whole or {}).get(statistic)
        if pair is not None and above is not None and above[1] is not None:
            out[statistic] = [min(pair[0], above[1]), above[1] if pair[1] is None else min(pair[1], above[1])]
    ranks = [name for name in STATISTICS if name != "mean" and out.get(name) is not None]
    for low, high in pairwise(ranks):
        lower, upper = out[low], out[high]
        if lower is not None and upper is not None:
            out[high] = [max(lower[0], upper[0]), upper[1]]
    for low, high in reversed(list(pairwise(ranks))):
        lower, upper = out[low], out[high]
        if lower is not None and upper is not None and upper[1] is not None:
            out[low] = [lower[0], upper[1] if lower[1] is None else min(lower[1], upper[1])]
    return out


def share_below(stats: Mapping[str, Any], bound: float) -> float:
    """Share of a metric's values at or below a bound, read from its percentiles, linear between them."""
    named = sorted(
        (percent_of(k) / 100, float(v))
        for k, v in stats.items()
        if k[0] == "p" and k[1:2].isdigit()
    )
    points = [(0.0, float(stats["min"])), *named, (1.0, float(stats["max"]))]
    if bound < points[0][1]:
        return 0.0
    for (low, at_low), (high, at_high) in pairwise(points):
        if bound < at_high:
            return low + (high - low) * (bound - at_low) / (at_high - at_low)
    return 1.0


def _goodput(
    result: Mapping[str, Any], rate_log_width: float, rate_log_ratio: float
) -> dict[str, list[float] | None]:
    """Intervals of the goodput and of the share of good requests: latencies shifted to either end of their intervals.

    Of requests that keep several bounds at once only the share of each is known, so the share of both lies between
    1 - sum(1 - share) and the least share (Frechet, 1935).
    """
    totals = result["totals"]
    good, bounds = totals["goodput_fraction"], totals["slo"]
    out: dict[str, list[float] | None] = {"request_goodput": None, "goodput_fraction": None}
    judged = [
        (result["metrics"][name], bound)
        for name, bound in bounds.items()
        if name != "itl_ms" and result["metrics"].get(name, {}).get("count")
    ]
    if good is None or totals["request_goodput"] is None or not judged:
        return out
    kept = totals["completed"] / totals["offered"] if totals["offered"] else 1.0
    low, high = 1.0, 1.0
    for stats, bound in judged:
        below, above = stats["interval"]["p90"]
        value = stats["p90"]
        low -= 1 - (share_below(stats, bound * value / above) if above else 0.0)
        high = min(high, share_below(stats, bound * value / below) if below else 1.0)
    low, high = min(good, kept * max(0.0, low)), max(good, kept * high)
    out["goodput_fraction"] = [low, high]
    offered = totals["request_goodput"] / good if good else totals["request_throughput"] / max(kept, 1e-9)
    slow, fast = (math.exp(rate_log_ratio + side * rate_log_width) for side in (-1, 1))
    out["request_goodput"] = [low * offered * slow, high * offered * fast]
    return out
