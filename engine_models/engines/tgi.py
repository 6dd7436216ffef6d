"""Text Generation Inference: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.whole_lifetime`, the cache `engine_models.memory.lifetime_pages`.

Behaviour and defaults of the repository at db931fcf (2026-01, 3.3.6-dev0: `backends/v3/src`, `router/src/validation.rs`,
`launcher/src/main.rs`, `server/text_generation_server/models`); scheduling checked step by step against recordings of the real
router (`capacity-plan validate schedules`). Version 2 is the same rules with its constants, compared with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine_models.cost.adapters import Adapters, adapters_of
from engine_models.cost.adapters import summary_note as adapters_note
from engine_models.cost.draft_methods import chains_only
from engine_models.cost.drafting import summary_note
from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.declaration import (
    Engine,
    EnginePlan,
    FrontEnd,
    Limits,
    MemoryBudget,
    MemoryLine,
    Mode,
    PoolRequest,
    Replay,
    Support,
)
from engine_models.engines.tgi_flags import BLOCK_TOKENS, FLAGS
from engine_models.memory.lifetime_pages import LifetimePages
from engine_models.model.activations import COLLECTIVE_BYTES, CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_groups, weight_bytes_per_rank
from engine_models.model.blocks import Architecture
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.whole_lifetime import LifetimeBatch, LifetimeRules, WholeLifetimeScheduler
from engine_models.schedulers.whole_lifetime_adapted import AdaptedLifetimeScheduler
from engine_models.schedulers.whole_lifetime_drafted import DraftedLifetimeScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError


@dataclass(frozen=True)
class Version:
    """What differs between versions; the defaults are those of the newest.

    `chunked_prefill`, `prefix_caching` : whether it has them; `attention` : "" where hardware and model decide.
    `reserved_answer_tokens` : see `LifetimeRules`. Of the token limits None is what hardware and model give.
    `recorded` : whether its scheduling was compared with recordings.
    """

    name: str
    recorded: bool = True
    chunked_prefill: bool = True
    prefix_caching: bool = True
    attention: str = ""
    reserved_answer_tokens: int | None = 1024
    waiting_served_ratio: float = 0.3
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_batch_prefill_tokens: int | None = None


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

PREFILL_TOKENS = 4096
PREFILL_TOKENS_BY_MODEL = {"qwen2_vl": 10_000, "qwen2_5_vl": 10_000, "gemma3": 8000}
LEAST_PREFILL_TOKENS = 100
LAUNCHER_WIGGLE_ROOM = 0.95
PREFILL_TFLOPS = {
    "h200": 989,
    "h100": 900,
    "a100": 312,
    "l40s": 363,
    "a40": 149,
    "a10g": 125,
    "l4": 121,
    "rtx-4090": 82,
}
"""What the launcher makes the default prefill budget of: dense FP16 rate by card [TFLOP/s] (datasheet: as above). Of other cards
it knows no rate, and takes `PREFILL_TOKENS`; it takes a budget below `LEAST_PREFILL_TOKENS` for an error."""

FLASHINFER_HEAD_DIMS = (64, 128, 256)
FALLBACK_MODELS = ("falcon", "deepseek_v2")
"""Models to which flashinfer is not applied whatever their heads (datasheet: `resolve_attention` in the launcher, 2026-01)."""


@dataclass(frozen=True)
class Serving:
    """How attention is computed and prompts are cut, on some hardware."""

    attention: str
    prefix_caching: bool
    chunked_prefill: bool

    @property
    def block_tokens(self) -> int:
        """Tokens of a page."""
        return BLOCK_TOKENS[self.attention]


@dataclass(frozen=True)
class Rank:
    """Rules and pages of one rank: what a fresh scheduler is built from. `blocks` are the usable ones."""

    rules: LifetimeRules
    blocks: int
    block_tokens: int
    prefix_caching: bool
    window_tokens: int | None = None
    windows: tuple[int, ...] = ()  # of the model's layers
    adapters: bool = False
    row_tokens: int = 1  # that a step verifies, with drafts

    def scheduler(self, mode: Mode) -> WholeLifetimeScheduler:
        """Build a scheduler with its pages."""
        kv = LifetimePages(
            self.blocks,
            self.block_tokens,
            prefix_caching=self.prefix_caching,
            window_tokens=self.window_tokens,
        )
        if self.row_tokens > 1:
            return DraftedLifetimeScheduler(self.rules, kv, row_tokens=self.row_tokens, windows=self.windows)
        if self.adapters:
            return AdaptedLifetimeScheduler(self.rules, kv, aggregate=mode != "step", windows=self.windows)
        return WholeLifetimeScheduler(
            self.rules, kv, aggregate=mode != "step", record_rows=mode == "record", windows=self.windows
        )


def version_of(text: str | None) -> Version:
    """The declared version that stands for `text`."""
    name = ENGINE.version(text)
    return Version(name, **ENGINE.switches(name))


def serving_of(request: PoolRequest, version: Version) -> Serving:
    """Attention, prefix cache and chunks by the launcher's rules, unless flags say otherwise."""
    flags, arch = request.flags, request.arch
    attention = version.attention
    caching, chunked = version.prefix_caching, version.chunked_prefill
    if not attention and request.device_vendor == "amd":  # as its container image sets it
        attention, caching, chunked = "paged", False, False
    elif not attention:
        heads = arch.attention[0]
        attention = "flashinfer"
        if heads.kind == "mla" or heads.head_dim not in FLASHINFER_HEAD_DIMS:
            attention, caching = "flashdecoding", False
        elif arch.model_type in FALLBACK_MODELS:
            attention = "flashdecoding"
    attention = str(flags.get("attention") or attention)
    if request.speculation is not None:
        if flags.get("prefill_chunking"):
            raise InputError(
                "TGI does not cut prompts into chunks where it drafts",
                where="deployment.engine_args.prefill_chunking",
                mend="leave it out, or leave drafts (speculate) out",
            )
        chunked = False
    asked = flags.get("prefix_caching")
    if asked and (attention == "paged" or not version.prefix_caching):
        raise InputError(
            f"TGI {version.name} has no prefix cache with {attention} attention",
            where="deployment.engine_args.prefix_caching",
            mend="leave it out, or use attention: flashinfer with version 3",
        )
    if asked and request.lora is not None:
        raise InputError(
            "TGI has no prefix cache with LoRA adapters",
            where="deployment.engine_args.prefix_caching",
            mend="leave it out",
        )
    caching = attention != "paged" and request.lora is None and bool(caching if asked is None else asked)
    chunked = attention != "paged" and chunked and bool(flags.get("prefill_chunking", True))
    return Serving(attention, caching, chunked)


