"""A short designed experiment on a live server, and the file that keeps it.

Three kinds of points: one request alone by prompt length (`lone`: time to the first token, and steps of one row by context),
equal requests at once by their number and context (`batch`: steps of so many rows), one prompt twice (`prefix`: whether it is
found again). The file has a JSON line for the server and one for each point measured; a second run goes on where the first ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.files import parse_json, read_text
from hardware_profiles.records import dataclass
from simulator.calibration.agreement import check_model
from simulator.endpoint.client import Answer, Client
from simulator.endpoint.prompts import Wording, ids_of, wording_of
from simulator.prepared import Prepared

KIND, FORMAT = "capacity-plan measurements", 1
PROBE_TOKENS, PROBE_OUTPUT = 64, 16
LONE_OUTPUT = 9
"""Tokens of an answer of a request alone: eight steps whose median is one measurement."""
BATCH_OUTPUT = 24
"""Tokens of an answer of equal requests, beside those of the time in which their prompts are computed."""
SHORT = 32
"""Tokens of the prompts of the sweep over batch sizes."""
FILLED = 0.7
"""Part of the KV cache that a point may fill (assumed)."""
MOST_OFF = 0.05
"""By what part a server's count of a prompt's tokens may be another than ours (assumed)."""
BUFFERED = 0.05
"""Part of an answer's time in which all tokens come where a stream is held back (assumed; 16 steps are never that short)."""


class Point(NamedTuple):
    """What is measured at once: `rows` equal requests; of a `prefix` the same one twice."""

    kind: Literal["lone", "batch", "prefix"]
    rows: int
    prompt: int
    output: int

    @property
    def name(self) -> str:
        """Its name in files and tables."""
        return f"{self.kind} {self.rows} x {self.prompt}"


@dataclass(frozen=True)
class Limits:
    """What the scenario says of the server: rows and tokens at once, the tokens of a step, the longest prompt of its load."""

    rows: int
    kv_tokens: int
    step_tokens: int
    prompt_tokens: int
    context_tokens: int


@dataclass
class Budget:
    """Time and requests that are left; both count in this run."""

    most_s: float
    requests: int
    began_s: float = field(default_factory=time.monotonic)

    def takes(self, requests: int) -> bool:
        """Whether so many more requests may be sent."""
        return self.requests >= requests and time.monotonic() - self.began_s < self.most_s


@dataclass(frozen=True)
class Timed:
    """A request of a point: when it was sent and its tokens came [s] after the point began, and what was counted."""

    sent_s: float
    token_s: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.token_s[0] - self.sent_s


class Measurement(NamedTuple):
    """A point, measured once."""

    point: Point
    repeat: int
    requests: tuple[Timed, ...]

    def gap_s(self) -> tuple[float, float] | None:
        """Median gap between tokens while all rows decode, and the tokens that a row attended to; None if they never did."""
        begin = max(each.token_s[0] for each in self.requests)
        end = min(each.token_s[-1] for each in self.requests)
        gaps, priors = [], []
        for each in self.requests:
            inside = [(number, at) for number, at in enumerate(each.token_s) if begin <= at <= end]
            if len(inside) > 1:
                gaps += np.diff([at for _, at in inside]).tolist()
                priors.append(each.prompt_tokens + (inside[0][0] + inside[-1][0]) / 2)
        return (float(np.median(gaps)), float(np.mean(priors))) if len(gaps) >= 3 else None


