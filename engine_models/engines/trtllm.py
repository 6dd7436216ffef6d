"""TensorRT-LLM: its PyTorch backend in terms of the shared parts, its defaults, memory and flags.

The scheduling rules are `engine_models.schedulers.memory_then_tokens`, the cache `engine_models.memory.block_tree`.

Behaviour and defaults of the repository in 2026 (the 1.3 line: `tensorrt_llm/_torch/pyexecutor`, `llmapi/llm_args.py`,
`cpp/tensorrt_llm/batch_manager`); scheduling checked step by step against recordings (`capacity-plan validate schedules`).
Version 1.0 is the same rules with its CUDA-graph sizes, compared with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine_models.cost.adapters import Adapters
from engine_models.cost.adapters import summary_note as adapters_note
from engine_models.cost.draft_methods import chains_only
from engine_models.cost.drafting import summary_note
from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import HostOverhead, Parallelism, Terms
from engine_models.cost.token_masks import TokenMasks
from engine_models.cost.token_masks import summary_note as masks_note
from engine_models.declaration import (
    Engine,
    EnginePlan,
    FrontEnd,
    Handover,
    Limits,
    Lockstep,
    MemoryBudget,
    PoolRequest,
    Support,
)
from engine_models.engines.trtllm_adapters import adapted
from engine_models.engines.trtllm_executor import MemoryWords, memory_left
from engine_models.engines.trtllm_flags import FLAGS, group
from engine_models.engines.trtllm_kernels import (
    EXPERT_LAUNCHES,
    LATENT_LAUNCHES,
    as_run,
    data_centre_blackwell,
    experts,
    gathered_bytes,
)
from engine_models.engines.trtllm_notes import NO_GRAPHS, notes_of
from engine_models.engines.trtllm_ranks import Rank, executor_of, handover_of, policies
from engine_models.engines.trtllm_recorded import replay
from engine_models.parts.adapters import NO_ADAPTERS
from engine_models.schedulers.memory_then_tokens import GUARANTEED, UTILIZATION, TwoPassRules
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError

VERSIONS: dict[str, dict[str, Any]] = {
    "1.3.0": {"recorded": True, "graph_step_above_128": 64, "graphs_adapters": True, "serial_quantisation": False},
    "1.0.0": {"recorded": False, "graph_step_above_128": 0, "graphs_adapters": False, "serial_quantisation": True},
}
"""The newest first; of each older one what differs from the next newer. `recorded`: whether its scheduling was compared with
recordings; `graph_step_above_128`: step of the padded CUDA-graph sizes (0: they double); `graphs_adapters`: whether steps that
name LoRA adapters run as CUDA graphs (`_torch/peft/lora/cuda_graph_lora_manager.py`, since 1.2). Source: as the module.
`serial_quantisation`: of FP8 products on data-centre Blackwell (pull requests 6486 of 2025-08, 11607 of 2026-02; before 1.1
another kernel, not timed)."""

ONE_MODEL = ("mtp", "eagle3")
"""Methods whose drafter is part of the model's own pass; the others run without the overlap scheduler (datasheet: the examples of
docs/source/features/speculative-decoding.md, read 2026-11)."""

BATCH_SIZE, STEP_TOKENS, MEMORY_FRACTION = 2048, 8192, 0.9
GRAPH_ROWS = 128
"""`max_batch_size`, `max_num_tokens`, `free_gpu_memory_fraction` of ``trtllm-serve`` and the largest captured batch (datasheet:
`tensorrt_llm/commands/serve.py`, `llmapi/llm_args.py`, read 2026-11)."""


def graph_sizes(config: Mapping[str, Any], step_above_128: int) -> tuple[int, ...]:
    """Batch sizes that are captured: as listed, or up to `max_batch_size` (128)."""
    if config["batch_sizes"]:
        return tuple(sorted(set(config["batch_sizes"])))
    most = int(config["max_batch_size"] or GRAPH_ROWS)
    if config["enable_padding"]:
        sizes = {1, 2, 4, *range(8, 129, 8)}
        sizes |= (
            set(range(192, most + 1, step_above_128))
            if step_above_128
            else {2**i for i in range(8, most.bit_length())}
        )
    else:
        sizes = {*range(1, 33), 64, 128, *(2**i for i in range(8, most.bit_length()))}
    return tuple(sorted({size for size in sizes if size <= most} | {most}))


@dataclass(frozen=True)
class Serving:
    """What the flags of a pool say of its servers.

    rows, tokens : most of a step, row_tokens : that a generating row takes of them. context : asked for. policy, chunking : of
    the two passes. graphs : captured batch sizes, padded : whether others are padded to them.
    """

    rows: int
    tokens: int
    row_tokens: int
    block: int
    context: int
    chunked: bool
    policy: str
    chunking: str
    graphs: tuple[int, ...]
    padded: bool

    @classmethod
    def of(cls, request: PoolRequest, version: Mapping[str, Any]) -> Serving:
        """Read the flags; InputError on what is out of range or not modelled together."""
        flags, drafts = request.flags, request.speculation
        captured = flags.get("cuda_graph_config") != "none"
        graphs = group(flags, "cuda_graph_config") if captured else {}
        rows, tokens = int(flags.get("max_batch_size", BATCH_SIZE)), int(flags.get("max_num_tokens", STEP_TOKENS))
        row_tokens = drafts.row_tokens if drafts else 1
        if drafts:
            rows = max(1, min(rows, tokens // row_tokens))
        block = int(group(flags, "kv_cache_config")["tokens_per_block"])
        chunked = bool(flags.get("enable_chunked_prefill", False))
        if chunked and tokens < block:
            raise InputError(
                f"max_num_tokens {tokens} is less than a block of {block} tokens, to which chunks are cut: none would be "
                "computed",
                where="deployment.engine_args.max_num_tokens",
                mend=f"give at least {block}",
            )
        policy, chunking = policies(flags)
        if drafts and policy == UTILIZATION:
            raise InputError(
                f"{UTILIZATION} beside speculative decoding is not modelled",
                where="deployment.engine_args.scheduler_config.capacity_scheduler_policy",
                mend=f"use {GUARANTEED}, the default",
            )
        asked = int(flags.get("max_seq_len") or request.arch.max_context_tokens)
        sizes = graph_sizes(graphs, version["graph_step_above_128"]) if captured else ()
        if request.lora is not None and not version["graphs_adapters"]:
            sizes = ()
        padded = captured and bool(graphs["enable_padding"])
        return cls(rows, tokens, row_tokens, block, asked, chunked, policy, chunking, sizes, padded)


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of TensorRT-LLM: memory as left after a trial run, limits, policies, graphs, overheads.

    Raises InfeasibleError if the weights or a few blocks do not fit, InputError on flags out of range.
    """
    name = ENGINE.version(version_text)
    version = ENGINE.switches(name)
    _refuse(request)
    serving = Serving.of(request, version)
    memory, adapters = _memory(request, serving)
    context = min(serving.context, memory.blocks * serving.block)
    handover = handover_of(request, serving.policy, serving.block) if request.role != "mixed" else None
    rank = _rank(request, serving, memory.blocks, context, handover, adapters)
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    # a paused request comes back with its answer as prompt, computed alone if it exceeds the budget
    alone = context if serving.policy == UTILIZATION and not serving.chunked else 0
    step_tokens = max(serving.tokens, serving.rows * serving.row_tokens, alone)
    warnings: list[str] = []
    masks = TokenMasks(True, delays_next=rank.rules.overlap) if request.structured else None
    return EnginePlan(
        engine=ENGINE.name,
        version=name,
        limits=_limits(request, serving, memory, context, step_tokens),
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(
            as_run(request),
            request.formats,
            _terms(request, version, serving, overheads.host, warnings),
            TableRange(step_tokens, serving.rows, context),
            Parallelism(request.tensor_parallel, expert=request.expert_parallel, ranks=request.data_parallel),
            speculation=request.speculation,
            adapters=adapters,
            masks=masks,
        ),
        executor=executor_of(request.flags, rank, request.data_parallel),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=rank.reuse,
        handover=handover,
        notes=(
            *((summary_note(request.speculation), *request.speculation.notes) if request.speculation else ()),
            *((adapters_note(adapters),) if adapters is not None else ()),
            *((masks_note(masks),) if masks is not None else ()),
            *notes_of(
                name,
                rank.rules,
                serving.context,
                recorded=bool(version["recorded"]),
                reuse=rank.reuse,
                graphs=serving.graphs,
                padded=serving.padded,
            ),
            *((NO_GRAPHS,) if request.lora is not None and not version["graphs_adapters"] else ()),
        ),
        warnings=tuple(warnings),
        sources=overheads.provenance,
    )


