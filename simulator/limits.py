"""The words on requests that an engine refuses or cuts short for their length (`engine_models.lengths`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engine_models.declaration import Limits
from engine_models.lengths import BoolArray, Lengths
from hardware_profiles.errors import InputError

KEPT_BACK_TOKENS = 16
"""Engines keep up to so many tokens of the context for an answer; where they keep more, prompts have a limit of their own."""


def counted_lengths(found: Lengths, rows: BoolArray) -> dict[str, int]:
    """How many of `rows` are refused or cut short for their length, by why."""
    why = ("too_long", "asked_too_much", "never_fits", "cut")
    masks = (found.too_long, found.asked_too_much, found.never_fits, found.cut)
    return {name: int((mask & rows).sum()) for name, mask in zip(why, masks, strict=True)}


def _tokens(values: Iterable[int]) -> str:
    """Numbers of tokens, one where all are equal."""
    return f"{' or '.join(map(str, dict.fromkeys(values)))} tokens"


def _flags(pools: Sequence[Limits]) -> str:
    """The flags that bound prompts below the context; empty where the context does."""
    return " or ".join(dict.fromkeys(limits.prompt_by for limits in pools if limits.prompt_by))


def refusals(counted: Mapping[str, int], pools: Sequence[Limits]) -> list[str]:
    """Return, for each reason that refuses requests, how many and why; `counted` as by `counted_lengths`, limits by pool."""
    context = _tokens(limits.context_tokens for limits in pools)
    bound = f"the context of {context}"
    if any(limits.context_tokens - limits.prompt_tokens > KEPT_BACK_TOKENS for limits in pools):
        bound = f"the {_tokens(limits.prompt_tokens for limits in pools)} that a prompt may have"
        bound += f" ({_flags(pools)})" if _flags(pools) else ""
    reasons = {
        "too_long": f"prompt longer than {bound}",
        "asked_too_much": f"prompt and max_output_tokens together longer than the context of {context}",
        "never_fits": f"longer than the KV cache of a replica, {_tokens(limits.held_tokens for limits in pools)}",
    }
    return [
        f"{count:,} {'request' if count == 1 else 'requests'} refused: {why}"
        for name, why in reasons.items()
        if (count := counted[name])
    ]


def cuts(counted: Mapping[str, int], pools: Sequence[Limits]) -> list[str]:
    """Return how many requests are cut short; nothing if none is."""
    count = counted["cut"]
    if not count:
        return []
    one, ends = count == 1, f"the context of {_tokens(limits.context_tokens for limits in pools)} ends"
    answers = [limits.answer_tokens for limits in pools if limits.answer_tokens is not None]
    if answers:
        ends += f", or after {_tokens(answers)} where no limit is asked for"
    return [
        f"{count:,} {'answer' if one else 'answers'} cut where {ends}: "
        f"{'it counts' if one else 'they count'} as completed, with fewer tokens than the workload asks"
    ]


def all_refused(requests: int, counted: Mapping[str, int], pools: Sequence[Limits]) -> InputError:
    """The error of a run of which no request is taken."""
    reasons = refusals(counted, pools)
    why = "; ".join(reasons) if len(reasons) > 1 else reasons[0].partition("refused: ")[2]
    mend = "shorten the prompts, or use a model with a longer context (or a higher limit of it, where a flag sets one)"
    if counted["too_long"] and _flags(pools):
        mend = f"shorten the prompts, or raise {_flags(pools)}"
    if counted["asked_too_much"]:
        mend += "; without max_output_tokens answers are cut at the context instead"
    return InputError(
        f"all {requests} requests are refused: {why}", where="workload.prompt_tokens", mend=mend
    )
