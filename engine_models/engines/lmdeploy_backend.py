"""What each of LMDeploy's two engines says of a pool, and the memory that both count alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine_models.cost.adapters import Adapters
from engine_models.cost.terms import Terms
from engine_models.declaration import Limits, MemoryBudget, Mode, PoolRequest
from engine_models.model.activations import runtime_bytes
from engine_models.model.architecture import weight_bytes_per_rank
from engine_models.parts.protocols import Scheduler


@dataclass(frozen=True)
class Backend:
    """One of the engines, resolved for a pool; `depth` is the executor's, `recorded` as in `EnginePlan`."""

    limits: Limits
    memory: MemoryBudget
    scheduler: Callable[[Mode], Scheduler]
    terms: Terms
    depth: int
    prefix_caching: bool
    notes: tuple[str, ...]
    recorded: bool
    adapters: Adapters | None = None


def bytes_before(request: PoolRequest) -> tuple[int, int]:
    """Bytes of the weights on a device, and of its context and collectives."""
    tp = request.tensor_parallel
    weights = weight_bytes_per_rank(request.arch, request.formats.weights, tp, 1, request.expert_parallel)
    return weights, runtime_bytes(tp)
