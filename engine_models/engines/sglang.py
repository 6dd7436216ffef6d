"""SGLang: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.prefill_first`, the cache `engine_models.memory.radix`.

Behaviour and defaults of SGLang 0.5.23 (`managers/scheduler.py`, `managers/schedule_policy.py`, `arg_groups/memory_hook.py`,
`arg_groups/cuda_graph_hook.py`, `arg_groups/fields`); scheduling checked step by step against recordings of the real
scheduler (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.declaration import (
    EnginePlan,
    Executor,
    FrontEnd,
    Limits,
    MemoryBudget,
    MemoryLine,
    Mode,
    PoolRequest,
)
from engine_models.flags import Flag, FlagTable, by_arity
from engine_models.memory.radix import EVICTION_POLICIES, RadixPool
from engine_models.model.architecture import kv_groups, weight_bytes_per_rank
from engine_models.model.formats import format_named
from engine_models.schedulers.prefill_first import POLICIES, PrefillFirstRules, PrefillFirstScheduler
from hardware_profiles.errors import InfeasibleError, InputError

GIB = 1 << 30
MIB = 1 << 20
NEWEST = "0.5.23"
VERSIONS = (NEWEST,)

PREFILL_GRAPHS_SINCE = (0, 5, 10)
"""First version that captures prefills unless told otherwise (datasheet: release notes of v0.5.10, 2026-04, and pull request
16331)."""
PREFILL_GRAPH_TOKENS_MLA = 2048
"""Largest captured prefill of a model with latent attention [tokens]; of others the prefill chunk (datasheet: SGLang's
documentation of 2026-04)."""

CONTEXT_BYTES = 0.25e9  # CUDA context and allocator slack before the weights; assumed equal to vLLM's fitted value, 2026-11

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

    def scheduler(self, mode: Mode) -> PrefillFirstScheduler:
        """Build a scheduler with its cache."""
        kv = RadixPool(
            self.kv_tokens,
            self.page_tokens,
            prefix_caching=self.prefix_caching,
            eviction_policy=self.eviction_policy,
        )
        return PrefillFirstScheduler(self.rules, kv, aggregate=mode != "step", record_rows=mode == "record")


def version_of(text: str | None) -> str:
    """Return the declared version that stands for `text` (None: the newest); InputError if `text` is no version."""
    if text is None:
        return NEWEST
    if _parts(text) < (0, 5):
        raise InputError(
            f"SGLang {text} is older than the modelled {NEWEST}",
            mend=f"use sglang@{NEWEST}, or leave the version out",
        )
    return NEWEST


def _parts(text: str) -> tuple[int, ...]:
    """Return the numbers of a version; InputError if it is none."""
    try:
        return tuple(int(part) for part in text.lstrip("v").partition(".post")[0].split("."))
    except ValueError:
        raise InputError(
            f"'{text}' is not an SGLang version", mend=f"write it as in sglang@{NEWEST}, or leave it out"
        ) from None


def prefill_graph_tokens(request: PoolRequest, version_text: str | None, chunk_tokens: int) -> int:
    """Most tokens of a prefill that a CUDA graph holds, 0 if none does.

    Prefills are captured by default since 0.5.10, before with `enable_piecewise_cuda_graph`; never under data-parallel attention.
    """
    flags = request.flags
    new = _parts(version_text or NEWEST) >= PREFILL_GRAPHS_SINCE
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
    version = version_of(version_text)
    arch, flags = request.arch, request.flags
    tp, pp, dp = request.tensor_parallel, request.pipeline_parallel, request.data_parallel
    if pp > 1:
        raise InputError(
            "pipeline parallelism is not modelled for SGLang",
            where="deployment.pipeline_parallel",
            mend="use tensor_parallel, or several replicas",
        )
    warnings: list[str] = []
    context = int(flags.get("context_length") or arch.max_context_tokens)
    page = int(flags.get("page_size") or 1)
    default_chunk, default_graph = memory_defaults(request.device_memory_bytes, tp * dp)
    chunk = (
        int(flags["chunked_prefill_size"]) if flags.get("chunked_prefill_size") is not None else default_chunk
    )
    if chunk > 0:
        chunk = max(1, chunk // dp)  # the flag counts the tokens of all data-parallel ranks
    graph_rows = int(flags.get("cuda_graph_max_bs") or default_graph)
    graphs = not flags.get("disable_cuda_graph", False)
    memory = _memory(request, chunk, graph_rows if graphs else 0, page)
    tokens = memory.blocks * page
    if flags.get("max_total_tokens"):
        tokens = min(tokens, int(flags["max_total_tokens"]) // page * page)
    asked_rows = flags.get("max_running_requests")
    rows = max(1, int(asked_rows) // dp) if asked_rows else default_running(tokens, context)
    prefill_tokens = int(flags.get("max_prefill_tokens") or 16384)
    mixed = bool(flags.get("enable_mixed_chunk", False))
    overlap = not flags.get("disable_overlap_schedule", False)
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
    overheads = load_overheads("sglang")
    captured = prefill_graph_tokens(request, version_text, chunk)
    host = replace(overheads.host, prefill_graph_tokens=captured)
    if not overlap:
        host = replace(host, step_s=float(overheads.provenance["serial_step_s"]["value"]))
    notes = (
        f"SGLang {version}: {tokens} KV tokens, {rows} rows, prefill of {largest} tokens a step",
        "SGLang's front end was measured with DeepSeek-R1, its host time of a step with Llama-3.1-8B; assumed to hold elsewhere",
        f"CUDA graphs hold prefills of up to {captured} tokens" if captured else "no CUDA graph holds a prefill",
    )
    rank = Rank(
        rules=rules,
        kv_tokens=tokens // page * page,
        page_tokens=page,
        prefix_caching=caching,
        eviction_policy=str(flags.get("radix_eviction_policy", "lru")),
    )
    # the scheduler keeps a row within one token less than context and cache, and its last token is not stored
    held = min(context, rank.kv_tokens) - 1
    return EnginePlan(
        engine="sglang",
        version=version,
        limits=Limits(
            rows=rows,
            step_tokens=max(largest, rows),
            context_tokens=context,
            kv_tokens=rank.kv_tokens,
            kv_blocks=tokens // page,
            block_tokens=page,
            prompt_tokens=held - SPARE_TOKENS - 1,
            row_tokens=held - 1,
        ),
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            host,
            max_step_tokens=max(largest, rows),
            max_rows=rows,
            max_context_tokens=context,
            tensor_parallel=tp,
            pipeline_parallel=pp,
            expert_parallel=request.expert_parallel,
            ranks=dp,
            graph_sizes=graph_sizes(graph_rows) if graphs else (),
        ),
        executor=Executor(depth=rules.in_flight, ranks=dp, rank_router="round_robin"),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=caching,
        notes=notes,
        warnings=tuple(warnings),
        sources=overheads.provenance,
    )


def _memory(request: PoolRequest, chunk: int, graph_rows: int, page: int) -> MemoryBudget:
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
    per_token = sum(
        group.bytes_per_token_per_rank for group in kv_groups(arch, request.formats.kv_cache, tp, pp)
    )
    block = int(per_token * page)
    kv = usable - weights
    if kv < block:
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device, {usable / 1e9:.1f} GB usable "
            f"({fraction:.0%} of {free / 1e9:.1f} GB); {(weights + block - usable) / 1e9:.1f} GB too much on each of "
            f"{tp * pp * dp} devices",
            where="deployment",
            mend=request.more_memory,
        )
    return MemoryBudget(
        device_bytes=device,
        usable_bytes=device,
        lines=(
            MemoryLine("weight", "weights", weights),
            MemoryLine("activation", "reserve for activations, graphs", free - usable),
            MemoryLine("other", "CUDA context, collectives", int(CONTEXT_BYTES)),
        ),
        kv_bytes=kv,
        kv_bytes_per_token=per_token,
        block_bytes=block,
        blocks=kv // block,
    )


def scheduler_from_recording(
    version: str, knobs: dict[str, Any], mode: Mode = "record"
) -> tuple[PrefillFirstScheduler, int]:
    """Build the scheduler of a recorded schedule from its `config` line; returns it and the executor's depth."""
    version_of(version)
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
    return rank.scheduler(mode), depth


