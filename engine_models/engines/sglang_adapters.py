"""LoRA adapters in SGLang: places on the device, and what they have room for.

Beside data-parallel attention (`lora/lora_manager.py` of 0.5.23, lines 98 to 144, 341 and 378) adapters are pinned to their
places, one of which stays the model's, and every rank is one device.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.adapters import Adapters, adapters_of, expert_values
from engine_models.declaration import PoolRequest
from engine_models.model.architecture import stages
from hardware_profiles.errors import InputError

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
    found = adapters_of(
        request.lora,
        arch,
        tensor_parallel=request.tensor_parallel,
        link_bytes_per_s=request.host_link_bytes_per_s,
        on_device=LORA_PLACES,
        pads_rank=False,
        counts_model=True,
        other_values=expert_values(*own, matrices=2 * gate_up + down),
    )
    if request.data_parallel == 1:
        return found
    if request.tensor_parallel > 1:
        raise InputError(
            "SGLang serves LoRA adapters beside data-parallel attention where every rank is one device (--dp-size as --tp-size)",
            where="deployment.tensor_parallel",
            mend="set tensor_parallel: 1 and data_parallel to the number of devices",
        )
    return replace(found, all_there=True)  # they have to be pinned, and the model keeps a place
