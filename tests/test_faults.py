"""Replicas that are lost, slowed, taken back and restarted: what is lost, sent again and computed again, and what is billed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from engine_models.cost.start_up import StartUp
from hardware_profiles.errors import InputError
from simulator.cluster.admission import Admission, Backoff, ClientRules
from simulator.cluster.elastic import ElasticCluster
from simulator.cluster.faults import Event, Fault, Faults, Process
from simulator.cluster.fleet import Members
from simulator.cluster.outcome import FAILED, FINISHED, UNFINISHED, Reason
from simulator.prepare import prepare
from simulator.run import RunResult, simulate
from simulator.validation.schedules import RecordedClock
from tests.guard.cases import CHATS, RANKS, TIGHT, args, given, poisson
from tests.invariants.core_cases import CLOCK, Case, cases, plan_of, workload_of

LENGTHS = {"prompt_tokens": {"kind": "constant", "value": 200}, "output_tokens": {"kind": "constant", "value": 100}}
LOAD = {"arrivals": poisson(20), "duration": 40, "requests": None, **LENGTHS}
RETRIES = {"retries": {"attempts": 5, "backoff_s": 0.1}}


def run(events: list[dict[str, Any]], load: dict[str, Any] = LOAD, *, replicas: int = 2, **more: Any) -> RunResult:
    """vLLM behind a router that looks at requests in flight, starting in no time."""
    failures = {"events": events, "start_up": 0, **more.pop("failures", {})}
    pool = {"replicas": replicas, "router": "least_requests", "failures": failures, **more.pop("pool", {})}
    return simulate(given(pool, load, **more))


IDLE = [
    ({"replicas": 1}, {}),
    ({"replicas": 3}, {"arrivals": poisson(60)}),
    ({"replicas": 3, "router": "least_requests", **args(**TIGHT)}, CHATS),
    pytest.param({"replicas": 2, "engine": "sglang", "router": {"system": "dynamo"}}, CHATS, marks=pytest.mark.slow),
    pytest.param({"replicas": 2, **RANKS}, {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("deployment", "load"), IDLE)
def test_failures_that_never_come_change_nothing(deployment: dict[str, Any], load: dict[str, Any]) -> None:
    """To the byte: result, requests, timeline."""
    if "system" in str(deployment):
        deployment = {**deployment, "router": {"system": "dynamo", "use_kv_events": False}}
    model = {"model": "mistralai/Mixtral-8x7B-v0.1"} if "data_parallel" in deployment else {}
    failures = {"mtbf_h": 1e12, "of": "device", "events": [{"at_s": 1e6, "replica": 0, "kind": "node"}]}
    plain = simulate(given(deployment, load, **model))
    held = simulate(given({**deployment, "failures": failures}, load, **model))
    differ = {key for key in {**plain.result, **held.result} if plain.result.get(key) != held.result.get(key)}
    assert differ == {"run_id", "assumptions"}
    assert held.result["assumptions"][: len(plain.result["assumptions"]) - 1] == plain.result["assumptions"][:-1]
    assert held.requests_frame().equals(plain.requests_frame())
    assert held.timeline_frame().equals(plain.timeline_frame())


def test_a_lost_gpu_takes_its_replica_and_what_it_has() -> None:
    """Nobody tries again: what was under way fails, and until the device is back the other replica serves all."""
    found = run([{"at_s": 10, "replica": 1, "kind": "gpu", "for_s": 15}])
    raw, fleet = found.raw, found.result["fleet"]
    lost = raw.status == FAILED
    assert 0 < lost.sum() < 20
    assert set(raw.reason[lost].tolist()) == {Reason.NODE_LOST}
    assert set(raw.replica[lost].tolist()) == {1}
    assert (raw.arrival_s[lost] < 10).all()
    assert found.result["totals"]["reasons"] == {"node_lost": int(lost.sum())}
    away = (raw.arrival_s > 10) & (raw.arrival_s < 25)
    assert set(raw.replica[away].tolist()) == {0}
    assert (raw.replica[raw.arrival_s > 26] == 1).any()
    assert (fleet["attempts_lost"], fleet["attempts_sent_again"]) == (lost.sum(), 0)
    assert fleet["over_time"]["at_s"] == [0, 10, 25]
    assert fleet["over_time"]["up"] == [2, 1, 2]


def test_what_was_lost_is_sent_again_and_computed_again() -> None:
    found = run([{"at_s": 10, "replica": 0, "kind": "node", "for_s": 1}], client=RETRIES)
    raw, fleet = found.raw, found.result["fleet"]
    assert raw.attempts is not None
    assert (raw.status == FINISHED).all()
    assert fleet["attempts_lost"] == fleet["attempts_sent_again"] > 5
    again = raw.attempts > 1
    assert again.sum() > fleet["attempts_lost"], "while nobody served, others got 503"
    assert (raw.first_token_s[again] > 10).all(), "the answer begins anew"
    assert (raw.engine_arrival_s[again] > 10.1).all(), "after the client's back-off"
    assert (raw.output_tokens[again] == 100).all()
    assert fleet["over_time"]["up"] == [2, 0, 2], "both stood on the node of the replica that is named"


def test_tokens_in_flight_at_a_loss_are_not_got() -> None:
    """A lost request keeps the tokens whose steps had ended: none is later than the loss."""
    found = run([{"at_s": 10, "replica": 0, "kind": "gpu", "for_s": 0}], replicas=1)
    raw = found.raw
    for row in np.flatnonzero(raw.status == FAILED).tolist():
        for log, _, last in raw.emissions.of(row):
            assert raw.logs[log].end_s[last] <= 10
    ends = np.array(raw.logs[0].end_s)
    assert (np.diff(ends) > 0).all()
    done = raw.status == FINISHED
    assert (raw.end_s[done] > raw.first_token_s[done]).all(), "steps are counted on from the first life"


def test_devices_are_billed_while_they_are_there() -> None:
    """Two replicas of one device, one of which is away for 10 of 40 s and starts for 4 s: 70 device-seconds."""
    found = run([{"at_s": 10, "replica": 1, "kind": "gpu", "for_s": 10}], failures={"start_up": 4})
    assert found.result["cost"]["PricingQuantity"] * 3600 == pytest.approx(70)
    assert found.result["fleet"]["device_hours"] * 3600 == pytest.approx(70)
    assert found.result["fleet"]["serving_mean"] == pytest.approx(66 / 40)
    assert found.result["cost"]["devices"] == pytest.approx(1.75)


def test_a_straggler_takes_its_factor() -> None:
    """One request at a time: twice the device's time a step while it is slow, as before afterwards."""
    lengths = {**LENGTHS, "output_tokens": {"kind": "constant", "value": 50}}
    load = {"arrivals": {"kind": "constant", "rate": 0.5}, "requests": None, "duration": 30, **lengths}
    found = run([{"at_s": 9.5, "replica": 0, "kind": "slow", "factor": 2, "for_s": 10}], load, replicas=1).raw
    took = found.end_s - found.arrival_s
    slow = (found.arrival_s > 9.5) & (found.arrival_s < 19)
    assert np.ptp(took[~slow]) < 2e-3
    assert took[slow].mean() == pytest.approx(2 * took[~slow].mean(), rel=0.1)


