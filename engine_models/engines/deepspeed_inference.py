"""DeepSpeed-Inference and ZeRO-Inference: libraries under `generate`, in terms of the shared parts.

A caller forms groups (`engine_models.schedulers.static`; with injected kernels `engine_models.schedulers.workspace`). With
ZeRO-Inference the weights stay on the host or on disk, and come to the device layer by layer in every step
(`engine_models.cost.weight_stream`).

Behaviour and defaults of DeepSpeed 0.19.8 (`deepspeed/inference`, `runtime/zero`) and of ZeRO-Inference's description (2022-09,
2023-09), read; no recordings exist.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import Parallelism, Terms
from engine_models.cost.weight_stream import Stream
from engine_models.declaration import (
    Engine,
    EnginePlan,
    Limits,
    Mode,
    PoolRequest,
    Support,
)
from engine_models.engines.deepspeed_inference_flags import FLAGS, zero
from engine_models.engines.deepspeed_inference_memory import memory_of, rate_of, refuse
from engine_models.engines.deepspeed_inference_notes import notes_of
from engine_models.engines.generate import GATHER_FACTOR
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from engine_models.parts.protocols import Scheduler
from engine_models.schedulers.static import StaticScheduler
from engine_models.schedulers.workspace import WorkspaceScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: groups over weights on the device, or streamed.

    Raises InfeasibleError if it does not fit, InputError on what the engine lacks, or what contradicts.
    """
    arch, flags, tp = request.arch, request.flags, request.tensor_parallel
    place, live_parameters = zero(flags)
    injected = bool(flags.get("replace_with_kernel_inject", False))
    refuse(request, place, injected=injected)
    on_host = bool(flags.get("kv_offload", False))
    rows, row_tokens = int(flags.get("batch_size", 1)), int(flags.get("max_out_tokens", 1024))
    context = min(int(flags.get("max_length") or arch.max_context_tokens), arch.max_context_tokens)
    context = min(context, row_tokens) if injected else context
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1)
    kept = weights
    if place != "none":  # the largest layers are alike, so that a share of the parameters is a share of the bytes
        kept = min(weights, int(live_parameters * request.formats.weights.bits_per_weight / 8))
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp)
    memory, tokens = memory_of(request, kept, place, rows, 0 if on_host else per_token)
    if injected and rows * row_tokens > tokens:
        raise InfeasibleError(
            f"{rows:,} workspaces of {row_tokens:,} tokens do not fit: memory holds {tokens:,} tokens",
            where="deployment.engine_args.max_out_tokens",
            mend=f"a smaller max_out_tokens or batch_size, or {request.more_memory}",
        )
    held = min(context, tokens)
    windows = arch.windows_below(context)
    step_tokens = min(tokens, rows * context)
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    graphs = tuple(range(1, rows + 1)) if flags.get("enable_cuda_graph") else ()
    launch_s = load_overheads("vllm").host.launch_s if injected else overheads.host.launch_s

    def scheduler(mode: Mode) -> Scheduler:
        if injected:
            return WorkspaceScheduler(rows, row_tokens, windows=windows, aggregate=mode == "jump")
        return StaticScheduler(rows, tokens, windows=windows, aggregate=mode == "jump")

    rate = rate_of(request, place)
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=rows,
            step_tokens=step_tokens,
            context_tokens=context,
            kv_tokens=tokens,
            kv_blocks=tokens,
            block_tokens=1,
            prompt_tokens=held - 1,
            row_tokens=held,
            asked_tokens=1,  # an answer is cut, not refused
        ),
        memory=memory,
        scheduler=scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(
                replace(overheads.host, launch_s=launch_s, step_s=0.0, row_s=0.0),
                graph_sizes=graphs,
                exact_graphs=bool(graphs),
                gather_factor=0.0 if injected else GATHER_FACTOR,
            ),
            TableRange(step_tokens, rows, context),
            Parallelism(tp),
            stream=None
            if place == "none"
            else Stream(weights, weights / arch.layers, per_token if on_host else 0.0, rate),
        ),
        notes=notes_of(rows, row_tokens, tokens, place, weights, rate, injected=injected, on_host=on_host),
        sources=overheads.provenance,
    )


_SOURCE = "PyPI deepspeed 0.19.8: deepspeed/inference"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu"})

ENGINE = Engine(
    name="deepspeed_inference",
    title="DeepSpeed-Inference",
    rule=(
        "Fixed groups, padded to the longest and computed until their last ends, whose rows each have a workspace set "
        "aside at start-up; with ZeRO-Inference the weights come over the link in every step."
    ),
    versions={"0.19.8": {}},
    oldest="0.6.6",
    devices={"gpu": f"{_SOURCE}: NVIDIA and AMD GPUs"},
    formats={
        name: Support(_KINDS, f"{_SOURCE}/config.py, inference/quantization")
        for name in ("fp16", "bf16", "fp32", "int8_wo", "int4")
    },
    kv_formats=(),
    features={},
    flags=lambda: FLAGS,
    same_as={"rows": "batch_size", "context": "max_length", "tensor_ranks": "mp_size"},
    kernels="vllm",
    overheads_from="transformers",
    plan=plan,
)
