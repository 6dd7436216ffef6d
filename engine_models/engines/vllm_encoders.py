"""vLLM's servers that only encode, and how others get what they have made of images (its EC connectors).

An encode server is a vLLM of its own: its scheduler forms steps of prompts that hold nothing but images, by the rules of all, and
its steps run the vision tower alone. It loads no language model, has no KV cache, and ends a request with its prompt. A proxy
deals the images of a prompt to these servers in turn and sends the request on when all are encoded, with sizes instead of images,
so that its server need not scale them again.

Source: vLLM 0.33.0's `v1/worker/mm_encoder_model_runner.py`, `v1/core/sched/scheduler.py` (`is_mm_encoder_only`,
`_ec_transfer_pending`), `distributed/ec_transfer/ec_connector` (`example_connector.py`, `mooncake/scheduler.py`,
`mooncake/config.py`, `encoder_output_width.py`), `config/vllm.py` (`_resolve_mm_encoder_only`); the proxy is the repository's
`examples/disaggregated/disaggregated_encoder/disagg_epd_proxy.py` (`encoder_rr_assignment`, `rewrite_for_decode`), read 2026-12.
Not compared with a recording.
"""

from __future__ import annotations

from engine_models.cost.overheads import load_overheads
from engine_models.declaration import (
    Embeddings,
    EnginePlan,
    Executor,
    Limits,
    MemoryLine,
    Mode,
    PoolRequest,
    Said,
)
from engine_models.encode_pools import check_tower_alone, embedding_bytes, tower_memory
from engine_models.engines.vllm_context import FLAG as CONTEXT_RANKS
from engine_models.engines.vllm_costs import costs_of, front_of
from engine_models.engines.vllm_handover import MOONCAKE_RATE_SHARE
from engine_models.engines.vllm_images import FILE_BYTES_PER_S, encoder_limits, images_of_pool
from engine_models.engines.vllm_profile import beside_torch_bytes
from engine_models.engines.vllm_serving import KERNEL_BLOCK_TOKENS, Serving, rules_of
from engine_models.engines.vllm_versions import Version
from engine_models.flags import Flag, typed_value
from engine_models.images import vision_of
from engine_models.memory.paged_kv import PagedKV
from engine_models.model.activations import tower_bytes
from engine_models.parts.batch import ContinuousRules
from engine_models.schedulers.encoding import EncoderLimits, EncodingScheduler
from hardware_profiles.errors import InputError

MOONCAKE, EXAMPLE, CPU = "ECMooncakeConnector", "ECExampleConnector", "ECCPUConnector"
SINCE = (0, 33)
"""The version whose encode servers were read; those of 0.12 to 0.32 load the language model too, and are not told apart."""
BUFFER_BYTES = int(1e9)
"""What `ECMooncakeConnector` registers on each side (`ec_buffer_size`, datasheet: vLLM 0.33.0's `config/ec_transfer.py`)."""
BUFFER = Flag("float", None, low=1.0)
WHERE = "deployment.engine_args.ec_transfer_config"
OF_LANGUAGE = {"cpu_offload_gb": 0, CONTEXT_RANKS: 1}
"""Flags of a language model that are not modelled here, with the value that asks for nothing."""
ROLES = {"ec_producer": "encode", "ec_consumer": "language"}


def embeddings_of(request: PoolRequest, version: Version, said: Said) -> Embeddings:
    """How a pool hands encoded images over, or gets them; InputError for what is not modelled."""
    config = request.flags.get("ec_transfer_config") or {}
    connector = str(config.get("ec_connector") or request.encoder_connector or MOONCAKE)
    if request.encoder_connector not in (None, connector):
        raise InputError(
            f"ec_transfer_config names {connector}, deployment.transfer {request.encoder_connector}",
            where=WHERE,
            mend="name one connector in both, or leave one out",
        )
    if connector not in (MOONCAKE, EXAMPLE):
        why = " (through memory of the host, which is not simulated)" if connector == CPU else ""
        raise InputError(
            f"encoded images over {connector} are not modelled{why}", where=WHERE, mend=f"write {MOONCAKE} or {EXAMPLE}"
        )
    own = ROLES.get(str(config.get("ec_role")), "both" if config.get("ec_role") == "ec_both" else None)
    wanted = "encode" if request.role == "encode" else "language"
    if own not in (None, wanted):
        raise InputError(
            f"ec_role {config['ec_role']} is not that of a pool of role: {request.role}",
            where=WHERE,
            mend="write ec_producer in the encode pool and ec_consumer in the others",
        )
    if version.number < SINCE:
        raise InputError(
            f"servers that only encode are modelled for vLLM {'.'.join(map(str, SINCE))} on, not for {version.name}",
            where="deployment.engine",
            mend="leave the version out for the newest, or let the other pools encode themselves",
        )
    if connector == MOONCAKE and request.role == "encode" and request.tensor_parallel * request.pipeline_parallel > 1:
        raise InputError(
            f"vLLM's {MOONCAKE} sends from servers of one device",
            where="deployment.tensor_parallel",
            mend="give the encode pool tensor_parallel: 1 and more replicas",
        )
    if request.role == "encode":
        how = (
            "pushed over the network to the server of its request, which begins when all its images are there"
            if connector == MOONCAKE
            else f"written to a file, which the first step that needs it reads at {FILE_BYTES_PER_S / 1e9:g} GB/s (assumed)"
        )
        said.notes.append(
            f"{connector} (rules read at vLLM 0.33, not recorded): the proxy deals images to the encode servers in turn; what "
            f"they make is {how}; what the proxy takes is left out"
        )
    return Embeddings(connector, embedding_bytes(request), sent=connector == MOONCAKE, rate_share=MOONCAKE_RATE_SHARE)


