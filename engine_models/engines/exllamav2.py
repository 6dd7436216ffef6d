"""ExLlamaV2's dynamic generator behind TabbyAPI: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.bounded_bypass`, the cache `engine_models.memory.chained_pages`.

Behaviour of ExLlamaV2 0.3.2 (da07facd, 2025-12: `exllamav2/generator/dynamic.py`, `exllamav2/cache.py`), defaults of TabbyAPI at
d2d87bb9 (2026-06: `backends/exllamav2/model.py`), the last that has it; scheduling checked step by step against recordings of
0.3.2 (`capacity-plan validate schedules`).
"""

from __future__ import annotations

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
    checked,
)
from engine_models.engines.exllamav2_drafts import drafts_of, notes_of
from engine_models.engines.exllamav2_flags import DRAFTS, FLAGS
from engine_models.engines.exllamav2_memory import (
    CACHE_TOKENS,
    CHUNK_TOKENS,
    MAX_SKIPS,
    ROW_TOKENS,
    UNPAGED,
    is_packed,
    memory_of,
    refuse,
    rounded,
)
from engine_models.engines.exllamav2_recorded import replay as replay_recorded
from engine_models.memory.chained_pages import PAGE_TOKENS, ChainedPages
from engine_models.schedulers.bounded_bypass import BypassRules, BypassScheduler
from engine_models.schedulers.bounded_bypass_drafted import DraftedBypassScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: the cache that is asked for, what it leaves, limits, overheads.

    Raises InfeasibleError if weights and cache do not fit, InputError on what the engine or this model of it lacks.
    """
    arch, flags = request.arch, request.flags
    refuse(request)
    paged = not request.device_name.startswith(UNPAGED)
    asked = flags.get("max_seq_len")
    cache = rounded(int((flags.get("cache_size") if paged else None) or asked or CACHE_TOKENS))
    context = min(int(asked or arch.max_context_tokens), cache)
    chunk = rounded(sorted((PAGE_TOKENS, int(flags.get("chunk_size", CHUNK_TOKENS)), context))[1])
    rows = int(flags.get("max_batch_size") or chunk // ROW_TOKENS)
    if rows > chunk // ROW_TOKENS:
        raise InputError(
            f"max_batch_size {rows} is more than a chunk of {chunk:,} tokens has room for ({chunk // ROW_TOKENS})",
            where="deployment.engine_args.max_batch_size",
            mend=f"give at most {chunk // ROW_TOKENS}, or a larger chunk_size",
        )
    drafts = drafts_of(request)
    memory = memory_of(request, cache, chunk, PAGE_TOKENS if paged else cache, drafts)
    rows, page = (rows, PAGE_TOKENS) if paged else (1, cache)
    rules = BypassRules(rows, chunk, context, int(flags.get("max_skips", MAX_SKIPS)), paged)
    windows = arch.windows_below(context)

    def scheduler(mode: Mode) -> BypassScheduler:
        pages = ChainedPages(cache // page)
        if drafts is not None:
            recorded = mode == "record"
            return DraftedBypassScheduler(rules, pages, drafts=drafts.tokens, record_rows=recorded, windows=windows)
        return BypassScheduler(rules, pages, aggregate=mode != "step", record_rows=mode == "record", windows=windows)

    overheads = load_overheads(ENGINE.name)
    kv, packed = request.formats.kv_cache, is_packed(request)
    step_tokens = max(chunk, rows)
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=rows,
            step_tokens=step_tokens,
            context_tokens=cache,
            kv_tokens=cache,
            kv_blocks=cache // page,
            block_tokens=page,
            prompt_tokens=context - 1,
            row_tokens=context,
        ),
        memory=memory,
        scheduler=scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(overheads.host, widens_kv=packed),
            TableRange(step_tokens, rows, context),
            Parallelism(request.tensor_parallel),
            speculation=drafts,
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=True,
        notes=(
            f"ExLlamaV2 behind TabbyAPI: {cache // PAGE_TOKENS:,} pages of {PAGE_TOKENS} tokens ({kv.name}), which are set aside "
            f"for prompt and max_tokens when a request starts; one that asks for no limit takes the whole context of {context:,}"
            if paged
            else f"ExLlamaV2 behind TabbyAPI on {request.device_name}, without pages: one request at a time, which finds what it "
            "shares with the one before; cache_size and max_batch_size do not count",
            f"each prompt in work stops the others for a chunk of {chunk:,} tokens in every iteration; a request that does not "
            f"fit is passed over {rules.max_skips} times",
            *notes_of(drafts),
            *([f"before attention a cache in {kv.name} is widened to 16 bits, in a pass of its own"] if packed else []),
            *(["tensor parallelism is priced as vLLM's, collectives included"] if request.tensor_parallel > 1 else []),
            "ExLlamaV2's host times (50 us a row, 2 ms a request) are assumed, nobody measured them",
        ),
        sources=overheads.provenance,
    )


_SOURCE = "turboderp-org/exllamav2 0.3.2 (da07facd, 2025-12)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu"})

ENGINE: Engine = Engine(
    name="exllamav2",
    title="ExLlamaV2",
    rule=(
        "Pages for prompt and longest answer at admission; who does not fit is passed over, but only so often; "
        "prompts are computed a chunk each beside one step of all rows that generate."
    ),
    versions={"0.3.2": {}},
    oldest="0.2.0",
    devices={"gpu": f"{_SOURCE}: NVIDIA GPUs, before Ampere without pages; AMD's are not simulated"},
    formats={
        name: Support(_KINDS, f"{_SOURCE}: exllamav2/linear.py, conversion/qparams.py")
        for name in ("fp16", "bf16", "gptq", "exl")
    },
    kv_formats=(),
    features={"speculative": Support(_KINDS, f"{_SOURCE}: exllamav2/generator/dynamic.py, iterate_draftmodel_gen")},
    flags=lambda: FLAGS,
    same_as={"rows": "max_batch_size", "context": "max_seq_len", "step_tokens": "chunk_size"},
    drafts=DRAFTS.settings,
    kernels="exllamav2",
    plan=plan,
    replay=checked(lambda version: ENGINE.version(version), replay_recorded),
)
