"""LMDeploy's PyTorch engine: what it is in terms of the shared parts, its defaults and memory.

The scheduling rule is `engine_models.schedulers.alternating`, the cache `engine_models.memory.block_trie`.

Behaviour and defaults of the repository at 1263d5cd (2026-08: `lmdeploy/pytorch`, `lmdeploy/serve`, `lmdeploy/utils.py`);
scheduling checked step by step against recordings of 0.18.0 (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.draft_methods import WHERE
from engine_models.cost.terms import HostOverhead, Terms
from engine_models.declaration import Limits, Mode, PoolRequest
from engine_models.engines.lmdeploy_adapters import adapters_in
from engine_models.engines.lmdeploy_backend import Backend
from engine_models.engines.lmdeploy_memory import pytorch_memory
from engine_models.memory.block_trie import TrieBlocks
from engine_models.refusals import ELSEWHERE, no_layers, only_weights_in
from engine_models.schedulers.alternating import AlternatingRules, AlternatingScheduler
from engine_models.schedulers.alternating_drafted import DraftedAlternatingScheduler
from hardware_profiles.errors import InfeasibleError, InputError

GRAPH_STEP = 256
"""Rows between two captured batches beyond it (datasheet: `backends/cuda/graph_runner.py` at 1263d5cd, 2026-08)."""
WEIGHTS = ("bf16", "fp16", "fp8", "fp8_block", "int8", "awq")
"""Formats that the PyTorch engine loads (datasheet: `pytorch/config.py`, `backends/cuda` there)."""


def graph_sizes(rows: int) -> tuple[int, ...]:
    """Batches for which decode graphs are captured: powers of two, then steps, and the largest."""
    powers = [1 << i for i in range(rows.bit_length()) if 1 << i <= min(GRAPH_STEP, rows)]
    return tuple(sorted({*powers, *range(2 * powers[-1], rows + 1, GRAPH_STEP), rows}))


def resolved(request: PoolRequest, rows: int, host: HostOverhead) -> Backend:
    """Resolve one pool: memory left by weights and the largest step's logits, limits, graphs; `rows` requests at once.

    Raises InfeasibleError if the weights do not fit, InputError on what the engine or this model of it lacks.
    """
    arch, flags = request.arch, request.flags
    _refuse(request)
    adapters = adapters_in(request)
    memory, prefill, page = pytorch_memory(request, rows, adapters.memory_bytes if adapters is not None else 0)
    usable = memory.blocks - 1  # block 0 is of padding
    session = int(flags.get("session_len") or arch.max_context_tokens)
    windows = arch.windows_below(session)
    window = windows[0] if len(windows) == 1 and all(block.window_tokens for block in arch.attention) else 0
    drafts, interval = request.speculation, int(flags.get("prefill_interval", 16))
    ahead = drafts.tokens + interval * drafts.row_tokens if drafts is not None else page
    longest = session if 0 < window <= usable * page else min(session, usable * page - max(page, ahead))
    if longest < 2:
        raise InfeasibleError(
            f"the KV cache holds {memory.blocks} blocks of {page} tokens, no request fits",
            where="deployment",
            mend=request.more_memory,
        )
    caching = bool(flags.get("enable_prefix_caching", False)) and not window
    rules = AlternatingRules(
        max_batch_size=rows,
        max_prefill_token_num=prefill,
        prefill_interval=interval,
        ttft_policy=str(flags.get("ttft_policy", "size")),
        ttft_short_turns=int(flags.get("ttft_short_turns", 3)),
        ttft_aging_s=float(flags.get("ttft_aging_sec", 2.0)),
        handle_pool=rows,
    )

    def scheduler(mode: Mode) -> AlternatingScheduler:
        kv = TrieBlocks(usable, page, prefix_caching=caching, window_tokens=window)
        if drafts is not None:
            return DraftedAlternatingScheduler(rules, kv, drafts=drafts.tokens, windows=windows)
        return AlternatingScheduler(
            rules,
            kv,
            aggregate=mode != "step",
            record_rows=mode == "record",
            windows=windows,
            masked=request.structured,
            adapted=adapters is not None,
        )

    asked = flags.get("cudagraph_capture_batch_sizes")
    sizes = graph_sizes(rows) if asked is None else tuple(sorted({size for size in asked if size <= rows} | {rows}))
    graphs = () if flags.get("eager_mode") else sizes
    step_tokens = max(prefill, rows * (drafts.row_tokens if drafts is not None else 1))
    return Backend(
        limits=Limits(
            rows=rows,
            step_tokens=step_tokens,
            context_tokens=session,
            kv_tokens=usable * page,
            kv_blocks=usable,
            block_tokens=page,
            prompt_tokens=longest - 1,
            row_tokens=longest,
            asked_tokens=1,  # an answer is cut, not refused
            request_tokens=session if window else None,
        ),
        memory=memory,
        scheduler=scheduler,
        terms=Terms(replace(host, prefill_graph_tokens=0), graph_sizes=graphs),
        depth=2,
        prefix_caching=caching,
        notes=(
            f"LMDeploy's PyTorch engine: {usable:,} blocks of {page} tokens, {prefill:,} prompt tokens a step, {rows:,} rows; "
            + ("cached blocks can be found" if caching else "no prefix cache"),
            f"prompts pause the running rows, which go first at most {rules.prefill_interval} times while others wait and half "
            f"of the rows run; above {rows:,} requests others wait in front of the engine",
            "LMDeploy's kernels and its host and front end are priced as vLLM's (assumed, nobody measured them); prompts run "
            "outside CUDA graphs" + ("" if graphs else ", as do decodes (eager_mode)"),
        ),
        recorded=True,
        adapters=adapters,
    )


def _refuse(request: PoolRequest) -> None:
    lacks = f"LMDeploy's PyTorch engine loads no weights in {request.formats.weights.name}"
    only_weights_in(request, WEIGHTS, lacks, otherwise=", or another engine (`capacity-plan list engines`)")
    if request.formats.kv_cache.name == "int4":
        raise InputError(
            "a KV cache in int4 of LMDeploy's PyTorch engine is not simulated",
            where="deployment.kv_cache",
            mend="use int8 or fp8, or a model that TurboMind has",
        )
    if request.speculation is not None and all(block.window_tokens for block in request.arch.attention):
        raise InputError(
            f"drafts of LMDeploy for {request.arch.name}, all of whose layers slide, are not simulated",
            where=WHERE,
            mend=f"leave speculative out, or {ELSEWHERE}",
        )
    caches = f"LMDeploy's state caches and sparse attention, which {request.arch.name} needs"
    no_layers(request, ("linear", "sparse"), f"{caches}, are not simulated")


__all__ = ["WEIGHTS", "graph_sizes", "resolved"]
