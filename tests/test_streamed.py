"""A streamed run has the requests of one in memory, bit for bit, its counts and sums, and percentiles within the stated error."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import simulator.run
from simulator.io.tables import read_columns
from simulator.results import statistics
from simulator.results.sketch import RELATIVE_ERROR, SMALLEST, LogHistogram
from simulator.results.statistics import weighted_quantiles
from simulator.run import RunResult, simulate
from simulator.workload import drawn, streaming
from tests.effort import examples, some


def scenario(requests: int, **deployment: Any) -> dict[str, Any]:
    rate = 12 * deployment.get("replicas", 1)
    return {
        "name": "s",
        "seed": 3,
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb", **deployment},
        "workload": {
            "arrivals": {"kind": "poisson", "rate": rate},
            "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 2000},
            "output_tokens": {"kind": "lognormal", "mean": 150, "p99": 900},
            "duration": requests / rate,
            "warmup": 5,
        },
        "slo": {"ttft_ms": {"p99": 60}, "tpot_ms": {"p50": 30}, "itl_ms": {"p99": 60}, "attainment": 0.8},
    }


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 100 requests, so that a small run has many."""
    monkeypatch.setattr(streaming, "BLOCK", 100)


def both(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[RunResult, RunResult]:
    monkeypatch.setattr(statistics, "PIECE", 16)  # so that a small run has sampling errors
    whole = simulate(given)
    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 100)
    parts = simulate(given)
    assert isinstance(parts.requests, Path)
    return whole, parts


def assert_same_requests(whole: RunResult, parts: RunResult) -> None:
    assert isinstance(parts.requests, Path)
    columns = read_columns(parts.requests)
    assert list(columns) == list(whole.requests)
    for name, column in dict(whole.requests).items():
        wanted, found = np.asarray(column), columns[name]
        if wanted.dtype.kind == "O":
            assert list(found) == list(wanted), name
        else:
            np.testing.assert_array_equal(found.astype(float), wanted.astype(float), err_msg=name)


