"""What Inferflow serves, and the memory of a pool."""

from __future__ import annotations

from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest
from engine_models.model.activations import CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from engine_models.refusals import no_expert_parallelism, no_layers, only_on_nvidia
from hardware_profiles.errors import InfeasibleError, InputError


def refuse(request: PoolRequest) -> None:
    """Raise InputError for what it does not serve."""
    only_on_nvidia(request, "Inferflow runs on NVIDIA GPUs")
    if ";" in str(request.flags.get("devices", "")):
        raise InputError(
            "layers spread over several stages of devices are not simulated for Inferflow",
            where="deployment.engine_args.devices",
            mend="join the devices by `&` (they then share each layer), or use another engine",
        )
    lacks = f"Inferflow has no recurrent layers, and no latent or sparse attention, which {request.arch.name} needs"
    no_layers(request, ("mla", "linear", "sparse"), lacks)
    no_expert_parallelism(request, "Inferflow has no expert parallelism")
    kv = request.formats.kv_cache
    if kv.bits_per_weight != 16 and kv.name != "q8_b32t2":
        raise InputError(
            f"Inferflow keeps the KV cache in F16 or Q8, not in {kv.name}",
            where="deployment.kv_cache",
            mend="leave it out, or write kv_cache: q8_b32t2 (device_kv_cache_data_type: Q8)",
        )


def memory_of(request: PoolRequest, queries: int, context: int) -> MemoryBudget:
    """Weights but the embedding, which stays on the host, and the caches, all set aside when the model is loaded."""
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    on_host = bool(request.flags.get("be_host_embeddings", True)) and not arch.tied_embeddings
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1) - (arch.vocab * arch.hidden * 2 // tp if on_host else 0)
    buffers = activation_bytes(arch, context, 0, tp)
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp)
    cache, other = int(per_token * context), int(CONTEXT_BYTES)
    free = device - weights - buffers - other
    if free < queries * cache:
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {(other + buffers) / 1e9:.1f} GB of buffers + "
            f"{queries} caches of {context:,} tokens ({queries * cache / 1e9:.1f} GB), of {device / 1e9:.1f} GB",
            where="deployment",
            mend=f"a smaller engine_args.max_context_len (the model's is taken unless told otherwise), or {request.more_memory}",
        )
    lines = (
        MemoryLine("weight", "weights" + (", the embedding on the host" if on_host else ""), weights),
        MemoryLine("activation", "buffers of the longest prompt", buffers),
        MemoryLine("other", "CUDA context", other),
        MemoryLine("unused", "not used", free - queries * cache),
    )
    return MemoryBudget(device, device, lines, queries * cache, per_token, cache, queries)


__all__ = ["memory_of", "refuse"]
