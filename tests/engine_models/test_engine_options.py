"""Flags that decide together, or with the model and the device: what a plan makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from engine_models.declaration import EnginePlan
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import Prepared, prepare
from simulator.run import run_prepared

WORKLOAD = {"arrivals": {"kind": "poisson", "rate": 1}, "prompt_tokens": 10, "output_tokens": 10, "duration": 10}


def prepared(args: Any, engine: str = "vllm", model: Any = "Qwen/Qwen3-8B", **pool: Any) -> Prepared:
    deployment = {"engine": engine, "hardware": "h100-sxm-80gb", "engine_args": args, **pool}
    return prepare(load_scenario({"model": model, "deployment": deployment, "workload": WORKLOAD}))


def plan(args: Any, engine: str = "vllm", **given: Any) -> EnginePlan:
    return prepared(args, engine, **given).plan


def graphs(found: EnginePlan) -> tuple[int, ...]:
    return found.costs.terms.graph_sizes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-O0", "--enforce-eager"),
        ("--compilation-config 0", "--enforce-eager"),
        ('--compilation-config \'{"cudagraph_mode": "NONE"}\'', "--enforce-eager"),
        ("--compilation-config.cudagraph_mode NONE", "--enforce-eager"),
        ("-O3", ""),
        ("--optimization-level 2", ""),
        ("--compilation-config 3", ""),
        ('-cc \'{"cudagraph_mode": "FULL_AND_PIECEWISE", "mode": 3}\'', ""),
        ('-cc \'{"cudagraph_capture_sizes": [1, 8, 64]}\'', "--cudagraph-capture-sizes 1 8 64"),
        ("--cuda-graph-sizes 1 8 64", "--cudagraph-capture-sizes 1 8 64"),
        ("--cuda-graph-sizes 1024", "--max-cudagraph-capture-size 1024"),
        ("-cc.max_cudagraph_capture_size 64", "--max-cudagraph-capture-size 64"),
        ("--performance-mode balanced", ""),
        ("--max-model-len auto --performance-mode balanced", "--max-model-len -1"),
        ("--spec-method ngram --spec-tokens 3", '--speculative-config \'{"method": "ngram", "num_speculative_tokens": 3}\''),
        ("--speculative-model '[ngram]' --num-speculative-tokens 3", "--spec-method ngram --spec-tokens 3"),
    ],
)
def test_flags_that_say_the_same_make_the_same_plan(one: str, other: str) -> None:
    drafts = {"speculative": {"acceptance": 0.5}} if "spec" in one else {}
    first, second = (plan(f"vllm serve Qwen/Qwen3-8B {flags}", **drafts) for flags in (one, other))
    assert (graphs(first), first.limits, first.warnings, first.costs.terms) == (
        graphs(second),
        second.limits,
        second.warnings,
        second.costs.terms,
    )


def test_modes_of_graphs() -> None:
    decodes = plan("--compilation-config.cudagraph_mode FULL_DECODE_ONLY")
    assert graphs(decodes) == graphs(plan(""))
    assert decodes.costs.terms.host.prefill_graph_tokens == 0 < plan("").costs.terms.host.prefill_graph_tokens
    assert "PIECEWISE" in plan("--compilation-config.cudagraph_mode PIECEWISE").warnings[0]
    assert "pass_config" in plan("--compilation-config.pass_config.fuse_norm_quant true").warnings[0]
    with pytest.raises(InputError, match="cudagraph_capture_sizes"):
        plan('-cc \'{"cudagraph_capture_sizes": ["a"]}\'')


def test_performance_modes_change_the_defaults_and_nothing_given() -> None:
    usual, busy = plan(""), plan("--performance-mode throughput")
    assert (busy.limits.rows, busy.limits.step_tokens) == (2 * usual.limits.rows, 2 * usual.limits.step_tokens)
    given = plan("--performance-mode throughput --max-num-seqs 7 --max-num-batched-tokens 4000")
    assert (given.limits.rows, given.limits.step_tokens) == (7, 4000)
    assert {*range(1, 33)} <= {*graphs(plan("--performance-mode interactivity"))}


def test_limits_beside_the_largest_batch() -> None:
    rules = plan("--max-num-active-seqs 5 --max-num-scheduled-tokens 100").scheduler("step").rules
    assert (rules.max_num_seqs, rules.max_num_batched_tokens) == (5, 100)
    front = plan("--max-num-queued-reqs 9").front
    assert (front.inflight, front.on_full) == (9, "503")


@pytest.mark.parametrize(("version", "ahead"), [("0.19.1", False), ("0.24.0", True)])
def test_batches_are_not_scheduled_ahead_through_ray_in_old_releases(version: str, ahead: bool) -> None:
    assert plan("", f"vllm@{version}").executor.depth == 2
    assert (plan("--distributed-executor-backend ray", f"vllm@{version}").executor.depth == 2) == ahead


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("engine", "args", "context"),
    [
        ("vllm", {"hf_overrides": {"max_position_embeddings": 8192}}, 8192),
        ("vllm", {"hf_overrides": {"text_config": {"rope_parameters": YARN}}}, 131072),
        ("vllm", {"rope_scaling": YARN}, 131072),
        ("vllm", {"hf_overrides": {"rope_scaling": YARN}, "max_model_len": 5000}, 5000),
        ("vllm", {"hf_overrides": {"architectures": ["A"]}}, 40960),
        ("sglang", {"json_model_override_args": {"rope_scaling": YARN}}, 131072),
        ("sglang", {}, 40960),
    ],
)
def test_overrides_of_the_config_change_the_context(engine: str, args: dict[str, Any], context: int) -> None:
    assert plan(args, engine).limits.context_tokens == context


@pytest.mark.parametrize(
    ("engine", "flag", "overrides"),
    [("vllm", "max_model_len", "hf_overrides"), ("sglang", "context_length", "json_model_override_args")],
)
def test_a_context_beyond_the_models_is_warned_of_unless_the_model_is_stretched(engine: str, flag: str, overrides: str) -> None:
    assert plan({flag: 40960}, engine).warnings == ()
    (said,) = plan({flag: 131072}, engine).warnings
    assert "131,072 is above the model's context of 40,960" in said
    assert plan({flag: 131072, overrides: {"rope_scaling": YARN}}, engine).warnings == ()


def test_overrides_of_sizes_belong_to_the_model() -> None:
    with pytest.raises(InputError, match="hf_overrides changes `num_hidden_layers` of the model"):
        plan({"hf_overrides": {"num_hidden_layers": 2}})
    assert "index_topk_pattern" in plan({"json_model_override_args": {"index_topk_pattern": "F"}}, "sglang").warnings[0]


@pytest.mark.parametrize(
    ("engine", "args", "pool", "warned"),
    [
        ("vllm", {"attention_backend": "FLASH_ATTN"}, {}, ""),
        ("vllm", {"attention_config": {"backend": "FLASH_ATTN"}}, {}, ""),
        ("vllm", {"attention_backend": "FLASHINFER"}, {}, "FLASH_ATTN"),
        ("vllm", {"attention_backend": "FLASHINFER"}, {"hardware": "b200-sxm-180gb"}, ""),
        ("vllm", {"attention_backend": "FLASHINFER"}, {"hardware": "l40s-48gb", "kv_cache": "fp8"}, ""),
        ("sglang", {"attention_backend": "fa3"}, {}, ""),
        ("sglang", {"attention_backend": "triton"}, {"model": "deepseek-ai/DeepSeek-V3", "tensor_parallel": 16}, "fa3"),
        ("sglang", {"decode_attention_backend": "flashinfer"}, {"hardware": "l40s-48gb"}, ""),
        ("sglang", {"attention_backend": "trtllm_mha"}, {"hardware": "b200-sxm-180gb"}, ""),
        ("sglang", {"moe_runner_backend": "deep_gemm"}, {}, ""),  # no experts
        ("sglang", {"moe_runner_backend": "triton"}, {"model": "Qwen/Qwen3-30B-A3B"}, ""),
        ("sglang", {"moe_runner_backend": "flashinfer_cutlass"}, {"model": "Qwen/Qwen3-30B-A3B"}, ""),
        ("sglang", {"moe_runner_backend": "deep_gemm"}, {"model": "Qwen/Qwen3-30B-A3B"}, "deep_gemm"),
    ],
)
def test_kernels_that_the_engine_would_not_pick_are_warned_about(
    engine: str, args: dict[str, Any], pool: dict[str, Any], warned: str
) -> None:
    said = plan(args, engine, **pool).warnings
    assert bool(said) == bool(warned)
    assert all("not modelled" in words and warned in words for words in said)


@pytest.mark.parametrize(
    ("args", "hardware", "ignored"),
    [
        ({"attention_backend": "triton"}, "h100-sxm-80gb", "triton"),  # timed with heads of 256 alone
        ({"attention_backend": "flashinfer"}, "b200-sxm-180gb", ""),
        ({"attention_backend": "trtllm_mha"}, "b200-sxm-180gb", ""),
        ({"decode_attention_backend": "torch_native"}, "h100-sxm-80gb", "torch_native"),
    ],
)
def test_attention_that_nobody_timed_is_priced_as_the_engines_own(args: dict[str, Any], hardware: str, ignored: str) -> None:
    asked, own = prepared(args, "sglang", hardware=hardware), prepared({}, "sglang", hardware=hardware)
    assert [words.split(":")[0] for words in asked.warnings] == ([f"attention backend {ignored}"] if ignored else [])
    if ignored:
        assert run_prepared(asked).result["metrics"] == run_prepared(own).result["metrics"]


def test_whole_sequences_in_sliding_windows_are_refused() -> None:
    assert plan({"disable_hybrid_kv_cache_manager": True}).limits == plan({}).limits
    with pytest.raises(InputError, match="keeps whole sequences in the sliding windows"):
        plan({"disable_hybrid_kv_cache_manager": True}, model="google/gemma-3-12b-it")


def test_sampling_follows_the_override_of_the_generation_config() -> None:
    assert plan({}).costs.terms.truncated_sampling
    assert not plan({"override_generation_config": {"top_p": 1.0}}).costs.terms.truncated_sampling
    greedy = {"generation_config": "vllm", "override_generation_config": {"top_k": 20}}
    assert plan(greedy).costs.terms.truncated_sampling


def test_sglangs_newer_names_are_the_older_ones() -> None:
    moe: dict[str, Any] = {"model": "Qwen/Qwen3-30B-A3B"}
    old = prepared("--tp 8 --dp-size 8 --enable-dp-attention", "sglang", **moe)
    new = prepared("--tp 8 --attn-dp-size 8", "sglang", **moe)
    assert (old.ranks, old.devices, old.plan.limits) == (new.ranks, new.devices, new.plan.limits) != (1, 1, new.plan.limits)
    assert graphs(plan("--cuda-graph-bs-decode 4 1", "sglang")) == (1, 4)
    assert graphs(plan("--cuda-graph-max-bs-decode 16", "sglang"))[-1] == 16


BLOCKS = "Qwen/Qwen3-30B-A3B-FP8"


@pytest.mark.parametrize(
    ("engine", "args", "model", "weights", "kv_cache"),
    [
        ("vllm", {"quantization": "fp8"}, "Qwen/Qwen3-8B", "fp8", "bf16"),
        ("vllm", {"quantization": "fp8"}, BLOCKS, "fp8_block", "bf16"),
        ("vllm", {"quantization": "compressed-tensors"}, BLOCKS, "fp8_block", "bf16"),
        ("vllm", {"kv_cache_dtype": "int8_per_token_head"}, "Qwen/Qwen3-8B", "bf16", "int8"),
        ("vllm", {"dtype": "float32"}, "Qwen/Qwen3-8B", "fp32", "fp32"),
        ("vllm", {"dtype": "half"}, "Qwen/Qwen3-8B", "bf16", "bf16"),
        ("sglang", {"quantization": "w8a8_fp8", "kv_cache_dtype": "mxfp8"}, "Qwen/Qwen3-8B", "fp8", "fp8"),
        ("sglang", {"quantization": "unquant"}, "Qwen/Qwen3-8B", "bf16", "bf16"),
    ],
)
def test_number_formats_of_flags(engine: str, args: dict[str, Any], model: str, weights: str, kv_cache: str) -> None:
    formats = prepared(args, engine, model).formats
    assert (formats.weights.name, formats.kv_cache.name) == (weights, kv_cache)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"quantization": "compressed-tensors"}, "takes the checkpoint's number format, and Qwen/Qwen3-8B is not quantized"),
        ({"quantization": "bitblas_4bit"}, "this number format is not modelled"),
        ({"kv_cache_dtype": "turboquant_4bit_nc"}, "this number format is not modelled"),
    ],
)
def test_number_formats_that_are_not_known_are_refused_at_their_flag(args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        prepared(args)
    assert next(iter(args)) in refused.value.message


def test_nothing_is_scheduled_ahead_on_a_cpu_unless_asked_for() -> None:
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare

    def depth(**args: bool) -> int:
        deployment = {"engine": "vllm", "hardware": "xeon-8480-2s", "engine_args": args}
        workload = {
            "arrivals": {"kind": "batch"},
            "requests": 1,
            "prompt_tokens": {"kind": "constant", "value": 100},
            "output_tokens": {"kind": "constant", "value": 10},
        }
        scenario = {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": workload}
        return prepare(load_scenario(scenario)).plan.executor.depth

    assert depth() == 1
    assert depth(async_scheduling=True) == 2


@pytest.mark.parametrize("engine", ["trtllm", "lmdeploy_pytorch", "deepspeed_mii", "inferflow", "exllamav2"])
def test_engines_of_one_maker_refuse_all_others_gpus(engine: str) -> None:
    from hardware_profiles.device import all_devices
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare

    others = [device.name for device in all_devices() if device.kind == "gpu" and device.vendor != "nvidia"]
    assert {"mi300x-192gb", "radeon-ai-pro-r9700-32gb"} <= set(others)
    assert any(name.startswith("arc-") for name in others)
    workload = {
        "arrivals": {"kind": "batch"},
        "requests": 1,
        "prompt_tokens": {"kind": "constant", "value": 100},
        "output_tokens": {"kind": "constant", "value": 10},
    }
    for name in others:
        deployment = {"engine": engine, "hardware": name}
        scenario = {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": workload}
        with pytest.raises(InputError, match="NVIDIA"):
            prepare(load_scenario(scenario))
