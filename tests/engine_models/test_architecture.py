"""Counting architectures: bytes on ranks, KV cache, matrices, and the reading of configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.model.architecture import (
    active_bytes,
    active_parameters,
    architecture_from_config,
    check_parallelism,
    format_of_part,
    gemm_shapes,
    kv_bytes_per_token,
    kv_groups,
    load_architecture,
    mla_absorbed_bytes_per_rank,
    moe_shapes,
    parameters,
    pipeline_layers,
    stages,
    state_bytes_per_sequence,
    tensor_parallel_sizes,
    uneven_block_width,
    weight_bytes,
    weight_bytes_per_rank,
)
from engine_models.model.catalogue import catalogue, model_names
from engine_models.model.config import ConfigReader
from engine_models.model.expert_groups import group_spread, reached_share
from engine_models.model.formats import FORMATS, format_named
from engine_models.model.hf_config import _architecture
from engine_models.model.stored_format import kv_quantization
from hardware_profiles.errors import InputError
from tests.effort import examples

BF16 = format_named("bf16")
FP8 = format_named("fp8")

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}


# -- formats ------------------------------------------------------------------------------------------------


def test_bits_follow_from_the_storage_layouts() -> None:
    assert format_named("mxfp4").bits_per_weight == 4.25
    assert format_named("NVFP4").bits_per_weight == 4.5
    assert format_named("int4").bits_per_weight == 4.125
    assert format_named("awq").bits_per_weight == 4.15625
    assert format_named("fp8-block").bits_per_weight == pytest.approx(8.00195, abs=1e-5)
    assert format_named("bfloat16") is FORMATS["bf16"]


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown number format 'mxpf4'") as caught:
        format_named("mxpf4", where="deployment.weights")
    assert caught.value.mend is not None
    assert "'mxfp4'" in caught.value.mend
    assert caught.value.where == "deployment.weights"


# -- KV cache -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tp", "expected"),
    [
        ("Llama-3.1-8B", 1, 131_072),  # 2 * 32 layers * 8 heads * 128 * 2 bytes
        ("Llama-3.1-8B", 8, 16_384),
        ("Llama-3.1-8B", 16, 16_384),  # below one KV head a rank: replicated
        ("Llama-3.1-70B", 1, 327_680),
        ("Llama-2-7b", 1, 524_288),
        ("DeepSeek-V3", 1, 70_272),  # 61 * (512 + 64) * 2, one latent, not doubled
        ("DeepSeek-V3", 8, 70_272),  # and on every rank
        ("Qwen3-30B-A3B", 1, 98_304),
        ("gpt-oss-120b", 1, 73_728),
        ("bigcode/starcoder", 1, 20_480),  # multi-query
    ],
)
def test_kv_bytes_per_token(name: str, tp: int, expected: int) -> None:
    arch = load_architecture(name)
    assert kv_bytes_per_token(arch, BF16, tp) == expected
    assert kv_bytes_per_token(arch, FP8, tp) * 2 == expected


def test_kv_groups_separate_windowed_from_full_layers() -> None:
    oss = {(g.kind, g.window_tokens): g for g in kv_groups(load_architecture("gpt-oss-120b"), BF16)}
    assert set(oss) == {("full", 0), ("sliding", 128)}
    assert all(g.layers == 18 and g.bytes_per_token_per_rank == 36_864 for g in oss.values())
    gemma = {g.kind: g.layers for g in kv_groups(load_architecture("gemma-3-27b"), BF16)}
    assert gemma == {"sliding": 52, "full": 10}
    scout = {(g.kind, g.window_tokens): g.layers for g in kv_groups(load_architecture("llama-4-scout"), BF16)}
    assert scout == {("sliding", 8192): 36, ("full", 0): 12}


def test_kv_of_a_pipeline_is_that_of_the_longest_stage() -> None:
    arch = load_architecture("Llama-3.1-70B")
    assert kv_bytes_per_token(arch, BF16, 1, 4) == 327_680 // 4
    assert kv_bytes_per_token(arch, BF16, 1, 3) == 4096 * 27


def test_linear_attention_keeps_a_state_and_no_cache() -> None:
    arch = load_architecture("Qwen3-Next-80B-A3B-Instruct")
    assert kv_bytes_per_token(arch, BF16) == 12 * 2 * 2 * 256 * 2
    assert state_bytes_per_sequence(arch) == 2 * 36 * (32 * 128 * 128 + 3 * (2 * 16 * 128 + 32 * 128))
    assert state_bytes_per_sequence(load_architecture("Llama-3.1-8B")) == 0


def test_weight_formats_are_refused_for_the_cache() -> None:
    with pytest.raises(InputError, match="'awq' is not a KV cache format"):
        kv_groups(load_architecture("Llama-3.1-8B"), format_named("awq"))


# -- weights on ranks ---------------------------------------------------------------------------------------


def test_one_rank_holds_all_weights() -> None:
    arch = load_architecture("Llama-3.1-8B")
    assert weight_bytes(arch, BF16) == 2 * 8_030_261_248
    assert weight_bytes_per_rank(arch, BF16) == weight_bytes(arch, BF16)


def test_only_norms_are_replicated_in_a_llama() -> None:
    arch = load_architecture("Llama-3.1-8B")
    norms = (2 * 32 + 1) * 4096 * 2
    per_rank = weight_bytes_per_rank(arch, BF16, 4)
    assert (per_rank - norms) * 4 == weight_bytes(arch, BF16) - norms


def test_kv_projections_below_one_head_a_rank_are_replicated() -> None:
    arch = load_architecture("Llama-3.1-8B")
    kv_projection = 2 * 4096 * 128 * 32 * 2  # one KV head's K and V weights in all layers, bytes
    norms = (2 * 32 + 1) * 4096 * 2
    sharded = weight_bytes(arch, BF16) - norms - 8 * kv_projection
    assert weight_bytes_per_rank(arch, BF16, 16) == sharded // 16 + kv_projection + norms


def test_mla_down_projections_are_replicated() -> None:
    arch = load_architecture("DeepSeek-V2-Lite")
    replicated = 27 * 2048 * (512 + 64)  # hidden -> latent and rope
    replicated += 27 * 512 + (2 * 27 + 1) * 2048 + 26 * 64 * 2048  # norms and routers
    sharded = parameters(arch) - replicated
    assert weight_bytes_per_rank(arch, BF16, 4) == 2 * (sharded // 4 + replicated)


def test_the_absorbed_copy_of_mla() -> None:
    arch = load_architecture("DeepSeek-V3")
    assert mla_absorbed_bytes_per_rank(arch, 8) == 61 * 512 * 16 * 256 * 2
    assert mla_absorbed_bytes_per_rank(load_architecture("Llama-3.1-8B")) == 0


def test_pipeline_stages() -> None:
    assert pipeline_layers(61, 4) == (15, 15, 16, 15)
    assert pipeline_layers(61, 2) == (31, 30)
    assert pipeline_layers(22, 4) == (5, 6, 6, 5)
    arch = load_architecture("DeepSeek-V3")
    parts = stages(arch, 4)
    assert sum(parameters(s) for s in parts) == parameters(arch)
    assert [sum(b.layers for b in s.mlp if b.kind == "dense") for s in parts] == [3, 0, 0, 0]
    tied = load_architecture("Llama-3.2-1B")
    table = 128256 * 2048
    assert sum(parameters(s) for s in stages(tied, 2)) == parameters(tied) + table


def test_expert_parallelism_moves_experts_and_nothing_else() -> None:
    arch = load_architecture("Qwen3-30B-A3B")
    # tp 8 with whole experts or with slices of each: the same bytes
    assert weight_bytes_per_rank(arch, BF16, 8, 1, 8) == weight_bytes_per_rank(arch, BF16, 8)
    # attention replicated over 8 data-parallel ranks, experts spread over them
    experts = 48 * 128 * 3 * 2048 * 768 * 2
    alone = weight_bytes_per_rank(arch, BF16)
    assert weight_bytes_per_rank(arch, BF16, 1, 1, 8, data_parallel=8) == alone - experts + experts // 8
    # 128 experts on 3 ranks: the fullest has 43
    uneven = alone - experts + experts // 128 * 43
    assert weight_bytes_per_rank(arch, BF16, 1, 1, 3, data_parallel=3) == uneven


def test_quantized_bytes_against_published_checkpoint_sizes() -> None:
    # Sizes of the published safetensors, GB: gpt-oss-120b 65.2, gpt-oss-20b 13.8, Kimi-K2-Thinking 594.
    for name, gigabytes in (("gpt-oss-120b", 65.2), ("gpt-oss-20b", 13.8), ("Kimi-K2-Thinking", 594.0)):
        arch = load_architecture(name)
        assert arch.quantization is not None
        assert weight_bytes(arch, format_named(arch.quantization)) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_what_a_checkpoint_leaves_alone() -> None:
    oss = load_architecture("gpt-oss-120b")
    mxfp4 = format_named("mxfp4")
    assert format_of_part(oss, mxfp4, "experts") is mxfp4
    for part in ("attention", "router", "embedding", "lm_head", "norm"):
        assert format_of_part(oss, mxfp4, part) is BF16
    kimi = load_architecture("Kimi-K2.5")
    assert set(kimi.unquantized) == {"attention", "mlp", "shared_expert"}
    assert kimi.quantization_bits == 4.5  # groups of 32
    assert load_architecture("DeepSeek-V3").unquantized == ()
    nvfp4 = format_named("nvfp4")
    assert format_of_part(load_architecture("DeepSeek-V3"), nvfp4, "attention") is BF16
    assert format_of_part(load_architecture("Llama-3.1-70B"), nvfp4, "attention") is nvfp4
    assert weight_bytes(oss, BF16) == 2 * parameters(oss)


@settings(max_examples=examples(60))
@given(
    name=st.sampled_from(model_names()),
    weights=st.sampled_from(sorted(FORMATS)),
    pp=st.integers(1, 5),
    data=st.data(),
)
def test_ranks_together_hold_at_least_the_model(
    name: str, weights: str, pp: int, data: st.DataObject
) -> None:
    arch = load_architecture(name)
    held = format_named(weights)
    sizes = tensor_parallel_sizes(arch, 16)
    tp = data.draw(st.sampled_from(sizes))
    pp = min(pp, arch.layers)
    per_rank = weight_bytes_per_rank(arch, held, tp, pp)
    assert per_rank * tp * pp >= weight_bytes(arch, held)
    assert per_rank <= weight_bytes_per_rank(arch, held, 1, pp)
    smaller = [t for t in sizes if t <= tp and tp % t == 0]
    by_size = [weight_bytes_per_rank(arch, held, t, pp) for t in smaller]
    assert by_size == sorted(by_size, reverse=True)
    caches = [kv_bytes_per_token(arch, BF16, t, pp) for t in smaller]
    assert caches == sorted(caches, reverse=True)
    assert caches[-1] * tp * pp >= kv_bytes_per_token(arch, BF16)


@given(name=st.sampled_from(model_names()))
@settings(max_examples=examples(40))
def test_gemms_hold_every_matrix(name: str) -> None:
    """n * k over all matrices is the parameter count less tables, what stands beside the layers, norms, biases, small vectors."""
    arch = load_architecture(name)
    matrices = sum(g.n * g.k * g.layers for g in gemm_shapes(arch) if g.name != "lm_head")
    matrices += sum(
        s.layers * s.experts * (3 if s.gated else 2) * s.hidden * s.intermediate for s in moe_shapes(arch)
    )
    tables = arch.vocab * arch.hidden * (1 if arch.tied_embeddings else 2) + arch.positions * arch.hidden
    tables += sum(extra.rows.units * extra.rows.size * extra.columns for extra in arch.extras if extra.part != "vision")
    small = parameters(arch) - tables - matrices
    assert 0 <= small <= 0.004 * parameters(arch)
    assert active_parameters(arch) <= parameters(arch)


# -- matrices -----------------------------------------------------------------------------------------------


def test_gemms_of_a_llama_rank() -> None:
    found = {g.name: (g.n, g.k, g.layers, g.per) for g in gemm_shapes(load_architecture("Llama-3.1-8B"), 2)}
    assert found == {
        "qkv": (3072, 4096, 32, "token"),
        "o": (4096, 2048, 32, "token"),
        "gate_up": (14336, 4096, 32, "token"),
        "down": (4096, 7168, 32, "token"),
        "lm_head": (64128, 4096, 1, "sequence"),
    }


def test_gemms_of_a_deepseek_rank() -> None:
    arch = load_architecture("DeepSeek-V3")
    found = {g.name: (g.n, g.k, g.layers) for g in gemm_shapes(arch, 8, 8)}
    assert found["mla_qkv_a"] == (1536 + 512 + 64, 7168, 61)
    assert found["mla_q_b"] == (16 * 192, 1536, 61)
    assert found["mla_kv_b"] == (16 * 256, 512, 61)
    assert found["o"] == (7168, 16 * 128, 61)
    assert found["gate_up"] == (2 * 18432 // 8, 7168, 3)
    assert found["shared_down"] == (7168, 2048 // 8, 58)
    assert found["router"] == (256, 7168, 58)
    (moe,) = moe_shapes(arch, 8, 8)
    assert (moe.hidden, moe.intermediate, moe.experts, moe.topk) == (7168, 2048, 256, 8)
    assert (moe.tp, moe.ep, moe.layers) == (1, 8, 58)
    (sliced,) = moe_shapes(arch, 8, 2)
    assert (sliced.tp, sliced.ep) == (4, 2)
    assert moe.deal.spread == group_spread(256, 8, 8, 4, 8)
    free = moe_shapes(load_architecture("Kimi-K2-Instruct"), 8, 8)[0]
    assert moe.reached_share == reached_share(256, 8, 8, 4, 8) < free.reached_share
    assert moe_shapes(load_architecture("Kimi-K2-Instruct"), 8, 8)[0].deal.spread == 1.0


@pytest.mark.parametrize("ranks", [2, 8, 16])
def test_groups_of_experts_load_ranks_unevenly(ranks: int) -> None:
    """The closed form against 4,000 tokens that choose 4 of 8 groups, then 8 of their 128 experts."""
    rng = np.random.default_rng(1)
    taken = (rng.random((4000, 8)).argsort(axis=1) < 4).repeat(32, axis=1)
    rows = (np.where(taken, rng.random((4000, 256)), 2.0).argsort(axis=1)[:, :8] < 256 // ranks).sum(axis=1)
    free = 8 / ranks * (1 - 1 / ranks) * 248 / 255
    assert rows.var() == pytest.approx(group_spread(256, 8, 8, 4, ranks) * free, rel=0.07)


@pytest.mark.parametrize("ranks", [2, 4, 8, 32])
@pytest.mark.parametrize("chosen", [4, 8])
def test_a_token_reaches_the_ranks_of_its_experts(ranks: int, chosen: int) -> None:
    """The closed form against 4,000 tokens that choose their 8 of 256 experts in 4 of 8 groups, or freely."""
    rng = np.random.default_rng(2)
    taken = (rng.random((4000, 8)).argsort(axis=1) < chosen).repeat(32, axis=1)
    experts = np.where(taken, rng.random((4000, 256)), 2.0).argsort(axis=1)[:, :8]
    drawn = np.mean([len(np.unique(row // (256 // ranks))) for row in experts])
    assert drawn == pytest.approx(ranks * reached_share(256, 8, 8, chosen, ranks), rel=0.03)


def test_groups_that_cannot_hold_a_tokens_experts_are_refused() -> None:
    config = {**catalogue()["deepseek-ai/DeepSeek-V3"], "n_group": 64, "topk_group": 1}
    with pytest.raises(InputError, match="8 experts of 1 of 64 groups, of 256 experts"):
        architecture_from_config(config, "a model")


# -- parallelism --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tp", "pp", "ep", "message", "mend"),
    [
        ("Llama-3.1-8B", 3, 1, 1, "does not divide 32 attention heads", "1, 2, 4, 8, 16, 32"),
        ("Llama-3.1-8B", 0, 1, 1, "tensor_parallel is 0", "whole number"),
        ("Llama-3.1-8B", 1, 33, 1, "exceeds the 32 layers", "at most 32"),
        ("Llama-3.1-8B", 1, 1, 2, "which has no experts", "leave expert_parallel out"),
        ("Mixtral-8x7B-v0.1", 8, 1, 16, "exceeds the 8 experts", "at most 8"),
        ("Qwen3-30B-A3B", 4, 1, 3, "does not fit 4 ranks", "divisor of 4"),
        ("tiiuae/falcon-7b", 2, 1, 1, "71 attention heads", "use one of 1"),
        ("Qwen/Qwen2.5-7B", 8, 1, 1, "28 attention heads", "1, 2, 4"),
    ],
)
def test_impossible_splits_are_answered(
    name: str, tp: int, pp: int, ep: int, message: str, mend: str
) -> None:
    arch = load_architecture(name)
    with pytest.raises(InputError, match=message) as caught:
        check_parallelism(arch, tp, pp, ep)
    assert caught.value.mend is not None
    assert mend in caught.value.mend


@pytest.mark.parametrize(
    ("name", "tp", "ep", "width"),
    [
        ("MiniMaxAI/MiniMax-M2.5", 8, 1, 192),  # "192 is not divisible by weight quantization block_n = 128"
        ("MiniMaxAI/MiniMax-M2.5", 4, 1, None),
        ("MiniMaxAI/MiniMax-M2.5", 8, 8, None),
        ("Qwen/Qwen3-235B-A22B", 8, 1, 192),
        ("deepseek-ai/DeepSeek-R1", 8, 1, None),
        ("Llama-3.1-8B", 8, 1, None),
    ],
)
def test_experts_in_fp8_blocks_are_split_by_whole_blocks(name: str, tp: int, ep: int, width: int | None) -> None:
    arch = load_architecture(name)
    assert uneven_block_width(arch, format_named("fp8_block"), tp, ep) == width
    assert uneven_block_width(arch, format_named("fp8"), tp, ep) is None


def test_possible_splits_pass() -> None:
    check_parallelism(load_architecture("Llama-3.1-8B"), 16)
    check_parallelism(load_architecture("DeepSeek-V3"), 8, 2, 16)
    check_parallelism(load_architecture("DeepSeek-V3"), 1, 1, 8, data_parallel=8)
    assert tensor_parallel_sizes(load_architecture("gpt-oss-120b"), 16) == [1, 2, 4, 8, 16]


# -- reading configs ----------------------------------------------------------------------------------------


UNLIKE = [
    *("openai/gpt-oss-20b", "google/gemma-3n-E2B-it", "deepseek-ai/DeepSeek-V3.2", "zai-org/GLM-5", "MiniMax-M3"),
    *("stepfun-ai/Step-3.5-Flash", "Qwen/Qwen3-Next-80B-A3B-Instruct", "google/gemma-4-E4B-it", "DeepSeek-V4-Flash"),
    "dots-studio/dots3-note-prev",
]
"""Models whose layers differ: by lists of one value a layer, by their number, by lists in a nested mapping."""


@pytest.mark.parametrize("names", [UNLIKE, pytest.param(model_names(), marks=pytest.mark.slow)], ids=["unlike", "all"])
def test_layers_that_are_read_once_are_what_each_of_them_says(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    once = [load_architecture(name) for name in names]
    monkeypatch.setattr(ConfigReader, "alike", lambda self, layer: False)
    _architecture.cache_clear()
    assert [load_architecture(name) for name in names] == once
    _architecture.cache_clear()


def test_inline_fields_and_files_read_alike(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(TINY))
    inline = load_architecture({"name": "tiny", **TINY})
    assert load_architecture("tiny/config.json", tmp_path) == inline
    assert load_architecture("tiny", tmp_path) == inline
    # 3 layers of (4 + 2*2) heads in, 4 out, 3 MLP matrices, 2 norms; 2 tables; final norm
    assert parameters(inline) == 3 * (64 * 16 * 12 + 3 * 64 * 128 + 2 * 64) + 2 * 128 * 64 + 64


def test_a_model_is_named_by_its_folder_or_by_a_file_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("config.json", "mine.json"):
        (tmp_path / "folder" / name).write_text(json.dumps(TINY))
    names = [load_architecture(f"folder/{name}", tmp_path).name for name in ("config.json", "mine.json")]
    assert names == ["folder", "mine"]


def test_modelopt_states_its_format_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    stated: dict[str, dict[str, Any]] = {
        "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "model.layers.1.self_attn*"]}
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stated))
    arch = load_architecture(str(tmp_path / "config.json"))
    assert arch.quantization == "nvfp4"
    assert arch.unquantized == ("attention",)
    assert arch.kv_quantization is None
    stated["quantization"]["kv_cache_quant_algo"] = "FP8"
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stated))
    assert load_architecture(str(tmp_path / "config.json")).kv_quantization == "fp8"


@pytest.mark.parametrize(
    ("stated", "method", "wanted"),
    [
        ({"num_bits": 8, "type": "float", "dynamic": False}, "modelopt", "fp8"),
        ({"num_bits": 4, "type": "float", "dynamic": False}, "modelopt", "nvfp4"),
        ({"num_bits": 4, "type": "float"}, "compressed-tensors", None),
        ({"num_bits": 8, "type": "int"}, "modelopt", None),
        ("NVFP4", "modelopt", "nvfp4"),
        ("FP8", "modelopt_fp4", "fp8"),
        (None, "modelopt", None),
        ({"num_bits": 8, "type": "float"}, "compressed-tensors", "fp8"),
        ({"num_bits": 8, "type": "float"}, "quark", None),
    ],
)
def test_modelopts_config_states_the_cache_by_a_scheme(stated: Any, method: str, wanted: str | None) -> None:
    quantization = {"quant_method": method, "quant_algo": "NVFP4", "kv_cache_scheme": stated}
    assert kv_quantization({"quantization_config": quantization}) == wanted


def groups(weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


def quark(weights: Any, inputs: dict[str, Any] | None) -> dict[str, Any]:
    whole = {"weight": weights, "input_tensors": inputs}
    return {"quant_method": "quark", "global_quant_config": whole, "layer_quant_config": {}}


@pytest.mark.parametrize(
    ("quantization", "name", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", 4.15625),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq", 4.625),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 0.0),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", 0.0),
        ({"quant_method": "fbgemm_fp8"}, "fp8", 0.0),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "g": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {"num_bits": 8}}
                },
            },
            "int8",
            0.0,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int", "group_size": 128}}},
            },
            "int8_wo",
            8.125,
        ),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8_wo", 8.1875),
        ({"group_size": 32, "bits": 4, "mode": "affine"}, "mlx_4bit", 5.0),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "mxfp4", 0.0),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
            },
            "nvfp4a16",
            0.0,
        ),
        (groups({"num_bits": 4, "type": "float", "group_size": 16}, {"num_bits": 4, "type": "float"}), "nvfp4", 0.0),
        (groups({"num_bits": 8, "type": "float", "strategy": "channel"}, {"num_bits": 8, "type": "float"}), "fp8", 0.0),
        (groups({"num_bits": 8, "type": "float", "strategy": "channel"}, None), "fp8a16", 0.0),
        (groups({"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}, {"num_bits": 8}), "mxfp8", 0.0),
        (groups({"num_bits": 4, "type": "float", "group_size": 32}, {"num_bits": 4}), "mxfp4", 0.0),
        (groups({"num_bits": 4, "type": "int", "group_size": 128}, {"num_bits": 8, "type": "float"}), "w4afp8", 4.125),
        (groups({"num_bits": 4, "type": "int", "group_size": 32, "symmetric": False}, None), "int4", 4.625),
        ({"quant_method": "modelopt", "quant_algo": "MXFP8"}, "mxfp8", 0.0),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, "fp8", 0.0),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ", "group_size": 64}, "w4afp8", 4.25),
        ({"quant_algo": "NVFP4", "config_groups": {"g": {"weights": {}, "input_activations": None}}}, "nvfp4a16", 0.0),
        ({"quant_method": "mxfp8"}, "mxfp8", 0.0),
        ({"quant_method": "fp8", "weight_block_size": [1, 32]}, "mxfp8", 0.0),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "mx_fp"}, "mxfp4", 0.0),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}, "int8_wo", 8.0),
        ({"quant_method": "torchao", "quant_type": "float8_dynamic_activation_float8_weight"}, "fp8", 0.0),
        (quark({"dtype": "fp4", "qscheme": "per_group", "group_size": 32}, {"dtype": "fp4"}), "mxfp4", 0.0),
        (quark({"dtype": "fp8_e4m3", "qscheme": "per_channel"}, {"dtype": "fp8_e4m3"}), "fp8", 0.0),
        (quark({"dtype": "uint4", "qscheme": "per_group", "group_size": 128}, None), "int4", 4.15625),
        (quark([{"dtype": "fp8_e4m3"}, {"dtype": "int4"}], {"dtype": "fp8_e4m3"}), "w4afp8", 0.0),
    ],
)
def test_quantization_configs(quantization: dict[str, Any], name: str, bits: float) -> None:
    arch = architecture_from_config({**TINY, "quantization_config": quantization}, "tiny")
    assert (arch.quantization, arch.quantization_bits) == (name, bits)


def test_groups_of_tensors_are_formats_of_parts() -> None:
    """Experts in nvfp4 and attention in blocks of fp8, as llm-compressor and Quark write such mixtures."""
    moe = {**TINY, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    narrow = {"weights": {"num_bits": 4, "group_size": 16}, "input_activations": {"num_bits": 4}}
    blocks = {"weights": {"num_bits": 8, "strategy": "block"}, "input_activations": {"num_bits": 8}}
    for targets in (["re:.*mlp.experts.*"], ["re:.*experts.*proj$"]):
        config_groups = {"a": {**blocks, "targets": ["re:.*self_attn.*"]}, "b": {**narrow, "targets": targets}}
        stated = {"quant_method": "compressed-tensors", "config_groups": config_groups}
        arch = architecture_from_config({**moe, "quantization_config": stated}, "mixed")
        assert (arch.quantization, dict(arch.part_formats)["attention"]) == ("nvfp4", "fp8_block")
    fp8, fp4 = {"dtype": "fp8_e4m3", "qscheme": "per_channel"}, {"dtype": "fp4", "qscheme": "per_group", "group_size": 32}
    listed = {"*self_attn*": {"weight": fp8, "input_tensors": fp8}}
    stated = {**quark(fp4, fp4), "layer_quant_config": listed, "exclude": ["lm_head"]}
    arch = architecture_from_config({**moe, "quantization_config": stated}, "mixed")
    assert (arch.quantization, arch.part_formats) == ("mxfp4", (("attention", "fp8"),))


@pytest.mark.parametrize(
    ("rules", "left", "parts"),
    [
        ({"quant_method": "gptq", "dynamic": {"-:.*self_attn.*": {}, "+:.*down_proj": {}}}, ("attention",), ()),
        ({"quant_method": "gptq", "dynamic": {".*self_attn.*": {"bits": 8, "group_size": 128}}}, (), (("attention", "int8_wo"),)),
        ({"quant_method": "auto-round", "extra_config": {".*self_attn.*": {"bits": 16, "data_type": "fp"}}}, ("attention",), ()),
        (
            {"quant_method": "auto-round", "extra_config": {"model.layers.1.self_attn.o_proj": {"bits": 8}}},
            (),
            (("attention", "int8_wo"),),
        ),
        ({"quant_method": "auto-round", "extra_config": {"self_attn.*": {"bits": 16}}}, ("attention",), ()),
        ({"quant_method": "gptq", "dynamic": {"-:self_attn.*": {}, "-:[": {}}}, (), ()),
        ({"quant_method": "auto-round", "extra_config": {"model.layers.1.self_attn.o_proj": {"scheme": "W4"}}}, (), ()),
    ],
)
def test_rules_change_the_format_of_some_modules(
    rules: dict[str, Any], left: tuple[str, ...], parts: tuple[tuple[str, str], ...]
) -> None:
    moe = {**TINY, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    stated = {"bits": 4, "group_size": 128, **rules}
    arch = architecture_from_config({**moe, "quantization_config": stated}, "rules")
    assert (arch.quantization, arch.unquantized, arch.part_formats) == ("gptq", left, parts)


def test_experts_alone_in_four_bits() -> None:
    """SGLang's w4afp8: experts are integers of 4 bits, what else there is in blocks of FP8."""
    moe = {**TINY, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    arch = architecture_from_config({**moe, "quantization_config": {"quant_method": "w4afp8"}}, "mixed")
    assert arch.quantization == "w4afp8"
    assert dict(arch.part_formats)["attention"] == "fp8_block"
    named = load_architecture("tencent/DeepSeek-R1-W4AFP8")
    assert (named.quantization, dict(named.part_formats)["attention"]) == ("w4afp8", "fp8_block")


def test_older_key_names() -> None:
    old = {
        "model_type": "gpt_bigcode",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "vocab_size": 128,
    }
    arch = architecture_from_config(old, "old")
    assert (arch.hidden, arch.layers, arch.attention[0].kv_heads) == (64, 2, 1)
    assert arch.mlp[0].intermediate == 256
    assert not arch.mlp[0].gated


def test_lightning_attention_layers() -> None:
    """MiniMax-Text-01: seven lightning layers to one of softmax, 456 billion parameters by its model card."""
    config = {
        "model_type": "minimax_text_01",
        "hidden_size": 6144,
        "intermediate_size": 9216,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 32,
        "num_experts_per_tok": 2,
        "vocab_size": 200064,
        "max_position_embeddings": 10240000,
        "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10,
    }
    arch = architecture_from_config(config, "MiniMax-Text-01")
    assert {b.kind: b.layers for b in arch.attention} == {"linear": 70, "full": 10}
    assert parameters(arch) == pytest.approx(456e9, rel=0.002)
    assert kv_bytes_per_token(arch, BF16) == 10 * 2 * 8 * 128 * 2


def test_first_generation_qwen_states_both_projections() -> None:
    qwen = {**TINY, "model_type": "qwen", "intermediate_size": 256}
    assert architecture_from_config(qwen, "q").mlp == architecture_from_config(TINY, "t").mlp


def test_text_config_of_a_multimodal_model() -> None:
    arch = architecture_from_config(
        {"model_type": "mistral3", "text_config": TINY, "vision_config": {}}, "seen"
    )
    assert arch.hidden == 64


def test_yarn_stretches_the_context() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert architecture_from_config({**TINY, "rope_scaling": scaling}, "t").max_context_tokens == 1024
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    assert architecture_from_config({**TINY, "rope_scaling": llama3}, "t").max_context_tokens == 256


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert architecture_from_config({**TINY, "sliding_window": 256}, "t").attention[0].kind == "full"
    assert architecture_from_config({**TINY, "sliding_window": 64}, "t").attention[0].window_tokens == 64
    unused = {**TINY, "sliding_window": 64, "use_sliding_window": False}
    assert architecture_from_config(unused, "t").attention[0].kind == "full"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' of the model config is 0"),
        ({"vocab_size": "many"}, "'vocab_size' of the model config is 'many'"),
        ({"hidden_size": float("nan")}, "is nan"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide into 3 KV heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "'head_dim' is absent"),
        ({"num_local_experts": 4, "num_experts_per_tok": 5}, "5 experts a token of 4"),
        ({"layer_types": ["full_attention"]}, "'layer_types' lists 1 layers"),
        ({"model_type": "rwkv"}, "'rwkv' is not modelled: it is recurrent"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "it has an encoder and a decoder"),
        ({"num_hidden_layers": 10**9}, "at most 1,000"),
        ({"hidden_size": 1e308}, "'hidden_size' of the model config is 1e"),
        ({"layer_types": ["full_attention", "hyper_attention", "mamba"]}, "kind 'hyper_attention' are not modelled"),
        ({"block_configs": [{"ffn": {"ffn_mult": 2.0}}]}, r"unequal shape \(`block_configs`\)"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quantization method 'aqlm'"),
    ],
)
def test_bad_configs_are_answered(change: dict[str, Any], message: str) -> None:
    config = {k: v for k, v in {**TINY, **change}.items() if v is not None}
    with pytest.raises(InputError, match=message) as caught:
        architecture_from_config(config, "tiny", where="config.json")
    assert caught.value.where == "config.json"
    assert caught.value.mend


