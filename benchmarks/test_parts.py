"""Inner parts by themselves, with pytest-benchmark: python -m pytest -n 0 benchmarks/test_parts.py

Not collected with the tests. `--benchmark-autosave` and `--benchmark-compare` keep and compare figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pytest_benchmark")

from engine_models.parts.batch import Batch
from simulator.cluster.router import LeastRequests
from simulator.config.load import load_scenario
from simulator.io.tables import Coded, Numbered, write_columns
from simulator.prepare import prepare
from simulator.results.latencies import token_gaps
from simulator.results.sketch import LogHistogram
from simulator.results.statistics import statistics
from simulator.results.timeline import Bins
from simulator.run import RunResult, simulate
from simulator.serving.replica import Replica
from simulator.workload import streaming
from simulator.workload.spec import WorkloadSpec

SCENARIO: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 7},
        "prompt_tokens": {"kind": "normal", "mean": 512, "std": 128},
        "output_tokens": {"kind": "normal", "mean": 128, "std": 32},
        "requests": 2000,
    },
}


@pytest.fixture(scope="module")
def run() -> RunResult:
    return simulate(SCENARIO)


def test_prepare(benchmark: Any) -> None:
    benchmark(lambda: prepare(load_scenario(SCENARIO)).times())


def test_simulate_2000_requests(benchmark: Any) -> None:
    benchmark(lambda: simulate(SCENARIO))


def test_decode_step_prices(benchmark: Any) -> None:
    times = prepare(load_scenario(SCENARIO)).times()
    benchmark(lambda: times.run_s((Batch(0, 64, 64, 40_000, tokens=64),), 200))


def test_gaps_between_tokens(benchmark: Any, run: RunResult) -> None:
    benchmark(lambda: token_gaps(run.raw, run.raw.status == 0))


def test_statistics_of_gaps(benchmark: Any, run: RunResult) -> None:
    values, weights = run.gaps
    benchmark(lambda: statistics(values, "ms", weights))


def test_timeline(benchmark: Any, run: RunResult) -> None:
    benchmark(lambda: Bins(1).add(run.raw.logs[0].records()))


def test_histogram_of_100_000_values(benchmark: Any) -> None:
    values = np.random.default_rng(1).lognormal(size=100_000)
    benchmark(lambda: LogHistogram().add(values))


def test_block_of_drawn_requests(benchmark: Any) -> None:
    spec = WorkloadSpec.model_validate({**SCENARIO["workload"], "requests": 10_000_000})
    stream = streaming.open_stream(spec, seed=1, base_dir=Path(), above=1000)
    assert stream is not None
    blocks = stream.blocks()
    benchmark.pedantic(lambda: next(blocks), rounds=100)  # of the 306 that there are


def test_table_of_100_000_requests(benchmark: Any, tmp_path: Path) -> None:
    n = 100_000
    columns = {
        "id": Numbered("r", 0, n),
        "x": np.random.default_rng(1).random(n),
        "why": Coded(np.zeros(n, np.int8), ("stop",)),
    }
    benchmark(lambda: write_columns(columns, tmp_path / "t.parquet"))


@pytest.mark.parametrize("replicas", [8, 64, 256])
def test_choice_of_a_replica(benchmark: Any, replicas: int) -> None:
    prepared = prepare(load_scenario(SCENARIO))
    times = prepared.times()
    router = LeastRequests([Replica([prepared.plan.scheduler("jump")], times) for _ in range(replicas)])

    def choose() -> None:
        router.note(router.choose(0.0))

    benchmark(choose)
