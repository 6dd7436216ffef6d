"""The router of a rule; what only a policy over replicas needs is imported where there is one."""

from __future__ import annotations

from collections.abc import Sequence as Series
from typing import TYPE_CHECKING

from engine_models.declaration import Executor
from simulator.cluster.router import InTurn, Router, Routing
from simulator.serving.replica import Replica

if TYPE_CHECKING:
    from simulator.cluster.admission import Admission


def router_of(
    replicas: list[Replica],
    rule: str | Routing,
    executors: Executor | Series[Executor],
    admission: Admission | None = None,
    *,
    changing: bool = False,
) -> Router:
    """The router of a rule; ranks of a replica are chosen as its engine does (`executors`, one for all or one a replica).

    `changing`: replicas may come and go, or others send to them too.
    """
    routing = rule if isinstance(rule, Routing) else Routing(rule)
    if isinstance(executors, Executor):
        executors = [executors] * len(replicas)
    ranks = max(len(replica.ranks) for replica in replicas)
    by_load = ranks > 1 and any(executor.rank_router != "round_robin" for executor in executors)
    alike = all(len(replica.ranks) == ranks for replica in replicas)
    plain = routing.system is None and admission is None and not by_load and alike and not changing
    if plain and (routing.rule == "round_robin" or len(replicas) == 1):
        return InTurn(ranks * len(replicas))
    from simulator.cluster.policy_router import policy_router

    return policy_router(replicas, routing, executors, admission.max_inflight if admission is not None else None)
