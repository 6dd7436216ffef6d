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
    MemoryBudget,
    MemoryLine,
    Mode,
    PoolRequest,
    Support,
)
from engine_models.engines.deepspeed_inference_flags import FLAGS, zero
from engine_models.model.activations import COLLECTIVE_BYTES, CONTEXT_BYTES, activation_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from engine_models.parts.protocols import Scheduler
from engine_models.schedulers.static import StaticScheduler
from engine_models.schedulers.workspace import WorkspaceScheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError

LINK_SHARE = 0.75
"""Share of the nominal PCIe rate that copies of pinned memory reach: 12 of 16, 24 of 32, 48 of 64 GB/s (assumed, 2026-11)."""

NVME_BYTES_PER_S = 5e9
"""Rate of one NVMe drive: 3 to 7 GB/s by its datasheet (assumed, 2026-11; `engine_args.nvme_bytes_per_s` gives that of an
array)."""

GATHER_FACTOR = 2.0
"""Without injected kernels `DynamicCache` of transformers writes the whole cache anew in every step: one read, one write."""


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: groups over weights on the device, or streamed.

    Raises InfeasibleError if it does not fit, InputError on what the engine lacks, or what contradicts.
    """
    arch, flags, tp = request.arch, request.flags, request.tensor_parallel
    place, live_parameters = zero(flags)
    injected = bool(flags.get("replace_with_kernel_inject", False))
    _refuse(request, place, injected=injected)
    on_host = bool(flags.get("kv_offload", False))
    rows, row_tokens = int(flags.get("batch_size", 1)), int(flags.get("max_out_tokens", 1024))
    context = min(int(flags.get("max_length") or arch.max_context_tokens), arch.max_context_tokens)
    context = min(context, row_tokens) if injected else context
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1)
    kept = weights
    if place != "none":  # the largest layers are alike, so that a share of the parameters is a share of the bytes
        kept = min(weights, int(live_parameters * request.formats.weights.bits_per_weight / 8))
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache, tp)
    memory, tokens = _memory(request, kept, place, rows, 0 if on_host else per_token)
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

    rate = _rate(request, place)
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
        notes=_notes(rows, row_tokens, tokens, place, weights, rate, injected=injected, on_host=on_host),
        sources=overheads.provenance,
    )


def _notes(
    rows: int, row_tokens: int, tokens: int, place: str, weights: int, rate: float, *, injected: bool, on_host: bool
) -> tuple[str, ...]:
    kept = f"{row_tokens:,} tokens a row are set aside, a group whose padded prompts and answers need more fails"
    grows = f"above {tokens:,} tokens, padding included, a group fails for lack of memory"
    said = [
        f"generate in groups of up to {rows:,} waiting requests, padded to the longest, computed until the last ends; "
        + (kept if injected else grows),
        "its kernels are priced as vLLM's; "
        + ("launches of injected kernels likewise" if injected else "its modules are launched as those of transformers")
        + " (assumed, nobody measured them); it is a library: what stands before it takes no time here",
    ]
    if place != "none":
        source = "disk" if place == "nvme" else "host memory"
        said.append(
            f"ZeRO-Inference: {weights / 1e9:.1f} GB of weights come from {source} in every step, "
            f"at {rate / 1e9:g} GB/s (assumed): no step is shorter than {weights / rate:.2f} s"
            + (", and all keys and values that it attends to" if on_host else "")
        )
    return tuple(said)


def _refuse(request: PoolRequest, place: str, *, injected: bool) -> None:
    arch, streams = request.arch, place != "none"
    refusals: dict[str, tuple[bool, str, str]] = {
        "deployment.engine_args.zero": (
            streams and request.tensor_parallel > 1,
            "several devices that fetch the weights together are not simulated for ZeRO-Inference",
            "use one device, or leave zero out",
        ),
        "deployment.engine_args.replace_with_kernel_inject": (
            streams and injected,
            "kernels are injected where weights stay on the device, not with zero",
            "remove one of the two",
        ),
        "deployment.engine_args.kv_offload": (
            bool(request.flags.get("kv_offload")) and not streams,
            "keys and values are kept on the host with ZeRO-Inference only",
            "write zero: {stage: 3, offload_param: {device: cpu}} too",
        ),
        "deployment.weights": (
            request.formats.weights.name == "int4" and not streams,
            "weights in 4 bits are ZeRO-Inference's",
            "write zero: {stage: 3, offload_param: {device: cpu}}, or weights: int8_wo",
        ),
        "model": (
            any(block.kind in ("mla", "linear") or block.sparse for block in arch.attention),
            f"the caches of {arch.name} (latent, recurrent or sparse layers) are not simulated for DeepSpeed-Inference",
            "use another engine (`capacity-plan list engines`)",
        ),
    }
    for where, (wrong, cause, mend) in refusals.items():
        if wrong:
            raise InputError(cause, where=where, mend=mend)


def _rate(request: PoolRequest, place: str) -> float:
    """Bytes a second at which weights come [byte/s]."""
    if place == "none":
        return 0.0
    given = request.flags.get("host_bytes_per_s")
    link = float(given) if given else LINK_SHARE * request.host_link_bytes_per_s
    if not link:
        raise InputError(
            f"the rate of a copy between the host and {request.device_name} is unknown",
            where="deployment.engine_args.host_bytes_per_s",
            mend="give it, such as host_bytes_per_s: 2.4e+10",
        )
    return min(link, float(request.flags.get("nvme_bytes_per_s", NVME_BYTES_PER_S))) if place == "nvme" else link


def _memory(request: PoolRequest, kept: int, place: str, rows: int, token_bytes: int) -> tuple[MemoryBudget, int]:
    """What weights, logits and activations leave; the activations of a token go with its keys and values."""
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    other = int(CONTEXT_BYTES + (COLLECTIVE_BYTES if tp > 1 else 0))
    fixed, prefill = activation_bytes(arch, 0, rows, tp), activation_bytes(arch, 1, 0, tp)
    free = device - kept - other - fixed
    tokens = int(free // (token_bytes + prefill))
    if tokens < 2 * rows:
        what = f"{kept / 1e9:.1f} GB of " + ("weights" if place == "none" else "live weights")
        raise InfeasibleError(
            f"{arch.name} does not fit: {what} leave no memory for {rows:,} rows on {device / 1e9:.1f} GB",
            where="deployment",
            mend="zero: {stage: 3, offload_param: {device: cpu}} streams the weights from host memory; or "
            f"{request.more_memory}"
            if place == "none"
            else "a smaller engine_args.batch_size, or a smaller zero.stage3_max_live_parameters",
        )
    lines = (
        MemoryLine("weight", "weights" if place == "none" else "weights of the layers at hand", kept),
        MemoryLine("other", "device context, collectives", other),
        MemoryLine("activation", "logits, and activations of the largest prefill", fixed + tokens * prefill),
        MemoryLine("left", "rounding", free - tokens * (token_bytes + prefill)),
    )
    return MemoryBudget(device, device, lines, tokens * token_bytes, token_bytes, token_bytes, tokens), tokens


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
