"""The workload as columns: arrivals, lengths, releases, shared content.

One row is one request. Nothing here knows of engines; the cluster walks the rows in order, and releases
the rows without an arrival time when their predecessor ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

NO_PREDECESSOR = -1
"""The request arrives at its own time."""
ANY_OF_CLASS = -2
"""Closed loop: released when any running request of the same class ends, rows in index order."""


@dataclass(frozen=True)
class RequestClass:
    """A class of requests judged apart.

    Parameters
    ----------
    name : the class's name.
    priority : the lower number is served first where the engine knows priorities (vLLM's convention).
    slo : latency bounds [ms] by metric and percentile, ``{"ttft_ms": {"p99": 500.0}}``, or None.
    attainment : fraction of requests that must be good, or None.
    """

    name: str
    priority: int = 0
    slo: dict[str, dict[str, float]] | None = None
    attainment: float | None = None


@dataclass(frozen=True)
class Content:
    """The part of each prompt that other requests may share, as runs in CSR form.

    Request i's prompt begins with the runs ``start[i]:start[i + 1]``; run r is the tokens
    ``offset[r] .. offset[r] + length[r]`` of segment ``segment[r]``. Two prompts share a prefix exactly as
    far as their runs name the same tokens. What lies beyond the runs is private.

    The output of request i is the tokens ``output_offset[i] .. output_offset[i] + output_tokens[i]`` of
    segment ``output_segment[i]``; -1 says that the output never reappears in a prompt. A conversation is
    therefore one segment: turn k's prompt is ``(s, 0, P_k)``, its output stands at offset ``P_k``, and the
    next prompt ``(s, 0, P_{k+1})`` contains both.

    Parameters
    ----------
    start : (n + 1,) first run of each request.
    segment, offset, length : (runs,) each run, offsets and lengths in tokens.
    output_segment, output_offset : (n,) where the output stands.
    """

    start: IntArray
    segment: IntArray
    offset: IntArray
    length: IntArray
    output_segment: IntArray
    output_offset: IntArray


@dataclass(frozen=True)
class Workload:
    """n requests; the known arrival times never decrease along the rows.

    Parameters
    ----------
    arrival_s : (n,) [s]; NaN where the predecessor releases the request.
    prompt_tokens, output_tokens : (n,) at least 1. The output length is the oracle's: no scheduler sees it.
    max_output_tokens : (n,) the client's limit; 0 means none given (the model's context left).
    predecessor : (n,) -1 none; j >= 0: released ``gap_s`` after request j ends; -2: released ``gap_s`` after
        any running request of the same class ends, in index order.
    gap_s : (n,) [s] think time between the release's cause and the arrival.
    not_before_s : (n,) [s] earliest arrival (the recorded time of sessions replayed as ``absolute``).
    session_id : (n,) -1 outside sessions. turn : (n,) from 0.
    class_index : (n,) into `classes`.
    content : shared prefixes, or None if nothing is shared.
    request_ids : names, or None for r0, r1, ...
    duration_s : end of arrivals [s]; a request that would be released later does not arrive. Infinite when
        the number of requests ends the arrivals and their times depend on the run.
    warmup_s, drain_s : start of the measured window, and the longest time to drain [s].
    source : provenance for the manifest (name, sha256, licence, jitter...).
    warnings : what a reader should know, in words.
    """

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    max_output_tokens: IntArray
    predecessor: IntArray
    gap_s: FloatArray
    not_before_s: FloatArray
    session_id: IntArray
    turn: IntArray
    class_index: IntArray
    classes: tuple[RequestClass, ...]
    content: Content | None
    request_ids: tuple[str, ...] | None
    duration_s: float
    warmup_s: float
    drain_s: float
    source: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def blocks(self) -> Iterator[Workload]:
        """The requests in one block, as a stream yields them in many."""
        yield self


def no_requests() -> Workload:
    """A workload without requests."""
    no, none = np.zeros(0), np.zeros(0, np.int64)
    return Workload(
        no, none, none, none, none, no, no, none, none, none, (), None, None, duration_s=0.0, warmup_s=0.0, drain_s=0.0
    )


def same_int(value: int, n: int) -> IntArray:
    """A column of n times `value` that takes no memory; it cannot be written to."""
    return np.broadcast_to(np.int64(value), n)


def same_float(value: float, n: int) -> FloatArray:
    """A column of n times `value` that takes no memory; it cannot be written to."""
    return np.broadcast_to(np.float64(value), n)


def take_content(content: Content, rows: IntArray) -> Content:
    """Return the content of `rows`, in that order."""
    counts = (content.start[1:] - content.start[:-1])[rows]
    start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    runs = np.repeat(content.start[:-1][rows] - start[:-1], counts) + np.arange(start[-1])
    return Content(
        start,
        content.segment[runs],
        content.offset[runs],
        content.length[runs],
        content.output_segment[rows],
        content.output_offset[rows],
    )


def join_contents(contents: Sequence[Content | None], sizes: Sequence[int]) -> Content | None:
    """Lay contents one after another, with segments renumbered so that none is shared between them."""
    if all(content is None for content in contents):
        return None
    starts, segments, offsets, lengths, out_segments, out_offsets = (
        [np.zeros(1, np.int64)],
        [],
        [],
        [],
        [],
        [],
    )
    runs = shift = 0
    for content, size in zip(contents, sizes, strict=True):
        if content is None:
            starts.append(np.full(size, runs, np.int64))
            out_segments.append(np.full(size, -1, np.int64))
            out_offsets.append(np.zeros(size, np.int64))
            continue
        starts.append(content.start[1:] + runs)
        segments.append(content.segment + shift)
        offsets.append(content.offset)
        lengths.append(content.length)
        out_segments.append(np.where(content.output_segment >= 0, content.output_segment + shift, -1))
        out_offsets.append(content.output_offset)
        runs += len(content.segment)
        highest = [int(array.max()) for array in (content.segment, content.output_segment) if len(array)]
        shift += max(highest, default=-1) + 1
    return Content(
        *(np.concatenate(c) for c in (starts, segments, offsets, lengths, out_segments, out_offsets))
    )
