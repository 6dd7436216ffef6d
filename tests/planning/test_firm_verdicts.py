"""What a run is too short, too empty or too early cut to say, and that it says so wherever its verdict stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cli.sweep import text
from simulator.planning.points import judged
from simulator.planning.sweep import SweepResult, plan_sweep, run_sweep
from simulator.results.latencies import Latencies
from simulator.results.verdict import needed
from simulator.run import RunResult, simulate
from tests.counted import verdict
from tests.effort import examples

TRIALS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "trials"
LENGTHS = {"prompt_tokens": 100, "output_tokens": 10}
SCENARIO: dict[str, Any] = {
    "name": "small",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "slo": {"ttft_ms": {"p99": 500}},
}


def load(**workload: Any) -> dict[str, Any]:
    lengths = {} if "classes" in workload else LENGTHS
    return {**SCENARIO, "workload": {**lengths, **workload}}


def poisson(rate: float) -> dict[str, Any]:
    return {"kind": "poisson", "rate": rate}


def swept(scenario: Any, folder: Path, vary: str = "deployment.replicas=1,2") -> tuple[SweepResult, str]:
    plan = plan_sweep(scenario, [vary])
    result = run_sweep(plan, folder / "sweep", workers=1)
    return result, " ".join(text(plan, result).split())


# -- thin and empty samples ---------------------------------------------------------------------------------


@given(percent=st.sampled_from([50, 90, 95, 99]), share=st.floats(0.01, 2.0), late=st.integers(0, 3))
@settings(max_examples=examples(60))
def test_a_sample_too_thin_for_its_percentile_never_says_met(percent: int, share: float, late: int) -> None:
    count = max(1, round(share * needed(percent)))
    values = np.full(count, 80.0)
    values[: min(late, count)] = 120.0
    found = verdict(Latencies(*[values] * len(Latencies.__annotations__)), {"ttft_ms": {f"p{percent}": 100.0}})
    word = judged({"slo": found})[0]
    assert word != "met" or count >= needed(percent)
    if not late and count >= needed(percent):
        assert word == "met"
    assert found["requests"] == count


@pytest.mark.parametrize("slo", [{"attainment": 0.95, "e2el_ms": {"p50": 1e4}}, {"attainment": 1.0, "e2el_ms": {"p50": 1e4}}])
def test_a_thin_attainment_is_close(slo: dict[str, Any]) -> None:
    run = simulate({**load(arrivals=poisson(5), duration=20), "slo": slo})
    assert judged(run.result)[0] == "close"
    assert any("an attainment of" in line for line in run.result["warnings"])
    assert judged({"slo": verdict(Latencies(*[np.full(1000, 80.0)] * len(Latencies.__annotations__)), slo)})[0] == "met"


def test_three_requests_are_close_and_the_sweep_keeps_their_warning(tmp_path: Path) -> None:
    scenario = load(arrivals=poisson(2), duration=3)
    result, words = swept(scenario, tmp_path)
    assert {row["slo"] for row in result.rows} == {"close"}
    assert result.cheapest is None
    assert "No point meets the SLO for certain" in words
    assert words.count("too short a run for p99: 3 requests in the window, 1000 are needed") == 2  # answer and table
    assert all("too short a run" in row["warnings"] for row in result.rows)


def test_an_empty_window_is_not_judged_and_not_taken_for_no_slo(tmp_path: Path) -> None:
    result, words = swept(load(arrivals={"kind": "batch"}, requests=20, warmup=50), tmp_path)
    assert {row["slo"] for row in result.rows} == {"not judged"}
    assert "No SLO is given" not in words
    assert "not judged: no request in the measured window" in words
    assert not any(row["slo_holds"] for row in result.rows)


def test_a_class_without_requests_holds_nothing(tmp_path: Path) -> None:
    many = {"name": "many", "arrivals": poisson(60), **LENGTHS, "slo": {"ttft_ms": {"p90": 500}}}
    few = {"name": "few", "arrivals": {"kind": "batch"}, **LENGTHS, "slo": {"ttft_ms": {"p90": 500}}, "weight": 0.01}
    scenario = load(classes=[many, few], requests=1000, duration=30, warmup=2)
    del scenario["slo"]
    run = simulate(scenario)
    verdicts = {kind["name"]: kind["slo"] for kind in run.result["classes"]}
    assert verdicts["many"]["holds"]
    assert verdicts["few"]["requests"] == 0
    assert not verdicts["few"]["holds"]
    assert judged(run.result) == ("not judged", False)
    assert "few: no request arrives in the measured window" in run.result["warnings"]
    # and a class that is missed is missed beside it
    run.result["classes"][0]["slo"] |= {"holds": False, "close": False}
    assert judged(run.result)[0] == "missed"


def test_a_latency_that_no_request_has_is_no_miss() -> None:
    scenario = {**load(arrivals=poisson(60), duration=30), "slo": {"tpot_ms": {"p90": 50}, "ttft_ms": {"p90": 500}}}
    scenario["workload"]["output_tokens"] = 1
    assert judged(simulate(scenario).result)[0] == "close"


# -- batches ------------------------------------------------------------------------------------------------


def cut(drain_s: float, **changes: Any) -> RunResult:
    lengths = {"prompt_tokens": 1000, "output_tokens": {"kind": "lognormal", "mean": 150, "p99": 600}}
    workload = {"arrivals": {"kind": "batch"}, "requests": 1500, **lengths, "drain_s": drain_s}
    return simulate({**SCENARIO, "workload": workload, **changes})


def warned(run: RunResult, word: str) -> list[str]:
    return [line for line in run.result["warnings"] if word in line]


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_batch_that_is_cut_says_when_it_would_end(share: float, engine: str) -> None:
    deployment = {**SCENARIO["deployment"], "engine": engine, "replicas": 2}
    whole = cut(1e5, deployment=deployment)
    ends_s = whole.result["totals"]["vllm_duration_s"]
    assert "batch_cut" not in whole.result
    part = cut(share * ends_s, deployment=deployment)
    assert part.result["totals"]["unfinished"] > 0
    assert part.result["overload"] is None
    assert part.result["batch_cut"]["ends_s"] == pytest.approx(ends_s, rel=0.25)
    (words,) = warned(part, "the batch was cut")
    assert "workload.drain_s" in words
    assert "estimate" in words
    assert f"{part.result['totals']['completed']:,} of 1,500" in words
    assert not warned(part, "overload")
    assert cut(float(words.split("drain_s to ")[1].split()[0]), deployment=deployment).result.get("batch_cut") is None


def test_a_batch_cut_before_any_answer_says_that_it_knows_no_more() -> None:
    lengths = {"prompt_tokens": 60_000, "output_tokens": 200}
    batch = {"arrivals": {"kind": "batch"}, "requests": 20, **lengths, "drain_s": 1.5}
    run = simulate({**SCENARIO, "workload": batch})
    assert run.result["batch_cut"]["output_share"] == 0
    (words,) = warned(run, "the batch was cut")
    assert "not before" in words


def test_a_sweep_of_batches_shows_when_each_ends(tmp_path: Path) -> None:
    scenario = {**load(arrivals={"kind": "batch"}, requests=400, drain_s=2), "slo": {}}
    result, words = swept(scenario, tmp_path, "workload.output_tokens=1,300")
    ends = [row["would_end_s"] for row in result.rows]
    assert ends[0] is None
    assert ends[1] > 2
    assert "unfinished" in words
    assert "overload" not in words
    assert "the batch was cut" in words


# -- what was never sent, and what holds the queue ----------------------------------------------------------


def test_requests_that_the_duration_cut_off_are_told() -> None:
    loop = {"kind": "closed_loop", "concurrency": 4}
    run = simulate(load(arrivals=loop, requests=5000, duration=10))
    left = 5000 - run.result["totals"]["offered"]
    assert run.result["totals"]["not_arrived"] == left
    assert warned(run, "never sent") == [
        f"{left:,} of 5,000 requests were never sent: the duration of 10 s ended first (workload.duration)"
    ]
    assert not warned(simulate(load(arrivals=loop, requests=50)), "never sent")
    assert warned(simulate(load(arrivals=poisson(5), requests=5000, duration=10)), "never sent")


@pytest.mark.parametrize(("limit", "said"), [(None, True), ("equal", False)])
def test_memory_reserved_for_unlimited_answers_is_named(limit: str | None, said: bool) -> None:
    flags = {"cuda_memory_fraction": 0.5}
    deployment = {"engine": "tgi", "hardware": "l40s-48gb", "engine_args": flags}
    scenario = {**load(arrivals=poisson(3), duration=40, max_output_tokens=limit), "deployment": deployment}
    scenario["workload"]["output_tokens"] = 200
    assert bool(warned(simulate(scenario), "without workload.max_output_tokens")) is said
    deployment = {"engine": "trtllm", "hardware": "h100-sxm-80gb"}  # which counts as used what is computed alone
    assert bool(warned(simulate({**scenario, "deployment": deployment}), "without workload.max_output_tokens")) is said
    vllm = {**scenario, "deployment": SCENARIO["deployment"]}
    assert not warned(simulate(vllm), "without workload.max_output_tokens")


# -- the recorded inputs ------------------------------------------------------------------------------------


def trial(name: str) -> Path:
    path = TRIALS / name
    if not path.exists():
        pytest.skip("the recorded inputs are not here")
    return path


def test_users_who_think_are_like_a_poisson_load_of_their_rate() -> None:
    users = simulate(trial("users-300-think.yaml")).result
    rate = users["totals"]["request_throughput"]
    scenario = load(arrivals=poisson(rate), duration=900, warmup=600, prompt_tokens=800, output_tokens=200)
    open_loop = simulate(scenario).result
    assert users["metrics"]["ttft_ms"]["p99"] == pytest.approx(open_loop["metrics"]["ttft_ms"]["p99"], rel=0.15)
    assert rate == pytest.approx(300 / (30 + users["metrics"]["e2el_ms"]["mean"] / 1e3), rel=0.02)


@pytest.mark.parametrize(("name", "verdict"), [("p99-of-three.yaml", "close"), ("batch-under-warmup.yaml", "not judged")])
def test_sweeps_of_too_little_decide_nothing(name: str, verdict: str, tmp_path: Path) -> None:
    result, words = swept(str(trial(name)), tmp_path)
    assert [row["slo"] for row in result.rows] == [verdict] * 2
    assert result.cheapest is None
    assert "warning" in words


def test_a_batch_for_the_night_says_when_it_ends() -> None:
    scenario = trial("night-batch-cpu.yaml")
    from simulator.config.load import load_scenario

    run = simulate(load_scenario(scenario, ["deployment.hardware=epyc-9654-2s"]))
    (words,) = warned(run, "the batch was cut")
    assert "workload.drain_s" in words
    long = simulate(load_scenario(scenario, ["deployment.hardware=epyc-9654-2s", "workload.drain_s=100000"]))
    assert run.result["batch_cut"]["ends_s"] == pytest.approx(long.result["totals"]["vllm_duration_s"], rel=0.1)
    assert json.dumps(run.result["batch_cut"])
