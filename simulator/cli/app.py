"""The commands of `capacity-plan`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="capacity-plan",
    help="Predict latency tails, KV-cache pressure, goodput and cost of serving a language model, before you buy or rent "
    "hardware.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
validate_app = typer.Typer(help="Compare the simulator with what was recorded or measured.", no_args_is_help=True)
trace_app = typer.Typer(help="Request traces: statistics, conversion, generation.", no_args_is_help=True)
app.add_typer(validate_app, name="validate")
app.add_typer(trace_app, name="trace")

ScenarioArgument = Annotated[str, typer.Argument(help="Scenario file, or the name of a shipped scenario.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Replace a field, such as deployment.replicas=4.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def version_callback(value: bool) -> None:
    """Print the version."""
    if value:
        from simulator.version import VERSION, build

        print(f"capacity-plan {VERSION} ({build()})")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=version_callback, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


@app.command("simulate")
def simulate(
    scenario: ScenarioArgument,
    set_: SetOption = None,
    output: Annotated[Path, typer.Option(help="Folder in which the run directory is made.")] = Path("runs"),
    seed: Annotated[int | None, typer.Option(help="Seed of all random streams.", min=0)] = None,
    plots: Annotated[bool, typer.Option("--plots", help="Add PNG plots under plots/.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Add trace.json.gz for ui.perfetto.dev: steps, queues, memory, requests, transfers.")
    ] = False,
    save_cache: Annotated[
        Path | None, typer.Option("--save-cache", help="Write what the prefix caches hold at the end, for `warm_cache`.")
    ] = None,
    headroom: Annotated[
        bool, typer.Option("--headroom", help="Find the highest load that it sustains and that keeps the SLO, by short runs.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 outside the calibrated domain.")] = False,
    fail_on_slo: Annotated[bool, typer.Option("--fail-on-slo", help="Exit 3 if the SLO is missed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run one scenario; print a summary and write the run directory."""
    from simulator.cli.simulate import simulate_command

    simulate_command(
        scenario,
        set_ or [],
        output,
        seed=seed,
        plots=plots,
        trace=trace,
        save_cache=save_cache,
        headroom=headroom,
        strict=strict,
        fail_on_slo=fail_on_slo,
        as_json=as_json,
    )


