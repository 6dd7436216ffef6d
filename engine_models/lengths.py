"""Which requests an engine refuses or cuts short for their length.

Prompts that leave no room are refused whatever the client asks for. Servers also refuse where prompt and asked-for limit together
exceed the context; without a limit the answer is cut where a row has to end (vLLM 0.13 ``OpenAIServing``; SGLang 0.5
``TokenizerManager._validate_one_request``). What an engine keeps back within its context is in its `Limits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import Limits
from hardware_profiles.records import dataclass

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Lengths:
    """Per request: the length of its answer, whether that is its known limit, and why it is refused or cut.

    `too_long`: the prompt leaves no room; `asked_too_much`: prompt and asked-for limit exceed the context; `never_fits`: the KV
    cache of a replica is smaller than the request; `cut`: the answer ends where a row has to end.
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

    def columns(self) -> tuple[NDArray[Any], ...]:
        """The arrays, in order."""
        return self.output_tokens, self.stop_known, self.too_long, self.asked_too_much, self.never_fits, self.cut

    def follow(self, other: Lengths, row: int) -> bool:
        """Take over what another engine makes of a request; return whether that is something else."""
        pairs = list(zip(self.columns(), other.columns(), strict=True))
        if all(own[row] == theirs[row] for own, theirs in pairs):
            return False
        for own, theirs in pairs:
            own[row] = theirs[row]
        return True


def by_row(found: Sequence[Lengths], which: IntArray) -> Lengths:
    """Of each request what the engine number `which` makes of it."""
    rows = np.arange(len(which))
    return Lengths(*(np.stack(columns)[which, rows] for columns in zip(*(each.columns() for each in found), strict=True)))


def judged(
    prompt_tokens: IntArray, output_tokens: IntArray, max_output_tokens: IntArray, limits: Limits
) -> Lengths:
    """Return what an engine makes of requests; `max_output_tokens` is 0 or less where the client asked for no limit."""
    given = max_output_tokens > 0
    if limits.cuts_prompts:
        prompt_tokens = np.minimum(prompt_tokens, limits.prompt_tokens)
    room = limits.context_tokens - prompt_tokens
    too_long = room <= 0
    asked = max_output_tokens
    if limits.asked_tokens is not None:
        asked = np.minimum(asked, limits.asked_tokens)
    asked_too_much = given & (asked > room) & ~too_long
    too_long |= prompt_tokens > limits.prompt_tokens
    room = limits.row_tokens - prompt_tokens
    if limits.page_after_prompt:
        blocks = -(-prompt_tokens // limits.block_tokens) + 1
        room = np.minimum(room, limits.kv_tokens - blocks * limits.block_tokens - 1)
    room = np.maximum(room, 1)
    if limits.answer_tokens is not None:
        room = np.where(given, room, np.minimum(room, limits.answer_tokens))
    limit = np.where(given, np.minimum(max_output_tokens, room), room)
    output = np.minimum(output_tokens, limit)
    held = prompt_tokens + output
    if limits.spare_tokens:  # a row's last step may still hold slots of drafts that come to nothing
        held = np.minimum(held + limits.spare_tokens, limits.context_tokens)
    never_fits = ~too_long & ~asked_too_much & (held > limits.held_tokens + 1)
    wanted = np.where(given, np.minimum(output_tokens, max_output_tokens), output_tokens)
    cut = ~too_long & ~asked_too_much & ~never_fits & (wanted > room)
    return Lengths(output, output >= limit, too_long, asked_too_much, never_fits, cut)
