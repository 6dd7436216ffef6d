"""`compare`: runs, and files that other tools measured, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulator.planning.compare import Comparison

TITLES = {
    "ttft_ms": "TTFT",
    "tpot_ms": "TPOT",
    "itl_ms": "ITL",
    "ntpot_ms": "E2E / n",
    "e2el_ms": "E2E",
    "queue_ms": "queue",
}
COUNTS = (
    "completed",
    "failed",
    "rejected",
    "unfinished",
    "max_concurrent_requests",
    "num_preemptions",
    "reasons.",
)

DIFFERENCE, SURE = 9, 11
"""Columns of a relative difference beside its value, and of how sure its sign is."""
MANY = 9.0
"""Relative differences that are told as a factor."""
LEAST_DIFFERENCE = 5e-4
"""Relative differences of which it is told how sure they are: those that are not shown as zero."""
SAME_RATE = 0.02
"""Relative difference in requests a second up to which two runs answer the same load."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command()
    def compare(
        runs: Annotated[
            list[Path],
            typer.Argument(
                metavar="RUN_OR_FILE...",
                help="Run folders, and result files of vllm bench serve, SGLang, aiperf, guidellm or inference-perf.",
            ),
        ],
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object and nothing else.")
        ] = False,
    ) -> None:
        """Side by side: values, relative differences to the first, what changed in the scenario."""
        run(runs, as_json)


def run(paths: list[Path], as_json: bool) -> None:
    """Print the comparison."""
    from hardware_profiles.errors import InputError
    from simulator.io.text import json_text
    from simulator.planning.compare import compare, read_columns_of

    columns = [column for path in paths for column in read_columns_of(path)]
    if len(columns) < 2:
        raise InputError(
            "one run alone cannot be compared", where=str(paths[0]), mend="name a second run or measured file"
        )
    found = compare(columns)
    if as_json:
        print(json_text(found.as_dict()), end="")
    else:
        print(text(found))


def text(found: Comparison) -> str:
    """The comparison as a table; columns are numbered, and named above it."""
    from simulator.cli.layout import table, wrapped
    from simulator.report.numbers import short
    from simulator.results.ranking import percent

    lines = []
    several = len(found.columns) > 2
    for number, column in enumerate(found.columns, start=1):
        facts = [f"{k} {v}" for k, v in column.facts.items()]
        if several and column.scenario is not None:
            facts += [f"{path.split('.')[-1]} {_value(values[number - 1])}" for path, values in found.changes]
        lines.append(
            wrapped(f"{number}  {column.label} ({column.kind}{'; ' + ', '.join(facts) if facts else ''})", "   ")
        )
    others = range(1, len(found.columns))
    told = {(row, i): _sure(found, row, i) for row in found.rows for i in others}
    judged = {i for (_, i), share in told.items() if share is not None}
    head = ["", "1", *(f"{i + 1}{'to 1':>{DIFFERENCE}}" + (f"{'sure':>{SURE}}" if i in judged else "") for i in others)]
    rows = []
    for row in found.rows:
        values = [column.values.get(row) for column in found.columns]
        shown = [f"{v:,.0f}" if v is not None and row.startswith(COUNTS) else short(v) for v in values]
        for i in others:
            difference, share = found.difference(row, i), told[row, i]
            shown[i] += f"{'' if difference is None else _signed(difference):>{DIFFERENCE}}"
            if i in judged:
                shown[i] += f"{'' if share is None else percent(share):>{SURE}}"
        rows.append([_title(row), *shown])
    lines += ["", *table(head, rows)]
    if judged:
        lines += ["", wrapped(f"sure   {LEGEND}", "       ")]
        lines += [wrapped(f"       {_verdict(found, told, i)}", "       ") for i in sorted(judged)]
    if _answer_alike(found):
        lines += ["", wrapped(f"note   {KEEP_UP}", "       ")]
    if found.changes and not several:
        lines += ["", "changed in the scenario"]
        lines += [wrapped(f"  {path}: " + " -> ".join(map(_value, values)), "    ") for path, values in found.changes]
    elif not found.changes and sum(c.scenario is not None for c in found.columns) > 1:
        lines += ["", "the scenarios are the same"]
    notes = [(i, note) for i, column in enumerate(found.columns, start=1) for note in column.notes]
    if notes:
        lines.append("")
        lines += [wrapped(f"note: {i}: {note}", "      ") for i, note in notes]
    return "\n".join(lines)


RANKED = ("ttft_ms.mean", "tpot_ms.mean", "e2el_ms.mean", "usd_per_1m_total_tokens")
"""Rows of which the order is told."""


LEGEND = "that a difference has this sign in truth, by the errors of both predictions; below 90 % it is too close to call"
KEEP_UP = (
    "all answer this load at the same rate, so throughput and cost say nothing of how much more each could take; "
    "`capacity-plan simulate SCENARIO --headroom` finds that"
)


def _sure(found: Comparison, row: str, column: int) -> float | None:
    """How sure the sign of a difference to the first is; None where it is not known or there is none."""
    below, difference = found.below(row, column), found.difference(row, column)
    if below is None or difference is None or abs(difference) < LEAST_DIFFERENCE:
        return None
    return below if difference < 0 else 1 - below


def _signed(difference: float) -> str:
    """A relative difference with its sign, from ten times on as a factor; what rounds to nothing has no sign of its own."""
    if difference >= MANY:
        from simulator.report.numbers import short

        return f"x{short(1 + difference)}"
    return f"{round(difference, 3) + 0.0:+.1%}"


def _verdict(found: Comparison, told: dict[tuple[str, int], float | None], column: int) -> str:
    """Which differences to the first are sure, and which are not."""
    from simulator.results.ranking import sure

    certain, close = [], []
    for row in (row for row in RANKED if row in found.rows):
        share, name = told[row, column], _title(row).removesuffix(", ms")
        if share is not None and sure(share):
            certain.append(f"{name} {_signed(found.difference(row, column) or 0)}")
        elif share is not None:
            close.append(name)
    words = [f"sure: {', '.join(certain)}"] if certain else []
    words += [f"too close to call: {', '.join(close)}"] if close else []
    return f"{column + 1} to 1: {'; '.join(words) if words else 'no difference'}"


def _answer_alike(found: Comparison) -> bool:
    """Whether simulated runs of unlike deployments answer one load in full."""
    alike = all(abs(found.difference("request_throughput", i) or 0.0) < SAME_RATE for i in range(1, len(found.columns)))
    deployments = any(path.startswith("deployment.") for path, _ in found.changes)
    loads = any(path.startswith("workload.") for path, _ in found.changes)
    simulated = all(column.kind == "simulated" and not column.values.get("unfinished") for column in found.columns)
    return simulated and alike and deployments and not loads


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _title(row: str) -> str:
    metric, _, statistic = row.partition(".")
    if metric in TITLES:
        return f"{TITLES[metric]} {statistic}, ms"
    if metric == "reasons":
        from simulator.report.words import REASONS

        return next(f"- {named[statistic]}" for named in REASONS.values() if statistic in named)
    words: dict[str, Any] = {"input_tokens": "input tokens", "output_tokens": "output tokens"}
    if metric in words:
        return f"{words[metric]} {statistic}"
    return (
        row.replace("_", " ")
        .replace("usd per", "$ per")
        .replace(" 1m ", " 1M ")
        .replace("kv cache usage perc", "KV cache used")
        .replace("gpu busy", "GPU busy")
        .replace("vllm duration s", "duration to last end, s")
    )
