"""Overheads of engines outside their kernels: few constants with a physical meaning, each with its source.

They stand in `overheads/<engine>.json`, written by `capacity-plan calibrate overheads` from measured runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine_models.step_time import HostOverhead

FOLDER = Path(__file__).parent / "overheads"
NAMES = ("step_s", "row_s", "device_step_s", "device_layer_s", "sort_step_s", "sort_bytes_per_logit", "launch_s")
FRONT_END = ("front_end_s", "tokenise_token_s")


@dataclass(frozen=True)
class Overheads:
    """Overheads of one engine: the host's and the front end's, and where each value is from."""

    host: HostOverhead
    front_end_s: float
    tokenise_token_s: float
    provenance: dict[str, dict[str, Any]]


def overheads_from(values: dict[str, float], provenance: dict[str, dict[str, Any]]) -> Overheads:
    """Assemble from values by name."""
    host = {name: values.get(name, 0.0) for name in NAMES}
    before = {name: values.get(name, 0.0) for name in FRONT_END}
    return Overheads(HostOverhead(**host), **before, provenance=provenance)


@lru_cache(maxsize=8)
def load_overheads(engine: str) -> Overheads:
    """Overheads of an engine as shipped."""
    raw = json.loads((FOLDER / f"{engine}.json").read_text(encoding="utf-8"))
    return overheads_from({name: entry["value"] for name, entry in raw.items()}, raw)
