"""What lies beyond the device is a cache: nothing of it is the plain run, an endless one finds all that came before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator import RunResult, load_scenario, simulate

CHATS: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 1.5},
    "sessions": {"turns": {"kind": "constant", "value": 5}, "think_time_s": {"kind": "constant", "value": 4}},
    "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 1500},
    "output_tokens": {"kind": "lognormal", "mean": 100, "p99": 400},
    "requests": 50,
}
ENDLESS = 1e15
SMALL = {"num_gpu_blocks_override": 900, "max_model_len": 8192}
TREE = {"engine": "trtllm", "engine_args": {"kv_cache_config": {"max_tokens": 6000}, "max_seq_len": 4096}}
RADIX = {"engine": "sglang", "engine_args": {"max_total_tokens": 14400, "context_length": 8192, "page_size": 16}}


def run(tiers: list[dict[str, Any]] | None, **pool: Any) -> RunResult:
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": SMALL, "kv_tiers": tiers, **pool}
    return simulate({"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": CHATS})


def external(result: RunResult) -> float:
    return float(result.result["server"]["external_prefix_cache_hit_rate"])


def test_a_tier_of_no_bytes_is_the_plain_run() -> None:
    plain = run(None)
    for tiers in ([{"kind": "host", "bytes": 0}], [{"kind": "host", "bytes": 0}, {"kind": "shared", "bytes": 0}]):
        found = run(tiers)
        told = [f"a tier of kind: {tier['kind']} of 0 bytes is none: no KV block is kept there" for tier in tiers]
        assert set(told) <= set(found.result["assumptions"])
        found.result["assumptions"] = [said for said in found.result["assumptions"] if said not in told]
        assert found.result | {"run_id": None} == plain.result | {"run_id": None}
        for name, column in found.requests.items():
            np.testing.assert_array_equal(np.asarray(column), np.asarray(plain.requests[name]), err_msg=name)


@pytest.mark.parametrize("connector", [None, "LMCacheConnectorV1", "MooncakeStoreConnector"])
def test_endless_tiers_over_endless_ways_are_an_endless_cache(connector: str | None) -> None:
    """Every full unit that came before is found again, and no time goes into loading it."""
    kind = "shared" if connector and "Mooncake" in connector else "host"
    tier = {"kind": kind, "bytes": ENDLESS, "bytes_per_s": ENDLESS, "connector": connector}
    version = {"engine": "vllm@0.19.1"}  # whose native connector keeps answers too
    small = run([tier], **version)
    endless = run(None, engine_args={"max_model_len": 8192}, **version)
    unit = 256 if connector and "LMCache" in connector else 16
    if connector is None:
        np.testing.assert_array_equal(small.raw.cached_tokens, endless.raw.cached_tokens)
    else:  # prompts alone are kept, in whole units
        turn = np.asarray(small.workload.turn)
        before = np.where(turn > 0, np.roll(small.raw.prompt_tokens, 1), 0) // unit * unit
        assert (small.raw.cached_tokens >= np.minimum(before, small.raw.prompt_tokens - 1)).all()
    assert external(small) > 0.3
    assert small.result["metrics"]["ttft_ms"]["mean"] <= 1.02 * run(None, **version).result["metrics"]["ttft_ms"]["mean"]


def test_an_endless_host_behind_a_radix_tree_is_an_endless_cache() -> None:
    small = run([{"kind": "host", "bytes": ENDLESS, "bytes_per_s": ENDLESS}], **RADIX)
    endless = run(None, engine="sglang", engine_args={"context_length": 8192, "page_size": 16})
    np.testing.assert_array_equal(small.raw.cached_tokens, endless.raw.cached_tokens)
    assert external(small) > 0.3


def test_an_endless_host_behind_a_tree_of_blocks_is_an_endless_cache() -> None:
    """What the device of TensorRT-LLM gives up goes there whole, and steps wait for no copy over an endless way."""
    small = run([{"kind": "host", "bytes": ENDLESS, "bytes_per_s": ENDLESS}], **TREE)
    endless = run(None, engine="trtllm", engine_args={"max_seq_len": 4096})
    np.testing.assert_array_equal(small.raw.cached_tokens, endless.raw.cached_tokens)
    assert external(small) > 0.1


UTILIZED = {"scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"}}


@pytest.mark.parametrize(
    ("pool", "flags"),
    [
        ({}, {}),
        ({}, UTILIZED | {"enable_chunked_prefill": True, "max_num_tokens": 512}),
        ({"engine": "trtllm@1.0.0"}, {"disable_overlap_scheduler": True}),
        ({"pipeline_parallel": 2}, {"max_batch_size": 8}),
        ({"speculative": {"method": "ngram", "num_speculative_tokens": 3, "acceptance_length": 1.8}}, {}),
        ({"lora": {"max_loras": 2, "rank": 16}}, {}),
    ],
)
def test_jumps_are_steps_where_steps_wait_for_copies(pool: dict[str, Any], flags: dict[str, Any]) -> None:
    """Every combination of host memory with other rules: equal by jumps and by steps, and no block is lost."""
    kv = {"max_tokens": 9600, "host_cache_size": 10**9}
    deployment = {"engine": "trtllm", "hardware": "h100-sxm-80gb", **pool}
    deployment["engine_args"] = {"kv_cache_config": kv, "max_seq_len": 4096, **flags}
    load = CHATS | {"arrivals": {"kind": "poisson", "rate": 6}, "max_output_tokens": 500, "requests": 120}
    load["prompt_tokens"] = {"kind": "lognormal", "mean": 200, "p99": 800}
    given = {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": load}
    runs = [simulate(load_scenario(given), aggregate=jumps) for jumps in (True, False)]
    assert runs[0].result == runs[1].result
    assert external(runs[0]) > 0.0
    tiers = runs[0].raw.tiers
    assert [tier.kind for tier in tiers] == ["host"]
    assert tiers[0].written_bytes > 0


def test_each_of_several_ranks_has_host_memory_of_its_own() -> None:
    """Requests one at a time are one rank's: an endless host finds what an endless cache has. Many at once jump as they step."""
    ranks = {"tensor_parallel": 1, "data_parallel": 4, "expert_parallel": 4, "hardware": "h100-sxm-80gb", "engine": "vllm@0.19.1"}
    endless = {"kv_offloading_size": 9e5, "bytes_per_s": ENDLESS}
    few = {"num_gpu_blocks_override": 600, "max_model_len": 8192}

    def of(arrivals: dict[str, Any], *, aggregate: bool = True, requests: int = 40, **pool: Any) -> RunResult:
        load = {key: value for key, value in CHATS.items() if key != "sessions"}
        load |= {"shared_prefix": {"groups": 12, "tokens": 1500}, "arrivals": arrivals, "requests": requests}
        given = {"model": "mistralai/Mixtral-8x7B-v0.1", "deployment": {**ranks, **pool}, "workload": load}
        return simulate(load_scenario(given), aggregate=aggregate)

    alone = {"kind": "constant", "rate": 0.1}
    small, large = of(alone, offload=endless, engine_args=few), of(alone, engine_args={"max_model_len": 8192})
    assert set(small.requests["instance_id"].tolist()) == {0}
    np.testing.assert_array_equal(small.raw.cached_tokens, large.raw.cached_tokens)
    assert external(small) > 0.1
    crowd = {"kind": "poisson", "rate": 3}
    runs = [of(crowd, aggregate=jumps, requests=150, offload=endless, engine_args=few) for jumps in (True, False)]
    assert runs[0].result == runs[1].result
    assert set(runs[0].requests["instance_id"].tolist()) == {0, 1, 2, 3}
    assert external(runs[0]) > 0.05
