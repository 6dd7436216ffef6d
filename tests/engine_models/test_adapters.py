"""LoRA adapters: which requests name them, who may run beside whom, their memory and price, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from engine_models.cost.adapters import MODULES, modules_of
from engine_models.engines.known import parse_engine_args
from engine_models.engines.lmdeploy_flags import FLAGS as LMDEPLOY_FLAGS
from engine_models.engines.sglang_flags import FLAGS as SGLANG_FLAGS
from engine_models.engines.vllm_flags import FLAGS as VLLM_FLAGS
from engine_models.flags import reconcile
from engine_models.memory.block_tree import BlockTree
from engine_models.memory.block_trie import TrieBlocks
from engine_models.memory.paged_kv import PagedKV
from engine_models.memory.radix import RadixPool
from engine_models.model.architecture import load_architecture
from engine_models.parts.adapters import AdapterLimits, AdapterSlots
from engine_models.parts.batch import AdapterUse, Batch, ContinuousRules
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.adapted import AdaptedScheduler
from engine_models.schedulers.alternating import AlternatingRules, AlternatingScheduler
from engine_models.schedulers.continuous import ContinuousScheduler
from engine_models.schedulers.memory_then_tokens import (
    FIRST_COME,
    GUARANTEED,
    UTILIZATION,
    TwoPassRules,
    TwoPassScheduler,
)
from engine_models.schedulers.memory_then_tokens_adapted import AdaptedTwoPassScheduler
from engine_models.schedulers.prefill_first import PrefillFirstRules, PrefillFirstScheduler
from engine_models.schedulers.prefill_first_adapted import AdaptedPrefillFirstScheduler
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.cluster.content import for_adapter
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import simulate
from simulator.serving.replica import Replica
from simulator.workload.adapters import shares
from simulator.workload.build import build_workload
from simulator.workload.spec import WorkloadSpec
from simulator.workload.synthetic import AdapterMix
from tests.effort import examples
from tests.engine_models.test_sglang import CLOCK, REQUEST, build
from tests.invariants.core_cases import SpannedClock

LLAMA = load_architecture("llama-3.1-8b")
LOAD = {"arrivals": {"kind": "poisson", "rate": 20}, "prompt_tokens": 60, "output_tokens": 40, "requests": 150}


def scheduler(kind: str, limits: AdapterLimits | None, capacity: int, depth: int) -> Any:
    """A scheduler of vLLM's, SGLang's or TensorRT-LLM's rule with these limits, without adapters for None."""
    if kind == "vllm":
        rules, kv = ContinuousRules(200, 8, 256, in_flight=depth), PagedKV(capacity // 16, 16, prefix_caching=True)
        return ContinuousScheduler(rules, kv) if limits is None else AdaptedScheduler(rules, kv, limits)
    if kind in ("trtllm", "trtllm that pauses"):
        policy = GUARANTEED if kind == "trtllm" else UTILIZATION
        two = TwoPassRules(8, 256, capacity // 16 * 16, policy, FIRST_COME, overlap=depth == 2)
        tree = BlockTree(capacity // 16, 16)
        return TwoPassScheduler(two, tree) if limits is None else AdaptedTwoPassScheduler(two, tree, limits)
    own, pool = PrefillFirstRules(8, 256, chunked_prefill_size=64, in_flight=depth), RadixPool(capacity)
    return PrefillFirstScheduler(own, pool) if limits is None else AdaptedPrefillFirstScheduler(own, pool, limits)


def served(
    kind: str, limits: AdapterLimits | None, requests: list[Sequence], capacity: int, depth: int
) -> tuple[list[Batch], bytes]:
    """Batches that were formed one by one, and the ends of all steps."""
    batches: list[Batch] = []
    replica = Replica([scheduler(kind, limits, capacity, depth)], SpannedClock(CLOCK), depth=depth, on_batch=batches.append)
    for seq in requests:
        replica.advance(seq.arrival_s)
        replica.ranks[0].submit(seq)
    try:
        replica.advance(float("inf"))
    except InfeasibleError:  # where the engine itself would stop for good
        reject()
    assert all(seq.state == "finished" for seq in requests)
    return batches, replica.ranks[0].log.end_s.tobytes()


def named(drawn: list[Any], adapters: int) -> list[Sequence]:
    requests = build(drawn)
    for seq in requests:
        seq.adapter = (seq.index * 7) % (adapters + 1)
        seq.runs = for_adapter(seq.runs, seq.adapter) if seq.adapter else seq.runs
    return requests


RULES = st.sampled_from(["vllm", "sglang", "trtllm", "trtllm that pauses"]), st.sampled_from([1, 2])


@given(st.lists(REQUEST, min_size=1, max_size=16), *RULES, st.integers(0, 3))
@settings(max_examples=examples(40))
def test_enough_places_leave_the_schedule_as_it_is(drawn: list[Any], kind: str, depth: int, adapters: int) -> None:
    limits = AdapterLimits(adapters + 1, counts_model=kind == "sglang")
    with_places, without = named(drawn, adapters), named(drawn, adapters)
    batches, ends_s = served(kind, limits, with_places, 900, depth)
    assert ends_s == served(kind, None, without, 900, depth)[1]
    assert [seq.emissions for seq in with_places] == [seq.emissions for seq in without]
    if not adapters:
        assert all(batch.adapters is None for batch in batches)


@given(st.lists(REQUEST, min_size=3, max_size=16), *RULES, st.integers(1, 3))
@settings(max_examples=examples(40))
def test_no_step_names_more_adapters_than_there_are_places(drawn: list[Any], kind: str, depth: int, places: int) -> None:
    limits = AdapterLimits(places, counts_model=kind == "sglang")
    for batch in served(kind, limits, named(drawn, 6), 900, depth)[0]:
        use = batch.adapters or AdapterUse(0, 0)
        assert use.adapters <= places
        assert use.copied <= use.adapters
        assert use.tokens <= batch.tokens


def test_who_names_one_adapter_too_many_is_passed_over_until_another_has_ended() -> None:
    requests = [Sequence(i, 10, 4, 0.0, adapter=adapter) for i, adapter in enumerate((1, 2, 1, 0))]
    first = [b for b in served("vllm", AdapterLimits(1), requests, 900, 1)[0] if b.prefill]
    # the second waits; the third has the adapter that runs, the fourth none
    assert [b.prefill for b in first] == [[(10, 0)] * 3, [(10, 0)]]
    assert [b.adapters for b in first] == [AdapterUse(1, 20, 1), AdapterUse(1, 10, 1)]
    assert first[1].number == 4
    # where requests without an adapter take a place too, the last waits as well, behind the second
    requests = [Sequence(i, 10, 4, 0.0, adapter=adapter) for i, adapter in enumerate((1, 2, 1, 0))]
    again, _ = served("sglang", AdapterLimits(1, counts_model=True), requests, 900, 1)
    assert [b.prefill for b in again if b.prefill] == [[(10, 0)] * 2, [(10, 0)], [(10, 0)]]


@pytest.mark.parametrize(("kind", "prompts"), [("trtllm", [3, 1]), ("trtllm that pauses", [1, 1, 2])])
def test_where_steps_are_fitted_an_adapter_too_many_ends_the_pass(kind: str, prompts: list[int]) -> None:
    """Adapters 1, 2, 1 and none, one place: with whole answers the second is passed over; else nobody comes in behind it."""
    requests = [Sequence(i, 10, 4, 0.0, adapter=adapter) for i, adapter in enumerate((1, 2, 1, 0))]
    assert [len(b.prefill) for b in served(kind, AdapterLimits(1), requests, 900, 1)[0] if b.prefill] == prompts


def test_the_adapter_used_longest_ago_makes_room_and_what_the_host_lacks_is_read() -> None:
    slots = AdapterSlots(AdapterLimits(2, on_host=3))
    assert slots.use([1, 2]) == (2, 2)
    assert slots.use([1]) == (0, 0)
    assert slots.use([3]) == (1, 1)  # in the place of 2
    assert slots.use([2]) == (1, 0)  # the host had it; in the place of 1
    assert slots.use([4]) == (1, 1)
    assert slots.use([1]) == (1, 1)


def test_an_adapter_has_the_known_size() -> None:
    # PEFT counts 41,943,040 parameters of rank 16 on all linear layers of Llama-3.1-8B, 6,815,744 on q and v
    assert 16 * sum(module.values for module in modules_of(LLAMA, 1)) == 41_943_040
    assert 16 * sum(module.values for module in modules_of(LLAMA, 1, ["q_proj", "v_proj"])) == 6_815_744
    whole, sharded = modules_of(LLAMA, 4), modules_of(LLAMA, 4, fully_sharded=True)
    assert sum(m.values for m in whole) > sum(m.values for m in sharded) == sum(m.values for m in modules_of(LLAMA, 1)) / 4
    assert len(MODULES) == 7
    with pytest.raises(InputError, match="did you mean `q_proj`"):
        modules_of(LLAMA, 1, ["q_pro"])


def pool(**keys: Any) -> Any:
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb", **keys}
    return prepare(load_scenario({"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": LOAD}))


@given(st.lists(REQUEST, min_size=3, max_size=14))
@settings(max_examples=15, deadline=None)
def test_enough_places_leave_the_schedule_over_sliding_windows_as_it_is(drawn: list[Any]) -> None:
    args = {"num_gpu_blocks_override": 700, "max_model_len": 2048}
    found = []
    for lora in ({"max_loras": 4}, None):
        keys = {"engine": "vllm", "hardware": "h100-sxm-80gb", "tensor_parallel": 2, "engine_args": args, "lora": lora}
        plan = prepare(load_scenario({"model": "google/gemma-3-27b-it", "deployment": keys, "workload": LOAD})).plan
        replica = Replica([plan.scheduler("jump")], SpannedClock(CLOCK), depth=2)
        requests = named(drawn, 3)
        for seq in requests:
            replica.advance(seq.arrival_s)
            replica.ranks[0].submit(seq)
        replica.advance(float("inf"))
        assert all(seq.state == "finished" for seq in requests)
        found.append(([seq.emissions for seq in requests], replica.ranks[0].log.end_s.tobytes()))
    assert found[0] == found[1]


def test_memory_of_the_places_comes_off_the_cache_and_a_step_costs_what_it_reads() -> None:
    plain, eight = pool(), pool(lora={"max_loras": 8})
    per_place = 2 * 16 * (sum(m.values for m in modules_of(LLAMA, 1)) + 2 * (LLAMA.vocab + LLAMA.hidden))
    assert eight.plan.memory.bytes_of("lora") == 8 * per_place
    graphs = plain.plan.memory.bytes_of("graph")  # of steps that name adapters, beside those of steps that name none
    assert plain.plan.memory.kv_bytes - eight.plan.memory.kv_bytes == 8 * per_place + graphs
    cost = eight.times()
    batch = Batch(0, 8, 8, 4000, tokens=8)
    (none_s, _) = cost.step_s([batch])
    steps_s = []
    for use in (AdapterUse(1, 8), AdapterUse(8, 8), AdapterUse(8, 8, 1), AdapterUse(8, 8, 1, 1)):
        batch.adapters = use
        steps_s.append(cost.step_s([batch])[0])
    one_s, all_s, copied_s, read_s = steps_s
    adapters = eight.plan.costs.adapters
    assert adapters is not None
    size = adapters.bytes_of(16)
    assert 0.0005 < one_s - none_s < 0.003  # 256 small kernels
    assert all_s - one_s == pytest.approx(7 * size / 3.35e12, rel=0.25)  # at the memory's rate
    assert copied_s - all_s == pytest.approx(size / adapters.link_bytes_per_s)
    assert read_s - copied_s == pytest.approx(size / adapters.disk_bytes_per_s)


def test_places_have_room_for_what_the_adapters_of_an_engine_could_change() -> None:
    def values(model: str = "llama-3.1-8b", engine: str = "vllm", tensor_parallel: int = 1, **lora: Any) -> float:
        deployment = {"engine": engine, "hardware": "h100-sxm-80gb", "tensor_parallel": tensor_parallel, "lora": lora}
        plan = prepare(load_scenario({"model": model, "deployment": deployment, "workload": LOAD})).plan
        assert plan.costs.adapters is not None
        return plan.memory.bytes_of("lora") / (2 * 16 * plan.costs.adapters.limits.on_device)

    def own(arch: Any, *targets: str, tp: int = 1) -> int:
        return sum(module.values for module in modules_of(arch, tp, targets or None))

    # the LM head of a place is whole on every rank
    assert values(tensor_parallel=2) == own(LLAMA, tp=2) + 2 * (LLAMA.vocab + LLAMA.hidden)
    # a part of a fused layer takes the place of all, and no more than what is named
    assert values(target_modules=["q_proj"]) == own(LLAMA, "q_proj", "k_proj", "v_proj")
    # experts have places though adapters here have none of them
    moe = load_architecture("qwen3-30b-a3b")
    experts = 48 * 128 * 3 * (2048 + 768)
    assert values("qwen3-30b-a3b") == own(moe) + 2 * (moe.vocab + moe.hidden) + experts
    assert values("qwen3-30b-a3b", target_modules=["q_proj", "o_proj"]) == own(moe, "q_proj", "k_proj", "v_proj", "o_proj")
    assert values("qwen3-30b-a3b", "sglang") == own(moe)
    assert values("qwen3-30b-a3b", "sglang", target_modules=["o_proj", "down_proj"]) == own(moe, "o_proj") + experts / 3


def test_requests_without_an_adapter_keep_their_place() -> None:
    slots = AdapterSlots(AdapterLimits(3, counts_model=True))
    assert [slots.use([adapter])[0] for adapter in (1, 2, 1, 3, 2)] == [1, 1, 0, 1, 1]  # two adapters beside the model
    assert slots.use([1, 2, 3]) == (1, 0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lora": {"rank": 64}}, "adapters of rank 64 are above max_lora_rank 16"),
        ({"lora": {"max_loras": 4, "rank": 1024}, "engine": "trtllm"}, "adapters of rank 1024 are above max_lora_rank 64"),
        ({"lora": {"max_lora_rank": 24}}, "max_lora_rank 24 is none that vLLM takes"),
        ({"lora": {"max_loras": 8, "max_cpu_loras": 4}}, "max_cpu_loras 4 is less than the 8"),
        (
            {"lora": {}, "engine": "trtllm", "speculative": {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.5}},
            "beside `speculative` are not simulated for TensorRT-LLM .vLLM, SGLang have both",
        ),
        (
            {"lora": {}, "kv_tiers": [{"kind": "host", "bytes": 10**9, "connector": "MooncakeStoreConnector"}]},
            "KV offload by .* beside LoRA adapters",
        ),
        (
            {"engine": "trtllm", "engine_args": {"lora_config": {"lora_target_modules": ["attn_qq"]}}},
            "adapters of `attn_qq` are not modelled; did you mean `attn_q`",
        ),
        ({"lora": {}, "engine": "mlc_llm"}, "LoRA adapters is modelled for"),
        ({"lora": {"max_loras": 2}, "engine": "lmdeploy"}, "TurboMind, which LMDeploy takes .* has no LoRA adapters"),
        ({"engine_args": "vllm serve x/Llama-3.1-8B-Instruct --enable-lora --max-lora-rank 24"}, "max_lora_rank 24"),
    ],
)
def test_what_cannot_be_is_refused_in_words(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pool(**keys)


def test_requests_that_name_adapters_need_a_pool_that_serves_them() -> None:
    scenario = {"model": "llama-3.1-8b", "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"}}
    with pytest.raises(InputError, match="serves none"):
        prepare(load_scenario({**scenario, "workload": {**LOAD, "adapters": {"count": 3}}}))


@pytest.mark.parametrize("engine", [{"engine": "tgi"}, {"engine": "lmdeploy", "engine_args": {"backend": "pytorch"}}])
def test_an_engine_that_keeps_all_adapters_serves_no_others(engine: dict[str, Any]) -> None:
    load = {key: value for key, value in LOAD.items() if key != "requests"}
    deployment = {"hardware": "h100-sxm-80gb", **engine, "lora": {"max_loras": 4}}

    def prepared_for(*counts: int) -> Any:
        classes = [{"name": f"c{n}", **load, "adapters": {"count": count}} for n, count in enumerate(counts)]
        workload = {"classes": classes, "requests": 20}
        return prepare(load_scenario({"model": "llama-3.1-8b", "deployment": deployment, "workload": workload}))

    assert prepared_for(3, 1).plan.costs.adapters.all_there
    with pytest.raises(InputError, match=r"requests name 5 adapters, and .* serves only the 4 that it has loaded") as caught:
        prepared_for(3, 2)
    assert "deployment.lora.max_loras to 5" in str(caught.value.mend)
    stages = [{"name": name, **load, "requests": 5, "adapters": {"count": 4}} for name in "ab"]  # the same four
    prepare(load_scenario({"model": "llama-3.1-8b", "deployment": deployment, "workload": {"stages": stages}}))


def test_an_engine_that_keeps_all_adapters_lets_nobody_wait_for_one() -> None:
    tgi = {"engine": "tgi", "engine_args": {"max_total_tokens": 4096}}
    twenty = pool(**tgi, lora={"max_loras": 20}).plan
    assert twenty.memory.bytes_of("lora") == 20 * 2 * 41_943_040
    assert not twenty.prefix_caching
    with pytest.raises(InputError, match="how many are they"):
        pool(**tgi, lora={"rank": 8})
    load = {**LOAD, "requests": 40, "adapters": {"count": 20}}
    scenario = {"model": "llama-3.1-8b", "workload": load}
    deployment = {"hardware": "h100-sxm-80gb", **tgi}
    runs = [
        simulate(load_scenario({**scenario, "deployment": {**deployment, "lora": {"max_loras": 20}}}), aggregate=aggregate)
        for aggregate in (True, False)
    ]
    assert runs[0].result["metrics"] == runs[1].result["metrics"]
    plain = simulate(load_scenario({"model": "llama-3.1-8b", "workload": {**LOAD, "requests": 40}, "deployment": deployment}))
    slower = runs[0].result["metrics"]["tpot_ms"]["mean"] / plain.result["metrics"]["tpot_ms"]["mean"]
    assert 1.1 < slower < 1.8


def test_lmdeploy_keeps_all_adapters_and_launches_their_kernels_in_every_step() -> None:
    engine: dict[str, Any] = {"engine": "lmdeploy", "engine_args": {"backend": "pytorch", "enable_prefix_caching": True}}
    twenty, plain = pool(**engine, lora={"max_loras": 20, "rank": 8}).plan, pool(**engine).plan
    assert twenty.memory.bytes_of("lora") == 20 * 8 * 2 * sum(module.values for module in modules_of(LLAMA, 1))
    assert plain.memory.kv_bytes - twenty.memory.kv_bytes == pytest.approx(0.8 * twenty.memory.bytes_of("lora"), abs=1)
    with pytest.raises(InputError, match="how many are they"):
        pool(**engine, lora={"rank": 8})
    prepared, batch = pool(**engine, lora={"max_loras": 2, "rank": 4}), Batch(0, 8, 8, 4000, tokens=8)
    assert prepared.plan.costs.adapters is not None
    assert prepared.plan.costs.adapters.computed_rank == 16  # the kernel's least
    (idle_s, _), (plain_s, _) = (each.times().step_s([batch]) for each in (prepared, pool(**engine)))
    assert 32 * 7 * 1e-6 < idle_s - plain_s < 32 * 7 * 5e-6  # a launch for each layer that has adapters, and no work
    batch.adapters = AdapterUse(1, 8)
    assert prepared.times().step_s([batch])[0] > idle_s
    load = {**LOAD, "adapters": {"count": 20, "share": 0.7}, "shared_prefix": {"groups": 3, "tokens": 128}}
    scenario = {"model": "llama-3.1-8b", "workload": load}
    deployment = {"hardware": "h100-sxm-80gb", **engine}
    runs = [
        simulate(load_scenario({**scenario, "deployment": {**deployment, "lora": {"max_loras": 20}}}), aggregate=aggregate)
        for aggregate in (True, False)
    ]
    assert runs[0].result["metrics"] == runs[1].result["metrics"]
    alone = simulate(load_scenario({**scenario, "workload": {**load, "adapters": None}, "deployment": deployment}))
    # what a prefix was computed with one adapter is of no use to another
    hits = [run.requests["cached_tokens"].sum() for run in (runs[0], alone)]
    assert 0 < hits[0] < hits[1]


class Steps(list[tuple[Any, ...]]):
    """Batches as what each serves and reads of adapters."""

    def __call__(self, batch: Batch) -> None:
        self.append((batch.decode_rows, tuple(batch.prefill or ()), batch.adapters))


def test_steps_of_prompts_and_of_decodes_name_what_they_read() -> None:
    def steps(adapted: bool) -> Steps:
        found = Steps()
        rules = AlternatingRules(8, 64, prefill_interval=4)
        alternating = AlternatingScheduler(rules, TrieBlocks(64, 16, prefix_caching=False), aggregate=False, adapted=adapted)
        replica = Replica([alternating], SpannedClock(CLOCK), depth=2, on_batch=found)
        for index, (prompt, adapter) in enumerate([(10, 1), (12, 2), (9, 0), (100, 3)]):
            replica.ranks[0].submit(Sequence(index, prompt, 3, 0.0, adapter=adapter))
        replica.advance(float("inf"))
        return found

    named, plain = steps(adapted=True), steps(adapted=False)
    assert [step[:2] for step in named] == [step[:2] for step in plain]
    by_shape = {(rows, prompts): use for rows, prompts, use in named}
    assert by_shape[0, ((9, 0), (10, 0), (12, 0))] == AdapterUse(2, 22)
    assert by_shape[0, ((64, 0),)] == AdapterUse(1, 64)  # a piece of the long prompt
    assert by_shape[0, ((36, 64),)] == AdapterUse(1, 36)
    assert by_shape[4, ()] == AdapterUse(3, 3)  # of four rows three name one
    assert all(use is None for *_, use in plain)


def trtllm_places(**lora: Any) -> tuple[int, int | None, int]:
    found = pool(engine="trtllm", lora=lora).plan
    assert found.costs.adapters is not None
    limits = found.costs.adapters.limits
    return limits.on_device, limits.on_host, found.memory.bytes_of("lora")


def test_pages_of_eight_ranks_hold_more_small_adapters_than_large_ones() -> None:
    # Llama-3.1-8B: k and v are 5,120 wide, which is a unit; q and o take 2, gate, up and down 4: 18 a layer and rank, 28 reserved
    page = 32 * 8 * 18 * 5120 * 2
    reserved = -(-4 * 16 * 7 * 32 * 4 // (32 * 8 * 18))  # pages of four adapters of rank 16, all modules as wide as the widest
    assert trtllm_places(max_loras=4, max_lora_rank=16, rank=16, max_cpu_loras=40) == (reserved // 2, 62, reserved * page)
    assert trtllm_places(max_loras=4, max_lora_rank=16, rank=4, max_cpu_loras=40)[0] == reserved
    assert trtllm_places(max_loras=4, max_lora_rank=16, rank=9, max_cpu_loras=40)[0] == reserved // 2
    by_share = trtllm_places()  # a fiftieth of what is free, a GB of the host's memory
    free = pool(engine="trtllm").plan.memory
    assert by_share[2] == int(0.02 * (free.kv_bytes + free.bytes_of("free")) // page) * page
    assert by_share[:2] == (by_share[2] // page // 2, by_share[1])
    with pytest.raises(InputError, match="does not hold one of rank 512"):
        trtllm_places(max_lora_rank=512, rank=512)


def test_tensorrt_llm_runs_adapters_by_its_own_rules() -> None:
    load = {**LOAD, "max_output_tokens": "equal", "adapters": {"count": 30}}
    deployment = {"engine": "trtllm", "hardware": "h100-sxm-80gb", "lora": {"max_loras": 2, "max_lora_rank": 16}}
    scenario = {"model": "llama-3.1-8b", "deployment": deployment, "workload": load}
    runs = [simulate(load_scenario(scenario), aggregate=aggregate) for aggregate in (True, False)]
    assert runs[0].result["metrics"] == runs[1].result["metrics"]
    assert pool(engine="trtllm@1.0.0", lora={}).plan.costs.terms.graph_sizes == ()
    assert pool(engine="trtllm", lora={}).plan.costs.terms.graph_sizes
    flags = {"lora_config": {"max_loras": 2, "max_lora_rank": 8, "lora_target_modules": ["attn_q", "mlp_gate"]}}
    stated = pool(engine="trtllm", engine_args=flags).plan.costs.adapters
    assert stated is not None
    assert [module.slices for module in stated.modules] == [1, 1]


def test_flags_state_the_places() -> None:
    def read(engine: str, table: Any, command: str, lora: Any = None) -> Any:
        keys = {**dict.fromkeys(typed.key for typed in table.typed.values()), "lora": lora}
        return reconcile(table, keys, parse_engine_args(engine, command), given=set()).get("lora")

    vllm = "--model m --enable-lora --max-loras 4 --max-lora-rank 64 --max-cpu-loras 40 --fully-sharded-loras"
    assert read("vllm", VLLM_FLAGS, vllm) == {
        "max_loras": 4, "max_lora_rank": 64, "max_cpu_loras": 40, "fully_sharded_loras": True
    }  # fmt: skip
    assert read("vllm", VLLM_FLAGS, "--model m --max-loras 4") is None
    assert read("vllm", VLLM_FLAGS, "--model m --max-loras 4", {"rank": 8}) == {"rank": 8, "max_loras": 4}
    sglang = "--model m --lora-paths a=x --max-loras-per-batch 4 --max-loaded-loras 9 --lora-target-modules q_proj v_proj"
    found = read("sglang", SGLANG_FLAGS, sglang)
    assert found == {"max_loras": 4, "max_cpu_loras": 9, "target_modules": ["q_proj", "v_proj"]}
    lmdeploy = "lmdeploy serve api_server m --backend pytorch --adapters a=x/1 b=x/2 c=x/3"
    assert read("lmdeploy", LMDEPLOY_FLAGS, lmdeploy) == {"max_loras": 3}
    assert read("lmdeploy", LMDEPLOY_FLAGS, "lmdeploy serve api_server m --adapters x/1") == {"max_loras": 1}


# Who names which ------------------------------------------------------------------------------------------------


def test_popularity_is_as_stated_and_a_conversation_keeps_its_adapter(tmp_path: Path) -> None:
    mix = AdapterMix(count=3, popularity="zipf", share=0.5)
    assert shares(mix) == pytest.approx(np.array([6, 3, 2]) / 22)
    spec = {**LOAD, "requests": 6000, "adapters": {"count": 3, "popularity": "zipf", "share": 0.5}}
    counts = np.bincount(build_workload(WorkloadSpec.model_validate(spec), seed=1, base_dir=tmp_path).adapter) / 6000
    assert counts == pytest.approx([0.5, *shares(mix)], abs=0.02)
    chats = {**LOAD, "sessions": {"turns": 3, "think_time_s": 1}, "adapters": {"count": 9}}
    load = build_workload(WorkloadSpec.model_validate(chats), seed=1, base_dir=tmp_path)
    assert load.adapter is not None
    for session in range(20):
        assert len(set(load.adapter[load.session_id == session])) == 1
    own = {k: v for k, v in LOAD.items() if k != "requests"}
    classes = [{"name": name, **own, "adapters": {"count": 4}} for name in "ab"]
    both = build_workload(WorkloadSpec.model_validate({"classes": classes, "requests": 200}), seed=1, base_dir=tmp_path)
    assert both.adapter is not None
    assert not set(both.adapter[both.class_index == 0]) & set(both.adapter[both.class_index == 1])


def test_a_trace_names_adapters_in_a_column_and_a_prefix_is_found_with_the_same_one_only(tmp_path: Path) -> None:
    names = ["x", "x", "y", "", ""]
    lines = ["arrival_s,prompt_tokens,output_tokens,prefix_ids,adapter", *(f"{i},64,4,1 2 3 4,{a}" for i, a in enumerate(names))]
    (tmp_path / "trace.csv").write_text("\n".join(lines))
    scenario = {
        "model": "llama-3.1-8b",
        "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb", "lora": {"max_loras": 2}},
        "workload": {"trace": str(tmp_path / "trace.csv"), "prefix_block_tokens": 16},
    }
    run = simulate(load_scenario(scenario), base_dir=tmp_path)
    assert run.requests["cached_tokens"].tolist() == [0, 48, 0, 0, 48]
    scenario["deployment"] = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
    with pytest.raises(InputError, match="serves none"):
        simulate(load_scenario(scenario), base_dir=tmp_path)
