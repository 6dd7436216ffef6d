"""llama.cpp's server: memory and context as it makes them, flags and launch commands, what a run is made of, refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from engine_models.cost.sub_batches import Parts, SubBatches
from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.known import launched_by, parse_engine_args
from engine_models.engines.llama_cpp import plan
from engine_models.model.architecture import expert_bytes, load_architecture, weight_bytes_per_rank
from engine_models.model.formats import format_named, quant_of
from engine_models.parts.batch import Batch, PartedBatch
from engine_models.parts.protocols import StepCost
from engine_models.schedulers.slots import SlotScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from hardware_profiles.kernels import operations_of
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import RunResult, simulate
from simulator.validation.schedules import RecordedClock

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
MAC = "apple-m2-ultra-76c-192gb"


def request_of(
    model: str = LLAMA, device: str = "rtx-4090-24gb", weights: str = "q4_k_m", kv: str = "fp16", **flags: Any
) -> PoolRequest:
    found = load_device(device)
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(format_named(weights), format_named("bf16"), format_named(kv)),
        device_name=device,
        device_memory_bytes=int(found.memory_bytes.value),
        device_kind=found.kind,
        flags=flags,
    )


def scheduler_of(found: EnginePlan) -> SlotScheduler:
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, SlotScheduler)
    return scheduler


def served(workload: dict[str, Any], hardware: str = MAC, **flags: Any) -> RunResult:
    pool = {"engine": "llama.cpp", "hardware": hardware, "weights": "q4_k_m", "engine_args": flags}
    return simulate({"model": LLAMA, "deployment": pool, "workload": workload})


def test_slots_share_a_pool_unless_their_number_is_given() -> None:
    """-np auto: four slots over the whole context; -np 4 -c 16384: each has 4,096."""
    auto, four = (scheduler_of(plan(request_of(device=MAC, **flags))).rules for flags in ({}, {"parallel": 4, "ctx_size": 16384}))
    assert (auto.n_parallel, auto.slot_tokens, auto.pool_cells) == (4, 131_072, 131_072)
    assert (four.n_parallel, four.slot_tokens, four.pool_cells) == (4, 4096, 0)
    one = scheduler_of(plan(request_of(device=MAC, parallel=4, ctx_size=16384, kv_unified=True))).rules
    assert (one.slot_tokens, one.pool_cells) == (16384, 16384)
    capped = scheduler_of(plan(request_of(device=MAC, kv_unified_per_slot=2048))).rules
    assert (capped.slot_tokens, capped.pool_cells) == (2048, 8192)
    small = scheduler_of(plan(request_of(device=MAC, parallel=1, ctx_size=300))).rules
    assert (small.slot_tokens, small.n_batch, small.n_ubatch) == (512, 300, 300)  # the batch, before the context is padded


def test_early_versions_have_one_slot_and_shift() -> None:
    """Builds of 2024: one slot, one pool of which each slot may have its part, contexts that shift, no prompts in host memory."""
    early = plan(request_of(ctx_size=4096), "0.0.2800")
    rules = scheduler_of(early).rules
    assert (rules.n_parallel, rules.slot_tokens, rules.pool_cells, rules.context_shift) == (1, 4096, 4096, True)
    assert scheduler_of(early).prompts is None
    four = scheduler_of(plan(request_of(ctx_size=4096, parallel=4, context_shift=False), "0.0.2800")).rules
    assert (four.n_parallel, four.slot_tokens, four.pool_cells, four.context_shift) == (4, 1024, 4096, False)
    assert not scheduler_of(plan(request_of("google/gemma-3-4b-it", ctx_size=4096), "0.0.2800")).rules.context_shift


def test_a_slot_has_its_part_of_the_context_in_whole_pads() -> None:
    """`llama_context`: the context over the slots, padded up to 256; the cache is that many times the slots."""
    found = plan(request_of(parallel=3, ctx_size=4096))
    assert (scheduler_of(found).rules.slot_tokens, found.limits.kv_tokens) == (1536, 4608)
    uneven = plan(request_of(parallel=2, ctx_size=513))  # padded before and after it is shared out, as build 11669 prints it
    assert (scheduler_of(uneven).rules.slot_tokens, uneven.limits.kv_tokens) == (512, 1024)


def test_a_context_that_is_not_asked_for_is_lowered_until_it_fits() -> None:
    """24 GB: 16 GB of weights leave room for the KV cache less 1,024 MiB; asked for more, it does not start."""
    found = plan(request_of(weights="bf16"))
    memory = found.memory
    left = memory.bytes_of("left")
    assert 1 << 30 <= left < (1 << 30) + 256 * 131_072
    assert found.limits.kv_tokens == memory.kv_bytes // 131_072 < 131_072
    assert found.limits.kv_tokens % 256 == 0
    with pytest.raises(InfeasibleError, match=r"(?s)does not fit.*layers on the CPU"):
        plan(request_of(ctx_size=131_072, fit="off", weights="bf16"))
    smaller = plan(request_of(weights="bf16", kv="q8_0")).limits.kv_tokens
    assert smaller == pytest.approx(found.limits.kv_tokens * 16 / 8.5, abs=256)
    with pytest.raises(InfeasibleError, match="does not fit"):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct"))


def test_a_model_with_windows_keeps_them_apart() -> None:
    """Gemma 3's sliding layers have a small cache of their own unless --swa-full; theirs cannot be cut."""
    small, full = (plan(request_of("google/gemma-3-4b-it", ctx_size=32768, swa_full=on)) for on in (False, True))
    assert small.memory.bytes_of("window") > 0
    assert small.memory.kv_bytes < full.memory.kv_bytes
    assert [scheduler_of(each).rules.rolls_back for each in (small, full)] == [False, True]
    with pytest.raises(InputError, match="cannot shift the context"):
        plan(request_of("google/gemma-3-4b-it", context_shift=True))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("models/Llama-3.1-8B-Instruct-Q4_K_M.gguf", "q4_k_m"),
        ("qwen2.5-7b-instruct-q8_0-00001-of-00003.gguf", "q8_0"),
        ("Mixtral-8x7B-IQ2_XXS.gguf", "iq2_xxs"),
        ("ggml-model-f16.gguf", "fp16"),
        ("llama-7b.Q5_K_S.gguf", "q5_k_s"),
        ("q4_k_m", "q4_k_m"),
        ("model.gguf", None),
        ("q9_x.gguf", None),
    ],
)
def test_the_name_of_a_file_states_its_format(name: str, found: str | None) -> None:
    assert quant_of(name) == found