def test_missing_and_broken_files_are_answered(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_architecture("absent.json", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot read the model config"):
        load_architecture("config.json", tmp_path)
    with pytest.raises(InputError, match="the model is ''"):
        load_architecture("")


@pytest.mark.parametrize(
    ("model", "fmt", "gib"),
    [
        ("Llama-3.1-8B", "q4_k_m", 4.58),
        ("Llama-3.1-8B", "iq2_xxs", 2.23),
        ("Llama-3.1-8B", "q8_0", 7.95),
        ("Llama-2-7b-hf", "q4_0", 3.56),
        ("Llama-2-7b-hf", "q4_k_m", 3.80),
        ("Llama-3.1-70B", "q4_k_m", 39.59),
        ("Llama-3.2-1B", "q4_k_m", 0.745),  # one matrix is embedding and head
        ("gpt-oss-20b", "mxfp4_moe", 11.27),
    ],
)
def test_files_of_packed_weights_have_the_size_that_they_have(model: str, fmt: str, gib: float) -> None:
    """Sizes as llama.cpp prints them."""
    assert weight_bytes(load_architecture(model), format_named(fmt)) / 2**30 == pytest.approx(gib, rel=0.02)


def test_bits_of_packed_formats() -> None:
    assert format_named("EXL2_4.65").bits_per_weight == 4.65
    assert format_named("exl2-4.0bpw").name == "exl2_4"
    assert format_named("exl2_4.0") == format_named("exl2_4")
    assert format_named("mlx_4bit").bits_per_weight == 4.5
    assert format_of_part(load_architecture("Llama-3.1-8B"), format_named("q4_k_m"), "lm_head").name == "q6_k"
    for name in ("exl2_9.0", "exl2_0.5", "q7_k", "mlx_7bit"):
        with pytest.raises(InputError, match="unknown number format"):
            format_named(name)


def test_the_bytes_that_a_token_reads_are_those_of_each_parts_format() -> None:
    """gpt-oss as GGUF: experts in 4.25 bits, the rest in 8.5."""
    arch, mixed = load_architecture("openai/gpt-oss-20b"), format_named("mxfp4_moe")
    assert active_bytes(arch, format_named("bf16")) == 2 * active_parameters(arch)
    assert 4.25 / 8 < active_bytes(arch, mixed) / active_parameters(arch) < 0.9 * 8.5 / 8