def _refuse(request: PoolRequest) -> None:
    if request.device_vendor != "nvidia":
        raise InputError(
            f"TensorRT-LLM runs on NVIDIA GPUs, not on {request.device_name}",
            where="deployment.hardware",
            mend="use an NVIDIA GPU, or another engine (`capacity-plan list engines`)",
        )
    if any(block.kind == "linear" or block.sparse for block in request.arch.attention):
        raise InputError(
            f"models with recurrent, indexed or compressed layers such as {request.arch.name} are not simulated for TensorRT-LLM",
            where="model",
            mend="use another engine (`capacity-plan list engines`)",
        )


def _memory(request: PoolRequest, serving: Serving) -> tuple[MemoryBudget, Adapters | None]:
    """Memory by the flags of a pool, and its adapters; datasheet: `pyexecutor/_util.py`, read 2026-11."""
    kv = group(request.flags, "kv_cache_config")
    given = request.flags.get("kv_cache_config") or {}
    share = kv["free_gpu_memory_fraction"] if "free_gpu_memory_fraction" in given else None
    fraction = float(share or request.flags.get("free_gpu_memory_fraction", MEMORY_FRACTION))
    words = MemoryWords("max_num_tokens", "free_gpu_memory_fraction")

    def left(lora_bytes: int) -> MemoryBudget:
        return memory_left(
            request, serving.tokens, serving.context, fraction, serving.block, kv["max_tokens"], words, lora_bytes
        )

    memory = left(0)
    adapters, lora_bytes = adapted(request, serving.policy, memory.kv_bytes + memory.bytes_of("free"))
    return left(lora_bytes) if lora_bytes else memory, adapters


