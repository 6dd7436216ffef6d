"""Which kernels vLLM's experts run on, and what that makes of their time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.cost import cutlass_blocks
from engine_models.cost.terms import Shard, product_s
from engine_models.model.architecture import gemm_shapes
from hardware_profiles.device import load_device
from hardware_profiles.kernels import operations_of
from simulator import load_scenario
from simulator.prepare import Prepared, prepare

REFUSED = {"use_flashinfer_moe_fp8": False, "moe_use_deep_gemm": False}
QWEN, R1 = "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-R1"
WORKLOAD = {"arrivals": {"kind": "batch"}, "prompt_tokens": 100, "output_tokens": 10, "requests": 4}


def prepared(model: str, version: str, hardware: str, **pool: Any) -> Prepared:
    """A pool of eight devices of vLLM."""
    deployment = {"engine": f"vllm@{version}", "hardware": hardware, "tensor_parallel": 8, **pool}
    return prepare(load_scenario({"model": model, "deployment": deployment, "workload": WORKLOAD}))


@pytest.mark.parametrize(
    ("version", "model", "hardware", "pool", "wanted"),
    [
        ("0.19.1", QWEN, "b200-sxm-180gb", {}, "triton"),
        ("0.22.0", QWEN, "b200-sxm-180gb", {}, "trtllm"),
        ("0.22.0", QWEN, "h100-sxm-80gb", {}, "cutlass"),
        ("0.24.0", QWEN, "h100-sxm-80gb", {}, "triton"),
        ("0.24.0", QWEN, "rtx-pro-6000-96gb", {}, "cutlass"),
        ("0.24.0", QWEN, "a100-sxm-80gb", {}, "triton"),
        ("0.24.0", QWEN, "b200-sxm-180gb", {"engine_args": {"moe_backend": "triton"}}, "triton"),
        ("0.24.0", QWEN, "h100-sxm-80gb", {"weights": "int4"}, "marlin"),
        ("0.12.0", "openai/gpt-oss-120b", "h100-sxm-80gb", {}, "triton"),
        ("0.11.2", "openai/gpt-oss-120b", "h100-sxm-80gb", {}, "marlin"),
        ("0.24.0", R1, "h200-sxm-141gb", {}, "triton"),
        ("0.24.0", R1, "h200-sxm-141gb", {"expert_parallel": True}, "cutlass"),
        ("0.14.0", R1, "h200-sxm-141gb", {}, "triton"),
        ("0.14.0", R1, "h200-sxm-141gb", {"expert_parallel": True}, None),
        ("0.14.0", R1, "h200-sxm-141gb", {"expert_parallel": True, "engine_args": {"use_deep_gemm": False}}, "triton"),
        ("0.16.0", R1, "h200-sxm-141gb", {}, "trtllm/cutlass"),
        ("0.17.0", R1, "h200-sxm-141gb", {}, "triton"),
        ("0.18.0", R1, "h200-sxm-141gb", {"expert_parallel": True}, "cutlass"),
        ("0.15.0", R1, "h200-sxm-141gb", {}, "trtllm/cutlass"),
        ("0.14.0", R1, "h200-sxm-141gb", {"engine_args": {"use_flashinfer_moe_fp8": True}}, "trtllm/cutlass"),
        ("0.16.0", R1, "h200-sxm-141gb", {"engine_args": {"use_flashinfer_moe_fp8": False}}, None),
        ("0.18.0", R1, "h200-sxm-141gb", {"engine_args": {"use_flashinfer_moe_fp8": False}}, "triton"),
        (
            "0.18.0", R1, "h200-sxm-141gb",
            {"expert_parallel": True, "engine_args": {"use_flashinfer_moe_fp8": False}}, None,
        ),
        ("0.14.0", R1, "h200-sxm-141gb", {"engine_args": {"moe_use_deep_gemm": True}}, None),
        ("0.19.0", R1, "h200-sxm-141gb", {"engine_args": {"moe_use_deep_gemm": True}}, None),
        ("0.33.0", R1, "b200-sxm-180gb", {"engine_args": {"use_deep_gemm": True}}, None),
        ("0.33.0", R1, "b200-sxm-180gb", {"engine_args": {"use_deep_gemm": True, "moe_use_deep_gemm": False}}, "trtllm"),
        ("0.19.0", R1, "b200-sxm-180gb", {"engine_args": {"use_deep_gemm": True, "use_flashinfer_moe_fp8": True}}, "trtllm"),
        ("0.17.0", R1, "b200-sxm-180gb", {"engine_args": REFUSED}, "triton"),
        ("0.24.0", R1, "b200-sxm-180gb", {"engine_args": REFUSED}, "trtllm"),
        ("0.24.0", R1, "b200-sxm-180gb", {}, "trtllm"),
        ("0.15.0", R1, "b200-sxm-180gb", {}, "trtllm"),
        ("0.14.1", R1, "b200-sxm-180gb", {}, "triton"),
        ("0.14.1", R1, "b200-sxm-180gb", {"expert_parallel": True}, None),
        ("0.13.0", R1, "b200-sxm-180gb", {}, None),
        ("0.13.0", R1, "b200-sxm-180gb", {"engine_args": {"use_flashinfer_moe_fp8": True}}, "trtllm"),
        ("0.14.1", R1, "b200-sxm-180gb", {"weights": "nvfp4"}, "cutlass"),
        ("0.13.0", R1, "b200-sxm-180gb", {"weights": "nvfp4", "engine_args": {"use_flashinfer_moe_fp4": True}}, "trtllm"),
        ("0.11.0", R1, "b200-sxm-180gb", {"weights": "nvfp4", "engine_args": {"use_flashinfer_moe_fp4": True}}, "cutlass"),
        ("0.14.1", QWEN, "b200-sxm-180gb", {"weights": "fp8"}, "triton"),
        ("0.16.0", QWEN, "b200-sxm-180gb", {"weights": "fp8"}, "trtllm"),
        ("0.24.0", QWEN, "mi300x-192gb", {}, None),
        ("0.24.0", "Qwen/Qwen3-32B", "h100-sxm-80gb", {}, None),
    ],
)
def test_experts_run_on_the_kernels_of_their_version_format_and_gpu(
    version: str, model: str, hardware: str, pool: dict[str, Any], wanted: str | None
) -> None:
    plan = prepared(model, version, hardware, **pool).plan
    assert plan.costs.terms.moe_backend == wanted
    assert sum(note.startswith("experts run on") for note in plan.notes) == (wanted is not None)


def test_triton_on_b200_is_timed_where_it_runs_and_nowhere_else() -> None:
    ops = operations_of(load_device("b200-sxm-180gb"), "vllm")
    tokens, shape = np.array([1, 64, 1024, 8192]), (2048, 768, 8, 128, 1, 1)
    own = ops.moe_s("bf16", *shape, tokens)
    backend = {word: ops.expert_backend("bf16", word) for word in ("triton", "trtllm")}
    assert np.array_equal(ops.moe_s("bf16", *shape, tokens, kernel=backend["trtllm"]), own)
    assert np.all(ops.moe_s("bf16", *shape, tokens, kernel=backend["triton"]) > 1.15 * own)


def test_cutlass_over_blocks_is_lent_where_only_split_experts_were_timed() -> None:
    """MiniMax-M2.5 on four H200: vLLM 0.16 takes 62 us a layer more than Triton's kernels at four tokens, half as much at 16."""
    ops = operations_of(load_device("h200-sxm-141gb"), "vllm")
    shape, tokens = (3072, 1536, 8, 256, 4, 1), [4, 16]
    lent = ops.moe_s("fp8_block", *shape, tokens, kernel=ops.expert_backend("fp8_block", "trtllm/cutlass"))
    more = lent - ops.moe_s("fp8_block", *shape, tokens, kernel=ops.expert_backend("fp8_block", "triton"))
    assert 40e-6 < more[0] < 70e-6
    assert 0.0 < more[1] < more[0]


