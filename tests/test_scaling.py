"""Pools that an autoscaler makes larger and smaller: idle ones, worked chains, scale to zero, bills, and conservation."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from engine_models.cost.start_up import StartUp
from engine_models.parts.sequence import Sequence
from hardware_profiles.errors import InputError
from simulator.cli.summary import summary
from simulator.cluster.admission import Admission, Backoff, ClientRules
from simulator.cluster.elastic import ElasticCluster
from simulator.cluster.faults import Fault, Faults, Process
from simulator.cluster.fleet import Members
from simulator.cluster.outcome import FINISHED, UNFINISHED, Reason
from simulator.cluster.scaling.flow import Flow
from simulator.cluster.scaling.scaler import Alone, Autoscaler, Counts, Scaling, Seen
from simulator.cluster.scaling.wva import QueueModel, ServiceLaw
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import RunResult, simulate
from simulator.scaled import _mixed_passes
from simulator.validation.schedules import RecordedClock
from tests.clusters import jumps_as_it_steps
from tests.guard.cases import CHATS, TIGHT, args, given, poisson
from tests.invariants.core_cases import CLOCK, Case, cases, plain_workload, plan_of, workload_of

LENGTHS = {"prompt_tokens": {"kind": "constant", "value": 200}, "output_tokens": {"kind": "constant", "value": 100}}
IN_FLIGHT = {"metric": "requests_in_flight"}


def run(scaler: dict[str, Any], load: dict[str, Any], pool: dict[str, Any] | None = None, **more: Any) -> RunResult:
    """By a load of the scenario, or, with `phases`, with so many a second in each of some seconds."""
    deployment = {"router": "least_requests", "autoscaler": {"start_up": 0, **scaler}, **(pool or {})}
    phases, answer = load.pop("phases", None), load.pop("answer", 100)
    if phases is None:
        return simulate(given(deployment, {"requests": None, **LENGTHS, **load}, **more))
    ends_s = np.cumsum([length_s for length_s, _ in phases])
    arrivals = [
        np.arange(end_s - length_s, end_s, 1 / rate) for end_s, (length_s, rate) in zip(ends_s, phases, strict=True) if rate
    ]
    arrival_s = np.concatenate(arrivals)
    columns = plain_workload(arrival_s, np.full(len(arrival_s), 200), np.full(len(arrival_s), answer))
    load = {"arrivals": poisson(1), "duration": float(ends_s[-1]), "requests": None, **LENGTHS}
    return simulate(given(deployment, load, **more), workload=replace(columns, duration_s=float(ends_s[-1]), drain_s=600.0))


IDLE = {
    "hpa": {**IN_FLIGHT, "target": 1e6, "min_replicas": 3, "max_replicas": 8},
    "keda": {"target": 1e6, "min_replicas": 3, "max_replicas": 8},
    "knative": {"target": 1e6, "min_replicas": 3, "max_replicas": 8},
    "dynamo": {"max_gpu_budget": 3, "min_endpoint": 3},
    "wva": {"min_replicas": 3, "max_replicas": 3, "kv_cache_threshold": 0.99},
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) if kind != "keda" else kind for kind in IDLE])
def test_an_autoscaler_that_changes_nothing_changes_no_byte(kind: str) -> None:
    load = {**CHATS, "arrivals": poisson(6)}
    deployment = {"replicas": 3, "router": "least_requests", **args(**TIGHT)}
    plain = simulate(given(deployment, load))
    held = simulate(given({**deployment, "autoscaler": {"kind": kind, **IDLE[kind]}}, load))
    differ = {key for key in {**plain.result, **held.result} if plain.result.get(key) != held.result.get(key)}
    assert differ == {"run_id", "assumptions"}
    assert held.requests_frame().equals(plain.requests_frame())
    assert held.timeline_frame().equals(plain.timeline_frame())


def test_a_rising_load_adds_replicas_after_their_start_and_a_falling_one_removes_them() -> None:
    """One request at a time is 0.7 s; 60/s hold some 45 in flight, a target of 10 asks for 5: after sync and start they serve."""
    load = {"phases": [(120, 60), (580, 1)]}
    scaler = {"kind": "hpa", **IN_FLIGHT, "target": 10, "max_replicas": 8, "start_up": 40}
    found = run(scaler, load)
    fleet, over = found.result["fleet"], found.result["fleet"]["over_time"]
    assert (found.raw.status == FINISHED).all()
    assert fleet["added"] == fleet["removed"] > 2
    first_s = next(at_s for at_s, coming in zip(over["at_s"], over["coming"], strict=True) if coming)
    assert first_s in (15, 30)
    assert min(at_s for at_s, up in zip(over["at_s"], over["up"], strict=True) if up > 1) == pytest.approx(first_s + 40)
    falls_s = [at_s for at_s, before, up in zip(over["at_s"][1:], over["up"], over["up"][1:], strict=False) if up < before]
    assert falls_s[-1] >= 120 + 300, "the window of 300 s holds what was asked for"
    assert over["up"][-1] == 1
    at_s, devices = np.array([*over["at_s"], 700.0]), np.array(over["devices"])
    billed = float((np.diff(at_s) * devices).sum()) / 3600
    assert found.result["cost"]["PricingQuantity"] == pytest.approx(billed)
    assert found.result["cost"]["BilledCost"] == pytest.approx(billed * found.result["cost"]["ListUnitPrice"])
    told = summary(found.result, found.manifest)
    assert ", at first" in told
    assert " on average x $" in told


def test_keda_goes_to_zero_and_requests_wait_at_the_router() -> None:
    """Who finds nobody waits for the next poll and the start; 300 s after the last one none is left."""
    load = {"phases": [(10, 0), (20, 5), (570, 0)]}
    scaler = {"kind": "keda", **IN_FLIGHT, "target": 1000, "max_replicas": 4, "start_up": 30}
    found = run(scaler, load, {"replicas": 0})
    over = found.result["fleet"]["over_time"]
    assert (found.raw.status == FINISHED).all()
    assert over["up"][0] == over["up"][-1] == 0
    waited_s = found.raw.first_scheduled_s - found.raw.arrival_s
    assert waited_s.max() == pytest.approx(60, abs=31), "the poll at 30 s, and 30 s to start"
    gone_s = over["at_s"][-1]
    assert 300 < gone_s < 420
    assert found.result["cost"]["devices"] == pytest.approx((gone_s - 30) / 600)


def test_a_replica_that_is_sent_away_loses_what_outlasts_the_grace() -> None:
    load = {"phases": [(30, 10), (170, 0.1)], "answer": 3000}
    scaler = {"kind": "knative", "target": 30, "max_replicas": 6, "min_replicas": 1, "stable_window_s": 6}
    lost = {grace: run({**scaler, "grace_s": grace}, {**load}).result["totals"]["reasons"] for grace in (0, 300)}
    assert lost[0]["node_lost"] > 0
    assert not lost[300]


def test_wva_asks_for_what_its_queueing_model_says() -> None:
    """14 requests a second of 200 and 100 tokens, of which the law below lets a replica carry 6.4: three."""
    law = ServiceLaw(10, 0.4, 5, 0.01)
    most = QueueModel(law, 1024, 200, 100).most_per_s(200, 14)
    wanted = math.ceil(14 / most)
    assert wanted == 3
    scaler = {"alpha_ms": 10, "beta_ms": 0.4, "gamma_ms": 5, "delta_ms": 0.01, "ttft_ms": 200, "itl_ms": 14}
    found = run({"kind": "wva", "analyzer": "queue_model", "max_replicas": 8, **scaler}, {"phases": [(120, 14)]})
    assert found.result["fleet"]["over_time"]["up"][-1] == wanted


SLA = {"kind": "dynamo", "optimization_target": "sla", "max_gpu_budget": 12, "throughput_adjustment_interval_s": 30}


def test_dynamo_by_an_sla_sizes_one_pool() -> None:
    """150 requests a second, of which a replica serves within the SLA what the engine's own passes say; or by load alone."""
    alone = prepare(load_scenario(given({}, {"requests": 5, **LENGTHS})))
    passes = _mixed_passes(alone)

    def most(**sla: Any) -> int:
        found = run({**SLA, **sla}, {"phases": [(30, 5), (90, 150)]})
        return max(found.result["fleet"]["over_time"]["up"])

    for itl_ms, wanted in ((9.0, 3), (7.5, 4)):
        assert math.ceil(150 / passes.per_s(200, 100, 500, itl_ms)) == wanted
        assert most(ttft_ms=500, itl_ms=itl_ms) == wanted
    assert most(enable_throughput_scaling=False, enable_load_scaling=True, ttft_ms=100, itl_ms=7.5) > 1


