"""Pools of a cluster of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine_models.declaration import EnginePlan
from engine_models.parts.protocols import StepCost
from simulator.workload.columns import IntArray


@dataclass(frozen=True)
class Servers:
    """Equal replicas of one pool.

    `acceptance` says how many drafts each request accepts, with speculative decoding; `nodes` is the machine of each replica,
    None for one each.
    """

    plan: EnginePlan
    cost: StepCost
    replicas: int
    acceptance: Callable[[int], Callable[[int], int]] | None = None
    nodes: IntArray | None = None