def test_a_backend_of_the_same_kind_is_the_one_that_such_layers_ran_on() -> None:
    """Experts of TensorRT-LLM come in two forms, of which the layer's shape decides."""
    ops = operations_of(load_device("b200-sxm-180gb"), "vllm")
    for experts, topk in ((256, 8), (128, 8), (384, 8)):
        shape = (7168, 2048, topk, experts, 8, 1)
        named = ops.expert_backend("fp8_block", "trtllm")
        assert np.array_equal(ops.moe_s("fp8_block", *shape, [16, 256], kernel=named), ops.moe_s("fp8_block", *shape, [16, 256]))


@pytest.mark.parametrize(
    ("version", "model", "hardware", "gib"),
    [
        ("0.10.1", "openai/gpt-oss-120b", "h100-sxm-80gb", 65.97),  # printed
        ("0.19.1", "openai/gpt-oss-20b", "a100-sxm-80gb", 13.72),  # by 0.19.0
        ("0.14.1", "openai/gpt-oss-120b", "h100-sxm-80gb", 64.38),  # printed: not padded, scales twice
        ("0.26.0", "openai/gpt-oss-120b", "h100-sxm-80gb", 60.8),
        ("0.19.1", "openai/gpt-oss-120b", "b200-sxm-180gb", 68.6),
    ],
)
def test_kernels_pad_experts_in_memory(version: str, model: str, hardware: str, gib: float) -> None:
    flags = {"max_num_seqs": 64, "max_model_len": 8192}
    memory = prepared(model, version, hardware, tensor_parallel=1, engine_args=flags).plan.memory
    assert memory.bytes_of("weight") / 2**30 == pytest.approx(gib, rel=0.005)