@pytest.mark.parametrize(("model", "gib"), [("openai/gpt-oss-20b", 11.27), ("openai/gpt-oss-120b", 59.02)])
def test_a_checkpoint_in_mxfp4_is_loaded_from_the_file_that_is_published(model: str, gib: float) -> None:
    """Sizes as llama-bench tells them; the checkpoint, whose other weights are in 16 bits, has 1.7 and 1.9 GiB more."""
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 9, "output_tokens": 9}
    deployment = {"engine": "llama_cpp", "hardware": "ryzen-ai-max-395-128gb"}
    sizes = []
    for more in ({}, {"weights": "mxfp4"}):
        prepared = prepare(load_scenario({"model": model, "deployment": deployment | more, "workload": load}))
        sizes.append(prepared.plan.memory.bytes_of("weight") / 2**30)
    assert sizes[0] == pytest.approx(gib, rel=0.01)
    assert sizes[1] > sizes[0] + 1.5


@pytest.mark.parametrize(
    ("command", "values", "weights"),
    [
        ("llama-server -m m-Q4_K_M.gguf -np 4 -c 16384 -ngl 99", {"parallel": 4, "ctx_size": 16384, "gpu_layers": 99}, "q4_k_m"),
        ("./build/bin/llama-server --model x.gguf -nocb -no-kvu -fa on", {"cont_batching": False, "kv_unified": False}, None),
        (
            "docker run --gpus all -v /m:/m -p 8080:8080 ghcr.io/ggml-org/llama.cpp:server-cuda -m /m/a-Q8_0.gguf -b 512 -ub 128",
            {"batch_size": 512, "ubatch_size": 128},
            "q8_0",
        ),
        ("llama-server -hf ggml-org/gemma-3-4b-it-GGUF -ctk q8_0 -ctv q8_0", {"cache_type_k": "q8_0"}, "q4_k_m"),
        ("llama-server -hf bartowski/Llama-GGUF:IQ3_M --cache-ram -1 -sps 0", {"cache_ram": -1}, "iq3_m"),
        ("llama-server -hf ggml-org/gpt-oss-20b-GGUF -c 0", {"ctx_size": 0}, "mxfp4_moe"),
        ("llama-server -hf ggml-org/gpt-oss-20b-GGUF:Q8_0 -c 0", {"ctx_size": 0}, "q8_0"),
        ("ROCBLAS_USE_HIPBLASLT=1 llama-server -m a.gguf -dev ROCm0", {"hipblaslt": True, "device": "ROCm0"}, None),
        ("LLAMA_ARG_N_PARALLEL=2 LLAMA_ARG_CTX_SIZE=4096 llama-server -m a.gguf", {"parallel": 2, "ctx_size": 4096}, None),
    ],
)
def test_pasted_commands_are_read(command: str, values: dict[str, Any], weights: str | None) -> None:
    assert launched_by(command) == "llama_cpp"
    flags = parse_engine_args("llama_cpp", command)
    assert {name: flags.values[name] for name in values} == values
    assert flags.warnings == []
    pool = load_scenario(
        {
            "model": LLAMA,
            "deployment": {"engine": "llama_cpp", "hardware": MAC, "engine_args": command},
            "workload": {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1},
        }
    ).deployment.pools[0]
    assert pool.weights == weights


