"""Which kernels SGLang runs: by version, model, number format and GPU, or by its flag."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine_models.cost import ring_sums, token_tiles
from engine_models.cost.attention import PrefillAttention
from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Shard, collectives, experts, norms_and_rotary, product_s, small_kernels
from engine_models.engines.sglang_attention import NEVER
from engine_models.model.architecture import gemm_shapes
from engine_models.parts.batch import Batch
from hardware_profiles.errors import InputError
from simulator import load_scenario
from simulator.prepare import Prepared, prepare

GLM, QWEN, R1 = "zai-org/GLM-4.6", "Qwen/Qwen3-235B-A22B", "deepseek-ai/DeepSeek-R1"
GPT_OSS, NEXT = "openai/gpt-oss-120b", "Qwen/Qwen3-Next-80B-A3B-Instruct"
NEMOTRON = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
QWEN35, GEMMA3, GEMMA4 = "Qwen/Qwen3.5-397B-A17B", "google/gemma-3-27b-it", "google/gemma-4-31B-it"
"""Language models of others that see: their types end in ``_text``."""
WORKLOAD = {"arrivals": {"kind": "batch"}, "prompt_tokens": 100, "output_tokens": 10, "requests": 4}


def prepared(model: str, version: str, hardware: str, **pool: Any) -> Prepared:
    """A pool of eight devices of SGLang."""
    deployment = {"engine": f"sglang@{version}", "hardware": hardware, "tensor_parallel": 8, **pool}
    return prepare(load_scenario({"model": model, "deployment": deployment, "workload": WORKLOAD}))


@pytest.mark.parametrize(
    ("model", "version", "hardware", "pool", "wanted"),
    [
        (GLM, "0.5.6", "b200-sxm-180gb", {}, "triton"),
        (GLM, "0.5.20", "b200-sxm-180gb", {}, "trtllm"),
        (GLM, "0.5.20", "b200-sxm-180gb", {"weights": "fp8"}, "triton"),
        (QWEN, "0.5.5", "b200-sxm-180gb", {"weights": "fp8"}, "triton"),
        (QWEN, "0.5.6", "b200-sxm-180gb", {"weights": "fp8"}, "trtllm"),
        (QWEN, "0.5.6", "b200-sxm-180gb", {}, "triton"),
        (QWEN, "0.5.8", "b200-sxm-180gb", {}, "trtllm"),
        (QWEN, "0.5.8", "h200-sxm-141gb", {}, "triton"),
        (R1, "0.5.5", "b200-sxm-180gb", {}, "trtllm"),
        (R1, "0.5.5", "h200-sxm-141gb", {}, "triton"),
        (GLM, "0.5.6", "b200-sxm-180gb", {"weights": "nvfp4"}, "trtllm"),
        (GLM, "0.5.6", "h200-sxm-141gb", {"weights": "int4"}, "marlin"),
        (GLM, "0.5.6", "b200-sxm-180gb", {"engine_args": {"moe_runner_backend": "flashinfer_trtllm"}}, "trtllm"),
        (GPT_OSS, "0.5.6", "h200-sxm-141gb", {}, "vllm/triton"),
        (GPT_OSS, "0.5.6", "h200-sxm-141gb", {"expert_parallel": 8}, "triton"),
        (GPT_OSS, "0.5.6", "h200-sxm-141gb", {"engine_args": {"moe_runner_backend": "triton"}}, "triton"),
        (GPT_OSS, "0.5.6", "h200-sxm-141gb", {"engine_args": {"moe_runner_backend": "triton_kernel"}}, "vllm/triton"),
        (GPT_OSS, "0.5.6", "b200-sxm-180gb", {}, "trtllm"),
        (GPT_OSS, "0.5.6", "a100-sxm-80gb", {}, "triton"),
        (GPT_OSS, "0.5.12", "rtx-pro-6000-96gb", {}, "triton"),
        (GPT_OSS, "0.5.14", "rtx-pro-6000-96gb", {}, "marlin"),
        (GPT_OSS, "0.5.16", "rtx-pro-6000-96gb", {}, "marlin"),
        (GPT_OSS, "0.5.17", "rtx-pro-6000-96gb", {}, "trtllm/cutlass"),
        (GPT_OSS, "0.5.17", "rtx-pro-6000-96gb", {"engine_args": {"moe_runner_backend": "flashinfer_mxfp4"}}, "trtllm/cutlass"),
        (QWEN35, "0.5.8", "b200-sxm-180gb", {}, "triton"),
        (QWEN35, "0.5.9", "b200-sxm-180gb", {}, "trtllm"),
        (QWEN35, "0.5.9", "h200-sxm-141gb", {}, "triton"),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", "0.5.6", "b200-sxm-180gb", {"weights": "fp8"}, "trtllm"),
        ("google/gemma-4-26B-A4B-it", "0.5.14", "b200-sxm-180gb", {"weights": "nvfp4", "tensor_parallel": 2}, "trtllm"),
        (NEMOTRON, "0.5.14", "h200-sxm-141gb", {"tensor_parallel": 1}, "trtllm/cutlass"),
        (NEMOTRON, "0.5.10", "h200-sxm-141gb", {"tensor_parallel": 1}, "triton"),
        (NEMOTRON, "0.5.14", "h200-sxm-141gb", {"tensor_parallel": 1, "weights": "nvfp4"}, "marlin"),
        (NEMOTRON, "0.5.14", "b200-sxm-180gb", {"tensor_parallel": 1}, "trtllm"),
        ("Qwen/Qwen3-30B-A3B", "0.5.14", "rtx-pro-6000-96gb", {"tensor_parallel": 1, "weights": "nvfp4"}, "cutlass"),
        ("XiaomiMiMo/MiMo-V2-Flash", "0.5.20", "b200-sxm-180gb", {"tensor_parallel": 4, "weights": "fp8_block"}, "trtllm"),
        ("deepseek-ai/DeepSeek-V4-Flash", "0.5.19", "b200-sxm-180gb", {}, "trtllm"),
        ("deepseek-ai/DeepSeek-V4-Flash", "0.5.18", "b200-sxm-180gb", {}, "triton"),
        ("deepseek-ai/DeepSeek-V4-Flash", "0.5.12", "rtx-pro-6000-96gb", {}, "triton"),
        ("deepseek-ai/DeepSeek-V4-Flash", "0.5.13", "rtx-pro-6000-96gb", {}, "marlin"),
        ("deepseek-ai/DeepSeek-V4-Flash", "0.5.16", "rtx-pro-6000-96gb", {}, "trtllm/cutlass"),
        ("moonshotai/Kimi-K2-Thinking", "0.5.8", "b200-sxm-180gb", {}, "vllm/marlin"),
        ("moonshotai/Kimi-K2-Thinking", "0.5.14", "b200-sxm-180gb", {}, "trtllm"),
        (GLM, "0.5.6", "mi300x-192gb", {}, None),
        ("Qwen/Qwen3-32B", "0.5.6", "b200-sxm-180gb", {}, None),
    ],
)
def test_the_experts_kernels_follow_the_engines_rules(
    model: str, version: str, hardware: str, pool: dict[str, Any], wanted: str | None
) -> None:
    plan = prepared(model, version, hardware, **pool).plan
    assert plan.costs.terms.moe_backend == wanted
    said = [note for note in plan.notes if note.startswith("experts run on")]
    assert len(said) == (wanted is not None)


@pytest.mark.parametrize(
    ("version", "hardware", "flags", "quantised"),
    [
        ("0.5.20", "b200-sxm-180gb", {}, True),
        ("0.5.2", "b200-sxm-180gb", {}, True),
        ("0.5.20", "b200-sxm-180gb", {"flashinfer_mxfp4_moe_precision": "bf16"}, False),
        ("0.5.20", "b200-sxm-180gb", {"moe_runner_backend": "triton"}, False),
        ("0.5.16", "rtx-pro-6000-96gb", {}, False),
        ("0.5.17", "rtx-pro-6000-96gb", {}, True),
        ("0.5.17", "rtx-pro-6000-96gb", {"moe_runner_backend": "marlin"}, False),
        ("0.5.20", "h200-sxm-141gb", {}, False),
    ],
)
def test_activations_are_quantised_before_flashinfers_experts_in_mxfp4(
    version: str, hardware: str, flags: dict[str, Any], quantised: bool
) -> None:
    found = prepared(GPT_OSS, version, hardware, engine_args=flags)
    assert (found.formats.activations.compute == "fp8") is quantised
    assert any("activations are quantised to fp8" in note for note in found.assumptions) is quantised


def test_the_package_that_does_not_split_experts_by_number_is_refused_where_ranks_do() -> None:
    with pytest.raises(InputError, match="does not split experts by number"):
        prepared(GPT_OSS, "0.5.6", "h200-sxm-141gb", expert_parallel=8, engine_args={"moe_runner_backend": "triton_kernel"})


def test_triton_takes_longer_on_blackwell_at_few_rows() -> None:
    """The same model, device and format: of the tables' two backends the rule's one is priced."""
    slow, quick = (prepared(QWEN, version, "b200-sxm-180gb") for version in ("0.5.6", "0.5.8"))

    def experts_s(each: Prepared) -> float:
        costs = each.plan.costs
        shard = Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)
        return float(sum(values[0] for _, values in experts(shard, np.array([1]))))

    assert experts_s(slow) > 1.6 * experts_s(quick)


def test_a_backend_that_is_not_modelled_is_named() -> None:
    plan = prepared(GLM, "0.5.6", "b200-sxm-180gb", engine_args={"moe_runner_backend": "flashinfer_cutedsl"}).plan
    assert any("flashinfer_cutedsl" in text for text in plan.warnings)
    assert plan.costs.terms.moe_backend == "triton"
    told = [prepared(GPT_OSS, "0.5.6", hardware).plan.warnings for hardware in ("a100-sxm-80gb", "h100-sxm-80gb")]
    assert [any("emulated" in text for text in warnings) for warnings in told] == [True, False]


@pytest.mark.parametrize(
    ("version", "hardware", "flags", "tiled", "warned"),
    [
        ("0.5.9", "b200-sxm-180gb", {}, False, False),
        ("0.5.9", "gb200-186gb", {"fp8_gemm_backend": "flashinfer_trtllm"}, True, False),
        ("0.5.7", "b200-sxm-180gb", {"enable_jit_deepgemm": False}, True, False),
        ("0.5.6", "b200-sxm-180gb", {"enable_jit_deepgemm": False}, False, True),
        ("0.5.6", "b200-sxm-180gb", {"enable_jit_deepgemm": False, "enable_flashinfer_gemm": True}, True, False),
        ("0.5.9", "h200-sxm-141gb", {"enable_jit_deepgemm": False}, False, True),
        ("0.5.9", "b200-sxm-180gb", {"fp8_gemm_backend": "cutlass"}, False, True),
    ],
)
def test_products_without_deepgemm_have_tiles_of_few_tokens(
    version: str, hardware: str, flags: dict[str, Any], tiled: bool, warned: bool
) -> None:
    plan = prepared(R1, version, hardware, engine_args=flags).plan
    assert (plan.costs.terms.token_tiles, any("of products" in text for text in plan.warnings)) == (tiled, warned)
    assert plan.compiles_products != tiled


@pytest.mark.parametrize(
    ("hardware", "weights", "flags", "apart"),
    [
        ("h200-sxm-141gb", "fp8_block", {}, ("fp8_block",)),
        ("b200-sxm-180gb", "fp8_block", {}, ("fp8_block", "nvfp4")),
        ("b200-sxm-180gb", "fp8_block", {"enable_jit_deepgemm": False}, ("nvfp4",)),
        ("b200-sxm-180gb", "nvfp4", {}, ("nvfp4",)),
        ("h200-sxm-141gb", "int4", {}, ()),
        ("mi300x-192gb", "fp8_block", {}, ()),
    ],
)
def test_products_quantise_their_input_apart_where_tables_lack_it(
    hardware: str, weights: str, flags: dict[str, Any], apart: tuple[str, ...]
) -> None:
    """But the product that decoding rows absorb; the tables of the other kernels hold it."""
    pool = prepared(R1, "0.5.9", hardware, weights=weights, engine_args=flags)
    costs, tokens = pool.plan.costs, np.array([1, 8192])
    assert costs.terms.quantises_apart == apart
    shard = Shard(costs.arch, pool.kernels, costs.formats, costs.parallel, costs.terms)
    gemms = {gemm.name: gemm for gemm in gemm_shapes(shard.stage, 8)}
    for name in ("o", "mla_kv_b", "gate_up"):
        gemm, fmt = gemms[name], shard.weights_format(gemms[name].part)
        more_s = product_s(shard, gemm, tokens) - pool.kernels.gemm_s(fmt, tokens, gemm.n, gemm.k)
        if fmt in apart and name != "mla_kv_b":
            moved = (3.0 if fmt == "fp8_block" else 2.5625) * tokens * gemm.k
            assert more_s.tolist() == pytest.approx(pool.kernels.elementwise_s(moved).tolist())
        elif not costs.terms.token_tiles and not costs.terms.marlin_share:
            assert more_s.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("model", "version", "hardware", "pool", "hidden"),
    [
        (R1, "0.5.9", "b200-sxm-180gb", {}, True),
        (R1, "0.5.9", "h200-sxm-141gb", {}, False),  # it is one of the routed ones
        (R1, "0.5.9", "h200-sxm-141gb", {"engine_args": {"disable_shared_experts_fusion": True}}, True),
        (R1, "0.5.9", "mi300x-192gb", {}, False),
        (NEXT, "0.5.9", "h200-sxm-141gb", {}, True),
        (GLM, "0.5.5", "h200-sxm-141gb", {"engine_args": {"disable_shared_experts_fusion": True}}, False),
        (GLM, "0.5.6", "h200-sxm-141gb", {"engine_args": {"disable_shared_experts_fusion": True}}, True),
        (QWEN, "0.5.9", "b200-sxm-180gb", {}, False),  # there is none
    ],
)
def test_a_shared_expert_runs_beside_the_routed_ones(
    model: str, version: str, hardware: str, pool: dict[str, Any], hidden: bool
) -> None:
    """In captured steps: its products cost nothing then."""
    found = prepared(model, version, hardware, **pool)
    costs = found.plan.costs
    shard, apart = (
        Shard(costs.arch, found.kernels, costs.formats, costs.parallel, terms)
        for terms in (costs.terms, costs.with_terms(beside_tokens=0).terms)
    )
    tokens = np.array([1, 8, 8192])
    less_s = next(iter(experts(apart, tokens)))[1] - next(iter(experts(shard, tokens)))[1]
    shared_s = sum(
        (gemm.layers * product_s(shard, gemm, tokens) for gemm in gemm_shapes(shard.stage, 8) if gemm.part == "shared_expert"),
        np.zeros(3),
    )
    assert less_s.tolist() == pytest.approx([shared_s[0], shared_s[1], 0.0] if hidden else [0.0] * 3)
    assert bool(shared_s[0]) == (hidden or hardware == "mi300x-192gb" or (model, version) == (GLM, "0.5.5"))


def test_tiles_of_few_tokens_take_waves() -> None:
    """56 tiles of outputs a 32 tokens on 148 multiprocessors: 64 tokens fill one wave, 96 begin a second; prompts are slow, and
    weights beyond the cache come from memory in every wave."""
    ops = prepared(R1, "0.5.9", "b200-sxm-180gb").kernels
    one, full, more, prompt = token_tiles.product_s(ops, np.array([1, 64, 96, 8192]), 7168, 2048).tolist()
    assert one == pytest.approx(full, rel=0.02)
    assert more > 1.5 * one
    few_s, many_s = ops.gemm_s("fp8_block", [1, 8192], 7168, 2048).tolist()
    assert one < 1.2 * few_s
    assert prompt > 3 * many_s
    read_s = 24576 * 7168 * 64 / ops.peaks.hbm_bytes_per_s
    assert read_s < token_tiles.product_s(ops, np.array([2048]), 24576, 7168)[0] < 1.2 * read_s


def test_a_shared_expert_is_one_of_tritons_routed_ones() -> None:
    """Not under TensorRT-LLM's kernels, nor where experts are spread over ranks or the flag says no; memory stays as it is."""
    own = prepared(R1, "0.5.9", "h200-sxm-141gb")
    routed = own.plan.costs.arch.mlp[1]
    assert (routed.experts, routed.experts_per_token, routed.shared_intermediate) == (257, 9, 0)
    apart = prepared(R1, "0.5.9", "h200-sxm-141gb", engine_args={"disable_shared_experts_fusion": True})
    for other in (apart, prepared(R1, "0.5.9", "b200-sxm-180gb"), prepared(R1, "0.5.9", "h200-sxm-141gb", expert_parallel=8)):
        assert other.plan.costs.arch.mlp == other.arch.mlp
    assert own.plan.memory == apart.plan.memory


