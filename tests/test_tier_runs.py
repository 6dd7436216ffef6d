"""Runs with KV caches beyond the device: host memory, disks, a store that replicas share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hardware_profiles.errors import InputError
from simulator import RunResult, load_scenario, simulate
from simulator.prepare import prepare

CHATS: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 1.5},
    "sessions": {"turns": {"kind": "constant", "value": 5}, "think_time_s": {"kind": "constant", "value": 4}},
    "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 1500},
    "output_tokens": {"kind": "lognormal", "mean": 100, "p99": 400},
    "requests": 100,
}
ENDLESS = 1e15
SMALL = {"num_gpu_blocks_override": 900, "max_model_len": 8192}


def scenario(tiers: list[dict[str, Any]] | None, workload: dict[str, Any] | None = None, **pool: Any) -> dict[str, Any]:
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": SMALL, **pool}
    if tiers is not None:
        deployment["kv_tiers"] = tiers
    return {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": deployment,
        "workload": CHATS if workload is None else workload,
    }


def run(
    tiers: list[dict[str, Any]] | None, workload: dict[str, Any] | None = None, *, aggregate: bool = True, **pool: Any
) -> RunResult:
    return simulate(scenario(tiers, workload, **pool), aggregate=aggregate)


def external(result: RunResult) -> float:
    return float(result.result["server"].get("external_prefix_cache_hit_rate", 0.0))


def rates(result: RunResult) -> dict[str, float]:
    return {tier["kind"]: tier["hit_rate"] for tier in result.result["server"]["kv_tiers"]}


HOST, DISK = {"kind": "host", "bytes": 2e9}, {"kind": "nvme", "bytes": 60e9}
STORE = {"kind": "shared", "bytes": 100e9, "bytes_per_s": 20e9}
LMCACHE, MOONCAKE = {"connector": "LMCacheConnectorV1"}, {"connector": "MooncakeStoreConnector"}


def test_a_tier_of_no_bytes_is_the_plain_run() -> None:
    plain = run(None)
    for tiers in ([{"kind": "host", "bytes": 0}], [{**STORE, "bytes": 0}], []):
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


CASES: dict[str, dict[str, Any]] = {
    "host": {"tiers": [{**HOST, "bytes": 8e9}]},
    "host, disk": {"tiers": [HOST, DISK]},
    "host, disk, store": {"tiers": [HOST, DISK, STORE], "replicas": 2},
    "lmcache": {"tiers": [{**HOST, **LMCACHE}, {**DISK, **LMCACHE}]},
    "lmcache, store": {"tiers": [{**STORE, **LMCACHE}], "replicas": 2},
    "store": {"tiers": [{**STORE, **MOONCAKE}], "replicas": 3},
    "drafts": {
        "tiers": [HOST, STORE],
        "replicas": 2,
        "speculative": {"method": "ngram", "num_speculative_tokens": 3, "acceptance": 0.5},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_jumping_is_stepping(name: str) -> None:
    case = dict(CASES[name])
    tiers = case.pop("tiers")
    one, plain = run(tiers, **case), run(tiers, aggregate=False, **case)
    np.testing.assert_array_equal(one.raw.end_s, plain.raw.end_s)
    np.testing.assert_array_equal(one.raw.cached_tokens, plain.raw.cached_tokens)
    assert one.result["server"] == plain.result["server"]
    assert one.result["totals"]["completed"] == 100
    assert external(one) > 0.05
    assert external(one) == pytest.approx(sum(rates(one).values()))


def test_what_one_replica_wrote_another_finds() -> None:
    """Turns of a conversation are dealt in turn: each is computed elsewhere than the one before."""
    alone = run([{**HOST, "bytes": 60e9}], replicas=3)
    for store in ([{**STORE, **MOONCAKE}], [HOST, STORE], [{**STORE, **LMCACHE}]):
        shared = run(store, replicas=3)
        assert external(shared) > external(alone) + 0.2
        tokens = shared.raw.prompt_tokens[np.asarray(shared.workload.turn) > 0].sum()
        assert shared.raw.host_hit_tokens + shared.raw.hit_tokens < tokens  # nothing that is not written yet


def test_replicas_wait_for_each_other_at_a_store() -> None:
    slow = {**STORE, "bytes_per_s": 0.5e9, **MOONCAKE}
    fast = {**slow, "bytes_per_s": 50e9}
    ttft = [run([tier], replicas=3).result["metrics"]["ttft_ms"]["mean"] for tier in (slow, fast)]
    assert ttft[0] > 1.5 * ttft[1]


def test_a_lower_tier_holds_what_the_host_lost() -> None:
    host, both = run([{"kind": "host", "bytes": 0.5e9}]), run([{"kind": "host", "bytes": 0.5e9}, DISK])
    assert external(both) > external(host) + 0.1
    assert rates(both)["nvme"] > 0.1
    written = {tier["kind"]: tier["written_bytes"] for tier in both.result["server"]["kv_tiers"]}
    assert written["host"] > written["nvme"] > 0  # through to all tiers; what the disk still has is not written again


def test_loads_in_the_step_keep_others_waiting() -> None:
    """LMCache's copies stop the step, those in the background only the request."""
    slow = {"kind": "host", "bytes": 60e9, "bytes_per_s": 2e9}
    stops, aside = run([{**slow, **LMCACHE}]), run([slow])
    assert stops.result["metrics"]["itl_ms"]["p99"] > 1.5 * aside.result["metrics"]["itl_ms"]["p99"]


