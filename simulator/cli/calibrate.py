"""`calibrate`: fit what ships from measurements."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from simulator.cli import calibrate_results

calibrate_app = typer.Typer(
    help="Fit kernels, overheads, error intervals and a deployment's scales from measurements.", no_args_is_help=True
)
calibrate_results.register(calibrate_app)


@calibrate_app.command("overheads")
def overheads(
    directory: Annotated[Path, typer.Argument(help="Suite of measured experiments.")],
    engine: Annotated[
        str, typer.Option(help="Engine whose overheads to fit, by default the first listed; NAME-eager: what launches cost.")
    ] = "",
    leave_out: Annotated[
        str, typer.Option(help="Judge by leaving out each: model, workload or hardware.")
    ] = "model",
    write: Annotated[bool, typer.Option("--write", help="Replace the shipped values.")] = False,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fit an engine's overheads and say how they do on groups left out."""
    from engine_models.engines.known import EXAMPLE
    from hardware_profiles.errors import InputError
    from simulator.cli.layout import table
    from simulator.cli.progress import progress, progress_done
    from simulator.io.text import plain
    from simulator.validation import overheads as module
    from simulator.validation.engines import FITTINGS

    if leave_out not in ("model", "workload", "hardware"):
        raise InputError(
            f"cannot leave out '{leave_out}'", where="--leave-out", mend="one of model, workload, hardware"
        )
    engine = engine or EXAMPLE
    fitted = module.fit(directory, engine, workers, progress=progress)
    progress_done()
    held = module.leave_out(fitted, lambda row: str(row.get(leave_out, "-")))
    if write:
        module.write(fitted, engine, directory)
    if as_json:
        print(json.dumps(plain({"values": fitted.values, "leave_out": leave_out, "groups": held})))
        return
    fitting = FITTINGS[engine][1]
    for name, value in fitted.values.items():
        unit, _, meaning = fitting.unknowns[name]
        print(f"{name:22} {value:.4g} {unit:5} {meaning}")
    rows = [
        [
            h["group"],
            str(h["runs"]),
            *(f"{h[t]:.1f}" for t in fitting.targets),
            *(f"{v:.4g}" for v in h["values"].values()),
        ]
        for h in held
    ]
    names = [f"{target.partition('_')[0].upper()} %" for target in fitting.targets]
    print()
    print(
        "\n".join(
            table([f"{leave_out} left out", "runs", *names, *fitting.unknowns], rows, indent="")
        )
    )


