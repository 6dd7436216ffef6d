"""What the flags of a pool of TensorRT-LLM say of its servers: steps, memory, rules, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.cost.adapters import Adapters
from engine_models.declaration import Handover, Limits, MemoryBudget, PoolRequest
from engine_models.engines.trtllm_adapters import adapted
from engine_models.engines.trtllm_compressed import block_of, request_bytes, token_bytes
from engine_models.engines.trtllm_executor import MemoryWords, memory_left
from engine_models.engines.trtllm_flags import group
from engine_models.engines.trtllm_ranks import Rank, policies
from engine_models.engines.trtllm_states import BLOCKS, check_states, reuses, states_held
from engine_models.engines.trtllm_tiers import HostMemory
from engine_models.parts.adapters import limits_in
from engine_models.refusals import only_on_nvidia
from engine_models.schedulers.memory_then_tokens import GUARANTEED, UTILIZATION, TwoPassRules
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

BATCH_SIZE, STEP_TOKENS, MEMORY_FRACTION = 2048, 8192, 0.9
GRAPH_ROWS = 128
"""`max_batch_size`, `max_num_tokens`, `free_gpu_memory_fraction` of ``trtllm-serve`` and the largest captured batch (datasheet:
`tensorrt_llm/commands/serve.py`, `llmapi/llm_args.py`, read 2026-11)."""


UNIFIED = "dgx-spark"
"""The device with unified memory that it serves; Jetson Thor has TensorRT Edge-LLM, another engine."""

COMPUTED = ("fp8", "fp8_block", "nvfp4")
"""Formats of weights that run on GPUs with their arithmetic alone: FP8 from Ada on, nvfp4 on Blackwell (datasheet:
docs/source/reference/support-matrix.md of 0.18.2, docs/source/features/quantization.md of 1.0 to 1.4, read 2026-11); nvfp4 on
others where flags name Marlin's kernels (its recipe `nemotron-super-marlin.yaml`, 1.3)."""
INDEXED = ("dsa", "deepseek_sparse_attention", "deepseek_v4", "minimax_m3")
"""`algorithm` of a ``sparse_attention_config``, in lower case, that says no more than the model's own config (datasheet:
`llmapi/llm_args.py`, `DeepSeekSparseAttentionConfig`, read 2026-11)."""
ONE_MODEL = ("mtp", "eagle3")
"""Methods whose drafter is part of the model's own pass; the others run without the overlap scheduler (datasheet: the examples of
docs/source/features/speculative-decoding.md, read 2026-11)."""


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
        said = flags.get("kv_cache_config") or {}
        block = int(group(flags, "kv_cache_config")["tokens_per_block"])
        if said.get("tokens_per_block") is None:
            block = BLOCKS.get(request.arch.family, block)
        if request.arch.compresses:
            block = block_of(said.get("tokens_per_block"))
        chunked = bool(flags.get("enable_chunked_prefill", False))
        if chunked and tokens < block:
            raise InputError(
                f"max_num_tokens {tokens} is less than a block of {block} tokens, to which chunks are cut: none would be "
                "computed",
                where="deployment.engine_args.max_num_tokens",
                mend=f"give at least {block}",
            )
        policy, chunking = policies(flags)
        if request.pipeline_parallel > 1:
            check_stages(request, policy)
        asked = int(flags.get("max_seq_len") or request.arch.max_context_tokens)
        sizes = graph_sizes(graphs, version["graph_step_above_128"]) if captured else ()
        if request.lora is not None and not version["graphs_adapters"]:
            sizes = ()
        padded = captured and bool(graphs["enable_padding"])
        return cls(rows, tokens, row_tokens, block, asked, chunked, policy, chunking, sizes, padded)


def check_stages(request: PoolRequest, policy: str) -> None:
    """InputError for what TensorRT-LLM refuses beside pipeline stages, or is not modelled there.

    Source: docs/source/features/feature-combination-matrix.md (public copy, read 2026-11), which says no to all drafts.
    """
    if request.speculation is not None:
        raise InputError(
            "TensorRT-LLM has no speculative decoding beside pipeline parallelism: its table of features says no to both",
            where="deployment.pipeline_parallel",
            mend="use tensor_parallel, or take speculative decoding out",
        )
    if policy == UTILIZATION:
        raise InputError(
            f"{UTILIZATION} beside pipeline parallelism is not modelled for TensorRT-LLM",
            where="deployment.pipeline_parallel",
            mend=f"use tensor_parallel, or {GUARANTEED}, the default",
        )


def widens_weights(request: PoolRequest) -> bool:
    """Whether weights in nvfp4 are widened to 16 bits: the device lacks the arithmetic, and flags name Marlin's kernels."""
    weights, device = request.formats.weights, load_device(request.device_name)
    backend = str(group(request.flags, "moe_config")["backend"])
    products = (request.flags.get("nvfp4_gemm_config") or {}).get("allowed_backends") or ()
    named = "marlin" in (name.lower() for name in (backend, *map(str, products)))
    return weights.name == "nvfp4" and weights.compute not in device.formats and named


