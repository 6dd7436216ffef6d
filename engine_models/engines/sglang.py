"""SGLang: what it is in terms of the shared parts, its defaults, memory and flags.

Memory is in `sglang_memory`, ranks in `sglang_ranks`, pairs of servers in `sglang_handover`. The scheduling rule is
`engine_models.schedulers.prefill_first`, the cache `engine_models.memory.radix`.

Behaviour and defaults of SGLang 0.5.23 (`managers/scheduler.py`, `managers/schedule_policy.py`, `arg_groups/memory_hook.py`,
`arg_groups/cuda_graph_hook.py`, `arg_groups/fields`); scheduling checked step by step against recordings of the real
scheduler (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine_models.cost import marlin
from engine_models.cost.adapters import Adapters, adapters_of, expert_values
from engine_models.cost.adapters import summary_note as adapters_note
from engine_models.cost.drafting import summary_note
from engine_models.cost.overheads import Overheads, load_overheads, own_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import HostOverhead, Parallelism, Terms
from engine_models.cost.token_masks import TokenMasks
from engine_models.cost.token_masks import summary_note as masks_note
from engine_models.declaration import (
    Engine,
    EnginePlan,
    Executor,
    FrontEnd,
    Limits,
    Lockstep,
    MemoryBudget,
    PairReplay,
    PoolRequest,
    Replay,
    Said,
    Support,
)
from engine_models.engines.sglang_drafts import (
    DRAFTED_ROWS,
    draft_defaults,
    drafted_graph_rows,
    overlaps,
    step_slots,
)
from engine_models.engines.sglang_flags import FLAGS, SPEC_V2, dp_attention
from engine_models.engines.sglang_handover import HANDOVER_NOTE, handover_of, reserving
from engine_models.engines.sglang_kernels import (
    EXPERT_LAUNCHES,
    EXPERTS,
    RECURRENT_LAUNCHES,
    absorbs_below,
    absorbs_captured,
    as_run,
    compiles_products,
    copies_heads,
    experts,
    fused_norm_tokens,
    latent_launches,
    selection_kernels,
    token_tiles,
    warn_of_attention,
)
from engine_models.engines.sglang_memory import (
    caches_states_alone,
    compressed,
    default_running,
    kv_format,
    memory_defaults,
    memory_of,
    slots_a_row,
    state_bytes,
)
from engine_models.engines.sglang_ranks import Rank, pair_replay_of, replay_of
from engine_models.engines.sglang_tiers import tier_plan
from engine_models.model.architecture import (
    with_state_values,
)
from engine_models.model.blocks import Architecture
from engine_models.model.formats import FORMATS
from engine_models.model.overrides import served_context
from engine_models.parts.adapters import NO_ADAPTERS
from engine_models.schedulers.prefill_first import PrefillFirstRules
from hardware_profiles.device import DeviceKind, load_device
from hardware_profiles.errors import InputError

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


SPARE_TOKENS = 5
"""Tokens that the scheduler keeps free behind a prompt (``max_req_input_len``; datasheet: SGLang 0.5 source, 2025)."""


def prefill_graph_tokens(request: PoolRequest, version: tuple[int, ...], chunk_tokens: int) -> int:
    """Most tokens of a prefill that a CUDA graph holds, 0 if none does.

    Prefills are captured by default since 0.5.10, before with `enable_piecewise_cuda_graph`; over the stages of a pipeline only
    up to the tokens that are asked for, never under data-parallel attention.
    """
    flags = request.flags
    new = version >= PREFILL_GRAPHS_SINCE
    wanted = not flags.get("disable_piecewise_cuda_graph", False) and (
        new or flags.get("enable_piecewise_cuda_graph", False)
    )
    if not wanted or request.data_parallel > 1 or flags.get("disable_cuda_graph", False):
        return 0
    if flags.get("piecewise_cuda_graph_max_tokens"):
        return int(flags["piecewise_cuda_graph_max_tokens"])
    if request.pipeline_parallel > 1:
        return 0
    mla = any(block.kind == "mla" for block in request.arch.attention)
    return PREFILL_GRAPH_TOKENS_MLA if mla or chunk_tokens <= 0 else chunk_tokens


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Decode-graph sizes in rows: 1, 2, 4, 8, 12, then steps of 8 to 256, of 16 to 512, of 32 beyond."""
    sizes = {1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, largest + 1, 32), largest}
    return tuple(sorted(size for size in sizes if size <= largest))


