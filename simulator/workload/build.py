"""From a scenario's `workload` section to columns.

Decisions where the scenario is silent:

- Classes are independent processes, each with its own named streams; a class's `weight` multiplies its rate
  (a trace's `rate_scale`, a closed loop's concurrency, its share of `requests` in a batch). They are merged
  in order of arrival.
- `shared_prefix` tokens and a conversation's history come on top of `prompt_tokens`.
- With `sessions`, arrivals are those of conversations; `requests` counts requests.
- `window` is in recorded seconds since the trace's first request and starts the clock at its first; `rate_scale`
  then divides the times.
- A client limit below the drawn output ends the output there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware_profiles.errors import InputError, nearest
from simulator.workload import generators
from simulator.workload.columns import (
    NO_PREDECESSOR,
    Content,
    FloatArray,
    IntArray,
    More,
    RequestClass,
    Workload,
    same_float,
    same_int,
)
from simulator.workload.fields import LARGEST
from simulator.workload.parts import Part, Requests, as_class, client_limits, join, limit_outputs, together
from simulator.workload.rows import Rows
from simulator.workload.spec import ClassLoad, Load, WorkloadSpec

if TYPE_CHECKING:
    from simulator.workload.parts import Limit
    from simulator.workload.prompts import Prompts

LARGEST_POOL = 500_000
"""Requests prepared in memory for one closed loop at most; a run that uses them up ends early, with the warning."""
MOST_REQUESTS = 5_000_000
"""Requests of one run that are held (assumed: their columns take some 0.5 GB)."""
MOST_STREAMED = 200_000_000
"""Drawn requests of one run that are streamed (assumed: hours of work)."""


def build_workload(spec: WorkloadSpec, *, seed: int, base_dir: Path, named: bool = False) -> Workload:
    """Build the columns of `spec`.

    Parameters
    ----------
    seed : every random stream is a function of it and of the stream's name.
    base_dir : folder that relative trace and length files are relative to.
    named : whether contents that other loads may name keep their names, be they found in this load or not.

    Raises
    ------
    InputError : a trace that cannot be read, or no request at all.
    """
    requests = requests_of(spec, seed=seed, base_dir=base_dir, named=named)
    rows = join(list(requests.parts))
    if not len(rows):
        raise InputError(
            "no request arrives",
            where="workload",
            mend="lengthen duration or window, or raise the rate",
        )
    last_s = float(np.nanmax(rows.anchor_s))
    if last_s > LARGEST:
        raise InputError(
            f"the last request arrives after {last_s:.3g} s; a clock counts to {LARGEST:g}",
            where="workload",
            mend="raise the rate or rate_scale, or give fewer requests",
        )
    return workload_of(spec, rows, requests, _duration(spec, rows, requests.end_s))


def requests_of(
    spec: WorkloadSpec, *, seed: int, base_dir: Path, streamed: bool = False, named: bool = False
) -> Requests:
    """Return the requests of `spec`, those of its classes merged; more than are held at once only if they are `streamed`.

    Raises InputError for a trace that cannot be read, where a rate asks for too many requests, and for stages.
    """
    if spec.stages is not None:
        raise InputError(
            "a load of several stages is not one list of requests",
            where="workload.stages",
            mend="`capacity-plan simulate` runs them; for this give one of them as the workload",
        )
    if spec.classes is None:
        limit = spec.max_output_tokens
        found = _load(spec, spec, limit, seed, base_dir, "", 1.0, spec.requests, streamed, named)
        if spec.structured_output is not None:
            found.classes = tuple(replace(kind, structured_share=spec.structured_output) for kind in found.classes)
        return found
    loads = []
    for load, requests in zip(spec.classes, _shares(spec.classes, spec.requests), strict=True):
        limit = load.max_output_tokens if load.max_output_tokens is not None else spec.max_output_tokens
        prefix, slo = f"class.{load.name}.", load.slo
        of_class = RequestClass(
            load.name,
            load.priority,
            slo.bounds_ms() if slo is not None else None,
            slo.attainment if slo is not None else None,
            load.model,
            load.structured_output or 0.0,
        )
        found = _load(spec, load, limit, seed, base_dir, prefix, load.weight, requests, streamed, named)
        if any(kind.model is not None for kind in found.classes):
            raise InputError(
                f"the trace of class '{load.name}' has a column `model`, and a class asks for one model",
                where="workload.classes",
                mend="remove the column, or give the trace as the whole workload",
            )
        as_class(found, of_class)
        loads.append(found)
    return together(loads, spec.requests, at_once=not streamed)


def workload_of(
    spec: WorkloadSpec, rows: Part, requests: Requests, duration_s: float, more: More | None = None
) -> Workload:
    """The workload, or a block of it, from its rows."""
    return Workload(
        rows.arrival_s,
        rows.prompt_tokens,
        rows.output_tokens,
        rows.max_output_tokens,
        rows.predecessor,
        rows.gap_s,
        rows.not_before_s,
        rows.session_id,
        rows.turn,
        rows.class_index,
        requests.classes,
        rows.content,
        rows.request_ids,
        duration_s,
        spec.warmup,
        spec.drain_s,
        requests.source,
        tuple(requests.said()),
        more,
        rows.think_s,
        rows.adapter,
        rows.edges,
        rows.images,
    )


def _duration(spec: WorkloadSpec, rows: Part, end_s: float) -> float:
    if spec.duration is not None:
        return spec.duration
    if np.isnan(rows.arrival_s).any():
        return math.inf
    last = float(rows.arrival_s.max())
    return max(end_s, last) if spec.requests is None else last


def _shares(classes: tuple[ClassLoad, ...], requests: int | None) -> list[int | None]:
    """Requests of each class: all may use up the number if all arrive by the clock, else by weight."""
    if requests is None or all(
        c.arrivals is None or c.arrivals.kind not in ("batch", "closed_loop") for c in classes
    ):
        return [requests] * len(classes)
    weights = np.asarray([c.weight for c in classes])
    exact = requests * weights / weights.sum()
    shares = np.floor(exact).astype(np.int64)
    for i in np.argsort(shares - exact, kind="stable")[: requests - int(shares.sum())]:
        shares[i] += 1
    return [int(s) for s in shares]


def _load(
    spec: WorkloadSpec,
    load: Load,
    limit: Limit,
    seed: int,
    base_dir: Path,
    prefix: str,
    weight: float,
    requests: int | None,
    streamed: bool,
    named: bool,
) -> Requests:
    prompts = source = None
    if load.trace is not None and (load.arrivals is None or load.sessions is not None):
        if load.arrivals is None:
            found = _traced(spec, load, seed, base_dir, prefix, weight, requests, named)
        else:
            found = _in_whole_sessions(spec, load, seed, base_dir, prefix, weight, requests, named)
        limit_outputs(found, client_limits(limit, seed, base_dir, prefix))
        return _adapted(found, load, seed, base_dir, prefix)
    if load.trace is not None:
        prompts, source, said = _prompts(spec, load, seed, base_dir, prefix, requests, named)
    most, largest = (MOST_STREAMED, MOST_STREAMED) if streamed else (MOST_REQUESTS, LARGEST_POOL)
    from simulator.workload.drawn import Drawn

    found = Drawn(spec, load, limit, seed, base_dir, prefix, weight, requests, largest, prompts, source).requests
    if prompts is not None:
        found.warnings += said
    if found.expected_requests > most:
        raise InputError(
            f"the load asks for about {found.expected_requests:.3g} requests; a run holds at most {most:,}",
            where="workload.arrivals",
            mend="lower the rate or shorten the duration" if spec.requests is None else "lower workload.requests",
        )
    return _adapted(found, load, seed, base_dir, prefix)


def _adapted(found: Requests, load: Load, seed: int, base_dir: Path, prefix: str) -> Requests:
    """The requests, with the adapters that they ask for and the images that they hold."""
    if load.adapters is not None:
        from simulator.workload.adapters import assign

        assign(found, load.adapters, seed, prefix)
    if load.images is not None and load.images != "recorded":
        from simulator.workload.images import assign as assign_images

        assign_images(found, load.images, seed, base_dir, prefix)
    return found


# Traces -------------------------------------------------------------------------------------------


def resolve_trace(name: str, base_dir: Path) -> Path | None:
    """Return the file that `name` means, or None for a shipped generator.

    Raises
    ------
    InputError : neither a shipped name nor a file.
    """
    if name in generators.names():
        return None
    path = base_dir / name
    if not path.exists() and not path.suffix and "/" not in name:
        close = nearest(name, generators.names())
        raise InputError(
            f"{name!r} is neither a shipped trace nor a file",
            where="workload.trace",
            mend=f"did you mean {close!r}?" if close else f"shipped are {', '.join(generators.names())}",
        )
    return path


def _traced(
    spec: WorkloadSpec,
    load: Load,
    seed: int,
    base_dir: Path,
    prefix: str,
    weight: float,
    requests: int | None,
    named: bool,
) -> Requests:
    assert load.trace is not None
    scale = (load.rate_scale or 1.0) * weight
    counts = [c for c in (load.limit, requests) if c is not None]
    limit = min(counts) if counts else None
    path = resolve_trace(load.trace, base_dir)
    if path is None:
        rows = _generated(spec, load, seed, prefix, scale, limit)
    else:
        from simulator.workload.traces import read_trace

        rows = read_trace(
            path,
            trace_format=load.trace_format,
            jitter_s=load.jitter_s,
            prefix_block_tokens=load.prefix_block_tokens,
            seed=seed,
            stream_prefix=prefix,
        )
    from simulator.workload.traces import take

    if rows.images is not None or load.images == "recorded":
        from simulator.workload.images import as_asked

        rows = as_asked(rows, wanted=load.images == "recorded")
    end = rows.span_s
    if load.window is not None:
        begin, end = load.window
        rows = take(rows, np.flatnonzero((rows.arrival_s >= begin) & (rows.arrival_s < end)))
        shifted_ends = None if rows.end_s is None else rows.end_s - begin
        rows = replace(rows, arrival_s=rows.arrival_s - begin, end_s=shifted_ends)
        end -= begin
    rows = replace(rows, arrival_s=rows.arrival_s / scale)
    if rows.end_s is not None:
        rows = replace(rows, end_s=rows.end_s / scale)
    if rows.wait_s is not None:
        rows = replace(rows, wait_s=rows.wait_s / scale)
    if spec.duration is not None:
        rows = take(rows, np.flatnonzero(rows.arrival_s <= spec.duration))
    if limit is not None:
        rows = take(rows, np.arange(min(limit, len(rows))))
    source = {**rows.source, "rate_scale": scale, "window": load.window}
    ends = end / scale if load.limit is None or not len(rows) else float(rows.arrival_s[-1])
    warnings = rows.warnings
    if spec.duration is not None and limit is None and path is not None and ends < 0.99 * spec.duration:
        warnings = (
            *warnings,
            f"the trace ends at {ends:.6g} s, before the duration of {spec.duration:g} s",
        )
    return _replayed(replace(rows, source=source, warnings=warnings), load, ends, prefix, named)


def _prompts(
    spec: WorkloadSpec, load: Load, seed: int, base_dir: Path, prefix: str, requests: int | None, named: bool
) -> tuple[Prompts, dict[str, Any], list[str]]:
    """The requests of a trace without their times, their source and what is to be said of them."""
    from simulator.workload.prompts import once, pool

    most = requests if load.prompt_pool is None else load.prompt_pool
    timeless = spec.model_copy(update={"duration": None})
    found = _traced(timeless, load, seed, base_dir, prefix, 1.0, most, named)
    whole = join(list(found.parts))
    if not len(whole):
        raise InputError("no request is left of the trace", where="workload.trace", mend="widen window or limit")
    make = once if load.prompt_pool is None else pool
    prompts = make(whole.prompt_tokens, whole.output_tokens, whole.max_output_tokens, whole.content)
    return prompts, found.source, found.warnings


def _in_whole_sessions(
    spec: WorkloadSpec,
    load: Load,
    seed: int,
    base_dir: Path,
    prefix: str,
    weight: float,
    requests: int | None,
    named: bool,
) -> Requests:
    """The sessions of a trace, which begin by the load's arrivals."""
    from simulator.workload.whole_sessions import whole_sessions

    timeless = spec.model_copy(update={"duration": None})
    recorded = _traced(timeless, load, seed, base_dir, prefix, 1.0, load.limit, named)
    return whole_sessions(
        recorded, spec, load, seed=seed, base_dir=base_dir, prefix=prefix, weight=weight, requests=requests, most=MOST_REQUESTS
    )


