"""Flags of the prefill and decode servers of measured runs, by the public recipe that a run's launch names.

`recipes.json` is made by `benchmarks/recipes.py` of github.com/NVIDIA/srt-slurm (Apache-2.0, read 2026-11): facts that recipes
state, nothing measured. Older launches state them as variables of the launcher, side and name in one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("recipes.json")
SIDES = ("prefill", "decode")
VARIABLES = {
    "MAX_BATCH_SIZE": "max_batch_size",
    "MAX_NUM_TOKENS": "max_num_tokens",
    "GPU_MEM_FRACTION": "free_gpu_memory_fraction",
}
"""What a variable of the launcher is called after ``PREFILL_`` or ``DECODE_``, and the flag that it sets (datasheet:
`examples/backends/trtllm/performance_sweeps` of ai-dynamo/dynamo, read 2026-11)."""


@cache
def _recipes() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(PATH.read_text())
    return found


def sides_of(layout: Mapping[str, Any], users: int) -> dict[str, dict[str, Any]]:
    """Flags by side of a layout that names a recipe; empty where none is public.

    A recipe that neither lists a run's users nor has places for them is not the one that ran: layouts name the best fit.
    """
    stated = layout.get("recipe") or {}
    recipe = _recipes().get(str(stated.get("CONFIG_FILE")))
    if recipe is not None:
        rows = recipe["decode"].get("max_batch_size")
        fits = rows is None or users in recipe["users"] or users <= rows * int(layout["decode"]["num-worker"])
        return {side: dict(recipe[side]) for side in SIDES} if fits else {}
    out = {
        side: {
            flag: json.loads(stated[f"{side.upper()}_{name}"])
            for name, flag in VARIABLES.items()
            if f"{side.upper()}_{name}" in stated
        }
        for side in SIDES
    }
    return {side: flags for side, flags in out.items() if flags}


__all__ = ["SIDES", "sides_of"]
