"""Vision towers by their ``vision_config``, as plain vision transformers: parameters, memory, and the shape of an encoding.

A tower runs once an image, before the language model. How many patches it makes one token of stands in the config under several
names; where it stands nowhere, the tower counts as memory alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.model.blocks import Extra, Tower, Vision, Width
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


def _patches(config: Mapping[str, Any], outer: Mapping[str, Any]) -> int | None:
    """Patches that become one token, by the tower's config or the model's; None where neither says it."""
    for keys in (config, outer):
        merge, kernel = keys.get("spatial_merge_size"), keys.get("merge_kernel_size")
        if isinstance(merge, int) and 0 < merge < 100:
            return merge * merge
        if isinstance(kernel, list) and len(kernel) == 2 and all(isinstance(side, int) and 0 < side < 100 for side in kernel):
            return int(kernel[0] * kernel[1])
        pool = keys.get("pooling_kernel_size")
        if isinstance(pool, int) and 0 < pool < 100:
            return pool * pool
        for key in ("pixel_shuffle_ratio", "downsample_ratio"):
            ratio = keys.get(key)
            if isinstance(ratio, float) and 0.01 < ratio <= 1:
                return round(1 / ratio**2)
    tokens, tile = outer.get("mm_tokens_per_image") or outer.get("image_seq_length"), _tile(config)
    return tile // tokens if tile and isinstance(tokens, int) and 0 < tokens <= tile else None


def _side(config: Mapping[str, Any]) -> int:
    """Pixels of a patch's side."""
    side = config.get("patch_size")
    return side if isinstance(side, int) and 0 < side < 1000 else 0


def _tile(config: Mapping[str, Any]) -> int:
    """Patches of the one size of image that a tower takes; 0 where it takes any."""
    size, side = config.get("image_size"), _side(config)
    merges = {"spatial_merge_size", "temporal_patch_size"} & set(config)
    return (size // side) ** 2 if isinstance(size, int) and side and not merges else 0


WINDOW_PIXELS = 112
"""Side of a window of Qwen2.5-VL's tower unless its config states one. kind: datasheet (its `config.json`)."""


def encoder(config: Mapping[str, Any], outer: Mapping[str, Any]) -> Vision | None:
    """The layers of a tower, of a model with this `outer` config; None where the two do not tell them."""
    width, layers, heads, side = (_number(config, "hidden"), _number(config, "layers"), _number(config, "heads"), _side(config))
    patches = _patches(config, outer)
    if width is None or layers is None or heads is None or not side or patches is None:
        return None
    blocks, window = config.get("fullatt_block_indexes"), config.get("window_size", WINDOW_PIXELS)
    whole = blocks if isinstance(blocks, list) and isinstance(window, int) else []
    return Vision(
        layers=layers,
        width=width,
        heads=heads,
        inner=_inner(config, width),
        gated=str(config.get("hidden_act", "")) == "silu",
        inputs=_inputs(config),
        patches=patches,
        pixels=patches * side * side,
        window_patches=(window // side) ** 2 if whole else 0,
        whole_layers=len(whole) if whole else layers,
        tile_patches=_tile(config) if "spatial_merge_size" not in outer else 0,
        joins=_mergers(config),
    )


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
