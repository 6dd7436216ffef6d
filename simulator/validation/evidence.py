"""What kind of evidence an experiment of a suite is: hardware, model class, and the groups to hold out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hardware_profiles.errors import PlanError
from simulator.intervals import KINDS_LIKE, Evidence


def model_class(row: dict[str, Any]) -> str:
    """Return "dense", "quantized", "moe" or "moe_expert_parallel"."""
    from engine_models.architecture import load_architecture

    try:
        arch = load_architecture(str(row["model"]))
    except PlanError:
        return "unknown"
    if any(block.kind == "moe" for block in arch.mlp):
        return "moe_expert_parallel" if float(row.get("ep") or 1) > 1 else "moe"
    text = str(row.get("precision", "")).lower()
    return "dense" if not text or "16" in text else "quantized"


def device_name(row: dict[str, Any]) -> str:
    """Name of the device in this tool's catalogue, or the suite's own spelling."""
    from hardware_profiles.device import resolve_device

    try:
        return resolve_device(str(row["hardware"]))
    except PlanError:
        return str(row["hardware"])


def engine_of(row: dict[str, Any]) -> str:
    """Name of a row's engine, without what a suite writes behind it."""
    return str(row["engine"]).lower().split()[0]


def hardware_class(row: dict[str, Any]) -> str:
    """Return "measured" where end-to-end runs of the engine on the device stand behind its overheads, else "kernels"."""
    from simulator.domain import MEASURED

    served = "closed loop" not in str(row.get("arrival_process", ""))
    return "measured" if (engine_of(row), device_name(row)) in MEASURED and served else "kernels"


@dataclass(frozen=True)
class Kind:
    """What stands behind the prediction of a run, and the groups of which it can be left out with all others of its like."""

    evidence: Evidence
    model: str
    hardware: str
    workload: str


def kinds(rows: list[dict[str, Any]]) -> dict[str, Kind]:
    """What each whole, unsaturated, trusted run is, by id; runs of models that are not in the catalogue are left out."""
    out: dict[str, Kind] = {}
    for row in rows:
        if row.get("stage_index", -1) != -1 or row.get("saturated") or row.get("wip") or row.get("trust") == "low":
            continue
        model = model_class(row)
        if model not in KINDS_LIKE:
            continue
        workload = row.get("workload") or f"{row.get('prompt_tokens_mean', '-')} / {row.get('output_tokens_mean', '-')} tokens"
        out[row["id"]] = Kind(
            Evidence(engine_of(row), hardware_class(row), model), str(row["model"]), device_name(row), str(workload)
        )
    return out