def test_norms_are_part_of_fused_reductions() -> None:
    """By the flag, or by itself for some models, and in steps of up to 2,048 tokens."""

    def fused(version: str, hardware: str = "h200-sxm-141gb", **pool: Any) -> int:
        return prepared(R1, version, hardware, **pool).plan.costs.terms.fused_norm_tokens

    assert fused("0.5.6") == 0
    assert fused("0.5.6", engine_args={"enable_flashinfer_allreduce_fusion": True}) == 2048
    assert fused("0.5.7") == fused("0.5.6", "b200-sxm-180gb") == 2048
    assert fused("0.5.10", engine_args={"enforce_disable_flashinfer_allreduce_fusion": True}) == 0
    assert fused("0.5.10", "mi300x-192gb") == 0
    each = prepared(R1, "0.5.7", "h200-sxm-141gb")
    costs = each.plan.costs
    shard = Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)
    held, beyond = dict(norms_and_rotary(shard, np.array([2048, 2049])))["norms"]
    assert held == 0 < beyond


def test_kernels_of_latent_attention_and_shared_experts_are_priced() -> None:
    """Four passes a layer of latent attention, two a layer with a shared expert of its own; none where nothing launches them."""
    each = prepared(R1, "0.5.9", "b200-sxm-180gb")
    costs = each.plan.costs
    shard = Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)
    one_s = float(each.kernels.elementwise_s(np.array([1.0]))[0])
    found_s = float(sum(values[0] for _, values in small_kernels(shard, np.array([1]))))
    assert found_s == pytest.approx((4 * 61 + 2 * 58) * one_s, rel=0.1)
    plain = replace(shard, terms=replace(shard.terms, small_kernels=False))
    assert list(small_kernels(plain, np.array([1]))) == []
    joined = replace(shard, terms=replace(shard.terms, small_kernels=False, joins_small_kernels=True))
    few_s, many_s = (float(sum(s[0] for _, s in small_kernels(joined, np.array([rows])))) for rows in (1, 8192))
    alone_s = float(sum(s[0] for _, s in small_kernels(shard, np.array([8192]))))
    assert few_s < 0.1 * found_s
    assert many_s == pytest.approx(alone_s - (4 * 61 + 2 * 58) * one_s, rel=0.02)


