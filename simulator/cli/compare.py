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

DIFFERENCE = 9
"""Columns of a relative difference beside its value."""


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

    lines = []
    several = len(found.columns) > 2
    for number, column in enumerate(found.columns, start=1):
        facts = [f"{k} {v}" for k, v in column.facts.items()]
        if several and column.scenario is not None:
            facts += [f"{path.split('.')[-1]} {_value(values[number - 1])}" for path, values in found.changes]
        lines.append(
            wrapped(f"{number}  {column.label} ({column.kind}{'; ' + ', '.join(facts) if facts else ''})", "   ")
        )
    head = ["", "1", *(f"{number}{'to 1':>{DIFFERENCE}}" for number in range(2, len(found.columns) + 1))]
    rows = []
    for row in found.rows:
        values = [column.values.get(row) for column in found.columns]
        shown = [f"{v:,.0f}" if v is not None and row.startswith(COUNTS) else short(v) for v in values]
        for i in range(1, len(found.columns)):
            difference = found.difference(row, i)
            shown[i] += f"{'' if difference is None else f'{difference:+.1%}':>{DIFFERENCE}}"
        rows.append([_title(row), *shown])
    lines += ["", *table(head, rows)]
    orders = [(i, _order(found, i)) for i in range(1, len(found.columns))]
    if any(words for _, words in orders):
        lines.append("")
        lines += [wrapped(f"order  by the model's error {words}", "       ") for _, words in orders if words]
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


def _order(found: Comparison, column: int) -> str:
    """How sure it is that a column lies where it is predicted to, below the first or above."""
    from simulator.results.ranking import percent

    told = []
    for row in RANKED:
        below, difference = found.below(row, column) if row in found.rows else None, found.difference(row, column)
        if below is not None and difference:
            lower, share = (column + 1, below) if difference < 0 else (1, 1 - below)
            told.append(f"{_title(row).removesuffix(', ms')} of {lower} ({percent(share)})")
    higher = f"of 1 and {column + 1} the lower is"
    return f"{higher} {', '.join(told)}" if told else ""


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
        .replace("vllm duration s", "duration to last end, s")
    )
