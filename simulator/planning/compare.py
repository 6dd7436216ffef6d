"""Runs and measurements side by side: values, relative differences to the first, and what changed in the scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.cluster.outcome import LOSSES
from simulator.planning.measured_files import read_measured
from simulator.results.ranking import Estimate, confidence

LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "ntpot_ms", "e2el_ms", "queue_ms")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
TOTALS = ("request_throughput", "request_goodput", "goodput_fraction", "input_throughput", "output_throughput",
          "total_token_throughput", "completed", "failed", "rejected", "unfinished", "max_concurrent_requests",
          "vllm_duration_s")  # fmt: skip
SERVER = ("gpu_busy_fraction", "kv_cache_usage_perc", "prefix_cache_hit_rate", "num_preemptions")
COST = ("usd_per_hour", "usd_per_1m_total_tokens", "usd_per_1m_output_only")

WHY_LOST = tuple(f"reasons.{reason.name.lower()}" for reason in LOSSES)
"""Counts of requests without an answer, 0 in a run without any; shown where some run has them."""
RUNS_NAMED = 8
"""Runs of a sweep that an error names."""


@dataclass(frozen=True)
class Column:
    """One run or measurement: its name, the tool, values by row name, and the scenario where there is one."""

    label: str
    kind: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    scenario: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    deployed: Mapping[str, Any] = field(default_factory=dict)

    def estimate(self, row: str) -> Estimate | None:
        """A value with what it may be off by; None where that is not known."""
        return Estimate.of(self.values.get(row), self.intervals.get(row), self.deployed)


@dataclass(frozen=True)
class Comparison:
    """The table: rows that at least two columns know, in a fixed order; the first column is the reference."""

    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    changes: tuple[tuple[str, tuple[Any, ...]], ...]

    def difference(self, row: str, column: int) -> float | None:
        """Return value / reference - 1, or None where one of both is unknown or the reference is zero."""
        value, reference = (self.columns[i].values.get(row) for i in (column, 0))
        return None if value is None or not reference else value / reference - 1

    def below(self, row: str, column: int) -> float | None:
        """Probability, by the model's error, that a column's value is truly below the reference's; None if it is not known."""
        one, reference = (self.columns[i].estimate(row) for i in (column, 0))
        return None if one is None or reference is None else confidence(one, reference)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return {
            "reference": self.columns[0].label,
            "columns": [
                {"label": c.label, "kind": c.kind, "facts": dict(c.facts), "notes": list(c.notes)}
                for c in self.columns
            ],
            "rows": [
                {
                    "metric": row,
                    "values": [c.values.get(row) for c in self.columns],
                    "relative_difference": [
                        self.difference(row, i) if i else None for i in range(len(self.columns))
                    ],
                    "below_reference": [self.below(row, i) if i else None for i in range(len(self.columns))],
                    "interval": [
                        list(c.intervals[row]) if row in c.intervals else None for c in self.columns
                    ],
                }
                for row in self.rows
            ],
            "scenario_changes": [{"field": path, "values": list(values)} for path, values in self.changes],
        }


def read_columns_of(path: Path) -> list[Column]:
    """Return the column of a run folder, or those of a measured file."""
    if path.is_dir():
        if (path / "sweep.json").is_file():
            raise _a_sweep(path)
        return [_of_run(path)]
    try:
        measured = read_measured(path)
    except InputError:
        if _is_scenario(path):
            raise _a_scenario(path) from None
        raise
    return [Column(m.label, m.kind, flat(m.metrics, m.totals), {}, None, m.facts, m.notes) for m in measured]


def _is_scenario(path: Path) -> bool:
    """Whether a file has the sections of a scenario."""
    from hardware_profiles.files import read_text
    from simulator.workload.tables import yaml_document

    if path.suffix.lower() not in (".yaml", ".yml"):
        return False
    document = yaml_document(read_text(path), str(path))
    return isinstance(document, Mapping) and {"deployment", "workload"} <= document.keys()


def _a_scenario(path: Path) -> InputError:
    """The error for a scenario where a run is wanted."""
    return InputError(
        "this is a scenario, not a run",
        where=str(path),
        mend=f"simulate it (`capacity-plan simulate {path}`), and name the folder that it writes",
    )


def _a_sweep(folder: Path) -> InputError:
    """The error for a sweep where a run is wanted, with the runs to name."""
    from simulator.planning.store import read_sweep

    found = [
        (
            ", ".join(f"{path.split('.')[-1]} {text}" for path, text in point["values"].items()),
            folder / "runs" / point["run"],
        )
        for point in read_sweep(folder)["points"]
        if (folder / "runs" / point["run"]).is_dir()
    ]
    if not found:
        return InputError(
            "this is a sweep without a finished run", where=str(folder), mend="run it again with --resume"
        )
    listed = "; ".join(f"{label}: {run}" for label, run in found[:RUNS_NAMED])
    more = f"; and {len(found) - RUNS_NAMED} more in sweep.csv" if len(found) > RUNS_NAMED else ""
    return InputError(
        f"this is a sweep of {len(found)} {'run' if len(found) == 1 else 'runs'}, not a run",
        where=str(folder),
        mend=f"name its runs to compare: {listed}{more}",
    )


