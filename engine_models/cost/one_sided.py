"""An exchange around experts in which ranks write into, and read from, each other's memory over links of one switch.

Each rank pushes a token once to every rank that holds an expert of it (dispatch), and pulls the sums of those ranks back and adds
them (combine); after the first and before the second all ranks wait for a flag of each other:

    dispatch = d0 + d1 log2(n) + r (1 - 1/n) T b / (s B),   combine = c0 + c1 log2(n) + r (1 - 1/n) T w / (s' B)

n ranks, T tokens of all, b and w bytes of a token there and back, r the share of the ranks that a token reaches, B one-way
bandwidth of a device.

Source: TensorRT-LLM's `NVLinkOneSided` (`moeAlltoAllKernels.cu`, its blog 18 of 2026-03), FlashInfer's `MoeAlltoAll` too. Fitted
to 296 timings of it on GB200 (1.2.0rc6, nvfp4 there and bf16 back, 2 to 32 ranks, 1 to 65,536 tokens; aisimulate 0.13.0,
Apache-2.0), with errors of 5 and 6 % in the median. Held against the blog's own 96 (bf16 both ways, 8 to 64 ranks), which fitted
nothing: 10 and 7 %.
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray, IntArray
from hardware_profiles.device import Device
from hardware_profiles.ops import Ops

#: Seconds of either kernel without data at one rank, and what each doubling of the ranks adds; share of the one-way bandwidth
#: that it reaches. unit: s, s, 1. kind: fitted, 2026-11, source: above.
DISPATCH, COMBINE = (12.9e-6, 1.39e-6, 0.68), (11.3e-6, 3.68e-6, 0.742)


def joined(device: Device, ranks: int) -> bool:
    """Whether so many devices reach each other's memory over one NVLink switch (not cards in pairs, nor other nodes)."""
    link = device.link
    switched = link is not None and link.kind.startswith("nvlink") and link.topology == "all_to_all"
    return switched and ranks <= device.node_size.value


def exchange_s(
    ops: Ops, ranks: int, reached_share: float, tokens: IntArray, sent_bytes: FloatArray, back_bytes: FloatArray
) -> FloatArray:
    """Seconds of dispatch and combine around one layer of experts.

    tokens : of all `ranks` ranks together; sent_bytes, back_bytes : of all these, each token counted once. reached_share : of the
    ranks that a token reaches, its own among them.
    """
    rate = ops.peaks.among(ranks)
    total = np.zeros(np.shape(tokens))
    for (base_s, doubling_s, share), moved in ((DISPATCH, sent_bytes), (COMBINE, back_bytes)):
        carried = reached_share * (1.0 - 1.0 / ranks) * np.asarray(moved, dtype=np.float64)
        total = total + base_s + doubling_s * np.log2(ranks) + carried / (share * rate)
    return np.where(np.asarray(tokens) > 0, total, 0.0)


__all__ = ["exchange_s", "joined"]
