"""TensorRT-LLM: recorded schedules, defaults, memory, flags and launch commands, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_models.cost import serial_quantisation
from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.known import parse_engine_args, split
from engine_models.engines.trtllm import plan
from engine_models.engines.trtllm_serving import graph_sizes
from engine_models.memory.block_tree import BlockTree
from engine_models.memory.hosted_tree import HostedTree
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import KvTier
from engine_models.schedulers.memory_then_tokens import TwoPassBatch, TwoPassRules, TwoPassScheduler
from engine_models.schedulers.prompts_together import PromptsTogether
from engine_models.schedulers.transferred import ContextServer, GenerationServer
from engine_models.schedulers.transferred_staged import StagedGenerationServer
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from hardware_profiles.kernels import operations_of
from simulator.config.load import load_scenario
from simulator.prepare import Prepared, prepare
from simulator.run import run_prepared, simulate
from simulator.validation.schedules import replay

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "trtllm"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def request_of(model: str = LLAMA, device: str = "h100-sxm-80gb", **flags: Any) -> PoolRequest:
    bf16 = format_named("bf16")
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(bf16, bf16, bf16),
        device_name=device,
        device_memory_bytes=int(load_device(device).memory_bytes.value),
        flags=flags,
    )


def scheduler_of(found: EnginePlan) -> TwoPassScheduler:
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, TwoPassScheduler)
    return scheduler


def scenario_of(workload: dict[str, Any] | None = None, **flags: Any) -> dict[str, Any]:
    lengths = {"prompt_tokens": {"kind": "constant", "value": 500}, "output_tokens": {"kind": "constant", "value": 40}}
    return {
        "model": LLAMA,
        "deployment": {"engine": "trtllm", "hardware": "h100-sxm-80gb", "engine_args": flags},
        "workload": {"arrivals": {"kind": "batch"}, "requests": 100, **lengths, **(workload or {})},
    }


def prepared(**flags: Any) -> Prepared:
    return prepare(load_scenario(scenario_of(**flags)))


@pytest.mark.parametrize(
    ("name", "steps"),
    [("shared_prefix_skip", 421), ("max_utilization_small_kv_reuse", 703), ("found_less_than_expected", 76)],
)
def test_kept_recording_is_equal_at_every_step(name: str, steps: int) -> None:
    result = replay(FIXTURES / f"{name}.jsonl")
    assert result["first_difference"] is None
    assert result["equal"] == result["steps"] == steps


def test_defaults_on_an_h100() -> None:
    """Nine tenths of what weights, a full step and the context leave, in blocks of 32 tokens."""
    found = plan(request_of())
    rules = scheduler_of(found).rules
    assert (rules.max_batch_size, rules.max_num_tokens, rules.max_seq_len) == (2048, 8192, 131_072)
    assert (rules.capacity_scheduler_policy, rules.context_chunking_policy) == ("GUARANTEED_NO_EVICT", None)
    assert (found.limits.prompt_tokens, found.limits.context_tokens, found.executor.depth) == (8192, 131_072, 2)
    assert (found.limits.block_tokens, found.prefix_caching) == (32, True)
    memory = found.memory
    used = memory.bytes_of("weight") + memory.bytes_of("activation") + memory.bytes_of("other")
    assert memory.kv_bytes == int(0.9 * (memory.device_bytes - used))
    assert memory.blocks == memory.kv_bytes // (32 * 131_072) == found.limits.kv_blocks


def test_flags_say_how_it_schedules() -> None:
    found = plan(
        request_of(
            enable_chunked_prefill=True,
            disable_overlap_scheduler=True,
            scheduler_config={"capacity_scheduler_policy": "max_utilization", "context_chunking_policy": "EQUAL_PROGRESS"},
            kv_cache_config={"max_tokens": 10_000, "enable_block_reuse": False, "tokens_per_block": 64},
        )
    )
    rules = scheduler_of(found).rules
    assert (rules.capacity_scheduler_policy, rules.context_chunking_policy) == ("MAX_UTILIZATION", "EQUAL_PROGRESS")
    assert (found.executor.depth, found.prefix_caching, found.limits.kv_tokens) == (1, False, 156 * 64)
    assert (found.limits.context_tokens, found.limits.prompt_tokens) == (156 * 64, 156 * 64 - 1)
    assert any("max_seq_len 131,072 is reduced to the 9,984 tokens" in note for note in found.notes)
    less = plan(request_of(kv_cache_config={"free_gpu_memory_fraction": 0.5}, free_gpu_memory_fraction=0.8))
    assert less.memory.kv_bytes == pytest.approx(plan(request_of()).memory.kv_bytes * 5 / 9, rel=1e-6)


def test_sizes_of_cuda_graphs_and_what_runs_outside_them() -> None:
    exact = {"enable_padding": False, "max_batch_size": None, "batch_sizes": None}
    assert graph_sizes(exact, 64) == (*range(1, 33), 64, 128)
    assert graph_sizes({**exact, "max_batch_size": 300}, 64)[-3:] == (128, 256, 300)
    padded = {**exact, "enable_padding": True, "max_batch_size": 300}
    assert graph_sizes(padded, 64) == (1, 2, 4, *range(8, 129, 8), 192, 256, 300)
    assert graph_sizes(padded, 0)[-3:] == (128, 256, 300)
    assert graph_sizes({**exact, "batch_sizes": [8, 2]}, 64) == (2, 8)
    outside = {}
    for padding in (True, False):
        found = prepared(cuda_graph_config={"enable_padding": padding})
        cost = found.plan.costs.over(found.kernels)
        assert isinstance(cost, StepTimeModel)
        outside[padding] = [cost.launches.least_s(rows, prefills=False) > 0 for rows in (31, 33, 64, 65, 128, 129)]
        tables = cost.launches.tables_s(130)[0]
        assert outside[padding] == [tables[rows] > 0 for rows in (31, 33, 64, 65, 128, 129)]
    assert outside == {True: [False] * 5 + [True], False: [False, True, False, True, False, True]}


def test_who_asks_for_no_limit_is_held_against_the_whole_context() -> None:
    """625 blocks: 36 requests of 17 blocks at once if they say how much they want, one if not."""
    flags: dict[str, Any] = {"kv_cache_config": {"max_tokens": 20_000}, "max_seq_len": 12_000}
    peaks = []
    for limit in ({"max_output_tokens": {"kind": "constant", "value": 40}}, {}):
        result = simulate(scenario_of(limit, **flags)).result
        assert result["totals"]["completed"] == 100
        peaks.append(result["server"]["num_requests_running_peak"])
    assert peaks == [625 // 17, 1]
    flags["scheduler_config"] = {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    loose = simulate(scenario_of(**flags)).result
    assert (loose["totals"]["completed"], loose["server"]["num_requests_running_peak"]) == (100, 625 // 16)


def test_launch_commands_are_read() -> None:
    assert [split(name)[0] for name in ("TensorRT-LLM", "tensorrt_llm@1.2", "trt-llm", "trtllm")] == ["trtllm"] * 4
    found = parse_engine_args(
        "trtllm",
        "docker run --gpus all nvcr.io/nvidia/tensorrt-llm/release:1.2.0 trtllm-serve serve org/m --tp_size 4 "
        "--kv_cache_free_gpu_memory_fraction 0.8 --ep_size 2 --backend pytorch --trust_remote_code --enable_chunked_prefill",
    )
    assert (found.model, found.version, found.warnings) == ("org/m", "1.2.0", [])
    assert found.values == {
        "tensor_parallel_size": 4,
        "free_gpu_memory_fraction": 0.8,
        "moe_expert_parallel_size": 2,
        "enable_chunked_prefill": True,
    }
    written = """cat > extra.yml <<EOF
