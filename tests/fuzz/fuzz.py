"""Runs mutated inputs through the command line and looks for what no input may do.

    python tests/fuzz/fuzz.py                     10,000 cases, two processes
    python tests/fuzz/fuzz.py --first 7 --cases 1 --show

Each case runs in a forked process, in a folder of its own, within 1 GB above what the process holds at its start and 10 s of
processor time. It fails if it ends with another code than 0, 2, 3 or 4, shows a traceback, an internal error, a warning of
Python or a control character, changes its inputs, or leaves something half-written.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fuzz.inputs import Case, case

MEMORY_BYTES = 1 << 30
"""Address space of a case above that of the process at its start."""
CPU_S = 10
WALL_S = 120.0
CODES = {0, 2, 3, 4}
FEW = ["--set", "workload.requests=25"]
"""What holds a run to a few requests."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
TABLES = ("result.json", "manifest.json", "requests.parquet", "timeline.parquet")


@dataclass
class Outcome:
    """What a case did, and what is wrong with it (empty if nothing is)."""

    case: Case
    code: int
    cpu_s: float
    out: str
    err: str
    wrong: str


def held(found: Case) -> Case:
    """The case, its run held to a few requests."""
    if found.arguments[0] in ("simulate", "cost") or found.arguments[:2] == ["trace", "synthesize"]:
        return Case(found.number, [*found.arguments, *FEW], found.files)
    return found


def run(found: Case, root: Path) -> Outcome:
    """Run a case in a folder below `root`, which goes afterwards."""
    folder = root / f"case-{found.number}"
    work = folder / "work"
    work.mkdir(parents=True)
    for name, content in found.files.items():
        (work / name).write_bytes(content)
    pid = os.fork()
    if pid == 0:
        _child(found, folder)
    status, cpu_s = _wait(pid)
    out, err = ((folder / name).read_bytes().decode("utf-8", "replace") for name in ("out", "err"))
    code = os.waitstatus_to_exitcode(status)
    outcome = Outcome(found, code, cpu_s, out, err, "")
    outcome.wrong = _wrong(outcome, work)
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _child(found: Case, folder: Path) -> None:
    os.chdir(folder / "work")
    for number, name in ((0, os.devnull), (1, str(folder / "out")), (2, str(folder / "err"))):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
    sys.argv = ["capacity-plan", *found.arguments]
    os.environ.pop("CAPACITY_PLAN_TRACEBACK", None)
    warnings.simplefilter("default")
    warnings.showwarning = _show_warning
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    code = 70
    try:
        import simulator.cli.app
        from simulator.cli import main

        simulator.cli.app.app_for = lambda words: built_app()
        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException as error:
        sys.stderr.write(f"Traceback: {error!r}\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object
) -> None:
    sys.stderr.write(f"{filename}:{lineno}: {category.__name__}: {message}\n")


def _wait(pid: int) -> tuple[int, float]:
    end = time.monotonic() + WALL_S
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return status, usage.ru_utime + usage.ru_stime
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            return status, usage.ru_utime + usage.ru_stime
        time.sleep(0.002)


def _wrong(outcome: Outcome, work: Path) -> str:
    """What is wrong with an outcome, in words that are the same for the same kind of fault."""
    text = outcome.out + outcome.err
    if outcome.code < 0:
        name = signal.Signals(-outcome.code).name
        return f"killed by {name}" + (
            f" after {CPU_S} s of processor time" if name in ("SIGXCPU", "SIGKILL") else ""
        )
    for sign in ("Traceback", "internal error", "out of memory"):
        if sign in text:
            line = next(line for line in text.splitlines() if sign in line)
            return f"{sign}: {line[:150]}"
    if outcome.code not in CODES:
        return f"exit code {outcome.code}: {outcome.err[:150]}"
    if found := re.search(r"\w*Warning: .*", outcome.err):
        return f"a warning of Python: {found[0][:120]}"
    if found := CONTROL.search(text):
        return f"a raw control character {found[0]!r}"
    if outcome.code in (2, 3) and "mend: " not in outcome.err and "no_args" not in outcome.err:
        return f"an error without a mend: {outcome.err[:150]}"
    inputs = outcome.case.files
    for name, content in inputs.items():
        if not (work / name).is_file() or (work / name).read_bytes() != content:
            return f"an input was changed: {name}"
    left = sorted(str(p.relative_to(work)) for p in work.rglob("*") if p.is_file() and p.name not in inputs)
    if outcome.code in (2, 3) and left:
        return f"files were left by a refusal: {', '.join(left)[:150]}"
    runs = list((work / "runs").iterdir()) if (work / "runs").is_dir() else []
    for run_folder in runs:
        if sorted(p.name for p in run_folder.iterdir()) != sorted(TABLES):
            return f"a run is not whole: {run_folder.name}"
        json.loads((run_folder / "result.json").read_text(), parse_constant=lambda word: 1 / 0)
    if "--json" in outcome.case.arguments and not isinstance(json.loads(outcome.out), dict):
        return "no JSON object under --json"
    return ""


