"""What `generate` of transformers needs of a device: memory and cost of groups, for the engines whose model it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine_models.cost.overheads import Overheads, load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import HostOverhead, Parallelism, Terms
from engine_models.declaration import (
    EnginePlan,
    FrontEnd,
    Limits,
    MemoryBudget,
    MemoryLine,
    Mode,
    PoolRequest,
)
from engine_models.model.activations import CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from engine_models.parts.protocols import Scheduler
from engine_models.refusals import no_layers
from hardware_profiles.errors import InfeasibleError, InputError
from hardware_profiles.records import dataclass

GATHER_FACTOR = 2.0
"""`DynamicCache` writes the whole cache anew in every step: one read, one write (datasheet: `cache_utils.py` of 5.24.0)."""

QUANTIZED_LAUNCHES = {"int8": 6.6, "nf4": 2.1, "int4": 2.1}
"""How much longer the host takes for a step of bitsandbytes weights (8 bit, 4 bit): 6.98 and 21.7 tokens/s where float16
gives 46.4 (fitted, 2026-11: Llama-2-7B, batch 1, A100 80 GB, premAI-io/benchmarks at 16338c3, 2024-01)."""

MAKER, KERNELS = "transformers", "vllm"
"""Whose host times these are, and whose stand in for those that nobody measured."""


def overheads() -> Overheads:
    """The host's time and the front end, as shipped."""
    return load_overheads(MAKER, KERNELS)


def check_model(request: PoolRequest) -> None:
    """InputError for models and formats whose caches are not simulated."""
    if request.formats.kv_cache.name == "fp32":
        raise InputError(
            "keys and values in float32, as a model in float32 keeps them, have no kernels that are priced",
            where="deployment.weights",
            mend="write weights: bf16 or fp16",
        )
    caches = f"the caches of {request.arch.name} (latent, recurrent or sparse layers)"
    no_layers(request, ("mla", "linear", "sparse"), f"{caches} are not simulated for transformers")


def weights_of(request: PoolRequest, copies: int = 1) -> int:
    """Bytes of the weights on a device; InfeasibleError if so many copies of them do not fit."""
    arch, device = request.arch, request.device_memory_bytes
    weights = weight_bytes_per_rank(arch, request.formats.weights, request.tensor_parallel, 1)
    if copies * (weights + int(CONTEXT_BYTES)) >= device:
        words = f"{copies} copies of the weights" if copies > 1 else "the weights"
        raise InfeasibleError(
            f"{words} of {arch.name} ({copies * weights / 1e9:.1f} GB a device) do not fit in {device / 1e9:.1f} GB",
            where="deployment",
            mend=request.more_memory,
        )
    return weights


def launched(host: HostOverhead, request: PoolRequest) -> HostOverhead:
    """Overheads where every operation is launched from Python; a CPU computes when it is told to, and waits for no launch."""
    factor = QUANTIZED_LAUNCHES.get(request.formats.weights.name, 1.0)
    return replace(host, launch_s=0.0 if request.device_kind == "cpu" else factor * host.launch_s)


def priced_as(request: PoolRequest) -> tuple[str, ...]:
    """What is assumed of kernels."""
    weights = request.formats.weights.name
    said = "transformers' kernels are priced as vLLM's (assumed, nobody measured them)"
    if weights in ("bf16", "fp16"):
        return (said,)
    launches = ", launched as bitsandbytes'" if weights in QUANTIZED_LAUNCHES else ""
    return (said, f"{weights} weights too{launches}; those of transformers are slower")


@dataclass(frozen=True)
class Groups:
    """Groups of a pool.

    rows : most requests of one; copies : of the model on a device, each with its groups.
    scheduler : from the tokens that the memory of a copy holds and the model's windows, what builds a fresh scheduler.
    rows_flag : the engine's flag of `rows`, for mends.
    """

    rows: int
    copies: int
    scheduler: Callable[[int, tuple[int, ...]], Callable[[Mode], Scheduler]]
    rows_flag: str


def plan_groups(
    request: PoolRequest, engine: str, version: str, groups: Groups, front: FrontEnd, notes: tuple[str, ...]
) -> EnginePlan:
    """Resolve a pool whose model computes groups; `{tokens}` in the notes becomes the tokens that a group may hold.

    Raises InfeasibleError if the model does not fit, InputError if its caches are not simulated.
    """
    check_model(request)
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    rows, copies, other = groups.rows, groups.copies, int(CONTEXT_BYTES)
    context = int(request.flags.get("max_length") or arch.max_context_tokens)
    weights = weights_of(request, copies)
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp)
    fixed = activation_bytes(arch, 0, rows, tp)
    prefill = activation_bytes(arch, 1, 0, tp)  # a token's share; the whole group is one forward pass
    tokens = (device // copies - weights - other - fixed) // (per_token + prefill)
    if tokens < 2 * rows:
        raise InfeasibleError(
            f"{arch.name} leaves no memory for {rows:,} rows beside {copies * weights / 1e9:.1f} GB of weights",
            where="deployment",
            mend=f"{request.more_memory}, or a smaller engine_args.{groups.rows_flag}",
        )
    held, step, all_tokens = min(context, tokens), min(tokens, rows * context), copies * tokens
    used = overheads()
    spent = copies * (weights + other + fixed + tokens * prefill)
    lines = (
        MemoryLine("weight", "weights", copies * weights),
        MemoryLine("other", "device context", copies * other),
        MemoryLine(
            "activation",
            "logits, and activations of the largest prefill",
            copies * (fixed + tokens * prefill),
        ),
        MemoryLine("left", "rounding", device - spent - all_tokens * per_token),
    )
    return EnginePlan(
        engine=engine,
        version=version,
        limits=Limits(
            rows=copies * rows,
            step_tokens=step,
            context_tokens=context,
            kv_tokens=all_tokens,
            kv_blocks=all_tokens,
            block_tokens=1,
            prompt_tokens=held - 1,
            row_tokens=held,
            asked_tokens=1,  # an answer is cut, not refused
            request_tokens=tokens,
        ),
        memory=MemoryBudget(device, device, lines, all_tokens * per_token, per_token, per_token, all_tokens),
        scheduler=groups.scheduler(tokens, arch.windows_below(context)),
        costs=StepCosts(
            arch,
            request.formats,
            Terms(replace(launched(used.host, request), step_s=0.0, row_s=0.0), gather_factor=GATHER_FACTOR),
            TableRange(step, rows, context),
            Parallelism(tp),
        ),
        front=front,
        notes=tuple(note.format(tokens=f"{tokens:,}") for note in (*notes, *priced_as(request))),
        sources=used.provenance,
    )


__all__ = [
    "GATHER_FACTOR",
    "Groups",
    "check_model",
    "launched",
    "overheads",
    "plan_groups",
    "priced_as",
    "weights_of",
]