@dataclass(frozen=True)
class Serving:
    """What the flags of a pool say of its steps.

    context : longest request. page : tokens of the cache's. chunk : tokens that a prompt is cut to, a rank; not positive: it is
    not. asked_rows : rows asked for, of all ranks. graphs : captured rows; `graph_rows` the most of them. overlap : batches are
    formed ahead. routed : tokens are sent to their experts' ranks.
    """

    context: int
    page: int
    chunk: int
    prefill_tokens: int
    asked_rows: int | None
    row_tokens: int
    graph_rows: int
    graphs: tuple[int, ...]
    prompt_graph_tokens: int
    overlap: bool
    routed: bool

    @property
    def largest_prefill(self) -> int:
        """Tokens of prompts in a step: the last of a batch may exceed `max_prefill_tokens`, and is cut by the chunk alone."""
        return self.chunk if self.chunk > 0 else max(self.prefill_tokens, self.context)


def _serving(request: PoolRequest, number: tuple[int, ...], said: Said) -> Serving:
    """Read the flags."""
    flags, drafts, dp = request.flags, request.speculation, request.data_parallel
    routed = flags.get("moe_a2a_backend", "none") != "none"
    if routed and dp == 1:
        said.warnings.append("`moe_a2a_backend` is modelled between ranks of data-parallel attention, and changes nothing here")
    context = int(flags.get("context_length") or served_context(
        request.arch, flags.get("json_model_override_args") or {}, "json_model_override_args", said.warnings
    ))
    default_chunk, default_graph = memory_defaults(request.device_memory_bytes, request.tensor_parallel * dp)
    chunk = (
        int(flags["chunked_prefill_size"]) if flags.get("chunked_prefill_size") is not None else default_chunk
    )
    if chunk > 0:
        chunk = max(1, chunk // dp)  # the flag counts the tokens of all data-parallel ranks
    asked_rows = flags.get("max_running_requests") or (DRAFTED_ROWS if drafts else None)
    if drafts and asked_rows:
        default_graph = min(default_graph, int(asked_rows))
    captured = tuple(sorted(map(int, flags.get("cuda_graph_bs") or ())))
    graph_rows = int(flags.get("cuda_graph_max_bs") or max(captured, default=default_graph))
    row_tokens = drafts.row_tokens if drafts else 1
    sizes = captured or (drafted_graph_rows(graph_rows) if drafts else graph_sizes(graph_rows))
    on = not flags.get("disable_cuda_graph", False)
    overlap = not flags.get("disable_overlap_schedule", False) and request.pipeline_parallel == 1
    if overlap and caches_states_alone(request, number):
        overlap = False
        said.notes.append("states of recurrent layers are cached without a second buffer, so that no step is formed ahead")
    if drafts:
        overlap = overlap and overlaps(drafts, number, SPEC_V2.get(str(flags.get("enable_spec_v2"))))
    return Serving(
        context,
        int(flags.get("page_size") or 1),
        chunk,
        int(flags.get("max_prefill_tokens") or 16384),
        int(asked_rows) if asked_rows else None,
        row_tokens,
        graph_rows if on else 0,
        tuple(row_tokens * size for size in sizes) if on else (),
        prefill_graph_tokens(request, number, chunk),
        overlap,
        routed,
    )


def _rows(request: PoolRequest, serving: Serving, memory: MemoryBudget, tokens: int) -> int:
    """Rows of a rank at most. A limit of micro-batches holds without a pipeline too, whose one batch it then is
    (`get_num_allocatable_reqs`, 0.5.23)."""
    asked, state = serving.asked_rows, state_bytes(request)
    rows = max(1, asked // request.data_parallel) if asked else default_running(tokens, serving.context)
    if request.pipeline_parallel == 1:
        rows = min(rows, int(request.flags.get("pp_max_micro_batch_size") or rows))
    return min(rows, memory.bytes_of("state") // state // slots_a_row(request)) if state else rows


def _rules(request: PoolRequest, serving: Serving, rows: int) -> PrefillFirstRules:
    flags, chunk = request.flags, serving.chunk
    priority = bool(flags.get("enable_priority_scheduling", False))
    return PrefillFirstRules(
        max_running_requests=rows,
        max_model_len=serving.context,
        max_prefill_tokens=serving.prefill_tokens,
        chunked_prefill_size=chunk if chunk > 0 else None,
        in_flight=2 if serving.overlap else 1,
        schedule_policy=str(flags.get("schedule_policy", "fcfs")),
        schedule_conservativeness=float(flags.get("schedule_conservativeness", 1.0))
        * (RANK_CONSERVATIVENESS if request.data_parallel > 1 else 1.0),
        mixed_chunk=bool(flags.get("enable_mixed_chunk", False)) and chunk > 0,
        priority_scheduling=priority,
        low_priority_values_first=bool(flags.get("schedule_low_priority_values_first", False)),
        preemption=priority and not flags.get("disable_priority_preemption", False),
        preemption_threshold=int(flags.get("priority_scheduling_preemption_threshold", 10)),
        prefill_max_requests=flags.get("prefill_max_requests"),
        receive_interval=int(flags.get("scheduler_recv_interval", 1)),
    )


def _host(request: PoolRequest, serving: Serving, overheads: Overheads) -> HostOverhead:
    """What the host takes of a step."""
    drafts = request.speculation
    host = replace(overheads.host, prefill_graph_tokens=serving.prompt_graph_tokens)
    if not serving.overlap:
        serial = ("serial_step_s", "serial_draft_s") if drafts and drafts.draft else ("serial_step_s",)
        host = replace(host, step_s=sum(float(overheads.provenance[name]["value"]) for name in serial))
    if request.role == "decode":
        host = replace(host, step_s=0.0, row_s=0.0)  # hidden behind the device's, as it is where batches are formed ahead
    return host


def _say_steps(
    request: PoolRequest, version: str, serving: Serving, memory: MemoryBudget, limits: tuple[int, int], said: Said
) -> None:
    """What is assumed of memory and steps; `limits` are tokens of the cache and rows."""
    (tokens, rows), state, captured = limits, state_bytes(request), serving.prompt_graph_tokens
    if state:
        said.notes.append(
            f"recurrent layers: slots for {memory.bytes_of('state') // max(1, state)} states of {state / 1e6:,.0f} MB, "
            f"{slots_a_row(request)} a request"
        )
    if compressed(request.arch):
        said.notes.append(COMPRESSED_NOTE)
    said.notes += [
        f"SGLang {version}: {tokens} KV tokens, {rows} rows, prefill of {serving.largest_prefill} tokens a step",
        "SGLang's front end was measured with Llama-3.1-8B on eight GPUs, its host time of a step is assumed",
        f"CUDA graphs hold prefills of up to {captured} tokens" if captured else "no CUDA graph holds a prefill",
    ]


def _kv_tokens(request: PoolRequest, serving: Serving, memory: MemoryBudget) -> int:
    """Tokens of the KV cache, whole pages."""
    tokens, asked = memory.blocks * serving.page, request.flags.get("max_total_tokens")
    return min(tokens, int(asked) // serving.page * serving.page) if asked else tokens


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of SGLang: memory, KV tokens, limits, graphs, overheads.

    Raises InfeasibleError if the weights do not fit or no KV cache is left, InputError on flags out of range.
    """
    version, number, said = ENGINE.version(version_text), ENGINE.parts(version_text or ENGINE.newest), Said()
    flags, drafts = request.flags, request.speculation
    # states are float32 unless the flag says otherwise, whatever the model's config asks for (datasheet: `server_args.py`, 0.5)
    wide = str(flags.get("mamba_ssm_dtype") or "float32") == "float32"
    request = replace(request, arch=with_state_values(request.arch, 4 if wide else 2))
    serving = _serving(request, number, said)
    adapters = _adapters(request)
    lora_bytes = adapters.memory_bytes if adapters is not None else 0
    memory = memory_of(request, serving.chunk, serving.graph_rows, serving.page, lora_bytes)
    tokens = _kv_tokens(request, serving, memory)
    rows = _rows(request, serving, memory, tokens)
    _say_steps(request, version, serving, memory, (tokens, rows), said)
    if drafts:
        ahead = "scheduled ahead" if serving.overlap else "scheduled when the step before has ended (no overlap)"
        said.notes += [summary_note(drafts), *drafts.notes, f"SGLang {version_text or version} with drafts: steps are {ahead}"]
    if adapters is not None:
        said.notes.append(adapters_note(adapters))
    # filled once the model is launched, with and without overlap
    masks = TokenMasks(True, delays_next=serving.overlap) if request.structured else None
    if masks is not None:
        said.notes.append(masks_note(masks))
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    launched, terms = _terms(request, number, serving, _host(request, serving, overheads), said)
    first_use_s = float(own_overheads(ENGINE.name)["start_s"]["value"]) if terms.moe_backend == "triton" else 0.0
    if first_use_s:
        said.notes.append(f"not counted: the first large prompts of a fresh server wait {first_use_s:.1f} s for Triton's kernels")
    decodes = request.role == "decode"
    handover = handover_of(request, serving.page) if request.role != "mixed" else None
    if handover is not None:
        said.notes.append(HANDOVER_NOTE)
    tiers = tier_plan(request, tokens, memory.kv_bytes_per_token, serving.page)
    if tiers is not None:
        said.notes += tiers.notes
    stages = request.pipeline_parallel
    lanes = stages + int(flags.get("pp_async_batch_depth") or 0) if stages > 1 else 1
    if stages > 1 and drafts:
        raise InputError(
            "speculative decoding beside pipeline parallelism is not modelled for SGLang yet",
            where="deployment.pipeline_parallel",
            mend="use tensor_parallel for the devices instead",
        )
    if stages > 1:
        said.notes.append(f"{lanes} micro-batches take turns on {stages} stages; no step is formed ahead of its lane's results")
    rank = Rank(
        rules=_rules(request, serving, rows),
        kv_tokens=tokens,
        page_tokens=serving.page,
        prefix_caching=not flags.get("disable_radix_cache", False) and not decodes,
        eviction_policy=str(flags.get("radix_eviction_policy", "lru")),
        windows=request.arch.windows_below(serving.context),
        role=request.role,
        decode=reserving(flags, rows, serving.context) if decodes else None,
        drafts=drafts,
        adapters=adapters.limits if adapters is not None else NO_ADAPTERS if masks is not None else None,
        tiers=tiers,
        lanes=lanes,
        lane_rows=int(flags.get("pp_max_micro_batch_size") or max(1, rows // stages)),
    )
    step_tokens = max(serving.largest_prefill, rows * serving.row_tokens)
    return EnginePlan(
        engine=ENGINE.name,
        version=version,
        limits=_limits(request, rank, step_tokens),
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(
            launched,
            request.formats,
            terms,
            TableRange(step_tokens, rows, serving.context),
            Parallelism(
                request.tensor_parallel, request.pipeline_parallel, request.expert_parallel, request.data_parallel
            ),
            speculation=drafts,
            adapters=adapters,
            masks=masks,
        ),
        executor=Executor(
            depth=1 if decodes else max(lanes, rank.rules.in_flight),
            stages=stages,
            ranks=request.data_parallel,
            rank_router="round_robin",
            launches_ahead=serving.overlap and not decodes,
        ),
        front=_front_end(overheads, request.data_parallel, int(flags.get("tokenizer_worker_num") or 1)),
        prefix_caching=rank.prefix_caching,
        handover=handover,
        notes=tuple(said.notes),
        warnings=tuple(said.warnings),
        sources=overheads.provenance,
        tiers=tiers.kinds if tiers is not None else (),
        compiles=serving.prompt_graph_tokens > 0,
        compiles_products=compiles_products(request, tiled=terms.token_tiles),
        first_use_s=first_use_s,
    )


def _terms(
    request: PoolRequest, number: tuple[int, ...], serving: Serving, host: HostOverhead, said: Said
) -> tuple[Architecture, Terms]:
    """The model as the engine's kernels compute it, and what it decides about the time of a step."""
    warn_of_attention(request, said.warnings)
    own_experts = experts(request, number, said.warnings)
    tiled = token_tiles(request, number, said.warnings)
    kernels, passes = selection_kernels(request, number, own_experts)
    launched, fused = as_run(request, number, own_experts)
    said.notes += fused
    if own_experts:
        said.notes.append(f"experts run on {EXPERTS[own_experts]} (SGLang's rule of version, model, format and GPU, or its flag)")
    if tiled:
        said.notes.append("products of FP8 blocks run on FlashInfer's TensorRT-LLM kernel, not on DeepGEMM: slow for prompts")
    return launched, Terms(
        host,
        small_kernels=True,
        graph_sizes=serving.graphs,
        moe_backend=own_experts,
        expands_latents=True,
        absorbs_below=absorbs_below(request),
        absorbs_captured=absorbs_captured(request),
        fused_norm_tokens=fused_norm_tokens(request, number),
        moe_by_flag=bool(request.flags.get("moe_runner_backend")),
        gathered_bytes=DISPATCHED_BYTES.get(request.formats.weights.name, 2.0) if serving.routed else 2.0,
        routed=serving.routed,
        exchanges_over_all=request.data_parallel > 1 and not serving.routed and own_experts != "cutlass",
        quantises=True,
        marlin_share=marlin.share_of(load_device(request.device_name), request.formats.weights),
        expert_launches=EXPERT_LAUNCHES.get(own_experts or "triton"),
        latent_launches=latent_launches(request),
        recurrent_launches=RECURRENT_LAUNCHES,
        selection_kernels=kernels,
        selection_passes=passes,
        token_tiles=tiled,
        copies_heads=copies_heads(request, number),
    )


def _limits(request: PoolRequest, rank: Rank, step_tokens: int) -> Limits:
    """What a rank holds at most: it keeps a row within one token less than context and cache, the last of which is not stored."""
    context, page, drafts = rank.rules.max_model_len, rank.page_tokens, rank.drafts
    held = min(context, rank.kv_tokens) - 1
    backing = rank.decode.num_reserved_decode_tokens if rank.decode is not None else None
    return Limits(
        rows=rank.rules.max_running_requests,
        step_tokens=step_tokens,
        context_tokens=context,
        kv_tokens=rank.kv_tokens,
        kv_blocks=rank.kv_tokens // page,
        block_tokens=page,
        prompt_tokens=held - SPARE_TOKENS - 1,
        row_tokens=held - 1,
        request_tokens=rank.kv_tokens - backing if backing is not None else None,
        spare_tokens=2 * step_slots(drafts, page) if drafts else 0,
        page_after_prompt=True,
    )


def _front_end(overheads: Overheads, ranks: int, workers: int) -> FrontEnd:
    """What stands before the schedulers: one process for all ranks unless ``--tokenizer-worker-num`` says otherwise."""
    loop = overheads.loop
    assert loop is not None
    loop = replace(loop, share=ranks / workers)
    return FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, loop=loop, tokenises_late=True)


DISPATCHED_BYTES = {"fp8_block": 1.03125}
"""Weights of experts -> bytes of a value that is sent to an expert: FP8 with a scale of 4 bytes for 128 values, 2 where none is
given (datasheet: SGLang 0.5, `token_dispatcher/deepep.py`)."""
COMPRESSED_NOTE = (
    "compressed attention: windows have a pool of a tenth of the tokens (SGLang's default), which never runs short (assumed)"
)


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


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from its version and the knobs of its `config` line."""
    ENGINE.version(version_text)
    return replay_of(knobs)


def pair_replay(version_text: str, knobs: Mapping[str, Any]) -> PairReplay:
    """The schedulers of a recorded prefill and a recorded decode server; a recording has one of them."""
    ENGINE.version(version_text)
    return pair_replay_of(knobs)


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
    kv_format=kv_format,
    features={
        "offload": Support(_KINDS, "SGLang 0.5's HiCache (mem_cache/hiradix_cache.py)"),
        "handover": Support(_KINDS, "SGLang 0.5.23's srt/disaggregation"),
        "speculative": Support(_KINDS, "SGLang 0.5.23's srt/speculative"),
        "lora": Support(_KINDS, "SGLang 0.5.23's srt/lora"),
        "structured": Support(_KINDS, "SGLang 0.5.23's srt/constrained"),
        "pipeline_parallel": Support(_KINDS, "SGLang 0.5.23's srt/managers/scheduler_pp_mixin.py"),
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
