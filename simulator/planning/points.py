"""One point of a sweep as one flat row: what was varied, what came out, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.planning.axes import Point

LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms", "queue_ms")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
TOTALS = ("offered", "completed", "rejected", "failed", "unfinished", "vllm_duration_s", "request_throughput",
          "request_goodput", "goodput_fraction", "input_throughput", "output_throughput", "output_tput_per_gpu")  # fmt: skip
WARNING_ENDS = " | "
"""Between two warnings of a point."""
SERVER = ("gpu_busy_fraction", "kv_cache_usage_perc", "kv_cache_usage_perc_peak", "prefix_cache_hit_rate",
          "num_preemptions", "num_requests_waiting")  # fmt: skip
HEADROOM = ("sustainable", "within_slo", "used")
COST = ("usd_per_hour", "usd_per_month", "usd_per_1m_total_tokens", "usd_per_1m_output_only",
        "usd_per_1m_input_tokens", "usd_per_1m_output_tokens")  # fmt: skip
COST_HIGH = "usd_per_1m_total_tokens_high"
"""Column of the upper end of the cost's 90 % interval."""
DEPLOYED = ("model", "engine", "hardware", "weights", "replicas", "tensor_parallel", "pipeline_parallel", "data_parallel",
            "devices")  # fmt: skip


def axis_column(path: str) -> str:
    """Column of a varied field: its path; top-level fields get a prefix, as outcomes have columns of such names."""
    return path if "." in path else f"scenario.{path}"


def varied_columns(point: Point) -> dict[str, Any]:
    """The columns of what was varied."""
    return {axis_column(path): value for path, value in point.values().items()}


def whole(number: float | None) -> float | None:
    """4 for 4.0; anything else as it is."""
    return int(number) if number is not None and number == int(number) else number


def row_of(point: Point, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a point that ended: its number, what was varied, how it ended, and the columns of its outcome."""
    return {
        "point": point.index,
        **varied_columns(point),
        "status": outcome["status"],
        "reason": outcome["reason"],
        **(outcome.get("outcome") or empty_columns()),
    }


def judged(result: Mapping[str, Any]) -> tuple[str, bool | None]:
    """The SLO verdict over the run and its classes: "met", "close", "missed", "not judged", or "" where no SLO is given.

    "close": the verdict could turn within the interval of the run's sampling error or the model's error, or it holds in a run too
    short for it. "not judged": none that could be is missed, and of some no request came in the measured window.
    """
    given = [result.get("slo"), *(kind.get("slo") for kind in result.get("classes") or [])]
    verdicts = [v for v in given if v and v.get("requests", 1)]
    empty = any(v and not v.get("requests", 1) for v in given)
    if not verdicts:
        return ("not judged", False) if empty else ("", None)
    holds = all(v["holds"] for v in verdicts)
    close = (
        any(v.get("close") for v in verdicts)
        if holds
        else all(v.get("close") for v in verdicts if not v["holds"])
    )
    if empty and (holds or close):
        return "not judged", False
    return "close" if close else "met" if holds else "missed", holds


def overload_of(result: Mapping[str, Any]) -> tuple[float, float] | None:
    """Offered and sustainable requests per second of an overloaded run, else None."""
    recorded = result.get("overload")
    return (float(recorded["offered_per_s"]), float(recorded["sustainable_per_s"])) if recorded else None


SEVERAL = " + "
"""Between kinds of hardware, where pools differ."""


def outcome_columns(result: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a finished point, from its `result.json`."""
    row: dict[str, Any] = {}
    row["slo"], row["slo_holds"] = judged(result)
    deployed = {"data_parallel": 1, **result["deployment"]}
    row |= {name: deployed[name] for name in DEPLOYED}
    if "pools" in deployed:
        row["hardware"] = SEVERAL.join(dict.fromkeys(pool["hardware"] for pool in deployed["pools"]))
    if "fleet" in result:  # on average
        row["devices"] = whole(round(result["cost"]["devices"], 2))
    for metric in LATENCIES:
        stats = result["metrics"][metric]
        row |= {f"{metric}_{name}": stats[name] for name in STATISTICS}
    row |= {name: result["totals"][name] for name in TOTALS}
    row["would_end_s"] = (result.get("batch_cut") or {}).get("ends_s")
    row["lost"] = "; ".join(f"{count} {name}" for name, count in result["totals"]["reasons"].items())
    over = overload_of(result)
    row["overloaded"] = over is not None
    row["sustainable_per_s"] = over[1] if over else None
    row |= {name: result["server"][name] for name in SERVER}
    found = result.get("headroom") or {}
    row |= {f"headroom_{name}": found.get(name) for name in HEADROOM}
    row |= {name: result["cost"][name] for name in COST}
    row[COST_HIGH] = ((result["cost"].get("interval") or {}).get("usd_per_1m_total_tokens") or (None, None))[1]
    row["usd_per_gpu_hour"] = result["cost"]["ListUnitPrice"]
    row["price_date"] = result["cost"]["price_date"] or None
    row["outside"] = "; ".join(result["extrapolation"]["axes"])
    row["warnings"] = WARNING_ENDS.join(result["warnings"])
    return row


def empty_columns() -> dict[str, Any]:
    """The columns of a point that did not finish: nothing known."""
    names = ["slo_holds", *DEPLOYED, *(f"{m}_{s}" for m in LATENCIES for s in STATISTICS), *TOTALS]
    names += ["would_end_s", "overloaded", "sustainable_per_s", *SERVER, *(f"headroom_{name}" for name in HEADROOM), *COST]
    names += [COST_HIGH, "usd_per_gpu_hour", "price_date"]
    return {"slo": "", **dict.fromkeys(names), "lost": "", "outside": "", "warnings": ""}
