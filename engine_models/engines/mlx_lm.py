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
from engine_models.engines.mlx_lm_drafts import drafts_of
from engine_models.engines.mlx_lm_flags import DRAFTS, FLAGS, size_bytes
from engine_models.engines.mlx_lm_memory import memory_of, refuse
from engine_models.engines.mlx_lm_notes import notes_of
from engine_models.engines.mlx_lm_recorded import replay as replay_recorded
from engine_models.memory.prompt_copies import PromptCopies
from engine_models.schedulers.polled_turns import PolledTurnsScheduler, TurnRules
from engine_models.schedulers.polled_turns_drafted import DraftedTurnsScheduler
from hardware_profiles.device import DeviceKind


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: memory left by weights and the largest call, limits, overheads.

    Raises InfeasibleError if the weights do not fit, InputError on what the engine or this model of it lacks.
    """
    arch, flags = request.arch, request.flags
    refuse(request)
    drafts = drafts_of(request)
    alone = drafts is not None or bool(request.formats.kv_cache.family)
    decodes, prompts = int(flags.get("decode_concurrency", 32)), int(flags.get("prompt_concurrency", 8))
    if alone:
        decodes = prompts = 1
    chunk, copies = int(flags.get("prefill_step_size", 2048)), int(flags.get("prompt_cache_size", 10))
    rows, step_tokens = max(decodes, prompts) + prompts - 1, prompts * chunk
    windows = arch.windows_below(arch.max_context_tokens)
    memory = memory_of(request, step_tokens, rows + prompts + copies, drafts)
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
    answer = int(flags.get("max_tokens", 512))

    def scheduler(mode: Mode) -> PolledTurnsScheduler:
        kept = PromptCopies(copies, uncut_from)
        if drafts is not None:
            recorded = mode == "record"
            return DraftedTurnsScheduler(rules, kept, drafts=drafts.tokens, answer_tokens=answer, record_rows=recorded)
        return PolledTurnsScheduler(rules, kept, aggregate=mode != "step", record_rows=mode == "record", windows=windows)

    overheads = load_overheads(ENGINE.name)
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
            rows_by=f"one at a time with {'a quantized KV cache' if drafts is None else 'drafts'}"
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
            speculation=drafts,
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=True,
        notes=notes_of(rules, copies, uncut_from, answer, drafts),
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
    features={"speculative": Support(_KINDS, f"{_SOURCE}: mlx_lm/generate.py, speculative_generate_step")},
    flags=lambda: FLAGS,
    same_as={"rows": "decode_concurrency", "step_tokens": "prefill_step_size"},
    drafts=DRAFTS.settings,
    kernels="mlx",
    plan=plan,
    replay=checked(lambda version: ENGINE.version(version), replay_recorded),
)