kv_cache_config:
  dtype: fp8
  enable_block_reuse: false
cuda_graph_config:
  enable_padding: true
enable_attention_dp: false
EOF
trtllm-serve org/m --max_num_tokens=20000 --extra_llm_api_options=extra.yml"""
    assert parse_engine_args("trtllm", written).values == {
        "kv_cache_config": {"dtype": "fp8", "enable_block_reuse": False},
        "cuda_graph_config": {"enable_padding": True},
        "enable_attention_dp": False,
        "max_num_tokens": 20_000,
    }
    assert prepared(kv_cache_config={"dtype": "fp8"}).formats.kv_cache.name == "fp8"
    assert prepared(cuda_graph_config="none").plan.costs.terms.graph_sizes == ()
    assert prepared(cuda_graph_config=None).plan.costs.terms.graph_sizes == ()  # `null` in its file: no graphs


OLDER = """cat > extra.yml <<EOF
pytorch_backend_config:
  use_cuda_graph: true
  cuda_graph_padding_enabled: true
  cuda_graph_batch_sizes: [1, 2, 4]
  enable_overlap_scheduler: true
moe_backend: TRTLLM
kv_cache_dtype: fp8
EOF
export TRTLLM_ENABLE_PDL=1 TLLM_LOG_LEVEL=INFO
trtllm-serve org/m --served_model_name x --no-telemetry --extra_llm_api_options extra.yml"""


def test_files_of_releases_before_1_0_are_read() -> None:
    found = parse_engine_args("trtllm", OLDER)
    assert found.values == {
        "cuda_graph_config": {"enable_padding": True, "batch_sizes": [1, 2, 4]},
        "moe_config": {"backend": "TRTLLM"},
        "kv_cache_dtype": "fp8",
    }
    assert [warning.partition(" is")[0] for warning in found.warnings] == ["environment variable TRTLLM_ENABLE_PDL"]


def test_the_cache_format_and_the_split_of_experts_are_read_by_either_flag() -> None:
    assert prepared(kv_cache_dtype="fp8").formats.kv_cache.name == "fp8"
    assert prepared(kv_cache_config={"dtype": "bfloat16"}).formats.kv_cache.name == "bf16"
    with pytest.raises(InputError, match="contradicts the pool's key `kv_cache`"):
        prepared(kv_cache_dtype="fp8", kv_cache_config={"dtype": "nvfp4"})

    def experts(*flags: str) -> int | bool:
        scenario = scenario_of()
        scenario["model"] = "mistralai/Mixtral-8x7B-Instruct-v0.1"
        scenario["deployment"]["engine_args"] = ["--tp_size", "8", *flags]
        return load_scenario(scenario).deployment.pools[0].expert_parallel

    assert experts("--moe_expert_parallel_size", "4") == 4
    assert experts("--moe_tensor_parallel_size", "2") == 4
    assert experts("--moe_tensor_parallel_size", "8") is False
    assert experts() is False


@pytest.mark.parametrize(
    ("name", "key"),
    [("moe_config", "use_low_precision_moe_combine"), ("kv_cache_config", "block_reuse_config")],
)
def test_keys_of_groups_that_are_not_read_warn(name: str, key: str) -> None:
    said = prepared(**{name: {key: True}}).plan.warnings
    assert [f"({key})" in warning for warning in said] == [True]
    assert prepared(**{name: {key: None}}).plan.warnings == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"kv_cache_config": {"disk_cache_size": 10**9}}, "disk_cache_size.*is not simulated"),
        ({"kv_cache_config": {"host_cache_size": -1}}, "must be at least 0"),
        ({"kv_cache_config": {"free_gpu_fraction": 0.5}}, "has no key `free_gpu_fraction`"),
        ({"kv_cache_config": {"tokens_per_block": 0}}, "must be at least 1"),
        ({"scheduler_config": {"capacity_scheduler_policy": "MAX_UTIL"}}, "MAX_UTIL is not simulated"),
        ({"scheduler_config": {"context_chunking_policy": "FORCE_CHUNK"}}, "FORCE_CHUNK is not simulated"),
        ({"speculative_config": {"decoding_type": "Medusa"}}, "Medusa is not simulated"),
        ({"attention_dp_config": {"enable_balance": "often"}}, "enable_balance"),
        ({"max_beam_width": 4}, "how many sequences a request has"),
        ({"lora_config": {"max_rank": 8}}, "has no key `max_rank`"),
        ({"enable_chunked_prefill": True, "max_num_tokens": 16}, "less than a block of 32"),
        ({"max_batchsize": 4}, "no flag `max_batchsize`"),
    ],
)
def test_what_is_not_simulated_is_refused_in_words(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        prepared(**flags)
    assert error.value.mend


def test_host_memory_counts_bytes_of_a_rank_and_may_stay_empty() -> None:
    """Llama-3.1-8B over two ranks: 64 KiB a token, 2 MiB a block of 32; a pool's tier counts bytes of the replica."""

    def host(tiers: tuple[KvTier, ...] = (), **kv: Any) -> tuple[int, tuple[str, ...]]:
        asked = replace(request_of(kv_cache_config=kv), tensor_parallel=2, tiers=tiers, host_link_bytes_per_s=5e10)
        found = plan(asked)
        assert (found.tiers == ("host",)) == isinstance(scheduler_of(found).kv, HostedTree)
        return getattr(scheduler_of(found).kv, "host_blocks", 0), found.warnings

    assert host(host_cache_size=2**30) == (512, ())
    assert host((KvTier("host", 2**31, 5e10),)) == (512, ())
    assert host(host_cache_size=0) == (0, ())
    assert host(host_cache_size=2**20) == (0, ("1,048,576 bytes of host memory hold no block of 32 tokens: none is kept there",))
    for kv in ({"onboard_blocks": False}, {"cold_tier_offload_min_priority": 36}, {"enable_block_reuse": False}):
        blocks, (warning,) = host(host_cache_size=2**30, **kv)
        assert (blocks, "changes nothing" in warning) == (0, True)
    assert host(host_cache_size=2**30, secondary_offload_min_priority=35)[0] == 512
    with pytest.raises(InputError, match="both are given"):
        host((KvTier("host", 2**31, 5e10),), host_cache_size=2**30)
    with pytest.raises(InputError, match="not with a tier of kind: nvme"):
        host((KvTier("nvme", 2**31, 5e9),))


