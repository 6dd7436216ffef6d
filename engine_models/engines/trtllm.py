"""TensorRT-LLM: its PyTorch backend in terms of the shared parts, its defaults, memory and flags.

The scheduling rules are `engine_models.schedulers.memory_then_tokens`, the cache `engine_models.memory.block_tree`.

Behaviour and defaults of the repository in 2026 (the 1.3 line: `tensorrt_llm/_torch/pyexecutor`, `llmapi/llm_args.py`,
`cpp/tensorrt_llm/batch_manager`); scheduling checked step by step against recordings (`capacity-plan validate schedules`).
Version 1.0 is the same rules with its CUDA-graph sizes, compared with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from engine_models.cost.drafting import chains_only, summary_note
from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.declaration import (
    Engine,
    EnginePlan,
    Executor,
    FrontEnd,
    Handover,
    Limits,
    Lockstep,
    MemoryBudget,
    Mode,
    PoolRequest,
    Replay,
    Role,
    Support,
)
from engine_models.engines.trtllm_executor import MemoryWords, memory_left
from engine_models.engines.trtllm_flags import FLAGS, group
from engine_models.engines.trtllm_kernels import (
    EXPERT_LAUNCHES,
    LATENT_LAUNCHES,
    as_run,
    experts,
    gathered_bytes,
)
from engine_models.memory.block_tree import BlockTree
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import (
    CAPACITY_POLICIES,
    CHUNKING_POLICIES,
    FIRST_COME,
    GUARANTEED,
    UTILIZATION,
    TwoPassBatch,
    TwoPassRules,
    TwoPassScheduler,
)
from engine_models.schedulers.memory_then_tokens_drafted import DraftedTwoPassScheduler
from engine_models.schedulers.prompts_together import PromptsTogether
from engine_models.schedulers.transferred import (
    ContextServer,
    DraftedGenerationServer,
    DraftedReservingGenerationServer,
    GenerationServer,
    ReservingGenerationServer,
    WaitingContextServer,
)
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError, nearest

VERSIONS: dict[str, dict[str, Any]] = {
    "1.3.0": {"recorded": True, "graph_step_above_128": 64},
    "1.0.0": {"recorded": False, "graph_step_above_128": 0},
}
"""The newest first; of each older one what differs from the next newer. `recorded`: whether its scheduling was compared with
recordings; `graph_step_above_128`: step of the padded CUDA-graph sizes (0: they double). Source: as the module."""

ONE_MODEL = ("mtp", "eagle3")
"""Methods whose drafter is part of the model's own pass; the others run without the overlap scheduler (datasheet: the examples of
docs/source/features/speculative-decoding.md, read 2026-11)."""

BATCH_SIZE, STEP_TOKENS, MEMORY_FRACTION = 2048, 8192, 0.9
GRAPH_ROWS = 128
"""`max_batch_size`, `max_num_tokens`, `free_gpu_memory_fraction` of ``trtllm-serve`` and the largest captured batch (datasheet:
`tensorrt_llm/commands/serve.py`, `llmapi/llm_args.py`, read 2026-11)."""



PLAIN: dict[tuple[Role, bool], type[TwoPassScheduler]] = {
    ("mixed", False): TwoPassScheduler,
    ("prefill", False): ContextServer,
    ("prefill", True): WaitingContextServer,
    ("decode", False): GenerationServer,
    ("decode", True): ReservingGenerationServer,
}
DRAFTED: dict[tuple[Role, bool], type[DraftedTwoPassScheduler]] = {
    ("mixed", False): DraftedTwoPassScheduler,
    ("decode", False): DraftedGenerationServer,
    ("decode", True): DraftedReservingGenerationServer,
}
"""The scheduler of a role, by whether memory is reserved before a prompt is computed."""


@dataclass(frozen=True)
class Rank:
    """Rules and blocks of one rank: what a fresh scheduler is built from."""

    rules: TwoPassRules
    blocks: int
    block_tokens: int
    reuse: bool
    partial: bool = True
    copies: bool = True
    windows: tuple[int, ...] = ()  # of the model's layers
    row_tokens: int = 1  # that a step verifies, with drafts
    role: Role = "mixed"
    reserves: bool = False  # servers that share a request get it at once
    together: bool = False  # ranks begin prompts together: what they agree on is by steps, none of which is left out

    def scheduler(self, mode: Mode) -> TwoPassScheduler:
        """Build a scheduler with its blocks."""
        kv = BlockTree(
            self.blocks,
            self.block_tokens,
            prefix_caching=self.reuse,
            partial=self.partial,
            copies=self.copies,
            returns=self.rules.capacity_scheduler_policy == UTILIZATION,
        )
        if self.row_tokens > 1 and self.role != "prefill":
            drafted = DRAFTED[self.role, self.reserves]
            return drafted(self.rules, kv, row_tokens=self.row_tokens, windows=self.windows)
        return PLAIN[self.role, self.reserves](
            self.rules,
            kv,
            aggregate=mode != "step" and not self.together,
            record_rows=mode == "record",
            windows=self.windows,
        )


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


def _policy(name: str, value: str, known: tuple[str, ...]) -> str:
    if value.upper() in known:
        return value.upper()
    close = nearest(value.upper(), list(known))
    raise InputError(
        f"{name} {value} is not simulated for TensorRT-LLM",
        where=f"deployment.engine_args.scheduler_config.{name}",
        mend=(f"did you mean {close}? " if close else "") + f"one of {', '.join(known)}",
    )


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of TensorRT-LLM: memory as left after a trial run, limits, policies, graphs, overheads.

    Raises InfeasibleError if the weights or a few blocks do not fit, InputError on flags out of range.
    """
    name = ENGINE.version(version_text)
    version, arch, flags = ENGINE.switches(name), request.arch, request.flags
    if request.device_vendor != "nvidia":
        raise InputError(
            f"TensorRT-LLM runs on NVIDIA GPUs, not on {request.device_name}",
            where="deployment.hardware",
            mend="use an NVIDIA GPU, or another engine (`capacity-plan list engines`)",
        )
    if any(block.kind == "linear" or block.sparse for block in arch.attention):
        raise InputError(
            f"models with recurrent, indexed or compressed layers such as {arch.name} are not simulated for TensorRT-LLM",
            where="model",
            mend="use another engine (`capacity-plan list engines`)",
        )
    kv, scheduling = group(flags, "kv_cache_config"), group(flags, "scheduler_config")
    captured = flags.get("cuda_graph_config") != "none"
    graph_config = group(flags, "cuda_graph_config") if captured else {}
    rows, tokens = int(flags.get("max_batch_size", BATCH_SIZE)), int(flags.get("max_num_tokens", STEP_TOKENS))
    drafts = request.speculation
    row_tokens = drafts.row_tokens if drafts else 1
    if drafts:
        rows = max(1, min(rows, tokens // row_tokens))
    block = int(kv["tokens_per_block"])
    chunked = bool(flags.get("enable_chunked_prefill", False))
    if chunked and tokens < block:
        raise InputError(
            f"max_num_tokens {tokens} is less than a block of {block} tokens, to which chunks are cut: none would be computed",
            where="deployment.engine_args.max_num_tokens",
            mend=f"give at least {block}",
        )
    dp = request.data_parallel
    policy = _policy("capacity_scheduler_policy", scheduling["capacity_scheduler_policy"], CAPACITY_POLICIES)
    if drafts and policy == UTILIZATION:
        raise InputError(
            f"{UTILIZATION} beside speculative decoding is not modelled",
            where="deployment.engine_args.scheduler_config.capacity_scheduler_policy",
            mend=f"use {GUARANTEED}, the default",
        )
    chunking = _policy(
        "context_chunking_policy", scheduling["context_chunking_policy"] or FIRST_COME, CHUNKING_POLICIES
    )
    asked = int(flags.get("max_seq_len") or arch.max_context_tokens)
    memory = _memory(request, tokens, asked, kv)
    kv_tokens = memory.blocks * block
    context = min(asked, kv_tokens)
    rules = TwoPassRules(
        max_batch_size=rows,
        max_num_tokens=tokens,
        max_seq_len=context,
        capacity_scheduler_policy=policy,
        context_chunking_policy=chunking if chunked else None,
        batch_wait_timeout_iters=int(flags.get("batch_wait_timeout_iters", 0)),
        batch_wait_max_tokens_ratio=float(flags.get("batch_wait_max_tokens_ratio", 0.0)),
        overlap=not flags.get("disable_overlap_scheduler", request.role == "prefill")
        and (drafts is None or drafts.method in ONE_MODEL),
    )
    handover = _handover(request, policy, block) if request.role != "mixed" else None
    reuse = bool(kv["enable_block_reuse"])
    rank = Rank(
        rules,
        memory.blocks,
        block,
        reuse,
        bool(kv["enable_partial_reuse"]),
        bool(kv["copy_on_partial_reuse"]),
        arch.windows_below(context),
        row_tokens,
        request.role,
        handover is not None and handover.reserves,
        bool(group(flags, "attention_dp_config")["enable_balance"]) and dp > 1 and handover is None,
    )
    sizes = graph_sizes(graph_config, version["graph_step_above_128"]) if captured else ()
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    # a paused request comes back with its answer as prompt, computed alone if it exceeds the budget
    step_tokens = max(tokens, rows * row_tokens, context if policy == UTILIZATION and not chunked else 0)
    warnings: list[str] = []
    backend = experts(request, str(group(flags, "moe_config")["backend"]), warnings)
    return EnginePlan(
        engine=ENGINE.name,
        version=name,
        limits=Limits(
            rows=rows,
            step_tokens=step_tokens,
            context_tokens=context,
            kv_tokens=kv_tokens,
            kv_blocks=memory.blocks,
            block_tokens=block,
            prompt_tokens=context - 1 if chunked or request.role == "decode" else min(context - 1, tokens),
            row_tokens=context,
            spare_tokens=row_tokens - 1,
        ),
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(
            as_run(request),
            request.formats,
            Terms(
                overheads.host,
                graph_sizes=tuple(row_tokens * size for size in sizes),
                exact_graphs=captured and not graph_config["enable_padding"],
                small_kernels=True,
                moe_backend=backend,
                expands_latents=True,
                moe_by_flag=False,
                rotary_in_attention=True,
                gathered_bytes=gathered_bytes(request),
                shared_beside=True,
                expert_launches=EXPERT_LAUNCHES.get(backend or ""),
                latent_launches=LATENT_LAUNCHES,
            ),
            TableRange(step_tokens, rows, context),
            Parallelism(request.tensor_parallel, expert=request.expert_parallel, ranks=dp),
            speculation=drafts,
        ),
        executor=_executor(flags, rules.overlap, dp, rank.together),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=reuse,
        handover=handover,
        notes=(
            *((summary_note(drafts), *drafts.notes) if drafts else ()),
            *_notes(
                name,
                bool(version["recorded"]),
                rules,
                asked,
                reuse,
                sizes,
                bool(graph_config.get("enable_padding")),
            ),
        ),
        warnings=tuple(warnings),
        sources=overheads.provenance,
    )


GENERATION_FIRST = "generation_first"
CONNECTORS = {"DEFAULT": "NIXL", "NIXL": "NIXL", "UCX": "UCX", "MPI": "MPI"}
"""``cache_transceiver_config.backend`` -> what moves the cache."""


def _handover(request: PoolRequest, policy: str, block_tokens: int) -> Handover:
    """How a pool with a role passes requests on; InputError where that is not modelled."""
    transceiver = group(request.flags, "cache_transceiver_config")
    named = request.connector or str(transceiver["backend"]).upper()
    if named.upper() not in CONNECTORS:
        raise InputError(
            f"context and generation servers over {named} are not modelled",
            where="deployment.transfer.connector",
            mend=f"use one of {', '.join(CONNECTORS)}",
        )
    if policy != GUARANTEED:
        raise InputError(
            f"context and generation servers with a capacity policy other than {GUARANTEED} are not modelled yet",
            where="deployment.role",
            mend="leave it out, or use pools of role: mixed",
        )
    late_s, reserves = transceiver["kv_transfer_timeout_ms"] / 1e3, request.schedule_style == GENERATION_FIRST
    lease_s = None if reserves else (late_s, 0.0)  # both servers cancel what is not sent or read in time
    return Handover(
        CONNECTORS[named.upper()], block_tokens, reserves=reserves, lease_s=lease_s, tells=False, gives_up_s=late_s
    )


def _executor(flags: Mapping[str, Any], overlap: bool, ranks: int, together: bool) -> Executor:
    """Ranks of attention data parallelism get a request by their number of them, and may begin prompts together."""
    executor = Executor(depth=2 if overlap else 1, ranks=ranks, rank_router="fewest")
    if not together:
        return executor
    balance = group(flags, "attention_dp_config")
    waits = int(balance["timeout_iters"]), int(balance["batching_wait_iters"])
    return replace(executor, gate=partial(PromptsTogether, *waits))


def _notes(
    name: str,
    recorded: bool,
    rules: TwoPassRules,
    asked: int,
    reuse: bool,
    sizes: tuple[int, ...],
    padding: bool,
) -> tuple[str, ...]:
    policy = rules.capacity_scheduler_policy
    prompts = f"in chunks ({rules.context_chunking_policy})" if rules.context_chunking_policy else "whole"
    lets_in = (
        "lets in what fits the next step, and pauses the last that began when memory runs short"
        if policy == UTILIZATION
        else "reserves memory for a request's whole allowed answer: its max_output_tokens, or, where it sets none, all up to "
        f"max_seq_len ({rules.max_seq_len:,})"
    )
    return (
        f"TensorRT-LLM {name}: at most {rules.max_batch_size:,} active requests and {rules.max_num_tokens:,} tokens a step, "
        f"prompts {prompts} beside answers; {'blocks are reused' if reuse else 'no block reuse'}, "
        f"{'overlap scheduler' if rules.overlap else 'no overlap'}",
        f"{policy} {lets_in}",
        *(
            (f"max_seq_len {asked:,} is reduced to the {rules.max_seq_len:,} tokens that the KV cache holds",)
            if asked > rules.max_seq_len
            else ()
        ),
        *(
            ()
            if recorded
            else (
                f"TensorRT-LLM {name} is simulated by the rules of 1.3 with its graph sizes; no recording of it was compared",
            )
        ),
        "TensorRT-LLM's host time of a step is taken over from vLLM (assumed); over 375 measured runs TPOT is 6 % and TTFT "
        "12 % off in the median (docs/engines/trtllm.md)",
        "without CUDA graphs (cuda_graph_config: none) the host launches every operation"
        if not sizes
        else f"decode steps of {'up to' if padding else 'exactly'} the captured sizes (to {sizes[-1]} rows) run as CUDA graphs"
        + ("" if padding else ", others are launched by the host (enable_padding is off)"),
    )


def _memory(request: PoolRequest, tokens: int, context: int, kv: Mapping[str, Any]) -> MemoryBudget:
    """Memory by the flags of a pool; datasheet: `pyexecutor/_util.py`, read 2026-11."""
    given = request.flags.get("kv_cache_config") or {}
    share = kv["free_gpu_memory_fraction"] if "free_gpu_memory_fraction" in given else None
    fraction = float(share or request.flags.get("free_gpu_memory_fraction", MEMORY_FRACTION))
    words = MemoryWords("max_num_tokens", "free_gpu_memory_fraction")
    return memory_left(request, tokens, context, fraction, int(kv["tokens_per_block"]), kv["max_tokens"], words)


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line; recordings name a branch, not a release."""
    rules = TwoPassRules(
        max_batch_size=knobs["max_batch_size"],
        max_num_tokens=knobs["max_num_tokens"],
        max_seq_len=knobs["max_seq_len"],
        capacity_scheduler_policy=knobs["capacity_scheduler_policy"],
        context_chunking_policy=knobs["context_chunking_policy"] if knobs["enable_chunked_prefill"] else None,
        batch_wait_timeout_iters=knobs["batch_wait_timeout_iters"],
        batch_wait_max_tokens_ratio=knobs["batch_wait_max_tokens_ratio"],
        overlap=knobs["overlap"],
    )
    rank = Rank(
        rules,
        knobs["num_blocks"],
        knobs["tokens_per_block"],
        knobs["enable_block_reuse"],
        knobs["enable_partial_reuse"],
        knobs["copy_on_partial_reuse"],
    )
    columns = (
        "sched",
        "n_ctx",
        "hits",
        "paused",
        "skipped",
        "running",
        "waiting",
        "queued",
        "free_blocks",
        "finished",
    )
    return Replay(
        rank.scheduler("record"), 2 if rules.overlap else 1, (*columns, "free_blocks_after"), as_recorded
    )


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A settled step as the recordings write it."""
    assert isinstance(batch, TwoPassBatch)
    assert batch.rows is not None

    def names(seqs: list[Sequence]) -> list[str]:
        return [ids[seq.index] for seq in seqs]

    return {
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows],
        "n_ctx": len(batch.contexts),
        "hits": {ids[seq.index]: found for seq, found in batch.hits},
        "paused": names(batch.preempted),
        "skipped": names(batch.skipped),
        "running": names(batch.running),
        "waiting": names(batch.waiting),
        "queued": names(batch.queued),
        "free_blocks": batch.free_blocks,
        "finished": names(batch.finishing),
        "free_blocks_after": batch.free_after,
    }


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