@pytest.mark.parametrize(
    ("device", "version", "flags", "kernels"),
    [
        ("ryzen-ai-max-395-128gb", "0.7.0", {}, ""),
        ("ryzen-ai-max-395-128gb", "0.7.0", {"device": "Vulkan0"}, "llama_cpp_vulkan"),
        ("ryzen-ai-max-395-128gb", "0.7.0", {"device": "ROCm0,ROCm1", "hipblaslt": True}, "llama_cpp_rocm"),
        ("ryzen-ai-max-395-128gb", "0.0.5800", {"device": "ROCm0"}, "llama_cpp_2025_rocblas"),
        ("ryzen-ai-max-395-128gb", "0.0.5800", {"device": "Vulkan0", "flash_attn": "on"}, "llama_cpp_2025_fused_vulkan"),
        ("rtx-4090-24gb", "0.7.0", {"device": "Vulkan0"}, ""),
    ],
)
def test_the_backend_of_an_amd_device(device: str, version: str, flags: dict[str, Any], kernels: str) -> None:
    asked = request_of(device=device)
    found = plan(replace(asked, flags={**asked.flags, **flags}), version)
    assert found.kernels == kernels
    said = " ".join(found.notes)
    assert ("--device (ROCm0, Vulkan0) says which" in said) == (device.startswith("ryzen") and not flags)
    assert ("Vulkan's kernels are simulated on AMD's devices alone" in said) == device.startswith("rtx")


@pytest.mark.parametrize(
    ("device", "version", "text", "cells", "priced_as_fused"),
    [
        ("ryzen-ai-max-395-128gb", "0.7.0", [], 256, False),
        ("ryzen-ai-max-395-128gb", "0.7.0", ["--flash-attn", "off"], 256, True),
        ("ryzen-ai-max-395-128gb", "0.0.5800", ["-fa", "off"], 32, False),
        ("ryzen-ai-max-395-128gb", "0.0.5800", ["-fa"], 256, False),
        ("rtx-4090-24gb", "0.0.5800", ["-fa", "1"], 256, False),
        ("rtx-4090-24gb", "0.0.5800", [], 32, True),
    ],
)
def test_attention_is_fused_by_default_but_in_builds_of_2025(
    device: str, version: str, text: list[str], cells: int, priced_as_fused: bool
) -> None:
    asked = request_of(device=device)
    given = parse_engine_args("llama_cpp", text).values
    said = " ".join(plan(replace(asked, flags={**asked.flags, **given}), version).notes)
    assert f"in steps of {cells} cells" in said
    assert ("attention is priced as fused" in said) == priced_as_fused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"gpu_layers": 0}, "0 of the 33 layers"),
        ({"gpu_layers": 20, "host_cpu": "h100"}, "is no CPU"),
        ({"cache_type_k": "q8_0"}, "keys in q8_0 and values in f16"),
        ({"spec_default": True}, "how often there are drafts"),
        ({"spec_synth_len": 2.0}, "how many drafts are accepted, by chance"),
        ({"override_tensor": "exps=CPU"}, "which part of the model the CPU computes"),
        ({"split_mode": "row"}, "how the model is split"),
        ({"embedding": True}, "what the server computes"),
        ({"device": "none"}, "computes on the CPU"),
        ({"max_num_seqs": 4}, "did you mean `parallel`"),
        ({"parallel": 8, "batch_size": 7}, "give at least 8, or fewer slots"),
        ({"parallel": 1, "batch_size": 1}, "batches of 1 tokens"),
        ({"cache_type_k": "q3_k"}, "cannot be 'q3_k'"),
    ],
)
def test_what_it_does_not_simulate_is_refused_in_words(flags: dict[str, Any], words: str) -> None:
    pool = {"engine": "llama_cpp", "hardware": "rtx-4090-24gb", "weights": "q4_k_m", "engine_args": flags}
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    with pytest.raises(InputError) as error:
        prepare(load_scenario({"model": LLAMA, "deployment": pool, "workload": workload}))
    assert words in f"{error.value.message} {error.value.mend}"


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"weights": "awq"}, "does not load weights in awq"),
        ({"weights": "mlx_4bit"}, "does not load weights in mlx_4bit"),
        ({"hardware": "gaudi-3-128gb"}, "does not run on"),
        ({"kv_cache": "fp8"}, "keeps no KV cache in fp8"),
        ({"tensor_parallel": 2, "hardware": "h100-sxm-80gb"}, "split modes `row` and `tensor`"),
    ],
)
def test_devices_and_formats_it_lacks_are_refused_in_words(pool: dict[str, Any], words: str) -> None:
    deployment = {"engine": "llama_cpp", "hardware": MAC, "weights": "q4_k_m", **pool}
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    with pytest.raises(InputError, match=words) as error:
        prepare(load_scenario({"model": LLAMA, "deployment": deployment, "workload": workload}))
    assert error.value.mend


