"""Decode servers that compute prompts, where servers come and go: nothing is forgotten, and a lost prompt is computed again."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from simulator import simulate
from simulator.cluster.elastic_deciding import ElasticComputing
from simulator.cluster.outcome import FINISHED, Reason
from tests.clusters import answered

LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
LOAD: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 12},
    "prompt_tokens": {"kind": "lognormal", "mean": 1500, "p99": 6000, "max": 7000},
    "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 200},
    "shared_prefix": {"groups": 3, "tokens": 800},
}
ROUTERS = {
    "llm-d": {"system": "llm-d", "non_cached_tokens": 700},
    "always": {"system": "llm-d", "decider": "always-disagg-pd-decider"},
    "dynamo": {"system": "dynamo", "conditional_disagg_enabled": True},
}
HPA = {"kind": "hpa", "metric": "num_requests_waiting", "target": 2, "min_replicas": 1, "max_replicas": 4, "start_up": 1}
KNATIVE = {"kind": "knative", "target": 4, "min_replicas": 0, "max_replicas": 3, "stable_window_s": 6, "start_up": 1}


def pool(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "engine": "vllm", "hardware": "h100-sxm-80gb", "replicas": 2, "gpus_per_node": 1, **keys}


PAIR = [pool("p", role="prefill"), pool("d", role="decode")]
BESIDE = {
    "alone": PAIR,
    "beside": [*PAIR, pool("q", model=QWEN)],
    "mixed": [*PAIR, pool("w"), pool("q", model=QWEN)],
}


def fleet(router: str, beside: str = "alone", duration: float = 6, client: Any = None, **around: Any) -> dict[str, Any]:
    deployment = {"pools": BESIDE[beside], "router": ROUTERS[router], **around}
    work = {**LOAD} if beside == "alone" else {"classes": [{"name": "one", **LOAD}, {"name": "two", "model": QWEN, **LOAD}]}
    return {"model": LLAMA, "deployment": deployment, "workload": {**work, "duration": duration}, "client": client or {}}


def lost(at_s: float, kind: str, name: str, replica: int, for_s: float = 2.0, **keys: Any) -> dict[str, Any]:
    return {"events": [{"at_s": at_s, "kind": kind, "pool": name, "replica": replica, "for_s": for_s, **keys}], "start_up": 0.5}


def served(data: dict[str, Any], *, aggregate: bool = True) -> tuple[Any, Any]:
    return answered(data, ElasticComputing, aggregate=aggregate)


CASES = [
    (router, beside) for router in ROUTERS for beside in BESIDE if not (router == "dynamo" and beside == "mixed")
]


@pytest.mark.parametrize(("router", "beside"), CASES)
def test_what_never_comes_changes_nothing(router: str, beside: str) -> None:
    plain = simulate(fleet(router, beside, duration=3))
    never = {"events": [{"at_s": 1e9, "kind": "node", "pool": "d", "replica": 0}]}
    scaler = {**HPA, "metric": "requests_in_flight", "target": 1e6, "min_replicas": 2, "max_replicas": 2}
    idle = {"failures": never, "autoscaler": scaler, "admission": {"max_inflight": 10**6, "rate_per_s": 1e6, "burst": 100}}
    held = simulate(fleet(router, beside, duration=3, client={"timeout_s": 1e6}, **idle))
    one, other = (run.requests_frame() for run in (plain, held))
    assert [column for column in one if not one[column].equals(other[column])] == []
    assert plain.result["metrics"] == held.result["metrics"]
    assert plain.timeline_frame().equals(held.timeline_frame())
    assert (one["transfer_bytes"] > 0).any()


@pytest.mark.parametrize("silent_s", [0.0, 0.5])
def test_a_prompt_whose_prefill_server_is_lost_is_computed_by_its_decode_server(silent_s: float) -> None:
    data = fleet("always", failures={**lost(3.0, "node", "p", 0), "detected_after_s": silent_s})
    _, result = served(data)
    failed = result.status != FINISHED  # their prompts were computed and not read yet
    assert (result.handed.prefill_end_s[failed] < 3.0).all()
    toll = simulate(data).result
    assert toll["fleet"]["attempts_lost"] > 0
    frame = simulate(data).requests_frame()
    again = frame[(frame["transfer_bytes"].isna()) & (frame["status"] == "finished")]
    assert len(again) >= 1
    assert (again["attempts"] == 1).all()
    assert (again["arrival_s"] < 3.1 + silent_s).all()
    assert (again["instance_id"] == again["prefill_instance_id"]).all()
    assert (again["first_token_s"] > 3.0 + silent_s).all()


def test_without_a_prefill_server_decode_servers_compute_all_prompts() -> None:
    gone = {"events": [{"at_s": 0.0, "kind": "gpu", "pool": "p", "replica": number} for number in range(2)]}
    for router in ROUTERS:
        run = simulate(fleet(router, failures=gone))
        assert run.result["totals"]["completed"] == run.result["totals"]["offered"] > 30
        assert run.requests_frame()["transfer_bytes"].isna().all()


def test_without_a_decode_server_nothing_is_answered() -> None:
    gone = {"events": [{"at_s": 0.0, "kind": "gpu", "pool": "d", "replica": number} for number in range(2)]}
    for router in ROUTERS:
        totals = simulate(fleet(router, failures=gone)).result["totals"]
        assert totals["reasons"] == {"shed_503": totals["offered"]}


def test_a_request_goes_with_the_decode_server_that_was_chosen_for_it() -> None:
    """Also one whose prompt is still computed elsewhere; that one's server is rid of it."""
    data = fleet("always", failures=lost(3.0, "gpu", "d", 0))
    cluster, result = served(data)
    failed = result.status != FINISHED
    assert failed.sum() > 0
    assert (result.arrival_s[failed] < 3.0).all()
    assert np.isnan(result.handed.arrival_s[failed]).any()  # some had not come there yet
    assert cluster.toll.lost == failed.sum()


