"""Replay recorded schedules through the engine's scheduler model, step by step.

A recording is a JSON-lines file: a `config` line, `request` lines, `step` lines. The requests are fed to the model under
the recording's own virtual clock (step time = a + b * prefill tokens + c * decode rows + d * attended tokens) and every
step is compared: the ordered rows with their token counts, who was preempted, the prefix hits, the free blocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine_models.engines.vllm import Rank, scheduling_switches, version_of, window_switches
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler
from hardware_profiles.errors import PlanError
from simulator.serving.replica import FloatArray, Replica
from simulator.validation.recordings import read, unreplayed, without_model


class RecordedClock:
    """The step time of a recording: linear in prefill tokens, decode rows and attended tokens, no host time."""

    def __init__(self, coefficients: dict[str, float]) -> None:
        self.a = coefficients["a"]
        self.b = coefficients["b"]
        self.c = coefficients["c"]
        self.d = coefficients["d"]

    def batch_s(self, batch: Batch) -> tuple[float, float]:
        """Seconds of a batch; nothing is attributed to prefill."""
        attended = batch.decode_kv_tokens + sum(new + prior for new, prior in batch.prefill)
        prefill = batch.tokens - batch.decode_tokens
        return self.a + self.b * prefill + self.c * batch.decode_rows + self.d * attended, 0.0

    def decode_run_s(self, rows: int, kv_tokens: int, steps: int) -> FloatArray:
        """Seconds of each of several pure decode steps."""
        attended = kv_tokens + rows * np.arange(steps, dtype=np.int64)
        return np.asarray(self.a + self.b * 0 + self.c * rows + self.d * attended, dtype=np.float64)

    def decode_few_s(self, rows: int, kv_tokens: int, steps: int) -> list[float]:
        """`decode_run_s` as plain numbers."""
        return [float(x) for x in self.decode_run_s(rows, kv_tokens, steps)]

    def host_s(self, rows: int, prefill_tokens: int) -> float:
        """No host time."""
        return 0.0


def replay(path: Path) -> dict[str, Any]:
    """Replay one recording; return `name`, `engine`, `steps`, `equal` and `first_difference` (None or a dict)."""
    recording = read(path)
    missing = without_model(recording, ("vllm", "sglang"))
    if missing is not None:
        return missing
    config, requests, recorded = recording.config, recording.requests, recording.steps
    engine, name = recording.engine, recording.name
    reason = _damage(requests, recorded)
    if reason is None:
        try:
            return _replayed(config, requests, recorded, name)
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
            reason = f"the recording cannot be replayed: {type(error).__name__}: {error}"[:200]
    return unreplayed(name, engine, len(recorded), reason)


def _replayed(
    config: dict[str, Any], requests: list[dict[str, Any]], recorded: list[dict[str, Any]], name: str
) -> dict[str, Any]:
    if config["engine"] == "sglang":
        from simulator.validation.sglang_schedules import replay_sglang

        return replay_sglang(config, requests, recorded)
    return compare(name, "vllm", recorded, simulate_recording(config, requests))


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


def scheduler_of(version: str, knobs: dict[str, Any]) -> tuple[ContinuousScheduler, int]:
    """Build the scheduler of a vLLM recording from its `config` line; returns it and the executor's depth."""
    switches = version_of(version)
    depth = 2 if knobs.get("async_scheduling") else 1
    budget = knobs["max_num_batched_tokens"]
    rules = ContinuousRules(
        **scheduling_switches(switches),
        max_num_batched_tokens=budget,
        max_num_seqs=knobs["max_num_seqs"],
        max_model_len=knobs["max_model_len"],
        in_flight=depth,
        policy=knobs.get("policy", "fcfs"),
        chunked_prefill=knobs.get("enable_chunked_prefill", True),
        long_prefill_token_threshold=knobs.get("long_prefill_token_threshold", 0),
        reserve_full_prompt=knobs.get("scheduler_reserve_full_isl", True) and switches.reserve_full_prompt,
        watermark=knobs.get("watermark", 0.0) if switches.has_watermark else 0.0,
        speculative_tokens=knobs.get("num_speculative_tokens") or 0,
        lookahead_tokens=knobs.get("num_lookahead_tokens") or 0,
    )
    rank = Rank(
        rules=rules,
        blocks=knobs["num_gpu_blocks"] - 1,
        block_tokens=knobs["block_size"],
        prefix_caching=knobs.get("enable_prefix_caching", True),
        unhashed_to_head=switches.unhashed_to_head,
        windows=tuple(group.get("window") for group in knobs.get("kv_groups") or [{"type": "full"}]),
        switches=window_switches(switches),
    )
    return rank.scheduler("record"), depth


