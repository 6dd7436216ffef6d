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


def any_size(config: Mapping[str, Any]) -> Tower | None:
    """What a tower holds of each patch, if it takes images of any size, as those do that merge patches of several frames (Qwen-VL
    since its second, Qwen3.5); None else."""
    width = _number(config, "hidden")
    if width is None or not {"spatial_merge_size", "temporal_patch_size"} <= set(config):
        return None
    return Tower(width, _inner(config, width), _inputs(config), _merged(config))


def vision_tower(config: Mapping[str, Any], hidden: int) -> Extra | None:
    """Weights of the tower and of its projector to a language model of width `hidden`; None where the config lacks its shape.

    A layer is four matrices of the tower's width and an MLP of two (three where gated); the projector joins merged patches
    through an MLP of their own width.
    """
    width, layers = _number(config, "hidden"), _number(config, "layers")
    if width is None or layers is None:
        return None
    inner = _inner(config, width)
    gated = str(config.get("hidden_act", "")) == "silu"
    embedding = _inputs(config) * width
    merged = width * _merged(config)
    projector = merged * (merged if merged > width else 0) + merged * hidden
    total = layers * (4 * width * width + (3 if gated else 2) * width * inner) + embedding + projector
    return Extra(
        "vision tower",
        "vision",
        Width(_number(config, "heads") or 1, -(-total // (_number(config, "heads") or 1))),
    )
