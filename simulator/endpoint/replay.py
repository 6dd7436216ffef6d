"""A scenario's own requests on a live server, by its schedule or its clients, beside the same requests simulated.

What is sent is what is simulated: the same contents and limits, prompts as the server counted them, answers of their own lengths,
which the server is asked to run on to. Prompts of later turns hold drawn tokens in place of the server's answers, so that it
finds the prompts of earlier turns again and not their answers; the simulated run is of such prompts too.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.endpoint.client import Answer, Client, Prompt, Target
from simulator.endpoint.experiment import check_count, probe
from simulator.endpoint.prompts import Wording
from simulator.prepared import Prepared
from simulator.results.latencies import latencies
from simulator.results.statistics import statistics
from simulator.run import RunResult, run_prepared
from simulator.workload.build import build_workload
from simulator.workload.columns import NO_PREDECESSOR, FloatArray, Workload, take_content

STATISTICS = ("mean", "p50", "p90", "p99")
METRICS = ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms")
UNREACHED = 10
"""Requests one after the other without any answer after which the server is taken for gone (assumed)."""
LATE_S = 0.005
"""Lateness of requests from which a reader should know of it (assumed)."""
MOST_REQUESTS = 20_000
"""Requests that one client keeps up with in memory (assumed)."""


@dataclass
class Sent:
    """What became of each request of a load: when it was due and its answer, in the load's order; None where none was sent."""

    load: Workload
    due_s: list[float]
    answers: list[Answer | None]
    began_s: float = 0.0
    unreached: int = 0
    wording: Wording | None = None
    gone: str = ""

    @classmethod
    def of(cls, load: Workload) -> Sent:
        """Nothing sent yet."""
        return cls(load, [float("nan")] * len(load), [None] * len(load))

    def whole(self) -> Iterator[tuple[int, Answer]]:
        """Requests of the measured window with a whole answer."""
        for row, answer in enumerate(self.answers):
            inside = self.load.warmup_s <= self.due_s[row] <= self.load.duration_s
            if answer is not None and not answer.error and inside:
                yield row, answer

    def begin_s(self, row: int, answer: Answer) -> float:
        """From when a request's latencies count: when it was due; in a closed loop and in sessions when it was sent."""
        by_clock = int(self.load.predecessor[row]) == NO_PREDECESSOR
        return self.began_s + self.due_s[row] if by_clock else answer.sent_s

    def values(self) -> dict[str, FloatArray]:
        """Latencies by metric [ms]: one a request, gaps between tokens of all."""
        out: dict[str, list[float]] = {name: [] for name in METRICS}
        for row, answer in self.whole():
            begin_s, first_s, last_s = self.begin_s(row, answer), answer.token_s[0], answer.token_s[-1]
            out["ttft_ms"].append((first_s - begin_s) * 1e3)
            out["e2el_ms"].append((last_s - begin_s) * 1e3)
            if answer.tokens > 1:
                out["tpot_ms"].append((last_s - first_s) / (answer.tokens - 1) * 1e3)
            out["itl_ms"] += (np.diff(answer.token_s) * 1e3).tolist()
        return {name: np.array(values, dtype=np.float64) for name, values in out.items()}

    def late_s(self) -> float:
        """By how much 99 of 100 requests were sent later than they were due at most."""
        late = [a.sent_s - self.began_s - self.due_s[row] for row, a in enumerate(self.answers) if a is not None]
        return float(np.percentile(late, 99)) if late else 0.0

    def output_per_s(self) -> float:
        """Output tokens a second from the first request to the last answer."""
        whole = [answer for answer in self.answers if answer is not None and not answer.error]
        return sum(a.tokens for a in whole) / (max(a.end_s for a in whole) - min(a.sent_s for a in whole)) if whole else 0.0

    def counts(self) -> dict[str, int]:
        """Requests sent, answered whole, refused by the server (429, 503), and failed otherwise."""
        sent = [answer for answer in self.answers if answer is not None]
        refused = sum(answer.status in (429, 503) for answer in sent)
        whole = sum(not answer.error for answer in sent)
        return {"sent": len(sent), "finished": whole, "rejected": refused, "failed": len(sent) - whole - refused}

    def columns(self) -> dict[str, Any]:
        """One row a request sent, for a table; times in seconds since the first was due."""
        rows = [row for row, answer in enumerate(self.answers) if answer is not None]
        answers = [answer for answer in self.answers if answer is not None]
        return {
            "request": np.array(rows),
            "due_s": np.array([self.due_s[row] for row in rows]),
            "sent_s": np.array([a.sent_s - self.began_s for a in answers]),
            "prompt_tokens": np.array([int(self.load.prompt_tokens[row]) for row in rows]),
            "counted_prompt_tokens": np.array([-1 if a.prompt_tokens is None else a.prompt_tokens for a in answers]),
            "output_tokens": np.array([a.tokens for a in answers]),
            "token_s": [[at - self.began_s for at in a.token_s] for a in answers],
            "status": np.array([a.status for a in answers]),
            "error": [a.error for a in answers],
        }


