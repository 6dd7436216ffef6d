"""MLC-LLM: what its engine is in terms of the shared parts, its modes, memory and flags.

The scheduling rule is `engine_models.schedulers.hybrid_prefill` (with drafts `hybrid_prefill_drafted`), the cache
`engine_models.memory.forked_pages`.

Behaviour and defaults of the repository at 79d603f0 (2026-07: `cpp/serve`, `python/mlc_llm`), read; no recordings exist.
"""

from __future__ import annotations

from engine_models.cost.draft_methods import chains_only
from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.declaration import (
    Engine,
    EnginePlan,
    FrontEnd,
    Limits,
    Mode,
    PoolRequest,
    Support,
)
from engine_models.engines.mlc_llm_drafts import drafts_in, notes_of
from engine_models.engines.mlc_llm_flags import DRAFT_METHODS, FLAGS, settings
from engine_models.engines.mlc_llm_memory import refuse
from engine_models.engines.mlc_llm_modes import Sizes
from engine_models.memory.forked_pages import ForkedPages
from engine_models.schedulers.hybrid_prefill import HybridPrefillScheduler, HybridRules
from engine_models.schedulers.hybrid_prefill_drafted import DraftedHybridScheduler
from hardware_profiles.device import DeviceKind

LOCAL_NOTE = "mode local serves {rows} requests at once, others wait; `mode: server` takes the memory that is there"


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: rows and tokens by its mode, as far as its own estimate of memory allows.

    Raises InfeasibleError if weights and buffers do not fit, InputError on what the engine lacks.
    """
    arch, flags = request.arch, settings(request.flags)
    refuse(request)
    drafts = drafts_in(request, flags)
    sizes = Sizes.of(request, flags, drafts)
    mode, rows, served, total, chunk, kept = sizes.mode, sizes.rows, sizes.served, sizes.total, sizes.chunk, sizes.kept
    caching = flags["prefix_cache_mode"] == "radix"
    rules = HybridRules(served, total, chunk, hybrid=drafts is None and flags["prefill_mode"] == "hybrid")
    windows = arch.windows_below(sizes.context)

    def scheduler(mode: Mode) -> HybridPrefillScheduler:
        kv = ForkedPages(sizes.pages, sizes.page, prefix_caching=caching, recycling=None if kept < 0 else kept)
        if drafts is not None:
            known, by_rows = int(drafts.method == "draft_model"), drafts.lengths
            return DraftedHybridScheduler(
                rules, kv, drafts=drafts.tokens, next_tokens=known, lengths=by_rows, windows=windows
            )
        return HybridPrefillScheduler(rules, kv, aggregate=mode != "step", record_rows=mode == "record", windows=windows)

    overheads = load_overheads(ENGINE.name)
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=rules.rows,
            step_tokens=max(chunk, rows),
            context_tokens=sizes.context,
            kv_tokens=total,
            kv_blocks=sizes.pages,
            block_tokens=sizes.page,
            prompt_tokens=sizes.longest - 1,
            row_tokens=sizes.longest,
            asked_tokens=1,  # an answer is cut, not refused
        ),
        memory=sizes.memory,
        scheduler=scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(overheads.host),
            TableRange(max(chunk, rows), rules.rows, sizes.context),
            Parallelism(request.tensor_parallel),
            speculation=drafts,
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=caching,
        notes=(
            f"MLC-LLM in mode {mode}: {rows:,} rows, {total:,} tokens in the cache, {chunk:,} tokens a step with prompts, "
            + ("decodes among them" if rules.hybrid else "during which decodes pause")
            + (f"; {'all' if kept < 0 else f'{kept:,}'} ended sequences are kept for others" if caching else "; no prefix cache"),
            *([LOCAL_NOTE.format(rows=rows)] if mode == "local" else []),
            *notes_of(drafts, rows, served),
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
