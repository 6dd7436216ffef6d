"""A deployment by a user's calibration: its scales applied, and how far the deployment is from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_models.cost.terms import HostOverhead
from engine_models.declaration import EnginePlan
from hardware_profiles.device import Device
from hardware_profiles.errors import InputError
from hardware_profiles.ops import Ops
from simulator.prepared import Prepared

if TYPE_CHECKING:
    from engine_models.cost.measured import FittedLaw
    from hardware_profiles.calibration import Calibration
    from hardware_profiles.scaled_ops import Scales
    from simulator.config.schema import Pool

BEYOND = 1.5
"""Lengths and rows up to so many times those measured, or a part of them so small, count as measured (assumed)."""
WORDS = {
    "prompt_tokens": "prompts of {:,.0f} tokens",
    "context_tokens": "contexts of {:,.0f} tokens",
    "rows": "{:,.0f} requests at once",
}


def calibration_of(pool: Pool, plan: EnginePlan, device: Device, base: Path) -> Calibration | None:
    """The calibration that a pool names. Raises InputError for one of another engine or device."""
    if pool.calibration is None:
        return None
    from hardware_profiles.calibration import read_calibration

    found = read_calibration(base / pool.calibration)
    if pool.power_limit_w is not None:
        raise InputError(
            f"{found.name} holds the power limit under which it was measured, or none",
            where="deployment.power_limit_w",
            mend="remove one of `deployment.power_limit_w` and `deployment.calibration`",
        )
    for name, here in (("engine", plan.engine), ("hardware", device.name)):
        if found.measured_on[name] != here:
            raise InputError(
                f"{found.name} was measured on {found.measured_on['engine']} on {found.measured_on['hardware']}, and this is "
                f"{plan.engine} on {device.name}",
                where="deployment.calibration",
                mend="remove `deployment.calibration`, or calibrate with measurements of this deployment",
            )
    return found


def calibrated(found: Calibration, kernels: Ops, plan: EnginePlan, model: str) -> tuple[Ops, EnginePlan]:
    """Operations and plan by a calibration: the operations by its scales for a model, or the plan by its law of steps."""
    if found.steps is None:
        return _by_scales(found.as_scales(model), kernels, plan)
    from engine_models.cost.measured import fitted_from

    try:
        return kernels, _by_law(plan, fitted_from(found.steps), served=bool(found.steps.get("served", True)))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{found.name} holds no law of steps: {type(error).__name__}: {error}",
            where="deployment.calibration",
            mend="write it again by `capacity-plan calibrate endpoint`",
        ) from None


def _by_scales(scales: Scales, kernels: Ops, plan: EnginePlan) -> tuple[Ops, EnginePlan]:
    from hardware_profiles.scaled_ops import ScaledOps

    host = plan.costs.terms.host.slowed(scales.host_scale)
    return ScaledOps.of(kernels, scales), replace(plan, costs=plan.costs.with_terms(host=host))


def with_law(prepared: Prepared, fitted: FittedLaw) -> Prepared:
    """A deployment whose steps are timed by a law; what the host and the front end take is in it."""
    return replace(prepared, plan=_by_law(prepared.plan, fitted))


def _by_law(plan: EnginePlan, fitted: FittedLaw, *, served: bool = True) -> EnginePlan:
    """The plan by a law; where its steps were not `served`, host and front end come on top, as they are."""
    if not served:
        return replace(plan, costs=replace(plan.costs, measured=fitted.law))
    costs = replace(plan.costs.with_terms(host=HostOverhead(0.0, 0.0)), measured=fitted.law)
    front = replace(plan.front, before_s=fitted.front_s, tokenise_token_s=0.0, loop=None)
    return replace(plan, costs=costs, front=front)


def with_scales(prepared: Prepared, scales: Scales) -> Prepared:
    """A deployment by scales."""
    kernels, plan = _by_scales(scales, prepared.kernels, prepared.plan)
    return replace(prepared, kernels=kernels, plan=plan)


def check_law(prepared: Prepared) -> Prepared:
    """The deployment itself. Raises InputError where a law of whole steps was measured on another one."""
    found = prepared.calibration
    other = [] if found is None or found.steps is None else [text for text in unlike(prepared) if ": version " not in text]
    if found is not None and other:
        raise InputError(
            f"{found.name} times whole steps, which hold for the deployment they were measured on: "
            f"{'; '.join(text.removeprefix('calibration: ') for text in other)}",
            where="deployment.calibration",
            mend="remove `deployment.calibration`, or calibrate with measurements of this deployment",
        )
    return prepared


def calibration_words(calibration: Calibration, model: str) -> str:
    """What a calibration does to a model's times, for the assumptions of a run."""
    scales = asdict(calibration.as_scales(model))
    told = [f"{name} {scales[f'{name}_scale']:.3g}" for name in calibration.scales]
    law = calibration.steps is not None
    left = f"; not told by them: {', '.join(calibration.unidentified)}" if calibration.unidentified else ""
    held = "" if calibration.held_out_error is None else f", left out in turn {calibration.held_out_error:.0%} off in the median"
    many = "1 measurement" if calibration.points == 1 else f"{calibration.points} measurements"
    by = "whole steps, in place of the profile's" if law else f"times the profile's: {', '.join(told)}"
    part = calibration.elsewhere_share
    alike = law or part == 1.0 or calibration.of_model(model)
    other = "" if alike else f" (of another model: its scales to the power {part:.2g})"
    return f"step times by {calibration.name}: {many}{held}; {by}{other}{left}"