def _generated(
    spec: WorkloadSpec, load: Load, seed: int, prefix: str, scale: float, limit: int | None
) -> Rows:
    assert load.trace is not None
    given = [k for k in ("trace_format", "jitter_s", "prefix_block_tokens") if getattr(load, k) is not None]
    if given:
        raise InputError(
            f"{given[0]} belongs to trace files; {load.trace} is a shipped generator",
            where=f"workload.{given[0]}",
            mend="remove it",
        )
    if load.window is not None:
        return generators.generate(load.trace, seed=seed, until_s=load.window[1], prefix=prefix)
    if spec.duration is not None:
        return generators.generate(load.trace, seed=seed, until_s=spec.duration * scale, prefix=prefix)
    if limit is None:
        return generators.generate(load.trace, seed=seed, prefix=prefix)
    until = 60.0 + 1.5 * limit / generators.mean_rate(load.trace)
    while True:
        rows = generators.generate(load.trace, seed=seed, until_s=until, prefix=prefix)
        if len(rows) >= limit:
            return rows
        until *= 2


def _replayed(rows: Rows, load: Load, end_s: float, prefix: str, named: bool) -> Requests:
    n = len(rows)
    warnings = list(rows.warnings)
    session = same_int(-1, n) if rows.session is None else rows.session
    turn = same_int(0, n)
    predecessor = same_int(NO_PREDECESSOR, n)
    if rows.edges is not None:
        return _linked(rows, load, end_s, _content_of(rows, prefix, named))
    member = np.flatnonzero(session >= 0)
    arrival, not_before, gap = rows.arrival_s, same_float(0.0, n), same_float(0.0, n)
    if len(member):
        arrival, not_before, gap = arrival.copy(), not_before.copy(), gap.copy()
        turn, predecessor = turn.copy(), predecessor.copy()
        key = np.arange(n) if rows.turn is None else rows.turn
        order = member[np.lexsort((key[member], session[member]))]
        same = session[order][1:] == session[order][:-1]
        place = np.arange(len(order))
        opening = np.maximum.accumulate(np.where(np.concatenate(([True], ~same)), place, 0))
        turn[order] = place - opening
        predecessor[order[1:][same]] = order[:-1][same]
    later = predecessor >= 0
    before = predecessor[later]
    if not len(member):
        pass
    elif load.sessions is not None and load.sessions.replay == "absolute":
        not_before[later] = rows.arrival_s[later]
    else:
        ended = rows.arrival_s[before]
        if rows.end_s is not None:
            ended = np.where(np.isnan(rows.end_s[before]), ended, rows.end_s[before])
        gap[later] = np.maximum(rows.arrival_s[later] - ended, 0.0)
    if len(member):
        arrival[later] = np.nan
    disorder = int((before > np.flatnonzero(later)).sum())
    if disorder:
        warnings.append(
            f"{disorder} turns are recorded before the turn they follow; they are replayed in turn order"
        )

    content = _content_of(rows, prefix, named)
    if content is None and len(member):
        from simulator.workload.content import content_of_sessions

        content, broken = content_of_sessions(session, turn, rows.prompt_tokens, rows.output_tokens)
        if broken:
            warnings.append(
                f"{broken} turns are too short to contain their conversation's history; "
                "what does not fit is not shared"
            )
    return _as_recorded(rows, end_s, warnings, arrival, predecessor, gap, not_before, session, turn, content)


