"""The words on requests that an engine refuses or cuts short for their length (`engine_models.lengths`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine_models.declaration import Limits
from engine_models.lengths import BoolArray, Lengths, judged
from hardware_profiles.errors import InputError

if TYPE_CHECKING:
    from simulator.workload.columns import Workload


def refusals(found: Lengths, rows: BoolArray, limits: Limits) -> list[str]:
    """Return, for each reason that refuses some of `rows`, how many and why."""
    context = f"{limits.context_tokens} tokens"
    reasons = (
        (found.too_long, f"prompt longer than the context of {context}"),
        (found.asked_too_much, f"prompt and max_output_tokens together longer than the context of {context}"),
        (found.never_fits, f"longer than the KV cache of a replica, {limits.kv_tokens} tokens"),
    )
    counted = [(int((mask & rows).sum()), why) for mask, why in reasons]
    return [
        f"{count:,} {'request' if count == 1 else 'requests'} refused: {why}"
        for count, why in counted
        if count
    ]


def cuts(found: Lengths, rows: BoolArray, limits: Limits) -> list[str]:
    """Return how many of `rows` are cut short; nothing if none is."""
    count = int((found.cut & rows).sum())
    if not count:
        return []
    one = count == 1
    return [
        f"{count:,} {'answer' if one else 'answers'} cut where the context of {limits.context_tokens} tokens ends: "
        f"{'it counts' if one else 'they count'} as completed, with fewer tokens than the workload asks"
    ]


def all_refused(requests: int, limits: Limits, workload: Workload | None = None) -> InputError:
    """The error of a run of which no request is taken; with the workload it says why."""
    why = f"every request is longer than the context of {limits.context_tokens} tokens or than the KV cache"
    mend = "shorten the prompts, raise max_model_len, or use a model with a longer context"
    if workload is not None:
        found = judged(workload.prompt_tokens, workload.output_tokens, workload.max_output_tokens, limits)
        reasons = refusals(found, np.ones(len(workload), bool), limits)
        why = "; ".join(reasons) if len(reasons) > 1 else reasons[0].partition("refused: ")[2]
        if found.asked_too_much.any():
            mend += "; without max_output_tokens answers are cut at the context instead"
    return InputError(
        f"all {requests} requests are refused: {why}", where="workload.prompt_tokens", mend=mend
    )
