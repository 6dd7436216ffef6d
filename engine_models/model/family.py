"""How the layers of a family are read: what a model type fixes (`Family`), the readers of its attention, recurrences and MLPs.

The readers ask a `ConfigReader` for quantities and build blocks of :mod:`engine_models.model.mixers`. Families whose layers have
parts of their own change a layer as read (`Family.adjust`); which family has what stands in :mod:`engine_models.model.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Any, Literal

from engine_models.model import mixers
from engine_models.model.blocks import (
    AttentionBlock,
    Extra,
    Linear,
    MlpBlock,
    QkNorm,
    Vector,
    Width,
    replicated,
)
from engine_models.model.config import ConfigReader
from engine_models.model.mixers import Gate
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

Mixers = tuple[AttentionBlock, ...]
Mlps = tuple[MlpBlock, ...]


@dataclass(frozen=True)
class Family:
    """What a model type fixes, as far as the config's own keys do not say otherwise.

    qkv_bias_key, out_bias_key, mlp_bias_key, qk_norm_key : the keys that decide, None where the family does.
    widening : an absent `intermediate_size` is so many times the hidden size.
    position_offset : rows of the learned position table beyond the context.
    sinks : a learned sink a head, in all layers or in those with a window.
    defaults : config keys the family may leave out.
    nested : keys whose mappings hold more of the shape. of_text : keys whose lists give the language model's number first.
    router_fp32 : engines compute the router in float32.
    window_kv_factor : layers with a window have so many times the KV heads, where no key of their own says otherwise.
    rounds_heads : an absent `head_dim` is hidden size over heads, rounded down.
    mlps : layers have MLPs (a recurrent family may have none).
    ignored : keys of its configs that its implementation has no use for.
    stated_widths : projections whose widths `intermediate_size` adds up.
    shared_like_expert : one shared expert of an expert's width where no key says so.
    chunked : attention in chunks but for every fourth layer.
    recurrence : the mixer of its "linear" layers.  compressed : that of its "compressed" ones.
    beside : mixer that every attention layer has at its side.
    adjust : changes to a layer as read (extra matrices, shared caches).
    extras : tables beside the layers.
    """

    gated: bool = True
    norm_bias: bool = False
    norms_per_layer: int = 2
    final_norms: int = 1
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qkv_bias_key: str | None = "attention_bias"
    out_bias_key: str | None = "attention_bias"
    mlp_bias: bool = False
    mlp_bias_key: str | None = "mlp_bias"
    lm_head_bias: bool = False
    qk_norm: QkNorm = "none"
    qk_norm_key: str = "use_qk_norm"
    qk_norm_bias: bool = False
    gate: Gate = "none"
    sinks: Literal["none", "all", "windows"] = "none"
    learned_positions: bool = False
    position_offset: int = 0
    widening: int = 0
    stated_widths: int = 1
    window_kv_factor: int = 1
    rounds_heads: bool = False
    mlps: bool = True
    ignored: tuple[str, ...] = ()
    router_bias: bool = False
    shared_gate: bool = False
    shared_like_expert: bool = False
    chunked: bool = False
    router_fp32: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    nested: tuple[str, ...] = ()
    of_text: tuple[str, ...] = ()
    recurrence: Callable[[ConfigReader], AttentionBlock] | None = None
    beside: Callable[[ConfigReader], AttentionBlock] | None = None
    adjust: Callable[[ConfigReader, Family, Mixers, Mlps], tuple[Mixers, Mlps]] | None = None
    extras: Callable[[ConfigReader], tuple[Extra, ...]] | None = None


# -- attention ----------------------------------------------------------------------------------------------


def attention(read: ConfigReader, family: Family, kind: str, context: int) -> Mixers:
    """The attention of one layer that is "full", "sliding", "chunked" or "compressed"."""
    if kind == "compressed":
        return _compressed(read)
    hidden, heads = read.count("hidden"), read.count("heads", prefix="swa_" if kind == "sliding" else "")
    window = (
        read.number("window", 0)
        if kind == "sliding"
        else read.number("attention_chunk_size", 0)
        if kind == "chunked"
        else 0
    )
    window = window if window < context else 0
    qkv_bias = _bias(read, family.qkv_bias_key, family.qkv_bias)
    out_bias = _bias(read, family.out_bias_key, family.out_bias)
    if read.raw("kv_lora_rank") is not None:
        read.aside("head_dim", "kv_heads")
        q_rank = read.number("q_lora_rank", 0)
        block = mixers.latent_attention(
            hidden,
            heads,
            read.number("qk_nope_head_dim"),
            read.number("qk_rope_head_dim"),
            read.whole(read.number("v_head_dim"), "v_head_dim", 1),
            read.whole(read.number("kv_lora_rank"), "kv_lora_rank", 1),
            q_rank,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            gate=_gate(read, family),
            window_tokens=window,
        )
        return (_indexed(read, block, hidden, q_rank or hidden),)
    return (
        _indexed(
            read, _softmax(read, family, kind, hidden, heads, window, qkv_bias, out_bias), hidden, hidden
        ),
    )


def _softmax(
    read: ConfigReader,
    family: Family,
    kind: str,
    hidden: int,
    heads: int,
    window: int,
    qkv_bias: bool,
    out_bias: bool,
) -> AttentionBlock:
    prefix = "swa_" if kind == "sliding" else "global_"
    other = read.raw("attention_other_setting")  # Step-3.5: heads of its layers with a window
    if kind == "sliding":
        listed = other if isinstance(other, Mapping) else {}
        heads = read.whole(
            listed.get("num_attention_heads") or read.number("num_sliding_attention_heads", heads), "heads", 1
        )
    multi_query = read.flag("multi_query", False) and not read.flag("new_decoder_architecture", False)
    read.aside("kv_heads")
    kv_heads = 1 if multi_query else read.count("kv_heads", heads, prefix)
    if kind == "sliding" and read.raw("swa_num_key_value_heads") is None:
        kv_heads *= family.window_kv_factor
    if kind == "full":
        kv_heads = read.number("num_global_key_value_heads", kv_heads)
    stated = read.raw(prefix + "head_dim") is not None or read.given("head_dim")
    if not stated and hidden % heads and not family.rounds_heads:
        raise InputError(
            f"hidden size {hidden} is no multiple of {heads} heads and 'head_dim' is absent",
            where=read.where,
            mend="add 'head_dim'",
        )
    head_dim = read.count("head_dim", hidden // heads, prefix)
    v_head_dim = read.raw("swa_v_head_dim" if kind == "sliding" else "v_head_dim", "v_head_dim")
    if heads % kv_heads:
        raise InputError(
            f"{heads} attention heads do not divide into {kv_heads} KV heads",
            where=read.where,
            mend="make num_attention_heads a multiple of num_key_value_heads",
        )
    asked = read.raw(family.qk_norm_key)
    return mixers.softmax_attention(
        hidden,
        heads,
        kv_heads,
        head_dim,
        head_dim if v_head_dim is None else read.whole(v_head_dim, "v_head_dim", 1),
        window_tokens=window,
        chunked=kind == "chunked" and window > 0,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        qk_norm="none" if asked is False else family.qk_norm,
        norm_bias=family.qk_norm_bias,
        sinks=read.flag(
            SINK_KEYS[kind == "sliding"], family.sinks in ("all", "windows" if kind == "sliding" else "all")
        ),
        gate=_gate(read, family),
        one_projection=kind == "full" and read.flag("attention_k_eq_v", False),
    )


SINK_KEYS = ("add_full_attention_sink_bias", "add_swa_attention_sink_bias")


def _bias(read: ConfigReader, key: str | None, default: bool) -> bool:
    return default if key is None else read.flag(key, default)


_GATE_KEYS = (
    *("attn_output_gate", "attention_output_gate", "use_attention_gate", "mla_use_output_gate"),
    *("use_head_wise_attn_gate", "gating"),
)


def _gate(read: ConfigReader, family: Family) -> Gate:
    """The output gate; a key may switch it off, or on where the family has none (then of each channel)."""
    asked = read.raw(*_GATE_KEYS)
    if asked is None:
        return family.gate
    if not asked:
        return "none"
    if asked == "per-element":  # Laguna's `gating`, else per head
        return "channels"
    return family.gate if family.gate != "none" else "channels"


def _indexed(read: ConfigReader, block: AttentionBlock, hidden: int, query_inputs: int) -> AttentionBlock:
    """`block` with its indexer, where the config has one for this layer."""
    sparse = read.raw("sparse_attention_config")  # MiniMax-M3: blocks of tokens, chosen in the layers listed
    if isinstance(sparse, Mapping) and sparse.get("use_sparse_attention", True):
        layers = sparse.get("sparse_attention_freq")
        if isinstance(layers, list) and not read.of_layer(lambda layer: layers[layer], True):
            return block
        topk = int(sparse["sparse_topk_blocks"]) * int(sparse["sparse_block_size"])
        return mixers.with_indexer(
            block,
            hidden,
            hidden,
            int(sparse["sparse_num_index_heads"]),
            int(sparse["sparse_index_dim"]),
            topk,
        )
    if sparse is None:
        read.aside("index_topk", "index_n_heads", "indexer_types", "index_block_size", "index_topk_blocks")
        read.aside("index_topk_freq", "index_skip_topk_offset")  # the rule by which `indexer_types` was made
    kinds = read.config.get("layer_types")
    word = None
    if isinstance(kinds, list):
        word = read.of_layer(lambda layer: kinds[layer] if layer < len(kinds) else None, None)
    dimension = read.raw("index_head_dim", "indexer_head_dim")
    if dimension is None or word in ("sliding_attention", "full_attention"):
        return block
    return mixers.with_indexer(
        block,
        hidden,
        query_inputs,
        read.whole(read.raw("index_n_heads", "indexer_n_heads"), "index_n_heads", 1),
        read.whole(dimension, "index_head_dim", 1),
        read.number("index_topk"),
        owned=read.raw("indexer_types") != "shared",
    )


def _compressed(read: ConfigReader) -> Mixers:
    """DeepSeek-V4: its own list of ratios, or the words of `layer_types` with their rates."""
    ratio = read.raw("compress_ratios")
    if ratio is None:
        rates, word = read.raw("compress_rates"), read.raw("layer_types")
        ratio = rates.get(word) if isinstance(rates, Mapping) else None
    ratio = read.whole(ratio, "compress_ratios", 0)
    read.aside("kv_heads", "qk_rope_head_dim", "attention_bias", "compress_rates")
    chosen = (read.number("index_n_heads"), read.number("index_head_dim"), read.number("index_topk"))
    return mixers.compressed_attention(
        read.count("hidden"),
        read.count("heads"),
        read.count("head_dim"),
        read.number("q_lora_rank"),
        read.number("o_lora_rank"),
        read.number("o_groups"),
        read.number("window"),
        ratio,
        chosen if 0 < ratio <= SPARSE_RATIO else None,
    )


SPARSE_RATIO = 4
"""Layers of DeepSeek-V4 that compress by so much choose entries by an indexer, those that compress more attend to all. Kind:
datasheet (`layer_types` of transformers 5.24, `compressed_sparse_attention` and `heavily_compressed_attention`)."""


# -- recurrences --------------------------------------------------------------------------------------------


def _state_bytes(read: ConfigReader) -> int:
    """Bytes of a value of recurrent state: 4 where the config asks for float32, else the model's own 16 bit."""
    wanted = read.raw("mamba_ssm_cache_dtype", "mamba_ssm_dtype", "inference_state_dtype")
    return 4 if str(wanted).removeprefix("torch.") == "float32" else 2