def encode_plan(request: PoolRequest, version: Version, said: Said) -> EnginePlan:
    """Resolve a pool of servers that only encode; InputError for models without a known tower, InfeasibleError without room."""
    vision_of(request)
    overheads = load_overheads("vllm")
    embeddings = embeddings_of(request, version, said)
    check_tower_alone(request, OF_LANGUAGE)
    of_language = Said()  # of the model that is not there
    serving = Serving.of(request, version, of_language)
    limits = encoder_limits(request, serving)
    images_of_pool(request, version, said)  # says what is assumed, and refuses what is not modelled
    blocks = serving.rows * -(-max(limits.step_tokens, serving.context) // KERNEL_BLOCK_TOKENS)  # there are none, so none lacks
    rules = rules_of(request, version, serving, max(serving.context, limits.step_tokens + 1))

    def scheduler(mode: Mode) -> EncodingScheduler:
        return _scheduler(rules, blocks, limits, mode)

    costs = costs_of(request, version, serving, serving.context, overheads.host, None, None, of_language)
    return EnginePlan(
        engine="vllm",
        version=version.name,
        limits=Limits(
            rows=serving.rows,
            step_tokens=limits.step_tokens,
            context_tokens=serving.context,
            kv_tokens=0,
            kv_blocks=0,
            block_tokens=KERNEL_BLOCK_TOKENS,
            prompt_tokens=serving.context,
            row_tokens=serving.context,
        ),
        memory=tower_memory(
            request,
            _besides(request, version, limits, embeddings),
            "lower max_num_batched_tokens or ec_buffer_size, or use a larger device",
        ),
        scheduler=scheduler,
        costs=costs,
        executor=Executor(depth=serving.in_flight),
        front=front_of(request, version, overheads),
        embeddings=embeddings,
        notes=tuple(said.notes),
        warnings=(*said.warnings, *of_language.warnings),
        sources=overheads.provenance,
        recorded=False,
    )


def _scheduler(rules: ContinuousRules, blocks: int, limits: EncoderLimits, mode: Mode) -> EncodingScheduler:
    kv = PagedKV(blocks, KERNEL_BLOCK_TOKENS, prefix_caching=False)
    return EncodingScheduler(rules, kv, limits, aggregate=mode != "step", record_rows=mode == "record")


def _besides(request: PoolRequest, version: Version, limits: EncoderLimits, embeddings: Embeddings) -> list[MemoryLine]:
    """What a device holds besides the tower: its largest step, the images that it keeps, and what is sent of them."""
    tower = request.arch.tower
    longest = tower.tokens if tower is not None else limits.step_tokens
    peak = tower_bytes(request.arch, request.tensor_parallel, max(1, limits.step_tokens // longest), longest)
    given = (request.flags.get("ec_transfer_config") or {}).get("ec_buffer_size")
    size = typed_value(BUFFER, "ec_transfer_config.ec_buffer_size", given)
    buffer = int(size or BUFFER_BYTES) if embeddings.sent else 0
    return [
        MemoryLine("activation", "activations (peak of one step)", peak),
        MemoryLine("encoder_cache", "images that are encoded", limits.cache_tokens * embeddings.token_bytes),
        MemoryLine("transfer", "buffer of what is sent", buffer),
        MemoryLine("other", "CUDA context, collectives", beside_torch_bytes(request, version)),
    ]


__all__ = ["MOONCAKE", "embeddings_of", "encode_plan"]
