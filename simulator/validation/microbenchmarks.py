"""Results of llama-bench and llama-batched-bench as measured steps: JSON, JSON lines, CSV, and the tables that both print.

Columns: `examples/llama-bench` and `examples/batched-bench` of llama.cpp (2026). Times are of one model on one machine with one
setting; files that mix several are refused.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine_models.cost.measured import MeasuredStep, Part
from hardware_profiles.errors import InputError
from hardware_profiles.files import without_cut_line

UBATCH_TOKENS = 512
"""Tokens computed at once where a table does not say (datasheet: default of `--ubatch-size`)."""
MOST_TOKENS = 10_000_000
"""Longest prompt or answer of a row (assumed, above any context)."""
SETTINGS = ("model_filename", "model", "n_threads", "threads", "backends", "backend", "n_gpu_layers", "ngl", "type_k", "type_v")
"""What must be equal over all rows of a kind for their times to be of one thing."""
_TEST = re.compile(r"(?:pp(\d+))?\+?(?:tg(\d+))?(?: @ d(\d+))?")
_RATE = re.compile(r"([\d.]+)(?: ± [\d.]+)?")


def read_steps(paths: Iterable[Path]) -> list[MeasuredStep]:
    """Measured steps of result files; prompts of llama-batched-bench only where llama-bench measured none.

    Raises InputError for a file that is neither, a row that lacks a number, and rows of several settings.
    """
    alone: list[MeasuredStep] = []
    rows_at_once: list[MeasuredStep] = []
    prompts: list[MeasuredStep] = []
    seen: dict[str, tuple[str, Path]] = {}
    for path in paths:
        for row in rows_of(path):
            _check_setting(row, path, seen)
            prompt, answer = steps_of(row, path)
            if answer is None or _is_alone(row):
                alone += [step for step in (prompt, answer) if step is not None]
            else:
                rows_at_once.append(answer)
                prompts += [] if prompt is None else [prompt]
    measured = any(part.tokens > 1 for step in alone for part in step.parts)
    return [*alone, *rows_at_once, *([] if measured else prompts)]


def steps_of(row: Mapping[str, Any], path: Path) -> tuple[MeasuredStep | None, MeasuredStep | None]:
    """The prompt of a row and the mean step of its answers, each None where the row does not time it alone.

    A row of llama-bench that times both together is one step, the first. Raises InputError for a row that lacks a number.
    """
    try:
        if not _is_alone(row):
            return _together(row)
        step = _alone(row)
        return (None, step) if step.parts[0].tokens == 1 else (step, None)
    except (KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise InputError(
            f"a row of {path.name} cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            mend="give the output of llama-bench (-o json, jsonl, csv or md) or llama-batched-bench",
        ) from error


def _is_alone(row: Mapping[str, Any]) -> bool:
    """Whether a row is of llama-bench, of one request."""
    return "avg_ns" in row or "test" in row


def chunked(tokens: int, prior_tokens: int, most: int) -> tuple[Part, ...]:
    """A prompt of one row in parts of at most so many tokens; the last yields a token."""
    return tuple(
        Part(1, min(most, tokens - at), prior_tokens + at, int(at + most >= tokens)) for at in range(0, tokens, most)
    )


def _check_setting(row: Mapping[str, Any], path: Path, seen: dict[str, tuple[str, Path]]) -> None:
    for key in SETTINGS:
        value = row.get(key)
        if value is None:
            continue
        first, where = seen.setdefault(key, (str(value), path))
        if first != str(value):
            raise InputError(
                f"{key} is {first} in {where.name} and {value} in {path.name}: times of one setting make a law",
                where=str(path),
                mend="give files of one model, machine and setting",
            )


def _alone(row: Mapping[str, Any]) -> MeasuredStep:
    """A row of llama-bench: a prompt, an answer, or one after the other, after `n_depth` tokens; of an answer the mean step."""
    if "avg_ns" in row:
        prompt, answer, depth = (int(row[key]) for key in ("n_prompt", "n_gen", "n_depth"))
        took_s = float(row["avg_ns"]) / 1e9
    else:
        named, rate = _TEST.fullmatch(row["test"]), _RATE.fullmatch(row["t/s"])
        if named is None or rate is None or not (named[1] or named[2]):
            raise ValueError(f"test {row['test']}, t/s {row['t/s']}")
        prompt, answer, depth = (int(number or 0) for number in named.groups())
        took_s = (prompt + answer) / float(rate[1])
    if not 0 <= min(prompt, answer, depth) <= max(prompt, answer, depth) <= MOST_TOKENS:
        raise ValueError(f"{prompt} prompt tokens, {answer} of an answer, {depth} before")
    parts = chunked(prompt, depth, int(row.get("n_ubatch") or UBATCH_TOKENS))
    step = Part(1, 1, depth + prompt + (answer - 1) / 2, 1)
    if not prompt:
        return MeasuredStep((step,), took_s / answer)
    return MeasuredStep((*parts, *[step] * answer), took_s)


def _together(row: Mapping[str, Any]) -> tuple[MeasuredStep | None, MeasuredStep]:
    """A row of llama-batched-bench: its prompt if it is one, and the mean step of its answers."""
    lower = {key.lower(): value for key, value in row.items()}
    prompt, answer = int(lower["pp"]), int(lower["tg"])
    rows = int(lower["pl"] if "pl" in lower else lower["b"])
    prompt_s, answer_s = (float(lower[key] if key in lower else lower[f"{key} s"]) for key in ("t_pp", "t_tg"))
    decode = MeasuredStep((Part(rows, 1, prompt + (answer - 1) / 2, rows),), answer_s / answer)
    if rows > 1:
        return None, decode
    return MeasuredStep(chunked(prompt, 0, int(lower.get("n_ubatch") or UBATCH_TOKENS)), prompt_s), decode


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file by its own column names. Raises InputError for a file of another kind."""
    try:
        text = without_cut_line(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", where=str(path), mend="give a readable file") from error
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
            rows = rows or list(_table(text)) or list(_comma_separated(text))
    except ValueError as error:
        raise InputError(f"{path.name} is cut or no JSON: {error}", where=str(path), mend="measure again") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{path.name} has no rows of llama-bench or llama-batched-bench",
            where=str(path),
            mend="give the output of llama-bench (-o json, jsonl, csv or md) or llama-batched-bench",
        )
    yield from rows


def _table(text: str) -> Iterator[dict[str, Any]]:
    """Rows of the tables in a text."""
    head: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not head:
            head = cells
        elif not all(set(cell) <= set("-: ") for cell in cells):
            yield dict(zip(head, cells, strict=False))


def _comma_separated(text: str) -> Iterator[dict[str, Any]]:
    """Rows below the line that names llama-bench's columns, their whole numbers as such."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if {"n_gen", "avg_ns"} <= set(line.split(","))), len(lines))
    for row in csv.DictReader(lines[start:]):
        yield {name: int(value) if value and value.isdigit() else value for name, value in row.items()}


__all__ = ["chunked", "read_steps", "rows_of", "steps_of"]
