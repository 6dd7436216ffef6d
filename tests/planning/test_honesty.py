"""Sampling error of every metric, and verdicts that it leaves open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.results.latencies import Latencies
from simulator.results.rates import RATES
from simulator.results.statistics import Share, statistics, weighted_batches
from simulator.results.timeline import Window
from simulator.results.verdict import with_model_error
from simulator.run import simulate
from tests.counted import rates, verdict

SLO: dict[str, Any] = {"ttft_ms": {"p90": 100.0}}


def lat(ttft_ms: np.ndarray[Any, Any]) -> Latencies:
    return Latencies(*[ttft_ms] * len(Latencies.__annotations__))


def judge(ttft_ms: np.ndarray[Any, Any], slo: dict[str, Any] = SLO) -> dict[str, Any]:
    return verdict(lat(ttft_ms), slo)


def late(share: float, count: int = 2000, seed: int = 1) -> np.ndarray[Any, Any]:
    """Latencies of which `share` lie beyond 100 ms."""
    return np.where(np.random.default_rng(seed).random(count) < share, 120.0, 80.0)


@pytest.mark.parametrize(
    ("share", "holds", "close"),
    [(0.0, True, False), (0.05, True, False), (0.2, False, False), (1.0, False, False)],
)
def test_a_clear_verdict_is_not_close(share: float, holds: bool, close: bool) -> None:
    found = judge(late(share))
    assert (found["holds"], found["close"]) == (holds, close)


@pytest.mark.parametrize("seed", range(8))
def test_a_share_at_the_bound_is_close(seed: int) -> None:
    assert judge(late(0.1, seed=seed))["close"]


def test_a_shorter_run_is_close_where_a_longer_one_is_not() -> None:
    assert judge(late(0.085, 300))["close"]
    assert not judge(late(0.085, 100_000))["close"]


@pytest.mark.parametrize("count", [100, 120, 1000])
def test_one_lost_request_does_not_open_a_wide_margin(count: int) -> None:
    values = late(0.0, count)
    values[count // 2] = np.nan
    found = judge(values)
    assert found["holds"]
    assert not found["close"]


def test_lost_requests_at_the_bound_leave_it_open() -> None:
    values = late(0.0, 100)
    values[::12] = np.nan
    assert judge(values)["close"]


def test_a_burst_says_less_than_as_many_requests_late_apart() -> None:
    """30 of 3,000 late under a bound of 2 %: one burst of them may come twice, 30 strangers will not."""
    slo = {"ttft_ms": {"p98": 100.0}}
    apart, burst = late(0.0, 3000), late(0.0, 3000)
    apart[::100] = 120.0
    burst[1000:1030] = 120.0
    assert judge(burst, slo)["close"]
    assert not judge(apart, slo)["close"]


def test_the_share_of_few_is_wilson_s_bound() -> None:
    batches = np.zeros(20)
    batches[4] = 20 / 100
    n = 0.0099 / (0.2**2 / 20 / 20)  # as many as the spread of the batches says: 99
    t = 1.729
    upper = (0.01 + t**2 / (2 * n) + t * (0.0099 / n + t**2 / (4 * n**2)) ** 0.5) / (1 + t**2 / n)
    assert Share(1, 100, batches).open(upper * 0.999)
    assert not Share(1, 100, batches).open(upper * 1.001)


def test_lost_requests_are_infinitely_late() -> None:
    values = late(0.0)
    values[::4] = np.nan
    found = judge(values)
    assert not found["holds"]
    assert found["checks"][0]["actual_ms"] is None


def test_attainment_near_what_is_wanted_is_close() -> None:
    assert judge(late(0.1), {**SLO, "ttft_ms": {"p50": 100.0}, "attainment": 0.9})["close"]


def test_the_model_s_error_opens_a_verdict() -> None:
    found = judge(late(0.0))
    inside = {"ttft_ms": {"interval": {"p90": [60.0, 110.0]}}}
    outside = {"ttft_ms": {"interval": {"p90": [60.0, 95.0]}}}
    unbounded = {"ttft_ms": {"interval": {"p90": [60.0, None]}}}
    assert with_model_error(found, inside)["close"]
    assert not with_model_error(found, outside)["close"]
    assert with_model_error(found, unbounded)["close"]
    assert not with_model_error(found, {"ttft_ms": {"interval": None}})["close"]


def test_the_model_s_error_does_not_bring_back_lost_requests() -> None:
    """A quarter is lost, so the 90th percentile is; a tenth more served does not reach it, a fifth more does."""
    values = late(0.0)
    values[::4] = np.nan
    found = judge(values)
    stats = {"ttft_ms": {"interval": {"p90": [60.0, 110.0]}}, "e2el_ms": {"count": 75 * len(values) // 100}}
    assert not with_model_error(found, stats)["close"]
    assert not with_model_error(found, stats, None, 1.1)["close"]
    assert with_model_error(found, stats, None, 1.21)["close"]


def test_the_model_s_error_opens_the_attainment() -> None:
    found = judge(late(0.05), {"ttft_ms": {"p50": 100.0}, "attainment": 0.9})
    assert found["holds"]
    assert not found["close"]
    assert with_model_error(found, {"ttft_ms": {"interval": None}}, [0.8, 0.99])["close"]
    assert not with_model_error(found, {"ttft_ms": {"interval": None}}, [0.92, 0.99])["close"]


def test_one_clear_miss_settles_the_verdict() -> None:
    slo = {"ttft_ms": {"p50": 79.0, "p90": 100.0}}
    found = judge(late(0.1), slo)
    assert not found["holds"]
    assert not found["close"]


def test_weighted_batches_are_the_means_of_equal_stretches() -> None:
    values = np.repeat(np.arange(20.0), 50)
    batches = weighted_batches(values, np.full(1000, 3))
    assert batches is not None
    assert batches == pytest.approx(np.arange(20.0))


def test_the_interval_of_pooled_gaps_covers_the_mean_nineteen_times_in_twenty() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        weights = rng.integers(1, 9, 2000)
        stats = statistics(rng.exponential(10.0, 2000), "ms", weights)
        low, high = stats["ci95"]
        covered += low <= 10.0 <= high
    assert 180 <= covered <= 198


SCENARIO = {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb", "replicas": 2},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 6},
        "prompt_tokens": {"kind": "constant", "value": 300},
        "output_tokens": {"kind": "uniform", "low": 1, "high": 60},
        "duration": 60,
        "warmup": 10,
    },
}


def test_every_metric_of_a_run_has_its_sampling_error() -> None:
    run = simulate(SCENARIO)
    for name, stats in run.result["metrics"].items():
        low, high = stats["ci95"]
        assert low <= stats["mean"] <= high, name


def test_the_rates_of_the_stretches_add_up_to_the_run_s() -> None:
    run = simulate(SCENARIO)
    good = ~np.isnan(run.raw.end_s)
    found = rates(run.raw, Window(10.0, 60.0), good).ci95(Window(10.0, 60.0), judged=True)
    for name in ("request_throughput", "input_throughput", "output_throughput", "total_token_throughput"):
        low, high = found[name] or [0.0, 0.0]
        assert (low + high) / 2 == pytest.approx(run.result["totals"][name]), name
    assert found["request_goodput"] is not None
    assert rates(run.raw, Window(5.0, 5.0)).ci95(Window(5.0, 5.0), judged=False) == dict.fromkeys(RATES)
