"""Replay recorded schedules through the engine's scheduler model, step by step.

A recording is a JSON-lines file: a `config` line, `request` lines, `step` lines. The requests are fed to the model under
the recording's own virtual clock (step time = a + b * prefill tokens + c * decode rows + d * attended tokens) and every
step is compared: the ordered rows with their token counts, who was preempted, the prefix hits, the free blocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Series
from pathlib import Path
from typing import Any

import numpy as np

from engine_models.declaration import PairReplay, Replay
from engine_models.engines.known import engine_named, find
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import FloatArray, StepCost
from engine_models.parts.sequence import Sequence
from hardware_profiles.errors import PlanError
from simulator.cluster.content import for_adapter
from simulator.cluster.routing.systems import system_named
from simulator.serving.replica import Replica
from simulator.validation.pairs import replay_pair
from simulator.validation.recordings import Recording, read, unreplayed, without_model
from simulator.validation.routers import replay as replay_decisions

PAIR = "_pd"
"""What the recordings of servers that share requests add to the engine's name."""


class RecordedClock(StepCost):
    """The step time of a recording: linear in prefill tokens, decode rows and attended tokens, no host time."""

    def __init__(self, coefficients: dict[str, float]) -> None:
        self.a = coefficients["a"]
        self.b = coefficients["b"]
        self.c = coefficients["c"]
        self.d = coefficients["d"]

    def step_s(self, batches: Series[Batch]) -> tuple[float, list[float]]:
        """As of the base: the slowest rank's; nothing is attributed to prefill."""
        slowest = 0.0
        for batch in batches:
            attended = batch.decode_kv_tokens + sum(new + prior for new, prior in batch.prefill)
            prefill = batch.tokens - batch.decode_tokens
            own = self.a + self.b * prefill + self.c * batch.decode_rows + self.d * attended
            slowest = max(slowest, own)
        return slowest, [0.0] * len(batches)

    def run_s(self, shapes: Series[Batch], steps: int) -> FloatArray:
        """As of the base."""
        slowest = np.zeros(steps)
        for shape in shapes:
            attended = shape.decode_kv_tokens + shape.grows * np.arange(steps, dtype=np.int64)
            if shape.kv_by_step is not None:
                attended = shape.kv_by_step[:steps]
            own = self.a + self.b * 0 + self.c * shape.decode_rows + self.d * attended
            slowest = np.maximum(slowest, own)
        return slowest

    def few_s(self, shapes: Series[Batch], steps: int) -> list[float]:
        """As of the base."""
        out: list[float] = self.run_s(shapes, steps).tolist()
        return out

    def host_s(self, batch: Batch) -> float:
        """No host time."""
        return 0.0


def replay(path: Path) -> dict[str, Any]:
    """Replay one recording; return `name`, `engine`, `steps`, `equal` and `first_difference` (None or a dict)."""
    recording = read(path)
    declared, pair, router = find(recording.engine), pair_of(recording.engine), system_named(recording.engine)
    alone = declared is not None and (declared.replay is not None or declared.decisions is not None)
    modelled = alone or pair is not None or router is not None
    missing = without_model(recording, [recording.engine] if modelled else [])
    if missing is not None:
        return missing
    config, requests, recorded = recording.config, recording.requests, recording.steps
    engine, name = recording.engine, recording.name
    reason = None
    if declared is not None and declared.transcribe is not None:
        try:
            config, requests, recorded = declared.transcribe(config, requests, recorded)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            reason = _unreadable(error)
    if reason is None and router is None:
        reason = _damage(requests, recorded)
    if reason is None:
        try:
            if pair is not None:
                return _replay_pair(pair, recording)
            if router is not None:
                return replay_decisions(recording, router)
            if declared is not None and declared.decisions is not None:
                return compare(name, engine, recorded, *declared.decisions(config["config"], requests))
            run = replay_of(config)
            return compare(name, engine, recorded, drive(run, config, requests), run.columns)
        except PlanError as error:
            reason = error.message
        except (
            KeyError,
            ValueError,
            TypeError,
            IndexError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
        ) as error:
            reason = _unreadable(error)
    return unreplayed(name, engine, len(recorded), reason)


def _unreadable(error: Exception) -> str:
    return f"the recording cannot be replayed: {type(error).__name__}: {error}"[:200]


def _damage(requests: list[dict[str, Any]], recorded: list[dict[str, Any]]) -> str | None:
    """Return why a recording cannot be right, or None."""
    if not requests or not recorded:
        return f"the recording holds no {'request' if not requests else 'step'}"
    names = [str(entry.get("id")) for entry in requests]
    twice = (
        next((name for name in names if names.count(name) > 1), None)
        if len(set(names)) < len(names)
        else None
    )
    if twice is not None:
        return f"two requests are named {twice}"
    for entry, name in zip(requests, names, strict=True):
        for key in ("prompt_len", "output_len"):
            value = entry.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                return f"request {name}: {key} is {value!r}, not a whole number above zero"
        arrival = entry.get("arrival", 0.0)
        if "after" not in entry and not (isinstance(arrival, int | float) and 0 <= arrival < float("inf")):
            return f"request {name}: arrival is {arrival!r}, not a time"
    return None


def pair_of(engine: str) -> Callable[[str, Mapping[str, Any]], PairReplay] | None:
    """What the engine of a recording of servers that share requests declares for running it again; None for other recordings."""
    name, is_pair, _ = engine.partition(PAIR)
    declared = find(name) if is_pair else None
    return declared.pair_replay if declared is not None else None


