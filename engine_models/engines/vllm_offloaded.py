"""vLLM's weights in host memory (``--cpu-offload-gb``): which stay there, and what a step reads over the link.

Parameters go to pinned memory one after the other, layer by layer, until they take what the flag says on each GPU
(`cpu_offload_params`: those alone whose names hold one of these words). From 0.8.3 kernels read them where they lie
(`model_executor/offloader/uva.py` of 0.33.0; vllm-project/vllm#15354), so that of experts the chosen ones alone pass the link;
before, layers were copied whole.
"""

from __future__ import annotations

from engine_models.cost.weight_stream import InPlace
from engine_models.declaration import PoolRequest
from engine_models.model.architecture import layer_weight_bytes_per_rank, moe_shapes
from engine_models.model.formats import Format
from hardware_profiles.errors import InputError

FLAG, GIB = "cpu_offload_gb", 1 << 30
READ_IN_PLACE_SINCE = (0, 8, 3)
LINK_SHARE = 0.75
"""Share of the link's nominal rate that reads of pinned memory reach. kind: assumed, 2026-12, as for copies over PCIe (24 of 32
GB/s); compared with two runs over NVLink-C2C: see docs/engines/vllm.md."""
SHARED_HOSTS = {"gb200": 2, "gb300": 2}
"""GPUs that share the link to one processor. kind: datasheet."""
EXPERT_SHARES = {"experts": 1.0, "w13_weight": 2 / 3, "w2_weight": 1 / 3}
"""Words of `cpu_offload_params` that are read, and the share of gated experts' weights that they name."""


def offloaded_bytes(request: PoolRequest, stored: Format) -> int:
    """Bytes of weights that one GPU leaves in host memory; 0 without the flag."""
    asked = float(request.flags.get(FLAG) or 0.0) * GIB
    if not asked:
        return 0
    whole, experts = _layers(request, stored)
    words = request.flags.get("cpu_offload_params") or []
    return int(min(asked, experts * min(1.0, sum(EXPERT_SHARES[word] for word in words)) if words else whole))


def _layers(request: PoolRequest, stored: Format) -> tuple[int, int]:
    """Bytes of the layers' weights on a GPU, and of the experts among them."""
    ranks = request.tensor_parallel, request.expert_parallel, request.data_parallel
    return layer_weight_bytes_per_rank(request.arch, stored, *ranks)


def check_offloaded(request: PoolRequest) -> None:
    """Raise InputError where weights in host memory are not modelled."""
    if not request.flags.get(FLAG):
        return
    where = f"deployment.engine_args.{FLAG}"
    words = request.flags.get("cpu_offload_params") or []
    if unread := [word for word in words if word not in EXPERT_SHARES]:
        raise InputError(
            f"of `cpu_offload_params` {', '.join(EXPERT_SHARES)} are modelled, not {unread[0]}",
            where="deployment.engine_args.cpu_offload_params",
            mend="name experts, or leave it out",
        )
    if request.device_kind == "cpu" or not request.host_link_bytes_per_s:
        raise InputError(
            f"the rate at which {request.device_name} reads the host's memory is unknown",
            where=where,
            mend="remove it, or use a device whose profile states pcie_bytes_per_s_per_direction",
        )
    if request.pipeline_parallel > 1 or request.speculation is not None:
        beside = "drafts" if request.speculation is not None else "pipeline stages"
        raise InputError(f"`{FLAG}` beside {beside} is not modelled yet", where=where, mend=f"remove {FLAG}")


def in_place_of(request: PoolRequest, version: tuple[int, ...], stored: Format, weights: int) -> InPlace | None:
    """What kernels read over the link of `weights` bytes; None without the flag."""
    held = offloaded_bytes(request, stored)
    if not held:
        return None
    whole, experts = _layers(request, stored)
    chosen = held if request.flags.get("cpu_offload_params") else held * experts / whole
    shapes = moe_shapes(request.arch, request.tensor_parallel, request.expert_parallel, request.data_parallel)
    if version < READ_IN_PLACE_SINCE or not shapes:
        chosen = 0.0
    moe = shapes[0] if shapes else None
    sharing = min(SHARED_HOSTS.get(request.device_name.partition("-")[0], 1), request.tensor_parallel * request.data_parallel)
    return InPlace(
        held / weights,
        held - chosen,
        chosen,
        moe.experts if moe else 1,
        moe.topk if moe else 1,
        moe.experts // moe.ep if moe else 1,
        LINK_SHARE * request.host_link_bytes_per_s / sharing,
    )


def offload_note(held: InPlace) -> str:
    """What is assumed of them."""
    chosen = ", of experts those that are chosen" if held.expert_bytes else ""
    return (
        f"{(held.plain_bytes + held.expert_bytes) / 1e9:.1f} GB of the weights ({held.share:.0%}) stay in the host's memory, "
        f"read at {held.bytes_per_s / 1e9:,.0f} GB/s in every step (assumed){chosen}"
    )


__all__ = ["FLAG", "InPlace", "check_offloaded", "in_place_of", "offload_note", "offloaded_bytes"]
