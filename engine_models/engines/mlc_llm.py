"""MLC-LLM: what its engine is in terms of the shared parts, its modes, memory and flags.

The scheduling rule is `engine_models.schedulers.hybrid_prefill` (with drafts `hybrid_prefill_drafted`), the cache
`engine_models.memory.forked_pages`.

Behaviour and defaults of the repository at 79d603f0 (2026-07: `cpp/serve`, `python/mlc_llm`), read; no recordings exist.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.draft_methods import chains_only
from engine_models.cost.drafting import summary_note as drafts_note
from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.declaration import (
    Engine,
    EnginePlan,
    FrontEnd,
    Limits,
    MemoryBudget,
    MemoryLine,
    Mode,
    PoolRequest,
    Support,
)
from engine_models.engines.mlc_llm_flags import DRAFT_METHODS, FLAGS, settings
from engine_models.engines.mlc_llm_memory import CHUNK, LOCAL_ROWS, LOCAL_TOKENS, memory_of, refuse
from engine_models.memory.forked_pages import ForkedPages
from engine_models.schedulers.hybrid_prefill import WATERMARK_TOKENS, HybridPrefillScheduler, HybridRules
from engine_models.schedulers.hybrid_prefill_drafted import DraftedHybridScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: rows and tokens by its mode, as far as its own estimate of memory allows.

    Raises InfeasibleError if weights and buffers do not fit, InputError on what the engine lacks.
    """
    arch, flags = request.arch, settings(request.flags)
    refuse(request)
    mode, page = str(flags["mode"]), int(flags["kv_cache_page_size"])
    compiled = {"local": min(LOCAL_ROWS, flags["max_batch_size"]), "interactive": 1, "server": flags["max_batch_size"]}
    rows = int(flags["max_num_sequence"] or compiled[mode])
    context = min(int(flags["context_window_size"] or arch.max_context_tokens), arch.max_context_tokens)
    compiled_chunk = min(arch.max_context_tokens, CHUNK)
    lines, per_token, most = memory_of(request, flags, rows, compiled_chunk)
    allowed = {
        "local": min(most, context, LOCAL_TOKENS),
        "interactive": min(most, context),
        "server": min(most, rows * context),
    }
    total = int(flags["max_total_seq_length"] or allowed[mode])
    if total > most:
        raise InfeasibleError(
            f"max_total_seq_length {total:,} is more than the {most:,} tokens that memory holds",
            where="deployment.engine_args.max_total_seq_length",
            mend=f"give at most {most}, or {request.more_memory}",
        )
    chunk = int(flags["prefill_chunk_size"] or (compiled_chunk if mode == "server" else min(compiled_chunk, total, context)))
    pages = -(-total // page) + 1
    longest = min(context, total - WATERMARK_TOKENS - page)
    if longest < 2:
        raise InfeasibleError(
            f"the KV cache holds {total:,} tokens, no request fits", where="deployment", mend=request.more_memory
        )
    recycling = flags["prefix_cache_max_num_recycling_seqs"]
    kept = rows if recycling is None else recycling
    caching = flags["prefix_cache_mode"] == "radix"
    drafts = replace(request.speculation, by_host=True) if request.speculation is not None else None
    served = rows
    if drafts is not None:
        served = min(rows, chunk) // drafts.row_tokens
        if not served:
            raise InputError(
                f"MLC-LLM lets nobody in: a row that verifies {drafts.row_tokens} tokens counts for as many of the {rows} rows",
                where="deployment.engine_args.max_num_sequence",
                mend=f"give at least {drafts.row_tokens} rows for each request at once (mode: server, or max_num_sequence)",
            )
    rules = HybridRules(served, total, chunk, hybrid=drafts is None and flags["prefill_mode"] == "hybrid")
    windows = arch.windows_below(context)

    def scheduler(mode: Mode) -> HybridPrefillScheduler:
        kv = ForkedPages(pages, page, prefix_caching=caching, recycling=None if kept < 0 else kept)
        if drafts is not None:
            known = int(drafts.method == "draft_model")
            return DraftedHybridScheduler(rules, kv, drafts=drafts.tokens, next_tokens=known, windows=windows)
        return HybridPrefillScheduler(rules, kv, aggregate=mode != "step", record_rows=mode == "record", windows=windows)

    usable = sum(line.bytes for line in lines) + int(most * per_token)
    overheads = load_overheads(ENGINE.name)
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=rules.rows,
            step_tokens=max(chunk, rows),
            context_tokens=context,
            kv_tokens=total,
            kv_blocks=pages,
            block_tokens=page,
            prompt_tokens=longest - 1,
            row_tokens=longest,
            asked_tokens=1,  # an answer is cut, not refused
        ),
        memory=MemoryBudget(
            request.device_memory_bytes,
            usable,
            (*lines, MemoryLine("unused", f"not used in mode {mode}", int(most * per_token) - int(total * per_token))),
            int(total * per_token),
            per_token,
            int(per_token * page),
            pages,
        ),
        scheduler=scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(overheads.host),
            TableRange(max(chunk, rows), rules.rows, context),
            Parallelism(request.tensor_parallel),
            speculation=drafts,
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=caching,
        notes=(
            f"MLC-LLM in mode {mode}: {rows:,} rows, {total:,} tokens in the cache, {chunk:,} tokens a step with prompts, "
            + ("decodes among them" if rules.hybrid else "during which decodes pause")
            + (f"; {'all' if kept < 0 else f'{kept:,}'} ended sequences are kept for others" if caching else "; no prefix cache"),
            *(
                (f"mode local serves {rows} requests at once, others wait; `mode: server` takes the memory that is there",)
                if mode == "local"
                else ()
            ),
            *(
                (
                    drafts_note(drafts),
                    *drafts.notes,
                    f"a row counts for the {drafts.row_tokens} tokens that it verifies: of {rows:,} rows {served:,} run",
                )
                if drafts is not None
                else ()
            ),
            "its scheduling was read from the source and compared with no recording; buffers of compiled functions are taken for "
            "twice the activations of a step, its host times (0.5 ms an action, 10 us a row) are assumed, nobody measured them",
        ),
        sources=overheads.provenance,
    )


_SOURCE = "mlc-ai/mlc-llm at 79d603f0 (2026-07)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu", "apple", "apu"})

ENGINE = Engine(
    name="mlc_llm",
    title="MLC-LLM",
    rule=(
        "Prompts go first, with all decodes in the same step, while chunk, pages and a watermark allow; when pages "
        "run out the row that came last goes to the front of the queue."
    ),
    versions={"0.26.0": {}},
    oldest="0.1.0",
    devices={
        "gpu": f"{_SOURCE}: CUDA, ROCm, Vulkan, OpenCL",
        "apple": f"{_SOURCE}: Metal",
        "apu": f"{_SOURCE}: Vulkan, ROCm",
    },
    formats={
        name: Support(_KINDS, f"{_SOURCE}: python/mlc_llm/quantization/quantization.py")
        for name in ("fp16", "bf16", "awq", "fp8", "fp8_block", "mlc")
    },
    kv_formats=(),
    features={"speculative": Support(_KINDS, f"{_SOURCE}: cpp/serve/engine_actions/action_commons.cc")},
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_num_sequence",
        "context": "context_window_size",
        "step_tokens": "prefill_chunk_size",
        "memory_share": "gpu_memory_utilization",
        "tensor_ranks": "tensor_parallel_shards",
    },
    drafts=chains_only("MLC-LLM", tuple(DRAFT_METHODS.values())),
    kernels="mlc",
    plan=plan,
)
