"""vLLM V1: what it is in terms of the shared parts.

What flags say of its steps is in `vllm_serving`, how versions differ in `vllm_versions`, groups of KV blocks in `vllm_cache`,
memory in `vllm_memory`, what lies beyond the device in `vllm_tiers`, ranks in `vllm_ranks`, the time of steps in `vllm_costs`.
The scheduling rule itself is `engine_models.schedulers.continuous`, the KV cache `engine_models.memory.paged_kv`.

Behaviour read from the sources of vLLM 0.11.0, 0.14.1, 0.15.1, 0.19.1, 0.24.0 and 0.33.0 (recurrent layers of 0.17.1, 0.22.1
and 0.23.0 too), scheduling checked step by step against recordings of the real scheduler (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from functools import partial

from engine_models.cost.draft_methods import chains_only
from engine_models.cost.overheads import load_overheads
from engine_models.declaration import Engine, EnginePlan, Executor, Lockstep, PoolRequest, Said, Support
from engine_models.engines import vllm_v0
from engine_models.engines.vllm_cache import Cache
from engine_models.engines.vllm_costs import costs_of, front_of
from engine_models.engines.vllm_first_use import fresh_of
from engine_models.engines.vllm_flags import FLAGS
from engine_models.engines.vllm_kernels import KEEPS_STATED_KV, LAST, NARROW, ONLY_ON, experts
from engine_models.engines.vllm_memory import budget_of
from engine_models.engines.vllm_notes import outside_of, say_drafts, say_steps
from engine_models.engines.vllm_options import as_loaded
from engine_models.engines.vllm_peers import encode_plan_of, peers_of
from engine_models.engines.vllm_ranks import limits_of, pair_replay_of, rank_of, replay_of
from engine_models.engines.vllm_serving import Serving
from engine_models.engines.vllm_tiers import tiers_of
from engine_models.engines.vllm_versions import VERSIONS, Version, sampling_on, with_engine
from hardware_profiles.device import DeviceKind


def version_of(text: str | None, use_v1: bool | None = None) -> Version:
    """The switches of the declared version that stands for `text` (None: the newest) and the engine that is asked for."""
    number = ENGINE.release(text)
    name = with_engine(ENGINE.version(text), number, use_v1)
    return Version(name, number, **ENGINE.switches(name))


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of vLLM: limits, memory, KV blocks, graphs, overheads.

    Raises InfeasibleError if the weights or one request of `max_model_len` do not fit, InputError on flags out of range.
    """
    flags, said = request.flags, Said()
    version = sampling_on(version_of(version_text, flags.get("use_v1")), request)
    request, first = as_loaded(request, version.number), version.first_engine
    if request.role == "encode":
        return encode_plan_of(request, version, said)
    serving = Serving.of(request, version, said)
    cache = Cache.of(request, version, serving, said)
    say_drafts(request, said)
    adapters = None
    if request.lora is not None or request.structured:
        from engine_models.engines.vllm_adapters import adapters_of_pool

        adapters = adapters_of_pool(request, said, version.number, first=first)
    backend = experts(request, flags, version.number, said.warnings)
    memory, least_share = budget_of(request, version, serving, cache, adapters, backend, said)
    tiers = tiers_of(request, version, cache, said)
    handover, embeddings = peers_of(request, version, cache, ENGINE.newest, said)
    blocks = int(flags.get("num_gpu_blocks_override") or memory.blocks)
    context = cache.context(request, serving, blocks, memory.kv_bytes, said)
    say_steps(request, version, serving, (blocks, cache.block), backend, said)
    outside = outside_of(version, version_text, said)
    rank = rank_of(request, version, serving, cache, blocks, context, tiers, handover, adapters)
    whole = partial(vllm_v0.whole_prefills, serving.tokens, serving.rows, rank.blocks, cache.block)
    overheads = load_overheads(ENGINE.name)
    costs = costs_of(request, version, serving, context, overheads.host, backend, adapters, said, embeddings)
    return EnginePlan(
        engine=ENGINE.name,
        version=version.name,
        limits=limits_of(rank, version, serving, cache, least_share),
        memory=memory,
        scheduler=whole if first and not serving.chunked else rank.scheduler,
        costs=costs,
        executor=Executor(depth=serving.in_flight, stages=request.pipeline_parallel, ranks=request.data_parallel),
        front=front_of(request, version, overheads),
        prefix_caching=rank.prefix_caching,
        handover=handover,
        embeddings=embeddings,
        notes=tuple(said.notes),
        warnings=tuple(said.warnings),
        outside=outside,
        sources=overheads.provenance,
        tiers=tuple(tier.kind for tier in tiers.tiers) if tiers is not None else (),
        store=tiers.names if tiers is not None else None,
        sleeps=bool(flags.get("enable_sleep_mode")),
        first_use=fresh_of(request, serving, backend),
    )


