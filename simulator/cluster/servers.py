"""Pools of a cluster of several."""

from __future__ import annotations

from collections.abc import Callable

from engine_models.declaration import EnginePlan
from engine_models.parts.protocols import StepCost
from hardware_profiles.records import dataclass
from simulator.workload.columns import IntArray


@dataclass(frozen=True)
class Servers:
    """Equal replicas of one pool.

    `acceptance` says how many drafts each request accepts, with speculative decoding; `nodes` is the machine of each replica,
    None for one each. `joins_store` : whether their store of KV blocks is that of other pools too. `meant_for` : the lengths of
    prompts that a label of theirs names.
    """

    plan: EnginePlan
    cost: StepCost
    replicas: int
    acceptance: Callable[[int], Callable[[int], int]] | None = None
    nodes: IntArray | None = None
    joins_store: bool = False
    meant_for: tuple[int, int] | None = None


@dataclass(frozen=True)
class Share:
    """A pool's share in devices on which several take turns.

    place : their name. out_s : seconds until the pool's servers have left them; in_s : until they serve there. stay_s : for so
    long they stay at least, while they have requests.
    """

    place: str
    out_s: float
    in_s: float
    stay_s: float


@dataclass(frozen=True)
class Change:
    """One model has made room for another: begin and end [s], and the pools."""

    from_s: float
    to_s: float
    before: int
    after: int
