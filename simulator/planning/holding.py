"""What would hold a model that does not fit: more of the same card, smaller weights, other hardware by price."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine_models.engines.known import engine_named
from engine_models.model.architecture import load_architecture, tensor_parallel_sizes
from engine_models.model.formats import FORMATS, Format, format_named
from hardware_profiles.device import Device, all_devices, load_device
from hardware_profiles.errors import PlanError
from hardware_profiles.prices import default_price
from hardware_profiles.records import dataclass
from simulator.prepare import prepare

if TYPE_CHECKING:
    from simulator.config.schema import Scenario

STAGES = (1, 2, 4)
"""Pipeline stages that are tried, a node of the same card each."""


@dataclass(frozen=True)
class Holder:
    """Devices of one replica on which the engine itself would start; `native`: the device computes in the weights' format."""

    hardware: str
    tensor_parallel: int
    pipeline_parallel: int
    native: bool
    usd_per_hour: float | None

    @property
    def devices(self) -> int:
        """Devices of the replica."""
        return self.tensor_parallel * self.pipeline_parallel


def _starts(scenario: Scenario, changes: dict[str, Any]) -> bool:
    deployment = scenario.deployment
    pool = deployment.pools[0].model_copy(update=changes)
    try:
        prepare(scenario.model_copy(update={"deployment": deployment.model_copy(update={"pools": (pool,)})}))
    except PlanError:
        return False
    return True


def _holder(scenario: Scenario, device: Device, stages: tuple[int, ...] = (1,)) -> Holder | None:
    """The fewest of these devices that hold the model, in one node or, with several stages, in a node each."""
    pool = scenario.deployment.pools[0]
    arch = load_architecture(scenario.model)
    weights = format_named(pool.weights or arch.quantization or arch.dtype)
    one_rank = {"data_parallel": 1, "expert_parallel": False} if pool.data_parallel > 1 else {}
    for pipeline in stages:
        for ranks in tensor_parallel_sizes(arch, at_most=min(16, int(device.node_size.value))):
            shape = {"tensor_parallel": ranks, "pipeline_parallel": pipeline}
            if not _starts(scenario, {"hardware": device.name, **shape, **one_rank}):
                continue
            price = default_price(device.name)
            usd = None if price is None else price.usd_per_gpu_hour.value * ranks * pipeline
            return Holder(device.name, ranks, pipeline, _native(weights, device), usd)
    return None


def _native(weights: Format, device: Device) -> bool:
    return weights.weight_only or weights.compute in (*device.formats, "bf16", "fp16")


def more_of_the_same(scenario: Scenario) -> Holder | None:
    """The fewest of the scenario's own devices that hold the model."""
    return _holder(scenario, load_device(scenario.deployment.pools[0].hardware), STAGES)


def other_hardware(scenario: Scenario) -> list[Holder]:
    """Other GPUs that hold the model within a node, those that compute in its format first, then the cheapest an hour."""
    own = load_device(scenario.deployment.pools[0].hardware).name
    devices = [device for device in all_devices() if device.kind == "gpu" and device.name != own]
    found = [holder for device in devices if (holder := _holder(scenario, device))]
    infinite = float("inf")

    def order(h: Holder) -> tuple[bool, float, int, str]:
        return not h.native, infinite if h.usd_per_hour is None else h.usd_per_hour, h.devices, h.hardware

    return sorted(found, key=order)


def smaller_weights(scenario: Scenario) -> list[str]:
    """Formats of smaller weights in which the deployment holds the model as it is, the largest first."""
    pool = scenario.deployment.pools[0]
    arch, device = load_architecture(scenario.model), load_device(pool.hardware)
    bits = format_named(pool.weights or arch.quantization or arch.dtype).bits_per_weight
    offered = [FORMATS[name] for name in engine_named(pool.engine).formats if name in FORMATS]
    tried = [f for f in offered if f.bits_per_weight < bits and not f.rare and _native(f, device)]
    tried.sort(key=lambda f: -f.bits_per_weight)
    return [f.name for f in tried if _starts(scenario, {"weights": f.name})]
