"""LoRA adapters in LMDeploy's PyTorch engine: all that there are lie on the device."""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.adapters import Adapters, adapters_of
from engine_models.declaration import PoolRequest
from engine_models.refusals import adapters_are_counted

LEAST_ADAPTER_RANK = 16
"""Rank that the kernel of adapters computes at least (datasheet: `fused_lora` in `pytorch/kernels/cuda/fused_lora.py` there)."""
LAUNCHED = (
    "its kernel of adapters is launched in every step, for each layer that has adapters, also where no row names one "
    "(priced as a kernel without work, assumed)"
)


def adapters_in(request: PoolRequest) -> Adapters | None:
    """Adapters of a pool, None where it serves none: all that there are, loaded at start (`add_adapters`)."""
    if request.lora is None:
        return None
    adapters_are_counted(request.lora, "LMDeploy", "adapters")
    found = adapters_of(
        request.lora,
        request.arch,
        tensor_parallel=request.tensor_parallel,
        link_bytes_per_s=request.host_link_bytes_per_s,
        on_device=1,
        pads_rank=False,
    )
    computed = max(LEAST_ADAPTER_RANK, found.rank)
    return replace(found, slot_rank=found.rank, computed_rank=computed, all_there=True, always_launched=True)