@pytest.mark.parametrize(
    ("hardware", "tensor", "flags", "tokens", "longer"),
    [
        ("h200-sxm-141gb", 8, {}, 8192, 1.19),
        ("h200-sxm-141gb", 8, {}, 1024, 1.0),
        ("h200-sxm-141gb", 8, {"enable_nccl_nvls": True}, 8192, 1.0),
        ("h200-sxm-141gb", 4, {}, 8192, 1.0),
        ("b200-sxm-180gb", 8, {}, 8192, 1.0),
    ],
)
def test_large_sums_over_eight_of_hoppers_devices_go_around_a_ring(
    hardware: str, tensor: int, flags: dict[str, Any], tokens: int, longer: float
) -> None:
    each = prepared(QWEN, "0.5.6", hardware, tensor_parallel=tensor, weights="fp8", engine_args=flags)
    costs = each.plan.costs
    shard = Shard(replace(costs.arch, hidden=7168), each.kernels, costs.formats, costs.parallel, costs.terms)
    around, through = (
        float(sum(s[0] for _, s in collectives(replace(shard, terms=terms), np.array([tokens]))))
        for terms in (costs.terms, replace(costs.terms, ring_sums=False))
    )
    assert around / through == pytest.approx(longer, abs=0.03)


@pytest.mark.parametrize(("sum_bytes", "timed_s"), [(33.6e6, 210e-6), (67.1e6, 371e-6), (134.2e6, 716e-6), (536.9e6, 2671e-6)])
def test_the_ring_is_that_of_nccl_tests(sum_bytes: float, timed_s: float) -> None:
    """Sums in int8 over eight H100 and eight H200, which the switch does not add (means of both)."""
    kernels = prepared(R1, "0.5.6", "h200-sxm-141gb").kernels
    assert float(ring_sums.floor_s(kernels, 8, np.array([sum_bytes]))[0]) == pytest.approx(timed_s, rel=0.08)


