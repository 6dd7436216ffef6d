"""The llama-server that Ollama starts for a model: its flags, with the context and the batch that Ollama chooses by memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine_models.declaration import PoolRequest
from engine_models.engines.llama_server import LlamaServer, cuts_anywhere, llama_server
from hardware_profiles.errors import InfeasibleError, InputError, PlanError

GIB, MIB = 1 << 30, 1 << 20
CONTEXTS = ((47 * GIB, 262_144), (23 * GIB, 32_768))
LEAST_CONTEXT = 4096
"""Memory of the devices from which on a context is the default [bytes, tokens], and the least (datasheet: `server/routes.go`)."""
BATCHES = ((32_768, 2048, 0.60, 2 * GIB), (4096, 1024, 0.75, 768 * MIB))
LEAST_BATCH = 512
FILLED = 0.80
"""Contexts above which a batch is taken, if weights and cache are at most a share of the memory, and with the batch's buffers at
most `FILLED` of it (datasheet: `automaticGenerationBatch`, `generationBatchFits` of `server/sched.go`)."""


def started_server(request: PoolRequest) -> LlamaServer:
    """The server of the default context, or of the next smaller that fits, where none is asked for."""
    flags, arch = request.flags, request.arch
    asked = flags.get("num_ctx") or flags.get("context_length")
    default = next((tokens for least, tokens in CONTEXTS if _vram(request) >= least), LEAST_CONTEXT)
    defaults = (*(tokens for _, tokens in CONTEXTS), LEAST_CONTEXT)
    contexts = [int(asked)] if asked else [tokens for tokens in defaults if tokens <= default]
    for number, tokens in enumerate(contexts):
        try:
            return _started(request, min(tokens, arch.max_context_tokens))
        except InfeasibleError as error:
            if number == len(contexts) - 1:
                raise _in_own_words(error) from None
        except InputError as error:
            raise _in_own_words(error) from None
    raise AssertionError("a context is always tried")


def _in_own_words(error: PlanError) -> PlanError:
    """What is said of the server's flags, said of Ollama's settings."""

    def own(text: str | None) -> str | None:
        for flag, setting in (("gpu_layers", "num_gpu"), ("ctx_size", "num_ctx")):
            text = text and text.replace(flag, setting)
        return text

    return type(error)(error.message, where=own(error.where), mend=own(error.mend))


def _vram(request: PoolRequest) -> int:
    return 0 if request.device_kind == "cpu" else request.device_memory_bytes


def _started(request: PoolRequest, num_ctx: int) -> LlamaServer:
    flags = request.flags
    slots = max(int(flags.get("num_parallel", 1)), 1)
    own: dict[str, Any] = {
        "parallel": slots,
        "ctx_size": num_ctx * slots,
        "context_shift": bool(flags.get("shift", True)) and cuts_anywhere(request) and not _latent(request),
        "keep": int(flags.get("num_keep", 4)),
        "threads": int(flags.get("num_thread", 0)) or -1,
    }
    if int(flags.get("num_gpu", -1)) >= 0:
        own |= {"gpu_layers": int(flags["num_gpu"]), "host_cpu": flags.get("host_cpu")}
    plain = llama_server(replace(request, flags=own))
    batch = flags.get("num_batch") or _batch(plain, num_ctx * slots, _vram(request))
    return llama_server(replace(request, flags={**own, "batch_size": int(batch), "ubatch_size": int(batch)}))


def _latent(request: PoolRequest) -> bool:
    """Whether the model is of the family whose context Ollama does not shift (deepseek2: latent attention)."""
    return request.arch.has("mla")


def _batch(server: LlamaServer, context_tokens: int, vram_bytes: int) -> int:
    """Tokens of a batch by the whole context and by what weights and cache leave."""
    used = server.memory.bytes_of("weight") + server.memory.kv_bytes
    for above, batch, share, surcharge in BATCHES:
        fits = not vram_bytes or (used <= share * vram_bytes and used + surcharge <= FILLED * vram_bytes)
        if context_tokens > above and fits:
            return batch
    return LEAST_BATCH


__all__ = ["started_server"]
