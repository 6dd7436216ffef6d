"""Overheads of engines outside their kernels: few constants with a physical meaning, each with its source.

They stand in `overheads/<engine>.json`, written by `capacity-plan calibrate overheads` from measured runs. What an engine's own
file lacks is taken over from another engine, and says so.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine_models.cost.event_loop import EventLoop
from engine_models.cost.terms import HostOverhead
from hardware_profiles.records import dataclass

FOLDER = Path(__file__).parent / "overheads"
NAMES = (
    "step_s",
    "row_s",
    "device_step_s",
    "device_layer_s",
    "sort_step_s",
    "sort_cycles_per_logit",
    "launch_s",
    "expert_launches",
    "reduce_wait_s",
    "prefill_launch_s",
    "decode_launch_s",
    "prefill_graph_launch_s",
)
FRONT_END = ("front_end_s", "tokenise_token_s")
LOOP = {
    "loop_request_s": "request_s",
    "loop_chat_s": "chat_s",
    "loop_prompt_token_s": "prompt_token_s",
    "loop_hand_over_s": "hand_over_s",
    "loop_step_s": "step_s",
    "loop_row_s": "row_s",
    "loop_merged_row_s": "merged_row_s",
    "loop_idle_factor": "idle_factor",
    "host_speed": "speed",
}
"""Values of a front end that is an event loop, and the fields of `EventLoop`. An engine whose own file has a `front_end_s` takes
none of them over."""
REPLAYS_ONLY = ("start_s",)
"""Values of a file that replays of measured runs use and no simulation does."""


@dataclass(frozen=True)
class Overheads:
    """Overheads of one engine: the host's and the front end's, and where each value is from."""

    host: HostOverhead
    front_end_s: float
    tokenise_token_s: float
    loop: EventLoop | None
    provenance: dict[str, dict[str, Any]]


def overheads_from(values: dict[str, float], provenance: dict[str, dict[str, Any]]) -> Overheads:
    """Assemble from values by name."""
    host: dict[str, Any] = {"step_s": 0.0, "row_s": 0.0} | {name: values[name] for name in NAMES if name in values}
    before = {name: values.get(name, 0.0) for name in FRONT_END}
    loop = EventLoop(**{field: values[name] for name, field in LOOP.items()}) if "loop_request_s" in values else None
    return Overheads(HostOverhead(**host), **before, loop=loop, provenance=provenance)


@lru_cache(maxsize=32)
def own_overheads(engine: str) -> dict[str, dict[str, Any]]:
    """Entries of an engine's own file: value, unit, kind, date, meaning and source by name; none without a file."""
    path = FOLDER / f"{engine}.json"
    entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return entries


@lru_cache(maxsize=32)
def load_overheads(engine: str, taken_from: str | None = None) -> Overheads:
    """Overheads of an engine as shipped; `taken_from` is the engine whose values stand in for those that nobody measured."""
    raw = {name: entry for name, entry in own_overheads(engine).items() if name not in REPLAYS_ONLY}
    if taken_from is not None:
        taken = {"kind": "assumed", "source": f"taken over from {taken_from}"}
        own = raw.keys() | (LOOP if "front_end_s" in raw and "loop_request_s" not in raw else {})
        raw |= {name: entry | taken for name, entry in own_overheads(taken_from).items() if name not in own}
    return overheads_from({name: entry["value"] for name, entry in raw.items()}, raw)
