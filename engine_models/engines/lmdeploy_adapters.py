"""LoRA adapters in LMDeploy's PyTorch engine: all that there are lie on the device."""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.adapters import Adapters
from engine_models.declaration import PoolRequest
from engine_models.engines.resident_adapters import resident_adapters

LEAST_ADAPTER_RANK = 16
"""Rank that the kernel of adapters computes at least (datasheet: `fused_lora` in `pytorch/kernels/cuda/fused_lora.py` there)."""
LAUNCHED = (
    "its kernel of adapters is launched in every step, for each layer that has adapters, also where no row names one "
    "(priced as a kernel without work, assumed)"
)


def adapters_in(request: PoolRequest) -> Adapters | None:
    """Adapters of a pool, None where it serves none: all that there are, loaded at start (`add_adapters`)."""
    found = resident_adapters(request, "LMDeploy", "adapters", pads_rank=False)
    if found is None:
        return None
    return replace(found, slot_rank=found.rank, computed_rank=max(LEAST_ADAPTER_RANK, found.rank), always_launched=True)