def test_a_reclaim_lets_end_what_its_notice_allows() -> None:
    event = {"at_s": 10, "replica": 1, "kind": "reclaim", "for_s": 5}
    pool = {"gpus_per_node": 1}
    long, none = (run([{**event, "notice_s": notice}], pool=pool) for notice in (8, 0))
    assert not (long.raw.status == FAILED).any()
    assert (none.raw.status == FAILED).any()
    assert long.result["fleet"]["over_time"]["at_s"] == [0, 10, 18, 23]
    assert long.result["fleet"]["over_time"]["draining"] == [0, 1, 0, 0]
    assert long.result["fleet"]["device_hours"] * 3600 == pytest.approx(75), "billed until it is taken"


def test_a_rolling_drain_loses_nothing_and_takes_one_at_a_time() -> None:
    load = {**LOAD, "duration": 60}
    found = run([{"at_s": 10, "kind": "drain", "notice_s": 60}], load, replicas=3, failures={"start_up": 3})
    assert (found.raw.status == FINISHED).all()
    up, draining = (found.result["fleet"]["over_time"][name] for name in ("up", "draining"))
    assert (min(up), up[-1]) == (2, 3)
    assert sum(later > before for before, later in pairwise(draining)) == 3
    hard = run([{"at_s": 10, "kind": "drain", "notice_s": 0}], load, replicas=3, failures={"start_up": 3})
    assert (hard.raw.status == FAILED).any()


