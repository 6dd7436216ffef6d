"""Pools side by side: what is known of one pool, or of two runs, holds of several pools in one run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator import simulate
from simulator.run import RunResult
from tests.clusters import jumps_as_it_steps, streams_alike

LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
OF_THE_WHOLE = ("request_id", "session_id", "instance_id", "prefill_instance_id", "class", "pool")
"""Columns that name what the whole run has."""


def pool(name: str, replicas: int = 1, **keys: Any) -> dict[str, Any]:
    return {"name": name, "replicas": replicas, "engine": "vllm", "hardware": "h100-sxm-80gb", **keys}


def load(name: str, rate: float = 12.0, **keys: Any) -> dict[str, Any]:
    return {
        "name": name,
        "arrivals": {"kind": "poisson", "rate": rate},
        "prompt_tokens": {"kind": "lognormal", "mean": 900, "p99": 5000},
        "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 200},
        **keys,
    }


def scenario(pools: list[dict[str, Any]], classes: list[dict[str, Any]], **around: Any) -> dict[str, Any]:
    work = {"classes": classes, "duration": 6}
    return {"model": LLAMA, "deployment": {"pools": pools, **around}, "workload": work}


ONE_ROUTER = ["round_robin", "random", "least_requests", {"system": "sglang-router", "policy": "cache_aware"}]


@pytest.mark.parametrize("router", ONE_ROUTER, ids=str)
def test_two_pools_of_a_kind_are_one_of_their_sum(router: Any) -> None:
    chats = [load("chats", 8, sessions={"turns": 3, "think_time_s": 0.5})]
    one, two = (
        simulate(scenario(pools, chats, router=router)) for pools in ([pool("a", 3)], [pool("a", 1), pool("b", 2)])
    )
    frame, other = one.requests_frame(), two.requests_frame()
    assert [column for column in frame if column != "pool" and not frame[column].equals(other[column])] == []
    assert set(other["pool"]) == {"a", "b"}
    assert one.timeline_frame().equals(two.timeline_frame())
    for name in ("metrics", "totals", "cost", "classes"):
        assert one.result[name] == two.result[name]
    assert sum(each["requests"] for each in two.result["pools"]) == two.result["totals"]["completed"]


def same(whole: RunResult, kind: str, alone: RunResult) -> None:
    """The requests of a class fared as in a run of their own, to the last bit."""
    frame, own = whole.requests_frame(), alone.requests_frame()
    mine = frame[frame["class"] == kind].reset_index(drop=True)
    assert len(own) == len(mine) > 30
    for column in (name for name in own if name not in OF_THE_WHOLE):
        numbers = own[column].dtype.kind == "f"
        theirs, ours = (frame[column] if numbers else frame[column].astype(object).fillna("") for frame in (own, mine))
        assert np.array_equal(theirs.to_numpy(), ours.to_numpy(), equal_nan=numbers), column


@pytest.mark.parametrize("router", ["least_requests", "random"])
def test_two_models_are_two_runs(router: str) -> None:
    prefixes = {"shared_prefix": {"groups": 3, "tokens": 400}}
    llama, qwen = load("llama", **prefixes), load("qwen", 6, model=QWEN, sessions={"turns": 3, "think_time_s": 0.5})
    other = pool("other", 2, engine="sglang", data_parallel=2, model=QWEN)
    whole = simulate(scenario([pool("first", 2), other], [llama, qwen], router=router))
    same(whole, "llama", simulate(scenario([pool("first", 2)], [llama], router=router)))
    same(whole, "qwen", simulate(scenario([other], [qwen], router=router)))


MIXED = scenario(
    [
        pool("long", prompt_tokens=[800, 100_000]),
        pool("short", 2, hardware="l40s-48gb", engine="sglang", prompt_tokens=[1, 1200]),
        pool("tgi", engine="tgi", prompt_tokens=[1, 900], engine_args={"max_concurrent_requests": 2}),
    ],
    [load("chats", sessions={"turns": 2, "think_time_s": 0.5}), load("others", 9)],
    router="least_requests",
)


def test_jumping_is_stepping() -> None:
    jumps_as_it_steps(MIXED)


def test_streamed_requests_are_those_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = streams_alike(MIXED, monkeypatch, ("arrival_s", "first_token_s", "end_s", "instance_id"))
    assert len(whole.requests_frame()) > 100
    for one, streamed in zip(whole.result["pools"], parts.result["pools"], strict=True):
        assert one["requests"] == streamed["requests"]
        assert one["window_output_tokens"] == streamed["window_output_tokens"]


def test_requests_go_where_they_may_and_are_conserved() -> None:
    run = simulate(MIXED)
    frame, totals = run.requests_frame(), run.result["totals"]
    served = frame[frame["status"] == "finished"]
    bounds = {each["name"]: each["prompt_tokens"] for each in MIXED["deployment"]["pools"]}
    for name, (least, most) in bounds.items():
        mine = served[served["pool"] == name]["prompt_tokens"]
        assert len(mine) > 5
        assert mine.between(least, most).all()
    assert totals["reasons"].get("shed_429", 0) > 0  # TGI's limit, and nobody else's
    assert totals["offered"] == sum(totals[name] for name in ("completed", "rejected", "failed", "unfinished"))
