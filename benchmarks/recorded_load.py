"""What the recorders of engines' own schedulers share: drawn loads, their tokens, the virtual clock, the files.

A recorder, `record_ENGINE.py`, hands `main` two functions: `drawn`, the config line and the requests of a seed, and
`record`, the steps of the engine's scheduler for these. A step takes a + b x prompt tokens + c x decode rows + d x KV tokens.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STEP_TIME = {"a": 0.008, "b": 2.5e-05, "c": 1e-4, "d": 2e-08}
Case = dict[str, Any]


def token(segment: int, place: int) -> int:
    """A token by its content: equal ones are equal."""
    return 10 + (segment * 7919 + place * 104729) % 50000


def prompt(request: Case) -> list[int]:
    """The tokens of a request's prompt."""
    return [token(segment, first + place) for segment, first, many in request["segments"] for place in range(many)]


def text(segments: list[list[int]]) -> str:
    """The characters of a prompt, for routers that match text: equal ones are equal."""
    return "".join(
        chr(0x4E00 + zlib.crc32(f"{segment}:{first + at}".encode()) % 20000)
        for segment, first, many in segments
        for at in range(many)
    )


def stops_at(request: Case) -> list[int]:
    """The token with which a request's answer stops before its limit, if it does."""
    return [token(request["out_seg"], request["output_len"] - 1)] if "max_tokens" in request else []


def step_s(step: Case) -> float:
    """How long a step lasts on the virtual clock."""
    prompts, decodes, kv = step["prefill_tokens"], step["decode_seqs"], step["kv_tokens"]
    took_s: float = STEP_TIME["a"] + STEP_TIME["b"] * prompts + STEP_TIME["c"] * decodes + STEP_TIME["d"] * kv
    return took_s


def drawn_requests(draw: random.Random, longest: int, answer: int, *, priorities: bool = False) -> list[Case]:
    """Requests with shared beginnings, some of which go on where another has ended."""
    heads = [(10 + number, draw.randint(16, 150)) for number in range(draw.randint(1, 3))]

    def beginning() -> list[int]:
        segment, tokens = draw.choice(heads)
        return [segment, 0, tokens]

    rate, at_s = draw.choice([2, 8, 30, 100]), 0.0
    requests: list[Case] = []
    open_ended: dict[str, Case] = {}
    for index in range(draw.choice([20, 40, 60])):
        at_s += draw.expovariate(rate)
        requests.append(drawn_request(draw, index, at_s, longest, answer, open_ended, beginning, priorities=priorities))
    return requests


def drawn_request(
    draw: random.Random,
    index: int,
    at_s: float,
    longest: int,
    answer: int,
    open_ended: dict[str, Case],
    beginning: Callable[[], list[int]],
    *,
    priorities: bool,
) -> Case:
    """One request: it goes on where an `open_ended` one has ended, or has a beginning that is shared, or neither."""
    segments: list[list[int]] = []
    when: Case = {"arrival": round(at_s, 6)}
    if open_ended and draw.random() < 0.35:
        before = open_ended.pop(draw.choice(sorted(open_ended)))
        segments = [*before["segments"], [before["out_seg"], 0, before["output_len"]]]
        when = {"after": {"id": before["id"], "delay": round(draw.uniform(0, 0.4), 6)}}
    elif draw.random() < 0.6:
        segments = [beginning()]
    segments.append([100 + index, 0, draw.randint(1, max(1, longest - 150))])
    if sum(tokens for *_, tokens in segments) > longest:
        segments, when = [[100 + index, 0, draw.randint(1, longest)]], {"arrival": round(at_s, 6)}
    request = {
        "type": "request",
        "idx": index,
        "id": f"r{index:03d}",
        "segments": segments,
        "prompt_len": sum(tokens for *_, tokens in segments),
        "output_len": draw.randint(1, answer),
        "out_seg": 20000 + index,
        "priority": draw.choice([0, 1, 2]) if priorities else 0,
        **when,
    }
    if draw.random() < 0.5:
        open_ended[request["id"]] = request
    return request


