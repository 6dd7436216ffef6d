"""Models that take turns on the same devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.cost.start_up import asleep
from simulator import load_scenario, simulate
from simulator.prepare import prepare
from tests.clusters import is_refused

LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
TURNS = {"engine": "vllm", "hardware": "a100-sxm-80gb", "models": [LLAMA, QWEN], "engine_args": {"max_model_len": 8192}}


def kind(name: str, rate: float, model: str) -> dict[str, Any]:
    law = {"kind": "lognormal", "mean": 60, "p99": 300}
    return {
        "name": name,
        "model": model,
        "arrivals": {"kind": "poisson", "rate": rate},
        "prompt_tokens": 500,
        "output_tokens": law,
    }


def scenario(*classes: dict[str, Any], seed: int = 1, **pool: Any) -> dict[str, Any]:
    listed = list(classes) or [kind("one", 1.0, LLAMA), kind("two", 0.2, QWEN)]
    return {"seed": seed, "deployment": {**TURNS, **pool}, "workload": {"classes": listed, "requests": 60}}


@pytest.mark.slow
@pytest.mark.parametrize("stay_s", [0.0, 10.0])
def test_one_model_is_there_at_a_time_and_nothing_is_lost(stay_s: float) -> None:
    run = simulate(scenario(swap_s=2.0, swap={"stay_s": stay_s}))
    plain = simulate(scenario(swap_s=2.0, swap={"stay_s": stay_s}), aggregate=False)
    assert run.result == plain.result
    assert run.result["totals"]["completed"] == 60
    frame = run.requests_frame().sort_values("end_s")
    turns = run.result["turns"]
    assert turns["changes"] == sum(turns["to"].values()) > 3
    begins = frame["end_s"] - frame["e2el_ms"] / 1e3 + frame["ttft_ms"] / 1e3
    spans = sorted(zip(begins, frame["end_s"], frame["pool"], strict=True))
    last: dict[str, float] = {}
    for first_token_s, end_s, pool in spans:
        others = [at_s for name, at_s in last.items() if name != pool]
        assert all(first_token_s > at_s + 2.0 for at_s in others)  # the other had ended, and a change lies between
        last[pool] = max(end_s, last.get(pool, 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_clients_that_give_up_leave_the_queue(seed: int) -> None:
    retries = {"attempts": 2, "backoff_s": 1.0, "on": ["timeout"]}
    busy = scenario(kind("one", 2.0, LLAMA), kind("two", 0.6, QWEN), seed=seed, swap_s=4.0, replicas=1)
    impatient = {**busy, "client": {"timeout_s": 5.0, "retries": retries}}
    run, plain = simulate(impatient), simulate(impatient, aggregate=False)
    assert run.result == plain.result
    totals = run.result["totals"]
    assert totals["reasons"]["timed_out"] == totals["failed"] > 5
    assert totals["completed"] + totals["failed"] == 60
    assert totals["completed"] > 5


@pytest.mark.slow
def test_staying_changes_less_often() -> None:
    busy = [kind("one", 3.0, LLAMA), kind("two", 3.0, QWEN)]
    often, seldom = (simulate(scenario(*busy, swap_s=2.0, swap={"stay_s": s})).result["turns"]["changes"] for s in (0.0, 10.0))
    assert seldom < often


def test_a_model_that_nobody_else_interrupts_is_served_as_if_alone() -> None:
    shared = simulate(scenario(kind("one", 2.0, LLAMA))).requests_frame()
    alone = {key: value for key, value in TURNS.items() if key != "models"}
    given = {"seed": 1, "model": LLAMA, "deployment": alone, "workload": scenario(kind("one", 2.0, LLAMA))["workload"]}
    own = simulate(given).requests_frame()
    assert np.array_equal(shared["ttft_ms"], own["ttft_ms"])
    assert np.array_equal(shared["end_s"], own["end_s"])


@pytest.mark.slow
def test_as_many_places_as_models_need_no_change() -> None:
    run = simulate(scenario(replicas=2, swap_s=2.0))
    assert run.result["turns"]["changes"] == 0
    assert run.result["deployment"]["devices"] == 2
    assert {pool["takes_turns_on"] for pool in run.result["deployment"]["pools"]} == {"pool0"}
    third = "Qwen/Qwen2.5-14B-Instruct"
    three = [kind("a", 1, LLAMA), kind("b", 0.3, QWEN), kind("c", 0.3, third)]
    more = simulate(scenario(*three, replicas=2, swap_s=2.0, models=[LLAMA, QWEN, third])).result
    assert more["turns"]["changes"] > 0
    assert more["totals"]["completed"] == 60
    assert sum(pool["devices"] for pool in more["pools"]) == pytest.approx(2)
    assert sum(pool["cost"]["usd_per_hour"] for pool in more["pools"]) == pytest.approx(more["cost"]["usd_per_hour"])


@pytest.mark.parametrize(
    ("level", "weight_bytes", "out_s", "in_s"),
    [(1, 59.19e9, 5.89, 5.41), (1, 61.06e9, 2.78, 2.87), (1, 8.3e9, 0.42, 0.82), (2, 8.3e9, 0.45, 2.58), (2, 1.19e9, 0.11, 0.85)],
)
def test_sleep_beside_measured_times(level: int, weight_bytes: float, out_s: float, in_s: float) -> None:
    """Published by vLLM for A100 (blog, 2025-10-26): within what `start_up.json` states of those that were left out."""
    out, back = asleep(level, weight_bytes, 32e9, "disk")
    assert 0.45 < out / out_s < 2.1
    assert 0.6 < back / in_s < 2.1


def test_how_servers_make_room() -> None:
    def times(**pool: Any) -> list[tuple[float, float]]:
        found = prepare(load_scenario(scenario(**pool))).pools
        return [(each.turns.out_s, each.turns.in_s) for each in found if each.turns is not None]

    awake = {"max_model_len": 8192, "enable_sleep_mode": True}
    slept, given_up, anew = times(engine_args=awake), times(engine_args=awake, swap={"by": "sleep_2"}), times()
    assert all(one[1] < two[1] < three[1] for one, two, three in zip(slept, given_up, anew, strict=True))
    cached = times(engine_args=awake, swap={"by": "sleep_2", "weights_from": "cache"})
    assert all(one[1] < two[1] for one, two in zip(cached, given_up, strict=True))
    assert times(swap_s=3.5) == [(0.0, 3.5)] * 2


REFUSED = {
    "no-sleep": (scenario(swap={"by": "sleep_1"}), "cannot fall asleep"),
    "two-ways": (scenario(swap={"by": "sleep_1"}, swap_s=3.0), "keep one of the two"),
    "alone": (scenario(models=[LLAMA]), "at least 2"),
    "twice": (scenario(models=[LLAMA, LLAMA]), "listed twice"),
    "nothing": (scenario(models=None, model=LLAMA, swap_s=2.0), "need `models`"),
    "role": (scenario(role="prefill"), "role: prefill"),
    "lengths": (scenario(prompt_tokens=[1, 100]), "`deployment.prompt_tokens` beside models that take turns"),
    "router": (scenario(router={"system": "dynamo"}), "`deployment.router` beside models that take turns"),
    "unknown": (scenario(kind("x", 1, "Qwen/Qwen2.5-72B-Instruct")), "no pool serves it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said(name: str) -> None:
    data, words = REFUSED[name]
    is_refused({key: value for key, value in data.items() if value is not None}, words)
