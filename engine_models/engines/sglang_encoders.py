"""SGLang's servers that only encode (`--encoder-only`), and how others (`--language-only`) get what they have made of images.

A server asks the encode servers itself: the images of a prompt are spread over them evenly, in an order that is drawn for each
request. An encode server takes the requests that wait, eight at most, scales their images, and encodes them, before it looks at
the next; it loads the vision tower alone and has no KV cache. What it makes goes to each rank of the server that reads it, over
ZMQ from the host's memory or over Mooncake; the request is not there for its scheduler before.

Source: SGLang 0.5.23's `disaggregation/encoder/runtime.py` (`EncoderScheduler`), `server.py` (`batch_encode`, `_send`),
`receiver.py` (`_assign_items_by_modality`, `process_waiting_requests`), `environ.py`, `server_args.py`
(`resolve_encoder_transfer_backend`), `docs/advanced_features/epd_disaggregation.md`, read 2026-12. Not compared with a recording.
"""

from __future__ import annotations

from engine_models.cost.overheads import Overheads
from engine_models.declaration import (
    Embeddings,
    EnginePlan,
    Limits,
    MemoryLine,
    Mode,
    PoolRequest,
    Said,
)
from engine_models.encode_pools import check_tower_alone, embedding_bytes, tower_memory
from engine_models.engines.sglang_context import FLAG as CONTEXT_RANKS
from engine_models.engines.sglang_costs import costs_of, front_of
from engine_models.engines.sglang_handover import MOONCAKE_RATE_SHARE
from engine_models.engines.sglang_serving import Serving
from engine_models.images import vision_of
from engine_models.model.activations import runtime_bytes, tower_bytes
from engine_models.schedulers.image_batches import ImageBatches
from hardware_profiles.errors import InputError

MOONCAKE, TO_SCHEDULER, TO_TOKENIZER = "mooncake", "zmq_to_scheduler", "zmq_to_tokenizer"
CONNECTORS = (TO_SCHEDULER, TO_TOKENIZER, MOONCAKE)
BATCH = 8
"""Requests that are encoded together at most (datasheet: `SGLANG_ENCODER_MAX_BATCH_SIZE`, SGLang 0.5.23's `environ.py`)."""
BATCHES_SINCE = (0, 5, 14)
"""First version whose encode servers form batches; earlier ones are not told apart (datasheet: `environ.py`; 0.5.12 has none)."""
ZMQ_BYTES_PER_S = {TO_SCHEDULER: 0.91e9, TO_TOKENIZER: 0.29e9}
"""What passes over ZMQ at most. kind: measured, 2026-08, source: sgl-project/sglang pull request 30398, Qwen3-VL-8B, four 1080p
images a request, one at a time, all on one node: 284 to 296 and 929 ms more to the first token than over Mooncake for 265 MB."""
OF_LANGUAGE = {"cpu_offload_gb": 0, CONTEXT_RANKS: 1}
"""Flags of a language model that are not modelled here, with the value that asks for nothing."""
WHERE = "deployment.engine_args.encoder_transfer_backend"


def embeddings_of(request: PoolRequest, number: tuple[int, ...], said: Said) -> Embeddings:
    """How a pool hands encoded images over, or gets them; InputError for what is not modelled."""
    asked = str(request.flags.get("encoder_transfer_backend") or "auto")
    chosen = None if asked == "auto" else asked
    connector = chosen or request.encoder_connector or TO_SCHEDULER
    if request.encoder_connector not in (None, connector):
        raise InputError(
            f"encoder_transfer_backend is {connector}, deployment.transfer names {request.encoder_connector}",
            where=WHERE,
            mend="name one of them in both, or leave one out",
        )
    if connector not in CONNECTORS:
        raise InputError(f"SGLang sends no encoded images over {connector}", where=WHERE, mend=f"one of {', '.join(CONNECTORS)}")
    if number < BATCHES_SINCE:
        raise InputError(
            f"servers that only encode are modelled for SGLang {'.'.join(map(str, BATCHES_SINCE))} on",
            where="deployment.engine",
            mend="leave the version out for the newest, or let the other pools encode themselves",
        )
    if request.role == "encode":
        over = "Mooncake" if connector == MOONCAKE else f"ZMQ at {ZMQ_BYTES_PER_S[connector] / 1e9:g} GB/s at most (measured)"
        said.notes.append(
            f"{connector} (rules read at SGLang 0.5.23, not recorded): images of a prompt are spread evenly over the encode "
            f"servers, which take {BATCH} requests at a time; what they make comes over {over}; the server's own front end comes "
            "after it (in fact beside it); it serves Qwen-VL's, Qwen3.5, Kimi's and few others so, which is not checked"
        )
    return Embeddings(
        connector,
        embedding_bytes(request),
        rate_share=MOONCAKE_RATE_SHARE if connector == MOONCAKE else 1.0,
        most_bytes_per_s=ZMQ_BYTES_PER_S.get(connector),
        once=connector == TO_TOKENIZER,
        evenly=True,
    )


def encode_plan(
    request: PoolRequest, version: str, number: tuple[int, ...], overheads: Overheads, said: Said
) -> EnginePlan:
    """Resolve a pool of servers that only encode; InputError for models without a known tower, InfeasibleError without room."""
    vision_of(request)
    embeddings = embeddings_of(request, number, said)
    check_tower_alone(request, OF_LANGUAGE)
    of_language = Said()  # of the model that is not there
    serving = Serving.of(request, number, of_language)
    costs = costs_of(request, number, serving, BATCH, overheads, None, None, of_language)
    said.notes += [note for note in of_language.notes if note.startswith("images:")]

    def scheduler(mode: Mode) -> ImageBatches:
        return ImageBatches(BATCH)

    return EnginePlan(
        engine="sglang",
        version=version,
        limits=Limits(
            rows=BATCH,
            step_tokens=serving.context,
            context_tokens=serving.context,
            kv_tokens=0,
            kv_blocks=0,
            block_tokens=1,
            prompt_tokens=serving.context,
            row_tokens=serving.context,
        ),
        memory=tower_memory(request, _besides(request), "use a larger device"),
        scheduler=scheduler,
        costs=costs,
        front=front_of(request, overheads),
        embeddings=embeddings,
        notes=tuple(said.notes),
        warnings=(*said.warnings, *of_language.warnings),
        sources=overheads.provenance,
        recorded=False,
    )


def _besides(request: PoolRequest) -> list[MemoryLine]:
    """What a device holds besides the tower: a batch of the largest images."""
    tower = request.arch.tower
    peak = tower_bytes(request.arch, request.tensor_parallel, 1, tower.tokens) if tower is not None else 0
    return [
        MemoryLine("activation", "activations (of one largest image)", peak),
        MemoryLine("other", "CUDA context, collectives", runtime_bytes(request.tensor_parallel)),
    ]


__all__ = ["embeddings_of", "encode_plan"]