def head(engine: str, version: str, seed: int, config: Case) -> Case:
    """The config line of a drawn recording."""
    named = {"type": "config", "engine": engine, "version": version, "scenario": f"drawn-{seed}"}
    return {**named, "config": config, "step_time": STEP_TIME}


def let_leave(name: str, requests: list[Case], share: float) -> None:
    """Let the clients of a share of the requests leave some time after these arrive, whether or not they have ended."""
    draw = random.Random(f"{name} leaving")
    mean_s = draw.choice([0.05, 0.3, 1.0, 4.0])
    for request in requests:
        if draw.random() < share:
            request["leaves_s"] = round(draw.expovariate(1 / mean_s), 6)


def let_stop(name: str, requests: list[Case], share: float) -> None:
    """Let a share of the answers end before the client's limit, `max_tokens`, by their last token."""
    draw = random.Random(f"{name} stopping")
    for request in requests:
        if draw.random() < share:
            request["max_tokens"] = request["output_len"] + draw.randint(1, 200)


class Arrivals:
    """Requests that are yet to come, in order of arrival: at their own time, or after the end of another."""

    def __init__(self, requests: list[Case]) -> None:
        self.by_id = {request["id"]: request for request in requests}
        self._due = [(r["arrival"], r["idx"], r["id"]) for r in requests if "after" not in r]
        heapq.heapify(self._due)
        self._leaving: list[tuple[float, str]] = []

    @property
    def next_s(self) -> float:
        """When the next one comes, infinity if none is known."""
        return self._due[0][0] if self._due else float("inf")

    def take(self, now_s: float) -> Iterator[tuple[float, Case]]:
        """Those that have come by now, with their times."""
        while self.next_s <= now_s + 1e-12:
            at_s, _, name = heapq.heappop(self._due)
            if "leaves_s" in self.by_id[name]:
                heapq.heappush(self._leaving, (at_s + self.by_id[name]["leaves_s"], name))
            yield at_s, self.by_id[name]

    def left(self, now_s: float) -> list[tuple[float, str]]:
        """Whose clients have left by now, ended or not, and when."""
        gone = []
        while self._leaving and self._leaving[0][0] <= now_s:
            gone.append(heapq.heappop(self._leaving))
        return gone

    def ended(self, names: list[str], now_s: float) -> None:
        """Let those come that wait for these."""
        for other in self.by_id.values():
            after = other.get("after")
            if after and after["id"] in names:
                heapq.heappush(self._due, (now_s + after["delay"], other["idx"], other["id"]))


CHANGES = {
    "leaving": (let_leave, "share of the clients that leave some time after they came"),
    "stopping": (let_stop, "share of the answers that end before their limit"),
}
"""What may be drawn besides, where a recorder carries it out."""


def main(
    about: str | None,
    drawn: Callable[[int], tuple[Case, list[Case]]],
    record: Callable[[Case, list[Case]], list[Case]],
    changes: tuple[str, ...] = (),
) -> None:
    """Record the seeds that were asked for, or anew what stands in given files; `changes` of `CHANGES` are carried out."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    for change in changes:
        parser.add_argument(f"--{change}", type=float, default=0.0, help=CHANGES[change][1])
    parser.add_argument("--like", type=Path, nargs="*", default=[], help="recordings whose config and requests are run again")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    cases = {path.stem: _read(path) for path in given.like}
    if not cases:
        cases = {f"drawn-{seed}": drawn(seed) for seed in range(given.first, given.first + given.count)}
        for name, (_, requests) in cases.items():
            for change in changes:
                CHANGES[change][0](name, requests, vars(given)[change])
    for name, (config, requests) in cases.items():
        try:
            lines = [config, *requests, *record(config, requests)]
        except Exception as error:  # engines have loads that they do not survive
            place = traceback.extract_tb(error.__traceback__)[-1]
            print(f"{name}: nothing recorded, {error!r} in {place.filename}:{place.lineno}")
            continue
        (given.out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read(path: Path) -> tuple[Case, list[Case]]:
    lines: list[Case] = [json.loads(line) for line in path.read_text().splitlines()]
    return lines[0], [line for line in lines if line["type"] == "request"]
