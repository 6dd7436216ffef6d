"""`calibrate results`: the scales of a deployment by a user's own result files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulator.calibration.results import Outcome

MEANING = {
    "prompt": "arithmetic of many tokens at once",
    "decode": "reading memory: the weights once a step, keys and values",
    "host": "the host's time in a step",
}
METRICS = {
    "ttft_mean_ms": "TTFT, ms", "tpot_mean_ms": "TPOT, ms", "itl_mean_ms": "ITL, ms", "e2e_ms": "E2E, ms", "step_ms": "step, ms",
    "output_tok_s": "output, 1/s", "prefill_tok_s": "prompt, 1/s", "decode_tok_s": "decode, 1/s",
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command("results")
    def results(
        files: Annotated[
            list[Path],
            typer.Argument(
                metavar="FILE...",
                help="Results of vllm bench serve, SGLang, aiperf, guidellm, inference-perf, llama-bench or llama-batched-bench.",
            ),
        ],
        scenario: Annotated[str, typer.Option(help="Scenario with the deployment that was measured.")],
        output: Annotated[
            Path | None, typer.Option("--output", "--out", help="File to write; none is overwritten.")
        ] = None,
        set_: Annotated[
            list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the scenario.")
        ] = None,
        any_scale: Annotated[
            bool, typer.Option("--any-scale", help="Take scales beyond a factor of 3 too.")
        ] = False,
        whole_steps: Annotated[
            bool,
            typer.Option("--whole-steps", help="Fit a law of whole steps to many rows of llama-bench, not scales."),
        ] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object and nothing else.")
        ] = False,
    ) -> None:
        """Fit scales of a deployment to measured result files, for `deployment.calibration` of a scenario."""
        run(files, scenario, output, set_ or [], any_scale=any_scale, whole_steps=whole_steps, as_json=as_json)


def run(
    files: list[Path],
    scenario: str,
    output: Path | None,
    overrides: list[str],
    *,
    any_scale: bool,
    whole_steps: bool,
    as_json: bool,
) -> None:
    """Fit, print, write."""
    from simulator.calibration.deployment import Deployment
    from simulator.calibration.results import calibrate_results, calibrate_whole_steps
    from simulator.cli.progress import progress, progress_done
    from simulator.io.rundir import check_new
    from simulator.io.text import json_text

    if output is not None:
        check_new(output)
    deployment = Deployment(scenario, tuple(overrides))
    if whole_steps:
        outcome = calibrate_whole_steps(files, deployment)
    else:
        outcome = calibrate_results(files, deployment, progress, any_scale=any_scale)
    progress_done()
    if output is not None:
        outcome.calibration.write(output)
    if as_json:
        left = [{"point": one.label, "reason": one.reason} for one in outcome.left]
        print(json_text({**outcome.calibration.as_dict(), "left_out": left, "notes": outcome.notes}), end="")
    else:
        print(text(outcome, output))


def text(outcome: Outcome, output: Path | None) -> str:
    """The outcome in words: a table before and after, the scales, what they are good for."""
    from simulator.cli.layout import table, wrapped
    from simulator.report.numbers import short

    found = outcome.calibration
    rows: list[dict[str, Any]] = [dict(row) for row in found.table]
    cells = [
        [row["point"], METRICS.get(row["metric"], row["metric"]), short(row["measured"]), *map(_percent, _errors(row))]
        for row in rows
    ]
    head = ["measured", "", "value", "before", "after", "left out"]
    lines = table(head, cells, drop=(5,), indent="")
    if len(rows) > 1:
        medians = [_median([error for row in rows if (error := _errors(row)[at]) is not None]) for at in range(3)]
        lines += ["", f"median error: {medians[0]} before, {medians[1]} after, {medians[2]} where left out of the fit"]
    lines.append("")
    if found.steps is not None:
        lines.append(wrapped("whole steps by a law of their own, for this deployment alone", "  "))
    for name, value in found.scales.items():
        said = f"{name:8}{value:.3g} times the profile's time, +-{math.expm1(found.log_std[name]):.0%} ({MEANING[name]})"
        lines.append(wrapped(said, " " * 8))
    together = [group for group in outcome.fit.groups if len(group) > 1] if outcome.fit is not None else []
    lines += [wrapped(f"{'':8}{' and '.join(group)} cannot be told apart: one scale for both", " " * 8) for group in together]
    stays = "stays 1" if found.steps is None else "is left"
    lines += [wrapped(f"{name:8}{stays}: it {why}", " " * 8) for name, why in found.unidentified.items()]
    lines.append("")
    for metric, width in found.interval.items():
        lines.append(f"{metric.upper()} of such a deployment: 90 % within a factor of {math.exp(width):.2f}")
    if found.held_out_error is None:
        lines.append(wrapped("none can be left out: the intervals are those of single measurements elsewhere", "  "))
    for row in outcome.fit.deaf if outcome.fit is not None else ():
        lines.append(wrapped(f"note: {row.point.label}: {METRICS.get(row.metric, row.metric)} tells nothing of step times", "  "))
    lines += [wrapped(f"left out: {one.label}: {one.reason}", "  ") for one in outcome.left]
    lines += [wrapped(f"note: {said}", "  ") for said in outcome.notes]
    if output is not None:
        lines += ["", "for `deployment.calibration` of a scenario:", f"written {output}"]
    return "\n".join(lines)


def _errors(row: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    return row["before_error"], row["after_error"], row["left_out_error"]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _median(values: list[float]) -> str:
    import statistics

    return f"{statistics.median(map(abs, values)):.1%}" if values else "-"
