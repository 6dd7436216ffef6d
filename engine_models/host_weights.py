"""Weights that an engine keeps in host memory (``--cpu-offload-gb`` of vLLM and SGLang): the link to them, what is said of them.

Parameters of the layers go there one after the other until they take what the flag says on each GPU.
"""

from __future__ import annotations

from engine_models.cost.weight_stream import InPlace
from engine_models.declaration import PoolRequest
from engine_models.model.architecture import layer_weight_bytes_per_rank, moe_shapes
from engine_models.model.formats import Format
from hardware_profiles.errors import InputError

FLAG, GIB = "cpu_offload_gb", 1 << 30
LINK_SHARE = 0.75
"""Share of the link's nominal rate that reads and copies of pinned memory reach. kind: assumed, 2026-12, as for copies over PCIe
(24 of 32 GB/s); compared with two runs over NVLink-C2C: see docs/engines/vllm.md."""
SHARED_HOSTS = {"gb200": 2, "gb300": 2}
"""GPUs that share the link to one processor: two on a board of GB200 or GB300 (NVIDIA's pages, 2026-12).
kind: datasheet."""


def layer_bytes(request: PoolRequest, stored: Format) -> tuple[int, int]:
    """Bytes of the layers' weights on a GPU, and of the experts among them."""
    ranks = request.tensor_parallel, request.expert_parallel, request.data_parallel
    return layer_weight_bytes_per_rank(request.arch, stored, *ranks)


def asked_bytes(request: PoolRequest) -> float:
    """What the flag asks for on each GPU; 0 without it."""
    return float(request.flags.get(FLAG) or 0.0) * GIB


def check_host_weights(request: PoolRequest) -> None:
    """Raise InputError where weights in host memory are not modelled."""
    if not request.flags.get(FLAG):
        return
    where = f"deployment.engine_args.{FLAG}"
    if request.device_kind == "cpu" or not request.host_link_bytes_per_s:
        raise InputError(
            f"the rate at which {request.device_name} reads the host's memory is unknown",
            where=where,
            mend="remove it, or use a device whose profile states pcie_bytes_per_s_per_direction",
        )
    if request.pipeline_parallel > 1 or request.speculation is not None:
        beside = "drafts" if request.speculation is not None else "pipeline stages"
        raise InputError(f"`{FLAG}` beside {beside} is not modelled yet", where=where, mend=f"remove {FLAG}")


def host_weights(request: PoolRequest, held_bytes: float, chosen_bytes: float, weights: int, *, copied: bool) -> InPlace:
    """What lies beyond a GPU of all its `weights` bytes, some of it experts of which those alone pass that tokens choose."""
    shapes = moe_shapes(request.arch, request.tensor_parallel, request.expert_parallel, request.data_parallel)
    moe = shapes[0] if shapes and chosen_bytes else None
    sharing = min(SHARED_HOSTS.get(request.device_name.partition("-")[0], 1), request.tensor_parallel * request.data_parallel)
    return InPlace(
        held_bytes / weights,
        held_bytes - (chosen_bytes if moe else 0.0),
        chosen_bytes if moe else 0.0,
        moe.experts if moe else 1,
        moe.topk if moe else 1,
        moe.experts // moe.ep if moe else 1,
        LINK_SHARE * request.host_link_bytes_per_s / sharing,
        copied,
    )


def host_weights_note(held: InPlace) -> str:
    """What is assumed of them."""
    chosen = ", of experts those that are chosen" if held.expert_bytes else ""
    way = "copied from there" if held.copied else "read there"
    return (
        f"{(held.plain_bytes + held.expert_bytes) / 1e9:.1f} GB of the weights ({held.share:.0%}) stay in the host's memory, "
        f"{way} at {held.bytes_per_s / 1e9:,.0f} GB/s in every step (assumed){chosen}"
    )


__all__ = ["FLAG", "GIB", "asked_bytes", "check_host_weights", "host_weights", "host_weights_note", "layer_bytes"]
