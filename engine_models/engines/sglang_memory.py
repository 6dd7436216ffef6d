"""What SGLang keeps in a device's memory: its defaults by device, slots of states, and the budget of a rank."""

from __future__ import annotations

import math
from dataclasses import replace

from engine_models.balancer import with_balancer
from engine_models.context_ranks import on_each
from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest, line_if_any
from engine_models.engines.sglang_context import context_ranks
from engine_models.engines.sglang_drafts import kv_share_of_drafter
from engine_models.engines.sglang_reserve import (
    DRAFTERS_COUNTED_SINCE,
    free_bytes,
    reserved_bytes,
    tower_factor,
)
from engine_models.engines.sglang_windows import window_share
from engine_models.host_weights import asked_bytes, check_host_weights, layer_bytes
from engine_models.model.architecture import (
    kv_groups,
    mla_absorbed_bytes_per_rank,
    rotary_table_bytes,
    state_bytes_per_sequence,
    weight_bytes_per_rank,
    with_state_values,
    without_towers,
)
from engine_models.model.blocks import Architecture
from engine_models.model.mixers import with_plain_latents
from engine_models.refusals import no_pascal
from hardware_profiles.device import Device, load_device, stacked_blackwell
from hardware_profiles.errors import InfeasibleError, InputError

SLOTS_A_ROW, SLOTS_A_ROW_UNCACHED = 3, 1
"""States kept of a request with the radix cache (its own, that of the prefix it holds, one to be cached) and without it
(datasheet: SGLang 0.5, `model_runner_kv_cache_mixin.py`)."""


