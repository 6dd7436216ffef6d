"""MLX LM's server: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.polled_turns`, what it keeps of prompts `engine_models.memory.prompt_copies`.

Behaviour and defaults of 0.32.2 (`mlx_lm/server.py`, `mlx_lm/generate.py`, `mlx_lm/models/cache.py`; repository at d78bf58e,
2026-08); scheduling checked step by step against recordings of it (`capacity-plan validate schedules`). Servers before 0.31.2
form their turns otherwise.
"""

from __future__ import annotations

from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Terms
from engine_models.declaration import (
    Engine,
    EnginePlan,
    FrontEnd,
    Limits,
    Mode,
    PoolRequest,
    Support,
    checked,
)
from engine_models.engines.mlx_lm_flags import FLAGS, size_bytes
from engine_models.engines.mlx_lm_memory import memory_of, refuse
from engine_models.engines.mlx_lm_recorded import replay as replay_recorded
from engine_models.memory.prompt_copies import PromptCopies
from engine_models.schedulers.polled_turns import PolledTurnsScheduler, TurnRules
from hardware_profiles.device import DeviceKind


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: memory left by weights and the largest call, limits, overheads.

    Raises InfeasibleError if the weights do not fit, InputError on what the engine or this model of it lacks.
    """
    arch, flags = request.arch, request.flags
    refuse(request)
    alone = bool(request.formats.kv_cache.family)
    decodes, prompts = int(flags.get("decode_concurrency", 32)), int(flags.get("prompt_concurrency", 8))
    if alone:
        decodes = prompts = 1
    chunk, copies = int(flags.get("prefill_step_size", 2048)), int(flags.get("prompt_cache_size", 10))
    rows, step_tokens = max(decodes, prompts) + prompts - 1, prompts * chunk
    windows = arch.windows_below(arch.max_context_tokens)
    memory = memory_of(request, step_tokens, rows + prompts + copies)
    limit = flags.get("prompt_cache_bytes")
    states = arch.has("linear")
    rules = TurnRules(
        decode_concurrency=decodes,
        prompt_concurrency=prompts,
        prefill_step_size=chunk,
        prompt_cache_tokens=None
        if limit is None or alone
        else int(size_bytes("prompt_cache_bytes", str(limit)) / memory.kv_bytes_per_token),
        held_tokens=memory.blocks,
        alone=alone,
    )
    uncut_from = 1 if states else min(windows, default=None)

    def scheduler(mode: Mode) -> PolledTurnsScheduler:
        kept = PromptCopies(copies, uncut_from)
        return PolledTurnsScheduler(rules, kept, aggregate=mode != "step", record_rows=mode == "record", windows=windows)

    overheads = load_overheads(ENGINE.name)
    answer = int(flags.get("max_tokens", 512))
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=rows,
            step_tokens=step_tokens,
            context_tokens=arch.max_context_tokens,
            kv_tokens=memory.blocks,
            kv_blocks=memory.blocks,
            block_tokens=1,
            prompt_tokens=arch.max_context_tokens - 1,
            row_tokens=arch.max_context_tokens,
            asked_tokens=1,  # nobody compares it with the context
            answer_tokens=answer,
            rows_by="one at a time with a quantized KV cache"
            if alone
            else f"by decode_concurrency {decodes:,} and prompt_concurrency {prompts:,}",
        ),
        memory=memory,
        scheduler=scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(overheads.host),
            TableRange(step_tokens, rows, arch.max_context_tokens),
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=True,
        notes=(
            (
                f"MLX LM: one request at a time, as with any quantized KV cache, prompts in calls of up to {chunk:,} tokens"
                if alone
                else f"MLX LM: {decodes:,} rows decode, {prompts:,} prompts of up to {chunk:,} tokens a call are in work, padded "
                "to the longest"
            )
            + f"; {copies:,} prompts are kept as whole copies"
            + (f", those of {uncut_from:,} tokens or more are found whole or not at all" if uncut_from else ""),
            (
                "attention over a quantized KV cache reads it by two products in place of one kernel, in 16 bits up to where "
                "it pays; that of prompts is priced as over 16 bits (assumed)"
                if alone
                else f"new requests are taken in every {rules.time_budget_s:g} s while others are served"
            )
            + f"; an answer without a limit ends after {answer:,} tokens (max_tokens)",
            "MLX LM does not look at memory or at the context: here longer requests are refused, and a run that needs more "
            "memory than the device lets the GPU use ends with an error, where macOS would swap or end the server",
            "what a chat shares with others before text of its own is taken for its system prompt; MLX LM's host times (50 us a "
            "row, 2 ms a request) are assumed, nobody measured them",
        ),
        sources=overheads.provenance,
    )


_SOURCE = "ml-explore/mlx-lm 0.32.2 (d78bf58e, 2026-08)"
_KINDS: frozenset[DeviceKind] = frozenset({"apple"})

ENGINE: Engine = Engine(
    name="mlx_lm",
    title="MLX LM",
    rule=(
        "A thread goes through turns of up to three calls: all decodes, the last tokens of prompts, a piece of every "
        "other prompt; it looks at its queue only when a budget of time is used up."
    ),
    versions={"0.32.2": {}},
    oldest="0.31.2",
    devices={"apple": f"{_SOURCE}: Apple silicon; MLX's CUDA and CPU backends are not simulated"},
    formats={
        name: Support(_KINDS, f"{_SOURCE}: mlx_lm/convert.py, mlx_lm/utils.py")
        for name in ("bf16", "fp16", "mlx", "mxfp4")
    },
    kv_formats=(),
    features={},
    flags=lambda: FLAGS,
    same_as={"rows": "decode_concurrency", "step_tokens": "prefill_step_size"},
    kernels="mlx",
    plan=plan,
    replay=checked(lambda version: ENGINE.version(version), replay_recorded),
)
