"""vLLM V1: what it is in terms of the shared parts, and how its versions differ.

The newest declared version is written in full (`Version`); every older one is a small difference from the next newer one
(`VERSIONS`). The scheduling rule itself is `engine_models.schedulers.continuous`, the KV cache
`engine_models.memory.paged_kv`.

Behaviour read from the sources of vLLM 0.11.0, 0.14.1, 0.15.1, 0.19.1, 0.24.0 and 0.33.0 (recurrent layers of 0.17.1, 0.22.1
and 0.23.0 too), scheduling checked step by step against recordings of the real scheduler (`capacity-plan validate schedules`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from engine_models.cost import flash_attention2
from engine_models.cost.draft_methods import ON_DEVICE, chains_only
from engine_models.cost.overheads import Overheads, load_overheads
from engine_models.cost.sampling import Sampler
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Fp32Router, HostOverhead, Parallelism, Terms
from engine_models.declaration import (
    FEATURES,
    Engine,
    EnginePlan,
    Executor,
    FrontEnd,
    Handover,
    Limits,
    Lockstep,
    MemoryBudget,
    MemoryLine,
    Mode,
    PairReplay,
    PoolRequest,
    Replay,
    Role,
    Support,
)
from engine_models.engines import vllm_v0
from engine_models.engines.vllm_flags import FLAGS, SPECULATIVE_HARMLESS, SPECULATIVE_KEYS
from engine_models.engines.vllm_kernels import EXPERTS, expert_tiles, experts, recurrent_launches
from engine_models.engines.vllm_options import (
    cuda_graphs,
    latent_block_tokens,
    truncates_samples,
    warn_of_attention,
    warn_of_weights,
)
from engine_models.engines.vllm_tiers import (
    KVBM,
    LMCACHE,
    MOONCAKE,
    NATIVE,
    TierPlan,
    recorded_tiers,
    tier_plan,
    unread_keys,
)
from engine_models.memory.paged_kv import PagedKV
from engine_models.model.activations import (
    COLLECTIVE_BYTES,
    CONTEXT_BYTES,
    LOGIT_BYTES,
    SORT_BYTES,
    activation_bytes,
)
from engine_models.model.architecture import (
    KvGroup,
    kv_groups,
    mla_absorbed_bytes_per_rank,
    stages,
    state_pages,
    weight_bytes_per_rank,
    with_state_values,
)
from engine_models.model.blocks import Architecture
from engine_models.model.overrides import served_context
from engine_models.parts.adapters import NO_ADAPTERS, AdapterLimits
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.schedulers.continuous import ContinuousScheduler
from hardware_profiles.device import DeviceKind, load_device
from hardware_profiles.errors import InfeasibleError, InputError, PlanError

if TYPE_CHECKING:
    from engine_models.cost.adapters import Adapters
    from engine_models.memory.hybrid_kv import HybridKV

GIB = 1 << 30


@dataclass(frozen=True)
class Version:
    """The switches in which vLLM versions differ, as far as they change a prediction.

    Sources: vLLM's own code at each version, files named in docs/engines/vllm.md.
    """

    name: str
    first_engine: bool = False  # V0
    async_scheduling: bool = True
    reserve_full_prompt: bool = True
    has_watermark: bool = True
    unhashed_to_head: bool = True
    lone_request_ignores_threshold: bool = True
    self_preemption_continues: bool = True
    preempted_tokens_return: bool = True
    unfit_prompt_is_skipped: bool = False
    wasted_row_after_limit: bool = False
    first_admission_lookahead: bool = True
    gpu_memory_utilization: float = 0.92
    cpu_kv_gib: int = 0  # of the KV cache on CPUs; 0: `CPU_KV_SHARE` of a socket's memory
    graph_memory_counts: bool = True
    large_gpu_budget: int = 16384  # default token budget on devices of 160 GiB and more
    graph_step_above_256: int = 16
    pads_lone_token: bool = True
    fences_loads: bool = True
    adapters_of_all_running: bool = True  # count against `max_loras`, not only those of the rows that a step serves
    capped_window_admission: bool = True
    windows_free_processed: bool = True
    sparse_windows: bool = True
    ray_is_asynchronous: bool = True
    masks_overlap: bool = True  # of structured output, filled while the model runs (pull request 26866)
    offloads_outputs: bool = False  # blocks of generated tokens go to the host too
    offload_ranks_requests: bool = True  # of host memory alone: what goes first
    offloads_further: bool = True  # disks and stores behind host memory
    sampler: Sampler = "rejection"
    flashinfer_is_extra: bool = False  # images have it, wheels do not (`setup.py`)
    fp32_router: Fp32Router = "bf16x3"  # of models with a router in float32 (pull requests 38445, 47973)
    chunked_decodes: tuple[str, ...] = ("Kimi delta attention",)  # of gated delta nets until pull request 44700
    fills_selection: bool = False  # of sparse latent attention: FlashMLA is not told how many entries there are
    parses_templates: bool = False  # the chat template is parsed anew for each request (until pull request 26227)


VERSIONS: dict[str, dict[str, Any]] = {
    "0.33.0": {switch.name: switch.default for switch in fields(Version) if switch.name != "name"},
    "0.24.0": {
        "lone_request_ignores_threshold": False,
        "self_preemption_continues": False,
        "large_gpu_budget": 8192,
        "offload_ranks_requests": False,
        "pads_lone_token": False,
        "adapters_of_all_running": False,
        "fences_loads": False,
        "windows_free_processed": False,
        "sparse_windows": False,
        "fp32_router": "small",
    },
    "0.23.0": {
        "has_watermark": False,
        "unhashed_to_head": False,
        "first_admission_lookahead": False,
        "gpu_memory_utilization": 0.90,
        "graph_memory_counts": False,
        "capped_window_admission": False,
        "offloads_outputs": True,
        "offloads_further": False,
        "ray_is_asynchronous": False,
        "sampler": "pivot",
        "fp32_router": "cublas",
    },
    "0.19.1": {"fills_selection": True, "chunked_decodes": ("gated delta net", "Kimi delta attention")},
    "0.16.0": {"reserve_full_prompt": False},
    "0.15.1": {"sampler": "sort"},
    "0.14.1": {},
    "0.11.1": {
        "async_scheduling": False,
        "masks_overlap": False,
        "preempted_tokens_return": False,
        "unfit_prompt_is_skipped": True,
        "wasted_row_after_limit": True,
        "graph_step_above_256": 8,
        "cpu_kv_gib": 4,
    },
    # FlashInfer is not used by itself since pull request 26859
    "0.11.0": {"sampler": "rejection", "flashinfer_is_extra": True, "parses_templates": True},
    "0.8.0": {},
    "0.6.0": {"first_engine": True, "reserve_full_prompt": True, "sampler": "sort", "flashinfer_is_extra": False},
}
"""The newest version in full (the defaults of `Version`); of each older one what differs from the next newer. Those
from 0.8 to 0.10 are taken for 0.11 (assumed: the same engine; its source was not read there)."""

OLDEST_MEASURED = "0.11.0"
"""Of older versions no run and no recording is there."""

GRAPH_BYTES_PER_SIZE = 12e6  # assumed: memory of one captured graph size (about 0.6 GB for the 51 default sizes)


@dataclass(frozen=True)
class Rank:
    """Rules and KV cache of one rank: what a fresh scheduler is built from.

    `windows` and `switches` are those of the cache's groups (`kv_layout`, `window_switches`), `tiers` what lies beyond the
    device, None without any. A `role` other than "mixed" shares requests with another server.
    """

    rules: ContinuousRules
    blocks: int
    block_tokens: int
    prefix_caching: bool = True
    unhashed_to_head: bool = True
    windows: tuple[int | None, ...] = (None,)
    switches: Mapping[str, bool] = field(default_factory=dict)
    tiers: TierPlan | None = None
    role: Role = "mixed"
    adapters: AdapterLimits | None = None

    def paged(self) -> PagedKV:
        """Build a cache of one group."""
        return PagedKV(
            self.blocks,
            self.block_tokens,
            prefix_caching=self.prefix_caching,
            unhashed_to_head=self.unhashed_to_head,
        )

    def scheduler(self, mode: Mode) -> ContinuousScheduler:
        """Build a scheduler with its cache."""
        if self.role != "mixed":
            from engine_models.schedulers.pulled import DecodeOfPull, PrefillOfPull

            kind = PrefillOfPull if self.role == "prefill" else DecodeOfPull
            return kind(self.rules, self.paged(), aggregate=mode != "step", record_rows=mode == "record")
        if self.adapters is not None:
            from engine_models.schedulers.adapted import AdaptedScheduler

            steps, records = mode == "step", mode == "record"
            tiers = self.tiers.build() if self.tiers is not None else None
            return AdaptedScheduler(
                self.rules, self.paged(), self.adapters, aggregate=not steps, record_rows=records, tiers=tiers
            )
        kv: PagedKV | HybridKV
        spans = tuple(sorted({window for window in self.windows if window is not None}))
        if self.windows == (None,):
            kv = self.paged()
        else:
            from engine_models.memory.hybrid_kv import HybridKV
            from engine_models.schedulers.windowed import WindowedScheduler

            kv = HybridKV(
                self.blocks,
                self.block_tokens,
                self.windows,
                prefix_caching=self.prefix_caching,
                unhashed_to_head=self.unhashed_to_head,
                most_in_flight_tokens=self.rules.in_flight * self.rules.max_num_batched_tokens,
                max_model_len=self.rules.max_model_len,
                **self.switches,
            )
            if mode == "jump" and self.tiers is None and WindowedScheduler.serves(self.rules):
                return WindowedScheduler(self.rules, kv, spans)
        if mode == "jump" and self.tiers is None and isinstance(kv, PagedKV):
            if self.rules.speculative_tokens:
                from engine_models.schedulers.drafted import DraftedScheduler

                if DraftedScheduler.serves(self.rules):
                    return DraftedScheduler(self.rules, kv)
            elif self.rules.pipelined:
                from engine_models.schedulers.staged import StagedScheduler

                return StagedScheduler(self.rules, kv)
        tiers = self.tiers.build() if self.tiers is not None else None
        return ContinuousScheduler(
            self.rules, kv, aggregate=mode != "step", record_rows=mode == "record", tiers=tiers, windows=spans
        )


def version_of(text: str | None) -> Version:
    """The switches of the declared version that stands for `text` (None: the newest)."""
    name = ENGINE.version(text)
    return Version(name, **ENGINE.switches(name))


def graph_sizes(
    version: Version, max_num_seqs: int, max_num_batched_tokens: int, row_tokens: int = 1, largest: int | None = None
) -> tuple[int, ...]:
    """CUDA-graph sizes in tokens: 1, 2, 4, then steps of 8 below 256 and of 16 (8 in 0.11) above.

    Up to 512, or `largest` (``--max-cudagraph-capture-size``; 0: none). With drafts a decoding row has `row_tokens` tokens, and
    the sizes rounded up to whole rows are captured too.
    """
    top = min(2 * max_num_seqs * row_tokens, 512) if largest is None else largest
    top = min(top, max_num_batched_tokens)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, max(top, 512) + 1, version.graph_step_above_256), max_num_seqs}
    sizes |= {-(-size // row_tokens) * row_tokens for size in sizes}
    return tuple(sorted(s for s in sizes if s <= top))


def scheduling_switches(version: Version) -> dict[str, bool]:
    """The switches of a version that are rules of the scheduler, by the rules' names."""
    return {
        "lone_request_ignores_threshold": version.lone_request_ignores_threshold,
        "self_preemption_continues": version.self_preemption_continues,
        "preempted_tokens_return": version.preempted_tokens_return,
        "unfit_prompt_is_skipped": version.unfit_prompt_is_skipped,
        "wasted_row_after_limit": version.wasted_row_after_limit,
        "first_admission_lookahead": version.first_admission_lookahead,
        "pads_lone_token": version.pads_lone_token,
        "fences_loads": version.fences_loads,
        "adapters_of_all_running": version.adapters_of_all_running,
    }