def test_dynamo_by_an_sla_sizes_pools_of_roles_each_by_itself() -> None:
    pools = [
        {"name": role, "role": role, "engine": "vllm", "hardware": "h100-sxm-80gb", "autoscaler": {**SLA, "start_up": 0, **sla}}
        for role, sla in (("prefill", {"ttft_ms": 20}), ("decode", {"itl_ms": 6}))
    ]
    work = {"arrivals": {"kind": "constant", "rate": 80}, **LENGTHS, "duration": 40}
    data = {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": {"pools": pools}, "workload": work}
    found = simulate(data).result["fleet"]["pools"]
    assert [pool["name"] for pool in found] == ["prefill", "decode"]
    assert max(found[1]["over_time"]["up"]) > 1


@pytest.mark.parametrize("roles", [("mixed",), ("prefill", "decode")])
def test_dynamo_by_an_sla_counts_what_a_pass_with_drafts_yields(roles: tuple[str, ...]) -> None:
    """The more is accepted, the fewer replicas carry as many requests within the same ITL; drafts in vain take more than none."""

    def most(rate: float | None) -> int:
        drafts = {"method": "eagle3", "num_speculative_tokens": 2, "acceptance": rate}
        own: dict[str, Any] = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
        own |= {} if rate is None else {"speculative": drafts}
        pools = [{**own, "name": role, "role": role} for role in roles]
        scaler = {**SLA, "ttft_ms": 500, "itl_ms": 8.0, "start_up": 0}
        work = {"arrivals": {"kind": "constant", "rate": 150}, **LENGTHS, "duration": 40}
        around = {"pools": pools, "autoscaler": scaler}
        data = {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": around, "workload": work}
        if rate == 0.8:
            said = " ".join(prepare(load_scenario(data)).assumptions)
            assert "divides the time of a pass by the 2.44 tokens" in said
            jumps_as_it_steps(data)
        fleet = simulate(data).result["fleet"]
        return max((fleet["pools"][-1] if len(roles) > 1 else fleet)["over_time"]["up"])

    assert most(0.8) < most(0.3) < most(0.05)
    assert most(None) < most(0.05)


QUEUEING = {"alpha_ms": 10, "beta_ms": 0.4, "gamma_ms": 5, "delta_ms": 0.01, "ttft_ms": 200, "itl_ms": 14}


@pytest.mark.parametrize("analyzer", ["tokens", "queue_model"])
def test_wva_around_pools_of_unlike_servers(analyzer: str) -> None:
    """By tokens the pool grows that costs less for what it holds; by its queueing model each for what comes to it."""
    law = QUEUEING if analyzer == "queue_model" else {"queue_length_threshold": 2}
    small = {"num_gpu_blocks_override": 1500, "max_model_len": 4096, "max_num_seqs": 128}
    pools = [
        {"name": name, "engine": "vllm", "hardware": hardware, "engine_args": small}
        for name, hardware in (("dear", "h100-sxm-80gb"), ("cheap", "a100-sxm-80gb"))
    ]
    scaler = {"kind": "wva", "analyzer": analyzer, "max_replicas": 6, "start_up": 0, **law}
    around = {"pools": pools, "autoscaler": scaler, "router": "least_requests"}
    work = {"arrivals": {"kind": "constant", "rate": 20}, "prompt_tokens": 600, "output_tokens": 300, "duration": 120}
    data = {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": around, "workload": work}
    one, other = (simulate(data, aggregate=aggregate) for aggregate in (True, False))
    assert one.requests_frame().equals(other.requests_frame())
    assert one.result == other.result
    dear, cheap = (max(pool["over_time"]["up"]) for pool in one.result["fleet"]["pools"])
    assert cheap > 1
    assert (dear > 1) == (analyzer == "queue_model")


def test_start_up_has_parts_and_devices_are_billed_once_provisioned() -> None:
    load = {"arrivals": poisson(60), "duration": 200}
    parts = {"provisioning_s": 50, "image_s": 10, "weights_s": 5, "compile_s": 0, "graph_capture_s": 3, "warm_up_s": 2}
    scaler = {"kind": "hpa", **IN_FLIGHT, "target": 10, "max_replicas": 2, "start_up": parts}
    over = run(scaler, load).result["fleet"]["over_time"]
    assert over["devices"] == [1, 1, 2, 2]
    assert np.diff(over["at_s"][1:]) == pytest.approx([50, 20])
    assert over["up"] == [1, 1, 1, 2]


def test_a_lost_node_is_replaced_for_the_autoscaler() -> None:
    load = {"arrivals": poisson(10), "duration": 100}
    scaler = {"kind": "hpa", **IN_FLIGHT, "target": 100, "min_replicas": 2, "max_replicas": 4, "start_up": 10}
    failures = {"events": [{"at_s": 40, "replica": 1, "kind": "gpu"}]}
    found = run(scaler, load, {"replicas": 2, "failures": failures}).result["fleet"]
    assert found["over_time"]["at_s"] == [0, 40, 50]
    assert found["over_time"]["up"] == [2, 1, 2]


def test_requests_in_flight_are_averaged_over_time_whatever_the_order_of_their_ends() -> None:
    flow, (seq, other) = Flow(), (Sequence(index, 5, 4, 0.0) for index in range(2))
    flow.enter(seq, 0.2)
    flow.enter(other, 0.5)
    flow.leave(seq, 0.9)
    found = flow.seen(1.0, (), 0)
    assert found.concurrency == pytest.approx(0.7 + 0.5)
    assert found.arrivals == 2
    flow.leave(other, 1.5)
    flow.leave(other, 1.6)  # it has gone
    assert flow.seen(2.0, (), 0).concurrency == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("scaler", "pool", "said"),
    [
        ({"kind": "hpa", "target": 5, "min_replicas": 4, "max_replicas": 2}, {}, "min_replicas (4) is above max_replicas (2)"),
        ({"kind": "hpa", "target": 5}, {}, "needs max_replicas"),
        ({"kind": "hpa", "max_replicas": 4}, {}, "target"),
        ({"kind": "hpa", "target": -1, "max_replicas": 4}, {}, "greater than 0"),
        ({"kind": "hpa", "target": 5, "max_replicas": 4, "min_replicas": 0}, {}, "does not scale to zero"),
        ({"kind": "hpa", "target": 5, "max_replicas": 4}, {"replicas": 6}, "outside of the autoscaler's bounds"),
        ({"kind": "hpa", "target": 5, "max_replicas": 4}, {"replicas": 0}, "outside of the autoscaler's bounds"),
        ({"kind": "hpa", "target": 5, "max_replicas": 4, "start_up": -3}, {}, "at least 0"),
        ({"kind": "hpa", "target": 5, "max_replicas": 4, "metric": "gpu"}, {}, "num_requests_waiting"),
        ({"kind": "vpa", "target": 5}, {}, "hpa"),
        ({"kind": "keda", "target": 5, "metric": "kv_cache_usage_perc"}, {}, "nothing would wake the pool"),
        ({"kind": "keda", "target": 5, "min_replicas": 200}, {}, "at most 100 may be there"),
        ({"kind": "keda", "target": 5, "min_replicas": 1, "idle_replicas": 1}, {}, "must be below min_replicas"),
        ({"kind": "knative", "max_replicas": 4, "panic_threshold_percentage": 50}, {}, "at least 110"),
        ({"kind": "wva", "max_replicas": 4, "analyzer": "queue_model", "alpha_ms": 5}, {}, "needs alpha_ms, beta_ms"),
        ({"kind": "wva", "max_replicas": 4, "alpha_ms": 5}, {}, "belong to analyzer: queue_model"),
        ({"kind": "dynamo", "min_gpu_budget": 9}, {}, "is above max_gpu_budget"),
        ({"kind": "dynamo"}, {"tensor_parallel": 8, "pipeline_parallel": 2}, "at most 0 may be there"),
        ({"kind": "dynamo"}, {"tensor_parallel": 8, "replicas": 2}, "outside of the autoscaler's bounds"),
    ],
)
def test_autoscalers_that_cannot_be_are_refused(scaler: dict[str, Any], pool: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        simulate(given({"autoscaler": scaler, **pool}, {"requests": 5}))
    assert said in str(error.value)


def test_an_autoscaler_stands_in_the_pool_or_around_it() -> None:
    hpa = {"kind": "hpa", "target": 5, "max_replicas": 4}
    scenario = given({"autoscaler": hpa}, {"requests": 5})
    pool = {"name": "one", **{key: scenario["deployment"][key] for key in ("engine", "hardware")}, "autoscaler": hpa}
    assert simulate({**scenario, "deployment": {"pools": [pool]}}).raw.status[0] == FINISHED
    with pytest.raises(InputError, match="keep one of the two"):
        simulate({**scenario, "deployment": {"pools": [pool], "autoscaler": hpa}})


class Erratic(Autoscaler):
    """Asks for any number of replicas, at random."""

    def __init__(self, seed: int, most: int) -> None:
        self._draw, self._most = np.random.default_rng(seed), most
        self.every_s, self.collect_s = 0.07, 0.05

    def desired(self, seen: Seen, counts: Counts, now_s: float) -> int:
        assert all(reading.kv_share <= 1 for reading in seen.readings)
        return int(self._draw.integers(0, self._most + 1))


@settings(max_examples=25, derandomize=True)
@drawn(
    cases(),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.sampled_from([None, 4.0]),
    st.sampled_from(["round_robin", "least_requests", "session"]),
    st.booleans(),
    st.sampled_from([None, Admission(max_inflight=2, on_full="wait")]),
    st.sampled_from([None, 0.3]),
)
def test_requests_are_conserved_whatever_is_asked_for(
    case: Case,
    start_s: int,
    grace_s: float,
    rate: float | None,
    router: str,
    tries: bool,
    limits: Admission | None,
    timeout_s: float | None,
) -> None:
    """Under scaling, faults and tries each request ends in one way, no memory is left behind, and jumps change nothing."""
    client = ClientRules(Backoff(4, 0.05, 2.0) if tries else None, frozenset({Reason.NODE_LOST, Reason.SHED_503}), timeout_s)
    runs = []
    for aggregate in (True, False):
        processes = () if rate is None else (Process(Fault("gpu", 0, away_s=0.1), rate, case.seed),)
        cluster = ElasticCluster(
            replace(workload_of(case), duration_s=8.0, drain_s=30.0),
            plan_of(case),
            RecordedClock(CLOCK),
            replicas=3,
            pools=[Members("pool", case.replicas, 3, 1, StartUp(0.0, 0.0, 0.03 * start_s, 0.0, 0.0, 0.0), 0.02, grace_s)],
            faults=Faults((), processes, (0, 1, 2)),
            scalers=[Scaling((0,), Alone(Erratic(case.seed, 3)))],
            holds=True,
            router=router,
            admission=limits,
            client=client,
            after_s=0.001,
            aggregate=aggregate,
        )
        runs.append(cluster.run())
        if not (runs[-1].status == UNFINISHED).any():
            assert [rank.scheduler.state()[:3] for rank in cluster.ranks] == [(0, 0, 0)] * 3
    result = runs[0]
    assert sum(Counter(result.status.tolist()).values()) == case.requests
    for row in np.flatnonzero(result.status == FINISHED).tolist():
        assert sum(last - first + 1 for _, first, last in result.emissions.of(row)) == result.output_tokens[row]
    for name in ("status", "reason", "replica", "attempts", "engine_arrival_s", "first_token_s", "end_s"):
        np.testing.assert_array_equal(getattr(runs[1], name), getattr(result, name), err_msg=name)