@calibrate_app.command("intervals")
def intervals(
    directory: Annotated[Path, typer.Argument(help="Suite of measured experiments.")],
    reports: Annotated[Path | None, typer.Option(help="List of published measurements (JSON lines) that counts too.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write; the shipped one by default.")] = None,
    workers: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Derive the 90 % interval widths from the errors on measured runs and on published measurements."""
    from simulator.cli.progress import progress, progress_done
    from simulator.validation.evidence import kinds
    from simulator.validation.intervals import derive, seen, values_of, write_intervals
    from simulator.validation.reports import report_kinds, validate_reports
    from simulator.validation.runs import validate_runs
    from simulator.validation.suite import read_suite

    outcome = validate_runs(directory, (), workers, progress)
    experiments, known = outcome["experiments"], kinds(read_suite(directory))
    if reports is not None:
        more, of_reports = report_kinds(validate_reports(reports, workers, progress, laws=True)["cases"])
        experiments, known = [*experiments, *more], known | of_reports
    progress_done()
    widths = derive(experiments, known)
    path = write_intervals(widths, seen(values_of(experiments, known)), output)
    for group, entries in widths.groups.items():
        shown = ", ".join(
            f"{k} {100 * math.expm1(v['log_half_width']):.0f} % ({v['experiments']})"
            for k, v in entries.items()
        )
        print(f"{group}: {shown}")
    for metric, scale in widths.scales.items():
        base = math.expm1(math.exp(scale.log_base_width))
        middle = 100 * math.expm1(scale.log_ratio)
        about = f"of further sources about {middle:+.0f} %"
        print(f"{metric}: {100 * base:.0f} % ({scale.experiments}), where clients wait; {about}; times")
        for factor, levels in scale.factors.items():
            shown = ", ".join(f"{level} {math.exp(added):.2f}" for level, added in sorted(levels.items()))
            print(f"  {factor}: {shown}; another {math.exp(scale.unseen[factor]):.2f}")
    print(f"written {path}")


@calibrate_app.command("kernels")
def kernels(
    directory: Annotated[Path, typer.Argument(help="Directory of kernel timing tables.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the fitted files.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="Only these devices.")] = None,
    leave_out: Annotated[
        str | None, typer.Option(help="Write nothing; judge by leaving out: shapes, model or gpu.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=1, max=6, help="Sixths left out in turn; 1 for shapes, 6 for models."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --leave-out: print one JSON object.")] = False,
) -> None:
    """Fit kernel models from timing tables; the shipped files are made by this, to the byte."""
    from hardware_profiles.errors import InputError
    from hardware_profiles.kernel_fit.write import fit_kernels

    if not directory.is_dir():
        raise InputError(
            "no such directory", where=str(directory), mend="name the directory that holds the tables"
        )
    if leave_out is not None:
        _left_out_kernels(directory, leave_out, device, folds, as_json)
        return
    if output is None:
        raise InputError(
            "nowhere to write",
            where="--output",
            mend="name a folder, or judge the fit with --leave-out shapes",
        )
    for s in fit_kernels(directory, output, device or None):
        where = f"{s['op']} {s['gpu']} {s['framework']} {s['dtype']}"
        print(f"left out {s['rows']:,} rows of {where}: {s['reason']}")
    print(f"written {output}")


def _left_out_kernels(
    directory: Path, what: str, devices: list[str] | None, folds: int | None, as_json: bool
) -> None:
    """Print the error of kernel fits on what they never saw, beside the reference."""
    import statistics

    from hardware_profiles.kernel_validate import OVER, leave_out
    from simulator.cli.layout import table
    from simulator.cli.progress import progress, progress_done

    groups = leave_out(directory, what, devices or None, folds, progress)
    progress_done()
    if as_json:
        print(json.dumps({"leave_out": what, "groups": groups}))
        return

    def cells(g: dict[str, Any]) -> list[str]:
        shown = f"{g['reference']:.1f}" if g["reference"] is not None else "-"
        more = (
            [g["from"], f"{g['datasheet_mape']:.1f}"]
            if what == "gpu"
            else [shown, "OVER" if g["over"] else ""]
        )
        return [g["op"], g["gpu"], g["framework"], g["dtype"], f"{g['rows']:,}", f"{g['mape']:.1f}", *more]

    tail = ["from", "datasheet %"] if what == "gpu" else ["reference %", ""]
    head = ["operation", "device", "framework", "format", "rows", "error %", *tail]
    print("\n".join(table(head, [cells(g) for g in groups], indent="")))
    print()
    for op in dict.fromkeys(g["op"] for g in groups):
        errors = [g["mape"] for g in groups if g["op"] == op]
        print(
            f"{op}: median {statistics.median(errors):.1f} %, worst {max(errors):.1f} % of {len(errors)} groups"
        )
    if what != "gpu":
        over = sum(g["over"] for g in groups)
        known = sum(g["reference"] is not None for g in groups)
        print(f"{over} of {known} groups with a reference are above {OVER:g} times it")


@calibrate_app.command("endpoint")
def endpoint(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of an OpenAI-compatible server.")],
    scenario: Annotated[str, typer.Argument(help="Scenario with the server's deployment; prompts up to its load's longest.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Replace a field of it.")] = None,
    model: Annotated[str, typer.Option(help="The server's name of the model; the only one it lists by default.")] = "",
    api: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    key_variable: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "OPENAI_API_KEY",
    output: Annotated[Path, typer.Option(help="Calibration file to write.")] = Path("calibration.json"),
    measurements: Annotated[
        Path | None, typer.Option(help="File of measurements, taken up where it ends; by default beside the output.")
    ] = None,
    most_s: Annotated[float, typer.Option("--max-seconds", min=1, help="Time for measuring.")] = 600,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests for measuring.")] = 600,
    max_rows: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, max=20, help="Times that each point is measured; medians count.")] = 3,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Longest silence of the server.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Drive a live server with a short experiment; fit the times of its steps and say how well they fit."""
    from simulator.cli.endpoint import calibrate_command

    calibrate_command(
        url, scenario, set_ or [], model, api, key_variable, output, measurements, most_s, max_requests, max_rows, repeats,
        timeout_s, as_json,
    )  # fmt: skip


@calibrate_app.command("device")
def device(
    like: Annotated[str, typer.Option(help="Device whose profile has what is not timed: formats, power, links.")],
    output: Annotated[Path, typer.Option(help="Device file to write.")] = Path("my-device.yaml"),
    most_s: Annotated[float, typer.Option("--max-seconds", min=5, help="Time for measuring.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time kernels of this machine by PyTorch; write a device file that scenarios can name as hardware."""
    from simulator.cli.device import device_command

    device_command(like, output, most_s, as_json)