# Flags ----------------------------------------------------------------------------------------------------

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "tensor_parallel_size": Flag("int", 1, low=1),
    "pipeline_parallel_size": Flag("int", 1, low=1),
    "data_parallel_size": Flag("int", 1, low=1),
    "expert_parallel_size": Flag("int", 1, low=1),
    "context_length": Flag("int", None, low=1),
    "mem_fraction_static": Flag("float", None, low=1e-3, high=1.0),
    "max_running_requests": Flag("int", None, low=1),
    "max_total_tokens": Flag("int", None, low=1),
    "max_prefill_tokens": Flag("int", 16384, low=1),
    "chunked_prefill_size": Flag("int", None, low=-1),
    "prefill_max_requests": Flag("int", None, low=1),
    "scheduler_recv_interval": Flag("int", 1, low=1),
    "page_size": Flag("int", 1, low=1),
    "schedule_policy": Flag("str", "fcfs", choices=POLICIES),
    "schedule_conservativeness": Flag("float", 1.0, low=0.0),
    "enable_mixed_chunk": Flag("bool", False),
    "disable_radix_cache": Flag("bool", False),
    "radix_eviction_policy": Flag("str", "lru", choices=EVICTION_POLICIES),
    "disable_overlap_schedule": Flag("bool", False),
    "enable_priority_scheduling": Flag("bool", False),
    "disable_priority_preemption": Flag("bool", False),
    "schedule_low_priority_values_first": Flag("bool", False),
    "priority_scheduling_preemption_threshold": Flag("int", 10, low=0),
    "disable_cuda_graph": Flag("bool", False),
    "disable_piecewise_cuda_graph": Flag("bool", False),
    "enable_piecewise_cuda_graph": Flag("bool", False),
    "piecewise_cuda_graph_max_tokens": Flag("int", None, low=1),
    "enable_dp_attention": Flag("bool", False),
    "cuda_graph_max_bs": Flag("int", None, low=1),
    "kv_cache_dtype": Flag("str", "auto"),
    "quantization": Flag("str", None),
    "dtype": Flag("str", "auto"),
    "stream_interval": Flag("int", 1, low=1),
}

