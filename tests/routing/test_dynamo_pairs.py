"""Dynamo's KV router before prefill and decode servers, and prompts that decode servers compute themselves."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from engine_models.schedulers.pulled import PrefillOfPull
from hardware_profiles.errors import InputError
from simulator import load_scenario, simulate
from simulator.cluster.outcome import FINISHED
from simulator.cluster.routing.dynamo import SYSTEM, ConditionalRouter, DecodeRouter
from simulator.cluster.routing.policy import Arrival
from simulator.prepare import prepare
from simulator.run import _cluster
from simulator.workload.build import build_workload
from tests.clusters import jumps_as_it_steps
from tests.effort import some

DYNAMO: dict[str, Any] = {"system": "dynamo"}
CONDITIONAL = {**DYNAMO, "conditional_disagg_enabled": True}
CHATS: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 4},
    "sessions": {"turns": 4, "think_time_s": 0.5},
    "prompt_tokens": {"kind": "lognormal", "mean": 500, "p99": 2000},
    "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 200},
    "duration": 8,
}
LONELY = {**CHATS, "sessions": None}


def scenario(router: Any, prefill: int = 2, decode: int = 3, engine: str = "vllm", **workload: Any) -> dict[str, Any]:
    pool = {"engine": engine, "hardware": "h100-sxm-80gb"}
    pools = [
        {"name": "p", "role": "prefill", "replicas": prefill, **pool},
        {"name": "d", "role": "decode", "replicas": decode, **pool},
    ]
    load = {key: value for key, value in {**CHATS, **workload}.items() if value is not None}
    return {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {"pools": pools, **({"router": router} if router else {})},
        "workload": load,
    }


def conditional(cached_blocks: int, block_tokens: int = 64, workers: int = 1, **flags: Any) -> ConditionalRouter:
    """A router of workers, the last of which holds the leading blocks of a prompt."""
    given = {"kv_cache_block_size": block_tokens, "conditional_disagg_enabled": True, **flags}
    router = ConditionalRouter(workers, Random(0), SYSTEM.read(given, ""))
    router.index.store(workers - 1, None, list(range(cached_blocks)))
    return router


@pytest.mark.parametrize(
    ("prompt", "cached", "kept"),
    [
        (1000, 14, True),  # 104 tokens are new, a tenth
        (200, 0, False),  # all of it is new, however short
        (100_000, 1000, False),  # 36,000 are new
        (4096, 32, False),  # 2,048 are: the threshold itself
        (4095, 32, True),  # 2,047 are, half
        (500, 10, True),  # more is held than there is
    ],
)
def test_a_decode_worker_keeps_short_prompts_of_which_it_has_the_most(prompt: int, cached: int, kept: bool) -> None:
    """The cases of the source's own tests (`lib/kv-router/src/conditional_disagg.rs`), and one beside the threshold."""
    blocks = tuple(range(prompt // 64))
    assert (conditional(cached).keeps(Arrival(0, prompt, blocks=blocks), 0.0) == 0) == kept


def test_who_computes_a_prompt_is_booked_with_it_and_who_does_not_without() -> None:
    router = conditional(8, workers=2)
    near, far = Arrival(0, 1024, blocks=tuple(range(16))), Arrival(1, 6400, blocks=tuple(range(100, 200)))
    assert router.keeps(near, 0.0) == 1  # it holds half
    router.sent(near, 1, 0.0)
    assert (router.pending.tolist(), router.blocks.tolist()) == ([0, 512], [0, 16])
    assert router.keeps(far, 0.0) is None
    assert router.choose(far, 0.0) == 0  # by blocks alone, the emptier
    router.sent(far, 0, 0.0)
    assert (router.pending.tolist(), router.blocks.tolist()) == ([0, 512], [100, 16])
    router.ended(near, 1, 1.0)
    router.ended(far, 0, 1.0)
    assert (router.pending.tolist(), router.blocks.tolist()) == ([0, 0], [0, 0])


def test_decode_workers_are_chosen_by_their_blocks_each_requests_its_own() -> None:
    router = DecodeRouter(2, Random(0), SYSTEM.read({}, ""))
    same = tuple(range(10))
    for index in range(4):
        arrival = Arrival(index, 160, blocks=same)
        worker = router.choose(arrival, 0.0)
        router.sent(arrival, worker, 0.0)
    assert router.blocks.tolist() == [20, 20]  # blocks that requests share count once each
    assert router.pending.tolist() == [0, 0]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_before_one_server_of_each_role_it_changes_nothing(engine: str) -> None:
    """The prefix caches are told apart from no router's view of them: one of each is the plain run."""
    with_it, plain = (simulate(scenario(router, 1, 1, engine)) for router in ({**DYNAMO, "use_kv_events": False}, None))
    assert with_it.requests_frame().equals(plain.requests_frame())
    assert with_it.timeline_frame().equals(plain.timeline_frame())
    assert with_it.result["metrics"] == plain.result["metrics"]


def test_conversations_go_to_the_prefill_server_that_knows_them() -> None:
    near, apart = simulate(scenario(DYNAMO, 3)), simulate(scenario("random", 3))
    assert near.result["server"]["prefix_cache_hit_rate"] > apart.result["server"]["prefix_cache_hit_rate"] + 0.05


CASES = {
    "vllm": scenario(DYNAMO),
    "vllm-by-what-was-sent": scenario({**DYNAMO, "use_kv_events": False, "router_temperature": 0.3}),
    "sglang": scenario({**DYNAMO, "use_kv_events": False}, engine="sglang"),
    "trtllm": scenario({**DYNAMO, "use_kv_events": False}, engine="trtllm"),
    "conditional": scenario(CONDITIONAL),
    "conditional-much": scenario({**CONDITIONAL, "conditional_disagg_eff_isl_ratio_threshold": 2.0}, 1, 2),
}


@pytest.mark.parametrize("name", some(CASES))
def test_jumping_is_stepping(name: str) -> None:
    jumps_as_it_steps(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_requests_and_blocks_are_conserved(name: str) -> None:
    checked = load_scenario(CASES[name])
    work = build_workload(checked.workload, seed=checked.seed, base_dir=None)
    cluster: Any = _cluster(prepare(checked), work, aggregate=True, should_stop=None)
    result = cluster.run()
    came = ~np.isnan(result.arrival_s)
    assert (result.status[came] == FINISHED).all()
    for rank in cluster.ranks:
        scheduler = rank.scheduler
        if isinstance(scheduler, PrefillOfPull):
            scheduler.free_released()
        assert scheduler.kv.free_blocks == scheduler.kv.capacity_blocks
        assert not scheduler.has_work()
    for router in (cluster._router, cluster._second):
        policy = router.policy
        assert policy.active.tolist() == policy.pending.tolist() == policy.blocks.tolist() == [0] * policy.workers


def test_what_decode_servers_know_they_compute_themselves() -> None:
    frame = simulate(CASES["conditional"]).requests_frame()
    frame = frame[frame["status"] == "finished"]
    kept = frame["transfer_bytes"].isna()
    assert kept.sum() > 20
    assert (~kept).sum() > 20
    assert (frame[kept]["instance_id"] == frame[kept]["prefill_instance_id"]).all()
    assert (frame[kept]["turn"] > 0).all()  # a first turn is all new
    known = frame[kept]["cached_tokens"] / frame[kept]["prompt_tokens"]
    assert (known > 0.3).all()


@pytest.mark.parametrize(
    ("router", "engine", "words"),
    [
        ({**CONDITIONAL, "use_kv_events": False}, "sglang", "is not modelled yet"),
        ({**CONDITIONAL, "use_kv_events": False}, "trtllm", "is not modelled yet"),
        ({**CONDITIONAL, "conditional_disagg_policy": "prefill_load"}, "vllm", "conditional_disagg_policy"),
        ({**CONDITIONAL, "conditional_disagg_decode_busy_threshold": 0.9}, "vllm", "is not modelled"),
    ],
)
def test_what_is_not_modelled_is_said(router: dict[str, Any], engine: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare(load_scenario(scenario(router, engine=engine)))
    assert words in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize("enabled", [True, False])
def test_flags_of_what_is_not_turned_on_are_said_to_have_no_effect(enabled: bool) -> None:
    router = {**DYNAMO, "conditional_disagg_eff_isl_threshold": 100, "conditional_disagg_enabled": enabled}
    result = simulate(scenario(router)).result
    said = " ".join((*result["assumptions"], *result["warnings"]))
    assert ("conditional_disagg_eff_isl_threshold without `conditional_disagg_enabled` has no effect" in said) is not enabled