@pytest.mark.parametrize(
    ("model", "hardware", "flags", "below", "captured"),
    [
        (R1, "h200-sxm-141gb", {}, 8192, True),
        (R1, "h200-sxm-141gb", {"disable_chunked_prefix_cache": True}, NEVER, True),
        (R1, "h200-sxm-141gb", {"attention_backend": "triton"}, NEVER, True),
        (R1, "b200-sxm-180gb", {}, 0, True),
        (R1, "mi300x-192gb", {}, 0, False),
        (GLM, "h200-sxm-141gb", {}, 0, False),
    ],
)
def test_the_form_of_latent_prompts_follows_the_attention_backend(
    model: str, hardware: str, flags: dict[str, Any], below: int, captured: bool
) -> None:
    terms = prepared(model, "0.5.6", hardware, engine_args=flags).plan.costs.terms
    assert (terms.absorbs_below, terms.absorbs_captured) == (below, captured)


@pytest.mark.parametrize(
    ("model", "version", "flags", "wanted"),
    [
        (GLM, "0.5.6", {}, (10, 19)),
        (GLM, "0.5.23", {}, (10, 19)),
        (GLM, "0.5.10", {"disable_shared_experts_fusion": True}, (10, 19)),
        (GLM, "0.5.14", {"disable_shared_experts_fusion": True}, (0, 0)),
        ("zai-org/GLM-4.5-Air", "0.5.6", {}, (10, 19)),
        ("zai-org/GLM-4.5-Air", "0.5.23", {}, (0, 0)),  # 128 experts
        ("XiaomiMiMo/MiMo-V2-Flash", "0.5.10", {}, (10, 19)),
        ("XiaomiMiMo/MiMo-V2-Flash", "0.5.14", {}, (0, 0)),  # none shared
        ("XiaomiMiMo/MiMo-V2-Flash", "0.5.10", {"moe_runner_backend": "flashinfer_trtllm"}, (0, 0)),
        (R1, "0.5.6", {}, (0, 0)),
    ],
)
def test_experts_are_selected_in_torch_where_no_kernel_holds_them(
    model: str, version: str, flags: dict[str, Any], wanted: tuple[int, int]
) -> None:
    hardware = "b200-sxm-180gb" if "moe_runner_backend" in flags else "h200-sxm-141gb"
    terms = prepared(model, version, hardware, engine_args=flags).plan.costs.terms
    assert (terms.selection_kernels, terms.selection_passes) == wanted


