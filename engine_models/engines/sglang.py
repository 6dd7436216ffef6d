"""SGLang: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.prefill_first`, the cache `engine_models.memory.radix`.

Behaviour and defaults of SGLang 0.5.23 (`managers/scheduler.py`, `managers/schedule_policy.py`, `arg_groups/memory_hook.py`,
`arg_groups/cuda_graph_hook.py`, `arg_groups/fields`); scheduling checked step by step against recordings of the real
scheduler (`capacity-plan validate schedules`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine_models.cost.adapters import Adapters, adapters_of, expert_values
from engine_models.cost.adapters import summary_note as adapters_note
from engine_models.cost.drafting import Speculation, summary_note
from engine_models.cost.overheads import Overheads, load_overheads, own_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.cost.token_masks import TokenMasks
from engine_models.cost.token_masks import summary_note as masks_note
from engine_models.declaration import (
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
from engine_models.engines.sglang_drafts import (
    DRAFTED_ROWS,
    draft_defaults,
    drafted_graph_rows,
    kv_share_of_drafter,
    overlaps,
    step_slots,
)
from engine_models.engines.sglang_flags import FLAGS, SPEC_V2, dp_attention
from engine_models.engines.sglang_kernels import (
    EXPERT_LAUNCHES,
    EXPERTS,
    RECURRENT_LAUNCHES,
    absorbs_below,
    absorbs_captured,
    as_run,
    compiles_products,
    experts,
    fused_norm_tokens,
    latent_launches,
    selection_kernels,
    token_tiles,
    warn_of_attention,
)
from engine_models.engines.sglang_recorded import PairRecorder
from engine_models.engines.sglang_tiers import TierPlan, tier_plan
from engine_models.memory.radix import RadixPool
from engine_models.model.activations import CONTEXT_BYTES
from engine_models.model.architecture import (
    kv_groups,
    state_bytes_per_sequence,
    weight_bytes_per_rank,
    with_state_values,
)
from engine_models.model.blocks import Architecture
from engine_models.model.formats import FORMATS
from engine_models.model.overrides import served_context
from engine_models.parts.adapters import NO_ADAPTERS, AdapterLimits
from engine_models.parts.batch import Batch
from engine_models.parts.handover import Peer
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch, PrefillFirstRules, PrefillFirstScheduler
from engine_models.schedulers.prefill_first_adapted import AdaptedPrefillFirstScheduler
from engine_models.schedulers.prefill_first_drafted import DraftedPrefillFirstScheduler
from engine_models.schedulers.prefill_first_tiered import TieredPrefillFirstScheduler
from engine_models.schedulers.reserved import (
    ReservingDecodeScheduler,
    ReservingRules,
    SendingPrefillScheduler,
)
from engine_models.schedulers.reserved_drafted import DraftedReservingScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError

GIB = 1 << 30
MIB = 1 << 20
VERSIONS: dict[str, dict[str, Any]] = {"0.5.23": {}}
"""Read and recorded; it stands for all of 0.5, but for the captured prefills (`PREFILL_GRAPHS_SINCE`)."""

PREFILL_GRAPHS_SINCE = (0, 5, 10)
"""First version that captures prefills unless told otherwise (datasheet: release notes of v0.5.10, 2026-04, and pull request
16331)."""
PREFILL_GRAPH_TOKENS_MLA = 2048
"""Largest captured prefill of a model with latent attention [tokens]; of others the prefill chunk (datasheet: SGLang's
documentation of 2026-04)."""

RANK_CONSERVATIVENESS = 0.3
"""Factor of `schedule_conservativeness` under data-parallel attention (datasheet: SGLang 0.5 `server_args.py`, read 2026-11)."""

# Defaults by device memory, SGLang 0.5.23: (below GiB, chunked_prefill_size, largest decode graph with tp < 4, with tp >= 4)
_BY_MEMORY = (
    (20, 2048, 8, 8),
    (35, 4096, 48, 160),
    (60, 4096, 32, 160),
    (160, 8192, 256, 512),
    (float("inf"), 16384, 512, 512),
)

# Memory kept out of weights and KV cache, MiB, SGLang 0.5.23
_RESERVED_BASE = 512
_RESERVED_PER_CHUNK_TOKEN = 1.5
_RESERVED_LEAST_CHUNK = 2048
_RESERVED_PER_EIGHT_RANKS = 1024
_RESERVED_PER_GRAPH_ROW = 2
_RESERVED_PER_GRAPH_ROW_AND_RANK = 3  # with data-parallel attention
_RESERVED_LEAST_ON_LARGE = 10 * 1024  # on devices of more than 60 GiB


SPARE_TOKENS = 5
"""Tokens that the scheduler keeps free behind a prompt (``max_req_input_len``; datasheet: SGLang 0.5 source, 2025)."""


@dataclass(frozen=True)
class Rank:
    """Rules and radix cache of one rank: what a fresh scheduler is built from."""

    rules: PrefillFirstRules
    kv_tokens: int
    page_tokens: int = 1
    prefix_caching: bool = True
    eviction_policy: str = "lru"
    windows: tuple[int, ...] = ()  # of the model's layers
    role: Role = "mixed"
    decode: ReservingRules | None = None  # of a decode server
    drafts: Speculation | None = None
    adapters: AdapterLimits | None = None
    tiers: TierPlan | None = None

    def scheduler(self, mode: Mode) -> PrefillFirstScheduler | ReservingDecodeScheduler:
        """Build a scheduler with its cache."""
        kv = RadixPool(
            self.kv_tokens,
            self.page_tokens,
            prefix_caching=self.prefix_caching,
            eviction_policy=self.eviction_policy,
        )
        record = mode == "record"
        if self.decode is not None and self.drafts is not None:
            return DraftedReservingScheduler(
                self.decode,
                kv,
                row_tokens=self.drafts.row_tokens,
                step_slots=step_slots(self.drafts, self.page_tokens),
                record_rows=record,
                windows=self.windows,
            )
        if self.decode is not None:
            return ReservingDecodeScheduler(
                self.decode, kv, aggregate=mode != "step", record_rows=record, windows=self.windows
            )
        if self.tiers is not None:
            return TieredPrefillFirstScheduler(
                self.rules,
                self.tiers.pool(self.kv_tokens, self.page_tokens, self.eviction_policy),
                prefetch=self.tiers.prefetch,
                ranks=self.tiers.ranks,
                aggregate=mode != "step",
                record_rows=record,
                windows=self.windows,
            )
        if self.adapters is not None:
            return AdaptedPrefillFirstScheduler(
                self.rules, kv, self.adapters, aggregate=mode != "step", record_rows=record, windows=self.windows
            )
        if self.drafts is not None and self.role != "prefill":
            return DraftedPrefillFirstScheduler(
                self.rules,
                kv,
                row_tokens=self.drafts.row_tokens,
                step_slots=step_slots(self.drafts, self.page_tokens),
                record_rows=record,
                windows=self.windows,
            )
        if self.role == "prefill":
            buffers = self.rules.max_running_requests
            return SendingPrefillScheduler(
                self.rules, kv, metadata_buffers=buffers, record_rows=record, windows=self.windows
            )
        return PrefillFirstScheduler(
            self.rules, kv, aggregate=mode != "step", record_rows=record, windows=self.windows
        )


def prefill_graph_tokens(request: PoolRequest, version_text: str | None, chunk_tokens: int) -> int:
    """Most tokens of a prefill that a CUDA graph holds, 0 if none does.

    Prefills are captured by default since 0.5.10, before with `enable_piecewise_cuda_graph`; never under data-parallel attention.
    """
    flags = request.flags
    new = ENGINE.parts(version_text or ENGINE.newest) >= PREFILL_GRAPHS_SINCE
    wanted = not flags.get("disable_piecewise_cuda_graph", False) and (
        new or flags.get("enable_piecewise_cuda_graph", False)
    )
    if not wanted or request.data_parallel > 1 or flags.get("disable_cuda_graph", False):
        return 0
    if flags.get("piecewise_cuda_graph_max_tokens"):
        return int(flags["piecewise_cuda_graph_max_tokens"])
    mla = any(block.kind == "mla" for block in request.arch.attention)
    return PREFILL_GRAPH_TOKENS_MLA if mla or chunk_tokens <= 0 else chunk_tokens


def memory_defaults(memory_bytes: int, tensor_parallel: int) -> tuple[int, int]:
    """Default (chunked_prefill_size, largest batch with a decode graph) by device memory."""
    for below, chunk, small, large in _BY_MEMORY:
        if memory_bytes < below * GIB:
            return chunk, large if tensor_parallel >= 4 else small
    raise AssertionError("the last row has no bound")


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Decode-graph sizes in rows: 1, 2, 4, 8, 12, then steps of 8 to 256, of 16 to 512, of 32 beyond."""
    sizes = {1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, largest + 1, 32), largest}
    return tuple(sorted(size for size in sizes if size <= largest))


