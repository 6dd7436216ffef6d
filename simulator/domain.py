"""What evidence stands behind a prediction, where it leaves the calibrated domain, and the sources of its numbers."""

from __future__ import annotations

from typing import Any

from hardware_profiles.device import Device
from hardware_profiles.kernel_model import KernelModel, canonical_format
from simulator.intervals import Evidence
from simulator.prepare import Prepared, expert_ranks

MEASURED = {("vllm", "h100-sxm-80gb")}
"""Engine and device with end-to-end measurements behind them (docs/fidelity.md)."""


MEASURED_TENSOR_PARALLEL = (1, 2, 4)


def domain(prepared: Prepared) -> tuple[Evidence, list[str]]:
    """What evidence stands behind a prediction, and the axes along which it leaves the calibrated domain."""
    plan, device, kernels = prepared.plan, prepared.device, prepared.kernels
    axes: list[str] = []
    groups = kernels.held_out_error
    if (plan.engine, device.name) in MEASURED:
        hardware = "measured"
    elif groups:
        hardware = "kernels"
        axes.append(
            f"hardware: no end-to-end run of {plan.engine} on {device.name} was measured, only its kernels"
        )
    else:
        hardware = "physics"
        lender = kernels.provenance.get("borrowed_from_device")
        basis = f"efficiencies of {lender}" if lender else "assumed efficiencies"
        axes.append(f"hardware: no kernel of {device.name} was measured; datasheet rates and {basis}")
    weights = prepared.formats.weights
    moe = any(block.kind == "moe" for block in prepared.arch.mlp)
    model = "dense" if weights.bits_per_weight >= 16 else "quantized"
    if moe:
        model = "moe_expert_parallel" if expert_ranks(prepared.scenario.deployment.pools[0]) > 1 else "moe"
    if groups and weights.bits_per_weight < 16:
        known = {key.split("/")[1] for key in groups if key.startswith("moe/" if moe else "gemm/")}
        if canonical_format(weights.name) not in known:
            axes.append(
                f"weights: no {'expert' if moe else 'matrix'} kernels in {weights.name} were measured on {device.name}"
            )
    if any(block.kind == "linear" for block in prepared.arch.attention):
        axes.append("attention: linear-attention layers are priced by their projections only")
    pool = prepared.scenario.deployment.pools[0]
    if hardware == "measured" and pool.tensor_parallel not in MEASURED_TENSOR_PARALLEL:
        axes.append(
            f"parallelism: runs at tensor parallelism 1, 2 and 4 were measured, not {pool.tensor_parallel}"
        )
    if pool.tensor_parallel > int(device.node_size.value):
        axes.append("parallelism: collectives across nodes are priced as inside one")
    if plan.speculation is not None:
        axes.append("speculative decoding: no run with it was measured")
        hardware = "kernels" if hardware == "measured" else hardware
    if plan.host_blocks:
        axes.append("KV offload: no run that depends on it was measured")
    if prepared.scenario.deployment.pools[0].pipeline_parallel > 1:
        axes.append("parallelism: no pipeline-parallel run was measured")
    return Evidence(plan.engine, hardware, model), axes


def device_sources(device: Device) -> list[dict[str, Any]]:
    """Provenance of every number of the device."""
    from hardware_profiles.device import provenance

    return provenance(device)


def kernel_sources(kernels: KernelModel) -> dict[str, Any]:
    """Provenance of the kernel model."""
    return {
        "device": kernels.device,
        "framework": kernels.framework,
        "provenance": kernels.provenance,
        "held_out_error": dict(kernels.held_out_error),
    }
