"""What a decoder-only transformer is made of: attention and MLP blocks, and the model they add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AttentionKind = Literal["full", "sliding", "mla", "linear"]
MlpKind = Literal["dense", "moe"]
QkNorm = Literal["none", "head", "full"]


@dataclass(frozen=True)
class AttentionBlock:
    """Attention layers of one shape.

    kind : "full" (KV for every token), "sliding" (the last `window_tokens`; chunked local attention too),
        "mla" (one shared latent a token), "linear" (a state of fixed size a sequence).
    layers : how many layers of the model have this shape.
    heads, kv_heads : query heads and KV heads ("linear": value heads and key heads).
    head_dim, v_head_dim : width of a query/key head and of a value head.
    window_tokens : 0 for no window.
    chunked : the window starts anew every `window_tokens` (Llama 4) instead of sliding.
    qkv_bias, out_bias : biases of the projections.
    qk_norm : weights of the query and key norms: none, one head wide, or all heads wide.
    sinks : one learned sink logit a head.
    output_gate : the query projection also yields a gate of the same width.
    q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim : MLA only; q_lora_rank 0 = direct query.
    conv_kernel : "linear" only, taps of the short convolution (0 none).
    """

    kind: AttentionKind
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window_tokens: int = 0
    chunked: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QkNorm = "none"
    sinks: bool = False
    output_gate: bool = False
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    conv_kernel: int = 0


@dataclass(frozen=True)
class MlpBlock:
    """MLP layers of one shape.

    intermediate : width of a dense MLP (0 in a MoE layer).
    gated : two input projections (SwiGLU, GeGLU) instead of one.
    experts, experts_per_token, expert_intermediate : routed experts of a MoE layer.
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
    shared_intermediate: int = 0
    shared_gate: bool = False
    bias: bool = False
    router_bias: bool = False
    router_fp32: bool = False


@dataclass(frozen=True)
class Architecture:
    """A decoder-only language model, or one pipeline stage of it.

    name : what the user called it.  model_type : of the Hugging Face config.
    hidden, layers, vocab : widths and depth.
    attention, mlp : the distinct blocks; `layout` gives, layer by layer, the index of each.
    max_context_tokens : prompt and output together.
    dtype : "bf16" or "fp16", of everything that is not quantized.
    quantization : the format the checkpoint is stored in, or None; `quantization_bits` its bits per weight
        where the checkpoint's group size differs from the format's usual one (0: the usual one).
    unquantized : parts that the checkpoint keeps in `dtype` though quantization is set: "attention",
        "linear_attention", "mlp", "experts", "shared_expert" (embeddings, LM head, routers, norms and biases
        always stay).
    norms_per_layer, norm_bias, final_norms : hidden-wide norms; final_norms counts those outside the layers.
    positions : rows of a learned position table, 0 for rotary or ALiBi.
    lm_head_bias : the LM head has a bias.
    has_embedding, has_lm_head : false in the middle stages of a pipeline.

    Language-model weights only: vision towers and multi-token-prediction layers are not part of it.
    """

    name: str
    hidden: int
    layers: int
    vocab: int
    tied_embeddings: bool
    attention: tuple[AttentionBlock, ...]
    mlp: tuple[MlpBlock, ...]
    layout: tuple[tuple[int, int], ...]
    max_context_tokens: int
    dtype: str = "bf16"
    quantization: str | None = None
    quantization_bits: float = 0.0
    unquantized: tuple[str, ...] = ()
    norms_per_layer: int = 2
    norm_bias: bool = False
    final_norms: int = 1
    positions: int = 0
    lm_head_bias: bool = False
    model_type: str = ""
    has_embedding: bool = True
    has_lm_head: bool = True

    def windows_below(self, tokens: int) -> tuple[int, ...]:
        """Sliding windows shorter than a context of `tokens`, each once, by rising length."""
        return tuple(sorted({b.window_tokens for b in self.attention if 0 < b.window_tokens < tokens}))

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
    if format_name == "nvfp4" and any(block.kind == "mla" for block in arch.attention):
        return frozenset({"attention"})
    return frozenset()