def _rank(
    request: PoolRequest,
    serving: Serving,
    blocks: int,
    context: int,
    handover: Handover | None,
    adapters: Adapters | None,
) -> Rank:
    """Rules and blocks of a rank."""
    flags, drafts, kv = request.flags, request.speculation, group(request.flags, "kv_cache_config")
    rules = TwoPassRules(
        max_batch_size=serving.rows,
        max_num_tokens=serving.tokens,
        max_seq_len=context,
        capacity_scheduler_policy=serving.policy,
        context_chunking_policy=serving.chunking if serving.chunked else None,
        batch_wait_timeout_iters=int(flags.get("batch_wait_timeout_iters", 0)),
        batch_wait_max_tokens_ratio=float(flags.get("batch_wait_max_tokens_ratio", 0.0)),
        overlap=not flags.get("disable_overlap_scheduler", request.role == "prefill")
        and (drafts is None or drafts.method in ONE_MODEL),
    )
    balanced = bool(group(flags, "attention_dp_config")["enable_balance"])
    return Rank(
        rules,
        blocks,
        serving.block,
        bool(kv["enable_block_reuse"]),
        bool(kv["enable_partial_reuse"]),
        bool(kv["copy_on_partial_reuse"]),
        request.arch.windows_below(context),
        serving.row_tokens,
        request.role,
        handover is not None and handover.reserves,
        balanced and request.data_parallel > 1 and handover is None,
        adapters.limits if adapters is not None else NO_ADAPTERS if request.structured else None,
    )


