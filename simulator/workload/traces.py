"""Readers of request traces: each format's columns become `Rows`.

The format is recognised by its columns; `trace_format` overrides. Own format: ``arrival_s, prompt_tokens,
output_tokens`` with, if wanted, ``max_output_tokens, session_id, turn, prefix_ids, class, request_id``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError
from simulator.workload.clocks import MOST_SPAN_S, Clock, clock_of, suspicions, unified, widest_gap
from simulator.workload.columns import FloatArray, IntArray
from simulator.workload.rows import Rows
from simulator.workload.streams import stream
from simulator.workload.tables import Table, read_table

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens per hash block (datasheet: kvcache-ai/Mooncake FAST25-release/traces, 2025)."""
MOONCAKE_JITTER_S = 3.0
"""Arrival times are recorded on a grid of 3 s (measured: 800 distinct times among the first 7 851 requests,
kvcache-ai/Mooncake@3b5a594); replayed literally they make bursts that were not there."""
BAILIAN_BLOCK_TOKENS = 16
"""Tokens per hash block (datasheet: alibaba-edu/qwen-bailian-usagetraces-anon README, 2025)."""
CHARACTERS_PER_TOKEN = 4.0
"""Assumed where a trace holds text without token counts (common rule of thumb for English, 2023)."""
MOST_TOKENS = 2.0**40
"""Larger token counts are taken for other data (assumed); longer prompts than the context are the engine's
to reject."""


@dataclass(frozen=True)
class Raw:
    """A format's columns before checking; `keep` says which records count, `drops` why others do not.

    `arrival_s` counts from any start, or is calendar times in any unit; `lasted_s` is what a request took.
    """

    arrival_s: FloatArray | None
    prompt: FloatArray
    output: FloatArray
    names: tuple[str, str, str]
    keep: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    drops: str = ""
    max_output: FloatArray | None = None
    session: list[Any] | None = None
    turn: FloatArray | None = None
    lasted_s: FloatArray | None = None
    blocks: Any = None
    block_tokens: int = 0
    class_names: list[Any] | None = None
    request_ids: list[Any] | None = None
    licence: str | None = None
    jitter_s: float = 0.0
    lines: IntArray | None = None
    warnings: tuple[str, ...] = ()


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


def sniff(table: Table) -> str:
    """Return the name of the format that the table's columns show.

    Raises
    ------
    InputError : none matches; the missing columns of the closest format are named.
    """
    have = {name.lower() for name in table.columns}
    for name, needed in _SIGNS:
        if needed <= have:
            return name
    name, needed = max(_SIGNS[::-1], key=lambda sign: len(sign[1] & have) / len(sign[1]))
    missing = sorted(needed - have)
    spare = [column for column in table.columns if column.lower() not in needed]
    meant = {column: _meant(column, missing) for column in spare}
    renamed = [f"nearest to {right} is {column!r}" for column, right in meant.items() if right]
    hint = f"; {', '.join(renamed)}" if renamed else ""
    only = next(iter(table.columns), "")
    split = next((mark for mark in ";\t|" if len(table.columns) == 1 and mark in only), None)
    if split is not None:
        raise InputError(
            f"its columns are separated by {'a tab' if split == chr(9) else repr(split)}, not by a comma",
            where=f"{table.path}, line 1",
            mend="write the file with commas (decimal points, no thousands separators)",
        )
    raise InputError(
        f"the columns ({', '.join(list(table.columns)[:12])}) are of no known trace format; "
        f"closest is {'the plain one' if name == 'columns' else name}, which lacks {', '.join(missing)}{hint}",
        where=table.path,
        mend="name the columns arrival_s, prompt_tokens, output_tokens, or set trace_format",
    )


OWN_COLUMNS = (
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "max_output_tokens",
    "session_id",
    "turn",
    "prefix_ids",
    "hash_ids",
    "class",
    "request_id",
)
"""Columns of the tool's own format."""
OTHER_NAMES = {
    "arrival_s": (
        "arrival",
        "arrival_time",
        "arrived_at",
        "timestamp",
        "time",
        "time_s",
        "start_time",
        "arrival_time_s",
    ),
    "prompt_tokens": (
        "input_length",
        "input_tokens",
        "prompt_len",
        "prompt_length",
        "num_prefill_tokens",
        "isl",
        "context_tokens",
    ),
    "output_tokens": (
        "output_length",
        "output_len",
        "completion_tokens",
        "generated_tokens",
        "num_decode_tokens",
        "osl",
    ),
    "max_output_tokens": ("max_tokens", "max_new_tokens", "max_completion_tokens"),
    "session_id": ("session", "conversation_id", "chat_id", "user_id"),
    "turn": ("turn_index", "turn_id"),
    "prefix_ids": ("prefix_id", "block_ids", "prefix_hashes", "block_hashes"),
    "class": ("class_name", "request_class"),
}
"""What other tools call a column of the own format."""


