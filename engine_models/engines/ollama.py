"""Ollama: a manager of models and a number of permits before llama.cpp's server, which it starts with flags of its own choice.

The rule is `engine_models.schedulers.kept_model` over that of llama.cpp's slots; the server is
`engine_models.engines.llama_server`.

Behaviour and defaults of Ollama 0.33 (2026: `server/sched.go`, `server/routes.go`, `llm/llama_server.go`, `envconfig/config.go`),
which runs GGUF models in an unmodified llama-server. Nothing of it was recorded: three timelines are worked by hand from its
source (tests/engine_models/test_ollama.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine_models.cost.overheads import load_overheads
from engine_models.cost.start_up import predicted
from engine_models.declaration import Engine, EnginePlan, FrontEnd, Mode, PoolRequest, Support
from engine_models.engines.llama_server import LlamaServer, cuts_anywhere, llama_server
from engine_models.engines.ollama_flags import FLAGS, keep_alive_s
from engine_models.schedulers.kept_model import KeptModel, KeptModelScheduler
from hardware_profiles.device import DeviceKind
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

OPEN_ENDED_CONTEXTS = 10
"""Contexts after which an answer without a limit ends (datasheet: `boundedNumPredict` of `llm/llama_server.go`)."""


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one model: context and batch as Ollama chooses them, the server that it starts, its manager.

    Raises InfeasibleError if the model does not fit wholly, InputError on what this model of it lacks.
    """
    flags = request.flags
    server = _server(request)
    slots = server.rules.n_parallel
    weights = server.memory.bytes_of("weight")
    start, notes = predicted(ENGINE.name, weights, place="cache", captures=False)
    idle_s = keep_alive_s(str(flags.get("keep_alive", "5m")))
    kept = KeptModel(int(flags.get("max_queue", 512)), start.server_s, idle_s)
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    limits = server.limits()

    def scheduler(mode: Mode) -> KeptModelScheduler:
        return KeptModelScheduler(
            server.rules,
            kept,
            server.prompts,
            aggregate=mode != "step",
            record_rows=mode == "record",
        )

    held = "for ever" if idle_s == float("inf") else f"{idle_s:,.0f} s"
    permits = "one permit" if slots == 1 else f"{slots} permits"
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=replace(
            limits,
            cuts_prompts=server.rules.context_shift,
            answer_tokens=OPEN_ENDED_CONTEXTS * server.rules.slot_tokens,
        ),
        memory=server.memory,
        scheduler=scheduler,
        costs=server.costs(overheads, ENGINE.kernels),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, on_full="503", asks=True),
        prefix_caching=True,
        notes=(
            f"Ollama: {permits} before a server of as many slots; others wait in order of arrival, without limit",
            f"the model is loaded at time zero, kept {held} without requests, and loaded again in {kept.load_s:.1f} s; above "
            f"{kept.max_queue} requests that wait for that others get a 503",
            *server.notes(),
            *notes,
        ),
        sources=overheads.provenance,
    )


def _server(request: PoolRequest) -> LlamaServer:
    """The server of the default context, or of the next smaller that fits, where none is asked for."""
    flags, arch = request.flags, request.arch
    asked = flags.get("num_ctx") or flags.get("context_length")
    default = next((tokens for least, tokens in CONTEXTS if _vram(request) >= least), LEAST_CONTEXT)
    contexts = [int(asked)] if asked else [tokens for tokens in (262_144, 32_768, LEAST_CONTEXT) if tokens <= default]
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
    return any(block.kind == "mla" for block in request.arch.attention)


def _batch(server: LlamaServer, context_tokens: int, vram_bytes: int) -> int:
    """Tokens of a batch by the whole context and by what weights and cache leave."""
    used = server.memory.bytes_of("weight") + server.memory.kv_bytes
    for above, batch, share, surcharge in BATCHES:
        fits = not vram_bytes or (used <= share * vram_bytes and used + surcharge <= FILLED * vram_bytes)
        if context_tokens > above and fits:
            return batch
    return LEAST_BATCH


_SOURCE = "ollama/ollama at fb3076099 (2026-08, v0.33)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu", "apple", "cpu", "apu"})

ENGINE = Engine(
    name="ollama",
    title="Ollama",
    rule=(
        "llama.cpp's slots behind a manager that loads a model when it is asked for, lets in as many requests as "
        "slots, turns away beyond its queue (503), and drops the model after a while without requests."
    ),
    versions={"0.33": {}},
    oldest="0.31",
    devices={
        "gpu": f"{_SOURCE}: CUDA, ROCm, Vulkan",
        "apple": f"{_SOURCE}: Metal (models in GGUF; those in safetensors run by MLX)",
        "cpu": f"{_SOURCE}: without a GPU",
        "apu": f"{_SOURCE}: ROCm and Vulkan",
    },
    formats={name: Support(_KINDS, f"{_SOURCE}: files in GGUF") for name in ("gguf", "bf16", "fp16", "fp32", "mxfp4")},
    kv_formats=(),
    features={"pipeline_parallel": Support(frozenset({"gpu", "apu"}), f"{_SOURCE}: layers over several GPUs")},
    flags=lambda: FLAGS,
    same_as={"rows": "num_parallel", "context": "num_ctx", "step_tokens": "num_batch"},
    kernels="llama_cpp",
    weights="q4_k_m",
    overheads_from="llama_cpp",
    plan=plan,
)