def test_each_active_request_has_a_place_for_its_states() -> None:
    """Qwen3-Next: 36 layers of 32 heads whose states are 128 by 128, and three inputs of 8,192 channels, all in 16 bits.

    39,518,208 bytes a request; 16 requests and the one that pads graphs. Attention data parallelism has one more on each rank.
    """
    state = 36 * (32 * 128 * 128 + 3 * 8192) * 2

    def states(batch: int = 16, kv: dict[str, Any] | None = None, **more: Any) -> int:
        args = {"max_batch_size": batch, "max_num_tokens": 4096, "kv_cache_config": kv or {}}
        asked = replace(request_of("Qwen/Qwen3-Next-80B-A3B-Instruct", "b300-sxm-288gb", **args), **more)
        found = plan(asked)
        assert not found.prefix_caching
        assert found.memory.bytes_of("state") + found.memory.kv_bytes <= 0.9 * found.memory.device_bytes
        return found.memory.bytes_of("state")

    assert states() == 17 * state
    assert states(kv={"mamba_ssm_cache_dtype": "float32"}) == 17 * 36 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)
    assert states(data_parallel=2, expert_parallel=2) == 18 * state
    assert states(tensor_parallel=2) == 17 * state // 2
    with pytest.raises(InfeasibleError, match=r"places for what requests have whole.*(?s:.)*max_batch_size"):
        states(batch=8192, tensor_parallel=1)
    plain = plan(request_of("Qwen/Qwen3-Next-80B-A3B-Instruct", "b300-sxm-288gb", max_batch_size=16))
    asked = plan(
        request_of(
            "Qwen/Qwen3-Next-80B-A3B-Instruct", "b300-sxm-288gb", max_batch_size=16, kv_cache_config={"enable_block_reuse": True}
        )
    )
    assert (len(plain.warnings), len(asked.warnings)) == (0, 1)
    assert "snapshots of their states" in asked.warnings[0]
    wide = replace(request_of("Qwen/Qwen3.5-35B-A3B", "b300-sxm-288gb", max_batch_size=16))  # its config asks for float32
    assert plan(wide).memory.bytes_of("state") == 17 * 30 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)
    assert plan(wide, "1.0.0").memory.bytes_of("state") == 17 * 30 * (32 * 128 * 128 + 3 * 8192) * 2
    kimi = plan(request_of("moonshotai/Kimi-Linear-48B-A3B-Instruct", "h200-sxm-141gb", max_batch_size=16))
    assert kimi.limits.block_tokens == 64