@pytest.mark.parametrize("hardware", [MAC, "xeon-8480-1s", "epyc-9654-2s", "rtx-4090-24gb", "rx-7900-xtx-24gb", "arc-a770-16gb"])
def test_it_runs_on_every_kind_of_device(hardware: str) -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 6, "prompt_tokens": 300, "output_tokens": 20}
    totals = served(load, hardware, ctx_size=8192).result["totals"]
    assert (totals["completed"], totals["total_output_tokens"]) == (6, 120)


def test_a_step_costs_the_sum_of_its_sub_batches_and_copies() -> None:
    clock = RecordedClock({"a": 1.0, "b": 0.01, "c": 0.1, "d": 0.0})
    cost = SubBatches(clock, Parts(copied_token_s=0.5))
    batch = PartedBatch(0)
    batch.parts = [Batch(0, 2, 2, 20, tokens=2), Batch(0, 0, 0, 0, [(10, 0)], 10)]
    batch.copied_tokens = 4
    assert cost.step_s([batch]) == (pytest.approx(1.2 + 1.1), [0.0])
    assert cost.host_s(batch) == 2.0
    over_two = SubBatches(clock, Parts(devices=2))
    assert over_two.step_s([batch])[0] == pytest.approx((1.2 + 1.1) / 2 + 1.2 / 2)
    shape = PartedBatch(0)
    shape.parts = [Batch(0, 2, 2, 20, tokens=2), Batch(0, 1, 1, 5, tokens=1)]
    assert cost.few_s([shape], 3) == cost.run_s([shape], 3).tolist() == pytest.approx([2.3] * 3)
    assert over_two.few_s([shape], 3) == over_two.run_s([shape], 3).tolist() == pytest.approx([1.75] * 3)


def test_layers_over_several_devices_share_the_memory_and_not_the_time() -> None:
    """70B in 4 bits needs two cards of 24 GB; 8B answers no faster on two, and its prompts of several sub-batches do."""
    with pytest.raises(InfeasibleError, match="does not fit"):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct", ctx_size=4096))
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 2000, "output_tokens": 20}

    def metrics(model: str, devices: int) -> tuple[float, float]:
        pool = {"engine": "llama_cpp", "hardware": "rtx-4090-24gb", "weights": "q4_k_m", "pipeline_parallel": devices}
        result = simulate(
            {"model": model, "deployment": {**pool, "engine_args": {"ctx_size": 4096, "parallel": 1}}, "workload": load}
        ).result["metrics"]
        return result["ttft_ms"]["mean"], result["tpot_ms"]["mean"]

    assert metrics("meta-llama/Llama-3.1-70B-Instruct", 2)[1] > 30.0
    one, two = metrics(LLAMA, 1), metrics(LLAMA, 2)
    assert two[1] == pytest.approx(one[1] + 0.29, abs=1e-3)
    assert 0.6 * one[0] < two[0] < 0.75 * one[0]  # (4 + 1) / 8 of the time


