"""What TGI's launcher decides before a server starts: attention, prefix cache, chunks, and the tokens of a prefill; its versions.

Source: the repository at db931fcf (2026-01): `launcher/src/main.rs`, `models/globals.py`.
"""

from __future__ import annotations

from typing import Any

from engine_models.declaration import PoolRequest
from engine_models.engines.tgi_flags import BLOCK_TOKENS
from engine_models.model.blocks import Architecture
from engine_models.refusals import no_layers, no_pascal
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

VERSIONS: dict[str, dict[str, Any]] = {
    "3.3.6": {},
    "3.0.0": {"recorded": False},
    "2.4.1": {
        "chunked_prefill": False,
        "prefix_caching": False,
        "attention": "paged",
        "reserved_answer_tokens": None,
        "waiting_served_ratio": 1.2,
        "max_input_tokens": 1024,
        "max_total_tokens": 2048,
        "max_batch_prefill_tokens": 4096,
    },
}
"""The newest first; of each older one what differs from the next newer. Source: as the module, and `backends/v2/src` there."""


def refuse(request: PoolRequest) -> None:
    """Raise InputError for what TGI does not serve."""
    no_pascal(request, "TGI")
    lacks = f"TGI has no model with recurrent, indexed or compressed layers such as {request.arch.name}"
    no_layers(request, ("linear", "sparse"), lacks)
    if request.structured and request.flags.get("disable_grammar_support"):
        raise InputError(
            "TGI refuses requests with grammars when told so",
            where="deployment.engine_args.disable_grammar_support",
            mend="remove it, or workload.structured_output",
        )


@dataclass(frozen=True)
class Version:
    """What differs between versions; the defaults are those of the newest.

    `chunked_prefill`, `prefix_caching` : whether it has them; `attention` : "" where hardware and model decide.
    `reserved_answer_tokens` : see `LifetimeRules`. Of the token limits None is what hardware and model give.
    `recorded` : whether its scheduling was compared with recordings.
    """

    name: str
    recorded: bool = True
    chunked_prefill: bool = True
    prefix_caching: bool = True
    attention: str = ""
    reserved_answer_tokens: int | None = 1024
    waiting_served_ratio: float = 0.3
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_batch_prefill_tokens: int | None = None


PREFILL_TOKENS = 4096
PREFILL_TOKENS_BY_MODEL = {"qwen2_vl": 10_000, "qwen2_5_vl": 10_000, "gemma3": 8000}
LEAST_PREFILL_TOKENS = 100
LAUNCHER_WIGGLE_ROOM = 0.95
PREFILL_TFLOPS = {
    "h200": 989,
    "h100": 900,
    "a100": 312,
    "l40s": 363,
    "a40": 149,
    "a10g": 125,
    "l4": 121,
    "rtx-4090": 82,
}
"""What the launcher makes the default prefill budget of: dense FP16 rate by card [TFLOP/s] (datasheet: as above). Of other cards
it knows no rate, and takes `PREFILL_TOKENS`; it takes a budget below `LEAST_PREFILL_TOKENS` for an error."""

FLASHINFER_HEAD_DIMS = (64, 128, 256)
FALLBACK_MODELS = ("falcon", "deepseek_v2")
"""Models to which flashinfer is not applied whatever their heads (datasheet: `resolve_attention` in the launcher, 2026-01)."""


@dataclass(frozen=True)
class Serving:
    """How attention is computed and prompts are cut, on some hardware."""

    attention: str
    prefix_caching: bool
    chunked_prefill: bool

    @property
    def block_tokens(self) -> int:
        """Tokens of a page."""
        return BLOCK_TOKENS[self.attention]


