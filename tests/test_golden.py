"""Results of small runs, to the last bit, against stored digests: what only makes the simulator quicker may not move them.

A digest is of one column, so that a difference names what moved. Floating-point results differ in the last digit between
processors and library versions, so a comparison is made only where the digests were recorded; elsewhere it is skipped.
CAPACITY_PLAN_GOLDEN=1 records anew, after a change that means to move predictions: say in the changelog why they moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.run import RunResult, simulate

GOLDEN = Path(__file__).parent / "golden" / "runs.json"
RECORD = os.environ.get("CAPACITY_PLAN_GOLDEN") == "1"


def scenario(name: str, deployment: dict[str, Any], workload: dict[str, Any]) -> dict[str, Any]:
    lengths = {
        "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 2000},
        "output_tokens": {"kind": "lognormal", "mean": 150, "p99": 900},
    }
    return {
        "name": name,
        "seed": 7,
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {
            "engine": "vllm",
            "hardware": "h100-sxm-80gb",
            "engine_args": {"max_model_len": 4096},
            **deployment,
        },
        "workload": {"arrivals": {"kind": "poisson", "rate": 20}, **lengths, "requests": 300, **workload},
        "slo": {"ttft_ms": {"p99": 500}, "tpot_ms": {"p99": 30}, "itl_ms": {"p99": 60}},
    }


TIGHT = {"max_model_len": 4096, "gpu_memory_utilization": 0.24}
SCENARIOS = {
    "one-replica": scenario("one-replica", {}, {}),
    "round-robin": scenario("round-robin", {"replicas": 3}, {"arrivals": {"kind": "poisson", "rate": 60}}),
    "least-requests": scenario("least-requests", {"replicas": 3, "router": "least_requests"}, {}),
    "preemptions": scenario(
        "preemptions", {"engine_args": TIGHT}, {"arrivals": {"kind": "poisson", "rate": 60}}
    ),
    "pipeline": scenario("pipeline", {"pipeline_parallel": 2}, {"requests": 60}),
    "sglang": scenario("sglang", {"engine": "sglang", "engine_args": {}}, {}),
    "sessions": scenario(
        "sessions",
        {"engine_args": {"max_model_len": 32768}},
        {"arrivals": {"kind": "poisson", "rate": 2}, "sessions": {"turns": 5, "think_time_s": 2}},
    ),
}


def platform_key() -> dict[str, str]:
    """What may change the last digit: processor, its vector units as numpy uses them, Python and numpy."""
    features: dict[str, bool] = import_module("numpy._core._multiarray_umath").__cpu_features__
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": np.__version__,
        "vector_units": " ".join(sorted(name for name, present in features.items() if present)),
    }


def digest(values: Any) -> str:
    """Digest of a column: integers, texts, or times with NaN for none."""
    array = np.asarray(values)
    if array.dtype.kind in "OU":
        data = json.dumps(array.tolist()).encode()
    else:
        data = np.ascontiguousarray(
            array, dtype=np.float64 if array.dtype.kind == "f" else np.int64
        ).tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def digests(run: RunResult) -> dict[str, str]:
    """Digests of every column of a run, of the gaps between tokens, and of the metrics without their error intervals."""
    found = {f"requests.{name}": digest(column) for name, column in run.requests.items()}
    found |= {f"timeline.{name}": digest(column) for name, column in run.timeline.items()}
    gaps, counts = run.gaps
    found |= {"gaps.s": digest(gaps[counts > 0]), "gaps.count": digest(counts[counts > 0])}
    for name, stats in run.result["metrics"].items():
        plain = {key: value for key, value in stats.items() if key != "interval"}
        found[f"metrics.{name}"] = hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
    found["totals.ci95"] = hashlib.sha256(json.dumps(run.result["totals"]["ci95"]).encode()).hexdigest()[:16]
    return found


def test_each_scenario_reaches_what_it_is_there_for() -> None:
    assert simulate(SCENARIOS["preemptions"]).raw.preemptions.sum() > 20
    assert any(spans and len(spans) > 1 for spans in simulate(SCENARIOS["sglang"]).raw.emissions)
    assert simulate(SCENARIOS["sessions"]).raw.cached_tokens.sum() > 0


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_result_is_that_recorded(name: str) -> None:
    stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"platform": None, "runs": {}}
    here = platform_key()
    if RECORD:
        runs = stored["runs"] if stored["platform"] == here else {}
        runs[name] = digests(simulate(SCENARIOS[name]))
        GOLDEN.write_text(json.dumps({"platform": here, "runs": dict(sorted(runs.items()))}, indent=1) + "\n")
        return
    other = [key for key, value in here.items() if stored["platform"][key] != value]
    if other:
        pytest.skip(f"recorded with another {', '.join(other)}; CAPACITY_PLAN_GOLDEN=1 records anew")
    found, golden = digests(simulate(SCENARIOS[name])), stored["runs"][name]
    moved = sorted(key for key in found.keys() | golden.keys() if found.get(key) != golden.get(key))
    assert not moved, (
        f"results moved: {', '.join(moved)}; CAPACITY_PLAN_GOLDEN=1 records them if that is meant"
    )
