"""Tables of cosines and sines that a model's rotary positions are read from: memory beside its weights, whole on every rank.

Counted as vLLM and SGLang make them (`layers/rotary_embedding/`, the same classes in both, 2026-11): a row for each position that
the config names, two values for each pair of a head's turned dimensions; positions that are scaled by a factor (linear, dynamic)
have as many times the rows, YaRN's the factor times the original ones, and those in three sections (images) four times as many.
Compared with what vLLM 0.19 loaded beside the parameters: Llama-4-Scout 2.5 GiB (10,485,760 positions), Gemma-3 of 4 and 12 B
0.56, Llama-3.1 0.03.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.model.config import ConfigReader

SECTION_ROWS = 4
"""Rows a position where it has three coordinates (`mrope.py`)."""
_SCALED = ("linear", "dynamic")


def table_values(read: ConfigReader, context: int) -> int:
    """Values of a model's tables.

    read : its config; context : tokens that it is served with, of which a stretched one is the factor's share.
    """
    scaling = read.raw("rope_scaling", "rope_parameters")
    found = [scaling] if isinstance(scaling, Mapping) else [{}]
    if isinstance(scaling, Mapping) and any(isinstance(value, Mapping) for value in scaling.values()):
        found = [value for value in scaling.values() if isinstance(value, Mapping)]
    elif read.raw("rope_local_base_freq") is not None:
        found.append({})  # that of windows
    return _turned(read) * sum(_rows(each, read.count("context", context)) for each in found)


def _rows(scaling: Mapping[str, Any], positions: int) -> int:
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    stretch = factor if isinstance(factor, int | float) and 1 < factor < 1e6 else 1
    original = scaling.get("original_max_position_embeddings")
    original = original if isinstance(original, int) and 0 < original < positions * 1e6 else None
    if kind in ("yarn", "deepseek_yarn"):
        return int((original or positions) * stretch)
    if kind in ("longrope", "su"):
        return positions + (original or 0)
    if "mrope_section" in scaling:
        return SECTION_ROWS * positions
    return int(positions * stretch) if kind in _SCALED else positions


def _turned(read: ConfigReader) -> int:
    """Dimensions of a head that are turned, 0 where the config does not tell."""
    latent = read.raw("qk_rope_head_dim")
    if isinstance(latent, int):
        return latent
    heads = read.raw("num_attention_heads", "n_head", "n_heads", "num_heads")
    wide = read.raw("head_dim", "kv_channels", "attention_head_dim")
    if not isinstance(wide, int):
        wide = read.count("hidden") // heads if isinstance(heads, int) and heads > 0 else 0
    share = read.raw("partial_rotary_factor", "rotary_pct", "rope_pct")
    return int(wide * share) if isinstance(share, int | float) and 0 < share < 1 else wide
