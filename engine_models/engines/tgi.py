"""Text Generation Inference: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.whole_lifetime`, the cache `engine_models.memory.lifetime_pages`.

Behaviour and defaults of the repository at db931fcf (2026-01, 3.3.6-dev0: `backends/v3/src`, `router/src/validation.rs`,
`launcher/src/main.rs`, `server/text_generation_server/models`); scheduling checked step by step against recordings of the real
router (`capacity-plan validate schedules`). Version 2 is the same rules with its constants, compared with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.cost.adapters import summary_note as adapters_note
from engine_models.cost.draft_methods import chains_only
from engine_models.cost.drafting import summary_note
from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.cost.token_masks import OUTLINES
from engine_models.cost.token_masks import summary_note as masks_note
from engine_models.declaration import (
    Engine,
    EnginePlan,
    FrontEnd,
    PoolRequest,
    Replay,
    Support,
)
from engine_models.engines.resident_adapters import resident_adapters
from engine_models.engines.tgi_flags import FLAGS
from engine_models.engines.tgi_launcher import VERSIONS, Version, default_prefill_tokens, refuse, serving_of
from engine_models.engines.tgi_memory import inflight_of, limits_of, memory_of, rules_of
from engine_models.engines.tgi_notes import notes_of, warnings_of
from engine_models.engines.tgi_ranks import Rank, replay_of
from engine_models.model.blocks import Architecture
from hardware_profiles.device import DeviceKind

GRAPH_SIZES = (1, 2, 4, 8, 16, 32)
"""Launcher and server defaults (datasheet: `launcher/src/main.rs`, `models/globals.py` at db931fcf, 2026-01)."""

def version_of(text: str | None) -> Version:
    """The declared version that stands for `text`."""
    name = ENGINE.version(text)
    return Version(name, **ENGINE.switches(name))


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of TGI: attention, memory as found at warm-up, limits, graphs, overheads.

    Raises InfeasibleError if the weights or one request of `max_total_tokens` do not fit, InputError on flags out of range.
    """
    version = version_of(version_text)
    refuse(request)
    serving = serving_of(request, version)
    prefill = int(request.flags.get("max_batch_prefill_tokens") or default_prefill_tokens(request, version))
    adapters = resident_adapters(request, "TGI", "lora_adapters", pads_rank=True)
    drafts = request.speculation
    memory = memory_of(request, prefill, serving.block_tokens, adapters.memory_bytes if adapters is not None else 0)
    limits = limits_of(request, version, serving, memory, prefill)
    rules = rules_of(request.flags, version, serving, memory, prefill, limits.row_tokens)
    windows = request.arch.windows_below(limits.context_tokens)
    rank = Rank(
        rules, limits.kv_blocks, limits.block_tokens, serving.prefix_caching, windows=windows,
        adapters=adapters is not None or request.structured, row_tokens=limits.spare_tokens + 1,
    )
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    graphs = tuple(sorted(int(size) for size in request.flags.get("cuda_graphs") or GRAPH_SIZES if int(size) > 0))
    inflight = inflight_of(request.flags)
    return EnginePlan(
        engine=ENGINE.name,
        version=version.name,
        limits=limits,
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(
            request.arch,
            request.formats,
            Terms(overheads.host, graph_sizes=graphs),
            TableRange(limits.step_tokens, limits.rows, limits.context_tokens),
            Parallelism(request.tensor_parallel, expert=request.expert_parallel),
            adapters=adapters,
            speculation=drafts,
            masks=OUTLINES if request.structured else None,
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, inflight=inflight),
        prefix_caching=serving.prefix_caching,
        notes=(
            *((summary_note(drafts), *drafts.notes) if drafts is not None else ()),
            *notes_of(version, serving, rules, inflight, graphs),
            *((adapters_note(adapters),) if adapters is not None else ()),
            *((masks_note(OUTLINES),) if request.structured else ()),
        ),
        warnings=warnings_of(request.flags, rules),
        sources=overheads.provenance,
    )


def _drafts(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of drafts: n-grams, unless the model has Medusa's heads."""
    return chains_only("TGI", ("ngram", "medusa"))({"method": "ngram", **settings}, arch, flags)


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from its version and the knobs of its `config` line."""
    version_of(version_text.split()[0].partition("-")[0])
    return replay_of(knobs)


_SOURCE = "huggingface/text-generation-inference at db931fcf (2026-01)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu"})

ENGINE = Engine(
    name="tgi",
    title="TGI",
    rule=(
        "First come, first served, with memory for a request's whole life at admission, so that nobody is preempted "
        "and the head of the queue blocks all others; prompts in pieces beside decodes, and 429 above a number of "
        "requests."
    ),
    versions=VERSIONS,
    oldest="2",
    devices={"gpu": f"{_SOURCE}: images for NVIDIA and AMD GPUs; backends of other devices are other programs"},
    formats={
        name: Support(_KINDS, f"{_SOURCE}: --dtype, --quantize, layers/fp8.py")
        for name in ("bf16", "fp16", "fp8", "fp8_block", "int8_wo", "int4", "nf4", "awq", "gptq")
    },
    kv_formats=("fp8",),
    features={
        "lora": Support(_KINDS, "TGI's docs/source/conceptual/lora.md (public copy, read 2026-11)"),
        "speculative": Support(_KINDS, "TGI's docs/source/conceptual/speculation.md (public copy, read 2026-11)"),
        "structured": Support(_KINDS, f"{_SOURCE}: server/text_generation_server/utils/logits_process.py"),
    },
    drafts=_drafts,
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_concurrent_requests",
        "context": "max_total_tokens",
        "step_tokens": "max_batch_prefill_tokens",
        "memory_share": "cuda_memory_fraction",
        "tensor_ranks": "num_shard",
        "graph_rows": "cuda_graphs",
    },
    kernels="vllm",
    overheads_from="vllm",
    plan=plan,
    replay=replay,
)
