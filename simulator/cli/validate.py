"""`validate`: what was recorded or measured, beside what the simulator says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError
from simulator.cli.layout import table, wrapped


def _files(directory: Path, pattern: str) -> list[Path]:
    if not directory.is_dir():
        raise InputError("no such directory", where=str(directory), mend="name a directory that holds the recordings")
    found = sorted(directory.rglob(pattern))
    if not found:
        raise InputError(f"no {pattern} files in it", where=str(directory), mend="name the directory that holds them")
    return found


def schedules_command(directory: Path, as_json: bool) -> None:
    """Replay every recording below `directory`."""
    from simulator.validation.recordings import unreplayed
    from simulator.validation.schedules import replay

    scenarios, unreadable = [], []
    for path in _files(directory, "*.jsonl"):
        try:
            scenarios.append(replay(path))
        except InputError as error:
            unreadable.append(error)
            scenarios.append(unreplayed(path.stem, "unknown", 0, f"{error.where}: {error.message}"))
    if len(unreadable) == len(scenarios):
        raise unreadable[0]
    total, equal = sum(s["steps"] for s in scenarios), sum(s["equal"] for s in scenarios)
    if as_json:
        print(json.dumps({"scenarios": scenarios, "steps": total, "equal": equal}))
        return
    rows = [
        [s["name"], s["engine"], f"{s['steps']:,}", f"{s['equal']:,}", _outcome(s)]
        for s in scenarios
    ]
    print("\n".join(table(["recording", "engine", "steps", "equal", ""], rows, indent="", words=(0,))))
    print(f"\n{equal:,} of {total:,} steps equal")
    for s in scenarios:
        if _outcome(s) == "NOT REPLAYED":
            print(wrapped(f"{s['name']}: not replayed: {s['first_difference']['reason']}"[:400], "  "))
        elif s["first_difference"]:
            print(wrapped(f"{s['name']}: first difference {s['first_difference']}"[:400], "  "))


def _outcome(scenario: dict[str, Any]) -> str:
    difference = scenario["first_difference"]
    if difference is None:
        return "all equal"
    return "NOT REPLAYED" if "reason" in difference else "DIFFERS"


def kernels_command(directory: Path, as_json: bool) -> None:
    """Predict every kernel table in `directory`."""
    from hardware_profiles.kernel_validate import validate_kernels

    _files(directory, "*.parquet")
    report = validate_kernels(directory)
    if as_json:
        print(json.dumps(report))
        return
    rows = [
        [g["op"], g["gpu"], g["framework"], g["dtype"], f"{g['rows']:,}", f"{g['mape']:.1f} %"] for g in report["groups"]
    ]
    head = ["operation", "device", "framework", "format", "rows", "MAPE"]
    print("\n".join(table(head, rows, indent="", words=(0, 1, 3))))
    for g in report["skipped"]:
        print(wrapped(f"skipped {g['rows']:,} rows of {g['op']} {g['gpu']} {g['framework']} {g['dtype']}: {g['reason']}", "  "))


def runs_command(
    directory: Path,
    experiments: list[str],
    output: Path,
    report: Path | None,
    reports: Path | None,
    workers: int,
    as_json: bool,
) -> None:
    """Replay a suite of measured experiments and print the errors."""
    from simulator.cli.progress import progress, progress_done
    from simulator.report.fidelity_plot import write_plot
    from simulator.validation.contradictions import sift
    from simulator.validation.evidence import kinds
    from simulator.validation.report import SHOWN, coverage_by_holdout, fidelity
    from simulator.validation.reports import report_kinds, validate_reports
    from simulator.validation.runs import validate_runs
    from simulator.validation.suite import read_suite

    outcome = validate_runs(directory, tuple(experiments), workers, progress)
    progress_done()
    rows = sift(read_suite(directory))[0]
    _write_table(outcome["experiments"], output)
    if report is not None:
        known = kinds(rows)
        report.parent.mkdir(parents=True, exist_ok=True)
        published = validate_reports(reports, workers, progress) if reports is not None else None
        more, of_reports = report_kinds(published["cases"] if published is not None else [])
        evidence = {"experiments": [*outcome["experiments"], *more]}
        held = coverage_by_holdout(evidence, known | of_reports)
        page = fidelity(directory, rows, outcome, held, tuple(experiments), published)
        report.write_text(page, encoding="utf-8")
        whole = {"experiments": [e for e in outcome["experiments"] if e["id"] in known]}
        write_plot(whole, report.parent / "figures" / "fidelity.png")
    if as_json:
        print(json.dumps(outcome))
        return
    labels = dict(SHOWN)
    by_id: dict[str, dict[str, float]] = {}
    for e in outcome["experiments"]:
        by_id.setdefault(e["id"], {})[e["metric"]] = (e["predicted"] / e["measured"] - 1) * 100
    shown = [m for m in labels if any(m in d for d in by_id.values())]
    body = [[name, *(f"{d[m]:+.1f}" if m in d else "-" for m in shown)] for name, d in by_id.items()]
    print("\n".join(table(["predicted against measured, %", *(labels[m] for m in shown)], body, indent="", words=(0,))))
    print("\nmedian absolute error over whole runs that were not saturated:")
    for metric, value in outcome["medians"].items():
        if metric in labels:
            print(f"  {labels[metric]:14} {value:.1f} %")
    checked = [e["covered"] for e in outcome["experiments"] if e["covered"] is not None]
    if checked:
        print(f"  inside the 90 % interval: {100 * sum(checked) / len(checked):.0f} % of {len(checked):,} values")
    _print_one_factors(outcome["one_factor"], outcome["experiments"])
    _print_reasons(outcome["skipped"], "row")


def reports_command(path: Path, workers: int, as_json: bool) -> None:
    """Simulate a list of published measurements and print the errors."""
    from simulator.cli.progress import progress, progress_done
    from simulator.validation.reports import errors_by, validate_reports

    outcome = validate_reports(path, workers, progress)
    progress_done()
    if as_json:
        print(json.dumps(outcome))
        return
    cases = outcome["cases"]
    grouped = {
        "engine and device": lambda e: f"{e['group']['engine']} on {e['group']['gpu']}",
        "model family": lambda e: e["group"]["family"],
        "source": lambda e: "/".join(e["group"]["source"].split("/")[-2:]),
        "all": lambda e: "all",
    }
    for title, key in grouped.items():
        body = []
        for (group, metric), errors in errors_by(cases, key).items():
            covered = "-" if errors.coverage_pct is None else f"{errors.coverage_pct:.0f} %"
            middle, high, bias = errors.figures
            body.append([group, metric, str(len(errors.inside)), f"{middle:.1f}", f"{high:.1f}", f"{bias:+.1f}", covered])
        head = [title, "metric", "values", "median error %", "p90 %", "bias %", "in interval"]
        if body:
            print("\n".join(table(head, body, indent="", words=(0, 1))) + "\n")
    _print_one_factors(outcome["one_factor"], cases)
    for e in cases:
        if e["abs_pct_error"] is None:
            print(f"{e['id']}: reported '{e['reported']}', predicted '{e['predicted']}': {'right' if e['covered'] else 'WRONG'}")
    _print_reasons(outcome["skipped"], "value")


def _print_one_factors(hosts: list[dict[str, Any]], judged: list[dict[str, Any]]) -> None:
    """Who differs by one factor at every load, and the median error of the others."""
    from simulator.validation.one_factor import without

    for found in hosts:
        rest = without(judged, found)
        others = f"; without it {found['metric']} is {rest:.1f} % off in the median" if rest is not None else ""
        page = "/".join(found["source"].split("/")[-2:])
        said = (
            f"{page}, {found['family']} by {found['engine']} on {found['gpu']}: at every load {found['metric']} is "
            f"{found['factor']:.2f} times the measured ({found['low']:.2f} to {found['high']:.2f}, {len(found['ids'])} values), "
            f"as of another host, clock or release, or of a part of every step that is not modelled{others}"
        )
        print(wrapped(said, "  "))


def _print_reasons(skipped: list[dict[str, str]], what: str) -> None:
    reasons: dict[str, int] = {}
    for entry in skipped:
        reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        print(wrapped(f"skipped {count:,} {what if count == 1 else what + 's'}: {reason}", "  "))


def _write_table(experiments: list[dict[str, object]], path: Path) -> None:
    import numpy as np

    from simulator.io.tables import write_columns

    write_columns(
        {
            "experiment": [str(e["id"]) for e in experiments],
            "metric": [str(e["metric"]) for e in experiments],
            "measured": np.array([e["measured"] for e in experiments], dtype=float),
            "predicted": np.array([e["predicted"] for e in experiments], dtype=float),
            "error": np.array([e["abs_pct_error"] for e in experiments], dtype=float),
            "interval": [e["interval"] for e in experiments],
            "covered": [None if e["covered"] is None else bool(e["covered"]) for e in experiments],
        },
        path,
    )