@pytest.mark.parametrize(
    ("hardware", "weights", "share"),
    [
        ("a100-sxm-80gb", "fp8", 0.5),
        ("a100-sxm-80gb", "awq", 0.5),
        ("l40s-48gb", "fp8", 0.0),
        ("l40s-48gb", "gptq", 0.66),
        ("h100-sxm-80gb", "gptq", 0.0),  # Machete
        ("h100-sxm-80gb", "awq", 0.27),
        ("b200-sxm-180gb", "awq", 0.0),  # not timed
        ("a100-sxm-80gb", "bf16", 0.0),
        ("a100-sxm-80gb", "int8", 0.0),
    ],
)
def test_narrow_weights_run_on_marlin_where_the_hardware_cannot_multiply_them(hardware: str, weights: str, share: float) -> None:
    flags = {"max_model_len": 2048}
    plan = prepared("Qwen/Qwen3-14B", "0.11.0", hardware, tensor_parallel=1, weights=weights, engine_args=flags).plan
    assert plan.costs.terms.marlin_share == share
    if hardware == "h100-sxm-80gb":  # SGLang has no Machete
        assert prepared("Qwen/Qwen3-14B", None, hardware, engine="sglang", weights=weights).plan.costs.terms.marlin_share == 0.27


@pytest.mark.parametrize(("version", "share"), [("0.18.1", 0.27), ("0.19.0", 0.0), ("0.33.0", 0.0)])
def test_awq_runs_on_machete_since_its_layers_ask_the_list_of_kernels(version: str, share: float) -> None:
    plan = prepared("Qwen/Qwen3-14B", version, "h200-sxm-141gb", tensor_parallel=1, weights="awq").plan
    assert plan.costs.terms.marlin_share == share


def test_marlin_saves_bytes_with_few_rows_and_loses_with_many() -> None:
    """On A100 at 156 TFLOP/s, where a product in 16 bits reaches 254."""
    plan = prepared("Qwen/Qwen3-14B", "0.11.0", "a100-sxm-80gb", tensor_parallel=1, weights="awq").plan
    costs, ops, rows = plan.costs, operations_of(load_device("a100-sxm-80gb"), "vllm"), np.array([16, 64, 2048])
    shard = Shard(costs.arch, ops, costs.formats, costs.parallel, costs.terms)
    gate = next(gemm for gemm in gemm_shapes(costs.arch) if gemm.n == 2 * 17408)
    taken_s = product_s(shard, gate, rows)
    assert taken_s[2] == pytest.approx(2 * 2048 * gate.n * gate.k / 156e12)
    assert taken_s[0] < 0.35 * ops.gemm_s("bf16", rows, gate.n, gate.k)[0]
    assert 1.4 < taken_s[2] / ops.gemm_s("bf16", rows, gate.n, gate.k)[2] < 1.8


