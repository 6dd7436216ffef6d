"""The workload as columns: arrivals, lengths, releases, shared content.

One row is one request. Nothing here knows of engines; the cluster walks the rows in order, and releases
the rows without an arrival time when their predecessor ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.records import dataclass

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

NO_PREDECESSOR = -1
"""The request arrives at its own time."""
ANY_OF_CLASS = -2
"""Closed loop: the next, in index order, that a client sends which has ended a request of the same class."""


@dataclass(frozen=True)
class RequestClass:
    """A class of requests judged apart.

    Parameters
    ----------
    name : the class's name.
    priority : the lower number is served first where the engine knows priorities (vLLM's convention).
    slo : latency bounds [ms] by metric and percentile, ``{"ttft_ms": {"p99": 500.0}}``, or None.
    attainment : fraction of requests that must be good, or None.
    structured_share : of the requests, those whose answers a grammar constrains.
    model : the model that it asks for, None for the scenario's; named_at : where a trace names it first, file and line.
    """

    name: str
    priority: int = 0
    slo: dict[str, dict[str, float]] | None = None
    attainment: float | None = None
    model: str | None = None
    structured_share: float = 0.0
    named_at: str | None = None


@dataclass(frozen=True)
class Named:
    """Segments whose tokens other loads, and other runs, name too: (m,) those of the `ids` in a `source`, from their first on."""

    source: str
    ids: IntArray
    segments: IntArray


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
    found : (runs,) whether another request may name the run's segment. output_found : (n,) whether another request's prompt may
        name the output's. None where only these requests tell.
    named : segments that are not of this load alone.
    """

    start: IntArray
    segment: IntArray
    offset: IntArray
    length: IntArray
    output_segment: IntArray
    output_offset: IntArray
    found: BoolArray | None = None
    output_found: BoolArray | None = None
    named: tuple[Named, ...] = ()

    def renumbered(self, loads: int, number: int) -> Content:
        """The content of load `number` of `loads`, with segments that no other load's content names."""
        outputs = np.where(self.output_segment >= 0, self.output_segment * loads + number, -1)
        named = tuple(replace(each, segments=each.segments * loads + number) for each in self.named)
        return replace(self, segment=self.segment * loads + number, output_segment=outputs, named=named)

    def named_by_others(self) -> tuple[BoolArray, BoolArray]:
        """Return `found` and `output_found`, of these requests if they are not given."""
        if self.found is not None and self.output_found is not None:
            return self.found, self.output_found
        n, runs = len(self.output_segment), len(self.segment)
        rows = np.arange(n)
        owner = np.repeat(rows, np.diff(self.start))
        _, numbers = np.unique(np.concatenate((self.segment, self.output_segment)), return_inverse=True)
        named, output = numbers[:runs], numbers[runs:]
        pairs = np.unique(named * n + owner)
        users = np.bincount(pairs // max(n, 1), minlength=int(numbers.max(initial=-1)) + 1)
        itself = np.isin(output * n + rows, pairs)
        return users[named] > 1, (self.output_segment >= 0) & (users[output] > itself)


@dataclass(frozen=True)
class More:
    """What comes after a block of requests of which some wait for others.

    Parameters
    ----------
    by_clock : whether some of it arrives by the clock; else all of it waits for others, as in a closed loop.
    waits_from : the first row of the run that any of it waits for, or `ANY_OF_CLASS`.
    """

    by_clock: bool
    waits_from: int


@dataclass(frozen=True)
class Workload:
    """n requests; the known arrival times never decrease along the rows.

    Parameters
    ----------
    arrival_s : (n,) [s]; NaN where the predecessor releases the request.
    prompt_tokens, output_tokens : (n,) at least 1. The output length is the oracle's: no scheduler sees it.
    max_output_tokens : (n,) the client's limit; 0 means none given (the model's context left).
    predecessor : (n,) -1 none; j >= 0: released ``gap_s`` after request j of the run ends; -2: sent when a client is ready whose
        request of the same class has ended, in index order.
    gap_s : (n,) [s] think time between the end of request j and the arrival.
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
    more : of a block of a streamed workload, what comes after it if requests wait for others.
    edges : (m, 2) requests of the run, the second of which waits for the first too, beside its predecessor: it is released
        ``gap_s`` after the last of all that it waits for ends. None for none.
    think_s : (n,) [s] where the class is a closed loop (-2), how long the client thinks after this request until it is ready to
        send the next; None for not at all.
    adapter : (n,) number of the adapter that the request names, from 1; 0 for none. None if no request names any.
    images : (n, 2) images in the prompt, and how many of its tokens they are; None if no prompt holds any.
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
    more: More | None = None
    think_s: FloatArray | None = None
    adapter: IntArray | None = None
    edges: IntArray | None = None
    images: IntArray | None = None

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def blocks(self) -> Iterator[Workload]:
        """The requests in one block, as a stream yields them in many."""
        yield self


def no_requests() -> Workload:
    """A workload without requests."""
    no, none = np.zeros(0), np.zeros(0, np.int64)
    return Workload(
        no,
        none,
        none,
        none,
        none,
        no,
        no,
        none,
        none,
        none,
        (),
        None,
        None,
        duration_s=0.0,
        warmup_s=0.0,
        drain_s=0.0,
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
        None if content.found is None else content.found[runs],
        None if content.output_found is None else content.output_found[rows],
        content.named,
    )


def join_contents(contents: Sequence[Content | None], sizes: Sequence[int]) -> Content | None:
    """Lay contents one after another; equal segments are the same."""
    if all(content is None for content in contents):
        return None
    none = np.zeros(0, np.int64)
    whole = [
        Content(np.zeros(size + 1, np.int64), none, none, none, same_int(-1, size), same_int(0, size))
        if content is None
        else content
        for content, size in zip(contents, sizes, strict=True)
    ]
    found = output_found = None
    if any(content.found is not None for content in whole):
        known = [content.named_by_others() for content in whole]
        found, output_found = np.concatenate([runs for runs, _ in known]), np.concatenate([rows for _, rows in known])
    firsts = np.cumsum([0, *(len(content.segment) for content in whole[:-1])])
    starts = [content.start[1:] + first for content, first in zip(whole, firsts, strict=True)]
    return Content(
        np.concatenate([np.zeros(1, np.int64), *starts]),
        np.concatenate([content.segment for content in whole]),
        np.concatenate([content.offset for content in whole]),
        np.concatenate([content.length for content in whole]),
        np.concatenate([content.output_segment for content in whole]),
        np.concatenate([content.output_offset for content in whole]),
        found,
        output_found,
        _join_named([each for content in whole for each in content.named]),
    )


def _join_named(found: Sequence[Named]) -> tuple[Named, ...]:
    """The names of several contents, those of a source together."""
    joined = []
    for source in dict.fromkeys(each.source for each in found):
        ids = np.concatenate([each.ids for each in found if each.source == source])
        segments = np.concatenate([each.segments for each in found if each.source == source])
        once, first = np.unique(ids, return_index=True)
        joined.append(Named(source, once, segments[first]))
    return tuple(joined)
