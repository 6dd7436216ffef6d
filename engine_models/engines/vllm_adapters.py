"""LoRA adapters in vLLM: places on the device, and what they have room for."""

from __future__ import annotations

from collections.abc import Sequence

from engine_models.cost.adapters import Adapters, adapters_of, expert_values, modules_of, summary_note
from engine_models.declaration import FEATURES, PoolRequest, Said
from engine_models.engines.vllm_flags import GATHER
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
SHARED_SINCE = (0, 33)
"""The version that was read to serve adapters beside data-parallel ranks which share experts; earlier ones are not told apart."""
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


def _check_ranks(request: PoolRequest, number: tuple[int, ...], *, sharded: bool) -> None:
    """Refuse adapters beside ranks that share experts where vLLM does, or where its rule was not read.

    Source: 0.33.0's `lora/layers/fused_moe.py` (`_ep_check`, `_verify_ep_fs`), `use_sequence_parallel_moe` of
    `config/parallel.py` and `model_executor/layers/fused_moe/prepare_finalize/naive_dp_ep.py`, which gathers the adapters of
    tokens with these.
    """
    if request.expert_parallel > 1 and request.arch.has_experts and sharded:
        raise InputError(
            "vLLM has no fully_sharded_loras beside expert parallelism",
            where="deployment.lora.fully_sharded_loras",
            mend="take one of the two out",
        )
    if request.data_parallel == 1:
        return
    backend = str(request.flags.get("all2all_backend") or GATHER)
    lacking = {
        "data-parallel ranks that share experts before vLLM 0.33": number < SHARED_SINCE,
        "data-parallel ranks that split each expert": request.expert_parallel == 1,
    }
    mend = "remove the key, or set expert_parallel: true with vLLM 0.33"
    none_of(lacking, "LoRA adapters with {} are not modelled", "deployment.lora", mend=mend)
    refused = {
        f"all2all_backend {backend}": backend != GATHER,
        "data-parallel ranks of several devices each that share experts": request.tensor_parallel > 1,
    }
    none_of(refused, "vLLM has no LoRA adapters beside {}", "deployment.lora", mend="remove the key, or use tensor_parallel: 1")


def adapters_of_pool(request: PoolRequest, said: Said, number: tuple[int, ...], *, first: bool) -> Adapters | None:
    """Adapters of a pool, None where it serves none; InputError for what vLLM of this version refuses or is not modelled."""
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
    _check_ranks(request, number, sharded=sharded)
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
