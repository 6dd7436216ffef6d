"""`calibrate endpoint` and `validate endpoint`: a live server, measured."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from hardware_profiles.errors import InputError, PlanError
from simulator.cli.errors import InterruptedRun, placed
from simulator.cli.layout import table, wrapped
from simulator.cli.progress import note, progress, progress_done
from simulator.config.load import load_scenario
from simulator.endpoint.client import Api, Client, Target, load_aiohttp
from simulator.prepare import prepare
from simulator.prepared import Prepared

Found = TypeVar("Found")


def _target(url: str, model: str, api: str, key_variable: str, timeout_s: float) -> Target:
    load_aiohttp()
    if api not in get_args(Api):
        raise InputError(f"there is no API '{api}'", where="--api", mend=f"one of {', '.join(get_args(Api))}")
    return Target.of(url, model=model, api=api, key=os.environ.get(key_variable, ""), timeout_s=timeout_s)


def _prepared(scenario: str, overrides: list[str]) -> Prepared:
    loaded = load_scenario(scenario, overrides)
    with placed(scenario, overrides):
        return prepare(loaded)


def _asking(target: Target, what: Callable[[Client], Awaitable[Found]]) -> Found:
    """Do something with a client of the server."""

    async def go() -> Found:
        async with Client(target, note) as client:
            return await what(client)

    return asyncio.run(go())


def calibrate_command(
    url: str,
    scenario: str,
    overrides: list[str],
    model: str,
    api: str,
    key_variable: str,
    output: Path,
    measurements: Path | None,
    most_s: float,
    max_requests: int,
    max_rows: int,
    repeats: int,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Drive the server, fit, write the calibration, print the table."""
    from simulator.endpoint.calibrate import Options, calibrate, check_scenario, experiment
    from simulator.io.rundir import check_new

    target = _target(url, model, api, key_variable, timeout_s)
    loaded = _prepared(scenario, overrides)
    with placed(scenario, overrides):
        prepared = check_scenario(loaded)
    check_new(output)
    path = measurements or output.with_suffix(".measurements.jsonl")
    if not path.parent.is_dir():
        raise InputError("there is no such folder", where=str(path.parent), mend="make it, or name another")
    options = Options(most_s, max_requests, max_rows, repeats)
    try:
        found, head, notes = _asking(target, lambda client: experiment(client, prepared, options, path, progress))
    except KeyboardInterrupt:
        raise InterruptedRun(f"interrupted; {_kept(path)}") from None
    except PlanError as error:
        if path.exists() and error.where != str(path):
            note(_kept(path))
        raise
    progress("fitting ...")
    outcome = calibrate(prepared, found, head, path, notes)
    progress_done()
    made = outcome.calibration
    made.write(output)
    if as_json:
        print(json.dumps({"written": str(output), "notes": list(outcome.notes), **made.as_dict()}))
        return
    rows = [_cells(row) for row in made.table]
    print("\n".join(table(["measured on the server", "", "ms", "before %", "after %", "left out %"], rows, "", words=(0, 1))))
    before, after = (_median(made.table, name) for name in ("before", "after"))
    held = "" if made.held_out_error is None else f", on points left out {100 * made.held_out_error:.1f} %"
    print(f"\nmedian error: {before:.1f} % before, {after:.1f} % after{held}")
    for text in (*outcome.notes, *(f"not told apart: {name}: {why}" for name, why in made.unidentified.items())):
        print(wrapped(text, "  "))
    print(f"measurements {path}\nwritten {output}: name it in the scenario, deployment.calibration")


def _kept(path: Path) -> str:
    if not path.exists():
        return "nothing was measured"
    made = len(path.read_text(encoding="utf-8").splitlines()) - 1
    return f"{made} measurements are kept in {path}; the same command goes on from there"


