"""KV blocks in host memory: what is stored, found, loaded and pushed out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_models.engines.known import parse_engine_args
from engine_models.engines.vllm_flags import FLAGS, offload_settings
from engine_models.flags import reconcile
from engine_models.memory.kv_tiers import BlockStore, FrequencyFilter, KvTiers, Level, Stored
from engine_models.memory.resumable_tiers import ResumableTiers
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import Link
from hardware_profiles.errors import InputError
from simulator import load_scenario
from simulator.prepare import prepare
from simulator.run import RunResult, simulate
from tests.effort import some

BLOCK = 16


def tier(capacity: int = 100, outputs: bool = False, further: list[Level] | None = None, **ways: bool) -> KvTiers:
    levels = [Level("host", BlockStore(capacity)), *(further or [])]
    return KvTiers(
        levels,
        BLOCK,
        unit_bytes=1000,
        rank_unit_bytes=1000,
        device_link=Link(1e6),
        stores_outputs=outputs,
        **ways,  # type: ignore[arg-type]
    )


def seq_of(keys: list[int], prompt_tokens: int, index: int = 0) -> Sequence:
    seq = Sequence(index, prompt_tokens, 100, 0.0)
    seq.keys = list(keys)
    return seq


def test_stored_blocks_are_found_a_step_later_up_to_the_first_gap() -> None:
    host = tier()
    host.store(seq_of([1, 2, 3], 60), 48, batch=4)
    again = seq_of([1, 2, 3, 9], 70, index=1)
    assert host.find(again, 0, batch=4) == 0
    assert host.find(again, 0, batch=5) == 3
    assert host.find(again, 2, batch=5) == 1
    assert host.find(seq_of([1, 8, 3], 60, index=2), 0, batch=5) == 1
    assert host.find(seq_of([], 60, index=3), 0, batch=5) == 0


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(1, 3), st.booleans()), max_size=60))
def test_stores_of_one_room_push_out_by_their_bytes(puts: list[tuple[int, int, int, bool]]) -> None:
    """Beside a list of (store, key) in order of use, of which the first go until the rest fits."""
    first, second = BlockStore(0, 30, 200), BlockStore(0, 50)
    second.beside(first)
    stores, plain, alone = (first, second), [], 0
    for which, low, count, named in puts:
        store, keys = stores[which], list(range(low, low + count))
        if named:
            store.put(keys, 0)
            for key in keys:
                if (which, key) in plain:
                    plain.remove((which, key))
                plain.append((which, key))
        else:
            store.put_private(None, count, 0)
            plain += [(which, -(alone + n + 1)) for n in range(count)]
            alone += count
        store.evict()
        while sum(stores[of].unit_bytes for of, _ in plain) > 200:
            del plain[0]
        for of, each in enumerate(stores):
            assert each.units == sum(owner == of for owner, _ in plain)
            named_there = sorted(key for owner, key in plain if owner == of and key >= 0)
            assert [key for key in range(13) if each.has(key, 0)] == named_there


def test_generated_tokens_are_stored_up_to_019_only() -> None:
    for outputs, blocks in ((False, 2), (True, 5)):
        host = tier(outputs=outputs)
        host.store(seq_of([], 40), 90, batch=0)
        assert host.blocks == blocks


def test_least_recently_used_blocks_go_first_the_end_of_a_prefix_before_its_beginning() -> None:
    host = tier(capacity=6)
    old, new = seq_of([1, 2, 3], 48, 0), seq_of([4, 5, 6], 48, 1)
    host.store(old, 48, 0)
    host.store(new, 48, 0)
    assert host.find(old, 0, 9) == 3  # used again: now `new` is the older
    host.store(seq_of([7, 8], 32, 2), 32, 0)
    assert host.blocks == 6
    assert host.find(old, 0, 9) == 3
    assert host.find(new, 0, 9) == 0  # its first two are gone
    host.find(old, 0, 9)
    host.store(seq_of([], 16 * 4, 3), 64, 0)
    assert host.find(old, 0, 9) == 2  # [3] went before [1] and [2]


def test_loads_follow_one_another_on_the_link_and_are_shared() -> None:
    host = tier()
    host.store(seq_of([1, 2, 3, 4], 64), 64, 0)
    first, second = seq_of([1, 2, 3, 4], 70, 1), seq_of([1, 2, 5], 70, 2)
    host.load(first, 0, 4, 9, now_s=10.0)
    assert first.loaded_s == pytest.approx(10.0 + 4 * 1000 / 1e6)
    assert host.find(second, 0, 9) is None  # these very blocks are under way
    host.end_load(first, 64)
    assert host.find(second, 0, 9) == 2
    host.load(second, 0, 2, 9, now_s=10.001)
    assert second.loaded_s == pytest.approx(first.loaded_s + 2 * 1000 / 1e6)


def test_a_preempted_request_finds_its_own_blocks() -> None:
    host = tier(outputs=True)
    seq = seq_of([1], 40)
    host.store(seq, 90, 0)  # one named block, four of its own
    seq.keys = [1, 11, 12, 13, 14]  # as its device cache names them when it is preempted
    seq.length = 90
    host.name(seq)
    assert host.blocks == 5
    assert host.find(seq, 0, 9) == 5


def test_what_is_further_down_comes_up_first_and_replicas_of_a_machine_queue_at_its_disk() -> None:
    def with_disk() -> KvTiers:
        disk = Level("nvme", BlockStore(100), [Link(1e5)], [Link(1e6)])
        return tier(capacity=4, further=[disk])

    one, two = with_disk(), with_disk()
    two.join(one, "nvme")
    for host in (one, two):
        host.store(seq_of([1, 2, 3, 4], 64), 64, 0, now_s=0.0)
        host.store(seq_of([5, 6, 7, 8], 64, 1), 64, 0, now_s=0.0)  # the first four are on the disk alone now
    assert one.find(seq_of([1, 2, 3, 4], 70, 2), 0, 9, now_s=0.001) == 0  # not written yet
    first, second = seq_of([1, 2, 3, 4], 70, 3), seq_of([1, 2, 3, 4], 70, 4)
    assert one.find(first, 0, 9, now_s=1.0) is None
    assert one.wake_s() == pytest.approx(1.0 + 4 * 1000 / 1e5)
    assert two.find(second, 0, 9, now_s=1.0) is None
    assert two.wake_s() == pytest.approx(1.0 + 8 * 1000 / 1e5)  # behind the other's
    one.arrived(1.04)
    assert one.find(first, 0, 9, now_s=1.04) == 4
    one.load(first, 0, 4, 9, now_s=1.04)
    assert [(level.hit_tokens, level.read_units) for level in one.levels] == [(0, 4), (64, 4)]


def test_a_chunk_is_stored_and_found_whole_and_from_the_first_on() -> None:
    host = KvTiers(
        [Level("host", BlockStore(10))], BLOCK, unit_blocks=2, unit_bytes=2000, rank_unit_bytes=2000,
        device_link=Link(1e6), stores_outputs=False, staged=False, in_step=True, from_start=True,
    )  # fmt: skip
    assert host.store(seq_of([1, 2, 3, 4, 5], 90), 80, 0) == pytest.approx(2 * 2000 / 1e6)  # the step waits for the copy
    again = seq_of([1, 2, 3, 4, 5], 90, 1)
    assert host.find(again, 0, 9) == 4
    assert host.find(again, 1, 9) == 3
    assert host.load(again, 1, 3, 9, now_s=5.0) == pytest.approx(2 * 2000 / 1e6)  # whole chunks, also what is there
    assert host.levels[0].hit_tokens == 3 * BLOCK
    assert host.find(seq_of([9, 2, 3, 4], 90, 2), 2, 9) == 2  # a chunk is named by all before its end
    assert host.find(seq_of([1, 7, 3, 4], 90, 3), 0, 9) == 0


@pytest.mark.parametrize("seed", range(5))
def test_bytes_are_conserved(seed: int) -> None:
    """What was written into a tier is there or was pushed out; never more than it holds."""
    rng = np.random.default_rng(seed)
    disk, store = (Level(kind, BlockStore(size), [Link(1e6)], [Link(1e6)]) for kind, size in (("nvme", 40), ("shared", 25)))
    tiers = tier(capacity=int(rng.integers(8, 30)), outputs=True, further=[disk, store])
    now_s = 0.0
    for batch in range(300):
        now_s += float(rng.exponential(0.02))
        tiers.arrived(now_s)
        group, blocks = int(rng.integers(8)), int(rng.integers(1, 9))
        seq = seq_of([100 * group + i for i in range(blocks)], blocks * BLOCK + 5, batch)
        found = tiers.find(seq, 0, batch, now_s)
        if found:
            tiers.load(seq, 0, found, batch, now_s)
            tiers.end_load(seq, found * BLOCK)
        before = [(level.store.units, level.written_units) for level in tiers.levels]
        tiers.store(seq, seq.length + int(rng.integers(0, 80)), batch, now_s)
        for level, (units, written) in zip(tiers.levels, before, strict=True):
            held = sum(entry.blocks if isinstance(entry, Stored) else 1 for entry in level.store._entries)
            assert held == level.store.units <= level.store.capacity_units
            assert level.store.units - units <= level.written_units - written


# Runs -------------------------------------------------------------------------------------------------------

CHAT: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {
        "engine": "vllm@0.19.1",
        "hardware": "h100-sxm-80gb",
        "engine_args": {"num_gpu_blocks_override": 1500, "max_model_len": 8192},
    },
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 1.0},
        "sessions": {"turns": {"kind": "constant", "value": 5}, "think_time_s": {"kind": "constant", "value": 4}},
        "prompt_tokens": {"kind": "lognormal", "mean": 300, "p99": 1200},
        "output_tokens": {"kind": "lognormal", "mean": 120, "p99": 500},
        "requests": 120,
    },
}


def run(offload: dict[str, Any] | None, aggregate: bool = True, seed: int = 0, **keys: Any) -> RunResult:
    deployment = {**CHAT["deployment"], **keys}
    if offload is not None:
        deployment["offload"] = offload
    return simulate({**CHAT, "deployment": deployment}, aggregate=aggregate, seed=seed)


@pytest.mark.parametrize("seed", some(range(4)))
@pytest.mark.parametrize("rate", [2e8, 6.4e10])
def test_jumping_and_stepping_agree_with_loads_under_way(seed: int, rate: float) -> None:
    offload = {"kv_offloading_size": 8.0, "bytes_per_s": rate}
    for keys in ({}, {"replicas": 2, "router": "least_requests"}, {"engine": "vllm@0.11.0"}):
        one, plain = run(offload, seed=seed, **keys), run(offload, aggregate=False, seed=seed, **keys)
        assert np.array_equal(one.raw.end_s, plain.raw.end_s, equal_nan=True)
        assert one.raw.host_hit_tokens == plain.raw.host_hit_tokens > 0
        assert np.array_equal(one.raw.cached_tokens, plain.raw.cached_tokens)
        assert (one.raw.status == 0).all()


def test_the_host_tier_gives_back_what_the_device_cache_lost() -> None:
    without, small, large = run(None), run({"kv_offloading_size": 0.01}), run({"kv_offloading_size": 64.0})
    cached = [r.raw.cached_tokens.sum() for r in (without, small, large)]
    assert cached[0] == cached[1] < cached[2]
    assert small.result["server"]["external_prefix_cache_hit_rate"] == 0
    assert large.result["server"]["external_prefix_cache_hit_rate"] > 0.2
    assert "external_prefix_cache_hit_rate" not in without.result["server"]
    ttft = [r.result["metrics"]["ttft_ms"]["mean"] for r in (without, large)]
    assert ttft[1] < ttft[0]
    roomy = run(None, engine_args={"max_model_len": 8192})
    assert cached[2] == pytest.approx(roomy.raw.cached_tokens.sum(), rel=0.05)


def test_a_load_delays_the_first_token_by_its_bytes_over_the_link() -> None:
    """Five prompts in turn on a device that holds one: the second visit of each is loaded."""
    n, tokens = 10, 4096
    scenario = {
        **CHAT,
        "deployment": {
            **CHAT["deployment"],
            "engine_args": {"num_gpu_blocks_override": 300, "max_model_len": 4600},
        },
        "workload": {
            "arrivals": {"kind": "constant", "rate": 0.05},
            "shared_prefix": {"groups": 5, "tokens": tokens},
            "prompt_tokens": 8,
            "output_tokens": 4,
            "requests": 60,
        },
    }
    times = []
    for rate in (1e9, 2e9):
        scenario["deployment"] = {
            **scenario["deployment"],
            "offload": {"kv_offloading_size": 64.0, "bytes_per_s": rate},
        }
        result = simulate(scenario)
        loaded = result.raw.cached_tokens == tokens
        assert loaded.sum() > n
        ttft = np.array(result.requests["ttft_ms"])[loaded]
        times.append(float(np.median(ttft[-20:])))
    per_token = prepare_bytes_per_token(scenario)
    assert times[0] - times[1] == pytest.approx(tokens * per_token * (1 / 1e9 - 1 / 2e9) * 1e3, rel=1e-6)


def prepare_bytes_per_token(scenario: dict[str, Any]) -> float:
    from simulator.config.load import load_scenario

    return prepare(load_scenario(scenario)).plan.memory.kv_bytes_per_token


def test_preempted_requests_come_back_from_the_host() -> None:
    args = {"num_gpu_blocks_override": 420, "max_model_len": 6000}
    without, with_host = run(None, engine_args=args), run({"kv_offloading_size": 64.0}, engine_args=args)
    assert without.raw.preemptions.sum() > 0
    assert (with_host.raw.status == 0).all()
    assert with_host.raw.end_of_run_s <= without.raw.end_of_run_s


def test_speculation_and_offload_go_together() -> None:
    drafts = {"method": "eagle3", "num_speculative_tokens": 2, "acceptance": 0.6}
    result = run({"kv_offloading_size": 64.0}, speculative=drafts)
    assert (result.raw.status == 0).all()
    assert result.result["server"]["external_prefix_cache_hit_rate"] > 0.2


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        ({"engine_args": {"enable_prefix_caching": False}}, "prefix cache, which is off"),
        ({"engine_args": {"kv_offloading_backend": "lmcache"}}, "a process of its own since vLLM 0.24"),
        ({"engine": "tgi"}, "not for tgi"),
        ({"offload": {"kv_offloading_size": 0.001}}, "less than one block"),
    ],
)
def test_what_is_not_modelled_is_refused(deployment: dict[str, Any], message: str) -> None:
    pool = {"engine": "vllm", "hardware": "h100-sxm-80gb", "offload": {"kv_offloading_size": 8}, **deployment}
    with pytest.raises(InputError, match=message):
        simulate({**CHAT, "deployment": pool})


@pytest.mark.parametrize(
    "own",
    [
        {"engine": "vllm@0.30", "offload": {"kv_offloading_size": 8}},
        {"engine": "vllm", "kv_tiers": [{"kind": "host", "bytes": 10**9, "connector": "LMCacheConnectorV1"}]},
    ],
)
def test_sliding_windows_are_refused_where_nobody_keeps_them(own: dict[str, Any]) -> None:
    pool = {"hardware": "h100-sxm-80gb", **own}
    with pytest.raises(InputError, match="sliding windows"):
        simulate({**CHAT, "model": "google/gemma-3-4b-it", "deployment": pool})


def test_vllms_flags_say_the_size() -> None:
    config = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"cpu_bytes_to_use": 8 << 30},
    }
    assert offload_settings(config) == {"kv_offloading_size": 8.0}
    assert offload_settings({"kv_connector": "LMCacheConnectorV1"}) is None
    flags = parse_engine_args("vllm", "--kv-offloading-size 8")
    assert reconcile(FLAGS, {"engine": "vllm", "offload": {"bytes_per_s": 1e9}}, flags, given={"offload"}) == {
        "offload": {"bytes_per_s": 1e9, "kv_offloading_size": 8.0}
    }
    with pytest.raises(InputError, match="contradicts the pool's key `offload`"):
        reconcile(FLAGS, {"engine": "vllm", "offload": {"kv_offloading_size": 4.0}}, flags, given={"offload"})


def offloading(version: str, **extra: Any) -> dict[str, Any]:
    config = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
    args = {**CHAT["deployment"]["engine_args"], "kv_transfer_config": config}
    return {**CHAT, "deployment": {"engine": version, "hardware": "h100-sxm-80gb", "engine_args": args}}


def test_host_memory_may_be_counted_in_blocks_of_its_own() -> None:
    block_bytes = 16 * 131072
    stated = offloading("vllm@0.11.1", cpu_bytes_to_use=2000 * block_bytes)
    one, other = (simulate(data).result for data in (stated, offloading("vllm@0.11.1", num_cpu_blocks=2000)))
    assert one["server"] == other["server"]
    assert one["server"]["external_prefix_cache_hit_rate"] > 0
    fours = simulate(offloading("vllm@0.11.1", num_cpu_blocks=500, block_size=64)).result
    assert fours["server"]["kv_tiers"][0]["written_bytes"] % (4 * block_bytes) == 0
    found = prepare(load_scenario(offloading("vllm", cpu_bytes_to_use=8e9, eviction_policy="arc"))).warnings
    assert any("kv_connector_extra_config `eviction_policy` is not modelled" in text for text in found)
    for data, words in (
        (offloading("vllm", num_cpu_blocks=2000), "takes its host memory in bytes since vLLM 0.14"),
        (offloading("vllm", cpu_bytes_to_use=8e9, block_size=24), "chunks of 24 tokens"),
        (offloading("vllm@0.11.1", num_cpu_blocks=0.5), "no number of blocks"),
    ):
        with pytest.raises(InputError, match=words):
            prepare(load_scenario(data))


def test_the_filter_lets_in_what_has_come_twice_of_late() -> None:
    often = FrequencyFilter()
    assert [often.passes(1, at_s) for at_s in (0.0, 10.0, 20.0)] == [False, True, True]  # 1, 2, 4
    assert not often.passes(2, 0.0)
    assert not often.passes(2, 600.0)  # forgotten: 1 - 1
    assert often.passes(2, 700.0)
    assert often.passes(1, 1900.0)  # (4 - 3) 2
    assert not often.passes(1, 3100.0)  # 2 - 2


def test_tiers_in_order_are_asked_for_what_follows_the_nearer_hit() -> None:
    disk = Level("nvme", BlockStore(100), [Link(1e6)], [Link(1e6)], FrequencyFilter())
    tiers = tier(3, further=[disk], staged=False, in_order=True)
    for index in (0, 1):  # the second time the host has forgotten them
        tiers.store(seq_of([1, 2, 3, 4], 64, index), 64, index, now_s=index)
        tiers.store(seq_of([7, 8, 9], 48, index + 2), 48, index, now_s=index)
    tiers.store(seq_of([1, 3], 32, 5), 32, 5, now_s=5.0)
    asks = seq_of([1, 2, 3, 4], 70, 6)
    assert tiers.find(asks, 0, batch=9, now_s=9.0) == 4
    assert asks.host_blocks == 4  # what was found is not stored again
    tiers.load(asks, 0, 4, 9, 9.0)
    assert [level.read_units for level in tiers.levels] == [1, 3]  # 3 is in the host too, behind what the disk has
    assert tiers.find(seq_of([5], 70, 7), 0, 9, 9.0) == 0


def resumable(level: Level, asked: int | None = None) -> ResumableTiers:
    """A tier that takes two units before a place."""
    return ResumableTiers(
        [level],
        BLOCK,
        unit_bytes=1000,
        rank_unit_bytes=1000,
        device_link=Link(1e6),
        stores_outputs=False,
        needed_units=2,
        asked_units=asked,
        side_units=1.0,
    )


def test_what_one_stores_of_windows_in_a_shared_store_another_resumes_from() -> None:
    def of_a_store(capacity: int) -> ResumableTiers:
        return resumable(Level("shared", BlockStore(capacity), [Link(1e9)], [Link(1e9)]))

    keeper, one, other = (of_a_store(100) for _ in range(3))
    for each in (one, other):
        each.join(keeper, "shared")
    one.store(seq_of(list(range(1, 11)), 160), 160, 0)
    assert other.find(seq_of([*range(1, 11), 41], 180, 1), 0, 1, 9.0) == 9


def test_of_what_is_pushed_out_the_places_are_forgotten() -> None:
    few = resumable(Level("host", BlockStore(20)))
    for number in range(30):  # two prompts have room; the first comes back within another, without its place
        few.store(seq_of(list(range(100 * number, 100 * number + 10)), 160, number), 160, number)
    few.store(seq_of([*range(10), 9001, 9002, 9003, 9004], 224, 30), 224, 30)
    assert few.find(seq_of([*range(10), 9011], 176, 31), 0, 32) == 0


def test_beside_windows_a_prefix_is_found_up_to_a_place_that_can_be_resumed_from() -> None:
    """Worked by hand: two blocks of one window before a place, which is that before a prompt's last token."""
    tiers = resumable(Level("host", BlockStore(100)))
    tiers.store(seq_of(list(range(1, 11)), 160), 160, 0)
    assert tiers.blocks == 10 + 2  # the tenth block ends behind the place, which is that of nine: the eighth and the ninth
    assert tiers.find(seq_of([1, 2, 3, 4, 5, 31, 32], 112, 1), 0, 1) == 0  # it shares five
    again = seq_of([*range(1, 11), 41], 180, 2)
    assert tiers.find(again, 0, 1) == 9
    assert tiers.find(again, 4, 1) == 5
    tiers.load(again, 4, 5, 1, 3.0)
    assert again.loaded_s == pytest.approx(3.007)
    tiers.end_load(again, 9 * BLOCK)
    assert tiers.find(again, 8, 1) == 1  # of the windows the device has what stands before its hit
    tiers.load(again, 8, 1, 1, 4.0)
    assert again.loaded_s == pytest.approx(4.002)
    tiers.end_load(again, 9 * BLOCK)
    seen = seq_of([1, 2, 3, 4, 5, 31, 32], 112, 1)
    seen.junction_tokens = 5 * BLOCK  # where the cache of the device saw that the two part
    tiers.store(seen, 112, 1)
    assert tiers.find(seq_of([1, 2, 3, 4, 5, 51, 52], 112, 3), 0, 2) == 5
    tiers.store(seq_of([61, 62, 63], 48, 4), 48, 2)
    assert tiers.find(seq_of([61, 71, 72], 48, 5), 0, 3) == 1  # what begins the prompt needs no whole window


