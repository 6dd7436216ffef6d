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


SCRIPTS: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("fp4", "1k1k-low-latency"): ("recipes/gb200-fp4/1k1k/low-latency.yaml", ()),
    ("fp4", "1k1k-max-tpt"): ("recipes/gb200-fp4/1k1k/mid-curve.yaml", SIDES),
    ("fp4", "1k1k-middle-curve"): ("recipes/gb200-fp4/1k1k/mid-curve.yaml", SIDES),
    ("fp4", "8k1k-low-latency"): ("recipes/gb200-fp4/8k1k/low-latency.yaml", ()),
    ("fp4", "8k1k-max-tpt"): ("recipes/gb200-fp4/8k1k/max-tpt.yaml", ("decode",)),
    ("fp4", "8k1k-middle-curve"): ("recipes/gb200-fp4/8k1k/max-tpt.yaml", ("decode",)),
    ("fp8", "1k1k-low-latency"): ("recipes/gb200-fp8/1k1k/low-latency.yaml", ()),
    ("fp8", "1k1k-max-tpt"): ("recipes/gb200-fp8/1k1k/max-tpt.yaml", SIDES),
    ("fp8", "8k1k-low-latency"): ("recipes/gb200-fp8/8k1k/low-latency.yaml", ()),
    ("fp8", "8k1k-max-tpt"): ("recipes/gb200-fp8/8k1k/mid-curve.yaml", SIDES),
}
"""Weights and ``SCRIPT_MODE`` of the launcher that those recipes came from -> the recipe of the same flags, and the sides whose
devices are data-parallel ranks that split the experts by number; else all are tensor ranks. (Datasheet:
`examples/backends/sglang/slurm_jobs/scripts/gb200-*/disagg` of dynamo at cf433e68, 2025-12; "8k1k-max-tpt" in FP4 is in none that
was found and taken to be "8k1k-middle-curve"; read 2026-11.)"""
NODE_DEVICES = 4
"""Of a node of GB200."""


@cache
def _recipes() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(PATH.read_text())
    return found


def ranks_of(layout: Mapping[str, Any], users: int, weights: str, side: str) -> dict[str, int]:
    """`tp`, `dp` and `ep` of each server of a side, where a recipe or a script states them; a layout's own say less.

    Of one recipe some layouts say that it splits experts by number or attention by ranks, others not; what was measured is alike.
    """
    stated = layout.get("recipe") or {}
    script, nodes = SCRIPTS.get((weights, str(stated.get("SCRIPT_MODE")))), stated.get(f"{side.upper()}_NODES")
    if script is None:
        recipe = _fitting(layout, users, weights)
        return dict(recipe["ranks"][side]) if recipe else {}
    if nodes is None:
        return {}
    devices = int(nodes) * NODE_DEVICES // int(layout[side]["num-worker"])
    apart = side in script[1]
    return {"tp": 1 if apart else devices, "dp": devices if apart else 1, "ep": devices if apart else 1}


def _fitting(layout: Mapping[str, Any], users: int, weights: str) -> dict[str, Any] | None:
    """The recipe that a layout names; an empty one if it is not the one that ran, None if none is public.

    One that neither lists a run's users nor has places for them did not run: layouts name the best fit.
    """
    stated = layout.get("recipe") or {}
    script = SCRIPTS.get((weights, str(stated.get("SCRIPT_MODE"))))
    recipe = _recipes().get(script[0] if script else str(stated.get("CONFIG_FILE")))
    if recipe is None:
        return None
    rows = recipe["decode"].get("max_batch_size")
    fits = rows is None or users in recipe["users"] or users <= rows * int(layout["decode"]["num-worker"])
    return recipe if fits else {}


def sides_of(layout: Mapping[str, Any], users: int, weights: str = "") -> dict[str, dict[str, Any]]:
    """Flags by side of a layout that names a recipe; empty where none is public."""
    recipe = _fitting(layout, users, weights)
    if recipe is not None:
        return {side: dict(recipe[side]) for side in SIDES} if recipe else {}
    stated = layout.get("recipe") or {}
    out = {
        side: {
            flag: json.loads(stated[f"{side.upper()}_{name}"])
            for name, flag in VARIABLES.items()
            if f"{side.upper()}_{name}" in stated
        }
        for side in SIDES
    }
    return {side: flags for side, flags in out.items() if flags}


__all__ = ["SIDES", "ranks_of", "sides_of"]