def _as_recorded(
    rows: Rows,
    end_s: float,
    warnings: list[str],
    arrival_s: FloatArray,
    predecessor: IntArray,
    gap_s: FloatArray,
    not_before_s: FloatArray,
    session: IntArray,
    turn: IntArray,
    content: Content | None,
    edges: IntArray | None = None,
) -> Requests:
    """The rows of a trace as requests, when each comes as was found."""
    n = len(rows)
    kinds, kind_of_row = _kinds(rows)
    part = Part(
        rows.arrival_s,
        arrival_s,
        rows.prompt_tokens,
        rows.output_tokens,
        same_int(0, n) if rows.max_output_tokens is None else rows.max_output_tokens,
        predecessor,
        gap_s,
        not_before_s,
        session,
        turn,
        kind_of_row,
        same_float(0.0, n),
        content,
        rows.request_ids,
        rows.adapter,
        edges,
        rows.images,
    )
    return Requests([part], kinds, n, end_s, rows.source, warnings)


def _content_of(rows: Rows, prefix: str, named: bool) -> Content | None:
    """What recorded prompts share, as far as the trace says it."""
    if rows.prefix_start is None or rows.prefix_ids is None:
        return rows.content
    from simulator.workload.content import content_of_blocks, content_of_named_blocks

    blocks = rows.prefix_start, rows.prefix_ids, rows.prefix_block_tokens, rows.prompt_tokens
    return content_of_named_blocks(*blocks, f"{prefix}trace {rows.source['sha256']}") if named else content_of_blocks(*blocks)


