"""vLLM V1: what it is in terms of the shared parts.

How its versions differ is in `vllm_versions`, memory in `vllm_memory`, ranks in `vllm_ranks`. The scheduling rule itself is
`engine_models.schedulers.continuous`, the KV cache `engine_models.memory.paged_kv`.

Behaviour read from the sources of vLLM 0.11.0, 0.14.1, 0.15.1, 0.19.1, 0.24.0 and 0.33.0 (recurrent layers of 0.17.1, 0.22.1
and 0.23.0 too), scheduling checked step by step against recordings of the real scheduler (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from engine_models.cost import flash_attention2, marlin
from engine_models.cost.draft_methods import ON_DEVICE, chains_only
from engine_models.cost.overheads import Overheads, load_overheads
from engine_models.cost.sampling import Sampler
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import HostOverhead, Parallelism, Terms
from engine_models.declaration import (
    Engine,
    EnginePlan,
    Executor,
    FrontEnd,
    Limits,
    Lockstep,
    PairReplay,
    PoolRequest,
    Replay,
    Role,
    Said,
    Support,
)
from engine_models.engines import vllm_v0
from engine_models.engines.vllm_flags import FLAGS, SPECULATIVE_HARMLESS, SPECULATIVE_KEYS
from engine_models.engines.vllm_kernels import (
    EXPERTS,
    expert_tiles,
    experts,
    held_weights,
    recurrent_launches,
)
from engine_models.engines.vllm_memory import (
    CPU_BLOCK_TOKENS,
    GIB,
    STATE_WINDOW,
    Grouping,
    grouping,
    least_share,
    memory_of,
    profiled_images,
    with_states,
    without_flashinfer,
)
from engine_models.engines.vllm_options import (
    cuda_graphs,
    latent_block_tokens,
    truncates_samples,
    warn_of_attention,
    warn_of_weights,
)
from engine_models.engines.vllm_ranks import Rank, as_recorded, recorded_rank
from engine_models.engines.vllm_tiers import (
    KVBM,
    LMCACHE,
    MOONCAKE,
    NATIVE,
    TierPlan,
    tier_plan,
    unread_keys,
)
from engine_models.engines.vllm_versions import (
    OLDEST_MEASURED,
    VERSIONS,
    Version,
    graph_sizes,
    scheduling_switches,
    window_switches,
)
from engine_models.model.architecture import (
    kv_groups,
    with_state_values,
    without_towers,
)
from engine_models.model.overrides import served_context
from engine_models.parts.adapters import NO_ADAPTERS
from engine_models.parts.batch import ContinuousRules
from hardware_profiles.device import DeviceKind, load_device
from hardware_profiles.errors import InfeasibleError, InputError, PlanError

if TYPE_CHECKING:
    from engine_models.cost.adapters import Adapters


def version_of(text: str | None) -> Version:
    """The switches of the declared version that stands for `text` (None: the newest)."""
    name = ENGINE.version(text)
    return Version(name, **ENGINE.switches(name))


CPU_TOKENS, CPU_ROWS = 2048, 128
"""Default max_num_batched_tokens and max_num_seqs of the API server on CPUs, for each rank (datasheet: vLLM 0.11 to 0.30,
`engine/arg_utils.py`)."""


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


@dataclass(frozen=True)
class Serving:
    """What the flags of a pool say of its steps.

    tokens, rows : most of a step. context : longest request, `fitted` to the cache where the flag leaves it open. graphs : sizes
    that are captured; `eager` : none is, `prompt_graph_tokens` : largest for steps with prompts. sorts : requests are sampled
    with truncation.
    """

    tokens: int
    rows: int
    context: int
    fitted: bool
    chunked: bool
    asynchronous: bool
    block: int
    graphs: tuple[int, ...]
    eager: bool
    prompt_graph_tokens: int
    sampler: Sampler
    sorts: bool
    watermark: float


def _serving(request: PoolRequest, version: Version, said: Said) -> Serving:
    """Read the flags; InputError on what is out of range."""
    flags, arch, drafts, first = request.flags, request.arch, request.speculation, version.first_engine
    overrides = {"rope_scaling": flags.get("rope_scaling"), **(flags.get("hf_overrides") or {})}
    most = served_context(arch, overrides, "hf_overrides", said.warnings)
    fitted = flags.get("max_model_len") in (-1, "auto")
    context = most if fitted else int(flags.get("max_model_len") or most)
    chunked = vllm_v0.cuts_prompts(flags, context) if first else bool(flags.get("enable_chunked_prefill", True))
    tokens, rows = _limits_of_steps(request, version, context, chunked=chunked)
    asynchronous = _asynchronous(version, request)
    block = int(flags.get("block_size") or _block_tokens(request))
    if block % KERNEL_BLOCK_TOKENS:
        raise InputError(
            f"block_size {block}: no attention backend of vLLM takes it, only multiples of {KERNEL_BLOCK_TOKENS}",
            where="deployment.engine_args.block_size",
            mend=f"write {max(1, round(block / KERNEL_BLOCK_TOKENS)) * KERNEL_BLOCK_TOKENS}, or leave block_size out",
        )
    graphs = cuda_graphs(flags, said.warnings)
    largest = vllm_v0.LARGEST_GRAPH if first and graphs.largest is None else graphs.largest
    captured = graphs.sizes or graph_sizes(version, rows, tokens, 1 + (drafts.tokens if drafts else 0), largest)
    if flags.get("performance_mode") == "interactivity" and not graphs.sizes:
        captured = tuple(sorted({*captured, *range(1, min(32, captured[-1]) + 1)}))
    on_cpu = request.device_kind == "cpu"  # there are no graphs, and nothing is launched: an operation is a call
    sizes = () if graphs.eager or on_cpu else captured
    sampler: Sampler = "cores" if on_cpu else version.sampler
    if graphs.eager and not on_cpu:
        said.notes.append("enforce_eager: a step takes no less than the host needs to launch its operations one by one")
    if int(flags.get("stream_interval") or 1) > 1:
        said.warnings.append("stream_interval: tokens are shown as they are made, not in chunks")
    idle = "gpu_memory_utilization" if on_cpu else "cpu_kvcache_space"
    if flags.get(idle):
        said.warnings.append(f"vllm flag `{idle}` has no effect on {'CPUs' if on_cpu else 'GPUs'}; it is ignored")
    sorts = truncates_samples(arch, flags)
    if sorts:
        said.notes.append(
            f"requests are sampled with top-p or top-k as the checkpoint asks (assumed), which {SAMPLING_WORK[sampler]}; "
            "generation_config: vllm in engine_args turns it off"
        )
    watermark = float(flags.get("watermark", 0.0))
    if watermark and not version.has_watermark:
        said.warnings.append(f"vLLM {version.name} has no watermark; it is ignored")
        watermark = 0.0
    of_prompts = max(sizes, default=0) if graphs.of_prefills and not first else 0
    return Serving(
        tokens, rows, context, fitted, chunked, asynchronous, block, sizes, graphs.eager, of_prompts, sampler, sorts, watermark
    )


def _limits_of_steps(request: PoolRequest, version: Version, context: int, *, chunked: bool) -> tuple[int, int]:
    """Tokens and rows of a step at most; InputError where whole prompts have no room."""
    flags, first = request.flags, version.first_engine
    default_tokens, default_rows = default_limits(version, request)
    if flags.get("performance_mode") == "throughput":
        default_tokens, default_rows = 2 * default_tokens, 2 * default_rows
    if first and chunked:
        default_tokens = vllm_v0.CHUNKED_TOKENS
    rows = int(flags.get("max_num_seqs") or default_rows)
    tokens = int(flags.get("max_num_batched_tokens") or 0)
    if not tokens:
        tokens = default_tokens if chunked else max(default_tokens, context)
        tokens = min(tokens, rows * context)
    elif not chunked and tokens < context:
        raise InputError(
            f"max_num_batched_tokens {tokens} is below max_model_len {context} with chunked prefill off",
            where="deployment.engine_args.max_num_batched_tokens",
            mend="raise it, lower max_model_len, or leave chunked prefill on",
        )
    return tokens, min(rows, tokens)


@dataclass(frozen=True)
class Cache:
    """Groups of KV blocks: the windows of each, bytes and tokens of a block, how many of the groups hold states.

    told : vLLM's own grouping and the bytes of a block of this one, where the start-up line rests on it.
    """

    windows: tuple[int | None, ...]
    block_bytes: int
    block: int
    states: int
    prefix_caching: bool
    told: tuple[Grouping, int] | None = None

    def stated_tokens(self, blocks: int, context: int, step_tokens: int, parts: tuple[int, ...]) -> int | None:
        """Tokens that the start-up line tells of `blocks`, None for those of all groups without a window."""
        if self.told is None:
            return None
        grouping, block_bytes = self.told
        return grouping.stated_tokens(blocks * block_bytes, context, step_tokens, parts, 2 if self.prefix_caching else 1)

    @property
    def full_groups(self) -> int:
        """Groups that hold all tokens of a request."""
        return max(1, sum(window is None for window in self.windows))

    def window_blocks(self, in_flight_tokens: int, context: int) -> int:
        """Blocks that the windows of the longest request take at most."""
        spans = [min(w - 1 + in_flight_tokens, context) for w in self.windows if w is not None]
        return sum(-(-span // self.block) + 1 for span in spans)


def _cache(request: PoolRequest, version: Version, serving: Serving, said: Said) -> Cache:
    """The groups of a pool; InputError for what is not modelled of them."""
    flags, arch, first, drafts = request.flags, request.arch, version.first_engine, request.speculation
    tp, pp = request.tensor_parallel, request.pipeline_parallel
    groups = kv_groups(arch, request.formats.kv_cache, tp, pp)
    windows, block_bytes, block = with_states(arch, groups, tp, pp, serving.context, serving.block)
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
    several = len(windows) > 1 and all(block.kind != "mla" for block in arch.attention)
    told = (grouping(arch, groups, tp, pp, serving.context, block), block_bytes) if several else None
    if states:
        said.notes.append(
            f"recurrent layers: {states} blocks of {block} tokens hold the states of a request, whatever its length; "
            + ("states can be found again at every block (assumed)" if caching else "no prefix cache, as vLLM's default")
        )
    if drafts is not None:
        from engine_models.cost.drafting import summary_note

        block_bytes += drafts.kv_bytes_per_token() * block
        said.notes += [summary_note(drafts), *drafts.notes]
        said.warnings += _unread_settings(flags.get("speculative_config") or {})
    return Cache(windows, block_bytes, block, states, caching, told)


def _tiers(request: PoolRequest, version: Version, parts: tuple[int, ...], cache: Cache, said: Said) -> TierPlan | None:
    """KV blocks beyond the device, and what is not modelled of connectors."""
    flags = request.flags
    tiers = tier_plan(
        request,
        cache.block_bytes,
        cache.block,
        windows=cache.windows,
        stores_outputs=version.offloads_outputs,
        has_tiers=version.offloads_further,
        ranks_requests=version.offload_ranks_requests,
        counts_blocks=parts < OFFLOAD_BYTES_SINCE,
    )
    said.warnings += [f"kv_connector_extra_config `{key}` is not modelled and was ignored" for key in unread_keys(flags)]
    if tiers is not None:
        said.notes += tiers.notes
    transfer = flags.get("kv_transfer_config")
    if transfer and tiers is None and request.role == "mixed":
        said.warnings.append(
            f"vllm flag `kv_transfer_config` is modelled for {NATIVE} with its size, {LMCACHE}, {MOONCAKE} and "
            f"{KVBM} with kv_tiers; transfers of KV blocks by {transfer.get('kv_connector')} to and from elsewhere are not"
        )
    return tiers


def _context(request: PoolRequest, serving: Serving, cache: Cache, blocks: int, kv_bytes: int, said: Said) -> int:
    """The longest request; InfeasibleError where the flag states one that the cache does not hold."""
    in_flight = _in_flight(request, serving) * serving.tokens
    window_blocks = cache.window_blocks(in_flight, serving.context)
    held = max(0, blocks - window_blocks) // cache.full_groups * cache.block
    if held > serving.context or request.flags.get("num_gpu_blocks_override"):
        return serving.context
    if serving.fitted:
        said.notes.append(f"max_model_len -1: fitted to {held - cache.block} tokens")
        return held - cache.block
    raise InfeasibleError(
        f"the KV cache holds {held:,} tokens, one request of max_model_len {serving.context:,} does not fit "
        f"({kv_bytes / 1e9:.1f} GB left for the cache on each of {request.tensor_parallel * request.pipeline_parallel} devices)",
        where="deployment",
        mend=f"set engine_args.max_model_len to at most {max(0, held - cache.block)}, "
        "or use more or larger devices",
    )


def _in_flight(request: PoolRequest, serving: Serving) -> int:
    """Batches that are formed before the results of the first are known."""
    pp = request.pipeline_parallel
    return 2 if serving.asynchronous and pp == 1 else pp


def _rules(request: PoolRequest, version: Version, serving: Serving, context: int) -> ContinuousRules:
    flags, drafts = request.flags, request.speculation
    return ContinuousRules(
        **scheduling_switches(version),
        max_num_batched_tokens=min(serving.tokens, int(flags.get("max_num_scheduled_tokens") or serving.tokens)),
        max_num_seqs=min(serving.rows, int(flags.get("max_num_active_seqs") or serving.rows)),
        max_model_len=context,
        in_flight=_in_flight(request, serving),
        policy=str(flags.get("scheduling_policy", "fcfs")),
        chunked_prefill=serving.chunked,
        long_prefill_token_threshold=int(flags.get("long_prefill_token_threshold", 0)),
        reserve_full_prompt=bool(flags.get("scheduler_reserve_full_isl", True)) and version.reserve_full_prompt,
        watermark=serving.watermark,
        pipelined=request.pipeline_parallel > 1,
        speculative_tokens=drafts.tokens if drafts else 0,
        lookahead_tokens=drafts.lookahead_tokens if drafts else 0,
    )


def _limits(
    rank: Rank, serving: Serving, cache: Cache, parts: tuple[int, ...], least_share: float, *, first: bool
) -> Limits:
    """What a rank holds at most."""
    rules = rank.rules
    context, longest = rules.max_model_len, vllm_v0.longest_blocks(rank.blocks) if first else rank.blocks
    window_blocks = cache.window_blocks(rules.in_flight * serving.tokens, serving.context)
    # a request shorter than the windows takes blocks in all groups alike
    request_blocks = max(max(0, longest - window_blocks) // cache.full_groups, longest // max(1, len(cache.windows)))
    kv_tokens = rank.blocks // cache.full_groups * cache.block
    stated = cache.stated_tokens(rank.blocks + 1, context, serving.tokens, parts)
    return Limits(
        rows=serving.rows,
        step_tokens=serving.tokens,
        context_tokens=context,
        kv_tokens=kv_tokens,
        kv_blocks=rank.blocks,
        block_tokens=cache.block,
        prompt_tokens=context - 1,
        row_tokens=context,
        spare_tokens=rules.speculative_tokens + rules.lookahead_tokens,
        row_blocks=cache.states,
        request_tokens=request_blocks * cache.block,
        stated_tokens=stated,
        least_stated=int(least_share * (kv_tokens if stated is None else stated)) if least_share < 1 else None,
    )


def _host(request: PoolRequest, serving: Serving, host: HostOverhead) -> HostOverhead:
    """What the host takes of a step."""
    host = replace(host, prefill_graph_tokens=serving.prompt_graph_tokens)
    if serving.eager:  # `launch_s` is that of all eager steps
        host = replace(host, prefill_launch_s=0.0)
    if request.device_kind == "cpu":  # no copies to a device, no gaps between its kernels
        host = HostOverhead(host.step_s, host.row_s)
    return host


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of vLLM: limits, memory, KV blocks, graphs, overheads.

    Raises InfeasibleError if the weights or one request of `max_model_len` do not fit, InputError on flags out of range.
    """
    flags, said = request.flags, Said()
    version, flashinfer = version_of(version_text), flags.get("use_flashinfer_sampler")
    parts = ENGINE.parts(version_text or version.name)
    if flashinfer is not None:
        version = _as_sampled(version, flashinfer=flashinfer)
    state_values = str(flags.get("mamba_ssm_cache_dtype") or "auto")
    if state_values != "auto":
        request = replace(request, arch=with_state_values(request.arch, 4 if state_values == "float32" else 2))
    if flags.get("language_model_only"):
        request = replace(request, arch=without_towers(request.arch))
    arch, first = request.arch, version.first_engine
    serving = _serving(request, version, said)
    cache = _cache(request, version, serving, said)
    adapters = _adapters(request, cache.windows, said, first=first)
    lora_bytes = adapters.memory_bytes if adapters is not None else 0
    # with adapters a graph of each size that computes them is captured beside the one that does not
    graph_count = len(serving.graphs) * (2 if adapters is not None else 1)
    moe_backend = experts(request, flags, parts, said.warnings)
    pictures = not first and request.device_kind != "cpu"
    images = profiled_images(request, serving.tokens, serving.context, parts) if pictures else (0, 0)
    held = (serving.tokens, serving.rows, images, cache.block_bytes, graph_count, lora_bytes, expert_tiles(request, moe_backend))
    stored = replace(request, formats=replace(request.formats, weights=held_weights(request, moe_backend, parts)))
    memory = memory_of(stored, version, *held)
    without, fixed = None, flags.get("kv_cache_memory_bytes") or flags.get("num_gpu_blocks_override")
    if version.flashinfer_is_extra and flashinfer is None and request.device_kind != "cpu":
        with suppress(InfeasibleError):
            without = memory_of(stored, _as_sampled(version, flashinfer=False), *held)
        said.warnings += without_flashinfer(memory, without)
    compiles = not (first or serving.eager or fixed or request.device_kind == "cpu")
    least = least_share(memory, None if fixed else without, compiles=compiles)
    tiers = _tiers(request, version, parts, cache, said)
    handover = None
    if request.role != "mixed":
        from engine_models.engines.vllm_handover import handover_note, handover_of

        handover = handover_of(request, cache.windows, cache.block)
        said.notes.append(handover_note(handover, ENGINE.newest))
    blocks = int(flags.get("num_gpu_blocks_override") or memory.blocks)
    context = _context(request, serving, cache, blocks, memory.kv_bytes, said)
    rules = _rules(request, version, serving, context)
    if moe_backend and arch.has_experts:
        said.notes.append(f"experts run on {EXPERTS[moe_backend]} (vLLM's rule of version, format and GPU, or its flag)")
    warn_of_attention(request, said.warnings)
    warn_of_weights(request, said.warnings)
    said.notes.append(
        f"vLLM {version.name}: {serving.tokens} tokens and {serving.rows} rows a step, {blocks} blocks of {cache.block} tokens"
    )
    outside: tuple[str, ...] = ()
    if ENGINE.parts(version.name) < ENGINE.parts(OLDEST_MEASURED):
        rules_of = "its first engine, read from 0.6.3" if first else f"{OLDEST_MEASURED}, the oldest that was read"
        said.warnings.append(
            f"vLLM {version_text} follows the rules of {rules_of}, and has the host times of later versions (assumed: older "
            "ones were slower)"
        )
        outside = (f"version: runs of vLLM {OLDEST_MEASURED} and later were measured, not of {version_text}",)
    rank = Rank(
        rules=rules,
        blocks=blocks - 1,
        block_tokens=cache.block,
        prefix_caching=cache.prefix_caching,
        unhashed_to_head=version.unhashed_to_head,
        windows=cache.windows,
        switches=window_switches(version),
        tiers=tiers,
        role=request.role,
        at_once=handover is not None and handover.reserves,
        adapters=adapters.limits if adapters is not None else NO_ADAPTERS if request.structured else None,
    )
    masks = None
    if request.structured:
        from engine_models.cost.token_masks import TokenMasks, summary_note

        masks = TokenMasks(version.masks_overlap, version.masks_overlap and rules.in_flight > 1, *MASK_THREADS)
        said.notes.append(summary_note(masks))
    whole = partial(vllm_v0.whole_prefills, serving.tokens, serving.rows, rank.blocks, cache.block)
    overheads = load_overheads(ENGINE.name)
    return EnginePlan(
        engine=ENGINE.name,
        version=version.name,
        limits=_limits(rank, serving, cache, parts, least, first=first),
        memory=memory,
        scheduler=whole if first and not serving.chunked else rank.scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(
                _host(request, serving, overheads.host),
                graph_sizes=serving.graphs,
                truncated_sampling=serving.sorts,
                sampler=serving.sampler,
                moe_backend=moe_backend,
                expands_latents=True,
                moe_by_flag=str(flags.get("moe_backend") or "auto") != "auto",
                fixed_grid_attention=_fixed_grid_attention(request),
                fp32_router=version.fp32_router,
                recurrent_launches=recurrent_launches(request.device_name, parts),
                splits_graphs=True,
                fills_selection=version.fills_selection,
                chunked_decodes=version.chunked_decodes,
                marlin_share=marlin.share_of(load_device(request.device_name), request.formats.weights, machete=True),
            ),
            TableRange(serving.tokens, serving.rows, context),
            Parallelism(
                request.tensor_parallel, request.pipeline_parallel, request.expert_parallel, request.data_parallel
            ),
            speculation=request.speculation,
            adapters=adapters,
            masks=masks,
        ),
        executor=Executor(depth=rules.in_flight, stages=request.pipeline_parallel, ranks=request.data_parallel),
        front=_front_end(request, overheads, version),
        prefix_caching=rank.prefix_caching,
        handover=handover,
        notes=tuple(said.notes),
        warnings=tuple(said.warnings),
        outside=outside,
        sources=overheads.provenance,
        tiers=tuple(tier.kind for tier in tiers.tiers) if tiers is not None else (),
        sleeps=bool(flags.get("enable_sleep_mode")),
    )


