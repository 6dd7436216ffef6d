"""Schedules of MLX LM's server as the recorder writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.declaration import Replay
from engine_models.memory.prompt_copies import PromptCopies
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.polled_turns import PolledTurnsScheduler, TurnBatch, TurnRules, no_system

COLUMNS = (
    *("mode", "sched", "admitted", "hits", "cache_insert", "cache_drop", "cache_seqs"),
    *("running", "prompting", "waiting", "finished"),
)
TOKEN_BYTES = 4
"""Of the recorded caches: one layer, one head of width 1, 16 bits."""
SYSTEM_SEGMENTS = 100
"""Segments with smaller numbers are system prompts."""


def system_tokens(seq: Sequence) -> int:
    """Tokens of a recorded chat's system prompt."""
    segment, _, tokens = seq.runs[0]
    return tokens if segment < SYSTEM_SEGMENTS else 0


def replay(knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line."""
    limit = knobs["prompt_cache_bytes"]
    rules = TurnRules(
        decode_concurrency=knobs["decode_concurrency"],
        prompt_concurrency=knobs["prompt_concurrency"],
        prefill_step_size=knobs["prefill_step_size"],
        prompt_cache_tokens=None if limit is None else limit // TOKEN_BYTES,
        time_budget_s=knobs["time_budget"],
        padded=False,
        system_tokens=system_tokens if knobs["request_type"] == "chat" else no_system,
    )
    scheduler = PolledTurnsScheduler(rules, PromptCopies(knobs["prompt_cache_size"]), record_rows=True)
    columns = COLUMNS if limit is None else (*COLUMNS, "trims")
    return Replay(scheduler, 1, columns, as_recorded)


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A settled call as the recordings write it."""
    assert isinstance(batch, TurnBatch)

    def names(seqs: list[Sequence]) -> list[str]:
        return [ids[seq.index] for seq in seqs]

    after = {"running": batch.running, "prompting": batch.prompting, "waiting": batch.waiting}
    return {
        "mode": batch.mode,
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows or ()],
        "admitted": names(batch.taken),
        "hits": {ids[seq.index]: found for seq, found in batch.hits},
        "cache_insert": [list(entry) for entry in batch.stored],
        "cache_drop": [list(entry) for entry in batch.dropped],
        "cache_seqs": batch.copies,
        "trims": [tokens * TOKEN_BYTES for tokens in batch.limits],
        "finished": names(batch.finishing),
        **({key: names(seqs) for key, seqs in after.items()} if batch.closes else dict.fromkeys(after)),
    }
