"""A scenario resolved to facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from engine_models.cost.settings import step_times
from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, Limits
from engine_models.model.blocks import Architecture
from engine_models.parts.protocols import StepCost
from hardware_profiles.device import Device
from hardware_profiles.ops import Ops
from hardware_profiles.power import mean_power_w
from hardware_profiles.records import dataclass
from simulator.cluster.router import Routing
from simulator.cost import UnitPrice

if TYPE_CHECKING:
    from hardware_profiles.calibration import Calibration
    from simulator.cluster.faults import Disturbance, Faults
    from simulator.cluster.fleet import Members
    from simulator.cluster.scaling.scaler import Scaling
    from simulator.cluster.servers import Share
    from simulator.cluster.transfer import Paths
    from simulator.config.schema import Pool, Scenario


@dataclass(frozen=True)
class Elasticity:
    """What lets the replicas of pools come and go.

    pools : the replicas of each. scalers : makes the autoscalers of a run. holds : requests wait at the router while none serves.
    """

    pools: tuple[Members, ...]
    faults: Faults | None = None
    scalers: Callable[[], list[Scaling]] | None = None
    holds: bool = False


@dataclass(frozen=True)
class Prepared:
    """A scenario resolved to facts: what would be simulated.

    What is of one pool is that of `pool`, which gives the answers; `replicas`, `devices` and `price` are of all that run. `pools`
    are those that share the requests, each resolved as if it were alone; none where one pool does it all. With `paths` between
    them each request passes from a prefill pool to a decode pool (they stand in this order), without each is served by one.
    Where requests of some pools do the one and of others the other, or several models' pools pass on theirs, `services` say
    which pools belong together. `encoders` are pools beside all these that encode images for them.
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
    services: tuple[Service, ...] = ()
    encoders: tuple[Prepared, ...] = ()
    disturbances: tuple[Disturbance, ...] = ()
    elastic: Elasticity | None = None
    turns: Share | None = None
    calibration: Calibration | None = None

    @property
    def side_by_side(self) -> bool:
        """Whether requests are served by one of several pools, or by one that does not take all of them."""
        return bool(self.pools) and self.paths is None

    @property
    def limits(self) -> tuple[Limits, ...]:
        """What requests are held against, by pool or service where one of several serves them."""
        if self.services:
            return tuple(each.limits for each in self.services)
        return tuple(each.plan.limits for each in self.pools) if self.side_by_side else (self.plan.limits,)

    @property
    def ranks(self) -> int:
        """Data-parallel ranks of a replica that step together over shared experts, 1 where there are none."""
        return self.plan.executor.ranks

    @property
    def devices_each(self) -> int:
        """Devices of one replica."""
        return self.ranks * self.pool.tensor_parallel * self.pool.pipeline_parallel

    @property
    def cold_servers(self) -> int:
        """Servers that have compiled nothing yet when the run begins."""
        return sum(each.replicas for each in self.pools or (self,) if each.pool.cold_start)

    @property
    def most(self) -> int:
        """Replicas that there may be at once."""
        return self.replicas if self.elastic is None else self.elastic.pools[0].most

    def power_w(self, busy_share: float, rows: float) -> float:
        """Mean power of a device [W]; see `mean_power_w`."""
        return mean_power_w(self.device, busy_share, rows, self.pool.power_limit_w)

    def times(self) -> StepCost:
        """Step-time model of one replica."""
        return step_times(self.plan.costs, self.kernels)


@dataclass(frozen=True)
class Service:
    """Pools that answer requests together: one of role: mixed, or the prefill and decode pools of a model and range of prompts.

    The one that gives the answers stands last.
    """

    pools: tuple[Prepared, ...]
    limits: Limits

    @property
    def paired(self) -> bool:
        """Whether requests pass from one pool to another."""
        return self.pools[0].pool.role != "mixed"

    @property
    def routing(self) -> Routing:
        """How its requests are routed."""
        return self.pools[0].routing
