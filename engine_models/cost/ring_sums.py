"""Sums over the devices of a node that go around a ring, where the library may not let the switch add them up.

NVIDIA's switches add up what eight devices send (NVLink SHARP); NCCL has them do so by default, as the tables of collectives do.
Without that each device sends and receives 2 (n - 1) / n of the bytes:

    t >= RING_S + 2 (n - 1) / n * bytes / (RING_SHARE * rate of the link one way)

Fewer than `LEAST_BYTES` are as quick either way, and so are all of up to four devices, or on Blackwell.
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray
from hardware_profiles.ops import Ops

RING_S, RING_SHARE = 3e-5, 0.79
"""Before the bytes move [s], and share of the link's rate one way that is reached.

kind: fitted, 2026-11, source: NCCL 2.29 on eight H100 and eight H200 in int8, which the switch does not add: 33 to 537 MB are
-7 to 0 % off (aiconfigurator 095f58a, Apache-2.0); in 16 bits, where it does, 134 MB take 0.8 of the time. NVIDIA states 370 GB/s
without and 480 with it (nccl-tests issues 212 and 309)."""
LEAST_BYTES = 32e6
"""Bytes of a sum from which the ring is charged [byte]. kind: assumed, 2026-11: the least sum of that fit is 33 MB."""


def floor_s(ops: Ops, devices: int, sum_bytes: FloatArray) -> FloatArray:
    """Least seconds of a sum of `sum_bytes` on each of `devices` devices."""
    sent = 2.0 * (devices - 1) / devices * sum_bytes
    whole_s: FloatArray = RING_S + sent / (RING_SHARE * ops.peaks.link_bytes_per_s)
    return np.where(sum_bytes > LEAST_BYTES, whole_s, 0.0)


__all__ = ["floor_s"]