def simulate_recording(config: dict[str, Any], requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the requests of a vLLM recording through the scheduler model; one dict per step, as in the recording."""
    scheduler, depth = scheduler_of(config["version"], config["config"])

    def as_recorded(batch: Batch, ids: dict[int, str]) -> dict[str, Any]:
        assert batch.rows is not None
        return {
            "sched": [[ids[s.index], n, before] for s, n, before in batch.rows],
            "hits": {ids[s.index]: hit for s, hit in batch.hits},
            "preempted": [ids[s.index] for s in batch.preempted],
            "free_blocks": batch.free_blocks,
        }

    return drive(scheduler, depth, config, requests, as_recorded)


def drive(
    scheduler: Any,
    depth: int,
    config: dict[str, Any],
    requests: list[dict[str, Any]],
    as_recorded: Callable[[Batch, dict[int, str]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Feed the requests of a recording to a scheduler under the recording's clock; one dict per step.

    `as_recorded` turns a processed batch into a step, given the requests' names by index.
    """
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
    out: list[dict[str, Any]] = []
    script = config["config"].get("spec_accept") or [0]

    def acceptance(verification: int) -> int:
        return int(script[verification % len(script)])

    def make(index: int, arrival_s: float) -> Sequence:
        entry = by_index[index]
        runs = tuple((int(s), int(o), int(n)) for s, o, n in entry["segments"])
        output = (int(entry["out_seg"]), 0, int(entry["output_len"]))
        return Sequence(
            index,
            entry["prompt_len"],
            entry["output_len"],
            arrival_s,
            priority=entry.get("priority", 0),
            runs=(*runs, output),
            shareable_tokens=entry["prompt_len"],
            output_shared=True,
            acceptance=acceptance,
        )

    def finished(seq: Sequence, now_s: float) -> None:
        for delay, index in followers.get(ids[seq.index], ()):
            heapq.heappush(arrivals, (now_s + delay, index))

    def processed(batch: Batch) -> None:
        out.append(as_recorded(batch, ids))

    replica = Replica(
        scheduler, RecordedClock(config["step_time"]), depth=depth, on_finish=finished, on_batch=processed
    )
    while arrivals or replica.busy():
        event = replica.next_event_s()
        if arrivals and arrivals[0][0] <= event:
            arrival, index = heapq.heappop(arrivals)
            replica.advance(arrival)
            replica.submit(make(index, arrival))
        else:  # up to the next arrival, the next decision or the next end of a request, which may bring an arrival
            limit = float(np.nextafter(event, np.inf))
            replica.advance(min(limit, arrivals[0][0]) if arrivals else limit, stop_after_finish=True)
    return out


def compare(
    name: str,
    engine: str,
    recorded: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    fields: tuple[str, ...] = ("sched", "preempted", "hits", "free_blocks"),
) -> dict[str, Any]:
    """Compare `fields` step by step, by index, also after the first difference; steps too many are a difference."""
    equal = 0
    first: dict[str, Any] | None = None
    for number, want in enumerate(recorded):
        got = steps[number] if number < len(steps) else None
        difference: dict[str, Any] | None = None
        if got is None:
            difference = {"what": "missing", "recorded": None, "simulated": None}
        else:
            for what in fields:
                expected = [row[:3] for row in want["sched"]] if what == "sched" else want[what]
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