def _limits(request: PoolRequest, serving: Serving, memory: MemoryBudget, context: int, step_tokens: int) -> Limits:
    whole = not serving.chunked and request.role != "decode"
    return Limits(
        rows=serving.rows,
        step_tokens=step_tokens,
        context_tokens=context,
        kv_tokens=memory.blocks * serving.block,
        kv_blocks=memory.blocks,
        block_tokens=serving.block,
        prompt_tokens=min(context - 1, serving.tokens) if whole else context - 1,
        row_tokens=context,
        spare_tokens=serving.row_tokens - 1,
    )


def _terms(
    request: PoolRequest, version: Mapping[str, Any], serving: Serving, host: HostOverhead, warnings: list[str]
) -> Terms:
    """What the engine decides about the time of a step."""
    backend = experts(request, str(group(request.flags, "moe_config")["backend"]), warnings)
    return Terms(
        host,
        graph_sizes=tuple(serving.row_tokens * size for size in serving.graphs),
        exact_graphs=bool(serving.graphs) and not serving.padded,
        small_kernels=True,
        moe_backend=backend,
        expands_latents=True,
        moe_by_flag=False,
        rotary_in_attention=True,
        gathered_bytes=gathered_bytes(request),
        shared_beside=True,
        expert_launches=EXPERT_LAUNCHES.get(backend or ""),
        latent_launches=LATENT_LAUNCHES,
        serial_quantisation=version["serial_quantisation"] and data_centre_blackwell(request.device_name),
    )


_SOURCE = "NVIDIA/TensorRT-LLM, docs/source/features/quantization.md and supported hardware (public copy, read 2026-11)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu"})

ENGINE = Engine(
    name="trtllm",
    title="TensorRT-LLM",
    rule=(
        "Memory first, then tokens: a capacity policy says which active requests the cache can hold (with whole "
        "answers, or for the next step with pauses), a second pass fills the step up to the token budget."
    ),
    versions=VERSIONS,
    oldest="0.20",
    devices={"gpu": f"{_SOURCE}: NVIDIA GPUs only"},
    formats={
        name: Support(_KINDS, _SOURCE)
        for name in ("bf16", "fp16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int4", "awq", "gptq")
    },
    kv_formats=("fp8", "nvfp4"),
    features={
        "handover": Support(_KINDS, "NVIDIA/TensorRT-LLM, docs/source/features/disagg-serving.md (read 2026-11)"),
        "speculative": Support(_KINDS, "NVIDIA/TensorRT-LLM, docs/source/features/speculative-decoding.md (read 2026-11)"),
        "lora": Support(_KINDS, "NVIDIA/TensorRT-LLM, docs/source/features/lora.md (read 2026-11)"),
        "structured": Support(_KINDS, "NVIDIA/TensorRT-LLM, `_torch/pyexecutor/guided_decoder.py` (read 2026-11)"),
    },
    drafts=chains_only("TensorRT-LLM", ("mtp", "eagle3", "ngram", "draft_model")),
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_batch_size",
        "context": "max_seq_len",
        "step_tokens": "max_num_tokens",
        "memory_share": "free_gpu_memory_fraction",
        "tensor_ranks": "tensor_parallel_size",
    },
    kernels="trtllm",
    overheads_from="vllm",
    plan=plan,
    replay=replay,
    lockstep=Lockstep(
        applies=lambda flags, tensor_parallel, expert_ranks: bool(flags.get("enable_attention_dp")),
        launch=lambda devices, ranks: f"TensorRT-LLM: --tp_size {devices}, enable_attention_dp",
        dense="as TensorRT-LLM does",
    ),
)
