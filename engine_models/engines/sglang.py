"""SGLang: what it is in terms of the shared parts.

What flags say of its steps is in `sglang_serving`, memory in `sglang_memory`, what lies beyond the device in `sglang_tiers`,
ranks in `sglang_ranks`, pairs of servers in `sglang_handover`, the time of steps in `sglang_costs`; the rule is `prefill_first`
of the schedulers, the cache `radix`. Behaviour and defaults of 0.5.23 (`managers/scheduler.py`, `arg_groups/memory_hook.py`,
`managers/schedule_policy.py`...); scheduling checked against recordings (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from typing import Any

from engine_models.cost.overheads import load_overheads
from engine_models.cost.token_masks import TokenMasks
from engine_models.declaration import (
    Engine,
    EnginePlan,
    Executor,
    Lockstep,
    PoolRequest,
    Said,
    Support,
    checked,
)
from engine_models.engines.sglang_adapters import adapters_of_pool
from engine_models.engines.sglang_attention import share_factor
from engine_models.engines.sglang_costs import costs_of, first_use_s, fresh_of, front_of
from engine_models.engines.sglang_drafts import draft_defaults
from engine_models.engines.sglang_flags import FLAGS, dp_attention
from engine_models.engines.sglang_handover import handover_of
from engine_models.engines.sglang_kernels import ONLY_ON, activation_format, compiles_products
from engine_models.engines.sglang_memory import as_loaded, kv_format, memory_of
from engine_models.engines.sglang_notes import say_beside, say_steps
from engine_models.engines.sglang_ranks import limits_of, pair_replay_of, rank_of, replay_of
from engine_models.engines.sglang_serving import Serving, kv_tokens_of, rows_of
from engine_models.engines.sglang_tiers import tiers_of
from engine_models.model.formats import FORMATS
from hardware_profiles.device import DeviceKind

VERSIONS: dict[str, dict[str, Any]] = {"0.5.23": {}}
"""Read and recorded; it stands for all of 0.5, but for what `sglang_serving` and `sglang_kernels` know of older ones."""


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of SGLang: memory, KV tokens, limits, graphs, overheads.

    Raises InfeasibleError if the weights do not fit or no KV cache is left, InputError on flags out of range.
    """
    version, number, said = ENGINE.version(version_text), ENGINE.release(version_text), Said()
    embeddings, overheads = None, load_overheads(ENGINE.name, ENGINE.overheads_from)
    if request.role == "encode" or (request.encoded and request.role != "decode"):
        from engine_models.engines.sglang_encoders import embeddings_of, encode_plan

        if request.role == "encode":
            return encode_plan(request, version, number, overheads, said)
        embeddings = embeddings_of(request, number, said)
    request = as_loaded(request, number)
    serving = Serving.of(request, number, said)
    adapters = adapters_of_pool(request)
    lora_bytes = adapters.memory_bytes if adapters is not None else 0
    graphs = serving.graph_rows, serving.page, serving.prompt_graph_tokens
    factor, prompts = share_factor(request, number, serving.context), serving.reserved_tokens(request)
    memory = memory_of(request, number, prompts, *graphs, lora_bytes, factor)
    tokens = kv_tokens_of(request, serving, memory)
    rows = rows_of(request, serving, memory, tokens)
    say_steps(request, version, serving, memory, (tokens, rows), said)
    masks = TokenMasks(True, delays_next=serving.overlap) if request.structured else None  # filled after the launch
    say_beside(request, version_text or version, serving, adapters, masks, said)
    costs = costs_of(request, number, serving, rows, overheads, adapters, masks, said)
    handover = handover_of(request, serving.page, number, said) if request.role != "mixed" else None
    tiers = tiers_of(request, number, tokens, memory.kv_bytes_per_token, serving.page, said)
    rank = rank_of(request, serving, tokens, rows, tiers, adapters, said)
    return EnginePlan(
        engine=ENGINE.name,
        version=version,
        limits=limits_of(rank, serving.step_tokens(rows)),
        memory=memory,
        scheduler=rank.scheduler,
        costs=costs,
        executor=Executor(
            depth=rank.lanes if rank.decode else max(rank.lanes, rank.rules.in_flight),
            stages=request.pipeline_parallel,
            ranks=request.data_parallel,
            rank_router="round_robin",
            launches_ahead=serving.overlap and not rank.decode,
        ),
        front=front_of(request, overheads),
        prefix_caching=rank.prefix_caching,
        handover=handover,
        embeddings=embeddings,
        notes=tuple(said.notes),
        warnings=tuple(said.warnings),
        sources=overheads.provenance,
        tiers=tiers.kinds if tiers is not None else (),
        store=tiers.names if tiers is not None else None,
        compiles=serving.prompt_graph_tokens > 0,
        compiles_products=compiles_products(request, tiled=costs.terms.token_tiles),
        first_use=fresh_of(request, serving, costs.terms),
        first_use_s=first_use_s(costs.terms),
    )


