"""What a model is made of, in a line each for people."""

from __future__ import annotations

from engine_models.model.blocks import Architecture, AttentionBlock, MlpBlock


def mixers_in_words(arch: Architecture) -> str:
    """The token mixers by kind: how many layers, heads and KV heads, windows, what is compressed, chosen or not kept."""
    return "; ".join(_mixer(block) for block in arch.attention)


def _mixer(block: AttentionBlock) -> str:
    if block.kind == "linear":
        return f"{block.layers} x linear ({block.mechanism}) {block.heads}/{block.kv_heads} heads of {block.head_dim}"
    said = f"{block.layers} x {block.kind} {block.heads}/{block.kv_heads} heads of {block.head_dim}"
    if block.window_tokens:
        said += f", window {block.window_tokens}"
    if block.entry_tokens > 1:
        said += f", one entry for {block.entry_tokens} tokens"
    if block.indexer is not None:
        said += f", the {block.indexer.topk_tokens} best of an indexer"
    return said if block.cache else f"{said}, reads the KV of others"


def mlps_in_words(arch: Architecture) -> str:
    """The MLPs by kind: how many layers, widths, experts."""
    return "; ".join(_mlp(block) for block in arch.mlp)


def _mlp(block: MlpBlock) -> str:
    if block.kind == "dense":
        return f"{block.layers} x dense {block.intermediate}" + ("" if block.gated else ", not gated")
    said = f"{block.layers} x {block.experts} experts of {block.expert_intermediate}, {block.experts_per_token} a token"
    if block.zero_experts:
        said += f" of these and {block.zero_experts} without weights"
    if block.latent:
        said += f" in a latent of {block.latent}"
    if block.shared_intermediate:
        said += f", shared {block.shared_intermediate}"
    return said if block.gated else f"{said}, not gated"
