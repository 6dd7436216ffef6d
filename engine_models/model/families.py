"""What a model type fixes and its config leaves out, and how its layers are read.

`FAMILIES` is a table: a row of facts a family, from its implementation in the `transformers` library (4.57 and 5.24,
`models/<model_type>/`), and a function where its layers are made of other parts. A type without a row is read as Llama-like (RMS
norms, gated MLP, rotary positions, and whatever its keys say) and says so; `REFUSED` names those that cannot be read so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from engine_models.model.config import MOST, ConfigReader
from engine_models.model.mixers import Gate
from hardware_profiles.errors import InputError

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
    nested : keys whose mappings hold more of the shape.
    router_fp32 : engines compute the router in float32.
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
    recurrence: Callable[[ConfigReader], AttentionBlock] | None = None
    beside: Callable[[ConfigReader], AttentionBlock] | None = None
    adjust: Callable[[ConfigReader, str, Mixers, Mlps], tuple[Mixers, Mlps]] | None = None
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
            read.number("v_head_dim"),
            read.number("kv_lora_rank"),
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
        heads = read.whole(listed.get("num_attention_heads") or read.number("num_sliding_attention_heads", heads), "heads", 1)
    multi_query = read.flag("multi_query", False) and not read.flag("new_decoder_architecture", False)
    read.aside("kv_heads")
    kv_heads = 1 if multi_query else read.count("kv_heads", heads, prefix)
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
            _SINK_KEYS[kind == "sliding"], family.sinks in ("all", "windows" if kind == "sliding" else "all")
        ),
        gate=_gate(read, family),
        one_projection=kind == "full" and read.flag("attention_k_eq_v", False),
    )


_SINK_KEYS = ("add_full_attention_sink_bias", "add_swa_attention_sink_bias")


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
    return family.gate if family.gate != "none" else "channels"


def _indexed(read: ConfigReader, block: AttentionBlock, hidden: int, query_inputs: int) -> AttentionBlock:
    """`block` with its indexer, where the config has one for this layer."""
    sparse = read.raw("sparse_attention_config")  # MiniMax-M3: blocks of tokens, chosen in the layers listed
    if isinstance(sparse, Mapping) and sparse.get("use_sparse_attention", True):
        layers = sparse.get("sparse_attention_freq")
        if isinstance(layers, list) and read.layer is not None and not layers[read.layer]:
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
    word = (
        kinds[read.layer]
        if isinstance(kinds, list) and read.layer is not None and read.layer < len(kinds)
        else None
    )
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
        number("head_dim", "linear_head_dim"),
        number("short_conv_kernel_size", "linear_conv_kernel_dim", "short_conv_kernel_size"),
        low_rank_decay=not full_rank,
        low_rank_gate=not (full_rank or nested.get("use_full_rank_gate", False)),
    )


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
        latent=read.number("latent", 0),
        shared_intermediate=shared,
        shared_gate=family.shared_gate,
        bias=_bias(read, family.mlp_bias_key, family.mlp_bias),
        router_bias=read.flag("use_routing_bias", False) or family.router_bias,
        router_fp32=read.raw("moe_router_dtype") in ("float32", "fp32") or family.router_fp32,
    )


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
    return read.layer is not None and read.layer >= read.count("layers") - shared > 0


def _without_cache(block: AttentionBlock) -> AttentionBlock:
    """The block with queries of its own only."""
    qkv, *rest = block.linears
    queries = replace(qkv, name="q", outputs=qkv.outputs[:-1])
    norms = tuple(
        Vector(replicated(block.head_dim)) if v.width == replicated(2 * block.head_dim) else v
        for v in block.vectors
    )
    return replace(block, linears=(queries, *rest), vectors=norms, cache=())


def _gemma(read: ConfigReader, kind: str, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
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
        vectors += (Vector(replicated(3 * hidden + hidden + read.count("experts"))),)
        mlps = (*mlps, expert_mlp(read, FAMILIES["gemma4_text"], True))
    return _added(found, linears, vectors), mlps


def _gemma_tables(read: ConfigReader) -> tuple[Extra, ...]:
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


def _longcat(read: ConfigReader, kind: str, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
    """LongCat-Flash: two attentions and two dense MLPs a layer, and one layer of experts across them."""
    dense = dense_mlp(read, FAMILIES["longcat_flash"], True, beside_experts=True)
    return found * 2, (dense, dense, *mlps)


def _hyper(read: ConfigReader, kind: str, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
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


def _mixture_of_heads(read: ConfigReader, kind: str, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
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


def _inkling(read: ConfigReader, kind: str, found: Mixers, mlps: Mlps) -> tuple[Mixers, Mlps]:
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


_LAYER_NORM = Family(gated=False, norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, widening=4)
_GEMMA3_DEFAULTS = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
}
_PARALLEL_BLOCK = replace(_LAYER_NORM, norms_per_layer=1)
_LLAMA = Family()
_QWEN2 = Family(qkv_bias=True, qkv_bias_key=None, out_bias_key=None)
_QWEN3 = Family(qk_norm="head")
_QWEN3_NEXT = Family(qk_norm="head", gate="channels", shared_gate=True)
_GEMMA3 = Family(tied=True, norms_per_layer=4, qk_norm="head", defaults=_GEMMA3_DEFAULTS)
_GEMMA4 = Family(tied=True, norms_per_layer=4, qk_norm="head", adjust=_gemma, extras=_gemma_tables)
_GPT2 = replace(_LAYER_NORM, tied=True, learned_positions=True)
_DEEPSEEK = Family(router_bias=True)
_KIMI_LINEAR = Family(router_bias=True, recurrence=kimi_delta_layer)
_GLM4 = Family(qkv_bias=True, out_bias_key=None, norms_per_layer=4)
_GLM4_MOE = Family(
    qkv_bias=True,
    out_bias_key=None,
    qk_norm="head",
    router_bias=True,
    rounds_heads=True,
    defaults={"use_qk_norm": False},
)
_STEP = Family(qk_norm="head", gate="heads", router_bias=True)
_NEMOTRON_H = Family(gated=False, norms_per_layer=1, recurrence=mamba2_layer, router_bias=True)
_MAMBA_HYBRID = Family(recurrence=mamba2_layer)
_MAMBA = Family(
    norms_per_layer=1,
    tied=True,
    recurrence=mamba1_layer,
    mlps=False,
    defaults={"block_types": ["recurrent"], "max_position_embeddings": MOST},
)
_MINIMAX_M3 = Family(qk_norm="head", router_bias=True)
_INKLING = Family(
    qk_norm="head",
    adjust=_inkling,
    ignored=(
        "chain_hidden_post_norm",
        "number_of_conv_states",
        "rel_extent",
        "shared_expert_sink",
        "unpadded_vocab_size",
    ),
)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "phi3", "yi", "baichuan", "deepseek", "minicpm", "minicpm3"), _LLAMA
    ),
    **dict.fromkeys(
        ("ministral", "ministral3", "mistral3", "internlm3", "exaone", "granite", "granitemoe", "smollm3"),
        _LLAMA,
    ),
    **dict.fromkeys(
        ("granitemoeshared", "helium", "cwm", "youtu", "sarvam_mla", "iquestcoder", "aria_text"), _LLAMA
    ),
    **dict.fromkeys(("granite_swa", "granitemoe_swa", "minimax", "minimax_text_01"), _LLAMA),
    "internlm": Family(qkv_bias_key="bias", out_bias_key="bias"),
    "internlm2": Family(qkv_bias_key="bias", out_bias_key="bias"),
    "qwen": replace(_QWEN2, stated_widths=2),
    "qwen2": _QWEN2,
    "qwen2_moe": replace(_QWEN2, shared_gate=True, qkv_bias_key="qkv_bias"),
    "qwen2_vl": _QWEN2,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "mimo": replace(_QWEN2, qkv_bias_key="attention_bias"),
    **dict.fromkeys(
        ("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "hunyuan_v1_dense", "olmo_hybrid_text"),
        _QWEN3,
    ),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _QWEN3_NEXT),
    "gemma": Family(tied=True, defaults={"head_dim": 256}),
    "gemma2": Family(tied=True, norms_per_layer=4, defaults={"head_dim": 256, "sliding_window_pattern": 2}),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    **dict.fromkeys(
        ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _GEMMA4
    ),
    "gpt_oss": Family(
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        sinks="all",
        router_bias=True,
        defaults={"sliding_window_pattern": 2},
    ),
    "llama4_text": Family(
        shared_like_expert=True, chunked=True, defaults={"attention_chunk_size": 8192, "head_dim": 128}
    ),
    "phimoe": Family(norm_bias=True),
    "chatglm": Family(qkv_bias=True, qkv_bias_key="add_qkv_bias", out_bias_key=None),
    "glm": _GLM4,
    "glm4": _GLM4,
    "glm4_moe": _GLM4_MOE,
    "solar_open": _GLM4_MOE,
    "sarvam_moe": _GLM4_MOE,
    "dots1": Family(qk_norm="head", router_bias=True),
    **dict.fromkeys(
        ("deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe_lite", "glm_moe_dsa", "axk1", "axk2"), _DEEPSEEK
    ),
    "deepseek_v2": Family(defaults={"num_experts_per_tok": 6}),
    "deepseek_v4": Family(router_bias=True, adjust=_hyper),
    "deepseek_ref": Family(router_bias=True, adjust=_hyper),
    "dots3_note_text": Family(gate="heads", router_bias=True),
    "hy_v3": Family(qk_norm="head", router_bias=True),
    "hy_v4": Family(gate="channels", router_bias=True, adjust=_hyper),
    "kimi_linear": _KIMI_LINEAR,
    "bailing_hybrid": replace(_KIMI_LINEAR, gate="heads"),
    "longcat_flash": Family(router_bias=True, norms_per_layer=4, adjust=_longcat),
    "minimax_m2": Family(qk_norm="full", router_fp32=True),
    **dict.fromkeys(("minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"), _MINIMAX_M3),
    "mimo_v2_flash": Family(sinks="windows", router_bias=True, ignored=("attention_chunk_size", *_SINK_KEYS)),
    **dict.fromkeys(("step3p5", "step3p7"), _STEP),
    "ernie4_5": Family(qkv_bias_key="use_bias", out_bias_key="use_bias", mlp_bias_key="use_bias", tied=True),
    "ernie4_5_moe": Family(
        qkv_bias_key="use_bias", out_bias_key="use_bias", mlp_bias_key="use_bias", tied=True, router_bias=True
    ),
    "exaone4": Family(qk_norm="head"),
    "exaone_moe": Family(qk_norm="head", router_bias=True),
    "seed_oss": Family(out_bias_key="attention_out_bias", qkv_bias=True),
    "laguna": Family(qk_norm="head", gate="heads", router_bias=True),
    "afmoe": Family(qk_norm="head", gate="channels", norms_per_layer=4, router_bias=True),
    "beam": Family(qk_norm="head", gate="channels", norms_per_layer=4),
    "kolibri1": Family(shared_gate=True),
    "flint": Family(qk_norm="head"),
    "mellum": Family(qk_norm="head"),
    "lara_mini": Family(qk_norm="head"),
    **dict.fromkeys(("inkling_text", "inkling2_text"), _INKLING),
    "lfm2": Family(tied=True, qk_norm="head"),
    "lfm2_moe": Family(tied=True, qk_norm="head", router_bias=True),
    "lfm3": Family(tied=True, qk_norm="head", norms_per_layer=4, gate="heads"),
    "nemotron_h": _NEMOTRON_H,
    "granitemoehybrid": _MAMBA_HYBRID,
    "bamba": replace(_MAMBA_HYBRID, defaults={"block_types": ["recurrent"]}),
    "mamba": _MAMBA,
    "falcon_mamba": replace(_MAMBA, tied=True),
    "mamba2": replace(_MAMBA, recurrence=mamba2_layer),
    "falcon_h1": Family(beside=mamba2_layer),
    "jamba": Family(recurrence=mamba1_layer),
    "arcee": Family(gated=False),
    "apertus": Family(gated=False, qk_norm="head"),
    "apertus1p5_text": Family(gated=False, qk_norm="head"),
    "nanochat": Family(gated=False, norms_per_layer=0, final_norms=0),
    "jais2": _LAYER_NORM,
    "moshi": Family(stated_widths=2),
    "jetmoe": Family(tied=True, adjust=_mixture_of_heads),
    "olmo": Family(norms_per_layer=0, final_norms=0),
    **dict.fromkeys(("olmo2", "olmo3", "olmoe", "flex_olmo", "olmo_hybrid"), Family(qk_norm="full")),
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), Family(norms_per_layer=1, tied=True)),
    "starcoder2": replace(
        _LAYER_NORM, tied=True, qkv_bias_key="use_bias", out_bias_key="use_bias", mlp_bias_key="use_bias"
    ),
    "gpt2": _GPT2,
    "gpt-sw3": _GPT2,
    "gpt_neo": replace(_GPT2, qkv_bias=False, qkv_bias_key=None),
    "gpt_bigcode": replace(_GPT2, defaults={"multi_query": True}),
    "openai-gpt": replace(_GPT2, final_norms=0),
    "biogpt": replace(_GPT2, position_offset=2),
    "opt": replace(
        _GPT2,
        position_offset=2,
        qkv_bias_key="enable_bias",
        out_bias_key="enable_bias",
        mlp_bias_key="enable_bias",
    ),
    "bloom": replace(_LAYER_NORM, tied=True, final_norms=2, defaults={"max_position_embeddings": 2048}),
    "falcon": Family(
        gated=False,
        norm_bias=True,
        tied=True,
        widening=4,
        qkv_bias_key="bias",
        out_bias_key="bias",
        mlp_bias_key="bias",
        defaults={"max_position_embeddings": 2048},
    ),
    "gpt_neox": _LAYER_NORM,
    "gptj": Family(
        gated=False, norm_bias=True, norms_per_layer=1, mlp_bias=True, lm_head_bias=True, widening=4
    ),
    "codegen": Family(
        gated=False, norm_bias=True, norms_per_layer=1, mlp_bias=True, lm_head_bias=True, widening=4
    ),
    "mpt": Family(
        gated=False,
        tied=True,
        widening=4,
        nested=("attn_config",),
        ignored=(
            "alibi_bias_max",
            "attn_impl",
            "attn_type",
            "attn_uses_sequence_id",
            "embedding_fraction",
            "learned_pos_emb",
        ),
    ),
    "dbrx": Family(nested=("attn_config", "ffn_config"), tied=False),
    "phi": replace(
        _PARALLEL_BLOCK,
        lm_head_bias=True,
        qk_norm="head",
        qk_norm_key="qk_layernorm",
        qk_norm_bias=True,
        defaults={"qk_layernorm": False},
    ),
    "persimmon": replace(_LAYER_NORM, qk_norm="head", qk_norm_key="qk_layernorm", qk_norm_bias=True),
    "stablelm": Family(
        norm_bias=True,
        qkv_bias_key="use_qkv_bias",
        out_bias_key=None,
        qk_norm="full",
        qk_norm_key="qk_layernorm",
        defaults={"qk_layernorm": False},
    ),
    "nemotron": Family(gated=False, norm_bias=True),
    "vaultgemma": Family(tied=True, defaults={"head_dim": 256, "sliding_window_pattern": 2}),
    "hyperclovax": Family(),
    "diffllama": Family(),
    "bitnet": Family(),
    "xglm": replace(_LAYER_NORM, tied=True),
}

_ENCODER = "it is an encoder with a head for language, which engines do not serve as a decoder"
_TWO_STACKS = "it has an encoder and a decoder"
_LOOPS = "it runs layers several times for a token, which is not modelled"
_SHARED = "its layers share one set of attention weights, which is not modelled"
_STATE = "it is recurrent, with states that are not modelled"
_OTHER = "its layers are none of those that are modelled"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *(
                "bert",
                "bert-generation",
                "big_bird",
                "camembert",
                "data2vec-text",
                "electra",
                "ernie",
                "megatron-bert",
            ),
            *(
                "rembert",
                "roberta",
                "roberta-prelayernorm",
                "roc_bert",
                "roformer",
                "xlm",
                "xlm-roberta",
                "xlm-roberta-xl",
                "xmod",
            ),
            *(
                "modernbert-decoder",
                "modernbert",
                "distilbert",
                "deberta",
                "deberta-v2",
                "albert",
                "nomic_bert",
            ),
        ),
        _ENCODER,
    ),
    **dict.fromkeys(
        (
            *(
                "bart",
                "bigbird_pegasus",
                "blenderbot",
                "blenderbot-small",
                "marian",
                "mbart",
                "mvp",
                "pegasus",
                "plbart",
            ),
            *("prophetnet", "t5", "mt5", "trocr", "whisper", "musicgen", "musicgen_melody", "mllama", "git"),
        ),
        _TWO_STACKS,
    ),
    **dict.fromkeys(("hrm_text", "dory", "inkling2_loop_text", "ouro"), _LOOPS),
    **dict.fromkeys(("zamba", "zamba2"), _SHARED),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "it drafts for another model"),
    **dict.fromkeys(("rwkv", "rwkv7", "xlstm", "recurrent_gemma", "reformer", "xlnet"), _STATE),
    **dict.fromkeys(
        ("blt", "cpmant", "ctrl", "gpt_neox_japanese", "zaya", "qwen4_exp_text", "fuyu", "moshi_depth"),
        _OTHER,
    ),
}

REFUSED_KEYS = {
    "block_configs": "layers of unequal shape (`block_configs`)",
    "loop_num_passes": "layers that run several times (`loop_num_passes`)",
    "n_recurrent_loops": "layers that run several times (`n_recurrent_loops`)",
    "hybrid_layer_ids": "layers that share weights (`hybrid_layer_ids`)",
}