def serving_of(request: PoolRequest, version: Version) -> Serving:
    """Attention, prefix cache and chunks by the launcher's rules, unless flags say otherwise."""
    flags, arch = request.flags, request.arch
    attention = version.attention
    caching, chunked = version.prefix_caching, version.chunked_prefill
    if not attention and request.device_vendor == "amd":  # as its container image sets it
        attention, caching, chunked = "paged", False, False
    elif not attention:
        heads = arch.attention[0]
        attention = "flashinfer"
        if heads.kind == "mla" or heads.head_dim not in FLASHINFER_HEAD_DIMS:
            attention, caching = "flashdecoding", False
        elif arch.model_type in FALLBACK_MODELS:
            attention = "flashdecoding"
    attention = str(flags.get("attention") or attention)
    if request.speculation is not None:
        if flags.get("prefill_chunking"):
            raise InputError(
                "TGI does not cut prompts into chunks where it drafts",
                where="deployment.engine_args.prefill_chunking",
                mend="leave it out, or leave drafts (speculate) out",
            )
        chunked = False
    asked = flags.get("prefix_caching")
    if asked and (attention == "paged" or not version.prefix_caching):
        raise InputError(
            f"TGI {version.name} has no prefix cache with {attention} attention",
            where="deployment.engine_args.prefix_caching",
            mend="leave it out, or use attention: flashinfer with version 3",
        )
    if asked and request.lora is not None:
        raise InputError(
            "TGI has no prefix cache with LoRA adapters",
            where="deployment.engine_args.prefix_caching",
            mend="leave it out",
        )
    caching = attention != "paged" and request.lora is None and bool(caching if asked is None else asked)
    chunked = attention != "paged" and chunked and bool(flags.get("prefill_chunking", True))
    return Serving(attention, caching, chunked)


def default_prefill_tokens(request: PoolRequest, version: Version) -> int:
    """The launcher's `max_batch_prefill_tokens`: what the card computes in a second of the model, within context and memory."""
    if version.max_batch_prefill_tokens is not None:
        return version.max_batch_prefill_tokens
    arch = request.arch
    tokens = PREFILL_TOKENS_BY_MODEL.get(arch.model_type, PREFILL_TOKENS)
    rate = next((r for card, r in PREFILL_TFLOPS.items() if _is_card(request.device_name, card)), 0)
    optimal = int(rate * 1e12 * request.tensor_parallel / _token_flop(arch))
    if optimal > LEAST_PREFILL_TOKENS:
        tokens = optimal
    tokens = min(tokens, arch.max_context_tokens)
    if rate and arch.quantization is None:
        fraction = float(request.flags.get("cuda_memory_fraction", 1.0)) * LAUNCHER_WIGGLE_ROOM
        room = int(request.device_memory_bytes * request.tensor_parallel * fraction) - _model_bytes(arch)
        if room > 0:
            tokens = min(tokens, room // _token_bytes(arch))
    return max(1, tokens)


def _is_card(device_name: str, card: str) -> bool:
    return device_name == card or device_name.startswith(f"{card}-")


def _token_flop(arch: Architecture) -> int:
    """Floating-point operations of a token, as the launcher counts them; sizes are those of the first layer."""
    heads, mlp, hidden = arch.attention[0], arch.mlp[-1], arch.hidden
    width = mlp.experts_per_token * mlp.expert_intermediate + mlp.shared_intermediate if mlp.experts else mlp.intermediate
    attention = 2 * hidden * heads.head_dim * (3 * heads.heads + 2 * heads.kv_heads)
    return arch.layers * (attention + 2 * 3 * hidden * width)


def _token_bytes(arch: Architecture) -> int:
    """Bytes of a token, as the launcher counts them: keys and values of all layers, and the inner part of an MLP."""
    heads, mlp = arch.attention[0], arch.mlp[-1]
    width = mlp.expert_intermediate if mlp.experts else mlp.intermediate
    return heads.kv_heads * 2 * heads.head_dim * 2 * arch.layers + (width + width // 2) * max(mlp.experts, 1) * 2 * 3


def _model_bytes(arch: Architecture) -> int:
    """Bytes of the weights, as the launcher counts them."""
    heads, mlp, hidden = arch.attention[0], arch.mlp[-1], arch.hidden
    width = mlp.expert_intermediate if mlp.experts else mlp.intermediate
    attention = (heads.heads + 2 * heads.kv_heads) * heads.head_dim + heads.heads * heads.head_dim * hidden
    layer = 3 * width * max(mlp.experts, 1) * hidden + attention
    return 2 * (layer * arch.layers + 2 * hidden * arch.vocab)


__all__ = ["VERSIONS", "Serving", "Version", "default_prefill_tokens", "refuse", "serving_of"]
