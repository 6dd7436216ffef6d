"""Formats of request traces: which columns each has, and what they mean.

The format is recognised by its columns. Own format: ``arrival_s, prompt_tokens, output_tokens`` with, if wanted,
``max_output_tokens, session_id, turn, prefix_ids, class, model, request_id, adapter, image_count, image_tokens``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError
from simulator.workload.columns import FloatArray, IntArray
from simulator.workload.rows import Raw
from simulator.workload.tables import Table

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens per hash block (datasheet: kvcache-ai/Mooncake FAST25-release/traces, 2025)."""
MOONCAKE_JITTER_S = 3.0
"""Arrival times are recorded on a grid of 3 s (measured: 800 distinct times among the first 7 851 requests,
kvcache-ai/Mooncake@3b5a594); replayed literally they make bursts that were not there."""
AGENTIC = ("session_id", "delay", "wait_for", "tool_wait_ms")
"""Columns of a Mooncake trace whose requests wait for others."""
BAILIAN_BLOCK_TOKENS = 16
"""Tokens per hash block (datasheet: alibaba-edu/qwen-bailian-usagetraces-anon README, 2025)."""


def sniff(table: Table) -> str:
    """Return the name of the format that the table's columns show.

    Raises
    ------
    InputError : none matches; the missing columns of the closest format are named.
    """
    have = {name.lower() for name in table.columns}
    for signs, words, mend in SUMMARIES:
        if signs <= have and "input_lens" not in have:
            raise InputError(f"is {words}, which does not tell its requests", where=table.path, mend=mend)
    for name, needed in SIGNS:
        if needed <= have:
            return name
    if have and all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", column) for column in have):
        raise InputError(
            "the first line holds numbers, where the names of the columns stand",
            where=table.path,
            mend="write a line above it, such as arrival_s,prompt_tokens,output_tokens",
        )
    name, needed = max(SIGNS[::-1], key=lambda sign: len(sign[1] & have) / len(sign[1]))
    plain, own = SIGNS[0]
    if not needed & have or {_meant(column, sorted(own)) for column in table.columns} >= own:
        name, needed = plain, own  # nothing is known, or all that is needed is there by other names
    missing = sorted(needed - have)
    spare = [column for column in table.columns if column.lower() not in needed]
    meant = {column: _meant(column, missing) for column in spare}
    renamed = [f"nearest to {right} is {column!r}" for column, right in meant.items() if right]
    hint = f"; {', '.join(renamed)}" if renamed else ""
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
    "model",
    "request_id",
    "adapter",
    "image_count",
    "image_tokens",
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
        "created",
        "created_at",
        "request_time",
        "start",
        "ts",
    ),
    "prompt_tokens": (
        "input_length",
        "input_tokens",
        "prompt_len",
        "prompt_length",
        "num_prefill_tokens",
        "isl",
        "context_tokens",
        "gen_ai.usage.input_tokens",
        "usage.prompt_tokens",
        "usage_prompt",
        "num_prompt_tokens",
        "num_input_tokens",
        "n_input_tokens",
        "tokens_in",
    ),
    "output_tokens": (
        "output_length",
        "output_len",
        "completion_tokens",
        "generated_tokens",
        "num_decode_tokens",
        "osl",
        "gen_ai.usage.output_tokens",
        "usage.completion_tokens",
        "usage_completion",
        "completion_len",
        "completion_length",
        "num_output_tokens",
        "num_completion_tokens",
        "n_output_tokens",
        "response_tokens",
        "tokens_out",
    ),
    "max_output_tokens": ("max_tokens", "max_new_tokens", "max_completion_tokens"),
    "session_id": ("session", "conversation_id", "chat_id", "user_id"),
    "turn": ("turn_index", "turn_id"),
    "prefix_ids": ("prefix_id", "block_ids", "prefix_hashes", "block_hashes"),
    "class": ("class_name", "request_class"),
    "adapter": ("adapter_id", "lora", "lora_id", "lora_name", "lora_adapter"),
    "image_count": ("images", "num_images", "n_images"),
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
    for column in (c for c in table.columns if c and c not in OWN_COLUMNS):
        meant = _meant(column, absent)
        words.append(f"{column} (rename it {meant}, if it holds that)" if meant else column)
    if not words:
        return ()
    return (f"columns of the trace that nothing reads: {', '.join(words)}",)


