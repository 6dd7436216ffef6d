"""What vLLM's servers share with others: requests whose prompts another computes, and images that another encodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine_models.declaration import Embeddings, EnginePlan, Handover, PoolRequest, Said

if TYPE_CHECKING:
    from engine_models.engines.vllm_cache import Cache
    from engine_models.engines.vllm_versions import Version


def peers_of(
    request: PoolRequest, version: Version, cache: Cache, read_at: str, said: Said
) -> tuple[Handover | None, Embeddings | None]:
    """How a pool shares requests with another, and how it gets images that another encodes; None for what it does not.

    `read_at` is the version whose rules were read.
    """
    handover = embeddings = None
    if request.role != "mixed":
        from engine_models.engines.vllm_handover import handover_of

        handover = handover_of(request, version, cache, read_at, said)
    if request.role == "decode" and request.images:
        front = "" if request.encoded else "its front end scales them again, as proxies send both servers the whole request; "
        again = "one that computes a prompt again is taken not to encode (assumed)"
        said.notes.append(f"images at the decode server: {front}{again}")
    if request.encoded and request.role != "decode":
        from engine_models.engines.vllm_encoders import embeddings_of

        embeddings = embeddings_of(request, version, said)
    return handover, embeddings


def encode_plan_of(request: PoolRequest, version: Version, said: Said) -> EnginePlan:
    """The plan of a pool that encodes images."""
    from engine_models.engines.vllm_encoders import encode_plan

    return encode_plan(request, version, said)


__all__ = ["encode_plan_of", "peers_of"]