def test_replicas_that_come_and_go_stream_alike(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lives of a replica share a log of which steps are dropped as they are counted; tries wait across blocks."""
    events = [{"at_s": 15, "replica": 0, "kind": "gpu", "for_s": 2}, {"at_s": 30, "replica": 1, "kind": "gpu", "for_s": 0}]
    changing: dict[str, Any] = {
        "failures": {"events": events, "start_up": 1, "mtbf_h": 0.02, "of": "replica", "repair_s": 1},
        "autoscaler": {"kind": "hpa", "metric": "requests_in_flight", "target": 6, "max_replicas": 4, "start_up": 2},
    }
    given = scenario(1200, replicas=2, router="least_requests", **changing) | {"client": {"retries": {"attempts": 3}}}
    given["workload"] |= {"duration": None, "requests": 1200, "drain_s": 20}
    whole, parts = both(given, monkeypatch)
    assert whole.result["fleet"] == parts.result["fleet"]
    assert whole.result["fleet"]["attempts_lost"] > 0
    assert whole.result["fleet"]["added"] > 0
    assert sum(whole.result["fleet"]["faults"].values()) > len(events)
    assert_same_requests(whole, parts)
    assert_same_metrics(whole.result["metrics"], parts.result["metrics"])
    assert parts.result["fleet"] == whole.result["fleet"]
    for name, column in whole.timeline.items():
        np.testing.assert_allclose(parts.timeline[name], column, rtol=1e-9, atol=1e-9, err_msg=name)


def assert_same_metrics(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name, stats in a.items():
        other = b[name]
        for key in ("min", "max", "count"):
            assert other[key] == stats[key], (name, key)
        for key in ("mean", "std"):
            assert other[key] == pytest.approx(stats[key], rel=1e-9, abs=1e-9), (name, key)
        for key in ("p50", "p90", "p99"):
            assert other[key] == pytest.approx(stats[key], rel=1.01 * RELATIVE_ERROR), (name, key)


def assert_same_figures(whole: RunResult, parts: RunResult) -> None:
    """Counts and sums are equal, statistics within what is said of them."""
    a, b = whole.result, parts.result
    for name in a["totals"].keys() - {"ci95", "interval"}:
        assert b["totals"][name] == pytest.approx(a["totals"][name], rel=1e-12), name
    assert_same_metrics(a["metrics"], b["metrics"])
    assert (a["slo"] is None) == (b["slo"] is None)
    for one, other in [(a, b), *zip(a["classes"], b["classes"], strict=True)]:
        if one["slo"] is not None:
            for key in ("holds", "attainment", "attainment_close"):
                assert other["slo"][key] == one["slo"][key], key
            assert [c["holds"] for c in other["slo"]["checks"]] == [c["holds"] for c in one["slo"]["checks"]]
    for one, other in zip(a["classes"], b["classes"], strict=True):
        for key in ("name", "priority", "requests", "goodput_fraction"):
            assert other[key] == one[key], key
        assert_same_metrics(one["metrics"], other["metrics"])
    for name, value in a["server"].items():
        assert b["server"][name] == (value if value is None else pytest.approx(value, rel=1e-9)), name
    assert any("relative error" in text for text in b["assumptions"])
    assert [text for text in b["warnings"] if "overload" not in text] == [
        text for text in a["warnings"] if "overload" not in text
    ]
    assert list(parts.timeline) == list(whole.timeline)
    for name, column in whole.timeline.items():
        np.testing.assert_allclose(parts.timeline[name], column, rtol=1e-9, atol=1e-9, err_msg=name)


SHAPES: list[dict[str, Any]] = [
    {},
    {"replicas": 3, "router": "round_robin"},
    {"replicas": 3, "router": "least_requests"},
    {"replicas": 20, "router": "least_requests"},
    {"engine_args": {"max_model_len": 2048, "gpu_memory_utilization": 0.24}},
    {"engine": "sglang"},
]


@pytest.mark.parametrize(
    "shape", SHAPES, ids=["one", "round-robin", "least-requests", "many", "tight", "sglang"]
)
def test_streamed_is_as_in_memory(
    shape: dict[str, Any], small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = both(scenario(1500, **shape), monkeypatch)
    assert_same_requests(whole, parts)
    assert_same_figures(whole, parts)
    assert (parts.result["overload"] is None) == (whole.result["overload"] is None)
    assert parts.result["totals"]["ci95"]["output_throughput"] == pytest.approx(
        whole.result["totals"]["ci95"]["output_throughput"], rel=0.05
    )


def poisson(rate: float) -> dict[str, Any]:
    return {"kind": "poisson", "rate": rate}


def closed(concurrency: int, think_time_s: float | dict[str, Any] = 0.0) -> dict[str, Any]:
    return {"kind": "closed_loop", "concurrency": concurrency, "think_time_s": think_time_s}


CHATS = {"turns": {"kind": "uniform", "low": 1, "high": 6}, "think_time_s": 1.5}
LONG_CHATS = {"turns": {"kind": "uniform", "low": 1, "high": 150}, "think_time_s": 0.1}
PREFIX = {"groups": 5, "tokens": 100}
OVER_16 = {"replicas": 16, "router": "least_requests"}
TIGHT = {"engine_args": {"max_model_len": 4096, "gpu_memory_utilization": 0.24}}
REFUSING = {"engine": "tgi", "engine_args": {"max_concurrent_requests": 8}, "replicas": 2}
CHATTING = {
    "name": "chat",
    "arrivals": poisson(6),
    "sessions": CHATS,
    "slo": {"ttft_ms": {"p90": 40}, "itl_ms": {"p99": 30}, "attainment": 0.8},
    "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 2000},
    "output_tokens": {"kind": "lognormal", "mean": 150, "p99": 900},
}
BATCHED = {
    "name": "batch",
    "priority": 2,
    "arrivals": poisson(9),
    "prompt_tokens": {"kind": "constant", "value": 900},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 60},
}
LINKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sessions": ({"arrivals": poisson(4), "sessions": CHATS, "duration": 40}, {}),
    "sessions-over-16": ({"arrivals": poisson(9), "sessions": CHATS, "requests": 500}, OVER_16),
    "long-sessions": ({"arrivals": poisson(4), "sessions": LONG_CHATS, "duration": 20}, TIGHT),
    "sessions-refused": (
        {"arrivals": poisson(8), "sessions": CHATS, "requests": 500, "drain_s": 5},
        REFUSING,
    ),
    "sessions-sglang": (
        {"arrivals": poisson(8), "sessions": CHATS, "shared_prefix": PREFIX, "requests": 500},
        {"engine": "sglang"},
    ),
    "prefixes": ({"arrivals": poisson(20), "shared_prefix": PREFIX, "requests": 500}, TIGHT),
    "batch": ({"arrivals": {"kind": "batch"}, "sessions": CHATS, "requests": 500}, TIGHT),
    "loop": ({"arrivals": closed(24, 0.2), "shared_prefix": PREFIX, "requests": 500}, {}),
    "loop-for-a-time": ({"arrivals": closed(64), "duration": 8}, {"replicas": 3, "router": "least_requests"}),
    "loop-of-thinkers": (
        {"arrivals": closed(80, {"kind": "uniform", "low": 0, "high": 2}), "requests": 500},
        {"replicas": 2},
    ),
    "loop-cut-short": ({"arrivals": closed(24), "requests": 500, "drain_s": 0}, {}),
    "loop-of-many": ({"arrivals": closed(250), "requests": 700}, {"replicas": 2}),
    "loop-refused": ({"arrivals": closed(40, 0.1), "duration": 20}, REFUSING),
    "loop-of-chats": ({"arrivals": closed(6, 0.5), "sessions": CHATS, "duration": 30}, OVER_16),
    "classes": ({"classes": [CHATTING, BATCHED], "duration": 20}, {"replicas": 2}),
    "loop-of-long-chats": ({"arrivals": closed(3), "sessions": LONG_CHATS, "requests": 700}, {}),
}


@pytest.mark.parametrize("kind", some(LINKED))
def test_requests_that_share_or_wait_are_as_in_memory(
    kind: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn, "STRETCH", 40)
    given = scenario(0, **LINKED[kind][1])
    del given["workload"]["duration"]
    if "classes" in LINKED[kind][0]:  # which have lengths of their own
        given["workload"] = {}
    given["workload"] |= LINKED[kind][0]
    whole, parts = both(given, monkeypatch)
    assert_same_requests(whole, parts)
    assert_same_figures(whole, parts)
    for log, other in zip(whole.raw.logs, parts.raw.logs, strict=True):
        assert len(log.end_s) == other.retired_steps + len(other.end_s)


@pytest.mark.parametrize("kind", ["sessions", pytest.param("sessions-over-16", marks=pytest.mark.slow), "loop"])
def test_blocks_leave_as_their_requests_end(
    kind: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many blocks are drawn and not counted yet: those of the requests in the system, not of the run."""
    from simulator.cluster.cluster import Cluster

    given = scenario(0, **LINKED[kind][1])
    del given["workload"]["duration"]
    given["workload"] |= {**LINKED[kind][0], "requests": 3000, "drain_s": 1e4}
    given["workload"].pop("duration", None)
    drawn_blocks, held = 0, 0
    blocks, hand_over = streaming.WorkloadStream.blocks, Cluster._hand_over

    def counted(stream: Any) -> Any:
        nonlocal drawn_blocks
        for block in blocks(stream):
            drawn_blocks += 1
            yield block

    def handed(cluster: Any, sink: Any) -> None:
        nonlocal held, drawn_blocks
        held = max(held, drawn_blocks)
        drawn_blocks -= 1
        hand_over(cluster, sink)

    monkeypatch.setattr(streaming.WorkloadStream, "blocks", counted)
    monkeypatch.setattr(Cluster, "_hand_over", handed)
    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 100)
    totals = simulate(given).result["totals"]
    assert totals["offered"] + totals["not_arrived"] == 3000
    assert held <= 15  # of 30


