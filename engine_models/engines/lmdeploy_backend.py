"""What each of LMDeploy's two engines says of a pool."""

from __future__ import annotations

from collections.abc import Callable

from engine_models.cost.adapters import Adapters
from engine_models.cost.terms import Terms
from engine_models.declaration import Limits, MemoryBudget, Mode
from engine_models.parts.protocols import Scheduler
from hardware_profiles.records import dataclass


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