@pytest.mark.parametrize(
    ("version", "model", "hardware", "used", "cutlass", "warned"),
    [
        ("0.11.0", R1, "h200-sxm-141gb", None, False, False),
        ("0.11.0", R1, "h200-sxm-141gb", False, True, False),
        ("0.10.2", R1, "h200-sxm-141gb", None, True, False),  # off by itself
        ("0.10.2", R1, "h200-sxm-141gb", True, False, False),
        ("0.11.0", R1, "b200-sxm-180gb", False, False, True),
        ("0.10.2", R1, "b200-sxm-180gb", None, False, False),
        ("0.11.0", QWEN, "h200-sxm-141gb", False, False, False),  # no blocks
    ],
)
def test_products_of_blocks_run_on_cutlass_where_deepgemm_is_not_there(
    version: str, model: str, hardware: str, used: bool | None, cutlass: bool, warned: bool
) -> None:
    flags = {} if used is None else {"use_deep_gemm": used}
    plan = prepared(model, version, hardware, engine_args=flags).plan
    assert plan.costs.terms.cutlass_blocks == cutlass
    assert any("use_deep_gemm" in text for text in plan.warnings) == warned


def test_cutlass_products_of_blocks_take_the_published_times() -> None:
    """Kernels alone (SGLang pull request 5207), then with what vLLM 0.11.0 does to the input (its pull request 23280)."""
    ops = prepared(R1, "0.11.0", "h200-sxm-141gb").kernels
    m = np.array([512, 1024, 2048, 4096])
    alone_s = cutlass_blocks.product_s(ops, m, 24576, 7168, pads=False) - ops.elementwise_s(3.0 * m * 7168)
    assert alone_s * 1e6 == pytest.approx([236, 464, 919, 1788], rel=0.03)
    m = np.array([1, 16, 512, 2048, 8192])
    rate = np.array([0.893, 13.94, 322.3, 426.6, 489.7])
    whole_s = cutlass_blocks.product_s(ops, m, 2112, 7168, pads=True)
    assert whole_s == pytest.approx(2.0 * m * 2112 * 7168 / rate / 1e12, rel=0.13)
    assert cutlass_blocks.product_s(ops, np.array([0]), 2112, 7168, pads=True).tolist() == [0.0]


def test_a_step_without_deepgemm_takes_longer_and_less_so_where_nothing_is_padded() -> None:
    """Single streams of DeepSeek-R1 by a wheel of 0.11.0 have 15.85 ms a token (vLLM's recipes), 10.7 by DeepGEMM's products."""
    took: dict[tuple[str, bool], float] = {}
    for version in ("0.11.0", "0.13.0"):
        for there in (True, False):
            each = prepared(R1, version, "h200-sxm-141gb", engine_args={"use_deep_gemm": there})
            costs = each.plan.costs
            shard = Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)
            shapes = [g for g in gemm_shapes(shard.stage, 8) if g.per == "token"]
            took[version, there] = sum(g.layers * float(product_s(shard, g, np.array([1]))[0]) for g in shapes)
    assert 4e-3 < took["0.11.0", False] - took["0.11.0", True] < 7e-3
    assert took["0.11.0", False] > took["0.13.0", False] > took["0.13.0", True]


GEMMA4, H200 = "google/gemma-4-31B-it", "h200-sxm-141gb"
BY_HAND = {"engine_args": {"attention_backend": "FLASH_ATTN"}}


@pytest.mark.parametrize(
    ("version", "model", "hardware", "pool", "forced"),
    [
        ("0.23.0", GEMMA4, H200, {}, True),
        ("0.24.0", GEMMA4, H200, {}, False),
        ("0.23.0", GEMMA4, H200, BY_HAND, False),
        ("0.24.0", GEMMA4, H200, {"kv_cache": "fp8"}, True),
        ("0.31.0", GEMMA4, H200, {"kv_cache": "fp8"}, False),
        ("0.33.0", GEMMA4, "rtx-pro-6000-96gb", {}, True),
        ("0.33.0", GEMMA4, "b200-sxm-180gb", {}, False),
        ("0.23.0", "google/gemma-3-27b-it", H200, {}, False),
    ],
)
def test_heads_of_two_widths_run_on_triton_where_nothing_else_takes_both(
    version: str, model: str, hardware: str, pool: dict[str, Any], forced: bool
) -> None:
    found = prepared(model, version, hardware, **pool)
    assert found.plan.costs.terms.attention == (("sglang/triton",) * 2 if forced else ("", ""))
    assert any("attention runs on Triton" in note for note in found.plan.notes) is forced


