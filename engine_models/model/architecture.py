"""Counting a transformer: parameters, bytes on each rank, KV bytes a token, matrices a step multiplies.

Everything is integer arithmetic on an `Architecture`, by the rules with which vLLM lays a model out (its
`model_executor/layers/vocab_parallel_embedding.py` and `distributed/utils.py`, read in public copies, 2025;
the linear layers as its documentation describes them):

- query heads, MLP widths and experts' widths are split over tensor-parallel ranks;
- KV heads are split down to one a rank and replicated beyond;
- MLA's down-projections and its latent cache, routers, norms and the biases of row-parallel layers are
  replicated;
- the vocabulary is padded to a multiple of 64 and split; embeddings live on the first pipeline stage, the LM
  head on the last (a tied table is held by both);
- layers that do not divide by the stages go one each to the stages before the last.

Names for reading a model (`load_architecture`, `architecture_from_config`) are re-exported here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from engine_models.model.blocks import (
    Architecture,
    AttentionBlock,
    AttentionKind,
    Linear,
    MlpBlock,
    Width,
    parts_left_by_format,
    replicated,
)
from engine_models.model.expert_groups import group_spread, reached_share
from engine_models.model.formats import FORMATS, Format, format_named
from engine_models.model.hf_config import architecture_from_config, load_architecture
from hardware_profiles.errors import InputError
from hardware_profiles.expert_ranks import EVEN, Deal
from hardware_profiles.packed_formats import GGUF_SUPERBLOCK, packed_format
from hardware_profiles.records import dataclass

__all__ = [
    "Architecture",
    "AttentionBlock",
    "Gemm",
    "KvGroup",
    "MlpBlock",
    "MoeShape",
    "active_bytes",
    "active_parameters",
    "architecture_from_config",
    "check_parallelism",
    "uneven_block_width",
    "expert_bytes",
    "format_of_part",
    "gemm_shapes",
    "in_pieces",
    "kv_bytes_per_token",
    "kv_groups",
    "load_architecture",
    "mla_absorbed_bytes_per_rank",
    "moe_shapes",
    "parameters",
    "pipeline_layers",
    "rotary_table_bytes",
    "stages",
    "state_bytes_of",
    "state_bytes_per_sequence",
    "state_pages",
    "tower_parameters",
    "tensor_parallel_sizes",
    "weight_bytes",
    "weight_bytes_per_rank",
    "with_state_values",
    "without_towers",
]

# Rows the vocabulary is padded to before it is split (vLLM DEFAULT_VOCAB_PADDING_SIZE; 2025; datasheet).
VOCAB_PADDING = 64

# Parts that stay in the model's dtype in every quantized checkpoint that engines load.
ALWAYS_UNQUANTIZED = frozenset({"embedding", "lm_head", "router", "norm", "bias", "vision"})

# Parts that are memory, but no parameters of the language model.
_TOWERS = ("vision",)


@dataclass(frozen=True)
class Gemm:
    """One matrix multiplication of a rank: an [m, k] activation times a [k, n] weight.

    m is the number of tokens of the step (per == "token") or of sequences that yield a token ("sequence");
    it occurs in `layers` layers of the architecture given. `part` names what it belongs to, for its format
    (`format_of_part`).
    """

    name: str
    n: int
    k: int
    layers: int
    per: Literal["token", "sequence"] = "token"
    part: str = "attention"


@dataclass(frozen=True)
class MoeShape:
    """The routed experts of `layers` layers: `tp` splits each expert's width, `ep` the set of experts.

    intermediate is the whole width of an expert, as kernel tables name it; deal : of tokens and experts to the ranks;
    reached_share : of the ranks hold an expert of a token, see :mod:`engine_models.model.expert_groups`.
    """

    hidden: int
    intermediate: int
    experts: int
    topk: int
    tp: int
    ep: int
    layers: int
    gated: bool = True
    deal: Deal = EVEN
    reached_share: float = 1.0


@dataclass(frozen=True)
class KvGroup:
    """Layers whose cache lives alike: bytes_per_token_per_rank is summed over the `layers` of one rank."""

    kind: AttentionKind
    window_tokens: int
    layers: int
    bytes_per_token_per_rank: int


def _split(width: int, ranks: int) -> int:
    return -(-width // ranks)


def _padded_vocab(arch: Architecture) -> int:
    return -(-arch.vocab // VOCAB_PADDING) * VOCAB_PADDING


def _attention_counts(block: AttentionBlock, tp: int) -> Counter[str]:
    """Parameters of one mixer on one rank (norms of the layer's input are counted elsewhere)."""
    found: Counter[str] = Counter()
    for linear in block.linears:
        outputs, inputs = linear.shape(tp)
        found[linear.part] += outputs * inputs
        found["bias"] += outputs if linear.bias else 0
    for vector in block.vectors:
        found[vector.part] += vector.width.on(tp)
    return found


def _plain_linears(block: MlpBlock, hidden: int) -> list[Linear]:
    """The matrices of an MLP beside its routed experts, gate and up fused."""
    inputs = 2 if block.gated else 1
    first = "gate_up" if block.gated else "up"
    whole = replicated(hidden)

    def pair(width: int, prefix: str, part: str, bias: bool) -> list[Linear]:
        return [
            Linear(prefix + first, (Width(width, inputs),), whole, bias, part),
            Linear(prefix + "down", (whole,), Width(width), bias, part),
        ]

    if block.kind == "dense":
        return pair(block.intermediate, "", "mlp", block.bias)
    found = [Linear("router", (replicated(block.experts + block.zero_experts),), whole, part="router")]
    if block.latent:  # vLLM holds them whole on every rank
        latent = replicated(block.latent)
        found += [
            Linear("latent_in", (latent,), whole, part="experts"),
            Linear("latent_out", (whole,), latent, part="experts"),
        ]
    return found + (
        pair(block.shared_intermediate, "shared_", "shared_expert", False)
        if block.shared_intermediate
        else []
    )


def _mlp_counts(
    block: MlpBlock, hidden: int, tp: int, moe_tp: int, ep: int, routed: int, tiles: tuple[int, int] = (1, 1)
) -> Counter[str]:
    """Parameters of one MLP layer on one rank; `routed` of the experts are counted before splitting by ep.

    tiles : of these numbers a rank's width of an expert and the hidden size are whole multiples, with padding.
    """
    found: Counter[str] = Counter()
    for linear in _plain_linears(block, hidden):
        outputs, inputs = linear.shape(tp)
        found[linear.part] += outputs * inputs
        found["bias"] += outputs if linear.bias else 0
    if block.kind == "dense":
        return found
    inputs = 2 if block.gated else 1
    experts, width = _split(routed, ep), _split(block.expert_intermediate, moe_tp)
    padded, depth = (-(-size // tile) * tile for size, tile in zip((width, block.latent or hidden), tiles, strict=True))
    found["experts"] += experts * (inputs + 1) * depth * padded
    found["bias"] += experts * (inputs * width + hidden) if block.bias else 0
    found["bias"] += block.experts + block.zero_experts if block.router_bias else 0
    found["router"] += hidden if block.shared_gate else 0
    return found


def _moe_split(tp: int, ep: int, dp: int) -> int:
    """How many ways each expert's width is split: the ranks of the MoE group that EP does not use."""
    return max(1, tp * dp // ep)


def _counts(
    arch: Architecture, tp: int, ep: int, dp: int, *, padded: bool, only_active: bool = False, dense: int = 0,
    tiles: tuple[int, int] = (1, 1),
) -> Counter[str]:  # fmt: skip
    """Parameters by part on the largest rank of the stage `arch` (all ranks are alike but for remainders).

    dense : ranks that split dense MLPs, shared experts and LM head (0: those of `tp`).
    tiles : of experts, as `_mlp_counts` has them.
    """
    counts: Counter[str] = Counter()
    dense = dense or tp
    moe_tp = _moe_split(tp, ep, dp)
    for attention in arch.attention:
        for part, count in _attention_counts(attention, tp).items():
            counts[part] += count * attention.layers
    for mlp in arch.mlp:
        routed = _experts_a_token(mlp) if only_active else mlp.experts + (mlp.copies if ep > 1 else 0)
        for part, count in _mlp_counts(mlp, arch.hidden, dense, moe_tp, ep, routed, tiles).items():
            counts[part] += count * mlp.layers
    norm_width = arch.hidden * (2 if arch.norm_bias else 1)
    final_norms = arch.final_norms if arch.has_lm_head else 0
    counts["norm"] += norm_width * (arch.norms_per_layer * arch.layers + final_norms)
    rows = _padded_vocab(arch) if padded else arch.vocab
    table = _split(rows, tp) * arch.hidden
    if arch.has_embedding:
        counts["embedding"] += table + arch.positions * arch.hidden
        for extra in arch.extras:
            if extra.read or not only_active:
                counts[extra.part] += extra.rows.on(tp) * extra.columns
    if arch.has_lm_head and not (arch.tied_embeddings and arch.has_embedding):
        counts["lm_head"] += _split(rows, dense) * arch.hidden
    if arch.has_lm_head and arch.lm_head_bias:
        counts["bias"] += _split(rows, dense)
    return counts


def _experts_a_token(mlp: MlpBlock) -> int:
    """Experts with weights that a token meets, on average where some have none (evenly chosen: assumed)."""
    return round(mlp.experts_per_token * mlp.experts / max(1, mlp.experts + mlp.zero_experts))


def parameters(arch: Architecture) -> int:
    """Return the number of parameters of the language model, norms, biases and embeddings included.

    Equal to the sum of the checkpoint's tensors, less vision towers and multi-token-prediction layers.
    """
    return _without_towers(_counts(arch, 1, 1, 1, padded=False))


def _without_towers(counts: Counter[str]) -> int:
    return sum(count for part, count in counts.items() if part not in _TOWERS)


def tower_parameters(arch: Architecture) -> int:
    """Return the parameters of the vision tower, which take memory beside those of the language model; 0 for none."""
    return sum(extra.rows.on(1) * extra.columns for extra in arch.extras if extra.part in _TOWERS)


def active_parameters(arch: Architecture) -> int:
    """Return the parameters that take part in one token: all but the experts it is not routed to.

    The input embedding, of which one row is read, is counted only where the LM head shares it. This is the
    rule of the gpt-oss model card (arXiv:2508.10925, table 1); cards that count both tables give
    vocab * hidden more.
    """
    return _without_towers(_active(arch))


def _active(arch: Architecture) -> Counter[str]:
    """Parameters by part that take part in one token, see `active_parameters`."""
    counts = _counts(arch, 1, 1, 1, padded=False, only_active=True)
    if not arch.tied_embeddings and arch.has_embedding:
        del counts["embedding"]
    return counts


def active_bytes(arch: Architecture, weights: Format) -> int:
    """Return the bytes of the weights that one token reads, each part in its own format [bytes]."""
    return _bytes(arch, weights, Counter({part: n for part, n in _active(arch).items() if part not in _TOWERS}))


def format_of_part(arch: Architecture, weights: Format, part: str) -> Format:
    """Return the format in which `part` of the model is held when the model is served in `weights`.

    A checkpoint stored in `weights` says itself what it leaves alone; otherwise the rule of the format holds. A packed file names
    the types of embedding and head (of both where they are one matrix).
    """
    if weights.parts:
        named = dict(weights.parts)
        tied = part == "embedding" and arch.tied_embeddings
        if own_name := named.get("lm_head" if tied else part):
            return format_named(own_name)
    kept = ALWAYS_UNQUANTIZED
    if weights.name == arch.quantization:
        kept = kept | frozenset(arch.unquantized)
    else:
        kept = kept | parts_left_by_format(weights.name, arch)
    plain = weights if weights.name in ("bf16", "fp16", "fp32") else FORMATS[arch.dtype]
    if part in kept:
        return plain
    own = dict(arch.part_formats).get(part) if weights.name == arch.quantization else None
    return FORMATS[own] if own else weights


def _bytes(arch: Architecture, weights: Format, counts: Counter[str]) -> int:
    own_bits = arch.quantization_bits if weights.name == arch.quantization else 0.0
    undivided = _undivided(arch) if weights.parts and not own_bits else {}
    bits = 0.0
    for part, count in counts.items():
        held = format_of_part(arch, weights, part)
        bits += count * (own_bits if own_bits and held is weights else held.bits_per_weight)
        packed = packed_format(held.name) if undivided.get(part) else None
        if packed is not None:
            bits += count * undivided[part] * (packed.of_rows(1).bits_per_weight - packed.bits_per_weight)
    return math.ceil(bits / 8)


def _undivided(arch: Architecture) -> dict[str, float]:
    """Share of the weights of each part in matrices whose rows blocks of a GGUF file do not divide; no parts without any."""
    whole, odd = Counter[str](), Counter[str]()

    def add(part: str, outputs: int, inputs: int) -> None:
        whole[part] += outputs * inputs
        odd[part] += outputs * inputs if inputs % GGUF_SUPERBLOCK else 0

    for attention in arch.attention:
        for linear in attention.linears:
            outputs, inputs = linear.shape(1)
            add(linear.part, attention.layers * outputs, inputs)
    for mlp in arch.mlp:
        for linear in _plain_linears(mlp, arch.hidden):
            outputs, inputs = linear.shape(1)
            add(linear.part, mlp.layers * outputs, inputs)
        if mlp.kind != "dense":
            depth, experts = mlp.latent or arch.hidden, mlp.layers * mlp.experts
            add("experts", experts * (2 if mlp.gated else 1) * mlp.expert_intermediate, depth)
            add("experts", experts * depth, mlp.expert_intermediate)
    for part in ("embedding", "lm_head"):
        add(part, arch.vocab, arch.hidden)
    return {part: odd[part] / whole[part] for part in whole if odd[part]}


def weight_bytes(arch: Architecture, weights: Format) -> int:
    """Return the bytes of all weights once, without padding or replication [bytes]."""
    return _bytes(arch, weights, _counts(arch, 1, 1, 1, padded=False))


def weight_bytes_per_rank(
    arch: Architecture,
    weights: Format,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    expert_parallel: int = 1,
    data_parallel: int = 1,
    dense_parallel: int = 0,
    expert_tiles: tuple[int, int] = (1, 1),
) -> int:
    """Return the bytes of weights on the fullest rank [bytes].

    expert_parallel : ranks over which whole experts are spread; the remaining factor of
        tensor_parallel * data_parallel splits each expert's width.
    data_parallel : ranks that share the experts of a MoE layer though each holds its own attention
        (1 where replicas are independent).
    dense_parallel : ranks that split dense MLPs, shared experts and the LM head (0: the tensor-parallel ranks).
    expert_tiles : multiples to which kernels pad a rank's width of an expert and the hidden size.

    Raises InputError if the model cannot be split so.
    """
    check_parallelism(arch, tensor_parallel, pipeline_parallel, expert_parallel, data_parallel=data_parallel)
    return max(
        _bytes(
            arch,
            weights,
            _counts(
                stage, tensor_parallel, expert_parallel, data_parallel, padded=True, dense=dense_parallel, tiles=expert_tiles
            ),
        )
        for stage in stages(arch, pipeline_parallel)
    )


def layer_weight_bytes_per_rank(
    arch: Architecture, weights: Format, tensor_parallel: int, expert_parallel: int, data_parallel: int
) -> tuple[int, int]:
    """Return the bytes of the layers' weights on one rank, without embedding and head, and those of routed experts among them."""
    counts = _counts(arch, tensor_parallel, expert_parallel, data_parallel, padded=True)
    layers = Counter({part: n for part, n in counts.items() if part not in ("embedding", "lm_head", *_TOWERS)})
    return _bytes(arch, weights, layers), _bytes(arch, weights, Counter(experts=counts["experts"]))


def expert_layer_bytes_per_rank(
    arch: Architecture, weights: Format, tensor_parallel: int, expert_parallel: int, data_parallel: int
) -> int:
    """Return the bytes of one layer's routed experts on one rank [bytes]; 0 for none."""
    layers = sum(block.layers for block in arch.mlp if block.experts)
    held = _counts(arch, tensor_parallel, expert_parallel, data_parallel, padded=True)["experts"]
    return _bytes(arch, weights, Counter(experts=held // layers)) if layers else 0


def expert_bytes(arch: Architecture, weights: Format) -> int:
    """Return the bytes of the routed experts [bytes]."""
    return _bytes(arch, weights, Counter(experts=_counts(arch, 1, 1, 1, padded=True)["experts"]))


def mla_absorbed_bytes_per_rank(
    arch: Architecture, tensor_parallel: int = 1, pipeline_parallel: int = 1
) -> int:
    """Return the bytes of the second copy of MLA's up-projection that absorbed decoding keeps [bytes].

    vLLM derives W_UK^T and W_UV from kv_b_proj after loading, in the model's dtype, beside the original
    (`v1/attention/backends/mla/common.py`, read in a public copy of 2025-10); 0 for models without MLA.
    """

    def stage_bytes(stage: Architecture) -> int:
        found = 0
        for block in stage.attention:
            for linear in block.linears:
                if linear.name == "mla_kv_b":
                    outputs, inputs = linear.shape(tensor_parallel)
                    found += block.layers * outputs * inputs * 2
        return found

    return max(stage_bytes(stage) for stage in stages(arch, pipeline_parallel))


def rotary_table_bytes(arch: Architecture) -> int:
    """Return the bytes of the tables of rotary positions, which each rank holds whole, in the model's dtype [bytes]."""
    return 2 * arch.rotary_values


def pipeline_layers(layers: int, pipeline_parallel: int) -> tuple[int, ...]:
    """Return the layers of each stage; a remainder goes one each to the stages before the last.

    >>> pipeline_layers(61, 4)
    (15, 15, 16, 15)
    """
    base, rest = divmod(layers, pipeline_parallel)
    sizes = [base] * pipeline_parallel
    for i in range(2, rest + 2):
        sizes[-i] += 1
    return tuple(sizes)


def stages(arch: Architecture, pipeline_parallel: int) -> tuple[Architecture, ...]:
    """Return each pipeline stage as an architecture of its own, so that every count applies to it."""
    if pipeline_parallel == 1:
        return (arch,)
    return in_pieces(arch, pipeline_layers(arch.layers, pipeline_parallel))


def in_pieces(arch: Architecture, sizes: Sequence[int]) -> tuple[Architecture, ...]:
    """Return the model cut into pieces of so many layers: the embedding is the first one's, the head the last one's.

    >>> [piece.layers for piece in in_pieces(load_architecture("Llama-3.1-8B"), (12, 20))]
    [12, 20]
    """
    found = []
    start = 0
    for index, size in enumerate(sizes):
        layout = arch.layout[start : start + size]
        start += size
        of_attention = Counter(a for found, _ in layout for a in found)
        of_mlp = Counter(m for _, found in layout for m in found)
        attention_ids, mlp_ids = sorted(of_attention), sorted(of_mlp)
        found.append(
            replace(
                arch,
                layers=size,
                attention=tuple(replace(arch.attention[i], layers=of_attention[i]) for i in attention_ids),
                mlp=tuple(replace(arch.mlp[i], layers=of_mlp[i]) for i in mlp_ids),
                layout=tuple(
                    (tuple(attention_ids.index(a) for a in of_layer), tuple(mlp_ids.index(m) for m in mlps))
                    for of_layer, mlps in layout
                ),
                has_embedding=arch.has_embedding and index == 0,
                has_lm_head=arch.has_lm_head and index == len(sizes) - 1,
            )
        )
    return tuple(found)


def _kv_groups_of(arch: Architecture, kv_format: Format, tp: int) -> list[KvGroup]:
    layers: Counter[tuple[AttentionKind, int]] = Counter()
    bits: Counter[tuple[AttentionKind, int]] = Counter()
    for block in arch.attention:
        if not block.cache:
            continue
        elements = sum(width.on(tp) for width in block.cache)
        besides = block.indexer.bytes_per_entry if block.indexer else 0
        besides += block.wide_bytes if kv_format.bits_per_weight == 8 else 0
        key = (block.kind, block.window_tokens)
        layers[key] += block.layers
        bits[key] += math.ceil(
            block.layers * (elements * kv_format.bits_per_weight + 8 * besides) / block.entry_tokens
        )
    return [
        KvGroup(kind, window, layers[kind, window], -(-bits[kind, window] // 8)) for kind, window in layers
    ]


def kv_groups(
    arch: Architecture, kv_format: Format, tensor_parallel: int = 1, pipeline_parallel: int = 1
) -> list[KvGroup]:
    """Return the KV groups of the pipeline stage that holds the most KV bytes a token.

    K and V of each KV head on the rank (at least one); MLA one latent of kv_lora_rank + qk_rope_head_dim
    values on every rank; an indexer's key besides; of compressed entries a token's share. Layers that read another's cache keep
    none, nor do recurrent ones (`state_bytes_per_sequence`).

    Raises InputError if the format is not one for a KV cache.
    """
    if not kv_format.kv_cache:
        known = ", ".join(f.name for f in FORMATS.values() if f.kv_cache)
        raise InputError(f"'{kv_format.name}' is not a KV cache format", mend=f"use one of {known}")
    found = [_kv_groups_of(stage, kv_format, tensor_parallel) for stage in stages(arch, pipeline_parallel)]
    return max(found, key=lambda groups: sum(g.bytes_per_token_per_rank for g in groups))


def kv_bytes_per_token(
    arch: Architecture, kv_format: Format, tensor_parallel: int = 1, pipeline_parallel: int = 1
) -> int:
    """Return the KV bytes of one token on one rank, over all layers that cache it, windowed or not [bytes].

    2 * layers * kv_heads * head_dim * bytes for plain attention.

    >>> from engine_models.model.formats import format_named
    >>> kv_bytes_per_token(load_architecture("Llama-3.1-8B"), format_named("bf16"))
    131072
    """
    groups = kv_groups(arch, kv_format, tensor_parallel, pipeline_parallel)
    return sum(g.bytes_per_token_per_rank for g in groups)


def state_bytes_per_sequence(arch: Architecture, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> int:
    """Return the bytes that recurrent layers keep of a sequence on one rank, whatever its length [bytes].

    The state in the precision that the config asks for, and the past inputs of convolutions in 16 bit.
    """

    def of_stage(stage: Architecture) -> int:
        return sum(block.layers * state_bytes_of(block, tensor_parallel) for block in stage.attention)

    return max(of_stage(stage) for stage in stages(arch, pipeline_parallel))


def without_towers(arch: Architecture) -> Architecture:
    """Return the language model alone, as an engine may be told to load."""
    return replace(arch, extras=tuple(extra for extra in arch.extras if extra.part not in _TOWERS), tower=None, vision=None)


def with_state_values(arch: Architecture, value_bytes: int) -> Architecture:
    """Return the model with its recurrent states kept in values of `value_bytes`, as an engine may be told to."""
    return replace(
        arch, attention=tuple(replace(b, state_bytes=value_bytes) if b.state else b for b in arch.attention)
    )


def state_pages(arch: Architecture, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> tuple[int, int]:
    """Return how many recurrent layers the stage with the most state has, and the bytes of the largest of them on one rank."""
    stage = max(
        stages(arch, pipeline_parallel),
        key=lambda s: sum(
            b.layers * state_bytes_of(b, tensor_parallel) for b in s.attention if b.kind == "linear"
        ),
    )
    found = [block for block in stage.attention if block.kind == "linear"]
    return sum(block.layers for block in found), max(
        (state_bytes_of(block, tensor_parallel) for block in found), default=0
    )


def state_bytes_of(block: AttentionBlock, tensor_parallel: int = 1) -> int:
    """Return the same of one layer [bytes]."""
    state = sum(width.on(tensor_parallel) for width in block.state)
    return state * block.state_bytes + 2 * sum(width.on(tensor_parallel) for width in block.conv)


def _gemm(linear: Linear, layers: int, tp: int) -> Gemm:
    outputs, inputs = linear.shape(tp)
    return Gemm(linear.name, outputs, inputs, layers, part=linear.part)


def gemm_shapes(arch: Architecture, tensor_parallel: int = 1, expert_parallel: int = 1) -> list[Gemm]:
    """Return the linear layers of one rank of `arch`, QKV and gate/up fused as engines fuse them.

    Routed experts are in `moe_shapes`. With pipeline parallelism call it for each of `stages(arch, pp)`.
    MLA's kv_b is the up-projection of prefill; absorbed decoding multiplies by the same matrix in two parts.
    expert_parallel does not change these layers: routers are replicated and shared experts split by TP.
    """
    del expert_parallel
    tp, hidden = tensor_parallel, arch.hidden
    found = [_gemm(linear, block.layers, tp) for block in arch.attention for linear in block.linears]
    found += [_gemm(linear, mlp.layers, tp) for mlp in arch.mlp for linear in _plain_linears(mlp, hidden)]
    if arch.has_lm_head:
        found.append(
            Gemm("lm_head", _split(_padded_vocab(arch), tp), hidden, 1, per="sequence", part="lm_head")
        )
    return found


def moe_shapes(
    arch: Architecture, tensor_parallel: int = 1, expert_parallel: int = 1, data_parallel: int = 1
) -> list[MoeShape]:
    """Return the routed experts of `arch`, one entry a distinct MoE block (none for a dense model)."""
    moe_tp = _moe_split(tensor_parallel, expert_parallel, data_parallel)
    return [
        MoeShape(
            block.latent or arch.hidden,
            block.expert_intermediate,
            block.experts,
            topk,
            moe_tp,
            expert_parallel,
            block.layers,
            block.gated,
            Deal(group_spread(*choice, expert_parallel), block.copies, block.balanced),
            reached_share(*choice, expert_parallel),
        )
        for block in arch.mlp
        if block.kind == "moe"
        for topk in (_experts_a_token(block),)
        for choice in ((block.experts, topk, block.expert_groups, block.groups_per_token),)
    ]


def _tensor_parallel_fault(arch: Architecture, tp: int, moe_tp: int) -> str | None:
    for block in arch.attention:
        if block.heads % tp:
            return f"{block.heads} attention heads"
        if block.kind in ("full", "sliding") and (
            block.kv_heads % tp if block.kv_heads >= tp else tp % block.kv_heads
        ):
            return f"{block.kv_heads} KV heads"
        if (
            block.kind == "linear"
            and block.kv_heads % tp
            and not (block.mechanism == "Mamba-2" and tp % block.kv_heads == 0)
        ):
            return f"{block.kv_heads} key heads of linear attention"
    for mlp in arch.mlp:
        if mlp.intermediate % tp:
            return f"an MLP of width {mlp.intermediate}"
        if mlp.expert_intermediate % moe_tp:
            return f"experts of width {mlp.expert_intermediate}"
        if mlp.shared_intermediate % tp:
            return f"shared experts of width {mlp.shared_intermediate}"
    if _padded_vocab(arch) % tp:
        return f"a vocabulary of {_padded_vocab(arch)} padded rows"
    return None


FP8_BLOCK = 128
"""Columns of a weight that share a scale in `fp8_block` (DeepSeek-V3 report, arXiv:2412.19437, 3.3.2)."""


def uneven_block_width(
    arch: Architecture,
    weights: Format,
    tensor_parallel: int,
    expert_parallel: int = 1,
    data_parallel: int = 1,
) -> int | None:
    """Width of a rank's share of an expert where blocks of `fp8_block` do not divide it, else None.

    vLLM and SGLang refuse to load such a split ("output_size ... is not divisible by weight quantization block_n").
    """
    if format_of_part(arch, weights, "experts").name != "fp8_block":
        return None
    shapes = moe_shapes(arch, tensor_parallel, expert_parallel, data_parallel)
    widths = [shape.intermediate // shape.tp for shape in shapes if shape.tp > 1]
    return next((width for width in widths if width % FP8_BLOCK), None)


def tensor_parallel_sizes(arch: Architecture, at_most: int = 64) -> list[int]:
    """Return the tensor-parallel sizes up to `at_most` that the heads and widths of the model allow."""
    return [tp for tp in range(1, at_most + 1) if _tensor_parallel_fault(arch, tp, tp) is None]


def check_parallelism(
    arch: Architecture,
    tensor_parallel: int,
    pipeline_parallel: int = 1,
    expert_parallel: int = 1,
    *,
    data_parallel: int = 1,
    where: str | None = None,
) -> None:
    """Raise InputError, with the valid sizes, if the model cannot be split so.

    Query heads and MLP widths must divide by TP; KV heads must divide by TP or TP by them (replication);
    stages may not outnumber layers; EP needs experts, at most one rank each, and must divide the ranks of
    the MoE group or be a multiple of them. where : place of the tensor-parallel size; the others stand beside it.
    """
    sizes = {
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "expert_parallel": expert_parallel,
        "data_parallel": data_parallel,
    }
    for key, size in sizes.items():
        if size < 1:
            raise InputError(f"{key} is {size}", where=where, mend=f"give {key} a whole number from 1")

    def beside(key: str) -> str | None:
        return (
            where.removesuffix("tensor_parallel") + key
            if where and where.endswith(".tensor_parallel")
            else where
        )

    if pipeline_parallel > arch.layers:
        raise InputError(
            f"pipeline_parallel {pipeline_parallel} exceeds the {arch.layers} layers of {arch.name}",
            where=beside("pipeline_parallel"),
            mend=f"use at most {arch.layers} stages",
        )
    if expert_parallel > 1:
        experts = [m.experts for m in arch.mlp if m.kind == "moe"]
        if not experts:
            raise InputError(
                f"expert_parallel {expert_parallel} for {arch.name}, which has no experts",
                where=beside("expert_parallel"),
                mend="leave expert_parallel out for a dense model",
            )
        if expert_parallel > min(experts):
            raise InputError(
                f"expert_parallel {expert_parallel} exceeds the {min(experts)} experts of {arch.name}",
                where=beside("expert_parallel"),
                mend=f"use at most {min(experts)}",
            )
        ranks = tensor_parallel * data_parallel
        if ranks % expert_parallel and expert_parallel % ranks:
            raise InputError(
                f"expert_parallel {expert_parallel} does not fit {ranks} ranks (tensor x data parallel)",
                where=beside("expert_parallel"),
                mend=f"use 1 or {ranks}, or a divisor of {ranks}",
            )
    moe_tp = _moe_split(tensor_parallel, expert_parallel, data_parallel)
    fault = _tensor_parallel_fault(arch, tensor_parallel, moe_tp)
    if fault:
        sizes_that_do = tensor_parallel_sizes(arch)
        if tensor_parallel in sizes_that_do:  # it is the ranks that share the experts
            raise InputError(
                f"{tensor_parallel} x {data_parallel} ranks (tensor x data parallel) do not divide {fault} of {arch.name}",
                where=beside("data_parallel"),
                mend="give a data_parallel that does, or expert_parallel, which keeps experts whole",
            )
        raise InputError(
            f"tensor_parallel {tensor_parallel} does not divide {fault} of {arch.name}",
            where=where,
            mend=f"use one of {', '.join(map(str, sizes_that_do))}",
        )
