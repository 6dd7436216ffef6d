"""CPU seconds and peak memory of whole runs, beside those of another commit or the stored baseline.

    python benchmarks/run.py                        every case but 10M and fleet-256, a quarter of an hour each
    python benchmarks/run.py S1 S2                  these
    python benchmarks/run.py --against HEAD~5 S1    S1 of this tree and of that commit in turn, medians of three runs of each
    python benchmarks/run.py --against compiled S1  the same of this tree as it lies and of its compiled build, made first
    python benchmarks/run.py --runs 5 S1            medians of five runs
    python benchmarks/run.py --store S1             put what was measured into baseline.json

Every run is one process of the command line tool; its CPU seconds are user + system of that process and of those it started,
the peak is the resident memory of the largest of them. S1 to S4 need the traces in ../shared/data/benchmarks. Ratios are to the
other commit or to the baseline, below 1 is better; on another machine than the baseline's, that one says little. Of S1 to S4 the
recorded figures of other simulators stand below.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.guard.worktree import MissingCommitError, worktree  # noqa: E402

TRACES = ROOT.parent / "shared" / "data" / "benchmarks"
BASELINE = Path(__file__).with_name("baseline.json")
MB = 1e6
PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from simulator import cli; getattr(cli, 'command', cli.main)()"
"""The command line of a tree; commits before `command` have `main` alone."""
PACKAGES = ("simulator", "engine_models", "hardware_profiles", "scenarios")

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


CHATS = {
    "sessions": {"turns": 5, "think_time_s": 10},
    "prompt_tokens": {"kind": "lognormal", "mean": 120, "p99": 900},
    "output_tokens": {"kind": "lognormal", "mean": 220, "p99": 900},
}


def spread(replicas: int) -> Callable[[Path], dict[str, Any]]:
    """One load over more and more replicas: what the router costs."""
    return drawn(s1_kind(20_000, 160), replicas=replicas, router="least_requests")


def fleet(replicas: int, requests: int) -> Callable[[Path], dict[str, Any]]:
    """The load of S1 a replica, behind 64 prefixes of 2,048 tokens and a router that knows what the caches hold."""
    load = {**s1_kind(requests, 7 * replicas), "shared_prefix": {"groups": 64, "tokens": 2048}}
    return drawn(load, replicas=replicas, router={"system": "dynamo"})


def roles(engine: str, **load: Any) -> Callable[[Path], dict[str, Any]]:
    """The load of S3 over four replicas that compute prompts and four that answer."""
    pool = {"engine": engine, "hardware": "h100-sxm-80gb", "tensor_parallel": 4, "replicas": 4}
    return lambda folder: {
        "model": LLAMA_70B,
        "deployment": {"pools": [{"role": role, **pool} for role in ("prefill", "decode")]},
        "workload": {"trace": str(TRACES / "s3.parquet"), **load},
    }


def seventy_percent(engine: str, hardware: str, **deployment: Any) -> Callable[[Path], dict[str, Any]]:
    """The 2,000 requests of S1's kind at 70 % of the rate at which this deployment ends them when all are there at once."""

    def scenario(folder: Path) -> dict[str, Any]:
        load = s1_kind(2_000, 1)
        server = {
            "model": LLAMA_8B,
            "deployment": {"engine": engine, "hardware": hardware, **deployment},
            "workload": {**load, "arrivals": {"kind": "batch"}, "drain_s": 1_000_000},
        }
        path = folder / "capacity.yaml"
        path.write_text(json.dumps({"name": "capacity", "seed": 1, **server}))
        words = [sys.executable, "-c", PROGRAM, str(ROOT), "simulate", str(path), "--output", str(folder / "capacity")]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        (result,) = (folder / "capacity").glob("*/result.json")
        rate = 0.7 * json.loads(result.read_text())["totals"]["request_throughput"]
        return {**server, "workload": {**server["workload"], "arrivals": {"kind": "poisson", "rate": rate}}}

    return scenario


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
    "S2-sglang": Case("S2 on SGLang", recorded("s2", engine="sglang")),
    "sessions-16": Case(
        "5,000 requests of chats over 16 replicas, least requests",
        drawn(
            {
                **CHATS,
                "arrivals": {"kind": "poisson", "rate": 10},
                "requests": 5_000,
            },
            replicas=16,
            router="least_requests",
            engine_args={"max_model_len": 32768},
        ),
    ),
    "ngram": Case(
        "10,000 requests of S1's kind with n-gram drafts",
        drawn(
            s1_kind(10_000, 7),
            speculative={"method": "ngram", "num_speculative_tokens": 4, "acceptance": 0.4},
        ),
    ),
    "eagle3": Case(
        "the same with EAGLE-3's",
        drawn(
            s1_kind(10_000, 7),
            speculative={"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.7},
        ),
    ),
    "pipeline": Case(
        "10,000 requests of S1's kind on two stages", drawn(s1_kind(10_000, 7), pipeline_parallel=2)
    ),
    "replicas-8": Case("20,000 requests at 160/s, 8 replicas, least requests", spread(8)),
    "replicas-64": Case("the same over 64 replicas", spread(64)),
    "replicas-256": Case("the same over 256 replicas", spread(256)),
    "roles-vllm": Case("S3 on 4 replicas for prompts and 4 for answers", roles("vllm")),
    "roles-sglang": Case("the same on SGLang", roles("sglang")),
    "roles-trtllm": Case(
        "the same on TensorRT-LLM, clients naming their lengths", roles("trtllm", max_output_tokens="equal")
    ),
    "fleet-1": Case("20,000 requests of S1's kind behind 64 prefixes, one replica of the next", fleet(1, 20_000)),
    "fleet-256": Case("2,000,000 of these over 256 replicas, KV-aware router", fleet(256, 2_000_000)),
    "1M": Case("1,000,000 requests of S1's kind", million),
    "10M": Case("10,000,000 requests of S1's kind, drawn", drawn(s1_kind(10_000_000, 7))),
}
ENGINES = {
    "vllm": seventy_percent("vllm", "h100-sxm-80gb"),
    "sglang": seventy_percent("sglang", "h100-sxm-80gb"),
    "tgi": seventy_percent("tgi", "h100-sxm-80gb"),
    "trtllm": seventy_percent("trtllm", "h100-sxm-80gb"),
    "lmdeploy": seventy_percent("lmdeploy", "h100-sxm-80gb"),
    "turbomind": seventy_percent("lmdeploy", "h100-sxm-80gb", engine_args={"backend": "turbomind"}),
    "transformers": seventy_percent("transformers", "h100-sxm-80gb"),
    "litserve": seventy_percent("litserve", "h100-sxm-80gb"),
    "triton": seventy_percent("triton", "h100-sxm-80gb"),
    "deepspeed_mii": seventy_percent("deepspeed_mii", "a100-sxm-80gb"),
    "deepspeed_inference": seventy_percent("deepspeed_inference", "a100-sxm-80gb"),
    "inferflow": seventy_percent("inferflow", "h100-sxm-80gb", engine_args={"max_context_len": 4096}),
    "mlc_llm": seventy_percent("mlc_llm", "rtx-4090-24gb"),
    "mlx_lm": seventy_percent("mlx_lm", "apple-m4-max-40c-64gb"),
    "openvino": seventy_percent("openvino", "xeon-8592-1s"),
    "llama_cpp": seventy_percent("llama_cpp", "rtx-4090-24gb"),
    "ollama": seventy_percent("ollama", "rtx-4090-24gb"),
    "openarc": seventy_percent("openarc", "arc-b580-12gb", weights="int4"),
    "exllamav2": seventy_percent("exllamav2", "rtx-4090-24gb"),
}
CASES |= {
    f"engine-{name}": Case(f"2,000 requests of S1's kind at 70 % of what {name} carries", scenario)
    for name, scenario in ENGINES.items()
}
COMPILED = "compiled"
"""What `--against` takes beside commits."""
OTHERS = {
    "BLIS (Go), --cache-signal-delay 0": {"S1": 0.16, "S2": 1.6, "S3": 4.0, "S4": 8.5},
    "BLIS (Go), default flags": {"S1": 1.6, "S2": 19.5},
    "simdistserve (SimPy)": {"S1": 1.9, "S2": 18.9},
    "vidur (Python), warm": {"S1": 7.2, "S2": 29.9, "S3": 28.1, "S4": 180.0},
    "splitwise-sim": {"S1": 5.9, "S2": 49.6},
}
"""CPU seconds of other simulators on the same traces and deployments. kind: measured, one run each on a two-core machine that
other work shared, 2026-11; source: ../shared/data/benchmarks/README.md."""
LONG = ("10M", "fleet-256")
"""Cases that run only when they are named: a quarter of an hour."""


