"""From a scenario's `workload` section to columns.

Decisions where the scenario is silent:

- Classes are independent processes, each with its own named streams; a class's `weight` multiplies its rate
  (a trace's `rate_scale`, a closed loop's concurrency, its share of `requests` in a batch). They are merged
  in order of arrival.
- `shared_prefix` tokens and a conversation's history come on top of `prompt_tokens`.
- With `sessions`, arrivals are those of conversations; `requests` counts requests.
- `window` is in the trace's own seconds and starts the clock at its first; `rate_scale` then divides the
  times.
- A client limit below the drawn output ends the output there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hardware_profiles.errors import InputError, nearest
from simulator.workload import arrivals, generators, lengths
from simulator.workload.columns import (
    ANY_OF_CLASS,
    NO_PREDECESSOR,
    Content,
    FloatArray,
    IntArray,
    RequestClass,
    Workload,
    join_contents,
    same_float,
    same_int,
    take_content,
)
from simulator.workload.content import content_of_blocks, content_of_sessions
from simulator.workload.rows import Rows
from simulator.workload.spec import (
    ClassLoad,
    ClosedLoopArrivals,
    EmpiricalLength,
    Length,
    Load,
    WorkloadSpec,
    quantile_points,
)
from simulator.workload.streams import stream

FASTEST_REQUEST_S = 0.005
FASTEST_TOKEN_S = 0.002
"""A closed loop's pool of requests is sized as if each took at least these times, whatever serves it
(assumed, 2026, not measured; a run that is faster uses the pool up before the duration)."""
LARGEST_POOL = 500_000
"""Requests prepared for one closed loop at most; a run that uses them up ends early, with the warning."""


MOST_REQUESTS = 20_000_000
"""Requests of one run (assumed: their columns take some 2 GB)."""


@dataclass(frozen=True)
class _Part:
    """One load's columns before merging; `anchor_s` is the time that orders its rows among others'."""

    anchor_s: FloatArray
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
    end_s: float
    source: dict[str, Any]
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.arrival_s)


def build_workload(spec: WorkloadSpec, *, seed: int, base_dir: Path) -> Workload:
    """Build the columns of `spec`.

    Parameters
    ----------
    seed : every random stream is a function of it and of the stream's name.
    base_dir : folder that relative trace and length files are relative to.

    Raises
    ------
    InputError : a trace that cannot be read, or no request at all.
    """
    parts = []
    if spec.classes is None:
        parts.append(_load(spec, spec, spec.max_output_tokens, seed, base_dir, "", 1.0, spec.requests))
    else:
        shares = _shares(spec.classes, spec.requests)
        for load, requests in zip(spec.classes, shares, strict=True):
            limit = load.max_output_tokens if load.max_output_tokens is not None else spec.max_output_tokens
            part = _load(spec, load, limit, seed, base_dir, f"class.{load.name}.", load.weight, requests)
            slo = load.slo
            judged = RequestClass(
                load.name,
                load.priority,
                slo.bounds_ms() if slo is not None else None,
                slo.attainment if slo is not None else None,
            )
            whole = np.zeros(len(part), np.int64)
            part = replace(part, classes=(judged,), class_index=whole)
            if part.request_ids is not None:
                part = replace(part, request_ids=tuple(f"{load.name}/{name}" for name in part.request_ids))
            parts.append(part)
    merged = _merge(parts, [c.name for c in spec.classes or ()])
    merged = _head(merged, spec.requests)
    if not len(merged):
        raise InputError(
            "no request arrives",
            where="workload",
            mend="lengthen duration or window, or raise the rate",
        )
    return Workload(
        merged.arrival_s,
        merged.prompt_tokens,
        merged.output_tokens,
        merged.max_output_tokens,
        merged.predecessor,
        merged.gap_s,
        merged.not_before_s,
        merged.session_id,
        merged.turn,
        merged.class_index,
        merged.classes,
        merged.content,
        merged.request_ids,
        _duration(spec, merged),
        spec.warmup,
        spec.drain_s,
        merged.source,
        merged.warnings,
    )


def _duration(spec: WorkloadSpec, part: _Part) -> float:
    if spec.duration is not None:
        return spec.duration
    if np.isnan(part.arrival_s).any():
        return math.inf
    last = float(part.arrival_s.max())
    return max(part.end_s, last) if spec.requests is None else last


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
    limit: Any,
    seed: int,
    base_dir: Path,
    prefix: str,
    weight: float,
    requests: int | None,
) -> _Part:
    if load.trace is not None:
        part = _traced(spec, load, seed, base_dir, prefix, weight, requests)
    else:
        part = _synthetic(spec, load, limit, seed, base_dir, prefix, weight, requests)
        return part
    return _limited(part, limit, seed, base_dir, prefix)


def _limited(part: _Part, limit: Any, seed: int, base_dir: Path, prefix: str) -> _Part:
    """Apply the client's limit to recorded requests; recorded prompts stay as they are."""
    limits = part.max_output_tokens
    if limit is not None:
        limits = _client_limits(limit, part.output_tokens, seed, base_dir, prefix)
    over = (limits > 0) & (part.output_tokens > limits)
    warnings, outputs = part.warnings, part.output_tokens
    if over.any():
        warnings = (*warnings, f"{int(over.sum())} outputs are cut at max_output_tokens")
        outputs = np.where(over, limits, outputs)
    return replace(part, output_tokens=outputs, max_output_tokens=limits, warnings=warnings)


