"""Request traces from files: the columns of a format, checked, become `Rows`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError
from simulator.workload.clocks import MOST_SPAN_S, Clock, clock_of, suspicions, unified, widest_gap
from simulator.workload.columns import BoolArray, FloatArray, IntArray
from simulator.workload.formats import FORMATS, plain_name, sniff
from simulator.workload.rows import Raw, Rows
from simulator.workload.streams import stream
from simulator.workload.tables import Table, read_table

MOST_TOKENS = 2.0**40
"""Larger token counts are taken for other data (assumed); longer prompts than the context are the engine's
to reject."""


def read_trace(
    path: Path,
    *,
    trace_format: str | None = None,
    jitter_s: float | None = None,
    prefix_block_tokens: int | None = None,
    seed: int = 0,
    stream_prefix: str = "",
) -> Rows:
    """Read a trace file.

    Parameters
    ----------
    trace_format : a name of `FORMATS`; None recognises it.
    jitter_s : uniform(0, jitter_s) added to each arrival [s]; None takes the format's own (3 s for Mooncake,
        else none). Drawn from `seed`.
    prefix_block_tokens : tokens per content block; None takes the format's.

    Raises
    ------
    InputError : in words, with file and line, for whatever cannot be a trace.
    """
    table = read_table(path)
    name = trace_format or sniff(table)
    raw = FORMATS[name](table)
    rows = check(table, raw, prefix_block_tokens)
    jitter = raw.jitter_s if jitter_s is None else jitter_s
    source: dict[str, Any] = {
        "name": path.name,
        "kind": "trace",
        "format": name,
        "sha256": table.sha256,
        "jitter_s": jitter,
    }
    licence = raw.licence or table.metadata.get("licence")
    if licence:
        source["licence"] = licence
    if table.metadata.get("source"):
        source["ref"] = table.metadata["source"]
    if jitter > 0:
        times = rows.arrival_s + stream(seed, stream_prefix + "trace.jitter").random(len(rows)) * jitter
        rows = take(replace(rows, arrival_s=times), np.argsort(times, kind="stable"))
    return replace(rows, source=source)


def take(rows: Rows, index: IntArray) -> Rows:
    """Return the records of `index`, in that order."""
    start, ids = rows.prefix_start, rows.prefix_ids
    if start is not None and ids is not None:
        counts = np.diff(start)[index]
        new = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        ids = ids[np.repeat(start[:-1][index] - new[:-1], counts) + np.arange(new[-1])]
        start = new
    content = rows.content
    if content is not None:
        from simulator.workload.columns import take_content

        content = take_content(content, index)

    def pick(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else tuple(names[i] for i in index.tolist())

    return replace(
        rows,
        arrival_s=rows.arrival_s[index],
        prompt_tokens=rows.prompt_tokens[index],
        output_tokens=rows.output_tokens[index],
        max_output_tokens=None if rows.max_output_tokens is None else rows.max_output_tokens[index],
        session=None if rows.session is None else rows.session[index],
        turn=None if rows.turn is None else rows.turn[index],
        end_s=None if rows.end_s is None else rows.end_s[index],
        prefix_start=start,
        prefix_ids=ids,
        content=content,
        edges=None if rows.edges is None else among(rows.edges, index, len(rows)),
        wait_s=None if rows.wait_s is None else rows.wait_s[index],
        class_names=pick(rows.class_names),
        models=pick(rows.models),
        request_ids=pick(rows.request_ids),
        adapter=None if rows.adapter is None else rows.adapter[index],
        images=None if rows.images is None else rows.images[index],
    )


def among(edges: IntArray, index: IntArray, n: int) -> IntArray:
    """The pairs of those of n records that are of `index`, numbered as they stand there."""
    place = np.full(n, -1, np.int64)
    place[index] = np.arange(len(index))
    found = place[edges]
    return found[(found >= 0).all(axis=1)]


def _numbered(values: list[Any]) -> IntArray:
    """Session names as numbers in order of appearance, -1 where empty."""
    numbers: dict[Any, int] = {}
    out = []
    for value in map(plain_name, values):
        if value is None or value == "" or value == -1 or (isinstance(value, float) and np.isnan(value)):
            out.append(-1)
        else:
            out.append(numbers.setdefault(value, len(numbers)))
    return np.asarray(out, np.int64)


def check(table: Table, raw: Raw, prefix_block_tokens: int | None, clock: Clock | None = None) -> Rows:
    """Drop what the format says to drop, refuse what cannot be, count time from the first request, sort by arrival.

    `clock` is that of the trace where `table` is a part of it.
    """
    warnings = list(raw.warnings)
    n = len(raw.prompt)
    if raw.lines is not None:
        table = replace(table, lines=raw.lines)
    arrival = np.zeros(n) if raw.arrival_s is None else raw.arrival_s
    keep = np.ones(n, bool) if raw.keep is None else raw.keep
    if not keep.all():
        warnings.append(f"{int((~keep).sum())} of {n} rows dropped ({raw.drops})")
    if not keep.any():
        raise InputError(
            f"all {n} rows are dropped ({raw.drops})", where=table.path, mend="check the columns"
        )
    kept = np.flatnonzero(keep)
    time_name, prompt_name, output_name = raw.names
    if raw.arrival_s is not None:
        _refuse(table, kept, np.isnan(arrival), time_name, arrival, "is empty or NaN")
        _refuse(table, kept, np.isinf(arrival), time_name, arrival, "is infinite")
    for name, values in ((prompt_name, raw.prompt), (output_name, raw.output)):
        _refuse(table, kept, np.isnan(values), name, values, "is empty or NaN")
        _refuse(table, kept, values == 0, name, values, "is zero; a request has at least one token")
        _refuse_tokens(table, kept, name, values)
    if raw.turn is not None:
        _refuse(table, kept, np.abs(raw.turn) > MOST_TOKENS, "turn", raw.turn, "is no plausible turn")
    if raw.lasted_s is not None:
        _refuse(table, kept, np.abs(raw.lasted_s) > MOST_SPAN_S, "the elapsed time", raw.lasted_s, "is no plausible time")
    if raw.max_output is not None:
        _refuse_tokens(table, kept, "max_output_tokens", np.nan_to_num(raw.max_output, nan=0.0, posinf=np.inf))
    if raw.request_ids is not None:
        _refuse_twice(table, kept, [plain_name(name) for name in raw.request_ids])
    start, ids, block = _checked_blocks(table, raw, prefix_block_tokens, warnings)

    whole = clock is None
    if clock is None:
        clock = clock_of(arrival[kept])
    if clock is None:
        warnings.append("the times count from 1970 in several units; each is taken by its size")
        arrival = unified(arrival)
        clock = Clock(float(arrival[kept].min()), 1.0)
    stamps, arrival = arrival, clock.seconds(arrival)
    far = arrival > MOST_SPAN_S
    _refuse(table, kept, far, time_name, stamps, f"is more than {MOST_SPAN_S:g} s after the first request")
    order = kept[np.argsort(arrival[kept], kind="stable")]
    if raw.edges is None and not np.array_equal(order, kept):
        warnings.append("the trace is out of order; it was sorted by arrival")
    span = float(arrival[order[-1]])
    if whole and raw.arrival_s is not None:
        gap_s, after = widest_gap(arrival[order])
        warnings += clock.said(span)
        warnings += suspicions(len(order), span, gap_s, table.where(int(order[after])))
    end_s = None if raw.lasted_s is None else arrival + raw.lasted_s
    turn = None
    session = None
    if raw.session is not None:
        session = _numbered(raw.session)
        turn = raw.turn
        if turn is not None and np.isnan(turn[kept][session[kept] >= 0]).any():
            bad = kept[np.isnan(turn[kept]) & (session[kept] >= 0)]
            raise InputError(
                "turn is empty in a session", where=table.where(int(bad[0])), mend="number the turns"
            )
        if turn is not None:
            _refuse_turns(table, kept, session, turn)
    limits = None if raw.max_output is None else _whole(raw.max_output, keep)
    models = None if raw.models is None else tuple("" if m is None or m != m else _name(m) for m in raw.models)
    rows = Rows(
        arrival,
        np.where(keep, raw.prompt, 1).astype(np.int64),
        np.where(keep, raw.output, 1).astype(np.int64),
        span,
        max_output_tokens=limits,
        session=session,
        turn=None if turn is None else _whole(turn, keep),
        end_s=end_s,
        prefix_start=start,
        prefix_ids=ids,
        prefix_block_tokens=block,
        content=raw.content,
        edges=raw.edges,
        wait_s=raw.wait_s,
        class_names=None if raw.class_names is None else tuple(_name(c) for c in raw.class_names),
        models=models,
        named_at={name: table.where(models.index(name)) for name in dict.fromkeys(models or ())} if models else {},
        request_ids=None if raw.request_ids is None else tuple(_name(r) for r in raw.request_ids),
        adapter=None if raw.adapters is None else _numbered(raw.adapters) + 1,
        images=None if raw.images is None else np.stack([_whole(values, keep) for values in raw.images], axis=1),
        warnings=tuple(warnings),
    )
    return take(rows, order)


def _whole(values: FloatArray, keep: BoolArray) -> IntArray:
    """Whole numbers, 0 for what is empty or dropped."""
    return np.where(keep & ~np.isnan(values), values, 0.0).astype(np.int64)


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _checked_blocks(
    table: Table, raw: Raw, given: int | None, warnings: list[str]
) -> tuple[IntArray | None, IntArray | None, int]:
    if raw.blocks is None:
        if given is not None:
            warnings.append("prefix_block_tokens is given, but the trace has no prefix_ids")
        return None, None, 0
    start, ids = raw.blocks
    block = given or raw.block_tokens
    if not block:
        raise InputError(
            "prefix_ids needs to know how many tokens a block holds",
            where=table.path,
            mend="set workload.prefix_block_tokens",
        )
    counts = np.diff(start)
    over = np.flatnonzero(np.nan_to_num(counts - np.ceil(raw.prompt / block)) > 0)
    if len(over):
        i = int(over[0])
        warnings.append(
            f"{len(over)} prompts list more blocks than they have tokens (first at {table.where(i)}: "
            f"{counts[i]} blocks of {block} for {raw.prompt[i]:g} tokens); the surplus is ignored"
        )
    return start, ids, block


def _refuse(table: Table, kept: IntArray, bad: Any, name: str, values: FloatArray, words: str) -> None:
    wrong = kept[bad[kept]]
    if len(wrong):
        i = int(wrong[0])
        shown = "" if np.isnan(values[i]) else f" ({values[i]:g})"
        more = f"; so are {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(
            f"{name}{shown} {words}{more}", where=table.where(i), mend="correct or remove that record"
        )


def _refuse_tokens(table: Table, kept: IntArray, name: str, values: FloatArray) -> None:
    _refuse(table, kept, np.isinf(values), name, values, "is infinite")
    _refuse(table, kept, values < 0, name, values, "is negative")
    _refuse(table, kept, values != np.floor(values), name, values, "is no whole number")
    _refuse(table, kept, values > MOST_TOKENS, name, values, "is no plausible number of tokens")


def _refuse_twice(table: Table, kept: IntArray, names: list[Any]) -> None:
    seen: dict[Any, int] = {}
    for i in kept.tolist():
        if names[i] in seen:
            raise InputError(
                f"request_id {_name(names[i])!r} appears twice, first at {table.unit} "
                f"{int(table.lines[seen[names[i]]])}",
                where=table.where(i),
                mend="give each request its own",
            )
        seen[names[i]] = i


def _refuse_turns(table: Table, kept: IntArray, session: IntArray, turn: FloatArray) -> None:
    seen: set[tuple[int, float]] = set()
    for i in kept.tolist():
        key = (int(session[i]), float(turn[i]))
        if key[0] < 0:
            continue
        if key in seen:
            raise InputError(
                f"a session has two turns numbered {turn[i]:g}",
                where=table.where(i),
                mend="number the turns in order",
            )
        seen.add(key)
