"""Pools side by side, and several of one role, whose replicas come and go: nothing is forgotten, idle ones change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator import simulate
from simulator.cluster.elastic_mixed import ElasticMixed
from simulator.cluster.outcome import FINISHED, NOT_ARRIVED, UNFINISHED
from tests.clusters import ran

LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
LOAD: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 12},
    "prompt_tokens": {"kind": "lognormal", "mean": 700, "p99": 4000},
    "output_tokens": {"kind": "lognormal", "mean": 60, "p99": 300},
}
KNATIVE = {"kind": "knative", "target": 4, "min_replicas": 0, "max_replicas": 3, "stable_window_s": 6, "start_up": 1}


def pool(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "engine": "vllm", "hardware": "h100-sxm-80gb", "replicas": 2, "gpus_per_node": 1, **keys}


def fleet(*pools: dict[str, Any], duration: float = 7, client: dict[str, Any] | None = None, **around: Any) -> dict[str, Any]:
    """Requests for two models, of one with prompts of two kinds."""
    classes = [{"name": "one", **LOAD}, {"name": "two", "model": QWEN, **LOAD}]
    work = {"classes": classes} if any("model" in each for each in pools) else LOAD
    deployment, work = {"pools": list(pools), **around}, {**work, "duration": duration}
    return {"model": LLAMA, "deployment": deployment, "workload": work, "client": client or {}}


def conserved(data: dict[str, Any], *, aggregate: bool) -> Any:
    cluster, result = ran(data, aggregate=aggregate)
    came = result.status != NOT_ARRIVED
    for row in np.flatnonzero(result.status == FINISHED).tolist():
        assert sum(last - first + 1 for _, first, last in result.emissions.of(row)) == result.output_tokens[row]
    if not (result.status[came] == UNFINISHED).any():
        assert not cluster._live
        if isinstance(cluster, ElasticMixed):
            assert all(rank.scheduler.state()[:3] == (0, 0, 0) and not rank.in_service for rank in cluster.ranks)
            assert not any(flow._inside for flow in cluster._flows)
            assert cluster._door is None or not len(cluster._door)
    return result


def test_what_never_comes_changes_nothing() -> None:
    plain = simulate(fleet(pool("a"), pool("b"), pool("q", model=QWEN), duration=3))
    never = {"events": [{"at_s": 1e9, "kind": "node", "pool": "a", "replica": 0}]}
    scaler = {"kind": "hpa", "metric": "requests_in_flight", "target": 1e6, "min_replicas": 2, "max_replicas": 2}
    around = {"failures": never, "autoscaler": scaler, "admission": {"max_inflight": 10**6}}
    data = fleet(pool("a"), pool("b"), pool("q", model=QWEN), duration=3, client={"timeout_s": 1e6}, **around)
    held = simulate(data)
    one, other = (run.requests_frame() for run in (plain, held))
    assert [column for column in one if not one[column].equals(other[column])] == []
    assert plain.result["metrics"] == held.result["metrics"]
    assert plain.result["pools"] == held.result["pools"]


def test_a_pool_of_one_model_comes_when_it_is_asked_for_and_the_other_goes_on() -> None:
    data = fleet(pool("a"), pool("q", model=QWEN, replicas=0, autoscaler=KNATIVE), duration=12)
    run = simulate(data)
    assert run.result["totals"]["completed"] == run.result["totals"]["offered"]
    frame = run.requests_frame()
    waited_ms = frame.groupby("pool")["ttft_ms"].max()
    assert waited_ms["q"] > 1000 > waited_ms["a"]
    assert [each["name"] for each in run.result["fleet"]["pools"]] == ["a", "q"]
    assert run.result["fleet"]["pools"][1]["serving_max"] > 0
    assert 0 < run.result["pools"][1]["devices"] < 3


@pytest.mark.slow
def test_variants_of_a_model_are_scaled_together_by_their_cost() -> None:
    """llm-d's autoscaler adds the cheaper variant, whichever is full."""
    scaler = {"kind": "wva", "min_replicas": 1, "max_replicas": 6, "start_up": 1}
    pools = pool("dear", replicas=1, usd_per_gpu_hour=9.0), pool("cheap", replicas=1, usd_per_gpu_hour=2.0)
    small = [{**each, "engine_args": {"max_num_seqs": 2}} for each in pools]
    found = simulate(fleet(*small, duration=60, autoscaler=scaler)).result["fleet"]["pools"]
    assert found[0]["serving_max"] == 1 < found[1]["serving_max"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("roles", ["side by side", "vllm", "sglang"])
def test_requests_are_conserved_whatever_goes_wrong(roles: str, seed: int) -> None:
    """Losses, drains, slow ones, scalers from zero, clients that go and come, queues at the router; jumps change nothing."""
    draw = np.random.default_rng(seed)
    names = ("a", "b", "q")
    kinds = ("node", "gpu", "reclaim", "drain", "slow")
    events = []
    for _ in range(8):
        kind = str(draw.choice(kinds))
        event = {"at_s": float(draw.uniform(1, 12)), "kind": kind, "for_s": float(draw.uniform(0, 5))}
        event |= {"pool": str(draw.choice(names)), "replica": int(draw.integers(2))}
        event |= {"notice_s": float(draw.uniform(0, 5))} if kind in ("reclaim", "drain") else {}
        events.append(event | ({"factor": 3.0} if kind == "slow" else {}))
    silent_s = float(draw.choice([0.0, 2.0]))
    failures = {"events": events, "mtbf_h": 0.01, "of": "replica", "repair_s": 2.0, "start_up": 1.0, "detected_after_s": silent_s}
    on = ["node_lost", "503", "timeout"]
    hpa = {"kind": "hpa", "metric": "num_requests_waiting", "target": 2, "min_replicas": 1, "max_replicas": 4, "start_up": 1}
    pools = [pool("a"), pool("b", engine="sglang", prompt_tokens=[0, 1500]), pool("q", model=QWEN, engine="trtllm")]
    if roles != "side by side":
        parts = ("a", "prefill"), ("b", "prefill"), ("q", "decode"), ("r", "decode")
        pools = [pool(name, role=role, engine=roles) for name, role in parts]
    for client, around in (
        ({}, {}),
        ({"timeout_s": 1.5, "retries": {"attempts": 3, "on": on}}, {"autoscaler": hpa}),
        ({"retries": {"attempts": 3, "on": on}}, {"admission": {"max_inflight": 4, "on_full": "wait"}, "autoscaler": KNATIVE}),
        ({"timeout_s": 3.0}, {"router": "least_requests", "autoscaler": {**hpa, "kind": "keda", "min_replicas": 0}}),
    ):
        data = {**fleet(*pools, client=client, failures=failures, **around, duration=12), "seed": seed}
        found, plain = (conserved(data, aggregate=aggregate) for aggregate in (True, False))
        for name in ("status", "reason", "replica", "attempts"):
            assert np.array_equal(getattr(found, name), getattr(plain, name)), name
        assert np.array_equal(found.end_s, plain.end_s, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["mixed", "apart"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_all_ranks_of_a_replica_come_and_go_together(engine: str, role: str) -> None:
    rows = {"engine_args": {"max_num_seqs" if engine == "vllm" else "max_running_requests": 8 if engine == "vllm" else 32}}
    hpa = {"kind": "hpa", "metric": "num_requests_waiting", "target": 2, "min_replicas": 1, "max_replicas": 4, "start_up": 1}
    hpa |= {"behavior": {"scale_down": {"stabilization_window_seconds": 3}}}
    ranks = {"tensor_parallel": 1, "data_parallel": 4, "expert_parallel": 4, "replicas": 1, "gpus_per_node": 8, **rows}
    names = ["mixed"] if role == "mixed" else ["prefill", "decode"]
    pools = [pool(name, engine=engine, role=name, **ranks) for name in names]
    burst = {**LOAD, "duration": 20, "arrivals": {"kind": "onoff", "rate_on": 40, "rate_off": 2, "on_s": 6, "off_s": 6}}
    failures = {"mtbf_h": 0.004, "of": "replica", "repair_s": 2.0, "start_up": 1.0}
    client = {"timeout_s": 20, "retries": {"attempts": 3, "on": ["node_lost", "503"]}}
    data = {**fleet(*pools, autoscaler=hpa, failures=failures, client=client), "model": "mistralai/Mixtral-8x7B-Instruct-v0.1"}
    data["workload"] = burst
    found, plain = (conserved(data, aggregate=aggregate) for aggregate in (True, False))
    assert np.array_equal(found.status, plain.status)
    assert np.array_equal(found.end_s, plain.end_s, equal_nan=True)
    if role == "mixed":
        assert simulate(data).result["fleet"]["serving_max"] > 1