def test_smaller_sub_batches_read_the_weights_more_often() -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 2000, "output_tokens": 1}
    ttft = [
        served(load, parallel=1, ctx_size=4096, ubatch_size=size).result["metrics"]["ttft_ms"]["mean"]
        for size in (32, 512)
    ]
    assert ttft[0] > 1.15 * ttft[1]


def test_all_that_runs_fails_when_the_pool_is_full() -> None:
    """Four slots of 1,024 cells together: no request is too long for a slot, four are for the pool."""
    load = {"arrivals": {"kind": "batch"}, "requests": 4, "prompt_tokens": 200, "output_tokens": 200}
    result = served(load, parallel=4, ctx_size=1024, kv_unified=True).result
    assert result["totals"]["reasons"] == {"out_of_memory": 4}
    assert result["totals"]["failed"] == 4
    apart = served(load, parallel=4, ctx_size=2048).result["totals"]
    assert apart["completed"] == 4


def test_a_full_slot_cuts_the_answer_unless_the_context_shifts() -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 200, "output_tokens": 400}
    assert [
        served(load, parallel=1, ctx_size=256, context_shift=on).result["totals"]["total_output_tokens"]
        for on in (False, True)
    ] == [56, 400]


def test_a_conversation_goes_on_from_host_memory() -> None:
    """More conversations than slots: with host memory later turns are found, without it few are."""
    load = {
        "arrivals": {"kind": "poisson", "rate": 0.5},
        "sessions": {"turns": 4, "think_time_s": 10},
        "requests": 60,
        "prompt_tokens": 300,
        "output_tokens": 50,
    }
    shares = []
    for ram in (8192, 0):
        run = served(load, parallel=2, ctx_size=16384, cache_ram=ram)
        shares.append(run.raw.hit_tokens / run.raw.queried_tokens)
    assert shares[0] > 0.5 > shares[1] + 0.1


def test_layers_that_the_gpu_lacks_are_computed_by_the_cpu() -> None:
    """-ngl 13 of 33: the head and 12 layers on the GPU; a token reads the other 20 layers' weights from the CPU's memory."""
    whole, parted = (plan(request_of(**flags)) for flags in ({}, {"gpu_layers": 13, "ctx_size": 8192, "parallel": 1}))
    assert parted.costs.arch.layers == 12
    layers = parted.costs.host_layers
    assert layers is not None
    assert layers.arch.layers == 20
    assert whole.memory.bytes_of("weight") > 2 * parted.memory.bytes_of("weight")
    ops = operations_of(load_device("rtx-4090-24gb"), "llama_cpp")
    cost = parted.costs.over(ops)
    token_s = decoded_s(cost)
    assert token_s > layers.fetched_bytes / load_device("core-i9-13900k").memory_bandwidth_bytes_per_s.value
    assert token_s > 5 * decoded_s(whole.costs.over(ops))
    threads = plan(request_of(gpu_layers=13, ctx_size=8192, parallel=1, threads=1)).costs.over(ops)
    assert decoded_s(threads) > token_s


def test_many_tokens_are_computed_by_the_gpu_with_fetched_weights() -> None:
    """512 tokens with `op_offload` take the weights' way to the GPU; without it the CPU multiplies them."""
    ops = operations_of(load_device("rtx-4090-24gb"), "llama_cpp")
    asked: dict[str, Any] = {"gpu_layers": 13, "ctx_size": 8192, "parallel": 1}
    costs = [plan(request_of(**asked, op_offload=on)).costs for on in (True, False)]
    layers = costs[0].host_layers
    assert layers is not None
    assert layers.fetched_bytes == pytest.approx(20 / 32 * 4.19e9, rel=0.01)
    assert layers.expert_bytes == 0
    fetching_s, computing_s = (prompt_s(of.over(ops), 512) for of in costs)
    assert layers.fetched_bytes / layers.bytes_per_s < fetching_s < computing_s
    few = [prompt_s(of.over(ops), 31) for of in costs]
    assert few[0] == few[1]


