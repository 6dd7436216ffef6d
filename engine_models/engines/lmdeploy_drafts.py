"""Speculative decoding in LMDeploy's PyTorch engine: which drafters it takes, and over how many ranks they are split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.cost.draft_methods import chains_only
from engine_models.model.blocks import Architecture

SPLIT_DRAFTERS = ("qwen3_5", "hy_v3", "hunyuan", "glm_moe_dsa")
"""Types of models whose own draft layers are split over ranks (datasheet: `config_builder.py` there)."""


def draft_settings(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of drafts; each rank has the whole drafter, but for the layers of few families (`_build_draft_dist_ctx`)."""
    found = chains_only("LMDeploy", ("eagle3", "eagle", "mtp"))(settings, arch, flags)
    method = str(found.get("method") or "eagle3")
    split = method.endswith("mtp") and arch.model_type.startswith(SPLIT_DRAFTERS)
    return {"method": method} | found | ({} if split else {"draft_tensor_parallel_size": 1})
