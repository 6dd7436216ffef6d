"""Prefill and decode servers that come and go: what fails, what is sent again, and that nothing is forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.schedulers.pulled import PrefillOfPull
from engine_models.schedulers.reserved import SendingPrefillScheduler
from hardware_profiles.errors import InputError
from simulator import load_scenario, simulate
from simulator.cluster.elastic_handover import ElasticHandover, ElasticPull
from simulator.cluster.outcome import FAILED, FINISHED, NOT_ARRIVED, REJECTED, UNFINISHED, Reason
from simulator.prepare import prepare
from simulator.run import _cluster
from simulator.workload.build import build_workload

WAYS = {
    "vllm": ("vllm", {}),
    "mooncake": ("vllm", {"connector": "MooncakeConnector"}),
    "sglang": ("sglang", {}),
    "trtllm": ("trtllm", {}),
    "generation-first": ("trtllm", {"schedule_style": "generation_first"}),
}
"""Engine, and what its transfers say, of each way to share requests."""
DRAFTED = {"speculative": {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.7}}
RETRIES = {"client": {"retries": {"attempts": 4, "on": ["node_lost", "503"]}}}


def split(failures: dict[str, Any] | None, way: str = "vllm", **more: Any) -> dict[str, Any]:
    """Two servers of each kind under ten requests a second, over a link that transfers take a while on."""
    engine, transfer = WAYS[way.removesuffix("-drafted")]
    one = {"engine": engine, "hardware": "h100-sxm-80gb", "replicas": 2, "gpus_per_node": 1}
    one |= DRAFTED if way.endswith("-drafted") else {}
    around = more.pop("around", {})
    return {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {
            "pools": [{**one, "name": role, "role": role} for role in ("prefill", "decode")],
            "transfer": {"bytes_per_s": 1.0e9, **transfer},
            **({"failures": failures} if failures else {}),
            **around,
        },
        "workload": {
            "arrivals": {"kind": "poisson", "rate": 12},
            "prompt_tokens": {"kind": "lognormal", "mean": 900, "p99": 4000},
            "output_tokens": {"kind": "lognormal", "mean": 60, "p99": 300},
            "max_output_tokens": "equal",
            "duration": 7,
            **more.pop("workload", {}),
        },
        **more,
    }


def scaled(scaler: dict[str, Any]) -> dict[str, Any]:
    return split(None, around={"autoscaler": scaler})


def ran(data: dict[str, Any], *, aggregate: bool = True) -> tuple[ElasticHandover, Any]:
    checked = load_scenario(data)
    work = build_workload(checked.workload, seed=checked.seed, base_dir=None)
    cluster = _cluster(prepare(checked), work, aggregate=aggregate, should_stop=None)
    assert isinstance(cluster, ElasticHandover)
    return cluster, cluster.run()


def lost(kind: str, pool: str, at_s: float = 4.0, replica: int | None = 0, **more: Any) -> dict[str, Any]:
    event = {"at_s": at_s, "kind": kind, "pool": pool, **more}
    return {"events": [event if replica is None else {**event, "replica": replica}], "start_up": 3}


def check_conserved(cluster: ElasticHandover, result: Any) -> None:
    """Each request has one end, tokens are those of its steps, and no block is kept for nobody."""
    came = result.status != NOT_ARRIVED
    assert np.isin(result.status[came], (FINISHED, FAILED, REJECTED, UNFINISHED)).all()
    for row in np.flatnonzero(result.status == FINISHED).tolist():
        spans = result.emissions.of(row)
        assert sum(last - first + 1 for _, first, last in spans) == result.output_tokens[row]
    if (result.status[came] == UNFINISHED).any():
        return
    assert not cluster._live
    assert not cluster._unwanted
    if isinstance(cluster, ElasticPull):
        assert [cluster._sources, cluster._reads, cluster._between] == [{}, {}, {}]
    else:
        assert not cluster._pairs
    assert not cluster._network._flows
    for rank in cluster.ranks:
        scheduler = rank.scheduler
        if isinstance(scheduler, PrefillOfPull):
            scheduler.free_released()
        if isinstance(scheduler, SendingPrefillScheduler):
            scheduler._see_sent()
        assert not scheduler.has_work()
        assert scheduler.state()[:3] == (0, 0, 0)
        assert not rank.in_service


def serving(cluster: ElasticHandover) -> int:
    return sum(levels[-1].up for levels in cluster.fleet.levels)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_what_never_comes_changes_nothing(way: str) -> None:
    """A failure, clients that wait for ever, a router with room for all, an autoscaler without a reason."""
    load = {"workload": {"duration": 4}}
    plain = simulate(split(None, way, **load))
    idle = {
        "client": {"timeout_s": 1e6, "retries": {"attempts": 3}},
        "around": {
            "admission": {"max_inflight": 10**6},
            "autoscaler": {"kind": "hpa", "metric": "requests_in_flight", "target": 1e6, "min_replicas": 2, "max_replicas": 2},
        },
    }
    held = simulate(split(lost("node", "prefill", at_s=1e9), way, **load, **idle))
    assert plain.requests_frame().equals(held.requests_frame())
    assert plain.timeline_frame().equals(held.timeline_frame())
    differ = {key for key in {**plain.result, **held.result} if plain.result.get(key) != held.result.get(key)}
    assert differ <= {"run_id", "assumptions", "deployment"}


@pytest.mark.parametrize("pool", ["prefill", "decode"])
@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way == "sglang" else pytest.mark.slow) for way in WAYS])
def test_a_lost_server_fails_what_it_has_and_clients_send_it_again(way: str, pool: str) -> None:
    failures = lost("node", pool, for_s=4.0)
    cluster, result = ran(split(failures, way))
    failed = int((result.status == FAILED).sum())
    assert failed > 0
    assert (cluster.toll.lost, cluster.toll.again) == (failed, 0)
    assert serving(cluster) == 4
    check_conserved(cluster, result)
    cluster, result = ran(split(failures, way, **RETRIES))
    assert (result.status[result.status != NOT_ARRIVED] == FINISHED).all()
    assert cluster.toll.again == cluster.toll.lost == failed
    check_conserved(cluster, result)


@pytest.mark.slow
def test_a_server_that_is_taken_back_gets_nothing_new() -> None:
    cluster, result = ran(split(lost("reclaim", "decode", notice_s=8.0)))
    assert (result.status[result.status != NOT_ARRIVED] == FINISHED).all()
    assert [level.draining for level in cluster.fleet.levels[1]] == [0, 1, 0]
    check_conserved(cluster, result)


def test_an_autoscaler_has_lost_devices_provisioned_again() -> None:
    start = {"provisioning_s": 2.0, "image_s": 0.0, "weights_s": 0.5, "compile_s": 0.0, "graph_capture_s": 0.0, "warm_up_s": 0.0}
    scaler = {"kind": "hpa", "metric": "num_requests_waiting", "target": 1e6, "min_replicas": 2, "max_replicas": 2}
    failures = {"events": lost("gpu", "decode", at_s=1.0)["events"]}
    cluster, _ = ran(split(failures, "vllm", around={"autoscaler": {**scaler, "start_up": start}}))
    assert [(level.at_s, level.up) for level in cluster.fleet.levels[1]] == [(0.0, 2), (1.0, 1), (3.0, 1), (3.5, 2)]


def test_over_mooncake_prompts_that_nobody_asked_for_are_held_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """480 s from their end where the reader is lost; those on their way to one whose client has gone are not."""
    freed: list[tuple[float, int]] = []
    expire = ElasticHandover._expire_lease

    def expired(self: ElasticHandover, source: int, holder: Any, held: Any) -> None:
        freed.append((self._clock.now_s, held.index))
        assert held in holder.held
        expire(self, source, holder, held)

    monkeypatch.setattr(ElasticHandover, "_expire_lease", expired)
    failures = lost("gpu", "decode", for_s=4.0)
    failures["events"] += lost("gpu", "decode", replica=1, for_s=4.0)["events"]
    cluster, result = ran(split(failures, "mooncake"))
    assert len(freed) > 1
    for at_s, row in freed:
        assert result.status[row] == FAILED
        assert at_s == pytest.approx(result.handed.prefill_end_s[row] + 480.0)
    check_conserved(cluster, result)
    freed.clear()
    ran(split(None, "mooncake", client={"timeout_s": 0.4}))
    assert freed == []


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_rolling_upgrade_loses_nothing(way: str) -> None:
    """Pool by pool and server by server; without a pool all servers are restarted, with one its own."""
    event = {"at_s": 1.0, "kind": "drain", "notice_s": 60.0}
    cluster, result = ran(split({"events": [event], "start_up": 0.5}, way))
    assert (result.status[result.status != NOT_ARRIVED] == FINISHED).all()
    for levels in cluster.fleet.levels:
        assert sum(level.draining for level in levels) == 2
        assert min(level.up for level in levels) == 1
        assert levels[-1].up == 2
    check_conserved(cluster, result)
    cluster, _ = ran(split({"events": [{**event, "pool": "decode"}], "start_up": 0.5}, way, workload={"duration": 6}))
    assert [max(level.draining for level in levels) for levels in cluster.fleet.levels] == [0, 1]


@pytest.mark.slow
def test_a_silent_loss_is_noticed_by_signs_of_life() -> None:
    """SGLang's decode servers look every 5 s: of a loss at 4 s the second look fails at 10 s; the router hears at 34 s."""
    failures = {**lost("node", "prefill", at_s=4.0, for_s=60.0), "detected_after_s": 30.0}
    cluster, result = ran(split(failures, "sglang", **RETRIES))
    assert (result.status[result.status != NOT_ARRIVED] == FINISHED).all()
    check_conserved(cluster, result)
    again = result.attempts > 1
    under_way = again & (result.arrival_s < 4.0)
    assert under_way.any()
    noticed = np.abs(result.engine_arrival_s - 10.5) < 1.0
    assert noticed[under_way].any()
    assert (noticed | (result.engine_arrival_s > 34.0))[again].all(), "some are sent to the silent server again"
    assert not noticed[again & ~under_way].any()
    early = ran(split({**failures, "detected_after_s": 0.0}, "sglang", **RETRIES))[1]
    assert (early.engine_arrival_s[early.attempts > 1] < 9.0).all()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_clients_that_wait_no_longer_free_both_servers(way: str) -> None:
    load = {"arrivals": {"kind": "poisson", "rate": 60}, "duration": 5}
    data = split(None, way, client={"timeout_s": 0.4, "retries": {"attempts": 2, "on": ["timeout"]}}, workload=load)
    cluster, result = ran(data)
    assert set(result.reason[result.status == FAILED].tolist()) == {Reason.TIMED_OUT}
    assert (result.attempts > 1).any()
    check_conserved(cluster, result)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_router_that_is_full_lets_wait_or_answers(way: str) -> None:
    load = {"arrivals": {"kind": "poisson", "rate": 60}, "duration": 3}
    waits = split(None, way, around={"admission": {"max_inflight": 2, "on_full": "wait"}}, workload=load)
    cluster, result = ran(waits)
    assert (result.status[result.status != NOT_ARRIVED] == FINISHED).all()
    check_conserved(cluster, result)
    cluster, result = ran(split(None, way, around={"admission": {"max_inflight": 2}}, workload=load))
    assert set(result.reason[result.status == REJECTED].tolist()) == {Reason.SHED_429}
    check_conserved(cluster, result)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_planner_scales_both_pools_by_an_sla(way: str) -> None:
    """A quiet begin, then a load that one prefill and one decode server do not carry."""
    scaler = {
        "kind": "dynamo",
        "optimization_target": "sla",
        "itl_ms": 9,
        "throughput_adjustment_interval_s": 5,
        "start_up": 2,
        "max_gpu_budget": 12,
    }
    load = {
        "arrivals": {"kind": "diurnal", "rate": 25, "peak_to_mean": 2, "period_s": 40},
        "prompt_tokens": {"kind": "constant", "value": 4000},
        "output_tokens": {"kind": "constant", "value": 150},
        "duration": 40,
    }
    data = split(None, way, around={"autoscaler": scaler, "transfer": {"bytes_per_s": 2e10, **WAYS[way][1]}}, workload=load)
    cluster, result = ran(data)
    assert (result.status[result.status != NOT_ARRIVED] == FINISHED).all()
    check_conserved(cluster, result)
    for levels in cluster.fleet.levels:
        assert max(level.up for level in levels) > 2
        assert min(level.up for level in levels) == 1
    assert cluster.toll.added
    assert cluster.toll.removed
    found = simulate(data).result["fleet"]
    assert [pool["name"] for pool in found["pools"]] == ["prefill", "decode"]
    assert found["serving_mean"] == pytest.approx(sum(pool["serving_mean"] for pool in found["pools"]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("way", [*WAYS, "sglang-drafted"])
@pytest.mark.slow
def test_requests_are_conserved_whatever_goes_wrong(way: str, seed: int) -> None:
    """Losses, drains, a scaler, clients that go and come, a router that is full; jumps change nothing."""
    draw = np.random.default_rng(seed)
    kinds, pools = ("node", "gpu", "reclaim", "drain", "link"), ("prefill", "decode")
    events = []
    for _ in range(8):
        kind = str(draw.choice(kinds))
        event = {"at_s": float(draw.uniform(1, 20)), "kind": kind, "for_s": float(draw.uniform(0, 6))}
        if kind != "link":
            event |= {"pool": str(draw.choice(pools)), "replica": int(draw.integers(2))}
        if kind in ("reclaim", "drain"):
            event["notice_s"] = float(draw.uniform(0, 5))
        events.append(event)
    silent_s = float(draw.choice([0.0, 2.0, 15.0]))
    failures = {"events": events, "mtbf_h": 0.01, "of": "replica", "repair_s": 2.0, "start_up": 1.0, "detected_after_s": silent_s}
    scaler = {"kind": "knative", "target": 6, "min_replicas": 1, "max_replicas": 4, "stable_window_s": 6, "start_up": 1}
    for more in (
        {},
        RETRIES,
        {"client": {"timeout_s": 1.5, "retries": {"attempts": 3, "on": ["node_lost", "503", "timeout"]}}},
        {**RETRIES, "around": {"admission": {"max_inflight": 6, "on_full": "wait"}, "autoscaler": scaler}},
        {"client": {"timeout_s": 3.0}, "around": {"autoscaler": {**scaler, "min_replicas": 0}, "router": "least_requests"}},
    ):
        data = split(failures, way, seed=seed, workload={"arrivals": {"kind": "poisson", "rate": 25}}, **more)
        cluster, result = ran(data)
        check_conserved(cluster, result)
        plain = ran(data, aggregate=False)[1]
        assert (result.status == plain.status).all()
        assert (result.reason == plain.reason).all()
        assert np.array_equal(result.end_s, plain.end_s, equal_nan=True)


LAW = {"analyzer": "queue_model", "alpha_ms": 8, "beta_ms": 0.2, "gamma_ms": 5, "delta_ms": 0.01, "ttft_ms": 300, "itl_ms": 15}


def test_what_is_not_modelled_is_refused_in_words() -> None:
    for data, words in (
        (split(lost("node", "nobody")), "no pool 'nobody'"),
        (split(lost("gpu", "decode", replica=7)), "no replica 7 in pool 'decode'"),
        (scaled({"kind": "dynamo", "optimization_target": "sla", "load_predictor": "arima"}), "arima is not modelled"),
        (scaled({"kind": "dynamo", "ttft_ms": 5}), "belong to optimization_target: sla"),
        (scaled({"kind": "wva", "max_replicas": 4, **LAW}), "analyzer: queue_model knows servers that compute prompts"),
        (scaled({"kind": "hpa", "target": 5, "max_replicas": 1}), "outside of the autoscaler's bounds"),
    ):
        with pytest.raises(InputError, match=words):
            prepare(load_scenario(data))
