"""Text Generation Inference from a scenario: 429 at its limit, lengths, exact runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from simulator.cluster.outcome import Reason
from simulator.run import RunResult, simulate

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def scenario_of(workload: dict[str, Any], engine: str = "tgi", **flags: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "deployment": {"engine": engine, "hardware": "h100-sxm-80gb", "engine_args": flags},
        "workload": workload,
    }


def column(outcome: RunResult, name: str) -> np.ndarray:
    assert isinstance(outcome.requests, Mapping)
    return np.asarray(outcome.requests[name])


def fixed(prompt: int, output: int, **keys: Any) -> dict[str, Any]:
    lengths = {"prompt_tokens": {"kind": "constant", "value": prompt}, "output_tokens": {"kind": "constant", "value": output}}
    return {"arrivals": {"kind": "batch"}, **lengths, **keys}


def test_more_than_128_at_once_are_refused_with_429() -> None:
    outcome = simulate(scenario_of(fixed(100, 20, requests=200)))
    totals = outcome.result["totals"]
    assert (totals["completed"], totals["rejected"], totals["failed"]) == (128, 72, 0)
    assert (outcome.raw.reason == Reason.SHED_429).sum() == 72
    assert (column(outcome, "finish_reason") == "rejected").sum() == 72
    assert totals["max_concurrent_requests"] == outcome.result["server"]["num_requests_running_peak"] == 128
    start_up = outcome.result["deployment"]["start_up"]
    assert start_up["server_s"] == sum(start_up[f"{part}_s"] for part in ("weights", "compile", "graph_capture", "warm_up"))
    assert start_up["weights_s"] > 5


def test_a_place_is_free_again_when_a_response_has_ended() -> None:
    """A closed loop of 8 never finds more than 8 there; with 4 places the others' requests are shed."""
    loop = {"arrivals": {"kind": "closed_loop", "concurrency": 8, "think_time_s": 0.1}, "duration": 5}
    lengths = {k: v for k, v in fixed(100, 20).items() if k != "arrivals"}
    whole = simulate(scenario_of({**lengths, **loop}, max_concurrent_requests=8)).result["totals"]
    assert (whole["rejected"], whole["completed"] > 100) == (0, True)
    short = simulate(scenario_of({**lengths, **loop}, max_concurrent_requests=4)).result["totals"]
    assert short["rejected"] > 50
    assert 4 < short["completed"] < whole["completed"]


def test_lengths_are_checked_with_the_reserved_part_only() -> None:
    flags = {"max_input_tokens": 3000, "max_total_tokens": 4096}
    asked = {"max_output_tokens": {"kind": "constant", "value": 5000}}
    taken = simulate(scenario_of(fixed(3000, 50, requests=5, **asked), **flags)).result["totals"]
    assert (taken["completed"], taken["rejected"]) == (5, 0)  # 3,000 and 1,024 are within 4,096
    prompts = {"prompt_tokens": {"kind": "uniform", "low": 2990, "high": 3010}}
    outcome = simulate(scenario_of({**fixed(1, 50, requests=40), **prompts}, **flags))
    some = outcome.result["totals"]
    assert some["rejected"] > 0
    why = "refused: prompt longer than the 3000 tokens that a prompt may have (max_input_tokens)"
    assert why in outcome.result["warnings"][0]
    assert some["completed"] + some["rejected"] == 40


def test_memory_is_reserved_by_the_clients_limit() -> None:
    """20,000 slots: 36 requests that ask for 50 tokens at once, 13 that ask for none (1,024 each)."""
    base = simulate(scenario_of(fixed(500, 40, requests=1))).result["deployment"]["kv_tokens"]
    fraction = round((0.9 - (base - 20_300) * 131_072 / 85.02e9) / 0.9, 4)
    flags = {"cuda_memory_fraction": fraction, "max_batch_prefill_tokens": 59_870}
    peaks = []
    for limit in ({"max_output_tokens": {"kind": "constant", "value": 50}}, {}):
        outcome = simulate(scenario_of(fixed(500, 40, requests=100, **limit), **flags))
        slots = outcome.result["deployment"]["kv_tokens"]
        each = 549 if limit else 1523
        peaks.append(outcome.result["server"]["num_requests_running_peak"])
        assert peaks[-1] == slots // each
    assert peaks[0] > 2 * peaks[1] > 20


