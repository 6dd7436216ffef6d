"""Which replicas share the tiers of their KV caches: a store with all others, disks with those in the same machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan, Mode
from engine_models.parts.protocols import Scheduler
from engine_models.parts.tiers import TierKind

Keepers = dict[tuple[TierKind, object], Scheduler]
"""By what is shared, and where or by whom: who keeps it."""


class Joins:
    """Makes the schedulers of a pool's replicas, and lets them share what they share.

    Parameters
    ----------
    plan : the pool's. mode : how its schedulers run.
    nodes : the machine of each replica, None for one each. The ranks of a replica share what it shares, and its disks.
    store : who keeps the store that several pools share, once somebody does; None where the pool's store is its own. Pools whose
        blocks differ share its room.
    """

    def __init__(
        self,
        plan: EnginePlan,
        mode: Mode,
        replicas: int,
        nodes: NDArray[np.int64] | None,
        store: Keepers | None = None,
    ) -> None:
        self._plan, self._mode = plan, mode
        self._nodes = np.arange(replicas) if nodes is None else nodes
        disks: Keepers = {}
        self._keepers: dict[TierKind, Keepers] = {"shared": disks if store is None else store, "nvme": disks}
        caches = replicas * plan.executor.ranks
        several = len(set(self._nodes.tolist())) < caches
        on_disks = "nvme" in plan.tiers and several
        self.shares = store is not None or (caches > 1 and ("shared" in plan.tiers or on_disks))

    def scheduler(self, replica: int) -> Scheduler:
        """A fresh scheduler of a replica."""
        made = self._plan.scheduler(self._mode)
        if not self.shares:
            return made
        if "shared" in self._plan.tiers:
            names = self._plan.store
            made.join(self._keeper("shared", None if names is None else names.held), "shared")
        if "nvme" in self._plan.tiers:
            made.join(self._keeper("nvme", int(self._nodes[replica])), "nvme")
        return made

    def _keeper(self, kind: TierKind, place: object) -> Scheduler:
        """Who keeps what is shared at a place: one that serves nobody. Of a store there is one for each kind of blocks."""
        keepers = self._keepers[kind]
        keeper = keepers.get((kind, place))
        if keeper is None:
            keeper = self._plan.scheduler(self._mode)
            others = [other for (of, _), other in keepers.items() if of == "shared"] if kind == "shared" else []
            if others:
                keeper.beside(others[0])
            keepers[kind, place] = keeper
        return keeper
