"""What SGLang decides about the time of a step: kernels by version, model, format and device, and what its host takes of it."""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost import marlin, recurrence
from engine_models.cost.adapters import Adapters
from engine_models.cost.first_use import FirstUse
from engine_models.cost.overheads import Overheads, own_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import HostOverhead, Parallelism, Terms
from engine_models.cost.token_masks import TokenMasks
from engine_models.cost.weight_stream import InPlace
from engine_models.declaration import FrontEnd, PoolRequest, Said
from engine_models.engines.sglang_attention import (
    absorbs_below,
    absorbs_captured,
    attention_of,
    dense_prompts,
    is_latent,
    warn_of_attention,
)
from engine_models.engines.sglang_context import context_ranks
from engine_models.engines.sglang_images import images_of_pool
from engine_models.engines.sglang_kernels import (
    CUTLASS,
    EXPERT_LAUNCHES,
    EXPERTS,
    RECURRENT_LAUNCHES,
    as_run,
    beside_tokens,
    copies_heads,
    earlier_sums,
    experts,
    fused_norm_tokens,
    latent_launches,
    other_tiles,
    quantises_apart,
    selection_kernels,
    token_tiles,
)
from engine_models.engines.sglang_memory import host_bytes
from engine_models.engines.sglang_norms import torch_norms
from engine_models.engines.sglang_serving import Serving
from engine_models.first_use import first_use_of
from engine_models.host_weights import host_weights, host_weights_note
from engine_models.images import image_token_s
from engine_models.model.architecture import weight_bytes_per_rank
from engine_models.model.blocks import Architecture
from hardware_profiles.device import load_device

DISPATCHED_BYTES = {"fp8_block": 1.03125}
"""Weights of experts -> bytes of a value that is sent to an expert: FP8 with a scale of 4 bytes for 128 values, 2 where none is
given (datasheet: SGLang 0.5, `token_dispatcher/deepep.py`)."""


def costs_of(
    request: PoolRequest,
    number: tuple[int, ...],
    serving: Serving,
    rows: int,
    overheads: Overheads,
    adapters: Adapters | None,
    masks: TokenMasks | None,
    said: Said,
) -> StepCosts:
    """The costs of steps of at most `rows` rows; `number` is the version."""
    launched, terms = _terms(request, number, serving, _host(request, serving, overheads), said)
    in_place = _copied(request, said)
    return StepCosts(
        launched,
        request.formats,
        terms,
        TableRange(serving.step_tokens(rows), rows, serving.context),
        Parallelism(
            request.tensor_parallel, request.pipeline_parallel, request.expert_parallel, request.data_parallel,
            context_ranks(request),
        ),
        speculation=request.speculation,
        adapters=adapters,
        masks=masks,
        images=images_of_pool(request, said) if request.encodes else None,
        encodes_only=request.role == "encode",
        in_place=in_place,
    )


def _copied(request: PoolRequest, said: Said) -> InPlace | None:
    """Layers in host memory, each of which is copied before it computes, and a word on them."""
    held = host_bytes(request)
    if not held:
        return None
    ranks = request.tensor_parallel, 1, request.expert_parallel, request.data_parallel
    weights = weight_bytes_per_rank(request.arch, request.formats.weights, *ranks)
    found = host_weights(request, held, 0.0, weights, copied=True)
    said.notes.append(host_weights_note(found))
    return found


def first_use_s(terms: Terms) -> float:
    """What the first large prompts of a fresh server waited for kernels of Triton's in the runs that replays are fitted to."""
    return float(own_overheads("sglang")["start_s"]["value"]) if terms.moe_backend == "triton" else 0.0


KIND_S = 0.7
"""Seconds. kind: measured, 2026-11, source: twice 0.35 (0.3 to 0.4) on one core, `fused_moe_kernel` of SGLang 0.5.9 with its
tiles for H200, Triton 3.5. Two kinds, those of a whole chunk and of the last, are 1.4 s; other runs have 1.3 (fitted)."""


def fresh_of(request: PoolRequest, serving: Serving, terms: Terms) -> FirstUse:
    """What a fresh server waits for, whose start-up runs the graphs of answers and one short request."""
    if terms.moe_backend != "triton":
        return FirstUse()
    return first_use_of(request, serving.prompt_graph_tokens, serving.graphs, kind_s=KIND_S, more=1)