def test_beside_windows_what_is_being_stored_is_waited_for_if_it_would_be_loaded() -> None:
    tiers = resumable(Level("host", BlockStore(100)))
    first = seq_of(list(range(1, 11)), 160)
    tiers.store(first, 160, batch=0)
    assert tiers.find(seq_of([*range(1, 11), 41], 180, 1), 0, batch=0) is None
    assert tiers.find(seq_of([1, 2, 3, 4, 5, 31, 32], 112, 2), 0, batch=0) == 0  # none of its places is among them
    longer = seq_of([*range(1, 11), 41, 42, 43, 44], 224, 3)
    tiers.store(longer, 224, batch=1)
    assert tiers.find(seq_of([*range(1, 11), 41, 51], 192, 4), 0, batch=1) == 9  # the unit behind the place is being stored
    assert tiers.pending(1)
    assert tiers.find(longer, 0, batch=1) is None  # it is stored itself
    assert tiers.find(longer, 0, batch=2) == 13
    assert not tiers.pending(2)


def test_beside_windows_more_units_may_be_asked_for_than_are_stored() -> None:
    """A window of one token more than its blocks: there are enough only where they follow what is held."""
    tiers = resumable(Level("host", BlockStore(100)), asked=3)
    tiers.store(seq_of(list(range(1, 11)), 160), 160, batch=0)
    again = seq_of([*range(1, 11), 41], 180, 1)
    assert tiers.find(again, 0, batch=1) == 0
    assert tiers.find(again, 7, batch=1) == 2