def _client_limits(
    limit: Length | Literal["equal"], outputs: IntArray, seed: int, base_dir: Path, prefix: str
) -> IntArray:
    if limit == "equal":
        return outputs.copy()
    return sample_lengths(
        limit, stream(seed, prefix + "max_output_tokens"), len(outputs), base_dir, "max_output_tokens"
    )


# Synthetic ----------------------------------------------------------------------------------------


def sample_lengths(spec: Length, rng: np.random.Generator, n: int, base_dir: Path, name: str) -> IntArray:
    """Return n lengths [tokens] of the distribution `spec`; `name` is the field, and a file's column."""
    if spec.kind == "constant":
        values = lengths.constant(spec.value, n)
    elif spec.kind == "uniform":
        values = lengths.uniform(rng, spec.low, spec.high, n)
    elif spec.kind == "normal":
        values = lengths.normal(rng, spec.mean, spec.std, n)
    elif spec.kind == "lognormal":
        values = lengths.lognormal(rng, spec.mean, spec.p99, n)
    elif spec.quantiles is not None:
        points = np.asarray(quantile_points(spec.quantiles))
        values = lengths.quantiles(rng, points[:, 0], points[:, 1], n)
    else:
        values = lengths.samples(rng, _measured(spec, base_dir, name), n)
    return lengths.to_tokens(values, spec.min, spec.max)


def _measured(spec: EmpiricalLength, base_dir: Path, name: str) -> FloatArray:
    path = base_dir / str(spec.file)
    if path.suffix.lower() in (".csv", ".jsonl", ".ndjson", ".json", ".parquet", ".gz"):
        from simulator.workload.tables import read_table

        table = read_table(path)
        values = table.number(name)
    else:
        try:
            lines = path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            raise InputError("no such file of lengths", where=str(path), mend="check the path") from None
        except (OSError, UnicodeDecodeError):
            raise InputError("cannot be read as text", where=str(path), mend="one number a line") from None
        try:
            values = np.asarray([float(x) for x in lines])
        except ValueError as error:
            raise InputError(
                f"holds a line that is no number ({error})", where=str(path), mend="one number a line"
            ) from None
    if not len(values) or not np.isfinite(values).all() or (values < 1).any():
        raise InputError(
            "lengths must be numbers of at least 1, and there must be some",
            where=str(path),
            mend="correct the file",
        )
    return values


def _starts(
    load: Load, rng: np.random.Generator, until_s: float, limit: int | None, weight: float
) -> FloatArray:
    """Arrival times of the open processes."""
    spec = load.arrivals
    assert spec is not None
    rate = max((getattr(spec, key) for key in ("rate", "rate_on") if hasattr(spec, key)), default=0.0)
    expected = min(rate * weight * until_s, math.inf if limit is None else limit)
    if expected > MOST_REQUESTS:
        raise InputError(
            f"the rate asks for about {expected:.3g} requests; a run holds at most {MOST_REQUESTS:,}",
            where="workload.arrivals",
            mend="lower the rate or shorten the duration",
        )
    process = arrival_process(load, rng, weight)
    if spec.kind == "constant":
        return arrivals.constant(spec.rate * weight, until_s, limit)
    return np.zeros(limit or 0) if process is None else arrivals.until(process, until_s, limit)


def arrival_process(load: Load, rng: np.random.Generator, weight: float) -> arrivals.Stretches | None:
    """The open process of a load; None for a batch or a closed loop."""
    spec = load.arrivals
    assert spec is not None
    if spec.kind == "poisson":
        return arrivals.poisson_process(rng, spec.rate * weight)
    if spec.kind == "gamma":
        return arrivals.gamma_process(rng, spec.rate * weight, spec.cv)
    if spec.kind == "constant":
        return arrivals.constant_process(spec.rate * weight)
    if spec.kind == "onoff":
        on, off = spec.rate_on * weight, spec.rate_off * weight
        return arrivals.onoff_process(rng, on, off, spec.on_s, spec.off_s)
    if spec.kind == "diurnal":
        return arrivals.diurnal_process(rng, spec.rate * weight, spec.peak_to_mean, spec.period_s)
    return None