def test_another_frameworks_attention_is_that_of_its_table() -> None:
    found = prepared(GEMMA4, "0.23.0", H200)
    on = found.kernels.with_attention(*found.plan.costs.terms.attention)
    theirs = operations_of(load_device(H200), "sglang").with_attention("triton", "triton")
    prompt, rows = ("bf16", "bf16", 4, 1, 512, 0, 8192, 0), ("bf16", 4, 1, 512, 0, 64, 4095)
    assert on.prefill_attention_s(*prompt) == theirs.prefill_attention_s(*prompt)
    assert on.prefill_attention_s(*prompt) > 1.5 * found.kernels.prefill_attention_s(*prompt)
    assert on.decode_attention_s(*rows) == theirs.decode_attention_s(*rows)
    assert on.times_attention("sglang/triton", 512)


def test_what_no_table_holds_of_it_is_told() -> None:
    found = prepared(GEMMA4, "0.23.0", "a100-sxm-80gb")
    on = found.kernels.with_attention(*found.plan.costs.terms.attention)
    rows = ("bf16", 4, 1, 512, 0, 64, 4095)
    assert on.decode_attention_s(*rows) == found.kernels.decode_attention_s(*rows)
    assert any("sglang/triton" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("engine", "model", "hardware", "pool", "wanted"),
    [
        ("vllm", "nvidia/Llama-3.3-70B-Instruct-FP8", H200, {}, "fp8"),
        ("vllm@0.13.0", "nvidia/Llama-3.3-70B-Instruct-FP8", H200, {}, "bf16"),
        ("vllm@0.14.0", "nvidia/Llama-3.3-70B-Instruct-FP8", H200, {}, "fp8"),
        ("vllm", "nvidia/Llama-3.3-70B-Instruct-FP8", H200, {"kv_cache": "bf16"}, "bf16"),
        ("vllm", "nvidia/Llama-3.3-70B-Instruct-FP8", "a100-sxm-80gb", {}, "bf16"),
        ("vllm", "meta-llama/Llama-3.3-70B-Instruct-FP8", H200, {}, "bf16"),
        ("sglang", "nvidia/Qwen3-235B-A22B-NVFP4", "b200-sxm-180gb", {}, "fp8"),
        ("sglang@0.5.3", "nvidia/Llama-3.3-70B-Instruct-FP8", H200, {}, "fp8"),
        ("sglang@0.5.2", "nvidia/Llama-3.3-70B-Instruct-FP8", H200, {}, "bf16"),
        ("sglang", "nvidia/DeepSeek-V3.2-NVFP4", "b200-sxm-180gb", {}, "fp8"),
        ("sglang", "nvidia/DeepSeek-V3.2-NVFP4", H200, {}, "bf16"),
        ("vllm", "nvidia/MiniMax-M3-NVFP4", "b200-sxm-180gb", {}, "bf16"),
        ("trtllm", "nvidia/Qwen3-235B-A22B-NVFP4", "b200-sxm-180gb", {}, "fp8"),
        ("tgi", "nvidia/Llama-3.3-70B-Instruct-FP8", H200, {}, "bf16"),
    ],
)
def test_the_cache_is_kept_as_nvidias_checkpoints_state(
    engine: str, model: str, hardware: str, pool: dict[str, Any], wanted: str
) -> None:
    deployment = {"engine": engine, "hardware": hardware, "tensor_parallel": 4, **pool}
    found = prepare(load_scenario({"model": model, "deployment": deployment, "workload": WORKLOAD}))
    assert found.formats.kv_cache.name == wanted


@pytest.mark.parametrize(
    ("engine", "hardware", "pool", "said"),
    [
        ("vllm", "a100-sxm-80gb", {}, True),
        ("vllm", "a100-sxm-80gb", {"kv_cache": "bf16"}, False),
        ("vllm@0.13.0", "a100-sxm-80gb", {}, False),
        ("vllm", H200, {}, False),
    ],
)
def test_a_stated_cache_that_a_device_cannot_keep_is_told(
    engine: str, hardware: str, pool: dict[str, Any], said: bool
) -> None:
    """Where an engine would take it from the checkpoint, servers are reported not to start."""
    deployment = {"engine": engine, "hardware": hardware, "tensor_parallel": 4, **pool}
    model = "nvidia/Llama-3.3-70B-Instruct-FP8"
    found = prepare(load_scenario({"model": model, "deployment": deployment, "workload": WORKLOAD}))
    assert any("reported not to start" in text for text in found.assumptions) == said