def default_prefill_tokens(request: PoolRequest, version: Version) -> int:
    """The launcher's `max_batch_prefill_tokens`: what the card computes in a second of the model, within context and memory."""
    if version.max_batch_prefill_tokens is not None:
        return version.max_batch_prefill_tokens
    arch = request.arch
    tokens = PREFILL_TOKENS_BY_MODEL.get(arch.model_type, PREFILL_TOKENS)
    rate = next((r for card, r in PREFILL_TFLOPS.items() if _is_card(request.device_name, card)), 0)
    optimal = int(rate * 1e12 * request.tensor_parallel / _token_flop(arch))
    if optimal > LEAST_PREFILL_TOKENS:
        tokens = optimal
    tokens = min(tokens, arch.max_context_tokens)
    if rate and arch.quantization is None:
        fraction = float(request.flags.get("cuda_memory_fraction", 1.0)) * LAUNCHER_WIGGLE_ROOM
        room = int(request.device_memory_bytes * request.tensor_parallel * fraction) - _model_bytes(arch)
        if room > 0:
            tokens = min(tokens, room // _token_bytes(arch))
    return max(1, tokens)


def _is_card(device_name: str, card: str) -> bool:
    return device_name == card or device_name.startswith(f"{card}-")


def _token_flop(arch: Architecture) -> int:
    """Floating-point operations of a token, as the launcher counts them; sizes are those of the first layer."""
    heads, mlp, hidden = arch.attention[0], arch.mlp[-1], arch.hidden
    width = mlp.experts_per_token * mlp.expert_intermediate + mlp.shared_intermediate if mlp.experts else mlp.intermediate
    attention = 2 * hidden * heads.head_dim * (3 * heads.heads + 2 * heads.kv_heads)
    return arch.layers * (attention + 2 * 3 * hidden * width)


def _token_bytes(arch: Architecture) -> int:
    """Bytes of a token, as the launcher counts them: keys and values of all layers, and the inner part of an MLP."""
    heads, mlp = arch.attention[0], arch.mlp[-1]
    width = mlp.expert_intermediate if mlp.experts else mlp.intermediate
    return heads.kv_heads * 2 * heads.head_dim * 2 * arch.layers + (width + width // 2) * max(mlp.experts, 1) * 2 * 3


def _model_bytes(arch: Architecture) -> int:
    """Bytes of the weights, as the launcher counts them."""
    heads, mlp, hidden = arch.attention[0], arch.mlp[-1], arch.hidden
    width = mlp.expert_intermediate if mlp.experts else mlp.intermediate
    attention = (heads.heads + 2 * heads.kv_heads) * heads.head_dim + heads.heads * heads.head_dim * hidden
    layer = 3 * width * max(mlp.experts, 1) * hidden + attention
    return 2 * (layer * arch.layers + 2 * hidden * arch.vocab)


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of TGI: attention, memory as found at warm-up, limits, graphs, overheads.

    Raises InfeasibleError if the weights or one request of `max_total_tokens` do not fit, InputError on flags out of range.
    """
    version = version_of(version_text)
    arch, flags = request.arch, request.flags
    if any(block.kind == "linear" or block.sparse for block in arch.attention):
        raise InputError(
            f"TGI has no model with recurrent, indexed or compressed layers such as {arch.name}",
            where="model",
            mend="use another engine (`capacity-plan list engines`)",
        )
    serving = serving_of(request, version)
    page = serving.block_tokens
    prefill = int(flags.get("max_batch_prefill_tokens") or default_prefill_tokens(request, version))
    adapters, drafts = _adapters(request), request.speculation
    row_tokens = drafts.row_tokens if drafts is not None else 1
    memory = _memory(request, prefill, page, adapters.memory_bytes if adapters is not None else 0)
    capacity = memory.blocks * page
    usable = memory.blocks - 1  # page 0 is the health check's
    warnings: list[str] = []
    if flags.get("max_batch_total_tokens"):
        warnings.append(
            f"max_batch_total_tokens: TGI finds it at warm-up ({capacity:,} here) and ignores what is given"
        )
    total = int(flags.get("max_total_tokens") or version.max_total_tokens or 0)
    if not total:  # without chunks, what its warm-up held
        total = min(capacity, arch.max_context_tokens if serving.chunked_prefill else prefill)
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
    whole = min(total, usable * page + 1 - (row_tokens - 1))
    inflight = int(flags.get("max_concurrent_requests", MAX_CONCURRENT_REQUESTS))
    most_rows = flags.get("max_batch_size")
    rows = inflight if most_rows is None or serving.chunked_prefill else min(inflight, int(most_rows))
    rules = LifetimeRules(
        max_batch_prefill_tokens=prefill,
        max_batch_total_tokens=capacity,
        max_total_tokens=whole,
        waiting_served_ratio=float(flags.get("waiting_served_ratio", version.waiting_served_ratio)),
        max_waiting_tokens=int(flags.get("max_waiting_tokens", WAITING_TOKENS)),
        max_batch_size=None if most_rows is None else int(most_rows),
        chunked_prefill=serving.chunked_prefill,
        reserved_answer_tokens=version.reserved_answer_tokens,
    )
    rank = Rank(rules, usable, page, serving.prefix_caching, windows=arch.windows_below(total), adapters=adapters is not None,
                row_tokens=row_tokens)  # fmt: skip
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    graphs = tuple(sorted(int(size) for size in flags.get("cuda_graphs") or GRAPH_SIZES if int(size) > 0))
    step_tokens = max(prefill + page, rows * row_tokens)
    return EnginePlan(
        engine=ENGINE.name,
        version=version.name,
        limits=Limits(
            rows=rows,
            step_tokens=step_tokens,
            context_tokens=total,
            kv_tokens=usable * page,
            kv_blocks=usable,
            block_tokens=page,
            prompt_tokens=longest,
            row_tokens=whole,
            spare_tokens=row_tokens - 1,
            asked_tokens=version.reserved_answer_tokens,
        ),
        memory=memory,
        scheduler=rank.scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(overheads.host, graph_sizes=graphs),
            TableRange(step_tokens, rows, total),
            Parallelism(request.tensor_parallel, expert=request.expert_parallel),
            adapters=adapters,
            speculation=drafts,
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, inflight=inflight),
        prefix_caching=serving.prefix_caching,
        notes=(
            *((summary_note(drafts), *drafts.notes) if drafts is not None else ()),
            *_notes(version, serving, rules, inflight, graphs),
            *((adapters_note(adapters, all_there=True),) if adapters is not None else ()),
        ),
        warnings=tuple(warnings),
        sources=overheads.provenance,
    )


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
    if knobs.get("requires_padding"):
        raise InputError("models that TGI pads are not modelled", mend="use a model with flash attention")
    page, tokens = knobs["block_size"], knobs["max_batch_total_tokens"]
    rules = LifetimeRules(
        max_batch_prefill_tokens=knobs["max_batch_prefill_tokens"],
        max_batch_total_tokens=tokens,
        max_total_tokens=1 << 40,  # requests are not validated
        waiting_served_ratio=knobs["waiting_served_ratio"],
        max_waiting_tokens=knobs["max_waiting_tokens"],
        max_batch_size=knobs.get("max_batch_size"),
        chunked_prefill=knobs["support_chunking"],
    )
    rank = Rank(rules, tokens // page - 1, page, knobs["use_prefix_caching"], knobs.get("window_size"))
    return Replay(
        rank.scheduler("record"),
        1,
        ("call", "mode", "sched", "new", "hits", "waiting", "blocks_in_use", "finished"),
        as_recorded,
    )


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A settled step as the recordings write it."""
    assert isinstance(batch, LifetimeBatch)
    assert batch.rows is not None

    def names(seqs: list[Sequence]) -> list[str]:
        return [ids[seq.index] for seq in seqs]

    return {
        "call": "prefill" if batch.admits else "decode",
        "mode": ("MIXED" if batch.decode_rows else "PREFILL") if batch.prefill else "DECODE",
        "sched": [[ids[seq.index], new, before] for seq, new, before in batch.rows],
        "new": names(batch.new),
        "hits": {ids[seq.index]: found for seq, found in batch.hits},
        "waiting": names(batch.waiting),
        "blocks_in_use": batch.used_blocks,
        "finished": names(batch.finishing),
    }


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
