"""Servers that have just started: what their first requests wait for, by closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.cost.first_use import FIRST_S, FirstUse
from engine_models.engines.vllm_first_use import KIND_S, SECOND_LAYER_S
from engine_models.first_use import GRID
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.results.latencies import latencies
from simulator.run import RunResult, simulate

MIXTRAL, LLAMA = "mistralai/Mixtral-8x7B-Instruct-v0.1", "meta-llama/Llama-3.1-8B-Instruct"
APART_S = 60.0


def scenario(model: str, load: dict[str, Any], **pool: Any) -> Any:
    one = {"engine": "vllm@0.15.1", "hardware": "h100-sxm-80gb", "tensor_parallel": 2, "cold_start": True, **pool}
    return load_scenario({"model": model, "deployment": one, "workload": load, "seed": 3})


def one_by_one(prompt: int, output: int = 40, requests: int = 6) -> dict[str, Any]:
    arrivals = {"kind": "constant", "rate": 1 / APART_S}
    return {"arrivals": arrivals, "requests": requests, "prompt_tokens": prompt, "output_tokens": output}


BUSY: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 8},
    "requests": 300,
    "prompt_tokens": {"kind": "lognormal", "mean": 578, "p99": 720},
    "output_tokens": 100,
}


def times(run: RunResult) -> tuple[np.ndarray, np.ndarray]:
    assert run.raw is not None
    found = latencies(run.raw)
    return found.ttft_ms / 1e3, found.e2el_ms / 1e3


def extra(model: str, load: dict[str, Any], **pool: Any) -> tuple[np.ndarray, np.ndarray]:
    """How much longer each request waits for its first token and takes in all than on a warm server [s]."""
    cold = times(simulate(scenario(model, load, **pool)))
    warm = times(simulate(scenario(model, load, **{**pool, "cold_start": False})))
    return cold[0] - warm[0], cold[1] - warm[1]


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [
        (512, None),  # captured
        (577, (512, False, False)),
        (620, (512, True, False)),  # 2 x 620 - 8 is a multiple of 16
        (640, (512, False, True)),
        (767, (512, False, False)),
        (769, (1024, False, False)),
        (2048, (2048, False, True)),
    ],
)
def test_kinds_of_steps_by_hand(tokens: int, kind: tuple[int, bool, bool] | None) -> None:
    law = FirstUse(GRID, lists=8, chosen=2, captured_tokens=512, tried=(2048,), kind_s=1.0)
    assert law.kind(tokens) == kind
    assert law.known == {(2048, False, True)}


def test_requests_apart_wait_for_what_no_step_before_them_has_used() -> None:
    ttft_s, e2e_s = extra(MIXTRAL, one_by_one(700))
    second_s = 32 * SECOND_LAYER_S
    assert ttft_s == pytest.approx([FIRST_S + KIND_S, 0, 0, 0, 0, 0], abs=1e-9)
    assert e2e_s == pytest.approx([FIRST_S + KIND_S + second_s, 0, 0, 0, 0, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("model", "prompt", "ranks", "waits_s"),
    [
        (MIXTRAL, 400, 2, FIRST_S),  # in a graph
        (MIXTRAL, 8192, 2, FIRST_S),  # the largest step, which start-up runs
        (LLAMA, 700, 2, FIRST_S),
        (LLAMA, 700, 1, FIRST_S),
    ],
)
def test_nothing_is_compiled_for_steps_that_start_up_runs_or_without_experts(
    model: str, prompt: int, ranks: int, waits_s: float
) -> None:
    pool = {"tensor_parallel": ranks, "engine_args": {"max_num_batched_tokens": 8192}}
    ttft_s, e2e_s = extra(model, one_by_one(prompt, requests=2), **pool)
    assert ttft_s == pytest.approx([waits_s, 0], abs=1e-9)
    second_s = 32 * SECOND_LAYER_S if ranks > 1 else 0.0
    assert e2e_s == pytest.approx([waits_s + second_s, 0], abs=1e-9)


def test_each_server_compiles_for_itself() -> None:
    ttft_s, _ = extra(MIXTRAL, one_by_one(700, requests=4), replicas=2)
    assert ttft_s == pytest.approx([FIRST_S + KIND_S] * 2 + [0, 0], abs=1e-9)


def test_a_server_that_starts_again_compiles_again() -> None:
    events = [{"at_s": 1.5 * APART_S, "kind": "drain", "replica": 0, "for_s": 0}]
    around = {"failures": {"events": events, "start_up": 5.0}}
    load = one_by_one(700, requests=4)
    runs = []
    for cold in (True, False):
        one = {"name": "one", "engine": "vllm@0.15.1", "hardware": "h100-sxm-80gb", "tensor_parallel": 2, "cold_start": cold}
        runs.append(simulate(load_scenario({"model": MIXTRAL, "deployment": {"pools": [one], **around}, "workload": load})))
    waits_s = times(runs[0])[0] - times(runs[1])[0]
    assert waits_s == pytest.approx([FIRST_S + KIND_S, 0, FIRST_S + KIND_S, 0], abs=1e-9)


@pytest.mark.parametrize(
    "pool",
    [
        {},
        {"pipeline_parallel": 2, "tensor_parallel": 1},
        {"engine": "sglang"},
        {"speculative": {"method": "ngram", "num_speculative_tokens": 2, "acceptance_rates": [0.5, 0.3]}},
    ],
    ids=["vllm", "stages", "sglang", "drafts"],
)
def test_jumps_are_steps(pool: dict[str, Any]) -> None:
    asked = scenario(MIXTRAL, BUSY, **pool)
    jumped, stepped = simulate(asked), simulate(asked, aggregate=False)
    for one, other in zip(times(jumped), times(stepped), strict=True):
        np.testing.assert_array_equal(one, other)
    assert jumped.result["metrics"] == stepped.result["metrics"]


def test_the_first_requests_are_reported_apart() -> None:
    cold, warm = simulate(scenario(MIXTRAL, BUSY)), simulate(scenario(MIXTRAL, BUSY, cold_start=False))
    found = cold.result["first_requests"]
    ttft_s = times(cold)[0] * 1e3
    assert found["requests"] == 100
    assert found["metrics"]["ttft_ms"]["mean"] == pytest.approx(ttft_s[:100].mean())
    assert found["others"]["ttft_ms"]["mean"] == pytest.approx(ttft_s[100:].mean())
    assert found["metrics"]["ttft_ms"]["p99"] > 8 * warm.result["metrics"]["ttft_ms"]["p99"]
    assert "first_requests" not in warm.result
    assert any(said.startswith("servers are cold") for said in cold.result["assumptions"])
    assert any(said.startswith("servers are warm") for said in warm.result["assumptions"])


@pytest.mark.parametrize(
    "pool",
    [
        {"engine": "tgi"},
        {"engine_args": {"enforce_eager": True}},
        {"data_parallel": 2, "tensor_parallel": 1, "expert_parallel": True, "engine": "vllm"},
    ],
    ids=["tgi", "eager", "ranks"],
)
def test_what_is_not_known_is_refused(pool: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="first requests of a fresh server"):
        prepare(scenario(MIXTRAL, BUSY, **pool))
