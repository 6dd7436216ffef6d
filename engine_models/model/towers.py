"""Memory of vision towers: parameters counted from ``vision_config`` as those of a plain vision transformer.

Towers run once an image, before the language model; requests are text here, so that only their memory counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.model.blocks import Extra, Tower, Width
from engine_models.model.config import MOST

_KEYS = {
    "hidden": ("hidden_size", "vt_hidden_size", "embed_dim", "width"),
    "layers": ("num_hidden_layers", "vt_num_hidden_layers", "depth", "layers", "num_layers"),
    "intermediate": ("intermediate_size", "vt_intermediate_size", "mlp_dim"),
    "heads": ("num_attention_heads", "vt_num_attention_heads", "num_heads", "heads"),
}


def _number(config: Mapping[str, Any], what: str) -> int | None:
    for key in _KEYS[what]:
        value = config.get(key)
        if isinstance(value, int) and 0 < value <= MOST:
            return value
    return None


def _inner(config: Mapping[str, Any], width: int) -> int:
    ratio = config.get("mlp_ratio", 4)
    factor = ratio if isinstance(ratio, int | float) and 0 < ratio < 100 else 4
    return _number(config, "intermediate") or int(width * factor)


def _inputs(config: Mapping[str, Any]) -> int:
    """Values of a patch: three colours, of several frames where they are patched together."""
    patch, frames = config.get("patch_size", 14), config.get("temporal_patch_size", 1)
    side = patch if isinstance(patch, int) and 0 < patch < 1000 else 14
    return 3 * side * side * (frames if isinstance(frames, int) else 1)


def _merged(config: Mapping[str, Any]) -> int:
    """Patches that become one token."""
    merge = config.get("spatial_merge_size", 1)
    return merge * merge if isinstance(merge, int) and 0 < merge < 100 else 1


IMAGE_TOKENS, VIDEO_PAIRS = 16384, 7
"""Tokens of the largest image: 12,845,056 pixels in squares of 28 (Qwen2-VL, Qwen2.5-VL), 16,777,216 in squares of 32 (Qwen3-VL,
Qwen3.5); of Qwen2.5-VL a video has 14 frames of that size. kind: datasheet (their ``preprocessor_config.json``, vLLM's
`qwen2_vl.py`; "a budget of 16384 tokens" in its start-up)."""


def running(config: Mapping[str, Any], image_tokens: int | None) -> Tower | None:
    """What a tower holds while it runs, if it takes images of any size, as those do that merge patches of several frames (Qwen-VL
    since its second, Qwen3.5), or makes so many `image_tokens` of each (Gemma 3); None else."""
    width, size, side = _number(config, "hidden"), config.get("image_size"), config.get("patch_size")
    if width is None:
        return None
    gated = str(config.get("hidden_act", "")) == "silu"
    inner = _inner(config, width) * (3 if gated else 2)
    if {"spatial_merge_size", "temporal_patch_size"} <= set(config):
        pairs = VIDEO_PAIRS if "fullatt_block_indexes" in config else 1
        return Tower(width, inner, _inputs(config), _merged(config), IMAGE_TOKENS, pairs, _mergers(config))
    if image_tokens and isinstance(size, int) and isinstance(side, int) and side > 0:
        return Tower(width, inner, _inputs(config), -(-((size // side) ** 2) // image_tokens), image_tokens)
    return None


def _mergers(config: Mapping[str, Any]) -> int:
    """Joins of merged patches: one, and one for each layer whose output goes to the language model too."""
    deeper = config.get("deepstack_visual_indexes")
    return 1 + (len(deeper) if isinstance(deeper, list) else 0)


def _plain(config: Mapping[str, Any], width: int, layers: int, hidden: int) -> int:
    """Parameters of a plain vision transformer and of its projector to a width of `hidden`.

    A layer is four matrices of the tower's width and an MLP of two (three where gated); the projector joins merged patches
    through an MLP of their own width.
    """
    gated = str(config.get("hidden_act", "")) == "silu"
    merged = width * _merged(config)
    projector = _mergers(config) * (merged * (merged if merged > width else 0) + merged * hidden)
    blocks = layers * (4 * width * width + (3 if gated else 2) * width * _inner(config, width))
    return blocks + _inputs(config) * width + projector


_GLM = ("glm4v", "glm_ocr")
"""Beginnings of `model_type` of towers that merge patches by a convolution."""


def _glm(config: Mapping[str, Any], width: int, layers: int, hidden: int) -> int:
    """Parameters of GLM-4V's and GLM-OCR's towers: gated MLPs, patches merged by a convolution, then a gated MLP.

    Source: transformers 5.24, `modeling_glm4v.py` (whose layers are as wide as the output) and `modeling_glm_ocr.py`.
    """
    given = config.get("out_hidden_size")
    out = given if isinstance(given, int) else hidden
    ocr = str(config.get("model_type")).startswith("glm_ocr")
    inner, joined = (_inner(config, width), 3 * out) if ocr else (out, _inner(config, width))
    blocks = layers * (4 * width * width + 3 * width * inner)
    return blocks + _inputs(config) * width + _merged(config) * width * out + out * out + 3 * out * joined


def vision_tower(config: Mapping[str, Any], hidden: int) -> Extra | None:
    """Weights of the tower and of its projector to a language model of width `hidden`; None where the config lacks its shape."""
    width, layers = _number(config, "hidden"), _number(config, "layers")
    if width is None or layers is None:
        return None
    count = _glm if str(config.get("model_type")).startswith(_GLM) else _plain
    heads = _number(config, "heads") or 1
    return Extra("vision tower", "vision", Width(heads, -(-count(config, width, layers, hidden) // heads)))
