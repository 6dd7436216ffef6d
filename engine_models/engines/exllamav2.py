"""ExLlamaV2's dynamic generator behind TabbyAPI: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.bounded_bypass`, the cache `engine_models.memory.chained_pages`.

Behaviour of ExLlamaV2 0.3.2 (da07facd, 2025-12: `exllamav2/generator/dynamic.py`, `exllamav2/cache.py`), defaults of TabbyAPI at
d2d87bb9 (2026-06: `backends/exllamav2/model.py`), the last that has it; scheduling checked step by step against recordings of
0.3.2 (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from engine_models.engines.exllamav2_flags import FLAGS
from engine_models.engines.exllamav2_recorded import replay as replay_recorded
from engine_models.memory.chained_pages import PAGE_TOKENS, ChainedPages
from engine_models.model.activations import COLLECTIVE_BYTES, CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_groups, weight_bytes_per_rank
from engine_models.schedulers.bounded_bypass import BypassRules, BypassScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError

CACHE_TOKENS, CHUNK_TOKENS, ROW_TOKENS, MAX_SKIPS = 4096, 2048, 8, 4
RESERVED_BYTES = 96 << 20
"""Defaults (datasheet: `backends/exllamav2/model.py` of TabbyAPI, `generator/dynamic.py` of ExLlamaV2): tokens of the cache where
neither it nor the context is given, of a chunk, the tokens of a row for which a call has room (rows = chunk / `ROW_TOKENS`), how
often a request is passed over, and the memory that the loader leaves free."""

UNPAGED = ("t4", "v100", "rtx-20", "titan-rtx")
"""NVIDIA's cards before Ampere, which FlashAttention's paged kernels do not know (datasheet: README of ExLlamaV2,
`common/hardware.py` of TabbyAPI)."""


@dataclass(frozen=True)
class Server:
    """Rules and pages of one server: what a fresh scheduler is built from."""

    rules: BypassRules
    pages: int
    windows: tuple[int, ...]

    def scheduler(self, mode: Mode) -> BypassScheduler:
        """Build a scheduler with its pages."""
        return BypassScheduler(
            self.rules,
            ChainedPages(self.pages),
            aggregate=mode != "step",
            record_rows=mode == "record",
            windows=self.windows,
        )


def _rounded(tokens: int) -> int:
    """Whole pages."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: the cache that is asked for, what it leaves, limits, overheads.

    Raises InfeasibleError if weights and cache do not fit, InputError on what the engine or this model of it lacks.
    """
    arch, flags = request.arch, request.flags
    _refuse(request)
    paged = not request.device_name.startswith(UNPAGED)
    asked = flags.get("max_seq_len")
    cache = _rounded(int((flags.get("cache_size") if paged else None) or asked or CACHE_TOKENS))
    context = min(int(asked or arch.max_context_tokens), cache)
    chunk = _rounded(sorted((PAGE_TOKENS, int(flags.get("chunk_size", CHUNK_TOKENS)), context))[1])
    rows = int(flags.get("max_batch_size") or chunk // ROW_TOKENS)
    if rows > chunk // ROW_TOKENS:
        raise InputError(
            f"max_batch_size {rows} is more than a chunk of {chunk:,} tokens has room for ({chunk // ROW_TOKENS})",
            where="deployment.engine_args.max_batch_size",
            mend=f"give at most {chunk // ROW_TOKENS}, or a larger chunk_size",
        )
    memory = _memory(request, cache, chunk, PAGE_TOKENS if paged else cache)
    rows, page = (rows, PAGE_TOKENS) if paged else (1, cache)
    rules = BypassRules(rows, chunk, context, int(flags.get("max_skips", MAX_SKIPS)), paged)
    windows = arch.windows_below(context)
    overheads = load_overheads(ENGINE.name)
    kv = request.formats.kv_cache
    step_tokens = max(chunk, rows)
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=rows,
            step_tokens=step_tokens,
            context_tokens=cache,
            kv_tokens=cache,
            kv_blocks=cache // page,
            block_tokens=page,
            prompt_tokens=context - 1,
            row_tokens=context,
        ),
        memory=memory,
        scheduler=Server(rules, cache // page, windows).scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(overheads.host, widens_kv=_is_packed(request)),
            TableRange(step_tokens, rows, context),
            Parallelism(request.tensor_parallel),
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=True,
        notes=(
            f"ExLlamaV2 behind TabbyAPI: {cache // PAGE_TOKENS:,} pages of {PAGE_TOKENS} tokens ({kv.name}), which are set aside "
            f"for prompt and max_tokens when a request starts; one that asks for no limit takes the whole context of {context:,}"
            if paged
            else f"ExLlamaV2 behind TabbyAPI on {request.device_name}, without pages: one request at a time, which finds what it "
            "shares with the one before; cache_size and max_batch_size do not count",
            f"each prompt in work stops the others for a chunk of {chunk:,} tokens in every iteration; a request that does not "
            f"fit is passed over {rules.max_skips} times",
            *(
                (f"before attention a cache in {kv.name} is widened to 16 bits, in a pass of its own",)
                if _is_packed(request)
                else ()
            ),
            *(
                ("tensor parallelism is priced as vLLM's, collectives included",)
                if request.tensor_parallel > 1
                else ()
            ),
            "ExLlamaV2's host times (50 us a row, 2 ms a request) are assumed, nobody measured them",
        ),
        sources=overheads.provenance,
    )


def _is_packed(request: PoolRequest) -> bool:
    return request.formats.kv_cache.bits_per_weight < 16


def _refuse(request: PoolRequest) -> None:
    arch, formats = request.arch, request.formats
    if request.device_vendor != "nvidia":
        raise InputError(
            f"ExLlamaV2 is simulated on NVIDIA GPUs, not on {request.device_name}",
            where="deployment.hardware",
            mend="use an NVIDIA GPU, or another engine (`capacity-plan list engines`)",
        )
    if formats.weights.name.startswith("exl3"):
        raise InputError(
            f"ExLlamaV2 does not load weights in {formats.weights.name}: EXL3 is ExLlamaV3's",
            where="deployment.weights",
            mend="use exl2_4.0 (2 to 8 bits)",
        )
    if request.expert_parallel > 1:
        raise InputError(
            "ExLlamaV2 has no expert parallelism", where="deployment.expert_parallel", mend="leave it out"
        )
    if any(block.kind in ("mla", "linear") or block.sinks or block.indexer for block in arch.attention):
        raise InputError(
            f"ExLlamaV2 has no model like {arch.name} (latent, recurrent or sparse attention, or sinks)",
            where="model",
            mend="use another engine (`capacity-plan list engines`)",
        )


def _memory(request: PoolRequest, cache_tokens: int, chunk: int, page: int) -> MemoryBudget:
    """The cache is as large as asked for; what it leaves beside weights, a chunk and the reserve must not be negative."""
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp)
    groups = kv_groups(arch, request.formats.kv_cache, tp)
    per_token = sum(group.bytes_per_token_per_rank for group in groups)
    widened = 0
    if _is_packed(request):  # the 16-bit keys and values of one layer
        widened = max(2 * 2 * max(1, block.kv_heads // tp) * block.head_dim for block in arch.attention)
    largest = activation_bytes(arch, chunk, ROW_TOKENS, tp)
    other = int(CONTEXT_BYTES + (COLLECTIVE_BYTES if tp > 1 else 0))
    reserve = RESERVED_BYTES
    if request.flags.get("autosplit_reserve"):
        reserve = int(request.flags["autosplit_reserve"][0]) << 20
    free = device - weights - largest - other - reserve
    kv = int(per_token * cache_tokens)
    left = free - kv - widened * cache_tokens
    if left < 0:
        fits = int(free / (per_token + widened)) // PAGE_TOKENS * PAGE_TOKENS
        mend = f"engine_args.cache_size {fits}" if fits > 0 else "a smaller engine_args.chunk_size"
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {(largest + other + reserve) / 1e9:.1f} GB "
            f"besides + a cache of {cache_tokens:,} tokens, {(kv + widened * cache_tokens) / 1e9:.1f} GB, of "
            f"{device / 1e9:.1f} GB",
            where="deployment",
            mend=f"{mend}, cache_mode: Q4, fewer bits a weight (weights: exl2_3.0), or larger devices",
        )
    lines = (
        MemoryLine("weight", "weights", weights),
        MemoryLine("activation", "activations of a chunk", largest),
        MemoryLine("other", "CUDA context, collectives, the reserve", other + reserve),
        MemoryLine("widened", "16-bit copy of one layer of the cache", widened * cache_tokens),
        MemoryLine("left", "left", left),
    )
    return MemoryBudget(device, device, lines, kv, per_token, int(per_token * page), cache_tokens // page)


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from its version and the knobs of its `config` line."""
    ENGINE.version(version_text)
    return replay_recorded(knobs)


_SOURCE = "turboderp-org/exllamav2 0.3.2 (da07facd, 2025-12)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu"})

ENGINE = Engine(
    name="exllamav2",
    title="ExLlamaV2",
    rule=(
        "Pages for prompt and longest answer at admission; who does not fit is passed over, but only so often; "
        "prompts are computed a chunk each beside one step of all rows that generate."
    ),
    versions={"0.3.2": {}},
    oldest="0.2.0",
    devices={"gpu": f"{_SOURCE}: NVIDIA GPUs, before Ampere without pages; AMD's are not simulated"},
    formats={
        name: Support(_KINDS, f"{_SOURCE}: exllamav2/linear.py, conversion/qparams.py")
        for name in ("fp16", "bf16", "gptq", "exl")
    },
    kv_formats=(),
    features={},
    flags=lambda: FLAGS,
    same_as={"rows": "max_batch_size", "context": "max_seq_len", "step_tokens": "chunk_size"},
    kernels="exllamav2",
    plan=plan,
    replay=replay,
)