def linear_layer(read: ConfigReader) -> AttentionBlock:
    """The recurrence that the keys name: Mamba-2, gated delta net, or lightning attention."""
    hidden = read.count("hidden")
    if read.given("state_heads") or (read.given("state") and read.raw("num_heads") is not None):
        return mamba2_layer(read)
    if read.raw("linear_num_value_heads") is not None:
        return mixers.gated_delta(
            hidden,
            read.number("linear_num_key_heads"),
            read.number("linear_num_value_heads"),
            read.number("linear_key_head_dim"),
            read.number("linear_value_head_dim"),
            read.number("linear_conv_kernel_dim"),
            _state_bytes(read),
        )
    heads = read.count("heads")
    return mixers.lightning(hidden, heads, read.count("head_dim", hidden // heads), _state_bytes(read))


def mamba2_layer(read: ConfigReader) -> AttentionBlock:
    """Mamba-2 by the keys of Nemotron-H, Granite 4, Bamba and Falcon-H1."""
    read.aside(
        "mamba_expand", "expand", "mamba_d_ssm", "time_step_rank"
    )  # heads times their width say the same
    return mixers.mamba2(
        read.count("hidden"),
        read.count("state_heads") if read.given("state_heads") else read.number("num_heads"),
        read.count("state_head_dim") if read.given("state_head_dim") else read.number("head_dim"),
        read.number("state_groups", 1),
        read.number("state"),
        read.number("conv", 4),
        _state_bytes(read),
        conv_bias=read.flag("use_conv_bias", read.flag("mamba_conv_bias", True)),
        proj_bias=read.flag("mamba_proj_bias", False)
        or read.flag("projectors_bias", False)
        or read.flag("use_bias", False),
        norm=read.flag("mamba_rms_norm", True),
    )


def mamba1_layer(read: ConfigReader) -> AttentionBlock:
    """Mamba by the keys of Jamba and Falcon-Mamba."""
    hidden = read.count("hidden")
    rank = read.raw("mamba_dt_rank", "time_step_rank")
    jamba = read.raw("mamba_d_state") is not None
    widened = read.number("mamba_expand", read.number("expand", 2)) * hidden
    return mixers.mamba1(
        hidden,
        widened if jamba else read.number("intermediate_size", widened),
        read.number("state"),
        read.whole(rank, "mamba_dt_rank", 1) if isinstance(rank, int) else -(-hidden // 16),
        read.number("conv", 4),
        _state_bytes(read),
        conv_bias=read.flag("mamba_conv_bias", read.flag("use_conv_bias", True)),
        proj_bias=read.flag("mamba_proj_bias", read.flag("use_bias", False)),
        norms=jamba,
    )


def kimi_delta_layer(read: ConfigReader) -> AttentionBlock:
    """Kimi delta attention by the keys of Kimi Linear (`linear_attn_config`, or flat) and of Ling 3 (of full rank)."""
    given = read.raw("linear_attn_config")
    nested: Mapping[str, Any] = given if isinstance(given, Mapping) else {}

    def number(name: str, *flat: str) -> int:
        value = nested.get(name)
        return read.whole(read.raw(*flat) if value is None else value, name, 1)

    full_rank = read.raw("layer_group_size") is not None
    return mixers.kimi_delta(
        read.count("hidden"),
        number("num_heads", "linear_num_heads", *("num_attention_heads",)),
        number("head_dim", "linear_head_dim", "head_dim"),
        number("short_conv_kernel_size", "linear_conv_kernel_dim", "short_conv_kernel_size"),
        low_rank_decay=not full_rank,
        low_rank_gate=not (full_rank or nested.get("use_full_rank_gate", False)),
    )


def ling_layer(read: ConfigReader) -> AttentionBlock:
    """Ling's recurrence: Kimi delta attention where a short convolution is named (3.0), lightning attention else (2.5, 2.6)."""
    return linear_layer(read) if read.raw("short_conv_kernel_size") is None else kimi_delta_layer(read)


# -- MLPs ---------------------------------------------------------------------------------------------------

_UNGATED = frozenset({"relu2", "xielu", "relu_squared", "squared_relu"})
"""Activations of MLPs with one input projection, in families without a row here."""


def dense_mlp(read: ConfigReader, family: Family, gated: bool, beside_experts: bool) -> MlpBlock:
    """A dense MLP; `beside_experts` in a model that has experts too, which may give its dense layers a width of their own."""
    hidden = read.count("hidden")
    widening = read.number("expansion_ratio", family.widening) * hidden if family.widening else None
    width = read.number("dense_intermediate", 0) if beside_experts else 0
    width = width or read.count("intermediate", widening)
    if read.flag("block_auto_adjust_ff_dim", False):  # LFM2: two thirds, rounded up
        part = int(int(2 * width / 3) * float(read.raw("block_ffn_dim_multiplier") or 1.0))
        multiple = max(1, read.number("block_multiple_of", 1))
        width = -(-part // multiple) * multiple
    return MlpBlock(
        "dense",
        1,
        width // family.stated_widths,
        gated,
        bias=_bias(read, family.mlp_bias_key, family.mlp_bias),
    )


def expert_mlp(read: ConfigReader, family: Family, gated: bool) -> MlpBlock:
    """A mixture of experts."""
    experts, topk = read.count("experts"), read.count("experts_per_token")
    read.aside("intermediate", "dense_intermediate")
    zero = read.number("zero_experts", 0)
    if topk > experts + zero:
        raise InputError(
            f"{topk} experts a token of {experts} experts",
            where=read.where,
            mend="num_experts_per_tok may not exceed the number of experts",
        )
    groups, chosen = _expert_groups(read, experts, topk)
    width = read.number("expert_intermediate", 0) or read.count("intermediate")
    shared = 0
    if read.given("shared_experts"):
        shared = read.number("shared_experts") * (read.number("shared_intermediate", 0) or width)
        if read.raw("moe_shared_expert_intermediate_size") is not None:  # Nemotron-H: of all of them together
            shared = (
                read.number("moe_shared_expert_intermediate_size") if read.number("shared_experts") else 0
            )
    elif read.given("shared_intermediate"):
        shared = read.number("shared_intermediate")
    elif family.shared_like_expert:
        shared = width
    return MlpBlock(
        kind="moe",
        layers=1,
        intermediate=0,
        gated=gated,
        experts=experts,
        experts_per_token=topk,
        expert_intermediate=width,
        zero_experts=zero,
        expert_groups=groups,
        groups_per_token=chosen,
        latent=read.number("latent", 0),
        shared_intermediate=shared,
        shared_gate=family.shared_gate,
        bias=_bias(read, family.mlp_bias_key, family.mlp_bias),
        router_bias=read.flag("use_routing_bias", False) or family.router_bias,
        router_fp32=read.raw("moe_router_dtype") in ("float32", "fp32") or family.router_fp32,
    )


def _expert_groups(read: ConfigReader, experts: int, topk: int) -> tuple[int, int]:
    """Groups of experts, and how many of them a token may take experts of."""
    groups = max(1, read.number("expert_groups", 1))
    chosen = read.number("groups_per_token", 0) or groups
    if experts % groups or chosen > groups or topk > chosen * (experts // groups):
        raise InputError(
            f"a token takes {topk} experts of {chosen} of {groups} groups, of {experts} experts",
            where=read.where,
            mend="n_group divides the experts, and topk_group of its groups hold as many as a token takes",
        )
    return groups, chosen


def is_gated(read: ConfigReader, family: Family | None) -> bool:
    """Whether MLPs have two input projections."""
    if family is not None:
        return family.gated
    return (
        str(read.raw("hidden_act", "mlp_hidden_act", "hidden_activation", "activation_function"))
        not in _UNGATED
    )


# -- layers with parts of their own ------------------------------------------------------------------------


def _added(mixers_of: Mixers, linears: tuple[Linear, ...], vectors: tuple[Vector, ...] = ()) -> Mixers:
    """The layer's mixers with more matrices in the first."""
    first = mixers_of[0]
    changed = replace(first, linears=first.linears + linears, vectors=first.vectors + vectors)
    return (changed, *mixers_of[1:])


def _shares_cache(read: ConfigReader) -> bool:
    """Whether this layer reads the keys and values of an earlier one (the last `num_kv_shared_layers` do)."""
    shared = read.number("num_kv_shared_layers", 0)
    own = read.count("layers") - shared
    return bool(read.of_layer(lambda layer: layer >= own > 0, False))


def _without_cache(block: AttentionBlock) -> AttentionBlock:
    """The block with queries of its own only."""
    qkv, *rest = block.linears
    queries = replace(qkv, name="q", outputs=qkv.outputs[:-1])
    norms = tuple(
        Vector(replicated(block.head_dim)) if v.width == replicated(2 * block.head_dim) else v
        for v in block.vectors
    )
    return replace(block, linears=(queries, *rest), vectors=norms, cache=())


NORMS_BESIDE_EXPERTS = 2
"""Norms of a layer with experts beside its dense MLP more than without: of the experts' input and of the router's. Those of both
outputs are one kernel with the norm of their sum (by construction: SGLang 0.5.23, `models/gemma4_causal.py`)."""


def own_inputs(read: ConfigReader, family: Family, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
    """Gemma 3n and 4: inputs of each layer's own, caches shared by the last layers, experts beside the dense MLP."""
    hidden = read.count("hidden")
    doubled = read.flag("use_double_wide_mlp", False)
    if _shares_cache(read):
        found = (_without_cache(found[0]),)
        if doubled:
            mlps = tuple(replace(mlp, intermediate=2 * mlp.intermediate) for mlp in mlps)
    linears: tuple[Linear, ...] = ()
    vectors: tuple[Vector, ...] = ()
    width = read.number("hidden_size_per_layer_input", 0)
    if width:
        linears += (
            Linear("per_layer_gate", (replicated(width),), replicated(hidden)),
            Linear("per_layer_out", (replicated(hidden),), replicated(width)),
        )
        vectors += (Vector(replicated(hidden)),)
    rank = read.number("laurel_rank", 0)
    if rank:
        linears += (
            Linear("laurel_in", (replicated(rank),), replicated(hidden)),
            Linear("laurel_out", (replicated(hidden),), replicated(rank)),
        )
        vectors += (Vector(replicated(hidden)),)
    streams = read.number("altup_num_inputs", 0)
    if streams:
        vectors += (Vector(replicated(streams * hidden + 2 * hidden + streams**2 * (streams + 1))),)
    if read.flag("enable_moe_block", False):
        vectors += (Vector(replicated(2 * hidden + read.count("experts"))),)
        mlps = (*mlps, expert_mlp(read, family, family.gated))
    return _added(found, linears, vectors), mlps


def gemma_tables(read: ConfigReader) -> tuple[Extra, ...]:
    """Tables of per-layer embeddings and what mixes them; the projections between the streams of Gemma 3n."""
    hidden, layers = read.count("hidden"), read.count("layers")
    width, streams = read.number("hidden_size_per_layer_input", 0), read.number("altup_num_inputs", 0)
    read.aside("vocab_size_per_layer_input")
    found: tuple[Extra, ...] = ()
    if width:
        rows = Width(read.number("vocab_size_per_layer_input", read.count("vocab")))
        found += (
            Extra("per-layer embeddings", "embedding", rows, layers * width, read=False),
            Extra("per-layer projection", "attention", replicated(layers * width), hidden),
            Extra("per-layer norm", "norm", replicated(width)),
        )
    if streams:
        found += (Extra("streams", "attention", replicated(2 * (streams - 1) * hidden), hidden),)
    return found


def twice_a_layer(read: ConfigReader, family: Family, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
    """LongCat-Flash: two attentions and two dense MLPs a layer, and one layer of experts across them."""
    dense = dense_mlp(read, family, family.gated, beside_experts=True)
    return found * 2, (dense, dense, *mlps)


def hyper_connections(read: ConfigReader, family: Family, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
    """Hyper-connections: several residual streams, mixed before attention and MLP by weights computed from all of them."""
    streams = read.number("hc_mult", 0)
    if not streams:
        return found, mlps
    mixing = streams * (2 + streams) if read.raw("hc_sinkhorn_iters") is not None else 2 * streams
    linear = Linear(
        "hyper_connections",
        (replicated(2 * mixing),),
        replicated(streams * read.count("hidden")),
        part="router",
    )
    return _added(found, (linear,)), mlps


def mixture_of_heads(read: ConfigReader, family: Family, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
    """JetMoE: queries and outputs of each attention are experts, keys and values are shared by them."""
    hidden, experts, topk = read.count("hidden"), read.count("experts"), read.count("experts_per_token")
    kv_heads, head_dim = read.count("kv_heads"), read.count("head_dim")
    inner = Width(kv_heads, head_dim)
    block = mixers.softmax_attention(hidden, topk * kv_heads, kv_heads, head_dim)
    kv = Linear("kv", (Width(kv_heads, 2 * head_dim),), replicated(hidden))
    chosen = (
        Linear("q", (Width(kv_heads, topk * head_dim),), replicated(hidden)),
        Linear("o", (replicated(hidden),), Width(kv_heads, topk * head_dim)),
    )
    others = (experts - topk) * hidden
    rest = Vector(Width(inner.units, 2 * others * inner.size), "attention")
    router = Vector(replicated(experts * hidden), "router")
    return (replace(block, linears=(kv, *chosen), vectors=(rest, router)),), mlps


def short_convolutions(read: ConfigReader, family: Family, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
    """Inkling: short convolutions over keys, values and both outputs, and a relative bias; their states are a few tokens."""
    hidden, heads, taps = read.count("hidden"), read.count("heads"), read.number("conv_kernel_size", 0)
    block = found[0]
    kv = Width(block.kv_heads, 2 * block.head_dim)
    widths = (Width(kv.units, kv.size * taps), replicated(2 * hidden * taps))
    bias = Linear("relative_bias", (Width(heads, read.number("d_rel", 0)),), replicated(hidden))
    past = (Width(kv.units, kv.size * (taps - 1)), replicated(2 * hidden * (taps - 1)))
    conv = replace(
        block,
        linears=(*block.linears, bias),
        vectors=(*block.vectors, *(Vector(w) for w in widths)),
        conv=past,
    )
    return (conv,), mlps


def narrow_queries(read: ConfigReader, family: Family, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
    """Step3: queries of all heads from a narrow one, keys and values of one head (SGLang 0.5.23, `models/step3_vl.py`)."""
    width, block = read.number("share_q_dim", 0), found[0]
    if not width:
        return found, mlps
    _, *rest = block.linears
    hidden, inner = replicated(read.count("hidden")), Width(block.kv_heads, 2 * block.head_dim)
    narrow = Linear("qkv", (replicated(width), inner), hidden)
    widened = Linear("q_up", (Width(block.heads, block.head_dim),), replicated(width))
    vectors = (*block.vectors, Vector(replicated(width)))
    return (replace(block, linears=(narrow, widened, *rest), vectors=vectors),), mlps


IMAGES = "images_"
"""Before a key whose list gives the language model's number first, for that of the experts of images."""


def experts_of_images(read: ConfigReader) -> tuple[Extra, ...]:
    """ERNIE-4.5-VL: experts that tokens of images alone take, in memory beside those of text (transformers 5.24,
    `modeling_ernie4_5_vl_moe.py`)."""
    width = read.number(f"{IMAGES}moe_intermediate_size", 0)
    first = read.number("dense_layers", 0)
    experts = read.number(f"{IMAGES}moe_num_experts", read.count("experts"))
    read.aside(f"{IMAGES}moe_layer_start_index", f"{IMAGES}moe_layer_end_index")
    rows = Width(experts, 3 * width * (read.count("layers") - first))
    return (Extra("experts of images", "experts", rows, read.count("hidden"), read=False),) if width else ()