def _terms(
    request: PoolRequest, number: tuple[int, ...], serving: Serving, host: HostOverhead, said: Said
) -> tuple[Architecture, Terms]:
    """The model as the engine's kernels compute it, and what it decides about the time of a step."""
    attention = attention_of(request, number)
    warn_of_attention(request, attention, said.warnings)
    own_experts = experts(request, number, said.warnings)
    tiled = token_tiles(request, number, said.warnings)
    norms = torch_norms(request, number)
    if any(norms):
        said.notes.append("norms are computed in PyTorch, kernel by kernel")
    kernels, passes = selection_kernels(request, number, own_experts)
    launched, fused = as_run(request, number, own_experts)
    said.notes += fused
    if own_experts:
        said.notes.append(f"experts run on {EXPERTS[own_experts]} (SGLang's rule of version, model, format and GPU, or its flag)")
    if tiled:
        said.notes.append("products of FP8 blocks run on FlashInfer's TensorRT-LLM kernel, not on DeepGEMM: slow for prompts")
    return launched, Terms(
        host,
        small_kernels=True,
        ring_sums=not request.flags.get("enable_nccl_nvls"),  # NCCL_NVLS_ENABLE=0 (0.4.9 to 0.5, `entrypoints/engine.py`)
        earlier_sums=earlier_sums(request, number),
        graph_sizes=serving.graphs,
        moe_backend=own_experts,
        moe_rival=other_tiles(request, own_experts),
        expands_latents=True,
        absorbs_below=absorbs_below(request, attention),
        absorbs_captured=absorbs_captured(request),
        dense_prompts=dense_prompts(request, number),
        attention=("", "") if is_latent(request) else (attention.prompts, attention.decodes),
        attention_by_flag=attention.by_flag and not is_latent(request),
        fused_norm_tokens=fused_norm_tokens(request, number),
        moe_by_flag=bool(request.flags.get("moe_runner_backend")),
        gathered_bytes=DISPATCHED_BYTES.get(request.formats.weights.name, 2.0) if serving.routed else 2.0,
        routed=serving.routed,
        exchanges_over_all=request.data_parallel > 1 and not serving.routed and own_experts not in CUTLASS,
        beside_tokens=beside_tokens(request, number),
        quantises=True,
        quantises_apart=quantises_apart(request, tiled=tiled),
        marlin_share=marlin.share_of(load_device(request.device_name), request.formats.weights),
        expert_launches=EXPERT_LAUNCHES.get(own_experts or "triton"),
        latent_launches=latent_launches(request),
        recurrent_launches=recurrence.launches(request.arch, RECURRENT_LAUNCHES),
        selection_kernels=kernels,
        selection_passes=passes,
        token_tiles=tiled,
        norm_kernels=norms.layer,
        head_norm_kernels=norms.heads,
        copies_heads=copies_heads(request, number),
    )


def _host(request: PoolRequest, serving: Serving, overheads: Overheads) -> HostOverhead:
    """What the host takes of a step."""
    drafts = request.speculation
    host = replace(overheads.host, prefill_graph_tokens=serving.prompt_graph_tokens)
    if not serving.overlap:
        serial = ("serial_step_s", "serial_draft_s") if drafts and drafts.draft else ("serial_step_s",)
        host = replace(host, step_s=sum(float(overheads.provenance[name]["value"]) for name in serial))
    if request.role == "decode":
        host = replace(host, step_s=0.0, row_s=0.0)  # hidden behind the device's, as it is where batches are formed ahead
    return host


def front_of(request: PoolRequest, overheads: Overheads) -> FrontEnd:
    """What stands before the schedulers: one process for all ranks unless ``--tokenizer-worker-num`` says otherwise."""
    loop = overheads.loop
    assert loop is not None
    workers = int(request.flags.get("tokenizer_worker_num") or 1)
    loop = replace(loop, share=request.data_parallel / workers)
    elsewhere = request.role == "encode" or (request.encoded and request.role != "decode")
    image_s = 0.0 if elsewhere else image_token_s(request)
    return FrontEnd(
        overheads.front_end_s, overheads.tokenise_token_s, image_token_s=image_s, loop=loop, tokenises_late=True
    )


__all__ = ["costs_of", "first_use_s", "fresh_of", "front_of"]