@pytest.mark.parametrize(
    "flags", [{"moe_config": {"backend": "MARLIN"}}, {"nvfp4_gemm_config": {"allowed_backends": ["cutlass", "marlin"]}}]
)
def test_nvfp4_is_widened_where_flags_name_the_kernels_that_do(flags: dict[str, Any]) -> None:
    def found(device: str, **more: Any) -> EnginePlan:
        deployment = {"engine": "trtllm", "hardware": device, "weights": "nvfp4", "engine_args": more}
        return prepare(load_scenario({**scenario_of(), "model": "Qwen/Qwen3-30B-A3B", "deployment": deployment})).plan

    with pytest.raises(InputError, match=r"has no such arithmetic(?s:.)*MARLIN"):
        found("h200-sxm-141gb")
    terms = found("h200-sxm-141gb", **flags).costs.terms
    assert (terms.moe_backend, 0.0 < terms.marlin_share < 1.0) == ("vllm/marlin", True)
    native = found("b200-sxm-180gb", **flags).costs.terms
    assert (native.moe_backend, native.marlin_share) == ("cutlass", 0.0)


def test_windows_and_what_is_being_compressed_have_whole_blocks_for_each_active_request() -> None:
    """DeepSeek-V4-Flash in FP8: 43 windows, 21 layers of entries of four tokens with an indexer (132 bytes an entry), 20 of 128.

    A token's share is 21 * (644 // 4) + 20 * (512 // 128) bytes; a request has a block of 128 tokens of each window, and of the
    tokens being compressed, keys and scores in float32, those of overlapping entries twice as wide.
    """
    fp8 = format_named("fp8")
    request = request_of("deepseek-ai/DeepSeek-V4-Flash", "b300-sxm-288gb", max_batch_size=16)
    request = replace(request, formats=Formats(format_named("fp8_block"), fp8, fp8), tensor_parallel=4)
    found = plan(request)
    assert found.memory.kv_bytes_per_token == 21 * 161 + 20 * 4
    each = 128 * (43 * 512 + 21 * 2 * 2 * (512 + 128) * 4 + 20 * 2 * 512 * 4)
    assert found.memory.bytes_of("state") == 16 * each
    assert found.limits.block_tokens == 128
    with pytest.raises(InputError, match="in blocks of 128 or 256 tokens, not of 32"):
        plan(replace(request, flags={"kv_cache_config": {"tokens_per_block": 32}}))


