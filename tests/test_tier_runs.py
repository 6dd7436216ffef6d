"""Runs with KV caches beyond the device: host memory, disks, a store that replicas share."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from engine_models.memory.kv_tiers import KvTiers
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler
from hardware_profiles.errors import InputError
from simulator import RunResult, load_scenario, simulate
from simulator.cluster.outcome import FINISHED
from simulator.cluster.services import Fleet
from simulator.prepare import prepare
from simulator.run import _cluster
from simulator.version import build
from simulator.workload.build import build_workload
from tests.clusters import jumps_as_it_steps

CHATS: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 1.5},
    "sessions": {"turns": {"kind": "constant", "value": 5}, "think_time_s": {"kind": "constant", "value": 4}},
    "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 1500},
    "output_tokens": {"kind": "lognormal", "mean": 100, "p99": 400},
    "requests": 50,
}
SMALL = {"num_gpu_blocks_override": 900, "max_model_len": 8192}


def scenario(tiers: list[dict[str, Any]] | None, workload: dict[str, Any] | None = None, **pool: Any) -> dict[str, Any]:
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": SMALL, **pool}
    if tiers is not None:
        deployment["kv_tiers"] = tiers
    return {
        "model": deployment.pop("model", "meta-llama/Llama-3.1-8B-Instruct"),
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
KVBM = {"connector": "DynamoConnector"}


RADIX = {"engine": "sglang", "engine_args": {"max_total_tokens": 14400, "context_length": 8192, "page_size": 16}}


def test_the_write_policy_says_what_the_host_gets() -> None:
    def written(policy: str) -> float:
        found = run([{**HOST, "bytes": 60e9, "write": policy}], **RADIX).result["server"]["kv_tiers"][0]
        return float(found["written_bytes"])

    through, selective, back = (written(policy) for policy in ("through", "selective", "back"))
    assert selective < back < through


def test_a_store_behind_radix_trees_is_shared_and_read_ahead() -> None:
    tiers = [{**HOST, "bytes": 4e9}, STORE]
    alone = external(run(tiers[:1], replicas=3, **RADIX))

    def shared(policy: str, rate: float = 20e9) -> RunResult:
        args = {**RADIX["engine_args"], "hicache_storage_prefetch_policy": policy}
        return run([tiers[0], {**STORE, "bytes_per_s": rate}], replicas=3, engine="sglang", engine_args=args)

    patient, hasty = shared("wait_complete"), shared("best_effort")
    assert rates(patient)["shared"] > 0.2
    assert external(patient) > alone + 0.2
    assert external(hasty) < external(patient)
    slow = 0.2e9
    waits = [shared(policy, slow).result["metrics"]["ttft_ms"]["p99"] for policy in ("wait_complete", "timeout")]
    assert waits[0] > waits[1]  # patience has an end


def test_what_a_prompt_writes_at_its_end_comes_before_what_others_do_later() -> None:
    """Of a store behind radix trees, in runs by runs of steps too: prompts in flight end before those that began behind them."""
    burst = {
        "arrivals": {"kind": "poisson", "rate": 25},
        "prompt_tokens": {"kind": "lognormal", "mean": 1200, "p99": 5000, "max": 6000},
        "output_tokens": {"kind": "constant", "value": 30},
        "shared_prefix": {"groups": 4, "tokens": 800},
        "duration": 3,
    }
    jumps_as_it_steps({**scenario([HOST, STORE], burst, replicas=4, **RADIX), "seed": 3})


def test_hicache_flags_say_tiers() -> None:
    def said(args: str, **pool: Any) -> str:
        serve = f"python -m sglang.launch_server --model-path meta-llama/Llama-3.1-8B-Instruct {args}"
        notes = prepare(load_scenario(scenario(None, engine="sglang", engine_args=serve, **pool))).assumptions
        return next((note for note in notes if note.startswith("hierarchical cache")), "")

    assert said("--max-total-tokens 10000") == ""
    assert "20,000 tokens in host memory, written through" in said("--max-total-tokens 10000 --enable-hierarchical-cache")
    ratio = said("--max-total-tokens 10000 --enable-hierarchical-cache --hicache-ratio 3 --hicache-write-policy write_back")
    assert "30,000 tokens in host memory, written back" in ratio
    assert "762,939 tokens" in said("--enable-hierarchical-cache --hicache-size 100 --hicache-io-backend direct")
    stored = "--enable-hierarchical-cache --hicache-storage-backend mooncake --hicache-storage-prefetch-policy wait_complete"
    with pytest.raises(InputError, match="size of the storage backend mooncake is unknown"):
        said(stored)
    assert "shared at 20 GB/s, read ahead (wait_complete)" in said(stored, kv_tiers=[STORE])
    drafts = {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.5}
    assert "in host memory, written through" in said("--enable-hierarchical-cache", speculative=drafts)
    with pytest.raises(InputError, match="which is off"):
        said("--enable-hierarchical-cache --disable-radix-cache")
    with pytest.raises(InputError, match="by way of host memory alone"):
        said("", kv_tiers=[DISK])


RANKS = {"model": "mistralai/Mixtral-8x7B-Instruct-v0.1", "data_parallel": 4, "expert_parallel": 4, "tensor_parallel": 1}
"""Ranks with attention and a KV cache of their own, which share the experts."""
RADIX_OF_RANKS = {**RANKS, **RADIX, "engine_args": {**RADIX["engine_args"], "max_total_tokens": 4800}}
OF_RANKS = {**RANKS, "engine_args": {"num_gpu_blocks_override": 400, "max_model_len": 6144}}
CASES: dict[str, dict[str, Any]] = {
    "host": {"tiers": [{**HOST, "bytes": 8e9}]},
    "host, disk": {"tiers": [HOST, DISK]},
    "host, disk, store": {"tiers": [HOST, DISK, STORE], "replicas": 2},
    "lmcache": {"tiers": [{**HOST, **LMCACHE}, {**DISK, **LMCACHE}]},
    "lmcache, store": {"tiers": [{**STORE, **LMCACHE}], "replicas": 2},
    "store": {"tiers": [{**STORE, **MOONCAKE}], "replicas": 3},
    "block manager": {"tiers": [{**HOST, **KVBM}, {**DISK, **KVBM, "write": "through"}]},
    "radix": {"tiers": [{**HOST, "bytes": 8e9}], **RADIX},
    "radix, selective": {"tiers": [{**HOST, "bytes": 8e9, "write": "selective"}], **RADIX},
    "radix, back": {"tiers": [{**HOST, "bytes": 4e9, "write": "back"}], **RADIX},
    "radix, disk": {"tiers": [{**HOST, "bytes": 4e9}, DISK], **RADIX},
    "radix, store": {"tiers": [{**HOST, "bytes": 4e9}, STORE], "replicas": 2, **RADIX},
    "ranks": {"tiers": [{**HOST, "bytes": 8e9}], **OF_RANKS},
    "ranks, lmcache": {"tiers": [{**HOST, **LMCACHE}, {**DISK, **LMCACHE}], **OF_RANKS},
    "ranks, store": {"tiers": [{**STORE, **MOONCAKE}], "replicas": 2, **OF_RANKS},
    "ranks, radix": {"tiers": [{**HOST, "bytes": 8e9}], **RADIX_OF_RANKS},
    "ranks, radix, disk": {"tiers": [{**HOST, "bytes": 4e9}, DISK], **RADIX_OF_RANKS},
    "ranks, radix, store": {"tiers": [{**HOST, "bytes": 4e9}, STORE], "replicas": 2, **RADIX_OF_RANKS},
    "drafts": {
        "tiers": [HOST, STORE],
        "replicas": 2,
        "speculative": {"method": "ngram", "num_speculative_tokens": 3, "acceptance": 0.5},
    },
}


QUICK = ("host, disk", "host, disk, store", "lmcache", "radix, back", "radix, store", "ranks, radix", "ranks, store")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_jumping_is_stepping(name: str) -> None:
    case = dict(CASES[name])
    tiers = case.pop("tiers")
    one, plain = run(tiers, **case), run(tiers, aggregate=False, **case)
    np.testing.assert_array_equal(one.raw.end_s, plain.raw.end_s)
    np.testing.assert_array_equal(one.raw.cached_tokens, plain.raw.cached_tokens)
    assert one.result["server"] == plain.result["server"]
    assert one.result["totals"]["completed"] == 50
    assert external(one) > 0.05
    assert external(one) == pytest.approx(sum(rates(one).values()))


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ranks")])
def test_ranks_hold_nothing_when_all_requests_have_ended(name: str) -> None:
    case = dict(CASES[name])
    checked = load_scenario(scenario(case.pop("tiers"), **case))
    work = build_workload(checked.workload, seed=checked.seed, base_dir=None)
    cluster = _cluster(prepare(checked), work, aggregate=True, should_stop=None)
    result = cluster.run()
    assert (result.status == FINISHED).all()
    for rank in cluster.ranks:
        assert not rank.scheduler.has_work()
        assert rank.scheduler.kv.free_blocks == rank.scheduler.kv.capacity_blocks


def test_a_filter_keeps_from_the_disk_what_has_come_once() -> None:
    def written(write: str, workload: dict[str, Any]) -> float:
        tiers = [{"kind": "host", "bytes": 0.5e9, **KVBM}, {**DISK, **KVBM, "write": write}]
        return float(run(tiers, workload).result["server"]["kv_tiers"][1]["written_bytes"])

    once = {**CHATS, "sessions": {"turns": 1}, "requests": 20}
    assert written("selective", once) == 0 < written("through", once)
    assert 0 < written("selective", CHATS) < 0.9 * written("through", CHATS)


def pools(*tiers: dict[str, Any], **second: Any) -> dict[str, Any]:
    each = {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": SMALL}
    two = [{"name": "a", **each}, {"name": "b", **each, **second}]
    deployment = {"pools": two, "kv_tiers": list(tiers) or None}
    return {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": CHATS}


STORED = {**STORE, **MOONCAKE}


def test_pools_share_a_store_as_replicas_do() -> None:
    two = run([STORED], replicas=2)
    apart = simulate(pools(STORED))
    np.testing.assert_array_equal(apart.raw.cached_tokens, two.raw.cached_tokens)
    np.testing.assert_array_equal(apart.raw.end_s, two.raw.end_s)


@pytest.mark.slow
def test_a_store_of_several_pools_of_unlike_devices_jumps_as_it_steps() -> None:
    unlike = pools(STORED, hardware="h200-sxm-141gb")
    one, plain = simulate(unlike), simulate(unlike, aggregate=False)
    np.testing.assert_array_equal(one.raw.end_s, plain.raw.end_s)
    assert external(one) > 0.2
    own = {**pools(), "deployment": {"pools": [{**pool, "kv_tiers": [STORED]} for pool in pools()["deployment"]["pools"]]}}
    assert external(simulate(own)) < external(one) - 0.1


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"tensor_parallel": 2}, "cannot share a store of KV blocks: tensor parallelism 1 and 2"),
        ({"kv_cache": "fp8"}, "cannot share a store of KV blocks: KV format"),
    ],
)
def test_pools_that_cannot_share_a_store(second: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(load_scenario(pools(STORED, **second)))


@pytest.mark.parametrize(
    ("own", "store", "where"),
    [
        (None, {**STORE, "write": "back"}, "deployment.kv_tiers"),
        (HOST, {**STORE, "write": "back"}, "deployment.kv_tiers"),
        (HOST, {**STORE, "connector": "nobody's"}, "deployment.kv_tiers"),
        ({**HOST, "write": "back"}, STORE, "deployment.pools.0.kv_tiers"),
    ],
)
def test_an_error_of_a_tier_stands_at_the_tiers_that_it_is_about(
    own: dict[str, Any] | None, store: dict[str, Any], where: str
) -> None:
    with pytest.raises(InputError) as found:
        prepare(load_scenario(unlike(store, own)))
    assert found.value.where == where


QWEN = "Qwen/Qwen2.5-7B-Instruct"


def unlike(store: dict[str, Any], own: dict[str, Any] | None = None, **second: Any) -> dict[str, Any]:
    """Two pools, of which the second differs, behind classes of two models; with `own` host memory in front of the store."""
    data = pools(store, **second)
    if own is not None:
        for pool in data["deployment"]["pools"]:
            pool["kv_tiers"] = [own]
    if "model" in second:
        kinds = [{**CHATS, "name": "l"}, {**CHATS, "name": "q", "model": second["model"]}]
        data["workload"] = {"classes": [{k: v for k, v in each.items() if k != "requests"} for each in kinds], "requests": 100}
    return data


APART: dict[str, dict[str, Any]] = {
    "mooncake": unlike(STORED, model=QWEN),
    "lmcache": unlike({**STORE, **LMCACHE}, model=QWEN, tensor_parallel=2),
    "lmcache, ranks": unlike({**STORE, **LMCACHE}, tensor_parallel=2),
    "native, stages": unlike(STORE, HOST, pipeline_parallel=2),
    "radix": unlike(STORE, {**HOST, "bytes": 2.2e9}, model=QWEN, **RADIX),
}
APART["radix"]["deployment"]["pools"][0] |= RADIX


QUICK_APART = ("mooncake", "radix")


@pytest.mark.parametrize(
    "name", [name if name in QUICK_APART else pytest.param(name, marks=pytest.mark.slow) for name in APART]
)
def test_pools_whose_blocks_are_told_apart_share_the_room_of_a_store(name: str) -> None:
    data = APART[name]
    small = [{**data["deployment"]["kv_tiers"][0], "bytes": 4e9}]
    jumps_as_it_steps({**data, "deployment": {**data["deployment"], "kv_tiers": small}})
    said = " ".join(prepare(load_scenario(data)).assumptions)
    assert "share the room and the rate of the store, and no block in it" in said
    endless = {**data["deployment"]["kv_tiers"][0], "bytes": 1e15, "bytes_per_s": 1e15}
    own = [{**pool, "kv_tiers": [*pool.get("kv_tiers", ()), endless]} for pool in data["deployment"]["pools"]]
    one = simulate({**data, "deployment": {**data["deployment"], "kv_tiers": [endless]}})
    two = simulate({**data, "deployment": {"pools": own}})
    np.testing.assert_array_equal(one.raw.cached_tokens, two.raw.cached_tokens)
    np.testing.assert_array_equal(one.raw.end_s, two.raw.end_s)
    few = {**endless, "bytes": 1.2e9 if name in ("mooncake", "lmcache") else 3e9}  # too little for both, and not for one
    own = [{**pool, "kv_tiers": [*pool.get("kv_tiers", ()), few]} for pool in data["deployment"]["pools"]]
    one, two = (simulate({**data, "deployment": each}) for each in ({**data["deployment"], "kv_tiers": [few]}, {"pools": own}))
    assert external(one) < external(two)


def test_engines_share_no_store_and_empty_tiers_are_told() -> None:
    data = unlike(STORE, HOST, **RADIX)
    with pytest.raises(InputError, match="cannot share a store of KV blocks: engine vllm and sglang"):
        prepare(load_scenario(data))
    found = prepare(load_scenario(scenario([{"kind": "host", "bytes": 0}])))
    assert "a tier of kind: host of 0 bytes is none: no KV block is kept there" in found.assumptions
    trtllm = {"engine": "trtllm", "tensor_parallel": 2, "engine_args": {}}
    shares = "(one of 2 equal parts of the tier, 1 GB; host_cache_size counts bytes of a rank)"
    assert shares in " ".join(prepare(load_scenario(scenario([HOST], **trtllm))).assumptions)


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


def test_ranks_share_a_store_and_not_their_hosts() -> None:
    """Turns of a session go to any rank: in a store each finds what another wrote, in endless host memory only its own."""
    endless = {"bytes": 1e15, "bytes_per_s": 1e15}
    for own, shared in (
        (OF_RANKS, [{"kind": "shared", **endless, **MOONCAKE}]),
        (RADIX_OF_RANKS, [{"kind": "host", **endless}, {"kind": "shared", **endless}]),
    ):
        hosts, store = run([{"kind": "host", **endless}], **own), run(shared, **own)
        assert len(set(store.requests["instance_id"].tolist())) == 4
        assert hosts.result["server"]["prefix_cache_hit_rate"] + external(hosts) < 0.35
        assert store.result["server"]["prefix_cache_hit_rate"] + external(store) > 0.45


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
    kvbm = '{"kv_connector": "DynamoConnector", "kv_connector_module_path": "kvbm.vllm_integration.connector"}'
    sizes = "DYN_KVBM_CPU_CACHE_GB=100 DYN_KVBM_DISK_CACHE_GB=200"
    (said,) = tiers(f"{sizes} vllm serve meta-llama/Llama-3.1-8B-Instruct --kv-transfer-config '{kvbm}'")
    assert "93.13 GiB host" in str(said)
    assert "186.3 GiB nvme at 5 GB/s" in str(said)
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
        ({"tiers": [{**HOST, "connector": "FlexKVConnectorV1"}]}, "by FlexKVConnectorV1 are not modelled"),
        ({"tiers": [{**STORE, **KVBM}]}, "with host memory and disks behind it"),
        ({"tiers": [{**HOST, **KVBM, "write": "selective"}]}, "writes every block through"),
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


@pytest.mark.parametrize("with_tier", [0, 1])
@pytest.mark.parametrize("roles", [("mixed", "mixed"), ("prefill", "decode")])
def test_the_tiers_of_any_pool_are_told(roles: tuple[str, str], with_tier: int) -> None:
    pool = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
    both: list[dict[str, Any]] = [{"name": f"pool-{n}", "role": role, **pool} for n, role in enumerate(roles)]
    load = {"arrivals": {"kind": "poisson", "rate": 4}, "prompt_tokens": 400, "output_tokens": 4, "duration": 3}
    scenario = {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": {"pools": both}, "workload": load}
    assert "kv_tiers" not in simulate(scenario).result["server"]
    both[with_tier]["offload"] = {"kv_offloading_size": 8}
    (tier,) = simulate(scenario).result["server"]["kv_tiers"]
    assert tier["kind"] == "host"
    assert tier["written_bytes"] > 0


def test_only_prompts_that_are_computed_reserve_blocks_before_loads() -> None:
    """With drafts, while memory is short: whoever has lost it in the midst of its prompt is none of them."""
    flags = {"kv_offloading_size": 4, "num_gpu_blocks_override": 200, "max_model_len": 3000, "max_num_batched_tokens": 64}
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "acceptance": 0.5}
    pool = {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": flags, "speculative": drafts}
    model = "meta-llama/Llama-3.1-8B-Instruct"
    scheduler = prepare(load_scenario({"model": model, "deployment": pool, "workload": CHATS})).plan.scheduler("step")
    assert isinstance(scheduler, ContinuousScheduler)
    draw, flight, lost_midway = Random(0), list[Batch](), 0
    for step in range(2000):
        if step % 3 == 0 and step < 300:
            seq = Sequence(step, draw.randint(50, 700), 300, float(step))
            seq.acceptance = lambda verification: 2
            scheduler.add(seq)
        begun = set(scheduler._prompts)
        batch = scheduler.schedule(float(step))
        if batch is not None:
            lost_midway += len(begun.intersection(batch.preempted))
            flight.append(batch)
        assert scheduler._prompts <= scheduler.partial.keys()
        if len(flight) > 1 or (flight and batch is None):
            scheduler.settle(flight.pop(0))
    assert lost_midway > 2


def around_a_store(seed: int) -> dict[str, Any]:
    """Prefill and decode servers of one model and servers of another around one store, two of which are lost."""
    each = {"engine": "vllm", "hardware": "h100-sxm-80gb", "gpus_per_node": 1, "replicas": 2}
    each["kv_tiers"] = [{**HOST, "bytes": 3e8}]
    few = {"num_gpu_blocks_override": 900, "max_model_len": 6000}
    roles = [{**each, "name": role, "role": role, "engine_args": few} for role in ("prefill", "decode")]
    other = {**each, "name": "q", "model": QWEN, "engine_args": few}
    lost = [{"at_s": s, "kind": "node", "pool": pool, "replica": 0, "for_s": 1.0} for s, pool in ((1.2, "decode"), (2.1, "q"))]
    store = {**STORE, "bytes": 2e9, "bytes_per_s": 2e9}
    around = {"kv_tiers": [store], "failures": {"events": lost, "start_up": 0.2}, "router": "least_requests"}
    kinds = [{**CHATS, "name": name, "arrivals": {"kind": "poisson", "rate": 9}} for name in ("l", "q")]
    kinds[1]["model"] = QWEN
    load = {"classes": [{k: v for k, v in kind.items() if k != "requests"} for kind in kinds], "duration": 4.0}
    client = {"retries": {"attempts": 3, "on": ["node_lost", "503"], "backoff_s": 0.2}}
    model = "meta-llama/Llama-3.1-8B-Instruct"
    deployment = {"pools": [*roles, other], **around}
    return {"model": model, "seed": seed, "deployment": deployment, "workload": load, "client": client}


@pytest.mark.parametrize("seed", range(2))
def test_nobody_looks_into_a_store_at_a_time_that_another_has_passed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked up and stored there comes in order of time, whoever does it; and what peers are to hear is told at once."""
    data = around_a_store(seed)
    jumps_as_it_steps(data)
    if build() == "compiled":  # compiled modules call their own methods, not those put in their place
        return
    latest = [0.0, 0.0]
    find, store, run_to = KvTiers.find, KvTiers.store, Fleet._run_to

    def at(now_s: float) -> None:
        assert now_s >= latest[0] - 1e-12
        latest[:] = now_s, latest[1] + 1

    def found(self: KvTiers, seq: Sequence, held_blocks: int, batch: int, now_s: float = 0.0) -> int | None:
        if self._names(seq):
            at(now_s)
        return find(self, seq, held_blocks, batch, now_s)

    def stored(self: KvTiers, seq: Sequence, known_tokens: int, batch: int, now_s: float = 0.0) -> float:
        if min(known_tokens, seq.prompt_tokens) // self.block_tokens > seq.host_blocks:
            at(now_s)
        return store(self, seq, known_tokens, batch, now_s)

    def ran(self: Fleet, number: int, to_s: float) -> None:
        run_to(self, number, to_s)
        assert not any(peer.notes for replica in self._turning for peer in replica.peers)

    monkeypatch.setattr(KvTiers, "find", found)
    monkeypatch.setattr(KvTiers, "store", stored)
    monkeypatch.setattr(Fleet, "_run_to", ran)
    simulate(data)
    assert latest[1] > 150
