"""Prefill and decode pools beside others whose servers come and go: each fares as by itself, and no request is forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hardware_profiles.errors import PlanError
from simulator import load_scenario, simulate
from simulator.cluster.elastic_services import ElasticFleet
from simulator.prepare import prepare
from tests.clusters import answered, fares_as_alone

LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
LOAD: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 9},
    "prompt_tokens": {"kind": "lognormal", "mean": 900, "p99": 5000, "max": 7000},
    "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 200},
}
TWO = [{"name": "llama", **LOAD}, {"name": "qwen", "model": QWEN, **LOAD}]
PATIENT = {"timeout_s": 1.0, "retries": {"attempts": 3, "on": ["timeout", "node_lost", "503"], "backoff_s": 0.2, "jitter": 0.0}}
HPA = {"kind": "hpa", "metric": "num_requests_waiting", "target": 2, "min_replicas": 1, "max_replicas": 4, "start_up": 1}
QUICK = {**HPA, "sync_period_s": 1, "scrape_s": 1}
KNATIVE = {"kind": "knative", "target": 4, "min_replicas": 0, "max_replicas": 3, "stable_window_s": 6, "start_up": 1}
BUSY = {"kind": "poisson", "rate": 25}
QUEUE = {"max_inflight": 3, "on_full": "wait"}


def pool(name: str, engine: str = "vllm", **keys: Any) -> dict[str, Any]:
    return {"name": name, "engine": engine, "hardware": "h100-sxm-80gb", "replicas": 2, "gpus_per_node": 1, **keys}


def pair(engine: str = "vllm", **keys: Any) -> list[dict[str, Any]]:
    return [pool(role[0], engine, role=role, **keys) for role in ("prefill", "decode")]


QWENS = pool("q", model=QWEN)


def fleet(
    pools: list[dict[str, Any]], loads: list[dict[str, Any]] = TWO, duration: float = 6, client: Any = None, **around: Any
) -> dict[str, Any]:
    deployment, work = {"pools": pools, **around}, {"classes": loads, "duration": duration}
    return {"model": LLAMA, "deployment": deployment, "workload": work, "client": client or {}}


def conserved(data: dict[str, Any], *, aggregate: bool) -> Any:
    return answered(data, ElasticFleet, aggregate=aggregate)[1]


def alike(one: Any, other: Any) -> None:
    for name in ("status", "reason", "replica", "attempts"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert np.array_equal(one.end_s, other.end_s, equal_nan=True)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_never_comes_changes_nothing(engine: str) -> None:
    pools = [*pair(engine), QWENS]
    plain = simulate(fleet(pools, duration=3))
    never = {"events": [{"at_s": 1e9, "kind": "node", "pool": "q", "replica": 0}]}
    scaler = {**HPA, "metric": "requests_in_flight", "target": 1e6, "min_replicas": 2, "max_replicas": 2}
    around = {"failures": never, "autoscaler": scaler, "admission": {"max_inflight": 10**6}}
    held = simulate(fleet(pools, duration=3, client={"timeout_s": 1e6}, **around))
    one, other = (run.requests_frame() for run in (plain, held))
    assert [column for column in one if not one[column].equals(other[column])] == []
    assert plain.result["metrics"] == held.result["metrics"]
    assert plain.timeline_frame().equals(held.timeline_frame())


LOST = [
    {"at_s": 2, "kind": "node", "pool": "p", "replica": 0, "for_s": 1},
    {"at_s": 2.5, "kind": "gpu", "pool": "d", "replica": 1, "for_s": 2},
    {"at_s": 3, "kind": "slow", "pool": "d", "replica": 0, "for_s": 1, "factor": 4.0},
    {"at_s": 2.2, "kind": "node", "pool": "q", "replica": 0, "for_s": 1},
    {"at_s": 3, "kind": "drain", "pool": "q", "replica": 1, "notice_s": 1},
    {"at_s": 4, "kind": "slow", "pool": "q", "replica": 0, "for_s": 1, "factor": 6.0},
]
AROUND = {
    "failures": ({}, {"detected_after_s": 0.4}),
    "patience": (PATIENT, {"detected_after_s": 0.0}),
    "queue": ({}, {"admission": QUEUE}),
    "scaled": ({}, {"autoscaler": QUICK}),
}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("name", AROUND)
def test_each_model_fares_as_in_a_run_of_its_own(name: str, engine: str) -> None:
    client, around = AROUND[name]
    around = dict(around)
    late_s = around.pop("detected_after_s", 0.0)
    few = {"engine_args": {"max_num_seqs" if engine == "vllm" else "max_running_requests": 4}}
    both = [*pair(engine, **few), {**QWENS, "engine": engine, **few}]

    def made(pools: list[dict[str, Any]], loads: list[dict[str, Any]]) -> dict[str, Any]:
        events = [event for event in LOST if event["pool"] in {each["name"] for each in pools}]
        failures = {"events": events, "detected_after_s": late_s, "start_up": 0.5, "replaced_after_s": 1.0}
        return fleet(pools, loads, client=client, failures=failures, **around)

    whole = simulate(made(both, TWO))
    frame = whole.requests_frame()
    lost = 0
    for kind, pools in (("llama", both[:2]), ("qwen", both[2:])):
        run = fares_as_alone(frame, kind, made(pools, [load for load in TWO if load["name"] == kind]))
        lost += run.result["fleet"]["attempts_lost"]
    assert whole.result["fleet"]["attempts_lost"] == lost > 0
    assert [each["name"] for each in whole.result["fleet"]["pools"]] == ["p", "d", "q"]


def test_an_autoscaler_of_one_pool_counts_the_requests_of_its_own() -> None:
    data = fleet([*pair(), {**QWENS, "replicas": 0, "autoscaler": KNATIVE}], duration=10)
    run = simulate(data)
    assert run.result["totals"]["completed"] == run.result["totals"]["offered"]
    waited_ms = run.requests_frame().groupby("class")["ttft_ms"].max()
    assert waited_ms["qwen"] > 1000 > waited_ms["llama"]
    pools = run.result["fleet"]["pools"]
    assert [each["serving_max"] for each in pools[:2]] == [2, 2]
    assert pools[2]["serving_max"] > 0


def test_an_autoscaler_counts_those_that_wait_at_the_router_for_its_pool() -> None:
    few = {"max_inflight": 2, "on_full": "wait"}
    scaler = {**QUICK, "metric": "requests_in_flight", "metric_type": "external", "target": 6, "max_replicas": 6}
    loads = [TWO[0], {**TWO[1], "arrivals": {"kind": "poisson", "rate": 30}}]
    found = simulate(fleet([*pair(), QWENS], loads, admission=few, autoscaler=scaler)).result["fleet"]["pools"]
    assert found[0]["serving_max"] == 2 < found[2]["serving_max"] == 6


def test_a_queue_at_the_router_holds_back_one_model_alone() -> None:
    client = {"timeout_s": 100.0}
    few = fleet([*pair(replicas=1), {**QWENS, "replicas": 1}], client=client, admission={"max_inflight": 1, "on_full": "wait"})
    waited_ms = simulate(few).requests_frame().groupby("class")["ttft_ms"].max()
    assert waited_ms["qwen"] > 1000
    lost = {"events": [{"at_s": 0.0, "kind": "gpu", "pool": "q", "replica": number} for number in range(2)]}
    frame = simulate(fleet([*pair(), QWENS], failures=lost)).requests_frame()
    assert set(frame[frame["class"] == "qwen"]["status"]) == {"rejected"}
    assert set(frame[frame["class"] == "llama"]["status"]) == {"finished"}


def test_a_link_that_is_down_holds_up_one_pair() -> None:
    event = {"at_s": 0.0, "kind": "link", "for_s": 3.0, "from": "p", "to": "d"}
    run = simulate(fleet([*pair(), QWENS], failures={"events": [event]}))
    waited_ms = run.requests_frame().groupby("class")["ttft_ms"].max()
    assert waited_ms["llama"] > 2000 > waited_ms["qwen"]


def test_dynamo_plans_for_each_model_by_itself() -> None:
    scaler = {"kind": "dynamo", "max_gpu_budget": 6, "optimization_target": "latency", "start_up": 0.5}
    scaler["load_adjustment_interval_s"] = 1
    few = {"engine_args": {"num_gpu_blocks_override": 600, "max_model_len": 8192}}
    both, loads = [*pair(replicas=1, **few), {**QWENS, "replicas": 1, **few}], [{**load, "arrivals": BUSY} for load in TWO]
    whole = simulate(fleet(both, loads, autoscaler=scaler))
    frame = whole.requests_frame()
    for kind, pools in (("llama", both[:2]), ("qwen", both[2:])):
        run = simulate(fleet(pools, [load for load in loads if load["name"] == kind], autoscaler=scaler))
        alone, mine = run.requests_frame(), frame[frame["class"] == kind].reset_index(drop=True)
        for column in ("status", "first_token_s", "end_s"):
            assert alone[column].astype(str).equals(mine[column].astype(str)), (kind, column)
    assert whole.result["fleet"]["pools"][2]["serving_max"] > 1


@pytest.mark.parametrize("roles", [("prefill", "prefill", "decode"), ("prefill", "decode", "mixed")])
def test_dynamo_is_refused_where_a_role_has_several_pools(roles: tuple[str, ...]) -> None:
    lengths = {"prompt_tokens": [700, 9000]} if "mixed" in roles else {}
    pools = [pool(f"{role}{n}", role=role, **(lengths if role != "mixed" else {})) for n, role in enumerate(roles)]
    with pytest.raises(PlanError, match="one prefill and one decode pool of each model"):
        prepare(load_scenario(fleet(pools, TWO[:1], autoscaler={"kind": "dynamo", "max_gpu_budget": 8})))


@pytest.mark.parametrize(
    ("around", "words"),
    [
        ({"failures": {"events": [{"at_s": 1, "kind": "gpu", "pool": "x", "replica": 0}]}}, "there is no pool 'x'"),
        ({"failures": {"events": [{"at_s": 1, "kind": "gpu", "pool": "q", "replica": 5}]}}, "no replica 5 in pool 'q'"),
        ({"failures": {"events": [{"at_s": 1, "kind": "link", "from": "p", "to": "q"}]}}, "nothing goes from pool 'p' to"),
    ],
)
def test_what_cannot_be_is_said(around: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        prepare(load_scenario(fleet([*pair(), QWENS], **around)))
    assert words in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_requests_are_conserved_around_losses(engine: str) -> None:
    failures = {"events": LOST, "start_up": 0.5, "replaced_after_s": 1.0, "detected_after_s": 0.3}
    data = fleet([*pair(engine), QWENS], client=PATIENT, failures=failures, admission=QUEUE)
    alike(*(conserved(data, aggregate=aggregate) for aggregate in (True, False)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_requests_are_conserved_whatever_goes_wrong(engine: str, seed: int) -> None:
    """Losses, drains, slow ones, scalers from zero, clients that go and come, queues at the router; jumps change nothing."""
    draw = np.random.default_rng(seed)
    kinds = ("node", "gpu", "reclaim", "drain", "slow")
    events = []
    for _ in range(8):
        kind = str(draw.choice(kinds))
        event = {"at_s": float(draw.uniform(1, 12)), "kind": kind, "for_s": float(draw.uniform(0, 5))}
        event |= {"pool": str(draw.choice(("p", "d", "q", "s"))), "replica": int(draw.integers(2))}
        event |= {"notice_s": float(draw.uniform(0, 5))} if kind in ("reclaim", "drain") else {}
        events.append(event | ({"factor": 3.0} if kind == "slow" else {}))
    silent_s = float(draw.choice([0.0, 2.0]))
    failures = {"events": events, "mtbf_h": 0.01, "of": "replica", "repair_s": 2.0, "start_up": 1.0, "detected_after_s": silent_s}
    on = ["node_lost", "503", "timeout"]
    pools = [*pair(engine, prompt_tokens=[700, 9000]), pool("s", engine, prompt_tokens=[1, 699]), {**QWENS, "engine": "sglang"}]
    for client, around in (
        ({}, {}),
        ({"timeout_s": 1.5, "retries": {"attempts": 3, "on": on}}, {"autoscaler": HPA}),
        ({"retries": {"attempts": 3, "on": on}}, {"admission": {"max_inflight": 4, "on_full": "wait"}, "autoscaler": KNATIVE}),
        ({"timeout_s": 3.0}, {"router": "least_requests", "autoscaler": {**HPA, "kind": "keda", "min_replicas": 0}}),
    ):
        data = {**fleet(pools, client=client, failures=failures, **around, duration=12), "seed": seed}
        alike(*(conserved(data, aggregate=aggregate) for aggregate in (True, False)))