def test_windows_and_sparse_attention_are_read_where_they_say_what_the_model_is() -> None:
    gemma = {"kv_cache_config": {"max_attention_window": [1024, 1024, 1024, 1024, 1024, 32768]}}
    (warning,) = plan(request_of("google/gemma-3-27b-it", max_seq_len=32768, **gemma)).warnings
    assert "holds more requests than here" in warning
    with pytest.raises(InputError, match="whose layers have windows of 1024"):
        plan(request_of("google/gemma-3-27b-it", max_seq_len=32768, kv_cache_config={"max_attention_window": [512, 32768]}))
    with pytest.raises(InputError, match="attend to all tokens"):
        plan(request_of(kv_cache_config={"max_attention_window": [4096]}))
    assert plan(request_of(kv_cache_config={"max_attention_window": [131072]})).warnings == ()
    sparse = {"sparse_attention_config": {"algorithm": "minimax_m3"}, "max_seq_len": 9000}
    minimax = replace(request_of("MiniMaxAI/MiniMax-M3", "b300-sxm-288gb", **sparse), tensor_parallel=8)
    assert plan(minimax).limits.context_tokens == 9000
    with pytest.raises(InputError, match="algorithm rocket is not simulated"):
        plan(request_of(sparse_attention_config={"algorithm": "rocket"}))
    assert prepared(kv_cache_config={"block_reuse_policy": "all_reusable"}).plan.warnings == ()
    assert "block_reuse_policy" in prepared(kv_cache_config={"block_reuse_policy": "per_conversation"}).plan.warnings[0]


def test_other_makers_other_layers_and_too_large_models_are_refused() -> None:
    with pytest.raises(InputError, match="runs on NVIDIA GPUs, not on mi300x-192gb"):
        plan(request_of(device="mi300x-192gb"))
    with pytest.raises(InputError, match="of NVIDIA's devices with unified memory it serves DGX Spark"):
        plan(request_of(device="jetson-thor-128gb"))
    assert plan(request_of(device="dgx-spark-128gb")).limits.told_tokens > 100_000
    with pytest.raises(InputError, match="serves no recurrent layers such as those of MiniMaxAI/MiniMax-Text-01"):
        plan(request_of("MiniMaxAI/MiniMax-Text-01"))
    pool = {"hardware": "h200-sxm-141gb", "tensor_parallel": 8, "engine": "trtllm"}
    found = prepare(load_scenario({**scenario_of(), "model": "deepseek-ai/DeepSeek-V3.2", "deployment": pool}))
    assert any("indexed attention" in note for note in found.assumptions)
    with pytest.raises(InfeasibleError, match="does not fit: weights 141"):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct", "l4-24gb"))


@pytest.mark.parametrize(
    ("weights", "device", "able"),
    [
        ("fp8", "a100-sxm-80gb", False),
        ("fp8", "l40s-48gb", True),
        ("nvfp4", "h100-sxm-80gb", False),
        ("nvfp4", "b200-sxm-180gb", True),
    ],
)
def test_formats_that_a_gpu_does_not_compute_in_are_refused(weights: str, device: str, able: bool) -> None:
    deployment = {"engine": "trtllm", "hardware": device, "weights": weights}
    workload = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 10, "output_tokens": 10}
    scenario = load_scenario({"model": LLAMA, "deployment": deployment, "workload": workload})
    if able:
        assert prepare(scenario).formats.weights.name == weights
    else:
        with pytest.raises(InputError, match="has no such arithmetic"):
            prepare(scenario)


def test_version_1_says_that_it_is_not_proven() -> None:
    assert [plan(request_of(), name).version for name in ("1.1", "1.2")] == ["1.0.0", "1.2.0"]
    assert any("no recording of it was compared" in note for note in plan(request_of(), "1.0").notes)
    assert not any("no recording" in note for note in plan(request_of()).notes)


def test_versions_before_1_3_quantise_token_after_token_on_blackwell() -> None:
    """A prompt's pass takes 35 ns a token, beyond the cache, whatever its depth; few rows and what stays in the cache less."""

    def serial(version: str, device: str) -> bool:
        return plan(request_of(device=device), version).costs.terms.serial_quantisation

    cases = (("1.2", "b200-sxm-180gb"), ("1.3", "b200-sxm-180gb"), ("1.2", "h200-sxm-141gb"))
    assert [serial(*case) for case in cases] == [True, False, False]
    ops = operations_of(load_device("b200-sxm-180gb"), "trtllm")
    shapes = (64, 7168), (1024, 512), (8192, 2048)
    few, cached, beyond = (serial_quantisation.pass_s(ops, np.array([m]), 7168, k)[0] for m, k in shapes)
    assert (few, cached, beyond) == (0.0, pytest.approx(1024 * 18.5e-9), pytest.approx(8192 * 35e-9))
    assert serial_quantisation.pass_s(ops, np.array([8192]), 7168, 7168)[0] == beyond


def _steps(model: str, device: str, weights: str, tensor: int = 1, **flags: Any) -> StepTimeModel:
    scenario = {
        "model": model,
        "deployment": {
            "engine": "trtllm",
            "hardware": device,
            "weights": weights,
            "tensor_parallel": tensor,
            "engine_args": {"max_num_tokens": 1024, "max_batch_size": 64, **flags},
        },
        "workload": {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 8, "output_tokens": 1},
    }
    steps = prepare(load_scenario(scenario)).times()
    assert isinstance(steps, StepTimeModel)
    return steps