def test_heads_are_copied_before_their_norms_by_older_versions() -> None:
    """One pass more for queries and keys of several tokens, none for those of one."""
    each = prepared(QWEN, "0.5.6", "b200-sxm-180gb")
    costs = each.plan.costs
    old = Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)
    new = replace(old, terms=replace(old.terms, copies_heads=False))
    m = np.array([1, 2, 1000])
    norms = [sum(part for name, part in norms_and_rotary(shard, m) if name == "norms") for shard in (old, new)]
    assert (norms[0] > norms[1]).tolist() == [False, True, True]
    assert not prepared(QWEN, "0.5.7", "b200-sxm-180gb").plan.costs.terms.copies_heads


OSS = "openai/gpt-oss-120b"


@pytest.mark.parametrize(
    ("model", "version", "hardware", "flags", "wanted", "page_tokens"),
    [
        (QWEN, "0.5.6", "b200-sxm-180gb", {}, "flashinfer", 1),
        (QWEN, "0.5.6.post1", "b200-sxm-180gb", {}, "trtllm_mha", 64),
        (QWEN, "0.5.23", "b200-sxm-180gb", {"page_size": 32}, "trtllm_mha", 32),
        (QWEN, "0.5.23", "b200-sxm-180gb", {"attention_backend": "flashinfer"}, "flashinfer", 1),
        (QWEN, "0.5.23", "h200-sxm-141gb", {}, "fa3", 1),
        (QWEN, "0.5.23", "rtx-pro-6000-96gb", {}, "flashinfer", 1),
        (QWEN, "0.5.23", "mi300x-192gb", {}, "aiter", 1),
        (OSS, "0.5.3", "b200-sxm-180gb", {}, "trtllm_mha", 64),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "0.5.5", "b200-sxm-180gb", {}, "trtllm_mha", 64),
        (GEMMA3, "0.5.23", "h200-sxm-141gb", {}, "fa3", 1),
        (GEMMA4, "0.5.23", "h200-sxm-141gb", {}, "triton", 1),
        (GEMMA4, "0.5.23", "b200-sxm-180gb", {}, "trtllm_mha", 64),
        (OSS, "0.5.6", "rtx-pro-6000-96gb", {}, "triton", 1),
        (NEMOTRON, "0.5.14", "b200-sxm-180gb", {}, "flashinfer", 1),
        (NEMOTRON, "0.5.20", "b200-sxm-180gb", {}, "trtllm_mha", 64),
        (NEXT, "0.5.6", "b200-sxm-180gb", {}, "triton", 1),
        (NEXT, "0.5.6.post1", "b200-sxm-180gb", {"disable_radix_cache": True}, "trtllm_mha", 64),
        (R1, "0.5.6", "b200-sxm-180gb", {}, "", 64),
    ],
)
def test_attention_and_pages_follow_the_engines_rules(
    model: str, version: str, hardware: str, flags: dict[str, Any], wanted: str, page_tokens: int
) -> None:
    plan = prepared(model, version, hardware, engine_args=flags).plan
    assert plan.costs.terms.attention == (wanted, wanted)
    assert plan.limits.block_tokens == page_tokens


