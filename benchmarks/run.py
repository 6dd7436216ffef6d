"""CPU seconds and peak memory of whole runs, beside the stored baseline.

    python benchmarks/run.py                every case but 10M, which takes a quarter of an hour
    python benchmarks/run.py S1 S2          these
    python benchmarks/run.py --store S1     put what was measured into baseline.json

Every case is one process of the command line tool; its CPU seconds are user + system of that process and of those it started,
the peak is the resident memory of the largest of them. S1 to S4 need the traces in ../shared/data/benchmarks. The ratio is to the
baseline, below 1 is better; on another machine than the baseline's it says little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRACES = ROOT.parent / "shared" / "data" / "benchmarks"
BASELINE = Path(__file__).with_name("baseline.json")
MB = 1e6

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
ONE_H100 = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
GRID = (
    "deployment.replicas=1,2,4,8",
    "deployment.engine_args.max_num_seqs=64,128,256,512",
    "deployment.engine_args.max_num_batched_tokens=2048,8192",
)


@dataclass(frozen=True)
class Case:
    """One benchmark: what it is, how its scenario is made in a folder, and how it is run."""

    title: str
    scenario: Callable[[Path], dict[str, Any]]
    command: tuple[str, ...] = ("simulate",)


def recorded(trace: str, model: str = LLAMA_8B, **deployment: Any) -> Callable[[Path], dict[str, Any]]:
    """Make a scenario that replays one of the shared traces."""
    return lambda folder: {
        "model": model,
        "deployment": {**ONE_H100, **deployment},
        "workload": {"trace": str(TRACES / f"{trace}.parquet")},
    }


def drawn(
    workload: dict[str, Any], model: str = LLAMA_8B, **deployment: Any
) -> Callable[[Path], dict[str, Any]]:
    """Make a scenario whose requests are drawn."""
    return lambda folder: {
        "model": model,
        "deployment": {**ONE_H100, **deployment},
        "workload": workload,
    }


def s1_kind(requests: int, rate: float) -> dict[str, Any]:
    """Requests as those of S1: prompts N(512, 128), outputs N(128, 32) tokens, Poisson arrivals."""
    return {
        "arrivals": {"kind": "poisson", "rate": rate},
        "prompt_tokens": {"kind": "normal", "mean": 512, "std": 128},
        "output_tokens": {"kind": "normal", "mean": 128, "std": 32},
        "requests": requests,
    }


def spread(replicas: int) -> Callable[[Path], dict[str, Any]]:
    """One load over more and more replicas: what the router costs."""
    return drawn(s1_kind(20_000, 160), replicas=replicas, router="least_requests")


def million(folder: Path) -> dict[str, Any]:
    """Make a million requests of the kind of S1, in a process of its own: a child's peak is never below its parent's memory."""
    trace = folder / "million.parquet"
    subprocess.run([sys.executable, Path(__file__).with_name("million.py"), trace], check=True)
    return {"model": LLAMA_8B, "deployment": ONE_H100, "workload": {"trace": str(trace)}}


CASES = {
    "S1": Case("2,000 requests, 7/s, one H100", recorded("s1")),
    "S2": Case("20,000 requests, 7/s, one H100", recorded("s2")),
    "S3": Case(
        "20,000 requests, 40/s, 8 replicas of 4 H100, least requests",
        recorded("s3", LLAMA_70B, tensor_parallel=4, replicas=8, router="least_requests"),
    ),
    "S4": Case(
        "S1 on 32 configurations",
        recorded("s1"),
        ("sweep", *(part for axis in GRID for part in ("--vary", axis))),
    ),
    "saturated": Case(
        "20,000 requests at 60/s, more than one H100 carries",
        drawn(
            {
                "arrivals": {"kind": "poisson", "rate": 60},
                "prompt_tokens": {"kind": "lognormal", "mean": 800, "p99": 4000},
                "output_tokens": {"kind": "lognormal", "mean": 250, "p99": 1200},
                "requests": 20_000,
            }
        ),
    ),
    "long-context": Case(
        "an hour of Mooncake's conversations, 8 replicas of 4 H100",
        drawn(
            {"trace": "mooncake-conversation", "duration": 3600},
            LLAMA_70B,
            tensor_parallel=4,
            replicas=8,
            router="least_requests",
        ),
    ),
    "prefix-heavy": Case(
        "two hours of chats of 20 turns over one system prompt",
        drawn(
            {
                "arrivals": {"kind": "poisson", "rate": 0.2},
                "sessions": {"turns": 20, "think_time_s": 30},
                "shared_prefix": {"groups": 1, "tokens": 800},
                "prompt_tokens": {"kind": "lognormal", "mean": 120, "p99": 900},
                "output_tokens": {"kind": "lognormal", "mean": 220, "p99": 900},
                "duration": 7200,
            },
            engine_args={"max_model_len": 32768},
        ),
    ),
    "replicas-8": Case("20,000 requests at 160/s, 8 replicas, least requests", spread(8)),
    "replicas-64": Case("the same over 64 replicas", spread(64)),
    "replicas-256": Case("the same over 256 replicas", spread(256)),
    "1M": Case("1,000,000 requests of S1's kind", million),
    "10M": Case("10,000,000 requests of S1's kind, drawn", drawn(s1_kind(10_000_000, 7))),
}
LONG = ("10M",)
"""Cases that run only when they are named: a quarter of an hour."""


def measure(name: str, case: Case) -> tuple[float, float] | None:
    """CPU seconds and peak memory [MB] of a case; None, with a word why, where it cannot be run."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scenario = {"name": name, "seed": 1, **case.scenario(folder)}
        trace = Path(str(scenario["workload"].get("trace", "")))
        if trace.suffix == ".parquet" and not trace.exists():
            print(f"{name:14} left out: there is no {trace}")
            return None
        path = folder / "scenario.yaml"
        path.write_text(json.dumps(scenario))
        program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from simulator.cli import main; main()"
        verb, *options = case.command
        arguments = [
            sys.executable,
            "-c",
            program,
            str(ROOT),
            verb,
            str(path),
            *options,
            "--output",
            str(folder / "out"),
        ]
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=folder)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            print(f"{name:14} failed with exit code {child.returncode}:\n{(folder / 'log').read_text()}")
            return None
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / MB