def test_a_server_that_drains_answers_what_was_meant_for_it() -> None:
    drained = lost(3.0, "drain", "d", 0, notice_s=30.0)
    run = simulate(fleet("always", failures=drained))
    assert run.result["totals"]["completed"] == run.result["totals"]["offered"]
    assert run.result["fleet"]["attempts_lost"] == 0
    assert run.result["fleet"]["faults"] == {"drain": 1}


def one_by_one(failures: dict[str, Any]) -> Any:
    """Long prompts, one a second, the first at 1 s and a half: each takes a quarter of a second at a prefill server."""
    data = fleet("always", failures=failures)
    data["workload"] = {"arrivals": {"kind": "constant", "rate": 1}, "prompt_tokens": 7000, "output_tokens": 5, "duration": 4}
    return served(data)


@pytest.mark.parametrize("kind", ["drain", "reclaim"])
def test_servers_that_drain_wait_for_prompts_that_are_computed_for_them(kind: str) -> None:
    sent_s = float(one_by_one(lost(1e9, "gpu", "d", 0))[1].arrival_s[1])
    events = [lost(sent_s + 0.1, kind, "d", number, for_s=1000.0, notice_s=5.0)["events"][0] for number in range(2)]
    cluster, result = one_by_one({"events": events, "start_up": 0.5})
    assert result.status[1] == FINISHED
    assert cluster.toll.lost == 0
    assert (result.reason[2:] == Reason.SHED_503).all()


def test_a_decode_server_that_is_lost_unheard_asks_nobody_for_prompts() -> None:
    sent_s = one_by_one(lost(1e9, "gpu", "d", 0))[1].arrival_s
    gone = [lost(float(sent_s[1]) + 0.05, "node", "d", number, for_s=1000.0)["events"][0] for number in range(2)]
    _, late = one_by_one({"events": gone, "start_up": 0.5, "detected_after_s": 10.0})
    assert (late.reason[1:] == Reason.NODE_LOST).all()
    assert not np.isnan(late.handed.prefill_end_s[1])  # it had been asked for before
    assert np.isnan(late.handed.prefill_end_s[2:]).all()
    _, soon = one_by_one({"events": gone, "start_up": 0.5, "detected_after_s": 0.05})
    assert soon.reason[1] == Reason.NODE_LOST
    assert np.isnan(soon.handed.prefill_end_s[1])
    assert (soon.reason[2:] == Reason.SHED_503).all()


def most_at_once(begin_s: Any, end_s: Any) -> int:
    """How many of these spans cover a moment at most; one that ends as another begins has ended."""
    moves = sorted([(float(end), -1) for end in end_s] + [(float(begin), 1) for begin in begin_s])
    return max(accumulate(step for _, step in moves))


