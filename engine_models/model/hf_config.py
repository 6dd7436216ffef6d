"""Reading a Hugging Face ``config.json`` into an `Architecture`.

A config names what differs between models of one family and leaves out what the family fixes (norms, biases,
gating); `FAMILIES` supplies the latter by ``model_type``, from each family's implementation in the
`transformers` library (v4.57, `models/<model_type>/`). A model type not listed is read as Llama-like: RMS
norms, gated MLP, rotary positions, and whatever its keys say.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine_models.model.blocks import Architecture, AttentionBlock, MlpBlock, QkNorm, parts_left_by_format
from engine_models.model.catalogue import find_model, model_names
from hardware_profiles.errors import InputError, nearest

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What a model type fixes, as far as the config's own keys do not say otherwise.

    position_offset : rows of the learned position table beyond the context.
    defaults : config keys the family may leave out.
    router_fp32 : engines compute the router in float32.
    """

    gated: bool = True
    norm_bias: bool = False
    norms_per_layer: int = 2
    final_norms: int = 1
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    qk_norm: QkNorm = "none"
    learned_positions: bool = False
    position_offset: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    router_fp32: bool = False


_LAYER_NORM = Family(gated=False, norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True)
_GEMMA3 = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
}
_PARALLEL_BLOCK = replace(_LAYER_NORM, norms_per_layer=1)

FAMILIES: dict[str, Family] = {
    "qwen": Family(qkv_bias=True),
    "qwen2": Family(qkv_bias=True),
    "qwen2_moe": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "qwen3_moe": Family(qk_norm="head"),
    "qwen3_next": Family(qk_norm="head"),
    "qwen3_5_text": Family(qk_norm="head"),
    "qwen3_5_moe_text": Family(qk_norm="head"),
    "qwen3_vl_text": Family(qk_norm="head"),
    "qwen3_vl_moe_text": Family(qk_norm="head"),
    "gemma": Family(tied=True, defaults={"head_dim": 256}),
    "gemma2": Family(tied=True, norms_per_layer=4, defaults={"head_dim": 256, "sliding_window_pattern": 2}),
    "gemma3": Family(tied=True, norms_per_layer=4, qk_norm="head", defaults=_GEMMA3),
    "gemma3_text": Family(tied=True, norms_per_layer=4, qk_norm="head", defaults=_GEMMA3),
    "gpt_oss": Family(qkv_bias=True, out_bias=True, mlp_bias=True, defaults={"sliding_window_pattern": 2}),
    "llama4_text": Family(defaults={"attention_chunk_size": 8192, "head_dim": 128}),
    "phimoe": Family(norm_bias=True),
    "chatglm": Family(qkv_bias=True),
    "glm4": Family(qkv_bias=True, norms_per_layer=4),
    "glm4_moe": Family(qkv_bias=True),
    "minimax_m2": Family(qk_norm="full", router_fp32=True),
    "olmo": Family(norms_per_layer=0, final_norms=0),
    "olmo2": Family(qk_norm="full"),
    "olmoe": Family(qk_norm="full"),
    "cohere": Family(norms_per_layer=1, tied=True),
    "starcoder2": replace(_LAYER_NORM, tied=True),
    "gpt2": replace(_LAYER_NORM, tied=True, learned_positions=True),
    "gpt_bigcode": replace(_LAYER_NORM, tied=True, learned_positions=True, defaults={"multi_query": True}),
    "opt": replace(_LAYER_NORM, tied=True, learned_positions=True, position_offset=2),
    "bloom": replace(_LAYER_NORM, tied=True, final_norms=2, defaults={"max_position_embeddings": 2048}),
    "falcon": Family(gated=False, norm_bias=True, tied=True, defaults={"max_position_embeddings": 2048}),
    "gpt_neox": _LAYER_NORM,
    "gptj": Family(gated=False, norm_bias=True, norms_per_layer=1, mlp_bias=True, lm_head_bias=True),
    "phi": replace(_PARALLEL_BLOCK, lm_head_bias=True),
    "stablelm": Family(norm_bias=True),
    "nemotron": Family(gated=False, norm_bias=True),
}