def _replay_pair(pair: Callable[[str, Mapping[str, Any]], PairReplay], recording: Recording) -> dict[str, Any]:
    """Compare the steps of several servers, each in its own order; the first difference is the earliest of a server."""
    config = recording.config
    run, kind = pair(str(config["version"]), config["config"]), recording.engine.partition(PAIR)[2]
    clock = {name: config["clock"].get(name, 0.0) for name in "abcd"}
    found = replay_pair(kind, run, config, recording.requests, RecordedClock(clock))
    servers: dict[str, list[dict[str, Any]]] = {}
    for step in recording.steps:
        servers.setdefault(step.get("engine", ""), []).append(step)
    parts = [
        compare(recording.name, recording.engine, steps, *found[server].recorded)
        for server, steps in servers.items()
    ]
    first = [
        {"server": server, **part["first_difference"]}
        for server, part in zip(servers, parts, strict=True)
        if part["first_difference"] is not None
    ]
    whole = {name: sum(part[name] for part in parts) for name in ("steps", "equal")}
    return {**parts[0], **whole, "first_difference": first[0] if first else None}


def replay_of(config: dict[str, Any]) -> Replay:
    """What the engine of a recording's `config` line declares for running it again."""
    declared = engine_named(str(config["engine"])).replay
    assert declared is not None
    return declared(str(config["version"]), config["config"])


def drive(run: Replay, config: dict[str, Any], requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Feed the requests of a recording to its engine's scheduler under the recording's clock; one dict per step."""
    by_index = {entry["idx"]: entry for entry in requests}
    ids = {index: entry["id"] for index, entry in by_index.items()}
    followers: dict[str, list[tuple[float, int]]] = {}
    arrivals: list[tuple[float, int]] = []
    for index, entry in by_index.items():
        if "after" in entry:
            followers.setdefault(entry["after"]["id"], []).append((entry["after"]["delay"], index))
        else:
            arrivals.append((entry["arrival"], index))
    heapq.heapify(arrivals)
    leaving: list[tuple[float, int, Sequence]] = []
    gone: set[int] = set()
    out: list[dict[str, Any]] = []
    script = config["config"].get("spec_accept") or [0]

    def acceptance(verification: int) -> int:
        return int(script[verification % len(script)])

    def make(index: int, arrival_s: float) -> Sequence:
        entry = by_index[index]
        output = entry.get("output") or [[entry["out_seg"], 0, entry["output_len"]]]
        runs = tuple((int(s), int(o), int(n)) for s, o, n in [*entry["segments"], *output])
        adapter = int(entry.get("adapter", 0))
        seq = Sequence(
            index,
            entry["prompt_len"],
            entry["output_len"],
            arrival_s,
            priority=entry.get("priority", 0),
            runs=for_adapter(runs, adapter),
            adapter=adapter,
            stop_known="max_tokens" not in entry,
            limit_tokens=entry.get("max_tokens", 0),
            shareable_tokens=entry["prompt_len"],
            output_shared=True,
            acceptance=acceptance,
        )
        seq.images = tuple((int(first), int(end)) for first, end in entry.get("images", ()))
        return seq

    def finished(seq: Sequence, now_s: float) -> None:
        for delay, index in followers.get(ids[seq.index], ()) if seq.index not in gone else ():
            heapq.heappush(arrivals, (now_s + delay, index))

    def processed(batch: Batch) -> None:
        step = run.as_recorded(batch, ids)
        if step is not None:
            out.append(step)

    replica = Replica(
        [run.scheduler],
        RecordedClock(config["step_time"]),
        depth=run.depth,
        on_finish=finished,
        on_batch=processed,
    )
    while arrivals or replica.busy():
        event, leaves = replica.next_event_s(), leaving[0][0] if leaving else np.inf
        if arrivals and arrivals[0][0] <= min(event, leaves):
            arrival, index = heapq.heappop(arrivals)
            replica.advance(arrival)
            seq = make(index, arrival)
            replica.ranks[0].submit(seq)
            if "leaves_s" in by_index[index]:
                heapq.heappush(leaving, (arrival + by_index[index]["leaves_s"], index, seq))
        elif leaves <= event:
            now_s, index, seq = heapq.heappop(leaving)
            replica.advance(now_s)
            if seq.state != "finished" and replica.cancel(replica.ranks[0], seq, now_s):
                finished(seq, now_s)
                gone.add(index)
        else:  # up to the next arrival, the next decision or the next end of a request, which may bring an arrival
            limit = float(np.nextafter(event, np.inf))
            replica.advance(min(limit, leaves, arrivals[0][0] if arrivals else np.inf), stop_after_finish=True)
    return out


def compare(
    name: str,
    engine: str,
    recorded: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    columns: tuple[str, ...],
) -> dict[str, Any]:
    """Compare `columns` step by step, by index, also after the first difference; steps too many are a difference."""
    equal = 0
    first: dict[str, Any] | None = None
    for number, want in enumerate(recorded):
        got = steps[number] if number < len(steps) else None
        difference: dict[str, Any] | None = None
        if got is None:
            difference = {"what": "missing", "recorded": None, "simulated": None}
        else:
            for what in columns:
                expected = [row[:3] for row in want["sched"]] if what == "sched" else want.get(what)
                if got[what] != expected:
                    difference = {"what": what, "recorded": expected, "simulated": got[what]}
                    break
        if difference is None:
            equal += 1
        elif first is None:
            first = {"step": number, **difference}
    if first is None and len(steps) > len(recorded):
        first = {"step": len(recorded), "what": "steps", "recorded": len(recorded), "simulated": len(steps)}
    return {"name": name, "engine": engine, "steps": len(recorded), "equal": equal, "first_difference": first}
