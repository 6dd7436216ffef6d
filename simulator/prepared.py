"""A scenario resolved to facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan
from engine_models.model.blocks import Architecture
from engine_models.parts.protocols import StepCost
from hardware_profiles.device import Device
from hardware_profiles.ops import Ops
from simulator.cluster.router import Routing
from simulator.cluster.transfer import Paths
from simulator.cost import UnitPrice

if TYPE_CHECKING:
    from simulator.config.schema import Pool, Scenario


@dataclass(frozen=True)
class Prepared:
    """A scenario resolved to facts: what would be simulated.

    What is of one pool is that of `pool`, which gives the answers; `replicas`, `devices` and `price` are of all that run. `pools`
    are those that share requests, prefill before decode, each resolved as if it were alone; none where one pool does it all.
    """

    scenario: Scenario
    base_dir: Path
    pool: Pool
    arch: Architecture
    device: Device
    formats: Formats
    plan: EnginePlan
    kernels: Ops
    replicas: int
    devices: int
    price: UnitPrice | None
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]
    routing: Routing = field(default_factory=Routing)
    pools: tuple[Prepared, ...] = ()
    paths: Paths | None = None

    @property
    def ranks(self) -> int:
        """Data-parallel ranks of a replica that step together over shared experts, 1 where there are none."""
        return self.plan.executor.ranks

    def times(self) -> StepCost:
        """Step-time model of one replica."""
        return self.plan.costs.over(self.kernels)
