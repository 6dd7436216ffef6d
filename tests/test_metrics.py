"""Metrics against closed forms and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.outcome import FINISHED, REJECTED, UNFINISHED, ClusterResult
from simulator.results import latencies, statistics
from simulator.results.latencies import Latencies
from simulator.results.rates import Overload
from simulator.results.timeline import Window
from simulator.results.verdict import good_requests, slo_bounds
from simulator.run import RunResult, simulate
from simulator.serving.emissions import Emissions
from simulator.serving.log import StepLog
from tests.counted import rates, server_averages, verdict

SCENARIO: dict[str, Any] = {
    "name": "metrics",
    "seed": 3,
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {
        "engine": "vllm",
        "hardware": "h100-sxm-80gb",
        "replicas": 2,
        "engine_args": {"max_num_seqs": 8, "max_num_batched_tokens": 512, "max_model_len": 4096},
    },
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 14},
        "prompt_tokens": {"kind": "lognormal", "mean": 300, "p99": 2000},
        "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 200},
        "requests": 240,
    },
}


def outcome(arrival_s: Any, end_s: Any, status: Any = None) -> ClusterResult:
    """A result of requests of which only arrival, end and fate are known."""
    arrival, end = np.asarray(arrival_s, float), np.asarray(end_s, float)
    n = len(arrival)
    integers = np.zeros(n, np.int64)
    return ClusterResult(
        status=np.full(n, FINISHED) if status is None else np.asarray(status),
        reason=integers,
        arrival_s=arrival,
        engine_arrival_s=arrival,
        first_scheduled_s=arrival,
        first_token_s=end,
        end_s=end,
        prompt_tokens=integers + 1,
        output_tokens=integers + 1,
        cached_tokens=integers,
        preemptions=integers,
        replica=integers,
        emissions=Emissions(n),
        logs=[StepLog()],
        capacity_blocks=[1],
        hit_tokens=0,
        queried_tokens=0,
        end_of_run_s=float(np.nanmax(end)),
    )


def latencies_of(ttft: Any, tpot: Any, e2el: Any) -> Latencies:
    nothing = np.full(len(e2el), np.nan)
    return Latencies(
        np.asarray(ttft, float), np.asarray(tpot, float), np.asarray(e2el, float), *[nothing] * 12
    )


# Quantiles and intervals ----------------------------------------------------------------------------------


@given(
    pairs=st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 9)), min_size=1, max_size=40),
    percents=st.lists(st.floats(0, 100), min_size=1, max_size=5),
)
def test_weighted_quantiles_are_those_of_the_values_repeated(
    pairs: list[tuple[float, int]], percents: list[float]
) -> None:
    values, weights = np.array([v for v, _ in pairs]), np.array([w for _, w in pairs])
    found = statistics.weighted_quantiles(values, weights, tuple(percents))
    wanted = np.percentile(np.repeat(values, weights), percents)
    assert found == pytest.approx(wanted.tolist(), rel=1e-9, abs=1e-6)


@given(pairs=st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 5)), min_size=1, max_size=60))
def test_weighted_statistics_are_those_of_the_values_repeated(pairs: list[tuple[float, int]]) -> None:
    values, weights = np.array([v for v, _ in pairs]), np.array([w for _, w in pairs], np.int64)
    weighted = statistics.statistics(values, "ms", weights)
    plain = statistics.statistics(np.repeat(values, weights), "ms")
    assert weighted["count"] == plain["count"]
    for name in ("mean", "std", "min", "p1", "p50", "p99", "p99_9", "max"):
        if plain[name] is None:
            assert weighted[name] is None
        else:
            assert weighted[name] == pytest.approx(plain[name], rel=1e-7, abs=1e-4), name


def test_statistics_leave_out_what_is_undefined() -> None:
    stats = statistics.statistics(np.array([1.0, np.nan, 3.0]), "ms")
    assert (stats["count"], stats["mean"], stats["p50"], stats["max"]) == (2, 2.0, 2.0, 3.0)
    assert statistics.statistics(np.array([np.nan]), "ms")["mean"] is None


def ar1(rng: np.random.Generator, n: int, phi: float) -> np.ndarray[Any, Any]:
    """Correlated values of mean zero."""
    values, noise = np.empty(n), rng.normal(size=n)
    last = noise[0] / (1 - phi**2) ** 0.5
    for i in range(n):
        last = phi * last + noise[i]
        values[i] = last
    return values


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_batch_means_cover_the_mean_of_independent_and_of_correlated_values(phi: float) -> None:
    rng = np.random.default_rng(5)
    covered = naive = 0
    for _ in range(200):
        values = ar1(rng, 4000, phi)
        low, high = statistics.batch_means_ci95(values) or [0, 0]
        covered += low <= 0 <= high
        naive += abs(values.mean()) <= 1.96 * values.std() / len(values) ** 0.5
    assert 0.90 <= covered / 200 <= 0.99
    assert phi == 0 or naive / 200 < 0.6  # what an interval that takes them for independent would reach


def test_no_interval_from_too_few_values() -> None:
    assert statistics.batch_means_ci95(np.arange(39.0)) is None
    assert statistics.batch_means_ci95(np.arange(40.0)) is not None


# Tokens ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> tuple[RunResult, RunResult]:
    """The same load executed by jumps and step by step."""
    return simulate(SCENARIO), simulate(SCENARIO, aggregate=False)


def token_times(result: ClusterResult, *, sent: bool = True) -> list[np.ndarray[Any, Any]]:
    """When every token of every request is sent, or the end of its step, one by one."""
    ends = [list(log.sent_s if sent else log.end_s) for log in result.logs]
    return [
        np.array([ends[log][step] for log, a, b in result.emissions.of(row) for step in range(a, b + 1)])
        for row in range(len(result.emissions))
    ]


def test_every_request_has_as_many_tokens_as_it_asked_for(runs: tuple[RunResult, RunResult]) -> None:
    for run in runs:
        raw = run.raw
        assert [len(times) for times in token_times(raw)] == raw.output_tokens.tolist()
        for times, first, end in zip(token_times(raw), raw.first_token_s, raw.end_s, strict=True):
            assert (times[0], times[-1]) == (first, end)
            assert (np.diff(times) > 0).all()


def test_token_gaps_are_the_differences_of_token_times_step_by_step(
    runs: tuple[RunResult, RunResult],
) -> None:
    fast, slow = runs
    rows = np.arange(len(fast.workload)) % 3 > 0
    gaps, weights = latencies.token_gaps(fast.raw, rows)
    brute = np.concatenate(
        [np.diff(times) for times, chosen in zip(token_times(slow.raw), rows, strict=True) if chosen]
    )
    assert weights.sum() == len(brute)
    np.testing.assert_array_equal(np.sort(np.repeat(gaps, weights)), np.sort(brute))


@pytest.mark.parametrize("window", [Window(0, 1e9), Window(3.0, 9.0), Window(5.0, 5.5), Window(1e5, 2e5)])
def test_tokens_of_a_window_are_those_that_end_in_it(
    window: Window, runs: tuple[RunResult, RunResult]
) -> None:
    fast, slow = runs
    times = np.concatenate(token_times(slow.raw, sent=False))
    wanted = ((times >= window.start_s) & (times <= window.end_s)).sum()
    assert rates(fast.raw, window).tokens.between(np.array([window.start_s, window.end_s])) == [wanted]


def test_latencies_follow_their_definitions(runs: tuple[RunResult, RunResult]) -> None:
    raw = runs[0].raw
    lat = latencies.latencies(raw, extra_s=0.010)
    times = token_times(raw)
    ttft = np.array([t[0] for t in times]) - raw.arrival_s
    e2el = np.array([t[-1] for t in times]) - raw.arrival_s
    np.testing.assert_allclose(lat.ttft_ms, (ttft + 0.010) * 1e3)
    np.testing.assert_allclose(lat.e2el_ms, (e2el + 0.010) * 1e3)
    several = raw.output_tokens > 1
    assert np.isnan(lat.tpot_ms[~several]).all()
    gap = np.array([np.diff(t).mean() for t, more in zip(times, several, strict=True) if more])
    np.testing.assert_allclose(lat.tpot_ms[several], gap * 1e3)


# Little's law ---------------------------------------------------------------------------------------------


def test_littles_law_on_an_empty_to_empty_run(runs: tuple[RunResult, RunResult]) -> None:
    """Mean number in the system = completions a second x mean time in it (here: in the engine)."""
    raw = runs[0].raw
    window = Window(0.0, raw.end_of_run_s)
    averages = server_averages(raw, window)
    inside = (averages["num_requests_running"] + averages["num_requests_waiting"]) * len(raw.logs)
    completions_per_s = len(raw.status) / window.length_s
    mean_s = float((raw.end_s - raw.engine_arrival_s).mean())
    # a request that arrives during a step is counted from the next step on
    assert inside == pytest.approx(completions_per_s * mean_s, rel=0.05)
    assert runs[0].result["totals"]["request_throughput"] == pytest.approx(completions_per_s, rel=1e-9)


# The verdict ----------------------------------------------------------------------------------------------


def test_verdict_takes_the_named_percentiles() -> None:
    lat = latencies_of(range(1, 101), range(101, 201), range(201, 301))
    held = verdict(lat, {"ttft_ms": {"p50": 50.5, "p90": 91}})
    assert held["holds"]
    assert [check["actual_ms"] for check in held["checks"]] == pytest.approx([50.5, 90.1])
    missed = verdict(lat, {"ttft_ms": {"p50": 50.4}, "e2el_ms": {"p99": 1000}})
    assert not missed["holds"]
    assert [check["holds"] for check in missed["checks"]] == [False, True]


def test_lost_requests_count_as_infinitely_late() -> None:
    ttft = np.array([10.0] * 97 + [np.nan] * 3)
    lat = latencies_of(ttft, ttft, ttft)
    checks = verdict(lat, {"ttft_ms": {"p90": 20, "p99": 20}})["checks"]
    assert [check["holds"] for check in checks] == [True, False]
    assert checks[1]["actual_ms"] is None
    attained = verdict(lat, {"ttft_ms": {"p50": 20}, "attainment": 0.98})
    assert attained["attainment"] == pytest.approx(0.97)
    assert not attained["holds"]
    assert verdict(lat, {"ttft_ms": {"p50": 20}, "attainment": 0.97})["holds"]


def test_nothing_to_judge_is_no_success() -> None:
    lat = latencies_of([np.nan], [np.nan], [np.nan])
    assert not verdict(lat, {"ttft_ms": {"p50": 1}}, np.zeros(1, bool))["holds"]


def test_a_good_request_keeps_the_highest_percentiles_bound() -> None:
    lat = latencies_of([1, 5, 1, 1], [1, 1, 9, np.nan], [9, 9, 9, 9])
    slo = {"ttft_ms": {"p50": 2, "p99": 4}, "tpot_ms": {"p90": 8}, "itl_ms": {"p99": 0.001}}
    assert slo_bounds(slo) == {"ttft_ms": 4.0, "tpot_ms": 8.0, "itl_ms": 0.001}
    assert good_requests(lat, slo).tolist() == [True, False, False, True]


def test_a_requests_itl_is_weighed_by_its_tokens() -> None:
    gaps = (np.array([0.010, 0.100]), np.array([98, 2]))
    lat = latencies_of([1], [1], [1])
    checks = verdict(lat, {"itl_ms": {"p95": 50, "p99": 50}}, gaps=gaps)["checks"]
    assert [check["holds"] for check in checks] == [True, False]


# Overload -------------------------------------------------------------------------------------------------


def single_server(load: float, n: int = 4000, service_s: float = 0.1) -> tuple[ClusterResult, float]:
    """Poisson arrivals at one server of constant service time (M/D/1), and the last arrival."""
    arrival = np.cumsum(np.random.default_rng(11).exponential(service_s / load, n))
    end = np.empty(n)
    free = 0.0
    for i, at in enumerate(arrival.tolist()):
        free = max(free, at) + service_s
        end[i] = free
    return outcome(arrival, end), float(arrival[-1])


def overloaded(result: ClusterResult, end_s: float) -> Overload | None:
    """Overload over the window from 0 to `end_s`."""
    window = Window(0, end_s)
    return rates(result, window).overload(window, int((result.status == UNFINISHED).sum()))


@pytest.mark.parametrize("load", [0.3, 0.8, 0.93])
def test_a_stable_queue_is_no_overload(load: float) -> None:
    result, last = single_server(load)
    assert overloaded(result, last) is None


@pytest.mark.parametrize("load", [1.15, 1.5, 4.0])
def test_an_overloaded_queue_sustains_its_service_rate(load: float) -> None:
    result, last = single_server(load)
    found = overloaded(result, last)
    assert found is not None
    assert found.sustainable_per_s == pytest.approx(10.0, rel=0.01)
    assert found.offered_per_s == pytest.approx(10.0 * load, rel=0.06)
    assert found.backlog == pytest.approx((result.end_s > last).sum(), abs=1)


def test_a_handful_of_requests_is_no_overload() -> None:
    arrival = np.linspace(0, 10, 30)
    assert overloaded(outcome(arrival, arrival + 4.0), 10) is None


def test_rejected_requests_are_no_overload() -> None:
    n = 1000
    status = np.where(np.arange(n) % 2, REJECTED, FINISHED)
    arrival = np.linspace(0, 100, n)
    end = np.where(status == FINISHED, arrival + 0.1, np.nan)
    assert overloaded(outcome(arrival, end, status), 100) is None


def test_requests_that_never_end_are_overload() -> None:
    n = 1000
    arrival = np.linspace(0, 100, n)
    status = np.where(np.arange(n) % 2, UNFINISHED, FINISHED)
    end = np.where(status == FINISHED, arrival + 0.1, np.nan)
    found = overloaded(outcome(arrival, end, status), 100)
    assert found is not None
    assert found.sustainable_per_s == pytest.approx(5.0, rel=0.02)


# Rates ----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_rate_intervals_lie_around_the_rate(seed: int) -> None:
    arrival = np.sort(np.random.default_rng(seed).uniform(0, 100, 600))
    result = outcome(arrival, arrival + 0.5)
    window = Window(10, 90)
    low, high = rates(result, window).ci95(window, judged=False)["request_throughput"] or [0, 0]
    rate = ((result.end_s >= 10) & (result.end_s <= 90)).sum() / 80
    assert (low + high) / 2 == pytest.approx(rate)
    assert low < high


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_percentiles_are_those_of_numpy_to_the_bit(values: list[float], percents: list[float]) -> None:
    found = statistics.percentiles(np.array(values), percents)
    assert found == np.percentile(np.array(values), percents).tolist()


def test_no_confidence_interval_begins_below_zero() -> None:
    """One long latency among short ones: the half-width is longer than the mean."""
    values = np.array([0.001] * 399 + [10.0])
    found = statistics.batch_means_ci95(values)
    assert found is not None
    assert found[0] == 0.0
    assert found[1] == pytest.approx(values.mean() + 2.093 * values.reshape(20, 20).mean(axis=1).std(ddof=1) / 20**0.5, rel=1e-3)
