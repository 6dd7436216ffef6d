"""Text Generation Inference: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.whole_lifetime`, the cache `engine_models.memory.lifetime_pages`.

Behaviour and defaults of the repository at db931fcf (2026-01, 3.3.6-dev0: `backends/v3/src`, `router/src/validation.rs`,
`launcher/src/main.rs`, `server/text_generation_server/models`); scheduling checked step by step against recordings of the real
router (`capacity-plan validate schedules`). Version 2 is the same rules with its constants, compared with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.cost.adapters import Adapters, adapters_of
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
    Limits,
    MemoryBudget,
    MemoryLine,
    PoolRequest,
    Replay,
    Support,
)
from engine_models.engines.tgi_flags import FLAGS
from engine_models.engines.tgi_launcher import Serving, Version, default_prefill_tokens, serving_of
from engine_models.engines.tgi_ranks import Rank, replay_of
from engine_models.model.activations import COLLECTIVE_BYTES, CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_groups, weight_bytes_per_rank
from engine_models.model.blocks import Architecture
from engine_models.schedulers.whole_lifetime import LifetimeRules
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError

VERSIONS: dict[str, dict[str, Any]] = {
    "3.3.6": {},
    "3.0.0": {"recorded": False},
    "2.4.1": {
        "chunked_prefill": False,
        "prefix_caching": False,
        "attention": "paged",
        "reserved_answer_tokens": None,
        "waiting_served_ratio": 1.2,
        "max_input_tokens": 1024,
        "max_total_tokens": 2048,
        "max_batch_prefill_tokens": 4096,
    },
}
"""The newest first; of each older one what differs from the next newer. Source: as the module, and `backends/v2/src` there."""

MAX_CONCURRENT_REQUESTS = 128
WAITING_TOKENS = 20
GRAPH_SIZES = (1, 2, 4, 8, 16, 32)
WIGGLE_ROOM = 0.90
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
    if any(block.kind == "linear" or block.sparse for block in request.arch.attention):
        raise InputError(
            f"TGI has no model with recurrent, indexed or compressed layers such as {request.arch.name}",
            where="model",
            mend="use another engine (`capacity-plan list engines`)",
        )
    if request.structured and request.flags.get("disable_grammar_support"):
        raise InputError(
            "TGI refuses requests with grammars when told so",
            where="deployment.engine_args.disable_grammar_support",
            mend="remove it, or workload.structured_output",
        )
    serving = serving_of(request, version)
    prefill = int(request.flags.get("max_batch_prefill_tokens") or default_prefill_tokens(request, version))
    adapters, drafts = _adapters(request), request.speculation
    memory = _memory(request, prefill, serving.block_tokens, adapters.memory_bytes if adapters is not None else 0)
    limits = _limits(request, version, serving, memory, prefill)
    rules = _rules(request.flags, version, serving, memory, prefill, limits.row_tokens)
    rank = Rank(
        rules,
        limits.kv_blocks,
        limits.block_tokens,
        serving.prefix_caching,
        windows=request.arch.windows_below(limits.context_tokens),
        adapters=adapters is not None or request.structured,
        row_tokens=limits.spare_tokens + 1,
    )
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    graphs = tuple(sorted(int(size) for size in request.flags.get("cuda_graphs") or GRAPH_SIZES if int(size) > 0))
    inflight = _inflight(request.flags)
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
            *_notes(version, serving, rules, inflight, graphs),
            *((adapters_note(adapters, all_there=True),) if adapters is not None else ()),
            *((masks_note(OUTLINES),) if request.structured else ()),
        ),
        warnings=_warnings(request.flags, rules),
        sources=overheads.provenance,
    )


def _inflight(flags: Mapping[str, Any]) -> int:
    return int(flags.get("max_concurrent_requests", MAX_CONCURRENT_REQUESTS))


def _limits(
    request: PoolRequest, version: Version, serving: Serving, memory: MemoryBudget, prefill: int
) -> Limits:
    """What a rank takes: a request's tokens by flags and by what the cache and the warm-up hold."""
    flags, page, capacity = request.flags, serving.block_tokens, memory.blocks * serving.block_tokens
    row_tokens = request.speculation.row_tokens if request.speculation is not None else 1
    total = int(flags.get("max_total_tokens") or version.max_total_tokens or 0)
    if not total:  # without chunks, what its warm-up held
        total = min(capacity, request.arch.max_context_tokens if serving.chunked_prefill else prefill)
    if total > capacity:
        raise InfeasibleError(
            f"the KV cache holds {capacity:,} tokens, one request of max_total_tokens {total:,} does not fit "
            f"({memory.kv_bytes / 1e9:.1f} GB left for the cache on each of {request.tensor_parallel} devices)",
            where="deployment",
            mend=f"set engine_args.max_total_tokens to at most {capacity}, or use more or larger devices",
        )
    longest = int(flags.get("max_input_tokens") or version.max_input_tokens or total - 1)
    if longest >= total:
        raise InputError(
            f"max_input_tokens {longest} is not below max_total_tokens {total}",
            where="deployment.engine_args.max_input_tokens",
            mend=f"give at most {total - 1}",
        )
    if not serving.chunked_prefill:  # a longer prompt would never be taken from the queue
        longest = min(longest, -(-prefill // page) * page)
    usable = memory.blocks - 1  # page 0 is the health check's
    inflight, most_rows = _inflight(flags), flags.get("max_batch_size")
    rows = inflight if most_rows is None or serving.chunked_prefill else min(inflight, int(most_rows))
    return Limits(
        rows=rows,
        step_tokens=max(prefill + page, rows * row_tokens),
        context_tokens=total,
        kv_tokens=usable * page,
        kv_blocks=usable,
        block_tokens=page,
        prompt_tokens=longest,
        row_tokens=min(total, usable * page + 1 - (row_tokens - 1)),
        spare_tokens=row_tokens - 1,
        asked_tokens=version.reserved_answer_tokens,
    )


def _rules(
    flags: Mapping[str, Any], version: Version, serving: Serving, memory: MemoryBudget, prefill: int, row_tokens: int
) -> LifetimeRules:
    most_rows = flags.get("max_batch_size")
    return LifetimeRules(
        max_batch_prefill_tokens=prefill,
        max_batch_total_tokens=memory.blocks * serving.block_tokens,
        max_total_tokens=row_tokens,
        waiting_served_ratio=float(flags.get("waiting_served_ratio", version.waiting_served_ratio)),
        max_waiting_tokens=int(flags.get("max_waiting_tokens", WAITING_TOKENS)),
        max_batch_size=None if most_rows is None else int(most_rows),
        chunked_prefill=serving.chunked_prefill,
        reserved_answer_tokens=version.reserved_answer_tokens,
    )


def _warnings(flags: Mapping[str, Any], rules: LifetimeRules) -> tuple[str, ...]:
    if not flags.get("max_batch_total_tokens"):
        return ()
    found = rules.max_batch_total_tokens
    return (f"max_batch_total_tokens: TGI finds it at warm-up ({found:,} here) and ignores what is given",)


def _notes(
    version: Version, serving: Serving, rules: LifetimeRules, inflight: int, graphs: tuple[int, ...]
) -> tuple[str, ...]:
    chunks = "in chunks beside decoding rows" if serving.chunked_prefill else "whole, while the running rows wait"
    cache = "cached prompts can be found" if serving.prefix_caching else "no prefix cache"
    part = rules.reserved_answer_tokens
    held = "its whole answer" if part is None else f"at most {part:,} tokens of its answer, and queues again after these"
    return (
        f"TGI {version.name}: {rules.max_batch_total_tokens:,} KV tokens, {rules.max_batch_prefill_tokens:,} prompt tokens a "
        f"step, prompts {chunks}; {serving.attention} attention with pages of {serving.block_tokens}, {cache}",
        f"a request takes memory for its prompt and {held}; above {inflight} requests others are refused (429)",
        *(
            ()
            if version.recorded
            else (
                f"TGI {version.name} is simulated by the rules of 3.3 with its own constants; no recording of it was compared",
            )
        ),
        "TGI's kernels are priced as vLLM's; its host time of a step (1.2 ms, 20 us a row) and its front end are assumed, nobody "
        "measured them",
        "TGI runs without CUDA graphs"
        if not graphs
        else f"above {graphs[-1]} rows TGI's decode steps run outside CUDA graphs, as do all steps that compute prompts",
    )


def _adapters(request: PoolRequest) -> Adapters | None:
    """Adapters of a pool, None where it serves none: all that there are, loaded at start."""
    if request.lora is None:
        return None
    if "max_loras" not in request.lora:
        raise InputError(
            "TGI keeps all its adapters on the device: how many are they?",
            where="deployment.lora.max_loras",
            mend="give their number, such as lora: {max_loras: 20, rank: 16}, or name them in engine_args.lora_adapters",
        )
    return adapters_of(
        request.lora,
        request.arch,
        tensor_parallel=request.tensor_parallel,
        link_bytes_per_s=request.host_link_bytes_per_s,
        on_device=1,
        pads_rank=True,
    )


def _drafts(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of drafts: n-grams, unless the model has Medusa's heads."""
    return chains_only("TGI", ("ngram", "medusa"))({"method": "ngram", **settings}, arch, flags)


def _memory(request: PoolRequest, prefill_tokens: int, page: int, lora_bytes: int = 0) -> MemoryBudget:
    """KV bytes = what is free after the warm-up's prefill - the share of the device that is never used."""
    flags, arch = request.flags, request.arch
    tp, device = request.tensor_parallel, request.device_memory_bytes
    share = float(flags.get("cuda_memory_fraction", 1.0)) * float(flags.get("tgi_wiggle_room", WIGGLE_ROOM))
    usable = int(device * share)
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1, request.expert_parallel)
    activations = activation_bytes(arch, prefill_tokens, 1, tp)
    other = int(CONTEXT_BYTES + (COLLECTIVE_BYTES if tp > 1 else 0))
    draft_weights = request.speculation.weight_bytes() if request.speculation is not None else 0
    per_token = sum(
        group.bytes_per_token_per_rank for group in kv_groups(arch, request.formats.kv_cache, tp, 1)
    )
    block = int(per_token * page)
    kv = usable - weights - draft_weights - lora_bytes - activations - other
    if kv < 2 * block:
        lack = weights + draft_weights + lora_bytes + activations + other + 2 * block - usable
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {(activations + other) / 1e9:.1f} GB "
            f"besides (a prefill of {prefill_tokens:,} tokens), of {usable / 1e9:.1f} GB usable ({share:.0%} of "
            f"{device / 1e9:.1f} GB); {lack / 1e9:.1f} GB too much on each of {tp} devices",
            where="deployment",
            mend=f"{request.more_memory}, or a smaller engine_args.max_batch_prefill_tokens",
        )
    return MemoryBudget(
        device_bytes=device,
        usable_bytes=usable,
        lines=(
            MemoryLine("weight", "weights", weights),
            *((MemoryLine("draft", "weights of the drafter", draft_weights),) if draft_weights else ()),
            *((MemoryLine("lora", "LoRA adapters", lora_bytes),) if lora_bytes else ()),
            MemoryLine("activation", "activations (warm-up of the largest prefill)", activations),
            MemoryLine("other", "CUDA context, collectives", other),
        ),
        kv_bytes=kv,
        kv_bytes_per_token=per_token,
        block_bytes=block,
        blocks=kv // block,
    )


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
