"""`calibrate device`: kernels of this machine, timed, as a device file."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.device import load_device, read_device
from hardware_profiles.device_bench import KernelTime, Machine, busy, kernels, load_torch, machine
from hardware_profiles.device_fit import FRAMEWORK, device_text, errors_of, fit_device
from hardware_profiles.errors import InputError
from hardware_profiles.files import parse_json, read_text, without_cut_line
from hardware_profiles.kernels import operations_of
from simulator.cli.errors import InterruptedRun
from simulator.cli.layout import table
from simulator.cli.progress import note, progress, progress_done
from simulator.io.rundir import check_new, write_file

BUSY_WORDS = (
    "this machine has other work ({load:.1f} for each core), so its kernels may take longer; a single thread "
    "(OMP_NUM_THREADS=1) is timed by its own CPU time"
)


def device_command(like: str, output: Path, most_s: float, as_json: bool) -> None:
    """Time kernels, fit, write the file and what was timed, print the errors before and after.

    Every kernel is written as it is timed: the same command goes on where another ended.
    """
    profile = load_device(like)
    timed = output.with_suffix(".kernels.jsonl")
    check_new(output)
    if output.suffix not in (".yaml", ".yml"):
        raise InputError("a device file ends in .yaml", where="--output", mend=f"such as {output.stem}.yaml")
    torch = load_torch()
    found = machine(torch)
    if found.kind != profile.kind or found.vendor not in ("", profile.vendor):
        raise InputError(
            f"this machine computes on {found.title} ({found.vendor or found.kind}), and {profile.title} is of another kind",
            where="--like",
            mend="name the device that is most like it (`capacity-plan list hardware`)",
        )
    if "bf16" not in profile.peak_flops_per_s:
        raise InputError(f"the profile of {profile.name} has no bf16", where="--like", mend="name one that has")
    times = _timed_so_far(timed, found)
    if times:
        note(f"{timed}: {len(times)} kernels that were timed are taken over")
    if load := busy(found.backend):
        note(BUSY_WORDS.format(load=load))
    try:
        _time_more(torch, found, most_s, timed, times)
    except KeyboardInterrupt:
        raise InterruptedRun(f"interrupted; {len(times)} kernels are in {timed}: the same command goes on from there") from None
    progress_done()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    made = fit_device(profile, times, date, f"PyTorch {found.version} on {found.title}")
    write_file(output, device_text(made, found, times, profile.name, date))
    device = read_device(output, output.stem)
    before = errors_of(operations_of(profile, FRAMEWORK), times)
    rows = _by_op(times, before, made.errors, made.held_out)
    if as_json:
        print(json.dumps({"written": str(output), "kernels": str(timed), "errors": rows}))
        return
    print(f"{found.title}: {len(times)} kernels timed by PyTorch {found.version}\n")
    shown = ("before_pct", "after_pct", "held_out_pct")
    body = [[str(row["op"]), str(row["kernels"]), *(f"{row[key]:.1f}" for key in shown)] for row in rows]
    head = ["median error", "kernels", f"profile of {profile.name} %", "fitted %", "not fitted to %"]
    print("\n".join(table(head, body, indent="")))
    peak, bandwidth = device.peak_flops_per_s["bf16"].value, device.memory_bandwidth_bytes_per_s.value
    print(f"\nbf16 {peak:.3g} FLOP/s, memory {bandwidth:.3g} byte/s, as the physics of kernels takes them")
    print(f"kernels {timed}\nwritten {output}: name it in a scenario, deployment.hardware")


def _time_more(torch: Any, found: Machine, most_s: float, path: Path, times: list[KernelTime]) -> None:
    """Time kernels beyond those of `times`, and add each to it and to the file at once."""
    def line(each: KernelTime) -> str:
        return json.dumps({"op": each.op, "sizes": each.sizes, "took_s": each.took_s}) + "\n"

    with path.open("w", encoding="utf-8") as file:
        file.write("".join([json.dumps(_machine_line(found)) + "\n", *map(line, times)]))
        file.flush()
        for each in kernels(torch, found.backend, most_s, progress, times[:]):
            file.write(line(each))
            file.flush()
            times.append(each)


def _machine_line(found: Machine) -> dict[str, str]:
    return {"machine": found.title, "pytorch": found.version}


def _timed_so_far(path: Path, found: Machine) -> list[KernelTime]:
    """The kernels that an earlier command timed; none without its file. Raises InputError for one of another machine."""
    if not path.exists():
        return []
    head, *lines = without_cut_line(read_text(path)).splitlines() or [""]
    try:
        if parse_json(head) != _machine_line(found):
            raise ValueError
        return [KernelTime(row["op"], tuple(row["sizes"]), float(row["took_s"])) for row in map(parse_json, lines)]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"this file holds no kernels timed on {found.title} by PyTorch {found.version}",
            where=str(path),
            mend="remove it, or name another --output",
        ) from None


def _by_op(
    times: list[KernelTime], before: tuple[float, ...], after: tuple[float, ...], held: tuple[float, ...]
) -> list[dict[str, float | str | int]]:
    """Median absolute errors by operation, and of all."""
    out: list[dict[str, float | str | int]] = []
    for op in (*dict.fromkeys(each.op for each in times), "all"):
        chosen = [number for number, each in enumerate(times) if op in (each.op, "all")]
        columns = {"before_pct": before, "after_pct": after, "held_out_pct": held}
        medians = {name: 100 * float(np.median(np.abs([values[n] for n in chosen]))) for name, values in columns.items()}
        out.append({"op": op, "kernels": len(chosen), **medians})
    return out