def flat(*groups: Mapping[str, Any]) -> dict[str, float]:
    """Join {metric: {statistic: value}} and {name: value} into {"ttft_ms.p99": value, "completed": value}."""
    out: dict[str, float] = {}
    for group in groups:
        for name, value in group.items():
            if isinstance(value, Mapping):
                out |= {f"{name}.{s}": v for s, v in value.items() if _is_number(v)}
            elif _is_number(value):
                out[name] = value
    return out


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_run(folder: Path) -> Column:
    from simulator.io.rundir import read_run
    from simulator.io.tables import read_columns

    read = read_run(folder)
    result, manifest = read["result"], read["manifest"]
    values = dict.fromkeys(WHY_LOST, 0.0)
    values |= flat(result["metrics"], result["totals"], result["server"], result["cost"])
    intervals = {
        f"{metric}.{statistic}": (pair[0], pair[1])
        for metric, stats in result["metrics"].items()
        for statistic, pair in (stats.get("interval") or {}).items()
        if pair
    }
    for group in ("totals", "cost"):
        found = result[group].get("interval") or {}
        intervals |= {name: (pair[0], pair[1]) for name, pair in found.items() if pair}
    if read["requests"] is not None:
        values |= _normalised(read_columns(read["requests"]), manifest.get("scenario") or {})
    label, deployed = result.get("run_id") or folder.name, result["deployment"]
    return Column(label, "simulated", values, intervals, manifest.get("scenario"), _verdict(result), deployed=deployed)


def _verdict(result: Mapping[str, Any]) -> dict[str, str]:
    """Whether the SLO holds, for certain or closely, or those of classes that have their own."""

    def word(slo: Mapping[str, Any]) -> str:
        return "close" if slo["close"] else "holds" if slo["holds"] else "missed"

    classes = [f"{kind['name']} {word(kind['slo'])}" for kind in result.get("classes", ()) if kind["slo"]]
    slo = result.get("slo")
    if classes:
        return {"SLO": ", ".join(classes)}
    return {"SLO": word(slo)} if slo else {}


def _normalised(requests: Mapping[str, Any], scenario: Mapping[str, Any]) -> dict[str, float]:
    """E2E / output tokens of the requests of the measured window, which guidellm and inference-perf report."""
    import numpy as np

    load = scenario.get("workload") or {}
    low, high = load.get("warmup") or 0.0, load.get("duration") or float("inf")
    arrival, e2el = requests["arrival_s"].astype(float), requests["e2el_ms"].astype(float)
    tokens = requests["output_tokens"].astype(float)
    keep = (arrival >= low) & (arrival <= high) & ~np.isnan(e2el) & (tokens > 0)
    if not keep.any():
        return {}
    values = e2el[keep] / tokens[keep]
    percentiles = {f"ntpot_ms.p{p}": float(np.percentile(values, p)) for p in (50, 90, 95, 99)}
    return {"ntpot_ms.mean": float(values.mean()), **percentiles}


def compare(columns: Sequence[Column]) -> Comparison:
    """Set columns side by side."""
    order = [f"{metric}.{statistic}" for metric in LATENCIES for statistic in STATISTICS]
    lost = [row for row in WHY_LOST if any(c.values.get(row) for c in columns)]
    order += [*TOTALS, *lost, "input_tokens.mean", "output_tokens.mean", *SERVER, *COST]
    rows = [row for row in order if sum(row in c.values for c in columns) > 1]
    return Comparison(tuple(columns), tuple(rows), tuple(changes_of(columns)))


def changes_of(columns: Sequence[Column]) -> list[tuple[str, tuple[Any, ...]]]:
    """Fields in which the scenarios differ, with the value of each column that has one (others None)."""
    scenarios = [leaves(c.scenario) if c.scenario is not None else None for c in columns]
    known = [s for s in scenarios if s is not None]
    if len(known) < 2:
        return []
    paths = list(dict.fromkeys(path for s in known for path in s))
    return [
        (path, tuple(None if s is None else s.get(path) for s in scenarios))
        for path in paths
        if any(s.get(path) != known[0].get(path) for s in known)
    ]


def leaves(data: Any, path: str = "") -> dict[str, Any]:
    """Return the values of nested data by dotted path; an only pool's fields are the deployment's."""
    if isinstance(data, Mapping) and data:
        pairs: list[tuple[str, Any]] = [(str(k), v) for k, v in data.items()]
    elif isinstance(data, list) and data:
        pairs = [(str(i), v) for i, v in enumerate(data)]
        if path == "deployment.pools" and len(data) == 1:
            return leaves(data[0], "deployment")
    else:
        return {path: data}
    out: dict[str, Any] = {}
    for key, value in pairs:
        out |= leaves(value, f"{path}.{key}" if path else key)
    return out
