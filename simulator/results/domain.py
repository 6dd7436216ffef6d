"""What evidence stands behind a prediction, where it leaves the calibrated domain, and the sources of its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine_models.engines.known import engine_named
from hardware_profiles.device import Device, provenance
from hardware_profiles.kernel_borrow import HELD_OUT_ERROR_PCT
from hardware_profiles.kernel_physics import canonical_format
from hardware_profiles.ops import Ops
from hardware_profiles.power import LIMIT_ERROR_PCT
from simulator.calibrated import beyond, unlike
from simulator.prepared import Prepared
from simulator.results.intervals import Evidence, Setting, table

DATASHEET_ERROR = 0.5
"""Mean error of kernels priced by the datasheet with typical efficiencies. Kind: assumed, 2026-11: on NVIDIA GPUs whose tables
are left out 23 to 50 %, mean 36 % (docs/background/accuracy.md); the devices that are left to it are of other makes."""


def domain(prepared: Prepared, used: Mapping[str, float] | None = None) -> tuple[Evidence, list[str]]:
    """What evidence stands behind a prediction, and the axes along which it leaves the calibrated domain.

    used : how far the run goes along the ranges of a user's calibration. Inside of that, what it measured stands for all else;
    outside an interval is no narrower than without it. A law of kernels errs by the rows and prompts of the run, too.
    Whether the load is a closed loop is not looked at: `Evidence.closed_loop` is False. Of pools side by side the one that is
    known least stands for all.
    """
    if prepared.side_by_side or prepared.services:
        found = [(each.pool.name, *domain(each)) for each in _apart(prepared)]
        worst = max((evidence for _, evidence, _ in found), key=_doubt)
        return worst, [f"pool '{name}': {axis}" for name, _, axes in found for axis in axes]
    evidence, axes = _shipped(prepared)
    evidence = _by_law(evidence, prepared.kernels.provenance, used or {})
    own = prepared.calibration
    left = [*unlike(prepared), *beyond(prepared, used or {})]
    if own is None or prepared.pools:
        return evidence, [*left, *axes]
    known = dict(evidence.fitted)  # a device that was measured is no less known than its class
    fitted = {**known, **{metric: min(width, known.get(metric, width)) for metric, width in own.interval.items()}}
    measured = replace(evidence, fitted=tuple(fitted.items()), fitted_by=own.name)
    return (replace(measured, without_fit=evidence.fitted), [*left, *axes]) if left else (measured, [])


def _apart(prepared: Prepared) -> Sequence[Prepared]:
    """Pools side by side, those that pass requests on as one."""
    if not prepared.services:
        return prepared.pools
    return [
        replace(each.pools[-1], pools=each.pools, paths=prepared.paths) if each.paired else each.pools[0]
        for each in prepared.services
    ]


def _by_law(evidence: Evidence, said: Mapping[str, Any], used: Mapping[str, float]) -> Evidence:
    """The evidence of kernels by a law: it errs as on chips left out of it, by the rows and prompts of the run.

    What is not known of the run (`used` is empty) is taken for the wider.
    """
    if "law_within" not in said:
        return evidence
    from hardware_profiles.device_laws import FEW_TOKENS

    widths, rows, tokens = said["law_within"], used.get("rows", math.inf), used.get("prompt_tokens")
    few, many = widths["few_width"], widths["prompt_width"]
    fitted = {"ttft": max(few, many) if tokens is None else few if tokens <= FEW_TOKENS else many}
    fitted["tpot"] = widths["decode_width"] if rows <= 1 else max(widths["decode_width"], widths["batch_width"])
    by = f"nine in ten values on chips left out of the law of {said['law']}"
    return replace(evidence, fitted=tuple(fitted.items()), fitted_by=by)


def _shipped(prepared: Prepared) -> tuple[Evidence, list[str]]:
    """The evidence and the axes by what is shipped."""
    plan, device, kernels = prepared.plan, prepared.device, prepared.kernels
    groups = kernels.held_out_error
    hardware, error, assumed, axes = "kernels", 0.0, False, _beyond_measured(prepared)
    setting = setting_of(prepared)
    near = setting.key() in table()["seen"]
    if device.name in engine_named(plan.engine).measured:
        hardware = "kernels" if axes else "measured"
    elif groups:
        axes = [*_unlike(setting, near=near), *axes]
    else:
        said = kernels.provenance
        lender, law = said.get("borrowed_from_device"), said.get("law")
        hardware = "borrowed" if lender else "physics"
        own = device.kernel_error
        without = 100 * (DATASHEET_ERROR if own is None else own.value)
        percent = said["borrowed_error_pct"] if lender else said["law_error_pct"] if law else without
        differing = said.get("format_error_pct")
        if differing and (fmt := canonical_format(prepared.formats.weights.name)) in differing:
            percent = differing[fmt]
            axes.insert(0, f"weights: kernels in {fmt} on {device.name} differ by version; {percent:.0f} % assumed")
        error = float(percent) / 100
        assumed = own is None and not (lender or law)
        basis = f"efficiencies of {lender or law}" if lender or law else "assumed efficiencies"
        if own is None or law:
            axes.insert(0, f"hardware: no kernel of {device.name} was measured; datasheet rates and {basis}")
    weights, tabled = prepared.formats.weights, groups or kernels.provenance.get("borrowed_groups", ())
    if tabled and weights.bits_per_weight < 16:
        moe = prepared.arch.has_experts
        known = {key.split("/")[1] for key in tabled if key.startswith("moe/" if moe else "gemm/")}
        lent = kernels.lent_experts(weights.name, plan.costs.terms.moe_backend) if moe else None
        if lent is not None:
            error = max(error, lent[1] / 100)
            axes.append(f"weights: expert kernels in {weights.name} are {lent[0]}, {lent[1]:.0f} % off on shapes kept out of it")
        elif canonical_format(weights.name) not in known:
            hardware = "kernels" if groups else hardware  # 16-bit curves stand in, as a distant kin's would
            error = max(error, HELD_OUT_ERROR_PCT[False] / 100)
            measured_on = device.name if groups else kernels.provenance["borrowed_from_device"]
            axes.append(
                f"weights: no {'expert' if moe else 'matrix'} kernels in {weights.name} were measured on {measured_on}"
            )
    if prepared.pool.power_limit_w is not None:
        axes.append(f"power limit: {prepared.pool.power_limit_w:g} W, under which no kernel was measured")
        hardware, error = "kernels" if hardware == "measured" else hardware, max(error, LIMIT_ERROR_PCT / 100)
    split = bool(prepared.pools) and not prepared.side_by_side
    by_law = prepared.scenario.workload.lengths_by_law()
    found = Evidence(plan.engine, hardware, kernel_error=error, setting=setting.key(), split=split, by_law=by_law)
    return replace(found, ranks_apart=prepared.ranks > 1, error_assumed=assumed), axes


def _doubt(evidence: Evidence) -> tuple[int, bool, float]:
    """How little stands behind a prediction, for comparison."""
    place = ("measured", "kernels", "borrowed", "physics").index(evidence.hardware)
    return place, evidence.setting not in table()["seen"], evidence.kernel_error


def setting_of(prepared: Prepared) -> Setting:
    """Engine, device, kind of model and width of the weights."""
    arch, bits = prepared.arch, prepared.formats.weights.bits_per_weight
    kinds = {
        "recurrent layers": arch.has("linear"),
        "sparse attention": any(block.sparse for block in arch.attention),
        "latent attention": arch.has("mla"),
    }
    kind = next((name for name, found in kinds.items() if found), "attention")
    return Setting(
        prepared.plan.engine,
        prepared.device.name,
        f"{kind}, {'experts' if arch.has_experts else 'no experts'}",
        "16 bits" if bits >= 16 else "8 bits" if bits > 6 else "4 bits",
    )


def _unlike(setting: Setting, *, near: bool) -> list[str]:
    """In which way no measured run is like a setting."""
    if near:
        return []
    where = f"{setting.engine}/{setting.device}/"
    if any(key.startswith(where) for key in table()["seen"]):
        return [f"model: no run of {setting.engine} on {setting.device} with {setting.model} in {setting.weights} was measured"]
    return [f"hardware: no end-to-end run of {setting.engine} on {setting.device} was measured, only its kernels"]


def _beyond_measured(prepared: Prepared) -> list[str]:
    """Axes along which a run leaves the measured ones whatever its hardware."""
    plan, device = prepared.plan, prepared.device
    axes = list(plan.outside)
    if prepared.arch.has("linear"):
        axes.append("attention: recurrent layers are priced by fits to kernel tables of gated delta nets; no run was measured")
    if any(block.sparse for block in prepared.arch.attention):
        axes.append("attention: indexers and sparse attention are priced by fits and dense latent kernels; no run was measured")
    pool = prepared.pool
    measured = engine_named(plan.engine).measured.get(device.name)
    if measured and pool.tensor_parallel not in measured:
        ranks = f"{', '.join(map(str, measured[:-1]))} and {measured[-1]}"
        axes.append(f"parallelism: runs at tensor parallelism {ranks} were measured, not {pool.tensor_parallel}")
    if pool.tensor_parallel * prepared.ranks > int(device.node_size.value):
        axes.append("parallelism: collectives across nodes are priced as inside one")
    if plan.speculation is not None:
        axes.append("speculative decoding: no run with it was measured")
    if plan.costs.adapters is not None:
        axes.append("LoRA adapters: no run with them was measured, nor their kernels")
    if plan.costs.images is not None:
        axes.append("images: no run with them was measured")
    if prepared.encoders and any(each.plan.embeddings is not None for each in prepared.pools or (prepared,)):
        axes.append("images encoded by servers of their own: no run with such servers was measured")
    if plan.tiers:
        axes.append("KV offload: no run that depends on it was measured")
    if prepared.ranks > 1:
        axes.append("parallelism: no run with data-parallel attention was measured on a host that keeps up")
    if pool.pipeline_parallel > 1:
        axes.append("parallelism: no pipeline-parallel run was measured")
    return axes


def device_sources(device: Device) -> list[dict[str, Any]]:
    """Provenance of every number of the device."""
    return provenance(device)


def kernel_sources(kernels: Ops) -> dict[str, Any]:
    """Provenance of the kernel model."""
    return {
        "device": kernels.device,
        "framework": kernels.framework,
        "provenance": kernels.provenance,
        "held_out_error": dict(kernels.held_out_error),
    }