def test_fused_kernels_are_no_extra_ones() -> None:
    """Reductions hold the norms beside them, and attention rotates what it writes to the cache."""
    parts = _steps(LLAMA, "h100-sxm-80gb", "fp8", 2).parts_s(np.array([16]))
    assert parts["norms"] == 0.0
    assert "rotary" not in parts
    assert _steps(LLAMA, "h100-sxm-80gb", "fp8").parts_s(np.array([16]))["norms"] > 0.0


def test_experts_are_those_of_the_backend() -> None:
    """Generated kernels take less than half of CUTLASS's time at 4 rows (DeepSeek-R1 on B200); the tables tell them apart."""

    def experts_s(backend: str) -> float:
        steps = _steps("deepseek-ai/DeepSeek-R1", "b200-sxm-180gb", "nvfp4", 8, moe_config={"backend": backend})
        return float(steps.parts_s(np.array([4]))["experts"][0])

    assert experts_s("TRTLLM") < 0.5 * experts_s("CUTLASS")
    assert experts_s("AUTO") == experts_s("CUTLASS")
    flags = {"moe_config": {"backend": "WIDEEP"}}
    (warning,) = plan(request_of("mistralai/Mixtral-8x7B-v0.1", device="h200-sxm-141gb", **flags)).warnings
    assert "WIDEEP is not modelled" in warning


def test_experts_of_gpt_oss_on_hopper_are_those_of_the_own_table() -> None:
    """Of 8,192 tokens they take at least 1.3 times what the same package takes under another engine."""

    def experts_s(engine: str) -> float:
        deployment = {"engine": engine, "hardware": "h200-sxm-141gb", "weights": "mxfp4"}
        load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 8192, "output_tokens": 1}
        found = prepare(load_scenario({"model": "openai/gpt-oss-120b", "deployment": deployment, "workload": load}))
        steps = found.times()
        assert isinstance(steps, StepTimeModel)
        return float(steps.parts_s(np.array([8192]))["experts"][0])

    assert experts_s("trtllm") > 1.3 * experts_s("vllm")
    formats = Formats(*[format_named(name) for name in ("mxfp4", "bf16", "bf16")])

    def backend(device: str, **flags: Any) -> str | None:
        asked = replace(request_of("openai/gpt-oss-120b", device, **flags), formats=formats)
        return plan(asked).costs.terms.moe_backend

    assert [backend("h200-sxm-141gb"), backend("b200-sxm-180gb")] == ["trtllm/triton", "vllm/trtllm"]
    assert backend("b200-sxm-180gb", moe_config={"backend": "TRITON"}) == "vllm/triton"
    assert backend("rtx-pro-6000-96gb") == "cutlass"  # the generated ones are for stacked memory alone


@pytest.mark.parametrize(
    ("version", "hardware", "wanted"),
    [("1.3.0", "b200-sxm-180gb", "vllm/trtllm"), ("1.2.0", "b200-sxm-180gb", "cutlass"), ("1.3.0", "h200-sxm-141gb", "cutlass")],
)
def test_experts_in_fp8_blocks_run_on_generated_kernels_on_blackwell(version: str, hardware: str, wanted: str) -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 8, "output_tokens": 1}
    deployment = {"engine": f"trtllm@{version}", "hardware": hardware, "tensor_parallel": 8}
    found = prepare(load_scenario({"model": "deepseek-ai/DeepSeek-R1", "deployment": deployment, "workload": load}))
    assert found.plan.costs.terms.moe_backend == wanted


@pytest.mark.parametrize(
    ("hardware", "wanted"), [("b200-sxm-180gb", "fp8"), ("rtx-pro-6000-96gb", "fp8"), ("h200-sxm-141gb", "bf16")]
)
def test_activations_are_quantised_before_experts_in_mxfp4_on_blackwell(hardware: str, wanted: str) -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 8, "output_tokens": 1}
    for asked in (None, "bf16"):
        deployment = {"engine": "trtllm", "hardware": hardware} | ({"activations": asked} if asked else {})
        found = prepare(load_scenario({"model": "openai/gpt-oss-120b", "deployment": deployment, "workload": load}))
        assert found.formats.activations.name == (asked or wanted)


def test_a_shared_expert_hides_behind_the_routed_ones_where_graphs_hold_both() -> None:
    captured = _steps("deepseek-ai/DeepSeek-R1", "h200-sxm-141gb", "fp8_block", 8)
    launched = _steps("deepseek-ai/DeepSeek-R1", "h200-sxm-141gb", "fp8_block", 8, cuda_graph_config="none")
    beside, alone = (steps.parts_s(np.array([16]))["experts"][0] for steps in (captured, launched))
    assert beside < alone - 5e-6 * 58
    assert launched.parts_s(np.array([1024]))["experts"] == captured.parts_s(np.array([1024]))["experts"]


