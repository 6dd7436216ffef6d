"""Continuous batching of transformers: what it is in terms of the shared parts, its defaults and limits.

The scheduling rule is `engine_models.schedulers.first_fit`, the cache `engine_models.memory.sector_kv`; read and recorded as
`transformers` beside says.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.declaration import EnginePlan, Executor, FrontEnd, Limits, Mode, PoolRequest
from engine_models.engines.generate import launched, overheads, priced_as
from engine_models.engines.transformers_memory import groups_of, longest_request, memory_of
from engine_models.memory.sector_kv import SectorKV
from engine_models.schedulers.first_fit import FirstFitRules, FirstFitScheduler

BATCH_TOKENS, BATCH_REQUESTS, BLOCKS_PER_REQUEST, PAGE_TOKENS, QUERY_STEP = 8192, 1024, 32, 256, 64
SAFETY_MARGINS = {"fifo": 0.15, "prefill_first": 0.0}
"""Defaults (datasheet: `continuous_batching/initialization.py`, `scheduler.py`, `configuration_utils.py` of 5.24.0)."""


def _uses_flash(request: PoolRequest) -> bool:
    """Whether attention is FlashAttention: with it come the fast path, graphs and batches chosen ahead."""
    asked = request.flags.get("attn_implementation")
    if asked is not None:
        return "flash" in str(asked)
    return request.device_kind == "gpu" and request.device_vendor == "nvidia"


def continuous_plan(request: PoolRequest, engine: str, version: str) -> EnginePlan:
    """Resolve one pool. Raises InfeasibleError if the model does not fit."""
    arch, tp, flags = request.arch, request.tensor_parallel, request.flags
    context, flash = arch.max_context_tokens, _uses_flash(request)
    graphs = bool(flags.get("use_cuda_graph", flash)) and request.device_kind in ("gpu", "apu")
    ahead = flags.get("use_async_batching")
    ahead = (graphs and flash) if ahead is None else bool(ahead)
    page = int(flags.get("page_size", PAGE_TOKENS))
    tokens = int(flags.get("max_batch_tokens") or BATCH_TOKENS)
    rows = min(int(flags.get("max_requests_per_batch") or BATCH_REQUESTS), tokens)
    most_blocks = flags.get("max_blocks_per_request")
    most_blocks = BLOCKS_PER_REQUEST if most_blocks is None else int(most_blocks)
    groups = groups_of(request)
    windows = [group.window_tokens for group in groups]
    fast = most_blocks if flash and windows == [None] else 0
    memory, sectors = memory_of(
        request, groups, tokens=tokens, rows=rows, flash=flash, ahead=ahead, blocks=fast, page=page
    )
    longest = longest_request(sectors, page, groups, context)
    policy = str(flags.get("scheduler_type", "fifo"))
    margin = flags.get("safety_margin")
    query = int(flags.get("q_padding_interval_size") or QUERY_STEP)
    rules = FirstFitRules(
        max_batch_tokens=tokens,
        max_requests_per_batch=rows,
        max_tokens_read=sectors * max(group.blocks_per_sector for group in groups) * page,
        max_decode_fast_path_length=fast * page,
        safety_margin_share=SAFETY_MARGINS[policy] if margin is None else float(margin),
        prefill_first=policy == "prefill_first",
        read_window_tokens=windows[0] if len(windows) == 1 else None,
        pads_to_powers=rows if graphs else 0,
        pads_to_tokens=query if graphs else 0,
    )
    sharing = bool(flags.get("allow_block_sharing", True)) and windows == [None]
    spans = arch.windows_below(context)

    def scheduler(mode: Mode) -> FirstFitScheduler:
        kv = SectorKV(sectors, page, groups, sharing=sharing)
        return FirstFitScheduler(rules, kv, aggregate=mode == "jump", record_rows=mode == "record", windows=spans)

    found = overheads()
    heads = arch.attention[0]
    passes = 2.0 if flash else 2.0 + 2.0 * heads.heads / heads.kv_heads
    captured = (
        {min(1 << power, rows) for power in range(rows.bit_length())}
        | set(range(query, tokens + 1, query))
        | {tokens}
    )
    host = replace(found.host, prefill_graph_tokens=tokens if graphs else 0)
    per_sector = sum(group.blocks_per_sector * page for group in groups if group.window_tokens is None)
    capacity = sectors * (per_sector or page)
    return EnginePlan(
        engine=engine,
        version=version,
        limits=Limits(
            rows=rows,
            step_tokens=tokens,
            context_tokens=context,
            kv_tokens=max(capacity, longest),
            kv_blocks=sectors,
            block_tokens=page,
            prompt_tokens=longest - 1,
            row_tokens=longest,
            asked_tokens=1,  # an answer is cut, not refused
        ),
        memory=memory,
        scheduler=scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(
                host if graphs else launched(host, request),
                graph_sizes=tuple(sorted(captured)) if graphs else (),
                gather_factor=passes,
            ),
            TableRange(tokens, rows, context),
            Parallelism(tp),
        ),
        executor=Executor(depth=2 if ahead else 1),
        front=FrontEnd(found.front_end_s, found.tokenise_token_s, loop=found.loop),
        prefix_caching=sharing,
        notes=(
            f"continuous batching: {sectors:,} sectors of {page} tokens, {tokens:,} tokens and {rows:,} rows a step, "
            + ("complete blocks can be found" if sharing else "no prefix cache"),
            f"steps in which all rows decode below {fast * page:,} tokens read the cache in place, others copy it first"
            if fast
            else "every step copies the cache that it reads",
            "CUDA graphs hold every step, the next one is chosen while one runs; the host's time is assumed"
            if graphs and ahead
            else "no CUDA graphs: a step takes no less than the host needs to launch it"
            if not graphs and request.device_kind != "cpu"
            else "the host's time is assumed",
            "the front end is vLLM's (assumed)",
            *priced_as(request),
        ),
        sources=found.provenance,
    )


__all__ = ["continuous_plan"]
