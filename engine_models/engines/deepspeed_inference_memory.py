"""What DeepSpeed-Inference serves, the memory of a pool, and the rate at which ZeRO-Inference brings weights from elsewhere."""

from __future__ import annotations

from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest
from engine_models.model.activations import activation_bytes, runtime_bytes
from engine_models.refusals import ELSEWHERE
from hardware_profiles.errors import InfeasibleError, InputError

LINK_SHARE = 0.75
"""Share of the nominal PCIe rate that copies of pinned memory reach: 12 of 16, 24 of 32, 48 of 64 GB/s (assumed, 2026-11)."""

NVME_BYTES_PER_S = 5e9
"""Rate of one NVMe drive: 3 to 7 GB/s by its datasheet (assumed, 2026-11; `engine_args.nvme_bytes_per_s` gives that of an
array)."""


def refuse(request: PoolRequest, place: str, *, injected: bool) -> None:
    """Raise InputError for what it does not serve; `place` of the weights, `injected` kernels."""
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
            ELSEWHERE,
        ),
    }
    for where, (wrong, cause, mend) in refusals.items():
        if wrong:
            raise InputError(cause, where=where, mend=mend)


def rate_of(request: PoolRequest, place: str) -> float:
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


def memory_of(request: PoolRequest, kept: int, place: str, rows: int, token_bytes: int) -> tuple[MemoryBudget, int]:
    """What weights, logits and activations leave; the activations of a token go with its keys and values."""
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    other = runtime_bytes(tp)
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


__all__ = ["memory_of", "rate_of", "refuse"]