ADP = {"tp_size": 4, "ep_size": 4, "enable_attention_dp": True, "max_seq_len": 4096}


def _on_four_ranks(**balance: Any) -> Prepared:
    scenario = {
        "model": "mistralai/Mixtral-8x7B-v0.1",
        "deployment": {
            "engine": "trtllm",
            "hardware": "h200-sxm-141gb",
            "engine_args": ADP | ({"attention_dp_config": balance} if balance else {}),
        },
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": 8},
            "requests": 32,
            "prompt_tokens": {"kind": "uniform", "low": 200, "high": 600},
            "output_tokens": {"kind": "uniform", "low": 20, "high": 60},
        },
    }
    return prepare(load_scenario(scenario))


def test_attention_data_parallelism_makes_every_device_a_rank() -> None:
    found = _on_four_ranks()
    assert (found.ranks, found.devices_each, found.pool.tensor_parallel) == (4, 4, 1)
    assert found.plan.executor.rank_router == "fewest"
    assert found.plan.executor.gate() is None
    assert found.plan.memory.bytes_of("weight") > 24e9  # attention and embeddings whole, a quarter of the experts, in 16 bits
    scenario = scenario_of(tp_size=4, enable_attention_dp=True)
    scenario["deployment"]["tensor_parallel"] = 4
    with pytest.raises(InputError, match="over all ranks"):
        prepare(load_scenario(scenario))


@pytest.mark.parametrize(
    ("version", "hardware", "flags", "wanted"),
    [
        ("1.3.0", "b200-sxm-180gb", {}, True),
        ("1.2.0", "h200-sxm-141gb", {}, True),
        ("1.1.0", "b200-sxm-180gb", {}, False),  # ranks that do not outnumber the experts of a token gathered then
        ("1.2.0", "b200-sxm-180gb", {"moe_config": {"backend": "DEEPGEMM"}}, False),
        ("1.3.0", "b200-sxm-180gb", {"moe_config": {"backend": "DEEPGEMM"}}, True),
        ("1.3.0", "b200-sxm-180gb", {"ep_size": 2}, False),  # experts split by width too
        ("1.3.0", "rtx-pro-6000-96gb", {}, False),  # no switch between them
    ],
)
def test_ranks_write_tokens_to_ranks_of_experts(version: str, hardware: str, flags: dict[str, Any], wanted: bool) -> None:
    deployment = {"engine": f"trtllm@{version}", "hardware": hardware, "engine_args": ADP | flags}
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 8, "output_tokens": 1}
    found = prepare(load_scenario({"model": "Qwen/Qwen3-30B-A3B", "deployment": deployment, "workload": load}))
    assert found.plan.costs.terms.one_sided is wanted


def test_ranks_that_balance_begin_prompts_together() -> None:
    """A prompt waits until every rank has one, or for as many steps as it may."""

    def starts(**balance: Any) -> int:
        return len(np.unique(run_prepared(_on_four_ranks(**balance)).raw.first_scheduled_s))

    together = {"enable_balance": True, "batching_wait_iters": 0}
    alone, patient, hasty = starts(), starts(timeout_iters=1000, **together), starts(timeout_iters=1, **together)
    assert patient < 0.6 * alone
    assert patient < hasty <= alone


def test_prompts_together_by_hand() -> None:
    """Two ranks: both generate, one has a prompt; it waits three steps, or until the other has one too."""
    found = _on_four_ranks()
    ranks = [scheduler_of(found.plan) for _ in range(2)]
    gate = PromptsTogether(3, 0)

    def step(*arriving: int) -> list[int]:
        for rank in arriving:
            ranks[rank].add(Sequence(index=next(numbers), arrival_s=0.0, prompt_tokens=64, output_tokens=40))
        gate.agree(ranks)
        formed = [rank.schedule(0.0) for rank in ranks]
        for rank, batch in zip(ranks, formed, strict=True):
            if batch is not None:
                rank.settle(batch)
        return [0 if batch is None else len(batch.contexts) for batch in formed]

    numbers = iter(range(10))
    assert step(0) == [1, 0]  # the other is idle
    assert step(1) == [0, 1]
    assert [step(0), step(), step(), step()] == [[0, 0], [0, 0], [1, 0], [0, 0]]
    assert [step(1), step(0)] == [[0, 0], [1, 1]]


def _server(role: str, blocks: int = 40) -> ContextServer | GenerationServer:
    kv = BlockTree(blocks, 32, prefix_caching=False)
    rules = TwoPassRules(max_batch_size=8, max_num_tokens=512, max_seq_len=1024, overlap=role == "generation")
    return GenerationServer(rules, kv) if role == "generation" else ContextServer(rules, kv)


