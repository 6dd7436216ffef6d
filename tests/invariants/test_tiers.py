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