@dataclass(frozen=True)
class Measured:
    """What a run took: CPU seconds, peak memory [MB], and requests it had (None for a sweep)."""

    cpu_s: float
    peak_mb: float
    requests: int | None


def scenario_of(name: str, case: Case, folder: Path) -> Path | None:
    """Write a case's scenario; None, with a word why, where it cannot be made."""
    scenario = {"name": name, "seed": 1, **case.scenario(folder)}
    trace = Path(str(scenario["workload"].get("trace", "")))
    if trace.suffix == ".parquet" and not trace.exists():
        print(f"{name:26} left out: there is no {trace}")
        return None
    path = folder / "scenario.yaml"
    path.write_text(json.dumps(scenario))
    return path


def measure(name: str, case: Case, scenario: Path, tree: Path) -> Measured | None:
    """Run a case with the packages of `tree`; None, with a word why, if it fails."""
    verb, *options = case.command
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        arguments = [
            sys.executable,
            "-c",
            PROGRAM,
            str(tree),
            verb,
            str(scenario),
            *options,
            "--output",
            str(folder / "out"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=folder, env=environment)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            told = (folder / "log").read_text()
            print(f"{name:26} failed in {tree} with exit code {child.returncode}:\n{told}")
            return None
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
        results = list((folder / "out").glob("*/result.json")) if verb == "simulate" else []
        requests = json.loads(results[0].read_text())["totals"]["offered"] if results else None
        return Measured(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / MB, requests)


def in_turn(name: str, case: Case, trees: list[Path], runs: int) -> list[Measured] | None:
    """Run a case with each tree in turn, so many times; return the medians of each; None if a run fails."""
    with tempfile.TemporaryDirectory() as place:
        scenario = scenario_of(name, case, Path(place))
        if scenario is None:
            return None
        found: list[list[Measured]] = [[] for _ in trees]
        for _ in range(runs):
            for mine, tree in zip(found, trees, strict=True):
                measured = measure(name, case, scenario, tree)
                if measured is None:
                    return None
                mine.append(measured)
    return [
        Measured(median(m.cpu_s for m in mine), median(m.peak_mb for m in mine), mine[0].requests)
        for mine in found
    ]


def ratio(value: float, before: float | None) -> str:
    """Return the ratio to the baseline, or a dash."""
    return f"{value / before:5.2f}" if before else "    -"


def a_request_ms(measured: Measured) -> str:
    """Return the CPU milliseconds of a request, start-up and writing included, or a dash."""
    return f"{1e3 * measured.cpu_s / measured.requests:6.3f}" if measured.requests else "     -"


@contextmanager
def compiled_build() -> Iterator[Path]:
    """Make the compiled build of this tree and yield the folder with its packages; RuntimeError where nothing was compiled."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
        subprocess.run(make, check=True, env={**os.environ, "HATCH_BUILD_HOOK_ENABLE_MYPYC": "1"})
        (wheel,) = folder.glob("*.whl")
        if wheel.name.endswith("-none-any.whl"):
            raise RuntimeError("nothing was compiled: `pip wheel -v` with HATCH_BUILD_HOOK_ENABLE_MYPYC=1 says why")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "tree")
        yield folder / "tree"


def beside_others(names: list[str]) -> None:
    """Print what other simulators took of the cases that they were run on."""
    told = [name for name in names if any(name in figures for figures in OTHERS.values())]
    if not told:
        return
    print(f"\nCPU s of other simulators, recorded: {', '.join(told)}")
    for title, figures in OTHERS.items():
        print(f"{title:36}" + "".join(f"{figures[name]:8g}" if name in figures else f"{'-':>8}" for name in told))


def main() -> int:
    """Run the cases named on the command line; 1 if one could not be run."""
    parser = argparse.ArgumentParser(description="CPU seconds and peak memory of whole runs")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(CASES)}; all but {', '.join(LONG)} by default",
    )
    parser.add_argument(
        "--against",
        metavar="REV",
        help=f"another commit, whose runs alternate with this tree's, or `{COMPILED}`: its compiled build",
    )
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each case: 1, with --against 3")
    parser.add_argument("--store", action="store_true", help="put what was measured into baseline.json")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in CASES]
    if unknown:
        parser.error(f"no case named {', '.join(unknown)}; there are {', '.join(CASES)}")
    runs = arguments.runs or (3 if arguments.against else 1)
    names = arguments.names or [name for name in CASES if name not in LONG]
    if not arguments.against:
        status = beside_baseline(names, runs, arguments.store)
        beside_others(names)
        return status
    try:
        with compiled_build() if arguments.against == COMPILED else worktree(arguments.against) as other:
            status = beside_other(names, runs, other, arguments.against)
    except (MissingCommitError, RuntimeError) as error:
        print(error)
        return 1
    beside_others(names)
    return status


def beside_other(names: list[str], runs: int, other: Path, revision: str) -> int:
    """Run cases with this tree and another in turn; 1 if one could not be run."""
    for tree in (ROOT, other):  # neither side compiles its modules while it is measured
        subprocess.run([sys.executable, "-m", "compileall", "-q", *PACKAGES], cwd=tree, check=True)
    print(f"medians of {runs}; the second figure of three is that of {revision}, the third their ratio")
    print(f"{'case':26} {'CPU s':^21}  {'peak MB':^17}  {'CPU ms a request':^13}  what")
    complete = True
    for name in names:
        found = in_turn(name, CASES[name], [ROOT, other], runs)
        if found is None:
            complete = False
            continue
        new, old = found
        print(
            f"{name:26} {new.cpu_s:7.2f} {old.cpu_s:7.2f} {ratio(new.cpu_s, old.cpu_s)}  "
            f"{new.peak_mb:5.0f} {old.peak_mb:5.0f} {ratio(new.peak_mb, old.peak_mb)}  "
            f"{a_request_ms(new)} {a_request_ms(old)}     {CASES[name].title}",
            flush=True,
        )
    return 0 if complete else 1


def beside_baseline(names: list[str], runs: int, store: bool) -> int:
    """Run cases and show them beside the stored figures, or store them; 1 if one could not be run."""
    stored = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"cases": {}}
    print(f"{'case':26} {'CPU s':>8} {'ratio':>5} {'peak MB':>8} {'ratio':>5} {'ms a request':>12}  what")
    complete = True
    for name in names:
        found = in_turn(name, CASES[name], [ROOT], runs)
        if found is None:
            complete = False
            continue
        (measured,) = found
        before = stored["cases"].get(name, {})
        print(
            f"{name:26} {measured.cpu_s:8.2f} {ratio(measured.cpu_s, before.get('cpu_s'))} {measured.peak_mb:8.0f} "
            f"{ratio(measured.peak_mb, before.get('peak_mb'))} {a_request_ms(measured):>12}  {CASES[name].title}",
            flush=True,
        )
        if store:
            stored["machine"] = (
                f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {version('numpy')}"
            )
            stored["cases"][name] = {"cpu_s": round(measured.cpu_s, 2), "peak_mb": round(measured.peak_mb)}
            BASELINE.write_text(json.dumps(stored, indent=1) + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