def many(numbers: range, root: Path) -> list[Outcome]:
    """Run cases one after the other; return those with something wrong."""
    return [outcome for number in numbers if (outcome := run(held(case(number)), root)).wrong]


@functools.cache
def built_app() -> Any:
    """The command line, which Typer else builds anew for every case."""
    import typer

    import simulator.cli.app

    return typer.main.get_command(simulator.cli.app.whole_app())


@functools.cache
def warm_up() -> None:
    """Load what commands load, and build what they build once, so that cases start quickly."""
    import simulator.cli.app
    import simulator.cli.check
    import simulator.cli.summary
    import simulator.planning.budget
    import simulator.planning.compare
    import simulator.workload.convert
    import simulator.workload.traces  # noqa: F401
    from simulator import simulate
    from tests.fuzz.inputs import DRAWN, scenario

    built_app()
    for engine, hardware in (
        ("vllm", "h100-sxm-80gb"),
        ("vllm@0.15.1", "a100-sxm-80gb"),
        ("sglang", "h100-sxm-80gb"),
        ("tgi", "h100-sxm-80gb"),
        ("trtllm", "h100-sxm-80gb"),
    ):
        simulate(scenario({**DRAWN, "requests": 2}, deployment={"engine": engine, "hardware": hardware}))


def main() -> int:
    """Run the cases asked for and print what is wrong, by kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print what each case does")
    options = parser.parse_args()
    warm_up()
    numbers = range(options.first, options.first + options.cases)
    if options.show:
        return _show(numbers)
    kinds: dict[str, list[int]] = collections.defaultdict(list)
    pipes = []
    for share in range(options.processes):
        reading, writing = os.pipe()
        if os.fork() == 0:
            with tempfile.TemporaryDirectory() as folder, os.fdopen(writing, "w") as out:
                for number in numbers[share :: options.processes]:
                    outcome = run(held(case(number)), Path(folder))
                    out.write(json.dumps([number, outcome.code, outcome.cpu_s, outcome.wrong]) + "\n")
                    out.flush()
            os._exit(0)
        os.close(writing)
        pipes.append(os.fdopen(reading))
    codes: collections.Counter[int] = collections.Counter()
    slowest = (0.0, -1)
    for pipe in pipes:
        for line in pipe:
            number, code, cpu_s, wrong = json.loads(line)
            codes[code] += 1
            slowest = max(slowest, (cpu_s, number))
            if wrong:
                kinds[wrong].append(number)
    done = sum(codes.values())
    print(
        f"{done} of {options.cases} cases; exit codes {dict(sorted(codes.items()))}; "
        f"slowest {slowest[0]:.1f} s (case {slowest[1]})"
    )
    for wrong, cases in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(cases):5} x {wrong}   cases {', '.join(map(str, cases[:5]))}")
    return 1 if kinds or done != options.cases else 0


def _show(numbers: range) -> int:
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            found = held(case(number))
            outcome = run(found, Path(folder))
            bad += bool(outcome.wrong)
            print(f"--- case {number}: capacity-plan {' '.join(map(repr, found.arguments))[:300]}")
            used = [name for name in found.files if name in ("s.yaml", *found.arguments)] or list(found.files)
            for name in used:
                print(f"[{name}]\n{found.files[name][:3000].decode('utf-8', 'replace')}")
            print(
                f"exit {outcome.code}, {outcome.cpu_s:.2f} s\n{outcome.out[:1500]}\n{outcome.err[:1500]}\n"
                f"wrong: {outcome.wrong or 'nothing'}"
            )
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    raise SystemExit(main())