def _meant(column: str, candidates: Sequence[str]) -> str | None:
    """The column of `candidates` that another spelling means, or None."""
    plain = column.strip().lower().replace(" ", "_").replace("-", "_")
    for name in candidates:
        if plain == name or plain in OTHER_NAMES.get(name, ()):
            return name
    found = difflib.get_close_matches(plain, candidates, 1, 0.75)
    return found[0] if found else None


def _unread(table: Table) -> tuple[str, ...]:
    """One warning that names the columns of the own format's table that nothing reads."""
    absent = [name for name in OWN_COLUMNS if name not in table.columns]
    words = []
    for column in (c for c in table.columns if c not in OWN_COLUMNS):
        meant = _meant(column, absent)
        words.append(f"{column} (rename it {meant}, if it holds that)" if meant else column)
    if not words:
        return ()
    return (f"columns of the trace that nothing reads: {', '.join(words)}",)


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
        class_names=pick(rows.class_names),
        request_ids=pick(rows.request_ids),
    )


# Formats ------------------------------------------------------------------------------------------


def _named(table: Table, name: str) -> str:
    """The column of that name, whatever its case."""
    return next((column for column in table.columns if column.lower() == name.lower()), name)


def _azure(table: Table) -> Raw:
    names = tuple(_named(table, c) for c in ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    time, prompt, output = names
    arrival = _times(table, time)
    outputs = table.number(output)
    prompts = table.number(prompt)
    keep = (outputs != 0) & (prompts != 0)
    return Raw(
        arrival,
        prompts,
        outputs,
        (time, prompt, output),
        keep=keep,
        drops="no tokens",
        licence="CC-BY-4.0 (Azure public dataset)",
    )


def _mooncake(table: Table) -> Raw:
    blocks = _blocks(table, _named(table, "hash_ids")) if "hash_ids" in table.columns else None
    outputs = table.number("output_length")
    return Raw(
        table.number("timestamp") / 1e3,
        table.number("input_length"),
        outputs,
        ("timestamp", "input_length", "output_length"),
        keep=outputs != 0,
        drops="no output",
        blocks=blocks,
        block_tokens=MOONCAKE_BLOCK_TOKENS,
        jitter_s=MOONCAKE_JITTER_S,
    )


def _bailian(table: Table) -> Raw:
    chat, parent = table.columns["chat_id"], table.columns.get("parent_chat_id")
    session: list[Any] | None = None
    if parent is not None:
        root: dict[Any, Any] = {}
        session = []
        for own, above in zip(list(chat), list(parent), strict=True):
            root[own] = root.get(above, own)
            session.append(root[own])
    outputs = table.number("output_length")
    blocks = _blocks(table, "hash_ids") if "hash_ids" in table.columns else None
    return Raw(
        table.number("timestamp"),
        table.number("input_length"),
        outputs,
        ("timestamp", "input_length", "output_length"),
        keep=outputs != 0,
        drops="no output",
        session=session,
        turn=table.number("turn") if "turn" in table.columns else None,
        blocks=blocks,
        block_tokens=BAILIAN_BLOCK_TOKENS,
        licence="Apache-2.0 (Qwen-Bailian usage traces)",
    )


def _burstgpt(table: Table) -> Raw:
    time, prompt, output = (_named(table, c) for c in ("Timestamp", "Request tokens", "Response tokens"))
    outputs, prompts = table.number(output), table.number(prompt)
    session, elapsed = table.columns.get(_named(table, "Session ID")), _named(table, "Elapsed time")
    return Raw(
        table.number(time),
        prompts,
        outputs,
        (time, prompt, output),
        keep=(outputs != 0) & (prompts != 0),
        drops="failed requests, recorded with 0 tokens",
        session=None if session is None else list(session),
        lasted_s=table.number(elapsed) if elapsed in table.columns else None,
        licence="CC-BY-4.0 (BurstGPT)",
    )


def _servegen(table: Table) -> Raw:
    if "data" in table.columns:
        data = [d if isinstance(d, dict) else {} for d in table.columns["data"]]
        inner = {k: [d.get(k) for d in data] for k in ("input_tokens", "output_tokens")}
        table = replace(table, columns={**table.columns, **inner})
    outputs = table.number("output_tokens")
    return Raw(
        table.number("timestamp"),
        table.number("input_tokens"),
        outputs,
        ("timestamp", "input_tokens", "output_tokens"),
        keep=outputs != 0,
        drops="no output",
        licence="Apache-2.0 (ServeGen)",
    )


def _vllm_bench(table: Table) -> Raw:
    prompts, outputs = table.number("input_lens"), table.number("output_lens")
    failed = np.zeros(len(table), bool)
    if "errors" in table.columns:
        failed = np.asarray([bool(e) for e in table.columns["errors"]])
    arrival = None
    warnings: tuple[str, ...] = ()
    if "start_times" in table.columns:
        arrival = table.number("start_times")
        arrival = arrival - np.fmin.reduce(arrival)  # of a clock that starts anywhere
    else:
        warnings = ("the benchmark result holds no start_times; all requests arrive at time zero",)
    return Raw(
        arrival,
        prompts,
        outputs,
        ("start_times", "input_lens", "output_lens"),
        keep=(outputs != 0) & ~failed,
        drops="failed requests",
        warnings=warnings,
    )


def _sharegpt(table: Table) -> Raw:
    """Each answer of a conversation is a request whose prompt is all that was said before it."""
    conversations = table.columns["conversations"]
    prompts, outputs, session, turn, lines = [], [], [], [], []
    estimated = 0
    for i, conversation in enumerate(conversations):
        if not isinstance(conversation, list):
            raise InputError("conversations is no list", where=table.where(i), mend="correct that record")
        history, k = 0.0, 0
        for message in conversation:
            if not isinstance(message, dict):
                raise InputError("a message is no object", where=table.where(i), mend="correct that record")
            counted = message.get("tokens", message.get("token_count", message.get("num_tokens")))
            if counted is None:
                counted = np.ceil(
                    len(str(message.get("value", message.get("content", "")))) / CHARACTERS_PER_TOKEN
                )
                estimated += 1
            speaker = message.get("from", message.get("role"))
            if speaker in ("gpt", "assistant", "chatgpt", "bard") and history > 0 and counted > 0:
                prompts.append(history)
                outputs.append(float(counted))
                session.append(i)
                turn.append(float(k))
                lines.append(int(table.lines[i]))
                k += 1
            history += float(counted)
    warnings = ["ShareGPT records no arrival times; all conversations start at time zero"]
    if estimated:
        warnings.append(
            f"{estimated} messages carry no token count; lengths are estimated "
            f"at {CHARACTERS_PER_TOKEN:g} characters a token (assumed)"
        )
    if not prompts:
        raise InputError("no conversation holds an answer", where=table.path, mend="check the file")
    return Raw(
        None,
        np.asarray(prompts),
        np.asarray(outputs),
        ("", "prompt tokens", "answer tokens"),
        session=session,
        turn=np.asarray(turn),
        lines=np.asarray(lines, np.int64),
        warnings=tuple(warnings),
    )


def _columns(table: Table) -> Raw:
    have = table.columns
    ids = next((c for c in ("prefix_ids", "hash_ids") if c in have), None)
    block = int(table.metadata.get("block_size", 0) or 0)
    arrival = table.number("arrival_s")
    session = have.get("session_id")
    return Raw(
        arrival,
        table.number("prompt_tokens"),
        table.number("output_tokens"),
        ("arrival_s", "prompt_tokens", "output_tokens"),
        max_output=table.number("max_output_tokens") if "max_output_tokens" in have else None,
        session=None if session is None else list(session),
        turn=table.number("turn") if "turn" in have else None,
        blocks=_blocks(table, ids) if ids else None,
        block_tokens=block or (MOONCAKE_BLOCK_TOKENS if ids == "hash_ids" else 0),
        class_names=list(have["class"]) if "class" in have else None,
        request_ids=list(have["request_id"]) if "request_id" in have else None,
        jitter_s=MOONCAKE_JITTER_S if ids == "hash_ids" and _on_grid(arrival, MOONCAKE_JITTER_S) else 0.0,
        warnings=_unread(table),
    )


FORMATS: dict[str, Callable[[Table], Raw]] = {
    "azure": _azure,
    "mooncake": _mooncake,
    "burstgpt": _burstgpt,
    "servegen": _servegen,
    "sharegpt": _sharegpt,
    "vllm-bench": _vllm_bench,
    "bailian": _bailian,
    "columns": _columns,
}
_SIGNS: list[tuple[str, set[str]]] = [
    ("columns", {"arrival_s", "prompt_tokens", "output_tokens"}),
    ("azure", {"timestamp", "contexttokens", "generatedtokens"}),
    ("bailian", {"chat_id", "timestamp", "input_length", "output_length"}),
    ("mooncake", {"timestamp", "input_length", "output_length"}),
    ("burstgpt", {"timestamp", "request tokens", "response tokens"}),
    ("servegen", {"timestamp", "input_tokens", "output_tokens"}),
    ("servegen", {"timestamp", "request_id", "data"}),
    ("vllm-bench", {"input_lens", "output_lens"}),
    ("sharegpt", {"conversations"}),
]


# Values -------------------------------------------------------------------------------------------


def _on_grid(times: FloatArray, step_s: float) -> bool:
    """Whether the times lie on multiples of `step_s`, give or take a few milliseconds."""
    if len(times) < 20 or np.isnan(times).any():
        return False
    passed = times - times.min()
    return bool(np.all(np.abs(passed - np.rint(passed / step_s) * step_s) < 0.005))


def _times(table: Table, name: str) -> FloatArray:
    """Calendar times as seconds since the first (or since the table's `origin`), or plain numbers."""
    values = table.columns.get(name)
    if values is None or isinstance(values, np.ndarray):
        return table.number(name)
    out = np.empty(len(values), np.float64)
    try:
        stamps = np.asarray([_zoneless(v) for v in values], dtype="datetime64[ns]")
    except ValueError:
        for i, value in enumerate(values):
            try:
                out[i] = np.datetime64(_zoneless(value), "ns").astype(np.int64) / 1e9
            except ValueError:
                raise InputError(
                    f"{name} is {str(value)[:40]!r}, not a time",
                    where=table.where(i),
                    mend="correct that value",
                ) from None
        return out
    origin = table.metadata.get("origin") or stamps[~np.isnat(stamps)].min()
    out[:] = np.where(np.isnat(stamps), np.nan, (stamps - origin).astype(np.int64) / 1e9)
    return out


def _zoneless(value: Any) -> str:
    return re.sub(r"(Z|[+-]\d\d:?\d\d)$", "", str(value).strip()).replace(" ", "T")


def _blocks(table: Table, name: str) -> tuple[IntArray, IntArray]:
    """Lists of block names as CSR; text lists may be separated by anything but digits; names may be words."""
    values = table.columns[name]
    if isinstance(values, tuple):
        return values
    lists: list[list[Any]] = []
    for i, value in enumerate(values):
        if value is None or (isinstance(value, float) and np.isnan(value)):
            lists.append([])
        elif isinstance(value, list):
            lists.append(value)
        elif isinstance(value, int | float):
            lists.append([int(value)])
        elif isinstance(value, str):
            lists.append(re.findall(r"[\w-]+", value))
        else:
            raise InputError(f"{name} is no list", where=table.where(i), mend="write [1, 2, 3]")
    flat = [item for row in lists for item in row]
    start = np.concatenate(([0], np.cumsum([len(row) for row in lists]))).astype(np.int64)
    try:
        ids = np.asarray([int(item) for item in flat], np.int64)
    except (TypeError, ValueError, OverflowError):
        ids = np.unique(np.asarray([str(item) for item in flat]), return_inverse=True)[1].astype(np.int64)
    return start, ids


def _numbered(values: list[Any]) -> IntArray:
    """Session names as numbers in order of appearance, -1 where empty."""
    numbers: dict[Any, int] = {}
    out = []
    for value in values:
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
        _refuse(table, kept, np.isinf(values), name, values, "is infinite")
        _refuse(table, kept, values < 0, name, values, "is negative")
        _refuse(table, kept, values == 0, name, values, "is zero; a request has at least one token")
        _refuse(table, kept, values != np.floor(values), name, values, "is no whole number")
        _refuse(table, kept, values > MOST_TOKENS, name, values, "is no plausible number of tokens")
    if raw.max_output is not None:
        given = np.nan_to_num(raw.max_output, nan=0.0)
        _refuse(table, kept, given < 0, "max_output_tokens", given, "is negative")
    if raw.request_ids is not None:
        _refuse_twice(table, kept, raw.request_ids)
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
    if not np.array_equal(order, kept):
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
    limits = None if raw.max_output is None else np.nan_to_num(raw.max_output, nan=0.0).astype(np.int64)
    rows = Rows(
        arrival,
        np.where(keep, raw.prompt, 1).astype(np.int64),
        np.where(keep, raw.output, 1).astype(np.int64),
        span,
        max_output_tokens=limits,
        session=session,
        turn=None if turn is None else np.nan_to_num(turn, nan=0.0).astype(np.int64),
        end_s=end_s,
        prefix_start=start,
        prefix_ids=ids,
        prefix_block_tokens=block,
        class_names=None if raw.class_names is None else tuple(_name(c) for c in raw.class_names),
        request_ids=None if raw.request_ids is None else tuple(_name(r) for r in raw.request_ids),
        warnings=tuple(warnings),
    )
    return take(rows, order)


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