# Model types whose full-attention layers gate their output, in the query projection.
_GATED_OUTPUT = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")

# Model types that attend to tokens which an indexer chooses: cheaper on long contexts than what is modelled.
_SPARSE_ATTENTION = ("deepseek_v32", "glm_moe_dsa")

# Model types whose layers are none of the blocks here; read as transformers they would be counted wrongly.
_OTHER_KINDS = (
    "mamba",
    "jamba",
    "bamba",
    "zamba",
    "rwkv",
    "nemotron_h",
    "falcon_h1",
    "granitemoehybrid",
    "dbrx",
)

# Spellings of one quantity, the first being today's usual one.
_KEYS = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels", "attention_head_dim"),
    "intermediate": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "context": (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "model_max_length",
        "seq_length",
        "n_ctx",
    ),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "experts_per_token": ("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_topk"),
}


@dataclass(frozen=True)
class _Reader:
    """A config with the family's defaults behind it and the place errors should name."""

    config: Config
    defaults: Config
    where: str

    def raw(self, *keys: str) -> Any:
        for source in (self.config, self.defaults):
            for key in keys:
                if source.get(key) is not None:
                    return source[key]
        return None

    def _whole(self, value: Any, key: str, least: int) -> int:
        good = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
        if not good or value < least:
            raise InputError(
                f"'{key}' of the model config is {value!r}",
                where=self.where,
                mend=f"give '{key}' a whole number, at least {least}",
            )
        return int(value)

    def count(self, what: str, default: int | None = None) -> int:
        """The quantity `what` of `_KEYS`, at least 1."""
        keys = _KEYS[what]
        value = self.raw(*keys)
        if value is None and default is not None:
            return default
        if value is None:
            others = f" (also read: {', '.join(keys[1:])})" if len(keys) > 1 else ""
            raise InputError(
                f"the model config lacks '{keys[0]}'",
                where=self.where,
                mend=f"add '{keys[0]}'{others}, as in the model's Hugging Face config.json",
            )
        found = next(k for k in keys if self.config.get(k) is not None or self.defaults.get(k) is not None)
        return self._whole(value, found, 1)

    def number(self, key: str, default: int | None = None) -> int:
        """The key itself, at least 0."""
        value = self.raw(key)
        if value is None:
            if default is None:
                raise InputError(
                    f"the model config lacks '{key}'",
                    where=self.where,
                    mend=f"add '{key}', as in the model's Hugging Face config.json",
                )
            return default
        return self._whole(value, key, 0)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        return default if value is None else bool(value)


def _windows(read: _Reader, model_type: str, layers: int, context: int) -> list[tuple[str, int, bool]]:
    """For each layer: kind ("full", "sliding", "linear"), window in tokens, and whether it is chunked."""
    window = read.number("sliding_window", 0)
    chunk = read.number("attention_chunk_size", 0)
    types = read.raw("layer_types")
    if types is None and read.raw("attn_type_list") is not None:  # MiniMax-Text-01: 0 lightning, 1 softmax
        types = ["linear_attention" if t == 0 else "full_attention" for t in read.raw("attn_type_list")]
    if types is None and read.raw("full_attention_interval") is not None:
        every = read.number("full_attention_interval")
        types = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    if types is None and model_type == "llama4_text":
        no_rope = read.raw("no_rope_layers") or [int((i + 1) % 4 != 0) for i in range(layers)]
        types = ["chunked_attention" if rope else "full_attention" for rope in no_rope]
    if types is None and window and read.raw("sliding_window_pattern") is not None:
        pattern = read.number("sliding_window_pattern")
        types = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)]
    if types is None:
        if window and not read.flag("use_sliding_window", True):
            window = 0
        first = read.number("max_window_layers", 0) if read.raw("use_sliding_window") else 0
        types = ["sliding_attention" if window and i >= first else "full_attention" for i in range(layers)]
    if len(types) != layers:
        raise InputError(
            f"'layer_types' lists {len(types)} layers, the model has {layers}",
            where=read.where,
            mend="give one entry a layer",
        )
    found = []
    for kind in types:
        if kind == "linear_attention":
            found.append(("linear", 0, False))
        elif kind == "chunked_attention" and chunk < context:
            found.append(("sliding", chunk, True))
        elif kind == "sliding_attention" and 0 < window < context:
            found.append(("sliding", window, False))
        else:
            found.append(("full", 0, False))
    return found