def test_stages_and_saved_caches_stand_beside_tiers() -> None:
    load = {**CHATS, "sessions": None, "shared_prefix": {"groups": 30, "tokens": 1600}, "requests": 40}
    del load["sessions"]
    found = run([{**HOST, "bytes": 20e9}], {"stages": [load, load]})
    first, second = (stage["server"]["kv_tiers"][0]["hit_rate"] for stage in found.result["stages"])
    assert second > first


def test_launch_commands_say_tiers() -> None:
    def tiers(args: Any, **pool: Any) -> tuple[tuple[str, float], ...]:
        fields = scenario(None, engine_args=args, **pool)
        notes = prepare(load_scenario(fields)).assumptions
        return tuple(note for note in notes if note.startswith(("KV tiers", "KV offload")))  # type: ignore[misc]

    lmcache = '{"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}'
    serve = f"vllm serve meta-llama/Llama-3.1-8B-Instruct --kv-transfer-config '{lmcache}'"
    (said,) = tiers(serve)
    assert "5 GiB host" in str(said)
    assert "chunks of 256 tokens" in str(said)
    sizes = "LMCACHE_MAX_LOCAL_CPU_SIZE=40 LMCACHE_LOCAL_DISK=/d LMCACHE_MAX_LOCAL_DISK_SIZE=100"
    (said,) = tiers(f"LMCACHE_CHUNK_SIZE=512 {sizes} {serve}")
    assert "40 GiB host" in str(said)
    assert "100 GiB nvme at 5 GB/s" in str(said)
    assert "chunks of 512 tokens" in str(said)
    with pytest.raises(InputError, match="remote store lm://host:65432 is of unknown size"):
        tiers(f"LMCACHE_REMOTE_URL=lm://host:65432 {serve}")
    (said,) = tiers(f"LMCACHE_REMOTE_URL=lm://host:65432 {serve}", kv_tiers=[STORE])
    assert "shared at 20 GB/s" in str(said)
    (said,) = tiers("vllm serve m --kv-offloading-size 8".replace(" m ", " meta-llama/Llama-3.1-8B-Instruct "))
    assert "KV offload: 4,096 blocks" in str(said)
    extra = '{"kv_connector": "LMCacheConnectorV1", "kv_connector_extra_config": {"lmcache.max_local_cpu_size": 7}}'
    (said,) = tiers(f"vllm serve meta-llama/Llama-3.1-8B-Instruct --kv-transfer-config '{extra}'")
    assert "7 GiB host" in str(said)


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"tiers": [DISK, HOST]}, "from the nearest to the farthest"),
        ({"tiers": [HOST, HOST]}, "from the nearest to the farthest"),
        ({"tiers": [DISK]}, "brings everything by way of host memory"),
        ({"tiers": [HOST, DISK], "engine": "vllm@0.19.1"}, "has host memory alone"),
        ({"tiers": [{**HOST, "write": "back"}]}, "writes every block through"),
        ({"tiers": [{**HOST, **LMCACHE}, {**STORE, **MOONCAKE}]}, "name the connectors"),
        ({"tiers": [{**HOST, **MOONCAKE}]}, "in one shared store"),
        ({"tiers": [{**HOST, "connector": "DynamoConnector"}]}, "by DynamoConnector are not modelled"),
        ({"tiers": [{**HOST, "bytes": 1e5}]}, "hold less than one block"),
        ({"tiers": [HOST], "offload": {"kv_offloading_size": 8}}, "both are given"),
        ({"tiers": [HOST], "engine": "tgi", "engine_args": {}}, "KV offload is modelled for"),
        ({"tiers": [{**HOST, **LMCACHE}], "engine_args": {**SMALL, "lmcache_chunk_size": 100}}, "no whole number of blocks"),
    ],
)
def test_tiers_that_cannot_be(pool: dict[str, Any], said: str) -> None:
    fields = scenario(pool.pop("tiers"), **pool)
    with pytest.raises(InputError, match=said):
        prepare(load_scenario(fields))
