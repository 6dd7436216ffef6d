"""vLLM's weights in host memory (``--cpu-offload-gb``): which stay there, and what a step reads over the link.

Parameters go to pinned memory layer by layer (`cpu_offload_params`: those alone whose names hold one of these words). From 0.8.3
kernels read them where they lie (`model_executor/offloader/uva.py` of 0.33.0; vllm-project/vllm#15354), so that of experts the
chosen ones alone pass the link; before, layers were copied whole.
"""

from __future__ import annotations

from engine_models.cost.weight_stream import InPlace
from engine_models.declaration import PoolRequest
from engine_models.host_weights import asked_bytes, check_host_weights, host_weights, layer_bytes
from engine_models.model.formats import Format
from hardware_profiles.errors import InputError

READ_IN_PLACE_SINCE = (0, 8, 3)
EXPERT_SHARES = {"experts": 1.0, "w13_weight": 2 / 3, "w2_weight": 1 / 3}
"""Words of `cpu_offload_params` that are read, and the share of gated experts' weights that they name."""


def offloaded_bytes(request: PoolRequest, stored: Format) -> int:
    """Bytes of weights that one GPU leaves in host memory; 0 without the flag."""
    asked = asked_bytes(request)
    if not asked:
        return 0
    whole, experts = layer_bytes(request, stored)
    words = request.flags.get("cpu_offload_params") or []
    return int(min(asked, experts * min(1.0, sum(EXPERT_SHARES[word] for word in words)) if words else whole))


def check_offloaded(request: PoolRequest) -> None:
    """Raise InputError where weights in host memory are not modelled."""
    words = request.flags.get("cpu_offload_params") or []
    if unread := [word for word in words if word not in EXPERT_SHARES]:
        raise InputError(
            f"of `cpu_offload_params` {', '.join(EXPERT_SHARES)} are modelled, not {unread[0]}",
            where="deployment.engine_args.cpu_offload_params",
            mend="name experts, or leave it out",
        )
    check_host_weights(request)


def in_place_of(request: PoolRequest, version: tuple[int, ...], stored: Format, weights: int) -> InPlace | None:
    """What kernels read over the link of `weights` bytes; None without the flag."""
    held = offloaded_bytes(request, stored)
    if not held:
        return None
    whole, experts = layer_bytes(request, stored)
    chosen = held if request.flags.get("cpu_offload_params") else held * experts / whole
    copied = version < READ_IN_PLACE_SINCE
    return host_weights(request, held, 0.0 if copied else chosen, weights, copied=copied)


__all__ = ["check_offloaded", "in_place_of", "offloaded_bytes"]