def measured_on(prepared: Prepared) -> dict[str, str]:
    """What a measurement of the deployment is a measurement of, by the names of `SETTING`."""
    pool, formats, plan = prepared.pool, prepared.formats, prepared.plan
    features = [name for name, there in (("speculative", pool.speculative), ("offload", pool.offload)) if there is not None]
    features += [] if pool.role == "mixed" else [pool.role]
    return {
        "engine": plan.engine,
        "version": plan.version,
        "hardware": prepared.device.name,
        "model": prepared.arch.name,
        "weights": formats.weights.name,
        "activations": formats.activations.name,
        "kv_cache": formats.kv_cache.name,
        "tensor_parallel": str(pool.tensor_parallel),
        "pipeline_parallel": str(pool.pipeline_parallel),
        "data_parallel": str(prepared.ranks),
        "features": ", ".join(features) or "none",
    }


def unlike(prepared: Prepared) -> list[str]:
    """In which ways a deployment is not the one that its calibration measured."""
    if prepared.pools:
        return list(dict.fromkeys(text for each in prepared.pools for text in unlike(each)))
    if prepared.calibration is None:
        return []
    here, there = measured_on(prepared), prepared.calibration.measured_on
    same = {"model"} if prepared.calibration.of_model(here["model"]) else set()
    names = [name for name in here if here[name] != there[name] and name not in same]
    return [f"calibration: {name.replace('_', ' ')} {there[name]} was measured, not {here[name]}" for name in names]


def beyond(prepared: Prepared, used: Mapping[str, float]) -> list[str]:
    """Along which of `RANGES` a load leaves the calibration's."""
    if prepared.calibration is None:
        return []
    from hardware_profiles.calibration import RANGES

    out = []
    for name in RANGES:
        least, most = prepared.calibration.domain.get(name, (0.0, float("inf")))
        if name in used and not least / BEYOND <= used[name] <= BEYOND * most:
            near = most if used[name] > most else least
            out.append(f"calibration: {WORDS[name].format(near)} were measured, not {WORDS[name].format(used[name])}")
    return out


def used_ranges(result: Mapping[str, Any]) -> dict[str, float]:
    """How far a run went along `RANGES`: the longest prompt, prompt and answer in the 99th percentile, rows of a replica."""
    prompts, answers = (result["metrics"][f"{name}_tokens"] for name in ("input", "output"))
    if not prompts["count"]:
        return {}
    rows = float(result["server"]["num_requests_running_peak"])
    return {"prompt_tokens": prompts["p99"], "context_tokens": prompts["p99"] + answers["p99"], "rows": rows}
