"""What of each prompt others may find in a cache: only segments that more than one request names can ever be found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.workload.columns import Workload

Runs = tuple[tuple[int, int, int], ...]
Shared = tuple[Runs, int, bool]
"""Of a request: merged runs (segment, offset, length), the prompt's tokens among them, and whether they cover its output too."""

NOTHING_SHARED: Shared = ((), 0, False)


def shared_contents(workload: Workload, output_tokens: NDArray[np.int64]) -> list[Shared] | None:
    """The shared contents of every request, with the lengths that answers have; None if nothing is shared."""
    content = workload.content
    if content is None:
        return None
    n = len(workload)
    owners = np.repeat(np.arange(n), np.diff(content.start))
    top = int(max(content.segment.max(initial=-1), content.output_segment.max(initial=-1))) + 1
    pairs = np.unique(content.segment.astype(np.int64) * n + owners)
    users = np.bincount(pairs // n, minlength=top)
    start, segment = content.start.tolist(), content.segment.tolist()
    offset, length = content.offset.tolist(), content.length.tolist()
    out_segment, out_offset = content.output_segment.tolist(), content.output_offset.tolist()
    popular: list[bool] = (users > 1).tolist()
    prompt, asked = workload.prompt_tokens.tolist(), output_tokens.tolist()
    shared: list[Shared] = []
    for i in range(n):
        first, last = start[i], start[i + 1]
        output = out_segment[i]
        returns = output >= 0 and users[output] > (1 if output in segment[first:last] else 0)
        if not returns:
            while last > first and not popular[segment[last - 1]]:
                last -= 1
        runs: list[tuple[int, int, int]] = []
        tokens = 0
        for r in range(first, last):
            tokens += length[r]
            _append_run(runs, (segment[r], offset[r], length[r]))
        covered = tokens == prompt[i]
        if returns and covered:
            _append_run(runs, (output, out_offset[i], asked[i]))
        shared.append((tuple(runs), tokens, bool(returns and covered)))
    return shared


def _append_run(runs: list[tuple[int, int, int]], run: tuple[int, int, int]) -> None:
    """Append a run, merged with the last if it continues it: equal contents have equal runs."""
    if runs:
        segment, offset, length = runs[-1]
        if segment == run[0] and offset + length == run[1]:
            runs[-1] = (segment, offset, length + run[2])
            return
    runs.append(run)
