"""What vLLM keeps in a device's memory: the budget of a rank, and by how much it may be another on a machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from engine_models.context_ranks import on_each
from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest, Said, line_if_any
from engine_models.engines.vllm_cache import Cache
from engine_models.engines.vllm_context import context_ranks
from engine_models.engines.vllm_kernels import expert_tiles, held_weights
from engine_models.engines.vllm_offloaded import check_offloaded, offloaded_bytes
from engine_models.engines.vllm_profile import beside_torch_bytes, graph_bytes, peak_bytes
from engine_models.engines.vllm_serving import Serving
from engine_models.engines.vllm_versions import Version, as_sampled
from engine_models.model.activations import activation_bytes, runtime_bytes
from engine_models.model.architecture import (
    expert_layer_bytes_per_rank,
    kv_bytes_per_token,
    mla_absorbed_bytes_per_rank,
    rotary_table_bytes,
    weight_bytes_per_rank,
)
from hardware_profiles.device import sockets
from hardware_profiles.errors import InfeasibleError, InputError

if TYPE_CHECKING:
    from engine_models.cost.adapters import Adapters

GIB = 1 << 30


CPU_KV_SHARE = 0.5
"""Share of a NUMA node's memory that the KV cache takes on CPUs; 0.11 takes 4 GiB on any machine (datasheet: `platforms/cpu.py`
of 0.11.0 and of 2026). A socket counts as a node (assumed)."""


def budget_of(
    request: PoolRequest,
    version: Version,
    serving: Serving,
    cache: Cache,
    adapters: Adapters | None,
    backend: str | None,
    said: Said,
) -> tuple[MemoryBudget, float]:
    """The memory of a rank whose experts run on `backend`, and the least that may be left for the KV cache, as a share of its.

    Raises InfeasibleError if the weights or one block do not fit, InputError on a share out of range.
    """
    flags, on_cpu = request.flags, request.device_kind == "cpu"
    check_offloaded(request)
    memory = _memory(request, version, serving, cache, adapters, backend)
    without, fixed = None, flags.get("kv_cache_memory_bytes") or flags.get("num_gpu_blocks_override")
    if version.flashinfer_is_extra and flags.get("use_flashinfer_sampler") is None and not on_cpu:
        with suppress(InfeasibleError):
            without = _memory(request, as_sampled(version, flashinfer=False), serving, cache, adapters, backend)
        said.warnings += _without_flashinfer(memory, without)
    compiles = not (version.first_engine or serving.eager or fixed or on_cpu)
    return memory, _least_share(memory, None if fixed else without, compiles=compiles)


def _memory(
    request: PoolRequest, version: Version, serving: Serving, cache: Cache, adapters: Adapters | None, backend: str | None
) -> MemoryBudget:
    flags, arch = request.flags, request.arch
    tp, pp = request.tensor_parallel, request.pipeline_parallel
    share = float(flags.get("gpu_memory_utilization") or version.gpu_memory_utilization)
    if not 0 < share <= 1:
        raise InputError(
            f"gpu_memory_utilization {share} is not in (0, 1]",
            where="deployment.engine_args.gpu_memory_utilization",
            mend="give the fraction of device memory that the engine may use, such as 0.9",
        )
    on_cpu = request.device_kind == "cpu"
    share = 1.0 if on_cpu else share
    usable = int(request.device_memory_bytes * share)
    stored, tiles = held_weights(request, backend, version.number), expert_tiles(request, backend)
    weights = weight_bytes_per_rank(
        arch, stored, tp, pp, request.expert_parallel, request.data_parallel, expert_tiles=tiles
    )
    weights += mla_absorbed_bytes_per_rank(arch, tp, pp) + rotary_table_bytes(arch) - offloaded_bytes(request, stored)
    if request.flags.get("enable_eplb"):  # `expert_buffer` of its state: a layer's experts on their way (0.33.0)
        weights += expert_layer_bytes_per_rank(arch, stored, tp, request.expert_parallel, request.data_parallel)
    devices = tp * pp * request.data_parallel
    if on_cpu:
        activations = activation_bytes(arch, serving.tokens, serving.rows, tp, request.data_parallel)
        other = runtime_bytes(devices)
    else:
        activations = peak_bytes(request, version, serving, backend)
        other = beside_torch_bytes(request, version)
    # with adapters a graph of each size that computes them is captured beside the one that does not
    graphs, lora_bytes = (2, adapters.memory_bytes) if adapters is not None else (1, 0)
    graph = 0 if on_cpu else graphs * graph_bytes(request, version, serving)
    drafter = request.speculation
    draft_weights = drafter.weight_bytes() if drafter else 0
    per_token = on_each(kv_bytes_per_token(arch, request.formats.kv_cache, tp, pp), context_ranks(request))
    per_token += drafter.kv_bytes_per_token() if drafter else 0
    block = cache.block_bytes
    kv = usable - weights - draft_weights - lora_bytes - activations - other - graph
    left, verbatim = kv, flags.get("kv_cache_memory_bytes")
    if on_cpu:
        verbatim = verbatim or _cpu_kv_bytes(request, version)
    if verbatim:
        kv = int(verbatim)
    if on_cpu and kv > left >= block:
        raise InfeasibleError(
            f"the KV cache takes {kv / GIB:.1f} GiB, and {left / GIB:.1f} GiB are left beside the weights",
            where="deployment",
            mend=f"set VLLM_CPU_KVCACHE_SPACE (engine_args.cpu_kvcache_space) to at most {left // GIB}, in GiB",
        )
    if kv < block or usable < weights + draft_weights:
        besides = draft_weights + lora_bytes + activations + other + graph
        lack = weights + besides + block - usable
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {besides / 1e9:.1f} GB "
            f"besides, of {usable / 1e9:.1f} GB usable ({share:.0%} of {request.device_memory_bytes / 1e9:.1f} GB); "
            f"{lack / 1e9:.1f} GB too much on each of {devices} devices",
            where="deployment",
            mend=request.more_memory,
        )
    lines = (
        MemoryLine("weight", "weights", weights),
        *line_if_any("draft", "weights of the drafter", draft_weights),
        *line_if_any("lora", "places for LoRA adapters", lora_bytes),
        MemoryLine("activation", "activations (peak of one step)", activations),
        *(
            (
                MemoryLine("other", "runtime, collectives", other),
                MemoryLine("left", "left to the machine", left - kv),
            )
            if on_cpu
            else (MemoryLine("other", "CUDA context, collectives", other), MemoryLine("graph", "CUDA graphs", graph))
        ),
    )
    return MemoryBudget(
        device_bytes=request.device_memory_bytes,
        usable_bytes=usable,
        lines=lines,
        kv_bytes=kv,
        kv_bytes_per_token=per_token,
        block_bytes=block,
        blocks=kv // block,
    )


def _cpu_kv_bytes(request: PoolRequest, version: Version) -> int:
    """What the KV cache takes on a CPU: as it is told (`VLLM_CPU_KVCACHE_SPACE`, in GiB), or the version's default."""
    told = int(request.flags.get("cpu_kvcache_space") or 0) or version.cpu_kv_gib
    return told * GIB or int(request.device_memory_bytes // sockets(request.device_name) * CPU_KV_SHARE)


FIRST_START_SHARE = 0.93
"""Of the tokens of later starts, which the first may have: it compiles while memory is profiled. kind: measured by others, up to
7 % less in pairs of public start-up lines, 2026; by how much in a case is not known."""


def _least_share(memory: MemoryBudget, other: MemoryBudget | None, *, compiles: bool) -> float:
    """The least that may be left for the KV cache, as a share of `memory`'s: on a first start, or with the budget `other`."""
    share = FIRST_START_SHARE if compiles else 1.0
    return share * min(1.0, other.kv_bytes / memory.kv_bytes) if other is not None else share


def _without_flashinfer(memory: MemoryBudget, other: MemoryBudget | None) -> Iterator[str]:
    """A warning where what is installed decides how much memory is left: `other` is the budget without FlashInfer's sampler, None
    where nothing is left."""
    tokens, what = 0, "the server does not start"
    if other is not None:
        tokens = int(other.kv_bytes // memory.kv_bytes_per_token)
        what = f"the KV cache holds {tokens:,} tokens"
    if tokens < 0.98 * (memory.kv_bytes // memory.kv_bytes_per_token):
        yield (
            "FlashInfer samples, as in vLLM's images of this version; its wheels lack FlashInfer, and without it "
            f"(VLLM_USE_FLASHINFER_SAMPLER=0) {what}"
        )
