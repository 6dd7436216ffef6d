"""LoRA adapters of engines that load all of theirs at start and keep them on the device."""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.adapters import Adapters, adapters_of
from engine_models.declaration import PoolRequest
from hardware_profiles.errors import InputError


def resident_adapters(request: PoolRequest, title: str, flag: str, *, pads_rank: bool) -> Adapters | None:
    """Adapters of a pool, None where it serves none; `title` names the engine, `flag` what lists them.

    Raises InputError where their number is not told.
    """
    if request.lora is None:
        return None
    if "max_loras" not in request.lora:
        raise InputError(
            f"{title} keeps all its adapters on the device: how many are they?",
            where="deployment.lora.max_loras",
            mend=f"give their number, such as lora: {{max_loras: 20, rank: 16}}, or name them in engine_args.{flag}",
        )
    found = adapters_of(
        request.lora,
        request.arch,
        tensor_parallel=request.tensor_parallel,
        link_bytes_per_s=request.host_link_bytes_per_s,
        on_device=1,
        pads_rank=pads_rank,
    )
    return replace(found, all_there=True)
