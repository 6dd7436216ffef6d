"""Ollama: a manager of models and a number of permits before llama.cpp's server, which it starts with flags of its own choice.

The rule is `engine_models.schedulers.kept_model` over that of llama.cpp's slots; the server is
`engine_models.engines.llama_server`.

Behaviour and defaults of Ollama 0.33 (2026: `server/sched.go`, `server/routes.go`, `llm/llama_server.go`, `envconfig/config.go`),
which runs GGUF models in an unmodified llama-server. Nothing of it was recorded: three timelines are worked by hand from its
source (tests/engine_models/test_ollama.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.cost.draft_methods import chains_only
from engine_models.cost.overheads import load_overheads
from engine_models.cost.start_up import predicted
from engine_models.declaration import Engine, EnginePlan, FrontEnd, Mode, PoolRequest, Support
from engine_models.engines.llama_server_drafts import rules_of
from engine_models.engines.ollama_flags import DRAFTS, FLAGS, keep_alive_s
from engine_models.engines.ollama_server import started_server
from engine_models.model.blocks import Architecture
from engine_models.schedulers.kept_model import DraftedKeptModelScheduler, KeptModel, KeptModelScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError

OPEN_ENDED_CONTEXTS = 10
"""Contexts after which an answer without a limit ends (datasheet: `boundedNumPredict` of `llm/llama_server.go`)."""


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one model: context and batch as Ollama chooses them, the server that it starts, its manager.

    Raises InfeasibleError if the model does not fit wholly, InputError on what this model of it lacks.
    """
    flags = request.flags
    server = started_server(request)
    slots = server.rules.n_parallel
    weights = server.memory.bytes_of("weight")
    start, notes = predicted(ENGINE.name, weights, place="cache", captures=False)
    idle_s = keep_alive_s(str(flags.get("keep_alive", "5m")))
    kept = KeptModel(int(flags.get("max_queue", 512)), start.server_s, idle_s)
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    limits = server.limits()

    def scheduler(mode: Mode) -> KeptModelScheduler:
        if server.drafts is not None:
            drafts, recorded = rules_of(server.drafts, server.request.flags), mode == "record"
            made = DraftedKeptModelScheduler
            return made(server.rules, kept, server.prompts, drafts=drafts, aggregate=False, record_rows=recorded)
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


def draft_settings(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of drafts: by the model's own layer, `DRAFTS` of them unless they say otherwise."""
    checked = chains_only("Ollama", ("mtp",))(settings, arch, flags)
    if flags.get("draft_num_predict") == 0:
        raise InputError(
            "draft_num_predict 0 lets Ollama draft nothing, and the pool's `speculative` asks for drafts",
            where="deployment.engine_args.draft_num_predict",
            mend="remove one of the two",
        )
    return {"method": "mtp", "num_speculative_tokens": int(flags.get("draft_num_predict") or DRAFTS)} | checked


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
    features={
        "speculative": Support(_KINDS, f"{_SOURCE}: llm/llama_server.go, appendDraftArgs"),
        "pipeline_parallel": Support(frozenset({"gpu", "apu"}), f"{_SOURCE}: layers over several GPUs"),
    },
    flags=lambda: FLAGS,
    same_as={"rows": "num_parallel", "context": "num_ctx", "step_tokens": "num_batch"},
    kernels="llama_cpp",
    weights="q4_k_m",
    overheads_from="llama_cpp",
    drafts=draft_settings,
    plan=plan,
)