# Of the flags below the simulation reads none; each group is named by the number of values its flags take.
_HARMLESS_SWITCHES = """
    enable_cache_report enable_metrics enable_metrics_for_all_schedulers log_requests skip_server_warmup
    skip_tokenizer_init trust_remote_code show_time_cost disable_fast_image_processor enable_request_time_stats_logging
"""
_HARMLESS_VALUES = """
    api_key chat_template completion_template decode_log_interval dist_init_addr download_dir file_storage_path host
    load_format log_level log_level_http log_requests_level model_loader_extra_config nccl_port port random_seed
    reasoning_parser revision served_model_name tokenizer_mode tokenizer_path tool_call_parser watchdog_timeout
"""
_UNMODELLED_SWITCHES = """
    disable_chunked_prefix_cache disable_custom_all_reduce disable_hybrid_swa_memory disable_cuda_graph_padding
    enable_dp_lm_head enable_ep_moe enable_eplb enable_flashinfer_allreduce_fusion
    enable_hierarchical_cache enable_lora enable_memory_saver enable_mscclpp enable_nccl_nvls enable_nan_detection
    enable_p2p_check enable_symm_mem enable_tokenizer_batch_encode enable_torch_compile enable_two_batch_overlap
"""
_UNMODELLED_VALUES = """
    attention_backend attn_cp_size base_gpu_id constrained_json_whitespace_pattern cpu_offload_gb decode_attention_backend
    deepep_mode device disaggregation_mode disaggregation_transfer_backend ep_num_redundant_experts grammar_backend
    hicache_ratio hicache_size hicache_storage_backend hicache_write_policy json_model_override_args
    load_balance_method lora_backend max_lora_rank max_loras_per_batch max_queued_requests mm_attention_backend
    moe_a2a_backend moe_runner_backend nnodes node_rank num_continuous_decode_steps num_reserved_decode_tokens
    prefill_attention_backend sampling_backend speculative_algorithm speculative_draft_model_path
    speculative_eagle_topk speculative_num_draft_tokens speculative_num_steps swa_full_tokens_ratio tokenizer_worker_num
    torch_compile_max_bs
"""
_UNMODELLED_LISTS = "cuda_graph_bs lora_paths lora_target_modules"


_QUANTIZED_WEIGHTS = {
    "fp8": "fp8",
    "w8a8_fp8": "fp8",
    "modelopt": "fp8",
    "modelopt_fp8": "fp8",
    "modelopt_fp4": "nvfp4",
    "awq": "awq",
    "awq_marlin": "awq",
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "mxfp4": "mxfp4",
}
"""Values of SGLang's ``--quantization`` that fix the weights' format; others leave it to the checkpoint."""


def _kv_format(value: str) -> str | None:
    return None if value == "auto" else format_named(value, where="kv_cache_dtype").name


def _launched(words: list[str]) -> list[str] | None:
    """Arguments after ``python -m sglang.launch_server`` or ``sglang serve``, also inside a container's command."""
    for i, word in enumerate(words):
        base = word.rpartition("/")[2]
        if word == "-m" and i + 1 < len(words) and words[i + 1].startswith("sglang.launch_server"):
            return words[i + 2 :]
        if base == "sglang" and i + 1 < len(words) and words[i + 1] == "serve":
            return words[i + 2 :]
        if base == "launch_server.py":
            return words[i + 1 :]
    return words if words and words[0].startswith("-") else None


_same: Callable[[Any], Any] = lambda value: value  # noqa: E731

SGLANG = FlagTable(
    engine="sglang",
    modelled=_MODELLED,
    harmless=by_arity((_HARMLESS_SWITCHES, 0), (_HARMLESS_VALUES, 1)),
    unmodelled=by_arity((_UNMODELLED_SWITCHES, 0), (_UNMODELLED_VALUES, 1), (_UNMODELLED_LISTS, -1)),
    shorts={},
    aliases={
        "model_path": "model",
        "tp": "tensor_parallel_size",
        "tp_size": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "pp_size": "pipeline_parallel_size",
        "dp": "data_parallel_size",
        "dp_size": "data_parallel_size",
        "ep": "expert_parallel_size",
        "ep_size": "expert_parallel_size",
        "disable_overlap": "disable_overlap_schedule",
        "cuda_graph_max_bs_decode": "cuda_graph_max_bs",
    },
    typed={
        "tensor_parallel_size": ("tensor_parallel", _same),
        "pipeline_parallel_size": ("pipeline_parallel", _same),
        "data_parallel_size": ("data_parallel", _same),
        "expert_parallel_size": ("expert_parallel", lambda v: v if v > 1 else None),
        "quantization": ("weights", _QUANTIZED_WEIGHTS.get),
        "kv_cache_dtype": ("kv_cache", _kv_format),
    },
    launched=_launched,
    launch_example="python -m sglang.launch_server --model-path MODEL --flag value",
)
"""Flags of SGLang, names in snake_case; found by `engine_models.flags.table_of`."""
