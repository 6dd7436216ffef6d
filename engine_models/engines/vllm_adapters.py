"""LoRA adapters in vLLM: places on the device, and what they have room for."""

from __future__ import annotations

from collections.abc import Sequence

from engine_models.cost.adapters import Adapters, adapters_of, expert_values, modules_of, summary_note
from engine_models.declaration import FEATURES, PoolRequest, Said
from engine_models.model.architecture import stages
from engine_models.model.blocks import Architecture
from engine_models.refusals import none_of
from hardware_profiles.errors import InputError

LORA_PLACES, LORA_RANK = 1, 16
"""`max_loras` and `max_lora_rank` (datasheet: vLLM 0.33.0 `config/lora.py`)."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that `max_lora_rank` may have (datasheet: as above)."""
LORA_VOCABULARY = {
    *("cohere", "cohere2", "ernie4_5", "exaone", "exaone4", "granite", "granitemoe", "llama", "minicpm", "mixtral"),
    *("nemotron", "phi3", "phimoe", "qwen3", "qwen3_moe", "solar"),
}
"""Model types whose places have room for the embedding and the LM head (datasheet: vLLM 0.33.0, `embedding_modules` of
`model_executor/models`)."""
FUSED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Layers that are one: places have room for all of it where adapters change a part (datasheet: vLLM 0.33.0 `lora/utils.py`)."""


def _other_lora_values(
    request: PoolRequest, arch: Architecture, targets: Sequence[str] | None, *, sharded: bool
) -> int:
    """Values, for each rank, that a place has room for besides what adapters have: experts, embedding and LM head unless
    `targets` name the layers (the LM head's are not split over ranks), the rest of fused layers where they do."""
    tp = request.tensor_parallel
    if targets is None or "all" in targets:
        experts = expert_values(arch, tp, request.expert_parallel, request.data_parallel, fully_sharded=sharded)
        return experts + 2 * (arch.vocab + arch.hidden) * (arch.model_type in LORA_VOCABULARY)
    wide = [name for fused in FUSED if not set(fused).isdisjoint(targets) for name in fused]
    there, own = (sum(m.values for m in modules_of(arch, tp, names, fully_sharded=sharded)) for names in (wide, targets))
    return there - own


def adapters_of_pool(request: PoolRequest, said: Said, *, first: bool) -> Adapters | None:
    """Adapters of a pool, None where it serves none; InputError for what vLLM refuses or is not modelled."""
    settings, tp = request.lora, request.tensor_parallel
    lacking = {
        "vLLM before 0.8": first,
        "recurrent layers": settings is not None and request.arch.has("linear"),
        "CPUs": request.device_kind == "cpu",
    }
    what, where = ("LoRA adapters", "deployment.lora") if settings is not None else FEATURES["structured"]
    none_of(lacking, f"{what} with {{}}: not modelled yet", where, mend="remove the key")
    if settings is None:
        return None
    largest = int(settings.get("max_lora_rank", LORA_RANK))
    if largest not in LORA_RANKS:
        raise InputError(
            f"max_lora_rank {largest} is none that vLLM takes",
            where="deployment.lora.max_lora_rank",
            mend=f"one of {', '.join(map(str, LORA_RANKS))}",
        )
    places = int(settings.get("max_loras", LORA_PLACES))
    sharded = bool(settings.get("fully_sharded_loras"))
    arch = max(stages(request.arch, request.pipeline_parallel), key=lambda stage: stage.layers)
    adapters = adapters_of(
        settings,
        arch,
        tensor_parallel=tp,
        link_bytes_per_s=request.host_link_bytes_per_s,
        on_device=places,
        on_host=places,
        rank_limit=LORA_RANK,
        pads_rank=True,
        other_values=_other_lora_values(request, arch, settings.get("target_modules"), sharded=sharded),
    )
    said.notes.append(summary_note(adapters))
    return adapters