def reserved_bytes(
    memory_bytes: int, chunk_tokens: int, ranks: int, graph_rows: int, data_parallel: int = 1
) -> int:
    """Memory that the default `mem_fraction_static` leaves for activations, communication and graphs [bytes]."""
    mib = _RESERVED_BASE + _RESERVED_PER_CHUNK_TOKEN * max(chunk_tokens, _RESERVED_LEAST_CHUNK)
    mib += ranks / 8 * _RESERVED_PER_EIGHT_RANKS + _RESERVED_PER_GRAPH_ROW * graph_rows
    if data_parallel > 1:
        mib += _RESERVED_PER_GRAPH_ROW_AND_RANK * graph_rows * data_parallel
    if memory_bytes > 60 * GIB:
        mib = max(mib, _RESERVED_LEAST_ON_LARGE)
    return int(mib * MIB)


def default_running(tokens: int, context_tokens: int) -> int:
    """Default `max_running_requests` for a KV cache of `tokens` and a context limit."""
    return max(1, min(max(2048, min(4096, tokens * 512 // context_tokens)), tokens // 2))


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of SGLang: memory, KV tokens, limits, graphs, overheads.

    Raises InfeasibleError if the weights do not fit or no KV cache is left, InputError on flags out of range.
    """
    version = ENGINE.version(version_text)
    flags = request.flags
    # states are float32 unless the flag says otherwise, whatever the model's config asks for (datasheet: `server_args.py`, 0.5)
    wide = str(flags.get("mamba_ssm_dtype") or "float32") == "float32"
    request = replace(request, arch=with_state_values(request.arch, 4 if wide else 2))
    arch = request.arch
    tp, pp, dp = request.tensor_parallel, request.pipeline_parallel, request.data_parallel
    warnings: list[str] = []
    routed = flags.get("moe_a2a_backend", "none") != "none"
    if routed and dp == 1:
        warnings.append("`moe_a2a_backend` is modelled between ranks of data-parallel attention, and changes nothing here")
    context = int(flags.get("context_length") or served_context(
        arch, flags.get("json_model_override_args") or {}, "json_model_override_args", warnings
    ))
    page = int(flags.get("page_size") or 1)
    default_chunk, default_graph = memory_defaults(request.device_memory_bytes, tp * dp)
    chunk = (
        int(flags["chunked_prefill_size"]) if flags.get("chunked_prefill_size") is not None else default_chunk
    )
    if chunk > 0:
        chunk = max(1, chunk // dp)  # the flag counts the tokens of all data-parallel ranks
    drafts = request.speculation
    asked_rows = flags.get("max_running_requests") or (DRAFTED_ROWS if drafts else None)
    if drafts and asked_rows:
        default_graph = min(default_graph, int(asked_rows))
    captured_rows = tuple(sorted(map(int, flags.get("cuda_graph_bs") or ())))
    graph_rows = int(flags.get("cuda_graph_max_bs") or max(captured_rows, default=default_graph))
    row_tokens = drafts.row_tokens if drafts else 1
    graphs = not flags.get("disable_cuda_graph", False)
    adapters = _adapters(request)
    lora_bytes = adapters.memory_bytes if adapters is not None else 0
    memory = _memory(request, chunk, graph_rows if graphs else 0, page, lora_bytes)
    tokens = memory.blocks * page
    if flags.get("max_total_tokens"):
        tokens = min(tokens, int(flags["max_total_tokens"]) // page * page)
    rows = max(1, int(asked_rows) // dp) if asked_rows else default_running(tokens, context)
    state = _state_bytes(request)
    if state:
        rows = min(rows, memory.bytes_of("state") // state // _slots_a_row(request))
    prefill_tokens = int(flags.get("max_prefill_tokens") or 16384)
    mixed = bool(flags.get("enable_mixed_chunk", False))
    number = ENGINE.parts(version_text or ENGINE.newest)
    overlap = not flags.get("disable_overlap_schedule", False)
    if drafts:
        overlap = overlap and overlaps(drafts, number, SPEC_V2.get(str(flags.get("enable_spec_v2"))))
    # filled once the model is launched, with and without overlap
    masks = TokenMasks(True, delays_next=overlap) if request.structured else None
    priority = bool(flags.get("enable_priority_scheduling", False))
    policy = str(flags.get("schedule_policy", "fcfs"))
    caching = not flags.get("disable_radix_cache", False)
    rules = PrefillFirstRules(
        max_running_requests=rows,
        max_model_len=context,
        max_prefill_tokens=prefill_tokens,
        chunked_prefill_size=chunk if chunk > 0 else None,
        in_flight=2 if overlap else 1,
        schedule_policy=policy,
        schedule_conservativeness=float(flags.get("schedule_conservativeness", 1.0))
        * (RANK_CONSERVATIVENESS if dp > 1 else 1.0),
        mixed_chunk=mixed and chunk > 0,
        priority_scheduling=priority,
        low_priority_values_first=bool(flags.get("schedule_low_priority_values_first", False)),
        preemption=priority and not flags.get("disable_priority_preemption", False),
        preemption_threshold=int(flags.get("priority_scheduling_preemption_threshold", 10)),
        prefill_max_requests=flags.get("prefill_max_requests"),
        receive_interval=int(flags.get("scheduler_recv_interval", 1)),
    )
    # the last prompt of a batch may exceed max_prefill_tokens, and is cut by the chunk alone
    largest = chunk if chunk > 0 else max(prefill_tokens, context)
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    captured = prefill_graph_tokens(request, version_text, chunk)
    host = replace(overheads.host, prefill_graph_tokens=captured)
    if not overlap:
        serial = ("serial_step_s", "serial_draft_s") if drafts and drafts.draft else ("serial_step_s",)
        host = replace(host, step_s=sum(float(overheads.provenance[name]["value"]) for name in serial))
    state_note = (
        f"recurrent layers: slots for {memory.bytes_of('state') // max(1, state)} states of {state / 1e6:,.0f} MB, "
        f"{_slots_a_row(request)} a request"
    )
    notes = (
        *((state_note,) if state else ()),
        *((COMPRESSED_NOTE,) if _compressed(arch) else ()),
        f"SGLang {version}: {tokens} KV tokens, {rows} rows, prefill of {largest} tokens a step",
        "SGLang's front end was measured with Llama-3.1-8B on eight GPUs, its host time of a step is assumed",
        f"CUDA graphs hold prefills of up to {captured} tokens" if captured else "no CUDA graph holds a prefill",
    )
    if drafts:
        ahead = "scheduled ahead" if overlap else "scheduled when the step before has ended (no overlap)"
        notes = (*notes, summary_note(drafts), *drafts.notes, f"SGLang {version_text or version} with drafts: steps are {ahead}")
    if adapters is not None:
        notes = (*notes, adapters_note(adapters))
    if masks is not None:
        notes = (*notes, masks_note(masks))
    sizes = captured_rows or (drafted_graph_rows(graph_rows) if drafts else graph_sizes(graph_rows))
    warn_of_attention(request, warnings)
    own_experts = experts(request, number, warnings)
    tiled = token_tiles(request, number, warnings)
    selected = selection_kernels(request, number, own_experts)
    launched, fused = as_run(request, number, own_experts)
    notes = (*notes, *fused)
    if own_experts:
        notes = (*notes, f"experts run on {EXPERTS[own_experts]} (SGLang's rule of version, model, format and GPU, or its flag)")
    if tiled:
        notes = (*notes, "products of FP8 blocks run on FlashInfer's TensorRT-LLM kernel, not on DeepGEMM: slow for prompts")
    first_use_s = float(own_overheads(ENGINE.name)["start_s"]["value"]) if own_experts == "triton" else 0.0
    if first_use_s:
        notes = (*notes, f"not counted: the first large prompts of a fresh server wait {first_use_s:.1f} s for Triton's kernels")
    decodes, handover, backing = request.role == "decode", None, 0
    if request.role != "mixed":
        handover = _handover(request, page)
        notes = (*notes, HANDOVER_NOTE)
    if decodes:
        backing = int(flags.get("num_reserved_decode_tokens", 512))
        caching = False
        host = replace(host, step_s=0.0, row_s=0.0)  # hidden behind the device's, as it is where batches are formed ahead
    tiers = tier_plan(request, tokens, memory.kv_bytes_per_token, page)
    if tiers is not None:
        notes = (*notes, *tiers.notes)
    rank = Rank(
        rules=rules,
        kv_tokens=tokens,
        page_tokens=page,
        prefix_caching=caching,
        eviction_policy=str(flags.get("radix_eviction_policy", "lru")),
        windows=arch.windows_below(context),
        role=request.role,
        decode=_reserving(flags, rows, context) if decodes else None,
        drafts=drafts,
        adapters=adapters.limits if adapters is not None else NO_ADAPTERS if masks is not None else None,
        tiers=tiers,
    )
    # the scheduler keeps a row within one token less than context and cache, and its last token is not stored
    held = min(context, rank.kv_tokens) - 1
    return EnginePlan(
        engine=ENGINE.name,
        version=version,
        limits=Limits(
            rows=rows,
            step_tokens=max(largest, rows * row_tokens),
            context_tokens=context,
            kv_tokens=rank.kv_tokens,
            kv_blocks=tokens // page,
            block_tokens=page,
            prompt_tokens=held - SPARE_TOKENS - 1,
            row_tokens=held - 1,
            request_tokens=rank.kv_tokens - backing if decodes else None,
            spare_tokens=2 * step_slots(drafts, page) if drafts else 0,
            page_after_prompt=True,
        ),
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(
            launched,
            request.formats,
            Terms(
                host,
                small_kernels=True,
                graph_sizes=tuple(row_tokens * size for size in sizes) if graphs else (),
                moe_backend=own_experts,
                expands_latents=True,
                absorbs_below=absorbs_below(request),
                absorbs_captured=absorbs_captured(request),
                fused_norm_tokens=fused_norm_tokens(request, number),
                moe_by_flag=bool(flags.get("moe_runner_backend")),
                gathered_bytes=DISPATCHED_BYTES.get(request.formats.weights.name, 2.0) if routed else 2.0,
                routed=routed,
                quantises=True,
                expert_launches=EXPERT_LAUNCHES.get(own_experts or "triton"),
                latent_launches=latent_launches(request),
                recurrent_launches=RECURRENT_LAUNCHES,
                selection_kernels=selected[0],
                selection_passes=selected[1],
                token_tiles=tiled,
            ),
            TableRange(max(largest, rows * row_tokens), rows, context),
            Parallelism(tp, pp, request.expert_parallel, dp),
            speculation=drafts,
            adapters=adapters,
            masks=masks,
        ),
        executor=Executor(
            depth=1 if decodes else rules.in_flight, ranks=dp, rank_router="round_robin", launches_ahead=overlap and not decodes
        ),
        front=_front_end(overheads, dp, int(flags.get("tokenizer_worker_num") or 1)),
        prefix_caching=caching,
        handover=handover,
        notes=notes,
        warnings=tuple(warnings),
        sources=overheads.provenance,
        tiers=tiers.kinds if tiers is not None else (),
        compiles=captured > 0,
        compiles_products=compiles_products(request, tiled=tiled),
        first_use_s=first_use_s,
    )


def _front_end(overheads: Overheads, ranks: int, workers: int) -> FrontEnd:
    """What stands before the schedulers: one process for all ranks unless ``--tokenizer-worker-num`` says otherwise."""
    loop = overheads.loop
    assert loop is not None
    loop = replace(loop, share=ranks / workers)
    return FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, loop=loop, tokenises_late=True)


HANDOVER_NOTE = (
    "SGLang's servers (rules read and recorded at 0.5.23) look for news every 1 ms (assumed), a request may reserve 65 ms after "
    "it has arrived: the handshake of its servers (measured); a decode server forms a batch when the one before it has ended, "
    "its host time hidden"
)
HANDSHAKE_S = 0.065
"""Between a request's arrival and the reservation of its memory [s]: bootstrap, messages between the servers, loops that poll all
ranks (measured: Mooncake's benchmark of SGLang, one prefill and one decode server of Qwen3-235B, has 126 to 134 ms to the
first token of prompts of 128 to 1,024 tokens, of which 2 to 4 are the transfer and 56 to 74 computing and front ends by
prediction: kvcache-ai/Mooncake@3b5a594, docs/source/performance/sglang/sglang-benchmark-results-v1.md). The recorded queues have
1 ms, since nothing there has to be sent."""
HEARTBEATS_S, WAITING_TIMEOUT_S = (5.0, 2), 300.0
"""Between two health checks of a prefill server by a decode server [s], and how many that fail let it fail the rooms of that
server; how long a reservation waits for its prompt [s] (datasheet: `SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL`,
`_HEARTBEAT_MAX_FAILURE`, `_WAITING_TIMEOUT` in `srt/environ.py`, read 2026-11). A transfer that fails lets the prefill server
free the prompt (`process_disagg_prefill_inflight_queue`), and whoever fails answers 500."""
CONNECTOR = "mooncake"
PREALLOCATED = 2
"""Rows that may hold memory beyond those that run, for each of these, where they are at most `MOST_PREALLOCATING` (datasheet:
SGLang 0.5.23 `pre_alloc_size`)."""
MOST_PREALLOCATING = 32
BUFFERS = 2
"""Metadata buffers of a decode server for each of its rows (datasheet: SGLang 0.5.23)."""


MOONCAKE_RATE_SHARE, MOONCAKE_PART_S = 0.78, 7e-6
"""Share of the network's rate that Mooncake reaches, and what each layer's keys or values add to a transfer [s] (measured: two
tables of kvcache-ai/Mooncake@3b5a594, `docs/source/performance`, 20 MB to 12.6 GB, one between SGLang servers over 4 x 400 GbE,
94 layers (0.84, 8.5 us), one between vLLM servers over 8 x RoCE, 36 layers (0.72, 5.6 us); the geometric means: 7 % off in the
median of 17 rows)."""


def _handover(request: PoolRequest, page: int) -> Handover:
    """How a pool with a role passes requests on; InputError where that is not modelled."""
    flags = request.flags
    connector = str(flags.get("disaggregation_transfer_backend") or request.connector or CONNECTOR)
    if request.connector not in (None, connector):
        raise InputError(
            f"disaggregation_transfer_backend is {connector}, deployment.transfer names {request.connector}",
            where="deployment.engine_args.disaggregation_transfer_backend",
            mend="name one connector in both, or leave one out",
        )
    if connector not in (CONNECTOR, "nixl"):
        raise InputError(
            f"prefill and decode pools over {connector} are not modelled",
            where="deployment.transfer.connector",
            mend=f"use {CONNECTOR} or nixl",
        )
    lacking = {
        "page_size above 1": page > 1,
        "pipeline parallelism": request.pipeline_parallel > 1,
        "recurrent layers": any(block.kind == "linear" for block in request.arch.attention),
        "disaggregation_decode_allocation_policy other than early": flags.get("disaggregation_decode_allocation_policy", "early")
        != "early",
        "disaggregation_decode_enable_radix_cache": bool(flags.get("disaggregation_decode_enable_radix_cache")),
        "disaggregation_decode_extra_slots": flags.get("disaggregation_decode_extra_slots") is not None,
        "disaggregation_decode_retraction_backup none": flags.get("disaggregation_decode_retraction_backup") == "none",
        "optimistic_prefill_attempts": bool(flags.get("optimistic_prefill_attempts")),
    }
    for words in (words for words, asked in lacking.items() if asked):
        raise InputError(
            f"prefill and decode pools with {words} are not modelled yet",
            where="deployment.role",
            mend="leave it out, or use pools of role: mixed",
        )
    drafts = request.speculation
    found = Handover(
        connector,
        page,
        reserves=True,
        whole_requests=True,
        # a drafter with layers has keys and values of the prompt too
        agreed={"drafter": drafts.method if drafts is not None and drafts.draft is not None else "none"},
        beats_s=HEARTBEATS_S,
        gives_up_s=WAITING_TIMEOUT_S,
    )
    if connector != CONNECTOR:
        return found
    parts = sum(block.layers * (1 if block.kind == "mla" else 2) for block in request.arch.attention)
    return replace(found, rate_share=MOONCAKE_RATE_SHARE, latency_s=MOONCAKE_PART_S * parts)


def _reserving(flags: Mapping[str, Any], rows: int, context: int) -> ReservingRules:
    return ReservingRules(
        max_running_requests=rows,
        pre_alloc_size=PREALLOCATED * rows if rows <= MOST_PREALLOCATING else 0,
        metadata_buffers=BUFFERS * rows,
        max_model_len=context,
        num_reserved_decode_tokens=int(flags.get("num_reserved_decode_tokens", 512)),
        polling_interval=int(flags.get("disaggregation_decode_polling_interval", 1)),
        receive_interval=int(flags.get("scheduler_recv_interval", 1)),
        handshake_s=HANDSHAKE_S,
    )


DISPATCHED_BYTES = {"fp8_block": 1.03125}
"""Weights of experts -> bytes of a value that is sent to an expert: FP8 with a scale of 4 bytes for 128 values, 2 where none is
given (datasheet: SGLang 0.5, `token_dispatcher/deepep.py`)."""
SLOTS_A_ROW, SLOTS_A_ROW_UNCACHED = 3, 1
"""States kept of a request with the radix cache (its own, that of the prefix it holds, one to be cached) and without it
(datasheet: SGLang 0.5, `model_runner_kv_cache_mixin.py`)."""
COMPRESSED_WINDOW_SHARE = 0.1
"""Tokens of the windows' pool over those of the compressed entries, for DeepSeek-V4 (`swa_full_tokens_ratio`; datasheet: SGLang
0.5, defaults of DeepSeek-V4)."""
COMPRESSED_NOTE = (
    "compressed attention: windows have a pool of a tenth of the tokens (SGLang's default), which never runs short (assumed)"
)


def _state_bytes(request: PoolRequest) -> int:
    return state_bytes_per_sequence(request.arch, request.tensor_parallel, request.pipeline_parallel)


def _state_slots(request: PoolRequest, state_bytes: int, free_bytes: int) -> int:
    """States that are kept: as many as asked for, else those of a share of the free memory (datasheet: as above)."""
    asked = request.flags.get("max_mamba_cache_size")
    ratio = float(request.flags.get("mamba_full_memory_ratio", 0.9))
    return int(asked) if asked else int(free_bytes * ratio / (1 + ratio) / state_bytes)


def _slots_a_row(request: PoolRequest) -> int:
    return SLOTS_A_ROW_UNCACHED if request.flags.get("disable_radix_cache", False) else SLOTS_A_ROW


def _compressed(arch: Architecture) -> bool:
    return any(block.entry_tokens > 1 for block in arch.attention)


LORA_PLACES = 8
"""`max_loras_per_batch` (datasheet: SGLang 0.5.23 `arg_groups/fields/lora.py`)."""


def _adapters(request: PoolRequest) -> Adapters | None:
    """Adapters of a pool, None where it serves none; InputError for what is not modelled."""
    if request.lora is None:
        return None
    # places for gate, up or down have room for those of all experts too (`lora/mem_pool.py`)
    targets = set(request.lora.get("target_modules") or ())
    everything = "all" in targets
    gate_up, down = everything or bool(targets & {"gate_proj", "up_proj"}), everything or "down_proj" in targets
    own = request.arch, request.tensor_parallel, request.expert_parallel, request.data_parallel
    return adapters_of(
        request.lora,
        request.arch,
        tensor_parallel=request.tensor_parallel,
        link_bytes_per_s=request.host_link_bytes_per_s,
        on_device=LORA_PLACES,
        pads_rank=False,
        counts_model=True,
        other_values=expert_values(*own, matrices=2 * gate_up + down),
    )


def _memory(request: PoolRequest, chunk: int, graph_rows: int, page: int, lora_bytes: int = 0) -> MemoryBudget:
    """KV bytes = free after the weights - (1 - mem_fraction_static) * free before them."""
    flags, arch = request.flags, request.arch
    tp, pp = request.tensor_parallel, request.pipeline_parallel
    device = request.device_memory_bytes
    given = flags.get("mem_fraction_static")
    dp = request.data_parallel
    # sized before the prefill chunk is divided among the ranks
    reserved = reserved_bytes(device, chunk * dp if chunk > 0 else chunk, tp * pp * dp, graph_rows, dp)
    fraction = float(given) if given is not None else (device - reserved) / device
    if not 0 < fraction < 1:
        raise InputError(
            f"mem_fraction_static {fraction:.2f} is not between 0 and 1",
            where="deployment.engine_args.mem_fraction_static",
            mend="give the fraction of device memory for weights and KV cache, such as 0.88",
        )
    free = device - int(CONTEXT_BYTES)
    usable = int(fraction * free)
    # under data-parallel attention dense MLPs, shared experts and the LM head stay split over all ranks
    weights = weight_bytes_per_rank(
        arch, request.formats.weights, tp, pp, request.expert_parallel, dp, dense_parallel=tp * dp
    )
    groups = kv_groups(arch, request.formats.kv_cache, tp, pp)
    share = COMPRESSED_WINDOW_SHARE if _compressed(arch) else 1
    per_token = math.ceil(sum(g.bytes_per_token_per_rank * (share if g.window_tokens else 1) for g in groups))
    drafter = request.speculation
    draft_weights = drafter.weight_bytes() if drafter else 0
    if drafter:
        per_token = math.ceil(per_token * (1 + kv_share_of_drafter(drafter, arch)))
    block = int(per_token * page)
    state = _state_bytes(request)
    slots = _state_slots(request, state, usable - weights) if state else 0
    kv = usable - weights - draft_weights - lora_bytes - slots * state
    lack = weights + draft_weights + lora_bytes + block - usable
    if kv < block or (state and slots < _slots_a_row(request)):
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device, {usable / 1e9:.1f} GB usable "
            f"({fraction:.0%} of {free / 1e9:.1f} GB); {lack / 1e9:.1f} GB too much on each of "
            f"{tp * pp * dp} devices",
            where="deployment",
            mend=request.more_memory,
        )
    return MemoryBudget(
        device_bytes=device,
        usable_bytes=device,
        lines=(
            MemoryLine("weight", "weights", weights),
            *((MemoryLine("draft", "weights of the drafter", draft_weights),) if draft_weights else ()),
            *((MemoryLine("lora", "places for LoRA adapters", lora_bytes),) if lora_bytes else ()),
            *((MemoryLine("state", "states of recurrent layers", slots * state),) if state else ()),
            MemoryLine("activation", "reserve for activations, graphs", free - usable),
            MemoryLine("other", "CUDA context, collectives", int(CONTEXT_BYTES)),
        ),
        kv_bytes=kv,
        kv_bytes_per_token=per_token,
        block_bytes=block,
        blocks=kv // block,
    )


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from its version and the knobs of its `config` line."""
    ENGINE.version(version_text)
    depth = 2 if knobs.get("overlap") else 1
    chunk = knobs.get("chunked_prefill_size") or -1
    priority = bool(knobs.get("enable_priority_scheduling", False))
    rules = PrefillFirstRules(
        max_running_requests=knobs["max_running_requests"],
        max_model_len=knobs["max_context_len"],
        max_prefill_tokens=knobs["max_prefill_tokens"],
        chunked_prefill_size=chunk if chunk > 0 else None,
        in_flight=depth,
        schedule_policy=knobs.get("schedule_policy", "fcfs"),
        schedule_conservativeness=knobs.get("schedule_conservativeness", 1.0),
        mixed_chunk=knobs.get("enable_mixed_chunk", False) and chunk > 0,
        ignore_eos=knobs.get("ignore_eos", False),
        priority_scheduling=priority,
        low_priority_values_first=knobs.get("schedule_low_priority_values_first", False),
        preemption=priority and not knobs.get("disable_priority_preemption", False),
        preemption_threshold=knobs.get("priority_scheduling_preemption_threshold", 10),
        prefill_max_requests=knobs.get("prefill_max_requests"),
    )
    rank = Rank(
        rules,
        kv_tokens=knobs["max_total_num_tokens"],
        page_tokens=knobs.get("page_size", 1),
        prefix_caching=not knobs.get("disable_radix_cache", False),
        eviction_policy=knobs.get("radix_eviction_policy", "lru"),
    )
    columns = ("sched", "retracted", "preempted", "hits", "free_tokens", "evictable")
    return Replay(rank.scheduler("record"), depth, columns, _recorder())


def _recorder() -> Callable[[Batch, Mapping[int, str]], dict[str, Any]]:
    """What writes the steps of one recording."""
    cut: set[Sequence] = set()  # rows whose prompt was computed in pieces

    def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
        assert isinstance(batch, PrefillFirstBatch)
        assert batch.rows is not None
        # the recorder names as a hit whatever a row of a prefill batch already has, unless its prompt was cut
        hits = {}
        if batch.mode != "DECODE":
            hits = {ids[s.index]: before for s, _, before in batch.rows if before and s not in cut}
        if batch.chunked is not None:
            cut.add(batch.chunked)
        retracted = set(batch.retracted)
        return {
            "sched": [[ids[s.index], n, before] for s, n, before in batch.rows],
            "hits": hits,
            "retracted": [ids[s.index] for s in batch.retracted],
            "preempted": [ids[s.index] for s in batch.preempted if s not in retracted],
            "free_tokens": batch.free_tokens,
            "evictable": batch.evictable_tokens,
            "mode": batch.mode,
            "chunked": ids[batch.chunked.index] if batch.chunked is not None else None,
            "batch_is_full": batch.batch_is_full,
            "new_token_ratio": round(batch.new_token_ratio, 9),
        }

    return as_recorded


def pair_replay(version_text: str, knobs: Mapping[str, Any]) -> PairReplay:
    """The schedulers of a recorded prefill and a recorded decode server; a recording has one of them."""
    ENGINE.version(version_text)
    tokens, page, rows = knobs["max_total_num_tokens"], knobs.get("page_size", 1), knobs["max_running_requests"]

    def prefill() -> Peer:
        chunk = knobs.get("chunked_prefill_size") or -1
        rules = PrefillFirstRules(
            max_running_requests=rows,
            max_model_len=knobs["context_len"],
            max_prefill_tokens=knobs["max_prefill_tokens"],
            chunked_prefill_size=chunk if chunk > 0 else None,
            schedule_policy=knobs.get("schedule_policy", "fcfs"),
        )
        return SendingPrefillScheduler(
            rules, RadixPool(tokens, page), metadata_buffers=knobs["metadata_buffers"], record_rows=True
        )

    def decode() -> Peer:
        rules = ReservingRules(
            max_running_requests=rows,
            pre_alloc_size=knobs["pre_alloc_size"],
            metadata_buffers=knobs["metadata_buffers"],
            max_model_len=knobs["context_len"],
            num_reserved_decode_tokens=knobs.get("num_reserved_decode_tokens", 512),
            polling_interval=knobs.get("polling_interval", 1),
        )
        return ReservingDecodeScheduler(rules, RadixPool(tokens, page, prefix_caching=False), record_rows=True)

    return PairReplay(prefill, decode, PairRecorder)


_DOCS = "SGLang's docs/advanced_features/quantization.md (public copy, read 2026-11); apu: assumed as gpu"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu", "apu"})

ENGINE = Engine(
    name="sglang",
    title="SGLang",
    rule=(
        "Prompts before answers over a radix tree of cached prefixes: whenever a prompt can be admitted, decoding "
        "waits. Admission weighs what running rows may still generate by a falling ratio; when memory runs out, rows "
        "are retracted and computed again."
    ),
    versions=VERSIONS,
    oldest="0.5",
    devices=dict.fromkeys(("gpu", "apu"), _DOCS),
    formats={name: Support(_KINDS, _DOCS) for name in FORMATS},
    kv_formats=("fp8", "nvfp4"),
    features={
        "offload": Support(_KINDS, "SGLang 0.5's HiCache (mem_cache/hiradix_cache.py)"),
        "handover": Support(_KINDS, "SGLang 0.5.23's srt/disaggregation"),
        "speculative": Support(_KINDS, "SGLang 0.5.23's srt/speculative"),
        "lora": Support(_KINDS, "SGLang 0.5.23's srt/lora"),
        "structured": Support(_KINDS, "SGLang 0.5.23's srt/constrained"),
    },
    drafts=draft_defaults,
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_running_requests",
        "context": "context_length",
        "step_tokens": "chunked_prefill_size",
        "memory_share": "mem_fraction_static",
        "block": "page_size",
        "tensor_ranks": "tp_size",
        "data_ranks": "dp_size",
        "no_prefix_cache": "disable_radix_cache",
        "no_graphs": "disable_cuda_graph",
        "graph_rows": "cuda_graph_max_bs",
    },
    kernels="sglang",
    overheads_from="vllm",
    plan=plan,
    replay=replay,
    pair_replay=pair_replay,
    lockstep=Lockstep(
        # taken as given where the experts are spread over more ranks than tensor parallelism has
        applies=lambda flags, tensor_parallel, expert_ranks: bool(
            dp_attention(flags) or expert_ranks > tensor_parallel
        ),
        launch=lambda devices, ranks: f"SGLang: --tp-size {devices} --dp-size {ranks} --enable-dp-attention",
        dense="assumed; SGLang splits them over all",
    ),
)
