"""Benchmarks that follow each other on one server without a flush: which prompts a later run finds in the prefix cache.

SGLang's client draws the texts of its prompts by a seed, whatever their lengths: prompt i of two runs is the same text, as far as
both go. Before each run it sends the first prompt once to warm the server up. (`bench_serving.py` of SGLang 0.5.6: `seed` 1,
`sample_random_requests`, `warmup_requests` 1, `flush_cache` False; read 2026-11-30.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from engine_models.parts.kept import Kept
from simulator.workload.columns import Content, Workload

Lengths = tuple[tuple[int, int], ...]
"""[prompt, output] tokens of each request of a run, in order."""
Run = tuple[int, int, int]
WARM_UP_TOKENS = 32
"""The longest answer of the request that warms up (`min(test_request.output_len, 32)` there)."""


def of_the_seed(load: Workload) -> Workload:
    """The load whose prompt i begins as prompt i of any other run does."""
    rows = np.arange(len(load))
    nobody, none = np.full(len(load), -1), np.zeros(len(load), np.int64)
    shared = Content(np.arange(len(load) + 1), rows, none, load.prompt_tokens, nobody, none, rows >= 0, rows < 0)
    return replace(load, content=shared)


def left_by(runs: Sequence[Lengths], lengths: Lengths, page_tokens: int) -> list[Kept]:
    """What earlier runs, and the warm-up of the one with these lengths, leave in a cache that evicts nothing.

    A prompt is a line of pieces, each as long as some run had it; behind each piece stand the answers given there, which
    nobody names. The pieces are in order of their last use.
    """
    uses: dict[int, list[tuple[int, int, int]]] = {}
    warm_up = ((lengths[0][0], min(lengths[0][1], WARM_UP_TOKENS)),)
    many = max(map(len, (*runs, lengths)))
    at = count()
    for run in (*runs, warm_up):
        for prompt, (tokens, output) in enumerate(run):
            whole = tokens // page_tokens * page_tokens
            answer = (tokens + output - 1) // page_tokens * page_tokens - whole
            uses.setdefault(prompt, []).append((next(at), whole, answer))
    found: list[tuple[int, int, Run]] = []
    for prompt, seen in uses.items():
        parent, before = -1, 0
        for whole in sorted({own for _, own, _ in seen}):
            if whole:
                found.append((max(used for used, own, _ in seen if own >= whole), parent, (prompt, before, whole - before)))
                parent, before = len(found) - 1, whole
            found += [(used, parent, (many + used, 0, answer)) for used, own, answer in seen if own == whole and answer]
    order = sorted(range(len(found)), key=lambda number: found[number][0])
    place = {number: after for after, number in enumerate(order)}
    return [Kept(place.get(found[number][1], -1), (found[number][2],)) for number in order]