def _linked(rows: Rows, load: Load, end_s: float, content: Content | None) -> Requests:
    """Recorded requests that wait for those that the trace names: one for its predecessor, and others beside it."""
    n, edges, session = len(rows), rows.edges, rows.session
    assert edges is not None
    assert session is not None
    warnings = list(rows.warnings)
    edges = edges[np.lexsort((edges[:, 0], edges[:, 1]))]
    first = np.concatenate(([True], edges[1:, 1] != edges[:-1, 1])) if len(edges) else np.zeros(0, np.bool_)
    before, later = edges[first].T if len(edges) else (np.zeros(0, np.int64),) * 2
    predecessor = np.full(n, NO_PREDECESSOR, np.int64)
    predecessor[later] = before
    ended = rows.arrival_s if rows.end_s is None else np.where(np.isnan(rows.end_s), rows.arrival_s, rows.end_s)
    last_s = np.full(n, -np.inf)
    np.maximum.at(last_s, edges[:, 1], ended[edges[:, 0]])
    gap, not_before, arrival = np.zeros(n), np.zeros(n), rows.arrival_s.copy()
    gap[later] = np.maximum(rows.arrival_s[later] - last_s[later], 0.0)
    if rows.wait_s is not None:
        gap[later] = np.where(np.isnan(rows.wait_s[later]), gap[later], rows.wait_s[later])
    if load.sessions is not None and load.sessions.replay == "absolute":
        not_before[later], gap[later] = rows.arrival_s[later], 0.0
    arrival[later] = np.nan
    order = np.lexsort((rows.arrival_s, session))
    place = np.arange(n)
    opening = np.maximum.accumulate(np.where(np.concatenate(([True], session[order][1:] != session[order][:-1])), place, 0))
    turn = np.zeros(n, np.int64)
    turn[order] = place - opening
    if content is None and (turn > 0).any():
        warnings.append("the trace names no contents (hash_ids): the prompts of its sessions share nothing")
    joins = edges[~first]
    return _as_recorded(rows, end_s, warnings, arrival, predecessor, gap, not_before, session, turn, content, joins)


def _kinds(rows: Rows) -> tuple[tuple[RequestClass, ...], IntArray]:
    """The classes of recorded requests, one for each pair of class and model, and that of each request."""
    if rows.class_names is None and rows.models is None:
        return (RequestClass("default"),), same_int(0, len(rows))
    models: Sequence[str | None] = rows.models or (None,) * len(rows)
    pairs = list(zip(rows.class_names or ("",) * len(rows), (model or None for model in models), strict=True))
    index = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    kinds = tuple(
        RequestClass("/".join(filter(None, (name, model))) or "default", model=model, named_at=rows.named_at.get(model or ""))
        for name, model in index
    )
    return kinds, np.asarray([index[pair] for pair in pairs], np.int64)
