"""Latencies of requests and gaps between tokens, in the meanings of vLLM's benchmark.

    TTFT = first token visible - send        TPOT = (E2E - TTFT) / (output tokens - 1), undefined for one token
    E2E  = last token visible - send         ITL  = gaps between successive tokens, pooled over all requests

Token times are not stored: they are slices of the step ends of logs, so the pooled gaps are an exact weighted histogram (a gap of
a step weighs as many rows as emitted in it and in the step before).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.records import dataclass
from simulator.cluster.outcome import FINISHED, ClusterResult, Handovers
from simulator.results.statistics import BATCHES, PART, BoolArray, FloatArray, IntArray, parts
from simulator.serving.emissions import Emissions, Ranges, logs_of
from simulator.serving.log import StepLog

OF_FIRST_TOKEN = ("ttft_front_ms", "ttft_queue_ms", "ttft_launch_ms", "ttft_kernel_ms")
"""What TTFT is made of, in this order: the front end before and after, until the first step with the request begins, the host
while the device waits for it, and the device."""
LATENCIES = ("ttft_ms", "tpot_ms", "e2el_ms", "queue_ms", "prefill_ms", "decode_ms", *OF_FIRST_TOKEN)
OF_HANDOVER = ("transfer_ms", "decode_queue_ms")
"""Latencies of requests that went from one server to another: the transfer of their KV cache, and their waits at the second
server before and after it."""
OF_ENCODING = ("encode_queue_ms", "encode_ms", "encode_transfer_ms")
"""Latencies of requests whose images other servers encode: until the step begins that encodes the last of them, that step, and
the way to the server that reads them. TTFT is made of them too."""
STRETCHES = 8 * BATCHES
"""Stretches of time in which the gaps of several logs are joined (assumed: finer than the batches of the sampling error)."""


@dataclass(frozen=True)
class Latencies:
    """Per-request latencies [ms] (NaN where undefined), over all rows of the workload."""

    ttft_ms: FloatArray
    tpot_ms: FloatArray
    e2el_ms: FloatArray
    queue_ms: FloatArray
    prefill_ms: FloatArray
    decode_ms: FloatArray
    transfer_ms: FloatArray
    decode_queue_ms: FloatArray
    ttft_front_ms: FloatArray
    ttft_queue_ms: FloatArray
    ttft_launch_ms: FloatArray
    ttft_kernel_ms: FloatArray
    encode_queue_ms: FloatArray
    encode_ms: FloatArray
    encode_transfer_ms: FloatArray


def latencies(result: ClusterResult, extra_s: float = 0.0) -> Latencies:
    """Latencies of every request; `extra_s` is what the measuring client adds to TTFT and E2E."""
    finished = result.status == FINISHED
    ttft = (result.first_token_s - result.arrival_s + extra_s) * 1e3
    e2el = np.where(finished, (result.end_s - result.arrival_s + extra_s) * 1e3, np.nan)
    ttft = np.where(finished, ttft, np.nan)
    several = finished & (result.output_tokens > 1)
    tpot = np.full(len(ttft), np.nan)
    tpot[several] = (e2el - ttft)[several] / (result.output_tokens[several] - 1)
    queue = np.where(finished, (result.first_scheduled_s - result.engine_arrival_s) * 1e3, np.nan)
    handed, prefilled_s = result.handed, result.first_token_s
    transfer = decode_queue = np.full(len(ttft), np.nan)
    if handed is not None:
        prefilled_s = _computed_s(result, handed)
        transfer = np.where(finished, (handed.transfer_end_s - handed.transfer_start_s) * 1e3, np.nan)
        before_s = handed.transfer_start_s - handed.arrival_s
        decode_queue = np.where(finished, (before_s + handed.first_scheduled_s - handed.transfer_end_s) * 1e3, np.nan)
    prefill = np.where(finished, (prefilled_s - result.first_scheduled_s) * 1e3, np.nan)
    parts = [np.where(finished, part_s * 1e3, np.nan) for part_s in first_token_parts_s(result, extra_s)]
    stage = [np.where(finished, part_s * 1e3, np.nan) for part_s in _encoding_s(result)]
    return Latencies(ttft, tpot, e2el, queue, prefill, e2el - ttft, transfer, decode_queue, *parts, *stage)


def _encoding_s(result: ClusterResult) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`OF_ENCODING` of every request [s], NaN where none encodes for it."""
    found = result.encoded
    if found is None:
        none = np.full(len(result.status), np.nan)
        return none, none, none
    return found.scheduled_s - found.sent_s, found.encoded_s - found.scheduled_s, found.arrived_s - found.encoded_s


def _computed_s(result: ClusterResult, handed: Handovers) -> FloatArray:
    """When prompts were computed [s]; with the first token, where one server has computed both."""
    return np.where(handed.source == result.replica, result.first_token_s, handed.prefill_end_s)


