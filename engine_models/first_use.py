"""What servers of engines compile when they have started whose experts are computed by one kernel of Triton's."""

from __future__ import annotations

from engine_models.cost.first_use import FirstUse
from engine_models.declaration import PoolRequest

GRID = (16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
"""Tokens for which vLLM and SGLang tune tiles (datasheet: the keys of their `configs/E=...json`); each is taken to have tiles of
its own (assumed: of Mixtral's on H100 4,096 and 1,024 share theirs, 3,072 and 1,536 too)."""
FORMATS = ("bf16", "fp16", "fp8", "fp8_block", "int8")
"""Formats of weights whose experts are this kernel's (`fused_moe_kernel` of both); others have kernels of their own."""


def first_use_of(
    request: PoolRequest,
    captured_tokens: int,
    tried: tuple[int, ...],
    *,
    kind_s: float,
    more: int = 0,
    second_s: float = 0.0,
) -> FirstUse:
    """What a fresh server waits for whose experts are computed by that kernel, whose graphs of prompts hold `captured_tokens`.

    `tried` are tokens of the steps that start-up runs, `more` the lists of rows that the engine pads beside those of the experts;
    the others are those of `FirstUse`.
    """
    arch = request.arch
    if not arch.has_experts or request.formats.weights.name not in FORMATS:
        return FirstUse(second_s=second_s)
    layer = next(block for block in arch.mlp if block.kind == "moe")
    lists = layer.experts + more
    return FirstUse(GRID, lists, layer.experts_per_token, captured_tokens, tried, kind_s, second_s)


__all__ = ["first_use_of"]