@pytest.mark.parametrize("hardware", ["b200-sxm-180gb", "rtx-pro-6000-96gb", H200])
def test_activations_before_experts_in_mxfp4_are_told_as_they_are_priced(hardware: str) -> None:
    told, asked = (prepared("openai/gpt-oss-120b", "0.33.0", hardware, **more) for more in ({}, {"activations": "bf16"}))
    assert told.formats == asked.formats


@pytest.mark.parametrize(("kv_cache", "more"), [("bf16", 0.0), ("fp8", 3.0)])
def test_a_prompt_of_latent_attention_launches_what_prompts_and_decoding_rows_need(kv_cache: str, more: float) -> None:
    wanted = prepared(R1, "0.19.0", "h200-sxm-141gb", kv_cache=kv_cache)
    terms = wanted.plan.costs.terms
    assert terms.latent_launches == 10.0 + more
    costs = wanted.plan.costs
    shard = Shard(costs.arch, operations_of(wanted.device, "vllm"), costs.formats, costs.parallel, terms)
    without = Shard(costs.arch, shard.ops, costs.formats, costs.parallel, costs.with_terms(latent_launches=0.0).terms)
    assert shard.launches() - without.launches() == pytest.approx(61 * (10.0 + more))


@pytest.mark.parametrize(
    ("hardware", "weights", "flags", "one_sided", "sent"),
    [
        ("b200-sxm-180gb", "nvfp4", {}, True, 0.5625),
        ("h200-sxm-141gb", "fp8_block", {}, True, 1.03125),
        ("b200-sxm-180gb", "bf16", {}, True, 2.0),
        ("b200-sxm-180gb", "nvfp4", {"all2all_backend": "allgather_reducescatter"}, False, 2.0),
        ("b200-sxm-180gb", "nvfp4", {"all2all_backend": "deepep_low_latency"}, False, 2.0),
        ("b200-sxm-180gb", "nvfp4", {"enable_expert_parallel": False}, False, 2.0),  # experts split by width
        ("b200-sxm-180gb", "nvfp4", {"data_parallel_size": 2}, False, 2.0),  # of two devices
        ("rtx-pro-6000-96gb", "nvfp4", {}, False, 2.0),  # no switch between them
    ],
)
def test_ranks_write_to_each_other_where_the_flag_says_so(
    hardware: str, weights: str, flags: dict[str, Any], one_sided: bool, sent: float
) -> None:
    args = {"data_parallel_size": 4, "enable_expert_parallel": True, "all2all_backend": "flashinfer_nvlink_one_sided"} | flags
    split = {"tensor_parallel": 4 // args["data_parallel_size"], "engine_args": args}
    found = prepared("Qwen/Qwen3-30B-A3B", "0.33.0", hardware, weights=weights, **split).plan
    terms = found.costs.terms
    assert (terms.one_sided, terms.gathered_bytes) == (one_sided, sent)
    told = any("all2all_backend" in warning for warning in found.warnings)
    assert told is (not one_sided and args["all2all_backend"] != "allgather_reducescatter")
    assert any("over NVLink" in note for note in found.notes) is one_sided


JAMBA, NANO = "ai21labs/AI21-Jamba-Mini-1.7", "nvidia/NVIDIA-Nemotron-Nano-9B-v2"


@pytest.mark.parametrize("model", ["LiquidAI/LFM2-1.2B", JAMBA, NANO, "inclusionAI/Ling-2.6-flash"])
def test_recurrences_other_than_delta_rules_are_launched_by_kernels_of_their_own(model: str) -> None:
    """FlashInfer's kernel on Hopper is one of delta rules: a short prompt of other mixers waits for as many launches on B200, and
    under SGLang for no more."""
    waits_s = []
    for engine, hardware in (("vllm", "h100-sxm-80gb"), ("vllm", "b200-sxm-180gb"), ("sglang", "b200-sxm-180gb")):
        deployment = {"engine": engine, "hardware": hardware, "tensor_parallel": 4}
        found = prepare(load_scenario({"model": model, "deployment": deployment, "workload": WORKLOAD}))
        costs = found.plan.costs
        shard = Shard(costs.arch, found.kernels, costs.formats, costs.parallel, costs.terms)
        waits_s.append(shard.recurrent_launches)
    assert len(set(waits_s)) == 1
    layers = sum(block.layers for block in found.arch.attention if block.kind == "linear")
    assert waits_s[0] < 58 * layers
