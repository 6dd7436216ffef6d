"""The router's limits and clients that try again: queueing theory, conservation, and what is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import factorial
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from engine_models.declaration import FrontEnd
from hardware_profiles.errors import InputError
from simulator.cluster.admission import Admission, Backoff, ClientRules, Door
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import FAILED, FINISHED, REJECTED, UNFINISHED, ClusterResult, Reason
from simulator.run import simulate
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.guard.cases import CHATS, TIGHT, args, given, poisson
from tests.invariants.core_cases import CLOCK, Case, cases, plain_workload, plan, plan_of, workload_of

FIXED = {"a": 0.01, "b": 0.0, "c": 0.0, "d": 0.0}
"""A step takes 10 ms whatever it computes: an answer of n tokens on one row takes 10 n ms."""


def erlang_c(servers: int, offered: float) -> float:
    """Probability that a request waits in M/M/c; `offered` is the load in servers."""
    last = offered**servers / factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / factorial(k) for k in range(servers)) + last)


@pytest.mark.slow
@pytest.mark.parametrize(("servers", "load"), [(3, 0.7), (8, 0.85), (1, 0.5)])
def test_a_queue_at_the_router_is_m_m_c(servers: int, load: float) -> None:
    """One request at each of c replicas, the others wait at the router: Erlang C, mean wait C / (c mu - lambda)."""
    n, mean_s = 4_000 * servers, 1.0
    rng = np.random.default_rng(11)
    output = np.clip(rng.exponential(mean_s / FIXED["a"], n).round(), 1, 4000).astype(np.int64)
    rate = load * servers / mean_s
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    result = Cluster(
        plain_workload(arrival, np.full(n, 8), output),
        plan(1000),
        RecordedClock(FIXED),
        replicas=servers,
        router="least_requests",
        admission=Admission(max_inflight=1, on_full="wait"),
    ).run()
    assert (result.status == FINISHED).all()
    waits = result.first_scheduled_s - arrival
    means = waits[: n // 40 * 40].reshape(40, -1).mean(axis=1)
    half = 3.56 * means.std(ddof=1) / 40**0.5  # 99.9 % of Student's t with 39 degrees of freedom
    expected = erlang_c(servers, load * servers) / (servers / mean_s - rate)
    assert abs(means.mean() - expected) < half < 0.6 * expected
    assert abs((waits > 1e-3).mean() - erlang_c(servers, load * servers)) < 0.05


def test_an_idle_limit_changes_nothing() -> None:
    admission = {"max_inflight": 10_000, "max_queue": 5, "on_full": "wait", "queue_timeout_s": 60}
    admission |= {"rate_per_s": 1e6, "burst": 1000}
    client = {"retries": {"attempts": 5, "on": [429, 503, "timeout"]}}
    deployment = {"replicas": 3, "router": "least_requests", **args(**TIGHT)}
    plain = simulate(given(deployment, CHATS))
    held = simulate(given({**deployment, "admission": admission}, CHATS, client=client))
    drop = ("run_id",)
    assert {k: v for k, v in held.result.items() if k not in drop} == {k: v for k, v in plain.result.items() if k not in drop}
    assert held.requests_frame().equals(plain.requests_frame())


def limited(admission: dict[str, Any], load: dict[str, Any], **more: Any) -> ClusterResult:
    return simulate(given({"replicas": 2, "router": "least_requests", "admission": admission}, load, **more)).raw


BURST = {"arrivals": {"kind": "batch"}, "requests": 40}


@pytest.mark.parametrize("answer", ["429", "503"])
def test_what_is_above_the_limit_is_turned_away(answer: str) -> None:
    raw = limited({"max_inflight": 4, "on_full": answer}, BURST)
    assert Counter(raw.status.tolist()) == {FINISHED: 8, REJECTED: 32}
    assert set(raw.reason[raw.status == REJECTED].tolist()) == {Reason[f"SHED_{answer}"]}


def test_a_full_queue_turns_away_and_a_long_wait_ends() -> None:
    raw = limited({"max_inflight": 4, "on_full": "wait", "max_queue": 10}, BURST)
    assert Counter(raw.status.tolist()) == {FINISHED: 18, REJECTED: 22}
    raw = limited({"max_inflight": 4, "on_full": "wait", "queue_timeout_s": 0.05}, BURST)
    assert Counter(raw.status.tolist()) == {FINISHED: 8, FAILED: 32}
    assert set(raw.reason[raw.status == FAILED].tolist()) == {Reason.TIMED_OUT}


def test_replicas_never_hold_more_than_the_limit() -> None:
    run = simulate(given({"replicas": 2, "admission": {"max_inflight": 5, "on_full": "wait"}}, {"arrivals": poisson(60)}))
    raw = run.raw
    assert (raw.status == FINISHED).all()
    for replica in range(2):
        mine = raw.replica == replica
        moments = sorted([*((s, 1) for s in raw.engine_arrival_s[mine]), *((e, -1) for e in raw.end_s[mine])])
        held = np.cumsum([change for _, change in moments])
        assert held.max() == 5


def test_the_rate_lets_in_a_burst_and_then_so_many_a_second() -> None:
    raw = limited({"rate_per_s": 10, "burst": 4, "on_full": "wait"}, BURST)
    reach = np.sort(raw.engine_arrival_s) - raw.engine_arrival_s.min()
    np.testing.assert_allclose(reach[:4], 0.0, atol=5e-3)  # the prompts are tokenised besides
    np.testing.assert_allclose(np.diff(reach[3:]), 0.1, atol=5e-3)
    raw = limited({"rate_per_s": 10, "burst": 4}, BURST)
    assert Counter(raw.status.tolist()) == {FINISHED: 4, REJECTED: 36}


def test_who_waits_goes_by_priority() -> None:
    lengths = {"prompt_tokens": {"kind": "constant", "value": 64}, "output_tokens": {"kind": "constant", "value": 20}}
    classes = [{"name": n, "priority": p, "arrivals": {"kind": "batch"}, **lengths} for n, p in (("later", 5), ("first", 0))]
    load = {"arrivals": None, "prompt_tokens": None, "output_tokens": None, "classes": classes, "requests": 40}
    run = simulate(given({"admission": {"max_inflight": 2, "on_full": "wait"}}, load))
    of_first = run.workload.class_index == 1
    assert run.raw.engine_arrival_s[of_first].max() <= np.sort(run.raw.engine_arrival_s[~of_first])[2]


def test_clients_try_again_and_it_is_counted() -> None:
    retries = {"attempts": 4, "backoff_s": 1.0, "factor": 3.0, "on": [429]}
    run = simulate(given({"admission": {"max_inflight": 4}}, BURST, client={"retries": retries}))
    raw, table = run.raw, run.requests_frame()
    assert raw.attempts is not None
    assert Counter(raw.attempts.tolist())[4] > 0
    assert (table["attempts"] == raw.attempts).all()
    assert set(raw.attempts[raw.status == REJECTED].tolist()) == {4}
    second = (raw.attempts == 2) & (raw.status == FINISHED)
    np.testing.assert_allclose(raw.engine_arrival_s[second] - np.nanmin(raw.engine_arrival_s), 1.0, atol=0.02)
    assert (table["ttft_ms"][second] > 1000).all(), "waiting for another try is a part of the latency"
    none = simulate(given({"admission": {"max_inflight": 4}}, BURST)).raw
    assert (none.status == REJECTED).sum() > (raw.status == REJECTED).sum()


def test_a_router_tries_another_replica_where_one_is_full() -> None:
    """A server that answers 429 above 6 requests, behind a product that tries again after 50 ms and its multiples."""
    tgi = {"engine": "tgi", "replicas": 2, **args(max_input_tokens=2000, max_total_tokens=3000, max_concurrent_requests=6)}
    load = {"arrivals": poisson(14), "requests": 150}
    router = {"system": "sglang-router", "policy": "round_robin", "disable_circuit_breaker": True}
    lost = [
        simulate(given({**tgi, "router": {**router, **more}}, load)).result["totals"]["rejected"]
        for more in ({"disable_retries": True}, {}, {"retry_max_retries": 12})
    ]
    assert lost[0] > lost[1] > lost[2]


def test_breakers_leave_a_replica_out() -> None:
    tgi = {"engine": "tgi", "replicas": 2, **args(max_input_tokens=2000, max_total_tokens=3000, max_concurrent_requests=1)}
    router = {"system": "sglang-router", "policy": "round_robin", "disable_retries": True, "cb_failure_threshold": 2}
    raw = simulate(given({**tgi, "router": router}, {"arrivals": poisson(50), "requests": 200})).raw
    reasons = Counter(raw.reason[raw.status == REJECTED].tolist())
    assert reasons[Reason.SHED_503] > 100  # no replica that the router would try
    assert reasons[Reason.SHED_429] >= 4


@pytest.mark.parametrize(
    ("admission", "client", "said"),
    [
        ({"on_full": "wait"}, {}, "limits nothing"),
        ({"max_queue": 0}, {}, "give max_inflight or rate_per_s (max_queue counts those that wait for them)"),
        ({"max_inflight": 1, "max_queue": 5}, {}, "on_full: wait"),
        ({"max_inflight": 1, "burst": 5}, {}, "rate_per_s"),
        ({"max_inflight": 0}, {}, "at least 1"),
        ({"max_inflght": 1}, {}, "max_inflight"),
        ({"max_inflight": 1}, {"retries": {"attempts": 1}}, "at least 2"),
        ({"max_inflight": 1}, {"retries": {"attempts": 3, "on": [500]}}, "429"),
    ],
)
def test_limits_that_cannot_be_are_refused(admission: dict[str, Any], client: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        simulate(given({"admission": admission}, {"requests": 5}, client=client))
    assert said in str(error.value)


def test_a_door_keeps_order_and_forgets_those_that_left() -> None:
    door, room = Door(Admission(max_inflight=1, on_full="wait"), lambda *_: True), iter([])
    rows: Any = None
    seqs: list[Any] = [type("Seq", (), {"index": i, "priority": p})() for i, p in enumerate((1, 0, 1, 0))]
    for seq in seqs:
        door.push(rows, seq)
    assert door.leave(seqs[1])
    assert not door.leave(seqs[1])
    assert [entry[1].index for entry in iter(lambda: door.next(0.0), None)] == [3, 0, 2]
    assert not len(door)
    assert list(room) == []


def test_clients_that_give_up_free_what_they_held() -> None:
    """Answers of 300 tokens take some 2 s; after 0.5 s each client is gone, and another in its place."""
    lengths = {"prompt_tokens": {"kind": "constant", "value": 300}, "output_tokens": {"kind": "uniform", "low": 20, "high": 300}}
    load = {"arrivals": poisson(30), "requests": 300, **lengths}
    alternating = {"engine": "lmdeploy", "engine_args": {"backend": "pytorch", "max_batch_size": 24}}
    tiered = {"engine": "vllm", "offload": {"kv_offloading_size": 1, "bytes_per_s": 2e8}}
    tiered |= {"engine_args": {"num_gpu_blocks_override": 400, "max_model_len": 1024}}
    sglang = {"engine": "sglang", "engine_args": {"max_total_tokens": 6000}}
    stages = {"engine": "vllm", "pipeline_parallel": 2, "engine_args": {"num_gpu_blocks_override": 500, "max_model_len": 1024}}
    slots = {"engine": "trtllm", "pipeline_parallel": 3, "engine_args": {"max_seq_len": 1024, "max_batch_size": 8}}
    for pool in ({"engine": "vllm"}, {"engine": "tgi"}, alternating, sglang, tiered, stages, slots):
        run = simulate(given({**pool, "replicas": 2}, load, client={"timeout_s": 0.5}))
        raw = run.raw
        assert set(raw.status.tolist()) == {FINISHED, FAILED}
        assert set(raw.reason[raw.status == FAILED].tolist()) == {Reason.TIMED_OUT}
        assert (raw.end_s - raw.arrival_s)[raw.status == FINISHED].max() < 0.55
        assert raw.output_tokens[raw.status == FINISHED].mean() < raw.output_tokens[raw.status == FAILED].mean()
        assert run.result["totals"]["reasons"] == {"timed_out": int((raw.status == FAILED).sum())}
        again = simulate(given({**pool, "replicas": 2}, load, client={"timeout_s": 0.5}), aggregate=False)
        assert again.result == run.result


def test_a_time_out_before_an_engine_that_cannot_drop_requests_is_refused() -> None:
    with pytest.raises(InputError, match="cannot drop a request"):
        simulate(given({"engine": "sglang", "pipeline_parallel": 2}, {"requests": 5}, client={"timeout_s": 5}))


LIMITS = st.builds(
    Admission,
    max_inflight=st.sampled_from([None, 1, 3]),
    max_queue=st.sampled_from([None, 0, 4]),
    on_full=st.sampled_from(["429", "503", "wait"]),
    rate_per_s=st.sampled_from([None, 3.0, 200.0]),
    burst=st.sampled_from([1, 5]),
    queue_timeout_s=st.sampled_from([None, 0.2]),
)
CLIENTS = st.none() | st.builds(
    ClientRules,
    st.none()
    | st.builds(Backoff, attempts=st.sampled_from([2, 5]), first_s=st.sampled_from([0.0, 0.05]), factor=st.just(2.0)),
    st.just(frozenset({Reason.SHED_429, Reason.SHED_503, Reason.TIMED_OUT})),
    st.sampled_from([None, None, 0.05, 0.3, 1.0]),
)


@settings(max_examples=examples(60), derandomize=True)
@drawn(
    cases(),
    st.none() | LIMITS,
    CLIENTS,
    st.sampled_from(["round_robin", "random", "least_requests", "session"]),
    st.sampled_from([None, 2]),
)
def test_every_request_is_accounted_for(
    case: Case, limits: Admission | None, client: ClientRules | None, router: str, inflight: int | None
) -> None:
    """Under any limits each request ends in one way, those that end free their memory, and jumps change nothing."""
    runs = []
    for aggregate in (True, False):
        cluster = Cluster(
            workload_of(case),
            replace(plan_of(case), front=FrontEnd(inflight=inflight)),
            RecordedClock(CLOCK),
            replicas=case.replicas,
            router=router,
            admission=limits,
            client=client,
            before_s=0.002,
            after_s=0.001,
            aggregate=aggregate,
        )
        runs.append(cluster.run())
        idle = [rank.scheduler.state() for rank in cluster.ranks]
        if not (runs[-1].status == UNFINISHED).any():
            assert [state[:3] for state in idle] == [(0, 0, 0)] * case.replicas
    result = runs[0]
    ended = Counter(result.status.tolist())
    assert sum(ended.values()) == case.requests
    assert np.isfinite(result.end_s[result.status == FINISHED]).all()
    assert (result.reason[result.status == FINISHED] == Reason.STOP).all()
    lost = np.isin(result.status, (REJECTED, FAILED))
    assert np.isin(result.reason[lost], (Reason.SHED_429, Reason.SHED_503, Reason.TIMED_OUT)).all()
    assert result.attempts is not None
    assert result.attempts.max(initial=1) <= (client.backoff.attempts if client and client.backoff else 1)
    if client is not None and client.timeout_s is not None:
        last_s = result.arrival_s + client.timeout_s + 0.003
        single = (result.status == FINISHED) & (result.attempts == 1)
        assert (result.end_s[single] <= last_s[single] + 0.2).all()  # a step that was under way
    for name in ("status", "reason", "replica", "attempts", "engine_arrival_s", "end_s"):
        np.testing.assert_array_equal(getattr(runs[1], name), getattr(result, name), err_msg=name)