def test_a_node_takes_all_its_replicas_and_no_other() -> None:
    pool = {"gpus_per_node": 2, "tensor_parallel": 1}
    found = run([{"at_s": 10, "replica": 2, "kind": "node"}], replicas=4, pool=pool)
    assert set(found.raw.replica[found.raw.status == FAILED].tolist()) <= {2, 3}
    assert set(found.raw.replica[found.raw.arrival_s > 10].tolist()) == {0, 1}
    assert found.result["fleet"]["over_time"]["up"] == [4, 2]


def test_a_lost_node_that_nobody_notices_is_sent_requests() -> None:
    """For 3 s half of the requests go where nobody answers; then all of them are lost, and sent again at once."""
    event = {"at_s": 10, "replica": 1, "kind": "node", "for_s": 10}
    pool = {"gpus_per_node": 1, "router": "round_robin"}
    failures = {"events": [event], "detected_after_s": 3, "start_up": 0}
    unseen = given({"replicas": 2, "failures": failures, **pool}, LOAD, client=RETRIES)
    found, step = (simulate(unseen, aggregate=jump) for jump in (True, False))
    raw = found.raw
    assert raw.attempts is not None
    assert (raw.status == FINISHED).all()
    unnoticed = (raw.arrival_s > 10) & (raw.arrival_s < 13)
    assert (raw.attempts[unnoticed] > 1).mean() == pytest.approx(0.5, abs=0.02)
    assert (raw.first_token_s[raw.attempts > 1] > 13).all()
    assert (raw.attempts[raw.arrival_s > 13.1] == 1).all()
    assert step.result == found.result
    gpu = run([{**event, "kind": "gpu"}], failures={"detected_after_s": 3}, client=RETRIES).result["fleet"]
    assert gpu["attempts_lost"] < found.result["fleet"]["attempts_lost"] - 20, "a dead process refuses connections"
    waits = {"timeout_s": 1.0, "retries": {"attempts": 9, "on": ["timeout"]}}
    given_up = simulate(given({"replicas": 2, "failures": failures, **pool}, LOAD, client=waits)).raw
    assert given_up.attempts is not None
    assert set(given_up.status.tolist()) <= {FINISHED, FAILED}
    assert (given_up.attempts > 1).sum() > 20


def test_requests_for_a_fleet_that_is_gone_are_answered_503() -> None:
    found = run([{"at_s": 10, "replica": 0, "kind": "gpu", "for_s": 10}], replicas=1)
    reasons = found.result["totals"]["reasons"]
    assert reasons["shed_503"] == pytest.approx(200, rel=0.3)
    assert reasons["node_lost"] < 30


def test_failures_at_random_come_as_often_as_they_say() -> None:
    """Ten replicas for 400 s, each lost every 100 s on average and back at once: 40 losses, give or take 3 times the root."""
    load = {"arrivals": poisson(2), "duration": 400, "requests": None, **LENGTHS}
    failures = {"events": (), "mtbf_h": 100 / 3600, "of": "replica", "repair_s": 0, "start_up": 0}
    found = run([], load, replicas=10, failures=failures).result["fleet"]
    assert abs(found["faults"]["gpu"] - 40) < 3 * 40**0.5
    other = run([], load, replicas=10, failures=failures).result["fleet"]
    assert other == found, "the same seed, the same failures"