def _adapters(request: PoolRequest, windows: tuple[int | None, ...], said: Said, *, first: bool) -> Adapters | None:
    """Adapters of a pool, None where it serves none; InputError for what vLLM refuses or is not modelled."""
    if request.lora is None and not request.structured:
        return None
    from engine_models.cost.adapters import summary_note
    from engine_models.engines.vllm_adapters import adapters_of_pool

    adapters = adapters_of_pool(request, windows, first=first)
    if adapters is not None:
        said.notes.append(summary_note(adapters))
    return adapters


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


OFFLOAD_BYTES_SINCE = (0, 14)
"""First version whose own connector takes the size of host memory in bytes (datasheet: releases and vLLM's blog of 2026-01)."""


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


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from its version and the knobs of its `config` line."""
    rank = recorded_rank(version_of(version_text), knobs)
    return Replay(rank.scheduler("record"), rank.rules.in_flight, ("sched", "preempted", "hits", "free_blocks"), as_recorded)


def pair_replay(version_text: str, config: Mapping[str, Any]) -> PairReplay:
    """The schedulers of a recorded prefill and a recorded decode server."""
    from engine_models.engines.vllm_recorded import PairRecorder
    from engine_models.parts.handover import Peer

    def side(role: Role, name: str) -> Peer:
        scheduler = replace(recorded_rank(version_of(version_text), config[name]), role=role).scheduler("record")
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
