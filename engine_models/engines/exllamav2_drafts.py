"""Drafts of ExLlamaV2 behind TabbyAPI: a second model on the same device.

Source: `exllamav2/generator/dynamic.py` of 0.3.2 (lines 252, 338 to 352), `common/config_models.py` of TabbyAPI at d2d87bb9.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.draft_methods import WHERE
from engine_models.cost.drafting import Speculation, summary_note
from engine_models.declaration import PoolRequest
from engine_models.engines.exllamav2_flags import CACHES, MOST_DRAFTS
from engine_models.model.formats import format_named
from hardware_profiles.errors import InputError


def drafts_of(request: PoolRequest) -> Speculation | None:
    """The drafts of a server, with the format of their own cache, None without; InputError for what it does not serve."""
    drafts = request.speculation
    if drafts is None or drafts.draft is None:
        return None
    if drafts.tokens > MOST_DRAFTS:
        raise InputError(
            f"ExLlamaV2 verifies at most {MOST_DRAFTS} drafts of a row, not {drafts.tokens}",
            where=f"{WHERE}.num_speculative_tokens",
            mend=f"give at most {MOST_DRAFTS}",
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


__all__ = ["drafts_of", "notes_of"]
