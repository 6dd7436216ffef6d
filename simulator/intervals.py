"""How wrong a prediction may be: 90 % intervals of the model's own error, and whether a run leaves the calibrated domain.

The widths come from measured runs (`capacity-plan validate runs`): each measured experiment gives one ratio of predicted
to measured; ratios are grouped by how much evidence stands behind a prediction of their kind, and the half-width of a group
is the order statistic that a new member of it stays below nine times in ten (split conformal prediction: rank
ceil(0.9 (n + 1)) of the absolute log ratios; Vovk et al., Algorithmic Learning in a Random World, 2005, chapter 2). Groups
with too few experiments take the next wider kind. Where nothing was measured the width is assumed, and said to be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

LEVEL = 0.9
ASSUMED_HALF_WIDTH = {"e2e": 0.30, "tpot": 0.30, "ttft": 0.50, "throughput": 0.30}
"""Log half-widths without any measurement. Kind: assumed; pure physics errs by 15 to 35 % on kernels."""

QUEUE_ELASTICITY = 5.0
"""By how much more, in relative terms, a queueing time moves than the step time that causes it. Kind: assumed: 1 / (1 - load)
at a load of 0.8 (M/G/1)."""


@dataclass(frozen=True)
class Evidence:
    """What a prediction rests on.

    engine : name of the engine, such as "vllm".
    hardware : "measured" (end-to-end runs on this device and engine), "kernels" (only kernel timings), or "physics".
    model : "dense" (16-bit weights), "quantized", "moe", or "moe_expert_parallel".
    """

    engine: str
    hardware: str
    model: str


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """The shipped half-widths: {"groups": `Groups`, ...}."""
    text = resources.files("simulator").joinpath("intervals.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


KINDS_LIKE = {
    "dense": ("dense", "quantized", "any"),
    "quantized": ("quantized", "any"),
    "moe": ("moe", "any"),
    "moe_expert_parallel": ("moe_expert_parallel", "any"),
}
"""Where a kind of model has no measurements, the next kinds to ask."""


Groups = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Half-widths: {"engine/hardware/model": {"metric/statistic": {"log_half_width", "n"}}}."""


def groups_of(evidence: Evidence) -> list[str]:
    """The groups to which a measured run with this evidence contributes."""
    return [
        f"{engine}/{evidence.hardware}/{model}" for engine in (evidence.engine, "any") for model in (evidence.model, "any")
    ]


def find_half_width(groups: Groups, evidence: Evidence, metric: str, statistic: str) -> float | None:
    """Log half-width of a metric's statistic, None without measurements.

    Tries the same engine, hardware and kind of model, then kinds of model like it, then all engines, then hardware with kernel
    measurements only. Within a group a percentile without measurements of its own takes the widest known of its metric, and
    E2E that of TPOT, of which it is made.
    """
    hardware_kinds = {"measured": ("measured", "kernels"), "kernels": ("kernels",), "physics": ()}[evidence.hardware]
    for hardware in hardware_kinds:
        for engine in (evidence.engine, "any"):
            for model in KINDS_LIKE[evidence.model]:
                group = groups.get(f"{engine}/{hardware}/{model}", {})
                entry = group.get(f"{metric}/{statistic}")
                if entry is None:
                    known = [v for k, v in group.items() if k.startswith(f"{metric}/")]
                    if not known and metric == "e2e":
                        known = [v for k, v in group.items() if k == "tpot/mean"]
                    entry = max(known, key=lambda v: v["log_half_width"]) if known else None
                if entry is not None:
                    return float(entry["log_half_width"])
    return None


def half_width(evidence: Evidence, metric: str, statistic: str) -> tuple[float, str]:
    """Log half-width of a metric's statistic as shipped, and its kind ("fitted" from measurements, or "assumed")."""
    found = find_half_width(table()["groups"], evidence, metric, statistic)
    return (found, "fitted") if found is not None else (ASSUMED_HALF_WIDTH[metric], "assumed")


def interval(value: float | None, log_half_width: float) -> list[float] | None:
    """Return [value / e^w, value * e^w]."""
    if value is None or not math.isfinite(value):
        return None
    factor = math.exp(log_half_width)
    return [value / factor, value * factor]


def queue_widening(log_half_width: float, queue_ms: float, value_ms: float, step_width: float) -> float:
    """Width of a TTFT or E2E of which `queue_ms` is waiting beyond one step: queues move more than the steps behind them."""
    share = min(1.0, max(0.0, queue_ms) / value_ms) if value_ms > 0 else 0.0
    return math.hypot(log_half_width, QUEUE_ELASTICITY * step_width * share)


def add_intervals(result: dict[str, Any], evidence: Evidence, *, open_loop: bool) -> list[str]:
    """Write `interval` into every predicted metric of a result; return what could not be stated.

    A statistic without evidence gets none. In an open loop that is not overloaded the arrivals fix throughput and total cost;
    elsewhere they err as the step time does, and the split of cost between input and output always does.

    TTFT and E2E are widened by the share of queueing in them: near saturation a small error of the step time is a large error
    of the queue. An overloaded run's TTFT has no upper bound (null), since it grows with the length of the run.
    """
    metrics = result["metrics"]
    overloaded = any(text.startswith("overload") for text in result["warnings"])
    kinds: set[str] = set()
    kind_of = {"ttft_ms": "ttft", "tpot_ms": "tpot", "itl_ms": "tpot", "e2el_ms": "e2e", "queue_ms": "ttft",
               "prefill_ms": "ttft", "decode_ms": "e2e"}  # fmt: skip
    step_width, _ = half_width(evidence, "tpot", "mean")
    for name, metric in kind_of.items():
        stats = metrics[name]
        if not stats["count"]:
            continue
        out: dict[str, Any] = {}
        for statistic in ("mean", "p50", "p90", "p99"):
            width, kind = half_width(evidence, metric, statistic)
            kinds.add(kind)
            if kind == "assumed":
                out[statistic] = None
                continue
            value = stats[statistic]
            if name in ("ttft_ms", "queue_ms", "e2el_ms") and value:
                queue = (metrics["queue_ms"][statistic] or 0.0) - (metrics["itl_ms"]["p50"] or 0.0)
                width = queue_widening(width, queue, value, step_width)
            bounds = interval(value, width)
            if overloaded and bounds is not None and name in ("ttft_ms", "queue_ms", "e2el_ms"):
                bounds = [bounds[0], None]  # type: ignore[list-item]
            out[statistic] = bounds
        stats["interval"] = out
    totals, cost = result["totals"], result["cost"]
    known = half_width(evidence, "tpot", "mean")[1] == "fitted"
    free = not open_loop or overloaded
    rates = ("request_throughput", "output_throughput", "total_token_throughput", "request_goodput")
    whole = ("usd_per_1m_total_tokens", "usd_per_1m_output_only", "usd_per_request")
    split = ("usd_per_1m_input_tokens", "usd_per_1m_output_tokens")
    width = step_width if free else 0.0
    totals["interval"] = {name: interval(totals[name], width) if known else None for name in rates}
    cost["interval"] = {name: interval(cost[name], width) if known else None for name in whole}
    cost["interval"] |= {name: interval(cost[name], step_width) if known else None for name in split}
    if "assumed" in kinds:
        return ["no error interval is stated where no measured run stands behind this hardware, engine and kind of model"]
    return []
