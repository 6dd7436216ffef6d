"""Layers of experts whose ranks are sent the rows of their own experts, and no others, by an all-to-all.

Where all ranks hold all tokens, each of them sorts and sums tokens that it does not compute; one that is sent its rows does not:

    t = t0 + max( E_touched bytes / (B e_m), 6 hidden inter rows / (P e_c) )

rows are those of the most loaded rank (:func:`~hardware_profiles.expert_ranks.loaded_rank`), E_touched those of its experts
that have one. That is a step in a CUDA graph. Outside of one the exchange tells the host how many rows have come, and the device
waits until the host has launched what follows; the sums of each token received are written to memory then:

    t = w + max( ... ) + 2 hidden received / (B e_w)

Fitted to 56 to 77 times of each of six GPUs under even loads of DeepSeek-V3's experts over 2 to 256 ranks (SGLang 0.5.10, fp8 in
blocks, DeepGEMM; ``kernels/NOTICE.md``), one set of shares a generation: 5 to 7 % off in graphs (median; a GPU left out 5 to 8),
4 to 11 % outside (3 to 14). Rows of other models were not timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hardware_profiles.expert_ranks import loaded_rank
from hardware_profiles.kernel_physics import (
    WEIGHT_BYTES,
    Array,
    DevicePeaks,
    moe_active_experts,
)
from hardware_profiles.ops import RoutedLayer


class Shares(NamedTuple):
    """Shares of the device's bandwidth that weights and sums reach, and of its arithmetic."""

    weights_share: float
    arithmetic_share: float
    sums_share: float


SHARES: Mapping[str, Shares] = {"hopper": Shares(0.74, 0.575, 0.60), "blackwell": Shares(0.61, 0.41, 0.49)}
"""By generation, of 8-bit weights. kind: fitted, 2026-11, source: the head of the module."""
FP4_SHARES = Shares(0.84, 0.23, 0.49)
"""Of 4-bit floats on Blackwell, by TensorRT-LLM's CUTLASS kernels under a mild skew (B200, GB200: 10 % off). kind: fitted,
2026-11, source: ``wideep_moe`` of TensorRT-LLM 1.3.0rc10 in the same tables; for other kernels assumed."""
LAUNCH_S = 1.9e-5
"""t0. kind: fitted, 2026-11, source: the head of the module (18.2 to 19.7 us)."""
WAIT_S, GRACE_WAIT_S = 2.2e-4, 5.35e-4
"""w of an x86 host (H100, H200, B200, B300: 220 to 222 us) and of a Grace CPU. kind: fitted, 2026-11, source: the same."""
GRACE = ("gb200", "gb300", "gh200")
"""Devices beside a Grace CPU. kind: datasheet."""
TIMED_RANKS, GRACE_RANKS = 8, 4
"""Ranks between which the exchange was timed: the devices of a node. kind: datasheet, source: the tables."""
EXCHANGING_SMS = 20
"""Multiprocessors that exchange outside of graphs. kind: datasheet, source: default of DeepEP's buffer (`Buffer.num_sms`)."""


def shares_of(architecture: str, fmt: str) -> Shares | None:
    """Shares of a generation's kernels for weights in `fmt`; None where none were timed."""
    if fmt == "nvfp4" and architecture == "blackwell":
        return FP4_SHARES
    return SHARES.get(architecture) if fmt in ("fp8", "fp8_block") else None


def received_share(topk: int, ranks: int) -> float:
    """Expected share of all tokens that a rank receives, if each goes once to every rank that has one of its experts.

    >>> received_share(1, 4)
    0.25
    """
    return 1.0 - (1.0 - 1.0 / ranks) ** topk


def routed_experts_s(
    shares: Shares, peaks: DevicePeaks, layer: RoutedLayer, tokens: Array, wait_s: float | None
) -> Array:
    """Time of a layer on the most loaded of its ranks, `tokens` the routed ones of all of them [s].

    wait_s : of the host where no CUDA graph holds the step, see the head of the module; None in a graph.
    """
    ranks, hidden, intermediate = layer.ranks, layer.hidden, layer.intermediate
    k, e = np.float64(layer.topk), np.float64(layer.experts)
    rows = tokens * k / ranks * loaded_rank(tokens, k, e, ranks, layer.deal)
    held = e + layer.deal.copies
    touched = moe_active_experts(held / ranks, np.maximum(rows, 1.0), chosen=k / held)
    weights_s = touched * 3.0 * hidden * intermediate * WEIGHT_BYTES[layer.fmt] / (shares.weights_share * peaks.hbm_bytes_per_s)
    products_s = 6.0 * hidden * intermediate * rows / (shares.arithmetic_share * peaks.rate(layer.fmt))
    device_s: Array = np.maximum(weights_s, products_s)
    if wait_s is None:
        return LAUNCH_S + device_s
    sums = 2.0 * hidden * tokens * received_share(layer.topk, ranks)
    return wait_s + device_s + sums / (shares.sums_share * peaks.hbm_bytes_per_s)


__all__ = [
    "EXCHANGING_SMS", "GRACE", "GRACE_RANKS", "GRACE_WAIT_S", "TIMED_RANKS", "WAIT_S", "Shares", "received_share",
    "routed_experts_s", "shares_of",
]  # fmt: skip
