"""How many devices a deployment has over time: what bills and figures per device are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from engine_models.parts.protocols import INFINITY


class DeviceHistory:
    """Devices from time zero on, changed whenever a replica comes or goes."""

    def __init__(self, devices: int) -> None:
        self._changes = [(0.0, devices)]

    def change(self, at_s: float, devices: int) -> None:
        """Note how many there are from a time on; times never fall."""
        self._changes.append((at_s, devices))

    def mean(self, start_s: float, end_s: float) -> float:
        """Device-seconds over the length of a stretch of time; where it has none, the devices at its begin."""
        first, apart_s = self._changes[0][1], 0.0
        for at_s, devices in self._changes:
            if at_s <= start_s:
                first = devices
        if end_s <= start_s:
            return first
        for (since_s, devices), (until_s, _) in pairwise([*self._changes, (INFINITY, 0)]):
            lived_s = min(until_s, end_s) - max(since_s, start_s)
            apart_s += (devices - first) * max(lived_s, 0.0)
        return first + apart_s / (end_s - start_s) if apart_s else first


class Summed(DeviceHistory):
    """Devices of several pools together."""

    def __init__(self, pools: Sequence[DeviceHistory]) -> None:
        super().__init__(0)
        self._pools = pools

    def mean(self, start_s: float, end_s: float) -> float:
        """As of the base."""
        return sum(pool.mean(start_s, end_s) for pool in self._pools)
