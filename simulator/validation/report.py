"""`docs/fidelity.md`: measured against predicted, generated from the outcome of `validate runs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine_models.engines.known import engine_named
from simulator.results.intervals import half_width
from simulator.validation.engines import PUBLISHED
from simulator.validation.evidence import Kind, device_name, kinds, model_class, set_aside

SHOWN = (
    ("ttft_mean_ms", "TTFT mean"),
    ("ttft_p99_ms", "TTFT p99"),
    ("itl_mean_corrected_ms", "ITL"),
    ("tpot_mean_ms", "TPOT"),
    ("e2e_mean_ms", "E2E mean"),
    ("e2e_p99_ms", "E2E p99"),
    ("output_throughput_tok_s", "output tok/s"),
)


def _cell(values: list[float]) -> str:
    return f"{float(np.median(values)):.1f} ({len(values)})" if values else "-"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---" for _ in head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _by(report: dict[str, Any], key: dict[str, str]) -> dict[str, dict[str, list[float]]]:
    groups: dict[str, dict[str, list[float]]] = {}
    for e in report["experiments"]:
        name = key.get(e["id"])
        if name is not None:
            groups.setdefault(name, {}).setdefault(e["metric"], []).append(e["abs_pct_error"])
    return groups


def _error_table(title: str, report: dict[str, Any], key: dict[str, str]) -> list[str]:
    groups = _by(report, key)
    metrics = [(m, label) for m, label in SHOWN if any(m in g for g in groups.values())]
    rows = [[name, *(_cell(groups[name].get(m, [])) for m, _ in metrics)] for name in sorted(groups)]
    return [f"### {title}", "", *_table(["", *(label for _, label in metrics)], rows), ""]


def _peers(directory: Path, report: dict[str, Any]) -> list[str]:
    """The other simulators on the same runs: median absolute error over the runs that both predict."""
    path = directory / "peer_predictions.parquet"
    if not path.is_file():
        return []
    import pyarrow.parquet as pq

    ours = {(e["id"], e["metric"]): e["abs_pct_error"] for e in report["experiments"]}
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in pq.read_table(path).to_pylist():
        if row.get("saturated") or row.get("abs_pct_error") is None or row.get("primary") is False:
            continue
        mine = ours.get((row["id"], row["metric"]))
        if mine is not None:
            pairs.setdefault((row["simulator"], row["metric"]), []).append((row["abs_pct_error"], mine))
    if not pairs:
        return []
    labels = dict(SHOWN)
    rows = [
        [sim, labels.get(metric, metric), str(len(p)), *(f"{np.median(side):.1f}" for side in zip(*p, strict=True))]
        for (sim, metric), p in sorted(pairs.items())
        if len(p) >= 3
    ]
    return [
        "## Beside the other simulators, on the same runs",
        "",
        "Median absolute error [%] over the runs that both predict (their figures as the suite holds them). Some of theirs were "
        "fitted on these very runs.",
        "",
        *_table(["simulator", "metric", "runs", "theirs", "capacity-plan"], rows),
        "",
    ]


def write_plot(report: dict[str, Any], path: Path) -> None:
    """Predicted against measured, one panel a metric, logarithmic; the dashed lines are 10 % apart from equal."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [(m, label) for m, label in SHOWN if sum(e["metric"] == m for e in report["experiments"]) > 2][:6]
    figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
    for axis, (metric, label) in zip(axes.flat, chosen, strict=False):
        points = np.array([(e["measured"], e["predicted"]) for e in report["experiments"] if e["metric"] == metric])
        low, high = points.min() * 0.8, points.max() * 1.25
        axis.plot([low, high], [low, high], color="0.3", lw=1)
        for factor in (0.9, 1.1):
            axis.plot([low, high], [low * factor, high * factor], color="0.6", lw=0.8, ls="--")
        axis.scatter(points[:, 0], points[:, 1], s=9, alpha=0.6, color="tab:blue", lw=0)
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="measured", ylabel="predicted")
        unit = "" if "tok/s" in label else " [ms]"
        axis.set_title(f"{label}{unit}, {len(points)} values", fontsize=10)
    for axis in list(axes.flat)[len(chosen) :]:
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def fidelity(
    directory: Path,
    rows: list[dict[str, Any]],
    report: dict[str, Any],
    coverage: list[dict[str, Any]],
    only: tuple[str, ...] = (),
) -> str:
    """The fidelity page as Markdown; `only` are the parts of ids to which the replay was restricted."""
    known = kinds(rows)
    by_id = {row["id"]: row for row in rows if row["id"] in known}

    def key(name: Any) -> dict[str, str]:
        return {i: name(row) for i, row in by_id.items()}

    fitted = "; ".join(f"of {engine_named(name).title} {p.fitted}" for name, p in PUBLISHED.items() if p.fitted)
    lines = [
        "# Fidelity: measured against predicted",
        "",
        "Generated by `capacity-plan validate runs DIR --report docs/fidelity.md`; do not edit. Each figure is the median "
        "absolute error [%] over whole runs that were not saturated, with the number of values in brackets. Runs of low trust "
        "and runs that the suite marks unverified are left out.",
        "",
        f"What is fitted to end-to-end runs: {fitted}. Everything else is kernel measurements and physics. "
        "How: [accuracy](background/accuracy.md).",
        "",
        *(
            [f"This page replays the experiments whose id contains one of: {', '.join(f'`{o}`' for o in only)}.", ""]
            if only
            else []
        ),
        "![predicted against measured](figures/fidelity.png)",
        "",
        "## Error",
        "",
        *_error_table("By source", report, key(lambda r: str(r.get("source", "-")))),
        *_error_table("By engine and hardware", report, key(lambda r: f"{r['engine']} on {device_name(r)}")),
        *_error_table("By model class and hardware", report, key(lambda r: f"{model_class(r)} on {device_name(r)}")),
        *_error_table("By model", report, key(lambda r: f"{r['model']} ({r.get('precision', '-')}) on {device_name(r)}")),
        *_peers(directory, report),
        *_set_aside(report, rows),
    ]
    if coverage:
        lines += [
            "## Do the stated intervals hold?",
            "",
            "Share of measurements inside the 90 % interval when the model (hardware, workload) they belong to was left out "
            "of deriving it, and the median half-width of that interval. \"All, by experiment\" counts an experiment once, "
            "whatever the number of its metrics.",
            "",
            *_table(
                ["left out", "metric", "values", "inside [%]", "half-width [%]"],
                [
                    [c["group"], c["metric"], str(c["n"]), f"{c['inside_pct']:.0f}", f"{c['half_width_pct']:.1f}"]
                    for c in coverage
                ],
            ),
            "",
        ]
    reasons: dict[str, int] = {}
    for entry in report["skipped"]:
        reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    lines += [
        "## What could not be replayed",
        "",
        *_table(["rows", "why"], [[str(n), reason] for reason, n in sorted(reasons.items(), key=lambda item: -item[1])]),
        "",
        "## What is not modelled",
        "",
        "- the cost of a server's first requests after start-up (compilation, allocator growth): p99 of short runs is low by it;",
        "- client-side hiccups, restarts, clock throttling and neighbours on shared hosts;",
        "- prefill/decode disaggregation, LoRA, multimodal encoders.",
        "",
        "## How to repeat it",
        "",
        "```text",
        "capacity-plan validate runs DIR                # any suite in this format",
        "capacity-plan validate runs DIR --json         # one value a line, with its interval",
        "capacity-plan validate schedules DIR           # scheduling decisions, step by step",
        "capacity-plan validate kernels DIR             # kernel timings",
        "```",
        "",
    ]
    return "\n".join(lines)