@dataclass
class _Queue:
    """Rows that wait for others: those after a request's end, and those of closed loops by class."""

    followers: dict[int, list[int]] = field(default_factory=dict)
    loops: dict[int, deque[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, load: Workload) -> _Queue:
        found = cls()
        for row in np.flatnonzero(np.isnan(load.arrival_s)).tolist():
            before = int(load.predecessor[row])
            if before > NO_PREDECESSOR:
                found.followers.setdefault(before, []).append(row)
            else:
                found.loops.setdefault(int(load.class_index[row]), deque()).append(row)
        return found


def shortened(load: Workload, max_requests: int, most_s: float) -> Workload:
    """The first requests of a load, those that its clock sends within a time; as they are sent (see the head of the module)."""
    late = np.flatnonzero(load.arrival_s > most_s)
    n = min(len(load), max_requests, int(late[0]) if len(late) else len(load))
    content = None
    if load.content is not None:
        content = take_content(load.content, np.arange(n))
        content = replace(content, output_segment=np.full(n, -1), found=None, output_found=None)
    duration_s = min(load.duration_s, most_s)
    columns = "arrival_s prompt_tokens output_tokens predecessor gap_s not_before_s session_id turn class_index"
    return replace(
        load,
        **{name: getattr(load, name)[:n] for name in columns.split()},
        max_output_tokens=load.output_tokens[:n],
        think_s=None if load.think_s is None else load.think_s[:n],
        request_ids=None if load.request_ids is None else load.request_ids[:n],
        content=content,
        duration_s=duration_s,
        warmup_s=load.warmup_s if load.warmup_s < duration_s else 0.0,
    )


def prompts_of(load: Workload, wording: Wording) -> Callable[[int], Prompt]:
    """The prompt of a request: shared parts of shared tokens, the rest its own."""
    content = load.content
    longest: dict[int, int] = {}
    if content is not None:
        for segment, end in zip(content.segment.tolist(), (content.offset + content.length).tolist(), strict=True):
            longest[segment] = max(end, longest.get(segment, 0))
    shared = {segment: wording.units(f"shared {segment}", wording.words(end)) for segment, end in longest.items()}

    def prompt(row: int) -> Prompt:
        units: list[int] = []
        if content is not None:
            for run in range(int(content.start[row]), int(content.start[row + 1])):
                begin, length = int(content.offset[run]), int(content.length[run])
                first = wording.words(begin) if begin else 0
                units += shared[int(content.segment[run])][first : wording.words(begin + length)]
        rest = wording.words(int(load.prompt_tokens[row])) - len(units)
        return wording.prompt(units + wording.units(f"request {row}", max(0, rest)))

    return prompt


async def replay(client: Client, sent: Sent, wording: Wording, tell: Callable[[str], None]) -> None:
    """Send the requests of `sent`, which is filled as they end; those that would come after the load's duration are not sent.

    Ends early where the server is gone, and after the load's drain.
    """
    load, queue, prompt = sent.load, _Queue.of(sent.load), prompts_of(sent.load, wording)
    made = [prompt(row) for row in range(len(load))]
    sent.began_s = client.clock()
    ended = 0

    async def one(row: int, due_s: float) -> None:
        nonlocal ended
        await client.until(sent.began_s + due_s)
        if sent.gone:
            return
        sent.due_s[row] = due_s
        answer = sent.answers[row] = await client.ask(made[row], int(load.output_tokens[row]), attempts=1)
        ended += 1
        sent.unreached = 0 if answer.status else sent.unreached + 1
        if sent.unreached >= UNREACHED:
            sent.gone = answer.error
        tell(f"{ended:,} of {len(load):,} requests answered ...")
        now_s = client.clock() - sent.began_s
        for follower in queue.followers.pop(row, []):
            start(follower, max(now_s + float(load.gap_s[follower]), float(load.not_before_s[follower])))
        loop = queue.loops.get(int(load.class_index[row]))
        if loop:
            ready_s = now_s + (0.0 if load.think_s is None else float(load.think_s[row]))
            if ready_s <= load.duration_s:
                group.create_task(next_of(loop, ready_s))

    async def next_of(loop: deque[int], ready_s: float) -> None:
        await client.until(sent.began_s + ready_s)
        if loop:
            await one(loop.popleft(), ready_s)

    def start(row: int, due_s: float) -> None:
        if due_s <= load.duration_s:
            group.create_task(one(row, due_s))

    try:
        async with asyncio.timeout(load.duration_s + load.drain_s if np.isfinite(load.duration_s) else None):
            async with asyncio.TaskGroup() as group:
                for row in np.flatnonzero(~np.isnan(load.arrival_s)).tolist():
                    start(row, float(load.arrival_s[row]))
    except TimeoutError:
        tell("the drain has ended")


@dataclass(frozen=True)
class Comparison:
    """Measured beside simulated: an entry a metric and statistic, values to draw, counts, and what a reader should know."""

    sent: Sent
    run: RunResult
    entries: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def simulated(self) -> dict[str, tuple[FloatArray, Any]]:
        """Simulated latencies by metric [ms], and how often each occurs."""
        found = latencies(self.run.raw)
        gaps, weights = self.run.gaps
        out: dict[str, tuple[FloatArray, Any]] = {"itl_ms": (gaps * 1e3, weights)}
        for name, values in (("ttft_ms", found.ttft_ms), ("tpot_ms", found.tpot_ms), ("e2el_ms", found.e2el_ms)):
            out[name] = values[~np.isnan(values)], None
        return out


def load_of(prepared: Prepared, max_requests: int, most_s: float) -> tuple[Workload, list[str]]:
    """The requests to send, and what was left out of the scenario's."""
    scenario = prepared.scenario
    whole = build_workload(scenario.workload, seed=scenario.seed, base_dir=prepared.base_dir)
    load = shortened(whole, min(max_requests, MOST_REQUESTS), most_s)
    if not len(load):
        raise InputError(
            f"no request of the scenario arrives within {most_s:g} s", where="--max-seconds", mend="raise it"
        )
    notes = list(load.warnings)
    if len(load) < len(whole):
        notes.append(f"the first {len(load):,} of {len(whole):,} requests were sent: --max-requests, --max-seconds")
    return load, notes


async def send(client: Client, prepared: Prepared, sent: Sent, tell: Callable[[str], None]) -> Target:
    """Probe the server, then send; the server as it is asked. Raises InputError for one that fails from the beginning."""
    asking, wording = await probe(client, prepared, secrets.randbits(32))
    short = int((sent.load.prompt_tokens < wording.fewest).sum())
    if short:
        client.say(f"{short:,} prompts are shorter than the {wording.fewest} tokens that the server makes of one word")
    sent.wording = wording
    await replay(asking, sent, wording, tell)
    return asking.target


def compare(sent: Sent, prepared: Prepared, where: str) -> Comparison:
    """Simulate what was sent. Raises InputError if no request was answered, or the server counted other tokens."""
    whole = list(sent.whole())
    if not whole:
        errors = [answer.error for answer in sent.answers if answer is not None and answer.error]
        raise InputError(
            f"no request of the measured window was answered whole: {errors[0] if errors else 'none was sent'}",
            where=where,
            mend="see what the server's log says of it; what was measured is kept",
        )
    counted = sent.load.prompt_tokens.copy()
    for row, answer in whole:
        if sent.wording is not None:
            check_count(answer, int(counted[row]), sent.wording, where)
        counted[row] = answer.prompt_tokens or counted[row]
    run = run_prepared(prepared, workload=replace(sent.load, prompt_tokens=counted))
    measured = {name: statistics(values, "ms") for name, values in sent.values().items()}
    entries = []
    for metric in METRICS:
        predicted = run.result["metrics"][metric]
        for name in STATISTICS:
            if measured[metric][name] is None or predicted[name] is None:
                continue
            bounds = (predicted["interval"] or {}).get(name)
            entries.append(_entry(metric, name, measured[metric][name], predicted[name], bounds))
    totals = run.result["totals"]
    if totals["vllm_duration_s"] > 0:
        predicted_s = totals["total_output_tokens"] / totals["vllm_duration_s"]
        entries.append(_entry("output_throughput", "mean", sent.output_per_s(), predicted_s, None))
    return Comparison(sent, run, tuple(entries), tuple(_notes(sent, whole)))


def _entry(metric: str, statistic: str, measured: float, predicted: float, bounds: list[float] | None) -> dict[str, Any]:
    return {
        "metric": metric,
        "statistic": statistic,
        "measured": measured,
        "predicted": predicted,
        "abs_pct_error": abs(predicted / measured - 1) * 100,
        "interval": bounds,
        "covered": None if bounds is None else bounds[0] <= measured <= bounds[1],
    }


def _notes(sent: Sent, whole: list[tuple[int, Answer]]) -> list[str]:
    out, counts = [], sent.counts()
    lost = counts["sent"] - counts["finished"]
    if lost:
        why = next(answer.error for answer in sent.answers if answer is not None and answer.error)
        out.append(f"{lost:,} of {counts['sent']:,} requests had no whole answer, such as: {why}")
    short = sum(answer.tokens < int(sent.load.output_tokens[row]) for row, answer in whole)
    if short:
        out.append(f"{short:,} of {len(whole):,} answers ended before the scenario's length; the simulated ones do not")
    if (late_s := sent.late_s()) > LATE_S:
        out.append(f"the client itself was late: 1 % of requests were sent more than {late_s * 1e3:.0f} ms after they were due")
    return out


__all__ = ["METRICS", "Comparison", "Sent", "compare", "load_of", "prompts_of", "replay", "send", "shortened"]
