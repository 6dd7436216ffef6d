"""Drafts of ExLlamaV2 behind TabbyAPI: a second model on the same device.

Source: `exllamav2/generator/dynamic.py` of 0.3.2 (lines 252, 338 to 352), `common/config_models.py` of TabbyAPI at d2d87bb9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.cost.draft_methods import WHERE, chains_only
from engine_models.cost.drafting import Speculation, summary_note
from engine_models.declaration import PoolRequest
from engine_models.engines.exllamav2_flags import CACHES
from engine_models.model.blocks import Architecture
from engine_models.model.formats import format_named
from hardware_profiles.errors import InputError

N_DRAFTS, MOST = 4, 8
"""Drafts of a row and iteration where nobody says, and the most there may be (datasheet: `num_draft_tokens`, `max_q_size`)."""
PADDING = 1024
"""Rows by which tables of one tokeniser may differ; the generator does not compare them (assumed: 128 to 512 are seen)."""


def draft_settings(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of drafts: by a second model, `N_DRAFTS` of them unless they say otherwise."""
    checked = chains_only("ExLlamaV2", ("draft_model",))(settings, arch, flags)
    default = {"method": "draft_model", "num_speculative_tokens": int(flags.get("draft_num_tokens", N_DRAFTS))}
    return {**default, "vocab_difference": PADDING} | checked


def drafts_of(request: PoolRequest) -> Speculation | None:
    """The drafts of a server, with the format of their own cache, None without; InputError for what it does not serve."""
    drafts = request.speculation
    if drafts is None or drafts.draft is None:
        return None
    if drafts.tokens > MOST:
        raise InputError(
            f"ExLlamaV2 verifies at most {MOST} drafts of a row, not {drafts.tokens}",
            where=f"{WHERE}.num_speculative_tokens",
            mend=f"give at most {MOST}",
        )
    if request.tensor_parallel > 1:
        raise InputError(
            "drafts beside tensor parallelism are not simulated for ExLlamaV2",
            where=WHERE,
            mend="use one GPU, or remove speculative",
        )
    kv = format_named(CACHES[str(request.flags.get("draft_cache_mode", "FP16"))])
    return replace(drafts, apart=1, formats=replace(drafts.formats, kv_cache=kv))


def notes_of(drafts: Speculation | None) -> tuple[str, ...]:
    """What is assumed of them."""
    if drafts is None:
        return ()
    return (
        summary_note(drafts),
        *drafts.notes,
        f"an iteration makes {drafts.tokens + 1} passes of the drafter for all rows that generate, and verifies; the server ends "
        f"an answer {drafts.tokens} tokens short of max_tokens, which is left to the workload; read from the source, compared "
        "with no recording",
    )


__all__ = ["draft_settings", "drafts_of", "notes_of"]
