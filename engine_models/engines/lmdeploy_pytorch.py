"""LMDeploy's PyTorch engine: what it is in terms of the shared parts, its defaults and memory.

The scheduling rule is `engine_models.schedulers.alternating`, the cache `engine_models.memory.block_trie`.

Behaviour and defaults of the repository at 1263d5cd (2026-08: `lmdeploy/pytorch`, `lmdeploy/serve`, `lmdeploy/utils.py`);
scheduling checked step by step against recordings of 0.18.0 (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.draft_methods import WHERE
from engine_models.cost.terms import HostOverhead, Terms
from engine_models.declaration import Limits, MemoryBudget, MemoryLine, Mode, PoolRequest
from engine_models.engines.lmdeploy_adapters import adapters_in
from engine_models.engines.lmdeploy_backend import Backend, bytes_before
from engine_models.memory.block_trie import TrieBlocks
from engine_models.model.architecture import kv_bytes_per_token
from engine_models.refusals import ELSEWHERE, no_layers, only_weights_in
from engine_models.schedulers.alternating import AlternatingRules, AlternatingScheduler
from engine_models.schedulers.alternating_drafted import DraftedAlternatingScheduler
from hardware_profiles.errors import InfeasibleError, InputError

CACHE_SHARE = 0.8
PREFILL_TOKENS = 8192
BLOCK_TOKENS = 64
GRAPH_STEP = 256
LEAST_BLOCKS = 16
FEW_BLOCKS = 2
LOGIT_BYTES = 2
"""Defaults and sizes (datasheet: `utils.py`, `messages.py`, `backends/cuda/graph_runner.py`, `engine/executor/base.py` at
1263d5cd, 2026-08). The budget of a prefill is halved until `LEAST_BLOCKS` are left; with `FEW_BLOCKS`
it does not start."""

WEIGHTS = ("bf16", "fp16", "fp8", "fp8_block", "int8", "awq")
"""Formats that the PyTorch engine loads (datasheet: `pytorch/config.py`, `backends/cuda` there)."""

LARGE_HEAD_DIM, LARGE_HEAD_BLOCK_TOKENS = 512, 32
"""From this key width on blocks are smaller, but with FlashMLA, which Hopper has (datasheet: `_adjust_block_size` there)."""
FLASH_MLA_CARDS = ("h100", "h200", "h20", "h800", "gh200")


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
    memory, prefill, page = _memory(request, rows, adapters.memory_bytes if adapters is not None else 0)
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
    inside = min(rows, int(flags.get("max_concurrent_requests") or rows))
    rules = AlternatingRules(
        max_batch_size=rows,
        max_prefill_token_num=prefill,
        prefill_interval=interval,
        ttft_policy=str(flags.get("ttft_policy", "size")),
        ttft_short_turns=int(flags.get("ttft_short_turns", 3)),
        ttft_aging_s=float(flags.get("ttft_aging_sec", 2.0)),
        handle_pool=inside,
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
            rows=inside,
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
            f"of the rows run; above {inside:,} requests others wait in front of the engine",
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


def _memory(request: PoolRequest, rows: int, lora_bytes: int) -> tuple[MemoryBudget, int, int]:
    """KV bytes = a share of what weights, adapters, context and the largest step's logits leave; a prefill's budget; a block."""
    flags, arch = request.flags, request.arch
    tp, device = request.tensor_parallel, request.device_memory_bytes
    share = float(flags.get("cache_max_entry_count", CACHE_SHARE))
    page = int(flags.get("cache_block_seq_len", BLOCK_TOKENS))
    heads = arch.attention[0]
    if (heads.kind == "mla" or heads.head_dim >= LARGE_HEAD_DIM) and not (
        heads.kind == "mla" and request.device_name.startswith(FLASH_MLA_CARDS)
    ):
        page = min(page, LARGE_HEAD_BLOCK_TOKENS)
    weights, other = bytes_before(request)
    drafter = request.speculation.weight_bytes() if request.speculation is not None else 0
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp)
    if request.speculation is not None:
        per_token += request.speculation.kv_bytes_per_token()
    block, free = int(per_token * page), device - weights - drafter - lora_bytes - other
    prefill = int(flags.get("max_prefill_token_num", PREFILL_TOKENS))
    while True:
        logits = (prefill + 2 * rows) * arch.vocab * LOGIT_BYTES
        kv = int((free - logits) * share)
        if kv // block <= FEW_BLOCKS:
            lack = int((FEW_BLOCKS + 1) * block / share) - (free - logits)
            raise InfeasibleError(
                f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + "
                f"{(drafter + lora_bytes + other + logits) / 1e9:.1f} GB besides (logits of {prefill:,} prompt tokens among "
                f"them), of {device / 1e9:.1f} GB; {lack / 1e9:.1f} GB too much on each of {tp} devices",
                where="deployment",
                mend=f"{request.more_memory}, or a smaller engine_args.max_prefill_token_num",
            )
        if kv // block >= LEAST_BLOCKS or prefill == 1:
            break
        prefill //= 2
    lines = (
        MemoryLine("weight", "weights", weights),
        *((MemoryLine("draft", "weights of the drafter", drafter),) if drafter else ()),
        *((MemoryLine("lora", "LoRA adapters", lora_bytes),) if lora_bytes else ()),
        MemoryLine("other", "CUDA context, collectives", other),
        MemoryLine("activation", "logits of the largest step", logits),
        MemoryLine("left", "left for activations and CUDA graphs", free - logits - kv),
    )
    return MemoryBudget(device, device, lines, kv, per_token, block, kv // block), prefill, page


__all__ = ["WEIGHTS", "graph_sizes", "resolved"]
