"""Replay recorded SGLang schedules through the scheduler model, step by step."""

from __future__ import annotations

from typing import Any

from engine_models.engines.sglang import scheduler_from_recording
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch
from simulator.validation.schedules import compare, drive

COMPARED = ("sched", "retracted", "preempted", "hits", "free_tokens", "evictable")


def replay_sglang(
    config: dict[str, Any], requests: list[dict[str, Any]], recorded: list[dict[str, Any]]
) -> dict[str, Any]:
    """Replay one recording; return `name`, `engine`, `steps`, `equal` and `first_difference` (None or a dict)."""
    return compare(config.get("scenario", "sglang"), "sglang", recorded, simulate(config, requests), COMPARED)


def simulate(config: dict[str, Any], requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the requests of a recording through the scheduler model; one dict per step, as in the recording."""
    scheduler, depth = scheduler_from_recording(config["version"], config["config"])
    cut: set[Sequence] = set()  # rows whose prompt was computed in pieces

    def as_recorded(batch: Batch, ids: dict[int, str]) -> dict[str, Any]:
        assert isinstance(batch, PrefillFirstBatch)
        assert batch.rows is not None
        # the recorder names as a hit whatever a row of a prefill batch already has, unless its prompt was cut
        hits = {}
        if batch.mode != "DECODE":
            hits = {ids[s.index]: before for s, _, before in batch.rows if before and s not in cut}
        if batch.chunked is not None:
            cut.add(batch.chunked)
        retracted = set(batch.retracted)
        return {
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

    return drive(scheduler, depth, config, requests, as_recorded)