def refuse(request: PoolRequest) -> None:
    """Raise InputError for devices, formats and models that it does not serve."""
    only_on_nvidia(request, "TensorRT-LLM runs on NVIDIA GPUs")
    weights, device = request.formats.weights, load_device(request.device_name)
    if device.kind == "apu" and not device.name.startswith(UNIFIED):
        raise InputError(
            f"TensorRT-LLM does not run on {device.title}: of NVIDIA's devices with unified memory it serves DGX Spark",
            where="deployment.hardware",
            mend="use vllm, sglang, llama_cpp or ollama there, or a GPU",
        )
    if weights.name in COMPUTED and weights.compute not in device.formats and not widens_weights(request):
        flag = "moe_config: {backend: MARLIN}" if request.arch.has_experts else "nvfp4_gemm_config: {allowed_backends: [marlin]}"
        raise InputError(
            f"TensorRT-LLM computes in {weights.compute} with weights in {weights.name}; {device.title} has no such arithmetic",
            where="deployment.weights",
            mend=f"use int4, a GPU with {weights.compute}, or an engine that widens them (`capacity-plan list engines`)"
            + (f"; {flag} does here" if weights.name == "nvfp4" else ""),
        )
    check_states(request)
    algorithm = str((request.flags.get("sparse_attention_config") or {}).get("algorithm") or "none").lower()
    if algorithm != "none" and not (algorithm in INDEXED and any(block.sparse for block in request.arch.attention)):
        raise InputError(
            f"sparse_attention_config with algorithm {algorithm} is not simulated for TensorRT-LLM beside {request.arch.name}",
            where="deployment.engine_args.sparse_attention_config",
            mend="leave it out; `dsa`, of models with an indexer, is what those run anyway",
        )


def memory_of(request: PoolRequest, serving: Serving) -> tuple[MemoryBudget, Adapters | None]:
    """Memory by the flags of a pool, and its adapters; datasheet: `pyexecutor/_util.py`, read 2026-11."""
    kv = group(request.flags, "kv_cache_config")
    given = request.flags.get("kv_cache_config") or {}
    share = kv["free_gpu_memory_fraction"] if "free_gpu_memory_fraction" in given else None
    fraction = float(share or request.flags.get("free_gpu_memory_fraction", MEMORY_FRACTION))
    words = MemoryWords("max_num_tokens", "free_gpu_memory_fraction")
    compressed, stages = request.arch.compresses, request.pipeline_parallel
    whole = request_bytes(request, serving.block) if compressed else 0

    def left(lora_bytes: int) -> MemoryBudget:
        return memory_left(
            request, serving.tokens, serving.context, fraction, serving.block, kv["max_tokens"], words, lora_bytes,
            states_held(request, serving.rows, serving.row_tokens) if not compressed else serving.rows * stages * whole,
            token_bytes(request) if compressed else None,
        )

    memory = left(0)
    adapters, lora_bytes = adapted(request, memory.kv_bytes + memory.bytes_of("free"))
    return left(lora_bytes) if lora_bytes else memory, adapters


def rank_of(
    request: PoolRequest,
    serving: Serving,
    blocks: int,
    context: int,
    handover: Handover | None,
    adapters: Adapters | None,
    host: HostMemory | None,
    version: Mapping[str, Any],
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
        and (drafts is None or drafts.method in ONE_MODEL)
        and request.pipeline_parallel == 1,
    )
    balanced = bool(group(flags, "attention_dp_config")["enable_balance"])
    return Rank(
        rules,
        blocks,
        serving.block,
        reuses(request)[0],
        bool(kv["enable_partial_reuse"]) and not request.arch.compresses,
        bool(kv["copy_on_partial_reuse"]),
        request.arch.windows_below(context),
        serving.row_tokens,
        request.role,
        handover is not None and handover.reserves,
        balanced and request.data_parallel > 1 and handover is None,
        limits_in(adapters, structured=request.structured),
        request.pipeline_parallel,
        version["pieces_follow"],
        host,
    )


def products_said(request: PoolRequest) -> str:
    """What is to be said of `nvfp4_gemm_config`, "" where it is not given or chooses what is priced."""
    if not request.flags.get("nvfp4_gemm_config") or widens_weights(request):
        return ""
    return "trtllm flag `nvfp4_gemm_config` is not modelled; in the engine it changes the speed of kernels"


def windows_said(request: PoolRequest, context: int) -> str:
    """What is to be said of `max_attention_window`, "" where it bounds nothing; InputError where it is not the model's own."""
    asked = group(request.flags, "kv_cache_config")["max_attention_window"]
    narrow = {int(window) for window in asked or () if window < context}
    if not narrow:
        return ""
    own = request.arch.windows_below(context)
    if not narrow <= set(own):
        raise InputError(
            f"max_attention_window {', '.join(map(str, sorted(narrow)))} is not simulated for {request.arch.name}, whose layers "
            + (f"have windows of {', '.join(map(str, own))}" if own else "attend to all tokens"),
            where="deployment.engine_args.kv_cache_config.max_attention_window",
            mend="leave it out, or give the model's own windows",
        )
    return (
        "trtllm flag `kv_cache_config` (max_attention_window) is read as the model's own windows; in the engine their layers "
        "then keep no more than that, and the cache holds more requests than here"
    )


def flags_said(request: PoolRequest, context: int) -> tuple[str, ...]:
    """What is to be said of flags that are read in part, "" where nothing is."""
    return reuses(request)[1], windows_said(request, context), products_said(request)


def limits_of(request: PoolRequest, serving: Serving, memory: MemoryBudget, context: int, step_tokens: int) -> Limits:
    """What a rank takes."""
    whole = not serving.chunked and request.role != "decode"
    return Limits(
        rows=serving.rows * request.pipeline_parallel,
        step_tokens=step_tokens,
        context_tokens=context,
        kv_tokens=memory.blocks * serving.block,
        kv_blocks=memory.blocks,
        block_tokens=serving.block,
        prompt_tokens=min(context - 1, serving.tokens) if whole else context - 1,
        row_tokens=context,
        spare_tokens=serving.row_tokens - 1,
        prompt_by="max_num_tokens" if whole and serving.tokens < context - 1 else "",
    )


__all__ = [
    "Serving",
    "flags_said",
    "graph_sizes",
    "limits_of",
    "memory_of",
    "rank_of",
    "refuse",
    "widens_weights",
]
