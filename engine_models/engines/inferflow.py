"""Inferflow: what its service is in terms of the shared parts, its defaults, memory and configuration.

The scheduling rule is `engine_models.schedulers.soft_budget`; each row has a cache of a whole context.

Behaviour and defaults of the repository at 14ff95e (2024-03, its last commit), read; no recordings exist.
"""

from __future__ import annotations

from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.declaration import Engine, EnginePlan, FrontEnd, Limits, Mode, PoolRequest, Support
from engine_models.engines.inferflow_flags import FLAGS
from engine_models.engines.inferflow_memory import memory_of, refuse
from engine_models.schedulers.soft_budget import SoftBudgetRules, SoftBudgetScheduler
from hardware_profiles.device import DeviceKind

STEP_TOKENS, MOST_QUERIES, SHIPPED_QUERIES, SHIPPED_WORKERS = 256, 16, 6, 32
"""Soft budget of a step, most caches (`MAX_PROC_ID`), and what the shipped ini file says (datasheet: `GetLocalInput` in
`inference_engine.cc`, `query_state_table.h`, `bin/inferflow_service.ini`, 14ff95e)."""


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: as many caches as queries, each of a whole context.

    Raises InfeasibleError if weights and caches do not fit, InputError on what the engine lacks.
    """
    arch, flags = request.arch, request.flags
    refuse(request)
    asked = int(flags.get("max_concurrent_queries", SHIPPED_QUERIES))
    queries, workers = min(asked, MOST_QUERIES), int(flags.get("worker_count", SHIPPED_WORKERS))
    context = min(int(flags.get("max_context_len") or arch.max_context_tokens), arch.max_context_tokens)
    memory = memory_of(request, queries, context)
    rules = SoftBudgetRules(min(queries, workers), STEP_TOKENS)
    windows = arch.windows_below(context)

    def scheduler(mode: Mode) -> SoftBudgetScheduler:
        return SoftBudgetScheduler(rules, aggregate=mode != "step", record_rows=mode == "record", windows=windows)

    step_tokens = context + STEP_TOKENS
    overheads = load_overheads(ENGINE.name)
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=rules.rows,
            step_tokens=step_tokens,
            context_tokens=context + 1,
            kv_tokens=queries * context,
            kv_blocks=queries,
            block_tokens=context,
            prompt_tokens=context,
            row_tokens=context + 1,
            asked_tokens=1,  # an answer is cut, not refused
            request_tokens=context,
        ),
        memory=memory,
        scheduler=scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(overheads.host),
            TableRange(step_tokens, rules.rows, context + 1),
            Parallelism(request.tensor_parallel),
        ),
        # with a thread left over, who comes too many is answered at once
        front=FrontEnd(
            overheads.front_end_s,
            overheads.tokenise_token_s,
            inflight=queries if workers > queries else None,
            on_full="503",
        ),
        notes=(
            f"Inferflow: {queries} queries at once, each with a cache of {context:,} tokens; steps take whole prompts until "
            f"{STEP_TOKENS} tokens are reached",
            "above them it answers at once with `error.busy` (HTTP 200; counted as 503)"
            if workers > queries
            else f"{workers} HTTP threads serve one query each, others wait for a thread",
            *((f"max_concurrent_queries {asked} is more than its {MOST_QUERIES} caches",) if asked > queries else ()),
            "its scheduling was read from the source and compared with no recording; one rate of its documentation stands for "
            "its kernels, host times (1 ms a step, 0.75 ms a row for sampling on one thread) are assumed, nobody measured them",
        ),
        sources=overheads.provenance,
    )


_SOURCE = "inferflow/inferflow at 14ff95e (2024-03)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu"})

ENGINE = Engine(
    name="inferflow",
    title="Inferflow",
    rule=(
        "Rows in order of arrival, each with all that it has to compute, until a soft budget of tokens is reached; "
        "every row has a cache of a whole context, set aside at start-up."
    ),
    versions={"0.1.0": {}},
    devices={"gpu": f"{_SOURCE}: NVIDIA GPUs; its CPU layers are not simulated"},
    formats={
        name: Support(_KINDS, f"{_SOURCE}: docs/model_serving_config.md, src/common/quant_types.h")
        for name in ("fp16", "bf16", "blockwise")
    },
    kv_formats=(),
    features={},
    flags=lambda: FLAGS,
    same_as={"rows": "max_concurrent_queries", "context": "max_context_len", "tensor_ranks": "devices"},
    kernels="blockwise",
    plan=plan,
)
