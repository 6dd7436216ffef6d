"""Drafts of MLX LM's server: a second model, beside which it serves requests one by one.

Source: `mlx_lm/server.py` lines 343 to 353 and 1751, `mlx_lm/generate.py` lines 515 to 525 at d78bf58e (2026-08).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.cost.draft_methods import WHERE, chains_only
from engine_models.cost.drafting import Speculation
from engine_models.declaration import PoolRequest
from engine_models.model.blocks import Architecture
from hardware_profiles.errors import InputError

N_DRAFTS = 3
"""Drafts of a step where nobody says (datasheet: `--num-draft-tokens`)."""
PADDING = 1024
"""Rows by which tables of one tokeniser may differ; the server looks at the tokenisers only, and warns (assumed: 128 to 512 are
seen)."""


def draft_settings(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of drafts: by a second model, `N_DRAFTS` of them unless they say otherwise."""
    checked = chains_only("MLX LM", ("draft_model",))(settings, arch, flags)
    default = {"method": "draft_model", "num_speculative_tokens": int(flags.get("num_draft_tokens", N_DRAFTS))}
    return {**default, "vocab_difference": PADDING} | checked


def drafts_of(request: PoolRequest) -> Speculation | None:
    """The drafts of a server; None where it makes none.

    Raises InputError for models whose caches cannot be cut back, as the server does, and beside a quantized KV cache.
    """
    drafts = request.speculation
    if drafts is None or drafts.draft is None:
        return None
    for arch in (request.arch, drafts.draft):
        if any(block.kind == "linear" or block.window_tokens for block in arch.attention):
            raise InputError(
                f"MLX LM drafts with caches that can be cut only: {arch.name} has windows or states",
                where=WHERE,
                mend="use models all of whose layers keep their context, or remove speculative",
            )
    if request.formats.kv_cache.family:
        raise InputError(
            "MLX LM's drafts beside a quantized KV cache are not simulated",
            where="deployment.kv_cache",
            mend="leave kv_cache (--kv-bits) or speculative out",
        )
    return replace(drafts, apart=0)


__all__ = ["draft_settings", "drafts_of"]
