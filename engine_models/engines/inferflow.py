"""Inferflow: what its service is in terms of the shared parts, its defaults, memory and configuration.

The scheduling rule is `engine_models.schedulers.soft_budget`; each row has a cache of a whole context.

Behaviour and defaults of the repository at 14ff95e (2024-03, its last commit), read; no recordings exist.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from engine_models.engines.inferflow_flags import FLAGS
from engine_models.model.activations import CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_groups, weight_bytes_per_rank
from engine_models.schedulers.soft_budget import SoftBudgetRules, SoftBudgetScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError

STEP_TOKENS, MOST_QUERIES, SHIPPED_QUERIES, SHIPPED_WORKERS = 256, 16, 6, 32
"""Soft budget of a step, most caches (`MAX_PROC_ID`), and what the shipped ini file says (datasheet: `GetLocalInput` in
`inference_engine.cc`, `query_state_table.h`, `bin/inferflow_service.ini`, 14ff95e)."""



@dataclass(frozen=True)
class Rank:
    """Rules of one rank: what a fresh scheduler is built from."""

    rules: SoftBudgetRules
    windows: tuple[int, ...]

    def scheduler(self, mode: Mode) -> SoftBudgetScheduler:
        """Build a scheduler."""
        return SoftBudgetScheduler(
            self.rules, aggregate=mode != "step", record_rows=mode == "record", windows=self.windows
        )


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: as many caches as queries, each of a whole context.

    Raises InfeasibleError if weights and caches do not fit, InputError on what the engine lacks.
    """
    arch, flags = request.arch, request.flags
    _refuse(request)
    asked = int(flags.get("max_concurrent_queries", SHIPPED_QUERIES))
    queries, workers = min(asked, MOST_QUERIES), int(flags.get("worker_count", SHIPPED_WORKERS))
    context = min(int(flags.get("max_context_len") or arch.max_context_tokens), arch.max_context_tokens)
    memory = _memory(request, queries, context)
    rules = SoftBudgetRules(min(queries, workers), STEP_TOKENS)
    rank = Rank(rules, arch.windows_below(context))
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
        scheduler=rank.scheduler,
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


def _refuse(request: PoolRequest) -> None:
    arch = request.arch
    if request.device_vendor != "nvidia":
        raise InputError(
            f"Inferflow runs on NVIDIA GPUs, not on {request.device_name}",
            where="deployment.hardware",
            mend="use an NVIDIA GPU, or another engine (`capacity-plan list engines`)",
        )
    if ";" in str(request.flags.get("devices", "")):
        raise InputError(
            "layers spread over several stages of devices are not simulated for Inferflow",
            where="deployment.engine_args.devices",
            mend="join the devices by `&` (they then share each layer), or use another engine",
        )
    if any(block.kind in ("mla", "linear") or block.sparse for block in arch.attention):
        raise InputError(
            f"Inferflow has no recurrent layers, and no latent or sparse attention, which {arch.name} needs",
            where="model",
            mend="use another engine (`capacity-plan list engines`)",
        )
    if request.expert_parallel > 1:
        raise InputError(
            "Inferflow has no expert parallelism",
            where="deployment.expert_parallel",
            mend="leave it out, or use another engine (`capacity-plan list engines`)",
        )
    kv = request.formats.kv_cache
    if kv.bits_per_weight != 16 and kv.name != "q8_b32t2":
        raise InputError(
            f"Inferflow keeps the KV cache in F16 or Q8, not in {kv.name}",
            where="deployment.kv_cache",
            mend="leave it out, or write kv_cache: q8_b32t2 (device_kv_cache_data_type: Q8)",
        )


def _memory(request: PoolRequest, queries: int, context: int) -> MemoryBudget:
    """Weights but the embedding, which stays on the host, and the caches, all set aside when the model is loaded."""
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    on_host = bool(request.flags.get("be_host_embeddings", True)) and not arch.tied_embeddings
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1) - (arch.vocab * arch.hidden * 2 // tp if on_host else 0)
    buffers = activation_bytes(arch, context, 0, tp)
    per_token = sum(group.bytes_per_token_per_rank for group in kv_groups(arch, request.formats.kv_cache, tp, 1))
    cache, other = int(per_token * context), int(CONTEXT_BYTES)
    free = device - weights - buffers - other
    if free < queries * cache:
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {(other + buffers) / 1e9:.1f} GB of buffers + "
            f"{queries} caches of {context:,} tokens ({queries * cache / 1e9:.1f} GB), of {device / 1e9:.1f} GB",
            where="deployment",
            mend=f"a smaller engine_args.max_context_len (the model's is taken unless told otherwise), or {request.more_memory}",
        )
    lines = (
        MemoryLine("weight", "weights" + (", the embedding on the host" if on_host else ""), weights),
        MemoryLine("activation", "buffers of the longest prompt", buffers),
        MemoryLine("other", "CUDA context", other),
        MemoryLine("unused", "not used", free - queries * cache),
    )
    return MemoryBudget(device, device, lines, queries * cache, per_token, cache, queries)


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
