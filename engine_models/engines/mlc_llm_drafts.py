"""Drafts of MLC-LLM: how many there are for how many rows, and how many rows run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.cost.draft_methods import WHERE
from engine_models.cost.drafting import Speculation, summary_note
from engine_models.declaration import PoolRequest
from engine_models.engines.mlc_llm_flags import AUTOMATIC, TREES
from engine_models.schedulers.hybrid_prefill_drafted import drafts_for
from hardware_profiles.errors import InputError


def drafts_in(request: PoolRequest, flags: Mapping[str, Any]) -> Speculation | None:
    """Drafts of a pool by all its flags with their defaults; None where it makes none.

    Raises InputError where their number cannot go by the rows, and where flags contradict what the pool asks for.
    """
    if request.speculation is None:
        return None
    _refuse_contradictions(request.flags, flags, request.speculation.tokens)
    drafts, length = replace(request.speculation, by_host=True), flags["spec_draft_length"]
    if length or (length is None and flags["speculative_mode"] != "small_draft"):
        return drafts
    most = AUTOMATIC[0][1]
    if drafts.method != "draft_model" or drafts.tokens != most:
        raise InputError(
            f"MLC-LLM chooses the number of drafts by itself for a small model only, and then makes {most} at most",
            where=f"{WHERE}.num_speculative_tokens",
            mend=f"give {most}, with acceptance for as many, or a spec_draft_length",
        )
    return replace(drafts, lengths=AUTOMATIC)


def _refuse_contradictions(given: Mapping[str, Any], flags: Mapping[str, Any], tokens: int) -> None:
    """InputError where flags deny the `tokens` drafts that the pool asks for; `flags` are those `given`, with all others."""
    where = "deployment.engine_args"
    if given.get("speculative_mode") == "disable":
        raise InputError(
            "flag `speculative_mode` (disable) contradicts the pool's key `speculative`",
            where=f"{where}.speculative_mode",
            mend="remove one of the two",
        )
    if flags["spec_tree_width"] > 1:
        raise InputError(TREES, where=f"{where}.spec_tree_width", mend="leave spec_tree_width out")
    length = flags["spec_draft_length"]
    if length and length != tokens:
        raise InputError(
            f"flag `spec_draft_length` ({length}) contradicts the pool's key `speculative` (num_speculative_tokens: {tokens})",
            where=f"{where}.spec_draft_length",
            mend="remove one of the two",
        )


def rows_served(drafts: Speculation | None, rows: int, chunk: int) -> int:
    """Requests that run at once, each of which counts for the tokens that it verifies, where their number is fixed."""
    if drafts is None or drafts.lengths:
        return rows
    served = min(rows, chunk) // drafts.row_tokens
    if not served:
        raise InputError(
            f"MLC-LLM lets nobody in: a row that verifies {drafts.row_tokens} tokens counts for as many of the {rows} rows",
            where="deployment.engine_args.max_num_sequence",
            mend=f"give at least {drafts.row_tokens} rows for each request at once (mode: server, or max_num_sequence)",
        )
    return served


def notes_of(drafts: Speculation | None, rows: int, served: int) -> tuple[str, ...]:
    """What is said of them."""
    if drafts is None:
        return ()
    counted = f"a row counts for the {drafts.row_tokens} tokens that it verifies: of {rows:,} rows {served:,} run"
    return (summary_note(drafts), *drafts.notes, _by_rows(rows) if drafts.lengths else counted)


def _by_rows(rows: int) -> str:
    """How many drafts there are for how many rows."""
    drafting = [number for number in range(1, rows + 1) if drafts_for(number, AUTOMATIC, rows)]
    if not drafting:
        return f"no drafts are ever made: {AUTOMATIC[0][1]} and the token before them are more tokens than the {rows} rows"
    told = ", ".join(f"{number} below {below}" for below, number in AUTOMATIC)
    return (
        f"drafts by the number of rows: {told}, none above, nor where they and the tokens before them are more than {rows:,}; "
        "what the drafter lags behind after steps without drafts is not priced"
    )


__all__ = ["drafts_in", "notes_of", "rows_served"]