def test_experts_stay_on_the_cpu() -> None:
    """--n-cpu-moe 26 of 36: experts of 26 layers leave the card, the cache does not; a sub-batch fetches those that it meets."""
    asked: dict[str, Any] = {"parallel": 1, "ctx_size": 4096}
    found = plan(request_of("openai/gpt-oss-120b", "rtx-3090-24gb", "mxfp4", n_cpu_moe=26, **asked))
    whole = plan(request_of("openai/gpt-oss-120b", "h100-sxm-80gb", "mxfp4", **asked))
    layers = found.costs.host_layers
    assert layers is not None
    assert layers.experts_only
    assert (layers.arch.layers, found.costs.arch.layers, layers.fetched_bytes) == (26, 10, 0.0)
    assert layers.expert_bytes == pytest.approx(26 / 36 * 60.9e9, rel=0.02)
    moved = whole.memory.bytes_of("weight") - found.memory.bytes_of("weight")
    assert moved == pytest.approx(layers.expert_bytes, rel=1e-6)
    assert found.memory.kv_bytes == whole.memory.kv_bytes
    assert 0.5 < layers.fetch_s(256) / layers.fetch_s(1 << 20) < layers.fetch_s(2048) / layers.fetch_s(1 << 20) < 1.0
    everything = plan(request_of("openai/gpt-oss-120b", "rtx-3090-24gb", "mxfp4", cpu_moe=True, **asked))
    assert everything.costs.host_layers is not None
    assert everything.costs.host_layers.arch.layers == 36
    ops = operations_of(load_device("rtx-3090-24gb"), "llama_cpp")
    assert decoded_s(everything.costs.over(ops)) > decoded_s(found.costs.over(ops))


@pytest.mark.parametrize(
    ("model", "flags"), [("Qwen/Qwen3-14B", {"gpu_layers": 32}), ("Qwen/Qwen3-30B-A3B-Instruct-2507", {"n_cpu_moe": 36})]
)
def test_a_token_waits_for_both_memories(model: str, flags: dict[str, Any]) -> None:
    """The bytes that a token reads from each memory at its nominal rate are 30 to 100 % of the token's time."""
    found = plan(request_of(model, "rtx-2080-8gb", parallel=1, ctx_size=4096, fit="off", **flags))
    layers, fmt = found.costs.host_layers, format_named("q4_k_m")
    assert layers is not None
    card, cpu = load_device("rtx-2080-8gb"), load_device("core-i9-13900k")
    blocks = layers.arch.mlp
    share = blocks[0].experts_per_token / blocks[0].experts if layers.experts_only else 1.0
    read = expert_bytes(layers.arch, fmt) * share if layers.experts_only else weight_bytes_per_rank(layers.arch, fmt)
    bound_s = read / cpu.memory_bandwidth_bytes_per_s.value
    bound_s += weight_bytes_per_rank(found.costs.arch, fmt) * share / card.memory_bandwidth_bytes_per_s.value
    token_s = decoded_s(found.costs.over(operations_of(card, "llama_cpp")))
    assert 0.3 < bound_s / token_s < 1.0


def test_a_model_that_does_not_fit_says_how_many_layers_would() -> None:
    with pytest.raises(InfeasibleError) as error:
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct"))
    found = re.search(r"gpu_layers: (\d+)", str(error.value.mend))
    assert found
    layers = int(found[1])
    with pytest.raises(InfeasibleError):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct", gpu_layers=layers + 4, ctx_size=4096))
    assert plan(request_of("meta-llama/Llama-3.1-70B-Instruct", gpu_layers=layers, ctx_size=4096)).memory.kv_bytes


def test_a_run_over_two_processors_jumps_as_it_steps() -> None:
    workload = {"arrivals": {"kind": "poisson", "rate": 2.0}, "prompt_tokens": 200, "output_tokens": 60, "requests": 40}
    asked: dict[str, Any] = {"gpu_layers": 13, "ctx_size": 65536, "parallel": 40}
    pool = {"engine": "llama.cpp", "hardware": "rtx-4090-24gb", "weights": "q4_k_m", "engine_args": asked}
    scenario = {"model": LLAMA, "deployment": pool, "workload": workload}
    jumped, stepped = (simulate(scenario, aggregate=aggregate) for aggregate in (True, False))
    for name in ("first_token_s", "end_s"):
        assert list(jumped.requests[name]) == list(stepped.requests[name])


def decoded_s(cost: StepCost) -> float:
    """Device time of one decoding row of 1,000 tokens."""
    step = PartedBatch(0)
    step.parts = [Batch(0, 1, 1, 1000, tokens=1)]
    return cost.step_s((step,))[0]


def prompt_s(cost: StepCost, tokens: int) -> float:
    """Device time of the first tokens of a prompt."""
    step = PartedBatch(0)
    step.parts = [Batch(0, prefill=[(tokens, 0)], tokens=tokens)]
    return cost.step_s((step,))[0]