def first_token_parts_s(result: ClusterResult, extra_s: float) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """TTFT of every request by `OF_FIRST_TOKEN` [s]; their sum is the whole, with `OF_ENCODING` where other servers encode.

    Where another server computes the prompt, its launches are not told apart, and all that follows counts as queue.
    """
    before_s = result.engine_arrival_s - result.arrival_s + extra_s
    if result.encoded is not None:
        before_s = before_s - np.nan_to_num(result.encoded.arrived_s - result.encoded.sent_s)
    if result.handed is not None:
        kernel_s = _computed_s(result, result.handed) - result.first_scheduled_s
        queue_s = result.first_token_s - result.engine_arrival_s - kernel_s
        return before_s, queue_s, np.zeros(len(queue_s)), kernel_s
    began_s, ended_s, launch_s = (np.full(len(before_s), np.nan) for _ in range(3))
    log_of, step = result.emissions.firsts()
    for number in logs_of(log_of):
        log = result.logs[number]
        mine = np.flatnonzero((log_of == number) & ~np.isnan(result.first_token_s))
        if not len(mine):
            continue
        place = step[mine] - log.retired_steps
        steps, start_s = log.column("steps"), log.column("start_s")
        waits_s = log.column("launch_s") if log.staged else log.column("idle_s") * steps + log.column("launch_s")
        last = np.searchsorted(np.cumsum(steps, dtype=np.int64), place, side="right")
        first = np.minimum(np.searchsorted(start_s, result.first_scheduled_s[mine], side="left"), last)
        edges = np.stack([first, last + 1], axis=1).ravel()
        began_s[mine] = start_s[first]
        ended_s[mine] = np.frombuffer(log.end_s, dtype=np.float64)[place]
        launch_s[mine] = np.add.reduceat(np.append(waits_s, 0.0), edges)[::2]  # whatever was dropped before, equal to the bit
    queue_s, after_s = began_s - result.engine_arrival_s, result.first_token_s - ended_s
    return before_s + after_s, queue_s, launch_s, ended_s - began_s - launch_s


class Covered:
    """How many of the ranges of steps that come in cover each step of a log that is kept."""

    def __init__(self) -> None:
        self._change = np.zeros(1, dtype=np.int32)

    def add(self, start: IntArray, stop: IntArray, kept: int) -> None:
        """Take in ranges [start, stop) of places among `kept` steps."""
        self._grow(kept)
        one = np.int32(1)  # of the same type as the sums: many times quicker
        np.add.at(self._change, start, one)
        np.subtract.at(self._change, stop, one)

    def take(self, steps: int) -> NDArray[np.int32]:
        """Return how many cover each of the first steps, which are not kept any longer."""
        self._grow(steps)
        found = self._change[:steps]
        np.cumsum(found, out=found)
        self._change = self._change[steps:].copy()
        if steps:
            self._change[0] += found[-1]
        return found

    def _grow(self, kept: int) -> None:
        if len(self._change) <= kept:
            more = np.zeros(kept + 1 - len(self._change), dtype=np.int32)
            self._change = np.concatenate([self._change, more])


def clocks_of(logs: Sequence[StepLog]) -> list[FloatArray]:
    """When the tokens of the steps that logs keep are sent, as views: while one lives its log cannot change."""
    return [np.frombuffer(log.sent_s, dtype=np.float64) for log in logs]


def kept_ranges(emissions: Emissions, rows: IntArray, logs: Sequence[StepLog]) -> Iterator[Ranges]:
    """Ranges of `rows` by their places among the steps that the logs keep, in parts (`PART`) of whole rows."""
    retired = np.array([log.retired_steps for log in logs], dtype=np.int64)
    for spans in emissions.in_parts(rows, PART):
        if retired.any():
            dropped = retired[spans.log]
            spans = spans._replace(first=spans.first - dropped, last=spans.last - dropped)
        yield spans