def test_a_router_forgets_what_a_lost_replica_kept() -> None:
    """Behind routers that follow texts and caches, lost replicas come back empty, and jumps change nothing."""
    load = {"arrivals": poisson(30), "requests": 300, "shared_prefix": {"groups": 8, "tokens": 1000}}
    event = {"at_s": 4, "replica": 0, "kind": "gpu", "for_s": 1}
    for router in ({"system": "dynamo"}, {"system": "sglang-router", "policy": "cache_aware"}):
        pool = {"replicas": 2, "router": router, "failures": {"events": [event], "start_up": 0}}
        found, step = (simulate(given(pool, load, client=RETRIES), aggregate=jump) for jump in (True, False))
        assert (found.raw.status == FINISHED).all()
        back = set(found.raw.replica[found.raw.arrival_s > 5.5].tolist())
        assert back == ({0, 1} if router["system"] == "dynamo" else {1}), "while loads are even, texts stay where they are known"
        assert step.result == found.result


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({}, "nothing that goes wrong"),
        ({"events": [{"at_s": -1, "replica": 0, "kind": "gpu"}]}, "at least 0"),
        ({"events": [{"at_s": 1, "replica": 2, "kind": "gpu"}]}, "no replica 2"),
        ({"events": [{"at_s": 1, "kind": "gpu"}]}, "needs a replica"),
        ({"events": [{"at_s": 1, "replica": 0, "kind": "flood"}]}, "node"),
        ({"events": [{"at_s": 1, "replica": 0, "kind": "slow"}]}, "factor"),
        ({"events": [{"at_s": 1, "replica": 0, "kind": "slow", "factor": 0.5}]}, "factor"),
        ({"events": [{"at_s": 1, "kind": "link", "from": "a", "to": "b"}]}, "prefill and decode"),
        ({"events": [{"at_s": 1, "replica": 0, "kind": "gpu", "pool": "other"}]}, "no pool 'other'"),
        ({"events": [{"at_s": 1, "replica": 0, "kind": "gpu", "notice_s": 5}]}, "notice_s"),
        ({"mtbf_h": 5}, "`of`"),
        ({"mtbf_h": 0, "of": "node"}, "greater than 0"),
        ({"repair_s": 5, "reclaims_per_hour": 1, "of": "node"}, "mtbf_h"),
        ({"mtbf_h": 5, "of": "device", "replaced_after_s": -5}, "at least 0"),
    ],
)
def test_failures_that_cannot_be_are_refused(failures: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        simulate(given({"replicas": 2, "failures": failures}, {"requests": 5}))
    assert said in str(error.value)


def paired(events: list[dict[str, Any]], engine: str = "vllm", *, aggregate: bool = True, **more: Any) -> RunResult:
    pool = {"engine": engine, "hardware": "h100-sxm-80gb"}
    pools = [{**pool, "name": name, "role": role} for name, role in (("one", "prefill"), ("two", "decode"))]
    scenario = given({}, {"arrivals": poisson(8), "duration": 25, "requests": None, **LENGTHS})
    failures = {"failures": {"events": events, **more}} if events or more else {}
    return simulate({**scenario, "deployment": {"pools": pools, **failures}}, aggregate=aggregate)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_transfers_over_a_link_that_is_down_stand_still(engine: str) -> None:
    event = {"kind": "link", "from": "one", "to": "two"}
    plain = paired([], engine)
    never = paired([{**event, "at_s": 1e6, "for_s": 5}], engine)
    assert never.requests_frame().equals(plain.requests_frame())
    found = paired([{**event, "at_s": 10, "for_s": 5}], engine).raw
    assert (found.status == FINISHED).all()
    assert found.handed is not None
    ends = found.handed.transfer_end_s
    assert not ((ends > 10.1) & (ends < 15)).any()
    held = (found.handed.transfer_start_s < 15) & (ends >= 15)
    assert held.sum() > 10
    assert plain.raw.handed is not None
    assert (ends - plain.raw.handed.transfer_end_s)[held].min() > 0
    before = plain.raw.handed.transfer_end_s < 9.9
    np.testing.assert_array_equal(ends[before], plain.raw.handed.transfer_end_s[before])


def test_a_slow_decode_server_decodes_slowly() -> None:
    event = {"kind": "slow", "pool": "two", "replica": 0, "factor": 3, "at_s": 10, "for_s": 8}
    plain, found, step = paired([]), paired([event]), paired([event], aggregate=False)
    assert step.result == found.result
    inside = (found.raw.arrival_s > 10.5) & (found.raw.arrival_s < 14)
    tpot = [np.asarray(run.requests_frame()["tpot_ms"])[inside].mean() for run in (plain, found)]
    assert tpot[1] > 2 * tpot[0]
    first = np.asarray(found.requests_frame()["tpot_ms"])[found.raw.arrival_s < 8].mean()
    assert first == pytest.approx(np.asarray(plain.requests_frame()["tpot_ms"])[plain.raw.arrival_s < 8].mean(), rel=0.01)


@pytest.mark.parametrize(
    ("events", "more", "said"),
    [
        ([{"at_s": 1, "replica": 0, "kind": "gpu"}], {}, "which pool"),
        ([{"at_s": 1, "kind": "link", "from": "two", "to": "one"}], {}, "nothing goes from pool 'two'"),
        ([{"at_s": 1, "kind": "link", "from": "three"}], {}, "no pool 'three'"),
        ([{"at_s": 1, "replica": 0, "kind": "slow", "factor": 2}], {}, "which pool"),
        ([{"at_s": 1, "replica": 4, "pool": "two", "kind": "slow", "factor": 2}], {}, "no replica 4 in pool 'two'"),
    ],
)
def test_failures_of_prefill_and_decode_pools_that_cannot_be_are_refused(
    events: list[dict[str, Any]], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as error:
        paired(events, **more)
    assert said in str(error.value)


def test_start_up_is_said_by_its_parts() -> None:
    failures = {"mtbf_h": 1000, "of": "node", "start_up": {"weights_from": "cache", "compile_s": 50}}
    from simulator.config.load import load_scenario

    prepared = prepare(load_scenario(given({"failures": failures}, {})))
    assert prepared.elastic is not None
    parts = prepared.elastic.pools[0].start.parts()
    assert parts["compile_s"] == 50
    assert parts["weights_s"] == pytest.approx(16.06e9 / 1.285e10, rel=0.01)
    assert any("graph capture 21" in said for said in prepared.assumptions)


FAULTS = st.lists(
    st.tuples(
        st.floats(0.0, 2.0),
        st.builds(
            Fault,
            st.sampled_from(["node", "gpu", "reclaim", "drain", "slow"]),
            st.integers(0, 2),
            st.booleans(),
            st.sampled_from([None, 0.0, 0.05, 0.5]),
            slow_s=st.sampled_from([0.1, 1.0]),
            factor=st.just(3.0),
            notice_s=st.sampled_from([0.0, 0.05, 0.4]),
        )
        | st.builds(Fault, st.just("drain"), st.none(), away_s=st.sampled_from([None, 0.0, 0.2]), notice_s=st.just(0.1)),
    ),
    max_size=6,
)


@settings(max_examples=25, derandomize=True)
@drawn(
    cases(),
    FAULTS,
    st.sampled_from([None, 3.0]),
    st.sampled_from(["round_robin", "random", "least_requests", "session"]),
    st.booleans(),
    st.sampled_from([None, Admission(max_inflight=2, on_full="wait"), Admission(max_inflight=1, on_full="429")]),
    st.sampled_from([None, 0.3]),
    st.sampled_from([0.0, 0.2, 5.0]),
)
def test_requests_are_conserved_whatever_goes_wrong(
    case: Case,
    faults: list[tuple[float, Fault]],
    rate: float | None,
    router: str,
    tries: bool,
    limits: Admission | None,
    timeout_s: float | None,
    noticed_s: float,
) -> None:
    """Each request ends in one way, no replica keeps memory of one that has ended, and jumps change nothing."""
    nodes = tuple(number // 2 for number in range(case.replicas))
    faults = [(at_s, fault) for at_s, fault in faults if fault.replica is None or fault.replica < case.replicas]
    client = ClientRules(
        Backoff(4, 0.05, 2.0) if tries else None,
        frozenset({Reason.NODE_LOST, Reason.SHED_503, Reason.SHED_429}),
        timeout_s,
    )
    runs = []
    for aggregate in (True, False):
        processes = () if rate is None else (Process(Fault("gpu", 0, away_s=0.1), rate, case.seed),)
        cluster = ElasticCluster(
            replace(workload_of(case), duration_s=20.0, drain_s=30.0),
            plan_of(case),
            RecordedClock(CLOCK),
            replicas=case.replicas,
            pools=[Members("pool", case.replicas, case.replicas, 1, StartUp(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.02)],
            faults=Faults(tuple(Event(*fault) for fault in faults), processes, nodes, noticed_s),
            router=router,
            admission=limits,
            client=client,
            before_s=0.002,
            after_s=0.001,
            aggregate=aggregate,
        )
        runs.append(cluster.run())
        if not (runs[-1].status == UNFINISHED).any():
            assert [rank.scheduler.state()[:3] for rank in cluster.ranks] == [(0, 0, 0)] * case.replicas
            assert [rank.in_service for rank in cluster.ranks] == [0] * case.replicas
        for log in runs[-1].logs:
            assert (np.diff(np.array(log.end_s)) > 0).all()
    result = runs[0]
    assert sum(Counter(result.status.tolist()).values()) == case.requests
    done = result.status == FINISHED
    assert (result.end_s[done] >= result.first_token_s[done]).all()
    assert set(result.reason[result.status == FAILED].tolist()) <= {Reason.NODE_LOST, Reason.TIMED_OUT}
    for row in np.flatnonzero(done).tolist():
        got = sum(last - first + 1 for _, first, last in result.emissions.of(row))
        assert got == result.output_tokens[row]
    for name in ("status", "reason", "replica", "attempts", "engine_arrival_s", "first_token_s", "end_s"):
        np.testing.assert_array_equal(getattr(runs[1], name), getattr(result, name), err_msg=name)
    assert [run.emissions.of(row) for run in runs[:1] for row in range(case.requests)] == [
        runs[1].emissions.of(row) for row in range(case.requests)
    ]
