"""Drafts of a llama-server: which it makes, what their caches are kept in, and what is said of them.

Source: llama.cpp at 0c1e57098 (2026: `common/speculative.cpp`, `common/common.h`, `tools/server/server-context.cpp`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.cost.draft_methods import WHERE, chains_only
from engine_models.cost.drafting import Speculation, summary_note
from engine_models.declaration import PoolRequest
from engine_models.engines.llama_cpp_flags import DRAFT_TYPES, KV_TYPES, N_MAX
from engine_models.model.blocks import Architecture
from engine_models.model.formats import format_named
from engine_models.schedulers.slots import SlotRules
from engine_models.schedulers.slots_drafted import DraftRules
from hardware_profiles.errors import InputError

VOCAB_DIFFERENCE = 128
"""Tokens by which two vocabularies may differ (datasheet: `SPEC_VOCAB_MAX_SIZE_DIFFERENCE` of `common/speculative.cpp`)."""
_ARGS = "deployment.engine_args"


def draft_settings(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of drafts: by a second model unless they say otherwise, `N_MAX` of them."""
    checked = chains_only("llama.cpp", tuple(DRAFT_TYPES.values()))(settings, arch, flags)
    default = {"num_speculative_tokens": int(flags.get("spec_draft_n_max", N_MAX)), "vocab_difference": VOCAB_DIFFERENCE}
    return default | checked


def drafts_of(request: PoolRequest, slots: int, n_batch: int) -> Speculation | None:
    """The drafts of a server, with the format of their own cache; None where it makes none.

    Raises InputError for models whose caches cannot be cut back, and for batches that a server's drafts do not fit in.
    """
    drafts, flags = request.speculation, request.flags
    if drafts is None or drafts.draft is None:
        return None
    for arch in (request.arch, drafts.draft):
        if drafts.method == "draft_model" and any(block.kind == "linear" for block in arch.attention):
            raise InputError(
                f"{arch.name} keeps states, which llama.cpp restores and computes again after drafts that are rejected: that is "
                "simulated for the model's own layer (mtp) and for EAGLE-3 only, whose drafts keep a state each",
                where=f"{WHERE}.model",
                mend="use method: mtp or eagle3, or models all of whose layers keep their context",
            )
    if n_batch < slots * drafts.row_tokens:
        raise InputError(
            f"{slots} slots verify {slots * drafts.row_tokens} tokens at once, more than a batch of {n_batch}: llama-server then "
            "fails all that runs",
            where=f"{_ARGS}.batch_size",
            mend=f"give at least {slots * drafts.row_tokens}, or fewer drafts (num_speculative_tokens)",
        )
    keys, values = flags.get("spec_draft_type_k", "f16"), flags.get("spec_draft_type_v", "f16")
    if keys != values:
        raise InputError(
            f"a drafter's keys in {keys} and values in {values} are not simulated",
            where=f"{_ARGS}.spec_draft_type_v",
            mend="give both the same type",
        )
    kv = format_named(KV_TYPES[keys], where=f"{_ARGS}.spec_draft_type_k")
    return replace(drafts, formats=replace(drafts.formats, kv_cache=kv))


def rules_of(drafts: Speculation, flags: Mapping[str, Any]) -> DraftRules:
    """How its slots draft. Heads make all passes, and what a slot has no room for is cut (`common_speculative_draft`)."""
    return DraftRules(drafts.tokens, int(flags.get("spec_draft_n_min", 0)), passes_whole=drafts.method != "draft_model")


def notes_of(drafts: Speculation | None, rules: SlotRules) -> tuple[str, ...]:
    """What is assumed of them."""
    if drafts is None:
        return ()
    sampled = "; the host samples them, 0.1 ms each (assumed)" if drafts.method == "draft_model" else ""
    return (
        summary_note(drafts),
        *drafts.notes,
        f"an iteration makes {drafts.tokens} passes of the drafter for all generating slots together, verifies their drafts in "
        f"one batch, and has the drafter compute the batch again{sampled}; read from the source, compared with no recording",
    )


__all__ = ["draft_settings", "drafts_of", "notes_of", "rules_of"]
