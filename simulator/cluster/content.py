"""What of each prompt others may find in a cache: only segments that more than one request names can ever be found."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engine_models.parts.acceptance import mixed
from simulator.workload.columns import Content

Runs = tuple[tuple[int, int, int], ...]
Shared = tuple[Runs, int, bool]
"""Of a request: merged runs (segment, offset, length), the prompt's tokens among them, and whether they cover its output too."""

NOTHING_SHARED: Shared = ((), 0, False)


STRUCTURED = 0x9E6C63D0876A9A62
"""Tells the draws of structured requests from others (any number does)."""


def is_structured(index: int, share: float) -> bool:
    """Whether a grammar constrains the answer to a request; it does for a `share` of all, the same ones whatever the run."""
    return share > 0.0 and (mixed(STRUCTURED ^ index) >> 11) * 2.0**-53 < share


ADAPTER = 1 << 44
"""Segments of requests without an adapter are below it."""


def image_places(prompt_tokens: int, count: int, tokens: int) -> tuple[tuple[int, int], ...]:
    """First token and end of each of `count` images of `tokens` tokens in all, which stand last in a prompt."""
    first = prompt_tokens - tokens
    bounds = [first + tokens * number // count for number in range(count + 1)] if count else []
    return tuple(pairwise(bounds))


def for_adapter(runs: Runs, adapter: int) -> Runs:
    """The contents as computed with an adapter: nothing of them is found without it, or with another."""
    return tuple([(segment + adapter * ADAPTER, offset, length) for segment, offset, length in runs])


class SharedContents:
    """The shared contents of requests, with the lengths that answers have."""

    def __init__(
        self, content: Content, prompt_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64]
    ) -> None:
        self._content = content
        self._prompt, self._output = prompt_tokens, output_tokens
        self._found, self._returns = content.named_by_others()

    def of(self, row: int) -> Shared:
        """The shared contents of a request."""
        content = self._content
        first, last = int(content.start[row]), int(content.start[row + 1])
        returns = bool(self._returns[row])
        if not returns:
            found = self._found
            while last > first and not found[last - 1]:
                last -= 1
        if last == first:
            return NOTHING_SHARED
        runs: list[tuple[int, int, int]] = []
        tokens = 0
        for run in zip(
            content.segment[first:last].tolist(),
            content.offset[first:last].tolist(),
            content.length[first:last].tolist(),
            strict=True,
        ):
            tokens += run[2]
            _append_run(runs, run)
        returns = returns and tokens == int(self._prompt[row])
        if returns:
            output = int(content.output_segment[row]), int(content.output_offset[row])
            _append_run(runs, (*output, int(self._output[row])))
        return tuple(runs), tokens, returns


def _append_run(runs: list[tuple[int, int, int]], run: tuple[int, int, int]) -> None:
    """Append a run, merged with the last if it continues it: equal contents have equal runs."""
    if runs:
        segment, offset, length = runs[-1]
        if segment == run[0] and offset + length == run[1]:
            runs[-1] = (segment, offset, length + run[2])
            return
    runs.append(run)