@pytest.mark.parametrize(
    ("model", "version", "hardware", "pool", "tokens"),
    [
        (QWEN, "0.5.9", "h200-sxm-141gb", {}, 0),
        (QWEN, "0.5.10", "h200-sxm-141gb", {}, 8192),
        (QWEN, "0.5.10", "mi300x-192gb", {}, 0),
        (QWEN, "0.5.23", "mi300x-192gb", {}, 0),
        (QWEN, "0.5.14", "b200-sxm-180gb", {"engine_args": {"disable_piecewise_cuda_graph": True}}, 0),
        (QWEN, "0.5.14", "h200-sxm-141gb", {"engine_args": {"moe_a2a_backend": "deepep"}}, 0),
        (QWEN35, "0.5.14", "h200-sxm-141gb", {}, 0),
        (QWEN35, "0.5.15", "h200-sxm-141gb", {}, 0),
        (QWEN35, "0.5.16", "h200-sxm-141gb", {}, 8192),
        (QWEN, "0.5.16", "h200-sxm-141gb", {"engine_args": {"moe_a2a_backend": "deepep"}}, 0),
        (QWEN, "0.5.17", "h200-sxm-141gb", {"engine_args": {"moe_a2a_backend": "deepep"}}, 8192),
        ("moonshotai/Kimi-K2.6", "0.5.15", "b200-sxm-180gb", {"tensor_parallel": 8}, 0),
        ("moonshotai/Kimi-K2.6", "0.5.16", "b200-sxm-180gb", {"tensor_parallel": 8}, 2048),
        ("moonshotai/Kimi-K2.6", "0.5.23", "b200-sxm-180gb", {"tensor_parallel": 8}, 8192),
        ("moonshotai/Kimi-K2-Instruct", "0.5.23", "b200-sxm-180gb", {"tensor_parallel": 8}, 0),
        (GEMMA3, "0.5.10", "h200-sxm-141gb", {}, 8192),
        (GEMMA4, "0.5.23", "h200-sxm-141gb", {}, 0),
        (NEXT, "0.5.14", "h200-sxm-141gb", {}, 0),
        (NEXT, "0.5.15", "h200-sxm-141gb", {}, 8192),
        ("deepseek-ai/DeepSeek-V3.2", "0.5.12", "h200-sxm-141gb", {}, 0),
        ("deepseek-ai/DeepSeek-V3.2", "0.5.13", "h200-sxm-141gb", {}, 2048),
        ("deepseek-ai/DeepSeek-V3.2", "0.5.16", "h200-sxm-141gb", {}, 0),
        ("deepseek-ai/DeepSeek-V3.2", "0.5.17", "b200-sxm-180gb", {}, 2048),
        (NEMOTRON, "0.5.17", "h200-sxm-141gb", {}, 0),
        (NEMOTRON, "0.5.16", "h200-sxm-141gb", {}, 8192),
        (NEMOTRON, "0.5.18", "h200-sxm-141gb", {}, 8192),
        (R1, "0.5.14", "b200-sxm-180gb", {}, 2048),
        (R1, "0.5.15", "h200-sxm-141gb", {}, 0),
        (R1, "0.5.17", "h200-sxm-141gb", {}, 0),
        (R1, "0.5.18", "h200-sxm-141gb", {}, 2048),
        (R1, "0.5.18", "b200-sxm-180gb", {}, 0),
        (R1, "0.5.23", "h200-sxm-141gb", {}, 8192),
        (R1, "0.5.23", "b200-sxm-180gb", {}, 0),
        (R1, "0.5.23", "b200-sxm-180gb", {"engine_args": {"enable_piecewise_cuda_graph": True}}, 8192),
    ],
)
def test_graphs_hold_prompts_by_the_engines_rules(
    model: str, version: str, hardware: str, pool: dict[str, Any], tokens: int
) -> None:
    assert prepared(model, version, hardware, **pool).plan.costs.terms.host.prefill_graph_tokens == tokens


def test_prompts_and_decoding_rows_may_have_attention_of_their_own() -> None:
    found = prepared(QWEN, "0.5.23", "b200-sxm-180gb", engine_args={"prefill_attention_backend": "flashinfer"})
    assert found.plan.costs.terms.attention == ("flashinfer", "trtllm_mha")


def test_flashinfer_takes_longer_than_tensorrt_llm_on_blackwell() -> None:
    """Tables of both at 64 rows of 4,095 tokens of eight heads: 39.2 and 28.8 us; one prompt of 8,192: 202 and 171."""
    ops = prepared(QWEN, "0.5.23", "b200-sxm-180gb").kernels
    decodes, prompts = (
        [float(times(ops.with_attention(word, word))) for word in ("flashinfer", "trtllm_mha")]
        for times in (
            lambda on: on.decode_attention_s("bf16", 8, 1, 128, 0, 64, 4095),
            lambda on: on.prefill_attention_s("bf16", "bf16", 8, 1, 128, 0, 8192, 0),
        )
    )
    assert decodes == pytest.approx([39.2e-6, 28.8e-6], rel=0.06)
    assert prompts == pytest.approx([202e-6, 171e-6], rel=0.1)
    assert ops.with_attention("fa3", "fa3").decode_attention_s("bf16", 8, 1, 128, 0, 64, 4095) == decodes[1]


def test_windows_run_on_the_backend_of_the_engine_too() -> None:
    """Gemma 3's on FlashAttention 3, as under vLLM (310 us a prompt of 8,192); tables have such windows of Gemma 4 alone, in
    Triton (5.2 ms), which passes all keys."""
    window = ("bf16", "bf16", 16, 8, 256, 1024, 8192, 0)
    ops = prepared(GEMMA3, "0.5.23", "h100-sxm-80gb", tensor_parallel=2).kernels
    ours, triton = (float(ops.with_attention(word, word).prefill_attention_s(*window)) for word in ("fa3", "triton"))
    assert ours == pytest.approx(310e-6, rel=0.1)
    assert triton == pytest.approx(5.2e-3, rel=0.1)


