"""What a decoder-only language model is made of.

A layer is token mixers (attention, or a recurrence with a state of fixed size) and MLPs; either may be absent or come twice.
Every mixer says itself which matrices it multiplies by, what it keeps of a token and what of a sequence, so that parameters,
memory and products are counted without knowing its family.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from hardware_profiles.records import dataclass

AttentionKind = Literal["full", "sliding", "mla", "linear"]
MlpKind = Literal["dense", "moe"]
QkNorm = Literal["none", "head", "full"]
Layer = tuple[tuple[int, ...], tuple[int, ...]]
"""Indices of a layer's mixers and of its MLPs among those of the model."""


@dataclass(frozen=True)
class Width:
    """`units` of `size` values each. Ranks split the units and hold at least one: a single unit is on every rank."""

    units: int
    size: int = 1

    def on(self, ranks: int) -> int:
        """Values on one of `ranks`."""
        return -(-self.units // ranks) * self.size


def replicated(size: int) -> Width:
    """A width that every rank holds whole."""
    return Width(1, size)


@dataclass(frozen=True)
class Linear:
    """Weight matrices that one kernel multiplies by: their outputs side by side, from one input.

    bias : one value an output.  part : what it belongs to, for its number format.
    """

    name: str
    outputs: tuple[Width, ...]
    inputs: Width
    bias: bool = False
    part: str = "attention"

    def shape(self, ranks: int) -> tuple[int, int]:
        """Outputs and inputs on one of `ranks`."""
        return sum(width.on(ranks) for width in self.outputs), self.inputs.on(ranks)


@dataclass(frozen=True)
class Vector:
    """Parameters that are no matrix of a product: a norm, a convolution, a bias."""

    width: Width
    part: str = "norm"


@dataclass(frozen=True)
class Indexer:
    """Chooses the tokens that an attention layer reads, by small keys of its own.

    heads, head_dim : of its queries.  topk_tokens : at most so many cache entries are attended to.
    bytes_per_entry : of its key in the cache, whatever the format of the KV cache.
    """

    heads: int
    head_dim: int
    topk_tokens: int
    bytes_per_entry: int


@dataclass(frozen=True)
class AttentionBlock:
    """Token mixers of one shape.

    kind : "full" (KV for every token), "sliding" (the last `window_tokens`; chunked local attention too),
        "mla" (one shared latent a token), "linear" (a state of fixed size a sequence).
    layers : how many of the model have this shape.
    heads, kv_heads : query heads and KV heads ("linear": value heads and key heads).
    head_dim, v_head_dim : width of a query/key head and of a value head.
    mechanism : which recurrence, for words ("linear" only).
    window_tokens : 0 for no window.
    chunked : the window starts anew every `window_tokens` (Llama 4) instead of sliding.
    entry_tokens : tokens that share one entry of the cache (compressed attention), 1 for none.
    qk_norm : norms of queries and keys: none, one head wide, or all heads wide.
    sinks : one learned sink logit a head.
    linears, vectors : its parameters.
    cache : values kept of an entry; empty where another layer's are read, or none are kept.
    wide_bytes : what an entry of an 8-bit cache takes beyond a byte a value: a rotary part in 16 bit, scales.
    state, state_bytes : values of the recurrent state of a sequence and bytes of each; conv : past inputs of its convolution.
    """

    kind: AttentionKind
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    mechanism: str = ""
    window_tokens: int = 0
    chunked: bool = False
    entry_tokens: int = 1
    qk_norm: QkNorm = "none"
    sinks: bool = False
    indexer: Indexer | None = None
    linears: tuple[Linear, ...] = ()
    vectors: tuple[Vector, ...] = ()
    cache: tuple[Width, ...] = ()
    wide_bytes: int = 0
    state: tuple[Width, ...] = ()
    state_bytes: int = 2
    conv: tuple[Width, ...] = ()

    @property
    def sparse(self) -> bool:
        """Whether it reads a choice of the cache, or one that is compressed."""
        return self.indexer is not None or self.entry_tokens > 1


@dataclass(frozen=True)
class MlpBlock:
    """MLPs of one shape.

    intermediate : width of a dense MLP (0 in a MoE layer).
    gated : two input projections (SwiGLU, GeGLU) instead of one.
    experts, experts_per_token, expert_intermediate : routed experts of a MoE layer.
    copies : of experts, that ranks which share them hold besides. balanced : a balancer places them all by their popularity.
    zero_experts : experts without weights that the router may choose as well.
    expert_groups, groups_per_token : equal parts of the experts, and of how many of them a token may take its experts.
    latent : width that tokens are projected to before the experts and back from after, 0 for none.
    shared_intermediate : total width of the shared experts, 0 for none.
    shared_gate : the shared experts' output is gated by a hidden -> 1 projection.
    bias : biases of the projections.  router_bias : one bias an expert in the router.
    router_fp32 : engines compute the router in float32, outside the tensor cores.
    """

    kind: MlpKind
    layers: int
    intermediate: int
    gated: bool = True
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    zero_experts: int = 0
    copies: int = 0
    balanced: bool = False
    expert_groups: int = 1
    groups_per_token: int = 1
    latent: int = 0
    shared_intermediate: int = 0
    shared_gate: bool = False
    bias: bool = False
    router_bias: bool = False
    router_fp32: bool = False


@dataclass(frozen=True)
class Extra:
    """Parameters beside the layers, which the first stage of a pipeline holds: tables, towers.

    read : they take part in every token (a table of which one row is read does not).
    """

    name: str
    part: str
    rows: Width
    columns: int = 1
    read: bool = True


@dataclass(frozen=True)
class Tower:
    """A vision tower while it runs.

    width, inner, inputs : values of a patch in its layers, its MLP (all that live together) and its input.
    patches : that become one token of the language model.
    tokens : of the largest image. pairs : of frames of that size in the longest video that engines profile.
    outputs : times the language model's width that a token leaves.
    """

    width: int
    inner: int
    inputs: int
    patches: int
    tokens: int
    pairs: int = 1
    outputs: int = 1


@dataclass(frozen=True)
class Vision:
    """The layers of a vision tower, as a plain vision transformer, and what joins its patches to tokens.

    layers, width, heads, inner : of the transformer; gated : its MLP has three matrices, not two.
    inputs : values of a patch. patches : that become one token; pixels : of an image that a token stands for.
    window_patches : those that a layer attends among, but for `whole_layers` of them, which see the image (0: all layers are).
    tile_patches : images are cut in tiles of so many patches, which see nothing of each other (0: they are not).
    joins : MLPs that join patches, as wide as the patches together.
    """

    layers: int
    width: int
    heads: int
    inner: int
    gated: bool
    inputs: int
    patches: int
    pixels: int
    window_patches: int = 0
    whole_layers: int = 0
    tile_patches: int = 0
    joins: int = 1


@dataclass(frozen=True)
class Architecture:
    """A decoder-only language model, or one pipeline stage of it.

    name : what the user called it.  model_type : of the Hugging Face config.
    hidden, layers, vocab : widths and depth.
    attention, mlp : the distinct blocks; `layout` gives, layer by layer, the indices of each.
    max_context_tokens : prompt and output together.
    dtype : "bf16" or "fp16", of everything that is not quantized.
    quantization : the format the checkpoint is stored in, or None; `quantization_bits` its bits per weight
        where the checkpoint's group size differs from the format's usual one (0: the usual one).
    unquantized : parts that the checkpoint keeps in `dtype` though quantization is set: "attention",
        "linear_attention", "mlp", "experts", "shared_expert" (embeddings, LM head, routers, norms and biases
        always stay).
    part_formats : parts that the checkpoint stores in another format than `quantization`.
    kv_quantization : the format in which the checkpoint wants its KV cache, or None.
    norms_per_layer, norm_bias, final_norms : hidden-wide norms; final_norms counts those outside the layers.
    summed_once : mixer and MLP of a layer stand side by side, and ranks exchange the sum of both (Falcon).
    positions : rows of a learned position table, 0 for rotary or ALiBi.
    rotary_values : of the tables of rotary positions, see :mod:`engine_models.model.rotary`.
    lm_head_bias : the LM head has a bias.
    extras : tables and towers; parts "vision" and "audio" are memory only and no parameters of the language model.
    tower : what its vision tower holds while it runs, where that is known.
    vision : its vision tower's layers, where the config says how many patches become a token.
    vision_shape : layers and width of its vision tower as the config's `num_hidden_layers` and `hidden_size` say, 0 for a missing
        key; None without a tower.
    assumed : in words, what of the config was not read or not known.
    has_embedding, has_lm_head : false in the middle stages of a pipeline.

    Multi-token-prediction layers are not part of it.
    """

    name: str
    hidden: int
    layers: int
    vocab: int
    tied_embeddings: bool
    attention: tuple[AttentionBlock, ...]
    mlp: tuple[MlpBlock, ...]
    layout: tuple[Layer, ...]
    max_context_tokens: int
    dtype: str = "bf16"
    quantization: str | None = None
    quantization_bits: float = 0.0
    unquantized: tuple[str, ...] = ()
    part_formats: tuple[tuple[str, str], ...] = ()
    kv_quantization: str | None = None
    norms_per_layer: int = 2
    norm_bias: bool = False
    final_norms: int = 1
    summed_once: bool = False
    positions: int = 0
    rotary_values: int = 0
    lm_head_bias: bool = False
    extras: tuple[Extra, ...] = ()
    tower: Tower | None = None
    vision: Vision | None = None
    vision_shape: tuple[int, int] | None = None
    model_type: str = ""
    assumed: tuple[str, ...] = field(default=(), compare=False)
    has_embedding: bool = True
    has_lm_head: bool = True

    def windows_below(self, tokens: int) -> tuple[int, ...]:
        """Sliding windows shorter than a context of `tokens`, each once, by rising length."""
        return tuple(sorted({b.window_tokens for b in self.attention if 0 < b.window_tokens < tokens}))

    @property
    def kv_format(self) -> str:
        """Format in which engines keep the KV cache unless told otherwise: compressed entries in FP8, all else in the model's."""
        return "fp8" if self.compresses else self.dtype

    @property
    def family(self) -> str:
        """`model_type` whether or not the language model is part of one that sees and hears: without its ``_text``."""
        return self.model_type.removesuffix("_text")

    def has(self, kind: AttentionKind) -> bool:
        """Whether any layer mixes tokens by that kind of attention or recurrence."""
        return any(block.kind == kind for block in self.attention)

    @property
    def compresses(self) -> bool:
        """Whether layers keep one entry of several tokens."""
        return any(block.entry_tokens > 1 for block in self.attention)

    @property
    def has_experts(self) -> bool:
        """Whether any layer chooses among experts."""
        return any(block.kind == "moe" for block in self.mlp)


def parts_left_by_format(format_name: str, arch: Architecture) -> frozenset[str]:
    """Return the parts that stay in the model's dtype when a format is applied to a checkpoint without it.

    mxfp4: engines implement it for experts only (gpt-oss model card, 2025-08).
    nvfp4: NVIDIA's checkpoints of MLA models leave attention alone (nvidia/DeepSeek-V3-0324-NVFP4,
    hf_quant_config.json, ModelOpt 0.27.0: every ``self_attn*`` excluded).
    """
    if format_name == "mxfp4" and arch.has_experts:
        return frozenset({"attention", "linear_attention", "mlp", "shared_expert"})
    if format_name == "nvfp4" and arch.has("mla"):
        return frozenset({"attention"})
    return frozenset()