class TokenGaps:
    """Gaps between the tokens of some requests over all logs: counted by step, taken out in order of time."""

    def __init__(self, logs: Sequence[StepLog]) -> None:
        self._logs = logs
        self._covered = [Covered() for _ in logs]
        self._pauses: list[list[tuple[FloatArray, FloatArray]]] = [[] for _ in logs]

    def count(self, emissions: Emissions, rows: BoolArray) -> None:
        """Take in the tokens of the chosen requests."""
        clocks = clocks_of(self._logs)
        for spans in kept_ranges(emissions, np.flatnonzero(rows), self._logs):
            for number in spans.logs():
                first, last = spans.of_log(number)
                # tokens in [first, last] have gaps that end with the steps first + 1 to last, number `first` to `last - 1` here
                self._covered[number].add(first, last, len(clocks[number]))
                pauses = pauses_s(spans, clocks, number)
                if len(pauses[0]):
                    self._pauses[number].append(pauses)

    def take(self, steps: Sequence[int]) -> tuple[FloatArray, IntArray]:
        """Gaps [s] after the first `steps` kept steps of each log, which then are not kept any longer, and how often each occurs.

        They come in order of time to within a small part (`STRETCHES`) of these steps, those of all logs together.
        """
        gaps: list[FloatArray] = []
        weights: list[IntArray] = []
        places: list[IntArray] = []  # of each list of gaps, where the ones that end in each stretch begin, but the first
        clocks = [ends[:n] for ends, n in zip(clocks_of(self._logs), steps, strict=True)]
        began = min((float(c[0]) for c in clocks if len(c)), default=0.0)
        ended = max((float(c[-1]) for c in clocks if len(c)), default=0.0)
        edges = np.linspace(began, ended, STRETCHES + 1)[1:-1]
        numbers = [number for number, n in enumerate(steps) if n or self._pauses[number]]
        joins = len(numbers) > 1 or any(self._pauses[number] for number in numbers)
        for number in numbers:
            n = steps[number]
            ends = np.frombuffer(self._logs[number].sent_s, dtype=np.float64)[: n + 1]
            weight = self._covered[number].take(n)[: max(len(ends) - 1, 0)]
            found = np.empty(int(np.count_nonzero(weight)))
            filled = 0
            for part in parts(len(weight)):
                some = weight[part] > 0
                here = (ends[part.start + 1 : part.stop + 1] - ends[part.start : part.stop])[some]
                found[filled : filled + len(here)] = here
                filled += len(here)
            gaps.append(found)
            small = np.int16 if weight.max(initial=0) <= np.iinfo(np.int16).max else np.int32
            weights.append(weight[weight > 0].astype(small))
            if joins:
                places.append(np.searchsorted(np.flatnonzero(weight), np.searchsorted(ends[1:], edges)))
            del weight
            if self._pauses[number]:
                parts_s, resumed_s = zip(*self._pauses[number], strict=True)
                self._pauses[number] = []
                resumed = np.concatenate(resumed_s)
                del resumed_s
                order = np.argsort(resumed, kind="stable")
                places.append(np.searchsorted(resumed, edges, sorter=order))
                del resumed
                gaps.append(np.concatenate(parts_s)[order])
                del parts_s, order
                weights.append(np.ones(len(gaps[-1]), dtype=np.int16))
        if not joins or not any(map(len, gaps)):
            return (gaps[0], weights[0]) if gaps else (np.zeros(0), np.zeros(0, dtype=np.int16))
        pieces = _by_stretch(places, [len(each) for each in gaps])
        return (
            np.concatenate([gaps[at][some] for at, some in pieces]),
            np.concatenate([weights[at][some] for at, some in pieces]),
        )


def token_gaps(result: ClusterResult, rows: BoolArray) -> tuple[FloatArray, IntArray]:
    """Gaps between successive tokens of the chosen requests of a whole run [s], and how often each occurs (at least once)."""
    gaps = TokenGaps(result.logs)
    gaps.count(result.emissions, rows)
    return gaps.take([len(log.end_s) for log in result.logs])


def pauses_s(spans: Ranges, clocks: list[FloatArray], number: int) -> tuple[FloatArray, FloatArray]:
    """Gaps before the first tokens in a log after a pause, or after another log, and when those came [s], request by request.

    Tokens of one step, as drafts yield them, are one chunk to the client. `clocks` are the ends of the steps of every log.
    """
    moved = spans.log[1:] != spans.log[:-1]
    later = (spans.first[1:] > spans.last[:-1]) | moved
    again = np.flatnonzero((spans.owner[1:] == spans.owner[:-1]) & later & (spans.log[1:] == number))
    resumed = clocks[number][spans.first[again + 1]]
    left = clocks[number][np.where(moved[again], 0, spans.last[again])]
    for i in np.flatnonzero(moved[again]).tolist():
        left[i] = clocks[int(spans.log[again[i]])][spans.last[again[i]]]
    return resumed - left, resumed


def _by_stretch(places: list[IntArray], lengths: list[int]) -> list[tuple[int, slice]]:
    """The pieces of lists, those of all lists that end in the first stretch, then those in the second and so on.

    `places` are where the second and all later stretches begin in each list, `lengths` of them.
    """
    cuts = np.stack([np.concatenate(([0], each, [n])) for each, n in zip(places, lengths, strict=True)])
    return [
        (at, slice(int(cuts[at, stretch]), int(cuts[at, stretch + 1])))
        for stretch, at in np.argwhere(np.diff(cuts).T > 0).tolist()
    ]
