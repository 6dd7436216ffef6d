"""The timeline adds up to the log of the steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.timeline import MAX_ROWS, MIN_BIN_S, Window, _Spread
from simulator.run import RunResult, simulate
from tests.counted import server_averages

SCENARIO: dict[str, Any] = {
    "name": "timeline",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {
        "engine": "vllm",
        "hardware": "h100-sxm-80gb",
        "replicas": 2,
        "engine_args": {"gpu_memory_utilization": 0.26, "max_model_len": 4096},
    },
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 60},
        "prompt_tokens": {"kind": "lognormal", "mean": 600, "p99": 2000},
        "output_tokens": {"kind": "lognormal", "mean": 200, "p99": 900},
        "duration": 20,
    },
}


@pytest.fixture(scope="module")
def run() -> RunResult:
    """Two replicas with so small a cache that requests are preempted."""
    result = simulate(SCENARIO)
    assert result.raw.preemptions.sum() > 0
    return result


def logged(run: RunResult, replica: int, name: str) -> float:
    """Sum of a column of a replica's log, by step."""
    return float(run.raw.logs[replica].records()[name].sum())


@pytest.mark.parametrize("name", ["prefill_tokens", "decode_tokens", "preemptions"])
def test_totals_are_those_of_the_log(name: str, run: RunResult) -> None:
    for replica in range(2):
        mine = run.timeline["instance_id"] == replica
        assert run.timeline[name][mine].sum() == pytest.approx(
            logged(run, replica, name), rel=1e-9
        )
    assert run.timeline["preemptions"].sum() == run.raw.preemptions.sum()


def test_output_tokens_of_the_log_are_those_of_the_requests(run: RunResult) -> None:
    """Every decode row yields a token; a prompt's last chunk yields one too, but its tokens count as prefill."""
    decoded = sum(logged(run, replica, "decode_tokens") for replica in range(2))
    assert decoded >= (run.raw.output_tokens - 1).sum() - run.raw.preemptions.sum()


def test_busy_time_is_the_devices_time(run: RunResult) -> None:
    mine = run.timeline["instance_id"] == 0
    assert run.timeline["busy_fraction"][mine].sum() * MIN_BIN_S == pytest.approx(
        logged(run, 0, "device_s"), rel=1e-9
    )
    assert (run.timeline["busy_fraction"] <= 1).all()


def test_averages_over_the_run_are_those_of_the_timeline(run: RunResult) -> None:
    """Weighed by the time in which the replica worked, bins give the mean that `server_averages` gives directly."""
    averages = server_averages(run.raw, Window(0.0, run.raw.end_of_run_s))
    assert averages["num_preemptions"] == run.raw.preemptions.sum()
    assert averages["kv_cache_usage_perc_peak"] <= 1
    assert averages["kv_cache_usage_perc_peak"] >= run.timeline["kv_usage"].max() - 1e-9
    assert averages["num_requests_running_peak"] >= run.timeline["running"].max() - 1e-9
    busy = averages["busy_prefill_s"] + averages["busy_decode_s"]
    assert busy == pytest.approx(
        sum(logged(run, replica, "device_s") for replica in range(2)), rel=1e-6
    )
    assert averages["busy_prefill_s"] == pytest.approx(
        sum(logged(run, replica, "prefill_s") for replica in range(2)), rel=1e-6
    )


def test_halves_of_the_window_add_up(run: RunResult) -> None:
    end = run.raw.end_of_run_s
    whole = server_averages(run.raw, Window(0.0, end))
    halves = [server_averages(run.raw, Window(0.0, end / 2)), server_averages(run.raw, Window(end / 2, end))]
    for name in ("busy_prefill_s", "busy_decode_s"):
        assert sum(half[name] for half in halves) == pytest.approx(whole[name], rel=1e-9)
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_busy_fraction"):
        assert np.mean([half[name] for half in halves]) == pytest.approx(whole[name], rel=1e-9), name


def test_rows_are_bounded_and_in_order(run: RunResult) -> None:
    columns = run.timeline
    per_replica = len(columns["t_s"]) // 2
    assert per_replica <= MAX_ROWS
    assert (np.diff(columns["t_s"][:per_replica]) > 0).all()
    assert columns["instance_id"].tolist() == [0] * per_replica + [1] * per_replica


@given(
    spans=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0.001, 2), st.floats(0, 100)), min_size=1, max_size=30
    ),
    bins=st.integers(1, 50),
)
def test_steps_are_spread_over_bins_by_their_overlap(spans: list[tuple[float, float, float]], bins: int) -> None:
    pause, width, amount = (np.array(column) for column in zip(*spans, strict=True))
    end = np.cumsum(pause + width)
    start = end - width
    edges = np.linspace(0.0, 100.0, bins + 1)
    found = _Spread({"start_s": start, "until_s": end}, edges).sums(amount)
    overlap = np.clip(np.minimum(end[:, None], edges[1:]) - np.maximum(start[:, None], edges[:-1]), 0, None)
    wanted = (overlap / (end - start)[:, None] * amount[:, None]).sum(axis=0)
    np.testing.assert_allclose(
        found, wanted, rtol=1e-6, atol=1e-6 * max(1.0, amount.max() / (end - start).min() * 1e-3)
    )
    assert found.sum() == pytest.approx(amount.sum(), rel=1e-6, abs=1e-6)
