"""TensorRT-LLM: its PyTorch backend in terms of the shared parts, its defaults, memory and flags.

The scheduling rules are `engine_models.schedulers.memory_then_tokens`, the cache `engine_models.memory.block_tree`.

Behaviour and defaults of the repository in 2026 (the 1.3 line: `tensorrt_llm/_torch/pyexecutor`, `llmapi/llm_args.py`,
`cpp/tensorrt_llm/batch_manager`); scheduling checked step by step against recordings (`capacity-plan validate schedules`).
Version 1.0 is the same rules with its CUDA-graph sizes, compared with nothing.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.adapters import summary_note as adapters_note
from engine_models.cost.draft_methods import chains_only
from engine_models.cost.drafting import summary_note
from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism
from engine_models.cost.token_masks import TokenMasks
from engine_models.cost.token_masks import summary_note as masks_note
from engine_models.declaration import Engine, EnginePlan, FrontEnd, Lockstep, PoolRequest, Support
from engine_models.engines.trtllm_flags import FLAGS, unread_in_groups
from engine_models.engines.trtllm_kernels import activation_format, as_run, terms_of, with_placed_experts
from engine_models.engines.trtllm_notes import NO_GRAPHS, layer_notes, notes_of
from engine_models.engines.trtllm_ranks import executor_of, handover_of
from engine_models.engines.trtllm_recorded import replay
from engine_models.engines.trtllm_serving import Serving, flags_said, limits_of, memory_of, rank_of, refuse
from engine_models.engines.trtllm_states import with_states
from engine_models.engines.trtllm_tiers import host_of
from engine_models.engines.trtllm_versions import DEVICES, VERSIONS
from engine_models.model.mixers import with_plain_latents
from engine_models.schedulers.memory_then_tokens import UTILIZATION
from hardware_profiles.device import DeviceKind


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of TensorRT-LLM: memory as left after a trial run, limits, policies, graphs, overheads.

    Raises InfeasibleError if the weights or a few blocks do not fit, InputError on flags out of range.
    """
    name = ENGINE.version(version_text)
    version = ENGINE.switches(name)
    refuse(request)
    request = with_states(request, by_config=version["states_by_config"])
    request = replace(request, arch=with_plain_latents(request.arch))  # `DSACacheManager.get_cache_size_per_token`
    request = with_placed_experts(request)
    serving = Serving.of(request, version)
    memory, adapters = memory_of(request, serving)
    context = min(serving.context, memory.blocks * serving.block)
    handover = handover_of(request, serving.policy, serving.block) if request.role != "mixed" else None
    host, unused = host_of(request, memory, serving.block, claims_first=version["claims_first"])
    rank = rank_of(request, serving, memory.blocks, context, handover, adapters, host, version)
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    # a paused request comes back with its answer as prompt, computed alone if it exceeds the budget
    alone = context if serving.policy == UTILIZATION and not serving.chunked else 0
    step_tokens = max(serving.tokens, serving.rows * serving.row_tokens, alone)
    warnings = [*unread_in_groups(request.flags), *(text for text in (unused, *flags_said(request, context)) if text)]
    masks = TokenMasks(True, delays_next=rank.rules.overlap) if request.structured else None
    return EnginePlan(
        engine=ENGINE.name,
        version=name,
        limits=limits_of(request, serving, memory, context, step_tokens),
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(
            as_run(request),
            request.formats,
            terms_of(request, version, serving, overheads.host, warnings),
            TableRange(step_tokens, serving.rows, context),
            Parallelism(
                request.tensor_parallel, request.pipeline_parallel, request.expert_parallel, request.data_parallel
            ),
            speculation=request.speculation,
            adapters=adapters,
            masks=masks,
        ),
        executor=executor_of(request.flags, rank, request.data_parallel),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=rank.reuse,
        handover=handover,
        notes=(
            *((summary_note(request.speculation), *request.speculation.notes) if request.speculation else ()),
            *((adapters_note(adapters),) if adapters is not None else ()),
            *((masks_note(masks),) if masks is not None else ()),
            *notes_of(
                name, rank.rules, serving.context, stages=rank.stages, recorded=bool(version["recorded"]), reuse=rank.reuse,
                graphs=serving.graphs, padded=serving.padded,
            ),
            *layer_notes(request),
            *((host.note,) if host is not None else ()),
            *((NO_GRAPHS,) if request.lora is not None and not version["graphs_adapters"] else ()),
        ),
        warnings=tuple(warnings),
        sources=overheads.provenance,
        tiers=("host",) if host is not None else (),
    )


_SOURCE = "NVIDIA/TensorRT-LLM, docs/source/features/quantization.md (public copy, read 2026-11)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu", "apu"})

ENGINE = Engine(
    name="trtllm",
    title="TensorRT-LLM",
    rule=(
        "Memory first, then tokens: a capacity policy says which active requests the cache can hold (with whole "
        "answers, or for the next step with pauses), a second pass fills the step up to the token budget."
    ),
    versions=VERSIONS,
    oldest="0.20",
    devices=DEVICES,
    formats={
        name: Support(_KINDS, _SOURCE)
        for name in ("bf16", "fp16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int4", "awq", "gptq")
    },
    kv_formats=("fp8", "nvfp4"),
    keeps_stated_kv={"fp8": (0,), "nvfp4": (0,)},
    activation_format=activation_format,
    features={
        "handover": Support(_KINDS, "NVIDIA/TensorRT-LLM, docs/source/features/disagg-serving.md (read 2026-11)"),
        "speculative": Support(_KINDS, "NVIDIA/TensorRT-LLM, docs/source/features/speculative-decoding.md (read 2026-11)"),
        "lora": Support(_KINDS, "NVIDIA/TensorRT-LLM, docs/source/features/lora.md (read 2026-11)"),
        "structured": Support(_KINDS, "NVIDIA/TensorRT-LLM, `_torch/pyexecutor/guided_decoder.py` (read 2026-11)"),
        "pipeline_parallel": Support(_KINDS, "NVIDIA/TensorRT-LLM, `_torch/pyexecutor/py_executor.py` (read 2026-11)"),
        "offload": Support(_KINDS, "NVIDIA/TensorRT-LLM, docs/source/features/kvcache.md (read 2026-11)"),
    },
    adapters_beside=("pipeline_parallel", "offload", "kv_tiers"),
    masks_beside=("speculative", "role", "pipeline_parallel", "offload", "kv_tiers"),
    drafts=chains_only("TensorRT-LLM", ("mtp", "eagle3", "ngram", "draft_model")),
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_batch_size",
        "context": "max_seq_len",
        "step_tokens": "max_num_tokens",
        "memory_share": "free_gpu_memory_fraction",
        "tensor_ranks": "tensor_parallel_size",
    },
    kernels="trtllm",
    overheads_from="vllm",
    plan=plan,
    replay=replay,
    lockstep=Lockstep(
        applies=lambda flags, tensor_parallel, expert_ranks: bool(flags.get("enable_attention_dp")),
        launch=lambda devices, ranks: f"TensorRT-LLM: --tp_size {devices}, enable_attention_dp",
        dense="as TensorRT-LLM does",
    ),
)
