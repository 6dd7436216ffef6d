"""Drafts of MLX LM's server: a second model, beside which it serves requests one by one.

Source: `mlx_lm/server.py` lines 343 to 353 and 1751, `mlx_lm/generate.py` lines 515 to 525 at d78bf58e (2026-08).
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.draft_methods import WHERE
from engine_models.cost.drafting import Speculation
from engine_models.declaration import PoolRequest
from hardware_profiles.errors import InputError


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


__all__ = ["drafts_of"]
