"""LMDeploy: which of its two engines serves a pool.

`lmdeploy_pytorch` and `lmdeploy_turbomind` beside are these in terms of the shared parts; LMDeploy takes TurboMind for the models
that it has unless told otherwise. Behaviour and defaults of the repository at 1263d5cd (2026-08).
"""

from __future__ import annotations

from engine_models.cost.adapters import summary_note as adapters_note
from engine_models.cost.drafting import summary_note as drafts_note
from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism
from engine_models.cost.token_masks import TokenMasks
from engine_models.cost.token_masks import summary_note as masks_note
from engine_models.declaration import Engine, EnginePlan, Executor, FrontEnd, PoolRequest, Support, checked
from engine_models.engines import lmdeploy_pytorch as pytorch
from engine_models.engines import lmdeploy_turbomind as turbomind
from engine_models.engines.lmdeploy_adapters import LAUNCHED
from engine_models.engines.lmdeploy_drafts import draft_settings
from engine_models.engines.lmdeploy_flags import FLAGS, PYTORCH_ONLY, TURBOMIND_ONLY
from engine_models.engines.lmdeploy_recorded import replay as replay_recorded
from engine_models.refusals import no_expert_parallelism, only_on_nvidia, without_effect
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError

BATCH_SIZES = {"a100": 384, "a800": 384, "h100": 1024, "h800": 1024, "l20y": 1024, "h200": 1024}
OTHER_BATCH_SIZE = 128
"""Requests at once by card (datasheet: `utils.py` at 1263d5cd, 2026-08)."""
MASKS = TokenMasks(True, delays_next=True)
"""Of both engines: XGrammar fills masks once the model is launched, and the next launch waits for them (datasheet:
`lmdeploy/pytorch/engine/logits_process.py`, `src/turbomind/generation/guided_decoding.cc` at 1263d5cd, 2026-08)."""


def default_batch_size(device_name: str) -> int:
    """`max_batch_size` by card."""
    return next((size for card, size in BATCH_SIZES.items() if card in device_name), OTHER_BATCH_SIZE)


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool of TurboMind, or of the PyTorch engine where that is asked for or TurboMind lacks the model.

    Raises InfeasibleError if the weights do not fit, InputError on what the engine or this model of it lacks.
    """
    only_on_nvidia(request, "LMDeploy is simulated on NVIDIA GPUs")
    no_expert_parallelism(request, "expert parallelism of LMDeploy is not simulated")
    version = ENGINE.version(version_text)
    rows = int(request.flags.get("max_batch_size") or default_batch_size(request.device_name))
    asks = request.flags.get("backend") == "pytorch"
    falls_back = "" if asks else turbomind.why_not(request)
    if asks or falls_back:
        overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
        found = pytorch.resolved(request, rows, overheads.host)
        idle = without_effect(request.flags, TURBOMIND_ONLY, "TurboMind", "LMDeploy's PyTorch engine")
    else:
        _refuse(request)
        overheads = load_overheads(turbomind.OVERHEADS, ENGINE.overheads_from)
        found = turbomind.resolved(request, rows, overheads.host)
        idle = without_effect(request.flags, PYTORCH_ONLY, "LMDeploy's PyTorch engine", "TurboMind")
    drafts, adapters = request.speculation, found.adapters
    return EnginePlan(
        engine=ENGINE.name,
        version=version,
        limits=found.limits,
        memory=found.memory,
        scheduler=found.scheduler,
        costs=StepCosts(
            request.arch,
            request.formats,
            found.terms,
            TableRange(found.limits.step_tokens, rows, found.limits.context_tokens),
            Parallelism(request.tensor_parallel, expert=request.expert_parallel),
            speculation=drafts,
            adapters=adapters,
            masks=MASKS if request.structured else None,
        ),
        executor=Executor(depth=found.depth),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s, loop=overheads.loop),
        prefix_caching=found.prefix_caching,
        notes=(
            *([f"{falls_back}: LMDeploy takes its PyTorch engine"] if falls_back else []),
            *found.notes,
            *((masks_note(MASKS),) if request.structured else ()),
            *((adapters_note(adapters), LAUNCHED) if adapters is not None else ()),
            *((drafts_note(drafts), *drafts.notes) if drafts is not None else ()),
        ),
        warnings=idle,
        sources=overheads.provenance,
        recorded=found.recorded,
    )


def _refuse(request: PoolRequest) -> None:
    """InputError for what TurboMind lacks and the other engine has."""
    lacking = {"lora": ("LoRA adapters", request.lora), "speculative": ("speculative decoding", request.speculation)}
    for key, (words, asked) in lacking.items():
        if asked is not None:
            raise InputError(
                f"TurboMind, which LMDeploy takes for {request.arch.name}, has no {words}",
                where=f"deployment.{key}",
                mend=f"ask for its PyTorch engine (engine_args: {{backend: pytorch}}), or remove {key}",
            )


_SOURCE = "InternLM/lmdeploy at 1263d5cd (2026-08)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu"})

ENGINE: Engine = Engine(
    name="lmdeploy",
    title="LMDeploy",
    rule=(
        "TurboMind walks all who are in from the oldest, prompts and decodes in one step, and takes blocks from the "
        "youngest; the PyTorch engine computes prompts or decodes in turns, with memory a few tokens ahead."
    ),
    versions={"0.18.0": {}},
    oldest="0.16.0",
    devices={"gpu": f"{_SOURCE}: NVIDIA GPUs; Ascend, MACA and Cambricon devices are not simulated"},
    formats={
        **{name: Support(_KINDS, f"{_SOURCE}: lmdeploy/turbomind/converter.py (TurboMind)") for name in turbomind.WEIGHTS},
        **{
            name: Support(_KINDS, f"{_SOURCE}: lmdeploy/pytorch/config.py, backends/cuda")
            for name in pytorch.WEIGHTS
        },
    },
    kv_formats=("int8", "int4", "fp8"),
    features={
        "lora": Support(_KINDS, f"{_SOURCE}: docs/en/llm/api_server_lora.md (PyTorch engine)"),
        "speculative": Support(_KINDS, f"{_SOURCE}: docs/en/advance/spec_decoding.md (PyTorch engine)"),
        "structured": Support(_KINDS, f"{_SOURCE}: pytorch/engine/guided_process.py, turbomind/generation/guided_decoding.cc"),
    },
    flags=lambda: FLAGS,
    same_as={
        "rows": "max_batch_size",
        "context": "session_len",
        "step_tokens": "max_prefill_token_num",
        "memory_share": "cache_max_entry_count",
        "tensor_ranks": "tp",
        "graph_rows": "cudagraph_capture_batch_sizes",
    },
    drafts=draft_settings,
    kernels="vllm",
    overheads_from="vllm",
    plan=plan,
    replay=checked(lambda version: ENGINE.version(version), replay_recorded),
)