_DOCS = (
    "vLLM's docs/getting_started/installation and docs/features/quantization/supported_hardware.md (public copies, read "
    "2026-11); apu and asic: assumed as gpu"
)
_ANYWHERE: frozenset[DeviceKind] = frozenset({"gpu", "apu", "asic", "cpu"})
_ACCELERATORS: frozenset[DeviceKind] = frozenset({"gpu", "apu", "asic"})
_LORA_KINDS: frozenset[DeviceKind] = frozenset({"gpu", "apu"})

ENGINE = Engine(
    name="vllm",
    title="vLLM",
    rule=(
        "Continuous batching under one token budget: a step serves the running rows first, then admits waiting "
        "prompts, whole or in chunks beside answers, while budget, rows and KV blocks last; when blocks run out the "
        "last row is preempted and computed again."
    ),
    versions=VERSIONS,
    devices=dict.fromkeys(("gpu", "apu", "asic", "cpu"), _DOCS),
    formats={
        **{name: Support(_ANYWHERE, _DOCS) for name in ("fp32", "bf16", "fp16", "int8", "int8_wo", "int4", "awq", "gptq")},
        **{name: Support(_ACCELERATORS, _DOCS, ONLY_ON.get(name, ()), LAST.get(name, ())) for name in (*NARROW, *ONLY_ON)},
    },
    adapters_beside=("speculative", "offload", "kv_tiers", "role", "pipeline_parallel", "data_parallel"),
    masks_beside=("speculative", "offload", "kv_tiers", "role", "pipeline_parallel"),
    images_beside=("speculative", "offload", "kv_tiers", "role", "pipeline_parallel"),
    kv_formats=("fp8", "int8", "nvfp4"),
    keeps_stated_kv=KEEPS_STATED_KV,
    features={
        **{name: Support(_LORA_KINDS, _DOCS) for name in ("structured", "images", "lora")},
        "speculative": Support(_ANYWHERE, _DOCS),
        "pipeline_parallel": Support(_ANYWHERE, _DOCS),
        "offload": Support(_ACCELERATORS, _DOCS),
        "handover": Support(_ANYWHERE, "vLLM 0.33's distributed/kv_transfer/kv_connector/v1/nixl"),
        "encoders": Support(_LORA_KINDS, "vLLM 0.33's distributed/ec_transfer/ec_connector"),
    },
    drafts=chains_only("vLLM"),
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_num_seqs",
        "context": "max_model_len",
        "step_tokens": "max_num_batched_tokens",
        "memory_share": "gpu_memory_utilization",
        "block": "block_size",
        "tensor_ranks": "tensor_parallel_size",
        "data_ranks": "data_parallel_size",
        "no_prefix_cache": "no_enable_prefix_caching",
        "no_graphs": "enforce_eager",
        "graph_rows": "max_cudagraph_capture_size",
    },
    kernels="vllm",
    measured={"h100-sxm-80gb": (1, 2, 4)},
    plan=plan,
    replay=lambda version, knobs: replay_of(version_of(version), knobs),
    pair_replay=lambda version, knobs: pair_replay_of(version_of(version), knobs),
    lockstep=Lockstep(lambda flags, tensor_parallel, expert_ranks: True, lambda devices, ranks: "", "as vLLM does"),
)
