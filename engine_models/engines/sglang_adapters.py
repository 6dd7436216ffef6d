"""LoRA adapters in SGLang: places on the device, and what they have room for."""

from __future__ import annotations

from engine_models.cost.adapters import Adapters, adapters_of, expert_values
from engine_models.declaration import PoolRequest
from engine_models.model.architecture import stages

LORA_PLACES = 8
"""`max_loras_per_batch` (datasheet: SGLang 0.5.23 `arg_groups/fields/lora.py`)."""


def adapters_of_pool(request: PoolRequest) -> Adapters | None:
    """Adapters of a pool, None where it serves none; InputError for what is not modelled."""
    if request.lora is None:
        return None
    # places for gate, up or down have room for those of all experts too (`lora/mem_pool.py`)
    targets = set(request.lora.get("target_modules") or ())
    everything = "all" in targets
    gate_up, down = everything or bool(targets & {"gate_proj", "up_proj"}), everything or "down_proj" in targets
    arch = max(stages(request.arch, request.pipeline_parallel), key=lambda stage: stage.layers)
    own = arch, request.tensor_parallel, request.expert_parallel, request.data_parallel
    return adapters_of(
        request.lora,
        arch,
        tensor_parallel=request.tensor_parallel,
        link_bytes_per_s=request.host_link_bytes_per_s,
        on_device=LORA_PLACES,
        pads_rank=False,
        counts_model=True,
        other_values=expert_values(*own, matrices=2 * gate_up + down),
    )