@pytest.mark.parametrize("router", ROUTERS)
def test_no_server_has_more_requests_than_the_limit(router: str) -> None:
    """llm-d's decode servers have a request from its choice on; Dynamo's those that come to them first."""
    data = fleet(router, admission={"max_inflight": 2})
    frame = simulate(data).requests_frame()
    assert 0 < (frame["reason"] == "shed_429").sum() < len(frame)
    done = frame[frame["status"] == "finished"]
    assert (done["transfer_bytes"] > 0).any()
    if router == "dynamo":
        done = done[done["transfer_bytes"].isna()]
    for _, mine in done.groupby("instance_id"):
        assert most_at_once(mine["arrival_s"], mine["end_s"] - 0.02) <= 2  # its answer has yet to pass the front end
    unharmed(data)


@pytest.mark.parametrize("beside", ["alone", "beside", "mixed"])
def test_requests_wait_before_decode_servers_that_compute(beside: str) -> None:
    """Whoever waits is let in when a request has ended: all are answered, later; a rate lets so many in."""
    data = fleet("llm-d", beside, admission={"max_inflight": 2, "on_full": "wait"})
    plain, held = (simulate(each) for each in (fleet("llm-d", beside), data))
    assert held.result["totals"]["completed"] == held.result["totals"]["offered"] == plain.result["totals"]["completed"]
    assert held.result["metrics"]["ttft_ms"]["mean"] > plain.result["metrics"]["ttft_ms"]["mean"]
    unharmed(data)
    unharmed(fleet("llm-d", beside, admission={"max_inflight": 2, "on_full": "wait", "max_queue": 3}))
    slow = fleet("llm-d", beside, admission={"rate_per_s": 5, "burst": 2})
    frame = simulate(slow).requests_frame()
    assert 20 < (frame["status"] == "finished").sum() <= 5 * 6 + 2
    unharmed(slow)


def test_a_limit_of_dynamos_routers_lets_computed_prompts_go_on() -> None:
    """Nobody is sent away whose prompt is computed, however many the decode servers have."""
    prompts = {"prompt_tokens": 3000, "output_tokens": {"kind": "constant", "value": 200}, "shared_prefix": None}
    data = fleet("dynamo", admission={"max_inflight": 1, "on_full": "wait"})
    data["workload"] = {key: value for key, value in {**data["workload"], **prompts}.items() if value is not None}
    totals = simulate(data).result["totals"]
    assert totals["completed"] == totals["offered"] > 40
    unharmed(data)


AROUND: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"timeout_s": 1.5, "retries": {"attempts": 3, "on": ["node_lost", "503", "timeout"]}}, {"autoscaler": HPA}),
    ({"retries": {"attempts": 3, "on": ["node_lost", "503"]}}, {"autoscaler": KNATIVE}),
    ({"timeout_s": 3.0}, {"autoscaler": {**HPA, "kind": "keda", "min_replicas": 0, "metric": "requests_in_flight"}}),
]


def broken(router: str, beside: str, seed: int, duration: float) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    names = [each["name"] for each in BESIDE[beside]]
    events = []
    for _ in range(8):
        kind = str(draw.choice(("node", "gpu", "reclaim", "drain", "slow")))
        event = {"at_s": float(draw.uniform(1, duration)), "kind": kind, "for_s": float(draw.uniform(0, 5))}
        event |= {"pool": str(draw.choice(names)), "replica": int(draw.integers(2))}
        event |= {"notice_s": float(draw.uniform(0, 5))} if kind in ("reclaim", "drain") else {}
        events.append(event | ({"factor": 3.0} if kind == "slow" else {}))
    silent_s = float(draw.choice([0.0, 2.0]))
    failures = {"events": events, "mtbf_h": 0.01, "of": "replica", "repair_s": 2.0, "start_up": 1.0, "detected_after_s": silent_s}
    return [
        {**fleet(router, beside, duration=duration, client=client, failures=failures, **around), "seed": seed}
        for client, around in AROUND
    ]


def unharmed(data: dict[str, Any]) -> None:
    (_, found), (_, plain) = (served(data, aggregate=aggregate) for aggregate in (True, False))
    for name in ("status", "reason", "replica", "attempts"):
        assert np.array_equal(getattr(found, name), getattr(plain, name)), name
    assert np.array_equal(found.end_s, plain.end_s, equal_nan=True)


@pytest.mark.parametrize("router", ROUTERS)
def test_requests_are_conserved_around_losses(router: str) -> None:
    unharmed(broken(router, "beside", 1, 6)[1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("router", "beside"), CASES)
def test_requests_are_conserved_whatever_goes_wrong(router: str, beside: str, seed: int) -> None:
    for data in broken(router, beside, seed, 12):
        unharmed(data)