def design(limits: Limits, most_rows: int, fewest: int) -> list[Point]:
    """The points, those first without which nothing can be fitted."""
    longest = max(min(limits.prompt_tokens, limits.context_tokens - BATCH_OUTPUT), fewest, SHORT)
    lengths = [n for n in (1, 4, 8, 16, SHORT, 64, 67) if fewest <= n <= longest]
    lengths += [n for octave in range(7, 21) for n in (1 << octave, 3 << octave - 1) if n <= 0.85 * longest]
    lengths = sorted({*lengths, longest})
    rows = [n for n in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256) if n <= min(limits.rows, most_rows)]
    lone = [Point("lone", 1, n, LONE_OUTPUT) for n in lengths]
    batch = [b for n in rows if (b := _batch(n, max(SHORT, fewest), limits))]
    deep = [b for n in {*rows[1:3], *rows[-1:]} for length in (longest // 2, longest) if (b := _batch(n, length, limits))]
    points = lone[::2] + batch + sorted(deep) + lone[1::2]
    return [*dict.fromkeys(points), Point("prefix", 1, longest, LONE_OUTPUT)]


def _batch(rows: int, prompt: int, limits: Limits) -> Point | None:
    output = BATCH_OUTPUT + -(-rows * prompt // limits.step_tokens) + rows // 8
    fits = rows * (prompt + output) <= FILLED * limits.kv_tokens and prompt + output <= limits.context_tokens
    return Point("batch", rows, prompt, output) if fits else None


class Notebook:
    """The file of measurements; each is written when it is made."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self.head = {"kind": KIND, "format": FORMAT, **head}
        self.made = _read(path, self.head) if path.exists() else []
        self.found = len(self.made)
        if not path.exists():
            self._append(self.head)

    def has(self, point: Point, repeat: int) -> bool:
        """Whether a point was measured in this round."""
        return any(each.point == point and each.repeat == repeat for each in self.made)

    def keep(self, measurement: Measurement) -> None:
        """Write a measurement."""
        point, repeat, requests = measurement
        self._append({"point": point._asdict(), "repeat": repeat, "requests": [asdict(each) for each in requests]})
        self.made.append(measurement)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_measurements(path: Path) -> tuple[dict[str, Any], list[Measurement]]:
    """The server's line of a file, and its measurements; a last line that was cut is left out. InputError for another file."""
    text = read_text(path)
    lines = text.splitlines()
    try:
        head = parse_json(lines[0])
        if head["kind"] != KIND or head["format"] != FORMAT:
            raise ValueError("another kind of file")
        whole = lines[1:] if text.endswith("\n") else lines[1:-1]
        return head, [_measurement(parse_json(line)) for line in whole]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"this is no file of measurements: {type(error).__name__}: {error}"[:200],
            where=str(path),
            mend="name another file, or one that `calibrate endpoint` wrote",
        ) from None


def _measurement(row: Mapping[str, Any]) -> Measurement:
    requests = tuple(Timed(**{**each, "token_s": tuple(each["token_s"])}) for each in row["requests"])
    return Measurement(Point(**row["point"]), int(row["repeat"]), requests)


def _read(path: Path, head: Mapping[str, Any]) -> list[Measurement]:
    """The measurements of a file of the same server. A cut last line is taken out of the file."""
    own, made = read_measurements(path)
    other = next((key for key in head if own.get(key) != head[key]), None)
    if other is not None:
        raise InputError(
            f"these measurements are of another {other.replace('_', ' ')}: {own.get(other)}, not {head[other]}",
            where=str(path),
            mend="name another --measurements file, or remove this one",
        )
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return made


async def probe(client: Client, prepared: Prepared, seed: int) -> tuple[Client, Wording]:
    """Find out how the server is asked and how it counts, by a few requests that are not kept; a client that asks so.

    Tries token ids, then text; `ignore_eos`, then none. Raises InputError for a server that is down, has no such model, does not
    stream, holds its stream back, sends several tokens at once, counts wrongly, or has a model of another size.
    """
    target = replace(client.target, model=await client.model())
    if not Path(target.model).is_absolute():
        check_model(target.model, prepared, target.base)
    ids, words = Wording(seed, ids_of(prepared.arch.vocab)), Wording(seed, None)
    ways = [(target, ids), (target, words), (replace(target, fixed_length=False), words)]
    for way, wording in ways if target.api == "completions" else ways[1:]:
        asking = client.asking(way)
        answer = await asking.ask(wording.private("probe", PROBE_TOKENS), PROBE_OUTPUT)
        if answer.status in (400, 422):
            continue
        check(answer, way.base)
        _check_stream(answer, way.base)
        if wording.ids is None:
            wording = await _count_words(asking, seed, answer)
        else:
            check_count(answer, PROBE_TOKENS, wording, way.base)
        if not way.fixed_length:
            client.say("the server does not take `ignore_eos`: answers may end before their limit")
        return asking, wording
    raise InputError(answer.error, where=target.base, mend="see what the server's log says of it")


async def _count_words(client: Client, seed: int, few: Answer) -> Wording:
    many = await client.ask(Wording(seed, None).private("count", 4 * PROBE_TOKENS), 1)
    check(many, client.target.base)
    if few.prompt_tokens is None or many.prompt_tokens is None:
        raise InputError(
            "the server does not say how many tokens a text has",
            where=client.target.base,
            mend="use a server with `usage` in its stream, or one that takes token ids",
        )
    if many.prompt_tokens - few.prompt_tokens < 2 * PROBE_TOKENS:
        raise InputError(
            f"the server counts {few.prompt_tokens} tokens in {PROBE_TOKENS} words and {many.prompt_tokens} in "
            f"{4 * PROBE_TOKENS}: that cannot be",
            where=client.target.base,
            mend="do not trust its usage",
        )
    found = wording_of(seed, (PROBE_TOKENS, few.prompt_tokens), (4 * PROBE_TOKENS, many.prompt_tokens))
    client.say(f"prompts are text: {found.tokens_per_word:.2f} tokens a word and {found.fixed_tokens:.0f} beside them")
    return found


def check(answer: Answer, where: str) -> None:
    """Raise InputError for an answer that is none."""
    if not answer.error:
        return
    mend = "see what the server's log says of it"
    if answer.status == 429:
        mend = "raise the server's limit for this key, or measure later"
    elif answer.status in (401, 403):
        mend = "give its key by --key-variable"
    elif "does not stream" in answer.error:
        mend = "only a server that streams tells its steps apart"
    elif "sent nothing" in answer.error:
        mend = "raise --timeout-s, or relieve the server"
    raise InputError(answer.error, where=where, mend=mend)


def check_count(answer: Answer, asked_tokens: int, wording: Wording, where: str) -> None:
    """Raise InputError for a server that counts other tokens than were sent."""
    counted, tokens = answer.prompt_tokens, max(asked_tokens, wording.fewest)
    if counted is not None and abs(counted - tokens) > max(wording.slack_tokens, MOST_OFF * tokens):
        raise InputError(
            f"the server counts {counted} tokens in a prompt of {tokens}",
            where=where,
            mend="check that the scenario's model is the server's, and that no proxy rewrites prompts",
        )


def _check_stream(answer: Answer, where: str) -> None:
    events, tokens = len(answer.token_s), answer.tokens
    if tokens > PROBE_OUTPUT:
        raise InputError(
            f"the server counts {tokens} tokens in an answer limited to {PROBE_OUTPUT}",
            where=where,
            mend="do not trust its usage",
        )
    if tokens < 4:
        raise InputError(
            f"answers end after {tokens} tokens", where=where, mend="serve a model that runs on, or one that takes ignore_eos"
        )
    spread_s = answer.token_s[-1] - answer.token_s[0]
    if spread_s < BUFFERED * (answer.token_s[-1] - answer.sent_s):
        raise InputError(
            f"all {tokens} tokens came at once: something holds the stream back",
            where=where,
            mend="ask the server itself, not a proxy that buffers; or turn the buffering off",
        )
    if events < 0.8 * tokens:
        raise InputError(
            f"the server sends {tokens} tokens in {events} pieces: its steps cannot be told apart",
            where=where,
            mend="turn off speculative decoding and stream intervals for the time of the calibration",
        )


def rounds(points: list[Point], repeats: int) -> Iterator[tuple[Point, int]]:
    """Each point once, then each again."""
    for repeat in range(repeats):
        for point in points:
            if point.kind != "prefix" or repeat == 0:
                yield point, repeat


async def measure(
    client: Client,
    wording: Wording,
    plan: list[tuple[Point, int]],
    book: Notebook,
    budget: Budget,
    tell: Callable[[str], None],
) -> bool:
    """Measure what the notebook lacks; whether the budget was enough. Raises InputError for a server that fails."""
    for number, (point, repeat) in enumerate(plan):
        if book.has(point, repeat):
            continue
        sent = point.rows * (2 if point.kind == "prefix" else 1)
        if not budget.takes(sent):
            return False
        budget.requests -= sent
        tell(f"measuring {number + 1} of {len(plan)}: {point.name} ...")
        book.keep(Measurement(point, repeat, await _measured(client, wording, point, repeat)))
    return True


async def _measured(client: Client, wording: Wording, point: Point, repeat: int) -> tuple[Timed, ...]:
    """A point's requests; where some of several had to wait for a limited rate, all of them again, once."""
    where = f"{client.target.base}, {point.name}"
    for tries in range(2):
        began_s = client.clock()
        answers = await _asked(client, wording, point, f"{repeat} {tries}")
        for answer in answers:
            check(answer, where)
            check_count(answer, point.prompt, wording, where)
        if point.rows == 1 or not any(answer.refusals for answer in answers):
            break
    else:
        raise InputError(
            f"the server limits the rate: of {point.rows} requests at once some are answered 429",
            where=where,
            mend="lower --max-rows, or raise the server's limit for this key",
        )
    return tuple(
        Timed(
            answer.sent_s - began_s,
            tuple(at - began_s for at in answer.token_s),
            answer.prompt_tokens or point.prompt,
            answer.tokens,
        )
        for answer in answers
    )


async def _asked(client: Client, wording: Wording, point: Point, unique: str) -> list[Answer]:
    names = [f"{point.name} {unique} {row}" for row in range(point.rows)]
    prompts = [wording.private(name, point.prompt) for name in names]
    if point.kind == "prefix":
        return [await client.ask(prompts[0], point.output) for _ in range(2)]
    return await asyncio.gather(*(client.ask(prompt, point.output) for prompt in prompts))


__all__ = [
    "Budget",
    "Limits",
    "Measurement",
    "Notebook",
    "Point",
    "Timed",
    "design",
    "measure",
    "probe",
    "read_measurements",
    "rounds",
]
