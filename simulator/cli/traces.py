"""`trace describe|convert|synthesize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simulator.cli.layout import pairs
from simulator.report.numbers import short
from simulator.workload.columns import Workload


def _load(trace: str, trace_format: str | None) -> Workload:
    from hardware_profiles.errors import InputError
    from simulator.workload.build import build_workload
    from simulator.workload.spec import WorkloadSpec

    fields: dict[str, Any] = {"trace": trace}
    if trace_format:
        fields["trace_format"] = trace_format
    try:
        spec = WorkloadSpec.model_validate(fields)
    except ValueError as error:
        first = error.errors()[0] if hasattr(error, "errors") else {"msg": str(error)}
        raise InputError(first["msg"], where="--format", mend="see `capacity-plan trace describe --help`") from None
    return build_workload(spec, seed=0, base_dir=Path.cwd())


def _cell(value: Any) -> str:
    """A fact as text: three figures of a float, a dash for what is not known."""
    if isinstance(value, dict):
        return "  ".join(f"{k} {_cell(v)}" for k, v in value.items() if v is not None) or "-"
    return "-" if value is None else short(value) if isinstance(value, float) else str(value)


def describe_command(trace: str, trace_format: str | None, as_json: bool) -> None:
    """Print the statistics of a trace."""
    from simulator.workload.describe import describe

    workload = _load(trace, trace_format)
    facts = describe(workload)
    if as_json:
        print(json.dumps(facts))
        return
    rows = [(name, _cell(value)) for name, value in facts.items() if name != "warnings"]
    print("\n".join(pairs([*rows, *(("warning", text) for text in workload.warnings)])))


def _write(workload: Workload, output: Path, to: str) -> None:
    from simulator.workload.convert import write_workload

    write_workload(workload, output, trace_format=to)
    print(f"{len(workload):,} requests written to {output}")


def convert_command(trace: str, output: Path, trace_format: str | None, to: str) -> None:
    """Read a trace and write it in another format."""
    _write(_load(trace, trace_format), output, to)


def synthesize_command(scenario: str, output: Path, overrides: list[str], seed: int | None, to: str) -> None:
    """Write the requests of a scenario's workload."""
    from simulator.config.load import load_scenario
    from simulator.workload.build import build_workload

    loaded = load_scenario(scenario, overrides)
    workload = build_workload(loaded.workload, seed=loaded.seed if seed is None else seed, base_dir=Path.cwd())
    _write(workload, output, to)
