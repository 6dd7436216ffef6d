"""Models that take turns on the same devices."""

from __future__ import annotations

from pathlib import Path
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


def traced(tmp_path: Path, *rows: tuple[float, str, int], failures: dict[str, Any] | None = None, **pool: Any) -> Any:
    """Requests at a time [s] for a model with so many tokens of an answer, on one place; a change takes 2 s."""
    trace = tmp_path / "trace.csv"
    lines = [f"{at_s},500,{tokens},{model}" for at_s, model, tokens in rows]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens,model", *lines]) + "\n")
    own = {**TURNS, "swap_s": 2.0, **pool, **({"failures": failures} if failures else {})}
    data = {"deployment": own, "workload": {"trace": str(trace)}}
    run, plain = simulate(data), simulate(data, aggregate=False)
    assert run.result == plain.result
    return run


def test_with_a_place_all_is_lost_that_it_serves_and_that_waits_there(tmp_path: Path) -> None:
    """Lost at 3 s for 5 s, then 1 s to start: it serves from 9 s on, the model that was there."""
    failures = {"events": [{"at_s": 3.0, "kind": "gpu", "pool": "pool0", "replica": 0, "for_s": 5.0}], "start_up": 1.0}
    rows = (0.0, LLAMA, 2000), (1.0, QWEN, 10), (2.0, LLAMA, 10), (8.5, QWEN, 10), (10.0, LLAMA, 10), (20.0, QWEN, 10)
    rows += ((30.0, LLAMA, 10),)
    run = traced(tmp_path, *rows, failures=failures)
    frame = run.requests_frame().sort_values("arrival_s")
    assert list(frame["status"]) == ["failed"] * 3 + ["rejected"] + ["finished"] * 3
    assert list(frame["reason"][:4]) == ["node_lost"] * 3 + ["shed_503"]
    calm = traced(tmp_path, *rows[4:]).requests_frame().sort_values("arrival_s")
    assert np.allclose(frame["ttft_ms"][4:], calm["ttft_ms"])
    assert run.result["turns"]["changes"] == 1
    fleet = run.result["fleet"]
    assert (fleet["attempts_lost"], fleet["faults"]) == (3, {"gpu": 1})
    window_s = run.result["totals"]["duration_s"]
    assert fleet["device_hours"] * 3600 == pytest.approx(window_s - 5.0)  # away for 5 s; while it starts it is billed
    assert sum(each["devices"] for each in run.result["pools"]) * window_s == pytest.approx(window_s - 5.0)


def test_a_change_that_a_loss_cuts_short_does_not_come_to_pass(tmp_path: Path) -> None:
    """The loss at 1 s falls into the change from 0 to 2 s; back at 1.1 s with what was coming, which serves from 4.1 s on."""
    failures = {"events": [{"at_s": 1.0, "kind": "gpu", "replica": 0, "for_s": 0.1}], "start_up": 3.0}
    run = traced(tmp_path, (0.0, QWEN, 10), (2.5, QWEN, 10), (4.5, QWEN, 10), failures=failures)
    frame = run.requests_frame().sort_values("arrival_s")
    assert list(frame["reason"][:2]) == ["node_lost", "shed_503"]
    other = traced(tmp_path, (0.0, QWEN, 10), (4.5, LLAMA, 10), failures=failures).requests_frame().sort_values("arrival_s")
    assert frame["ttft_ms"].iloc[2] < 1000 < 2000 < other["ttft_ms"].iloc[1]
    quick = {**failures, "start_up": 0.1}  # the next change begins before the first one would have been over
    later = traced(tmp_path, (0.0, QWEN, 10), (1.5, LLAMA, 10), (10.5, LLAMA, 10), failures=quick, swap_s=10.0)
    assert later.requests_frame().sort_values("arrival_s")["ttft_ms"].tolist()[1:] == pytest.approx([10_050, 1_050], abs=50)


def test_a_slow_device_is_slow_for_every_model_and_drains_whole(tmp_path: Path) -> None:
    slow = {"events": [{"at_s": 1.0, "kind": "slow", "pool": "pool0", "replica": 0, "factor": 3.0}], "start_up": 1.0}
    rows = (0.0, LLAMA, 5), (2.0, LLAMA, 10), (10.0, QWEN, 10), (20.0, LLAMA, 10)
    one, other = (traced(tmp_path, *rows, failures=f).requests_frame().sort_values("arrival_s") for f in (None, slow))
    first_s, slow_s = (frame["first_token_s"] - frame["first_scheduled_s"] for frame in (one, other))
    assert (slow_s / first_s).tolist() == pytest.approx([1.0, 3.0, 3.0, 3.0], rel=0.15)  # the host is as quick as before
    drain = {"events": [{"at_s": 1.0, "kind": "drain", "pool": "pool0", "for_s": 1.0, "notice_s": 60.0}], "start_up": 1.0}
    run = traced(tmp_path, (0.0, LLAMA, 150), (0.6, QWEN, 50), (20.0, LLAMA, 5), failures=drain)
    assert list(run.requests_frame()["status"]) == ["finished"] * 3  # who waited for a change is served before it goes
    assert run.result["fleet"]["attempts_lost"] == 0


def test_failures_that_never_come_change_nothing() -> None:
    never = {"events": [{"at_s": 1e9, "kind": "node", "pool": "pool0", "replica": 1}]}
    plain, held = (simulate(scenario(swap_s=2.0, replicas=2, **more)) for more in ({}, {"failures": never}))
    assert plain.requests_frame().equals(held.requests_frame())
    for part in ("metrics", "totals", "pools", "turns", "cost", "server"):
        assert plain.result[part] == held.result[part]


REFUSED = {
    "no-sleep": (scenario(swap={"by": "sleep_1"}), "cannot fall asleep"),
    "two-ways": (scenario(swap={"by": "sleep_1"}, swap_s=3.0), "keep one of the two"),
    "alone": (scenario(models=[LLAMA]), "at least 2"),
    "twice": (scenario(models=[LLAMA, LLAMA]), "listed twice"),
    "nothing": (scenario(models=None, model=LLAMA, swap_s=2.0), "need `models`"),
    "role": (scenario(role="prefill"), "role: prefill"),
    "lengths": (scenario(prompt_tokens=[1, 100]), "`deployment.prompt_tokens` beside models that take turns"),
    "router": (scenario(router={"system": "dynamo"}), "`deployment.router` beside models that take turns"),
    "scaler": (scenario(autoscaler={"kind": "hpa", "target": 4}), "autoscalers beside models that take turns"),
    "place": (scenario(failures={"events": [{"at_s": 1, "kind": "gpu", "pool": "pool0", "replica": 1}]}), "no replica 1"),
    "unknown": (scenario(kind("x", 1, "Qwen/Qwen2.5-72B-Instruct")), "no pool serves it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said(name: str) -> None:
    data, words = REFUSED[name]
    is_refused({key: value for key, value in data.items() if value is not None}, words)