def named(table: Table, name: str) -> str:
    """Return the column of that name, whatever its case."""
    return next((column for column in table.columns if column.lower() == name.lower()), name)


def plain_name(value: Any) -> Any:
    """Return a name as what can be looked up: text, a number, or what is shown of anything else."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _azure(table: Table) -> Raw:
    names = tuple(named(table, c) for c in ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    time, prompt, output = names
    arrival = table.times(time)
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
    blocks = _blocks(table, named(table, "hash_ids")) if "hash_ids" in table.columns else None
    outputs, prompts = table.number("output_length"), table.number("input_length")
    sessions = any(name in table.columns for name in AGENTIC)
    if sessions:
        outputs = np.maximum(outputs, 1.0)
    raw = Raw(
        table.times("timestamp", 1e3) if "timestamp" in table.columns or not sessions else None,
        prompts,
        outputs,
        ("timestamp", "input_length", "output_length"),
        keep=outputs != 0,
        drops="no output",
        blocks=blocks,
        block_tokens=MOONCAKE_BLOCK_TOKENS,
        jitter_s=MOONCAKE_JITTER_S,
    )
    if not sessions:
        return raw
    from simulator.workload.agents import block_tokens_of, linked_lines

    size = MOONCAKE_BLOCK_TOKENS if blocks is None else block_tokens_of(prompts, blocks[0], MOONCAKE_BLOCK_TOKENS)
    return linked_lines(table, replace(raw, block_tokens=size))


def _bailian(table: Table) -> Raw:
    chat, parent = table.columns["chat_id"], table.columns.get("parent_chat_id")
    session: list[Any] | None = None
    if parent is not None:
        root: dict[Any, Any] = {}
        session = []
        for own, above in zip(map(plain_name, chat), map(plain_name, parent), strict=True):
            root[own] = root.get(above, own)
            session.append(root[own])
    outputs = table.number("output_length")
    blocks = _blocks(table, "hash_ids") if "hash_ids" in table.columns else None
    return Raw(
        table.times("timestamp"),
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
    time, prompt, output = (named(table, c) for c in ("Timestamp", "Request tokens", "Response tokens"))
    outputs, prompts = table.number(output), table.number(prompt)
    session, elapsed = table.columns.get(named(table, "Session ID")), named(table, "Elapsed time")
    return Raw(
        table.times(time),
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
        table.times("timestamp"),
        table.number("input_tokens"),
        outputs,
        ("timestamp", "input_tokens", "output_tokens"),
        keep=outputs != 0,
        drops="no output",
        licence="Apache-2.0 (ServeGen)" if "data" in table.columns else None,
    )


def _sharegpt(table: Table) -> Raw:
    """Each answer of a conversation is a request whose prompt is all that was said before it."""
    from simulator.workload.agents import CHARACTERS_PER_TOKEN

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
            if not isinstance(counted, int | float) or not 0 <= counted <= 2**40:
                raise InputError(
                    f"a message has {str(counted)[:40]!r} tokens", where=table.where(i), mend="correct that record"
                )
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
    stated = str(table.metadata.get("block_size", ""))
    block = int(stated) if re.fullmatch(r"[0-9]{1,9}", stated) else 0
    arrival = table.times("arrival_s")
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
        models=list(have["model"]) if "model" in have else None,
        request_ids=list(have["request_id"]) if "request_id" in have else None,
        adapters=list(have["adapter"]) if "adapter" in have else None,
        images=_images(table),
        jitter_s=MOONCAKE_JITTER_S if ids == "hash_ids" and _on_grid(arrival, MOONCAKE_JITTER_S) else 0.0,
        warnings=_unread(table),
    )


def _images(table: Table) -> tuple[FloatArray, FloatArray] | None:
    """Number of images in each prompt, and their tokens; one image where only their tokens are known."""
    have = table.columns
    if "image_tokens" not in have:
        if "image_count" in have:
            raise InputError(
                "the column image_count stands without image_tokens, which says how many of a prompt's tokens are of its images",
                where=table.path,
                mend="add image_tokens, or remove image_count",
            )
        return None
    tokens = np.nan_to_num(table.number("image_tokens"))
    count = np.nan_to_num(table.number("image_count")) if "image_count" in have else np.ones(len(tokens))
    over = np.flatnonzero((tokens < 0) | (tokens >= table.number("prompt_tokens")) & (tokens > 0))
    if len(over):
        raise InputError(
            "image_tokens are part of prompt_tokens, with one of text at least",
            where=table.where(int(over[0])),
            mend="give prompt_tokens with those of images",
        )
    fewer = np.flatnonzero(count < 0)
    if len(fewer):
        raise InputError(
            f"image_count is {count[fewer[0]]:g}",
            where=table.where(int(fewer[0])),
            mend="give the number of images in the prompt, 0 for none",
        )
    count = np.where(tokens > 0, np.maximum(count, 1), 0)
    return np.minimum(count, tokens), tokens


def _on_grid(times: FloatArray, step_s: float) -> bool:
    """Whether the times lie on multiples of `step_s`, give or take a few milliseconds."""
    if len(times) < 20 or np.isnan(times).any():
        return False
    passed = times - times.min()
    return bool(np.all(np.abs(passed - np.rint(passed / step_s) * step_s) < 0.005))


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
            lists.append([value])
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


SUMMARIES: list[tuple[set[str], str, str]] = [
    ({"mean_e2e_latency_ms"}, "a summary of SGLang's bench_serving", "run it with --output-details"),
    ({"mean_ttft_ms"}, "a summary of vllm bench serve", "run it with --save-detailed"),
    ({"request_latency", "request_throughput"}, "a summary of aiperf", "name its profile_export.jsonl"),
    ({"run info", "request latency"}, "a summary of guidellm", "name its benchmarks.json or benchmarks.yaml"),
    ({"successes", "failures"}, "a summary of inference-perf", "name its per_request_lifecycle_metrics.json"),
    ({"metric", "avg"}, "a summary of aiperf", "name its profile_export.jsonl"),
]
"""Columns of results that hold statistics alone, what writes them, and what would hold the requests."""


def _read_by(module: str, function: str) -> Callable[[Table], Raw]:
    """A reader in a module of its own, which is imported when it reads."""

    def read(table: Table) -> Raw:
        found = getattr(import_module(f"simulator.workload.{module}"), function)(table)
        assert isinstance(found, Raw)
        return found

    return read


FORMATS: dict[str, Callable[[Table], Raw]] = {
    "azure": _azure,
    "mooncake": _mooncake,
    "burstgpt": _burstgpt,
    "servegen": _servegen,
    "sharegpt": _sharegpt,
    "vllm-bench": _read_by("clients", "bench_serving"),
    "sglang-bench": _read_by("clients", "bench_serving"),
    "aiperf": _read_by("clients", "aiperf"),
    "guidellm": _read_by("clients", "guidellm"),
    "inference-perf": _read_by("clients", "inference_perf"),
    "bailian": _bailian,
    "dynamo": _read_by("agents", "dynamo"),
    "weka": _read_by("agents", "weka"),
    "aiperf-dag": _read_by("agents", "conversations"),
    "columns": _columns,
}
SIGNS: list[tuple[str, set[str]]] = [
    ("columns", {"arrival_s", "prompt_tokens", "output_tokens"}),
    ("azure", {"timestamp", "contexttokens", "generatedtokens"}),
    ("bailian", {"chat_id", "timestamp", "input_length", "output_length"}),
    ("mooncake", {"timestamp", "input_length", "output_length"}),
    ("mooncake", {"session_id", "input_length", "output_length"}),
    ("dynamo", {"timestamp", "event"}),
    ("dynamo", {"event_type", "agent_context"}),
    ("weka", {"requests", "block_size"}),
    ("aiperf-dag", {"session_id", "turns"}),
    ("burstgpt", {"timestamp", "request tokens", "response tokens"}),
    ("servegen", {"timestamp", "input_tokens", "output_tokens"}),
    ("servegen", {"timestamp", "request_id", "data"}),
    ("sglang-bench", {"input_lens", "output_lens", "mean_e2e_latency_ms"}),
    ("vllm-bench", {"input_lens", "output_lens"}),
    ("aiperf", {"metadata", "metrics"}),
    ("guidellm", {"benchmarks"}),
    ("inference-perf", {"start_time", "end_time", "request", "info"}),
    ("sharegpt", {"conversations"}),
]