def _synthetic(
    spec: WorkloadSpec,
    load: Load,
    limit: Any,
    seed: int,
    base_dir: Path,
    prefix: str,
    weight: float,
    requests: int | None,
) -> _Part:
    assert load.arrivals is not None
    assert load.prompt_tokens is not None
    assert load.output_tokens is not None
    warnings: list[str] = []
    until = spec.duration if spec.duration is not None else math.inf
    loop = load.arrivals if isinstance(load.arrivals, ClosedLoopArrivals) else None
    if loop is None:
        starts = _starts(load, stream(seed, prefix + "arrivals"), until, requests, weight)
    else:
        starts = np.zeros(_pool(loop, load, until, requests, seed, base_dir, prefix, warnings))
    turns = np.ones(len(starts), np.int64)
    if load.sessions is not None:
        assert load.sessions.turns is not None
        turns = sample_lengths(
            load.sessions.turns, stream(seed, prefix + "turns"), len(starts), base_dir, "turns"
        )
    conversation = np.repeat(np.arange(len(starts)), turns)
    first = np.concatenate(([0], np.cumsum(turns)[:-1])).astype(np.int64) if len(turns) else turns
    turn = np.arange(len(conversation)) - first[conversation]
    if requests is not None and len(conversation) > requests:
        conversation, turn = conversation[:requests], turn[:requests]
    n = len(conversation)

    fresh = sample_lengths(
        load.prompt_tokens, stream(seed, prefix + "prompt_tokens"), n, base_dir, "prompt_tokens"
    )
    outputs = sample_lengths(
        load.output_tokens, stream(seed, prefix + "output_tokens"), n, base_dir, "output_tokens"
    )
    limits = same_int(0, n)
    if limit is not None:
        limits = _client_limits(limit, outputs, seed, base_dir, prefix)
        cut = outputs > limits
        if cut.any():
            warnings.append(f"{int(cut.sum())} outputs are cut at max_output_tokens")
        outputs = np.minimum(outputs, limits)
    # History: all that came before in the conversation.
    spoken = np.concatenate(([0], np.cumsum(fresh + outputs)))[:-1].astype(np.int64) if n else fresh
    prompts = fresh + spoken - spoken[first[conversation]] if n else fresh

    group: IntArray | None = None
    head = 0
    if load.shared_prefix is not None:
        head = load.shared_prefix.tokens
        chosen = stream(seed, prefix + "prefix_groups").integers(0, load.shared_prefix.groups, len(starts))
        group = chosen[conversation].astype(np.int64)
        prompts = prompts + head
    session = conversation.astype(np.int64) if load.sessions is not None else same_int(-1, n)
    content = None
    if group is not None or load.sessions is not None:
        content, _ = content_of_sessions(session, turn, prompts, outputs, group=group, group_tokens=head)

    later = turn > 0
    arrival = np.where(later, np.nan, starts[conversation])
    predecessor = np.where(later, np.arange(n) - 1, NO_PREDECESSOR)
    think = 0.0 if load.sessions is None else load.sessions.think_time_s or 0.0
    gap = np.where(later, think, 0.0)
    if loop is not None:
        clients = _clients(loop, weight)
        opens = np.flatnonzero(~later & (conversation >= clients))
        arrival[opens] = np.nan
        gap[opens] = loop.think_time_s
        if load.sessions is None:
            predecessor[opens] = ANY_OF_CLASS
        else:
            # Each client holds one conversation after another: its next opens when its last has ended.
            last = first + turns - 1
            predecessor[opens] = last[conversation[opens] - clients]
    return _Part(
        starts[conversation],
        arrival,
        prompts,
        outputs,
        limits,
        predecessor.astype(np.int64),
        gap,
        same_float(0.0, n),
        session,
        turn.astype(np.int64),
        same_int(0, n),
        (RequestClass("default"),),
        content,
        None,
        until,
        {"name": "synthetic", "kind": "synthetic"},
        tuple(warnings),
    )


def _clients(loop: ClosedLoopArrivals, weight: float) -> int:
    return max(1, round(loop.concurrency * weight))


def _pool(
    loop: ClosedLoopArrivals,
    load: Load,
    until_s: float,
    requests: int | None,
    seed: int,
    base_dir: Path,
    prefix: str,
    warnings: list[str],
) -> int:
    """How many requests (or conversations) a closed loop can possibly use up before `until_s`."""
    weight = load.weight if isinstance(load, ClassLoad) else 1.0
    clients = _clients(loop, weight)
    if math.isinf(until_s):
        return requests or 0
    assert load.output_tokens is not None
    outputs = sample_lengths(
        load.output_tokens, stream(seed, prefix + "output_tokens"), 1000, base_dir, "output_tokens"
    )
    shortest_s = FASTEST_REQUEST_S + FASTEST_TOKEN_S * float(outputs.mean()) + loop.think_time_s
    needed = clients * (2 + math.ceil(until_s / shortest_s))
    if needed > LARGEST_POOL and requests is None:
        warnings.append(
            f"the closed loop is prepared for {LARGEST_POOL} requests; "
            "a faster run ends before the duration: shorten the duration"
        )
    return min(needed, max(LARGEST_POOL, clients), requests if requests is not None else needed)


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
) -> _Part:
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
    return _replayed(replace(rows, source=source, warnings=warnings), load, ends)


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