def _request(index: int, prompt: int, output: int) -> Sequence:
    found = Sequence(index, prompt, output, 0.0)
    found.stop_known, found.limit_tokens = True, output
    return found


def test_context_server_keeps_blocks_until_they_are_sent() -> None:
    server = _server("context")
    first, second = _request(0, 320, 1), _request(1, 160, 1)
    for seq in (first, second):
        server.add(seq)
    batch = server.schedule(0.0)
    assert batch is not None
    assert batch.tokens == 480
    assert server.settle(batch) == [first, second]
    assert (server.kv.free_blocks, server.turns() > 1, server.has_work()) == (40 - 15, True, False)
    assert isinstance(server, ContextServer)
    server.release(first)
    assert server.kv.free_blocks == 40 - 5


def test_generation_server_reads_what_fits_with_its_answer_and_computes_no_prompt() -> None:
    """Blocks of 32: the first two need 20 of 40 each, and nobody goes past the third, for which none is left."""
    server = _server("generation")
    assert isinstance(server, GenerationServer)
    first, second, large, small = (_request(i, *sizes) for i, sizes in enumerate([(320, 320), (320, 320), (320, 64), (32, 1)]))
    for seq in (first, second, large, small):
        server.add(seq)
    assert server.schedule(0.5) is None
    assert [(note.seq, note.at_s, note.tokens) for note in server.notes] == [(first, 0.5, 320), (second, 0.5, 320)]
    assert (server.state()[:2], server.turns() > 1, server.speaks_s(1.0, expects=False)) == ((0, 4), True, 1.0)
    server.arrived(first)
    batch = server.schedule(0.6)
    assert batch is not None
    assert (batch.tokens, batch.decode_rows, len(batch.contexts)) == (1, 1, 0)
    assert server.settle(batch) == []
    assert (first.first_scheduled_s, server.state()[:2]) == (0.6, (1, 3))


def test_a_generation_server_over_stages_takes_in_who_has_come_in_the_slot_whose_turn_is_next() -> None:
    """Two slots of one row each, three requests of three tokens whose prompts have come: the third waits for a slot to be free.

    A request's first token comes with it (batches 0 and 2), its others with its slot's turns: 1 and 4, 3 and 5. When the first
    has ended its slot takes the third in (6, then 7 and 8).
    """
    rules = TwoPassRules(max_batch_size=1, max_num_tokens=512, max_seq_len=1024, overlap=False)
    server = StagedGenerationServer(rules, BlockTree(40, 32, prefix_caching=False), stages=2, pieces_follow=True)
    server.max_active = 3
    requests = [_request(index, 64, 3) for index in range(3)]
    for seq in requests:
        server.add(seq)
    assert server.schedule(0.0) is None
    assert [note.seq for note in server.notes] == requests
    for seq in requests:
        server.arrived(seq)
    flying: list[TwoPassBatch] = []
    formed: list[list[int]] = []
    while server.has_work():
        batch = server.schedule(1.0)
        if batch is not None:
            assert batch.decode_rows == batch.tokens == 1
            flying.append(batch)
            formed.append([batch.number, len(flying)])
        else:
            server.settle(flying.pop(0))
    assert formed == [[1, 1], [3, 2], [4, 2], [5, 2], [7, 2], [8, 1]]
    assert [[number for first, last in seq.ranges() for number in range(first, last + 1)] for seq in requests] == [
        [0, 1, 4],
        [2, 3, 5],
        [6, 7, 8],
    ]
    assert server.kv.free_blocks == 40


def test_servers_that_share_requests() -> None:
    pool = {"engine": "trtllm", "hardware": "h100-sxm-80gb", "weights": "fp8"}
    pools = [{**pool, "name": role, "role": role} for role in ("prefill", "decode")]
    load = {"arrivals": {"kind": "poisson", "rate": 8}, "requests": 60, "prompt_tokens": 600, "output_tokens": 30}
    scenario = load_scenario({"model": LLAMA, "deployment": {"pools": pools}, "workload": load})
    jumped, stepped = simulate(scenario), simulate(scenario, aggregate=False)
    assert jumped.result["metrics"] == stepped.result["metrics"]
    assert jumped.result["metrics"]["transfer_ms"]["mean"] > 0.1
    assert jumped.result["metrics"]["output_tokens"]["mean"] == 30.0
    for flags, words in (
        ({"scheduler_config": {"capacity_scheduler_policy": "STATIC_BATCH"}}, "pools with STATIC_BATCH"),
        ({"cache_transceiver_config": {"backend": "PIGEON"}}, "PIGEON are not modelled"),
    ):
        scenario = load_scenario(
            {
                "model": LLAMA,
                "deployment": {"pools": [pools[0] | {"engine_args": flags}, pools[1]]},
                "workload": load,
            }
        )
        with pytest.raises(InputError, match=words):
            prepare(scenario)
