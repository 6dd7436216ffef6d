"""What vLLM keeps in a device's memory: groups of KV blocks, and the budget of a rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest
from engine_models.engines.vllm_versions import Version
from engine_models.model.activations import (
    COLLECTIVE_BYTES,
    CONTEXT_BYTES,
    LOGIT_BYTES,
    SORT_BYTES,
    activation_bytes,
    tower_bytes,
)
from engine_models.model.architecture import (
    KvGroup,
    kv_groups,
    mla_absorbed_bytes_per_rank,
    state_pages,
    weight_bytes_per_rank,
)
from engine_models.model.blocks import Architecture
from hardware_profiles.errors import InfeasibleError, InputError

GIB = 1 << 30
GRAPH_BYTES_PER_SIZE = 12e6  # assumed: memory of one captured graph size (about 0.6 GB for the 51 default sizes)


def kv_layout(groups: list[KvGroup], max_model_len: int, block_tokens: int) -> tuple[tuple[int | None, ...], int]:
    """Windows of the KV groups, and the bytes of one block on one rank.

    Layers of one kind form groups of equal size, the smallest kind's number of layers; every group draws blocks from the same
    pool, each block holding `block_tokens` tokens of one group's layers. A window no shorter than the context is none.
    Where layers of a window keep more of a token than those without, their groups hold fewer of them, so that blocks stay
    alike (vLLM gives the others longer blocks instead: the same bytes).
    """
    kinds: dict[int | None, tuple[int, int]] = {}
    for group in groups:
        window = group.window_tokens if 0 < group.window_tokens < max_model_len else None
        layers, size = kinds.get(window, (0, 0))
        kinds[window] = (layers + group.layers, size + group.bytes_per_token_per_rank)
    if len(kinds) == 1 and None in kinds:
        return (None,), kinds[None][1] * block_tokens
    each = {size / layers for layers, size in kinds.values()}
    if None in kinds and max(each) > 1.01 * min(each):
        whole = kinds[None][1]
        split = {window: max(1, round(size / whole)) for window, (_, size) in kinds.items() if window is not None}
        largest = max(whole, *(-(-size // split[w]) for w, (_, size) in kinds.items() if w is not None))
        return (None, *(w for w, number in sorted(split.items()) for _ in range(number))), largest * block_tokens
    layers_a_group = min(layers for layers, _ in kinds.values())
    windows: list[int | None] = []
    for window, (layers, _) in sorted(kinds.items(), key=lambda item: item[0] is not None):
        windows += [window] * -(-layers // layers_a_group)
    per_layer = max(size / layers for layers, size in kinds.values())
    return tuple(windows), int(per_layer * layers_a_group * block_tokens)


STATE_WINDOW = 1
"""Window of the groups of recurrent layers: the block with the last token holds their state, those before it are free."""


def with_states(
    arch: Architecture, groups: list[KvGroup], tp: int, pp: int, max_model_len: int, block_tokens: int
) -> tuple[tuple[int | None, ...], int, int]:
    """`kv_layout` with the states of recurrent layers as groups of the same pool; windows, bytes of a block, its tokens.

    A block is lengthened until that of an attention layer holds a recurrent layer's state, whose own page is padded to it
    (vLLM, `platforms/interface.py`, read in public copies of 2026).
    """
    layers, page = state_pages(arch, tp, pp)
    if not page:
        return (*kv_layout(groups, max_model_len, block_tokens), block_tokens)
    of_token = max(group.bytes_per_token_per_rank / group.layers for group in groups)
    block_tokens *= max(1, math.ceil(page / (block_tokens * of_token)))
    windows, block_bytes = kv_layout(groups, max_model_len, block_tokens)
    states = math.ceil(layers * of_token * block_tokens / block_bytes)
    return (*windows, *[STATE_WINDOW] * states), block_bytes, block_tokens


CAPACITY_SINCE = (0, 21)
"""The start-up line tells tokens of the longest requests; before, those of a pool in which every group holds all tokens."""


@dataclass(frozen=True)
class Grouping:
    """vLLM's own groups: window, number and tokens of a block of each kind, and the bytes of a block without a drafter's."""

    kinds: tuple[tuple[int | None, int, int], ...]
    block_bytes: int

    def stated_tokens(self, kv_bytes: int, context: int, step_tokens: int, version: tuple[int, ...], kept_states: int) -> int:
        """Tokens that the line "GPU KV cache size" tells of a cache of `kv_bytes` (`kv_cache_utils.py`, 0.11 to 0.33).

        kept_states : states that a request has in each group of recurrent layers, two where they can be found again.
        """
        blocks = kv_bytes // self.block_bytes
        if version < CAPACITY_SINCE:
            return blocks // sum(number for _, number, _ in self.kinds) * min(tokens for *_, tokens in self.kinds)
        taken = 0
        for window, number, tokens in self.kinds:
            if window == STATE_WINDOW:
                taken += number * kept_states
            elif window is None:
                taken += number * -(-context // tokens)
            else:
                taken += number * (-(-min(window - 1 + step_tokens, context) // tokens) + 1)
        return int(blocks / taken * context)


def grouping(arch: Architecture, groups: list[KvGroup], tp: int, pp: int, max_model_len: int, block_tokens: int) -> Grouping:
    """How vLLM groups layers: as many of each kind as the rarest has, in pages of the size of the widest.

    Layers that keep less of a token have longer blocks. `block_tokens` are those of `with_states`.
    """
    layers: dict[int | None, int] = {}
    sizes: dict[int | None, float] = {}
    for group in groups:
        window = group.window_tokens if 0 < group.window_tokens < max_model_len else None
        layers[window] = layers.get(window, 0) + group.layers
        sizes[window] = sizes.get(window, 0) + group.bytes_per_token_per_rank
    each = {window: sizes[window] / layers[window] for window in layers}
    recurrent, _ = state_pages(arch, tp, pp)
    together = min(layers.values()) if not recurrent else min(recurrent, *layers.values())
    widest = max(each.values())
    kinds = [
        (window, -(-layers[window] // together), block_tokens * max(1, round(widest / each[window]))) for window in layers
    ]
    if recurrent:
        kinds.append((STATE_WINDOW, -(-recurrent // together), block_tokens))
    return Grouping(tuple(kinds), int(widest * block_tokens * together))


CPU_BLOCK_TOKENS = 128
CPU_KV_SHARE = 0.5
"""Default tokens of a block on CPUs, and share of a NUMA node's memory that the KV cache takes; 0.11 takes 4 GiB on any machine
(datasheet: `platforms/cpu.py` of 0.11.0 and of 2026). A socket counts as a node (assumed)."""


def memory_of(
    request: PoolRequest, version: Version, tokens: int, rows: int, images: tuple[int, int], block_bytes: int, graphs: int,
    lora_bytes: int = 0, tiles: tuple[int, int] = (1, 1),
) -> MemoryBudget:  # fmt: skip
    """The memory of a rank. Raises InfeasibleError if the weights or one block do not fit, InputError on a share out of range."""
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
    weights = weight_bytes_per_rank(
        arch, request.formats.weights, tp, pp, request.expert_parallel, request.data_parallel, expert_tiles=tiles
    )
    weights += mla_absorbed_bytes_per_rank(arch, tp, pp)
    # the profiling run samples as many rows as may be, with truncation
    logit_bytes = SORT_BYTES if version.sampler == "sort" and not on_cpu else LOGIT_BYTES
    activations = activation_bytes(arch, tokens, rows, tp, request.data_parallel, logit_bytes)
    tower, left = images
    activations = max(tower, left + activations)
    devices = tp * pp * request.data_parallel
    other = int(CONTEXT_BYTES + (COLLECTIVE_BYTES if devices > 1 else 0))
    graph = int(GRAPH_BYTES_PER_SIZE * graphs) if version.graph_memory_counts else 0
    groups = kv_groups(arch, request.formats.kv_cache, tp, pp)
    drafter = request.speculation
    draft_weights = drafter.weight_bytes() if drafter else 0
    per_token = sum(group.bytes_per_token_per_rank for group in groups) + (drafter.kv_bytes_per_token() if drafter else 0)
    block = block_bytes
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
        *((MemoryLine("draft", "weights of the drafter", draft_weights),) if draft_weights else ()),
        *((MemoryLine("lora", "places for LoRA adapters", lora_bytes),) if lora_bytes else ()),
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


VIDEO_TOKENS, EXPANSION = 12288, 12.5
"""Of the longest video of Qwen3-VL, 25,165,824 pixels in cubes of 2 x 32 x 32 (datasheet: its video preprocessor), and tokens
that each of them counts as with its time stamps (0.11 and 0.12, `qwen3_vl.py`)."""
EXPANDED = (0, 11), (0, 13)
"""Versions that keep the outputs of each image in a place as large as the whole budget (`profile_run`), from and before."""


def profiled_images(request: PoolRequest, step_tokens: int, context: int, version: tuple[int, ...]) -> tuple[int, int]:
    """Peak of a tower in the profiling run, and what it leaves to the language model's pass [bytes of a rank].

    As many of the largest images as a step has tokens for, at least one, or the longest video that a request may have, unless
    none is admitted (`profile_run`, `compute_mm_encoder_budget`, `qwen2_vl.py`, 0.8 to 0.33).
    """
    flags, tower, hidden = request.flags, request.arch.tower, request.arch.hidden
    limits = flags.get("limit_mm_per_prompt") or {}
    admitted = any(limits.get(kind, 1) for kind in ("image", "video"))
    if tower is None or not admitted or flags.get("skip_mm_profiling"):
        return 0, 0
    item = tower.tokens * max(1, min(tower.pairs, context // tower.tokens))
    budget = max(step_tokens, item)
    items = budget // item
    kept = items * item
    if EXPANDED[0] <= version < EXPANDED[1]:
        if tower.outputs > 1:
            budget, items = max(step_tokens, int(EXPANSION * min(VIDEO_TOKENS, context))), 1
        kept = items * budget
    peak = tower_bytes(request.arch, request.tensor_parallel, items, item)
    return peak, 2 * kept * tower.outputs * hidden


def _cpu_kv_bytes(request: PoolRequest, version: Version) -> int:
    """What the KV cache takes on a CPU: as it is told (`VLLM_CPU_KVCACHE_SPACE`, in GiB), or the version's default."""
    told = int(request.flags.get("cpu_kvcache_space") or 0) or version.cpu_kv_gib
    nodes = 2 if request.device_name.endswith("-2s") else 1
    return told * GIB or int(request.device_memory_bytes // nodes * CPU_KV_SHARE)


FIRST_START_SHARE = 0.93
"""Of the tokens of later starts, which the first may have: it compiles while memory is profiled. kind: measured by others, up to
7 % less in pairs of public start-up lines, 2026; by how much in a case is not known."""


def least_share(memory: MemoryBudget, other: MemoryBudget | None, *, compiles: bool) -> float:
    """The least that may be left for the KV cache, as a share of `memory`'s: on a first start, or with the budget `other`."""
    share = FIRST_START_SHARE if compiles else 1.0
    return share * min(1.0, other.kv_bytes / memory.kv_bytes) if other is not None else share


def without_flashinfer(memory: MemoryBudget, other: MemoryBudget | None) -> Iterator[str]:
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
