"""Triton's TensorRT-LLM backend: TensorRT-LLM's C++ executor over a built engine, behind Triton's batcher and an ensemble.

Batches are formed by the executor (`engine_models.schedulers.memory_then_tokens`, whose rules are those of the C++ schedulers);
Triton only hands requests over (`memory_then_tokens_handed` there). Nothing overlaps a step with the next, and no CUDA graphs
hold it.

Read in tensorrtllm_backend (`docs/model_config.md`, `all_models/inflight_batcher_llm`, 1.0) and in TensorRT-LLM
(`cpp/tensorrt_llm/batch_manager/{capacityScheduler,microBatchScheduler}.cpp`), 2026-11; nothing is recorded.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.drafting import summary_note
from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.declaration import EnginePlan, Limits, Mode, PoolRequest
from engine_models.engines.triton_batcher import gathering_of
from engine_models.engines.triton_ensemble import front_of
from engine_models.engines.triton_flags import BLS, BUILD, group
from engine_models.engines.trtllm_executor import MemoryWords, memory_left
from engine_models.engines.trtllm_kernels import UNGROUPED_BYTES_PER_S, as_run, experts, reads_by_head
from engine_models.memory.block_tree import BlockTree
from engine_models.refusals import ELSEWHERE, no_layers, only_on_nvidia, only_weights_in
from engine_models.schedulers.memory_then_tokens import (
    FIRST_COME,
    GUARANTEED,
    STATIC,
    UTILIZATION,
    TwoPassRules,
    TwoPassScheduler,
)
from engine_models.schedulers.memory_then_tokens_handed import (
    DraftedHandedTwoPassScheduler,
    Gathering,
    HandedTwoPassScheduler,
)

WEIGHTS = ("bf16", "fp16", "fp8", "nvfp4", "int4", "awq", "gptq")
KERNELS = "trtllm"
_POLICIES = {"guaranteed_no_evict": GUARANTEED, "max_utilization": UTILIZATION, "static_batch": STATIC}
_OVERHEADS = "triton_trtllm"
_WHERE = "deployment.engine_args"


def plan(request: PoolRequest, engine: str, version: str) -> EnginePlan:
    """Resolve one pool: memory beside the engine, the executor's limits and rules, the models around it.

    Raises InfeasibleError if the weights or a few blocks do not fit, InputError on what this backend lacks.
    """
    arch, flags = request.arch, request.flags
    _refuse(request)
    build = group(flags.get("build_config"), BUILD, f"{_WHERE}.build_config")
    streams, called = bool(flags.get("decoupled", False)), str(flags.get("called", "ensemble"))
    rows, tokens, block = build["max_batch_size"], build["max_num_tokens"], build["tokens_per_block"]
    instances = int(flags.get("bls_instance_count", 1)) if called == BLS else rows
    drafts = request.speculation
    row_tokens = drafts.row_tokens if drafts else 1
    inside = max(1, min(rows, instances, tokens // row_tokens))
    policy = _POLICIES[str(flags.get("batch_scheduler_policy", "guaranteed_no_evict"))]
    in_flight = str(flags.get("batching_strategy", "inflight_fused_batching")) != "V1"
    chunked, reuse = bool(flags.get("enable_chunked_context", False)), bool(flags.get("enable_kv_cache_reuse", False))
    asked = int(build["max_seq_len"] or arch.max_context_tokens)
    memory = memory_left(
        request,
        tokens,
        asked,
        float(flags.get("kv_cache_free_gpu_mem_fraction", 0.9)),
        block,
        flags.get("max_tokens_in_paged_kv_cache"),
        MemoryWords("build_config.max_num_tokens", "kv_cache_free_gpu_mem_fraction"),
    )
    context = min(asked, memory.blocks * block)
    rules = TwoPassRules(
        max_batch_size=inside,
        max_num_tokens=tokens,
        max_seq_len=context,
        capacity_scheduler_policy=policy if in_flight else STATIC,
        context_chunking_policy=FIRST_COME if chunked else None,
        overlap=False,
    )
    gathering, windows = gathering_of(flags, streams), arch.windows_below(context)

    def scheduler(mode: Mode) -> TwoPassScheduler:
        kv = BlockTree(memory.blocks, block, prefix_caching=reuse)
        if row_tokens > 1:
            return DraftedHandedTwoPassScheduler(rules, kv, gathering, row_tokens=row_tokens, windows=windows)
        return HandedTwoPassScheduler(rules, kv, gathering, aggregate=mode == "jump", windows=windows)

    front, around = front_of(flags, None if called == "tensorrt_llm" else 1, streams=streams)
    longest = min(context - 1, build["max_input_len"] or context, context if chunked else tokens)
    step_tokens = max(tokens, inside * row_tokens, context if policy == UTILIZATION and not chunked else 0)
    warnings: list[str] = []
    # drafts are verified by a kernel that reads a group's cache once
    by_head = reads_by_head(arch, request.tensor_parallel, build["version"]) and drafts is None
    overheads = load_overheads(_OVERHEADS)
    return EnginePlan(
        engine=engine,
        version=version,
        limits=Limits(
            rows=inside,
            step_tokens=step_tokens,
            context_tokens=context,
            kv_tokens=memory.blocks * block,
            kv_blocks=memory.blocks,
            block_tokens=block,
            prompt_tokens=longest,
            row_tokens=context,
            spare_tokens=row_tokens - 1,
            prompt_by=""
            if longest == context - 1
            else "max_input_len"
            if longest == build["max_input_len"]
            else "max_num_tokens",
        ),
        memory=memory,
        scheduler=scheduler,
        costs=StepCosts(
            as_run(request),
            request.formats,
            Terms(
                overheads.host,
                moe_backend=experts(request, "CUTLASS", False, warnings),
                moe_by_flag=False,
                rotary_in_attention=True,
                ungrouped_bytes_per_s=UNGROUPED_BYTES_PER_S if by_head else 0.0,
            ),
            TableRange(step_tokens, inside, context),
            Parallelism(request.tensor_parallel, expert=request.expert_parallel),
            speculation=drafts,
        ),
        front=replace(front, asks=gathering.queue > 0, on_full="503"),
        prefix_caching=reuse,
        notes=(
            *((summary_note(drafts), *drafts.notes) if drafts else ()),
            *_notes(rules, gathering, called, instances, reuse, in_flight),
            *((BY_HEAD.format(build["version"]),) if by_head else ()),
            *around,
        ),
        warnings=tuple(warnings),
        sources=overheads.provenance,
        kernels=KERNELS,
        recorded=False,
    )


BY_HEAD = "built by TensorRT-LLM {}, without a kernel for this group of heads: decoding rows pass the cache for every query head"


def _notes(
    rules: TwoPassRules, gathering: Gathering, called: str, instances: int, reuse: bool, in_flight: bool
) -> tuple[str, ...]:
    batches = "in-flight batching" if in_flight else "static batches (V1): new requests when all have ended"
    return (
        f"Triton's TensorRT-LLM backend, {batches}: at most {rules.max_batch_size:,} active requests and "
        f"{rules.max_num_tokens:,} tokens a step, {rules.capacity_scheduler_policy}, prompts "
        f"{'in chunks' if rules.context_chunking_policy else 'whole'}; "
        f"{'blocks are reused' if reuse else 'no block reuse'}",
        *(
            [f"{BLS} is called: each of its {instances:,} instances serves one request at a time, to its end"]
            if called == BLS
            else []
        ),
        *(
            [f"Triton holds a request at most {1e3 * gathering.delay_s:g} ms for others, {gathering.preferred:,} go at once"]
            if gathering.delay_s
            else []
        ),
        *([f"above {gathering.queue:,} that wait others are answered 503"] if gathering.queue else []),
        "tokens are seen as they come (decoupled)" if gathering.streams else "an answer is seen when it has ended",
        "the executor's rules are read and not compared with recordings; its host and launches from C++ are estimates (assumed), "
        "its kernels those of TensorRT-LLM's tables",
    )


def _refuse(request: PoolRequest) -> None:
    arch, weights = request.arch, request.formats.weights.name
    only_on_nvidia(request, "TensorRT-LLM runs on NVIDIA GPUs")
    only_weights_in(request, WEIGHTS, f"Triton's TensorRT-LLM backend with weights in {weights} is not simulated")
    no_layers(
        request,
        ("linear", "mla", "sparse"),
        f"built engines of models with latent, recurrent or sparse layers such as {arch.name} are not simulated",
        mend=f"write engine: trtllm, its PyTorch backend, or {ELSEWHERE}",
    )


__all__ = ["KERNELS", "WEIGHTS", "plan"]
