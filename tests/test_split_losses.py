"""Lost prefill and decode servers: what fails, what is sent again, and that nothing is forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.schedulers.pulled import DecodeOfPull, PrefillOfPull
from hardware_profiles.errors import InputError
from simulator import load_scenario, simulate
from simulator.cluster.losses import LossyCluster
from simulator.cluster.outcome import FAILED, FINISHED, NOT_ARRIVED, REJECTED, UNFINISHED
from simulator.prepare import prepare
from simulator.run import _cluster
from simulator.workload.build import build_workload


def split(failures: dict[str, Any] | None, engine: str = "vllm", **more: Any) -> dict[str, Any]:
    """Two servers of each kind under ten requests a second, over a link that reads take a while on."""
    one = {"engine": engine, "hardware": "h100-sxm-80gb", "replicas": 2, "gpus_per_node": 1}
    return {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {
            "pools": [{**one, "name": role, "role": role} for role in ("prefill", "decode")],
            "transfer": {"bytes_per_s": 2.0e9},
            **({"failures": failures} if failures else {}),
        },
        "workload": {
            "arrivals": {"kind": "poisson", "rate": 12},
            "prompt_tokens": {"kind": "lognormal", "mean": 900, "p99": 4000},
            "output_tokens": {"kind": "lognormal", "mean": 60, "p99": 300},
            "duration": 20,
        },
        **more,
    }


def ran(data: dict[str, Any], *, aggregate: bool = True) -> tuple[LossyCluster, Any]:
    checked = load_scenario(data)
    work = build_workload(checked.workload, seed=checked.seed, base_dir=None)
    cluster = _cluster(prepare(checked), work, aggregate=aggregate, should_stop=None)
    assert isinstance(cluster, LossyCluster)
    return cluster, cluster.run()


def lost(kind: str, pool: str, at_s: float = 12.0, replica: int = 0, **more: Any) -> dict[str, Any]:
    return {"events": [{"at_s": at_s, "kind": kind, "pool": pool, "replica": replica, **more}], "start_up": 3}


RETRIES = {"client": {"retries": {"attempts": 4, "on": ["node_lost", "503"]}}}


def check_conserved(cluster: LossyCluster, result: Any) -> None:
    """Each request has one end, tokens are those of its steps, and no block is kept for nobody."""
    came = result.status != NOT_ARRIVED
    assert np.isin(result.status[came], (FINISHED, FAILED, REJECTED, UNFINISHED)).all()
    done = result.status == FINISHED
    for row in np.flatnonzero(done).tolist():
        spans = result.emissions.of(row)
        assert sum(last - first + 1 for _, first, last in spans) == result.output_tokens[row]
    if (result.status[came] == UNFINISHED).any():
        return
    assert not cluster._sources
    assert not cluster._reads
    for rank in cluster.ranks:
        scheduler = rank.scheduler
        assert isinstance(scheduler, PrefillOfPull | DecodeOfPull)
        if isinstance(scheduler, PrefillOfPull):
            scheduler.free_released()
        assert scheduler.kv.free_blocks == scheduler.kv.capacity_blocks
        assert not scheduler.has_work()


def test_a_failure_that_never_comes_changes_nothing() -> None:
    plain, idle = simulate(split(None)), simulate(split(lost("node", "prefill", at_s=1e9)))
    assert plain.requests_frame().equals(idle.requests_frame())
    assert plain.result["metrics"] == idle.result["metrics"]


@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_a_lost_server_fails_what_it_has_and_clients_send_it_again(pool: str) -> None:
    failures = lost("node", pool, for_s=4.0)
    cluster, result = ran(split(failures))
    failed = int((result.status == FAILED).sum())
    assert failed > 0
    assert (cluster.toll.lost, cluster.toll.again) == (failed, 0)
    assert cluster.fleet.levels[-1].up == 4
    check_conserved(cluster, result)
    cluster, result = ran(split(failures, **RETRIES))
    assert (result.status[result.status != NOT_ARRIVED] == FINISHED).all()
    assert cluster.toll.again == cluster.toll.lost == failed
    check_conserved(cluster, result)


def test_a_server_that_is_taken_back_gets_nothing_new() -> None:
    cluster, result = ran(split(lost("reclaim", "decode", notice_s=8.0)))
    assert (result.status[result.status != NOT_ARRIVED] == FINISHED).all()
    assert [level.draining for level in cluster.fleet.levels] == [0, 1, 0]
    check_conserved(cluster, result)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_requests_are_conserved_under_losses_at_random(seed: int) -> None:
    draw = np.random.default_rng(seed)
    kinds, pools = ("node", "gpu", "reclaim"), ("prefill", "decode")
    events = [
        {
            "at_s": float(draw.uniform(1, 20)),
            "kind": str(draw.choice(kinds)),
            "pool": str(draw.choice(pools)),
            "replica": int(draw.integers(2)),
            "for_s": float(draw.uniform(0, 6)),
        }
        for _ in range(8)
    ]
    for event in events:
        if event["kind"] == "reclaim":
            event["notice_s"] = float(draw.uniform(0, 5))
    random = {"mtbf_h": 0.01, "of": "replica", "repair_s": 2.0, "start_up": 1.0, "detected_after_s": float(draw.integers(3))}
    for more in ({}, RETRIES):
        data = split({"events": events, **random}, seed=seed, **more)
        cluster, result = ran(data)
        check_conserved(cluster, result)
        plain = ran(data, aggregate=False)[1]
        assert (result.status == plain.status).all()
        assert np.array_equal(result.end_s, plain.end_s, equal_nan=True)


def test_what_is_not_modelled_is_refused_in_words() -> None:
    for data, words in (
        (split(lost("node", "prefill"), engine="sglang"), "lost servers of sglang"),
        (split(lost("node", "nobody")), "no pool 'nobody'"),
        (split(lost("gpu", "decode", replica=7)), "no replica 7 in pool 'decode'"),
        (split({"events": [{"at_s": 1, "kind": "drain"}]}), "kind: drain"),
    ):
        with pytest.raises(InputError, match=words):
            prepare(load_scenario(data))