def default_running(tokens: int, context_tokens: int) -> int:
    """Default `max_running_requests` for a KV cache of `tokens` and a context limit."""
    return max(1, min(max(2048, min(4096, tokens * 512 // context_tokens)), tokens // 2))


PLAIN_SINCE = (0, 5, 10)
"""First version whose sparse attention runs on TensorRT-LLM's kernels by itself where the cache is 8-bit on data-centre
Blackwell, which keep a byte a value; others keep a scale for each 128 values and the rotary part in 16 bit (datasheet:
`_set_default_nsa_backends` of 0.5.9 and 0.5.10, `calculate_mla_kv_cache_dim`)."""


def plain_latents(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether 8-bit latents of sparse attention take a byte a value."""
    return request.device_kind == "gpu" and version >= PLAIN_SINCE and stacked_blackwell(load_device(request.device_name))


def as_loaded(request: PoolRequest, version: tuple[int, ...]) -> PoolRequest:
    """The pool with its latents as its kernels keep them, its states in float32 unless the flag says otherwise, whatever the
    model's config asks for, and its experts in the places that flags give them (datasheet: `server_args.py`, 0.5)."""
    no_pascal(request, "SGLang")
    check_host_weights(request)
    wide = str(request.flags.get("mamba_ssm_dtype") or "float32") == "float32"
    arch = with_plain_latents(request.arch) if plain_latents(request, version) else request.arch
    told = request.encoded and request.role not in ("encode", "decode")
    flags = {**request.flags, "language_only": True} if told else request.flags
    request = replace(request, arch=with_state_values(arch, 4 if wide else 2), flags=flags)
    copies, placed = int(request.flags.get("ep_num_redundant_experts") or 0), request.flags.get("init_expert_location")
    balanced = bool(request.flags.get("enable_eplb")) or placed not in (None, "trivial")
    return with_balancer(request, copies, balanced=balanced, flag="enable_eplb" if balanced else "ep_num_redundant_experts")


def host_bytes(request: PoolRequest) -> int:
    """Bytes of weights that one GPU leaves in host memory (`OffloaderV1` of `utils/offloader.py`, 0.5.23); 0 without the flag."""
    asked = asked_bytes(request)
    return int(min(asked, layer_bytes(request, request.formats.weights)[0])) if asked else 0


def state_bytes(request: PoolRequest) -> int:
    """Bytes of a request's states in recurrent layers, 0 without any."""
    return state_bytes_per_sequence(request.arch, request.tensor_parallel, request.pipeline_parallel)


def _state_slots(request: PoolRequest, state_bytes: int, free_bytes: int) -> int:
    """States that are kept: as many as asked for, else those of a share of the free memory (datasheet: as above)."""
    asked = request.flags.get("max_mamba_cache_size")
    ratio = float(request.flags.get("mamba_full_memory_ratio", 0.9))
    return int(asked) if asked else int(free_bytes * ratio / (1 + ratio) / state_bytes)


STATES_CACHED_SINCE, STATES_BUFFERED_SINCE = (0, 5, 4), (0, 5, 14)
"""First versions whose radix cache keeps states of recurrent layers, and that buffer them by themselves. Without a buffer no
batch is formed while another runs (datasheet: SGLang pull requests 14792 and 30127, issue 27418, the source of 0.5.23; the second
version is inferred: the first whose parser has the new name of the flag, which came with that rule)."""


def caches_states_alone(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether states of recurrent layers are cached without a second buffer (`mamba_radix_cache_strategy`: no_buffer)."""
    flags = request.flags
    if not state_bytes(request) or _without_tree(request):
        return False
    strategy = str(flags.get("mamba_radix_cache_strategy") or "auto")
    return STATES_CACHED_SINCE <= version < STATES_BUFFERED_SINCE if strategy == "auto" else strategy == "no_buffer"


def keeps_prefixes(request: PoolRequest) -> bool:
    """Whether a decode server has a tree of prefixes."""
    return request.role == "decode" and bool(request.flags.get("disaggregation_decode_enable_radix_cache"))


def _without_tree(request: PoolRequest) -> bool:
    """Whether nothing of a request can be found again."""
    return not keeps_prefixes(request) if request.role == "decode" else bool(request.flags.get("disable_radix_cache"))


def slots_a_row(request: PoolRequest) -> int:
    """States that are kept of a request."""
    return SLOTS_A_ROW_UNCACHED if _without_tree(request) else SLOTS_A_ROW


def kv_format(device: Device, arch: Architecture) -> str | None:
    """FP8 for sparse latent attention on Blackwell (datasheet: `server_args.py` of SGLang 0.5.3 to 0.5.9
    and `arg_groups/overrides.py` of 0.5.23, ``kv_cache_dtype`` for compute capability 10 and above); 16 bits elsewhere, whatever
    the checkpoint states."""
    sparse = any(block.kind == "mla" and block.indexer is not None and block.entry_tokens == 1 for block in arch.attention)
    if sparse and device.architecture == "blackwell":
        return "fp8"
    return arch.dtype if sparse and arch.kv_quantization is not None else None


def memory_of(
    request: PoolRequest,
    version: tuple[int, ...],
    prompt_tokens: int,
    graph_rows: int,
    page: int,
    prefill_graph_tokens: int,
    lora_bytes: int = 0,
    share_factor: float = 1.0,
) -> MemoryBudget:
    """KV bytes = free after the weights - (1 - mem_fraction_static) * free before them.

    prompt_tokens : of a step, that memory is set aside for, before they are divided among ranks.
    prefill_graph_tokens : largest prefill that is captured, 0 if none is; share_factor : of `mem_fraction_static`, however given.
    """
    flags, arch = request.flags, request.arch
    tp, pp = request.tensor_parallel, request.pipeline_parallel
    device, drafter = request.device_memory_bytes, request.speculation
    given = flags.get("mem_fraction_static")
    dp = request.data_parallel
    reserved = reserved_bytes(
        device,
        prompt_tokens,
        tp * pp * dp,
        graph_rows,
        dp,
        version=version,
        prefill_graph_tokens=prefill_graph_tokens,
        latent=arch.has("mla"),
        drafts=drafter.method if drafter else None,
        role=request.role,
        deepep=flags.get("moe_a2a_backend") == "deepep",
    )
    fraction = float(given) if given is not None else round((device - reserved) / device, 3) * tower_factor(request, version)
    if given is None and fraction <= 0:
        raise InputError(
            f"SGLang sets {reserved / 1e9:.0f} GB of {device / 1e9:.0f} GB aside for prompts of {prompt_tokens:,} tokens a step: "
            "nothing is left for weights and KV cache",
            where="deployment.engine_args.chunked_prefill_size",
            mend="state mem_fraction_static, such as 0.88, or a smaller chunked_prefill_size (-1: max_prefill_tokens)",
        )
    if not 0 < fraction < 1:
        raise InputError(
            f"mem_fraction_static {fraction:.2f} is not between 0 and 1",
            where="deployment.engine_args.mem_fraction_static",
            mend="give the fraction of device memory for weights and KV cache, such as 0.88",
        )
    fraction *= share_factor
    free = free_bytes(request, version)
    usable = int(fraction * free)
    # under data-parallel attention dense MLPs, shared experts and the LM head stay split over all ranks
    weights = weight_bytes_per_rank(
        without_towers(arch) if flags.get("language_only") else arch,
        request.formats.weights,
        tp,
        pp,
        request.expert_parallel,
        dp,
        dense_parallel=tp * dp,
    )
    weights += rotary_table_bytes(arch) + mla_absorbed_bytes_per_rank(arch, tp, pp) - host_bytes(request)
    groups = kv_groups(arch, request.formats.kv_cache, tp, pp)
    share = window_share(request, version)
    per_token = math.ceil(sum(g.bytes_per_token_per_rank * (share if g.window_tokens else 1) for g in groups))
    draft_weights = drafter.weight_bytes() if drafter else 0
    counted = draft_weights if version >= DRAFTERS_COUNTED_SINCE else 0  # before, it lies in what is left free
    if drafter:
        whole = per_token if arch.compresses else sum(g.bytes_per_token_per_rank for g in groups)  # a drafter has no windows
        per_token = math.ceil(per_token + whole * kv_share_of_drafter(drafter, arch))
    block = int(per_token * page / context_ranks(request))  # a page has the tokens of all ranks that share it
    state = state_bytes(request)
    slots = _state_slots(request, state, usable - weights) if state else 0
    kv = usable - weights - counted - lora_bytes - slots * state
    lack = weights + counted + lora_bytes + block - usable
    if kv < block or (state and slots < slots_a_row(request)):
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device, {usable / 1e9:.1f} GB usable "
            f"({fraction:.0%} of {free / 1e9:.1f} GB); {lack / 1e9:.1f} GB too much on each of "
            f"{tp * pp * dp} devices",
            where="deployment",
            mend=request.more_memory,
        )
    if draft_weights - counted > free - usable:
        raise InfeasibleError(
            f"the drafter's weights take {draft_weights / 1e9:.1f} GB, and {(free - usable) / 1e9:.1f} GB are left free beside "
            "weights and KV cache, where this version loads them",
            where="deployment.speculative",
            mend="lower mem_fraction_static, use a smaller drafter, or a version from 0.5.14 on, which counts it first",
        )
    return MemoryBudget(
        device_bytes=device,
        usable_bytes=device,
        lines=(
            MemoryLine("weight", "weights", weights),
            *line_if_any("draft", "weights of the drafter", draft_weights),
            *line_if_any("lora", "places for LoRA adapters", lora_bytes),
            *line_if_any("state", "states of recurrent layers", slots * state),
            MemoryLine("activation", "reserve for activations, graphs", free - usable - (draft_weights - counted)),
            MemoryLine("other", "CUDA context, collectives", device - free),
        ),
        kv_bytes=kv,
        kv_bytes_per_token=on_each(per_token, context_ranks(request)),
        block_bytes=block,
        blocks=kv // block,
    )
