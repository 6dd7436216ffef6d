"""Families of models: what their configs say is read, or listed as not read, or refused by its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.model.architecture import (
    Architecture,
    active_parameters,
    architecture_from_config,
    kv_bytes_per_token,
    kv_groups,
    parameters,
    state_bytes_per_sequence,
    tower_parameters,
    weight_bytes,
    weight_bytes_per_rank,
)
from engine_models.model.catalogue import catalogue, model_names
from engine_models.model.config import HARMLESS_FILE
from engine_models.model.families import FAMILIES, REFUSED
from engine_models.model.formats import format_named
from hardware_profiles.errors import InputError
from tests.effort import examples

TRIALS = Path(__file__).resolve().parents[3] / "shared" / "data" / "trials"
needs_trials = pytest.mark.skipif(not TRIALS.is_dir(), reason="shared data is not here")
BF16 = format_named("bf16")

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
MAMBA2 = {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16, "conv_kernel": 4}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
INDEX = {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 64}


def read(**changes: Any) -> Architecture:
    """The small config with changes; a None takes a key away."""
    return architecture_from_config({k: v for k, v in {**TINY, **changes}.items() if v is not None}, "tiny")


def trial(name: str) -> Architecture:
    """A config of the trials."""
    return architecture_from_config(json.loads((TRIALS / f"{name}.json").read_text()), name)


# -- counted by the classes themselves -----------------------------------------------------------------------

EXACT = {
    "arcee",
    "apertus",
    "nanochat",
    "lfm2",
    "gemma4_text",
    "jetmoe",
    "ernie4_5_moe",
    "gpt_neo",
    "mpt",
    "kimi_linear",
}
EXACT |= {"inkling2_text", "mimo_v2_flash"}
"""Families whose counts must be there; the others may be refused or marked."""
COUNTED = {
    "apertus": 6_979_596_352,
    "arcee": 4_022_766_080,
    "inkling2_text": 593_718_478_848,
    "jetmoe": 4_293_888_000,
    "mimo_v2_flash": 308_778_768_832,
}
"""Parameters of classes that the file of counts lacks (transformers 5.24, built on the meta device, tables tied once)."""


@needs_trials
def test_parameters_are_those_of_the_classes_or_marked() -> None:
    given = json.loads((TRIALS / "transformers-counts.json").read_text())
    counts = COUNTED | {name: count for name, (count, _) in given.items() if count}
    judged = [
        path.stem
        for path in sorted(TRIALS.glob("tfcfg-*.json"))
        if path.stem.removeprefix("tfcfg-") in counts
    ]
    assert len(judged) >= len(EXACT)
    for stem in judged:
        name = stem.removeprefix("tfcfg-")
        try:
            arch = trial(stem)
        except InputError:
            assert name not in EXACT
            continue
        off = parameters(arch) / counts[name] - 1
        assert abs(off) < 0.01 or (arch.assumed and name not in EXACT), f"{name}: {off:+.1%}"


@needs_trials
@pytest.mark.parametrize(
    ("name", "total", "active", "kv_bytes"),
    [
        ("cfg-kimi-k3", 2.78e12, 104e9, 24 * 576 * 2),
        # window of all layers, entries of 4 tokens with keys of 132 bytes, entries of 128 tokens
        ("cfg-deepseek-v4-flash", 284e9, 13e9, 43 * 1024 + -(-21 * (1024 + 132) // 4) + 20 * 1024 // 128),
        ("cfg-gemma-4-26b-a4b", 25.2e9, 3.8e9, (25 * 2 * 8 * 256 + 5 * 2 * 2 * 512) * 2),
    ],
)
def test_public_configs_have_their_published_sizes(
    name: str, total: float, active: float, kv_bytes: int
) -> None:
    arch = trial(name)
    assert parameters(arch) == pytest.approx(total, rel=0.01)
    assert active_parameters(arch) == pytest.approx(active, rel=0.025)
    assert kv_bytes_per_token(arch, BF16) == kv_bytes


@needs_trials
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("tfcfg-kimi_linear", {"linear": 21, "mla": 6}),
        ("tfcfg-inkling2_text", {"sliding": 40, "full": 8}),
        ("tfcfg-mimo_v2_flash", {"full": 9, "sliding": 39}),
        ("tfcfg-longcat_flash", {"mla": 56}),
        ("tfcfg-gpt_neo", {"full": 12, "sliding": 12}),
    ],
)
def test_layers_are_of_the_kinds_that_the_config_says(name: str, kinds: dict[str, int]) -> None:
    found: dict[str, int] = {}
    for block in trial(name).attention:
        found[block.kind] = found.get(block.kind, 0) + block.layers
    assert found == kinds


@needs_trials
def test_windows_may_have_more_kv_heads() -> None:
    # of the class: 4 KV heads in 9 layers, 8 in the 39 with a window, keys of 192 and values of 128
    assert kv_bytes_per_token(trial("tfcfg-mimo_v2_flash"), BF16) == (9 * 4 + 39 * 8) * (192 + 128) * 2


@needs_trials
def test_what_cannot_be_counted_is_refused_by_its_reason_or_marked() -> None:
    with pytest.raises(InputError, match=r"unequal shape \(`block_configs`\)"):
        trial("cfg-nemotron-super-49b")
    assert "'doge' is not known" in " ".join(trial("tfcfg-doge").assumed)
    assert "256 of 768 experts have no weights" in " ".join(trial("tfcfg-longcat_flash").assumed)


@needs_trials
def test_experts_may_be_stored_apart() -> None:
    arch = trial("cfg-deepseek-v4-flash")
    assert arch.part_formats == (("experts", "mxfp4"),)
    assert weight_bytes(arch, format_named("fp8_block")) == pytest.approx(156e9, rel=0.01)


# -- laws that hold for every family -------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "nemotron": {"model_type": "nemotron"},
    "experts": {"model_type": "qwen3_moe", **MOE},
    "shared": {"model_type": "deepseek_v3", **MLA, **MOE, "n_shared_experts": 1},
    "indexed": {"model_type": "deepseek_v32", **MLA, **INDEX},
    "delta": {"model_type": "qwen3_next", "full_attention_interval": 2, **DELTA},
    "kimi": {
        "model_type": "kimi_linear",
        **MLA,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_heads": 4,
        "linear_head_dim": 16,
        "linear_conv_kernel_dim": 4,
    },
    "mamba": {"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"] * 2, **MAMBA2},
    "alone": {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "M*-E",
        **MAMBA2,
        **MOE,
        "moe_latent_size": 32,
    },
    "parallel": {"model_type": "falcon_h1", **MAMBA2},
    "conv": {"model_type": "lfm2", "full_attn_idxs": [1, 3], "conv_L_cache": 3},
    "compressed": {
        "model_type": "deepseek_v4",
        "head_dim": 16,
        **INDEX,
        "q_lora_rank": 16,
        "o_lora_rank": 16,
        "o_groups": 2,
        "sliding_window": 8,
        "compress_ratios": [0, 4, 128, 4],
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        **MOE,
    },
    "per-layer": {
        "model_type": "gemma4_text",
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 32,
    },
    "double": {"model_type": "longcat_flash", **MLA, **MOE, "zero_expert_num": 8},
}
PER_LAYER = ("layer_types", "compress_ratios")


def twice(changes: dict[str, Any]) -> dict[str, Any]:
    """The same with every layer repeated."""
    found = {**changes, "num_hidden_layers": 8}
    for key in PER_LAYER:
        if key in changes:
            found[key] = [word for word in changes[key] for _ in range(2)]
    if "hybrid_override_pattern" in changes:
        found["hybrid_override_pattern"] = "".join(word * 2 for word in changes["hybrid_override_pattern"])
    if "full_attn_idxs" in changes:
        found["full_attn_idxs"] = [2, 3, 6, 7]
    if "full_attention_interval" in changes:
        found["layer_types"] = [
            "linear_attention",
            "linear_attention",
            "full_attention",
            "full_attention",
        ] * 2
    if "num_kv_shared_layers" in changes:
        found["num_kv_shared_layers"] = 2 * changes["num_kv_shared_layers"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_layers_have_twice_their_parameters_cache_and_state(kind: str) -> None:
    one, two = read(**KINDS[kind]), read(**twice(KINDS[kind]))
    assert (one.layers, two.layers) == (4, 8)
    beside = 2 * 128 * 64 if not one.tied_embeddings else 128 * 64
    beside += 64 * (2 if one.norm_bias else 1) + sum(
        e.rows.on(1) * e.columns for e in one.extras if e.part == "norm"
    )
    of_layers = parameters(one) - beside
    assert of_layers > 0
    assert parameters(two) - beside == 2 * of_layers
    for number in (kv_bytes_per_token(one, BF16), state_bytes_per_sequence(one)):
        assert number >= 0
    assert kv_bytes_per_token(two, BF16) == pytest.approx(2 * kv_bytes_per_token(one, BF16), abs=2)
    assert state_bytes_per_sequence(two) == 2 * state_bytes_per_sequence(one)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_hold_between_half_and_all(kind: str) -> None:
    arch = read(**KINDS[kind])
    whole, half = weight_bytes_per_rank(arch, BF16), weight_bytes_per_rank(arch, BF16, 2)
    assert whole / 2 <= half < whole
    assert state_bytes_per_sequence(arch, 2) * 2 >= state_bytes_per_sequence(arch)


words = st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=3, max_size=20)


@settings(max_examples=examples(60))
@given(
    kind=st.sampled_from(sorted(KINDS)),
    key=words,
    value=st.integers(1, 4096) | st.booleans() | st.floats(0.5, 2),
)
def test_a_key_that_nobody_reads_is_listed(kind: str, key: str, value: float) -> None:
    named = f"quux_{key.strip('_')}_size"
    assert f"were not read: {named}" in " ".join(read(**KINDS[kind], **{named: value}).assumed)


@pytest.mark.parametrize(
    "key", ["expert_group_size", "kv_compression_ratio", "attention_sink_tokens", "residual_streams"]
)
def test_keys_that_sound_like_shapes_are_listed(key: str) -> None:
    assert key in " ".join(read(**{key: 4}).assumed)


def test_a_config_of_which_all_is_read_assumes_nothing() -> None:
    assert read().assumed == ()
    assert (
        read(use_cache=True, rope_theta=1e4, bos_token_id=1, attention_dropout=0.0, unknown=None).assumed
        == ()
    )
    for name in model_names():
        said = architecture_from_config(catalogue()[name], name).assumed
        assert not any("not read" in text or "not known" in text for text in said), (name, said)


def test_an_unknown_type_says_so() -> None:
    assert "'brandnew' is not known: read as Llama-like (gated MLP" in read(model_type="brandnew").assumed[0]
    assert "(plain MLP" in read(model_type="brandnew", hidden_act="relu2").assumed[0]
    assert "no `model_type` is given" in read(model_type=None).assumed[0]


def test_tables_of_families_do_not_contradict_each_other() -> None:
    assert not set(FAMILIES) & set(REFUSED)
    names = HARMLESS_FILE.read_text().split()
    assert names == sorted(set(names))


# -- parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"moe_k": 2}, {"num_experts_per_tok": 2}),
        ({"top_k_experts": 2}, {"num_experts_per_tok": 2}),
        ({"moe_topk": 2}, {"num_experts_per_tok": 2}),
    ],
)
def test_experts_a_token_have_several_spellings(changes: dict[str, Any], other: dict[str, Any]) -> None:
    experts = {"num_experts": 8, "moe_intermediate_size": 32}
    assert read(**experts, **changes) == read(**experts, **other)


def test_a_context_may_be_called_max_seq_len() -> None:
    assert read(max_position_embeddings=None, max_seq_len=77).max_context_tokens == 77


def test_layers_of_their_own_shape_are_read_one_by_one() -> None:
    arch = read(per_layer_config={"01": {"head_dim": 32}}, intermediate_size=[128, 64, 128, 64])
    assert sorted((b.head_dim, b.layers) for b in arch.attention) == [(16, 3), (32, 1)]
    assert sorted((b.intermediate, b.layers) for b in arch.mlp) == [(64, 2), (128, 2)]


def test_only_attention_keeps_kv() -> None:
    assert kv_bytes_per_token(read(**KINDS["mamba"]), BF16) == 2 * 2 * 2 * 16 * 2
    assert kv_bytes_per_token(read(**KINDS["alone"]), BF16) == 1 * 2 * 2 * 16 * 2
    assert kv_bytes_per_token(read(**KINDS["parallel"]), BF16) == 4 * 2 * 2 * 16 * 2
    assert (
        kv_bytes_per_token(read(**KINDS["per-layer"]), BF16) == 2 * 2 * 2 * 16 * 2
    )  # the last two layers read those
    assert kv_bytes_per_token(read(**KINDS["double"]), BF16) == 8 * (32 + 8) * 2


def test_states_do_not_grow_with_the_context() -> None:
    # a layer: 8 heads of 16 x 16 in 16 bit, and 3 past inputs of 8 * 16 + 2 * 2 * 16 channels
    layer = 2 * (8 * 16 * 16) + 2 * 3 * (8 * 16 + 2 * 2 * 16)
    assert state_bytes_per_sequence(read(**KINDS["mamba"])) == 2 * layer
    wide = read(**KINDS["mamba"], mamba_ssm_cache_dtype="float32")
    assert state_bytes_per_sequence(wide) == 2 * (layer + 2 * 8 * 16 * 16)
    assert state_bytes_per_sequence(read()) == 0


def test_an_indexer_keeps_a_key_a_token_in_its_own_format() -> None:
    indexed, plain = read(**KINDS["indexed"]), read(model_type="deepseek_v3", **MLA)
    # in 8 bit the rotary part of a latent stays in 16 bit, with scales: 80 bytes more
    for form, wide in (("bf16", 0), ("fp8", 80)):
        kv = format_named(form)
        assert kv_bytes_per_token(indexed, kv) - kv_bytes_per_token(plain, kv) == 4 * (16 + 4 + wide)


@needs_trials
def test_compressed_caches_are_in_8_bit_unless_told_otherwise() -> None:
    arch = trial("cfg-deepseek-v4-flash")
    assert arch.kv_format == "fp8"
    assert kv_bytes_per_token(arch, format_named("fp8")) == 43 * 584 + -(-21 * (584 + 132) // 4) + -(
        -20 * 584 // 128
    )
    assert read().kv_format == "bf16"


def test_compressed_entries_take_a_share_of_a_token() -> None:
    groups = {(g.kind, g.window_tokens): g for g in kv_groups(read(**KINDS["compressed"]), BF16)}
    assert groups["mla", 8].layers == 4
    assert groups["mla", 8].bytes_per_token_per_rank == 4 * 16 * 2
    assert (
        groups["mla", 0].bytes_per_token_per_rank == 2 * (16 * 2 + 20) // 4 + 1
    )  # 0.25 bytes of a layer of 128


def test_a_vision_tower_is_memory_beside_the_language_model() -> None:
    tower = {"hidden_size": 32, "depth": 2, "intermediate_size": 64, "num_heads": 4, "patch_size": 2}
    arch = read(vision_config=tower)
    assert parameters(arch) == parameters(read())
    assert tower_parameters(arch) == 2 * (4 * 32 * 32 + 2 * 32 * 64) + 3 * 2 * 2 * 32 + 32 * 64
    assert weight_bytes(arch, BF16) - weight_bytes(read(), BF16) == 2 * tower_parameters(arch)
    assert "vision tower" in arch.assumed[0]


def test_latent_experts_work_in_their_own_width() -> None:
    with_latent, without = read(**KINDS["alone"]), read(**{**KINDS["alone"], "moe_latent_size": None})
    experts = 8 * 2 * 32  # not gated: two matrices of width 32 an expert
    assert parameters(without) - parameters(with_latent) == experts * (64 - 32) - 2 * 64 * 32