def ratio(value: float, before: float | None) -> str:
    """Return the ratio to the baseline, or a dash."""
    return f"{value / before:5.2f}" if before else "    -"


def main() -> int:
    """Run the cases named on the command line; 1 if one could not be run."""
    parser = argparse.ArgumentParser(description="CPU seconds and peak memory of whole runs")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(CASES)}; all but {', '.join(LONG)} by default",
    )
    parser.add_argument("--store", action="store_true", help="put what was measured into baseline.json")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in CASES]
    if unknown:
        parser.error(f"no case named {', '.join(unknown)}; there are {', '.join(CASES)}")
    stored = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"cases": {}}
    print(f"{'case':14} {'CPU s':>8} {'ratio':>5} {'peak MB':>8} {'ratio':>5}  what")
    complete = True
    for name in arguments.names or [name for name in CASES if name not in LONG]:
        measured = measure(name, CASES[name])
        if measured is None:
            complete = False
            continue
        cpu_s, peak_mb = measured
        before = stored["cases"].get(name, {})
        print(
            f"{name:14} {cpu_s:8.2f} {ratio(cpu_s, before.get('cpu_s'))} {peak_mb:8.0f} "
            f"{ratio(peak_mb, before.get('peak_mb'))}  {CASES[name].title}",
            flush=True,
        )
        if arguments.store:
            stored["machine"] = (
                f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {version('numpy')}"
            )
            stored["cases"][name] = {"cpu_s": round(cpu_s, 2), "peak_mb": round(peak_mb)}
            BASELINE.write_text(json.dumps(stored, indent=1) + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
