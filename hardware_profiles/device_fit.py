"""A device file from kernels timed on a machine: the rates under which the datasheet's physics is nearest to them.

Two numbers are fitted to the products of matrices, the bf16 rate and the bandwidth, by the sum of absolute logarithmic errors;
copies and attention are judged by them. All else is another device's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from hardware_profiles.device import Device
from hardware_profiles.device_bench import KernelTime, Machine
from hardware_profiles.errors import InputError
from hardware_profiles.ops import Ops
from hardware_profiles.quantity import Quantity
from hardware_profiles.records import dataclass
from hardware_profiles.roofline import Roofline

LEAST_KERNELS = 8
"""Kernels without which nothing is fitted (assumed)."""
TOLD = 0.1
"""Logarithmic errors in all by which the products must be further off at twice or half of a rate that they tell (assumed)."""
FRAMEWORK = "vllm"
"""Whose kernels the datasheet's physics stands for (`hardware_profiles.kernels`)."""


@dataclass(frozen=True)
class DeviceFit:
    """The device as fitted, relative errors of the physics on each kernel, and those where its shape was left out of the fit."""

    device: Device
    errors: tuple[float, ...]
    held_out: tuple[float, ...]


def errors_of(ops: Ops, times: Sequence[KernelTime]) -> tuple[float, ...]:
    """Relative errors, predicted over measured less one."""
    return tuple(each.predicted_s(ops) / each.took_s - 1 for each in times)


def fit_device(like: Device, times: Sequence[KernelTime], date: str, source: str) -> DeviceFit:
    """Fit a device of the kind of `like`. Raises InputError for too few kernels, or rates beyond what can be."""
    if len(products_of(times)) < LEAST_KERNELS or len({each.op for each in times}) < 3:
        raise InputError(f"{len(times)} kernels were timed, too few to fit", where="--max-seconds", mend="raise it")
    made = _fitted(like, times, date, source)
    _check_told(made, like, times)
    errors = errors_of(Roofline.of_device(made, FRAMEWORK), times)
    held = dict(zip(times, errors, strict=True))
    for shape in dict.fromkeys(each.shape for each in products_of(times)):
        left = [each for each in times if each.shape == shape]
        rest = _fitted(like, [each for each in times if each.shape != shape], date, source)
        held |= dict(zip(left, errors_of(Roofline.of_device(rest, FRAMEWORK), left), strict=True))
    held_out = tuple(held[each] for each in times)
    off = float(np.mean(np.abs(held_out)))
    error = Quantity(off, "ratio", source, date, "measured", "mean error: products left out by shape, copies, attention")
    return DeviceFit(replace(made, kernel_error=error), errors, held_out)


def _check_told(made: Device, like: Device, times: Sequence[KernelTime]) -> None:
    """Raise InputError where the products are as near at twice or half of a rate: they do not tell it."""
    rates = (made.peak_flops_per_s["bf16"].value, made.memory_bandwidth_bytes_per_s.value)
    products = products_of(times)

    def off(*each: float) -> float:
        ops = Roofline.of_device(_with_rates(like, each, "", ""), FRAMEWORK)
        return sum(abs(math.log1p(error)) for error in errors_of(ops, products))

    here = off(*rates)
    for at, (name, sizes) in enumerate((("arithmetic", "many rows"), ("memory", "few rows"))):
        moved = [off(*(rate * factor if number == at else rate for number, rate in enumerate(rates))) for factor in (0.5, 2.0)]
        if min(moved) < here + TOLD:
            raise InputError(
                f"no product of {sizes} took as long as its {name} asks: the rate is not told by {len(products)} of them",
                where="--max-seconds",
                mend="raise it, or measure when the machine has no other work",
            )


def products_of(times: Sequence[KernelTime]) -> list[KernelTime]:
    """Those that are products of matrices."""
    return [each for each in times if each.op == "gemm"]


def _fitted(like: Device, times: Sequence[KernelTime], date: str, source: str) -> Device:
    from scipy.optimize import minimize

    times = products_of(times)
    took = np.array([each.took_s for each in times])
    fastest = max(2.0 * math.prod(each.sizes) / each.took_s for each in times)
    start = np.log([fastest, max(2.0 * math.prod(each.sizes[1:]) / each.took_s for each in times)])

    def off(logs: Any) -> float:
        ops = Roofline.of_device(_with_rates(like, np.exp(logs), date, source), FRAMEWORK)
        return float(np.abs(np.log([each.predicted_s(ops) for each in times] / took)).sum())

    found = minimize(off, start, method="Nelder-Mead", options={"xatol": 3e-3, "fatol": 3e-3, "maxiter": 100})
    return _with_rates(like, np.exp(found.x), date, source)


def _with_rates(like: Device, rates: Any, date: str, source: str) -> Device:
    peak, bandwidth = (
        Quantity(float(f"{value:.4g}"), unit, source, date, "fitted", "so that the physics meets the kernels timed")
        for value, unit in zip(rates, ("FLOP/s", "byte/s"), strict=True)
    )
    return replace(like, peak_flops_per_s={"bf16": peak}, memory_bandwidth_bytes_per_s=bandwidth)


def device_text(made: DeviceFit, machine: Machine, times: Sequence[KernelTime], like: str, date: str) -> str:
    """The device file: what was measured and fitted, and in what else it is like another device."""
    device = made.device
    streamed = max((each.sizes[0] / each.took_s for each in times if each.op == "stream"), default=0.0)

    def measured(value: float, unit: str, kind: str = "measured") -> dict[str, Any]:
        return {"value": float(f"{value:.4g}") if kind == "fitted" else value, "unit": unit, "kind": kind, "source": "timed"}

    def borrowed(quantity: Quantity) -> dict[str, Any]:
        return {"value": quantity.value, "unit": quantity.unit, "kind": "assumed", "source": "like"}

    assert device.kernel_error is not None
    data: dict[str, Any] = {
        "title": f"{machine.title} (measured)",
        "vendor": device.vendor,
        "kind": device.kind,
        "architecture": device.architecture,
        "formats": ["bf16"],
        "weight_only_formats": sorted({*device.weight_only_formats, *device.formats} - {"bf16"}),
        "peak_flops_per_s": {"bf16": measured(device.peak_flops_per_s["bf16"].value, "FLOP/s", "fitted")},
        "memory_bytes": measured(machine.memory_bytes, "byte"),
        "memory_bandwidth_bytes_per_s": measured(device.memory_bandwidth_bytes_per_s.value, "byte/s", "fitted"),
        "sustained_bandwidth_bytes_per_s": measured(streamed, "byte/s"),
        "kernel_error": measured(round(device.kernel_error.value, 3), "ratio"),
        "tdp_w": borrowed(device.tdp_w),
        "node_size": borrowed(device.node_size),
    }
    if machine.processors:
        unit = device.multiprocessors.unit if device.multiprocessors else "core"
        data["multiprocessors"] = measured(machine.processors, unit)
    if device.pcie_bytes_per_s_per_direction is not None:
        data["pcie_bytes_per_s_per_direction"] = borrowed(device.pcie_bytes_per_s_per_direction)
    data["sources"] = {
        "timed": {"ref": f"capacity-plan calibrate device: {len(times)} kernels by PyTorch {machine.version}", "date": date},
        "like": {"ref": f"the profile of {like}", "date": date},
    }
    text: str = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=130, allow_unicode=True)
    return text


__all__ = ["DeviceFit", "device_text", "errors_of", "fit_device"]