def _cells(row: Any) -> list[str]:
    def off(value: float) -> str:
        return f"{100 * (value / row['measured'] - 1):+.1f}"

    held = row["held_out_error_pct"]
    metric = row["metric"].removesuffix("_ms").upper()
    left_out = "-" if held is None else f"{held:+.1f}"
    return [row["point"], metric, f"{row['measured']:.2f}", off(row["before"]), off(row["after"]), left_out]


def _median(rows: Any, name: str) -> float:
    import numpy as np

    return float(np.median([abs(row[name] / row["measured"] - 1) * 100 for row in rows]))


def validate_command(
    url: str,
    scenario: str,
    overrides: list[str],
    model: str,
    api: str,
    key_variable: str,
    output: Path,
    most_s: float,
    max_requests: int,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Send the scenario's requests, simulate them, print both; write them and a plot."""
    from simulator.config.load import scenario_hash
    from simulator.endpoint.replay import Sent, compare, load_of, send
    from simulator.io.rundir import check_place, write_file
    from simulator.io.tables import write_columns
    from simulator.io.text import json_text
    from simulator.report.endpoint_plot import endpoint_png
    from simulator.version import VERSION

    target = _target(url, model, api, key_variable, timeout_s)
    prepared = _prepared(scenario, overrides)
    load, notes = load_of(prepared, max_requests, most_s)
    check_place(output)
    sent = Sent.of(load)
    folder = _free(output / f"{prepared.scenario.name}-endpoint-{scenario_hash(prepared.scenario, VERSION)[:10]}")

    def keep() -> str:
        if not sent.counts()["sent"]:
            return "nothing was measured"
        folder.mkdir(parents=True, exist_ok=True)
        write_columns(sent.columns(), folder / "requests.parquet")
        return f"what was measured is in {folder}"

    try:
        asked = _asking(target, lambda client: send(client, prepared, sent, progress))
    except KeyboardInterrupt:
        raise InterruptedRun(f"interrupted; {keep()}") from None
    progress_done()
    kept = keep()
    if sent.gone:
        raise InputError(f"the server is gone: {sent.gone}", where=target.base, mend=f"start it again; {kept}")
    with placed(scenario, overrides):
        found = compare(sent, prepared, target.base)
    said = [*notes, *found.notes]
    result = {
        "server": {"address": asked.base, "model": asked.model, "api": asked.api},
        "requests": sent.counts(),
        "metrics": list(found.entries),
        "notes": said,
        "folder": str(folder),
    }
    write_file(folder / "validation.json", json_text(result))
    write_file(folder / "endpoint.png", endpoint_png(found.sent.values(), found.simulated(), prepared.scenario.name))
    if as_json:
        print(json.dumps(result))
        return
    counts = sent.counts()
    print(f"{counts['sent']:,} requests sent to {asked.base}, {counts['finished']:,} answered whole\n")
    head = ["", "statistic", "measured", "simulated", "error %", "90 % interval", "inside"]
    print("\n".join(table(head, [_entry_cells(entry) for entry in found.entries], "", words=(0, 1))))
    for text in said:
        print(wrapped(text, "  "))
    print(f"\nwritten {folder}: requests.parquet, validation.json, endpoint.png")


def _entry_cells(entry: dict[str, Any]) -> list[str]:
    from simulator.report.numbers import short

    words = {"output_throughput": "output tokens/s"}
    bounds = entry["interval"]
    return [
        words.get(entry["metric"], entry["metric"].removesuffix("_ms").upper().replace("E2EL", "E2E") + " ms"),
        entry["statistic"],
        short(entry["measured"]),
        short(entry["predicted"]),
        f"{100 * (entry['predicted'] / entry['measured'] - 1):+.1f}",
        "-" if bounds is None else f"{short(bounds[0])} to {short(bounds[1])}",
        "-" if entry["covered"] is None else "yes" if entry["covered"] else "NO",
    ]


def _free(folder: Path) -> Path:
    """The folder, or the first of its name with a number that is not there."""
    number = 1
    found = folder
    while found.exists():
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found
