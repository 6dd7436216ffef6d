"""Statistics of a workload: load, burstiness, lengths, and what a prefix cache could serve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulator.workload.columns import Content, FloatArray, IntArray, Workload

WINDOWS_S = (1.0, 10.0, 60.0)


def index_of_dispersion(arrival_s: FloatArray, window_s: float, span_s: float) -> float:
    """Return variance over mean of the counts in whole windows of `window_s` (Poisson: 1); NaN below two."""
    windows = int(span_s / window_s + 1e-9)
    if windows < 2:
        return math.nan
    index = np.floor(arrival_s / window_s).astype(np.int64)
    # windows without an arrival, of which a wild time stamp makes any number, are counted and not held
    counts = np.unique(index[(index >= 0) & (index < windows)], return_counts=True)[1].astype(np.float64)
    mean = counts.sum() / windows
    squares = ((counts - mean) ** 2).sum() + (windows - len(counts)) * mean**2
    return float(squares / windows / mean) if mean else math.nan


def describe(workload: Workload) -> dict[str, Any]:
    """Return the statistics of `workload` as a plain dict.

    Keys: ``requests, span_s, rate_per_s, iat_cv, idc`` (by window in seconds, Poisson = 1), ``prompt_tokens``
    and ``output_tokens`` (mean, p50, p90, p99, max), ``rank_correlation`` (Spearman, prompt and output),
    ``prefix_hit_potential`` (fraction of prompt tokens that an endless prefix cache would serve, in order of
    rows), ``sessions``, ``classes``, ``source``, ``warnings``. Time statistics are None where the arrivals
    depend on the run.
    """
    known = workload.arrival_s[~np.isnan(workload.arrival_s)]
    open_loop = len(known) == len(workload) and len(known) > 1
    # The span is that of the arrivals where the end is not given.
    span = workload.duration_s if math.isfinite(workload.duration_s) else float(known.max(initial=0.0))
    gaps = np.diff(known)
    timed = open_loop and span > 0
    return {
        "requests": len(workload),
        "span_s": span if open_loop else None,
        "rate_per_s": len(known) / span if timed else None,
        "iat_cv": float(gaps.std() / gaps.mean()) if timed and gaps.mean() > 0 else None,
        "idc": {
            f"{window:g}s": value
            for window in WINDOWS_S
            if timed and not math.isnan(value := index_of_dispersion(known, window, span))
        },
        "prompt_tokens": _lengths(workload.prompt_tokens),
        "output_tokens": _lengths(workload.output_tokens),
        "rank_correlation": rank_correlation(workload.prompt_tokens, workload.output_tokens),
        "prefix_hit_potential": prefix_hit_potential(workload),
        "sessions": len(np.unique(workload.session_id[workload.session_id >= 0])),
        "classes": {c.name: int((workload.class_index == i).sum()) for i, c in enumerate(workload.classes)},
        "source": workload.source,
        "warnings": list(workload.warnings),
    }


def rank_correlation(x: IntArray, y: IntArray) -> float | None:
    """Return Spearman's rank correlation (ties get their mean rank), None if either is constant."""
    ranks = [_mean_ranks(v) for v in (x, y)]
    if any(r.std() == 0 for r in ranks) or len(x) < 2:
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def prefix_hit_potential(workload: Workload) -> float:
    """Return the fraction of all prompt tokens that an endless prefix cache, fed in row order, would serve.

    Outputs enter the cache too, so a conversation's next turn finds its whole history.
    """
    if workload.content is None or not len(workload):
        return 0.0
    served = cached_tokens(workload.content, workload.prompt_tokens, workload.output_tokens)
    return float(served.sum() / workload.prompt_tokens.sum())


def cached_tokens(content: Content, prompt_tokens: IntArray, output_tokens: IntArray) -> IntArray:
    """Return, per row, the leading prompt tokens that earlier rows' prompts or outputs already hold.

    Two prompts share a token only if all before it are shared too. Each segment therefore remembers, by what
    preceded it, how far it has been seen.
    """
    seen: dict[tuple[int, int, int], int] = {}
    served = np.zeros(len(prompt_tokens), np.int64)
    start, segment, offset, length, out_segment, out_offset = (
        a.tolist()
        for a in (
            content.start,
            content.segment,
            content.offset,
            content.length,
            content.output_segment,
            content.output_offset,
        )
    )
    for i in range(len(served)):
        hit, matching, path = 0, True, 0
        for r in range(start[i], start[i + 1]):
            key = (path, segment[r], offset[r])
            reach = seen.get(key, 0)
            if matching:
                hit += min(reach, length[r])
                matching = reach >= length[r]
            end = length[r]
            if (
                r == start[i + 1] - 1
                and out_segment[i] == segment[r]
                and out_offset[i] == offset[r] + length[r]
            ):
                end += int(output_tokens[i])
            seen[key] = max(reach, end)
            path = hash((path, segment[r], offset[r], length[r]))
        served[i] = min(hit, int(prompt_tokens[i]))
    return served


def _lengths(tokens: IntArray) -> dict[str, float]:
    p50, p90, p99 = np.percentile(tokens, (50, 90, 99))
    return {
        "mean": float(tokens.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(tokens.max()),
    }


def _mean_ranks(values: IntArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts).astype(np.float64)
    return (ends - (counts - 1) / 2.0)[inverse]