def test_streamed_runs_shed_as_those_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = CASES["chunks"][2] | {"requests": 600}
    whole = simulate(scenario_of(workload, max_concurrent_requests=20)).result["totals"]
    monkeypatch.setattr("simulator.run.STREAM_ABOVE", 100)
    streamed = simulate(scenario_of(workload, max_concurrent_requests=20))
    assert not isinstance(streamed.requests, Mapping)
    for key in ("offered", "completed", "rejected", "total_output_tokens", "max_concurrent_requests"):
        assert streamed.result["totals"][key] == whole[key], key
    assert whole["rejected"] > 50


def test_the_note_on_cuda_graphs_says_how_many_rows_they_hold() -> None:
    for sizes, words in (([1, 2, 64], "above 64 rows"), ([0], "without CUDA graphs")):
        notes = simulate(scenario_of(fixed(10, 2, requests=1), cuda_graphs=sizes)).result["assumptions"]
        assert sum(words in note for note in notes) == 1


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "chunks": (
        "tgi",
        {},
        {
            "arrivals": {"kind": "gamma", "rate": 20, "cv": 3},
            "prompt_tokens": {"kind": "lognormal", "mean": 1500, "p99": 9000},
            "output_tokens": {"kind": "lognormal", "mean": 150, "p99": 700},
            "shared_prefix": {"groups": 3, "tokens": 400},
            "requests": 150,
        },
    ),
    "long answers in parts": (
        "tgi",
        {"max_total_tokens": 6000},
        {
            "arrivals": {"kind": "poisson", "rate": 10},
            "prompt_tokens": {"kind": "uniform", "low": 10, "high": 800},
            "output_tokens": {"kind": "uniform", "low": 10, "high": 3500},
            "requests": 60,
        },
    ),
    "small pool, conversations": (
        "tgi",
        {"max_batch_prefill_tokens": 2048, "cuda_memory_fraction": 0.28, "max_total_tokens": 8192},
        {
            "arrivals": {"kind": "poisson", "rate": 10},
            "prompt_tokens": {"kind": "uniform", "low": 100, "high": 900},
            "output_tokens": {"kind": "uniform", "low": 10, "high": 300},
            "sessions": {"turns": {"kind": "constant", "value": 3}, "think_time_s": 0.5},
            "requests": 120,
        },
    ),
    "without chunks": (
        "tgi",
        {"prefill_chunking": False, "max_batch_prefill_tokens": 4096, "max_batch_size": 24, "max_total_tokens": 4096},
        {
            "arrivals": {"kind": "poisson", "rate": 40},
            "prompt_tokens": {"kind": "uniform", "low": 100, "high": 900},
            "output_tokens": {"kind": "uniform", "low": 10, "high": 300},
            "requests": 150,
        },
    ),
    "conversations, long answers in parts": (
        "tgi",
        {"max_total_tokens": 4096},
        {
            "arrivals": {"kind": "poisson", "rate": 20},
            "prompt_tokens": {"kind": "uniform", "low": 1, "high": 300},
            "output_tokens": {"kind": "uniform", "low": 5, "high": 1200},
            "sessions": {"turns": 2, "think_time_s": 0.5},
            "requests": 200,
        },
    ),
    "chunks that leave nothing of the budget": (
        "tgi",
        {"max_batch_prefill_tokens": 64},
        {
            "arrivals": {"kind": "poisson", "rate": 20},
            "prompt_tokens": {"kind": "uniform", "low": 100, "high": 300},
            "output_tokens": {"kind": "uniform", "low": 100, "high": 300},
            "requests": 100,
        },
    ),
    "version 2": (
        "tgi@2",
        {},
        {
            "arrivals": {"kind": "closed_loop", "concurrency": 40, "think_time_s": 0.3},
            "prompt_tokens": {"kind": "uniform", "low": 100, "high": 900},
            "output_tokens": {"kind": "uniform", "low": 10, "high": 300},
            "requests": 150,
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_runs_equal_steps(name: str) -> None:
    engine, flags, workload = CASES[name]
    scenario = scenario_of(workload, engine, **flags)
    jumped, stepped = simulate(scenario), simulate(scenario, aggregate=False)
    assert jumped.result == stepped.result
    assert isinstance(jumped.requests, Mapping)
    for key in jumped.requests:
        left, right = column(jumped, key), column(stepped, key)
        assert ((left == right) | ((left != left) & (right != right))).all(), key
    for key, values in jumped.timeline.items():
        assert (values == stepped.timeline[key]).all(), key
    assert jumped.result["totals"]["completed"] > 0.6 * workload["requests"]
