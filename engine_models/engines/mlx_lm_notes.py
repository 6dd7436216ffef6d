"""What is said of a pool of MLX LM: its turns, its drafts, what is assumed."""

from __future__ import annotations

from engine_models.cost.drafting import Speculation, summary_note
from engine_models.schedulers.polled_turns import TurnRules


def notes_of(
    rules: TurnRules, copies: int, uncut_from: int | None, answer: int, drafts: Speculation | None
) -> tuple[str, ...]:
    """Notes by the rules, the prompts that are kept, from how many tokens on they are found whole only, and the usual limit."""
    chunk = rules.prefill_step_size
    kept = f"; {copies:,} prompts are kept as whole copies" + (
        f", those of {uncut_from:,} tokens or more are found whole or not at all" if uncut_from else ""
    )
    why = "any quantized KV cache" if drafts is None else "drafts"
    turns = (
        f"MLX LM: one request at a time, as with {why}, prompts in calls of up to {chunk:,} tokens"
        if rules.alone
        else f"MLX LM: {rules.decode_concurrency:,} rows decode, {rules.prompt_concurrency:,} prompts of up to {chunk:,} tokens "
        "a call are in work, padded to the longest"
    )
    if drafts is not None:
        besides = "requests wait until the one before has ended"
    elif rules.alone:
        besides = (
            "attention over a quantized KV cache reads it by two products in place of one kernel, in 16 bits up to where "
            "it pays; that of prompts is priced as over 16 bits (assumed)"
        )
    else:
        besides = f"new requests are taken in every {rules.time_budget_s:g} s while others are served"
    return (
        turns + kept,
        *_of_drafts(drafts),
        f"{besides}; an answer without a limit ends after {answer:,} tokens (max_tokens)",
        "MLX LM does not look at memory or at the context: here longer requests are refused, and a run that needs more "
        "memory than the device lets the GPU use ends with an error, where macOS would swap or end the server",
        "what a chat shares with others before text of its own is taken for its system prompt; MLX LM's host times (50 us a "
        "row, 2 ms a request) are assumed, nobody measured them",
    )


def _of_drafts(drafts: Speculation | None) -> tuple[str, ...]:
    if drafts is None:
        return ()
    return (
        summary_note(drafts),
        *drafts.notes,
        f"a step makes {drafts.tokens} passes of the drafter and verifies; a first pass that has two tokens, where all drafts "
        "were accepted, is priced as of one; read from the source, compared with no recording",
    )


__all__ = ["notes_of"]