def _set_aside(report: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Replayed runs that stand in no figure above and behind no interval, with the reason and their error."""
    why = {row["id"]: set_aside(row) for row in rows if not row.get("saturated")}
    found: dict[str, dict[str, list[float]]] = {}
    for e in report["experiments"]:
        if why.get(e["id"]):
            found.setdefault(why[e["id"]], {}).setdefault(e["metric"], []).append(e["abs_pct_error"])
    if not found:
        return []
    table = [[reason, *(_cell(metrics.get(name, [])) for name, _ in SHOWN)] for reason, metrics in sorted(found.items())]
    return ["## Replayed, and set aside", "", *_table(["why", *(label for _, label in SHOWN)], table), ""]


LEFT_OUT = ("model", "hardware", "workload")
FEWEST_SHOWN = 5


def coverage_by_holdout(report: dict[str, Any], known: dict[str, Kind]) -> list[dict[str, Any]]:
    """Derive the widths without each model (hardware, workload) in turn; how many of its measurements fall inside.

    A line a metric, and one over all metrics in which every experiment counts once, whatever the number of its metrics.
    """
    out: dict[tuple[str, str, str], list[tuple[str, bool, float]]] = {}
    for axis in LEFT_OUT:
        for name in sorted({getattr(kind, axis) for kind in known.values()}):
            for group, metric, run, inside, width in _held_out(report, known, axis, name):
                for line in (metric, ALL_METRICS):
                    out.setdefault((axis, group, line), []).append((run, inside, width))
    return [
        {
            "group": f"one {axis}: {group}",
            "metric": dict(SHOWN).get(metric, metric),
            "n": len(values),
            "inside_pct": 100 * _share_by_run(values),
            "half_width_pct": float(np.expm1(np.median([width for *_, width in values]))) * 100,
        }
        for (axis, group, metric), values in sorted(out.items())
        if len(values) >= FEWEST_SHOWN
    ]


ALL_METRICS = "all, by experiment"


def _share_by_run(values: list[tuple[str, bool, float]]) -> float:
    """Share inside, each run weighing the same."""
    runs: dict[str, list[bool]] = {}
    for run, inside, _ in values:
        runs.setdefault(run, []).append(inside)
    return float(np.mean([np.mean(found) for found in runs.values()]))


def _held_out(
    report: dict[str, Any], known: dict[str, Kind], axis: str, name: str
) -> Iterator[tuple[str, str, str, bool, float]]:
    """(group, metric, run, inside, log half-width) of each measurement of one model, hardware or workload, left out.

    Open loops of which nothing else is left (all are of that hardware) are not judged.
    """
    from simulator.validation.intervals import derive, split_name

    def left_out(run: str) -> bool:
        return run in known and getattr(known[run], axis) == name

    widths = derive(report["experiments"], known, exclude=left_out)
    for e in report["experiments"]:
        named = split_name(e["metric"])
        if named is None or not left_out(e["id"]):
            continue
        evidence = known[e["id"]].evidence
        if not evidence.closed_loop and evidence.group() not in widths:
            continue
        shares = (e.get("queue_share") or 0.0, e.get("ttft_share") or 0.0)
        width, _ = half_width(evidence, *named, *shares, groups=widths)
        inside = abs(np.log(e["predicted"] / e["measured"])) <= width
        yield evidence.group(), e["metric"], e["id"], bool(inside), width
