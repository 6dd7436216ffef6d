"""Which replicas share the tiers of their KV caches: a store with all others, disks with those in the same machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan, Mode
from engine_models.parts.protocols import Scheduler


class Joins:
    """Makes the schedulers of a pool's replicas, and lets them share what they share.

    Parameters
    ----------
    plan : the pool's. mode : how its schedulers run.
    nodes : the machine of each replica, None for one each. The ranks of a replica share what it shares, and its disks.
    store : who keeps the store that several pools share, once somebody does; None where the pool's store is its own.
    """

    def __init__(
        self,
        plan: EnginePlan,
        mode: Mode,
        replicas: int,
        nodes: NDArray[np.int64] | None,
        store: dict[object, Scheduler] | None = None,
    ) -> None:
        self._plan, self._mode = plan, mode
        self._nodes = np.arange(replicas) if nodes is None else nodes
        disks: dict[object, Scheduler] = {}
        self._keepers = {"shared": disks if store is None else store, "nvme": disks}  # by what is shared: who keeps it
        caches = replicas * plan.executor.ranks
        several = len(set(self._nodes.tolist())) < caches
        on_disks = "nvme" in plan.tiers and several
        self.shares = store is not None or (caches > 1 and ("shared" in plan.tiers or on_disks))

    def scheduler(self, replica: int) -> Scheduler:
        """A fresh scheduler of a replica."""
        made = self._plan.scheduler(self._mode)
        if not self.shares:
            return made
        for kind, place in (("shared", None), ("nvme", int(self._nodes[replica]))):
            if kind not in self._plan.tiers:
                continue
            keepers = self._keepers[kind]
            keeper = keepers.get((kind, place))
            if keeper is None:  # of a scheduler that serves nobody
                keeper = keepers[kind, place] = self._plan.scheduler(self._mode)
            made.join(keeper, "shared" if kind == "shared" else "nvme")
        return made