def window_switches(version: Version) -> dict[str, bool]:
    """The switches of a version that concern sliding-window groups of the KV cache, by `HybridKV`'s names."""
    return {
        "capped_admission": version.capped_window_admission,
        "frees_processed": version.windows_free_processed,
        "sparse_windows": version.sparse_windows,
    }


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


CPU_TOKENS, CPU_ROWS = 2048, 128
"""Default max_num_batched_tokens and max_num_seqs of the API server on CPUs, for each rank (datasheet: vLLM 0.11 to 0.30,
`engine/arg_utils.py`)."""


CPU_BLOCK_TOKENS = 128
CPU_KV_SHARE = 0.5
"""Default tokens of a block on CPUs, and share of a NUMA node's memory that the KV cache takes; 0.11 takes 4 GiB on any machine
(datasheet: `platforms/cpu.py` of 0.11.0 and of 2026). A socket counts as a node (assumed)."""


def default_limits(version: Version, request: PoolRequest) -> tuple[int, int]:
    """Default (max_num_batched_tokens, max_num_seqs) of the API server, by device."""
    device_name, memory_bytes = request.device_name, request.device_memory_bytes
    if version.first_engine:
        return vllm_v0.TOKENS, vllm_v0.ROWS
    if request.device_kind == "cpu":
        ranks = request.tensor_parallel * request.pipeline_parallel
        return CPU_TOKENS * ranks, CPU_ROWS * ranks
    if memory_bytes >= 160 * GIB and "gb10" not in device_name:
        return version.large_gpu_budget, 1024
    if memory_bytes >= 70 * GIB and "a100" not in device_name:
        return 8192, 1024
    return 2048, 256


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of vLLM: limits, memory, KV blocks, graphs, overheads.

    Raises InfeasibleError if the weights or one request of `max_model_len` do not fit, InputError on flags out of range.
    """
    version = version_of(version_text)
    flags = request.flags
    flashinfer = flags.get("use_flashinfer_sampler")
    if flashinfer is not None:
        version = _as_sampled(version, flashinfer=flashinfer)
    state_values = str(flags.get("mamba_ssm_cache_dtype") or "auto")
    if state_values != "auto":
        request = replace(request, arch=with_state_values(request.arch, 4 if state_values == "float32" else 2))
    arch = request.arch
    warnings: list[str] = []
    notes: list[str] = []
    tp, pp = request.tensor_parallel, request.pipeline_parallel
    overrides = {"rope_scaling": flags.get("rope_scaling"), **(flags.get("hf_overrides") or {})}
    context = served_context(arch, overrides, "hf_overrides", warnings)
    auto_length = flags.get("max_model_len") in (-1, "auto")
    max_model_len = context if auto_length else int(flags.get("max_model_len") or context)
    default_tokens, default_rows = default_limits(version, request)
    if flags.get("performance_mode") == "throughput":
        default_tokens, default_rows = 2 * default_tokens, 2 * default_rows
    first = version.first_engine
    chunked = vllm_v0.cuts_prompts(flags, max_model_len) if first else bool(flags.get("enable_chunked_prefill", True))
    if first and chunked:
        default_tokens = vllm_v0.CHUNKED_TOKENS
    rows = int(flags.get("max_num_seqs") or default_rows)
    tokens = int(flags.get("max_num_batched_tokens") or 0)
    if not tokens:
        tokens = default_tokens if chunked else max(default_tokens, max_model_len)
        tokens = min(tokens, rows * max_model_len)
    elif not chunked and tokens < max_model_len:
        raise InputError(
            f"max_num_batched_tokens {tokens} is below max_model_len {max_model_len} with chunked prefill off",
            where="deployment.engine_args.max_num_batched_tokens",
            mend="raise it, lower max_model_len, or leave chunked prefill on",
        )
    rows = min(rows, tokens)
    drafts = request.speculation
    asynchronous = _asynchronous(version, request)
    block_tokens = int(flags.get("block_size") or _block_tokens(request))
    if block_tokens % KERNEL_BLOCK_TOKENS:
        raise InputError(
            f"block_size {block_tokens}: no attention backend of vLLM takes it, only multiples of {KERNEL_BLOCK_TOKENS}",
            where="deployment.engine_args.block_size",
            mend=f"write {max(1, round(block_tokens / KERNEL_BLOCK_TOKENS)) * KERNEL_BLOCK_TOKENS}, or leave block_size out",
        )
    row_tokens = 1 + (drafts.tokens if drafts else 0)
    graphs = cuda_graphs(flags, warnings)
    largest = vllm_v0.LARGEST_GRAPH if first and graphs.largest is None else graphs.largest
    captured = graphs.sizes or graph_sizes(version, rows, tokens, row_tokens, largest)
    if flags.get("performance_mode") == "interactivity" and not graphs.sizes:
        captured = tuple(sorted({*captured, *range(1, min(32, captured[-1]) + 1)}))
    on_cpu = request.device_kind == "cpu"  # there are no graphs, and nothing is launched: an operation is a call
    sizes = () if graphs.eager or on_cpu else captured
    sampler: Sampler = "cores" if on_cpu else version.sampler
    if graphs.eager and not on_cpu:
        notes.append("enforce_eager: a step takes no less than the host needs to launch its operations one by one")
    if int(flags.get("stream_interval") or 1) > 1:
        warnings.append("stream_interval: tokens are shown as they are made, not in chunks")
    idle = "gpu_memory_utilization" if on_cpu else "cpu_kvcache_space"
    if flags.get(idle):
        warnings.append(f"vllm flag `{idle}` has no effect on {'CPUs' if on_cpu else 'GPUs'}; it is ignored")
    sorts = truncates_samples(arch, flags)
    if sorts:
        notes.append(
            f"requests are sampled with top-p or top-k as the checkpoint asks (assumed), which {SAMPLING_WORK[sampler]}; "
            "generation_config: vllm in engine_args turns it off"
        )
    watermark = float(flags.get("watermark", 0.0))
    if watermark and not version.has_watermark:
        warnings.append(f"vLLM {version.name} has no watermark; it is ignored")
        watermark = 0.0
    groups = kv_groups(arch, request.formats.kv_cache, tp, pp)
    windows, block_bytes, block_tokens = with_states(arch, groups, tp, pp, max_model_len, block_tokens)
    if any(window not in (None, STATE_WINDOW) for window in windows) and flags.get("disable_hybrid_kv_cache_manager"):
        raise InputError(
            f"disable_hybrid_kv_cache_manager keeps whole sequences in the sliding windows of {arch.name}, which is not modelled",
            where="deployment.engine_args.disable_hybrid_kv_cache_manager",
            mend="remove the flag",
        )
    states = sum(window == STATE_WINDOW for window in windows)
    if first:
        vllm_v0.refuse(request, version.name, windows=len(windows) > states + 1 or None not in windows, states=states > 0)
    caching = bool(flags.get("enable_prefix_caching", not states and not first))
    if states:
        notes.append(
            f"recurrent layers: {states} blocks of {block_tokens} tokens hold the states of a request, whatever its length; "
            + ("states can be found again at every block (assumed)" if caching else "no prefix cache, as vLLM's default")
        )
    if drafts is not None:
        from engine_models.cost.drafting import summary_note

        block_bytes += drafts.kv_bytes_per_token() * block_tokens
        notes += [summary_note(drafts), *drafts.notes]
        warnings += _unread_settings(flags.get("speculative_config") or {})
    adapters = _adapters(request, windows, first=first)
    if adapters is not None:
        from engine_models.cost.adapters import summary_note as adapters_note

        notes.append(adapters_note(adapters))
    lora_bytes = adapters.memory_bytes if adapters is not None else 0
    # with adapters a graph of each size that computes them is captured beside the one that does not
    graph_count = len(sizes) * (2 if adapters is not None else 1)
    moe_backend = experts(request, flags, ENGINE.parts(version_text or version.name), warnings)
    sizes_held = (tokens, rows, block_bytes, graph_count, lora_bytes, expert_tiles(request, moe_backend))
    memory = _memory(request, version, *sizes_held)
    if version.flashinfer_is_extra and flashinfer is None and not on_cpu:
        warnings += _without_flashinfer(memory, lambda: _memory(request, _as_sampled(version, flashinfer=False), *sizes_held))
    tiers = tier_plan(
        request,
        block_bytes,
        block_tokens,
        windows=windows,
        stores_outputs=version.offloads_outputs,
        has_tiers=version.offloads_further,
        ranks_requests=version.offload_ranks_requests,
        counts_blocks=ENGINE.parts(version_text or version.name) < OFFLOAD_BYTES_SINCE,
    )
    warnings += [f"kv_connector_extra_config `{key}` is not modelled and was ignored" for key in unread_keys(flags)]
    if tiers is not None:
        notes += tiers.notes
    transfer = flags.get("kv_transfer_config")
    if transfer and tiers is None and request.role == "mixed":
        warnings.append(
            f"vllm flag `kv_transfer_config` is modelled for {NATIVE} with its size, {LMCACHE}, {MOONCAKE} and "
            f"{KVBM} with kv_tiers; transfers of KV blocks by {transfer.get('kv_connector')} to and from elsewhere are not"
        )
    handover = None
    if request.role != "mixed":
        from engine_models.parts.handover import Peer

        handover = _handover(request, windows, block_tokens)
        notes.append(
            f"{handover.connector} (rules read and recorded at vLLM {ENGINE.newest}): a decode server reads the blocks of a "
            "whole prompt when it has place for them, and computes the last token again; an engine that waits for its peer "
            f"looks every {Peer.turn_s * 1e3:g} ms; between a prompt's end and its arrival there {HANDOVER_S:g} s pass besides "
            "the transfer, as one published measurement has it (vLLM issue 50913: assumed for other proxies and models)"
        )
    override = flags.get("num_gpu_blocks_override")
    blocks = int(override) if override else memory.blocks
    full_groups = max(1, sum(window is None for window in windows))
    in_flight = (2 if asynchronous and pp == 1 else pp) * tokens
    window_blocks = sum(-(-min(w - 1 + in_flight, max_model_len) // block_tokens) + 1 for w in windows if w is not None)
    held = max(0, blocks - window_blocks) // full_groups * block_tokens
    if held <= max_model_len and not override:
        if auto_length:
            max_model_len = held - block_tokens
            notes.append(f"max_model_len -1: fitted to {max_model_len} tokens")
        else:
            raise InfeasibleError(
                f"the KV cache holds {held:,} tokens, one request of max_model_len {max_model_len:,} does not fit "
                f"({memory.kv_bytes / 1e9:.1f} GB left for the cache on each of {tp * pp} devices)",
                where="deployment",
                mend=f"set engine_args.max_model_len to at most {max(0, held - block_tokens)}, "
                "or use more or larger devices",
            )
    rules = ContinuousRules(
        **scheduling_switches(version),
        max_num_batched_tokens=min(tokens, int(flags.get("max_num_scheduled_tokens") or tokens)),
        max_num_seqs=min(rows, int(flags.get("max_num_active_seqs") or rows)),
        max_model_len=max_model_len,
        in_flight=2 if asynchronous and pp == 1 else pp,
        policy=str(flags.get("scheduling_policy", "fcfs")),
        chunked_prefill=chunked,
        long_prefill_token_threshold=int(flags.get("long_prefill_token_threshold", 0)),
        reserve_full_prompt=bool(flags.get("scheduler_reserve_full_isl", True)) and version.reserve_full_prompt,
        watermark=watermark,
        pipelined=pp > 1,
        speculative_tokens=drafts.tokens if drafts else 0,
        lookahead_tokens=drafts.lookahead_tokens if drafts else 0,
    )
    if moe_backend and arch.has_experts:
        notes.append(f"experts run on {EXPERTS[moe_backend]} (vLLM's rule of version, format and GPU, or its flag)")
    overheads = load_overheads(ENGINE.name)
    warn_of_attention(request, warnings)
    warn_of_weights(request, warnings)
    of_prompts = max(sizes, default=0) if graphs.of_prefills and not first else 0
    host = replace(overheads.host, prefill_graph_tokens=of_prompts)
    if graphs.eager:  # `launch_s` is that of all eager steps
        host = replace(host, prefill_launch_s=0.0)
    if on_cpu:  # no copies to a device, no gaps between its kernels
        host = HostOverhead(host.step_s, host.row_s)
    notes.append(f"vLLM {version.name}: {tokens} tokens and {rows} rows a step, {blocks} blocks of {block_tokens} tokens")
    outside: tuple[str, ...] = ()
    if ENGINE.parts(version.name) < ENGINE.parts(OLDEST_MEASURED):
        rules_of = "its first engine, read from 0.6.3" if first else f"{OLDEST_MEASURED}, the oldest that was read"
        warnings.append(
            f"vLLM {version_text} follows the rules of {rules_of}, and has the host times of later versions (assumed: older "
            "ones were slower)"
        )
        outside = (f"version: runs of vLLM {OLDEST_MEASURED} and later were measured, not of {version_text}",)
    rank = Rank(
        rules=rules,
        blocks=blocks - 1,
        block_tokens=block_tokens,
        prefix_caching=caching,
        unhashed_to_head=version.unhashed_to_head,
        windows=windows,
        switches=window_switches(version),
        tiers=tiers,
        role=request.role,
        adapters=adapters.limits if adapters is not None else NO_ADAPTERS if request.structured else None,
    )
    beside = version.masks_overlap and rules.in_flight > 1
    masks = None
    if request.structured:
        from engine_models.cost.token_masks import TokenMasks
        from engine_models.cost.token_masks import summary_note as masks_note

        masks = TokenMasks(version.masks_overlap, beside, *MASK_THREADS)
        notes.append(masks_note(masks))
    whole = first and not chunked
    longest = vllm_v0.longest_blocks(rank.blocks) if first else rank.blocks
    return EnginePlan(
        engine=ENGINE.name,
        version=version.name,
        limits=Limits(
            rows=rows,
            step_tokens=tokens,
            context_tokens=max_model_len,
            kv_tokens=rank.blocks // full_groups * block_tokens,
            kv_blocks=rank.blocks,
            block_tokens=block_tokens,
            prompt_tokens=max_model_len - 1,
            row_tokens=max_model_len,
            spare_tokens=rules.speculative_tokens + rules.lookahead_tokens,
            row_blocks=states,
            # a request shorter than the windows takes blocks in all groups alike
            request_tokens=max(
                max(0, longest - window_blocks) // full_groups, longest // max(1, len(windows))
            )
            * block_tokens,
        ),
        memory=memory,
        scheduler=partial(vllm_v0.whole_prefills, tokens, rows, rank.blocks, block_tokens) if whole else rank.scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(
                host,
                graph_sizes=sizes,
                truncated_sampling=sorts,
                sampler=sampler,
                moe_backend=moe_backend,
                expands_latents=True,
                moe_by_flag=str(flags.get("moe_backend") or "auto") != "auto",
                fixed_grid_attention=_fixed_grid_attention(request),
                fp32_router=version.fp32_router,
                recurrent_launches=recurrent_launches(request.device_name, ENGINE.parts(version_text or version.name)),
                splits_graphs=True,
                fills_selection=version.fills_selection,
                chunked_decodes=version.chunked_decodes,
            ),
            TableRange(tokens, rows, max_model_len),
            Parallelism(tp, pp, request.expert_parallel, request.data_parallel),
            speculation=drafts,
            adapters=adapters,
            masks=masks,
        ),
        executor=Executor(depth=rules.in_flight, stages=pp, ranks=request.data_parallel),
        front=_front_end(request, overheads, version),
        prefix_caching=rank.prefix_caching,
        handover=handover,
        notes=tuple(notes),
        warnings=tuple(warnings),
        outside=outside,
        sources=overheads.provenance,
        tiers=tuple(tier.kind for tier in tiers.tiers) if tiers is not None else (),
        sleeps=bool(flags.get("enable_sleep_mode")),
    )


PARSE_S = 0.0098
"""To parse a chat template of 4.1 kB, Qwen3's, for the variables that it names [s] (measured, 2026-11: Jinja2 3.1.6, 11.0 ms for
4.6 kB in terms of the core of `loop_request_s`, two to three times as long after a pause; assumed of other models)."""


def _front_end(request: PoolRequest, overheads: Overheads, version: Version) -> FrontEnd:
    """What stands before the scheduler: one API process a rank unless ``--api-server-count`` says otherwise."""
    flags, loop = request.flags, overheads.loop
    assert loop is not None
    processes = flags.get("api_server_count") or request.data_parallel
    parse_s = PARSE_S if version.parses_templates and request.arch.model_type != HARMONY else 0.0
    loop = replace(loop, share=request.data_parallel / processes, chat_s=loop.chat_s + parse_s)
    front = FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, loop=loop)
    limit = flags.get("max_num_queued_reqs")
    return front if limit is None else replace(front, inflight=limit, on_full="503")


HARMONY = "gpt_oss"
"""Models whose chats are no templates: their prompts are made by a library (vLLM's `harmony_utils.py`)."""


MASK_THREADS = (8, 128, 16)
"""Threads that fill masks, once there are more rows than so many, and rows that one takes at a time (datasheet: vLLM 0.33.0
`v1/structured_output/__init__.py`; on a host of at least 16 cores, assumed)."""
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
    from engine_models.cost.adapters import expert_values, modules_of

    tp = request.tensor_parallel
    if targets is None or "all" in targets:
        experts = expert_values(arch, tp, request.expert_parallel, request.data_parallel, fully_sharded=sharded)
        return experts + 2 * (arch.vocab + arch.hidden) * (arch.model_type in LORA_VOCABULARY)
    wide = [name for fused in FUSED if not set(fused).isdisjoint(targets) for name in fused]
    there, own = (sum(m.values for m in modules_of(arch, tp, names, fully_sharded=sharded)) for names in (wide, targets))
    return there - own


def _adapters(request: PoolRequest, windows: tuple[int | None, ...], *, first: bool) -> Adapters | None:
    """Adapters of a pool, None where it serves none; InputError for what vLLM refuses or is not modelled."""
    settings, tp = request.lora, request.tensor_parallel
    arch = max(stages(request.arch, request.pipeline_parallel), key=lambda stage: stage.layers)
    if settings is None and not request.structured:
        return None
    lacking = {
        "vLLM before 0.8": first,
        "sliding windows or recurrent layers": windows != (None,),
        "CPUs": request.device_kind == "cpu",
    }
    for words in (words for words, there in lacking.items() if there):
        what, where = ("LoRA adapters", "deployment.lora") if settings is not None else FEATURES["structured"]
        raise InputError(f"{what} with {words}: not modelled yet", where=where, mend="remove the key")
    if settings is None:
        return None
    from engine_models.cost.adapters import adapters_of

    largest = int(settings.get("max_lora_rank", LORA_RANK))
    if largest not in LORA_RANKS:
        raise InputError(
            f"max_lora_rank {largest} is none that vLLM takes",
            where="deployment.lora.max_lora_rank",
            mend=f"one of {', '.join(map(str, LORA_RANKS))}",
        )
    places = int(settings.get("max_loras", LORA_PLACES))
    sharded = bool(settings.get("fully_sharded_loras"))
    return adapters_of(
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


CONNECTOR = "NixlConnector"
DESCRIPTOR_S = 1.5e-6
"""What a descriptor adds to a read, one a block, layer and K or V [s] (measured: vLLM issue 50913, 2026-08: about 5,000 tokens
take 105 ms in blocks of 16 and 47 ms in blocks of 64 tokens; 80 layers assumed, from descriptors of 8 KB in "tens of
thousands")."""
HANDOVER_S = 0.15
"""Between the prompt's end and the decode server's taking the request, beside transfer and front end [s] (measured: the same
issue has 263 and 197 ms from end to end, 158 and 150 ms beside the transfers)."""
OFFLOAD_BYTES_SINCE = (0, 14)
"""First version whose own connector takes the size of host memory in bytes (datasheet: releases and vLLM's blog of 2026-01)."""
LEASE_S = (30.0, 20.0)
"""`kv_lease_duration`, from a prompt's end, and what a sign of the decode server extends it to at least, two thirds (datasheet:
vLLM 0.33.0 `kv_connector/v1/nixl`, read 2026-11). The latest sign before a loss is taken to come with it: it may be 5 s old."""
_ROLES = {"kv_producer": "prefill", "kv_consumer": "decode"}


def _handover(request: PoolRequest, windows: tuple[int | None, ...], block_tokens: int) -> Handover:
    """How a pool with a role passes requests on; InputError where that is not modelled."""
    config = request.flags.get("kv_transfer_config") or {}
    where = "deployment.engine_args.kv_transfer_config"
    connector = str(config.get("kv_connector") or request.connector or CONNECTOR)
    if request.connector not in (None, connector):
        raise InputError(
            f"kv_transfer_config names {connector}, deployment.transfer {request.connector}",
            where=where,
            mend="name one connector in both, or leave one out",
        )
    if connector != CONNECTOR:
        raise InputError(
            f"prefill and decode pools over {connector} are not modelled yet, only over {CONNECTOR}",
            where=where,
            mend=f"write kv_connector: {CONNECTOR}, or leave kv_transfer_config out",
        )
    said = _ROLES.get(str(config.get("kv_role")))
    if said is not None and said != request.role:
        raise InputError(
            f"kv_role {config['kv_role']} is that of a {said} server, the pool's role is {request.role}",
            where=where,
            mend=f"write kv_role: kv_both, or role: {said}",
        )
    lacking = {
        "KV offload": bool(request.tiers),
        "pipeline parallelism": request.pipeline_parallel > 1,
        "a model with sliding windows": windows != (None,),
        "state-space layers": any(block.kind == "linear" for block in request.arch.attention),
    }
    for words in (words for words, asked in lacking.items() if asked):
        raise InputError(
            f"prefill and decode pools with {words} are not modelled yet",
            where="deployment.role",
            mend="leave it out, or use pools of role: mixed",
        )
    parts = sum(block.layers * (1 if block.kind == "mla" else 2) for block in request.arch.attention)
    drafts = request.speculation
    agreed = {"speculative decoding": "none" if drafts is None else f"{drafts.method} with {drafts.row_tokens - 1} drafts"}
    return Handover(
        connector, block_tokens, unit_s=DESCRIPTOR_S * parts, hop_s=HANDOVER_S, agreed=agreed, lease_s=LEASE_S, computes=True
    )


def _asynchronous(version: Version, request: PoolRequest) -> bool:
    """Whether batches are scheduled ahead; InputError for what vLLM refuses beside drafts."""
    asked, pp, drafts = request.flags.get("async_scheduling"), request.pipeline_parallel, request.speculation
    if drafts is not None and pp > 1:
        raise InputError(
            "vLLM does not draft across pipeline stages",
            where="deployment.pipeline_parallel",
            mend="use tensor_parallel instead, or leave speculative decoding out",
        )
    able = drafts is None or drafts.method in ON_DEVICE
    if asked and not able:
        assert drafts is not None
        raise InputError(
            f"async_scheduling does not go with {drafts.method} drafts: they are made from tokens that the host must see first",
            where="deployment.engine_args.async_scheduling",
            mend=f"leave it out, or draft with one of {', '.join(ON_DEVICE)}",
        )
    if request.flags.get("distributed_executor_backend") in ("ray", "external_launcher") and not version.ray_is_asynchronous:
        able = False
    if request.device_kind == "cpu":  # as a server of 0.32 was observed, 2026-11; other versions assumed alike
        able = False
    return bool(asked) if asked is not None else version.async_scheduling and pp == 1 and able


def _fixed_grid_attention(request: PoolRequest) -> bool:
    """Whether prompts and decoding rows share a call of FlashAttention 2, see `engine_models.cost.flash_attention2`."""
    backend = str(request.flags.get("attention_backend") or "FLASH_ATTN").upper()
    if backend != "FLASH_ATTN" or request.formats.kv_cache.name not in ("bf16", "fp16"):
        return False
    try:
        return flash_attention2.serves(load_device(request.device_name))
    except PlanError:
        return False


def _unread_settings(config: dict[str, Any]) -> list[str]:
    """Warnings on keys of ``--speculative-config`` that are not simulated."""
    unread = [key for key in config if key not in SPECULATIVE_KEYS and key not in SPECULATIVE_HARMLESS]
    return [f"speculative_config `{key}` is not modelled and was ignored" for key in unread]


SAMPLING_WORK: dict[Sampler, str] = {
    "sort": "sorts the logits of every row",
    "pivot": "searches the logits of every row for a threshold",
    "rejection": "draws from the logits of every row until a token is accepted",
    "cores": "sorts the logits of every row on one core (assumed time)",
}
"""What each sampler does to truncate, for the summary."""


KERNEL_BLOCK_TOKENS = 16
"""Tokens of a KV block come in multiples of this: every attention backend of vLLM on CUDA and ROCm asks for it, and the engine
does not start with another (datasheet: vLLM pull requests 36241 and 41363, 2026)."""


def _block_tokens(request: PoolRequest) -> int:
    """Default tokens of a block, by device and attention."""
    if request.device_kind == "cpu":
        return CPU_BLOCK_TOKENS
    return latent_block_tokens(request) if any(block.kind == "mla" for block in request.arch.attention) else 16


SEARCHES_SINCE = (0, 16)
"""Without FlashInfer a truncated sampler searches for a threshold, before it sorted."""


def _as_sampled(version: Version, *, flashinfer: bool) -> Version:
    """The version with FlashInfer's sampler, or with that of its own (``VLLM_USE_FLASHINFER_SAMPLER``)."""
    own: Sampler = "pivot" if ENGINE.parts(version.name) >= SEARCHES_SINCE else "sort"
    return replace(version, sampler="rejection" if flashinfer else own)


def _without_flashinfer(memory: MemoryBudget, other: Callable[[], MemoryBudget]) -> Iterator[str]:
    """A warning where what is installed decides how much memory is left: `other` is the budget without FlashInfer's sampler."""
    try:
        tokens = other().kv_bytes // memory.kv_bytes_per_token
        what = f"the KV cache holds {tokens:,} tokens"
    except InfeasibleError:
        tokens, what = 0, "the server does not start"
    if tokens < 0.98 * (memory.kv_bytes // memory.kv_bytes_per_token):
        yield (
            "FlashInfer samples, as in vLLM's images of this version; its wheels lack FlashInfer, and without it "
            f"(VLLM_USE_FLASHINFER_SAMPLER=0) {what}"
        )


def _memory(
    request: PoolRequest, version: Version, tokens: int, rows: int, block_bytes: int, graphs: int,
    lora_bytes: int = 0, tiles: tuple[int, int] = (1, 1),
) -> MemoryBudget:  # fmt: skip
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


def _cpu_kv_bytes(request: PoolRequest, version: Version) -> int:
    """What the KV cache takes on a CPU: as it is told (`VLLM_CPU_KVCACHE_SPACE`, in GiB), or the version's default."""
    told = int(request.flags.get("cpu_kvcache_space") or 0) or version.cpu_kv_gib
    nodes = 2 if request.device_name.endswith("-2s") else 1
    return told * GIB or int(request.device_memory_bytes // nodes * CPU_KV_SHARE)


def _recorded_rank(version_text: str, knobs: Mapping[str, Any]) -> Rank:
    """Rules and cache of a recorded scheduler, from its version and the knobs of its `config` line."""
    version = version_of(version_text)
    rules = ContinuousRules(
        **scheduling_switches(version),
        max_num_batched_tokens=knobs["max_num_batched_tokens"],
        max_num_seqs=knobs["max_num_seqs"],
        max_model_len=knobs["max_model_len"],
        in_flight=2 if knobs.get("async_scheduling") else 1,
        policy=knobs.get("policy", "fcfs"),
        chunked_prefill=knobs.get("enable_chunked_prefill", True),
        long_prefill_token_threshold=knobs.get("long_prefill_token_threshold", 0),
        reserve_full_prompt=knobs.get("scheduler_reserve_full_isl", True) and version.reserve_full_prompt,
        watermark=knobs.get("watermark", 0.0) if version.has_watermark else 0.0,
        speculative_tokens=knobs.get("num_speculative_tokens") or 0,
        lookahead_tokens=knobs.get("num_lookahead_tokens") or 0,
    )
    return Rank(
        rules=rules,
        blocks=knobs["num_gpu_blocks"] - 1,
        block_tokens=knobs["block_size"],
        prefix_caching=knobs.get("enable_prefix_caching", True),
        unhashed_to_head=version.unhashed_to_head,
        windows=tuple(group.get("window") for group in knobs.get("kv_groups") or [{"type": "full"}]),
        switches=window_switches(version),
        adapters=AdapterLimits(knobs["max_loras"]) if "max_loras" in knobs else None,
        tiers=recorded_tiers(knobs) if "host_blocks" in knobs else None,
    )


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from its version and the knobs of its `config` line."""
    rank = _recorded_rank(version_text, knobs)
    return Replay(rank.scheduler("record"), rank.rules.in_flight, ("sched", "preempted", "hits", "free_blocks"), _as_recorded)


def _as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A step as the recorder writes it."""
    assert batch.rows is not None
    return {
        "sched": [[ids[s.index], n, before] for s, n, before in batch.rows],
        "hits": {ids[s.index]: hit for s, hit in batch.hits},
        "preempted": [ids[s.index] for s in batch.preempted],
        "free_blocks": batch.free_blocks,
    }


def pair_replay(version_text: str, config: Mapping[str, Any]) -> PairReplay:
    """The schedulers of a recorded prefill and a recorded decode server."""
    from engine_models.engines.vllm_recorded import PairRecorder
    from engine_models.parts.handover import Peer

    def side(role: Role, name: str) -> Peer:
        scheduler = replace(_recorded_rank(version_text, config[name]), role=role).scheduler("record")
        assert isinstance(scheduler, Peer)
        return scheduler

    return PairReplay(lambda: side("prefill", "P"), lambda: side("decode", "D"), PairRecorder)

_DOCS = (
    "vLLM's docs/getting_started/installation and docs/features/quantization/supported_hardware.md (public copies, read "
    "2026-11); apu and asic: assumed as gpu"
)
_ANYWHERE: frozenset[DeviceKind] = frozenset({"gpu", "apu", "asic", "cpu"})
_ACCELERATORS: frozenset[DeviceKind] = frozenset({"gpu", "apu", "asic"})

_LORA_KINDS: frozenset[DeviceKind] = frozenset({"gpu", "apu"})

ENGINE = Engine(
    name="vllm",
    title="vLLM",
    rule=(
        "Continuous batching under one token budget: a step serves the running rows first, then admits waiting "
        "prompts, whole or in chunks beside answers, while budget, rows and KV blocks last; when blocks run out the "
        "last row is preempted and computed again."
    ),
    versions=VERSIONS,
    devices=dict.fromkeys(("gpu", "apu", "asic", "cpu"), _DOCS),
    formats={
        **{name: Support(_ANYWHERE, _DOCS) for name in ("fp32", "bf16", "fp16", "int8", "int8_wo", "int4", "awq", "gptq")},
        "nf4": Support(_ACCELERATORS, _DOCS),
        **{name: Support(_ACCELERATORS, _DOCS) for name in ("fp8", "fp8_block", "nvfp4", "mxfp4")},
    },
    adapters_beside=("speculative", "offload", "kv_tiers", "pipeline_parallel"),
    kv_formats=("fp8", "int8", "nvfp4"),
    features={
        "structured": Support(_LORA_KINDS, _DOCS),
        "lora": Support(_LORA_KINDS, _DOCS),
        "speculative": Support(_ANYWHERE, _DOCS),
        "pipeline_parallel": Support(_ANYWHERE, _DOCS),
        "offload": Support(_ACCELERATORS, _DOCS),
        "handover": Support(_ANYWHERE, "vLLM 0.33's distributed/kv_transfer/kv_connector/v1/nixl"),
    },
    drafts=chains_only("vLLM"),
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_num_seqs",
        "context": "max_model_len",
        "step_tokens": "max_num_batched_tokens",
        "memory_share": "gpu_memory_utilization",
        "block": "block_size",
        "tensor_ranks": "tensor_parallel_size",
        "data_ranks": "data_parallel_size",
        "no_prefix_cache": "no_enable_prefix_caching",
        "no_graphs": "enforce_eager",
        "graph_rows": "max_cudagraph_capture_size",
    },
    kernels="vllm",
    measured={"h100-sxm-80gb": (1, 2, 4)},
    plan=plan,
    replay=replay,
    pair_replay=pair_replay,
    lockstep=Lockstep(
        applies=lambda flags, tensor_parallel, expert_ranks: True,
        launch=lambda devices, ranks: "",
        dense="as vLLM does",
    ),
)
