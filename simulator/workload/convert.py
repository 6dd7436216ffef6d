"""Writing a workload as a trace file: the project's own columns, or Mooncake's block hashes."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError
from simulator.workload.columns import Content, Workload
from simulator.workload.formats import MOONCAKE_BLOCK_TOKENS

FORMATS = ("columns", "mooncake")


def write_workload(
    workload: Workload,
    path: Path,
    *,
    trace_format: str = "columns",
    block_tokens: int = MOONCAKE_BLOCK_TOKENS,
) -> None:
    """Write `workload` to `path` (.csv, .jsonl or .parquet; Mooncake is .jsonl), whole or not at all.

    Parameters
    ----------
    trace_format : "columns" or "mooncake" (milliseconds, 512-token blocks).
    block_tokens : tokens per content block in the columns format; reading it back takes the same number as
        `prefix_block_tokens` (Parquet remembers it).

    Notes
    -----
    Sharing is kept in whole blocks. Conversations written as columns keep `session_id` and `turn`, with their
    think times as recorded gaps, and need no blocks unless something else is shared too.

    Raises
    ------
    InputError : an unknown suffix or format, or arrivals that only a run can tell (a closed loop).
    """
    if trace_format not in FORMATS:
        raise InputError(
            f"cannot write {trace_format!r}", where=str(path), mend=f"choose {' or '.join(FORMATS)}"
        )
    times = recorded_times(workload)
    suffix = path.suffix.lower()
    if trace_format == "mooncake":
        if suffix not in (".jsonl", ".ndjson"):
            raise InputError("Mooncake traces are JSON lines", where=str(path), mend="name the file .jsonl")
        lists = block_lists(workload, MOONCAKE_BLOCK_TOKENS, every_block=True)
        columns: dict[str, Any] = {
            "timestamp": np.rint(times * 1e3).astype(np.int64).tolist(),
            "input_length": workload.prompt_tokens.tolist(),
            "output_length": workload.output_tokens.tolist(),
            "hash_ids": lists,
        }
        if (workload.predecessor >= 0).any():
            columns |= _links(workload)
        order = np.argsort(times, kind="stable")
    else:
        columns, order = _own_columns(workload, times, block_tokens), np.argsort(times, kind="stable")
    columns = {name: [values[i] for i in order.tolist()] for name, values in columns.items()}
    if suffix in (".jsonl", ".ndjson"):
        names = list(columns)
        rows = zip(*columns.values(), strict=True)
        data = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()
    elif suffix == ".csv":
        data = _csv(columns)
    elif suffix == ".parquet":
        data = _parquet(columns, block_tokens)
    else:
        raise InputError(
            f"the suffix {suffix!r} names no format", where=str(path), mend="use .csv, .jsonl or .parquet"
        )
    partial = path.with_name(path.name + "-partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def recorded_times(workload: Workload) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return arrival times as a trace records them: a later turn stands its gap after the turn before it.

    Raises
    ------
    InputError : a closed loop, whose arrivals only a run can tell.
    """
    if (workload.predecessor < -1).any() or (np.isnan(workload.arrival_s) & (workload.turn == 0)).any():
        raise InputError(
            "a closed loop has no arrival times before it is run",
            where="workload.arrivals",
            mend="use an open arrival process, or write the requests of a run",
        )
    times = workload.arrival_s.copy()
    waiting = np.flatnonzero(np.isnan(times))
    while len(waiting):
        before = workload.predecessor[waiting]
        after = times[before] + workload.gap_s[waiting]
        times[waiting] = np.maximum(after, workload.not_before_s[waiting])
        left = waiting[np.isnan(times[waiting])]
        if len(left) == len(waiting):
            raise InputError(
                "a session's turns follow each other in a circle", mend="number the turns in order"
            )
        waiting = left
    return times


def _waited_for(workload: Workload) -> list[list[int]]:
    """Of each request those that it waits for."""
    found: list[list[int]] = [[before] if before >= 0 else [] for before in workload.predecessor.tolist()]
    for before, row in workload.edges.tolist() if workload.edges is not None else ():
        found[row].append(before)
    return found


def _links(workload: Workload) -> dict[str, Any]:
    """What Dynamo's agentic Mooncake lines have beside those of Mooncake."""
    names = workload.request_ids or tuple(f"r{row}" for row in range(len(workload)))
    return {
        "request_id": list(names),
        "session_id": workload.session_id.tolist(),
        "wait_for": [[names[before] for before in waited] for waited in _waited_for(workload)],
        "delay": (workload.gap_s * 1e3).tolist(),
    }