@pytest.mark.parametrize(
    ("hardware", "word", "measured_s"), [("h100-sxm-80gb", "fa3", 865e-6), ("b200-sxm-180gb", "trtllm_mha", 502e-6)]
)
def test_queries_over_an_fp8_cache_are_as_narrow(hardware: str, word: str, measured_s: float) -> None:
    """One prompt of 8,192 tokens, 32 heads over 8 of keys and values: over such a cache tables time these backends with queries
    in FP8 alone; with wider ones they have Triton, of other widths, an order of magnitude slower."""
    ops = prepared(QWEN, "0.5.23", hardware).kernels.with_attention(word, word)
    narrow_s, wide_s = (float(ops.prefill_attention_s("bf16", kv, 32, 8, 128, 0, 8192, 0)) for kv in ("fp8", "bf16"))
    assert narrow_s == pytest.approx(measured_s, rel=0.1)
    assert narrow_s < wide_s


def test_a_measured_shape_runs_on_what_it_was_measured_on() -> None:
    """MiMo-V2-Flash's heads on eight B200 were timed in Triton alone (929 us a prompt of 8,192); most shapes near are other
    kernels'."""
    ops = prepared(QWEN, "0.5.23", "b200-sxm-180gb").kernels
    assert float(ops.prefill_attention_s("bf16", "bf16", 8, 1, 192, 0, 8192, 0)) == pytest.approx(929e-6, rel=0.1)


@pytest.mark.parametrize(
    ("model", "version", "hardware", "norms", "selection"),
    [
        ("google/gemma-4-26B-A4B-it", "0.5.10", "mi300x-192gb", (0, 27), (16, 19)),
        ("google/gemma-4-31B-it", "0.5.10", "mi300x-192gb", (0, 27), (0, 0)),
        ("google/gemma-4-26B-A4B-it", "0.5.14", "mi300x-192gb", (0, 0), (0, 0)),
        ("google/gemma-4-26B-A4B-it", "0.5.10", "h200-sxm-141gb", (0, 0), (0, 0)),
        ("google/gemma-3-27b-it", "0.5.14", "h200-sxm-141gb", (9, 20), (0, 0)),
        ("google/gemma-3-27b-it", "0.5.23", "mi300x-192gb", (0, 20), (0, 0)),
        (NEXT, "0.5.9", "mi300x-192gb", (10, 20), (0, 0)),
        (NEXT, "0.5.10", "mi300x-192gb", (1, 4), (0, 0)),
        (NEXT, "0.5.9", "h200-sxm-141gb", (0, 0), (0, 0)),
        ("Qwen/Qwen3-32B", "0.5.9", "mi300x-192gb", (0, 0), (0, 0)),
    ],
)
def test_norms_without_a_kernel_are_computed_in_torch(
    model: str, version: str, hardware: str, norms: tuple[int, int], selection: tuple[int, int]
) -> None:
    """By type of model, version and GPU; Gemma 4's choice of experts too."""
    plan = prepared(model, version, hardware, tensor_parallel=2).plan
    terms = plan.costs.terms
    assert (terms.norm_kernels, terms.head_norm_kernels) == norms
    assert (terms.selection_kernels, terms.selection_passes) == selection
    assert any("in PyTorch" in note for note in plan.notes) == any(norms)


def test_norms_in_torch_are_launched_and_timed_one_by_one() -> None:
    """Of Gemma 3's 62 layers four norms and those of queries and keys."""
    each = prepared("google/gemma-3-27b-it", "0.5.14", "h200-sxm-141gb", tensor_parallel=1)
    costs = each.plan.costs
    slow = Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)
    quick = replace(slow, terms=replace(slow.terms, norm_kernels=0, head_norm_kernels=0))
    assert slow.launches() - quick.launches() == 62 * (4 * 9 + 20 - 2)  # queries and keys: ten each, for one each
    one = np.array([1])
    slow_s, quick_s = (sum(s[0] for name, s in norms_and_rotary(shard, one) if name == "norms") for shard in (slow, quick))
    assert slow_s - quick_s == pytest.approx(62 * (4 * 9 + 20 - 1) * float(each.kernels.elementwise_s(1.0)), rel=0.02)


def test_short_prompts_of_sparse_latent_attention_are_dense() -> None:
    """Up to 2,048 tokens with those before them, since 0.5.6 (a run with 2,000 tokens: -2 % in throughput, -8 without)."""

    def attention_s(version: str, new: int, prior: int, rows: int = 1) -> float:
        found = prepared("deepseek-ai/DeepSeek-V3.2", version, "h200-sxm-141gb")
        steps = found.times()
        assert isinstance(steps, StepTimeModel)
        batch = Batch(0, prefill=[(new, prior)] * rows, tokens=new * rows)
        return PrefillAttention(steps.shard, 8192, 16384).batch_s(batch)

    for new, prior in ((1024, 0), (2048, 0), (512, 512)):
        assert attention_s("0.5.6", new, prior) < 0.3 * attention_s("0.5.5", new, prior)
    for new, prior in ((4096, 0), (512, 4096)):
        assert attention_s("0.5.6", new, prior) == attention_s("0.5.5", new, prior)
    for captured in ("0.5.13", "0.5.17", "0.5.20"):  # graphs of up to 2,048 tokens
        assert attention_s(captured, 1024, 0) == pytest.approx(attention_s("0.5.5", 1024, 0))
        assert attention_s(captured, 512, 512) == pytest.approx(attention_s("0.5.5", 512, 512))
        assert attention_s(captured, 1024, 0, rows=3) == pytest.approx(attention_s("0.5.6", 1024, 0, rows=3))
    assert attention_s("0.5.15", 1024, 0) == attention_s("0.5.6", 1024, 0)  # not captured
    without_expansion = prepared("deepseek-ai/DeepSeek-V4-Flash", "0.5.23", "h200-sxm-141gb").times()
    assert isinstance(without_expansion, StepTimeModel)


