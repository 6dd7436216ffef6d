"""What vLLM decides about the time of a step: kernels by version, format and device, and what its host takes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engine_models.cost import flash_attention2, marlin
from engine_models.cost.overheads import Overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import HostOverhead, Parallelism, Terms
from engine_models.declaration import FrontEnd, PoolRequest, Said
from engine_models.engines.vllm_attention import TRITON, forces_triton
from engine_models.engines.vllm_context import context_ranks
from engine_models.engines.vllm_exchange import exchange
from engine_models.engines.vllm_kernels import (
    PADDED,
    cutlass_products,
    held_weights,
    latent_launches,
    machete,
    recurrent_launches,
)
from engine_models.engines.vllm_offloaded import in_place_of
from engine_models.engines.vllm_serving import Serving
from engine_models.engines.vllm_versions import Version
from engine_models.host_weights import host_weights_note
from engine_models.model.architecture import weight_bytes_per_rank
from hardware_profiles.device import load_device
from hardware_profiles.errors import PlanError

if TYPE_CHECKING:
    from engine_models.cost.adapters import Adapters
    from engine_models.cost.images import ImageLoad, Images
    from engine_models.cost.token_masks import TokenMasks
    from engine_models.cost.weight_stream import InPlace
    from engine_models.declaration import Embeddings

MASK_THREADS = (8, 128, 16)
"""Threads that fill masks, once there are more rows than so many, and rows that one takes at a time (datasheet: vLLM 0.33.0
`v1/structured_output/__init__.py`; on a host of at least 16 cores, assumed)."""
PARSE_S = 0.0098
"""To parse a chat template of 4.1 kB, Qwen3's, for the variables that it names [s] (measured, 2026-11: Jinja2 3.1.6, 11.0 ms for
4.6 kB in terms of the core of `loop_request_s`, two to three times as long after a pause; assumed of other models)."""
HARMONY = "gpt_oss"
"""Models whose chats are no templates: their prompts are made by a library (vLLM's `harmony_utils.py`)."""


def costs_of(
    request: PoolRequest,
    version: Version,
    serving: Serving,
    context: int,
    host: HostOverhead,
    backend: str | None,
    adapters: Adapters | None,
    said: Said,
    embeddings: Embeddings | None = None,
) -> StepCosts:
    """The costs of steps of requests of up to `context` tokens, whose experts run on `backend`."""
    launched = request.device_kind != "cpu"
    triton = launched and forces_triton(request, version.number)
    if triton:
        said.notes.append(
            "attention runs on Triton's kernels, as vLLM rules for heads of two widths; SGLang's stand for its own (assumed)"
        )
    in_place = _in_place(request, version, backend, said)
    return StepCosts(
        request.arch,
        request.formats,
        Terms(
            _host(request, serving, host),
            graph_sizes=serving.graphs,
            small_kernels=launched and serving.eager,
            joins_small_kernels=launched and not serving.eager,
            truncated_sampling=serving.sorts,
            sampler=serving.sampler,
            moe_backend=backend,
            expands_latents=True,
            moe_by_flag=str(request.flags.get("moe_backend") or "auto") != "auto",
            attention=(TRITON, TRITON) if triton else ("", ""),
            attention_by_flag=triton,
            fixed_grid_attention=not triton and _fixed_grid_attention(request),
            lone_tokens_decode=request.speculation is None,
            **exchange(request, said),
            fp32_router=version.fp32_router,
            latent_launches=latent_launches(request.formats.kv_cache),
            recurrent_launches=recurrent_launches(request, version.number),
            parts_tokens=_parts_tokens(request, version.number),
            splits_graphs=True,
            fills_selection=version.fills_selection,
            chunked_decodes=version.chunked_decodes,
            cutlass_blocks=cutlass_products(request, version.number, said),
            pads_blocks=PADDED[0] <= version.number < PADDED[1],
            marlin_share=marlin.share_of(
                load_device(request.device_name), request.formats.weights, machete=machete(version.number)
            ),
        ),
        TableRange(serving.tokens, serving.rows, context),
        Parallelism(
            request.tensor_parallel, request.pipeline_parallel, request.expert_parallel, request.data_parallel,
            context_ranks(request),
        ),
        speculation=request.speculation,
        adapters=adapters,
        masks=_masks(request, version, serving, said) if request.structured else None,
        images=_images(request, version, said) if request.encodes else None,
        in_place=in_place,
        encodes_only=request.role == "encode",
        image_load=_image_load(embeddings) if request.encoded else None,
    )


def _in_place(request: PoolRequest, version: Version, backend: str | None, said: Said) -> InPlace | None:
    """Weights in host memory, and a word on them."""
    stored = held_weights(request, backend, version.number)
    ranks = request.expert_parallel, request.data_parallel
    held = in_place_of(
        request, version.number, stored, weight_bytes_per_rank(request.arch, stored, request.tensor_parallel, 1, *ranks)
    )
    if held is not None:
        said.notes.append(host_weights_note(held))
    return held


PARTING = (0, 11)
"""The first version whose tensor ranks each take a part of their tokens to experts that data-parallel ranks share. kind:
datasheet, source: vLLM, `use_sequence_parallel_moe` (public copies, read 2026-11); which release had it first is recalled."""


def _parts_tokens(request: PoolRequest, number: tuple[int, ...]) -> bool:
    """Whether each device takes a part of its rank's tokens to the experts, as with most backends of the exchange."""
    return number >= PARTING and min(request.data_parallel, request.tensor_parallel, request.expert_parallel) > 1


def _host(request: PoolRequest, serving: Serving, host: HostOverhead) -> HostOverhead:
    """What the host takes of a step."""
    host = replace(host, prefill_graph_tokens=serving.prompt_graph_tokens)
    if serving.eager:  # `launch_s` is that of all eager steps
        host = replace(host, prefill_launch_s=0.0)
    if request.device_kind == "cpu":  # no copies to a device, no gaps between its kernels
        host = HostOverhead(host.step_s, host.row_s)
    return host


def _fixed_grid_attention(request: PoolRequest) -> bool:
    """Whether prompts and decoding rows share a call of FlashAttention 2, see `engine_models.cost.flash_attention2`."""
    backend = str(request.flags.get("attention_backend") or "FLASH_ATTN").upper()
    if backend != "FLASH_ATTN" or request.formats.kv_cache.name not in ("bf16", "fp16"):
        return False
    try:
        return flash_attention2.serves(load_device(request.device_name))
    except PlanError:
        return False


def _masks(request: PoolRequest, version: Version, serving: Serving, said: Said) -> TokenMasks:
    """Masks of structured output, filled while the model runs or before it."""
    from engine_models.cost.token_masks import TokenMasks, summary_note

    threads = MASK_THREADS if request.speculation is None else ()  # beside drafts one thread fills them
    masks = TokenMasks(version.masks_overlap, version.masks_overlap and serving.in_flight > 1, *threads)
    said.notes.append(summary_note(masks))
    return masks


def _images(request: PoolRequest, version: Version, said: Said) -> Images:
    """Images that are encoded before steps."""
    from engine_models.engines.vllm_images import images_of_pool

    return images_of_pool(request, version, said)


def _image_load(embeddings: Embeddings | None) -> ImageLoad | None:
    """What steps read of images that others have encoded."""
    from engine_models.engines.vllm_images import image_load

    return image_load(embeddings)


def front_of(request: PoolRequest, version: Version, overheads: Overheads) -> FrontEnd:
    """What stands before the scheduler: one API process a rank unless ``--api-server-count`` says otherwise."""
    flags, loop = request.flags, overheads.loop
    assert loop is not None
    processes = flags.get("api_server_count") or request.data_parallel
    parse_s = PARSE_S if version.parses_templates and request.arch.model_type != HARMONY else 0.0
    loop = replace(loop, share=request.data_parallel / processes, chat_s=loop.chat_s + parse_s)
    front = FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, loop=loop)
    if request.role == "encode" or (request.images and not request.encoded):
        from engine_models.images import image_token_s

        threads = processes if request.role == "encode" else 1
        front = replace(front, image_token_s=image_token_s(request), image_threads=threads)
    limit = flags.get("max_num_queued_reqs")
    return front if limit is None else replace(front, inflight=limit, on_full="503")


__all__ = ["costs_of", "front_of"]