def block_lists(workload: Workload, block_tokens: int, *, every_block: bool = False) -> list[list[int]]:
    """Return each prompt's content blocks as numbers; equal numbers are equal tokens at equal positions.

    A block is shared only if it and all before it are; blocks cut by a prompt's end are its own. With
    `every_block`, private blocks get numbers of their own, so that each prompt lists ceil(prompt / block).
    """
    content = workload.content
    known: dict[tuple[Any, ...], int] = {}
    fresh = 0
    lists = []
    for i, tokens in enumerate(workload.prompt_tokens.tolist()):
        row: list[int] = []
        path: int = -1
        for parts in _whole_blocks(content, i, tokens, block_tokens):
            key = (path, parts)
            if key not in known:
                known[key], fresh = fresh, fresh + 1
            path = known[key]
            row.append(path)
        if every_block:
            missing = -(-tokens // block_tokens) - len(row)
            row.extend(range(fresh, fresh + missing))
            fresh += missing
        lists.append(row)
    return lists


def _whole_blocks(content: Content | None, row: int, tokens: int, block_tokens: int) -> list[tuple[Any, ...]]:
    """The blocks that the runs of `row` fill entirely, each as the pieces of segments that it holds."""
    if content is None:
        return []
    blocks, pieces, room, used = [], [], block_tokens, 0
    for r in range(int(content.start[row]), int(content.start[row + 1])):
        segment, offset, left = int(content.segment[r]), int(content.offset[r]), int(content.length[r])
        left = min(left, tokens - used)
        used += left
        while left:
            length = min(left, room)
            pieces.append((segment, offset, length))
            offset, left, room = offset + length, left - length, room - length
            if not room:
                blocks.append(tuple(pieces))
                pieces, room = [], block_tokens
    return blocks


def _own_columns(
    workload: Workload, times: np.ndarray[Any, np.dtype[np.float64]], block_tokens: int
) -> dict[str, Any]:
    followed = workload.predecessor[workload.predecessor >= 0]
    if (workload.edges is not None and len(workload.edges)) or len(np.unique(followed)) < len(followed):
        raise InputError(
            "sessions that branch cannot be written as columns", mend="write them as lines of Mooncake: --to mooncake"
        )
    columns: dict[str, Any] = {
        "arrival_s": times.tolist(),
        "prompt_tokens": workload.prompt_tokens.tolist(),
        "output_tokens": workload.output_tokens.tolist(),
    }
    if workload.max_output_tokens.any():
        columns["max_output_tokens"] = workload.max_output_tokens.tolist()
    sessions = bool((workload.session_id >= 0).any())
    if sessions:
        columns["session_id"] = workload.session_id.tolist()
        columns["turn"] = workload.turn.tolist()
    if workload.content is not None and not (sessions and _only_own_segments(workload)):
        columns["prefix_ids"] = block_lists(workload, block_tokens)
    if len(workload.classes) > 1:
        columns["class"] = [workload.classes[c].name for c in workload.class_index.tolist()]
    if workload.request_ids is not None:
        columns["request_id"] = list(workload.request_ids)
    return columns


def _only_own_segments(workload: Workload) -> bool:
    """Whether every run belongs to the request's own conversation, so that session_id and turn say it all."""
    content = workload.content
    assert content is not None
    counts = np.diff(content.start)
    if (counts > 1).any():
        return False
    row = np.repeat(np.arange(len(workload)), counts)
    return bool((content.segment == content.output_segment[row]).all() and (content.offset == 0).all())


def _csv(columns: dict[str, Any]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    if "prefix_ids" in columns:
        columns = {**columns, "prefix_ids": [" ".join(map(str, ids)) for ids in columns["prefix_ids"]]}
    writer.writerows(zip(*columns.values(), strict=True))
    return out.getvalue().encode()


def _parquet(columns: dict[str, Any], block_tokens: int) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if "prefix_ids" in columns:
        ids = pa.array(columns["prefix_ids"], pa.list_(pa.int64()))
        table = table.set_column(table.schema.get_field_index("prefix_ids"), "prefix_ids", ids)
        table = table.replace_schema_metadata({"block_size": str(block_tokens)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
