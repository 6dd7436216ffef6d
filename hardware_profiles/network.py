"""Collectives and messages between nodes: what the network adds to those inside one.

A collective over several nodes is one inside each node, by NCCL (the engines' own kernels need all devices in one node), and
one between the nodes, in which every device sends its share through an interface of its own: in a ring, or, for sums of little,
up and down a tree. Each hop between nodes takes a time of its own.
"""

from __future__ import annotations

import math

import numpy as np

from hardware_profiles.kernel_physics import Array
from hardware_profiles.records import dataclass

HOP_S = 1.7e-5
"""Least time of a message to another node [s]. kind: measured, 2026-11, source: 2 kB between two DGX H100 (`kernels/NOTICE.md`).
Each hop of a collective takes it: NCCL's sums of 2 to 16 kB over two DGX A100, where it is 24 us, take 63 to 71 us, those inside
one node 15 to 25 us."""
NIC_SHARE = 0.69
"""Share of an interface's rate that a large message reaches. kind: measured, 2026-11, source: 64 MB between two DGX H100 in
1.94 ms, of 50e9 byte/s."""


@dataclass(frozen=True)
class Network:
    """Nodes of `node_devices` devices, an interface each of `nic_bytes_per_s` one way.

    stages_apart : whether each stage of a pipeline stands in nodes of its own. hop_s : least time of a message between nodes.
    rank_devices : devices of a data-parallel rank, of which each exchanges with its likes in the other ranks, by all-gathers and
        reduce-scatters.
    """

    node_devices: int
    nic_bytes_per_s: float
    stages_apart: bool = False
    hop_s: float = HOP_S
    rank_devices: int = 1

    def inside(self, op: str) -> int:
        """How many members of a collective one node has."""
        return max(self.node_devices // (1 if op == "all_reduce" else self.rank_devices), 1)

    def added_s(self, op: str, gpus: int, size: Array) -> Array:
        """What a collective of `size` bytes over `gpus` members takes between the nodes, beside that inside of each [s]."""
        inside = self.inside(op)
        nodes = -(-gpus // inside)
        each_s = size / inside / (NIC_SHARE * self.nic_bytes_per_s)
        passes = 2 if op == "all_reduce" else 1
        ring_s = passes * (nodes - 1) * (self.hop_s + each_s / nodes)
        if op != "all_reduce":
            return ring_s
        return np.minimum(ring_s, 2 * math.ceil(math.log2(nodes)) * (self.hop_s + each_s))

    def message_s(self, size: Array) -> Array:
        """A message to another node [s]."""
        return self.hop_s + size / (NIC_SHARE * self.nic_bytes_per_s)

    @property
    def words(self) -> str:
        """What is assumed of it."""
        return (
            f"collectives over nodes of {self.node_devices} devices: NCCL's inside a node, and {self.hop_s * 1e6:.0f} us and "
            f"{self.nic_bytes_per_s * NIC_SHARE / 1e9:.3g} GB/s a device for each hop between them (measured between two DGX "
            "H100; one interface a device, assumed)"
        )