_DOCS = "SGLang's docs/advanced_features/quantization.md (public copy, read 2026-11); apu: assumed as gpu"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu", "apu"})
_PARTS = {
    "handover": "disaggregation", "encoders": "disaggregation/encoder", "speculative": "speculative", "lora": "lora",
    "images": "multimodal", "structured": "constrained", "pipeline_parallel": "managers/scheduler_pp_mixin.py",
}

ENGINE: Engine = Engine(
    name="sglang",
    title="SGLang",
    rule=(
        "Prompts before answers over a radix tree of cached prefixes: whenever a prompt can be admitted, decoding "
        "waits. Admission weighs what running rows may still generate by a falling ratio; when memory runs out, rows "
        "are retracted and computed again."
    ),
    versions=VERSIONS, oldest="0.5",
    devices=dict.fromkeys(("gpu", "apu"), _DOCS),
    formats={name: Support(_KINDS, _DOCS, ONLY_ON.get(name, ())) for name in FORMATS},
    kv_formats=("fp8", "nvfp4"),
    kv_format=kv_format,
    features={
        "offload": Support(_KINDS, "SGLang 0.5's HiCache (mem_cache/hiradix_cache.py)"),
        **{name: Support(_KINDS, f"SGLang 0.5.23's srt/{part}") for name, part in _PARTS.items()},
    },
    adapters_beside=("speculative", "kv_tiers", "role", "pipeline_parallel", "data_parallel"),
    masks_beside=("speculative", "kv_tiers", "role", "pipeline_parallel"),
    images_beside=("speculative", "kv_tiers", "role", "pipeline_parallel"),
    drafts=draft_defaults,
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_running_requests", "context": "context_length", "step_tokens": "chunked_prefill_size",
        "memory_share": "mem_fraction_static", "block": "page_size", "no_prefix_cache": "disable_radix_cache",
        "tensor_ranks": "tp_size", "data_ranks": "dp_size",
        "no_graphs": "disable_cuda_graph", "graph_rows": "cuda_graph_max_bs",
    },
    keeps_stated_kv={"fp8": (0, 5, 3)},  # `model_runner.py` of 0.5.3; 0.5.2 does without
    activation_format=activation_format,
    kernels="sglang", overheads_from="vllm",
    plan=plan,
    replay=checked(lambda version: ENGINE.version(version), replay_of),
    pair_replay=checked(lambda version: ENGINE.version(version), pair_replay_of),
    lockstep=Lockstep(
        # taken as given where the experts are spread over more ranks than tensor parallelism has
        applies=lambda flags, tensor_parallel, expert_ranks: bool(dp_attention(flags) or expert_ranks > tensor_parallel),
        launch=lambda devices, ranks: f"SGLang: --tp-size {devices} --dp-size {ranks} --enable-dp-attention",
        dense="assumed; SGLang splits them over all",
    ),
)
