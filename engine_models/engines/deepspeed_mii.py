"""DeepSpeed-MII over DeepSpeed-FastGen: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.split_fuse`, which counts the blocks itself: nothing is found again.

Behaviour and defaults of MII 0.3.3 (8abdd98, 2025-06) over DeepSpeed 0.19.8 (`deepspeed/inference/v2`); scheduling checked step
by step against recordings (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.declaration import Engine, EnginePlan, FrontEnd, Limits, Mode, PoolRequest, Replay, Support
from engine_models.engines.deepspeed_mii_flags import FLAGS, manager
from engine_models.engines.deepspeed_mii_memory import (
    BLOCK,
    SMALL_HEAD_BLOCK,
    SMALL_HEAD_DIM,
    attends_to_all,
    memory_of,
    refuse,
)
from engine_models.engines.deepspeed_mii_recorded import replay as replay_recorded
from engine_models.schedulers.split_fuse import SplitFuseRules, SplitFuseScheduler
from hardware_profiles.device import DeviceKind


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: memory that weights and buffers leave, less a reserve, limits, overheads.

    Raises InfeasibleError if the weights do not fit, InputError on what the engine lacks.
    """
    flags = request.flags
    refuse(request)
    arch = attends_to_all(request.arch)
    state = manager(flags)
    tokens, rows = state["max_ragged_batch_size"], state["max_ragged_sequence_count"]
    page = SMALL_HEAD_BLOCK if arch.attention[0].head_dim <= SMALL_HEAD_DIM else BLOCK
    memory = memory_of(request, arch, state, page)
    # the last token of an answer is in no cache
    longest = min(int(flags.get("max_length") or arch.max_context_tokens), arch.max_context_tokens)
    held = min(longest, memory.blocks * page)
    rules = SplitFuseRules(tokens, rows, state["max_tracked_sequences"])

    def scheduler(mode: Mode) -> SplitFuseScheduler:
        return SplitFuseScheduler(rules, memory.blocks, page, aggregate=mode != "step", record_rows=mode == "record")

    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=rows,
            step_tokens=tokens,
            context_tokens=longest + 1,
            kv_tokens=memory.blocks * page,
            kv_blocks=memory.blocks,
            block_tokens=page,
            prompt_tokens=min(longest - 1, held),
            row_tokens=held + 1,
            asked_tokens=1,  # an answer is cut, not refused
        ),
        memory=memory,
        scheduler=scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(replace(overheads.host, prefill_graph_tokens=0), graph_sizes=()),
            TableRange(tokens, rows, longest + 1),
            Parallelism(request.tensor_parallel),
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, loop=overheads.loop),
        notes=(
            f"DeepSpeed-MII: {memory.blocks:,} blocks of {page} tokens, no prefix cache; a step has up to {rows:,} rows and "
            f"{tokens:,} tokens, decodes first, prompts cut to what is left (SplitFuse)",
            "the kernels, launches and the front end are priced as vLLM's (assumed), the host's time of a step is fitted to one "
            "measured rate; a step begins when the one before it is read, and every operation is launched by the host: it has no "
            "CUDA graphs",
        ),
        sources=overheads.provenance,
    )


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line; recordings name two packages, not one version."""
    return replay_recorded(knobs)


_SOURCE = "deepspeedai/DeepSpeed-MII 0.3.3 (2025-06), README"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu"})

ENGINE = Engine(
    name="deepspeed_mii",
    title="DeepSpeed-MII",
    rule=(
        "Split and fuse: every step serves all decodes that find memory, then fills up with prompts, the last one cut "
        "to what is left; if nothing can be chosen, the last in the buffer loses its blocks."
    ),
    versions={"0.3.3": {}},
    oldest="0.2.0",
    devices={"gpu": f"{_SOURCE}: NVIDIA GPUs of compute capability 8.0 and above"},
    formats={name: Support(_KINDS, f"{_SOURCE}; deepspeed/inference/v2 0.19.8") for name in ("bf16", "fp16")},
    kv_formats=(),
    features={},
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_ragged_sequence_count",
        "context": "max_length",
        "step_tokens": "max_ragged_batch_size",
        "tensor_ranks": "tensor_parallel",
    },
    kernels="vllm",
    overheads_from="vllm",
    plan=plan,
    replay=replay,
)
