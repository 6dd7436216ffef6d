"""What kind of evidence an experiment of a suite is: hardware, model class, and the groups to hold out."""

from __future__ import annotations

from typing import Any

from engine_models.engines.known import find
from hardware_profiles.errors import PlanError
from hardware_profiles.records import dataclass
from simulator.results.intervals import Evidence
from simulator.validation.engines import compiles_while_measured
from simulator.validation.launches import launch_of
from simulator.validation.spellings import Unplayable, engine_name, hardware_name, weights_format
from simulator.validation.vllm_launches import host_cores

MODEL_CLASSES = ("dense", "quantized", "moe", "moe_expert_parallel")


def model_class(row: dict[str, Any]) -> str:
    """Return "dense", "quantized", "moe" or "moe_expert_parallel"."""
    from engine_models.model.architecture import load_architecture

    try:
        arch = load_architecture(str(row["model"]))
    except PlanError:
        return "unknown"
    if arch.has_experts:
        return "moe_expert_parallel" if float(row.get("ep") or 1) > 1 else "moe"
    try:
        return "dense" if weights_format(row, arch.quantization) in ("bf16", "fp16") else "quantized"
    except Unplayable:
        return "unknown"


def device_name(row: dict[str, Any]) -> str:
    """Name of the device in this tool's catalogue, or the suite's own spelling."""
    from hardware_profiles.device import resolve_device

    try:
        return resolve_device(hardware_name(row))
    except PlanError:
        return str(row["hardware"])


def engine_of(row: dict[str, Any]) -> str:
    """Name of a row's engine, without what a suite writes behind it."""
    return engine_name(row)


def hardware_class(row: dict[str, Any]) -> str:
    """Return "measured" where end-to-end runs of the engine on the device stand behind its overheads, else "kernels"."""
    engine = find(engine_of(row))
    known = engine is not None and device_name(row) in engine.measured and not closed_loop(row)
    return "measured" if known else "kernels"


def closed_loop(row: dict[str, Any]) -> bool:
    """Tell whether the clients waited for an answer before they sent again."""
    return "closed loop" in str(row.get("arrival_process", ""))


@dataclass(frozen=True)
class Kind:
    """What stands behind the prediction of a run, and the groups of which it can be left out with all others of its like.

    page : whether the source is one of the pages of a list of reports, and not a suite of runs.
    """

    evidence: Evidence
    model: str
    hardware: str
    workload: str
    source: str = ""
    page: bool = False

    @property
    def family(self) -> str:
        """Type of the model's architecture."""
        return self.model.partition(" ")[0]


def set_aside(row: dict[str, Any]) -> str:
    """Why the error of a run is not that of a server as people run it; "" if it is."""
    if host_cores(row) is not None:
        return "the host had too few cores for its ranks"
    if launch_of(row).confidence == "none" and closed_loop(row):
        return "how the server was launched is not public"
    if compiles_while_measured(row):
        return "the server compiled kernels while it was measured (no warm-up)"
    return ""


def kinds(rows: list[dict[str, Any]]) -> dict[str, Kind]:
    """What each whole, unsaturated, trusted run is, by id.

    Runs of models that are not in the catalogue are left out, and so are those that are set aside (`set_aside`).
    """
    out: dict[str, Kind] = {}
    for row in rows:
        if row.get("stage_index", -1) != -1 or row.get("saturated") or row.get("wip") or row.get("trust") == "low":
            continue
        if set_aside(row):
            continue
        model = model_class(row)
        if model not in MODEL_CLASSES:
            continue
        workload = row.get("workload") or f"{row.get('prompt_tokens_mean', '-')} / {row.get('output_tokens_mean', '-')} tokens"
        out[row["id"]] = Kind(
            Evidence(engine_of(row), hardware_class(row), closed_loop(row), split=bool(row.get("disagg"))),
            family_of(str(row["model"])),
            device_name(row),
            str(workload),
            source_of(row),
        )
    return out


def family_of(model: str) -> str:
    """Type of a model's architecture, with its size: checkpoints and fine-tunes of one are one."""
    from engine_models.model.architecture import load_architecture

    arch = load_architecture(model)
    return f"{arch.model_type} {arch.layers} x {arch.hidden}"


def source_of(row: dict[str, Any]) -> str:
    """Who measured: rows of a sample with a public launch are those of who published it."""
    source = str(row.get("source", "-"))
    return "InferenceX" if launch_of(row).flags and "InferenceX" not in source else source
