"""Servers that only encode images, whatever the engine: what they refuse, the memory of a device, what they make of a token."""

from __future__ import annotations

from collections.abc import Mapping

from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest
from engine_models.model.architecture import tower_parameters
from hardware_profiles.errors import InfeasibleError, InputError


def embedding_bytes(request: PoolRequest) -> int:
    """Bytes of a token of an encoded image, in 16 bits, with what the tower gives for deeper layers."""
    tower = request.arch.tower
    return 2 * request.arch.hidden * (tower.outputs if tower is not None else 1)


def check_tower_alone(request: PoolRequest, flags: Mapping[str, float]) -> None:
    """Raise InputError for stages, data-parallel ranks, and `flags` (with their values of no effect) of a language model."""
    for key in ("pipeline_parallel", "data_parallel"):
        if getattr(request, key) > 1:
            raise InputError(
                f"{key} of a server that only encodes is not modelled",
                where=f"deployment.{key}",
                mend="give the pool more replicas",
            )
    for flag, none in flags.items():
        if request.flags.get(flag) not in (None, none):
            raise InputError(
                f"{flag} of a server that only encodes is not modelled",
                where=f"deployment.engine_args.{flag}",
                mend="remove it: the vision tower alone stands in the device's memory",
            )


def tower_memory(request: PoolRequest, besides: list[MemoryLine], mend: str) -> MemoryBudget:
    """The memory of a device: the tower in 16 bits and what there is `besides`; InfeasibleError if it lacks."""
    arch, size = request.arch, request.device_memory_bytes
    weights = -(-2 * tower_parameters(arch) // request.tensor_parallel)
    lines = (MemoryLine("weight", "weights of the vision tower", weights), *besides)
    taken = sum(line.bytes for line in lines)
    if taken > size:
        raise InfeasibleError(
            f"the vision tower of {arch.name} does not fit: {taken / 1e9:.1f} GB of {size / 1e9:.1f} GB",
            where="deployment",
            mend=mend,
        )
    return MemoryBudget(size, size, lines, size - taken, 0.0, 0, 0)


__all__ = ["check_tower_alone", "embedding_bytes", "tower_memory"]
