"""Runs behind each router: one replica is the plain run, many random queues are M/M/1 each, and what cannot be is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from hardware_profiles.errors import InputError
from simulator.cluster.cluster import Cluster
from simulator.run import RunResult, simulate
from simulator.validation.schedules import RecordedClock
from tests.effort import some
from tests.guard.cases import CHATS, TIGHT, args, given, poisson
from tests.invariants.core_cases import plain_workload, plan
from tests.routing.test_policies import EVERY

ROUTERS: list[Any] = [
    *("random", "least_requests", "least_tokens", "session"),
    *({"system": system, "policy": policy} for system, policy in EVERY),
    {"system": "dynamo", "use_kv_events": False},
    {"system": "dynamo", "router_temperature": 0.5},
    {"system": "llm-d"},
]
MANY = {**CHATS, "shared_prefix": {"groups": 4, "tokens": 300}, "requests": 120}


def bare(run: RunResult) -> dict[str, Any]:
    """A result without what names its router."""
    return {key: value for key, value in run.result.items() if key not in ("assumptions", "run_id")}


@pytest.fixture(scope="module")
def plain() -> RunResult:
    return simulate(given(args(**TIGHT), MANY))


@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_one_replica_behind_any_router_is_the_plain_run(router: Any, plain: RunResult) -> None:
    idle = {
        "admission": {"max_inflight": 1000, "on_full": "wait"},
        "failures": {"mtbf_h": 1e12, "of": "node"},
        "autoscaler": {"kind": "hpa", "metric": "requests_in_flight", "target": 1e6, "max_replicas": 4},
    }
    for around in ({}, idle):
        routed = simulate(given({"router": router, **args(**TIGHT), **around}, MANY))
        assert bare(routed) == bare(plain)
        assert routed.requests_frame().equals(plain.requests_frame())
        assert routed.timeline_frame().equals(plain.timeline_frame())


@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_every_replica_gets_requests_and_sessions_find_their_caches(router: Any) -> None:
    """Rules that know sessions or texts find what was computed more often than those in turn, but for rings that are uneven."""
    routed = simulate(given({"replicas": 3, "router": router}, MANY))
    assert len(set(routed.raw.replica.tolist())) >= (2 if "prefixaware" in str(router) else 3)
    words = str(router)
    if any(word in words for word in ("session", "sticky", "manual", "cache_aware", "prefixaware", "consistent")):
        assert routed.result["server"]["prefix_cache_hit_rate"] > 0.5


@pytest.mark.slow
def test_random_queues_are_m_m_1() -> None:
    """At random over c servers of one row each: each is an M/M/1 queue, mean wait rho / (1 - rho) of a mean service."""
    n, servers, load, mean_s = 30_000, 4, 0.6, 0.5
    rng = np.random.default_rng(5)
    output = np.maximum(1, rng.exponential(mean_s / 0.01, n).round().astype(np.int64))
    arrival = np.cumsum(rng.exponential(mean_s / (load * servers), n))
    clock = RecordedClock({"a": 0.01, "b": 0.0, "c": 0.0, "d": 0.0})
    result = Cluster(
        plain_workload(arrival, np.full(n, 8), np.minimum(output, 4000)),
        plan(1000, max_num_seqs=1),
        clock,
        replicas=servers,
        router="random",
    ).run()
    waits = result.first_scheduled_s - result.engine_arrival_s
    means = waits[: n // 40 * 40].reshape(40, -1).mean(axis=1)
    half = 3.56 * means.std(ddof=1) / 40**0.5  # 99.9 % of Student's t with 39 degrees of freedom
    assert abs(means.mean() - load / (1 - load) * mean_s) < half < 0.2
    shares = Counter(result.replica.tolist())
    assert max(abs(count - n / servers) for count in shares.values()) < 4 * (n * 0.25 * 0.75) ** 0.5


def test_polled_loads_herd() -> None:
    """Between two looks all requests go to the replica that looked idle; counts in flight alternate."""
    load = {"arrivals": poisson(20), "requests": 400}
    switches = []
    for system in ("sglang-router", "vllm-router"):
        found = simulate(given({"replicas": 2, "router": {"system": system, "policy": "power_of_two"}}, load))
        switches.append(int(np.count_nonzero(np.diff(found.raw.replica))))
    assert switches[0] < 40
    assert switches[1] > 150


PAIR = [
    {"engine": "vllm", "hardware": "h100-sxm-80gb", "role": role, "name": role, "replicas": 2} for role in ("prefill", "decode")
]


@pytest.mark.parametrize("prefill", some(["round_robin", "cache_aware", "power_of_two", "consistent_hash"], 1))
@pytest.mark.parametrize("decode", ["random", "sticky_least_loaded"])
def test_prefill_and_decode_pools_are_routed_apart(prefill: str, decode: str) -> None:
    router = {"system": "vllm-router", "prefill_policy": prefill, "decode_policy": decode}
    scenario = {**given({}, MANY), "deployment": {"pools": PAIR, "router": router}}
    run = simulate(scenario)
    assert run.result["totals"]["completed"] == 120
    assert run.result == simulate(scenario, aggregate=False).result
    served = run.requests_frame().groupby("session_id")
    assert (served["instance_id"].nunique().max() == 1) == (decode == "sticky_least_loaded")
    assert (served["prefill_instance_id"].nunique().max() == 1) == (prefill in ("consistent_hash", "cache_aware"))


@pytest.mark.parametrize("prefill", some(["bucket", "cache_aware", "power_of_two", "round_robin"]))
@pytest.mark.parametrize("decode", ["manual", "power_of_two", "cache_aware"])
def test_both_servers_of_a_pair_are_chosen_at_once(prefill: str, decode: str) -> None:
    router = {"system": "sglang-router", "prefill_policy": prefill, "decode_policy": decode}
    pools = [{**pool, "engine": "sglang"} for pool in PAIR]
    scenario = {**given({}, MANY), "deployment": {"pools": pools, "router": router}}
    run = simulate(scenario)
    assert run.result["totals"]["completed"] == 120
    assert run.result == simulate(scenario, aggregate=False).result
    served = run.requests_frame()
    assert (served.groupby("session_id")["instance_id"].nunique().max() == 1) == (decode == "manual")
    assert set(served["prefill_instance_id"]) == {0, 1}


def test_one_server_of_each_role_behind_a_product_is_the_plain_run() -> None:
    for engine, system in (("vllm", "vllm-router"), ("sglang", "sglang-router")):
        pools = [{**pool, "engine": engine, "replicas": 1} for pool in PAIR]
        results = []
        for router in ("round_robin", {"system": system}):
            run = simulate({**given({}, MANY), "deployment": {"pools": pools, "router": router}})
            results.append([run.raw.first_token_s.tolist(), run.raw.end_s.tolist()])
        assert results[0] == results[1]


def test_a_hop_delays_every_request() -> None:
    router = {"system": "vllm-router", "policy": "round_robin", "hop_s": 0.25}
    near, far = (simulate(given({"replicas": 2, "router": r}, {"requests": 20})) for r in ("round_robin", router))
    np.testing.assert_allclose(far.raw.engine_arrival_s - near.raw.engine_arrival_s, 0.25, atol=1e-9)


def test_what_a_router_assumes_is_said() -> None:
    said = simulate(given({"router": {"system": "sglang-router", "version": "0.2.0"}}, {"requests": 5})).result["assumptions"]
    assert any("4 bytes a token" in line for line in said)
    assert any("0.2.0 is simulated by the rules of 0.3.2" in line for line in said)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_products_that_send_to_pairs_otherwise_than_these_expect_are_refused(engine: str) -> None:
    able = {"vllm": "vllm-router", "sglang": "sglang-router"}[engine]
    pools = [{**pool, "engine": engine} for pool in PAIR]
    for system in ("vllm-router", "sglang-router", "production-stack"):
        if system == able:
            continue
        with pytest.raises(InputError, match=able):
            simulate({**given({}, MANY), "deployment": {"pools": pools, "router": {"system": system}}})


@pytest.mark.parametrize(
    ("deployment", "where", "said"),
    [
        ({"router": {"system": "sglang-ruter"}}, "router.system", "sglang-router"),
        ({"router": {"system": "sglang-router", "cache_treshold": 0.1}}, "router.cache_treshold", "cache_threshold"),
        ({"router": {"system": "sglang-router", "prefill_policy": "bucket"}}, "router.prefill_policy", "roles"),
        ({"router": {"system": "vllm-router", "prefill_policy": "random"}}, "router.prefill_policy", "roles"),
        ({"router": {"system": "vllm-router", "queue_size": 5}}, "router.queue_size", "admission"),
        ({"router": {"system": "dynamo"}, "engine": "tgi"}, "router.use_kv_events", "use_kv_events: false"),
        ({"router": {"system": "dynamo", "kv_cache_block_size": 64}}, "router.kv_cache_block_size", "16"),
        ({"router": {"system": "dynamo", "router_queue_threshold": 1.0}}, "router.router_queue_threshold", "admission"),
    ],
)
def test_what_cannot_be_is_refused(deployment: dict[str, Any], where: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        simulate(given(deployment, {"requests": 5}))
    assert str(error.value.where).endswith(where)
    assert said in f"{error.value.message} {error.value.mend}"