@pytest.mark.parametrize("kind", ["sessions-over-16", "loop", "loop-of-chats"])
def test_a_stopped_run_whose_requests_wait_is_that_in_memory(
    kind: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare
    from simulator.run import run_prepared

    given = scenario(0, **LINKED[kind][1])
    del given["workload"]["duration"]
    given["workload"] |= LINKED[kind][0]
    runs = []
    for above in (10**9, 100):
        monkeypatch.setattr(simulator.run, "STREAM_ABOVE", above)
        ended = iter(range(1, 500))
        prepared = prepare(load_scenario(given))
        runs.append(run_prepared(prepared, should_stop=lambda ended=ended: next(ended) == 60))
    whole, parts = runs
    assert isinstance(parts.requests, Path)
    assert parts.raw.stopped_at_s == whole.raw.stopped_at_s
    found = read_columns(parts.requests)
    n = len(found["arrival_s"])
    table = {name: np.asarray(column) for name, column in dict(whole.requests).items()}
    for name in ("arrival_s", "queue_start_s", "first_scheduled_s", "end_s", "finish_reason", "instance_id"):
        np.testing.assert_array_equal(found[name], table[name][:n], err_msg=name)
    assert set(table["finish_reason"][n:]) <= {"not_arrived"}
    assert n < len(table["finish_reason"])


def test_a_run_that_stops_keeps_what_arrived(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 100)
    ended = 0

    def stop() -> bool:
        nonlocal ended
        ended += 1
        return ended >= 1350

    from simulator.config.load import load_scenario
    from simulator.prepare import prepare
    from simulator.run import run_prepared

    run = run_prepared(prepare(load_scenario(scenario(1500))), should_stop=stop)
    totals = run.result["totals"]
    assert totals["completed"] == 1350
    assert totals["completed"] + totals["unfinished"] + totals["rejected"] == totals["offered"]
    assert run.raw.stopped_at_s is not None
    assert run.manifest["partial"] is True
    assert run.result["slo"] is None
    assert isinstance(run.requests, Path)
    reasons = read_columns(run.requests)["finish_reason"]
    assert (reasons == "unfinished").sum() == totals["unfinished"]
    assert run.scratch is not None
    folder = run.scratch.path
    run.scratch.close()
    assert not folder.exists()


@pytest.mark.parametrize("stream_above", [100, 10**9])
def test_what_would_be_refused_after_the_stop_has_not_arrived(
    stream_above: int, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare
    from simulator.run import run_prepared

    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", stream_above)
    given = scenario(1500, engine_args={"max_model_len": 600})
    ended = 0

    def stop() -> bool:
        nonlocal ended
        ended += 1
        return ended >= 30

    run = run_prepared(prepare(load_scenario(given)), should_stop=stop)
    reached = run.raw.stopped_at_s
    assert reached is not None
    totals, rate = run.result["totals"], given["workload"]["arrivals"]["rate"]
    assert 0 < totals["rejected"] < totals["offered"] < 3 * rate * reached


@pytest.mark.parametrize("tokenise_token_s", [0.0, 5e-4], ids=["quick", "backlog"])
def test_a_stopped_run_is_that_in_memory(
    tokenise_token_s: float, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has not got past the front end by then has no time at which it reached the engine, handed over or not."""
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare
    from simulator.run import run_prepared

    prepared = prepare(load_scenario(scenario(1500)))
    front = replace(prepared.plan.front, tokenise_token_s=tokenise_token_s, loop=None)
    prepared = replace(prepared, plan=replace(prepared.plan, front=front))
    runs = []
    for above in (10**9, 100):
        monkeypatch.setattr(simulator.run, "STREAM_ABOVE", above)
        ended = iter(range(1, 1500))
        runs.append(run_prepared(prepared, should_stop=lambda ended=ended: next(ended) == 200))
    whole, parts = runs
    assert isinstance(parts.requests, Path)
    assert isinstance(whole.requests, dict)
    assert parts.raw.stopped_at_s == whole.raw.stopped_at_s
    found = read_columns(parts.requests)
    n = len(found["arrival_s"])
    table = {name: np.asarray(column) for name, column in whole.requests.items()}
    for name in ("arrival_s", "queue_start_s", "first_scheduled_s", "end_s", "finish_reason", "instance_id"):
        np.testing.assert_array_equal(found[name], table[name][:n], err_msg=name)
    assert set(table["finish_reason"][n:]) == {"not_arrived"}
    waited = table["queue_start_s"] - table["arrival_s"]
    reached = ~np.isnan(waited)
    assert (waited[reached] >= tokenise_token_s * table["prompt_tokens"][reached]).all()
    arrived = table["finish_reason"] != "not_arrived"
    assert not reached[~arrived].any()
    before_s = prepared.plan.front.before_s + prepared.scenario.client.network_rtt_ms / 2e3
    due = arrived & (table["arrival_s"] + before_s < whole.raw.stopped_at_s)
    assert due.sum() > 200
    assert (arrived & ~reached).sum() > 100 if tokenise_token_s else reached[due].all()
    totals = whole.result["totals"]
    assert totals["max_concurrent_requests"] == parts.result["totals"]["max_concurrent_requests"]
    assert totals["max_concurrent_requests"] < arrived.sum()


def test_nothing_is_left_of_a_run_that_fails(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare
    from simulator.run import run_prepared

    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 100)

    def stop() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_prepared(prepare(load_scenario(scenario(1500))), should_stop=stop, scratch=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_requests(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held in memory a request and its steps take some 700 bytes; streamed, the traced peak grows by a small part of that."""
    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 100)
    simulate(scenario(400))  # tables and modules

    def peak(requests: int) -> int:
        tracemalloc.start()
        simulate(scenario(requests))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(1000), peak(4000)
    assert (many - few) / 3000 < 100


# Percentiles ------------------------------------------------------------------------------------------------


@settings(max_examples=examples(60))
@given(
    arrays(np.float64, st.integers(1, 200), elements=st.floats(10 * SMALLEST, 1e9)),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1.0, 50.0, 99.0, 99.9, 100.0]),
)
def test_a_percentile_is_within_the_stated_error(
    values: np.ndarray[Any, Any], seed: int, percent: float
) -> None:
    weights = np.random.default_rng(seed).integers(1, 5, len(values))
    histogram = LogHistogram()
    for part in (slice(0, len(values) // 2), slice(len(values) // 2, None)):
        histogram.add(values[part], weights[part])
    exact = weighted_quantiles(values, weights, (percent,))[0]
    assert histogram.quantiles((percent,))[0] == pytest.approx(exact, rel=RELATIVE_ERROR * (1 + 1e-9))
    assert histogram.count == weights.sum()


def test_zeros_and_infinities_have_their_ranks() -> None:
    histogram = LogHistogram()
    histogram.add(np.array([0.0, 0.0, 5.0]))
    assert histogram.quantiles((0.0, 50.0)) == [0.0, 0.0]
    assert histogram.quantiles((100.0,))[0] == 5.0
    assert histogram.quantiles((100.0,), infinite=1)[0] == np.inf
    assert np.isnan(LogHistogram().quantiles((50.0,))[0])
