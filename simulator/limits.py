"""Which requests an engine refuses for their length, and how long the answers of the others may grow.

Both engines' servers answer 400 to a prompt that leaves no room for one token, and to a request whose prompt and asked-for limit
together exceed the context; without a limit the answer is cut where the context ends (vLLM 0.13 ``OpenAIServing``; SGLang 0.5
``TokenizerManager._validate_one_request``). SGLang's scheduler keeps one row within R = min(context, KV cache) - 1 tokens: it
refuses prompts of R - 5 or more and cuts every answer at R - prompt - 1 (``Scheduler.init_req_max_new_tokens``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan
from hardware_profiles.errors import InputError

if TYPE_CHECKING:
    from simulator.workload.columns import Workload

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SGLANG_SPARE_TOKENS = 5
"""Tokens that SGLang's scheduler keeps free behind a prompt (``max_req_input_len``; datasheet: SGLang 0.5 source, 2025)."""


@dataclass(frozen=True)
class Limits:
    """Per request: the length of its answer, whether that is its known limit, and why it is refused or cut.

    `too_long`: the prompt leaves no room; `asked_too_much`: prompt and asked-for limit exceed the context; `never_fits`: the KV
    cache of a replica is smaller than the request; `cut`: the answer ends where the context (or SGLang's KV cache) ends.
    """

    output_tokens: IntArray
    stop_known: BoolArray
    too_long: BoolArray
    asked_too_much: BoolArray
    never_fits: BoolArray
    cut: BoolArray

    @property
    def refused(self) -> BoolArray:
        """Requests that the engine does not take."""
        return self.too_long | self.asked_too_much | self.never_fits


def limits(
    prompt_tokens: IntArray, output_tokens: IntArray, max_output_tokens: IntArray, plan: EnginePlan
) -> Limits:
    """Return what `plan` makes of requests; `max_output_tokens` is 0 or less where the client asked for no limit."""
    context, capacity = plan.rules.max_model_len, plan.tokens_held()
    room = context - prompt_tokens
    too_long = room <= 0
    given = max_output_tokens > 0
    asked_too_much = given & (max_output_tokens > room) & ~too_long
    if plan.engine == "sglang":
        row_tokens = min(context, capacity) - 1
        too_long |= prompt_tokens >= row_tokens - SGLANG_SPARE_TOKENS
        room = row_tokens - prompt_tokens - 1
    room = np.maximum(room, 1)
    limit = np.where(given, np.minimum(max_output_tokens, room), room)
    output = np.minimum(output_tokens, limit)
    held = prompt_tokens + output
    drafts = plan.speculation
    if drafts is not None:  # a row's last step may still hold slots of drafts that come to nothing
        held = np.minimum(held + drafts.tokens + drafts.lookahead_tokens, context)
    never_fits = ~too_long & ~asked_too_much & (held > capacity + 1)
    wanted = np.where(given, np.minimum(output_tokens, max_output_tokens), output_tokens)
    cut = ~too_long & ~asked_too_much & ~never_fits & (wanted > room)
    return Limits(output, output >= limit, too_long, asked_too_much, never_fits, cut)


def refusals(found: Limits, rows: BoolArray, plan: EnginePlan) -> list[str]:
    """Return, for each reason that refuses some of `rows`, how many and why."""
    context = f"{plan.rules.max_model_len} tokens"
    reasons = (
        (found.too_long, f"prompt longer than the context of {context}"),
        (found.asked_too_much, f"prompt and max_output_tokens together longer than the context of {context}"),
        (found.never_fits, f"longer than the KV cache of a replica, {plan.tokens_held()} tokens"),
    )
    counted = [(int((mask & rows).sum()), why) for mask, why in reasons]
    return [
        f"{count:,} {'request' if count == 1 else 'requests'} refused: {why}"
        for count, why in counted
        if count
    ]


def cuts(found: Limits, rows: BoolArray, plan: EnginePlan) -> list[str]:
    """Return how many of `rows` are cut short; nothing if none is."""
    count = int((found.cut & rows).sum())
    if not count:
        return []
    one = count == 1
    return [
        f"{count:,} {'answer' if one else 'answers'} cut where the context of {plan.rules.max_model_len} tokens ends: "
        f"{'it counts' if one else 'they count'} as completed, with fewer tokens than the workload asks"
    ]


def all_refused(requests: int, plan: EnginePlan, workload: Workload | None = None) -> InputError:
    """The error of a run of which no request is taken; with the workload it says why."""
    why = f"every request is longer than the context of {plan.rules.max_model_len} tokens or than the KV cache"
    mend = "shorten the prompts, raise max_model_len, or use a model with a longer context"
    if workload is not None:
        found = limits(workload.prompt_tokens, workload.output_tokens, workload.max_output_tokens, plan)
        reasons = refusals(found, np.ones(len(workload), bool), plan)
        why = "; ".join(reasons) if len(reasons) > 1 else reasons[0].partition("refused: ")[2]
        if found.asked_too_much.any():
            mend += "; without max_output_tokens answers are cut at the context instead"
    return InputError(f"all {requests} requests are refused: {why}", where="workload.prompt_tokens", mend=mend)
