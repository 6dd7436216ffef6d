"""Replay recorded SGLang schedules through the scheduler model, step by step."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from engine_models.parts.batch import Batch
from engine_models.parts.prefill_first import PrefillFirstBatch
from engine_models.parts.sequence import Sequence
from engine_models.sglang import scheduler_from_recording
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock

COMPARED = ("sched", "retracted", "preempted", "hits", "free_tokens", "evictable")


def replay_sglang(
    config: dict[str, Any], requests: list[dict[str, Any]], recorded: list[dict[str, Any]]
) -> dict[str, Any]:
    """Replay one recording; return `name`, `engine`, `steps`, `equal` and `first_difference` (None or a dict)."""
    steps = simulate(config, requests)
    equal = 0
    first: dict[str, Any] | None = None
    for number, want in enumerate(recorded):
        got = steps[number] if number < len(steps) else None
        difference: dict[str, Any] | None = None
        if got is None:
            difference = {"what": "missing", "recorded": None, "simulated": None}
        else:
            for what in COMPARED:
                if got[what] != want[what]:
                    difference = {"what": what, "recorded": want[what], "simulated": got[what]}
                    break
        if difference is None:
            equal += 1
        elif first is None:
            first = {"step": number, **difference}
    if first is None and len(steps) > len(recorded):
        first = {"step": len(recorded), "what": "steps", "recorded": len(recorded), "simulated": len(steps)}
    return {
        "name": config.get("scenario", "sglang"),
        "engine": "sglang",
        "steps": len(recorded),
        "equal": equal,
        "first_difference": first,
    }


def simulate(config: dict[str, Any], requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the requests of a recording through the scheduler model; one dict per step, as in the recording."""
    scheduler, depth = scheduler_from_recording(config["version"], config["config"])
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
    cut: set[Sequence] = set()  # rows whose prompt was computed in pieces

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
        )

    def finished(seq: Sequence, now_s: float) -> None:
        for delay, index in followers.get(ids[seq.index], ()):
            heapq.heappush(arrivals, (now_s + delay, index))

    def processed(batch: Batch) -> None:
        assert isinstance(batch, PrefillFirstBatch)
        assert batch.rows is not None
        # the recorder names as a hit whatever a row of a prefill batch already has, unless its prompt was cut
        hits = {}
        if batch.mode != "DECODE":
            hits = {ids[s.index]: before for s, _, before in batch.rows if before and s not in cut}
        if batch.chunked is not None:
            cut.add(batch.chunked)
        retracted = set(batch.retracted)
        out.append(
            {
                "sched": [[ids[s.index], n, before] for s, n, before in batch.rows],
                "hits": hits,
                "retracted": [ids[s.index] for s in batch.retracted],
                "preempted": [ids[s.index] for s in batch.preempted if s not in retracted],
                "free_tokens": batch.free_tokens,
                "evictable": batch.evictable_tokens,
                "mode": batch.mode,
                "chunked": ids[batch.chunked.index] if batch.chunked is not None else None,
                "batch_is_full": batch.batch_is_full,
                "new_token_ratio": round(batch.new_token_ratio, 9),
            }
        )

    replica = Replica(
        scheduler,  # type: ignore[arg-type]
        RecordedClock(config["step_time"]),
        depth=depth,
        on_finish=finished,
        on_batch=processed,
    )
    while arrivals or replica.busy():
        event = replica.next_event_s()
        if arrivals and arrivals[0][0] <= event:
            arrival, index = heapq.heappop(arrivals)
            replica.advance(arrival)
            replica.submit(make(index, arrival))
        else:
            beyond = float(np.nextafter(event, np.inf))
            replica.advance(min(arrivals[0][0], beyond) if arrivals else beyond)
    return out
