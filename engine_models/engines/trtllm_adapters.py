"""LoRA adapters of TensorRT-LLM: a cache of pages on the device and one in the host's memory, which hold so many of a rank.

An adapter of rank R takes ``ceil(R / optimal_adapter_size)`` pages; a page has room for `optimal_adapter_size` (8) ranks of every
target module in every layer, in units of the smallest module's width. With `max_loras` the cache has room for so many adapters of
`max_lora_rank` whose modules would all be as wide as the widest, and so holds more than that; without it, a share of the free
memory. Source: `cpp/tensorrt_llm/batch_manager/peftCacheManager.cpp`, `_torch/pyexecutor/_util.py`, `llmapi/llm_args.py` (public
copies, read 2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.cost.adapters import MODULES, RANK, Adapters, adapters_of, modules_of, ranks_of
from engine_models.declaration import PoolRequest
from engine_models.engines.trtllm_flags import group
from engine_models.model.architecture import stages
from engine_models.refusals import none_of
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

MAX_RANK = 64
"""`lora_config.max_lora_rank` where nothing states it (datasheet: `LoraConfig`, read 2026-11)."""
VALUE_BYTES = 2


@dataclass(frozen=True)
class Pages:
    """The two caches of adapters.

    rank : that a page has room for. page_bytes : of a page on one device. device, host : pages.
    """

    rank: int
    page_bytes: int
    device: int
    host: int

    def places(self, pages: int, rank: int) -> int:
        """Adapters of a rank that so many pages hold."""
        return pages // -(-rank // self.rank)


def pages_of(request: PoolRequest, settings: Mapping[str, Any], free_bytes: int) -> Pages:
    """The caches of a pool; `free_bytes` is what the device has left beside weights and activations."""
    peft, most = group(request.flags, "peft_cache_config"), int(settings.get("max_lora_rank", MAX_RANK))
    targets = settings.get("target_modules")
    names = MODULES if targets is None or "all" in targets else tuple(targets)
    arch = max(stages(request.arch, request.pipeline_parallel), key=lambda stage: stage.layers)
    found = [modules_of(arch, request.tensor_parallel, [name]) for name in names]
    widths = [max(module.k + module.n for module in modules) for modules in found if modules]
    layers = arch.layers
    unit = min(widths)
    rank = min(int(peft["optimal_adapter_size"]), most)
    page_units = layers * rank * sum(-(-width // unit) for width in widths)
    page_bytes = page_units * unit * VALUE_BYTES

    def pages(adapters: int | None, cache_bytes: float) -> int:
        if adapters is None:
            return int(cache_bytes // page_bytes)
        units = adapters * most * len(widths) * layers * -(-max(widths) // unit)
        return -(-units // page_units)

    return Pages(
        rank,
        page_bytes,
        pages(settings.get("max_loras"), peft["device_cache_percent"] * free_bytes),
        pages(settings.get("max_cpu_loras"), peft["host_cache_size"]),
    )


def adapted(request: PoolRequest, free_bytes: int) -> tuple[Adapters | None, int]:
    """Adapters of a pool, None where it serves none, and the bytes of their cache; InputError for what is not modelled."""
    if request.lora is None:
        return None, 0
    where = "deployment.lora"
    lacking = {
        "attention data parallelism": request.data_parallel > 1,
        "latent attention": request.arch.has("mla"),
    }
    none_of(lacking, "LoRA adapters with {} are not modelled for TensorRT-LLM yet", where, f"remove `{where}`, or change that")
    ranks_of({key: value for key, value in request.lora.items() if value is not None}, MAX_RANK)
    pages = pages_of(request, request.lora, free_bytes)
    rank = int(request.lora.get("rank", request.lora.get("max_lora_rank", RANK)))
    on_device, on_host = (pages.places(count, rank) for count in (pages.device, pages.host))
    if not on_device or not on_host:
        raise InputError(
            f"the cache of adapters ({'on the device' if not on_device else 'of the host'}) does not hold one of rank {rank}",
            where="deployment.lora.max_loras" if not on_device else "deployment.lora.max_cpu_loras",
            mend="give the number of adapters that it shall hold",
        )
    adapters = adapters_of(
        {**request.lora, "rank": rank, "max_loras": on_device, "max_cpu_loras": max(on_host, on_device)},
        max(stages(request.arch, request.pipeline_parallel), key=lambda stage: stage.layers),
        tensor_parallel=request.tensor_parallel,
        link_bytes_per_s=request.host_link_bytes_per_s,
        on_device=on_device,
        rank_limit=MAX_RANK,
        pads_rank=False,
    )
    return replace(adapters, slot_rank=rank), pages.device * pages.page_bytes


__all__ = ["Pages", "adapted", "pages_of"]