@app.command("check")
def check(scenario: ScenarioArgument, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Validate without running: what would be deployed, the memory of each GPU, how many requests fit."""
    from simulator.cli.check import check_command

    check_command(scenario, set_ or [], as_json)


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="engines, hardware, models, traces or scenarios.")],
    as_json: JsonOption = False,
) -> None:
    """List what is known."""
    from simulator.cli.catalogues import list_command

    list_command(kind, as_json)


@app.command("show")
def show(
    kind: Annotated[str, typer.Argument(help="engine, hardware, model, trace or scenario.")],
    name: Annotated[str, typer.Argument(help="Its name.")],
    as_json: JsonOption = False,
) -> None:
    """Show one entry with the source of every number."""
    from simulator.cli.catalogues import show_command

    show_command(kind, name, as_json)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of the scenario, for editors."""
    import json

    from simulator.config.load import json_schema

    print(json.dumps(json_schema(), indent=2))


@validate_app.command("schedules")
def validate_schedules(
    directory: Annotated[Path, typer.Argument(help="Directory of recorded schedules (*.jsonl).")],
    as_json: JsonOption = False,
) -> None:
    """Replay recorded schedules through the scheduler model, step by step."""
    from simulator.cli.validate import schedules_command

    schedules_command(directory, as_json)


@validate_app.command("runs")
def validate_runs(
    directory: Annotated[Path, typer.Argument(help="Suite of measured experiments (experiments.parquet, requests/).")],
    experiment: Annotated[list[str] | None, typer.Option(help="Only experiments whose id contains this.")] = None,
    output: Annotated[Path, typer.Option(help="Write the comparison to this Parquet file.")] = Path("validation.parquet"),
    report: Annotated[Path | None, typer.Option(help="Write the fidelity page (Markdown, with a plot).")] = None,
    reports: Annotated[Path | None, typer.Option(help="List of published measurements that the page shows too.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Replay measured runs and print the error of every metric."""
    from simulator.cli.validate import runs_command

    runs_command(directory, experiment or [], output, report, reports, workers, as_json)


@validate_app.command("reports")
def validate_reports(
    file: Annotated[Path, typer.Argument(help="List of published measurements beside their scenarios (JSON lines).")],
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Simulate published measurements and print the error by group, and how often the interval holds."""
    from simulator.cli.validate import reports_command

    reports_command(file, workers, as_json)


@validate_app.command("endpoint")
def validate_endpoint(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of an OpenAI-compatible server.")],
    scenario: ScenarioArgument,
    set_: SetOption = None,
    model: Annotated[str, typer.Option(help="The server's name of the model; the only one it lists by default.")] = "",
    api: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    key_variable: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "OPENAI_API_KEY",
    output: Annotated[Path, typer.Option(help="Folder in which the folder of this comparison is made.")] = Path("runs"),
    most_s: Annotated[float, typer.Option("--max-seconds", min=1, help="Arrivals up to this time.")] = 900,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests at most.")] = 1000,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Longest silence of the server.")] = 120,
    as_json: JsonOption = False,
) -> None:
    """Send a scenario's requests to a live server; measured beside simulated, percentile by percentile."""
    from simulator.cli.endpoint import validate_command

    validate_command(
        url, scenario, set_ or [], model, api, key_variable, output, most_s, max_requests, timeout_s, as_json
    )


@validate_app.command("kernels")
def validate_kernels(
    directory: Annotated[Path, typer.Argument(help="Directory of kernel timing tables (*.parquet).")],
    as_json: JsonOption = False,
) -> None:
    """Predict a directory of kernel timings and print the error of each group."""
    from simulator.cli.validate import kernels_command

    kernels_command(directory, as_json)


@trace_app.command("describe")
def trace_describe(
    trace: Annotated[str, typer.Argument(help="Trace file, or the name of a shipped generator.")],
    trace_format: Annotated[str | None, typer.Option("--format", help="Format, where it is not recognised.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Statistics of a trace: rate, burstiness, lengths, prefix-hit potential."""
    from simulator.cli.traces import describe_command

    describe_command(trace, trace_format, as_json)


@trace_app.command("convert")
def trace_convert(
    trace: Annotated[str, typer.Argument(help="Trace file, or the name of a shipped generator.")],
    output: Annotated[Path, typer.Argument(help="File to write: .csv, .jsonl or .parquet.")],
    trace_format: Annotated[str | None, typer.Option("--format", help="Format of the input.")] = None,
    to: Annotated[str, typer.Option(help="columns or mooncake.")] = "columns",
) -> None:
    """Convert a trace into this tool's columns, or into Mooncake's format."""
    from simulator.cli.traces import convert_command

    convert_command(trace, output, trace_format, to)


@trace_app.command("synthesize")
def trace_synthesize(
    scenario: ScenarioArgument,
    output: Annotated[Path, typer.Argument(help="File to write: .csv, .jsonl or .parquet.")],
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    to: Annotated[str, typer.Option(help="columns or mooncake.")] = "columns",
) -> None:
    """Write the requests that a scenario's workload would offer."""
    from simulator.cli.traces import synthesize_command

    synthesize_command(scenario, output, set_ or [], seed, to)


def app_for(words: Sequence[str]) -> typer.Typer:
    """The command that a command line begins with, alone, since to build all of them takes 25 ms; all where it names none."""
    name = words[0] if words else ""
    one = copy(app)
    one.registered_commands = [each for each in app.registered_commands if each.name == name]
    one.registered_groups = [each for each in app.registered_groups if each.name == name]
    return one if one.registered_commands or one.registered_groups else whole_app()


def whole_app() -> typer.Typer:
    """All commands."""
    from simulator.cli import compare, cost, recommend, sweep
    from simulator.cli.calibrate import calibrate_app

    whole = copy(app)
    whole.registered_commands, whole.registered_groups = [*app.registered_commands], [*app.registered_groups]
    whole.add_typer(calibrate_app, name="calibrate")
    for module in (sweep, cost, recommend, compare):
        module.register(whole)
    return whole