def _attention_biases(read: _Reader, family: Family, model_type: str) -> tuple[bool, bool]:
    """Whether the QKV projection and the output projection have biases."""
    if model_type in ("qwen", "qwen2", "qwen2_moe"):
        return True, False
    if model_type in ("glm4", "glm4_moe"):
        return read.flag("attention_bias", True), False
    if model_type == "chatglm":
        return read.flag("add_qkv_bias", True), False
    if model_type == "stablelm":
        return read.flag("use_qkv_bias", False), False
    keys = {
        "starcoder2": "use_bias",
        "falcon": "bias",
        "internlm": "bias",
        "internlm2": "bias",
        "opt": "enable_bias",
    }
    key = keys.get(model_type, "attention_bias")
    return read.flag(key, family.qkv_bias), read.flag(key, family.out_bias)


def _attention(read: _Reader, family: Family, model_type: str, context: int) -> list[AttentionBlock]:
    """The attention of each layer, in order, with layers=1."""
    hidden, layers, heads = read.count("hidden"), read.count("layers"), read.count("heads")
    qkv_bias, out_bias = _attention_biases(read, family, model_type)
    if read.raw("kv_lora_rank") is not None:
        nope, rope = read.number("qk_nope_head_dim"), read.number("qk_rope_head_dim")
        block = AttentionBlock(
            kind="mla",
            layers=1,
            heads=heads,
            kv_heads=1,
            head_dim=nope + rope,
            v_head_dim=read.number("v_head_dim"),
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            q_lora_rank=read.number("q_lora_rank", 0),
            kv_lora_rank=read.number("kv_lora_rank"),
            qk_nope_head_dim=nope,
            qk_rope_head_dim=rope,
        )
        return [block] * layers
    multi_query = read.flag("multi_query", False)
    if model_type == "falcon" and read.flag("new_decoder_architecture", False):
        multi_query = False  # Falcon-40B and later count KV heads; the flag is left over
    kv_heads = 1 if multi_query else read.count("kv_heads", heads)
    if read.raw(*_KEYS["head_dim"]) is None and hidden % heads:
        raise InputError(
            f"hidden size {hidden} is no multiple of {heads} heads and 'head_dim' is absent",
            where=read.where,
            mend="add 'head_dim'",
        )
    head_dim = read.count("head_dim", hidden // heads)
    if heads % kv_heads:
        raise InputError(
            f"{heads} attention heads do not divide into {kv_heads} KV heads",
            where=read.where,
            mend="make num_attention_heads a multiple of num_key_value_heads",
        )
    qk_norm: QkNorm = family.qk_norm
    if model_type == "glm4_moe":
        qk_norm = "head" if read.flag("use_qk_norm", False) else "none"
    elif read.raw("use_qk_norm") is False:
        qk_norm = "none"
    plain = AttentionBlock(
        kind="full",
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        qk_norm=qk_norm,
        sinks=model_type == "gpt_oss",
        output_gate=model_type in _GATED_OUTPUT,
    )
    found = []
    for kind, window, chunked in _windows(read, model_type, layers, context):
        if kind == "linear":
            found.append(_linear_attention(read, heads, head_dim))
        elif kind == "sliding":
            found.append(replace(plain, kind="sliding", window_tokens=window, chunked=chunked))
        else:
            found.append(plain)
    return found


def _linear_attention(read: _Reader, heads: int, head_dim: int) -> AttentionBlock:
    if read.raw("linear_num_value_heads") is None:  # lightning attention: as many key heads, no convolution
        return AttentionBlock("linear", 1, heads, heads, head_dim, head_dim)
    return AttentionBlock(
        kind="linear",
        layers=1,
        heads=read.number("linear_num_value_heads"),
        kv_heads=read.number("linear_num_key_heads"),
        head_dim=read.number("linear_key_head_dim"),
        v_head_dim=read.number("linear_value_head_dim"),
        conv_kernel=read.number("linear_conv_kernel_dim"),
    )


def _moe_layers(read: _Reader, model_type: str, layers: int) -> list[bool]:
    """Which layers are mixtures of experts."""
    if model_type == "llama4_text":
        listed = read.raw("moe_layers")
        if listed is None:
            step = max(1, read.number("interleave_moe_layer_step", 1))
            listed = range(step - 1, layers, step)
        return [i in set(listed) for i in range(layers)]
    first = read.number("first_k_dense_replace", 0)
    every = (
        max(1, read.number("moe_layer_freq", 1)) if not isinstance(read.raw("moe_layer_freq"), list) else 1
    )
    step = max(1, read.number("decoder_sparse_step", 1))
    dense = set(read.raw("mlp_only_layers") or ())
    pattern = read.raw("moe_layer_freq")
    return [
        bool(pattern[i])
        if isinstance(pattern, list)
        else i >= first and i % every == 0 and (i + 1) % step == 0 and i not in dense
        for i in range(layers)
    ]


def _mlps(read: _Reader, family: Family, model_type: str) -> list[MlpBlock]:
    """The MLP of each layer, in order, with layers=1."""
    hidden, layers = read.count("hidden"), read.count("layers")
    bias_key = {"starcoder2": "use_bias", "falcon": "bias", "opt": "enable_bias"}.get(model_type, "mlp_bias")
    bias = read.flag(bias_key, family.mlp_bias)
    widening = 4 * hidden if model_type in ("gpt2", "gptj", "gpt_bigcode", "bloom", "falcon") else None
    gated = family.gated
    experts = read.count("experts", 1) if read.raw(*_KEYS["experts"]) else 1
    if experts == 1:
        width = read.count("intermediate", widening)
        if model_type == "qwen":  # the first Qwen generation states the width of both input projections
            width //= 2
        return [MlpBlock("dense", 1, width, gated, bias=bias)] * layers
    topk = read.count("experts_per_token")
    if topk > experts:
        raise InputError(
            f"{topk} experts a token of {experts} experts",
            where=read.where,
            mend="num_experts_per_tok may not exceed the number of experts",
        )
    width = read.number("moe_intermediate_size", 0) or read.count("intermediate")
    shared = 0
    if read.raw("n_shared_experts", "num_shared_experts") is not None:
        shared = width * int(read.raw("n_shared_experts", "num_shared_experts"))
    elif read.raw("shared_expert_intermediate_size", "shared_intermediate_size") is not None:
        shared = int(read.raw("shared_expert_intermediate_size", "shared_intermediate_size"))
    elif model_type == "llama4_text":
        shared = width
    score_bias = model_type in ("deepseek_v3", "kimi_k2", "glm4_moe", "glm4_moe_lite") or read.flag("use_routing_bias", False)
    moe = MlpBlock(
        kind="moe",
        layers=1,
        intermediate=0,
        gated=gated,
        experts=experts,
        experts_per_token=topk,
        expert_intermediate=width,
        shared_intermediate=shared,
        shared_gate=model_type in ("qwen2_moe", *_GATED_OUTPUT),
        bias=bias,
        router_bias=score_bias or model_type == "gpt_oss",
        router_fp32=family.router_fp32,
    )
    is_moe = _moe_layers(read, model_type, layers)
    if all(is_moe):
        return [moe] * layers
    dense_width = read.number("intermediate_size_mlp", 0) or read.count("intermediate")
    dense = MlpBlock("dense", 1, dense_width, gated, bias=bias)
    return [moe if m else dense for m in is_moe]


def _grouped(
    attention: list[AttentionBlock], mlp: list[MlpBlock]
) -> tuple[tuple[AttentionBlock, ...], tuple[MlpBlock, ...], tuple[tuple[int, int], ...]]:
    """Merge equal blocks, in order of first appearance, and say which layer has which."""
    attention_kinds, mlp_kinds = list(dict.fromkeys(attention)), list(dict.fromkeys(mlp))
    attention_index = {b: i for i, b in enumerate(attention_kinds)}
    mlp_index = {b: i for i, b in enumerate(mlp_kinds)}
    layout = tuple((attention_index[a], mlp_index[m]) for a, m in zip(attention, mlp, strict=True))
    return (
        tuple(replace(b, layers=attention.count(b)) for b in attention_kinds),
        tuple(replace(b, layers=mlp.count(b)) for b in mlp_kinds),
        layout,
    )


def _context(read: _Reader, model_type: str) -> int:
    """Tokens of context: the position count, stretched as vLLM does (YaRN from its original length)."""
    context = read.count("context")
    scaling = read.raw("rope_scaling", "rope_parameters")
    if not isinstance(scaling, Mapping):
        return context
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    if (
        factor is None
        or kind in (None, "default", "su", "longrope", "llama3", "mrope")
        or "gemma3" in model_type
    ):
        return context
    if kind == "yarn":
        context = int(scaling.get("original_max_position_embeddings", context))
    return int(context * factor)


def _group_bits(bits: int, group: Any, zero_bits: int) -> float:
    """Bits a weight with one 16-bit scale and `zero_bits` of zero point each `group` weights (<=0: none)."""
    if not isinstance(group, int) or group <= 0:
        return float(bits)
    return bits + (16 + zero_bits) / group


def _compressed_tensors(weights: Config, weight_only: bool) -> tuple[str, float] | None:
    """Format and bits of the weights entry of a compressed-tensors or modelopt config group, without activations or with."""
    bits, kind, group = weights.get("num_bits"), weights.get("type", "float"), weights.get("group_size")
    if kind == "float" and bits == 8:
        return ("fp8_block" if weights.get("strategy") == "block" else "fp8"), 0.0
    if kind == "float" and bits == 4:
        return ("mxfp4" if group == 32 else "nvfp4"), 0.0
    if kind == "int" and bits == 8:
        return ("int8_wo", _group_bits(8, group, 0)) if weight_only else ("int8", 0.0)
    if kind == "int" and bits == 4:
        return "int4", _group_bits(4, group, 0 if weights.get("symmetric", True) else 4)
    return None


def _stored_format(quantization: Config) -> tuple[str, float] | None:
    """Format name and bits (0: the format's own) of a ``quantization_config``; None if not recognised."""
    method = str(quantization.get("quant_method", "")).lower()
    algorithm = str(quantization.get("quant_algo", "")).upper()
    bits = quantization.get("bits", quantization.get("w_bit"))
    group = quantization.get("group_size", quantization.get("q_group_size"))
    if algorithm in ("FP8", "NVFP4"):
        return algorithm.lower(), 0.0
    if algorithm == "FP8_PB_WO":
        return "fp8_block", 0.0
    if method == "fp8":
        return ("fp8_block" if quantization.get("weight_block_size") else "fp8"), 0.0
    if method in ("fbgemm_fp8", "ptpc_fp8"):
        return "fp8", 0.0
    if method == "mxfp4":
        return "mxfp4", 0.0
    if method in ("awq", "gptq", "auto-round", "auto_round"):
        if bits == 8:
            return "int8_wo", _group_bits(8, group, 8)
        if bits in (None, 4):
            return ("awq" if method == "awq" else "gptq"), _group_bits(4, group or 128, 4)
        return None
    if method == "bitsandbytes":
        return ("int8" if quantization.get("load_in_8bit") else "int4"), 0.0
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        group = next(iter(groups.values()))
        weights = group.get("weights")
        weight_only = group.get("input_activations") is None
        return _compressed_tensors(weights, weight_only) if isinstance(weights, Mapping) else None
    return None


def _matches(module: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if "*" in pattern:
        return fnmatch.fnmatchcase(module, pattern) or fnmatch.fnmatchcase(module, pattern + ".*")
    return f".{pattern}." in f".{module}."


def _unquantized(quantization: Config, mlp: list[MlpBlock]) -> tuple[str, ...]:
    """The parts whose main matrices the checkpoint leaves alone, probed by their usual module names."""
    ignored: list[str] = []
    for key in ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers"):
        value = quantization.get(key)
        ignored += [str(v) for v in value] if isinstance(value, list) else []
    dense = [i for i, b in enumerate(mlp) if b.kind == "dense"] or [0]
    middle = len(mlp) // 2
    moe = next((i for i in range(middle, len(mlp)) if mlp[i].kind == "moe"), middle)
    probes = {
        "attention": (f"layers.{middle}.self_attn.o_proj",),
        "linear_attention": (f"layers.{middle}.linear_attn.out_proj",),
        "mlp": (f"layers.{dense[len(dense) // 2]}.mlp.down_proj",),
        "experts": (f"layers.{moe}.mlp.experts.0.down_proj", f"layers.{moe}.block_sparse_moe.experts.0.w2"),
        "shared_expert": (
            f"layers.{moe}.mlp.shared_experts.down_proj",
            f"layers.{moe}.mlp.shared_expert.down_proj",
            f"layers.{moe}.feed_forward.shared_expert.down_proj",
        ),
    }
    prefixes = ("model.", "language_model.model.", "model.language_model.")
    return tuple(
        part
        for part, names in probes.items()
        if any(
            _matches(prefix + name, pattern) for name in names for prefix in prefixes for pattern in ignored
        )
    )


def _quantization(
    config: Config, mlp: list[MlpBlock], where: str
) -> tuple[str | None, float, tuple[str, ...]]:
    """Format name, bits and unquantized parts the checkpoint declares."""
    quantization = config.get("quantization_config")
    if quantization is None and isinstance(config.get("text_config"), Mapping):
        quantization = config["text_config"].get("quantization_config")
    if not isinstance(quantization, Mapping) or not quantization:
        return None, 0.0, ()
    stored = _stored_format(quantization)
    if stored is None:
        raise InputError(
            f"quantization method '{quantization.get('quant_method')}' of the model config is not known",
            where=where,
            mend="name the format with 'weights' in the deployment and drop 'quantization_config'",
        )
    return stored[0], stored[1], _unquantized(quantization, mlp)


def _dtype(config: Config) -> str:
    """bf16 or fp16; fp32 checkpoints are served in bf16."""
    name = config.get("torch_dtype") or config.get("dtype") or "bfloat16"
    return "fp16" if str(name).removeprefix("torch.") in ("float16", "half", "fp16") else "bf16"


def architecture_from_config(config: dict[str, Any], name: str, *, where: str | None = None) -> Architecture:
    """Read a Hugging Face config (or the same keys written inline) into an `Architecture`.

    config : the parsed ``config.json``; of a multimodal model the ``text_config`` is read.
    name : what the model is called in messages and results.
    where : the file, or the place in the scenario, that errors name (default: the model's name).

    Raises InputError naming the key, the place and the mend.
    """
    place = where or f"model {name}"
    text = config.get("text_config", config.get("llm_config"))
    inner: dict[str, Any] = {**config, **text} if isinstance(text, Mapping) else config
    model_type = str(inner.get("model_type") or "")
    if model_type.startswith(_OTHER_KINDS) or inner.get("is_encoder_decoder"):
        raise InputError(
            f"model type '{model_type}' is not a decoder-only transformer",
            where=place,
            mend="use a model of attention and MLP (or expert) layers",
        )
    if model_type in _SPARSE_ATTENTION:
        raise InputError(
            f"model type '{model_type}': its sparse attention is not modelled",
            where=place,
            mend="use a model of full or windowed attention, such as DeepSeek-V3.1",
        )
    family = FAMILIES.get(model_type, Family())
    read = _Reader(inner, family.defaults, place)
    context = _context(read, model_type)
    attention = _attention(read, family, model_type, context)
    mlp = _mlps(read, family, model_type)
    attention_blocks, mlp_blocks, layout = _grouped(attention, mlp)
    norms = family.norms_per_layer
    if model_type == "falcon":
        single = read.flag("parallel_attn", True) and not read.flag("new_decoder_architecture", False)
        norms = 1 if single or read.raw("num_ln_in_parallel_attn") == 1 else 2
    tied = read.raw("tie_word_embeddings")
    quantization, bits, unquantized = _quantization(config, mlp, place)
    return Architecture(
        name=name,
        hidden=read.count("hidden"),
        layers=read.count("layers"),
        vocab=read.count("vocab"),
        tied_embeddings=family.tied if tied is None else bool(tied),
        attention=attention_blocks,
        mlp=mlp_blocks,
        layout=layout,
        max_context_tokens=context,
        dtype=_dtype(inner),
        quantization=quantization,
        quantization_bits=bits,
        unquantized=unquantized,
        norms_per_layer=norms,
        norm_bias=family.norm_bias,
        final_norms=family.final_norms,
        positions=context + family.position_offset if family.learned_positions else 0,
        lm_head_bias=read.flag("lm_head_bias", family.lm_head_bias),
        model_type=model_type,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"cannot read the model config: {error}",
            where=str(path),
            mend="give the path of a Hugging Face config.json",
        ) from error
    if not isinstance(found, dict):
        raise InputError("the model config is not a JSON object", where=str(path), mend="give a config.json")
    return found


def _from_file(path: Path) -> Architecture:
    if path.is_dir():
        path = path / "config.json"
    config = _read_json(path)
    beside = path.with_name("hf_quant_config.json")  # NVIDIA ModelOpt checkpoints state the format there
    if "quantization_config" not in config and beside.is_file():
        stated = _read_json(beside).get("quantization")
        if isinstance(stated, dict):
            config["quantization_config"] = {"quant_method": "modelopt", **stated}
    name = str(config.get("_name_or_path") or path.resolve().parent.name)
    return architecture_from_config(config, name, where=str(path))


def load_architecture(spec: str | dict[str, Any], base_dir: Path | None = None) -> Architecture:
    """Return the architecture a scenario's ``model`` names.

    spec : a catalogue name (case, organisation and suffixes such as -Instruct or -FP8 forgiven), the path of
        a ``config.json`` or of its folder (relative to base_dir), or a dict of the same keys (and ``name``).

    A suffix that names a number format sets `Architecture.quantization`. Raises InputError with the nearest
    catalogue name.

    >>> load_architecture("llama-3.1-8b-instruct").layers
    32
    """
    if isinstance(spec, dict):
        return architecture_from_config(spec, str(spec.get("name", "inline model")), where="model")
    if not isinstance(spec, str) or not spec.strip():
        raise InputError(
            f"the model is {spec!r}", where="model", mend="give a catalogue name, a config.json or its fields"
        )
    path = Path(spec) if base_dir is None else base_dir / spec
    if spec.endswith(".json") or path.is_dir():
        if not path.exists():
            raise InputError(f"no such file: {path}", where="model", mend="correct the path of config.json")
        return _from_file(path)
    found = find_model(spec)
    if found is None:
        near = nearest(spec.split("/")[-1], [n.split("/")[-1] for n in model_names()])
        hint = f"did you mean '{near}'? " if near else ""
        raise InputError(
            f"model '{spec}' is not in the catalogue",
            where="model",
            mend=f"{hint}'capacity-plan list models' names them; or give a config.json or its fields inline",
        )
    arch = architecture_from_config(found.config, spec, where=f"catalogue entry {found.key}")
    if found.quantization is None or found.quantization == arch.quantization:
        return arch
    if found.quantization == "fp8" and arch.quantization == "fp8_block":  # the name says what the checkpoint is
        return arch
    stored = None if found.quantization in ("bf16", "fp16") else found.quantization
    left = tuple(sorted(parts_left_by_format(stored, arch))) if stored else ()
    return replace(arch, quantization=stored, quantization_bits=0.0, unquantized=left)