def _replayed(rows: Rows, load: Load, end_s: float) -> _Part:
    n = len(rows)
    warnings = list(rows.warnings)
    session = same_int(-1, n) if rows.session is None else rows.session
    turn = same_int(0, n)
    predecessor = same_int(NO_PREDECESSOR, n)
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

    content = rows.content
    if rows.prefix_start is not None and rows.prefix_ids is not None:
        content = content_of_blocks(
            rows.prefix_start, rows.prefix_ids, rows.prefix_block_tokens, rows.prompt_tokens
        )
    elif content is None and len(member):
        content, broken = content_of_sessions(session, turn, rows.prompt_tokens, rows.output_tokens)
        if broken:
            warnings.append(
                f"{broken} turns are too short to contain their conversation's history; "
                "what does not fit is not shared"
            )
    names = tuple(dict.fromkeys(rows.class_names)) if rows.class_names is not None else ("default",)
    index = {name: i for i, name in enumerate(names)}
    return _Part(
        rows.arrival_s,
        arrival,
        rows.prompt_tokens,
        rows.output_tokens,
        same_int(0, n) if rows.max_output_tokens is None else rows.max_output_tokens,
        predecessor,
        gap,
        not_before,
        session,
        turn,
        same_int(0, n)
        if rows.class_names is None
        else np.asarray([index[c] for c in rows.class_names], np.int64),
        tuple(RequestClass(name) for name in names),
        content,
        rows.request_ids,
        end_s,
        rows.source,
        tuple(warnings),
    )


# Together -----------------------------------------------------------------------------------------


def _merge(parts: list[_Part], names: list[str]) -> _Part:
    if len(parts) == 1:
        merged = parts[0]
        return (
            merged
            if not names
            else replace(merged, source={"kind": "classes", "classes": {names[0]: merged.source}})
        )
    sizes = [len(p) for p in parts]
    anchor = np.concatenate([p.anchor_s for p in parts])
    order = np.argsort(anchor, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    shift = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    predecessor = np.concatenate(
        [
            np.where(p.predecessor >= 0, p.predecessor + s, p.predecessor)
            for p, s in zip(parts, shift, strict=True)
        ]
    )
    predecessor = np.where(predecessor >= 0, place[predecessor], predecessor)
    sessions, numbered = [], 0
    for p in parts:
        sessions.append(np.where(p.session_id >= 0, p.session_id + numbered, -1))
        numbered += int(p.session_id.max(initial=-1)) + 1
    content = join_contents([p.content for p in parts], sizes)
    ids = None
    if any(p.request_ids is not None for p in parts):
        every = [
            name
            for p, c in zip(parts, names, strict=True)
            for name in (p.request_ids or tuple(f"{c}/r{i}" for i in range(len(p))))
        ]
        ids = tuple(every[i] for i in order.tolist())

    def join(name: str) -> Any:
        return np.concatenate([getattr(p, name) for p in parts])[order]

    return _Part(
        anchor[order],
        join("arrival_s"),
        join("prompt_tokens"),
        join("output_tokens"),
        join("max_output_tokens"),
        predecessor[order],
        join("gap_s"),
        join("not_before_s"),
        np.concatenate(sessions)[order],
        join("turn"),
        np.repeat(np.arange(len(parts)), sizes)[order],
        tuple(p.classes[0] for p in parts),
        None if content is None else take_content(content, order),
        ids,
        max(p.end_s for p in parts),
        {"kind": "classes", "classes": {c: p.source for c, p in zip(names, parts, strict=True)}},
        tuple(f"{c}: {w}" for c, p in zip(names, parts, strict=True) for w in p.warnings),
    )


def _head(part: _Part, requests: int | None) -> _Part:
    """The first `requests` rows; a row's predecessor stands before it, so none is lost."""
    if requests is None or len(part) <= requests:
        return part
    rows = np.arange(requests)
    columns = {
        name: getattr(part, name)[:requests]
        for name in (
            "anchor_s",
            "arrival_s",
            "prompt_tokens",
            "output_tokens",
            "max_output_tokens",
            "predecessor",
            "gap_s",
            "not_before_s",
            "session_id",
            "turn",
            "class_index",
        )
    }
    return replace(
        part,
        **columns,
        content=None if part.content is None else take_content(part.content, rows),
        request_ids=None if part.request_ids is None else part.request_ids[:requests],
    )