def test_cutlass_experts_are_priced_as_tuned() -> None:
    """Layers of Nemotron-3-Nano on an H200: 0.62 ms for 32 tokens that are dealt out evenly, 3.8 untuned."""
    shard = prepared(NEMOTRON, "0.5.14", "h200-sxm-141gb", tensor_parallel=1).times()
    assert isinstance(shard, StepTimeModel)
    layers = sum(block.layers for block in shard.shard.stage.mlp if block.kind == "moe")
    assert 0.3e-3 < float(shard.parts_s(np.array([32]))["experts"][0]) / layers < 0.62e-3


def test_layers_with_an_embedding_of_their_own_launch_six_kernels_more() -> None:
    """Two over the embedding's width and four over the hidden state, of each of the 35 layers; no other layer has them."""

    def shard_of(model: str) -> Shard:
        each = prepared(model, "0.5.23", "h200-sxm-141gb")
        costs = each.plan.costs
        return Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)

    own = shard_of("google/gemma-4-E2B-it")
    one_s = float(own.ops.elementwise_s(np.array([1.0]))[0])
    assert float(sum(s[0] for _, s in small_kernels(own, np.array([1])))) == pytest.approx(6 * 35 * one_s, rel=0.1)
    joined = replace(own, terms=replace(own.terms, small_kernels=False, joins_small_kernels=True))
    assert own.launches() - joined.launches() == 6 * 35
    other = shard_of("google/gemma-4-31B-it")
    assert list(small_kernels(other, np.array([1]))) == []
    rest = replace(other, terms=replace(other.terms, small_kernels=False, joins_small_kernels=True))
    assert other.launches() == rest.launches()
    assert (own.arch.norms_per_layer, shard_of("google/gemma-4-26B-A4B-it").arch.norms_per_layer) == (4, 6)


def test_experts_with_the_shared_one_run_in_tiles_that_their_table_was_not_timed_with() -> None:
    """Of both tables of Triton's kernels the quicker holds at each size, on Hopper in FP8 blocks and nowhere else."""

    def rival(hardware: str, model: str = R1, **pool: Any) -> str:
        return prepared(model, "0.5.9", hardware, **pool).plan.costs.terms.moe_rival

    assert rival("h200-sxm-141gb") == "vllm/triton"
    assert rival("b200-sxm-180gb") == rival("mi300x-192gb") == ""
    assert rival("h200-sxm-141gb", engine_args={"disable_shared_experts_fusion": True}) == ""
    assert rival("h200-sxm-141gb", "Qwen3-235B-A22B", weights="fp8_block", tensor_parallel=4) == ""
    each = prepared(R1, "0.5.9", "h200-sxm-141gb")
    costs = each.plan.costs
    shard = Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)
    alone = replace(shard, terms=replace(shard.terms, moe_rival=""))
    rows = np.array([1, 4, 8, 16, 32, 64, 256, 4096])
    both_s, own_s = (dict(experts(one, rows))["experts"] for one in (shard, alone))
    assert np.all(both_s <= own_s)
    assert both_s[3] < 0.95 * own_s[3]
    assert both_s[-1] == own_s[-1]


def test_sums_before_0_5_12_run_in_the_kernel_that_vllm_has_unless_they_hold_norms() -> None:
    def shard_of(version: str, hardware: str, model: str = "GLM-4.6") -> Shard:
        each = prepared(model, version, hardware)
        costs = each.plan.costs
        return Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)

    def sums_s(shard: Shard, rows: int) -> float:
        return float(dict(collectives(shard, np.array([rows])))["collectives"][0])

    earlier, own = shard_of("0.5.6", "b200-sxm-180gb"), shard_of("0.5.12", "b200-sxm-180gb")
    assert (earlier.terms.earlier_sums, own.terms.earlier_sums) == (True, False)
    assert not shard_of("0.5.6", "a100-sxm-80gb", "Llama-3.1-70B").terms.earlier_sums
    as_own = replace(earlier, terms=replace(earlier.terms, earlier_sums=False))
    assert 2e-6 < (sums_s(earlier, 1) - sums_s(as_own, 1)) / earlier.reduces < 3.5e-6
    held = shard_of("0.5.6", "b200-sxm-180gb", R1)
    plain = replace(held, terms=replace(held.terms, earlier_sums=False))
    assert held.terms.earlier_sums
    assert sums_s(held, 64) == sums_s(plain, 64)
    assert sums_s(earlier, 600) != sums_s(as_own, 600)
    assert sums_s(earlier, 1000) == sums_s(as_own, 1000)  # of 5,120 values, above 8 MiB
    assert not shard_of("0.5.6", "rtx-pro-6000-96gb", "Llama-3.1-70B").terms.earlier_sums
    by_datasheet = shard_of("0.5.6", "h20-sxm-96gb", "Llama-3.1-70B")
    few = np.array([8192.0])
    assert by_datasheet.ops.earlier_all_reduce_s(8, few) > 0
