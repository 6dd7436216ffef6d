"""The token mixers that models are built of: attention of several kinds, and recurrences with a state of fixed size.

Each function returns one layer's `AttentionBlock` with its matrices named and split over ranks as vLLM splits them (by heads;
what is smaller than a head or shared by all is on every rank). Widths and taps follow the families' implementations in the
`transformers` library.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from engine_models.model.blocks import (
    Architecture,
    AttentionBlock,
    Indexer,
    Linear,
    QkNorm,
    Vector,
    Width,
    replicated,
)

Gate = Literal["none", "channels", "heads"]
"""Whether the output of an attention is gated: each of its channels, or each head as a whole."""

SPARSE_WIDE_BYTES = 80
"""An 8-bit latent of 512 + 64 values takes 656 bytes where attention is sparse: the rotary part in 16 bit, four float32 scales
(SGLang's `calculate_mla_kv_cache_dim`, read in a public copy of 2026). Kind: datasheet."""
COMPRESSED_WIDE_BYTES = 72
"""The same of DeepSeek-V4's latent of 448 + 64 values: the rotary part in 16 bit, a scale byte for each 64 of the others. Kind:
assumed, 2026-11."""
INDEX_KEY_SCALE_BYTES = 4
"""A key of an indexer is kept in FP8 with one float32 scale (DeepSeek-V3.2's inference code, 2025-09; 132 bytes for 128
values). Kind: datasheet."""


def with_plain_latents(arch: Architecture) -> Architecture:
    """`arch`, 8-bit latents of whose sparse attention take a byte a value: one scale for all, the rotary part in 8 bit too."""
    wide = [block.wide_bytes == SPARSE_WIDE_BYTES for block in arch.attention]
    attention = (replace(block, wide_bytes=0) if each else block for block, each in zip(arch.attention, wide, strict=True))
    return replace(arch, attention=tuple(attention)) if any(wide) else arch


def softmax_attention(
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    v_head_dim: int = 0,
    *,
    window_tokens: int = 0,
    chunked: bool = False,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: QkNorm = "none",
    norm_bias: bool = False,
    sinks: bool = False,
    gate: Gate = "none",
    one_projection: bool = False,
    keeps_kv: bool = True,
) -> AttentionBlock:
    """Attention with keys and values of each KV head.

    one_projection : values are projected by the same matrix as keys (both are cached).
    keeps_kv : false where it reads the cache of an earlier layer.
    """
    v_head_dim = v_head_dim or head_dim
    queries = {"none": (Width(heads, head_dim),), "channels": (Width(heads, 2 * head_dim),)}.get(
        gate, (Width(heads, head_dim), Width(heads))
    )
    if not keeps_kv:
        keys: tuple[Width, ...] = ()
    elif one_projection:
        keys = (Width(kv_heads, head_dim),)
    else:
        keys = (Width(kv_heads, head_dim + v_head_dim),)
    norms = {
        "none": (),
        "head": (replicated(2 * head_dim if keeps_kv else head_dim),),
        "full": (Width(heads, head_dim), Width(kv_heads, head_dim)),
    }[qk_norm]
    return AttentionBlock(
        kind="sliding" if window_tokens else "full",
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        window_tokens=window_tokens,
        chunked=chunked,
        qk_norm=qk_norm,
        sinks=sinks,
        linears=(
            Linear("qkv" if keeps_kv else "q", queries + keys, replicated(hidden), bias=qkv_bias),
            Linear("o", (replicated(hidden),), Width(heads, v_head_dim), bias=out_bias),
        ),
        vectors=(
            *(Vector(width) for width in norms for _ in range(2 if norm_bias else 1)),
            *((Vector(Width(heads), "bias"),) if sinks else ()),
        ),
        cache=(Width(kv_heads, head_dim + v_head_dim),) if keeps_kv else (),
    )


def latent_attention(
    hidden: int,
    heads: int,
    nope_dim: int,
    rope_dim: int,
    v_head_dim: int,
    kv_rank: int,
    q_rank: int = 0,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    gate: Gate = "none",
    window_tokens: int = 0,
) -> AttentionBlock:
    """Multi-head latent attention: one latent of `kv_rank` and a rotary key of `rope_dim` a token; q_rank 0: direct queries."""
    head_dim = nope_dim + rope_dim
    latent = replicated(kv_rank + rope_dim)
    whole = replicated(hidden)
    if q_rank:
        inputs = (
            Linear("mla_qkv_a", (replicated(q_rank), latent), whole, bias=qkv_bias),
            Linear("mla_q_b", (Width(heads, head_dim),), replicated(q_rank)),
        )
    else:
        inputs = (
            Linear("mla_q", (Width(heads, head_dim),), whole),
            Linear("mla_kv_a", (latent,), whole, bias=qkv_bias),
        )
    return AttentionBlock(
        kind="mla",
        layers=1,
        heads=heads,
        kv_heads=1,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        window_tokens=window_tokens,
        linears=(
            *inputs,
            Linear("mla_kv_b", (Width(heads, nope_dim + v_head_dim),), replicated(kv_rank)),
            *_gate(gate, hidden, heads, v_head_dim),
            Linear("o", (whole,), Width(heads, v_head_dim), bias=out_bias),
        ),
        vectors=(Vector(replicated(kv_rank + q_rank)),),
        cache=(latent,),
    )


def _gate(gate: Gate, hidden: int, heads: int, width: int) -> tuple[Linear, ...]:
    if gate == "none":
        return ()
    return (Linear("gate", (Width(heads, width if gate == "channels" else 1),), replicated(hidden)),)


def with_indexer(
    block: AttentionBlock,
    hidden: int,
    query_inputs: int,
    heads: int,
    head_dim: int,
    topk_tokens: int,
    *,
    owned: bool = True,
) -> AttentionBlock:
    """`block`, attending to the `topk_tokens` that an indexer chooses; its queries come from `query_inputs` values.

    owned : false where an earlier layer's choice is taken over. vLLM holds indexers whole on every rank.
    """
    indexer = Indexer(heads, head_dim, topk_tokens, head_dim + INDEX_KEY_SCALE_BYTES if owned else 0)
    if block.kind == "mla":
        block = replace(block, wide_bytes=block.wide_bytes or SPARSE_WIDE_BYTES)
    if not owned:
        return replace(block, indexer=indexer)
    linears = (
        Linear("index_q", (replicated(heads * head_dim),), replicated(query_inputs)),
        Linear("index_k", (replicated(head_dim), replicated(heads)), replicated(hidden)),
    )
    return replace(
        block,
        indexer=indexer,
        linears=(*block.linears, *linears),
        vectors=(*block.vectors, Vector(replicated(2 * head_dim))),
    )


def compressed_attention(
    hidden: int,
    heads: int,
    head_dim: int,
    q_rank: int,
    out_rank: int,
    out_groups: int,
    window_tokens: int,
    entry_tokens: int,
    indexer: tuple[int, int, int] | None,
) -> tuple[AttentionBlock, ...]:
    """DeepSeek-V4: one latent of `head_dim` that is key and value of all heads, over a window and over compressed entries.

    entry_tokens : tokens of a compressed entry, 0 for a layer that sees its window only. indexer : heads, width, entries that are
    chosen. The output passes through `out_groups` low-rank products. Two mixers: that of the window, which holds the projections,
    and that of the entries. Entries of a layer with an indexer overlap by one, which doubles the width they are made from.
    """
    whole, latent = replicated(hidden), replicated(head_dim)
    window = AttentionBlock(
        kind="mla",
        layers=1,
        heads=heads,
        kv_heads=1,
        head_dim=head_dim,
        v_head_dim=head_dim,
        window_tokens=window_tokens,
        sinks=True,
        linears=(
            Linear("mla_qkv_a", (replicated(q_rank), latent), whole),
            Linear("mla_q_b", (Width(heads, head_dim),), replicated(q_rank)),
            Linear("o_a", (Width(out_groups, out_rank),), replicated(heads * head_dim // out_groups)),
            Linear("o", (whole,), Width(out_groups, out_rank)),
        ),
        vectors=(Vector(replicated(head_dim + q_rank)), Vector(Width(heads), "bias")),
        cache=(latent,),
        wide_bytes=COMPRESSED_WIDE_BYTES,
    )
    if not entry_tokens:
        return (window,)
    overlap = 2 if indexer else 1
    made = overlap * head_dim
    entries = replace(
        window,
        window_tokens=0,
        entry_tokens=entry_tokens,
        sinks=False,
        linears=(Linear("compress", (replicated(2 * made),), whole),),
        vectors=(Vector(replicated(entry_tokens * made + head_dim)),),
    )
    if indexer:
        index_heads, index_dim, topk = indexer
        entries = with_indexer(entries, hidden, q_rank, index_heads, index_dim, topk)
        keys = Linear(
            "index_compress", (replicated(2 * overlap * index_dim - index_dim),), whole
        )  # index_k counts one width
        entries = replace(
            entries,
            linears=(*entries.linears, keys),
            vectors=(*entries.vectors, Vector(replicated(entry_tokens * overlap * index_dim - index_dim))),
        )
    return window, entries


# -- recurrences --------------------------------------------------------------------------------------------

LINEAR = "linear_attention"


def _recurrent(
    mechanism: str,
    heads: int,
    kv_heads: int,
    head_dim: int,
    v_head_dim: int,
    linears: tuple[Linear, ...],
    small: tuple[Width, ...],
    state: tuple[Width, ...],
    conv: tuple[Width, ...],
    taps: int,
    state_bytes: int,
) -> AttentionBlock:
    """conv : channels of a convolution of `taps` taps, whose last `taps` - 1 inputs a sequence keeps."""
    taps_of = tuple(Width(width.units, width.size * taps) for width in conv)
    past = tuple(Width(width.units, width.size * (taps - 1)) for width in conv) if taps > 1 else ()
    return AttentionBlock(
        kind="linear",
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        mechanism=mechanism,
        linears=tuple(replace(linear, part=LINEAR) for linear in linears),
        vectors=tuple(Vector(width) for width in (*taps_of, *small)),
        state=state,
        state_bytes=state_bytes,
        conv=past,
    )


def lightning(hidden: int, heads: int, head_dim: int, state_bytes: int) -> AttentionBlock:
    """Lightning attention (MiniMax-Text-01): as many key heads as value heads, an output gate, no convolution."""
    inner = Width(heads, head_dim)
    return _recurrent(
        "lightning", heads, heads, head_dim, head_dim,
        linears=(
            Linear("linear_in", (Width(heads, 4 * head_dim),), replicated(hidden)),
            Linear("linear_out", (replicated(hidden),), inner),
        ),
        small=(inner,),
        state=(Width(heads, head_dim * head_dim),),
        conv=(), taps=0, state_bytes=state_bytes,
    )  # fmt: skip


def gated_delta(
    hidden: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int, taps: int, state_bytes: int
) -> AttentionBlock:
    """Gated delta net (Qwen3-Next): queries, keys, values, output gate and two scalars a value head."""
    keys, values = Width(key_heads, 2 * key_dim), Width(value_heads, value_dim)
    return _recurrent(
        "gated delta net", value_heads, key_heads, key_dim, value_dim,
        linears=(
            Linear("linear_in", (keys, Width(value_heads, 2 * value_dim + 2)), replicated(hidden)),
            Linear("linear_out", (replicated(hidden),), values),
        ),
        small=(Width(value_heads, 2), replicated(value_dim)),
        state=(Width(value_heads, key_dim * value_dim),),
        conv=(keys, values), taps=taps, state_bytes=state_bytes,
    )  # fmt: skip


def kimi_delta(
    hidden: int,
    heads: int,
    head_dim: int,
    taps: int,
    *,
    low_rank_decay: bool,
    low_rank_gate: bool,
) -> AttentionBlock:
    """Kimi delta attention: decay a channel, from a product of rank `head_dim` or of full rank; the output gate likewise.

    Engines keep its state in float32 whatever the model's format (vLLM's `kda_state_dtype`, read in a public copy of 2026).
    """
    inner, whole = Width(heads, head_dim), replicated(hidden)
    first = (replicated(head_dim),)
    low = [("decay", low_rank_decay), ("gate", low_rank_gate)]
    return _recurrent(
        "Kimi delta attention", heads, heads, head_dim, head_dim,
        linears=(
            Linear("linear_in", (Width(heads, 3 * head_dim), Width(heads)), whole),
            *(Linear(f"linear_{name}_a", first, whole) for name, is_low in low if is_low),
            *(Linear(f"linear_{name}", (inner,), first[0] if is_low else whole) for name, is_low in low),
            Linear("linear_out", (whole,), inner),
        ),
        small=(inner, Width(heads), replicated(head_dim)),
        state=(Width(heads, head_dim * head_dim),),
        conv=(Width(heads, 3 * head_dim),), taps=taps, state_bytes=4,
    )  # fmt: skip


def mamba2(
    hidden: int,
    heads: int,
    head_dim: int,
    groups: int,
    state_size: int,
    taps: int,
    state_bytes: int,
    *,
    conv_bias: bool = True,
    proj_bias: bool = False,
    norm: bool = True,
) -> AttentionBlock:
    """Mamba-2: heads with a state of head_dim x state_size; B and C are shared by the heads of a group."""
    inner, shared = Width(heads, head_dim), Width(groups, 2 * state_size)
    channels = (inner, shared)
    return _recurrent(
        "Mamba-2", heads, groups, state_size, head_dim,
        linears=(
            Linear("linear_in", (Width(heads, 2 * head_dim + 1), shared), replicated(hidden), bias=proj_bias),
            Linear("linear_out", (replicated(hidden),), inner, bias=proj_bias),
        ),
        small=(Width(heads, 3), *(channels if conv_bias else ()), *((inner,) if norm else ())),
        state=(Width(heads, head_dim * state_size),),
        conv=channels, taps=taps, state_bytes=state_bytes,
    )  # fmt: skip


def mamba1(
    hidden: int,
    inner: int,
    state_size: int,
    rank: int,
    taps: int,
    state_bytes: int,
    *,
    conv_bias: bool = True,
    proj_bias: bool = False,
    norms: bool = False,
) -> AttentionBlock:
    """Mamba: a state of `state_size` a channel; `norms` of the step, B and C (Jamba)."""
    channels = Width(inner)
    return _recurrent(
        "Mamba", inner, inner, state_size, 1,
        linears=(
            Linear("linear_in", (Width(inner, 2),), replicated(hidden), bias=proj_bias),
            Linear("linear_x", (replicated(rank + 2 * state_size),), channels),
            Linear("linear_step", (channels,), replicated(rank), bias=True),
            Linear("linear_out", (replicated(hidden),), channels, bias=proj_bias),
        ),
        small=(
            Width(inner, state_size + 1),
            *((channels,) if conv_bias else ()),
            *((replicated(rank + 2 * state_size),) if norms else ()),
        ),
        state=(Width(inner, state_size),),
        conv=(channels,), taps=taps, state_bytes=state_bytes,
    )  # fmt: skip


def short_conv(hidden: int, taps: int, *, bias: bool = False) -> AttentionBlock:
    """Gated short convolution (LFM2): two gates and the input; the last inputs are all it keeps."""
    channels = Width(hidden)
    return _recurrent(
        "short convolution", hidden, hidden, 1, 1,
        linears=(
            Linear("linear_in", (Width(hidden, 3),), replicated(hidden), bias=bias),
            Linear("linear_out", (replicated(hidden),), channels, bias=bias),
        ),
        small=(channels,) if bias else (),
        state=(),
        conv=(channels,), taps=taps, state_bytes=2,
    )  # fmt: skip
