"""What a measurement has to agree with: the device's datasheet, the scenario's model."""

from __future__ import annotations

from engine_models.model.architecture import active_bytes, active_parameters, load_architecture, parameters
from hardware_profiles.errors import InputError
from simulator.prepared import Prepared

TOLERANCE = 1.03
"""A time so much below what the datasheet allows is still taken: rounded, or a clock boosted (assumed)."""
ALIKE = 0.1
"""By how much mean lengths and a model's size may differ from the scenario's (assumed)."""
CACHE_BYTES = 1.2e9
"""Weights of a CPU up to which its caches may hold them (datasheet: the largest have 1.15 GB), so that memory bounds nothing."""


def read_bound_s(prepared: Prepared) -> float:
    """Least time of a step: its weights read from memory; 0 where a CPU's caches may hold them, or the rate was fitted."""
    read = active_bytes(prepared.arch, prepared.formats.weights)
    if prepared.device.kernel_error is not None or (prepared.device.kind == "cpu" and read < CACHE_BYTES):
        return 0.0
    return read / (prepared.device.memory_bandwidth_bytes_per_s.value * prepared.devices_each)


def token_bound_s(prepared: Prepared) -> float:
    """Least time of a token of a prompt: its arithmetic at the highest rate, twice that of 16 bits where no other is stated.

    0 where the rate was fitted.
    """
    if prepared.device.kernel_error is not None:
        return 0.0
    rates = {name: quantity.value for name, quantity in prepared.device.peak_flops_per_s.items()}
    peak = max(*rates.values(), 2.0 * max(rates.get("fp16", 0.0), rates.get("bf16", 0.0)))
    return 2.0 * active_parameters(prepared.arch) / (peak * prepared.devices_each)


def check_bound(metric: str, value: float, bound: float, prepared: Prepared, where: str) -> None:
    """Raise InputError for a time below a bound in the same unit."""
    if value * TOLERANCE < bound:
        raise InputError(
            f"{metric} is {value:.4g}, and {prepared.device.title} cannot do it in less than {bound:.4g}: above the roofline",
            where=where,
            mend="check hardware, devices, model and weights in the scenario; prompts that were cached tell nothing",
        )


def check_model(named: str, prepared: Prepared, where: str) -> bool:
    """Whether the catalogue knows a model by the name that a server or a client gives it.

    Raises InputError if it is of another size than the scenario's.
    """
    try:
        other = load_architecture(named, prepared.base_dir)
    except InputError:
        return False
    if abs(parameters(other) / parameters(prepared.arch) - 1) > ALIKE:
        raise InputError(
            f"measured with {other.name}, and the scenario's model is {prepared.arch.name}",
            where=where,
            mend="name the measured model under `model`",
        )
    return True


__all__ = ["check_bound", "check_model", "read_bound_s", "token_bound_s"]
